//! What may still be used of a metered uplink's month, and what a paid byte must be worth.
//!
//! A month is long and an outage is short: who spends whenever something waits has nothing left when it matters, and who
//! lets bytes drip wastes them on calm minutes. So there are two rules, measured in DECISIONS:
//! - a **pace**: spent is never more than the budget for the part of the month that has passed plus a burst, which must
//!   cover one outage;
//! - a **price of paid bytes**, moved slowly: up when more was spent than the month's part, down when less. A paid byte is
//!   used only for what is worth more.
//!
//! The last [`RESERVE`] of the month is for `critical` alone; when the whole is used, nothing goes. Months are calendar months
//! in UTC. While the wall clock is not trusted the month stands still and only spending counts, so that a clock at 1970 or a
//! jump neither grants a new month nor ends one.

/// Part of the month's bytes that is kept for `critical`.
pub const RESERVE: f64 = 0.1;
/// Part of the budget that may be spent ahead of the pace. The prototype lost 1 % with 0.1 and nothing from 0.3 on.
pub const BURST: f64 = 0.3;

/// A month of one uplink.
#[derive(Debug, Clone, PartialEq)]
pub struct MonthBudget {
    limit_bytes: u64,
    spent_bytes: u64,
    /// Calendar months since 1970, once known.
    month: Option<u32>,
    /// Part of the month that has passed, in `[0, 1]`, as of the last trusted time.
    elapsed: f64,
    price: Option<f64>,
    /// Unix time in microseconds, as last trusted, and when the price was last looked at.
    unix_us: i64,
    adjusted_unix_us: Option<i64>,
    counters: BudgetCounters,
}

/// What is kept over a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BudgetLevel {
    /// Calendar month since 1970; `None` if it was never known.
    pub month: Option<u32>,
    /// Bytes used in it.
    pub spent_bytes: u64,
    /// Price of a paid byte; `None` before there was one.
    pub price: Option<f64>,
}

/// What a budget counted since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BudgetCounters {
    /// Bytes used.
    pub used_bytes: u64,
    /// Months that began.
    pub months: u64,
    /// Times that the pace, or the end of the month's bytes, closed the uplink to all but critical.
    pub paced: u64,
}

/// What may be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes that `critical` may use.
    pub critical_bytes: u64,
    /// Bytes that the other classes may use.
    pub others_bytes: u64,
}

impl MonthBudget {
    /// A budget of so many bytes a month, going on from what was saved.
    pub fn new(limit_bytes: u64, saved: BudgetLevel) -> MonthBudget {
        MonthBudget {
            limit_bytes,
            spent_bytes: saved.spent_bytes,
            month: saved.month,
            elapsed: 0.0,
            price: saved.price.filter(|price| price.is_finite() && *price > 0.0),
            unix_us: 0,
            adjusted_unix_us: None,
            counters: BudgetCounters::default(),
        }
    }

    /// The month has so many bytes from now on; what was used stays used.
    pub fn set_limit(&mut self, limit_bytes: u64) {
        self.limit_bytes = limit_bytes;
    }

    /// Bytes were used, in either direction.
    pub fn spend(&mut self, bytes: u64) {
        let was_open = self.allowance().others_bytes > 0;
        self.spent_bytes = self.spent_bytes.saturating_add(bytes);
        self.counters.used_bytes = self.counters.used_bytes.saturating_add(bytes);
        self.counters.paced += u64::from(was_open && self.allowance().others_bytes == 0);
    }

    /// The wall clock, in microseconds of Unix time; `None` while it is not trusted, which freezes the month.
    pub fn clock(&mut self, unix_us: Option<i64>) {
        let Some((unix_us, (month, elapsed))) = unix_us.and_then(|us| Some((us, month_of(us)?))) else { return };
        // A price that was never looked at moves an hour from now.
        self.adjusted_unix_us.get_or_insert(unix_us);
        self.unix_us = self.unix_us.max(unix_us);
        match self.month {
            // A clock that went back, even over the end of a month, grants nothing.
            Some(known) if month < known => {}
            Some(known) if month > known => {
                (self.month, self.elapsed, self.spent_bytes) = (Some(month), elapsed, 0);
                self.counters.months += 1;
            }
            _ => (self.month, self.elapsed) = (Some(month), elapsed.max(self.elapsed)),
        }
    }

