//! One box, one disk and one task, with everything that can go wrong between them.

use proptest::prelude::*;

use super::*;

const S: u64 = 1_000_000;
const WINDOWS: u64 = 10;
const RULES: Rules = Rules { windows: WINDOWS, agreement_min: 0.9, share_ppm: 100_000, stage_us_max: 3_600 * S };

fn release(version: u64) -> Release {
    Release { version, id: format!("{version:064x}"), window_us_max: 100 }
}

fn good(windows: u64) -> Observation {
    Observation { windows, us: 50 * windows, ..Observation::default() }
}

/// The shell and what it carries out, in its simplest form.
struct World {
    now_us: u64,
    updates: Updates,
    disk: Slot,
    /// What answers; the version, 0 for the file.
    answers: u64,
    child: Option<u64>,
    share: Option<u32>,
    events: Vec<News>,
    /// The disk refuses to write.
    is_disk_full: bool,
    /// Outputs that are carried out before the box dies.
    left: usize,
}

impl World {
    fn new(disk: Slot) -> World {
        let updates = Updates::start(0, disk.clone(), RULES, false);
        let answers = version(updates.in_use());
        let (child, share, events) = (None, None, Vec::new());
        World { now_us: 0, updates, disk, answers, child, share, events, is_disk_full: false, left: usize::MAX }
    }

    /// Carries out what is wanted; false if the box has died.
    fn carry_out(&mut self) -> bool {
        while let Some(output) = self.updates.poll() {
            if self.left == 0 {
                return false;
            }
            self.left -= 1;
            match output {
                Output::Save(slot) => {
                    if !self.is_disk_full {
                        self.disk = *slot;
                    }
                    if self.left == 0 {
                        return false;
                    }
                    self.updates.handle(self.now_us, Input::Saved(!self.is_disk_full));
                }
                Output::Start(release) => self.child = Some(release.version),
                Output::Compare(share) => self.share = share,
                Output::Stop => self.child = None,
                Output::Swap(release) => self.answers = version(release.as_ref()),
                Output::Event(news) => self.events.push(news),
            }
        }
        true
    }

    fn give(&mut self, input: Input) -> bool {
        self.now_us += S;
        self.updates.handle(self.now_us, input);
        self.carry_out()
    }

    /// What a healthy release makes of itself, until it is active or the box has died.
    fn prove(&mut self) -> bool {
        for _ in 0..20 {
            let Some(trial) = self.updates.slot().trial.clone() else { return true };
            let is_new = matches!(trial.stage, Stage::Candidate) || self.updates.seen().is_none();
            let input = if is_new { Input::Loaded } else { Input::Observed(good(WINDOWS)) };
            if !self.give(input) {
                return false;
            }
        }
        panic!("the trial has no end: {:?}", self.updates);
    }

    /// Dies and comes back.
    fn restart(&mut self, has_crashed: bool) {
        let (now_us, events) = (self.now_us + S, std::mem::take(&mut self.events));
        let updates = Updates::start(now_us, self.disk.clone(), RULES, has_crashed);
        let answers = version(updates.in_use());
        *self = World { now_us, updates, answers, events, ..World::new(self.disk.clone()) };
        self.carry_out();
    }
}

fn version(release: Option<&Release>) -> u64 {
    release.map_or(0, |release| release.version)
}

#[test]
fn a_good_release_goes_through_every_stage_and_the_one_before_is_kept() {
    let mut on = World::new(Slot { active: Some(release(3)), tried: 3, ..Slot::default() });
    on.give(Input::Offered(release(4)));
    assert_eq!((on.answers, on.child, on.share), (3, Some(4), None));
    on.give(Input::Loaded);
    assert_eq!((on.answers, on.child, on.share), (3, Some(4), Some(0)), "shadow");
    on.give(Input::Observed(good(WINDOWS - 1)));
    assert_eq!(on.share, Some(0), "not yet");
    on.give(Input::Observed(good(1)));
    assert_eq!((on.answers, on.share), (3, Some(100_000)), "canary");
    on.give(Input::Observed(good(WINDOWS)));
    assert_eq!((on.answers, on.child, on.share), (4, None, None), "probation");
    on.give(Input::Loaded);
    on.give(Input::Observed(good(WINDOWS)));
    assert_eq!((version(on.disk.active.as_ref()), version(on.disk.previous.as_ref()), &on.disk.trial), (4, 3, &None));
    let changes: Vec<Change> = on.events.iter().map(|news| news.change).collect();
    let stages = [Stage::Candidate, Stage::Shadow, Stage::Canary, Stage::Probation].map(Change::Entered);
    assert_eq!(changes, [&stages[..], &[Change::Active]].concat());
    // Back to the one before, and from there to the file; never to what was tried.
    on.give(Input::Rollback);
    assert_eq!((on.answers, version(on.disk.active.as_ref()), on.disk.tried), (3, 3, 4));
    on.give(Input::Offered(release(4)));
    assert_eq!(on.events.last().map(|news| news.change), Some(Change::Refused));
    on.give(Input::Rollback);
    assert_eq!((on.answers, &on.disk.active), (0, &None));
}

