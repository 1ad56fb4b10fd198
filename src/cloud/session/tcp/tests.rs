//! Gateways over TCP: the same promises, and what is new, two connections that are one session.

use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use weir_host::tcp::{connect, secure};
use weir_logic::ids::Class;
use weir_logic::ranges::RangeSet;
use weir_logic::wire::mux::{Half, Mux, Token};
use weir_logic::wire::{self, Body, Hello, LaneStream, PROTOCOL_VERSION, Ping};

use super::*;
use crate::testing::{Pki, block};
use crate::tests::{Rig, get};

/// One connection of a gateway made by hand.
struct Link {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
}

impl Link {
    async fn connect(tls: &Arc<rustls::ClientConfig>, to: SocketAddr) -> Result<Link, String> {
        let from = SocketAddr::from(([0, 0, 0, 0], 0));
        let stream = connect(to, from, None).await.map_err(|err| err.to_string())?;
        let stream = secure(stream, tls.clone(), "localhost").await.map_err(|err| format!("{err:?}"))?;
        Ok(Link { stream, buffer: BytesMut::new() })
    }

    async fn open(tls: &Arc<rustls::ClientConfig>, to: SocketAddr, half: Half, token: u8) -> Link {
        let mut link = Link::connect(tls, to).await.unwrap();
        link.write(&Opening { half, token: Token([token; 16]) }.to_frame()).await;
        link
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Writes all that a mux has.
    async fn write_mux(&mut self, mut mux: Mux) {
        let mut frame = Vec::new();
        while mux.next_frame(&mut frame).is_some() {
            self.write(&frame).await;
        }
    }

    async fn send_block(&mut self, lane: Class, block: &[u8]) {
        let mut mux = Mux::default();
        mux.push_block(LaneStream { lane, backlog: false }, Bytes::copy_from_slice(block));
        self.write_mux(mux).await;
    }

    /// The next frame; at the end of the connection why it ended.
    async fn read(&mut self) -> Result<Frame, String> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer).unwrap() {
                return Ok(frame);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err("the connection ended without a close".to_owned()),
                Ok(_) => {}
                Err(err) => return Err(err.to_string()),
            }
        }
    }

    /// The words with which the cloud closes.
    async fn closed(&mut self) -> String {
        loop {
            match self.read().await {
                Ok(Frame::Close { reason, .. }) => return reason,
                Ok(_) => {}
                Err(reason) => return reason,
            }
        }
    }
}

/// A gateway made by hand: both its connections.
struct TcpGateway {
    control: Control,
    bulk: Link,
}

/// Its first connection, with what has been heard on it.
struct Control {
    link: Link,
    heard: BytesMut,
    acked: [RangeSet; 4],
}

impl TcpGateway {
    async fn connect(rig: &Rig, name: &str, token: u8) -> TcpGateway {
        let tls = Arc::new(rig.pki.tls(&format!("weir://gateway/{name}")));
        let link = Link::open(&tls, rig.tls, Half::Control, token).await;
        let bulk = Link::open(&tls, rig.tls, Half::Bulk, token).await;
        TcpGateway { control: Control::new(link), bulk }
    }

    async fn send_block(&mut self, lane: Class, block: &[u8]) {
        let link = if Half::of(lane) == Half::Control { &mut self.control.link } else { &mut self.bulk };
        link.send_block(lane, block).await;
    }
}

impl Control {
    fn new(link: Link) -> Control {
        Control { link, heard: BytesMut::new(), acked: Default::default() }
    }

    async fn say(&mut self, body: Body) {
        let (mut bytes, mut mux) = (Vec::new(), Mux::default());
        wire::encode_control(body, &mut bytes);
        mux.push_control(&bytes);
        self.link.write_mux(mux).await;
    }

    /// The next message from the cloud, or the words with which it closed the session.
    async fn hear(&mut self) -> Result<Body, String> {
        loop {
            if let Some(control) = wire::take_control(&mut self.heard).unwrap() {
                return Ok(control.body.unwrap());
            }
            match self.link.read().await? {
                Frame::Control(bytes) => self.heard.extend_from_slice(&bytes),
                Frame::Close { reason, .. } => return Err(reason),
                other => panic!("{other:?} from the cloud"),
            }
        }
    }

