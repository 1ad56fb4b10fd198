//! Policies that a seed offers, and the shell that carries them out: what it notes, and what they do to the world around.

use std::collections::BTreeSet;

use super::super::{Event, Input, PolicyNews};
use super::rng::Rng;
use super::scenario::Scenario;
use super::world::{Ev, World};
use crate::policy::Policy;
use crate::rollout::OfferState;

/// What a policy does to a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It works.
    Good,
    /// No uplink comes back while it is in force.
    BreaksUplinks,
    /// No message comes in while it is in force.
    StopsIngest,
}

/// A policy that is offered: when, its version, and what it does.
pub(super) type Offered = (u64, u64, Effect);

/// Two or three policies within the seed's troubles, or none; versions may come out of order and again.
pub(super) fn random(rng: &mut Rng, end_us: u64) -> Vec<Offered> {
    if !rng.percent(25) {
        return Vec::new();
    }
    let effects = [Effect::Good, Effect::Good, Effect::BreaksUplinks, Effect::StopsIngest];
    let count = rng.range(2, 4);
    (0..count).map(|_| (rng.range(1_000_000, end_us), rng.range(1, 4), rng.pick(&effects))).collect()
}

/// What the shell knows of policies.
#[derive(Debug, Default)]
pub(super) struct Shell {
    /// Versions that were in force, each at most once.
    tried: BTreeSet<u64>,
    /// What the one on trial does, and the messages that had come when it began.
    on_trial: Option<(Effect, u64)>,
}

impl Scenario {
    /// What a version does: what the first offer of it says, as each version has one text for ever.
    fn effect(&self, version: u64) -> Option<Effect> {
        self.offered.iter().find(|(_, offered, _)| *offered == version).map(|(.., effect)| *effect)
    }

    /// The policy that a version asks for; that of the box's own file for 0. An odd one sends critical blocks once, an even one twice.
    pub(super) fn policy_of(&self, version: u64) -> Policy {
        let own = self.policy();
        if version == 0 { own } else { Policy { critical_copies: 2 - (version % 2) as u8, ..own } }
    }
}

impl World {
    /// The shell is to look at a policy; who plays without a seed answers by hand.
    pub(super) fn check_policy(&mut self, version: u64) {
        if self.scenario.effect(version).is_none() {
            return self.checks.push(version);
        }
        let (wait, run) = (self.rng.range(1_000, 200_000), self.run);
        self.after(wait, Ev::Checked { run, version });
    }

    /// It notes the version before it answers: should the box die with it, it is not tried twice.
    pub(super) fn checked(&mut self, version: u64) {
        let reason = "the box stopped during the trial".to_owned();
        let start = &mut self.scenario.offers;
        let (state, kept) = (OfferState::RolledBack, start.version);
        (start.tried, start.last) = (start.tried.max(version), Some(PolicyNews { version, state, reason, kept }));
        let policy = Box::new(self.scenario.policy_of(version));
        self.input(Input::PolicyChecked { version, result: Ok(policy) });
    }

    /// Something became of a policy: the world becomes what the policy makes of it.
    pub(super) fn policy_news(&mut self, news: &PolicyNews) {
        let Some(effect) = self.scenario.effect(news.version) else { return };
        match news.state {
            OfferState::Trial => {
                assert!(self.shell.tried.insert(news.version), "version {} is tried twice", news.version);
                self.shell.on_trial = Some((effect, self.messages()));
                if effect == Effect::BreaksUplinks {
                    for uplink in 0..self.links.len() {
                        self.links[uplink].down += 1;
                        self.links[uplink].attempt += 1;
                        self.break_link(uplink);
                    }
                }
            }
            OfferState::Kept => {
                let (_, messages) = self.shell.on_trial.expect("it was on trial");
                assert_ne!(effect, Effect::BreaksUplinks, "version {} is kept without an uplink", news.version);
                let goes_on =
                    effect != Effect::StopsIngest || self.messages() > messages || !self.expects_messages(news.version);
                assert!(goes_on, "version {} is kept although no message comes any more", news.version);
                self.covered.policies_kept += 1;
                self.scenario.offers.version = news.version;
                self.scenario.offers.last = Some(news.clone());
                self.end_trial();
            }
            OfferState::RolledBack => {
                self.covered.policies_rolled_back += 1;
                self.scenario.offers.last = Some(news.clone());
                self.end_trial();
            }
            _ => {}
        }
    }

    /// The policy on trial is no longer in force, or has shown to be harmless.
    pub(super) fn end_trial(&mut self) {
        let Some((effect, _)) = self.shell.on_trial.take() else { return };
        match effect {
            Effect::Good => {}
            Effect::BreaksUplinks => self.links.iter_mut().for_each(|link| link.down -= 1),
            Effect::StopsIngest => {
                let conns: Vec<u64> = self.sockets.keys().copied().collect();
                conns.into_iter().for_each(|conn| self.poke(conn));
            }
        }
    }

    /// True if some came in the minute before the trial, so that they must go on.
    fn expects_messages(&self, version: u64) -> bool {
        self.told.iter().rev().any(|event| match event {
            Event::Policy(trial) => {
                (trial.version, trial.state) == (version, OfferState::Trial) && trial.reason.contains("messages")
            }
            _ => false,
        })
    }

    /// Messages that this life of the box has taken in.
    fn messages(&self) -> u64 {
        let counters = self.gateway.as_ref().expect("it has just spoken").ingest().mqtt_counters();
        counters.publishes_qos0 + counters.publishes_qos1
    }

    /// True while a policy keeps messages out.
    pub(super) fn is_muted(&self) -> bool {
        matches!(self.shell.on_trial, Some((Effect::StopsIngest, _)))
    }
}
