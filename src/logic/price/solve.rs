//! The price at which what waits and what is expected fits through the uplink.

use super::StreamValue;

/// Records of one stream and about one age that wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cohort {
    /// Index of the stream.
    pub stream: u16,
    /// Bytes they would take raw.
    pub bytes: f64,
    /// Their age in microseconds.
    pub age_us: u64,
}

/// What the operator can turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PriceLimits {
    /// How far ahead is planned, in microseconds. The optimum is flat between 30 s and 120 s.
    pub horizon_us: u64,
    /// The price is never so high that what waits would last less than this, in microseconds.
    pub drain_us: u64,
    /// The one knob: part of the forecast that is planned with. Below 1 is fresher, above 1 is finer.
    pub kappa: f64,
    /// The price holds still until it would move by this part of itself.
    pub hysteresis: f64,
    /// Hold-down: the price falls no sooner than this after it last moved, in microseconds. It rises at once.
    pub hold_us: u64,
}

impl Default for PriceLimits {
    /// From the sensitivity table of the prototype.
    fn default() -> Self {
        PriceLimits { horizon_us: 60_000_000, drain_us: 8_000_000, kappa: 1.0, hysteresis: 0.25, hold_us: 3_000_000 }
    }
}

/// The numbers behind a price.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Explanation {
    /// The price in force, per byte.
    pub lambda: f64,
    /// The price at which all that waits and is expected fits the horizon.
    pub lambda_plan: f64,
    /// The highest price at which what waits lasts long enough.
    pub lambda_drain: f64,
    /// Bytes that are wanted over the horizon when everything is raw.
    pub wanted_bytes: f64,
    /// Bytes that the uplink is forecast to carry over the horizon.
    pub forecast_bytes: f64,
    /// Raw bytes that wait.
    pub waiting_bytes: f64,
    /// The stream that is the next to be sent more coarsely, or more finely, should the price move.
    pub marginal: Option<u16>,
}

/// One step of one cohort down its ladder: taken when the price reaches `slope`.
#[derive(Debug, Clone, Copy)]
struct Step {
    slope: f64,
    stream: u16,
    /// Bytes that the step saves over the horizon, and of what waits.
    plan_bytes: f64,
    drain_bytes: f64,
}

/// Finds prices; keeps its work space.
#[derive(Debug, Default)]
pub struct Solver {
    steps: Vec<Step>,
    lambda: f64,
    moved_us: u64,
}

/// What a price is made for.
#[derive(Debug, Clone, Copy)]
pub struct Market<'a> {
    /// By stream; `None` for streams that are neither folded nor held, whose bytes come first.
    pub values: &'a [Option<StreamValue>],
    /// What waits.
    pub waiting: &'a [Cohort],
    /// By stream: raw bytes a second that are expected.
    pub expected: &'a [f64],
    /// Bytes that the uplink is forecast to carry over the horizon.
    pub forecast_bytes: f64,
    /// Bytes that it carries over [`PriceLimits::drain_us`].
    pub drain_bytes: f64,
}

/// What paid uplinks with a budget would carry too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paid {
    /// What a paid byte must be worth.
    pub lambda: f64,
    /// As in [`Market`], for the paid uplinks alone.
    pub forecast_bytes: f64,
    /// As in [`Market`], for the paid uplinks alone.
    pub drain_bytes: f64,
}

