use weir_host::units::Duration;
use weir_logic::wire::model::ModelOffer;

use super::shelf::tests::package;
use super::*;

const S: u64 = 1_000_000;

/// Models of a folder with these packages, and the folder.
fn models(packages: &[(&str, u64, &[&str])]) -> (Models, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    for (task, version, gateways) in packages {
        let path = dir.path().join(format!("{task}-{version}.weir-model"));
        std::fs::write(path, package(task, *version, gateways)).unwrap();
    }
    let mut models = Models::new(&config::Models { dir: None, share: 0.0, soak: Duration::from_secs(60) });
    for key in models.found(&shelf::tests::shelf(dir.path())) {
        assert!(models.loaded(&key, PolicyRecord::default()).is_empty());
    }
    (models, dir)
}

fn says(task: &str, active: u64, tried: u64, about: (u64, OfferState)) -> ModelStates {
    let (version, state) = (about.0, about.1.code());
    let (stage, reason) = (String::new(), "why".to_owned());
    ModelStates { tasks: vec![ModelState { task: task.to_owned(), active, tried, version, state, stage, reason }] }
}

fn has(task: &str, active: u64) -> ModelStates {
    says(task, active, active, (active, OfferState::Kept))
}

fn names(offers: &[(Arc<str>, Body)]) -> Vec<(&str, &str, u64)> {
    let of = |body: &Body| match body {
        Body::ModelOffer(ModelOffer { version, .. }) => *version,
        _ => panic!("an offer"),
    };
    let task = |body: &Body| match body {
        Body::ModelOffer(offer) if offer.task == "a" => "a",
        _ => "b",
    };
    offers.iter().map(|(gateway, body)| (&**gateway, task(body), of(body))).collect()
}

#[test]
fn each_task_is_offered_to_those_who_have_it_one_first_and_then_all() {
    let (mut models, _dir) = models(&[("a", 2, &[]), ("a", 3, &["hall-*"]), ("b", 1, &[])]);
    assert!(models.offers(0).is_empty(), "nobody has said anything");
    let [hall, shop, late]: [Arc<str>; 3] = ["hall-1".into(), "shop-1".into(), "hall-2".into()];
    models.told(&hall, has("a", 1));
    models.told(&shop, has("a", 1));
    let mut offered = models.offers(1);
    offered.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(names(&offered), [("hall-1", "a", 3), ("shop-1", "a", 2)], "and nobody has task b");
    models.told(&late, has("a", 0));
    assert!(models.offers(2).is_empty(), "one of them at first");
    models.told(&hall, says("a", 1, 1, (3, OfferState::Trial)));
    let news = models.told(&hall, has("a", 3));
    assert_eq!(
        news.iter().map(|told| (told.version, told.state, told.halts)).collect::<Vec<_>>(),
        [(3, OfferState::Kept, false)]
    );
    assert!(models.offers(3 * S).is_empty());
    assert_eq!(names(&models.offers(64 * S)), [("hall-2", "a", 3)]);
    let status = models.status();
    assert_eq!(status.offers[1].gateways, BTreeMap::from([("kept", 1), ("offered", 1)]));
    assert_eq!(models.of("hall-1")[0].active, 3);
}

#[test]
fn one_that_refuses_or_takes_back_halts_a_version_also_over_a_restart() {
    let (mut models, dir) = models(&[("a", 2, &[])]);
    let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
    models.told(&one, has("a", 1));
    models.told(&other, has("a", 1));
    let first = models.offers(0).remove(0).0;
    let news = models.told(&first, says("a", 1, 2, (2, OfferState::RolledBack)));
    assert!(news[0].halts && models.offers(900 * S).is_empty());
    assert_eq!((models.status().offers[0].is_halted, &*models.status().offers[0].troubles[0].reason), (true, "why"));

    let mut again = Models::new(&config::Models::default());
    let shelf = shelf::tests::shelf(dir.path());
    let [key] = &again.found(&shelf)[..] else { panic!("one") };
    again.told(&other, has("a", 1));
    assert!(again.offers(0).is_empty(), "not before it is known what is on record");
    let sum = shelf.packages[key].sha256.to_vec();
    let states = vec![(first, OfferState::RolledBack, "why".to_owned())];
    again.loaded(key, PolicyRecord { signature: Some(sum), states });
    assert!(again.offers(900 * S).is_empty() && again.status().offers[0].is_halted);

    // Another file under the same version: it is reported, and not offered.
    let mut third = Models::new(&config::Models::default());
    third.found(&shelf);
    third.told(&other, has("a", 1));
    third.loaded(key, PolicyRecord { signature: Some(vec![0; 32]), states: Vec::new() });
    assert!(third.offers(0).is_empty() && third.status().problems[0].contains("sign it as a higher version"));
}

#[test]
fn who_has_tried_a_higher_one_is_passed_over_and_halts_nothing() {
    let (mut models, _dir) = models(&[("a", 2, &[])]);
    let (ahead, behind): (Arc<str>, Arc<str>) = ("ahead".into(), "behind".into());
    models.told(&ahead, has("a", 9));
    assert!(models.offers(0).is_empty());
    let trouble = &models.status().offers[0].troubles[0];
    assert_eq!((&*trouble.gateway, trouble.state), ("ahead", "passed-over"));
    assert!(trouble.reason.contains("version 2 is not above 9"), "{}", trouble.reason);
    models.told(&behind, has("a", 1));
    assert_eq!(names(&models.offers(1)), [("behind", "a", 2)]);
    // Gone before it said a word, and back; then it died before it had noted its trial.
    models.lost(&behind);
    models.told(&behind, has("a", 1));
    assert_eq!(models.offers(2).len(), 1);
    models.told(&behind, says("a", 1, 1, (2, OfferState::Trial)));
    models.told(&behind, has("a", 1));
    assert_eq!(models.offers(3).len(), 1);
    // One that has taken it goes on with its trial.
    models.told(&behind, says("a", 1, 2, (2, OfferState::Trial)));
    models.told(&behind, says("a", 1, 2, (2, OfferState::Trial)));
    assert!(models.offers(4).is_empty());
}
