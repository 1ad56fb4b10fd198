//! Everything around one gateway, on virtual time: clients, disk, models, links and the cloud.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::super::*;
use super::client::{Client, Fate, Heard, pubacks};
use super::cloud::{Cloud, Out};
use super::offers::Shell;
use super::rng::Rng;
use super::scenario::{PoolMood, Scenario, Trouble};
use super::store::Store;
use crate::block::Codec;
use crate::graph::Advice;
use crate::ids::{BlockKey, VoidReason};
use crate::ingest::ConnId;
use crate::ingest::{Scored, Verdict};
use crate::lanes::Durability;
use crate::load;
use crate::mqtt::UserIndex;
use crate::ranges::RangeSet;
use crate::store::CommitRequest;
use crate::wire::{AdviceBytes, Body, CloudLoad, LaneStream, LoadLevel, PolicyOffer};

#[derive(Debug, Clone, Copy)]
pub(super) enum Ev {
    Produce(usize),
    ClientConnects(usize),
    ClientRead(u64),
    ToClient(u64),
    Authenticated(u64),
    Inferred {
        run: u64,
        job: u64,
    },
    PoolReplies {
        run: u64,
        id: u64,
    },
    Committed {
        run: u64,
    },
    Loaded {
        run: u64,
        key: BlockKey,
    },
    Connected {
        run: u64,
        uplink: usize,
        attempt: u64,
    },
    Refused {
        run: u64,
        uplink: usize,
        attempt: u64,
    },
    GatewayHearsOfEnd {
        run: u64,
        session: u64,
    },
    CloudHearsOfEnd(u64),
    Transmitted {
        session: u64,
        flow: usize,
    },
    BlockArrives {
        session: u64,
        flow: usize,
    },
    ControlArrives(u64),
    ControlReturns(u64),
    CloudCommits {
        run: u64,
    },
    CloudTick,
    CloudStarts {
        run: u64,
    },
    EdgeStarts,
    /// The cloud offers a policy, and the shell has looked at one.
    Offer(u64),
    Checked {
        run: u64,
        version: u64,
    },
    Trouble(Trouble, u64),
    Mend(Trouble),
}

/// A client's socket.
pub(super) struct Socket {
    client: usize,
    to_gateway: VecDeque<u8>,
    to_client: VecDeque<Vec<u8>>,
    /// Packet ids and messages as sent on it.
    sent: VecDeque<(u16, u64)>,
    granted: bool,
    let_in: bool,
}

/// A connection to the cloud.
struct Session {
    uplink: usize,
    gateway_has_it: bool,
    cloud_has_it: bool,
    control: VecDeque<Vec<u8>>,
    back: VecDeque<Vec<u8>>,
    /// In the shell, and on the way.
    waiting: [VecDeque<Bytes>; 8],
    flying: [VecDeque<Bytes>; 8],
    busy: bool,
}

#[derive(Default)]
pub(super) struct Link {
    session: Option<u64>,
    pub(super) attempt: u64,
    pub(super) down: u32,
    stalled_until: u64,
}

/// Commits and calls of a stretch of time.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) handled: u64,
    pub(super) commits: u64,
    pub(super) puts: u64,
    pub(super) sent_blocks: u64,
    /// When a block last went by each of the first two uplinks.
    pub(super) sent_us: [u64; 2],
    pub(super) pubacks: u64,
}

/// What a seed led to, by the gateway's counters.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Covered {
    pub(super) runs: u64,
    pub(super) evicted: u64,
    pub(super) thinned_blocks: u64,
    pub(super) expired: u64,
    pub(super) spilled: u64,
    pub(super) repeated: u64,
    pub(super) commit_failures: u64,
    pub(super) backlog_blocks: u64,
    pub(super) load_failures: u64,
    pub(super) times_full: u64,
    pub(super) resent: u64,
    pub(super) offloads: u64,
    pub(super) policies_kept: u64,
    pub(super) policies_rolled_back: u64,
}

impl Covered {
    pub(super) fn add(&mut self, mut other: Covered) {
        for (mine, theirs) in self.fields().into_iter().zip(other.fields()) {
            *mine.1 += *theirs.1;
        }
    }

