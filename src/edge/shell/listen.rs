//! The shell of MQTT clients: sockets and TLS; `logic::ingest` says what to write and when to read.
//!
//! A client's task reads once, hands the bytes over, and reads again only when it is told to. Its buffer goes along and
//! comes back, so a client costs one buffer however much it sends. While the task writes it does not read: a client that
//! does not read its socket is not read from.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Duration, timeout};
use tokio_rustls::TlsAcceptor;
use weir_logic::ingest::ConnId;

use super::Message;

/// What the gateway tells a client's task.
#[derive(Debug)]
pub(crate) enum ClientCommand {
    Write(Vec<u8>),
    /// Read once more, into this buffer if it is given back.
    Read(Option<Vec<u8>>),
    Close,
}

/// A listener with what it needs to greet clients.
#[derive(Clone)]
pub(crate) struct Listener {
    pub(crate) tcp: Arc<TcpListener>,
    pub(crate) tls: Option<TlsAcceptor>,
    /// Index of this listener in the configuration.
    pub(crate) index: usize,
    /// Places for TLS handshakes, shared by all listeners.
    pub(crate) handshakes: Arc<Semaphore>,
    pub(crate) counters: Arc<ListenCounters>,
}

/// What ended before the gateway heard of it, or without its doing.
#[derive(Debug, Default)]
pub(crate) struct ListenCounters {
    /// TLS handshakes that failed or took too long.
    pub(crate) handshakes_failed: AtomicU64,
    /// Clients closed because too many handshakes were under way.
    pub(crate) handshakes_refused: AtomicU64,
    /// Clients closed because they did not read what was written to them.
    pub(crate) writes_timed_out: AtomicU64,
}

/// Largest read; `logic::mqtt` takes no more at once.
pub(crate) const READ_LEN_MAX: usize = 64 * 1024;
/// A client's first buffer: most sensors never send more at once.
const READ_LEN_FIRST: usize = 4 * 1024;
/// Time for a TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// TLS handshakes at once, over all listeners: each costs some 30 KiB and milliseconds of a small processor.
pub(crate) const HANDSHAKES_MAX: usize = 128;
/// Time for a client to read what is written to it; it is not read from meanwhile.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// Time to write the last bytes to a client that is to be closed.
const LAST_WRITE_LIMIT: Duration = Duration::from_secs(2);
/// Wait after an accept that failed for want of sockets or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts clients for ever.
pub(crate) async fn run(listener: Listener, messages_tx: mpsc::Sender<Message>) {
    loop {
        let (stream, peer) = match listener.tcp.accept().await {
            Ok(accepted) => accepted,
            Err(err) => {
                tracing::warn!(%err, "cannot accept a client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tokio::spawn(greet(listener.clone(), stream, peer, messages_tx.clone()));
    }
}

async fn greet(listener: Listener, stream: TcpStream, peer: SocketAddr, messages_tx: mpsc::Sender<Message>) {
    if let Err(err) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %err, "client is gone");
        return;
    }
    let Listener { tls, index, handshakes, counters, .. } = listener;
    let opened = |certificate| {
        move |commands_tx, opened_tx| Message::ClientOpened { listener: index, peer, certificate, commands_tx, opened_tx }
    };
    let Some(tls) = tls else {
        return client(stream, opened(None), messages_tx, &counters).await;
    };
    // A place is for who has begun to speak, so that idle sockets do not keep sensors out.
    let begun = timeout(HANDSHAKE_LIMIT, stream.readable()).await.is_ok_and(|readable| readable.is_ok());
    let refused = |reason| Message::HandshakeFailed { peer, reason };
    if !begun {
        counters.handshakes_failed.fetch_add(1, Relaxed);
        let _ = messages_tx.send(refused("nothing came: the listener expects TLS".to_owned())).await;
        return;
    }
    let Ok(Ok(place)) = timeout(HANDSHAKE_LIMIT, handshakes.acquire_owned()).await else {
        counters.handshakes_refused.fetch_add(1, Relaxed);
        let _ = messages_tx.send(refused(format!("{HANDSHAKES_MAX} TLS handshakes are under way, it may try again"))).await;
        return;
    };
    let shaken = timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await;
    drop(place);
    let reason = match shaken {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|cert| cert.to_vec());
            return client(stream, opened(certificate), messages_tx, &counters).await;
        }
        Ok(Err(err)) => format!("TLS handshake failed: {err}"),
        Err(_) => "TLS handshake took too long".to_owned(),
    };
    counters.handshakes_failed.fetch_add(1, Relaxed);
    let _ = messages_tx.send(refused(reason)).await;
}

