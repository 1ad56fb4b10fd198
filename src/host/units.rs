//! Quantities in configuration text: a number and its unit, never a bare number.
//!
//! `interval = 30` has cost somebody a night everywhere it was allowed. Here it is refused, and the
//! message says what to write. Numbers may have a decimal point (`"1.5s"`); the value is exact or refused.
//! Each type prints the shortest text that reads back as the same value.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time, in whole microseconds: `"250ms"`, `"30s"`, `"5m"`, `"2h"`, `"7d"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration {
    us: u64,
}

impl Duration {
    /// No time at all.
    pub const ZERO: Self = Self { us: 0 };

    /// A duration of `us` microseconds.
    pub const fn from_micros(us: u64) -> Self {
        Self { us }
    }

    /// A duration of `ms` milliseconds, at the most `u64::MAX` microseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self { us: ms.saturating_mul(1_000) }
    }

    /// A duration of `s` seconds, at the most `u64::MAX` microseconds.
    pub const fn from_secs(s: u64) -> Self {
        Self { us: s.saturating_mul(1_000_000) }
    }

    /// Whole microseconds.
    pub const fn as_micros(self) -> u64 {
        self.us
    }

    /// Whole milliseconds, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.us / 1_000
    }

    /// Seconds.
    pub fn as_secs_f64(self) -> f64 {
        self.us as f64 / 1e6
    }

    /// The same span for `std` and `tokio`.
    pub const fn as_std(self) -> std::time::Duration {
        std::time::Duration::from_micros(self.us)
    }

    /// True for a span of no time.
    pub const fn is_zero(self) -> bool {
        self.us == 0
    }
}

impl From<Duration> for std::time::Duration {
    fn from(value: Duration) -> Self {
        value.as_std()
    }
}

/// A size in bytes: `"64MiB"`, `"4KiB"`, `"10MB"`, `"512B"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes {
    bytes: u64,
}

impl Bytes {
    /// A size of `bytes` bytes.
    pub const fn new(bytes: u64) -> Self {
        Self { bytes }
    }

    /// A size of `kib` times 1,024 bytes.
    pub const fn from_kib(kib: u64) -> Self {
        Self { bytes: kib.saturating_mul(1 << 10) }
    }

    /// A size of `mib` times 1,048,576 bytes.
    pub const fn from_mib(mib: u64) -> Self {
        Self { bytes: mib.saturating_mul(1 << 20) }
    }

    /// A size of `gib` times 1,073,741,824 bytes.
    pub const fn from_gib(gib: u64) -> Self {
        Self { bytes: gib.saturating_mul(1 << 30) }
    }

    /// Bytes.
    pub const fn get(self) -> u64 {
        self.bytes
    }

    /// Bytes as a length in memory, at the most `usize::MAX`.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.bytes).unwrap_or(usize::MAX)
    }
}

/// A rate in bits per second: `"5Mbit/s"`, `"512kbit/s"`, `"1Gbit/s"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitRate {
    bits_per_s: u64,
}

impl BitRate {
    /// A rate of `bits_per_s` bits per second.
    pub const fn from_bits_per_s(bits_per_s: u64) -> Self {
        Self { bits_per_s }
    }

    /// Bits per second.
    pub const fn bits_per_s(self) -> u64 {
        self.bits_per_s
    }

    /// Bytes per second.
    pub fn bytes_per_s(self) -> f64 {
        self.bits_per_s as f64 / 8.0
    }
}

/// A share, in whole parts per million: `"0.5%"`, `"40%"`, `"100ppm"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ratio {
    ppm: u64,
}

impl Ratio {
    /// A share of `ppm` parts per million.
    pub const fn from_ppm(ppm: u64) -> Self {
        Self { ppm }
    }

    /// A share of `percent` hundredths.
    pub const fn from_percent(percent: u64) -> Self {
        Self { ppm: percent.saturating_mul(10_000) }
    }

    /// Parts per million.
    pub const fn ppm(self) -> u64 {
        self.ppm
    }

    /// The share as a number; `1.0` is all of it.
    pub fn as_f64(self) -> f64 {
        self.ppm as f64 / 1e6
    }
}

/// Why a text is not the quantity it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No unit follows the number.
    #[error("`{text}` has no unit; {kind} is written like {example}")]
    NoUnit {
        /// The text as given.
        text: String,
        /// What was expected.
        kind: &'static str,
        /// How it is written.
        example: &'static str,
    },
    /// What follows the number is none of the known units.
    #[error("`{unit}` is not a unit of {kind}; known are {known}")]
    UnknownUnit {
        /// What follows the number.
        unit: String,
        /// What was expected.
        kind: &'static str,
        /// The known units.
        known: String,
    },
    /// The text does not begin with a number.
    #[error("`{text}` does not begin with a number; {kind} is written like {example}")]
    NoNumber {
        /// The text as given.
        text: String,
        /// What was expected.
        kind: &'static str,
        /// How it is written.
        example: &'static str,
    },
    /// The value has a fraction of the smallest unit.
    #[error("`{text}` is finer than 1 {smallest}")]
    TooFine {
        /// The text as given.
        text: String,
        /// The smallest unit.
        smallest: &'static str,
    },
    /// The value does not fit in 64 bits of the smallest unit.
    #[error("`{text}` is more than {} {smallest}", u64::MAX)]
    TooLarge {
        /// The text as given.
        text: String,
        /// The smallest unit.
        smallest: &'static str,
    },
}

