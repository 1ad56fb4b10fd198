//! Payload decoders: the bytes of one message become rows of numbers.
//!
//! A sensor sends one value, or one sample of several channels, or an array of samples with a rate. Whatever the
//! format, a [`Decoder`] fills a [`Samples`]: `rows x channels` values, row-major, with the time of one row and the
//! distance between rows. The buffer is reused, so decoding allocates nothing once it has grown to a stream's size.
//!
//! Values are `f64`, so that counters and coordinates survive; windows narrow them to the `f32` that models take,
//! aggregates keep `f64`. An integer beyond 2^53 is rounded to the nearest `f64`. Every value is finite: a NaN or an
//! infinity refuses the whole message, because it would poison every mean and every window it enters.
//!
//! JSON and CBOR are read once, front to back, by our own readers rather than through `serde`, whose skipping has no depth
//! limit and allocates. They accept what `serde_json` and RFC 8949 accept, down to [`DEPTH_MAX`] levels. Cases with a rule:
//! - a key that appears twice: the last one wins;
//! - `true` and `false` are 1 and 0; `null` is a missing value; text is never read as a number;
//! - a message that does not decode leaves the buffer empty, and [`DecodeError::reason`] names its counter.

mod cbor;
mod decode;
mod document;
mod format;
mod json;
mod packed;
mod pointer;
mod reader;
mod rows;
mod samples;
mod senml;
mod sparkplug;
mod time;

pub use decode::{DecodeError, Decoder};
pub use format::{
    DocumentFormat, ElementType, FormatError, Layout, NumberFormat, OpaqueFormat, PackedFormat, PayloadFormat, PerChannel,
    SenmlFormat, SparkplugFormat, TimeOf, TimeUnit,
};
pub use samples::Samples;
pub use sparkplug::{Heard, SparkplugCounters, SparkplugDecoder, SparkplugKind, SparkplugNodes, SparkplugTopic};

/// Longest payload that is decoded, in bytes. A row of [`VALUES_MAX`] JSON numbers of 16 bytes fits.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// Most rows (samples) in one message: a minute at 68 Hz.
pub const ROWS_MAX: usize = 4096;
/// Most channels in one row.
pub const CHANNELS_MAX: usize = 64;
/// Most values (rows times channels) in one message: 512 KiB of `f64`.
pub const VALUES_MAX: usize = 65_536;
/// Deepest nesting of arrays and objects.
pub const DEPTH_MAX: usize = 32;
/// Latest time a payload may state, in microseconds since the Unix epoch: the end of the year 9999.
pub const TIME_US_MAX: i64 = 253_402_300_799_999_999;

#[cfg(test)]
mod tests;
