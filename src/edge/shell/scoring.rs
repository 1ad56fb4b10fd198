//! The driver's dealings with models: windows to workers, answers to the gateway, and what the desk for models is shown.

use std::collections::VecDeque;

use weir_infer::{Outcome, RefusedReason, Request};
use weir_logic::gateway::Input;
use weir_logic::ingest::{Moment, Scored, Verdict};
use weir_logic::models::{FetchInput, is_canary};

use super::models::{FromModels, Shown, ToModels, Watch};
use super::notices::Failures;
use super::{Driver, InferBatch, moment};

/// Between two looks no more than this counts.
const LOOK_US_MAX: u64 = 1_000_000;

/// By model: what waits for it, and what is done with what it says.
#[derive(Debug)]
pub(super) struct ModelsAtWork(Vec<ModelAtWork>);

#[derive(Debug, Default)]
struct ModelAtWork {
    /// Windows that found its queue full; no more than the gateway has under way.
    waiting: VecDeque<Request>,
    failures: Failures,
    watch: Watch,
    /// The batch that it was last seen at, and for how long, in microseconds.
    seen_at: (u64, u64),
    /// Swaps so far.
    generation: u64,
    /// That it hangs, until the desk has room for it.
    hung: Option<ToModels>,
    /// Time in the model when the desk was last told, in microseconds.
    told_us: u64,
}

impl ModelsAtWork {
    pub(super) fn new(count: usize) -> ModelsAtWork {
        ModelsAtWork((0..count).map(|_| ModelAtWork::default()).collect())
    }
}

impl Driver {
    /// Hands a model one more window.
    pub(super) fn submit_also(&mut self, model: usize, request: Request) {
        self.models.0[model].waiting.push_back(request);
        self.submit(model);
    }

    /// Hands a model what it has room for; the rest waits. The gateway stops reading while too many windows are under way.
    fn submit(&mut self, model: usize) {
        while let Some(request) = self.models.0[model].waiting.pop_front() {
            let Err(refused) = self.parts.models[model].try_submit(request) else { continue };
            if refused.reason == RefusedReason::Full {
                self.models.0[model].waiting.push_front(refused.request);
                return;
            }
            let now = moment(&self.parts.clock);
            let Request { id: job, window, origin: _ } = refused.request;
            self.parts.gateway.handle(now, Input::Inferred(Scored { job, window, verdict: None }));
        }
    }

    /// Looks for models that hang, some times a second: each is given up, and its windows go on without verdicts.
    ///
    /// Time counts as far as this thread was there to see it pass: a machine that was suspended says nothing of a model.
    pub(super) fn watch_models(&mut self, now: Moment) {
        let passed_us = now.service_us.saturating_sub(std::mem::replace(&mut self.looked_us, now.service_us)).min(LOOK_US_MAX);
        let limit_us = self.parts.hang_us;
        for model in 0..self.parts.models.len() {
            let (work, worker) = (&mut self.models.0[model], &mut self.parts.models[model]);
            work.seen_at = match worker.under_way() {
                Some(batch) if batch == work.seen_at.0 => (batch, work.seen_at.1.saturating_add(passed_us)),
                under_way => (under_way.unwrap_or(0), 0),
            };
            if work.seen_at.1 >= limit_us
                && !worker.is_given_up()
                && let Some(requests) = worker.give_up()
            {
                self.give_up(now, model, requests);
            }
            if let Some(hung) = self.models.0[model].hung.take() {
                self.tell_hung(model, hung);
            }
        }
    }

    fn give_up(&mut self, now: Moment, model: usize, requests: Vec<Request>) {
        let (name, waited_s) = (self.parts.models[model].manifest().name.clone(), self.parts.hang_us / 1_000_000);
        tracing::error!(
            model = name,
            waited_s,
            windows = requests.len(),
            "model gives no answer and is given up; its windows go on without verdicts until another one takes its place"
        );
        self.parts.base_status.models_given_up += 1;
        let work = &mut self.models.0[model];
        work.hung = Some(ToModels::Hung { model, generation: work.generation, waited_s });
        let waiting = std::mem::take(&mut work.waiting);
        for Request { id: job, window, origin: _ } in requests.into_iter().chain(waiting) {
            self.parts.gateway.handle(now, Input::Inferred(Scored { job, window, verdict: None }));
        }
    }

