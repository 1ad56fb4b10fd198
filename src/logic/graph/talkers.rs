//! Who talks to whom that never did before.
//!
//! A box whose stream suddenly has other sensors, or whose blocks arrive at another machine, may have been reconfigured, or
//! worse. To know what is new one must remember what is old, for a whole fleet and within limits: a pair is remembered by 64
//! bits and the second it was last seen, and when there are too many, those not seen for longest are forgotten. During the
//! first while after a start everything is new, and nothing is said.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};

use super::cell::seconds;
use super::federation::Part;
use super::node::{NodeKey, NodeKind};

/// Two nodes that talked for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Talk {
    /// Where the data comes from.
    pub from: NodeKey,
    /// Where it goes.
    pub to: NodeKey,
    /// Service time when that was first seen, in microseconds.
    pub since_us: u64,
}

/// Limits of the memory for pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TalkerLimits {
    /// Pairs remembered; each takes about 50 bytes.
    pub pairs_max: usize,
    /// New ones kept to be shown.
    pub recent_max: usize,
    /// For how long after the start nothing is new.
    pub learn_us: u64,
}

impl Default for TalkerLimits {
    /// 25 pairs for each of 60,000 boxes; within ten minutes of a start all boxes have connected.
    fn default() -> Self {
        TalkerLimits { pairs_max: 1_500_000, recent_max: 200, learn_us: 600_000_000 }
    }
}

/// Sums since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TalkerCounters {
    /// Pairs that were new.
    pub new: u64,
    /// Pairs forgotten because there were too many.
    pub forgotten: u64,
    /// New pairs that had to make way for newer ones before anybody may have seen them.
    pub dropped: u64,
}

/// The pairs that are known.
#[derive(Debug, Clone)]
pub struct Talkers {
    limits: TalkerLimits,
    started_us: u64,
    /// By hash of the pair the second it was last seen.
    known: BTreeMap<u64, u32>,
    oldest: BTreeSet<(u32, u64)>,
    recent: VecDeque<Talk>,
    counters: TalkerCounters,
}

impl Talkers {
    /// Nothing is known.
    pub fn new(now_us: u64, limits: TalkerLimits) -> Self {
        let (known, oldest) = (BTreeMap::new(), BTreeSet::new());
        Talkers { limits, started_us: now_us, known, oldest, recent: VecDeque::new(), counters: TalkerCounters::default() }
    }

    /// Looks at a part whose nodes and edges may be others than before; returns how many pairs are new.
    pub fn observe(&mut self, now_us: u64, part: Part<'_>) -> usize {
        let is_learning = now_us.saturating_sub(self.started_us) < self.limits.learn_us;
        let nodes = part.raw_nodes();
        let mut found = 0;
        for &(from, to) in part.raw_ends() {
            if !is_talk(nodes[usize::from(from)].0, nodes[usize::from(to)].0) {
                continue;
            }
            let is_known = self.remember(seconds(now_us), pair(part, from, to));
            if !is_known && !is_learning {
                found += 1;
                self.recent.push_back(Talk { from: part.key(from), to: part.key(to), since_us: now_us });
            }
        }
        self.counters.new += found as u64;
        while self.recent.len() > self.limits.recent_max {
            self.recent.pop_front();
            self.counters.dropped += 1;
        }
        found
    }

    /// The last pairs that were new, the newest last.
    pub fn recent(&self) -> impl Iterator<Item = &Talk> {
        self.recent.iter()
    }

    /// How many pairs are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True if none is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Sums since start.
    pub fn counters(&self) -> TalkerCounters {
        self.counters
    }

    /// True if the pair was known.
    fn remember(&mut self, now_s: u32, pair: u64) -> bool {
        let seen_s = self.known.insert(pair, now_s);
        if let Some(seen_s) = seen_s {
            self.oldest.remove(&(seen_s, pair));
        }
        self.oldest.insert((now_s, pair));
        while self.known.len() > self.limits.pairs_max
            && let Some((_, oldest)) = self.oldest.pop_first()
        {
            self.known.remove(&oldest);
            self.counters.forgotten += 1;
        }
        seen_s.is_some()
    }
}

/// What happens inside a box is its own affair, and acknowledgements follow their data.
fn is_talk(from: NodeKind, to: NodeKind) -> bool {
    from == NodeKind::Sensors || to.is_shared_way()
}

fn pair(part: Part<'_>, from: u16, to: u16) -> u64 {
    // Fixed keys: what is remembered decides what is shown, and the same inputs show the same.
    FixedState::with_seed(PAIR_SEED).hash_one((part.key(from), part.key(to)))
}

/// Any number does.
const PAIR_SEED: u64 = 0x7461_6c6b;
