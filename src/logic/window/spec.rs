//! The configuration of windows and aggregates, checked and turned into numbers.

use serde::Deserialize;

use super::span::{duration_us, optional_duration_us};
use super::{AggregateSpec, SPAN_US_MAX, Span, WINDOW_SAMPLES_MAX, WINDOW_VALUES_MAX};

/// How a stream's samples are cut into windows: the table `window`.
///
/// ```toml
/// window = { length = "128 samples", step = "64 samples", gap_max = "500ms", reorder_max = "100ms" }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowConfig {
    /// Length of a window, in samples, or in time if the stream's rate is known.
    pub length: Span,
    /// From the start of one window to the start of the next. Default: `length`, so that windows do not overlap.
    #[serde(default)]
    pub step: Option<Span>,
    /// A longer silence between two samples starts a new window. Default: 10 periods, at least `"1s"`; without a rate, the
    /// longest span there is (366 days).
    #[serde(default, rename = "gap_max", deserialize_with = "optional_duration_us")]
    pub gap_max_us: Option<i64>,
    /// How late a sample may be and still be put in its place; one that is older means that the clock was set back. Not
    /// above `gap_max`. Default: `"1s"`, or `gap_max` if that is shorter.
    #[serde(default, rename = "reorder_max", deserialize_with = "optional_duration_us")]
    pub reorder_max_us: Option<i64>,
}

/// A checked [`WindowConfig`]: everything in samples and microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowSpec {
    pub(super) channels: usize,
    pub(super) length: usize,
    pub(super) step: usize,
    pub(super) gap_max_us: i64,
    pub(super) reorder_max_us: i64,
}

impl WindowSpec {
    /// Checks a configuration for a stream of this many channels and this rate.
    ///
    /// A length in time is turned into samples by the rate, once, here: sensors that sample irregularly fill a window when
    /// they have sent its number of samples, and their times serve only to find gaps. Nothing is resampled.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn new(config: &WindowConfig, channels: usize, rate_hz: Option<f64>) -> Result<WindowSpec, Vec<SpecError>> {
        let mut errors = Vec::new();
        let mut samples = |key, span| match in_samples(key, span, rate_hz) {
            Ok(samples) => samples,
            Err(error) => {
                errors.push(error);
                1
            }
        };
        let length = samples("length", config.length);
        let step = samples("step", config.step.unwrap_or(config.length));
        if channels == 0 {
            errors.push(SpecError::NoChannels);
        }
        if length.saturating_mul(channels) > WINDOW_VALUES_MAX {
            errors.push(SpecError::TooLarge { length, channels });
        }
        let gap_default_us = rate_hz.map_or(SPAN_US_MAX, |rate_hz| ((1e7 / rate_hz) as i64).clamp(1_000_000, SPAN_US_MAX));
        let gap_max_us = config.gap_max_us.unwrap_or(gap_default_us);
        let reorder_max_us = config.reorder_max_us.unwrap_or(gap_max_us.min(1_000_000));
        if reorder_max_us > gap_max_us {
            errors.push(SpecError::Reorder { reorder_max_us, gap_max_us });
        }
        if errors.is_empty() {
            Ok(WindowSpec { channels, length, step, gap_max_us, reorder_max_us })
        } else {
            errors.dedup();
            Err(errors)
        }
    }

    /// Samples in a window.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Samples from the start of one window to the start of the next.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Values in a sample.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Bytes that a windower of this spec keeps for one device once it has seen a sample.
    pub fn device_bytes(&self) -> usize {
        self.length * (self.channels * size_of::<f32>() + size_of::<i64>()) + size_of::<super::Windower>()
    }
}

/// How a stream's samples are aggregated: the table `aggregate`.
///
/// ```toml
/// aggregate = { every = "1m", reorder_max = "1s" }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AggregateConfig {
    /// Length of each span, aligned to multiples of itself since the Unix epoch.
    #[serde(rename = "every", deserialize_with = "duration_us")]
    pub every_us: i64,
    /// How late a sample may be and still count into the open span; also how long a span waits for such samples after its
    /// end. Default: `"1s"`, or `every` if that is shorter.
    #[serde(default, rename = "reorder_max", deserialize_with = "optional_duration_us")]
    pub reorder_max_us: Option<i64>,
}

impl AggregateSpec {
    /// Checks a configuration for a stream of this many channels.
    ///
    /// # Errors
    /// If the stream has no values to aggregate, or `every` is not from 1 us to 366 days.
    pub fn new(config: &AggregateConfig, channels: usize) -> Result<AggregateSpec, SpecError> {
        if channels == 0 {
            return Err(SpecError::NoChannels);
        }
        if !(1..=SPAN_US_MAX).contains(&config.every_us) {
            return Err(SpecError::Every { every_us: config.every_us });
        }
        let reorder_max_us = config.reorder_max_us.unwrap_or(config.every_us.min(1_000_000));
        Ok(AggregateSpec { channels, every_us: config.every_us, reorder_max_us })
    }
}

fn in_samples(key: &'static str, span: Span, rate_hz: Option<f64>) -> Result<usize, SpecError> {
    let samples = match (span, rate_hz) {
        (Span::Samples(samples), _) => samples,
        (Span::TimeUs(us), Some(rate_hz)) => (us as f64 * rate_hz / 1e6).round() as usize,
        (Span::TimeUs(_), None) => return Err(SpecError::NoRate { key }),
    };
    if (1..=WINDOW_SAMPLES_MAX).contains(&samples) { Ok(samples) } else { Err(SpecError::Samples { key, samples }) }
}

/// A mistake in the configuration of windows or aggregates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The payload format yields no values.
    #[error("the stream has no values (its payload is opaque): choose a payload format that decodes them")]
    NoChannels,
    /// A length in time needs a rate.
    #[error("window `{key}` is a time, but the payload has no `rate_hz`: add it, or give the length as \"N samples\"")]
    NoRate {
        /// `length` or `step`.
        key: &'static str,
    },
    /// A length is out of range.
    #[error("window `{key}` is {samples} samples: give 1 to {WINDOW_SAMPLES_MAX}")]
    Samples {
        /// `length` or `step`.
        key: &'static str,
        /// What it comes to.
        samples: usize,
    },
    /// A window holds too many values.
    #[error("a window of {length} samples of {channels} channels exceeds the limit of {WINDOW_VALUES_MAX} values: shorten it")]
    TooLarge {
        /// Samples.
        length: usize,
        /// Channels.
        channels: usize,
    },
    /// Reordering over a gap would put a gap inside a window.
    #[error("reorder_max of {reorder_max_us} us is above gap_max of {gap_max_us} us: lower it, or raise gap_max")]
    Reorder {
        /// What the configuration says.
        reorder_max_us: i64,
        /// What the configuration says, or its default.
        gap_max_us: i64,
    },
    /// The span of aggregates is out of range.
    #[error("aggregates every {every_us} us: give 1us to 366d")]
    Every {
        /// What the configuration says.
        every_us: i64,
    },
}
