//! Single points of failure: nodes that every way of a stream passes.
//!
//! With all ends joined to one, those are the end's dominators in the graph that starts at the stream (Cooper, Harvey and
//! Kennedy, "A simple, fast dominance algorithm"). Only ways that can be used now count: with one uplink dead, the other is
//! a single point of failure.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::algo::dominators::simple_fast;
use petgraph::graph::{DiGraph, NodeIndex};
use serde::Serialize;

use super::super::node::{NodeKey, NodeKind};
use super::super::view::View;
use super::path::Constraints;
use super::text::Table;

/// Nodes without which streams have no way, the worst first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeakPoints {
    /// The nodes.
    pub points: Vec<WeakPoint>,
    /// Streams that have no way even now.
    pub cut_off: Vec<NodeKey>,
}

/// A node without which streams have no way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeakPoint {
    /// The node.
    pub node: NodeKey,
    /// How many streams need it.
    pub streams: usize,
    /// Of how many boxes.
    pub sites: usize,
}

impl View {
    /// The single points of failure of all streams, or of one box's.
    pub fn weak_points(&self, site: Option<&str>) -> WeakPoints {
        let mut needed: BTreeMap<NodeIndex, (usize, usize)> = BTreeMap::new();
        let mut cut_off = Vec::new();
        for name in self.sites().filter(|name| site.is_none_or(|site| site == *name)) {
            let mut of_site = BTreeSet::new();
            for (stream, needs) in self.needs(name) {
                let Some(needs) = needs else {
                    cut_off.push(stream.clone());
                    continue;
                };
                for node in needs {
                    needed.entry(node).or_default().0 += 1;
                    of_site.insert(node);
                }
            }
            for node in of_site {
                needed.entry(node).or_default().1 += 1;
            }
        }
        let point = |(node, (streams, sites))| WeakPoint { node: self.key(node).clone(), streams, sites };
        let mut points: Vec<WeakPoint> = needed.into_iter().map(point).collect();
        points.sort_by(|a, b| b.streams.cmp(&a.streams).then_with(|| a.node.cmp(&b.node)));
        WeakPoints { points, cut_off }
    }

    /// For each stream of a box the nodes that all its ways pass; `None` if it has no way.
    fn needs(&self, site: &str) -> Vec<(&NodeKey, Option<Vec<NodeIndex>>)> {
        let Ok(ways) = self.ways(site) else { return Vec::new() };
        let constraints = Constraints::default();
        let mut graph: DiGraph<Option<NodeIndex>, ()> = ways
            .graph
            .filter_map(|_, place| Some(Some(*place)), |_, edge| self.obstacle(*edge, &constraints).is_none().then_some(()));
        let ends: Vec<NodeIndex> = ways.graph.node_indices().filter(|at| self.key(ways.graph[*at]).kind == ways.end).collect();
        let end = graph.add_node(None);
        for at in ends {
            graph.add_edge(at, end, ());
        }
        let mut needs = Vec::new();
        for start in ways.graph.node_indices() {
            let key = self.key(ways.graph[start]);
            if key.kind != NodeKind::Stream || key.site() != Some(site) {
                continue;
            }
            let dominators = simple_fast(&graph, start);
            let of_end = dominators
                .strict_dominators(end)
                .map(|nodes| nodes.filter(|node| *node != start).filter_map(|node| graph[node]).collect());
            needs.push((key, of_end));
        }
        needs
    }
}

impl WeakPoints {
    /// For people.
    pub fn to_table(&self) -> String {
        let mut table = Table::new(&["every way passes", ">streams", ">boxes"]);
        for point in &self.points {
            table.row([point.node.to_string(), point.streams.to_string(), point.sites.to_string()]);
        }
        let mut text = table.to_string();
        for stream in &self.cut_off {
            text += &format!("{stream} has no way out now\n");
        }
        text
    }
}
