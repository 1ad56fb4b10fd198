//! One lane: its open end, its blocks in order of age, and where each of them is.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::block::{BlockHeader, Staging};
use crate::ids::{BlockKey, Class};
use crate::lanes::relief::Coarseness;
use crate::lanes::{Durability, LanePolicy, add_at};
use crate::price::Wait;
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
    /// Since when a record of it has waited to become safe.
    pub(super) waits_since_us: u64,
    /// When its lane is expected to be so full that it is given up; [`Wait::FOR_EVER`] if that is not expected.
    pub(super) gone_us: u64,
    /// How coarse it is as it is stored.
    pub(super) coarseness: Coarseness,
    /// Its bytes by stream, before it was thinned where it lies; empty for a block of an earlier run.
    pub(super) parts: Box<[(u16, u32)]>,
}

impl Block {
    /// Part of its bytes that was left when it was thinned where it lies.
    pub(super) fn part_left(&self) -> f64 {
        if self.coarseness == Coarseness::Whole {
            return 1.0;
        }
        let whole: u64 = self.parts.iter().map(|&(_, bytes)| u64::from(bytes)).sum();
        f64::from(self.len) / whole.max(1) as f64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    Absent,
    Writing,
    Stored,
    /// On disk as it was; what it was thinned to is in memory until it is written.
    Rewriting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Send {
    /// In `live` or `backlog`.
    Queued,
    /// Being read from disk, to be sent.
    Loading,
    /// Being read from disk, to be thinned where it lies.
    Thinning,
    /// Handed to an uplink; not yet acknowledged.
    UnderWay(UnderWay),
}

/// What was handed to an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnderWay {
    pub(super) uplink: u8,
    /// A second uplink that carries the same.
    pub(super) also: Option<u8>,
    /// Since when its ack is waited for: its receipt if it was never on disk.
    pub(super) since_us: u64,
    pub(super) sent_us: u64,
    /// Bytes that were sent, which are fewer than the block's if it was thinned.
    pub(super) len: u32,
    /// Records that were thinned.
    pub(super) thinned: u32,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) class: Class,
    pub(super) policy: LanePolicy,
    pub(super) staging: Staging,
    /// True if some of `staging` is on disk, or on its way there, as fragments.
    pub(super) staging_fragmented: bool,
    pub(super) blocks: BTreeMap<Position, Block>,
    /// Queued blocks that are in memory.
    pub(super) live: BTreeSet<Position>,
    /// Queued blocks that are only on disk.
    pub(super) backlog: BTreeSet<Position>,
    /// Sealed blocks that are neither on disk nor on their way there.
    pub(super) to_write: BTreeSet<Position>,
    /// Blocks that can be thinned where they lie, by their coarseness; empty in a lane that is not.
    pub(super) thinnable: [BTreeSet<Position>; 2],
    /// What is being read for that.
    pub(super) thinning: Option<BlockKey>,
    /// Nothing is read for that before, because the last time failed.
    pub(super) thin_after_us: u64,
    /// Thinned blocks that are to be written in the place of what they were, and their bytes.
    pub(super) rewrites: BTreeSet<Position>,
    pub(super) rewrite_bytes: u64,
    /// Something in it must be written with the next commit, whatever the mode.
    pub(super) disk_wanted: bool,
    /// The first record that must be on disk before it is sent, if its commit has not begun.
    pub(super) bound_seq: Option<u64>,
    /// The same, while its commit is under way.
    pub(super) binding_seq: Option<u64>,
    /// Sequence numbers of this epoch that are safe, evicted or expired.
    pub(super) safe: RangeSet,
    /// Bytes of all blocks, wherever they are.
    pub(super) bytes: u64,
    /// Bytes of blocks that are in memory.
    pub(super) memory_bytes: u64,
    /// Of these, bytes of blocks that are on disk too.
    pub(super) cached_bytes: u64,
    /// By uplink: bytes handed to it and not acknowledged.
    pub(super) under_way: Vec<u64>,
    /// Records in sealed blocks.
    pub(super) records: u64,
    /// Raw bytes in the open end, by stream.
    pub(super) staged: Vec<u32>,
    /// Bytes of a block for each raw byte, of late.
    pub(super) ratio: f64,
    /// Bytes of what was evicted.
    pub(super) evicted_bytes: u64,
    pub(super) growth: Growth,
}

/// How fast a lane fills, and what follows from that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Growth {
    /// Bytes a second that come and are not sent, of late.
    bytes_per_s: f64,
    /// Bytes that it held when it was last looked at, with all that were ever evicted.
    seen_bytes: u64,
    seen_us: Option<u64>,
    /// [`Block::gone_us`] of what comes now.
    pub(super) gone_us: u64,
}

