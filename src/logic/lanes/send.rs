//! Which block goes next, and by which uplink: critical first, oldest first, then by share, live before backlog.
//!
//! What is handed to an uplink can neither be overtaken nor thinned, so it is handed over late: while fewer than
//! [`UNWRITTEN_BYTES_MAX`] wait in the shell for QUIC to take them. Among the streams that want to send, the one that had least
//! for its share goes next. There is no limit per stream: with one, every stream would always have something in the shell,
//! and QUIC, which serves streams in turns, would give all of them the same.
//!
//! A lane's uplinks are listed in the plan, best first. A block goes by the first that is up and has room: while that one keeps
//! up nothing goes by the next, and what it cannot take flows over.

use std::collections::VecDeque;

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
    /// Write this block on this stream of this uplink.
    Send {
        /// The uplink.
        uplink: u8,
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
/// The same for `critical`, and only while the cloud has yet to acknowledge one before it, so never for more than a round trip
/// (Nagle's rule): at hundreds a second each would take as much again for its own block and packet, on a link that is short of
/// bytes.
const CRITICAL_LINGER_US: u64 = 100_000;
/// With so many bytes that the shell holds and QUIC has not yet taken no further block is handed over; where blocks are
/// smaller, for want of time, so is this, down to the other bound. Each of the two critical streams has a limit of its own.
const UNWRITTEN_BYTES_MIN: u64 = 8 * 1024;
const UNWRITTEN_BYTES_MAX: u64 = 32 * 1024;
const UNWRITTEN_CRITICAL_BYTES_MAX: u64 = 16 * 1024;
/// Critical records that are older than this do not hold up new ones, in microseconds.
const CRITICAL_LATE_US: u64 = 60_000_000;
/// A lane's backlog has this part of the share of its live data.
const BACKLOG_PART: u64 = 2;
const FLOWS: usize = 8;

/// Bytes and turns of the streams.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// By uplink and stream: bytes that the shell holds for the transport to take.
    unwritten: Vec<[u64; FLOWS]>,
    /// Bytes sent for their share, scaled; the lowest goes next.
    turns: [u64; FLOWS],
    clock: u64,
    /// Read from disk and waiting for their stream.
    ready: PerClass<Option<(BlockKey, Bytes)>>,
    /// How urgent that was when it was last compared with what else waits.
    ready_urgency: PerClass<Option<f64>>,
    loading: PerClass<bool>,
    /// No load before this, because the last one failed.
    load_after_us: PerClass<u64>,
    /// An uplink over which the next block goes too, to see whether it comes through.
    trial: Option<u8>,
    /// What a second uplink is to carry too.
    copies: VecDeque<(u8, Flow, BlockKey, Bytes)>,
}

impl Schedule {
    /// A block that was asked for is there, to be sent next on its lane's backlog stream.
    pub(super) fn ready(&mut self, key: BlockKey, block: Bytes) {
        let at = key.lane.index();
        (self.ready[at], self.ready_urgency[at]) = (Some((key, block)), None);
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

    /// Bytes that the shell holds for the transports to take.
    pub(super) fn unwritten_bytes(&self) -> u64 {
        self.unwritten.iter().flatten().sum()
    }

    /// Key of the block that was read from disk and waits for its stream.
    pub(super) fn ready_key(&self, class: Class) -> Option<BlockKey> {
        self.ready[class.index()].as_ref().map(|&(key, _)| key)
    }

    /// True while the shell holds less than `limit_bytes` of this uplink's streams; of a critical one, less than its own limit.
    fn has_room(&self, uplink: u8, flow: Flow, limit_bytes: u64) -> bool {
        let Some(unwritten) = self.unwritten.get(usize::from(uplink)) else { return true };
        if flow.lane == Class::Critical {
            return unwritten[index(flow)] < UNWRITTEN_CRITICAL_BYTES_MAX;
        }
        unwritten[2..].iter().sum::<u64>() < limit_bytes
    }

    fn take_turn(&mut self, flow: Flow, len: u64, share: u32) {
        let share = if flow.backlog { u64::from(share) / BACKLOG_PART } else { u64::from(share) }.max(1);
        let turn = &mut self.turns[index(flow)];
        // A stream that had nothing to send saved nothing up.
        self.clock = self.clock.max(*turn);
        *turn = self.clock + (len << 10) / share;
    }

    fn hand_over(&mut self, uplink: u8, flow: Flow, len: u64) {
        let at = usize::from(uplink);
        if at >= self.unwritten.len() {
            self.unwritten.resize(at + 1, [0; FLOWS]);
        }
        self.unwritten[at][index(flow)] += len;
    }
}

/// Bytes that may be under way by this uplink; none if it is down.
fn credit(uplink: u8, flow: Flow, ways: &[Option<PerClass<u64>>]) -> u64 {
    ways.get(usize::from(uplink)).copied().flatten().map_or(0, |credits| credits[flow.lane.index()])
}

fn index(flow: Flow) -> usize {
    flow.lane.index() * 2 + usize::from(flow.backlog)
}

fn flows() -> impl Iterator<Item = Flow> {
    Class::ALL.into_iter().flat_map(|lane| [Flow { lane, backlog: false }, Flow { lane, backlog: true }])
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
        self.move_away(uplink, [true; 4]);
        if let Some(unwritten) = self.schedule.unwritten.get_mut(usize::from(uplink)) {
            *unwritten = [0; FLOWS];
        }
        self.schedule.copies.retain(|&(to, ..)| to != uplink);
        self.voids_to_send = self.voids.keys().copied().collect();
    }

