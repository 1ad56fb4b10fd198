//! What becomes of a stream's samples on the box: windows for models, aggregates, and rules for what is kept raw.
//!
//! All of it is per device of a stream, because two sensors on one topic pattern must not share a window. How many
//! devices there are is bounded by the caller; what one of them holds is bounded here, and said at each type.
//!
//! Two clocks meet here. A sample's own time is what the device says: it orders samples and tells gaps, and it may be
//! years off. The time of receipt is the box's: it closes what has waited long enough and is never used to reorder.
//! All times are microseconds since the Unix epoch, `i64`.
//!
//! - [`Windower`] cuts overlapping windows of a fixed number of samples, `f32[channels][length]` as models read them.
//! - [`Aggregator`] folds samples into aligned spans of time; parts of a span merge into the whole, losing nothing.
//! - [`Keeper`] says for each sample whether it is worth keeping as it came ([`Keep::Raw`]) or only in an aggregate.
//! - [`Aggregate`], [`WindowValues`] and [`VerdictRecord`] are the payloads of records, with a versioned encoding.
//!
//! Standardisation is not done here: it belongs to the model, so the inference worker does it from the manifest.

mod aggregate;
mod codec;
mod keep;
mod span;
mod spec;
mod verdict;
mod windower;

pub use aggregate::{Aggregate, AggregateCounters, AggregateSpec, Aggregator, ChannelAggregate, MergeError};
pub use codec::{CodecError, WindowValues, encode_window};
pub use keep::{Keep, KeepConfig, KeepError, KeepReason, KeepRules, Keeper, ValueRule, VerdictRule};
pub use span::{Span, SpanError, parse_duration_us};
pub use spec::{AggregateConfig, SpecError, WindowConfig, WindowSpec};
pub use verdict::VerdictRecord;
pub use windower::{Window, WindowCounters, Windower};

/// Most samples in a window: 5 minutes at 54 Hz.
pub const WINDOW_SAMPLES_MAX: usize = 16_384;
/// Most values (samples times channels) in a window: 1 MiB of `f32` for a device.
pub const WINDOW_VALUES_MAX: usize = 262_144;
/// Longest span of time in the configuration of windows, aggregates and rules: 366 days, in microseconds.
pub const SPAN_US_MAX: i64 = 366 * 86_400 * 1_000_000;

#[cfg(test)]
mod tests;
