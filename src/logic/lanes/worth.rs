//! What waits in the lanes as the price sees it, and what the price makes of a block.

use bytes::Bytes;

use super::lane::{Block, Lane, Position, Send};
use super::{Flow, Lanes};
use crate::ids::{Class, PerClass};
use crate::plan::Plan;
use crate::price::{Cohort, Level, Wait};
use crate::thin::Thinning;

/// Bytes that the cloud acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acked {
    /// The uplink they went by.
    pub uplink: u8,
    /// How many.
    pub bytes: u64,
    /// When they were handed to it, in service time.
    pub sent_us: u64,
}

/// Ages that are told apart when what waits is summed up: half powers of two of a quarter of a second, up to two years.
const AGES: usize = 56;
/// Kept for so long is for ever.
const KEPT_US_MAX: f64 = 1e12;
const AGE_UNIT_US: u64 = 250_000;

/// What waits of one stream, by age.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    bytes: f64,
    /// Bytes times age, for their mean, and times how long they are kept.
    weighted_us: f64,
    kept_us: f64,
}

/// Nothing is expected to be on its way for longer; it is lost rather than late.
const AHEAD_S_MAX: f64 = 5.0;
/// Blocks that what waits should be made of at least, and the smallest that is worth its head. Measured with `weir sim` on links of
/// 1 Mbit/s: with deadlines of 2 to 12 s, blocks of half a second in place of 128 KiB bring 2 points of the bound.
const DRAIN_BLOCKS: f64 = 6.0;
const BLOCK_BYTES_MIN: usize = 16 * 1024;
/// Largest raw body of a critical block: a frame.
const CRITICAL_BLOCK_BYTES_MAX: usize = 16 * 1024;
/// Blocks of a queue that are compared: each of 128 MiB of the usual size, every other of 256 MiB; about 0.1 ms.
const LOOKED_AT_MAX: usize = 1_024;

/// What thinned blocks take beside what their levels say.
#[derive(Debug, Default)]
pub(super) struct Folding {
    planned: f64,
    taken: f64,
}

/// What was learned fades with this many bytes, to 1/e.
const FOLDING_BYTES: f64 = 1_000_000.0;

impl Folding {
    fn record(&mut self, planned: f64, taken: f64) {
        if planned <= 0.0 {
            return;
        }
        let keep = (1.0 - planned / FOLDING_BYTES).max(0.5);
        (self.planned, self.taken) = (self.planned * keep + planned, self.taken * keep + taken);
    }

    fn ratio(&self) -> f64 {
        // Until enough is known the ladder is believed.
        ((self.taken + FOLDING_BYTES / 10.0) / (self.planned + FOLDING_BYTES / 10.0)).clamp(0.25, 4.0)
    }
}

/// The wait of what was born then and is gone then, if it comes at `at_us`.
fn wait(at_us: u64, born_us: u64, gone_us: u64) -> Wait {
    let kept_us = if gone_us == Wait::FOR_EVER { gone_us } else { gone_us.saturating_sub(at_us) };
    Wait { age_us: at_us.saturating_sub(born_us), kept_us }
}

fn urgency_of(at_us: u64, lane: Class, block: &Block, plan: &Plan) -> f64 {
    let wait = wait(at_us, block.header.born_us, block.gone_us);
    let parts = block.parts.iter().map(|&(stream, bytes)| (Some(stream), f64::from(bytes)));
    plan.urgency(lane, wait, block.coarseness.level(), parts.chain(block.parts.is_empty().then_some((None, 1.0))))
}

