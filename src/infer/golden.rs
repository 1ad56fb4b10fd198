//! Golden cases: raw windows, and what the model answers to them wherever it runs.
//!
//! `golden/NAME.json` beside the manifest: `{"model": NAME, "tolerance": 1e-4, "cases": [{"window": [[...], ...], "outputs": [...]}]}`,
//! a window being a list of samples for each channel. A recurrent model's cases say their `device` and follow one another.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::engine::RunError;
use crate::manifest::Manifest;
use crate::model::{Model, Row};
use crate::state::Origin;

/// The golden cases of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Golden {
    /// Largest difference of any output.
    pub tolerance: f32,
    /// At least one.
    pub cases: Vec<GoldenCase>,
}

/// A window and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenCase {
    /// Whose window it is: the state of its windows before goes with it.
    pub device: u64,
    /// `f32[channels, window]`, raw.
    pub window: Vec<f32>,
    /// What [`crate::Answer::outputs`] must be.
    pub outputs: Vec<f32>,
}

/// Why golden cases cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// The file.
    #[error("cannot read the golden cases {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is too long.
    #[error("{path} is longer than {GOLDEN_BYTES_MAX} bytes: a few cases are enough", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// What is in it.
    #[error("the golden cases {path} are not as expected: {message}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// A golden case that came out wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GoldenMismatch {
    /// No answer at all.
    #[error("golden case {case} gets no answer: {error}")]
    Error {
        /// Counted from 0.
        case: usize,
        /// What came instead.
        error: RunError,
    },
    /// An output is too far off.
    #[error("golden case {case}: output {output} is {found}, expected {expected} to within {tolerance}")]
    Output {
        /// Counted from 0.
        case: usize,
        /// Counted from 0.
        output: usize,
        /// The model's.
        found: f32,
        /// The file's.
        expected: f32,
        /// The file's.
        tolerance: f32,
    },
}

impl Golden {
    /// Where the cases of a model are: in `golden` beside its manifest, under its name.
    pub fn path(manifest_path: &Path, manifest: &Manifest) -> PathBuf {
        manifest_path.with_file_name("golden").join(format!("{}.json", manifest.name))
    }

    /// Reads the cases of a model.
    ///
    /// # Errors
    /// `Read`, `TooLong`, and `Invalid` also for windows and outputs of other sizes than the manifest's.
    pub fn read(path: &Path, manifest: &Manifest) -> Result<Golden, GoldenError> {
        let unreadable = |source| GoldenError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|f| f.take(GOLDEN_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
        if bytes.len() as u64 > GOLDEN_BYTES_MAX {
            return Err(GoldenError::TooLong { path: path.to_owned() });
        }
        let invalid = |message: String| GoldenError::Invalid { path: path.to_owned(), message };
        let file: GoldenFile = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
        if file.model != manifest.name {
            return Err(invalid(format!("they are those of {:?}", file.model)));
        }
        let tolerance_is_right = file.tolerance.is_finite() && file.tolerance >= 0.0;
        if file.cases.is_empty() || !tolerance_is_right {
            return Err(invalid("there are no cases, or no tolerance from 0 on".to_owned()));
        }
        let (channels, window, width) = (manifest.input.channels.len(), manifest.input.window, manifest.output_width());
        for (at, case) in file.cases.iter().enumerate() {
            let is_window = case.window.len() == channels && case.window.iter().all(|channel| channel.len() == window);
            if !is_window || case.outputs.len() != width {
                let wanted = format!("{channels} channels of {window} samples and {width} outputs");
                return Err(invalid(format!("case {at} is not of {wanted}")));
            }
        }
        let case = |case: CaseFile| GoldenCase { device: case.device, window: case.window.concat(), outputs: case.outputs };
        Ok(Golden { tolerance: file.tolerance, cases: file.cases.into_iter().map(case).collect() })
    }

    /// Runs all cases in batches of at most `rows`, in their order and from no state; returns the largest difference.
    ///
    /// # Errors
    /// The first case that came out wrong.
    pub fn check(&self, model: &mut Model, rows: usize) -> Result<f32, GoldenMismatch> {
        let mut largest = 0.0_f32;
        let devices: std::collections::BTreeSet<u64> = self.cases.iter().map(|case| case.device).collect();
        devices.into_iter().for_each(|device| model.forget(device));
        for (batch, cases) in self.cases.chunks(rows.max(1)).enumerate() {
            let origin = |at: usize, device| {
                // One right after the other, by any clock.
                let start_us = (batch * rows.max(1) + at) as i64;
                Origin { device, start_us, end_us: start_us }
            };
            let of = |(at, case)| -> Row<'_> {
                let case: &GoldenCase = case;
                Row { window: &case.window, origin: Some(origin(at, case.device)) }
            };
            let asked: Vec<Row<'_>> = cases.iter().enumerate().map(of).collect();
            for (at, (answer, expected)) in model.score_rows(&asked).into_iter().zip(cases).enumerate() {
                let case = batch * rows.max(1) + at;
                let answer = answer.map_err(|error| GoldenMismatch::Error { case, error })?;
                for (output, (found, expected)) in answer.outputs.iter().zip(&expected.outputs).enumerate() {
                    let (found, expected, tolerance) = (*found, *expected, self.tolerance);
                    // A score of thousands has no digits behind 1e-4.
                    if (found - expected).abs() > tolerance * expected.abs().max(1.0) {
                        return Err(GoldenMismatch::Output { case, output, found, expected, tolerance });
                    }
                    largest = largest.max((found - expected).abs());
                }
            }
        }
        Ok(largest)
    }
}

#[derive(Deserialize)]
struct GoldenFile {
    model: String,
    tolerance: f32,
    cases: Vec<CaseFile>,
}

#[derive(Deserialize)]
struct CaseFile {
    #[serde(default)]
    device: u64,
    window: Vec<Vec<f32>>,
    outputs: Vec<f32>,
}

/// A hundred cases of the largest reference model.
const GOLDEN_BYTES_MAX: u64 = 4 * 1024 * 1024;
