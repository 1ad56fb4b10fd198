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

mod lane;
mod pacer;
mod send;
#[cfg(test)]
mod tests;
mod worth;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::block::{BlockHeader, Codec, NewRecord};
use crate::ids::{BlockKey, Class, Epoch, PerClass, Void, VoidReason};
use crate::store::{CommitRequest, Held, Put, SeqRange, StoreError};
use crate::thin::Thinner;

pub use pacer::COMMIT_OVERHEAD_BYTES;
pub use send::{Flow, Outgoing};
pub use worth::Acked;

use lane::{Block, Disk, Lane, Position, Send, UnderWay};
use pacer::Pacer;

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
    /// Most bytes of sealed blocks; beyond it the oldest are evicted.
    pub cap_bytes: u64,
    /// Oldest age in microseconds of service time; `None` for no limit.
    pub ttl_us: Option<u64>,
    /// Its part of an uplink that all lanes want, relative to the other lanes' parts.
    pub share: u32,
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
    /// Records that were left out of what the cloud acknowledged, because their bytes cost more than they were worth.
    pub thinned: u64,
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
    /// Order of epochs by age; the last is the present one.
    epochs: Vec<Epoch>,
    lanes: PerClass<Lane>,
    codec: Codec,
    thinner: Thinner,
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
    /// Voids that the cloud has not acknowledged.
    voids: BTreeMap<BlockKey, Void>,
    voids_to_write: Vec<Void>,
    voids_to_forget: Vec<BlockKey>,
    voids_to_send: BTreeSet<BlockKey>,
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
}

/// The one transaction that may be under way.
#[derive(Debug)]
struct Commit {
    next_ticket: u64,
    state: CommitState,
    failures: u64,
}

#[derive(Debug)]
enum CommitState {
    Idle,
    /// Kept, because a request that failed is tried again.
    Running(CommitRequest),
    Failed {
        request: CommitRequest,
        retry_us: u64,
        full: bool,
    },
}

/// How long removals and voids may wait for a transaction that is needed anyway.
const TIDY_WAIT_US: u64 = 5_000_000;
/// The same for voids of records that were not safe.
const TIDY_UNSAFE_US: u64 = 1_000_000;
/// Removals are not let grow beyond this.
const DELETES_COUNT_MAX: usize = 1_024;
/// How long to wait before a failed transaction is tried again.
const RETRY_US: u64 = 1_000_000;
/// Late acks make no more than a transaction in this time.
const SPILL_INTERVAL_US: u64 = 1_000_000;
/// How often caps and ages are checked; caps also whenever a block is sealed.
const CHECK_US: u64 = 1_000_000;

