//! Pools over real connections, on this machine and on another: who may ask, and what they hear.

use quinn::Connection;
use weir_infer::Backend;
use weir_logic::wire::offload::{EncodedWindow, OffloadAnswer, OffloadRefusal, OffloadRequest, PoolViews, RefusalKind};

use super::*;
use crate::config::{Pool, PoolConfig, PoolMachine};

const LIMIT: Duration = Duration::from_secs(60);

fn pool(name: &str, gateways: &[&str]) -> Pool {
    Pool {
        name: name.to_owned(),
        task: "activity".to_owned(),
        model: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/watch-large.toml"),
        engine: Backend::Rten,
        gateways: gateways.iter().map(|&gateway| gateway.to_owned()).collect(),
        ..Pool::default()
    }
}

fn request(pool: &str, class: Class, value: f32) -> OffloadRequest {
    let values: Vec<f32> = (0..6 * 128).map(|at| value * ((at % 97) as f32 - 48.0)).collect();
    let EncodedWindow { scales, data } = EncodedWindow::new(6, &values, true);
    OffloadRequest {
        pool: pool.to_owned(),
        task: "activity".to_owned(),
        class: class.index() as u32,
        deadline_ms: 30_000,
        channels: 6,
        length: 128,
        scales,
        data,
    }
}

/// Asks on a stream of its own.
async fn ask(connection: &Connection, request: OffloadRequest) -> Result<OffloadAnswer, OffloadRefusal> {
    let mut bytes = Vec::new();
    weir_logic::wire::encode_control(Body::OffloadRequest(request), &mut bytes);
    match exchange(connection, &bytes).await {
        Body::OffloadAnswer(answer) => Ok(answer),
        Body::OffloadRefusal(refusal) => Err(refusal),
        other => panic!("no answer: {other:?}"),
    }
}

async fn exchange(connection: &Connection, bytes: &[u8]) -> Body {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    let answer = tokio::time::timeout(LIMIT, recv.read_to_end(1 << 16)).await.unwrap().unwrap();
    weir_logic::wire::take_control(&mut bytes::BytesMut::from(&answer[..])).unwrap().unwrap().body.unwrap()
}

async fn hears_pools(gateway: &mut Gateway) -> PoolViews {
    loop {
        if let Body::Pools(pools) = tokio::time::timeout(LIMIT, gateway.hear()).await.unwrap().unwrap() {
            return pools;
        }
    }
}

#[tokio::test]
async fn only_who_may_hears_of_a_pool_and_is_answered() {
    let rig = Rig::with(|config| config.pool = vec![pool("large", &["box-1"]), pool("other", &[])]).await;
    let mut one = rig.gateway("box-1").await;
    one.hello(7, &[]).await.unwrap();
    let pools = hears_pools(&mut one).await.pools;
    assert_eq!(pools.iter().map(|pool| &*pool.name).collect::<Vec<_>>(), ["large"]);
    assert_eq!((pools[0].channels, pools[0].length, pools[0].int16, &*pools[0].model), (6, 128, true, "watch-large"));
    let answer = ask(&one.connection, request("large", Class::Normal, 10.0)).await.unwrap();
    assert!(!answer.label.is_empty() && answer.confidence > 0.1 && answer.model == "watch-large", "{answer:?}");

    let denied = |asked: Result<OffloadAnswer, OffloadRefusal>| {
        let refusal = asked.unwrap_err();
        (RefusalKind::from_code(refusal.kind), refusal.reason)
    };
    let mut two = rig.gateway("box-2").await;
    two.hello(8, &[]).await.unwrap();
    let no_such = (RefusalKind::Denied, "there is no such pool for this gateway".to_owned());
    assert_eq!(denied(ask(&two.connection, request("large", Class::Critical, 1.0)).await), no_such);
    assert_eq!(denied(ask(&two.connection, request("none", Class::Critical, 1.0)).await), no_such, "in the same words");
    assert_eq!(denied(ask(&one.connection, request("other", Class::Critical, 1.0)).await), no_such);
    // What makes no sense harms nobody, and the connection stays.
    let task = OffloadRequest { task: "chess".to_owned(), ..request("large", Class::Normal, 1.0) };
    assert_eq!(denied(ask(&one.connection, task).await).0, RefusalKind::Denied);
    let short = OffloadRequest { data: bytes::Bytes::from_static(&[1; 7]), ..request("large", Class::Normal, 1.0) };
    assert_eq!(denied(ask(&one.connection, short).await).0, RefusalKind::Failed);
    let garbage = exchange(&one.connection, &[0xff; 300]).await;
    assert!(matches!(garbage, Body::OffloadRefusal(refusal) if refusal.kind == RefusalKind::Failed.code()));
    assert!(ask(&one.connection, request("large", Class::Normal, 20.0)).await.is_ok());
    let shown = |status: &Arc<Status>| {
        let large = &status.pools.pools[0];
        large.served["normal"] == 2 && large.denied == 3 && status.pools.garbled == 1 && large.age_us.is_some()
    };
    let mut status = rig.status.clone();
    tokio::time::timeout(LIMIT, status.wait_for(shown)).await.unwrap().unwrap();
    rig.stop().await;
}

