//! What is known and said of packages on their way.

use std::fmt;

use super::{FetchCounters, Fetches, Spent, Step, Transfer};
use crate::models::Change;
use crate::rollout::OfferState;
use crate::wire::model::{ModelState, ModelStates, model_reason};

/// The models of one task, as the desk for models knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskModels {
    /// The task.
    pub task: String,
    /// Version that has proved itself; 0 for the file of the configuration.
    pub active: u64,
    /// Highest version that was ever taken.
    pub tried: u64,
    /// Version on trial, and its stage.
    pub trial: Option<(u64, &'static str)>,
    /// What became of a release last: version, what, and why.
    pub last: Option<(u64, Change, String)>,
    /// The last one that the inbox refused, and why.
    pub refused: Option<(u64, String)>,
}

/// Something became of an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchNews {
    /// The task.
    pub task: String,
    /// The version.
    pub version: u64,
    /// `Trial` while it is on its way, or `Refused`.
    pub state: OfferState,
    /// `waiting`, `fetching` or `fetched`; empty for one that is refused.
    pub stage: &'static str,
    /// Why, in words.
    pub reason: String,
}

impl FetchNews {
    /// The word used in logs and status.
    pub fn word(&self) -> &'static str {
        if self.state == OfferState::Refused { "refused" } else { self.stage }
    }
}

impl fmt::Display for FetchNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FetchNews { task, version, reason, .. } = self;
        write!(f, "version {version} for {task} {}: {reason}", self.word())
    }
}

/// Packages on their way, for status and metrics.
#[derive(Debug, Clone, Copy)]
pub struct FetchView<'a> {
    fetches: &'a Fetches,
}

impl<'a> FetchView<'a> {
    /// What is fetched now: task, version, bytes that are here, and of how many.
    pub fn under_way(&self) -> Option<(&'a str, u64, u64, u64)> {
        let Transfer { offer, have, step, .. } = self.fetches.transfer.as_ref()?;
        (*step != Step::Checking).then_some((offer.task.as_str(), offer.version, *have, offer.len))
    }

    /// By task: what became of the last offer.
    pub fn said(&self) -> impl Iterator<Item = &'a FetchNews> {
        self.fetches.said.values()
    }

    /// What happened last, oldest first.
    pub fn events(&self) -> impl Iterator<Item = &'a str> {
        self.fetches.events.iter().map(String::as_str)
    }

    /// What was used of the budget.
    pub fn spent(&self) -> Spent {
        self.fetches.spent
    }

    /// What is allowed of it in a day and in 30; `None` if the box takes no models.
    pub fn limits(&self) -> Option<(u64, u64)> {
        self.fetches.rules.map(|rules| (rules.day_bytes, rules.month_bytes))
    }

    /// What was counted since start.
    pub fn counters(&self) -> FetchCounters {
        self.fetches.counters
    }
}

impl Fetches {
    /// For status and metrics.
    pub fn view(&self) -> FetchView<'_> {
        FetchView { fetches: self }
    }

    /// What the cloud is told.
    pub fn states(&self) -> ModelStates {
        ModelStates { tasks: self.tasks.iter().map(|of| self.state(of)).collect() }
    }

    fn state(&self, of: &TaskModels) -> ModelState {
        let refused = of.refused.as_ref().filter(|(version, _)| *version > of.tried);
        let (version, state, stage, reason) = match (self.said.get(&of.task), &of.trial, refused, &of.last) {
            (Some(said), ..) => (said.version, said.state, said.stage, said.reason.as_str()),
            (_, Some((version, stage)), ..) => (*version, OfferState::Trial, *stage, ""),
            (_, _, Some((version, reason)), _) => (*version, OfferState::Refused, "", reason.as_str()),
            (.., Some((version, Change::RolledBack | Change::Withdrawn, reason))) => {
                (*version, OfferState::RolledBack, "", reason.as_str())
            }
            _ => (of.active, OfferState::Kept, "", ""),
        };
        ModelState {
            task: of.task.clone(),
            active: of.active,
            tried: of.tried,
            version,
            state: state.code(),
            stage: stage.to_owned(),
            reason: model_reason(reason).to_owned(),
        }
    }
}