#[test]
fn each_fault_in_each_stage_ends_with_the_model_before() {
    let faults = [
        Input::Failed(Fault::Process("was killed".to_owned())),
        Input::Observed(Observation { windows: 3, errors: 3, last_error: "NaN".to_owned(), ..Observation::default() }),
        Input::Observed(Observation { disagreements: 3, ..good(3) }),
        Input::Observed(Observation { us: 101 * 100 * WINDOWS, ..good(3) }),
        Input::Rollback,
    ];
    for fault in faults {
        for good_steps in 0..6 {
            let mut on = World::new(Slot { active: Some(release(3)), tried: 3, ..Slot::default() });
            on.give(Input::Offered(release(4)));
            let steps = [Input::Loaded, Input::Observed(good(WINDOWS)), Input::Observed(good(WINDOWS)), Input::Loaded];
            steps.into_iter().take(good_steps).for_each(|step| assert!(on.give(step)));
            let stage = on.updates.slot().trial.as_ref().map(|trial| trial.stage);
            on.give(fault.clone());
            let is_seen = on.updates.slot().trial.is_none();
            if matches!(fault, Input::Observed(_)) && (good_steps == 0 || good_steps == 3) {
                assert!(!is_seen, "it is not loaded, and has no windows");
                continue;
            }
            assert!(is_seen, "{fault:?} in {stage:?}");
            assert_eq!((on.answers, on.child, on.share), (3, None, None), "{fault:?} in {stage:?}");
            assert_eq!((version(on.disk.active.as_ref()), on.disk.tried), (3, 4));
            assert_eq!(on.events.last().map(|news| news.change), Some(Change::RolledBack));
        }
    }
}

#[test]
fn a_trial_that_sees_too_few_windows_comes_to_an_end() {
    let mut on = World::new(Slot::default());
    on.give(Input::Offered(release(1)));
    on.give(Input::Loaded);
    on.now_us += RULES.stage_us_max - 2 * S;
    on.give(Input::Tick);
    assert!(on.disk.trial.is_some());
    on.give(Input::Tick);
    on.give(Input::Tick);
    assert_eq!(on.disk.trial, None);
    assert!(on.events.last().is_some_and(|news| news.reason.contains("only 0 windows came")), "{:?}", on.events);
}

/// Every point at which a box can die on the way from one version to the next, and again on each way after that.
#[test]
fn a_box_that_dies_at_any_step_of_an_update_has_a_working_model_and_comes_to_an_end() {
    let begin = || World::new(Slot { active: Some(release(3)), tried: 3, ..Slot::default() });
    let mut whole = begin();
    whole.give(Input::Offered(release(4)));
    assert!(whole.prove());
    let steps = usize::MAX - whole.left;
    assert!(steps >= 15, "all stages have steps: {steps}");
    for first in 0..steps {
        for second in 0..=steps {
            let mut on = begin();
            on.left = first;
            assert!(!(on.give(Input::Offered(release(4))) && on.prove()), "it dies within {steps} steps");
            let was_settled = version(on.disk.active.as_ref()) == 4;
            on.restart(true);
            assert_eq!(on.answers, if was_settled { 4 } else { 3 }, "after a crash at step {first}: {:?}", on.disk);
            on.left = second;
            if !on.prove() {
                on.restart(true);
                assert!([3, 4].contains(&on.answers), "{:?}", on.disk);
                assert!(on.prove());
            }
            // Offered again if the disk has not heard of it.
            if on.disk.tried == 3 {
                on.left = usize::MAX;
                on.give(Input::Offered(release(4)));
                assert!(on.prove());
            }
            let active = version(on.disk.active.as_ref());
            assert!(on.disk.trial.is_none() && on.disk.tried == 4, "{first} {second}: {:?}", on.disk);
            assert!(active == 4 && version(on.disk.previous.as_ref()) == 3 || active == 3, "{:?}", on.disk);
            assert_eq!(on.answers, active);
        }
    }
}

