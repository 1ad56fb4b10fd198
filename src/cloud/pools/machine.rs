//! `weir-cloud pool`: pools and nothing else, for clouds that pass requests on.
//!
//! The other end of [`super::remote`]. Only clouds that are named may connect, and each is trusted to say truly whose a
//! request is; so gateways of several clouds share a pool fairly, and each pool's `gateways` count as if they were connected.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming, VarInt};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use weir_host::admin::{Admin, AdminSockets, Health, Pages};
use weir_host::notify::Notify;
use weir_host::quic::{self, peer_identity};
use weir_host::shutdown::{self, Shutdown};
use weir_host::tls::{self, ClientCerts, Role, TlsVersion};
use weir_logic::receive::CloseCode;
use weir_logic::wire::offload::{POOLS_MAX, PoolViews};
use weir_logic::wire::{self, Body};

use super::remote::{ALPN_POOL, NAME_LEN_MAX, transport};
use super::{Door, PoolStatus, Pools, one, serve};
use crate::RunError;
use crate::config::PoolConfig;
use crate::metrics;
use crate::status::PoolsStatus;

/// How long a handshake may take, and a gateway's name.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of clouds at a time; more are refused.
const CONNECTIONS_MAX: usize = 64;
/// How long clouds are given to take in the last answers.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is bound outside.
#[derive(Debug)]
pub struct PoolSockets {
    /// For clouds.
    pub quic: UdpSocket,
    /// For the operator.
    pub admin: AdminSockets,
    /// To the supervisor.
    pub notify: Notify,
}

impl PoolSockets {
    /// Binds what the configuration names; without a supervisor.
    ///
    /// # Errors
    /// `Quic` or `Admin` if an address cannot be had.
    pub fn bind(config: &PoolConfig) -> Result<PoolSockets, RunError> {
        let http = config.admin.http.map(weir_host::admin::bind_http).transpose()?;
        let unix = config.admin.unix.as_deref().map(weir_host::admin::bind_unix).transpose()?;
        Ok(PoolSockets {
            quic: quic::bind(config.listen.quic, None)?,
            admin: AdminSockets { http, unix },
            notify: Notify::default(),
        })
    }
}

/// The machine, open and not yet accepting.
pub struct PoolServer {
    endpoint: Endpoint,
    admin: Admin,
    pools: Pools,
    context: Arc<Context>,
    notify: Notify,
}

/// What every connection needs.
struct Context {
    clouds: Vec<String>,
    door: Arc<Door>,
    shown_rx: watch::Receiver<Arc<Vec<PoolStatus>>>,
    connections: AtomicUsize,
}

/// What `/status.json` shows.
#[derive(Debug, Serialize)]
struct MachineStatus {
    /// Version of the program.
    software: &'static str,
    /// Open connections of clouds.
    connections: usize,
    pools: PoolsStatus,
}

impl PoolServer {
    /// Opens certificates, endpoint and models. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `Tls`, `Identity`, `Role`, `Quic`, `Admin` or `Thread`.
    pub fn open(config: &PoolConfig, sockets: PoolSockets) -> Result<PoolServer, RunError> {
        let (credentials, roots) = crate::credentials(&config.tls)?;
        let tls = tls::server_config(&credentials, ClientCerts::Required(&roots), TlsVersion::V13, &[ALPN_POOL])?;
        let pools = Pools::start(&config.pool, &config.infer, Vec::new()).map_err(RunError::Thread)?;
        if config.clouds.enrolled.is_empty() {
            tracing::warn!("no cloud is enrolled, so none can connect; see [clouds] in the configuration");
        }
        let context = Arc::new(Context {
            clouds: config.clouds.enrolled.clone(),
            door: pools.door.clone(),
            shown_rx: pools.shown_rx.clone(),
            connections: AtomicUsize::new(0),
        });
        let admin = Admin::start(sockets.admin, pages(&context))?;
        let endpoint = quic::server_endpoint(sockets.quic, quic::server_config(tls, &transport())?)?;
        Ok(PoolServer { endpoint, admin, pools, context, notify: sockets.notify })
    }

    /// Where clouds connect.
    pub fn quic_addr(&self) -> Option<SocketAddr> {
        self.endpoint.local_addr().ok()
    }