    /// Each with its name.
    pub(super) fn fields(&mut self) -> [(&'static str, &mut u64); 14] {
        [
            ("runs", &mut self.runs),
            ("evicted", &mut self.evicted),
            ("thinned blocks", &mut self.thinned_blocks),
            ("expired", &mut self.expired),
            ("spilled", &mut self.spilled),
            ("repeated", &mut self.repeated),
            ("commit failures", &mut self.commit_failures),
            ("backlog blocks", &mut self.backlog_blocks),
            ("load failures", &mut self.load_failures),
            ("times full", &mut self.times_full),
            ("resent", &mut self.resent),
            ("offloads", &mut self.offloads),
            ("policies kept", &mut self.policies_kept),
            ("policies rolled back", &mut self.policies_rolled_back),
        ]
    }
}

pub(super) struct World {
    pub(super) covered: Covered,
    pub(super) now: u64,
    pub(super) scenario: Scenario,
    pub(super) rng: Rng,
    events: BTreeMap<(u64, u64), Ev>,
    next_event: u64,
    pub(super) gateway: Option<Gateway>,
    pub(super) run: u64,
    epoch: Epoch,
    pub(super) store: Store,
    committing: Option<CommitRequest>,
    disk_fails: u32,
    loads_fail: u32,
    clients: Vec<Client>,
    pub(super) sockets: BTreeMap<u64, Socket>,
    next_socket: u64,
    pub(super) links: Vec<Link>,
    sessions: BTreeMap<u64, Session>,
    next_session: u64,
    pub(super) cloud: Cloud,
    codec: Codec,
    pub(super) tally: Tally,
    ticks_in_place: u32,
    pub(super) outputs_crc: crc32fast::Hasher,
    /// What is known of each message.
    fates: BTreeMap<u64, Fate>,
    acked: BTreeMap<u64, Epoch>,
    sends: BTreeMap<u64, u32>,
    /// Windows being scored, by job.
    windows: BTreeMap<u64, Vec<f32>>,
    pub(super) failed_windows: u64,
    /// Requests to the pool that are under way.
    offloads: BTreeSet<u64>,
    /// Of what clients, the disk and the cloud got alone.
    pub(super) records_crc: crc32fast::Hasher,
    /// What an operator would have heard.
    pub(super) told: Vec<Event>,
    pub(super) told_us: Vec<u64>,
    /// Versions of the policies that the shell was to check.
    pub(super) checks: Vec<u64>,
    pub(super) shell: Shell,
    /// When each record that was written came.
    came_us: BTreeMap<(Epoch, Class, u64), u64>,
    /// PUBACKs that only voids explain.
    excused: BTreeMap<(Epoch, Class), BTreeSet<u64>>,
    crashed: Vec<Epoch>,
    stopping: bool,
}

impl World {
    pub(super) fn new(seed: u64, scenario: Scenario) -> World {
        let rng = Rng(seed);
        let cloud = Cloud::new(scenario.credits);
        let clients: Vec<_> = scenario.clients.iter().enumerate().map(|(index, &plan)| Client::new(index, plan)).collect();
        let links = (0..scenario.uplinks).map(|_| Link::default()).collect();
        let mut world = World {
            covered: Covered::default(),
            now: 5_000_000,
            rng,
            events: BTreeMap::new(),
            next_event: 0,
            gateway: None,
            run: 0,
            epoch: Epoch(0),
            store: Store::new(),
            committing: None,
            disk_fails: 0,
            loads_fail: 0,
            clients,
            sockets: BTreeMap::new(),
            next_socket: 1,
            links,
            sessions: BTreeMap::new(),
            next_session: 1,
            cloud,
            codec: Codec::default(),
            tally: Tally::default(),
            ticks_in_place: 0,
            outputs_crc: crc32fast::Hasher::new(),
            fates: BTreeMap::new(),
            acked: BTreeMap::new(),
            sends: BTreeMap::new(),
            windows: BTreeMap::new(),
            failed_windows: 0,
            offloads: BTreeSet::new(),
            records_crc: crc32fast::Hasher::new(),
            told: Vec::new(),
            told_us: Vec::new(),
            checks: Vec::new(),
            shell: Shell::default(),
            came_us: BTreeMap::new(),
            excused: BTreeMap::new(),
            crashed: Vec::new(),
            stopping: false,
            scenario,
        };
        for index in 0..world.clients.len() {
            world.after(index as u64 * 3_000, Ev::ClientConnects(index));
            world.after(500_000, Ev::Produce(index));
        }
        for (at, trouble, len) in world.scenario.troubles.clone() {
            world.after(at, Ev::Trouble(trouble, len));
        }
        for (at, version, _) in world.scenario.offered.clone() {
            world.after(at, Ev::Offer(version));
        }
        world.after(1_000_000, Ev::CloudTick);
        world.start();
        world
    }

    pub(super) fn after(&mut self, delay_us: u64, event: Ev) {
        self.next_event += 1;
        self.events.insert((self.now + delay_us, self.next_event), event);
    }

    fn moment(&self) -> Moment {
        let wall = (self.now > 8_000_000).then_some(1_700_000_000_000_000);
        Moment { service_us: self.now, wall_offset_us: wall }
    }

    /// Plays until this time.
    pub(super) fn play_until(&mut self, until: u64) {
        while self.step(until) {}
        self.now = self.now.max(until);
    }

    /// Plays until everything is delivered; fails if that takes longer than so many microseconds.
    pub(super) fn play_out(&mut self, limit_us: u64) {
        let limit = self.now + limit_us;
        while !self.is_drained() {
            assert!(self.now < limit, "not drained within {limit_us} us: {}", self.state());
            self.play_until(self.now + 500_000);
        }
    }

    /// Does the next thing, unless it lies behind `until`.
    fn step(&mut self, until: u64) -> bool {
        let event_at = self.events.first_key_value().map_or(u64::MAX, |(&(at, _), _)| at);
        let due = self.gateway.as_mut().map_or(u64::MAX, Gateway::deadline_us).max(self.now);
        if due.min(event_at) > until {
            return false;
        }
        if due < event_at {
            self.ticks_in_place = if due == self.now { self.ticks_in_place + 1 } else { 0 };
            assert!(
                self.ticks_in_place < 4,
                "busy: {} ticks at {} without a thing to do: {}",
                self.ticks_in_place,
                self.now,
                self.state()
            );
            self.now = due;
            self.input(Input::Tick);
        } else {
            let ((at, _), event) = self.events.pop_first().expect("there is one");
            self.ticks_in_place = 0;
            self.now = at;
            self.happen(event);
        }
        true
    }

