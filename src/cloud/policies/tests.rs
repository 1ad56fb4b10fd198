use std::collections::BTreeMap;

use weir_host::policy::PolicyHead;
use weir_host::units::Duration;

use super::*;

const S: u64 = 1_000_000;

fn policies() -> Policies {
    Policies::new(&config::Policies { dir: None, share: 0.0, soak: Duration::from_secs(60) })
}

fn found(version: u64, gateways: &[&str], signature: u8) -> Arc<Found> {
    let gateways = gateways.iter().map(ToString::to_string).collect();
    let head = PolicyHead { version, gateways };
    Arc::new(Found { file: format!("{version}.toml"), head, text: Bytes::from_static(b"text"), signature: vec![signature; 64] })
}

fn directory(policies: &[Arc<Found>]) -> Directory {
    Directory { policies: policies.iter().map(|found| (found.head.version, found.clone())).collect(), problems: Vec::new() }
}

fn says(version: u64, state: OfferState, kept: u64) -> PolicyState {
    PolicyState { version, state: state.code(), reason: "why".to_owned(), kept }
}

fn names(offers: &[(Arc<str>, Body)]) -> Vec<(&str, u64)> {
    let version = |body: &Body| match body {
        Body::PolicyOffer(offer) => offer.version,
        _ => 0,
    };
    offers.iter().map(|(gateway, body)| (&**gateway, version(body))).collect()
}

/// With what is on record of nothing.
fn take(policies: &mut Policies, directory: &Directory) {
    for found in policies.found(directory) {
        assert!(policies.loaded(found.head.version, PolicyRecord::default()).is_empty());
    }
}

#[test]
fn one_gets_it_first_then_all_and_each_the_highest_that_is_for_it() {
    let mut policies = policies();
    let [hall, shop, old]: [Arc<str>; 3] = ["hall-1".into(), "shop-1".into(), "hall-2".into()];
    take(&mut policies, &directory(&[found(7, &[], 1), found(8, &["hall-*"], 2)]));
    assert!(policies.offers(0).is_empty(), "nobody has said anything");
    policies.told(&hall, says(0, OfferState::Kept, 0));
    policies.told(&shop, says(0, OfferState::Kept, 0));
    let mut offered = policies.offers(1);
    offered.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(names(&offered), [("hall-1", 8), ("shop-1", 7)]);
    policies.told(&old, says(0, OfferState::Kept, 0));
    assert!(policies.offers(2).is_empty(), "one of them at first");
    let news = policies.told(&hall, says(8, OfferState::Kept, 8));
    assert_eq!(news, [Told { version: 8, state: OfferState::Kept, reason: "why".to_owned(), halts: false }]);
    assert!(policies.told(&hall, says(8, OfferState::Kept, 8)).is_empty(), "no news");
    assert!(policies.offers(3 * S).is_empty());
    assert_eq!(names(&policies.offers(64 * S)), [("hall-2", 8)]);
    let status = policies.status();
    assert_eq!((status.policies[0].version, status.policies[0].stage), (8, "all"));
    assert_eq!(status.policies[0].gateways, BTreeMap::from([("kept", 1), ("offered", 1)]));
}

#[test]
fn a_halt_outlives_a_restart_and_a_changed_text_is_not_offered() {
    let mut policies = policies();
    let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
    take(&mut policies, &directory(&[found(7, &[], 1)]));
    policies.told(&a, says(0, OfferState::Kept, 0));
    policies.told(&b, says(0, OfferState::Kept, 0));
    let first = policies.offers(0).remove(0).0;
    let news = policies.told(&first, says(7, OfferState::RolledBack, 0));
    assert!(news[0].halts && policies.offers(900 * S).is_empty());
    assert_eq!(policies.status().policies[0].troubles[0].reason, "why");

    let mut again = self::policies();
    assert_eq!(again.found(&directory(&[found(7, &[], 1)])).len(), 1);
    again.told(&a, says(0, OfferState::Kept, 0));
    assert!(again.offers(0).is_empty(), "not before it is known what is on record");
    let states = vec![(first.clone(), OfferState::RolledBack, "why".to_owned())];
    again.loaded(7, PolicyRecord { signature: Some(vec![1; 64]), states });
    assert!(again.offers(900 * S).is_empty() && again.status().policies[0].is_halted);
    assert_eq!(again.status().policies[0].troubles[0].gateway, &*first);

    // Another text under the same version: when it changes while we run, and when it did while we did not.
    let mut third = self::policies();
    take(&mut third, &directory(&[found(7, &[], 1)]));
    third.told(&a, says(0, OfferState::Kept, 0));
    assert!(third.found(&directory(&[found(7, &[], 2)])).is_empty() && third.offers(0).is_empty());
    assert!(third.status().problems[0].contains("raise the version"), "{:?}", third.status().problems);
    assert!(third.found(&directory(&[found(7, &[], 1)])).is_empty() && third.status().problems.is_empty());
    assert_eq!(names(&third.offers(1)), [("a", 7)], "it is as it was");
    let mut fourth = self::policies();
    fourth.found(&directory(&[found(7, &[], 2)]));
    fourth.told(&a, says(0, OfferState::Kept, 0));
    fourth.loaded(7, PolicyRecord { signature: Some(vec![1; 64]), states: Vec::new() });
    assert!(fourth.offers(0).is_empty() && fourth.status().problems.len() == 1);
}

#[test]
fn who_is_set_up_anew_or_gets_a_key_is_offered_it_again_and_what_was_said_early_counts() {
    let mut policies = policies();
    let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
    policies.told(&a, says(7, OfferState::Kept, 7));
    policies.told(&b, says(0, OfferState::NoKey, 0));
    policies.found(&directory(&[found(7, &[], 1)]));
    let news = policies.loaded(7, PolicyRecord::default());
    let states: Vec<_> = news.iter().map(|(gateway, told)| (&**gateway, told.state)).collect();
    assert_eq!(states, [("a", OfferState::Kept), ("b", OfferState::NoKey)]);
    assert!(policies.offers(0).is_empty() && policies.offers(61 * S).is_empty(), "a has it, and b takes none");
    policies.told(&b, says(0, OfferState::Kept, 0));
    assert_eq!(names(&policies.offers(62 * S)), [("b", 7)]);
    // Gone before it said a word, and back.
    policies.lost(&b);
    assert!(policies.offers(63 * S).is_empty());
    policies.told(&b, says(0, OfferState::Kept, 0));
    assert_eq!(names(&policies.offers(64 * S)), [("b", 7)]);
    // A box that has a newer one than this is left alone.
    policies.told(&a, says(9, OfferState::Kept, 9));
    assert!(policies.offers(65 * S).is_empty());
    // One that has lost it gets it again.
    policies.told(&a, says(0, OfferState::Kept, 0));
    assert_eq!(names(&policies.offers(66 * S)), [("a", 7)]);
}
