//! Why a plan changed: what it was, what it is, the numbers that made it, and what was rejected.
//!
//! The last [`CHANGES_MAX`] changes are kept; older ones are counted. Texts are made when something changes, which is rare, and
//! never per record.

use std::collections::VecDeque;

use crate::ids::Class;
use crate::plan::{Plan, StreamPlan};
use crate::policy::Policy;
use crate::price::Level;
use crate::route::{Candidate, LaneRoute};

/// Changes that are kept.
pub const CHANGES_MAX: usize = 256;

/// One change of the plan.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Change {
    /// Service time in microseconds.
    pub at_us: u64,
    /// The plan's version.
    pub version: u64,
    /// What it is about: `stream NAME`, `lane CLASS` or `policy`.
    pub subject: String,
    /// Before; empty for the first plan.
    pub old: String,
    /// From now on.
    pub new: String,
    /// The numbers that made it.
    pub reason: String,
    /// What was weighed and not taken, each with its reason.
    pub rejected: Vec<String>,
}

/// The last changes, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    list: VecDeque<Change>,
    total: u64,
}

impl Changes {
    /// Remembers a change; the oldest makes room.
    pub fn push(&mut self, change: Change) {
        if self.list.len() >= CHANGES_MAX {
            self.list.pop_front();
        }
        self.list.push_back(change);
        self.total += 1;
    }

    /// Those that are kept, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Change> {
        self.list.iter()
    }

    /// All there were since start.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// Says how the plan of a stream has changed.
pub fn stream_change(now_us: u64, policy: &Policy, plan: &Plan, index: usize, before: Option<&StreamPlan>) -> Change {
    let entry = &plan.streams[index];
    Change {
        at_us: now_us,
        version: plan.version,
        subject: format!("stream {}", policy.streams[index].name),
        old: before.map(ToString::to_string).unwrap_or_default(),
        new: entry.to_string(),
        reason: entry.why(),
        rejected: levels(policy, plan, index),
    }
}

/// The levels of a stream that were not taken: what each would bring for a byte that it adds, beside the price.
pub fn levels(policy: &Policy, plan: &Plan, index: usize) -> Vec<String> {
    let (Some(value), entry) = (policy.streams[index].value, &plan.streams[index]) else { return Vec::new() };
    let levels: Vec<(Level, f64)> = value.ladder.levels().collect();
    let below = |at: usize| levels.get(at + 1).map_or((0.0, 0.0), |&(level, worth)| (level.bytes(), worth));
    let describe = |(at, &(level, worth)): (usize, &(Level, f64))| {
        let (bytes, worth_below) = below(at);
        let slope = value.weight * (worth - worth_below) / (level.bytes() - bytes);
        let verdict = if slope >= plan.lambda { "pays" } else { "does not pay" };
        format!("{level}: {slope:.3e} for a byte more at a price of {:.3e}, {verdict}", plan.lambda)
    };
    levels.iter().enumerate().filter(|(_, (level, _))| Some(*level) != entry.level).map(describe).collect()
}

/// Says how the way of a lane has changed.
pub fn route_change(now_us: u64, policy: &Policy, plan: &Plan, class: Class, before: Option<&LaneRoute>) -> Change {
    let route = &plan.routes[class.index()];
    let name = |uplink: Option<u8>| uplink.map_or("none", |uplink| &policy.uplinks[usize::from(uplink)].name).to_owned();
    let chosen = route.candidates.first().filter(|_| route.first().is_some());
    Change {
        at_us: now_us,
        version: plan.version,
        subject: format!("lane {}", class.name()),
        old: before.map(|before| name(before.first())).unwrap_or_default(),
        new: name(route.first()),
        reason: chosen.map_or_else(|| no_way(route), |chosen| candidate(policy, chosen)),
        rejected: rejected(policy, route),
    }
}

/// Why a lane has no uplink, in words.
pub fn no_way(route: &LaneRoute) -> String {
    match route.held() {
        Some(load) => format!("held on the box, because the cloud is {}", load.name()),
        None => "no uplink may carry it".to_owned(),
    }
}

/// The uplinks that a lane does not prefer, each with its reason.
pub fn rejected(policy: &Policy, route: &LaneRoute) -> Vec<String> {
    let first = route.first();
    route.candidates.iter().filter(|c| Some(c.uplink) != first).map(|c| candidate(policy, c)).collect()
}

/// One uplink as it was weighed, in words.
pub fn candidate(policy: &Policy, candidate: &Candidate) -> String {
    let (name, state) = (&policy.uplinks[usize::from(candidate.uplink)].name, candidate.state.name());
    format!("{name}: {}, {state}, a block costs {} ms", candidate.standing, candidate.cost_us / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_change_makes_room_and_is_counted() {
        let change = |version| Change {
            at_us: version,
            version,
            subject: "lane high".to_owned(),
            old: String::new(),
            new: "lte".to_owned(),
            reason: String::new(),
            rejected: Vec::new(),
        };
        let mut changes = Changes::default();
        (0..CHANGES_MAX as u64 + 3).for_each(|version| changes.push(change(version)));
        assert_eq!((changes.iter().count(), changes.total()), (CHANGES_MAX, CHANGES_MAX as u64 + 3));
        assert_eq!(changes.iter().next().map(|change| change.version), Some(3));
    }
}
