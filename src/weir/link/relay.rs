//! The shell that carries UDP: a socket for boxes to send to, and one towards the cloud for each of them.
//!
//! A box sends to the relay's address as if it were the cloud's. Each client address gets a socket of
//! its own towards the target, so that answers find their way back. All clients share the one link.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    task::Poll,
};

use tokio::net::UdpSocket;
use weir_host::quic::{QuicError, bind};

use super::{
    gate::{Datagram, Flow},
    model::{Direction, LinkModel},
    profile::LinkProfile,
    thread::{LinkThread, Remote},
    transit::{Transit, Wake},
};

/// Client addresses served at a time; the one that was silent longest makes room.
const CLIENTS_MAX: usize = 64;
/// Packets read from one socket before the others have their turn.
const BATCH_PACKETS: usize = 128;
/// Largest UDP payload.
const PACKET_LEN_MAX: usize = 65_535;

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
    link: LinkThread,
}

/// Starts a relay on a thread of its own.
///
/// # Errors
/// `Io` if the system refuses the thread, its runtime or the socket.
pub fn start(setup: RelaySetup) -> Result<RelayThread, RelayError> {
    let addr = setup.listen.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let link = LinkThread::spawn(runtime, |remote| async { run(setup, remote).await.map_err(io::Error::other) })?;
    Ok(RelayThread { addr, link })
}

impl RelayThread {
    /// Where boxes send to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The link: what it tells, and what can be done to it.
    pub fn link(&self) -> &LinkThread {
        &self.link
    }
}

/// Relays until it is told to stop.
async fn run(setup: RelaySetup, remote: Remote) -> Result<(), RelayError> {
    setup.listen.set_nonblocking(true)?;
    let model = |direction| LinkModel::new(&setup.profile, direction, setup.seed);
    let mut transit = Transit::new(model(Direction::Up), model(Direction::Down), remote);
    let mut relay =
        Relay { listen: UdpSocket::from_std(setup.listen)?, target: setup.target, clients: Vec::new(), clients_seen: 0 };
    let mut buffer = vec![0; PACKET_LEN_MAX];
    loop {
        tokio::select! {
            biased;
            wake = transit.wake() => match wake {
                Wake::Due => relay.send_due(&mut transit).await,
                Wake::Stop => break,
            },
            () = relay.readable() => relay.receive(&mut transit, &mut buffer)?,
        }
    }
    transit.publish();
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

#[derive(Debug)]
struct Relay {
    listen: UdpSocket,
    target: SocketAddr,
    clients: Vec<Client>,
    clients_seen: u64,
}

impl Relay {
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
    fn receive(&mut self, transit: &mut Transit<u64>, buffer: &mut [u8]) -> Result<(), RelayError> {
        for _ in 0..BATCH_PACKETS {
            match self.listen.try_recv_from(buffer) {
                Ok((len, addr)) => {
                    let client_id = self.client(addr, transit)?;
                    let datagram = Datagram { flow: Flow::between(addr, self.target), payload: &buffer[..len] };
                    transit.admit(client_id, Direction::Up, &buffer[..len], Some(datagram));
                }
                Err(err) if is_passing(&err) => break,
                Err(err) => return Err(err.into()),
            }
        }
        for client in &self.clients {
            for _ in 0..BATCH_PACKETS {
                // An error is the target's refusal of an earlier packet, counted when that is sent again.
                let Ok(len) = client.socket.try_recv(buffer) else { break };
                let datagram = Datagram { flow: Flow::between(client.addr, self.target), payload: &buffer[..len] };
                transit.admit(client.id, Direction::Down, &buffer[..len], Some(datagram));
            }
        }
        Ok(())
    }

    /// The id of the client at `addr`, new if need be.
    fn client(&mut self, addr: SocketAddr, transit: &mut Transit<u64>) -> Result<u64, RelayError> {
        let now_us = transit.now_us();
        if let Some(client) = self.clients.iter_mut().find(|client| client.addr == addr) {
            client.last_us = now_us;
            return Ok(client.id);
        }
        if self.clients.len() >= CLIENTS_MAX {
            let oldest = self.clients.iter().enumerate().min_by_key(|(_, client)| client.last_us);
            if let Some((index, _)) = oldest {
                self.clients.swap_remove(index);
                transit.stats.evicted_clients += 1;
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
        transit.stats.clients = self.clients.len() as u64;
        Ok(id)
    }

    /// Sends what is due by now.
    async fn send_due(&mut self, transit: &mut Transit<u64>) {
        let now_us = transit.now_us();
        while let Some(due) = transit.pop_due(now_us) {
            let outcome = match self.clients.iter().find(|client| client.id == due.to) {
                Some(client) => match due.direction {
                    Direction::Up => client.socket.send(&due.packet).await,
                    Direction::Down => self.listen.send_to(&due.packet, client.addr).await,
                },
                None => Err(io::ErrorKind::NotConnected.into()),
            };
            if outcome.is_err() {
                transit.stats.undeliverable_packets += 1;
            }
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