    /// Where the operator looks.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.admin.http_addr()
    }

    /// Serves until shutdown; who still waits then is told to ask later.
    pub async fn run(self, mut shutdown: Shutdown) {
        let (stop, stopped) = shutdown::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(self.endpoint.clone(), self.context.clone(), stopped.clone()));
        tasks.spawn(self.pools.run(stopped));
        tracing::info!(quic = ?self.endpoint.local_addr().ok(), "ready");
        self.notify.ready();
        shutdown.requested().await;
        self.notify.stopping();
        stop.request();
        while tasks.join_next().await.is_some() {}
        self.endpoint.close(VarInt::from_u32(CloseCode::Shutdown as u32), b"the machine shuts down");
        let _ = timeout(GOODBYE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

fn pages(context: &Arc<Context>) -> Pages {
    let (for_health, for_metrics, for_status) = (context.clone(), context.clone(), context.clone());
    let health = move || {
        let loaded = for_health.shown_rx.borrow().len();
        Health { is_ok: loaded > 0, text: format!("{loaded} pools, {} clouds", for_health.connections.load(Relaxed)) }
    };
    let status = move || {
        let software = env!("CARGO_PKG_VERSION");
        let status = MachineStatus { software, connections: for_status.connections.load(Relaxed), pools: for_status.pools() };
        serde_json::to_string(&status).unwrap_or_default()
    };
    Pages {
        health: Box::new(health),
        metrics: Box::new(move || metrics::pools_text(&for_metrics.pools())),
        status_json: Box::new(status),
        page_html: "<!doctype html><title>weir-cloud pool</title><p>A machine that runs pools: see \
                    <a href=\"status.json\">status.json</a> and <a href=\"metrics\">metrics</a>.",
        json: Vec::new(),
        named: Vec::new(),
    }
}

impl Context {
    fn pools(&self) -> PoolsStatus {
        PoolsStatus {
            over_limit: self.door.over_limit.load(Relaxed),
            garbled: self.door.garbled.load(Relaxed),
            machines: Default::default(),
            pools: self.shown_rx.borrow().iter().map(one).collect(),
        }
    }

    /// Why a connection is not let in; `Ok` is the cloud's name.
    fn admit(&self, connection: &Connection) -> Result<String, String> {
        let identity = peer_identity(connection).map_err(|err| format!("certificate refused: {err}"))?;
        if identity.role() != Role::Cloud {
            return Err(format!("certificate refused: {identity} is not a cloud"));
        }
        let is_enrolled = self.clouds.iter().any(|name| name == identity.name());
        if is_enrolled {
            Ok(identity.name().to_owned())
        } else {
            Err(format!("cloud {} is not enrolled here", identity.name()))
        }
    }
}

async fn accept(endpoint: Endpoint, context: Arc<Context>, mut stopped: Shutdown) {
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = stopped.requested() => return,
        };
        let Some(incoming) = incoming else { return };
        if context.connections.load(Relaxed) >= CONNECTIONS_MAX {
            context.door.over_limit.fetch_add(1, Relaxed);
            incoming.refuse();
            continue;
        }
        let context = context.clone();
        context.connections.fetch_add(1, Relaxed);
        tokio::spawn(async move {
            Box::pin(connected(incoming, &context)).await;
            context.connections.fetch_sub(1, Relaxed);
        });
    }
}

async fn connected(incoming: Incoming, context: &Arc<Context>) {
    let remote = incoming.remote_address();
    let connection = match timeout(HELLO_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(err)) => return tracing::debug!(%remote, %err, "handshake failed"),
        Err(_) => return tracing::debug!(%remote, "handshake timed out"),
    };
    match context.admit(&connection) {
        Ok(cloud) => {
            tracing::info!(cloud, %remote, "cloud connected");
            let reason = talk(&connection, context).await;
            tracing::info!(cloud, %remote, reason, "cloud disconnected");
        }
        Err(reason) => {
            tracing::warn!(%remote, reason, "connection refused");
            connection.close(VarInt::from_u32(CloseCode::NotEnrolled as u32), reason.as_bytes());
        }
    }
}

/// Tells of the pools, and serves requests, until the connection ends; returns why.
async fn talk(connection: &Connection, context: &Arc<Context>) -> String {
    let mut tasks = JoinSet::new();
    tasks.spawn(tell(connection.clone(), context.shown_rx.clone()));
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok((send, mut recv)) => {
                    let door = context.door.clone();
                    tasks.spawn(async move {
                        match timeout(HELLO_TIMEOUT, take_name(&mut recv)).await {
                            // Models are the cloud's.
                            Ok(Some(gateway)) => serve(door, None, gateway, send, recv).await,
                            _ => {
                                door.garbled.fetch_add(1, Relaxed);
                            }
                        }
                    });
                }
                Err(err) => return err.to_string(),
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn take_name(recv: &mut quinn::RecvStream) -> Option<Arc<str>> {
    let (mut len, mut name) = ([0], [0; NAME_LEN_MAX]);
    recv.read_exact(&mut len).await.ok()?;
    let name = &mut name[..usize::from(len[0])];
    recv.read_exact(name).await.ok()?;
    str::from_utf8(name).ok().filter(|name| !name.is_empty()).map(Arc::from)
}

/// Writes what the pools are, whenever that is published.
async fn tell(connection: Connection, mut shown_rx: watch::Receiver<Arc<Vec<PoolStatus>>>) {
    let Ok(mut send) = connection.open_uni().await else { return };
    loop {
        let pools = shown_rx.borrow_and_update().iter().map(|pool| pool.view.clone()).take(POOLS_MAX).collect();
        let mut bytes = Vec::new();
        wire::encode_control(Body::Pools(PoolViews { pools }), &mut bytes);
        if send.write_all(&bytes).await.is_err() || shown_rx.changed().await.is_err() {
            return;
        }
    }
}
