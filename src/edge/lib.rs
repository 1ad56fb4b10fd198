//! `weir-edge`: the runtime on the box.
//!
//! Sockets, disk, models and threads around `logic::Gateway`. [`bind`] takes the sockets, [`Edge::start`] opens the buffer
//! and wires everything in the order in which data flows, [`Edge::run`] runs it until shutdown is requested.

mod budget;
pub mod config;
pub mod congestion;
mod metrics;
pub mod models;
mod shell;
pub mod status;
pub mod store;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;
use weir_host::admin::{self, Admin, AdminError, AdminSockets, Answer, Health, JsonPage, Pages};
use weir_host::clock::{Clock, WALL_CEILING_US, wall_floor_us};
use weir_host::notify::Notify;
use weir_host::quic::{self, QuicError};
use weir_host::shutdown::Shutdown;
use weir_host::tls::{self, ClientCerts, Credentials, IdentityError, TlsError, TlsVersion, TrustRoots};
use weir_logic::gateway::{Gateway, Question, Start};
use weir_logic::ids::Epoch;
use weir_logic::ingest::RouteError;
use weir_logic::lanes::Found;
use weir_logic::models::FetchStart;
use weir_logic::mqtt::{Secret, UserIndex};
use weir_logic::wire;

use crate::config::{Broker, BrokerClient, Config, ListenTls, PolicyError};
use crate::shell::auth::Users;
use crate::shell::broker::BrokerTarget;
use crate::shell::interface::Interfaces;
use crate::shell::listen::{HANDSHAKES_MAX, ListenCounters, Listener};
use crate::shell::models::{Fetcher, ModelDesk, start_models};
use crate::shell::policies::Desk;
use crate::shell::uplink::{TcpWay, Transport, UplinkTarget};
use crate::shell::{Driver, DriverParts, UplinkHandle, moment};
use crate::status::{Status, StoreStatus, UplinkStatus};
use crate::store::{OpenError, Store, StoreOptions, StoreThread};

/// Version of the software, told to the cloud and shown on the status page.
pub const SOFTWARE: &str = concat!("weir-edge ", env!("CARGO_PKG_VERSION"));

