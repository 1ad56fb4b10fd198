//! The ingest side: gateways connect over QUIC, or TLS on TCP where that does not pass; their blocks become rows in SQLite, and
//! what is committed is acknowledged.
//!
//! ```text
//! QUIC, TCP --> session (a task each) --> hub (all state) --> sink (a thread, SQLite)
//!                  ^       room in the queue    |   ^                  |
//!                  `------ control messages ----'   `---- commits -----'
//! ```
//!
//! [`Cloud::open`] binds nothing: the caller brings the [`Sockets`], so that tests start the real thing on port 0.
//! What to store and what to acknowledge is decided by [`weir_logic::receive`], which knows no sockets.

pub mod asked;
pub mod config;
pub mod enrol;
pub mod metrics;
pub mod schema;
pub mod sink;
pub mod status;

mod graph;
mod hub;
mod models;
mod policies;
mod pools;
mod questions;
mod session;

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use quinn::{Endpoint, VarInt};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use weir_host::admin::{Admin, AdminError, AdminSockets, Answer, JsonPage, NamedPage, Pages};
use weir_host::notify::Notify;
use weir_host::quic::{self, QuicError, Transport};
use weir_host::shutdown::{self, Shutdown};
use weir_host::tls::{self, ClientCerts, Credentials, IdentityError, Role, TlsError, TlsVersion, TrustRoots};
use weir_logic::receive::CloseCode;
use weir_logic::wire::ALPN;

use crate::asked::Asker;
use crate::config::Config;
use crate::enrol::{EnrolError, Enrolled};
use crate::graph::{GlobalGraph, Shown};
use crate::hub::{Hub, Links, ToHub};
use crate::metrics::Metrics;
use crate::models::{Library, Models, Shelf};
use crate::policies::{Directory, Policies};
use crate::pools::{Pools, Target};
use crate::schema::OpenError;
use crate::session::Context;
use crate::sink::{Pace, Sink, SinkEvent};
use crate::status::Status;

