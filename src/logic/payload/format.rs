//! The configuration of a stream's payload format, and the mistakes one can make in it.

use serde::Deserialize;

use super::{CHANNELS_MAX, DEPTH_MAX};

/// How the payload of a stream's messages is read: the table `payload`, told apart by its key `format`.
///
/// ```toml
/// payload = { format = "json", fields = ["/temp", "/hum"], time = "/ts", time_unit = "ms" }
/// payload = { format = "json", layout = "rows", samples = "/imu", channels = 6, rate_hz = 50.0 }
/// payload = { format = "cbor", layout = "columns", fields = ["/acc/x", "/acc/y"], rate_hz = 100.0 }
/// payload = { format = "senml", fields = ["*temp", "*humidity"], units = ["Cel", "%RH"] }
/// payload = { format = "sparkplug", fields = ["Motor/RPM", "Motor/Temperature"] }
/// payload = { format = "packed", element = "i16", channels = 6, scale = 0.001, rate_hz = 50.0 }
/// payload = { format = "number" }
/// payload = { format = "opaque" }
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case")]
pub enum PayloadFormat {
    /// A JSON document.
    Json(DocumentFormat),
    /// A CBOR document (RFC 8949), in which the same pointers lead to the same places; see [`DocumentFormat::fields`].
    Cbor(DocumentFormat),
    /// A SenML pack (RFC 8428) of JSON or CBOR, which its first byte tells apart.
    Senml(SenmlFormat),
    /// Messages of Sparkplug B, on its own topics.
    Sparkplug(SparkplugFormat),
    /// Interleaved little-endian numbers and nothing else.
    Packed(PackedFormat),
    /// One decimal number as text, such as `21.5` or `-3e2`.
    Number(NumberFormat),
    /// Bytes that Weir carries and does not read: no values, no windows.
    Opaque(OpaqueFormat),
}

/// Where the numbers are in a JSON or CBOR document.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentFormat {
    /// How the samples lie in the document. Default `single`.
    #[serde(default)]
    pub layout: Layout,
    /// JSON pointers (RFC 6901), one per channel, in channel order: from the document's root, or, in the layout
    /// `objects`, from each element. Not used in the layout `rows`. In CBOR a step such as `3` or `-1` is also a key that is
    /// that number, and a typed array (RFC 8746) is an array.
    #[serde(default)]
    pub fields: Vec<String>,
    /// JSON pointer to the array of samples, in the layouts `rows` and `objects`.
    #[serde(default)]
    pub samples: Option<String>,
    /// Numbers in each row, in the layout `rows`; elsewhere `fields` says it.
    #[serde(default)]
    pub channels: Option<usize>,
    /// Samples a second; needed in every layout but `single`, where it is the nominal rate of messages and only turns
    /// window lengths in time into samples.
    #[serde(default)]
    pub rate_hz: Option<f64>,
    /// JSON pointer to the message's time, a number since the Unix epoch. Without it the time of receipt is taken. In CBOR a
    /// time that is tagged as one (RFC 3339 text, or seconds) is read as it says.
    #[serde(default)]
    pub time: Option<String>,
    /// The unit of `time`. Default `s`.
    #[serde(default)]
    pub time_unit: TimeUnit,
    /// Which sample of the message `time`, or the time of receipt, belongs to. Default `last`.
    #[serde(default)]
    pub time_of: TimeOf,
}

/// How the samples lie in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One sample a message; each of `fields` points to a number.
    #[default]
    Single,
    /// `samples` points to `[[c0, c1, ..], ..]`; with one channel also to `[c0, c0, ..]`.
    Rows,
    /// `samples` points to `[{..}, {..}]`; each of `fields` points to a number in the element.
    Objects,
    /// Each of `fields` points to an array of numbers, one per sample, all of one length.
    Columns,
}

impl Layout {
    /// The layout as it is written in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Single => "single",
            Layout::Rows => "rows",
            Layout::Objects => "objects",
            Layout::Columns => "columns",
        }
    }
}

/// The unit of a time in a payload, counted from the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeUnit {
    /// Seconds; fractions are kept to the microsecond.
    #[default]
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds, truncated to microseconds.
    Ns,
}

/// Which sample of a message its time belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeOf {
    /// The first row; the others follow.
    First,
    /// The last row; the others came before. It is right for a sensor that collects, then sends.
    #[default]
    Last,
}

/// Which records of a SenML pack are which channel.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SenmlFormat {
    /// Names, one per channel, in channel order: a record's whole name, or `*` and its end, because names begin with the device.
    #[serde(default)]
    pub fields: Vec<String>,
    /// Units, one per channel: a record of another unit is not the channel's; `""` for any. Default: any.
    #[serde(default)]
    pub units: Vec<String>,
    /// Nominal rows a second; only turns window lengths in time into samples.
    #[serde(default)]
    pub rate_hz: Option<f64>,
}

/// Which metrics of Sparkplug B are which channel.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparkplugFormat {
    /// Names of metrics as their birth says them, one per channel, in channel order.
    #[serde(default)]
    pub fields: Vec<String>,
    /// Nominal rows a second; only turns window lengths in time into samples.
    #[serde(default)]
    pub rate_hz: Option<f64>,
}

