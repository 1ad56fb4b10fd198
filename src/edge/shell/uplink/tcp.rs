//! An uplink over TLS on TCP, where QUIC does not pass: two connections, see [`weir_logic::wire::mux`].
//!
//! A block counts as written when the kernel has taken the last of its frames; the kernel takes little more than it has
//! under way, so that what waits can still be overtaken. The second connection goes to the address that answered for the first:
//! behind one name there may be several clouds, and both must come to the same.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use weir_host::proxy::Proxy;
use weir_host::tcp::{self, TlsStream};
use weir_logic::lanes::Flow;
use weir_logic::wire::mux::{Filled, Frame, Half, Mux, Opening, Token, take_frame};

use super::counted::{Counted, Counts};
use super::{BLOCKS_LEN, Events, Outgoing, UplinkEvent, UplinkTarget, look_up, words};

/// How often the path is looked at.
const PATH_INTERVAL: Duration = Duration::from_millis(250);
/// Bytes taken from a socket at a time, at the least: what the cloud says is short.
const READ_LEN: usize = 4 * 1024;

/// How a cloud is reached over TCP.
#[derive(Debug)]
pub(crate) struct TcpWay {
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) proxy: Option<Proxy>,
}

/// The connections of one session.
struct Pair {
    control: TlsStream<Counted>,
    bulk: TlsStream<Counted>,
    counts: Arc<Counts>,
}

/// Connects and moves bytes until the session ends; returns why.
pub(super) async fn run(target: &UplinkTarget, way: &TcpWay, events: &Events, outgoing: Outgoing) -> String {
    match Box::pin(connect(target, way)).await {
        Ok(pair) => converse(pair, events, outgoing).await,
        Err(reason) => reason,
    }
}

async fn connect(target: &UplinkTarget, way: &TcpWay) -> Result<Pair, String> {
    let mut token = [0; 16];
    getrandom::fill(&mut token).map_err(|err| format!("the system refused random bytes: {err}"))?;
    let counts = Arc::new(Counts::default());
    let open = async |stream: TcpStream, half| {
        let stream = Counted::new(stream, counts.clone());
        let describe = |err: &dyn std::error::Error| format!("cannot connect to {}: {}", target.address, words(err));
        let mut stream = tcp::secure(stream, way.tls.clone(), &target.server_name).await.map_err(|err| describe(&err))?;
        stream.write_all(&Opening { half, token: Token(token) }.to_frame()).await.map_err(|err| describe(&err))?;
        stream.flush().await.map_err(|err| describe(&err))?;
        Ok::<_, String>(stream)
    };
    let next = way.proxy.as_ref().map_or(&*target.address, Proxy::address);
    let (first, addr) = reach(target, way, &look_up(next, target.local_addr).await?).await?;
    let second = async {
        let (stream, _) = reach(target, way, &[addr]).await?;
        open(stream, Half::Bulk).await
    };
    let (control, bulk) = tokio::try_join!(open(first, Half::Control), second)?;
    Ok(Pair { control, bulk, counts })
}

/// A connection to the cloud, straight or through the proxy, by the first address that answers.
async fn reach(target: &UplinkTarget, way: &TcpWay, addrs: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), String> {
    let mut failed = Vec::new();
    for &addr in addrs {
        match tcp::connect(addr, target.local_addr, target.interface.as_deref()).await {
            Ok(mut stream) => {
                if let Some(proxy) = &way.proxy {
                    let passed = proxy.pass(&mut stream, &target.address).await;
                    passed.map_err(|err| format!("no way through {proxy}: {}", words(&err)))?;
                }
                return Ok((stream, addr));
            }
            Err(err) => failed.push(words(&err)),
        }
    }
    Err(failed.join("; "))
}

