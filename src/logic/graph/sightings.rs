//! Which node that many share explains their trouble.
//!
//! If one box in ten always complains, and behind one carrier nine of ten do, it is the carrier. Each edge of which
//! something is known is a *sighting*, good or bad, and suspects are the shared nodes on it and beyond it. A site speaks
//! once about a node, and clears it if any way of its through the node works.
//!
//! The rule is a likelihood ratio (Neyman and Pearson, 1933), each site weighed by its confidence `w`:
//! ```text
//! log odds = ln(prior odds) + sum over bad sites of w ln(HIT / noise) + over good ones of w ln((1 - HIT) / (1 - noise))
//! ```
//! A failure that spreads has reached some sites and not yet all: then the part that is bad stands for `HIT`, and what is bad
//! elsewhere for `noise`, if that is more. A node on every way has no elsewhere.
//! The best node is taken, what it explains is set aside, and the next is looked for in the rest; `noise` is in the end the
//! rate of what nothing explains, as Kulldorff's spatial scan (1997) compares inside with outside. A node is not blamed if
//! those before it explain more one by one: three carriers failing are not a failing cloud while the fourth works. Among
//! equals it is the one nearest to the boxes.
//!
//! Sites lie: a modem is broken, a clock is wrong. So nothing is said of fewer than three sites, and `HIT` leaves room for
//! sites that deny everything.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::cause::{CauseLimits, Trouble};
use super::estimate::EdgeState;
use super::federation::{Federation, Part};
use super::node::NodeKind;
use crate::health::decay::{exp_negative, ln};

/// Sightings of all sites, and who is suspected in them.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    all: Vec<Sighting>,
    /// Suspects of all sightings, one after the other: positions in `candidates`.
    suspects: Vec<u32>,
    pub(super) candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Sighting {
    site: u32,
    trouble: Option<Trouble>,
    weight: f64,
    suspects: (u32, u32),
    is_ack: bool,
    /// A cause explains it.
    is_aside: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) node: (NodeKind, u32),
    pub(super) is_ack: bool,
}

/// What one node would explain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finding {
    pub(super) candidate: u32,
    pub(super) trouble: Trouble,
    pub(super) affected: u32,
    pub(super) share: f64,
    bad_weight: f64,
    good_weight: f64,
    /// Part of the other sightings that are bad; `None` if there are too few to compare with.
    elsewhere: Option<f64>,
    /// At the usual noise, for comparing.
    log_odds: f64,
    /// At the noise found.
    pub(super) confidence: f64,
}

impl Finding {
    fn log_odds(&self, noise: f64) -> f64 {
        ln(PRIOR_ODDS) + self.evidence(HIT, noise).max(self.spreading(noise))
    }

    /// Of a cause that hits this part of its sites.
    fn evidence(&self, hit: f64, noise: f64) -> f64 {
        self.bad_weight * ln(hit / noise) + self.good_weight * ln((1.0 - hit) / (1.0 - noise))
    }

    /// Of one that has reached some of its sites and not yet all: more are bad there than elsewhere.
    fn spreading(&self, noise: f64) -> f64 {
        let hit = self.bad_weight / (self.bad_weight + self.good_weight).max(f64::MIN_POSITIVE);
        match self.elsewhere.map(|elsewhere| noise.max(elsewhere)) {
            Some(noise) if hit > noise && hit < HIT => self.evidence(hit, noise),
            _ => f64::NEG_INFINITY,
        }
    }

    pub(super) fn confidence(&self, noise: f64) -> f64 {
        let log_odds = self.log_odds(noise);
        if log_odds >= 0.0 { 1.0 / (1.0 + exp_negative(log_odds)) } else { 0.0 }
    }
}

/// What is counted for one candidate.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    good_sites: u32,
    good_weight: f64,
    bad_weight: f64,
    by_trouble: [u32; 3],
}

impl Sightings {
    pub(super) fn collect(now_us: u64, federation: &Federation) -> Sightings {
        let mut sightings = Sightings::default();
        let mut positions = BTreeMap::new();
        let mut next = Vec::new();
        for (site, part) in federation.parts().enumerate() {
            let nodes = part.raw_nodes();
            ways_on(part, &mut next);
            for (from, to, estimate) in part.edges(now_us) {
                let shared = |node: u16| nodes[usize::from(node)].0.is_shared_way();
                let weight = estimate.confidence();
                let is_idle = estimate.is_empty() || estimate.state == Some(EdgeState::Cold);
                if is_idle || weight < WEIGHT_MIN || !(shared(from) || shared(to)) {
                    continue;
                }
                let is_ack = !shared(to);
                let start = sightings.suspects.len() as u32;
                let beyond = std::iter::successors(Some(to), |at| next[usize::from(*at)].only()).take(WAY_LEN_MAX);
                for node in std::iter::once(from).chain(beyond).filter(|node| shared(*node)) {
                    let node = nodes[usize::from(node)];
                    let position = *positions.entry((node, is_ack)).or_insert_with(|| {
                        sightings.candidates.push(Candidate { node, is_ack });
                        sightings.candidates.len() as u32 - 1
                    });
                    sightings.suspects.push(position);
                }
                let suspects = (start, sightings.suspects.len() as u32);
                let trouble = Trouble::shown_by(&estimate);
                sightings.all.push(Sighting { site: site as u32, trouble, weight, suspects, is_ack, is_aside: false });
            }
        }
        sightings
    }

