//! The loop that feeds the gateway and carries out what it wants.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use weir_host::clock::{Clock, ClockMark};
use weir_host::notify::Notify;
use weir_host::shutdown::Shutdown;
use weir_infer::{Origin, Outcome, Request, Worker};
use weir_logic::budget::BudgetLevel;
use weir_logic::gateway::{Event, Gateway, Input, Output};
use weir_logic::health::PathStats;
use weir_logic::ids::VoidReason;
use weir_logic::ingest::{BrokerEvent, BrokerIndex, ConnId, ModelName, Moment, Scored};
use weir_logic::models::FetchOutput;
use weir_logic::mqtt::{AuthRefusal, Close};
use weir_logic::rollout::OfferState;
use weir_logic::uplink::DownReason;

use super::Message;
use super::auth::Credentials;
use super::broker::BrokerTarget;
use super::listen::{ClientCommand, ClientHandle, ClientOrigin, ConnIds, ListenCounters, recycle};
use super::models::{FromModels, ToModels};
use super::notices::Notices;
use super::policies::ToDesk;
use super::scoring::ModelsAtWork;
use super::uplink::{UplinkCommand, UplinkEvent};
use crate::budget;
use crate::status::{Status, StoreStatus};
use crate::store::{StoreEvent, StoreInput, StoreTime};

/// Outcomes of one batch of one model.
#[derive(Debug)]
pub(crate) struct InferBatch {
    pub(crate) model: usize,
    /// Whose they are, if it is another than the policy names.
    pub(crate) by: Option<Arc<ModelName>>,
    pub(crate) outcomes: Vec<Outcome>,
}

/// What comes of windows.
#[derive(Debug)]
pub(crate) enum InferMessage {
    Batch(InferBatch),
    /// Windows of a canary's devices, with the answers that are to be used.
    Canary(Vec<Scored>),
    /// What the desk for models has to say.
    News(FromModels),
}

/// An uplink as the driver sees it.
#[derive(Debug)]
pub(crate) struct UplinkHandle {
    pub(crate) name: String,
    pub(crate) commands_tx: mpsc::UnboundedSender<UplinkCommand>,
    pub(crate) events_rx: mpsc::Receiver<(u64, UplinkEvent)>,
    /// Attempts made: events of older ones are dropped.
    generation: u64,
    path: PathStats,
}

impl UplinkHandle {
    pub(crate) fn new(
        name: String,
        commands_tx: mpsc::UnboundedSender<UplinkCommand>,
        events_rx: mpsc::Receiver<(u64, UplinkEvent)>,
    ) -> Self {
        UplinkHandle { name, commands_tx, events_rx, generation: 0, path: PathStats::default() }
    }
}

/// Everything the driver is wired to.
pub(crate) struct DriverParts {
    pub(crate) gateway: Gateway,
    pub(crate) clock: Clock,
    /// For the tasks of brokers.
    pub(crate) messages_tx: mpsc::Sender<Message>,
    pub(crate) messages_rx: mpsc::Receiver<Message>,
    pub(crate) credentials_tx: mpsc::Sender<Credentials>,
    pub(crate) store_tx: mpsc::Sender<StoreInput>,
    pub(crate) store_rx: mpsc::Receiver<StoreEvent>,
    pub(crate) policies_tx: std::sync::mpsc::Sender<ToDesk>,
    /// In the order of the policy's.
    pub(crate) brokers: Vec<Arc<BrokerTarget>>,
    pub(crate) models: Vec<Worker>,
    /// How long a model may take for a batch before it is given up, in microseconds.
    pub(crate) hang_us: u64,
    pub(crate) infer_rx: mpsc::Receiver<InferMessage>,
    /// The desk for models, if the box takes any.
    pub(crate) desk_tx: Option<SyncSender<ToModels>>,
    /// The disk's part of fetching models, if the box takes any.
    pub(crate) fetches_tx: Option<std::sync::mpsc::Sender<FetchOutput>>,
    pub(crate) uplinks: Vec<UplinkHandle>,
    pub(crate) status_tx: watch::Sender<Status>,
    pub(crate) base_status: Status,
    pub(crate) budget_path: PathBuf,
    pub(crate) notify: Notify,
    pub(crate) listen_counters: Arc<ListenCounters>,
}

