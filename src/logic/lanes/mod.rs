//! Lanes and blocks: what is worth keeping waits here until the cloud has it.
//!
//! Records are pushed into the open end of their class's lane. The open end is sealed into a block when the uplink can take
//! it, when it is large enough, or when it is written. A record is *safe* when it is in a committed transaction or when the
//! cloud acknowledged it as durable; [`Lanes::safe`] says up to where, in order, and PUBACKs follow that.
//!
//! Cases that surprised us:
//! - The small blocks of a group commit (*fragments*) are part of a block that is sealed later. Whether the block or its
//!   fragments reach the cloud first after a crash does not matter: fragments never cross a block's ends.
//! - A block can be acknowledged while its transaction is under way; it is removed by the next one.
//! - After a failed transaction the very same request is tried again, with the removals that came since in front of it, so
//!   that a full disk can always be emptied.

mod commit;
mod lane;
mod locate;
mod pacer;
mod packet_ids;
mod relief;
mod send;
#[cfg(test)]
mod tests;
mod voids;
mod worth;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::block::{BlockHeader, Codec, NewRecord};
use crate::ids::{BlockKey, Class, Epoch, PerClass, Void, VoidReason};
use crate::price::{Level, Wait};
use crate::store::{Held, PacketIdChange, SeqRange};
use crate::thin::Thinner;

pub use locate::{HeldPlace, Place, Step};
pub use pacer::COMMIT_OVERHEAD_BYTES;
pub use relief::Overflow;
pub use send::{Flow, Outgoing};
pub use worth::Acked;

use commit::{Commit, CommitState};
use lane::{Block, Disk, Lane, Position, Send, UnderWay};
use pacer::Pacer;
use packet_ids::PacketIds;
use relief::Coarseness;

/// When a record counts as safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Written to disk in the next group commit.
    Disk,
    /// Held in memory while an uplink is up; written to disk when the cloud's ack is late.
    Through,
    /// May be lost; acknowledged at once, written only when memory runs out.
    Memory,
}

/// What a lane may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanePolicy {
    /// When its records are safe.
    pub durability: Durability,
    /// Most bytes of sealed blocks.
    pub cap_bytes: u64,
    /// What becomes of it when it is full.
    pub overflow: Overflow,
    /// Age in microseconds of service time from which a record may be given up; a sixteenth later it is. `None` for no limit.
    pub ttl_us: Option<u64>,
    /// Its part of an uplink that all lanes want, relative to the other lanes' parts.
    pub share: u32,
}

impl LanePolicy {
    /// Longest time from the first record of a block to its last: a block is given up as a whole, when its last record has
    /// outlived the TTL. A sixteenth of the TTL makes no more than 17 blocks of records that trickle in.
    fn span_us_max(&self) -> u64 {
        self.ttl_us.map_or(u64::MAX, |ttl_us| ttl_us / 16)
    }
}

/// Limits over all lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanesLimits {
    /// Most bytes in memory; from half of it on the oldest are written, at the whole of it sockets are not read.
    pub memory_bytes: u64,
    /// Raw bytes at which a block is sealed.
    pub block_target_bytes: usize,
    /// Flash that commits ahead of their interval may write a day, see [`pacer`](self).
    pub early_commit_bytes_per_day: u64,
}

/// Counts since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneCounters {
    /// Records pushed.
    pub records: u64,
    /// Payload bytes pushed.
    pub payload_bytes: u64,
    /// Records the cloud acknowledged.
    pub acked: u64,
    /// Records that were left out of what the cloud acknowledged, because their bytes cost more than they were worth, or of
    /// what is held, because the lane was nearly full.
    pub thinned: u64,
    /// Times that a block was thinned where it lies, because the lane was nearly full.
    pub thinned_blocks: u64,
    /// Records evicted because the lane was over its cap.
    pub evicted: u64,
    /// Records that outlived their TTL.
    pub expired: u64,
    /// Records whose block on disk was unreadable.
    pub corrupt: u64,
    /// Blocks handed to an uplink, repeated ones included.
    pub sent_blocks: u64,
    /// Bytes of those.
    pub sent_bytes: u64,
    /// Blocks handed to an uplink again because a session ended before their ack.
    pub repeated_blocks: u64,
    /// Blocks handed to a second uplink too, because they are critical.
    pub copied_blocks: u64,
    /// Records written to disk because the cloud's ack was late or memory ran out (`through` and `memory` lanes).
    pub spilled: u64,
}

