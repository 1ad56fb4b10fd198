//! Questions on a small fleet: two boxes, two carriers, two ingest nodes, a sink and a pool.

use super::*;

/// `box-1` has a cable and a costly modem, `box-2` only the modem; `eu` and `us` are where ingest nodes stand.
fn fleet() -> Federation {
    let mut cloud = Federation::new(FederationLimits::default());
    let uplink = |name: &str, carrier: &str, ingest: &str, money| UplinkShape {
        name: name.to_owned(),
        carrier: Some(carrier.to_owned()),
        ingest: ingest.to_owned(),
        money_per_mb: Some(money),
        ..UplinkShape::default()
    };
    let cable = uplink("eth0", "cable", "ingest-eu", 0.0);
    let modem = uplink("lte0", "mobile", "ingest-us", 0.01);
    for (gateway, uplinks) in [("box-1", vec![cable, modem.clone()]), ("box-2", vec![modem])] {
        let streams = ["vibration", "hmi"].map(|name| StreamShape {
            name: name.to_owned(),
            sensors: vec![format!("{name}/+")],
            model: None,
        });
        let count = uplinks.len();
        let shape = SiteShape { gateway: gateway.to_owned(), zone: None, streams: streams.to_vec(), uplinks };
        let mut site = Site::new(&shape).expect("a site");
        for index in 0..count {
            let size = if gateway == "box-2" { 4.0 } else { 1.0 + index as f64 };
            site.uplink(SECOND_US, index, &healthy(SECOND_US, size));
        }
        publish(&mut cloud, site.graph());
    }
    for (ingest, zone) in [("ingest-eu", "eu"), ("ingest-us", "us")] {
        let mut graph = Subgraph::new(owner(&format!("cloud/{ingest}")));
        let node = graph.node(NodeKind::Ingest, ingest).expect("a node");
        let zone = graph.node(NodeKind::Zone, zone).expect("a node");
        let sink = graph.node(NodeKind::Sink, "main").expect("a node");
        let pool = graph.node(NodeKind::Pool, "gpu").expect("a node");
        graph.edge(node, zone).expect("an edge");
        let to_sink = graph.edge(node, sink).expect("an edge");
        let to_pool = graph.edge(node, pool).expect("an edge");
        let quick = Estimate::default().with(Quantity::QueueingDelayUs, 5_000.0).with_state(EdgeState::Green);
        graph.set(to_sink, SECOND_US, quick.with_evidence(0, 1.0));
        graph.set(to_pool, SECOND_US, quick.with(Quantity::QueueingDelayUs, 50_000.0).with_evidence(0, 1.0));
        publish(&mut cloud, &graph);
    }
    cloud
}

fn publish(cloud: &mut Federation, graph: &Subgraph) {
    let mut publisher = Publisher::new(0, 1, PublisherLimits::default());
    let bytes = publisher.next(SECOND_US, graph, &mut Peer::default()).expect("a digest");
    cloud.merge(SECOND_US, graph.owner(), &bytes).expect("a sound digest");
}

fn snapshot() -> Snapshot {
    Snapshot::of_federation(SECOND_US, &fleet(), &Causes::default(), Vec::new())
}

fn view() -> View {
    View::new(snapshot()).expect("a view")
}

/// The same with another state on an edge.
fn with_state(from: &str, to: &str, state: EdgeState) -> Snapshot {
    let mut snapshot = snapshot();
    let (from, to) = (key(from), key(to));
    let Snapshot { nodes, edges, .. } = &mut snapshot;
    let edge = edges.iter_mut().find(|edge| nodes[edge.from as usize] == from && nodes[edge.to as usize] == to);
    edge.expect("the edge").state = Some(state);
    snapshot
}

fn key(text: &str) -> NodeKey {
    text.parse().expect("a key")
}

fn steps(route: Option<&Route>) -> Vec<String> {
    let mut steps: Vec<String> = route.iter().flat_map(|route| &route.hops).map(|hop| hop.from.to_string()).collect();
    steps.extend(route.map(|route| route.to.to_string()));
    steps
}

