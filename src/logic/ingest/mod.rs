//! From sockets to lanes: MQTT connections, who they are, and what becomes of each message.
//!
//! Every message has exactly one [`Fate`], counted per stream. A QoS 1 sender gets its PUBACK, in the order of receipt, when
//! what its message became is safe; a message that is folded, filtered or cannot be used is acknowledged on receipt.
//! Backpressure needs no queue: a connection is read only when [`Output::Read`] says so, and it says so only
//! while there is room.

mod arrival;
mod brokers;
mod counts;
mod escalate;
mod session;
mod streams;

use std::collections::{BTreeMap, VecDeque};

use crate::audit::{Audits, Purpose};
use crate::ids::Epoch;
use crate::lanes::Lanes;
use crate::mqtt::{
    Ack, AckQueue, AuthRefusal, Close, Connection, Counters, DisconnectReason, Event, Filter, FilterError, FilterTree, Flow,
    Next, Pause, PubAck, TopicRouter, UserIndex,
};
use crate::offload::{OffloadPolicy, RemoteVerdict};
use crate::payload::SparkplugCounters;
use crate::plan::Plan;
use crate::policy::Policy;
use crate::store::PacketIdChange;
use crate::window::KeepRules;

pub use arrival::Inspected;
pub use brokers::{BrokerCounters, BrokerEvent, BrokerIndex, BrokerView};
pub use counts::{EarlyAcks, Fate, FateCounters, IngestCounters, SampleCounts};
pub use streams::{InferJob, ModelName, Scored, Verdict};

use arrival::{Arrival, Parts, Sender, Waiting, take_in};
use brokers::Brokers;
use streams::Streams;

/// A connection's number, never given twice in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Now, by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Service time in microseconds; never goes back.
    pub service_us: u64,
    /// Unix time minus service time, if the wall clock is trusted.
    pub wall_offset_us: Option<i64>,
}

impl Moment {
    /// The time an event without a time of its own gets: Unix time if it is known, else service time.
    pub fn event_us(&self) -> i64 {
        self.service_us as i64 + self.wall_offset_us.unwrap_or(0)
    }
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Write to the client.
    Write {
        /// The client.
        conn: ConnId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Read from the client once more.
    Read {
        /// The client.
        conn: ConnId,
    },
    /// Close the client's socket after what was written.
    Close {
        /// The client.
        conn: ConnId,
        /// Its client id; empty if it never gave one.
        client_id: String,
        /// Why.
        close: Close,
    },
    /// Check who this is, off the runtime's threads, and answer with [`Ingest::authenticated`].
    Authenticate {
        /// The client.
        conn: ConnId,
        /// User name as sent.
        username: Option<String>,
        /// Password as sent.
        password: Option<Vec<u8>>,
    },
    /// Connect to a broker, and answer with [`Ingest::broker_opened`] or [`Ingest::broker_failed`].
    BrokerConnect {
        /// Which client of which.
        broker: BrokerIndex,
        /// Number of the connection, which comes back in the answer.
        generation: u64,
    },
    /// Close the socket to a broker after what was written.
    BrokerClose {
        /// The connection.
        conn: ConnId,
    },
    /// Something worth telling a person.
    Broker {
        /// Which client of which.
        broker: BrokerIndex,
        /// What.
        event: BrokerEvent,
    },
}

/// Why a policy's filters cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic filter '{filter}': {error}")]
pub struct RouteError {
    /// The filter.
    pub filter: String,
    /// What is wrong with it.
    pub error: FilterError,
}

#[derive(Debug)]
struct Client {
    conn: Connection,
    acks: AckQueue,
    /// The shell waits for [`Output::Read`].
    wants_read: bool,
    /// It is not read because everything is full.
    held: bool,
    /// It is one too many: it is heard until its CONNECT, to be told so, or to take the place of its older self.
    surplus: bool,
}

/// All MQTT connections and streams.
#[derive(Debug)]
pub struct Ingest {
    epoch: Epoch,
    limits: crate::mqtt::ConnLimits,
    connections_max: usize,
    clients: BTreeMap<ConnId, Client>,
    /// How many of these are one too many.
    surplus_count: usize,
    /// Who holds a client id: the connection that was let in with it last.
    client_ids: BTreeMap<String, (UserIndex, ConnId)>,
    brokers: Brokers,
    router: TopicRouter,
    streams: Streams,
    outputs: VecDeque<Output>,
    counters: Counters,
    totals: IngestCounters,
    inspected: VecDeque<Inspected>,
    ticked_us: u64,
    full: bool,
    stopping: bool,
}

/// Connections beyond the limit that are heard until their CONNECT; further ones are closed without a word.
const SURPLUS_COUNT_MAX: usize = 32;
/// How often connections are looked at for timeouts.
const TICK_US: u64 = 100_000;

impl Ingest {
    /// No connections yet. `seed` spreads hash tables and retries; `packet_ids` are those of brokers' messages that the buffer
    /// held.
    ///
    /// # Errors
    /// A topic filter that is malformed.
    pub fn new(
        now_us: u64,
        epoch: Epoch,
        policy: &Policy,
        seed: u64,
        packet_ids: &[PacketIdChange],
    ) -> Result<Self, RouteError> {
        let streams = tree(
            policy.streams.iter().enumerate().flat_map(|(index, stream)| stream.filters.iter().map(move |f| (index as u16, f))),
        )?;
        let mut permissions =
            policy.users.iter().map(|user| tree(user.publish.iter().map(|f| (0, f)))).collect::<Result<Vec<_>, _>>()?;
        // Whatever a broker sends was subscribed to.
        let brokers_user = UserIndex(permissions.len() as u16);
        permissions.push(tree(policy.streams.iter().flat_map(|stream| stream.filters.iter().map(|f| (0, f))))?);
        Ok(Ingest {
            epoch,
            limits: policy.connections,
            connections_max: policy.connections_max,
            clients: BTreeMap::new(),
            surplus_count: 0,
            client_ids: BTreeMap::new(),
            brokers: Brokers::new(&policy.brokers, brokers_user, now_us, seed, packet_ids),
            router: TopicRouter::new(streams, permissions, policy.router, seed),
            streams: Streams::new(&policy.streams, seed),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            totals: IngestCounters::default(),
            inspected: VecDeque::new(),
            ticked_us: now_us,
            full: false,
            stopping: false,
        })
    }

