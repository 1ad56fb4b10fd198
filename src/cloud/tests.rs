mod asked;
mod graph;
mod load;
mod pools;

use std::path::Path;
use std::time::Instant;

use rusqlite::Connection;
use tokio::task::JoinHandle as Task;
use weir_host::shutdown::ShutdownTrigger;
use weir_logic::ids::Class;
use weir_logic::wire::{Body, LoadLevel, Ping, VoidRange, Voids};

use super::*;
use crate::testing::{Gateway, Pki, block};

/// A cloud on port 0 and its authority.
pub(crate) struct Rig {
    pub(crate) pki: Pki,
    pub(crate) dir: tempfile::TempDir,
    addr: SocketAddr,
    pub(crate) tls: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) trigger: ShutdownTrigger,
    pub(crate) status: watch::Receiver<Arc<Status>>,
    pub(crate) running: Task<Result<(), RunError>>,
}

fn config_in(dir: &Path) -> Config {
    let mut config = Config::default();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    config.listen = config::Listen { quic: any, tls: Some(any) };
    config.admin.http = Some(any);
    config.tls = config::Tls { cert: dir.join("cloud.crt"), key: dir.join("cloud.key"), ca: dir.join("ca.crt") };
    config.store.path = dir.join("cloud.db");
    config.gateways.enrolled_file = Some(dir.join("enrolled"));
    config.gateways.enrolled_recheck = weir_host::units::Duration::from_millis(20);
    config
}

