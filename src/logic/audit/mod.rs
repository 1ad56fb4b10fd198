//! Checking the model on the box against a larger one, also where it is sure.
//!
//! Like the second opinion that a laboratory has a few of its clear findings read by: without it, nobody learns of the mistakes that
//! were made with confidence. A configured share of the confident answers of a stream is sent to the pool too, after everything
//! else, within what is left of the budgets, and nobody waits for the answer. Which ones is a function of a seed and of how many
//! there were on the stream, so it does not depend on the device, and the same run chooses the same.
//!
//! What both said is counted by stream, task and the versions of both models ([`Tally`]), with confidence intervals.
//! **Nobody assumes that the larger model is right**: without the truth the counts say how often the two disagree, and no more. Where
//! the truth is told (samples of a stream that is `truth_of` this one, joined by device and time), they say how often
//! each was right, and which is better.
//!
//! From the same counts [`Learned`] thresholds are made, see `learn.rs`.
//!
//! What surprised us: agreement on the windows that were sent on is not the stream's, because doubtful ones are sent on far more
//! often than sure ones. [`Tally::agreement`] weighs the two.

mod learn;
mod tally;
mod wilson;

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::quality::FixedState;

use crate::offload::{OffloadMode, OffloadPolicy};

pub use learn::{LearnPolicy, Learned, LearnedWhy};
pub use tally::{Answerer, Better, Checked, Purpose, Tally, Truth};
pub use wilson::{Interval, Z_95, Z_99};

use learn::Learner;

/// A window that both models answered.
#[derive(Debug)]
pub struct BothSaid<'a> {
    /// Its stream.
    pub stream: u16,
    /// What was asked.
    pub task: &'a Arc<str>,
    /// Its device.
    pub device: &'a Arc<str>,
    /// Time of its first sample.
    pub start_us: i64,
    /// Time of its last sample.
    pub end_us: i64,
    /// Why it was sent on.
    pub purpose: Purpose,
    /// The model on the box.
    pub local: &'a Answerer,
    /// Its label.
    pub local_label: &'a Arc<str>,
    /// How sure it was.
    pub confidence: f32,
    /// The pool's model.
    pub remote: &'a Answerer,
    /// Its label.
    pub remote_label: &'a Arc<str>,
}

/// Counts of what was refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AuditCounts {
    /// Pairs of versions forgotten to make room for newer ones.
    pub tallies_forgotten: u64,
    /// Answers whose truth was not told before they had to make room.
    pub answers_forgotten: u64,
    /// Truths of which no window was waiting: nobody was asked about it, or the answer is not there yet.
    pub truths_unmatched: u64,
}

/// Audits of all streams.
#[derive(Debug)]
pub struct Audits {
    hasher: FixedState,
    streams: Vec<StreamAudit>,
}

/// Pairs of versions that are remembered for a stream; older ones are forgotten.
pub const TALLIES_MAX: usize = 8;
/// Answers of a stream that wait for their truth.
pub const ANSWERS_MAX: usize = 512;

#[derive(Debug, Default)]
struct StreamAudit {
    /// Sure answers so far.
    sure: u64,
    /// The present pair is the last.
    tallies: Vec<Tally>,
    /// Their numbers, in the same order; the first is 1.
    pairs: Vec<u64>,
    last_pair: u64,
    learner: Learner,
    /// Somebody tells the truth of this stream.
    has_truth: bool,
    waiting: VecDeque<Waiting>,
    counts: AuditCounts,
}

#[derive(Debug)]
struct Waiting {
    /// Number of its pair of models.
    pair: u64,
    purpose: Purpose,
    device: Arc<str>,
    start_us: i64,
    end_us: i64,
    local: Arc<str>,
    remote: Arc<str>,
}

impl Audits {
    /// Nothing counted yet; `has_truth` says by stream whether its truth will be told.
    pub fn new(seed: u64, has_truth: impl IntoIterator<Item = bool>) -> Audits {
        let streams = has_truth.into_iter().map(|has_truth| StreamAudit { has_truth, ..StreamAudit::default() });
        // Another seed than that of the keys of windows.
        Audits { hasher: FixedState::with_seed(seed ^ 0xa0d1_7000_5eed_0001), streams: streams.collect() }
    }

    /// The model on the box answered: says whether the window is to be sent on, and why. `band` is the one in force.
    pub fn scored(&mut self, stream: u16, policy: &OffloadPolicy, band: (f32, f32), confidence: f32) -> Option<Purpose> {
        if policy.mode == OffloadMode::Never {
            return None;
        }
        let audit = &mut self.streams[usize::from(stream)];
        audit.learner.seen(confidence);
        let is_sure = confidence >= band.1;
        if let Some(tally) = audit.tallies.last_mut() {
            let (sure, doubted) = &mut tally.seen;
            *if is_sure { sure } else { doubted } += 1;
        }
        if (band.0..band.1).contains(&confidence) {
            return Some(Purpose::Doubt);
        }
        if !is_sure {
            return None;
        }
        audit.sure += 1;
        // The top 53 bits as a number in [0, 1).
        let drawn = (self.hasher.hash_one((stream, audit.sure)) >> 11) as f64 / (1u64 << 53) as f64;
        (drawn < f64::from(policy.audit)).then_some(Purpose::Audit)
    }

