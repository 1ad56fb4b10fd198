//! The reusable buffer that decoders fill.

use super::{DecodeError, ROWS_MAX, TimeOf, VALUES_MAX, senml, sparkplug};

/// The decoded rows of one message: `rows x channels` finite values, row-major.
///
/// Keep one per thread and hand it to every [`super::Decoder::decode`]; it grows to the largest message seen, at most
/// 3 MiB, and is reused from then on.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    pub(super) values: Vec<f64>,
    pub(super) channels: usize,
    pub(super) time_us: Option<i64>,
    pub(super) period_us: f64,
    pub(super) time_of: TimeOf,
    /// The time of each row, where the format gives it; with `time_us` of the last row, or else from the time of receipt on.
    row_times_us: Vec<i64>,
    /// Values of the layout `columns` before they are turned into rows.
    pub(super) scratch: Vec<f64>,
    /// Start and length in `scratch` of each channel's column.
    pub(super) columns: Vec<Option<(usize, usize)>>,
    /// Work space of these formats.
    pub(super) senml: senml::Scratch,
    pub(super) sparkplug: sparkplug::Scratch,
}

impl Samples {
    /// An empty buffer.
    pub fn new() -> Samples {
        Samples::default()
    }

    /// All values, row-major: `[row][channel]`.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Values in a row; 0 for an opaque payload.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Number of rows; 0 for an opaque payload or after an error.
    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.channels).unwrap_or(0)
    }

    /// One row.
    ///
    /// # Panics
    /// If `index` is not below [`Samples::rows`].
    pub fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.channels..][..self.channels]
    }

    /// The time that the payload states, in microseconds since the Unix epoch; that of the last row if each has its own.
    pub fn time_us(&self) -> Option<i64> {
        self.time_us
    }

    /// Microseconds between two rows; 0 when the format gives one row a message and no rate.
    pub fn period_us(&self) -> f64 {
        self.period_us
    }

    /// The time of a row: its own if it has one, or else the payload's time or `received_us`, moved by whole periods.
    pub fn row_time_us(&self, index: usize, received_us: i64) -> i64 {
        if let Some(time_us) = self.row_times_us.get(index) {
            return if self.time_us.is_some() { *time_us } else { received_us.saturating_add(*time_us) };
        }
        let anchor_us = self.time_us.unwrap_or(received_us);
        let (steps, sign) = match self.time_of {
            TimeOf::First => (index, 1.0),
            TimeOf::Last => (self.rows().saturating_sub(1 + index), -1.0),
        };
        anchor_us.saturating_add((sign * steps as f64 * self.period_us).round() as i64)
    }

    /// Each row with its time, in order of time.
    pub fn iter(&self, received_us: i64) -> impl Iterator<Item = (i64, &[f64])> {
        (0..self.rows()).map(move |index| (self.row_time_us(index, received_us), self.row(index)))
    }

    /// Adds a row with its own time, not before that of the row before; `is_relative` if it is from the time of receipt on.
    pub(super) fn push_row(&mut self, time_us: i64, is_relative: bool, row: &[f64]) -> Result<(), DecodeError> {
        if self.row_times_us.len() == ROWS_MAX || self.values.len() + row.len() > VALUES_MAX {
            return Err(DecodeError::TooManyRows);
        }
        self.time_us = (!is_relative).then_some(time_us);
        self.row_times_us.push(time_us);
        self.values.extend_from_slice(row);
        Ok(())
    }

    /// Empties the buffer for a message of this shape.
    pub(super) fn reset(&mut self, channels: usize, rate_hz: Option<f64>, time_of: TimeOf) {
        self.values.clear();
        self.scratch.clear();
        self.columns.clear();
        self.row_times_us.clear();
        self.channels = channels;
        self.time_us = None;
        self.period_us = rate_hz.map_or(0.0, |rate_hz| 1e6 / rate_hz);
        self.time_of = time_of;
    }
}