/// What a lane holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneStatus {
    /// Records held, the open end included.
    pub records: u64,
    /// Bytes of sealed blocks.
    pub bytes: u64,
    /// Bytes in memory, the open end included.
    pub memory_bytes: u64,
    /// Bytes handed to an uplink and not acknowledged.
    pub under_way_bytes: u64,
    /// Service time of the oldest record.
    pub oldest_us: Option<u64>,
    /// Sealed blocks.
    pub blocks: u64,
}

/// All lanes of one gateway.
#[derive(Debug)]
pub struct Lanes {
    limits: LanesLimits,
    /// How long what is handed over now will take to come, see [`Lanes::foresee`].
    ahead_us: u64,
    /// Raw bytes at which a block is sealed now, see [`Lanes::block_bytes`].
    block_bytes: usize,
    folding: worth::Folding,
    /// Order of epochs by age; the last is the present one.
    epochs: Vec<Epoch>,
    lanes: PerClass<Lane>,
    codec: Codec,
    thinner: Thinner,
    /// By stream: how coarse it may be.
    floors: Box<[Level]>,
    /// Bytes acknowledged since [`Lanes::take_acked`].
    acked: Vec<Acked>,
    /// Raw bytes that came since [`Lanes::take_arrived`], by stream.
    arrived: Vec<u64>,
    pacer: Pacer,
    wall_offset_us: Option<i64>,
    uplink_up: bool,
    commit: Commit,
    pending_deletes: Vec<SeqRange>,
    /// Since when removals or voids have waited for a transaction.
    tidy_since_us: Option<u64>,
    /// Voids that the cloud has not acknowledged. Between two of one lane lies a block that is held or, up to
    /// [`VOIDS_COUNT_MAX`] in all, another reason.
    voids: BTreeMap<BlockKey, Void>,
    /// Voids that were told with the reason of a later one, for want of room.
    voids_relabelled: u64,
    voids_to_write: Vec<Void>,
    voids_to_forget: Vec<BlockKey>,
    voids_to_send: BTreeSet<BlockKey>,
    packet_ids: PacketIds,
    ack_times: send::AckTimes,
    /// When late acks last made a transaction.
    spilled_us: u64,
    schedule: send::Schedule,
    counters: PerClass<LaneCounters>,
    checked_us: u64,
}

/// What the buffer held at its opening.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found<'a> {
    /// Blocks, in the order of age.
    pub held: &'a [Held],
    /// Voids the cloud has not acknowledged.
    pub voids: &'a [Void],
    /// Keys of blocks that cannot be read.
    pub damaged: &'a [BlockKey],
    /// Packet ids of brokers' messages that were not released.
    pub packet_ids: &'a [PacketIdChange],
}

/// How long removals and voids may wait for a transaction that is needed anyway.
const TIDY_WAIT_US: u64 = 5_000_000;
/// The same for voids of records that were not safe.
const TIDY_UNSAFE_US: u64 = 1_000_000;
/// Removals are not let grow beyond this.
const DELETES_COUNT_MAX: usize = 1_024;
/// Voids beyond which neighbours become one whatever their reasons: 200 KiB of memory.
const VOIDS_COUNT_MAX: usize = 4_096;
/// Older runs of which something may be held; the oldest are given up when the buffer is opened. A Hello names them all, in
/// about ten bytes each, and must stay below the limit of a message.
const HELD_EPOCHS_MAX: usize = 32_768;
/// How long to wait before a failed transaction is tried again.
const RETRY_US: u64 = 1_000_000;
/// Late acks make no more than a transaction in this time.
const SPILL_INTERVAL_US: u64 = 1_000_000;
/// How often caps and ages are checked; caps also whenever a block is sealed.
const CHECK_US: u64 = 1_000_000;

