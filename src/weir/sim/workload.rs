//! What sensors send and what it is worth: the mix that policies are measured on.
//!
//! `value(record) = weight x raw Mbit x v[level] x u(lateness)`. `v` is the stream's fidelity ladder, `u` a
//! staircase: 1 until the deadline, `late_value` until `late_until`, 0 after. The weight is per *raw*
//! bit: a record's worth does not grow because it was sent in more bytes.
//!
//! Ladders must be concave in bytes (each step down saves bytes at a rising price), or skipping a step
//! would pay; this is checked. The default mix discriminates: at four times the link's rate a plain bridge
//! reaches a sixth of what is possible, strict priorities two thirds, and no class dominates. All of it can be
//! written in a file; `config/sim/workload.toml` is the default, with every key explained.

use serde::{Deserialize, Serialize};
use weir_host::{
    config::{Checker, ConfigErrors, load_checked},
    units::{Bytes, Duration, Ratio},
};
use weir_logic::ids::Class;

/// Share of a record's raw bytes at each level: raw, thin2, thin4, aggregate, verdict.
pub const LEVEL_BYTES: [f64; 5] = [1.0, 1.0 / 2.0, 1.0 / 4.0, 1.0 / 16.0, 1.0 / 64.0];
/// Names of the levels, in the same order.
pub const LEVEL_NAMES: [&str; 5] = ["raw", "thin2", "thin4", "aggregate", "verdict"];
const STREAMS_MAX: usize = 64;
const RECORD_MAX: Bytes = Bytes::from_mib(1);
const LUMP_MAX: Duration = Duration::from_secs(600);

/// Streams, and what happens to them all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// Standard deviation of what a stream sends in a second, as a share of its mean.
    pub rate_deviation: Ratio,
    /// Mean time from the end of an anomaly to the next.
    pub anomaly_gap: Duration,
    /// Shortest anomaly.
    pub anomaly_min: Duration,
    /// Longest anomaly.
    pub anomaly_max: Duration,
    /// What records of bursting streams are worth in an anomaly, against otherwise.
    pub anomaly_weight: f64,
    /// The box's buffer: what the link carries in this time at its mean rate.
    pub buffer: Duration,
    /// The streams.
    pub stream: Vec<StreamSpec>,
}

/// One stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSpec {
    /// For people.
    pub name: String,
    /// Its class.
    pub class: SpecClass,
    /// Its part of the offered bytes outside anomalies; parts are relative to their sum.
    pub share: Ratio,
    /// What a raw Mbit is worth.
    pub weight: f64,
    /// A record is worth all of it until then.
    pub deadline: Duration,
    /// And this part of it after.
    #[serde(default)]
    pub late_value: f64,
    /// Until then; without it for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_until: Option<Duration>,
    /// What the levels raw, thin2, thin4, aggregate and verdict are worth; those left out are not allowed.
    pub fidelity: Vec<f64>,
    /// In an anomaly it sends so many times as much.
    #[serde(default = "one")]
    pub burst: f64,
    /// It is silent and then sends what came together in this time at once; zero for a steady stream.
    #[serde(default)]
    pub lump: Duration,
    /// Mean size of a record; single ones differ by up to 30 %.
    pub record: Bytes,
    /// Devices that take turns.
    #[serde(default = "one_device")]
    pub devices: u16,
}

/// The class of a stream, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpecClass {
    /// [`Class::Critical`].
    Critical,
    /// [`Class::High`].
    High,
    /// [`Class::Normal`].
    Normal,
    /// [`Class::Bulk`].
    Bulk,
}

