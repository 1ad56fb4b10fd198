//! A snapshot as a petgraph, ready to be asked.
//!
//! Many boxes say that a carrier leads to an ingest node, and each may only speak for itself. So a box's ways are made of its
//! own edges and of those of the cloud, never of another box's: otherwise one box could be sent over an uplink of another.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::graph::{DiGraph, EdgeIndex, NodeIndex};

use super::estimate::Estimate;
use super::node::{NodeKey, NodeKind, Owner};
use super::snapshot::{Snapshot, SnapshotError};

/// An edge and who says so.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Link {
    pub(super) owner: Owner,
    pub(super) estimate: Estimate,
}

/// The graph that questions are asked of.
#[derive(Debug, Clone)]
pub struct View {
    pub(super) graph: DiGraph<NodeKey, Link>,
    by_key: BTreeMap<NodeKey, NodeIndex>,
    /// Edges of each box, by its name.
    by_site: BTreeMap<String, Vec<EdgeIndex>>,
    /// Edges that the cloud speaks for.
    of_cloud: Vec<EdgeIndex>,
    pub(super) snapshot: Snapshot,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No such node.
    #[error("there is no {asked} in the graph{}", hint(near))]
    Unknown {
        /// What was asked for.
        asked: String,
        /// What may have been meant.
        near: Vec<String>,
    },
    /// Several nodes have that name.
    #[error("{asked} may be any of {}; write the whole id", ids.join(", "))]
    Ambiguous {
        /// What was asked for.
        asked: String,
        /// Some of those that it may be.
        ids: Vec<String>,
    },
    /// A way starts at a stream.
    #[error("{0} is not a stream: ways lead from streams to sinks and pools")]
    NotAStream(NodeKey),
    /// No such edge.
    #[error("there is no edge from {from} to {to}")]
    NoEdge {
        /// Where it would start.
        from: NodeKey,
        /// Where it would end.
        to: NodeKey,
    },
    /// No such box.
    #[error("there is no box {0} in the graph; `show` lists gateways")]
    NoSite(String),
}

fn hint(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; there is {}", near.join(", ")) }
}

impl View {
    /// Of a snapshot.
    ///
    /// # Errors
    /// `Edge` if one leads to nowhere.
    pub fn new(snapshot: Snapshot) -> Result<View, SnapshotError> {
        let (nodes, edges) = (snapshot.nodes.len(), snapshot.edges.len());
        let mut graph = DiGraph::with_capacity(nodes, edges);
        let mut by_key = BTreeMap::new();
        // A node that is listed twice is one node.
        let places: Vec<NodeIndex> = snapshot
            .nodes
            .iter()
            .map(|key| *by_key.entry(key.clone()).or_insert_with(|| graph.add_node(key.clone())))
            .collect();
        let mut by_site: BTreeMap<String, Vec<EdgeIndex>> = BTreeMap::new();
        let mut of_cloud = Vec::new();
        for (edge, held) in snapshot.edges.iter().enumerate() {
            let place = |node: u32| places.get(node as usize).copied().ok_or(SnapshotError::Edge { edge, node, nodes });
            let link = Link { owner: held.owner.clone(), estimate: held.estimate() };
            let index = graph.add_edge(place(held.from)?, place(held.to)?, link);
            if held.owner.is_gateway() {
                by_site.entry(held.owner.name().to_owned()).or_default().push(index);
            } else {
                of_cloud.push(index);
            }
        }
        Ok(View { graph, by_key, by_site, of_cloud, snapshot })
    }

    /// The node with this id, or the only one with this name.
    ///
    /// # Errors
    /// `Unknown` with those whose ids look like it, `Ambiguous`.
    pub fn find(&self, asked: &str) -> Result<NodeKey, AskError> {
        if let Some((key, _)) = asked.parse::<NodeKey>().ok().and_then(|key| self.by_key.get_key_value(&key)) {
            return Ok(key.clone());
        }
        let named: Vec<&NodeKey> = self.by_key.keys().filter(|key| key.name.as_ref() == asked).collect();
        let ids = |keys: &[&NodeKey]| keys.iter().take(NEAR_MAX).map(ToString::to_string).collect();
        match named[..] {
            [key] => Ok(key.clone()),
            [] => {
                let part = asked.rsplit('/').next().unwrap_or(asked);
                let near: Vec<&NodeKey> =
                    self.by_key.keys().filter(|key| !part.is_empty() && key.name.contains(part)).collect();
                Err(AskError::Unknown { asked: asked.to_owned(), near: ids(&near) })
            }
            _ => Err(AskError::Ambiguous { asked: asked.to_owned(), ids: ids(&named) }),
        }
    }

