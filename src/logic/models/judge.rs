//! Whether a model on trial is good enough, from what it did with the windows of one stage.
//!
//! It passes once it has seen its number of windows, and fails as soon as it can no longer pass: a model that is a hundred times
//! too slow is gone after a few windows, and not after all of them.

use super::Fault;

/// What a stage asks of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// Windows to be seen; at least 1.
    pub windows: u64,
    /// Share of the windows on which it must say what the active model says, 0 to 1.
    pub agreement_min: f32,
    /// Time that a window may take by the release, in microseconds.
    pub window_us_max: u64,
    /// How many times that it may take here.
    pub slower_max: u64,
}

/// What a model did with some windows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// Windows that it was given.
    pub windows: u64,
    /// Those without an answer, and why the last had none.
    pub errors: u64,
    /// In words; empty without errors.
    pub last_error: String,
    /// Those answered differently from the active model.
    pub disagreements: u64,
    /// Time for all of them, in microseconds: of the processor in a process of its own, else by the clock on the wall.
    pub us: u64,
}

/// What is thought of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It has done what was asked.
    Passed,
    /// It cannot do so any more.
    Failed(Fault),
}

/// What was seen in one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Judge {
    terms: Terms,
    seen: Observation,
}

/// One window in so many may go without an answer: a device that sends nonsense is not the model's fault.
const ERRORS_ONE_IN: u64 = 50;

impl Judge {
    /// Nothing was seen yet.
    pub fn new(terms: Terms) -> Judge {
        Judge { terms, seen: Observation::default() }
    }

    /// What was seen so far.
    pub fn seen(&self) -> &Observation {
        &self.seen
    }

    /// Adds what was seen; `Some` ends the stage.
    pub fn observe(&mut self, more: &Observation) -> Option<Judgement> {
        let seen = &mut self.seen;
        seen.windows += more.windows;
        seen.errors += more.errors;
        seen.disagreements += more.disagreements;
        seen.us = seen.us.saturating_add(more.us);
        if more.errors > 0 {
            seen.last_error.clone_from(&more.last_error);
        }
        let Observation { windows, errors, disagreements, us, .. } = *seen;
        let wanted = self.terms.windows.max(1);
        // A batch may bring more than was asked for: then all of them count.
        let of = wanted.max(windows);
        let answered = (windows - errors.min(windows)).max(1);
        if errors > of.div_ceil(ERRORS_ONE_IN) {
            return Some(Judgement::Failed(Fault::Errors { errors, windows, last: seen.last_error.clone() }));
        }
        let us_limit = self.terms.window_us_max.saturating_mul(self.terms.slower_max).saturating_mul(of);
        if us > us_limit {
            let us_max = self.terms.window_us_max;
            return Some(Judgement::Failed(Fault::Slow { us: us / answered, windows, us_max }));
        }
        if disagreements as f64 > (1.0 - f64::from(self.terms.agreement_min)) * of as f64 + ROUNDING {
            return Some(Judgement::Failed(Fault::Disagrees { disagreements, windows }));
        }
        (windows >= wanted).then_some(Judgement::Passed)
    }
}

/// A share in f32 is off by less than this, times a million windows.
const ROUNDING: f64 = 1e-3;
