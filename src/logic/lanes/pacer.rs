//! When to commit: group commit by bytes, by time, and by what the senders do.
//!
//! A commit of one small record costs about [`COMMIT_OVERHEAD_BYTES`] of flash whatever is in it, so the fewer the better;
//! but a sender that waits for its PUBACK before it sends the next message is only as fast as we commit. The rules:
//!
//! - enough raw bytes wait to pay for the overhead: commit now, but at most every [`INTERVAL_MIN_US`];
//! - otherwise wait until the first record is [`INTERVAL_MAX_US`] old (critical: [`INTERVAL_CRITICAL_US`]);
//! - but when a burst has ended (silence of 8 times its mean gap), its senders probably wait for us: commit now;
//! - and when single messages keep arriving right after our acknowledgements, their sender waits for each: commit now.
//!
//! The last two are guesses that could cost flash for ever, so they draw on a budget of bytes a day; without budget left
//! the interval decides alone. An open-loop sender at any steady rate triggers neither.

use crate::ids::Class;

/// Flash written by a small redb commit beyond its payload; measured, see `edge::store`.
pub const COMMIT_OVERHEAD_BYTES: u64 = 36 * 1024;
/// Raw bytes that pay for a commit: compressed about 4 to 1 they equal the overhead.
const BYTES_DUE: usize = 4 * COMMIT_OVERHEAD_BYTES as usize;
/// Never commit more often than this.
const INTERVAL_MIN_US: u64 = 10_000;
/// No record waits longer than this for its commit to begin.
const INTERVAL_MAX_US: u64 = 1_000_000;
/// The same for `critical`.
const INTERVAL_CRITICAL_US: u64 = 250_000;
/// Shortest silence that ends a burst: with less, a busy scheduler makes bursts of a steady stream of 2,000 messages/s.
const SILENCE_MIN_US: u64 = 20_000;
/// Silence of so many mean gaps ends a burst; a Poisson stream pauses so long once in e^8 = 3,000 messages.
const SILENCE_GAPS: u64 = 8;
/// Records of which the mean gap says something.
const BURST_RECORDS: u64 = 4;
/// An arrival this soon after an acknowledgement counts as its echo: LAN round trip and a slow client.
const ECHO_US: u64 = 20_000;
/// So many echoes in a row make a closed loop.
const ECHOES: u32 = 3;

/// Decides the time of the next commit. Microseconds of service time throughout.
#[derive(Debug)]
pub(super) struct Pacer {
    records: u64,
    bytes: usize,
    first_us: u64,
    last_us: u64,
    critical: bool,
    committed_us: u64,
    /// Arrivals right after an acknowledgement, in a row.
    echoes: u32,
    /// True if the last commit was of fewer records than a burst has.
    was_single: bool,
    /// True until the first arrival after a commit was seen.
    awaiting_echo: bool,
    budget: Budget,
}

/// Bytes of flash that early commits may use.
#[derive(Debug)]
struct Budget {
    bytes_per_day: u64,
    bytes: u64,
    filled_us: u64,
}

impl Pacer {
    /// `early_bytes_per_day` is what early commits may write a day; a tenth of it may be used at once.
    pub(super) fn new(now_us: u64, early_bytes_per_day: u64) -> Self {
        Pacer {
            records: 0,
            bytes: 0,
            first_us: 0,
            last_us: 0,
            critical: false,
            committed_us: now_us,
            echoes: 0,
            was_single: false,
            awaiting_echo: false,
            budget: Budget { bytes_per_day: early_bytes_per_day, bytes: early_bytes_per_day / 10, filled_us: now_us },
        }
    }

    /// A record of `len` raw bytes waits for a commit.
    pub(super) fn record(&mut self, now_us: u64, class: Class, len: usize) {
        if self.awaiting_echo {
            self.awaiting_echo = false;
            let echo = now_us > self.committed_us && now_us - self.committed_us <= ECHO_US;
            self.echoes = if echo { self.echoes.saturating_add(1) } else { 0 };
        }
        if self.records == 0 {
            self.first_us = now_us;
        }
        self.last_us = now_us;
        self.records += 1;
        self.bytes += len;
        self.critical |= class == Class::Critical;
    }

    /// Something older must be written with the next commit, which is due at `at_us` at the latest.
    pub(super) fn due_by(&mut self, at_us: u64) {
        let first_us = at_us.saturating_sub(INTERVAL_MAX_US);
        if self.records == 0 {
            (self.first_us, self.last_us) = (first_us, at_us);
        }
        self.first_us = self.first_us.min(first_us);
        self.records += 1;
    }

    /// When the next commit is due; `None` if nothing waits.
    pub(super) fn due_us(&self) -> Option<u64> {
        if self.records == 0 {
            return None;
        }
        let earliest = self.committed_us + INTERVAL_MIN_US;
        if self.bytes >= BYTES_DUE {
            return Some(earliest);
        }
        let interval = if self.critical { INTERVAL_CRITICAL_US } else { INTERVAL_MAX_US };
        let latest = self.first_us + interval;
        let due = self.early_us().map_or(latest, |early| early.min(latest));
        Some(due.max(earliest))
    }

    /// When the senders may be taken to wait for us, if the budget allows to care.
    fn early_us(&self) -> Option<u64> {
        if self.budget.bytes < COMMIT_OVERHEAD_BYTES {
            return None;
        }
        if self.records >= BURST_RECORDS {
            let gap = (self.last_us - self.first_us) / (self.records - 1);
            return Some(self.last_us + (SILENCE_GAPS * gap).max(SILENCE_MIN_US));
        }
        (self.echoes >= ECHOES).then(|| self.last_us + SILENCE_MIN_US)
    }

