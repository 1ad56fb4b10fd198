//! A bottleneck with a queue of limited bytes, and flows through it that always have something to send.
//!
//! Packets are paced as quinn does: five quarters of the window in a smoothed round trip, in bursts of ten. A loss is known a
//! round trip later.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::super::{Controller, WINDOW_PACKETS_AT_FIRST};

pub(super) const PACKET: u64 = 1_200;
const BURST: u64 = 10 * PACKET;

/// The path: time there and back, queue, random losses and jitter (order is kept).
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) rtt_us: u64,
    pub(super) queue_bytes: u64,
    pub(super) loss: f64,
    pub(super) jitter_us: u64,
    /// Bytes per second from this time on, sorted by time.
    pub(super) rates: Vec<(u64, f64)>,
    /// Acks come together at multiples of this.
    pub(super) ack_every_us: u64,
    /// No acks from and until.
    pub(super) silence_us: (u64, u64),
    pub(super) seed: u64,
}

impl Setup {
    /// A clean path of this rate in bytes per second.
    pub(super) fn constant(rate: f64, rtt_us: u64, queue_bytes: u64) -> Self {
        Self {
            rtt_us,
            queue_bytes,
            loss: 0.0,
            jitter_us: 0,
            rates: vec![(0, rate)],
            ack_every_us: 1,
            silence_us: (0, 0),
            seed: 1,
        }
    }

    /// Bytes that the path holds without a queue, at its first rate.
    pub(super) fn product(&self) -> f64 {
        self.rates[0].1 * self.rtt_us as f64 / 1e6
    }

    fn rate_at(&self, now_us: u64) -> f64 {
        self.rates.iter().rev().find(|&&(from_us, _)| from_us <= now_us).expect("the first is at 0").1
    }
}

/// Who decides how much may be under way.
#[derive(Debug)]
pub(super) enum Sender {
    Ours(Box<Controller>),
    /// RFC 9438 without its corners: what our flow meets in a shared queue.
    Cubic {
        window: f64,
        w_max: f64,
        since_us: u64,
        in_startup: bool,
    },
}

impl Sender {
    pub(super) fn ours() -> Self {
        Sender::Ours(Box::new(Controller::new(0, PACKET)))
    }

    pub(super) fn cubic() -> Self {
        Sender::Cubic { window: (WINDOW_PACKETS_AT_FIRST * PACKET) as f64, w_max: 0.0, since_us: 0, in_startup: true }
    }

    fn window(&self) -> u64 {
        match self {
            Sender::Ours(controller) => controller.window(),
            Sender::Cubic { window, .. } => *window as u64,
        }
    }

    fn acked(&mut self, now_us: u64, sent_us: u64, in_flight: u64) {
        match self {
            Sender::Ours(controller) => {
                controller.acked(now_us, sent_us, PACKET);
                controller.acks_end(now_us, in_flight, false);
            }
            Sender::Cubic { window, in_startup: true, .. } => *window += PACKET as f64,
            Sender::Cubic { window, w_max, since_us, .. } => {
                let packets = *w_max / PACKET as f64;
                let k = (packets * 0.3 / 0.4).cbrt();
                let t = now_us.saturating_sub(*since_us) as f64 / 1e6;
                let wanted = (0.4 * (t - k).powi(3) + packets) * PACKET as f64;
                *window += ((wanted - *window) / *window).clamp(0.0, 0.5) * PACKET as f64;
            }
        }
    }

    fn lost(&mut self, now_us: u64, sent_us: u64) {
        match self {
            Sender::Ours(controller) => controller.lost(now_us, PACKET, false),
            Sender::Cubic { window, w_max, since_us, in_startup } if sent_us >= *since_us => {
                (*w_max, *since_us, *in_startup) = (*window, now_us, false);
                *window = (*window * 0.7).max(2.0 * PACKET as f64);
            }
            Sender::Cubic { .. } => {}
        }
    }
}

/// One flow and what became of it.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) sender: Sender,
    in_flight: u64,
    srtt_us: f64,
    tokens: f64,
    paced_us: u64,
    /// True while it waits for the pacer.
    is_paced: bool,
    /// Sent bytes, and lost ones.
    pub(super) sent_bytes: u64,
    pub(super) lost_bytes: u64,
    /// When each acked packet's ack came.
    acks: Vec<u64>,
}

impl Flow {
    /// Bytes acked in this part of the run.
    pub(super) fn acked_between(&self, from_us: u64, until_us: u64) -> u64 {
        self.acks.iter().filter(|&&at_us| at_us >= from_us && at_us < until_us).count() as u64 * PACKET
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Acked { flow: usize, sent_us: u64 },
    Lost { flow: usize, sent_us: u64 },
    Send { flow: usize },
}

/// What happened in a run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) flows: Vec<Flow>,
    /// Bytes in the queue, at each packet that came to it.
    pub(super) queue: Vec<(u64, f64)>,
}

