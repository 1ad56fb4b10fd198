//! The prices at which what waits and what is expected fits through the uplink in time.
//!
//! One price over a minute would be enough if everything could wait a minute. What is due in ten seconds has to fit into what
//! the uplink carries in ten seconds, and may cost more. So there is a price for each [horizon](HORIZONS): records are grouped
//! by the time that is left to them, and from the nearest horizon on, the groups that are scarcest together get the price at
//! which they fit; what follows shares what is left. Prices fall with the time left: who can wait pays less.

use std::ops::RangeInclusive;

use super::arrivals::Expected;
use super::{Level, StreamValue, Wait};

/// Records of one stream and about one age that wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cohort {
    /// Index of the stream.
    pub stream: u16,
    /// Bytes they would take raw.
    pub bytes: f64,
    /// How long they have waited, and can.
    pub wait: Wait,
}

/// Horizons that have a price of their own.
pub const HORIZONS: usize = 13;
/// They lie at these parts of [`PriceLimits::horizon_us`]: of a minute at 0.2, 0.4, 0.6, 1, 1.6, 2.4, 4, 6, 9, 12, 20, 36 and
/// 60 s. A coarse grid is worse than a single price (measured in the prototype).
const HORIZON_PARTS: [u64; HORIZONS] = [1, 2, 3, 5, 8, 12, 20, 30, 45, 60, 100, 180, 300];

/// What a byte costs, by the time that is left to its record.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Prices {
    horizon_us: u64,
    /// By horizon; never rising.
    by_horizon: [f64; HORIZONS],
}

impl Prices {
    /// The same price for all.
    pub fn flat(lambda: f64) -> Prices {
        Prices { horizon_us: 1, by_horizon: [lambda; HORIZONS] }
    }

    /// The price for a record to which so much time is left; `None` if it has all the time.
    pub fn at(&self, left_us: Option<u64>) -> f64 {
        self.by_horizon[group(left_us, self.horizon_us)]
    }

    /// The price for what has time: the lowest of all.
    pub fn base(&self) -> f64 {
        self.by_horizon[HORIZONS - 1]
    }

    /// True if every byte is free, so that nothing needs to be thinned.
    pub fn is_free(&self) -> bool {
        self.by_horizon[0] <= 0.0
    }
}

/// When the horizon of this group ends, in microseconds.
pub fn horizon_end_us(group: usize, horizon_us: u64) -> u64 {
    horizon_us * HORIZON_PARTS[group] / HORIZON_PARTS[HORIZONS - 1]
}

/// The last horizon that ends before the time that is left.
fn group(left_us: Option<u64>, horizon_us: u64) -> usize {
    let Some(left_us) = left_us else { return HORIZONS - 1 };
    (1..HORIZONS).rev().find(|&group| horizon_end_us(group, horizon_us) <= left_us).unwrap_or(0)
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
    /// A price holds still until it would move by this part of itself.
    pub hysteresis: f64,
    /// Hold-down: a price falls no sooner than this after it last moved, in microseconds. It rises at once.
    pub hold_us: u64,
}

impl Default for PriceLimits {
    /// From the sensitivity tables of the prototype, and then by `weir sim` at four times the rate of recorded links and of those in
    /// `config/links`; the optimum is flat.
    fn default() -> Self {
        PriceLimits { horizon_us: 60_000_000, drain_us: 12_000_000, kappa: 1.1, hysteresis: 0.05, hold_us: 1_000_000 }
    }
}

/// The numbers behind a price.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Explanation {
    /// The price in force for what has time, per byte.
    pub lambda: f64,
    /// All prices in force.
    pub prices: Prices,
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

/// One step of records down their ladder: taken when the price reaches `slope`.
#[derive(Debug, Clone, Copy)]
struct Step {
    slope: f64,
    stream: u16,
    group: usize,
    /// Bytes that the step saves by the horizon, and of what waits.
    plan_bytes: f64,
    drain_bytes: f64,
}

