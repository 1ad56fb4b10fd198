//! Which block goes next: critical first, then by share, live before backlog.
//!
//! What is handed to an uplink can neither be overtaken nor thinned, so it is handed over late: at most
//! [`UNWRITTEN_BYTES_MAX`] wait in the shell for QUIC to take them, and one block per stream beyond that. Among the streams
//! that want to send, the one that had least for its share goes next.

use bytes::Bytes;

use crate::ids::{BlockKey, Class, PerClass};
use crate::lanes::{Lanes, Send};
use crate::wire::LaneStream;

/// A stream to the cloud: a lane's live data or its backlog.
pub type Flow = LaneStream;

/// What the shell is to do to move data to the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// Write this block on this stream.
    Send {
        /// The stream.
        flow: Flow,
        /// The block's key.
        key: BlockKey,
        /// The block.
        block: Bytes,
    },
    /// Read this block from the buffer, see [`Lanes::loaded`].
    Load {
        /// The block's key.
        key: BlockKey,
    },
}

/// How long a record may wait for company before it is sent; `critical` does not wait.
const LINGER_US: u64 = 10_000;
/// Bytes over all streams but the critical ones that the shell holds and QUIC has not yet taken.
const UNWRITTEN_BYTES_MAX: u64 = 64 * 1024;
/// The same per stream: with less than this one more block is handed over.
const UNWRITTEN_FLOW_BYTES: u64 = 16 * 1024;
/// A lane's backlog has this part of the share of its live data.
const BACKLOG_PART: u64 = 2;
const FLOWS: usize = 8;

/// Bytes and turns of the streams.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    unwritten: [u64; FLOWS],
    /// Bytes sent for their share, scaled; the lowest goes next.
    turns: [u64; FLOWS],
    clock: u64,
    /// Read from disk and waiting for their stream.
    ready: PerClass<Option<(BlockKey, Bytes)>>,
    loading: PerClass<bool>,
}

impl Schedule {
    /// A block that was asked for is there, to be sent next on its lane's backlog stream.
    pub(super) fn ready(&mut self, key: BlockKey, block: Bytes) {
        self.ready[key.lane.index()] = Some((key, block));
    }

    /// The one load of this lane ended.
    pub(super) fn loaded(&mut self, class: Class) {
        self.loading[class.index()] = false;
    }

    fn has_room(&self, flow: Flow) -> bool {
        let unwritten = self.unwritten[index(flow)];
        let others: u64 = Class::ALL[1..]
            .iter()
            .flat_map(|&lane| [Flow { lane, backlog: false }, Flow { lane, backlog: true }])
            .map(|flow| self.unwritten[index(flow)])
            .sum();
        unwritten < UNWRITTEN_FLOW_BYTES && (flow.lane == Class::Critical || others < UNWRITTEN_BYTES_MAX)
    }

    fn take_turn(&mut self, flow: Flow, len: u64, share: u32) {
        let share = if flow.backlog { u64::from(share) / BACKLOG_PART } else { u64::from(share) }.max(1);
        let turn = &mut self.turns[index(flow)];
        // A stream that had nothing to send saved nothing up.
        self.clock = self.clock.max(*turn);
        *turn = self.clock + (len << 10) / share;
        self.unwritten[index(flow)] += len;
    }
}

fn index(flow: Flow) -> usize {
    flow.lane.index() * 2 + usize::from(flow.backlog)
}

/// Recent times from sending a block to its durable ack.
#[derive(Debug)]
pub(super) struct AckTimes {
    recent_us: [u64; 64],
    next: usize,
    wait_us: u64,
}

/// Bounds of the wait for an ack before a block is written to disk.
const SPILL_WAIT_MIN_US: u64 = 250_000;
const SPILL_WAIT_MAX_US: u64 = 2_000_000;

impl Default for AckTimes {
    fn default() -> Self {
        AckTimes { recent_us: [0; 64], next: 0, wait_us: SPILL_WAIT_MIN_US }
    }
}

impl AckTimes {
    pub(super) fn record(&mut self, took_us: u64) {
        self.recent_us[self.next] = took_us;
        self.next = (self.next + 1) % self.recent_us.len();
        if self.next.is_multiple_of(16) {
            let mut sorted = self.recent_us;
            sorted.sort_unstable();
            let p95 = sorted[sorted.len() * 95 / 100];
            self.wait_us = (2 * p95).clamp(SPILL_WAIT_MIN_US, SPILL_WAIT_MAX_US);
        }
    }

    /// Twice the p95 of recent ack times, within bounds.
    pub(super) fn spill_wait_us(&self) -> u64 {
        self.wait_us
    }
}

impl Lanes {
    /// An uplink is up, or none is any more.
    pub fn set_uplink_up(&mut self, now_us: u64, up: bool) {
        if self.uplink_up && !up {
            // What waited for the cloud's ack must now be written.
            let waiting = self.lanes.iter_mut().filter(|lane| lane.policy.durability == super::Durability::Through);
            let mut pending = false;
            for lane in waiting {
                pending |= lane.to_write_front().is_some() || !lane.staging.is_empty();
            }
            if pending {
                self.pacer.due_by(now_us);
            }
        }
        self.uplink_up = up;
    }

