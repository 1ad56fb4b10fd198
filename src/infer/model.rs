//! A manifest and an engine that agree: what scores windows.

use std::collections::HashSet;
use std::path::Path;

use crate::engine::{Backend, Engine, Home, LoadError, RunError};
use crate::graph::{Advice, Graph};
use crate::library::{LibraryError, RuntimeLibrary};
use crate::manifest::{Manifest, Score, Task};
use crate::state::{Origin, StateCounts, States};

/// A model that has passed its checks and a trial run. Uses one thread, the caller's; blocks while it runs.
#[derive(Debug)]
pub struct Model {
    manifest: Manifest,
    engine: Engine,
    fallback: Option<LibraryError>,
    advice: Vec<Advice>,
    input: Vec<f32>,
    output: Vec<f32>,
    /// Of the devices, if it is recurrent, and the tensors of a batch.
    states: Option<States>,
    tensors: Vec<Vec<f32>>,
}

/// A window to score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row<'a> {
    /// `f32[channels, window]`, raw.
    pub window: &'a [f32],
    /// Whose it is, for a recurrent model; without it the model starts from zeros and nothing is kept.
    pub origin: Option<Origin>,
}

/// What a model says about one window.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What it means by the manifest.
    pub verdict: Verdict,
    /// What the model returned, `f32[width]`; of an autoencoder the score that was made of it.
    pub outputs: Vec<f32>,
}

/// An answer by the manifest's task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Index into the manifest's labels: the most probable class, or 1 for an anomaly and 0 for none. `None` for regression.
    pub label: Option<usize>,
    /// The class's probability, the anomaly score, or the (first) value.
    pub score: f32,
    /// In `[0, 1]`. The class's probability; for an anomaly score the distance from the threshold as a share of the
    /// distance to 0 or 1; 1 for regression, which does not say.
    pub confidence: f32,
}

impl Model {
    /// Reads a manifest and its ONNX file, checks them against each other, and runs the model once on one row and once
    /// on two. Takes 1 to 100 ms for the reference models.
    ///
    /// # Errors
    /// See [`LoadError`]; every variant says what to do.
    pub fn load(manifest: &Path, backend: Backend, library: &RuntimeLibrary) -> Result<Self, LoadError> {
        let manifest = Manifest::read(manifest)?;
        let bytes = manifest.model_bytes()?;
        Self::from_bytes(manifest, bytes, backend, library)
    }

    /// As [`Model::load`], for ONNX bytes that are in memory; their checksum is not looked at.
    ///
    /// # Errors
    /// As for [`Model::load`], without those of reading files.
    pub fn from_bytes(
        manifest: Manifest,
        bytes: Vec<u8>,
        backend: Backend,
        library: &RuntimeLibrary,
    ) -> Result<Self, LoadError> {
        let advice = Graph::read(&bytes).map(|graph| graph.advice()).unwrap_or_default();
        let (engine, fallback) = Engine::load(&manifest, bytes, backend, library)?;
        let states = manifest.state.as_ref().map(|state| States::new(state.gap_max_us, STATE_DEVICES_LIMIT));
        let tensors = vec![Vec::new(); engine.states().len()];
        let (input, output) = (Vec::new(), Vec::new());
        let mut model = Self { manifest, engine, fallback, advice, input, output, states, tensors };
        for rows in [1, 2] {
            model.trial(rows).map_err(|error| LoadError::Trial { rows, error })?;
        }
        Ok(model)
    }

    /// The manifest it was loaded from.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The engine in use, `Ort` or `Rten`.
    pub fn backend(&self) -> Backend {
        self.engine.backend()
    }

    /// Why `Auto` did not take the native library, if it did not: worth a line in the log.
    pub fn fallback(&self) -> Option<&LibraryError> {
        self.fallback.as_ref()
    }

    /// What is to be said of the export: worth a line in the log.
    pub fn advice(&self) -> &[Advice] {
        &self.advice
    }

    /// Keeps the state of at most so many devices; only for recurrent models.
    pub fn limit_devices(&mut self, devices: usize) {
        self.states.iter_mut().for_each(|states| states.limit(devices));
    }

    /// Drops the state of a device.
    pub fn forget(&mut self, device: u64) {
        self.states.iter_mut().for_each(|states| states.drop_of(device));
    }

    /// What was kept and dropped of state.
    pub fn state_counts(&self) -> StateCounts {
        self.states.as_ref().map(States::counts).unwrap_or_default()
    }

    /// Scores raw windows (see [`Manifest`] for their layout), each from no state. See [`Model::score_rows`].
    pub fn score(&mut self, windows: &[&[f32]]) -> Vec<Result<Answer, RunError>> {
        let rows: Vec<Row<'_>> = windows.iter().map(|window| Row { window, origin: None }).collect();
        self.score_rows(&rows)
    }

