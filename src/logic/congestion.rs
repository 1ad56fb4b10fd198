//! How much may be under way: a congestion window made from what the path is measured to carry.
//!
//! Think of a conveyor belt. As long as it is not full, what is put on comes off a belt's length later; once it is full, more only
//! makes a heap before it. Loss says nothing about the heap: radio loses packets beside an empty belt. So the window is what the
//! belt holds, *rate x round trip*, and 15 % more to notice when it runs faster.
//!
//! - The rate is delivered bytes over the time that took, over a whole round trip, as BBR has it (draft-ietf-ccwg-bbr): neither
//!   acks that come in a heap nor packets sent in one raise it. What was sent while there was too little to send does not lower
//!   it. The highest of the last [`ROUNDS`] round trips counts; three that each raise it let the window double again.
//! - The round trip is the shortest seen. When none about as short was for 5 s, a quarter less is sent for two rounds, so that
//!   the queue drains, and the shortest of those counts.
//! - *Little's law* says what jitter and acks in heaps need on top: packets under way are the rate times the **mean** round trip.
//!   The mean less the shortest of the same round is that, and holds no standing queue.
//! - A queue that stands beyond what the 15 % explain says that the rate has fallen: older rates are forgotten. If it
//!   stands for [`STANDS_ROUNDS`] all the same, it is somebody else's, and for [`ROUNDS`] the window is made from the round trip
//!   with that queue, else a flow that fills queues would starve this one; then it looks again. Copa (NSDI 2018, section 2.2)
//!   has two modes for the same reason.
//! - Only loss of more than a twelfth of a round trip's bytes, twice in a row, or of 5 % for some eight counts: a policer, or a
//!   queue shorter than what we send on top. It lowers a ceiling, which rises again slowly (`inflight_hi` of BBRv2).
//!
//! Time, and what was acked, are arguments; it takes O(1) an ack and at most 6 KiB.

use std::collections::VecDeque;

use round::{Path, Round};

mod round;

/// Least window: two packets, so that an ack is not waited for (RFC 9002, 7.2).
pub const WINDOW_PACKETS_MIN: u64 = 2;
/// Largest window in bytes: 670 Mbit/s over 100 ms, far above what a box sends.
pub const WINDOW_MAX: u64 = 8 << 20;
/// Window before anything is measured, in packets; source: RFC 9002, 7.2.
pub const WINDOW_PACKETS_AT_FIRST: u64 = 10;
/// Round trips for which a rate counts; BBR has 10.
pub const ROUNDS: usize = 8;
/// Round trips for which a queue must stand before it is taken for somebody else's.
pub const STANDS_ROUNDS: u32 = 4;
/// What is sent above the product, to notice a faster path. With 1.25, BBR's when it probes, a link carries no more, the queue is half
/// as long again, and where it is shorter than that more than three times as much is lost.
const GAIN: f64 = 1.15;
/// Gain while the queue is drained.
const GAIN_DRAIN: f64 = 0.75;
/// Packets beyond the product: acks come for two at a time.
const HEADROOM_PACKETS: u64 = 2;
/// Rounds without so much growth that end the start; source: BBR.
const STARTUP_GROWTH: f64 = 1.25;
const STARTUP_ROUNDS_FLAT: u32 = 3;
/// Share of a round trip's bytes, and number of packets (source: BBRv3), that must be lost to count.
const LOSS_SHARE: f64 = 1.0 / 12.0;
const LOSS_PACKETS: u64 = 6;
/// Share that counts when it lasts for some eight round trips.
const LOSS_SHARE_LASTING: f64 = 0.05;
/// Part of what came through in that round trip that may be under way then.
const LOSS_FACTOR: f64 = 0.9;
/// Each of the first rounds without such loss raises the ceiling by a 32nd, a later one by a quarter.
const CEILING_SHIFT: u32 = 5;
const CEILING_SHIFT_QUIET: u32 = 2;
const QUIET_ROUNDS: u32 = 10;
/// Deliveries remembered: at most 32 in a round trip, for eight of them.
pub const DELIVERIES_MAX: usize = 256;
const DELIVERIES_PER_ROUND: u64 = 32;

/// What had been delivered when.
#[derive(Debug, Clone, Copy)]
struct Delivery {
    at_us: u64,
    bytes: u64,
    /// When the newest packet acked by then was sent.
    sent_us: u64,
}

/// Acks that came in one packet.
#[derive(Debug, Clone, Copy, Default)]
struct Batch {
    bytes: u64,
    sent_us: u64,
}

/// What was acked and lost in the last rounds; a round counts an eighth less with each that follows.
#[derive(Debug, Clone, Copy, Default)]
struct Lately {
    acked_bytes: f64,
    lost_bytes: f64,
}

