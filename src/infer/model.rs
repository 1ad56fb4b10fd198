//! A manifest and an engine that agree: what scores windows.

use std::path::Path;

use crate::engine::{Backend, Engine, Home, LoadError, RunError};
use crate::library::{LibraryError, RuntimeLibrary};
use crate::manifest::{Manifest, Task};

/// A model that has passed its checks and a trial run. Uses one thread, the caller's; blocks while it runs.
#[derive(Debug)]
pub struct Model {
    manifest: Manifest,
    engine: Engine,
    fallback: Option<LibraryError>,
    input: Vec<f32>,
    output: Vec<f32>,
}

/// What a model says about one window.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What it means by the manifest.
    pub verdict: Verdict,
    /// What the model returned, `f32[width]`.
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
        let (engine, fallback) = Engine::load(&manifest, bytes, backend, library)?;
        let mut model = Self { manifest, engine, fallback, input: Vec::new(), output: Vec::new() };
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

    /// Scores raw windows (see [`Manifest`] for their layout) in one batch. One answer or error a window, in order; a bad
    /// window does not spoil its neighbours.
    pub fn score(&mut self, windows: &[&[f32]]) -> Vec<Result<Answer, RunError>> {
        self.input.clear();
        let taken: Vec<_> = windows.iter().map(|window| self.manifest.standardise_into(window, &mut self.input)).collect();
        let rows = taken.iter().filter(|taken| taken.is_ok()).count();
        let ran = if rows == 0 { Ok(()) } else { self.engine.run(&self.input, rows, &mut self.output) };
        let width = self.manifest.output_width();
        let mut outputs = self.output.chunks_exact(width);
        let mut answer = |taken: Result<(), RunError>| {
            taken?;
            ran.clone()?;
            let expected = rows * width;
            let outputs = outputs.next().ok_or(RunError::AnswerShape { found: self.output.len(), expected, rows })?;
            if outputs.iter().any(|value| !value.is_finite()) {
                return Err(RunError::AnswerNonFinite);
            }
            Ok(Answer { verdict: self.manifest.verdict(outputs), outputs: outputs.to_vec() })
        };
        taken.into_iter().map(&mut answer).collect()
    }

    pub(crate) fn home(&self) -> Home {
        self.engine.home()
    }

    /// Standardised zeros: the mean of what it was trained on.
    fn trial(&mut self, rows: usize) -> Result<(), RunError> {
        self.input.clear();
        self.input.resize(rows * self.manifest.row_len(), 0.0);
        self.engine.run(&self.input, rows, &mut self.output)
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