#[test]
fn a_snapshot_reads_back_and_later_formats_are_refused() {
    let text = snapshot().to_json();
    let read = Snapshot::from_json(&text).expect("a snapshot");
    assert_eq!(read, snapshot());
    let later = text.replacen("\"format\":1", "\"format\":2,\"more\":[]", 1);
    assert!(matches!(Snapshot::from_json(&later), Err(SnapshotError::Format { found: 2 })));
    assert!(matches!(Snapshot::from_json("[]"), Err(SnapshotError::Json(_))));
    let nowhere = Snapshot { nodes: Vec::new(), ..snapshot() }.to_json();
    assert!(matches!(Snapshot::from_json(&nowhere), Err(SnapshotError::Edge { edge: 0, nodes: 0, .. })));
}

#[test]
fn the_cheapest_way_is_by_cable_and_the_next_by_modem() {
    let path = view().path(&key("stream/box-1/vibration"), None, &Constraints::default()).expect("a path");
    let by_cable =
        ["stream/box-1/vibration", "gateway/box-1", "uplink/box-1/eth0", "carrier/cable", "ingest/ingest-eu", "sink/main"];
    assert_eq!(steps(path.best.as_ref()), by_cable);
    assert_eq!(steps(path.next.as_ref())[2], "uplink/box-1/lte0");
    let (best, next) = (path.best.as_ref().expect("a way"), path.next.as_ref().expect("a way"));
    let sum: f64 = best.hops.iter().map(|hop| hop.cost_s).sum();
    assert!((best.cost_s - sum).abs() < 1e-9 && best.cost_s < next.cost_s && next.money_per_mb == 0.01);
    // rtt / 2 + jitter + queue + a frame at the usual rate, over what arrives; then 5 ms to the sink.
    let expected_ms = (20.0 + 3.0 + 10.0 + 16.384 * 8.0 / 5.0) / 0.99 + 5.0;
    assert!((best.delay_ms - expected_ms).abs() < 0.01, "{} and {expected_ms}", best.delay_ms);
    assert!(path.rejected.is_empty());
    assert!(path.to_table().contains("without that uplink"), "{}", path.to_table());
}

#[test]
fn a_breaker_and_a_zone_are_obeyed_and_told() {
    let stream = key("stream/box-1/vibration");
    let red = View::new(with_state("uplink/box-1/eth0", "carrier/cable", EdgeState::Red)).expect("a view");
    let path = red.path(&stream, None, &Constraints::default()).expect("a path");
    assert_eq!(steps(path.best.as_ref())[2], "uplink/box-1/lte0");
    assert_eq!((path.next, path.rejected.len()), (None, 1));
    assert_eq!(path.rejected[0].reason, "gateway/box-1 says that it is red");
    let only_eu = Constraints { zones: vec!["eu".to_owned()], ..Constraints::default() };
    let path = red.path(&stream, None, &only_eu).expect("a path");
    assert_eq!((&path.best, path.rejected.len()), (&None, 2));
    assert!(path.to_table().contains("zone/us, allowed is eu"), "{}", path.to_table());
    let anyway = Constraints { ignores_state: true, ..only_eu };
    assert_eq!(steps(red.path(&stream, None, &anyway).expect("a path").best.as_ref())[4], "ingest/ingest-eu");
}

#[test]
fn nobody_is_sent_over_the_uplink_of_another() {
    // The carrier of box-2 leads to ingest-us only; that box-1 reaches ingest-eu helps nobody else.
    let only_eu = Constraints { zones: vec!["eu".to_owned()], ..Constraints::default() };
    let path = view().path(&key("stream/box-2/hmi"), None, &only_eu).expect("a path");
    assert_eq!(path.best, None);
    let pool = view().path(&key("stream/box-2/hmi"), Some(&key("pool/gpu")), &Constraints::default()).expect("a path");
    assert_eq!(steps(pool.best.as_ref())[4..], ["ingest/ingest-us", "pool/gpu"]);
}

