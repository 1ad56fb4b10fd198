//! From recordings over MQTT and a model to verdicts and windows in the cloud's database.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use weir_tests::support::oracle;
use weir_tests::support::publisher::{Report, Sensor};
use weir_tests::support::script::{Fate, Message};
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::wait_for;

use crate::binaries;

const LIMIT: Duration = Duration::from_secs(20);
const CHANNELS: usize = 6;
/// Samples of a window, and of a message.
const WINDOW: usize = 128;
const MESSAGE: usize = 32;
/// Windows of each device, and messages that make no whole window.
const WINDOWS: usize = 12;
const REST: usize = 3;
const PERIOD_US: i64 = 20_000;
const START_US: i64 = 1_790_000_000_000_000;
const CONFIDENCE: f64 = 0.8;

/// Rows of a recording in `models/recordings`: six numbers each.
fn recording(subject: u32) -> Vec<[i32; CHANNELS]> {
    let file = format!("../models/recordings/watch_subject{subject}.csv");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("it is in the repository");
    let row = |line: &str| {
        let numbers: Vec<i32> = line.split(',').skip(4).map(|number| number.parse().expect("a number")).collect();
        numbers.try_into().expect("six numbers")
    };
    text.lines().skip(1).map(row).collect()
}

/// The `n`-th message of a device: 32 samples with the time of the first.
fn message(device: usize, rows: &[[i32; CHANNELS]], n: u32) -> Message {
    let at = n as usize * MESSAGE;
    let time_us = START_US + at as i64 * PERIOD_US;
    let payload = serde_json::json!({ "t": time_us / 1_000, "s": rows[at..at + MESSAGE] });
    Message {
        topic: format!("wrist/{device}"),
        payload: payload.to_string().into_bytes(),
        qos: 1,
        stream: "wrist",
        device: device.to_string(),
        lane: "high",
        fate: Fate::Filtered,
    }
}

#[test]
fn each_whole_window_gets_one_verdict_and_the_doubtful_ones_are_kept_as_they_were() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/watch-small.toml");
    let streams = format!(
        "[[model]]\nname = \"watch\"\nmanifest = \"{}\"\n[infer]\nbackend = \"rten\"\n\
         [[stream]]\nname = \"wrist\"\ntopics = [\"wrist/+\"]\nclass = \"high\"\nmodel = \"watch\"\nfidelity = \"verdict\"\n\
         keep = {{ verdicts = [{{ confidence_below = {CONFIDENCE} }}] }}\n\
         payload = {{ format = \"json\", layout = \"rows\", samples = \"/s\", channels = {CHANNELS}, rate_hz = 50.0, \
         time = \"/t\", time_unit = \"ms\", time_of = \"first\" }}\n",
        manifest.display()
    );
    let mut site = Site::started(binaries(), Plan::new("through", &streams));
    let recordings: Vec<_> = [8, 9, 10].map(recording).into();
    let count = WINDOWS * WINDOW / MESSAGE + REST;
    let sensors = recordings.iter().cloned().enumerate().map(|(device, rows)| {
        let mut sensor = Sensor::new(site.mqtt(), &format!("wrist-{device}"), move |n| message(device, &rows, n));
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
