//! JSON payloads: one walk over the document fills the channels that its pointers name.

use std::sync::Arc;

use super::format::{check_channels, check_rate};
use super::pointer::{Leaf, PointerTree};
use super::scan::{Begin, Scan};
use super::{DecodeError, FormatError, JsonFormat, JsonLayout, ROWS_MAX, Samples, TIME_US_MAX, TimeUnit, VALUES_MAX};

/// A compiled [`JsonFormat`].
#[derive(Debug, Clone)]
pub(super) struct JsonDecoder {
    format: JsonFormat,
    channels: usize,
    /// Pointers from the document's root.
    root: PointerTree,
    /// Pointers from an element of the samples, in the layout `objects`.
    element: PointerTree,
    /// The pointer of each channel, for errors.
    fields: Vec<Arc<str>>,
    samples: Arc<str>,
    time: Arc<str>,
}

impl JsonDecoder {
    pub(super) fn new(format: &JsonFormat) -> Result<JsonDecoder, FormatError> {
        check_keys(format)?;
        check_rate(format.rate_hz)?;
        let channels = match format.layout {
            JsonLayout::Rows => format.channels.unwrap_or(0),
            _ => format.fields.len(),
        };
        check_channels(channels)?;
        let mut root = PointerTree::new();
        let mut element = PointerTree::new();
        let mut fields = Vec::new();
        for (channel, pointer) in format.fields.iter().enumerate() {
            let tree = if format.layout == JsonLayout::Objects { &mut element } else { &mut root };
            fields.push(tree.insert(pointer, Leaf::Channel(channel))?);
        }
        let mut place = |pointer: &Option<String>, leaf| match pointer {
            Some(pointer) => root.insert(pointer, leaf),
            None => Ok("".into()),
        };
        let samples = place(&format.samples, Leaf::Rows)?;
        let time = place(&format.time, Leaf::Time)?;
        Ok(JsonDecoder { format: format.clone(), channels, root, element, fields, samples, time })
    }

    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    pub(super) fn decode(&self, payload: &[u8], out: &mut Samples) -> Result<(), DecodeError> {
        let layout = self.format.layout;
        let spacing_hz = if layout == JsonLayout::Single { None } else { self.format.rate_hz };
        out.reset(self.channels, spacing_hz, self.format.time_of);
        match layout {
            JsonLayout::Single => out.values.resize(self.channels, f64::NAN),
            JsonLayout::Columns => out.columns.resize(self.channels, None),
            JsonLayout::Rows | JsonLayout::Objects => {}
        }
        let mut scan = Scan::new(payload)?;
        let mut found_rows = false;
        self.walk(&self.root, 0, &mut scan, out, &mut found_rows)?;
        scan.finish()?;
        if self.format.time.is_some() && out.time_us.is_none() {
            return Err(missing(&self.time));
        }
        match layout {
            JsonLayout::Single => self.check_row(out, 0),
            JsonLayout::Columns => self.transpose(out),
            JsonLayout::Rows | JsonLayout::Objects if !found_rows => Err(missing(&self.samples)),
            JsonLayout::Rows | JsonLayout::Objects if out.values.is_empty() => Err(DecodeError::Empty),
            JsonLayout::Rows | JsonLayout::Objects => Ok(()),
        }
    }

    /// Walks one value: down the tree where pointers lead, past everything else.
    fn walk(
        &self,
        tree: &PointerTree,
        node: usize,
        scan: &mut Scan<'_>,
        out: &mut Samples,
        found_rows: &mut bool,
    ) -> Result<(), DecodeError> {
        match tree.leaf(node) {
            Some(Leaf::Channel(channel)) if self.format.layout == JsonLayout::Columns => {
                return self.column(channel, scan, out);
            }
            Some(Leaf::Channel(channel)) => return self.field(channel, scan, out),
            Some(Leaf::Time) => return self.time(scan, out),
            Some(Leaf::Rows) => {
                *found_rows = scan.begin()? != Begin::Null;
                return if *found_rows { self.rows(scan, out) } else { Ok(scan.skip()?) };
            }
            None => {}
        }
        let begin = scan.begin()?;
        if !matches!(begin, Begin::Object | Begin::Array) {
            return Ok(scan.skip()?);
        }
        scan.open()?;
        let mut index = 0;
        loop {
            let child = if begin == Begin::Object {
                let Some(key) = scan.member(index == 0)? else { return Ok(()) };
                tree.member(node, key)
            } else {
                if !scan.element(index == 0)? {
                    return Ok(());
                }
                tree.element(node, index)
            };
            match child {
                Some(child) => self.walk(tree, child, scan, out, found_rows)?,
                None => scan.skip()?,
            }
            index += 1;
        }
    }

