//! What the records of a stream are worth when an uplink cannot carry all, and how the price of its bytes is made.

use serde::Deserialize;
use weir_host::units::{BitRate, Duration};
use weir_logic::ids::Class;
use weir_logic::payload::PayloadFormat;
use weir_logic::price::{Ladder, LadderError, Lateness, Level, PriceLimits, StreamValue};

use super::policy::StreamMistake;

/// `value` of a `[[stream]]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Value {
    /// Worth of a raw megabit that comes in time; only relations between streams matter.
    pub weight: f64,
    /// Age up to which a record is worth all of that.
    pub deadline: Duration,
    /// Part of the worth that is left after the deadline.
    pub late_value: f64,
    /// Age from which nothing is left; `None` for never.
    pub late_until: Option<Duration>,
    /// How the worth falls when records are thinned.
    pub ladder: LadderName,
    /// The coarsest that its records may be sent.
    pub floor: Floor,
    /// Worth of thin2, thin4 and aggregate in place of a named ladder's.
    pub worth: Option<[f64; 3]>,
}

impl Default for Value {
    fn default() -> Self {
        Value {
            weight: 1.0,
            deadline: Duration::from_secs(60),
            late_value: 0.2,
            late_until: None,
            ladder: LadderName::Telemetry,
            floor: Floor::Raw,
            worth: None,
        }
    }
}

/// A ladder by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LadderName {
    /// Slow measurements: half of them say nearly as much.
    Telemetry,
    /// Waveforms: much is lost with the first half.
    Wave,
    /// Logs.
    Log,
}

/// The coarsest level that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Floor {
    /// Nothing is thinned.
    Raw,
    /// Every second message at least.
    Thin2,
    /// Every fourth message at least.
    Thin4,
    /// Minimum, maximum, mean and count of sixteen messages at least.
    Aggregate,
}

/// `[plan]`: how the price of a byte is made.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlanConfig {
    /// How far ahead is planned.
    pub horizon: Duration,
    /// Part of what the uplink is forecast to carry that is planned with.
    pub fineness: f64,
    /// Uplinks that each critical record is sent over at the same time.
    pub critical_copies: u8,
}

impl Default for PlanConfig {
    fn default() -> Self {
        PlanConfig { horizon: Duration::from_secs(60), fineness: 1.1, critical_copies: 1 }
    }
}

impl PlanConfig {
    /// The limits as the core takes them.
    pub fn limits(&self) -> PriceLimits {
        PriceLimits { horizon_us: self.horizon.as_micros(), kappa: self.fineness, ..PriceLimits::default() }
    }
}

/// What an uplink is assumed to carry before anything is measured: a fair LTE link.
pub(super) fn nominal_bps(rate: Option<BitRate>) -> u64 {
    rate.map_or(10_000_000, BitRate::bits_per_s)
}

const BYTES_PER_MBIT: f64 = 125_000.0;

/// The value as the core takes it; what is wrong is added to `mistakes`.
pub(super) fn resolve(
    value: &Value,
    class: Class,
    payload: &PayloadFormat,
    mistakes: &mut Vec<StreamMistake>,
) -> Option<StreamValue> {
    let before = mistakes.len();
    let mut add = |key: &str, message: String, hint: &str| {
        mistakes.push(StreamMistake { key: format!("value.{key}"), message, hint: hint.to_owned() });
    };
    if !(value.weight > 0.0 && value.weight <= 1e9) {
        add(
            "weight",
            format!("{} is not above 0 and at most 1e9", value.weight),
            "a tenth of another stream's is worth a tenth",
        );
    }
    if !(0.0..=1.0).contains(&value.late_value) {
        add("late_value", format!("{} is not within 0 to 1", value.late_value), "it is a part of the worth in time");
    }
    if let Some(late_until) = value.late_until.filter(|until| *until < value.deadline) {
        add("late_until", format!("{late_until} is before the deadline of {}", value.deadline), "make it longer, or remove it");
    }
    let floor = match value.floor {
        Floor::Raw => Level::Raw,
        Floor::Thin2 => Level::Thin2,
        Floor::Thin4 => Level::Thin4,
        Floor::Aggregate => Level::Aggregate,
    };
    if class == Class::Critical && floor != Level::Raw {
        add("floor", "a critical stream is never thinned".to_owned(), "remove it, or choose another class");
    }
    if matches!(payload, PayloadFormat::Opaque(_)) && floor == Level::Aggregate {
        let message = "opaque payloads cannot be aggregated".to_owned();
        add("floor", message, "write floor = \"thin4\", or say in `payload` how they are read");
    }
    if matches!(payload, PayloadFormat::Sparkplug(_)) && floor != Level::Raw {
        let message = "Sparkplug B cannot be thinned: a message left out may be the birth that others need".to_owned();
        add("floor", message, "write floor = \"raw\"");
    }
    let named = match value.ladder {
        LadderName::Telemetry => Ladder::TELEMETRY,
        LadderName::Wave => Ladder::WAVE,
        LadderName::Log => Ladder::LOG,
    };
    let of_worth =
        |[thin2, thin4, aggregate]: [f64; 3]| Ladder::new([Some(1.0), Some(thin2), Some(thin4), Some(aggregate), None]);
    match value.worth.map_or(Ok(named), of_worth) {
        Ok(ladder) if mistakes.len() == before => Some(StreamValue {
            weight: value.weight / BYTES_PER_MBIT,
            ladder: ladder.down_to(floor),
            lateness: Lateness {
                d0_us: value.deadline.as_micros(),
                d1_us: value.late_until.map(Duration::as_micros),
                u1: value.late_value,
            },
            is_exempt: class == Class::Critical,
        }),
        Ok(_) => None,
        Err(err) => {
            let hint = match err {
                LadderError::Concave { .. } => "",
                _ => "each must be below the one before, and above 0",
            };
            mistakes.push(StreamMistake { key: "value.worth".to_owned(), message: err.to_string(), hint: hint.to_owned() });
            None
        }
    }
}
