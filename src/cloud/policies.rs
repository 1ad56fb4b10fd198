//! Policies on their way to the gateways: which there are, who is offered which, and what became of them.
//!
//! The directory is the whole interface, so that Git can drive it: `NAME.toml` and `NAME.toml.sig`, looked at every few
//! seconds. A gateway is offered the highest version that is for it, by the [`Rollout`] of that version: a share of the
//! gateways first. What gateways say is stored, so that a restart neither forgets a halt nor asks again.
//!
//! Only a gateway that has said which policy it has is offered one: software that knows no policies says nothing.

mod directory;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use weir_logic::rollout::{OfferState, Rollout, Stage, is_for};
use weir_logic::wire::{Body, PolicyOffer, PolicyState, policy_reason};

use crate::config;
use crate::status::{PoliciesStatus, PolicyStatus, PolicyTroubleStatus};

pub(crate) use directory::{Directory, Found, watch};

/// Offers a second: of 64 KiB each that is 50 Mbit/s at most.
const OFFERS_PER_TICK: usize = 100;
/// Gateways that did not keep a version, shown with their reasons.
const TROUBLES_SHOWN_MAX: usize = 20;

/// What is on record of a version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyRecord {
    /// The signature of its text; `None` if it was not there before.
    pub signature: Option<Vec<u8>>,
    /// What gateways said of it, and why.
    pub states: Vec<(Arc<str>, OfferState, String)>,
}

/// Something to store or to say of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) version: u64,
    pub(crate) state: OfferState,
    pub(crate) reason: String,
    /// True if it stops the version for all.
    pub(crate) halts: bool,
}

/// One version that is in the directory.
#[derive(Debug)]
struct Entry {
    found: Arc<Found>,
    /// `None` until it is known what is on record of it.
    rollout: Option<Rollout>,
    /// The file has another text than it had when it was first offered.
    is_changed: bool,
    /// By gateway: why it did not keep it.
    reasons: BTreeMap<Arc<str>, String>,
}

/// All versions, and what gateways have said since they connected.
#[derive(Debug)]
pub(crate) struct Policies {
    share_ppm: u32,
    soak_us: u64,
    entries: BTreeMap<u64, Entry>,
    /// Files that cannot be offered, and why.
    problems: Vec<String>,
    said: BTreeMap<Arc<str>, PolicyState>,
}

impl Policies {
    pub(crate) fn new(config: &config::Policies) -> Policies {
        Policies {
            share_ppm: (config.share.clamp(0.0, 1.0) * 1e6) as u32,
            soak_us: config.soak.as_micros(),
            entries: BTreeMap::new(),
            problems: Vec::new(),
            said: BTreeMap::new(),
        }
    }

    /// The directory is like this now; returns the versions of which must be asked what is on record.
    pub(crate) fn found(&mut self, directory: &Directory) -> Vec<Arc<Found>> {
        self.problems.clone_from(&directory.problems);
        self.entries.retain(|version, _| directory.policies.contains_key(version));
        let mut fresh = Vec::new();
        for (&version, found) in &directory.policies {
            match self.entries.get_mut(&version) {
                Some(entry) if entry.rollout.is_some() => entry.is_changed = entry.found.signature != found.signature,
                Some(entry) if entry.found.signature == found.signature => {}
                _ => {
                    let entry = Entry { found: found.clone(), rollout: None, is_changed: false, reasons: BTreeMap::new() };
                    self.entries.insert(version, entry);
                    fresh.push(found.clone());
                }
            }
        }
        fresh
    }

    /// File and signature of a version that is not on record yet: they are to be.
    pub(crate) fn first_seen(&self, version: u64, record: &PolicyRecord) -> Option<(String, Vec<u8>)> {
        let entry = self.entries.get(&version).filter(|_| record.signature.is_none())?;
        Some((entry.found.file.clone(), entry.found.signature.clone()))
    }

    /// What is on record of a version; returns what is to be stored of what was heard meanwhile.
    pub(crate) fn loaded(&mut self, version: u64, record: PolicyRecord) -> Vec<(Arc<str>, Told)> {
        let Some(entry) = self.entries.get_mut(&version).filter(|entry| entry.rollout.is_none()) else { return Vec::new() };
        if record.signature.is_some_and(|signature| signature != entry.found.signature) {
            entry.is_changed = true;
            return Vec::new();
        }
        let mut rollout = Rollout::new(version, self.share_ppm, self.soak_us);
        for (gateway, state, reason) in record.states {
            rollout.told(&gateway, state);
            entry.reasons.insert(gateway, reason);
        }
        entry.rollout = Some(rollout);
        let said: Vec<(Arc<str>, PolicyState)> = self.said.iter().map(|(name, state)| (name.clone(), state.clone())).collect();
        said.into_iter()
            .flat_map(|(gateway, state)| self.told_of(version, &gateway, &state).map(|told| (gateway, told)))
            .collect()
    }

    /// A gateway said which policy it has, and what became of the last one; returns what is news.
    pub(crate) fn told(&mut self, gateway: &Arc<str>, mut state: PolicyState) -> Vec<Told> {
        state.reason = policy_reason(&state.reason).to_owned();
        self.said.insert(gateway.clone(), state.clone());
        let versions: Vec<u64> = self.entries.keys().copied().collect();
        versions.into_iter().filter_map(|version| self.told_of(version, gateway, &state)).collect()
    }

