use super::*;
use crate::window::{Span, WindowConfig, WindowSpec};
use crate::wire::offload::{OffloadRefusal, PoolView};

const MS: u64 = 1_000;
const DEADLINE_US: u64 = 200 * MS;

fn policy() -> OffloadPolicy {
    let config = WindowConfig { length: Span::Samples(4), step: None, gap_max_us: None, reorder_max_us: None };
    OffloadPolicy {
        task: "activity".into(),
        mode: OffloadMode::Wait,
        band: (0.0, 0.6),
        deadline_us: DEADLINE_US,
        spacing_us: 0,
        int16: true,
        audit: 0.0,
        learn: None,
        window: WindowSpec::new(&config, 1, Some(10.0)).expect("a window"),
    }
}

fn view(name: &str) -> PoolView {
    PoolView { name: name.to_owned(), task: "activity".to_owned(), channels: 1, length: 4, int16: true, ..PoolView::default() }
}

fn offloads(limits: OffloadLimits) -> Offloads {
    let mut offloads = Offloads::new(7, 2, 2, limits);
    offloads.told(0, 0, PoolViews { pools: vec![view("a")] });
    offloads
}

/// Asks about a window that is like no other.
fn ask(offloads: &mut Offloads, now_us: u64, job: u64) -> Asked {
    ask_about(offloads, now_us, job, job as f32, &policy())
}

fn ask_about(offloads: &mut Offloads, now_us: u64, job: u64, value: f32, policy: &OffloadPolicy) -> Asked {
    ask_for(offloads, now_us, job, value, policy, Purpose::Doubt)
}

/// Audits a window that is like no other.
fn audit(offloads: &mut Offloads, now_us: u64, job: u64) -> Asked {
    ask_for(offloads, now_us, job, job as f32, &policy(), Purpose::Audit)
}

fn ask_for(offloads: &mut Offloads, now_us: u64, job: u64, value: f32, policy: &OffloadPolicy, purpose: Purpose) -> Asked {
    offloads.tick(now_us);
    let (class, window) = (Class::High, [value, 1.5, 2.0, 3.0]);
    offloads.ask(now_us, &Ask { job, stream: 0, class, purpose, policy, pool: Some(0), uplinks: &[1, 0], window: &window })
}

fn answer(label: &str) -> Vec<u8> {
    let answer = OffloadAnswer {
        label: label.to_owned(),
        score: 0.9,
        confidence: 0.9,
        model: "large".to_owned(),
        version: "2".to_owned(),
        ..OffloadAnswer::default()
    };
    let mut bytes = Vec::new();
    crate::wire::encode_control(Body::OffloadAnswer(answer), &mut bytes);
    bytes
}

fn refusal(kind: RefusalKind, retry_after_ms: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let refusal = OffloadRefusal { kind: kind.code(), reason: "no".to_owned(), retry_after_ms };
    crate::wire::encode_control(Body::OffloadRefusal(refusal), &mut bytes);
    bytes
}

fn outcomes(offloads: &mut Offloads) -> Vec<OffloadOutcome> {
    std::iter::from_fn(|| offloads.outcome()).collect()
}

/// Ids of what was sent since the last call.
fn sent(offloads: &mut Offloads) -> Vec<u64> {
    let outputs = std::iter::from_fn(|| offloads.output());
    outputs.filter_map(|output| if let OffloadOutput::Send { id, .. } = output { Some(id) } else { None }).collect()
}

#[test]
fn a_request_says_what_the_pool_needs_and_its_answer_comes_back() {
    let mut offloads = offloads(OffloadLimits::default());
    assert_eq!(ask(&mut offloads, 0, 1), Asked::UnderWay);
    let Some(OffloadOutput::Send { uplink: 0, id, class: Class::High, purpose: Purpose::Doubt, bytes }) = offloads.output()
    else {
        panic!("a request")
    };
    let control = crate::wire::take_control(&mut bytes::BytesMut::from(&bytes[..])).expect("our own").expect("whole");
    let Some(Body::OffloadRequest(request)) = control.body else { panic!("a request") };
    assert_eq!((&*request.pool, &*request.task, request.deadline_ms), ("a", "activity", 200));
    let values = request.values().expect("a window");
    assert!(
        request.scales.len() == 2 && values.iter().zip([1.0, 1.5, 2.0, 3.0]).all(|(a, b)| (a - b).abs() < 1e-4),
        "{values:?}"
    );
    offloads.answered(30 * MS, id, &answer("walk"));
    let OffloadOutcome::Answered { job: 1, answer } = &outcomes(&mut offloads)[0] else { panic!("an answer") };
    assert_eq!((&*answer.verdict.label, &*answer.model, &*answer.version), ("walk", "large", "2"));
    assert_eq!((offloads.counts(0).answered, offloads.in_flight(), offloads.deadline_us()), (1, 0, u64::MAX));
    let places = offloads.places(31 * MS, &[Some(5 * MS), None]);
    assert_eq!(places[0].answer_us, [Some(30 * MS), None], "as long as the last one took");
    assert_eq!(offloads.places(60_000 * MS, &[Some(5 * MS), None])[0].answer_us[0], Some(5 * MS), "or as the cloud says");
}

