//! Policies that the cloud offers: each is checked once, tried, kept or taken back, and the cloud is told.
//!
//! Signature and text are the shell's to check, because the core knows neither; all else is decided here. A policy replaces
//! the one in force between two inputs, whole or not at all. While one is checked or tried, the newest that comes meanwhile
//! waits. A version that was tried and taken back is not tried again, whoever offers it: a policy that crashes the box must
//! not do so twice, so the shell notes the version before it answers [`Output::CheckPolicy`].
//!
//! What became of an offer goes over every session that is up, and again over each that comes up later: it is a hundred
//! bytes, and a cloud that has not heard it holds up the fleet.

use super::{Event, Gateway, Output};
use crate::explain::Change;
use crate::offer::{Outcome, Progress, Trial};
use crate::policy::Policy;
use crate::rollout::OfferState;
use crate::wire::{POLICY_LEN_MAX, PolicyOffer, PolicyState, policy_reason};

/// What the gateway starts with.
#[derive(Debug, Clone, Default)]
pub struct PolicyStart {
    /// True if the box has a key to check policies with; without it none is taken.
    pub has_key: bool,
    /// How long a policy is on trial, in microseconds.
    pub trial_us: u64,
    /// Version of the policy that the gateway starts with; 0 for the box's own configuration.
    pub version: u64,
    /// Highest version that was ever tried.
    pub tried: u64,
    /// What became of the last one offered, if anything is to be told of it.
    pub last: Option<PolicyNews>,
}

/// What became of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyNews {
    /// Its version.
    pub version: u64,
    /// What became of it.
    pub state: OfferState,
    /// Why, in words.
    pub reason: String,
    /// The version that is in force, or that a trial goes back to; 0 for the box's own configuration.
    pub kept: u64,
}

/// The policy in force, and what became of offers.
#[derive(Debug)]
pub(super) struct Offers {
    has_key: bool,
    trial_us: u64,
    kept: u64,
    tried: u64,
    last: Option<PolicyNews>,
    /// The version that the shell looks at.
    checking: Option<u64>,
    /// The newest that came meanwhile.
    waiting: Option<PolicyOffer>,
    on_trial: Option<OnTrial>,
    /// Messages so far, and when the last came.
    messages: u64,
    came_us: Option<u64>,
    counts: [u64; OfferState::ALL.len()],
}

#[derive(Debug)]
struct OnTrial {
    trial: Trial,
    before: Box<Policy>,
}

/// A sensor that was heard within this time is expected to be heard again.
const RECENT_US: u64 = 60_000_000;
/// Longest signature that is handed to the shell: those of Ed25519 have 64 bytes.
const SIGNATURE_LEN_MAX: usize = 256;

impl Offers {
    pub(super) fn new(start: &PolicyStart) -> Offers {
        Offers {
            has_key: start.has_key,
            trial_us: start.trial_us,
            kept: start.version,
            tried: start.tried,
            last: start.last.clone(),
            checking: None,
            waiting: None,
            on_trial: None,
            messages: 0,
            came_us: None,
            counts: [0; OfferState::ALL.len()],
        }
    }

    /// What the cloud is told.
    fn state(&self) -> PolicyState {
        let (version, state, reason) = match (&self.on_trial, &self.last) {
            (Some(on), _) => (on.trial.version(), OfferState::Trial, ""),
            (None, _) if !self.has_key => (0, OfferState::NoKey, NO_KEY),
            (None, Some(last)) => (last.version, last.state, last.reason.as_str()),
            (None, None) => (self.kept, OfferState::Kept, ""),
        };
        PolicyState { version, state: state.code(), reason: policy_reason(reason).to_owned(), kept: self.kept }
    }

    fn news(&self, version: u64, state: OfferState, reason: String) -> PolicyNews {
        PolicyNews { version, state, reason, kept: self.kept }
    }
}

/// What is said to an offer that cannot be checked.
const NO_KEY: &str = "the box has no key to check policies with: add `key` to [policy] in its configuration";

/// Policies as status and metrics show them.
#[derive(Debug, Clone, Copy)]
pub struct PolicyView<'a> {
    offers: &'a Offers,
}

