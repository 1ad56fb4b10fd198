//! How often it worked lately.
//!
//! One failure of one attempt is 100 % and says nothing. So there is no ratio below a minimum of samples, and what is
//! older than the window is forgotten bucket by bucket: a ring of ten, as linkerd's success window has, whatever the rate.

/// Share of successes over a sliding window of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuccessRatio {
    bucket_us: u64,
    samples_min: u64,
    buckets: [Bucket; BUCKETS],
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bucket {
    /// Service time over the bucket's length; says which turn of the ring the counts are of.
    number: u64,
    successes: u64,
    failures: u64,
}

impl SuccessRatio {
    /// A window of `window_us` (forgotten in tenths) that has a ratio from `samples_min` samples on.
    pub fn new(window_us: u64, samples_min: u64) -> Self {
        let bucket_us = (window_us / BUCKETS as u64).max(1);
        SuccessRatio { bucket_us, samples_min: samples_min.max(1), buckets: [Bucket::default(); BUCKETS] }
    }

    /// Counts what worked and what did not up to `now_us`.
    pub fn record(&mut self, now_us: u64, successes: u64, failures: u64) {
        let number = now_us / self.bucket_us;
        let bucket = &mut self.buckets[(number % BUCKETS as u64) as usize];
        if bucket.number < number {
            *bucket = Bucket { number, successes: 0, failures: 0 };
        }
        bucket.successes = bucket.successes.saturating_add(successes);
        bucket.failures = bucket.failures.saturating_add(failures);
    }

    /// Successes over samples within the window, in `[0, 1]`; `None` below the minimum number of samples.
    pub fn ratio(&self, now_us: u64) -> Option<f64> {
        let (successes, failures) = self.totals(now_us);
        let samples = successes.saturating_add(failures);
        (samples >= self.samples_min).then(|| successes as f64 / samples as f64)
    }

    /// Samples within the window.
    pub fn samples(&self, now_us: u64) -> u64 {
        let (successes, failures) = self.totals(now_us);
        successes.saturating_add(failures)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets = [Bucket::default(); BUCKETS];
    }

    fn totals(&self, now_us: u64) -> (u64, u64) {
        let oldest = (now_us / self.bucket_us).saturating_sub(BUCKETS as u64 - 1);
        self.buckets.iter().filter(|bucket| bucket.number >= oldest).fold((0, 0), |(successes, failures), bucket| {
            (bucket.successes.saturating_add(successes), bucket.failures.saturating_add(failures))
        })
    }
}

/// Linkerd's number: a tenth of the window is forgotten at a time.
const BUCKETS: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn there_is_no_ratio_below_the_minimum_of_samples() {
        let mut ratio = SuccessRatio::new(10_000_000, 4);
        ratio.record(0, 0, 3);
        assert_eq!(ratio.ratio(0), None);
        ratio.record(1, 1, 0);
        assert_eq!(ratio.ratio(1), Some(0.25));
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut ratio = SuccessRatio::new(10_000_000, 1);
        ratio.record(500_000, 0, 8);
        ratio.record(5_500_000, 8, 0);
        assert_eq!(ratio.ratio(9_999_999), Some(0.5));
        assert_eq!(ratio.ratio(10_000_000), Some(1.0));
        assert_eq!(ratio.ratio(15_000_000), None);
        ratio.record(1_000_000_000, 1, 1);
        assert_eq!(ratio.samples(1_000_000_000), 2);
    }

    proptest! {
        #[test]
        fn the_window_counts_what_a_plain_list_counts(
            events in proptest::collection::vec((0u64..4_000_000, 0u64..50, 0u64..50), 1..100),
        ) {
            let mut ratio = SuccessRatio::new(10_000_000, 20);
            let (mut now_us, mut list) = (0, Vec::new());
            for (step_us, successes, failures) in events {
                now_us += step_us;
                ratio.record(now_us, successes, failures);
                list.push((now_us / 1_000_000, successes, failures));
                let within = |bucket: u64| bucket + 10 > now_us / 1_000_000;
                let (good, bad) = list.iter().filter(|event| within(event.0)).fold((0, 0), |sum, e| (sum.0 + e.1, sum.1 + e.2));
                prop_assert_eq!(ratio.samples(now_us), good + bad);
                let expected = (good + bad >= 20).then(|| good as f64 / (good + bad) as f64);
                prop_assert_eq!(ratio.ratio(now_us), expected);
            }
        }

        #[test]
        fn the_ratio_stays_within_zero_and_one(events in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..30)) {
            let mut ratio = SuccessRatio::new(1_000, 1);
            for (now_us, successes, failures) in events {
                ratio.record(now_us, successes, failures);
                prop_assert!(ratio.ratio(now_us).is_none_or(|ratio| (0.0..=1.0).contains(&ratio)));
            }
        }
    }
}