#[test]
fn a_dead_pool_costs_three_deadlines_and_one_answer_makes_it_whole_again() {
    let mut offloads = offloads(OffloadLimits::default());
    let (mut now_us, mut overdue) = (0, 0);
    for job in 1..=20 {
        match ask(&mut offloads, now_us, job) {
            Asked::UnderWay => {
                let deadline_us = offloads.deadline_us();
                assert_eq!(deadline_us, now_us + DEADLINE_US);
                offloads.tick(deadline_us);
                assert_eq!(outcomes(&mut offloads), [OffloadOutcome::Overdue { job }]);
                now_us = deadline_us;
                overdue += 1;
            }
            asked => assert_eq!(asked, Asked::Not(NotSent::Breaker)),
        }
    }
    assert_eq!((overdue, offloads.counts(0).overdue, offloads.counts(0).not_sent[NotSent::Breaker as usize]), (3, 3, 17));
    assert_eq!(offloads.pools()[0].state(), "open");
    assert!(offloads.places(now_us, &[Some(0), None])[0].is_open);
    // A second later there is one trial, and not another beside it.
    now_us += 1_000 * MS;
    sent(&mut offloads);
    assert_eq!(ask(&mut offloads, now_us, 31), Asked::UnderWay);
    assert_eq!(ask(&mut offloads, now_us, 32), Asked::Not(NotSent::Breaker));
    let trial = sent(&mut offloads)[0];
    offloads.answered(now_us + MS, trial, &answer("walk"));
    assert_eq!(ask(&mut offloads, now_us + MS, 33), Asked::UnderWay);
    assert_eq!(offloads.pools()[0].state(), "closed");
}

#[test]
fn a_late_answer_is_told_and_one_that_never_comes_is_cancelled() {
    let mut offloads = offloads(OffloadLimits::default());
    ask(&mut offloads, 0, 1);
    ask(&mut offloads, 0, 2);
    let ids = sent(&mut offloads);
    offloads.tick(DEADLINE_US);
    assert_eq!(outcomes(&mut offloads).len(), 2);
    offloads.answered(DEADLINE_US + 1, ids[0], &answer("walk"));
    assert!(matches!(outcomes(&mut offloads)[..], [OffloadOutcome::Answered { job: 1, .. }]));
    assert_eq!((offloads.counts(0).late, offloads.counts(0).answered), (1, 0));
    assert_eq!(offloads.deadline_us(), DEADLINE_US + LATE_US);
    offloads.tick(DEADLINE_US + LATE_US);
    assert_eq!(outcomes(&mut offloads), [OffloadOutcome::Over { job: 2 }]);
    assert_eq!(offloads.output(), Some(OffloadOutput::Cancel { uplink: 0, id: ids[1] }));
    offloads.answered(DEADLINE_US + LATE_US, ids[1], &answer("walk"));
    assert_eq!((outcomes(&mut offloads), offloads.in_flight()), (Vec::new(), 0), "nobody knows it any more");
}