    /// What this uplink has not acknowledged of these classes is queued again, for another one; should it arrive all the same,
    /// the cloud knows it by its numbers.
    pub fn move_away(&mut self, uplink: u8, classes: PerClass<bool>) {
        for lane in self.lanes.iter_mut().filter(|lane| classes[lane.class.index()]) {
            let count = lane.requeue(uplink);
            self.counters[lane.class.index()].repeated_blocks += count as u64;
        }
    }

    /// The transport of this uplink took `len` bytes of blocks on this stream.
    pub fn written(&mut self, uplink: u8, flow: Flow, len: u64) {
        if let Some(unwritten) = self.schedule.unwritten.get_mut(usize::from(uplink)) {
            let unwritten = &mut unwritten[index(flow)];
            *unwritten = unwritten.saturating_sub(len);
        }
    }

    /// The next thing to send or to load, if there is any and there is room for it.
    ///
    /// `ways` are the uplinks: `None` for one that is down, otherwise the bytes per class that it may have under way. Each
    /// lane takes the first uplink of its list in `plan` that is up and has room. What `plan` has no price for is sent as it
    /// is; what it holds only if nothing else wants to be sent. What is on disk is read before there is room for it.
    pub fn outgoing(&mut self, now_us: u64, ways: &[Option<PerClass<u64>>], plan: &Plan) -> Option<Outgoing> {
        if plan.weighs {
            self.put_back(now_us, plan);
        }
        loop {
            if let Some((uplink, flow, key, block)) = self.schedule.copies.pop_front() {
                return Some(Outgoing::Send { uplink, flow, key, block });
            }
            let (uplink, flow) = self.choose(now_us, ways, plan)?;
            if let Some(outgoing) = self.serve(now_us, uplink, flow, ways, plan) {
                return Some(outgoing);
            }
            // What was chosen had been acknowledged or given up meanwhile and is gone now: choose again.
        }
    }

    /// Puts a block back that was read and became late while it waited for its turn, if another of its lane is more urgent now:
    /// else the whole backlog would wait behind it.
    fn put_back(&mut self, now_us: u64, plan: &Plan) {
        for lane in [Class::High, Class::Normal, Class::Bulk] {
            let at = lane.index();
            let Some(position) = self.schedule.ready_key(lane).and_then(|key| self.position_of(key)) else { continue };
            let urgency = self.urgency_at(now_us, lane, position, plan);
            let before = *self.schedule.ready_urgency[at].get_or_insert(urgency);
            // Looking at all that waits is worth it only when much has changed.
            if urgency >= before / 2.0 {
                continue;
            }
            self.schedule.ready_urgency[at] = Some(urgency);
            let best = self.next_block(now_us, Flow { lane, backlog: true }, plan);
            if best.is_some_and(|best| self.urgency_at(now_us, lane, best, plan) > urgency) {
                self.schedule.ready[at] = None;
                self.lanes[at].backlog.insert(position);
            }
        }
    }

