//! A CBOR reader (RFC 8949) that walks a document once, in place, with a depth limit.
//!
//! A value is a head (its type and a number) and what the number says follows: bytes, elements or members. Arrays, objects and
//! texts may also go on until a *break*. So each level of nesting remembers what is still to come of it.
//!
//! Tags say what a value means. Those that matter here, the innermost one counts, and all others are read past:
//! - 0 and 1: a time, as RFC 3339 text or in seconds;
//! - 2 and 3: an integer as bytes, here of up to 16;
//! - 64 to 87: bytes that are numbers of one type (RFC 8746): an array like any other to who walks it. 128-bit floats are not
//!   read;
//! - 40 around such an array: its rows, if it has two dimensions.
//!
//! Text that nothing looks at is not checked to be UTF-8. A map's key may be of any type; only texts and integers lead anywhere.

mod number;

use self::number::{Element, float, integer, unsigned, whole};
use super::reader::{Begin, Expected, Fault, Key, Notation, Reader, Ticks, deeper};
use super::time::rfc3339_us;
use super::{DEPTH_MAX, TimeUnit};

/// A position in a CBOR document.
#[derive(Debug, Clone)]
pub(super) struct CborReader<'a> {
    bytes: &'a [u8],
    at: usize,
    levels: [Level; DEPTH_MAX],
    depth: usize,
    /// The innermost tag of the value that [`Reader::begin`] looked at.
    tag: Option<u64>,
}

/// What is still to come of an array or object.
#[derive(Debug, Clone, Copy)]
enum Level {
    /// So many elements or members.
    Items(u64),
    /// All until a break.
    UntilBreak,
    /// So many numbers without heads.
    Numbers(Element, usize),
    /// Rows of so many such numbers each.
    Rows { element: Element, rows: usize, columns: usize },
}

