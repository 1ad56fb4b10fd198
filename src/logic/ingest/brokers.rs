//! Clients of brokers: when to connect, what was received, what may be acknowledged.
//!
//! A broker's client is to streams what a sensor's connection is; only who connects, and who repeats, is the other way round.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::session::{Custody, Receipt, Session};
use super::{Arrival, ConnId, Ingest, Inspected, Moment, Output, Parts, Sender, Waiting, take_in};
use crate::ids::Class;
use crate::lanes::Lanes;
use crate::mqtt::{Ack, BrokerClose, Delivery, Flow, Next, Pause, PubAck, Publish, Subscriber, UserIndex};
use crate::plan::Plan;
use crate::policy::BrokerPolicy;
use crate::store::PacketIdChange;
use crate::uplink::Backoff;

/// Position of a broker's client in the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BrokerIndex(pub u16);

/// Counts of a broker's client since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BrokerCounters {
    /// Attempts to connect.
    pub attempts: u64,
    /// Connections on which the broker let us in.
    pub connects: u64,
    /// Of these, those whose session the broker had kept.
    pub sessions_resumed: u64,
    /// Messages by QoS.
    pub messages: [u64; 3],
    /// Their payload bytes.
    pub payload_bytes: u64,
    /// Messages with DUP: the broker sends them again.
    pub redelivered: u64,
    /// Messages that were known already, and were not taken in again.
    pub deduplicated: u64,
    /// Messages for streams of another of our clients.
    pub others: u64,
    /// Messages that were too long or on an impossible topic, acknowledged and counted.
    pub unusable: u64,
    /// PUBACKs and PUBRECs.
    pub acks: u64,
    /// Filters that the broker refused to subscribe to, or granted with a lower QoS.
    pub filters_refused: u64,
    /// Times that reading stopped because too many messages were unacknowledged.
    pub pauses_inflight: u64,
}

/// A broker's client as status and metrics show it.
#[derive(Debug, Clone)]
pub struct BrokerView<'a> {
    /// Name of the broker.
    pub name: &'a Arc<str>,
    /// Class of the client's streams.
    pub class: Class,
    /// True if it is connected and subscribed.
    pub up: bool,
    /// Number of the present or last connection, from 1.
    pub generation: u64,
    /// Messages that wait for their acknowledgement.
    pub in_flight: usize,
    /// Packet ids of QoS 2 that the broker has not released.
    pub packet_ids: usize,
    /// Why it was last not connected; empty if it always was.
    pub last_down: &'a str,
    /// Counts.
    pub counters: BrokerCounters,
}

/// Something worth telling a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerEvent {
    /// It is connected and subscribed.
    Up {
        /// The broker kept the session.
        session_present: bool,
    },
    /// It was connected and is not any more.
    Down {
        /// Why.
        reason: String,
    },
    /// It could not connect; it is tried again.
    Failed {
        /// Why.
        reason: String,
    },
    /// The broker refuses to subscribe us to a filter, or grants it with a lower QoS.
    Filter {
        /// The filter.
        filter: String,
        /// What was granted.
        granted: Option<u8>,
    },
}

/// All clients of brokers.
#[derive(Debug)]
pub(super) struct Brokers {
    clients: Vec<Client>,
    conns: BTreeMap<ConnId, usize>,
    /// The user whose rights the router gives to brokers' messages.
    user: UserIndex,
}

#[derive(Debug)]
struct Client {
    policy: BrokerPolicy,
    link: Link,
    session: Session,
    backoff: Backoff,
    generation: u64,
    is_subscribed: bool,
    session_present: bool,
    counters: BrokerCounters,
    last_down: String,
}

#[derive(Debug)]
enum Link {
    Waiting { retry_us: u64 },
    Connecting,
    Up(Up),
    Stopped,
}

#[derive(Debug)]
struct Up {
    conn: ConnId,
    subscriber: Box<Subscriber>,
    /// Since when it is connected and subscribed.
    since_us: Option<u64>,
    /// The shell waits for [`Output::Read`].
    wants_read: bool,
}

impl Brokers {
    /// `found` are the packet ids that the buffer held; those of no session of the policy are forgotten.
    pub(super) fn new(policies: &[BrokerPolicy], user: UserIndex, now_us: u64, seed: u64, found: &[PacketIdChange]) -> Brokers {
        let client = |(at, policy): (usize, &BrokerPolicy)| {
            let (first_us, longest_us) = policy.backoff_us;
            Client {
                link: Link::Waiting { retry_us: now_us },
                session: Session::new(policy.session(), found),
                backoff: Backoff::new(first_us, longest_us, seed.wrapping_add(at as u64)),
                generation: 0,
                is_subscribed: false,
                session_present: false,
                counters: BrokerCounters::default(),
                last_down: String::new(),
                policy: policy.clone(),
            }
        };
        Brokers { clients: policies.iter().enumerate().map(client).collect(), conns: BTreeMap::new(), user }
    }

