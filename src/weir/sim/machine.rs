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

use bytes::{Bytes, BytesMut};
use weir_infer::{Model, Origin, Row};
use weir_logic::block::BlockHeader;
use weir_logic::gateway::{Gateway, Input, Output, PolicyStart, Start};
use weir_logic::health::PathStats;
use weir_logic::ids::{BlockKey, Class, Epoch, Void};
use weir_logic::ingest::{ConnId, FateCounters, InferJob, Moment, RouteError, Scored, Verdict};
use weir_logic::lanes::Found;
use weir_logic::mqtt::UserIndex;
use weir_logic::policy::Policy;
use weir_logic::receive::{self, Known, Now, Receiver, SessionId};
use weir_logic::store::{CommitRequest, SeqRange};
use weir_logic::wire::{self, Body};

use super::trace::Link;
use super::transport::{Arrived, Packet, Transport};

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

/// A box and its link.
pub(super) struct Site<'a> {
    pub(super) link: &'a Link,
    pub(super) policy: Policy,
    /// By the index that the policy's streams name.
    pub(super) models: Vec<Model>,
    pub(super) seed: u64,
}

/// How a run ended.
pub(super) struct Ended {
    /// The box as it was then.
    pub(super) gateway: Gateway,
    /// Bytes that left on the link, headers included.
    pub(super) sent_bytes: u64,
    /// Messages that the box could not take before the end: it read no further.
    pub(super) unread: usize,
}

/// Runs a box until the end of its link's run.
///
/// # Errors
/// A topic filter of the policy that is malformed.
pub(super) fn run(
    site: Site<'_>,
    messages: &mut dyn Iterator<Item = Message>,
    watch: &mut dyn FnMut(u64, Fact<'_>),
) -> Result<Ended, RouteError> {
    let mut world = World::new(site, messages, watch)?;
    world.live();
    let unread = world.next.iter().count() + world.messages.count();
    let sent_bytes = world.sent_bytes + world.transport.as_ref().map_or(0, |transport| transport.sent_bytes);
    Ok(Ended { gateway: world.gateway, sent_bytes, unread })
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
    /// The connection it belongs to; 0 for none.
    connection: u64,
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

struct World<'a> {
    link: &'a Link,
    messages: &'a mut dyn Iterator<Item = Message>,
    watch: &'a mut dyn FnMut(u64, Fact<'_>),
    models: Vec<Model>,
    gateway: Gateway,
    receiver: Receiver,
    now_us: u64,
    queue: BinaryHeap<Reverse<Pending>>,
    order: u64,
    connection: u64,
    transport: Option<Transport>,
    sent_bytes: u64,
    to_cloud: BytesMut,
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
}