impl Default for Growth {
    fn default() -> Self {
        Growth { bytes_per_s: 0.0, seen_bytes: 0, seen_us: None, gone_us: Wait::FOR_EVER }
    }
}

/// Time constant of a lane's growth, in seconds: longer than the lumps in which many sensors send.
const GROWTH_S: f64 = 15.0;

/// Sensor data as JSON shrinks to about this part; learned with the first blocks.
const RATIO_AT_FIRST: f64 = 0.5;
/// Weight of the newest block in what is learned.
const RATIO_GAIN: f64 = 0.1;

impl Lane {
    pub(super) fn new(class: Class, policy: LanePolicy) -> Self {
        Lane {
            class,
            policy,
            staging: Staging::new(0),
            staging_fragmented: false,
            blocks: BTreeMap::new(),
            live: BTreeSet::new(),
            backlog: BTreeSet::new(),
            to_write: BTreeSet::new(),
            thinnable: Default::default(),
            thinning: None,
            thin_after_us: 0,
            rewrites: BTreeSet::new(),
            rewrite_bytes: 0,
            disk_wanted: false,
            bound_seq: None,
            binding_seq: None,
            safe: RangeSet::new(),
            bytes: 0,
            memory_bytes: 0,
            cached_bytes: 0,
            under_way: Vec::new(),
            records: 0,
            staged: Vec::new(),
            ratio: RATIO_AT_FIRST,
            evicted_bytes: 0,
            growth: Growth::default(),
        }
    }

    /// Estimates when each block will have been pushed out by what comes after it.
    pub(super) fn foresee(&mut self, now_us: u64) {
        let growth = &mut self.growth;
        let held_bytes = self.bytes + self.evicted_bytes;
        if let Some(seen_us) = growth.seen_us.filter(|seen_us| *seen_us < now_us) {
            let step_s = (now_us - seen_us) as f64 / 1e6;
            let rate = (held_bytes as f64 - growth.seen_bytes as f64) / step_s;
            growth.bytes_per_s += (step_s / GROWTH_S).min(1.0) * (rate - growth.bytes_per_s);
        }
        (growth.seen_bytes, growth.seen_us) = (held_bytes, Some(now_us));
        let (rate, cap_bytes) = (growth.bytes_per_s / 1e6, self.policy.cap_bytes);
        let gone_us = |before: u64| {
            // Blocks go when what came after the first of them fills the lane.
            let room = (cap_bytes + before).saturating_sub(self.bytes) as f64;
            if rate > 0.0 { now_us.saturating_add((room / rate) as u64) } else { Wait::FOR_EVER }
        };
        let mut before = 0;
        for block in self.blocks.values_mut() {
            block.gone_us = gone_us(before);
            before += u64::from(block.len);
        }
        self.growth.gone_us = gone_us(before);
    }

    /// What must be on disk before it counts as safe, given whether an uplink is up.
    pub(super) fn writes_at_once(&self, uplink_up: bool) -> bool {
        match self.policy.durability {
            _ if self.disk_wanted => true,
            Durability::Disk => true,
            Durability::Through => !uplink_up,
            Durability::Memory => false,
        }
    }

    /// The first record that must not be sent yet.
    pub(super) fn unsent_from(&self) -> Option<u64> {
        self.binding_seq.or(self.bound_seq)
    }

    pub(super) fn insert(&mut self, position: Position, block: Block) {
        self.bytes += u64::from(block.len);
        self.records += u64::from(block.header.count);
        if block.bytes.is_some() {
            self.memory_bytes += u64::from(block.len);
            self.live.insert(position);
        } else {
            self.backlog.insert(position);
        }
        if block.disk == Disk::Absent {
            self.to_write.insert(position);
        }
        if self.thins()
            && let Some(thinnable) = self.thinnable.get_mut(block.coarseness as usize)
        {
            thinnable.insert(position);
        }
        self.blocks.insert(position, block);
    }

    /// Shares the length of the block that the open end became among its streams, and starts anew.
    pub(super) fn take_parts(&mut self, len: u32) -> Box<[(u16, u32)]> {
        let raw: u64 = self.staged.iter().map(|&bytes| u64::from(bytes)).sum();
        if raw == 0 {
            return Box::default();
        }
        self.ratio += RATIO_GAIN * (f64::from(len) / raw as f64 - self.ratio);
        let part = |bytes: u32| (u64::from(bytes) * u64::from(len) / raw) as u32;
        let named = self.staged.iter().enumerate().filter(|(_, bytes)| **bytes > 0);
        let parts = named.map(|(stream, &bytes)| (stream as u16, part(bytes))).collect();
        self.staged.fill(0);
        parts
    }

