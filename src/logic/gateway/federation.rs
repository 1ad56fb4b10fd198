//! The box's part of the health graph: built from its policy and its uplinks, published, and what neighbours say of it.
//!
//! Once a second the uplinks' estimates go into the part, and what has changed enough goes to the cloud over one session, as a
//! digest that builds on the last. A metered uplink carries one a minute at most. What the cloud says of a carrier or a
//! machine that the box shares with others makes an uplink through it look slower in the plan, and nothing more.

use super::{Event, Gateway, Output};
use crate::graph::{
    Federation as Others, FederationLimits, Neighbours, Peer, Publisher, PublisherCounters, PublisherLimits, Site, SiteShape,
    Snapshot, Stamp, StreamShape, UplinkShape,
};
use crate::ids::Epoch;
use crate::policy::Policy;

/// What the gateway knows of the graph.
#[derive(Debug)]
pub(super) struct Federation {
    name: String,
    /// `None` if a name of the policy cannot stand in the graph: then nothing is published.
    site: Option<Site>,
    publisher: Publisher,
    /// What the far end of each uplink's session has.
    peers: Vec<Peer>,
    published_us: Vec<Option<u64>>,
    /// By uplink the advice that was last told as an event.
    told: Vec<f64>,
    neighbours: Neighbours,
    refused: u64,
    /// By uplink: what a megabyte costs, as the part says.
    prices: Vec<Option<f64>>,
}

/// What was published and heard, since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FederationCounts {
    /// What was published.
    pub published: PublisherCounters,
    /// Advice that could not be read.
    pub advice_refused: u64,
    /// Items of advice that were not understood, or too many.
    pub advice_ignored: u64,
}

/// Shortest time between digests over a metered uplink: of 200 bytes each that is 9 MB a month at most.
const METERED_INTERVAL_US: u64 = 60_000_000;
/// A change of what neighbours say that is worth an event.
const ADVICE_STEP: f64 = 0.25;

impl Federation {
    pub(super) fn new(name: &str, epoch: Epoch, policy: &Policy) -> Federation {
        let uplinks = policy.uplinks.len();
        Federation {
            name: name.to_owned(),
            site: Site::new(&shape(name, policy)).ok(),
            // What a box remembers of earlier lives is what the cloud tells it when it greets.
            publisher: Publisher::new(0, epoch.0, PublisherLimits::default()),
            peers: vec![Peer::default(); uplinks],
            published_us: vec![None; uplinks],
            told: vec![1.0; uplinks],
            neighbours: Neighbours::default(),
            refused: 0,
            prices: prices(policy),
        }
    }
}

fn prices(policy: &Policy) -> Vec<Option<f64>> {
    policy.uplinks.iter().map(|uplink| uplink.meter.map(|meter| meter.money_per_mb)).collect()
}

fn shape(name: &str, policy: &Policy) -> SiteShape {
    let stream = |stream: &crate::policy::StreamPolicy| StreamShape {
        name: stream.name.to_string(),
        sensors: stream.filters.clone(),
        model: stream.model.as_ref().map(|model| model.name.to_string()),
    };
    let uplink = |uplink: &crate::policy::UplinkPolicy| UplinkShape {
        name: uplink.name.to_string(),
        router: None,
        carrier: uplink.carrier.as_ref().map(ToString::to_string),
        ingest: uplink.ingest.to_string(),
        zone: uplink.zone.as_ref().map(ToString::to_string),
        money_per_mb: uplink.meter.map(|meter| meter.money_per_mb),
        energy_per_mb: None,
    };
    SiteShape {
        gateway: name.to_owned(),
        zone: None,
        streams: policy.streams.iter().map(stream).collect(),
        uplinks: policy.uplinks.iter().map(uplink).collect(),
    }
}