/// Why the box does not start. Each says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An MQTT listener's address.
    #[error("cannot listen for MQTT on {addr} (is another broker running there?)")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The data directory.
    #[error("cannot use the data directory {} (create it, or make it writable for this user)", path.display())]
    DataDir {
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The buffer.
    #[error(transparent)]
    Buffer(#[from] OpenError),
    /// A certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The gateway's certificate says not who it is.
    #[error("the gateway's certificate {} has no usable identity (issue it with `weir pki issue`)", path.display())]
    Identity {
        /// Path of the certificate.
        path: PathBuf,
        /// What is wrong with it.
        source: IdentityError,
    },
    /// An uplink's settings.
    #[error(transparent)]
    Uplink(#[from] QuicError),
    /// A broker's password.
    #[error("cannot read the password of the broker `{broker}`")]
    BrokerPassword {
        /// Its name.
        broker: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The admin endpoint.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The policy that the configuration describes.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A topic filter.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// Threads, timers, randomness.
    #[error("the system refused {what}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Its reason.
        source: io::Error,
    },
}

/// Sockets that a box listens on; bound by the caller, so that tests use port 0.
#[derive(Debug)]
pub struct Sockets {
    /// One for each `[[listen]]`.
    pub mqtt: Vec<TcpListener>,
    /// The operator's.
    pub admin: AdminSockets,
}

impl Sockets {
    /// The addresses MQTT clients connect to.
    pub fn mqtt_addrs(&self) -> Vec<SocketAddr> {
        self.mqtt.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }
}

/// Takes the sockets that a configuration names. Those of uplinks are made when they connect: nothing here needs a network.
///
/// # Errors
/// `Listen` or `Admin`, naming the address.
pub fn bind(config: &Config) -> Result<Sockets, StartError> {
    let listen = |addr| TcpListener::bind(addr).map_err(|source| StartError::Listen { addr, source });
    let mqtt = config.listen.iter().map(|entry| listen(entry.bind)).collect::<Result<_, _>>()?;
    let http = Some(admin::bind_http(config.admin.http)?);
    let unix = config.admin.unix.as_deref().map(admin::bind_unix).transpose()?;
    Ok(Sockets { mqtt, admin: AdminSockets { http, unix } })
}

/// A box that is about to run.
pub struct Edge {
    driver: Driver,
    listeners: Vec<Listener>,
    messages_tx: mpsc::Sender<shell::Message>,
    status_rx: watch::Receiver<Status>,
    store_thread: StoreThread,
    desk_threads: Vec<std::thread::JoinHandle<()>>,
    admin: Admin,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// Queues between tasks. Each holds at most one read or one batch an entry, so that these bound memory.
const MESSAGES_LEN: usize = 64;
const UPLINK_EVENTS_LEN: usize = 64;
const STORE_LEN: usize = 16;
const INFER_LEN: usize = 16;
/// How long a stop waits for a model after its windows were waited for.
const MODEL_STOP_LIMIT: std::time::Duration = std::time::Duration::from_secs(1);

impl Edge {
    /// Opens the buffer, loads models and certificates, and wires everything. Must be called within a tokio runtime.
    ///
    /// A model that cannot be loaded is reported and left out: the box does all the rest.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: &Config, sockets: Sockets) -> Result<Edge, StartError> {
        let (mut base_status, identity) = identity(config)?;
        // Disk first: what it holds says which epoch, time and blocks to go on with.
        let data_dir = &config.gateway.data_dir;
        std::fs::create_dir_all(data_dir).map_err(|source| StartError::DataDir { path: data_dir.clone(), source })?;
        let options = StoreOptions {
            cache_bytes: config.buffer.cache.as_usize(),
            size_limit: config.buffer.size_limit.get(),
            reserve_bytes: config.buffer.reserve.get(),
        };
        let (store, opened) = Store::open(&data_dir.join("buffer.redb"), options)?;
        if let Some(quarantined) = &opened.quarantined {
            tracing::error!(path = %quarantined.path.display(), reason = quarantined.reason, "the buffer could not be opened and was set aside");
            base_status.quarantined = Some(quarantined.path.display().to_string());
        }
        if !opened.damaged.is_empty() {
            base_status.damaged_blocks = opened.damaged.len() as u64;
            tracing::error!(
                count = opened.damaged.len(),
                "blocks in the buffer are damaged: their records are lost, and the cloud is told so as `corrupt` voids"
            );
        }
        tracing::info!(blocks = opened.held.len(), voids = opened.voids.len(), took_ms = opened.open_ms, "buffer is open");
        let (store_events_tx, store_rx) = mpsc::channel(STORE_LEN);
        let (store_thread, store_tx) = StoreThread::spawn(store, STORE_LEN, store_events_tx)
            .map_err(|source| StartError::System { what: "a thread", source })?;
        let clock = clock(&opened, identity.as_ref());
        let now = moment(&clock);
        let epoch = Epoch(random()?);

        // Models, then the policy that uses them, then the machine itself.
        let (infer_tx, infer_rx) = mpsc::channel(INFER_LEN);
        let here = (data_dir.as_path(), base_status.gateway.as_str());
        let mut model_desk = ModelDesk::open(&config.infer, &config.model, here, &clock, &infer_tx);
        base_status.models_forbidden = model_desk.as_ref().is_some_and(ModelDesk::forbids_models);
        let (models, infos) = start_models(config, model_desk.as_mut(), &infer_tx)
            .map_err(|source| StartError::System { what: "a thread", source })?;
        let mut policy = config.policy(&infos)?;
        policy.brokers = config.broker_policies(&base_status.gateway, &broker_passwords(config)?);
        // Without a desk nobody would take what was fetched.
        let key = config.infer.updates.key.as_ref().filter(|_| model_desk.is_some());
        let (fetcher, spent) = key.map(|key| Fetcher::open(data_dir, key, &base_status.gateway)).unzip();
        let rules = config.infer.updates.fetch_rules().filter(|_| fetcher.is_some());
        let (desk, policy, offers) = Desk::open(config, &infos, &base_status.gateway, policy);
        let found =
            Found { held: &opened.held, voids: &opened.voids, damaged: &opened.damaged, packet_ids: &opened.packet_ids };
        let names: Vec<String> = policy.uplinks.iter().map(|uplink| uplink.name.to_string()).collect();
        let budgets = budget::load(&budget::path(data_dir), &names);
        let start = Start {
            name: &base_status.gateway,
            epoch,
            seed: random()?,
            software: SOFTWARE,
            found,
            budgets: &budgets,
            policy: offers,
            models: FetchStart { rules, spent: spent.unwrap_or_default() },
        };
        let gateway = Gateway::new(now, policy, &start)?;
        base_status.epoch = format!("{:016x}", epoch.0);

        // Sockets: clients in, uplinks out.
        let (messages_tx, messages_rx) = mpsc::channel(MESSAGES_LEN);
        let credentials_tx = shell::auth::spawn(users(config), messages_tx.clone())
            .map_err(|source| StartError::System { what: "a thread", source })?;
        let (policies_tx, desk_thread) =
            desk.spawn(messages_tx.downgrade()).map_err(|source| StartError::System { what: "a thread", source })?;
        let model_desk = model_desk.map(ModelDesk::spawn).transpose();
        let (desk_tx, model_thread) = model_desk.map_err(|source| StartError::System { what: "a thread", source })?.unzip();
        let fetcher = fetcher.map(|fetcher| fetcher.spawn(messages_tx.downgrade())).transpose();
        let (fetches_tx, fetch_thread) = fetcher.map_err(|source| StartError::System { what: "a thread", source })?.unzip();
        let desk_threads = std::iter::once(desk_thread).chain(model_thread).chain(fetch_thread).collect();
        let listen_counters = Arc::new(ListenCounters::default());
        let listeners = listeners(config, sockets.mqtt, &listen_counters)?;
        let brokers = brokers(config)?;
        let mut tasks = Vec::new();
        let uplinks = start_uplinks(config, identity.as_ref(), &mut tasks)?;

        // The operator's window, on a thread of its own.
        let (status_tx, status_rx) = watch::channel(base_status.clone());
        let admin = Admin::start(sockets.admin, pages(status_rx.clone(), &messages_tx))?;
        let notify = Notify::from_env().map_err(|source| StartError::System { what: "the notify socket", source })?;
        let driver = Driver::new(DriverParts {
            gateway,
            clock,
            messages_tx: messages_tx.clone(),
            messages_rx,
            credentials_tx,
            store_tx,
            store_rx,
            policies_tx,
            brokers,
            models,
            hang_us: config.infer.hang_timeout.as_micros(),
            infer_rx,
            desk_tx,
            fetches_tx,
            uplinks,
            status_tx,
            base_status,
            budget_path: budget::path(data_dir),
            notify,
            listen_counters,
        });
        Ok(Edge { driver, listeners, messages_tx, status_rx, store_thread, desk_threads, admin, tasks })
    }

    /// Follows the box's status.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status_rx.clone()
    }

    /// The address of the admin endpoint.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.http_addr()
    }

    /// Runs until shutdown is requested; then ends connections and waits until what was taken in is safe.
    pub async fn run(self, shutdown: Shutdown) {
        let Edge { driver, listeners, messages_tx, status_rx: _, store_thread, desk_threads, admin, mut tasks } = self;
        tasks.extend(listeners.into_iter().map(|listener| tokio::spawn(shell::listen::run(listener, messages_tx.clone()))));
        drop(messages_tx);
        let models = Box::pin(driver.run(shutdown)).await;
        for task in &tasks {
            task.abort();
        }
        let end = move || {
            for model in models {
                let name = model.manifest().name.clone();
                if !model.stop_within(MODEL_STOP_LIMIT) {
                    tracing::warn!(model = name, "model is still at a batch; it is not waited for");
                }
            }
            drop(admin);
            for desk_thread in desk_threads {
                if desk_thread.join().is_err() {
                    tracing::error!("the thread of the desk for policies or models panicked");
                }
            }
            store_thread.join()
        };
        match tokio::task::spawn_blocking(end).await {
            Ok(Ok(())) => tracing::info!("stopped"),
            Ok(Err(err)) => tracing::error!(%err, "the buffer could not be closed well; what was acknowledged is safe"),
            Err(err) => tracing::error!(%err, "stopping failed"),
        }
    }
}

