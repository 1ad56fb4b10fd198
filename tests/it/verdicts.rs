//! From recordings over MQTT and a model to verdicts and windows in the cloud's database.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use weir_infer::{Backend, Model, Origin, Row, RuntimeLibrary};
use weir_tests::support::oracle;
use weir_tests::support::publisher::{Report, Sensor};
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::wait_for;

use crate::binaries;
use weir_tests::support::wrist::{self, CHANNELS, MESSAGE, PERIOD_US, START_US, WINDOW};

const LIMIT: Duration = Duration::from_secs(20);
/// Windows of each device, and messages that make no whole window.
const WINDOWS: usize = 12;
const REST: usize = 3;
const CONFIDENCE: f64 = 0.8;

#[test]
fn each_whole_window_gets_one_verdict_and_the_doubtful_ones_are_kept_as_they_were() {
    let keep = format!("keep = {{ verdicts = [{{ confidence_below = {CONFIDENCE} }}] }}");
    let streams = wrist::model() + &wrist::stream("wrist", &keep);
    let mut site = Site::started(binaries(), Plan::new("through", &streams));
    let recordings: Vec<_> = [8, 9, 10].map(wrist::recording).into();
    let count = WINDOWS * WINDOW / MESSAGE + REST;
    let sensors = recordings.iter().cloned().enumerate().map(|(device, rows)| {
        let mut sensor =
            Sensor::new(site.mqtt(), &format!("wrist-{device}"), move |n| wrist::message("wrist", device, &rows, n));
        sensor.count_max = count as u32;
        sensor.start()
    });
    let sensors: Vec<_> = sensors.collect();
    let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.wait(LIMIT)).collect();
    let db = oracle::open(&site.database());
    let expected = (recordings.len() * WINDOWS) as u64;
    let stored = || oracle::count(&db, "SELECT count(*) FROM verdicts");
    wait_for("all verdicts", LIMIT, || (stored() >= expected).then_some(()));
    site.drain();
    site.stop_edge();
    oracle::examine(&reports, &site.database(), Some(&site.buffer())).assert_conserved();
    // Device and place of the window; whether it should be kept.
    let mut verdicts: BTreeMap<(usize, usize), bool> = BTreeMap::new();
    let mut query =
        db.prepare("SELECT device, start_us, end_us, label, confidence, model FROM verdicts").expect("the view is there");
    let mut rows = query.query([]).expect("it can be read");
    while let Some(row) = rows.next().expect("it can be read") {
        let (start_us, end_us): (i64, i64) = (row.get(1).expect("a time"), row.get(2).expect("a time"));
        let length_us = WINDOW as i64 * PERIOD_US;
        let at = (start_us - START_US) / length_us;
        assert_eq!(start_us, START_US + at * length_us, "windows follow each other");
        assert!(((WINDOW as i64 - 1) * PERIOD_US..=length_us).contains(&(end_us - start_us)), "{start_us} to {end_us}");
        let (label, model): (String, String) = (row.get(3).expect("a text"), row.get(5).expect("a text"));
        assert!(
            ["PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"].contains(&&*label) && model == "watch-small",
            "{label} {model}"
        );
        let confidence: f64 = row.get(4).expect("a number");
        assert!((0.0..=1.0).contains(&confidence), "{confidence}");
        let device: String = row.get(0).expect("a text");
        let key = (device.parse().expect("a number"), at as usize);
        assert_eq!(verdicts.insert(key, confidence < CONFIDENCE), None, "{key:?} has one verdict");
    }
    let all = (0..recordings.len()).flat_map(|device| (0..WINDOWS).map(move |at| (device, at)));
    assert!(verdicts.keys().copied().eq(all), "every whole window has its verdict: {verdicts:?}");
    // What was kept raw is equal to what was recorded, channel by channel.
    let mut query = db.prepare("SELECT device, start_us, channels, length, data FROM windows").expect("the view is there");
    let mut rows = query.query([]).expect("it can be read");
    let mut kept = 0;
    while let Some(row) = rows.next().expect("it can be read") {
        let (device, start_us): (String, i64) = (row.get(0).expect("a text"), row.get(1).expect("a time"));
        let (channels, length): (usize, usize) = (row.get(2).expect("a number"), row.get(3).expect("a number"));
        let data: Vec<u8> = row.get(4).expect("bytes");
        let device: usize = device.parse().expect("a number");
        let at = ((start_us - START_US) / PERIOD_US) as usize;
        let samples = &recordings[device][at..at + WINDOW];
        let expected =
            (0..CHANNELS).flat_map(|channel| samples.iter().flat_map(move |row| (row[channel] as f32).to_le_bytes()));
        assert!((channels, length) == (CHANNELS, WINDOW) && data.iter().copied().eq(expected), "device {device} at {at}");
        assert!(verdicts[&(device, at / WINDOW)], "it was in doubt");
        kept += 1;
    }
    let doubtful = verdicts.values().filter(|in_doubt| **in_doubt).count();
    println!("{} verdicts, {kept} windows kept", verdicts.len());
    assert_eq!(kept, doubtful);
    assert!(kept > 0 && kept < verdicts.len(), "both kinds were there: {kept} of {}", verdicts.len());
}