impl<'a> World<'a> {
    fn new(
        site: Site<'a>,
        messages: &'a mut dyn Iterator<Item = Message>,
        watch: &'a mut dyn FnMut(u64, Fact<'_>),
    ) -> Result<Self, RouteError> {
        let start = Start {
            epoch: EPOCH,
            seed: site.seed,
            name: "sim",
            software: "sim",
            found: Found::default(),
            budgets: &[],
            policy: PolicyStart::default(),
        };
        let streams = site.policy.streams.len();
        let next = messages.next();
        Ok(World {
            link: site.link,
            messages,
            watch,
            models: site.models,
            gateway: Gateway::new(moment(0), site.policy, &start)?,
            receiver: Receiver::new([CREDITS; 4]),
            now_us: 0,
            queue: BinaryHeap::new(),
            order: 0,
            connection: 0,
            transport: None,
            sent_bytes: 0,
            to_cloud: BytesMut::new(),
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
        })
    }

    fn live(&mut self) {
        self.connect_sensor();
        self.push(PATH_US, 0, Event::Path);
        self.push(1_000_000, 0, Event::Second);
        let end_us = self.link.end_us();
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
    }

    fn push(&mut self, at_us: u64, connection: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Pending { at_us, order: self.order, connection, event }));
    }

    fn tell(&mut self, fact: Fact<'_>) {
        (self.watch)(self.now_us, fact);
    }

    /// Hands something to the gateway, and tells which records came of it.
    fn input(&mut self, input: Input<'_>) {
        self.gateway.handle(moment(self.now_us), input);
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
        if pending.connection != 0 && pending.connection != self.connection {
            return;
        }
        match pending.event {
            Event::Committed(ticket) => self.committed(ticket),
            Event::Loaded(key) => {
                let block = self.disk.get(&key).cloned();
                self.input(Input::Loaded { key, block });
            }
            Event::Scored(scored) => self.input(Input::Inferred(scored)),
            Event::Connected => {
                self.transport = Some(Transport::new(self.now_us, self.link));
                self.to_cloud.clear();
                self.input(Input::UplinkConnected { uplink: 0 });
            }
            Event::Arrives(packet) => {
                let arrived = self.transport.as_mut().map(|transport| transport.arrived(&packet)).unwrap_or_default();
                arrived.into_iter().for_each(|arrived| self.at_cloud(arrived));
            }
            Event::Acked(packet) => {
                if let Some(transport) = &mut self.transport {
                    transport.acked(self.now_us, &packet);
                }
            }
            Event::Control(bytes) => self.input(Input::UplinkControl { uplink: 0, bytes: &bytes }),
            Event::Sink => {
                self.sink_due = false;
                let ranges = std::mem::take(&mut self.jobs);
                self.cloud(receive::Input::Committed { ranges });
            }
            Event::Path => {
                self.push(self.now_us + PATH_US, 0, Event::Path);
                if let Some(transport) = &self.transport {
                    let (rtt_us, rtt_min_us) = transport.rtt_us();
                    let path = PathStats {
                        rtt_us,
                        rtt_min_us,
                        received_packets: transport.received_packets,
                        sent_packets: transport.sent_packets,
                        sent_bytes: transport.sent_bytes,
                        cwnd_bytes: transport.window(),
                        ..PathStats::default()
                    };
                    self.input(Input::UplinkPath { uplink: 0, path });
                }
                self.cloud(receive::Input::Tick);
            }
            Event::Second => {
                self.push(self.now_us + 1_000_000, 0, Event::Second);
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
                    self.push(self.now_us + COMMIT_US, 0, Event::Committed(ticket));
                }
                Output::Load { key } => self.push(self.now_us + LOAD_US, 0, Event::Loaded(key)),
                Output::Infer(job) => {
                    let verdict = self.score(&job);
                    let scored = Scored { job: job.job, window: job.window, verdict };
                    self.push(self.now_us + SCORE_US, 0, Event::Scored(scored));
                }
                Output::Connect { .. } => self.connect(),
                Output::Disconnect { .. } => self.disconnect(),
                Output::ControlWrite { bytes, .. } => {
                    if let Some(transport) = &mut self.transport {
                        transport.control(bytes);
                    }
                }
                Output::SendBlock { flow, block, .. } => {
                    if let Some(transport) = &mut self.transport {
                        transport.send(flow, block);
                    }
                }
                Output::ClientWrite { .. } | Output::ClientClose { .. } => {}
                // Its messages come from no broker.
                Output::BrokerConnect { .. } | Output::BrokerClose { .. } => {}
                // Its cloud offers no policies.
                Output::CheckPolicy { .. } | Output::Offload { .. } | Output::CancelOffload { .. } | Output::Event(_) => {}
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
        Some(Verdict { label, score: answer.verdict.score, confidence: answer.verdict.confidence })
    }

    fn advance(&mut self) {
        let (mut packets, mut written) = (Vec::new(), Vec::new());
        if let Some(transport) = &mut self.transport {
            transport.advance(self.now_us, self.link, &mut packets, &mut written);
        }
        for packet in packets {
            self.push(packet.arrives_us, self.connection, Event::Arrives(packet));
            self.push(packet.acked_us, self.connection, Event::Acked(packet));
        }
        let has_written = !written.is_empty();
        for (flow, len) in written {
            self.input(Input::UplinkWritten { uplink: 0, flow, len });
        }
        if has_written {
            self.carry_out();
        }
    }

    /// A handshake: a packet there, one back, and one there again with the first words.
    fn connect(&mut self) {
        self.connection += 1;
        let hello = 1_300.0;
        let left_us = self.link.service.time_of_us(self.link.service.bytes_until(self.now_us) + hello);
        if let Some(left_us) = left_us {
            self.push(left_us + self.link.rtt_us(), self.connection, Event::Connected);
        }
    }

    fn disconnect(&mut self) {
        let session = SessionId(self.connection);
        self.connection += 1;
        if let Some(transport) = self.transport.take() {
            self.sent_bytes += transport.sent_bytes;
            self.cloud(receive::Input::Closed { session });
        }
    }

    fn at_cloud(&mut self, arrived: Arrived) {
        let session = SessionId(self.connection);
        match arrived {
            Arrived::Control(bytes) => {
                self.to_cloud.extend_from_slice(&bytes);
                while let Ok(Some(message)) = wire::take_control(&mut self.to_cloud) {
                    match message.body {
                        Some(Body::Hello(hello)) => {
                            self.cloud(receive::Input::Hello { session, hello, known: Known::default() });
                        }
                        Some(body) => self.cloud(receive::Input::Control { session, body }),
                        None => {}
                    }
                }
            }
            Arrived::Block(stream, block) => {
                let header = BlockHeader::parse(&block).expect("blocks arrive whole");
                self.cloud(receive::Input::Block { session, stream, header, block });
            }
        }
    }

    fn cloud(&mut self, input: receive::Input) {
        let now = Now { mono_us: self.now_us, unix_us: UNIX_US + self.now_us as i64 };
        self.receiver.handle(now, input);
        let down_us = self.link.profile.down.delay.as_micros();
        while let Some(output) = self.receiver.poll() {
            match output {
                receive::Output::Send { session, body } => {
                    let mut bytes = Vec::new();
                    wire::encode_control(body, &mut bytes);
                    self.push(self.now_us + down_us, session.0, Event::Control(bytes));
                }
                receive::Output::Store(store) => {
                    self.tell(Fact::Stored(&store));
                    let key = store.header.key;
                    let range = |&(first_seq, last_seq): &(u64, u64)| SeqRange { key: BlockKey { first_seq, ..key }, last_seq };
                    self.jobs.extend(store.takes.iter().map(range));
                    self.commit_soon();
                }
                receive::Output::StoreVoid(void) => {
                    // It may have been told before it was written.
                    self.tell(Fact::GaveUp(&void));
                    self.jobs.push(SeqRange { key: void.key, last_seq: void.last_seq });
                    self.commit_soon();
                }
                receive::Output::Close { .. }
                | receive::Output::EpochOpened { .. }
                | receive::Output::EpochsClosed { .. }
                | receive::Output::Alert(_) => {}
            }
        }
    }

    fn commit_soon(&mut self) {
        if !std::mem::replace(&mut self.sink_due, true) {
            self.push(self.now_us + SINK_US, 0, Event::Sink);
        }
    }
}

/// Records that a stream's fates stand for.
fn records(fates: &FateCounters) -> u64 {
    fates.kept + fates.aggregates + fates.verdicts + fates.windows
}

fn moment(now_us: u64) -> Moment {
    Moment { service_us: now_us, wall_offset_us: Some(UNIX_US) }
}