/// Adds to a list by stream or uplink, which grows as they appear.
fn add_at<T: Copy + Default + std::ops::AddAssign>(list: &mut Vec<T>, at: u16, more: T) {
    let at = usize::from(at);
    if at >= list.len() {
        list.resize(at + 1, T::default());
    }
    list[at] += more;
}

impl Lanes {
    /// Lanes with what was found on disk; `epoch` must be new.
    pub fn new(
        now_us: u64,
        epoch: Epoch,
        policies: PerClass<LanePolicy>,
        limits: LanesLimits,
        found: Found<'_>,
        thinner: Thinner,
    ) -> Self {
        let Found { held, voids, damaged, packet_ids: _ } = found;
        let mut epochs: Vec<Epoch> = Vec::new();
        let mut lanes = Class::ALL.map(|class| Lane::new(class, policies[class.index()]));
        for &Held { header, len } in held {
            let order = epochs.iter().position(|&e| e == header.key.epoch).unwrap_or_else(|| {
                epochs.push(header.key.epoch);
                epochs.len() - 1
            });
            let block = Block {
                header,
                len,
                bytes: None,
                disk: Disk::Stored,
                fragmented: false,
                send: Send::Queued,
                waits_since_us: now_us,
                gone_us: Wait::FOR_EVER,
                coarseness: Coarseness::found(header.fidelity),
                parts: Box::default(),
            };
            lanes[header.key.lane.index()].insert((order as u32, header.key.first_seq), block);
        }
        // Nothing but voids may be left of a run.
        for key in voids.iter().map(|void| &void.key).chain(damaged) {
            if !epochs.contains(&key.epoch) {
                epochs.push(key.epoch);
            }
        }
        epochs.push(epoch);
        let mut lanes = Lanes {
            limits,
            ahead_us: 0,
            block_bytes: limits.block_target_bytes,
            folding: worth::Folding::default(),
            epochs,
            lanes,
            codec: Codec::default(),
            floors: thinner.floors(),
            thinner,
            acked: Vec::new(),
            arrived: Vec::new(),
            pacer: Pacer::new(now_us, limits.early_commit_bytes_per_day),
            wall_offset_us: None,
            uplink_up: false,
            commit: Commit { next_ticket: 1, state: CommitState::Idle, failures: 0 },
            pending_deletes: Vec::new(),
            tidy_since_us: None,
            voids: voids.iter().map(|void| (void.key, *void)).collect(),
            voids_relabelled: 0,
            voids_to_write: Vec::new(),
            voids_to_forget: Vec::new(),
            voids_to_send: voids.iter().map(|void| void.key).collect(),
            packet_ids: PacketIds::default(),
            ack_times: send::AckTimes::default(),
            spilled_us: 0,
            schedule: send::Schedule::default(),
            counters: Default::default(),
            checked_us: now_us,
        };
        lanes.void_damaged(now_us, damaged);
        lanes.give_up_oldest_epochs(now_us);
        lanes
    }

    /// The present epoch.
    pub fn epoch(&self) -> Epoch {
        *self.epochs.last().expect("the present epoch is always there")
    }

    /// Older epochs of which something is still held.
    pub fn held_epochs(&self) -> Vec<Epoch> {
        let current = self.current();
        let older = self.epochs[..current as usize].iter().enumerate();
        older
            .filter(|&(order, epoch)| {
                let order = order as u32;
                let holds = |lane: &Lane| lane.blocks.range((order, 0)..(order + 1, 0)).next().is_some();
                self.lanes.iter().any(holds) || self.voids.keys().any(|key| key.epoch == *epoch)
            })
            .map(|(_, &epoch)| epoch)
            .collect()
    }

    fn current(&self) -> u32 {
        self.epochs.len() as u32 - 1
    }

    /// Unix time minus service time, when the wall clock is trusted.
    pub fn set_wall_offset(&mut self, offset_us: Option<i64>) {
        self.wall_offset_us = offset_us;
    }

