//! The two engines behind one interface, and how one is chosen.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::graph::{Graph, Operator};
use crate::library::{LibraryError, RuntimeLibrary};
use crate::manifest::{Manifest, ManifestError};
use crate::state::StateShape;

#[cfg(feature = "rten")]
mod embedded;
#[cfg(feature = "ort")]
mod native;
#[cfg(any(feature = "ort", feature = "rten"))]
mod shape;

/// Which engine runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// `Ort` if its library is found and loads, else `Rten`.
    #[default]
    Auto,
    /// ONNX Runtime, from a shared library: every operator.
    Ort,
    /// The embedded engine: always there, no `ai.onnx.ml` operators.
    Rten,
}

/// A text that names no backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown backend {0:?}: write \"auto\", \"ort\" or \"rten\"")]
pub struct BackendUnknown(pub String);

/// A loaded model. Both engines use one thread and give the same answers to 1e-4.
pub enum Engine {
    /// ONNX Runtime.
    #[cfg(feature = "ort")]
    Ort(Box<native::Session>),
    /// `rten`.
    #[cfg(feature = "rten")]
    Rten(Box<embedded::Session>),
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The ONNX file cannot be read.
    #[error("cannot read the model {path}: check `file` in the manifest and the file's permissions", path = path.display())]
    File {
        /// The ONNX file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The ONNX file is too large.
    #[error("{path} is larger than {limit_bytes} bytes: a model for a box must be smaller, for example quantised", path = path.display())]
    FileTooLarge {
        /// The ONNX file.
        path: PathBuf,
        /// The limit.
        limit_bytes: u64,
    },
    /// The ONNX file is not the one the manifest speaks of.
    #[error("{path} has sha256 {found}, the manifest says {expected}: copy the file again, or put the new sum into the manifest if the model was meant to change", path = path.display())]
    Checksum {
        /// The ONNX file.
        path: PathBuf,
        /// Of the file.
        found: String,
        /// In the manifest.
        expected: String,
    },
    /// The native library is missing or does not load.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// This binary was built without the engine.
    #[error("this binary was built without the {0} backend: use backend = \"auto\", or build with the feature `{0}`")]
    NotBuilt(Backend),
    /// The engine does not accept the file.
    #[error("{backend} does not accept the model: {message}; {hint}")]
    Refused {
        /// The engine.
        backend: Backend,
        /// In its own words.
        message: String,
        /// What to do.
        hint: &'static str,
    },
    /// The engine has not all of the operators.
    #[error("{backend} has no {}: {}", listed(lacking), operators_fix(*backend, lacking))]
    Operators {
        /// The engine.
        backend: Backend,
        /// Those that it has not.
        lacking: Vec<Operator>,
    },
    /// The ONNX file declares something else than the manifest.
    #[error("the manifest and the ONNX file disagree: {0}")]
    Mismatch(String),
    /// The first run failed.
    #[error(
        "the model loads but fails its trial run with {rows} rows of mean values: {error}; export it with a dynamic batch dimension"
    )]
    Trial {
        /// In the batch.
        rows: usize,
        /// What came back.
        error: RunError,
    },
}

/// Why a window got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The window has another size than the manifest says.
    #[error("a window of {found} values, the model takes {expected} (channels x window)")]
    RowLength {
        /// Values given.
        found: usize,
        /// Values wanted.
        expected: usize,
    },
    /// NaN or infinity, before or after standardisation. Engines may answer these with plausible numbers.
    #[error("channel {channel:?} is not finite at sample {sample} of the window")]
    NonFinite {
        /// Its name in the manifest.
        channel: String,
        /// Counted from 0.
        sample: usize,
    },
    /// The model answered NaN or infinity.
    #[error("the model answered with a value that is not finite")]
    AnswerNonFinite,
    /// The model answered with another number of values than declared.
    #[error("the model answered {found} values for {rows} windows, expected {expected}")]
    AnswerShape {
        /// Values received.
        found: usize,
        /// Values expected.
        expected: usize,
        /// Windows in the batch.
        rows: usize,
    },
    /// The engine's own failure.
    #[error("{backend} failed: {message}")]
    Engine {
        /// The engine.
        backend: Backend,
        /// In its own words.
        message: String,
    },
}

impl Engine {
    /// Loads ONNX bytes and checks what they declare against the manifest. `Auto` also says why it did not take the
    /// native library, for the log; nothing is silent.
    ///
    /// # Errors
    /// `Library` if `Ort` was asked for and is not there, `NotBuilt`, `Refused` for bytes the engine cannot use,
    /// `Mismatch` for other names, types or shapes than the manifest's.
    pub fn load(
        manifest: &Manifest,
        bytes: Vec<u8>,
        backend: Backend,
        library: &RuntimeLibrary,
    ) -> Result<(Self, Option<LibraryError>), LoadError> {
        match backend {
            Backend::Ort => Ok((Self::load_ort(manifest, &bytes, library)?, None)),
            Backend::Rten => Ok((Self::load_rten(manifest, bytes)?, None)),
            Backend::Auto if !cfg!(feature = "rten") => Ok((Self::load_ort(manifest, &bytes, library)?, None)),
            Backend::Auto if !cfg!(feature = "ort") => Ok((Self::load_rten(manifest, bytes)?, None)),
            Backend::Auto => match Self::load_ort(manifest, &bytes, library) {
                Err(LoadError::Library(reason)) => Ok((Self::load_rten(manifest, bytes)?, Some(reason))),
                other => other.map(|engine| (engine, None)),
            },
        }
    }

