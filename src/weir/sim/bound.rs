//! What no policy can exceed: the most that could be had by knowing the whole run in advance.
//!
//! Choosing for each record a fidelity and a moment is a large linear program. Its dual needs no solver: charge
//! each second's capacity a price, and let every record take the offer that is best for itself. Whatever the
//! prices, the sum
//!
//! ```text
//! bound(price) = sum of price[t] x capacity[t]
//!              + sum over cohorts of max(0, max over levels of  worth x v x u - bytes x the lowest price in time)
//! ```
//!
//! is at least what any schedule earns (weak duality), so a poor search can only make the bound loose,
//! never wrong. The search goes downhill in `ln price` with Adam; the lowest prices within a deadline are
//! sliding minima, so that one step is linear in the seconds. Measured elsewhere against a solver: within 0.12 % of
//! the optimum.
//!
//! It is a bound for real transports too: records may be divided, the buffer has no limit, nothing is lost or has headers,
//! and lateness is counted in whole seconds, rounded in favour of the policy.

use std::collections::BTreeMap;

use super::{
    arrivals::Arrival,
    workload::{LEVEL_BYTES, Workload},
};

/// Iterations of the search. Source of all constants here: the reference results, within 0.12 % of a solver.
const ITERATIONS: usize = 2_500;
const STEP: f64 = 0.15;
const MOMENTUM: f64 = 0.9;
const SECOND_MOMENT: f64 = 0.99;
const EPSILON: f64 = 1e-8;
const LN_PRICE_MIN: f64 = -12.0;
const LN_PRICE_MAX: f64 = 8.0;
/// Weight of the newest prices in the running average.
const AVERAGE_WEIGHT: f64 = 0.01;
/// How often the average is evaluated; it moves slowly.
const AVERAGE_EVERY: usize = 10;
const MBIT_PER_BYTE: f64 = 8e-6;

/// The bound and what shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    /// No policy earns more.
    pub value: f64,
    /// Prices of each second, per Mbit: what a clairvoyant would have charged.
    pub prices: Vec<f64>,
}

/// The dual problem of one run.
#[derive(Debug, Clone)]
pub struct Dual {
    /// Mbit of each second; behind them, if there is a metered link, the Mbit of its budget.
    capacity: Vec<f64>,
    /// Mbit that the metered link carries in each second; empty without one.
    paid: Vec<f64>,
    /// Lengths in seconds of the times in which something may be sent, each once.
    horizons: Vec<usize>,
    cohorts: Vec<Cohort>,
    /// What cohorts choose from, by stream.
    offers: Vec<Vec<Offer>>,
}

/// Records of a stream that arrive in the same second and are worth the same per bit.
#[derive(Debug, Clone, Copy)]
struct Cohort {
    stream: usize,
    slot: usize,
    mbit: f64,
    weight: f64,
}

/// A level, sent within a horizon.
#[derive(Debug, Clone, Copy)]
struct Offer {
    horizon: usize,
    worth: f64,
    bytes: f64,
}

impl Dual {
    /// The problem of sending `records` over a link that carries `capacity` bytes in each second.
    pub fn new(workload: &Workload, records: &[Arrival], capacity: &[f64]) -> Self {
        let last = capacity.len().saturating_sub(1);
        let mut horizons: Vec<usize> = Vec::new();
        let mut horizon = |slots: usize| {
            let slots = slots.min(last);
            horizons.iter().position(|known| *known == slots).unwrap_or_else(|| {
                horizons.push(slots);
                horizons.len() - 1
            })
        };
        let offers = workload.stream.iter().map(|stream| {
            let slots = |us: u64| usize::try_from(us.div_ceil(1_000_000)).unwrap_or(usize::MAX);
            let mut offers = Vec::new();
            let mut within = |horizon: usize, useful: f64| {
                let levels = stream.fidelity.iter().zip(LEVEL_BYTES);
                offers.extend(levels.map(|(worth, bytes)| Offer { horizon, worth: worth * useful, bytes }));
            };
            within(horizon(slots(stream.deadline.as_micros())), 1.0);
            if stream.late_value > 0.0 {
                within(horizon(stream.late_until.map_or(last, |until| slots(until.as_micros()))), stream.late_value);
            }
            offers
        });
        let offers = offers.collect();
        let capacity = capacity.iter().map(|bytes| bytes * MBIT_PER_BYTE).collect();
        Self { capacity, paid: Vec::new(), horizons, cohorts: cohorts(records), offers }
    }

