//! TLS on TCP, for where QUIC does not pass: sockets bound to an interface, kernel options, handshakes.
//!
//! What is in the kernel's send buffer can be neither overtaken nor thinned, just as in QUIC's. So the kernel takes no more
//! than [`NOTSENT_BYTES`] beyond what its congestion window has under way, and what waits, waits in the lanes. A peer that is
//! gone is noticed as fast as over QUIC.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::quic::{Transport, advice};
use crate::tls::{ALPN, Identity, IdentityError, identity};

pub use tokio_rustls::TlsStream;

/// Unsent bytes above which the kernel takes no more: one frame.
pub const NOTSENT_BYTES: u32 = 16 * 1024;
/// Time for one address to answer; a name may have several, and the first be dead.
const CONNECT_LIMIT: Duration = Duration::from_secs(4);

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// The socket cannot be bound to its interface.
    #[error("the interface `{interface}` cannot be used ({})", advice(source))]
    Interface {
        /// The interface asked for.
        interface: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The socket cannot be made, or not bound to its address.
    #[error("tcp address {addr} cannot be bound (it must be one of this machine's: see `bind`)")]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The other end is not there.
    #[error("cannot connect to {to}")]
    Connect {
        /// Where it was looked for.
        to: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The name of the certificate.
    #[error("`{0}` is not a DNS name or IP address")]
    ServerName(String),
    /// The handshake.
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// Who answers speaks TLS, but not ours: most likely a web server, or a proxy that opens TLS.
    #[error("the other side does not speak weir/1: is it the cloud's own port, and does nothing open TLS on the way?")]
    Alpn,
}

/// Connects from an address (port 0 for any), by an interface if one is named.
///
/// # Errors
/// `Interface` or `Bind` if the way is not there, `Connect` if nobody answers within 4 s.
pub async fn connect(to: SocketAddr, from: SocketAddr, interface: Option<&str>) -> Result<TcpStream, TcpError> {
    let bind_error = |source| TcpError::Bind { addr: from, source };
    let socket = Socket::new(Domain::for_address(from), Type::STREAM, Some(Protocol::TCP)).map_err(bind_error)?;
    if let Some(interface) = interface {
        socket
            .bind_device(Some(interface.as_bytes()))
            .map_err(|source| TcpError::Interface { interface: interface.to_owned(), source })?;
    }
    socket.set_nonblocking(true).map_err(bind_error)?;
    if !from.ip().is_unspecified() {
        socket.bind(&from.into()).map_err(bind_error)?;
    }
    tune(&SockRef::from(&socket)).map_err(bind_error)?;
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    let connected = tokio::time::timeout(CONNECT_LIMIT, connecting).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", CONNECT_LIMIT.as_secs())))
    });
    connected.map_err(|source| TcpError::Connect { to, source })
}

/// TLS for a connection that was made; the other side must be `server_name` and speak [`ALPN`].
///
/// # Errors
/// `ServerName`, `Handshake` or `Alpn`.
pub async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: Arc<ClientConfig>,
    server_name: &str,
) -> Result<TlsStream<S>, TcpError> {
    let name = ServerName::try_from(server_name.to_owned()).map_err(|_| TcpError::ServerName(server_name.to_owned()))?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(TcpError::Handshake)?;
    checked(TlsStream::Client(stream))
}

/// TLS for a connection that was accepted. A peer whose handshake fails is told why before its connection is closed.
///
/// # Errors
/// `Handshake` or `Alpn`.
pub async fn accept(stream: TcpStream, config: Arc<ServerConfig>) -> Result<TlsStream<TcpStream>, TcpError> {
    tune(&SockRef::from(&stream)).map_err(TcpError::Handshake)?;
    match TlsAcceptor::from(config).accept(stream).into_fallible().await {
        Ok(stream) => checked(TlsStream::Server(stream)),
        Err((err, mut stream)) => {
            // The alert is written by now.
            let (mut reader, mut writer) = stream.split();
            finish(&mut reader, &mut writer).await;
            Err(TcpError::Handshake(err))
        }
    }
}

/// Ends a connection so that what was last written to it arrives: a socket that is closed with unread bytes in it is reset,
/// and a reset overtakes what was written. Reads on until the peer closes too; the caller limits how long.
pub async fn finish(reader: &mut (impl AsyncRead + Unpin), writer: &mut (impl AsyncWrite + Unpin)) {
    if writer.shutdown().await.is_err() {
        return;
    }
    let mut dropped = [0; 4 * 1024];
    while reader.read(&mut dropped).await.is_ok_and(|len| len > 0) {}
}

/// Who is at the other end, by the certificate that the handshake verified, and that certificate.
///
/// # Errors
/// As for [`crate::quic::peer_identity`].
pub fn peer(stream: &TlsStream<TcpStream>) -> Result<(Identity, CertificateDer<'static>), IdentityError> {
    let chain = stream.get_ref().1.peer_certificates();
    let cert = chain.and_then(|chain| chain.first()).ok_or(IdentityError::Count { count: 0 })?;
    Ok((identity(cert)?, cert.clone().into_owned()))
}

fn checked<S>(stream: TlsStream<S>) -> Result<TlsStream<S>, TcpError> {
    if stream.get_ref().1.alpn_protocol() == Some(ALPN) { Ok(stream) } else { Err(TcpError::Alpn) }
}

/// Segments leave at once, little is queued unsent, and a peer that is gone is noticed in the time that QUIC takes.
fn tune(socket: &SockRef<'_>) -> io::Result<()> {
    let limits = Transport::edge();
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_BYTES)?;
    socket.set_tcp_user_timeout(Some(limits.idle_timeout))?;
    let every = limits.keep_alive.unwrap_or(limits.idle_timeout);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(every).with_interval(every).with_retries(2))
}

#[cfg(test)]
mod tests;