    /// What to do next; call until `None` after every other call.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Windows to be scored since the last call.
    pub fn take_jobs(&mut self) -> Vec<InferJob> {
        std::mem::take(&mut self.streams.jobs)
    }

    /// A socket was accepted; it is read at once, unless there are far too many.
    pub fn opened(&mut self, now_us: u64, conn: ConnId) {
        let surplus = self.is_crowded();
        if surplus && self.surplus_count >= SURPLUS_COUNT_MAX {
            self.totals.connections_refused += 1;
            let close = Close::Refused(AuthRefusal::TooManyClients);
            self.outputs.push_back(Output::Close { conn, client_id: String::new(), close });
            return;
        }
        self.surplus_count += usize::from(surplus);
        self.totals.connections += u64::from(!surplus);
        let connection = Connection::new(self.limits, self.epoch, conn.0, now_us);
        self.clients.insert(conn, Client { conn: connection, acks: AckQueue::new(), wants_read: false, held: false, surplus });
        self.outputs.push_back(Output::Read { conn });
    }

    /// True if there are as many connections as there may be.
    fn is_crowded(&self) -> bool {
        self.clients.len() - self.surplus_count >= self.connections_max
    }

    /// Forgets the packet ids that the buffer held of sessions that there are no more.
    pub fn forget_strangers(&self, now_us: u64, lanes: &mut Lanes, packet_ids: &[PacketIdChange]) {
        self.brokers.forget_strangers(now_us, lanes, packet_ids);
    }

    /// The socket ended.
    pub fn lost(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.conn.lost();
            self.drop_client(now, plan, lanes, conn);
        } else {
            self.broker_lost(now.service_us, conn);
        }
    }

    /// A read of the socket brought bytes, at most 64 KiB.
    pub fn read(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, conn: ConnId, bytes: &[u8]) {
        if self.brokers.has(conn) {
            return self.broker_read(now, plan, lanes, conn, bytes);
        }
        let is_crowded = self.is_crowded();
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let user = client.conn.user();
        let Client { conn: connection, acks, surplus, .. } = client;
        let (has_no_place, mut too_many) = (*surplus && is_crowded, false);
        let client_ids = &self.client_ids;
        let outputs = &mut self.outputs;
        let mut parts = Parts {
            router: &mut self.router,
            streams: &mut self.streams,
            totals: &mut self.totals,
            inspected: &mut self.inspected,
        };
        let next = connection.read(now.service_us, bytes, |event| {
            match event {
                // Only who takes over an older connection of its own needs no place; nobody else costs us a password check.
                Event::Connect(request) if has_no_place && !client_ids.contains_key(request.client_id) => too_many = true,
                Event::Connect(request) => outputs.push_back(Output::Authenticate {
                    conn,
                    username: request.username.map(str::to_owned),
                    password: request.password.map(<[u8]>::to_vec),
                }),
                Event::Publish(publish) => {
                    let user = user.expect("a connection publishes only once it is let in");
                    let (from, ticket) = (Sender::Client(conn), acks.next_ticket());
                    let waiting = (publish.qos == 1).then_some(Waiting { from, ticket, since_us: now.service_us });
                    let arrival = Arrival { user, only: None, publish: &publish, waiting };
                    let ack = take_in(now, plan, lanes, &mut parts, &arrival);
                    if publish.qos == 1 {
                        acks.push(publish.packet_id, ack.unwrap_or(Ack::Now(PubAck::NoStream)));
                    }
                }
                Event::Closed(_) => {}
            }
            Flow::Continue
        });
        acks.release(&lanes.safe(), connection);
        self.after(now, plan, lanes, conn, next);
        if too_many {
            self.authenticated(now, plan, lanes, conn, Err(AuthRefusal::TooManyClients));
        }
    }

