//! How far a record can be folded, what is left of its bytes, and what is left of its worth.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How finely a record is sent, finest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it came.
    Raw,
    /// Every second one.
    Thin2,
    /// Every fourth one.
    Thin4,
    /// Minimum, maximum, mean and count of sixteen.
    Aggregate,
    /// What a model says of it.
    Verdict,
}

impl Level {
    /// All levels, finest first.
    pub const ALL: [Level; 5] = [Level::Raw, Level::Thin2, Level::Thin4, Level::Aggregate, Level::Verdict];

    /// Position in [`Level::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word used in config, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Raw => "raw",
            Level::Thin2 => "thin2",
            Level::Thin4 => "thin4",
            Level::Aggregate => "aggregate",
            Level::Verdict => "verdict",
        }
    }

    /// Nominal part of a raw record's bytes that is left.
    pub const fn bytes(self) -> f64 {
        [1.0, 0.5, 0.25, 1.0 / 16.0, 1.0 / 64.0][self as usize]
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The levels that a stream may have, each with the part of the raw record's worth that is left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ladder {
    /// By [`Level::index`]; `None` where the stream does not have the level.
    worth: [Option<f64>; 5],
}

/// Why numbers are not a ladder.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum LadderError {
    /// The finest level is what the others are parts of.
    #[error("raw is worth 1, not {worth}")]
    Raw {
        /// What was given.
        worth: f64,
    },
    /// Worth must fall with bytes, and stay above nothing.
    #[error("{level} is worth {worth}: it must be above 0 and below the level before")]
    Falling {
        /// The level.
        level: Level,
        /// What was given.
        worth: f64,
    },
    /// The bytes saved by this step cost more worth each than those of the next: nobody would ever choose it.
    #[error("{level} is worth too little: at no price would it be chosen; give it more than {least}")]
    Concave {
        /// The level.
        level: Level,
        /// What it must be worth more than.
        least: f64,
    },
}

impl Ladder {
    /// Only raw.
    pub const RAW: Ladder = Ladder { worth: [Some(1.0), None, None, None, None] };
    /// Slow measurements: half of them say nearly as much.
    pub const TELEMETRY: Ladder = Ladder { worth: [Some(1.0), Some(0.90), Some(0.75), Some(0.50), Some(0.25)] };
    /// Waveforms: much is lost with the first half.
    pub const WAVE: Ladder = Ladder { worth: [Some(1.0), Some(0.70), Some(0.45), Some(0.25), Some(0.12)] };
    /// Logs.
    pub const LOG: Ladder = Ladder { worth: [Some(1.0), Some(0.80), Some(0.60), Some(0.30), Some(0.10)] };

    /// Checks a ladder; `worth` by [`Level::index`], `None` for levels it lacks.
    ///
    /// # Errors
    /// The first step that is not one.
    pub fn new(worth: [Option<f64>; 5]) -> Result<Ladder, LadderError> {
        if worth[0] != Some(1.0) {
            return Err(LadderError::Raw { worth: worth[0].unwrap_or(0.0) });
        }
        let ladder = Ladder { worth };
        let steps: Vec<(Level, f64)> = ladder.levels().collect();
        for pair in steps.windows(2) {
            let (level, worth) = pair[1];
            if !(worth > 0.0 && worth < pair[0].1) {
                return Err(LadderError::Falling { level, worth });
            }
        }
        // The end of the ladder is nothing for nothing.
        let ends = steps.iter().map(|&(level, worth)| (level, level.bytes(), worth));
        let points: Vec<(Level, f64, f64)> = ends.chain([(Level::Verdict, 0.0, 0.0)]).collect();
        for triple in points.windows(3) {
            let [(_, b0, v0), (level, b1, v1), (_, b2, v2)] = triple else { continue };
            let least = v2 + (v0 - v2) * (b1 - b2) / (b0 - b2);
            if *v1 <= least {
                return Err(LadderError::Concave { level: *level, least });
            }
        }
        Ok(ladder)
    }

    /// What is left of the worth at a level; `None` if the stream does not have it.
    pub fn worth(&self, level: Level) -> Option<f64> {
        self.worth[level.index()]
    }

    /// Its levels with their worth, finest first.
    pub fn levels(&self) -> impl Iterator<Item = (Level, f64)> + '_ {
        Level::ALL.into_iter().filter_map(|level| Some((level, self.worth(level)?)))
    }

    /// The ladder without the levels below `floor`, which it keeps if it has it.
    #[must_use]
    pub fn down_to(mut self, floor: Level) -> Ladder {
        self.worth[floor.index() + 1..].fill(None);
        self
    }

    /// The ladder without a level other than raw.
    #[must_use]
    pub fn without(mut self, level: Level) -> Ladder {
        if level != Level::Raw {
            self.worth[level.index()] = None;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_and_all_their_parts_are_ladders() {
        for preset in [Ladder::RAW, Ladder::TELEMETRY, Ladder::WAVE, Ladder::LOG] {
            for floor in Level::ALL {
                let ladder = preset.down_to(floor);
                assert_eq!(Ladder::new(ladder.worth), Ok(ladder));
                assert_eq!(Ladder::new(ladder.without(Level::Thin4).worth), Ok(ladder.without(Level::Thin4)));
            }
        }
    }

    #[test]
    fn what_is_not_concave_or_does_not_fall_is_refused_with_the_step() {
        let ladder = |worth: [f64; 4]| Ladder::new([Some(1.0), Some(worth[0]), Some(worth[1]), Some(worth[2]), Some(worth[3])]);
        assert!(matches!(ladder([0.9, 0.95, 0.5, 0.2]), Err(LadderError::Falling { level: Level::Thin4, .. })));
        assert!(matches!(ladder([0.5, 0.45, 0.3, 0.2]), Err(LadderError::Concave { level: Level::Thin2, .. })));
        assert!(matches!(ladder([0.9, 0.75, 0.5, 0.01]), Err(LadderError::Concave { level: Level::Verdict, .. })));
        assert!(matches!(ladder([f64::NAN, 0.75, 0.5, 0.1]), Err(LadderError::Falling { level: Level::Thin2, .. })));
        assert!(matches!(Ladder::new([Some(0.9), None, None, None, None]), Err(LadderError::Raw { .. })));
        assert!(matches!(Ladder::new([None; 5]), Err(LadderError::Raw { .. })));
    }
}