    async fn hello(&mut self, epoch: u64) {
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            epoch,
            held_epochs: vec![],
            software: "test".to_owned(),
            service_us: 0,
            answers: true,
        };
        self.say(Body::Hello(hello)).await;
        while !matches!(self.hear().await.unwrap(), Body::Welcome(_)) {}
    }

    async fn ping(&mut self, nonce: u64) {
        self.say(Body::Ping(Ping { nonce, service_us: 5, settled: vec![] })).await;
        while !matches!(self.hear().await.unwrap(), Body::Pong(pong) if pong.nonce == nonce) {}
    }

    /// Waits until numbers `first` to `last` of a lane are acknowledged.
    async fn acked(&mut self, lane: Class, first: u64, last: u64) {
        while !self.acked[lane.index()].covers(first..=last) {
            if let Body::Ack(ack) = self.hear().await.unwrap() {
                for of in &ack.ranges {
                    of.bounds.chunks(2).for_each(|bounds| self.acked[of.lane as usize].insert(bounds[0]..=bounds[1]));
                }
            }
        }
    }

    async fn closed(&mut self) -> String {
        loop {
            if let Err(words) = self.hear().await {
                return words;
            }
        }
    }
}

/// Waits until a line is in the metrics.
async fn await_metric(rig: &Rig, line: &str) {
    let at_start = Instant::now();
    while !get(rig.http, "/metrics").await.contains(line) {
        assert!(at_start.elapsed() < Duration::from_secs(20), "{line}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn all_lanes_are_stored_once_over_tcp_and_shared_with_quic() {
    let mut rig = Rig::start().await;
    let mut gateway = TcpGateway::connect(&rig, "box-1", 1).await;
    gateway.control.hello(7).await;
    for lane in Class::ALL {
        gateway.send_block(lane, &block(lane, 7, 0, &[b"a", b"b", b"c"]).1).await;
        gateway.control.acked(lane, 0, 2).await;
    }
    assert_eq!(rig.count("samples WHERE gateway = 'box-1'"), 12);
    gateway.control.ping(9).await;
    // The same block over QUIC: another uplink of the same box.
    let mut quic = rig.gateway("box-1").await;
    quic.hello(7, &[]).await.unwrap();
    quic.send_block(&block(Class::Normal, 7, 0, &[b"a", b"b", b"c"]).1).await;
    quic.acked(7, Class::Normal, 0, 2).await.unwrap();
    assert_eq!(rig.count("samples"), 12);
    let status = rig.status.wait_for(|status| status.connections == 2).await.unwrap().clone();
    let transports: Vec<_> = status.gateways[0].sessions.iter().map(|session| session.transport).collect();
    assert_eq!(transports, ["tcp", "quic"]);
    rig.stop().await;
}

#[tokio::test]
async fn long_blocks_of_several_lanes_come_through_in_turns() {
    let rig = Rig::start().await;
    let mut gateway = TcpGateway::connect(&rig, "box-1", 1).await;
    gateway.control.hello(7).await;
    let mut mux = Mux::default();
    let payload: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for lane in [Class::High, Class::Normal, Class::Bulk] {
        mux.push_block(LaneStream { lane, backlog: true }, block(lane, 7, 0, &[&payload]).1);
    }
    gateway.bulk.write_mux(mux).await;
    for lane in [Class::High, Class::Normal, Class::Bulk] {
        gateway.control.acked(lane, 0, 0).await;
    }
    assert_eq!(rig.count("samples"), 3);
    rig.stop().await;
}

#[tokio::test]
async fn who_may_not_be_here_is_told_so_over_tcp() {
    let rig = Rig::start().await;
    for (uri, words) in [
        ("weir://gateway/stranger", "gateway stranger is not enrolled here"),
        ("weir://cloud/test", "is not a gateway"),
        ("https://example.com", "0 weir:// URIs"),
    ] {
        let mut link = Link::connect(&Arc::new(rig.pki.tls(uri)), rig.tls).await.unwrap();
        let heard = link.closed().await;
        assert!(heard.contains(words), "{uri}: {heard}");
    }
    // A certificate of some other authority does not get that far, although TLS 1.3 tells its holder only afterwards.
    let stranger = Pki::new().tls_trusting("weir://gateway/box-1", &rig.pki);
    let heard = match Link::connect(&Arc::new(stranger), rig.tls).await {
        Ok(mut link) => link.closed().await,
        Err(err) => err,
    };
    assert!(heard.contains("fatal alert"), "{heard}");
    await_metric(&rig, "refused_total{reason=\"handshake\"} 1\n").await;
    rig.stop().await;
}

#[tokio::test]
async fn a_revocation_and_a_takeover_close_both_connections_with_words() {
    let rig = Rig::start().await;
    let mut revoked = TcpGateway::connect(&rig, "box-1", 1).await;
    revoked.control.hello(1).await;
    let mut replaced = TcpGateway::connect(&rig, "box-2", 2).await;
    replaced.control.hello(1).await;
    std::fs::write(rig.dir.path().join("enrolled"), "box-2\n").unwrap();
    let words = revoked.control.closed().await;
    assert!(words.contains("box-1 is not enrolled"), "{words}");
    // The second goes with the first, once that has been closed here too.
    drop(revoked.control);
    let words = revoked.bulk.closed().await;
    assert!(words.contains("without"), "no frame, and no end of TLS: {words}");
    let mut rebooted = rig.gateway("box-2").await;
    rebooted.hello(2, &[]).await.unwrap();
    let words = replaced.control.closed().await;
    assert!(words.contains("took over"), "{words}");
    rig.stop().await;
}

#[tokio::test]
async fn a_cloud_that_shuts_down_acknowledges_over_tcp_and_says_so() {
    let rig = Rig::start().await;
    let mut gateway = TcpGateway::connect(&rig, "box-1", 1).await;
    gateway.control.hello(7).await;
    gateway.send_block(Class::Normal, &block(Class::Normal, 7, 0, &[b"a"]).1).await;
    gateway.control.acked(Class::Normal, 0, 0).await;
    rig.trigger.request();
    assert_eq!(gateway.control.closed().await, "the cloud shuts down");
    drop(gateway);
    rig.stop().await;
}

#[tokio::test]
async fn a_second_connection_of_another_box_is_refused_and_the_first_still_gets_its_own() {
    let rig = Rig::start().await;
    let tls = Arc::new(rig.pki.tls("weir://gateway/box-1"));
    let link = Link::open(&tls, rig.tls, Half::Control, 5).await;
    for uri in ["weir://gateway/box-2", "weir://gateway/box-1"] {
        // The token was guessed; or the name is right and the certificate is not the one.
        let mut thief = Link::open(&Arc::new(rig.pki.tls(uri)), rig.tls, Half::Bulk, 5).await;
        let words = thief.closed().await;
        assert!(words.contains("no second connection"), "{words}");
    }
    let bulk = Link::open(&tls, rig.tls, Half::Bulk, 5).await;
    let mut gateway = TcpGateway { control: Control::new(link), bulk };
    gateway.control.hello(1).await;
    await_metric(&rig, "refused_total{reason=\"unpaired\"} 2\n").await;
    rig.stop().await;
}

/// Lasts as long as the cloud waits.
#[tokio::test]
async fn a_connection_whose_other_never_comes_is_dropped_in_ten_seconds() {
    let rig = Rig::start().await;
    let tls = Arc::new(rig.pki.tls("weir://gateway/box-1"));
    let mut bulk = Link::open(&tls, rig.tls, Half::Bulk, 1).await;
    let mut control = Link::open(&tls, rig.tls, Half::Control, 2).await;
    let at_start = Instant::now();
    for link in [&mut bulk, &mut control] {
        let words = link.closed().await;
        assert!(words.contains("no second connection with the same token"), "{words}");
    }
    assert!((9..13).contains(&at_start.elapsed().as_secs()), "{:?}", at_start.elapsed());
    await_metric(&rig, "refused_total{reason=\"unpaired\"} 2\n").await;
    rig.stop().await;
}

#[tokio::test]
async fn what_is_garbled_over_tcp_closes_the_session_and_only_that() {
    let rig = Rig::start().await;
    let sound = block(Class::Normal, 7, 0, &[b"a"]).1;
    let tls = Arc::new(rig.pki.tls("weir://gateway/box-1"));
    let mut newer = Opening { half: Half::Bulk, token: Token([1; 16]) }.to_frame();
    newer[6] = 9;
    for (bytes, words) in [
        (newer, "opening of a connection is malformed"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "channel 0x47 is not known"),
        (vec![0x10, 0xff, 0xff, 0xff], "outside the limits of its channel"),
        (vec![0x10, 1, 0, 0, 7], "no Hello"),
    ] {
        let mut link = Link::connect(&tls, rig.tls).await.unwrap();
        link.write(&bytes).await;
        let heard = link.closed().await;
        assert!(heard.contains(words), "{heard}");
    }
    let control = |body: &[u8]| {
        let mut mux = Mux::default();
        mux.push_control(&[&(body.len() as u32).to_le_bytes(), body].concat());
        mux
    };
    let blocks = |lane, bytes: Bytes| {
        let mut mux = Mux::default();
        mux.push_block(LaneStream { lane, backlog: false }, bytes);
        mux
    };
    let garbage = Bytes::from_static(&[0x55; 100]);
    for (token, half, mux, words) in [
        (1, Half::Control, control(&[0xff; 40]), "malformed"),
        (2, Half::Bulk, control(&[0xff; 40]), "does not belong on its connection"),
        (3, Half::Control, blocks(Class::Normal, sound.clone()), "does not belong on its connection"),
        (4, Half::Bulk, blocks(Class::Critical, sound.clone()), "does not belong on its connection"),
        (5, Half::Bulk, blocks(Class::Bulk, sound.clone()), "block of lane normal on a stream of lane bulk"),
        (6, Half::Bulk, blocks(Class::Normal, garbage.clone()), "not a block"),
        (7, Half::Control, blocks(Class::Critical, garbage), "not a block"),
    ] {
        let mut gateway = TcpGateway::connect(&rig, "box-1", token).await;
        gateway.control.hello(7).await;
        let link = if half == Half::Control { &mut gateway.control.link } else { &mut gateway.bulk };
        link.write_mux(mux).await;
        let heard = gateway.control.closed().await;
        assert!(heard.contains(words), "{heard}");
    }
    let mut gateway = TcpGateway::connect(&rig, "box-1", 8).await;
    gateway.control.hello(7).await;
    gateway.send_block(Class::Normal, &sound).await;
    gateway.control.acked(Class::Normal, 0, 0).await;
    rig.stop().await;
}

#[tokio::test]
async fn more_unfinished_blocks_over_tcp_than_allowed_close_the_session() {
    let limit = weir_logic::block::BLOCK_LEN_MAX;
    let rig = Rig::with(|config| config.limits.connection_bytes = weir_host::units::Bytes::new(limit as u64)).await;
    let mut gateway = TcpGateway::connect(&rig, "box-1", 1).await;
    gateway.control.hello(7).await;
    let TcpGateway { mut bulk, mut control } = gateway;
    let writing = tokio::spawn(async move {
        let mut mux = Mux::default();
        for backlog in [false, true] {
            mux.push_block(LaneStream { lane: Class::Bulk, backlog }, Bytes::from(vec![0; limit]));
        }
        let mut frame = Vec::new();
        // Both blocks grow in turn; the session ends on the way.
        while mux.next_frame(&mut frame).is_some() && bulk.stream.write_all(&frame).await.is_ok() {}
    });
    let words = control.closed().await;
    assert!(words.contains("limits.connection_bytes"), "{words}");
    drop(control);
    writing.await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn heartbeats_are_answered_over_tcp_while_the_database_takes_nothing() {
    // The queue holds two of the largest blocks, and soon nothing more.
    let rig = Rig::with(|config| {
        config.store.file_bytes_max = weir_host::units::Bytes::from_kib(600);
        config.limits.queue_bytes = weir_host::units::Bytes::new(2 * weir_logic::block::BLOCK_LEN_MAX as u64);
    })
    .await;
    let mut gateway = TcpGateway::connect(&rig, "box-1", 1).await;
    gateway.control.hello(7).await;
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let payload: Vec<u8> = std::iter::repeat_with(&mut noise).take(1_000_000).collect();
    let blocks: Vec<Bytes> = (0..24).map(|seq| block(Class::Normal, 7, seq, &[&payload]).1).collect();
    let TcpGateway { mut bulk, mut control } = gateway;
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let writing = tokio::spawn(async move {
        for block in blocks {
            bulk.send_block(Class::Normal, &block).await;
            count.fetch_add(1, Relaxed);
        }
    });
    let is_taken = |body: Body| matches!(body, Body::Credits(credits) if credits.bytes == [0; 4]);
    while !is_taken(control.hear().await.unwrap()) {}
    // A critical block waits behind the others for room, and what is behind it on its connection does not.
    control.link.send_block(Class::Critical, &block(Class::Critical, 7, 0, &[b"alarm"]).1).await;
    for nonce in 0..20 {
        control.ping(nonce).await;
    }
    let sent = sent.load(Relaxed);
    assert!((4..20).contains(&sent), "the second connection is not read while there is no room: {sent} of 24");
    writing.abort();
    rig.trigger.request();
    let ended = rig.running.await.unwrap();
    assert!(ended.is_err_and(|err| err.to_string().contains("full")), "what waits cannot be stored, and is not acknowledged");
}

#[tokio::test]
async fn tcp_connections_over_the_limit_are_closed() {
    let rig = Rig::with(|config| config.limits.connections_max = 2).await;
    let mut gateway = TcpGateway::connect(&rig, "box-1", 1).await;
    gateway.control.hello(7).await;
    assert!(Link::connect(&Arc::new(rig.pki.tls("weir://gateway/box-2")), rig.tls).await.is_err());
    await_metric(&rig, "refused_total{reason=\"over_limit\"} 1\n").await;
    rig.stop().await;
}
