//! From a message's metrics to rows of a stream's channels.

use super::message::{Message, Metric, Reading};
use super::nodes::SparkplugCounters;
use crate::payload::format::{check_channels, check_rate};
use crate::payload::rows::Entries;
use crate::payload::{DecodeError, FormatError, Samples, SparkplugFormat, TimeOf};

/// The channels of one stream.
#[derive(Debug, Clone)]
pub struct SparkplugDecoder {
    fields: Vec<String>,
}

/// What is known of one device of one stream, or of a node's own metrics.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Device {
    /// One for each channel.
    metrics: Box<[Known]>,
    /// The values that hold now, one for each channel; NaN for one that is not known.
    held: Box<[f64]>,
}

/// What a birth said of a channel's metric.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Known {
    alias: Option<u64>,
    datatype: Option<u64>,
}

/// What is reused from message to message.
#[derive(Debug, Clone, Default)]
pub(in crate::payload) struct Scratch {
    current: Entries,
    historical: Entries,
    row: Vec<f64>,
}

impl SparkplugDecoder {
    pub(in crate::payload) fn new(format: &SparkplugFormat) -> Result<SparkplugDecoder, FormatError> {
        check_channels(format.fields.len())?;
        check_rate(format.rate_hz)?;
        for (at, field) in format.fields.iter().enumerate() {
            if field.is_empty() {
                return Err(FormatError::MetricEmpty);
            }
            if format.fields[..at].contains(field) {
                return Err(FormatError::NameOverlap { first: field.clone(), second: field.clone() });
            }
        }
        Ok(SparkplugDecoder { fields: format.fields.clone() })
    }

    pub(in crate::payload) fn channels(&self) -> usize {
        self.fields.len()
    }

    /// Decodes what a message says by itself, of a device of which nothing was heard before.
    pub(in crate::payload) fn decode(&self, payload: &[u8], out: &mut Samples) -> Result<(), DecodeError> {
        let message = Message::read(payload)?;
        self.rows(&message, &mut self.device(), &mut SparkplugCounters::default(), out)
    }

    /// A device of which nothing is known.
    pub(super) fn device(&self) -> Device {
        let channels = self.fields.len();
        Device { metrics: vec![Known::default(); channels].into(), held: vec![f64::NAN; channels].into() }
    }

    /// Learns aliases and types from a birth.
    pub(super) fn learn(&self, message: &Message<'_>, device: &mut Device) {
        *device = self.device();
        for metric in message.metrics() {
            let is_metric = |field: &String| metric.name == Some(field.as_bytes());
            if let Some(channel) = self.fields.iter().position(is_metric) {
                device.metrics[channel] = Known { alias: metric.alias, datatype: metric.datatype };
            }
        }
    }

    /// Whether a message has metrics that nothing but a birth can name.
    pub(super) fn needs_birth(&self, message: &Message<'_>) -> bool {
        message.metrics().any(|metric| metric.name.is_none() && metric.alias.is_some())
    }

    /// Fills `out` with the rows of a message, and keeps in `device` what holds after it.
    ///
    /// # Errors
    /// `TooManyRows` only: all else was found when the message was read.
    pub(super) fn rows(
        &self,
        message: &Message<'_>,
        device: &mut Device,
        counters: &mut SparkplugCounters,
        out: &mut Samples,
    ) -> Result<(), DecodeError> {
        out.reset(self.fields.len(), None, TimeOf::Last);
        let mut scratch = std::mem::take(&mut out.sparkplug);
        let result = self.rows_with(message, device, counters, &mut scratch, out);
        out.sparkplug = scratch;
        result
    }

    fn rows_with(
        &self,
        message: &Message<'_>,
        device: &mut Device,
        counters: &mut SparkplugCounters,
        scratch: &mut Scratch,
        out: &mut Samples,
    ) -> Result<(), DecodeError> {
        let Scratch { current, historical, row } = scratch;
        current.clear();
        historical.clear();
        for metric in message.metrics() {
            counters.structures += u64::from(metric.is_structure());
            let Some(channel) = self.channel(&metric, device) else { continue };
            let value = match metric.reading(device.metrics[channel].datatype) {
                Reading::Number(value) => value,
                Reading::Unknown => f64::NAN,
                Reading::Skipped => {
                    counters.not_numbers += u64::from(!metric.is_structure());
                    f64::NAN
                }
            };
            let entries = if metric.is_historical { &mut *historical } else { &mut *current };
            entries.push(message.time_us(&metric), channel, value)?;
        }
        row.clear();
        row.resize(self.fields.len(), f64::NAN);
        let first_us = current.first_us();
        let is_relative = message.is_timeless;
        let mut incomplete = 0;
        historical.for_each_row(row, true, |row| {
            let is_whole = !row.values.iter().any(|value| value.is_nan());
            if is_whole && first_us.is_none_or(|first_us| row.time_us <= first_us) {
                return out.push_row(row.time_us, is_relative, row.values);
            }
            incomplete += 1;
            Ok(())
        })?;
        current.for_each_row(&mut device.held, true, |row| {
            if row.values.iter().any(|value| value.is_nan()) {
                incomplete += 1;
                return Ok(());
            }
            out.push_row(row.time_us, is_relative, row.values)
        })?;
        counters.incomplete += incomplete;
        Ok(())
    }

    fn channel(&self, metric: &Metric<'_>, device: &Device) -> Option<usize> {
        match (metric.name, metric.alias) {
            (Some(name), _) => self.fields.iter().position(|field| field.as_bytes() == name),
            (None, Some(alias)) => device.metrics.iter().position(|known| known.alias == Some(alias)),
            (None, None) => None,
        }
    }
}