    /// Takes a block out for good.
    pub(super) fn remove(&mut self, position: Position) -> Option<Block> {
        let block = self.blocks.remove(&position)?;
        self.bytes -= u64::from(block.len);
        self.records -= u64::from(block.header.count);
        if block.bytes.is_some() {
            self.memory_bytes -= u64::from(block.len);
            if block.disk == Disk::Stored {
                self.cached_bytes -= u64::from(block.len);
            }
        }
        if let Send::UnderWay(under_way) = block.send {
            self.landed(under_way.uplink, under_way.len);
            if let Some(also) = under_way.also {
                self.landed(also, under_way.len);
            }
        }
        if self.rewrites.remove(&position) {
            self.rewrite_bytes -= u64::from(block.len);
        }
        let queues = [&mut self.live, &mut self.backlog, &mut self.to_write];
        queues.into_iter().chain(&mut self.thinnable).for_each(|queue| _ = queue.remove(&position));
        Some(block)
    }

    /// A block is on disk; it is kept in memory too if it may soon be sent from there.
    pub(super) fn stored(&mut self, position: Position, keep: bool) {
        let Some(block) = self.blocks.get_mut(&position) else { return };
        block.disk = Disk::Stored;
        if block.bytes.is_some() {
            self.cached_bytes += u64::from(block.len);
        }
        if !keep || !self.live.contains(&position) {
            self.drop_bytes(position);
        }
    }

    /// Forgets the bytes of a block if it is on disk; if it is queued it becomes backlog.
    pub(super) fn drop_bytes(&mut self, position: Position) {
        let Some(block) = self.blocks.get_mut(&position) else { return };
        if block.disk != Disk::Stored || block.bytes.take().is_none() {
            return;
        }
        self.memory_bytes -= u64::from(block.len);
        self.cached_bytes -= u64::from(block.len);
        if block.send == Send::Queued {
            self.live.remove(&position);
            self.backlog.insert(position);
        }
    }

    /// Forgets the bytes of all blocks that are on disk.
    pub(super) fn drop_cached(&mut self) {
        if self.cached_bytes > 0 {
            for position in self.live.iter().copied().collect::<Vec<_>>() {
                self.drop_bytes(position);
            }
        }
    }

    /// Bytes handed to an uplink and not acknowledged.
    pub(super) fn under_way_bytes(&self, uplink: u8) -> u64 {
        self.under_way.get(usize::from(uplink)).copied().unwrap_or(0)
    }

    /// A block was handed to an uplink.
    pub(super) fn left(&mut self, uplink: u8, len: u32) {
        add_at(&mut self.under_way, uplink.into(), u64::from(len));
    }

    fn landed(&mut self, uplink: u8, len: u32) {
        self.under_way[usize::from(uplink)] -= u64::from(len);
    }

    /// Puts what was under way on `uplink` and on no other back into the queues; returns how many blocks.
    pub(super) fn requeue(&mut self, uplink: u8) -> usize {
        let mut count = 0;
        for (&position, block) in &mut self.blocks {
            let Send::UnderWay(under_way) = &mut block.send else { continue };
            if under_way.also == Some(uplink) {
                under_way.also = None;
            } else if under_way.uplink != uplink {
                continue;
            } else if let Some(also) = under_way.also.take() {
                under_way.uplink = also;
            } else {
                self.under_way[usize::from(uplink)] -= u64::from(under_way.len);
                block.send = Send::Queued;
                count += 1;
                let queue = if block.bytes.is_some() { &mut self.live } else { &mut self.backlog };
                queue.insert(position);
                continue;
            }
            self.under_way[usize::from(uplink)] -= u64::from(under_way.len);
        }
        count
    }

    /// True if what a put of this header would write is still wanted: the block, or what a fragment is a part of. `order` is the
    /// ordinal of its epoch, `current` that of the present one.
    pub(super) fn holds(&self, order: u32, current: u32, header: &BlockHeader) -> bool {
        let first = header.key.first_seq;
        let before = self.blocks.range((order, 0)..=(order, first)).next_back();
        order == current && first >= self.staging.first_seq()
            || before.is_some_and(|(_, block)| block.header.last_seq >= header.last_seq)
    }

    /// Since when something has waited to become safe; `None` if nothing does.
    pub(super) fn waits_since_us(&self) -> Option<u64> {
        let oldest = self.to_write.first().map(|position| self.blocks[position].waits_since_us);
        oldest.into_iter().chain(self.staging.chunk_born_us()).min()
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