    /// Scores raw windows in one batch; of a recurrent model in as many as a device has windows among them. One answer or
    /// error a window, in order; a bad window does not spoil its neighbours.
    pub fn score_rows(&mut self, rows: &[Row<'_>]) -> Vec<Result<Answer, RunError>> {
        if self.states.is_none() {
            let rows: Vec<&Row<'_>> = rows.iter().collect();
            return self.batch(&rows);
        }
        let mut answers: Vec<Option<Result<Answer, RunError>>> = rows.iter().map(|_| None).collect();
        let mut left: Vec<usize> = (0..rows.len()).collect();
        while !left.is_empty() {
            let mut devices = HashSet::new();
            let is_first = |at: &usize| rows[*at].origin.is_none_or(|origin| devices.insert(origin.device));
            let (now, later): (Vec<usize>, Vec<usize>) = left.into_iter().partition(is_first);
            let batch: Vec<&Row<'_>> = now.iter().map(|at| &rows[*at]).collect();
            for (at, answer) in now.into_iter().zip(self.batch(&batch)) {
                answers[at] = Some(answer);
            }
            left = later;
        }
        answers.into_iter().flatten().collect()
    }

    /// Runs the engine once. No device may have two windows in `rows`.
    fn batch(&mut self, rows: &[&Row<'_>]) -> Vec<Result<Answer, RunError>> {
        self.input.clear();
        let taken: Vec<_> = rows.iter().map(|row| self.manifest.standardise_into(row.window, &mut self.input)).collect();
        let good: Vec<&Row<'_>> = rows.iter().zip(&taken).filter(|(_, taken)| taken.is_ok()).map(|(row, _)| *row).collect();
        self.fill_states(&good);
        let ran = match good.len() {
            0 => Ok(()),
            count => self.engine.run(&self.input, count, &mut self.tensors, &mut self.output),
        };
        let mut at = 0;
        let mut answers = Vec::with_capacity(rows.len());
        for (row, taken) in rows.iter().zip(taken) {
            let answer = taken.and_then(|()| {
                at += 1;
                ran.clone()?;
                self.answer(row, (at - 1, good.len()))
            });
            if let (Some(states), Some(origin), Err(_)) = (&mut self.states, &row.origin, &answer) {
                states.drop_of(origin.device);
            }
            answers.push(answer);
        }
        answers
    }

    /// Puts the state of each row's device into the tensors of a batch.
    fn fill_states(&mut self, rows: &[&Row<'_>]) {
        let Some(states) = &mut self.states else { return };
        for (shape, tensor) in self.engine.states().iter().zip(&mut self.tensors) {
            tensor.clear();
            tensor.resize(rows.len() * shape.len(), 0.0);
        }
        for (at, row) in rows.iter().enumerate() {
            let Some(mut values) = row.origin.as_ref().and_then(|origin| states.of(origin)) else { continue };
            for (shape, tensor) in self.engine.states().iter().zip(&mut self.tensors) {
                let (own, others) = values.split_at(shape.len());
                shape.put(tensor, (at, rows.len()), own);
                values = others;
            }
        }
    }

    /// The answer of the batch's row, whose new state is kept.
    fn answer(&mut self, row: &Row<'_>, (at, rows): (usize, usize)) -> Result<Answer, RunError> {
        let width = self.manifest.graph_width();
        let short = RunError::AnswerShape { found: self.output.len(), expected: rows * width, rows };
        let outputs = self.output.get(at * width..(at + 1) * width).ok_or(short)?;
        let outputs = match self.manifest.output.score {
            Score::Output => outputs.to_vec(),
            Score::ReconstructionError => vec![mean_squared_error(&self.input[at * width..(at + 1) * width], outputs)],
        };
        let mut state = Vec::new();
        for (shape, tensor) in self.engine.states().iter().zip(&self.tensors) {
            shape.take(tensor, (at, rows), &mut state);
        }
        if outputs.iter().chain(&state).any(|value| !value.is_finite()) {
            return Err(RunError::AnswerNonFinite);
        }
        if let (Some(states), Some(origin)) = (&mut self.states, &row.origin) {
            states.keep(origin, state);
        }
        Ok(Answer { verdict: self.manifest.verdict(&outputs), outputs })
    }

    /// Lets `work` run where the engine is cheapest to run, and returns when it has ended.
    pub fn at_home<R: Send>(&mut self, work: impl FnOnce(&mut Model) -> R + Send) -> R {
        self.home().run(|| work(self))
    }

    pub(crate) fn home(&self) -> Home {
        self.engine.home()
    }

    /// Standardised zeros: the mean of what it was trained on.
    fn trial(&mut self, rows: usize) -> Result<(), RunError> {
        self.input.clear();
        self.input.resize(rows * self.manifest.row_len(), 0.0);
        for (shape, tensor) in self.engine.states().iter().zip(&mut self.tensors) {
            tensor.clear();
            tensor.resize(rows * shape.len(), 0.0);
        }
        self.engine.run(&self.input, rows, &mut self.tensors, &mut self.output)
    }
}

impl Manifest {
    /// What a model's `outputs` (`f32[width]`, finite) mean.
    pub fn verdict(&self, outputs: &[f32]) -> Verdict {
        let first = outputs.first().copied().unwrap_or(0.0);
        match self.task {
            Task::Classification => {
                let better =
                    |best: (usize, f32), (label, score): (usize, &f32)| if *score > best.1 { (label, *score) } else { best };
                let (label, score) = outputs.iter().enumerate().fold((0, first), better);
                Verdict { label: Some(label), score, confidence: score.clamp(0.0, 1.0) }
            }
            Task::Anomaly => {
                let threshold = self.thresholds.anomaly_score.unwrap_or(0.5);
                let anomalous = first >= threshold;
                let room = if anomalous { 1.0 - threshold } else { threshold };
                let confidence = if room > 0.0 { ((first - threshold).abs() / room).min(1.0) } else { 1.0 };
                Verdict { label: Some(usize::from(anomalous)), score: first, confidence }
            }
            Task::Regression => Verdict { label: None, score: first, confidence: 1.0 },
        }
    }

    /// Whether a verdict is one to ask a larger model about.
    pub fn in_band(&self, verdict: &Verdict) -> bool {
        self.thresholds.confidence.is_some_and(|(low, high)| (low..high).contains(&verdict.confidence))
    }

    /// A verdict's label in words, if the task has labels.
    pub fn label(&self, verdict: &Verdict) -> Option<&str> {
        self.output.labels.get(verdict.label?).map(String::as_str)
    }
}

fn mean_squared_error(of: &[f32], made: &[f32]) -> f32 {
    let sum: f32 = of.iter().zip(made).map(|(of, made)| (of - made) * (of - made)).sum();
    sum / of.len() as f32
}

/// Devices whose state is kept unless another limit is set: as many as a box knows by default.
pub(crate) const STATE_DEVICES_LIMIT: usize = 8_192;

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(task: &str, labels: &str, thresholds: &str) -> Manifest {
        let sum = "0".repeat(64);
        let text = format!(
            "name = \"m\"\nversion = \"1\"\ntask = \"{task}\"\nfile = \"m.onnx\"\nsha256 = \"{sum}\"\n[input]\nname = \"x\"\n\
             channels = [\"a\"]\nwindow = 1\nrate_hz = 1\ndtype = \"f32\"\n[output]\nname = \"y\"\nlabels = {labels}\n[thresholds]\n{thresholds}\n"
        );
        Manifest::parse(&text, Path::new("")).unwrap()
    }

    #[test]
    fn a_class_is_the_most_probable_one_and_the_first_of_equals() {
        let m = manifest("classification", "[\"p\", \"q\", \"r\"]", "confidence_low = 0.2\nconfidence_high = 0.5");
        let verdict = m.verdict(&[0.1, 0.6, 0.3]);
        assert_eq!(verdict, Verdict { label: Some(1), score: 0.6, confidence: 0.6 });
        assert_eq!((m.label(&verdict), m.in_band(&verdict)), (Some("q"), false));
        assert_eq!(m.verdict(&[0.4, 0.4, 0.2]).label, Some(0));
        assert!(m.in_band(&m.verdict(&[0.4, 0.4, 0.2])));
        assert!(!m.in_band(&m.verdict(&[0.5, 0.3, 0.2])), "the band's upper end is outside");
    }

    #[test]
    fn an_anomaly_is_a_score_on_or_above_the_threshold_and_surest_far_from_it() {
        let m = manifest("anomaly", "[]", "anomaly_score = 0.6");
        let check = |score: f32, label: usize, confidence: f32| {
            let verdict = m.verdict(&[score]);
            assert_eq!((verdict.label, verdict.score), (Some(label), score));
            assert!((verdict.confidence - confidence).abs() < 1e-6, "{verdict:?}");
            assert_eq!(m.label(&verdict), None);
        };
        check(0.6, 1, 0.0);
        check(0.8, 1, 0.5);
        check(1.0, 1, 1.0);
        check(7.0, 1, 1.0);
        check(0.3, 0, 0.5);
        check(0.0, 0, 1.0);
    }

    #[test]
    fn a_regression_has_a_value_and_no_label() {
        let m = manifest("regression", "[]", "");
        let verdict = m.verdict(&[-3.5]);
        assert_eq!(verdict, Verdict { label: None, score: -3.5, confidence: 1.0 });
        assert!(!m.in_band(&verdict));
    }
}
