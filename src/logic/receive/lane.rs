//! The ledger of one lane, and the arithmetic of ranges around it.

use std::collections::BTreeMap;

use super::{KnownEpoch, SessionId};
use crate::ids::{Epoch, PerClass};
use crate::ranges::RangeSet;
use crate::wire::{LaneRanges, RANGES_PER_MESSAGE_MAX};

/// One lane of one epoch.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) durable: RangeSet,
    /// By first number: last number, and who brought it. Disjoint, and disjoint from `durable`.
    pub(super) pending: BTreeMap<u64, (u64, SessionId)>,
    pub(super) missing: RangeSet,
    pub(super) settled: u64,
}

impl Lane {
    pub(super) fn load(known: KnownEpoch) -> PerClass<Lane> {
        let mut missing = known.missing.into_iter();
        known.durable.map(|durable| Lane { durable, missing: missing.next().unwrap_or_default(), ..Lane::default() })
    }

    /// The parts of a range that are neither durable nor pending.
    pub(super) fn free(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut taken = RangeSet::new();
        // Pending ranges are disjoint, so those that reach into this one are the last few that start before its end.
        for (&start, &(end, _)) in self.pending.range(..=last).rev().take_while(|&(_, &(end, _))| end >= first) {
            taken.insert(start..=end);
        }
        if self.durable.intersects(first..=last) {
            for range in self.durable.iter().skip_while(|range| *range.end() < first).take_while(|range| *range.start() <= last)
            {
                taken.insert(range);
            }
        }
        holes(first, last, &taken)
    }

    /// Takes a range out of the missing ones, and says how many numbers that were.
    pub(super) fn unmiss(&mut self, first: u64, last: u64) -> u64 {
        let before = self.missing.len();
        let mut left = RangeSet::new();
        for (start, end) in self.missing.iter().map(std::ops::RangeInclusive::into_inner) {
            if start < first {
                left.insert(start..=end.min(first - 1));
            }
            if end > last {
                left.insert(start.max(last + 1)..=end);
            }
        }
        self.missing = left;
        before - self.missing.len()
    }
}

/// The parts of a range that are not in `taken`.
pub(super) fn holes(first: u64, last: u64, taken: &RangeSet) -> Vec<(u64, u64)> {
    let mut holes = Vec::new();
    let mut next = first;
    for (start, end) in
        taken.iter().map(std::ops::RangeInclusive::into_inner).filter(|&(start, end)| end >= first && start <= last)
    {
        if start > next {
            holes.push((next, start - 1));
        }
        next = end + 1;
    }
    if next <= last {
        holes.push((next, last));
    }
    holes
}

/// Cuts ranges into messages below the wire's limit; the head of an epoch and lane costs as much as a range.
pub(super) fn pages(ranges: impl Iterator<Item = (Epoch, usize, (u64, u64))>) -> Vec<Vec<LaneRanges>> {
    let (mut pages, mut page, mut cost) = (Vec::new(), Vec::<LaneRanges>::new(), 0);
    for (epoch, lane, (first, last)) in ranges {
        if cost + 2 > RANGES_PER_MESSAGE_MAX {
            pages.push(std::mem::take(&mut page));
            cost = 0;
        }
        match page.last_mut().filter(|of| of.epoch == epoch.0 && of.lane == lane as u32) {
            Some(of) => of.bounds.extend([first, last]),
            None => {
                page.push(LaneRanges { epoch: epoch.0, lane: lane as u32, bounds: vec![first, last] });
                cost += 1;
            }
        }
        cost += 1;
    }
    if !page.is_empty() {
        pages.push(page);
    }
    pages
}
