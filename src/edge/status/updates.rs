//! The models of a task that may be replaced while the box runs, as the status shows them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The models of one task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// The task.
    pub task: String,
    /// Version of the store's model that has proved itself; 0 for the file of the configuration.
    pub active: u64,
    /// Version before it; 0 for that file, too.
    pub previous: u64,
    /// Version that answers now; that on probation, or the active one.
    pub answers: u64,
    /// Version on trial.
    pub trial: Option<u64>,
    /// How far it has come: `candidate`, `shadow`, `canary` or `probation`.
    pub stage: Option<String>,
    /// Windows that it was seen with in this stage.
    pub windows: u64,
    /// Those on which it disagreed with the active one.
    pub disagreements: u64,
    /// How often what became of a release, since start.
    pub changes: BTreeMap<String, u64>,
    /// What happened last, oldest first.
    pub events: Vec<String>,
}