    /// The pool answered too.
    pub fn both_said(&mut self, said: &BothSaid<'_>) {
        let audit = &mut self.streams[usize::from(said.stream)];
        audit.present(said);
        let (agrees, pair) = (said.local_label == said.remote_label, audit.pairs.last().copied().unwrap_or_default());
        if let Some(tally) = audit.tallies.last_mut() {
            let checked = tally.of(said.purpose);
            checked.answered += 1;
            checked.agreed += u64::from(agrees);
        }
        audit.learner.answered(said.confidence, !agrees);
        if audit.has_truth {
            if audit.waiting.len() >= ANSWERS_MAX {
                audit.waiting.pop_front();
                audit.counts.answers_forgotten += 1;
            }
            audit.waiting.push_back(Waiting {
                pair,
                purpose: said.purpose,
                device: said.device.clone(),
                start_us: said.start_us,
                end_us: said.end_us,
                local: said.local_label.clone(),
                remote: said.remote_label.clone(),
            });
        }
    }

    /// What was true of a device of a stream at a time: the windows that hold it are judged by it, each once.
    pub fn truth(&mut self, stream: u16, device: &str, time_us: i64, label: &str) {
        let audit = &mut self.streams[usize::from(stream)];
        let before = audit.waiting.len();
        let StreamAudit { tallies, pairs, waiting, .. } = audit;
        waiting.retain(|waiting| {
            let is_meant = &*waiting.device == device && (waiting.start_us..=waiting.end_us).contains(&time_us);
            // Its pair may have been forgotten meanwhile.
            let at = pairs.iter().position(|pair| is_meant && *pair == waiting.pair);
            if let Some(tally) = at.and_then(|at| tallies.get_mut(at)) {
                let truth = &mut tally.of(waiting.purpose).truth;
                truth.count_one(&*waiting.local == label, &*waiting.remote == label);
            }
            !is_meant
        });
        audit.counts.truths_unmatched += u64::from(audit.waiting.len() == before);
    }

    /// Looks whether a stream's threshold is to move; returns it if it did.
    pub fn look(&mut self, now_us: u64, stream: u16, policy: &OffloadPolicy) -> Option<Learned> {
        let audit = &mut self.streams[usize::from(stream)];
        let is_worse = audit.tallies.last().is_some_and(|tally| tally.better() == Better::Local);
        audit.learner.look(now_us, policy.learn.as_ref()?, policy.band, is_worse)
    }

    /// A stream's threshold, if it is learned.
    pub fn learned(&self, stream: u16) -> Option<Learned> {
        self.streams.get(usize::from(stream))?.learner.learned()
    }

    /// How a stream's windows are sent on has changed: what was learned under the old rules is forgotten.
    pub fn policy_changed(&mut self, stream: u16) {
        self.streams[usize::from(stream)].learner = Learner::default();
    }

    /// A stream's pairs of versions, the present one last.
    pub fn tallies(&self, stream: u16) -> &[Tally] {
        self.streams.get(usize::from(stream)).map_or(&[], |audit| &audit.tallies)
    }

    /// What of a stream found no room.
    pub fn counts(&self, stream: u16) -> AuditCounts {
        self.streams.get(usize::from(stream)).map(|audit| audit.counts).unwrap_or_default()
    }
}

impl StreamAudit {
    /// Makes these two models the present pair.
    fn present(&mut self, said: &BothSaid<'_>) {
        let is_same = |tally: &Tally| (&tally.local, &tally.remote, &tally.task) == (said.local, said.remote, said.task);
        if let Some(at) = self.tallies.iter().position(is_same) {
            // Pools with different models may take turns; that is no reason to begin anew.
            self.tallies[at..].rotate_left(1);
            self.pairs[at..].rotate_left(1);
            return;
        }
        if !self.tallies.is_empty() {
            self.learner.forget();
        }
        if self.tallies.len() >= TALLIES_MAX {
            self.tallies.remove(0);
            self.pairs.remove(0);
            self.counts.tallies_forgotten += 1;
        }
        self.last_pair += 1;
        self.pairs.push(self.last_pair);
        self.tallies.push(Tally {
            task: said.task.clone(),
            local: said.local.clone(),
            remote: said.remote.clone(),
            audited: Checked::default(),
            doubted: Checked::default(),
            seen: (0, 0),
        });
    }
}

#[cfg(test)]
mod tests;
