//! New models on a running box, from their package to the database: good ones take over, and bad ones cost nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use weir_edge::models::{Head, Package};
use weir_host::sign::SecretKey;
use weir_infer::Manifest;
use weir_tests::support::publisher::{Running, Sensor};
use weir_tests::support::site::{CLEAN, Plan, Site};
use weir_tests::support::{onnx, oracle, process, wait_for, wrist};

use crate::{binaries, tool};

/// A stage of ten windows takes a second, a process on a busy machine several.
const LIMIT: Duration = Duration::from_secs(90);
const DEVICES: usize = 4;
/// Messages a second of each device: twenty windows a second in all.
const PER_S: u32 = 20;
const README: &str = include_str!("../../README.md");

/// A box whose model may be replaced, sensors that go on, and a cloud.
pub(crate) struct Lab {
    pub(crate) site: Site,
    pub(crate) key: SecretKey,
    pub(crate) sensors: Vec<Running>,
}

impl Lab {
    fn new(keys: &str) -> Lab {
        Lab::with(keys, |_, _| ())
    }

    /// `keys` are of `[infer.updates]`; what else is special may depend on the folder of the site.
    pub(crate) fn with(keys: &str, change: impl FnOnce(&Path, &mut Plan)) -> Lab {
        Lab::over(CLEAN, keys, change)
    }

    /// The same over another link.
    pub(crate) fn over(link: &'static str, keys: &str, change: impl FnOnce(&Path, &mut Plan)) -> Lab {
        let key = SecretKey::generate().expect("there are random numbers");
        let updates = format!("[infer.updates]\nkey = \"{}\"\nwindows = 10\nshare = 0.5\n{keys}\n", key.public());
        let tables = wrist::model() + &updates + &wrist::stream("wrist", "ack = \"record\"");
        let mut site = Site::new(binaries(), Plan { link, ..Plan::new("disk", &tables) });
        let folder = site.dir().to_owned();
        site.change(|plan| change(&folder, plan));
        site.start_cloud();
        site.start_edge();
        let rows: Vec<_> = (0..DEVICES).map(|at| wrist::recording(8 + at as u32 % 3)).collect();
        let sensors = rows.into_iter().enumerate().map(|(device, rows)| {
            let message = move |n| wrist::message("wrist", device, &rows, n);
            let mut sensor = Sensor::new(site.mqtt(), &format!("wrist-{device}"), message);
            sensor.per_s = PER_S;
            sensor.start()
        });
        let sensors = sensors.collect();
        Lab { site, key, sensors }
    }

    fn inbox(&self) -> PathBuf {
        self.site.data_dir.join("models/inbox")
    }

