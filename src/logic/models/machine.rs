//! The state machine of one task's models.

use std::collections::VecDeque;

use super::{Change, Fault, Judge, Judgement, News, Observation, RESTARTS_MAX, Release, Slot, Stage, Terms, Trial};

/// What a box asks of new models.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Windows to be seen in each stage; at least 1.
    pub windows: u64,
    /// Share of windows on which a new model must say what the active one says, 0 to 1.
    pub agreement_min: f32,
    /// Share of the devices that get a canary's answers, in millionths.
    pub share_ppm: u32,
    /// How long a stage may take, in microseconds.
    pub stage_us_max: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A release whose signature, sums and target are right is in the store.
    Offered(Release),
    /// The release on trial is loaded: in its own process, or on probation in the gateway's.
    Loaded,
    /// The release on trial did something that no number of good windows makes up for.
    Failed(Fault),
    /// It was given windows.
    Observed(Observation),
    /// The active release cannot be loaded any more: what the disk says.
    ActiveLost(String),
    /// The active release, or the configuration's file if there is none, did something that nothing makes up for.
    ActiveFailed(Fault),
    /// An operator wants the next stage now.
    Promote,
    /// An operator wants the model before.
    Rollback,
    /// Answers [`Output::Save`]: whether it is durable.
    Saved(bool),
    /// Time has passed.
    Tick,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Make this durable, and answer with [`Input::Saved`] before anything else is handed in.
    Save(Box<Slot>),
    /// Load a release in a process of its own, and answer with [`Input::Loaded`] or [`Input::Failed`].
    Start(Release),
    /// Show it the windows; answers are used for this share of the devices, in millionths. `None` ends that.
    Compare(Option<u32>),
    /// End its process.
    Stop,
    /// Let this one answer, in the gateway's process; `None` for the file of the configuration. Of one on trial, answer
    /// with [`Input::Loaded`] or [`Input::Failed`].
    Swap(Option<Release>),
    /// Tell who watches.
    Event(News),
}

/// The models of one task, and what is going on with them.
#[derive(Debug)]
pub struct Updates {
    rules: Rules,
    slot: Slot,
    judge: Option<Judge>,
    since_us: u64,
    /// The trial has taken the active one's place in the process.
    is_swapped: bool,
    proposal: Option<Proposal>,
    /// The proposal waits for the answer to [`Output::Save`]; without that it is made again with the next tick.
    is_saving: bool,
    outputs: VecDeque<Output>,
}

/// A state that is to be durable, and what is done then.
#[derive(Debug, Clone)]
struct Proposal {
    slot: Slot,
    then: Vec<Output>,
    /// It holds whether or not the disk has heard of it: a model was taken away.
    is_in_force: bool,
}

impl Updates {
    /// Goes on from what is on disk. `has_crashed` says that the run before did not end in good order.
    pub fn start(now_us: u64, slot: Slot, rules: Rules, has_crashed: bool) -> Updates {
        let (judge, proposal, outputs) = (None, None, VecDeque::new());
        let mut updates =
            Updates { rules, slot, judge, since_us: now_us, is_swapped: false, proposal, is_saving: false, outputs };
        let Some(Trial { release, stage, restarts }) = updates.slot.trial.clone() else { return updates };
        let starts = restarts + 1;
        let next = Trial { release: release.clone(), stage: stage.min(Stage::Canary), restarts: starts };
        match stage {
            Stage::Probation if has_crashed => updates.roll_back(&Fault::Crashed),
            _ if starts > RESTARTS_MAX => updates.roll_back(&Fault::Restarts { starts }),
            Stage::Probation => {
                updates.is_swapped = true;
                updates.judge = Some(updates.new_judge(&release, stage));
                updates.propose(Slot { trial: Some(Trial { stage, ..next }), ..updates.slot.clone() }, Vec::new());
            }
            Stage::Candidate | Stage::Shadow | Stage::Canary => {
                let trial = Some(Trial { stage: Stage::Candidate, ..next });
                updates.propose(Slot { trial, ..updates.slot.clone() }, vec![Output::Start(release)]);
            }
        }
        updates
    }

    /// What is durable.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// What the stage under way has seen.
    pub fn seen(&self) -> Option<&Observation> {
        self.judge.as_ref().map(Judge::seen)
    }

    /// The release that is to answer; `None` for the file that the configuration names. One that was taken back does not,
    /// whether or not the disk has heard of it.
    pub fn in_use(&self) -> Option<&Release> {
        self.in_force().in_use()
    }

