//! Values that come one by one, each with its time and channel, put together to rows.

use super::{DecodeError, ROWS_MAX, VALUES_MAX};

/// One value.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    time_us: i64,
    /// Its place in the message: what has one time stays in the order in which it came.
    index: u32,
    channel: u32,
    value: f64,
}

/// The values of one message, in the order in which they came. It is reused from one message to the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Entries {
    entries: Vec<Entry>,
}

/// Values of one time, one for each channel; NaN where there is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Row<'a> {
    pub(super) time_us: i64,
    pub(super) values: &'a [f64],
}

impl Entries {
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Adds a value; NaN for one that is not known any more.
    pub(super) fn push(&mut self, time_us: i64, channel: usize, value: f64) -> Result<(), DecodeError> {
        if self.entries.len() == VALUES_MAX {
            return Err(DecodeError::TooManyRows);
        }
        self.entries.push(Entry { time_us, index: self.entries.len() as u32, channel: channel as u32, value });
        Ok(())
    }

    /// The earliest time.
    pub(super) fn first_us(&self) -> Option<i64> {
        self.entries.iter().map(|entry| entry.time_us).min()
    }

    /// Calls `on_row` for each row, in order of time: what has one time is one row, unless a channel comes again.
    ///
    /// `values` is what a row holds where it has no value of its own: `on_row` sees it with the row's own values put in, and
    /// `hold` says whether they stay for the rows after it.
    pub(super) fn for_each_row(
        &mut self,
        values: &mut [f64],
        hold: bool,
        mut on_row: impl FnMut(Row<'_>) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        if !self.entries.is_sorted_by_key(|entry| entry.time_us) {
            self.entries.sort_unstable_by_key(|entry| (entry.time_us, entry.index));
        }
        let mut rest = &self.entries[..];
        let mut rows = 0;
        while let Some(first) = rest.first() {
            if !hold {
                values.fill(f64::NAN);
            }
            // A bit for each channel: there are at most 64.
            let mut seen = 0_u64;
            let mut is_same_row = |entry: &&Entry| {
                let channel = 1 << entry.channel;
                let is_same = entry.time_us == first.time_us && seen & channel == 0;
                seen |= channel;
                is_same
            };
            let len = rest.iter().take_while(|entry| is_same_row(entry)).count();
            let (row, later) = rest.split_at(len);
            rest = later;
            for entry in row {
                values[entry.channel as usize] = entry.value;
            }
            if rows == ROWS_MAX {
                return Err(DecodeError::TooManyRows);
            }
            rows += 1;
            on_row(Row { time_us: first.time_us, values })?;
        }
        Ok(())
    }
}
