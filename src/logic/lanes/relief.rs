//! A lane that is nearly full is made smaller before anything of it is given up.
//!
//! In a long outage the question is not what to send but what to keep. Half of a lane's records gone tells less than all of
//! them described more coarsely, so from [`NEARLY_FULL`] of its cap on a lane's blocks are thinned where they lie: to one message in
//! four, and later to aggregates. Of the oldest that is whole and the oldest that is not, the one goes whose thinning costs the
//! least worth for the bytes it saves; as worth falls faster with each step, mostly what is whole goes first. Only what is
//! over the cap all the same is evicted.
//!
//! - A thinned block has the range of the one before, and takes its place in one transaction: a crash leaves one or the other.
//! - Until that transaction it is in memory, where it can be sent from. So few wait for it, [`REWRITES_BYTES_MAX`].
//! - What a stream's floor forbids is not done, `critical` is never thinned, and an operator may forbid it for a lane.

use bytes::Bytes;

use super::lane::{Block, Disk, Lane, Position, Send};
use super::{Lanes, RETRY_US};
use crate::block::Fidelity;
use crate::ids::{BlockKey, Class, VoidReason};
use crate::plan::Plan;
use crate::price::{Ladder, Level, StreamValue};
use crate::store::{CommitRequest, Put, SeqRange};
use crate::thin::{Thinned, Thinning};

/// What becomes of a lane that is over its cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// Its blocks are thinned first, and the oldest evicted when that is not enough.
    Thin,
    /// Its oldest are evicted.
    Evict,
}

/// How coarse a block is as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coarseness {
    /// As its records came.
    Whole,
    /// One message in four.
    Quarter,
    /// As coarse as it gets.
    Coarsest,
}

/// From this part of its cap on, in sixteenths, a lane is thinned: what comes in the meantime needs room.
const NEARLY_FULL: u64 = 15;
/// Bytes of a lane's thinned blocks beyond which their transaction is made at once, and no further block is thinned before it.
pub(super) const REWRITES_BYTES_MAX: u64 = 256 * 1024;

impl Coarseness {
    /// Of a block that was found on disk; what was thinned may be tried once more, which costs little.
    pub(super) fn found(fidelity: Fidelity) -> Coarseness {
        match fidelity {
            Fidelity::Full => Coarseness::Whole,
            Fidelity::Thinned => Coarseness::Quarter,
        }
    }

    /// The finest level that is left.
    pub(super) fn level(self) -> Level {
        match self {
            Coarseness::Whole => Level::Raw,
            Coarseness::Quarter => Level::Thin4,
            Coarseness::Coarsest => Level::Aggregate,
        }
    }

    fn next(self) -> Coarseness {
        match self {
            Coarseness::Whole => Coarseness::Quarter,
            Coarseness::Quarter | Coarseness::Coarsest => Coarseness::Coarsest,
        }
    }

    /// What the next step does with the raw messages of a stream that may not be coarser than `floor`.
    fn thinning(self, floor: Level) -> (Level, Thinning) {
        match (self, floor) {
            (Coarseness::Whole, Level::Thin2) => (Level::Thin2, Thinning::OneIn(2)),
            (Coarseness::Whole, Level::Thin4 | Level::Aggregate | Level::Verdict) => (Level::Thin4, Thinning::OneIn(4)),
            (Coarseness::Quarter, Level::Aggregate | Level::Verdict) => (Level::Aggregate, Thinning::Aggregate),
            _ => (self.level(), Thinning::None),
        }
    }
}

impl Lane {
    /// True if a block of it is to be thinned now.
    fn wants_relief(&self, now_us: u64) -> bool {
        let is_nearly_full = self.bytes > self.policy.cap_bytes / 16 * NEARLY_FULL;
        let is_idle = self.thinning.is_none() && self.thin_after_us <= now_us && self.rewrite_bytes < REWRITES_BYTES_MAX;
        is_nearly_full && is_idle && self.thins()
    }

    /// True if its blocks may be thinned where they lie.
    pub(super) fn thins(&self) -> bool {
        self.class != Class::Critical && self.policy.overflow == Overflow::Thin
    }

