//! Aggregates, window values and verdicts as bytes: the payloads of records.
//!
//! Each begins with a version byte. Counts and times are varints (times in zigzag, later ones as the distance from the
//! first), values little-endian. Records are read by clouds newer than the box, so a version is never changed, only
//! added. Decoding checks every length before it allocates, and accepts exactly what encoding writes: no bytes are left
//! over, all values are finite, spans do not run backwards.

use std::sync::Arc;

use super::{Aggregate, ChannelAggregate, VerdictRecord, WINDOW_VALUES_MAX, Window};
use crate::payload::CHANNELS_MAX;
use crate::varint;

const VERSION: u8 = 1;

/// The values of one window, decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowValues {
    /// Time of the first sample, in microseconds since the Unix epoch.
    pub start_us: i64,
    /// Time of the last sample.
    pub end_us: i64,
    /// Channels; the length is `values.len() / channels`.
    pub channels: usize,
    /// `f32[channels][length]`, row-major.
    pub values: Vec<f32>,
}

/// Appends a window: a few bytes and 4 for each value.
pub fn encode_window(window: &Window<'_>, out: &mut Vec<u8>) {
    out.push(VERSION);
    varint::put(out, window.channels as u64);
    varint::put(out, window.values.len() as u64);
    put_span(out, window.start_us, window.end_us);
    out.extend(window.values.iter().flat_map(|value| value.to_le_bytes()));
}

impl WindowValues {
    /// Reads what [`encode_window`] wrote.
    ///
    /// # Errors
    /// If the bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Result<WindowValues, CodecError> {
        let mut rest = versioned(bytes)?;
        let channels = take_count(&mut rest, "channels", CHANNELS_MAX)?;
        let len = take_count(&mut rest, "values", WINDOW_VALUES_MAX)?;
        if !len.is_multiple_of(channels) {
            return Err(CodecError::Inconsistent { what: "values are not whole channels" });
        }
        let (start_us, end_us) = take_span(&mut rest)?;
        let values: Vec<f32> = exact_chunks(rest, len)?.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if !values.iter().all(|value| value.is_finite()) {
            return Err(CodecError::NotFinite);
        }
        Ok(WindowValues { start_us, end_us, channels, values })
    }
}

impl Aggregate {
    /// Appends the aggregate: 24 bytes a channel and about 20 more.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        varint::put(out, self.channels.len() as u64);
        put_span(out, self.start_us, self.end_us);
        put_span(out, self.first_us, self.last_us);
        varint::put(out, self.count);
        for channel in &self.channels {
            for value in [channel.min, channel.max, channel.sum] {
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// Reads what [`Aggregate::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Aggregate, CodecError> {
        let mut rest = versioned(bytes)?;
        let count_channels = take_count(&mut rest, "channels", CHANNELS_MAX)?;
        let (start_us, end_us) = take_span(&mut rest)?;
        let (first_us, last_us) = take_span(&mut rest)?;
        let count = varint::take(&mut rest).filter(|count| *count > 0).ok_or(CodecError::Truncated)?;
        let mut channels = Vec::with_capacity(count_channels);
        for chunk in exact_chunks::<24>(rest, count_channels)? {
            let (values, _) = chunk.as_chunks::<8>();
            let [min, max, sum] = [0, 1, 2].map(|index| f64::from_le_bytes(values[index]));
            if !(min.is_finite() && max.is_finite() && sum.is_finite()) {
                return Err(CodecError::NotFinite);
            }
            if min > max {
                return Err(CodecError::Inconsistent { what: "minimum above maximum" });
            }
            channels.push(ChannelAggregate { min, max, sum });
        }
        Ok(Aggregate { start_us, end_us, first_us, last_us, count, channels })
    }
}

impl VerdictRecord {
    /// Appends the verdict: its texts and about 25 bytes.
    ///
    /// # Errors
    /// If a text is too long or a number is not finite; nothing is appended then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let texts = [("model", &self.model), ("version", &self.version), ("label", &self.label)];
        for (field, text) in texts {
            if text.len() > VerdictRecord::TEXT_BYTES_MAX {
                return Err(CodecError::Limit { field, value: text.len() as u64, max: VerdictRecord::TEXT_BYTES_MAX });
            }
        }
        if !(self.score.is_finite() && self.confidence.is_finite()) {
            return Err(CodecError::NotFinite);
        }
        out.push(VERSION);
        for (_, text) in texts {
            varint::put(out, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
        }
        put_span(out, self.start_us, self.end_us);
        out.extend_from_slice(&self.score.to_le_bytes());
        out.extend_from_slice(&self.confidence.to_le_bytes());
        Ok(())
    }

