//! What a document of either notation, JSON or CBOR, looks like to who looks for numbers in it.
//!
//! A [`Reader`] stands before one value, says what kind it is, and consumes it. It borrows from the payload, never allocates,
//! and its nesting ends at [`DEPTH_MAX`].
//!
//! [`DEPTH_MAX`]: super::DEPTH_MAX

use super::{DEPTH_MAX, DecodeError, TIME_US_MAX, TimeUnit};

/// A position in a document, which moves from front to back.
pub(super) trait Reader<'a> {
    /// The key of an object's member.
    type Key: Key;

    /// Checks that nothing follows the document.
    fn finish(&mut self) -> Result<(), Fault>;

    /// The kind of the next value, without consuming it.
    fn begin(&mut self) -> Result<Begin, Fault>;

    /// Enters the array or object that [`Reader::begin`] saw.
    fn open(&mut self) -> Result<(), Fault>;

    /// Moves to the next element of an array; false when the array has ended. `first` before the first element.
    fn element(&mut self, first: bool) -> Result<bool, Fault>;

    /// Moves to the value of an object's next member and returns its key; none when the object has ended.
    fn member(&mut self, first: bool) -> Result<Option<Self::Key>, Fault>;

    /// Consumes the number that [`Reader::begin`] saw; infinite if it is beyond `f64`.
    fn number(&mut self) -> Result<f64, Fault>;

    /// Consumes the number or the time that [`Reader::begin`] saw, as microseconds since the Unix epoch; none if it is out of
    /// range. `unit` is that of a number that does not say its own.
    fn time_us(&mut self, unit: TimeUnit) -> Result<Option<i64>, Fault>;

    /// Consumes the text that [`Reader::begin`] saw, and puts it in the place of what `out` holds.
    fn text(&mut self, out: &mut String) -> Result<(), Fault>;

    /// Consumes the next value, whatever it is, checking its grammar.
    fn skip(&mut self) -> Result<(), Fault>;
}

/// The key of an object's member.
pub(super) trait Key: Copy {
    /// Whether it is the text `token`, or the whole number that `token` writes.
    fn is(&self, token: &str) -> bool;

    /// The key as a number; none if it is a text.
    fn number(&self) -> Option<i64>;

    /// Whether it is a text that ends with this byte, which is written as itself.
    fn ends_with(&self, byte: u8) -> bool;
}

/// What kind of value begins at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    Object,
    Array,
    Text,
    Number,
    True,
    False,
    Null,
    /// A point in time as text, where the notation has a type for it.
    Time,
    Bytes,
    /// A value of a type that nothing here reads.
    Other,
}

impl Begin {
    /// The kind as a person calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Begin::Object => "an object",
            Begin::Array => "an array",
            Begin::Text => "text",
            Begin::Number => "a number",
            Begin::True | Begin::False => "a boolean",
            Begin::Null => "null",
            Begin::Time => "a time",
            Begin::Bytes => "bytes",
            Begin::Other => "a value of another type",
        }
    }
}

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notation {
    Json,
    Cbor,
}

/// Where the grammar is broken. It is small, because every step of a reader may return it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    /// Payloads are checked to be shorter than 4 GiB before they are read.
    pub(super) at: u32,
    pub(super) notation: Notation,
    pub(super) expected: Expected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    End,
    Value,
    Shallower,
    CommaOrBracket,
    CommaOrBrace,
    Key,
    Colon,
    Digit,
    Quote,
    Control,
    Hex,
    Escape,
    Literal,
    More,
    Head,
    Chunk,
    Utf8,
    Elements,
}

impl From<Fault> for DecodeError {
    #[cold]
    fn from(fault: Fault) -> DecodeError {
        let at = fault.at as usize;
        let expected = match fault.expected {
            Expected::Shallower => return DecodeError::TooDeep { at },
            Expected::Utf8 => return DecodeError::NotUtf8 { at },
            Expected::End => "the end of the document",
            Expected::Value => "a value",
            Expected::CommaOrBracket => "`,` or `]`",
            Expected::CommaOrBrace => "`,` or `}`",
            Expected::Key => "a key",
            Expected::Colon => "`:`",
            Expected::Digit => "a digit",
            Expected::Quote => "the end of the text",
            Expected::Control => "an escaped control character",
            Expected::Hex => "a hexadecimal digit",
            Expected::Escape => "an escape",
            Expected::Literal => "`true`, `false` or `null`",
            Expected::More => "more bytes",
            Expected::Head => "the first byte of a value",
            Expected::Chunk => "a piece of the same string",
            Expected::Elements => "whole numbers of the array's type",
        };
        let notation = match fault.notation {
            Notation::Json => "JSON",
            Notation::Cbor => "CBOR",
        };
        DecodeError::Syntax { notation, at, expected }
    }
}

/// Enters one more level of nesting; none if that is one too many.
pub(super) fn deeper(depth: usize) -> Option<usize> {
    (depth < DEPTH_MAX).then_some(depth + 1)
}

/// A number that is a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Ticks {
    Whole(i64),
    Fraction(f64),
}

impl Ticks {
    /// Microseconds since the Unix epoch, exact for whole numbers; none when they are out of range.
    pub(super) fn time_us(self, unit: TimeUnit) -> Option<i64> {
        let (times, per) = match unit {
            TimeUnit::S => (1_000_000, 1),
            TimeUnit::Ms => (1_000, 1),
            TimeUnit::Us => (1, 1),
            TimeUnit::Ns => (1, 1_000),
        };
        let time_us = match self {
            Ticks::Whole(ticks) => (ticks / per).checked_mul(times)?,
            Ticks::Fraction(ticks) if ticks.is_finite() => (ticks * times as f64 / per as f64).round() as i64,
            Ticks::Fraction(_) => return None,
        };
        (0..=TIME_US_MAX).contains(&time_us).then_some(time_us)
    }
}
