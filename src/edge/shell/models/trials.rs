//! The windows that a model on trial is shown, and what it says of them.

use std::sync::Arc;
use std::time::Instant;

use weir_infer::Origin;
use weir_logic::ingest::{ModelName, Scored, Verdict};
use weir_logic::models::{Fault, Input, Observation, Release};

use super::super::InferMessage;
use super::super::trial::{Answers, Said, TrialProcess};
use super::{ModelDesk, Running, Shown};
use crate::models::child::{Job, ROWS_MAX};

/// Two values agree if they differ by no more than this share of the larger one, or of 1.
const VALUE_TOLERANCE: f32 = 0.1;

impl ModelDesk {
    /// Loads a release in a process of its own.
    pub(super) fn start_trial(&mut self, at: usize, release: &Release) -> Result<(), Fault> {
        let kept = self.kept(at, release).map_err(Fault::Load)?;
        let updates = &self.infer.updates;
        let job = Job {
            manifest: kept.manifest_text,
            file: kept.manifest.file.clone(),
            backend: self.infer.backend,
            library: self.infer.library.clone(),
            memory_bytes: updates.memory_limit.get(),
            cpu_s: updates.answer_timeout.as_micros().div_ceil(1_000_000),
        };
        let process = TrialProcess::start(&self.program, &job, updates.answer_timeout.as_std())?;
        let name = ModelName { name: kept.manifest.name.as_str().into(), version: kept.manifest.version.as_str().into() };
        let labels = kept.manifest.output.labels.iter().map(|label| label.as_str().into()).collect();
        self.trial = Some(Running { task: at, name: Arc::new(name), labels, process });
        Ok(())
    }

    /// Shows the model on trial what the active one has scored. Each window that is held goes back, whatever happens.
    pub(super) fn scored(&mut self, model: usize, windows: Vec<Shown>) {
        let Some(at) = self.tasks.iter().position(|task| task.index == Some(model)) else { return self.give_back(windows) };
        let mut left = windows;
        while !left.is_empty() {
            let rest = left.split_off(left.len().min(ROWS_MAX));
            let mut batch = std::mem::replace(&mut left, rest);
            // A trial that is over meanwhile says nothing more.
            let Some(running) = self.trial.as_mut().filter(|running| running.task == at) else {
                self.give_back(batch);
                continue;
            };
            let rows: Vec<(Origin, &[f32])> =
                batch.iter().map(|shown| (shown.origin, shown.scored.window.as_slice())).collect();
            let start = Instant::now();
            let input = match running.process.score(&rows) {
                Ok(Answers { cpu_us, said }) => {
                    // More than passed by the clock on the wall it cannot have been.
                    let us = cpu_us.min(start.elapsed().as_micros() as u64);
                    Input::Observed(running.compare(&mut batch, said, us))
                }
                Err(fault) => Input::Failed(fault),
            };
            self.give_back(batch);
            self.give(at, input);
        }
    }

    fn give_back(&self, windows: Vec<Shown>) {
        let held: Vec<Scored> = windows.into_iter().filter(|shown| shown.is_held).map(|shown| shown.scored).collect();
        if !held.is_empty() {
            // The driver has stopped: nobody waits for these.
            let _ = self.infer_tx.blocking_send(InferMessage::Canary(held));
        }
    }
}

impl Running {
    /// Compares answers with the active model's, and puts them in their place where they are to be used.
    fn compare(&self, batch: &mut [Shown], said: Vec<Said>, us: u64) -> Observation {
        let mut seen = Observation { us, ..Observation::default() };
        for (shown, said) in batch.iter_mut().zip(said) {
            let said = self.verdict(said);
            // What the active model could not answer either says nothing about the new one.
            if let Some(active) = &shown.scored.verdict {
                seen.windows += 1;
                match &said {
                    Ok((label, verdict)) => {
                        let is_other = match (label, shown.label) {
                            (None, None) => {
                                let larger = verdict.score.abs().max(active.score.abs()).max(1.0);
                                (verdict.score - active.score).abs() > VALUE_TOLERANCE * larger
                            }
                            (label, active) => *label != active,
                        };
                        seen.disagreements += u64::from(is_other);
                    }
                    Err(err) => {
                        seen.errors += 1;
                        seen.last_error.clone_from(err);
                    }
                }
            }
            if let (true, Ok((_, verdict))) = (shown.is_held, said) {
                shown.scored.verdict = Some(verdict);
            }
        }
        seen
    }

    /// Nothing that comes from the process is believed unseen.
    fn verdict(&self, said: Said) -> Result<(Option<usize>, Verdict), String> {
        let (label, score, confidence) = said?;
        if !score.is_finite() || !(0.0..=1.0).contains(&confidence) {
            return Err(format!("its score is {score} and its confidence {confidence}"));
        }
        let label = usize::try_from(label).ok();
        let text = match label {
            Some(at) if !self.labels.is_empty() => {
                self.labels.get(at).cloned().ok_or_else(|| format!("its label {at} is none of {}", self.labels.len()))?
            }
            _ => "".into(),
        };
        Ok((label, Verdict { label: text, score, confidence, by: Some(self.name.clone()) }))
    }
}
