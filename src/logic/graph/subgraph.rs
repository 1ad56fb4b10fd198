//! What one owner knows: its nodes and edges, built once, and their estimates, set as often as one likes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::estimate::Estimate;
use super::node::{NameError, NodeKey, NodeKind, Owner};

/// Position of an edge in a [`Subgraph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EdgeIndex(pub(super) u16);

/// Position of a node in a [`Subgraph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(pub(super) u16);

/// One owner's part of the graph.
///
/// Setting an estimate is a store into an array; which nodes and edges there are is settled when it is built, and a new one
/// is built when the policy changes.
#[derive(Debug, Clone)]
pub struct Subgraph {
    owner: Owner,
    nodes: Vec<(NodeKind, Arc<str>)>,
    by_key: BTreeMap<(NodeKind, Arc<str>), u16>,
    ends: Vec<(u16, u16)>,
    by_ends: BTreeMap<(u16, u16), u16>,
    estimates: Vec<Estimate>,
    /// Service time of each estimate's last evidence.
    evidence_us: Vec<u64>,
}

/// Most nodes and edges, so that positions fit 16 bits with room to spare.
pub const SUBGRAPH_LEN_MAX: usize = 32 * 1024;

/// Why a node or an edge cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubgraphError {
    /// A name that this owner may not publish, or nobody.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Too many.
    #[error("more than {SUBGRAPH_LEN_MAX} nodes or edges of {0}")]
    Full(Owner),
    /// An edge from a node to itself.
    #[error("an edge from {0} to itself")]
    Loop(NodeKey),
}

impl Subgraph {
    /// Without nodes.
    pub fn new(owner: Owner) -> Self {
        Subgraph {
            owner,
            nodes: Vec::new(),
            by_key: BTreeMap::new(),
            ends: Vec::new(),
            by_ends: BTreeMap::new(),
            estimates: Vec::new(),
            evidence_us: Vec::new(),
        }
    }

    /// Whose it is.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Adds a node, or finds it.
    ///
    /// # Errors
    /// `Name` for one that this owner may not publish, `Full`.
    pub fn node(&mut self, kind: NodeKind, name: &str) -> Result<NodeIndex, SubgraphError> {
        let key = NodeKey::of(&self.owner, kind, name)?;
        if let Some(index) = self.by_key.get(&(kind, key.name.clone())) {
            return Ok(NodeIndex(*index));
        }
        if self.nodes.len() >= SUBGRAPH_LEN_MAX {
            return Err(SubgraphError::Full(self.owner.clone()));
        }
        let index = self.nodes.len() as u16;
        self.nodes.push((kind, key.name.clone()));
        self.by_key.insert((kind, key.name), index);
        Ok(NodeIndex(index))
    }

    /// Adds an edge in the direction of the data, or finds it.
    ///
    /// # Errors
    /// `Loop` or `Full`.
    pub fn edge(&mut self, from: NodeIndex, to: NodeIndex) -> Result<EdgeIndex, SubgraphError> {
        if from == to {
            return Err(SubgraphError::Loop(self.key(from)));
        }
        let ends = (from.0, to.0);
        if let Some(index) = self.by_ends.get(&ends) {
            return Ok(EdgeIndex(*index));
        }
        if self.ends.len() >= SUBGRAPH_LEN_MAX {
            return Err(SubgraphError::Full(self.owner.clone()));
        }
        let index = self.ends.len() as u16;
        self.ends.push(ends);
        self.by_ends.insert(ends, index);
        self.estimates.push(Estimate::default());
        self.evidence_us.push(0);
        Ok(EdgeIndex(index))
    }

    /// Tells what is known of an edge now; its age counts back from `now_us`.
    pub fn set(&mut self, edge: EdgeIndex, now_us: u64, estimate: Estimate) {
        let at = usize::from(edge.0);
        if let (Some(held), Some(evidence_us)) = (self.estimates.get_mut(at), self.evidence_us.get_mut(at)) {
            *held = estimate;
            *evidence_us = now_us.saturating_sub(estimate.age_us);
        }
    }

    /// What is known of an edge, with its age at `now_us`.
    pub fn estimate(&self, edge: EdgeIndex, now_us: u64) -> Estimate {
        let at = usize::from(edge.0);
        let Some(held) = self.estimates.get(at) else { return Estimate::default() };
        held.with_evidence(now_us.saturating_sub(self.evidence_us[at]), held.trust)
    }

    /// The key of a node.
    pub fn key(&self, node: NodeIndex) -> NodeKey {
        let (kind, name) = &self.nodes[usize::from(node.0)];
        let site = (kind.is_owned() && *kind != NodeKind::Gateway).then(|| self.owner.name().into());
        NodeKey { kind: *kind, site, name: name.clone() }
    }

    /// Nodes by position: kind and name.
    pub fn nodes(&self) -> &[(NodeKind, Arc<str>)] {
        &self.nodes
    }

    /// Edges by position: the nodes they lead from and to.
    pub fn edges(&self) -> impl ExactSizeIterator<Item = (EdgeIndex, NodeIndex, NodeIndex)> + '_ {
        self.ends.iter().enumerate().map(|(at, (from, to))| (EdgeIndex(at as u16), NodeIndex(*from), NodeIndex(*to)))
    }

    pub(super) fn ends(&self) -> &[(u16, u16)] {
        &self.ends
    }

    /// Estimate and service time of its last evidence, by position of the edge.
    pub(super) fn known(&self) -> impl Iterator<Item = (&Estimate, u64)> {
        self.estimates.iter().zip(self.evidence_us.iter().copied())
    }
}
