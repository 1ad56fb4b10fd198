//! What two models said of the same windows, and which of them was right where that is known.

use std::fmt;
use std::sync::Arc;

use super::wilson::{Interval, Z_95};

/// Why a window is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The model on the box is unsure: the answer is wanted.
    Doubt,
    /// It is sure, and is checked: the answer is counted and changes nothing of the record.
    Audit,
}

/// A model that answers, by its name and version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answerer {
    /// Name.
    pub model: Arc<str>,
    /// Version.
    pub version: Arc<str>,
}

/// Windows that both models answered, all sent on for the same purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Windows.
    pub answered: u64,
    /// Windows, of those, of which both said the same.
    pub agreed: u64,
    /// What is known of who was right.
    pub truth: Truth,
}

/// Windows whose truth was told, by who was right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Truth {
    /// Both models.
    pub both: u64,
    /// The model on the box alone.
    pub local: u64,
    /// The pool's model alone.
    pub remote: u64,
    /// Neither.
    pub neither: u64,
}

impl Checked {
    /// How often both say the same, within 95 %.
    pub fn agreement(&self) -> Option<Interval> {
        Interval::wilson(self.agreed, self.answered, Z_95)
    }
}

impl Truth {
    /// Windows whose truth was told.
    pub fn count(&self) -> u64 {
        self.both + self.local + self.remote + self.neither
    }

    /// How often the model on the box is right, within 95 %.
    pub fn local_accuracy(&self) -> Option<Interval> {
        Interval::wilson(self.both + self.local, self.count(), Z_95)
    }

    /// How often the pool's model is right, within 95 %.
    pub fn remote_accuracy(&self) -> Option<Interval> {
        Interval::wilson(self.both + self.remote, self.count(), Z_95)
    }

    /// Which model is better, by the windows that only one of them has right (McNemar, Psychometrika 12, 1947): of two models
    /// that are equally good each has half of those. Judged at so many standard deviations.
    pub fn better(&self, z: f64) -> Better {
        let of_remote = Interval::wilson(self.remote, self.local + self.remote, z);
        match of_remote {
            Some(interval) if interval.low > 0.5 => Better::Remote,
            Some(interval) if interval.high < 0.5 => Better::Local,
            _ => Better::Unknown,
        }
    }

    pub(super) fn count_one(&mut self, local_is_right: bool, remote_is_right: bool) {
        *match (local_is_right, remote_is_right) {
            (true, true) => &mut self.both,
            (true, false) => &mut self.local,
            (false, true) => &mut self.remote,
            (false, false) => &mut self.neither,
        } += 1;
    }

    pub(super) fn plus(self, other: Truth) -> Truth {
        Truth {
            both: self.both + other.both,
            local: self.local + other.local,
            remote: self.remote + other.remote,
            neither: self.neither + other.neither,
        }
    }
}

/// What the truth says of two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// The one on the box.
    Local,
    /// The pool's.
    Remote,
    /// It cannot be told: no truth, too little, or both are as good.
    Unknown,
}

impl Better {
    /// The word used in status and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Better::Local => "local",
            Better::Remote => "remote",
            Better::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "both agree on {} of {}", self.agreed, self.answered)?;
        if let Some(Interval { share, low, high }) = self.agreement() {
            write!(f, ", {} % ({} to {} %)", percent(share), percent(low), percent(high))?;
        }
        let (truth, accuracies) = (self.truth.count(), (self.truth.local_accuracy(), self.truth.remote_accuracy()));
        let (Some(local), Some(remote)) = accuracies else { return f.write_str(", who is right is not known") };
        write!(
            f,
            "; of {truth} whose truth was told the box has {} % right ({} to {}), the pool {} % ({} to {})",
            percent(local.share),
            percent(local.low),
            percent(local.high),
            percent(remote.share),
            percent(remote.low),
            percent(remote.high)
        )
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (local, remote) = (&self.local, &self.remote);
        write!(f, "{} {} on the box beside {} {}: ", local.model, local.version, remote.model, remote.version)?;
        write!(f, "sure windows that were audited: {}; windows in doubt: {}; ", self.audited, self.doubted)?;
        f.write_str(match self.better() {
            Better::Local => "the larger model is worse",
            Better::Remote => "the larger model is better",
            Better::Unknown => "which is better is not known",
        })
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// A stream's counts for one pair of models.
#[derive(Debug, Clone, PartialEq)]
pub struct Tally {
    /// What was asked.
    pub task: Arc<str>,
    /// The model on the box.
    pub local: Answerer,
    /// The pool's.
    pub remote: Answerer,
    /// Windows of which the model on the box was sure, that were chosen to be checked.
    pub audited: Checked,
    /// Windows of which it was not.
    pub doubted: Checked,
    /// Windows that it answered while this pair was the present one: surely, and in doubt.
    pub seen: (u64, u64),
}

impl Tally {
    pub(super) fn of(&mut self, purpose: Purpose) -> &mut Checked {
        match purpose {
            Purpose::Doubt => &mut self.doubted,
            Purpose::Audit => &mut self.audited,
        }
    }

    /// What the truth says of the two, by all windows that both answered. Judged within 99 %, because it is looked at often.
    pub fn better(&self) -> Better {
        self.audited.truth.plus(self.doubted.truth).better(super::wilson::Z_99)
    }

    /// Of all windows, not only those that were sent on: how often both agree, by weighing what was found in the two groups with
    /// how often the groups come (stratified sampling; Cochran, Sampling Techniques, chapter 5). `None` while a group that comes
    /// was not looked at.
    pub fn agreement(&self) -> Option<f64> {
        self.weighed(|checked| checked.agreement().map(|interval| interval.share))
    }

    /// The same for how often the model on the box, and the pool's, would be right.
    pub fn accuracies(&self) -> Option<(f64, f64)> {
        let local = self.weighed(|checked| checked.truth.local_accuracy().map(|interval| interval.share))?;
        let remote = self.weighed(|checked| checked.truth.remote_accuracy().map(|interval| interval.share))?;
        Some((local, remote))
    }

    fn weighed(&self, share: impl Fn(&Checked) -> Option<f64>) -> Option<f64> {
        let (sure, doubted) = self.seen;
        let total = (sure + doubted) as f64;
        let mut sum = 0.0;
        for (count, checked) in [(sure, &self.audited), (doubted, &self.doubted)] {
            if count > 0 {
                sum += count as f64 * share(checked)?;
            }
        }
        (total > 0.0).then(|| sum / total)
    }
}
