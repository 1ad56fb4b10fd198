//! The merging side: of each owner the digest with the highest stamp, and nothing else.
//!
//! One writer for each digest and "the highest wins" is all it takes: whatever order digests come in, how often, and which
//! are lost, whoever has seen the same highest stamp of an owner has the same bytes of it. A delta is only a shorter way to
//! such a state; without its base it is refused, and the owner sends a full one.
//!
//! Every owner is in the hand of whoever holds its certificate: it can say what it likes, but only as itself, within
//! [`FederationLimits`], and at its own cost. A digest that is refused leaves what was there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cell::{Cell, CellReader};
use super::digest::{BAD_CELLS, Body, Checked, DigestError, DigestLimits, NeedFull, Stamp, check};
use super::estimate::Estimate;
use super::names::Names;
use super::node::{NodeKey, NodeKind, Owner};

/// Limits of a federation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FederationLimits {
    /// Of each digest.
    pub digest: DigestLimits,
    /// Most owners.
    pub owners_max: usize,
    /// Most memory, estimated.
    pub memory_bytes_max: usize,
    /// An owner that has said nothing for this long is forgotten.
    pub expire_us: u64,
}

impl Default for FederationLimits {
    /// 60,000 owners at 8 KB each; a box that was away for an hour has nothing to say that still holds.
    fn default() -> Self {
        FederationLimits {
            digest: DigestLimits::default(),
            owners_max: 60_000,
            memory_bytes_max: 60_000 * 8 * 1024,
            expire_us: 3_600_000_000,
        }
    }
}

/// Sums since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FederationCounters {
    /// Full digests taken.
    pub fulls: u64,
    /// Deltas taken.
    pub deltas: u64,
    /// Digests that were not newer than what was there.
    pub old: u64,
    /// Deltas without their base.
    pub need_full: u64,
    /// Refused: over the limit of bytes.
    pub too_long: u64,
    /// Refused: over the limit of nodes.
    pub too_many_nodes: u64,
    /// Refused: over the limit of edges.
    pub too_many_edges: u64,
    /// Refused: malformed or senseless.
    pub malformed: u64,
    /// Refused: a name that the owner may not publish.
    pub bad_names: u64,
    /// Refused: a new owner over the limit of owners.
    pub too_many_owners: u64,
    /// Refused: over the limit of memory.
    pub out_of_memory: u64,
    /// Owners forgotten for their silence.
    pub expired: u64,
}

/// What became of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// It is the state of its owner now.
    Taken {
        /// True if nodes or edges may be others than before.
        is_full: bool,
    },
    /// What is here is as new, or newer.
    Old,
    /// Its base is not here: this is the answer to send.
    NeedFull(NeedFull),
}

/// Why a digest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// The digest itself.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// Too many owners.
    #[error("digest of a new owner beside {limit}, which is the limit")]
    TooManyOwners {
        /// The limit.
        limit: usize,
    },
    /// Too much memory.
    #[error("digest for which {limit} bytes of memory do not suffice")]
    OutOfMemory {
        /// The limit.
        limit: usize,
    },
}

/// All owners' digests.
#[derive(Debug, Clone)]
pub struct Federation {
    limits: FederationLimits,
    names: Names,
    owners: BTreeMap<Owner, Stored>,
    bytes: usize,
    counters: FederationCounters,
}

/// One owner's state, as small as it can be without decoding it at each look.
#[derive(Debug, Clone, PartialEq)]
struct Stored {
    stamp: Stamp,
    at_s: u32,
    received_us: u64,
    nodes: Box<[(NodeKind, u32)]>,
    ends: Box<[(u16, u16)]>,
    /// In the order of their edges; an edge of which nothing is known has none.
    cells: Vec<Cell>,
}

impl Stored {
    /// Memory that it may come to take: deltas can give every edge an estimate.
    fn bytes(&self) -> usize {
        OWNER_BYTES + size_of_val(&*self.nodes) + size_of_val(&*self.ends) + self.ends.len() * size_of::<Cell>()
    }
}

/// An owner's entry in a tree that is two thirds full, its name, and what an allocator adds.
const OWNER_BYTES: usize = 3 * size_of::<Stored>() / 2 + 144;

impl Federation {
    /// Without owners.
    pub fn new(limits: FederationLimits) -> Self {
        let (names, owners) = (Names::default(), BTreeMap::new());
        Federation { limits, names, owners, bytes: 0, counters: FederationCounters::default() }
    }

