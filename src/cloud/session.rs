//! One connection: who it is, its control stream, its lane streams.
//!
//! A connection's tasks only cut bytes into messages and blocks, check what can be checked without state, and hand them to
//! the hub. What a peer can make us hold is bounded: QUIC's receive window, `limits.connection_bytes` of blocks that are
//! not whole yet (memory grows as their bytes come, not as they are announced), and room in the sink's queue for whole
//! ones. Without room the streams are not read, and QUIC's flow control holds up the gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::BytesMut;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use weir_host::quic::peer_identity;
use weir_host::tls::{IdentityError, Role};
use weir_logic::block::{BlockError, BlockHeader};
use weir_logic::receive::{CloseCode, SessionId};
use weir_logic::wire::{self, Body, FrameError, LaneStream};

use crate::enrol::Enrolled;
use crate::hub::{Peer, ToHub};
use crate::metrics::Metrics;
use crate::sink::Sink;

/// How long a peer has for its handshake, and then for its Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes taken from a stream at a time.
const READ_LEN: usize = 64 << 10;
/// Control messages waiting to be written; a peer that lets more pile up is not reading.
const CONTROL_QUEUE_LEN: usize = 1_024;

/// What every connection needs.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) hub_tx: mpsc::Sender<ToHub>,
    pub(crate) enrolled_rx: watch::Receiver<Enrolled>,
    pub(crate) sink: Sink,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) connection_bytes: u64,
    /// What each writer holds until it has written all; gone when the cloud shuts down.
    pub(crate) writers: mpsc::WeakSender<()>,
}

/// Why a connection ends that its peer would have kept.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("certificate refused: {0}")]
    Identity(#[from] IdentityError),
    #[error("certificate refused: {0} is not a gateway")]
    Role(String),
    #[error("gateway {0} is not enrolled here")]
    NotEnrolled(String),
    #[error("no Hello within {} s", HELLO_TIMEOUT.as_secs())]
    NoHello,
    #[error("protocol error: {0}")]
    Frame(#[from] FrameError),
    #[error("protocol error: {0}")]
    Block(#[from] BlockError),
    #[error("more than {0} bytes of blocks that are not whole (limits.connection_bytes)")]
    Memory(u64),
    /// The peer went, or a stream of it did; or the hub closed the connection.
    #[error("connection ended")]
    Ended,
}

impl Refusal {
    fn code(&self) -> CloseCode {
        match self {
            Refusal::Identity(_) | Refusal::Role(_) | Refusal::NotEnrolled(_) => CloseCode::NotEnrolled,
            Refusal::NoHello | Refusal::Frame(_) | Refusal::Block(_) => CloseCode::Protocol,
            Refusal::Memory(_) => CloseCode::Busy,
            Refusal::Ended => CloseCode::Shutdown,
        }
    }
}

/// Closes a connection with a code and words for the other side.
pub(crate) fn close(connection: &Connection, code: CloseCode, reason: &str) {
    connection.close(VarInt::from_u32(code as u32), reason.as_bytes());
}

/// Serves one connection to its end.
pub(crate) async fn serve(incoming: Incoming, session: SessionId, context: Arc<Context>) {
    let remote = incoming.remote_address();
    let connection = match timeout(HELLO_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(err)) => {
            context.metrics.handshakes_failed.fetch_add(1, Relaxed);
            return tracing::debug!(%remote, %err, "handshake failed");
        }
        Err(_) => {
            context.metrics.handshakes_failed.fetch_add(1, Relaxed);
            return tracing::debug!(%remote, "handshake timed out");
        }
    };
    let refusal = match gateway_of(&connection, &context) {
        Ok(gateway) => {
            context.metrics.connections_opened.fetch_add(1, Relaxed);
            tracing::info!(%gateway, %remote, session = session.0, "gateway connected");
            let Err(refusal) = talk(&connection, session, &gateway, remote, &context).await;
            // A hub that has ended needs to be told nothing.
            let _ = context.hub_tx.send(ToHub::Closed { session, gateway: gateway.clone() }).await;
            let reason = connection.close_reason().map_or_else(|| refusal.to_string(), |reason| reason.to_string());
            tracing::info!(%gateway, %remote, session = session.0, reason, "gateway disconnected");
            refusal
        }
        Err(refusal) => {
            tracing::warn!(%remote, reason = %refusal, "connection refused");
            refusal
        }
    };
    match &refusal {
        Refusal::Identity(_) | Refusal::Role(_) => context.metrics.connections_bad_identity.fetch_add(1, Relaxed),
        Refusal::NotEnrolled(_) => context.metrics.connections_not_enrolled.fetch_add(1, Relaxed),
        Refusal::Ended => 0,
        _ => context.metrics.connections_garbled.fetch_add(1, Relaxed),
    };
    close(&connection, refusal.code(), &refusal.to_string());
}

/// The gateway at the other end, if it may be here.
fn gateway_of(connection: &Connection, context: &Context) -> Result<Arc<str>, Refusal> {
    let identity = peer_identity(connection)?;
    if identity.role() != Role::Gateway {
        return Err(Refusal::Role(identity.to_string()));
    }
    if !context.enrolled_rx.borrow().contains(identity.name()) {
        return Err(Refusal::NotEnrolled(identity.name().to_owned()));
    }
    Ok(identity.name().into())
}

async fn talk(
    connection: &Connection,
    session: SessionId,
    gateway: &Arc<str>,
    remote: SocketAddr,
    context: &Arc<Context>,
) -> Result<std::convert::Infallible, Refusal> {
    let opened = timeout(HELLO_TIMEOUT, connection.accept_bi()).await.map_err(|_| Refusal::NoHello)?;
    let (control_send, mut control_recv) = opened.map_err(|_| Refusal::Ended)?;
    let mut buffer = BytesMut::new();
    let first = timeout(HELLO_TIMEOUT, next_control(&mut control_recv, &mut buffer)).await.map_err(|_| Refusal::NoHello)??;
    let (control_tx, control_rx) = mpsc::channel(CONTROL_QUEUE_LEN);
    let (ready_tx, ready_rx) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let writers_tx = context.writers.upgrade().ok_or(Refusal::Ended)?;
    tokio::spawn(write_control(control_send, control_rx, writers_tx));
    let peer = Peer { gateway: gateway.clone(), remote, connection: connection.clone(), control_tx, ready_tx };
    match first {
        Some(Body::Hello(hello)) => send(context, ToHub::Hello { session, hello, peer }).await?,
        _ => return Err(Refusal::NoHello),
    }
    tasks.spawn(read_control(control_recv, buffer, session, context.clone(), ready_rx.clone()));
    let assembling = Arc::new(AtomicU64::new(0));
    let mut enrolled_rx = context.enrolled_rx.clone();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                let stream = stream.map_err(|_| Refusal::Ended)?;
                let lane = LaneReader { session, context: context.clone(), assembling: assembling.clone(), counted: 0 };
                tasks.spawn(lane.run(stream, ready_rx.clone()));
            }
            Some(ended) = tasks.join_next() => {
                // A lane stream may end; an error of any of them ends the connection.
                ended.map_err(|_| Refusal::Ended)??;
            }
            revoked = enrolled_rx.wait_for(|names| !names.contains(&**gateway)) => {
                return Err(if revoked.is_ok() { Refusal::NotEnrolled(gateway.to_string()) } else { Refusal::Ended });
            }
        }
    }
}

