//! How many raw bytes each stream brings a second, as a rule.

/// Rates of arrival by stream: averages of five minutes, and until then of all there was.
#[derive(Debug, Clone, Default)]
pub struct Arrivals {
    rates: Vec<f64>,
    counted_s: f64,
    at_us: u64,
}

/// Time constant of the averages, in seconds: the optimum of the prototype is flat from one minute to a quarter of an hour.
const WINDOW_S: f64 = 300.0;

impl Arrivals {
    /// Nothing has come yet.
    pub fn new(now_us: u64, streams: usize) -> Self {
        Arrivals { rates: vec![0.0; streams], counted_s: 0.0, at_us: now_us }
    }

    /// Counts the bytes that came by stream since the last call; `scale` turns them into bytes of the uplink.
    pub fn count(&mut self, now_us: u64, bytes: &[u64], scale: f64) {
        let step_s = now_us.saturating_sub(self.at_us) as f64 / 1e6;
        if step_s <= 0.0 {
            return;
        }
        self.at_us = now_us;
        self.counted_s += step_s;
        let gain = (step_s / self.counted_s.min(WINDOW_S)).min(1.0);
        for (at, rate) in self.rates.iter_mut().enumerate() {
            let now = bytes.get(at).copied().unwrap_or(0) as f64 * scale / step_s;
            *rate += gain * (now - *rate);
        }
    }

    /// Bytes a second by stream.
    pub fn rates(&self) -> &[f64] {
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
            assert!((arrivals.rates()[0] - 500.0).abs() < 1e-6 && arrivals.rates()[1] == 0.0);
        }
        for second in 11..=1_500u64 {
            arrivals.count(second * 1_000_000, &[0, 2_000], 0.5);
        }
        assert!(arrivals.rates()[0] < 10.0 && (arrivals.rates()[1] - 1_000.0).abs() < 20.0, "{arrivals:?}");
    }
}
