//! The shell around the link's model: UDP sockets, a clock and one heap of packets that are due.
//!
//! A box sends to the relay's address as if it were the cloud's. Each client address gets a socket of
//! its own towards the target, so that answers find their way back. All clients share the one link. The
//! relay runs on a thread of its own ([`start`]), because what it measures is time.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    task::Poll,
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use weir_host::{
    quic::{QuicError, bind},
    shutdown::{self, Shutdown, ShutdownTrigger},
    units::Ratio,
};

use super::{
    model::{Direction, Fate, LinkCounts, LinkModel},
    profile::LinkProfile,
};

/// Client addresses served at a time; the one that was silent longest makes room.
const CLIENTS_MAX: usize = 64;
/// Packets read from one socket before the others have their turn.
const BATCH_PACKETS: usize = 128;
/// Bytes on the way; more are dropped and counted. Source: 100 Mbit/s over 2 s, twice.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// Largest UDP payload.
const PACKET_LEN_MAX: usize = 65_535;
/// How finely the time without link is measured.
const DOWN_STEP_US: usize = 10_000;
/// How often statistics are published.
const STATS_INTERVAL: Duration = Duration::from_millis(100);

/// What a relay needs; the listening socket is bound by the caller.
#[derive(Debug)]
pub struct RelaySetup {
    /// Where boxes send to.
    pub listen: std::net::UdpSocket,
    /// Where the cloud is.
    pub target: SocketAddr,
    /// What the link is like.
    pub profile: LinkProfile,
    /// Same seed, same losses, jitter and shifts.
    pub seed: u64,
}

/// What a person, or a test, does to the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// Takes the link down, whatever the profile says.
    pub is_down: bool,
    /// Multiplies the profile's rate.
    pub rate_scale: Ratio,
}

impl Default for Control {
    fn default() -> Self {
        Self { is_down: false, rate_scale: Ratio::from_percent(100) }
    }
}

/// The link as it is, published every 100 ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayStats {
    /// Age of the link in microseconds.
    pub elapsed_us: u64,
    /// Whether it carries anything from the box now.
    pub is_up: bool,
    /// How long it was down so far, in microseconds, to 10 ms an outage.
    pub down_us: u64,
    /// From the box to the cloud.
    pub up: DirectionStats,
    /// From the cloud to the box.
    pub down: DirectionStats,
    /// Client addresses served now.
    pub clients: u64,
    /// Client addresses that had to make room for others.
    pub evicted_clients: u64,
    /// Packets dropped because too much was on the way.
    pub overflow_packets: u64,
    /// Packets that came out of the link and could not be sent: nobody listens there, or the client is gone.
    pub undeliverable_packets: u64,
}

/// One direction of the link as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirectionStats {
    /// What became of packets so far.
    pub counts: LinkCounts,
    /// Rate now, in bits per second.
    pub bits_per_s: u64,
    /// Bytes that wait now.
    pub queued_bytes: u64,
}

