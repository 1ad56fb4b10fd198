//! The real gateway on virtual time, from MQTT packets to durable acknowledgements.
//!
//! [`Gateway`] runs here byte for byte as on the box, with the cloud's [`Receiver`] at the far end. What is simulated is what
//! the shells do: sockets that carry MQTT, a disk that takes a while, models that take a while, a [`Transport`] over the link,
//! and a database that commits what has come.
//!
//! The machine keeps no books of its own: whoever runs it is told each [`Fact`] as it happens.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;

use bytes::Bytes;
use weir_infer::{Model, Origin, Row};
use weir_logic::budget::BudgetLevel;
use weir_logic::gateway::{Gateway, Input, Output, PolicyStart, Start};
use weir_logic::graph::Stamp;
use weir_logic::ids::{BlockKey, Class, Epoch, Void};
use weir_logic::ingest::{ConnId, FateCounters, InferJob, Moment, RouteError, Scored, Verdict};
use weir_logic::lanes::Found;
use weir_logic::models::FetchStart;
use weir_logic::mqtt::UserIndex;
use weir_logic::policy::Policy;
use weir_logic::receive::{self, Receiver};
use weir_logic::store::{CommitRequest, SeqRange};

use super::trace::Link;
use super::transport::Packet;
use ways::Way;

mod cloud;
mod ways;

/// A transaction of the disk, a block read from it, and a window scored, in microseconds: a card of the better kind, a Pi 4.
const COMMIT_US: u64 = 5_000;
const LOAD_US: u64 = 2_000;
const SCORE_US: u64 = 1_000;
/// The cloud's database commits what has come so often.
const SINK_US: u64 = 20_000;
const PATH_US: u64 = 250_000;
/// Credits as the cloud gives them when it is well.
const CREDITS: u64 = 64 << 20;
const UNIX_US: i64 = 1_790_000_000_000_000;
const EPOCH: Epoch = Epoch(1);
/// The one client that speaks for all sensors.
const SENSOR: ConnId = ConnId(1);

/// A message that a sensor publishes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    /// When, in microseconds of the run; not before the one ahead of it.
    pub(super) at_us: u64,
    pub(super) topic: String,
    pub(super) payload: Bytes,
}

/// What happened, for whoever keeps books.
pub(super) enum Fact<'f> {
    /// The message with this number, counted from 0, was handed to the box.
    Published(usize),
    /// Records went into a lane: these numbers of it.
    Recorded { lane: Class, stream: u16, numbers: Range<u64> },
    /// The box gave these up.
    GaveUp(&'f Void),
    /// The cloud took these in; they are durable [`SINK_US`] later at the latest.
    Stored(&'f receive::Store),
    /// A second has passed.
    Second(&'f Gateway),
}

/// A box and its links.
pub(super) struct Site<'a> {
    /// Its name, as its certificate would say.
    pub(super) name: &'a str,
    /// By uplink of the policy.
    pub(super) links: &'a [Link],
    pub(super) policy: Policy,
    /// By the index that the policy's streams name.
    pub(super) models: Vec<Model>,
    pub(super) seed: u64,
    /// True if whoever runs it is the cloud's graph, and takes the box's digests.
    pub(super) is_federated: bool,
    /// What was saved of each uplink's month.
    pub(super) budgets: &'a [BudgetLevel],
    pub(super) calendar: Calendar,
}

/// How a box's calendar goes beside the simulated time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Calendar {
    /// Unix time at the start of the run, in microseconds.
    pub(super) from_unix_us: i64,
    /// 1 as ours; 30 if a day of the run is a month there.
    pub(super) speed: u64,
}

impl<'a> Site<'a> {
    /// A box that is alone, without models, without a past, and on our calendar.
    pub(super) fn new(name: &'a str, links: &'a [Link], policy: Policy, seed: u64) -> Site<'a> {
        let calendar = Calendar { from_unix_us: UNIX_US, speed: 1 };
        Site { name, links, policy, models: Vec::new(), seed, is_federated: false, budgets: &[], calendar }
    }
}

/// How a run ended.
pub(super) struct Ended {
    /// The box as it was then.
    pub(super) gateway: Gateway,
    /// Bytes that left, by uplink, headers included.
    pub(super) sent_bytes: Vec<u64>,
    /// Messages that the box could not take before the end: it read no further.
    pub(super) unread: usize,
}

