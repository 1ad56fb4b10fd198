//! Pools over real connections: who may ask, and what they hear.

use quinn::Connection;
use weir_infer::Backend;
use weir_logic::wire::offload::{EncodedWindow, OffloadAnswer, OffloadRefusal, OffloadRequest, PoolViews, RefusalKind};

use super::*;
use crate::config::Pool;

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