/// Bytes of one stream that are due by one horizon and have the same worth.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    plan_bytes: f64,
    drain_bytes: f64,
}

/// A price lies so far above the step that it is to take, that rounding cannot undo it.
const TAKEN: f64 = 1.0 + 1e-10;
/// In time, late, and worth nothing any more.
const LATE: usize = 3;

/// Finds prices; keeps its work space.
#[derive(Debug, Default)]
pub struct Solver {
    cells: Vec<[[Cell; LATE]; HORIZONS]>,
    steps: Vec<Step>,
    prices: [f64; HORIZONS],
    moved_us: [u64; HORIZONS],
}

/// What a price is made for.
#[derive(Debug, Clone, Copy)]
pub struct Market<'a> {
    /// By stream; `None` for streams that are neither folded nor held, whose bytes come first.
    pub values: &'a [Option<StreamValue>],
    /// What waits.
    pub waiting: &'a [Cohort],
    /// By stream: what is expected to come.
    pub expected: &'a [Expected],
    /// What the uplinks are forecast to carry.
    pub capacity: Capacity,
}

/// Bytes that uplinks are forecast to carry.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Capacity {
    /// By the end of each horizon, see [`horizon_end_us`].
    pub by_horizon: [f64; HORIZONS],
    /// Over [`PriceLimits::drain_us`].
    pub drain_bytes: f64,
}

impl Capacity {
    /// Of two together.
    #[must_use]
    pub fn with(self, other: Capacity) -> Capacity {
        self.each(other, |one, two| one + two)
    }

    /// Of the better of two.
    #[must_use]
    pub fn or_better(self, other: Capacity) -> Capacity {
        self.each(other, f64::max)
    }

    /// So many times as much.
    #[must_use]
    pub fn times(self, factor: f64) -> Capacity {
        self.each(self, |one, _| one * factor)
    }

    fn each(self, other: Capacity, of: impl Fn(f64, f64) -> f64) -> Capacity {
        let by_horizon = std::array::from_fn(|at| of(self.by_horizon[at], other.by_horizon[at]));
        Capacity { by_horizon, drain_bytes: of(self.drain_bytes, other.drain_bytes) }
    }
}

/// What paid uplinks with a budget would carry too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paid {
    /// What a paid byte must be worth.
    pub lambda: f64,
    /// What they carry alone.
    pub capacity: Capacity,
}

impl Solver {
    /// The prices now. With `at_once` they may move at once however little, as after a change of the uplinks.
    ///
    /// Where they would be above what a paid byte must be worth, `paid` carries too, and holds them down to that.
    pub fn solve(
        &mut self,
        now_us: u64,
        limits: &PriceLimits,
        market: Market<'_>,
        paid: Option<Paid>,
        at_once: bool,
    ) -> Explanation {
        let horizon_us = limits.horizon_us;
        self.fill(horizon_us, &market);
        let (wanted, waits) = self.steps_of(market.values);
        let prices_with = |capacity: &Capacity| {
            let drain = self.lowest(waits, capacity.drain_bytes, 0..=HORIZONS - 1, |step| step.drain_bytes);
            (self.nested(wanted, limits.kappa, &capacity.by_horizon), drain)
        };
        let (mut planned, mut lambda_drain) = prices_with(&market.capacity);
        if let Some(paid) = paid.filter(|paid| planned[0].min(lambda_drain) > paid.lambda) {
            let (with_paid, drain) = prices_with(&market.capacity.with(paid.capacity));
            for (lambda, with_paid) in planned.iter_mut().zip(with_paid).filter(|(lambda, _)| **lambda > paid.lambda) {
                *lambda = with_paid.max(paid.lambda);
            }
            lambda_drain = lambda_drain.min(drain.max(paid.lambda));
        }
        let mut above = 0.0;
        for at in (0..HORIZONS).rev() {
            let lambda = planned[at].min(lambda_drain);
            let last = self.prices[at];
            let is_far = (lambda - last).abs() > limits.hysteresis * last.max(lambda);
            let may_fall = lambda > last || now_us >= self.moved_us[at].saturating_add(limits.hold_us);
            if lambda != last && (at_once || is_far && may_fall) {
                (self.prices[at], self.moved_us[at]) = (lambda, now_us);
            }
            // What is due sooner never costs less.
            above = self.prices[at].max(above);
            self.prices[at] = above;
        }
        let prices = Prices { horizon_us, by_horizon: self.prices };
        let next = self.steps.partition_point(|step| step.slope < prices.base());
        Explanation {
            lambda: prices.base(),
            prices,
            lambda_plan: planned[HORIZONS - 1],
            lambda_drain,
            wanted_bytes: wanted.iter().sum(),
            forecast_bytes: market.capacity.by_horizon[HORIZONS - 1],
            waiting_bytes: waits,
            marginal: self.steps.get(next).map(|step| step.stream),
        }
    }