/// Messages from connections waiting for the hub; the blocks in them have room in the sink's queue.
const HUB_QUEUE_LEN: usize = 1_024;
/// How long gateways are given to take in the last acks before their connections are closed.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the cloud side cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Our own certificate's identity.
    #[error("the certificate in tls.cert cannot be used: {0}")]
    Identity(#[from] IdentityError),
    /// Our own certificate is a gateway's.
    #[error("the certificate in tls.cert is that of {found}; the cloud needs weir://cloud/NAME")]
    Role {
        /// Whose it is.
        found: String,
    },
    /// Its name cannot stand in the health graph.
    #[error("the name in tls.cert cannot be used: {0}; issue another with `weir pki issue cloud`")]
    Name(String),
    /// The system gives no randomness.
    #[error("the system gives no random numbers")]
    Random(#[source] getrandom::Error),
    /// The list of gateways.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The UDP socket.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// The TCP socket.
    #[error(
        "tcp address {addr} cannot be bound (another server may have it, and ports below 1024 need a right of their own: see `listen.tls`): {source}"
    )]
    Tcp {
        /// The address asked for.
        addr: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The admin endpoint.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The way to another machine's pools.
    #[error("the machine {address} of [[pool_machine]] cannot be connected to: {source}")]
    Machine {
        /// Its address.
        address: String,
        /// What does not fit.
        source: TargetError,
    },
    /// A thread for a pool's model.
    #[error("the system gives no thread for a pool's model")]
    Thread(#[source] io::Error),
    /// The database failed for good while running.
    #[error("the database failed: {0}")]
    Sink(String),
}

/// What is bound outside.
#[derive(Debug)]
pub struct Sockets {
    /// For gateways.
    pub quic: UdpSocket,
    /// For gateways whose UDP does not get here.
    pub tls: Option<TcpListener>,
    /// For the operator.
    pub admin: AdminSockets,
    /// To the supervisor.
    pub notify: Notify,
}

impl Sockets {
    /// Binds what the configuration names; without a supervisor.
    ///
    /// # Errors
    /// `Quic`, `Tcp` or `Admin` if an address cannot be had.
    pub fn bind(config: &Config) -> Result<Sockets, RunError> {
        let http = config.admin.http.map(weir_host::admin::bind_http).transpose()?;
        let unix = config.admin.unix.as_deref().map(weir_host::admin::bind_unix).transpose()?;
        let quic = quic::bind(config.listen.quic, None)?;
        let listen = |addr| TcpListener::bind(addr).map_err(|source| RunError::Tcp { addr, source });
        let tls = config.listen.tls.map(listen).transpose()?;
        Ok(Sockets { quic, tls, admin: AdminSockets { http, unix }, notify: Notify::default() })
    }
}

/// Opens and runs the cloud side until shutdown. Must be called within a tokio runtime.
///
/// # Errors
/// Why it cannot start, or `Sink` if the database fails for good.
pub async fn run(config: &Config, sockets: Sockets, shutdown: Shutdown) -> Result<(), RunError> {
    Cloud::open(config, sockets)?.run(shutdown).await
}

/// The cloud side, open and not yet accepting.
pub struct Cloud {
    endpoint: Endpoint,
    tls: Option<(tokio::net::TcpListener, Arc<rustls::ServerConfig>)>,
    admin: Admin,
    hub: Hub,
    pools: Pools,
    context: Arc<Context>,
    places: Arc<Semaphore>,
    enrolment: (config::Gateways, watch::Sender<Enrolled>),
    directory: (Option<std::path::PathBuf>, watch::Sender<Arc<Directory>>),
    shelf: (Option<std::path::PathBuf>, watch::Sender<Arc<Shelf>>),
    writers: (mpsc::Sender<()>, mpsc::Receiver<()>),
    sink_thread: JoinHandle<()>,
    status_rx: watch::Receiver<Arc<Status>>,
    notify: Arc<Notify>,
}

impl Cloud {
    /// Opens database, certificates and endpoints. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Any [`RunError`] but `Sink`.
    pub fn open(config: &Config, sockets: Sockets) -> Result<Cloud, RunError> {
        let (credentials, roots) = credentials(&config.tls)?;
        let tls_config = tls::server_config(&credentials, ClientCerts::Required(&roots), TlsVersion::V13, &[ALPN])?;
        let name = credentials.identity()?.name().to_owned();
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(RunError::Random)?;
        let target = |machine: &config::PoolMachine| {
            let error = |source| RunError::Machine { address: machine.address.clone(), source };
            Target::new(machine, &credentials, &roots).map_err(error)
        };
        let targets = config.pool_machine.iter().map(target).collect::<Result<_, _>>()?;
        let pools = Pools::start(&config.pool, &config.infer, targets).map_err(RunError::Thread)?;
        let names: Vec<String> = pools.shown_rx.borrow().iter().map(|pool| pool.view.name.clone()).collect();
        let graph = GlobalGraph::new(&name, u64::from_le_bytes(run), &names).map_err(|err| RunError::Name(err.to_string()))?;
        let enrolled = enrol::read(&config.gateways)?;
        if enrolled.is_empty() {
            tracing::warn!("no gateway is enrolled, so none can connect; see [gateways] in the configuration");
        }
        let metrics = Arc::new(Metrics::default());
        let pace =
            Pace { bytes_max: config.store.transaction_bytes_max.get(), time_max: config.store.transaction_time_max.as_std() };
        let (events_tx, sink_rx) = mpsc::unbounded_channel::<SinkEvent>();
        let queue_bytes = u32::try_from(config.limits.queue_bytes.get()).unwrap_or(u32::MAX);
        let (sink, sink_thread) = Sink::start(&config.layout(), pace, queue_bytes, metrics.clone(), events_tx)?;
        let (status_tx, status_rx) = watch::channel(Arc::new(Status::default()));
        let (hub_tx, inbox_rx) = mpsc::channel(HUB_QUEUE_LEN);
        let (enrolled_tx, enrolled_rx) = watch::channel(enrolled);
        let asker = Asker {
            hub_tx: hub_tx.downgrade(),
            enrolled_rx: enrolled_rx.clone(),
            database: config.store.path.as_path().into(),
        };
        let admin = Admin::start(sockets.admin, pages(metrics.clone(), &status_rx, asker))?;
        let notify = Arc::new(sockets.notify);
        let (directory_tx, directory_rx) = watch::channel(Arc::default());
        let (shelf_tx, shelf_rx) = watch::channel(Arc::default());
        let links = Links {
            inbox_rx,
            sink_rx,
            directory_rx,
            shelf_rx: shelf_rx.clone(),
            pools_rx: pools.shown_rx.clone(),
            door: pools.door.clone(),
            sink: sink.clone(),
            status_tx,
            metrics: metrics.clone(),
            notify: notify.clone(),
        };
        let offered = (Policies::new(&config.policies), Models::new(&config.models));
        let hub = Hub::new(links, graph, offered, &config.limits);
        let writers = mpsc::channel(1);
        let connection_bytes = config.limits.connection_bytes.get();
        let context = Arc::new(Context {
            hub_tx,
            enrolled_rx,
            sink,
            door: pools.door.clone(),
            library: Library { shelf_rx, metrics: metrics.clone() },
            metrics,
            connection_bytes,
            writers: writers.0.downgrade(),
            sessions: AtomicU64::new(0),
        });
        let quic_config = quic::server_config(tls_config.clone(), &Transport::cloud())?;
        Ok(Cloud {
            endpoint: quic::server_endpoint(sockets.quic, quic_config)?,
            tls: sockets.tls.map(|socket| Ok::<_, RunError>((listener(socket)?, Arc::new(tls_config)))).transpose()?,
            admin,
            hub,
            pools,
            context,
            places: Arc::new(Semaphore::new(config.limits.connections_max)),
            enrolment: (config.gateways.clone(), enrolled_tx),
            directory: (config.policies.dir.clone(), directory_tx),
            shelf: (config.models.dir.clone(), shelf_tx),
            writers,
            sink_thread,
            status_rx,
            notify,
        })
    }

    /// Where gateways connect.
    pub fn quic_addr(&self) -> Option<SocketAddr> {
        self.endpoint.local_addr().ok()
    }

    /// Where gateways connect whose UDP does not get here.
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.tls.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Where the operator looks.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.admin.http_addr()
    }

    /// The picture of `/status.json`, published once a second and on every change of health.
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status_rx.clone()
    }

    /// Serves until shutdown, then commits what has come, acknowledges it and closes.
    ///
    /// # Errors
    /// `Sink` if the database failed for good.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RunError> {
        let (stop, stopped) = shutdown::channel();
        let mut tasks = JoinSet::new();
        let tls_addr = self.tls_addr();
        tasks.spawn(accept(self.endpoint.clone(), self.context.clone(), self.places.clone(), stopped.clone()));
        if let Some((listener, config)) = self.tls {
            tasks.spawn(session::tcp::accept(listener, config, self.context.clone(), self.places, stopped.clone()));
        }
        let (gateways, enrolled_tx) = self.enrolment;
        tasks.spawn(enrol::watch_file(gateways, enrolled_tx, self.context.metrics.clone(), stopped.clone()));
        tasks.spawn(policies::watch(self.directory.0, self.directory.1, stopped.clone()));
        tasks.spawn(models::watch(self.shelf.0, self.shelf.1, stopped.clone()));
        tasks.spawn(self.pools.run(stopped));
        tracing::info!(quic = ?self.endpoint.local_addr().ok(), tls = ?tls_addr, "ready");
        self.notify.ready();
        // The hub ends by shutdown or by a sink that cannot go on; dropping its peers lets the last acks out.
        let result = Box::pin(self.hub.run(shutdown)).await;
        self.notify.stopping();
        stop.request();
        while tasks.join_next().await.is_some() {}
        // `None` comes when the last writer has let go of it.
        let (writers_tx, mut writers_rx) = self.writers;
        drop(writers_tx);
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, writers_rx.recv()).await;
        self.endpoint.close(VarInt::from_u32(CloseCode::Shutdown as u32), b"the cloud shuts down");
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, self.endpoint.wait_idle()).await;
        if self.sink_thread.join().is_err() {
            return Err(RunError::Sink("its thread panicked".to_owned()));
        }
        result.map_err(RunError::Sink)
    }
}