/// What the four quantities have in common: a count of the smallest unit, and a table of units.
trait Quantity: Sized {
    /// With its article, for messages.
    const KIND: &'static str;
    const EXAMPLE: &'static str;
    /// Unit text and its worth in the smallest unit; the smallest first, preferred spelling first.
    const UNITS: &'static [(&'static str, u64)];

    fn from_count(count: u64) -> Self;
    fn count(&self) -> u64;
}

impl Quantity for Duration {
    const KIND: &'static str = "a duration";
    const EXAMPLE: &'static str = "\"250ms\", \"30s\" or \"5m\"";
    const UNITS: &'static [(&'static str, u64)] =
        &[("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000), ("d", 86_400_000_000)];

    fn from_count(us: u64) -> Self {
        Self { us }
    }

    fn count(&self) -> u64 {
        self.us
    }
}

impl Quantity for Bytes {
    const KIND: &'static str = "a size";
    const EXAMPLE: &'static str = "\"4KiB\", \"64MiB\" or \"10MB\"";
    const UNITS: &'static [(&'static str, u64)] = &[
        ("B", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];

    fn from_count(bytes: u64) -> Self {
        Self { bytes }
    }

    fn count(&self) -> u64 {
        self.bytes
    }
}

impl Quantity for BitRate {
    const KIND: &'static str = "a rate";
    const EXAMPLE: &'static str = "\"512kbit/s\" or \"5Mbit/s\"";
    const UNITS: &'static [(&'static str, u64)] =
        &[("bit/s", 1), ("kbit/s", 1_000), ("Mbit/s", 1_000_000), ("Gbit/s", 1_000_000_000)];

    fn from_count(bits_per_s: u64) -> Self {
        Self { bits_per_s }
    }

    fn count(&self) -> u64 {
        self.bits_per_s
    }
}

impl Quantity for Ratio {
    const KIND: &'static str = "a share";
    const EXAMPLE: &'static str = "\"40%\" or \"0.5%\"";
    const UNITS: &'static [(&'static str, u64)] = &[("ppm", 1), ("%", 10_000)];

    fn from_count(ppm: u64) -> Self {
        Self { ppm }
    }

    fn count(&self) -> u64 {
        self.ppm
    }
}

fn parse<Q: Quantity>(text: &str) -> Result<Q, UnitError> {
    let trimmed = text.trim();
    let number_len = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(number_len);
    let unit = unit.trim_start();
    let smallest = Q::UNITS[0].0;
    let no_number = || UnitError::NoNumber { text: text.to_owned(), kind: Q::KIND, example: Q::EXAMPLE };
    let too_large = || UnitError::TooLarge { text: text.to_owned(), smallest };
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((number.as_str(), ""));
    if whole.is_empty() || fraction.contains('.') {
        return Err(no_number());
    }
    if unit.is_empty() {
        return Err(UnitError::NoUnit { text: text.to_owned(), kind: Q::KIND, example: Q::EXAMPLE });
    }
    let Some((_, scale)) = Q::UNITS.iter().find(|(name, _)| *name == unit) else {
        let known: Vec<&str> = Q::UNITS.iter().map(|(name, _)| *name).collect();
        return Err(UnitError::UnknownUnit { unit: unit.to_owned(), kind: Q::KIND, known: known.join(", ") });
    };
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let mut count = whole.checked_mul(*scale).ok_or_else(too_large)?;
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        let too_fine = || UnitError::TooFine { text: text.to_owned(), smallest };
        let digits = u32::try_from(fraction.len()).map_err(|_| too_fine())?;
        let denominator = 10u128.checked_pow(digits).ok_or_else(too_fine)?;
        let numerator: u128 = fraction.parse().map_err(|_| too_fine())?;
        let scaled = numerator.checked_mul(u128::from(*scale)).ok_or_else(too_fine)?;
        if scaled % denominator != 0 {
            return Err(too_fine());
        }
        let add = u64::try_from(scaled / denominator).map_err(|_| too_large())?;
        count = count.checked_add(add).ok_or_else(too_large)?;
    }
    Ok(Q::from_count(count))
}

fn shortest<Q: Quantity>(value: &Q, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let count = value.count();
    let text = Q::UNITS
        .iter()
        .filter(|(_, scale)| count.is_multiple_of(*scale))
        .map(|(name, scale)| format!("{}{name}", count / scale))
        .min_by_key(String::len);
    f.write_str(&text.unwrap_or_default())
}

/// Reads a quantity from text; a number gets a message that says what to write.
struct QuantityVisitor<Q>(PhantomData<Q>);