/// Windows of 25 samples that go on from one another, asked for by a task: of the zoo's models for it the GRU is the smallest.
#[test]
fn a_task_is_answered_by_the_catalogues_model_and_each_device_goes_on_from_its_own_state() {
    const SAMPLES: usize = 25;
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo");
    let infer = format!("[infer]\nbackend = \"rten\"\ncatalogue = \"{}\"\n", zoo.display());
    let streams = infer + &wrist::stream("wrist", "").replace("model = \"watch\"", "task = \"activity\"");
    let mut site = Site::started(binaries(), Plan::new("through", &streams));
    let recordings: Vec<_> = [8, 9].map(wrist::recording).into();
    let sensors = recordings.iter().cloned().enumerate().map(|(device, rows)| {
        let mut sensor =
            Sensor::new(site.mqtt(), &format!("wrist-{device}"), move |n| wrist::message("wrist", device, &rows, n));
        sensor.count_max = SAMPLES as u32;
        sensor.start()
    });
    let sensors: Vec<_> = sensors.collect();
    sensors.into_iter().for_each(|sensor| assert_eq!(sensor.wait(LIMIT).unacked, 0));
    let db = oracle::open(&site.database());
    let expected = (recordings.len() * MESSAGE) as u64;
    wait_for("all verdicts", LIMIT, || (oracle::count(&db, "SELECT count(*) FROM verdicts") >= expected).then_some(()));
    site.drain();
    site.stop_edge();
    let library = RuntimeLibrary::in_folders(Vec::new());
    let mut model = Model::load(&zoo.join("watch-gru.toml"), Backend::Rten, &library).expect("it is in the repository");
    let mut from_nothing = 0;
    for (device, rows) in recordings.iter().enumerate() {
        for at in 0..MESSAGE {
            let samples = &rows[at * SAMPLES..(at + 1) * SAMPLES];
            let window: Vec<f32> =
                (0..CHANNELS).flat_map(|channel| samples.iter().map(move |row| row[channel] as f32)).collect();
            let start_us = START_US + (at * SAMPLES) as i64 * PERIOD_US;
            let origin = Origin { device: device as u64, start_us, end_us: start_us + (SAMPLES as i64 - 1) * PERIOD_US };
            let row = Row { window: &window, origin: Some(origin) };
            let carried = model.score_rows(&[row]).remove(0).expect("it is a good window").verdict.score;
            let alone = model.score(&[&window]).remove(0).expect("it is a good window").verdict.score;
            let query = "SELECT score FROM verdicts WHERE model = 'watch-gru' AND device = ?1 AND start_us = ?2";
            let found: f64 = db
                .query_row(query, rusqlite::params![device.to_string(), start_us], |row| row.get(0))
                .unwrap_or_else(|err| panic!("window {at} of device {device}: {err}"));
            assert!((found - f64::from(carried)).abs() < 1e-4, "window {at} of device {device}: {found}, not {carried}");
            from_nothing += usize::from((found - f64::from(alone)).abs() < 1e-4);
        }
    }
    assert!(from_nothing < MESSAGE, "the state counts: {from_nothing} of {expected} answers are those without it");
}

#[test]
fn a_model_that_fails_is_said_once_and_its_windows_are_kept_raw() {
    // The small model with other deviations, so that a value can be beyond what f32 holds once it is standardised.
    let folder = tempfile::tempdir().expect("there is room for temporary files");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    std::fs::copy(models.join("watch-small.onnx"), folder.path().join("watch-small.onnx")).expect("it is in the repository");
    let manifest = std::fs::read_to_string(models.join("watch-small.toml")).expect("it is in the repository");
    let at = manifest.find("std = [").expect("it standardises");
    let end = at + manifest[at..].find(']').expect("the list ends");
    let manifest = format!("{}std = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5{}", &manifest[..at], &manifest[end..]);
    std::fs::write(folder.path().join("watch.toml"), manifest).expect("there is room");
    let model = format!(
        "[[model]]\nname = \"watch\"\nmanifest = \"{}\"\n[infer]\nbackend = \"rten\"\n",
        folder.path().join("watch.toml").display()
    );
    let streams = model + &wrist::stream("wrist", "ack = \"record\"");
    let mut site = Site::started(binaries(), Plan::new("through", &streams));
    // Two windows of every three are of a sensor that has lost its mind.
    let rows = wrist::recording(8);
    let message = move |n: u32| {
        let mut message = wrist::message("wrist", 0, &rows, n);
        if !(n as usize / (WINDOW / MESSAGE)).is_multiple_of(3) {
            let mut payload: serde_json::Value = serde_json::from_slice(&message.payload).expect("it was just made");
            payload["s"] = vec![[3.0e38; CHANNELS]; MESSAGE].into();
            message.payload = payload.to_string().into_bytes();
        }
        message
    };
    let mut sensor = Sensor::new(site.mqtt(), "wrist-0", message);
    sensor.count_max = (WINDOWS * WINDOW / MESSAGE) as u32;
    let report = sensor.start().wait(LIMIT);
    assert_eq!(report.unacked, 0, "each message's window is safe, whether as a verdict or as it was");
    site.drain();
    site.stop_edge();
    let db = oracle::open(&site.database());
    let count = |view: &str| oracle::count(&db, &format!("SELECT count(*) FROM {view}"));
    assert_eq!((count("verdicts"), count("windows")), (WINDOWS as u64 / 3, 2 * WINDOWS as u64 / 3));
    let log = site.edge_log();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("model fails")).collect();
    assert!(said.len() == 1 && said[0].contains("WARN") && said[0].contains("watch"), "{log}");
}
