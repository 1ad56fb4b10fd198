use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const LIMITS: PoolLimits = PoolLimits { queue_max: 8, batch_max: 3, linger_us: 1_000, workers: 2 };
const NEVER: u64 = u64::MAX;

fn request(id: u64, gateway: &str, class: Class, deadline_us: u64) -> PoolRequest {
    PoolRequest { id, gateway: gateway.into(), class, deadline_us }
}

fn outputs(pool: &mut Pool) -> Vec<PoolOutput> {
    std::iter::from_fn(|| pool.poll()).collect()
}

/// Jain's index: 1 if all have the same, 1/n if one has all.
fn fairness(shares: &[f64]) -> f64 {
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(sum, squares), share| (sum + share, squares + share * share));
    sum * sum / (shares.len() as f64 * squares)
}

#[test]
fn a_batch_waits_for_company_but_never_with_a_critical_one_in_it() {
    let mut pool = Pool::new(PoolLimits { workers: 1, ..LIMITS });
    pool.offer(0, request(1, "a", Class::Bulk, NEVER));
    pool.offer(400, request(2, "b", Class::Normal, NEVER));
    assert_eq!((outputs(&mut pool), pool.deadline_us()), (Vec::new(), Some(1_000)));
    pool.tick(1_000);
    assert_eq!(outputs(&mut pool), [PoolOutput::Run { worker: 0, ids: vec![2, 1] }]);
    pool.offer(1_100, request(3, "a", Class::Critical, NEVER));
    assert!(outputs(&mut pool).is_empty(), "the only worker is busy");
    pool.finished(3_000, 0, 2_000);
    assert_eq!(outputs(&mut pool), [PoolOutput::Run { worker: 0, ids: vec![3] }]);
    pool.finished(4_000, 0, 1_000);
    pool.offer(4_100, request(4, "a", Class::Critical, NEVER));
    assert_eq!(outputs(&mut pool), [PoolOutput::Run { worker: 0, ids: vec![4] }], "without lingering");
    let load = pool.load(5_000);
    assert_eq!((load.queued, load.running, load.p50_us, load.p95_us), (0, 1, 2_900, 3_000));
    assert_eq!(load.age_us, Some(1_000));
}

#[test]
fn what_would_be_late_is_refused_when_it_comes_and_what_has_become_late_when_it_does() {
    let mut pool = Pool::new(PoolLimits { workers: 1, batch_max: 1, linger_us: 0, ..LIMITS });
    pool.offer(0, request(1, "a", Class::Normal, NEVER));
    pool.finished(10_000, 0, 10_000);
    pool.offer(10_000, request(2, "a", Class::Normal, NEVER));
    pool.offer(10_000, request(3, "a", Class::Normal, 40_000));
    outputs(&mut pool);
    // 10 ms a request: half of one runs, one waits, then this one.
    pool.offer(10_000, request(4, "a", Class::Normal, 34_000));
    let late = PoolOutput::Refuse { id: 4, reason: RefusedReason::Late, retry_after_us: 20_000 };
    assert_eq!(outputs(&mut pool), [late]);
    pool.offer(10_000, request(5, "b", Class::Normal, 34_000));
    assert_eq!(outputs(&mut pool).len(), 1, "it has one turn before it as well");
    assert_eq!(pool.deadline_us(), Some(40_001));
    pool.tick(40_001);
    assert!(matches!(outputs(&mut pool)[..], [PoolOutput::Refuse { id: 3, reason: RefusedReason::Expired, .. }]));
    assert_eq!((pool.load(0).queued, pool.deadline_us()), (0, None));
}

