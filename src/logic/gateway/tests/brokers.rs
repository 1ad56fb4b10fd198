//! Brokers that repeat what they must, connections that break anywhere, a box that crashes: nothing is lost, and what has
//! QoS 2 is stored once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::super::*;
use super::client::ClientPlan;
use super::rng::Rng;
use super::scenario::Scenario;
use super::store::Store;
use crate::block::Codec;
use crate::ids::Class;
use crate::ingest::{BrokerIndex, ConnId};
use crate::lanes::Durability;
use crate::mqtt::{SubscriberOptions, Version};
use crate::policy::BrokerPolicy;
use crate::store::{CommitRequest, StoreError};

/// Steps of a run until troubles end.
const STEPS: u64 = 1_500;
/// Steps in which all must be delivered after that.
const STEPS_TO_END: u64 = 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// PUBLISH was sent, or is to be sent again.
    Published,
    /// PUBREC came: PUBREL was sent.
    Released,
}

#[derive(Debug, Clone, Copy)]
struct Message {
    id: u64,
    qos: u8,
    stage: Stage,
}

/// A broker with one session, whose messages are of one class.
struct Broker {
    class: Class,
    v5: bool,
    window: usize,
    /// It takes the lowest packet id that is free, not the next.
    reuses_ids: bool,
    queue: VecDeque<Message>,
    in_flight: VecDeque<(u16, Message)>,
    next_id: u16,
    has_session: bool,
    conn: Option<Socket>,
}

struct Socket {
    conn: u64,
    to_gateway: VecDeque<u8>,
    from_gateway: Vec<u8>,
    granted: bool,
    is_subscribed: bool,
}

impl Broker {
    fn new(class: Class, rng: &mut Rng) -> Broker {
        let window = rng.pick(&[1, 3, 20, 200]);
        let (v5, reuses_ids) = (rng.percent(50), rng.percent(50));
        let (queue, in_flight) = (VecDeque::new(), VecDeque::new());
        Broker { class, v5, window, reuses_ids, queue, in_flight, next_id: 0, has_session: false, conn: None }
    }