    /// Carries out what a connection wants after a read, a tick or a pause.
    fn after(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, conn: ConnId, next: Next) {
        self.note_full(lanes);
        let Some(client) = self.clients.get_mut(&conn) else { return };
        self.counters.add(&client.conn.take_counters());
        flush(&mut self.outputs, conn, client);
        match next {
            Next::Close => self.drop_client(now, plan, lanes, conn),
            Next::Read if self.full => {
                // A socket that we do not read must not cost the client its keep-alive.
                client.conn.hold();
                (client.wants_read, client.held) = (true, true);
            }
            Next::Read => {
                client.wants_read = false;
                self.outputs.push_back(Output::Read { conn });
            }
            Next::Pause(_) => client.wants_read = true,
        }
        self.resolve(now, lanes);
    }

    /// Messages whose record has become known get their place in the lane.
    fn resolve(&mut self, now: Moment, lanes: &mut Lanes) {
        for (waiting, ack) in std::mem::take(&mut self.streams.resolved) {
            match waiting.from {
                Sender::Client(conn) => {
                    if let Some(client) = self.clients.get_mut(&conn) {
                        client.acks.resolve(waiting.ticket, ack);
                    }
                }
                Sender::Broker(at) => self.brokers.resolve(now.service_us, lanes, at, waiting.ticket, ack),
            }
        }
    }

    /// Who the client is was decided.
    pub fn authenticated(
        &mut self,
        now: Moment,
        plan: &Plan,
        lanes: &mut Lanes,
        conn: ConnId,
        result: Result<UserIndex, AuthRefusal>,
    ) {
        let Some(client) = self.clients.get(&conn) else { return };
        let client_id = client.conn.client_id().to_owned();
        let has_no_place = client.surplus && self.is_crowded();
        let result = result.and_then(|user| match self.client_ids.get(&client_id) {
            Some(&(holder, old)) if self.clients.contains_key(&old) && old != conn => {
                if holder == user {
                    Ok((user, Some(old)))
                } else {
                    Err(AuthRefusal::ClientIdTaken)
                }
            }
            _ if has_no_place => Err(AuthRefusal::TooManyClients),
            _ => Ok((user, None)),
        });
        self.totals.connections_refused += u64::from(matches!(result, Err(AuthRefusal::TooManyClients)));
        if let Ok((user, old)) = result {
            if let Some(old) = old {
                self.totals.taken_over += 1;
                if let Some(old_client) = self.clients.get_mut(&old) {
                    old_client.conn.disconnect(DisconnectReason::TakenOver);
                }
                self.drop_client(now, plan, lanes, old);
            }
            self.client_ids.insert(client_id, (user, conn));
            if let Some(client) = self.clients.get_mut(&conn).filter(|client| client.surplus) {
                client.surplus = false;
                self.surplus_count -= 1;
                self.totals.connections += 1;
            }
        }
        if let Some(client) = self.clients.get_mut(&conn) {
            client.conn.authenticated(now.service_us, result.map(|(user, _)| user));
        }
        self.read(now, plan, lanes, conn, &[]);
    }

    /// Records became safe, or there is room again: releases PUBACKs and reads on.
    pub fn progressed(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes) {
        self.note_full(lanes);
        let safe = lanes.safe();
        let waiting: Vec<ConnId> = self
            .clients
            .iter()
            .filter(|(_, client)| client.wants_read || !client.acks.is_empty())
            .map(|(&conn, _)| conn)
            .collect();
        for conn in waiting {
            let Some(client) = self.clients.get_mut(&conn) else { continue };
            client.acks.release(&safe, &mut client.conn);
            flush(&mut self.outputs, conn, client);
            // Those before it may have filled what there was.
            let full = self.full;
            if client.held && !full {
                client.conn.resume(now.service_us);
                client.held = false;
            }
            if client.wants_read && !full && client.conn.pause(now.service_us).is_none() {
                self.read(now, plan, lanes, conn, &[]);
            }
        }
        self.brokers_progressed(now, plan, lanes);
    }

