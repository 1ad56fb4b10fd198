//! The policy `weir`: the real gateway on virtual time, from MQTT packets to durable acknowledgements.
//!
//! [`Gateway`] runs here byte for byte as on the box, with the cloud's [`Receiver`] at the far end. What is simulated is what
//! the shells do: sockets that carry MQTT, a disk that takes a while, a [`Transport`] over the link, and a database that
//! commits what has come. A sensor's record is one QoS 1 message of packed values whose bytes do not compress, so that a
//! byte of a record is a byte on the link, as the bound assumes.
//!
//! In an anomaly a sensor publishes on a topic of its own, which is a stream with the weight of such records: every policy
//! knows what a record is worth, and this is how a configuration says it.
//!
//! What a record that came at a coarser level is worth follows from its block: the part of the raw bytes of its stream that
//! the block still has, on the stream's ladder.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::{Bytes, BytesMut};
use weir_logic::block::{BlockHeader, Codec, RecordKind};
use weir_logic::gateway::{Gateway, Input, Output, PolicyStart, Start};
use weir_logic::health::PathStats;
use weir_logic::ids::{BlockKey, Class, Epoch, PerClass};
use weir_logic::ingest::{ConnId, Moment};
use weir_logic::lanes::Found;
use weir_logic::mqtt::UserIndex;
use weir_logic::price::PriceLimits;
use weir_logic::receive::{self, Known, Now, Receiver, SessionId};
use weir_logic::store::SeqRange;
use weir_logic::wire::{self, Body};

use super::arrivals::{Arrival, Arrivals};
use super::site::{payload, payload_len, policy};
use super::trace::Link;
use super::transport::{Arrived, Packet, Transport};
use super::workload::{LEVEL_BYTES, StreamSpec, Workload};

/// A transaction of the disk, and a block read from it, in microseconds: a card of the better kind.
const COMMIT_US: u64 = 5_000;
const LOAD_US: u64 = 2_000;
/// The cloud's database commits what has come so often.
const SINK_US: u64 = 20_000;
const PATH_US: u64 = 250_000;
/// Credits as the cloud gives them when it is well.
const CREDITS: u64 = 64 << 20;
const UNIX_US: i64 = 1_790_000_000_000_000;
const EPOCH: Epoch = Epoch(1);

/// A record as it came to the cloud.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Delivery {
    /// Index in the arrivals.
    pub record: u32,
    /// When, in microseconds of the run.
    pub at_us: u64,
    /// Part of its raw worth that its level left.
    pub fidelity: f64,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Run {
    /// Every record that arrived before the end, at whatever level.
    pub deliveries: Vec<Delivery>,
    /// Bytes that left on the link, headers included.
    pub sent_bytes: u64,
    /// Records evicted, by class.
    pub evicted: PerClass<u64>,
    /// Records thinned, by class.
    pub thinned: PerClass<u64>,
    /// Price of a byte, once a second.
    pub prices: Vec<f64>,
    /// Bytes held, by class, once a second.
    pub held: Vec<PerClass<u64>>,
}

#[derive(Debug)]
enum Event {
    Committed(u64),
    Loaded(BlockKey),
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

/// Runs the gateway over a link with these arrivals.
pub fn run(link: &Link, workload: &Workload, arrivals: &Arrivals, price: PriceLimits, seed: u64) -> Run {
    let mut world = World::new(link, workload, arrivals, price, seed);
    world.live();
    world.run
}

struct World<'a> {
    link: &'a Link,
    workload: &'a Workload,
    arrivals: &'a [Arrival],
    gateway: Gateway,
    receiver: Receiver,
    now_us: u64,
    queue: BinaryHeap<Reverse<Pending>>,
    order: u64,
    connection: u64,
    transport: Option<Transport>,
    to_cloud: BytesMut,
    disk: BTreeMap<BlockKey, Bytes>,
    commits: BTreeMap<u64, weir_logic::store::CommitRequest>,
    jobs: Vec<SeqRange>,
    sink_due: bool,
    /// By lane: the record of each sequence number.
    records: PerClass<Vec<u32>>,
    reading: bool,
    packet_ids: u16,
    codec: Codec,
    run: Run,
}

impl<'a> World<'a> {
    fn new(link: &'a Link, workload: &'a Workload, arrivals: &'a Arrivals, price: PriceLimits, seed: u64) -> Self {
        let found = Found::default();
        let start =
            Start { epoch: EPOCH, seed, name: "sim", software: "sim", found, budgets: &[], policy: PolicyStart::default() };
        let gateway = Gateway::new(moment(0), policy(link, workload, price), &start).expect("its own filters are right");
        World {
            link,
            workload,
            arrivals: &arrivals.records,
            gateway,
            receiver: Receiver::new([CREDITS; 4]),
            now_us: 0,
            queue: BinaryHeap::new(),
            order: 0,
            connection: 0,
            transport: None,
            to_cloud: BytesMut::new(),
            disk: BTreeMap::new(),
            commits: BTreeMap::new(),
            jobs: Vec::new(),
            sink_due: false,
            records: Default::default(),
            reading: false,
            packet_ids: 0,
            codec: Codec::default(),
            run: Run::default(),
        }
    }

