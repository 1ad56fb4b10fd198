//! The box's desk for models: store, trials and swaps, on a thread of its own.
//!
//! `weir_logic::models` decides; this carries it out. The driver shows the desk the windows that the active model has scored;
//! the desk has the one on trial score them too, in its process, and says what came of it. Windows of a canary's devices are
//! handed over whole and come back with the answer that is to be used: the new model's, or the active one's if there is none
//! in time. So a window is always answered, and once.
//!
//! A swap is a worker that takes another's place: what the old one has queued is still answered by it.

mod fetcher;
mod inbox;
mod shape;
mod start;
mod trials;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use weir_host::clock::Clock;
use weir_infer::{Manifest, Model, Origin, Worker};
use weir_logic::ingest::{ModelName, Scored};
use weir_logic::models::{Change, Fault, Input, News, Output, Release, Slot, Stage, TaskModels, Updates};

use super::InferMessage;
use super::trial::TrialProcess;
use crate::config::{Infer, Model as Entry};
use crate::models::{Kept, ModelStore};
use crate::status::UpdateStatus;
use inbox::Inbox;
use shape::Shape;
use start::start_worker;

pub(crate) use fetcher::Fetcher;
pub(crate) use start::start_models;

/// What the driver tells the desk.
#[derive(Debug)]
pub(crate) enum ToModels {
    /// Windows that the active model has scored.
    Scored { model: usize, windows: Vec<Shown> },
    /// What a model on probation did, since the last time.
    Served { model: usize, windows: u64, errors: u64, last_error: String, us: u64 },
    /// A model's worker gave no answer to a batch for so long that it was given up. `generation` is that of its last swap.
    Hung { model: usize, generation: u64, waited_s: u64 },
}

/// A window that the active model has scored.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) scored: Scored,
    pub(crate) origin: Origin,
    /// The active model's label, by its number.
    pub(crate) label: Option<usize>,
    /// It waits for the answer that is to be used.
    pub(crate) is_held: bool,
}

/// What the driver does with the windows of a model besides taking its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Watch {
    #[default]
    Nothing,
    /// Shows them to the desk, and hands over those of the canary's devices.
    Compare { version: u64, share_ppm: u32 },
    /// Tells the desk how many were answered.
    Count,
}

/// What the desk tells the driver.
#[derive(Debug)]
pub(crate) enum FromModels {
    Watch {
        model: usize,
        watch: Watch,
    },
    /// Another worker takes a model's place.
    Swap {
        model: usize,
        worker: Box<Worker>,
        /// Counts the swaps of this model, from 1 on.
        generation: u64,
    },
    Status(Vec<UpdateStatus>, Vec<TaskModels>),
}

/// Between two looks at the inbox and the time.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Batches that may wait for the desk; what comes beyond goes on without it.
const WAITING_MAX: usize = 16;
/// Events of a task that are kept to be shown.
const EVENTS_MAX: usize = 16;

/// A model of the configuration whose task may get another one.
#[derive(Debug)]
struct Task {
    entry: Entry,
    name: String,
    /// Position among the workers, once it runs.
    index: Option<usize>,
    /// Swaps so far.
    generation: u64,
    /// What streams give it; `None` if the configuration's file cannot be read, and whatever the store has is taken.
    shape: Option<Shape>,
    updates: Updates,
    counts: BTreeMap<String, u64>,
    /// The last one that was refused, and why.
    refused: Option<(u64, String)>,
    events: VecDeque<String>,
}

/// A model on trial in its process.
struct Running {
    task: usize,
    name: Arc<ModelName>,
    labels: Vec<Arc<str>>,
    process: TrialProcess,
}

/// The desk.
pub(crate) struct ModelDesk {
    infer: Infer,
    program: PathBuf,
    store: ModelStore,
    inbox: Inbox,
    clock: Clock,
    tasks: Vec<Task>,
    trial: Option<Running>,
    infer_tx: mpsc::Sender<InferMessage>,
    /// On its own thread, where it may wait for the driver.
    is_running: bool,
    shown: (Vec<UpdateStatus>, Vec<TaskModels>),
}