/// Who we are, and whose certificates count.
fn credentials(of: &config::Tls) -> Result<(Credentials, TrustRoots), RunError> {
    let credentials = Credentials::load(&of.cert, &of.key)?;
    let identity = credentials.identity()?;
    if identity.role() != Role::Cloud {
        return Err(RunError::Role { found: identity.to_string() });
    }
    credentials.check_validity(weir_host::clock::Clock::start(None).wall())?;
    Ok((credentials, TrustRoots::load(&of.ca)?))
}

fn listener(socket: TcpListener) -> Result<tokio::net::TcpListener, RunError> {
    let addr = socket.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
    let error = |source| RunError::Tcp { addr, source };
    socket.set_nonblocking(true).map_err(error)?;
    tokio::net::TcpListener::from_std(socket).map_err(error)
}

fn pages(metrics: Arc<Metrics>, status_rx: &watch::Receiver<Arc<Status>>, asker: Asker) -> Pages {
    let hub_tx = asker.hub_tx.clone();
    let graph = move |query: &str| -> Answer {
        let (hub_tx, shown) = (hub_tx.clone(), query.parse::<Shown>());
        Box::pin(async move {
            let shown = shown?;
            let (answer_tx, answer_rx) = oneshot::channel();
            let stopping = || "the cloud is stopping".to_owned();
            let hub_tx = hub_tx.upgrade().ok_or_else(stopping)?;
            hub_tx.send(ToHub::GraphAsked { shown, answer_tx }).await.map_err(|_| stopping())?;
            answer_rx.await.map_err(|_| stopping())?
        })
    };
    let (for_health, for_metrics, for_status) = (status_rx.clone(), status_rx.clone(), status_rx.clone());
    Pages {
        health: Box::new(move || for_health.borrow().health()),
        metrics: Box::new(move || metrics.text(&for_metrics.borrow())),
        status_json: Box::new(move || for_status.borrow().json()),
        page_html: include_str!("page.html"),
        json: vec![JsonPage { path: "/graph.json", answer: Box::new(graph) }],
        named: vec![NamedPage {
            prefix: "/gateways/",
            suffix: "/explain.json",
            answer: Box::new(move |asked| asker.ask(asked.name, asked.query)),
        }],
    }
}

/// Takes connections, as many as there are places.
async fn accept(endpoint: Endpoint, context: Arc<Context>, places: Arc<Semaphore>, mut stopped: Shutdown) {
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = stopped.requested() => return,
        };
        let Some(incoming) = incoming else { return };
        let Ok(place) = places.clone().try_acquire_owned() else {
            context.metrics.connections_over_limit.fetch_add(1, Relaxed);
            incoming.refuse();
            continue;
        };
        let (session, context) = (context.next_session(), context.clone());
        tokio::spawn(async move {
            Box::pin(session::quic::serve(incoming, session, context)).await;
            drop(place);
        });
    }
}

pub use pools::{PoolServer, PoolSockets, TargetError, check as check_pools};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
