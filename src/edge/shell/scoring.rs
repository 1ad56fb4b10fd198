//! The driver's dealings with models: windows to workers, answers to the gateway, and what the desk for models is shown.

use std::collections::VecDeque;

use weir_infer::{Outcome, RefusedReason, Request};
use weir_logic::gateway::Input;
use weir_logic::ingest::{Moment, Scored, Verdict};
use weir_logic::models::is_canary;

use super::models::{FromModels, Shown, ToModels, Watch};
use super::notices::Failures;
use super::{Driver, InferBatch, moment};

/// By model: what waits for it, and what is done with what it says.
#[derive(Debug)]
pub(super) struct ModelsAtWork(Vec<ModelAtWork>);

#[derive(Debug, Default)]
struct ModelAtWork {
    /// Windows that found its queue full; no more than the gateway has under way.
    waiting: VecDeque<Request>,
    failures: Failures,
    watch: Watch,
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
            FromModels::Swap { model, worker } => {
                // The one before answers what it has queued, and ends.
                drop(std::mem::replace(&mut self.parts.models[model], *worker));
                self.submit(model);
            }
            FromModels::Status(status) => self.parts.base_status.updates = status,
        }
    }
}
