//! How far an answer may be trusted by its age.
//!
//! Nothing that was measured becomes false at a certain second; it only says less and less. Half of the confidence is
//! gone after a half life. Several opinions are averaged by their confidence, and the result is trusted like the best of
//! them and no more: neighbours behind one carrier are not independent witnesses.

use super::decay::left_after;

/// Confidence in something that was last seen some time ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confidence {
    half_life_us: u64,
    evidence_us: Option<u64>,
}

impl Confidence {
    /// No evidence yet: confidence 0. Half of it goes every `half_life_us`.
    pub fn new(half_life_us: u64) -> Self {
        Confidence { half_life_us, evidence_us: None }
    }

    /// It fades at another pace from now on.
    pub fn set_half_life(&mut self, half_life_us: u64) {
        self.half_life_us = half_life_us;
    }

    /// There is fresh evidence.
    pub fn renew(&mut self, now_us: u64) {
        self.evidence_us = Some(self.evidence_us.map_or(now_us, |at_us| at_us.max(now_us)));
    }

    /// Between 0 (nothing is known) and 1 (seen just now).
    pub fn value(&self, now_us: u64) -> f64 {
        self.evidence_us.map_or(0.0, |at_us| left_after(now_us.saturating_sub(at_us), self.half_life_us))
    }

    /// Service time of the last evidence in microseconds.
    pub fn evidence_us(&self) -> Option<u64> {
        self.evidence_us
    }
}

/// One value of several, each with its confidence in `[0, 1]`: the mean weighed by confidence, and the highest confidence.
///
/// What is not a finite value, or has no confidence, has no say; `None` if nobody has.
pub fn combine(opinions: impl IntoIterator<Item = (f64, f64)>) -> Option<(f64, f64)> {
    let (mut mean, mut weight, mut best) = (0.0, 0.0, 0.0f64);
    for (value, confidence) in opinions {
        if !value.is_finite() || confidence.is_nan() || confidence <= 0.0 {
            continue;
        }
        let confidence = confidence.min(1.0);
        weight += confidence;
        let share: f64 = confidence / weight;
        // A weighed mean, step by step: sums of large values could overflow, this cannot.
        mean = mean * (1.0 - share) + value * share;
        best = best.max(confidence);
    }
    (weight > 0.0).then_some((mean, best))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn confidence_halves_with_age_and_is_nought_without_evidence() {
        let mut confidence = Confidence::new(60_000_000);
        assert_eq!(confidence.value(1 << 40), 0.0);
        confidence.renew(1_000);
        assert_eq!(confidence.value(1_000), 1.0);
        assert_eq!(confidence.value(60_001_000), 0.5);
        assert_eq!(confidence.value(120_001_000), 0.25);
        assert_eq!(confidence.value(u64::MAX), 0.0);
        confidence.renew(500);
        assert_eq!(confidence.value(1_000), 1.0, "older evidence takes nothing away");
    }

    #[test]
    fn a_confident_opinion_outweighs_a_doubtful_one() {
        let (value, confidence) = combine([(100.0, 0.9), (0.0, 0.1), (f64::NAN, 1.0), (7.0, 0.0)]).expect("opinions");
        assert!((value - 90.0).abs() < 1e-9, "{value}");
        assert_eq!(confidence, 0.9);
        assert_eq!(combine([(f64::INFINITY, 1.0), (1.0, f64::NAN)]), None);
    }

    proptest! {
        #[test]
        fn confidence_never_rises_with_age(half_life_us in 1u64..100_000_000_000, age_us in 0u64..1_000_000_000_000, more_us in 0u64..1_000_000_000) {
            let mut confidence = Confidence::new(half_life_us);
            confidence.renew(0);
            let (young, old) = (confidence.value(age_us), confidence.value(age_us + more_us));
            prop_assert!((0.0..=1.0).contains(&old) && old <= young, "{young} at {age_us}, {old} at {}", age_us + more_us);
        }

        #[test]
        fn the_combination_lies_among_the_opinions(opinions in proptest::collection::vec((-1e300..1e300, 1e-12..1.0f64), 1..20)) {
            let (value, confidence) = combine(opinions.iter().copied()).expect("all have a say");
            let low = opinions.iter().fold(f64::INFINITY, |low, opinion| low.min(opinion.0));
            let high = opinions.iter().fold(f64::NEG_INFINITY, |high, opinion| high.max(opinion.0));
            let rounding = 1e-12 * low.abs().max(high.abs());
            prop_assert!(value.is_finite() && low - rounding <= value && value <= high + rounding);
            prop_assert_eq!(confidence, opinions.iter().fold(0.0, |best, opinion| f64::max(best, opinion.1)));
        }
    }
}