    fn take_id(&mut self) -> u16 {
        let used: BTreeSet<u16> = self.in_flight.iter().map(|(id, _)| *id).collect();
        if self.reuses_ids {
            return (1..).find(|id| !used.contains(id)).expect("the window is smaller than all ids");
        }
        loop {
            self.next_id = self.next_id % 300 + 1;
            if !used.contains(&self.next_id) {
                return self.next_id;
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(socket) = &mut self.conn {
            socket.to_gateway.extend(bytes);
        }
    }

    fn publish(&mut self, packet_id: u16, message: Message, dup: bool, sends: &mut BTreeMap<u64, u32>) {
        *sends.entry(message.id).or_default() += 1;
        let mut body = Vec::new();
        let topic = format!("raw/{}/d", self.class.name());
        body.extend((topic.len() as u16).to_be_bytes());
        body.extend(topic.as_bytes());
        if message.qos > 0 {
            body.extend(packet_id.to_be_bytes());
        }
        if self.v5 {
            body.push(0);
        }
        body.extend(format!("{} and so on", message.id).as_bytes());
        let header = 0x30 | message.qos << 1 | u8::from(dup) << 3;
        self.write(&[&[header, body.len() as u8][..], &body].concat());
    }

    /// Sends as many new messages as the window takes.
    fn pump(&mut self, sends: &mut BTreeMap<u64, u32>) {
        while self.conn.as_ref().is_some_and(|conn| conn.is_subscribed) && self.in_flight.len() < self.window {
            let Some(message) = self.queue.pop_front() else { return };
            let id = self.take_id();
            self.publish(id, message, false, sends);
            self.in_flight.push_back((id, message));
        }
    }

    /// What the box wrote has arrived.
    fn hear(&mut self, sends: &mut BTreeMap<u64, u32>) {
        while let Some(socket) = &mut self.conn {
            let Some((header, body)) = take_packet(&mut socket.from_gateway) else { return };
            let id = || u16::from_be_bytes([body[0], body[1]]);
            match header {
                0x10 => {
                    let present = std::mem::replace(&mut self.has_session, true);
                    self.write(
                        &[&[0x20, 2 + u8::from(self.v5), u8::from(present), 0][..], &[0][..usize::from(self.v5)]].concat(),
                    );
                    // A session that is there begins at once.
                    if present {
                        self.conn.as_mut().expect("it is connected").is_subscribed = true;
                    }
                    for (id, message) in self.in_flight.clone() {
                        match message.stage {
                            Stage::Published => self.publish(id, message, true, sends),
                            Stage::Released => self.write(&[&[0x62, 2][..], &id.to_be_bytes()].concat()),
                        }
                    }
                }
                0x82 => {
                    let granted: &[u8] = if self.v5 { &[0, 2] } else { &[2] };
                    self.write(&[&[0x90, 2 + granted.len() as u8][..], &id().to_be_bytes(), granted].concat());
                    self.conn.as_mut().expect("it is connected").is_subscribed = true;
                }
                0x40 => {
                    let at = self.in_flight.iter().position(|(own, _)| *own == id()).expect("a PUBACK for what is in flight");
                    let (_, message) = self.in_flight.remove(at).expect("just found");
                    assert_eq!(message.qos, 1);
                }
                0x50 => {
                    let of = self.in_flight.iter_mut().find(|(own, _)| *own == id()).expect("a PUBREC for what is in flight");
                    assert_eq!(of.1.qos, 2);
                    of.1.stage = Stage::Released;
                    self.write(&[&[0x62, 2][..], &id().to_be_bytes()].concat());
                }
                0x70 => {
                    let at = self.in_flight.iter().position(|(own, _)| *own == id()).expect("a PUBCOMP for what is in flight");
                    assert_eq!(self.in_flight.remove(at).expect("just found").1.stage, Stage::Released);
                }
                0xc0 => self.write(&[0xd0, 0]),
                0xe0 => self.conn = None,
                other => panic!("packet {other:#04x} from a subscriber"),
            }
        }
    }
}

fn take_packet(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (&header, &len) = (bytes.first()?, bytes.get(1)?);
    assert!(len < 128, "only short packets are written here");
    let end = 2 + usize::from(len);
    if bytes.len() < end {
        return None;
    }
    let body = bytes[2..end].to_vec();
    bytes.drain(..end);
    Some((header, body))
}

/// One box with a broker for each class, without an uplink.
struct Yard {
    rng: Rng,
    now_us: u64,
    gateway: Option<Gateway>,
    policy: Policy,
    store: Store,
    codec: Codec,
    committing: Option<CommitRequest>,
    asked: Vec<(BrokerIndex, u64)>,
    brokers: Vec<Broker>,
    next_conn: u64,
    published: BTreeMap<u64, u8>,
    sends: BTreeMap<u64, u32>,
    crashes: u64,
    deduplicated: u64,
}

impl Yard {
    fn new(seed: u64) -> Yard {
        let mut rng = Rng(seed);
        let client = ClientPlan { v5: false, inflight_max: 1, messages: 0, gap_us: 1, len_max: 1, qos0_percent: 0, only: None };
        let durability = rng.pick(&[Durability::Disk, Durability::Through]);
        let mut scenario = Scenario::calm(durability, client);
        scenario.uplinks = 0;
        let mut policy = scenario.policy();
        let brokers: Vec<Broker> = Class::ALL.into_iter().map(|class| Broker::new(class, &mut rng)).collect();
        policy.brokers = brokers.iter().enumerate().map(|(at, broker)| broker_policy(at, broker)).collect();
        Yard {
            rng,
            now_us: 5_000_000,
            gateway: None,
            policy,
            store: Store::new(),
            codec: Codec::default(),
            committing: None,
            asked: Vec::new(),
            brokers,
            next_conn: 1,
            published: BTreeMap::new(),
            sends: BTreeMap::new(),
            crashes: 0,
            deduplicated: 0,
        }
    }

    fn moment(&self) -> Moment {
        Moment { service_us: self.now_us, wall_offset_us: None }
    }

    fn start(&mut self) {
        let epoch = Epoch(self.rng.next());
        self.store.epochs.push(epoch);
        let (held, packet_ids) = (self.store.held(), self.store.packet_ids());
        let found = Found { held: &held, packet_ids: &packet_ids, ..Found::default() };
        let (name, software) = ("box", "test");
        let start = Start {
            epoch,
            seed: epoch.0,
            name,
            software,
            found,
            budgets: &[],
            policy: PolicyStart::default(),
            models: FetchStart::default(),
        };
        self.gateway = Some(Gateway::new(self.moment(), self.policy.clone(), &start).expect("sound filters"));
    }

    fn handle(&mut self, input: Input<'_>) {
        let now = self.moment();
        let Some(gateway) = &mut self.gateway else { return };
        gateway.handle(now, input);
        while let Some(output) = gateway.poll() {
            match output {
                Output::BrokerConnect { broker, generation } => self.asked.push((broker, generation)),
                Output::ClientWrite { conn, bytes } => {
                    if let Some(socket) = socket(&mut self.brokers, conn) {
                        socket.from_gateway.extend(bytes);
                    }
                }
                Output::ClientRead { conn } => {
                    if let Some(socket) = socket(&mut self.brokers, conn) {
                        socket.granted = true;
                    }
                }
                Output::BrokerClose { conn } => {
                    for broker in &mut self.brokers {
                        broker.conn.take_if(|socket| socket.conn == conn.0);
                    }
                }
                Output::Commit(request) => {
                    assert!(self.committing.replace(request).is_none(), "one transaction at a time");
                }
                _ => {}
            }
        }
    }

    fn step(&mut self, is_calm: bool) {
        self.now_us += self.rng.range(1, 20_000);
        match self.rng.range(0, 99) {
            0..10 if !is_calm => self.produce(),
            10..13 if !is_calm => self.break_one(),
            13 if !is_calm && self.rng.percent(40) => self.crash(),
            14..30 => self.commit(is_calm),
            30..40 => {
                if let Some((broker, generation)) = self.asked.pop() {
                    self.connect(broker, generation, is_calm);
                }
            }
            40..70 => self.read(),
            70..90 => {
                let at = self.rng.range(0, self.brokers.len() as u64 - 1) as usize;
                self.brokers[at].hear(&mut self.sends);
                self.brokers[at].pump(&mut self.sends);
            }
            _ => self.handle(Input::Tick),
        }
        let due = self.gateway.as_mut().map(Gateway::deadline_us);
        if due.is_some_and(|due_us| due_us <= self.now_us) {
            self.handle(Input::Tick);
        }
    }

    fn produce(&mut self) {
        for _ in 0..self.rng.range(1, 5) {
            let (at, qos) = (self.rng.range(0, 3) as usize, self.rng.range(1, 2) as u8);
            let id = 1_000_001 + self.published.len() as u64;
            self.published.insert(id, qos);
            self.brokers[at].queue.push_back(Message { id, qos, stage: Stage::Published });
        }
    }

    /// A connection breaks: what is under way on it is gone, some of what was written had arrived.
    fn break_one(&mut self) {
        let at = self.rng.range(0, 3) as usize;
        if self.rng.percent(50) {
            self.brokers[at].hear(&mut self.sends);
        }
        if let Some(socket) = self.brokers[at].conn.take() {
            self.handle(Input::ClientLost { conn: ConnId(socket.conn) });
        }
    }

    /// The process is gone; of a transaction under way nobody knows.
    fn crash(&mut self) {
        self.count();
        self.crashes += 1;
        if let Some(request) = self.committing.take()
            && self.rng.percent(50)
        {
            self.store.apply(&mut self.codec, &request).expect("there is room");
        }
        self.gateway = None;
        self.asked.clear();
        for broker in &mut self.brokers {
            broker.conn = None;
        }
        self.start();
    }

    fn commit(&mut self, is_calm: bool) {
        let Some(request) = self.committing.take() else { return };
        let fails = !is_calm && self.rng.percent(5);
        let result = if fails { Err(StoreError::Io("test".to_owned())) } else { self.store.apply(&mut self.codec, &request) };
        self.handle(Input::Committed { ticket: request.ticket, result });
    }

    fn connect(&mut self, broker: BrokerIndex, generation: u64, is_calm: bool) {
        if !is_calm && self.rng.percent(20) {
            return self.handle(Input::BrokerFailed { broker, generation, reason: "test".to_owned() });
        }
        let conn = self.next_conn;
        self.next_conn += 1;
        let socket =
            Socket { conn, to_gateway: VecDeque::new(), from_gateway: Vec::new(), granted: false, is_subscribed: false };
        self.brokers[usize::from(broker.0)].conn = Some(socket);
        self.handle(Input::BrokerOpened { conn: ConnId(conn), broker, generation });
    }

    fn read(&mut self) {
        let at = self.rng.range(0, 3) as usize;
        let most = self.rng.pick(&[1, 7, 100, 65_536]);
        let Some(socket) = self.brokers[at].conn.as_mut().filter(|socket| socket.granted && !socket.to_gateway.is_empty())
        else {
            return;
        };
        socket.granted = false;
        let len = most.min(socket.to_gateway.len());
        let bytes: Vec<u8> = socket.to_gateway.drain(..len).collect();
        let conn = ConnId(socket.conn);
        self.handle(Input::ClientRead { conn, bytes: &bytes });
    }

    fn count(&mut self) {
        if let Some(gateway) = &self.gateway {
            self.deduplicated += gateway.ingest().brokers().map(|broker| broker.counters.deduplicated).sum::<u64>();
        }
    }

    fn is_delivered(&self) -> bool {
        self.brokers.iter().all(|broker| broker.queue.is_empty() && broker.in_flight.is_empty())
    }
}

fn socket(brokers: &mut [Broker], conn: ConnId) -> Option<&mut Socket> {
    brokers.iter_mut().filter_map(|broker| broker.conn.as_mut()).find(|socket| socket.conn == conn.0)
}

fn broker_policy(at: usize, broker: &Broker) -> BrokerPolicy {
    BrokerPolicy {
        name: "site".into(),
        class: broker.class,
        streams: vec![at as u16],
        subscriber: SubscriberOptions {
            version: if broker.v5 { Version::V5 } else { Version::V311 },
            client_id: format!("box-{}", broker.class.name()).into(),
            username: None,
            password: None,
            keep_alive_s: 30,
            session_expiry_s: 3_600,
            inflight_max: 50,
            packet_len_max: 1 << 18,
            filters: Arc::new([format!("raw/{}/+", broker.class.name())]),
            qos: 2,
            answer_timeout_us: 10_000_000,
        },
        to_disk: true,
        backoff_us: (100_000, 1_000_000),
    }
}

#[test]
fn from_brokers_nothing_is_lost_and_what_has_qos_2_is_stored_once_whatever_breaks() {
    let seeds = std::env::var("WEIR_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let (mut crashes, mut deduplicated, mut copies_of_qos1) = (0, 0, 0);
    for seed in 0..seeds {
        let mut yard = Yard::new(seed);
        yard.start();
        for _ in 0..STEPS {
            yard.step(false);
        }
        let mut steps = 0;
        while !yard.is_delivered() {
            yard.step(true);
            steps += 1;
            assert!(steps < STEPS_TO_END, "seed {seed}: not delivered; {:?}", yard.brokers[0].in_flight);
        }
        let copies = yard.store.copies();
        for (id, qos) in &yard.published {
            let (stored, sent) = (copies.get(id).copied().unwrap_or(0), yard.sends[id]);
            assert!(stored >= 1, "seed {seed}: message {id} of QoS {qos} is lost");
            assert!(stored <= sent, "seed {seed}: message {id} is stored {stored} times and was sent {sent} times");
            assert!(*qos < 2 || stored == 1, "seed {seed}: message {id} of QoS 2 is stored {stored} times");
            copies_of_qos1 += u64::from(stored - 1);
        }
        assert!(copies.keys().all(|id| yard.published.contains_key(id)));
        // The last release may still be on its way to the disk.
        while yard.committing.is_some() || !yard.store.packet_ids().is_empty() {
            yard.step(true);
            steps += 1;
            assert!(steps < STEPS_TO_END, "seed {seed}: packet ids stay: {:?}", yard.store.packet_ids());
        }
        yard.count();
        crashes += yard.crashes;
        deduplicated += yard.deduplicated;
    }
    assert!(crashes > seeds / 2 && deduplicated > seeds, "{crashes} crashes, {deduplicated} known in {seeds} seeds");
    assert!(copies_of_qos1 > 0, "a crash between record and PUBACK is among what was played");
}