    /// Sums what waits and what is expected by stream, horizon and worth.
    fn fill(&mut self, horizon_us: u64, market: &Market<'_>) {
        self.cells.clear();
        self.cells.resize(market.values.len(), Default::default());
        for cohort in market.waiting {
            let value = market.values[usize::from(cohort.stream)];
            let left_us = value.and_then(|value| value.left_us(cohort.wait));
            // What may wait longer than the horizon is due in it in part.
            let part = left_us.map_or(1.0, |left_us| (horizon_us as f64 / (left_us as f64).max(1.0)).min(1.0));
            let late = value.map_or(0, |value| match value.lateness.factor(cohort.wait.age_us) {
                factor if factor >= 1.0 => 0,
                factor if factor > 0.0 => 1,
                _ => 2,
            });
            let cell = &mut self.cells[usize::from(cohort.stream)][group(left_us, horizon_us)][late];
            cell.plan_bytes += cohort.bytes * part;
            cell.drain_bytes += cohort.bytes;
        }
        for (stream, expected) in market.expected.iter().enumerate() {
            // What is never held is sent as it comes; of the rest, what comes now is due when its time is over.
            let value = market.values[stream].filter(|value| !value.is_exempt);
            let due_s = value.and_then(|value| value.lateness.left_us(0)).unwrap_or(0) as f64 / 1e6;
            let mut before = 0.0;
            for at in 0..HORIZONS {
                let end_s = horizon_end_us(at, horizon_us) as f64 / 1e6;
                let within_s = if at == HORIZONS - 1 { end_s } else { (end_s - due_s).max(0.0) };
                let bytes = expected.bytes(within_s);
                self.cells[stream][at][0].plan_bytes += (bytes - before).max(0.0);
                before = bytes;
            }
        }
    }

    /// Makes the steps of all cells, sorted; returns the raw bytes that are wanted by horizon, and those that wait.
    fn steps_of(&mut self, values: &[Option<StreamValue>]) -> ([f64; HORIZONS], f64) {
        let (mut wanted, mut waits) = ([0.0; HORIZONS], 0.0);
        self.steps.clear();
        for (stream, groups) in self.cells.iter().enumerate() {
            for (group, cells) in groups.iter().enumerate() {
                for (late, cell) in cells.iter().enumerate().filter(|(_, cell)| cell.plan_bytes > 0.0 || cell.drain_bytes > 0.0)
                {
                    wanted[group] += cell.plan_bytes;
                    waits += cell.drain_bytes;
                    let Some(value) = values[stream].filter(|value| !value.is_exempt) else { continue };
                    let weight = value.weight * [1.0, value.lateness.u1, 0.0][late];
                    for (slope, saved) in slopes(&value) {
                        let (plan_bytes, drain_bytes) = (cell.plan_bytes * saved, cell.drain_bytes * saved);
                        self.steps.push(Step { slope: weight * slope, stream: stream as u16, group, plan_bytes, drain_bytes });
                    }
                }
            }
        }
        self.steps.sort_by(|a, b| a.slope.total_cmp(&b.slope));
        (wanted, waits)
    }