    /// The oldest block of this coarseness that nothing is being done with.
    fn oldest(&self, coarseness: Coarseness) -> Option<Position> {
        let at_rest = |position: &&Position| {
            let block = &self.blocks[position];
            // What was read and waits for its turn to be sent is in neither queue.
            let waits = self.live.contains(position) || self.backlog.contains(position);
            block.send == Send::Queued && block.disk != Disk::Writing && waits
        };
        self.thinnable.get(coarseness as usize)?.iter().find(at_rest).copied()
    }

    /// The block is this coarse now.
    fn coarsen(&mut self, position: Position, to: Coarseness) {
        let Some(block) = self.blocks.get_mut(&position) else { return };
        if let Some(before) = self.thinnable.get_mut(block.coarseness as usize) {
            before.remove(&position);
        }
        block.coarseness = to;
        if let Some(after) = self.thinnable.get_mut(to as usize) {
            after.insert(position);
        }
    }

    /// Puts a thinned block in the place of a block; returns how many records that left out.
    fn replace(&mut self, position: Position, thinned: Thinned) -> u32 {
        let Some(block) = self.blocks.get_mut(&position) else { return 0 };
        let (before, len) = (u64::from(block.len), thinned.block.len() as u64);
        if block.bytes.is_some() {
            self.memory_bytes -= before;
        }
        match block.disk {
            Disk::Stored if block.bytes.is_some() => self.cached_bytes -= before,
            Disk::Rewriting => self.rewrite_bytes -= before,
            _ => {}
        }
        if matches!(block.disk, Disk::Stored | Disk::Rewriting) {
            block.disk = Disk::Rewriting;
            self.rewrites.insert(position);
            self.rewrite_bytes += len;
        }
        self.bytes = self.bytes - before + len;
        self.memory_bytes += len;
        self.records = self.records - u64::from(block.header.count) + u64::from(thinned.header.count);
        (block.header, block.len, block.bytes) = (thinned.header, len as u32, Some(thinned.block));
        thinned.removed
    }
}

/// Worth that the next step of a block costs for each byte that it saves; `None` if it saves nothing.
fn cost(now_us: u64, class: Class, block: &Block, floors: &[Level], plan: &Plan) -> Option<f64> {
    let age_us = now_us.saturating_sub(block.header.born_us);
    let usual = StreamValue { ladder: Ladder::TELEMETRY, ..StreamValue::usual(class) };
    let (mut lost, mut saved) = (0.0, 0.0);
    let unknown = block.parts.is_empty().then_some((None, block.len));
    for (stream, bytes) in block.parts.iter().map(|&(stream, bytes)| (Some(stream), bytes)).chain(unknown) {
        let floor = stream.and_then(|stream| floors.get(usize::from(stream)).copied()).unwrap_or(Level::Aggregate);
        let value = stream.and_then(|stream| plan.values.get(usize::from(stream)).copied().flatten()).unwrap_or(usual);
        let (from, (to, _)) = (block.coarseness.level(), block.coarseness.thinning(floor));
        let worth = |level: Level| value.ladder.worth(level).unwrap_or(level.bytes());
        lost += f64::from(bytes) * value.weight_at(age_us) * (worth(from) - worth(to)).max(0.0);
        saved += f64::from(bytes) * (from.bytes() - to.bytes());
    }
    (saved > 0.0).then(|| lost / saved)
}

impl Lanes {
    /// Thins a block of a lane that is nearly full, or names one to be read from disk for that, see [`Lanes::loaded`].
    pub fn relieve(&mut self, now_us: u64, plan: &Plan) -> Option<BlockKey> {
        for class in Class::ALL {
            while self.lanes[class.index()].wants_relief(now_us) {
                let Some(position) = self.cheapest_to_thin(now_us, class, plan) else { break };
                let lane = &mut self.lanes[class.index()];
                let block = lane.blocks.get_mut(&position).expect("found just now");
                let key = block.header.key;
                if let Some(bytes) = block.bytes.clone() {
                    self.thin_in_place(now_us, class, position, &bytes);
                    continue;
                }
                block.send = Send::Thinning;
                lane.backlog.remove(&position);
                lane.thinning = Some(key);
                return Some(key);
            }
        }
        None
    }