/// The loop's state.
pub(crate) struct Driver {
    pub(super) parts: DriverParts,
    conns: ConnIds,
    clients: HashMap<ConnId, ClientHandle>,
    store: StoreStatus,
    /// Loads and commits that found the store's queue full; it is longer than the gateway ever asks for at once.
    waiting_store: VecDeque<StoreInput>,
    published_us: u64,
    /// When the months' budgets were last saved, and what was saved.
    budgets_saved_us: u64,
    budgets_saved: BTreeMap<String, BudgetLevel>,
    /// The last save failed: what it was to save is not on disk.
    budgets_unsaved: Arc<AtomicBool>,
    /// When the transaction that is under way was handed to the disk.
    asked_us: Option<u64>,
    pub(super) models: ModelsAtWork,
    /// When models were last looked at.
    pub(super) looked_us: u64,
    /// Clients sent away because too many waited for their password to be checked.
    auth_refused: u64,
    refusals: Notices,
    /// By uplink: a failed attempt of the present outage is in the log.
    said_failed: Vec<bool>,
    /// The same for brokers' clients.
    said_broker_failed: Vec<bool>,
}

/// How often the status is published.
const STATUS_US: u64 = 200_000;
/// Messages taken at once before outputs are carried out: acknowledgements of several reads leave together.
const MESSAGES_AT_ONCE: usize = 32;
/// A transaction that takes longer than this will not end by itself.
const STUCK_US: u64 = 60_000_000;
/// How long a stop may wait for the disk.
const STOP_LIMIT: Duration = Duration::from_secs(10);

enum Woken {
    Message(Message),
    Store(StoreEvent),
    Infer(InferMessage),
    Uplink(usize, u64, UplinkEvent),
    Time,
    Stop,
}

impl Driver {
    pub(crate) fn new(parts: DriverParts) -> Self {
        Driver {
            models: ModelsAtWork::new(parts.models.len()),
            said_failed: vec![false; parts.uplinks.len()],
            said_broker_failed: vec![false; parts.brokers.len()],
            parts,
            conns: ConnIds::default(),
            clients: HashMap::new(),
            store: StoreStatus::default(),
            waiting_store: VecDeque::new(),
            published_us: 0,
            budgets_saved_us: 0,
            budgets_saved: BTreeMap::new(),
            budgets_unsaved: Arc::default(),
            auth_refused: 0,
            refusals: Notices::default(),
            asked_us: None,
            looked_us: 0,
        }
    }

    /// Runs until shutdown is requested and what can be made safe is.
    pub(crate) async fn run(mut self, mut shutdown: Shutdown) -> Vec<Worker> {
        self.carry_out();
        self.publish(true);
        self.parts.notify.ready();
        while !shutdown.is_requested() {
            let woken = self.woken(&mut shutdown).await;
            if matches!(woken, Woken::Stop) {
                break;
            }
            self.take(woken);
            for _ in 1..MESSAGES_AT_ONCE {
                if self.parts.gateway.ingest().is_full() {
                    break;
                }
                let Ok(message) = self.parts.messages_rx.try_recv() else { break };
                self.take(Woken::Message(message));
            }
            self.carry_out();
            if self.parts.clock.now_us() >= self.looked_us.saturating_add(STATUS_US) {
                self.watch_models(moment(&self.parts.clock));
                self.carry_out();
            }
            self.publish(false);
            self.save_budgets(false).await;
        }
        self.stop().await;
        self.publish(true);
        self.save_budgets(true).await;
        self.parts.models
    }

