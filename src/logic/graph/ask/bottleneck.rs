//! What limits how much a box can send: the largest flow from it to the ends of its ways, and the edges that are full then.
//!
//! By Ford and Fulkerson the two are the same question. Capacities are what links carry as a rule; what has no estimate
//! counts as wide open, and what several boxes share is given to each as if it were alone.

use std::collections::BTreeSet;

use petgraph::algo::ford_fulkerson;
use petgraph::graph::{DiGraph, EdgeIndex, NodeIndex};
use petgraph::visit::EdgeRef as _;
use serde::Serialize;

use super::super::estimate::Quantity;
use super::super::node::{NodeKey, NodeKind};
use super::super::view::{View, Ways};
use super::path::Constraints;
use super::text::{Table, rate};

/// Bottlenecks of boxes, the narrowest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bottlenecks {
    /// By box.
    pub boxes: Vec<Bottleneck>,
    /// Boxes of whose ways no capacity is known.
    pub unknown: usize,
}

/// What limits one box.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bottleneck {
    /// The box.
    pub gateway: NodeKey,
    /// Most that it can send, in bits per second; 0 if it has no way.
    pub flow_bps: u64,
    /// The edges that are full then, all of which would have to be widened.
    pub cut: Vec<CutEdge>,
}

/// An edge that is full.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CutEdge {
    /// From here.
    pub from: NodeKey,
    /// To there.
    pub to: NodeKey,
    /// What it carries, in bits per second; 0 if it is down.
    pub capacity_bps: u64,
}

impl View {
    /// The bottlenecks of all boxes, or of one.
    pub fn bottlenecks(&self, site: Option<&str>) -> Bottlenecks {
        let (mut boxes, mut unknown) = (Vec::new(), 0);
        for name in self.sites().filter(|name| site.is_none_or(|site| site == *name)) {
            let Ok(ways) = self.ways(name) else { continue };
            let gateway = ways.graph.node_indices().find(|at| {
                let key = self.key(ways.graph[*at]);
                key.kind == NodeKind::Gateway && key.site() == Some(name)
            });
            let Some(gateway) = gateway else { continue };
            match self.bottleneck(&ways, gateway) {
                Some(found) => boxes.push(found),
                None => unknown += 1,
            }
        }
        boxes.sort_by(|a, b| a.flow_bps.cmp(&b.flow_bps).then_with(|| a.gateway.cmp(&b.gateway)));
        Bottlenecks { boxes, unknown }
    }

    fn bottleneck(&self, ways: &Ways, gateway: NodeIndex) -> Option<Bottleneck> {
        let mut network: DiGraph<(), u64> = ways.graph.map(|_, _| (), |_, edge| self.capacity_bps(*edge));
        let end = network.add_node(());
        for at in ways.graph.node_indices().filter(|at| self.key(ways.graph[*at]).kind == ways.end) {
            network.add_edge(at, end, UNKNOWN_BPS);
        }
        let (flow_bps, flows) = ford_fulkerson(&network, gateway, end);
        if flow_bps >= UNKNOWN_BPS {
            return None;
        }
        let inside = reached(&network, &flows, gateway);
        let full =
            ways.graph.edge_references().filter(|edge| inside.contains(&edge.source()) && !inside.contains(&edge.target()));
        let cut = full.map(|edge| {
            let (from, to) = self.ends(*edge.weight());
            CutEdge { from: from.clone(), to: to.clone(), capacity_bps: self.capacity_bps(*edge.weight()) }
        });
        let mut cut: Vec<CutEdge> = cut.collect();
        cut.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
        Some(Bottleneck { gateway: self.key(ways.graph[gateway]).clone(), flow_bps, cut })
    }

    fn capacity_bps(&self, edge: EdgeIndex) -> u64 {
        if self.obstacle(edge, &Constraints::default()).is_some() {
            return 0;
        }
        let estimate = &self.link(edge).estimate;
        let known = estimate.get(Quantity::CapacityBps).or_else(|| estimate.get(Quantity::GoodputBps));
        known.map_or(UNKNOWN_BPS, |bps| (bps as u64).min(UNKNOWN_BPS))
    }
}

/// Nodes to which more could still flow.
fn reached(network: &DiGraph<(), u64>, flows: &[u64], start: NodeIndex) -> BTreeSet<NodeIndex> {
    let mut inside = BTreeSet::from([start]);
    let mut open = vec![start];
    while let Some(at) = open.pop() {
        let forward = network.edges(at).filter(|edge| flows[edge.id().index()] < *edge.weight()).map(|edge| edge.target());
        let back = network
            .edges_directed(at, petgraph::Direction::Incoming)
            .filter(|edge| flows[edge.id().index()] > 0)
            .map(|edge| edge.source());
        for next in forward.chain(back) {
            if inside.insert(next) {
                open.push(next);
            }
        }
    }
    inside
}

impl Bottlenecks {
    /// For people.
    pub fn to_table(&self) -> String {
        let mut table = Table::new(&["box", ">at most", "full", ">carries"]);
        for found in &self.boxes {
            let mut head = [found.gateway.to_string(), rate(found.flow_bps as f64)];
            if found.cut.is_empty() {
                table.row([
                    std::mem::take(&mut head[0]),
                    std::mem::take(&mut head[1]),
                    "no way at all".to_owned(),
                    String::new(),
                ]);
            }
            for edge in &found.cut {
                let carries = if edge.capacity_bps == 0 { "down".to_owned() } else { rate(edge.capacity_bps as f64) };
                let full = format!("{} to {}", edge.from, edge.to);
                table.row([std::mem::take(&mut head[0]), std::mem::take(&mut head[1]), full, carries]);
            }
        }
        let mut text = table.to_string();
        if self.unknown > 0 {
            text += &format!("of {} boxes no capacity is known\n", self.unknown);
        }
        text
    }
}

/// More than any link carries, and few enough that no sum of them overflows.
const UNKNOWN_BPS: u64 = 1 << 50;
