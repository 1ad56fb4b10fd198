//! A JSON scanner that walks a document once, in place, with a depth limit.
//!
//! It knows the grammar of RFC 8259 and nothing of values: a caller reads a number or a literal where it wants one and
//! skips the rest.
//!
//! What runs once per key is forced inline: returned through memory, a key costs as much again as scanning it (measured
//! as 590 ns against 360 ns for 208 bytes).

use super::reader::{Begin, Expected, Fault, Key, Notation, Reader, Ticks, deeper};
use super::{DecodeError, TimeUnit};

/// A position in a JSON text.
#[derive(Debug, Clone)]
pub(super) struct JsonReader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

/// A string as it stands in the text, without its quotes.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawText<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> JsonReader<'a> {
    /// A scanner at the start of a payload, which is checked to be UTF-8.
    pub(super) fn new(payload: &'a [u8]) -> Result<JsonReader<'a>, DecodeError> {
        let text = std::str::from_utf8(payload).map_err(|error| DecodeError::NotUtf8 { at: error.valid_up_to() })?;
        Ok(JsonReader { text, bytes: payload, at: 0, depth: 0 })
    }

    /// Consumes a number and returns its text, which `f64::from_str` understands.
    fn number_text(&mut self) -> Result<&'a str, Fault> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.expected(Expected::Digit)),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    #[inline(always)]
    fn next_item(&mut self, first: bool, close: u8, expected: Expected) -> Result<bool, Fault> {
        self.space();
        match self.peek() {
            Some(byte) if byte == close => {
                self.at += 1;
                self.depth -= 1;
                Ok(false)
            }
            Some(b',') if !first => {
                self.at += 1;
                Ok(true)
            }
            Some(_) if first => Ok(true),
            _ => Err(self.expected(expected)),
        }
    }

    #[inline(always)]
    fn string(&mut self) -> Result<RawText<'a>, Fault> {
        let start = self.at + 1;
        self.at = start;
        let mut escaped = false;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(0..0x20) => return Err(self.expected(Expected::Control)),
                Some(_) => self.at += 1,
                None => return Err(self.expected(Expected::Quote)),
            }
        }
        let raw = &self.text[start..self.at];
        self.at += 1;
        Ok(RawText { raw, escaped })
    }

    #[cold]
    fn escape(&mut self) -> Result<(), Fault> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.expected(Expected::Hex));
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.expected(Expected::Escape)),
        }
        Ok(())
    }

    fn literal(&mut self, word: &'static str) -> Result<(), Fault> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.expected(Expected::Literal));
        }
        self.at += word.len();
        Ok(())
    }

    fn some_digits(&mut self) -> Result<(), Fault> {
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return Err(self.expected(Expected::Digit));
        }
        self.digits();
        Ok(())
    }

    fn digits(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }

    #[inline(always)]
    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn expected(&self, expected: Expected) -> Fault {
        Fault { at: self.at as u32, notation: Notation::Json, expected }
    }
}

