//! When the program is started, killed and given up on. Pure: time is an argument, in the time since the supervisor began.
//!
//! A new configuration is a candidate until the program says that it is ready with it; one that it refuses, or that it does not
//! get ready with three times, is given up for the last one that was good, and without such a one for the image's own. What
//! the box took in is in the buffer, which all of them share. A good configuration is never given up for a crash: the program
//! is started again, later each time. After too many failures the hardware watchdog is no longer fed, so that the whole
//! machine starts anew; that helps where a device hangs, and brings the other slot back while one is on trial.

use std::time::Duration;

/// Which configuration the program runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The one that was provisioned and has yet to prove itself.
    Candidate,
    /// The last one that the program got ready with.
    Good,
    /// The image's own.
    Fallback,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The program does its work.
    Ready,
    /// It has made progress.
    Progress,
    /// It has ended, or could not be started.
    Ended(Ending),
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It said that its configuration is wrong.
    ConfigRefused,
    /// Any other way.
    Other,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the program.
    Start(Choice),
    /// Kill it; its end is an event.
    Kill(Hang),
    /// Keep the candidate as the good configuration.
    Promote,
    /// Never use this configuration again.
    GiveUp(Choice, Ending),
}

/// Why a program that runs is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hang {
    /// It did not get ready.
    NotReady,
    /// It made no progress.
    NoProgress,
}

/// Times and counts.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From start to being ready. A buffer of 512 MiB that is read twice at 20 MB/s, and a slow machine.
    pub start: Duration,
    /// Between two signs of progress.
    pub progress: Duration,
    /// Wait after the first failure; each later one waits twice as long.
    pub backoff_min: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            start: Duration::from_secs(120),
            progress: Duration::from_secs(30),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
        }
    }
}

/// Ends without being ready after which a candidate is given up.
const CANDIDATE_FAILURES_MAX: u32 = 3;
/// Failures in a row after which the machine is to start anew: about seven minutes with the default backoff.
const FAILURES_MAX: u32 = 12;
/// After so long without a failure earlier ones no longer count.
const STEADY: Duration = Duration::from_secs(600);

/// The state of the program.
#[derive(Debug)]
pub struct Supervision {
    limits: Limits,
    choice: Choice,
    has_good: bool,
    phase: Phase,
    failures: u32,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Waiting {
        until: Duration,
    },
    Starting {
        since: Duration,
    },
    Running {
        since: Duration,
        progress_at: Duration,
    },
    /// Killed; its end has not been seen yet.
    Ending,
}

impl Supervision {
    /// Nothing runs yet; the first [`Supervision::poll`] starts it.
    pub fn new(limits: Limits, has_candidate: bool, has_good: bool) -> Self {
        let choice = match (has_candidate, has_good) {
            (true, _) => Choice::Candidate,
            (false, true) => Choice::Good,
            (false, false) => Choice::Fallback,
        };
        Supervision { limits, choice, has_good, phase: Phase::Waiting { until: Duration::ZERO }, failures: 0 }
    }

    /// What time alone asks for.
    pub fn poll(&mut self, now: Duration) -> Option<Action> {
        match self.phase {
            Phase::Waiting { until } if now >= until => {
                self.phase = Phase::Starting { since: now };
                Some(Action::Start(self.choice))
            }
            Phase::Starting { since } if now.saturating_sub(since) > self.limits.start => Some(self.kill(Hang::NotReady)),
            Phase::Running { progress_at, .. } if now.saturating_sub(progress_at) > self.limits.progress => {
                Some(self.kill(Hang::NoProgress))
            }
            _ => None,
        }
    }

    /// What an event asks for.
    pub fn handle(&mut self, now: Duration, event: Event) -> Option<Action> {
        match (event, self.phase) {
            (Event::Ready, Phase::Starting { .. }) => {
                self.phase = Phase::Running { since: now, progress_at: now };
                if self.choice != Choice::Candidate {
                    return None;
                }
                (self.choice, self.has_good) = (Choice::Good, true);
                Some(Action::Promote)
            }
            (Event::Progress, Phase::Running { since, .. }) => {
                self.phase = Phase::Running { since, progress_at: now };
                if now.saturating_sub(since) >= STEADY {
                    self.failures = 0;
                }
                None
            }
            (Event::Ended(ending), _) => self.ended(now, ending),
            _ => None,
        }
    }

    /// Whether the hardware watchdog is to be fed: not once starting again has not helped for long.
    pub fn is_hopeful(&self) -> bool {
        self.failures < FAILURES_MAX
    }

    /// Time that is waited before the program is started again; zero if it is not waited for.
    pub fn wait(&self, now: Duration) -> Duration {
        match self.phase {
            Phase::Waiting { until } => until.saturating_sub(now),
            _ => Duration::ZERO,
        }
    }

    fn kill(&mut self, hang: Hang) -> Action {
        self.phase = Phase::Ending;
        Action::Kill(hang)
    }

