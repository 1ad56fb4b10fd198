//! Service time, which only goes forward, and wall time, which may be nonsense.
//!
//! A box without a battery wakes up in 1970, or at the time of its last shutdown, and jumps when it
//! finds a time server. So ages and timeouts count on `CLOCK_BOOTTIME` (which also runs while the box
//! sleeps) plus what earlier runs have counted. Within one boot the time between two runs is known and
//! counted; over a reboot nobody can know it, and it counts as not elapsed.

use rustix::time::{ClockId, clock_gettime};

/// A wall clock earlier than this has not been set. 2026-01-01T00:00:00Z; source: older than any release.
pub const WALL_FLOOR_US: u64 = 1_767_225_600_000_000;

/// What a run writes down so that the next one can go on counting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockMark {
    /// Service time when the mark was made, in microseconds.
    pub service_us: u64,
    /// `CLOCK_BOOTTIME` when the mark was made, in microseconds.
    pub boottime_us: u64,
    /// The kernel's id of that boot; empty if it has none.
    pub boot_id: String,
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
    boot_id: String,
    wall_floor_us: u64,
}

impl Clock {
    /// Starts from zero, or goes on from the mark of an earlier run.
    pub fn start(earlier: Option<&ClockMark>) -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot_id = boot_id.map(|id| id.trim().to_owned()).unwrap_or_default();
        Self::start_at(earlier, boottime_us(), boot_id)
    }

    fn start_at(earlier: Option<&ClockMark>, boottime_us: u64, boot_id: String) -> Self {
        let service_us_at_start = earlier.map_or(0, |mark| {
            let is_same_boot = !boot_id.is_empty() && mark.boot_id == boot_id;
            let away_us = boottime_us.saturating_sub(mark.boottime_us);
            mark.service_us.saturating_add(if is_same_boot { away_us } else { 0 })
        });
        Self { service_us_at_start, boottime_us_at_start: boottime_us, boot_id, wall_floor_us: WALL_FLOOR_US }
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

    /// What the next run needs to go on counting from now.
    pub fn mark(&self) -> ClockMark {
        ClockMark { service_us: self.now_us(), boottime_us: boottime_us(), boot_id: self.boot_id.clone() }
    }
}

/// Microseconds since 1970 by the wall clock; 0 if it is set before that.
pub fn unix_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
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

    fn mark(boot_id: &str) -> ClockMark {
        ClockMark { service_us: 1_000, boottime_us: 500, boot_id: boot_id.to_owned() }
    }

    #[test]
    fn time_goes_forward() {
        let clock = Clock::start(None);
        let first = clock.now_us();
        assert!(clock.now_us() >= first && first < 10_000_000);
    }

    #[test]
    fn a_restart_within_one_boot_counts_the_time_away() {
        let clock = Clock::start_at(Some(&mark("a")), 2_500, "a".to_owned());
        assert_eq!(clock.service_us_at_start, 3_000);
    }

    #[test]
    fn a_reboot_counts_as_no_time() {
        for id in ["b", ""] {
            let clock = Clock::start_at(Some(&mark("a")), 2_500, id.to_owned());
            assert_eq!(clock.service_us_at_start, 1_000);
        }
        let clock = Clock::start_at(Some(&mark("")), 2_500, String::new());
        assert_eq!(clock.service_us_at_start, 1_000, "no boot id proves nothing");
    }

    #[test]
    fn a_mark_carries_the_service_time_over() {
        let clock = Clock::start_at(Some(&mark("b")), boottime_us(), "a".to_owned());
        let mark = clock.mark();
        assert!(mark.service_us >= 1_000);
        let next = Clock::start_at(Some(&mark), boottime_us(), "a".to_owned());
        assert!(next.now_us() >= mark.service_us);
    }

    #[test]
    fn a_wall_clock_below_the_floor_is_not_trusted() {
        let clock = Clock::start(None);
        assert!(clock.wall().trusted, "this machine's clock is set");
        let clock = clock.with_wall_floor_us(u64::MAX);
        assert!(!clock.wall().trusted);
    }
}
