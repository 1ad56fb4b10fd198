//! May this uplink be used, and if not, when may it be tried again?
//!
//! Like the one in a fuse box: closed carries, open refuses, half-open lets one trial through. It opens at once, because a
//! critical record waits; it closes slowly, because a link that flaps is worse than one that is down. So there is a
//! hold-down after the first trial that works, and any failure within it opens again for longer. Nothing opens on a
//! sample or two: a ratio needs its minimum of samples, and failures in a row their number. What is known for certain (an
//! interface that is gone, a link that is silent) opens by [`Breaker::trip`] and needs no samples.
//!
//! Open is advice against, not a lock: with one uplink, or with all of them open, the plan uses what there is.

use super::success::SuccessRatio;
use crate::uplink::Backoff;

/// When a breaker opens and closes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerLimits {
    /// Failures in a row that open it.
    pub consecutive_max: u32,
    /// Opens when successes over samples in the window fall below this.
    pub ratio_min: f64,
    /// Samples in the window that a ratio needs.
    pub samples_min: u64,
    /// The window in microseconds.
    pub window_us: u64,
    /// A trial without result for so long has failed, in microseconds.
    pub trial_us: u64,
    /// From the first trial that works to closed, in microseconds.
    pub hold_down_us: u64,
    /// First and longest time that it stays open, in microseconds; spread by the seed.
    pub open_us: (u64, u64),
}

impl Default for BreakerLimits {
    fn default() -> Self {
        BreakerLimits {
            consecutive_max: 5,               // Envoy's outlier detection
            ratio_min: 0.5,                   // a link that fails every other time costs more than it brings
            samples_min: 10,                  // at 0.5 that is 5 failures, as above
            window_us: 60_000_000,            // some heartbeats of an idle uplink
            trial_us: 10_000_000,             // as long as a session may take to connect
            hold_down_us: 30_000_000,         // Envoy's base ejection; the field's "good check" is 30 s too
            open_us: (1_000_000, 60_000_000), // a trial is a handshake: 6 KB, so at most 9 MB a day on an unmetered link
        }
    }
}

/// Whether the uplink may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Healthy.
    Closed,
    /// Refusing until then.
    Open {
        /// Service time in microseconds.
        until_us: u64,
    },
    /// One trial at a time.
    HalfOpen {
        /// Service time in microseconds when it closes, once a trial has worked.
        closes_us: Option<u64>,
    },
}

/// Why a breaker opened.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum OpenReason {
    /// Too many in a row.
    #[error("{failures} failures in a row")]
    Consecutive {
        /// How many.
        failures: u32,
    },
    /// Too few of many.
    #[error("{:.0} % of {samples} worked", ratio * 100.0)]
    Ratio {
        /// Successes over samples.
        ratio: f64,
        /// In the window.
        samples: u64,
    },
    /// A trial failed, or a failure came within the hold-down.
    #[error("a trial failed")]
    Trial,
    /// A word was owed for too long.
    #[error("silent for {} ms", silent_us / 1_000)]
    Silent {
        /// How long, in microseconds.
        silent_us: u64,
    },
    /// Data is not acknowledged while small talk passes.
    #[error("blocked: no data acknowledged for {} ms", stalled_us / 1_000)]
    Blocked {
        /// How long, in microseconds.
        stalled_us: u64,
    },
    /// The connection was lost or could not be made.
    #[error("disconnected")]
    Disconnected,
    /// The interface is down or gone.
    #[error("the interface is down")]
    InterfaceDown,
}

/// What a breaker counted since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BreakerCounters {
    /// Times it opened.
    pub opened: u64,
    /// Times it closed again.
    pub closed: u64,
    /// Trials let through.
    pub trials: u64,
    /// Trials refused: it was open, or one was under way.
    pub refused: u64,
}

/// Circuit breaker of one uplink or route.
#[derive(Debug, Clone)]
pub struct Breaker {
    limits: BreakerLimits,
    state: BreakerState,
    window: SuccessRatio,
    failures_in_row: u32,
    trial_since_us: Option<u64>,
    backoff: Backoff,
    reason: Option<OpenReason>,
    counters: BreakerCounters,
}

impl Breaker {
    /// A closed breaker. `seed` spreads the trials of many boxes.
    pub fn new(limits: BreakerLimits, seed: u64) -> Self {
        Breaker {
            limits,
            state: BreakerState::Closed,
            window: SuccessRatio::new(limits.window_us, limits.samples_min),
            failures_in_row: 0,
            trial_since_us: None,
            backoff: Backoff::new(limits.open_us.0, limits.open_us.1, seed),
            reason: None,
            counters: BreakerCounters::default(),
        }
    }