/// Why a relay cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// No socket towards the target.
    #[error("no socket towards the target")]
    Socket(#[from] QuicError),
    /// The listening socket, the runtime or the thread fails.
    #[error("the relay cannot run")]
    Io(#[from] io::Error),
}

/// A relay on a thread of its own; dropping it stops it.
#[derive(Debug)]
pub struct RelayThread {
    addr: SocketAddr,
    control_tx: watch::Sender<Control>,
    stats_rx: watch::Receiver<RelayStats>,
    trigger: Option<ShutdownTrigger>,
    thread: Option<JoinHandle<()>>,
}

/// Starts a relay on a thread of its own.
///
/// # Errors
/// `Io` if the system refuses the thread, its runtime or the socket.
pub fn start(setup: RelaySetup) -> Result<RelayThread, RelayError> {
    let addr = setup.listen.local_addr()?;
    let (control_tx, control_rx) = watch::channel(Control::default());
    let (stats_tx, stats_rx) = watch::channel(RelayStats::default());
    let (trigger, shutdown) = shutdown::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("link".to_owned()).spawn(move || {
        if let Err(err) = runtime.block_on(run(setup, control_rx, stats_tx, shutdown)) {
            tracing::error!(%err, "link stopped");
        }
    })?;
    Ok(RelayThread { addr, control_tx, stats_rx, trigger: Some(trigger), thread: Some(thread) })
}

impl RelayThread {
    /// Where boxes send to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The link as it was at most 100 ms ago.
    pub fn stats(&self) -> RelayStats {
        *self.stats_rx.borrow()
    }

    /// Statistics as they are published.
    pub fn watch(&self) -> watch::Receiver<RelayStats> {
        self.stats_rx.clone()
    }

    /// Takes the link down, whatever the profile says, or gives it back to the profile.
    pub fn force_down(&self, is_down: bool) {
        self.control_tx.send_modify(|control| control.is_down = is_down);
    }

    /// Multiplies the profile's rate.
    pub fn scale_rate(&self, rate_scale: Ratio) {
        self.control_tx.send_modify(|control| control.rate_scale = rate_scale);
    }
}

impl Drop for RelayThread {
    fn drop(&mut self) {
        if let Some(trigger) = self.trigger.take() {
            trigger.request();
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("link thread panicked");
        }
    }
}

/// Relays until shutdown. Must be called within a tokio runtime.
///
/// # Errors
/// `Io` if the listening socket cannot be used.
pub async fn run(
    setup: RelaySetup,
    mut control_rx: watch::Receiver<Control>,
    stats_tx: watch::Sender<RelayStats>,
    mut shutdown: Shutdown,
) -> Result<(), RelayError> {
    setup.listen.set_nonblocking(true)?;
    let mut relay = Relay {
        listen: UdpSocket::from_std(setup.listen)?,
        target: setup.target,
        start: Instant::now(),
        up: LinkModel::new(&setup.profile, Direction::Up, setup.seed),
        down: LinkModel::new(&setup.profile, Direction::Down, setup.seed),
        clients: Vec::new(),
        clients_seen: 0,
        due: BinaryHeap::new(),
        due_seen: 0,
        due_bytes: 0,
        stats: RelayStats { is_up: true, ..RelayStats::default() },
    };
    let mut buffer = vec![0; PACKET_LEN_MAX];
    let mut ticks = interval(STATS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // Nobody may be left to control it.
    let mut is_controlled = true;
    loop {
        let next_due = relay.next_due();
        tokio::select! {
            biased;
            () = shutdown.requested() => break,
            changed = control_rx.changed(), if is_controlled => match changed {
                Ok(()) => relay.apply(*control_rx.borrow_and_update()),
                Err(_) => is_controlled = false,
            },
            _ = ticks.tick() => {
                relay.measure();
                stats_tx.send_replace(relay.stats);
            }
            () = sleep_until(next_due.unwrap_or(relay.start)), if next_due.is_some() => relay.send_due().await,
            () = relay.readable() => relay.receive(&mut buffer)?,
        }
    }
    relay.measure();
    stats_tx.send_replace(relay.stats);
    Ok(())
}

/// A client address and its socket towards the target.
#[derive(Debug)]
struct Client {
    id: u64,
    addr: SocketAddr,
    socket: UdpSocket,
    last_us: u64,
}

/// A packet on the way.
#[derive(Debug)]
struct Due {
    at_us: u64,
    /// Keeps the order of packets that are due at the same time.
    nth: u64,
    client_id: u64,
    direction: Direction,
    packet: Box<[u8]>,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at_us, self.nth).cmp(&(other.at_us, other.nth))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.nth == other.nth
    }
}

impl Eq for Due {}

#[derive(Debug)]
struct Relay {
    listen: UdpSocket,
    target: SocketAddr,
    start: Instant,
    up: LinkModel,
    down: LinkModel,
    clients: Vec<Client>,
    clients_seen: u64,
    due: BinaryHeap<Reverse<Due>>,
    due_seen: u64,
    due_bytes: usize,
    stats: RelayStats,
}

