//! Latency that is believed at once when it gets worse and only slowly when it gets better.
//!
//! A route that took a second a moment ago may do so again: to send a critical record there on the strength of one good
//! sample is a bet. So a peak counts at once, and what it is above the present sample is forgotten by half every half life
//! (after linkerd's and Finagle's peak EWMA). Theirs falls to zero when nothing is sent, to invite traffic; ours falls to
//! the last sample, because a link that is idle has not become fast.

use super::decay::left_after;

/// Peak-sensitive average of latencies in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct PeakEwma {
    half_life_us: u64,
    seen: Option<Seen>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    last_us: f64,
    peak_us: f64,
    at_us: u64,
}

impl PeakEwma {
    /// An average that forgets half of a peak every `half_life_us`.
    pub fn new(half_life_us: u64) -> Self {
        PeakEwma { half_life_us, seen: None }
    }

    /// Takes in a latency measured at `now_us`; above 2^53 us (285 years) it counts as that.
    pub fn sample(&mut self, now_us: u64, latency_us: u64) {
        let last_us = latency_us.min(LATENCY_US_MAX) as f64;
        let at_us = self.seen.map_or(now_us, |seen| seen.at_us.max(now_us));
        let peak_us = self.decayed(at_us).map_or(last_us, |peak_us| peak_us.max(last_us));
        self.seen = Some(Seen { last_us, peak_us, at_us });
    }

    /// The average at `now_us` in microseconds, never below the last sample; `None` before the first.
    pub fn value_us(&self, now_us: u64) -> Option<u64> {
        self.decayed(now_us).map(|value_us| value_us.ceil() as u64)
    }

    /// The last sample in microseconds.
    pub fn last_us(&self) -> Option<u64> {
        self.seen.map(|seen| seen.last_us as u64)
    }

    fn decayed(&self, now_us: u64) -> Option<f64> {
        let Seen { last_us, peak_us, at_us } = self.seen?;
        Some(last_us + (peak_us - last_us) * left_after(now_us.saturating_sub(at_us), self.half_life_us))
    }
}

/// How much successive round trips differ, in microseconds: the mean difference over about 16 samples (RFC 3550, 6.4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Jitter {
    last_us: Option<u64>,
    mean_us: f64,
}

impl Jitter {
    /// Takes in a latency.
    pub fn sample(&mut self, latency_us: u64) {
        let latency_us = latency_us.min(LATENCY_US_MAX);
        if let Some(last_us) = self.last_us {
            self.mean_us += (last_us.abs_diff(latency_us) as f64 - self.mean_us) / 16.0;
        }
        self.last_us = Some(latency_us);
    }

    /// The mean difference in microseconds; 0 before the second sample.
    pub fn value_us(&self) -> u64 {
        self.mean_us as u64
    }
}

/// The largest whole number up to which an `f64` holds every one.
const LATENCY_US_MAX: u64 = 1 << 53;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_peak_counts_at_once_and_halves_towards_the_last_sample() {
        let mut rtt = PeakEwma::new(7_000_000);
        assert_eq!(rtt.value_us(0), None);
        rtt.sample(0, 20_000);
        rtt.sample(1, 1_020_000);
        assert_eq!(rtt.value_us(1), Some(1_020_000));
        rtt.sample(2, 20_000);
        assert!(rtt.value_us(2).is_some_and(|us| us > 1_019_900));
        assert_eq!(rtt.value_us(7_000_001).map(|us| us / 100), Some(5_200));
        assert_eq!(rtt.value_us(7_000_002), Some(520_000));
        assert_eq!(rtt.value_us(14_000_002), Some(270_000));
        assert_eq!(rtt.value_us(u64::MAX), Some(20_000));
        assert_eq!(rtt.last_us(), Some(20_000));
    }

    #[test]
    fn jitter_is_the_mean_difference() {
        let mut jitter = Jitter::default();
        for i in 0..200 {
            jitter.sample(50_000 + 8_000 * (i % 2));
        }
        assert!((7_990..=8_000).contains(&jitter.value_us()), "{}", jitter.value_us());
        for _ in 0..200 {
            jitter.sample(50_000);
        }
        assert!(jitter.value_us() < 10);
    }

    proptest! {
        #[test]
        fn the_value_is_never_below_the_last_sample_nor_above_the_highest(
            samples in proptest::collection::vec((0u64..30_000_000, 0u64..=LATENCY_US_MAX), 1..60),
            half_life_us in 0u64..20_000_000,
            wait_us: u64,
        ) {
            let mut rtt = PeakEwma::new(half_life_us);
            let (mut now_us, mut highest) = (0, 0);
            for (step_us, latency_us) in samples {
                now_us += step_us;
                let before = rtt.value_us(now_us).unwrap_or(0);
                rtt.sample(now_us, latency_us);
                highest = highest.max(latency_us);
                let value = rtt.value_us(now_us).expect("sampled");
                prop_assert!(latency_us <= value && value <= highest, "{latency_us} {value} {highest}");
                prop_assert!(value >= before.saturating_sub(1), "a sample lowered {before} to {value} at once");
                let later = rtt.value_us(now_us.saturating_add(wait_us)).expect("sampled");
                prop_assert!(latency_us <= later && later <= value);
            }
        }
    }
}
