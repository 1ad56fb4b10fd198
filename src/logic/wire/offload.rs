//! A window for a larger model, and its answer: one bidirectional stream for each request.
//!
//! The box sends one [`OffloadRequest`] as a control message and ends its side; the cloud sends one [`OffloadAnswer`] or
//! [`OffloadRefusal`] and ends its own. A box that does not wait any longer resets the stream. What pools there are for a
//! box, and how busy they are, comes on the control stream ([`PoolViews`]).
//!
//! Values go as `f32`, or as int16 if the pool's model allows it: per channel a smallest value and a step. Counts of a
//! converter (whole numbers over a range of up to 65,535) get a step of one and lose nothing.

use bytes::Bytes;
use prost::Message;

use crate::payload::CHANNELS_MAX;

/// Most values in a window that is sent on: 256 KiB as `f32`.
pub const OFFLOAD_VALUES_MAX: usize = 65_536;
/// Most pools in a [`PoolViews`].
pub const POOLS_MAX: usize = 16;

/// A window to be scored.
#[derive(Clone, PartialEq, Message)]
pub struct OffloadRequest {
    /// Name of the pool.
    #[prost(string, tag = "1")]
    pub pool: String,
    /// The task that it is to do there.
    #[prost(string, tag = "2")]
    pub task: String,
    /// [`crate::ids::Class::index`].
    #[prost(uint32, tag = "3")]
    pub class: u32,
    /// In how many milliseconds from now the answer is of no use any more.
    #[prost(uint32, tag = "4")]
    pub deadline_ms: u32,
    /// Channels of the window.
    #[prost(uint32, tag = "5")]
    pub channels: u32,
    /// Samples of each channel.
    #[prost(uint32, tag = "6")]
    pub length: u32,
    /// For int16: smallest value and step of each channel, flat; empty for `f32`.
    #[prost(float, repeated, tag = "7")]
    pub scales: Vec<f32>,
    /// `[channels][length]`, little-endian, row-major.
    #[prost(bytes = "bytes", tag = "8")]
    pub data: Bytes,
}

/// What the pool's model says.
#[derive(Clone, PartialEq, Message)]
pub struct OffloadAnswer {
    /// Label; empty if the model has none.
    #[prost(string, tag = "1")]
    pub label: String,
    /// Score.
    #[prost(float, tag = "2")]
    pub score: f32,
    /// How sure it is, 0 to 1.
    #[prost(float, tag = "3")]
    pub confidence: f32,
    /// Name of the model.
    #[prost(string, tag = "4")]
    pub model: String,
    /// Its version.
    #[prost(string, tag = "5")]
    pub version: String,
    /// How long the request waited, in microseconds.
    #[prost(uint64, tag = "6")]
    pub queue_us: u64,
    /// How long its batch ran, in microseconds.
    #[prost(uint64, tag = "7")]
    pub compute_us: u64,
}

/// Why there will be no answer.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OffloadRefusal {
    /// [`RefusalKind::code`].
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    /// In words.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// When it may be tried again, in milliseconds from now; 0 for at once.
    #[prost(uint32, tag = "3")]
    pub retry_after_ms: u32,
}

/// What a refusal means for the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    /// The pool works, but not for this request now: the box waits as long as it says.
    Busy,
    /// The pool works, but not as fast as this deadline needs.
    Late,
    /// There is no such pool for this box, or it does not do that.
    Denied,
    /// The model failed, or the request makes no sense.
    Failed,
}

impl RefusalKind {
    /// All of them; the number on the wire is the position and one more.
    pub const ALL: [RefusalKind; 4] = [RefusalKind::Busy, RefusalKind::Late, RefusalKind::Denied, RefusalKind::Failed];

    /// The number on the wire.
    pub const fn code(self) -> u32 {
        self as u32 + 1
    }

    /// What a number means; one that a newer cloud made up is a failure.
    pub fn from_code(code: u32) -> RefusalKind {
        let at = (code as usize).checked_sub(1);
        at.and_then(|at| RefusalKind::ALL.get(at).copied()).unwrap_or(RefusalKind::Failed)
    }

    /// The word used in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            RefusalKind::Busy => "busy",
            RefusalKind::Late => "late",
            RefusalKind::Denied => "denied",
            RefusalKind::Failed => "failed",
        }
    }
}

/// The pools that a box may use; replaces what was said before.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PoolViews {
    /// At most [`POOLS_MAX`].
    #[prost(message, repeated, tag = "1")]
    pub pools: Vec<PoolView>,
}

