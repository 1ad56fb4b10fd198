//! What is told to an uplink's health, and what it tells: plain data with units.

use crate::health::breaker::{BreakerLimits, BreakerState};

/// What the operator says of an uplink.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UplinkLimits {
    /// Assumed rate before anything is measured, in bits per second.
    pub nominal_bps: u64,
    /// Bytes cost money: cold when idle.
    pub metered: bool,
    /// When not to use it.
    pub breaker: BreakerLimits,
    /// Spreads trials and probes of many boxes.
    pub seed: u64,
}

/// Counters of a connection's path, from its beginning, as QUIC implementations give them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathStats {
    /// The transport's present estimate of the round trip in microseconds; 0 if it has none.
    pub rtt_us: u64,
    /// The shortest round trip in microseconds; 0 if it keeps none.
    pub rtt_min_us: u64,
    /// Packets received. If always 0, a change of `rtt_us` stands for a word.
    pub received_packets: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets found lost.
    pub lost_packets: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Congestion window in bytes.
    pub cwnd_bytes: u64,
    /// Times the congestion controller backed off.
    pub congestion_events: u64,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The box wanted it: idle and metered, or shutting down.
    Local,
    /// The cloud closed it.
    Peer,
    /// It broke or timed out.
    Lost,
    /// It was never made.
    ConnectFailed,
}

/// The verdict on an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UplinkState {
    /// It works.
    Green,
    /// It is late, or nobody knows.
    Yellow,
    /// It is dead.
    Red,
    /// It answers, but data does not pass: try another transport.
    Blocked,
    /// Metered and idle, without a connection on purpose.
    Cold,
}

impl UplinkState {
    /// The word used in status, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            UplinkState::Green => "green",
            UplinkState::Yellow => "yellow",
            UplinkState::Red => "red",
            UplinkState::Blocked => "blocked",
            UplinkState::Cold => "cold",
        }
    }
}

/// A change of the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateChange {
    /// Before.
    pub from: UplinkState,
    /// From now on.
    pub to: UplinkState,
    /// Service time in microseconds.
    pub at_us: u64,
}

/// What is known of an uplink; all numbers are finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UplinkEstimate {
    /// Round trip that must be reckoned with (peak average), in microseconds.
    pub rtt_us: u64,
    /// Mean difference of successive round trips, in microseconds.
    pub jitter_us: u64,
    /// Packets lost over packets sent, in `[0, 1]`.
    pub loss: f64,
    /// Rate of the last seconds, in bits per second.
    pub goodput_bps: f64,
    /// Rate of the last minutes, in bits per second: what it carries as a rule.
    pub capacity_bps: f64,
    /// Present round trip above the shortest known, in microseconds.
    pub queueing_delay_us: u64,
    /// From handing data over to its acknowledgement (peak average), in microseconds; `None` before the first.
    pub ack_delay_us: Option<u64>,
    /// Congestion window of the present connection in bytes; 0 without one.
    pub cwnd_bytes: u64,
    /// Exchanges that failed over all, in `[0, 1]`; `None` below the minimum of samples.
    pub error_ratio: Option<f64>,
    /// The verdict.
    pub state: UplinkState,
    /// Whether to use it.
    pub breaker: BreakerState,
    /// Trust in all this, in `[0, 1]`.
    pub confidence: f64,
    /// Service time of the last evidence in microseconds; 0 if there is none.
    pub updated_us: u64,
}

/// Sums over all connections of an uplink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UplinkCounters {
    /// Connections made.
    pub connections: u64,
    /// Connections that ended against our will, and attempts that failed.
    pub failures: u64,
    /// Changes of the verdict.
    pub state_changes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets lost.
    pub lost_packets: u64,
    /// Bytes sent, as the transport counts them.
    pub sent_bytes: u64,
    /// Bytes acknowledged.
    pub acked_bytes: u64,
    /// Times the congestion controller backed off.
    pub congestion_events: u64,
}