/// Serves one connection until either side ends it; `opened` makes the message that announces it.
pub(crate) async fn client<S>(
    stream: S,
    opened: impl FnOnce(mpsc::UnboundedSender<ClientCommand>, oneshot::Sender<ConnId>) -> Message,
    messages_tx: mpsc::Sender<Message>,
    counters: &ListenCounters,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Bounded in effect: acknowledgements of what was read, and nothing is read while they are not written.
    let (commands_tx, mut commands_rx) = mpsc::unbounded_channel();
    let (opened_tx, opened_rx) = oneshot::channel();
    if messages_tx.send(opened(commands_tx, opened_tx)).await.is_err() {
        return;
    }
    let Ok(conn) = opened_rx.await else { return };
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut wanted: Option<Vec<u8>> = None;
    loop {
        tokio::select! {
            biased;
            command = commands_rx.recv() => match command {
                Some(ClientCommand::Write(bytes)) => match timeout(WRITE_LIMIT, write(&mut writer, &bytes)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => break,
                    Err(_) => {
                        counters.writes_timed_out.fetch_add(1, Relaxed);
                        break;
                    }
                },
                Some(ClientCommand::Read(buffer)) => wanted = Some(buffer.unwrap_or_default()),
                Some(ClientCommand::Close) | None => {
                    let _ = timeout(LAST_WRITE_LIMIT, writer.shutdown()).await;
                    return;
                }
            },
            read = read(&mut reader, &mut wanted), if wanted.is_some() => match read {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => {
                    if messages_tx.send(Message::ClientRead { conn, bytes }).await.is_err() {
                        return;
                    }
                }
                Err(_) => break,
            },
        }
    }
    let _ = messages_tx.send(Message::ClientLost { conn }).await;
}

/// Writes and flushes: TLS keeps what the socket does not take at once, and nobody else would see to it.
async fn write(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// Reads once; empty at the end of the stream. Cancel safe: the buffer stays where it is until something was read.
async fn read(reader: &mut (impl AsyncRead + Unpin), wanted: &mut Option<Vec<u8>>) -> io::Result<Vec<u8>> {
    let Some(buffer) = wanted else { return Ok(Vec::new()) };
    // A buffer that was filled last time grows, up to the limit.
    if buffer.is_empty() {
        buffer.resize(READ_LEN_FIRST, 0);
    }
    let len = reader.read(buffer).await?;
    let mut bytes = wanted.take().unwrap_or_default();
    if len == bytes.len() && len < READ_LEN_MAX {
        bytes.reserve_exact(READ_LEN_MAX - len);
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Makes a read's buffer ready for the next one.
pub(crate) fn recycle(mut buffer: Vec<u8>) -> Vec<u8> {
    let len = buffer.capacity().min(READ_LEN_MAX);
    buffer.resize(len, 0);
    buffer
}

/// A client that is connected, as the gateway's driver keeps it.
#[derive(Debug)]
pub(crate) struct ClientHandle {
    /// Where it came from; `None` for a broker that we connected to.
    pub(crate) origin: Option<ClientOrigin>,
    pub(crate) commands_tx: mpsc::UnboundedSender<ClientCommand>,
    /// The buffer of the last read, to be given back with the next.
    pub(crate) buffer: Option<Vec<u8>>,
}

/// Where a client came from, and what it showed.
#[derive(Debug)]
pub(crate) struct ClientOrigin {
    pub(crate) listener: usize,
    pub(crate) peer: SocketAddr,
    pub(crate) certificate: Option<Vec<u8>>,
}

/// Hands out connection numbers.
#[derive(Debug, Default)]
pub(crate) struct ConnIds(u64);

impl ConnIds {
    pub(crate) fn next(&mut self) -> ConnId {
        self.0 += 1;
        ConnId(self.0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{BufStream, duplex};

    use super::*;

    /// A stream that keeps what is written until it is flushed, as TLS does with what its socket would not take.
    #[test]
    fn what_is_written_to_a_client_leaves_though_its_stream_would_keep_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime can be made");
        runtime.block_on(async {
            let (ours, mut theirs) = duplex(64);
            let (messages_tx, mut messages_rx) = mpsc::channel(4);
            let counters = Arc::new(ListenCounters::default());
            let peer = SocketAddr::from(([127, 0, 0, 1], 1));
            let opened = move |commands_tx, opened_tx| Message::ClientOpened {
                listener: 0,
                peer,
                certificate: None,
                commands_tx,
                opened_tx,
            };
            tokio::spawn(async move { client(BufStream::new(ours), opened, messages_tx, &counters).await });
            let Some(Message::ClientOpened { commands_tx, opened_tx, .. }) = messages_rx.recv().await else {
                panic!("a client announces itself")
            };
            opened_tx.send(ConnId(1)).expect("it waits for its number");
            commands_tx.send(ClientCommand::Write(vec![0x40, 2, 0, 7])).expect("it waits for commands");
            let mut puback = [0; 4];
            let read = timeout(Duration::from_secs(10), theirs.read_exact(&mut puback)).await;
            assert_eq!(read.expect("it comes").expect("the stream is open"), 4);
            assert_eq!(puback, [0x40, 2, 0, 7]);
        });
    }
}