    /// Waits for the next thing to happen.
    async fn woken(&mut self, shutdown: &mut Shutdown) -> Woken {
        let now_us = self.parts.clock.now_us();
        let wait = Duration::from_micros(self.parts.gateway.deadline_us().saturating_sub(now_us));
        let DriverParts { messages_rx, store_rx, infer_rx, uplinks, .. } = &mut self.parts;
        tokio::select! {
            biased;
            () = shutdown.requested() => Woken::Stop,
            (index, generation, event) = next_uplink_event(uplinks) => Woken::Uplink(index, generation, event),
            Some(event) = store_rx.recv() => Woken::Store(event),
            Some(batch) = infer_rx.recv() => Woken::Infer(batch),
            Some(message) = messages_rx.recv() => Woken::Message(message),
            () = tokio::time::sleep(wait) => Woken::Time,
        }
    }

    fn take(&mut self, woken: Woken) {
        let now = moment(&self.parts.clock);
        match woken {
            Woken::Message(message) => self.message(now, message),
            Woken::Store(event) => self.store_event(now, event),
            Woken::Infer(InferMessage::Batch(batch)) => self.inferred(now, batch),
            Woken::Infer(InferMessage::News(news)) => self.news_of_models(news),
            Woken::Infer(InferMessage::Canary(windows)) => {
                windows.into_iter().for_each(|scored| self.parts.gateway.handle(now, Input::Inferred(scored)));
            }
            Woken::Uplink(index, generation, event)
                if generation == self.parts.uplinks[index].generation || matches!(event, UplinkEvent::Interface { .. }) =>
            {
                self.uplink_event(now, index as u8, event);
            }
            Woken::Time => self.parts.gateway.handle(now, Input::Tick),
            Woken::Uplink(..) | Woken::Stop => {}
        }
    }

    fn message(&mut self, now: Moment, message: Message) {
        let gateway = &mut self.parts.gateway;
        match message {
            Message::ClientOpened { listener, peer, certificate, commands_tx, opened_tx } => {
                let conn = self.conns.next();
                if opened_tx.send(conn).is_ok() {
                    let origin = Some(ClientOrigin { listener, peer, certificate });
                    self.clients.insert(conn, ClientHandle { origin, commands_tx, buffer: None });
                    gateway.handle(now, Input::ClientOpened { conn });
                }
            }
            Message::BrokerOpened { broker, generation, commands_tx, opened_tx } => {
                let conn = self.conns.next();
                if opened_tx.send(conn).is_ok() {
                    self.clients.insert(conn, ClientHandle { origin: None, commands_tx, buffer: None });
                    gateway.handle(now, Input::BrokerOpened { conn, broker, generation });
                }
            }
            Message::BrokerFailed { broker, generation, reason } => {
                gateway.handle(now, Input::BrokerFailed { broker, generation, reason });
            }
            Message::ClientRead { conn, bytes } => {
                gateway.handle(now, Input::ClientRead { conn, bytes: &bytes });
                if let Some(client) = self.clients.get_mut(&conn) {
                    client.buffer = Some(bytes);
                }
            }
            Message::ClientLost { conn } => gateway.handle(now, Input::ClientLost { conn }),
            Message::HandshakeFailed { peer, reason } => self.refused(now.service_us, peer, "", &reason),
            Message::GraphAsked { answer_tx } => {
                let none = || "a name of this box's policy cannot stand in the health graph".to_owned();
                let _ = answer_tx.send(gateway.graph(now.service_us).map(|graph| graph.to_json()).ok_or_else(none));
            }
            Message::Asked { question, answer_tx } => {
                let answer = gateway.explain(now.service_us, &question);
                // Who has not waited does not want to know.
                let _ = answer_tx.send(answer.map(|answer| serde_json::to_string(&answer).unwrap_or_default()));
            }
            Message::PolicyChecked { version, result } => gateway.handle(now, Input::PolicyChecked { version, result }),
            Message::Fetch(input) => gateway.handle(now, Input::Fetch(input)),
            Message::Authenticated { conn, result } => gateway.handle(now, Input::Authenticated { conn, result }),
        }
    }

