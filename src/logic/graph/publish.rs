//! The owner's side: says what has changed and matters, and nothing else.
//!
//! A change matters if somebody might decide otherwise because of it: another verdict (told at once), a value that moved by
//! more than a part of itself since it was last told, evidence that stopped. The rest is told with the next refresh, which
//! also says that the owner is still there. Each edge remembers the version that last changed it, so a delta for any peer is
//! one pass over the edges; nothing is kept for a peer but the stamp it has.
//!
//! A box that lost its memory counts from 0 again and would be ignored for years. So each peer says, when it greets, which
//! stamp it saw last, and the owner goes on above that.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;

use super::cell::{Cell, seconds, write_removed};
use super::digest::{Digest, DigestLimits, Stamp};
use super::node::NodeKind;
use super::subgraph::Subgraph;

/// What is published, and how often.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PublisherLimits {
    /// A value matters when it has moved by more than this part of itself.
    pub change_ratio: f64,
    /// Shortest time between two versions, but for another verdict, which is told at once.
    pub interval_us: u64,
    /// Longest time between two versions.
    pub refresh_us: u64,
    /// What peers take.
    pub digest: DigestLimits,
}

impl Default for PublisherLimits {
    /// 15 % is about what the estimates scatter on a steady link; half a minute keeps half of the confidence at the peer.
    fn default() -> Self {
        PublisherLimits { change_ratio: 0.15, interval_us: 1_000_000, refresh_us: 30_000_000, digest: DigestLimits::default() }
    }
}

/// Sums since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublisherCounters {
    /// Versions made.
    pub versions: u64,
    /// Full digests handed out.
    pub fulls: u64,
    /// Deltas handed out.
    pub deltas: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Digests that were over the limit and not handed out.
    pub too_long: u64,
    /// Times an owner had to go on above a stamp that a peer had seen.
    pub raised: u64,
}

/// What one peer has; one for each connection.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    has: Option<Stamp>,
    full_us: Option<u64>,
}

impl Peer {
    /// It does not have what the last delta builds on: the next digest is a full one.
    pub fn need_full(&mut self) {
        self.has = None;
    }
}

/// The one writer of an owner's digest.
#[derive(Debug, Clone)]
pub struct Publisher {
    limits: PublisherLimits,
    stamp: Stamp,
    /// Version since which nodes and edges are what they are.
    shape_version: u64,
    nodes: Vec<(NodeKind, Arc<str>)>,
    ends: Vec<(u16, u16)>,
    cells: Vec<Option<Cell>>,
    /// By edge the version that last changed it.
    changed: Vec<u64>,
    at_us: u64,
    counters: PublisherCounters,
}

impl Publisher {
    /// A new life of the owner; `incarnation` is what it remembers of earlier ones, 0 if nothing, `run` random bits.
    pub fn new(incarnation: u64, run: u64, limits: PublisherLimits) -> Self {
        Publisher {
            limits,
            stamp: Stamp { incarnation, run, version: 0 },
            shape_version: 0,
            nodes: Vec::new(),
            ends: Vec::new(),
            cells: Vec::new(),
            changed: Vec::new(),
            at_us: 0,
            counters: PublisherCounters::default(),
        }
    }

    /// A peer greets with the last stamp of this owner that it saw.
    pub fn greeted(&mut self, last: Option<Stamp>) -> Peer {
        let is_ours = last.is_some_and(|last| last.is_same_life(&self.stamp) && last.version <= self.stamp.version);
        if let Some(last) = last.filter(|last| !is_ours && *last > self.stamp) {
            // What was published in this life stays what it is, under a stamp that wins.
            let incarnation = last.incarnation.saturating_add(1);
            self.stamp = Stamp { incarnation, run: self.stamp.run, version: 0 };
            self.counters.raised += 1;
        }
        Peer { has: last.filter(|_| is_ours), full_us: None }
    }

    /// The digest that `peer` should be sent now, if any. To be called about once a second, and when a verdict has changed.
    pub fn next(&mut self, now_us: u64, graph: &Subgraph, peer: &mut Peer) -> Option<Vec<u8>> {
        let base = peer.has.filter(|has| has.is_same_life(&self.stamp) && has.version >= self.shape_version.max(1));
        if base.is_none() && peer.full_us.is_some_and(|at_us| now_us < at_us.saturating_add(self.limits.interval_us)) {
            return None;
        }
        self.update(now_us, graph, base.is_none());
        // Another shape makes a full digest of what would have been a delta.
        let base = base.filter(|has| has.version >= self.shape_version);
        if base.is_some_and(|has| has.version == self.stamp.version) {
            return None;
        }
        let digest = match base {
            Some(has) => self.delta(has.version),
            None => self.full(),
        };
        let bytes = digest.encode_to_vec();
        if base.is_none() {
            peer.full_us = Some(now_us);
        }
        if bytes.len() > self.limits.digest.len_max {
            self.counters.too_long += 1;
            return None;
        }
        peer.has = Some(self.stamp);
        match base {
            Some(_) => self.counters.deltas += 1,
            None => self.counters.fulls += 1,
        }
        self.counters.bytes += bytes.len() as u64;
        Some(bytes)
    }

