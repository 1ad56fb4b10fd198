//! Who is blamed, and who is not.

use proptest::prelude::*;
use prost::Message as _;

use super::*;

/// Sites with one uplink each, and what the cloud knows of them.
struct Fleet {
    sites: Vec<(Owner, Site, Publisher, Peer)>,
    cloud: Federation,
    causes: Causes,
    now_us: u64,
}

impl Fleet {
    /// `carriers` in turn, all to one ingest node.
    fn new(sites: usize, carriers: usize) -> Fleet {
        let make = |at: usize| {
            let shape = SiteShape {
                gateway: format!("box-{at:04}"),
                uplinks: vec![UplinkShape {
                    name: "lte".to_owned(),
                    carrier: Some(format!("carrier-{}", at % carriers)),
                    ingest: "ingest-1".to_owned(),
                    ..UplinkShape::default()
                }],
                ..SiteShape::default()
            };
            let site = Site::new(&shape).expect("a site");
            (site.graph().owner().clone(), site, Publisher::new(0, 1, PublisherLimits::default()), Peer::default())
        };
        Fleet {
            sites: (0..sites).map(make).collect(),
            cloud: Federation::new(FederationLimits::default()),
            causes: Causes::new(CauseLimits::default()),
            now_us: SECOND_US,
        }
    }

    /// A second passes: each site sees what `seen` says, tells it, and the cloud judges.
    fn second(&mut self, seen: impl Fn(usize) -> Option<UplinkEstimate>) {
        self.now_us += SECOND_US;
        for (at, (owner, site, publisher, peer)) in self.sites.iter_mut().enumerate() {
            if let Some(health) = seen(at) {
                site.uplink(self.now_us, 0, &UplinkEstimate { updated_us: self.now_us, ..health });
            }
            if let Some(bytes) = publisher.next(self.now_us, site.graph(), peer) {
                self.cloud.merge(self.now_us, owner, &bytes).expect("a sound digest");
            }
        }
        self.causes.judge(self.now_us, &self.cloud);
    }

    fn named(&self) -> Vec<String> {
        self.causes.named().map(|cause| format!("{} {}", cause.node, cause.trouble.name())).collect()
    }

    fn advice(&self, site: usize) -> Advice {
        let part = self.cloud.part(&self.sites[site].0).expect("a part");
        Advice::new(self.now_us, self.causes.concerning(&self.cloud, part))
    }
}

fn red() -> UplinkEstimate {
    UplinkEstimate { state: UplinkState::Red, ..healthy(0, 1.0) }
}

fn late_acks() -> UplinkEstimate {
    UplinkEstimate { ack_delay_us: Some(4_000_000), ..healthy(0, 1.0) }
}

#[test]
fn a_carrier_that_fails_for_most_of_its_sites_is_named_and_they_are_told() {
    let mut fleet = Fleet::new(90, 3);
    for _ in 0..5 {
        fleet.second(|_| Some(healthy(0, 1.0)));
    }
    assert_eq!(fleet.named(), [""; 0]);
    // 24 of the 30 sites of carrier 1; the others are well.
    for _ in 0..4 {
        fleet.second(|at| Some(if at % 3 == 1 && at < 72 { red() } else { healthy(0, 1.0) }));
    }
    assert_eq!(fleet.named(), ["carrier/carrier-1 down"]);
    let cause = fleet.causes.named().next().expect("a cause").clone();
    assert_eq!((cause.affected, cause.share), (24, 0.8));
    assert!(cause.confidence > 0.99, "{}", cause.confidence);
    assert_eq!(fleet.advice(0), Advice::default(), "a site of another carrier hears nothing");
    // A site that still works hears of it.
    let advice = fleet.advice(88);
    assert_eq!(advice.items.len(), 1);
    let mut box_88 = Neighbours::default();
    box_88.hear(0, &advice.encode_to_vec()).expect("sound advice");
    let shared = fleet.sites[88].1.shared(0);
    let (node, concern) = box_88.about(0, shared).expect("a concern");
    assert_eq!((node.to_string().as_str(), concern.trouble, concern.share), ("carrier/carrier-1", Trouble::Down, 0.8));
    assert!((concern.slowdown() - (1.0 + 4.0 * concern.confidence)).abs() < 1e-9);
    let later = box_88.about(60 * SECOND_US, shared).expect("a concern").1;
    assert!((later.confidence - concern.confidence / 2.0).abs() < 0.01 && later.age_us >= 60 * SECOND_US);
    assert!(later.slowdown() < concern.slowdown());
    assert_eq!(box_88.about(600 * SECOND_US, shared), None, "what nobody repeats is forgotten");
}

