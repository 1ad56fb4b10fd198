//! What may be spent on knowing that an idle metered uplink still works.
//!
//! Probes every ten seconds to a few targets cost gigabytes a month, on a line that is there for emergencies. So an idle
//! metered uplink is cold: no connection, one resumed handshake an hour, and one when its interface comes up. In all at
//! most [`MONTH_BYTES_MAX`] in *any* 30 days, not only in calendar months.
//!
//! A token bucket with burst B and refill R lets B + R T through in any time T. So the limit is divided among them, not
//! given to one: burst, 30 days of refill and two probes in progress at the window's ends stay within it together.
//! Without a saved level it starts with a single probe: a box that reboots in a circle must not get a burst each time.

/// The most that probing may cost in any 30 days, in bytes of both directions (the design's figure).
pub const MONTH_BYTES_MAX: u64 = 5_000_000;
/// A probe must be cut off when it has cost so much: a full mutual handshake with two chains of 3 KB fits.
pub const PROBE_BYTES_MAX: u64 = 16 * 1024;
/// Shortest time between probes in microseconds, however often an interface comes and goes: a minute.
pub const EVENT_GAP_US: u64 = 60_000_000;

/// Why no probe is made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProbeRefusal {
    /// One is under way.
    #[error("a probe is under way")]
    Busy,
    /// It is not time yet.
    #[error("the next probe is due in {} s", wait_us / 1_000_000)]
    Early {
        /// How long, in microseconds.
        wait_us: u64,
    },
    /// The month's bytes are used.
    #[error("{left_bytes} bytes left to probe with")]
    Budget {
        /// What is there, in bytes.
        left_bytes: u64,
    },
}

/// What probing cost since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ColdCounters {
    /// Probes made.
    pub probes: u64,
    /// What they cost, in bytes.
    pub used_bytes: u64,
    /// What probes cost beyond [`PROBE_BYTES_MAX`]: they were not cut off as they should have been.
    pub overrun_bytes: u64,
    /// Refused because one was under way or the time had not come.
    pub refused_early: u64,
    /// Refused because the budget was used.
    pub refused_budget: u64,
}

/// The level of a budget, to be kept over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdLevel {
    /// May be spent, in bytes; below zero after an overrun.
    pub bytes: i64,
    /// As of this service time, in microseconds.
    pub at_us: u64,
}

/// Budget and schedule of the probes of one idle metered uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColdBudget {
    /// In bytes times [`MONTH_US`], so that refilling is exact.
    level: i128,
    at_us: u64,
    period_us: u64,
    due_us: u64,
    begun_us: Option<u64>,
    probing: bool,
    counters: ColdCounters,
}

impl ColdBudget {
    /// A budget without a past: enough for one probe, due at once. `seed` spreads the hours of many boxes.
    pub fn new(now_us: u64, seed: u64) -> Self {
        Self::restored(now_us, ColdLevel { bytes: PROBE_BYTES_MAX as i64, at_us: now_us }, seed)
    }

    /// A budget that goes on from a level saved before a restart.
    pub fn restored(now_us: u64, saved: ColdLevel, seed: u64) -> Self {
        let mut budget = ColdBudget {
            level: (i128::from(saved.bytes) * MONTH_US).min(LEVEL_MAX),
            at_us: saved.at_us.min(now_us),
            // Hours of slightly different length: boxes that were switched on together drift apart.
            period_us: PERIOD_US + seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (PERIOD_US / 10),
            due_us: now_us,
            begun_us: None,
            probing: false,
            counters: ColdCounters::default(),
        };
        budget.refill(now_us);
        budget
    }

    /// The interface came up or changed: a probe is due as soon as [`EVENT_GAP_US`] after the last one allows.
    pub fn interface_event(&mut self, now_us: u64) {
        let soonest_us = self.begun_us.map_or(now_us, |begun_us| begun_us.saturating_add(EVENT_GAP_US).max(now_us));
        self.due_us = self.due_us.min(soonest_us);
    }

