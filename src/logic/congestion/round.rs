//! What one round trip showed, and what the last of them say about the path.

use super::{ROUNDS, STANDS_ROUNDS};

/// How long the shortest round trip holds before the queue is drained to see it again; source: BBRv3.
const DRAIN_AFTER_US: u64 = 5_000_000;
/// Rounds for which it is drained: one until less is under way, one to measure.
const DRAIN_ROUNDS: u32 = 2;
/// So many rounds in a row that each raise the rate by more than this are a path that became faster.
const ROUNDS_GROWN: u32 = 3;
const GROWTH: f64 = 1.1;

/// One round trip: from a moment until a packet sent after it is acked.
#[derive(Debug, Clone)]
pub(super) struct Round {
    began_us: u64,
    acked_bytes: u64,
    lost_bytes: u64,
    /// Sum of round trip times, each times its bytes.
    rtt_bytes_us: f64,
    rtt_min_us: u64,
    rate: f64,
    is_limited: bool,
}

impl Round {
    pub(super) fn new(began_us: u64) -> Self {
        Self { began_us, acked_bytes: 0, lost_bytes: 0, rtt_bytes_us: 0.0, rtt_min_us: u64::MAX, rate: 0.0, is_limited: false }
    }

    pub(super) fn acked(&mut self, rtt_us: u64, bytes: u64) {
        self.acked_bytes += bytes;
        self.rtt_bytes_us += rtt_us as f64 * bytes as f64;
        self.rtt_min_us = self.rtt_min_us.min(rtt_us);
    }

    pub(super) fn lost(&mut self, bytes: u64) {
        self.lost_bytes += bytes;
    }

    /// A rate in bytes per microsecond, and whether it was limited by what there was to send.
    pub(super) fn sampled(&mut self, rate: f64, is_limited: bool) {
        self.rate = self.rate.max(rate);
        self.is_limited |= is_limited;
    }

    pub(super) fn began_us(&self) -> u64 {
        self.began_us
    }

    pub(super) fn acked_bytes(&self) -> u64 {
        self.acked_bytes
    }

    pub(super) fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    pub(super) fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// How far the mean round trip is above the shortest.
    fn spread_us(&self) -> f64 {
        (self.rtt_bytes_us / self.acked_bytes.max(1) as f64 - self.rtt_min_us as f64).max(0.0)
    }
}

/// Whose queue it is that stands.
#[derive(Debug, Clone, Copy)]
enum Queue {
    /// Ours, and for so many rounds longer than it should be.
    Ours { rounds: u32 },
    /// Somebody else's, for so many more rounds: the shortest round trip with it.
    Foreign { rtt_us: u64, rounds_left: u32 },
}

/// The last moments, half a round trip each: a queue that stands is seen in all round trips of them (the standing RTT of Copa).
#[derive(Debug, Clone, Copy)]
struct Moment {
    began_us: u64,
    rtt_min_us: u64,
    rate: f64,
}

impl Moment {
    fn new(began_us: u64) -> Self {
        Self { began_us, rtt_min_us: u64::MAX, rate: 0.0 }
    }
}

/// The path as the last rounds show it.
#[derive(Debug, Clone)]
pub(super) struct Path {
    /// Highest rate and shortest round trip of the last rounds, newest last, and of this one.
    rates: [f64; ROUNDS],
    rtts_us: [u64; ROUNDS],
    /// This moment, and the one before.
    moments: [Moment; 2],
    rtt_min_us: Option<u64>,
    /// When a round trip about as short was last seen.
    rtt_min_seen_us: u64,
    spread_us: f64,
    queue: Queue,
    /// Rounds in a row in which the rate grew and no queue stood.
    rounds_grown: u32,
    /// Rounds for which the queue is still drained, and when it last was.
    drain_rounds: u32,
    drained_us: u64,
    /// What may be under way beside the product.
    headroom_bytes: u64,
}

impl Path {
    pub(super) fn new(now_us: u64, headroom_bytes: u64) -> Self {
        Self {
            rates: [0.0; ROUNDS],
            rtts_us: [u64::MAX; ROUNDS],
            moments: [Moment::new(now_us); 2],
            rtt_min_us: None,
            rtt_min_seen_us: now_us,
            spread_us: 0.0,
            queue: Queue::Ours { rounds: 0 },
            rounds_grown: 0,
            drain_rounds: 0,
            drained_us: now_us,
            headroom_bytes,
        }
    }

    pub(super) fn rtt_min_us(&self) -> Option<u64> {
        self.rtt_min_us
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain_rounds > 0
    }

    /// True if the rate grew in each of the last rounds: then it may be far from what the path carries.
    pub(super) fn is_growing(&self) -> bool {
        self.rounds_grown >= ROUNDS_GROWN
    }

    /// True while the queue is longer than our own sending explains.
    pub(super) fn is_queued(&self) -> bool {
        let standing_us = self.moments[0].rtt_min_us.min(self.moments[1].rtt_min_us);
        standing_us != u64::MAX && self.is_long(standing_us)
    }

