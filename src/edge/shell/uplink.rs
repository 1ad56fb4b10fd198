//! The shell of an uplink: connects, moves bytes, and reports; `logic::uplink::Session` says when and what.
//!
//! One control stream with the highest priority, and for each lane one stream for live data and one for backlog. Blocks are
//! written in pieces of [`PIECE_LEN`], so that a block of a lower lane never holds up more than that once QUIC picks the
//! next stream to serve. Every attempt has a generation; what an older one still reports is dropped by the receiver.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use weir_logic::health::PathStats;
use weir_logic::ids::Class;
use weir_logic::lanes::Flow;

/// What the gateway tells an uplink.
#[derive(Debug)]
pub(crate) enum UplinkCommand {
    Connect,
    Control(Vec<u8>),
    Block { flow: Flow, block: Bytes },
    Disconnect,
}

/// What an uplink tells the gateway.
#[derive(Debug)]
pub(crate) enum UplinkEvent {
    Connected,
    Control(Bytes),
    /// QUIC took so many bytes of blocks of this stream.
    Written {
        flow: Flow,
        len: u64,
    },
    Path(PathStats),
    Closed(String),
}

/// Where and as whom an uplink connects.
#[derive(Debug, Clone)]
pub(crate) struct UplinkTarget {
    pub(crate) name: String,
    /// Host name or address with port.
    pub(crate) address: String,
    /// Name the cloud's certificate must have.
    pub(crate) server_name: String,
    pub(crate) config: quinn::ClientConfig,
}

/// Largest piece handed to QUIC at once.
const PIECE_LEN: usize = 16 * 1024;
/// How often the path is looked at and the send window follows it.
const PATH_INTERVAL: Duration = Duration::from_millis(250);
/// Bounds of the send window: what is written into it can no longer be overtaken.
const SEND_WINDOW_MIN: u64 = 32 * 1024;
const SEND_WINDOW_MAX: u64 = 4 * 1024 * 1024;
/// Blocks on their way to a stream. The gateway hands over about 100 KiB before it waits for `Written`, and a block has 64
/// bytes at least: a queue of this length is never full, and a stream that QUIC does not take holds up no other.
const BLOCKS_LEN: usize = 2_048;
/// Control messages on their way to their stream; of heartbeats alone, more are not waiting before silence ends the session.
const CONTROL_LEN: usize = 1_024;

/// Runs an uplink until its commands end.
///
/// Events go out as `(generation, event)`; the generation counts the attempts to connect.
pub(crate) async fn run(
    endpoint: Endpoint,
    target: UplinkTarget,
    mut commands_rx: mpsc::UnboundedReceiver<UplinkCommand>,
    events_tx: mpsc::Sender<(u64, UplinkEvent)>,
) {
    let mut generation = 0;
    let mut attempt: Option<Attempt> = None;
    let mut is_stuck = false;
    while let Some(command) = commands_rx.recv().await {
        match command {
            UplinkCommand::Connect => {
                generation += 1;
                attempt = Some(Attempt::start(generation, endpoint.clone(), target.clone(), events_tx.clone()));
            }
            UplinkCommand::Disconnect => attempt = None,
            UplinkCommand::Control(bytes) => {
                is_stuck = attempt.as_ref().is_some_and(|attempt| is_full(&attempt.control_tx.try_send(bytes)));
            }
            UplinkCommand::Block { flow, block } => {
                is_stuck = attempt.as_ref().is_some_and(|attempt| is_full(&attempt.blocks_tx.try_send((flow, block))));
            }
        }
        if std::mem::take(&mut is_stuck) {
            // What is dropped here would never be sent again on this connection, so it ends with it.
            attempt = None;
            let reason = "QUIC takes nothing: too much waits to be written".to_owned();
            let _ = events_tx.send((generation, UplinkEvent::Closed(reason))).await;
        }
    }
    drop(attempt);
    endpoint.wait_idle().await;
}

