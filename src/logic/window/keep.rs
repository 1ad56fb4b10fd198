//! Rules for which samples are kept as they came.
//!
//! Most of what a sensor sends says "as before". A stream that is aggregated can name what must not drown in the mean:
//! values beyond a threshold, values that have moved, verdicts of interest, and one sample now and then. If any rule
//! asks for a sample, its message is kept raw; otherwise it is only folded. Without rules everything is folded. A value that
//! trembles at the edge of a rule can be held to a rate.

use serde::Deserialize;

use super::span::optional_duration_us;
use crate::payload::Samples;

/// Which samples of a stream are kept raw: the table `keep`.
///
/// ```toml
/// keep = { every = "10m", samples = [{ channel = 0, above = 80.0, delta = 0.5 }], verdicts = [{ labels = ["fall"] }] }
/// keep = { spacing_min = "5s", samples = [{ channel = 1, changed = true }] }
/// ```
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepConfig {
    /// Keep a sample when this long, by the box's clock, none was kept. Default: never for this reason.
    #[serde(default, rename = "every", deserialize_with = "optional_duration_us")]
    pub every_us: Option<i64>,
    /// Keep no sample sooner than this, by the box's clock, after the one that was kept last, whatever the rules on values say.
    /// Default: no limit.
    #[serde(default, rename = "spacing_min", deserialize_with = "optional_duration_us")]
    pub spacing_min_us: Option<i64>,
    /// Rules on values; one that matches is enough.
    #[serde(default)]
    pub samples: Vec<ValueRule>,
    /// Rules on verdicts; one that matches is enough.
    #[serde(default)]
    pub verdicts: Vec<VerdictRule>,
}

/// A rule on one channel: any of its conditions is enough, and at least one is needed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueRule {
    /// Index of the channel.
    pub channel: usize,
    /// Keep values above this.
    #[serde(default)]
    pub above: Option<f64>,
    /// Keep values below this.
    #[serde(default)]
    pub below: Option<f64>,
    /// Keep a value that differs from the last kept one by this much or more (a deadband).
    #[serde(default)]
    pub delta: Option<f64>,
    /// Keep a value that is not equal to the last kept one.
    #[serde(default)]
    pub changed: bool,
}

/// A rule on a verdict: all its conditions must hold, and at least one is needed.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerdictRule {
    /// The score is above this.
    #[serde(default)]
    pub score_above: Option<f64>,
    /// The score is below this.
    #[serde(default)]
    pub score_below: Option<f64>,
    /// The confidence is above this.
    #[serde(default)]
    pub confidence_above: Option<f64>,
    /// The confidence is below this: the model is unsure.
    #[serde(default)]
    pub confidence_below: Option<f64>,
    /// The label is one of these.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// What becomes of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It becomes a record as it came.
    Raw(KeepReason),
    /// It goes into something smaller only.
    Fold,
}

/// Why a sample is kept as it came. Rules and channels are given by their index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepReason {
    /// The value of this channel is above its threshold.
    Above(usize),
    /// The value of this channel is below its threshold.
    Below(usize),
    /// The value of this channel has moved by its delta, or at all where that is asked for.
    Moved(usize),
    /// It is the first of its device, which deltas, changes and `every` start from.
    First,
    /// None was kept for as long as `every` says.
    Due,
    /// This rule matches the verdict.
    Verdict(usize),
}

impl KeepReason {
    /// The reason's kind, from a closed set: a label for counters.
    pub fn name(self) -> &'static str {
        match self {
            KeepReason::Above(_) => "above",
            KeepReason::Below(_) => "below",
            KeepReason::Moved(_) => "moved",
            KeepReason::First => "first",
            KeepReason::Due => "due",
            KeepReason::Verdict(_) => "verdict",
        }
    }
}

/// The checked rules of a stream, shared by all its devices.
#[derive(Debug, Clone, PartialEq)]
pub struct KeepRules {
    config: KeepConfig,
    channels: usize,
    /// A rule compares with what was kept last.
    compares: bool,
}

/// Most rules of one kind, and most labels in a rule.
const RULES_MAX: usize = 64;

impl KeepRules {
    /// Checks a configuration for a stream of this many channels.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn new(config: &KeepConfig, channels: usize) -> Result<KeepRules, Vec<KeepError>> {
        let mut errors = Vec::new();
        let longest_labels = config.verdicts.iter().map(|rule| rule.labels.len()).max().unwrap_or(0);
        let most = config.samples.len().max(config.verdicts.len()).max(longest_labels);
        if most > RULES_MAX {
            errors.push(KeepError::TooMany { count: most });
        }
        if let (Some(spacing_min_us), Some(every_us)) = (config.spacing_min_us, config.every_us)
            && spacing_min_us > every_us
        {
            errors.push(KeepError::Spacing { spacing_min_us, every_us });
        }
        for (rule, value) in config.samples.iter().enumerate() {
            errors.extend(value.mistake(rule, channels));
        }
        for (rule, verdict) in config.verdicts.iter().enumerate() {
            errors.extend(verdict.mistake(rule));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let compares = config.samples.iter().any(|rule| rule.delta.is_some() || rule.changed);
        Ok(KeepRules { config: config.clone(), channels, compares })
    }

