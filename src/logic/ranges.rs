//! A set of sequence numbers kept as ranges: what has been acknowledged, what is missing.

use std::ops::RangeInclusive;

/// Sorted, disjoint, non-adjacent inclusive ranges of `u64`.
///
/// Appending at the end is O(1), the usual case; anything else is O(number of ranges).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<(u64, u64)>,
}

impl RangeSet {
    /// An empty set.
    pub const fn new() -> Self {
        RangeSet { ranges: Vec::new() }
    }

    /// Adds `range`; an empty one adds nothing.
    pub fn insert(&mut self, range: RangeInclusive<u64>) {
        let (mut first, mut last) = range.into_inner();
        if first > last {
            return;
        }
        // All ranges from `from` to `to` (exclusive) touch the new one and melt into it.
        let from = self.ranges.partition_point(|&(_, end)| end.checked_add(1).is_some_and(|next| next < first));
        let to = from + self.ranges[from..].partition_point(|&(start, _)| start <= last.saturating_add(1));
        if from < to {
            first = first.min(self.ranges[from].0);
            last = last.max(self.ranges[to - 1].1);
        }
        self.ranges.splice(from..to, [(first, last)]);
    }

    /// True if `seq` is in the set.
    pub fn contains(&self, seq: u64) -> bool {
        let at = self.ranges.partition_point(|&(_, end)| end < seq);
        self.ranges.get(at).is_some_and(|&(start, _)| start <= seq)
    }

    /// True if every number of `range` is in the set.
    pub fn covers(&self, range: RangeInclusive<u64>) -> bool {
        let (first, last) = range.into_inner();
        let at = self.ranges.partition_point(|&(_, end)| end < first);
        self.ranges.get(at).is_some_and(|&(start, end)| start <= first && last <= end)
    }

    /// True if any number of `range` is in the set.
    pub fn intersects(&self, range: RangeInclusive<u64>) -> bool {
        let (first, last) = range.into_inner();
        let at = self.ranges.partition_point(|&(_, end)| end < first);
        first <= last && self.ranges.get(at).is_some_and(|&(start, _)| start <= last)
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        self.ranges.iter().map(|&(first, last)| first..=last)
    }

    /// The holes below `end` (exclusive), ascending.
    pub fn gaps_below(&self, end: u64) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        let mut next = 0;
        self.ranges.iter().copied().chain([(end, end)]).map(move |(start, last)| (start.min(end), last)).filter_map(
            move |(start, last)| {
                let gap = (start > next).then(|| next..=start - 1);
                next = last.saturating_add(1).max(next);
                gap
            },
        )
    }

    /// First number not in the set, counting from 0.
    pub fn contiguous_end(&self) -> u64 {
        match self.ranges.first() {
            Some(&(0, last)) => last.saturating_add(1),
            _ => 0,
        }
    }

    /// How many ranges the set is made of.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// How many numbers are in the set.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|&(first, last)| last - first + 1).sum()
    }

    /// True if nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Highest number in the set.
    pub fn last(&self) -> Option<u64> {
        self.ranges.last().map(|&(_, last)| last)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_numbers(inserts in prop::collection::vec((0u64..60, 0u64..12), 0..30), probe in (0u64..70, 0u64..8), end in 0u64..80) {
            let (mut set, mut naive) = (RangeSet::new(), BTreeSet::new());
            for (first, len) in inserts {
                set.insert(first..=first + len);
                naive.extend(first..=first + len);
            }
            prop_assert_eq!(set.iter().flatten().collect::<Vec<_>>(), naive.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len(), naive.len() as u64);
            let mut probed = probe.0..=probe.0 + probe.1;
            prop_assert_eq!(set.covers(probed.clone()), probed.clone().all(|n| naive.contains(&n)));
            prop_assert_eq!(set.intersects(probed.clone()), probed.any(|n| naive.contains(&n)));
            prop_assert_eq!(set.contains(probe.0), naive.contains(&probe.0));
            prop_assert_eq!(set.gaps_below(end).flatten().collect::<Vec<_>>(), (0..end).filter(|n| !naive.contains(n)).collect::<Vec<_>>());
            prop_assert_eq!(set.contiguous_end(), (0..).find(|n| !naive.contains(n)).unwrap_or(0));
            // Disjoint and not even touching.
            prop_assert!(set.ranges.windows(2).all(|w| w[0].1 + 1 < w[1].0));
        }
    }

    #[test]
    fn the_end_of_the_numbers_is_no_trap() {
        let mut set = RangeSet::new();
        set.insert(u64::MAX - 1..=u64::MAX);
        set.insert(0..=3);
        set.insert(u64::MAX - 9..=u64::MAX);
        assert_eq!(set.range_count(), 2);
        assert!(set.contains(u64::MAX));
    }
}
