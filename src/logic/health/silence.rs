//! Is anybody still there?
//!
//! Somebody who calls every Sunday is missed on Monday; somebody who writes once a year is not. A link is judged by the
//! longest pauses it made lately *while it was spoken to*: as acknowledgements come every 200 ms, a second of nothing is
//! news, whether the round trip through a full queue takes 50 ms or five seconds. A mean and a deviation (as phi detectors
//! keep them) would be as good on regular traffic, but acknowledgements are bursty, and what tells a burst's end from a cut
//! is the longest pause, not the typical one.
//!
//! - Silence counts only while an answer is owed: a ping or data under way. An idle link owes nothing.
//! - Any word is an answer. What was asked in particular does not matter: it may wait in a queue.
//! - Until some pauses are known, five round trips are allowed; more are never allowed, and 0.8 s always are.
//! - Half of that is yellow: the time to ask. What is owed may have arrived while its receipt (the cloud's commit) takes
//!   its time; a ping sent at yellow is answered before red by a link that lives.

use super::ewma::PeakEwma;

/// How a silence is judged; later is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Silence {
    /// Nothing is missed.
    Green,
    /// A word is late: ask.
    Yellow,
    /// There is nobody.
    Red,
}

/// Round trip of a link in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtt {
    /// At present, with the queues as they are.
    pub us: u64,
    /// The shortest known.
    pub min_us: u64,
}

/// Judges the time since the last word.
#[derive(Debug, Clone, PartialEq)]
pub struct SilenceDetector {
    /// Pauses between words while an answer was owed.
    pause: PeakEwma,
    /// Pauses since an answer is owed.
    pauses: u32,
    owed_us: Option<u64>,
    heard_us: u64,
}

impl SilenceDetector {
    /// Nothing is owed at first.
    pub fn new(now_us: u64) -> Self {
        SilenceDetector { pause: PeakEwma::new(PAUSE_HALF_LIFE_US), pauses: 0, owed_us: None, heard_us: now_us }
    }

    /// Something was sent that must be answered. Says nothing new if an answer is owed already.
    pub fn owe(&mut self, now_us: u64) {
        if self.owed_us.is_none() {
            self.owed_us = Some(now_us);
            self.pauses = 0;
        }
    }

    /// A word came, whichever.
    pub fn heard(&mut self, now_us: u64) {
        if self.owed_us.is_some() {
            self.pause.sample(now_us, self.silent_us(now_us));
            self.pauses = self.pauses.saturating_add(1);
        }
        self.heard_us = self.heard_us.max(now_us);
    }

    /// All was answered: silence means nothing from now on.
    pub fn settle(&mut self) {
        self.owed_us = None;
    }

    /// Service time of the last word in microseconds.
    pub fn heard_us(&self) -> u64 {
        self.heard_us
    }

    /// For how long a word has been owed, in microseconds; 0 if none is.
    pub fn silent_us(&self, now_us: u64) -> u64 {
        self.owed_us.map_or(0, |owed_us| now_us.saturating_sub(owed_us.max(self.heard_us)))
    }

    /// Silence in microseconds from which there is nobody: between 0.8 s and the larger of 0.8 s and five round trips.
    pub fn red_after_us(&self, rtt: Rtt) -> u64 {
        let most_us = rtt.us.saturating_mul(RTTS_ALLOWED).max(SILENCE_US_MIN);
        match self.pause.value_us(self.heard_us) {
            Some(pause_us) if self.pauses >= PAUSES_KNOWN => {
                let least_us = rtt.min_us.saturating_mul(RTTS_TO_ASK).max(SILENCE_US_MIN).min(most_us);
                pause_us.saturating_mul(PAUSES_ALLOWED).clamp(least_us, most_us)
            }
            _ => most_us,
        }
    }

    /// The verdict; never better later, as long as nothing is heard.
    pub fn state(&self, now_us: u64, rtt: Rtt) -> Silence {
        let (silent_us, red_us) = (self.silent_us(now_us), self.red_after_us(rtt));
        match silent_us {
            _ if silent_us >= red_us => Silence::Red,
            _ if silent_us >= red_us / 2 => Silence::Yellow,
            _ => Silence::Green,
        }
    }

    /// When the verdict changes if nothing is heard; `None` if it does not.
    pub fn deadline_us(&self, now_us: u64, rtt: Rtt) -> Option<u64> {
        let from_us = self.owed_us?.max(self.heard_us);
        let red_us = self.red_after_us(rtt);
        [red_us / 2, red_us].into_iter().map(|after_us| from_us.saturating_add(after_us)).find(|&at_us| at_us > now_us)
    }
}

