//! Tests of several files together.

mod ask;
mod cause;
mod merge;
mod publish;
mod site;
mod talkers;

use super::*;
use crate::health::{BreakerState, UplinkEstimate, UplinkState};

pub(super) const SECOND_US: u64 = 1_000_000;

/// A box with this many uplinks and streams, each stream with its sensors, every other one with a model.
pub(super) fn shape(gateway: &str, uplinks: usize, streams: usize) -> SiteShape {
    let of_stream = |at: usize| StreamShape {
        name: format!("vibration-{at}"),
        sensors: vec![format!("plant/line-{at}/+/acceleration")],
        model: at.is_multiple_of(2).then(|| "bearing-autoencoder".to_owned()),
    };
    let of_uplink = |at: usize| UplinkShape {
        name: format!("wwan{at}"),
        router: Some(format!("{gateway}-line-{at}")),
        carrier: Some(format!("carrier-{at}")),
        ingest: format!("ingest-{}", at % 2),
        zone: None,
        money_per_mb: Some(0.01 * at as f64),
        energy_per_mb: Some(1.5),
    };
    SiteShape {
        gateway: gateway.to_owned(),
        zone: Some("eu-central".to_owned()),
        streams: (0..streams).map(of_stream).collect(),
        uplinks: (0..uplinks).map(of_uplink).collect(),
    }
}

/// An uplink in good health, seen just now; `size` spreads its numbers.
pub(super) fn healthy(now_us: u64, size: f64) -> UplinkEstimate {
    UplinkEstimate {
        rtt_us: (40_000.0 * size) as u64,
        jitter_us: (3_000.0 * size) as u64,
        loss: 0.01 * size,
        goodput_bps: 2e6 * size,
        capacity_bps: 5e6 * size,
        queueing_delay_us: (10_000.0 * size) as u64,
        ack_delay_us: Some((90_000.0 * size) as u64),
        cwnd_bytes: 64_000,
        error_ratio: Some(0.0),
        state: UplinkState::Green,
        breaker: BreakerState::Closed,
        confidence: 1.0,
        updated_us: now_us,
    }
}

pub(super) fn owner(text: &str) -> Owner {
    text.parse().expect("an owner")
}
