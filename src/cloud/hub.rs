//! The hub: one task that owns every gateway's [`Receiver`] and carries out what they say.
//!
//! Connections send it what they read; the sink reports what is durable; both meet here, so no state is shared. Nothing in
//! it waits: the sink's queue has room for whatever got this far, and a connection that does not read its control stream
//! is closed.
//!
//! A Hello is answered when the sink has read what is on record. Its answer comes on the same channel as its commits, so
//! at that moment it is exactly what has been committed; epochs that were dropped from memory meanwhile are asked for again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use weir_host::clock::unix_us;
use weir_host::notify::Notify;
use weir_host::shutdown::Shutdown;
use weir_logic::block::BlockHeader;
use weir_logic::ids::{Class, Epoch, PerClass};
use weir_logic::load::{Load, LoadTold, credits, is_overloaded};
use weir_logic::pool::PoolsTold;
use weir_logic::receive::{Alert, CloseCode, Counters, Input, Known, Now, Output, Receiver, SessionId};
use weir_logic::wire::{AskedQuestion, Body, Hello, LaneStream};

use crate::config::Limits;
use crate::graph::{GlobalGraph, Shown};
use crate::metrics::Metrics;
use crate::models::{Models, Shelf};
use crate::policies::{Directory, Policies};
use crate::pools::{Door, PoolStatus};
use crate::questions::Questions;
use crate::session::Transport;
use crate::sink::{Job, Sink, SinkEvent, Work};
use crate::status::{AlertStatus, GatewayStatus, LaneStatus, SessionStatus, SinkStatus, Status};

mod models;
mod policies;
mod pools;

/// Alerts shown in the status.
const ALERTS_SHOWN_MAX: usize = 100;

/// What connections tell the hub.
#[derive(Debug)]
pub(crate) enum ToHub {
    /// Somebody wants the global graph, or a part of it, as JSON.
    GraphAsked {
        shown: Shown,
        answer_tx: oneshot::Sender<Result<String, String>>,
    },
    /// Somebody asks a gateway why.
    Asked {
        gateway: Arc<str>,
        question: String,
        answer_tx: oneshot::Sender<Result<String, String>>,
    },
    Hello {
        session: SessionId,
        hello: Hello,
        peer: Peer,
    },
    Control {
        session: SessionId,
        body: Body,
    },
    Block {
        session: SessionId,
        stream: LaneStream,
        header: BlockHeader,
        block: Bytes,
        room: OwnedSemaphorePermit,
    },
    Closed {
        session: SessionId,
        gateway: Arc<str>,
    },
}

/// The hub's end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) gateway: Arc<str>,
    pub(crate) remote: SocketAddr,
    pub(crate) transport: Transport,
    pub(crate) control_tx: mpsc::Sender<Body>,
    /// Set when the Hello was accepted: only then the connection reads on.
    pub(crate) ready_tx: watch::Sender<bool>,
}

/// What the hub needs from outside.
pub(crate) struct Links {
    pub(crate) inbox_rx: mpsc::Receiver<ToHub>,
    pub(crate) sink_rx: mpsc::UnboundedReceiver<SinkEvent>,
    pub(crate) directory_rx: watch::Receiver<Arc<Directory>>,
    pub(crate) shelf_rx: watch::Receiver<Arc<Shelf>>,
    pub(crate) pools_rx: watch::Receiver<Arc<Vec<PoolStatus>>>,
    pub(crate) door: Arc<Door>,
    pub(crate) sink: Sink,
    pub(crate) status_tx: watch::Sender<Arc<Status>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) notify: Arc<Notify>,
}

pub(crate) struct Hub {
    links: Links,
    gateways: BTreeMap<Arc<str>, Gateway>,
    sessions: BTreeMap<SessionId, Session>,
    /// Counters of gateways that are not in memory any more.
    retired: Counters,
    credits: PerClass<u64>,
    credit_bytes: u64,
    gateways_cached: usize,
    overloaded: bool,
    stalled: Option<String>,
    alerts: VecDeque<AlertStatus>,
    started: Instant,
    transactions_seen: u64,
    /// Transactions and the microseconds that they took, when our own load was last told.
    commits_seen: (u64, u64),
    graph: GlobalGraph,
    load_told: LoadTold,
    questions: Questions,
    policies: Policies,
    models: Models,
}

struct Gateway {
    receiver: Receiver,
    lag_s: PerClass<Option<f64>>,
    used: Instant,
}

