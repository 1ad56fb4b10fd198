use super::*;

/// A part with this many uplinks and streams, seen by the cloud.
fn seen(cloud: &mut Federation, gateway: &str, version: u64, uplinks: usize, streams: usize) {
    let site = Site::new(&shape(gateway, uplinks, streams)).expect("a site");
    let mut publisher = Publisher::new(version, 1, PublisherLimits::default());
    let bytes = publisher.next(SECOND_US, site.graph(), &mut Peer::default()).expect("a digest");
    cloud.merge(0, site.graph().owner(), &bytes).expect("a sound digest");
}

#[test]
fn only_what_was_never_seen_is_new() {
    let mut cloud = Federation::new(FederationLimits::default());
    let mut talkers = Talkers::new(0, TalkerLimits { learn_us: 10 * SECOND_US, ..TalkerLimits::default() });
    seen(&mut cloud, "box-1", 1, 1, 2);
    let from = owner("gateway/box-1");
    assert_eq!(talkers.observe(SECOND_US, cloud.part(&from).expect("a part")), 0, "everything is new at first");
    assert_eq!(talkers.observe(20 * SECOND_US, cloud.part(&from).expect("a part")), 0);
    seen(&mut cloud, "box-1", 2, 2, 2);
    // The second uplink: to its line, on to its carrier, and on to its ingest node.
    assert_eq!(talkers.observe(21 * SECOND_US, cloud.part(&from).expect("a part")), 3);
    let talks: Vec<String> = talkers.recent().map(|talk| format!("{} {}", talk.from, talk.to)).collect();
    let expected = [
        "uplink/box-1/wwan1 router/box-1-line-1",
        "router/box-1-line-1 carrier/carrier-1",
        "carrier/carrier-1 ingest/ingest-1",
    ];
    assert_eq!(talks, expected);
    assert_eq!(talkers.observe(22 * SECOND_US, cloud.part(&from).expect("a part")), 0);
}

#[test]
fn memory_is_bounded_and_the_longest_unseen_is_forgotten() {
    let mut cloud = Federation::new(FederationLimits::default());
    let limits = TalkerLimits { pairs_max: 12, recent_max: 3, learn_us: 0 };
    let mut talkers = Talkers::new(0, limits);
    let parts = ["gateway/a", "gateway/b", "gateway/c"].map(owner);
    for (at, part) in parts.iter().enumerate() {
        seen(&mut cloud, part.name(), 1, 1, 2);
        // Each has five pairs of its own; what carrier and ingest node do they have in common.
        let new = talkers.observe(at as u64 * SECOND_US, cloud.part(part).expect("a part"));
        assert_eq!(new, if at == 0 { 5 } else { 4 });
    }
    assert_eq!((talkers.len(), talkers.counters().forgotten, talkers.recent().count()), (12, 1, 3));
    assert_eq!(talkers.counters().dropped, 10);
    assert_eq!(talkers.observe(9 * SECOND_US, cloud.part(&parts[2]).expect("a part")), 0);
    // Each of the others that is remembered again makes one more be forgotten.
    assert_ne!(talkers.observe(9 * SECOND_US, cloud.part(&parts[0]).expect("a part")), 0, "one of its pairs was forgotten");
    assert_eq!(talkers.len(), 12);
}