    /// From the nearest horizon on: the groups that are scarcest together get the price at which they fit.
    fn nested(&self, wanted: [f64; HORIZONS], kappa: f64, forecast_bytes: &[f64; HORIZONS]) -> [f64; HORIZONS] {
        let mut prices = [0.0; HORIZONS];
        let (mut first, mut used) = (0, 0.0);
        while first < HORIZONS {
            let (mut lambda, mut last, mut need) = (-1.0, first, 0.0);
            for to in first..HORIZONS {
                need += wanted[to];
                let room = (kappa * forecast_bytes[to] - used).max(0.0);
                let found = self.lowest(need, room, first..=to, |step| step.plan_bytes);
                if found >= lambda {
                    (lambda, last) = (found, to);
                }
            }
            prices[first..=last].fill(lambda);
            let taken = self.steps.iter().take_while(|step| step.slope <= lambda);
            let saved: f64 = taken.filter(|step| (first..=last).contains(&step.group)).map(|step| step.plan_bytes).sum();
            used += (wanted[first..=last].iter().sum::<f64>() - if lambda > 0.0 { saved } else { 0.0 }).max(0.0);
            first = last + 1;
        }
        prices
    }

    /// The lowest price at which what these groups need has shrunk to `limit`; the highest of all if it never does.
    fn lowest(&self, mut need: f64, limit: f64, groups: RangeInclusive<usize>, saved: impl Fn(&Step) -> f64) -> f64 {
        let mut lambda = 0.0;
        for step in self.steps.iter().filter(|step| groups.contains(&step.group)) {
            if need <= limit {
                break;
            }
            need -= saved(step);
            lambda = step.slope * TAKEN;
        }
        lambda
    }
}