    /// Forgets the packet ids of sessions that there are no more.
    pub(super) fn forget_strangers(&self, now_us: u64, lanes: &mut Lanes, found: &[PacketIdChange]) {
        for change in found {
            if !self.clients.iter().any(|client| client.policy.session() == change.session) {
                lanes.note_packet_id(now_us, PacketIdChange { fingerprint: None, ..change.clone() });
            }
        }
    }

    fn of(&self, conn: ConnId) -> Option<usize> {
        self.conns.get(&conn).copied()
    }

    pub(super) fn has(&self, conn: ConnId) -> bool {
        self.conns.contains_key(&conn)
    }

    pub(super) fn views(&self) -> impl Iterator<Item = BrokerView<'_>> {
        self.clients.iter().map(|client| BrokerView {
            name: &client.policy.name,
            class: client.policy.class,
            up: matches!(&client.link, Link::Up(up) if up.subscriber.is_open()),
            generation: client.generation,
            in_flight: client.session.unacknowledged(),
            packet_ids: client.session.ids_len(),
            last_down: &client.last_down,
            counters: client.counters,
        })
    }

    pub(super) fn resolve(&mut self, now_us: u64, lanes: &mut Lanes, at: u16, ticket: u64, ack: Ack) {
        if let Some(client) = self.clients.get_mut(usize::from(at)) {
            let custody = Custody { now_us, to_disk: client.policy.to_disk, len: 0 };
            client.session.resolve(lanes, custody, ticket, ack);
        }
    }

    /// Clients that wait for something other than the broker.
    fn waiting(&self) -> Vec<usize> {
        let waits = |client: &Client| matches!(&client.link, Link::Up(up) if up.wants_read) || client.session.is_waiting();
        (0..self.clients.len()).filter(|&at| waits(&self.clients[at])).collect()
    }
}

impl Ingest {
    /// A connection to a broker was made, which [`Output::BrokerConnect`] asked for with this generation.
    pub fn broker_opened(&mut self, now_us: u64, conn: ConnId, broker: BrokerIndex, generation: u64) {
        let at = usize::from(broker.0);
        let Some(client) = self.brokers.clients.get_mut(at) else { return };
        if !matches!(client.link, Link::Connecting) || client.generation != generation || self.stopping {
            self.outputs.push_back(Output::BrokerClose { conn });
            return;
        }
        let mut subscriber = Box::new(Subscriber::new(client.policy.subscriber.clone(), client.is_subscribed, now_us));
        let bytes = std::mem::take(subscriber.output());
        client.link = Link::Up(Up { conn, subscriber, since_us: None, wants_read: false });
        self.brokers.conns.insert(conn, at);
        self.outputs.extend([Output::Write { conn, bytes }, Output::Read { conn }]);
    }

    /// The connection of this generation could not be made.
    pub fn broker_failed(&mut self, now_us: u64, broker: BrokerIndex, generation: u64, reason: &str) {
        let Some(client) = self.brokers.clients.get_mut(usize::from(broker.0)) else { return };
        if matches!(client.link, Link::Connecting) && client.generation == generation {
            let event = client.down(now_us, reason.to_owned());
            self.outputs.push_back(Output::Broker { broker, event });
        }
    }