    fn is_long(&self, rtt_us: u64) -> bool {
        let rate = self.rates.iter().copied().fold(0.0, f64::max);
        let Some(min_us) = self.rtt_min_us.filter(|_| rate > 0.0) else { return false };
        let headroom_us = self.headroom_bytes as f64 / rate;
        rtt_us as f64 > 1.5 * min_us as f64 + self.spread_us + headroom_us
    }

    /// Bytes that the path holds; `None` before anything was measured.
    pub(super) fn product(&self) -> Option<f64> {
        let rate = self.rates.iter().copied().fold(0.0, f64::max);
        let rtt_us = match self.queue {
            Queue::Foreign { rtt_us, .. } => rtt_us,
            Queue::Ours { .. } => self.rtt_min_us?,
        };
        (rate > 0.0).then(|| rate * (rtt_us as f64 + self.spread_us.min(rtt_us as f64)))
    }

    /// A round trip was measured.
    pub(super) fn saw(&mut self, now_us: u64, rtt_us: u64) {
        match self.rtt_min_us {
            Some(min_us) if rtt_us > min_us => {
                if rtt_us <= min_us + min_us / 16 {
                    self.rtt_min_seen_us = now_us;
                }
            }
            _ => {
                self.rtt_min_us = Some(rtt_us);
                self.rtt_min_seen_us = now_us;
            }
        }
        if now_us >= self.moments[1].began_us + self.rtt_min_us.unwrap_or(rtt_us) / 2 {
            self.moments = [self.moments[1], Moment::new(now_us)];
        }
        let moment = &mut self.moments[1];
        moment.rtt_min_us = moment.rtt_min_us.min(rtt_us);
    }

    /// A delivery rate was measured.
    pub(super) fn sampled(&mut self, rate: f64, is_limited: bool) {
        self.moments[1].rate = self.moments[1].rate.max(rate);
        let highest = self.rates.iter().copied().fold(0.0, f64::max);
        if !is_limited || rate > highest {
            self.rates[ROUNDS - 1] = self.rates[ROUNDS - 1].max(rate);
        }
        if !is_limited && matches!(self.queue, Queue::Ours { .. }) && self.is_queued() {
            // The rate has fallen: what was measured before must not come back when the queue is gone.
            let of_moments = self.moments[0].rate.max(self.moments[1].rate);
            self.rates.iter_mut().for_each(|rate| *rate = rate.min(of_moments));
        }
    }

    pub(super) fn ended(&mut self, now_us: u64, round: &Round) {
        let is_long = self.is_long(round.rtt_min_us);
        let spread_us = round.spread_us();
        if !is_long || spread_us < self.spread_us {
            self.spread_us += (spread_us - self.spread_us) / 4.0;
        }
        self.rtts_us.rotate_left(1);
        self.rtts_us[ROUNDS - 1] = round.rtt_min_us;
        let before = self.rates[..ROUNDS - 1].iter().copied().fold(0.0, f64::max);
        let grew = !is_long && round.rate > GROWTH * before;
        self.rounds_grown = if grew { self.rounds_grown + 1 } else { 0 };
        if !round.is_limited {
            self.rates.rotate_left(1);
            self.rates[ROUNDS - 1] = 0.0;
        }
        self.keep_rtt_min(now_us);
        self.queue = self.queue_after(is_long);
    }

    /// Drains the queue when the shortest round trip was not seen for a while; what is shortest then counts.
    fn keep_rtt_min(&mut self, now_us: u64) {
        match self.drain_rounds {
            0 if now_us > self.rtt_min_seen_us.max(self.drained_us) + DRAIN_AFTER_US => self.drain_rounds = DRAIN_ROUNDS,
            0 => {}
            1 => {
                self.drain_rounds = 0;
                self.drained_us = now_us;
                if now_us > self.rtt_min_seen_us + DRAIN_AFTER_US {
                    let drained = &self.rtts_us[ROUNDS - DRAIN_ROUNDS as usize..];
                    self.rtt_min_us = drained.iter().copied().min();
                    self.rtt_min_seen_us = now_us;
                }
            }
            _ => self.drain_rounds -= 1,
        }
    }

    fn queue_after(&self, is_long: bool) -> Queue {
        match self.queue {
            _ if !is_long => Queue::Ours { rounds: 0 },
            Queue::Ours { rounds } if rounds + 1 >= STANDS_ROUNDS => {
                let last = &self.rtts_us[ROUNDS - STANDS_ROUNDS as usize..];
                let rtt_us = last.iter().copied().min().unwrap_or(u64::MAX);
                Queue::Foreign { rtt_us, rounds_left: ROUNDS as u32 }
            }
            Queue::Ours { rounds } => Queue::Ours { rounds: rounds + 1 },
            Queue::Foreign { rounds_left: 0, .. } => Queue::Ours { rounds: 1 },
            Queue::Foreign { rtt_us, rounds_left } => Queue::Foreign { rtt_us, rounds_left: rounds_left - 1 },
        }
    }
}