#[test]
fn impact_tells_who_loses_everything_and_who_only_the_best() {
    let node = |text| view().impact(&Target::Node(key(text))).expect("an answer");
    let names = |keys: &[NodeKey]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mobile = node("carrier/mobile");
    assert_eq!(names(&mobile.lost), ["stream/box-2/hmi", "stream/box-2/vibration"]);
    assert_eq!((mobile.worse.len(), mobile.unaffected, mobile.cut_off), (0, 2, 0));
    let cable = view().impact(&Target::Edge(key("carrier/cable"), key("ingest/ingest-eu"))).expect("an answer");
    assert_eq!((cable.lost.len(), cable.worse.len(), cable.unaffected), (0, 2, 2));
    assert!(cable.worse.iter().all(|worse| worse.after_s > worse.before_s));
    assert_eq!(cable.worse[0].next_uplink, Some(key("uplink/box-1/lte0")));
    assert_eq!(node("sink/main").lost.len(), 4);
    assert!(matches!(view().impact(&Target::Node(key("carrier/none"))), Err(AskError::Unknown { .. })));
    let backwards = Target::Edge(key("ingest/ingest-eu"), key("carrier/cable"));
    assert!(matches!(view().impact(&backwards), Err(AskError::NoEdge { .. })));
}

#[test]
fn weak_points_are_what_every_way_passes() {
    let find = |points: &WeakPoints, node: &str| {
        points.points.iter().find(|point| point.node == key(node)).map(|p| (p.streams, p.sites))
    };
    let points = view().weak_points(None);
    assert_eq!(points.points[0].node, key("sink/main"));
    assert_eq!(find(&points, "sink/main"), Some((4, 2)));
    assert_eq!(find(&points, "carrier/mobile"), Some((2, 1)));
    assert_eq!((find(&points, "carrier/cable"), find(&points, "gateway/box-1")), (None, Some((2, 1))));
    let red = View::new(with_state("uplink/box-1/eth0", "carrier/cable", EdgeState::Blocked)).expect("a view");
    assert_eq!(find(&red.weak_points(None), "carrier/mobile"), Some((4, 2)));
    let cut = View::new(with_state("uplink/box-2/lte0", "carrier/mobile", EdgeState::Red)).expect("a view");
    assert_eq!(cut.weak_points(Some("box-2")).cut_off.len(), 2);
}

#[test]
fn bottlenecks_are_the_edges_that_are_full() {
    let found = view().bottlenecks(None);
    assert_eq!(found.unknown, 0);
    let [first, second] = &found.boxes[..] else { panic!("two boxes: {found:?}") };
    assert_eq!((first.gateway.to_string().as_str(), first.flow_bps), ("gateway/box-1", 15_000_000));
    let cut: Vec<String> = first.cut.iter().map(|edge| edge.from.to_string()).collect();
    assert_eq!(cut, ["uplink/box-1/eth0", "uplink/box-1/lte0"]);
    assert_eq!((second.flow_bps, second.cut.len()), (20_000_000, 1));
    let cut = View::new(with_state("uplink/box-2/lte0", "carrier/mobile", EdgeState::Red)).expect("a view");
    let none = &cut.bottlenecks(Some("box-2")).boxes[0];
    assert_eq!((none.flow_bps, none.cut[0].capacity_bps), (0, 0));
    assert!(cut.bottlenecks(None).to_table().contains("down"));
}

