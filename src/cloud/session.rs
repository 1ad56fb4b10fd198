//! What connections have in common, whatever carries them: who may be here, why one ends, and how bytes become blocks.
//!
//! A connection's tasks only cut bytes into messages and blocks, check what can be checked without state, and hand them to
//! the hub. What a peer can make us hold is bounded: the transport's receive window, `limits.connection_bytes` of blocks that
//! are not whole yet (memory grows as their bytes come, not as they are announced), and room in the sink's queue for whole
//! ones. Without room the lanes are not read, and the transport's flow control holds up the gateway.

pub(crate) mod quic;
pub(crate) mod tcp;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::BytesMut;
use quinn::{Connection, VarInt};
use tokio::sync::{mpsc, watch};
use weir_host::tls::{Identity, IdentityError, Role};
use weir_logic::block::{BlockError, BlockHeader};
use weir_logic::receive::{CloseCode, SessionId};
use weir_logic::wire::{self, FrameError, LaneStream};

use crate::enrol::Enrolled;
use crate::hub::ToHub;
use crate::metrics::Metrics;
use crate::models::Library;
use crate::pools::Door;
use crate::sink::Sink;

/// How long a peer has for its handshake, and then for its Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Control messages waiting to be written; a peer that lets more pile up is not reading.
const CONTROL_QUEUE_LEN: usize = 1_024;

/// What every connection needs.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) hub_tx: mpsc::Sender<ToHub>,
    pub(crate) enrolled_rx: watch::Receiver<Enrolled>,
    pub(crate) sink: Sink,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) door: Arc<Door>,
    /// Packages of models, for those who ask for parts of them.
    pub(crate) library: Library,
    pub(crate) connection_bytes: u64,
    /// What each writer holds until it has written all; gone when the cloud shuts down.
    pub(crate) writers: mpsc::WeakSender<()>,
    pub(crate) sessions: AtomicU64,
}

impl Context {
    /// A number for the next session.
    pub(crate) fn next_session(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Relaxed) + 1)
    }

    /// The gateway of a certificate, if it may be here.
    fn admit(&self, identity: Result<Identity, IdentityError>) -> Result<Arc<str>, Refusal> {
        let identity = identity?;
        if identity.role() != Role::Gateway {
            return Err(Refusal::Role(identity.to_string()));
        }
        if !self.enrolled_rx.borrow().contains(identity.name()) {
            return Err(Refusal::NotEnrolled(identity.name().to_owned()));
        }
        Ok(identity.name().into())
    }

    async fn send(&self, message: ToHub) -> Result<(), Refusal> {
        self.hub_tx.send(message).await.map_err(|_| Refusal::Stopping)
    }

    /// Returns when a gateway must go: it is not enrolled any more, or the cloud is at its end.
    async fn revoked(&self, gateway: &str) -> Refusal {
        let mut enrolled_rx = self.enrolled_rx.clone();
        match enrolled_rx.wait_for(|names| !names.contains(gateway)).await {
            Ok(_) => Refusal::NotEnrolled(gateway.to_owned()),
            Err(_) => Refusal::Stopping,
        }
    }
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
    #[error("no second connection with the same token and certificate within {} s", HELLO_TIMEOUT.as_secs())]
    Unpaired,
    #[error("protocol error: {0}")]
    Frame(#[from] FrameError),
    #[error("protocol error: {0}")]
    Block(#[from] BlockError),
    #[error("more than {0} bytes of blocks that are not whole (limits.connection_bytes)")]
    Memory(u64),
    /// The hub has ended.
    #[error("the cloud shuts down")]
    Stopping,
    /// The peer went, or a stream of it did; or the hub closed the connection.
    #[error("connection ended")]
    Ended,
}

impl Refusal {
    fn code(&self) -> CloseCode {
        match self {
            Refusal::Identity(_) | Refusal::Role(_) | Refusal::NotEnrolled(_) => CloseCode::NotEnrolled,
            Refusal::NoHello | Refusal::Unpaired | Refusal::Frame(_) | Refusal::Block(_) => CloseCode::Protocol,
            Refusal::Memory(_) => CloseCode::Busy,
            Refusal::Stopping | Refusal::Ended => CloseCode::Shutdown,
        }
    }

    /// Counts it.
    fn count(&self, metrics: &Metrics) {
        match self {
            Refusal::Identity(_) | Refusal::Role(_) => metrics.connections_bad_identity.fetch_add(1, Relaxed),
            Refusal::NotEnrolled(_) => metrics.connections_not_enrolled.fetch_add(1, Relaxed),
            Refusal::Unpaired => metrics.connections_unpaired.fetch_add(1, Relaxed),
            Refusal::Stopping | Refusal::Ended => 0,
            _ => metrics.connections_garbled.fetch_add(1, Relaxed),
        };
    }
}

/// What carries a session, as the hub sees it.
#[derive(Debug)]
pub(crate) enum Transport {
    Quic(Connection),
    /// Two connections; the last words go to the task that serves them.
    Tcp(watch::Sender<Option<(CloseCode, String)>>),
}

impl Transport {
    /// Ends the session with a code and words for the other side.
    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        match self {
            Transport::Quic(connection) => connection.close(VarInt::from_u32(code as u32), reason.as_bytes()),
            Transport::Tcp(closed_tx) => {
                closed_tx.send_replace(Some((code, reason.to_owned())));
            }
        }
    }

    /// Its name in the status.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Transport::Quic(_) => "quic",
            Transport::Tcp(_) => "tcp",
        }
    }
}

/// Blocks of one connection that are not whole yet, in bytes, over all its lanes.
#[derive(Debug, Clone, Default)]
struct Assembling(Arc<AtomicU64>);

/// Makes blocks of a lane's bytes, and hands them to the hub.
struct Intake {
    session: SessionId,
    context: Arc<Context>,
    stream: LaneStream,
    buffer: BytesMut,
    assembling: Assembling,
    /// This lane's part of it.
    counted: u64,
}

impl Intake {
    fn new(session: SessionId, context: Arc<Context>, stream: LaneStream, assembling: Assembling) -> Self {
        Intake { session, context, stream, buffer: BytesMut::new(), assembling, counted: 0 }
    }

    /// Takes bytes in; waits while the sink has no room for the blocks that are whole with them.
    async fn take(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.buffer.extend_from_slice(bytes);
        self.count()?;
        while let Some(block) = wire::take_block(&mut self.buffer)? {
            let header = BlockHeader::parse(&block)?;
            let room = self.context.sink.room(block.len()).await;
            let (session, stream) = (self.session, self.stream);
            self.context.send(ToHub::Block { session, stream, header, block, room }).await?;
            self.count()?;
        }
        Ok(())
    }

    /// Notes how much this lane holds now.
    fn count(&mut self) -> Result<(), Refusal> {
        let (before, now) = (self.counted, self.buffer.len() as u64);
        self.counted = now;
        let others = self.assembling.0.fetch_add(now.wrapping_sub(before), Relaxed).wrapping_sub(before);
        let limit = self.context.connection_bytes;
        if others.wrapping_add(now) > limit { Err(Refusal::Memory(limit)) } else { Ok(()) }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.assembling.0.fetch_sub(self.counted, Relaxed);
    }
}