    /// Lets time pass: open becomes half-open, a trial times out, the hold-down ends.
    pub fn advance(&mut self, now_us: u64) {
        match self.state {
            BreakerState::Closed => {}
            BreakerState::Open { until_us } => {
                if now_us >= until_us {
                    self.state = BreakerState::HalfOpen { closes_us: None };
                }
            }
            BreakerState::HalfOpen { closes_us } => {
                if self.trial_since_us.is_some_and(|since_us| now_us >= since_us.saturating_add(self.limits.trial_us)) {
                    self.open(now_us, OpenReason::Trial);
                } else if closes_us.is_some_and(|closes_us| now_us >= closes_us) {
                    self.state = BreakerState::Closed;
                    self.reason = None;
                    self.forget();
                    self.backoff.reset();
                    self.counters.closed += 1;
                }
            }
        }
    }

    /// An exchange worked.
    pub fn success(&mut self, now_us: u64) {
        self.advance(now_us);
        self.window.record(now_us, 1, 0);
        self.failures_in_row = 0;
        if let BreakerState::HalfOpen { closes_us } = &mut self.state {
            closes_us.get_or_insert(now_us.saturating_add(self.limits.hold_down_us));
            self.trial_since_us = None;
        }
    }

    /// An exchange failed.
    pub fn failure(&mut self, now_us: u64) {
        self.advance(now_us);
        self.window.record(now_us, 0, 1);
        self.failures_in_row = self.failures_in_row.saturating_add(1);
        match self.state {
            BreakerState::Open { .. } => {}
            BreakerState::HalfOpen { .. } => self.open(now_us, OpenReason::Trial),
            BreakerState::Closed => {
                if self.failures_in_row >= self.limits.consecutive_max {
                    self.open(now_us, OpenReason::Consecutive { failures: self.failures_in_row });
                } else if let Some(ratio) = self.window.ratio(now_us).filter(|&ratio| ratio < self.limits.ratio_min) {
                    self.open(now_us, OpenReason::Ratio { ratio, samples: self.window.samples(now_us) });
                }
            }
        }
    }

    /// Opens at once, for what is known for certain. Does not lengthen the time it is open already.
    pub fn trip(&mut self, now_us: u64, reason: OpenReason) {
        self.advance(now_us);
        if !matches!(self.state, BreakerState::Open { .. }) {
            self.open(now_us, reason);
        }
    }

    /// Something changed that makes a trial worth it now, such as an interface that came up.
    pub fn retry(&mut self, now_us: u64) {
        if let BreakerState::Open { until_us } = &mut self.state {
            *until_us = (*until_us).min(now_us);
        }
        self.advance(now_us);
    }

    /// Asks for the one trial of a half-open breaker; its result is the next success or failure.
    pub fn trial(&mut self, now_us: u64) -> bool {
        self.advance(now_us);
        let granted = matches!(self.state, BreakerState::HalfOpen { .. }) && self.trial_since_us.is_none();
        if granted {
            self.trial_since_us = Some(now_us);
            self.counters.trials += 1;
        } else {
            self.counters.refused += 1;
        }
        granted
    }

    /// The state as of the last call.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Why it is not closed.
    pub fn reason(&self) -> Option<OpenReason> {
        self.reason
    }

    /// Failures over samples in the window, in `[0, 1]`; `None` below the minimum number of samples.
    pub fn error_ratio(&self, now_us: u64) -> Option<f64> {
        self.window.ratio(now_us).map(|ratio| 1.0 - ratio)
    }

    /// Counts since start.
    pub fn counters(&self) -> BreakerCounters {
        self.counters
    }

    /// When [`Breaker::advance`] has something to do; `None` if never.
    pub fn deadline_us(&self) -> Option<u64> {
        match self.state {
            BreakerState::Closed => None,
            BreakerState::Open { until_us } => Some(until_us),
            BreakerState::HalfOpen { closes_us } => {
                let times_out_us = self.trial_since_us.map(|since_us| since_us.saturating_add(self.limits.trial_us));
                closes_us.into_iter().chain(times_out_us).min()
            }
        }
    }

    fn open(&mut self, now_us: u64, reason: OpenReason) {
        self.state = BreakerState::Open { until_us: now_us.saturating_add(self.backoff.next_us()) };
        self.reason = Some(reason);
        self.trial_since_us = None;
        self.counters.opened += 1;
    }