    fn cheapest_to_thin(&mut self, now_us: u64, class: Class, plan: &Plan) -> Option<Position> {
        let mut best: Option<(f64, Position)> = None;
        for coarseness in [Coarseness::Whole, Coarseness::Quarter] {
            while let Some(position) = self.lanes[class.index()].oldest(coarseness) {
                let lane = &mut self.lanes[class.index()];
                match cost(now_us, class, &lane.blocks[&position], &self.floors, plan) {
                    Some(cost) => {
                        if best.is_none_or(|(least, _)| cost < least) {
                            best = Some((cost, position));
                        }
                        break;
                    }
                    None => lane.coarsen(position, coarseness.next()),
                }
            }
        }
        best.map(|(_, position)| position)
    }

    fn thin_in_place(&mut self, now_us: u64, class: Class, position: Position, bytes: &Bytes) {
        let Some(coarseness) = self.lanes[class.index()].blocks.get(&position).map(|block| block.coarseness) else { return };
        let floor = |stream: u16| self.floors.get(usize::from(stream)).copied().unwrap_or(Level::Raw);
        match self.thinner.thin(&mut self.codec, bytes, |stream| coarseness.thinning(floor(stream)).1) {
            Ok(thinned) => {
                let lane = &mut self.lanes[class.index()];
                if let Some(thinned) = thinned.filter(|thinned| thinned.block.len() < bytes.len()) {
                    let counters = &mut self.counters[class.index()];
                    counters.thinned_blocks += 1;
                    counters.thinned += u64::from(lane.replace(position, thinned));
                    if !lane.rewrites.is_empty() {
                        self.tidy_since_us.get_or_insert(now_us);
                    }
                }
                lane.coarsen(position, coarseness.next());
            }
            Err(_) => self.give_up(now_us, class, position, VoidReason::Corrupt),
        }
    }

    /// The block that [`Lanes::relieve`] named was read, or is not there any more, or is damaged.
    pub(super) fn loaded_to_thin(&mut self, now_us: u64, key: BlockKey, bytes: Option<Bytes>) {
        let Some(position) = self.end_thinning(key) else { return };
        match bytes {
            Some(bytes) => self.thin_in_place(now_us, key.lane, position, &bytes),
            None => self.give_up(now_us, key.lane, position, VoidReason::Corrupt),
        }
    }

    /// The block that [`Lanes::relieve`] named cannot be read now.
    pub(super) fn load_to_thin_failed(&mut self, now_us: u64, key: BlockKey) {
        self.lanes[key.lane.index()].thin_after_us = now_us + RETRY_US;
        self.end_thinning(key);
    }

    /// Nothing is read to be thinned any more; the block, if it is still held, waits to be sent again.
    fn end_thinning(&mut self, key: BlockKey) -> Option<Position> {
        self.lanes[key.lane.index()].thinning = None;
        let position = self.position_of(key)?;
        let lane = &mut self.lanes[key.lane.index()];
        let block = lane.blocks.get_mut(&position).filter(|block| block.send == Send::Thinning)?;
        block.send = Send::Queued;
        lane.backlog.insert(position);
        Some(position)
    }

    /// True if this block is being read to be thinned.
    pub(super) fn is_read_to_thin(&self, key: BlockKey) -> bool {
        self.lanes[key.lane.index()].thinning == Some(key)
    }

    /// Writes thinned blocks in the place of what they were.
    pub(super) fn write_rewrites(&mut self, class: Class, request: &mut CommitRequest) {
        let lane = &mut self.lanes[class.index()];
        lane.rewrite_bytes = 0;
        while let Some(position) = lane.rewrites.pop_first() {
            let block = lane.blocks.get_mut(&position).expect("removed from the queue with the block");
            block.disk = Disk::Writing;
            let bytes = block.bytes.clone().expect("it is in memory until it is written");
            request.deletes.push(SeqRange { key: block.header.key, last_seq: block.header.last_seq });
            request.puts.push(Put { header: block.header, block: bytes, fragment: false });
        }
    }
}
