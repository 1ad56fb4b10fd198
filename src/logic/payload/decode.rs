//! The compiled decoder of one stream, and what can be wrong with a payload.

use std::sync::Arc;

use super::document::DocumentDecoder;
use super::packed::PackedDecoder;
use super::reader::Notation;
use super::senml::SenmlDecoder;
use super::sparkplug::SparkplugDecoder;
use super::{
    DEPTH_MAX, FormatError, PAYLOAD_BYTES_MAX, PayloadFormat, ROWS_MAX, Samples, TIME_US_MAX, TimeOf, VALUES_MAX,
    format::check_rate,
};

/// Turns the payloads of one stream into [`Samples`]. Immutable: share it between devices and threads.
#[derive(Debug, Clone)]
pub struct Decoder {
    kind: Kind,
    rate_hz: Option<f64>,
}

#[derive(Debug, Clone)]
enum Kind {
    Document(DocumentDecoder),
    Senml(SenmlDecoder),
    Sparkplug(SparkplugDecoder),
    Packed(PackedDecoder),
    Number,
    Opaque,
}

impl Decoder {
    /// Compiles a format.
    ///
    /// # Errors
    /// The first mistake in the format, with what to change.
    pub fn new(format: &PayloadFormat) -> Result<Decoder, FormatError> {
        let (kind, rate_hz) = match format {
            PayloadFormat::Json(document) => {
                (Kind::Document(DocumentDecoder::new(Notation::Json, document)?), document.rate_hz)
            }
            PayloadFormat::Cbor(document) => {
                (Kind::Document(DocumentDecoder::new(Notation::Cbor, document)?), document.rate_hz)
            }
            PayloadFormat::Senml(senml) => (Kind::Senml(SenmlDecoder::new(senml)?), senml.rate_hz),
            PayloadFormat::Sparkplug(metrics) => (Kind::Sparkplug(SparkplugDecoder::new(metrics)?), metrics.rate_hz),
            PayloadFormat::Packed(packed) => (Kind::Packed(PackedDecoder::new(packed)?), packed.rate_hz),
            PayloadFormat::Number(number) => {
                check_rate(number.rate_hz)?;
                (Kind::Number, number.rate_hz)
            }
            PayloadFormat::Opaque(_) => (Kind::Opaque, None),
        };
        Ok(Decoder { kind, rate_hz })
    }

    /// Values in each row; 0 for an opaque format.
    pub fn channels(&self) -> usize {
        match &self.kind {
            Kind::Document(document) => document.channels(),
            Kind::Senml(senml) => senml.channels(),
            Kind::Sparkplug(metrics) => metrics.channels(),
            Kind::Packed(packed) => packed.channels(),
            Kind::Number => 1,
            Kind::Opaque => 0,
        }
    }

    /// Samples a second as the format declares them.
    pub fn rate_hz(&self) -> Option<f64> {
        self.rate_hz
    }

    /// The channels of a stream of Sparkplug B, whose messages need what was heard before: see [`SparkplugNodes`].
    ///
    /// [`SparkplugNodes`]: super::SparkplugNodes
    pub fn sparkplug(&self) -> Option<&SparkplugDecoder> {
        match &self.kind {
            Kind::Sparkplug(metrics) => Some(metrics),
            _ => None,
        }
    }

    /// Decodes one payload into `out`, replacing what was there. Of Sparkplug B that is what the message says by itself.
    ///
    /// Costs about as much as reading the payload twice; allocates only while `out` grows.
    ///
    /// # Errors
    /// The first thing that is wrong with the payload; `out` is then empty.
    pub fn decode(&self, payload: &[u8], out: &mut Samples) -> Result<(), DecodeError> {
        let result = self.decode_into(payload, out);
        if result.is_err() {
            out.reset(self.channels(), self.rate_hz, TimeOf::Last);
        }
        result
    }

    fn decode_into(&self, payload: &[u8], out: &mut Samples) -> Result<(), DecodeError> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(DecodeError::TooLong { len_bytes: payload.len() });
        }
        match &self.kind {
            Kind::Document(document) => document.decode(payload, out),
            Kind::Senml(senml) => senml.decode(payload, out),
            Kind::Sparkplug(metrics) => metrics.decode(payload, out),
            Kind::Packed(packed) => packed.decode(payload, out),
            Kind::Number => {
                out.reset(1, None, TimeOf::Last);
                out.values.push(number(payload)?);
                Ok(())
            }
            Kind::Opaque => {
                out.reset(0, None, TimeOf::Last);
                Ok(())
            }
        }
    }
}

/// Longest number as text, in bytes, without the white space around it.
const NUMBER_BYTES_MAX: usize = 64;

/// Reads a plain decimal number. Words such as `nan` and `inf`, which Rust's own parser takes, are not numbers here.
fn number(payload: &[u8]) -> Result<f64, DecodeError> {
    let text = payload.trim_ascii();
    let decimal = text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
    if !decimal || text.len() > NUMBER_BYTES_MAX {
        return Err(DecodeError::NotANumber);
    }
    let value: f64 = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(DecodeError::NotANumber)?;
    if value.is_finite() { Ok(value) } else { Err(DecodeError::NotFinite { row: 0, channel: 0 }) }
}

