//! What waits in the lanes as the price sees it, and what the price makes of a block.

use bytes::Bytes;

use super::lane::{Block, Lane, Position, Send};
use super::{Flow, Lanes};
use crate::ids::{Class, PerClass};
use crate::plan::Plan;
use crate::price::{Cohort, Level};
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

/// Ages that are told apart when what waits is summed up: powers of two of a quarter of a second, up to two years.
const AGES: usize = 28;
const AGE_UNIT_US: u64 = 250_000;

/// What waits of one stream, by age.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    bytes: f64,
    /// Bytes times age, for their mean.
    weighted_us: f64,
}

/// Blocks of a queue that are compared: 128 MiB of the usual size, and about 0.1 ms.
const LOOKED_AT_MAX: usize = 1_024;

fn urgency_of(now_us: u64, lane: Class, block: &Block, plan: &Plan) -> f64 {
    let age_us = now_us.saturating_sub(block.header.born_us);
    let parts = block.parts.iter().map(|&(stream, bytes)| (Some(stream), f64::from(bytes)));
    plan.urgency(lane, age_us, parts.chain(block.parts.is_empty().then_some((None, 1.0))))
}

impl Lanes {
    /// What waits to be sent, by stream and age; `of_class` is the stream that blocks of earlier runs are counted for.
    pub fn waiting(&self, now_us: u64, streams: usize, of_class: impl Fn(Class) -> Option<u16>) -> Vec<Cohort> {
        let mut sums = vec![[Sum::default(); AGES]; streams];
        let mut add = |stream: u16, bytes: f64, age_us: u64| {
            let Some(ages) = sums.get_mut(usize::from(stream)) else { return };
            let bucket = (age_us / AGE_UNIT_US + 1).ilog2() as usize;
            let sum = &mut ages[bucket.min(AGES - 1)];
            sum.bytes += bytes;
            sum.weighted_us += bytes * age_us as f64;
        };
        for lane in &self.lanes {
            let age_us = now_us.saturating_sub(lane.staging.born_us().unwrap_or(now_us));
            for (stream, &bytes) in lane.staged.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
                add(stream as u16, f64::from(bytes) * lane.ratio, age_us);
            }
            for block in lane.blocks.values().filter(|block| !matches!(block.send, Send::UnderWay(_))) {
                let age_us = now_us.saturating_sub(block.header.born_us);
                for &(stream, bytes) in &block.parts {
                    add(stream, bytes.into(), age_us);
                }
                if block.parts.is_empty()
                    && let Some(stream) = of_class(lane.class)
                {
                    add(stream, block.len.into(), age_us);
                }
            }
        }
        let cohort = |stream: usize, sum: Sum| Cohort {
            stream: stream as u16,
            bytes: sum.bytes,
            age_us: (sum.weighted_us / sum.bytes) as u64,
        };
        let named = sums.iter().enumerate();
        named.flat_map(|(stream, ages)| ages.iter().filter(|s| s.bytes > 0.0).map(move |&sum| cohort(stream, sum))).collect()
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
            return lane.blocks.get(&position).map_or(0.0, |block| urgency_of(now_us, flow.lane, block, plan));
        }
        let age_us = now_us.saturating_sub(lane.staging.born_us().unwrap_or(now_us));
        let staged = lane.staged.iter().enumerate().filter(|(_, bytes)| **bytes > 0);
        plan.urgency(flow.lane, age_us, staged.map(|(stream, &bytes)| (Some(stream as u16), f64::from(bytes))))
    }

    /// The block that this stream sends next: the oldest, or if streams have values the most urgent of the
    /// [`LOOKED_AT_MAX`] oldest, so that what has missed its deadline does not hold up what has not.
    pub(super) fn next_block(&self, now_us: u64, flow: Flow, plan: &Plan) -> Option<Position> {
        let lane = &self.lanes[flow.lane.index()];
        let queue = if flow.backlog { &lane.backlog } else { &lane.live };
        if !plan.weighs || flow.lane == Class::Critical {
            return queue.first().copied();
        }
        let urgency = |position: &Position| urgency_of(now_us, flow.lane, &lane.blocks[position], plan);
        let mut best: Option<(f64, Position)> = None;
        for position in queue.iter().take(LOOKED_AT_MAX) {
            let urgency = urgency(position);
            if best.is_none_or(|(most, _)| urgency > most) {
                best = Some((urgency, *position));
            }
        }
        best.map(|(_, position)| position)
    }

    /// The block as it is sent at the present price, and how many records that leaves out.
    pub(super) fn thinned(&mut self, now_us: u64, position: Position, class: Class, bytes: Bytes, plan: &Plan) -> (Bytes, u32) {
        let Some(block) = self.lanes[class.index()].blocks.get(&position) else { return (bytes, 0) };
        let age_us = now_us.saturating_sub(block.header.born_us);
        let is_raw = |&(stream, _): &(u16, u32)| plan.level_if_sent(stream, age_us) == Level::Raw;
        let untouched = !block.parts.is_empty() && block.parts.iter().all(is_raw);
        if !plan.folds(class) || class == Class::Critical || untouched {
            return (bytes, 0);
        }
        let thinning = |stream: u16| match plan.level_if_sent(stream, age_us) {
            Level::Raw => Thinning::None,
            Level::Thin2 => Thinning::OneIn(2),
            Level::Thin4 => Thinning::OneIn(4),
            Level::Aggregate | Level::Verdict => Thinning::Aggregate,
        };
        match self.thinner.thin(&mut self.codec, &bytes, thinning) {
            Ok(Some(thinned)) if thinned.block.len() < bytes.len() => (thinned.block, thinned.removed),
            // A damaged block is for the cloud to refuse: its checksum was right when it was loaded.
            Ok(_) | Err(_) => (bytes, 0),
        }
    }
}