    /// The same with a metered link beside it, that carries so many bytes in each second and `budget` bytes in all.
    ///
    /// It adds a price of the budget, which is the last of all prices: `price x budget + sum of paid[t] x max(0, price[t] - price)`.
    pub fn with_paid(mut self, paid: &[f64], budget: f64) -> Self {
        self.paid = (0..self.capacity.len()).map(|t| paid.get(t).map_or(0.0, |bytes| bytes * MBIT_PER_BYTE)).collect();
        self.capacity.push(budget * MBIT_PER_BYTE);
        self
    }

    /// Seconds of the run.
    fn slots(&self) -> usize {
        self.capacity.len() - usize::from(!self.paid.is_empty())
    }

    /// Searches for the lowest bound.
    pub fn minimise(&self) -> Bound {
        let count = self.capacity.len();
        let mean = (self.capacity.iter().sum::<f64>() / count.max(1) as f64).max(f64::MIN_POSITIVE);
        let (mut ln_prices, mut first, mut second) = (vec![0.0; count], vec![0.0; count], vec![0.0; count]);
        let (mut prices, mut average) = (vec![1.0; count], vec![1.0; count]);
        let mut used = vec![0.0; count];
        let mut minima = Minima::new(self.horizons.len(), self.slots());
        let mut best = Bound { value: f64::INFINITY, prices: prices.clone() };
        let (mut first_share, mut second_share) = (1.0, 1.0);
        for iteration in 0..ITERATIONS {
            best.offer(self.evaluate(&prices, &mut minima, Some(&mut used)), &prices);
            first_share *= MOMENTUM;
            second_share *= SECOND_MOMENT;
            let step = STEP * (1.0 - iteration as f64 / ITERATIONS as f64);
            for t in 0..count {
                let slope = (self.capacity[t] - used[t]) * prices[t] / mean;
                first[t] = MOMENTUM * first[t] + (1.0 - MOMENTUM) * slope;
                second[t] = SECOND_MOMENT * second[t] + (1.0 - SECOND_MOMENT) * slope * slope;
                let scale = (second[t] / (1.0 - second_share)).sqrt() + EPSILON;
                ln_prices[t] = (ln_prices[t] - step * first[t] / (1.0 - first_share) / scale).clamp(LN_PRICE_MIN, LN_PRICE_MAX);
                prices[t] = f64::exp(ln_prices[t]);
                average[t] += AVERAGE_WEIGHT * (prices[t] - average[t]);
            }
            if iteration % AVERAGE_EVERY == 0 {
                best.offer(self.evaluate(&average, &mut minima, None), &average);
            }
        }
        best.offer(self.evaluate(&prices, &mut minima, None), &prices);
        best
    }

    /// The bound that a price path gives; any path gives one. Prices are per Mbit and not negative.
    pub fn bound_of(&self, prices: &[f64]) -> f64 {
        self.evaluate(prices, &mut Minima::new(self.horizons.len(), self.slots()), None)
    }

    /// The bound that a price path gives without a metered link, by second: what the capacity of each costs, and what the cohorts gain whose cheapest
    /// second it is.
    pub fn values(&self, prices: &[f64]) -> Vec<f64> {
        let mut minima = Minima::new(self.horizons.len(), self.capacity.len());
        for (index, slots) in self.horizons.iter().enumerate() {
            minima.slide(index, prices, *slots);
        }
        let mut values: Vec<f64> = prices.iter().zip(&self.capacity).map(|(price, mbit)| price * mbit).collect();
        for cohort in &self.cohorts {
            if let Some((surplus, offer)) = self.choice(cohort, &minima) {
                values[minima.slots[offer.horizon][cohort.slot]] += cohort.mbit * surplus;
            }
        }
        values
    }

