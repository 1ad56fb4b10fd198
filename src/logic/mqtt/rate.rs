//! A token bucket that a message may overdraw: it passes while the level is positive and pays in full.
//!
//! So a message larger than the burst passes too, and the average still holds. The burst is one second's worth.

/// Millionths of a token, so that whole microseconds refill whole numbers.
const TOKEN: i64 = 1_000_000;

/// One bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenBucket {
    rate_per_s: u32,
    /// In millionths; negative is debt.
    level: i64,
    filled_us: u64,
}

impl TokenBucket {
    /// `None` for a rate of 0, which means no limit.
    pub(super) fn new(rate_per_s: u32, now_us: u64) -> Option<TokenBucket> {
        (rate_per_s > 0).then_some(TokenBucket { rate_per_s, level: i64::from(rate_per_s) * TOKEN, filled_us: now_us })
    }

    /// Adds what the time since the last call is worth.
    pub(super) fn fill(&mut self, now_us: u64) {
        // Longer than any debt takes to pay (at most one packet of 256 MiB at 1 byte/s), short enough not to overflow.
        let elapsed_us = now_us.saturating_sub(self.filled_us).min(1 << 50);
        self.filled_us = self.filled_us.max(now_us);
        let level = i128::from(self.level) + i128::from(elapsed_us) * i128::from(self.rate_per_s);
        let burst = i64::from(self.rate_per_s) * TOKEN;
        self.level = i64::try_from(level).unwrap_or(burst).min(burst);
    }

    /// Pays for a message.
    pub(super) fn take(&mut self, tokens: u32) {
        self.level -= i64::from(tokens) * TOKEN;
    }

    /// When the level is positive again, microseconds; `None` if it is now.
    pub(super) fn ready_us(&self) -> Option<u64> {
        (self.level <= 0).then(|| self.filled_us.saturating_add(self.level.unsigned_abs() / u64::from(self.rate_per_s) + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_keeps_its_average_and_lets_large_messages_through() {
        let mut bucket = TokenBucket::new(100, 5_000).expect("limited");
        let (mut now_us, mut taken) = (5_000, 0_u64);
        while now_us < 60_000_000 {
            match bucket.ready_us() {
                Some(ready_us) => now_us = ready_us,
                None => {
                    bucket.take(250);
                    taken += 250;
                }
            }
            bucket.fill(now_us);
        }
        // 100 a second for a minute, plus the burst and one overdraft.
        assert!((5_900..=6_350).contains(&taken), "{taken}");
    }

    #[test]
    fn rate_zero_is_no_limit_and_a_clock_that_stands_still_refills_nothing() {
        assert!(TokenBucket::new(0, 0).is_none());
        let mut bucket = TokenBucket::new(1, 9).expect("limited");
        bucket.take(1);
        bucket.fill(9);
        bucket.fill(3);
        assert_eq!(bucket.ready_us(), Some(10));
        bucket.fill(10);
        assert_eq!(bucket.ready_us(), None);
        bucket.fill(u64::MAX);
        bucket.take(1);
        assert!(bucket.ready_us().is_some());
    }
}