    fn suspects(&self, sighting: &Sighting) -> &[u32] {
        &self.suspects[sighting.suspects.0 as usize..sighting.suspects.1 as usize]
    }

    /// The nodes that explain most of what is bad, one after the other; what they explain is set aside.
    pub(super) fn explain(&mut self, limits: &CauseLimits) -> Vec<Finding> {
        let mut found = Vec::new();
        while found.len() < CAUSES_MAX {
            let Some(best) = self.best(limits, None) else { break };
            let chosen = self.apart(limits, &best).unwrap_or(best);
            self.set_aside(chosen.candidate);
            found.push(chosen);
        }
        found
    }

    /// The best of those that explain one by one more of a node's trouble than the node does, if they do.
    fn apart(&mut self, limits: &CauseLimits, whole: &Finding) -> Option<Finding> {
        let aside: Vec<bool> = self.all.iter().map(|sighting| sighting.is_aside).collect();
        let (mut first, mut log_odds) = (None, 0.0);
        for _ in 0..APART_MAX {
            let Some(part) = self.best(limits, Some(whole.candidate)) else { break };
            first.get_or_insert(part);
            log_odds += part.log_odds;
            self.set_aside(part.candidate);
        }
        for (sighting, aside) in self.all.iter_mut().zip(aside) {
            sighting.is_aside = aside;
        }
        first.filter(|_| log_odds > whole.log_odds)
    }

    /// The candidate that explains most, if any explains enough; of the sightings on which `within` is, if given.
    pub(super) fn best(&self, limits: &CauseLimits, within: Option<u32>) -> Option<Finding> {
        let tallies = self.tally(within);
        let all = self.all_of_kind(within);
        let others = (0..).zip(&tallies).filter(|(candidate, _)| Some(*candidate) != within);
        let findings = others.filter_map(|(candidate, tally)| {
            let all = &all[usize::from(self.candidates[candidate as usize].is_ack)];
            tally.finding(candidate, tally.elsewhere(all), limits)
        });
        findings.reduce(|best, other| {
            let kind = |finding: &Finding| self.candidates[finding.candidate as usize].node.0;
            let is_better = (other.log_odds, Reverse(kind(&other))) > (best.log_odds, Reverse(kind(&best)));
            if is_better { other } else { best }
        })
    }

    /// What is not set aside, of ways and of acknowledgements, whomever it is about.
    fn all_of_kind(&self, within: Option<u32>) -> [Tally; 2] {
        let mut all = [Tally::default(); 2];
        let is_open =
            |sighting: &&Sighting| !sighting.is_aside && within.is_none_or(|within| self.suspects(sighting).contains(&within));
        for sighting in self.all.iter().filter(is_open) {
            all[usize::from(sighting.is_ack)].add(sighting);
        }
        all
    }

    /// Counts what is not set aside, for all candidates.
    fn tally(&self, within: Option<u32>) -> Vec<Tally> {
        let mut tallies = vec![Tally::default(); self.candidates.len()];
        // What the present site says of each node that it speaks of.
        let mut site: Vec<(u32, Sighting)> = Vec::new();
        for sighting in self.all.iter().filter(|sighting| !sighting.is_aside) {
            let suspects = self.suspects(sighting);
            if within.is_some_and(|within| !suspects.contains(&within)) {
                continue;
            }
            if site.first().is_some_and(|(_, first)| first.site != sighting.site) {
                close_site(&mut site, &mut tallies);
            }
            for &candidate in suspects {
                match site.iter_mut().find(|(held, _)| *held == candidate) {
                    Some((_, held)) if is_cleared_by(held, sighting) => *held = *sighting,
                    Some(_) => {}
                    None => site.push((candidate, *sighting)),
                }
            }
        }
        close_site(&mut site, &mut tallies);
        tallies
    }

    /// Part of what is not set aside that is bad: of ways, and of acknowledgements.
    pub(super) fn noise(&self) -> (f64, f64) {
        let rate = |is_ack: bool| {
            let open = self.all.iter().filter(|sighting| !sighting.is_aside && sighting.is_ack == is_ack);
            let start = (USUAL_SIGHTINGS * NOISE_USUAL, USUAL_SIGHTINGS);
            let (bad, all) = open.fold(start, |(bad, all), sighting| {
                (bad + if sighting.trouble.is_some() { sighting.weight } else { 0.0 }, all + sighting.weight)
            });
            (bad / all).min(NOISE_MAX)
        };
        (rate(false), rate(true))
    }

