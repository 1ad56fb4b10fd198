//! What the cloud tells a box about what it shares with others, and what the box makes of it.
//!
//! A box that hears that its carrier is failing elsewhere probes it, and warms up another; whether it still works *here* only
//! its own traffic says. So advice has a confidence that fades while nobody repeats it, and no power over a breaker.

use std::collections::BTreeMap;

use prost::Message;

use super::cause::{Cause, Causes, Trouble};
use super::federation::Federation;
use super::node::{NodeKey, Owner};
use crate::health::{Confidence, EVIDENCE_HALF_LIFE_US};

/// The part of the common causes that concerns one box; replaces what was said before. Empty: all is well.
#[derive(Clone, PartialEq, Message)]
pub struct Advice {
    /// At most [`ADVICE_ITEMS_MAX`].
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<AdviceItem>,
}

/// One node in trouble.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AdviceItem {
    /// The node's key as text.
    #[prost(string, tag = "1")]
    pub node: String,
    /// 1 slow, 2 degraded, 3 down.
    #[prost(uint32, tag = "2")]
    pub trouble: u32,
    /// Part of its sites that are affected, in thousandths.
    #[prost(uint32, tag = "3")]
    pub share_permille: u32,
    /// Sites affected.
    #[prost(uint32, tag = "4")]
    pub affected: u32,
    /// Probability that it is the cause, in thousandths.
    #[prost(uint32, tag = "5")]
    pub confidence_permille: u32,
    /// How long ago it was last seen to be so, in seconds.
    #[prost(uint32, tag = "6")]
    pub age_s: u32,
}

/// Most items in an [`Advice`].
pub const ADVICE_ITEMS_MAX: usize = 8;
/// Longest [`Advice`] in bytes: eight of the longest names and their numbers.
pub const ADVICE_LEN_MAX: usize = 1_500;

impl Advice {
    /// What to tell a box of these causes, the most certain ones if there are too many.
    pub fn new<'a>(now_us: u64, causes: impl Iterator<Item = &'a Cause>) -> Advice {
        let mut causes: Vec<&Cause> = causes.collect();
        causes.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then_with(|| a.node.cmp(&b.node)));
        causes.truncate(ADVICE_ITEMS_MAX);
        let permille = |part: f64| (part * 1_000.0).round() as u32;
        let items = causes.into_iter().map(|cause| AdviceItem {
            node: cause.node.to_string(),
            trouble: cause.trouble as u32 + 1,
            share_permille: permille(cause.share),
            affected: cause.affected,
            confidence_permille: permille(cause.confidence),
            age_s: u32::try_from(now_us.saturating_sub(cause.seen_us) / 1_000_000).unwrap_or(u32::MAX),
        });
        Advice { items: items.collect() }
    }
}

/// What each box was told last, so that it hears what is new, and again what must not fade.
#[derive(Debug, Clone, Default)]
pub struct Adviser {
    told: BTreeMap<Owner, (Advice, u64)>,
}

impl Adviser {
    /// What to tell a box now, encoded; `None` if it has heard all there is to say.
    pub fn news(&mut self, now_us: u64, federation: &Federation, causes: &Causes, owner: &Owner) -> Option<Vec<u8>> {
        let part = federation.part(owner)?;
        let advice = Advice::new(now_us, causes.concerning(federation, part));
        let is_news = match self.told.get(owner) {
            None => !advice.items.is_empty(),
            Some((said, at_us)) => {
                let is_same = said.items.len() == advice.items.len()
                    && said.items.iter().zip(&advice.items).all(|(a, b)| (&a.node, a.trouble) == (&b.node, b.trouble));
                !is_same || (!advice.items.is_empty() && now_us >= at_us.saturating_add(ADVICE_REPEAT_US))
            }
        };
        if !is_news {
            return None;
        }
        let bytes = advice.encode_to_vec();
        if advice.items.is_empty() {
            self.told.remove(owner);
        } else {
            self.told.insert(owner.clone(), (advice, now_us));
        }
        Some(bytes)
    }

    /// Forgets the boxes that the graph has forgotten.
    pub fn forget_unknown(&mut self, federation: &Federation) {
        self.told.retain(|owner, _| federation.stamp(owner).is_some());
    }
}

