//! One direction of a link, as a pure function of packets and time.
//!
//! A packet that arrives waits in a queue of limited bytes (the modem's), leaves at the link's rate, may
//! be lost on the way, and arrives after the delay and some jitter. Order is kept, as in a real bearer,
//! unless the profile says that a share of packets is overtaken. In an outage everything that arrives is
//! dropped, and so is what would still be waiting when it begins. Every packet gets exactly one fate;
//! the fate is known at once, because the rate is known for all times. One seed, one history.

use std::collections::VecDeque;

use serde::Serialize;
use weir_host::units::{BitRate, Duration, Ratio};

use super::{
    curve::RateCurve,
    profile::{LinkProfile, LinkSide, Outage},
};

/// Bytes that IP and UDP add to each UDP payload; they count against rate and queue.
pub const HEADER_BYTES: u64 = 28;
/// Smallest scale of the rate that can be forced; less than that is an outage.
const SCALE_MIN: f64 = 0.001;
/// Least time by which a packet is held back so that others overtake it, in microseconds.
const HOLD_US_MIN: f64 = 5_000.0;

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the box to the cloud.
    Up,
    /// From the cloud to the box.
    Down,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives at this time, in microseconds of the link's life.
    Deliver {
        /// When.
        at_us: u64,
    },
    /// It does not arrive.
    Drop(DropReason),
}

/// Why a packet does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Lost on the way.
    Loss,
    /// No room in the queue.
    QueueFull,
    /// The link was down, or went down before the packet had left.
    Outage,
    /// Larger than the link carries.
    TooLarge,
}

/// What went through one direction so far; bytes are of what is carried: UDP payload, or whole IP packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LinkCounts {
    /// Packets that came in.
    pub offered_packets: u64,
    /// Their bytes.
    pub offered_bytes: u64,
    /// Packets with fate `Deliver`.
    pub delivered_packets: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Packets lost on the way.
    pub lost_packets: u64,
    /// Packets without room in the queue.
    pub queue_full_packets: u64,
    /// Packets dropped by outages.
    pub outage_packets: u64,
    /// Packets larger than the link carries.
    pub too_large_packets: u64,
}

/// One direction of a link.
#[derive(Debug, Clone)]
pub struct LinkModel {
    side: LinkSide,
    curve: RateCurve,
    outages: Outages,
    random: Random,
    /// What comes on top of each packet on the wire.
    header_bytes: u64,
    forced: Forced,
    /// When each waiting packet will have left, and its size on the wire.
    queue: VecDeque<(f64, u64)>,
    queued_bytes: u64,
    last_finish_us: f64,
    last_arrival_us: f64,
    is_losing: bool,
    counts: LinkCounts,
}

/// What holds in the place of the profile.
#[derive(Debug, Clone)]
struct Forced {
    is_down: bool,
    scale: f64,
    rate: Option<RateCurve>,
    loss: Option<Ratio>,
    delay: Option<Duration>,
}

impl LinkModel {
    /// A link at time 0; one seed gives both directions, which differ.
    pub fn new(profile: &LinkProfile, direction: Direction, seed: u64) -> Self {
        let (side, salt) = match direction {
            Direction::Up => (&profile.up, 1),
            Direction::Down => (&profile.down, 2),
        };
        let mut random = Random { state: seed.wrapping_mul(2).wrapping_add(salt) };
        let curve = side.curve(random.next());
        // Both directions see the same outages.
        let outages = Outages { outages: profile.outages.clone(), seed, direction };
        Self {
            side: side.clone(),
            curve,
            outages,
            random,
            header_bytes: HEADER_BYTES,
            forced: Forced { is_down: false, scale: 1.0, rate: None, loss: None, delay: None },
            queue: VecDeque::new(),
            queued_bytes: 0,
            last_finish_us: 0.0,
            last_arrival_us: 0.0,
            is_losing: false,
            counts: LinkCounts::default(),
        }
    }

    /// The same link for whole IP packets, whose headers are in their length.
    pub fn of_ip_packets(self) -> Self {
        Self { header_bytes: 0, ..self }
    }