/// The key of a map's member.
#[derive(Debug, Clone, Copy)]
pub(super) enum CborKey<'a> {
    Text(&'a [u8]),
    /// The pieces of a text, each with its head, without the break.
    Pieces(&'a [u8]),
    Integer(i64),
    Other,
}

/// The first byte of a value, in two parts, and the number that goes with it.
#[derive(Debug, Clone, Copy)]
struct Head {
    major: u8,
    /// The number itself if it is below [`ONE_BYTE`], else how many bytes it has, or [`NO_LENGTH`].
    low: u8,
    number: u64,
}

/// What the low bits of a first byte say of its number: from here on that it follows in 1, 2, 4 or 8 bytes.
const ONE_BYTE: u8 = 24;
const TWO_BYTES: u8 = 25;
const EIGHT_BYTES: u8 = 27;
/// There is no number: what follows goes on until a break.
const NO_LENGTH: u8 = 31;

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
const SIMPLE: u8 = 7;
const BREAK: u8 = 0xff;

const TAG_TIME_TEXT: u64 = 0;
const TAG_TIME_NUMBER: u64 = 1;
const TAG_POSITIVE: u64 = 2;
const TAG_NEGATIVE: u64 = 3;
const TAG_ROWS: u64 = 40;
impl<'a> Reader<'a> for CborReader<'a> {
    type Key = CborKey<'a>;

    fn finish(&mut self) -> Result<(), Fault> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.expected(Expected::End)) }
    }

    #[inline]
    fn begin(&mut self) -> Result<Begin, Fault> {
        match self.level() {
            Some(Level::Numbers(..)) => return Ok(Begin::Number),
            Some(Level::Rows { .. }) => return Ok(Begin::Array),
            _ => {}
        }
        loop {
            let initial = *self.bytes.get(self.at).ok_or_else(|| self.expected(Expected::More))?;
            let (major, low) = (initial >> 5, initial & 0x1f);
            return Ok(match major {
                TAG => {
                    self.tag = Some(self.head()?.number);
                    continue;
                }
                UNSIGNED | NEGATIVE => Begin::Number,
                BYTES if low != NO_LENGTH && self.element_type().is_some() => Begin::Array,
                BYTES if low != NO_LENGTH && self.is_integer_of_bytes() => Begin::Number,
                BYTES => Begin::Bytes,
                TEXT if self.tag == Some(TAG_TIME_TEXT) => Begin::Time,
                TEXT => Begin::Text,
                ARRAY => Begin::Array,
                MAP => Begin::Object,
                _ => match low {
                    20 => Begin::False,
                    21 => Begin::True,
                    // Undefined is as absent as null.
                    22 | 23 => Begin::Null,
                    TWO_BYTES..=EIGHT_BYTES => Begin::Number,
                    NO_LENGTH => return Err(self.expected(Expected::Value)),
                    _ => Begin::Other,
                },
            });
        }
    }

    fn open(&mut self) -> Result<(), Fault> {
        let depth = deeper(self.depth).ok_or_else(|| self.expected(Expected::Shallower))?;
        let level = match self.level() {
            Some(Level::Rows { element, columns, .. }) => Level::Numbers(element, columns),
            _ => match self.rows()? {
                Some(rows) => rows,
                None => self.items()?,
            },
        };
        self.levels[self.depth] = level;
        self.depth = depth;
        Ok(())
    }

    #[inline]
    fn element(&mut self, _first: bool) -> Result<bool, Fault> {
        self.tag = None;
        let is_break = self.bytes.get(self.at) == Some(&BREAK);
        let Some(top) = self.depth.checked_sub(1) else { return Ok(false) };
        let level = &mut self.levels[top];
        let has_more = match level {
            Level::Items(0) | Level::Numbers(_, 0) | Level::Rows { rows: 0, .. } => false,
            Level::Items(left) => {
                *left -= 1;
                true
            }
            Level::Rows { rows: left, .. } | Level::Numbers(_, left) => {
                *left -= 1;
                true
            }
            Level::UntilBreak => !is_break,
        };
        if !has_more {
            self.at += usize::from(matches!(level, Level::UntilBreak));
            self.depth -= 1;
        }
        Ok(has_more)
    }

    #[inline]
    fn member(&mut self, first: bool) -> Result<Option<CborKey<'a>>, Fault> {
        if !self.element(first)? {
            return Ok(None);
        }
        let key = self.key()?;
        self.tag = None;
        Ok(Some(key))
    }

    #[inline]
    fn number(&mut self) -> Result<f64, Fault> {
        Ok(match self.ticks()? {
            Ticks::Whole(number) => number as f64,
            Ticks::Fraction(number) => number,
        })
    }

    fn time_us(&mut self, unit: TimeUnit) -> Result<Option<i64>, Fault> {
        if self.tag == Some(TAG_TIME_TEXT) {
            let head = self.head()?;
            let text = if head.has_length() { self.take(head.number)? } else { self.pieces(TEXT)? };
            return Ok(std::str::from_utf8(text).ok().and_then(rfc3339_us));
        }
        let unit = if self.tag == Some(TAG_TIME_NUMBER) { TimeUnit::S } else { unit };
        Ok(self.ticks()?.time_us(unit))
    }

    fn text(&mut self, out: &mut String) -> Result<(), Fault> {
        out.clear();
        let start = self.at;
        let not_utf8 = Fault { at: start as u32, notation: Notation::Cbor, expected: Expected::Utf8 };
        let key = self.key()?;
        key.try_for_each_piece(|piece| {
            out.push_str(std::str::from_utf8(piece).ok()?);
            Some(())
        })
        .ok_or(not_utf8)
    }

    fn skip(&mut self) -> Result<(), Fault> {
        match self.level() {
            Some(Level::Numbers(element, _)) => return self.take(element.size_bytes as u64).map(drop),
            Some(Level::Rows { element, columns, .. }) => {
                return self.take((element.size_bytes * columns) as u64).map(drop);
            }
            _ => {}
        }
        let mut head = self.head()?;
        while head.major == TAG {
            head = self.head()?;
        }
        match head.major {
            BYTES | TEXT if head.has_length() => self.take(head.number).map(drop),
            BYTES | TEXT => self.pieces(head.major).map(drop),
            ARRAY | MAP => self.skip_items(head),
            _ => Ok(()),
        }
    }
}

