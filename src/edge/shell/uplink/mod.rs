//! The shell of an uplink: connects, moves bytes, and reports; `logic::uplink::Session` says when and what.
//!
//! What it is told and what it tells is the same for every transport. A socket is made for each attempt and goes with it,
//! so that nothing at start depends on the network: an interface that is not there, an address that is not ours yet, a name
//! that nobody resolves are attempts that failed, with a reason, and are tried again. Every attempt has a generation; what an
//! older one still reports is dropped by the receiver.

mod asking;
mod counted;
mod quic;
mod tcp;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use weir_logic::audit::Purpose;
use weir_logic::health::PathStats;
use weir_logic::ids::Class;
use weir_logic::lanes::Flow;
use weir_logic::offload::IN_FLIGHT_MAX;

use super::interface::InterfaceState;

pub(crate) use tcp::TcpWay;

/// What the gateway tells an uplink.
#[derive(Debug)]
pub(crate) enum UplinkCommand {
    Connect,
    Control(Vec<u8>),
    Block {
        flow: Flow,
        block: Bytes,
    },
    /// A window for a pool, on a stream of its own.
    Offload {
        id: u64,
        class: Class,
        purpose: Purpose,
        bytes: Vec<u8>,
    },
    CancelOffload {
        id: u64,
    },
    /// A part of a model is wanted, on a stream of its own.
    AskChunk {
        id: u64,
        bytes: Vec<u8>,
    },
    CancelChunk {
        id: u64,
    },
    Disconnect,
}

/// What an uplink tells the gateway.
#[derive(Debug)]
pub(crate) enum UplinkEvent {
    Connected,
    Control(Bytes),
    /// The transport took so many bytes of blocks of this stream.
    Written {
        flow: Flow,
        len: u64,
    },
    Path(PathStats),
    /// What came back on a request's stream.
    OffloadAnswered {
        id: u64,
        bytes: Vec<u8>,
    },
    /// A request's stream ended without an answer.
    OffloadFailed {
        id: u64,
    },
    /// The same of a part of a model.
    ChunkCame {
        id: u64,
        bytes: Vec<u8>,
    },
    ChunkFailed {
        id: u64,
    },
    Closed(String),
    /// The interface came up, or went down or away. Not of any attempt: it counts whatever its generation.
    Interface {
        up: bool,
    },
}

/// Where and as whom an uplink connects.
#[derive(Debug)]
pub(crate) struct UplinkTarget {
    pub(crate) name: String,
    /// Host name or address with port.
    pub(crate) address: String,
    /// Name the cloud's certificate must have.
    pub(crate) server_name: String,
    /// Local address to send from, with port 0.
    pub(crate) local_addr: SocketAddr,
    /// Interface to use; `None` for what the routes say.
    pub(crate) interface: Option<String>,
    pub(crate) transport: Transport,
}

/// What carries an uplink.
#[derive(Debug)]
pub(crate) enum Transport {
    Quic(quinn::ClientConfig),
    Tcp(TcpWay),
}

/// Blocks on their way to a stream. The gateway hands over about 100 KiB before it waits for `Written`, and a block has 64
/// bytes at least: a queue of this length is never full, and a stream that is not taken holds up no other.
const BLOCKS_LEN: usize = 2_048;
/// Control messages on their way to their stream; of heartbeats alone, more are not waiting before silence ends the session.
const CONTROL_LEN: usize = 1_024;
/// Requests to pools, and words that they are not awaited any more; no more of either are under way at a time. Of models there is
/// one request.
const ASKING_LEN: usize = 4 * IN_FLIGHT_MAX + 4;