#[test]
fn two_hundred_gateways_get_equal_parts_whatever_they_ask_for_and_hear_no_at_once() {
    let limits = PoolLimits { queue_max: 1_024, batch_max: 32, linger_us: 2_000, workers: 2 };
    let mut pool = Pool::new(limits);
    let names: Vec<Arc<str>> = (0..200).map(|at| format!("box-{at}").into()).collect();
    let (mut served, mut critical_refused) = (vec![0_u32; names.len()], 0);
    let (mut asked, mut busy): (Vec<PoolRequest>, Vec<Option<u64>>) = (Vec::new(), vec![None; 2]);
    let (mut refused, mut refused_waits_us) = (0, Vec::new());
    let mut came = BTreeMap::new();
    // Half a second; every ms a gateway asks `1 + at % 20` times in 20 ms, so the greediest asks 20 times as often as the humblest.
    // 100 us a window and two workers: 20 a ms are answered, 105 are asked for. Every hundredth is critical.
    for ms in 0..500_u64 {
        let now_us = ms * 1_000;
        for (worker, until_us) in busy.iter_mut().enumerate() {
            if until_us.is_some_and(|until_us| until_us <= now_us) {
                *until_us = None;
                pool.finished(now_us, worker as u16, 3_200);
            }
        }
        pool.tick(now_us);
        for (at, name) in names.iter().enumerate() {
            if (ms + at as u64) % 20 < 1 + at as u64 % 20 {
                let id = asked.len() as u64;
                let class = if id.is_multiple_of(100) { Class::Critical } else { Class::Bulk };
                asked.push(request(id, name, class, now_us + 200_000));
                came.insert(id, now_us);
                pool.offer(now_us, asked[id as usize].clone());
            }
        }
        for output in outputs(&mut pool) {
            match output {
                PoolOutput::Run { worker, ids } => {
                    busy[usize::from(worker)] = Some(now_us + 3_200);
                    for id in ids.into_iter().filter(|&id| asked[id as usize].class == Class::Bulk) {
                        served[names.iter().position(|name| *name == asked[id as usize].gateway).expect("ours")] += 1;
                    }
                }
                PoolOutput::Refuse { id, .. } => {
                    refused += 1;
                    refused_waits_us.push(now_us - came[&id]);
                    critical_refused += u32::from(asked[id as usize].class == Class::Critical);
                }
            }
        }
    }
    let shares: Vec<f64> = served.iter().map(|&count| f64::from(count)).collect();
    refused_waits_us.sort_unstable();
    let (p95_us, p99_us) = (refused_waits_us[refused * 95 / 100], refused_waits_us[refused * 99 / 100]);
    assert!(fairness(&shares) >= 0.95, "{}", fairness(&shares));
    assert_eq!(critical_refused, 0);
    // 4 s of work come a second: refusals are the rule, and hardly one of them comes after waiting.
    assert!(
        refused > asked.len() / 2 && p95_us <= 2_000 && p99_us <= 10_000,
        "{refused} of {}, {p95_us} and {p99_us} us",
        asked.len()
    );
}

#[test]
fn the_fuller_the_room_the_fewer_of_one_gateway_come_in() {
    let mut pool = Pool::new(PoolLimits { queue_max: 8, batch_max: 1, linger_us: 0, workers: 1 });
    let mut offered = 0;
    let mut offer = |pool: &mut Pool, gateway, class| {
        offered += 1;
        pool.offer(0, request(offered, gateway, class, NEVER));
        !outputs(pool).iter().any(|output| matches!(output, PoolOutput::Refuse { id, .. } if *id == offered))
    };
    assert!(offer(&mut pool, "hog", Class::Bulk), "it runs at once");
    assert_eq!((0..9).filter(|_| offer(&mut pool, "hog", Class::Bulk)).count(), 4, "then as many wait as places are free");
    assert_eq!((0..9).filter(|_| offer(&mut pool, "b", Class::Bulk)).count(), 2);
    assert!(offer(&mut pool, "c", Class::Bulk), "one always");
    assert!(offer(&mut pool, "hog", Class::Normal), "the last place");
    assert!(offer(&mut pool, "hog", Class::Normal), "in the place of what is less urgent");
    assert_eq!((pool.load(0).queued, pool.load(0).refused_p95_us), (8, 0));
}

/// A gateway that has so many requests under way as long as it is not told to wait.
#[derive(Debug, Clone)]
struct Asker {
    name: Arc<str>,
    width: u64,
    under_way: u64,
    paused_until_us: u64,
    served: u64,
}

#[test]
fn two_hundred_gateways_that_stay_away_as_long_as_they_are_told_get_equal_parts_whatever_their_names() {
    // 1 ms a window: 1,000 a second for 1,700 requests that the gateways would have under way. 20 ms from end to end and back.
    const ROW_US: u64 = 1_000;
    const WAY_US: u64 = 10_000;
    let mut pool = Pool::new(PoolLimits { queue_max: 256, batch_max: 32, linger_us: 2_000, workers: 1 });
    let asker =
        |at: u64| Asker { name: format!("box-{at}").into(), width: 1 + at % 16, under_way: 0, paused_until_us: 0, served: 0 };
    let mut askers: Vec<Asker> = (0..200).map(asker).collect();
    let (mut owners, mut running) = (Vec::<usize>::new(), None::<u64>);
    // By when it arrives: requests on their way there, and on their way back who got an answer, or how long to stay away.
    let (mut asked, mut told) = (BTreeMap::<u64, Vec<u64>>::new(), BTreeMap::<u64, Vec<(usize, Option<u64>)>>::new());
    for now_us in (0..12_000_000_u64).step_by(1_000) {
        for (at, refused_us) in told.remove(&now_us).unwrap_or_default() {
            askers[at].under_way -= 1;
            match refused_us {
                Some(wait_us) => askers[at].paused_until_us = askers[at].paused_until_us.max(now_us + wait_us),
                None => askers[at].served += u64::from(now_us >= 2_000_000),
            }
        }
        for (at, asker) in askers.iter_mut().enumerate().filter(|(_, asker)| now_us >= asker.paused_until_us) {
            let more = asker.width - asker.under_way;
            asker.under_way = asker.width;
            asked.entry(now_us + WAY_US).or_default().extend(owners.len() as u64..owners.len() as u64 + more);
            owners.extend((0..more).map(|_| at));
        }
        if running.is_some_and(|until_us| until_us <= now_us) {
            running = None;
            pool.finished(now_us, 0, 32 * ROW_US);
        }
        for id in asked.remove(&now_us).unwrap_or_default() {
            pool.offer(now_us, request(id, &askers[owners[id as usize]].name, Class::Bulk, NEVER));
        }
        pool.tick(now_us);
        for output in outputs(&mut pool) {
            match output {
                PoolOutput::Run { ids, .. } => {
                    let done_us = now_us + 32 * ROW_US;
                    running = Some(done_us);
                    told.entry(done_us + WAY_US).or_default().extend(ids.into_iter().map(|id| (owners[id as usize], None)));
                }
                PoolOutput::Refuse { id, retry_after_us, .. } => {
                    told.entry(now_us + WAY_US).or_default().push((owners[id as usize], Some(retry_after_us)));
                }
            }
        }
    }
    let shares: Vec<f64> = askers.iter().map(|asker| asker.served as f64).collect();
    let (least, most) = shares.iter().fold((f64::MAX, 0.0_f64), |(least, most), &share| (least.min(share), most.max(share)));
    assert!(shares.iter().sum::<f64>() > 9_000.0, "it is busy throughout: {}", shares.iter().sum::<f64>());
    assert!(fairness(&shares) >= 0.98, "{} from {least} to {most}: {shares:?}", fairness(&shares));
}