impl Lanes {
    /// What waits to be sent, by stream and age; `of_class` is the stream that blocks of earlier runs are counted for.
    pub fn waiting(&self, now_us: u64, streams: usize, of_class: impl Fn(Class) -> Option<u16>) -> Vec<Cohort> {
        let mut sums = vec![[Sum::default(); AGES]; streams];
        let at_us = now_us + self.ahead_us;
        let mut add = |stream: u16, bytes: f64, wait: Wait| {
            let Some(ages) = sums.get_mut(usize::from(stream)) else { return };
            let bucket = (wait.age_us / AGE_UNIT_US + 1).min(1 << 31).pow(2).ilog2() as usize;
            let sum = &mut ages[bucket.min(AGES - 1)];
            sum.bytes += bytes;
            sum.weighted_us += bytes * wait.age_us as f64;
            sum.kept_us += bytes * (wait.kept_us as f64).min(KEPT_US_MAX);
        };
        for lane in &self.lanes {
            let of_open = wait(at_us, lane.staging.born_us().unwrap_or(now_us), lane.growth.gone_us);
            for (stream, &bytes) in lane.staged.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
                add(stream as u16, f64::from(bytes) * lane.ratio, of_open);
            }
            for block in lane.blocks.values().filter(|block| !matches!(block.send, Send::UnderWay(_))) {
                let wait = wait(at_us, block.header.born_us, block.gone_us);
                let left = block.part_left();
                for &(stream, bytes) in &block.parts {
                    add(stream, f64::from(bytes) * left, wait);
                }
                if block.parts.is_empty()
                    && let Some(stream) = of_class(lane.class)
                {
                    add(stream, block.len.into(), wait);
                }
            }
        }
        let cohort = |stream: usize, sum: Sum| Cohort {
            stream: stream as u16,
            bytes: sum.bytes,
            wait: Wait {
                age_us: (sum.weighted_us / sum.bytes) as u64,
                kept_us: Some(sum.kept_us / sum.bytes).filter(|us| *us < KEPT_US_MAX).map_or(Wait::FOR_EVER, |us| us as u64),
            },
        };
        let named = sums.iter().enumerate();
        named.flat_map(|(stream, ages)| ages.iter().filter(|s| s.bytes > 0.0).map(move |&sum| cohort(stream, sum))).collect()
    }

    /// Estimates what becomes of what waits, once a second: how long what is handed over takes to come, by what is under way on
    /// each uplink and its rate in bytes a second, and when blocks will have been pushed out of their lanes. New blocks are made
    /// so small that one takes a sixth of `drain_us` at the most: that is how long what waits should last at least.
    pub fn foresee(&mut self, now_us: u64, rates: &[f64], drain_us: u64) {
        let (least, most) = (BLOCK_BYTES_MIN.min(self.limits.block_target_bytes), self.limits.block_target_bytes);
        let fastest = rates.iter().copied().fold(0.0, f64::max);
        let bytes = fastest * drain_us as f64 / 1e6 / DRAIN_BLOCKS;
        // Nothing is known of an uplink without a rate.
        self.block_bytes = if fastest > 0.0 { (bytes as usize).clamp(least, most) } else { most };
        let ahead_s = rates.iter().enumerate().map(|(uplink, rate)| {
            let ahead: u64 = self.under_way_bytes(uplink as u8)[1..].iter().sum();
            if *rate > 0.0 { ahead as f64 / rate } else { 0.0 }
        });
        self.ahead_us = (ahead_s.fold(0.0, f64::max).min(AHEAD_S_MAX) * 1e6) as u64;
        self.lanes.iter_mut().for_each(|lane| lane.foresee(now_us));
    }

    /// Raw bytes at which a block of this lane is sealed.
    ///
    /// A block comes whole, so its first record waits for its last to pass the uplink. On a slow one a block is small, and a
    /// critical one always is: while a burst of them passed 40 kB/s, blocks of 128 KiB made the first wait for 3 s.
    pub(super) fn block_bytes(&self, class: Class) -> usize {
        if class == Class::Critical { self.block_bytes.min(CRITICAL_BLOCK_BYTES_MAX) } else { self.block_bytes }
    }

    /// Raw bytes that came since the last call, by stream, and the bytes of a block that a raw byte becomes.
    pub fn take_arrived(&mut self) -> (Vec<u64>, f64) {
        let fresh = vec![0; self.arrived.len()];
        let ratio = self.lanes.iter().map(|lane| lane.ratio).sum::<f64>() / self.lanes.len() as f64;
        (std::mem::replace(&mut self.arrived, fresh), ratio)
    }

    /// What the cloud acknowledged since the last call.
    pub fn take_acked(&mut self) -> Vec<Acked> {
        std::mem::take(&mut self.acked)
    }

    /// Bytes handed to this uplink and not acknowledged, by class.
    pub fn under_way_bytes(&self, uplink: u8) -> PerClass<u64> {
        Class::ALL.map(|class| self.lanes[class.index()].under_way_bytes(uplink))
    }

    /// True if an uplink is what holds back: something waits for the transport, or in a lane that the cloud would take from.
    pub fn is_waiting(&self, ways: &[Option<PerClass<u64>>], plan: &Plan) -> bool {
        let has_credit = |uplink: u8, at: usize| {
            ways.get(usize::from(uplink)).copied().flatten().is_none_or(|credits: PerClass<u64>| credits[at] > 0)
        };
        let waits = |(at, lane): (usize, &Lane)| {
            let is_queued = !lane.live.is_empty() || !lane.backlog.is_empty();
            is_queued && plan.routes[at].held().is_none() && {
                let uplinks = &plan.uplinks[at];
                uplinks.is_empty() || uplinks.iter().any(|&uplink| has_credit(uplink, at))
            }
        };
        self.schedule.unwritten_bytes() > 0 || self.lanes.iter().enumerate().any(waits)
    }

    /// How much the block that this stream would send next is worth for each byte and second that is left to it; 0 if it is held.
    pub(super) fn urgency(&self, now_us: u64, flow: Flow, plan: &Plan) -> f64 {
        let lane = &self.lanes[flow.lane.index()];
        let ready = self.schedule.ready_key(flow.lane).and_then(|key| self.position_of(key)).filter(|_| flow.backlog);
        if let Some(position) = ready.or_else(|| self.next_block(now_us, flow, plan)) {
            return self.urgency_at(now_us, flow.lane, position, plan);
        }
        let wait = wait(now_us + self.ahead_us, lane.staging.born_us().unwrap_or(now_us), lane.growth.gone_us);
        let staged = lane.staged.iter().enumerate().filter(|(_, bytes)| **bytes > 0);
        plan.urgency(flow.lane, wait, Level::Raw, staged.map(|(stream, &bytes)| (Some(stream as u16), f64::from(bytes))))
    }

    /// The same of one block.
    pub(super) fn urgency_at(&self, now_us: u64, lane: Class, position: Position, plan: &Plan) -> f64 {
        let block = self.lanes[lane.index()].blocks.get(&position);
        block.map_or(0.0, |block| urgency_of(now_us + self.ahead_us, lane, block, plan))
    }

    /// The block that this stream sends next: the oldest, or if streams have values the most urgent of the
    /// [`LOOKED_AT_MAX`] that are looked at, oldest and newest alike, so that what has missed its deadline does not hold up what
    /// has not.
    pub(super) fn next_block(&self, now_us: u64, flow: Flow, plan: &Plan) -> Option<Position> {
        let lane = &self.lanes[flow.lane.index()];
        let queue = if flow.backlog { &lane.backlog } else { &lane.live };
        // While something must be written first, only what is known to be before that goes: the first.
        if !plan.weighs || flow.lane == Class::Critical || (!flow.backlog && self.unsent_from(flow.lane).is_some()) {
            return queue.first().copied();
        }
        let urgency = |position: &Position| urgency_of(now_us + self.ahead_us, flow.lane, &lane.blocks[position], plan);
        let mut best: Option<(f64, Position)> = None;
        for position in queue.iter().step_by(queue.len().div_ceil(LOOKED_AT_MAX).max(1)) {
            let urgency = urgency(position);
            if best.is_none_or(|(most, _)| urgency > most) {
                best = Some((urgency, *position));
            }
        }
        best.map(|(_, position)| position)
    }

    /// Bytes that a block takes for each that its levels say it would, of late: thinned records have heads, too, and compress
    /// in their own way.
    pub fn bytes_per_planned(&self) -> f64 {
        self.folding.ratio()
    }

    /// The block as it is sent at the present price, and how many records that leaves out.
    pub(super) fn thinned(&mut self, now_us: u64, position: Position, class: Class, bytes: Bytes, plan: &Plan) -> (Bytes, u32) {
        let Some(block) = self.lanes[class.index()].blocks.get(&position) else { return (bytes, 0) };
        let wait = wait(now_us + self.ahead_us, block.header.born_us, block.gone_us);
        let stored = block.coarseness.level();
        let is_raw = |&(stream, _): &(u16, u32)| plan.level_if_sent(stream, wait) <= stored;
        let untouched = !block.parts.is_empty() && block.parts.iter().all(is_raw);
        if !plan.folds(class) || class == Class::Critical || untouched {
            return (bytes, 0);
        }
        let thinning = |stream: u16| match plan.level_if_sent(stream, wait) {
            level if level <= stored => Thinning::None,
            Level::Raw => Thinning::None,
            Level::Thin2 => Thinning::OneIn(2),
            Level::Thin4 => Thinning::OneIn(4),
            Level::Aggregate | Level::Verdict => Thinning::Aggregate,
        };
        match self.thinner.thin(&mut self.codec, &bytes, thinning) {
            Ok(Some(thinned)) if thinned.block.len() < bytes.len() => {
                let planned =
                    |&(stream, len): &(u16, u32)| f64::from(len) * plan.level_if_sent(stream, wait).max(stored).bytes();
                let planned =
                    self.lanes[class.index()].blocks.get(&position).map_or(0.0, |block| block.parts.iter().map(planned).sum());
                self.folding.record(planned, thinned.block.len() as f64);
                (thinned.block, thinned.removed)
            }
            // A damaged block is for the cloud to refuse: its checksum was right when it was loaded.
            Ok(_) | Err(_) => (bytes, 0),
        }
    }
}
