//! SenML packs (RFC 8428), as JSON or CBOR: a list of records, each a name, a value, a unit and a time.
//!
//! A record may say what those after it have in common: the beginning of their name, a time and a value to add, a unit. A
//! channel is found by its name's end and its unit, because the beginning of a name is the device, of which a stream has many.
//! Records of one time are one row, and must have all channels; a pack of one channel is as many rows as it has records.
//!
//! - A time below 2^28 seconds is relative to now, and in a row it is added to the time of receipt. A pack has either kind.
//! - A record without a value but with a sum (an energy meter's count) gives the sum.
//! - Texts and data are no numbers: a channel that names such a record is refused, any other such record is passed over.
//! - A version above 10, or a field that ends in `_` (which must be understood) refuses the pack.

use std::sync::Arc;

use super::cbor::CborReader;
use super::format::{check_channels, check_rate};
use super::json::JsonReader;
use super::reader::{Begin, Key, Reader};
use super::rows::Entries;
use super::{DecodeError, FormatError, Samples, SenmlFormat, TIME_US_MAX, TimeOf};

/// A compiled [`SenmlFormat`].
#[derive(Debug, Clone)]
pub(super) struct SenmlDecoder {
    channels: Vec<Channel>,
    root: Arc<str>,
}

#[derive(Debug, Clone)]
struct Channel {
    /// As configured, for errors.
    field: Arc<str>,
    /// The whole name, or its end.
    name: String,
    is_end: bool,
    /// None for any.
    unit: Option<String>,
}

/// What is reused from pack to pack: names and units, of which the payload's length limits the size.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    base_name: String,
    name: String,
    base_unit: String,
    unit: String,
    row: Vec<f64>,
    entries: Entries,
}

/// What a record adds to those after it.
#[derive(Debug, Clone, Copy, Default)]
struct Base {
    time_s: f64,
    value: f64,
    sum: f64,
}

/// The numbers of one record.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    time_s: f64,
    value: Option<Value>,
    sum: Option<f64>,
    has_unit: bool,
}

#[derive(Debug, Clone, Copy)]
enum Value {
    Number(f64),
    Boolean(bool),
    /// A text or data, as what it begins.
    Other(Begin),
}

/// The fields of a record (RFC 8428, tables 1, 2 and 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    BaseVersion,
    BaseName,
    BaseTime,
    BaseUnit,
    BaseValue,
    BaseSum,
    Name,
    Unit,
    Value,
    TextValue,
    BooleanValue,
    Sum,
    Time,
    DataValue,
    Unknown,
}

/// The version of RFC 8428.
const VERSION_MAX: f64 = 10.0;
/// Times below are relative to now (RFC 8428, section 4.5.3).
const RELATIVE_BELOW_S: f64 = 268_435_456.0;
/// The last byte of what cannot be JSON: an array of CBOR begins above, with or without a tag.
const ASCII_MAX: u8 = 0x7f;

impl SenmlDecoder {
    pub(super) fn new(format: &SenmlFormat) -> Result<SenmlDecoder, FormatError> {
        check_channels(format.fields.len())?;
        check_rate(format.rate_hz)?;
        let (len, channels) = (format.units.len(), format.fields.len());
        if len != 0 && len != channels {
            return Err(FormatError::UnitsLen { len, channels });
        }
        let mut compiled: Vec<Channel> = Vec::new();
        for (at, field) in format.fields.iter().enumerate() {
            let channel = Channel::new(field, format.units.get(at).map(String::as_str))?;
            if let Some(first) = compiled.iter().find(|first| first.overlaps(&channel)) {
                return Err(FormatError::NameOverlap { first: first.field.to_string(), second: field.clone() });
            }
            compiled.push(channel);
        }
        Ok(SenmlDecoder { channels: compiled, root: "".into() })
    }

    pub(super) fn channels(&self) -> usize {
        self.channels.len()
    }

    pub(super) fn decode(&self, payload: &[u8], out: &mut Samples) -> Result<(), DecodeError> {
        out.reset(self.channels.len(), None, TimeOf::Last);
        let mut scratch = std::mem::take(&mut out.senml);
        let result = self.decode_with(payload, &mut scratch, out);
        out.senml = scratch;
        result
    }

