//! QUIC endpoints and their limits, sized for small boxes on bad links.
//!
//! quinn's defaults allow a peer 200 streams of 1.25 MB each and 10 MB of unsent data. Here a box allows
//! a handful of streams and 1 MiB in all. One endpoint per uplink: quinn has no multipath, and an
//! endpoint's socket decides the way out. Data in the send buffer can no longer be overtaken by more
//! urgent data, so `send_window` starts small; the session lets it follow the congestion window
//! through [`quinn::Connection::set_send_window`]. Who makes a client decides how much may be under way, see [`Congestion`].

use std::{
    fmt, io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{
    Connection, Endpoint, EndpointConfig, MtuDiscoveryConfig, TokioRuntime, TransportConfig, VarInt, congestion,
    crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig},
};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};

use crate::tls::{Identity, IdentityError, identity};

/// Kernel buffer asked for on each socket; the kernel gives at the most its own limit, silently.
const SOCKET_BUFFER_LEN: usize = 1 << 20;
/// Handshakes a server holds at a time; more are dropped and come again.
const HANDSHAKES_MAX: usize = 1_024;
/// Early data a server buffers for all handshakes together.
const HANDSHAKE_BYTES_MAX: u64 = 8 << 20;

/// Why an endpoint cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The socket cannot be bound to its address.
    #[error(
        "udp address {addr} cannot be bound (it must be one of this machine's, with a port that is free: see `bind` or `listen.quic`)"
    )]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The socket cannot be bound to its interface.
    #[error("the interface `{interface}` cannot be used ({})", advice(source))]
    Interface {
        /// The interface asked for.
        interface: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The endpoint cannot be started on its socket.
    #[error("the QUIC endpoint cannot be started (the limit on open files may be too low: `ulimit -n`)")]
    Endpoint(#[source] io::Error),
    /// The TLS configuration lacks what QUIC needs.
    #[error("the TLS configuration does not fit QUIC")]
    Tls(#[from] NoInitialCipherSuite),
    /// A limit is beyond what the protocol can carry.
    #[error("`{what}` of {value} exceeds what QUIC can carry")]
    Limit {
        /// Which limit.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}

/// What to do about a kernel that refuses an interface.
pub(crate) fn advice(err: &io::Error) -> &'static str {
    match err.raw_os_error() {
        // ENODEV
        Some(19) => "there is none of this name now: see `ip link`",
        // EPERM
        Some(1) => "it needs CAP_NET_RAW or root on this kernel",
        _ => "see `ip link` for its state",
    }
}

/// Makes the congestion controller of each connection; by default quinn's cubic, which halves (nearly) on loss and fills queues.
#[derive(Clone)]
pub struct Congestion(pub Arc<dyn congestion::ControllerFactory + Send + Sync>);

impl Default for Congestion {
    fn default() -> Self {
        Self(Arc::new(congestion::CubicConfig::default()))
    }
}

impl fmt::Debug for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Congestion")
    }
}

/// Limits and timers of a connection.
#[derive(Debug, Clone)]
pub struct Transport {
    /// Bytes the peer may send unread on one stream.
    pub stream_window_bytes: u64,
    /// Bytes the peer may send unread on all streams; bounds the memory of a connection.
    pub receive_window_bytes: u64,
    /// Bytes sent and unacknowledged, or waiting to be sent, before writes block.
    pub send_window_bytes: u64,
    /// Unidirectional streams the peer may have open.
    pub peer_uni_streams: u32,
    /// Bidirectional streams the peer may have open.
    pub peer_bi_streams: u32,
    /// Silence after which a ping is sent; `None` for none.
    pub keep_alive: Option<Duration>,
    /// Silence after which the connection is dead.
    pub idle_timeout: Duration,
    /// Round-trip time assumed before the first measurement. 333 ms; source: RFC 9002, 6.2.2.
    pub initial_rtt: Duration,
    /// How much may be under way.
    pub congestion: Congestion,
}

impl Transport {
    /// For a box: little comes in, and a dead uplink is noticed in 12 s.
    pub fn edge() -> Self {
        Self {
            stream_window_bytes: 256 << 10,
            receive_window_bytes: 1 << 20,
            send_window_bytes: 64 << 10,
            peer_uni_streams: 4,
            peer_bi_streams: 1,
            keep_alive: Some(Duration::from_secs(4)),
            idle_timeout: Duration::from_secs(12),
            initial_rtt: Duration::from_millis(333),
            congestion: Congestion::default(),
        }
    }

    /// For an ingest node: a window that carries 80 Mbit/s over 100 ms; the box keeps the connection alive.
    ///
    /// Streams: two for each of four lanes, control, and some requests at a time, one of them for a part of a model.
    pub fn cloud() -> Self {
        Self {
            stream_window_bytes: 1 << 20,
            receive_window_bytes: 4 << 20,
            send_window_bytes: 256 << 10,
            peer_uni_streams: 8,
            peer_bi_streams: 18,
            keep_alive: None,
            ..Self::edge()
        }
    }

    fn config(&self) -> Result<Arc<TransportConfig>, QuicError> {
        let limit = |what, value| VarInt::from_u64(value).map_err(|_| QuicError::Limit { what, value });
        let idle_ms = u64::try_from(self.idle_timeout.as_millis()).unwrap_or(u64::MAX);
        let mut config = TransportConfig::default();
        config
            .stream_receive_window(limit("stream window", self.stream_window_bytes)?)
            .receive_window(limit("receive window", self.receive_window_bytes)?)
            .send_window(self.send_window_bytes)
            .max_concurrent_uni_streams(self.peer_uni_streams.into())
            .max_concurrent_bidi_streams(self.peer_bi_streams.into())
            .keep_alive_interval(self.keep_alive)
            .max_idle_timeout(Some(limit("idle timeout in ms", idle_ms)?.into()))
            .initial_rtt(self.initial_rtt)
            .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
            .datagram_receive_buffer_size(None)
            .congestion_controller_factory(self.congestion.0.clone());
        Ok(Arc::new(config))
    }
}

/// A UDP socket at `addr` (port 0 for any), on `interface` if one is named.
///
/// # Errors
/// `Bind` if the address is taken or not ours, `Interface` if there is none of that name.
pub fn bind(addr: SocketAddr, interface: Option<&str>) -> Result<UdpSocket, QuicError> {
    let bind_error = |source| QuicError::Bind { addr, source };
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP)).map_err(bind_error)?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false).map_err(bind_error)?;
    }
    if let Some(interface) = interface {
        socket
            .bind_device(Some(interface.as_bytes()))
            .map_err(|source| QuicError::Interface { interface: interface.to_owned(), source })?;
    }
    socket.set_recv_buffer_size(SOCKET_BUFFER_LEN).map_err(bind_error)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_LEN).map_err(bind_error)?;
    socket.bind(&addr.into()).map_err(bind_error)?;
    Ok(socket.into())
}