impl Run {
    /// Mean and largest queue in this part of the run.
    pub(super) fn queue_between(&self, from_us: u64, until_us: u64) -> (f64, f64) {
        let part: Vec<f64> =
            self.queue.iter().filter(|(at_us, _)| (from_us..until_us).contains(at_us)).map(|&(_, bytes)| bytes).collect();
        (part.iter().sum::<f64>() / part.len().max(1) as f64, part.iter().copied().fold(0.0, f64::max))
    }
}

/// Runs flows, each from its start, until `end_us`.
pub(super) fn run(setup: &Setup, senders: Vec<(u64, Sender)>, end_us: u64) -> Run {
    let mut events = BinaryHeap::new();
    let mut flows = Vec::new();
    for (flow, (start_us, sender)) in senders.into_iter().enumerate() {
        events.push(Reverse((start_us, Event::Send { flow })));
        let (srtt_us, tokens) = (setup.rtt_us as f64, BURST as f64);
        let acks = Vec::new();
        let (in_flight, sent_bytes, lost_bytes) = (0, 0, 0);
        flows.push(Flow {
            sender,
            in_flight,
            srtt_us,
            tokens,
            paced_us: start_us,
            is_paced: false,
            sent_bytes,
            lost_bytes,
            acks,
        });
    }
    let mut bottleneck = Bottleneck { free_us: 0.0, last_us: 0, random: setup.seed };
    let mut queue = Vec::new();
    while let Some(Reverse((now_us, event))) = events.pop() {
        if now_us > end_us {
            break;
        }
        let at = match event {
            Event::Acked { flow, sent_us } => {
                let one = &mut flows[flow];
                one.in_flight -= PACKET;
                one.acks.push(now_us);
                one.srtt_us += ((now_us - sent_us) as f64 - one.srtt_us) / 8.0;
                one.sender.acked(now_us, sent_us, one.in_flight);
                flow
            }
            Event::Lost { flow, sent_us } => {
                let one = &mut flows[flow];
                one.in_flight -= PACKET;
                one.lost_bytes += PACKET;
                one.sender.lost(now_us, sent_us);
                flow
            }
            Event::Send { flow } => {
                flows[flow].is_paced = false;
                flow
            }
        };
        let one = &mut flows[at];
        while !one.is_paced && one.in_flight + PACKET <= one.sender.window() {
            let per_us = 1.25 * one.sender.window() as f64 / one.srtt_us;
            one.tokens = (one.tokens + per_us * (now_us - one.paced_us) as f64).min(BURST as f64);
            one.paced_us = now_us;
            if one.tokens < PACKET as f64 {
                let wait_us = ((PACKET as f64 - one.tokens) / per_us) as u64 + 1;
                events.push(Reverse((now_us + wait_us, Event::Send { flow: at })));
                one.is_paced = true;
                break;
            }
            one.tokens -= PACKET as f64;
            one.in_flight += PACKET;
            one.sent_bytes += PACKET;
            queue.push((now_us, bottleneck.waiting(setup, now_us)));
            let (when_us, event) = match bottleneck.fate(setup, now_us) {
                Some(acked_us) => (acked_us, Event::Acked { flow: at, sent_us: now_us }),
                None => (now_us + one.srtt_us as u64, Event::Lost { flow: at, sent_us: now_us }),
            };
            events.push(Reverse((when_us, event)));
        }
    }
    Run { flows, queue }
}

#[derive(Debug)]
struct Bottleneck {
    free_us: f64,
    last_us: u64,
    random: u64,
}

impl Bottleneck {
    fn waiting(&self, setup: &Setup, now_us: u64) -> f64 {
        (self.free_us - now_us as f64).max(0.0) * setup.rate_at(now_us) / 1e6
    }

    /// When a packet sent now is acked; `None` if it is lost.
    fn fate(&mut self, setup: &Setup, now_us: u64) -> Option<u64> {
        if self.waiting(setup, now_us) + PACKET as f64 > setup.queue_bytes as f64 {
            return None;
        }
        self.free_us = self.free_us.max(now_us as f64) + PACKET as f64 * 1e6 / setup.rate_at(now_us);
        if self.unit() < setup.loss {
            return None;
        }
        let jitter_us = (self.unit() * setup.jitter_us as f64) as u64;
        let arrives_us = self.free_us as u64 + setup.rtt_us + jitter_us;
        let acked_us = arrives_us.next_multiple_of(setup.ack_every_us);
        let (from_us, until_us) = setup.silence_us;
        let acked_us = if (from_us..until_us).contains(&acked_us) { until_us } else { acked_us };
        self.last_us = self.last_us.max(acked_us);
        Some(self.last_us)
    }

    /// Xorshift: a number in [0, 1).
    fn unit(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }
}