    /// Bytes that early commits may write now.
    pub(super) fn early_bytes(&self) -> u64 {
        self.budget.bytes
    }

    /// A commit of everything that waits begins.
    pub(super) fn begin(&mut self, now_us: u64) {
        let early = self.bytes < BYTES_DUE && self.records > 0 && now_us < self.first_us + INTERVAL_CRITICAL_US;
        self.budget.refill(now_us);
        if early {
            self.budget.bytes = self.budget.bytes.saturating_sub(COMMIT_OVERHEAD_BYTES + self.bytes as u64 / 4);
        }
        self.was_single = self.records < BURST_RECORDS;
        (self.records, self.bytes, self.critical) = (0, 0, false);
        self.committed_us = now_us;
    }

    /// The commit ended and its acknowledgements go out now.
    pub(super) fn acknowledged(&mut self, now_us: u64) {
        self.committed_us = now_us;
        // With records waiting already, the next arrival says nothing.
        self.awaiting_echo = self.records == 0 && self.was_single;
    }
}

impl Budget {
    fn refill(&mut self, now_us: u64) {
        const DAY_US: u128 = 86_400_000_000;
        let elapsed = u128::from(now_us.saturating_sub(self.filled_us));
        let bytes = (elapsed * u128::from(self.bytes_per_day) / DAY_US) as u64;
        if bytes > 0 {
            self.bytes = self.bytes.saturating_add(bytes).min(self.bytes_per_day / 10);
            self.filled_us = now_us;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Plays arrivals (time, bytes) against the pacer with commits that take 5 ms; returns the times of the commits.
    fn play(pacer: &mut Pacer, arrivals: impl Iterator<Item = u64>, bytes: usize) -> Vec<u64> {
        let mut commits = Vec::new();
        for at in arrivals {
            while let Some(due) = pacer.due_us().filter(|&due| due <= at) {
                pacer.begin(due);
                pacer.acknowledged(due + 5_000);
                commits.push(due);
            }
            pacer.record(at, Class::Normal, bytes);
        }
        commits
    }

    #[test]
    fn steady_streams_commit_about_once_a_second() {
        for rate in [1, 10, 100] {
            let mut pacer = Pacer::new(0, 20 << 30);
            let commits = play(&mut pacer, (1..rate * 100).map(|i| i * SECOND / rate + (i * 7919) % 1000), 200);
            assert!((45..=101).contains(&commits.len()), "{} commits in 100 s at {rate}/s", commits.len());
        }
    }

    #[test]
    fn a_fast_stream_commits_when_the_overhead_is_paid() {
        let mut pacer = Pacer::new(0, 0);
        let commits = play(&mut pacer, (0..200_000).map(|i| i * 10), 200);
        assert!((100..=210).contains(&commits.len()), "{} commits in 2 s at 100,000/s", commits.len());
    }

    #[test]
    fn a_burst_is_committed_when_it_ends() {
        let mut pacer = Pacer::new(0, 20 << 30);
        for i in 0..80 {
            pacer.record(SECOND + i * 10, Class::Normal, 200);
        }
        assert_eq!(pacer.due_us(), Some(SECOND + 790 + SILENCE_MIN_US));
    }

    #[test]
    fn a_sender_that_waits_for_each_puback_is_noticed_and_the_budget_ends_it() {
        let mut pacer = Pacer::new(0, 100 * COMMIT_OVERHEAD_BYTES * 10);
        let (mut now, mut count) = (SECOND, 0);
        while now < 60 * SECOND {
            pacer.record(now, Class::Normal, 200);
            let due = pacer.due_us().expect("a record waits");
            pacer.begin(due);
            pacer.acknowledged(due + 5_000);
            count += 1;
            now = due + 6_000;
        }
        // 100 early commits of about 20 ms, and the rest of the minute at one a second.
        assert!((130..190).contains(&count), "{count} messages in a minute");
    }

    /// Flash of commits of a few records each, as `weir-bench outage --eager` measures it; they are charged with more.
    fn flash_bytes(commits: usize, records: u64, bytes: u64) -> u64 {
        commits as u64 * 29_000 + records * bytes / 4
    }

    #[test]
    fn eager_senders_stay_within_the_flash_of_a_day_with_the_default_allowance() {
        const ALLOWANCE: u64 = 2 << 30;
        const DAY_S: u64 = 86_400;
        // Ten devices that are polled at the same time, ten times a second.
        let mut pacer = Pacer::new(0, ALLOWANCE);
        let polled = (0..DAY_S * 10).flat_map(|poll| (0..10).map(move |device| SECOND + poll * 100_000 + device * 50));
        let flash = flash_bytes(play(&mut pacer, polled, 200).len(), DAY_S * 100, 200);
        assert!(flash < 5_000_000_000, "{flash} bytes of flash a day");
        // One that waits for each PUBACK.
        let (mut pacer, mut now, mut records) = (Pacer::new(0, ALLOWANCE), SECOND, 0);
        while now < DAY_S * SECOND {
            pacer.record(now, Class::Normal, 200);
            let due = pacer.due_us().expect("a record waits");
            pacer.begin(due);
            pacer.acknowledged(due + 5_000);
            (now, records) = (due + 6_000, records + 1);
        }
        let flash = flash_bytes(records, records as u64, 200);
        assert!(flash < 5_000_000_000, "{flash} bytes of flash a day");
    }

    #[test]
    fn critical_waits_a_quarter_of_a_second() {
        let mut pacer = Pacer::new(0, 0);
        pacer.record(SECOND, Class::Critical, 10);
        assert_eq!(pacer.due_us(), Some(SECOND + INTERVAL_CRITICAL_US));
    }
}
