use super::*;

#[test]
fn a_round_trip_counts_once_on_the_way_and_acknowledgements_apart() {
    let mut site = Site::new(&shape("box-1", 2, 3)).expect("a site");
    site.uplink(7 * SECOND_US, 0, &healthy(5 * SECOND_US, 1.0));
    let key = |node| site.graph().key(node).to_string();
    let known: Vec<String> = site
        .graph()
        .edges()
        .filter(|(edge, ..)| !site.graph().estimate(*edge, 0).is_empty())
        .map(|(_, from, to)| format!("{} {}", key(from), key(to)))
        .collect();
    assert_eq!(known, ["uplink/box-1/wwan0 router/box-1-line-0", "ingest/ingest-0 gateway/box-1"]);
    let estimate = site.estimate(9 * SECOND_US, 0).expect("an uplink");
    assert_eq!((estimate.age_us, estimate.trust), (4 * SECOND_US, 1.0));
    assert_eq!(estimate.get(Quantity::RttUs), Some(40_000.0));
    let shared: Vec<String> = site.shared(1).iter().map(NodeKey::to_string).collect();
    assert_eq!(shared, ["router/box-1-line-1", "carrier/carrier-1", "ingest/ingest-1"]);
}

#[test]
fn an_uplink_of_which_nothing_is_known_says_so() {
    let mut site = Site::new(&shape("box-1", 1, 1)).expect("a site");
    let never = UplinkEstimate { updated_us: 0, state: UplinkState::Yellow, ..healthy(0, 1.0) };
    site.uplink(SECOND_US, 0, &never);
    let estimate = site.estimate(SECOND_US, 0).expect("an uplink");
    assert_eq!((estimate.confidence(), estimate.get(Quantity::RttUs)), (0.0, None));
    assert_eq!((estimate.state, estimate.get(Quantity::CapacityBps)), (Some(EdgeState::Yellow), Some(5e6)));
}

#[test]
fn odd_shapes_are_refused() {
    for name in ["", "a/b"] {
        assert!(Site::new(&shape(name, 1, 1)).is_err(), "{name}");
    }
    let mut odd = shape("box-1", 1, 1);
    odd.uplinks[0].carrier = Some("a\tb".to_owned());
    assert!(matches!(Site::new(&odd), Err(SubgraphError::Name(NameError::Name(_)))));
}

#[test]
fn an_uplink_is_taken_only_where_its_zone_is_allowed() {
    let mut shape = shape("box-1", 2, 1);
    shape.uplinks[1].zone = Some("us-east".to_owned());
    let mut site = Site::new(&shape).expect("a site");
    site.uplink(SECOND_US, 0, &healthy(SECOND_US, 20.0));
    site.uplink(SECOND_US, 1, &healthy(SECOND_US, 1.0));
    let others = Federation::new(FederationLimits::default());
    let view = View::new(Snapshot::of_subgraph(SECOND_US, site.graph(), &others)).expect("a view");
    let stream = view.find("stream/box-1/vibration-0").expect("a stream");
    let by = |zones: &[&str]| {
        let zones = zones.iter().map(ToString::to_string).collect();
        let path = view.path(&stream, None, &Constraints { zones, ..Constraints::default() }).expect("an answer");
        path.best.map(|route| route.hops[1].to.to_string())
    };
    assert_eq!(by(&[]).as_deref(), Some("uplink/box-1/wwan1"));
    assert_eq!(by(&["eu-central"]).as_deref(), Some("uplink/box-1/wwan0"), "the better one leads to us-east");
    assert_eq!(by(&["eu-central", "us-east"]).as_deref(), Some("uplink/box-1/wwan1"));
    assert_eq!(by(&["us-east"]), None, "the box itself stands elsewhere");
}
