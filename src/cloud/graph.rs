//! The global graph: every gateway's part and our own, merged; what they have in common; and whom it concerns.
//!
//! It lives in memory alone: after a restart each gateway sends its part anew within seconds of its greeting, and until then
//! nobody is advised.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use weir_logic::graph::{
    Adviser, CauseLimits, Causes, EdgeIndex, EdgeState, Estimate, Federation, FederationLimits, MergeError, Merged, NeedFull,
    NodeIndex, NodeKey, NodeKind, Owner, Part, Peer, Publisher, PublisherLimits, Quantity, Snapshot, Subgraph, SubgraphError,
    TalkerLimits, Talkers,
};
use weir_logic::load::Load;
use weir_logic::wire::{AdviceBytes, Body};

use crate::pools::PoolStatus;
use crate::status::{CauseStatus, GraphStatus};

/// Gateways whose parts are shown at once: the JSON of so many has about 30 MB and takes a tenth of a second to write.
const SHOWN_OWNERS_MAX: usize = 5_000;

/// Which parts of the graph somebody wants to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Only this gateway's part, and the machines of the cloud.
    gateway: Option<String>,
    /// Only the parts in which this node is, and the machines of the cloud.
    around: Option<NodeKey>,
    /// No more owners than these, in the order of their names.
    limit: Option<usize>,
}

impl FromStr for Shown {
    type Err = String;

    fn from_str(query: &str) -> Result<Shown, String> {
        let mut shown = Shown::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("gateway", name)) => shown.gateway = Some(name.to_owned()),
                Some(("around", node)) => shown.around = Some(node.parse().map_err(|err| format!("{err}"))?),
                Some(("limit", limit)) => match limit.parse() {
                    Ok(limit @ 1..=SHOWN_OWNERS_MAX) => shown.limit = Some(limit),
                    _ => return Err(format!("limit is a number from 1 to {SHOWN_OWNERS_MAX}")),
                },
                _ => {
                    return Err(format!(
                        "cannot read `{}`: write gateway=NAME, around=NODE or limit=COUNT",
                        pair.escape_debug()
                    ));
                }
            }
        }
        Ok(shown)
    }
}

/// All parts of the graph.
#[derive(Debug)]
pub(crate) struct GlobalGraph {
    federation: Federation,
    causes: Causes,
    talkers: Talkers,
    own: Own,
    adviser: Adviser,
    refused: u64,
}

/// Our own part: this ingest node, its sink, and how late commits are.
#[derive(Debug)]
struct Own {
    owner: Owner,
    graph: Subgraph,
    ingest: NodeIndex,
    sink: EdgeIndex,
    /// By name: how busy a pool is.
    pools: BTreeMap<String, EdgeIndex>,
    publisher: Publisher,
    peer: Peer,
}

impl GlobalGraph {
    /// Nobody's part is known yet but our own; `name` is the one in our certificate, `run` random bits, `pools` are ours.
    ///
    /// # Errors
    /// If the name cannot stand in the graph.
    pub(crate) fn new(name: &str, run: u64, pools: &[String]) -> Result<GlobalGraph, SubgraphError> {
        let owner = Owner::cloud(name)?;
        let mut graph = Subgraph::new(owner.clone());
        let ingest = graph.node(NodeKind::Ingest, name)?;
        let sink = graph.node(NodeKind::Sink, "sqlite")?;
        let sink = graph.edge(ingest, sink)?;
        let mut edges = BTreeMap::new();
        for name in pools {
            let pool = graph.node(NodeKind::Pool, name)?;
            edges.insert(name.clone(), graph.edge(ingest, pool)?);
        }
        let publisher = Publisher::new(0, run, PublisherLimits::default());
        Ok(GlobalGraph {
            federation: Federation::new(FederationLimits::default()),
            causes: Causes::new(CauseLimits::default()),
            talkers: Talkers::new(0, TalkerLimits::default()),
            own: Own { owner, graph, ingest, sink, pools: edges, publisher, peer: Peer::default() },
            adviser: Adviser::default(),
            refused: 0,
        })
    }

