//! Policies from the cloud, on virtual time: tried, kept, taken back, refused, and always told.

use super::super::{Input, PolicyNews, PolicyStart};
use super::*;
use crate::policy::{Meter, Policy, StreamFidelity};
use crate::rollout::OfferState;

const SECOND_US: u64 = 1_000_000;
const TRIAL_US: u64 = 60 * SECOND_US;

/// A box with a key, and a sensor of the lane `normal` that sends for ten minutes; at 20 s all is well.
fn world(offers: PolicyStart) -> World {
    let sensor = ClientPlan { only: Some(Class::Normal.index()), ..sensor(30_000, 20_000) };
    let offers = PolicyStart { has_key: true, trial_us: TRIAL_US, ..offers };
    let mut world = World::new(5, Scenario { offers, uplinks: 2, ..Scenario::calm(Durability::Through, sensor) });
    world.play_until(20 * SECOND_US);
    world
}

/// The policy in force, changed.
fn changed(world: &World, change: impl FnOnce(&mut Policy)) -> Box<Policy> {
    let mut policy = Box::new(world.gateway.as_ref().expect("it runs").policy().clone());
    change(&mut policy);
    policy
}

fn to_bulk(policy: &mut Policy) {
    policy.streams[Class::Normal.index()].class = Class::Bulk;
    policy.uplinks[1].meter = Some(Meter { money_per_mb: 2.0, month_bytes: Some(1 << 30) });
}

/// Offers a version and lets the shell say that it is this policy.
fn try_policy(world: &mut World, version: u64, policy: Box<Policy>) {
    world.offer(version);
    world.play_until(world.now + SECOND_US);
    assert_eq!(world.checks.pop(), Some(version));
    world.input(Input::PolicyChecked { version, result: Ok(policy) });
}

fn news(world: &World) -> Vec<(u64, OfferState)> {
    let policies = world.told.iter().filter_map(|event| match event {
        Event::Policy(PolicyNews { version, state, .. }) => Some((*version, *state)),
        _ => None,
    });
    policies.collect()
}

/// What the cloud heard last: version, state, the version kept, and why.
fn heard(world: &World) -> (u64, OfferState, u64, &str) {
    let state = world.cloud.policy_states.last().expect("it heard something");
    (state.version, OfferState::from_code(state.state).expect("a state"), state.kept, &state.reason)
}

fn lane(world: &World) -> Class {
    world.gateway.as_ref().expect("it runs").plan().streams[Class::Normal.index()].lane
}

#[test]
fn a_policy_that_works_is_in_force_at_once_and_kept() {
    let mut world = world(PolicyStart::default());
    assert_eq!(heard(&world), (0, OfferState::Kept, 0, ""), "told after the greeting");
    let policy = changed(&world, to_bulk);
    try_policy(&mut world, 7, policy);
    assert_eq!(lane(&world), Class::Bulk);
    world.play_until(world.now + SECOND_US);
    assert_eq!((heard(&world).1, heard(&world).2), (OfferState::Trial, 0));
    world.play_until(world.now + 15 * SECOND_US);
    assert_eq!((news(&world), lane(&world)), (vec![(7, OfferState::Trial), (7, OfferState::Kept)], Class::Bulk));
    assert_eq!((heard(&world).0, heard(&world).1, heard(&world).2), (7, OfferState::Kept, 7));
    let gateway = world.gateway.as_ref().expect("it runs");
    let changes: Vec<_> = gateway.changes().iter().filter(|change| change.subject == "policy").collect();
    assert_eq!((changes.len(), &*changes[1].new), (2, "version 7 kept"));
    assert!(gateway.budgets().nth(1).expect("two uplinks").is_some(), "the second has a month now");
    // What the cloud offers again, or an older one, changes nothing.
    world.offer(7);
    world.offer(6);
    world.play_until(world.now + SECOND_US);
    assert!(world.checks.is_empty());
    let (version, state, kept, reason) = heard(&world);
    assert_eq!((version, state, kept), (6, OfferState::Refused, 7));
    assert!(reason.contains("not above 7"), "{reason}");
    world.play_out(900 * SECOND_US);
    world.judge();
    assert_eq!(world.tally.pubacks, 30_000, "a change of policy costs no message");
}

