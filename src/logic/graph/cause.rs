//! Which node that many share explains their trouble: what is said of it, and for how long.
//!
//! The evidence of one moment is in `sightings.rs`; taken by itself it would flap. So a cause is named when it has stood for
//! some seconds, and cleared when nothing has supported it for longer. It gets worse at once, and less bad only after that
//! time too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::estimate::{EdgeState, Estimate, Quantity};
use super::federation::{Federation, Part};
use super::node::NodeKey;
use super::sightings::{CAUSES_MAX, Candidate, Finding, Sightings};

/// What is wrong, the worse the later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trouble {
    /// It queues.
    Slow,
    /// It loses or fails some.
    Degraded,
    /// Nothing gets through.
    Down,
}

impl Trouble {
    /// All of them; the number on the wire starts at 1.
    pub const ALL: [Trouble; 3] = [Trouble::Slow, Trouble::Degraded, Trouble::Down];

    /// The word used in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Trouble::Slow => "slow",
            Trouble::Degraded => "degraded",
            Trouble::Down => "down",
        }
    }

    /// What an estimate shows; `None` if all is well.
    pub fn shown_by(estimate: &Estimate) -> Option<Trouble> {
        let above = |quantity, limit: f64| estimate.get(quantity).is_some_and(|value| value >= limit);
        match estimate.state {
            Some(state) if state.is_down() => Some(Trouble::Down),
            Some(EdgeState::Yellow) => Some(Trouble::Degraded),
            _ if above(Quantity::Loss, LOSS_BAD) || above(Quantity::ErrorRatio, ERROR_RATIO_BAD) => Some(Trouble::Degraded),
            _ if above(Quantity::QueueingDelayUs, QUEUEING_DELAY_US_BAD) => Some(Trouble::Slow),
            _ => None,
        }
    }
}

/// When a common cause is named, and when no longer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CauseLimits {
    /// Fewest sites in trouble.
    pub affected_min: u32,
    /// Smallest share of its sites that are in trouble.
    pub share_min: f64,
    /// Confidence from which on it is named.
    pub raise: f64,
    /// Confidence from which on it stays named.
    pub keep: f64,
    /// For how long it must have stood before it is named.
    pub raise_us: u64,
    /// For how long nothing must have supported it before it is cleared, or found less bad.
    pub hold_us: u64,
}

impl Default for CauseLimits {
    /// Three sites are the fewest that have anything in common but chance; 30 s is the breaker's hold-down. A failure that spreads is told
    /// to those that it has not reached: a quarter is enough if it is far from chance.
    fn default() -> Self {
        CauseLimits { affected_min: 3, share_min: 0.25, raise: 0.9, keep: 0.5, raise_us: 2_000_000, hold_us: 30_000_000 }
    }
}

/// A node that is the common cause of trouble.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// The node.
    pub node: NodeKey,
    /// What is wrong with it.
    pub trouble: Trouble,
    /// Sites in trouble.
    pub affected: u32,
    /// Part of its sites that are, in `[0, 1]`.
    pub share: f64,
    /// Probability that it is the cause, in `[0, 1]`.
    pub confidence: f64,
    /// Service time since when it has been named, in microseconds.
    pub since_us: u64,
    /// Service time when it was last supported, in microseconds.
    pub seen_us: u64,
}

/// Sums since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CauseCounters {
    /// Causes named.
    pub raised: u64,
    /// Causes cleared.
    pub cleared: u64,
    /// Causes that were not looked for because there were too many already.
    pub left_out: u64,
}

/// The common causes of now, with the memory that keeps them from flapping.
#[derive(Debug, Clone, Default)]
pub struct Causes {
    limits: CauseLimits,
    named: BTreeMap<NodeKey, Named>,
    /// Since when a node has been suspected enough to be named.
    pending: BTreeMap<NodeKey, u64>,
    counters: CauseCounters,
}

#[derive(Debug, Clone)]
struct Named {
    cause: Cause,
    /// When it was last as bad as it is said to be.
    as_bad_us: u64,
}