impl Workload {
    /// Reads a mix; `file` is its name in messages.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_toml(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        load_checked(file, text, Self::check)
    }

    /// The same mix with records of so many times the size.
    pub fn with_records(mut self, times: f64) -> Self {
        for stream in &mut self.stream {
            stream.record = Bytes::new((stream.record.get() as f64 * times).round() as u64);
        }
        self
    }

    /// The same mix with every deadline multiplied.
    pub fn with_deadlines(mut self, scale: f64) -> Self {
        let times = |duration: Duration| Duration::from_micros((duration.as_micros() as f64 * scale).round() as u64);
        for stream in &mut self.stream {
            stream.deadline = times(stream.deadline);
            stream.late_until = stream.late_until.map(times);
        }
        self
    }

    fn check(&self, check: &mut Checker<'_>) {
        if self.stream.is_empty() || self.stream.len() > STREAMS_MAX {
            check.mistake("stream", format!("{} streams, not 1 to {STREAMS_MAX}", self.stream.len()), "");
        }
        if self.rate_deviation > Ratio::from_percent(100) {
            check.mistake("rate_deviation", format!("{} is more than 100%", self.rate_deviation), "");
        }
        if self.anomaly_max < self.anomaly_min || self.anomaly_gap.is_zero() {
            check.mistake("anomaly_max", "anomalies need a gap, and `anomaly_max` at least `anomaly_min`", "");
        }
        if !(0.0..=1e6).contains(&self.anomaly_weight) {
            check.mistake("anomaly_weight", "a weight is from 0 to 1e6", "");
        }
        if self.buffer.is_zero() {
            check.mistake("buffer", "a box without a buffer can hold nothing", "for example buffer = \"600s\"");
        }
        for (index, stream) in self.stream.iter().enumerate() {
            stream.check(index, check);
        }
    }
}

impl StreamSpec {
    /// Its class, as the rest of Weir knows it.
    pub fn class(&self) -> Class {
        match self.class {
            SpecClass::Critical => Class::Critical,
            SpecClass::High => Class::High,
            SpecClass::Normal => Class::Normal,
            SpecClass::Bulk => Class::Bulk,
        }
    }

    /// What part of a record's worth is left when it is that late.
    pub fn usefulness(&self, lateness_us: u64) -> f64 {
        if lateness_us <= self.deadline.as_micros() {
            1.0
        } else if self.late_value > 0.0 && self.late_until.is_none_or(|until| lateness_us <= until.as_micros()) {
            self.late_value
        } else {
            0.0
        }
    }

    /// Lateness after which a record is worth nothing; `None` if it is always worth something.
    pub fn useful_us(&self) -> Option<u64> {
        match self.late_until {
            _ if self.late_value <= 0.0 => Some(self.deadline.as_micros()),
            Some(until) => Some(until.as_micros()),
            None => None,
        }
    }

    fn check(&self, index: usize, check: &mut Checker<'_>) {
        let mut refuse = |is_wrong: bool, name: &str, message: &str, hint: &str| {
            if is_wrong {
                check.mistake(&format!("stream[{index}].{name}"), message, hint);
            }
        };
        refuse(self.share.ppm() == 0, "share", "a stream without a share sends nothing", "leave the stream out");
        refuse(!(0.0..=1e6).contains(&self.weight), "weight", "a weight is from 0 to 1e6", "");
        refuse(!(0.0..=1.0).contains(&self.late_value), "late_value", "a part of the worth is from 0 to 1", "");
        let until_is_bad = self.late_until.is_some_and(|until| until <= self.deadline);
        refuse(until_is_bad, "late_until", "it ends before `deadline`", "leave it out if late is worth something for ever");
        refuse(!(1.0..=1e3).contains(&self.burst), "burst", "a burst is from 1 to 1000", "");
        refuse(
            self.lump > LUMP_MAX || !self.lump.as_micros().is_multiple_of(1_000_000),
            "lump",
            "whole seconds up to 600s",
            "",
        );
        let record_is_bad = !(Bytes::new(16)..=RECORD_MAX).contains(&self.record);
        refuse(record_is_bad, "record", "a record has 16 B to 1 MiB", "");
        refuse(self.devices == 0, "devices", "a stream has at least one device", "");
        let fault = ladder_fault(&self.fidelity);
        refuse(fault.is_some(), "fidelity", fault.unwrap_or_default(), "for example [1.0, 0.9, 0.75, 0.5, 0.25]");
    }
}

/// What is wrong with a ladder.
fn ladder_fault(fidelity: &[f64]) -> Option<&'static str> {
    if !(1..=LEVEL_BYTES.len()).contains(&fidelity.len()) || fidelity[0] != 1.0 {
        return Some("one to five levels, the first (raw) is worth 1");
    }
    if fidelity.iter().any(|worth| !(0.0..=1.0).contains(worth)) {
        return Some("a level is worth 0 to 1");
    }
    let slopes: Vec<f64> = (1..fidelity.len())
        .map(|level| (fidelity[level - 1] - fidelity[level]) / (LEVEL_BYTES[level - 1] - LEVEL_BYTES[level]))
        .collect();
    let is_falling = slopes.iter().any(|slope| *slope <= 0.0);
    let is_hollow = slopes.windows(2).any(|pair| pair[1] < pair[0]);
    if is_falling || is_hollow { Some("each step down has to cost more per byte saved than the one above it") } else { None }
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            rate_deviation: Ratio::from_percent(50),
            anomaly_gap: Duration::from_secs(200),
            anomaly_min: Duration::from_secs(10),
            anomaly_max: Duration::from_secs(40),
            anomaly_weight: 2.0,
            buffer: Duration::from_secs(600),
            stream: default_streams(),
        }
    }
}

