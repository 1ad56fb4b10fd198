//! JSON and CBOR payloads: one walk over the document fills the channels that its pointers name.

use std::sync::Arc;

use super::cbor::CborReader;
use super::format::{check_channels, check_rate};
use super::json::JsonReader;
use super::pointer::{Leaf, PointerTree};
use super::reader::{Begin, Notation, Reader};
use super::{DecodeError, DocumentFormat, FormatError, Layout, ROWS_MAX, Samples, VALUES_MAX};

/// A compiled [`DocumentFormat`].
#[derive(Debug, Clone)]
pub(super) struct DocumentDecoder {
    notation: Notation,
    format: DocumentFormat,
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

impl DocumentDecoder {
    pub(super) fn new(notation: Notation, format: &DocumentFormat) -> Result<DocumentDecoder, FormatError> {
        check_keys(format)?;
        check_rate(format.rate_hz)?;
        let channels = match format.layout {
            Layout::Rows => format.channels.unwrap_or(0),
            _ => format.fields.len(),
        };
        check_channels(channels)?;
        let mut root = PointerTree::new();
        let mut element = PointerTree::new();
        let mut fields = Vec::new();
        for (channel, pointer) in format.fields.iter().enumerate() {
            let tree = if format.layout == Layout::Objects { &mut element } else { &mut root };
            fields.push(tree.insert(pointer, Leaf::Channel(channel))?);
        }
        let mut place = |pointer: &Option<String>, leaf| match pointer {
            Some(pointer) => root.insert(pointer, leaf),
            None => Ok("".into()),
        };
        let samples = place(&format.samples, Leaf::Rows)?;
        let time = place(&format.time, Leaf::Time)?;
        Ok(DocumentDecoder { notation, format: format.clone(), channels, root, element, fields, samples, time })
    }

    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    pub(super) fn decode(&self, payload: &[u8], out: &mut Samples) -> Result<(), DecodeError> {
        let layout = self.format.layout;
        let spacing_hz = if layout == Layout::Single { None } else { self.format.rate_hz };
        out.reset(self.channels, spacing_hz, self.format.time_of);
        match layout {
            Layout::Single => out.values.resize(self.channels, f64::NAN),
            Layout::Columns => out.columns.resize(self.channels, None),
            Layout::Rows | Layout::Objects => {}
        }
        let found_rows = match self.notation {
            Notation::Json => self.read(JsonReader::new(payload)?, out)?,
            Notation::Cbor => self.read(CborReader::new(payload), out)?,
        };
        if self.format.time.is_some() && out.time_us.is_none() {
            return Err(missing(&self.time));
        }
        match layout {
            Layout::Single => self.check_row(out, 0),
            Layout::Columns => self.transpose(out),
            Layout::Rows | Layout::Objects if !found_rows => Err(missing(&self.samples)),
            Layout::Rows | Layout::Objects if out.values.is_empty() => Err(DecodeError::Empty),
            Layout::Rows | Layout::Objects => Ok(()),
        }
    }

    /// Reads the whole document; says whether it has the array of samples.
    fn read<'a>(&self, mut reader: impl Reader<'a>, out: &mut Samples) -> Result<bool, DecodeError> {
        let mut found_rows = false;
        self.walk(&self.root, 0, &mut reader, out, &mut found_rows)?;
        reader.finish()?;
        Ok(found_rows)
    }

