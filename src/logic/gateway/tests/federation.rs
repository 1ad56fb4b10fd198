//! What a box tells of its part of the health graph, and what it makes of what it is told.

use super::cloud::owner;
use super::*;
use crate::graph::{Advice, AdviceItem, FederationCounters, NodeKey};

const SECOND_US: u64 = 1_000_000;

fn play(scenario: Scenario, until_us: u64) -> World {
    let mut world = World::new(11, scenario);
    world.play_until(until_us);
    world
}

fn told(world: &World) -> FederationCounters {
    world.cloud.graph.counters()
}

/// Nodes that the cloud knows of the box.
fn known(world: &World) -> Vec<String> {
    let part = world.cloud.graph.part(&owner()).expect("the box has told something");
    (0..part.nodes().len()).map(|node| part.key(node as u16).to_string()).collect()
}

/// What the cloud says of a carrier.
fn advice(carrier: &str, trouble: u32) -> Advice {
    let item = AdviceItem {
        node: format!("carrier/{carrier}"),
        trouble,
        share_permille: 1_000,
        affected: 30,
        confidence_permille: 990,
        age_s: 0,
    };
    Advice { items: vec![item] }
}

#[test]
fn the_cloud_has_all_of_the_boxs_part_again_after_either_was_restarted() {
    let troubles = [(20, Trouble::CloudCrash), (60, Trouble::EdgeCrash), (100, Trouble::LinkBreak)];
    let mut scenario = Scenario::calm(Durability::Through, sensor(8_000, 20_000));
    scenario.troubles = troubles.map(|(at_s, trouble)| (at_s * SECOND_US, trouble, SECOND_US)).to_vec();
    let mut world = play(scenario, 20 * SECOND_US);
    let all = known(&world);
    for node in ["gateway/box", "uplink/box/way-0", "carrier/carrier-0", "ingest/cloud", "stream/box/normal"] {
        assert!(all.iter().any(|known| known == node), "{node}: {all:?}");
    }
    let first = world.cloud.graph.stamp(&owner()).expect("a stamp");
    world.play_until(59 * SECOND_US);
    assert_eq!((known(&world), told(&world).fulls), (all.clone(), 1), "the cloud had forgotten all");
    let before = world.cloud.graph.stamp(&owner()).expect("a stamp");
    assert!(before > first, "the box had not");
    world.play_until(99 * SECOND_US);
    let after = world.cloud.graph.stamp(&owner()).expect("a stamp");
    assert!(after > before && after.run != before.run, "a new life goes on above the old one: {before:?}, {after:?}");
    assert_eq!((known(&world), told(&world).fulls), (all.clone(), 2));
    // A new connection of the same life goes on where it was.
    world.play_until(160 * SECOND_US);
    assert_eq!((known(&world), told(&world).fulls), (all, 2));
    assert!(told(&world).deltas > 5 && world.cloud.graph.stamp(&owner()).expect("a stamp") > after);
}

#[test]
fn a_metered_uplink_carries_a_digest_a_minute_at_most() {
    let count = |metered| {
        let scenario = Scenario { metered, ..Scenario::calm(Durability::Through, sensor(30_000, 20_000)) };
        let counters = told(&play(scenario, 600 * SECOND_US));
        counters.fulls + counters.deltas
    };
    let (metered, free) = (count(true), count(false));
    assert!((5..=11).contains(&metered) && free >= 20, "{metered} and {free}");
}

#[test]
fn advice_moves_lanes_to_a_way_that_is_as_good_closes_none_and_fades() {
    let mut world = two_ways(30_000, 10_000);
    world.play_until(30 * SECOND_US);
    let first = usize::from(routed_since(&world, 0).last().and_then(|(_, uplink)| *uplink).expect("a way"));
    let advised_us = world.now;
    world.advise(&advice(&format!("carrier-{first}"), 3));
    world.play_until(advised_us + 15 * SECOND_US);
    let moved = routed_since(&world, advised_us);
    assert_eq!(moved.iter().map(|(_, uplink)| *uplink).collect::<Vec<_>>(), [Some(1 - first as u8)], "{moved:?}");
    let gateway = world.gateway.as_ref().expect("it runs");
    assert!(gateway.advice(first) > 4.0 && gateway.advice(1 - first) == 1.0);
    assert!(gateway.health()[first].breaker().reason().is_none(), "what others say opens no breaker");
    assert!(gateway.uplinks()[first].is_up(), "and ends no session");
    // Nobody repeats it.
    world.play_until(advised_us + 600 * SECOND_US);
    assert_eq!(world.gateway.as_ref().expect("it runs").advice(first), 1.0);
    let said: Vec<bool> = world
        .told
        .iter()
        .filter_map(|event| match event {
            Event::Advised { uplink, about } if usize::from(*uplink) == first => Some(about.is_some()),
            _ => None,
        })
        .collect();
    assert!(said.len() > 2 && said.len() < 40, "told as it fades, not every second: {}", said.len());
    assert_eq!((said.first(), said.last()), (Some(&true), Some(&false)));
}

#[test]
fn advice_about_the_only_way_changes_nothing_and_odd_advice_is_counted() {
    let mut world = play(Scenario::calm(Durability::Through, sensor(3_000, 10_000)), 10 * SECOND_US);
    let nobodys = advice("carrier-7", 3);
    let odd = AdviceItem { node: "no node".to_owned(), ..advice("carrier-0", 1).items.remove(0) };
    assert!(odd.node.parse::<NodeKey>().is_err());
    world.advise(&Advice { items: vec![nobodys.items[0].clone(), odd, advice("carrier-0", 3).items.remove(0)] });
    world.play_out(60 * SECOND_US);
    world.judge();
    let counts = world.gateway.as_ref().expect("it runs").federation_counts();
    assert_eq!((world.tally.pubacks, counts.advice_ignored, counts.advice_refused), (3_000, 1, 0));
}