    fn store_event(&mut self, now: Moment, event: StoreEvent) {
        if let Some(waiting) = self.waiting_store.pop_front() {
            self.ask_store(waiting);
        }
        match event {
            StoreEvent::Committed { ticket, stats } => {
                self.asked_us = None;
                self.store.commits += 1;
                self.store.flash_bytes += stats.bytes_written;
                self.store.file_bytes = stats.file_bytes;
                self.store.commit_us_last = stats.took_us;
                self.parts.gateway.handle(now, Input::Committed { ticket, result: Ok(()) });
            }
            StoreEvent::CommitFailed { ticket, error } => {
                self.asked_us = None;
                self.store.commit_failures += 1;
                self.parts.gateway.handle(now, Input::Committed { ticket, result: Err(error) });
            }
            StoreEvent::Loaded { key, block: Ok(block) } => self.parts.gateway.handle(now, Input::Loaded { key, block }),
            StoreEvent::Loaded { key, block: Err(err) } => {
                tracing::error!(?key, %err, "cannot read a block from the buffer; it is tried again");
                self.parts.gateway.handle(now, Input::LoadFailed { key });
            }
        }
    }

    fn uplink_event(&mut self, now: Moment, uplink: u8, event: UplinkEvent) {
        let gateway = &mut self.parts.gateway;
        match event {
            UplinkEvent::Connected => gateway.handle(now, Input::UplinkConnected { uplink }),
            UplinkEvent::Control(bytes) => gateway.handle(now, Input::UplinkControl { uplink, bytes: &bytes }),
            UplinkEvent::Written { flow, len } => gateway.handle(now, Input::UplinkWritten { uplink, flow, len }),
            UplinkEvent::Path(path) => {
                self.parts.uplinks[usize::from(uplink)].path = path;
                gateway.handle(now, Input::UplinkPath { uplink, path });
            }
            UplinkEvent::OffloadAnswered { id, bytes } => gateway.handle(now, Input::OffloadAnswered { id, bytes: &bytes }),
            UplinkEvent::OffloadFailed { id } => gateway.handle(now, Input::OffloadFailed { id }),
            UplinkEvent::ChunkCame { id, bytes } => gateway.handle(now, Input::ChunkCame { id, bytes: &bytes }),
            UplinkEvent::ChunkFailed { id } => gateway.handle(now, Input::ChunkFailed { id }),
            UplinkEvent::Closed(reason) => gateway.handle(now, Input::UplinkClosed { uplink, reason }),
            UplinkEvent::Interface { up } => gateway.handle(now, Input::UplinkInterface { uplink, up }),
        }
    }

