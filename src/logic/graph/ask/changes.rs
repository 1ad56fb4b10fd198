//! What is different between two snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::super::cause::Cause;
use super::super::estimate::{EdgeState, Quantity};
use super::super::node::{NodeKey, Owner};
use super::super::snapshot::{Snapshot, SnapshotEdge};
use super::super::talkers::Talk;
use super::text::{Table, quantity};

/// All that changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Changes {
    /// Nodes that are new.
    pub nodes_new: Vec<NodeKey>,
    /// Nodes that are gone.
    pub nodes_gone: Vec<NodeKey>,
    /// Edges that are new: who talks to whom that did not.
    pub edges_new: Vec<EdgeId>,
    /// Edges that are gone.
    pub edges_gone: Vec<EdgeId>,
    /// Other verdicts.
    pub states: Vec<StateChange>,
    /// Values that are a fifth more or less.
    pub values: Vec<ValueChange>,
    /// Common causes of trouble that were not named before.
    pub causes_new: Vec<Cause>,
    /// Common causes that are named no longer.
    pub causes_gone: Vec<NodeKey>,
    /// Pairs that talked for the first time ever, as far as anybody remembers.
    pub talks: Vec<Talk>,
}

/// Names an edge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct EdgeId {
    /// From here.
    pub from: NodeKey,
    /// To there.
    pub to: NodeKey,
    /// Who says so.
    pub owner: Owner,
}

impl fmt::Display for EdgeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.from, self.to)?;
        // What a box says of its own needs no mention.
        match self.from.site() {
            Some(site) if self.owner.is_gateway() && site == self.owner.name() => Ok(()),
            _ => write!(f, " ({})", self.owner),
        }
    }
}

/// Another verdict.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StateChange {
    /// The edge.
    pub edge: EdgeId,
    /// Before.
    pub before: Option<EdgeState>,
    /// After.
    pub after: Option<EdgeState>,
}

/// Another value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValueChange {
    /// The edge.
    pub edge: EdgeId,
    /// What of it.
    pub quantity: Quantity,
    /// Before.
    pub before: Option<f64>,
    /// After.
    pub after: Option<f64>,
}

/// Compares two snapshots.
pub fn changes(before: &Snapshot, after: &Snapshot) -> Changes {
    let nodes = |snapshot: &Snapshot| snapshot.nodes.iter().cloned().collect::<BTreeSet<NodeKey>>();
    let (nodes_before, nodes_after) = (nodes(before), nodes(after));
    let (edges_before, edges_after) = (edges(before), edges(after));
    let causes = |snapshot: &Snapshot| snapshot.causes.iter().map(|cause| cause.node.clone()).collect::<BTreeSet<NodeKey>>();
    let (causes_before, causes_after) = (causes(before), causes(after));
    let missing = |from: &BTreeMap<EdgeId, &SnapshotEdge>, other: &BTreeMap<EdgeId, &SnapshotEdge>| {
        from.keys().filter(|edge| !other.contains_key(edge)).cloned().collect()
    };
    let mut changes = Changes {
        nodes_new: nodes_after.difference(&nodes_before).cloned().collect(),
        nodes_gone: nodes_before.difference(&nodes_after).cloned().collect(),
        edges_new: missing(&edges_after, &edges_before),
        edges_gone: missing(&edges_before, &edges_after),
        causes_new: after.causes.iter().filter(|cause| !causes_before.contains(&cause.node)).cloned().collect(),
        causes_gone: causes_before.difference(&causes_after).cloned().collect(),
        talks: after.talks.iter().filter(|talk| !before.talks.contains(talk)).cloned().collect(),
        ..Changes::default()
    };
    for (edge, now) in &edges_after {
        let Some(then) = edges_before.get(edge) else { continue };
        if now.state != then.state {
            changes.states.push(StateChange { edge: edge.clone(), before: then.state, after: now.state });
        }
        for quantity in Quantity::ALL {
            let (before, after) = (then.values.get(&quantity).copied(), now.values.get(&quantity).copied());
            if has_moved(quantity, before, after) {
                changes.values.push(ValueChange { edge: edge.clone(), quantity, before, after });
            }
        }
    }
    changes
}

fn edges(snapshot: &Snapshot) -> BTreeMap<EdgeId, &SnapshotEdge> {
    let node = |place: u32| snapshot.nodes.get(place as usize).cloned();
    let id = |edge: &SnapshotEdge| Some(EdgeId { from: node(edge.from)?, to: node(edge.to)?, owner: edge.owner.clone() });
    snapshot.edges.iter().filter_map(|edge| Some((id(edge)?, edge))).collect()
}

fn has_moved(quantity: Quantity, before: Option<f64>, after: Option<f64>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => (after - before).abs() > (MOVED_PART * before.max(after)).max(quantity.noise()),
        _ => before.is_some() != after.is_some(),
    }
}

/// Estimates of a steady link scatter by less.
const MOVED_PART: f64 = 0.2;

impl Changes {
    /// True if nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    /// For people.
    pub fn to_table(&self) -> String {
        if self.is_empty() {
            return "nothing changed\n".to_owned();
        }
        let mut table = Table::new(&["what", "where", "before", "after"]);
        let mut row = |what: &str, at: String, before: &str, after: &str| {
            table.row([what.to_owned(), at, before.to_owned(), after.to_owned()]);
        };
        for cause in &self.causes_new {
            let after = format!("{} for {} sites", cause.trouble.name(), cause.affected);
            row("common cause", cause.node.to_string(), "", &after);
        }
        self.causes_gone.iter().for_each(|node| row("common cause", node.to_string(), "named", ""));
        for talk in &self.talks {
            row("new talk", format!("{} to {}", talk.from, talk.to), "", "for the first time");
        }
        let state = |state: Option<EdgeState>| state.map_or("", EdgeState::name);
        for change in &self.states {
            row("state", change.edge.to_string(), state(change.before), state(change.after));
        }
        self.nodes_new.iter().for_each(|node| row("node", node.to_string(), "", "new"));
        self.nodes_gone.iter().for_each(|node| row("node", node.to_string(), "there", "gone"));
        self.edges_new.iter().for_each(|edge| row("edge", edge.to_string(), "", "new"));
        self.edges_gone.iter().for_each(|edge| row("edge", edge.to_string(), "there", "gone"));
        for change in &self.values {
            let value = |value: Option<f64>| value.map_or(String::new(), |value| quantity(change.quantity, value));
            row(change.quantity.name(), change.edge.to_string(), &value(change.before), &value(change.after));
        }
        table.to_string()
    }
}
