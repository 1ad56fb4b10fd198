//! When data is lost, an operator is told: once when it begins, and once when it has ended, with how much it was.
//!
//! A lane that is over its cap gives up a block every few seconds for as long as an outage lasts. That is one streak, not a
//! thousand of them: it ends when nothing was given up for [`QUIET_US`].

use super::{Event, Gateway, Output};
use crate::ids::{Class, PerClass, VoidReason};
use crate::lanes::LaneCounters;

/// Without a loss for so long, a streak is over: so there are at most two events a minute for each lane and reason.
const QUIET_US: u64 = 60_000_000;
const REASONS: [VoidReason; 3] = [VoidReason::Evicted, VoidReason::Expired, VoidReason::Corrupt];

/// What was lost of each lane, by reason.
#[derive(Debug, Default)]
pub(super) struct Losses([PerClass<Streak>; REASONS.len()]);

/// Losses that follow each other.
#[derive(Debug, Clone, Copy, Default)]
struct Streak {
    /// Records lost since start, when last looked at.
    seen: u64,
    /// The same before the streak, and when it began and went on; nothing between streaks.
    running: Option<(u64, u64, u64)>,
}

enum Change {
    Began { records: u64 },
    Ended { records: u64, lasted_us: u64 },
}

impl Streak {
    /// `at_once` ends it however short the quiet.
    fn update(&mut self, now_us: u64, lost: u64, at_once: bool) -> Option<Change> {
        let before = std::mem::replace(&mut self.seen, lost);
        match &mut self.running {
            None if lost > before => {
                self.running = Some((before, now_us, now_us));
                Some(Change::Began { records: lost - before })
            }
            Some((_, _, last_us)) if lost > before && !at_once => {
                *last_us = now_us;
                None
            }
            &mut Some((base, since_us, last_us)) if at_once || now_us >= last_us + QUIET_US => {
                self.running = None;
                Some(Change::Ended { records: lost - base, lasted_us: last_us - since_us })
            }
            _ => None,
        }
    }
}

fn lost(counters: &LaneCounters, reason: VoidReason) -> u64 {
    match reason {
        VoidReason::Evicted => counters.evicted,
        VoidReason::Expired => counters.expired,
        VoidReason::Corrupt => counters.corrupt,
    }
}

impl Gateway {
    /// Tells of records that were lost since it was last asked; `at_once` also of what may go on, for shutdown.
    pub(super) fn tell_losses(&mut self, now_us: u64, at_once: bool) {
        for class in Class::ALL {
            let counters = self.lanes.counters(class);
            for (streaks, reason) in self.losses.0.iter_mut().zip(REASONS) {
                let change = streaks[class.index()].update(now_us, lost(&counters, reason), at_once);
                let event = match change {
                    None => continue,
                    Some(Change::Began { records }) => Event::LossBegan { class, reason, records },
                    Some(Change::Ended { records, lasted_us }) => Event::LossEnded { class, reason, records, lasted_us },
                };
                self.outputs.push_back(Output::Event(event));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streak_is_told_when_it_begins_and_when_it_has_ended() {
        let (mut streak, mut told) = (Streak::default(), Vec::new());
        // Nothing, then 5 records every 20 s for 10 minutes, then quiet, then one more.
        for second in 0..1_200 {
            let lost = if second < 100 { 0 } else { 5 * (1 + (second.min(699) - 100) / 20) } + u64::from(second >= 1_000);
            match streak.update(second * 1_000_000, lost, false) {
                None => {}
                Some(Change::Began { records }) => told.push((second, records, None)),
                Some(Change::Ended { records, lasted_us }) => told.push((second, records, Some(lasted_us / 1_000_000))),
            }
        }
        assert_eq!(told, [(100, 5, None), (740, 150, Some(580)), (1_000, 1, None), (1_060, 1, Some(0))]);
    }

    #[test]
    fn a_stop_ends_a_streak_with_all_that_was_lost() {
        let mut streak = Streak::default();
        assert!(matches!(streak.update(1, 2, false), Some(Change::Began { records: 2 })));
        assert!(matches!(streak.update(2, 7, true), Some(Change::Ended { records: 7, .. })));
        assert!(streak.update(3, 7, true).is_none());
    }
}