    fn happen(&mut self, event: Ev) {
        match event {
            Ev::Produce(index) => self.produce(index),
            Ev::ClientConnects(index) => self.client_connects(index),
            Ev::ClientRead(conn) => self.client_read(conn),
            Ev::ToClient(conn) => self.client_hears(conn),
            Ev::Authenticated(conn) => {
                if self.sockets.contains_key(&conn) {
                    self.input(Input::Authenticated { conn: ConnId(conn), result: Ok(UserIndex(0)) });
                }
            }
            Ev::Inferred { run, job } if run == self.run => {
                let verdict = Verdict { label: "x".into(), score: 0.5, confidence: 0.75, by: None };
                let verdict = (!self.rng.percent(5)).then_some(verdict);
                let window = self.windows.remove(&job).expect("a job has its window");
                self.failed_windows += u64::from(verdict.is_none());
                self.input(Input::Inferred(Scored { job, window, verdict }));
            }
            Ev::PoolReplies { run, id } if run == self.run => {
                if self.offloads.remove(&id)
                    && let Some((_, mood)) = self.scenario.offload
                {
                    self.input(Input::OffloadAnswered { id, bytes: &mood.reply() });
                }
            }
            Ev::Committed { run } if run == self.run => self.committed(),
            Ev::Loaded { run, key } if run == self.run => {
                if self.loads_fail > 0 && self.rng.percent(70) {
                    self.covered.load_failures += 1;
                    self.input(Input::LoadFailed { key });
                } else {
                    let block = self.store.load(key);
                    self.input(Input::Loaded { key, block });
                }
            }
            Ev::Connected { run, uplink, attempt } if run == self.run && attempt == self.links[uplink].attempt => {
                self.connected(uplink)
            }
            Ev::Refused { run, uplink, attempt } if run == self.run && attempt == self.links[uplink].attempt => {
                self.input(Input::UplinkClosed { uplink: uplink as u8, reason: "refused".to_owned() });
            }
            Ev::GatewayHearsOfEnd { run, session } if run == self.run => {
                let uplink = self.sessions[&session].uplink;
                if self.links[uplink].session == Some(session) {
                    self.links[uplink].session = None;
                    self.input(Input::UplinkClosed { uplink: uplink as u8, reason: "lost".to_owned() });
                }
            }
            Ev::CloudHearsOfEnd(session) => {
                self.cloud.closed(self.now, session);
                self.sessions.get_mut(&session).expect("kept").cloud_has_it = false;
                self.serve_cloud();
            }
            Ev::Transmitted { session, flow } => self.transmitted(session, flow),
            Ev::BlockArrives { session, flow } => self.block_arrives(session, flow),
            Ev::ControlArrives(session) => self.control_arrives(session),
            Ev::ControlReturns(session) => self.control_returns(session),
            Ev::CloudCommits { run } if run == self.cloud.run => {
                self.cloud.commit(self.now, &mut self.codec);
                self.serve_cloud();
            }
            Ev::CloudTick => {
                if self.cloud.up {
                    self.cloud.tick(self.now);
                    if self.scenario.offload.is_some() {
                        self.cloud.tell_pools(&PoolMood::view());
                    }
                    self.serve_cloud();
                }
                self.after(1_000_000, Ev::CloudTick);
            }
            Ev::CloudStarts { run } if run == self.cloud.run => self.cloud.up = true,
            Ev::EdgeStarts => self.start(),
            Ev::Offer(version) => self.offer(version),
            Ev::Checked { run, version } if run == self.run => self.checked(version),
            Ev::Trouble(trouble, len) => self.trouble(trouble, len),
            Ev::Mend(trouble) => self.mend(trouble),
            Ev::PoolReplies { .. } => {}
            Ev::Inferred { .. } | Ev::Committed { .. } | Ev::Loaded { .. } | Ev::Connected { .. } | Ev::Refused { .. } => {}
            Ev::GatewayHearsOfEnd { .. } | Ev::CloudCommits { .. } | Ev::CloudStarts { .. } | Ev::Checked { .. } => {}
        }
    }

    // ---- the gateway

    fn start(&mut self) {
        if self.gateway.is_some() {
            return;
        }
        self.run += 1;
        self.stopping = false;
        self.epoch = Epoch(self.rng.next());
        self.store.epochs.push(self.epoch);
        let held = self.store.held();
        let voids: Vec<_> = self.store.voids.values().copied().collect();
        let found = Found { held: &held, voids: &voids, ..Found::default() };
        let start = Start {
            epoch: self.epoch,
            seed: self.epoch.0,
            name: "box",
            software: "test",
            found,
            budgets: &[],
            policy: self.scenario.offers.clone(),
            models: FetchStart::default(),
        };
        self.gateway =
            Some(Gateway::new(self.moment(), self.scenario.policy_of(start.policy.version), &start).expect("sound filters"));
        self.outputs(None);
    }

    /// Adds what this run of the gateway counted.
    pub(super) fn count(&mut self) {
        let Some(gateway) = &self.gateway else { return };
        let covered = &mut self.covered;
        covered.runs += 1;
        covered.commit_failures += gateway.lanes().commit_failures();
        covered.times_full += gateway.ingest().counters().full;
        for class in Class::ALL {
            let counters = gateway.lanes().counters(class);
            covered.evicted += counters.evicted;
            covered.thinned_blocks += counters.thinned_blocks;
            covered.expired += counters.expired;
            covered.spilled += counters.spilled;
            covered.repeated += counters.repeated_blocks;
        }
    }

    /// The process is gone, and all its sockets with it.
    fn end(&mut self, killed: bool) {
        self.count();
        self.end_trial();
        self.gateway = None;
        self.run += 1;
        if let Some(request) = self.committing.take()
            && self.rng.percent(50)
        {
            let _ = self.store.apply(&mut self.codec, &request);
        }
        if killed {
            self.crashed.push(self.epoch);
        }
        for conn in self.sockets.keys().copied().collect::<Vec<_>>() {
            self.drop_socket(conn);
        }
        for uplink in 0..self.links.len() {
            if let Some(session) = self.links[uplink].session.take() {
                self.abandon(session);
            }
        }
        let wait = self.rng.range(50_000, 3_000_000);
        self.after(wait, Ev::EdgeStarts);
    }