    /// Merges what a gateway published; the answer it is to be given, if any.
    pub(crate) fn merge(&mut self, now_us: u64, gateway: &Arc<str>, digest: &[u8]) -> Option<Body> {
        let owner = Owner::gateway(gateway).ok()?;
        match self.federation.merge(now_us, &owner, digest) {
            Ok(Merged::NeedFull(have)) => Some(Body::NeedFull(have)),
            Ok(_) => {
                if let Some(part) = self.federation.part(&owner) {
                    self.talkers.observe(now_us, part);
                }
                None
            }
            Err(err) => {
                self.refused += 1;
                tracing::debug!(%gateway, %err, "a part of the health graph is refused");
                matches!(err, MergeError::Digest(_)).then_some(Body::NeedFull(NeedFull { have: None }))
            }
        }
    }

    /// Fills in what only the graph knows: our name in it, and the last stamp of the gateway's digest.
    pub(crate) fn stamped(&self, gateway: &str, mut body: Body) -> Body {
        if let Body::Welcome(welcome) = &mut body {
            welcome.last_stamp = Owner::gateway(gateway).ok().and_then(|owner| self.federation.stamp(&owner));
            welcome.node = self.own.owner.name().to_owned();
        }
        body
    }

    /// Brings our own part up to date, forgets who has been silent for long, and looks for common causes.
    pub(crate) fn tick(&mut self, now_us: u64, load: Load, shown: &[PoolStatus]) {
        let state = match load {
            Load { stalled: true, .. } => EdgeState::Red,
            Load { overloaded: true, .. } => EdgeState::Yellow,
            Load { .. } => EdgeState::Green,
        };
        let mut estimate = Estimate::default().with_state(state).with_evidence(0, 1.0);
        if let Some(commit_us) = load.commit_us {
            estimate = estimate.with(Quantity::QueueingDelayUs, commit_us as f64);
        }
        let Own { owner, graph, ingest, sink, pools, publisher, peer } = &mut self.own;
        graph.set(*sink, now_us, estimate);
        for pool in shown {
            // Another machine's become known when it is connected. A graph that is full goes on without them.
            let edge = pools.get(&pool.view.name).copied().or_else(|| {
                let node = graph.node(NodeKind::Pool, &pool.view.name).ok()?;
                let edge = graph.edge(*ingest, node).ok()?;
                pools.insert(pool.view.name.clone(), edge);
                Some(edge)
            });
            if let Some(edge) = edge {
                graph.set(edge, now_us, pool_estimate(pool));
            }
        }
        if let Some(digest) = publisher.next(now_us, graph, peer)
            && let Err(err) = self.federation.merge(now_us, owner, &digest)
        {
            tracing::warn!(%err, "our own part of the health graph is refused");
        }
        if self.federation.expire(now_us) > 0 {
            self.adviser.forget_unknown(&self.federation);
        }
        self.causes.judge(now_us, &self.federation);
    }

    /// What to tell a gateway now: what is new, what must not fade, or nothing.
    pub(crate) fn advice(&mut self, now_us: u64, gateway: &Arc<str>) -> Option<Body> {
        let owner = Owner::gateway(gateway).ok()?;
        let advice = self.adviser.news(now_us, &self.federation, &self.causes, &owner)?;
        Some(Body::Advice(AdviceBytes { advice: advice.into() }))
    }