    /// Asks for a probe, which may cost at most [`PROBE_BYTES_MAX`] and must be followed by [`ColdBudget::end`].
    ///
    /// # Errors
    /// If one is under way, it is too early, or the budget does not hold a whole probe.
    pub fn begin(&mut self, now_us: u64) -> Result<(), ProbeRefusal> {
        self.refill(now_us);
        if self.probing {
            self.counters.refused_early += 1;
            return Err(ProbeRefusal::Busy);
        }
        if now_us < self.due_us {
            self.counters.refused_early += 1;
            return Err(ProbeRefusal::Early { wait_us: self.due_us - now_us });
        }
        let missing = i128::from(PROBE_BYTES_MAX) * MONTH_US - self.level;
        if missing > 0 {
            self.counters.refused_budget += 1;
            let wait_us = u64::try_from(missing / REFILL_BYTES + 1).unwrap_or(u64::MAX);
            self.due_us = now_us.saturating_add(wait_us.max(EVENT_GAP_US));
            return Err(ProbeRefusal::Budget { left_bytes: self.left_bytes() });
        }
        self.probing = true;
        self.begun_us = Some(now_us);
        self.due_us = now_us.saturating_add(self.period_us);
        self.counters.probes += 1;
        Ok(())
    }

    /// The probe ended and cost so many bytes, both directions, headers included.
    ///
    /// What it cost beyond its limit is paid back before there is another.
    pub fn end(&mut self, now_us: u64, used_bytes: u64) {
        self.refill(now_us);
        if !self.probing {
            return;
        }
        self.probing = false;
        self.level -= i128::from(used_bytes) * MONTH_US;
        self.counters.used_bytes = self.counters.used_bytes.saturating_add(used_bytes);
        let overrun_bytes = used_bytes.saturating_sub(PROBE_BYTES_MAX);
        self.counters.overrun_bytes = self.counters.overrun_bytes.saturating_add(overrun_bytes);
    }

    /// Service time in microseconds from which a probe is due.
    pub fn due_us(&self) -> u64 {
        self.due_us
    }

    /// What may be spent as of the last call, in bytes.
    pub fn left_bytes(&self) -> u64 {
        u64::try_from(self.level / MONTH_US).unwrap_or(0)
    }

    /// The level to save.
    pub fn level(&self) -> ColdLevel {
        let bytes = i64::try_from(self.level.div_euclid(MONTH_US)).unwrap_or(i64::MIN);
        // A probe under way has cost what nobody knows yet: as much as it may.
        ColdLevel { bytes: bytes.saturating_sub(if self.probing { PROBE_BYTES_MAX as i64 } else { 0 }), at_us: self.at_us }
    }

    /// Counts since start.
    pub fn counters(&self) -> ColdCounters {
        self.counters
    }

    fn refill(&mut self, now_us: u64) {
        let passed_us = now_us.saturating_sub(self.at_us);
        self.level = (self.level + i128::from(passed_us) * REFILL_BYTES).min(LEVEL_MAX);
        self.at_us = self.at_us.max(now_us);
    }
}