    /// Scores `rows` windows. `input` is `f32[rows, channels, window]` or as the manifest's layout has it, row-major,
    /// standardised and finite; `states` holds each tensor of [`Engine::states`], and is replaced by what the model gives
    /// for it; `output` is cleared and becomes `f32[rows, width]`.
    ///
    /// # Errors
    /// `Engine` for the engine's own failures, `AnswerShape` if the model returns another number of values.
    pub(crate) fn run(
        &mut self,
        input: &[f32],
        rows: usize,
        states: &mut [Vec<f32>],
        output: &mut Vec<f32>,
    ) -> Result<(), RunError> {
        output.clear();
        match *self {
            #[cfg(feature = "ort")]
            Self::Ort(ref mut session) => session.run(input, rows, states, output),
            #[cfg(feature = "rten")]
            Self::Rten(ref session) => session.run(input, rows, states, output),
        }
    }

    /// The tensors of state that go in and come out with each run; none for most models.
    pub(crate) fn states(&self) -> &[StateShape] {
        match *self {
            #[cfg(feature = "ort")]
            Self::Ort(ref session) => session.states(),
            #[cfg(feature = "rten")]
            Self::Rten(ref session) => session.states(),
        }
    }

    /// The operators of a graph that an engine has not, asked of the engine where it can be asked.
    pub fn lacking(backend: Backend, graph: &Graph) -> Vec<Operator> {
        let lacks = |operator: &&Operator| match backend {
            #[cfg(feature = "rten")]
            Backend::Rten => embedded::lacks(operator),
            _ => !ORT_DOMAINS.contains(&operator.domain.as_str()),
        };
        graph.operators.keys().filter(lacks).cloned().collect()
    }

    /// Where [`Engine::run`] is cheapest: `rten` pays 70 us a run when entered from outside its pool.
    pub(crate) fn home(&self) -> Home {
        match *self {
            #[cfg(feature = "ort")]
            Self::Ort(_) => Home::Anywhere,
            #[cfg(feature = "rten")]
            Self::Rten(ref session) => Home::Pool(session.pool()),
        }
    }

    /// Which engine this is; never `Auto`.
    pub fn backend(&self) -> Backend {
        match *self {
            #[cfg(feature = "ort")]
            Self::Ort(_) => Backend::Ort,
            #[cfg(feature = "rten")]
            Self::Rten(_) => Backend::Rten,
        }
    }

    #[cfg(feature = "ort")]
    fn load_ort(manifest: &Manifest, bytes: &[u8], library: &RuntimeLibrary) -> Result<Self, LoadError> {
        native::Session::load(manifest, bytes, library).map(|session| Self::Ort(Box::new(session)))
    }

    #[cfg(not(feature = "ort"))]
    fn load_ort(_: &Manifest, _: &[u8], _: &RuntimeLibrary) -> Result<Self, LoadError> {
        Err(LoadError::NotBuilt(Backend::Ort))
    }

    #[cfg(feature = "rten")]
    fn load_rten(manifest: &Manifest, bytes: Vec<u8>) -> Result<Self, LoadError> {
        embedded::Session::load(manifest, bytes).map(|session| Self::Rten(Box::new(session)))
    }

    #[cfg(not(feature = "rten"))]
    #[allow(clippy::needless_pass_by_value)] // the engine that is not built takes the bytes
    fn load_rten(_: &Manifest, _: Vec<u8>) -> Result<Self, LoadError> {
        Err(LoadError::NotBuilt(Backend::Rten))
    }
}

/// Where an engine's runs are cheapest.
pub(crate) enum Home {
    #[cfg(feature = "ort")]
    Anywhere,
    #[cfg(feature = "rten")]
    Pool(std::sync::Arc<rten::ThreadPool>),
}

impl Home {
    /// Runs `work` there, and returns when it has ended.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match *self {
            #[cfg(feature = "ort")]
            Self::Anywhere => work(),
            #[cfg(feature = "rten")]
            Self::Pool(ref pool) => pool.run(work),
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({})", self.backend())
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Ort => "ort",
            Self::Rten => "rten",
        })
    }
}

impl FromStr for Backend {
    type Err = BackendUnknown;

    fn from_str(text: &str) -> Result<Self, BackendUnknown> {
        match text {
            "auto" => Ok(Self::Auto),
            "ort" => Ok(Self::Ort),
            "rten" => Ok(Self::Rten),
            other => Err(BackendUnknown(other.to_owned())),
        }
    }
}

fn listed(operators: &[Operator]) -> String {
    operators.iter().map(Operator::to_string).collect::<Vec<_>>().join(", ")
}

/// What to do about operators that an engine has not.
pub(crate) fn operators_fix(backend: Backend, lacking: &[Operator]) -> &'static str {
    let converts = |operator: &Operator| operator.is_ml() && CONVERTED.contains(&operator.name.as_str());
    match backend {
        Backend::Rten if lacking.iter().all(converts) => {
            "rewrite the model as tensor operators with models/trees_to_tensors.py, or install the library that has them with \
             `weir runtime fetch` and use backend = \"ort\""
        }
        Backend::Rten => "install the library that has them with `weir runtime fetch` and use backend = \"ort\"",
        Backend::Ort | Backend::Auto => "export the model without operators of others' making",
    }
}

/// Operators of `ai.onnx.ml` that models/trees_to_tensors.py rewrites.
const CONVERTED: [&str; 5] = ["TreeEnsembleClassifier", "TreeEnsembleRegressor", "Scaler", "FeatureVectorizer", "ZipMap"];
/// Those whose operators ONNX Runtime's released libraries have.
const ORT_DOMAINS: [&str; 4] = ["", "ai.onnx.ml", "com.microsoft", "ai.onnx.preview.training"];