    /// What was last published.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Sums since start.
    pub fn counters(&self) -> PublisherCounters {
        self.counters
    }

    /// Makes a new version if something matters, or if `now` is asked for and the present one is not of now.
    fn update(&mut self, now_us: u64, graph: &Subgraph, now: bool) {
        if self.stamp.version == 0 || self.ends != graph.ends() || self.nodes != graph.nodes() {
            self.reshape(now_us, graph);
            return;
        }
        let cells = graph
            .known()
            .enumerate()
            .map(|(edge, (estimate, evidence_us))| Cell::new(edge as u16, estimate, evidence_us, now_us));
        let cells: Vec<Option<Cell>> = cells.collect();
        let (mut is_urgent, mut is_news) = (false, false);
        for (cell, old) in cells.iter().zip(&self.cells) {
            is_urgent |= is_urgent_beside(cell, old);
            is_news |= self.matters(cell, old);
        }
        let since_us = now_us.saturating_sub(self.at_us);
        let is_refresh = since_us >= self.limits.refresh_us || now && since_us >= self.limits.interval_us;
        if !(is_urgent || is_refresh || is_news && since_us >= self.limits.interval_us) {
            return;
        }
        self.begin_version(now_us);
        for (edge, cell) in cells.into_iter().enumerate() {
            let old = &self.cells[edge];
            if cell != *old && (is_refresh || self.matters(&cell, old)) {
                self.cells[edge] = cell;
                self.changed[edge] = self.stamp.version;
            }
        }
    }

    fn reshape(&mut self, now_us: u64, graph: &Subgraph) {
        self.begin_version(now_us);
        self.shape_version = self.stamp.version;
        self.nodes = graph.nodes().to_vec();
        self.ends = graph.ends().to_vec();
        self.cells = graph
            .known()
            .enumerate()
            .map(|(edge, (estimate, evidence_us))| Cell::new(edge as u16, estimate, evidence_us, now_us))
            .collect();
        self.changed = vec![self.stamp.version; self.ends.len()];
    }

    fn begin_version(&mut self, now_us: u64) {
        self.stamp.version += 1;
        self.at_us = now_us;
        self.counters.versions += 1;
    }

    fn matters(&self, cell: &Option<Cell>, old: &Option<Cell>) -> bool {
        match (cell, old) {
            (Some(cell), Some(old)) => cell.matters_beside(old, self.limits.change_ratio),
            (cell, old) => cell.is_some() != old.is_some(),
        }
    }

    fn full(&self) -> Digest {
        let mut digest = Digest { stamp: Some(self.stamp), at_s: seconds(self.at_us), ..Digest::default() };
        let mut positions: BTreeMap<&str, u32> = BTreeMap::new();
        for (kind, name) in &self.nodes {
            let at = *positions.entry(name).or_insert_with(|| {
                digest.names.push(name.as_ref().to_owned());
                digest.names.len() as u32 - 1
            });
            digest.nodes.push(at << 4 | kind.index() as u32);
        }
        digest.ends = self.ends.iter().flat_map(|(from, to)| [u32::from(*from), u32::from(*to)]).collect();
        let mut last = None;
        for cell in self.cells.iter().flatten() {
            cell.write(&mut last, digest.at_s, &mut digest.cells);
        }
        digest
    }

    fn delta(&self, base: u64) -> Digest {
        let mut digest = Digest { stamp: Some(self.stamp), base, at_s: seconds(self.at_us), ..Digest::default() };
        let mut last = None;
        for (edge, cell) in self.cells.iter().enumerate().filter(|(edge, _)| self.changed[*edge] > base) {
            match cell {
                Some(cell) => cell.write(&mut last, digest.at_s, &mut digest.cells),
                None => write_removed(edge as u16, &mut last, &mut digest.cells),
            }
        }
        digest
    }
}

fn is_urgent_beside(cell: &Option<Cell>, old: &Option<Cell>) -> bool {
    match (cell, old) {
        (Some(cell), Some(old)) => cell.is_urgent_beside(old),
        _ => false,
    }
}