    /// The small model's manifest for other bytes, as version `version` of the model.
    pub(crate) fn manifest(version: u64, model: &[u8]) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/watch-small.toml");
        let text = std::fs::read_to_string(&path).expect("it is in the repository");
        let sum = |bytes: &[u8; 32]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        let before = sum(&Manifest::read(&path).expect("it is right").sha256);
        text.replace(&before, &sha256(model)).replace("version = \"1\"", &format!("version = \"{version}\""))
    }

    pub(crate) fn package(&self, version: u64, model: Vec<u8>) -> Vec<u8> {
        self.package_for(version, model, "box-*", &self.key)
    }

    pub(crate) fn package_for(&self, version: u64, model: Vec<u8>, gateways: &str, key: &SecretKey) -> Vec<u8> {
        let (manifest, model_sum) = (String::new(), String::new());
        let gateways = vec![gateways.to_owned()];
        let head = Head { task: "activity".to_owned(), version, gateways, window_us_max: 2_000, manifest, model: model_sum };
        Package::sign(head, Lab::manifest(version, &model).into_bytes(), model, key).to_bytes()
    }

    pub(crate) fn push(&self, name: &str, package: &[u8]) {
        let draft = self.inbox().join(format!("{name}.part"));
        std::fs::write(&draft, package).expect("there is an inbox");
        std::fs::rename(&draft, self.inbox().join(format!("{name}.weir-model"))).expect("there is an inbox");
    }

    fn wish(&self, word: &str) {
        std::fs::write(self.inbox().join(format!("activity.{word}")), "").expect("there is an inbox");
    }

    /// What the box says of the task, once it is so.
    pub(crate) fn updates(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, LIMIT, || {
            self.site
                .edge_status()
                .map(|status| status["updates"][0].clone())
                .filter(|updates| updates.is_object() && is_so(updates))
        })
    }

    pub(crate) fn event(&self, part: &str) -> Value {
        let has = |updates: &Value| {
            updates["events"]
                .as_array()
                .is_some_and(|events| events.iter().any(|event| event.as_str().is_some_and(|text| text.contains(part))))
        };
        self.updates(&format!("the event `{part}`"), has)
    }

    /// Verdicts that the box has given.
    pub(crate) fn verdicts(&self) -> u64 {
        self.site.edge_status().and_then(|status| status["ingest"]["verdicts"].as_u64()).unwrap_or(0)
    }

    pub(crate) fn goes_on(&self) {
        let before = self.verdicts();
        wait_for("verdicts to go on", LIMIT, || (self.verdicts() > before + 10).then_some(()));
    }

    /// The end: nothing is lost, and each whole window has one verdict. Returns how many each version has given.
    pub(crate) fn settle(mut self) -> Vec<(String, u64)> {
        self.sensors.iter().for_each(Running::stop);
        let reports: Vec<_> = self.sensors.drain(..).map(|sensor| sensor.finish(LIMIT)).collect();
        self.site.drain();
        self.site.stop_edge();
        oracle::examine(&reports, &self.site.database(), Some(&self.site.buffer())).assert_conserved();
        let db = oracle::open(&self.site.database());
        let windows = "SELECT device, start_us FROM verdicts GROUP BY device, start_us";
        let expected: usize = reports.iter().map(|report| report.sent.len() / wrist::MESSAGES_PER_WINDOW).sum();
        let found = oracle::count(&db, &format!("SELECT count(*) FROM ({windows})"));
        assert_eq!(found, expected as u64, "windows with a verdict");
        assert_eq!(oracle::count(&db, "SELECT count(*) FROM verdicts"), found, "none has two");
        let mut query =
            db.prepare("SELECT version, count(*) FROM verdicts GROUP BY version ORDER BY version").expect("the view is there");
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("it can be read");
        rows.map(|row| row.expect("a version and a count")).collect()
    }
}

fn sha256(bytes: &[u8]) -> String {
    Package::sum(bytes)
}

/// The small model itself: as good as the one that answers.
pub(crate) fn good() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/watch-small.onnx")).expect("it is in the repository")
}

/// A model that must end as `reason` says, with the one before answering every window.
fn refuses(keys: &str, model: Vec<u8>, reason: &str) {
    let lab = Lab::new(keys);
    lab.goes_on();
    let package = lab.package(2, model);
    lab.push("bad", &package);
    let after = lab.event(reason);
    assert!(after["answers"] == 0 && after["active"] == 0 && after["trial"].is_null(), "{after}");
    let logged = reason.strip_prefix("version 2 rolled-back: ").unwrap_or(reason);
    assert!(lab.site.edge_log().lines().any(|line| line.contains("WARN") && line.contains(logged)), "it is in the log");
    lab.goes_on();
    // It is not tried again.
    lab.push("bad-again", &package);
    lab.event("version 2 refused: version 2 is not above 2");
    assert_eq!(
        lab.settle().into_iter().map(|(version, _)| version).collect::<Vec<_>>(),
        ["1"],
        "the model before, all the time"
    );
}