    /// Carries out everything the gateway wants.
    fn carry_out(&mut self) {
        while let Some(output) = self.parts.gateway.poll() {
            match output {
                Output::ClientWrite { conn, bytes } => self.tell_client(conn, ClientCommand::Write(bytes)),
                Output::ClientRead { conn } => {
                    let buffer = self.clients.get_mut(&conn).and_then(|client| client.buffer.take()).map(recycle);
                    self.tell_client(conn, ClientCommand::Read(buffer));
                }
                Output::ClientClose { conn, client_id, close } => self.close_client(conn, &client_id, close),
                Output::BrokerConnect { broker, generation } => self.connect_broker(broker, generation),
                Output::BrokerClose { conn } => {
                    self.tell_client(conn, ClientCommand::Close);
                    self.clients.remove(&conn);
                }
                Output::Authenticate { conn, username, password } => self.authenticate(conn, username, password),
                Output::Infer(job) => {
                    let model = usize::from(job.model);
                    let origin = Origin { device: job.source.into(), start_us: job.start_us, end_us: job.end_us };
                    self.submit_also(model, Request { id: job.job, window: job.window, origin: Some(origin) });
                }
                Output::Commit(request) => {
                    let now = moment(&self.parts.clock);
                    let time = store_time(&self.parts.clock, now);
                    self.asked_us = Some(now.service_us);
                    self.ask_store(StoreInput::Commit { request, time });
                }
                Output::Load { key } => self.ask_store(StoreInput::Load { key }),
                Output::Connect { uplink } => {
                    self.parts.uplinks[usize::from(uplink)].generation += 1;
                    self.tell_uplink(uplink, UplinkCommand::Connect);
                }
                Output::ControlWrite { uplink, bytes } => self.tell_uplink(uplink, UplinkCommand::Control(bytes)),
                Output::SendBlock { uplink, flow, block } => self.tell_uplink(uplink, UplinkCommand::Block { flow, block }),
                Output::Offload { uplink, id, class, purpose, bytes } => {
                    self.tell_uplink(uplink, UplinkCommand::Offload { id, class, purpose, bytes });
                }
                Output::CancelOffload { uplink, id } => self.tell_uplink(uplink, UplinkCommand::CancelOffload { id }),
                Output::Disconnect { uplink } => self.tell_uplink(uplink, UplinkCommand::Disconnect),
                Output::CheckPolicy { version, text, signature } => self.tell_desk(ToDesk::Check { version, text, signature }),
                Output::Fetch(FetchOutput::Ask { uplink, id, bytes }) => {
                    self.tell_uplink(uplink, UplinkCommand::AskChunk { id, bytes });
                }
                Output::Fetch(FetchOutput::Cancel { uplink, id }) => {
                    self.tell_uplink(uplink, UplinkCommand::CancelChunk { id })
                }
                Output::Fetch(output) => {
                    if self.parts.fetches_tx.as_ref().is_some_and(|fetches_tx| fetches_tx.send(output).is_err()) {
                        tracing::error!("the thread that fetches models is gone");
                    }
                }
                Output::Event(event) => self.log(&event),
            }
        }
    }

    fn close_client(&mut self, conn: ConnId, client_id: &str, close: Close) {
        self.tell_client(conn, ClientCommand::Close);
        let Some(ClientOrigin { peer, .. }) = self.clients.remove(&conn).and_then(|client| client.origin) else { return };
        match close {
            Close::Refused(_) | Close::Protocol(_) | Close::ConnectTimeout { .. } => {
                self.refused(self.parts.clock.now_us(), peer, client_id, &close.to_string());
            }
            Close::ByClient { .. } | Close::Lost | Close::KeepAlive { .. } | Close::ByServer(_) => {
                tracing::debug!(%peer, client_id = %client_id.escape_debug(), reason = %close, "client closed");
            }
        }
    }

    fn connect_broker(&self, broker: BrokerIndex, generation: u64) {
        let target = self.parts.brokers[usize::from(broker.0)].clone();
        let (messages_tx, counters) = (self.parts.messages_tx.clone(), self.parts.listen_counters.clone());
        tokio::spawn(target.run(broker, generation, messages_tx, counters));
    }

    /// Says that a client was turned away, and why. What it called itself is not to be trusted to be harmless.
    fn refused(&mut self, now_us: u64, peer: SocketAddr, client_id: &str, reason: &str) {
        if let Some(unsaid) = self.refusals.take(now_us) {
            let client_id = client_id.escape_debug();
            tracing::warn!(%peer, %client_id, reason, unsaid, "client refused");
        }
    }

    fn tell_client(&self, conn: ConnId, command: ClientCommand) {
        if let Some(client) = self.clients.get(&conn) {
            // A client whose task has ended is reported lost by itself.
            let _ = client.commands_tx.send(command);
        }
    }

    fn tell_uplink(&self, uplink: u8, command: UplinkCommand) {
        let _ = self.parts.uplinks[usize::from(uplink)].commands_tx.send(command);
    }

    fn tell_desk(&self, message: ToDesk) {
        if self.parts.policies_tx.send(message).is_err() {
            tracing::error!("the policies' thread is gone");
        }
    }