/// Interleaved little-endian numbers: `c0 c1 .. c0 c1 ..`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedFormat {
    /// The type of every number.
    pub element: ElementType,
    /// Numbers in a row, 1 to 64.
    pub channels: usize,
    /// Factor applied to each raw number, one for all channels or one each. Default 1.
    #[serde(default)]
    pub scale: Option<PerChannel>,
    /// Added after `scale`, one for all channels or one each. Default 0.
    #[serde(default)]
    pub offset: Option<PerChannel>,
    /// Samples a second. Without it a message holds exactly one row.
    #[serde(default)]
    pub rate_hz: Option<f64>,
    /// Which sample of the message the time of receipt belongs to. Default `last`.
    #[serde(default)]
    pub time_of: TimeOf,
}

/// The type of the numbers in a packed payload, always little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElementType {
    /// 16-bit signed integer.
    I16,
    /// 32-bit signed integer.
    I32,
    /// 32-bit IEEE 754 number.
    F32,
    /// 64-bit IEEE 754 number.
    F64,
}

impl ElementType {
    /// Bytes of one number.
    pub fn size_bytes(self) -> usize {
        match self {
            ElementType::I16 => 2,
            ElementType::I32 | ElementType::F32 => 4,
            ElementType::F64 => 8,
        }
    }
}

/// One number for all channels, or a list with one for each.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum PerChannel {
    /// The same for all channels.
    All(f64),
    /// One per channel, in channel order.
    Each(Vec<f64>),
}

/// One decimal number as text, with white space around it allowed.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumberFormat {
    /// Nominal messages a second; only turns window lengths in time into samples.
    #[serde(default)]
    pub rate_hz: Option<f64>,
}

/// Bytes that Weir does not read. It has no keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpaqueFormat {}

/// A payload format that cannot be decoded by; the text says what to change.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FormatError {
    /// A pointer is not RFC 6901.
    #[error("`{pointer}` is not a JSON pointer: begin each step with `/`, write `~` as `~0` and `/` as `~1`")]
    PointerSyntax {
        /// The pointer as given.
        pointer: String,
    },
    /// A pointer leads deeper than any document that is accepted.
    #[error("JSON pointer `{pointer}` has {depth} steps, more than the limit of {DEPTH_MAX} levels allows")]
    PointerDepth {
        /// The pointer as given.
        pointer: String,
        /// Its steps.
        depth: usize,
    },
    /// Two keys name the same place, or one names a place inside the other.
    #[error("JSON pointers `{first}` and `{second}` overlap: give each channel, `samples` and `time` a place of its own")]
    PointerOverlap {
        /// The pointer that came first.
        first: String,
        /// The pointer that clashes with it.
        second: String,
    },
    /// The number of channels is out of range.
    #[error("{channels} channels: give 1 to {CHANNELS_MAX} (in `fields` or `channels`)")]
    Channels {
        /// What the configuration says.
        channels: usize,
    },
    /// A key that this layout needs is absent.
    #[error("layout `{layout}` needs the key `{key}`")]
    KeyMissing {
        /// The layout.
        layout: &'static str,
        /// The key to add.
        key: &'static str,
    },
    /// A key has no meaning in this layout.
    #[error("layout `{layout}` does not use the key `{key}`: remove it or choose another layout")]
    KeyUnused {
        /// The layout.
        layout: &'static str,
        /// The key to remove.
        key: &'static str,
    },
    /// The rate is out of range.
    #[error("rate_hz = {rate_hz}: give a number from 0.00001 (one a day) to 1000000")]
    Rate {
        /// What the configuration says.
        rate_hz: f64,
    },
    /// A name that no SenML record can have.
    #[error("`{name}` is no name of SenML: write letters, digits and `-:./_`, or `*` and the end of a name")]
    NameSyntax {
        /// The name as given.
        name: String,
    },
    /// One record would be two channels.
    #[error("`{first}` and `{second}` are names of the same value: give each channel a name, or a unit, of its own")]
    NameOverlap {
        /// The name that came first.
        first: String,
        /// The name that clashes with it.
        second: String,
    },
    /// `units` has the wrong number of entries.
    #[error("`units` has {len} entries for {channels} `fields`: give one each, or none at all")]
    UnitsLen {
        /// Entries given.
        len: usize,
        /// Channels of the format.
        channels: usize,
    },
    /// A metric without a name.
    #[error("a metric has an empty name: write the name that its birth gives it")]
    MetricEmpty,
    /// `scale` or `offset` has the wrong number of entries.
    #[error("`{key}` has {len} numbers for {channels} channels: give one for all, or one each")]
    PerChannelLen {
        /// `scale` or `offset`.
        key: &'static str,
        /// Entries given.
        len: usize,
        /// Channels of the format.
        channels: usize,
    },
    /// `scale` or `offset` is not a usable number.
    #[error("`{key}` must be finite, and `scale` must not be 0")]
    PerChannelValue {
        /// `scale` or `offset`.
        key: &'static str,
    },
}

/// Checks a rate; a period then lies between 1 us and 10^11 us.
pub(super) fn check_rate(rate_hz: Option<f64>) -> Result<(), FormatError> {
    match rate_hz {
        Some(rate_hz) if !(1e-5..=1e6).contains(&rate_hz) => Err(FormatError::Rate { rate_hz }),
        _ => Ok(()),
    }
}

/// Checks a number of channels.
pub(super) fn check_channels(channels: usize) -> Result<(), FormatError> {
    if (1..=CHANNELS_MAX).contains(&channels) { Ok(()) } else { Err(FormatError::Channels { channels }) }
}
