//! From which confidence on the model on the box is left alone, learned from what a larger one says.
//!
//! Confidences fall into [`CELLS`] cells, and the threshold stands at the upper end of one. Each cell counts the windows that came,
//! those that both models answered (in doubt below the threshold, audited above it), and those of which they said different things. Within
//! a cell it does not matter why a window was sent on, so the counts need no weights.
//!
//! The rule looks only beside the threshold, at the two cells above it and the two below:
//! - It **rises** by two cells if those above disagree more often than [`LearnPolicy::disagree`], surely: by the lower end of
//!   Wilson's 99 % interval. It must stay within `max`, and the share of windows below it within [`LearnPolicy::share`].
//! - It **falls** by two cells if those below disagree less often, as surely; or if the share is over the budget by a tenth.
//! - It falls to `min`, step by step, and does not rise, while the truth says that the larger model is worse.
//!
//! Disagreement is only the most that asking can gain: without the truth nobody knows who is right, and the numbers say so.
//! Between "surely more" and "surely less" nothing moves, a step is followed by [`HOLD_US`] of rest, and one in the other direction by
//! [`TURN_US`]; so it does not swing. Old counts weigh half as much each time a cell is full, so it follows what changes.

use std::fmt;

use super::wilson::{Interval, Z_99};

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearnPolicy {
    /// Lowest threshold.
    pub min: f32,
    /// Highest threshold.
    pub max: f32,
    /// Largest share of windows that is asked about.
    pub share: f32,
    /// How often the models must disagree for asking to be worth it.
    pub disagree: f32,
}

/// A threshold, and what made it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Learned {
    /// Windows with a confidence below this are asked about.
    pub threshold: f32,
    /// Why it is there.
    pub why: LearnedWhy,
}

/// What moved a threshold last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LearnedWhy {
    /// Nothing yet: it is the configured one, within the bounds.
    Configured,
    /// The models disagree often enough above it.
    Rose {
        /// Windows that both answered there.
        answered: u64,
        /// Those of which they said different things.
        disagreed: u64,
    },
    /// They hardly disagree below it.
    Fell {
        /// Windows that both answered there.
        answered: u64,
        /// Those of which they said different things.
        disagreed: u64,
    },
    /// Too many windows were asked about.
    OverShare {
        /// Share of windows below the old threshold.
        share: f32,
    },
    /// The larger model is worse, by the truth that was told.
    RemoteWorse,
}

impl fmt::Display for Learned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "threshold {:.3}: ", self.threshold)?;
        match self.why {
            LearnedWhy::Configured => f.write_str("as configured, nothing speaks surely for another"),
            LearnedWhy::Rose { answered, disagreed } => {
                write!(
                    f,
                    "raised, the models disagreed on {disagreed} of {answered} windows just above it; who is right is not in this"
                )
            }
            LearnedWhy::Fell { answered, disagreed } => {
                write!(f, "lowered, the models disagreed on only {disagreed} of {answered} windows just below it")
            }
            LearnedWhy::OverShare { share } => write!(f, "lowered, {:.1} % of the windows were asked about", 100.0 * share),
            LearnedWhy::RemoteWorse => f.write_str("lowered, by the truth that was told the larger model is worse"),
        }
    }
}

/// Cells of confidence from 0 to 1.
pub(super) const CELLS: usize = 40;
/// Cells that the threshold moves by.
const STEP: usize = 2;
/// Rest after a step.
const HOLD_US: u64 = 600_000_000;
/// Rest before a step in the other direction.
const TURN_US: u64 = 6 * 3_600_000_000;
/// Windows that came before anything is decided: their shares are then within a few percent.
const SEEN_MIN: u64 = 500;
/// Answers in a cell, and windows in all, at which old ones begin to weigh less.
const CELL_ANSWERS_MAX: u32 = 1_024;
const SEEN_MAX: u64 = 1 << 14;
/// How far over the budget the share may be before the threshold falls: below it the threshold rises, so there must be room between.
const SHARE_SLACK: f32 = 1.1;

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    seen: u32,
    answered: u32,
    disagreed: u32,
}

/// The threshold of one stream for one pair of models.
#[derive(Debug, Clone)]
pub(super) struct Learner {
    cells: [Cell; CELLS],
    seen: u64,
    /// In cells; `None` before the first look.
    at: Option<usize>,
    why: LearnedWhy,
    moved: Option<(u64, bool)>,
}

impl Default for Learner {
    fn default() -> Self {
        Learner { cells: [Cell::default(); CELLS], seen: 0, at: None, why: LearnedWhy::Configured, moved: None }
    }
}