    /// The desk may be busy with a model on trial: then it is told later.
    fn tell_hung(&mut self, model: usize, hung: ToModels) {
        let refused = self.parts.desk_tx.as_ref().and_then(|desk_tx| desk_tx.try_send(hung).err());
        if let Some(std::sync::mpsc::TrySendError::Full(hung)) = refused {
            self.models.0[model].hung = Some(hung);
        }
    }

    pub(super) fn inferred(&mut self, now: Moment, batch: InferBatch) {
        let InferBatch { model, by, outcomes } = batch;
        self.submit(model);
        let work = &mut self.models.0[model];
        let manifest = self.parts.models[model].manifest();
        let (mut shown, mut errors, mut last_error) = (Vec::new(), 0, String::new());
        let windows = outcomes.len() as u64;
        for Outcome { id: job, window, origin, result } in outcomes {
            let label = result.as_ref().ok().and_then(|answer| answer.verdict.label);
            let verdict = match result {
                Ok(answer) => {
                    if let Some(windows) = work.failures.worked(now.service_us) {
                        tracing::info!(model = manifest.name, windows, "model works again; so many windows have no verdict");
                    }
                    let text = label.and_then(|index| manifest.output.labels.get(index)).map_or("", String::as_str);
                    let (score, confidence) = (answer.verdict.score, answer.verdict.confidence);
                    Some(Verdict { label: text.into(), score, confidence, by: by.clone() })
                }
                Err(err) => {
                    if work.failures.failed(now.service_us) {
                        tracing::warn!(model = manifest.name, %err, "model fails; where only its verdicts are kept, windows are kept raw");
                    }
                    errors += 1;
                    last_error = err.to_string();
                    None
                }
            };
            let scored = Scored { job, window, verdict };
            match (work.watch, origin) {
                (Watch::Compare { version, share_ppm }, Some(origin)) => {
                    let device = self.parts.gateway.ingest().device(origin.device as u32).unwrap_or_default();
                    let is_held = is_canary(device, version, share_ppm);
                    if !is_held {
                        self.parts.gateway.handle(now, Input::Inferred(scored.clone()));
                    }
                    shown.push(Shown { scored, origin, label, is_held });
                }
                _ => self.parts.gateway.handle(now, Input::Inferred(scored)),
            }
        }
        let message = match work.watch {
            Watch::Compare { .. } => ToModels::Scored { model, windows: shown },
            Watch::Count => {
                let total_us = self.parts.models[model].stats().batch_us_total;
                let us = total_us.saturating_sub(std::mem::replace(&mut work.told_us, total_us));
                ToModels::Served { model, windows, errors, last_error, us }
            }
            Watch::Nothing => return,
        };
        self.show(now, message);
    }

    /// Shows the desk what it has room for. What it has none for was answered, or is now.
    fn show(&mut self, now: Moment, message: ToModels) {
        let Some(Err(refused)) = self.parts.desk_tx.as_ref().map(|desk_tx| desk_tx.try_send(message)) else { return };
        self.parts.base_status.windows_unshown += 1;
        let (std::sync::mpsc::TrySendError::Full(refused) | std::sync::mpsc::TrySendError::Disconnected(refused)) = refused;
        if let ToModels::Scored { windows, .. } = refused {
            for shown in windows.into_iter().filter(|shown| shown.is_held) {
                self.parts.gateway.handle(now, Input::Inferred(shown.scored));
            }
        }
    }

    /// What the desk for models has to say.
    pub(super) fn news_of_models(&mut self, news: FromModels) {
        match news {
            FromModels::Watch { model, watch } => {
                let told_us = self.parts.models[model].stats().batch_us_total;
                let work = &mut self.models.0[model];
                (work.watch, work.told_us) = (watch, told_us);
            }
            FromModels::Swap { model, worker, generation } => {
                // The one before answers what it has queued, and ends; one that was given up is left alone.
                drop(std::mem::replace(&mut self.parts.models[model], *worker));
                (self.models.0[model].generation, self.models.0[model].seen_at) = (generation, (0, 0));
                self.submit(model);
            }
            FromModels::Status(status, tasks) => {
                self.parts.base_status.updates = status;
                self.parts.gateway.handle(moment(&self.parts.clock), Input::Fetch(FetchInput::Tasks(tasks)));
            }
        }
    }
}