    /// Reads a channel's value into the last row; `null` takes away what an earlier key of the same name gave.
    fn field(&self, channel: usize, scan: &mut Scan<'_>, out: &mut Samples) -> Result<(), DecodeError> {
        let base = out.values.len() - self.channels;
        let place = (base / self.channels, channel);
        out.values[base + channel] = value(scan, &self.fields[channel], place)?.unwrap_or(f64::NAN);
        Ok(())
    }

    /// Reads a channel's array in the layout `columns`.
    fn column(&self, channel: usize, scan: &mut Scan<'_>, out: &mut Samples) -> Result<(), DecodeError> {
        let pointer = &self.fields[channel];
        match scan.begin()? {
            Begin::Array => {}
            Begin::Null => {
                out.columns[channel] = None;
                return Ok(scan.skip()?);
            }
            other => return Err(wrong_type(pointer, "an array", other)),
        }
        scan.open()?;
        let start = out.scratch.len();
        let mut len = 0;
        while scan.element(len == 0)? {
            if len == ROWS_MAX || out.scratch.len() == VALUES_MAX {
                return Err(DecodeError::TooManyRows);
            }
            let number = value(scan, pointer, (len, channel))?;
            out.scratch.push(number.ok_or_else(|| wrong_type(pointer, "a number", Begin::Null))?);
            len += 1;
        }
        out.columns[channel] = Some((start, len));
        Ok(())
    }

    /// Reads the array of samples in the layouts `rows` and `objects`.
    fn rows(&self, scan: &mut Scan<'_>, out: &mut Samples) -> Result<(), DecodeError> {
        let begin = scan.begin()?;
        if begin != Begin::Array {
            return Err(wrong_type(&self.samples, "an array", begin));
        }
        out.values.clear();
        scan.open()?;
        let mut row = 0;
        while scan.element(row == 0)? {
            if row == ROWS_MAX || out.values.len() + self.channels > VALUES_MAX {
                return Err(DecodeError::TooManyRows);
            }
            if self.format.layout == JsonLayout::Objects {
                out.values.resize(out.values.len() + self.channels, f64::NAN);
                self.walk(&self.element, 0, scan, out, &mut false)?;
                self.check_row(out, row)?;
            } else {
                self.row(row, scan, out)?;
            }
            row += 1;
        }
        Ok(())
    }

    /// Reads one row in the layout `rows`.
    fn row(&self, row: usize, scan: &mut Scan<'_>, out: &mut Samples) -> Result<(), DecodeError> {
        let mut number = |scan: &mut Scan<'_>, channel| -> Result<(), DecodeError> {
            let number = value(scan, &self.samples, (row, channel))?;
            out.values.push(number.ok_or_else(|| wrong_type(&self.samples, "a number", Begin::Null))?);
            Ok(())
        };
        match scan.begin()? {
            Begin::Array => {}
            _ if self.channels == 1 => return number(scan, 0),
            other => return Err(wrong_type(&self.samples, "an array of arrays", other)),
        }
        scan.open()?;
        let mut len = 0;
        while scan.element(len == 0)? {
            if len == self.channels {
                return Err(DecodeError::RowLen { row, len: len + 1, expected: self.channels });
            }
            number(scan, len)?;
            len += 1;
        }
        if len == self.channels { Ok(()) } else { Err(DecodeError::RowLen { row, len, expected: self.channels }) }
    }

    fn time(&self, scan: &mut Scan<'_>, out: &mut Samples) -> Result<(), DecodeError> {
        out.time_us = match scan.begin()? {
            Begin::Number => {
                let time_us = time_us(scan.number()?, self.format.time_unit);
                Some(time_us.ok_or_else(|| DecodeError::TimeRange { pointer: Arc::clone(&self.time) })?)
            }
            Begin::Null => {
                scan.skip()?;
                None
            }
            other => return Err(wrong_type(&self.time, "a number", other)),
        };
        Ok(())
    }

    /// Checks that every channel of a row was found: values are finite, so a NaN is one that was not.
    fn check_row(&self, out: &Samples, row: usize) -> Result<(), DecodeError> {
        match out.row(row).iter().position(|value| value.is_nan()) {
            Some(channel) => Err(missing(&self.fields[channel])),
            None => Ok(()),
        }
    }

    /// Turns columns into rows.
    fn transpose(&self, out: &mut Samples) -> Result<(), DecodeError> {
        let mut rows = None;
        for (column, pointer) in out.columns.iter().zip(&self.fields) {
            let (_, len) = column.ok_or_else(|| missing(pointer))?;
            let expected = *rows.get_or_insert(len);
            if len != expected {
                return Err(DecodeError::ColumnLen { pointer: Arc::clone(pointer), len, expected });
            }
        }
        let rows = rows.unwrap_or(0);
        for row in 0..rows {
            out.values.extend(out.columns.iter().flatten().map(|(start, _)| out.scratch[start + row]));
        }
        if rows == 0 { Err(DecodeError::Empty) } else { Ok(()) }
    }
}