#[test]
fn a_pool_that_is_busy_is_left_alone_for_as_long_as_it_says() {
    let mut offloads = offloads(OffloadLimits::default());
    for job in 1..=6 {
        let now_us = job * 1_000 * MS;
        assert_eq!(ask(&mut offloads, now_us, job), Asked::UnderWay, "six refusals open no breaker");
        let id = sent(&mut offloads)[0];
        offloads.answered(now_us + MS, id, &refusal(RefusalKind::Busy, 700));
        assert_eq!(outcomes(&mut offloads), [OffloadOutcome::Over { job }]);
        assert_eq!(ask(&mut offloads, now_us + 700 * MS, job + 10), Asked::Not(NotSent::Busy));
    }
    assert_eq!(offloads.counts(0).refused_busy, 6);
    let window = [9.0, 8.0, 7.0, 6.5];
    let critical = Ask {
        job: 20,
        stream: 0,
        class: Class::Critical,
        purpose: Purpose::Doubt,
        policy: &policy(),
        pool: Some(0),
        uplinks: &[0],
        window: &window,
    };
    assert_eq!(offloads.ask(6_500 * MS, &critical), Asked::UnderWay, "it may have time for what matters more");
    let id = sent(&mut offloads)[0];
    offloads.answered(6_501 * MS, id, &answer("walk"));
    for job in 21..=23 {
        let now_us = job * 1_000 * MS;
        ask(&mut offloads, now_us, job);
        let id = sent(&mut offloads)[0];
        offloads.answered(now_us, id, &refusal(RefusalKind::Denied, 0));
    }
    assert_eq!((offloads.counts(0).refused, offloads.pools()[0].state()), (3, "open"), "who may not ask stops asking");
}

#[test]
fn the_same_window_is_asked_about_once() {
    let mut offloads = offloads(OffloadLimits::default());
    let stuck = |offloads: &mut Offloads, now_us, job| ask_about(offloads, now_us, job, 0.25, &policy());
    stuck(&mut offloads, 0, 1);
    assert_eq!(stuck(&mut offloads, 50 * MS, 2), Asked::UnderWay);
    let ids = sent(&mut offloads);
    assert_eq!(ids.len(), 1);
    offloads.tick(DEADLINE_US);
    assert_eq!(outcomes(&mut offloads), [OffloadOutcome::Overdue { job: 1 }], "each has its own deadline");
    offloads.answered(DEADLINE_US + MS, ids[0], &answer("walk"));
    assert_eq!(outcomes(&mut offloads).len(), 2);
    let counts = offloads.counts(0);
    assert_eq!((counts.sent, counts.shared, counts.late, counts.answered), (1, 1, 1, 1));
    assert!(matches!(stuck(&mut offloads, 30_000 * MS, 3), Asked::Known(answer) if &*answer.verdict.label == "walk"));
    assert_eq!(offloads.counts(0).known, 1);
    assert_eq!(stuck(&mut offloads, 90_000 * MS, 4), Asked::UnderWay, "after a minute it is asked about again");
}

#[test]
fn what_may_be_sent_has_limits_and_each_has_its_count() {
    let mut offloads = offloads(OffloadLimits { requests_per_hour: 20, bytes_per_hour: 300 });
    let spaced = OffloadPolicy { spacing_us: 50 * MS, ..policy() };
    assert_eq!(ask_about(&mut offloads, 0, 1, 1.0, &spaced), Asked::UnderWay);
    assert_eq!(ask_about(&mut offloads, 49 * MS, 2, 2.0, &spaced), Asked::Not(NotSent::Spacing));
    for job in 3..3 + IN_FLIGHT_MAX as u64 - 1 {
        assert_eq!(ask(&mut offloads, 50 * MS, job), Asked::UnderWay);
    }
    assert_eq!(ask(&mut offloads, 50 * MS, 100), Asked::Not(NotSent::InFlight));
    for id in sent(&mut offloads) {
        offloads.answered(51 * MS, id, &answer("walk"));
    }
    // 16 bytes each: four values of int16, and two scales.
    let last: Vec<Asked> = (101..106).map(|job| ask(&mut offloads, 60 * MS, job)).collect();
    assert_eq!(last[2..], [Asked::Not(NotSent::HourBytes), Asked::Not(NotSent::HourBytes), Asked::Not(NotSent::HourBytes)]);
    offloads.set_limits(OffloadLimits { requests_per_hour: 18, bytes_per_hour: 1 << 20 });
    assert_eq!(ask(&mut offloads, 61 * MS, 110), Asked::Not(NotSent::HourRequests));
    assert_eq!(offloads.hour(), [(18, 18), (18 * 16, 1 << 20)]);
    let counts = offloads.counts(0);
    let not_sent: u64 = counts.not_sent.iter().sum();
    assert_eq!((counts.sent, not_sent, counts.sent_bytes), (18, 6, 288));
    assert!(counts.by_word().any(|(word, count)| word == "hour_bytes" && count == 3));
}