/// 30 days in microseconds.
const MONTH_US: i128 = 30 * 86_400 * 1_000_000;
/// Burst in bytes: eighty probes of 6 KB, for a day on which an interface comes and goes.
const BURST_BYTES: i128 = 500_000;
const LEVEL_MAX: i128 = BURST_BYTES * MONTH_US;
/// Refill in bytes per 30 days: 6.1 KB an hour, which a resumed handshake with three padded datagrams and a greeting needs.
const REFILL_BYTES: i128 = 4_400_000;
const _: () = assert!(BURST_BYTES + REFILL_BYTES + 2 * PROBE_BYTES_MAX as i128 <= MONTH_BYTES_MAX as i128);
/// Between two scheduled probes: the design's hour.
const PERIOD_US: u64 = 3_600_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR_US: u64 = 3_600_000_000;
    const DAY_US: u64 = 24 * HOUR_US;

    #[test]
    fn a_probe_of_six_kilobytes_an_hour_is_always_within_the_budget() {
        let mut budget = ColdBudget::new(0, 1);
        let mut now_us = 0;
        for _ in 0..24 * 365 {
            now_us = budget.due_us().max(now_us);
            assert_eq!(budget.begin(now_us), Ok(()));
            budget.end(now_us + 1_000_000, 6_000);
        }
        assert_eq!((budget.counters().refused_budget, budget.counters().probes), (0, 24 * 365));
        assert!(now_us <= 365 * DAY_US * 11 / 10, "about one an hour");
    }

    #[test]
    fn refusals_say_why_and_are_counted() {
        let mut budget = ColdBudget::new(0, 0);
        assert_eq!(budget.begin(0), Ok(()));
        assert_eq!(budget.begin(1), Err(ProbeRefusal::Busy));
        budget.end(2, PROBE_BYTES_MAX);
        assert_eq!(budget.begin(3), Err(ProbeRefusal::Early { wait_us: HOUR_US - 3 }));
        budget.interface_event(4);
        assert_eq!(budget.begin(EVENT_GAP_US - 1), Err(ProbeRefusal::Early { wait_us: 1 }));
        assert!(matches!(budget.begin(EVENT_GAP_US), Err(ProbeRefusal::Budget { left_bytes: 0..1_000 })));
        assert_eq!((budget.counters().refused_early, budget.counters().refused_budget), (3, 1));
        assert_eq!(budget.begin(budget.due_us()), Ok(()), "due when there is enough");
    }

    #[test]
    fn an_overrun_is_counted_and_paid_back() {
        let mut budget = ColdBudget::new(0, 0);
        budget.begin(0).expect("the first");
        budget.end(0, 1_000_000);
        assert_eq!(budget.counters().overrun_bytes, 1_000_000 - PROBE_BYTES_MAX);
        budget.interface_event(DAY_US);
        assert!(matches!(budget.begin(DAY_US), Err(ProbeRefusal::Budget { left_bytes: 0 })));
        assert_eq!(budget.begin(7 * DAY_US), Ok(()));
    }

    #[test]
    fn a_box_that_reboots_in_a_circle_gets_no_new_burst() {
        let mut used_bytes = 0;
        let mut saved = ColdBudget::new(0, 0).level();
        for boot in 0..10_000u64 {
            let now_us = boot * 2 * EVENT_GAP_US;
            let mut budget = ColdBudget::restored(now_us, saved, boot);
            if budget.begin(now_us).is_ok() {
                saved = budget.level();
                used_bytes += PROBE_BYTES_MAX;
            }
        }
        assert!(used_bytes < MONTH_BYTES_MAX / 2, "{used_bytes} in 14 days");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_thirty_days_ever_cost_more_than_the_limit(
            steps in proptest::collection::vec((0u64..3, 0u64..HOUR_US, 1u64..=PROBE_BYTES_MAX), 200..3_000),
            start_bytes in 0i64..10_000_000, greedy: bool, seed: u64,
        ) {
            let mut budget = ColdBudget::restored(0, ColdLevel { bytes: start_bytes, at_us: 0 }, seed);
            let (mut now_us, mut spent) = (0, std::collections::VecDeque::new());
            let mut in_window = 0;
            for (kind, step_us, cost) in steps {
                now_us += if kind == 2 { step_us } else { step_us % (3 * EVENT_GAP_US) };
                if kind > 0 || greedy {
                    budget.interface_event(now_us);
                }
                if budget.begin(now_us).is_err() {
                    continue;
                }
                // A probe's bytes count from when it begins, whenever the books learn of it.
                let cost = if greedy { PROBE_BYTES_MAX } else { cost };
                spent.push_back((now_us, cost));
                in_window += cost;
                now_us += step_us % 30_000_000;
                budget.end(now_us, cost);
                while spent.front().is_some_and(|&(at_us, _)| at_us + 30 * DAY_US < now_us) {
                    in_window -= spent.pop_front().expect("looked at").1;
                }
                prop_assert!(in_window <= MONTH_BYTES_MAX, "{in_window} bytes in the 30 days to {now_us}");
            }
        }

        #[test]
        fn the_worst_schedule_stays_below_the_limit_and_uses_most_of_it(gap_us in EVENT_GAP_US..HOUR_US) {
            let mut budget = ColdBudget::restored(0, ColdLevel { bytes: i64::MAX, at_us: 0 }, 1);
            let (mut now_us, mut used) = (0, 0);
            while now_us < 30 * DAY_US {
                budget.interface_event(now_us);
                if budget.begin(now_us).is_ok() {
                    budget.end(now_us, PROBE_BYTES_MAX);
                    used += PROBE_BYTES_MAX;
                }
                now_us += gap_us;
            }
            prop_assert!((4_700_000..=MONTH_BYTES_MAX).contains(&used), "{used}");
        }
    }
}
