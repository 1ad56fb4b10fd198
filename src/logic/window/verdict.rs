//! What a model said about a window, as the payload of a record.

use std::sync::Arc;

/// A verdict. The texts are shared, because one model says the same few labels for ever.
#[derive(Debug, Clone, PartialEq)]
pub struct VerdictRecord {
    /// Name of the model, at most 64 bytes.
    pub model: Arc<str>,
    /// Version of the model, at most 64 bytes.
    pub version: Arc<str>,
    /// The class it chose, at most 64 bytes; empty if the model only scores.
    pub label: Arc<str>,
    /// The model's score, finite; what it means is in the model's manifest.
    pub score: f32,
    /// How sure the model is, finite, in `[0, 1]` for models that say so.
    pub confidence: f32,
    /// Time of the window's first sample, in microseconds since the Unix epoch.
    pub start_us: i64,
    /// Time of the window's last sample.
    pub end_us: i64,
}

impl VerdictRecord {
    /// Longest model name, version or label, in bytes.
    pub const TEXT_BYTES_MAX: usize = 64;
}