struct Session {
    peer: Peer,
    /// The Hello, and the epochs asked for, until the sink has answered.
    opening: Option<(Hello, Vec<Epoch>)>,
    /// Whether it answers questions, and the version of its software.
    answers: bool,
    software: String,
    pools: PoolsTold,
}

impl Hub {
    pub(crate) fn new(links: Links, graph: GlobalGraph, offered: (Policies, Models), limits: &Limits) -> Self {
        let (policies, models) = offered;
        let (credit_bytes, gateways_cached) = (limits.credit_bytes.get(), limits.gateways_cached);
        Hub {
            links,
            gateways: BTreeMap::new(),
            sessions: BTreeMap::new(),
            retired: Counters::default(),
            credits: [credit_bytes; 4],
            credit_bytes,
            gateways_cached,
            overloaded: false,
            stalled: None,
            alerts: VecDeque::new(),
            started: Instant::now(),
            transactions_seen: 0,
            commits_seen: (0, 0),
            graph,
            load_told: LoadTold::default(),
            questions: Questions::default(),
            policies,
            models,
        }
    }

    /// Runs until shutdown and the sink's last commit; returns the sink's failure if it could not go on.
    pub(crate) async fn run(mut self, mut shutdown: Shutdown) -> Result<(), String> {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                event = self.links.sink_rx.recv() => match event {
                    Some(SinkEvent::Finished(result)) => return result,
                    Some(event) => self.sink_event(event),
                    None => return Err("the sink's thread has ended".to_owned()),
                },
                () = shutdown.requested(), if !stopping => {
                    stopping = true;
                    self.links.sink.finish();
                }
                _ = ticks.tick() => self.tick(),
                Some(message) = self.links.inbox_rx.recv(), if !stopping => self.message(message),
            }
            self.adjust_credits();
        }
    }

    fn now(&self) -> Now {
        Now {
            mono_us: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            unix_us: i64::try_from(unix_us()).unwrap_or(i64::MAX),
        }
    }

    fn message(&mut self, message: ToHub) {
        match message {
            ToHub::Hello { session, hello, peer } => {
                self.gateways.entry(peer.gateway.clone()).or_insert_with(|| Gateway::new(self.credits));
                let (answers, software) = (hello.answers, hello.software.clone());
                self.sessions.insert(session, Session { peer, opening: None, answers, software, pools: PoolsTold::default() });
                self.load(session, hello, Vec::new());
            }
            ToHub::GraphAsked { shown, answer_tx } => {
                // Who has not waited does not want to know.
                let _ = answer_tx.send(self.graph.json(self.now().mono_us, &shown));
            }
            ToHub::Asked { gateway, question, answer_tx } => self.asked(&gateway, question, answer_tx),
            ToHub::Control { session, body: Body::Answer(answer) } => self.questions.answered(session, answer),
            ToHub::Control { session, body: Body::Digest(digest) } => self.digest(session, &digest.digest),
            ToHub::Control { session, body: Body::PolicyState(state) } => {
                if let Some(gateway) = self.sessions.get(&session).map(|session| session.peer.gateway.clone()) {
                    self.policy_told(&gateway, state);
                }
            }
            ToHub::Control { session, body: Body::ModelStates(states) } => {
                if let Some(gateway) = self.sessions.get(&session).map(|session| session.peer.gateway.clone()) {
                    self.models_told(&gateway, states);
                }
            }
            ToHub::Control { session, body } => {
                if let Some(gateway) = self.sessions.get(&session).map(|session| session.peer.gateway.clone()) {
                    self.feed(&gateway, Input::Control { session, body }, None);
                }
            }
            ToHub::Block { session, stream, header, block, room } => {
                if let Some(gateway) = self.sessions.get(&session).map(|session| session.peer.gateway.clone()) {
                    self.feed(&gateway, Input::Block { session, stream, header, block }, Some(room));
                }
            }
            ToHub::Closed { session, gateway } => {
                self.sessions.remove(&session);
                self.questions.session_ended(session);
                if !self.sessions.values().any(|session| session.peer.gateway == gateway) {
                    self.policies.lost(&gateway);
                    self.models.lost(&gateway);
                }
                self.feed(&gateway, Input::Closed { session }, None);
            }
        }
    }

    /// Asks a gateway over its newest session.
    fn asked(&mut self, gateway: &Arc<str>, question: String, answer_tx: oneshot::Sender<Result<String, String>>) {
        let mut greeted = self.sessions.iter().rev().filter(|(_, session)| session.opening.is_none());
        let found = greeted.find(|(_, session)| session.peer.gateway == *gateway);
        let metrics = &self.links.metrics;
        let refusal = match found {
            None => "it is not connected".to_owned(),
            Some((_, session)) if !session.answers => {
                format!("its software, version {}, does not answer questions yet: upgrade weir-edge there", session.software)
            }
            Some((&id, _)) => match self.questions.add(id, gateway, answer_tx) {
                Ok(number) => {
                    metrics.questions_asked.fetch_add(1, Relaxed);
                    return self.say(id, Body::Question(AskedQuestion { id: number, text: question }));
                }
                Err(answer_tx) => {
                    metrics.questions_refused.fetch_add(1, Relaxed);
                    let _ = answer_tx.send(Err("too many questions wait for their answers: ask again".to_owned()));
                    return;
                }
            },
        };
        // Who has not waited does not want to know.
        let _ = answer_tx.send(Err(refusal));
    }

    /// A gateway's part of the health graph, or what has changed in it.
    fn digest(&mut self, id: SessionId, digest: &[u8]) {
        let Some(gateway) = self.sessions.get(&id).map(|session| session.peer.gateway.clone()) else { return };
        if let Some(answer) = self.graph.merge(self.now().mono_us, &gateway, digest) {
            self.say(id, answer);
        }
    }

    /// Looks for what boxes have in common, and tells those that it concerns; tells all how busy we are.
    fn advise(&mut self) {
        let now_us = self.now().mono_us;
        let (count, us) = (self.links.metrics.sink_transactions.load(Relaxed), self.links.metrics.sink_commit_seconds.micros());
        let (count_before, us_before) = std::mem::replace(&mut self.commits_seen, (count, us));
        let commit_us = us.saturating_sub(us_before).checked_div(count.saturating_sub(count_before));
        let (overloaded, stalled) = (self.overloaded, self.stalled.is_some());
        let load = Load { queue_percent: self.links.sink.fill_percent(), overloaded, stalled, commit_us };
        self.graph.tick(now_us, load, &self.links.pools_rx.borrow());
        if let Some(news) = self.load_told.news(now_us, load) {
            // A box that has not been greeted yet is told when it is.
            let greeted = self.sessions.iter().filter(|(_, session)| session.opening.is_none());
            let ids: Vec<SessionId> = greeted.map(|(&id, _)| id).collect();
            ids.into_iter().for_each(|id| self.say(id, news.clone()));
        }
        let mut told: BTreeSet<Arc<str>> = BTreeSet::new();
        let sessions: Vec<_> = self.sessions.iter().map(|(&id, session)| (id, session.peer.gateway.clone())).collect();
        // The newest session of each gateway is the one most likely to live.
        for (id, gateway) in sessions.into_iter().rev() {
            if told.insert(gateway.clone())
                && let Some(advice) = self.graph.advice(now_us, &gateway)
            {
                self.say(id, advice);
            }
        }
    }

    /// Asks the sink for the epochs of a Hello that are not in memory.
    fn load(&mut self, id: SessionId, hello: Hello, mut asked: Vec<Epoch>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let gateway = &session.peer.gateway;
        asked.extend(self.gateways.get(gateway).map(|gateway| gateway.receiver.to_load(&hello)).unwrap_or_default());
        self.links.sink.load(gateway.clone(), asked.clone(), id);
        session.opening = Some((hello, asked));
    }

    fn loaded(&mut self, id: SessionId, known: Result<Known, String>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some((hello, asked)) = session.opening.take() else { return };
        let gateway = session.peer.gateway.clone();
        let known = match known {
            Ok(known) => known,
            Err(err) => {
                tracing::error!(%gateway, err, "coverage not read");
                return self.close(id, CloseCode::Busy, "the database cannot be read; try again");
            }
        };
        let entry = self.gateways.entry(gateway.clone()).or_insert_with(|| Gateway::new(self.credits));
        if entry.receiver.to_load(&hello).iter().any(|epoch| !asked.contains(epoch)) {
            return self.load(id, hello, asked);
        }
        self.feed(&gateway, Input::Hello { session: id, hello, known }, None);
        if let Some(load) = self.load_told.present() {
            self.say(id, load);
        }
        self.tell_pools(id);
        if let Some(session) = self.sessions.get(&id) {
            session.peer.ready_tx.send_replace(true);
        }
    }

    /// Hands an input to a gateway's receiver, and does what it says. `room` goes along with the block, if it is stored.
    fn feed(&mut self, name: &Arc<str>, input: Input, mut room: Option<OwnedSemaphorePermit>) {
        let now = self.now();
        let Some(gateway) = self.gateways.get_mut(name) else { return };
        gateway.used = Instant::now();
        gateway.receiver.handle(now, input);
        let outputs: Vec<Output> = std::iter::from_fn(|| gateway.receiver.poll()).collect();
        for output in outputs {
            let work = match output {
                Output::Send { session, body } => {
                    let body = self.graph.stamped(name, body);
                    self.say(session, body);
                    continue;
                }
                Output::Close { session, reason } => {
                    self.close(session, reason.code(), &reason.to_string());
                    continue;
                }
                Output::Store(store) => {
                    self.note_lag(name, &store.header, store.wall_offset_us, now);
                    Work::Store(store)
                }
                Output::StoreVoid(void) => Work::Void(void),
                Output::EpochOpened { epoch, returned } => Work::EpochOpened(epoch, returned),
                Output::EpochsClosed { except } => Work::EpochsClosed(except),
                Output::Alert(alert) => self.alert_of(name, &alert),
            };
            let room = if matches!(work, Work::Store(_)) { room.take() } else { None };
            self.links.sink.push(Job { gateway: name.clone(), work, room });
        }
    }

    fn note_lag(&mut self, name: &Arc<str>, header: &BlockHeader, estimate_us: i64, now: Now) {
        let offset_us = header.wall_offset_us.unwrap_or(estimate_us);
        let age_us = now.unix_us.saturating_sub(offset_us.saturating_add_unsigned(header.born_us));
        if let Some(gateway) = self.gateways.get_mut(name) {
            gateway.lag_s[header.key.lane.index()] = Some(age_us.max(0) as f64 / 1e6);
        }
    }

    fn alert_of(&mut self, name: &Arc<str>, alert: &Alert) -> Work {
        match *alert {
            Alert::Missing(range) => {
                let (lane, first, epoch) = (range.key.lane.name(), range.key.first_seq, range.key.epoch.0);
                tracing::error!(gateway = %name, lane, first, last = range.last_seq, "records are missing");
                let text = format!("records {first} to {} of lane {lane}, epoch {epoch:016x}, are missing", range.last_seq);
                self.alert(name, "missing", &text);
                Work::Missing(range)
            }
            Alert::Cloned { from, to } => {
                tracing::error!(gateway = %name, "one identity is used by two boxes");
                let text = format!(
                    "epochs {:016x} and {:016x} keep taking over from each other: two boxes use one certificate",
                    from.0, to.0
                );
                self.alert(name, "cloned", &text);
                Work::Alert("cloned", text)
            }
        }
    }

    fn alert(&mut self, gateway: &str, kind: &'static str, text: &str) {
        if self.alerts.len() >= ALERTS_SHOWN_MAX {
            self.alerts.pop_front();
        }
        self.alerts.push_back(AlertStatus { at_us: unix_us(), gateway: gateway.to_owned(), kind, text: text.to_owned() });
    }

    fn say(&mut self, id: SessionId, body: Body) {
        let Some(session) = self.sessions.get(&id) else { return };
        if session.peer.control_tx.try_send(body).is_err() {
            self.close(id, CloseCode::Busy, "the control stream is not read");
        }
    }

    /// The connection's own task reports the end of it.
    fn close(&mut self, id: SessionId, code: CloseCode, reason: &str) {
        if let Some(session) = self.sessions.remove(&id) {
            self.questions.session_ended(id);
            tracing::warn!(gateway = %session.peer.gateway, session = id.0, reason, "session closed");
            session.peer.transport.close(code, reason);
        }
    }

    fn sink_event(&mut self, event: SinkEvent) {
        match event {
            SinkEvent::Loaded { session, known } => self.loaded(session, known),
            SinkEvent::PolicyLoaded { version, record } => self.policy_loaded(version, record),
            SinkEvent::ModelLoaded { key, record } => self.model_loaded(key, record),
            SinkEvent::Committed(committed) => {
                for (gateway, ranges) in committed {
                    self.feed(&gateway, Input::Committed { ranges }, None);
                }
            }
            SinkEvent::Quarantined { gateway, reason } => self.alert(&gateway, "quarantine", &reason),
            SinkEvent::Stalled(reason) => {
                self.alert("", "store", &format!("the database takes nothing: {reason}"));
                self.stalled = Some(reason);
                self.publish();
            }
            SinkEvent::Resumed => {
                self.alert("", "store", "the database takes data again");
                self.stalled = None;
                self.publish();
            }
            // The caller ends with it.
            SinkEvent::Finished(_) => {}
        }
    }

    /// Credits: none while nothing can be stored, critical only while the queue is nearly full.
    fn adjust_credits(&mut self) {
        self.overloaded = is_overloaded(self.overloaded, self.links.sink.fill_percent());
        let credits = credits(self.credit_bytes, self.stalled.is_some(), self.overloaded);
        if std::mem::replace(&mut self.credits, credits) != credits {
            self.feed_all(&Input::CreditLevel { bytes: credits });
        }
    }

    fn feed_all(&mut self, input: &Input) {
        let names: Vec<_> = self.gateways.keys().cloned().collect();
        for name in names {
            let used = self.gateways[&name].used;
            self.feed(&name, input.clone(), None);
            if let Some(gateway) = self.gateways.get_mut(&name) {
                gateway.used = used;
            }
        }
    }

    fn tick(&mut self) {
        self.feed_all(&Input::Tick);
        self.links.metrics.questions_unanswered.fetch_add(self.questions.expire(Instant::now()), Relaxed);
        self.advise();
        self.tell_all_pools();
        self.offer_policies();
        self.offer_models();
        self.retire();
        self.publish();
        let transactions = self.links.metrics.sink_transactions.load(Relaxed);
        let is_progress = transactions != std::mem::replace(&mut self.transactions_seen, transactions);
        if is_progress || self.stalled.is_some() || self.links.sink.queued_bytes() == 0 {
            self.links.notify.watchdog();
        }
    }

    /// Drops the longest unused of the gateways without a connection, down to the limit.
    fn retire(&mut self) {
        let mut idle: Vec<(Instant, Arc<str>)> = Vec::new();
        for (name, gateway) in self.gateways.iter().filter(|(_, gateway)| gateway.receiver.is_idle()) {
            idle.push((gateway.used, name.clone()));
        }
        idle.sort();
        let surplus = idle.len().saturating_sub(self.gateways_cached);
        for (_, name) in idle.into_iter().take(surplus) {
            if let Some(gateway) = self.gateways.remove(&name) {
                self.retired.add(gateway.receiver.counters());
            }
        }
    }

    fn publish(&self) {
        let mut counters = self.retired;
        self.gateways.values().for_each(|gateway| counters.add(gateway.receiver.counters()));
        let mut sessions: BTreeMap<&str, Vec<SessionStatus>> = BTreeMap::new();
        for (id, session) in &self.sessions {
            let of_gateway = sessions.entry(&session.peer.gateway).or_default();
            of_gateway.push(SessionStatus { id: id.0, remote: session.peer.remote, transport: session.peer.transport.name() });
        }
        let gateways_connected = sessions.len();
        let status_of = |(name, gateway): (&Arc<str>, &Gateway)| GatewayStatus {
            policy_version: self.policies.kept_by(name),
            models: self.models.of(name),
            ..gateway.status(name, sessions.remove(&**name))
        };
        let gateways = self.gateways.iter().map(status_of).collect();
        let status = Status {
            software: env!("CARGO_PKG_VERSION"),
            at_us: unix_us(),
            connections: self.sessions.len(),
            gateways_connected,
            sink: SinkStatus {
                stalled: self.stalled.is_some(),
                reason: self.stalled.clone().unwrap_or_default(),
                queue_bytes: self.links.sink.queued_bytes(),
                rows: self.links.metrics.sink_rows.load(Relaxed),
            },
            gateways,
            alerts: self.alerts.iter().cloned().collect(),
            counters,
            graph: self.graph.status(),
            policies: self.policies.status(),
            models: self.models.status(),
            pools: self.pools_status(),
        };
        self.links.status_tx.send_replace(Arc::new(status));
    }
}

impl Gateway {
    fn new(credits: PerClass<u64>) -> Self {
        Gateway { receiver: Receiver::new(credits), lag_s: [None; 4], used: Instant::now() }
    }

    fn status(&self, name: &str, sessions: Option<Vec<SessionStatus>>) -> GatewayStatus {
        let counters = self.receiver.counters();
        let lane = |class: Class| LaneStatus {
            lane: class.name(),
            blocks: counters.blocks_stored[class.index()],
            bytes: counters.blocks_bytes[class.index()],
            durable: counters.seqs_durable[class.index()],
            lag_s: self.lag_s[class.index()],
        };
        GatewayStatus {
            name: name.to_owned(),
            epoch: self.receiver.current().map(|epoch| format!("{:016x}", epoch.0)).unwrap_or_default(),
            sessions: sessions.unwrap_or_default(),
            lanes: Class::ALL.map(lane).to_vec(),
            missing: self.receiver.missing(),
            policy_version: None,
            models: Vec::new(),
        }
    }
}