impl Learner {
    pub(super) fn seen(&mut self, confidence: f32) {
        self.cells[cell(confidence)].seen += 1;
        self.seen += 1;
        if self.seen >= SEEN_MAX {
            self.cells.iter_mut().for_each(|cell| cell.seen /= 2);
            self.seen = self.cells.iter().map(|cell| u64::from(cell.seen)).sum();
        }
    }

    pub(super) fn answered(&mut self, confidence: f32, disagreed: bool) {
        let cell = &mut self.cells[cell(confidence)];
        cell.answered += 1;
        cell.disagreed += u32::from(disagreed);
        if cell.answered >= CELL_ANSWERS_MAX {
            (cell.answered, cell.disagreed) = (cell.answered / 2, cell.disagreed / 2);
        }
    }

    /// Other models answer from now on: what was counted says nothing of them. The threshold stays until they say otherwise.
    pub(super) fn forget(&mut self) {
        (self.cells, self.seen) = ([Cell::default(); CELLS], 0);
    }

    /// Looks once; returns the threshold if it was moved. `band` is the configured one, `remote_is_worse` what the truth says.
    pub(super) fn look(
        &mut self,
        now_us: u64,
        policy: &LearnPolicy,
        band: (f32, f32),
        remote_is_worse: bool,
    ) -> Option<Learned> {
        let (min, max) = bounds(policy);
        let configured = ((band.1 * CELLS as f32).round() as usize).clamp(min, max);
        let at = self.at.unwrap_or(configured).clamp(min, max);
        self.at = Some(at);
        let low = cell(band.0);
        let (rises, why) = self.decide(at, (min, max), low, policy, remote_is_worse)?;
        let rest_us = |was_rise: bool| if was_rise == rises { HOLD_US } else { TURN_US };
        if self.moved.is_some_and(|(at_us, was_rise)| now_us < at_us.saturating_add(rest_us(was_rise))) {
            return None;
        }
        self.at = Some(if rises { (at + STEP).min(max) } else { at.saturating_sub(STEP).max(min) });
        (self.why, self.moved) = (why, Some((now_us, rises)));
        self.learned()
    }

    fn decide(
        &self,
        at: usize,
        (min, max): (usize, usize),
        low: usize,
        policy: &LearnPolicy,
        remote_is_worse: bool,
    ) -> Option<(bool, LearnedWhy)> {
        if self.seen < SEEN_MIN {
            return None;
        }
        if remote_is_worse {
            return (at > min).then_some((false, LearnedWhy::RemoteWorse));
        }
        let share = self.share(low, at);
        if at > min && share > policy.share * SHARE_SLACK {
            return Some((false, LearnedWhy::OverShare { share }));
        }
        let worth = f64::from(policy.disagree);
        let (answered, disagreed) = self.counts(at.saturating_sub(STEP).max(low), at);
        let below = Interval::wilson(disagreed, answered, Z_99);
        if at > min && below.is_some_and(|below| below.high < worth) {
            return Some((false, LearnedWhy::Fell { answered, disagreed }));
        }
        let to = (at + STEP).min(max);
        let (answered, disagreed) = self.counts(at, to);
        let above = Interval::wilson(disagreed, answered, Z_99);
        let pays = above.is_some_and(|above| above.low > worth) && self.share(low, to) <= policy.share;
        (to > at && pays).then_some((true, LearnedWhy::Rose { answered, disagreed }))
    }

    pub(super) fn learned(&self) -> Option<Learned> {
        self.at.map(|at| Learned { threshold: at as f32 / CELLS as f32, why: self.why })
    }

    fn counts(&self, from: usize, to: usize) -> (u64, u64) {
        let cells = self.cells.get(from..to).unwrap_or_default().iter();
        cells.fold((0, 0), |(answered, disagreed), cell| {
            (answered + u64::from(cell.answered), disagreed + u64::from(cell.disagreed))
        })
    }

    /// Share of the windows that came with a confidence in these cells.
    fn share(&self, from: usize, to: usize) -> f32 {
        let of = self.cells.get(from..to).unwrap_or_default().iter().map(|cell| u64::from(cell.seen)).sum::<u64>();
        of as f32 / self.seen.max(1) as f32
    }
}

fn cell(confidence: f32) -> usize {
    ((confidence * CELLS as f32) as usize).min(CELLS - 1)
}

/// The bounds in whole cells, within those that were configured.
fn bounds(policy: &LearnPolicy) -> (usize, usize) {
    // What is written as 0.6 must be cell 24, whatever f32 makes of it.
    let cells = |bound: f32| f64::from(bound) * CELLS as f64;
    let min = (cells(policy.min) - 1e-4).ceil().max(0.0) as usize;
    let max = ((cells(policy.max) + 1e-4).floor() as usize).min(CELLS);
    (min.min(max), max)
}
