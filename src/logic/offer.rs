//! A new policy on trial: kept if the box goes on working with it, taken back if not.
//!
//! Nobody can drive to a box that a policy has cut off. So a new one is on trial until it has shown two things: that the box
//! still takes in what it took in before, and that an uplink is up [`SETTLE_US`] after the change or later. What has not shown
//! both when the trial ends is taken back, and so is, at once, what comes with a buffer that takes no data. Whether the cloud
//! likes the result does not count: it cannot see a box that it has lost.

/// What the box does by itself, whatever the uplinks do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Messages taken in since start.
    pub messages: u64,
    /// True while the buffer refuses transactions.
    pub is_failing: bool,
}

/// How a trial ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The policy stays.
    Kept,
    /// The one before comes back.
    RolledBack(Fault),
}

/// What a policy on trial did not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The buffer takes no data.
    #[error("the buffer takes no data since the change")]
    Buffer,
    /// No message came, though they did before.
    #[error("no message was taken in within {waited_s} s of the change, though they were before it")]
    NoMessages {
        /// How long it was waited for.
        waited_s: u64,
    },
    /// No uplink was up.
    #[error("no uplink was up within {waited_s} s of the change")]
    NoUplink {
        /// How long it was waited for.
        waited_s: u64,
    },
}

/// A policy on trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    version: u64,
    since_us: u64,
    end_us: u64,
    before: Progress,
    had_messages: bool,
    uplink_seen: bool,
}

/// An uplink that was up already says nothing of the new policy before this, in microseconds.
pub const SETTLE_US: u64 = 10_000_000;

impl Trial {
    /// A trial that ends after `length_us`; `had_messages` says that some came in the minute before it.
    pub fn begin(now_us: u64, length_us: u64, version: u64, before: Progress, had_messages: bool) -> Trial {
        Trial { version, since_us: now_us, end_us: now_us.saturating_add(length_us), before, had_messages, uplink_seen: false }
    }

    /// Version of the policy.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// From when on an uplink counts, in service time.
    pub fn settled_us(&self) -> u64 {
        self.since_us.saturating_add(SETTLE_US)
    }

    /// When it ends at the latest, in service time.
    pub fn end_us(&self) -> u64 {
        self.end_us
    }

    /// Looks at how things are now; `Some` ends the trial.
    pub fn observe(&mut self, now_us: u64, is_uplink_up: bool, now: Progress) -> Option<Outcome> {
        if now.is_failing && !self.before.is_failing {
            return Some(Outcome::RolledBack(Fault::Buffer));
        }
        self.uplink_seen |= is_uplink_up && now_us >= self.settled_us();
        let goes_on = !self.had_messages || now.messages > self.before.messages;
        if goes_on && self.uplink_seen {
            return Some(Outcome::Kept);
        }
        let waited_s = now_us.saturating_sub(self.since_us) / 1_000_000;
        let fault = if goes_on { Fault::NoUplink { waited_s } } else { Fault::NoMessages { waited_s } };
        (now_us >= self.end_us).then_some(Outcome::RolledBack(fault))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: u64 = 1_000_000;

    fn progress(messages: u64) -> Progress {
        Progress { messages, is_failing: false }
    }

    fn trial(had_messages: bool) -> Trial {
        Trial::begin(0, 300 * S, 7, progress(10), had_messages)
    }

    #[test]
    fn it_is_kept_once_messages_came_and_an_uplink_was_up_after_the_change() {
        let mut trial = trial(true);
        assert_eq!(trial.observe(S, true, progress(11)), None, "it was up before, too");
        assert_eq!(trial.observe(20 * S, false, progress(11)), None);
        assert_eq!(trial.observe(200 * S, true, progress(11)), Some(Outcome::Kept));
    }

    #[test]
    fn it_is_taken_back_at_the_end_or_at_once_if_the_buffer_fails() {
        let no_uplink = Some(Outcome::RolledBack(Fault::NoUplink { waited_s: 300 }));
        assert_eq!(trial(true).observe(300 * S, false, progress(11)), no_uplink);
        let no_messages = Some(Outcome::RolledBack(Fault::NoMessages { waited_s: 300 }));
        assert_eq!(trial(true).observe(300 * S, true, progress(10)), no_messages);
        let failing = Progress { messages: 11, is_failing: true };
        assert_eq!(trial(true).observe(S, true, failing), Some(Outcome::RolledBack(Fault::Buffer)));
    }

    #[test]
    fn a_box_that_nobody_sent_to_before_needs_no_messages() {
        assert_eq!(trial(false).observe(10 * S, true, progress(10)), Some(Outcome::Kept));
    }

    proptest! {
        #[test]
        fn every_trial_ends_and_none_is_kept_without_an_uplink(
            steps in prop::collection::vec((1u64..40 * S, any::<bool>(), 0u64..3), 1..60),
        ) {
            let mut trial = trial(true);
            let (mut now_us, mut messages, mut was_up) = (0, 10, false);
            for (step_us, is_up, more) in steps.into_iter().chain([(300 * S, false, 0)]) {
                now_us += step_us;
                messages += more;
                was_up |= is_up && now_us >= SETTLE_US;
                match trial.observe(now_us, is_up, progress(messages)) {
                    Some(Outcome::Kept) => { prop_assert!(was_up && messages > 10); return Ok(()); }
                    Some(Outcome::RolledBack(_)) => { prop_assert!(now_us >= 300 * S); return Ok(()); }
                    None => {}
                }
            }
            prop_assert!(false, "it has no end");
        }
    }
}