impl Gateway {
    /// A session greeted: what its far end has, and what it is called, is known.
    pub(super) fn greeted(&mut self, uplink: usize, last: Option<Stamp>, node: &str) {
        self.federation.peers[uplink] = self.federation.publisher.greeted(last);
        let ingest = &mut self.policy.uplinks[uplink].ingest;
        if node.is_empty() || &**ingest == node {
            return;
        }
        let before = std::mem::replace(ingest, node.into());
        match Site::new(&shape(&self.federation.name, &self.policy)) {
            Ok(site) => self.federation.site = Some(site),
            // Its name cannot stand in the graph: the one that the operator wrote does.
            Err(_) => self.policy.uplinks[uplink].ingest = before,
        }
    }

    /// Prices of uplinks changed with the policy: they stand in the box's part of the graph.
    pub(super) fn reshape(&mut self) {
        let prices = prices(&self.policy);
        let is_same = self.federation.prices == prices;
        self.federation.prices = prices;
        if !is_same && let Ok(site) = Site::new(&shape(&self.federation.name, &self.policy)) {
            self.federation.site = Some(site);
        }
    }

    pub(super) fn need_full(&mut self, uplink: usize) {
        self.federation.peers[uplink].need_full();
    }

    /// The cloud says what is wrong with what this box shares with others.
    pub(super) fn advised(&mut self, now_us: u64, advice: &[u8]) {
        match self.federation.neighbours.hear(now_us, advice) {
            Ok(()) => self.control.at_once = true,
            Err(_) => self.federation.refused += 1,
        }
    }

    /// Brings the box's part up to date, weighs what neighbours say, and publishes what has changed.
    pub(super) fn federate(&mut self, now_us: u64) {
        let Federation { site, publisher, peers, published_us, told, neighbours, .. } = &mut self.federation;
        let Some(site) = site else { return };
        for (index, health) in self.health.iter().enumerate() {
            site.uplink(now_us, index, &health.estimate(now_us));
            let heard = neighbours.about(now_us, site.shared(index));
            let advice = heard.map_or(1.0, |(_, concern)| concern.slowdown());
            self.ways[index].advice = advice;
            let is_over = heard.is_none() && told[index] > 1.0;
            if is_over || (advice - told[index]).abs() >= ADVICE_STEP {
                told[index] = advice;
                let uplink = index as u8;
                let about = heard.map(|(node, concern)| (node.to_string(), concern));
                self.outputs.push_back(Output::Event(Event::Advised { uplink, about }));
            }
        }
        let best = self.plan.uplinks.iter().flatten().map(|&uplink| usize::from(uplink));
        // A probe of a cold uplink is for one heartbeat, and so is its budget.
        let may_carry = |uplink: &usize| self.uplinks[*uplink].is_up() && !self.ways[*uplink].is_probe();
        let Some(uplink) = best.chain(0..self.uplinks.len()).find(may_carry) else { return };
        let is_metered = self.policy.uplinks[uplink].meter.is_some();
        let wait_us = if is_metered { METERED_INTERVAL_US } else { 0 };
        if published_us[uplink].is_some_and(|at_us| now_us < at_us.saturating_add(wait_us)) {
            return;
        }
        if let Some(digest) = publisher.next(now_us, site.graph(), &mut peers[uplink]) {
            published_us[uplink] = Some(now_us);
            self.uplinks[uplink].send_digest(digest);
            self.drain_session(now_us, uplink);
        }
    }

    /// The box's part of the graph as of now; `None` if a name of the policy cannot stand in it.
    pub fn graph(&self, now_us: u64) -> Option<Snapshot> {
        let others = Others::new(FederationLimits::default());
        self.federation.site.as_ref().map(|site| Snapshot::of_subgraph(now_us, site.graph(), &others))
    }

    /// How much slower than estimated an uplink is taken to be, by what neighbours report; 1 if they report nothing.
    pub fn advice(&self, uplink: usize) -> f64 {
        self.ways.get(uplink).map_or(1.0, |way| way.advice)
    }

    /// What was published and heard.
    pub fn federation_counts(&self) -> FederationCounts {
        FederationCounts {
            published: self.federation.publisher.counters(),
            advice_refused: self.federation.refused,
            advice_ignored: self.federation.neighbours.ignored(),
        }
    }
}