impl ModelDesk {
    /// Opens the store, if the configuration says that models come from it. What is wrong with it is reported, and the box
    /// goes on with the files of its configuration.
    pub(crate) fn open(
        infer: &Infer,
        entries: &[Entry],
        (data_dir, gateway): (&Path, &str),
        clock: &Clock,
        infer_tx: &mpsc::Sender<InferMessage>,
    ) -> Option<ModelDesk> {
        let key = infer.updates.key.clone()?;
        let program = infer.updates.program.clone().map_or_else(std::env::current_exe, Ok);
        let opened = program.map_err(|err| err.to_string()).and_then(|program| {
            let store = ModelStore::open(data_dir, key, gateway, infer.updates.size_limit.get());
            store.map(|store| (program, store)).map_err(|err| with_sources(&err))
        });
        let (program, mut store) = opened
            .map_err(|err| {
                tracing::error!(err, "the store of models cannot be opened; the files of the configuration are used")
            })
            .ok()?;
        let now_us = clock.now_us();
        // A kernel that tells no boots: then service time must do.
        let (boot_us, boot) =
            clock.mark(now_us).boot.map_or((now_us, String::new()), |boot| (boot.us, format!("{:016x}", boot.id)));
        let has_crashed = store.run_begins(boot_us, &boot).unwrap_or_else(|err| {
            let err = with_sources(&err);
            tracing::error!(err, "that the box runs cannot be noted; a model on probation is taken back");
            true
        });
        let inbox = Inbox::open(store.path(), infer.updates.size_limit.get());
        let mut desk = ModelDesk {
            infer: infer.clone(),
            program,
            store,
            inbox,
            clock: clock.clone(),
            tasks: Vec::new(),
            trial: None,
            infer_tx: infer_tx.clone(),
            is_running: false,
            shown: Default::default(),
        };
        for entry in entries {
            desk.add_task(entry, has_crashed);
        }
        Some(desk)
    }

    fn add_task(&mut self, entry: &Entry, has_crashed: bool) {
        let manifest = Manifest::read(&entry.manifest).ok();
        let answers = || manifest.as_ref().and_then(|manifest| manifest.answers.clone());
        let Some(name) = entry.task.clone().or_else(answers) else { return };
        if self.tasks.iter().any(|task| task.name == name) {
            tracing::warn!(model = entry.name, task = name, "another model answers the same task; updates go to the first");
            return;
        }
        let updates = Updates::start(self.clock.now_us(), self.store.slot(&name), self.infer.updates.rules(), has_crashed);
        let shape = manifest.as_ref().map(Shape::of);
        let (counts, refused, events) = (BTreeMap::new(), None, VecDeque::new());
        self.tasks.push(Task {
            entry: entry.clone(),
            name,
            index: None,
            generation: 0,
            shape,
            updates,
            counts,
            refused,
            events,
        });
        self.save_first(self.tasks.len() - 1);
    }

    /// True if models have taken the box down too often: it is to run without them.
    pub(crate) fn forbids_models(&self) -> bool {
        self.store.forbid_models()
    }

    /// The store's model for an entry of the configuration, loaded; `None` if it is the configuration's file that answers.
    pub(crate) fn model_for(&mut self, entry: &Entry) -> Option<Model> {
        let at = self.tasks.iter().position(|task| task.entry == *entry)?;
        loop {
            let release = self.tasks[at].updates.in_use()?.clone();
            match self.load(at, &release) {
                Ok(model) => {
                    tracing::info!(task = self.tasks[at].name, version = release.version, "model of the store answers");
                    return Some(model);
                }
                Err(reason) => {
                    let now_us = self.clock.now_us();
                    let updates = &mut self.tasks[at].updates;
                    let is_on_trial = updates.slot().trial.as_ref().is_some_and(|trial| trial.release == release);
                    let lost = if is_on_trial { Input::Failed(Fault::Load(reason)) } else { Input::ActiveLost(reason) };
                    updates.handle(now_us, lost);
                    self.save_first(at);
                }
            }
        }
    }

