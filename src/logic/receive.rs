//! The cloud's side of one gateway: what to store, what to acknowledge, whom to close.
//!
//! Think of a parcel office with a ledger per sender. A parcel (block) is numbered first to last; the ledger says which
//! numbers are *durable* and which are *pending*, handed to the sink whose commit has not come back. What is neither is
//! stored; what is durable is acknowledged again; what is pending waits for the commit that is already under way. So every
//! number is handed over once, and acknowledged only after its commit, whatever was repeated, reordered or reconnected.
//!
//! The cases that are not obvious:
//! - A block that overlaps in part (the box sealed it anew) hands over only its free numbers ([`Store::takes`]) and is
//!   acknowledged as a whole, once all of it is durable.
//! - A void covers numbers like records do, and obeys the same rules; a record that arrives after its void is a duplicate.
//! - Acks go to the sessions that brought the block; if none of them is left, to every session that knows its epoch.
//! - An epoch never seen takes over at once: a rebooted box must not wait for a timeout. A *superseded* epoch that comes
//!   back is served too, but a real box never does that: [`RETURNS_CLONED`] of them within a minute are a cloned identity.
//! - A gap below what the box says is settled is missing, unless it is pending; should it arrive late, it is stored.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::block::BlockHeader;
use crate::ids::{BlockKey, Class, Epoch, PerClass, Void, VoidReason};
use crate::ranges::RangeSet;
use crate::store::SeqRange;
use crate::wire::{Ack, Body, Credits, Hello, LaneStream, PROTOCOL_VERSION, Ping, Pong, VoidRange, Welcome};

pub use close::{CloseCode, CloseReason};
pub use events::{Alert, Counters, Input, Known, KnownEpoch, Now, Output, Store};
use lane::{Lane, holes, pages};

mod close;
mod events;
mod lane;

/// Connections one gateway may have at a time: three uplinks, and those whose death is not yet known. The oldest is closed.
pub const SESSIONS_MAX: usize = 8;
/// Highest sequence number taken: databases know signed numbers only.
pub const SEQ_MAX: u64 = i64::MAX as u64;
/// Ranges an epoch's lane may be scattered into before the session is closed: 16 bytes each.
pub const RANGES_PER_LANE_MAX: usize = 1 << 16;
/// Blocks and voids of one session that wait for a commit; the sink's queue bounds them first.
pub const WAITING_MAX: usize = 1 << 16;
/// Missing ranges remembered per epoch and lane; more are counted, not listed.
pub const MISSING_RANGES_MAX: usize = 1_000;
/// Returns of superseded epochs within [`RETURNS_WINDOW_US`] that mean a cloned identity.
pub const RETURNS_CLONED: usize = 3;
/// See [`RETURNS_CLONED`].
pub const RETURNS_WINDOW_US: u64 = 60_000_000;
/// How long credits hold, in milliseconds.
pub const CREDIT_LEASE_MS: u32 = 10_000;
/// Credits are renewed at least this often: three may be lost before the lease ends.
pub const CREDIT_RENEW_US: u64 = 3_000_000;
/// How fast an estimate of a box's clock may be corrected upwards: 100 us a second, twice what a cheap quartz drifts.
const WALL_DRIFT_DIVISOR: u64 = 10_000;

/// One connection of the gateway, as the shell numbers them: a later connection has a higher number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// The state of one gateway.
#[derive(Debug, Default)]
pub struct Receiver {
    sessions: BTreeMap<SessionId, Session>,
    epochs: BTreeMap<Epoch, PerClass<Lane>>,
    current: Option<Epoch>,
    /// When superseded epochs came back, at most [`RETURNS_CLONED`] of them.
    returns_us: VecDeque<u64>,
    credits: PerClass<u64>,
    counters: Counters,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Session {
    epoch: Epoch,
    named: BTreeSet<Epoch>,
    /// Epoch, lane, first and last of blocks and voids that are not durable yet.
    waiting: BTreeSet<(Epoch, usize, u64, u64)>,
    acks: BTreeMap<(Epoch, usize), RangeSet>,
    wall_offset_us: i64,
    wall_at_us: u64,
    credits_at_us: u64,
}

impl Receiver {
    /// A gateway without sessions, with these credits to give.
    pub fn new(credits: PerClass<u64>) -> Self {
        Receiver { credits, ..Receiver::default() }
    }