/// A payload that is not what the stream's format says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The payload is larger than any that is decoded.
    #[error("payload of {len_bytes} bytes exceeds the limit of {PAYLOAD_BYTES_MAX}")]
    TooLong {
        /// Its length.
        len_bytes: usize,
    },
    /// JSON must be UTF-8, and so must CBOR's texts.
    #[error("payload is not UTF-8 at byte {at}")]
    NotUtf8 {
        /// Offset of the first bad byte.
        at: usize,
    },
    /// Not a document of its notation.
    #[error("payload is not {notation} at byte {at}: expected {expected}")]
    Syntax {
        /// `JSON` or `CBOR`.
        notation: &'static str,
        /// Offset in the payload.
        at: usize,
        /// What could have stood there.
        expected: &'static str,
    },
    /// Arrays and objects are nested too deeply.
    #[error("payload at byte {at} is nested deeper than the limit of {DEPTH_MAX} levels")]
    TooDeep {
        /// Offset of the array or object that went too far.
        at: usize,
    },
    /// A field is absent or `null`.
    #[error("no value at `{pointer}`")]
    Missing {
        /// The configured pointer.
        pointer: Arc<str>,
    },
    /// A field holds something else than the format says.
    #[error("expected {expected} at `{pointer}`, found {found}")]
    WrongType {
        /// The configured pointer.
        pointer: Arc<str>,
        /// What the format needs.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A value is NaN or infinite, or became so by scaling.
    #[error("value of channel {channel} in row {row} is not finite")]
    NotFinite {
        /// Index of the row.
        row: usize,
        /// Index of the channel.
        channel: usize,
    },
    /// A row has too few or too many values.
    #[error("row {row} has {len} values instead of {expected}")]
    RowLen {
        /// Index of the row.
        row: usize,
        /// Its values; counting stops one past the expected number.
        len: usize,
        /// The format's channels.
        expected: usize,
    },
    /// The columns differ in length.
    #[error("column `{pointer}` has {len} values instead of {expected}")]
    ColumnLen {
        /// The configured pointer.
        pointer: Arc<str>,
        /// Its values.
        len: usize,
        /// The values of the first column.
        expected: usize,
    },
    /// The length of a packed payload does not fit its rows.
    #[error("packed payload of {len_bytes} bytes is not {expected} of {row_bytes} bytes")]
    PackedLen {
        /// Its length.
        len_bytes: usize,
        /// Bytes of one row.
        row_bytes: usize,
        /// What the format allows.
        expected: &'static str,
    },
    /// More samples than a message may hold.
    #[error("message exceeds the limit of {ROWS_MAX} rows or {VALUES_MAX} values")]
    TooManyRows,
    /// A message without a single sample.
    #[error("message holds no samples")]
    Empty,
    /// The time is before 1970 or after 9999.
    #[error("time at `{pointer}` is outside 0 to {TIME_US_MAX} us since the Unix epoch: check `time_unit`")]
    TimeRange {
        /// The configured pointer.
        pointer: Arc<str>,
    },
    /// Some rows have times of their own, others are relative to now.
    #[error("some values have a time, others are relative to the time of receipt")]
    MixedTimes,
    /// A SenML pack of a version that is not known.
    #[error("SenML of version {version} instead of 10 at most")]
    Version {
        /// What it says.
        version: u64,
    },
    /// A SenML pack with a field that must be understood, by its name, and is not.
    #[error("SenML has a field that must be understood, and is not")]
    NotUnderstood,
    /// Sparkplug B with a compressed body.
    #[error("payload is compressed, which is not read: turn compression off in the edge node")]
    Compressed,
    /// A topic that is not one of births, data and deaths of Sparkplug B.
    #[error("topic is not spBv1.0/GROUP/TYPE/NODE[/DEVICE] of a birth, data or death")]
    SparkplugTopic,
    /// Not a plain decimal number of at most 64 bytes.
    #[error("payload is not a plain decimal number of at most {NUMBER_BYTES_MAX} bytes")]
    NotANumber,
}

impl DecodeError {
    /// The error's kind, from a closed set: a label for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            DecodeError::TooLong { .. } => "too_long",
            DecodeError::NotUtf8 { .. } => "not_utf8",
            DecodeError::Syntax { .. } => "syntax",
            DecodeError::TooDeep { .. } => "too_deep",
            DecodeError::Missing { .. } => "missing",
            DecodeError::WrongType { .. } => "wrong_type",
            DecodeError::NotFinite { .. } => "not_finite",
            DecodeError::RowLen { .. } => "row_len",
            DecodeError::ColumnLen { .. } => "column_len",
            DecodeError::PackedLen { .. } => "packed_len",
            DecodeError::TooManyRows => "too_many_rows",
            DecodeError::Empty => "empty",
            DecodeError::TimeRange { .. } => "time_range",
            DecodeError::MixedTimes => "mixed_times",
            DecodeError::Version { .. } => "version",
            DecodeError::NotUnderstood => "not_understood",
            DecodeError::Compressed => "compressed",
            DecodeError::SparkplugTopic => "sparkplug_topic",
            DecodeError::NotANumber => "not_a_number",
        }
    }
}
