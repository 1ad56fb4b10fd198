//! Lengths in samples or in time, as text with a unit.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

use super::SPAN_US_MAX;

/// A length of a window: `"128 samples"`, or a time such as `"2.56s"`. A bare number is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// A number of samples, at least 1.
    Samples(usize),
    /// A time in microseconds, at least 1 and at most 366 days.
    TimeUs(i64),
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Span, SpanError> {
        let Some(number) = text.trim_end().strip_suffix("samples") else {
            return parse_duration_us(text).map(Span::TimeUs);
        };
        match number.trim().parse() {
            Ok(samples) if samples > 0 => Ok(Span::Samples(samples)),
            _ => Err(SpanError { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Span::Samples(samples) => write!(f, "{samples} samples"),
            Span::TimeUs(us) => write!(f, "{us}us"),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        deserializer
            .deserialize_str(TextVisitor { parse: Span::from_str, expecting: "a text such as \"128 samples\" or \"2.5s\"" })
    }
}

/// Reads a time such as `"250ms"`, `"1.5s"`, `"5m"`, `"2h"` or `"7d"` (also `us`) into microseconds.
///
/// # Errors
/// Without a unit, for zero, for more than 366 days, or when it is not a whole number of microseconds.
pub fn parse_duration_us(text: &str) -> Result<i64, SpanError> {
    exact_us(text.trim()).filter(|us| (1..=SPAN_US_MAX).contains(us)).ok_or_else(|| SpanError { text: text.to_owned() })
}

fn exact_us(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let unit_us: i64 = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    let number = number.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| !part.is_empty() && part.len() <= 12 && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let scale = 10_i128.pow(fraction.len() as u32);
    let parts = i128::from(unit_us) * fraction.parse::<i128>().ok()?;
    if parts % scale != 0 {
        return None;
    }
    i64::try_from(i128::from(unit_us) * whole.parse::<i128>().ok()? + parts / scale).ok()
}

/// A text that is not a length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a length: write a number and its unit, such as \"250ms\", \"30s\", \"5m\" (1us to 366d), or \"128 samples\" for a window"
)]
pub struct SpanError {
    text: String,
}

/// For serde: an optional time as text.
pub(super) fn optional_duration_us<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    duration_us(deserializer).map(Some)
}

/// For serde: a time as text.
pub(super) fn duration_us<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    deserializer.deserialize_str(TextVisitor { parse: parse_duration_us, expecting: "a text such as \"250ms\" or \"30s\"" })
}

struct TextVisitor<T> {
    parse: fn(&str) -> Result<T, SpanError>,
    expecting: &'static str,
}

impl<T> de::Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
}
