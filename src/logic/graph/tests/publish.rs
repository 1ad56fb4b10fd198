use prost::Message as _;

use super::*;

/// A site that publishes to one peer.
struct Sender {
    site: Site,
    publisher: Publisher,
    peer: Peer,
}

impl Sender {
    fn new(uplinks: usize, streams: usize) -> Sender {
        let site = Site::new(&shape("box-1", uplinks, streams)).expect("a site");
        let mut publisher = Publisher::new(0, 7, PublisherLimits::default());
        let peer = publisher.greeted(None);
        Sender { site, publisher, peer }
    }

    fn next(&mut self, now_us: u64) -> Option<Vec<u8>> {
        self.publisher.next(now_us, self.site.graph(), &mut self.peer)
    }

    /// All uplinks measured now, and what is sent for it.
    fn measured(&mut self, now_us: u64, size: f64) -> Option<Vec<u8>> {
        for uplink in 0..3 {
            self.site.uplink(now_us, uplink, &healthy(now_us, size * (1.0 + 0.1 * uplink as f64)));
        }
        self.next(now_us)
    }
}

#[test]
fn a_full_digest_of_3_uplinks_and_20_streams_stays_under_2_kb_and_a_delta_under_200_bytes() {
    let mut sender = Sender::new(3, 20);
    let full = sender.measured(SECOND_US, 1.0).expect("a full digest");
    // All of three uplinks changes at once: more than is typical.
    let all = sender.measured(3 * SECOND_US, 1.7).expect("a delta");
    // One uplink fails.
    let red = UplinkEstimate { state: UplinkState::Red, ..healthy(3 * SECOND_US, 1.7) };
    sender.site.uplink(4 * SECOND_US, 0, &red);
    let one = sender.next(4 * SECOND_US).expect("a delta");
    assert!(full.len() < 2_000, "{}", full.len());
    assert!(all.len() < 200 && one.len() < 60, "{} and {}", all.len(), one.len());
    assert_eq!(Digest::decode(&full[..]).expect("a digest").base, 0);
    assert_eq!(Digest::decode(&one[..]).expect("a digest").base, 2);
    let counters = sender.publisher.counters();
    assert_eq!((counters.fulls, counters.deltas, counters.versions), (1, 2, 3));
}

#[test]
fn what_does_not_matter_waits_for_the_refresh() {
    let mut sender = Sender::new(3, 20);
    sender.measured(SECOND_US, 1.0).expect("a full digest");
    for second in 2..31 {
        assert_eq!(sender.measured(second * SECOND_US, 1.0 + 0.003 * second as f64), None, "second {second}");
    }
    let refresh = sender.measured(31 * SECOND_US, 1.1).expect("the refresh");
    assert!(refresh.len() < 200, "{}", refresh.len());
    assert_eq!(sender.measured(32 * SECOND_US, 1.1), None);
    assert!(sender.measured(33 * SECOND_US, 1.3).is_some(), "a change by more than 15 %");
}

#[test]
fn changes_wait_for_the_interval_but_a_verdict_does_not() {
    let mut sender = Sender::new(3, 1);
    sender.measured(SECOND_US, 1.0).expect("a full digest");
    assert_eq!(sender.measured(SECOND_US + 500_000, 2.0), None);
    let red = UplinkEstimate { state: UplinkState::Red, ..healthy(SECOND_US, 1.0) };
    sender.site.uplink(SECOND_US + 600_000, 1, &red);
    assert!(sender.next(SECOND_US + 600_000).is_some());
}

#[test]
fn steady_evidence_stays_fresh_at_the_peer_and_ages_when_it_stops() {
    let mut sender = Sender::new(1, 1);
    let mut cloud = Federation::new(FederationLimits::default());
    let from = owner("gateway/box-1");
    let rtt = |cloud: &Federation, now_us| {
        let part = cloud.part(&from).expect("a part");
        let estimate = part.edges(now_us).map(|(.., estimate)| estimate).find(|e| e.get(Quantity::RttUs).is_some());
        estimate.expect("the uplink's")
    };
    for second in 1..=100 {
        if let Some(bytes) = sender.measured(second * SECOND_US, 1.0) {
            cloud.merge(second * SECOND_US, &from, &bytes).expect("merged");
        }
        assert!(rtt(&cloud, second * SECOND_US).age_us <= 30 * SECOND_US);
    }
    // The last word is of second 100.
    for second in 101..=400 {
        if let Some(bytes) = sender.next(second * SECOND_US) {
            cloud.merge(second * SECOND_US, &from, &bytes).expect("merged");
        }
        let age_us = rtt(&cloud, second * SECOND_US).age_us;
        if second > 107 {
            assert!(age_us.abs_diff((second - 100) * SECOND_US) <= SECOND_US, "{age_us} in second {second}");
        }
    }
    assert!(rtt(&cloud, 400 * SECOND_US).confidence() < 0.05);
    assert_eq!(rtt(&cloud, 500 * SECOND_US).age_us, 400 * SECOND_US, "the age grows without a word");
}

#[test]
fn a_reflashed_box_goes_on_above_what_was_seen_of_it() {
    let mut old = Sender::new(1, 1);
    let mut cloud = Federation::new(FederationLimits::default());
    let from = owner("gateway/box-1");
    for second in 1..50 {
        if let Some(bytes) = old.measured(second * SECOND_US, second as f64) {
            cloud.merge(0, &from, &bytes).expect("merged");
        }
    }
    let seen = cloud.stamp(&from).expect("a stamp");
    let mut new = Sender::new(1, 1);
    new.publisher = Publisher::new(0, 3, PublisherLimits::default());
    new.peer = new.publisher.greeted(cloud.stamp(&from));
    let bytes = new.measured(SECOND_US, 1.0).expect("a full digest");
    assert_eq!(cloud.merge(0, &from, &bytes), Ok(Merged::Taken { is_full: true }));
    assert!(cloud.stamp(&from).expect("a stamp") > seen);
    // The same life on a new connection goes on where it was.
    new.peer = new.publisher.greeted(cloud.stamp(&from));
    let bytes = new.measured(9 * SECOND_US, 2.0).expect("a delta");
    assert_eq!(cloud.merge(0, &from, &bytes), Ok(Merged::Taken { is_full: false }));
    assert_eq!((new.publisher.counters().raised, new.publisher.stamp().incarnation), (1, 1));
}

#[test]
fn a_new_shape_is_a_full_digest() {
    let mut sender = Sender::new(1, 1);
    sender.measured(SECOND_US, 1.0).expect("a full digest");
    sender.site = Site::new(&shape("box-1", 1, 2)).expect("a site");
    let bytes = sender.measured(SECOND_US + 1, 1.0);
    let bytes = bytes.or_else(|| sender.measured(2 * SECOND_US + 2, 1.0)).expect("a digest");
    assert_eq!(Digest::decode(&bytes[..]).expect("a digest").base, 0);
}

#[test]
fn what_peers_would_refuse_is_not_sent_but_counted() {
    let mut sender = Sender::new(1, 1_500);
    assert_eq!(sender.measured(SECOND_US, 1.0), None);
    assert_eq!(sender.publisher.counters().too_long, 1);
}