/// True if the queue had no room. One that is closed belongs to a connection whose end is reported by itself.
fn is_full<T>(sent: &Result<(), mpsc::error::TrySendError<T>>) -> bool {
    matches!(sent, Err(mpsc::error::TrySendError::Full(_)))
}

/// One attempt to connect, and the connection that came of it. Dropping it closes the connection.
struct Attempt {
    control_tx: mpsc::Sender<Vec<u8>>,
    blocks_tx: mpsc::Sender<(Flow, Bytes)>,
    _tasks: JoinSet<()>,
}

impl Attempt {
    fn start(generation: u64, endpoint: Endpoint, target: UplinkTarget, events_tx: mpsc::Sender<(u64, UplinkEvent)>) -> Self {
        let (control_tx, control_rx) = mpsc::channel(CONTROL_LEN);
        let (blocks_tx, blocks_rx) = mpsc::channel(BLOCKS_LEN);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let events = Events { generation, events_tx };
            let reason = match connect(&endpoint, &target).await {
                Ok(connection) => {
                    let guard = CloseOnDrop(connection.clone());
                    let reason = converse(connection, &events, control_rx, blocks_rx).await;
                    drop(guard);
                    reason
                }
                Err(reason) => reason,
            };
            tracing::debug!(uplink = target.name, %reason, "connection ended");
            events.send(UplinkEvent::Closed(reason)).await;
        });
        Attempt { control_tx, blocks_tx, _tasks: tasks }
    }
}

/// Closes the connection with a word to the peer when the attempt is dropped.
struct CloseOnDrop(Connection);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(0u32.into(), b"");
    }
}

#[derive(Clone)]
struct Events {
    generation: u64,
    events_tx: mpsc::Sender<(u64, UplinkEvent)>,
}

impl Events {
    async fn send(&self, event: UplinkEvent) {
        // The gateway has stopped: nobody wants to know.
        let _ = self.events_tx.send((self.generation, event)).await;
    }
}

async fn connect(endpoint: &Endpoint, target: &UplinkTarget) -> Result<Connection, String> {
    let describe = |what: &str, err: &dyn std::fmt::Display| format!("{what} {}: {err}", target.address);
    let local_is_v4 = endpoint.local_addr().is_ok_and(|addr| addr.is_ipv4());
    let found = tokio::net::lookup_host(&target.address).await.map_err(|err| describe("cannot look up", &err))?;
    let remote = found
        .into_iter()
        .find(|addr: &SocketAddr| addr.is_ipv4() == local_is_v4)
        .ok_or_else(|| describe("cannot look up", &"no address of the family this uplink is bound to"))?;
    let connecting = endpoint
        .connect_with(target.config.clone(), remote, &target.server_name)
        .map_err(|err| describe("cannot connect to", &err))?;
    connecting.await.map_err(|err| describe("cannot connect to", &err))
}

/// Moves bytes until the connection ends; returns why.
async fn converse(
    connection: Connection,
    events: &Events,
    control_rx: mpsc::Receiver<Vec<u8>>,
    blocks_rx: mpsc::Receiver<(Flow, Bytes)>,
) -> String {
    let (control_out, control_in) = match connection.open_bi().await {
        Ok(streams) => streams,
        Err(err) => return err.to_string(),
    };
    // Above every lane, see `priority`.
    let _ = control_out.set_priority(i32::MAX);
    events.send(UplinkEvent::Connected).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(write_control(control_out, control_rx));
    tasks.spawn(read_control(control_in, events.clone()));
    tasks.spawn(write_blocks(connection.clone(), blocks_rx, events.clone()));
    tasks.spawn(watch_path(connection.clone(), events.clone()));
    let reason = tokio::select! {
        reason = connection.closed() => Some(reason.to_string()),
        ended = tasks.join_next() => ended.and_then(|task| task.ok()).and_then(Result::err),
    };
    // The peer's reason says more than the stream error that came of it.
    match (connection.close_reason(), reason) {
        (Some(reason), _) => reason.to_string(),
        (None, Some(reason)) => reason,
        (None, None) => "control stream ended".to_owned(),
    }
}

