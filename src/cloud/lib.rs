//! The ingest side: gateways connect over QUIC, their blocks become rows in SQLite, and what is committed is acknowledged.
//!
//! ```text
//! quinn --> session (a task a connection) --> hub (all state) --> sink (a thread, SQLite)
//!               ^          room in the queue    |   ^                  |
//!               `------- control messages ------'   `---- commits -----'
//! ```
//!
//! [`Cloud::open`] binds nothing: the caller brings the [`Sockets`], so that tests start the real thing on port 0.
//! What to store and what to acknowledge is decided by [`weir_logic::receive`], which knows no sockets.

pub mod config;
pub mod enrol;
pub mod metrics;
pub mod schema;
pub mod sink;
pub mod status;

mod hub;
mod session;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

use quinn::{Endpoint, VarInt};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use weir_host::admin::{Admin, AdminError, AdminSockets, Pages};
use weir_host::notify::Notify;
use weir_host::quic::{self, QuicError, Transport};
use weir_host::shutdown::{self, Shutdown};
use weir_host::tls::{self, ClientCerts, Credentials, IdentityError, Role, TlsError, TlsVersion, TrustRoots};
use weir_logic::receive::{CloseCode, SessionId};
use weir_logic::wire::ALPN;

use crate::config::Config;
use crate::enrol::{EnrolError, Enrolled};
use crate::hub::{Hub, Links};
use crate::metrics::Metrics;
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
    /// The list of gateways.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The UDP socket.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// The admin endpoint.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The database failed for good while running.
    #[error("the database failed: {0}")]
    Sink(String),
}

/// What is bound outside.
#[derive(Debug)]
pub struct Sockets {
    /// For gateways.
    pub quic: UdpSocket,
    /// For the operator.
    pub admin: AdminSockets,
    /// To the supervisor.
    pub notify: Notify,
}

impl Sockets {
    /// Binds what the configuration names; without a supervisor.
    ///
    /// # Errors
    /// `Quic` or `Admin` if an address cannot be had.
    pub fn bind(config: &Config) -> Result<Sockets, RunError> {
        let http = config.admin.http.map(weir_host::admin::bind_http).transpose()?;
        let unix = config.admin.unix.as_deref().map(weir_host::admin::bind_unix).transpose()?;
        let quic = quic::bind(config.listen.quic, None)?;
        Ok(Sockets { quic, admin: AdminSockets { http, unix }, notify: Notify::default() })
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
    admin: Admin,
    hub: Hub,
    context: Arc<Context>,
    places: Arc<Semaphore>,
    enrolment: (config::Gateways, watch::Sender<Enrolled>),
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
        let server_config = server_config(config)?;
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
        let admin = Admin::start(sockets.admin, pages(metrics.clone(), &status_rx))?;
        let (hub_tx, inbox_rx) = mpsc::channel(HUB_QUEUE_LEN);
        let notify = Arc::new(sockets.notify);
        let links =
            Links { inbox_rx, sink_rx, sink: sink.clone(), status_tx, metrics: metrics.clone(), notify: notify.clone() };
        let hub = Hub::new(links, config.limits.credit_bytes.get(), config.limits.gateways_cached);
        let (enrolled_tx, enrolled_rx) = watch::channel(enrolled);
        let writers = mpsc::channel(1);
        let connection_bytes = config.limits.connection_bytes.get();
        let context =
            Arc::new(Context { hub_tx, enrolled_rx, sink, metrics, connection_bytes, writers: writers.0.downgrade() });
        Ok(Cloud {
            endpoint: quic::server_endpoint(sockets.quic, server_config)?,
            admin,
            hub,
            context,
            places: Arc::new(Semaphore::new(config.limits.connections_max)),
            enrolment: (config.gateways.clone(), enrolled_tx),
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
        tasks.spawn(accept(self.endpoint.clone(), self.context.clone(), self.places, stopped.clone()));
        let (gateways, enrolled_tx) = self.enrolment;
        tasks.spawn(enrol::watch_file(gateways, enrolled_tx, self.context.metrics.clone(), stopped));
        tracing::info!(quic = ?self.endpoint.local_addr().ok(), "ready");
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

fn server_config(config: &Config) -> Result<quinn::ServerConfig, RunError> {
    let credentials = Credentials::load(&config.tls.cert, &config.tls.key)?;
    let identity = credentials.identity()?;
    if identity.role() != Role::Cloud {
        return Err(RunError::Role { found: identity.to_string() });
    }
    credentials.check_validity(weir_host::clock::Clock::start(None).wall())?;
    let roots = TrustRoots::load(&config.tls.ca)?;
    let tls = tls::server_config(&credentials, ClientCerts::Required(&roots), TlsVersion::V13, &[ALPN])?;
    Ok(quic::server_config(tls, &Transport::cloud())?)
}

fn pages(metrics: Arc<Metrics>, status_rx: &watch::Receiver<Arc<Status>>) -> Pages {
    let (for_health, for_metrics, for_status) = (status_rx.clone(), status_rx.clone(), status_rx.clone());
    Pages {
        health: Box::new(move || for_health.borrow().health()),
        metrics: Box::new(move || metrics.text(&for_metrics.borrow())),
        status_json: Box::new(move || for_status.borrow().json()),
        page_html: include_str!("page.html"),
        json: Vec::new(),
    }
}

/// Takes connections, as many as there are places.
async fn accept(endpoint: Endpoint, context: Arc<Context>, places: Arc<Semaphore>, mut stopped: Shutdown) {
    let mut next_session = 0;
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
        next_session += 1;
        let (session, context) = (SessionId(next_session), context.clone());
        tokio::spawn(async move {
            Box::pin(session::serve(incoming, session, context)).await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
