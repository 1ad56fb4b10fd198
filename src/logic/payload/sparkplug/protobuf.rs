//! Protobuf fields, borrowed from the payload.
//!
//! Why not `prost`, which reads our own messages: it makes a struct of some hundred bytes of what may be two on the wire, so that a
//! message of 256 KiB would take 16 MB, and copies each name. Here nothing is allocated, and what nobody reads is passed over.

use crate::payload::DecodeError;
use crate::varint;

/// The fields of one message.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    /// Offset in the payload of the first byte behind the message.
    end: usize,
}

/// A field's value, as it is encoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    /// The fields of a message that ends at this offset in the payload.
    pub(super) fn new(message: &'a [u8], end: usize) -> Fields<'a> {
        Fields { rest: message, end }
    }

    /// The next field's number and value; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let start = self.at();
        let key = self.varint()?;
        let value = match key & 0x07 {
            _ if key >> 3 == 0 => return Err(malformed(start, "the number of a field")),
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => Value::Bytes(varint::take_slice(&mut self.rest).ok_or_else(|| malformed(self.end, "more bytes"))?),
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(malformed(start, "the type of a field")),
        };
        Ok(Some((key >> 3, value)))
    }

    /// Offset in the payload of what comes next.
    pub(super) fn at(&self) -> usize {
        self.end - self.rest.len()
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let at = self.at();
        varint::take(&mut self.rest).ok_or_else(|| malformed(at, "a number of at most 64 bits"))
    }

    fn array<const SIZE: usize>(&mut self) -> Result<[u8; SIZE], DecodeError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(|| malformed(self.end, "more bytes"))?;
        self.rest = rest;
        Ok(*array)
    }
}

/// The payload is broken at this offset.
#[cold]
pub(super) fn malformed(at: usize, expected: &'static str) -> DecodeError {
    DecodeError::Syntax { notation: "Sparkplug B", at, expected }
}