#[derive(Debug, Clone)]
enum Op {
    Offer { gateway: u8, class: u8, patience_us: u64 },
    Finish { worker: u16, took_us: u64 },
    Cancel { nth: u64 },
    Pass { us: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u8..5, 0u8..4, 0u64..20_000).prop_map(|(gateway, class, patience_us)| Op::Offer { gateway, class, patience_us }),
        2 => (0u16..2, 1u64..5_000).prop_map(|(worker, took_us)| Op::Finish { worker, took_us }),
        1 => (0u64..40).prop_map(|nth| Op::Cancel { nth }),
        2 => (0u64..3_000).prop_map(|us| Op::Pass { us }),
    ]
}

proptest! {
    #[test]
    fn each_request_ends_once_and_none_is_refused_or_run_out_of_order(ops in prop::collection::vec(op(), 1..300)) {
        let mut pool = Pool::new(LIMITS);
        let (mut now_us, mut next, mut waiting) = (0, 0, BTreeMap::<u64, Class>::new());
        let mut ended = BTreeSet::new();
        for op in ops {
            match op {
                Op::Offer { gateway, class, patience_us } => {
                    let class = Class::ALL[usize::from(class)];
                    waiting.insert(next, class);
                    pool.offer(now_us, request(next, &format!("box-{gateway}"), class, now_us + patience_us));
                    next += 1;
                }
                Op::Finish { worker, took_us } => pool.finished(now_us, worker, took_us),
                Op::Cancel { nth } => {
                    pool.cancel(nth);
                    if waiting.remove(&nth).is_some() {
                        ended.insert(nth);
                    }
                }
                Op::Pass { us } => {
                    now_us += us;
                    pool.tick(now_us);
                }
            }
            for output in outputs(&mut pool) {
                match output {
                    PoolOutput::Run { ids, .. } => {
                        prop_assert!((1..=LIMITS.batch_max).contains(&ids.len()));
                        for id in ids {
                            let class = waiting.remove(&id).expect("it waited");
                            prop_assert!(waiting.values().all(|other| *other >= class || ended.contains(&id)));
                            prop_assert!(ended.insert(id));
                        }
                    }
                    PoolOutput::Refuse { id, reason, retry_after_us } => {
                        let class = waiting.remove(&id).expect("it waited");
                        prop_assert!(ended.insert(id) && (RETRY_US.0..=RETRY_US.1).contains(&retry_after_us));
                        if matches!(reason, RefusedReason::Full | RefusedReason::Shed) {
                            prop_assert!(waiting.values().all(|other| *other <= class), "{reason:?} with a lower class waiting");
                        }
                    }
                }
            }
            prop_assert!(pool.waiting.len() <= LIMITS.queue_max);
            prop_assert_eq!(pool.waiting.len(), waiting.len());
            prop_assert_eq!(pool.queues.iter().map(ClassQueue::len).sum::<usize>(), waiting.len());
            prop_assert_eq!((pool.deadlines.len(), pool.came.len()), (waiting.len(), waiting.len()));
            if let Some(deadline_us) = pool.deadline_us() {
                pool.tick(deadline_us.max(now_us));
                now_us = deadline_us.max(now_us);
                prop_assert!(pool.deadline_us() != Some(deadline_us), "what is due is done");
                for output in outputs(&mut pool) {
                    let ids = match output {
                        PoolOutput::Run { ids, .. } => ids,
                        PoolOutput::Refuse { id, .. } => vec![id],
                    };
                    for id in ids {
                        prop_assert!(waiting.remove(&id).is_some() && ended.insert(id));
                    }
                }
            }
        }
        prop_assert_eq!(ended.len() + waiting.len(), next as usize);
    }
}
