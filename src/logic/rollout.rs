//! Which gateways are offered a policy now: a share of them first, the others once it has proved itself there.
//!
//! Think of a new recipe that a few tables get first. The tables are chosen by a hash of their name and the version, so that
//! it is not the same few each time and a cloud that restarts chooses the same ones. The rest are served when every first table that was served has kept it
//! and nobody has sent it back for [`Rollout::new`]'s soak time. One that sends it back stops it everywhere, until there is
//! a new version: what runs elsewhere stays, because it was kept there. A box without a key for policies takes none at all:
//! it says nothing of this one, and stops nothing.

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
    /// It was not taken: the gateway has no key to check policies with.
    NoKey,
}

impl OfferState {
    /// All of them, in the order of their codes.
    pub const ALL: [OfferState; 6] = [
        OfferState::Offered,
        OfferState::Trial,
        OfferState::Kept,
        OfferState::Refused,
        OfferState::RolledBack,
        OfferState::NoKey,
    ];

    /// Its number on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The inverse of [`OfferState::code`].
    pub fn from_code(code: u32) -> Option<OfferState> {
        OfferState::ALL.into_iter().find(|state| state.code() == code)
    }

    /// The word used in logs and status.
    pub const fn name(self) -> &'static str {
        match self {
            OfferState::Offered => "offered",
            OfferState::Trial => "trial",
            OfferState::Kept => "kept",
            OfferState::Refused => "refused",
            OfferState::RolledBack => "rolled-back",
            OfferState::NoKey => "no-key",
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

impl Stage {
    /// The word used in logs and status.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Share => "share",
            Stage::All => "all",
            Stage::Halted => "halted",
        }
    }
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

    /// The gateways to offer it to now, of those that are connected and that it is for, in any order and at most `limit`; they
    /// count as offered.
    pub fn offers(&mut self, now_us: u64, connected: &[Arc<str>], limit: usize) -> Vec<Arc<str>> {
        self.advance(now_us);
        if self.stage == Stage::Halted {
            return Vec::new();
        }
        let fresh = connected.iter().filter(|gateway| !self.states.contains_key(*gateway));
        let first = fresh.clone().min_by_key(|gateway| rank(gateway, self.version));
        let nobody_has_it = self.states.values().all(|&state| state == OfferState::NoKey);
        let is_chosen = |gateway: &&Arc<str>| {
            let in_share = rank(gateway, self.version) % 1_000_000 < u64::from(self.share_ppm);
            // At least one gets it first; once one has, that one is it.
            let is_first = nobody_has_it && first == Some(*gateway);
            self.stage == Stage::All || in_share || is_first
        };
        let chosen: Vec<Arc<str>> = fresh.filter(is_chosen).take(limit).cloned().collect();
        self.states.extend(chosen.iter().map(|gateway| (Arc::clone(gateway), OfferState::Offered)));
        chosen
    }

    /// A connection ended before its gateway said anything: it is offered again when it is back.
    pub fn lost(&mut self, gateway: &Arc<str>) {
        if self.states.get(gateway) == Some(&OfferState::Offered) {
            self.states.remove(gateway);
        }
    }

    /// A gateway turned out to have nothing of it, whatever it said: it was set up anew, or has a key now.
    pub fn forget(&mut self, gateway: &Arc<str>) {
        self.states.remove(gateway);
    }

    fn advance(&mut self, now_us: u64) {
        let mut asked = self.states.values().filter(|&&state| state != OfferState::NoKey).peekable();
        let is_kept = asked.peek().is_some() && asked.all(|&state| state == OfferState::Kept);
        self.kept_since_us = if is_kept { self.kept_since_us.or(Some(now_us)) } else { None };
        let soaked = self.kept_since_us.is_some_and(|since_us| now_us >= since_us.saturating_add(self.soak_us));
        if self.stage == Stage::Share && soaked {
            self.stage = Stage::All;
        }
    }
}

/// True if one of the patterns is the gateway's name, where `*` stands for any text; no patterns are for all.
pub fn is_for(patterns: &[String], gateway: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, gateway))
}

fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(end)
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
        let first = rollout.offers(0, &fleet, 9_999);
        assert!((60..150).contains(&first.len()), "{}", first.len());
        assert!(rollout.offers(1, &fleet, 9_999).is_empty(), "once each");
        first.iter().for_each(|gateway| assert!(!rollout.told(gateway, OfferState::Kept)));
        assert!(rollout.offers(10 * S, &fleet, 9_999).is_empty());
        assert!(rollout.offers(609 * S, &fleet, 9_999).is_empty(), "not soaked");
        let rest = rollout.offers(610 * S, &fleet, 9_999);
        assert_eq!((first.len() + rest.len(), rollout.stage()), (1_000, Stage::All));
        assert!(rest.iter().all(|gateway| !first.contains(gateway)));
    }

    #[test]
    fn one_that_sends_it_back_halts_it() {
        let (fleet, mut rollout) = (fleet(100), Rollout::new(3, 100_000, 0));
        let first = rollout.offers(0, &fleet, 9_999);
        assert!(rollout.told(&first[0], OfferState::RolledBack));
        assert!(!rollout.told(&first[0], OfferState::RolledBack), "told once");
        assert_eq!((rollout.stage(), rollout.offers(S, &fleet, 9_999).len()), (Stage::Halted, 0));
    }

    #[test]
    fn boxes_without_a_key_are_passed_over_and_a_limit_spreads_the_offers() {
        let (fleet, mut rollout) = (fleet(50), Rollout::new(1, 0, 0));
        let first = rollout.offers(0, &fleet, 9);
        assert_eq!(first.len(), 1);
        assert!(!rollout.told(&first[0], OfferState::NoKey), "it halts nothing");
        let second = rollout.offers(1, &fleet, 9);
        assert!(second.len() == 1 && second != first, "another is the first");
        rollout.told(&second[0], OfferState::Kept);
        assert_eq!(rollout.offers(2, &fleet, 9).len(), 9);
        assert_eq!(rollout.offers(3, &fleet, 90).len(), 39);
        rollout.forget(&first[0]);
        assert_eq!(rollout.offers(4, &fleet, 9), first, "it has a key now");
    }

    #[test]
    fn patterns_name_gateways() {
        let is_for = |patterns: &[&str], name| is_for(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>(), name);
        assert!(is_for(&[], "box-1") && is_for(&["*"], "box-1") && is_for(&["box-1"], "box-1"));
        assert!(is_for(&["hall-*", "box-*"], "box-1") && is_for(&["*-1"], "box-1") && is_for(&["b*x*1"], "box-1"));
        assert!(!is_for(&["box"], "box-1") && !is_for(&["*-2"], "box-1") && !is_for(&["box-1*1"], "box-1"));
        assert!(!is_for(&["a*"], "box-1") && !is_for(&["*z*"], "box-1") && is_for(&["**"], ""));
    }

    #[test]
    fn a_small_fleet_has_a_first_one_and_waits_for_it() {
        let (fleet, mut rollout) = (fleet(2), Rollout::new(1, 1, 0));
        let first = rollout.offers(0, &fleet, 9_999);
        assert_eq!(first.len(), 1);
        assert!(rollout.offers(1, &fleet, 9_999).is_empty());
        rollout.told(&first[0], OfferState::Trial);
        assert!(rollout.offers(2, &fleet, 9_999).is_empty());
        rollout.told(&first[0], OfferState::Kept);
        assert_eq!(rollout.offers(3, &fleet, 9_999).len(), 1);
    }

    #[test]
    fn who_was_cut_off_before_a_word_is_offered_it_again_and_restarts_choose_the_same() {
        let fleet = fleet(300);
        let mut rollout = Rollout::new(9, 50_000, 0);
        let first = rollout.offers(0, &fleet, 9_999);
        rollout.lost(&first[0]);
        assert_eq!(rollout.offers(1, &fleet, 9_999), [first[0].clone()]);
        assert_eq!(Rollout::new(9, 50_000, 0).offers(0, &fleet, 9_999), first);
        assert_ne!(Rollout::new(10, 50_000, 0).offers(0, &fleet, 9_999), first, "other tables another time");
    }
}
