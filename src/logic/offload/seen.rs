//! Windows that are the same as one that was sent on: a sensor that is stuck asks once.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use foldhash::quality::FixedState;

use super::RemoteVerdict;

/// What tells windows apart: 128 bits that nobody can aim at, because the seed is drawn for each run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WindowKey([u64; 2]);

/// Makes keys, and remembers the answers of the last ones.
#[derive(Debug)]
pub(super) struct Seen {
    seeds: [FixedState; 2],
    recent: VecDeque<(WindowKey, u64, RemoteVerdict)>,
}

/// Answers that are remembered, and for how long.
const RECENT_MAX: usize = 64;
const RECENT_US: u64 = 60_000_000;

impl Seen {
    pub(super) fn new(seed: u64) -> Self {
        let seeds = [FixedState::with_seed(seed), FixedState::with_seed(seed ^ 0x5bd1_e995_7b93_1b5f)];
        Seen { seeds, recent: VecDeque::new() }
    }

    pub(super) fn key(&self, task: &str, window: &[f32]) -> WindowKey {
        let bits: Vec<u32> = window.iter().map(|value| value.to_bits()).collect();
        WindowKey(std::array::from_fn(|at| self.seeds[at].hash_one((task, &bits))))
    }

    /// What was answered to the same window a moment ago.
    pub(super) fn answer(&self, now_us: u64, key: WindowKey) -> Option<&RemoteVerdict> {
        let fresh = |at_us: u64| now_us < at_us.saturating_add(RECENT_US);
        self.recent.iter().find(|(seen, at_us, _)| *seen == key && fresh(*at_us)).map(|(_, _, answer)| answer)
    }

    pub(super) fn answered(&mut self, now_us: u64, key: WindowKey, answer: RemoteVerdict) {
        if self.recent.len() >= RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((key, now_us, answer));
    }
}
