//! What a box does while the cloud is busy, and how it returns to what it did before.
//!
//! Think of a harbour whose cranes cannot keep up. Ships with gravel stay where they are, those with goods leave half of them
//! behind, and lifeboats are let in. When the cranes are mended, the ships do not all set sail in the same minute.
//!
//! | the cloud is | critical | high | normal | bulk |
//! | --- | --- | --- | --- | --- |
//! | overloaded | as ever | one step coarser | two steps coarser | held |
//! | stalled | as ever | held | held | held |
//!
//! A step is one down the stream's own ladder from what its price pays for, and never below its floor; a stream without a value
//! has no ladder and is sent whole, or held. The price itself does not see the cloud: it is made from what the link carries,
//! and on an ample link any part of that is still ample.
//!
//! A level rises at once. It falls one step at a time, each after a wait that the box draws from its seed: up to as long as
//! the cloud was busy, early more often than late, because a box holds more the longer it waits. So a fleet sends at most about
//! two and a half times its usual rate. While the cloud's queue still fills, those that have returned are enough: the others
//! wait for longer, but not for ever.
//!
//! Credits are the other half: what may be sent at all. A class that gets them back uses them after a wait of the same kind, see
//! [`CreditReturn`].

use crate::ids::{Class, PerClass};
use crate::price::{Ladder, Level};
use crate::uplink::Jitter;
use crate::wire::LoadLevel;

/// The wait before a level falls is drawn from 0 to the time that the cloud was busy, but to no less and no more than these.
pub const SPREAD_US: (u64, u64) = (5_000_000, 60_000_000);
/// By class: the wait before returned credits are used is drawn from 0 to the time without them, divided by this; 0 for none.
/// `bulk` needs none, because the level holds it.
const CREDIT_PARTS: PerClass<u64> = [0, 4, 1, 0];
/// By class: steps down the ladder while the cloud is overloaded.
const STEPS: PerClass<usize> = [0, 1, 2, 2];

/// True if records of a class are sent at all to a cloud of this level.
pub const fn admits(level: LoadLevel, class: Class) -> bool {
    match level {
        LoadLevel::Idle | LoadLevel::Filling => true,
        LoadLevel::Overloaded => !matches!(class, Class::Bulk),
        LoadLevel::Stalled => matches!(class, Class::Critical),
    }
}

/// How many steps more coarsely than they are worth records of a class are sent to a cloud of this level.
pub const fn steps(level: LoadLevel, class: Class) -> usize {
    match level {
        LoadLevel::Idle | LoadLevel::Filling => 0,
        LoadLevel::Overloaded | LoadLevel::Stalled => STEPS[class.index()],
    }
}

/// So many steps down a ladder from a level of it, but not below its last.
pub fn coarser(ladder: &Ladder, level: Level, steps: usize) -> Level {
    ladder.levels().map(|(level, _)| level).skip_while(|&at| at < level).take(steps + 1).last().unwrap_or(level)
}

/// How busy one uplink's cloud is taken to be.
#[derive(Debug, Clone)]
pub struct Pressure {
    told: LoadLevel,
    level: LoadLevel,
    /// Since when it has been overloaded or worse.
    since_us: u64,
    falls_us: Option<u64>,
    jitter: Jitter,
}

impl Pressure {
    /// Nothing is known of the cloud. Boxes with different seeds return at different times.
    pub fn new(seed: u64) -> Pressure {
        let (told, level) = (LoadLevel::Idle, LoadLevel::Idle);
        Pressure { told, level, since_us: 0, falls_us: None, jitter: Jitter::new(seed) }
    }

    /// The level that is acted on.
    pub fn level(&self) -> LoadLevel {
        self.level
    }

    /// The cloud says how busy it is; true if that changes what is acted on.
    pub fn tell(&mut self, now_us: u64, told: LoadLevel) -> bool {
        let (before, was_told) = (self.level, std::mem::replace(&mut self.told, told));
        if told >= self.level || self.level < LoadLevel::Overloaded {
            if self.level < LoadLevel::Overloaded {
                self.since_us = now_us;
            }
            (self.level, self.falls_us) = (told, None);
        } else if told != was_told {
            self.falls_us = Some(self.draw(now_us));
        }
        self.level != before
    }