impl<'a> Reader<'a> for JsonReader<'a> {
    type Key = RawText<'a>;

    fn finish(&mut self) -> Result<(), Fault> {
        self.space();
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.expected(Expected::End)) }
    }

    fn begin(&mut self) -> Result<Begin, Fault> {
        self.space();
        match self.peek() {
            Some(b'{') => Ok(Begin::Object),
            Some(b'[') => Ok(Begin::Array),
            Some(b'"') => Ok(Begin::Text),
            Some(b'-' | b'0'..=b'9') => Ok(Begin::Number),
            Some(b't') => Ok(Begin::True),
            Some(b'f') => Ok(Begin::False),
            Some(b'n') => Ok(Begin::Null),
            _ => Err(self.expected(Expected::Value)),
        }
    }

    fn open(&mut self) -> Result<(), Fault> {
        self.depth = deeper(self.depth).ok_or_else(|| self.expected(Expected::Shallower))?;
        self.at += 1;
        Ok(())
    }

    fn element(&mut self, first: bool) -> Result<bool, Fault> {
        self.next_item(first, b']', Expected::CommaOrBracket)
    }

    #[inline(always)]
    fn member(&mut self, first: bool) -> Result<Option<RawText<'a>>, Fault> {
        if !self.next_item(first, b'}', Expected::CommaOrBrace)? {
            return Ok(None);
        }
        self.space();
        if self.peek() != Some(b'"') {
            return Err(self.expected(Expected::Key));
        }
        let key = self.string()?;
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.expected(Expected::Colon));
        }
        self.at += 1;
        Ok(Some(key))
    }

    fn skip(&mut self) -> Result<(), Fault> {
        match self.begin()? {
            Begin::Text => self.string().map(drop),
            Begin::Number => self.number_text().map(drop),
            Begin::True => self.literal("true"),
            Begin::False => self.literal("false"),
            Begin::Array => {
                self.open()?;
                let mut first = true;
                while self.element(first)? {
                    first = false;
                    self.skip()?;
                }
                Ok(())
            }
            Begin::Object => {
                self.open()?;
                let mut first = true;
                while self.member(first)?.is_some() {
                    first = false;
                    self.skip()?;
                }
                Ok(())
            }
            _ => self.literal("null"),
        }
    }

    fn number(&mut self) -> Result<f64, Fault> {
        Ok(self.number_text()?.parse().unwrap_or(f64::INFINITY))
    }

    fn time_us(&mut self, unit: TimeUnit) -> Result<Option<i64>, Fault> {
        let text = self.number_text()?;
        let ticks = text.parse().map(Ticks::Whole).or_else(|_| text.parse().map(Ticks::Fraction));
        Ok(ticks.ok().and_then(|ticks| ticks.time_us(unit)))
    }

    fn text(&mut self, out: &mut String) -> Result<(), Fault> {
        let text = self.string()?;
        out.clear();
        text.append_to(out);
        Ok(())
    }
}

impl Key for RawText<'_> {
    /// A lone surrogate equals nothing.
    #[inline]
    fn is(&self, token: &str) -> bool {
        if self.escaped { self.unescaped_is(token) } else { self.raw == token }
    }

    fn number(&self) -> Option<i64> {
        None
    }

    fn ends_with(&self, byte: u8) -> bool {
        self.raw.as_bytes().ends_with(&[byte])
    }
}

impl RawText<'_> {
    /// Appends the text, its escapes resolved; a lone surrogate becomes U+FFFD.
    fn append_to(self, out: &mut String) {
        let mut rest = self.raw;
        while let Some(at) = rest.find('\\') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            let escape = rest;
            out.push(unescaped_char(&mut rest).unwrap_or(char::REPLACEMENT_CHARACTER));
            if rest.len() == escape.len() {
                rest = &rest[LONE_SURROGATE_LEN..];
            }
        }
        out.push_str(rest);
    }

    #[cold]
    fn unescaped_is(&self, token: &str) -> bool {
        let mut rest = self.raw;
        let mut wanted = token.chars();
        while !rest.is_empty() {
            let Some(next) = unescaped_char(&mut rest) else { return false };
            if wanted.next() != Some(next) {
                return false;
            }
        }
        wanted.next().is_none()
    }
}

/// Bytes of `\uXXXX`.
const LONE_SURROGATE_LEN: usize = 6;

/// Takes one character, or one escape (or pair of surrogates), off the front of a string whose grammar is known good.
fn unescaped_char(rest: &mut &str) -> Option<char> {
    let mut chars = rest.chars();
    let mut next = chars.next()?;
    if next == '\\' {
        next = match chars.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let (unit, tail) = hex_unit(chars.as_str())?;
                chars = tail.chars();
                if (0xD800..0xDC00).contains(&unit) {
                    let (low, tail) = hex_unit(tail.strip_prefix("\\u")?)?;
                    chars = tail.chars();
                    char::decode_utf16([unit, low]).next()?.ok()?
                } else {
                    char::from_u32(u32::from(unit))?
                }
            }
            same => same,
        };
    }
    *rest = chars.as_str();
    Some(next)
}

fn hex_unit(text: &str) -> Option<(u16, &str)> {
    let (digits, tail) = text.split_at_checked(4)?;
    Some((u16::from_str_radix(digits, 16).ok()?, tail))
}
