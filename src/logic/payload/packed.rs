//! Packed little-endian arrays.

use super::format::{check_channels, check_rate};
use super::{DecodeError, ElementType, FormatError, PackedFormat, PerChannel, ROWS_MAX, Samples, TimeOf, VALUES_MAX};

/// A compiled [`PackedFormat`].
#[derive(Debug, Clone)]
pub(super) struct PackedDecoder {
    element: ElementType,
    rate_hz: Option<f64>,
    time_of: TimeOf,
    /// Scale and offset of each channel.
    channels: Vec<(f64, f64)>,
    row_bytes: usize,
}

impl PackedDecoder {
    pub(super) fn new(format: &PackedFormat) -> Result<PackedDecoder, FormatError> {
        check_channels(format.channels)?;
        check_rate(format.rate_hz)?;
        let scale = per_channel("scale", format.scale.as_ref(), 1.0, format.channels)?;
        let offset = per_channel("offset", format.offset.as_ref(), 0.0, format.channels)?;
        if scale.contains(&0.0) {
            return Err(FormatError::PerChannelValue { key: "scale" });
        }
        Ok(PackedDecoder {
            element: format.element,
            rate_hz: format.rate_hz,
            time_of: format.time_of,
            channels: scale.into_iter().zip(offset).collect(),
            row_bytes: format.element.size_bytes() * format.channels,
        })
    }

    pub(super) fn channels(&self) -> usize {
        self.channels.len()
    }

    pub(super) fn decode(&self, payload: &[u8], out: &mut Samples) -> Result<(), DecodeError> {
        out.reset(self.channels.len(), self.rate_hz, self.time_of);
        if payload.is_empty() {
            return Err(DecodeError::Empty);
        }
        if !payload.len().is_multiple_of(self.row_bytes) {
            return Err(self.wrong_len(payload, "whole rows"));
        }
        let rows = payload.len() / self.row_bytes;
        if rows > 1 && self.rate_hz.is_none() {
            return Err(self.wrong_len(payload, "exactly one row (no rate_hz is given)"));
        }
        if rows > ROWS_MAX || rows * self.channels.len() > VALUES_MAX {
            return Err(DecodeError::TooManyRows);
        }
        match self.element {
            ElementType::I16 => self.fill(payload, out, |bytes| f64::from(i16::from_le_bytes(bytes))),
            ElementType::I32 => self.fill(payload, out, |bytes| f64::from(i32::from_le_bytes(bytes))),
            ElementType::F32 => self.fill(payload, out, |bytes| f64::from(f32::from_le_bytes(bytes))),
            ElementType::F64 => self.fill(payload, out, f64::from_le_bytes),
        }
    }

    fn fill<const SIZE: usize>(
        &self,
        payload: &[u8],
        out: &mut Samples,
        read: impl Fn([u8; SIZE]) -> f64,
    ) -> Result<(), DecodeError> {
        let (elements, _) = payload.as_chunks::<SIZE>();
        out.values.reserve(elements.len());
        for row in elements.chunks_exact(self.channels.len()) {
            out.values.extend(row.iter().zip(&self.channels).map(|(bytes, (scale, offset))| read(*bytes) * scale + offset));
        }
        match out.values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(DecodeError::NotFinite { row: at / out.channels, channel: at % out.channels }),
            None => Ok(()),
        }
    }

    fn wrong_len(&self, payload: &[u8], expected: &'static str) -> DecodeError {
        DecodeError::PackedLen { len_bytes: payload.len(), row_bytes: self.row_bytes, expected }
    }
}

fn per_channel(key: &'static str, given: Option<&PerChannel>, default: f64, channels: usize) -> Result<Vec<f64>, FormatError> {
    let values = match given {
        None => vec![default; channels],
        Some(PerChannel::All(value)) => vec![*value; channels],
        Some(PerChannel::Each(values)) if values.len() == channels => values.clone(),
        Some(PerChannel::Each(values)) => {
            return Err(FormatError::PerChannelLen { key, len: values.len(), channels });
        }
    };
    if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(FormatError::PerChannelValue { key }) }
}