    /// The model of an entry runs, as the worker of this number.
    pub(crate) fn runs(&mut self, entry: &Entry, index: usize) {
        if let Some(task) = self.tasks.iter_mut().find(|task| task.entry == *entry) {
            task.index = Some(index);
        }
    }

    /// Starts the thread; it ends when the returned sender is dropped.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(crate) fn spawn(self) -> io::Result<(SyncSender<ToModels>, JoinHandle<()>)> {
        let (desk_tx, desk_rx) = sync_channel(WAITING_MAX);
        let thread = std::thread::Builder::new().name("models".to_owned()).spawn(move || self.run(&desk_rx))?;
        Ok((desk_tx, thread))
    }

    fn run(mut self, desk_rx: &Receiver<ToModels>) {
        self.is_running = true;
        (0..self.tasks.len()).for_each(|at| self.resume(at));
        let mut look_at = Instant::now();
        loop {
            match desk_rx.recv_timeout(look_at.saturating_duration_since(Instant::now())) {
                Ok(ToModels::Scored { model, windows }) => self.scored(model, windows),
                Ok(ToModels::Served { model, windows, errors, last_error, us }) => {
                    let seen = weir_logic::models::Observation { windows, errors, last_error, disagreements: 0, us };
                    if let Some(at) = self.tasks.iter().position(|task| task.index == Some(model)) {
                        self.give(at, Input::Observed(seen));
                    }
                }
                Ok(ToModels::Hung { model, generation, waited_s }) => self.hung(model, generation, waited_s),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= look_at {
                look_at = Instant::now() + LOOK_EVERY;
                (0..self.tasks.len()).for_each(|at| self.give(at, Input::Tick));
                self.look_into_inbox();
                self.tell_status();
            }
        }
    }

    /// A model in the gateway's process hangs: it is taken back, and the one before answers. Of one that was swapped out meanwhile
    /// nothing is to be said.
    fn hung(&mut self, model: usize, generation: u64, waited_s: u64) {
        let of = |task: &Task| task.index == Some(model) && task.generation == generation;
        let Some(at) = self.tasks.iter().position(of) else { return };
        let trial = self.tasks[at].updates.slot().trial.as_ref();
        let is_on_probation = trial.is_some_and(|trial| trial.stage == Stage::Probation);
        let fault = Fault::Hung { waited_s };
        self.give(at, if is_on_probation { Input::Failed(fault) } else { Input::ActiveFailed(fault) });
    }

    /// What was decided at the start, and needs the gateway.
    fn resume(&mut self, at: usize) {
        let slot = self.tasks[at].updates.slot();
        let is_on_probation = slot.trial.as_ref().is_some_and(|trial| trial.stage == Stage::Probation);
        if let (true, Some(model)) = (is_on_probation, self.tasks[at].index) {
            self.tell(FromModels::Watch { model, watch: Watch::Count });
        }
        self.carry_out(at);
    }

    fn give(&mut self, at: usize, input: Input) {
        self.tasks[at].updates.handle(self.clock.now_us(), input);
        self.carry_out(at);
    }

    /// Writes what is to be written before the first model is loaded; what else was decided then waits, but for swaps: there
    /// is nothing to be swapped yet.
    fn save_first(&mut self, at: usize) {
        // A trial that goes on is started once there is a gateway to show it windows.
        while !self.tasks[at].updates.starts_next() {
            let Some(output) = self.tasks[at].updates.poll() else { return };
            match output {
                Output::Save(slot) => self.save(at, &slot),
                Output::Event(news) => self.event(at, &news),
                Output::Swap(_) | Output::Stop | Output::Compare(_) | Output::Start(_) => {}
            }
        }
    }

    fn carry_out(&mut self, at: usize) {
        while let Some(output) = self.tasks[at].updates.poll() {
            match output {
                Output::Save(slot) => self.save(at, &slot),
                Output::Event(news) => self.event(at, &news),
                Output::Start(release) => {
                    let outcome = self.start_trial(at, &release);
                    let input = outcome.map_or_else(Input::Failed, |()| Input::Loaded);
                    self.tasks[at].updates.handle(self.clock.now_us(), input);
                }
                Output::Stop => {
                    if self.trial.as_ref().is_some_and(|trial| trial.task == at) {
                        self.trial = None;
                    }
                }
                Output::Compare(share_ppm) => {
                    let version = self.tasks[at].updates.slot().trial.as_ref().map(|trial| trial.release.version);
                    let watch = version.zip(share_ppm).map(|(version, share_ppm)| Watch::Compare { version, share_ppm });
                    if let Some(model) = self.tasks[at].index {
                        self.tell(FromModels::Watch { model, watch: watch.unwrap_or_default() });
                    }
                }
                Output::Swap(release) => self.swap(at, release.as_ref()),
            }
        }
    }

    fn save(&mut self, at: usize, slot: &Slot) {
        let saved = self.store.save(&self.tasks[at].name, slot);
        if let Err(err) = &saved {
            let (task, err) = (&self.tasks[at].name, with_sources(err));
            tracing::error!(task, err, "what is decided of a model cannot be saved; it is tried again");
        }
        self.tasks[at].updates.handle(self.clock.now_us(), Input::Saved(saved.is_ok()));
    }

    /// Lets a release answer; `None` for the configuration's file.
    fn swap(&mut self, at: usize, release: Option<&Release>) {
        let Some(index) = self.tasks[at].index else { return };
        let loaded = match release {
            Some(release) => self.load(at, release),
            None => Model::load(&self.tasks[at].entry.manifest, self.infer.backend, &self.infer.runtime_library())
                .map_err(|err| err.to_string()),
        };
        let worker = loaded.and_then(|model| {
            let by =
                ModelName { name: model.manifest().name.as_str().into(), version: model.manifest().version.as_str().into() };
            start_worker(model, &self.infer, index, Some(Arc::new(by)), self.infer_tx.clone()).map_err(|err| err.to_string())
        });
        let on_trial = self.tasks[at].updates.slot().trial.as_ref().filter(|trial| trial.stage == Stage::Probation);
        let is_on_trial = release.is_some() && on_trial.map(|trial| &trial.release) == release;
        let input = match worker {
            Ok(worker) => {
                self.tasks[at].generation += 1;
                let generation = self.tasks[at].generation;
                self.tell(FromModels::Swap { model: index, worker: Box::new(worker), generation });
                let watch = if is_on_trial { Watch::Count } else { Watch::Nothing };
                self.tell(FromModels::Watch { model: index, watch });
                if is_on_trial { Input::Loaded } else { return }
            }
            Err(reason) if is_on_trial => Input::Failed(Fault::Load(reason)),
            Err(reason) if release.is_some() => Input::ActiveLost(reason),
            Err(reason) => {
                let task = &self.tasks[at].name;
                tracing::error!(
                    task,
                    err = reason,
                    "the configuration's file cannot be loaded; the model before goes on answering"
                );
                return;
            }
        };
        self.tasks[at].updates.handle(self.clock.now_us(), input);
    }

    /// A release in this process.
    fn load(&self, at: usize, release: &Release) -> Result<Model, String> {
        let Kept { manifest, .. } = self.kept(at, release)?;
        let bytes = manifest.model_bytes().map_err(|err| err.to_string())?;
        Model::from_bytes(manifest, bytes, self.infer.backend, &self.infer.runtime_library()).map_err(|err| err.to_string())
    }

    /// A release of the store that fits the streams.
    fn kept(&self, at: usize, release: &Release) -> Result<Kept, String> {
        let kept = self.store.load(release).map_err(|err| with_sources(&err))?;
        let shape = Shape::of(&kept.manifest);
        match &self.tasks[at].shape {
            Some(wanted) if *wanted != shape => Err(format!(
                "it has {shape}, and the streams are set up for {wanted}: change the configuration with it, and restart"
            )),
            _ => Ok(kept),
        }
    }

    fn event(&mut self, at: usize, news: &News) {
        let task = &mut self.tasks[at];
        let (name, version, change, reason) = (&task.name, news.version, news.change.name(), &news.reason);
        match news.change {
            Change::Entered(_) | Change::Active => tracing::info!(task = name, version, change, reason, "model"),
            Change::RolledBack | Change::Refused | Change::Withdrawn => {
                tracing::warn!(task = name, version, change, reason, "model");
            }
        }
        if news.change == Change::Refused {
            task.refused = Some((version, news.reason.clone()));
        }
        *task.counts.entry(change.to_owned()).or_default() += 1;
        if task.events.len() == EVENTS_MAX {
            task.events.pop_front();
        }
        task.events.push_back(format!("version {version} {change}: {reason}"));
        self.tell_status();
    }

    fn tell_status(&mut self) {
        let running = self.tasks.iter().filter(|task| task.index.is_some());
        let shown: (Vec<UpdateStatus>, Vec<TaskModels>) =
            (self.tasks.iter().map(Task::status).collect(), running.map(Task::models).collect());
        if self.is_running && shown != self.shown {
            self.shown.clone_from(&shown);
            self.tell(FromModels::Status(shown.0, shown.1));
        }
    }

    /// The driver reads this also while the box stops, so that nothing that waits for an answer waits behind news.
    fn tell(&self, news: FromModels) {
        // It has stopped: nobody wants to know.
        let _ = self.infer_tx.blocking_send(InferMessage::News(news));
    }
}