    /// Decides what becomes of a packet of `len_bytes` that comes in at `now_us`; time does not go back.
    pub fn packet(&mut self, now_us: u64, len_bytes: usize) -> Fate {
        let len_bytes = len_bytes as u64;
        self.counts.offered_packets += 1;
        self.counts.offered_bytes += len_bytes;
        let fate = self.decide(now_us, len_bytes + self.header_bytes);
        match fate {
            Fate::Deliver { .. } => {
                self.counts.delivered_packets += 1;
                self.counts.delivered_bytes += len_bytes;
            }
            Fate::Drop(DropReason::Loss) => self.counts.lost_packets += 1,
            Fate::Drop(DropReason::QueueFull) => self.counts.queue_full_packets += 1,
            Fate::Drop(DropReason::Outage) => self.counts.outage_packets += 1,
            Fate::Drop(DropReason::TooLarge) => self.counts.too_large_packets += 1,
        }
        fate
    }

    /// What went through so far.
    pub fn counts(&self) -> LinkCounts {
        self.counts
    }

    /// Whether the link carries anything at a time.
    pub fn is_up(&self, at_us: u64) -> bool {
        !self.forced.is_down && !self.outages.overlap(at_us, at_us)
    }

    /// The rate at a time, in bits per second; 0 while the link is down.
    pub fn bits_per_s(&self, at_us: u64) -> u64 {
        if self.is_up(at_us) { (self.forced_curve().bits_per_s(at_us) * self.forced.scale) as u64 } else { 0 }
    }

    /// The rate from time 0 until `until_us` as steps: when each begins, and its bits per second (0 while the link is down).
    ///
    /// The first step begins at 0. What is forced on the link is not in it.
    pub fn rate_steps(&self, until_us: u64) -> Vec<(u64, f64)> {
        let mut steps: Vec<(u64, f64)> = Vec::new();
        let cuts = self.outages.until(until_us);
        let mut cuts = cuts.iter().peekable();
        let mut at_us = 0;
        while at_us < until_us {
            while cuts.next_if(|(_, end_us)| *end_us <= at_us).is_some() {}
            let (bits_per_s, piece_end_us) = self.curve.piece(at_us);
            let (bits_per_s, end_us) = match cuts.peek() {
                Some(&&(begin_us, end_us)) if begin_us <= at_us => (0.0, end_us),
                Some(&&(begin_us, _)) => (bits_per_s, piece_end_us.min(begin_us)),
                None => (bits_per_s, piece_end_us),
            };
            if steps.last().is_none_or(|(_, before)| *before != bits_per_s) {
                steps.push((at_us, bits_per_s));
            }
            at_us = end_us;
        }
        steps
    }

    /// Bytes that wait in the queue at a time, headers included.
    pub fn queued_bytes(&mut self, now_us: u64) -> u64 {
        while let Some((_, wire_bytes)) = self.queue.pop_front_if(|(finish_us, _)| *finish_us <= now_us as f64) {
            self.queued_bytes -= wire_bytes;
        }
        self.queued_bytes
    }

    /// Takes the link down, whatever the profile says, or gives it back to the profile.
    pub fn force_down(&mut self, is_down: bool) {
        self.forced.is_down = is_down;
    }

    /// Multiplies the profile's rate for the packets that come in from now on.
    pub fn scale_rate(&mut self, scale: Ratio) {
        self.forced.scale = scale.as_f64().max(SCALE_MIN);
    }

    /// Puts a rate in the place of the profile's for the packets that come in from now on; `None` gives it back.
    pub fn force_rate(&mut self, rate: Option<BitRate>) {
        self.forced.rate = rate.map(RateCurve::constant);
    }

    /// Puts a share of losses in the place of the profile's; `None` gives it back.
    pub fn force_loss(&mut self, loss: Option<Ratio>) {
        self.forced.loss = loss;
    }

    /// Puts a delay in the place of the profile's for the packets that come in from now on; `None` gives it back.
    pub fn force_delay(&mut self, delay: Option<Duration>) {
        self.forced.delay = delay;
    }

    fn forced_curve(&self) -> &RateCurve {
        self.forced.rate.as_ref().unwrap_or(&self.curve)
    }

