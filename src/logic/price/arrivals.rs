//! How many raw bytes each stream brings a second: as a rule, and now.

use crate::health::exp_negative;

/// Bytes a second of one stream.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Expected {
    /// As a rule: the average of five minutes, and until then of all there was.
    pub mean: f64,
    /// Of late: the average of a quarter of a minute.
    pub now: f64,
}

impl Expected {
    /// Bytes that come in the next seconds: at first as many as of late, and then as many as always.
    pub fn bytes(&self, seconds: f64) -> f64 {
        let away_s = REVERSION_S * (1.0 - exp_negative(seconds / REVERSION_S));
        (self.mean * seconds + (self.now - self.mean) * away_s).max(0.0)
    }
}

/// Rates of arrival by stream.
#[derive(Debug, Clone, Default)]
pub struct Arrivals {
    rates: Vec<Expected>,
    counted_s: f64,
    at_us: u64,
}

/// Time constant of the averages, in seconds: the optimum of the prototype is flat from one minute to a quarter of an hour.
const WINDOW_S: f64 = 300.0;
/// The first seconds, and what they weigh beside those after them.
const FIRST_S: f64 = 20.0;
const FIRST_WEIGHT_S: f64 = 120.0;
/// Time constant of what counts as now: longer than the lumps in which many sensors send.
const NOW_S: f64 = 15.0;
/// How long a burst is expected to go on.
const REVERSION_S: f64 = 15.0;

impl Arrivals {
    /// Nothing has come yet.
    pub fn new(now_us: u64, streams: usize) -> Self {
        Arrivals { rates: vec![Expected::default(); streams], counted_s: 0.0, at_us: now_us }
    }

    /// Counts the bytes that came by stream since the last call; `scale` turns them into bytes of the uplink.
    pub fn count(&mut self, now_us: u64, bytes: &[u64], scale: f64) {
        let step_s = now_us.saturating_sub(self.at_us) as f64 / 1e6;
        if step_s <= 0.0 {
            return;
        }
        self.at_us = now_us;
        self.counted_s += step_s;
        let gain = |window_s: f64| (step_s / window_s).min(1.0);
        // What came first is taken for the rule until much more is known: a burst soon after the start is none.
        let known_s = if self.counted_s <= FIRST_S { self.counted_s } else { self.counted_s + FIRST_WEIGHT_S - FIRST_S };
        let (mean_gain, now_gain) = (gain(known_s.min(WINDOW_S)), gain(self.counted_s.min(NOW_S)));
        for (at, rate) in self.rates.iter_mut().enumerate() {
            let now = bytes.get(at).copied().unwrap_or(0) as f64 * scale / step_s;
            rate.mean += mean_gain * (now - rate.mean);
            rate.now += now_gain * (now - rate.now);
        }
    }

    /// What is expected, by stream.
    pub fn rates(&self) -> &[Expected] {
        &self.rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_is_known_at_once_and_a_change_within_minutes() {
        let mut arrivals = Arrivals::new(0, 2);
        for second in 1..=10u64 {
            arrivals.count(second * 1_000_000, &[1_000], 0.5);
            assert!((arrivals.rates()[0].mean - 500.0).abs() < 1e-6 && arrivals.rates()[1].mean == 0.0);
        }
        for second in 11..=1_500u64 {
            arrivals.count(second * 1_000_000, &[0, 2_000], 0.5);
        }
        let [first, second] = [arrivals.rates()[0].mean, arrivals.rates()[1].mean];
        assert!(first < 10.0 && (second - 1_000.0).abs() < 20.0, "{arrivals:?}");
    }

    #[test]
    fn a_burst_counts_for_the_seconds_to_come_and_hardly_for_the_minutes() {
        let mut arrivals = Arrivals::new(0, 1);
        for second in 1..=600u64 {
            arrivals.count(second * 1_000_000, &[if second > 585 { 10_000 } else { 1_000 }], 1.0);
        }
        let expected = arrivals.rates()[0];
        assert!(expected.now > 5_000.0 && expected.mean < 1_500.0, "{expected:?}");
        let rate = |seconds: f64| expected.bytes(seconds) / seconds;
        assert!(rate(1.0) > 0.95 * expected.now && rate(600.0) < 1.2 * expected.mean, "{} {}", rate(1.0), rate(600.0));
    }
}
