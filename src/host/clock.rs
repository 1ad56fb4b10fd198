//! Service time, which only goes forward, and wall time, which may be nonsense.
//!
//! A box without a battery wakes up in 1970, or at the time of its last shutdown, and jumps when it
//! finds a time server. So ages and timeouts count on `CLOCK_BOOTTIME` (which also runs while the box
//! sleeps) plus what earlier runs have counted. Within one boot the time between two runs is known and
//! counted; over a reboot nobody can know it, and it counts as not elapsed.
//!
//! A wall clock that is behind what it once said is not trusted. One that was wrongly ahead, over a
//! restart, would have all later ones distrusted: records then carry service time, and the cloud
//! estimates when they were. So what it said counts only up to a time that cannot have come yet:
//! the end of the own certificate, or without one [`WALL_CEILING_US`]. See [`wall_floor_us`].

use rustix::time::{ClockId, clock_gettime};

/// A wall clock earlier than this has not been set. 2026-01-01T00:00:00Z; source: older than any release.
pub const WALL_FLOOR_US: u64 = 1_767_225_600_000_000;

/// Without a certificate, the latest that a wall clock can have been right. 30 years of service after the floor.
pub const WALL_CEILING_US: u64 = WALL_FLOOR_US + 30 * 366 * 86_400 * 1_000_000;
/// A clock that is so little behind what it said before was only corrected.
const WALL_CORRECTION_US: u64 = 3_600_000_000;

/// A moment of one boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootTime {
    /// Half of the kernel's random id of that boot.
    pub id: u64,
    /// `CLOCK_BOOTTIME` in microseconds.
    pub us: u64,
}

/// What a run writes down so that the next one can go on counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockMark {
    /// Service time when the mark was made, in microseconds.
    pub service_us: u64,
    /// The same moment in its boot; `None` if the kernel tells no id.
    pub boot: Option<BootTime>,
}

/// Below which time a wall clock cannot be right: `seen_us` is the last that was trusted, `issued_us` and `expires_us` are the
/// own certificate's life; all in microseconds since 1970.
pub fn wall_floor_us(seen_us: Option<i64>, issued_us: u64, expires_us: u64) -> u64 {
    let seen_us = seen_us.and_then(|seen_us| u64::try_from(seen_us).ok());
    // It said so wrongly if that was beyond the end of our certificate.
    let seen_us = seen_us.filter(|&seen_us| seen_us <= expires_us).unwrap_or(0);
    seen_us.saturating_sub(WALL_CORRECTION_US).max(issued_us)
}

/// Wall time and whether to trust it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wall {
    /// Microseconds since 1970-01-01T00:00:00Z; 0 if the clock is set before that.
    pub unix_us: u64,
    /// False if the clock is set earlier than it can possibly be.
    pub trusted: bool,
}

/// The clock of a service: microseconds of its life, over all its runs.
#[derive(Debug, Clone)]
pub struct Clock {
    service_us_at_start: u64,
    boottime_us_at_start: u64,
    boot_id: Option<u64>,
    wall_floor_us: u64,
}

impl Clock {
    /// Starts from zero, or goes on from the mark of an earlier run.
    pub fn start(earlier: Option<&ClockMark>) -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        Self::start_at(earlier, boottime_us(), boot_id.as_deref().and_then(parse_boot_id))
    }

    fn start_at(earlier: Option<&ClockMark>, boottime_us: u64, boot_id: Option<u64>) -> Self {
        let service_us_at_start = earlier.map_or(0, |mark| {
            let this_boot = mark.boot.filter(|boot| Some(boot.id) == boot_id);
            let away_us = this_boot.map_or(0, |boot| boottime_us.saturating_sub(boot.us));
            mark.service_us.saturating_add(away_us)
        });
        Self { service_us_at_start, boottime_us_at_start: boottime_us, boot_id, wall_floor_us: WALL_FLOOR_US }
    }

    /// Goes on from this service time at the least.
    pub fn with_service_floor_us(mut self, floor_us: u64) -> Self {
        self.service_us_at_start = self.service_us_at_start.max(floor_us);
        self
    }

    /// Raises the floor below which the wall clock is not trusted, in microseconds since 1970.
    pub fn with_wall_floor_us(mut self, floor_us: u64) -> Self {
        self.wall_floor_us = self.wall_floor_us.max(floor_us);
        self
    }

    /// Service time in microseconds; never goes back.
    pub fn now_us(&self) -> u64 {
        self.service_us_at_start.saturating_add(boottime_us().saturating_sub(self.boottime_us_at_start))
    }

    /// Wall time now.
    pub fn wall(&self) -> Wall {
        let unix_us = unix_us();
        Wall { unix_us, trusted: unix_us >= self.wall_floor_us }
    }

    /// What the next run needs to go on counting from a service time of this run.
    pub fn mark(&self, service_us: u64) -> ClockMark {
        let run_us = service_us.saturating_sub(self.service_us_at_start);
        let boot = self.boot_id.map(|id| BootTime { id, us: self.boottime_us_at_start.saturating_add(run_us) });
        ClockMark { service_us, boot }
    }
}

