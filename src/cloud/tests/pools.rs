//! Pools over real connections: who may ask, what they hear, and how a pool is shared by many.

use std::sync::atomic::AtomicUsize;

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

#[tokio::test]
async fn a_pool_is_shared_evenly_by_gateways_that_all_want_more_of_it() {
    // Two hundred of them share the scheduler evenly in `logic::pool`'s tests; here it is their connections that cost.
    const GATEWAYS: usize = 30;
    const ANSWERS: usize = 900;
    let names: Vec<String> = (0..GATEWAYS).map(|at| format!("site-{at}")).collect();
    let enrolled = names.clone();
    let rig = Rig::with(|config| {
        config.gateways.enrolled = enrolled;
        config.pool = vec![Pool { queue_max: 64, ..pool("large", &["site-*"]) }];
    })
    .await;
    let mut gateways = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let mut gateway = rig.gateway(name).await;
        gateway.hello(1 + at as u64, &[]).await.unwrap();
        gateways.push(gateway);
    }
    // Nobody asks before all can.
    let total = Arc::new(AtomicUsize::new(0));
    let mut asking = JoinSet::new();
    for (at, gateway) in gateways.into_iter().enumerate() {
        let total = total.clone();
        // The greediest has eight times as many under way as the humblest.
        asking.spawn(async move {
            // All of it, not its connection alone: the control stream must stay open.
            let gateway = gateway;
            let mut under_way = JoinSet::new();
            let (mut answers, mut refusals, mut asked) = (0, [0_u32; 4], 0_u32);
            while total.load(Relaxed) < ANSWERS {
                while under_way.len() < 2 + 2 * (at % 8) {
                    asked += 1;
                    let class = if asked.is_multiple_of(50) { Class::Critical } else { Class::Bulk };
                    let (connection, request) = (gateway.connection.clone(), request("large", class, asked as f32));
                    under_way.spawn(async move { (class, ask(&connection, request).await) });
                }
                let (class, asked) = under_way.join_next().await.unwrap().unwrap();
                match asked {
                    Ok(_) => {
                        answers += 1;
                        total.fetch_add(1, Relaxed);
                    }
                    Err(refusal) => {
                        refusals[class.index()] += 1;
                        assert_eq!(RefusalKind::from_code(refusal.kind), RefusalKind::Busy, "{}", refusal.reason);
                        tokio::time::sleep(Duration::from_millis(refusal.retry_after_ms.into())).await;
                    }
                }
            }
            under_way.shutdown().await;
            (answers, refusals)
        });
    }
    let (mut shares, mut refused, mut critical_refused) = (Vec::new(), 0, 0);
    while let Some(done) = tokio::time::timeout(2 * LIMIT, asking.join_next()).await.unwrap() {
        let (answers, refusals) = done.unwrap();
        shares.push(f64::from(answers));
        refused += refusals.iter().sum::<u32>();
        critical_refused += refusals[Class::Critical.index()];
    }
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(sum, squares), share| (sum + share, squares + share * share));
    let fairness: f64 = sum * sum / (GATEWAYS as f64 * squares);
    println!("{sum} answers, {refused} refusals, {critical_refused} of them critical: fairness {fairness:.4}");
    assert!(fairness >= 0.95, "{fairness}: {shares:?}");
    assert!(refused > 0 && critical_refused == 0, "{refused} refused, {critical_refused} of them critical");
    rig.stop().await;
}
