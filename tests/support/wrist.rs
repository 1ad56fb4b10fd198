//! Recordings of wrists as messages, and where in time their verdicts lie.

use std::path::Path;

use super::oracle;
use super::script::{Fate, Message};

/// Channels of a recording.
pub const CHANNELS: usize = 6;
/// Samples of a window.
pub const WINDOW: usize = 128;
/// Samples of a message.
pub const MESSAGE: usize = 32;
/// Messages of a window.
pub const MESSAGES_PER_WINDOW: usize = WINDOW / MESSAGE;
/// Time between two samples.
pub const PERIOD_US: i64 = 20_000;
/// Time of the first sample, since the Unix epoch.
pub const START_US: i64 = 1_790_000_000_000_000;

/// Rows of a recording in `models/recordings`: six numbers each.
///
/// # Panics
/// If it is not there.
pub fn recording(subject: u32) -> Vec<[i32; CHANNELS]> {
    let file = format!("../models/recordings/watch_subject{subject}.csv");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("it is in the repository");
    let row = |line: &str| {
        let numbers: Vec<i32> = line.split(',').skip(4).map(|number| number.parse().expect("a number")).collect();
        numbers.try_into().expect("six numbers")
    };
    text.lines().skip(1).map(row).collect()
}

/// What was done in each row of a recording.
///
/// # Panics
/// If it is not there.
pub fn exercises(subject: u32) -> Vec<String> {
    let file = format!("../models/recordings/watch_subject{subject}.csv");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("it is in the repository");
    text.lines().skip(1).map(|line| line.split(',').nth(3).expect("an exercise").to_owned()).collect()
}

/// The `n`-th message of a device: 32 samples with the time of the first. A recording that has ended begins again.
pub fn message(stream: &'static str, device: usize, rows: &[[i32; CHANNELS]], n: u32) -> Message {
    let at = n as usize * MESSAGE;
    let time_us = START_US + at as i64 * PERIOD_US;
    let samples: Vec<_> = (at..at + MESSAGE).map(|at| rows[at % rows.len()]).collect();
    let payload = serde_json::json!({ "t": time_us / 1_000, "s": samples });
    Message {
        topic: format!("{stream}/{device}"),
        payload: payload.to_string().into_bytes(),
        qos: 1,
        stream,
        device: device.to_string(),
        lane: "high",
        fate: Fate::Filtered,
    }
}

/// The small model on the embedded engine, as tables of a configuration.
pub fn model() -> String {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/watch-small.toml");
    format!("[[model]]\nname = \"watch\"\nmanifest = \"{}\"\n[infer]\nbackend = \"rten\"\n", manifest.display())
}

/// A stream that is kept as verdicts, with further keys.
pub fn stream(name: &str, keys: &str) -> String {
    format!(
        "[[stream]]\nname = \"{name}\"\ntopics = [\"{name}/+\"]\nclass = \"high\"\nmodel = \"watch\"\nfidelity = \"verdict\"\n{keys}\n\
         payload = {{ format = \"json\", layout = \"rows\", samples = \"/s\", channels = {CHANNELS}, rate_hz = 50.0, \
         time = \"/t\", time_unit = \"ms\", time_of = \"first\" }}\n"
    )
}

/// First and last time of the windows of a stream's first device that have a verdict in the database.
///
/// # Panics
/// If it cannot be read.
pub fn windows(database: &Path, stream: &str) -> Vec<(i64, i64)> {
    let db = oracle::open(database);
    let mut query = db
        .prepare("SELECT DISTINCT start_us, end_us FROM verdicts WHERE stream = ?1 AND device = '0' ORDER BY start_us")
        .expect("the view is as SCHEMA.md says");
    let rows = query.query_map([stream], |row| Ok((row.get(0)?, row.get(1)?))).expect("it can be read");
    rows.map(|row| row.expect("two times")).collect()
}

/// True if every sample of the `n`-th message is in one of these windows.
pub fn is_covered(windows: &[(i64, i64)], n: u32) -> bool {
    let first = START_US + i64::from(n) * MESSAGE as i64 * PERIOD_US;
    (0..MESSAGE as i64).all(|at| {
        let time_us = first + at * PERIOD_US;
        windows.iter().any(|&(start_us, end_us)| (start_us..=end_us).contains(&time_us))
    })
}
