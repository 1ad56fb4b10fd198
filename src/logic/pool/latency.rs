//! How long the last answers took, or the last refusals.

use std::collections::VecDeque;

/// Times of the last 256 answers.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    /// In microseconds, oldest first.
    last_us: VecDeque<u64>,
    newest_us: Option<u64>,
}

/// Enough for a 95th percentile that a dozen answers decide.
const LATENCIES_MAX: usize = 256;

impl Latencies {
    /// Takes in how long an answer took that was given at `now_us`.
    pub fn add(&mut self, now_us: u64, latency_us: u64) {
        if self.last_us.len() >= LATENCIES_MAX {
            self.last_us.pop_front();
        }
        self.last_us.push_back(latency_us);
        self.newest_us = Some(now_us);
    }

    /// Median and 95th percentile in microseconds; 0 before the first answer. Sorts: for once a second.
    pub fn p50_p95_us(&self) -> (u64, u64) {
        let mut sorted: Vec<u64> = self.last_us.iter().copied().collect();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
        (at(50), at(95))
    }

    /// When the newest answer was given.
    pub fn newest_us(&self) -> Option<u64> {
        self.newest_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_last_answers_alone() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.p50_p95_us(), latencies.newest_us()), ((0, 0), None));
        latencies.add(1, 7);
        assert_eq!(latencies.p50_p95_us(), (7, 7));
        (0..LATENCIES_MAX as u64).for_each(|at| latencies.add(at, 1_000 - at));
        assert_eq!((latencies.p50_p95_us(), latencies.newest_us()), ((1_000 - 128, 1_000 - 12), Some(255)));
    }
}
