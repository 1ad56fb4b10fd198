//! Two connections of a gateway as one session, to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWriteExt as _, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use weir_host::tcp::TlsStream;
use weir_logic::receive::{CloseCode, SessionId};
use weir_logic::wire::mux::{Frame, Half, Mux};
use weir_logic::wire::{self, Body, FrameError, LaneStream};

use super::{Connection, Frames, GOODBYE_TIMEOUT, say_goodbye};
use crate::hub::{Peer, ToHub};
use crate::session::{Assembling, CONTROL_QUEUE_LEN, Context, HELLO_TIMEOUT, Intake, Refusal, Transport};

/// Frames of critical blocks that may wait for room in the sink before the first connection is not read: 4 MiB, the window
/// that a QUIC connection has.
const CRITICAL_FRAMES_MAX: usize = 256;

/// Serves a session to its end.
pub(super) async fn serve(control: Connection, bulk: Connection, context: Arc<Context>) {
    let Connection { gateway, remote, mut frames, writer, _place } = control;
    // Held until the last words are read, or nobody will read them any more.
    let Some(_writers_tx) = context.writers.upgrade() else { return };
    let session = context.next_session();
    context.metrics.connections_opened.fetch_add(1, Relaxed);
    tracing::info!(%gateway, %remote, session = session.0, transport = "tcp", "gateway connected");
    let (closed_tx, closed_rx) = watch::channel(None);
    let (control_tx, control_rx) = mpsc::channel(CONTROL_QUEUE_LEN);
    let (ready_tx, ready_rx) = watch::channel(false);
    let peer = Peer { gateway: gateway.clone(), remote, transport: Transport::Tcp(closed_tx), control_tx, ready_tx };
    let writing = tokio::spawn(write_control(writer, control_rx));
    let Connection { frames: bulk_frames, writer: _bulk_writer, _place: _bulk_place, .. } = bulk;
    let talk = Talk { session, context: context.clone(), closed_rx: closed_rx.clone(), ready_rx };
    let Err(refusal) = talk.run(&mut frames, bulk_frames, peer).await;
    refusal.count(&context.metrics);
    // A hub that has ended needs to be told nothing. One that has not drops the peer, and with it the writer's queue.
    let _ = context.hub_tx.send(ToHub::Closed { session, gateway: gateway.clone() }).await;
    let by_hub = closed_rx.borrow().clone();
    let (code, reason) = by_hub.unwrap_or_else(|| (refusal.code(), refusal.to_string()));
    tracing::info!(%gateway, %remote, session = session.0, reason, "gateway disconnected");
    let abort = writing.abort_handle();
    let goodbye = async {
        if let Ok(Some(writer)) = writing.await {
            say_goodbye(frames, writer, code, &reason).await;
        }
    };
    // Who reads nothing until then hears nothing.
    if timeout(GOODBYE_TIMEOUT, goodbye).await.is_err() {
        abort.abort();
    }
}

/// What the parts of a session's reading share.
struct Talk {
    session: SessionId,
    context: Arc<Context>,
    /// Set when the hub closes the session; its other end goes with the hub's peer.
    closed_rx: watch::Receiver<Option<(CloseCode, String)>>,
    /// Set when the Hello was accepted: only then is read on.
    ready_rx: watch::Receiver<bool>,
}

impl Talk {
    /// Greets and reads until the session ends.
    async fn run(mut self, frames: &mut Frames, bulk: Frames, peer: Peer) -> Result<std::convert::Infallible, Refusal> {
        let gateway = peer.gateway.clone();
        let mut control = BytesMut::new();
        let first = timeout(HELLO_TIMEOUT, first_control(frames, &mut control)).await.map_err(|_| Refusal::NoHello)??;
        let Some(Body::Hello(hello)) = first else { return Err(Refusal::NoHello) };
        self.context.send(ToHub::Hello { session: self.session, hello, peer }).await?;
        let mut tasks = JoinSet::new();
        let assembling = Assembling::default();
        let lanes = |talk: &Talk| Lanes {
            session: talk.session,
            context: talk.context.clone(),
            assembling: assembling.clone(),
            intakes: Vec::new(),
        };
        let (critical_tx, critical_rx) = mpsc::channel(CRITICAL_FRAMES_MAX);
        tasks.spawn(read_bulk(bulk, lanes(&self), self.ready_rx.clone()));
        tasks.spawn(take_critical(critical_rx, lanes(&self)));
        let context = self.context.clone();
        let revoked = context.revoked(&gateway);
        tokio::pin!(revoked);
        let mut is_ready = false;
        let mut waiting: Option<(LaneStream, Bytes)> = None;
        loop {
            tokio::select! {
                // The hub's word counts before what it has led to.
                biased;
                // An error means that the hub has let go of the session without a word.
                closed = self.closed_rx.changed() => {
                    return Err(if closed.is_ok() { Refusal::Ended } else { Refusal::Stopping });
                }
                refusal = &mut revoked => return Err(refusal),
                Some(ended) = tasks.join_next() => ended.map_err(|_| Refusal::Ended)??,
                ready = self.ready_rx.changed(), if !is_ready => {
                    ready.map_err(|_| Refusal::Stopping)?;
                    is_ready = *self.ready_rx.borrow_and_update();
                }
                permit = critical_tx.reserve(), if waiting.is_some() => {
                    if let (Ok(permit), Some(frame)) = (permit, waiting.take()) {
                        permit.send(frame);
                    }
                }
                frame = frames.next(), if is_ready && waiting.is_none() => match frame? {
                    Frame::Control(bytes) => {
                        control.extend_from_slice(&bytes);
                        self.take_control(&mut control).await?;
                    }
                    Frame::Lane { stream, bytes } if Half::of(stream.lane) == Half::Control => waiting = Some((stream, bytes)),
                    _ => return Err(misplaced()),
                },
            }
        }
    }