/// A pool as a box sees it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PoolView {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it does.
    #[prost(string, tag = "2")]
    pub task: String,
    /// Name of its model.
    #[prost(string, tag = "3")]
    pub model: String,
    /// Version of its model.
    #[prost(string, tag = "4")]
    pub version: String,
    /// Zone that it is in; empty if nobody said.
    #[prost(string, tag = "5")]
    pub zone: String,
    /// Channels that its model takes.
    #[prost(uint32, tag = "6")]
    pub channels: u32,
    /// Samples that its model takes.
    #[prost(uint32, tag = "7")]
    pub length: u32,
    /// True if windows may come as int16.
    #[prost(bool, tag = "8")]
    pub int16: bool,
    /// How full its queue is, in percent.
    #[prost(uint32, tag = "9")]
    pub queue_percent: u32,
    /// Median time from a request's coming to its answer of late, in microseconds; 0 if there was none.
    #[prost(uint64, tag = "10")]
    pub p50_us: u64,
    /// The 95th percentile of the same.
    #[prost(uint64, tag = "11")]
    pub p95_us: u64,
    /// How old these are in milliseconds.
    #[prost(uint64, tag = "12")]
    pub age_ms: u64,
}

/// Why the values of a request cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Its shape.
    #[error(
        "a window of {channels} channels of {length} samples is outside the limits of {CHANNELS_MAX} channels and {OFFLOAD_VALUES_MAX} values"
    )]
    Shape {
        /// Channels.
        channels: u32,
        /// Samples.
        length: u32,
    },
    /// Its bytes do not make this shape.
    #[error("{len} bytes and {scales} scales are not {values} values")]
    Length {
        /// Bytes.
        len: usize,
        /// Numbers of scales.
        scales: usize,
        /// Values of the shape.
        values: usize,
    },
    /// A value that no sensor measures.
    #[error("a value is not finite")]
    NotFinite,
}

/// The values of a window as bytes, with scales if they are int16.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedWindow {
    /// See [`OffloadRequest::scales`].
    pub scales: Vec<f32>,
    /// See [`OffloadRequest::data`].
    pub data: Bytes,
}

impl EncodedWindow {
    /// Encodes `f32[channels][length]`; as int16 if that is wanted and their range allows it.
    pub fn new(channels: usize, values: &[f32], int16: bool) -> EncodedWindow {
        let length = values.len() / channels.max(1);
        let rows = || values.chunks_exact(length.max(1));
        let scales: Option<Vec<(f32, f32)>> = if int16 { rows().map(scale).collect() } else { None };
        let Some(scales) = scales else {
            return EncodedWindow { scales: Vec::new(), data: values.iter().flat_map(|value| value.to_le_bytes()).collect() };
        };
        let encode = |(row, &(low, step)): (&[f32], &(f32, f32))| {
            let steps = |value: f32| if step > 0.0 { (f64::from(value) - f64::from(low)) / f64::from(step) } else { 0.0 };
            row.iter().map(|&value| (steps(value).round().clamp(0.0, STEPS) as u16).to_le_bytes()).collect::<Vec<_>>()
        };
        let data = rows().zip(&scales).flat_map(encode).flatten().collect();
        EncodedWindow { scales: scales.into_iter().flat_map(|(low, step)| [low, step]).collect(), data }
    }
}

impl OffloadRequest {
    /// The window, `f32[channels][length]`.
    ///
    /// # Errors
    /// If shape and bytes do not fit, or a value is not finite.
    pub fn values(&self) -> Result<Vec<f32>, WindowError> {
        let (channels, length) = (self.channels as usize, self.length as usize);
        let values = channels.saturating_mul(length);
        if !(1..=CHANNELS_MAX).contains(&channels) || !(1..=OFFLOAD_VALUES_MAX).contains(&values) {
            return Err(WindowError::Shape { channels: self.channels, length: self.length });
        }
        let (len, scales) = (self.data.len(), self.scales.len());
        let window: Vec<f32> = match scales {
            0 if len == 4 * values => self.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            _ if scales == 2 * channels && len == 2 * values => {
                let rows = self.data.chunks_exact(2 * length).zip(self.scales.as_chunks::<2>().0);
                rows.flat_map(|(row, &[low, step])| {
                    let value = move |bytes: &[u8; 2]| {
                        (f64::from(low) + f64::from(step) * f64::from(u16::from_le_bytes(*bytes))) as f32
                    };
                    row.as_chunks().0.iter().map(value)
                })
                .collect()
            }
            _ => return Err(WindowError::Length { len, scales, values }),
        };
        if window.iter().all(|value| value.is_finite()) { Ok(window) } else { Err(WindowError::NotFinite) }
    }
}

