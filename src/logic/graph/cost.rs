//! What a step on a way costs, in seconds.
//!
//! ```text
//! delay  = rtt / 2 + jitter + queueing + time to send 16 KiB          what is not known counts as nothing
//! tries  = 1 / ((1 - loss) (1 - errors))                              each that fails is made again
//! cost   = delay x tries x (2 - confidence) + money x 10 s + energy x 0.05 s + wake
//! ```
//! The time to send is at the better of present and usual rate: an idle link delivers nothing, and that says nothing.
//! What is old or doubtful may cost up to twice as much; a verdict of yellow halves the confidence. An edge that is cold must
//! be woken first: three round trips, and a second where none is known. A unit of money for a megabyte is worth ten seconds:
//! an uplink at 0.01 wins unless a free one is 0.1 s slower. An edge that is red or blocked is no way at all.

use super::estimate::{EdgeState, Estimate, Quantity};

/// What a step costs, by its parts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cost {
    /// Expected delay with repetitions, in seconds.
    pub(super) delay_s: f64,
    /// Part of tries that fail.
    pub(super) loss: f64,
    /// Price of a megabyte.
    pub(super) money_per_mb: f64,
    /// All together.
    pub(super) total_s: f64,
}

impl Cost {
    /// Of an edge that can be used.
    pub(super) fn of(estimate: &Estimate) -> Cost {
        if estimate.is_empty() {
            return Cost { total_s: STEP_S, ..Cost::default() };
        }
        let value = |quantity| estimate.get(quantity).unwrap_or(0.0);
        let rate_bps = value(Quantity::GoodputBps).max(value(Quantity::CapacityBps));
        let send_s = if rate_bps > 0.0 { (BLOCK_BITS / rate_bps).min(SEND_S_MAX) } else { 0.0 };
        let waits_us = value(Quantity::RttUs) / 2.0 + value(Quantity::JitterUs) + value(Quantity::QueueingDelayUs);
        let arrives = (1.0 - value(Quantity::Loss).min(1.0)) * (1.0 - value(Quantity::ErrorRatio).min(1.0));
        let delay_s = (waits_us / 1e6 + send_s) / arrives.max(1.0 / TRIES_MAX);
        let trust = match estimate.state {
            Some(EdgeState::Yellow) => estimate.confidence() / 2.0,
            _ => estimate.confidence(),
        };
        let wake_s = match (estimate.state, estimate.get(Quantity::RttUs)) {
            (Some(EdgeState::Cold), Some(rtt_us)) => 3.0 * rtt_us / 1e6,
            (Some(EdgeState::Cold), None) => 1.0,
            _ => 0.0,
        };
        let money_per_mb = value(Quantity::MoneyPerMb);
        let price_s = money_per_mb * MONEY_S + value(Quantity::EnergyPerMb) * ENERGY_S;
        let total_s = STEP_S + delay_s * (2.0 - trust) + price_s + wake_s;
        Cost { delay_s, loss: 1.0 - arrives, money_per_mb, total_s }
    }

    /// Of one step after another.
    pub(super) fn then(self, next: Cost) -> Cost {
        Cost {
            delay_s: self.delay_s + next.delay_s,
            loss: 1.0 - (1.0 - self.loss) * (1.0 - next.loss),
            money_per_mb: self.money_per_mb + next.money_per_mb,
            total_s: self.total_s + next.total_s,
        }
    }
}

/// A frame: what must at least be sent before anything is of use.
const BLOCK_BITS: f64 = 16.0 * 1024.0 * 8.0;
/// A rate of nothing is a link that is down, and that its state says.
const SEND_S_MAX: f64 = 3_600.0;
/// What fails 19 times of 20 costs no more than that: its state says whether to use it.
const TRIES_MAX: f64 = 20.0;
/// A unit of money for a megabyte, in seconds.
const MONEY_S: f64 = 10.0;
/// A joule for a megabyte, in seconds: LTE takes about 5 J.
const ENERGY_S: f64 = 0.05;
/// Of ways that cost the same, the shorter.
const STEP_S: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;

    fn link(rtt_us: f64) -> Estimate {
        Estimate::default().with(Quantity::RttUs, rtt_us).with_state(EdgeState::Green).with_evidence(0, 1.0)
    }

    #[test]
    fn each_part_costs_what_the_rule_says() {
        let total = |estimate: Estimate| Cost::of(&estimate).total_s - STEP_S;
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} and {b}");
        close(total(link(100_000.0)), 0.05);
        close(total(link(100_000.0).with(Quantity::Loss, 0.5)), 0.1);
        close(total(link(100_000.0).with_evidence(0, 0.0)), 0.1);
        close(total(link(100_000.0).with_state(EdgeState::Yellow)), 0.075);
        close(total(link(100_000.0).with_state(EdgeState::Cold)), 0.35);
        close(total(link(100_000.0).with(Quantity::MoneyPerMb, 0.01)), 0.15);
        close(total(link(0.0).with(Quantity::GoodputBps, 10.0).with(Quantity::CapacityBps, 131_072.0)), 1.0);
        assert_eq!(Cost::of(&Estimate::default()).total_s, STEP_S);
        let both = Cost::of(&link(1.0).with(Quantity::Loss, 0.5)).then(Cost::of(&link(1.0).with(Quantity::Loss, 0.5)));
        assert_eq!(both.loss, 0.75);
    }
}
