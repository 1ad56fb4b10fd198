//! Numbers of CBOR: integers in bytes, floats of each size, and the elements of typed arrays.

use crate::payload::reader::Ticks;

/// Longest integer that is read from bytes.
const INTEGER_BYTES_MAX: usize = 16;

/// The type of a typed array's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Element {
    kind: ElementKind,
    /// 1, 2, 4 or 8.
    pub(super) size_bytes: usize,
    little_endian: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ElementKind {
    Unsigned,
    Signed,
    Float,
}

impl Element {
    /// The type that a tag gives to bytes (RFC 8746, section 2.1); none for tags of others and for floats of 128 bits.
    pub(super) fn of_tag(tag: u64) -> Option<Element> {
        let tag = u8::try_from(tag).ok().filter(|tag| (64..=87).contains(tag))?;
        let (is_float, is_signed, is_little) = (tag & 0x10 != 0, tag & 0x08 != 0, tag & 0x04 != 0);
        let length = 1 << (tag & 0x03);
        let (kind, size_bytes, little_endian) = match (is_float, is_signed) {
            (true, _) => (ElementKind::Float, 2 * length, is_little),
            (false, true) => (ElementKind::Signed, length, is_little),
            (false, false) => (ElementKind::Unsigned, length, is_little),
        };
        let is_reserved = tag == 76 || size_bytes > 8;
        (!is_reserved).then_some(Element { kind, size_bytes, little_endian })
    }

    /// The number in these bytes, as many as its size.
    #[inline]
    pub(super) fn number(self, bytes: &[u8]) -> Ticks {
        let bits = self.bits(bytes);
        let unused = 64 - 8 * self.size_bytes as u32;
        match self.kind {
            ElementKind::Unsigned => unsigned(bits),
            ElementKind::Signed => Ticks::Whole((bits << unused) as i64 >> unused),
            // A first byte of a float of 2 bytes has 25, of 4 bytes 26.
            ElementKind::Float => Ticks::Fraction(float(bits, 24 + self.size_bytes.trailing_zeros() as u8)),
        }
    }

    fn bits(self, bytes: &[u8]) -> u64 {
        let is_little = self.little_endian;
        match *bytes {
            [a] => u64::from(a),
            [a, b] if is_little => u64::from(u16::from_le_bytes([a, b])),
            [a, b] => u64::from(u16::from_be_bytes([a, b])),
            [a, b, c, d] if is_little => u64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d] => u64::from(u32::from_be_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if is_little => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            [a, b, c, d, e, f, g, h] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            _ => unreachable!("an element has 1, 2, 4 or 8 bytes"),
        }
    }
}

/// An unsigned number, exactly if it fits.
pub(super) fn unsigned(number: u64) -> Ticks {
    i64::try_from(number).map_or(Ticks::Fraction(number as f64), Ticks::Whole)
}

/// A whole number, exactly if it fits.
pub(super) fn whole(number: i128) -> Ticks {
    i64::try_from(number).map_or(Ticks::Fraction(number as f64), Ticks::Whole)
}

/// An integer from its bytes, the highest first; beyond what is read it counts as infinite.
pub(super) fn integer(bytes: &[u8], is_negative: bool) -> Ticks {
    let digits = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    if digits.len() > INTEGER_BYTES_MAX {
        return Ticks::Fraction(f64::INFINITY);
    }
    let magnitude = digits.iter().fold(0_u128, |value, byte| value << 8 | u128::from(*byte));
    match i128::try_from(magnitude) {
        Ok(magnitude) => whole(if is_negative { -1 - magnitude } else { magnitude }),
        Err(_) => Ticks::Fraction(if is_negative { -(magnitude as f64) } else { magnitude as f64 }),
    }
}

/// The IEEE 754 number of 16, 32 or 64 bits that this low part of a first byte announces.
pub(super) fn float(bits: u64, low: u8) -> f64 {
    match low {
        25 => half(bits as u16),
        26 => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    }
}

/// A number of 11 bits of fraction and 5 of exponent (RFC 8949, appendix D).
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (fraction + 1024.0) * 2_f64.powi(exponent - 25),
    };
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}