    pub(super) fn input(&mut self, input: Input<'_>) {
        let now = self.moment();
        let Some(gateway) = &mut self.gateway else { return };
        let was_full = gateway.lanes().is_full().then(|| gateway.lanes().memory_bytes());
        self.tally.handled += 1;
        gateway.handle(now, input);
        self.outputs(was_full);
    }

    fn outputs(&mut self, was_full: Option<u64>) {
        let mut lesser_sent = false;
        while let Some(output) = self.gateway.as_mut().and_then(Gateway::poll) {
            self.digest(&output);
            match output {
                Output::ClientWrite { conn, bytes } => self.client_write(conn.0, bytes),
                Output::ClientRead { conn } => {
                    // With the same bytes in memory as before there was no room in between.
                    let full = was_full == self.gateway.as_ref().map(|gateway| gateway.lanes().memory_bytes());
                    let Some(socket) = self.sockets.get_mut(&conn.0) else { continue };
                    assert!(!full || !socket.let_in, "{conn:?} is read while memory is full");
                    assert!(!socket.granted, "{conn:?} is read twice at once");
                    socket.granted = true;
                    self.poke(conn.0);
                }
                Output::ClientClose { conn, .. } => {
                    // What was written before still arrives.
                    if let Some(socket) = self.sockets.get_mut(&conn.0) {
                        socket.granted = false;
                    }
                    self.drop_socket(conn.0);
                }
                Output::Authenticate { conn, .. } => {
                    let wait = self.rng.range(0, 30_000);
                    self.after(wait, Ev::Authenticated(conn.0));
                }
                Output::Infer(job) => {
                    self.windows.insert(job.job, job.window);
                    let (wait, run) = (self.rng.range(500, 40_000), self.run);
                    self.after(wait, Ev::Inferred { run, job: job.job });
                }
                Output::Commit(request) => {
                    assert!(self.committing.is_none(), "one transaction at a time");
                    assert!(!request.is_empty());
                    self.check_ages(&request);
                    self.tally.commits += 1;
                    self.tally.puts += request.puts.len() as u64;
                    self.committing = Some(request);
                    let (wait, run) = (self.rng.range(self.scenario.disk_us.0, self.scenario.disk_us.1), self.run);
                    self.after(wait, Ev::Committed { run });
                }
                Output::Load { key } => {
                    let (wait, run) = (self.rng.range(200, 20_000), self.run);
                    self.after(wait, Ev::Loaded { run, key });
                }
                Output::Connect { uplink } => self.connect(usize::from(uplink)),
                Output::ControlWrite { uplink, bytes } => self.control_write(usize::from(uplink), bytes),
                Output::SendBlock { uplink, flow, block } => {
                    let critical = flow.lane == Class::Critical;
                    assert!(!(critical && lesser_sent), "a critical block waited while another was sent");
                    lesser_sent |= !critical;
                    self.send_block(usize::from(uplink), flow, block);
                }
                Output::Disconnect { uplink } => {
                    let link = &mut self.links[usize::from(uplink)];
                    link.attempt += 1;
                    if let Some(session) = link.session.take() {
                        self.abandon(session);
                    }
                }
                Output::CheckPolicy { version, .. } => self.check_policy(version),
                Output::Fetch(_) => panic!("no model is offered here"),
                Output::BrokerConnect { .. } | Output::BrokerClose { .. } => panic!("there is no broker here"),
                Output::Offload { uplink, id, .. } => {
                    assert!(self.links[usize::from(uplink)].session.is_some(), "a request needs a connection");
                    self.covered.offloads += 1;
                    self.offloads.insert(id);
                    let mood = self.scenario.offload.map(|(_, mood)| mood);
                    if let Some(wait_us) = mood.and_then(PoolMood::reply_us) {
                        let run = self.run;
                        self.after(wait_us, Ev::PoolReplies { run, id });
                    }
                }
                Output::CancelOffload { id, .. } => {
                    self.offloads.remove(&id);
                }
                Output::Event(event) => {
                    self.told_us.push(self.now);
                    if let Event::Policy(news) = &event {
                        self.policy_news(news);
                    }
                    self.told.push(event);
                }
            }
        }
        self.check();
        if self.stopping && self.gateway.as_ref().is_some_and(Gateway::is_stopped) {
            self.stopped();
        }
    }

    fn check(&self) {
        let Some(gateway) = &self.gateway else { return };
        let memory = gateway.lanes().memory_bytes();
        let slack = self.clients.len() as u64 * 70_000 + 20_000;
        let max = self.scenario.limits.memory_bytes + slack;
        assert!(memory <= max, "{memory} bytes in memory, more than {max}");
    }

    /// No record expires before its TTL.
    fn check_ages(&mut self, request: &CommitRequest) {
        for put in &request.puts {
            let (_, records) = self.codec.open(&put.block).expect("a sound block");
            let key = put.header.key;
            for record in records {
                let record = record.expect("a sound record");
                self.came_us.insert((key.epoch, key.lane, record.seq), record.at_us);
            }
        }
        for void in request.voids.iter().filter(|void| void.reason == VoidReason::Expired) {
            let ttl_us = self.scenario.lanes[void.key.lane.index()].ttl_us.expect("without a TTL nothing expires");
            let seq = |seq| (void.key.epoch, void.key.lane, seq);
            if let Some((key, at_us)) = self.came_us.range(seq(void.key.first_seq)..=seq(void.last_seq)).next_back() {
                assert!(at_us + ttl_us <= self.now, "{key:?} expired {} us after it came", self.now - at_us);
            }
        }
    }

