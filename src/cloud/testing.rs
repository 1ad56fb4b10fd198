//! What tests of this crate share: certificates, blocks, and a gateway made by hand.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use weir_host::quic::{Transport, bind, client_config, client_endpoint};
use weir_host::tls::{self, Credentials, TrustRoots};
use weir_logic::block::{BlockHeader, Codec, NewRecord, RecordKind, Staging};
use weir_logic::ids::{Class, Epoch};
use weir_logic::wire::{self, ALPN, Body, Hello, LaneStream, PROTOCOL_VERSION, Welcome};

/// A certificate authority.
pub(crate) struct Pki {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).unwrap().pem();
        Pki { issuer: Issuer::new(params, key), ca_pem }
    }

    fn issue(&self, uri: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.not_before = date_time_ymd(2025, 1, 1);
        params.not_after = date_time_ymd(2090, 1, 1);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    /// Writes `cloud.crt`, `cloud.key` and `ca.crt`.
    pub(crate) fn write_cloud(&self, dir: &Path) {
        self.write(dir, "cloud", "test");
    }

    /// Writes `<file>.crt`, `<file>.key` and `ca.crt` for a cloud of this name.
    pub(crate) fn write(&self, dir: &Path, file: &str, name: &str) {
        let (cert, key) = self.issue(&format!("weir://cloud/{name}"));
        for (name, text) in [(&*format!("{file}.crt"), &cert), (&format!("{file}.key"), &key), ("ca.crt", &self.ca_pem)] {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    /// What a client with a new certificate for `uri` needs.
    pub(crate) fn tls(&self, uri: &str) -> rustls::ClientConfig {
        self.tls_trusting(uri, self)
    }

    /// The same for one that trusts another authority than the one that made its certificate.
    pub(crate) fn tls_trusting(&self, uri: &str, trusted: &Pki) -> rustls::ClientConfig {
        let (cert, key) = self.issue(uri);
        let credentials = Credentials::from_pem(cert.as_bytes(), key.as_bytes()).unwrap();
        let roots = TrustRoots::from_pem(trusted.ca_pem.as_bytes()).unwrap();
        tls::client_config(&credentials, &roots, &[ALPN]).unwrap()
    }

    fn client(&self, uri: &str) -> quinn::ClientConfig {
        client_config(self.tls(uri), &Transport::edge()).unwrap()
    }
}

/// A block of raw records from `first` on, one for each payload, a millisecond apart.
pub(crate) fn block(lane: Class, epoch: u64, first: u64, payloads: &[&[u8]]) -> (BlockHeader, Bytes) {
    let records: Vec<_> = payloads.iter().map(|payload| (RecordKind::Raw, *payload)).collect();
    block_of(lane, epoch, first, Some(1_700_000_000_000_000), &records)
}

/// A block of records of any kind.
pub(crate) fn block_of(
    lane: Class,
    epoch: u64,
    first: u64,
    wall_offset_us: Option<i64>,
    records: &[(RecordKind, &[u8])],
) -> (BlockHeader, Bytes) {
    let mut staging = Staging::new(first);
    for (at, &(kind, payload)) in records.iter().enumerate() {
        let service_time = wall_offset_us.is_none();
        let at_us = 1_000 * (first + at as u64);
        staging.push(&NewRecord { source: 0, stream: "pumps", device: "p1", kind, service_time, at_us, payload });
    }
    staging.seal(lane, Epoch(epoch), wall_offset_us, &mut Codec::default()).unwrap()
}

/// A gateway made by hand: a connection, its control stream and one lane stream.
pub(crate) struct Gateway {
    pub(crate) connection: Connection,
    pub(crate) control: SendStream,
    control_recv: RecvStream,
    buffer: BytesMut,
    lane: Option<SendStream>,
    /// False for one of an earlier version, which answers no questions.
    pub(crate) answers: bool,
    _endpoint: Endpoint,
}

impl Gateway {
    /// Connects with a certificate for `uri`; says nothing yet.
    pub(crate) async fn connect(pki: &Pki, uri: &str, to: SocketAddr) -> Result<Gateway, quinn::ConnectionError> {
        let endpoint = client_endpoint(bind(SocketAddr::from(([127, 0, 0, 1], 0)), None).unwrap()).unwrap();
        let connection = endpoint.connect_with(pki.client(uri), to, "localhost").unwrap().await?;
        let (control, control_recv) = connection.open_bi().await?;
        Ok(Gateway {
            connection,
            control,
            control_recv,
            buffer: BytesMut::new(),
            lane: None,
            answers: true,
            _endpoint: endpoint,
        })
    }

    pub(crate) async fn say(&mut self, body: Body) {
        let mut bytes = Vec::new();
        wire::encode_control(body, &mut bytes);
        self.control.write_all(&bytes).await.unwrap();
    }

    /// The next message from the cloud, or the words with which it closed the connection.
    pub(crate) async fn hear(&mut self) -> Result<Body, String> {
        loop {
            if let Some(control) = wire::take_control(&mut self.buffer).unwrap() {
                return Ok(control.body.unwrap());
            }
            match self.control_recv.read_chunk(usize::MAX, true).await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk.bytes),
                _ => return Err(self.connection.closed().await.to_string()),
            }
        }
    }

    /// Says Hello and returns the Welcome.
    pub(crate) async fn hello(&mut self, epoch: u64, held: &[u64]) -> Result<Welcome, String> {
        let (held_epochs, software) = (held.to_vec(), "test".to_owned());
        let hello = Hello { protocol: PROTOCOL_VERSION, epoch, held_epochs, software, service_us: 0, answers: self.answers };
        self.say(Body::Hello(hello)).await;
        loop {
            if let Body::Welcome(welcome) = self.hear().await? {
                return Ok(welcome);
            }
        }
    }

    /// Sends raw bytes on the stream of lane `normal`.
    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        if self.lane.is_none() {
            let mut lane = self.connection.open_uni().await.unwrap();
            lane.write_all(&LaneStream { lane: Class::Normal, backlog: false }.to_bytes()).await.unwrap();
            self.lane = Some(lane);
        }
        self.lane.as_mut().unwrap().write_all(bytes).await.unwrap();
    }

    /// Sends a block of lane `normal`.
    pub(crate) async fn send_block(&mut self, block: &[u8]) {
        let mut bytes = (block.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(block);
        self.send_raw(&bytes).await;
    }

    /// Waits until numbers `first` to `last` of a lane are acknowledged.
    pub(crate) async fn acked(&mut self, epoch: u64, lane: Class, first: u64, last: u64) -> Result<(), String> {
        let mut acked = weir_logic::ranges::RangeSet::new();
        while !acked.covers(first..=last) {
            if let Body::Ack(ack) = self.hear().await? {
                for of in ack.ranges.iter().filter(|of| of.epoch == epoch && of.lane == lane.index() as u32) {
                    of.bounds.chunks(2).for_each(|bounds| acked.insert(bounds[0]..=bounds[1]));
                }
            }
        }
        Ok(())
    }

    /// Waits for credits of lane `normal` that `wanted` accepts.
    pub(crate) async fn credits(&mut self, wanted: impl Fn(u64) -> bool) {
        loop {
            if let Body::Credits(credits) = self.hear().await.unwrap()
                && wanted(credits.bytes[Class::Normal.index()])
            {
                return;
            }
        }
    }
}

/// A name to put into maps and jobs.
pub(crate) fn name(text: &str) -> Arc<str> {
    text.into()
}