    /// Takes a digest that came from `owner`, as its certificate says.
    ///
    /// # Errors
    /// If it is refused; what was there stays, and the reason is counted.
    pub fn merge(&mut self, now_us: u64, owner: &Owner, digest: &[u8]) -> Result<Merged, MergeError> {
        let result = self.try_merge(now_us, owner, digest);
        let counters = &mut self.counters;
        let counter = match &result {
            Ok(Merged::Taken { is_full: true }) => &mut counters.fulls,
            Ok(Merged::Taken { is_full: false }) => &mut counters.deltas,
            Ok(Merged::Old) => &mut counters.old,
            Ok(Merged::NeedFull(_)) => &mut counters.need_full,
            Err(MergeError::TooManyOwners { .. }) => &mut counters.too_many_owners,
            Err(MergeError::OutOfMemory { .. }) => &mut counters.out_of_memory,
            Err(MergeError::Digest(err)) => match err {
                DigestError::TooLong { .. } => &mut counters.too_long,
                DigestError::TooManyNodes { .. } => &mut counters.too_many_nodes,
                DigestError::TooManyEdges { .. } => &mut counters.too_many_edges,
                DigestError::Malformed(_) | DigestError::Senseless(_) => &mut counters.malformed,
                DigestError::Name(_) => &mut counters.bad_names,
            },
        };
        *counter += 1;
        result
    }

    fn try_merge(&mut self, now_us: u64, owner: &Owner, digest: &[u8]) -> Result<Merged, MergeError> {
        let Checked { stamp, at_s, body } = check(owner, &self.limits.digest, digest)?;
        let held = self.owners.get_mut(owner);
        if held.as_ref().is_some_and(|held| held.stamp >= stamp) {
            return Ok(Merged::Old);
        }
        match body {
            Body::Delta { base, cells } => {
                let have = held.as_ref().map(|held| held.stamp);
                let Some(held) = held.filter(|held| held.stamp.is_same_life(&stamp) && held.stamp.version >= base) else {
                    return Ok(Merged::NeedFull(NeedFull { have }));
                };
                apply(held, &cells, at_s)?;
                (held.stamp, held.at_s, held.received_us) = (stamp, at_s, now_us);
                Ok(Merged::Taken { is_full: false })
            }
            Body::Full { names, nodes, ends, cells } => {
                if held.is_none() && self.owners.len() >= self.limits.owners_max {
                    return Err(MergeError::TooManyOwners { limit: self.limits.owners_max });
                }
                let nodes: Box<[_]> = nodes.into_iter().map(|(kind, at)| (kind, self.names.take(&names[at]))).collect();
                let (ends, mut cells) = (ends.into_boxed_slice(), cells);
                cells.shrink_to_fit();
                let stored = Stored { stamp, at_s, received_us: now_us, nodes, ends, cells };
                self.replace(owner, stored)
            }
        }
    }

    fn replace(&mut self, owner: &Owner, stored: Stored) -> Result<Merged, MergeError> {
        let before = self.owners.get(owner).map_or(0, Stored::bytes);
        let bytes = self.bytes - before + stored.bytes();
        if bytes + self.names.bytes() > self.limits.memory_bytes_max {
            self.give_back(&stored);
            return Err(MergeError::OutOfMemory { limit: self.limits.memory_bytes_max });
        }
        self.bytes = bytes;
        let old = match self.owners.get_mut(owner) {
            Some(held) => Some(std::mem::replace(held, stored)),
            None => self.owners.insert(owner.clone(), stored),
        };
        if let Some(old) = old {
            self.give_back(&old);
        }
        Ok(Merged::Taken { is_full: true })
    }

    fn give_back(&mut self, stored: &Stored) {
        for (_, name) in &stored.nodes {
            self.names.give_back(*name);
        }
    }

    /// Forgets who has been silent for too long; returns how many.
    pub fn expire(&mut self, now_us: u64) -> usize {
        let limit_us = self.limits.expire_us;
        let silent: Vec<Owner> = self
            .owners
            .iter()
            .filter(|(_, stored)| now_us.saturating_sub(stored.received_us) > limit_us)
            .map(|(owner, _)| owner.clone())
            .collect();
        for owner in &silent {
            if let Some(stored) = self.owners.remove(owner) {
                self.bytes -= stored.bytes();
                self.give_back(&stored);
            }
        }
        self.counters.expired += silent.len() as u64;
        silent.len()
    }