    fn committed(&mut self) {
        let Some(request) = self.committing.take() else { return };
        let result = if self.disk_fails > 0 {
            Err(StoreError::Io("broken".to_owned()))
        } else {
            self.store.apply(&mut self.codec, &request)
        };
        self.input(Input::Committed { ticket: request.ticket, result });
    }

    /// A clean stop has ended: what was taken in is safe, unless the disk refused.
    fn stopped(&mut self) {
        let refused = self.disk_fails > 0 || self.store.bytes_max < u64::MAX;
        let safe = self.gateway.as_ref().expect("it has just stopped").lanes();
        if !refused {
            for class in Class::ALL {
                let (lane, at) = (self.scenario.lanes[class.index()], class.index());
                if lane.durability == Durability::Memory {
                    continue;
                }
                let pushed = safe.counters(class).records;
                assert_eq!(safe.safe()[at], pushed, "{class:?} is safe after a clean stop");
            }
        }
        self.end(true);
    }

    fn digest(&mut self, output: &Output) {
        if let Output::ClientWrite { .. } | Output::SendBlock { .. } | Output::Commit(_) = output {
            self.records_crc.update(format!("{} {output:?}", self.now).as_bytes());
        }
        let crc = &mut self.outputs_crc;
        crc.update(&self.now.to_le_bytes());
        match output {
            Output::ClientWrite { conn, bytes } => {
                crc.update(&conn.0.to_le_bytes());
                crc.update(bytes);
            }
            Output::ControlWrite { bytes, .. } => crc.update(bytes),
            Output::SendBlock { uplink, flow, block } => {
                crc.update(&[*uplink, flow.lane.index() as u8, u8::from(flow.backlog)]);
                crc.update(block);
            }
            Output::Commit(request) => {
                for put in &request.puts {
                    crc.update(&put.block);
                }
                crc.update(format!("{:?}{:?}{:?}", request.deletes, request.voids, request.voids_acked).as_bytes());
            }
            other => crc.update(format!("{other:?}").as_bytes()),
        }
    }

    // ---- clients

    fn produce(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(message) = client.produce(&mut self.rng) else { return };
        self.fates.insert(message.id, message.fate);
        let gap = self.clients[index].plan.gap_us;
        let wait = self.rng.range(gap / 2, gap * 3 / 2);
        self.after(wait, Ev::Produce(index));
        self.pump(index);
    }

    fn pump(&mut self, index: usize) {
        let packets = self.clients[index].pump();
        self.client_sends(index, packets);
    }

    fn client_sends(&mut self, index: usize, packets: Vec<(Option<u16>, u64, Vec<u8>)>) {
        let Some(conn) = self.clients[index].conn else { return };
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        for (packet_id, id, bytes) in packets {
            *self.sends.entry(id).or_default() += 1;
            if let Some(packet_id) = packet_id {
                socket.sent.push_back((packet_id, id));
            }
            socket.to_gateway.extend(bytes);
        }
        self.poke(conn);
    }

    /// Lets the gateway read what is there.
    pub(super) fn poke(&mut self, conn: u64) {
        if self.sockets.get(&conn).is_some_and(|socket| socket.granted && !socket.to_gateway.is_empty()) {
            let wait = self.rng.range(10, 2_000);
            self.after(wait, Ev::ClientRead(conn));
        }
    }

    fn client_read(&mut self, conn: u64) {
        if self.is_muted() {
            return;
        }
        let Some(socket) = self.sockets.get_mut(&conn).filter(|socket| socket.granted && !socket.to_gateway.is_empty()) else {
            return;
        };
        socket.granted = false;
        let most = socket.to_gateway.len().min(64 * 1024);
        let len = if self.rng.percent(80) { most } else { self.rng.range(1, most as u64) as usize };
        let bytes: Vec<u8> = socket.to_gateway.drain(..len).collect();
        self.input(Input::ClientRead { conn: ConnId(conn), bytes: &bytes });
    }

    fn client_connects(&mut self, index: usize) {
        if self.clients[index].conn.is_some() {
            return;
        }
        if self.gateway.is_none() || self.stopping {
            return self.after(200_000, Ev::ClientConnects(index));
        }
        let conn = self.next_socket;
        self.next_socket += 1;
        let bytes = self.clients[index].connect(conn);
        self.sockets.insert(
            conn,
            Socket {
                client: index,
                to_gateway: bytes.into(),
                to_client: VecDeque::new(),
                sent: VecDeque::new(),
                granted: false,
                let_in: false,
            },
        );
        self.input(Input::ClientOpened { conn: ConnId(conn) });
    }

    fn client_write(&mut self, conn: u64, bytes: Vec<u8>) {
        let packet_ids = pubacks(&bytes);
        for packet_id in packet_ids {
            let Some(socket) = self.sockets.get_mut(&conn) else { return };
            let (expected, id) = socket.sent.pop_front().expect("a PUBACK answers a message");
            assert_eq!(packet_id, expected, "PUBACKs leave in the order of the messages");
            self.tally.pubacks += 1;
            self.is_safe(id);
        }
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        socket.let_in = true;
        socket.to_client.push_back(bytes);
        self.after(1_000, Ev::ToClient(conn));
    }