impl Lately {
    fn add(&mut self, round: &Round) {
        self.acked_bytes = 0.875 * self.acked_bytes + round.acked_bytes() as f64;
        self.lost_bytes = 0.875 * self.lost_bytes + round.lost_bytes() as f64;
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// The window doubles in each round trip until the rate does not follow.
    Startup { rate: f64, rounds_flat: u32 },
    /// The window follows what was measured.
    Steady,
}

/// The congestion controller of one path.
#[derive(Debug, Clone)]
pub struct Controller {
    packet_bytes: u64,
    phase: Phase,
    window: u64,
    /// Bound of the window after heavy loss, and rounds without such loss since.
    ceiling: u64,
    rounds_quiet: u32,
    /// True if the last round's loss was heavy: one round's may be a burst that no queue caused. While the window doubles one is
    /// enough.
    was_heavy: bool,
    lately: Lately,
    delivered: u64,
    newest_sent_us: u64,
    deliveries: VecDeque<Delivery>,
    batch: Batch,
    /// When there last was too little to send.
    limited_us: Option<u64>,
    round: Round,
    path: Path,
}

impl Controller {
    /// A path of which nothing is known, at this time, for packets of this length.
    pub fn new(now_us: u64, packet_bytes: u64) -> Self {
        Self {
            packet_bytes,
            phase: Phase::Startup { rate: 0.0, rounds_flat: 0 },
            window: WINDOW_PACKETS_AT_FIRST * packet_bytes,
            ceiling: WINDOW_MAX,
            rounds_quiet: 0,
            was_heavy: false,
            lately: Lately::default(),
            delivered: 0,
            newest_sent_us: now_us,
            deliveries: VecDeque::from([Delivery { at_us: now_us, bytes: 0, sent_us: now_us }]),
            batch: Batch::default(),
            limited_us: None,
            round: Round::new(now_us),
            path: Path::new(now_us, HEADROOM_PACKETS * packet_bytes),
        }
    }

    /// Bytes that may be under way: from two packets to [`WINDOW_MAX`].
    pub fn window(&self) -> u64 {
        self.window
    }

    /// Packets have another length from now on.
    pub fn set_packet_bytes(&mut self, packet_bytes: u64) {
        self.packet_bytes = packet_bytes;
        self.window = self.bounded(self.window);
    }

    /// A packet was acked; [`Controller::acks_end`] follows when all that came with it are told.
    pub fn acked(&mut self, now_us: u64, sent_us: u64, bytes: u64) {
        self.delivered += bytes;
        self.batch.bytes += bytes;
        self.batch.sent_us = self.batch.sent_us.max(sent_us);
        let rtt_us = now_us.saturating_sub(sent_us).max(1);
        self.round.acked(rtt_us, bytes);
        self.path.saw(now_us, rtt_us);
    }

    /// Draws conclusions from acks that came together. `in_flight` bytes are under way after them; `app_limited` says that there
    /// was nothing more to send before they came.
    pub fn acks_end(&mut self, now_us: u64, in_flight: u64, app_limited: bool) {
        let batch = std::mem::take(&mut self.batch);
        if batch.bytes == 0 {
            return;
        }
        // A writer that waits for room refills it a moment after the ack: only a window that was not nearly full counts.
        if app_limited && in_flight + batch.bytes < self.window - self.window / 8 {
            self.limited_us = Some(now_us);
        }
        let sample = self.rate_sample(now_us, batch.sent_us);
        self.newest_sent_us = self.newest_sent_us.max(batch.sent_us);
        self.remember(now_us);
        if let Some((rate, is_limited)) = sample {
            self.round.sampled(rate, is_limited);
            self.path.sampled(rate, is_limited);
        }
        if self.in_startup() && self.path.is_queued() {
            self.phase = Phase::Steady;
        }
        if self.in_startup() && self.limited_us != Some(now_us) {
            self.window = self.bounded(self.window + batch.bytes);
        }
        if batch.sent_us >= self.round.began_us() {
            self.end_round(now_us);
        }
        if !self.in_startup() {
            self.window = self.bounded(self.target());
        }
    }

    /// Bytes were lost. `is_persistent` says that nothing came through for several timeouts: then nothing measured holds.
    pub fn lost(&mut self, now_us: u64, bytes: u64, is_persistent: bool) {
        if is_persistent {
            let (packet_bytes, delivered, newest_sent_us) = (self.packet_bytes, self.delivered, self.newest_sent_us);
            let deliveries = std::mem::take(&mut self.deliveries);
            *self = Self { delivered, newest_sent_us, deliveries, ..Self::new(now_us, packet_bytes) };
            self.window = WINDOW_PACKETS_MIN * packet_bytes;
            return;
        }
        self.round.lost(bytes);
    }

