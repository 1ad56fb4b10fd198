//! A gateway over QUIC: one connection with its control stream and its lane streams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::BytesMut;
use quinn::{Connection, Incoming, RecvStream, SendStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use weir_host::quic::peer_identity;
use weir_logic::receive::SessionId;
use weir_logic::wire::{self, Body, LaneStream};

use super::{Assembling, CONTROL_QUEUE_LEN, Context, HELLO_TIMEOUT, Intake, Refusal, Transport};
use crate::hub::{Peer, ToHub};
use crate::pools;

/// Bytes taken from a stream at a time.
const READ_LEN: usize = 64 << 10;

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
    let refusal = match context.admit(peer_identity(&connection)) {
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
    refusal.count(&context.metrics);
    Transport::Quic(connection).close(refusal.code(), &refusal.to_string());
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
    let transport = Transport::Quic(connection.clone());
    let peer = Peer { gateway: gateway.clone(), remote, transport, control_tx, ready_tx };
    match first {
        Some(Body::Hello(hello)) => context.send(ToHub::Hello { session, hello, peer }).await?,
        _ => return Err(Refusal::NoHello),
    }
    tasks.spawn(read_control(control_recv, buffer, session, context.clone(), ready_rx.clone()));
    let assembling = Assembling::default();
    let revoked = context.revoked(gateway);
    tokio::pin!(revoked);
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                let stream = stream.map_err(|_| Refusal::Ended)?;
                tasks.spawn(read_lane(stream, session, context.clone(), assembling.clone(), ready_rx.clone()));
            }
            stream = connection.accept_bi() => {
                let (send, recv) = stream.map_err(|_| Refusal::Ended)?;
                let asked = pools::serve(context.door.clone(), Some(context.library.clone()), gateway.clone(), send, recv);
                tasks.spawn(async move {
                    asked.await;
                    Ok(())
                });
            }
            Some(ended) = tasks.join_next() => {
                // A lane stream may end; an error of any of them ends the connection.
                ended.map_err(|_| Refusal::Ended)??;
            }
            refusal = &mut revoked => return Err(refusal),
        }
    }
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
            context.send(ToHub::Control { session, body }).await?;
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

/// Reads a lane's blocks once the hub knows the session.
async fn read_lane(
    mut stream: RecvStream,
    session: SessionId,
    context: Arc<Context>,
    assembling: Assembling,
    mut ready_rx: watch::Receiver<bool>,
) -> Result<(), Refusal> {
    ready_rx.wait_for(|ready| *ready).await.map_err(|_| Refusal::Ended)?;
    let mut head = [0; LaneStream::LEN];
    stream.read_exact(&mut head).await.map_err(|_| Refusal::Ended)?;
    let mut intake = Intake::new(session, context, LaneStream::from_bytes(head)?, assembling);
    // A gateway may end a lane's stream, at a block's end or, reset, anywhere.
    while let Ok(Some(chunk)) = stream.read_chunk(READ_LEN, true).await {
        intake.take(&chunk.bytes).await?;
    }
    Ok(())
}
