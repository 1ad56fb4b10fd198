//! What a model is: the TOML file beside an ONNX file.
//!
//! The manifest is what Weir trusts; the ONNX file is checked against it. Unknown keys are refused, and every mistake
//! is reported at once, with its line and what to write instead. A raw window is `channels x window` values, channel
//! after channel (all of `ax`, then all of `ay`, ...), in the units that the model was trained on.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::engine::{LoadError, RunError};

mod parse;

/// A model's description, checked in itself; [`crate::Model::load`] checks it against the ONNX file.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Lower-case letters, digits, `-`, `_` and `.`, at most 64 bytes; used as a label of metrics.
    pub name: String,
    /// Free text, at most 64 bytes; part of every verdict.
    pub version: String,
    /// What the outputs mean.
    pub task: Task,
    /// What it answers, such as `activity`: streams may name this instead of the model.
    pub answers: Option<String>,
    /// The ONNX file, resolved against the manifest's folder.
    pub file: PathBuf,
    /// SHA-256 of the ONNX file.
    pub sha256: [u8; 32],
    /// What the model takes in.
    pub input: Input,
    /// How raw values become the model's.
    pub standardise: Standardise,
    /// What the model gives back.
    pub output: Output,
    /// Where decisions change.
    pub thresholds: Thresholds,
    /// What a recurrent model carries from window to window; `None` for all others.
    pub state: Option<State>,
}

/// What the outputs of a model mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// One probability a label, summing to 1.
    Classification,
    /// One score, usually in `[0, 1]`; higher is more anomalous.
    Anomaly,
    /// One value or several.
    Regression,
}

/// The model's input: `f32[batch, channels, window]` or, time first, `f32[batch, window, channels]`; with the two behind
/// the batch in one if it declares two dimensions.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Name of the input in the ONNX graph.
    pub name: String,
    /// Names of the channels, in the order of the rows of a window.
    pub channels: Vec<String>,
    /// Samples in a window.
    pub window: usize,
    /// Samples a second that the model was trained at.
    pub rate_hz: f64,
    /// In which order the model takes a window's values; a raw window is channel after channel all the same.
    pub layout: InputLayout,
    /// True if a window may reach the model as int16, scaled per channel, when it comes over a network.
    pub int16: bool,
}

/// The order of a window's values in a model's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InputLayout {
    /// `[channels, window]`: convolutions.
    #[default]
    ChannelsFirst,
    /// `[window, channels]`: recurrent layers that were trained with the batch first.
    TimeFirst,
}

/// `(value - mean) / std`, per channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Standardise {
    /// One a channel, in the units of the raw values.
    pub mean: Vec<f32>,
    /// One a channel, above 0.
    pub std: Vec<f32>,
}

/// The model's output: `f32[batch, width]`, or `f32[batch]` if the width is 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Name of the output in the ONNX graph.
    pub name: String,
    /// Classes; for an anomaly task none or two (normal, anomalous); for regression the values' names, or none for one value.
    pub labels: Vec<String>,
    /// What of the output is the score.
    pub score: Score,
}

/// What of an output is the score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Score {
    /// The output itself.
    #[default]
    Output,
    /// An autoencoder's: the output is of the input's shape, and the score is the mean of the squared differences between
    /// it and the standardised input.
    ReconstructionError,
}

/// What a recurrent model carries from a device's window to its next one. It starts as zeros.
///
/// Each tensor has exactly one dynamic dimension, the batch, wherever it stands: `f32[layers, batch, hidden]`, for example.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Names of the graph's inputs that take the state.
    pub inputs: Vec<String>,
    /// Names of the outputs that give the next one, in the same order.
    pub outputs: Vec<String>,
    /// Time between the last sample of a window and the first of the next above which the state is dropped.
    pub gap_max_us: i64,
}

/// Where decisions change. All optional but `anomaly_score`, which an anomaly task must have.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Thresholds {
    /// Windows with a confidence in `low..high` are worth asking a larger model about.
    pub confidence: Option<(f32, f32)>,
    /// A score of at least this is an anomaly.
    pub anomaly_score: Option<f32>,
}

/// One mistake in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, with the value found.
    pub what: String,
    /// The key, and its line if it is in the file.
    pub place: String,
    /// What to do about it.
    pub hint: String,
}

/// Why a manifest was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file could not be read.
    #[error("cannot read the manifest {path}: name the model's .toml file, readable by this user", path = path.display())]
    Read {
        /// The manifest.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is too long to be a manifest.
    #[error("{path} is longer than {MANIFEST_BYTES_MAX} bytes: this is no manifest; name the .toml file, not the model", path = path.display())]
    TooLong {
        /// The manifest.
        path: PathBuf,
    },
    /// Everything that is wrong in it.
    #[error("{path}: {n} mistake(s){list}", path = path.display(), n = problems.len(), list = listed(problems))]
    Invalid {
        /// The manifest.
        path: PathBuf,
        /// At least one.
        problems: Vec<Problem>,
    },
}