impl Rig {
    pub(crate) async fn start() -> Rig {
        Rig::with(|_| ()).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Rig {
        let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
        pki.write_cloud(dir.path());
        std::fs::write(dir.path().join("enrolled"), "box-1 # the first\n\nbox-2\n").unwrap();
        Rig::open(pki, dir, change)
    }

    fn open(pki: Pki, dir: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Rig {
        let mut config = config_in(dir.path());
        change(&mut config);
        let cloud = Cloud::open(&config, Sockets::bind(&config).unwrap()).unwrap();
        let (addr, tls, http) = (cloud.quic_addr().unwrap(), cloud.tls_addr().unwrap(), cloud.http_addr().unwrap());
        let status = cloud.status();
        let (trigger, shutdown) = shutdown::channel();
        let running = tokio::spawn(Box::pin(cloud.run(shutdown)));
        Rig { pki, dir, addr, tls, http, trigger, status, running }
    }

    pub(crate) async fn gateway(&self, name: &str) -> Gateway {
        Gateway::connect(&self.pki, &format!("weir://gateway/{name}"), self.addr).await.unwrap()
    }

    pub(crate) async fn stop(self) -> (Pki, tempfile::TempDir) {
        self.trigger.request();
        self.running.await.unwrap().unwrap();
        (self.pki, self.dir)
    }

    pub(crate) fn count(&self, from: &str) -> i64 {
        let reader = Connection::open(self.dir.path().join("cloud.db")).unwrap();
        reader.query_row(&format!("SELECT count(*) FROM {from}"), [], |row| row.get(0)).unwrap()
    }
}

#[tokio::test]
async fn blocks_are_stored_once_and_acknowledged_after_the_commit() {
    let rig = Rig::start().await;
    let mut gateway = rig.gateway("box-1").await;
    let welcome = gateway.hello(7, &[]).await.unwrap();
    assert_eq!((welcome.have.len(), welcome.more), (0, false));
    gateway.credits(|bytes| bytes == 8 << 20).await;
    let (_, bytes) = block(Class::Normal, 7, 0, &[b"a", b"b", b"c"]);
    gateway.send_block(&bytes).await;
    gateway.acked(7, Class::Normal, 0, 2).await.unwrap();
    assert_eq!(rig.count("samples WHERE gateway = 'box-1'"), 3);
    gateway.send_block(&bytes).await;
    gateway.acked(7, Class::Normal, 0, 2).await.unwrap();
    assert_eq!(rig.count("samples"), 3);
    gateway.say(Body::Ping(Ping { nonce: 9, service_us: 5, settled: vec![0, 0, 3, 0] })).await;
    while !matches!(gateway.hear().await.unwrap(), Body::Pong(pong) if pong.nonce == 9) {}
    let void = VoidRange { epoch: 7, lane: 0, first: 0, last: 9, reason: 1 };
    gateway.say(Body::Voids(Voids { voids: vec![void] })).await;
    gateway.acked(7, Class::Critical, 0, 9).await.unwrap();
    assert_eq!(rig.count("voids WHERE lane = 'critical' AND last = 9 AND reason = 'evicted'"), 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_restarted_cloud_says_what_it_has() {
    let rig = Rig::start().await;
    let mut gateway = rig.gateway("box-1").await;
    gateway.hello(7, &[]).await.unwrap();
    gateway.send_block(&block(Class::Normal, 7, 0, &[b"a", b"b"]).1).await;
    gateway.acked(7, Class::Normal, 0, 1).await.unwrap();
    let (pki, dir) = rig.stop().await;
    assert!(gateway.hear().await.is_err() || gateway.connection.closed().await.to_string().contains("shuts down"));

    let rig = Rig::open(pki, dir, |_| ());
    let mut gateway = rig.gateway("box-1").await;
    // The box was restarted too, and holds what it could not send.
    let welcome = gateway.hello(8, &[7]).await.unwrap();
    assert_eq!(welcome.have.len(), 1);
    assert_eq!((welcome.have[0].epoch, welcome.have[0].lane, &welcome.have[0].bounds[..]), (7, 2, &[0, 1][..]));
    gateway.send_block(&block(Class::Normal, 7, 2, &[b"c"]).1).await;
    gateway.acked(7, Class::Normal, 2, 2).await.unwrap();
    assert_eq!(rig.count("samples"), 3);
    rig.stop().await;
}

#[tokio::test]
async fn a_new_epoch_takes_over_and_a_second_uplink_shares() {
    let rig = Rig::start().await;
    let mut first = rig.gateway("box-1").await;
    first.hello(7, &[]).await.unwrap();
    let mut second = rig.gateway("box-1").await;
    second.hello(7, &[]).await.unwrap();
    // The block comes in on one uplink and again on the other.
    let (_, bytes) = block(Class::Normal, 7, 0, &[b"a"]);
    first.send_block(&bytes).await;
    second.send_block(&bytes).await;
    first.acked(7, Class::Normal, 0, 0).await.unwrap();
    second.acked(7, Class::Normal, 0, 0).await.unwrap();
    assert_eq!(rig.count("samples"), 1);
    let mut rebooted = rig.gateway("box-1").await;
    rebooted.hello(8, &[]).await.unwrap();
    for old in [&mut first, &mut second] {
        let words = loop {
            if let Err(words) = old.hear().await {
                break words;
            }
        };
        assert!(words.contains("took over"), "{words}");
    }
    rebooted.send_block(&block(Class::Normal, 8, 0, &[b"b"]).1).await;
    rebooted.acked(8, Class::Normal, 0, 0).await.unwrap();
    assert_eq!(rig.count("epochs WHERE state = 'closed' AND epoch = '0000000000000007'"), 1);
    rig.stop().await;
}

#[tokio::test]
async fn who_is_not_enrolled_is_told_so() {
    let rig = Rig::start().await;
    for (uri, words) in [
        ("weir://gateway/stranger", "gateway stranger is not enrolled here"),
        ("weir://cloud/test", "is not a gateway"),
        ("https://example.com", "0 weir:// URIs"),
    ] {
        let heard = match Gateway::connect(&rig.pki, uri, rig.addr).await {
            Ok(gateway) => gateway.connection.closed().await.to_string(),
            Err(err) => err.to_string(),
        };
        assert!(heard.contains(words), "{uri}: {heard}");
    }
    // A certificate of some other authority does not get that far.
    let stranger = Gateway::connect(&Pki::new(), "weir://gateway/box-1", rig.addr).await;
    assert!(stranger.is_err());
    rig.stop().await;
}

#[tokio::test]
async fn a_revocation_closes_the_connection_and_a_broken_file_does_not() {
    let rig = Rig::start().await;
    let mut revoked = rig.gateway("box-1").await;
    revoked.hello(1, &[]).await.unwrap();
    let mut kept = rig.gateway("box-2").await;
    kept.hello(1, &[]).await.unwrap();
    let file = rig.dir.path().join("enrolled");
    std::fs::write(&file, "Not A Name\n").unwrap();
    let at_start = Instant::now();
    while !get(rig.http, "/metrics").await.contains("weir_ingest_enrolment_failures_total 1\n") {
        assert!(at_start.elapsed() < Duration::from_secs(20));
        tokio::task::yield_now().await;
    }
    kept.send_block(&block(Class::Normal, 1, 0, &[b"a"]).1).await;
    kept.acked(1, Class::Normal, 0, 0).await.unwrap();
    std::fs::write(&file, "box-2\n").unwrap();
    let words = loop {
        if let Err(words) = revoked.hear().await {
            break words;
        }
    };
    assert!(words.contains("box-1 is not enrolled"), "{words}");
    kept.send_block(&block(Class::Normal, 1, 1, &[b"b"]).1).await;
    kept.acked(1, Class::Normal, 1, 1).await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn what_is_garbled_closes_the_session_and_only_that() {
    let rig = Rig::start().await;
    let (_, sound) = block(Class::Normal, 7, 0, &[b"a"]);
    let mut damaged = sound.to_vec();
    damaged[70] ^= 1;
    let framed = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes(), bytes].concat();
    let other_lane = block(Class::Bulk, 7, 0, &[b"a"]).1;
    let other_epoch = block(Class::Normal, 99, 0, &[b"a"]).1;
    for (bytes, words) in [
        (u32::MAX.to_le_bytes().to_vec(), "outside the limits"),
        (7u32.to_le_bytes().to_vec(), "outside the limits"),
        (framed(&damaged), "checksum"),
        (framed(&[0x55; 100]), "not a block"),
        (framed(&other_lane), "block of lane bulk on a stream of lane normal"),
        (framed(&other_epoch), "was not named in the Hello"),
    ] {
        let mut gateway = rig.gateway("box-1").await;
        gateway.hello(7, &[]).await.unwrap();
        gateway.send_raw(&bytes).await;
        let heard = loop {
            if let Err(heard) = gateway.hear().await {
                break heard;
            }
        };
        assert!(heard.contains(words), "{heard}");
    }
    for (bytes, words) in
        [(u32::MAX.to_le_bytes().to_vec(), "exceeds the limit"), (framed(&[0xff; 40]), "malformed"), (framed(&[]), "no Hello")]
    {
        let mut gateway = rig.gateway("box-1").await;
        gateway.control.write_all(&bytes).await.unwrap();
        let heard = gateway.hear().await.unwrap_err();
        assert!(heard.contains(words), "{heard}");
    }
    let mut gateway = rig.gateway("box-1").await;
    gateway.hello(7, &[]).await.unwrap();
    gateway.connection.open_uni().await.unwrap().write_all(b"GET / HT").await.unwrap();
    assert!(gateway.connection.closed().await.to_string().contains("lane stream starts with"));
    let mut gateway = rig.gateway("box-1").await;
    gateway.hello(7, &[]).await.unwrap();
    gateway.send_block(&sound).await;
    gateway.acked(7, Class::Normal, 0, 0).await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn more_unfinished_blocks_than_allowed_close_the_connection() {
    let limit = weir_logic::block::BLOCK_LEN_MAX as u64;
    let rig = Rig::with(|config| config.limits.connection_bytes = weir_host::units::Bytes::new(limit)).await;
    let mut gateway = rig.gateway("box-1").await;
    gateway.hello(7, &[]).await.unwrap();
    let head = weir_logic::wire::LaneStream { lane: Class::Normal, backlog: true }.to_bytes();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = gateway.connection.open_uni().await.unwrap();
        stream.write_all(&head).await.unwrap();
        stream.write_all(&(limit as u32).to_le_bytes()).await.unwrap();
        streams.push(tokio::spawn(async move {
            let result = stream.write_all(&vec![0; limit as usize * 2 / 3]).await;
            (result, stream)
        }));
    }
    let words = gateway.connection.closed().await.to_string();
    assert!(words.contains("limits.connection_bytes"), "{words}");
    rig.stop().await;
}

#[tokio::test]
async fn a_full_database_takes_the_credits_and_room_brings_them_back() {
    let rig = Rig::with(|config| config.store.file_bytes_max = weir_host::units::Bytes::from_kib(600)).await;
    let mut gateway = rig.gateway("box-1").await;
    gateway.hello(7, &[]).await.unwrap();
    gateway.credits(|bytes| bytes > 0).await;
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let payload: Vec<u8> = std::iter::repeat_with(&mut noise).take(100_000).collect();
    for seq in 0..8 {
        gateway.send_block(&block(Class::Normal, 7, seq, &[&payload]).1).await;
    }
    gateway.credits(|bytes| bytes == 0).await;
    while !matches!(gateway.hear().await.unwrap(), Body::Load(load) if load.level() == LoadLevel::Stalled) {}
    let health = get(rig.http, "/healthz").await;
    assert!(health.contains("503") && health.contains("database takes nothing"), "{health}");
    // Heartbeats are answered meanwhile.
    gateway.say(Body::Ping(Ping { nonce: 3, service_us: 5, settled: vec![] })).await;
    while !matches!(gateway.hear().await.unwrap(), Body::Pong(_)) {}
    let operator = Connection::open(rig.dir.path().join("cloud.db")).unwrap();
    operator.busy_timeout(Duration::from_secs(5)).unwrap();
    operator.execute("DELETE FROM sample_rows", []).unwrap();
    gateway.credits(|bytes| bytes > 0).await;
    // All eight came before the disk was full, and are acknowledged by and by.
    let mut again = rig.gateway("box-1").await;
    again.hello(7, &[]).await.unwrap();
    for seq in 0..8 {
        again.send_block(&block(Class::Normal, 7, seq, &[&payload]).1).await;
    }
    drop(gateway);
    operator.execute("DELETE FROM sample_rows", []).unwrap();
    again.acked(7, Class::Normal, 0, 7).await.unwrap();
    assert_eq!(rig.count("coverage WHERE first = 0 AND last = 7"), 1);
    rig.stop().await;
}

#[tokio::test]
async fn the_status_shows_gateways_missing_records_and_alerts() {
    let mut rig = Rig::start().await;
    let mut gateway = rig.gateway("box-1").await;
    gateway.hello(7, &[]).await.unwrap();
    gateway.send_block(&block(Class::Normal, 7, 5, &[b"a"]).1).await;
    gateway.acked(7, Class::Normal, 5, 5).await.unwrap();
    gateway.say(Body::Ping(Ping { nonce: 1, service_us: 5, settled: vec![0, 0, 6, 0] })).await;
    let status = rig.status.wait_for(|status| !status.alerts.is_empty()).await.unwrap().clone();
    assert_eq!((status.connections, status.gateways[0].missing, status.gateways[0].lanes[2].durable), (1, 5, 1));
    assert_eq!(status.alerts[0].kind, "missing");
    let json = get(rig.http, "/status.json").await;
    assert!(json.contains("\"name\":\"box-1\"") && json.contains("\"epoch\":\"0000000000000007\""), "{json}");
    let metrics = get(rig.http, "/metrics").await;
    for line in
        ["weir_receive_seqs_missing_total 5\n", "weir_sink_rows_total 1\n", "weir_receive_blocks_total{lane=\"normal\"} 1\n"]
    {
        assert!(metrics.contains(line), "{metrics}");
    }
    assert_eq!(rig.count("missing WHERE first = 0 AND last = 4"), 1);
    rig.stop().await;
}

#[tokio::test]
async fn connections_over_the_limit_are_refused() {
    let rig = Rig::with(|config| config.limits.connections_max = 1).await;
    let mut first = rig.gateway("box-1").await;
    first.hello(7, &[]).await.unwrap();
    assert!(Gateway::connect(&rig.pki, "weir://gateway/box-2", rig.addr).await.is_err());
    rig.stop().await;
}

#[tokio::test]
async fn a_start_that_cannot_be_says_why() {
    let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
    pki.write_cloud(dir.path());
    std::fs::write(dir.path().join("enrolled"), "box-1\n").unwrap();
    let open = |change: fn(&mut Config)| {
        let mut config = config_in(dir.path());
        change(&mut config);
        let sockets = Sockets::bind(&config).unwrap();
        Cloud::open(&config, sockets).map(drop).unwrap_err().to_string()
    };
    assert!(open(|config| config.gateways.enrolled_file = Some("/nowhere/list".into())).contains("/nowhere/list"));
    assert!(open(|config| config.tls.key = "/nowhere/key".into()).contains("/nowhere/key"));
    assert!(open(|config| config.store.path = "/nowhere/db".into()).contains("/nowhere/db"));
}

/// One GET, as text with its head.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}
