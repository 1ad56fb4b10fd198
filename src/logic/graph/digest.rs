//! A digest: the sub-graph that one owner publishes, whole or as what has changed.
//!
//! Columns of small numbers instead of a message per node and edge: names are in a table, nodes and edges are positions.
//! A *full* digest has all; a *delta* has only estimates, those that changed since `base`. It holds for whoever has `base`
//! or anything newer, because it gives values and no differences. Which nodes and edges there are changes rarely, and then
//! a full digest follows.

use prost::Message;

use super::cell::{Cell, CellReader};
use super::node::{NameError, NodeKind, Owner, check_node};

/// Which state of an owner's sub-graph: the higher one is the later one.
///
/// `run` tells apart two lives of a box that lost its memory and counts from 0 again; among stamps of the same incarnation
/// its order means nothing, it is only the same everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Message)]
pub struct Stamp {
    /// Counts lives of the owner, as far as it remembers.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// Random bits of this life: the gateway's epoch.
    #[prost(fixed64, tag = "2")]
    pub run: u64,
    /// Counts states of this life, from 1.
    #[prost(uint64, tag = "3")]
    pub version: u64,
}

impl Stamp {
    /// True if both count the same life's states.
    pub fn is_same_life(&self, other: &Stamp) -> bool {
        (self.incarnation, self.run) == (other.incarnation, other.run)
    }
}

/// A digest on the wire.
#[derive(Clone, PartialEq, Message)]
pub struct Digest {
    /// Which state it is or leads to.
    #[prost(message, optional, tag = "1")]
    pub stamp: Option<Stamp>,
    /// 0 for a full digest; otherwise the version from which on this leads to `stamp`.
    #[prost(uint64, tag = "2")]
    pub base: u64,
    /// The owner's service time when it was made, in seconds.
    #[prost(uint32, tag = "3")]
    pub at_s: u32,
    /// Names of nodes, each once.
    #[prost(string, repeated, tag = "4")]
    pub names: Vec<String>,
    /// For each node the position of its name times 16, plus [`NodeKind::index`].
    #[prost(uint32, repeated, tag = "5")]
    pub nodes: Vec<u32>,
    /// For each edge the positions of its two nodes.
    #[prost(uint32, repeated, tag = "6")]
    pub ends: Vec<u32>,
    /// What is known of edges, in their order; see `cell.rs`.
    #[prost(uint32, repeated, tag = "7")]
    pub cells: Vec<u32>,
}

/// The answer to a delta whose base is not here: send a full digest.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct NeedFull {
    /// What is here.
    #[prost(message, optional, tag = "1")]
    pub have: Option<Stamp>,
}

/// Limits of one digest; checked before anything is allocated for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestLimits {
    /// Longest digest in bytes. Decoding takes at most twelve times as much for a moment.
    pub len_max: usize,
    /// Most nodes.
    pub nodes_max: usize,
    /// Most edges.
    pub edges_max: usize,
}

impl Default for DigestLimits {
    /// Room for a box of 400 streams; one of 20 needs a twentieth.
    fn default() -> Self {
        DigestLimits { len_max: 32 * 1024, nodes_max: 1_024, edges_max: 2_048 }
    }
}