#[test]
fn a_good_model_takes_over_without_a_lost_window_and_gives_way_again() {
    let mut lab = Lab::new("");
    lab.goes_on();
    lab.push("good", &lab.package(2, good()));
    let after = lab.updates("version 2 to be active", |updates| updates["active"] == 2);
    let events: Vec<&str> = after["events"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    let words: Vec<&str> = events.iter().filter_map(|event| event.split([' ', ':']).nth(2)).collect();
    assert_eq!(words, ["candidate", "shadow", "canary", "probation", "active"], "{events:?}");
    lab.goes_on();
    // It is still there after both kinds of restart.
    lab.site.kill_edge();
    lab.site.start_edge();
    lab.updates("version 2 after a kill", |updates| updates["answers"] == 2);
    lab.goes_on();
    lab.site.stop_edge();
    lab.site.start_edge();
    lab.updates("version 2 after a stop", |updates| updates["answers"] == 2);
    lab.goes_on();
    lab.wish("rollback");
    lab.updates("the configuration's file to answer", |updates| updates["answers"] == 0 && updates["active"] == 0);
    lab.goes_on();
    let site = &lab.site;
    let log = site.edge_log();
    assert!(log.contains("an operator took it back"), "{log}");
    // Windows that were open when the box was killed are gone with it: what is left is counted by the conservation of records.
    lab.sensors.iter().for_each(Running::stop);
    let db = oracle::open(&lab.site.database());
    for version in ["1", "2"] {
        let count = || oracle::count(&db, &format!("SELECT count(*) FROM verdicts WHERE version = '{version}'"));
        wait_for("verdicts of both versions", LIMIT, || (count() > 10).then_some(()));
    }
}

#[test]
fn a_swap_costs_no_window() {
    let lab = Lab::new("");
    lab.goes_on();
    lab.push("good", &lab.package(2, good()));
    lab.updates("version 2 to be active", |updates| updates["active"] == 2);
    lab.goes_on();
    let versions = lab.settle();
    assert!(versions.len() == 2 && versions.iter().all(|(_, count)| *count > 10), "{versions:?}");
}

#[test]
fn a_model_that_never_ends_is_ended() {
    refuses("answer_timeout = \"1s\"", onnx::endless(), "version 2 rolled-back: its process");
}

#[test]
fn a_model_that_dies_while_it_is_loaded_takes_nothing_with_it() {
    refuses("", onnx::bottomless(), "version 2 rolled-back: its process was ended by signal");
}

#[test]
fn a_model_that_wants_all_memory_gets_none_of_the_box() {
    refuses("memory_limit = \"256MiB\"", onnx::exploding(), "version 2 rolled-back: its process was ended by signal");
}

#[test]
fn a_model_that_answers_nothing_but_nan_is_taken_back() {
    refuses(
        "",
        onnx::not_a_number(),
        "windows got no answer, the last because the model answered with a value that is not finite",
    );
}

#[test]
fn a_model_of_another_shape_does_not_get_beyond_loading() {
    refuses("", onnx::wrong_shape(), "the manifest and the ONNX file disagree");
}

#[test]
fn a_model_that_is_a_hundred_times_slower_than_promised_is_taken_back() {
    refuses("answer_timeout = \"60s\"", onnx::slow(40), "us on average over");
}

#[test]
fn a_model_that_says_something_else_is_taken_back() {
    refuses("", onnx::constant(), "it disagrees with the active model on");
}

#[test]
fn packages_that_are_damaged_or_of_others_are_refused_in_words_and_change_nothing() {
    let lab = Lab::new("");
    let package = lab.package(2, good());
    let (mut flipped, cut) = (package.clone(), package[..package.len() - 7].to_vec());
    *flipped.last_mut().expect("it has bytes") ^= 1;
    let stranger = SecretKey::generate().expect("there are random numbers");
    let read = Package::read(&package).expect("it is whole");
    let signed_by =
        |key: &SecretKey, head: Head| Package::sign(head, read.manifest.clone(), read.model.clone(), key).to_bytes();
    let elsewhere = Head { gateways: vec!["hall-*".to_owned()], ..read.head.clone() };
    for (name, bytes, reason) in [
        ("flipped", flipped, "its model has sha256"),
        ("cut", cut, "it was cut off or damaged on the way"),
        ("unsigned", signed_by(&stranger, read.head.clone()), "the signature is not of this text and this key"),
        ("elsewhere", signed_by(&lab.key, elsewhere), "it is for hall-*, and this is box-1"),
    ] {
        lab.push(name, &bytes);
        let after = lab.event(reason);
        assert!(after["answers"] == 0 && after["trial"].is_null(), "{after}");
    }
    lab.goes_on();
    assert_eq!(lab.settle().into_iter().map(|(version, _)| version).collect::<Vec<_>>(), ["1"]);
}

/// Killed as it is in a stage: a trial in a process of its own goes on, one in the box's is over; a model answers all the time.
fn killed_in(stage: &str, is_over: bool) {
    let mut lab = Lab::new("");
    lab.goes_on();
    // Each stage ends only when an operator says so.
    lab.site.change(|plan| plan.tables = plan.tables.replace("windows = 10", "windows = 100000"));
    lab.site.stop_edge();
    lab.site.start_edge();
    lab.push("good", &lab.package(2, good()));
    for next in ["shadow", "canary", "probation"] {
        lab.updates(next, |updates| updates["stage"] == next && (next == "shadow" || updates["windows"].as_u64() > Some(0)));
        if next == stage {
            break;
        }
        lab.updates("windows", |updates| updates["stage"] == next && updates["windows"].as_u64() > Some(0));
        lab.wish("promote");
    }
    lab.site.kill_edge();
    lab.site.start_edge();
    if is_over {
        let after = lab.updates("the model before", |updates| updates["trial"].is_null());
        assert!(after["answers"] == 0, "{after}");
        lab.event("version 2 rolled-back: the box stopped while it answered");
    } else {
        let after = lab.updates("the trial to go on", |updates| updates["stage"] == "shadow");
        assert!(after["answers"] == 0 && after["trial"] == 2, "{after}");
    }
    lab.goes_on();
}

#[test]
fn a_box_killed_with_a_shadow_goes_on_with_its_trial() {
    killed_in("shadow", false);
}

#[test]
fn a_box_killed_with_a_canary_begins_its_trial_again() {
    killed_in("canary", false);
}

#[test]
fn a_box_killed_during_probation_comes_back_with_the_model_before() {
    killed_in("probation", true);
}

#[test]
fn three_crashes_switch_models_off_and_nothing_else_until_a_stop_in_good_order() {
    let mut lab = Lab::new("");
    lab.goes_on();
    for _ in 0..3 {
        lab.site.kill_edge();
        lab.site.start_edge();
    }
    let status = wait_for("the box", LIMIT, || lab.site.edge_status());
    assert!(status["models_forbidden"] == true && status["models"].as_array().is_some_and(Vec::is_empty), "{status}");
    assert!(lab.site.edge_log().contains("crashed three times within ten minutes"));
    // What comes is still taken in and kept.
    let acked = || lab.sensors.iter().map(Running::acked).sum::<u64>();
    let before = acked();
    wait_for("messages to be taken in", LIMIT, || (acked() > before + 50).then_some(()));
    lab.site.stop_edge();
    lab.site.start_edge();
    lab.goes_on();
}

#[test]
fn the_lines_of_the_readme_sign_push_promote_and_take_back_a_model() {
    let block = README.split("```\n").find(|block| block.contains("weir model sign")).expect("README.md has the lines");
    let mut lab = Lab::new("");
    lab.site.change(|plan| plan.tables = plan.tables.replace("windows = 10\n", "windows = 100000\n"));
    lab.site.stop_edge();
    lab.site.start_edge();
    let keys = lab.site.dir().join("keys");
    std::fs::create_dir(&keys).expect("there is room");
    std::fs::write(keys.join("policy.key"), lab.key.to_secret_text()).expect("there is room");
    let (root, data_dir) = (Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), lab.site.data_dir.display().to_string());
    let tool = std::fs::canonicalize(tool()).expect("it is built").display().to_string();
    let run = |line: &str| {
        let line = line.replace("models/", &format!("{}/models/", root.display())).replace("site/box-1", &data_dir);
        let mut command = Command::new("bash");
        command.args(["-euc", &line.replacen("weir ", &format!("{tool} "), 1)]).current_dir(lab.site.dir());
        let (code, stdout, stderr) = process::run(command, LIMIT);
        assert_eq!(code, Some(0), "{line}: {stderr}");
        stdout
    };
    for line in block.lines().filter(|line| line.starts_with("weir ")) {
        let said = run(line);
        match line.split(' ').nth(2) {
            Some("push") => {
                drop(lab.updates("the shadow", |updates| updates["stage"] == "shadow" && updates["windows"].as_u64() > Some(0)))
            }
            Some("diff") => {
                assert!(
                    said.contains("manifest: the same") && said.contains("recordings: both say the same of 54 of 54 windows"),
                    "{said}"
                );
            }
            Some("list") => assert!(said.contains("version 2 is on trial: shadow"), "{said}"),
            Some("promote") => drop(lab.updates("the canary", |updates| updates["stage"] == "canary")),
            Some("rollback") => drop(lab.event("version 2 rolled-back: an operator took it back")),
            _ => {}
        }
    }
}