    /// Clients of brokers, in the order of the policy.
    pub fn brokers(&self) -> impl Iterator<Item = BrokerView<'_>> {
        self.brokers.views()
    }

    pub(super) fn broker_read(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, conn: ConnId, bytes: &[u8]) {
        let Some(at) = self.brokers.of(conn) else { return };
        let user = self.brokers.user;
        let client = &mut self.brokers.clients[at];
        let Link::Up(up) = &mut client.link else { return };
        let mut desk = Desk {
            at: BrokerIndex(at as u16),
            user,
            policy: &client.policy,
            session: &mut client.session,
            counters: &mut client.counters,
            is_subscribed: &mut client.is_subscribed,
            session_present: &mut client.session_present,
            outputs: &mut self.outputs,
        };
        let mut parts = Parts {
            router: &mut self.router,
            streams: &mut self.streams,
            totals: &mut self.totals,
            inspected: &mut self.inspected,
        };
        let mut bytes = bytes;
        let next = loop {
            let next = up.subscriber.read(now.service_us, bytes, |delivery| desk.take(now, plan, lanes, &mut parts, delivery));
            // What came to nothing is acknowledged at once, and makes room for what is behind it.
            desk.counters.acks += desk.session.acknowledge(lanes, &mut up.subscriber);
            if next != Next::Pause(Pause::Caller) || !desk.has_room() || lanes.is_full() {
                break next;
            }
            bytes = &[];
            up.subscriber.resume(now.service_us);
        };
        if up.subscriber.is_open() && up.since_us.is_none() {
            up.since_us = Some(now.service_us);
            client.last_down.clear();
            let event = BrokerEvent::Up { session_present: client.session_present };
            self.outputs.push_back(Output::Broker { broker: BrokerIndex(at as u16), event });
        }
        self.note_full(lanes);
        self.after_broker(now.service_us, at, next);
        self.resolve(now, lanes);
    }

    /// Carries out what a connection wants after a read or a tick.
    fn after_broker(&mut self, now_us: u64, at: usize, next: Next) {
        let full = self.full;
        let Link::Up(up) = &mut self.brokers.clients[at].link else { return };
        let bytes = std::mem::take(up.subscriber.output());
        let conn = up.conn;
        if !bytes.is_empty() {
            self.outputs.push_back(Output::Write { conn, bytes });
        }
        match next {
            Next::Close => self.broker_down(now_us, at),
            Next::Read if full => {
                // Its silence is ours.
                up.subscriber.hold();
                up.wants_read = true;
            }
            Next::Read => {
                up.wants_read = false;
                self.outputs.push_back(Output::Read { conn });
            }
            Next::Pause(_) => up.wants_read = true,
        }
    }

    /// The connection has ended: closes the socket, and connects again after a while.
    fn broker_down(&mut self, now_us: u64, at: usize) {
        let client = &mut self.brokers.clients[at];
        let Link::Up(up) = &client.link else { return };
        let (conn, since_us) = (up.conn, up.since_us);
        let close = up.subscriber.closed().cloned().unwrap_or(BrokerClose::Lost);
        client.session.park();
        self.brokers.conns.remove(&conn);
        self.outputs.push_back(Output::BrokerClose { conn });
        let broker = BrokerIndex(at as u16);
        if close == BrokerClose::Stopped {
            client.link = Link::Stopped;
            return;
        }
        // A broker that takes us in and throws us out is not asked again at once.
        if since_us.is_some_and(|since_us| now_us >= since_us.saturating_add(client.policy.backoff_us.1)) {
            client.backoff.reset();
        }
        let mut event = client.down(now_us, close.to_string());
        if let (BrokerEvent::Failed { reason }, true) = (&event, since_us.is_some()) {
            event = BrokerEvent::Down { reason: reason.clone() };
        }
        self.outputs.push_back(Output::Broker { broker, event });
    }

    pub(super) fn broker_lost(&mut self, now_us: u64, conn: ConnId) {
        let Some(at) = self.brokers.of(conn) else { return };
        if let Link::Up(up) = &mut self.brokers.clients[at].link {
            up.subscriber.lost();
            self.broker_down(now_us, at);
        }
    }

    /// Acknowledges what became safe, and reads on where there is room again.
    pub(super) fn brokers_progressed(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes) {
        for at in self.brokers.waiting() {
            let full = self.full;
            let client = &mut self.brokers.clients[at];
            let Link::Up(up) = &mut client.link else { continue };
            client.counters.acks += client.session.acknowledge(lanes, &mut up.subscriber);
            let bytes = std::mem::take(up.subscriber.output());
            let conn = up.conn;
            if !bytes.is_empty() {
                self.outputs.push_back(Output::Write { conn, bytes });
            }
            let has_room = client.session.unacknowledged() < usize::from(client.policy.subscriber.inflight_max);
            if up.wants_read && !full && has_room {
                up.subscriber.resume(now.service_us);
                if up.subscriber.pause().is_none() {
                    self.broker_read(now, plan, lanes, conn, &[]);
                }
            }
        }
    }

    /// Connects, pings, and ends what is silent.
    pub(super) fn tick_brokers(&mut self, now_us: u64) {
        for at in 0..self.brokers.clients.len() {
            let client = &mut self.brokers.clients[at];
            match &mut client.link {
                Link::Waiting { retry_us } if *retry_us <= now_us && !self.stopping => {
                    client.link = Link::Connecting;
                    client.generation += 1;
                    client.counters.attempts += 1;
                    let (broker, generation) = (BrokerIndex(at as u16), client.generation);
                    self.outputs.push_back(Output::BrokerConnect { broker, generation });
                }
                Link::Up(up) => {
                    let has_ended = up.subscriber.tick(now_us).is_some();
                    let (conn, bytes) = (up.conn, std::mem::take(up.subscriber.output()));
                    if !bytes.is_empty() {
                        self.outputs.push_back(Output::Write { conn, bytes });
                    }
                    if has_ended {
                        self.broker_down(now_us, at);
                    }
                }
                _ => {}
            }
        }
    }

    /// Says goodbye to all brokers; they keep the sessions.
    pub(super) fn disconnect_brokers(&mut self, now_us: u64) {
        for at in 0..self.brokers.clients.len() {
            let client = &mut self.brokers.clients[at];
            let Link::Up(up) = &mut client.link else {
                client.link = Link::Stopped;
                continue;
            };
            up.subscriber.disconnect();
            let (conn, bytes) = (up.conn, std::mem::take(up.subscriber.output()));
            self.outputs.push_back(Output::Write { conn, bytes });
            self.broker_down(now_us, at);
        }
    }
}