#[test]
fn changes_name_what_is_new_gone_and_different() {
    let before = snapshot();
    assert!(changes(&before, &before).is_empty());
    let mut after = with_state("uplink/box-1/eth0", "carrier/cable", EdgeState::Red);
    let at = |node: &str| before.nodes.iter().position(|held| *held == key(node)).expect("a node") as u32;
    after.nodes.push(key("ingest/unheard-of"));
    let new = after.nodes.len() as u32 - 1;
    let edge = |from, to| SnapshotEdge { from, to, ..after.edges[0].clone() };
    let odd = SnapshotEdge { owner: owner("gateway/box-2"), ..edge(at("carrier/mobile"), new) };
    after.edges.push(odd);
    after.edges.retain(|edge| (edge.from, edge.to) != (at("ingest/ingest-us"), at("pool/gpu")));
    let slower = after.edges.iter_mut().find(|edge| edge.from == at("uplink/box-2/lte0")).expect("an edge");
    slower.values.insert(Quantity::RttUs, 900_000.0);
    let found = changes(&before, &after);
    assert_eq!((found.nodes_new.len(), found.nodes_gone.len()), (1, 0));
    assert_eq!(found.edges_new[0].to_string(), "carrier/mobile to ingest/unheard-of (gateway/box-2)");
    assert_eq!(found.edges_gone[0].to_string(), "ingest/ingest-us to pool/gpu (cloud/ingest-us)");
    assert_eq!((found.states[0].before, found.states[0].after), (Some(EdgeState::Green), Some(EdgeState::Red)));
    assert_eq!((found.values.len(), found.values[0].quantity, found.values[0].after), (1, Quantity::RttUs, Some(900_000.0)));
    assert!(found.to_table().contains("rtt_us"), "{}", found.to_table());
}

#[test]
fn show_cuts_out_a_box_or_a_node_and_what_it_cuts_out_can_be_asked() {
    let all = view().show(None).expect("a snapshot");
    assert_eq!(all, snapshot());
    let of_box = view().show(Some(&key("gateway/box-2"))).expect("a snapshot");
    assert!(of_box.nodes.iter().all(|node| node.site().is_none_or(|site| site == "box-2")));
    assert!(!of_box.nodes.contains(&key("carrier/cable")) && of_box.nodes.contains(&key("sink/main")));
    let asked = View::new(of_box).expect("a view").path(&key("stream/box-2/hmi"), None, &Constraints::default());
    assert!(asked.expect("a path").best.is_some());
    let of_node = view().show(Some(&key("carrier/mobile"))).expect("a snapshot");
    assert_eq!(of_node.edges.len(), 4, "two boxes lead in, and each says where it leads");
    let dot = all.to_dot();
    assert_eq!(dot.matches(" -> ").count(), all.edges.len());
    assert!(dot.contains("label=\"carrier/cable\", shape=ellipse"), "{dot}");
    assert_eq!(all.to_table().lines().count(), all.edges.len() + 1);
}

#[test]
fn names_are_found_and_near_ones_suggested() {
    let view = view();
    assert_eq!(view.find("stream/box-1/hmi"), Ok(key("stream/box-1/hmi")));
    assert_eq!(view.find("cable"), Ok(key("carrier/cable")));
    assert!(matches!(view.find("hmi"), Err(AskError::Ambiguous { ids, .. }) if ids.len() == 2));
    let unknown = view.find("carrier/mobil").expect_err("no such node");
    assert_eq!(unknown.to_string(), "there is no carrier/mobil in the graph; there is carrier/mobile");
    assert!(matches!(view.path(&key("carrier/mobile"), None, &Constraints::default()), Err(AskError::NotAStream(_))));
}

#[test]
fn a_box_alone_can_be_asked_too() {
    let mut site = Site::new(&shape("box-9", 2, 2)).expect("a site");
    (0..2).for_each(|index| site.uplink(SECOND_US, index, &healthy(SECOND_US, 1.0)));
    let own = Snapshot::of_subgraph(2 * SECOND_US, site.graph(), &Federation::new(FederationLimits::default()));
    let view = View::new(own).expect("a view");
    let path = view.path(&key("stream/box-9/vibration-0"), None, &Constraints::default()).expect("a path");
    assert_eq!(path.best.expect("a way").to, key("ingest/ingest-0"), "nobody has said what lies behind");
    // With what the cloud says of itself the way goes on.
    let others = Snapshot::of_subgraph(2 * SECOND_US, site.graph(), &fleet());
    assert!(others.nodes.contains(&key("sink/main")) && others.edges.iter().any(|edge| edge.owner == owner("cloud/ingest-eu")));
}