    /// Moves the price of a paid byte by what was spent; `lambda` is the price of a byte over the free uplinks, where it starts.
    ///
    /// It moves with the calendar, as the month does, and stands still with it.
    pub fn adjust(&mut self, lambda: f64) {
        if self.price.is_none() && lambda > 0.0 {
            self.price = Some(lambda);
        }
        let Some(adjusted_unix_us) = self.adjusted_unix_us else { return };
        let passed_us = self.unix_us.saturating_sub(adjusted_unix_us);
        if passed_us < ADJUST_US || self.elapsed <= 0.0 {
            return;
        }
        self.adjusted_unix_us = Some(self.unix_us);
        let planned = self.limit_bytes as f64 * (1.0 - RESERVE) * self.elapsed;
        let off = (self.spent_bytes as f64 / planned.max(1.0) - 1.0).clamp(-1.0, 1.0);
        let hours = (passed_us as f64 / ADJUST_US as f64).min(24.0);
        // 1 + x in place of e^x, so that every platform gets the same bits: a step of an hour is 2 % at most.
        self.price = self.price.map(|price| (price * (1.0 + GAIN_PER_HOUR * hours * off)).clamp(PRICE_MIN, PRICE_MAX));
    }

    /// What a paid byte must be worth; `None` before anything waited for it.
    pub fn price(&self) -> Option<f64> {
        self.price
    }

    /// What may be used now.
    pub fn allowance(&self) -> Allowance {
        let left = |part: f64| ((self.limit_bytes as f64 * part) as u64).saturating_sub(self.spent_bytes);
        let pace = (self.elapsed + BURST).min(1.0) * (1.0 - RESERVE);
        Allowance { critical_bytes: left(1.0), others_bytes: left(pace) }
    }

    /// Bytes used this month, and the month's limit.
    pub fn spent_of(&self) -> (u64, u64) {
        (self.spent_bytes, self.limit_bytes)
    }

    /// What to save.
    pub fn level(&self) -> BudgetLevel {
        BudgetLevel { month: self.month, spent_bytes: self.spent_bytes, price: self.price }
    }

    /// Counts since start.
    pub fn counters(&self) -> BudgetCounters {
        self.counters
    }
}

/// Calendar month since 1970 and the part of it that has passed; `None` before 1970.
fn month_of(unix_us: i64) -> Option<(u32, f64)> {
    let us = u64::try_from(unix_us).ok()?;
    let day = us / DAY_US;
    let (year, month, day_of_month) = civil(day)?;
    let first = day - u64::from(day_of_month);
    let days = u64::from(days_in(year, month));
    let passed = (us - first * DAY_US) as f64 / (days * DAY_US) as f64;
    Some(((year - 1970) * 12 + month, passed))
}

/// Year, month from 0 and day from 0 of a day since 1970-01-01.
fn civil(mut day: u64) -> Option<(u32, u32, u32)> {
    let mut year = 1970;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if day < length {
            break;
        }
        day -= length;
        year += 1;
        if year > YEAR_MAX {
            return None;
        }
    }
    for month in 0..12 {
        let length = u64::from(days_in(year, month));
        if day < length {
            return Some((year, month, day as u32));
        }
        day -= length;
    }
    None
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