impl Solver {
    /// The price now. With `at_once` it may move at once however little, as after a change of the uplinks.
    ///
    /// Where it would be above what a paid byte must be worth, `paid` carries too, and holds the price down to that.
    pub fn solve(
        &mut self,
        now_us: u64,
        limits: &PriceLimits,
        market: Market<'_>,
        paid: Option<Paid>,
        at_once: bool,
    ) -> Explanation {
        let Market { values, waiting, expected, forecast_bytes, drain_bytes } = market;
        self.steps.clear();
        let horizon_us = limits.horizon_us as f64;
        let (mut wanted, mut waits) = (0.0, 0.0);
        for cohort in waiting {
            let value = values[usize::from(cohort.stream)];
            let left_us = value.and_then(|value| value.lateness.left_us(cohort.age_us));
            // What may wait longer than the horizon is due in it in part.
            let part = left_us.map_or(1.0, |left_us| (horizon_us / (left_us as f64).max(1.0)).min(1.0));
            let (plan, drain) = (cohort.bytes * part, cohort.bytes);
            self.add(value, cohort.stream, cohort.age_us, (plan, drain));
            (wanted, waits) = (wanted + plan, waits + drain);
        }
        for (stream, &rate) in expected.iter().enumerate() {
            let plan = rate * horizon_us / 1e6;
            self.add(values[stream], stream as u16, 0, (plan, 0.0));
            wanted += plan;
        }
        self.steps.sort_by(|a, b| a.slope.total_cmp(&b.slope));
        let mut lambda_plan = self.lowest(wanted, limits.kappa * forecast_bytes, |step| step.plan_bytes);
        let mut lambda_drain = self.lowest(waits, drain_bytes, |step| step.drain_bytes);
        if let Some(paid) = paid.filter(|paid| lambda_plan.min(lambda_drain) > paid.lambda) {
            let forecast_bytes = limits.kappa * (forecast_bytes + paid.forecast_bytes);
            lambda_plan = self.lowest(wanted, forecast_bytes, |step| step.plan_bytes).max(paid.lambda);
            lambda_drain = self.lowest(waits, drain_bytes + paid.drain_bytes, |step| step.drain_bytes).max(paid.lambda);
        }
        let lambda = lambda_plan.min(lambda_drain);
        let is_far = (lambda - self.lambda).abs() > limits.hysteresis * self.lambda.max(lambda);
        let may_fall = lambda > self.lambda || now_us >= self.moved_us.saturating_add(limits.hold_us);
        if lambda != self.lambda && (at_once || is_far && may_fall) {
            (self.lambda, self.moved_us) = (lambda, now_us);
        }
        let next = self.steps.partition_point(|step| step.slope < self.lambda);
        Explanation {
            lambda: self.lambda,
            lambda_plan,
            lambda_drain,
            wanted_bytes: wanted,
            forecast_bytes,
            waiting_bytes: waits,
            marginal: self.steps.get(next).map(|step| step.stream),
        }
    }

    /// The steps of a cohort, from raw to held.
    fn add(&mut self, value: Option<StreamValue>, stream: u16, age_us: u64, (plan, drain): (f64, f64)) {
        let Some(value) = value.filter(|value| !value.is_exempt && (plan > 0.0 || drain > 0.0)) else { return };
        let weight = value.weight_at(age_us);
        let mut levels = value.ladder.levels().map(|(level, worth)| (level.bytes(), worth)).chain([(0.0, 0.0)]);
        let Some(mut at) = levels.next() else { return };
        for next in levels {
            let saved = at.0 - next.0;
            let slope = weight * (at.1 - next.1) / saved;
            self.steps.push(Step { slope, stream, plan_bytes: plan * saved, drain_bytes: drain * saved });
            at = next;
        }
    }

