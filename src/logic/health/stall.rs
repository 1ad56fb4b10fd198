//! Does data pass, or only small talk?
//!
//! A middlebox that blocks or throttles QUIC often lets the handshake pass, and a tunnel with a small MTU lets pings pass.
//! Such a link answers and is useless; only goodput tells. The suspicion is simple: bytes are under way and none was
//! acknowledged for a while. What it takes to convict is evidence that it is the link and not a cloud slow to commit:
//!
//! - words came in the meantime and most of what was sent was lost: small packets pass, large ones do not; or
//! - the handshake passed and then nothing ever did: on this connection for the whole time, or on two in a row.
//!
//! A verdict stands until data is acknowledged, also over a new connection: that handshakes pass is known already.

/// What else is known when a stall is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StallEvidence {
    /// Round trip in microseconds.
    pub rtt_us: u64,
    /// Time that the bytes under way should take at the rate known, in microseconds.
    pub drain_us: u64,
    /// Service time of the last word of any kind, in microseconds.
    pub heard_us: u64,
    /// The link owes a word for too long.
    pub silent: bool,
}

/// Watches whether data is acknowledged on one transport of an uplink.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StallDetector {
    under_way_bytes: u64,
    since_us: Option<u64>,
    packets_sent: u64,
    packets_lost: u64,
    /// What became of this connection.
    tried: bool,
    delivered: bool,
    /// Connections in a row that passed the handshake, were given data and delivered none.
    barren: u32,
    blocked: bool,
}

impl StallDetector {
    /// A new connection passed its handshake.
    pub fn connected(&mut self) {
        (self.under_way_bytes, self.since_us) = (0, None);
        (self.tried, self.delivered) = (false, false);
    }

    /// The connection ended; `silent` if it owed a word for too long.
    pub fn closed(&mut self, silent: bool) {
        if self.tried && !self.delivered && silent {
            self.barren = self.barren.saturating_add(1);
            self.blocked |= self.barren >= BARREN_MAX;
        }
        (self.under_way_bytes, self.since_us) = (0, None);
        (self.tried, self.delivered) = (false, false);
    }

    /// So many bytes are now with the transport and not acknowledged.
    pub fn under_way(&mut self, now_us: u64, bytes: u64) {
        self.under_way_bytes = bytes;
        if bytes == 0 {
            self.since_us = None;
        } else if self.since_us.is_none() {
            self.begin(now_us);
        }
    }

    /// Data was acknowledged: data passes.
    pub fn acked(&mut self, now_us: u64) {
        (self.delivered, self.barren, self.blocked) = (true, 0, false);
        if self.since_us.is_some() {
            self.begin(now_us);
        }
    }

    /// Packets that the transport sent, and found lost, since the last call.
    pub fn packets(&mut self, sent: u64, lost: u64) {
        self.packets_sent = self.packets_sent.saturating_add(sent);
        self.packets_lost = self.packets_lost.saturating_add(lost);
    }

    /// For how long bytes were under way and none acknowledged, in microseconds.
    pub fn stalled_us(&self, now_us: u64) -> u64 {
        self.since_us.map_or(0, |since_us| now_us.saturating_sub(since_us))
    }

    /// Bytes under way.
    pub fn under_way_bytes(&self) -> u64 {
        self.under_way_bytes
    }

    /// How long a stall may last, in microseconds.
    pub fn allowed_us(rtt_us: u64, drain_us: u64) -> u64 {
        let slow_us = drain_us.saturating_mul(DRAINS_ALLOWED).min(DRAIN_US_MAX);
        rtt_us.saturating_mul(RTTS_ALLOWED).max(slow_us).max(STALL_US_MIN)
    }

    /// When the present stall has lasted for too long, in microseconds of service time; `None` if nothing is under way.
    pub fn deadline_us(&self, rtt_us: u64, drain_us: u64) -> Option<u64> {
        self.since_us.map(|since_us| since_us.saturating_add(Self::allowed_us(rtt_us, drain_us)))
    }

    /// True once data is known not to pass.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Judges the present stall; the verdict stands until data is acknowledged.
    pub fn judge(&mut self, now_us: u64, evidence: &StallEvidence) -> bool {
        let Some(since_us) = self.since_us else { return self.blocked };
        if self.stalled_us(now_us) >= Self::allowed_us(evidence.rtt_us, evidence.drain_us) {
            let words_came = evidence.heard_us >= since_us.saturating_add(STALL_US_MIN / 2);
            let data_lost =
                self.packets_lost >= LOST_MIN && self.packets_lost.saturating_mul(LOST_SHARE_MIN) >= self.packets_sent;
            let never_passed = !self.delivered && evidence.silent;
            self.blocked |= (words_came && data_lost) || never_passed;
        }
        self.blocked
    }