    fn decide(&mut self, now_us: u64, wire_bytes: u64) -> Fate {
        if !self.is_up(now_us) {
            return Fate::Drop(DropReason::Outage);
        }
        if wire_bytes > self.side.mtu.get() {
            return Fate::Drop(DropReason::TooLarge);
        }
        if self.queued_bytes(now_us) + wire_bytes > self.side.queue.get() {
            return Fate::Drop(DropReason::QueueFull);
        }
        let start_us = self.last_finish_us.max(now_us as f64);
        let finish_us = self.forced_curve().finish_us(start_us, wire_bytes as f64 * 8.0, self.forced.scale);
        if self.outages.overlap(now_us, finish_us as u64) {
            return Fate::Drop(DropReason::Outage);
        }
        self.queue.push_back((finish_us, wire_bytes));
        self.queued_bytes += wire_bytes;
        self.last_finish_us = finish_us;
        if self.is_lost() {
            return Fate::Drop(DropReason::Loss);
        }
        let jitter_us = self.side.jitter.as_micros() as f64;
        let delay = self.forced.delay.unwrap_or(self.side.delay);
        let arrival_us = finish_us + delay.as_micros() as f64 + jitter_us * self.random.unit();
        let is_overtaken = self.side.reorder.ppm() > 0 && self.random.unit() < self.side.reorder.as_f64();
        let arrival_us = if is_overtaken {
            arrival_us + (2.0 * jitter_us).max(HOLD_US_MIN)
        } else {
            self.last_arrival_us = self.last_arrival_us.max(arrival_us);
            self.last_arrival_us
        };
        Fate::Deliver { at_us: arrival_us.ceil() as u64 }
    }

    /// Loses single packets, or bursts (Gilbert's two states) with the same share in the long run.
    fn is_lost(&mut self) -> bool {
        let share = self.forced.loss.unwrap_or(self.side.loss).as_f64();
        if share == 0.0 {
            return false;
        }
        let burst = f64::from(self.side.loss_burst);
        let unit = self.random.unit();
        self.is_losing = if burst <= 1.0 {
            unit < share
        } else if self.is_losing {
            unit >= 1.0 / burst
        } else {
            unit < share / (burst * (1.0 - share))
        };
        self.is_losing
    }
}

/// The profile's outages for one direction.
#[derive(Debug, Clone)]
struct Outages {
    outages: Vec<Outage>,
    seed: u64,
    direction: Direction,
}

impl Outages {
    /// Whether any outage overlaps the time from `from_us` to `to_us`, both included.
    fn overlap(&self, from_us: u64, to_us: u64) -> bool {
        self.covering().any(|(index, outage)| {
            let (start_us, every_us) = (outage.start.as_micros(), outage.every.as_micros());
            // The one under way, the one before it if shifted into this turn, and the one to come.
            let nth = from_us.saturating_sub(start_us).checked_div(every_us).unwrap_or(0);
            let last = if every_us == 0 { 0 } else { nth + 1 };
            (nth.saturating_sub(1)..=last).any(|nth| {
                let (begin_us, end_us) = self.span(index, outage, nth);
                begin_us <= to_us && from_us < end_us
            })
        })
    }

    /// Begin and end of every outage that begins before `until_us`, sorted by begin.
    fn until(&self, until_us: u64) -> Vec<(u64, u64)> {
        let mut spans = Vec::new();
        for (index, outage) in self.covering() {
            let (start_us, every_us) = (outage.start.as_micros(), outage.every.as_micros());
            let count = match every_us {
                0 => 1,
                _ => until_us.saturating_sub(start_us).div_ceil(every_us),
            };
            spans.extend((0..count).map(|nth| self.span(index, outage, nth)).filter(|(begin_us, _)| *begin_us < until_us));
        }
        spans.sort_unstable();
        spans
    }

    fn covering(&self) -> impl Iterator<Item = (usize, &Outage)> {
        self.outages.iter().enumerate().filter(|(_, outage)| outage.direction.covers(self.direction))
    }

    /// Begin and end of the `nth` time that an outage happens.
    fn span(&self, index: usize, outage: &Outage, nth: u64) -> (u64, u64) {
        let shift_us = outage.shift.as_micros() as f64 * hash_unit(self.seed ^ (index as u64 + 1), nth);
        let begin_us = outage.start.as_micros() + nth * outage.every.as_micros() + shift_us as u64;
        (begin_us, begin_us + outage.length.as_micros())
    }
}

/// SplitMix64; source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// One sequence for each seed and purpose.
    pub(crate) fn new(seed: u64, purpose: u64) -> Self {
        Self { state: mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ purpose.wrapping_mul(0xd1b5_4a32_d192_ed03) }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number from 0 to below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        to_unit(self.next())
    }
}

/// A number from 0 to below 1 for each seed and place.
pub(super) fn hash_unit(seed: u64, place: u64) -> f64 {
    to_unit(mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ place.wrapping_mul(0xd1b5_4a32_d192_ed03)))
}

fn to_unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