/// What a client needs for [`Endpoint::connect_with`].
///
/// # Errors
/// `Tls` for a configuration without TLS 1.3, `Limit` for a limit that does not fit the protocol.
pub fn client_config(tls: rustls::ClientConfig, transport: &Transport) -> Result<quinn::ClientConfig, QuicError> {
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport.config()?);
    Ok(config)
}

/// What a server needs for [`server_endpoint`] or [`Endpoint::set_server_config`].
///
/// # Errors
/// As for [`client_config`].
pub fn server_config(tls: rustls::ServerConfig, transport: &Transport) -> Result<quinn::ServerConfig, QuicError> {
    let crypto = QuicServerConfig::try_from(tls)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport.config()?).max_incoming(HANDSHAKES_MAX).incoming_buffer_size_total(HANDSHAKE_BYTES_MAX);
    Ok(config)
}

/// An endpoint that only connects, on a socket bound by the caller. Must be called within a tokio runtime.
///
/// # Errors
/// `Endpoint` if the socket cannot be used.
pub fn client_endpoint(socket: UdpSocket) -> Result<Endpoint, QuicError> {
    Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).map_err(QuicError::Endpoint)
}

/// An endpoint that accepts, on a socket bound by the caller. Must be called within a tokio runtime.
///
/// # Errors
/// `Endpoint` if the socket cannot be used.
pub fn server_endpoint(socket: UdpSocket, config: quinn::ServerConfig) -> Result<Endpoint, QuicError> {
    Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime)).map_err(QuicError::Endpoint)
}

/// Who is at the other end: the identity in the certificate that the handshake verified.
///
/// # Errors
/// `Count` with 0 if there is no certificate, else as for [`identity`].
pub fn peer_identity(connection: &Connection) -> Result<Identity, IdentityError> {
    let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    match chain.as_deref().and_then(|chain| chain.first()) {
        Some(cert) => identity(cert),
        None => Err(IdentityError::Count { count: 0 }),
    }
}

#[cfg(test)]
mod tests;