    /// Appends a record of a stream to the lane of its class and returns its sequence number.
    pub fn push(&mut self, now_us: u64, class: Class, stream: u16, record: &NewRecord<'_>) -> u64 {
        let Lane { staging, policy, .. } = &self.lanes[class.index()];
        let spans_us = staging.born_us().map_or(0, |born_us| record.at_us.saturating_sub(born_us));
        if staging.is_full_for(record.payload.len(), self.block_bytes(class)) || spans_us > policy.span_us_max() {
            self.seal(now_us, class);
        }
        let lane = &mut self.lanes[class.index()];
        let before = lane.staging.len();
        let seq = lane.staging.push(record);
        let len = lane.staging.len() - before;
        add_at(&mut lane.staged, stream, len as u32);
        add_at(&mut self.arrived, stream, len as u64);
        if lane.writes_at_once(self.uplink_up) {
            self.pacer.record(now_us, class, len);
        }
        let counters = &mut self.counters[class.index()];
        counters.records += 1;
        counters.payload_bytes += record.payload.len() as u64;
        seq
    }

    /// Per lane the first sequence number of this epoch that is not yet safe.
    pub fn safe(&self) -> PerClass<u64> {
        Class::ALL.map(|class| match self.lanes[class.index()].policy.durability {
            Durability::Memory => u64::MAX,
            Durability::Disk | Durability::Through => self.lanes[class.index()].safe.contiguous_end(),
        })
    }

    /// Per lane the first sequence number of this epoch that is still held or whose void is not acknowledged.
    pub fn settled(&self) -> PerClass<u64> {
        let (current, epoch) = (self.current(), self.epoch());
        let mut settled = Class::ALL.map(|class| self.lanes[class.index()].settled(current));
        for key in self.voids.keys().filter(|key| key.epoch == epoch) {
            let lane = &mut settled[key.lane.index()];
            *lane = (*lane).min(key.first_seq);
        }
        settled
    }

    /// True if nothing more may be taken in: memory is full, because neither uplink nor disk takes what is there.
    pub fn is_full(&self) -> bool {
        self.memory_bytes() >= self.limits.memory_bytes
    }

    /// Bytes in memory over all lanes.
    pub fn memory_bytes(&self) -> u64 {
        self.lanes.iter().map(Lane::memory_len).sum()
    }

    /// Seals the open end of a lane into a block.
    fn seal(&mut self, now_us: u64, class: Class) -> Option<Position> {
        let (epoch, current) = (self.epoch(), self.current());
        let lane = &mut self.lanes[class.index()];
        let waits_since_us = lane.staging.chunk_born_us().unwrap_or(now_us);
        let (header, bytes) = lane.staging.seal(class, epoch, self.wall_offset_us, &mut self.codec)?;
        let position = (current, header.key.first_seq);
        let bytes_len = bytes.len() as u32;
        let block = Block {
            header,
            len: bytes.len() as u32,
            bytes: Some(bytes),
            disk: Disk::Absent,
            fragmented: std::mem::take(&mut lane.staging_fragmented),
            send: Send::Queued,
            waits_since_us,
            gone_us: lane.growth.gone_us,
            coarseness: Coarseness::Whole,
            parts: lane.take_parts(bytes_len),
        };
        lane.insert(position, block);
        Some(position)
    }

    /// When [`Lanes::commit`] or [`Lanes::tick`] has something to do.
    pub fn deadline_us(&self) -> u64 {
        let check = self.checked_us + CHECK_US;
        let commit = match &self.commit.state {
            CommitState::Running(_) => u64::MAX,
            CommitState::Failed { retry_us, .. } => *retry_us,
            CommitState::Idle => {
                let tidy = self.tidy_since_us.map_or(u64::MAX, |since| since + TIDY_WAIT_US);
                self.pacer.due_us().unwrap_or(u64::MAX).min(tidy).min(self.spill_due_us())
            }
        };
        check.min(commit)
    }