/// Runs a box until the end of its links' run.
///
/// # Errors
/// A topic filter of the policy that is malformed.
pub(super) fn run(
    site: Site<'_>,
    messages: &mut dyn Iterator<Item = Message>,
    watch: &mut dyn FnMut(u64, Fact<'_>),
) -> Result<Ended, RouteError> {
    let mut world = World::new(site, messages, watch)?;
    world.live_until(u64::MAX);
    Ok(world.end())
}

#[derive(Debug)]
enum Event {
    Committed(u64),
    Loaded(BlockKey),
    Scored(Scored),
    Connected,
    Arrives(Packet),
    Acked(Packet),
    Control(Vec<u8>),
    Sink,
    Path,
    Second,
}

struct Pending {
    at_us: u64,
    order: u64,
    /// The uplink and the connection it belongs to; what belongs to one that has ended is void.
    of: Option<(usize, u64)>,
    event: Event,
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Pending {}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

/// A box on virtual time, and the cloud's side for it.
pub(super) struct World<'a> {
    ways: Vec<Way<'a>>,
    end_us: u64,
    calendar: Calendar,
    messages: &'a mut dyn Iterator<Item = Message>,
    watch: &'a mut dyn FnMut(u64, Fact<'_>),
    models: Vec<Model>,
    gateway: Gateway,
    receiver: Receiver,
    now_us: u64,
    queue: BinaryHeap<Reverse<Pending>>,
    order: u64,
    /// Connections made so far.
    connections: u64,
    disk: BTreeMap<BlockKey, Bytes>,
    commits: BTreeMap<u64, CommitRequest>,
    jobs: Vec<SeqRange>,
    sink_due: bool,
    /// The message that is published next.
    next: Option<Message>,
    published: usize,
    reading: bool,
    packet_ids: u16,
    /// Records by lane, and by stream, as far as they were told.
    recorded: [u64; 4],
    recorded_of: Vec<u64>,
    /// Digests that came to the cloud and were not taken yet, and when; `None` if nobody wants them.
    digests: Option<Vec<(u64, Bytes)>>,
    /// The last stamp of the box that the cloud's graph has.
    pub(super) last_stamp: Option<Stamp>,
}

