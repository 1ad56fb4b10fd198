//! How much the uplink carries: now, and as a rule.
//!
//! Two averages of the delivered rate, of 3 s and 300 s. The long one matters more: over a minute to come a link is far more
//! likely to be what it mostly was than what it is this second (measured in the prototype of the plan: chasing the last
//! seconds costs 1.2 points of value). The forecast starts from the present rate and returns to the mean. A third average
//! leaves outages out: what the uplink carried when it last was up is what it starts from when it is up again.
//!
//! The trap is that one can only see what was sent. A step counts in full if there was more to send all through it, so
//! that the link was the limit. Otherwise it may raise an average and never lower it (BBR's rule for samples limited by the
//! application), and only as a whole slot: acknowledgements come in lumps, and the peak of a lump is not a rate.

use super::decay::{after_half_lives, exp_negative};

/// Delivered rate of one uplink.
#[derive(Debug, Clone, PartialEq)]
pub struct Goodput {
    at_us: u64,
    fast_bps: f64,
    mean_bps: f64,
    /// The same without outages, and as it was when something last came through.
    up_bps: f64,
    last_up_bps: f64,
    /// Seconds that `mean_bps` and `up_bps` have counted.
    counted_s: f64,
    counted_up_s: f64,
    /// What is not counted yet: time without enough to send, or bytes that came in no time.
    pending_us: u64,
    pending_bytes: u64,
    starved_us: u64,
}

impl Goodput {
    /// Starts from the configured rate in bits per second.
    pub fn new(now_us: u64, nominal_bps: u64) -> Self {
        let nominal_bps = nominal_bps as f64;
        Goodput {
            at_us: now_us,
            fast_bps: nominal_bps,
            mean_bps: nominal_bps,
            up_bps: nominal_bps,
            last_up_bps: nominal_bps,
            counted_s: 0.0,
            counted_up_s: 0.0,
            pending_us: 0,
            pending_bytes: 0,
            starved_us: 0,
        }
    }

    /// Counts the time since the last call: `delivered_bytes` were acknowledged in it, and `had_more_to_send` says whether
    /// something waited all the while, so that the link was the limit.
    pub fn step(&mut self, now_us: u64, delivered_bytes: u64, had_more_to_send: bool) {
        let step_us = now_us.saturating_sub(self.at_us);
        self.at_us = self.at_us.max(now_us);
        let is_resumed = delivered_bytes > 0 && self.is_starved();
        if is_resumed {
            // The outage does not count.
            self.up_bps = self.last_up_bps;
        }
        match (delivered_bytes, had_more_to_send) {
            (0, true) => self.starved_us = self.starved_us.saturating_add(step_us),
            (0, false) => {}
            _ => self.starved_us = 0,
        }
        if had_more_to_send {
            if self.pending_us > 0 {
                // Part of a slot in which the link was not the limit says nothing.
                (self.pending_us, self.pending_bytes) = (0, 0);
            }
            self.pending_bytes = self.pending_bytes.saturating_add(delivered_bytes);
            if step_us > 0 {
                self.count(step_us, false);
            }
            if is_resumed {
                // The seconds before say nothing about those after.
                self.begin_anew();
            }
            return;
        }
        if is_resumed {
            self.begin_anew();
        }
        self.pending_us = self.pending_us.saturating_add(step_us);
        self.pending_bytes = self.pending_bytes.saturating_add(delivered_bytes);
        if self.pending_us >= SLOT_US {
            self.count(self.pending_us, true);
        }
    }

    /// What held the link back is over: it is expected to carry at least what it carries as a rule, and what it did when it last
    /// was up.
    pub fn begin_anew(&mut self) {
        if self.is_starved() {
            self.up_bps = self.last_up_bps;
        }
        self.fast_bps = self.fast_bps.max(self.mean_bps).max(self.up_bps);
        self.starved_us = 0;
    }

    /// Delivered rate of the last seconds, in bits per second (`rf`).
    pub fn fast_bps(&self) -> f64 {
        self.fast_bps
    }

    /// Delivered rate of the last minutes, in bits per second (`mu`): what the uplink carries as a rule.
    pub fn mean_bps(&self) -> f64 {
        self.mean_bps
    }

    /// True in an outage.
    pub fn is_starved(&self) -> bool {
        self.starved_us >= OUTAGE_US
    }

    /// For how long nothing was delivered although there was something to send, in microseconds.
    pub fn starved_us(&self) -> u64 {
        self.starved_us
    }

    /// Bytes the uplink is expected to carry in the next `horizon_us`:
    /// `mu T + (rf - mu) tau (1 - exp(-T / tau))`, with `tau` the larger of 10 s and the age of the present outage.
    pub fn capacity_bytes(&self, horizon_us: u64) -> f64 {
        let horizon_s = horizon_us as f64 / 1e6;
        let tau_s = REVERSION_S_MIN.max(self.starved_us as f64 / 1e6);
        let away_s = tau_s * (1.0 - exp_negative(horizon_s / tau_s));
        let bits = self.mean_bps * horizon_s + (self.fast_bps - self.mean_bps) * away_s;
        (bits / 8.0).max(0.0)
    }

