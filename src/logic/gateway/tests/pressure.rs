//! What a box does when its cloud says that it is busy.

use super::*;
use crate::wire::LoadLevel;

const SECOND_US: u64 = 1_000_000;

/// Sensors of two classes that publish for a minute.
fn two_classes() -> Scenario {
    let of = |stream| ClientPlan { only: Some(stream), ..sensor(600, 100_000) };
    Scenario { clients: vec![of(0), of(3)], ..Scenario::calm(Durability::Disk, of(0)) }
}

fn held(world: &World, class: Class) -> u64 {
    world.gateway.as_ref().expect("it runs").lanes().status(class).records
}

/// When the lane's way changed since a time, whether it has one, and why.
fn routed(world: &World, class: Class, since_us: u64) -> Vec<(u64, bool, String)> {
    let told = world.told.iter().zip(&world.told_us).filter(|(_, at_us)| **at_us >= since_us);
    let routed = told.filter_map(|(event, &at_us)| match event {
        Event::Routed { lane, uplink, reason, .. } if *lane == class => Some((at_us, uplink.is_some(), reason.clone())),
        _ => None,
    });
    routed.collect()
}

#[test]
fn bulk_waits_for_a_busy_cloud_and_drains_after_it_and_critical_does_not_notice() {
    for (level, takes_credits) in [(LoadLevel::Overloaded, false), (LoadLevel::Overloaded, true), (LoadLevel::Stalled, false)] {
        let mut world = World::new(11, two_classes());
        world.play_until(20 * SECOND_US);
        world.cloud_load(level, takes_credits);
        // What is under way is not called back.
        world.play_until(22 * SECOND_US);
        let before = held(&world, Class::Bulk);
        world.play_until(40 * SECOND_US);
        let more = held(&world, Class::Bulk) - before;
        assert!((150..=210).contains(&more), "{level:?}: {more} of 180 in 18 s are held");
        assert!(held(&world, Class::Critical) <= 5, "{level:?}");
        let why = routed(&world, Class::Bulk, 20 * SECOND_US);
        let [(at_us, false, reason)] = &why[..] else { panic!("{why:?}") };
        assert!(*at_us <= 21 * SECOND_US && reason.contains(level.name()), "{why:?}");
        let explained = world.gateway.as_ref().expect("it runs").explain(world.now, &Question::Stream("bulk".to_owned()));
        let explained = explained.expect("the stream is there");
        assert!(explained.streams[0].plan.ends_with("held") && explained.streams[0].reason.contains(level.name()));
        assert!(explained.lanes[0].reason.contains("held on the box") && explained.changes.len() >= 2, "{explained:?}");
        world.cloud_load(LoadLevel::Idle, false);
        world.play_until(world.now + 62 * SECOND_US);
        world.play_out(20 * SECOND_US);
        world.judge();
        assert_eq!((world.tally.pubacks, world.voided()), (1_200, 0), "{level:?}: nothing is lost");
        let back = routed(&world, Class::Bulk, 40 * SECOND_US);
        assert!(matches!(&back[..], [(_, true, _)]), "once: {back:?}");
        let explained = world.gateway.as_ref().expect("it runs").explain(world.now, &Question::Stream("bulk".to_owned()));
        assert!(explained.expect("the stream is there").streams[0].reason.contains("policy asks"));
    }
}

#[test]
fn boxes_go_back_one_after_another_and_the_same_box_at_the_same_time() {
    let back_s = |seed| {
        let mut world = World::new(seed, two_classes());
        world.play_until(10 * SECOND_US);
        world.cloud_load(LoadLevel::Overloaded, true);
        world.play_until(40 * SECOND_US);
        world.cloud_load(LoadLevel::Idle, false);
        world.play_until(72 * SECOND_US);
        let back = routed(&world, Class::Bulk, 40 * SECOND_US);
        assert!(back.len() == 1 && back[0].1, "within as long as it lasted: {back:?}");
        back[0].0 / SECOND_US - 40
    };
    let seconds: Vec<u64> = (0..24).map(back_s).collect();
    let most = (0..=32).map(|second| seconds.iter().filter(|at| **at == second).count()).max();
    assert!(most <= Some(6), "{seconds:?}");
    let (first, last) = (seconds.iter().min().expect("some"), seconds.iter().max().expect("some"));
    assert!(*first <= 8 && *last >= 12, "{seconds:?}");
    assert_eq!(back_s(3), seconds[3]);
}

#[test]
fn a_cloud_that_takes_no_data_is_not_taken_for_a_slow_uplink() {
    let mut world = World::new(5, two_classes());
    world.play_until(20 * SECOND_US);
    let capacity = |world: &World| world.gateway.as_ref().expect("it runs").health()[0].estimate(world.now).capacity_bps;
    let before = capacity(&world);
    world.cloud_load(LoadLevel::Overloaded, true);
    world.play_until(50 * SECOND_US);
    let after = capacity(&world);
    assert!(after >= before * 0.9, "{before} bit/s before and {after} after");
    let told = world.told.iter().zip(&world.told_us).filter(|(_, at_us)| **at_us > 20 * SECOND_US);
    let opened: Vec<_> = told.filter(|(event, _)| matches!(event, Event::UplinkState { reason: Some(_), .. })).collect();
    assert!(opened.is_empty(), "{opened:?}");
}

#[test]
fn a_box_that_reconnects_hears_of_the_load_again_and_one_that_does_not_returns_by_itself() {
    let mut world = World::new(5, two_classes());
    world.play_until(20 * SECOND_US);
    world.cloud_load(LoadLevel::Overloaded, false);
    world.play_until(25 * SECOND_US);
    world.break_link(0);
    // This cloud has been restarted and says nothing any more.
    world.play_until(40 * SECOND_US);
    let back = routed(&world, Class::Bulk, 25 * SECOND_US);
    assert!(back.last().is_some_and(|(_, is_up, _)| *is_up), "{back:?}");
    world.play_until(62 * SECOND_US);
    world.play_out(20 * SECOND_US);
    world.judge();
}