    /// A snapshot of all of it, or of what is to be shown.
    pub(crate) fn json(&self, now_us: u64, shown: &Shown) -> Result<String, String> {
        let owner = shown.gateway.as_deref().map(Owner::gateway).transpose().map_err(|err| err.to_string())?;
        if let Some(owner) = &owner
            && self.federation.part(owner).is_none()
        {
            return Err(format!("nothing is known of the gateway `{}`", owner.name()));
        }
        let is_owner = |of: &Owner| owner.as_ref().is_none_or(|owner| owner == of);
        let is_around = |part: &Part<'_>| {
            let has = |node: &NodeKey| {
                let is_its = node.site.as_deref().is_none_or(|site| site == part.owner().name());
                is_its && part.nodes().any(|(kind, name)| kind == node.kind && *name == node.name)
            };
            shown.around.as_ref().is_none_or(has)
        };
        let is_shown = |part: &Part<'_>| !part.owner().is_gateway() || (is_owner(part.owner()) && is_around(part));
        let owners = self.federation.parts().filter(is_shown).count();
        if owners > SHOWN_OWNERS_MAX && shown.limit.is_none() {
            return Err(format!(
                "{owners} owners are too many to show at once, at most {SHOWN_OWNERS_MAX} are: ask for one box, with --gateway or \
                 `/graph.json?gateway=NAME`, for those that share a node, with `?around=carrier/NAME`, or for some, with \
                 `?limit=COUNT`"
            ));
        }
        let parts = self.federation.parts().filter(is_shown).take(shown.limit.unwrap_or(SHOWN_OWNERS_MAX));
        let talks = self.talkers.recent().cloned().collect();
        Ok(Snapshot::of_parts(now_us, parts, &self.causes, talks).to_json())
    }

    pub(crate) fn status(&self) -> GraphStatus {
        let counters = self.federation.counters();
        GraphStatus {
            owners: self.federation.len(),
            memory_bytes: self.federation.memory_bytes() as u64,
            merges: counters.fulls + counters.deltas,
            refused: self.refused,
            expired: counters.expired,
            causes: self.causes.named().map(CauseStatus::of).collect(),
        }
    }
}

/// A pool in the graph: its 95th percentile as the time spent in queues, as old as the last answer.
fn pool_estimate(pool: &PoolStatus) -> Estimate {
    let state = if pool.view.queue_percent >= POOL_BUSY_PERCENT { EdgeState::Yellow } else { EdgeState::Green };
    let estimate = Estimate::default().with_state(state);
    match pool.load.age_us {
        Some(age_us) => estimate.with(Quantity::QueueingDelayUs, pool.view.p95_us as f64).with_evidence(age_us, 1.0),
        None => estimate.with_evidence(0, 0.0),
    }
}

/// A pool whose queue is as full as this will soon refuse.
const POOL_BUSY_PERCENT: u32 = 75;

#[cfg(test)]
mod tests {
    use weir_logic::graph::Neighbours;
    use weir_logic::graph::{Site, SiteShape, UplinkShape};
    use weir_logic::health::{BreakerState, UplinkEstimate, UplinkState};

    use super::*;

    const SECOND_US: u64 = 1_000_000;

    fn estimate(now_us: u64, state: UplinkState) -> UplinkEstimate {
        UplinkEstimate {
            rtt_us: 40_000,
            jitter_us: 1_000,
            loss: if state == UplinkState::Green { 0.0 } else { 0.4 },
            goodput_bps: 1e6,
            capacity_bps: 1e6,
            queueing_delay_us: 0,
            ack_delay_us: Some(50_000),
            cwnd_bytes: 0,
            error_ratio: None,
            state,
            breaker: BreakerState::Closed,
            confidence: 1.0,
            updated_us: now_us,
        }
    }

    /// Publishes the state of a box's two uplinks: `lte` over the carrier that all share, and a line of its own.
    fn publish(graph: &mut GlobalGraph, now_us: u64, name: &str, lte: UplinkState) {
        let uplink = |name: &str, carrier: &str| UplinkShape {
            name: name.to_owned(),
            carrier: Some(carrier.to_owned()),
            ingest: "cloud-1".to_owned(),
            ..UplinkShape::default()
        };
        let uplinks = vec![uplink("lte", "telco"), uplink("dsl", &format!("line-{name}"))];
        let mut site = Site::new(&SiteShape { gateway: name.to_owned(), uplinks, ..SiteShape::default() }).expect("names");
        site.uplink(now_us, 0, &estimate(now_us, lte));
        site.uplink(now_us, 1, &estimate(now_us, UplinkState::Green));
        let mut publisher = Publisher::new(now_us, 1, PublisherLimits::default());
        let digest = publisher.next(now_us, site.graph(), &mut Peer::default()).expect("news");
        assert_eq!(graph.merge(now_us, &name.into(), &digest), None);
    }

