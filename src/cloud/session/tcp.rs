//! Gateways over TLS on TCP, for where QUIC does not pass: two connections that are one session, see [`weir_logic::wire::mux`].
//!
//! A connection that was accepted shows its certificate and its opening, and then waits in [`Pairs`] for the other of its
//! session, which must come to this process: behind a balancer that spreads connections, spread by their source. The two
//! are served as one; the first connection is always read, because a gateway whose pings are not answered goes away, and
//! the second is not while the sink has no room. Critical blocks wait for room in a queue of their own.
//!
//! A close is a frame too. It is the last one written, and what the peer still sends is read and dropped until it has closed
//! its end, so that no reset overtakes it.

mod pairs;
mod serve;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use weir_host::shutdown::Shutdown;
use weir_host::tcp::{self, TlsStream};
use weir_logic::receive::CloseCode;
use weir_logic::wire::mux::{Frame, Opening, close_frame, take_frame};

use super::{Context, HELLO_TIMEOUT, Refusal};
use pairs::{Offer, Pairs};

/// How long a peer may take to read the last words.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes taken from a socket at a time, at the least.
const READ_LEN: usize = 32 << 10;
/// Wait after an accept that failed for want of sockets or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One connection of a gateway that may be here.
struct Connection {
    gateway: Arc<str>,
    remote: SocketAddr,
    frames: Frames,
    writer: WriteHalf<TlsStream<TcpStream>>,
    /// Its place among those that there are.
    _place: OwnedSemaphorePermit,
}

/// One that has said which half of a session it is.
struct Opened {
    connection: Connection,
    opening: Opening,
    certificate: Vec<u8>,
}

/// Takes connections, as many as there are places, until shutdown.
pub(crate) async fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    context: Arc<Context>,
    places: Arc<Semaphore>,
    mut stopped: Shutdown,
) {
    // As many as there are places at the most.
    let (opened_tx, mut opened_rx) = mpsc::unbounded_channel();
    let mut pairs = Pairs::new(HELLO_TIMEOUT);
    loop {
        let next_due = pairs.next_due();
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => match places.clone().try_acquire_owned() {
                    Ok(place) => {
                        tokio::spawn(greet(stream, remote, place, config.clone(), context.clone(), opened_tx.clone()));
                    }
                    Err(_) => {
                        context.metrics.connections_over_limit.fetch_add(1, Relaxed);
                    }
                },
                Err(err) => {
                    tracing::warn!(%err, "cannot accept a connection; it is tried again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(Opened { connection, opening, certificate }) = opened_rx.recv() => {
                match pairs.offer(Instant::now(), opening, certificate, connection) {
                    Offer::Waits => {}
                    Offer::Pair { control, bulk } => {
                        tokio::spawn(serve::serve(control, bulk, context.clone()));
                    }
                    Offer::Refused(connection) => refuse(connection, Refusal::Unpaired, &context),
                }
            }
            () = until(next_due) => {
                for connection in pairs.take_due(Instant::now()) {
                    refuse(connection, Refusal::Unpaired, &context);
                }
            }
            () = stopped.requested() => return,
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Handshake, certificate and opening of one connection.
async fn greet(
    stream: TcpStream,
    remote: SocketAddr,
    place: OwnedSemaphorePermit,
    config: Arc<ServerConfig>,
    context: Arc<Context>,
    opened_tx: mpsc::UnboundedSender<Opened>,
) {
    let shaken = timeout(HELLO_TIMEOUT, tcp::accept(stream, config)).await;
    let stream = match shaken.map_err(|_| "it took too long".to_owned()).and_then(|shaken| shaken.map_err(|err| words(&err))) {
        Ok(stream) => stream,
        Err(reason) => {
            context.metrics.handshakes_failed.fetch_add(1, Relaxed);
            return tracing::debug!(%remote, reason, "handshake failed");
        }
    };
    let (identity, certificate) = match tcp::peer(&stream) {
        Ok((identity, certificate)) => (Ok(identity), certificate.to_vec()),
        Err(err) => (Err(err), Vec::new()),
    };
    let (reader, writer) = tokio::io::split(stream);
    let frames = Frames { reader, buffer: BytesMut::new() };
    let mut connection = Connection { gateway: "".into(), remote, frames, writer, _place: place };
    match context.admit(identity) {
        Ok(gateway) => connection.gateway = gateway,
        Err(refusal) => return refuse(connection, refusal, &context),
    }
    match timeout(HELLO_TIMEOUT, connection.frames.next()).await {
        Ok(Ok(Frame::Opening(opening))) => {
            // The listener has ended: so does this.
            let _ = opened_tx.send(Opened { connection, opening, certificate });
        }
        Ok(Ok(_)) => refuse(connection, Refusal::NoHello, &context),
        Ok(Err(refusal)) => refuse(connection, refusal, &context),
        Err(_) => refuse(connection, Refusal::NoHello, &context),
    }
}

fn words(err: &tcp::TcpError) -> String {
    let source = std::error::Error::source(err).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{err}{source}")
}

/// Ends a connection that never became part of a session, with a word to the other side.
fn refuse(connection: Connection, refusal: Refusal, context: &Context) {
    let Connection { remote, frames, writer, _place, .. } = connection;
    tracing::warn!(%remote, reason = %refusal, "connection refused");
    refusal.count(&context.metrics);
    tokio::spawn(async move {
        // Who does not read it in time has heard enough.
        let _ = timeout(GOODBYE_TIMEOUT, say_goodbye(frames, writer, refusal.code(), &refusal.to_string())).await;
        drop(_place);
    });
}

/// Writes the last frame, and waits until the peer has closed its end.
async fn say_goodbye(frames: Frames, mut writer: WriteHalf<TlsStream<TcpStream>>, code: CloseCode, reason: &str) {
    if writer.write_all(&close_frame(code as u32, reason)).await.is_ok() {
        let mut reader = frames.reader;
        tcp::finish(&mut reader, &mut writer).await;
    }
}

/// Frames that a peer sends.
struct Frames {
    reader: ReadHalf<TlsStream<TcpStream>>,
    buffer: BytesMut,
}

impl Frames {
    /// The next one. Cancel safe.
    async fn next(&mut self) -> Result<Frame, Refusal> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer)? {
                return Ok(frame);
            }
            self.buffer.reserve(READ_LEN);
            if self.reader.read_buf(&mut self.buffer).await.map_err(|_| Refusal::Ended)? == 0 {
                return Err(Refusal::Ended);
            }
        }
    }
}

#[cfg(test)]
mod tests;
