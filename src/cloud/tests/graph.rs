//! Boxes that share a carrier, over real QUIC: what they publish, what is shown of it, and what they are told.

use weir_logic::graph::{Neighbours, NodeKey, Peer, Publisher, PublisherLimits, Site, SiteShape, Snapshot, UplinkShape};
use weir_logic::health::{BreakerState, UplinkEstimate, UplinkState};
use weir_logic::wire::DigestBytes;

use super::*;

const BOXES: usize = 12;
const LIMIT: Duration = Duration::from_secs(30);

/// A box made by hand, with a real publisher.
struct Node {
    gateway: Gateway,
    site: Site,
    publisher: Publisher,
    peer: Peer,
    now_us: u64,
}

impl Node {
    async fn connect(rig: &Rig, name: &str) -> Node {
        let mut gateway = rig.gateway(name).await;
        let welcome = gateway.hello(7, &[]).await.unwrap();
        assert_eq!(welcome.node, "test");
        let uplink = UplinkShape {
            name: "lte".to_owned(),
            carrier: Some("telco".to_owned()),
            ingest: welcome.node,
            ..UplinkShape::default()
        };
        let shape = SiteShape { gateway: name.to_owned(), uplinks: vec![uplink], ..SiteShape::default() };
        let mut publisher = Publisher::new(0, 7, PublisherLimits::default());
        let peer = publisher.greeted(welcome.last_stamp);
        Node { gateway, site: Site::new(&shape).unwrap(), publisher, peer, now_us: 1_000_000 }
    }

    /// Publishes what it sees of its uplink, if that is news.
    async fn sees(&mut self, state: UplinkState) {
        self.now_us += 2_000_000;
        let estimate = UplinkEstimate {
            rtt_us: 40_000,
            jitter_us: 1_000,
            loss: 0.0,
            goodput_bps: 1e6,
            capacity_bps: 1e6,
            queueing_delay_us: 0,
            ack_delay_us: Some(50_000),
            cwnd_bytes: 0,
            error_ratio: None,
            state,
            breaker: BreakerState::Closed,
            confidence: 1.0,
            updated_us: self.now_us,
        };
        self.site.uplink(self.now_us, 0, &estimate);
        if let Some(digest) = self.publisher.next(self.now_us, self.site.graph(), &mut self.peer) {
            self.gateway.say(Body::Digest(DigestBytes { digest: digest.into() })).await;
        }
    }

    async fn advice(&mut self) -> Neighbours {
        loop {
            if let Body::Advice(said) = self.gateway.hear().await.unwrap() {
                let mut heard = Neighbours::default();
                heard.hear(0, &said.advice).unwrap();
                return heard;
            }
        }
    }
}

async fn shown(rig: &Rig) -> Snapshot {
    let answer = get(rig.http, "/graph.json").await;
    Snapshot::from_json(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test]
async fn a_box_hears_from_its_neighbours_that_their_carrier_fails() {
    let names: Vec<String> = (0..BOXES).map(|at| format!("node-{at:02}")).collect();
    let rig = Rig::with(|config| config.gateways.enrolled = names.clone()).await;
    let mut boxes = Vec::new();
    for name in &names {
        boxes.push(Node::connect(&rig, name).await);
    }
    for node in &mut boxes {
        node.sees(UplinkState::Green).await;
    }
    for node in &mut boxes[1..] {
        node.sees(UplinkState::Red).await;
    }
    let carrier = [NodeKey { kind: weir_logic::graph::NodeKind::Carrier, site: None, name: "telco".into() }];
    let heard = tokio::time::timeout(LIMIT, boxes[0].advice()).await.unwrap();
    let (_, concern) = heard.about(0, &carrier).unwrap();
    assert!(concern.affected >= 11 && concern.slowdown() > 3.0, "{concern:?}");

    let snapshot = shown(&rig).await;
    let nodes: Vec<String> = snapshot.nodes.iter().map(ToString::to_string).collect();
    for name in &names {
        assert!(nodes.contains(&format!("gateway/{name}")), "{nodes:?}");
    }
    assert_eq!(snapshot.causes.iter().map(|cause| cause.node.to_string()).collect::<Vec<_>>(), ["carrier/telco"]);

    // A box that has forgotten all goes on above what was seen of it.
    drop(boxes.pop());
    let back = Node::connect(&rig, &names[BOXES - 1]).await;
    assert_eq!(back.publisher.stamp().incarnation, 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_digest_of_another_box_and_garbage_are_refused_and_a_delta_without_its_base_asks_for_all() {
    let mut rig = Rig::start().await;
    let mut node = Node::connect(&rig, "box-1").await;
    node.gateway.say(Body::Digest(DigestBytes { digest: vec![0xff; 40].into() })).await;
    let asked = async { while !matches!(node.gateway.hear().await.unwrap(), Body::NeedFull(need) if need.have.is_none()) {} };
    tokio::time::timeout(LIMIT, asked).await.unwrap();
    // Its own names only: what it says of others' uplinks is not believed, because it cannot be said.
    let mut other = Node::connect(&rig, "box-2").await;
    node.sees(UplinkState::Green).await;
    std::mem::swap(&mut node.site, &mut other.site);
    std::mem::swap(&mut node.publisher, &mut other.publisher);
    std::mem::swap(&mut node.peer, &mut other.peer);
    // The delta of box-1's part, sent by box-2, which has published nothing.
    other.sees(UplinkState::Red).await;
    let asked = async { while !matches!(other.gateway.hear().await.unwrap(), Body::NeedFull(_)) {} };
    tokio::time::timeout(LIMIT, asked).await.unwrap();
    rig.status.wait_for(|status| (status.graph.owners, status.graph.refused) == (2, 1)).await.unwrap();
    let nodes: Vec<String> = shown(&rig).await.nodes.iter().map(ToString::to_string).collect();
    assert!(nodes.contains(&"gateway/box-1".to_owned()) && !nodes.contains(&"gateway/box-2".to_owned()), "{nodes:?}");
    rig.stop().await;
}