impl Client {
    fn down(&mut self, now_us: u64, reason: String) -> BrokerEvent {
        self.link = Link::Waiting { retry_us: now_us + self.backoff.next_us() };
        self.last_down.clone_from(&reason);
        BrokerEvent::Failed { reason }
    }
}

/// A client while a read of its connection is taken in.
struct Desk<'a> {
    at: BrokerIndex,
    user: UserIndex,
    policy: &'a BrokerPolicy,
    session: &'a mut Session,
    counters: &'a mut BrokerCounters,
    is_subscribed: &'a mut bool,
    session_present: &'a mut bool,
    outputs: &'a mut VecDeque<Output>,
}

impl Desk<'_> {
    fn take(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, parts: &mut Parts<'_>, delivery: Delivery<'_>) -> Flow {
        match delivery {
            Delivery::Connected { session_present } => {
                self.counters.connects += 1;
                self.counters.sessions_resumed += u64::from(session_present);
                *self.session_present = session_present;
                if !session_present {
                    self.session.close(lanes, now.service_us);
                }
            }
            Delivery::Subscribed { granted } => self.subscribed(granted),
            Delivery::Publish(publish) => self.publish(now, plan, lanes, parts, &publish),
            Delivery::Unusable { qos, packet_id, topic, reason, detail } => {
                self.counters.unusable += 1;
                let inspected = Inspected { at_us: now.service_us, topic, reason, detail, payload: Vec::new() };
                parts.inspect(inspected);
                if qos > 0 {
                    self.session.push_unusable(packet_id, qos);
                }
            }
            Delivery::Release { packet_id } => self.session.release_id(lanes, now.service_us, packet_id),
        }
        if self.has_room() {
            return Flow::Continue;
        }
        self.counters.pauses_inflight += 1;
        Flow::Pause
    }

    fn subscribed(&mut self, granted: &[Option<u8>]) {
        *self.is_subscribed = true;
        for (filter, &granted) in self.policy.subscriber.filters.iter().zip(granted) {
            if granted.is_none_or(|qos| qos < self.policy.subscriber.qos) {
                self.counters.filters_refused += 1;
                let event = BrokerEvent::Filter { filter: filter.clone(), granted };
                self.outputs.push_back(Output::Broker { broker: self.at, event });
            }
        }
    }

    /// True if more may be taken in before something is acknowledged.
    fn has_room(&self) -> bool {
        self.session.unacknowledged() < usize::from(self.policy.subscriber.inflight_max)
    }

    fn publish(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, parts: &mut Parts<'_>, publish: &Publish<'_>) {
        self.counters.messages[usize::from(publish.qos)] += 1;
        self.counters.payload_bytes += publish.payload.len() as u64;
        self.counters.redelivered += u64::from(publish.dup);
        let acknowledged = publish.qos > 0;
        if acknowledged && self.session.receive(publish) == Receipt::Known {
            self.counters.deduplicated += 1;
            return;
        }
        let ticket = self.session.next_ticket();
        let from = Sender::Broker(self.at.0);
        let waiting = acknowledged.then_some(Waiting { from, ticket, since_us: now.service_us });
        let arrival = Arrival { user: self.user, only: Some(&self.policy.streams), publish, waiting };
        let ack = take_in(now, plan, lanes, parts, &arrival).unwrap_or_else(|| {
            self.counters.others += 1;
            Ack::Now(PubAck::Success)
        });
        if acknowledged {
            let custody = Custody { now_us: now.service_us, to_disk: self.policy.to_disk, len: publish.payload.len() };
            self.session.push(lanes, custody, publish, ack);
        }
    }
}