impl<'a> CborReader<'a> {
    /// A reader at the start of a payload.
    pub(super) fn new(payload: &'a [u8]) -> CborReader<'a> {
        CborReader { bytes: payload, at: 0, levels: [Level::Items(0); DEPTH_MAX], depth: 0, tag: None }
    }

    /// The level that the position is in.
    fn level(&self) -> Option<Level> {
        self.depth.checked_sub(1).map(|top| self.levels[top])
    }

    /// Consumes a head; one that is not well-formed is refused.
    #[inline(always)]
    fn head(&mut self) -> Result<Head, Fault> {
        let initial = *self.bytes.get(self.at).ok_or_else(|| self.expected(Expected::More))?;
        let (major, low) = (initial >> 5, initial & 0x1f);
        if low >= ONE_BYTE {
            return self.long_head(major, low);
        }
        self.at += 1;
        Ok(Head { major, low, number: u64::from(low) })
    }

    fn long_head(&mut self, major: u8, low: u8) -> Result<Head, Fault> {
        let start = self.at;
        self.at += 1;
        let number = match low {
            ONE_BYTE => u64::from(u8::from_be_bytes(self.array()?)),
            TWO_BYTES => u64::from(u16::from_be_bytes(self.array()?)),
            26 => u64::from(u32::from_be_bytes(self.array()?)),
            EIGHT_BYTES => u64::from_be_bytes(self.array()?),
            NO_LENGTH if matches!(major, BYTES | TEXT | ARRAY | MAP) => 0,
            _ => return Err(self.expected_at(start, Expected::Head)),
        };
        // A simple value below 32 has no second byte.
        if major == SIMPLE && low == ONE_BYTE && number < 32 {
            return Err(self.expected_at(start, Expected::Head));
        }
        Ok(Head { major, low, number })
    }

    fn array<const SIZE: usize>(&mut self) -> Result<[u8; SIZE], Fault> {
        let array = self.bytes[self.at..].first_chunk().ok_or_else(|| self.expected_at(self.bytes.len(), Expected::More))?;
        self.at += SIZE;
        Ok(*array)
    }

    /// Consumes so many bytes; the length may be a lie.
    #[inline]
    fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| self.expected_at(self.bytes.len(), Expected::More))?;
        self.at += taken.len();
        Ok(taken)
    }

    /// Consumes the pieces of a string up to its break, and the break; returns the pieces with their heads.
    fn pieces(&mut self, major: u8) -> Result<&'a [u8], Fault> {
        let start = self.at;
        while self.bytes.get(self.at) != Some(&BREAK) {
            let at = self.at;
            let head = self.head()?;
            if head.major != major || !head.has_length() {
                return Err(self.expected_at(at, Expected::Chunk));
            }
            self.take(head.number)?;
        }
        self.at += 1;
        Ok(&self.bytes[start..self.at - 1])
    }

    /// Consumes a key, or a text.
    #[inline]
    fn key(&mut self) -> Result<CborKey<'a>, Fault> {
        let start = self.at;
        let head = self.head()?;
        Ok(match head.major {
            TEXT if head.has_length() => CborKey::Text(self.take(head.number)?),
            TEXT => CborKey::Pieces(self.pieces(TEXT)?),
            UNSIGNED => i64::try_from(head.number).map_or(CborKey::Other, CborKey::Integer),
            NEGATIVE => i64::try_from(head.number).map_or(CborKey::Other, |number| CborKey::Integer(-1 - number)),
            _ => {
                self.at = start;
                self.skip()?;
                CborKey::Other
            }
        })
    }

    /// The head of an array or map that is to be entered, or of a typed array.
    fn items(&mut self) -> Result<Level, Fault> {
        let element = self.element_type();
        let start = self.at;
        let head = self.head()?;
        match (head.major, element) {
            (BYTES, Some(element)) => {
                let bytes = self.take(head.number)?.len();
                // The bytes are read one number at a time.
                self.at -= bytes;
                self.numbers(element, bytes, start)
            }
            _ => Ok(head.level()),
        }
    }

    fn numbers(&self, element: Element, bytes: usize, start: usize) -> Result<Level, Fault> {
        if !bytes.is_multiple_of(element.size_bytes) {
            return Err(self.expected_at(start, Expected::Elements));
        }
        Ok(Level::Numbers(element, bytes / element.size_bytes))
    }

    /// Consumes the heads of a typed array of two dimensions, `40([[rows, columns], numbers])`; none, and nothing is consumed,
    /// if there is anything else.
    fn rows(&mut self) -> Result<Option<Level>, Fault> {
        if self.tag != Some(TAG_ROWS) {
            return Ok(None);
        }
        let start = self.at;
        let is_pair = self.is_array_of_two()? && self.is_array_of_two()?;
        if is_pair
            && let Some(rows) = self.size()?
            && let Some(columns) = self.size()?
            && let Head { major: TAG, number, .. } = self.head()?
        {
            self.tag = Some(number);
            let element = self.element_type();
            let head = self.head()?;
            if let Some(element) = element
                && head.major == BYTES
                && head.has_length()
            {
                let bytes = self.take(head.number)?.len();
                self.at -= bytes;
                let expected = rows.checked_mul(columns).and_then(|count| count.checked_mul(element.size_bytes));
                // Rows of nothing could be any number of them.
                if columns == 0 || expected != Some(bytes) {
                    return Err(self.expected_at(start, Expected::Elements));
                }
                return Ok(Some(Level::Rows { element, rows, columns }));
            }
        }
        (self.at, self.tag) = (start, None);
        Ok(None)
    }

    /// Consumes a head.
    fn is_array_of_two(&mut self) -> Result<bool, Fault> {
        Ok(matches!(self.head()?, Head { major: ARRAY, low: 2, .. }))
    }

    /// Consumes a head; its number if it is that of an unsigned one.
    fn size(&mut self) -> Result<Option<usize>, Fault> {
        let head = self.head()?;
        Ok(if head.major == UNSIGNED { usize::try_from(head.number).ok() } else { None })
    }

    /// The type that the tag gives to bytes.
    fn element_type(&self) -> Option<Element> {
        self.tag.and_then(Element::of_tag)
    }

    fn is_integer_of_bytes(&self) -> bool {
        matches!(self.tag, Some(TAG_POSITIVE | TAG_NEGATIVE))
    }

    /// Consumes a number, exactly if it is whole and fits.
    fn ticks(&mut self) -> Result<Ticks, Fault> {
        if let Some(Level::Numbers(element, _)) = self.level() {
            let bytes = self.take(element.size_bytes as u64)?;
            return Ok(element.number(bytes));
        }
        let head = self.head()?;
        Ok(match head.major {
            UNSIGNED => unsigned(head.number),
            NEGATIVE => whole(-1 - i128::from(head.number)),
            BYTES => integer(self.take(head.number)?, self.tag == Some(TAG_NEGATIVE)),
            _ => Ticks::Fraction(float(head.number, head.low)),
        })
    }

    fn skip_items(&mut self, head: Head) -> Result<(), Fault> {
        let depth = deeper(self.depth).ok_or_else(|| self.expected(Expected::Shallower))?;
        self.levels[self.depth] = head.level();
        self.depth = depth;
        while self.element(false)? {
            if head.major == MAP {
                self.key()?;
            }
            self.skip()?;
        }
        Ok(())
    }

    fn expected(&self, expected: Expected) -> Fault {
        self.expected_at(self.at, expected)
    }

    fn expected_at(&self, at: usize, expected: Expected) -> Fault {
        Fault { at: at as u32, notation: Notation::Cbor, expected }
    }
}

