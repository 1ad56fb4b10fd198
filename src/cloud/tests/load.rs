//! A cloud whose database is slow: what it takes from whom, and what it says.

use weir_logic::wire::Credits;

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(&mut next).take(len).collect()
}

/// Makes the database slow for large payloads: each takes it about a tenth of a second.
fn slow_down(file: &Path) {
    let operator = Connection::open(file).unwrap();
    operator.busy_timeout(Duration::from_secs(5)).unwrap();
    let work =
        "CREATE VIEW work AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1000000) SELECT x FROM n;
        CREATE TRIGGER slow AFTER INSERT ON sample_rows WHEN length(NEW.payload) > 50000 BEGIN SELECT max(x) FROM work; END;";
    operator.execute_batch(work).unwrap();
}

/// The next load that is told, and the last credits before it.
async fn hears_load(gateway: &mut Gateway, level: LoadLevel) -> Option<Vec<u64>> {
    let mut credits = None;
    let hears = async {
        loop {
            match gateway.hear().await.unwrap() {
                Body::Load(load) if load.level() == level => return,
                Body::Credits(Credits { bytes, .. }) => credits = Some(bytes),
                _ => {}
            }
        }
    };
    tokio::time::timeout(LIMIT, hears).await.unwrap();
    credits
}

#[tokio::test]
async fn a_slow_database_overloads_the_cloud_which_says_so_keeps_critical_and_recovers() {
    let queue = 8 << 20;
    let rig = Rig::with(|config| {
        config.limits.queue_bytes = weir_host::units::Bytes::new(queue);
        // A transaction for each block, so that each is slow.
        config.store.transaction_bytes_max = weir_host::units::Bytes::new(1);
    })
    .await;
    let mut busy = rig.gateway("box-1").await;
    busy.hello(7, &[]).await.unwrap();
    busy.credits(|bytes| bytes > 0).await;
    slow_down(&rig.dir.path().join("cloud.db"));
    let payload = noise(100_000);
    let mut blocks = 0;
    while rig.status.borrow().sink.queue_bytes < queue * 3 / 4 {
        busy.send_block(&block(Class::Normal, 7, blocks, &[&payload]).1).await;
        blocks += 1;
    }
    let credits = hears_load(&mut busy, LoadLevel::Overloaded).await;
    assert_eq!(credits, Some(vec![8 << 20, 0, 0, 0]), "critical keeps its credits");
    // Who greets now hears it at once.
    let mut late = rig.gateway("box-2").await;
    late.hello(1, &[]).await.unwrap();
    assert_eq!(hears_load(&mut late, LoadLevel::Overloaded).await, Some(vec![8 << 20, 0, 0, 0]));
    hears_load(&mut late, LoadLevel::Idle).await;
    late.credits(|bytes| bytes > 0).await;
    let stored = rig.status.clone().wait_for(|status| status.sink.rows == blocks).await.is_ok();
    assert!(stored, "what came before is all there");
    assert_eq!(rig.count("samples WHERE gateway = 'box-1'"), blocks as i64);
    rig.stop().await;
}