    /// Checks that a message may get its PUBACK now.
    fn is_safe(&mut self, id: u64) {
        let Fate::Record(lane) = self.fates[&id] else { return };
        if self.scenario.lanes[lane.index()].durability == Durability::Memory {
            return;
        }
        if self.store.has_id(id) || self.cloud.ids.contains_key(&id) {
            return;
        }
        let mut voided = self.cloud.voided.get(&(self.epoch, lane)).cloned().unwrap_or_default();
        for (first, last) in self.store.voided(self.epoch, lane) {
            voided.insert(first..=last);
        }
        if let Some(thinned) = self.cloud.thinned.get(&(self.epoch, lane)) {
            thinned.iter().for_each(|range| voided.insert(range));
        }
        self.store.add_thinned(&mut self.codec, self.epoch, lane, &mut voided);
        let excused = self.excused.entry((self.epoch, lane)).or_default();
        // A record that was given up while it was on its way may have arrived nevertheless.
        excused.retain(|id| !self.cloud.ids.contains_key(id));
        excused.insert(id);
        assert!(
            excused.len() as u64 <= voided.len(),
            "message {id} of {lane:?} got its PUBACK at {} and is neither stored nor given up",
            self.now
        );
    }

    fn client_hears(&mut self, conn: u64) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        let (index, Some(bytes)) = (socket.client, socket.to_client.pop_front()) else { return };
        for heard in self.clients[index].hear(&bytes) {
            match heard {
                Heard::Connack => {
                    let packets = self.clients[index].resend();
                    self.covered.resent += packets.len() as u64;
                    self.client_sends(index, packets);
                }
                Heard::Puback(id) => {
                    self.acked.insert(id, self.epoch);
                }
            }
        }
        self.pump(index);
    }

    /// The client's socket is gone; it comes back.
    fn drop_socket(&mut self, conn: u64) {
        let Some(socket) = self.sockets.remove(&conn) else { return };
        let client = &mut self.clients[socket.client];
        if client.conn == Some(conn) {
            client.lost();
            let wait = self.rng.range(10_000, 500_000);
            self.after(wait, Ev::ClientConnects(socket.client));
        }
    }

    // ---- links

    fn delay(&mut self) -> u64 {
        self.scenario.delay_us + self.rng.range(0, self.scenario.jitter_us)
    }

    fn connect(&mut self, uplink: usize) {
        self.links[uplink].attempt += 1;
        let (attempt, run) = (self.links[uplink].attempt, self.run);
        let delay = 3 * self.delay();
        if self.links[uplink].down == 0 && self.cloud.up {
            self.after(delay, Ev::Connected { run, uplink, attempt });
        } else if self.rng.percent(50) {
            self.after(delay, Ev::Refused { run, uplink, attempt });
        }
    }

    fn connected(&mut self, uplink: usize) {
        let session = self.next_session;
        self.next_session += 1;
        self.links[uplink].session = Some(session);
        self.sessions.insert(
            session,
            Session {
                uplink,
                gateway_has_it: true,
                cloud_has_it: true,
                control: VecDeque::new(),
                back: VecDeque::new(),
                waiting: Default::default(),
                flying: Default::default(),
                busy: false,
            },
        );
        self.cloud.accepted(session);
        self.input(Input::UplinkConnected { uplink: uplink as u8 });
    }

    /// The gateway has let go of a connection; the cloud hears of it later.
    fn abandon(&mut self, session: u64) {
        self.sessions.get_mut(&session).expect("kept").gateway_has_it = false;
        let wait = self.rng.range(0, 6_000_000);
        self.after(wait, Ev::CloudHearsOfEnd(session));
    }

    /// The connection breaks: what is on the way is lost, and each side hears of it in its own time.
    pub(super) fn break_link(&mut self, uplink: usize) {
        let Some(session) = self.links[uplink].session else { return };
        let open = self.sessions.get_mut(&session).expect("kept");
        open.gateway_has_it = false;
        open.control.clear();
        open.back.clear();
        open.waiting = Default::default();
        open.flying = Default::default();
        let run = self.run;
        let (wait, later) = (self.rng.range(0, 1_000_000), self.rng.range(0, 6_000_000));
        if self.rng.percent(70) {
            self.after(wait, Ev::GatewayHearsOfEnd { run, session });
        }
        self.after(later, Ev::CloudHearsOfEnd(session));
    }

    fn control_write(&mut self, uplink: usize, bytes: Vec<u8>) {
        let Some(session) = self.links[uplink].session else { return };
        let open = self.sessions.get_mut(&session).expect("kept");
        if open.gateway_has_it {
            open.control.push_back(bytes);
            let delay = self.delay();
            self.after(delay, Ev::ControlArrives(session));
        }
    }

    fn send_block(&mut self, uplink: usize, flow: LaneStream, block: Bytes) {
        self.tally.sent_blocks += 1;
        if let Some(at_us) = self.tally.sent_us.get_mut(uplink) {
            *at_us = self.now;
        }
        self.covered.backlog_blocks += u64::from(flow.backlog);
        let class = flow.lane;
        let gateway = self.gateway.as_ref().expect("it has just spoken");
        let credits = gateway.uplinks()[uplink].credits(self.now)[class.index()];
        let under_way = gateway.lanes().under_way_bytes(uplink as u8)[class.index()];
        assert!(credits > 0, "a block of {class:?} is sent without credit");
        // One block more: of incompressible records it may be larger than was expected.
        let block_max = self.scenario.limits.block_target_bytes as u64 + 4_096;
        assert!(under_way <= credits + block_max, "{under_way} bytes under way, credit {credits}");
        let Some(session) = self.links[uplink].session else { return };
        let open = self.sessions.get_mut(&session).expect("kept");
        if open.gateway_has_it {
            open.waiting[flow.lane.index() * 2 + usize::from(flow.backlog)].push_back(block);
            self.transmit(session);
        }
    }