    fn note_full(&mut self, lanes: &Lanes) {
        let full = self.lacks_room(lanes);
        self.totals.full += u64::from(full && !self.full && !self.stopping);
        self.full = full;
    }

    fn lacks_room(&self, lanes: &Lanes) -> bool {
        self.stopping || lanes.is_full() || self.streams.is_full()
    }

    /// True if there is room again for connections that are not read for want of it: [`Ingest::progressed`] reads on.
    pub fn has_room_again(&self, lanes: &Lanes) -> bool {
        self.full && !self.lacks_room(lanes)
    }

    /// Windows that are to be asked about elsewhere since the last call, by job.
    pub(crate) fn take_escalations(&mut self) -> Vec<u64> {
        self.streams.take_escalations()
    }

    /// What was counted of windows that two models answered.
    pub fn audits(&self) -> &Audits {
        &self.streams.audits
    }

    /// The same, to look whether thresholds are to move.
    pub(crate) fn audits_mut(&mut self) -> &mut Audits {
        &mut self.streams.audits
    }

    /// Stream and values of such a window, and why it is to be asked about.
    pub(crate) fn escalation(&self, job: u64) -> Option<(u16, Purpose, &[f32])> {
        self.streams.escalation(job)
    }

    /// Such a window is under way.
    pub(crate) fn sent_on(&mut self, job: u64) {
        self.streams.sent_on(job);
    }

    /// The answer came; returns its stream, and whether it was in doubt and says another label than the box's model.
    pub(crate) fn answered(
        &mut self,
        now: Moment,
        plan: &Plan,
        lanes: &mut Lanes,
        job: u64,
        answer: &RemoteVerdict,
    ) -> Option<(u16, bool)> {
        let answered = self.streams.answered(now, plan, lanes, job, answer);
        self.resolve(now, lanes);
        answered
    }

    /// The answer is not waited for any longer; `is_over` if none will come.
    pub(crate) fn not_answered(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, job: u64, is_over: bool) {
        self.streams.not_answered(now, plan, lanes, job, is_over);
        self.resolve(now, lanes);
    }

    /// When and how a stream's windows are asked about elsewhere from now on.
    pub(crate) fn set_offload(&mut self, stream: u16, offload: Option<OffloadPolicy>) {
        self.streams.set_offload(stream, offload);
    }

    /// A window was scored, or could not be.
    pub fn inferred(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, scored: &Scored) {
        self.streams.inferred(now, plan, lanes, scored);
        self.resolve(now, lanes);
    }

    /// Enforces timeouts and closes aggregates of silent devices.
    pub fn tick(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes) {
        if now.service_us < self.ticked_us + TICK_US {
            return;
        }
        self.ticked_us = now.service_us;
        let ended: Vec<ConnId> =
            self.clients.iter_mut().filter_map(|(&conn, client)| client.conn.tick(now.service_us).map(|_| conn)).collect();
        for conn in ended {
            self.drop_client(now, plan, lanes, conn);
        }
        self.tick_brokers(now.service_us);
        self.streams.close_aggregates(now, plan, lanes, false);
        self.resolve(now, lanes);
        self.progressed(now, plan, lanes);
    }

    /// Other rules for what a stream keeps; its devices begin anew, as if none had kept anything.
    pub fn set_keep(&mut self, stream: u16, keep: Option<KeepRules>) {
        self.streams.set_keep(stream, keep);
    }

    /// When [`Ingest::tick`] has something to do.
    pub fn deadline_us(&self) -> u64 {
        self.ticked_us + TICK_US
    }

    /// Closes all aggregates and reads from nobody any more, for shutdown.
    pub fn stop(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes) {
        self.stopping = true;
        self.streams.close_aggregates(now, plan, lanes, true);
        self.resolve(now, lanes);
    }

    /// Ends all connections.
    pub fn disconnect_all(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes) {
        for conn in self.clients.keys().copied().collect::<Vec<_>>() {
            if let Some(client) = self.clients.get_mut(&conn) {
                client.conn.disconnect(DisconnectReason::ShuttingDown);
            }
            self.drop_client(now, plan, lanes, conn);
        }
        self.disconnect_brokers(now.service_us);
    }

