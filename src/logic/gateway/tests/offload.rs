//! The gateway with a pool that answers, is slow, busy or dead.

use super::client::ClientPlan;
use super::scenario::{PoolMood, Scenario};
use super::world::World;
use crate::gateway::Event;
use crate::lanes::Durability;
use crate::offload::{NotSent, OffloadCounts, OffloadMode};

/// Messages of the one sensor, four to a window.
const MESSAGES: u64 = 800;
/// Windows that there are at least: a few messages of each device make no whole one, and a twentieth cannot be scored.
const WINDOWS_MIN: u64 = MESSAGES / 4 * 3 / 4;
/// Position of the stream that is asked about.
const VERDICT: u16 = 5;

fn play(mode: OffloadMode, mood: PoolMood) -> World {
    play_with(mode, mood, false)
}

/// The same with a model that is always sure, and a quarter of its answers audited.
fn play_audits(mode: OffloadMode, mood: PoolMood) -> World {
    play_with(mode, mood, true)
}

fn play_with(mode: OffloadMode, mood: PoolMood, audits: bool) -> World {
    let client = ClientPlan {
        v5: true,
        inflight_max: 100,
        messages: MESSAGES,
        gap_us: 25_000,
        len_max: 10,
        qos0_percent: 0,
        only: Some(usize::from(VERDICT)),
    };
    let scenario =
        Scenario { offload: Some((mode, mood)), audits, ack_record: true, ..Scenario::calm(Durability::Through, client) };
    let mut world = World::new(3, scenario);
    world.play_until(60_000_000);
    world.play_out(60_000_000);
    world.judge();
    world
}

fn counts(world: &World) -> OffloadCounts {
    world.gateway.as_ref().expect("it runs").offloads().counts(VERDICT)
}

/// Verdicts that were recorded, and windows that the model on the box has scored.
fn verdicts_and_scored(world: &World) -> (u64, u64) {
    let ingest = world.gateway.as_ref().expect("it runs").ingest();
    let windows = ingest.sample_counts()[usize::from(VERDICT)].windows.windows;
    (ingest.fates(VERDICT).verdicts, windows - world.failed_windows)
}

#[test]
fn a_dead_pool_changes_nothing_of_what_is_recorded_and_when() {
    let never = play(OffloadMode::Never, PoolMood::Silent);
    for mood in [PoolMood::Silent, PoolMood::Refusing] {
        let asked = play(OffloadMode::AnswerNow, mood);
        assert!(counts(&asked).sent >= 3, "{:?}", counts(&asked));
        assert_eq!(
            asked.records_crc.clone().finalize(),
            never.records_crc.clone().finalize(),
            "{mood:?}: the same bytes to clients, disk and cloud, at the same microsecond"
        );
    }
    let silent = play(OffloadMode::AnswerNow, PoolMood::Silent);
    let counts = counts(&silent);
    // Every 100 ms a window, a deadline of 300 ms: three under way when the third has failed, then a trial now and then.
    assert!((3..=12).contains(&counts.sent), "{counts:?}");
    let opened = silent.told.iter().filter(|event| matches!(event, Event::PoolBreaker { state: "open", .. })).count();
    assert!(opened >= 1, "it is told");
    // The plan takes the pool away as soon as its breaker opens.
    assert!(
        counts.not_sent[NotSent::NoPool as usize] + counts.not_sent[NotSent::Breaker as usize] > WINDOWS_MIN / 2,
        "{counts:?}"
    );
}

#[test]
fn in_mode_wait_a_record_waits_for_its_answer_and_for_a_dead_pool_at_most_a_few_deadlines() {
    let quick = play(OffloadMode::Wait, PoolMood::Quick);
    let asked = counts(&quick);
    assert!(asked.answered > WINDOWS_MIN && asked.answered == asked.sent && asked.disagreed == asked.answered, "{asked:?}");
    let silent = play(OffloadMode::Wait, PoolMood::Silent);
    for world in [&quick, &silent] {
        let (verdicts, scored) = verdicts_and_scored(world);
        assert_eq!(verdicts, scored, "one record each, whoever said it");
    }
    assert!((3..=12).contains(&counts(&silent).overdue), "{:?}", counts(&silent));
    assert_eq!(quick.tally.pubacks, silent.tally.pubacks, "every sender hears of its record");
}

#[test]
fn an_answer_is_a_record_of_its_own_and_so_is_a_late_one() {
    let quick = play(OffloadMode::AnswerNow, PoolMood::Quick);
    let (verdicts, scored) = verdicts_and_scored(&quick);
    assert_eq!(verdicts, scored + counts(&quick).answered);
    let late = play(OffloadMode::AnswerNow, PoolMood::Late);
    let asked = counts(&late);
    assert!(asked.late >= 3 && asked.late == asked.overdue, "{asked:?}");
    let (verdicts, scored) = verdicts_and_scored(&late);
    assert_eq!(verdicts, scored + asked.late);
}

#[test]
fn audits_change_nothing_of_what_is_recorded_and_when_and_are_counted() {
    let never = play(OffloadMode::Never, PoolMood::Quick);
    for mood in [PoolMood::Quick, PoolMood::Silent, PoolMood::Refusing] {
        let audited = play_audits(OffloadMode::Wait, mood);
        let counts = counts(&audited);
        assert_eq!(
            audited.records_crc.clone().finalize(),
            never.records_crc.clone().finalize(),
            "{mood:?}: the same bytes to clients, disk and cloud, at the same microsecond; {counts:?}"
        );
        let broke = audited.told.iter().any(|event| matches!(event, Event::PoolBreaker { .. }));
        assert!(counts.sent == counts.audits_sent && counts.sent >= 3 && !broke, "{mood:?}: {counts:?}");
        let ended = counts.audits_answered + counts.audits_unanswered;
        assert_eq!(ended, counts.audits_sent, "{mood:?}: {counts:?}");
        let tallies = audited.gateway.as_ref().expect("it runs").ingest().audits().tallies(VERDICT);
        if mood != PoolMood::Quick {
            assert!(tallies.is_empty() && counts.audits_answered == 0, "{mood:?}: {counts:?}");
            continue;
        }
        // All windows are sure ones, and a quarter of them is audited.
        let (audited, seen) = (tallies[0].audited, tallies[0].seen);
        assert_eq!((audited.answered, audited.agreed, tallies[0].doubted.answered), (counts.audits_answered, 0, 0));
        assert!(
            audited.answered > WINDOWS_MIN / 6 && audited.answered < WINDOWS_MIN / 2 && seen.1 == 0,
            "{audited:?} of {seen:?}"
        );
        assert!(tallies[0].to_string().contains("who is right is not known"), "{}", tallies[0]);
    }
}