    /// True until the path's rate is known.
    pub fn in_startup(&self) -> bool {
        matches!(self.phase, Phase::Startup { .. })
    }

    /// Delivered bytes per microsecond since the ack before the packet sent at `sent_us` left, and whether there was enough to send.
    fn rate_sample(&mut self, now_us: u64, sent_us: u64) -> Option<(f64, bool)> {
        while self.deliveries.len() > 1 && self.deliveries[1].at_us <= sent_us {
            self.deliveries.pop_front();
        }
        let before = self.deliveries.front()?;
        let acks_us = now_us.saturating_sub(before.at_us);
        let sends_us = sent_us.saturating_sub(before.sent_us);
        let is_limited = self.limited_us.is_some_and(|limited_us| limited_us >= before.sent_us);
        let rate = (self.delivered - before.bytes) as f64 / acks_us.max(sends_us).max(1) as f64;
        Some((rate, is_limited))
    }

    fn remember(&mut self, now_us: u64) {
        let apart_us = self.path.rtt_min_us().unwrap_or(0) / DELIVERIES_PER_ROUND;
        if self.deliveries.back().is_some_and(|last| now_us < last.at_us + apart_us) {
            return;
        }
        if self.deliveries.len() == DELIVERIES_MAX {
            self.deliveries.pop_front();
        }
        self.deliveries.push_back(Delivery { at_us: now_us, bytes: self.delivered, sent_us: self.newest_sent_us });
    }

    fn end_round(&mut self, now_us: u64) {
        let round = std::mem::replace(&mut self.round, Round::new(now_us));
        self.path.ended(now_us, &round);
        let mut this = Lately::default();
        this.add(&round);
        let is_heavy = self.is_lossy(&this, LOSS_SHARE);
        self.lately.add(&round);
        let counts = is_heavy && (self.was_heavy || self.in_startup()) || self.is_lossy(&self.lately, LOSS_SHARE_LASTING);
        if counts {
            self.lately = Lately::default();
            self.ceiling = self.bounded((round.acked_bytes() as f64 * LOSS_FACTOR) as u64);
            self.rounds_quiet = 0;
        } else if !is_heavy && !round.is_limited() {
            let shift = if self.rounds_quiet < QUIET_ROUNDS { CEILING_SHIFT } else { CEILING_SHIFT_QUIET };
            self.ceiling = (self.ceiling + (self.ceiling >> shift)).min(WINDOW_MAX);
            self.rounds_quiet = self.rounds_quiet.saturating_add(1);
        }
        self.was_heavy = is_heavy;
        if let Phase::Startup { rate, rounds_flat } = self.phase
            && !round.is_limited()
        {
            let grew = round.rate() >= STARTUP_GROWTH * rate;
            let rounds_flat = if grew { 0 } else { rounds_flat + 1 };
            let is_done = counts || rounds_flat >= STARTUP_ROUNDS_FLAT;
            self.phase = if is_done { Phase::Steady } else { Phase::Startup { rate: rate.max(round.rate()), rounds_flat } };
        } else if self.path.is_growing() {
            self.phase = Phase::Startup { rate: round.rate(), rounds_flat: STARTUP_ROUNDS_FLAT - 1 };
        }
    }

    fn is_lossy(&self, lately: &Lately, share: f64) -> bool {
        let sent_bytes = lately.lost_bytes + lately.acked_bytes;
        lately.lost_bytes >= (LOSS_PACKETS * self.packet_bytes) as f64 && lately.lost_bytes > share * sent_bytes
    }

    /// What the path holds, and what is sent on top.
    fn target(&self) -> u64 {
        let gain = if self.path.is_draining() { GAIN_DRAIN } else { GAIN };
        match self.path.product() {
            Some(product) => (gain * product) as u64 + HEADROOM_PACKETS * self.packet_bytes,
            None => self.window,
        }
    }

    fn bounded(&self, window: u64) -> u64 {
        let least = WINDOW_PACKETS_MIN * self.packet_bytes;
        window.min(self.ceiling).clamp(least, WINDOW_MAX.max(least))
    }
}

/// Bytes that a transport may take and not have acked: a quarter more than the window, from 8 KiB to 4 MiB.
///
/// What it has taken can neither be overtaken nor thinned, so it is as little as keeps the window full: the quarter is for the
/// time until a writer hears of room.
pub fn send_window(window: u64) -> u64 {
    (window + window / 4).clamp(SEND_WINDOW_MIN, SEND_WINDOW_MAX)
}

const SEND_WINDOW_MIN: u64 = 8 << 10;
const SEND_WINDOW_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests;