    #[test]
    fn a_box_hears_from_the_others_that_their_common_carrier_fails_and_when_it_is_well_again() {
        let mut graph = GlobalGraph::new("cloud-1", 7, &[]).expect("a name");
        let calm = Load { queue_percent: 0, overloaded: false, stalled: false, commit_us: Some(5_000) };
        let well: Arc<str> = "box-0".into();
        let mut heard = Neighbours::default();
        let carrier = [NodeKey { kind: NodeKind::Carrier, site: None, name: "telco".into() }];
        for second in 1..30 {
            let now_us = second * SECOND_US;
            for at in 0..40 {
                let state = if at > 0 && second > 5 { UplinkState::Red } else { UplinkState::Green };
                publish(&mut graph, now_us, &format!("box-{at}"), state);
            }
            graph.tick(now_us, calm, &[]);
            if let Some(Body::Advice(said)) = graph.advice(now_us, &well) {
                heard.hear(now_us, &said.advice).expect("advice");
            }
        }
        let (node, concern) = heard.about(30 * SECOND_US, &carrier).expect("it is told");
        assert_eq!((node.to_string().as_str(), graph.status().causes.len()), ("carrier/telco", 1));
        assert!(concern.affected >= 30 && concern.slowdown() > 1.5, "{concern:?}");
        for second in 30..400 {
            let now_us = second * SECOND_US;
            for at in 0..40 {
                publish(&mut graph, now_us, &format!("box-{at}"), UplinkState::Green);
            }
            graph.tick(now_us, calm, &[]);
            if let Some(Body::Advice(said)) = graph.advice(now_us, &well) {
                heard.hear(now_us, &said.advice).expect("advice");
            }
        }
        assert_eq!(heard.about(400 * SECOND_US, &carrier), None, "all is well");
    }

    #[test]
    fn a_fleet_too_large_to_be_shown_at_once_is_shown_in_part() {
        let mut graph = GlobalGraph::new("cloud-1", 7, &[]).expect("a name");
        let calm = Load { queue_percent: 0, overloaded: false, stalled: false, commit_us: None };
        for at in 0..=SHOWN_OWNERS_MAX {
            publish(&mut graph, SECOND_US, &format!("box-{at}"), UplinkState::Green);
        }
        graph.tick(2 * SECOND_US, calm, &[]);
        let json = |query: &str| graph.json(2 * SECOND_US, &query.parse()?);
        let refused = json("").expect_err("too many");
        assert!(refused.contains("5002 owners are too many") && refused.contains("gateway=NAME"), "{refused}");
        let nodes = |query: &str| {
            let snapshot = Snapshot::from_json(&json(query).expect("an answer")).expect("JSON");
            snapshot.nodes.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let one = nodes("gateway=box-77");
        assert!(one.contains(&"gateway/box-77".to_owned()) && one.contains(&"sink/sqlite".to_owned()), "{one:?}");
        assert_eq!(one.iter().filter(|node| node.starts_with("gateway/")).count(), 1);
        // A node that all share is in too many parts, one that is in few is not.
        assert!(json("around=carrier/telco").is_err_and(|error| error.contains("5002 owners")));
        let around = nodes("around=carrier/line-box-77");
        assert_eq!(around.iter().filter(|node| node.starts_with("gateway/")).count(), 1, "{around:?}");
        assert!(nodes("around=carrier/nobodys").iter().all(|node| !node.starts_with("gateway/")));
        assert_eq!(
            nodes("limit=10").iter().filter(|node| node.starts_with("gateway/") || node.starts_with("sink/")).count(),
            10
        );
        for (query, words) in [
            ("gateway=nobody", "nothing is known of the gateway `nobody`"),
            ("limit=0", "from 1 to 5000"),
            ("gateways=1", "cannot read `gateways=1`"),
            ("around=telco", "telco"),
        ] {
            assert!(json(query).is_err_and(|error| error.contains(words)), "{query}");
        }
    }

    #[test]
    fn a_gateway_that_sends_garbage_is_counted_and_asked_for_all_of_it() {
        let mut graph = GlobalGraph::new("cloud-1", 7, &[]).expect("a name");
        assert!(matches!(graph.merge(0, &"box-1".into(), &[0xff; 40]), Some(Body::NeedFull(_))));
        assert_eq!((graph.status().refused, graph.status().owners), (1, 0));
    }
}
