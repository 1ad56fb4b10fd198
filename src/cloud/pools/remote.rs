//! Another machine's pools: it is connected to, says what it has, and answers what is passed on to it.
//!
//! One QUIC connection for all gateways, both ends with their certificates, under an ALPN of its own so that neither a box nor
//! an ingest node is taken for what it is not. The machine tells of its pools on a unidirectional stream, as often as its
//! figures change. Each request has a stream: the gateway's name ([`name_head`]), then the request as the gateway sent it; its
//! answer comes back as it is. A box that does not wait any longer resets its stream, and so do we.
//!
//! A connection that is lost, or silent for [`SILENCE`], is tried again; until then its pools are gone, which gateways hear
//! within a second, and what was passed on is refused at once. Each gateway's rights are looked at twice: here by `[[pool_machine]]`, there by its `[[pool]]`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn::{Connection, Endpoint, RecvStream};
use tokio::sync::watch;
use tokio::time::timeout;
use weir_host::quic::{self, QuicError, Transport};
use weir_host::tls::{self, Credentials, Role, TlsError, TrustRoots};
use weir_logic::pool::PoolLoad;
use weir_logic::wire::offload::{PoolView, RefusalKind};
use weir_logic::wire::{self, Body};

use super::serve::refusal;
use super::{PoolStatus, allows};
use crate::config::PoolMachine;

/// The ALPN protocol identifier between a cloud and a machine that runs pools.
pub(super) const ALPN_POOL: &[u8] = b"weir-pool/1";
/// Longest name of a gateway, as a certificate may have it.
pub(super) const NAME_LEN_MAX: usize = 255;
/// How long a connection may take, and the first word on it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which the machine is taken for dead; it is pinged five times as often. A box's deadline is at most 10 s, and its
/// breaker opens after three that pass: both ends are in a data centre, where so long a silence means something.
const SILENCE: Duration = Duration::from_secs(5);
/// Wait between two attempts.
const RETRY: Duration = Duration::from_secs(1);
/// Longest answer: a label, a few names and numbers, or a sentence.
const ANSWER_LEN_MAX: usize = 16 * 1024;

/// Where another machine is, and as whom it is connected to.
#[derive(Debug)]
pub(crate) struct Target {
    address: String,
    server_name: String,
    gateways: Vec<String>,
    client: quinn::ClientConfig,
}

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct State {
    connection: Option<Connection>,
    views: Vec<PoolView>,
    told: Option<Instant>,
}

/// The machine, for those who show its pools and pass requests on.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    address: Arc<str>,
    gateways: Vec<String>,
    state_rx: watch::Receiver<State>,
}

/// Why a machine cannot be connected to, whatever the network does.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// QUIC's configuration.
    #[error(transparent)]
    Quic(#[from] QuicError),
}

impl Target {
    /// A machine of the configuration; it is connected to as the holder of `credentials`.
    ///
    /// # Errors
    /// If the certificates do not fit a client.
    pub(crate) fn new(machine: &PoolMachine, credentials: &Credentials, roots: &TrustRoots) -> Result<Target, TargetError> {
        let tls = tls::client_config(credentials, roots, &[ALPN_POOL])?;
        Ok(Target {
            address: machine.address.clone(),
            server_name: machine.server_name().to_owned(),
            gateways: machine.gateways.clone(),
            client: quic::client_config(tls, &transport())?,
        })
    }
}

/// What both ends allow: each gateway of a large site may have a request under way.
pub(super) fn transport() -> Transport {
    Transport {
        peer_bi_streams: super::REQUESTS_MAX as u32,
        keep_alive: Some(SILENCE / 5),
        idle_timeout: SILENCE,
        send_window_bytes: 16 << 20,
        receive_window_bytes: 16 << 20,
        ..Transport::cloud()
    }
}

impl Remote {
    /// The machine and what is to be kept up to date by [`keep`].
    pub(super) fn new(target: Target) -> (Remote, (Target, watch::Sender<State>)) {
        let (state_tx, state_rx) = watch::channel(State::default());
        let remote = Remote { address: target.address.as_str().into(), gateways: target.gateways.clone(), state_rx };
        (remote, (target, state_tx))
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state_rx.borrow().connection.is_some()
    }

    /// Its pools as they are shown, each as old as what was told of it.
    pub(super) fn pools(&self) -> Vec<PoolStatus> {
        let state = self.state_rx.borrow();
        let since_ms = state.told.map_or(0, |told| u64::try_from(told.elapsed().as_millis()).unwrap_or(u64::MAX));
        let pool = |view: &PoolView| {
            let view = PoolView { age_ms: view.age_ms.saturating_add(since_ms), ..view.clone() };
            let age_us = (view.p95_us > 0).then_some(view.age_ms.saturating_mul(1_000));
            PoolStatus {
                gateways: self.gateways.clone(),
                machine: Some(self.address.to_string()),
                load: PoolLoad { p50_us: view.p50_us, p95_us: view.p95_us, age_us, ..PoolLoad::default() },
                view,
                ..PoolStatus::default()
            }
        };
        state.views.iter().map(pool).collect()
    }