/// Steps of an int16, kept as an unsigned distance from the smallest value.
const STEPS: f64 = 65_535.0;

/// Smallest value and step of a channel; `None` if its range cannot be told in `f32`.
fn scale(row: &[f32]) -> Option<(f32, f32)> {
    let (low, high) = row.iter().fold((f32::MAX, f32::MIN), |(low, high), &value| (low.min(value), high.max(value)));
    let range = f64::from(high) - f64::from(low);
    let is_counts = range <= STEPS && row.iter().all(|value| value.fract() == 0.0);
    let step = if is_counts { 1.0 } else { (range / STEPS) as f32 };
    // A step that rounds to nothing would tell all values as the smallest.
    (step.is_finite() && low.is_finite() && (step > 0.0 || range == 0.0)).then_some((low, step))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::CONTROL_LEN_MAX;

    fn request(channels: usize, values: &[f32], int16: bool) -> OffloadRequest {
        let EncodedWindow { scales, data } = EncodedWindow::new(channels, values, int16);
        let (channels, length) = (channels as u32, (values.len() / channels) as u32);
        OffloadRequest { channels, length, scales, data, ..OffloadRequest::default() }
    }

    proptest! {
        #[test]
        fn f32_is_exact_and_int16_is_within_half_a_step(
            channels in 1usize..5, length in 1usize..40, seed in prop::collection::vec(-1e6f32..1e6, 200),
        ) {
            let values = &seed[..channels * length];
            prop_assert_eq!(request(channels, values, false).values().expect("our own"), values);
            let sent = request(channels, values, true);
            prop_assert_eq!(sent.data.len(), 2 * values.len());
            for (at, (got, value)) in sent.values().expect("our own").iter().zip(values).enumerate() {
                let step = sent.scales[2 * (at / length) + 1];
                prop_assert!((got - value).abs() <= 0.51 * step + value.abs() * f32::EPSILON, "{got} for {value}, step {step}");
            }
        }

        #[test]
        fn counts_of_a_converter_lose_nothing(low in -40_000i32..1_000, counts in prop::collection::vec(0i32..65_536, 1..60)) {
            let values: Vec<f32> = counts.iter().map(|count| (low + count) as f32).collect();
            prop_assert_eq!(request(1, &values, true).values().expect("our own"), values);
        }

        #[test]
        fn arbitrary_requests_are_refused_or_finite(
            channels: u32, length in 0u32..100, scales in prop::collection::vec(any::<f32>(), 0..6), data in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let request = OffloadRequest { channels: channels % 4, length, scales, data: data.into(), ..OffloadRequest::default() };
            if let Ok(values) = request.values() {
                prop_assert_eq!(values.len(), (request.channels * request.length) as usize);
                prop_assert!(values.iter().all(|value| value.is_finite()));
            }
        }
    }

    #[test]
    fn what_int16_cannot_tell_goes_as_f32_and_the_longest_fits_a_message() {
        assert!(request(1, &[f32::MIN, f32::MAX], true).scales.len() == 2, "a step is the range in f64");
        assert_eq!(request(1, &[1.0e-44, 0.0], true).scales, [] as [f32; 0], "a step below what f32 holds");
        let longest = request(1, &vec![0.5; OFFLOAD_VALUES_MAX], false);
        assert!(longest.values().is_ok() && longest.encoded_len() < CONTROL_LEN_MAX);
        assert!(matches!(request(1, &vec![0.5; OFFLOAD_VALUES_MAX + 1], false).values(), Err(WindowError::Shape { .. })));
        let short = OffloadRequest { data: Bytes::from_static(&[0; 7]), ..request(2, &[1.0, 2.0], false) };
        assert_eq!(short.values(), Err(WindowError::Length { len: 7, scales: 0, values: 2 }));
        for kind in RefusalKind::ALL {
            assert_eq!(RefusalKind::from_code(kind.code()), kind);
        }
        assert_eq!((RefusalKind::from_code(0), RefusalKind::from_code(99)), (RefusalKind::Failed, RefusalKind::Failed));
    }
}