    async fn take_control(&self, buffer: &mut BytesMut) -> Result<(), Refusal> {
        while let Some(control) = wire::take_control(buffer)? {
            if let Some(body) = control.body {
                self.context.send(ToHub::Control { session: self.session, body }).await?;
            }
        }
        Ok(())
    }
}

fn misplaced() -> Refusal {
    Refusal::Frame(FrameError::Misplaced("a frame that does not belong on its connection"))
}

/// The first message; `None` for one of a kind this version does not know.
async fn first_control(frames: &mut Frames, buffer: &mut BytesMut) -> Result<Option<Body>, Refusal> {
    loop {
        if let Some(control) = wire::take_control(buffer)? {
            return Ok(control.body);
        }
        let Frame::Control(bytes) = frames.next().await? else { return Err(Refusal::NoHello) };
        buffer.extend_from_slice(&bytes);
    }
}

/// Reads the second connection; not while the sink has no room.
async fn read_bulk(mut frames: Frames, mut lanes: Lanes, mut ready_rx: watch::Receiver<bool>) -> Result<(), Refusal> {
    ready_rx.wait_for(|ready| *ready).await.map_err(|_| Refusal::Ended)?;
    loop {
        match frames.next().await? {
            Frame::Lane { stream, bytes } if Half::of(stream.lane) == Half::Bulk => lanes.take(stream, &bytes).await?,
            _ => return Err(misplaced()),
        }
    }
}

/// Takes critical blocks in as the sink has room for them.
async fn take_critical(mut critical_rx: mpsc::Receiver<(LaneStream, Bytes)>, mut lanes: Lanes) -> Result<(), Refusal> {
    while let Some((stream, bytes)) = critical_rx.recv().await {
        lanes.take(stream, &bytes).await?;
    }
    Ok(())
}

/// Lanes of one connection.
struct Lanes {
    session: SessionId,
    context: Arc<Context>,
    /// Of both connections.
    assembling: Assembling,
    intakes: Vec<Intake>,
}

impl Lanes {
    async fn take(&mut self, stream: LaneStream, bytes: &[u8]) -> Result<(), Refusal> {
        let at = match self.intakes.iter().position(|intake| intake.stream == stream) {
            Some(at) => at,
            // There are eight lanes at the most.
            None => {
                self.intakes.push(Intake::new(self.session, self.context.clone(), stream, self.assembling.clone()));
                self.intakes.len() - 1
            }
        };
        self.intakes[at].take(bytes).await
    }
}

/// Writes what the hub says, as much at a time as has come; gives the connection back when the hub has let go of it.
async fn write_control(
    mut writer: WriteHalf<TlsStream<TcpStream>>,
    mut control_rx: mpsc::Receiver<Body>,
) -> Option<WriteHalf<TlsStream<TcpStream>>> {
    let (mut mux, mut frame, mut message) = (Mux::default(), Vec::new(), Vec::new());
    while let Some(body) = control_rx.recv().await {
        message.clear();
        wire::encode_control(body, &mut message);
        while let Ok(body) = control_rx.try_recv() {
            wire::encode_control(body, &mut message);
        }
        mux.push_control(&message);
        while mux.next_frame(&mut frame).is_some() {
            writer.write_all(&frame).await.ok()?;
        }
        writer.flush().await.ok()?;
    }
    Some(writer)
}