    /// Puts the next block on the wire: critical first.
    fn transmit(&mut self, session: u64) {
        let open = self.sessions.get_mut(&session).expect("kept");
        if open.busy {
            return;
        }
        let Some(flow) = open.waiting.iter().position(|queue| !queue.is_empty()) else { return };
        open.busy = true;
        let len = open.waiting[flow][0].len() as u64;
        self.after(len * 1_000_000 / self.scenario.bytes_per_s, Ev::Transmitted { session, flow });
    }

    fn transmitted(&mut self, session: u64, flow: usize) {
        let open = self.sessions.get_mut(&session).expect("kept");
        let uplink = open.uplink;
        if self.now < self.links[uplink].stalled_until {
            let wait = self.links[uplink].stalled_until - self.now;
            return self.after(wait, Ev::Transmitted { session, flow });
        }
        open.busy = false;
        let Some(block) = open.waiting[flow].pop_front() else { return };
        let len = block.len() as u64;
        let repeat = self.rng.percent(self.scenario.repeat_percent);
        let open = self.sessions.get_mut(&session).expect("kept");
        let tell = open.gateway_has_it;
        for _ in 0..=u32::from(repeat) {
            self.sessions.get_mut(&session).expect("kept").flying[flow].push_back(block.clone());
            let delay = self.delay();
            self.after(delay, Ev::BlockArrives { session, flow });
        }
        if tell {
            let stream = LaneStream { lane: Class::ALL[flow / 2], backlog: flow % 2 == 1 };
            self.input(Input::UplinkWritten { uplink: uplink as u8, flow: stream, len });
        }
        self.transmit(session);
    }

    fn block_arrives(&mut self, session: u64, flow: usize) {
        let open = self.sessions.get_mut(&session).expect("kept");
        let stalled_until = self.links[open.uplink].stalled_until;
        if self.now < stalled_until {
            return self.after(stalled_until - self.now, Ev::BlockArrives { session, flow });
        }
        let Some(block) = open.flying[flow].pop_front() else { return };
        if open.cloud_has_it && self.cloud.up {
            let stream = LaneStream { lane: Class::ALL[flow / 2], backlog: flow % 2 == 1 };
            self.cloud.block(self.now, session, stream, block);
            self.serve_cloud();
        }
    }

    fn control_arrives(&mut self, session: u64) {
        let open = self.sessions.get_mut(&session).expect("kept");
        let stalled_until = self.links[open.uplink].stalled_until;
        if self.now < stalled_until {
            return self.after(stalled_until - self.now, Ev::ControlArrives(session));
        }
        let Some(bytes) = open.control.pop_front() else { return };
        if open.cloud_has_it && self.cloud.up {
            self.cloud.control(self.now, session, &bytes);
            self.serve_cloud();
        }
    }

    fn control_returns(&mut self, session: u64) {
        let open = self.sessions.get_mut(&session).expect("kept");
        let (uplink, stalled_until) = (open.uplink, self.links[open.uplink].stalled_until);
        if self.now < stalled_until {
            return self.after(stalled_until - self.now, Ev::ControlReturns(session));
        }
        let Some(bytes) = open.back.pop_front() else { return };
        if self.links[uplink].session == Some(session) && open.gateway_has_it {
            let cut = self.rng.range(0, bytes.len() as u64) as usize;
            for part in [&bytes[..cut], &bytes[cut..]] {
                self.input(Input::UplinkControl { uplink: uplink as u8, bytes: part });
            }
        }
    }

    // ---- the cloud

    fn serve_cloud(&mut self) {
        for out in std::mem::take(&mut self.cloud.outs) {
            match out {
                Out::Send(session, bytes) => {
                    let open = self.sessions.get_mut(&session).expect("kept");
                    if open.gateway_has_it {
                        open.back.push_back(bytes);
                        let delay = self.delay();
                        self.after(delay, Ev::ControlReturns(session));
                    }
                }
                Out::Close(session) => {
                    self.sessions.get_mut(&session).expect("kept").cloud_has_it = false;
                    let (delay, run) = (self.delay(), self.run);
                    self.after(delay, Ev::GatewayHearsOfEnd { run, session });
                }
            }
        }
        if self.cloud.begin() {
            let (wait, run) = (self.rng.range(self.scenario.sink_us.0, self.scenario.sink_us.1), self.cloud.run);
            self.after(wait, Ev::CloudCommits { run });
        }
    }

    // ---- trouble

    /// The cloud offers a policy on all sessions; its text and signature are the shell's to read.
    pub(super) fn offer(&mut self, version: u64) {
        if !self.cloud.up {
            return;
        }
        let (text, signature) = (Bytes::from_static(b"text"), Bytes::from_static(b"signature"));
        self.cloud.say(&Body::PolicyOffer(PolicyOffer { version, text, signature }));
        self.serve_cloud();
    }

    /// Tells the box what is wrong with what it shares with others.
    pub(super) fn advise(&mut self, advice: &Advice) {
        let advice = prost::Message::encode_to_vec(advice).into();
        self.cloud.say(&Body::Advice(AdviceBytes { advice }));
        self.serve_cloud();
    }

    /// The cloud says how busy it is, and gives credits as it does then; or takes none away.
    pub(super) fn cloud_load(&mut self, level: LoadLevel, takes_credits: bool) {
        let stalled = takes_credits && level == LoadLevel::Stalled;
        let overloaded = takes_credits && level == LoadLevel::Overloaded;
        self.cloud.set_credits(self.now, load::credits(1 << 20, stalled, overloaded));
        self.cloud.say(&Body::Load(CloudLoad { level: level as u32, queue_percent: 80, commit_us: 5_000 }));
        self.serve_cloud();
    }

    /// Lets nothing through on a link for a while; its connection stays as it is.
    pub(super) fn stall(&mut self, uplink: usize, len_us: u64) {
        self.links[uplink].stalled_until = self.now + len_us;
    }

