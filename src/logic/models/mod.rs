//! A new model on its way to answering: tried beside the old one, then with some devices, then in its place.
//!
//! Think of a new doctor. First their papers are looked at; then they sit beside the old one, and what they would have said is
//! compared; then a few patients are theirs; and only then do they take over, with the old one still in the house. So a
//! release goes from [`Stage::Candidate`] (it loads) to [`Stage::Shadow`] (it runs beside, and is not used),
//! [`Stage::Canary`] (a share of the devices gets its answers) and [`Stage::Probation`] (it answers all, in the gateway's own
//! process), and is then active, with the one before kept. Up to the canary it runs in a process of its own.
//!
//! - `active` is always the last one that has proved itself; nothing that happens on a trial changes it.
//! - Each stage is on disk before it begins: [`Output::Save`] waits for [`Input::Saved`]. So a box that dies comes back with
//!   a stage that it had reached, and a model that kills the gateway's process is not tried twice.
//! - What counts is what the box itself sees, in windows: whether a cloud can be reached does not.
//! - A version that was tried is never tried again, and none below it.

mod crashes;
mod fetch;
mod judge;
mod machine;

use serde::{Deserialize, Serialize};

pub use crashes::{CRASHES_MAX, CRASHES_US, Crashes};
pub use fetch::{
    DAY_US, FetchCounters, FetchInput, FetchNews, FetchOutput, FetchRules, FetchStart, FetchView, FetchWay, Fetches, MONTH_US,
    NoWay, Spent, TaskModels, Unfinished,
};
pub use judge::{Judge, Judgement, Observation, Terms};
pub use machine::{Input, Output, Rules, Updates};

/// A model that was signed, as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// From its head; of one task, each is above the one before.
    pub version: u64,
    /// SHA-256 of its head, in hexadecimal: where the store has it.
    pub id: String,
    /// Processor time that a window takes at most, by its head, in microseconds.
    pub window_us_max: u64,
}

/// How far a release on trial has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It is loaded in a process of its own.
    Candidate,
    /// It runs beside the active one, and is compared with it.
    Shadow,
    /// Its answers are used for a share of the devices.
    Canary,
    /// It has taken the active one's place, which waits.
    Probation,
}

impl Stage {
    /// The word used in logs and status.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Candidate => "candidate",
            Stage::Shadow => "shadow",
            Stage::Canary => "canary",
            Stage::Probation => "probation",
        }
    }
}

/// A release on trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Which.
    pub release: Release,
    /// How far it has come.
    pub stage: Stage,
    /// Starts of the box that it has seen.
    pub restarts: u32,
}

/// The models of one task, as the store remembers them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Slot {
    /// The one that has proved itself; `None` for the file that the configuration names.
    pub active: Option<Release>,
    /// The one before it; `None` for that file, too.
    pub previous: Option<Release>,
    /// The one on trial.
    pub trial: Option<Trial>,
    /// Highest version that was ever taken.
    pub tried: u64,
    /// What happened last.
    pub last: Option<News>,
}

impl Slot {
    /// The release that answers; `None` for the file that the configuration names.
    pub fn in_use(&self) -> Option<&Release> {
        match &self.trial {
            Some(trial) if trial.stage == Stage::Probation => Some(&trial.release),
            _ => self.active.as_ref(),
        }
    }

    /// All that must stay in the store.
    pub fn kept(&self) -> impl Iterator<Item = &Release> {
        self.active.iter().chain(&self.previous).chain(self.trial.iter().map(|trial| &trial.release))
    }
}

/// What became of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It has reached a stage of its trial.
    Entered(Stage),
    /// It has proved itself.
    Active,
    /// It was taken back during its trial.
    RolledBack,
    /// It was never tried.
    Refused,
    /// It was active, and the one before answers again.
    Withdrawn,
}

impl Change {
    /// The word used in logs and status.
    pub const fn name(self) -> &'static str {
        match self {
            Change::Entered(stage) => stage.name(),
            Change::Active => "active",
            Change::RolledBack => "rolled-back",
            Change::Refused => "refused",
            Change::Withdrawn => "withdrawn",
        }
    }
}

/// An event in the life of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// Which.
    pub version: u64,
    /// What became of it.
    pub change: Change,
    /// Why, in words.
    pub reason: String,
}

/// What a release on trial did wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It does not load.
    #[error("it cannot be loaded: {0}")]
    Load(String),
    /// Its process has ended, or was ended.
    #[error("its process {0}")]
    Process(String),
    /// Too many windows without an answer.
    #[error("{errors} of {windows} windows got no answer, the last because {last}")]
    Errors {
        /// Without an answer.
        errors: u64,
        /// All.
        windows: u64,
        /// Why, in words.
        last: String,
    },
    /// Its windows take too long.
    #[error("a window took {us} us on average over {windows} windows; its release says at most {us_max}")]
    Slow {
        /// The average.
        us: u64,
        /// All.
        windows: u64,
        /// What was promised.
        us_max: u64,
    },
    /// It says something else than the active one.
    #[error("it disagrees with the active model on {disagreements} of {windows} windows")]
    Disagrees {
        /// On how many.
        disagreements: u64,
        /// All.
        windows: u64,
    },
    /// Nobody can say how it works.
    #[error("only {windows} windows came within {waited_s} s, and {wanted} are to be seen in each stage")]
    Unseen {
        /// That came.
        windows: u64,
        /// How long it was waited for.
        waited_s: u64,
        /// How many are needed.
        wanted: u64,
    },
    /// It came back from no batch any more.
    #[error("it gave no answer to a batch within {waited_s} s, in the gateway's own process, and was given up")]
    Hung {
        /// How long it was waited for.
        waited_s: u64,
    },
    /// The gateway's process died with it.
    #[error("the box stopped while it answered, for whatever reason, and came back with the model before")]
    Crashed,
    /// The box was started too often.
    #[error("the box was started {starts} times during its trial, more than {RESTARTS_MAX}")]
    Restarts {
        /// How often.
        starts: u32,
    },
    /// An operator said so.
    #[error("an operator took it back")]
    Operator,
}

/// Starts of the box during a trial, beyond which it is given up: a trial must come to an end.
pub const RESTARTS_MAX: u32 = 5;

/// Whether a device is among those that get a canary's answers.
///
/// By a hash of its name and the version: the same ones over restarts, and other ones for each release.
pub fn is_canary(device: &str, version: u64, share_ppm: u32) -> bool {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&version.to_le_bytes());
    hash.update(device.as_bytes());
    u64::from(hash.finalize()) * 1_000_000 < u64::from(share_ppm) << 32
}

#[cfg(test)]
mod tests;
