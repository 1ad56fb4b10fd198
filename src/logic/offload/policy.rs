//! What the operator says of asking larger models: when, how, and how much.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::audit::LearnPolicy;
use crate::window::WindowSpec;

/// What becomes of a record whose window is sent on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OffloadMode {
    /// Nothing is sent on.
    Never,
    /// It waits for the answer, up to the deadline.
    Wait,
    /// It leaves at once, and the answer is another record.
    #[default]
    AnswerNow,
}

impl OffloadMode {
    /// The word used in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            OffloadMode::Never => "never",
            OffloadMode::Wait => "wait",
            OffloadMode::AnswerNow => "answer_now",
        }
    }
}

/// When and how a stream's windows are sent on.
#[derive(Debug, Clone, PartialEq)]
pub struct OffloadPolicy {
    /// What pools call the work.
    pub task: Arc<str>,
    /// What becomes of the record meanwhile.
    pub mode: OffloadMode,
    /// Local confidences from the first up to below the second are asked about.
    pub band: (f32, f32),
    /// How long an answer is waited for, in microseconds.
    pub deadline_us: u64,
    /// Shortest time between two requests of the stream, in microseconds.
    pub spacing_us: u64,
    /// True if windows go as int16 to pools that allow it.
    pub int16: bool,
    /// Share of the answers above the band that are checked, 0 to 1.
    pub audit: f32,
    /// How the upper end of the band is learned; `None` if it stays.
    pub learn: Option<LearnPolicy>,
    /// How windows are cut if there is no model on the box.
    pub window: WindowSpec,
}

/// What all streams together may send on in any hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffloadLimits {
    /// Requests.
    pub requests_per_hour: u64,
    /// Bytes of their windows.
    pub bytes_per_hour: u64,
}

impl Default for OffloadLimits {
    fn default() -> Self {
        // One a second, and room for windows of 16 KiB at that rate.
        OffloadLimits { requests_per_hour: 3_600, bytes_per_hour: 64 << 20 }
    }
}