    /// The cloud said over uplink `via` that it has these durably, or has noted their void.
    pub fn ack(&mut self, now_us: u64, via: u8, class: Class, epoch: Epoch, range: RangeInclusive<u64>) {
        let Some(order) = self.order_of(epoch) else { return };
        let (first, last) = (*range.start(), *range.end());
        let lane = &mut self.lanes[class.index()];
        if order == self.epochs.len() as u32 - 1 {
            // Only what was sent can be acknowledged; a peer that says otherwise is not believed.
            let end = lane.staging.first_seq();
            if first < end {
                lane.safe.insert(first..=last.min(end - 1));
            }
        }
        let done: Vec<Position> = lane
            .blocks
            .range((order, first)..=(order, last))
            .filter(|(_, block)| block.header.last_seq <= last)
            .map(|(&position, _)| position)
            .collect();
        for position in done {
            let block = self.lanes[class.index()].remove(position).expect("found above");
            let mut thinned = 0;
            if let Send::UnderWay(UnderWay { uplink, also, since_us, sent_us, len, thinned: left_out }) = block.send {
                thinned = left_out;
                let uplink = also.filter(|&also| also == via).unwrap_or(uplink);
                self.acked.push(Acked { uplink, bytes: len.into(), sent_us });
                if self.lanes[class.index()].policy.durability == Durability::Through {
                    self.ack_times.record(now_us.saturating_sub(since_us));
                }
            }
            let counters = &mut self.counters[class.index()];
            counters.acked += u64::from(block.header.count - thinned);
            counters.thinned += u64::from(thinned);
            self.forget(now_us, &block);
        }
        let key = |first_seq| BlockKey { lane: class, epoch, first_seq };
        let acked: Vec<BlockKey> =
            self.voids.range(key(first)..=key(last)).filter(|(_, void)| void.last_seq <= last).map(|(&key, _)| key).collect();
        for key in acked {
            self.voids.remove(&key);
            self.voids_to_write.retain(|void| void.key != key);
            self.voids_to_forget.push(key);
            self.tidy_since_us.get_or_insert(now_us);
        }
    }

    /// Counts of a lane since start.
    pub fn counters(&self, class: Class) -> LaneCounters {
        self.counters[class.index()]
    }

    /// What a lane holds now.
    pub fn status(&self, class: Class) -> LaneStatus {
        let lane = &self.lanes[class.index()];
        let staged = lane.staging.next_seq() - lane.staging.first_seq();
        LaneStatus {
            records: lane.records + staged,
            bytes: lane.bytes,
            memory_bytes: lane.memory_len(),
            under_way_bytes: lane.under_way.iter().sum(),
            oldest_us: lane.blocks.first_key_value().map(|(_, b)| b.header.born_us).or(lane.staging.born_us()),
            blocks: lane.blocks.len() as u64,
        }
    }

    /// Place of an epoch among those of which something may be held, by age.
    fn order_of(&self, epoch: Epoch) -> Option<u32> {
        self.epochs.iter().position(|&known| known == epoch).map(|order| order as u32)
    }

    /// A block that [`Outgoing::Load`] or [`Lanes::relieve`] asked for; `None` if the disk has none such or it is damaged.
    ///
    /// A damaged block is given up as `corrupt`.
    pub fn loaded(&mut self, now_us: u64, key: BlockKey, block: Option<Bytes>) {
        let sound = block.filter(|bytes| BlockHeader::parse(bytes).is_ok_and(|header| header.key == key));
        if self.is_read_to_thin(key) {
            return self.loaded_to_thin(now_us, key, sound);
        }
        self.schedule.loaded(key.lane);
        let Some(position) = self.position_of(key) else { return };
        let lane = &mut self.lanes[key.lane.index()];
        let held = lane.blocks.get_mut(&position).expect("position_of found it");
        if held.send != Send::Loading {
            return;
        }
        match sound {
            Some(bytes) => {
                held.send = Send::Queued;
                self.schedule.ready(key, bytes);
            }
            None => self.give_up(now_us, key.lane, position, VoidReason::Corrupt),
        }
    }

    /// A block that [`Outgoing::Load`] asked for cannot be read now: it stays, and is asked for again after a while.
    pub fn load_failed(&mut self, now_us: u64, key: BlockKey) {
        if self.is_read_to_thin(key) {
            return self.load_to_thin_failed(now_us, key);
        }
        self.schedule.load_failed(key.lane, now_us + RETRY_US);
        let Some(position) = self.position_of(key) else { return };
        let lane = &mut self.lanes[key.lane.index()];
        let held = lane.blocks.get_mut(&position).expect("position_of found it");
        if held.send == Send::Loading {
            held.send = Send::Queued;
            lane.backlog.insert(position);
        }
    }
}