    fn ask_store(&mut self, input: StoreInput) {
        if let Err(err) = self.parts.store_tx.try_send(input) {
            match err {
                mpsc::error::TrySendError::Full(input) => self.waiting_store.push_back(input),
                mpsc::error::TrySendError::Closed(_) => tracing::error!("the buffer's thread is gone"),
            }
        }
    }

    fn authenticate(&mut self, conn: ConnId, username: Option<String>, password: Option<Vec<u8>>) {
        let Some(origin) = self.clients.get_mut(&conn).and_then(|client| client.origin.as_mut()) else { return };
        let certificate = origin.certificate.take();
        let credentials = Credentials { conn, listener: origin.listener, username, password, certificate };
        if self.parts.credentials_tx.try_send(credentials).is_err() {
            self.auth_refused += 1;
            let now = moment(&self.parts.clock);
            self.parts.gateway.handle(now, Input::Authenticated { conn, result: Err(AuthRefusal::Unavailable) });
        }
    }

    fn log(&mut self, event: &Event) {
        match event {
            Event::UplinkUp { uplink } => {
                tracing::info!(uplink = self.parts.uplinks[usize::from(*uplink)].name, "uplink is up")
            }
            Event::UplinkDown { reason: DownReason::Stopped | DownReason::Resting, .. }
            | Event::AttemptFailed { reason: DownReason::Stopped | DownReason::Resting, .. } => {}
            Event::AttemptFailed { uplink, reason } => {
                let uplink = usize::from(*uplink);
                // Said once an outage: the attempts that follow are counted and their reason is in the status.
                if std::mem::replace(&mut self.said_failed[uplink], true) {
                    tracing::debug!(uplink = self.parts.uplinks[uplink].name, %reason, "uplink cannot connect");
                } else {
                    tracing::warn!(uplink = self.parts.uplinks[uplink].name, %reason, "uplink cannot connect; it is tried again");
                }
            }
            Event::UplinkDown { uplink, reason } => {
                tracing::warn!(uplink = self.parts.uplinks[usize::from(*uplink)].name, %reason, "uplink is down");
            }
            Event::Planned { stream, version, planned, reason, placed } => {
                let stream = &self.parts.gateway.policy().streams[usize::from(*stream)].name;
                tracing::info!(stream = &**stream, version, planned, %reason, %placed, "plan");
            }
            Event::Learned { stream, learned } => {
                let stream = &self.parts.gateway.policy().streams[usize::from(*stream)].name;
                tracing::info!(stream = &**stream, threshold = learned.threshold, reason = %learned, "confidence below which a pool is asked");
            }
            Event::PoolBreaker { pool, state, reason } => {
                let reason = reason.map(|reason| reason.to_string()).unwrap_or_default();
                tracing::info!(pool = &**pool, state, reason, "breaker of a pool");
            }
            Event::Routed { lane, version, uplink, reason, rejected } => {
                let uplink = uplink.map_or("none", |uplink| &*self.parts.uplinks[usize::from(uplink)].name);
                tracing::info!(lane = lane.name(), version, uplink, reason, rejected = rejected.join("; "), "route");
            }
            Event::Advised { uplink, about } => {
                let uplink = &self.parts.uplinks[usize::from(*uplink)].name;
                match about {
                    Some((node, concern)) => {
                        let (trouble, sites, confidence) = (concern.trouble.name(), concern.affected, concern.confidence);
                        tracing::info!(uplink, node, trouble, sites, confidence, "neighbours report trouble on the way");
                    }
                    None => tracing::info!(uplink, "neighbours report no trouble on the way any more"),
                }
            }
            Event::CloudLoad { uplink, load } => {
                let (uplink, level) = (&self.parts.uplinks[usize::from(*uplink)].name, load.level().name());
                tracing::info!(uplink, level, queue_percent = load.queue_percent, "load of the cloud");
            }
            Event::UplinkState { uplink, from, to, reason } => {
                let (uplink, from, to) = (&self.parts.uplinks[usize::from(*uplink)].name, from.name(), to.name());
                let reason = reason.map(|reason| reason.to_string()).unwrap_or_default();
                if matches!((from, to), ("green", "yellow") | ("yellow", "green")) {
                    tracing::debug!(uplink, from, to, "uplink state");
                } else {
                    tracing::info!(uplink, from, to, reason, "uplink state");
                }
            }
            Event::Broker { broker, event } => self.log_broker(*broker, event),
            Event::Policy(news) => {
                self.tell_desk(ToDesk::Decided(news.clone()));
                let (version, state, kept, reason) = (news.version, news.state.name(), news.kept, &news.reason);
                match news.state {
                    OfferState::Refused | OfferState::RolledBack | OfferState::NoKey => {
                        tracing::warn!(version, state, kept, reason, "policy");
                    }
                    OfferState::Offered | OfferState::Trial | OfferState::Kept => {
                        tracing::info!(version, state, kept, reason, "policy");
                    }
                }
            }
            Event::ModelFetch(news) => {
                let (task, version, change, reason) = (&news.task, news.version, news.word(), &news.reason);
                match news.state {
                    OfferState::Refused => tracing::warn!(task, version, change, reason, "model of the cloud"),
                    _ => tracing::info!(task, version, change, reason, "model of the cloud"),
                }
            }
            Event::CommitFailed { error } => tracing::error!(err = %error, "the buffer takes no data; senders are held back"),
            Event::CommitRecovered => tracing::info!("the buffer takes data again"),
            Event::LossBegan { class, reason, records } => {
                let (class, reason, remedy) = (class.name(), reason.name(), remedy(*reason));
                tracing::error!(class, reason, records, remedy, "records are being lost");
            }
            Event::LossEnded { class, reason, records, lasted_us } => {
                let (class, reason, lasted_s) = (class.name(), reason.name(), lasted_us / 1_000_000);
                tracing::error!(class, reason, records, lasted_s, "records were lost");
            }
        }
    }

