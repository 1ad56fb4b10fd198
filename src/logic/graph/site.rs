//! A box's own part: built from its policy, fed once a second from its uplinks.
//!
//! ```text
//! sensors -> stream -> gateway -> uplink -> router -> carrier -> ingest
//!               '-> model            ^                             |
//!                       what is measured of an uplink              '-> gateway: how late acknowledgements are
//! ```
//! A round trip is measured from end to end, so it is the estimate of the first step out of the uplink, and the steps after
//! it cost nothing more. Acknowledgements come back on an edge of their own: a machine of the cloud that is slow to commit
//! must not look like a slow link.

use super::estimate::{Estimate, Quantity};
use super::node::{NodeKey, NodeKind, Owner};
use super::subgraph::{EdgeIndex, NodeIndex, Subgraph, SubgraphError};
use crate::health::UplinkEstimate;

/// What a site consists of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SiteShape {
    /// Name of the box, as its certificate says.
    pub gateway: String,
    /// Where it stands, if data may be bound to places.
    pub zone: Option<String>,
    /// Streams, in the order of the policy.
    pub streams: Vec<StreamShape>,
    /// Uplinks, in the order of the policy.
    pub uplinks: Vec<UplinkShape>,
}

/// One stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamShape {
    /// Its name.
    pub name: String,
    /// Topic filters: each is a group of sensors.
    pub sensors: Vec<String>,
    /// The model that scores it on the box.
    pub model: Option<String>,
}

/// One uplink.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UplinkShape {
    /// Its name.
    pub name: String,
    /// The router behind it, if others use it too; a name for all who do. One that leads to several carriers makes them
    /// exchangeable: where each uplink has a line of its own behind it, name the lines.
    pub router: Option<String>,
    /// Who carries it, if known; the same name at all sites.
    pub carrier: Option<String>,
    /// The machine of the cloud at its other end.
    pub ingest: String,
    /// Zone that it leads to, if data may be bound to places.
    pub zone: Option<String>,
    /// Price of a megabyte in the operator's currency.
    pub money_per_mb: Option<f64>,
    /// Energy for a megabyte in joules.
    pub energy_per_mb: Option<f64>,
}

/// A box's own part of the graph, with what is needed to keep it up to date.
#[derive(Debug, Clone)]
pub struct Site {
    graph: Subgraph,
    uplinks: Vec<Way>,
}

/// One uplink in the graph.
#[derive(Debug, Clone)]
struct Way {
    out: EdgeIndex,
    acks: EdgeIndex,
    /// What lies on it beyond the box.
    shared: Vec<NodeKey>,
    money_per_mb: Option<f64>,
    energy_per_mb: Option<f64>,
}

impl Site {
    /// A site of which nothing is known yet.
    ///
    /// # Errors
    /// If a name is none, or there are too many.
    pub fn new(shape: &SiteShape) -> Result<Site, SubgraphError> {
        let mut graph = Subgraph::new(Owner::gateway(&shape.gateway)?);
        let gateway = graph.node(NodeKind::Gateway, &shape.gateway)?;
        if let Some(zone) = &shape.zone {
            let zone = graph.node(NodeKind::Zone, zone)?;
            graph.edge(gateway, zone)?;
        }
        for shape in &shape.streams {
            let stream = graph.node(NodeKind::Stream, &shape.name)?;
            for filter in &shape.sensors {
                let sensors = graph.node(NodeKind::Sensors, filter)?;
                graph.edge(sensors, stream)?;
            }
            if let Some(model) = &shape.model {
                let model = graph.node(NodeKind::Model, model)?;
                graph.edge(stream, model)?;
            }
            graph.edge(stream, gateway)?;
        }
        let uplinks = shape.uplinks.iter().map(|uplink| Way::new(&mut graph, gateway, uplink)).collect::<Result<_, _>>()?;
        Ok(Site { graph, uplinks })
    }

    /// Takes in what an uplink's health says; `index` is its place in the shape.
    pub fn uplink(&mut self, now_us: u64, index: usize, health: &UplinkEstimate) {
        let Some(way) = self.uplinks.get(index) else { return };
        let is_known = health.updated_us > 0;
        let (age_us, trust) = if is_known { (now_us.saturating_sub(health.updated_us), 1.0) } else { (0, 0.0) };
        let mut out = Estimate::default().with_state(health.state.into()).with_evidence(age_us, trust);
        if is_known {
            out = out
                .with(Quantity::RttUs, health.rtt_us as f64)
                .with(Quantity::JitterUs, health.jitter_us as f64)
                .with(Quantity::Loss, health.loss)
                .with(Quantity::GoodputBps, health.goodput_bps)
                .with(Quantity::QueueingDelayUs, health.queueing_delay_us as f64);
        }
        out = out.with(Quantity::CapacityBps, health.capacity_bps);
        let optional = [
            (Quantity::ErrorRatio, health.error_ratio),
            (Quantity::MoneyPerMb, way.money_per_mb),
            (Quantity::EnergyPerMb, way.energy_per_mb),
        ];
        for (quantity, value) in optional {
            out = value.map_or(out, |value| out.with(quantity, value));
        }
        self.graph.set(way.out, now_us, out);
        if let Some(ack_us) = health.ack_delay_us {
            let beyond_us = ack_us.saturating_sub(health.rtt_us) as f64;
            let acks = Estimate::default().with(Quantity::QueueingDelayUs, beyond_us).with_evidence(age_us, trust);
            self.graph.set(way.acks, now_us, acks);
        }
    }

    /// What is known of an uplink, with its age now.
    pub fn estimate(&self, now_us: u64, index: usize) -> Option<Estimate> {
        self.uplinks.get(index).map(|way| self.graph.estimate(way.out, now_us))
    }

    /// What an uplink shares with others: router, carrier, machine of the cloud.
    pub fn shared(&self, index: usize) -> &[NodeKey] {
        self.uplinks.get(index).map_or(&[], |way| &way.shared)
    }

    /// The part to publish.
    pub fn graph(&self) -> &Subgraph {
        &self.graph
    }
}

impl Way {
    fn new(graph: &mut Subgraph, gateway: NodeIndex, shape: &UplinkShape) -> Result<Way, SubgraphError> {
        let uplink = graph.node(NodeKind::Uplink, &shape.name)?;
        graph.edge(gateway, uplink)?;
        if let Some(zone) = &shape.zone {
            let zone = graph.node(NodeKind::Zone, zone)?;
            graph.edge(uplink, zone)?;
        }
        let ingest = graph.node(NodeKind::Ingest, &shape.ingest)?;
        let (mut at, mut out, mut shared) = (uplink, None, Vec::new());
        let router = shape.router.as_ref().map(|name| graph.node(NodeKind::Router, name)).transpose()?;
        let carrier = shape.carrier.as_ref().map(|name| graph.node(NodeKind::Carrier, name)).transpose()?;
        for next in router.into_iter().chain(carrier) {
            out.get_or_insert(graph.edge(at, next)?);
            shared.push(graph.key(next));
            at = next;
        }
        let last = graph.edge(at, ingest)?;
        shared.push(graph.key(ingest));
        let acks = graph.edge(ingest, gateway)?;
        let (money_per_mb, energy_per_mb) = (shape.money_per_mb, shape.energy_per_mb);
        Ok(Way { out: out.unwrap_or(last), acks, shared, money_per_mb, energy_per_mb })
    }
}