fn is_leap(year: u32) -> bool {
    (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
}

const DAY_US: u64 = 86_400_000_000;
/// A clock beyond it is wrong.
const YEAR_MAX: u32 = 2500;
/// How often the price moves: an hour, because it is the dual of a month's budget and not of a second's.
const ADJUST_US: i64 = 3_600_000_000;
/// 2 % an hour: a price that is wrong by half is mended within two days.
const GAIN_PER_HOUR: f64 = 0.02;
const PRICE_MIN: f64 = 1e-12;
const PRICE_MAX: f64 = 1e6;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-01 00:00 UTC.
    const NOVEMBER_US: i64 = 1_793_491_200_000_000;
    const DAY: i64 = DAY_US as i64;

    fn budget() -> MonthBudget {
        let mut budget = MonthBudget::new(1_000_000, BudgetLevel::default());
        budget.clock(Some(NOVEMBER_US));
        budget
    }

    #[test]
    fn the_pace_lets_a_burst_through_and_keeps_a_reserve_for_critical() {
        let mut budget = budget();
        assert_eq!(budget.allowance(), Allowance { critical_bytes: 1_000_000, others_bytes: 270_000 });
        budget.spend(270_000);
        assert_eq!((budget.allowance().others_bytes, budget.counters().paced), (0, 1));
        budget.clock(Some(NOVEMBER_US + 15 * DAY));
        assert_eq!(budget.allowance().others_bytes, 450_000);
        budget.clock(Some(NOVEMBER_US + 29 * DAY));
        budget.spend(630_000);
        assert_eq!(budget.allowance(), Allowance { critical_bytes: 100_000, others_bytes: 0 });
        budget.spend(100_000);
        assert_eq!(budget.allowance().critical_bytes, 0);
    }

    #[test]
    fn a_month_ends_with_the_calendar_and_only_forwards() {
        let mut budget = budget();
        budget.spend(500_000);
        budget.clock(Some(NOVEMBER_US - 1));
        assert_eq!(budget.spent_of().0, 500_000, "back in October nothing is granted");
        budget.clock(Some(NOVEMBER_US + 30 * DAY));
        assert_eq!((budget.spent_of().0, budget.counters().months), (0, 1));
    }

    #[test]
    fn without_a_trusted_clock_the_month_stands_still() {
        let mut budget = budget();
        let before = budget.allowance();
        budget.clock(None);
        assert_eq!(budget.allowance(), before);
        let mut fresh = MonthBudget::new(1_000, BudgetLevel { month: Some(682), spent_bytes: 900, price: None });
        fresh.clock(None);
        assert_eq!(fresh.allowance(), Allowance { critical_bytes: 100, others_bytes: 0 });
    }

    #[test]
    fn a_paid_byte_grows_dearer_when_too_much_was_spent_and_cheaper_when_too_little() {
        let mut budget = budget();
        budget.adjust(2.0);
        assert_eq!(budget.price(), Some(2.0));
        budget.spend(400_000);
        budget.clock(Some(NOVEMBER_US + ADJUST_US));
        budget.adjust(5.0);
        let dearer = budget.price().expect("a price");
        assert!(dearer > 2.0 && dearer < 2.1, "{dearer}");
        budget.clock(None);
        budget.adjust(5.0);
        assert_eq!(budget.price(), Some(dearer), "without a trusted clock it stands still");
        budget.clock(Some(NOVEMBER_US + 28 * DAY));
        budget.adjust(5.0);
        assert!(budget.price().expect("a price") < dearer);
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        let days = |y: u32| (1970..y).map(|y| if is_leap(y) { 366 } else { 365 }).sum::<i64>();
        let leap_day = days(2028) + 31 + 28;
        assert_eq!(month_of(leap_day * DAY).map(|(month, _)| month), Some(58 * 12 + 1));
        assert_eq!(month_of((leap_day + 1) * DAY), Some((58 * 12 + 2, 0.0)));
        assert_eq!(month_of(NOVEMBER_US), Some((56 * 12 + 10, 0.0)));
        assert_eq!(month_of(-1), None);
        assert_eq!(month_of(i64::MAX), None);
    }

    proptest! {
        #[test]
        fn nothing_is_allowed_beyond_the_month(steps in prop::collection::vec((0u64..50_000, 0i64..40), 1..100)) {
            let mut budget = budget();
            let mut now_us = NOVEMBER_US;
            let mut used = 0;
            for (bytes, hours) in steps {
                now_us += hours * 3_600_000_000;
                let months = budget.counters().months;
                budget.clock(Some(now_us));
                if budget.counters().months != months {
                    used = 0;
                }
                let spent = bytes.min(budget.allowance().others_bytes);
                budget.spend(spent);
                used += spent;
                prop_assert!(used <= 900_000);
                prop_assert!(budget.allowance().others_bytes <= budget.allowance().critical_bytes);
            }
        }
    }
}