    fn log_broker(&mut self, broker: BrokerIndex, event: &BrokerEvent) {
        let at = usize::from(broker.0);
        let BrokerTarget { name: broker, class, .. } = &*self.parts.brokers[at];
        match event {
            BrokerEvent::Up { session_present } => {
                self.said_broker_failed[at] = false;
                tracing::info!(broker, class, session_present, "broker is connected");
            }
            BrokerEvent::Down { reason } => tracing::warn!(broker, class, reason, "broker is disconnected"),
            // Said once an outage, as for uplinks.
            BrokerEvent::Failed { reason } if std::mem::replace(&mut self.said_broker_failed[at], true) => {
                tracing::debug!(broker, class, reason, "broker cannot be connected");
            }
            BrokerEvent::Failed { reason } => {
                tracing::warn!(broker, class, reason, "broker cannot be connected; it is tried again");
            }
            BrokerEvent::Filter { filter, granted: None } => {
                tracing::error!(broker, class, filter, "broker refuses a subscription: its messages do not come");
            }
            BrokerEvent::Filter { filter, granted: Some(qos) } => {
                tracing::warn!(broker, class, filter, qos, "broker grants a subscription with a lower QoS");
            }
        }
    }

    /// Ends connections, and waits until everything that can be safe is.
    async fn stop(&mut self) {
        tracing::info!("stopping");
        self.parts.notify.stopping();
        self.parts.gateway.handle(moment(&self.parts.clock), Input::Stop);
        self.carry_out();
        let deadline = tokio::time::Instant::now() + STOP_LIMIT;
        while !self.parts.gateway.is_stopped() {
            let now_us = self.parts.clock.now_us();
            let wait = Duration::from_micros(self.parts.gateway.deadline_us().saturating_sub(now_us));
            let DriverParts { store_rx, infer_rx, .. } = &mut self.parts;
            let woken = tokio::select! {
                event = store_rx.recv() => event.map(Woken::Store),
                Some(batch) = infer_rx.recv() => Some(Woken::Infer(batch)),
                () = tokio::time::sleep(wait) => Some(Woken::Time),
                () = tokio::time::sleep_until(deadline) => None,
            };
            let Some(woken) = woken else { break };
            self.take(woken);
            self.carry_out();
        }
    }