    /// What `candidate` explains is evidence against nobody else.
    fn set_aside(&mut self, candidate: u32) {
        let suspects = &self.suspects;
        for sighting in self.all.iter_mut().filter(|sighting| sighting.trouble.is_some()) {
            let range = sighting.suspects.0 as usize..sighting.suspects.1 as usize;
            sighting.is_aside |= suspects[range].contains(&candidate);
        }
    }
}

/// One way that works clears a node; of several that do not, the most certain counts.
fn is_cleared_by(held: &Sighting, other: &Sighting) -> bool {
    match (held.trouble, other.trouble) {
        (Some(_), None) => true,
        (None, Some(_)) => false,
        _ => other.weight > held.weight,
    }
}

fn close_site(site: &mut Vec<(u32, Sighting)>, tallies: &mut [Tally]) {
    for (candidate, sighting) in site.drain(..) {
        tallies[candidate as usize].add(&sighting);
    }
}

impl Tally {
    fn add(&mut self, sighting: &Sighting) {
        match sighting.trouble {
            Some(trouble) => {
                self.bad_weight += sighting.weight;
                self.by_trouble[trouble as usize] += 1;
            }
            None => {
                self.good_sites += 1;
                self.good_weight += sighting.weight;
            }
        }
    }

    /// Part of all others that are bad; `None` if they are fewer than the usual.
    fn elsewhere(&self, all: &Tally) -> Option<f64> {
        let bad = (all.bad_weight - self.bad_weight).max(0.0);
        let others = bad + (all.good_weight - self.good_weight).max(0.0);
        (others >= USUAL_SIGHTINGS).then(|| (bad + USUAL_SIGHTINGS * NOISE_USUAL) / (others + USUAL_SIGHTINGS))
    }

    fn finding(&self, candidate: u32, elsewhere: Option<f64>, limits: &CauseLimits) -> Option<Finding> {
        let affected = self.by_trouble.iter().sum();
        let share = f64::from(affected) / f64::from(affected + self.good_sites).max(1.0);
        if affected < limits.affected_min || share < limits.share_min {
            return None;
        }
        // The most frequent, of equals the worst.
        let trouble = Trouble::ALL.into_iter().max_by_key(|trouble| self.by_trouble[*trouble as usize])?;
        let (bad_weight, good_weight) = (self.bad_weight, self.good_weight);
        let (log_odds, confidence) = (0.0, 0.0);
        let finding = Finding { candidate, trouble, affected, share, bad_weight, good_weight, elsewhere, log_odds, confidence };
        let log_odds = finding.log_odds(NOISE_USUAL);
        (log_odds > 0.0).then_some(Finding { log_odds, ..finding })
    }
}

/// Where a node leads to among shared nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Nowhere,
    Only(u16),
    Several,
}

impl Next {
    fn only(self) -> Option<u16> {
        match self {
            Next::Only(node) => Some(node),
            Next::Nowhere | Next::Several => None,
        }
    }
}

/// For each node of a part, where it leads to. Behind a fork nobody can tell which way was taken.
fn ways_on(part: Part<'_>, next: &mut Vec<Next>) {
    let nodes = part.raw_nodes();
    next.clear();
    next.resize(nodes.len(), Next::Nowhere);
    let shared = |node: u16| nodes[usize::from(node)].0.is_shared_way();
    for &(from, to) in part.raw_ends().iter().filter(|(from, to)| shared(*from) && shared(*to)) {
        let held = &mut next[usize::from(from)];
        *held = if *held == Next::Nowhere { Next::Only(to) } else { Next::Several };
    }
}

/// Whoever is trusted less than this has no say.
const WEIGHT_MIN: f64 = 0.3;
/// Part of the sites that notice a cause and say so: there are some that deny everything.
const HIT: f64 = 0.85;
/// Odds before anything is seen that a certain node is failing just now.
const PRIOR_ODDS: f64 = 0.01;
/// Part of all sightings that are bad without a common cause: one site in ten always complains.
const NOISE_USUAL: f64 = 0.1;
/// As if so many more had been seen at the usual noise: without others there is no comparison.
const USUAL_SIGHTINGS: f64 = 10.0;
/// Where half of everything is bad anyway, a node must be worse than that to stand out.
const NOISE_MAX: f64 = 0.5;
/// Nodes that are looked at in the place of one.
const APART_MAX: usize = 8;
/// Causes at a time.
pub(super) const CAUSES_MAX: usize = 16;
/// Shared nodes on a way: more than router, carrier, ingest, pool and sink only if somebody makes a circle.
const WAY_LEN_MAX: usize = 6;