impl Causes {
    /// No causes yet.
    pub fn new(limits: CauseLimits) -> Self {
        Causes { limits, ..Causes::default() }
    }

    /// Looks at all parts. To be called every second or few: it is one pass over all edges for each cause found.
    pub fn judge(&mut self, now_us: u64, federation: &Federation) {
        let mut sightings = Sightings::collect(now_us, federation);
        let findings = sightings.explain(&self.limits);
        self.counters.left_out += u64::from(findings.len() == CAUSES_MAX && sightings.best(&self.limits, None).is_some());
        let (ways, acks) = sightings.noise();
        let mut found = BTreeMap::new();
        for mut finding in findings {
            let Candidate { node: (kind, name), is_ack } = sightings.candidates[finding.candidate as usize];
            finding.confidence = finding.confidence(if is_ack { acks } else { ways });
            if finding.confidence < self.limits.keep {
                continue;
            }
            let node = NodeKey { kind, site: None, name: federation.name(name).clone() };
            // Ways and acknowledgements are judged apart; the worse verdict stands for both.
            let is_worse = |held: &Finding| (finding.trouble, finding.confidence) > (held.trouble, held.confidence);
            if found.get(&node).is_none_or(is_worse) {
                found.insert(node, finding);
            }
        }
        self.settle(now_us, &found);
    }

    /// All that are named, by node.
    pub fn named(&self) -> impl Iterator<Item = &Cause> {
        self.named.values().map(|named| &named.cause)
    }

    /// Those that concern the owner of a part, because it has the node.
    pub fn concerning<'a>(&'a self, federation: &'a Federation, part: Part<'a>) -> impl Iterator<Item = &'a Cause> {
        self.named().filter(move |cause| {
            federation.name_number(&cause.node.name).is_some_and(|name| part.raw_nodes().contains(&(cause.node.kind, name)))
        })
    }

    /// Sums since start.
    pub fn counters(&self) -> CauseCounters {
        self.counters
    }

    fn settle(&mut self, now_us: u64, found: &BTreeMap<NodeKey, Finding>) {
        let limits = self.limits;
        for (node, finding) in found {
            if let Some(named) = self.named.get_mut(node) {
                named.update(now_us, finding, limits.hold_us);
            } else if finding.confidence >= limits.raise {
                let since_us = *self.pending.entry(node.clone()).or_insert(now_us);
                if now_us.saturating_sub(since_us) >= limits.raise_us && self.named.len() < CAUSES_MAX {
                    let Finding { trouble, affected, share, confidence, .. } = *finding;
                    let node = node.clone();
                    let cause =
                        Cause { node: node.clone(), trouble, affected, share, confidence, since_us: now_us, seen_us: now_us };
                    self.named.insert(node, Named { cause, as_bad_us: now_us });
                    self.counters.raised += 1;
                }
            }
        }
        let named = &self.named;
        self.pending.retain(|node, _| {
            !named.contains_key(node) && found.get(node).is_some_and(|finding| finding.confidence >= limits.raise)
        });
        let before = self.named.len();
        self.named.retain(|_, named| now_us.saturating_sub(named.cause.seen_us) < limits.hold_us);
        self.counters.cleared += (before - self.named.len()) as u64;
    }
}

impl Named {
    fn update(&mut self, now_us: u64, finding: &Finding, hold_us: u64) {
        let cause = &mut self.cause;
        (cause.affected, cause.share, cause.confidence) = (finding.affected, finding.share, finding.confidence);
        cause.seen_us = now_us;
        if finding.trouble < cause.trouble && now_us.saturating_sub(self.as_bad_us) < hold_us {
            return;
        }
        cause.trouble = finding.trouble;
        self.as_bad_us = now_us;
    }
}

/// The 5 % at which people in the field fail over.
const LOSS_BAD: f64 = 0.05;
/// One exchange of five fails: the breaker opens at one of two.
const ERROR_RATIO_BAD: f64 = 0.2;
/// Half a second of queue: what a full buffer of a modem holds, and more than any commit takes.
const QUEUEING_DELAY_US_BAD: f64 = 500_000.0;