    /// Takes the pending bytes as delivered within `span_us`; `raise_only` if the link was not the limit.
    fn count(&mut self, span_us: u64, raise_only: bool) {
        let span_s = span_us as f64 / 1e6;
        let rate_bps = self.pending_bytes as f64 * 8.0 / span_s;
        (self.pending_us, self.pending_bytes) = (0, 0);
        if !raise_only || rate_bps > self.fast_bps {
            self.fast_bps = towards(self.fast_bps, rate_bps, after_half_lives(span_s * FAST_HALVINGS_PER_S));
        }
        if !raise_only || rate_bps > self.mean_bps {
            self.mean_bps = towards(self.mean_bps, rate_bps, mean_weight(self.counted_s, span_s));
            self.counted_s += span_s;
        }
        if !raise_only || rate_bps > self.up_bps {
            self.up_bps = towards(self.up_bps, rate_bps, mean_weight(self.counted_up_s, span_s));
            self.counted_up_s += span_s;
        }
        if rate_bps > 0.0 {
            self.last_up_bps = self.up_bps;
        }
    }
}

/// `old` with its weight, `new` with the rest; rounding must not carry it outside of the two.
fn towards(old: f64, new: f64, weight: f64) -> f64 {
    (new + (old - new) * weight).clamp(old.min(new), old.max(new))
}

/// What the mean keeps of itself over `span_s` when it has counted `counted_s` before.
///
/// In steps of 1 s this is the gain max(1/300, 1/(t + 20)) exactly, and any other cut of the same time gives the same.
fn mean_weight(counted_s: f64, span_s: f64) -> f64 {
    let young_s = (MEAN_YOUNG_S - counted_s).clamp(0.0, span_s);
    let young = (counted_s + MEAN_PRIOR_S - 1.0) / (counted_s + young_s + MEAN_PRIOR_S - 1.0);
    young * after_half_lives((span_s - young_s) * MEAN_HALVINGS_PER_S)
}