    /// What was counted before it closed must not open it again.
    fn forget(&mut self) {
        self.window.clear();
        self.failures_in_row = 0;
        self.trial_since_us = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND_US: u64 = 1_000_000;

    fn breaker() -> Breaker {
        Breaker::new(BreakerLimits::default(), 7)
    }

    #[test]
    fn failures_in_a_row_open_it_at_once() {
        let mut breaker = breaker();
        for _ in 0..4 {
            breaker.failure(5);
            assert_eq!(breaker.state(), BreakerState::Closed);
        }
        breaker.failure(5);
        assert!(matches!(breaker.state(), BreakerState::Open { .. }));
        assert_eq!(breaker.reason().map(|reason| reason.to_string()).as_deref(), Some("5 failures in a row"));
    }

    #[test]
    fn a_low_ratio_opens_it_only_with_enough_samples() {
        let mut breaker = breaker();
        for i in 0..9 {
            if i % 3 == 0 {
                breaker.success(i)
            } else {
                breaker.failure(i)
            }
            assert_eq!(breaker.state(), BreakerState::Closed);
        }
        breaker.failure(9);
        assert_eq!(breaker.reason(), Some(OpenReason::Ratio { ratio: 0.3, samples: 10 }));
    }

    #[test]
    fn one_trial_then_a_hold_down_and_a_failure_within_it_opens_again_for_longer() {
        let mut breaker = breaker();
        breaker.trip(0, OpenReason::InterfaceDown);
        let BreakerState::Open { until_us: first_us } = breaker.state() else { panic!("open") };
        assert!(!breaker.trial(first_us - 1));
        assert!(breaker.trial(first_us) && !breaker.trial(first_us), "one at a time");
        breaker.success(first_us);
        let held_us = first_us + 30 * SECOND_US;
        breaker.advance(held_us - 1);
        assert_eq!(breaker.state(), BreakerState::HalfOpen { closes_us: Some(held_us) });
        breaker.failure(held_us - 1);
        let BreakerState::Open { until_us: second_us } = breaker.state() else { panic!("open") };
        assert!((SECOND_US..=2 * SECOND_US).contains(&(second_us - (held_us - 1))));
        assert!(breaker.trial(second_us));
        breaker.success(second_us);
        breaker.advance(second_us + 30 * SECOND_US);
        assert_eq!((breaker.state(), breaker.reason()), (BreakerState::Closed, None));
        for _ in 0..4 {
            breaker.failure(second_us + 30 * SECOND_US);
        }
        assert_eq!(breaker.state(), BreakerState::Closed, "what was before counts no more");
    }

    #[test]
    fn a_trial_without_result_has_failed() {
        let mut breaker = breaker();
        breaker.trip(0, OpenReason::Disconnected);
        breaker.retry(10);
        assert!(breaker.trial(10));
        assert_eq!(breaker.deadline_us(), Some(10 + 10 * SECOND_US));
        breaker.advance(10 + 10 * SECOND_US);
        assert_eq!(breaker.reason(), Some(OpenReason::Trial));
    }

    proptest! {
        #[test]
        fn nothing_opens_below_the_minimum_of_samples_and_nothing_closes_without_the_hold_down(
            events in proptest::collection::vec((0u64..8_000_000, 0u8..8), 1..200), seed: u64,
        ) {
            let limits = BreakerLimits::default();
            let mut breaker = Breaker::new(limits, seed);
            let (mut now_us, mut samples, mut good_since) = (0, 0u32, None);
            for (step_us, what) in events {
                now_us += step_us;
                breaker.advance(now_us);
                let before = breaker.state();
                let opened = breaker.counters().opened;
                match what {
                    0..=2 => breaker.success(now_us),
                    3..=6 => breaker.failure(now_us),
                    _ => { breaker.trial(now_us); }
                }
                samples += u32::from(what < 7);
                if breaker.counters().opened > opened {
                    prop_assert!(before != BreakerState::Closed || samples >= 5, "opened after {samples}");
                    let BreakerState::Open { until_us } = breaker.state() else { panic!("opened") };
                    prop_assert!(until_us - now_us <= limits.open_us.1);
                }
                match breaker.state() {
                    BreakerState::HalfOpen { closes_us: Some(closes_us) } => {
                        let since = *good_since.get_or_insert(now_us);
                        prop_assert_eq!(closes_us, since + limits.hold_down_us);
                        samples = 0;
                    }
                    BreakerState::Closed => good_since = None,
                    _ => (good_since, samples) = (None, 0),
                }
                if before == BreakerState::Closed && good_since.is_none() && breaker.state() == BreakerState::Closed {
                    prop_assert!(breaker.reason().is_none());
                }
            }
        }
    }
}