impl<'a> World<'a> {
    /// # Errors
    /// A topic filter of the policy that is malformed.
    pub(super) fn new(
        site: Site<'a>,
        messages: &'a mut dyn Iterator<Item = Message>,
        watch: &'a mut dyn FnMut(u64, Fact<'_>),
    ) -> Result<Self, RouteError> {
        let start = Start {
            epoch: EPOCH,
            seed: site.seed,
            name: site.name,
            software: "sim",
            found: Found::default(),
            budgets: site.budgets,
            policy: PolicyStart::default(),
            models: FetchStart::default(),
        };
        let streams = site.policy.streams.len();
        let next = messages.next();
        let now = Moment { service_us: 0, wall_offset_us: Some(site.calendar.from_unix_us) };
        let mut world = World {
            ways: site.links.iter().map(|link| Way::new(link, site.seed)).collect(),
            end_us: site.links.iter().map(Link::end_us).max().unwrap_or(0),
            calendar: site.calendar,
            messages,
            watch,
            models: site.models,
            gateway: Gateway::new(now, site.policy, &start)?,
            receiver: Receiver::new([CREDITS; 4]),
            now_us: 0,
            queue: BinaryHeap::new(),
            order: 0,
            connections: 0,
            disk: BTreeMap::new(),
            commits: BTreeMap::new(),
            jobs: Vec::new(),
            sink_due: false,
            next,
            published: 0,
            reading: false,
            packet_ids: 0,
            recorded: [0; 4],
            recorded_of: vec![0; streams],
            digests: site.is_federated.then(Vec::new),
            last_stamp: None,
        };
        world.connect_sensor();
        world.push(PATH_US, None, Event::Path);
        world.push(1_000_000, None, Event::Second);
        Ok(world)
    }

    /// Lets everything happen up to and with this time, but not beyond the end of the run.
    pub(super) fn live_until(&mut self, until_us: u64) {
        let end_us = self.end_us.min(until_us);
        loop {
            let next = self.next.as_ref().filter(|_| self.reading);
            let arrives_us = next.map_or(u64::MAX, |message| message.at_us.max(self.now_us));
            let event_us = self.queue.peek().map_or(u64::MAX, |Reverse(pending)| pending.at_us);
            let deadline_us = self.gateway.deadline_us().max(self.now_us + 1);
            let at_us = arrives_us.min(event_us).min(deadline_us);
            if at_us > end_us {
                break;
            }
            self.now_us = at_us;
            if event_us == at_us {
                if let Some(Reverse(pending)) = self.queue.pop() {
                    self.event(pending);
                }
            } else if arrives_us == at_us {
                self.publish();
            } else {
                self.input(Input::Tick);
            }
            self.carry_out();
        }
        self.now_us = self.now_us.max(end_us);
    }

    /// The run is over.
    pub(super) fn end(self) -> Ended {
        let unread = self.next.iter().count() + self.messages.count();
        let sent_bytes = self.ways.iter().map(Way::sent_bytes).collect();
        Ended { gateway: self.gateway, sent_bytes, unread }
    }

    /// The digests that came to the cloud since this was last asked, with their times.
    pub(super) fn take_digests(&mut self) -> Vec<(u64, Bytes)> {
        self.digests.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn push(&mut self, at_us: u64, of: Option<(usize, u64)>, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Pending { at_us, order: self.order, of, event }));
    }

    /// The time as the box sees it.
    fn moment(&self) -> Moment {
        let Calendar { from_unix_us, speed } = self.calendar;
        let ahead_us = self.now_us * (speed - 1);
        Moment { service_us: self.now_us, wall_offset_us: Some(from_unix_us.saturating_add_unsigned(ahead_us)) }
    }

    fn tell(&mut self, fact: Fact<'_>) {
        (self.watch)(self.now_us, fact);
    }

    /// Hands something to the gateway, and tells which records came of it.
    fn input(&mut self, input: Input<'_>) {
        self.gateway.handle(self.moment(), input);
        let now = Class::ALL.map(|class| self.gateway.lanes().counters(class).records);
        if now == self.recorded {
            return;
        }
        for index in 0..self.recorded_of.len() {
            let stream = index as u16;
            let count = records(&self.gateway.ingest().fates(stream));
            let fresh = count - std::mem::replace(&mut self.recorded_of[index], count);
            if fresh > 0 {
                let lane = self.gateway.policy().streams[index].class;
                let first = self.recorded[lane.index()];
                self.recorded[lane.index()] = first + fresh;
                self.tell(Fact::Recorded { lane, stream, numbers: first..first + fresh });
            }
        }
    }

    /// One sensor speaks for all: what it may not send yet waits with it.
    fn connect_sensor(&mut self) {
        self.input(Input::ClientOpened { conn: SENSOR });
        let hello = [0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 1, b's'];
        self.input(Input::ClientRead { conn: SENSOR, bytes: &hello });
        self.carry_out();
    }

    fn publish(&mut self) {
        let Some(message) = self.next.take() else { return };
        self.next = self.messages.next();
        self.packet_ids = self.packet_ids % u16::MAX + 1;
        let mut bytes = vec![0x32];
        let mut left = 2 + message.topic.len() + 2 + message.payload.len();
        loop {
            bytes.push((left % 128) as u8 | if left >= 128 { 0x80 } else { 0 });
            left /= 128;
            if left == 0 {
                break;
            }
        }
        bytes.extend((message.topic.len() as u16).to_be_bytes());
        bytes.extend(message.topic.as_bytes());
        bytes.extend(self.packet_ids.to_be_bytes());
        bytes.extend(message.payload);
        self.reading = false;
        self.tell(Fact::Published(self.published));
        self.published += 1;
        self.input(Input::ClientRead { conn: SENSOR, bytes: &bytes });
    }

    fn event(&mut self, pending: Pending) {
        if pending.of.is_some_and(|(at, connection)| self.ways[at].connection != connection) {
            return;
        }
        let (at, _) = pending.of.unwrap_or_default();
        let uplink = at as u8;
        match pending.event {
            Event::Committed(ticket) => self.committed(ticket),
            Event::Loaded(key) => {
                let block = self.disk.get(&key).cloned();
                self.input(Input::Loaded { key, block });
            }
            Event::Scored(scored) => self.input(Input::Inferred(scored)),
            Event::Connected => {
                self.ways[at].connected(self.now_us);
                self.input(Input::UplinkConnected { uplink });
            }
            Event::Arrives(packet) => {
                let arrived = self.ways[at].arrived(&packet);
                arrived.into_iter().for_each(|arrived| self.at_cloud(at, arrived));
            }
            Event::Acked(packet) => self.ways[at].acked(self.now_us, &packet),
            Event::Control(bytes) => self.input(Input::UplinkControl { uplink, bytes: &bytes }),
            Event::Sink => {
                self.sink_due = false;
                let ranges = std::mem::take(&mut self.jobs);
                self.cloud(receive::Input::Committed { ranges });
            }
            Event::Path => {
                self.push(self.now_us + PATH_US, None, Event::Path);
                for at in 0..self.ways.len() {
                    if let Some(path) = self.ways[at].path() {
                        self.input(Input::UplinkPath { uplink: at as u8, path });
                    }
                }
                self.cloud(receive::Input::Tick);
            }
            Event::Second => {
                self.push(self.now_us + 1_000_000, None, Event::Second);
                (self.watch)(self.now_us, Fact::Second(&self.gateway));
            }
        }
    }

    fn committed(&mut self, ticket: u64) {
        if let Some(request) = self.commits.remove(&ticket) {
            for range in &request.deletes {
                let last = BlockKey { first_seq: range.last_seq, ..range.key };
                let gone: Vec<_> = self.disk.range(range.key..=last).map(|(&key, _)| key).collect();
                gone.iter().for_each(|key| drop(self.disk.remove(key)));
            }
            self.disk.extend(request.puts.into_iter().map(|put| (put.header.key, put.block)));
        }
        self.input(Input::Committed { ticket, result: Ok(()) });
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.gateway.poll() {
            match output {
                Output::ClientRead { .. } => self.reading = true,
                Output::Authenticate { conn, .. } => self.input(Input::Authenticated { conn, result: Ok(UserIndex(0)) }),
                Output::Commit(request) => {
                    let ticket = request.ticket;
                    request.voids.iter().for_each(|void| self.tell(Fact::GaveUp(void)));
                    self.commits.insert(ticket, request);
                    self.push(self.now_us + COMMIT_US, None, Event::Committed(ticket));
                }
                Output::Load { key } => self.push(self.now_us + LOAD_US, None, Event::Loaded(key)),
                Output::Infer(job) => {
                    let verdict = self.score(&job);
                    let scored = Scored { job: job.job, window: job.window, verdict };
                    self.push(self.now_us + SCORE_US, None, Event::Scored(scored));
                }
                Output::Connect { uplink } => self.connect(usize::from(uplink)),
                Output::Disconnect { uplink } => self.disconnect(usize::from(uplink)),
                Output::ControlWrite { uplink, bytes } => {
                    if let Some(transport) = &mut self.ways[usize::from(uplink)].transport {
                        transport.control(bytes);
                    }
                }
                Output::SendBlock { uplink, flow, block } => {
                    if let Some(transport) = &mut self.ways[usize::from(uplink)].transport {
                        transport.send(flow, block);
                    }
                }
                Output::ClientWrite { .. } | Output::ClientClose { .. } => {}
                // Its messages come from no broker.
                Output::BrokerConnect { .. } | Output::BrokerClose { .. } => {}
                // Its cloud offers no policies.
                Output::CheckPolicy { .. } | Output::Offload { .. } | Output::CancelOffload { .. } => {}
                Output::Fetch(_) | Output::Event(_) => {}
            }
        }
        self.advance();
    }

    fn score(&mut self, job: &InferJob) -> Option<Verdict> {
        let model = self.models.get_mut(usize::from(job.model))?;
        let origin = Origin { device: job.source.into(), start_us: job.start_us, end_us: job.end_us };
        let answer = model.score_rows(&[Row { window: &job.window, origin: Some(origin) }]).pop()?.ok()?;
        let labels = &model.manifest().output.labels;
        let label = answer.verdict.label.and_then(|index| labels.get(index)).map_or("", String::as_str).into();
        Some(Verdict { label, score: answer.verdict.score, confidence: answer.verdict.confidence, by: None })
    }
}

/// Records that a stream's fates stand for.
fn records(fates: &FateCounters) -> u64 {
    fates.kept + fates.aggregates + fates.verdicts + fates.windows
}