/// Adds to a list by stream, which grows as streams appear.
fn add_at<T: Copy + Default + std::ops::AddAssign>(list: &mut Vec<T>, stream: u16, more: T) {
    let at = usize::from(stream);
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
        let Found { held, voids, damaged } = found;
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
            epochs,
            lanes,
            codec: Codec::default(),
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
            voids_to_write: Vec::new(),
            voids_to_forget: Vec::new(),
            voids_to_send: voids.iter().map(|void| void.key).collect(),
            ack_times: send::AckTimes::default(),
            spilled_us: 0,
            schedule: send::Schedule::default(),
            counters: Default::default(),
            checked_us: now_us,
        };
        lanes.void_damaged(now_us, damaged);
        lanes
    }

    /// Voids and removes what was found unreadable: from its first number to the next block that is sound.
    ///
    /// Where none follows, only the first number is certain. What the cloud has of the range meanwhile stays there.
    fn void_damaged(&mut self, now_us: u64, damaged: &[BlockKey]) {
        let keys: BTreeSet<BlockKey> = damaged.iter().copied().collect();
        for &key in &keys {
            let Some(order) = self.epochs.iter().position(|&e| e == key.epoch) else { continue };
            let (lane, order) = (&self.lanes[key.lane.index()], order as u32);
            let before = lane.blocks.range((order, 0)..=(order, key.first_seq)).next_back();
            if before.is_some_and(|(_, block)| block.header.last_seq >= key.first_seq) {
                continue;
            }
            let sound = lane.blocks.range((order, key.first_seq)..(order + 1, 0)).next().map(|(&(_, first), _)| first);
            let end = BlockKey { first_seq: u64::MAX, ..key };
            let broken = keys.range(key..=end).nth(1).map(|next| next.first_seq);
            let next = sound.into_iter().chain(broken).min().unwrap_or(key.first_seq + 1);
            self.counters[key.lane.index()].corrupt += next - key.first_seq;
            self.note_void(Void { key, last_seq: next - 1, reason: VoidReason::Corrupt });
            self.pending_deletes.push(SeqRange { key, last_seq: next - 1 });
            self.tidy_since_us.get_or_insert(now_us);
        }
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
        if self.lanes[class.index()].staging.is_full_for(record.payload.len(), self.limits.block_target_bytes) {
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

    /// When what waits for its ack in memory is to be written.
    fn spill_due_us(&self) -> u64 {
        let since = self.lanes.iter().filter(|lane| self.is_sent_through(lane)).filter_map(Lane::waits_since_us).min();
        let due = |since: u64| (since + self.ack_times.spill_wait_us()).max(self.spilled_us + SPILL_INTERVAL_US);
        since.map_or(u64::MAX, due)
    }

    fn is_sent_through(&self, lane: &Lane) -> bool {
        self.uplink_up && lane.policy.durability == Durability::Through
    }

    /// The next transaction, if one is due and none is under way.
    pub fn commit(&mut self, now_us: u64) -> Option<CommitRequest> {
        match &mut self.commit.state {
            CommitState::Running(_) => return None,
            CommitState::Failed { retry_us, .. } if *retry_us > now_us => return None,
            CommitState::Failed { .. } => return self.retry(),
            CommitState::Idle => {}
        }
        let spill = self.lacks_memory();
        let due = self.pacer.due_us().is_some_and(|due| due <= now_us)
            || spill && self.lanes.iter().any(|lane| !lane.to_write.is_empty() || self.is_worth_a_block(lane))
            || self.spill_due_us() <= now_us
            || self.tidy_since_us.is_some_and(|since| since + TIDY_WAIT_US <= now_us)
            || self.pending_deletes.len() >= DELETES_COUNT_MAX;
        if !due {
            return None;
        }
        self.start(now_us, spill)
    }

    /// True if more than half of the memory is used by what is not on disk.
    fn lacks_memory(&mut self) -> bool {
        if self.memory_bytes() <= self.limits.memory_bytes / 2 {
            return false;
        }
        self.lanes.iter_mut().for_each(Lane::drop_cached);
        self.memory_bytes() > self.limits.memory_bytes / 2
    }

    /// True if the open end of a lane should be written as a block rather than as a fragment.
    fn is_worth_a_block(&self, lane: &Lane) -> bool {
        lane.staging.len() >= self.limits.block_target_bytes / 2
    }

    fn start(&mut self, now_us: u64, spill: bool) -> Option<CommitRequest> {
        let request = self.build(now_us, spill);
        self.pacer.begin(now_us);
        if request.is_empty() {
            return None;
        }
        self.commit.state = CommitState::Running(request.clone());
        Some(request)
    }

    /// The failed transaction again, without what is no longer wanted and with the removals since.
    fn retry(&mut self) -> Option<CommitRequest> {
        let state = std::mem::replace(&mut self.commit.state, CommitState::Idle);
        let CommitState::Failed { mut request, .. } = state else { return None };
        let current = self.current();
        request.puts.retain(|put| self.lanes[put.header.key.lane.index()].holds(current, &put.header));
        // A removal of something that this request is to write must not be lost: it waits for the next one.
        let puts = &request.puts;
        let overlaps = |range: &SeqRange| {
            puts.iter().any(|p| {
                let key = p.header.key;
                key.lane == range.key.lane
                    && key.epoch == range.key.epoch
                    && (range.key.first_seq..=range.last_seq).contains(&key.first_seq)
            })
        };
        let (later, now): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending_deletes).into_iter().partition(overlaps);
        self.pending_deletes = later;
        request.deletes.extend(now);
        request.voids.retain(|void| self.voids.contains_key(&void.key));
        request.voids.append(&mut self.voids_to_write);
        request.voids_acked.append(&mut self.voids_to_forget);
        if request.is_empty() {
            return None;
        }
        self.commit.state = CommitState::Running(request.clone());
        Some(request)
    }

    fn build(&mut self, now_us: u64, spill: bool) -> CommitRequest {
        let ticket = self.commit.next_ticket;
        self.commit.next_ticket += 1;
        let mut request = CommitRequest {
            ticket,
            deletes: std::mem::take(&mut self.pending_deletes),
            puts: Vec::new(),
            voids: std::mem::take(&mut self.voids_to_write),
            voids_acked: std::mem::take(&mut self.voids_to_forget),
        };
        self.tidy_since_us = None;
        let late_us = now_us.saturating_sub(self.ack_times.spill_wait_us());
        for class in Class::ALL {
            let lane = &self.lanes[class.index()];
            let late = self.is_sent_through(lane) && lane.waits_since_us().is_some_and(|since| since <= late_us);
            if late {
                self.spilled_us = now_us;
            }
            if late || lane.writes_at_once(self.uplink_up) {
                self.write_open_end(now_us, class, &mut request);
                self.write_blocks(class, &mut request);
            } else if spill {
                if self.is_worth_a_block(lane) {
                    self.seal(now_us, class);
                }
                self.write_blocks(class, &mut request);
            }
        }
        request
    }

    /// Writes the open end of a lane: whole if it is worth a block, else what came since the last commit as a fragment.
    fn write_open_end(&mut self, now_us: u64, class: Class, request: &mut CommitRequest) {
        let epoch = self.epoch();
        let lane = &mut self.lanes[class.index()];
        if lane.staging.chunk_len().1 == 0 {
            return;
        }
        if lane.staging.len() >= self.limits.block_target_bytes / 2 {
            self.seal(now_us, class);
            return;
        }
        let at_once = lane.writes_at_once(self.uplink_up);
        if let Some((header, block)) = lane.staging.cut(class, epoch, self.wall_offset_us, &mut self.codec) {
            lane.staging_fragmented = true;
            if !at_once {
                self.counters[class.index()].spilled += u64::from(header.count);
            }
            request.puts.push(Put { header, block, fragment: true });
        }
    }

    /// Writes the blocks that are in memory only.
    fn write_blocks(&mut self, class: Class, request: &mut CommitRequest) {
        let at_once = self.lanes[class.index()].writes_at_once(self.uplink_up);
        let lane = &mut self.lanes[class.index()];
        while let Some(position) = lane.to_write.pop_first() {
            let block = lane.blocks.get_mut(&position).expect("removed from the queue with the block");
            block.disk = Disk::Writing;
            if std::mem::take(&mut block.fragmented) {
                request.deletes.push(SeqRange { key: block.header.key, last_seq: block.header.last_seq });
            }
            if !at_once {
                self.counters[class.index()].spilled += u64::from(block.header.count);
            }
            let bytes = block.bytes.clone().expect("a block that is not on disk is in memory");
            request.puts.push(Put { header: block.header, block: bytes, fragment: false });
        }
    }

    /// The transaction with this ticket ended.
    pub fn committed(&mut self, now_us: u64, ticket: u64, result: Result<(), StoreError>) {
        let CommitState::Running(request) = std::mem::replace(&mut self.commit.state, CommitState::Idle) else { return };
        debug_assert_eq!(request.ticket, ticket, "one transaction at a time");
        if let Err(error) = result {
            self.commit.failures += 1;
            let full = error == StoreError::Full;
            self.commit.state = CommitState::Failed { request, retry_us: now_us + RETRY_US, full };
            return;
        }
        let (epoch, current) = (self.epoch(), self.current());
        for Put { header, fragment, .. } in &request.puts {
            debug_assert_eq!(header.key.epoch, epoch, "only the present epoch is written");
            let lane = &mut self.lanes[header.key.lane.index()];
            lane.safe.insert(header.key.first_seq..=header.last_seq);
            if !fragment {
                let keep = self.uplink_up && lane.memory_bytes <= self.limits.memory_bytes / 8;
                lane.stored((current, header.key.first_seq), keep);
            }
        }
        for void in request.voids.iter().filter(|void| void.key.epoch == epoch) {
            // Their fate is on record: who waits for a PUBACK need not wait longer.
            self.lanes[void.key.lane.index()].safe.insert(void.key.first_seq..=void.last_seq);
        }
        self.pacer.acknowledged(now_us);
    }

    /// The cloud has these durably, or has noted their void.
    pub fn ack(&mut self, now_us: u64, class: Class, epoch: Epoch, range: RangeInclusive<u64>) {
        let Some(order) = self.epochs.iter().position(|&e| e == epoch).map(|order| order as u32) else { return };
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
            if let Send::UnderWay(UnderWay { uplink, since_us, sent_us, len, thinned: left_out }) = block.send {
                thinned = left_out;
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

    /// Removes from disk what is there of a block that is gone.
    fn forget(&mut self, now_us: u64, block: &Block) {
        if block.disk == Disk::Absent && !block.fragmented {
            return;
        }
        self.tidy_since_us.get_or_insert(now_us);
        let range = SeqRange { key: block.header.key, last_seq: block.header.last_seq };
        match self.pending_deletes.last_mut() {
            // Acks come in order, so ranges mostly grow at their end.
            Some(tail)
                if tail.key.lane == range.key.lane
                    && tail.key.epoch == range.key.epoch
                    && tail.last_seq + 1 == range.key.first_seq =>
            {
                tail.last_seq = range.last_seq;
            }
            _ => self.pending_deletes.push(range),
        }
    }

    /// Enforces TTLs and caps; call at [`Lanes::deadline_us`].
    pub fn tick(&mut self, now_us: u64) {
        if now_us < self.checked_us + CHECK_US {
            return;
        }
        self.checked_us = now_us;
        for class in Class::ALL {
            let policy = self.lanes[class.index()].policy;
            if let Some(ttl_us) = policy.ttl_us {
                let oldest_us = now_us.saturating_sub(ttl_us);
                if self.lanes[class.index()].staging.born_us().is_some_and(|born| born < oldest_us) {
                    self.seal(now_us, class);
                }
                while let Some((&position, _)) =
                    self.lanes[class.index()].blocks.first_key_value().filter(|(_, b)| b.header.born_us < oldest_us)
                {
                    self.give_up(now_us, class, position, VoidReason::Expired);
                }
            }
            self.enforce_cap(now_us, class);
        }
    }

    fn enforce_cap(&mut self, now_us: u64, class: Class) {
        while self.lanes[class.index()].bytes > self.lanes[class.index()].policy.cap_bytes {
            let Some((&position, _)) = self.lanes[class.index()].blocks.first_key_value() else { return };
            self.give_up(now_us, class, position, VoidReason::Evicted);
        }
    }

    /// Gives a block up: it becomes a void.
    fn give_up(&mut self, now_us: u64, class: Class, position: Position, reason: VoidReason) {
        let current = self.current();
        let lane = &mut self.lanes[class.index()];
        let Some(block) = lane.remove(position) else { return };
        let (key, last_seq) = (block.header.key, block.header.last_seq);
        if position.0 == current && !lane.safe.covers(key.first_seq..=last_seq) {
            // Somebody may wait for its PUBACK, which goes out when the void is on record.
            self.pacer.due_by(now_us + TIDY_UNSAFE_US);
        }
        let counters = &mut self.counters[class.index()];
        let count = u64::from(block.header.count);
        match reason {
            VoidReason::Evicted => counters.evicted += count,
            VoidReason::Expired => counters.expired += count,
            VoidReason::Corrupt => counters.corrupt += count,
        }
        self.note_void(Void { key, last_seq, reason });
        self.tidy_since_us.get_or_insert(now_us);
        self.forget(now_us, &block);
    }

    /// Remembers a void; one that continues another becomes part of it, so that a long outage makes few.
    fn note_void(&mut self, mut void: Void) {
        let before = self.voids.range(..void.key).next_back().map(|(_, before)| *before);
        let continues = |before: &Void| {
            (before.key.lane, before.key.epoch, before.reason, before.last_seq + 1)
                == (void.key.lane, void.key.epoch, void.reason, void.key.first_seq)
        };
        if let Some(before) = before.filter(continues) {
            void.key = before.key;
        }
        self.voids.insert(void.key, void);
        self.voids_to_write.retain(|other| other.key != void.key);
        self.voids_to_write.push(void);
        self.voids_to_send.insert(void.key);
    }

    /// Everything that is not yet safe, sealed and written whatever the mode but `memory`; a failed transaction once more.
    ///
    /// To be called again after each transaction that worked, until there is nothing left.
    pub fn final_commit(&mut self, now_us: u64) -> Option<CommitRequest> {
        self.uplink_up = false;
        match self.commit.state {
            CommitState::Running(_) => None,
            CommitState::Failed { .. } => self.retry().or_else(|| self.start(now_us, false)),
            CommitState::Idle => self.start(now_us, false),
        }
    }

    /// Voids to tell the cloud now; each once a session.
    pub fn take_voids_to_send(&mut self) -> Vec<Void> {
        let keys = std::mem::take(&mut self.voids_to_send);
        keys.iter().filter_map(|key| self.voids.get(key).copied()).collect()
    }

    /// Voids the cloud has not acknowledged.
    pub fn void_count(&self) -> usize {
        self.voids.len()
    }

    /// True while a transaction is under way.
    pub fn is_committing(&self) -> bool {
        matches!(self.commit.state, CommitState::Running(_))
    }

    /// True if the disk refused the last transaction for lack of space.
    pub fn disk_full(&self) -> bool {
        matches!(self.commit.state, CommitState::Failed { full: true, .. })
    }

    /// Transactions that failed since start.
    pub fn commit_failures(&self) -> u64 {
        self.commit.failures
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
            under_way_bytes: lane.under_way_bytes,
            oldest_us: lane.blocks.first_key_value().map(|(_, b)| b.header.born_us).or(lane.staging.born_us()),
            blocks: lane.blocks.len() as u64,
        }
    }

    /// Header of the block a key names, if it is held.
    fn position_of(&self, key: BlockKey) -> Option<Position> {
        let order = self.epochs.iter().position(|&e| e == key.epoch)? as u32;
        self.lanes[key.lane.index()].blocks.contains_key(&(order, key.first_seq)).then_some((order, key.first_seq))
    }

    /// A block that [`Outgoing::Load`] asked for; `None` if the disk has none such or it is damaged.
    ///
    /// A damaged block is given up as `corrupt`.
    pub fn loaded(&mut self, now_us: u64, key: BlockKey, block: Option<Bytes>) {
        self.schedule.loaded(key.lane);
        let Some(position) = self.position_of(key) else { return };
        let sound = block.filter(|bytes| BlockHeader::parse(bytes).is_ok_and(|header| header.key == key));
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