/// The gateway's certificate and the roots it trusts.
struct Identity {
    credentials: Credentials,
    roots: TrustRoots,
}

/// Who we are: from the certificate if there is an uplink, else the name in the configuration.
fn identity(config: &Config) -> Result<(Status, Option<Identity>), StartError> {
    let mut status = Status { software: SOFTWARE.to_owned(), ..Status::default() };
    status.uplinks = config.uplink_paths().map(|path| UplinkStatus { name: path.name(), ..Default::default() }).collect();
    if config.uplink.is_empty() {
        status.gateway = config.gateway.name.clone().unwrap_or_default();
        return Ok((status, None));
    }
    let credentials = Credentials::load(&config.tls.cert, &config.tls.key)?;
    let roots = TrustRoots::load(&config.tls.ca)?;
    let name = credentials.identity().map_err(|source| StartError::Identity { path: config.tls.cert.clone(), source })?;
    status.gateway = name.name().to_owned();
    Ok((status, Some(Identity { credentials, roots })))
}

/// Service time goes on where the buffer left off; wall time before anything we know of is not trusted.
fn clock(opened: &store::Opened, identity: Option<&Identity>) -> Clock {
    let life = identity.map(|identity| (identity.credentials.not_before_s(), identity.credentials.not_after_s()));
    let life_us = life.map(|(from_s, to_s)| (from_s.saturating_mul(1_000_000), to_s.saturating_mul(1_000_000)));
    let (issued_us, expires_us) = life_us.unwrap_or((0, WALL_CEILING_US));
    let floor_us = wall_floor_us(opened.wall_us, issued_us, expires_us);
    Clock::start(Some(&opened.mark)).with_service_floor_us(opened.service_us).with_wall_floor_us(floor_us)
}