/// Checks that each layout has the keys it needs and no others.
fn check_keys(format: &JsonFormat) -> Result<(), FormatError> {
    let layout = format.layout.name();
    let (fields, samples, rate) = match format.layout {
        JsonLayout::Single => (true, false, None),
        JsonLayout::Rows => (false, true, Some(true)),
        JsonLayout::Objects => (true, true, Some(true)),
        JsonLayout::Columns => (true, false, Some(true)),
    };
    let keys = [
        ("fields", !format.fields.is_empty(), Some(fields)),
        ("samples", format.samples.is_some(), Some(samples)),
        ("channels", format.channels.is_some(), Some(format.layout == JsonLayout::Rows)),
        ("rate_hz", format.rate_hz.is_some(), rate),
    ];
    for (key, given, wanted) in keys {
        match (given, wanted) {
            (false, Some(true)) => return Err(FormatError::KeyMissing { layout, key }),
            (true, Some(false)) => return Err(FormatError::KeyUnused { layout, key }),
            _ => {}
        }
    }
    Ok(())
}

/// Reads a finite number or a boolean; none for `null`. `place` is the row and the channel.
fn value(scan: &mut Scan<'_>, pointer: &Arc<str>, place: (usize, usize)) -> Result<Option<f64>, DecodeError> {
    let begin = scan.begin()?;
    let value = match begin {
        Begin::Number => scan.number()?.parse().unwrap_or(f64::INFINITY),
        Begin::True | Begin::False => {
            scan.skip()?;
            f64::from(u8::from(begin == Begin::True))
        }
        Begin::Null => {
            scan.skip()?;
            return Ok(None);
        }
        other => return Err(wrong_type(pointer, "a number", other)),
    };
    if value.is_finite() { Ok(Some(value)) } else { Err(DecodeError::NotFinite { row: place.0, channel: place.1 }) }
}

/// The time in microseconds, exact for integers; none when it is out of range.
fn time_us(text: &str, unit: TimeUnit) -> Option<i64> {
    let (times, per) = match unit {
        TimeUnit::S => (1_000_000, 1),
        TimeUnit::Ms => (1_000, 1),
        TimeUnit::Us => (1, 1),
        TimeUnit::Ns => (1, 1_000),
    };
    let time_us = match text.parse::<i64>() {
        Ok(time) => (time / per).checked_mul(times)?,
        Err(_) => (text.parse::<f64>().ok()? * times as f64 / per as f64).round() as i64,
    };
    (0..=TIME_US_MAX).contains(&time_us).then_some(time_us)
}

fn missing(pointer: &Arc<str>) -> DecodeError {
    DecodeError::Missing { pointer: Arc::clone(pointer) }
}

fn wrong_type(pointer: &Arc<str>, expected: &'static str, found: Begin) -> DecodeError {
    DecodeError::WrongType { pointer: Arc::clone(pointer), expected, found: found.name() }
}