/// A machine that runs these pools for the cloud `test`, its address, and what stops it.
fn machine(pki: &Pki, dir: &Path, pools: Vec<Pool>) -> (SocketAddr, ShutdownTrigger, Task<()>) {
    pki.write(dir, "pool", "pool-1");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = PoolConfig { pool: pools, ..PoolConfig::default() };
    config.listen.quic = any;
    config.admin.http = Some(any);
    config.clouds.enrolled = vec!["test".to_owned()];
    config.tls = config::Tls { cert: dir.join("pool.crt"), key: dir.join("pool.key"), ca: dir.join("ca.crt") };
    let server = PoolServer::open(&config, PoolSockets::bind(&config).unwrap()).unwrap();
    let (addr, (trigger, shutdown)) = (server.quic_addr().unwrap(), shutdown::channel());
    (addr, trigger, tokio::spawn(Box::pin(server.run(shutdown))))
}

#[tokio::test]
async fn another_machine_s_pools_are_as_the_cloud_s_own_and_gone_when_it_is() {
    let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
    pki.write_cloud(dir.path());
    std::fs::write(dir.path().join("enrolled"), "box-1\nbox-2\nbox-3\n").unwrap();
    let (addr, trigger, running) = machine(&pki, dir.path(), vec![pool("large", &["box-1", "box-2"])]);
    let rig = Rig::open(pki, dir, |config| {
        let (server_name, gateways) = (Some("localhost".to_owned()), vec!["box-1".to_owned(), "box-3".to_owned()]);
        config.pool_machine = vec![PoolMachine { address: addr.to_string(), server_name, gateways }];
    });
    let mut one = rig.gateway("box-1").await;
    one.hello(7, &[]).await.unwrap();
    let pools = hears_pools(&mut one).await.pools;
    assert_eq!((pools.len(), &*pools[0].name, &*pools[0].model, pools[0].length), (1, "large", "watch-large", 128));
    let answer = ask(&one.connection, request("large", Class::Normal, 10.0)).await.unwrap();
    assert!(!answer.label.is_empty() && answer.model == "watch-large", "{answer:?}");
    // Both lists must name a gateway: the cloud's does not have box-2, the machine's not box-3.
    for (name, epoch) in [("box-2", 8), ("box-3", 9)] {
        let mut other = rig.gateway(name).await;
        other.hello(epoch, &[]).await.unwrap();
        let refusal = ask(&other.connection, request("large", Class::Critical, 1.0)).await.unwrap_err();
        assert_eq!(RefusalKind::from_code(refusal.kind), RefusalKind::Denied, "{name}: {}", refusal.reason);
        assert_eq!(refusal.reason, "there is no such pool for this gateway", "{name}");
    }
    // It counts for itself; the cloud shows whose it is.
    let mut status = rig.status.clone();
    let shown = |status: &Arc<Status>| {
        let pools = &status.pools;
        pools.machines.values().all(|is_up| *is_up) && pools.pools.first().is_some_and(|pool| pool.age_us.is_some())
    };
    let status = tokio::time::timeout(LIMIT, status.wait_for(shown)).await.unwrap().unwrap().clone();
    assert_eq!((status.pools.pools[0].machine.as_deref(), status.pools.machines.len()), (Some(&*addr.to_string()), 1));

    trigger.request();
    tokio::time::timeout(LIMIT, running).await.unwrap().unwrap();
    // Who may use it hears that it is gone, perhaps after how busy it was.
    while !hears_pools(&mut one).await.pools.is_empty() {}
    let refusal = ask(&one.connection, request("large", Class::Critical, 2.0)).await.unwrap_err();
    assert!(matches!(RefusalKind::from_code(refusal.kind), RefusalKind::Denied | RefusalKind::Failed), "{}", refusal.reason);
    rig.stop().await;
}

#[tokio::test]
async fn a_machine_with_pools_lets_nobody_in_but_clouds_that_are_named() {
    let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
    let (addr, trigger, running) = machine(&pki, dir.path(), vec![pool("large", &["*"])]);
    for (uri, words) in [
        ("weir://gateway/box-1", "is not a cloud"),
        ("weir://gateway/test", "is not a cloud"),
        ("weir://cloud/stranger", "cloud stranger is not enrolled here"),
    ] {
        let mut tls = pki.tls(uri);
        tls.alpn_protocols = vec![b"weir-pool/1".to_vec()];
        let client = quic::client_config(tls, &Transport::edge()).unwrap();
        let socket = quic::bind(SocketAddr::from(([127, 0, 0, 1], 0)), None).unwrap();
        let endpoint = quic::client_endpoint(socket).unwrap();
        let connection = endpoint.connect_with(client, addr, "localhost").unwrap().await.unwrap();
        let reason = tokio::time::timeout(LIMIT, connection.closed()).await.unwrap().to_string();
        assert!(reason.contains(words), "{uri}: {reason}");
    }
    // A box that takes it for an ingest node does not get that far.
    let refused = Gateway::connect(&pki, "weir://gateway/box-1", addr).await.err().expect("another protocol");
    assert!(refused.to_string().contains("120") || refused.to_string().to_lowercase().contains("application"), "{refused}");
    trigger.request();
    tokio::time::timeout(LIMIT, running).await.unwrap().unwrap();
}