    /// Boxes that have published anything.
    pub fn sites(&self) -> impl Iterator<Item = &str> {
        self.by_site.keys().map(String::as_str)
    }

    pub(super) fn place(&self, key: &NodeKey) -> Result<NodeIndex, AskError> {
        let unknown = || AskError::Unknown { asked: key.to_string(), near: Vec::new() };
        self.by_key.get(key).copied().ok_or_else(unknown)
    }

    pub(super) fn key(&self, place: NodeIndex) -> &NodeKey {
        &self.graph[place]
    }

    /// All streams, in the order of their keys.
    pub(super) fn streams(&self) -> impl Iterator<Item = &NodeKey> {
        self.by_key.keys().filter(|key| key.kind == NodeKind::Stream)
    }

    /// Zones in which a node lies.
    pub(super) fn zones(&self, place: NodeIndex) -> impl Iterator<Item = &NodeKey> {
        self.graph.neighbors(place).map(|zone| self.key(zone)).filter(|zone| zone.kind == NodeKind::Zone)
    }

    /// The ways that data of a box can take.
    pub(super) fn ways(&self, site: &str) -> Result<Ways, AskError> {
        let own = self.by_site.get(site).ok_or_else(|| AskError::NoSite(site.to_owned()))?;
        let mut ways = Ways { graph: DiGraph::new(), places: BTreeMap::new(), end: NodeKind::Sink };
        let mut taken = BTreeSet::new();
        // Its own word first: where it speaks of an edge, the cloud's does not count.
        for &edge in own.iter().chain(&self.of_cloud) {
            let Some((from, to)) = self.graph.edge_endpoints(edge) else { continue };
            if carries(self.key(from).kind, self.key(to).kind) && taken.insert((from, to)) {
                let (from, to) = (ways.add(from), ways.add(to));
                ways.graph.add_edge(from, to, edge);
            }
        }
        let is_sink = |place: &NodeIndex| self.key(*place).kind == NodeKind::Sink;
        let has_sinks = ways.graph.node_weights().any(is_sink);
        ways.end = if has_sinks { NodeKind::Sink } else { NodeKind::Ingest };
        Ok(ways)
    }

    pub(super) fn link(&self, edge: EdgeIndex) -> &Link {
        &self.graph[edge]
    }

    pub(super) fn ends(&self, edge: EdgeIndex) -> (&NodeKey, &NodeKey) {
        let (from, to) = self.graph.edge_endpoints(edge).expect("edges of ways are the graph's, which never loses one");
        (self.key(from), self.key(to))
    }
}

/// True if data goes that way: not to the place where something stands, and not back with the acknowledgements.
fn carries(from: NodeKind, to: NodeKind) -> bool {
    to != NodeKind::Zone && (from.is_owned() || !to.is_owned())
}

/// One box's ways; nodes and edges are places in the view's graph.
#[derive(Debug, Clone)]
pub(super) struct Ways {
    pub(super) graph: DiGraph<NodeIndex, EdgeIndex>,
    places: BTreeMap<NodeIndex, NodeIndex>,
    /// Where ways end: at sinks, or at ingest nodes where nobody has said what lies behind them.
    pub(super) end: NodeKind,
}

impl Ways {
    fn add(&mut self, place: NodeIndex) -> NodeIndex {
        *self.places.entry(place).or_insert_with(|| self.graph.add_node(place))
    }

    /// Where a node of the view is here.
    pub(super) fn at(&self, place: NodeIndex) -> Option<NodeIndex> {
        self.places.get(&place).copied()
    }
}

/// Ids shown where one was not found.
const NEAR_MAX: usize = 5;
