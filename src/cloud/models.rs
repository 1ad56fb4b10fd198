//! Models on their way to the gateways: which there are, who is offered which, and what became of them.
//!
//! The directory is the whole interface, as that of [`crate::policies`] is. Of each task a gateway is offered the highest version
//! that is for it, by the [`Rollout`] of that version: a share of the gateways first. What gateways say is stored, so that a
//! restart neither forgets a halt nor asks again. Parts of packages are read by whoever asks for them, see [`Library`].
//!
//! Only a gateway that has said which models it has is offered others, and only for its tasks: software that knows nothing of
//! this says nothing, and so does a box without a key for models.

mod shelf;

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_logic::rollout::{OfferState, Rollout, Stage, is_for};
use weir_logic::wire::Body;
use weir_logic::wire::model::{ModelState, ModelStates, TASKS_MAX, model_reason};

use crate::config;
use crate::policies::PolicyRecord;
use crate::status::{GatewayModelStatus, ModelOfferStatus, ModelsStatus, PolicyTroubleStatus};

pub(crate) use shelf::{Library, Shelf, Shelved, watch};

/// Offers a second.
const OFFERS_PER_TICK: usize = 100;
/// Gateways that do not have a version, shown with their reasons.
const TROUBLES_SHOWN_MAX: usize = 20;

/// Something to store or to say of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelTold {
    pub(crate) task: String,
    pub(crate) version: u64,
    pub(crate) state: OfferState,
    pub(crate) reason: String,
    /// True if it stops the version for all.
    pub(crate) halts: bool,
}

/// A task and a version of its model.
pub(crate) type ModelKey = (String, u64);

#[derive(Debug)]
struct Entry {
    shelved: Arc<Shelved>,
    /// `None` until it is known what is on record of it.
    rollout: Option<Rollout>,
    /// The file is another one than when it was first offered.
    is_changed: bool,
    /// By gateway: why it did not keep it.
    reasons: BTreeMap<Arc<str>, String>,
}

/// All versions, and what gateways have said since they connected.
#[derive(Debug)]
pub(crate) struct Models {
    share_ppm: u32,
    soak_us: u64,
    entries: BTreeMap<ModelKey, Entry>,
    /// Files that cannot be offered, and why.
    problems: Vec<String>,
    said: BTreeMap<Arc<str>, BTreeMap<String, ModelState>>,
}

impl Models {
    pub(crate) fn new(config: &config::Models) -> Models {
        Models {
            share_ppm: (config.share.clamp(0.0, 1.0) * 1e6) as u32,
            soak_us: config.soak.as_micros(),
            entries: BTreeMap::new(),
            problems: Vec::new(),
            said: BTreeMap::new(),
        }
    }

    /// The directory is like this now; returns the versions of which must be asked what is on record.
    pub(crate) fn found(&mut self, shelf: &Shelf) -> Vec<ModelKey> {
        self.problems.clone_from(&shelf.problems);
        self.entries.retain(|key, _| shelf.packages.contains_key(key));
        let mut fresh = Vec::new();
        for (key, shelved) in &shelf.packages {
            match self.entries.get_mut(key) {
                Some(entry) if entry.rollout.is_some() => entry.is_changed = entry.shelved.sha256 != shelved.sha256,
                Some(entry) if entry.shelved.sha256 == shelved.sha256 => {}
                _ => {
                    let entry = Entry { shelved: shelved.clone(), rollout: None, is_changed: false, reasons: BTreeMap::new() };
                    self.entries.insert(key.clone(), entry);
                    fresh.push(key.clone());
                }
            }
        }
        fresh
    }

    /// File and sum of a version that is not on record yet: they are to be.
    pub(crate) fn first_seen(&self, key: &ModelKey, record: &PolicyRecord) -> Option<(String, Vec<u8>)> {
        let entry = self.entries.get(key).filter(|_| record.signature.is_none())?;
        Some((entry.shelved.name.clone(), entry.shelved.sha256.to_vec()))
    }