impl Drop for ModelDesk {
    /// A box that fails to start has not crashed either.
    fn drop(&mut self) {
        if let Err(err) = self.store.run_ends() {
            let err = with_sources(&err);
            tracing::error!(err, "that the box stopped cannot be noted; its next start counts as one after a crash");
        }
    }
}

impl Task {
    /// What the cloud is told of.
    fn models(&self) -> TaskModels {
        let slot = self.updates.in_force();
        TaskModels {
            task: self.name.clone(),
            active: slot.active.as_ref().map_or(0, |release| release.version),
            tried: slot.tried,
            trial: slot.trial.as_ref().map(|trial| (trial.release.version, trial.stage.name())),
            last: slot.last.as_ref().map(|news| (news.version, news.change, news.reason.clone())),
            refused: self.refused.clone(),
        }
    }

    fn status(&self) -> UpdateStatus {
        let slot = self.updates.in_force();
        let version = |release: &Option<Release>| release.as_ref().map_or(0, |release| release.version);
        UpdateStatus {
            task: self.name.clone(),
            active: version(&slot.active),
            previous: version(&slot.previous),
            answers: self.updates.in_use().map_or(0, |release| release.version),
            trial: slot.trial.as_ref().map(|trial| trial.release.version),
            stage: slot.trial.as_ref().map(|trial| trial.stage.name().to_owned()),
            windows: self.updates.seen().map_or(0, |seen| seen.windows),
            disagreements: self.updates.seen().map_or(0, |seen| seen.disagreements),
            changes: self.counts.clone(),
            events: self.events.iter().cloned().collect(),
        }
    }
}

/// An error with what is behind it, on one line.
fn with_sources(err: &dyn std::error::Error) -> String {
    std::iter::successors(err.source(), |err| err.source()).fold(err.to_string(), |text, source| format!("{text}: {source}"))
}
