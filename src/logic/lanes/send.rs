//! Which block goes next: critical first, then by share, live before backlog.
//!
//! What is handed to an uplink can neither be overtaken nor thinned, so it is handed over late: while fewer than
//! [`UNWRITTEN_BYTES_MAX`] wait in the shell for QUIC to take them. Among the streams that want to send, the one that had least
//! for its share goes next. There is no limit per stream: with one, every stream would always have something in the shell,
//! and QUIC, which serves streams in turns, would give all of them the same.

use bytes::Bytes;

use crate::ids::{BlockKey, Class, PerClass};
use crate::lanes::{Lanes, Send, UnderWay};
use crate::plan::Plan;
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

/// How long a record may wait for company before it is sent.
const LINGER_US: u64 = 10_000;
/// The same for `critical`, and only while the cloud has yet to acknowledge one before it: at hundreds a second each would
/// take as much again for its own block and packet, on a link that is short of bytes.
const CRITICAL_LINGER_US: u64 = 20_000;
/// With so many bytes that the shell holds and QUIC has not yet taken no further block is handed over; each of the two
/// critical streams has a limit of its own.
const UNWRITTEN_BYTES_MAX: u64 = 64 * 1024;
const UNWRITTEN_BYTES_MIN: u64 = 4 * 1024;
const UNWRITTEN_CRITICAL_BYTES_MAX: u64 = 16 * 1024;
/// A lane's backlog has this part of the share of its live data.
const BACKLOG_PART: u64 = 2;
const FLOWS: usize = 8;