#[test]
fn an_ingest_node_that_is_slow_for_everyone_is_named_and_no_carrier() {
    let mut fleet = Fleet::new(40, 4);
    for _ in 0..5 {
        fleet.second(|_| Some(late_acks()));
    }
    assert_eq!(fleet.named(), ["ingest/ingest-1 slow"]);
}

#[test]
fn an_ingest_node_that_is_down_is_named_and_not_its_carriers() {
    let mut fleet = Fleet::new(40, 4);
    for _ in 0..5 {
        fleet.second(|_| Some(red()));
    }
    assert_eq!(fleet.named(), ["ingest/ingest-1 down"]);
}

#[test]
fn two_carriers_failing_are_two_causes() {
    let mut fleet = Fleet::new(80, 4);
    for _ in 0..5 {
        let lossy = UplinkEstimate { loss: 0.2, ..healthy(0, 1.0) };
        fleet.second(|at| {
            Some(if at % 4 == 0 {
                red()
            } else if at % 4 == 3 {
                lossy
            } else {
                healthy(0, 1.0)
            })
        });
    }
    assert_eq!(fleet.named(), ["carrier/carrier-0 down", "carrier/carrier-3 degraded"]);
}

#[test]
fn three_carriers_of_four_are_not_the_cloud_while_the_fourth_works() {
    let mut fleet = Fleet::new(80, 4);
    for _ in 0..5 {
        fleet.second(|at| Some(if at % 4 == 2 { healthy(0, 1.0) } else { red() }));
    }
    assert_eq!(fleet.named(), ["carrier/carrier-0 down", "carrier/carrier-1 down", "carrier/carrier-3 down"]);
}

#[test]
fn where_everything_is_bad_at_random_nothing_stands_out() {
    let mut fleet = Fleet::new(200, 40);
    for second in 0..40 {
        fleet.second(|at| Some(if (at * 7 + second * 13 + at / 9 * 5) % 10 < 4 { red() } else { healthy(0, 1.0) }));
        assert_eq!(fleet.named(), [""; 0], "second {second}");
    }
}

#[test]
fn a_carrier_whose_failure_has_reached_a_third_of_its_sites_is_named_and_the_cloud_is_not() {
    let mut fleet = Fleet::new(60, 2);
    for _ in 0..5 {
        fleet.second(|at| Some(if at % 2 == 1 && at < 22 { red() } else { healthy(0, 1.0) }));
    }
    assert_eq!(fleet.named(), ["carrier/carrier-1 down"], "11 of 30");
}

#[test]
fn two_sites_have_nothing_in_common_but_chance() {
    let mut fleet = Fleet::new(60, 30);
    for _ in 0..5 {
        fleet.second(|at| Some(if at % 30 == 7 { red() } else { healthy(0, 1.0) }));
    }
    assert_eq!(fleet.named(), [""; 0]);
}

#[test]
fn what_nobody_has_confirmed_for_long_convinces_nobody() {
    let mut fleet = Fleet::new(30, 3);
    for _ in 0..5 {
        fleet.second(|at| Some(if at % 3 == 1 { red() } else { healthy(0, 1.0) }));
    }
    assert_eq!(fleet.named().len(), 1);
    // The sites of that carrier fall silent: what they said loses its weight.
    for _ in 0..200 {
        fleet.second(|at| (at % 3 != 1).then(|| healthy(0, 1.0)));
    }
    assert_eq!(fleet.named(), [""; 0]);
}