    /// The session on this uplink ended: what it had not acknowledged is queued again.
    pub fn session_lost(&mut self, uplink: u8) {
        for lane in &mut self.lanes {
            let count = lane.requeue(uplink);
            self.counters[lane.class.index()].repeated_blocks += count as u64;
        }
        self.schedule.unwritten = [0; FLOWS];
        self.voids_to_send = self.voids.keys().copied().collect();
    }

    /// QUIC took `len` bytes of blocks on this stream.
    pub fn written(&mut self, flow: Flow, len: u64) {
        let unwritten = &mut self.schedule.unwritten[index(flow)];
        *unwritten = unwritten.saturating_sub(len);
    }

    /// The next thing to send on `uplink` or to load for it, if there is any and there is room for it.
    ///
    /// `credits` are the bytes per class that may be under way.
    pub fn outgoing(&mut self, now_us: u64, uplink: u8, credits: &PerClass<u64>) -> Option<Outgoing> {
        loop {
            let flow = self.choose(now_us, credits)?;
            if let Some(outgoing) = self.serve(now_us, uplink, flow) {
                return Some(outgoing);
            }
            // What was chosen had been acknowledged or given up meanwhile and is gone now: choose again.
        }
    }

    fn choose(&mut self, now_us: u64, credits: &PerClass<u64>) -> Option<Flow> {
        for backlog in [false, true] {
            let flow = Flow { lane: Class::Critical, backlog };
            if self.wants(now_us, flow, credits) {
                return Some(flow);
            }
        }
        let mut best: Option<Flow> = None;
        for flow in Class::ALL[1..].iter().flat_map(|&lane| [Flow { lane, backlog: false }, Flow { lane, backlog: true }]) {
            let earlier = best.is_none_or(|b| self.schedule.turns[index(flow)] < self.schedule.turns[index(b)]);
            if earlier && self.wants(now_us, flow, credits) {
                best = Some(flow);
            }
        }
        best
    }

    /// When the open end of a lane has waited long enough to be sent.
    pub fn linger_due_us(&self) -> u64 {
        let due = |lane: &super::Lane| {
            let flow = Flow { lane: lane.class, backlog: false };
            if !self.schedule.has_room(flow) {
                return None;
            }
            lane.staging.born_us().map(|born| born + if lane.class == Class::Critical { 0 } else { LINGER_US })
        };
        self.lanes.iter().filter_map(due).min().unwrap_or(u64::MAX)
    }

    fn wants(&mut self, now_us: u64, flow: Flow, credits: &PerClass<u64>) -> bool {
        let at = flow.lane.index();
        let target = self.limits.block_target_bytes;
        if !self.schedule.has_room(flow) {
            return false;
        }
        let lane = &mut self.lanes[at];
        // One block may exceed the credit if nothing else is under way, so that a large one cannot be stuck.
        let fits = |len: u64, under_way: u64| credits[at] > 0 && (under_way == 0 || under_way + len <= credits[at]);
        if flow.backlog {
            if let Some((_, block)) = &self.schedule.ready[at] {
                return fits(block.len() as u64, lane.under_way_bytes);
            }
            let first = lane.backlog.first().and_then(|position| lane.blocks.get(position));
            return !self.schedule.loading[at] && first.is_some_and(|block| fits(block.len.into(), lane.under_way_bytes));
        }
        if let Some(position) = lane.live_front() {
            return fits(lane.blocks[&position].len.into(), lane.under_way_bytes);
        }
        let linger = if flow.lane == Class::Critical { 0 } else { LINGER_US };
        let due = lane.staging.born_us().is_some_and(|born| born + linger <= now_us) || lane.staging.len() >= target;
        due && fits(lane.staging.len() as u64 / 4, lane.under_way_bytes)
    }

    fn serve(&mut self, now_us: u64, uplink: u8, flow: Flow) -> Option<Outgoing> {
        let at = flow.lane.index();
        if flow.backlog && self.schedule.ready[at].is_none() {
            let lane = &mut self.lanes[at];
            let position = lane.backlog.pop_first()?;
            let block = lane.blocks.get_mut(&position)?;
            block.send = Send::Loading;
            self.schedule.loading[at] = true;
            return Some(Outgoing::Load { key: block.header.key });
        }
        let (position, bytes) = if flow.backlog {
            let (key, bytes) = self.schedule.ready[at].take()?;
            // It may have been acknowledged, evicted or expired while it was read.
            let position = self.position_of(key)?;
            self.lanes[at].backlog.remove(&position);
            (position, bytes)
        } else {
            let position = match self.lanes[at].live_front() {
                Some(position) => position,
                None => self.seal(now_us, flow.lane)?,
            };
            self.lanes[at].live.pop_front();
            (position, self.lanes[at].blocks[&position].bytes.clone()?)
        };
        let lane = &mut self.lanes[at];
        let block = lane.blocks.get_mut(&position)?;
        let key = block.header.key;
        block.send = Send::UnderWay { uplink, sent_us: now_us };
        lane.under_way_bytes += u64::from(block.len);
        lane.drop_bytes(position);
        let share = lane.policy.share;
        self.schedule.take_turn(flow, bytes.len() as u64, share);
        let counters = &mut self.counters[at];
        counters.sent_blocks += 1;
        counters.sent_bytes += bytes.len() as u64;
        if !flow.backlog {
            self.enforce_cap(now_us, flow.lane);
        }
        Some(Outgoing::Send { flow, key, block: bytes })
    }
}
