//! What models have cost of late: bytes of the present day and month.
//!
//! Days and months are lengths of service time and not those of a calendar: they need no clock that is trusted, and a clock
//! that jumps grants nothing. A month has 30 days.

use serde::{Deserialize, Serialize};

/// Bytes used, and since when they are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spent {
    /// When the day began, in service time.
    pub day_since_us: u64,
    /// Bytes since.
    pub day_bytes: u64,
    /// When the month began, in service time.
    pub month_since_us: u64,
    /// Bytes since.
    pub month_bytes: u64,
}

/// A day in microseconds.
pub const DAY_US: u64 = 86_400_000_000;
/// A month in microseconds.
pub const MONTH_US: u64 = 30 * DAY_US;

impl Spent {
    /// Begins a new day or month if the last one is over.
    pub(super) fn roll(&mut self, now_us: u64) {
        if now_us.saturating_sub(self.day_since_us) >= DAY_US {
            (self.day_since_us, self.day_bytes) = (now_us, 0);
        }
        if now_us.saturating_sub(self.month_since_us) >= MONTH_US {
            (self.month_since_us, self.month_bytes) = (now_us, 0);
        }
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.day_bytes = self.day_bytes.saturating_add(bytes);
        self.month_bytes = self.month_bytes.saturating_add(bytes);
    }
}
