//! A minimal MQTT client that tells all: what was acknowledged, with which reason, in which order.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Time to connect, to shake hands and to be answered; a debug build hashes passwords slowly.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 3.1.1
    V311,
    /// 5
    V5,
}

/// Who connects, and how.
#[derive(Debug, Clone)]
pub struct Login {
    /// Client id.
    pub client_id: String,
    /// Protocol version.
    pub version: Version,
    /// User name and password.
    pub user: Option<(String, String)>,
    /// The authority's certificate (PEM) for TLS; plain TCP without.
    pub tls_ca: Option<String>,
    /// Certificate and key (PEM) that are shown over TLS.
    pub certificate: Option<(String, String)>,
}

impl Login {
    /// Without a user, over plain TCP.
    pub fn anonymous(client_id: &str, version: Version) -> Self {
        Login { client_id: client_id.to_owned(), version, user: None, tls_ca: None, certificate: None }
    }

    /// With a user.
    pub fn user(client_id: &str, version: Version, name: &str, password: &str) -> Self {
        Login { user: Some((name.to_owned(), password.to_owned())), ..Login::anonymous(client_id, version) }
    }
}

/// What the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// Answer to CONNECT.
    ConnAck {
        /// 0 is let in.
        code: u8,
    },
    /// Answer to PUBLISH of QoS 1.
    PubAck {
        /// Packet id.
        id: u16,
        /// 0 with version 3.1.1.
        reason: u8,
    },
    /// First answer to PUBLISH of QoS 2.
    PubRec {
        /// Packet id.
        id: u16,
    },
    /// Last answer to PUBLISH of QoS 2.
    PubComp {
        /// Packet id.
        id: u16,
    },
    /// The server ends the connection (version 5).
    Disconnect {
        /// Why.
        reason: u8,
    },
    /// Something else: its first byte.
    Other(u8),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server's code.
    #[error("refused with code {0:#04x}")]
    Refused(u8),
    /// The network.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A connection.
pub struct Client {
    stream: Stream,
    version: Version,
    received: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => &tls.sock,
        }
    }
}

impl Client {
    /// Connects, logs in and waits for the answer.
    ///
    /// # Errors
    /// `Refused` with the server's code, `Io` if there is no server, or no answer.
    pub fn connect(addr: SocketAddr, login: &Login) -> Result<Client, ConnectError> {
        let mut client = Client::open(addr, login)?;
        client.send(&connect_packet(login))?;
        match client.read(CONNECT_LIMIT)? {
            Some(Packet::ConnAck { code: 0 }) => Ok(client),
            Some(Packet::ConnAck { code }) => Err(ConnectError::Refused(code)),
            Some(other) => Err(io::Error::other(format!("{other:?} instead of CONNACK")).into()),
            None => Err(io::Error::from(ErrorKind::TimedOut).into()),
        }
    }

    /// A socket on which nothing has been said yet.
    ///
    /// # Errors
    /// The network's.
    pub fn open(addr: SocketAddr, login: &Login) -> io::Result<Client> {
        let tcp = TcpStream::connect_timeout(&addr, CONNECT_LIMIT)?;
        tcp.set_nodelay(true)?;
        tcp.set_write_timeout(Some(CONNECT_LIMIT))?;
        tcp.set_read_timeout(Some(CONNECT_LIMIT))?;
        let stream = match &login.tls_ca {
            None => Stream::Plain(tcp),
            Some(ca) => {
                let name = ServerName::from(addr.ip());
                let tls = ClientConnection::new(tls_config(ca, login.certificate.as_ref())?, name).map_err(io::Error::other)?;
                Stream::Tls(Box::new(StreamOwned::new(tls, tcp)))
            }
        };
        Ok(Client { stream, version: login.version, received: Vec::new() })
    }

    /// Publishes; `id` counts for QoS 1 and 2.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn publish(&mut self, topic: &str, payload: &[u8], qos: u8, id: u16, dup: bool) -> io::Result<()> {
        let mut body = Vec::with_capacity(topic.len() + payload.len() + 5);
        put_text(&mut body, topic);
        if qos > 0 {
            body.extend(id.to_be_bytes());
        }
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend(payload);
        self.send(&packet(0x30 | u8::from(dup) << 3 | qos << 1, &body))
    }

    /// Releases a packet id of QoS 2.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn release(&mut self, id: u16) -> io::Result<()> {
        self.send(&packet(0x62, &id.to_be_bytes()))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(tcp) => tcp.write_all(bytes),
            Stream::Tls(tls) => tls.write_all(bytes),
        }
    }

    /// The next packet; `None` if none comes within `limit`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the server has closed, else what the network says.
    pub fn read(&mut self, limit: Duration) -> io::Result<Option<Packet>> {
        loop {
            if let Some(packet) = self.take() {
                return Ok(Some(packet));
            }
            self.stream.tcp().set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
            let mut chunk = [0; 4096];
            let outcome = match &mut self.stream {
                Stream::Plain(tcp) => tcp.read(&mut chunk),
                Stream::Tls(tls) => tls.read(&mut chunk),
            };
            match outcome {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.received.extend(&chunk[..len]),
                Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(err) => return Err(err),
            }
        }
    }

    /// A packet that has come already.
    fn take(&mut self) -> Option<Packet> {
        let (&first, rest) = self.received.split_first()?;
        let (mut len, mut at) = (0_usize, 0);
        loop {
            let byte = *rest.get(at)?;
            len |= usize::from(byte & 0x7f) << (7 * at);
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let body = rest.get(at..at + len)?;
        let packet = match (first >> 4, body) {
            (2, [_, code, ..]) => Packet::ConnAck { code: *code },
            (4, [high, low, rest @ ..]) => {
                Packet::PubAck { id: u16::from_be_bytes([*high, *low]), reason: rest.first().copied().unwrap_or(0) }
            }
            (5, [high, low, ..]) => Packet::PubRec { id: u16::from_be_bytes([*high, *low]) },
            (7, [high, low, ..]) => Packet::PubComp { id: u16::from_be_bytes([*high, *low]) },
            (14, rest) => Packet::Disconnect { reason: rest.first().copied().unwrap_or(0) },
            _ => Packet::Other(first),
        };
        self.received.drain(..1 + at + len);
        Some(packet)
    }
}

/// A CONNECT packet with a clean start and no keep-alive.
pub fn connect_packet(login: &Login) -> Vec<u8> {
    let mut body = Vec::new();
    put_text(&mut body, "MQTT");
    body.push(if login.version == Version::V5 { 5 } else { 4 });
    body.push(0b10 | if login.user.is_some() { 0b1100_0000 } else { 0 });
    body.extend([0, 0]);
    if login.version == Version::V5 {
        body.push(0);
    }
    put_text(&mut body, &login.client_id);
    if let Some((name, password)) = &login.user {
        put_text(&mut body, name);
        put_text(&mut body, password);
    }
    packet(0x10, &body)
}

/// A packet of a first byte and a body.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut len = body.len();
    loop {
        let low = (len % 128) as u8;
        len /= 128;
        bytes.push(if len > 0 { low | 0x80 } else { low });
        if len == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

fn tls_config(ca_pem: &str, certificate: Option<&(String, String)>) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(cert.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let builder = builder.with_root_certificates(roots);
    let Some((cert, key)) = certificate else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(io::Error::other)?;
    Ok(Arc::new(builder.with_client_auth_cert(chain, key).map_err(io::Error::other)?))
}