async fn write_control(mut stream: SendStream, mut control_rx: mpsc::Receiver<Vec<u8>>) -> Result<(), String> {
    while let Some(bytes) = control_rx.recv().await {
        stream.write_all(&bytes).await.map_err(|err| err.to_string())?;
    }
    Ok(())
}

async fn read_control(mut stream: RecvStream, events: Events) -> Result<(), String> {
    while let Some(chunk) = stream.read_chunk(64 * 1024, true).await.map_err(|err| err.to_string())? {
        events.send(UplinkEvent::Control(chunk.bytes)).await;
    }
    Ok(())
}

/// Hands each block to its stream's writer, which is started with the stream's first block.
async fn write_blocks(
    connection: Connection,
    mut blocks_rx: mpsc::Receiver<(Flow, Bytes)>,
    events: Events,
) -> Result<(), String> {
    let mut writers: [Option<mpsc::Sender<Bytes>>; 8] = Default::default();
    let mut tasks = JoinSet::new();
    while let Some((flow, block)) = blocks_rx.recv().await {
        let writer = writers[flow.lane.index() * 2 + usize::from(flow.backlog)].get_or_insert_with(|| {
            let (writer_tx, writer_rx) = mpsc::channel(BLOCKS_LEN);
            tasks.spawn(write_flow(connection.clone(), flow, writer_rx, events.clone()));
            writer_tx
        });
        if writer.send(block).await.is_err() {
            return match tasks.join_next().await {
                Some(Ok(Err(reason))) => Err(reason),
                _ => Err("lane stream ended".to_owned()),
            };
        }
    }
    Ok(())
}

async fn write_flow(
    connection: Connection,
    flow: Flow,
    mut blocks_rx: mpsc::Receiver<Bytes>,
    events: Events,
) -> Result<(), String> {
    let mut stream = connection.open_uni().await.map_err(|err| err.to_string())?;
    let _ = stream.set_priority(priority(flow));
    stream.write_all(&flow.to_bytes()).await.map_err(|err| err.to_string())?;
    while let Some(block) = blocks_rx.recv().await {
        let len = (block.len() as u32).to_le_bytes();
        stream.write_all(&len).await.map_err(|err| err.to_string())?;
        for piece in block.chunks(PIECE_LEN) {
            stream.write_all(piece).await.map_err(|err| err.to_string())?;
        }
        events.send(UplinkEvent::Written { flow, len: block.len() as u64 }).await;
    }
    Ok(())
}

/// Critical above all; among the rest the gateway's shares decide, not QUIC.
fn priority(flow: Flow) -> i32 {
    match flow.lane {
        Class::Critical => 2 - i32::from(flow.backlog),
        Class::High | Class::Normal | Class::Bulk => 0,
    }
}

/// Reports the path, and lets the send window follow twice its bandwidth-delay product: once is what must be under way, and
/// the rest lets a congestion window grow that is never seen to be full otherwise.
async fn watch_path(connection: Connection, events: Events) -> Result<(), String> {
    let mut interval = tokio::time::interval(PATH_INTERVAL);
    loop {
        interval.tick().await;
        let stats = connection.stats();
        let path = PathStats {
            rtt_us: stats.path.rtt.as_micros() as u64,
            rtt_min_us: 0,
            received_packets: stats.udp_rx.datagrams,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            cwnd_bytes: stats.path.cwnd,
            congestion_events: stats.path.congestion_events,
        };
        connection.set_send_window((2 * path.cwnd_bytes).clamp(SEND_WINDOW_MIN, SEND_WINDOW_MAX));
        events.send(UplinkEvent::Path(path)).await;
    }
}
