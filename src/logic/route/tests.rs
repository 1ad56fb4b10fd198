use proptest::prelude::*;

use super::*;
use crate::policy::{Meter, StreamFidelity, StreamPolicy};

const SECOND_US: u64 = 1_000_000;

fn policy(uplinks: Vec<UplinkPolicy>) -> Policy {
    let stream = StreamPolicy {
        name: "s".into(),
        filters: Vec::new(),
        class: Class::Normal,
        fidelity: StreamFidelity::Raw,
        format: crate::payload::PayloadFormat::Opaque(crate::payload::OpaqueFormat {}),
        aggregate: None,
        keep: None,
        model: None,
        ack_record: false,
        zones: Vec::new(),
        value: None,
        offload: None,
        truth: None,
    };
    let durability = crate::lanes::Durability::Disk;
    Policy {
        lanes: [crate::lanes::LanePolicy {
            durability,
            cap_bytes: 1,
            overflow: crate::lanes::Overflow::Evict,
            ttl_us: None,
            share: 1,
        }; 4],
        lanes_limits: crate::lanes::LanesLimits { memory_bytes: 1, block_target_bytes: 1, early_commit_bytes_per_day: 0 },
        streams: vec![stream],
        users: Vec::new(),
        connections: Default::default(),
        connections_max: 1,
        router: Default::default(),
        brokers: Vec::new(),
        session: crate::uplink::SessionLimits { ping_us: 1, silence_us: 1, connect_us: 1, backoff_us: (1, 1) },
        uplinks,
        price: Default::default(),
        critical_copies: 1,
        offload: Default::default(),
    }
}

fn view(rtt_ms: u64) -> UplinkView {
    UplinkView {
        is_up: true,
        estimate: UplinkEstimate {
            rtt_us: rtt_ms * 1_000,
            jitter_us: 0,
            loss: 0.0,
            goodput_bps: 1e7,
            capacity_bps: 1e7,
            queueing_delay_us: 0,
            ack_delay_us: None,
            cwnd_bytes: 0,
            error_ratio: None,
            state: UplinkState::Green,
            breaker: BreakerState::Closed,
            confidence: 1.0,
            updated_us: 0,
        },
        allowance: None,
        paid_price: None,
        advice: 1.0,
        load: LoadLevel::Idle,
    }
}

fn bad(rtt_ms: u64) -> UplinkView {
    let mut view = view(rtt_ms);
    view.estimate.state = UplinkState::Red;
    view.estimate.breaker = BreakerState::Open { until_us: u64::MAX };
    view
}

fn two() -> Policy {
    policy(vec![UplinkPolicy::free("a", 1), UplinkPolicy::free("b", 1)])
}

fn metered(month_bytes: Option<u64>) -> UplinkPolicy {
    UplinkPolicy { meter: Some(Meter { money_per_mb: 1.0, month_bytes }), ..UplinkPolicy::free("lte", 1) }
}

#[test]
fn the_cheaper_of_two_good_ones_is_first_and_a_bad_one_is_left_at_once() {
    let (policy, views) = (two(), [view(200), view(20)]);
    let first = route(0, Class::High, &policy, &views, 0.0, None);
    assert_eq!(first.usable().collect::<Vec<_>>(), [1, 0]);
    let next = route(1, Class::High, &policy, &[view(200), bad(20)], 0.0, Some(&first));
    assert_eq!(next.usable().collect::<Vec<_>>(), [0], "what is bad is not used while another is good");
    assert_eq!(next.since_us, 1);
}

#[test]
fn it_comes_back_only_when_better_by_the_margin_for_the_hold() {
    let policy = two();
    let at = |now_us, views: &[UplinkView], last: &LaneRoute| route(now_us, Class::High, &policy, views, 0.0, Some(last));
    let first = route(0, Class::High, &policy, &[view(100), view(200)], 0.0, None);
    let better = [view(200), view(20)];
    let held = at(HOLD_US - 1, &better, &first);
    assert_eq!((held.first(), held.since_us), (Some(0), 0), "held");
    assert_eq!(at(HOLD_US, &better, &held).first(), Some(1));
    assert_eq!(at(HOLD_US, &[view(100), view(90)], &held).first(), Some(0), "not by the margin");
}