/// Why advice is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdviceError {
    /// Over the limit.
    #[error("advice of {len} bytes exceeds the limit of {ADVICE_LEN_MAX}")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Not protobuf of our kind.
    #[error("advice is malformed: {0}")]
    Malformed(String),
}

/// What a box was last told about what it shares with others.
#[derive(Debug, Clone, Default)]
pub struct Neighbours {
    concerns: BTreeMap<NodeKey, Concern>,
    heard_us: u64,
    ignored: u64,
}

/// What is said of one node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Concern {
    /// What is wrong.
    pub trouble: Trouble,
    /// Part of its sites that are affected, in `[0, 1]`.
    pub share: f64,
    /// Sites affected.
    pub affected: u32,
    /// How far that may be trusted, in `[0, 1]`.
    pub confidence: f64,
    /// How long ago it was seen to be so, in microseconds.
    pub age_us: u64,
}

impl Neighbours {
    /// Takes in what the cloud says, in the place of what it said before.
    ///
    /// # Errors
    /// If it is too long or malformed; then what it said before stays.
    pub fn hear(&mut self, now_us: u64, advice: &[u8]) -> Result<(), AdviceError> {
        if advice.len() > ADVICE_LEN_MAX {
            return Err(AdviceError::TooLong { len: advice.len() });
        }
        let advice = Advice::decode(advice).map_err(|err| AdviceError::Malformed(err.to_string()))?;
        self.concerns.clear();
        self.heard_us = now_us;
        let ignored_items = advice.items.len().saturating_sub(ADVICE_ITEMS_MAX);
        self.ignored += ignored_items as u64;
        for item in advice.items.iter().take(ADVICE_ITEMS_MAX) {
            // What a newer cloud says of kinds that are not known here concerns nobody.
            let node = item.node.parse::<NodeKey>().ok();
            let trouble = (item.trouble as usize).checked_sub(1).and_then(|index| Trouble::ALL.get(index).copied());
            let (Some(node), Some(trouble)) = (node, trouble) else {
                self.ignored += 1;
                continue;
            };
            let part = |permille: u32| f64::from(permille.min(1_000)) / 1_000.0;
            let concern = Concern {
                trouble,
                share: part(item.share_permille),
                affected: item.affected,
                confidence: part(item.confidence_permille),
                age_us: u64::from(item.age_s) * 1_000_000,
            };
            self.concerns.insert(node, concern);
        }
        Ok(())
    }

    /// The worst that is said of any of these nodes, as far as it may still be trusted: trouble first, then confidence.
    pub fn about<'a>(&self, now_us: u64, nodes: &'a [NodeKey]) -> Option<(&'a NodeKey, Concern)> {
        let held_us = now_us.saturating_sub(self.heard_us);
        let heard = nodes.iter().filter_map(|node| self.concerns.get(node).map(|concern| (node, concern.after(held_us))));
        let certain = heard.filter(|(_, concern)| concern.confidence >= CONFIDENCE_MIN);
        certain.max_by(|(_, a), (_, b)| a.trouble.cmp(&b.trouble).then(a.confidence.total_cmp(&b.confidence)))
    }

    /// Items that were not understood, or too many.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }
}

impl Concern {
    /// How much longer than estimated things must be reckoned to last, from 1 up: twice if it is surely slow, three times if
    /// degraded, five times if down. Enough to prefer another way that is as good, and to probe; never enough to close one.
    pub fn slowdown(&self) -> f64 {
        let more = match self.trouble {
            Trouble::Slow => 1.0,
            Trouble::Degraded => 2.0,
            Trouble::Down => 4.0,
        };
        // A few affected sites of many weigh less than all of them; what has reached half is on its way to the rest.
        1.0 + more * self.confidence * (2.0 * self.share).min(1.0)
    }

    /// The same after it was held for a while.
    fn after(mut self, held_us: u64) -> Concern {
        self.age_us = self.age_us.saturating_add(held_us);
        let mut decay = Confidence::new(EVIDENCE_HALF_LIFE_US);
        decay.renew(0);
        self.confidence *= decay.value(self.age_us);
        self
    }
}

/// Advice that stays the same is repeated so often, so that it does not fade.
const ADVICE_REPEAT_US: u64 = 20_000_000;
/// What is less certain than this is no reason to do anything.
const CONFIDENCE_MIN: f64 = 0.1;
