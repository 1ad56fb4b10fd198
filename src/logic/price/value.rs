//! What the records of a stream are worth: by their bytes, by how finely they are sent, and by how late they come.

use super::{Ladder, Level, Prices};
use crate::ids::Class;

/// Weights are written for a megabit.
const BYTES_PER_MBIT: f64 = 125_000.0;

/// How worth falls with age: whole until `d0`, `u1` of it until `d1`, nothing after.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lateness {
    /// Age in microseconds up to which a record is worth all.
    pub d0_us: u64,
    /// Age in microseconds from which it is worth nothing; `None` if that never comes. Not below `d0_us`.
    pub d1_us: Option<u64>,
    /// Part of the worth left between the two, 0 to 1.
    pub u1: f64,
}

impl Lateness {
    /// Part of the worth that is left at this age.
    pub fn factor(&self, age_us: u64) -> f64 {
        match self.d1_us {
            _ if age_us <= self.d0_us => 1.0,
            Some(d1_us) if age_us > d1_us => 0.0,
            _ => self.u1,
        }
    }

    /// Microseconds until the worth falls next; `None` if it does not any more.
    pub fn left_us(&self, age_us: u64) -> Option<u64> {
        if age_us <= self.d0_us && (self.u1 < 1.0 || self.d1_us.is_some()) {
            return Some(self.d0_us - age_us);
        }
        self.d1_us?.checked_sub(age_us)
    }
}

/// How long a record has waited, and how long it still can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Its age in microseconds, when it will have come if it is sent now.
    pub age_us: u64,
    /// Microseconds until its lane is expected to be so full that it is given up; [`Wait::FOR_EVER`] if that is not expected.
    pub kept_us: u64,
}

impl Wait {
    /// For [`Wait::kept_us`].
    pub const FOR_EVER: u64 = u64::MAX;

    /// Of a record that nothing pushes out.
    pub const fn of_age(age_us: u64) -> Wait {
        Wait { age_us, kept_us: Wait::FOR_EVER }
    }
}

/// The value of a stream's records.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StreamValue {
    /// Worth of a raw byte in time.
    pub weight: f64,
    /// Its levels, down to its floor.
    pub ladder: Ladder,
    /// How its worth falls with age.
    pub lateness: Lateness,
    /// True if it is sent whatever the price, and never folded: `critical`.
    pub is_exempt: bool,
}

impl StreamValue {
    /// What records of a class are worth beside others when nobody says: from class to class about a third, raw, within a minute.
    pub fn usual(class: Class) -> StreamValue {
        let weight = [40.0, 10.0, 3.0, 1.0][class.index()] / BYTES_PER_MBIT;
        let lateness = Lateness { d0_us: 60_000_000, d1_us: None, u1: 0.2 };
        StreamValue { weight, ladder: Ladder::RAW, lateness, is_exempt: true }
    }

    /// Worth of a raw byte at this age.
    pub fn weight_at(&self, age_us: u64) -> f64 {
        self.weight * self.lateness.factor(age_us)
    }

    /// Microseconds until a record of this wait loses worth or is given up; `None` if neither will be.
    pub fn left_us(&self, wait: Wait) -> Option<u64> {
        let left_us = self.lateness.left_us(wait.age_us);
        if wait.kept_us == Wait::FOR_EVER { left_us } else { Some(left_us.map_or(wait.kept_us, |us| us.min(wait.kept_us))) }
    }

    /// The level worth most at the price for a record of this wait.
    pub fn level_at(&self, wait: Wait, prices: &Prices) -> Option<Level> {
        self.level(wait.age_us, prices.at(self.left_us(wait)))
    }

    /// The level worth most at price `lambda` per byte, for a record of this age; `None` if none is worth its bytes, so that
    /// the record is held. Of two that are worth the same, the coarser.
    pub fn level(&self, age_us: u64, lambda: f64) -> Option<Level> {
        if self.is_exempt {
            return Some(Level::Raw);
        }
        best(&self.ladder, self.weight_at(age_us), lambda)
    }
}

/// The level of `ladder` with the most `weight * worth - lambda * bytes` for each raw byte; `None` if that is negative.
pub(super) fn best(ladder: &Ladder, weight: f64, lambda: f64) -> Option<Level> {
    if lambda <= 0.0 {
        return Some(Level::Raw);
    }
    let mut best = None;
    let mut most = 0.0;
    for (level, worth) in ladder.levels() {
        let surplus = weight * worth - lambda * level.bytes();
        if surplus >= most && (surplus > 0.0 || best.is_some()) {
            (best, most) = (Some(level), surplus);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = StreamValue> {
        let ladder = prop_oneof![Just(Ladder::RAW), Just(Ladder::TELEMETRY), Just(Ladder::WAVE), Just(Ladder::LOG)];
        (0.001f64..100.0, ladder, 0usize..5, 1u64..10_000, 0u64..10_000, 0.0f64..1.0, any::<bool>()).prop_map(
            |(weight, ladder, floor, d0, more, u1, never)| StreamValue {
                weight,
                ladder: ladder.down_to(Level::ALL[floor]),
                lateness: Lateness { d0_us: d0, d1_us: (!never).then_some(d0 + more), u1 },
                is_exempt: false,
            },
        )
    }

    /// How much is sent: less for coarser levels, nothing when held.
    fn sent(level: Option<Level>) -> f64 {
        level.map_or(0.0, Level::bytes)
    }

    proptest! {
        #[test]
        fn more_value_never_gets_less_fidelity_and_a_higher_price_never_more(
            value in value(), more in 1.0f64..10.0, age in 0u64..30_000, lambda in 0.0f64..200.0, dearer in 1.0f64..10.0,
        ) {
            let richer = StreamValue { weight: value.weight * more, ..value };
            prop_assert!(sent(richer.level(age, lambda)) >= sent(value.level(age, lambda)));
            prop_assert!(sent(value.level(age, lambda * dearer)) <= sent(value.level(age, lambda)));
        }

        #[test]
        fn the_level_is_one_of_the_ladder_and_no_other_is_worth_more(
            value in value(), age in 0u64..30_000, lambda in 0.0f64..200.0,
        ) {
            let weight = value.weight_at(age);
            let surplus = |level: Level| value.ladder.worth(level).map(|worth| weight * worth - lambda * level.bytes());
            let chosen = value.level(age, lambda);
            let most = Level::ALL.into_iter().filter_map(surplus).fold(0.0, f64::max);
            match chosen {
                Some(level) => prop_assert!((surplus(level).expect("it has the level") - most).abs() <= 1e-9 * (1.0 + most)),
                None => prop_assert!(most <= 1e-9),
            }
        }

        #[test]
        fn worth_never_rises_with_age(value in value(), age in 0u64..30_000, more in 0u64..30_000) {
            prop_assert!(value.weight_at(age + more) <= value.weight_at(age));
            if let Some(left) = value.lateness.left_us(age) {
                prop_assert!(value.weight_at(age + left) == value.weight_at(age));
            }
        }
    }

    #[test]
    fn what_is_exempt_is_sent_raw_at_any_price() {
        let lateness = Lateness { d0_us: 5, d1_us: Some(5), u1: 0.0 };
        let value = StreamValue { weight: 1e-9, ladder: Ladder::RAW, lateness, is_exempt: true };
        assert_eq!(value.level(1_000, 1e9), Some(Level::Raw));
    }
}
