//! The cloud's graph over all sites, and the sites that lie to it.

use weir_logic::graph::{
    Adviser, Causes, Federation, FederationLimits, Merged, Owner, Peer, Publisher, PublisherLimits, Site, SiteShape, Stamp,
    UplinkShape,
};
use weir_logic::health::{BreakerState, UplinkEstimate, UplinkState};
use weir_logic::wire::{AdviceBytes, Body};

use super::{CARRIERS, FederationSpec, SECOND_US, SiteCase, Telling};
use crate::link::model::Random;

/// A liar tells another story so often: longer than a cause must stand before it is named.
const STORY_S: u64 = 5;

/// Everything that the cloud knows of the sites.
pub(super) struct Cloud {
    federation: Federation,
    causes: Causes,
    adviser: Adviser,
    sites: Vec<Known>,
    telling: Telling,
    named_us: Option<u64>,
}

struct Known {
    owner: Owner,
    reached_us: u64,
    told_us: Option<u64>,
    liar: Option<Liar>,
}

impl Cloud {
    pub(super) fn new(spec: &FederationSpec, boxes: &[SiteCase], telling: Telling) -> Cloud {
        let known = |site: &SiteCase| Known {
            owner: Owner::gateway(&site.name).expect("its own names are right"),
            reached_us: site.reached_us,
            told_us: None,
            liar: (site.lies && telling == Telling::Lies).then(|| Liar::new(site, spec.seed)),
        };
        Cloud {
            federation: Federation::new(FederationLimits::default()),
            causes: Causes::new(spec.causes),
            adviser: Adviser::default(),
            sites: boxes.iter().map(known).collect(),
            telling,
            named_us: None,
        }
    }

    /// Takes in what a site published; the answer to it, if there is one. What a liar's box says is not what it publishes.
    pub(super) fn merge(&mut self, now_us: u64, site: usize, digest: &[u8]) -> Option<Body> {
        let Known { owner, liar: None, .. } = &self.sites[site] else { return None };
        match self.federation.merge(now_us, owner, digest).expect("its own digests are right") {
            Merged::NeedFull(have) => Some(Body::NeedFull(have)),
            Merged::Taken { .. } | Merged::Old => None,
        }
    }

    /// The last stamp that it has of a site.
    pub(super) fn stamp(&self, site: usize) -> Option<Stamp> {
        self.federation.stamp(&self.sites[site].owner).filter(|_| self.sites[site].liar.is_none())
    }

    /// Looks for common causes; liars speak first.
    pub(super) fn judge(&mut self, now_us: u64) {
        for Known { owner, liar, .. } in &mut self.sites {
            if let Some(digest) = liar.as_mut().and_then(|liar| liar.digest(now_us)) {
                self.federation.merge(now_us, owner, &digest).expect("lies are well formed");
            }
        }
        self.causes.judge(now_us, &self.federation);
        if self.named_us.is_none() && self.causes.named().any(|cause| *cause.node.name == *CARRIERS[0]) {
            self.named_us = Some(now_us);
        }
    }

    /// What a site is to be told now.
    pub(super) fn advice(&mut self, now_us: u64, site: usize) -> Option<Body> {
        if self.telling == Telling::Nothing {
            return None;
        }
        let known = &mut self.sites[site];
        let advice = self.adviser.news(now_us, &self.federation, &self.causes, &known.owner)?;
        if self.named_us.is_some() {
            known.told_us.get_or_insert(now_us);
        }
        Some(Body::Advice(AdviceBytes { advice: advice.into() }))
    }

    /// Sites that had been told when the failure reached them.
    pub(super) fn warned(&self) -> usize {
        self.sites.iter().filter(|site| site.told_us.is_some_and(|told_us| told_us < site.reached_us)).count()
    }

    /// When the failing carrier was first named.
    pub(super) fn named_us(&self) -> Option<u64> {
        self.named_us
    }
}

/// A site that publishes random numbers: of each uplink that it is well, or dead, whichever it is not.
struct Liar {
    site: Site,
    publisher: Publisher,
    peer: Peer,
    random: Random,
    stories: [UplinkEstimate; 2],
}

impl Liar {
    fn new(of: &SiteCase, seed: u64) -> Liar {
        let uplink = |carrier: &str| UplinkShape {
            name: carrier.to_owned(),
            carrier: Some(carrier.to_owned()),
            ingest: "cloud".to_owned(),
            ..UplinkShape::default()
        };
        let uplinks = of.carriers.into_iter().map(uplink).collect();
        let shape = SiteShape { gateway: of.name.clone(), uplinks, ..SiteShape::default() };
        let mut random = Random::new(of.seed ^ seed, 13);
        Liar {
            site: Site::new(&shape).expect("its own names are right"),
            publisher: Publisher::new(0, of.seed, PublisherLimits::default()),
            peer: Peer::default(),
            stories: [story(&mut random), story(&mut random)],
            random,
        }
    }

    fn digest(&mut self, now_us: u64) -> Option<Vec<u8>> {
        if (now_us / SECOND_US).is_multiple_of(STORY_S) {
            self.stories = [story(&mut self.random), story(&mut self.random)];
        }
        for (index, story) in self.stories.iter().enumerate() {
            self.site.uplink(now_us, index, &UplinkEstimate { updated_us: now_us, ..*story });
        }
        self.publisher.next(now_us, self.site.graph(), &mut self.peer)
    }
}

fn story(random: &mut Random) -> UplinkEstimate {
    let is_dead = random.unit() < 0.5;
    UplinkEstimate {
        rtt_us: (random.unit() * 2e6) as u64,
        jitter_us: (random.unit() * 1e5) as u64,
        loss: if is_dead { random.unit() } else { 0.0 },
        goodput_bps: random.unit() * 1e8,
        capacity_bps: random.unit() * 1e8,
        queueing_delay_us: if is_dead { (random.unit() * 5e6) as u64 } else { 0 },
        ack_delay_us: Some((random.unit() * 1e6) as u64),
        cwnd_bytes: 0,
        error_ratio: is_dead.then(|| random.unit()),
        state: if is_dead { UplinkState::Red } else { UplinkState::Green },
        breaker: BreakerState::Closed,
        confidence: 1.0,
        updated_us: 0,
    }
}