    fn decode_with(&self, payload: &[u8], scratch: &mut Scratch, out: &mut Samples) -> Result<(), DecodeError> {
        scratch.entries.clear();
        let is_cbor = payload.first().is_some_and(|byte| *byte > ASCII_MAX);
        let is_relative = if is_cbor {
            self.read(CborReader::new(payload), scratch)?
        } else {
            self.read(JsonReader::new(payload)?, scratch)?
        };
        let Scratch { entries, row, .. } = scratch;
        row.clear();
        row.resize(self.channels.len(), f64::NAN);
        entries.for_each_row(row, false, |row| match row.values.iter().position(|value| value.is_nan()) {
            Some(channel) => Err(DecodeError::Missing { pointer: Arc::clone(&self.channels[channel].field) }),
            None => out.push_row(row.time_us, is_relative, row.values),
        })?;
        if out.rows() == 0 {
            return Err(DecodeError::Missing { pointer: Arc::clone(&self.channels[0].field) });
        }
        Ok(())
    }

    /// Collects the values of all channels; says whether their times are relative to now.
    fn read<'a>(&self, mut reader: impl Reader<'a>, scratch: &mut Scratch) -> Result<bool, DecodeError> {
        let begin = reader.begin()?;
        if begin != Begin::Array {
            return Err(self.wrong_type("an array of records", begin));
        }
        let mut base = Base::default();
        let mut relative = None;
        scratch.base_name.clear();
        scratch.base_unit.clear();
        reader.open()?;
        let mut count = 0;
        while reader.element(count == 0)? {
            let record = self.record(&mut reader, &mut base, scratch)?;
            if let Some(channel) = self.channel(&record, scratch) {
                let value = self.value(&record, base, channel, count)?;
                let time_s = base.time_s + record.time_s;
                let is_relative = time_s < RELATIVE_BELOW_S;
                if *relative.get_or_insert(is_relative) != is_relative {
                    return Err(DecodeError::MixedTimes);
                }
                let time_us = (time_s * 1e6).round() as i64;
                if !time_s.is_finite() || time_us > TIME_US_MAX || time_s <= -RELATIVE_BELOW_S {
                    return Err(DecodeError::TimeRange { pointer: Arc::clone(&self.channels[channel].field) });
                }
                scratch.entries.push(time_us, channel, value)?;
            }
            count += 1;
        }
        reader.finish()?;
        if count == 0 { Err(DecodeError::Empty) } else { Ok(relative.unwrap_or(true)) }
    }

    /// Reads a record. Its base fields count for itself, wherever they stand in it.
    fn record<'a>(&self, reader: &mut impl Reader<'a>, base: &mut Base, scratch: &mut Scratch) -> Result<Record, DecodeError> {
        let begin = reader.begin()?;
        if begin != Begin::Object {
            return Err(self.wrong_type("an array of records", begin));
        }
        let mut record = Record::default();
        scratch.name.clear();
        scratch.unit.clear();
        reader.open()?;
        let mut is_first = true;
        while let Some(key) = reader.member(is_first)? {
            is_first = false;
            match label(key) {
                Label::BaseName => self.text(reader, &mut scratch.base_name)?,
                Label::BaseUnit => self.text(reader, &mut scratch.base_unit)?,
                Label::Name => self.text(reader, &mut scratch.name)?,
                Label::Unit => {
                    self.text(reader, &mut scratch.unit)?;
                    record.has_unit = true;
                }
                Label::BaseVersion => {
                    let version = self.number(reader)?;
                    if version > VERSION_MAX {
                        return Err(DecodeError::Version { version: version as u64 });
                    }
                }
                Label::BaseTime => base.time_s = self.number(reader)?,
                Label::BaseValue => base.value = self.number(reader)?,
                Label::BaseSum => base.sum = self.number(reader)?,
                Label::Time => record.time_s = self.number(reader)?,
                Label::Value => record.value = Some(Value::Number(self.number(reader)?)),
                Label::Sum => record.sum = Some(self.number(reader)?),
                Label::BooleanValue => {
                    let begin = reader.begin()?;
                    if !matches!(begin, Begin::True | Begin::False) {
                        return Err(self.wrong_type("a boolean", begin));
                    }
                    record.value = Some(Value::Boolean(begin == Begin::True));
                    reader.skip()?;
                }
                Label::TextValue | Label::DataValue => {
                    record.value = Some(Value::Other(reader.begin()?));
                    reader.skip()?;
                }
                Label::Unknown if key.ends_with(b'_') => return Err(DecodeError::NotUnderstood),
                Label::Unknown => reader.skip()?,
            }
        }
        Ok(record)
    }

    /// The channel that a record belongs to; none if nobody wants it, or if it holds nothing.
    fn channel(&self, record: &Record, scratch: &Scratch) -> Option<usize> {
        if record.value.is_none() && record.sum.is_none() {
            return None;
        }
        let unit = if record.has_unit { &scratch.unit } else { &scratch.base_unit };
        self.channels.iter().position(|channel| channel.is(&scratch.base_name, &scratch.name, unit))
    }

    fn value(&self, record: &Record, base: Base, channel: usize, row: usize) -> Result<f64, DecodeError> {
        let value = match (record.value, record.sum) {
            (Some(Value::Number(value)), _) => base.value + value,
            (Some(Value::Boolean(value)), _) => f64::from(u8::from(value)),
            (Some(Value::Other(begin)), _) => {
                let pointer = Arc::clone(&self.channels[channel].field);
                return Err(DecodeError::WrongType { pointer, expected: "a number", found: begin.name() });
            }
            (None, sum) => base.sum + sum.unwrap_or(0.0),
        };
        if value.is_finite() { Ok(value) } else { Err(DecodeError::NotFinite { row, channel }) }
    }

    fn text<'a>(&self, reader: &mut impl Reader<'a>, out: &mut String) -> Result<(), DecodeError> {
        match reader.begin()? {
            Begin::Text => Ok(reader.text(out)?),
            other => Err(self.wrong_type("text", other)),
        }
    }

    fn number<'a>(&self, reader: &mut impl Reader<'a>) -> Result<f64, DecodeError> {
        match reader.begin()? {
            Begin::Number => Ok(reader.number()?),
            other => Err(self.wrong_type("a number", other)),
        }
    }

    /// Errors of the pack itself name its root.
    fn wrong_type(&self, expected: &'static str, found: Begin) -> DecodeError {
        DecodeError::WrongType { pointer: Arc::clone(&self.root), expected, found: found.name() }
    }
}

