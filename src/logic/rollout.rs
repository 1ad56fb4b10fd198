//! Which gateways are offered a policy now: a share of them first, the others once it has proved itself there.
//!
//! Think of a new recipe that a few tables get first. The tables are chosen by a hash of their name and the version, so that
//! it is not the same few each time and a cloud that restarts chooses the same ones. The rest are served when every first table that was served has kept it
//! and nobody has sent it back for [`Rollout::new`]'s soak time. One that sends it back stops it everywhere, until there is
//! a new version: what runs elsewhere stays, because it was kept there.

use std::collections::BTreeMap;
use std::sync::Arc;

/// What a gateway has said of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OfferState {
    /// It was sent; nothing was said yet.
    Offered,
    /// It is on trial.
    Trial,
    /// It stays.
    Kept,
    /// It was not taken: wrong signature, mistakes, or an older version.
    Refused,
    /// It was taken back.
    RolledBack,
}

impl OfferState {
    /// Its number on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The inverse of [`OfferState::code`].
    pub fn from_code(code: u32) -> Option<OfferState> {
        use OfferState::{Kept, Offered, Refused, RolledBack, Trial};
        [Offered, Trial, Kept, Refused, RolledBack].into_iter().find(|state| state.code() == code)
    }

    /// The word used in logs and status.
    pub const fn name(self) -> &'static str {
        match self {
            OfferState::Offered => "offered",
            OfferState::Trial => "trial",
            OfferState::Kept => "kept",
            OfferState::Refused => "refused",
            OfferState::RolledBack => "rolled-back",
        }
    }
}

/// How far a rollout has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A share of the gateways has it, or gets it.
    Share,
    /// All get it.
    All,
    /// Somebody sent it back: nobody gets it any more.
    Halted,
}

/// One version of a policy on its way to the gateways.
#[derive(Debug, Clone)]
pub struct Rollout {
    version: u64,
    share_ppm: u32,
    soak_us: u64,
    stage: Stage,
    states: BTreeMap<Arc<str>, OfferState>,
    /// Since when all of the share that were offered it have kept it.
    kept_since_us: Option<u64>,
}

impl Rollout {
    /// A version that `share_ppm` millionths of the gateways get first, for at least `soak_us` microseconds.
    pub fn new(version: u64, share_ppm: u32, soak_us: u64) -> Rollout {
        Rollout { version, share_ppm, soak_us, stage: Stage::Share, states: BTreeMap::new(), kept_since_us: None }
    }

    /// Its version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How far it has come.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// What gateways have said of it.
    pub fn states(&self) -> &BTreeMap<Arc<str>, OfferState> {
        &self.states
    }

    /// A gateway said what became of it; returns true if that halts it.
    pub fn told(&mut self, gateway: &Arc<str>, state: OfferState) -> bool {
        self.states.insert(Arc::clone(gateway), state);
        let halts = matches!(state, OfferState::RolledBack | OfferState::Refused) && self.stage != Stage::Halted;
        if halts {
            self.stage = Stage::Halted;
        }
        halts
    }

    /// The gateways to offer it to now, of those that are connected and that it is for, in any order; they count as offered.
    pub fn offers(&mut self, now_us: u64, connected: &[Arc<str>]) -> Vec<Arc<str>> {
        self.advance(now_us);
        if self.stage == Stage::Halted || connected.is_empty() {
            return Vec::new();
        }
        let first = connected.iter().min_by_key(|gateway| rank(gateway, self.version));
        let is_chosen = |gateway: &&Arc<str>| {
            let in_share = rank(gateway, self.version) % 1_000_000 < u64::from(self.share_ppm);
            // At least one gets it first; once one has, that one is it.
            let is_first = self.states.is_empty() && first == Some(*gateway);
            self.stage == Stage::All || in_share || is_first
        };
        let fresh = connected.iter().filter(|gateway| !self.states.contains_key(*gateway));
        let chosen: Vec<Arc<str>> = fresh.filter(is_chosen).cloned().collect();
        self.states.extend(chosen.iter().map(|gateway| (Arc::clone(gateway), OfferState::Offered)));
        chosen
    }