    /// Says whether the window behind a verdict is kept as it came.
    pub fn keep_verdict(&self, score: f32, confidence: f32, label: &str) -> Keep {
        match self.config.verdicts.iter().position(|rule| rule.matches(score, confidence, label)) {
            Some(rule) => Keep::Raw(KeepReason::Verdict(rule)),
            None => Keep::Fold,
        }
    }

    fn threshold(&self, row: &[f64]) -> Option<KeepReason> {
        self.config.samples.iter().find_map(|rule| {
            let value = row[rule.channel];
            if rule.above.is_some_and(|above| value > above) {
                Some(KeepReason::Above(rule.channel))
            } else if rule.below.is_some_and(|below| value < below) {
                Some(KeepReason::Below(rule.channel))
            } else {
                None
            }
        })
    }

    fn moved(&self, row: &[f64], kept: &[f64]) -> Option<KeepReason> {
        let has_moved = |rule: &&ValueRule| {
            let (value, kept) = (row[rule.channel], kept[rule.channel]);
            (rule.changed && value != kept) || rule.delta.is_some_and(|delta| (value - kept).abs() >= delta)
        };
        self.config.samples.iter().find(has_moved).map(|rule| KeepReason::Moved(rule.channel))
    }
}

/// What one device of a stream has kept last: `8 x channels` bytes if a rule compares with it, and 40 more.
#[derive(Debug, Clone, Default)]
pub struct Keeper {
    kept: Vec<f64>,
    kept_at_us: Option<i64>,
}

impl Keeper {
    /// A keeper that has kept nothing.
    pub fn new() -> Keeper {
        Keeper::default()
    }

    /// Says whether a sample received at `received_us` is kept as it came, and remembers it if so.
    ///
    /// `every` and `spacing_min` count on the time of receipt, because a device's clock may stand still; if that falls back, a
    /// sample is due, and none is too soon.
    ///
    /// # Panics
    /// If `row` has another number of channels than the rules were checked for.
    pub fn keep(&mut self, rules: &KeepRules, received_us: i64, row: &[f64]) -> Keep {
        assert_eq!(row.len(), rules.channels, "a row has the rules' channels");
        let Some(reason) = self.reason(rules, received_us, row) else { return Keep::Fold };
        self.remember(rules, received_us, row);
        Keep::Raw(reason)
    }

    /// Says whether a message is kept as it came: it is if any of its rows is, for the first reason found.
    ///
    /// All its rows are then known to the far end, so the last one is what later samples are compared with.
    ///
    /// # Panics
    /// If the message has another number of channels than the rules were checked for.
    pub fn keep_message(&mut self, rules: &KeepRules, samples: &Samples, received_us: i64) -> Keep {
        for index in 0..samples.rows() {
            let keep = self.keep(rules, received_us, samples.row(index));
            if keep != Keep::Fold {
                self.remember(rules, received_us, samples.row(samples.rows() - 1));
                return keep;
            }
        }
        Keep::Fold
    }

    fn reason(&self, rules: &KeepRules, received_us: i64, row: &[f64]) -> Option<KeepReason> {
        if self.is_too_soon(rules, received_us) {
            return None;
        }
        if let Some(reason) = rules.threshold(row) {
            return Some(reason);
        }
        let Some(kept_at_us) = self.kept_at_us else {
            return (rules.compares || rules.config.every_us.is_some()).then_some(KeepReason::First);
        };
        let is_due = rules
            .config
            .every_us
            .is_some_and(|every_us| received_us < kept_at_us || received_us.saturating_sub(kept_at_us) >= every_us);
        let moved = if rules.compares { rules.moved(row, &self.kept) } else { None };
        moved.or(is_due.then_some(KeepReason::Due))
    }

    fn is_too_soon(&self, rules: &KeepRules, received_us: i64) -> bool {
        match (rules.config.spacing_min_us, self.kept_at_us) {
            (Some(spacing_min_us), Some(kept_at_us)) => (0..spacing_min_us).contains(&received_us.saturating_sub(kept_at_us)),
            _ => false,
        }
    }

    fn remember(&mut self, rules: &KeepRules, received_us: i64, row: &[f64]) {
        self.kept_at_us = Some(received_us);
        if rules.compares {
            self.kept.clear();
            self.kept.extend_from_slice(row);
        }
    }
}