impl Channel {
    fn new(field: &str, unit: Option<&str>) -> Result<Channel, FormatError> {
        let (name, is_end) = field.strip_prefix('*').map_or((field, false), |end| (end, true));
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-:./_".contains(&byte));
        if !is_name || field.is_empty() {
            return Err(FormatError::NameSyntax { name: field.to_owned() });
        }
        let unit = unit.filter(|unit| !unit.is_empty()).map(str::to_owned);
        Ok(Channel { field: field.into(), name: name.to_owned(), is_end, unit })
    }

    /// Whether a record of this name, in two parts, and this unit is a value of the channel.
    fn is(&self, base: &str, name: &str, unit: &str) -> bool {
        if self.unit.as_ref().is_some_and(|wanted| wanted != unit) {
            return false;
        }
        match self.name.strip_suffix(name) {
            Some(rest) if self.is_end => base.ends_with(rest),
            Some(rest) => base == rest,
            // The channel's end is only a part of the record's own name.
            None => self.is_end && name.ends_with(&self.name),
        }
    }

    /// Whether one record could be a value of both.
    fn overlaps(&self, other: &Channel) -> bool {
        let is_end_of = |end: &Channel, whole: &Channel| end.is_end && whole.name.ends_with(&end.name);
        let have_one_unit = self.unit.is_none() || other.unit.is_none() || self.unit == other.unit;
        have_one_unit && (self.name == other.name || is_end_of(self, other) || is_end_of(other, self))
    }
}

/// The field that a key names: a text in JSON, a number in CBOR, where a text is allowed as well.
fn label(key: impl Key) -> Label {
    const TEXTS: [(&str, Label); 14] = [
        ("n", Label::Name),
        ("v", Label::Value),
        ("t", Label::Time),
        ("u", Label::Unit),
        ("bn", Label::BaseName),
        ("bt", Label::BaseTime),
        ("bu", Label::BaseUnit),
        ("bv", Label::BaseValue),
        ("bs", Label::BaseSum),
        ("bver", Label::BaseVersion),
        ("vs", Label::TextValue),
        ("vb", Label::BooleanValue),
        ("vd", Label::DataValue),
        ("s", Label::Sum),
    ];
    match key.number() {
        None => TEXTS.iter().find(|(text, _)| key.is(text)).map_or(Label::Unknown, |(_, label)| *label),
        Some(-1) => Label::BaseVersion,
        Some(-2) => Label::BaseName,
        Some(-3) => Label::BaseTime,
        Some(-4) => Label::BaseUnit,
        Some(-5) => Label::BaseValue,
        Some(-6) => Label::BaseSum,
        Some(0) => Label::Name,
        Some(1) => Label::Unit,
        Some(2) => Label::Value,
        Some(3) => Label::TextValue,
        Some(4) => Label::BooleanValue,
        Some(5) => Label::Sum,
        Some(6) => Label::Time,
        Some(8) => Label::DataValue,
        Some(_) => Label::Unknown,
    }
}
