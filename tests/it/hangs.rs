//! Models that have proved themselves and hang all the same, in the box's own process: they are given up, and nothing else stops.

use std::time::Duration;

use weir_tests::support::publisher::{Running, Sensor};
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::{onnx, oracle, wait_for, wrist};

use crate::binaries;
use crate::updates::Lab;

const LIMIT: Duration = Duration::from_secs(90);
/// Standardised, a wrist has mean squares of some units, and what springs the trap a million.
const BEARABLE: f32 = 10_000.0;

/// A device whose values are a thousand times those of a wrist.
fn springer(site: &Site, stream: &'static str) -> Running {
    let rows: Vec<[i32; wrist::CHANNELS]> = wrist::recording(9).into_iter().map(|row| row.map(|value| value * 1_000)).collect();
    let message = move |n| wrist::message(stream, 99, &rows, n);
    let mut sensor = Sensor::new(site.mqtt(), "springer", message);
    (sensor.per_s, sensor.count_max) = (20, 2 * wrist::MESSAGES_PER_WINDOW as u32);
    sensor.start()
}

#[test]
fn a_promoted_model_that_hangs_is_taken_back_and_the_one_before_goes_on() {
    let lab = Lab::with("agreement_min = 0.0", |_, plan| {
        plan.tables = plan.tables.replace("[infer]\n", "[infer]\nhang_timeout = \"2s\"\n");
    });
    lab.goes_on();
    lab.push("trap", &lab.package(2, onnx::trap(BEARABLE)));
    lab.updates("version 2 to be active", |updates| updates["active"] == 2);
    lab.goes_on();
    let sprung = springer(&lab.site, "wrist");
    let after = lab.event("version 2 withdrawn: it gave no answer to a batch within 2 s");
    assert!(after["answers"] == 0 && after["active"] == 0, "{after}");
    lab.goes_on();
    let status = lab.site.edge_status().expect("it answers");
    assert!(status["models_given_up"] == 1 && status["models"][0]["given_up"] == false, "{status}");
    assert!(lab.site.edge_health().is_some_and(|(code, _)| code == 200));
    sprung.stop();
    drop(sprung.finish(LIMIT));
    // It is not tried again, and stays away over a restart.
    lab.push("again", &lab.package(2, onnx::trap(BEARABLE)));
    lab.event("version 2 refused: version 2 is not above 2");
}

#[test]
fn a_model_on_probation_that_hangs_is_rolled_back() {
    let lab = Lab::with("agreement_min = 0.0", |_, plan| {
        plan.tables =
            plan.tables.replace("[infer]\n", "[infer]\nhang_timeout = \"2s\"\n").replace("windows = 10\n", "windows = 60\n");
    });
    lab.goes_on();
    lab.push("trap", &lab.package(2, onnx::trap(BEARABLE)));
    lab.updates("probation", |updates| updates["stage"] == "probation" && updates["windows"].as_u64() > Some(0));
    let sprung = springer(&lab.site, "wrist");
    let after = lab.event("version 2 rolled-back: it gave no answer to a batch within 2 s");
    assert!(after["answers"] == 0 && after["trial"].is_null(), "{after}");
    lab.goes_on();
    drop(sprung);
}

#[test]
fn the_configurations_own_model_that_hangs_leaves_its_windows_raw_and_the_box_alive() {
    let dir = tempfile::tempdir().expect("there is room");
    let model = onnx::trap(BEARABLE);
    std::fs::write(dir.path().join("watch-small.onnx"), &model).expect("there is room");
    std::fs::write(dir.path().join("trap.toml"), Lab::manifest(1, &model)).expect("there is room");
    let small = wrist::model();
    let manifest = small.lines().find(|line| line.starts_with("manifest")).expect("it names one");
    let mut model = small.replace(manifest, &format!("manifest = \"{}\"", dir.path().join("trap.toml").display()));
    model += "hang_timeout = \"2s\"\n";
    let tables = model + &wrist::stream("wrist", "") + &wrist::stream("other", "");
    let mut site = Site::started(binaries(), Plan::new("disk", &tables));
    let rows = wrist::recording(8);
    let message = move |n| wrist::message("wrist", 0, &rows, n);
    let mut sensor = Sensor::new(site.mqtt(), "wrist-0", message);
    sensor.per_s = 20;
    let sensor = sensor.start();
    let verdicts = || site.edge_status().and_then(|status| status["ingest"]["verdicts"].as_u64()).unwrap_or(0);
    wait_for("verdicts", LIMIT, || (verdicts() > 5).then_some(()));
    let sprung = springer(&site, "wrist");
    let status = wait_for("the model to be given up", LIMIT, || {
        site.edge_status().filter(|status| status["models"][0]["given_up"] == true)
    });
    assert_eq!(status["models_given_up"], 1);
    assert!(site.edge_log().lines().any(|line| line.contains("ERROR") && line.contains("is given up")), "it is in the log");
    // Windows go on without verdicts, as the stream's policy has it: raw.
    let windows = || site.edge_status().and_then(|status| status["streams"][0]["windows"].as_u64()).unwrap_or(0);
    let before = windows();
    wait_for("raw windows", LIMIT, || (windows() > before + 5).then_some(()));
    for sensor in [sensor, sprung] {
        sensor.stop();
        assert_eq!(sensor.finish(LIMIT).unacked, 0, "every message has its PUBACK");
    }
    site.drain();
    let db = oracle::open(&site.database());
    assert!(
        oracle::count(&db, "SELECT count(*) FROM windows WHERE stream = 'wrist' AND device = '99'") >= 2,
        "those that hung it, too"
    );
    // It stops in good order, though a thread of it never does.
    site.stop_edge();
}