impl ValueRule {
    fn mistake(&self, rule: usize, channels: usize) -> Option<KeepError> {
        let given = [self.above, self.below, self.delta];
        if self.channel >= channels {
            return Some(KeepError::Channel { rule, channel: self.channel, channels });
        }
        if given.iter().all(Option::is_none) && !self.changed {
            return Some(KeepError::Empty { table: "samples", rule });
        }
        if !given.iter().flatten().all(|value| value.is_finite()) {
            return Some(KeepError::NotFinite { table: "samples", rule });
        }
        if self.delta.is_some_and(|delta| delta <= 0.0) {
            return Some(KeepError::Delta { rule });
        }
        match (self.above, self.below) {
            (Some(above), Some(below)) if above < below => Some(KeepError::Everything { rule, above, below }),
            _ if self.changed && self.delta.is_some() => Some(KeepError::DeltaUnused { rule }),
            _ => None,
        }
    }
}

impl VerdictRule {
    /// Compares as `f32`, so that a score of 0.9 is not below a limit of 0.9.
    fn matches(&self, score: f32, confidence: f32, label: &str) -> bool {
        let above = |value: f32, limit: Option<f64>| limit.is_none_or(|limit| value > limit as f32);
        let below = |value: f32, limit: Option<f64>| limit.is_none_or(|limit| value < limit as f32);
        above(score, self.score_above)
            && below(score, self.score_below)
            && above(confidence, self.confidence_above)
            && below(confidence, self.confidence_below)
            && (self.labels.is_empty() || self.labels.iter().any(|wanted| wanted == label))
    }

    fn mistake(&self, rule: usize) -> Option<KeepError> {
        let bands = [(self.score_above, self.score_below), (self.confidence_above, self.confidence_below)];
        let mut given = bands.iter().flat_map(|(above, below)| [above, below]).flatten();
        if given.clone().next().is_none() && self.labels.is_empty() {
            return Some(KeepError::Empty { table: "verdicts", rule });
        }
        if !given.all(|value| value.is_finite()) {
            return Some(KeepError::NotFinite { table: "verdicts", rule });
        }
        bands.into_iter().find_map(|band| match band {
            (Some(above), Some(below)) if above >= below => Some(KeepError::Nothing { rule, above, below }),
            _ => None,
        })
    }
}

/// A mistake in the rules; rules are counted from 0.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KeepError {
    /// The stream has no such channel.
    #[error("rule {rule} in `keep.samples` names channel {channel}, but the stream has {channels}, counted from 0")]
    Channel {
        /// Index of the rule.
        rule: usize,
        /// The channel it names.
        channel: usize,
        /// The stream's channels.
        channels: usize,
    },
    /// A rule without a condition.
    #[error("rule {rule} in `keep.{table}` has no condition: add one, or remove the rule")]
    Empty {
        /// `samples` or `verdicts`.
        table: &'static str,
        /// Index of the rule.
        rule: usize,
    },
    /// A limit is NaN or infinite.
    #[error("rule {rule} in `keep.{table}` has a limit that is not a finite number")]
    NotFinite {
        /// `samples` or `verdicts`.
        table: &'static str,
        /// Index of the rule.
        rule: usize,
    },
    /// A deadband must have a width.
    #[error("rule {rule} in `keep.samples` has a `delta` that is not above 0")]
    Delta {
        /// Index of the rule.
        rule: usize,
    },
    /// A value that has moved by a delta has changed.
    #[error("rule {rule} in `keep.samples` has a `delta` that `changed` makes useless: remove one of them")]
    DeltaUnused {
        /// Index of the rule.
        rule: usize,
    },
    /// The longest silence is shorter than the shortest.
    #[error("keep.spacing_min of {spacing_min_us} us is above keep.every of {every_us} us: lower it, or raise every")]
    Spacing {
        /// What the configuration says.
        spacing_min_us: i64,
        /// What the configuration says.
        every_us: i64,
    },
    /// Every value is above the one or below the other.
    #[error("rule {rule} in `keep.samples` keeps everything: each value is above {above} or below {below}; swap them")]
    Everything {
        /// Index of the rule.
        rule: usize,
        /// Its `above`.
        above: f64,
        /// Its `below`.
        below: f64,
    },
    /// No value is both above the one and below the other.
    #[error("rule {rule} in `keep.verdicts` keeps nothing: no value is above {above} and below {below}; swap them")]
    Nothing {
        /// Index of the rule.
        rule: usize,
        /// The lower limit.
        above: f64,
        /// The upper limit.
        below: f64,
    },
    /// Too many rules or labels.
    #[error("{count} rules or labels exceed the limit of {RULES_MAX}")]
    TooMany {
        /// The longest list.
        count: usize,
    },
}