    fn begin(&mut self, now_us: u64) {
        self.since_us = Some(now_us);
        (self.packets_sent, self.packets_lost) = (0, 0);
        self.tried = true;
    }
}

/// A blocked transport is to be found within 3 s; half a second of it is for whoever looks at the clock now and then.
const STALL_US_MIN: u64 = 2_500_000;
/// As for silence: five round trips without an acknowledgement are no chance.
const RTTS_ALLOWED: u64 = 5;
/// A slow link needs the time of what is under way, and as much again for what the estimate is wrong by.
const DRAINS_ALLOWED: u64 = 2;
/// No link is so slow that half a minute without one acknowledgement is fine: QUIC's idle timeout.
const DRAIN_US_MAX: u64 = 30_000_000;
/// Fewer lost packets happen on any radio.
const LOST_MIN: u64 = 3;
/// One packet of three: what is sent during a stall is half retransmissions, half pings and acknowledgements.
const LOST_SHARE_MIN: u64 = 3;
/// Once is a cut right after a handshake; twice is a pattern.
const BARREN_MAX: u32 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WELL: StallEvidence = StallEvidence { rtt_us: 50_000, drain_us: 100_000, heard_us: 0, silent: false };

    fn under_way_since_zero() -> StallDetector {
        let mut stall = StallDetector::default();
        stall.connected();
        stall.under_way(0, 30_000);
        stall.acked(0);
        stall
    }

    #[test]
    fn small_talk_that_passes_while_data_is_lost_is_a_block_within_three_seconds() {
        let mut stall = under_way_since_zero();
        stall.packets(30, 14);
        let talks = StallEvidence { heard_us: 2_400_000, ..WELL };
        assert!(!stall.judge(2_499_999, &talks));
        assert!(stall.judge(2_500_000, &talks));
        stall.closed(false);
        stall.connected();
        stall.under_way(9_000_000, 1_000);
        assert!(stall.judge(9_000_001, &WELL), "a handshake alone proves nothing");
        stall.acked(9_100_000);
        assert!(!stall.judge(9_100_000, &WELL));
    }

    #[test]
    fn a_cloud_that_is_slow_to_commit_is_not_a_block() {
        let mut stall = under_way_since_zero();
        stall.packets(40, 1);
        assert!(!stall.judge(60_000_000, &StallEvidence { heard_us: 59_900_000, ..WELL }));
    }

    #[test]
    fn a_plain_cut_is_silence_and_not_a_block() {
        let mut stall = under_way_since_zero();
        stall.packets(40, 20);
        assert!(!stall.judge(60_000_000, &StallEvidence { heard_us: 60_000, silent: true, ..WELL }));
        stall.closed(true);
        assert!(!stall.is_blocked());
    }

    #[test]
    fn handshakes_that_pass_and_nothing_after_them_are_a_block() {
        let silent = StallEvidence { silent: true, ..WELL };
        let mut stall = StallDetector::default();
        stall.connected();
        stall.under_way(0, 30_000);
        assert!(stall.judge(2_500_000, &silent), "all the time of one connection");
        let mut stall = StallDetector::default();
        for blocked in [false, true] {
            stall.connected();
            stall.under_way(0, 30_000);
            assert!(!stall.judge(1_500_000, &silent));
            stall.closed(true);
            assert_eq!(stall.is_blocked(), blocked, "two short connections");
        }
    }

    #[test]
    fn a_slow_link_gets_the_time_that_its_data_needs() {
        assert_eq!(StallDetector::allowed_us(50_000, 100_000), 2_500_000);
        assert_eq!(StallDetector::allowed_us(2_000_000, 0), 10_000_000);
        assert_eq!(StallDetector::allowed_us(50_000, 5_000_000), 10_000_000);
        assert_eq!(StallDetector::allowed_us(50_000, u64::MAX), 30_000_000);
    }

    proptest! {
        #[test]
        fn whoever_gets_data_acknowledged_in_time_is_never_blocked(steps in proptest::collection::vec((1u64..2_499_999, 0u64..100), 1..100), silent: bool) {
            let mut stall = StallDetector::default();
            stall.connected();
            let mut now_us = 0;
            stall.under_way(now_us, 10_000);
            for (step_us, lost) in steps {
                now_us += step_us;
                stall.packets(lost, lost);
                let evidence = StallEvidence { heard_us: now_us, silent, ..WELL };
                prop_assert!(!stall.judge(now_us, &evidence));
                stall.acked(now_us);
            }
        }
    }
}