fn random() -> Result<u64, StartError> {
    getrandom::u64().map_err(|err| StartError::System { what: "random bytes", source: io::Error::other(err) })
}

/// Configured users, and behind them the one that anonymous clients are.
fn users(config: &Config) -> Users {
    let anonymous = UserIndex(config.user.len() as u16);
    Users {
        users: config.user.clone(),
        anonymous: config.listen.iter().map(|listen| listen.allow_anonymous.then_some(anonymous)).collect(),
    }
}

fn listeners(config: &Config, sockets: Vec<TcpListener>, counters: &Arc<ListenCounters>) -> Result<Vec<Listener>, StartError> {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut listeners = Vec::new();
    for (index, (entry, socket)) in config.listen.iter().zip(sockets).enumerate() {
        let tls = entry.tls.as_ref().map(acceptor).transpose()?;
        let addr = entry.bind;
        let tcp = socket
            .set_nonblocking(true)
            .and_then(|()| tokio::net::TcpListener::from_std(socket))
            .map_err(|source| StartError::Listen { addr, source })?;
        listeners.push(Listener { tcp: Arc::new(tcp), tls, index, handshakes: handshakes.clone(), counters: counters.clone() });
    }
    Ok(listeners)
}

fn broker_passwords(config: &Config) -> Result<Vec<Option<Secret>>, StartError> {
    let read = |broker: &Broker| {
        let failed = |source| StartError::BrokerPassword { broker: broker.name.clone(), source };
        shell::broker::password(broker).map_err(failed)
    };
    config.broker.iter().map(read).collect()
}

/// Where the clients of brokers connect to, in the order of the policy's.
fn brokers(config: &Config) -> Result<Vec<Arc<BrokerTarget>>, StartError> {
    let target = |client: BrokerClient<'_>| -> Result<Arc<BrokerTarget>, StartError> {
        Ok(Arc::new(BrokerTarget::new(client.broker, client.class.name())?))
    };
    config.broker_clients().map(target).collect()
}

