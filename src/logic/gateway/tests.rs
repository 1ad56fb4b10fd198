//! The whole gateway on virtual time, with everything going wrong that can, from one seed.
//!
//! `WEIR_SEEDS=5000` plays more seeds, `WEIR_SEED=17` plays that one alone.

mod brokers;
mod client;
mod cloud;
mod federation;
mod offers;
mod offload;
mod policies;
mod pressure;
mod rng;
mod scenario;
mod store;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use super::{Event, Question};
use crate::block::{Codec, Fidelity, RecordKind};
use crate::ids::{Class, VoidReason};
use crate::lanes::{Durability, LanePolicy, Overflow};
use crate::ranges::RangeSet;
use client::ClientPlan;
use rng::Rng;
use scenario::{Scenario, Trouble};
use world::{Covered, World};

const SEEDS: u64 = 400;
const SHARDS: u64 = 4;

/// Ids of the messages in a block.
fn ids_of(codec: &mut Codec, block: &Bytes) -> Vec<u64> {
    let (_, records) = codec.open(block).expect("a sound block");
    records.filter_map(|record| client::id_of(record.expect("a sound record").payload)).collect()
}

/// Numbers of a block whose messages it has no more, because it was thinned where it lay: left out, or part of an aggregate.
fn thinned_in(codec: &mut Codec, block: &Bytes) -> RangeSet {
    let (header, records) = codec.open(block).expect("a sound block");
    let records = records.map(|record| record.expect("a sound record"));
    let whole: Vec<u64> = records.filter(|record| record.kind != RecordKind::Aggregate).map(|record| record.seq).collect();
    let mut thinned = RangeSet::new();
    if header.fidelity == Fidelity::Thinned {
        let numbers = header.key.first_seq..=header.last_seq;
        numbers.filter(|seq| whole.binary_search(seq).is_err()).for_each(|seq| thinned.insert(seq..=seq));
    }
    thinned
}

/// Plays a seed and returns what it led to and a checksum of all outputs.
fn play(seed: u64) -> (Covered, u32) {
    let mut rng = Rng(seed);
    let scenario = Scenario::random(&mut rng);
    let mut world = World::new(rng.next(), scenario);
    world.play_until(world.troubles_end());
    world.play_out(900_000_000);
    // Let go of what was in flight, then nothing may be left to do.
    world.play_until(world.now + 8_000_000);
    let before = world.tally;
    world.play_until(world.now + 10_000_000);
    let (handled, commits) = (world.tally.handled - before.handled, world.tally.commits - before.commits);
    assert!(handled <= 300, "{handled} calls in 10 s without a thing to do");
    assert_eq!((commits, world.tally.sent_blocks - before.sent_blocks), (0, 0), "an idle gateway is quiet");
    world.judge();
    world.count();
    (world.covered, world.outputs_crc.clone().finalize())
}

fn play_shard(shard: u64) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds: Vec<u64> = match number("WEIR_SEED") {
        Some(seed) if seed % SHARDS == shard => vec![seed],
        Some(_) => return,
        None => (0..number("WEIR_SEEDS").unwrap_or(SEEDS)).filter(|seed| seed % SHARDS == shard).collect(),
    };
    let mut covered = Covered::default();
    for &seed in &seeds {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let (led_to, crc) = play(seed);
            if seed % 64 < SHARDS {
                assert_eq!(crc, play(seed).1, "the same seed gives other outputs");
            }
            led_to
        }));
        match result {
            Ok(led_to) => covered.add(led_to),
            Err(cause) => {
                let text = cause.downcast_ref::<String>().cloned();
                let text = text.or_else(|| cause.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default();
                panic!("seed {seed}: {text}\nreplay: WEIR_SEED={seed} cargo nextest run -p weir-logic nothing_is_lost");
            }
        }
    }
    // Troubles that no seed makes prove nothing.
    if seeds.len() as u64 >= SEEDS / SHARDS {
        assert!(covered.fields().iter().all(|(_, count)| **count > 0), "{covered:?}");
    }
}

#[test]
fn nothing_is_lost_or_doubled_whatever_happens_shard_0() {
    play_shard(0);
}

#[test]
fn nothing_is_lost_or_doubled_whatever_happens_shard_1() {
    play_shard(1);
}

#[test]
fn nothing_is_lost_or_doubled_whatever_happens_shard_2() {
    play_shard(2);
}

#[test]
fn nothing_is_lost_or_doubled_whatever_happens_shard_3() {
    play_shard(3);
}

fn sensor(messages: u64, gap_us: u64) -> ClientPlan {
    ClientPlan { v5: false, inflight_max: 1_000, messages, gap_us, len_max: 200, qos0_percent: 0, only: Some(2) }
}

#[test]
fn through_writes_nothing_while_the_uplink_is_well() {
    let mut world = World::new(1, Scenario::calm(Durability::Through, sensor(3_000, 10_000)));
    world.play_until(40_000_000);
    world.play_out(10_000_000);
    assert_eq!((world.tally.commits, world.tally.pubacks), (0, 3_000));
    world.judge();
}