    /// What is on record of a version; returns what is to be stored of what was heard meanwhile.
    pub(crate) fn loaded(&mut self, key: &ModelKey, record: PolicyRecord) -> Vec<(Arc<str>, ModelTold)> {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.rollout.is_none()) else { return Vec::new() };
        if record.signature.is_some_and(|sha256| sha256 != entry.shelved.sha256) {
            entry.is_changed = true;
            return Vec::new();
        }
        let mut rollout = Rollout::new(key.1, self.share_ppm, self.soak_us);
        for (gateway, state, reason) in record.states {
            rollout.told(&gateway, state);
            entry.reasons.insert(gateway, reason);
        }
        entry.rollout = Some(rollout);
        let gateways: Vec<Arc<str>> = self.said.keys().cloned().collect();
        gateways.into_iter().filter_map(|gateway| self.told_of(key, &gateway).map(|told| (gateway, told))).collect()
    }

    /// A gateway said which models it has, and what became of those offered; returns what is news.
    pub(crate) fn told(&mut self, gateway: &Arc<str>, states: ModelStates) -> Vec<ModelTold> {
        let short = |mut state: ModelState| {
            state.reason = model_reason(&state.reason).to_owned();
            (state.task.clone(), state)
        };
        self.said.insert(gateway.clone(), states.tasks.into_iter().take(TASKS_MAX).map(short).collect());
        let keys: Vec<ModelKey> = self.entries.keys().cloned().collect();
        keys.iter().filter_map(|key| self.told_of(key, gateway)).collect()
    }

    fn told_of(&mut self, key: &ModelKey, gateway: &Arc<str>) -> Option<ModelTold> {
        let (task, version) = key;
        let said = self.said.get(gateway)?.get(task)?;
        let entry = self.entries.get_mut(key).filter(|entry| is_for(&entry.shelved.head.gateways, gateway))?;
        let rollout = entry.rollout.as_mut()?;
        let before = rollout.states().get(gateway).copied();
        // A state that a newer gateway made up says nothing of a model.
        let said_state = OfferState::from_code(said.state).filter(|state| *state != OfferState::Offered);
        let state = match said_state {
            Some(state) if said.version == *version => state,
            _ if said.active == *version => OfferState::Kept,
            _ => {
                // It was set up anew, or stopped before it had noted the trial.
                if matches!(before, Some(OfferState::Kept | OfferState::Trial)) && said.tried < *version {
                    rollout.forget(gateway);
                }
                return None;
            }
        };
        if before == Some(state) {
            return None;
        }
        let halts = rollout.told(gateway, state);
        let reason = if said.version == *version { said.reason.clone() } else { String::new() };
        match state {
            OfferState::Kept | OfferState::Trial => entry.reasons.remove(gateway),
            _ => entry.reasons.insert(gateway.clone(), reason.clone()),
        };
        Some(ModelTold { task: task.clone(), version: *version, state, reason, halts })
    }

    /// What a gateway said of its models, since it connected.
    pub(crate) fn of(&self, gateway: &str) -> Vec<GatewayModelStatus> {
        let states = self.said.get(gateway).into_iter().flat_map(BTreeMap::values);
        states
            .map(|said| GatewayModelStatus {
                task: said.task.clone(),
                active: said.active,
                version: said.version,
                state: OfferState::from_code(said.state).map_or("unknown", OfferState::name),
                stage: said.stage.clone(),
                reason: said.reason.clone(),
            })
            .collect()
    }

    /// A gateway's last connection ended.
    pub(crate) fn lost(&mut self, gateway: &Arc<str>) {
        self.said.remove(gateway);
        self.entries.values_mut().filter_map(|entry| entry.rollout.as_mut()).for_each(|rollout| rollout.lost(gateway));
    }

    /// Who is to be offered what now.
    pub(crate) fn offers(&mut self, now_us: u64) -> Vec<(Arc<str>, Body)> {
        let mut offers = Vec::new();
        let mut open: BTreeMap<&str, Vec<Arc<str>>> = BTreeMap::new();
        for (gateway, tasks) in &self.said {
            tasks.keys().for_each(|task| open.entry(task).or_default().push(gateway.clone()));
        }
        for ((task, version), entry) in self.entries.iter_mut().rev() {
            let Some(of_task) = open.get_mut(task.as_str()) else { continue };
            let (mine, rest) = std::mem::take(of_task).into_iter().partition(|name| is_for(&entry.shelved.head.gateways, name));
            *of_task = rest;
            let mut mine: Vec<Arc<str>> = mine;
            // Who has tried it or a higher one takes it no more.
            mine.retain(|name| self.said.get(name).and_then(|tasks| tasks.get(task)).is_some_and(|said| said.tried < *version));
            let Some(rollout) = entry.rollout.as_mut().filter(|_| !entry.is_changed) else { continue };
            let (limit, before) = (OFFERS_PER_TICK - offers.len().min(OFFERS_PER_TICK), rollout.stage());
            let chosen = rollout.offers(now_us, &mine, limit);
            if rollout.stage() != before {
                tracing::info!(task, version, stage = rollout.stage().name(), "model goes on");
            }
            for gateway in chosen {
                tracing::info!(%gateway, task, version, file = entry.shelved.name, "model offered");
                offers.push((gateway, entry.shelved.offer()));
            }
        }
        offers
    }

    pub(crate) fn status(&self) -> ModelsStatus {
        let changed = self.entries.iter().filter(|(_, entry)| entry.is_changed).map(|((task, version), entry)| {
            let name = &entry.shelved.name;
            format!(
                "{name}: version {version} for {task} was another file when it was first offered; sign it as a higher version"
            )
        });
        ModelsStatus {
            offers: self.entries.iter().rev().map(|(key, entry)| self.status_of(key, entry)).collect(),
            problems: self.problems.iter().cloned().chain(changed).collect(),
        }
    }

    fn status_of(&self, (task, version): &ModelKey, entry: &Entry) -> ModelOfferStatus {
        let states = entry.rollout.as_ref().map(Rollout::states);
        let mut gateways: BTreeMap<&'static str, u64> = BTreeMap::new();
        for state in states.into_iter().flat_map(BTreeMap::values) {
            *gateways.entry(state.name()).or_default() += 1;
        }
        let is_trouble = |state: OfferState| matches!(state, OfferState::Refused | OfferState::RolledBack);
        let troubles = states.into_iter().flatten().filter(|(_, state)| is_trouble(**state)).map(|(gateway, state)| {
            let reason = entry.reasons.get(gateway).cloned().unwrap_or_default();
            PolicyTroubleStatus { gateway: gateway.to_string(), state: state.name(), reason }
        });
        let passed_over = self.said.iter().filter_map(|(gateway, tasks)| {
            let said =
                tasks.get(task).filter(|said| said.tried >= *version && is_for(&entry.shelved.head.gateways, gateway))?;
            let is_told = states.is_some_and(|states| states.contains_key(gateway));
            let reason = format!("version {version} is not above {}, which was taken there before", said.tried);
            (!is_told).then(|| PolicyTroubleStatus { gateway: gateway.to_string(), state: "passed-over", reason })
        });
        ModelOfferStatus {
            task: task.clone(),
            version: *version,
            file: entry.shelved.name.clone(),
            stage: entry.rollout.as_ref().map_or("unknown", |rollout| rollout.stage().name()),
            is_halted: entry.rollout.as_ref().is_some_and(|rollout| rollout.stage() == Stage::Halted),
            gateways,
            troubles: troubles.chain(passed_over).take(TROUBLES_SHOWN_MAX).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