/// The steps down a ladder, from raw to held: at which price for a unit of weight each is taken, and the part of the raw bytes
/// that it saves.
fn slopes(value: &StreamValue) -> impl Iterator<Item = (f64, f64)> {
    let mut at: Option<(f64, f64)> = None;
    let levels = Level::ALL.map(|level| value.ladder.worth(level).map(|worth| (level.bytes(), worth)));
    levels.into_iter().flatten().chain([(0.0, 0.0)]).filter_map(move |next| {
        let (bytes, worth) = at.replace(next)?;
        let saved = bytes - next.0;
        Some(((worth - next.1) / saved, saved))
    })
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
                    best(&value.ladder, value.weight_at(cohort.wait.age_us), lambda).map_or(0.0, Level::bytes)
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
        let limits = PriceLimits { horizon_us: 1_000_000_000, kappa: 1.0, ..PriceLimits::default() };
        let expected = vec![Expected::default(); values.len()];
        let capacity = Capacity { by_horizon: [plan; HORIZONS], drain_bytes: drain };
        let market = Market { values, waiting: cohorts, expected: &expected, capacity };
        Solver::default().solve(0, &limits, market, None, true)
    }

    proptest! {
        #[test]
        fn the_price_is_the_lowest_at_which_all_fits(values in values(), cohorts in cohorts(), share in 0.0f64..1.2) {
            let cohorts: Vec<Cohort> = cohorts
                .into_iter()
                .map(|(stream, bytes, age_us)| Cohort { stream: stream % values.len() as u16, bytes, wait: Wait::of_age(age_us) })
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
                .map(|(stream, bytes, age_us)| Cohort { stream: stream % values.len() as u16, bytes, wait: Wait::of_age(age_us) })
                .collect();
            let price = |cohorts: &[Cohort], limit| solve(&values, cohorts, limit, limit).lambda;
            let before = price(&cohorts, limit);
            prop_assert!(price(&cohorts, limit * more) <= before);
            let swollen: Vec<Cohort> = cohorts.iter().map(|c| Cohort { bytes: c.bytes * more, ..*c }).collect();
            prop_assert!(price(&swollen, limit) >= before);
        }
    }

    /// What a link of a steady rate carries by each horizon of a minute.
    fn evenly(bytes_per_s: f64) -> [f64; HORIZONS] {
        std::array::from_fn(|at| horizon_end_us(at, 60_000_000) as f64 / 1e6 * bytes_per_s)
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
        let capacity = Capacity { by_horizon: evenly(1_000.0), drain_bytes: 8_000.0 };
        let expected = [Expected { mean: 2_000.0, now: 2_000.0 }];
        let market = Market { values: &values, waiting: &[], expected: &expected, capacity };
        let idle = solver.solve(0, &limits, market, None, true);
        assert!(idle.lambda_plan > 0.0 && idle.lambda_drain == 0.0 && idle.lambda == 0.0, "{idle:?}");
        let waiting = [Cohort { stream: 0, bytes: 100_000.0, wait: Wait::of_age(0) }];
        let busy = solver.solve(0, &limits, Market { waiting: &waiting, ..market }, None, true);
        assert!(busy.lambda > 0.0, "{busy:?}");
    }

    #[test]
    fn the_price_holds_still_until_it_would_move_far_and_falls_only_after_the_hold_down() {
        let limits = PriceLimits::default();
        let price = |solver: &mut Solver, now_us: u64, weight: f64, at_once| {
            let waiting = [Cohort { stream: 0, bytes: 100_000.0, wait: Wait::of_age(0) }];
            let (values, expected) = (one(weight), [Expected::default()]);
            let capacity = Capacity { by_horizon: [30_000.0; HORIZONS], drain_bytes: 30_000.0 };
            let market = Market { values: &values, waiting: &waiting, expected: &expected, capacity };
            solver.solve(now_us, &limits, market, None, at_once).lambda
        };
        let mut solver = Solver::default();
        let first = price(&mut solver, 0, 1.0, false);
        assert!(first > 0.0);
        assert_eq!(price(&mut solver, 1, 1.04, false), first, "not far enough");
        let dearer = price(&mut solver, 2, 2.0, false);
        assert!(dearer > first, "it rises at once");
        assert_eq!(price(&mut solver, 3, 1.0, false), dearer, "it is held down");
        assert_eq!(price(&mut solver, 2 + limits.hold_us, 1.0, false), first);
        assert!(price(&mut solver, 3 + limits.hold_us, 0.9, true) < first, "at once, however little");
    }

    #[test]
    fn what_is_due_soon_and_too_much_costs_more_than_what_can_wait() {
        let limits = PriceLimits::default();
        let value = |d0_us| {
            let lateness = Lateness { d0_us, d1_us: Some(d0_us), u1: 0.0 };
            Some(StreamValue { weight: 1.0, ladder: Ladder::TELEMETRY, lateness, is_exempt: false })
        };
        let values = [value(10_000_000), value(60_000_000)];
        let waiting = |soon, later| {
            [
                Cohort { stream: 0, bytes: soon, wait: Wait::of_age(0) },
                Cohort { stream: 1, bytes: later, wait: Wait::of_age(0) },
            ]
        };
        let solve = |waiting: &[Cohort]| {
            let expected = [Expected::default(); 2];
            let capacity = Capacity { by_horizon: evenly(1_000.0), drain_bytes: 1.0 };
            let market = Market { values: &values, waiting, expected: &expected, capacity };
            Solver::default().solve(0, &limits, market, None, true).prices
        };
        // 20 s of bytes are due within ten, and a minute has room for all that waits.
        let prices = solve(&waiting(20_000.0, 10_000.0));
        assert!(prices.at(Some(10_000_000)) > 0.0 && prices.base() == 0.0, "{prices:?}");
        // Where all is scarce there is one price, and what is due soon does not cost less.
        let prices = solve(&waiting(5_000.0, 200_000.0));
        assert!(prices.base() > 0.0 && prices.at(Some(0)) == prices.at(None), "{prices:?}");
    }
}