    fn trouble(&mut self, trouble: Trouble, len: u64) {
        let uplink = self.rng.range(0, self.links.len() as u64 - 1) as usize;
        match trouble {
            Trouble::EdgeCrash if self.gateway.is_some() => self.end(true),
            Trouble::EdgeStop if self.gateway.is_some() && !self.stopping => {
                self.stopping = true;
                self.input(Input::Stop);
            }
            Trouble::EdgeCrash | Trouble::EdgeStop => {}
            Trouble::CloudCrash => {
                self.cloud.crash();
                self.serve_cloud();
                let run = self.cloud.run;
                self.after(len, Ev::CloudStarts { run });
            }
            Trouble::CloudStuck => self.cloud.stuck = true,
            Trouble::CreditsGone => self.cloud.set_credits(self.now, [0; 4]),
            Trouble::LinkDown => {
                for uplink in 0..self.links.len() {
                    self.links[uplink].down += 1;
                    self.break_link(uplink);
                }
            }
            Trouble::LinkBreak => self.break_link(uplink),
            Trouble::LinkStall => self.links[uplink].stalled_until = self.now + len,
            Trouble::DiskFull => self.store.bytes_max = self.store.bytes + self.rng.range(0, 3_000),
            Trouble::DiskFails => self.disk_fails += 1,
            Trouble::LoadsFail => self.loads_fail += 1,
            Trouble::ClientDrops => {
                let conns: Vec<_> = self.sockets.keys().copied().collect();
                if !conns.is_empty() {
                    let conn = self.rng.pick(&conns);
                    self.drop_socket(conn);
                    // Half the time the gateway hears of it only after the client is back.
                    if self.rng.percent(50) {
                        self.input(Input::ClientLost { conn: ConnId(conn) });
                    }
                }
            }
        }
        self.serve_cloud();
        self.after(len, Ev::Mend(trouble));
    }

    fn mend(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::CloudStuck => {
                self.cloud.stuck = false;
                self.serve_cloud();
            }
            Trouble::CreditsGone => {
                self.cloud.set_credits(self.now, self.scenario.credits);
                self.serve_cloud();
            }
            Trouble::LinkDown => self.links.iter_mut().for_each(|link| link.down -= 1),
            Trouble::DiskFull => self.store.bytes_max = u64::MAX,
            Trouble::DiskFails => self.disk_fails -= 1,
            Trouble::LoadsFail => self.loads_fail -= 1,
            _ => {}
        }
    }

    // ---- the end

    pub(super) fn is_drained(&self) -> bool {
        let ahead =
            |event: &Ev| matches!(event, Ev::Trouble(..) | Ev::Mend(_) | Ev::EdgeStarts | Ev::Offer(_) | Ev::Checked { .. });
        let troubled = self.events.values().any(ahead);
        let Some(gateway) = &self.gateway else { return false };
        let lanes = gateway.lanes();
        !troubled
            && gateway.policies().on_trial().is_none()
            && self.clients.iter().all(Client::is_done)
            && Class::ALL.iter().all(|&class| lanes.status(class).records == 0)
            && lanes.void_count() == 0
            && self.store.is_empty()
            && self.cloud.is_idle()
    }

    pub(super) fn state(&self) -> String {
        let clients: Vec<_> = self.clients.iter().map(|client| format!("{} open {}", client.state(), client.open)).collect();
        let lanes = self.gateway.as_ref().map(|gateway| {
            let lanes = gateway.lanes();
            let uplinks: Vec<_> =
                gateway.uplinks().iter().map(|session| (session.is_up(), session.credits(self.now))).collect();
            format!(
                "{:?} voids {} full {} committing {} uplinks {uplinks:?} unacked {}",
                Class::ALL.map(|class| lanes.status(class)),
                lanes.void_count(),
                lanes.is_full(),
                lanes.is_committing(),
                gateway.ingest().unacknowledged(),
            )
        });
        format!("at {}: clients {clients:?}, lanes {lanes:?}, disk empty {}", self.now, self.store.is_empty())
    }

    /// Nothing lost, nothing doubled, nothing sent for nothing.
    pub(super) fn judge(&self) {
        let mut lost: BTreeMap<Class, Vec<u64>> = BTreeMap::new();
        for (&id, &epoch) in &self.acked {
            let Fate::Record(lane) = self.fates[&id] else { continue };
            let stored = self.cloud.ids.get(&id).copied().unwrap_or(0);
            let sends = self.sends[&id];
            assert!(stored <= sends, "message {id} was sent {sends} times and stored {stored} times");
            let forgotten = self.scenario.lanes[lane.index()].durability == Durability::Memory && self.crashed.contains(&epoch);
            if stored == 0 && !forgotten {
                lost.entry(lane).or_default().push(id);
            }
        }
        for (lane, ids) in lost {
            let of_lane = self.cloud.voided.iter().chain(&self.cloud.thinned).filter(|((_, of), _)| *of == lane);
            let voided: u64 = of_lane.map(|(_, ranges)| ranges.len()).sum();
            assert!(ids.len() as u64 <= voided, "lost {ids:?} of {lane:?}, {voided} given up or thinned: {:?}", self.scenario);
        }
        for (&id, &stored) in &self.cloud.ids {
            assert!(stored == 0 || !matches!(self.fates[&id], Fate::Refused), "message {id} is no record");
        }
    }

    pub(super) fn troubles_end(&self) -> u64 {
        self.scenario.troubles_end_us + 5_000_000
    }

    pub(super) fn voided(&self) -> u64 {
        self.cloud.voided.values().map(RangeSet::len).sum()
    }
}
