//! `[lane.*]` and `[buffer]`.

use weir_host::units::{Bytes, Duration};
use weir_logic::ids::Class;
use weir_logic::lanes::{Durability, Overflow};

use super::{Context, check_range};
use crate::config::Buffer;
use crate::config::finding::Findings;
use crate::config::summary::human;

/// A smaller lane holds less than a few blocks.
const CAP_MIN: Bytes = Bytes::from_kib(256);
/// A shorter TTL would lose records in the outage that the buffer is there for.
const TTL_MIN: Duration = Duration::from_secs(60);
const TTL_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Shares beyond this starve the others.
const SHARE_MAX: u32 = 1_000;
/// Smallest file that has room for blocks, redb's own pages and removals.
const SIZE_MIN: Bytes = Bytes::from_mib(16);
const SIZE_MAX: Bytes = Bytes::from_gib(1_024);
/// A small box has 512 MiB in all.
const MEMORY_MAX: Bytes = Bytes::from_gib(1);
/// A block is compressed at once, and sent as a whole.
const BLOCK_MAX: Bytes = Bytes::from_mib(1);
/// Each lane has an open end and a block under way.
const BLOCKS_IN_MEMORY_MIN: u64 = 8;

pub(super) fn check(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    for class in Class::ALL {
        let lane = context.config.lane.of(class);
        let path = |key: &str| format!("lane.{}.{key}", class.name());
        check_range(findings, &path("share"), &lane.share, &(1..=SHARE_MAX), "the lanes' shares count relative to each other");
        if lane.cap < CAP_MIN {
            let message = format!("{} is less than {CAP_MIN}", lane.cap);
            findings.mistake(&path("cap"), message, "a lane must hold some blocks");
        }
        if !lane.ttl.is_zero() {
            let why = "write how old a record may get, or \"0s\" for no limit";
            check_range(findings, &path("ttl"), &lane.ttl, &(TTL_MIN..=TTL_MAX), why);
        }
        if class == Class::Critical && lane.overflow == Overflow::Thin {
            findings.mistake(&path("overflow"), "critical records are never thinned".to_owned(), "write overflow = \"evict\"");
        }
        if class == Class::Critical && lane.durability == Durability::Memory {
            let message = "critical records are acknowledged before they are safe anywhere";
            findings.warn(&path("durability"), message, "use `disk` or `through`");
        }
    }
    check_buffer(&context.config.buffer, findings);
    check_caps(context, findings);
}

fn check_buffer(buffer: &Buffer, findings: &mut Findings<'_, '_>) {
    let block_min = Bytes::from_kib(4);
    let memory_min = Bytes::new(BLOCKS_IN_MEMORY_MIN.saturating_mul(buffer.block_target.get().min(BLOCK_MAX.get())));
    let sizes = [
        ("size_limit", buffer.size_limit, SIZE_MIN..=SIZE_MAX, "it is the disk that the buffer may take"),
        ("cache", buffer.cache, Bytes::from_mib(1)..=Bytes::from_mib(256), "4MiB is enough for any box measured"),
        ("reserve", buffer.reserve, Bytes::new(0)..=Bytes::from_gib(1), "8MiB is enough to empty a full disk"),
        ("block_target", buffer.block_target, block_min..=BLOCK_MAX, "64KiB compresses as well as larger blocks"),
        ("memory", buffer.memory, memory_min..=MEMORY_MAX, "it must hold 8 blocks of buffer.block_target"),
    ];
    for (key, value, range, why) in sizes {
        check_range(findings, &format!("buffer.{key}"), &value, &range, why);
    }
}

fn check_caps(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    let buffer = &context.config.buffer;
    let caps = Class::ALL.map(|class| context.config.lane.of(class).cap.get());
    let total = caps.iter().fold(0_u64, |total, cap| total.saturating_add(*cap));
    let limit = buffer.caps_limit();
    if total <= limit.get() {
        return;
    }
    // The place to mend it: what the file itself says.
    let mut given =
        Class::ALL.map(|class| format!("lane.{}.cap", class.name())).into_iter().filter(|path| findings.is_given(path));
    let path = given.next_back().unwrap_or_else(|| "buffer.size_limit".to_owned());
    let needed = (u128::from(total) * 100).div_ceil(45 << 20) as u64;
    let message = format!(
        "the caps of all lanes come to {}, more than 45 % of buffer.size_limit, which is {}",
        human(total),
        human(limit.get())
    );
    findings.mistake(&path, message, format!("lower the caps, or set buffer.size_limit to \"{needed}MiB\""));
}