    fn choose(&mut self, now_us: u64, ways: &[Option<PerClass<u64>>], plan: &Plan) -> Option<(u8, Flow)> {
        for &backlog in self.critical_order(now_us) {
            let flow = Flow { lane: Class::Critical, backlog };
            if let Some(uplink) = self.wants(now_us, flow, ways, plan) {
                return Some((uplink, flow));
            }
        }
        if plan.weighs {
            return self.choose_by_worth(now_us, ways, plan);
        }
        let mut best: Option<(u8, Flow)> = None;
        for flow in flows().skip(2) {
            let earlier = best.is_none_or(|(_, b)| self.schedule.turns[index(flow)] < self.schedule.turns[index(b)]);
            if earlier && let Some(uplink) = self.wants(now_us, flow, ways, plan) {
                best = Some((uplink, flow));
            }
        }
        best
    }

    /// Which of the two critical streams may send, in this order; true for the backlog.
    ///
    /// What waited in vain for an acknowledgement and was written to disk is still older than what came after it, and goes
    /// first. What an outage of more than [`CRITICAL_LATE_US`] left does not hold up what is new.
    fn critical_order(&self, now_us: u64) -> &'static [bool] {
        let at = Class::Critical.index();
        let lane = &self.lanes[at];
        let ready = self.schedule.ready_key(Class::Critical).and_then(|key| self.position_of(key));
        let oldest = ready.or_else(|| lane.backlog.first().copied()).and_then(|position| lane.blocks.get(&position));
        let is_recent = match oldest {
            Some(block) => block.header.born_us.saturating_add(CRITICAL_LATE_US) >= now_us,
            // What is read from disk now was chosen because it was recent, or there was nothing live.
            None => self.schedule.loading[at],
        };
        if is_recent && self.schedule.load_after_us[at] <= now_us { &[true] } else { &[false, true] }
    }

    /// What is worth most for its bytes and its deadline goes first, and what is held goes last.
    fn choose_by_worth(&mut self, now_us: u64, ways: &[Option<PerClass<u64>>], plan: &Plan) -> Option<(u8, Flow)> {
        let mut best: Option<(f64, u8, Flow)> = None;
        for flow in flows().skip(2) {
            if let Some(uplink) = self.wants(now_us, flow, ways, plan) {
                let urgency = self.urgency(now_us, flow, plan);
                if best.is_none_or(|(most, ..)| urgency > most) {
                    best = Some((urgency, uplink, flow));
                }
            }
        }
        best.map(|(_, uplink, flow)| (uplink, flow))
    }

    /// When [`Lanes::outgoing`] has something to give if nothing else happens; `u64::MAX` if room or credit must come first.
    pub fn send_due_us(&self, now_us: u64, ways: &[Option<PerClass<u64>>], plan: &Plan) -> u64 {
        let critical = self.critical_order(now_us);
        let may = |flow: &Flow| flow.lane != Class::Critical || critical.contains(&flow.backlog);
        flows().filter(may).filter_map(|flow| self.due_us(flow, ways, plan)).map(|(due_us, _)| due_us).min().unwrap_or(u64::MAX)
    }

    fn wants(&self, now_us: u64, flow: Flow, ways: &[Option<PerClass<u64>>], plan: &Plan) -> Option<u8> {
        self.due_us(flow, ways, plan).filter(|&(due_us, _)| due_us <= now_us).map(|(_, uplink)| uplink)
    }

    /// When this stream has something to send, and by which uplink; `None` if it has nothing, or neither room nor credit for it.
    fn due_us(&self, flow: Flow, ways: &[Option<PerClass<u64>>], plan: &Plan) -> Option<(u64, u8)> {
        let at = flow.lane.index();
        let lane = &self.lanes[at];
        let unsent_from = self.unsent_from(flow.lane).filter(|_| !flow.backlog);
        let (len, due_us) = if flow.backlog {
            if let Some((_, block)) = &self.schedule.ready[at] {
                (block.len() as u64, 0)
            } else if self.schedule.loading[at] {
                return None;
            } else {
                // It is read ahead of its turn, so that nothing less urgent goes while it is read.
                lane.backlog.first()?;
                let uplink = plan.uplinks[at].iter().copied().find(|&uplink| credit(uplink, flow, ways) > 0)?;
                return Some((self.schedule.load_after_us[at], uplink));
            }
        } else if let Some(position) = lane.live.first() {
            let block = &lane.blocks[position];
            if unsent_from.is_some_and(|seq| position.0 == self.current() && block.header.last_seq >= seq) {
                return None;
            }
            (block.len.into(), 0)
        } else if unsent_from.is_some() {
            // It is in the open end.
            return None;
        } else {
            let linger_us = match flow.lane {
                Class::Critical if lane.under_way.iter().all(|&bytes| bytes == 0) => 0,
                Class::Critical => CRITICAL_LINGER_US,
                _ => LINGER_US,
            };
            let born_us = lane.staging.born_us()?;
            let due_us = if lane.staging.len() >= self.block_bytes(flow.lane) { 0 } else { born_us + linger_us };
            // What it will be when it is compressed.
            (lane.staging.len() as u64 / 4, due_us)
        };
        let uplink = plan.uplinks[at].iter().copied().find(|&uplink| self.can_take(uplink, flow, len, ways))?;
        Some((due_us, uplink))
    }

    fn can_take(&self, uplink: u8, flow: Flow, len: u64, ways: &[Option<PerClass<u64>>]) -> bool {
        let (credit, under_way) = (credit(uplink, flow, ways), self.lanes[flow.lane.index()].under_way_bytes(uplink));
        let smaller = self.block_bytes as f64 / self.limits.block_target_bytes as f64;
        let limit_bytes = ((UNWRITTEN_BYTES_MAX as f64 * smaller) as u64).max(UNWRITTEN_BYTES_MIN);
        // One block may exceed the credit if nothing else is under way, so that a large one cannot be stuck.
        credit > 0 && self.schedule.has_room(uplink, flow, limit_bytes) && (under_way == 0 || under_way + len <= credit)
    }

    fn serve(&mut self, now_us: u64, uplink: u8, flow: Flow, ways: &[Option<PerClass<u64>>], plan: &Plan) -> Option<Outgoing> {
        let at = flow.lane.index();
        if flow.backlog && self.schedule.ready[at].is_none() {
            let position = self.next_block(now_us, flow, plan)?;
            let lane = &mut self.lanes[at];
            lane.backlog.remove(&position);
            let block = lane.blocks.get_mut(&position)?;
            let key = block.header.key;
            let Some(bytes) = &block.bytes else {
                block.send = Send::Loading;
                self.schedule.loading[at] = true;
                return Some(Outgoing::Load { key });
            };
            // It was thinned where it lies, and is not yet written.
            self.schedule.ready(key, bytes.clone());
            return None;
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
        let len = bytes.len() as u32;
        let also = self.second(uplink, flow, len, ways, plan);
        let lane = &mut self.lanes[at];
        let block = lane.blocks.get_mut(&position)?;
        let key = block.header.key;
        let since_us = if flow.backlog { now_us } else { block.header.born_us };
        block.send = Send::UnderWay(UnderWay { uplink, also, since_us, sent_us: now_us, len, thinned });
        lane.drop_bytes(position);
        for to in also.into_iter().chain([uplink]) {
            self.lanes[at].left(to, len);
            self.schedule.hand_over(to, flow, len.into());
            let counters = &mut self.counters[at];
            counters.sent_blocks += 1;
            counters.sent_bytes += u64::from(len);
        }
        if let Some(also) = also {
            self.counters[at].copied_blocks += 1;
            self.schedule.copies.push_back((also, flow, key, bytes.clone()));
        }
        self.schedule.take_turn(flow, len.into(), self.lanes[at].policy.share);
        if !flow.backlog {
            self.enforce_cap(now_us, flow.lane);
        }
        Some(Outgoing::Send { uplink, flow, key, block: bytes })
    }

    /// Lets the next block go over this uplink too, although the plan leaves it out.
    pub fn begin_trial(&mut self, uplink: u8) {
        self.schedule.trial = Some(uplink);
    }

    /// Takes back what [`Lanes::begin_trial`] allowed, if no block has left since.
    pub fn end_trial(&mut self, uplink: u8) {
        self.schedule.trial = self.schedule.trial.filter(|&trial| trial != uplink);
    }

    /// The second uplink of a block: one on trial, or for a critical block another of the plan's, if there is one with room.
    fn second(&mut self, first: u8, flow: Flow, len: u32, ways: &[Option<PerClass<u64>>], plan: &Plan) -> Option<u8> {
        let trial = self.schedule.trial.filter(|&uplink| uplink != first && self.can_take(uplink, flow, len.into(), ways));
        if trial.is_some() {
            return self.schedule.trial.take();
        }
        if flow.lane != Class::Critical || plan.critical_copies < 2 {
            return None;
        }
        let others = plan.uplinks[flow.lane.index()].iter().copied().filter(|&uplink| uplink != first);
        others.into_iter().find(|&uplink| self.can_take(uplink, flow, len.into(), ways))
    }
}