#[test]
fn a_policy_whose_uplinks_do_not_come_back_is_taken_back_and_not_tried_again() {
    let mut world = world(PolicyStart::default());
    let before = world.gateway.as_ref().expect("it runs").policy().clone();
    let policy = changed(&world, to_bulk);
    try_policy(&mut world, 7, policy);
    [0, 1].into_iter().for_each(|uplink| world.stall(uplink, 100 * SECOND_US));
    world.play_until(world.now + TRIAL_US + 2 * SECOND_US);
    assert_eq!((news(&world).last(), lane(&world)), (Some(&(7, OfferState::RolledBack)), Class::Normal));
    let gateway = world.gateway.as_ref().expect("it runs");
    assert_eq!((gateway.policy().uplinks == before.uplinks, gateway.policies().kept()), (true, 0));
    assert!(gateway.budgets().all(|budget| budget.is_none()));
    // The cloud hears of it with the next session, and so it does if it offers it again.
    world.play_until(world.now + 90 * SECOND_US);
    let (version, state, kept, reason) = heard(&world);
    assert_eq!((version, state, kept), (7, OfferState::RolledBack, 0));
    assert!(reason.contains("no uplink was up"), "{reason}");
    world.offer(7);
    world.offer(6);
    world.play_until(world.now + SECOND_US);
    assert!(world.checks.is_empty(), "neither is tried");
    assert!(heard(&world).3.contains("7 was tried here"), "{}", heard(&world).3);
    world.play_out(900 * SECOND_US);
    world.judge();
}

#[test]
fn a_policy_that_stops_what_came_in_is_taken_back() {
    let sensor = ClientPlan { only: Some(2), ..sensor(800, 20_000) };
    let offers = PolicyStart { has_key: true, trial_us: TRIAL_US, ..PolicyStart::default() };
    let mut world = World::new(5, Scenario { offers, ..Scenario::calm(Durability::Through, sensor) });
    // The sensor ends by itself at about 22 s: the box cannot know that it was not the policy.
    world.play_until(30 * SECOND_US);
    let policy = changed(&world, to_bulk_only);
    try_policy(&mut world, 3, policy);
    world.play_until(world.now + TRIAL_US + 2 * SECOND_US);
    assert_eq!(news(&world), [(3, OfferState::Trial), (3, OfferState::RolledBack)]);
    assert!(heard(&world).3.contains("no message was taken in"), "{}", heard(&world).3);
}

fn to_bulk_only(policy: &mut Policy) {
    policy.streams[Class::Normal.index()].class = Class::Bulk;
}

#[test]
fn what_the_shell_refuses_or_does_not_fit_changes_nothing_and_is_told() {
    let mut world = world(PolicyStart::default());
    world.offer(7);
    world.play_until(world.now + SECOND_US);
    world.input(Input::PolicyChecked { version: 7, result: Err("signed with another key".to_owned()) });
    world.play_until(world.now + SECOND_US);
    assert_eq!(heard(&world), (7, OfferState::Refused, 0, "signed with another key"));
    world.checks.clear();
    // The same version with a right signature is looked at again.
    let policy = changed(&world, |policy| policy.streams[0].fidelity = StreamFidelity::Aggregate);
    try_policy(&mut world, 7, policy);
    world.play_until(world.now + SECOND_US);
    assert_eq!((heard(&world).1, lane(&world)), (OfferState::Refused, Class::Normal));
    assert!(heard(&world).3.contains("is to be aggregated"), "{}", heard(&world).3);
    // An answer that nobody asked for is none.
    let policy = changed(&world, to_bulk);
    world.input(Input::PolicyChecked { version: 9, result: Ok(policy) });
    assert_eq!(lane(&world), Class::Normal);
}

#[test]
fn the_newest_of_those_that_come_during_a_trial_is_next() {
    let mut world = world(PolicyStart::default());
    let policy = changed(&world, to_bulk);
    try_policy(&mut world, 7, policy);
    [8, 10, 9].into_iter().for_each(|version| world.offer(version));
    world.play_until(world.now + 8 * SECOND_US);
    assert!(world.checks.is_empty());
    world.play_until(world.now + 8 * SECOND_US);
    assert_eq!((world.checks.as_slice(), news(&world).last()), ([10].as_slice(), Some(&(7, OfferState::Kept))));
}

#[test]
fn a_box_without_a_key_says_so_and_one_that_died_on_trial_says_that() {
    let sensor = ClientPlan { only: Some(2), ..sensor(500, 20_000) };
    let mut without = World::new(5, Scenario::calm(Durability::Through, sensor));
    without.play_until(8 * SECOND_US);
    assert_eq!((heard(&without).1, heard(&without).2), (OfferState::NoKey, 0));
    without.offer(3);
    without.play_until(9 * SECOND_US);
    assert_eq!((heard(&without).1, news(&without)), (OfferState::NoKey, vec![(3, OfferState::NoKey)]));
    assert!(heard(&without).3.contains("add `key`"), "{}", heard(&without).3);

    let reason = "the box stopped during the trial".to_owned();
    let last = PolicyNews { version: 9, state: OfferState::RolledBack, reason, kept: 8 };
    let mut died = world(PolicyStart { version: 8, tried: 9, last: Some(last), ..PolicyStart::default() });
    assert_eq!(heard(&died), (9, OfferState::RolledBack, 8, "the box stopped during the trial"));
    died.offer(9);
    died.play_until(died.now + SECOND_US);
    assert!(died.checks.is_empty());
}