/// So long without a byte is an outage, not a slow moment.
const OUTAGE_US: u64 = 2_000_000;
/// Shortest time over which a rate is taken when the link was not the limit: the slot of the plan's measurements.
const SLOT_US: u64 = 1_000_000;
/// Shortest time in which the rate is expected to come back to its mean (`tau`; from the plan's measurements).
const REVERSION_S_MIN: f64 = 10.0;
/// Gain 1/3 per second: -log2(1 - 1/3).
const FAST_HALVINGS_PER_S: f64 = 0.584_962_500_721_156;
/// Gain 1/300 per second: -log2(1 - 1/300).
const MEAN_HALVINGS_PER_S: f64 = 0.004_817_016_297_775_842;
/// Seconds that the nominal rate weighs as much as a measured one.
const MEAN_PRIOR_S: f64 = 20.0;
/// Until then 1/(t + 20) is the larger gain.
const MEAN_YOUNG_S: f64 = 280.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND_US: u64 = 1_000_000;

    #[test]
    fn seconds_give_exactly_the_gains_of_the_plan() {
        let mut goodput = Goodput::new(0, 1_000_000);
        let (mut fast, mut mean) = (1e6f64, 1e6f64);
        for t in 0..1_000u64 {
            let bytes = (t * 7_919) % 300_000;
            goodput.step((t + 1) * SECOND_US, bytes, true);
            let rate = bytes as f64 * 8.0;
            fast += (rate - fast) / 3.0;
            mean += (rate - mean) * (1.0f64 / 300.0).max(1.0 / (t as f64 + 20.0));
            assert!((goodput.fast_bps() / fast - 1.0).abs() < 1e-9, "fast at {t}");
            assert!((goodput.mean_bps() / mean - 1.0).abs() < 1e-9, "mean at {t}: {} {mean}", goodput.mean_bps());
        }
    }

    #[test]
    fn after_an_outage_the_rate_starts_from_what_it_was_while_the_link_was_up() {
        let mut goodput = Goodput::new(0, 500_000);
        let mut now_us = 0;
        for _ in 0..20 {
            for delivered in [125_000, 0] {
                for _ in 0..30 {
                    now_us += SECOND_US;
                    goodput.step(now_us, delivered, true);
                }
            }
        }
        assert!((0.45e6..0.55e6).contains(&goodput.mean_bps()), "half of the time: {}", goodput.mean_bps());
        assert!(goodput.is_starved() && goodput.fast_bps() < 100.0);
        now_us += SECOND_US;
        goodput.step(now_us, 1_000, true);
        assert!(!goodput.is_starved());
        assert!((0.9e6..1.01e6).contains(&goodput.fast_bps()), "{}", goodput.fast_bps());
    }

    #[test]
    fn idle_time_lowers_nothing_but_may_raise() {
        let mut goodput = Goodput::new(0, 1_000_000);
        for t in 1..10_000 {
            goodput.step(t * 250_000, 1_000, false);
        }
        assert_eq!((goodput.fast_bps(), goodput.mean_bps()), (1e6, 1e6));
        goodput.step(2_600 * SECOND_US, 250_000_000, false);
        assert!(goodput.fast_bps() > 1e6 && goodput.mean_bps() > 1e6);
    }

    #[test]
    fn acknowledgements_in_lumps_do_not_inflate_a_link_that_is_not_the_limit() {
        // 400 kbit/s offered, 1 Mbit/s assumed; all that is acknowledged in a second comes within one millisecond of it.
        let mut goodput = Goodput::new(0, 1_000_000);
        for t in 0..600 {
            goodput.step(t * SECOND_US + 999_000, 0, false);
            goodput.step((t + 1) * SECOND_US, 50_000, false);
        }
        assert_eq!((goodput.fast_bps(), goodput.mean_bps()), (1e6, 1e6));
    }

    #[test]
    fn bytes_in_no_time_are_counted_with_the_next_step() {
        let (mut one, mut two) = (Goodput::new(0, 1_000), Goodput::new(0, 1_000));
        one.step(SECOND_US, 9_000, true);
        two.step(0, 4_000, true);
        two.step(SECOND_US, 5_000, true);
        assert_eq!(one, two);
    }

    #[test]
    fn the_forecast_starts_at_the_present_rate_and_returns_to_the_mean() {
        let mut goodput = Goodput::new(0, 8_000_000);
        for t in 1..=600 {
            goodput.step(t * SECOND_US, 1_000_000, true);
        }
        for t in 601..=604 {
            goodput.step(t * SECOND_US, 0, true);
        }
        let (fast, mean) = (goodput.fast_bps() / 8.0, goodput.mean_bps() / 8.0);
        assert!(fast < 0.25 * mean, "{fast} {mean}");
        assert_eq!(goodput.capacity_bytes(0), 0.0);
        assert!((goodput.capacity_bytes(10_000) / 0.01 / fast - 1.0).abs() < 0.01);
        let expected = mean * 60.0 + (fast - mean) * 10.0 * (1.0 - (-6.0f64).exp());
        assert!((goodput.capacity_bytes(60 * SECOND_US) / expected - 1.0).abs() < 1e-9);
        for t in 605..=700 {
            goodput.step(t * SECOND_US, 0, true);
        }
        assert_eq!(goodput.starved_us(), 100 * SECOND_US);
        assert!(goodput.capacity_bytes(10 * SECOND_US) < 0.1 * 10.0 * goodput.mean_bps() / 8.0);
        goodput.step(701 * SECOND_US, 1, true);
        assert_eq!(goodput.starved_us(), 0);
    }

    proptest! {
        #[test]
        fn busy_time_may_be_cut_in_any_way(cuts in proptest::collection::vec(1u64..3_000_000, 1..40), rate in 1u64..1_000, before in 1u64..400) {
            let (mut whole, mut cut) = (Goodput::new(0, 77_777), Goodput::new(0, 77_777));
            for goodput in [&mut whole, &mut cut] {
                goodput.step(before * SECOND_US, 5_000, true);
            }
            let mut now_us = before * SECOND_US;
            for &step_us in &cuts {
                now_us += step_us * 8;
                cut.step(now_us, step_us * rate, true);
            }
            whole.step(now_us, cuts.iter().sum::<u64>() * rate, true);
            prop_assert!((whole.fast_bps() / cut.fast_bps() - 1.0).abs() < 1e-6);
            prop_assert!((whole.mean_bps() / cut.mean_bps() - 1.0).abs() < 1e-6);
        }

        #[test]
        fn estimates_stay_finite_and_among_what_was_seen(
            nominal in 0u64..10_000_000_000,
            steps in proptest::collection::vec((0u64..5_000_000, 0u64..1 << 40, any::<bool>()), 1..100),
            horizon_us: u64,
        ) {
            let mut goodput = Goodput::new(0, nominal);
            let (mut now_us, mut total) = (0u64, 0u64);
            for (step_us, bytes, more) in steps {
                now_us += step_us;
                total += bytes;
                goodput.step(now_us, bytes, more);
                // No rate can be higher than all bytes in the shortest span.
                let highest = (nominal as f64).max(total as f64 * 8e6);
                for value in [goodput.fast_bps(), goodput.mean_bps()] {
                    prop_assert!((0.0..=highest).contains(&value), "{value}");
                }
                let capacity = goodput.capacity_bytes(horizon_us);
                let top = goodput.fast_bps().max(goodput.mean_bps()) * (horizon_us as f64 / 1e6) / 8.0;
                prop_assert!(capacity.is_finite() && capacity >= 0.0 && capacity <= top * (1.0 + 1e-9) + 1e-6, "{capacity} {top}");
            }
        }

        #[test]
        fn a_constant_rate_is_found_whatever_was_assumed(nominal in 1u64..1_000_000_000, rate in 1_000u64..100_000_000) {
            let mut goodput = Goodput::new(0, nominal);
            for t in 1..=30_000 {
                goodput.step(t * 100_000, rate / 80, true);
            }
            for value in [goodput.fast_bps(), goodput.mean_bps()] {
                let start = (nominal as f64 / rate as f64).max(1.0);
                prop_assert!((value / rate as f64 - 1.0).abs() < 0.05 + 1e-5 * start, "{value} for {rate}");
            }
        }
    }
}