    /// Lets time pass; true if that changes what is acted on.
    pub fn tick(&mut self, now_us: u64) -> bool {
        if self.falls_us.is_none_or(|falls_us| now_us < falls_us) {
            return false;
        }
        let is_next_far = self.level == LoadLevel::Stalled && self.told < LoadLevel::Overloaded;
        self.level = if is_next_far { LoadLevel::Overloaded } else { self.told };
        self.falls_us = is_next_far.then(|| self.draw(now_us));
        true
    }

    /// When the level falls next.
    fn draw(&mut self, now_us: u64) -> u64 {
        let lasted_us = now_us.saturating_sub(self.since_us).clamp(SPREAD_US.0, SPREAD_US.1);
        let others_us = if self.told == LoadLevel::Filling { SPREAD_US.1 } else { 0 };
        now_us + others_us + self.jitter.early(lasted_us)
    }
}

/// When the classes of one session may use credits that they had lost.
///
/// All boxes hear in the same instant that there are credits again. What they hold would come in one wave, and take them
/// away again; so each waits, by a draw from its seed, up to as long as it had none. `high` waits a quarter of that, and `critical`
/// not at all.
#[derive(Debug, Clone)]
pub struct CreditReturn {
    lost_us: PerClass<Option<u64>>,
    usable_us: PerClass<u64>,
    jitter: Jitter,
}

impl CreditReturn {
    /// All may use what they have.
    pub fn new(seed: u64) -> CreditReturn {
        CreditReturn { lost_us: [None; 4], usable_us: [0; 4], jitter: Jitter::new(seed) }
    }

    /// A session came up: what was before is forgotten, as its attempts were spread.
    pub fn restart(&mut self) {
        (self.lost_us, self.usable_us) = ([None; 4], [0; 4]);
    }

    /// The cloud says what may be under way of a class.
    pub fn granted(&mut self, now_us: u64, class: Class, bytes: u64) {
        let at = class.index();
        if bytes == 0 {
            self.lost_us[at].get_or_insert(now_us);
        } else if let Some(lost_us) = self.lost_us[at].take() {
            let lasted_us = now_us.saturating_sub(lost_us).min(SPREAD_US.1);
            let wait_us = lasted_us.checked_div(CREDIT_PARTS[at]).map_or(0, |most_us| self.jitter.early(most_us));
            // Credits that come for a moment and go again shorten no wait.
            self.usable_us[at] = self.usable_us[at].max(now_us + wait_us);
        }
    }