    /// A connection ended before its gateway said anything: it is offered again when it is back.
    pub fn lost(&mut self, gateway: &Arc<str>) {
        if self.states.get(gateway) == Some(&OfferState::Offered) {
            self.states.remove(gateway);
        }
    }

    fn advance(&mut self, now_us: u64) {
        let is_kept = !self.states.is_empty() && self.states.values().all(|&state| state == OfferState::Kept);
        self.kept_since_us = if is_kept { self.kept_since_us.or(Some(now_us)) } else { None };
        let soaked = self.kept_since_us.is_some_and(|since_us| now_us >= since_us.saturating_add(self.soak_us));
        if self.stage == Stage::Share && soaked {
            self.stage = Stage::All;
        }
    }
}

/// A number of a gateway that differs from version to version (FNV-1a).
fn rank(gateway: &str, version: u64) -> u64 {
    let bytes = gateway.bytes().chain(version.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    // The low bits of FNV follow the last bytes too closely.
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn fleet(count: usize) -> Vec<Arc<str>> {
        (0..count).map(|at| format!("box-{at}").into()).collect()
    }

    #[test]
    fn a_share_gets_it_first_and_the_rest_after_the_soak() {
        let (fleet, mut rollout) = (fleet(1_000), Rollout::new(3, 100_000, 600 * S));
        let first = rollout.offers(0, &fleet);
        assert!((60..150).contains(&first.len()), "{}", first.len());
        assert!(rollout.offers(1, &fleet).is_empty(), "once each");
        first.iter().for_each(|gateway| assert!(!rollout.told(gateway, OfferState::Kept)));
        assert!(rollout.offers(10 * S, &fleet).is_empty());
        assert!(rollout.offers(609 * S, &fleet).is_empty(), "not soaked");
        let rest = rollout.offers(610 * S, &fleet);
        assert_eq!((first.len() + rest.len(), rollout.stage()), (1_000, Stage::All));
        assert!(rest.iter().all(|gateway| !first.contains(gateway)));
    }

    #[test]
    fn one_that_sends_it_back_halts_it() {
        let (fleet, mut rollout) = (fleet(100), Rollout::new(3, 100_000, 0));
        let first = rollout.offers(0, &fleet);
        assert!(rollout.told(&first[0], OfferState::RolledBack));
        assert!(!rollout.told(&first[0], OfferState::RolledBack), "told once");
        assert_eq!((rollout.stage(), rollout.offers(S, &fleet).len()), (Stage::Halted, 0));
    }

    #[test]
    fn a_small_fleet_has_a_first_one_and_waits_for_it() {
        let (fleet, mut rollout) = (fleet(2), Rollout::new(1, 1, 0));
        let first = rollout.offers(0, &fleet);
        assert_eq!(first.len(), 1);
        assert!(rollout.offers(1, &fleet).is_empty());
        rollout.told(&first[0], OfferState::Trial);
        assert!(rollout.offers(2, &fleet).is_empty());
        rollout.told(&first[0], OfferState::Kept);
        assert_eq!(rollout.offers(3, &fleet).len(), 1);
    }

    #[test]
    fn who_was_cut_off_before_a_word_is_offered_it_again_and_restarts_choose_the_same() {
        let fleet = fleet(300);
        let mut rollout = Rollout::new(9, 50_000, 0);
        let first = rollout.offers(0, &fleet);
        rollout.lost(&first[0]);
        assert_eq!(rollout.offers(1, &fleet), [first[0].clone()]);
        assert_eq!(Rollout::new(9, 50_000, 0).offers(0, &fleet), first);
        assert_ne!(Rollout::new(10, 50_000, 0).offers(0, &fleet), first, "other tables another time");
    }
}