#[test]
fn a_stop_in_good_order_does_not_end_a_trial_and_starts_without_end_do() {
    let mut on = World::new(Slot::default());
    on.give(Input::Offered(release(1)));
    on.restart(false);
    assert_eq!(on.child, Some(1));
    on.give(Input::Loaded);
    on.give(Input::Observed(good(WINDOWS)));
    on.give(Input::Observed(good(WINDOWS)));
    on.give(Input::Loaded);
    on.restart(false);
    assert_eq!((on.answers, on.updates.slot().trial.as_ref().map(|trial| trial.restarts)), (1, Some(2)), "probation goes on");
    for _ in 0..RESTARTS_MAX {
        on.restart(false);
    }
    assert_eq!((on.answers, &on.disk.trial), (0, &None));
    assert!(on.disk.last.is_some_and(|news| news.reason.contains("was started")));
}

#[test]
fn nothing_is_done_before_it_is_durable_and_a_rollback_does_not_wait_for_the_disk() {
    let mut on = World::new(Slot::default());
    on.is_disk_full = true;
    on.give(Input::Offered(release(1)));
    assert_eq!((on.child, &on.disk), (None, &Slot::default()));
    on.is_disk_full = false;
    on.give(Input::Tick);
    assert_eq!(on.child, Some(1), "tried again with the next tick");
    on.give(Input::Loaded);
    on.give(Input::Observed(good(WINDOWS)));
    on.is_disk_full = true;
    on.give(Input::Observed(good(WINDOWS)));
    assert_eq!((on.answers, on.share), (0, Some(100_000)), "no probation without a note of it");
    on.is_disk_full = false;
    on.give(Input::Tick);
    on.give(Input::Loaded);
    assert_eq!(on.answers, 1);
    on.is_disk_full = true;
    on.give(Input::Failed(Fault::Operator));
    assert_eq!((on.answers, on.updates.in_use()), (0, None), "at once");
    on.is_disk_full = false;
    on.give(Input::Tick);
    assert_eq!((&on.disk.trial, on.disk.tried), (&None, 1));
}

#[test]
fn an_active_model_that_is_lost_makes_room_for_the_one_before() {
    let mut on = World::new(Slot { active: Some(release(3)), previous: Some(release(2)), tried: 3, ..Slot::default() });
    on.give(Input::ActiveLost("the file is damaged".to_owned()));
    assert_eq!((on.answers, version(on.disk.active.as_ref()), &on.disk.previous), (2, 2, &None));
    on.give(Input::ActiveLost("the file is damaged".to_owned()));
    assert_eq!((on.answers, &on.disk.active), (0, &None));
}

#[test]
fn three_crashes_in_ten_minutes_switch_models_off_and_power_cuts_and_stops_do_not() {
    let mut crashes = Crashes::default();
    assert!(!crashes.started(0, "a"));
    for at_s in [10, 20] {
        assert!(crashes.started(at_s * S, "a"));
        assert!(!crashes.forbid_models());
    }
    let twice = crashes.clone();
    assert!(crashes.started(30 * S, "a") && crashes.forbid_models());
    crashes.stopped();
    assert!(!crashes.started(40 * S, "a") && !crashes.forbid_models(), "stopped in good order");
    let mut later = twice.clone();
    assert!(later.started(CRASHES_US + 10 * S, "a") && !later.forbid_models(), "the first is too long ago");
    let mut booted = twice;
    assert!(!booted.started(30 * S, "b") && !booted.forbid_models(), "the power was cut");
    // A crash in the next boot is the first of that one.
    assert!(booted.started(40 * S, "b") && !booted.forbid_models());
}