    /// Walks one value: down the tree where pointers lead, past everything else.
    fn walk<'a>(
        &self,
        tree: &PointerTree,
        node: usize,
        reader: &mut impl Reader<'a>,
        out: &mut Samples,
        found_rows: &mut bool,
    ) -> Result<(), DecodeError> {
        match tree.leaf(node) {
            Some(Leaf::Channel(channel)) if self.format.layout == Layout::Columns => {
                return self.column(channel, reader, out);
            }
            Some(Leaf::Channel(channel)) => return self.field(channel, reader, out),
            Some(Leaf::Time) => return self.time(reader, out),
            Some(Leaf::Rows) => {
                *found_rows = reader.begin()? != Begin::Null;
                return if *found_rows { self.rows(reader, out) } else { Ok(reader.skip()?) };
            }
            None => {}
        }
        let begin = reader.begin()?;
        if !matches!(begin, Begin::Object | Begin::Array) {
            return Ok(reader.skip()?);
        }
        reader.open()?;
        let mut index = 0;
        loop {
            let child = if begin == Begin::Object {
                let Some(key) = reader.member(index == 0)? else { return Ok(()) };
                tree.member(node, key)
            } else {
                if !reader.element(index == 0)? {
                    return Ok(());
                }
                tree.element(node, index)
            };
            match child {
                Some(child) => self.walk(tree, child, reader, out, found_rows)?,
                None => reader.skip()?,
            }
            index += 1;
        }
    }

    /// Reads a channel's value into the last row; `null` takes away what an earlier key of the same name gave.
    fn field<'a>(&self, channel: usize, reader: &mut impl Reader<'a>, out: &mut Samples) -> Result<(), DecodeError> {
        let base = out.values.len() - self.channels;
        let place = (base / self.channels, channel);
        out.values[base + channel] = value(reader, &self.fields[channel], place)?.unwrap_or(f64::NAN);
        Ok(())
    }

    /// Reads a channel's array in the layout `columns`.
    fn column<'a>(&self, channel: usize, reader: &mut impl Reader<'a>, out: &mut Samples) -> Result<(), DecodeError> {
        let pointer = &self.fields[channel];
        match reader.begin()? {
            Begin::Array => {}
            Begin::Null => {
                out.columns[channel] = None;
                return Ok(reader.skip()?);
            }
            other => return Err(wrong_type(pointer, "an array", other)),
        }
        reader.open()?;
        let start = out.scratch.len();
        let mut len = 0;
        while reader.element(len == 0)? {
            if len == ROWS_MAX || out.scratch.len() == VALUES_MAX {
                return Err(DecodeError::TooManyRows);
            }
            let number = value(reader, pointer, (len, channel))?;
            out.scratch.push(number.ok_or_else(|| wrong_type(pointer, "a number", Begin::Null))?);
            len += 1;
        }
        out.columns[channel] = Some((start, len));
        Ok(())
    }

    /// Reads the array of samples in the layouts `rows` and `objects`.
    fn rows<'a>(&self, reader: &mut impl Reader<'a>, out: &mut Samples) -> Result<(), DecodeError> {
        let begin = reader.begin()?;
        if begin != Begin::Array {
            return Err(wrong_type(&self.samples, "an array", begin));
        }
        out.values.clear();
        reader.open()?;
        let mut row = 0;
        while reader.element(row == 0)? {
            if row == ROWS_MAX || out.values.len() + self.channels > VALUES_MAX {
                return Err(DecodeError::TooManyRows);
            }
            if self.format.layout == Layout::Objects {
                out.values.resize(out.values.len() + self.channels, f64::NAN);
                self.walk(&self.element, 0, reader, out, &mut false)?;
                self.check_row(out, row)?;
            } else {
                self.row(row, reader, out)?;
            }
            row += 1;
        }
        Ok(())
    }

    /// Reads one row in the layout `rows`.
    fn row<'a>(&self, row: usize, reader: &mut impl Reader<'a>, out: &mut Samples) -> Result<(), DecodeError> {
        match reader.begin()? {
            Begin::Array => {}
            _ if self.channels == 1 => return self.element(reader, (row, 0), out),
            other => return Err(wrong_type(&self.samples, "an array of arrays", other)),
        }
        reader.open()?;
        let mut len = 0;
        while reader.element(len == 0)? {
            if len == self.channels {
                return Err(DecodeError::RowLen { row, len: len + 1, expected: self.channels });
            }
            self.element(reader, (row, len), out)?;
            len += 1;
        }
        if len == self.channels { Ok(()) } else { Err(DecodeError::RowLen { row, len, expected: self.channels }) }
    }

    /// Reads one number of a row.
    fn element<'a>(&self, reader: &mut impl Reader<'a>, place: (usize, usize), out: &mut Samples) -> Result<(), DecodeError> {
        let number = value(reader, &self.samples, place)?;
        out.values.push(number.ok_or_else(|| wrong_type(&self.samples, "a number", Begin::Null))?);
        Ok(())
    }

    fn time<'a>(&self, reader: &mut impl Reader<'a>, out: &mut Samples) -> Result<(), DecodeError> {
        out.time_us = match reader.begin()? {
            Begin::Number | Begin::Time => {
                let time_us = reader.time_us(self.format.time_unit)?;
                Some(time_us.ok_or_else(|| DecodeError::TimeRange { pointer: Arc::clone(&self.time) })?)
            }
            Begin::Null => {
                reader.skip()?;
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
fn check_keys(format: &DocumentFormat) -> Result<(), FormatError> {
    let layout = format.layout.name();
    let (fields, samples, rate) = match format.layout {
        Layout::Single => (true, false, None),
        Layout::Rows => (false, true, Some(true)),
        Layout::Objects => (true, true, Some(true)),
        Layout::Columns => (true, false, Some(true)),
    };
    let keys = [
        ("fields", !format.fields.is_empty(), Some(fields)),
        ("samples", format.samples.is_some(), Some(samples)),
        ("channels", format.channels.is_some(), Some(format.layout == Layout::Rows)),
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
fn value<'a>(reader: &mut impl Reader<'a>, pointer: &Arc<str>, place: (usize, usize)) -> Result<Option<f64>, DecodeError> {
    let begin = reader.begin()?;
    let value = match begin {
        Begin::Number => reader.number()?,
        Begin::True | Begin::False => {
            reader.skip()?;
            f64::from(u8::from(begin == Begin::True))
        }
        Begin::Null => {
            reader.skip()?;
            return Ok(None);
        }
        other => return Err(wrong_type(pointer, "a number", other)),
    };
    if value.is_finite() { Ok(Some(value)) } else { Err(DecodeError::NotFinite { row: place.0, channel: place.1 }) }
}

fn missing(pointer: &Arc<str>) -> DecodeError {
    DecodeError::Missing { pointer: Arc::clone(pointer) }
}

fn wrong_type(pointer: &Arc<str>, expected: &'static str, found: Begin) -> DecodeError {
    DecodeError::WrongType { pointer: Arc::clone(pointer), expected, found: found.name() }
}