    /// The last stamp seen of an owner, for the greeting of its connection.
    pub fn stamp(&self, owner: &Owner) -> Option<Stamp> {
        self.owners.get(owner).map(|stored| stored.stamp)
    }

    /// How many owners there are.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// True without owners.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Memory in bytes that it may come to take, estimated.
    pub fn memory_bytes(&self) -> usize {
        self.bytes + self.names.bytes()
    }

    /// Sums since start.
    pub fn counters(&self) -> FederationCounters {
        self.counters
    }

    /// One owner's part.
    pub fn part(&self, owner: &Owner) -> Option<Part<'_>> {
        self.owners.get_key_value(owner).map(|(owner, stored)| Part { owner, stored, names: &self.names })
    }

    /// All owners' parts, in the order of their names.
    pub fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        self.owners.iter().map(|(owner, stored)| Part { owner, stored, names: &self.names })
    }

    pub(super) fn name_number(&self, name: &str) -> Option<u32> {
        self.names.number(name)
    }

    pub(super) fn name(&self, number: u32) -> &Arc<str> {
        self.names.name(number)
    }
}

/// Puts a delta's cells in their places, all or none.
fn apply(stored: &mut Stored, numbers: &[u32], at_s: u32) -> Result<(), DigestError> {
    let edges = stored.ends.len();
    let is_sound = CellReader::new(numbers, at_s, edges).all(|cell| cell.is_ok());
    if !is_sound {
        return Err(BAD_CELLS);
    }
    for (edge, cell) in CellReader::new(numbers, at_s, edges).filter_map(Result::ok) {
        match (stored.cells.binary_search_by_key(&edge, |cell| cell.edge), cell) {
            (Ok(at), Some(cell)) => stored.cells[at] = cell,
            (Err(at), Some(cell)) => {
                // One at a time is slower only for an owner whose every estimate is new, and never takes twice the memory.
                stored.cells.reserve_exact(1);
                stored.cells.insert(at, cell);
            }
            (Ok(at), None) => {
                stored.cells.remove(at);
            }
            (Err(_), None) => {}
        }
    }
    Ok(())
}

/// What is held of one owner.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    owner: &'a Owner,
    stored: &'a Stored,
    names: &'a Names,
}

impl<'a> Part<'a> {
    /// Whose it is.
    pub fn owner(&self) -> &'a Owner {
        self.owner
    }

    /// Its state.
    pub fn stamp(&self) -> Stamp {
        self.stored.stamp
    }

    /// When it came, in this side's service time.
    pub fn received_us(&self) -> u64 {
        self.stored.received_us
    }

    /// Kinds and names of its nodes, by position.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (NodeKind, &'a Arc<str>)> + use<'a> {
        let names = self.names;
        self.stored.nodes.iter().map(move |(kind, name)| (*kind, names.name(*name)))
    }

    /// The key of the node at a position below the number of nodes.
    pub fn key(&self, node: u16) -> NodeKey {
        let (kind, name) = self.stored.nodes[usize::from(node)];
        let site = (kind.is_owned() && kind != NodeKind::Gateway).then(|| self.owner.name().into());
        NodeKey { kind, site, name: self.names.name(name).clone() }
    }

    /// Its edges in their order: the positions of both nodes, and what is known of it at `now_us`.
    pub fn edges(&self, now_us: u64) -> impl Iterator<Item = (u16, u16, Estimate)> + use<'a> {
        let (at_s, held_us) = (self.stored.at_s, now_us.saturating_sub(self.stored.received_us));
        let mut cells = self.stored.cells.iter().peekable();
        self.stored.ends.iter().enumerate().map(move |(edge, (from, to))| {
            let cell = cells.next_if(|cell| usize::from(cell.edge) == edge);
            (*from, *to, cell.map_or_else(Estimate::default, |cell| cell.estimate(at_s, held_us)))
        })
    }

    /// The same content, whenever it came.
    pub fn is_same(&self, other: &Part<'_>) -> bool {
        let (a, b) = (self.stored, other.stored);
        let is_same_state = (a.stamp, a.at_s, &a.ends, &a.cells) == (b.stamp, b.at_s, &b.ends, &b.cells);
        is_same_state && self.owner == other.owner && self.nodes().eq(other.nodes())
    }

    pub(super) fn raw_nodes(&self) -> &'a [(NodeKind, u32)] {
        &self.stored.nodes
    }

    pub(super) fn raw_ends(&self) -> &'a [(u16, u16)] {
        &self.stored.ends
    }
}