#[test]
fn an_outage_costs_about_one_commit_a_second() {
    for durability in [Durability::Through, Durability::Disk] {
        for gap_us in [1_000_000, 100_000, 10_000] {
            let mut scenario = Scenario::calm(durability, sensor(100_000_000 / gap_us, gap_us));
            scenario.troubles = vec![(0, Trouble::LinkDown, 110_000_000)];
            let mut world = World::new(gap_us, scenario);
            world.play_until(105_000_000);
            let commits = world.tally.commits;
            assert!(commits <= 120, "{durability:?}: {commits} commits in 100 s with a message every {gap_us} us");
            assert!(world.tally.pubacks > 90_000_000 / gap_us, "{} PUBACKs", world.tally.pubacks);
            world.play_out(60_000_000);
            world.judge();
            assert_eq!(world.voided(), 0);
        }
    }
}

#[test]
fn data_that_is_lost_is_told_once_when_it_begins_and_once_when_it_has_ended() {
    let mut scenario = Scenario::calm(Durability::Disk, sensor(2_000, 50_000));
    scenario.lanes[2] = LanePolicy { cap_bytes: 100_000, overflow: Overflow::Evict, ..scenario.lanes[2] };
    scenario.limits.block_target_bytes = 4_000;
    scenario.troubles = vec![(1_000_000, Trouble::LinkDown, 300_000_000)];
    let mut world = World::new(1, scenario);
    world.play_until(290_000_000);
    let losses: Vec<_> =
        world.told.iter().filter(|event| matches!(event, Event::LossBegan { .. } | Event::LossEnded { .. })).collect();
    let [
        Event::LossBegan { class: Class::Normal, reason: VoidReason::Evicted, records: first },
        Event::LossEnded { class: Class::Normal, reason: VoidReason::Evicted, records: all, .. },
    ] = losses[..]
    else {
        panic!("{losses:?}")
    };
    assert!(*first > 0 && first < all, "{first} of {all}");
    assert_eq!(*all, world.gateway.as_ref().expect("it runs").lanes().counters(Class::Normal).evicted);
}

#[test]
fn a_window_that_could_not_be_scored_is_kept_as_it_was() {
    let mut scenario = Scenario::calm(Durability::Through, ClientPlan { only: Some(5), ..sensor(2_000, 5_000) });
    scenario.ack_record = true;
    let mut world = World::new(1, scenario);
    world.play_until(20_000_000);
    world.play_out(20_000_000);
    let fates = world.gateway.as_ref().expect("it runs").ingest().fates(5);
    assert!(world.failed_windows > 10 && fates.verdicts > 400, "{fates:?}");
    assert_eq!(fates.windows, world.failed_windows);
}

/// Two links of which the first is a little better, and a sensor that matters.
fn two_ways(messages: u64, gap_us: u64) -> World {
    let sensor = ClientPlan { only: Some(0), ..sensor(messages, gap_us) };
    World::new(11, Scenario { uplinks: 2, ..Scenario::calm(Durability::Through, sensor) })
}

/// When the lane of critical records last changed its way, since a time.
fn routed_since(world: &World, since_us: u64) -> Vec<(u64, Option<u8>)> {
    let told = world.told.iter().zip(&world.told_us).filter(|(_, at_us)| **at_us >= since_us);
    let routed = told.filter_map(|(event, &at_us)| match event {
        Event::Routed { lane: Class::Critical, uplink, .. } => Some((at_us, *uplink)),
        _ => None,
    });
    routed.collect()
}

#[test]
fn critical_records_leave_a_silent_link_within_a_second_and_a_half_and_none_is_lost() {
    let mut world = two_ways(4_000, 10_000);
    world.play_until(10_000_000);
    let first = usize::from(routed_since(&world, 0).last().and_then(|(_, uplink)| *uplink).expect("a way"));
    let (cut_us, other) = (world.now, 1 - first);
    world.stall(first, 120_000_000);
    world.play_until(cut_us + 1_500_000);
    let moved = routed_since(&world, cut_us);
    assert_eq!(moved.iter().map(|(_, uplink)| *uplink).collect::<Vec<_>>(), [Some(other as u8)], "once: {moved:?}");
    // The silence detector allows a second or five round trips; a look at it takes no more than a tenth.
    assert!(moved[0].0 <= cut_us + 1_100_000, "after {} ms", (moved[0].0 - cut_us) / 1_000);
    assert!(world.tally.sent_us[other] >= moved[0].0);
    world.play_until(60_000_000);
    world.play_out(60_000_000);
    world.judge();
    assert_eq!((world.tally.pubacks, world.voided()), (4_000, 0));
}

#[test]
fn a_link_that_flaps_is_left_once_and_not_gone_back_to() {
    let mut world = two_ways(9_000, 10_000);
    world.play_until(10_000_000);
    let first = usize::from(routed_since(&world, 0).last().and_then(|(_, uplink)| *uplink).expect("a way"));
    let since_us = world.now;
    for _ in 0..20 {
        world.stall(first, 2_000_000);
        world.play_until(world.now + 4_000_000);
    }
    let moved = routed_since(&world, since_us);
    assert!(moved.len() <= 1, "{moved:?}");
    world.play_out(120_000_000);
    world.judge();
    assert_eq!(world.tally.pubacks, 9_000);
}

#[test]
fn when_both_links_are_silent_what_is_held_goes_by_whichever_comes_back() {
    let mut world = two_ways(3_000, 10_000);
    world.play_until(5_000_000);
    world.stall(0, 20_000_000);
    world.stall(1, 60_000_000);
    world.play_until(40_000_000);
    world.play_out(60_000_000);
    world.judge();
    assert_eq!((world.tally.pubacks, world.voided()), (3_000, 0));
}