/// Runs an uplink until its commands end.
///
/// Events go out as `(generation, event)`; the generation counts the attempts to connect.
pub(crate) async fn run(
    target: Arc<UplinkTarget>,
    mut interface: Option<watch::Receiver<InterfaceState>>,
    mut commands_rx: mpsc::UnboundedReceiver<UplinkCommand>,
    events_tx: mpsc::Sender<(u64, UplinkEvent)>,
) {
    let mut events = Events { generation: 0, events_tx };
    let mut attempt: Option<Attempt> = None;
    let mut seen = interface.as_mut().map(|state_rx| *state_rx.borrow_and_update());
    if seen.is_some_and(|state| !state.up) {
        events.send(UplinkEvent::Interface { up: false }).await;
    }
    loop {
        let command = tokio::select! {
            command = commands_rx.recv() => command,
            state = changed(&mut interface) => {
                let old = seen.replace(state);
                let is_same = old.is_some_and(|old| old.index == state.index);
                if !is_same && attempt.take().is_some() {
                    // A socket stays with the interface that had this name when it was bound.
                    let reason = format!("the interface `{}` has gone", target.interface.as_deref().unwrap_or_default());
                    events.send(UplinkEvent::Closed(reason)).await;
                }
                if !is_same || old.is_some_and(|old| old.up != state.up) {
                    events.send(UplinkEvent::Interface { up: state.up }).await;
                }
                continue;
            }
        };
        let is_stuck = match command {
            None => return,
            Some(UplinkCommand::Connect) => {
                events.generation += 1;
                attempt = Some(Attempt::start(target.clone(), events.clone()));
                false
            }
            Some(UplinkCommand::Disconnect) => {
                attempt = None;
                false
            }
            Some(UplinkCommand::Control(bytes)) => {
                attempt.as_ref().is_some_and(|attempt| is_full(&attempt.control_tx.try_send(bytes)))
            }
            Some(UplinkCommand::Block { flow, block }) => {
                attempt.as_ref().is_some_and(|attempt| is_full(&attempt.blocks_tx.try_send((flow, block))))
            }
            Some(UplinkCommand::Offload { id, class, purpose, bytes }) => {
                let priority = asking::priority(class, purpose);
                let window = Asking::Ask { asked: Asked::Window(id), priority, bytes };
                attempt.as_ref().is_some_and(|attempt| is_full(&attempt.asking_tx.try_send(window)))
            }
            Some(UplinkCommand::CancelOffload { id }) => {
                let cancel = Asking::Cancel(Asked::Window(id));
                attempt.as_ref().is_some_and(|attempt| is_full(&attempt.asking_tx.try_send(cancel)))
            }
            Some(UplinkCommand::AskChunk { id, bytes }) => {
                let chunk = Asking::Ask { asked: Asked::Chunk(id), priority: asking::CHUNK_PRIORITY, bytes };
                attempt.as_ref().is_some_and(|attempt| is_full(&attempt.asking_tx.try_send(chunk)))
            }
            Some(UplinkCommand::CancelChunk { id }) => {
                let cancel = Asking::Cancel(Asked::Chunk(id));
                attempt.as_ref().is_some_and(|attempt| is_full(&attempt.asking_tx.try_send(cancel)))
            }
        };
        if is_stuck {
            // What is dropped here would never be sent again on this connection, so it ends with it.
            attempt = None;
            let reason = "the transport takes nothing: too much waits to be written".to_owned();
            events.send(UplinkEvent::Closed(reason)).await;
        }
    }
}

/// The interface's next state; pends for ever without an interface, and once nobody looks at it any more.
async fn changed(interface: &mut Option<watch::Receiver<InterfaceState>>) -> InterfaceState {
    if let Some(state_rx) = interface
        && state_rx.changed().await.is_ok()
    {
        return *state_rx.borrow_and_update();
    }
    std::future::pending().await
}

/// True if the queue had no room. One that is closed belongs to a connection whose end is reported by itself.
fn is_full<T>(sent: &Result<(), mpsc::error::TrySendError<T>>) -> bool {
    matches!(sent, Err(mpsc::error::TrySendError::Full(_)))
}

/// What is asked on a stream of its own, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    /// What a pool says of a window.
    Window(u64),
    /// A part of a model.
    Chunk(u64),
}

/// What the attempt is told of such requests.
#[derive(Debug)]
enum Asking {
    Ask { asked: Asked, priority: i32, bytes: Vec<u8> },
    Cancel(Asked),
}

/// One attempt to connect, and the connection that came of it. Dropping it closes the connection.
struct Attempt {
    control_tx: mpsc::Sender<Vec<u8>>,
    blocks_tx: mpsc::Sender<(Flow, Bytes)>,
    asking_tx: mpsc::Sender<Asking>,
    _tasks: JoinSet<()>,
}

/// The attempt's end of its queues.
struct Outgoing {
    control_rx: mpsc::Receiver<Vec<u8>>,
    blocks_rx: mpsc::Receiver<(Flow, Bytes)>,
    asking_rx: mpsc::Receiver<Asking>,
}

impl Attempt {
    fn start(target: Arc<UplinkTarget>, events: Events) -> Self {
        let (control_tx, control_rx) = mpsc::channel(CONTROL_LEN);
        let (blocks_tx, blocks_rx) = mpsc::channel(BLOCKS_LEN);
        let (asking_tx, asking_rx) = mpsc::channel(ASKING_LEN);
        let outgoing = Outgoing { control_rx, blocks_rx, asking_rx };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let reason = match &target.transport {
                Transport::Quic(config) => quic::run(&target, config, &events, outgoing).await,
                Transport::Tcp(way) => tcp::run(&target, way, &events, outgoing).await,
            };
            tracing::debug!(uplink = target.name, %reason, "connection ended");
            events.send(UplinkEvent::Closed(reason)).await;
        });
        Attempt { control_tx, blocks_tx, asking_tx, _tasks: tasks }
    }
}

/// The way to the gateway, for one attempt.
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

/// Addresses of a `host:port` that can be reached from the local address.
///
/// # Errors
/// In words, with the name.
async fn look_up(address: &str, local_addr: SocketAddr) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host(address).await.map_err(|err| format!("cannot look up {address}: {err}"))?;
    let found: Vec<SocketAddr> = found.filter(|addr| addr.is_ipv4() == local_addr.is_ipv4()).collect();
    if found.is_empty() {
        return Err(format!("cannot look up {address}: no address of the family this uplink is bound to"));
    }
    Ok(found)
}

/// An error and what caused it, in one line.
fn words(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