    fn told_of(&mut self, version: u64, gateway: &Arc<str>, said: &PolicyState) -> Option<Told> {
        let entry = self.entries.get_mut(&version).filter(|entry| is_for(&entry.found.head.gateways, gateway))?;
        let rollout = entry.rollout.as_mut()?;
        let before = rollout.states().get(gateway).copied();
        // A state that a newer gateway made up says nothing of a policy.
        let said_state = OfferState::from_code(said.state).filter(|state| *state != OfferState::Offered);
        let state = match said_state {
            Some(OfferState::NoKey) => OfferState::NoKey,
            Some(state) if said.version == version => state,
            _ if said.kept == version => OfferState::Kept,
            _ => {
                let had = matches!(before, Some(OfferState::Kept | OfferState::Trial | OfferState::NoKey));
                if had && said.kept < version {
                    rollout.forget(gateway);
                }
                return None;
            }
        };
        if before == Some(state) {
            return None;
        }
        let halts = rollout.told(gateway, state);
        let reason = if said.version == version || state == OfferState::NoKey { said.reason.clone() } else { String::new() };
        match state {
            OfferState::Kept | OfferState::Trial => entry.reasons.remove(gateway),
            _ => entry.reasons.insert(gateway.clone(), reason.clone()),
        };
        Some(Told { version, state, reason, halts })
    }

    /// The version that a gateway keeps, if it has said so since it connected.
    pub(crate) fn kept_by(&self, gateway: &str) -> Option<u64> {
        self.said.get(gateway).map(|said| said.kept)
    }

    /// A gateway's last connection ended.
    pub(crate) fn lost(&mut self, gateway: &Arc<str>) {
        self.said.remove(gateway);
        self.entries.values_mut().filter_map(|entry| entry.rollout.as_mut()).for_each(|rollout| rollout.lost(gateway));
    }

    /// Who is to be offered what now.
    pub(crate) fn offers(&mut self, now_us: u64) -> Vec<(Arc<str>, Body)> {
        let mut open: Vec<Arc<str>> = self.said.keys().cloned().collect();
        let mut offers = Vec::new();
        for entry in self.entries.values_mut().rev() {
            let (mine, rest) = open.into_iter().partition(|gateway| is_for(&entry.found.head.gateways, gateway));
            open = rest;
            let Some(rollout) = entry.rollout.as_mut().filter(|_| !entry.is_changed) else { continue };
            let mine: Vec<Arc<str>> = mine;
            let (limit, before) = (OFFERS_PER_TICK - offers.len().min(OFFERS_PER_TICK), rollout.stage());
            let chosen = rollout.offers(now_us, &mine, limit);
            if rollout.stage() != before {
                tracing::info!(version = rollout.version(), stage = rollout.stage().name(), "policy goes on");
            }
            for gateway in chosen {
                tracing::info!(%gateway, version = rollout.version(), file = entry.found.file, "policy offered");
                offers.push((gateway, entry.found.offer()));
            }
        }
        offers
    }

    pub(crate) fn status(&self) -> PoliciesStatus {
        let changed = self.entries.iter().filter(|(_, entry)| entry.is_changed).map(|(version, entry)| {
            let file = &entry.found.file;
            format!("{file}: version {version} had another text when it was first offered; raise the version")
        });
        PoliciesStatus {
            policies: self.entries.iter().rev().map(|(&version, entry)| entry.status(version)).collect(),
            problems: self.problems.iter().cloned().chain(changed).collect(),
        }
    }
}

impl Entry {
    fn status(&self, version: u64) -> PolicyStatus {
        let states = self.rollout.as_ref().map(Rollout::states);
        let mut gateways: BTreeMap<&'static str, u64> = BTreeMap::new();
        for state in states.into_iter().flat_map(BTreeMap::values) {
            *gateways.entry(state.name()).or_default() += 1;
        }
        let is_trouble = |state: OfferState| matches!(state, OfferState::Refused | OfferState::RolledBack | OfferState::NoKey);
        let troubles = states.into_iter().flatten().filter(|(_, state)| is_trouble(**state)).map(|(gateway, state)| {
            let reason = self.reasons.get(gateway).cloned().unwrap_or_default();
            PolicyTroubleStatus { gateway: gateway.to_string(), state: state.name(), reason }
        });
        PolicyStatus {
            version,
            file: self.found.file.clone(),
            stage: self.rollout.as_ref().map_or("unknown", |rollout| rollout.stage().name()),
            is_halted: self.rollout.as_ref().is_some_and(|rollout| rollout.stage() == Stage::Halted),
            gateways,
            troubles: troubles.take(TROUBLES_SHOWN_MAX).collect(),
        }
    }
}

impl Found {
    fn offer(&self) -> Body {
        let (version, signature) = (self.head.version, Bytes::from(self.signature.clone()));
        Body::PolicyOffer(PolicyOffer { version, text: self.text.clone(), signature })
    }
}

#[cfg(test)]
mod tests;
