//! The graph, or the part of it around a node, as a table and for Graphviz.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use petgraph::graph::NodeIndex;

use super::super::estimate::{EdgeState, Quantity};
use super::super::node::{NodeKey, NodeKind};
use super::super::snapshot::{Snapshot, SnapshotEdge};
use super::super::view::{AskError, View};
use super::text::{Table, percent, quantity};

impl View {
    /// All of it, or what belongs to a box, or what touches a shared node; again a snapshot, which can be saved and asked.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn show(&self, about: Option<&NodeKey>) -> Result<Snapshot, AskError> {
        let Some(about) = about else { return Ok(self.snapshot.clone()) };
        let place = self.place(about)?;
        let nodes = &self.snapshot.nodes;
        let key = |node: u32| nodes.get(node as usize);
        let is_wanted: Box<dyn Fn(&SnapshotEdge) -> bool> = match about.site() {
            Some(site) => {
                let ways = self.ways(site)?;
                let on_way = move |node: Option<&NodeKey>| {
                    node.and_then(|node| self.place(node).ok()).is_some_and(|place: NodeIndex| ways.at(place).is_some())
                };
                Box::new(move |edge| {
                    let is_own = edge.owner.is_gateway() && edge.owner.name() == site;
                    is_own || !edge.owner.is_gateway() && on_way(key(edge.from)) && on_way(key(edge.to))
                })
            }
            None => Box::new(|edge| [edge.from, edge.to].iter().any(|node| key(*node) == Some(self.key(place)))),
        };
        let mut places: BTreeMap<u32, u32> = BTreeMap::new();
        let mut shown = Snapshot { nodes: Vec::new(), edges: Vec::new(), ..self.snapshot.clone() };
        for edge in self.snapshot.edges.iter().filter(|edge| is_wanted(edge)) {
            let mut place = |node: u32| {
                *places.entry(node).or_insert_with(|| {
                    shown.nodes.push(nodes[node as usize].clone());
                    shown.nodes.len() as u32 - 1
                })
            };
            let (from, to) = (place(edge.from), place(edge.to));
            shown.edges.push(SnapshotEdge { from, to, ..edge.clone() });
        }
        let is_shown = |node: &NodeKey| shown.nodes.contains(node);
        let causes = self.snapshot.causes.iter().filter(|cause| is_shown(&cause.node)).cloned().collect();
        let talks = self.snapshot.talks.iter().filter(|talk| is_shown(&talk.from) && is_shown(&talk.to)).cloned().collect();
        Ok(Snapshot { causes, talks, ..shown })
    }
}

impl Snapshot {
    /// For people: one line for each edge.
    pub fn to_table(&self) -> String {
        let mut table = Table::new(&["from", "to", "state", ">trust", ">age s", "known", "says"]);
        let key = |node: u32| self.nodes.get(node as usize).map(ToString::to_string).unwrap_or_default();
        for edge in &self.edges {
            let estimate = edge.estimate();
            let is_known = !estimate.is_empty();
            let trust = if is_known { percent(estimate.confidence()) } else { String::new() };
            let age = if is_known { (edge.age_us / 1_000_000).to_string() } else { String::new() };
            let known: Vec<String> =
                edge.values.iter().map(|(of, value)| format!("{} {}", label(*of), quantity(*of, *value))).collect();
            let state = edge.state.map_or("", EdgeState::name).to_owned();
            table.row([key(edge.from), key(edge.to), state, trust, age, known.join(", "), edge.owner.to_string()]);
        }
        let mut text = table.to_string();
        for cause in &self.causes {
            let (share, trust) = (percent(cause.share), percent(cause.confidence));
            let _ = writeln!(
                text,
                "{} is {} for {} sites, {share} of those that use it; certain to {trust}",
                cause.node,
                cause.trouble.name(),
                cause.affected
            );
        }
        for talk in &self.talks {
            let _ = writeln!(text, "{} talks to {} for the first time", talk.from, talk.to);
        }
        text
    }

    /// For Graphviz: `dot -Tsvg`.
    pub fn to_dot(&self) -> String {
        let mut text =
            "digraph weir {\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n".to_owned();
        for (place, key) in self.nodes.iter().enumerate() {
            let shape = match key.kind {
                NodeKind::Carrier | NodeKind::Router => ", shape=ellipse",
                NodeKind::Sink => ", shape=cylinder",
                NodeKind::Zone => ", shape=folder",
                _ => "",
            };
            let cause = self.causes.iter().find(|cause| cause.node == *key);
            let colour = if cause.is_some() { ", color=red, penwidth=2" } else { "" };
            let _ = writeln!(text, "  n{place} [label=\"{}\"{shape}{colour}];", escaped(&key.to_string()));
        }
        for edge in &self.edges {
            let colour = match edge.state {
                Some(EdgeState::Green) => "forestgreen",
                Some(EdgeState::Yellow) => "goldenrod",
                Some(EdgeState::Red) => "red",
                Some(EdgeState::Blocked) => "darkorange",
                Some(EdgeState::Cold) => "steelblue",
                None => "gray50",
            };
            let shown = [Quantity::RttUs, Quantity::Loss, Quantity::CapacityBps, Quantity::QueueingDelayUs];
            let known = shown
                .iter()
                .filter_map(|of| edge.values.get(of).map(|value| format!("{} {}", label(*of), quantity(*of, *value))));
            let label = known.collect::<Vec<_>>().join("\\n");
            let _ = writeln!(text, "  n{} -> n{} [color={colour}, label=\"{label}\"];", edge.from, edge.to);
        }
        text + "}\n"
    }
}

/// A quantity's name where its unit stands beside the value.
fn label(quantity: Quantity) -> &'static str {
    match quantity {
        Quantity::RttUs => "rtt",
        Quantity::JitterUs => "jitter",
        Quantity::Loss => "loss",
        Quantity::GoodputBps => "now",
        Quantity::CapacityBps => "carries",
        Quantity::QueueingDelayUs => "queue",
        Quantity::ErrorRatio => "errors",
        Quantity::MoneyPerMb => "money/MB",
        Quantity::EnergyPerMb => "J/MB",
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}