impl<Q: Quantity> QuantityVisitor<Q> {
    fn refuse<E: de::Error>(number: impl fmt::Display) -> E {
        let (kind, example) = (Q::KIND, Q::EXAMPLE);
        let unit = if Q::UNITS[0].0 == "us" { "s" } else { Q::UNITS[0].0 };
        E::custom(format!(
            "the bare number {number} is refused: {kind} carries its unit\n\
             write \"{number}{unit}\" if that is what is meant; {kind} is written like {example}"
        ))
    }
}

impl<Q: Quantity> de::Visitor<'_> for QuantityVisitor<Q> {
    type Value = Q;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as text, such as {}", Q::KIND, Q::EXAMPLE)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Q, E> {
        parse(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Q, E> {
        Err(Self::refuse(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Q, E> {
        Err(Self::refuse(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Q, E> {
        Err(Self::refuse(number))
    }
}

impl FromStr for Duration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        shortest(self, f)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor(PhantomData))
    }
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        shortest(self, f)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor(PhantomData))
    }
}

impl FromStr for BitRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text)
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        shortest(self, f)
    }
}

impl Serialize for BitRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BitRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor(PhantomData))
    }
}

impl FromStr for Ratio {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text)
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.ppm / 10_000, self.ppm % 10_000);
        if rest == 0 {
            return write!(f, "{whole}%");
        }
        let fraction = format!("{rest:04}");
        write!(f, "{whole}.{}%", fraction.trim_end_matches('0'))
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_in_every_unit() {
        for (text, us) in [
            ("0s", 0),
            ("7us", 7),
            ("250ms", 250_000),
            ("30s", 30_000_000),
            ("1.5s", 1_500_000),
            ("5m", 300_000_000),
            ("2h", 7_200_000_000),
            ("7d", 604_800_000_000),
            (" 30 s ", 30_000_000),
        ] {
            assert_eq!(text.parse::<Duration>().unwrap().as_micros(), us, "{text}");
        }
    }

    #[test]
    fn sizes_rates_and_shares_read_in_every_unit() {
        assert_eq!("64MiB".parse::<Bytes>().unwrap(), Bytes::from_mib(64));
        assert_eq!("4KiB".parse::<Bytes>().unwrap(), Bytes::from_kib(4));
        assert_eq!("1GiB".parse::<Bytes>().unwrap(), Bytes::from_gib(1));
        assert_eq!("10MB".parse::<Bytes>().unwrap().get(), 10_000_000);
        assert_eq!("1_000B".parse::<Bytes>().unwrap().get(), 1_000);
        assert_eq!("5Mbit/s".parse::<BitRate>().unwrap().bits_per_s(), 5_000_000);
        assert_eq!("0.5%".parse::<Ratio>().unwrap().ppm(), 5_000);
    }

    #[test]
    fn text_is_the_shortest_that_reads_back() {
        for (text, short) in
            [("120s", "2m"), ("90s", "90s"), ("168h", "7d"), ("1500ms", "1500ms"), ("0ms", "0s"), ("36h", "36h")]
        {
            let value: Duration = text.parse().unwrap();
            assert_eq!(value.to_string(), short);
            assert_eq!(value.to_string().parse::<Duration>().unwrap(), value);
        }
        assert_eq!("1024KiB".parse::<Bytes>().unwrap().to_string(), "1MiB");
        assert_eq!("10000000B".parse::<Bytes>().unwrap().to_string(), "10MB");
        assert_eq!("5000kbit/s".parse::<BitRate>().unwrap().to_string(), "5Mbit/s");
        assert_eq!("0.5%".parse::<Ratio>().unwrap().to_string(), "0.5%");
        assert_eq!(Ratio::from_ppm(1).to_string(), "0.0001%");
    }

    #[test]
    fn what_is_not_a_quantity_is_refused_with_its_reason() {
        let error = |text: &str| text.parse::<Duration>().unwrap_err().to_string();
        assert_eq!(error("30"), "`30` has no unit; a duration is written like \"250ms\", \"30s\" or \"5m\"");
        assert!(error("30 sec").starts_with("`sec` is not a unit of a duration; known are us, ms"));
        assert!(error("s").starts_with("`s` does not begin with a number"));
        assert!(error("-5s").starts_with("`-5s` does not begin with a number"));
        assert!(error("1.2.3s").starts_with("`1.2.3s` does not begin with a number"));
        assert_eq!(error("0.5us"), "`0.5us` is finer than 1 us");
        assert!(error("99999999999999d").ends_with("is more than 18446744073709551615 us"));
        assert!(error("0.00000000000000000000000000000000000000001s").ends_with("finer than 1 us"));
    }

    #[test]
    fn a_value_survives_serialisation() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct All {
            duration: Duration,
            bytes: Bytes,
            rate: BitRate,
            share: Ratio,
        }
        let all = All {
            duration: Duration::from_millis(1_234),
            bytes: Bytes::from_mib(3),
            rate: BitRate::from_bits_per_s(123),
            share: Ratio::from_percent(40),
        };
        let text = toml::to_string(&all).unwrap();
        assert_eq!(toml::from_str::<All>(&text).unwrap(), all);
    }
}
