//! The one transaction with the buffer that may be under way: when it starts, what it writes, and what came of it.

use super::lane::{Disk, Lane};
use super::relief::REWRITES_BYTES_MAX;
use super::{DELETES_COUNT_MAX, Durability, Lanes, RETRY_US, SPILL_INTERVAL_US, TIDY_WAIT_US};
use crate::ids::Class;
use crate::store::{CommitRequest, Put, SeqRange, StoreError};

/// The one transaction that may be under way.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) next_ticket: u64,
    pub(super) state: CommitState,
    pub(super) failures: u64,
}

#[derive(Debug)]
pub(super) enum CommitState {
    Idle,
    /// Kept, because a request that failed is tried again.
    Running(CommitRequest),
    Failed {
        request: CommitRequest,
        retry_us: u64,
        full: bool,
    },
}

impl Lanes {
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
            || self.pending_deletes.len() >= DELETES_COUNT_MAX
            || self.lanes.iter().any(|lane| lane.rewrite_bytes >= REWRITES_BYTES_MAX);
        if !due {
            return None;
        }
        self.start(now_us, spill)
    }

    /// True if more than half of the memory is used by what is not on disk.
    pub(super) fn lacks_memory(&mut self) -> bool {
        if self.memory_bytes() <= self.limits.memory_bytes / 2 {
            return false;
        }
        self.lanes.iter_mut().for_each(Lane::drop_cached);
        self.memory_bytes() > self.limits.memory_bytes / 2
    }

    /// True if the open end of a lane should be written as a block rather than as a fragment.
    pub(super) fn is_worth_a_block(&self, lane: &Lane) -> bool {
        lane.staging.len() >= self.block_bytes(lane.class) / 2
    }

    pub(super) fn start(&mut self, now_us: u64, spill: bool) -> Option<CommitRequest> {
        let request = self.build(now_us, spill);
        self.pacer.begin(now_us);
        if request.is_empty() {
            return None;
        }
        self.commit.state = CommitState::Running(request.clone());
        Some(request)
    }

    /// The failed transaction again, without what is no longer wanted and with the removals since.
    pub(super) fn retry(&mut self) -> Option<CommitRequest> {
        let state = std::mem::replace(&mut self.commit.state, CommitState::Idle);
        let CommitState::Failed { mut request, .. } = state else { return None };
        let current = self.current();
        request.puts.retain(|put| {
            let order = self.order_of(put.header.key.epoch);
            order.is_some_and(|order| self.lanes[put.header.key.lane.index()].holds(order, current, &put.header))
        });
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

    pub(super) fn build(&mut self, now_us: u64, spill: bool) -> CommitRequest {
        let ticket = self.commit.next_ticket;
        self.commit.next_ticket += 1;
        let mut request = CommitRequest {
            ticket,
            deletes: std::mem::take(&mut self.pending_deletes),
            puts: Vec::new(),
            voids: std::mem::take(&mut self.voids_to_write),
            voids_acked: std::mem::take(&mut self.voids_to_forget),
            packet_ids: self.packet_ids.take(),
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
                let lane = &mut self.lanes[class.index()];
                lane.disk_wanted = false;
                lane.binding_seq = lane.binding_seq.or(lane.bound_seq.take());
            } else if spill {
                if self.is_worth_a_block(lane) {
                    self.seal(now_us, class);
                }
                self.write_blocks(class, &mut request);
            }
            self.write_rewrites(class, &mut request);
        }
        request
    }

    /// Writes the open end of a lane: whole if it is worth a block, else what came since the last commit as a fragment.
    pub(super) fn write_open_end(&mut self, now_us: u64, class: Class, request: &mut CommitRequest) {
        let (epoch, block_bytes) = (self.epoch(), self.block_bytes(class));
        let lane = &mut self.lanes[class.index()];
        if lane.staging.chunk_len().1 == 0 {
            return;
        }
        if lane.staging.len() >= block_bytes / 2 {
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
    pub(super) fn write_blocks(&mut self, class: Class, request: &mut CommitRequest) {
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
        self.packet_ids.committed();
        self.lanes.iter_mut().for_each(|lane| lane.binding_seq = None);
        let (epoch, current) = (self.epoch(), self.current());
        for Put { header, fragment, .. } in &request.puts {
            // Blocks of earlier runs are written again when they were thinned.
            let Some(order) = self.order_of(header.key.epoch) else { continue };
            let lane = &mut self.lanes[header.key.lane.index()];
            if order == current {
                lane.safe.insert(header.key.first_seq..=header.last_seq);
            }
            if !fragment {
                let keep = self.uplink_up && lane.memory_bytes <= self.limits.memory_bytes / 8;
                lane.stored((order, header.key.first_seq), keep);
            }
        }
        for void in request.voids.iter().filter(|void| void.key.epoch == epoch) {
            // Their fate is on record: who waits for a PUBACK need not wait longer.
            self.lanes[void.key.lane.index()].safe.insert(void.key.first_seq..=void.last_seq);
        }
        self.pacer.acknowledged(now_us);
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

    /// True while a transaction is under way.
    pub fn is_committing(&self) -> bool {
        matches!(self.commit.state, CommitState::Running(_))
    }

    /// True if the disk refused the last transaction for lack of space.
    pub fn disk_full(&self) -> bool {
        matches!(self.commit.state, CommitState::Failed { full: true, .. })
    }

    /// Flash that commits ahead of their interval may write now; filled all day long, used by senders that wait.
    pub fn early_commit_bytes(&self) -> u64 {
        self.pacer.early_bytes()
    }

    /// Transactions that failed since start.
    pub fn commit_failures(&self) -> u64 {
        self.commit.failures
    }

    /// When what waits for its ack in memory is to be written.
    pub(super) fn spill_due_us(&self) -> u64 {
        let since = self.lanes.iter().filter(|lane| self.is_sent_through(lane)).filter_map(Lane::waits_since_us).min();
        let due = |since: u64| (since + self.ack_times.spill_wait_us()).max(self.spilled_us + SPILL_INTERVAL_US);
        since.map_or(u64::MAX, due)
    }

    pub(super) fn is_sent_through(&self, lane: &Lane) -> bool {
        self.uplink_up && lane.policy.durability == Durability::Through
    }
}