    /// True if the class may use its credits.
    pub fn is_usable(&self, now_us: u64, class: Class) -> bool {
        now_us >= self.usable_us[class.index()]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND_US: u64 = 1_000_000;

    #[test]
    fn critical_is_never_touched_and_less_matters_more() {
        for level in LoadLevel::ALL {
            assert!(admits(level, Class::Critical) && steps(level, Class::Critical) == 0);
            for pair in Class::ALL.windows(2) {
                assert!(admits(level, pair[0]) || !admits(level, pair[1]), "{level:?}: {pair:?}");
                assert!(steps(level, pair[0]) <= steps(level, pair[1]), "{level:?}: {pair:?}");
            }
        }
    }

    #[test]
    fn steps_follow_the_ladder_and_end_at_its_floor() {
        let ladder = Ladder::TELEMETRY.down_to(Level::Aggregate);
        assert_eq!(coarser(&ladder, Level::Raw, 0), Level::Raw);
        assert_eq!(coarser(&ladder, Level::Raw, 2), Level::Thin4);
        assert_eq!(coarser(&ladder, Level::Thin4, 2), Level::Aggregate);
        assert_eq!(coarser(&Ladder::RAW, Level::Raw, 2), Level::Raw);
        let gap = Ladder::new([Some(1.0), None, Some(0.6), None, Some(0.2)]).expect("a ladder");
        assert_eq!((coarser(&gap, Level::Raw, 1), coarser(&gap, Level::Raw, 2)), (Level::Thin4, Level::Verdict));
    }

    #[test]
    fn a_level_rises_at_once_and_falls_step_by_step_within_the_time_that_it_lasted() {
        let mut pressure = Pressure::new(1);
        assert!(pressure.tell(0, LoadLevel::Overloaded) && pressure.tell(SECOND_US, LoadLevel::Stalled));
        let over_us = 31 * SECOND_US;
        assert!(!pressure.tell(over_us, LoadLevel::Idle) && !pressure.tell(over_us + 1, LoadLevel::Idle));
        let mut seen = Vec::new();
        for now_us in (over_us..over_us + 100 * SECOND_US).step_by(100_000) {
            if pressure.tick(now_us) {
                seen.push((pressure.level(), now_us));
            }
        }
        assert_eq!(seen.iter().map(|(level, _)| *level).collect::<Vec<_>>(), [LoadLevel::Overloaded, LoadLevel::Idle]);
        assert!(seen[0].1 <= over_us + 31 * SECOND_US && seen[1].1 <= seen[0].1 + 60 * SECOND_US, "{seen:?}");
    }

    #[test]
    fn a_thousand_boxes_return_one_after_another_and_the_same_seed_at_the_same_time() {
        let returns_s = |seed| {
            let mut pressure = Pressure::new(seed);
            pressure.tell(0, LoadLevel::Overloaded);
            pressure.tell(20 * SECOND_US, LoadLevel::Idle);
            (20..=41).find(|second| pressure.tick(second * SECOND_US)).expect("within as long again")
        };
        let mut by_second = [0; 42];
        (0..1_000).for_each(|seed| by_second[returns_s(seed) as usize] += 1);
        assert!(by_second.iter().all(|count| *count <= 140), "{by_second:?}");
        let (early, late): (i32, i32) = (by_second[20..=30].iter().sum(), by_second[31..].iter().sum());
        assert!((700..800).contains(&early) && early + late == 1_000, "{by_second:?}");
        assert_eq!(returns_s(7), returns_s(7));
    }

    #[test]
    fn who_waits_goes_on_waiting_while_the_queue_fills_but_not_for_ever() {
        let mut pressure = Pressure::new(3);
        pressure.tell(0, LoadLevel::Overloaded);
        pressure.tell(5 * SECOND_US, LoadLevel::Idle);
        pressure.tell(5 * SECOND_US, LoadLevel::Filling);
        assert!(!pressure.tick(64 * SECOND_US), "the others have filled it");
        assert!(pressure.tick(71 * SECOND_US));
        assert_eq!(pressure.level(), LoadLevel::Filling);
        assert!(pressure.tell(72 * SECOND_US, LoadLevel::Idle), "nothing holds that up");
    }

    #[test]
    fn returned_credits_are_used_in_turn_and_a_flicker_shortens_no_wait() {
        let usable_s = |seed: u64, class: Class, flickers: bool| {
            let mut credits = CreditReturn::new(seed);
            credits.granted(0, class, 0);
            credits.granted(40 * SECOND_US, class, 1);
            if flickers {
                credits.granted(40 * SECOND_US + 1, class, 0);
                credits.granted(40 * SECOND_US + 2, class, 1);
            }
            (40..=80).find(|second| credits.is_usable(second * SECOND_US, class)).expect("within as long again")
        };
        let latest = |class, flickers| (0..200).map(|seed| usable_s(seed, class, flickers)).max().expect("some");
        assert_eq!(latest(Class::Critical, false), 40);
        assert!((48..=50).contains(&latest(Class::High, false)), "{}", latest(Class::High, false));
        assert!(latest(Class::Normal, false) >= 70);
        assert_eq!(latest(Class::Bulk, false), 40, "its level holds it");
        for seed in 0..50 {
            assert!(usable_s(seed, Class::Normal, true) >= usable_s(seed, Class::Normal, false));
        }
        let mut credits = CreditReturn::new(1);
        credits.granted(0, Class::Normal, 0);
        credits.granted(60 * SECOND_US, Class::Normal, 1);
        assert!(!credits.is_usable(60 * SECOND_US, Class::Normal));
        credits.restart();
        assert!(credits.is_usable(60 * SECOND_US, Class::Normal));
    }

    fn told() -> impl Strategy<Value = Vec<(u64, usize)>> {
        prop::collection::vec((0..90 * SECOND_US, 0usize..4), 1..40)
    }

    proptest! {
        #[test]
        fn what_is_acted_on_is_never_less_than_what_was_told_and_ends_with_it(told in told(), seed in any::<u64>()) {
            let (mut pressure, mut now_us) = (Pressure::new(seed), 0);
            for (later_us, level) in told {
                now_us += later_us;
                pressure.tick(now_us);
                pressure.tell(now_us, LoadLevel::ALL[level]);
                prop_assert!(pressure.level() >= LoadLevel::ALL[level]);
            }
            for _ in 0..5 {
                now_us += 2 * SPREAD_US.1;
                pressure.tick(now_us);
            }
            prop_assert_eq!(pressure.level(), pressure.told, "no pressure outlives its cause");
        }
    }
}