/// Bytes and turns of the streams.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// The uplink that was handed the last block; `unwritten` is of it.
    uplink: u8,
    unwritten: [u64; FLOWS],
    /// See [`Lanes::set_pace`]; [`UNWRITTEN_BYTES_MAX`] if it was not called.
    unwritten_max: Option<u64>,
    /// Bytes sent for their share, scaled; the lowest goes next.
    turns: [u64; FLOWS],
    clock: u64,
    /// Read from disk and waiting for their stream.
    ready: PerClass<Option<(BlockKey, Bytes)>>,
    loading: PerClass<bool>,
    /// No load before this, because the last one failed.
    load_after_us: PerClass<u64>,
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

    /// The one load of this lane failed; the next may be asked for at `retry_us`.
    pub(super) fn load_failed(&mut self, class: Class, retry_us: u64) {
        self.loading[class.index()] = false;
        self.load_after_us[class.index()] = retry_us;
    }

    /// Bytes that the shell may hold, of all but critical.
    pub(super) fn set_unwritten_max(&mut self, bytes: u64) {
        self.unwritten_max = Some(bytes.clamp(UNWRITTEN_BYTES_MIN, UNWRITTEN_BYTES_MAX));
    }

    /// Bytes that the shell holds for the transport to take.
    pub(super) fn unwritten_bytes(&self) -> u64 {
        self.unwritten.iter().sum()
    }

    /// Key of the block that was read from disk and waits for its stream.
    pub(super) fn ready_key(&self, class: Class) -> Option<BlockKey> {
        self.ready[class.index()].as_ref().map(|&(key, _)| key)
    }

    fn has_room(&self, flow: Flow) -> bool {
        if flow.lane == Class::Critical {
            return self.unwritten[index(flow)] < UNWRITTEN_CRITICAL_BYTES_MAX;
        }
        self.unwritten[2..].iter().sum::<u64>() < self.unwritten_max.unwrap_or(UNWRITTEN_BYTES_MAX)
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

/// Recent times from the receipt of a record of a `through` lane to its durable ack; of what was read from disk, from its sending.
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
            let mut through = self.lanes.iter().filter(|lane| lane.policy.durability == super::Durability::Through);
            if through.any(|lane| lane.waits_since_us().is_some()) {
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
        if self.schedule.uplink == uplink {
            self.schedule.unwritten = [0; FLOWS];
        }
        self.voids_to_send = self.voids.keys().copied().collect();
    }

    /// The transport of this uplink took `len` bytes of blocks on this stream.
    pub fn written(&mut self, uplink: u8, flow: Flow, len: u64) {
        if self.schedule.uplink != uplink {
            return;
        }
        let unwritten = &mut self.schedule.unwritten[index(flow)];
        *unwritten = unwritten.saturating_sub(len);
    }

    /// The next thing to send on `uplink` or to load for it, if there is any and there is room for it.
    ///
    /// `credits` are the bytes per class that may be under way.
    /// What `plan` has no price for is sent as it is; what it holds only if nothing else wants to be sent.
    pub fn outgoing(&mut self, now_us: u64, uplink: u8, credits: &PerClass<u64>, plan: &Plan) -> Option<Outgoing> {
        if self.schedule.uplink != uplink {
            (self.schedule.uplink, self.schedule.unwritten) = (uplink, [0; FLOWS]);
        }
        loop {
            let flow = self.choose(now_us, credits, plan)?;
            if let Some(outgoing) = self.serve(now_us, uplink, flow, plan) {
                return Some(outgoing);
            }
            // What was chosen had been acknowledged or given up meanwhile and is gone now: choose again.
        }
    }

    fn choose(&mut self, now_us: u64, credits: &PerClass<u64>, plan: &Plan) -> Option<Flow> {
        for backlog in [false, true] {
            let flow = Flow { lane: Class::Critical, backlog };
            if self.wants(now_us, flow, credits) {
                return Some(flow);
            }
        }
        if plan.weighs {
            return self.choose_by_worth(now_us, credits, plan);
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

    /// What is worth most for its bytes and its deadline goes first, and what is held goes last.
    fn choose_by_worth(&mut self, now_us: u64, credits: &PerClass<u64>, plan: &Plan) -> Option<Flow> {
        let mut best: Option<(f64, Flow)> = None;
        for flow in Class::ALL[1..].iter().flat_map(|&lane| [Flow { lane, backlog: false }, Flow { lane, backlog: true }]) {
            if self.wants(now_us, flow, credits) {
                let urgency = self.urgency(now_us, flow, plan);
                if best.is_none_or(|(most, _)| urgency > most) {
                    best = Some((urgency, flow));
                }
            }
        }
        best.map(|(_, flow)| flow)
    }

    /// When [`Lanes::outgoing`] has something to give if nothing else happens; `u64::MAX` if room or credit must come first.
    pub fn send_due_us(&mut self, credits: &PerClass<u64>) -> u64 {
        let flows = Class::ALL.into_iter().flat_map(|lane| [Flow { lane, backlog: false }, Flow { lane, backlog: true }]);
        flows.filter_map(|flow| self.due_us(flow, credits)).min().unwrap_or(u64::MAX)
    }

    fn wants(&mut self, now_us: u64, flow: Flow, credits: &PerClass<u64>) -> bool {
        self.due_us(flow, credits).is_some_and(|due| due <= now_us)
    }

    /// When this stream has something to send; `None` if it has nothing, or neither room nor credit for it.
    fn due_us(&mut self, flow: Flow, credits: &PerClass<u64>) -> Option<u64> {
        let at = flow.lane.index();
        if credits[at] == 0 || !self.schedule.has_room(flow) {
            return None;
        }
        let lane = &mut self.lanes[at];
        let (len, due_us) = if flow.backlog {
            if let Some((_, block)) = &self.schedule.ready[at] {
                (block.len() as u64, 0)
            } else if self.schedule.loading[at] {
                return None;
            } else {
                let first = lane.blocks.get(lane.backlog.first()?)?;
                (first.len.into(), self.schedule.load_after_us[at])
            }
        } else if let Some(position) = lane.live.first() {
            (lane.blocks[position].len.into(), 0)
        } else {
            let linger_us = match flow.lane {
                Class::Critical if lane.under_way_bytes == 0 => 0,
                Class::Critical => CRITICAL_LINGER_US,
                _ => LINGER_US,
            };
            let born_us = lane.staging.born_us()?;
            let due_us = if lane.staging.len() >= self.block_bytes { 0 } else { born_us + linger_us };
            // What it will be when it is compressed.
            (lane.staging.len() as u64 / 4, due_us)
        };
        // One block may exceed the credit if nothing else is under way, so that a large one cannot be stuck.
        (lane.under_way_bytes == 0 || lane.under_way_bytes + len <= credits[at]).then_some(due_us)
    }

    fn serve(&mut self, now_us: u64, uplink: u8, flow: Flow, plan: &Plan) -> Option<Outgoing> {
        let at = flow.lane.index();
        if flow.backlog && self.schedule.ready[at].is_none() {
            let position = self.next_block(now_us, flow, plan)?;
            let lane = &mut self.lanes[at];
            lane.backlog.remove(&position);
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
            let position = match self.next_block(now_us, flow, plan) {
                Some(position) => position,
                None => self.seal(now_us, flow.lane)?,
            };
            self.lanes[at].live.remove(&position);
            (position, self.lanes[at].blocks[&position].bytes.clone()?)
        };
        let (bytes, thinned) = self.thinned(now_us, position, flow.lane, bytes, plan);
        let lane = &mut self.lanes[at];
        let block = lane.blocks.get_mut(&position)?;
        let key = block.header.key;
        let since_us = if flow.backlog { now_us } else { block.header.born_us };
        let len = bytes.len() as u32;
        block.send = Send::UnderWay(UnderWay { uplink, since_us, sent_us: now_us, len, thinned });
        lane.under_way_bytes += u64::from(len);
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
