//! The simulated box: its configuration as the core takes it, and the payloads of its sensors.

use weir_logic::ids::Class;
use weir_logic::lanes::{Durability, LanePolicy, LanesLimits, Overflow};
use weir_logic::mqtt::{ConnLimits, RouterLimits};
use weir_logic::payload::{CHANNELS_MAX, ElementType, PackedFormat, PayloadFormat, TimeOf};
use weir_logic::policy::{Policy, StreamFidelity, StreamPolicy, UplinkPolicy, UserPolicy};
use weir_logic::price::{Ladder, Lateness, Level, PriceLimits, StreamValue};
use weir_logic::uplink::SessionLimits;

use super::trace::Link;
use super::workload::{StreamSpec, Workload};

/// What a record of this id begins with.
const ID_LEN: usize = 8;

pub(super) fn policy(link: &Link, workload: &Workload, price: PriceLimits) -> Policy {
    let buffer = workload.buffer.as_secs_f64() * link.mean_bytes_per_s();
    let lane = |part: f64, share| LanePolicy {
        durability: Durability::Through,
        cap_bytes: ((buffer * part) as u64).max(256 << 10),
        overflow: Overflow::Thin,
        ttl_us: None,
        share,
    };
    Policy {
        lanes: [lane(0.1, 8), lane(0.3, 4), lane(0.4, 2), lane(0.2, 1)],
        lanes_limits: LanesLimits {
            memory_bytes: 16 << 20,
            block_target_bytes: 128 << 10,
            early_commit_bytes_per_day: 20 << 30,
        },
        streams: streams(workload),
        users: vec![UserPolicy { name: "".into(), publish: vec!["#".into()] }],
        connections: ConnLimits { inflight_max: u16::MAX, packet_len_max: 2 << 20, ..ConnLimits::default() },
        connections_max: 4,
        router: RouterLimits::default(),
        brokers: Vec::new(),
        session: SessionLimits {
            ping_us: 1_000_000,
            silence_us: 5_000_000,
            connect_us: 10_000_000,
            backoff_us: (500_000, 30_000_000),
        },
        uplinks: vec![UplinkPolicy::free("link", (8.0 * link.mean_bytes_per_s()) as u64)],
        price,
        critical_copies: 1,
        offload: Default::default(),
    }
}

/// For each stream one of calm times, then for each one of anomalies.
fn streams(workload: &Workload) -> Vec<StreamPolicy> {
    let modes = [("calm", 1.0), ("anomaly", workload.anomaly_weight)];
    let of = |(mode, times): (&'static str, f64)| {
        workload.stream.iter().enumerate().map(move |(index, stream)| stream_policy(index, stream, mode, times))
    };
    modes.into_iter().flat_map(of).collect()
}

fn stream_policy(index: usize, stream: &StreamSpec, mode: &str, times: f64) -> StreamPolicy {
    let class = stream.class();
    let mut worth = [None; 5];
    for (at, &value) in stream.fidelity.iter().enumerate() {
        worth[at] = Some(value);
    }
    // The box has no model for these streams.
    let ladder = Ladder::new(worth).unwrap_or(Ladder::RAW).without(Level::Verdict);
    let value = StreamValue {
        weight: times * stream.weight / 125_000.0,
        ladder: if class == Class::Critical { Ladder::RAW } else { ladder },
        lateness: Lateness { d0_us: stream.deadline.as_micros(), d1_us: stream.useful_us(), u1: stream.late_value },
        is_exempt: class == Class::Critical,
    };
    StreamPolicy {
        name: format!("{}-{mode}", stream.name).into(),
        filters: vec![format!("{index}/{mode}/+")],
        class,
        fidelity: StreamFidelity::Raw,
        format: PayloadFormat::Packed(packed(stream)),
        aggregate: None,
        keep: None,
        model: None,
        ack_record: false,
        zones: Vec::new(),
        value: Some(value),
        offload: None,
        truth: None,
    }
}

/// As many channels as let one message's aggregate be at most a sixteenth of it.
fn packed(stream: &StreamSpec) -> PackedFormat {
    let sixteenth = stream.record.get() as usize / 16;
    let channels = (sixteenth.saturating_sub(20) / 24).clamp(1, CHANNELS_MAX);
    PackedFormat {
        element: ElementType::I16,
        channels,
        scale: None,
        offset: None,
        rate_hz: Some(1_000.0),
        time_of: TimeOf::Last,
    }
}

/// Whole rows, not shorter than the id.
pub(super) fn payload_len(stream: &StreamSpec, bytes: u32) -> usize {
    let row = 2 * packed(stream).channels;
    ((bytes as usize).max(ID_LEN) / row).max(ID_LEN.div_ceil(row)) * row
}

/// The id, then noise.
pub(super) fn payload(id: u32, len: usize) -> Vec<u8> {
    let mut state = (u64::from(id) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = u64::from(id).to_le_bytes().to_vec();
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