/// Microseconds since 1970 by the wall clock; 0 if it is set before that.
pub fn unix_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// The first half of a UUID.
fn parse_boot_id(text: &str) -> Option<u64> {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    (digits.len() == 16).then(|| u64::from_str_radix(&digits, 16).ok()).flatten()
}

fn boottime_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(nanoseconds / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(id: Option<u64>) -> ClockMark {
        ClockMark { service_us: 1_000, boot: id.map(|id| BootTime { id, us: 500 }) }
    }

    #[test]
    fn time_goes_forward() {
        let clock = Clock::start(None);
        let first = clock.now_us();
        assert!(clock.now_us() >= first && first < 10_000_000);
    }

    #[test]
    fn a_restart_within_one_boot_counts_the_time_away() {
        let clock = Clock::start_at(Some(&mark(Some(7))), 2_500, Some(7));
        assert_eq!(clock.service_us_at_start, 3_000);
        assert_eq!(clock.with_service_floor_us(2_000).service_us_at_start, 3_000);
    }

    #[test]
    fn a_reboot_counts_as_no_time() {
        for (before, now) in [(Some(7), Some(8)), (Some(7), None), (None, Some(7)), (None, None)] {
            let clock = Clock::start_at(Some(&mark(before)), 2_500, now);
            assert_eq!(clock.service_us_at_start, 1_000, "{before:?} {now:?}: no boot id proves nothing");
            assert_eq!(clock.with_service_floor_us(1_500).service_us_at_start, 1_500);
        }
    }

    #[test]
    fn a_mark_carries_the_service_time_over() {
        let clock = Clock::start(Some(&mark(Some(7))));
        let mark = clock.mark(clock.now_us());
        assert!(mark.service_us >= 1_000);
        assert!(mark.boot.is_some(), "Linux tells its boot id");
        let next = Clock::start(Some(&mark));
        assert!(next.now_us() >= mark.service_us && next.now_us() < mark.service_us + 10_000_000);
    }

    #[test]
    fn a_boot_id_is_half_a_uuid_or_nothing() {
        assert_eq!(parse_boot_id("0123abcd-4567-89ef-0000-111122223333\n"), Some(0x0123_abcd_4567_89ef));
        for text in ["", "0123abcd", "no id"] {
            assert_eq!(parse_boot_id(text), None, "{text}");
        }
    }

    #[test]
    fn a_wall_clock_that_was_wrongly_ahead_counts_only_up_to_what_can_have_come() {
        let day_us = 86_400_000_000;
        let (issued_us, expires_us) = (WALL_FLOOR_US, WALL_FLOOR_US + 365 * day_us);
        let seen = |days: u64| Some((WALL_FLOOR_US + days * day_us) as i64);
        let floor = |days| wall_floor_us(seen(days), issued_us, expires_us);
        assert_eq!(floor(100), WALL_FLOOR_US + 100 * day_us - WALL_CORRECTION_US, "an hour of correction is allowed");
        assert_eq!(floor(0), issued_us, "never before the certificate");
        assert_eq!(floor(366), issued_us, "it was wrong: our certificate is not over yet");
        // Within the certificate's life it is believed: until then later clocks are not, and records carry service time.
        assert!(floor(364) > WALL_FLOOR_US + 363 * day_us);
        // Without a certificate only what no box lives to see is known to be wrong.
        assert_eq!(wall_floor_us(seen(50 * 366), 0, WALL_CEILING_US), 0);
        assert!(wall_floor_us(seen(20 * 366), 0, WALL_CEILING_US) > WALL_FLOOR_US);
        assert_eq!(wall_floor_us(Some(-1), 0, WALL_CEILING_US), 0);
        assert_eq!(wall_floor_us(None, 5, WALL_CEILING_US), 5);
    }

    #[test]
    fn a_wall_clock_below_the_floor_is_not_trusted() {
        let clock = Clock::start(None);
        assert!(clock.wall().trusted, "this machine's clock is set");
        let clock = clock.with_wall_floor_us(u64::MAX);
        assert!(!clock.wall().trusted);
    }
}
