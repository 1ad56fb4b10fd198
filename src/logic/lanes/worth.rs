//! What waits in the lanes as the price sees it, and what the price makes of a block.

use bytes::Bytes;

use super::lane::{Lane, Position, Send};
use super::{Flow, Lanes};
use crate::ids::Class;
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

    /// Bytes handed to uplinks and not acknowledged.
    pub fn under_way_bytes(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.under_way_bytes).sum()
    }

    /// True if the uplink is what holds back: something waits for the transport, or in a lane.
    pub fn is_waiting(&self) -> bool {
        let queued = |lane: &Lane| !lane.live.is_empty() || !lane.backlog.is_empty();
        self.schedule.unwritten_bytes() > 0 || self.lanes.iter().any(queued)
    }

    /// True if nothing of what this stream would send next is worth its bytes.
    pub(super) fn is_held(&self, now_us: u64, flow: Flow, plan: &Plan) -> bool {
        if plan.lambda <= 0.0 || flow.lane == Class::Critical {
            return false;
        }
        let lane = &self.lanes[flow.lane.index()];
        let next = if flow.backlog { lane.backlog.first() } else { lane.live.first() };
        if let Some(block) = next.and_then(|position| lane.blocks.get(position)) {
            let age_us = now_us.saturating_sub(block.header.born_us);
            return !block.parts.is_empty() && block.parts.iter().all(|&(stream, _)| plan.level(stream, age_us).is_none());
        }
        if flow.backlog {
            return false;
        }
        let age_us = now_us.saturating_sub(lane.staging.born_us().unwrap_or(now_us));
        let mut staged = lane.staged.iter().enumerate().filter(|(_, bytes)| **bytes > 0);
        staged.all(|(stream, _)| plan.level(stream as u16, age_us).is_none())
    }

    /// The block as it is sent at the present price, and how many records that leaves out.
    pub(super) fn thinned(&mut self, now_us: u64, position: Position, class: Class, bytes: Bytes, plan: &Plan) -> (Bytes, u32) {
        let Some(block) = self.lanes[class.index()].blocks.get(&position) else { return (bytes, 0) };
        let age_us = now_us.saturating_sub(block.header.born_us);
        let is_raw = |&(stream, _): &(u16, u32)| plan.level_if_sent(stream, age_us) == Level::Raw;
        let untouched = !block.parts.is_empty() && block.parts.iter().all(is_raw);
        if plan.lambda <= 0.0 || class == Class::Critical || untouched {
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