    fn ended(&mut self, now: Duration, ending: Ending) -> Option<Action> {
        self.failures += 1;
        let is_refused = ending == Ending::ConfigRefused;
        let given_up = match self.choice {
            Choice::Candidate => is_refused || self.failures >= CANDIDATE_FAILURES_MAX,
            // It was good once: then its files are damaged, or the program is another.
            Choice::Good => is_refused,
            Choice::Fallback => false,
        };
        if !given_up {
            self.phase = Phase::Waiting { until: now + self.backoff() };
            return None;
        }
        let action = Action::GiveUp(self.choice, ending);
        let has_other = self.choice == Choice::Candidate && self.has_good;
        self.choice = if has_other { Choice::Good } else { Choice::Fallback };
        (self.failures, self.phase) = (0, Phase::Waiting { until: now });
        Some(action)
    }

    fn backoff(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        self.limits.backoff_min.saturating_mul(1 << doublings).min(self.limits.backoff_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn new(has_candidate: bool, has_good: bool) -> Supervision {
        Supervision::new(Limits::default(), has_candidate, has_good)
    }

    #[test]
    fn a_candidate_is_kept_once_the_program_is_ready_with_it() {
        let mut box_ = new(true, true);
        assert_eq!(box_.poll(S), Some(Action::Start(Choice::Candidate)));
        assert_eq!(box_.poll(2 * S), None, "it is started once");
        assert_eq!(box_.handle(3 * S, Event::Ready), Some(Action::Promote));
        assert_eq!(box_.handle(4 * S, Event::Ended(Ending::Other)), None);
        assert_eq!(box_.poll(4 * S), None, "it waits a second");
        assert_eq!(box_.poll(5 * S), Some(Action::Start(Choice::Good)));
    }

    #[test]
    fn a_refused_candidate_gives_way_at_once_to_the_good_one_or_the_images_own() {
        for (has_good, next) in [(true, Choice::Good), (false, Choice::Fallback)] {
            let mut box_ = new(true, has_good);
            box_.poll(S);
            let action = box_.handle(S, Event::Ended(Ending::ConfigRefused));
            assert_eq!(action, Some(Action::GiveUp(Choice::Candidate, Ending::ConfigRefused)));
            assert_eq!(box_.poll(S), Some(Action::Start(next)));
        }
    }

    #[test]
    fn a_candidate_that_crashes_or_hangs_has_three_tries() {
        let mut box_ = new(true, true);
        let mut now = S;
        for attempt in 1..=3 {
            assert_eq!(box_.poll(now), Some(Action::Start(Choice::Candidate)), "attempt {attempt}");
            now += 121 * S;
            assert_eq!(box_.poll(now), Some(Action::Kill(Hang::NotReady)));
            assert_eq!(box_.poll(now + S), None, "it is killed once");
            let action = box_.handle(now, Event::Ended(Ending::Other));
            assert_eq!(action.is_some(), attempt == 3, "attempt {attempt}: {action:?}");
            now += box_.wait(now);
        }
        assert_eq!(box_.poll(now), Some(Action::Start(Choice::Good)));
    }

    #[test]
    fn a_good_configuration_is_started_again_for_ever_and_later_each_time() {
        let mut box_ = new(false, true);
        let (mut now, mut waits) = (Duration::ZERO, Vec::new());
        for _ in 0..9 {
            assert_eq!(box_.poll(now), Some(Action::Start(Choice::Good)));
            assert_eq!(box_.handle(now, Event::Ended(Ending::Other)), None);
            waits.push(box_.wait(now).as_secs());
            now += box_.wait(now);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(box_.is_hopeful());
        for _ in 0..3 {
            box_.poll(now);
            box_.handle(now, Event::Ended(Ending::Other));
            now += box_.wait(now);
        }
        assert!(!box_.is_hopeful(), "the machine is to start anew");
    }

    #[test]
    fn progress_keeps_it_alive_and_its_absence_kills_it() {
        let mut box_ = new(false, true);
        box_.poll(Duration::ZERO);
        box_.handle(S, Event::Ready);
        for at in 1..700 {
            assert_eq!(box_.poll(at * S), None);
            assert_eq!(box_.handle(at * S, Event::Progress), None);
        }
        assert_eq!(box_.poll(729 * S), None);
        assert_eq!(box_.poll(730 * S), Some(Action::Kill(Hang::NoProgress)));
    }

    #[test]
    fn failures_of_long_ago_do_not_count() {
        let mut box_ = new(false, true);
        let mut now = Duration::ZERO;
        for _ in 0..5 {
            box_.poll(now);
            box_.handle(now, Event::Ended(Ending::Other));
            now += box_.wait(now);
        }
        box_.poll(now);
        box_.handle(now, Event::Ready);
        box_.handle(now + 601 * S, Event::Progress);
        box_.handle(now + 602 * S, Event::Ended(Ending::Other));
        assert_eq!(box_.wait(now + 602 * S), S);
    }

    #[test]
    fn a_good_configuration_that_is_refused_gives_way_to_the_images_own() {
        let mut box_ = new(false, true);
        box_.poll(S);
        assert_eq!(
            box_.handle(S, Event::Ended(Ending::ConfigRefused)),
            Some(Action::GiveUp(Choice::Good, Ending::ConfigRefused))
        );
        assert_eq!(box_.poll(S), Some(Action::Start(Choice::Fallback)));
        // There is nothing behind it, so it is never given up.
        assert_eq!(box_.handle(S, Event::Ended(Ending::ConfigRefused)), None);
        assert_eq!(box_.poll(2 * S), Some(Action::Start(Choice::Fallback)));
    }
}