    /// The epochs `hello` names of which nothing is known here: read them from the sink before handing the Hello in.
    pub fn to_load(&self, hello: &Hello) -> Vec<Epoch> {
        named(hello).into_iter().filter(|epoch| !self.epochs.contains_key(epoch)).collect()
    }

    /// Takes in what happened; [`Receiver::poll`] until `None` afterwards.
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Hello { session, hello, known } => self.hello(now, session, &hello, known),
            Input::Control { session, body } => self.control(now, session, body),
            Input::Block { session, stream, header, block } => self.block(session, stream, header, block),
            Input::Closed { session } => {
                self.sessions.remove(&session);
                self.forget_epochs();
            }
            Input::Committed { ranges } => self.committed(&ranges),
            Input::CreditLevel { bytes } => {
                if self.credits != bytes {
                    self.credits = bytes;
                    self.renew_credits(now, 0);
                }
            }
            Input::Tick => self.renew_credits(now, CREDIT_RENEW_US),
        }
    }

    /// What to do next; `None` if nothing. Acks come last, so that those of several inputs become one message.
    pub fn poll(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            let (&id, session) = self.sessions.iter_mut().find(|(_, session)| !session.acks.is_empty())?;
            let acks = std::mem::take(&mut session.acks);
            let ranges =
                acks.iter().flat_map(|(&(epoch, lane), set)| set.iter().map(move |range| (epoch, lane, range.into_inner())));
            for ranges in pages(ranges) {
                self.outputs.push_back(Output::Send { session: id, body: Body::Ack(Ack { ranges }) });
            }
        }
        self.outputs.pop_front()
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The open sessions, oldest first, with their epochs.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, Epoch)> + '_ {
        self.sessions.iter().map(|(&id, session)| (id, session.epoch))
    }

    /// The epoch that took over last.
    pub fn current(&self) -> Option<Epoch> {
        self.current
    }

    /// True if nothing is lost by dropping this receiver: no session is open and nothing is pending.
    pub fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.epochs.values().flatten().all(|lane| lane.pending.is_empty())
    }

    /// Missing numbers of the epochs in memory.
    pub fn missing(&self) -> u64 {
        self.epochs.values().flatten().fold(0, |sum, lane| sum.saturating_add(lane.missing.len()))
    }

    fn hello(&mut self, now: Now, id: SessionId, hello: &Hello, known: Known) {
        if self.sessions.contains_key(&id) {
            return self.refuse(id, CloseReason::Order("a second Hello"));
        }
        if hello.protocol != PROTOCOL_VERSION {
            return self.refuse(id, CloseReason::Version { found: hello.protocol });
        }
        let epoch = Epoch(hello.epoch);
        self.current = self.current.or(known.current);
        let seen = self.epochs.contains_key(&epoch) || known.epochs.iter().any(|on_record| on_record.epoch == epoch);
        for on_record in known.epochs {
            self.epochs.entry(on_record.epoch).or_insert_with(|| Lane::load(on_record));
        }
        if self.current != Some(epoch) {
            self.take_over(now, epoch, seen);
        }
        while self.sessions.len() >= SESSIONS_MAX {
            let (&oldest, _) = self.sessions.first_key_value().expect("as many as the limit");
            self.close(oldest, CloseReason::TooManySessions);
        }
        let named = named(hello);
        self.outputs.push_back(Output::EpochsClosed { except: named.iter().copied().collect() });
        for &epoch in &named {
            self.epochs.entry(epoch).or_default();
        }
        self.welcome(id, &named);
        let session = Session {
            epoch,
            named,
            waiting: BTreeSet::new(),
            acks: BTreeMap::new(),
            wall_offset_us: now.unix_us.saturating_sub_unsigned(hello.service_us),
            wall_at_us: now.mono_us,
            credits_at_us: 0,
        };
        self.sessions.insert(id, session);
        self.send_credits(now, id);
        self.forget_epochs();
    }

    fn take_over(&mut self, now: Now, epoch: Epoch, returned: bool) {
        self.counters.takeovers += 1;
        if returned {
            self.counters.epochs_returned += 1;
            self.returns_us.push_back(now.mono_us);
            self.returns_us.retain(|&at| now.mono_us.saturating_sub(at) <= RETURNS_WINDOW_US);
            if self.returns_us.len() == RETURNS_CLONED {
                self.returns_us.clear();
                let from = self.current.unwrap_or(epoch);
                self.outputs.push_back(Output::Alert(Alert::Cloned { from, to: epoch }));
            }
        }
        self.current = Some(epoch);
        self.outputs.push_back(Output::EpochOpened { epoch, returned });
        let others: Vec<_> = self.sessions.iter().filter(|(_, session)| session.epoch != epoch).map(|(&id, _)| id).collect();
        for id in others {
            self.close(id, CloseReason::Superseded { by: epoch.0 });
        }
    }

    fn welcome(&mut self, id: SessionId, named: &BTreeSet<Epoch>) {
        let have = named.iter().flat_map(|&epoch| {
            self.epochs[&epoch]
                .iter()
                .enumerate()
                .flat_map(move |(at, lane)| lane.durable.iter().map(move |range| (epoch, at, range.into_inner())))
        });
        let mut pages = pages(have);
        if pages.is_empty() {
            pages.push(Vec::new());
        }
        let last = pages.len() - 1;
        for (at, have) in pages.into_iter().enumerate() {
            // Whoever keeps the graph fills in stamp and name.
            let welcome = Welcome { protocol: PROTOCOL_VERSION, have, more: at < last, ..Welcome::default() };
            self.outputs.push_back(Output::Send { session: id, body: Body::Welcome(welcome) });
        }
    }

    fn control(&mut self, now: Now, id: SessionId, body: Body) {
        if !self.sessions.contains_key(&id) {
            return self.refuse(id, CloseReason::Order("the first message must be a Hello"));
        }
        match body {
            Body::Ping(ping) => self.ping(now, id, &ping),
            Body::Voids(voids) => {
                for void in &voids.voids {
                    if let Err(reason) = self.void(id, void) {
                        return self.refuse(id, reason);
                    }
                }
            }
            Body::Hello(_) => self.refuse(id, CloseReason::Order("a second Hello")),
            Body::Welcome(_)
            | Body::Ack(_)
            | Body::Pong(_)
            | Body::Credits(_)
            | Body::Digest(_)
            | Body::NeedFull(_)
            | Body::Advice(_)
            | Body::Load(_)
            | Body::Question(_)
            | Body::Answer(_)
            // What a gateway says of policies is for whoever keeps those.
            | Body::PolicyOffer(_)
            | Body::PolicyState(_)
            // Windows for a pool come on streams of their own.
            | Body::OffloadRequest(_)
            | Body::OffloadAnswer(_)
            | Body::OffloadRefusal(_)
            // So do parts of models; what a gateway says of them is for whoever keeps those.
            | Body::ModelOffer(_)
            | Body::ModelStates(_)
            | Body::ModelAsk(_)
            | Body::ModelChunk(_)
            | Body::ModelRefusal(_)
            | Body::Pools(_) => self.counters.controls_ignored += 1,
        }
    }

    fn ping(&mut self, now: Now, id: SessionId, ping: &Ping) {
        let session = self.sessions.get_mut(&id).expect("checked by the caller");
        // The true offset plus the way here: the smallest is the best, and it may rise only as fast as a clock drifts.
        let drift = now.mono_us.saturating_sub(session.wall_at_us) / WALL_DRIFT_DIVISOR;
        let sample = now.unix_us.saturating_sub_unsigned(ping.service_us);
        session.wall_offset_us = sample.min(session.wall_offset_us.saturating_add_unsigned(drift));
        session.wall_at_us = now.mono_us;
        let epoch = session.epoch;
        for (class, &settled) in Class::ALL.into_iter().zip(&ping.settled) {
            self.settle(epoch, class, settled.min(SEQ_MAX));
        }
        self.outputs.push_back(Output::Send { session: id, body: Body::Pong(Pong { nonce: ping.nonce }) });
        self.send_credits(now, id);
    }

    /// The box holds nothing below `settled`: what is neither durable nor pending there is missing.
    fn settle(&mut self, epoch: Epoch, class: Class, settled: u64) {
        let lane = &mut self.epochs.get_mut(&epoch).expect("a session's epochs are kept")[class.index()];
        // What was pending below the last mark is durable by now or will be: only what lies between is new.
        let from = lane.settled;
        if settled <= from {
            return;
        }
        lane.settled = settled;
        for (first, last) in lane.free(from, settled - 1) {
            for (first, last) in holes(first, last, &lane.missing) {
                let seqs = &mut self.counters.seqs_missing;
                *seqs = seqs.saturating_add(last - first + 1);
                if lane.missing.range_count() >= MISSING_RANGES_MAX {
                    self.counters.missing_unlisted += 1;
                    continue;
                }
                lane.missing.insert(first..=last);
                let key = BlockKey { lane: class, epoch, first_seq: first };
                self.outputs.push_back(Output::Alert(Alert::Missing(SeqRange { key, last_seq: last })));
            }
        }
    }

    fn void(&mut self, id: SessionId, void: &VoidRange) -> Result<(), CloseReason> {
        let unknown = CloseReason::Void { lane: void.lane, reason: void.reason };
        let class = Class::from_index(void.lane as usize).ok_or(unknown.clone())?;
        let reason = u8::try_from(void.reason).ok().and_then(VoidReason::from_code).ok_or(unknown)?;
        let key = BlockKey { lane: class, epoch: Epoch(void.epoch), first_seq: void.first };
        for (first_seq, last_seq) in self.take(id, key, void.last)? {
            self.counters.voids_stored += 1;
            self.outputs.push_back(Output::StoreVoid(Void { key: BlockKey { first_seq, ..key }, last_seq, reason }));
        }
        Ok(())
    }

    fn block(&mut self, id: SessionId, stream: LaneStream, header: BlockHeader, block: Bytes) {
        // A block that was under way when its session was closed.
        let Some(session) = self.sessions.get(&id) else { return };
        let wall_offset_us = session.wall_offset_us;
        let lane = header.key.lane;
        if stream.lane != lane {
            return self.refuse(id, CloseReason::Lane { found: lane.name(), stream: stream.lane.name() });
        }
        self.counters.blocks_bytes[lane.index()] += block.len() as u64;
        let takes = match self.take(id, header.key, header.last_seq) {
            Ok(takes) => takes,
            Err(reason) => return self.refuse(id, reason),
        };
        if takes.is_empty() {
            let durable = &self.epochs[&header.key.epoch][lane.index()].durable;
            let duplicate = durable.covers(header.key.first_seq..=header.last_seq);
            *(if duplicate { &mut self.counters.blocks_duplicate } else { &mut self.counters.blocks_pending }) += 1;
            return;
        }
        self.counters.blocks_stored[lane.index()] += 1;
        self.counters.blocks_partial += u64::from(takes != [(header.key.first_seq, header.last_seq)]);
        self.outputs.push_back(Output::Store(Store { header, block, takes, wall_offset_us }));
    }

    /// Marks the free numbers of a range as pending and returns them; the session is told when all of the range is durable.
    fn take(&mut self, id: SessionId, key: BlockKey, last: u64) -> Result<Vec<(u64, u64)>, CloseReason> {
        let (first, at) = (key.first_seq, key.lane.index());
        if first > last || last > SEQ_MAX {
            return Err(CloseReason::Range { first, last });
        }
        let session = self.sessions.get_mut(&id).expect("checked by the callers");
        if !session.named.contains(&key.epoch) {
            return Err(CloseReason::Epoch { epoch: key.epoch.0 });
        }
        let lane = &mut self.epochs.get_mut(&key.epoch).expect("a session's epochs are kept")[at];
        if lane.durable.covers(first..=last) {
            session.acks.entry((key.epoch, at)).or_default().insert(first..=last);
            return Ok(Vec::new());
        }
        if session.waiting.len() >= WAITING_MAX {
            return Err(CloseReason::Waiting);
        }
        let takes = lane.free(first, last);
        if lane.durable.range_count() + lane.pending.len() + takes.len() > RANGES_PER_LANE_MAX {
            return Err(CloseReason::Scattered { lane: key.lane.name() });
        }
        session.waiting.insert((key.epoch, at, first, last));
        lane.pending.extend(takes.iter().map(|&(first, last)| (first, (last, id))));
        Ok(takes)
    }

    fn committed(&mut self, ranges: &[SeqRange]) {
        let mut touched = BTreeSet::new();
        for range in ranges {
            let (epoch, at, first) = (range.key.epoch, range.key.lane.index(), range.key.first_seq);
            let lane = &mut self.epochs.get_mut(&epoch).expect("an epoch with pending numbers is kept")[at];
            let (last, bringer) = lane.pending.remove(&first).expect("only what was handed over is committed");
            debug_assert_eq!(last, range.last_seq, "ranges are committed as they were handed over");
            lane.durable.insert(first..=last);
            let seqs = &mut self.counters.seqs_durable[at];
            *seqs = seqs.saturating_add(last - first + 1);
            if lane.missing.intersects(first..=last) {
                self.counters.seqs_late = self.counters.seqs_late.saturating_add(lane.unmiss(first, last));
            }
            touched.insert((epoch, at));
            if !self.sessions.contains_key(&bringer) {
                for session in self.sessions.values_mut().filter(|session| session.named.contains(&epoch)) {
                    session.acks.entry((epoch, at)).or_default().insert(first..=last);
                }
            }
        }
        for (epoch, at) in touched {
            let durable = &self.epochs[&epoch][at].durable;
            for session in self.sessions.values_mut() {
                let of_lane = session.waiting.range((epoch, at, 0, 0)..=(epoch, at, u64::MAX, u64::MAX));
                let done: Vec<_> = of_lane.filter(|&&(_, _, first, last)| durable.covers(first..=last)).copied().collect();
                for entry in done {
                    session.waiting.remove(&entry);
                    session.acks.entry((epoch, at)).or_default().insert(entry.2..=entry.3);
                }
            }
        }
        self.forget_epochs();
    }

    fn renew_credits(&mut self, now: Now, age_us: u64) {
        let due = |session: &Session| now.mono_us.saturating_sub(session.credits_at_us) >= age_us;
        let due: Vec<_> = self.sessions.iter().filter(|(_, session)| due(session)).map(|(&id, _)| id).collect();
        for id in due {
            self.send_credits(now, id);
        }
    }

    fn send_credits(&mut self, now: Now, id: SessionId) {
        self.sessions.get_mut(&id).expect("the caller has it").credits_at_us = now.mono_us;
        let credits = Credits { bytes: self.credits.to_vec(), lease_ms: CREDIT_LEASE_MS };
        self.outputs.push_back(Output::Send { session: id, body: Body::Credits(credits) });
    }

    fn refuse(&mut self, id: SessionId, reason: CloseReason) {
        self.counters.protocol_errors += 1;
        self.close(id, reason);
    }

    fn close(&mut self, id: SessionId, reason: CloseReason) {
        self.sessions.remove(&id);
        self.outputs.push_back(Output::Close { session: id, reason });
    }

    /// Drops what can be read from the sink again: epochs no session names and of which nothing is pending.
    fn forget_epochs(&mut self) {
        let sessions = &self.sessions;
        self.epochs.retain(|epoch, lanes| {
            sessions.values().any(|session| session.named.contains(epoch)) || lanes.iter().any(|lane| !lane.pending.is_empty())
        });
    }
}

fn named(hello: &Hello) -> BTreeSet<Epoch> {
    hello.held_epochs.iter().chain([&hello.epoch]).map(|&epoch| Epoch(epoch)).collect()
}

#[cfg(test)]
mod tests;
