//! How busy one machine of the cloud is: what it tells its boxes, and what it gives them credits for.
//!
//! Credits say what a box may send; the load says why. It is told when its level changes and to a box that greets, and repeated
//! while it is not 0.

use crate::ids::{Class, PerClass};
use crate::wire::{Body, CloudLoad, LoadLevel};

/// Queue fill from which on it is called filling, and up to which it is not any more.
const FILLING_PERCENT: (u64, u64) = (50, 25);
/// Queue fill at which all but critical data lose their credits, and at which they get them back.
const OVERLOAD_PERCENT: (u64, u64) = (75, 25);
/// A level that stays is repeated so often.
const REPEAT_US: u64 = 10_000_000;

/// How this machine of the cloud is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// How full the sink's queue is.
    pub queue_percent: u64,
    /// All but critical data have lost their credits.
    pub overloaded: bool,
    /// The database takes nothing.
    pub stalled: bool,
    /// How long a transaction takes of late, in microseconds; `None` if there was none since the last look.
    pub commit_us: Option<u64>,
}

/// What boxes were told last.
#[derive(Debug, Default)]
pub struct LoadTold {
    said: CloudLoad,
    at_us: u64,
}

impl LoadTold {
    /// What to tell every box now, if anything.
    pub fn news(&mut self, now_us: u64, load: Load) -> Option<Body> {
        let level = level(self.said.level(), load);
        let is_due = level != LoadLevel::Idle && now_us >= self.at_us.saturating_add(REPEAT_US);
        if level == self.said.level() && !is_due {
            return None;
        }
        let commit_us = load.commit_us.unwrap_or_default();
        let said = CloudLoad { level: level as u32, queue_percent: load.queue_percent.min(100) as u32, commit_us };
        *self = LoadTold { said, at_us: now_us };
        Some(Body::Load(said))
    }

    /// What a box that greets is told: what the others know already, unless that is nothing.
    pub fn present(&self) -> Option<Body> {
        (self.said.level() != LoadLevel::Idle).then_some(Body::Load(self.said))
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

/// Whether a queue so full is an overload, given whether it was one before.
pub const fn is_overloaded(was: bool, fill_percent: u64) -> bool {
    if was { fill_percent > OVERLOAD_PERCENT.1 } else { fill_percent >= OVERLOAD_PERCENT.0 }
}

/// Credits: none while nothing can be stored, critical only while the queue is nearly full.
pub fn credits(bytes: u64, stalled: bool, overloaded: bool) -> PerClass<u64> {
    Class::ALL.map(|class| if stalled || (overloaded && class != Class::Critical) { 0 } else { bytes })
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
            let news = told.news(second * SECOND_US, load).map(|body| match body {
                Body::Load(load) => (load.level, load.queue_percent, load.commit_us),
                other => panic!("{other:?}"),
            });
            (news, told.present().is_some())
        };
        assert_eq!((say(0, 0, false, false), say(50, 49, false, false)), ((None, false), (None, false)));
        assert_eq!(say(51, 50, false, false), (Some((1, 50, 7_000)), true));
        assert_eq!(say(52, 26, false, false), (None, true), "it does not flap");
        assert_eq!(say(61, 26, false, false), (Some((1, 26, 7_000)), true), "repeated");
        assert_eq!(say(62, 80, true, false), (Some((2, 80, 7_000)), true));
        assert_eq!(say(63, 90, true, true), (Some((3, 90, 7_000)), true));
        assert_eq!(say(64, 25, false, false), (Some((0, 25, 7_000)), false));
        assert_eq!(say(200, 25, false, false), (None, false));
    }

    #[test]
    fn critical_data_keep_their_credits_while_the_queue_is_nearly_full() {
        assert_eq!(credits(9, false, false), [9; 4]);
        assert_eq!(credits(9, false, true), [9, 0, 0, 0]);
        assert_eq!(credits(9, true, true), [0; 4]);
    }

    #[test]
    fn overload_ends_far_below_where_it_began() {
        let mut overloaded = false;
        let seen = [0, 74, 75, 74, 26, 25, 74, 100].map(|fill| {
            overloaded = is_overloaded(overloaded, fill);
            overloaded
        });
        assert_eq!(seen, [false, false, true, true, true, false, false, true]);
    }
}