    /// The lowest price at which `need` has shrunk to `limit`; the highest of all if it never does.
    fn lowest(&self, mut need: f64, limit: f64, saved: impl Fn(&Step) -> f64) -> f64 {
        let mut lambda = 0.0;
        for step in &self.steps {
            if need <= limit {
                break;
            }
            need -= saved(step);
            lambda = step.slope;
        }
        lambda
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::price::value::best;
    use crate::price::{Ladder, Lateness, Level};

    /// Bytes that these cohorts take at a price.
    fn demand_bytes(values: &[Option<StreamValue>], cohorts: &[Cohort], lambda: f64) -> f64 {
        let bytes = |cohort: &Cohort| {
            let part = match values[usize::from(cohort.stream)] {
                Some(value) if !value.is_exempt => {
                    best(&value.ladder, value.weight_at(cohort.age_us), lambda).map_or(0.0, Level::bytes)
                }
                _ => 1.0,
            };
            cohort.bytes * part
        };
        cohorts.iter().map(bytes).sum()
    }

    fn values() -> impl Strategy<Value = Vec<Option<StreamValue>>> {
        let ladder = prop_oneof![Just(Ladder::RAW), Just(Ladder::TELEMETRY), Just(Ladder::WAVE), Just(Ladder::LOG)];
        let value =
            (0.01f64..50.0, ladder, 0usize..5, any::<bool>()).prop_map(|(weight, ladder, floor, is_exempt)| StreamValue {
                weight,
                ladder: ladder.down_to(Level::ALL[floor]),
                lateness: Lateness { d0_us: 10_000_000, d1_us: Some(100_000_000), u1: 0.2 },
                is_exempt,
            });
        prop::collection::vec(prop::option::weighted(0.9, value), 1..8)
    }

    fn cohorts() -> impl Strategy<Value = Vec<(u16, f64, u64)>> {
        prop::collection::vec((0u16..8, 1.0f64..10_000.0, 0u64..120_000_000), 0..30)
    }

    fn solve(values: &[Option<StreamValue>], cohorts: &[Cohort], plan: f64, drain: f64) -> Explanation {
        // A horizon beyond every deadline, so that all that waits counts whole.
        let limits = PriceLimits { horizon_us: 1_000_000_000, ..PriceLimits::default() };
        let expected = vec![0.0; values.len()];
        let market = Market { values, waiting: cohorts, expected: &expected, forecast_bytes: plan, drain_bytes: drain };
        Solver::default().solve(0, &limits, market, None, true)
    }

    proptest! {
        #[test]
        fn the_price_is_the_lowest_at_which_all_fits(values in values(), cohorts in cohorts(), share in 0.0f64..1.2) {
            let cohorts: Vec<Cohort> = cohorts
                .into_iter()
                .map(|(stream, bytes, age_us)| Cohort { stream: stream % values.len() as u16, bytes, age_us })
                .collect();
            let limit = share * demand_bytes(&values, &cohorts, 0.0);
            let found = solve(&values, &cohorts, limit, 0.0);
            prop_assert!(found.lambda_plan.is_finite() && found.lambda_plan >= 0.0);
            let least = demand_bytes(&values, &cohorts, f64::INFINITY);
            let at = demand_bytes(&values, &cohorts, found.lambda_plan * (1.0 + 1e-9) + 1e-12);
            prop_assert!(at <= limit * (1.0 + 1e-9) + 1e-6 || at <= least + 1e-6, "{at} > {limit}, {least}");
            if found.lambda_plan > 0.0 {
                let below = demand_bytes(&values, &cohorts, found.lambda_plan * (1.0 - 1e-9));
                prop_assert!(below > limit * (1.0 - 1e-9), "{below} would have fitted {limit}");
            }
        }

        #[test]
        fn more_to_send_never_lowers_the_price_and_more_room_never_raises_it(
            values in values(), cohorts in cohorts(), limit in 0.0f64..50_000.0, more in 1.0f64..3.0,
        ) {
            let cohorts: Vec<Cohort> = cohorts
                .into_iter()
                .map(|(stream, bytes, age_us)| Cohort { stream: stream % values.len() as u16, bytes, age_us })
                .collect();
            let price = |cohorts: &[Cohort], limit| solve(&values, cohorts, limit, limit).lambda;
            let before = price(&cohorts, limit);
            prop_assert!(price(&cohorts, limit * more) <= before);
            let swollen: Vec<Cohort> = cohorts.iter().map(|c| Cohort { bytes: c.bytes * more, ..*c }).collect();
            prop_assert!(price(&swollen, limit) >= before);
        }
    }

    fn one(weight: f64) -> Vec<Option<StreamValue>> {
        let lateness = Lateness { d0_us: 30_000_000, d1_us: None, u1: 1.0 };
        vec![Some(StreamValue { weight, ladder: Ladder::TELEMETRY, lateness, is_exempt: false })]
    }

    #[test]
    fn what_is_expected_is_saved_for_only_while_enough_waits() {
        let (values, limits) = (one(1.0), PriceLimits::default());
        let mut solver = Solver::default();
        // Twice what the uplink carries is expected, and nothing waits: thinning now would leave it idle.
        let (forecast_bytes, drain_bytes) = (60_000.0, 8_000.0);
        let market = Market { values: &values, waiting: &[], expected: &[2_000.0], forecast_bytes, drain_bytes };
        let idle = solver.solve(0, &limits, market, None, true);
        assert!(idle.lambda_plan > 0.0 && idle.lambda_drain == 0.0 && idle.lambda == 0.0, "{idle:?}");
        let waiting = [Cohort { stream: 0, bytes: 100_000.0, age_us: 0 }];
        let busy = solver.solve(0, &limits, Market { waiting: &waiting, ..market }, None, true);
        assert!(busy.lambda > 0.0, "{busy:?}");
    }

    #[test]
    fn the_price_holds_still_until_it_would_move_far_and_falls_only_after_the_hold_down() {
        let limits = PriceLimits::default();
        let price = |solver: &mut Solver, now_us: u64, weight: f64, at_once| {
            let waiting = [Cohort { stream: 0, bytes: 100_000.0, age_us: 0 }];
            let (values, expected) = (one(weight), [0.0]);
            let (forecast_bytes, drain_bytes) = (30_000.0, 30_000.0);
            let market = Market { values: &values, waiting: &waiting, expected: &expected, forecast_bytes, drain_bytes };
            solver.solve(now_us, &limits, market, None, at_once).lambda
        };
        let mut solver = Solver::default();
        let first = price(&mut solver, 0, 1.0, false);
        assert!(first > 0.0);
        assert_eq!(price(&mut solver, 1, 1.1, false), first, "not far enough");
        let dearer = price(&mut solver, 2, 2.0, false);
        assert!(dearer > first, "it rises at once");
        assert_eq!(price(&mut solver, 3, 1.0, false), dearer, "it is held down");
        assert_eq!(price(&mut solver, 2 + limits.hold_us, 1.0, false), first);
        assert!(price(&mut solver, 3 + limits.hold_us, 0.9, true) < first, "at once, however little");
    }
}
