//! How busy this machine of the cloud is, and when its boxes are told.
//!
//! Credits say what a box may send; the load says why. It is told when its level changes, and repeated while it is not 0, so that
//! a box that greets later knows it too.

use weir_logic::wire::{Body, CloudLoad, LoadLevel};

/// Queue fill from which on it is called filling, and up to which it is not any more.
const FILLING_PERCENT: (u64, u64) = (50, 25);
/// A level that stays is repeated so often.
const REPEAT_US: u64 = 10_000_000;

/// How this machine of the cloud is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// How full the sink's queue is.
    pub(crate) queue_percent: u64,
    /// All but critical data have lost their credits.
    pub(crate) overloaded: bool,
    /// The database takes nothing.
    pub(crate) stalled: bool,
    /// How long a transaction takes of late, in microseconds; `None` if there was none since the last look.
    pub(crate) commit_us: Option<u64>,
}

/// What boxes were told last.
#[derive(Debug, Default)]
pub(crate) struct LoadTold {
    level: LoadLevel,
    at_us: u64,
}

impl LoadTold {
    /// What to tell every box now, if anything.
    pub(crate) fn news(&mut self, now_us: u64, load: Load) -> Option<Body> {
        let level = level(self.level, load);
        let is_due = level != LoadLevel::Idle && now_us >= self.at_us.saturating_add(REPEAT_US);
        if level == self.level && !is_due {
            return None;
        }
        *self = LoadTold { level, at_us: now_us };
        let commit_us = load.commit_us.unwrap_or_default();
        Some(Body::Load(CloudLoad { level: level as u32, queue_percent: load.queue_percent.min(100) as u32, commit_us }))
    }
}

fn level(was: LoadLevel, load: Load) -> LoadLevel {
    let filling = if was == LoadLevel::Idle { FILLING_PERCENT.0 } else { FILLING_PERCENT.1 + 1 };
    match load {
        Load { stalled: true, .. } => LoadLevel::Stalled,
        Load { overloaded: true, .. } => LoadLevel::Overloaded,
        Load { queue_percent, .. } if queue_percent >= filling => LoadLevel::Filling,
        Load { .. } => LoadLevel::Idle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    #[test]
    fn a_change_is_told_at_once_what_stays_is_repeated_and_a_quiet_cloud_says_nothing() {
        let mut told = LoadTold::default();
        let mut say = |second: u64, queue_percent, overloaded, stalled| {
            let load = Load { queue_percent, overloaded, stalled, commit_us: Some(7_000) };
            told.news(second * SECOND_US, load).map(|body| match body {
                Body::Load(load) => (load.level, load.queue_percent, load.commit_us),
                other => panic!("{other:?}"),
            })
        };
        assert_eq!((say(0, 0, false, false), say(50, 49, false, false)), (None, None));
        assert_eq!(say(51, 50, false, false), Some((1, 50, 7_000)));
        assert_eq!(say(52, 26, false, false), None, "it does not flap");
        assert_eq!(say(61, 26, false, false), Some((1, 26, 7_000)), "repeated");
        assert_eq!(say(62, 80, true, false), Some((2, 80, 7_000)));
        assert_eq!(say(63, 90, true, true), Some((3, 90, 7_000)));
        assert_eq!(say(64, 25, false, false), Some((0, 25, 7_000)));
        assert_eq!(say(200, 25, false, false), None);
    }
}
