//! The cheapest feasible way of a stream to where its records end up; `cost.rs` says what a step costs.

use petgraph::algo::astar;
use petgraph::graph::{EdgeIndex, NodeIndex};
use petgraph::visit::{Dfs, EdgeFiltered, EdgeRef as _};
use serde::Serialize;

use super::super::cost::Cost;
use super::super::estimate::EdgeState;
use super::super::node::{NodeKey, NodeKind};
use super::super::view::{AskError, View, Ways};
use super::impact::Without;
use super::text::{Table, millis, percent};

/// What a way must obey.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Constraints {
    /// Names of the zones that it may lead through; empty for any. What lies in no zone is allowed everywhere.
    pub zones: Vec<String>,
    /// Takes also what is red or blocked.
    pub ignores_state: bool,
}

/// The cheapest way, what it would be without its uplink, and what was not allowed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Path {
    /// Where it starts.
    pub stream: NodeKey,
    /// The cheapest way; `None` if there is none.
    pub best: Option<Route>,
    /// The cheapest way over another uplink.
    pub next: Option<Route>,
    /// Edges that could be reached and were not allowed.
    pub rejected: Vec<Rejected>,
}

/// A way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Route {
    /// Where it ends.
    pub to: NodeKey,
    /// Its steps.
    pub hops: Vec<Hop>,
    /// Expected delay of all steps in milliseconds.
    pub delay_ms: f64,
    /// Part of tries that fail.
    pub loss: f64,
    /// Price of a megabyte.
    pub money_per_mb: f64,
    /// What it costs, in seconds.
    pub cost_s: f64,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hop {
    /// From here.
    pub from: NodeKey,
    /// To there.
    pub to: NodeKey,
    /// The verdict on it.
    pub state: Option<EdgeState>,
    /// Expected delay in milliseconds.
    pub delay_ms: f64,
    /// Part of tries that fail.
    pub loss: f64,
    /// Price of a megabyte.
    pub money_per_mb: f64,
    /// How far that may be trusted; `None` if nothing is known.
    pub confidence: Option<f64>,
    /// What it costs, in seconds.
    pub cost_s: f64,
}

/// An edge that was not allowed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rejected {
    /// From here.
    pub from: NodeKey,
    /// To there.
    pub to: NodeKey,
    /// Why not.
    pub reason: String,
}

impl View {
    /// The cheapest feasible way of a stream: to `to`, or to the nearest sink.
    ///
    /// # Errors
    /// If there is no such stream.
    pub fn path(&self, stream: &NodeKey, to: Option<&NodeKey>, constraints: &Constraints) -> Result<Path, AskError> {
        if stream.kind != NodeKind::Stream {
            return Err(AskError::NotAStream(stream.clone()));
        }
        self.place(stream)?;
        let ways = self.ways(stream.site().unwrap_or_default())?;
        let to = to.map(|to| self.place(to)).transpose()?;
        let Some(start) = self.place(stream).ok().and_then(|place| ways.at(place)) else {
            return Ok(Path { stream: stream.clone(), best: None, next: None, rejected: Vec::new() });
        };
        let find = |without| self.cheapest(&ways, start, to, constraints, without);
        let best = find(None);
        let uplink = best.as_ref().and_then(|edges| self.uplink_of(edges));
        let next = uplink.and_then(|uplink| find(Some(Without::Node(uplink))));
        let rejected = self.rejected(&ways, start, constraints);
        let route = |edges: Option<Vec<EdgeIndex>>| edges.and_then(|edges| self.route(&edges));
        Ok(Path { stream: stream.clone(), best: route(best), next: route(next), rejected })
    }

    /// The edges of the cheapest way, as places in the view's graph.
    pub(super) fn cheapest(
        &self,
        ways: &Ways,
        start: NodeIndex,
        to: Option<NodeIndex>,
        constraints: &Constraints,
        without: Option<Without>,
    ) -> Option<Vec<EdgeIndex>> {
        let is_open = |edge: EdgeIndex| {
            self.obstacle(edge, constraints).is_none() && !without.is_some_and(|without| without.is_on(self, edge))
        };
        let open = EdgeFiltered::from_fn(&ways.graph, |edge| is_open(*edge.weight()));
        let is_end = |at: NodeIndex| match to {
            Some(to) => ways.graph[at] == to,
            None => self.key(ways.graph[at]).kind == ways.end,
        };
        let cost = |edge: petgraph::graph::EdgeReference<'_, EdgeIndex>| Cost::of(&self.link(*edge.weight()).estimate).total_s;
        let (_, nodes) = astar(&open, start, is_end, cost, |_| 0.0)?;
        let edges = nodes.windows(2).map(|pair| ways.graph.find_edge(pair[0], pair[1]).map(|edge| ways.graph[edge]));
        edges.collect()
    }