#[test]
fn an_uplink_that_is_lost_ends_its_requests_and_says_nothing_of_the_pool() {
    let mut offloads = offloads(OffloadLimits::default());
    (1..=5).for_each(|job| assert_eq!(ask(&mut offloads, 0, job), Asked::UnderWay));
    offloads.uplink_lost(MS, 0);
    assert_eq!((outcomes(&mut offloads).len(), offloads.counts(0).lost), (5, 5));
    assert_eq!(ask(&mut offloads, 2 * MS, 6), Asked::Not(NotSent::NoWay));
    offloads.told(3 * MS, 1, PoolViews { pools: vec![view("a")] });
    assert_eq!((ask(&mut offloads, 4 * MS, 7), offloads.pools()[0].state()), (Asked::UnderWay, "closed"));
    // More pools than are remembered.
    let many = (0..POOLS_MAX + 3).map(|at| view(&format!("pool-{at}"))).collect();
    offloads.told(5 * MS, 1, PoolViews { pools: many });
    assert_eq!((offloads.pools().len(), offloads.pools_ignored()), (POOLS_MAX, 4));
    assert!(!offloads.pools()[0].is_reached(), "what is not told of again is gone");
}

#[test]
fn audits_leave_places_and_half_of_the_budgets_to_windows_in_doubt() {
    let mut offloads = offloads(OffloadLimits { requests_per_hour: 10, ..OffloadLimits::default() });
    assert_eq!((audit(&mut offloads, 0, 1), audit(&mut offloads, 0, 2)), (Asked::UnderWay, Asked::UnderWay));
    assert_eq!(audit(&mut offloads, 0, 3), Asked::Not(NotSent::InFlight));
    let first = offloads.output();
    assert!(
        matches!(first, Some(OffloadOutput::Send { class: Class::Bulk, purpose: Purpose::Audit, .. })),
        "as what matters least: {first:?}"
    );
    assert_eq!(
        ask_about(&mut offloads, 0, 4, 1.0, &policy()),
        Asked::UnderWay,
        "a doubt does not wait for an audit of its window"
    );
    let ids = sent(&mut offloads);
    ids.iter().for_each(|&id| offloads.answered(MS, id, &answer("walk")));
    offloads.failed(MS, 1);
    assert_eq!((audit(&mut offloads, 2 * MS, 5), audit(&mut offloads, 2 * MS, 6)), (Asked::UnderWay, Asked::UnderWay));
    sent(&mut offloads).iter().for_each(|&id| offloads.answered(3 * MS, id, &answer("walk")));
    assert_eq!(audit(&mut offloads, 4 * MS, 7), Asked::Not(NotSent::HourRequests), "five of ten are used");
    assert_eq!(ask(&mut offloads, 4 * MS, 8), Asked::UnderWay);
    let counts = offloads.counts(0);
    assert_eq!((counts.audits_sent, counts.audits_answered, counts.audits_unanswered, counts.audits_not_sent), (4, 3, 1, 2));
    assert_eq!((counts.sent, counts.answered, counts.not_sent.iter().sum::<u64>()), (6, 1, 0));
}

#[test]
fn what_becomes_of_an_audit_says_nothing_of_its_pool_and_none_is_a_trial() {
    let mut offloads = offloads(OffloadLimits::default());
    for job in 1..=10 {
        assert_eq!(audit(&mut offloads, 0, job), Asked::UnderWay);
        let id = sent(&mut offloads)[0];
        match job {
            1..=5 => offloads.failed(MS, id),
            _ => offloads.answered(MS, id, &refusal(RefusalKind::Failed, 0)),
        }
    }
    assert_eq!((offloads.pools()[0].state(), offloads.counts(0).audits_unanswered), ("closed", 10));
    // One that nobody answers ends by itself, without anybody's waiting for it.
    assert_eq!(audit(&mut offloads, MS, 11), Asked::UnderWay);
    outcomes(&mut offloads);
    offloads.tick(MS + 5_000_000);
    assert_eq!(outcomes(&mut offloads), []);
    offloads.tick(MS + AUDIT_US);
    assert_eq!(outcomes(&mut offloads), [OffloadOutcome::Over { job: 11 }]);
    assert_eq!((offloads.pools()[0].state(), offloads.in_flight(), offloads.counts(0).overdue), ("closed", 0, 0));
    // Doubts open the breaker, and the trial after it is a doubt again.
    for job in 21..=23 {
        assert_eq!(ask(&mut offloads, 20_000 * MS, job), Asked::UnderWay);
    }
    offloads.tick(20_000 * MS + DEADLINE_US);
    assert_eq!(offloads.pools()[0].state(), "open");
    let later_us = 22_000 * MS;
    assert_eq!(audit(&mut offloads, later_us, 31), Asked::Not(NotSent::Breaker));
    assert_eq!(ask(&mut offloads, later_us, 32), Asked::UnderWay);
}
