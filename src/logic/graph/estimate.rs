//! What is known of an edge: quantities with their units, how old they are, and how far they may be trusted.

use serde::{Deserialize, Serialize};

use crate::health::{COLD_HALF_LIFE_US, Confidence, EVIDENCE_HALF_LIFE_US, UplinkState};

/// A quantity that an edge may have; the unit is in its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Round trip in microseconds.
    RttUs,
    /// Mean difference of successive round trips in microseconds.
    JitterUs,
    /// Packets lost over packets sent, in `[0, 1]`.
    Loss,
    /// Present rate in bits per second.
    GoodputBps,
    /// Rate that it carries as a rule, in bits per second.
    CapacityBps,
    /// Time spent waiting in queues, in microseconds.
    QueueingDelayUs,
    /// Exchanges that failed over all, in `[0, 1]`.
    ErrorRatio,
    /// Price of a megabyte in the operator's currency.
    MoneyPerMb,
    /// Energy for a megabyte in joules.
    EnergyPerMb,
}

impl Quantity {
    /// All of them, in the order of [`Quantity::index`].
    pub const ALL: [Quantity; QUANTITIES] = [
        Quantity::RttUs,
        Quantity::JitterUs,
        Quantity::Loss,
        Quantity::GoodputBps,
        Quantity::CapacityBps,
        Quantity::QueueingDelayUs,
        Quantity::ErrorRatio,
        Quantity::MoneyPerMb,
        Quantity::EnergyPerMb,
    ];

    /// Position in [`Quantity::ALL`]; also its bit on the wire.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word used in answers, with the unit last.
    pub const fn name(self) -> &'static str {
        match self {
            Quantity::RttUs => "rtt_us",
            Quantity::JitterUs => "jitter_us",
            Quantity::Loss => "loss",
            Quantity::GoodputBps => "goodput_bps",
            Quantity::CapacityBps => "capacity_bps",
            Quantity::QueueingDelayUs => "queueing_delay_us",
            Quantity::ErrorRatio => "error_ratio",
            Quantity::MoneyPerMb => "money_per_mb",
            Quantity::EnergyPerMb => "energy_per_mb",
        }
    }

    /// Differences below this matter to nobody, whatever they are as a part.
    pub(super) const fn noise(self) -> f64 {
        match self {
            Quantity::RttUs | Quantity::JitterUs | Quantity::QueueingDelayUs => 2_000.0,
            // One packet of two hundred.
            Quantity::Loss | Quantity::ErrorRatio => 0.005,
            Quantity::GoodputBps | Quantity::CapacityBps => 1_000.0,
            Quantity::MoneyPerMb | Quantity::EnergyPerMb => 0.0,
        }
    }

    /// What is multiplied for the wire, so that the smallest value that matters has three digits.
    pub(super) const fn scale(self) -> f64 {
        match self {
            Quantity::Loss | Quantity::ErrorRatio | Quantity::MoneyPerMb | Quantity::EnergyPerMb => 1e6,
            _ => 1.0,
        }
    }
}

/// How many quantities there are.
pub(super) const QUANTITIES: usize = 9;

/// The verdict on an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EdgeState {
    /// It works.
    Green,
    /// It is late, or nobody knows.
    Yellow,
    /// It is dead.
    Red,
    /// It answers, but data does not pass.
    Blocked,
    /// Idle on purpose.
    Cold,
}

impl EdgeState {
    /// All of them, in the order of their number on the wire, which starts at 1.
    pub const ALL: [EdgeState; 5] = [EdgeState::Green, EdgeState::Yellow, EdgeState::Red, EdgeState::Blocked, EdgeState::Cold];

    /// The word used in answers.
    pub const fn name(self) -> &'static str {
        match self {
            EdgeState::Green => "green",
            EdgeState::Yellow => "yellow",
            EdgeState::Red => "red",
            EdgeState::Blocked => "blocked",
            EdgeState::Cold => "cold",
        }
    }

    /// True if nothing gets through.
    pub const fn is_down(self) -> bool {
        matches!(self, EdgeState::Red | EdgeState::Blocked)
    }
}

impl From<UplinkState> for EdgeState {
    fn from(state: UplinkState) -> EdgeState {
        match state {
            UplinkState::Green => EdgeState::Green,
            UplinkState::Yellow => EdgeState::Yellow,
            UplinkState::Red => EdgeState::Red,
            UplinkState::Blocked => EdgeState::Blocked,
            UplinkState::Cold => EdgeState::Cold,
        }
    }
}

/// What is known of an edge. An edge of which nothing is known has the default: it is only there.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    values: [Option<f64>; QUANTITIES],
    /// The verdict, if there is one.
    pub state: Option<EdgeState>,
    /// Trust in it when it was fresh, in `[0, 1]`.
    pub trust: f64,
    /// How long ago the last evidence was, in microseconds.
    pub age_us: u64,
}

impl Estimate {
    /// A quantity, if it is known.
    pub fn get(&self, quantity: Quantity) -> Option<f64> {
        self.values[quantity.index()]
    }

    /// The same with one quantity more. What is not a finite number from 0 up is not known.
    pub fn with(mut self, quantity: Quantity, value: f64) -> Estimate {
        self.values[quantity.index()] = (value.is_finite() && value >= 0.0).then_some(value);
        self
    }

    /// The same with a verdict.
    pub fn with_state(mut self, state: EdgeState) -> Estimate {
        self.state = Some(state);
        self
    }

    /// The same, from evidence of this age that deserved this trust when it was fresh.
    pub fn with_evidence(mut self, age_us: u64, trust: f64) -> Estimate {
        self.age_us = age_us;
        self.trust = if trust.is_nan() { 0.0 } else { trust.clamp(0.0, 1.0) };
        self
    }

    /// How far it may be trusted now, in `[0, 1]`: old knowledge loses half of it after a minute, of a cold edge after an hour.
    pub fn confidence(&self) -> f64 {
        let is_cold = self.state == Some(EdgeState::Cold);
        let mut decay = Confidence::new(if is_cold { COLD_HALF_LIFE_US } else { EVIDENCE_HALF_LIFE_US });
        decay.renew(0);
        self.trust * decay.value(self.age_us)
    }

    /// True if nothing is known.
    pub fn is_empty(&self) -> bool {
        self.state.is_none() && self.values.iter().all(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_numbers_are_not_known() {
        let odd = [f64::NAN, f64::INFINITY, -1.0, f64::NEG_INFINITY];
        for value in odd {
            let estimate = Estimate::default().with(Quantity::Loss, value).with_evidence(0, value);
            assert_eq!(estimate.get(Quantity::Loss), None);
            assert!((0.0..=1.0).contains(&estimate.trust));
        }
        assert!(Estimate::default().is_empty());
        assert_eq!(Estimate::default().with(Quantity::Loss, 0.0).get(Quantity::Loss), Some(0.0));
        assert!(Quantity::ALL.iter().enumerate().all(|(index, quantity)| quantity.index() == index));
    }

    #[test]
    fn confidence_fades_with_age_and_slower_for_a_cold_edge() {
        let fresh = Estimate::default().with_state(EdgeState::Green).with_evidence(0, 0.8);
        assert_eq!(fresh.confidence(), 0.8);
        assert_eq!(fresh.with_evidence(60_000_000, 0.8).confidence(), 0.4);
        let cold = fresh.with_state(EdgeState::Cold).with_evidence(60_000_000, 0.8);
        assert!(cold.confidence() > 0.79);
    }
}