#[test]
fn one_that_slows_to_a_crawl_is_left_at_once_and_not_gone_back_to_within_the_hold() {
    let policy = two();
    let at = |now_us, views: &[UplinkView], last: &LaneRoute| route(now_us, Class::High, &policy, views, 0.0, Some(last));
    let first = route(0, Class::High, &policy, &[view(20), view(40)], 0.0, None);
    let crawls = at(1, &[view(3_000), view(40)], &first);
    assert_eq!((crawls.first(), crawls.since_us), (Some(1), 1));
    let swapped = [view(20), view(9_000)];
    assert_eq!(at(HOLD_US, &swapped, &crawls).first(), Some(1), "however slow the other is now");
    assert_eq!(at(HOLD_US + 1, &swapped, &crawls).first(), Some(0));
}

#[test]
fn when_all_are_bad_or_down_the_best_of_them_is_used() {
    let policy = two();
    assert_eq!(route(0, Class::High, &policy, &[bad(20), bad(200)], 0.0, None).first(), Some(0));
    let down = [20, 200].map(|rtt| UplinkView { is_up: false, ..bad(rtt) });
    assert_eq!(route(0, Class::High, &policy, &down, 0.0, None).usable().count(), 2, "whatever comes up first");
}

#[test]
fn a_stand_in_is_used_only_while_its_uplink_does_not_work() {
    let stand_in = UplinkPolicy { stands_in_for: Some(0), ..UplinkPolicy::free("a/tcp", 1) };
    let policy = policy(vec![UplinkPolicy::free("a", 1), stand_in]);
    assert_eq!(route(0, Class::High, &policy, &[view(200), view(20)], 0.0, None).usable().collect::<Vec<_>>(), [0]);
    let mut blocked = bad(200);
    blocked.estimate.state = UplinkState::Blocked;
    assert_eq!(route(0, Class::High, &policy, &[blocked, view(20)], 0.0, None).usable().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_metered_one_without_a_budget_is_for_when_no_free_one_works() {
    let policy = policy(vec![UplinkPolicy::free("eth", 1), metered(None)]);
    let of = |class, views: &[UplinkView]| route(0, class, &policy, views, 0.0, None).usable().collect::<Vec<_>>();
    assert_eq!(of(Class::Normal, &[view(500), view(20)]), [0]);
    assert_eq!(of(Class::Critical, &[view(500), view(20)]), [1, 0], "a critical record is not held up for money");
    assert_eq!(of(Class::Normal, &[bad(500), view(20)]), [1]);
}

#[test]
fn a_months_bytes_are_law_and_their_last_part_is_for_critical() {
    let policy = policy(vec![metered(Some(1_000))]);
    let of = |class, critical_bytes, others_bytes| {
        let view = UplinkView { allowance: Some(Allowance { critical_bytes, others_bytes }), ..view(20) };
        route(0, class, &policy, &[view], 0.0, None).first()
    };
    assert_eq!((of(Class::Normal, 10, 1), of(Class::Normal, 10, 0)), (Some(0), None));
    assert_eq!((of(Class::Critical, 10, 0), of(Class::Critical, 0, 0)), (Some(0), None));
}

#[test]
fn what_neighbours_say_of_an_uplink_weighs_but_forbids_nothing() {
    let policy = two();
    let warned = |advice| UplinkView { advice, ..view(100) };
    assert_eq!(route(0, Class::High, &policy, &[warned(5.0), view(200)], 0.0, None).usable().collect::<Vec<_>>(), [1, 0]);
    assert_eq!(route(0, Class::High, &policy, &[warned(1.0), view(200)], 0.0, None).first(), Some(0));
}

fn views() -> impl Strategy<Value = Vec<UplinkView>> {
    let states =
        prop_oneof![Just(UplinkState::Green), Just(UplinkState::Yellow), Just(UplinkState::Red), Just(UplinkState::Blocked)];
    let breakers = prop_oneof![
        Just(BreakerState::Closed),
        Just(BreakerState::Open { until_us: 9 }),
        Just(BreakerState::HalfOpen { closes_us: None })
    ];
    let allowance = prop::option::of((0u64..3, 0u64..3));
    let view = (any::<bool>(), states, breakers, 1u64..2_000, 0.0f64..1.0, allowance, prop::option::of(0.0f64..2.0));
    let view = view.prop_map(|(is_up, state, breaker, rtt_ms, loss, allowance, paid_price)| {
        let mut one = self::view(rtt_ms);
        (one.is_up, one.paid_price) = (is_up, paid_price);
        (one.estimate.state, one.estimate.breaker, one.estimate.loss) = (state, breaker, loss);
        one.allowance = allowance.map(|(more, others_bytes)| Allowance { critical_bytes: others_bytes + more, others_bytes });
        one
    });
    prop::collection::vec(view, 4)
}

/// Four uplinks of which some are for some classes, lead to a zone or cost money, and streams that care.
fn picky() -> Policy {
    let free = |name| UplinkPolicy::free(name, 1);
    let classes = [true, true, false, false];
    let mut policy = policy(vec![
        UplinkPolicy { zone: Some("eu".into()), ..free("a") },
        UplinkPolicy { classes, zone: Some("us".into()), ..free("b") },
        metered(Some(1_000)),
        UplinkPolicy { stands_in_for: Some(0), zone: Some("eu".into()), ..free("a/tcp") },
    ]);
    let mut confined = policy.streams[0].clone();
    (confined.class, confined.zones) = (Class::Bulk, vec!["eu".into()]);
    policy.streams.push(confined);
    policy
}

proptest! {
    #[test]
    fn no_hard_constraint_is_ever_broken_and_the_same_view_gives_the_same_route(
        steps in prop::collection::vec((0u64..20 * SECOND_US, views()), 1..20), lambda in 0.0f64..2.0,
    ) {
        let policy = picky();
        let mut last: [Option<LaneRoute>; 4] = Default::default();
        let mut now_us = 0;
        for (step_us, views) in steps {
            now_us += step_us;
            for class in Class::ALL {
                let before = last[class.index()].take();
                let route = |last| route(now_us, class, &policy, &views, lambda, last);
                let found = route(before.as_ref());
                prop_assert_eq!(&found, &route(before.as_ref()));
                prop_assert_eq!(found.candidates.len(), policy.uplinks.len());
                for uplink in found.usable() {
                    let (of, seen) = (&policy.uplinks[usize::from(uplink)], &views[usize::from(uplink)]);
                    prop_assert!(of.classes[class.index()]);
                    prop_assert!(class != Class::Bulk || of.zone.as_deref() == Some("eu"));
                    if let Some(allowance) = seen.allowance {
                        let is_critical = class == Class::Critical;
                        let left = if is_critical { allowance.critical_bytes } else { allowance.others_bytes };
                        prop_assert!(left > 0);
                    }
                    let is_good = |at: usize| standing(&views[at]) == Standing::Good;
                    prop_assert!(of.stands_in_for.is_none_or(|main| !is_good(main.into())));
                }
                last[class.index()] = Some(found);
            }
        }
    }

    #[test]
    fn nothing_that_repeats_makes_it_swing_faster_than_the_hold(
        period in prop::collection::vec((1u64..8 * SECOND_US, 1u64..10_000, 1u64..10_000), 1..12),
    ) {
        // Whatever costs do, each of two uplinks in equal order is gone back to at most once a hold.
        let policy = two();
        let (mut now_us, mut last, mut changes) = (0, None::<LaneRoute>, 0u64);
        for (step_us, a, b) in period.iter().cycle().take(400) {
            now_us += step_us;
            let next = route(now_us, Class::High, &policy, &[view(*a), view(*b)], 0.0, last.as_ref());
            changes += u64::from(last.as_ref().is_some_and(|last| last.first() != next.first()));
            last = Some(next);
        }
        prop_assert!(changes <= now_us / HOLD_US + 2, "{changes} changes in {} s", now_us / SECOND_US);
    }

    #[test]
    fn nothing_changes_without_a_cause(seen in views(), steps in prop::collection::vec(1u64..60 * SECOND_US, 1..10)) {
        let policy = picky();
        let first = route(0, Class::High, &policy, &seen, 0.5, None);
        let (mut now_us, mut last) = (0, first.clone());
        for step_us in steps {
            now_us += step_us;
            last = route(now_us, Class::High, &policy, &seen, 0.5, Some(&last));
            prop_assert_eq!(&last, &first);
        }
    }
}
