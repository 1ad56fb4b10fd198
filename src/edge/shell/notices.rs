//! What is said of things that may happen a thousand times a minute: the first of them, and how many were not said.

/// Notices of one kind that are written in a minute.
const COUNT_A_MINUTE: u32 = 10;
const MINUTE_US: u64 = 60_000_000;

/// Notices of one kind.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    /// When the first of this minute was written.
    since_us: u64,
    said: u32,
    unsaid: u64,
}

impl Notices {
    /// Whether one more is to be written now; if so, how many were not since the last that was.
    pub(crate) fn take(&mut self, now_us: u64) -> Option<u64> {
        if self.said == 0 || now_us >= self.since_us + MINUTE_US {
            (self.since_us, self.said) = (now_us, 0);
        }
        if self.said == COUNT_A_MINUTE {
            self.unsaid += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// Failures of one thing that follow each other: said at the first, and when it has worked for a while.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    count: u64,
    last_us: u64,
}

/// A thing that fails now and then has not recovered in between.
const WORKED_US: u64 = 10_000_000;

impl Failures {
    /// It failed; true if that is news.
    pub(crate) fn failed(&mut self, now_us: u64) -> bool {
        (self.count, self.last_us) = (self.count + 1, now_us);
        self.count == 1
    }

    /// It worked; if that is news, how often it had failed.
    pub(crate) fn worked(&mut self, now_us: u64) -> Option<u64> {
        let recovered = self.count > 0 && now_us >= self.last_us + WORKED_US;
        recovered.then(|| std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_said_ten_times_a_minute_and_the_rest_is_counted() {
        let mut notices = Notices::default();
        let mut said = Vec::new();
        for at in 0..240 {
            said.extend(notices.take(at * 500_000).map(|unsaid| (at / 120, unsaid)));
        }
        assert_eq!((said.len(), said[0], said[9]), (20, (0, 0), (0, 0)));
        assert_eq!((said[10], said[11]), ((1, 110), (1, 0)));
        assert_eq!(notices.take(600_000_000), Some(110), "however long ago");
    }

    #[test]
    fn what_fails_now_and_then_is_said_once_and_counted() {
        let mut failures = Failures::default();
        assert_eq!(failures.worked(0), None, "it always has");
        let said = (1..=100).filter(|second| {
            let said = failures.failed(second * 1_000_000);
            assert_eq!(failures.worked(second * 1_000_000 + 500_000), None);
            said
        });
        assert_eq!(said.count(), 1);
        assert_eq!(failures.worked(110_000_000), Some(100));
        assert_eq!(failures.worked(111_000_000), None);
        assert!(failures.failed(112_000_000), "a new streak");
    }
}