async fn send(context: &Context, message: ToHub) -> Result<(), Refusal> {
    context.hub_tx.send(message).await.map_err(|_| Refusal::Ended)
}

/// The next message; `None` for one of a kind this version does not know.
async fn next_control(stream: &mut RecvStream, buffer: &mut BytesMut) -> Result<Option<Body>, Refusal> {
    loop {
        if let Some(control) = wire::take_control(buffer)? {
            return Ok(control.body);
        }
        read_more(stream, buffer).await?;
    }
}

async fn read_more(stream: &mut RecvStream, buffer: &mut BytesMut) -> Result<(), Refusal> {
    match stream.read_chunk(READ_LEN, true).await {
        Ok(Some(chunk)) => {
            buffer.extend_from_slice(&chunk.bytes);
            Ok(())
        }
        Ok(None) | Err(_) => Err(Refusal::Ended),
    }
}

/// Reads control messages once the hub knows the session. The control stream lives as long as the connection.
async fn read_control(
    mut stream: RecvStream,
    mut buffer: BytesMut,
    session: SessionId,
    context: Arc<Context>,
    mut ready_rx: watch::Receiver<bool>,
) -> Result<(), Refusal> {
    ready_rx.wait_for(|ready| *ready).await.map_err(|_| Refusal::Ended)?;
    loop {
        if let Some(body) = next_control(&mut stream, &mut buffer).await? {
            send(&context, ToHub::Control { session, body }).await?;
        }
    }
}

/// Writes what the hub says, as much at a time as has come.
async fn write_control(mut stream: SendStream, mut control_rx: mpsc::Receiver<Body>, _writers_tx: mpsc::Sender<()>) {
    let mut bytes = Vec::new();
    while let Some(body) = control_rx.recv().await {
        bytes.clear();
        wire::encode_control(body, &mut bytes);
        while let Ok(body) = control_rx.try_recv() {
            wire::encode_control(body, &mut bytes);
        }
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The hub has ended: the last acks should arrive before the connection is closed.
    if stream.finish().is_ok() {
        let _ = stream.stopped().await;
    }
}

struct LaneReader {
    session: SessionId,
    context: Arc<Context>,
    /// Bytes of all blocks of this connection that are not whole.
    assembling: Arc<AtomicU64>,
    /// This stream's part of it.
    counted: u64,
}

impl LaneReader {
    async fn run(mut self, mut stream: RecvStream, mut ready_rx: watch::Receiver<bool>) -> Result<(), Refusal> {
        ready_rx.wait_for(|ready| *ready).await.map_err(|_| Refusal::Ended)?;
        let mut head = [0; LaneStream::LEN];
        stream.read_exact(&mut head).await.map_err(|_| Refusal::Ended)?;
        let head = LaneStream::from_bytes(head)?;
        let mut buffer = BytesMut::new();
        loop {
            while let Some(block) = wire::take_block(&mut buffer)? {
                let header = BlockHeader::parse(&block)?;
                let room = self.context.sink.room(block.len()).await;
                send(&self.context, ToHub::Block { session: self.session, stream: head, header, block, room }).await?;
                self.count(buffer.len())?;
            }
            match stream.read_chunk(READ_LEN, true).await {
                Ok(Some(chunk)) => buffer.extend_from_slice(&chunk.bytes),
                // A gateway may end a lane's stream, at a block's end or, reset, anywhere.
                Ok(None) | Err(_) => return Ok(()),
            }
            self.count(buffer.len())?;
        }
    }

    /// Notes how much this stream holds now.
    fn count(&mut self, len: usize) -> Result<(), Refusal> {
        let (before, now) = (self.counted, len as u64);
        self.counted = now;
        let others = self.assembling.fetch_add(now.wrapping_sub(before), Relaxed).wrapping_sub(before);
        let limit = self.context.connection_bytes;
        if others.wrapping_add(now) > limit { Err(Refusal::Memory(limit)) } else { Ok(()) }
    }
}

impl Drop for LaneReader {
    fn drop(&mut self) {
        self.assembling.fetch_sub(self.counted, Relaxed);
    }
}
