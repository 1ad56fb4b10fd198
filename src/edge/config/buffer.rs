//! The buffer: its lanes, its bounds on disk and in memory.

use serde::Deserialize;
use weir_host::units::{Bytes, Duration};
use weir_logic::ids::{Class, PerClass};
use weir_logic::lanes::{Durability, LanePolicy, LanesLimits, Overflow};

/// `[lane.critical]` to `[lane.bulk]`. A table that leaves keys out keeps the defaults of its own class.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "LanesTable")]
pub struct Lanes {
    /// What is never thinned and goes first.
    pub critical: Lane,
    /// What goes before `normal`.
    pub high: Lane,
    /// What streams belong to that name no class.
    pub normal: Lane,
    /// What gets the rest.
    pub bulk: Lane,
}

impl Default for Lanes {
    fn default() -> Self {
        Lanes {
            critical: Lane { cap: Bytes::from_mib(32), overflow: Overflow::Evict, share: 8, ..Lane::default() },
            high: Lane { cap: Bytes::from_mib(48), share: 4, ..Lane::default() },
            normal: Lane { cap: Bytes::from_mib(96), share: 2, ..Lane::default() },
            bulk: Lane { cap: Bytes::from_mib(48), share: 1, ..Lane::default() },
        }
    }
}

impl Lanes {
    /// The lane of a class.
    pub fn of(&self, class: Class) -> &Lane {
        match class {
            Class::Critical => &self.critical,
            Class::High => &self.high,
            Class::Normal => &self.normal,
            Class::Bulk => &self.bulk,
        }
    }

    /// The lanes as the core takes them.
    pub fn policies(&self) -> PerClass<LanePolicy> {
        Class::ALL.map(|class| {
            let lane = self.of(class);
            LanePolicy {
                durability: lane.durability,
                cap_bytes: lane.cap.get(),
                overflow: lane.overflow,
                ttl_us: (!lane.ttl.is_zero()).then_some(lane.ttl.as_micros()),
                share: lane.share,
            }
        })
    }
}

/// One lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// When its records are safe.
    pub durability: Durability,
    /// Most bytes of its blocks, compressed.
    pub cap: Bytes,
    /// What becomes of it when it is full; `critical` is never thinned.
    pub overflow: Overflow,
    /// Age from which a record is given up, with what came within a sixteenth of it; no time is no limit.
    pub ttl: Duration,
    /// Its part of an uplink that all lanes want, relative to the others' parts.
    pub share: u32,
}

impl Default for Lane {
    /// What the lanes have in common; `cap` and `share` are each lane's own, see [`Lanes`].
    fn default() -> Self {
        Lane {
            durability: Durability::Through,
            cap: Bytes::from_mib(48),
            overflow: Overflow::Thin,
            ttl: Duration::from_secs(7 * 86_400),
            share: 1,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LanesTable {
    critical: LaneTable,
    high: LaneTable,
    normal: LaneTable,
    bulk: LaneTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LaneTable {
    durability: Option<Durability>,
    cap: Option<Bytes>,
    overflow: Option<Overflow>,
    ttl: Option<Duration>,
    share: Option<u32>,
}

impl LaneTable {
    fn or(&self, default: &Lane) -> Lane {
        Lane {
            durability: self.durability.unwrap_or(default.durability),
            cap: self.cap.unwrap_or(default.cap),
            overflow: self.overflow.unwrap_or(default.overflow),
            ttl: self.ttl.unwrap_or(default.ttl),
            share: self.share.unwrap_or(default.share),
        }
    }
}

impl From<LanesTable> for Lanes {
    fn from(table: LanesTable) -> Self {
        let default = Lanes::default();
        Lanes {
            critical: table.critical.or(&default.critical),
            high: table.high.or(&default.high),
            normal: table.normal.or(&default.normal),
            bulk: table.bulk.or(&default.bulk),
        }
    }
}

/// `[buffer]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Buffer {
    /// Disk that the buffer may take; the caps of all lanes together may be 45 % of it.
    pub size_limit: Bytes,
    /// Memory for pages of the buffer's file.
    pub cache: Bytes,
    /// Disk held back, and given up first when the disk is full.
    pub reserve: Bytes,
    /// Memory for records that are not safe yet; half of it full, the oldest are written, all of it full, sockets are
    /// not read.
    pub memory: Bytes,
    /// Uncompressed bytes at which a block is sealed.
    pub block_target: Bytes,
    /// Flash that commits ahead of their interval may write a day, for senders that wait for each PUBACK or send in bursts.
    /// Beside 2 GiB the regular commits, at one a second, stay within 5 GB a day.
    pub early_commit_per_day: Bytes,
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer {
            size_limit: Bytes::from_mib(512),
            cache: Bytes::from_mib(4),
            reserve: Bytes::from_mib(8),
            memory: Bytes::from_mib(16),
            block_target: Bytes::from_kib(128),
            early_commit_per_day: Bytes::from_gib(2),
        }
    }
}

impl Buffer {
    /// What the core takes of it.
    pub fn lanes_limits(&self) -> LanesLimits {
        LanesLimits {
            memory_bytes: self.memory.get(),
            block_target_bytes: self.block_target.as_usize(),
            early_commit_bytes_per_day: self.early_commit_per_day.get(),
        }
    }

    /// Most bytes that the caps of all lanes may come to: 45 % of the limit, because the file was measured at twice its
    /// blocks and deleting needs room too.
    pub fn caps_limit(&self) -> Bytes {
        Bytes::new((u128::from(self.size_limit.get()) * 45 / 100) as u64)
    }
}