fn default_streams() -> Vec<StreamSpec> {
    const TELE: &[f64] = &[1.0, 0.9, 0.75, 0.5, 0.25];
    const WAVE: &[f64] = &[1.0, 0.7, 0.45, 0.25, 0.12];
    const LOG: &[f64] = &[1.0, 0.8, 0.6, 0.3, 0.1];
    let stream = |name: &str, class, percent, weight, deadline_s, late: (f64, u64), fidelity: &[f64]| StreamSpec {
        name: name.to_owned(),
        class,
        share: Ratio::from_percent(percent),
        weight,
        deadline: Duration::from_secs(deadline_s),
        late_value: late.0,
        late_until: (late.1 > 0).then(|| Duration::from_secs(late.1)),
        fidelity: fidelity.to_vec(),
        burst: 1.0,
        lump: Duration::ZERO,
        record: Bytes::new(1_024),
        devices: 4,
    };
    let (lump, kib) = (Duration::from_secs(10), Bytes::from_kib);
    use SpecClass::{Bulk, Critical, High, Normal};
    vec![
        StreamSpec { burst: 6.0, record: Bytes::new(200), ..stream("alarm", Critical, 2, 40.0, 5, (0.5, 0), &[1.0]) },
        StreamSpec { burst: 4.0, record: kib(2), ..stream("vib", High, 10, 10.0, 30, (0.2, 600), WAVE) },
        StreamSpec { record: Bytes::new(512), ..stream("hmi", High, 8, 8.0, 10, (0.2, 120), TELE) },
        StreamSpec { devices: 16, ..stream("tele", Normal, 20, 3.0, 60, (0.2, 600), TELE) },
        StreamSpec { burst: 2.0, lump, record: kib(8), ..stream("wave", Normal, 20, 4.0, 300, (0.2, 3_000), WAVE) },
        StreamSpec { lump, record: kib(16), ..stream("rawbulk", Bulk, 30, 1.0, 14_400, (0.0, 0), LOG) },
        StreamSpec { burst: 2.0, ..stream("logs", Bulk, 10, 0.5, 14_400, (0.0, 0), LOG) },
    ]
}

fn one() -> f64 {
    1.0
}

fn one_device() -> u16 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../../config/sim/workload.toml");

    #[test]
    fn the_shipped_file_is_the_default() {
        assert_eq!(Workload::from_toml("workload.toml", SHIPPED).unwrap(), Workload::default());
    }

    #[test]
    fn mistakes_are_all_shown_with_a_hint() {
        let text =
            SHIPPED.replacen("[1.0, 0.7, 0.45, 0.25, 0.12]", "[1.0, 0.4, 0.35]", 1).replacen("burst = 6.0", "burst = 0.5", 1);
        let errors = Workload::from_toml("w.toml", &text).unwrap_err().to_string();
        assert!(errors.contains("each step down has to cost more per byte saved"), "{errors}");
        assert!(errors.contains("a burst is from 1 to 1000") && errors.contains("2 mistakes"), "{errors}");
    }

    #[test]
    fn worth_falls_in_steps_and_never_for_what_has_no_end() {
        let workload = Workload::default();
        let (alarm, vib, logs) = (&workload.stream[0], &workload.stream[1], &workload.stream[6]);
        assert_eq!([5_000_000, 5_000_001, u64::MAX].map(|late| alarm.usefulness(late)), [1.0, 0.5, 0.5]);
        assert_eq!([30_000_000, 600_000_000, 600_000_001].map(|late| vib.usefulness(late)), [1.0, 0.2, 0.0]);
        assert_eq!([alarm.useful_us(), vib.useful_us(), logs.useful_us()], [None, Some(600_000_000), Some(14_400_000_000)]);
        let short = workload.with_deadlines(0.2);
        assert_eq!([5_999_999, 6_000_001].map(|late| short.stream[1].usefulness(late)), [1.0, 0.2]);
    }
}