impl Relay {
    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse(due)| self.start + Duration::from_micros(due.at_us))
    }

    fn apply(&mut self, control: Control) {
        self.measure();
        for model in [&mut self.up, &mut self.down] {
            model.force_down(control.is_down);
            model.scale_rate(control.rate_scale);
        }
        self.measure();
    }

    /// Returns once any socket has something.
    async fn readable(&self) {
        poll_fn(|context| {
            // Every socket is polled, so that each of them wakes the relay.
            let mut is_ready = self.listen.poll_recv_ready(context).is_ready();
            for client in &self.clients {
                is_ready |= client.socket.poll_recv_ready(context).is_ready();
            }
            if is_ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Takes a batch from each socket.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<(), RelayError> {
        for _ in 0..BATCH_PACKETS {
            match self.listen.try_recv_from(buffer) {
                Ok((len, addr)) => {
                    let client_id = self.client(addr)?;
                    self.admit(client_id, Direction::Up, &buffer[..len]);
                }
                Err(err) if is_passing(&err) => break,
                Err(err) => return Err(err.into()),
            }
        }
        for index in 0..self.clients.len() {
            for _ in 0..BATCH_PACKETS {
                let client = &self.clients[index];
                // An error is the target's refusal of an earlier packet, counted when that is sent again.
                let Ok(len) = client.socket.try_recv(buffer) else { break };
                self.admit(client.id, Direction::Down, &buffer[..len]);
            }
        }
        Ok(())
    }

    /// The id of the client at `addr`, new if need be.
    fn client(&mut self, addr: SocketAddr) -> Result<u64, RelayError> {
        let now_us = self.now_us();
        if let Some(client) = self.clients.iter_mut().find(|client| client.addr == addr) {
            client.last_us = now_us;
            return Ok(client.id);
        }
        if self.clients.len() >= CLIENTS_MAX {
            let oldest = self.clients.iter().enumerate().min_by_key(|(_, client)| client.last_us);
            if let Some((index, _)) = oldest {
                self.clients.swap_remove(index);
                self.stats.evicted_clients += 1;
            }
        }
        let any: IpAddr = match self.target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = bind(SocketAddr::new(any, 0), None)?;
        socket.connect(self.target)?;
        socket.set_nonblocking(true)?;
        let id = self.clients_seen;
        self.clients_seen += 1;
        self.clients.push(Client { id, addr, socket: UdpSocket::from_std(socket)?, last_us: now_us });
        Ok(id)
    }

    /// Passes a packet through the model.
    fn admit(&mut self, client_id: u64, direction: Direction, packet: &[u8]) {
        let now_us = self.now_us();
        let model = match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        };
        let Fate::Deliver { at_us } = model.packet(now_us, packet.len()) else { return };
        if self.due_bytes + packet.len() > IN_FLIGHT_BYTES_MAX {
            self.stats.overflow_packets += 1;
            return;
        }
        self.due_bytes += packet.len();
        self.due_seen += 1;
        let nth = self.due_seen;
        self.due.push(Reverse(Due { at_us, nth, client_id, direction, packet: packet.into() }));
    }

    /// Sends what is due by now.
    async fn send_due(&mut self) {
        let now_us = self.now_us();
        while let Some(Reverse(due)) = self.due.peek()
            && due.at_us <= now_us
            && let Some(Reverse(due)) = self.due.pop()
        {
            self.due_bytes -= due.packet.len();
            let outcome = match self.clients.iter().find(|client| client.id == due.client_id) {
                Some(client) => match due.direction {
                    Direction::Up => client.socket.send(&due.packet).await,
                    Direction::Down => self.listen.send_to(&due.packet, client.addr).await,
                },
                None => Err(io::ErrorKind::NotConnected.into()),
            };
            if outcome.is_err() {
                self.stats.undeliverable_packets += 1;
            }
        }
    }

    fn measure(&mut self) {
        let now_us = self.now_us();
        for at_us in (self.stats.elapsed_us..now_us).step_by(DOWN_STEP_US) {
            if !self.up.is_up(at_us) {
                self.stats.down_us += (now_us - at_us).min(DOWN_STEP_US as u64);
            }
        }
        let is_up = self.up.is_up(now_us);
        if is_up != self.stats.is_up {
            tracing::info!(is_up, at_ms = now_us / 1_000, "link changed");
        }
        self.stats.is_up = is_up;
        self.stats.elapsed_us = now_us;
        self.stats.clients = self.clients.len() as u64;
        for (model, stats) in [(&mut self.up, &mut self.stats.up), (&mut self.down, &mut self.stats.down)] {
            *stats = DirectionStats {
                counts: model.counts(),
                bits_per_s: model.bits_per_s(now_us),
                queued_bytes: model.queued_bytes(now_us),
            };
        }
    }
}

/// Errors that say nothing about the socket itself.
fn is_passing(err: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, Interrupted, WouldBlock};
    matches!(err.kind(), WouldBlock | Interrupted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests;
