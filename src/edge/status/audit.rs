//! What two models said of the same windows, as the box shows it.

use serde::{Deserialize, Serialize};
use weir_logic::audit::{Checked, Interval, Tally};
use weir_logic::gateway::Gateway;

/// One pair of models of one stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// The stream.
    pub stream: String,
    /// What was asked.
    pub task: String,
    /// The model on the box and its version.
    pub local: String,
    /// The pool's model and its version.
    pub remote: String,
    /// True if it is the pair that answered last.
    pub present: bool,
    /// Windows of which the model on the box was sure.
    pub audited: CheckedStatus,
    /// Windows of which it was not.
    pub doubted: CheckedStatus,
    /// How often both agree on all windows, by weighing both; `None` while a group was not looked at.
    pub agreement: Option<f64>,
    /// How often the model on the box is right on all windows; `None` while the truth of a group is not known.
    pub local_accuracy: Option<f64>,
    /// How often the pool's would be.
    pub remote_accuracy: Option<f64>,
    /// Which one is better, by the windows whose truth was told: `local`, `remote`, or `unknown`.
    pub better: String,
    /// Confidence below which a pool is asked, if it is learned, and why it is this one.
    pub threshold: Option<f32>,
    /// See `threshold`.
    pub threshold_reason: String,
}

/// Windows that both models answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckedStatus {
    /// Windows.
    pub answered: u64,
    /// Windows on which both agree.
    pub agreed: u64,
    /// Share of those, and the ends of its 95 % interval.
    pub agreement: Option<[f64; 3]>,
    /// Windows whose truth was told.
    pub truth: u64,
    /// How often the model on the box was right, with its 95 % interval.
    pub local_accuracy: Option<[f64; 3]>,
    /// How often the pool's was right, with its 95 % interval.
    pub remote_accuracy: Option<[f64; 3]>,
}

/// Limits of audits that were met, of all streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLimits {
    /// Pairs of versions forgotten to make room for newer ones.
    pub tallies_forgotten: u64,
    /// Answers whose truth was not told before they had to make room.
    pub answers_forgotten: u64,
    /// Truths of which no window was waiting.
    pub truths_unmatched: u64,
}

pub(super) fn audits(gateway: &Gateway) -> (Vec<AuditStatus>, AuditLimits) {
    let audits = gateway.ingest().audits();
    let (mut all, mut limits) = (Vec::new(), AuditLimits::default());
    for (index, stream) in gateway.policy().streams.iter().enumerate() {
        let index = index as u16;
        let counts = audits.counts(index);
        limits.tallies_forgotten += counts.tallies_forgotten;
        limits.answers_forgotten += counts.answers_forgotten;
        limits.truths_unmatched += counts.truths_unmatched;
        let learns = stream.offload.as_ref().is_some_and(|offload| offload.learn.is_some());
        let learned = audits.learned(index).filter(|_| learns);
        let tallies = audits.tallies(index);
        all.extend(tallies.iter().enumerate().map(|(at, tally)| AuditStatus {
            present: at + 1 == tallies.len(),
            threshold: learned.map(|learned| learned.threshold),
            threshold_reason: learned.map(|learned| learned.to_string()).unwrap_or_default(),
            ..of(&stream.name, tally)
        }));
    }
    (all, limits)
}

fn of(stream: &str, tally: &Tally) -> AuditStatus {
    let accuracies = tally.accuracies();
    AuditStatus {
        stream: stream.to_owned(),
        task: tally.task.to_string(),
        local: format!("{} {}", tally.local.model, tally.local.version),
        remote: format!("{} {}", tally.remote.model, tally.remote.version),
        audited: checked(&tally.audited),
        doubted: checked(&tally.doubted),
        agreement: tally.agreement(),
        local_accuracy: accuracies.map(|(local, _)| local),
        remote_accuracy: accuracies.map(|(_, remote)| remote),
        better: tally.better().name().to_owned(),
        ..AuditStatus::default()
    }
}

fn checked(checked: &Checked) -> CheckedStatus {
    let ends = |interval: Option<Interval>| interval.map(|interval| [interval.share, interval.low, interval.high]);
    CheckedStatus {
        answered: checked.answered,
        agreed: checked.agreed,
        agreement: ends(checked.agreement()),
        truth: checked.truth.count(),
        local_accuracy: ends(checked.truth.local_accuracy()),
        remote_accuracy: ends(checked.truth.remote_accuracy()),
    }
}
