//! The plan: what the data plane does with each stream, and why.
//!
//! The data plane applies the present plan to every record in O(1) and asks nothing else. The plan is recomputed by
//! [`plan`], a pure function; what it weighs may grow, what it returns stays.

use std::fmt;

use crate::ids::{Class, PerClass};
use crate::policy::{Policy, StreamFidelity};

/// The present decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Counts the plans that differ from the one before.
    pub version: u64,
    /// One entry for each stream of the policy.
    pub streams: Vec<StreamPlan>,
    /// For each lane the uplinks that may carry it, best first.
    pub uplinks: PerClass<Vec<u8>>,
}

/// What becomes of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPlan {
    /// How finely it is kept.
    pub fidelity: StreamFidelity,
    /// The lane its records go into.
    pub lane: Class,
    /// Where its model runs.
    pub placement: Placement,
    /// Why.
    pub reason: Reason,
}

/// Where a stream's model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// It has none.
    None,
    /// On the box.
    Local,
}

/// What made an entry what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The configuration asks for it and nothing speaks against it.
    Policy {
        /// What it asks for.
        asked: StreamFidelity,
    },
    /// Only verdicts are asked for, but there is no model to give any: kept raw rather than lost.
    NoModel {
        /// What the configuration asks for.
        asked: StreamFidelity,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Policy { asked } => write!(f, "policy asks for {}", asked.name()),
            Reason::NoModel { asked } => {
                write!(f, "policy asks for {}, but the stream's model is not loaded: kept raw", asked.name())
            }
        }
    }
}

impl fmt::Display for StreamPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let placement = match self.placement {
            Placement::None => "no model",
            Placement::Local => "model on the box",
        };
        write!(f, "{} in lane {}, {placement}", self.fidelity.name(), self.lane.name())
    }
}

/// Decides for every stream; `last` is the plan it replaces.
pub fn plan(policy: &Policy, last: Option<&Plan>) -> Plan {
    let streams = policy
        .streams
        .iter()
        .map(|stream| {
            let asked = stream.fidelity;
            let placement = if stream.model.is_some() { Placement::Local } else { Placement::None };
            let (fidelity, reason) = match (asked, placement) {
                (StreamFidelity::Verdict, Placement::None) => (StreamFidelity::Raw, Reason::NoModel { asked }),
                _ => (asked, Reason::Policy { asked }),
            };
            StreamPlan { fidelity, lane: stream.class, placement, reason }
        })
        .collect();
    let order: Vec<u8> = (0..policy.uplinks as u8).collect();
    let mut plan = Plan { version: 1, streams, uplinks: std::array::from_fn(|_| order.clone()) };
    if let Some(last) = last {
        plan.version = last.version;
        if plan != *last {
            plan.version += 1;
        }
    }
    plan
}