    /// Why an edge may not be used.
    pub(super) fn obstacle(&self, edge: EdgeIndex, constraints: &Constraints) -> Option<String> {
        let link = self.link(edge);
        if let Some(state) = link.estimate.state.filter(|state| state.is_down() && !constraints.ignores_state) {
            return Some(format!("{} says that it is {}", link.owner, state.name()));
        }
        let (_, to) = self.graph.edge_endpoints(edge)?;
        let is_allowed = |zone: &&NodeKey| constraints.zones.iter().any(|name| *name == *zone.name);
        if constraints.zones.is_empty() {
            return None;
        }
        let zone = self.zones(to).find(|zone| !is_allowed(zone))?;
        Some(format!("it lies in {zone}, allowed is {}", constraints.zones.join(", ")))
    }

    /// The uplink that a way leaves the box by.
    pub(super) fn uplink_of(&self, edges: &[EdgeIndex]) -> Option<NodeIndex> {
        let ends = edges.iter().filter_map(|edge| self.graph.edge_endpoints(*edge));
        ends.map(|(_, to)| to).find(|to| self.key(*to).kind == NodeKind::Uplink)
    }

    fn rejected(&self, ways: &Ways, start: NodeIndex, constraints: &Constraints) -> Vec<Rejected> {
        let open = EdgeFiltered::from_fn(&ways.graph, |edge| self.obstacle(*edge.weight(), constraints).is_none());
        let mut search = Dfs::new(&open, start);
        let mut rejected = Vec::new();
        while let Some(at) = search.next(&open) {
            rejected.extend(ways.graph.edges(at).filter_map(|edge| {
                let reason = self.obstacle(*edge.weight(), constraints)?;
                let (from, to) = (self.key(ways.graph[edge.source()]), self.key(ways.graph[edge.target()]));
                Some(Rejected { from: from.clone(), to: to.clone(), reason })
            }));
        }
        rejected.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
        rejected
    }

    fn route(&self, edges: &[EdgeIndex]) -> Option<Route> {
        let costs = edges.iter().map(|edge| Cost::of(&self.link(*edge).estimate));
        let all = costs.clone().fold(Cost::default(), Cost::then);
        let hops = edges.iter().zip(costs).map(|(edge, cost)| {
            let ((from, to), estimate) = (self.ends(*edge), &self.link(*edge).estimate);
            Hop {
                from: from.clone(),
                to: to.clone(),
                state: estimate.state,
                delay_ms: cost.delay_s * 1e3,
                loss: cost.loss,
                money_per_mb: cost.money_per_mb,
                confidence: (!estimate.is_empty()).then(|| estimate.confidence()),
                cost_s: cost.total_s,
            }
        });
        let to = self.ends(*edges.last()?).1.clone();
        let (delay_ms, loss, money_per_mb, cost_s) = (all.delay_s * 1e3, all.loss, all.money_per_mb, all.total_s);
        Some(Route { to, hops: hops.collect(), delay_ms, loss, money_per_mb, cost_s })
    }
}

impl Path {
    /// For people.
    pub fn to_table(&self) -> String {
        let mut text = match &self.best {
            Some(route) => route.to_table(&format!("{} to {}", self.stream, route.to)),
            None => format!("{} has no way out\n", self.stream),
        };
        if let Some(next) = &self.next {
            text += "\n";
            text += &next.to_table("without that uplink");
        }
        if !self.rejected.is_empty() {
            text += "\nnot allowed:\n";
            for edge in &self.rejected {
                text += &format!("  {} to {}: {}\n", edge.from, edge.to, edge.reason);
            }
        }
        text
    }
}

impl Route {
    fn to_table(&self, title: &str) -> String {
        let mut table = Table::new(&["from", "to", "state", ">delay", ">loss", ">money/MB", ">trust", ">cost s"]);
        for hop in &self.hops {
            let state = hop.state.map_or("", EdgeState::name);
            let trust = hop.confidence.map_or(String::new(), percent);
            let numbers = [millis(hop.delay_ms), percent(hop.loss), format!("{:.4}", hop.money_per_mb), trust];
            table.row(
                [hop.from.to_string(), hop.to.to_string(), state.to_owned()]
                    .into_iter()
                    .chain(numbers)
                    .chain([seconds(hop.cost_s)]),
            );
        }
        let sums = [millis(self.delay_ms), percent(self.loss), format!("{:.4}", self.money_per_mb), String::new()];
        table.row(["all".to_owned(), String::new(), String::new()].into_iter().chain(sums).chain([seconds(self.cost_s)]));
        format!("{title}\n{table}")
    }
}

fn seconds(cost_s: f64) -> String {
    format!("{cost_s:.3}")
}