    /// Reads what [`VerdictRecord::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Result<VerdictRecord, CodecError> {
        let mut rest = versioned(bytes)?;
        let model = take_text(&mut rest, "model")?;
        let version = take_text(&mut rest, "version")?;
        let label = take_text(&mut rest, "label")?;
        let (start_us, end_us) = take_span(&mut rest)?;
        let numbers = exact_chunks::<4>(rest, 2)?;
        let [score, confidence] = [0, 1].map(|index| f32::from_le_bytes(numbers[index]));
        if !(score.is_finite() && confidence.is_finite()) {
            return Err(CodecError::NotFinite);
        }
        Ok(VerdictRecord { model, version, label, score, confidence, start_us, end_us })
    }
}

/// Bytes that are not a record's payload, or a verdict that cannot become one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Another version of the format.
    #[error("version {version} of the encoding is not known here (only {VERSION}): update the reader")]
    Version {
        /// The version byte.
        version: u8,
    },
    /// The bytes end too early, or a varint is malformed.
    #[error("encoding is cut short")]
    Truncated,
    /// More bytes than the encoding has.
    #[error("encoding has {len_bytes} bytes too many")]
    Trailing {
        /// The bytes too many.
        len_bytes: usize,
    },
    /// A length is zero where it must not be, or above its limit.
    #[error("{field} of {value} is not within the limit of {max}")]
    Limit {
        /// What is counted.
        field: &'static str,
        /// The count.
        value: u64,
        /// The largest.
        max: usize,
    },
    /// Values contradict each other.
    #[error("encoding contradicts itself: {what}")]
    Inconsistent {
        /// In what.
        what: &'static str,
    },
    /// A value is NaN or infinite.
    #[error("a value is not finite")]
    NotFinite,
    /// A text is not UTF-8.
    #[error("{field} is not UTF-8")]
    NotUtf8 {
        /// Which text.
        field: &'static str,
    },
}

/// A start, and an end as its distance from there. An end before the start is written as the start.
fn put_span(out: &mut Vec<u8>, start_us: i64, end_us: i64) {
    varint::put(out, varint::zigzag(start_us));
    varint::put(out, end_us.max(start_us).abs_diff(start_us));
}

fn take_span(rest: &mut &[u8]) -> Result<(i64, i64), CodecError> {
    let start_us = varint::unzigzag(varint::take(rest).ok_or(CodecError::Truncated)?);
    let distance_us = varint::take(rest).ok_or(CodecError::Truncated)?;
    let end_us = start_us.checked_add_unsigned(distance_us);
    Ok((start_us, end_us.ok_or(CodecError::Inconsistent { what: "a time is out of range" })?))
}

fn versioned(bytes: &[u8]) -> Result<&[u8], CodecError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((&version, _)) => Err(CodecError::Version { version }),
        None => Err(CodecError::Truncated),
    }
}

fn take_count(rest: &mut &[u8], field: &'static str, max: usize) -> Result<usize, CodecError> {
    let value = varint::take(rest).ok_or(CodecError::Truncated)?;
    usize::try_from(value).ok().filter(|count| (1..=max).contains(count)).ok_or(CodecError::Limit { field, value, max })
}

fn take_text(rest: &mut &[u8], field: &'static str) -> Result<Arc<str>, CodecError> {
    let bytes = varint::take_slice(rest).ok_or(CodecError::Truncated)?;
    let max = VerdictRecord::TEXT_BYTES_MAX;
    if bytes.len() > max {
        return Err(CodecError::Limit { field, value: bytes.len() as u64, max });
    }
    Ok(std::str::from_utf8(bytes).map_err(|_| CodecError::NotUtf8 { field })?.into())
}

/// The rest as exactly `count` chunks.
fn exact_chunks<const SIZE: usize>(rest: &[u8], count: usize) -> Result<&[[u8; SIZE]], CodecError> {
    match rest.len().checked_sub(count * SIZE) {
        None => Err(CodecError::Truncated),
        Some(0) => Ok(rest.as_chunks().0),
        Some(len_bytes) => Err(CodecError::Trailing { len_bytes }),
    }
}