/// Shortest silence that means anything: a cell handover takes some 100 ms. The design wants a cut noticed within a second, of
/// which a fifth is for looking at the transport's counters and for carrying out what follows.
const SILENCE_US_MIN: u64 = 800_000;
/// The design's other figure: a cut is seen within five round trips.
const RTTS_ALLOWED: u64 = 5;
/// From yellow to red is half of it: 1.5 round trips, enough for one ping.
const RTTS_TO_ASK: u64 = 3;
/// How many of the longest known pauses are allowed: a lost flight and its two retransmissions, doubling, make four.
const PAUSES_ALLOWED: u64 = 4;
/// Pauses that make a habit: as many as one flight of acknowledgements usually has.
const PAUSES_KNOWN: u32 = 8;
/// Linkerd forgets latencies with a decay of 10 s, which is this half life.
const PAUSE_HALF_LIFE_US: u64 = 7_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RTT: Rtt = Rtt { us: 50_000, min_us: 40_000 };

    #[test]
    fn an_idle_link_owes_nothing() {
        let mut silence = SilenceDetector::new(0);
        assert_eq!(silence.state(u64::MAX, RTT), Silence::Green);
        silence.owe(5);
        silence.heard(6);
        silence.settle();
        assert_eq!(silence.state(u64::MAX, RTT), Silence::Green);
        assert_eq!(silence.deadline_us(7, RTT), None);
    }

    #[test]
    fn an_unanswered_word_turns_yellow_then_red() {
        let mut silence = SilenceDetector::new(0);
        silence.owe(1_000);
        assert_eq!(silence.state(400_999, RTT), Silence::Green);
        assert_eq!(silence.deadline_us(1_000, RTT), Some(401_000));
        assert_eq!(silence.state(401_000, RTT), Silence::Yellow);
        assert_eq!(silence.deadline_us(401_000, RTT), Some(801_000));
        assert_eq!(silence.state(801_000, RTT), Silence::Red);
        silence.heard(2_000_000);
        assert_eq!(silence.state(2_000_000, RTT), Silence::Green);
    }

    #[test]
    fn a_full_queue_neither_looks_dead_nor_hides_a_cut() {
        let full = Rtt { us: 5_000_000, min_us: 50_000 };
        let mut silence = SilenceDetector::new(0);
        silence.owe(0);
        for word in 1..100 {
            assert_ne!(silence.state(word * 200_000, full), Silence::Red);
            silence.heard(word * 200_000);
        }
        assert_eq!(silence.red_after_us(full), 800_000, "by its pauses, not by five round trips of 5 s");
    }

    #[test]
    fn a_satellite_is_given_time_to_answer_a_ping() {
        let far = Rtt { us: 620_000, min_us: 600_000 };
        let mut silence = SilenceDetector::new(0);
        silence.owe(0);
        assert_eq!(silence.red_after_us(far), 3_100_000);
        for word in 1..6_000 {
            silence.heard(620_000 + word * 10_000);
        }
        assert_eq!(silence.red_after_us(far), 1_800_000, "from yellow on, one and a half round trips");
    }

    proptest! {
        #[test]
        fn more_silence_is_never_greener_and_red_comes_in_time(
            words in proptest::collection::vec((0u64..3_000_000, 0u8..4), 0..60),
            rtt_us in 0u64..20_000_000, min_us in 0u64..20_000_000,
            wait_us in 0u64..200_000_000, more_us in 0u64..200_000_000,
        ) {
            let rtt = Rtt { us: rtt_us, min_us: min_us.min(rtt_us) };
            let mut silence = SilenceDetector::new(0);
            let mut now_us = 0;
            for (step_us, what) in words {
                now_us += step_us;
                match what {
                    0 => silence.owe(now_us),
                    1 => silence.settle(),
                    _ => silence.heard(now_us),
                }
            }
            let (soon, late) = (silence.state(now_us + wait_us, rtt), silence.state(now_us + wait_us + more_us, rtt));
            prop_assert!(late >= soon, "{soon:?} then {late:?}");
            silence.owe(now_us);
            let red_us = silence.red_after_us(rtt);
            prop_assert!((800_000..=(5 * rtt_us).max(800_000)).contains(&red_us), "{red_us}");
            prop_assert_eq!(silence.state(now_us + (5 * rtt_us).max(800_000), rtt), Silence::Red);
            silence.heard(now_us);
            prop_assert_eq!(silence.state(now_us, rtt), Silence::Green);
        }
    }
}
