//! How much an uplink may have under way: quinn's controllers, and quinn's side of the one in [`weir_logic::congestion`].
//!
//! Neither `host` nor `logic` knows of the other's, so they meet here: `host` takes a factory, `logic` decides, and between them
//! are clocks and calls.
//! quinn paces packets by window and smoothed round trip, at five quarters of one window a round trip.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{self, BbrConfig, CubicConfig, NewRenoConfig};
use quinn_proto::RttEstimator;
use serde::Deserialize;
use weir_host::quic;
use weir_logic::congestion::{Controller, WINDOW_PACKETS_AT_FIRST};

/// How an uplink decides how much may be under way. `weir-bench congestion` measures all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    /// Halves (nearly) on loss and fills queues; the best understood.
    Cubic,
    /// Keeps what the path holds under way: measured rate times round trip, and 15 %.
    #[default]
    Bdp,
    /// quinn's BBR, which it calls experimental: holds its rate under random loss, and fills queues.
    Bbr,
    /// Halves on loss.
    NewReno,
}

impl Congestion {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cubic, Self::Bdp, Self::Bbr, Self::NewReno];

    /// What makes the controller of each connection.
    pub fn factory(self) -> quic::Congestion {
        quic::Congestion(match self {
            Self::Bdp => Arc::new(Bdp),
            Self::Cubic => Arc::new(CubicConfig::default()),
            Self::Bbr => Arc::new(BbrConfig::default()),
            Self::NewReno => Arc::new(NewRenoConfig::default()),
        })
    }
}

/// Makes a [`BdpController`] for each path.
#[derive(Debug)]
struct Bdp;

impl congestion::ControllerFactory for Bdp {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn congestion::Controller> {
        let packet_bytes = u64::from(current_mtu);
        Box::new(BdpController { began: now, packet_bytes, controller: Controller::new(0, packet_bytes) })
    }
}

/// One path's controller, whose time begins with it.
#[derive(Debug, Clone)]
struct BdpController {
    began: Instant,
    packet_bytes: u64,
    controller: Controller,
}

impl BdpController {
    fn us(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_micros() as u64
    }
}

impl congestion::Controller for BdpController {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _: bool, _: &RttEstimator) {
        self.controller.acked(self.us(now), self.us(sent), bytes);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _: Option<u64>) {
        self.controller.acks_end(self.us(now), in_flight, app_limited);
    }

    fn on_congestion_event(&mut self, now: Instant, _: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.controller.lost(self.us(now), lost_bytes, is_persistent_congestion);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.packet_bytes = u64::from(new_mtu);
        self.controller.set_packet_bytes(self.packet_bytes);
    }

    fn window(&self) -> u64 {
        self.controller.window()
    }

    fn clone_box(&self) -> Box<dyn congestion::Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        WINDOW_PACKETS_AT_FIRST * self.packet_bytes
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