    fn drop_client(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, conn: ConnId) {
        let Some(mut client) = self.clients.remove(&conn) else { return };
        self.surplus_count -= usize::from(client.surplus);
        if let (Some(will), Some(user)) = (client.conn.take_will(), client.conn.user()) {
            let mut parts = Parts {
                router: &mut self.router,
                streams: &mut self.streams,
                totals: &mut self.totals,
                inspected: &mut self.inspected,
            };
            let arrival = Arrival { user, only: None, publish: &will.publish(), waiting: None };
            take_in(now, plan, lanes, &mut parts, &arrival);
        }
        self.counters.add(&client.conn.take_counters());
        let client_id = client.conn.client_id().to_owned();
        if self.client_ids.get(&client_id).is_some_and(|&(_, holder)| holder == conn) {
            self.client_ids.remove(&client_id);
        }
        flush(&mut self.outputs, conn, &mut client);
        let close = client.conn.closed().unwrap_or(Close::Lost);
        self.outputs.push_back(Output::Close { conn, client_id, close });
    }

    /// MQTT counts since start.
    pub fn mqtt_counters(&self) -> Counters {
        self.counters
    }

    /// Other counts since start.
    pub fn counters(&self) -> IngestCounters {
        self.totals
    }

    /// What became of the messages of a stream, by its position in the policy.
    pub fn fates(&self, stream: u16) -> FateCounters {
        self.streams.counters(stream)
    }

    /// Messages of a stream that did not decode, by reason.
    pub fn undecodable(&self, stream: u16) -> &BTreeMap<&'static str, u64> {
        self.streams.undecodable(stream)
    }

    /// What became of each stream's samples on their way into windows and aggregates, over all its devices. Looks at every
    /// device: for a status page, not for the path of a message.
    pub fn sample_counts(&self) -> Vec<SampleCounts> {
        self.streams.sample_counts()
    }

    /// Name of the device that [`InferJob::source`] means.
    pub fn device(&self, source: u32) -> Option<&str> {
        self.streams.sources.get(source as usize).map(|source| &*source.device)
    }

    /// Verdicts given, and windows that could not be scored, since start.
    pub fn verdicts(&self) -> (u64, u64) {
        (self.streams.verdicts, self.streams.verdict_errors)
    }

    /// What was heard of edge nodes of Sparkplug B.
    pub fn sparkplug(&self) -> SparkplugCounters {
        self.streams.sparkplug()
    }

    /// Messages acknowledged before their record, against their stream's wish.
    pub fn early_acks(&self) -> EarlyAcks {
        self.streams.early_acks
    }

    /// Topics forgotten to make room for others; each costs a search when it comes again.
    pub fn topics_evicted(&self) -> u64 {
        self.router.topics_evicted()
    }

    /// Windows being scored now, here or elsewhere.
    pub fn pending_windows(&self) -> usize {
        self.streams.pending_len()
    }

    /// True while nothing more is read, because memory or the queue of windows is full.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Connections now, without those that are about to be refused.
    pub fn connections_len(&self) -> usize {
        self.clients.len() - self.surplus_count
    }

    /// The last messages that nothing could be made of, oldest first.
    pub fn inspected(&self) -> impl Iterator<Item = &Inspected> {
        self.inspected.iter()
    }

    /// Why a connection is not read from, if so; for the status page.
    pub fn pauses(&self, now_us: u64) -> impl Iterator<Item = (ConnId, Pause)> + '_ {
        self.clients.iter().filter_map(move |(&conn, client)| client.conn.pause(now_us).map(|pause| (conn, pause)))
    }

    /// For each lane, whether anyone waits for a PUBACK of it; for tests and the status page.
    pub fn unacknowledged(&self) -> usize {
        let to_clients: usize = self.clients.values().map(|client| client.acks.len()).sum();
        to_clients + self.brokers().map(|broker| broker.in_flight).sum::<usize>()
    }
}

fn flush(outputs: &mut VecDeque<Output>, conn: ConnId, client: &mut Client) {
    let bytes = client.conn.output();
    if !bytes.is_empty() {
        outputs.push_back(Output::Write { conn, bytes: std::mem::take(bytes) });
    }
}

fn tree<'a>(filters: impl Iterator<Item = (u16, &'a String)>) -> Result<FilterTree, RouteError> {
    let mut parsed = Vec::new();
    for (index, filter) in filters {
        let ok = Filter::parse(filter).map_err(|error| RouteError { filter: filter.clone(), error })?;
        parsed.push((ok, index));
    }
    Ok(FilterTree::new(parsed.iter().map(|(filter, index)| (filter, *index))))
}