    /// The offer that is best for a cohort, and what it gains by it; `None` if none is worth its price.
    fn choice(&self, cohort: &Cohort, minima: &Minima) -> Option<(f64, &Offer)> {
        let (mut surplus, mut chosen) = (0.0, None);
        for offer in &self.offers[cohort.stream] {
            let gain = cohort.weight * offer.worth - offer.bytes * minima.prices[offer.horizon][cohort.slot];
            if gain > surplus {
                (surplus, chosen) = (gain, Some(offer));
            }
        }
        chosen.map(|offer| (surplus, offer))
    }

    /// The bound, and into `used` the Mbit that cohorts would send in each second.
    fn evaluate(&self, prices: &[f64], minima: &mut Minima, mut used: Option<&mut Vec<f64>>) -> f64 {
        let (of_seconds, of_budget) = prices.split_at(self.slots());
        for (index, slots) in self.horizons.iter().enumerate() {
            minima.slide(index, of_seconds, *slots);
        }
        if let Some(used) = used.as_deref_mut() {
            used.fill(0.0);
        }
        let mut bound: f64 = prices.iter().zip(&self.capacity).map(|(price, mbit)| price * mbit).sum();
        for cohort in &self.cohorts {
            let Some((surplus, offer)) = self.choice(cohort, minima) else { continue };
            bound += cohort.mbit * surplus;
            if let Some(used) = used.as_deref_mut() {
                used[minima.slots[offer.horizon][cohort.slot]] += cohort.mbit * offer.bytes;
            }
        }
        for (t, mbit) in self.paid.iter().enumerate().filter(|(t, _)| of_seconds[*t] > of_budget[0]) {
            bound += mbit * (of_seconds[t] - of_budget[0]);
            if let Some(used) = used.as_deref_mut() {
                used[t] -= mbit;
                used[of_seconds.len()] += mbit;
            }
        }
        bound
    }
}

impl Bound {
    fn offer(&mut self, value: f64, prices: &[f64]) {
        if value < self.value {
            self.value = value;
            self.prices.copy_from_slice(prices);
        }
    }
}

/// For each horizon and second, the lowest price from that second on, and where it is.
struct Minima {
    prices: Vec<Vec<f64>>,
    slots: Vec<Vec<usize>>,
    /// Seconds that may still become a minimum, prices falling from front to back. A vector with a moving front:
    /// each second enters once.
    candidates: Vec<usize>,
}

impl Minima {
    fn new(horizons: usize, slots: usize) -> Self {
        let (prices, slot_indices) = (vec![vec![0.0; slots]; horizons], vec![vec![0; slots]; horizons]);
        Self { prices, slots: slot_indices, candidates: Vec::with_capacity(slots) }
    }

    /// Minima of `prices` over `t..=t + slots`, from the last second to the first; the earlier of equals.
    fn slide(&mut self, horizon: usize, prices: &[f64], slots: usize) {
        self.candidates.clear();
        let mut front = 0;
        for t in (0..prices.len()).rev() {
            while self.candidates.len() > front && self.candidates.last().is_some_and(|last| prices[*last] >= prices[t]) {
                self.candidates.pop();
            }
            self.candidates.push(t);
            while self.candidates[front] > t + slots {
                front += 1;
            }
            let lowest = self.candidates[front];
            self.prices[horizon][t] = prices[lowest];
            self.slots[horizon][t] = lowest;
        }
    }
}

fn cohorts(records: &[Arrival]) -> Vec<Cohort> {
    let mut bytes: BTreeMap<(usize, usize, u64), f64> = BTreeMap::new();
    for record in records {
        let key = (usize::from(record.stream), (record.at_us / 1_000_000) as usize, record.weight.to_bits());
        *bytes.entry(key).or_default() += f64::from(record.bytes);
    }
    let cohort =
        |((stream, slot, weight), bytes)| Cohort { stream, slot, mbit: bytes * MBIT_PER_BYTE, weight: f64::from_bits(weight) };
    bytes.into_iter().map(cohort).collect()
}

#[cfg(test)]
mod tests;