#[test]
fn a_cause_that_comes_and_goes_is_named_once() {
    let mut fleet = Fleet::new(30, 3);
    for second in 0..120 {
        let is_bad = second / 10 % 2 == 0;
        fleet.second(|at| Some(if at % 3 == 1 && is_bad { red() } else { healthy(0, 1.0) }));
    }
    let counters = fleet.causes.counters();
    assert_eq!((counters.raised, counters.cleared), (1, 0), "{:?}", fleet.named());
    for _ in 0..31 {
        fleet.second(|_| Some(healthy(0, 1.0)));
    }
    assert_eq!((fleet.causes.counters().cleared, fleet.named().len()), (1, 0));
}

#[test]
fn advice_is_bounded_and_odd_advice_harmless() {
    let long = "x".repeat(NODE_NAME_LEN_MAX);
    let cause = |at: usize| Cause {
        node: format!("carrier/{:03}{}", at, &long[3..]).parse().expect("a node"),
        trouble: Trouble::Down,
        affected: u32::MAX,
        share: 1.0,
        confidence: 1.0 - at as f64 / 100.0,
        since_us: 0,
        seen_us: 0,
    };
    let causes: Vec<Cause> = (0..20).map(cause).collect();
    let bytes = Advice::new(u64::MAX, causes.iter()).encode_to_vec();
    assert!(bytes.len() <= ADVICE_LEN_MAX, "{}", bytes.len());
    let mut neighbours = Neighbours::default();
    neighbours.hear(0, &bytes).expect("sound advice");
    assert!(matches!(neighbours.hear(0, &[0; ADVICE_LEN_MAX + 1]), Err(AdviceError::TooLong { .. })));
    assert!(matches!(neighbours.hear(0, b"\xff"), Err(AdviceError::Malformed(_))));
    let item = |node: &str, trouble| AdviceItem {
        node: node.to_owned(),
        trouble,
        confidence_permille: 9_999,
        ..AdviceItem::default()
    };
    let odd = Advice { items: vec![item("no node", 1), item("carrier/a", 4), item("carrier/a", 0), item("carrier/b", 1)] };
    neighbours.hear(0, &odd.encode_to_vec()).expect("sound advice");
    let nodes = ["carrier/a", "carrier/b"].map(|node| node.parse().expect("a node"));
    let (node, concern) = neighbours.about(0, &nodes).expect("a concern");
    assert_eq!((node.to_string().as_str(), concern.confidence, neighbours.ignored()), ("carrier/b", 1.0, 3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn liars_neither_make_a_cause_nor_hide_one(seed in any::<u64>(), fails in any::<bool>()) {
        let mut fleet = Fleet::new(120, 4);
        // One site in ten says every few seconds something else that is not true.
        let draw = |at: usize, second: u64| {
            let mut x = seed ^ (at as u64) << 32 ^ second;
            for _ in 0..3 {
                x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
            }
            x ^ x >> 33
        };
        let mut liars: Vec<usize> = (0..120).collect();
        liars.sort_by_key(|at| draw(*at, 1 << 20));
        liars.truncate(12);
        for second in 0..30 {
            fleet.second(|at| {
                let lie = [red(), late_acks(), UplinkEstimate { loss: 0.5, ..healthy(0, 1.0) }, healthy(0, 1.0)];
                Some(if liars.contains(&at) {
                    lie[(draw(at, second / 4) % 4) as usize]
                } else if fails && at % 4 == 2 {
                    red()
                } else {
                    healthy(0, 1.0)
                })
            });
            let named = fleet.named();
            let expected: &[&str] = if fails && second >= 3 { &["carrier/carrier-2 down"] } else { &[] };
            let is_early = fails && second < 3;
            prop_assert!(is_early || named == expected, "second {second}: {named:?}");
        }
    }
}