impl<'a> PolicyView<'a> {
    /// True if the box has a key to check policies with.
    pub fn has_key(&self) -> bool {
        self.offers.has_key
    }

    /// The version that is kept; 0 for the box's own configuration.
    pub fn kept(&self) -> u64 {
        self.offers.kept
    }

    /// The version on trial, and when that ends at the latest, in service time.
    pub fn on_trial(&self) -> Option<(u64, u64)> {
        self.offers.on_trial.as_ref().map(|on| (on.trial.version(), on.trial.end_us()))
    }

    /// What became of the last one offered.
    pub fn last(&self) -> Option<&'a PolicyNews> {
        self.offers.last.as_ref()
    }

    /// By state: how often it was entered since start.
    pub fn counts(&self) -> impl Iterator<Item = (OfferState, u64)> + use<'a> {
        OfferState::ALL.into_iter().zip(self.offers.counts)
    }
}

impl Gateway {
    /// The policies, for status and metrics.
    pub fn policies(&self) -> PolicyView<'_> {
        PolicyView { offers: &self.offers }
    }

    /// A session came up: its cloud is told which policy is here.
    pub(super) fn greet_with_policy(&mut self, uplink: usize) {
        self.uplinks[uplink].send_policy_state(self.offers.state());
    }

    /// The cloud offers a policy.
    pub(super) fn offered(&mut self, now_us: u64, offer: PolicyOffer) {
        let version = offer.version;
        let offers = &mut self.offers;
        let is_under_way =
            offers.checking == Some(version) || offers.on_trial.as_ref().is_some_and(|on| on.trial.version() == version);
        let is_known = version == offers.kept
            || offers.last.as_ref().is_some_and(|last| last.version == version && version <= offers.tried);
        if is_under_way || (is_known && offers.has_key) {
            return self.tell_policy_state(now_us);
        }
        if !offers.has_key {
            return self.decided(now_us, version, OfferState::NoKey, NO_KEY.to_owned());
        }
        if offers.checking.is_some() || offers.on_trial.is_some() {
            if offers.waiting.as_ref().is_none_or(|waiting| waiting.version <= version) {
                offers.waiting = Some(offer);
            }
            return;
        }
        let refusal = if offer.text.len() > POLICY_LEN_MAX || offer.signature.len() > SIGNATURE_LEN_MAX {
            let (text, signature) = (offer.text.len(), offer.signature.len());
            Some(format!(
                "its text of {text} bytes or its signature of {signature} exceeds {POLICY_LEN_MAX} or {SIGNATURE_LEN_MAX}"
            ))
        } else if version <= offers.kept {
            Some(format!("version {version} is not above {}, which is in force; sign a higher one", offers.kept))
        } else if version <= offers.tried {
            Some(format!("version {} was tried here and taken back; sign a version above it", offers.tried))
        } else {
            None
        };
        if let Some(reason) = refusal {
            return self.decided(now_us, version, OfferState::Refused, reason);
        }
        offers.checking = Some(version);
        self.outputs.push_back(Output::CheckPolicy { version, text: offer.text, signature: offer.signature });
    }

    /// The shell has looked at a policy: what it asks for, or why it is refused.
    pub(super) fn policy_checked(&mut self, now_us: u64, version: u64, result: Result<Box<Policy>, String>) {
        if self.offers.checking != Some(version) || self.stopping {
            return;
        }
        self.offers.checking = None;
        let fits = result.and_then(|next| self.policy.succeeded_by(&next).map_err(|misfit| misfit.to_string()));
        let next = match fits {
            Ok(next) => next,
            Err(reason) => {
                self.decided(now_us, version, OfferState::Refused, reason);
                return self.take_waiting_offer(now_us);
            }
        };
        let had_messages = self.offers.came_us.is_some_and(|at_us| now_us < at_us.saturating_add(RECENT_US));
        let trial = Trial::begin(now_us, self.offers.trial_us, version, self.progress(), had_messages);
        let before = Box::new(self.adopt(now_us, next));
        self.offers.tried = self.offers.tried.max(version);
        self.offers.on_trial = Some(OnTrial { trial, before });
        let trial_s = self.offers.trial_us / 1_000_000;
        let expected = if had_messages { "messages go on coming and " } else { "" };
        let reason = format!("kept if {expected}an uplink is up after the change, within {trial_s} s");
        self.decided(now_us, version, OfferState::Trial, reason);
    }

    /// Looks at how a policy on trial does; once a second.
    pub(super) fn watch_trial(&mut self, now_us: u64) {
        let progress = self.progress();
        if progress.messages != self.offers.messages {
            (self.offers.messages, self.offers.came_us) = (progress.messages, Some(now_us));
        }
        let Some(on) = &mut self.offers.on_trial else { return };
        // A session may count as up for a while after its link was cut: only a word from the cloud shows that it is.
        let settled_us = on.trial.settled_us();
        let is_up = self.uplinks.iter().any(|session| session.is_up() && session.heard_us() >= settled_us);
        let version = on.trial.version();
        let Some(outcome) = on.trial.observe(now_us, is_up, progress) else { return };
        let before = self.offers.on_trial.take().map(|on| on.before);
        match (outcome, before) {
            (Outcome::RolledBack(fault), Some(before)) => {
                self.adopt(now_us, *before);
                self.decided(now_us, version, OfferState::RolledBack, fault.to_string());
            }
            _ => {
                self.offers.kept = version;
                self.decided(now_us, version, OfferState::Kept, "the box works on with it, and an uplink is up".to_owned());
            }
        }
        self.take_waiting_offer(now_us);
    }

    fn take_waiting_offer(&mut self, now_us: u64) {
        if let Some(offer) = self.offers.waiting.take() {
            self.offered(now_us, offer);
        }
    }

    fn progress(&self) -> Progress {
        let counters = self.ingest.mqtt_counters();
        let messages = counters.publishes_qos0.saturating_add(counters.publishes_qos1);
        Progress { messages, is_failing: self.commit_failing }
    }

    /// Notes what became of a policy, as an event, among the changes of the plan, and to the cloud.
    fn decided(&mut self, now_us: u64, version: u64, state: OfferState, reason: String) {
        let news = self.offers.news(version, state, reason);
        self.offers.counts[state.code() as usize] += 1;
        self.changes.push(Change {
            at_us: now_us,
            version: self.plan.version,
            subject: POLICY_SUBJECT.to_owned(),
            old: version_name(if state == OfferState::Kept { version } else { news.kept }),
            new: format!("version {version} {}", state.name()),
            reason: news.reason.clone(),
            rejected: Vec::new(),
        });
        self.outputs.push_back(Output::Event(Event::Policy(news.clone())));
        // One on trial is told from the trial itself.
        self.offers.last = Some(news);
        self.tell_policy_state(now_us);
    }

    fn tell_policy_state(&mut self, now_us: u64) {
        let state = self.offers.state();
        for at in 0..self.uplinks.len() {
            if self.uplinks[at].is_up() {
                self.uplinks[at].send_policy_state(state.clone());
                self.drain_session(now_us, at);
            }
        }
    }

    /// Puts a policy in the place of the one in force, which is returned. It fits: it came out of [`Policy::succeeded_by`].
    fn adopt(&mut self, now_us: u64, mut next: Policy) -> Policy {
        for (at, (stream, now)) in next.streams.iter().zip(&self.policy.streams).enumerate() {
            if stream.keep != now.keep {
                self.ingest.set_keep(at as u16, stream.keep.clone());
            }
            if stream.offload != now.offload {
                self.ingest.set_offload(at as u16, stream.offload.clone());
            }
        }
        for (at, (uplink, now)) in next.uplinks.iter_mut().zip(&self.policy.uplinks).enumerate() {
            uplink.ingest.clone_from(&now.ingest);
            self.health[at].set_metered(now_us, uplink.meter.is_some() && uplink.stands_in_for.is_none());
            self.ways[at].set_month(uplink);
        }
        self.offloads.set_limits(next.offload);
        let before = std::mem::replace(&mut self.policy, next);
        self.control.policy_changed(&self.policy);
        self.reshape();
        before
    }
}

/// What changes of the policy are about, among those of the plan.
pub(super) const POLICY_SUBJECT: &str = "policy";

fn version_name(version: u64) -> String {
    if version == 0 { "the box's own configuration".to_owned() } else { format!("version {version}") }
}
