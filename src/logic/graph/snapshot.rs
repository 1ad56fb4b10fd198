//! The graph as of one moment, for people and for later: JSON with a number for its format.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cause::{Cause, Causes};
use super::estimate::{EdgeState, Estimate, Quantity};
use super::federation::{Federation, Part};
use super::node::{NodeKey, Owner};
use super::subgraph::Subgraph;
use super::talkers::Talk;

/// Number of the format that this version writes, and the highest that it reads.
pub const SNAPSHOT_FORMAT: u32 = 1;

/// All nodes and edges with what is known of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`SNAPSHOT_FORMAT`].
    pub format: u32,
    /// Service time of whoever took it, in microseconds.
    pub at_us: u64,
    /// Nodes, each once.
    pub nodes: Vec<NodeKey>,
    /// Edges; of several owners between the same nodes each has its own.
    pub edges: Vec<SnapshotEdge>,
    /// Common causes of trouble.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// Who lately talked to whom for the first time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub talks: Vec<Talk>,
}

/// An edge of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotEdge {
    /// Position of the node that it leads from.
    pub from: u32,
    /// Position of the node that it leads to.
    pub to: u32,
    /// Who says so.
    pub owner: Owner,
    /// The verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<EdgeState>,
    /// What is known, by the name of the quantity.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<Quantity, f64>,
    /// Trust in it when it was fresh.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub trust: f64,
    /// Age of the last evidence in microseconds.
    #[serde(default, skip_serializing_if = "is_none")]
    pub age_us: u64,
}

/// Why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not JSON of our kind.
    #[error("this is not a snapshot of the graph: {0}")]
    Json(#[from] serde_json::Error),
    /// Of a later version.
    #[error("the snapshot has format {found}, this version reads formats up to {SNAPSHOT_FORMAT}; use a newer weir")]
    Format {
        /// The format it has.
        found: u32,
    },
    /// An edge to nowhere.
    #[error("edge {edge} of the snapshot leads to node {node} of {nodes}")]
    Edge {
        /// Position of the edge.
        edge: usize,
        /// Position of the node.
        node: u32,
        /// How many nodes there are.
        nodes: usize,
    },
}

impl Snapshot {
    /// Of all owners' parts and the causes found in them.
    pub fn of_federation(now_us: u64, federation: &Federation, causes: &Causes, talks: Vec<Talk>) -> Snapshot {
        Snapshot::of_parts(now_us, federation.parts(), causes, talks)
    }

    /// Of some owners' parts, and the causes found in all of them.
    pub fn of_parts<'a>(now_us: u64, parts: impl Iterator<Item = Part<'a>>, causes: &Causes, talks: Vec<Talk>) -> Snapshot {
        let mut maker = Maker::default();
        for part in parts {
            let nodes: Vec<u32> = (0..part.nodes().len()).map(|node| maker.node(part.key(node as u16))).collect();
            for (from, to, estimate) in part.edges(now_us) {
                maker.edge(nodes[usize::from(from)], nodes[usize::from(to)], part.owner(), &estimate);
            }
        }
        Snapshot { causes: causes.named().cloned().collect(), talks, ..maker.finish(now_us) }
    }

    /// Of one owner's own part, and what it has of others.
    pub fn of_subgraph(now_us: u64, graph: &Subgraph, others: &Federation) -> Snapshot {
        let mut maker = Maker::default();
        for (edge, from, to) in graph.edges() {
            let (from, to) = (maker.node(graph.key(from)), maker.node(graph.key(to)));
            maker.edge(from, to, graph.owner(), &graph.estimate(edge, now_us));
        }
        for part in others.parts().filter(|part| part.owner() != graph.owner()) {
            for (from, to, estimate) in part.edges(now_us) {
                let (from, to) = (maker.node(part.key(from)), maker.node(part.key(to)));
                maker.edge(from, to, part.owner(), &estimate);
            }
        }
        maker.finish(now_us)
    }

    /// Reads what [`Snapshot::to_json`] wrote.
    ///
    /// # Errors
    /// If it is something else, or of a later version.
    pub fn from_json(text: &str) -> Result<Snapshot, SnapshotError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let Head { format: found } = serde_json::from_str(text)?;
        if found == 0 || found > SNAPSHOT_FORMAT {
            return Err(SnapshotError::Format { found });
        }
        let snapshot: Snapshot = serde_json::from_str(text)?;
        let nodes = snapshot.nodes.len();
        for (edge, held) in snapshot.edges.iter().enumerate() {
            if let Some(node) = [held.from, held.to].into_iter().find(|node| *node as usize >= nodes) {
                return Err(SnapshotError::Edge { edge, node, nodes });
            }
        }
        Ok(snapshot)
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("keys are text and numbers finite")
    }
}

impl SnapshotEdge {
    /// What is known of it.
    pub fn estimate(&self) -> Estimate {
        let known = Estimate::default().with_evidence(self.age_us, self.trust);
        let mut estimate = self.values.iter().fold(known, |estimate, (quantity, value)| estimate.with(*quantity, *value));
        estimate.state = self.state;
        estimate
    }
}

#[derive(Debug, Default)]
struct Maker {
    positions: BTreeMap<NodeKey, u32>,
    nodes: Vec<NodeKey>,
    edges: Vec<SnapshotEdge>,
}

impl Maker {
    fn node(&mut self, key: NodeKey) -> u32 {
        let next = self.nodes.len() as u32;
        *self.positions.entry(key).or_insert_with_key(|key| {
            self.nodes.push(key.clone());
            next
        })
    }

    fn edge(&mut self, from: u32, to: u32, owner: &Owner, estimate: &Estimate) {
        let known = |quantity| estimate.get(quantity).map(|value| (quantity, value));
        let values = Quantity::ALL.into_iter().filter_map(known).collect();
        let (state, trust, age_us) = (estimate.state, estimate.trust, estimate.age_us);
        // Of what is not known nothing is old.
        let age_us = if estimate.is_empty() { 0 } else { age_us };
        self.edges.push(SnapshotEdge { from, to, owner: owner.clone(), state, values, trust, age_us });
    }

    fn finish(self, at_us: u64) -> Snapshot {
        let (nodes, edges) = (self.nodes, self.edges);
        Snapshot { format: SNAPSHOT_FORMAT, at_us, nodes, edges, causes: Vec::new(), talks: Vec::new() }
    }
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn is_none(value: &u64) -> bool {
    *value == 0
}
