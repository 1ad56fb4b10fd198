//! What breaks if a node or an edge fails, and for which streams.

use std::fmt;

use petgraph::graph::{EdgeIndex, NodeIndex};
use serde::Serialize;

use super::super::cost::Cost;
use super::super::node::NodeKey;
use super::super::view::{AskError, View, Ways};
use super::path::Constraints;
use super::text::Table;

/// What is imagined to fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A node.
    Node(NodeKey),
    /// An edge: from, to.
    Edge(NodeKey, NodeKey),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Node(node) => node.fmt(f),
            Target::Edge(from, to) => write!(f, "{from} to {to}"),
        }
    }
}

/// The same, as places in the view's graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Without {
    Node(NodeIndex),
    Edge(NodeIndex, NodeIndex),
}

impl Without {
    pub(super) fn is_on(self, view: &View, edge: EdgeIndex) -> bool {
        let ends = view.graph.edge_endpoints(edge);
        ends.is_some_and(|(from, to)| match self {
            Without::Node(node) => from == node || to == node,
            Without::Edge(source, target) => (from, to) == (source, target),
        })
    }
}

/// The blast radius.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Impact {
    /// What fails.
    pub target: Target,
    /// Streams that lose every way.
    pub lost: Vec<NodeKey>,
    /// Streams that lose their best way and have another.
    pub worse: Vec<WorseStream>,
    /// Streams that lose nothing.
    pub unaffected: usize,
    /// Streams that have no way even now.
    pub cut_off: usize,
}

/// A stream that loses its best way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorseStream {
    /// The stream.
    pub stream: NodeKey,
    /// The uplink that it would use then.
    pub next_uplink: Option<NodeKey>,
    /// Cost of its way now, in seconds.
    pub before_s: f64,
    /// Cost of its way then.
    pub after_s: f64,
}

impl View {
    /// What happens to all streams if `target` fails.
    ///
    /// # Errors
    /// If there is no such node or edge.
    pub fn impact(&self, target: &Target) -> Result<Impact, AskError> {
        let without = match target {
            Target::Node(node) => Without::Node(self.place(node)?),
            Target::Edge(from, to) => {
                let (source, end) = (self.place(from)?, self.place(to)?);
                if self.graph.find_edge(source, end).is_none() {
                    return Err(AskError::NoEdge { from: from.clone(), to: to.clone() });
                }
                Without::Edge(source, end)
            }
        };
        let mut impact = Impact { target: target.clone(), lost: Vec::new(), worse: Vec::new(), unaffected: 0, cut_off: 0 };
        let mut held: Option<(&str, Ways)> = None;
        // Streams of one box follow each other.
        for stream in self.streams() {
            let Some(site) = stream.site() else { continue };
            if held.as_ref().is_none_or(|(name, _)| *name != site) {
                held = self.ways(site).ok().map(|ways| (site, ways));
            }
            match &held {
                Some((_, ways)) => self.impact_on(stream, ways, without, &mut impact)?,
                None => impact.cut_off += 1,
            }
        }
        Ok(impact)
    }

    fn impact_on(&self, stream: &NodeKey, ways: &Ways, without: Without, impact: &mut Impact) -> Result<(), AskError> {
        let find = |without| {
            let start = self.place(stream).ok().and_then(|place| ways.at(place))?;
            self.cheapest(ways, start, None, &Constraints::default(), without)
        };
        let Some(before) = find(None) else {
            impact.cut_off += 1;
            return Ok(());
        };
        if !before.iter().any(|edge| without.is_on(self, *edge)) {
            impact.unaffected += 1;
            return Ok(());
        }
        let cost = |edges: &[EdgeIndex]| edges.iter().map(|edge| Cost::of(&self.link(*edge).estimate).total_s).sum();
        match find(Some(without)) {
            None => impact.lost.push(stream.clone()),
            Some(after) => impact.worse.push(WorseStream {
                stream: stream.clone(),
                next_uplink: self.uplink_of(&after).map(|uplink| self.key(uplink).clone()),
                before_s: cost(&before),
                after_s: cost(&after),
            }),
        }
        Ok(())
    }
}

impl Impact {
    /// For people.
    pub fn to_table(&self) -> String {
        let mut table = Table::new(&["stream", "then", ">cost s now", ">then"]);
        for stream in &self.lost {
            table.row([stream.to_string(), "no way left".to_owned(), String::new(), String::new()]);
        }
        for worse in &self.worse {
            let uplink = worse.next_uplink.as_ref().map_or("another way".to_owned(), |uplink| format!("over {uplink}"));
            let costs = [worse.before_s, worse.after_s].map(|cost_s| format!("{cost_s:.3}"));
            table.row([worse.stream.to_string(), uplink].into_iter().chain(costs));
        }
        format!(
            "if {} fails: {} streams lose every way, {} take another, {} lose nothing, {} have no way now\n{table}",
            self.target,
            self.lost.len(),
            self.worse.len(),
            self.unaffected,
            self.cut_off
        )
    }
}