fn acceptor(listen: &ListenTls) -> Result<TlsAcceptor, StartError> {
    let credentials = Credentials::load(&listen.cert, &listen.key)?;
    let roots = listen.client_ca.as_deref().map(TrustRoots::load).transpose()?;
    let clients = roots.as_ref().map_or(ClientCerts::Ignored, ClientCerts::Optional);
    let config = tls::server_config(&credentials, clients, TlsVersion::V12, &[])?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn start_uplinks(
    config: &Config,
    identity: Option<&Identity>,
    tasks: &mut Vec<tokio::task::JoinHandle<()>>,
) -> Result<Vec<UplinkHandle>, StartError> {
    let mut handles = Vec::new();
    let Some(identity) = identity else { return Ok(handles) };
    let mut interfaces = Interfaces::new().map_err(|source| StartError::System { what: "a socket", source })?;
    for path in config.uplink_paths() {
        let tls = tls::client_config(&identity.credentials, &identity.roots, &[wire::ALPN])?;
        let transport = match path.fallback {
            Some(fallback) => Transport::Tcp(TcpWay { tls: Arc::new(tls), proxy: fallback.proxy.clone() }),
            None => Transport::Quic(quic::client_config(tls, &path.uplink.transport())?),
        };
        let target = UplinkTarget {
            name: path.name(),
            address: path.address().to_owned(),
            server_name: path.certificate_name().to_owned(),
            local_addr: path.local_addr(),
            interface: path.uplink.interface.clone(),
            transport,
        };
        let interface = target.interface.as_deref().map(|name| interfaces.watch(name));
        // Bounded in effect: the gateway hands over blocks only as the uplink takes them.
        let (commands_tx, commands_rx) = mpsc::unbounded_channel();
        let (events_tx, events_rx) = mpsc::channel(UPLINK_EVENTS_LEN);
        tasks.push(tokio::spawn(shell::uplink::run(Arc::new(target), interface, commands_rx, events_tx)));
        handles.push(UplinkHandle::new(path.name(), commands_tx, events_rx));
    }
    tasks.push(tokio::spawn(interfaces.run()));
    Ok(handles)
}

fn pages(status_rx: watch::Receiver<Status>, messages_tx: &mpsc::Sender<shell::Message>) -> Pages {
    let (to_graph, to_explain) = (messages_tx.downgrade(), messages_tx.downgrade());
    let graph = move |_: &str| -> Answer {
        let messages_tx = to_graph.clone();
        Box::pin(async move { ask(messages_tx, |answer_tx| shell::Message::GraphAsked { answer_tx }).await })
    };
    let explain = move |query: &str| -> Answer {
        let (question, messages_tx) = (query.parse::<Question>(), to_explain.clone());
        Box::pin(async move {
            let question = question.map_err(|err| err.to_string())?;
            ask(messages_tx, |answer_tx| shell::Message::Asked { question, answer_tx }).await
        })
    };
    let (health_rx, metrics_rx) = (status_rx.clone(), status_rx.clone());
    Pages {
        health: Box::new(move || health(&health_rx.borrow())),
        metrics: Box::new(move || metrics::text(&metrics_rx.borrow())),
        status_json: Box::new(move || serde_json::to_string(&*status_rx.borrow()).unwrap_or_default()),
        page_html: include_str!("page.html"),
        json: vec![
            JsonPage { path: "/explain.json", answer: Box::new(explain) },
            JsonPage { path: "/graph.json", answer: Box::new(graph) },
        ],
        named: Vec::new(),
    }
}

/// Asks the driver. It ends when nobody can send it messages any more, so the operator's window holds only a weak end.
async fn ask(
    messages_tx: mpsc::WeakSender<shell::Message>,
    message: impl FnOnce(oneshot::Sender<Result<String, String>>) -> shell::Message,
) -> Result<String, String> {
    let (answer_tx, answer_rx) = oneshot::channel();
    let stopping = || "the box is stopping".to_owned();
    let messages_tx = messages_tx.upgrade().ok_or_else(stopping)?;
    messages_tx.send(message(answer_tx)).await.map_err(|_| stopping())?;
    drop(messages_tx);
    answer_rx.await.map_err(|_| stopping())?
}

/// Healthy is who takes data in and keeps it safe; an uplink that is down is what the box is made for.
fn health(status: &Status) -> Health {
    let up = status.uplinks.iter().filter(|uplink| uplink.up).count();
    let held: u64 = status.lanes.iter().map(|lane| lane.records).sum();
    let StoreStatus { commit_failures, .. } = status.store;
    if status.disk_full {
        let text = format!("disk is full: {held} records held, {commit_failures} transactions failed; free some space");
        return Health { is_ok: false, text };
    }
    if status.commit_failing {
        let text = format!("the buffer takes no data: {held} records held, {commit_failures} transactions failed; see the log");
        return Health { is_ok: false, text };
    }
    Health { is_ok: true, text: format!("ok: {up} of {} uplinks up, {held} records held", status.uplinks.len()) }
}