impl Head {
    fn has_length(self) -> bool {
        self.low != NO_LENGTH
    }

    /// What is to come of the array or map that it begins.
    fn level(self) -> Level {
        if self.has_length() { Level::Items(self.number) } else { Level::UntilBreak }
    }
}

impl CborKey<'_> {
    /// Calls `on_piece` for each piece of a text; none if it is no text, or as soon as that gives none.
    fn try_for_each_piece(self, mut on_piece: impl FnMut(&[u8]) -> Option<()>) -> Option<()> {
        match self {
            CborKey::Text(text) => on_piece(text),
            CborKey::Pieces(pieces) => {
                let mut reader = CborReader::new(pieces);
                while reader.at < pieces.len() {
                    let head = reader.head().ok()?;
                    on_piece(reader.take(head.number).ok()?)?;
                }
                Some(())
            }
            CborKey::Integer(_) | CborKey::Other => None,
        }
    }
}

impl Key for CborKey<'_> {
    #[inline]
    fn is(&self, token: &str) -> bool {
        match *self {
            CborKey::Text(text) => text == token.as_bytes(),
            CborKey::Pieces(_) => {
                let mut rest = token.as_bytes();
                let matches = self.try_for_each_piece(|piece| {
                    rest = rest.strip_prefix(piece)?;
                    Some(())
                });
                matches.is_some() && rest.is_empty()
            }
            CborKey::Integer(number) => {
                let is_canonical = token == "0" || !token.trim_start_matches('-').starts_with(['0', '+']);
                is_canonical && token.parse() == Ok(number)
            }
            CborKey::Other => false,
        }
    }

    fn number(&self) -> Option<i64> {
        match *self {
            CborKey::Integer(number) => Some(number),
            _ => None,
        }
    }

    fn ends_with(&self, byte: u8) -> bool {
        // The last piece ends where they all do, unless it is empty.
        matches!(*self, CborKey::Text(text) | CborKey::Pieces(text) if text.ends_with(&[byte]))
    }
}
