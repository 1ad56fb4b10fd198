//! One lane: its open end, its blocks in order of age, and where each of them is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::block::{BlockHeader, Staging};
use crate::ids::Class;
use crate::lanes::{Durability, LanePolicy};
use crate::ranges::RangeSet;

/// Place of a block in its lane's order of age: the epoch's ordinal, then the sequence number.
pub(super) type Position = (u32, u64);

/// A sealed block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) header: BlockHeader,
    pub(super) len: u32,
    /// Present while in memory.
    pub(super) bytes: Option<Bytes>,
    pub(super) disk: Disk,
    /// True if parts of it are on disk as fragments, which its put or its end must remove.
    pub(super) fragmented: bool,
    pub(super) send: Send,
    pub(super) sealed_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    Absent,
    Writing,
    Stored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Send {
    /// In `live` or `backlog`.
    Queued,
    /// Being read from disk, to be sent.
    Loading,
    /// Handed to an uplink; not yet acknowledged.
    UnderWay { uplink: u8, sent_us: u64 },
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) class: Class,
    pub(super) policy: LanePolicy,
    pub(super) staging: Staging,
    /// True if some of `staging` is on disk, or on its way there, as fragments.
    pub(super) staging_fragmented: bool,
    pub(super) blocks: BTreeMap<Position, Block>,
    /// Queued blocks that are in memory, oldest first; entries that are no longer so are skipped.
    pub(super) live: VecDeque<Position>,
    /// Queued blocks that are only on disk.
    pub(super) backlog: BTreeSet<Position>,
    /// Sealed blocks not yet written, oldest first; entries that are no longer so are skipped.
    pub(super) to_write: VecDeque<Position>,
    /// Sequence numbers of this epoch that are safe, evicted or expired.
    pub(super) safe: RangeSet,
    /// Bytes of all blocks, wherever they are.
    pub(super) bytes: u64,
    /// Bytes of blocks that are in memory.
    pub(super) memory_bytes: u64,
    /// Bytes handed to an uplink and not acknowledged.
    pub(super) under_way_bytes: u64,
    /// Records in sealed blocks.
    pub(super) records: u64,
}

impl Lane {
    pub(super) fn new(class: Class, policy: LanePolicy) -> Self {
        Lane {
            class,
            policy,
            staging: Staging::new(0),
            staging_fragmented: false,
            blocks: BTreeMap::new(),
            live: VecDeque::new(),
            backlog: BTreeSet::new(),
            to_write: VecDeque::new(),
            safe: RangeSet::new(),
            bytes: 0,
            memory_bytes: 0,
            under_way_bytes: 0,
            records: 0,
        }
    }

    /// What must be on disk before it counts as safe, given whether an uplink is up.
    pub(super) fn writes_at_once(&self, uplink_up: bool) -> bool {
        match self.policy.durability {
            Durability::Disk => true,
            Durability::Through => !uplink_up,
            Durability::Memory => false,
        }
    }

    pub(super) fn insert(&mut self, position: Position, block: Block) {
        self.bytes += u64::from(block.len);
        self.records += u64::from(block.header.count);
        if block.bytes.is_some() {
            self.memory_bytes += u64::from(block.len);
            self.live.push_back(position);
        } else {
            self.backlog.insert(position);
        }
        if block.disk == Disk::Absent {
            self.to_write.push_back(position);
        }
        self.blocks.insert(position, block);
    }

    /// Takes a block out for good.
    pub(super) fn remove(&mut self, position: Position) -> Option<Block> {
        let block = self.blocks.remove(&position)?;
        self.bytes -= u64::from(block.len);
        self.records -= u64::from(block.header.count);
        if block.bytes.is_some() {
            self.memory_bytes -= u64::from(block.len);
        }
        if matches!(block.send, Send::UnderWay { .. }) {
            self.under_way_bytes -= u64::from(block.len);
        }
        self.backlog.remove(&position);
        Some(block)
    }

    /// Forgets the bytes of a stored block; if it is queued it becomes backlog.
    pub(super) fn drop_bytes(&mut self, position: Position) {
        let Some(block) = self.blocks.get_mut(&position) else { return };
        if block.disk != Disk::Stored || block.bytes.take().is_none() {
            return;
        }
        self.memory_bytes -= u64::from(block.len);
        if block.send == Send::Queued {
            self.backlog.insert(position);
        }
    }

    /// The oldest queued block in memory.
    pub(super) fn live_front(&mut self) -> Option<Position> {
        while let Some(&position) = self.live.front() {
            if self.blocks.get(&position).is_some_and(|b| b.send == Send::Queued && b.bytes.is_some()) {
                return Some(position);
            }
            self.live.pop_front();
        }
        None
    }

    /// The oldest sealed block that is not on disk nor on its way there.
    pub(super) fn to_write_front(&mut self) -> Option<Position> {
        while let Some(&position) = self.to_write.front() {
            if self.blocks.get(&position).is_some_and(|b| b.disk == Disk::Absent) {
                return Some(position);
            }
            self.to_write.pop_front();
        }
        None
    }

    /// Puts what was under way on `uplink` back into the queues; returns how many blocks.
    pub(super) fn requeue(&mut self, uplink: u8) -> usize {
        let mut count = 0;
        self.live.clear();
        for (&position, block) in &mut self.blocks {
            if let Send::UnderWay { uplink: on, .. } = block.send
                && on == uplink
            {
                block.send = Send::Queued;
                self.under_way_bytes -= u64::from(block.len);
                count += 1;
                if block.bytes.is_none() {
                    self.backlog.insert(position);
                }
            }
            if block.send == Send::Queued && block.bytes.is_some() {
                self.live.push_back(position);
            }
        }
        count
    }

    /// The lowest sequence number of the present epoch (ordinal `current`) that is still held.
    pub(super) fn settled(&self, current: u32) -> u64 {
        match self.blocks.range((current, 0)..).next() {
            Some((_, block)) => block.header.key.first_seq,
            None => self.staging.first_seq(),
        }
    }

    /// Bytes this lane holds in memory, staging included.
    pub(super) fn memory_len(&self) -> u64 {
        self.memory_bytes + self.staging.len() as u64
    }
}