/// Moves bytes until the session ends; returns why.
async fn converse(pair: Pair, events: &Events, Outgoing { control_rx, blocks_rx, .. }: Outgoing) -> String {
    let Pair { control, bulk, counts } = pair;
    let (control_in, control_out) = tokio::io::split(control);
    let (bulk_in, bulk_out) = tokio::io::split(bulk);
    events.send(UplinkEvent::Connected).await;
    let (critical_tx, critical_rx) = mpsc::channel(BLOCKS_LEN);
    let (bulk_tx, bulk_rx) = mpsc::channel(BLOCKS_LEN);
    // The second connection carries no control.
    let (_, no_control_rx) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    tasks.spawn(sort(blocks_rx, critical_tx, bulk_tx));
    tasks.spawn(write(control_out, control_rx, critical_rx, events.clone()));
    tasks.spawn(write(bulk_out, no_control_rx, bulk_rx, events.clone()));
    tasks.spawn(read(control_in, events.clone()));
    tasks.spawn(read(bulk_in, events.clone()));
    tasks.spawn(watch_path(counts, events.clone()));
    loop {
        match tasks.join_next().await {
            Some(Ok(Err(reason))) => return reason,
            // A writer whose queue has ended; the rest goes on until it is dropped.
            Some(Ok(Ok(()))) => {}
            Some(Err(err)) => return err.to_string(),
            None => return "connection ended".to_owned(),
        }
    }
}

/// Hands each block to the connection that it belongs on.
async fn sort(
    mut blocks_rx: mpsc::Receiver<(Flow, Bytes)>,
    critical_tx: mpsc::Sender<(Flow, Bytes)>,
    bulk_tx: mpsc::Sender<(Flow, Bytes)>,
) -> Result<(), String> {
    while let Some((flow, block)) = blocks_rx.recv().await {
        let writer_tx = if Half::of(flow.lane) == Half::Control { &critical_tx } else { &bulk_tx };
        if writer_tx.send((flow, block)).await.is_err() {
            // Its writer says why.
            return Ok(());
        }
    }
    Ok(())
}

/// Writes one connection, a frame at a time: what has come meanwhile may go first.
async fn write(
    mut stream: WriteHalf<TlsStream<Counted>>,
    mut control_rx: mpsc::Receiver<Vec<u8>>,
    mut blocks_rx: mpsc::Receiver<(Flow, Bytes)>,
    events: Events,
) -> Result<(), String> {
    let (mut mux, mut frame) = (Mux::default(), Vec::new());
    loop {
        if mux.is_empty() {
            tokio::select! {
                Some(bytes) = control_rx.recv() => mux.push_control(&bytes),
                Some((flow, block)) = blocks_rx.recv() => mux.push_block(flow, block),
                else => return Ok(()),
            }
        }
        while let Ok(bytes) = control_rx.try_recv() {
            mux.push_control(&bytes);
        }
        while let Ok((flow, block)) = blocks_rx.try_recv() {
            mux.push_block(flow, block);
        }
        let filled = mux.next_frame(&mut frame);
        stream.write_all(&frame).await.map_err(|err| err.to_string())?;
        stream.flush().await.map_err(|err| err.to_string())?;
        if let Some(Filled::Lane { stream: flow, ended_bytes: len @ 1.. }) = filled {
            events.send(UplinkEvent::Written { flow, len }).await;
        }
    }
}

/// Reads one connection until it ends, which it does with an error.
async fn read(mut stream: ReadHalf<TlsStream<Counted>>, events: Events) -> Result<(), String> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some(frame) = take_frame(&mut buffer).map_err(|err| err.to_string())? {
            match frame {
                Frame::Control(bytes) => events.send(UplinkEvent::Control(bytes)).await,
                Frame::Close { reason, .. } => return Err(format!("closed by the cloud: {reason}")),
                Frame::Opening(_) | Frame::Lane { .. } => return Err("the cloud sends frames that only a box may".to_owned()),
            }
        }
        buffer.reserve(READ_LEN);
        if stream.read_buf(&mut buffer).await.map_err(|err| err.to_string())? == 0 {
            return Err("the cloud closed the connection".to_owned());
        }
    }
}

async fn watch_path(counts: Arc<Counts>, events: Events) -> Result<(), String> {
    let mut interval = tokio::time::interval(PATH_INTERVAL);
    loop {
        interval.tick().await;
        events.send(UplinkEvent::Path(counts.path())).await;
    }
}