    /// What holds, whether or not it is durable: a rollback does not wait for the disk.
    pub fn in_force(&self) -> &Slot {
        self.proposal.as_ref().filter(|proposal| proposal.is_in_force).map_or(&self.slot, |proposal| &proposal.slot)
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// True if the next thing to do is to load a release in a process of its own.
    pub fn starts_next(&self) -> bool {
        matches!(self.outputs.front(), Some(Output::Start(_)))
    }

    /// Takes what happened.
    pub fn handle(&mut self, now_us: u64, input: Input) {
        let stage = self.slot.trial.as_ref().map(|trial| trial.stage);
        match input {
            Input::Saved(is_durable) => return self.saved(now_us, is_durable),
            // What waits for the disk is decided; what comes meanwhile changes nothing, except that all ends.
            Input::Failed(fault) if stage.is_some() => return self.roll_back(&fault),
            Input::ActiveLost(reason) => return self.withdraw(&format!("it cannot be loaded: {reason}")),
            Input::ActiveFailed(fault) => return self.withdraw(&fault.to_string()),
            Input::Tick if !self.is_saving => self.propose_again(),
            _ => {}
        }
        if self.proposal.is_some() {
            return;
        }
        match (input, stage) {
            (Input::Offered(release), _) => self.offered(release),
            (Input::Loaded, Some(Stage::Candidate)) => self.enter(Stage::Shadow, "it is loaded"),
            (Input::Loaded, Some(Stage::Probation)) => {
                self.is_swapped = true;
                self.judge = self.slot.trial.as_ref().map(|trial| self.new_judge(&trial.release, trial.stage));
            }
            (Input::Observed(seen), Some(stage)) => match self.judge.as_mut().and_then(|judge| judge.observe(&seen)) {
                Some(Judgement::Passed) => self.pass(stage, "it did what was asked"),
                Some(Judgement::Failed(fault)) => self.roll_back(&fault),
                None => {}
            },
            (Input::Promote, Some(stage)) if self.judge.is_some() => self.pass(stage, "an operator promoted it"),
            (Input::Rollback, Some(_)) => self.roll_back(&Fault::Operator),
            (Input::Rollback, None) => self.withdraw("an operator took it back"),
            (Input::Tick, Some(_)) if now_us >= self.since_us.saturating_add(self.rules.stage_us_max) => {
                let windows = self.seen().map_or(0, |seen| seen.windows);
                let (waited_s, wanted) = (self.rules.stage_us_max / 1_000_000, self.rules.windows);
                self.roll_back(&Fault::Unseen { windows, waited_s, wanted });
            }
            _ => {}
        }
    }

    fn offered(&mut self, release: Release) {
        let version = release.version;
        let reason = if version <= self.slot.tried {
            format!("version {version} is not above {}, which was taken before", self.slot.tried)
        } else if let Some(trial) = &self.slot.trial {
            format!("version {} is on trial; offer it again when that is over", trial.release.version)
        } else {
            let trial = Trial { release: release.clone(), stage: Stage::Candidate, restarts: 0 };
            let news = News { version, change: Change::Entered(Stage::Candidate), reason: "it was offered".to_owned() };
            let slot = Slot { trial: Some(trial), tried: version, last: Some(news.clone()), ..self.slot.clone() };
            return self.propose(slot, vec![Output::Event(news), Output::Start(release)]);
        };
        self.outputs.push_back(Output::Event(News { version, change: Change::Refused, reason }));
    }

    /// The stage is over, and went well.
    fn pass(&mut self, stage: Stage, reason: &str) {
        match stage {
            Stage::Candidate => {}
            Stage::Shadow => self.enter(Stage::Canary, reason),
            Stage::Canary => self.enter(Stage::Probation, reason),
            Stage::Probation => {
                let Some(trial) = self.slot.trial.clone() else { return };
                let news = News { version: trial.release.version, change: Change::Active, reason: reason.to_owned() };
                let (active, previous) = (Some(trial.release), self.slot.active.clone());
                let slot = Slot { active, previous, trial: None, tried: self.slot.tried, last: Some(news.clone()) };
                self.propose(slot, vec![Output::Event(news)]);
            }
        }
    }

    fn enter(&mut self, stage: Stage, reason: &str) {
        let Some(trial) = self.slot.trial.clone() else { return };
        let release = trial.release.clone();
        let news = News { version: release.version, change: Change::Entered(stage), reason: reason.to_owned() };
        let mut then = vec![Output::Event(news.clone())];
        match stage {
            Stage::Candidate => then.push(Output::Start(release)),
            Stage::Shadow => then.push(Output::Compare(Some(0))),
            Stage::Canary => then.push(Output::Compare(Some(self.rules.share_ppm))),
            Stage::Probation => then.extend([Output::Compare(None), Output::Stop, Output::Swap(Some(release))]),
        }
        let slot = Slot { trial: Some(Trial { stage, ..trial }), last: Some(news), ..self.slot.clone() };
        self.propose(slot, then);
    }

    /// Ends the trial at once; that it is over is written as soon as the disk takes it.
    fn roll_back(&mut self, fault: &Fault) {
        let before = self.in_force().clone();
        let Some(trial) = before.trial else { return };
        let news = News { version: trial.release.version, change: Change::RolledBack, reason: fault.to_string() };
        // What was to be done next is of no use any more.
        self.outputs.retain(|output| matches!(output, Output::Event(_)));
        self.outputs.extend([Output::Compare(None), Output::Stop]);
        if self.is_swapped || (trial.stage == Stage::Probation && !matches!(fault, Fault::Crashed | Fault::Restarts { .. })) {
            self.outputs.push_back(Output::Swap(before.active.clone()));
        }
        (self.is_swapped, self.judge) = (false, None);
        let slot = Slot { trial: None, last: Some(news.clone()), ..before };
        self.propose_now(slot, news);
    }

    /// The active one is no more.
    fn withdraw(&mut self, reason: &str) {
        let before = self.in_force().clone();
        let Some(active) = before.active.clone() else {
            let reason = format!("{reason}; the file of the configuration is what answers, and there is nothing before it");
            return self.outputs.push_back(Output::Event(News { version: 0, change: Change::Refused, reason }));
        };
        let news = News { version: active.version, change: Change::Withdrawn, reason: reason.to_owned() };
        let is_in_use = before.in_use() == Some(&active);
        let slot = Slot { active: before.previous.clone(), previous: None, last: Some(news.clone()), ..before };
        if is_in_use {
            self.outputs.push_back(Output::Swap(slot.active.clone()));
        }
        self.propose_now(slot, news);
    }

    /// What takes a model away: it holds at once, and is written as soon as the disk takes it.
    fn propose_now(&mut self, slot: Slot, news: News) {
        self.outputs.push_back(Output::Event(news));
        self.propose(slot, Vec::new());
        self.proposal.iter_mut().for_each(|proposal| proposal.is_in_force = true);
    }

    fn propose(&mut self, slot: Slot, then: Vec<Output>) {
        self.outputs.push_back(Output::Save(Box::new(slot.clone())));
        (self.proposal, self.is_saving) = (Some(Proposal { slot, then, is_in_force: false }), true);
    }

    fn propose_again(&mut self) {
        if let Some(proposal) = &self.proposal {
            self.outputs.push_back(Output::Save(Box::new(proposal.slot.clone())));
            self.is_saving = true;
        }
    }

    fn saved(&mut self, now_us: u64, is_durable: bool) {
        self.is_saving = false;
        if !is_durable {
            return; // made again with the next tick
        }
        let Some(Proposal { slot, then, .. }) = self.proposal.take() else { return };
        let stage = |slot: &Slot| slot.trial.as_ref().map(|trial| trial.stage);
        if stage(&slot) != stage(&self.slot) {
            self.since_us = now_us;
            self.judge = match (stage(&slot), &slot.trial) {
                (Some(Stage::Shadow | Stage::Canary), Some(trial)) => Some(self.new_judge(&trial.release, trial.stage)),
                _ => None,
            };
        }
        if slot.trial.is_none() {
            self.is_swapped = false;
        }
        self.slot = slot;
        self.outputs.extend(then);
    }

    fn new_judge(&self, release: &Release, stage: Stage) -> Judge {
        let Rules { windows, agreement_min, .. } = self.rules;
        let slower_max = if stage == Stage::Probation { SLOWER_MAX_WALL } else { SLOWER_MAX_CPU };
        Judge::new(Terms { windows, agreement_min, window_us_max: release.window_us_max, slower_max })
    }
}

/// Processor time of a window in its own process, in times of what was promised: other boxes are slower, and caches are shared.
const SLOWER_MAX_CPU: u64 = 8;
/// The same by the clock on the wall, in the gateway's process: a busy box lets a thread wait, which is not the model's fault.
const SLOWER_MAX_WALL: u64 = 100;