/// Why a digest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Over the limit.
    #[error("digest of {len} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// Over the limit.
    #[error("digest of {nodes} nodes exceeds the limit of {limit}")]
    TooManyNodes {
        /// How many.
        nodes: usize,
        /// The limit.
        limit: usize,
    },
    /// Over the limit.
    #[error("digest of {edges} edges exceeds the limit of {limit}")]
    TooManyEdges {
        /// How many.
        edges: usize,
        /// The limit.
        limit: usize,
    },
    /// Not protobuf of our kind.
    #[error("digest is malformed: {0}")]
    Malformed(String),
    /// Protobuf, but not a digest.
    #[error("digest makes no sense: {0}")]
    Senseless(&'static str),
    /// A name that its owner may not publish, or nobody.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// A digest that holds together.
#[derive(Debug, PartialEq)]
pub(super) struct Checked {
    pub(super) stamp: Stamp,
    pub(super) at_s: u32,
    pub(super) body: Body,
}

#[derive(Debug, PartialEq)]
pub(super) enum Body {
    Full { names: Vec<String>, nodes: Vec<(NodeKind, usize)>, ends: Vec<(u16, u16)>, cells: Vec<Cell> },
    Delta { base: u64, cells: Vec<u32> },
}

/// Decodes and checks; a delta's cells are checked when its base is known.
pub(super) fn check(owner: &Owner, limits: &DigestLimits, bytes: &[u8]) -> Result<Checked, DigestError> {
    if bytes.len() > limits.len_max {
        return Err(DigestError::TooLong { len: bytes.len(), limit: limits.len_max });
    }
    let digest = Digest::decode(bytes).map_err(|err| DigestError::Malformed(err.to_string()))?;
    let stamp = digest.stamp.filter(|stamp| stamp.version > 0).ok_or(DigestError::Senseless("it has no stamp"))?;
    if digest.at_s == u32::MAX {
        return Err(DigestError::Senseless("it is from the end of time"));
    }
    let at_s = digest.at_s;
    if digest.base > 0 {
        if digest.base >= stamp.version {
            return Err(DigestError::Senseless("its base is not before it"));
        }
        if !(digest.names.is_empty() && digest.nodes.is_empty() && digest.ends.is_empty()) {
            return Err(DigestError::Senseless("a delta names nodes or edges"));
        }
        return Ok(Checked { stamp, at_s, body: Body::Delta { base: digest.base, cells: digest.cells } });
    }
    let nodes = check_nodes(owner, limits, &digest)?;
    let ends = check_ends(limits, &digest, nodes.len())?;
    let cells = CellReader::new(&digest.cells, at_s, ends.len())
        .map(|cell| cell.ok().and_then(|(_, cell)| cell))
        .collect::<Option<Vec<Cell>>>()
        .ok_or(BAD_CELLS)?;
    Ok(Checked { stamp, at_s, body: Body::Full { names: digest.names, nodes, ends, cells } })
}

/// Of cells that cannot be read.
pub(super) const BAD_CELLS: DigestError = DigestError::Senseless("its estimates cannot be read");

fn check_nodes(owner: &Owner, limits: &DigestLimits, digest: &Digest) -> Result<Vec<(NodeKind, usize)>, DigestError> {
    let count = digest.nodes.len();
    if count > limits.nodes_max {
        return Err(DigestError::TooManyNodes { nodes: count, limit: limits.nodes_max });
    }
    let mut nodes = Vec::with_capacity(count);
    for number in &digest.nodes {
        let (kind, at) = (NodeKind::from_index((number & 15) as usize), (number >> 4) as usize);
        let kind = kind.ok_or(DigestError::Senseless("it has a node of unknown kind"))?;
        let name = digest.names.get(at).ok_or(DigestError::Senseless("it has a node without a name"))?;
        check_node(owner, kind, name)?;
        nodes.push((kind, at));
    }
    let mut by_name: Vec<(&str, NodeKind)> = nodes.iter().map(|(kind, at)| (digest.names[*at].as_str(), *kind)).collect();
    by_name.sort_unstable();
    if by_name.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(DigestError::Senseless("it has the same node twice"));
    }
    Ok(nodes)
}

fn check_ends(limits: &DigestLimits, digest: &Digest, nodes: usize) -> Result<Vec<(u16, u16)>, DigestError> {
    let count = digest.ends.len() / 2;
    if count > limits.edges_max.min(usize::from(u16::MAX)) {
        return Err(DigestError::TooManyEdges { edges: count, limit: limits.edges_max });
    }
    if !digest.ends.len().is_multiple_of(2) {
        return Err(DigestError::Senseless("it has an edge with one end"));
    }
    let mut ends = Vec::with_capacity(count);
    for pair in digest.ends.chunks_exact(2) {
        let node = |at: u32| u16::try_from(at).ok().filter(|at| usize::from(*at) < nodes);
        match (node(pair[0]), node(pair[1])) {
            (Some(from), Some(to)) if from != to => ends.push((from, to)),
            _ => return Err(DigestError::Senseless("it has an edge between nodes that are not there")),
        }
    }
    let mut sorted = ends.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(DigestError::Senseless("it has the same edge twice"));
    }
    Ok(ends)
}
