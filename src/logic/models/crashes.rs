//! Whether models may run at all on a box that keeps dying.
//!
//! A model in the gateway's own process can take it down, and a supervisor starts it again with the same model. Three times
//! within ten minutes are enough: the box then runs without models, takes in and sends on all that comes, and says so. A
//! machine that was booted in between lost its power, which no model is to blame for.

use serde::{Deserialize, Serialize};

/// Starts after a crash that switch models off.
pub const CRASHES_MAX: usize = 3;
/// Within this time, in microseconds.
pub const CRASHES_US: u64 = 600_000_000;

/// What is remembered of the box's runs. It is on disk before models are loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Crashes {
    /// A run began that has not ended in good order.
    is_running: bool,
    /// The machine's boot in which it began.
    boot: String,
    /// Times in that boot of the last starts after a crash, oldest first.
    at_us: Vec<u64>,
}

impl Crashes {
    /// The box starts, so many microseconds after the machine; true if the run before it ended in a crash, on a machine that
    /// was not booted since.
    ///
    /// The machine's time and not service time: a box that dies before its first commit has gained none of that.
    pub fn started(&mut self, now_us: u64, boot: &str) -> bool {
        let has_crashed = self.is_running && self.boot == boot;
        if self.boot != boot {
            self.at_us.clear();
        }
        self.at_us.retain(|&at_us| at_us <= now_us && now_us - at_us < CRASHES_US);
        if has_crashed {
            self.at_us.push(now_us);
            let surplus = self.at_us.len().saturating_sub(CRASHES_MAX);
            self.at_us.drain(..surplus);
        }
        (self.is_running, self.boot) = (true, boot.to_owned());
        has_crashed
    }

    /// The box stops in good order: what was is forgiven.
    pub fn stopped(&mut self) {
        *self = Crashes::default();
    }

    /// True if models must not run.
    pub fn forbid_models(&self) -> bool {
        self.at_us.len() >= CRASHES_MAX
    }
}