    /// Passes a request on, as the gateway's; returns what the gateway is to be answered.
    pub(super) async fn pass_on(&self, gateway: &str, request: &[u8]) -> Body {
        if !allows(&self.gateways, gateway) {
            // The same words for what is not there and what is not for it.
            return refusal(RefusalKind::Denied, "there is no such pool for this gateway", 0);
        }
        let connection = self.state_rx.borrow().connection.clone();
        let answer = match connection {
            Some(connection) => exchange(&connection, gateway, request).await,
            None => None,
        };
        answer.unwrap_or_else(|| refusal(RefusalKind::Failed, "the machine that runs the pool is not reached", 0))
    }
}

/// What is before a request that is passed on: the length of the gateway's name in a byte, and the name.
fn name_head(gateway: &str) -> Option<Vec<u8>> {
    let len = u8::try_from(gateway.len()).ok()?;
    let mut head = vec![len];
    head.extend_from_slice(gateway.as_bytes());
    Some(head)
}

async fn exchange(connection: &Connection, gateway: &str, request: &[u8]) -> Option<Body> {
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    send.write_all(&name_head(gateway)?).await.ok()?;
    send.write_all(request).await.ok()?;
    // One that was stopped is told by what comes back.
    let _ = send.finish();
    let answer = recv.read_to_end(ANSWER_LEN_MAX).await.ok()?;
    let body = wire::take_control(&mut BytesMut::from(&answer[..])).ok()??.body?;
    matches!(body, Body::OffloadAnswer(_) | Body::OffloadRefusal(_)).then_some(body)
}

/// Keeps the machine connected, and what is known of it up to date, for as long as anybody wants to know.
pub(super) async fn keep(target: Target, state_tx: watch::Sender<State>) {
    let mut last = String::new();
    loop {
        let reason = follow(&target, &state_tx).await;
        state_tx.send_replace(State::default());
        // The same reason once a second would hide all others.
        if reason != last {
            tracing::warn!(machine = target.address, reason, "a machine that runs pools is not connected; it is tried again");
        }
        last = reason;
        tokio::time::sleep(RETRY).await;
    }
}

/// Connects and follows what the machine tells until the connection ends; returns why.
async fn follow(target: &Target, state_tx: &watch::Sender<State>) -> String {
    match timeout(CONNECT_TIMEOUT, connect(target)).await {
        Ok(Ok((connection, _endpoint, mut told))) => {
            tracing::info!(machine = target.address, "a machine that runs pools is connected");
            state_tx.send_replace(State { connection: Some(connection.clone()), ..State::default() });
            let reason = listen(&mut told, state_tx).await;
            connection.close(0u32.into(), b"");
            connection.close_reason().map_or(reason, |reason| reason.to_string())
        }
        Ok(Err(reason)) => reason,
        Err(_) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
    }
}

async fn connect(target: &Target) -> Result<(Connection, Endpoint, RecvStream), String> {
    let found = tokio::net::lookup_host(&target.address).await.map_err(|err| format!("cannot look it up: {err}"))?;
    let mut reason = "it has no address".to_owned();
    for addr in found {
        let any = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = quic::bind(any.parse().expect("an address"), None).map_err(|err| err.to_string())?;
        let endpoint = quic::client_endpoint(socket).map_err(|err| err.to_string())?;
        let connecting =
            endpoint.connect_with(target.client.clone(), addr, &target.server_name).map_err(|err| err.to_string())?;
        match connecting.await {
            Ok(connection) => {
                let identity = quic::peer_identity(&connection).map_err(|err| err.to_string())?;
                if identity.role() != Role::Cloud {
                    connection.close(0u32.into(), b"not a machine of a cloud");
                    return Err(format!("its certificate is that of {identity}, not of weir://cloud/NAME"));
                }
                let told = connection.accept_uni().await;
                return told.map(|told| (connection, endpoint, told)).map_err(|err| err.to_string());
            }
            Err(err) => reason = err.to_string(),
        }
    }
    Err(reason)
}

/// Takes in what the machine tells of its pools until it ends; returns why.
async fn listen(told: &mut RecvStream, state_tx: &watch::Sender<State>) -> String {
    let mut buffer = BytesMut::new();
    loop {
        match wire::take_control(&mut buffer) {
            Ok(Some(control)) => {
                if let Some(Body::Pools(pools)) = control.body {
                    state_tx.send_modify(|state| (state.views, state.told) = (pools.pools, Some(Instant::now())));
                }
                continue;
            }
            Ok(None) => {}
            Err(err) => return err.to_string(),
        }
        match told.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => buffer.extend_from_slice(&chunk.bytes),
            Ok(None) => return "it ended what it tells".to_owned(),
            Err(err) => return err.to_string(),
        }
    }
}