impl Manifest {
    /// Reads and checks a manifest; the ONNX file is not touched.
    ///
    /// # Errors
    /// `Read` and `TooLong` for the file, `Invalid` with all mistakes in it.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let unreadable = |source| ManifestError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|f| f.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { path: path.to_owned() });
        }
        let text = String::from_utf8(bytes).map_err(|e| unreadable(std::io::Error::other(e)))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder).map_err(|problems| ManifestError::Invalid { path: path.to_owned(), problems })
    }

    /// Checks the text of a manifest whose `file` is relative to `folder`.
    ///
    /// # Errors
    /// All mistakes found, at least one.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Problem>> {
        parse::manifest(text, folder)
    }

    /// Values in one window: channels times samples.
    pub fn row_len(&self) -> usize {
        self.input.channels.len() * self.input.window
    }

    /// Outputs of one window.
    pub fn output_width(&self) -> usize {
        match self.task {
            Task::Classification => self.output.labels.len(),
            Task::Anomaly => 1,
            Task::Regression => self.output.labels.len().max(1),
        }
    }

    /// Values that the graph gives for one window: an autoencoder gives a window, of which one score is made.
    pub(crate) fn graph_width(&self) -> usize {
        match self.output.score {
            Score::Output => self.output_width(),
            Score::ReconstructionError => self.row_len(),
        }
    }

    /// The ONNX file's bytes, after its size and checksum have been checked.
    ///
    /// # Errors
    /// `File`, `FileTooLarge` or `Checksum`.
    pub fn model_bytes(&self) -> Result<Vec<u8>, LoadError> {
        let unreadable = |source| LoadError::File { path: self.file.clone(), source };
        let mut bytes = Vec::new();
        File::open(&self.file).and_then(|f| f.take(MODEL_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
        if bytes.len() as u64 > MODEL_BYTES_MAX {
            return Err(LoadError::FileTooLarge { path: self.file.clone(), limit_bytes: MODEL_BYTES_MAX });
        }
        let found: [u8; 32] = Sha256::digest(&bytes).into();
        if found != self.sha256 {
            return Err(LoadError::Checksum { path: self.file.clone(), found: hex(&found), expected: hex(&self.sha256) });
        }
        Ok(bytes)
    }

    /// Appends a raw window to `rows` as the model wants it.
    ///
    /// # Errors
    /// `RowLength` if the window is not `row_len()` long, `NonFinite` for the first value that is or becomes NaN or
    /// infinite; `rows` is then as before.
    pub fn standardise_into(&self, window: &[f32], rows: &mut Vec<f32>) -> Result<(), RunError> {
        if window.len() != self.row_len() {
            return Err(RunError::RowLength { found: window.len(), expected: self.row_len() });
        }
        let start = rows.len();
        let statistics = self.standardise.mean.iter().zip(&self.standardise.std);
        let channels = window.chunks_exact(self.input.window).zip(statistics);
        match self.input.layout {
            InputLayout::ChannelsFirst => {
                for (channel, (mean, std)) in channels {
                    rows.extend(channel.iter().map(|value| (value - mean) / std));
                }
            }
            InputLayout::TimeFirst => {
                let width = self.input.channels.len();
                rows.resize(start + self.row_len(), 0.0);
                for (at, (channel, (mean, std))) in channels.enumerate() {
                    let places = rows[start + at..].iter_mut().step_by(width);
                    places.zip(channel).for_each(|(place, value)| *place = (value - mean) / std);
                }
            }
        }
        if let Some(index) = rows[start..].iter().position(|value| !value.is_finite()) {
            rows.truncate(start);
            let (channel, sample) = match self.input.layout {
                InputLayout::ChannelsFirst => (index / self.input.window, index % self.input.window),
                InputLayout::TimeFirst => (index % self.input.channels.len(), index / self.input.channels.len()),
            };
            return Err(RunError::NonFinite { channel: self.input.channels[channel].clone(), sample });
        }
        Ok(())
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classification => "classification",
            Self::Anomaly => "anomaly",
            Self::Regression => "regression",
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.place, self.what, self.hint)
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

fn listed(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// A manifest of 64 KiB would have a thousand labels; more is a wrong file.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024;
/// A model on a box of 512 MB: loaded, it takes up to three times its file.
const MODEL_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests;