    fn live(&mut self) {
        self.connect_sensor();
        self.push(PATH_US, 0, Event::Path);
        self.push(1_000_000, 0, Event::Second);
        let mut next = 0;
        let end_us = self.link.end_us();
        loop {
            let arrives_us = self.arrivals.get(next).filter(|_| self.reading).map_or(u64::MAX, |a| a.at_us.max(self.now_us));
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
                self.publish(next);
                next += 1;
            } else {
                self.gateway.handle(moment(at_us), Input::Tick);
            }
            self.carry_out();
        }
        self.run.sent_bytes += self.transport.as_ref().map_or(0, |transport| transport.sent_bytes);
        for class in Class::ALL {
            let counters = self.gateway.lanes().counters(class);
            (self.run.evicted[class.index()], self.run.thinned[class.index()]) = (counters.evicted, counters.thinned);
        }
    }

    fn push(&mut self, at_us: u64, connection: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Pending { at_us, order: self.order, connection, event }));
    }

    /// One sensor speaks for all: what it may not send yet waits with it.
    fn connect_sensor(&mut self) {
        let conn = ConnId(1);
        self.gateway.handle(moment(0), Input::ClientOpened { conn });
        let hello = [0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 1, b's'];
        self.gateway.handle(moment(0), Input::ClientRead { conn, bytes: &hello });
        self.carry_out();
    }

    fn publish(&mut self, index: usize) {
        let arrival = &self.arrivals[index];
        let stream = &self.workload.stream[usize::from(arrival.stream)];
        self.records[stream.class().index()].push(index as u32);
        self.packet_ids = self.packet_ids % u16::MAX + 1;
        let mode = if arrival.weight == stream.weight { "calm" } else { "anomaly" };
        let topic = format!("{}/{mode}/{}", arrival.stream, arrival.device);
        let payload = payload(index as u32, payload_len(stream, arrival.bytes));
        let mut bytes = vec![0x32];
        let mut left = 2 + topic.len() + 2 + payload.len();
        loop {
            bytes.push((left % 128) as u8 | if left >= 128 { 0x80 } else { 0 });
            left /= 128;
            if left == 0 {
                break;
            }
        }
        bytes.extend((topic.len() as u16).to_be_bytes());
        bytes.extend(topic.as_bytes());
        bytes.extend(self.packet_ids.to_be_bytes());
        bytes.extend(payload);
        self.reading = false;
        self.gateway.handle(moment(self.now_us), Input::ClientRead { conn: ConnId(1), bytes: &bytes });
    }

    fn event(&mut self, pending: Pending) {
        let now = moment(self.now_us);
        if pending.connection != 0 && pending.connection != self.connection {
            return;
        }
        match pending.event {
            Event::Committed(ticket) => {
                if let Some(request) = self.commits.remove(&ticket) {
                    for range in &request.deletes {
                        let last = BlockKey { first_seq: range.last_seq, ..range.key };
                        let gone: Vec<_> = self.disk.range(range.key..=last).map(|(&key, _)| key).collect();
                        gone.iter().for_each(|key| drop(self.disk.remove(key)));
                    }
                    self.disk.extend(request.puts.into_iter().map(|put| (put.header.key, put.block)));
                }
                self.gateway.handle(now, Input::Committed { ticket, result: Ok(()) });
            }
            Event::Loaded(key) => self.gateway.handle(now, Input::Loaded { key, block: self.disk.get(&key).cloned() }),
            Event::Connected => {
                let rtt_us = self.link.delay_us + self.link.profile.down.delay.as_micros();
                self.transport = Some(Transport::new(self.now_us, rtt_us.max(1)));
                self.to_cloud.clear();
                self.gateway.handle(now, Input::UplinkConnected { uplink: 0 });
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
            Event::Control(bytes) => self.gateway.handle(now, Input::UplinkControl { uplink: 0, bytes: &bytes }),
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
                    self.gateway.handle(now, Input::UplinkPath { uplink: 0, path });
                }
                self.cloud(receive::Input::Tick);
            }
            Event::Second => {
                self.push(self.now_us + 1_000_000, 0, Event::Second);
                self.run.prices.push(self.gateway.plan().lambda);
                let lanes = self.gateway.lanes();
                self.run.held.push(Class::ALL.map(|class| lanes.status(class).bytes));
            }
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.gateway.poll() {
            match output {
                Output::ClientRead { .. } => self.reading = true,
                Output::Authenticate { conn, .. } => {
                    self.gateway.handle(moment(self.now_us), Input::Authenticated { conn, result: Ok(UserIndex(0)) });
                }
                Output::Commit(request) => {
                    let ticket = request.ticket;
                    self.commits.insert(ticket, request);
                    self.push(self.now_us + COMMIT_US, 0, Event::Committed(ticket));
                }
                Output::Load { key } => self.push(self.now_us + LOAD_US, 0, Event::Loaded(key)),
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
                Output::ClientWrite { .. } | Output::ClientClose { .. } | Output::Infer(_) => {}
                // Its cloud offers no policies.
                Output::CheckPolicy { .. } | Output::Event(_) => {}
            }
        }
        self.advance();
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
            self.gateway.handle(moment(self.now_us), Input::UplinkWritten { uplink: 0, flow, len });
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
        let rtt_us = self.link.delay_us + self.link.profile.down.delay.as_micros();
        if let Some(left_us) = left_us {
            self.push(left_us + rtt_us, self.connection, Event::Connected);
        }
    }

    fn disconnect(&mut self) {
        let session = SessionId(self.connection);
        self.connection += 1;
        if let Some(transport) = self.transport.take() {
            self.run.sent_bytes += transport.sent_bytes;
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
                    self.credit(&store);
                    let key = store.header.key;
                    let range = |&(first_seq, last_seq): &(u64, u64)| SeqRange { key: BlockKey { first_seq, ..key }, last_seq };
                    self.jobs.extend(store.takes.iter().map(range));
                    self.commit_soon();
                }
                receive::Output::StoreVoid(void) => {
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

    /// Credits every record of a block's range with what the block still says of its stream.
    fn credit(&mut self, store: &receive::Store) {
        let at = store.header.key.lane.index();
        let kind = |arrival: &Arrival| (arrival.stream, arrival.weight.to_bits());
        let mut whole: BTreeMap<(u16, u64), f64> = BTreeMap::new();
        let mut kept: BTreeMap<(u16, u64), f64> = BTreeMap::new();
        for &(first, last) in &store.takes {
            for &record in &self.records[at][first as usize..=last as usize] {
                let arrival = &self.arrivals[record as usize];
                *whole.entry(kind(arrival)).or_default() += f64::from(arrival.bytes);
            }
        }
        let (_, records) = self.codec.open(&store.block).expect("a whole block");
        for record in records {
            let record = record.expect("a whole record");
            if !store.takes.iter().any(|&(first, last)| (first..=last).contains(&record.seq)) {
                continue;
            }
            let index = self.records[at][record.seq as usize];
            if record.kind == RecordKind::Raw {
                assert!(record.payload.starts_with(&u64::from(index).to_le_bytes()), "each message became a record, in order");
            }
            let arrival = &self.arrivals[index as usize];
            let bytes = match record.kind {
                RecordKind::Raw => f64::from(arrival.bytes),
                _ => record.payload.len() as f64,
            };
            *kept.entry(kind(arrival)).or_default() += bytes;
        }
        for &(first, last) in &store.takes {
            for seq in first..=last {
                let record = self.records[at][seq as usize];
                let arrival = &self.arrivals[record as usize];
                let part = kept.get(&kind(arrival)).copied().unwrap_or(0.0) / whole[&kind(arrival)].max(1.0);
                let fidelity = worth(&self.workload.stream[usize::from(arrival.stream)], part.min(1.0));
                self.run.deliveries.push(Delivery { record, at_us: self.now_us, fidelity });
            }
        }
    }
}

/// Worth of a part of the raw bytes, on the ladder and straight between its steps; of less than the last step in proportion.
fn worth(stream: &StreamSpec, part: f64) -> f64 {
    let steps: Vec<(f64, f64)> = LEVEL_BYTES.iter().copied().zip(stream.fidelity.iter().copied()).collect();
    let mut above = (1.0, 1.0);
    for step in steps.into_iter().chain([(0.0, 0.0)]) {
        if part >= step.0 {
            let share = if above.0 > step.0 { (part - step.0) / (above.0 - step.0) } else { 1.0 };
            return step.1 + share * (above.1 - step.1);
        }
        above = step;
    }
    0.0
}

fn moment(now_us: u64) -> Moment {
    Moment { service_us: now_us, wall_offset_us: Some(UNIX_US) }
}

/// Worth of what was delivered, by the workload's value model.
pub fn value(workload: &Workload, arrivals: &Arrivals, deliveries: &[Delivery]) -> f64 {
    let of = |delivery: &Delivery| {
        let arrival = &arrivals.records[delivery.record as usize];
        let stream = &workload.stream[usize::from(arrival.stream)];
        let lateness_us = delivery.at_us.saturating_sub(arrival.at_us);
        arrival.weight * f64::from(arrival.bytes) * 8e-6 * delivery.fidelity * stream.usefulness(lateness_us)
    };
    deliveries.iter().map(of).sum()
}