#[test]
fn a_canary_is_its_share_of_the_devices_the_same_ones_each_time_and_others_for_another_release() {
    let chosen = |version: u64, ppm: u32| -> Vec<usize> {
        (0..10_000).filter(|device| is_canary(&format!("pump-{device}"), version, ppm)).collect()
    };
    assert_eq!(chosen(1, 0), Vec::<usize>::new());
    assert_eq!(chosen(1, 1_000_000).len(), 10_000);
    let (one, two) = (chosen(1, 100_000), chosen(2, 100_000));
    assert!((800..1_200).contains(&one.len()) && (800..1_200).contains(&two.len()), "{} {}", one.len(), two.len());
    let both = one.iter().filter(|device| two.contains(device)).count();
    assert!(both < one.len() / 2, "{both} of {} are in both", one.len());
    assert!(one.iter().all(|device| chosen(1, 200_000).contains(device)), "a larger share has the smaller in it");
}

#[derive(Debug, Clone)]
enum Op {
    Offer(u64),
    Loaded,
    Good(u64),
    Bad(u64),
    Fail,
    Promote,
    Rollback,
    Lost,
    Wait,
    Disk(bool),
    DieIn(usize),
    Stop,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (1u64..8).prop_map(Op::Offer),
        4 => Just(Op::Loaded),
        6 => (1u64..2 * WINDOWS).prop_map(Op::Good),
        1 => (1u64..WINDOWS).prop_map(Op::Bad),
        1 => Just(Op::Fail),
        1 => Just(Op::Promote),
        1 => Just(Op::Rollback),
        1 => Just(Op::Lost),
        2 => Just(Op::Wait),
        1 => any::<bool>().prop_map(Op::Disk),
        1 => (0usize..4).prop_map(Op::DieIn),
        1 => Just(Op::Stop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn whatever_happens_a_model_that_works_answers_and_none_is_active_without_proof(ops in prop::collection::vec(op(), 1..80)) {
        let mut on = World::new(Slot::default());
        let mut proved = vec![0];
        for op in ops {
            let before = on.disk.clone();
            let is_alive = match op {
                Op::Offer(version) => on.give(Input::Offered(release(version))),
                Op::Loaded => on.give(Input::Loaded),
                Op::Good(windows) => on.give(Input::Observed(good(windows))),
                Op::Bad(windows) => on.give(Input::Observed(Observation { disagreements: windows, ..good(windows) })),
                Op::Fail => on.give(Input::Failed(Fault::Process("ended".to_owned()))),
                Op::Promote => on.give(Input::Promote),
                Op::Rollback => on.give(Input::Rollback),
                Op::Lost => on.give(Input::ActiveLost("damaged".to_owned())),
                Op::Wait => on.give(Input::Tick),
                Op::Disk(is_full) => { on.is_disk_full = is_full; true }
                Op::DieIn(steps) => { on.left = steps; true }
                Op::Stop => { on.restart(false); true }
            };
            let after = on.disk.clone();
            prop_assert!(after.tried >= before.tried, "{before:?} {after:?}");
            if version(after.active.as_ref()) > version(before.active.as_ref()) {
                let trial = before.trial.as_ref().expect("only a trial leads there");
                prop_assert!(trial.stage == Stage::Probation && Some(&trial.release) == after.active.as_ref());
                prop_assert_eq!(&after.previous, &before.active);
                proved.push(trial.release.version);
            }
            if let (Some(trial), None) = (&after.trial, &before.trial) {
                prop_assert!(trial.release.version > before.tried, "tried twice");
            }
            if !is_alive {
                on.restart(true);
                prop_assert!(proved.contains(&on.answers), "after a crash what has proved itself answers: {:?}", on.disk);
            }
            // In a live box it may be one on probation, too, which has been through the stages before.
            let on_probation = on.updates.slot().trial.as_ref().filter(|trial| trial.stage == Stage::Probation);
            prop_assert!(proved.contains(&on.answers) || on_probation.is_some_and(|trial| trial.release.version == on.answers));
            prop_assert_eq!(on.answers, version(on.updates.in_use()));
            prop_assert!(on.child.is_none() || on.updates.slot().trial.is_some() || on.is_disk_full);
        }
    }
}