    /// Saves what was used of metered uplinks, on another thread; at a stop it waits for that.
    async fn save_budgets(&mut self, at_stop: bool) {
        let now_us = self.parts.clock.now_us();
        if !at_stop && now_us < self.budgets_saved_us.saturating_add(budget::SAVE_US) {
            return;
        }
        self.budgets_saved_us = now_us;
        let named = self.parts.uplinks.iter().zip(self.parts.gateway.budgets());
        let levels: BTreeMap<_, _> = named.filter_map(|(uplink, of)| Some((uplink.name.clone(), of?.level()))).collect();
        let was_unsaved = self.budgets_unsaved.swap(false, Ordering::Relaxed);
        if levels == self.budgets_saved && !was_unsaved {
            return;
        }
        self.budgets_saved = levels.clone();
        let (path, unsaved) = (self.parts.budget_path.clone(), self.budgets_unsaved.clone());
        let saved = tokio::task::spawn_blocking(move || {
            if let Err(err) = budget::save(&path, &levels) {
                unsaved.store(true, Ordering::Relaxed);
                tracing::warn!(path = %path.display(), %err, "what was used of metered uplinks is not saved; it is tried again");
            }
        });
        if at_stop {
            let _ = saved.await;
        }
    }

    fn publish(&mut self, now: bool) {
        let now_us = self.parts.clock.now_us();
        if !now && now_us < self.published_us + STATUS_US {
            return;
        }
        self.published_us = now_us;
        // Progress, not being alive: a transaction that never ends stops the watchdog's food.
        if now_us < self.asked_us.map_or(u64::MAX, |asked_us| asked_us + STUCK_US) {
            self.parts.notify.watchdog();
        }
        let DriverParts { gateway, uplinks, models, base_status, .. } = &self.parts;
        let paths: Vec<PathStats> = uplinks.iter().map(|uplink| uplink.path).collect();
        let stats: Vec<_> = models.iter().map(|worker| (worker.manifest().name.clone(), worker.stats())).collect();
        let wall = self.parts.clock.wall();
        let mut status = base_status.updated(now_us, wall, gateway, &paths, &stats, self.store);
        status.ingest.count_listeners(&self.parts.listen_counters, self.auth_refused);
        self.parts.status_tx.send_replace(status);
    }
}

/// The next event of any uplink, with its attempt; pends for ever without uplinks.
async fn next_uplink_event(uplinks: &mut [UplinkHandle]) -> (usize, u64, UplinkEvent) {
    std::future::poll_fn(|context| {
        for (index, uplink) in uplinks.iter_mut().enumerate() {
            if let std::task::Poll::Ready(Some((generation, event))) = uplink.events_rx.poll_recv(context) {
                return std::task::Poll::Ready((index, generation, event));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Now, by both clocks.
pub(crate) fn moment(clock: &Clock) -> Moment {
    let (service_us, wall) = (clock.now_us(), clock.wall());
    Moment { service_us, wall_offset_us: wall.trusted.then(|| wall.unix_us as i64 - service_us as i64) }
}

/// What an operator can do about a loss.
fn remedy(reason: VoidReason) -> &'static str {
    match reason {
        VoidReason::Evicted => "the lane is full: raise its cap, lower its streams' fidelity, or bring the uplink back",
        VoidReason::Expired => {
            "the uplink was too slow or away for longer than the lane's ttl: raise it, or bring the uplink back"
        }
        VoidReason::Corrupt => "the disk gave back other bytes than were written: check it, and see `weir buffer verify`",
    }
}

fn store_time(clock: &Clock, now: Moment) -> StoreTime {
    let ClockMark { service_us, boot } = clock.mark(now.service_us);
    StoreTime { service_us, wall_us: now.wall_offset_us.map(|offset| service_us as i64 + offset), boot }
}
