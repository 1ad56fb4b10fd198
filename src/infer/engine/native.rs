//! ONNX Runtime through `ort`, from a library loaded once per process.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::SessionInputValue;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};

use super::shape::{Declared, Shapes, check};
use super::{Backend, Engine, LoadError, RunError};
use crate::graph::Graph;
use crate::library::{LibraryError, RuntimeLibrary, telemetry_disabled};
use crate::manifest::Manifest;
use crate::state::StateShape;

/// A model in ONNX Runtime, on the caller's thread.
pub struct Session {
    session: ort::session::Session,
    /// The window's, then those of the state.
    inputs: Vec<String>,
    /// The answer's, then those of the state.
    outputs: Vec<String>,
    shapes: Shapes,
}

impl Session {
    pub(super) fn load(manifest: &Manifest, bytes: &[u8], library: &RuntimeLibrary) -> Result<Self, LoadError> {
        let environment = environment(&library.find()?)?;
        let session = open(&environment, bytes).map_err(|message| refused(message, bytes))?;
        let inputs: Vec<_> = session.inputs().iter().map(declared).collect();
        let outputs: Vec<_> = session.outputs().iter().map(declared).collect();
        let shapes = check(manifest, &inputs, &outputs)?;
        let mut inputs = vec![manifest.input.name.clone()];
        let mut outputs = vec![manifest.output.name.clone()];
        if let Some(state) = &manifest.state {
            inputs.extend(state.inputs.iter().cloned());
            outputs.extend(state.outputs.iter().cloned());
        }
        Ok(Self { session, inputs, outputs, shapes })
    }

    pub(super) fn run(
        &mut self,
        input: &[f32],
        rows: usize,
        states: &mut [Vec<f32>],
        output: &mut Vec<f32>,
    ) -> Result<(), RunError> {
        let dims = self.shapes.input(rows);
        let states_dims: Vec<Vec<usize>> = self.shapes.states.iter().map(|shape| shape.dims(rows)).collect();
        let tensors = std::iter::once((&dims, input)).chain(states_dims.iter().zip(states.iter().map(Vec::as_slice)));
        let mut given: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(self.inputs.len());
        for (name, (dims, values)) in self.inputs.iter().zip(tensors) {
            let tensor = TensorRef::from_array_view((dims.as_slice(), values)).map_err(failed)?;
            given.push((name, tensor.into()));
        }
        let answers = self.session.run(given).map_err(failed)?;
        let widths = std::iter::once(self.shapes.width).chain(self.shapes.states.iter().map(StateShape::len));
        let mut read = Vec::with_capacity(self.outputs.len());
        for (name, width) in self.outputs.iter().zip(widths) {
            let expected = rows * width;
            let missing = || RunError::AnswerShape { found: 0, expected, rows };
            let (_, values) = answers.get(name).ok_or_else(missing)?.try_extract_tensor::<f32>().map_err(failed)?;
            if values.len() != expected {
                return Err(RunError::AnswerShape { found: values.len(), expected, rows });
            }
            read.push(values);
        }
        let mut read = read.into_iter();
        output.extend_from_slice(read.next().unwrap_or_default());
        for (state, values) in states.iter_mut().zip(read) {
            state.clear();
            state.extend_from_slice(values);
        }
        Ok(())
    }

    pub(super) fn states(&self) -> &[StateShape] {
        &self.shapes.states
    }
}

/// Operators that no library has explain a refusal better than its own words do.
fn refused(message: String, bytes: &[u8]) -> LoadError {
    let lacking = Graph::read(bytes).map(|graph| Engine::lacking(Backend::Ort, &graph)).unwrap_or_default();
    if !lacking.is_empty() {
        return LoadError::Operators { backend: Backend::Ort, lacking };
    }
    LoadError::Refused {
        backend: Backend::Ort,
        message,
        hint: "check that the file is a complete ONNX model of an opset this library knows",
    }
}

/// One library and one environment a process: ONNX Runtime allows no more, and a second path would be ignored silently.
/// Once a library is loaded it stays, and so does what came of it.
fn environment(path: &Path) -> Result<Environment, LibraryError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((first, result)) = loaded.as_ref() {
        if first != path {
            return Err(LibraryError::Another { loaded: first.clone(), wanted: path.to_owned() });
        }
        return result.clone();
    }
    let broken = |message: String| LibraryError::Broken { path: path.to_owned(), message };
    let builder = ort::init_from(path).map_err(|error| broken(error.to_string()))?;
    let built =
        telemetry_is_off(path).and_then(|()| builder.with_telemetry(false).build().map_err(|error| broken(error.to_string())));
    if let Ok(environment) = &built {
        // Its failures come back as errors; it need not print them too.
        environment.set_log_level(LogLevel::Fatal);
    }
    *loaded = Some((path.to_owned(), built.clone()));
    built
}

/// Libraries from 1.29 on start their telemetry with the environment, whatever the API is told; only the variable helps.
fn telemetry_is_off(path: &Path) -> Result<(), LibraryError> {
    let version = minor_version(ort::info()).or_else(|| minor_version_of_file(path));
    if version.is_some_and(|minor| minor < FIRST_WITH_TELEMETRY) || telemetry_disabled() {
        return Ok(());
    }
    Err(LibraryError::Telemetry { path: path.to_owned() })
}

/// The `29` of `... git-branch=rel-1.29.0, ...`; `None` for builds that do not say.
fn minor_version(build_info: &str) -> Option<u32> {
    let (_, release) = build_info.split_once("git-branch=rel-1.")?;
    release.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The `23` of `libonnxruntime.so.1.23.2`: the released builds do not say their branch. Our own programs set the variable
/// before anything else, so a file with a wrong name is the only way past this, and only for other programs.
fn minor_version_of_file(path: &Path) -> Option<u32> {
    let real = path.canonicalize().ok()?;
    let (_, release) = real.file_name()?.to_str()?.split_once(".so.1.")?;
    release.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// One thread: the default takes all cores and is slower. No execution provider is named: naming the CPU's turns off
/// the arena.
fn open(environment: &Environment, bytes: &[u8]) -> Result<ort::session::Session, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    ort::session::Session::builder(environment)
        .map_err(|error| text(&error))?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(|error| text(&error))?
        .with_intra_threads(1)
        .map_err(|error| text(&error))?
        .with_inter_threads(1)
        .map_err(|error| text(&error))?
        .with_log_level(LogLevel::Fatal)
        .map_err(|error| text(&error))?
        .commit_from_memory(bytes)
        .map_err(|error| text(&error))
}

fn declared(outlet: &Outlet) -> Declared<'_> {
    let (is_f32, dims) = match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => {
            (*ty == TensorElementType::Float32, Some(shape.iter().map(|dim| usize::try_from(*dim).ok()).collect()))
        }
        _ => (false, None),
    };
    Declared { name: outlet.name(), is_f32, dims }
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn failed(error: ort::Error) -> RunError {
    RunError::Engine { backend: Backend::Ort, message: error.to_string() }
}

static LOADED: Mutex<Option<(PathBuf, Result<Environment, LibraryError>)>> = Mutex::new(None);
const FIRST_WITH_TELEMETRY: u32 = 29;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_build_info_or_not_at_all() {
        let info = "ORT Build Info: git-branch=rel-1.23.2, git-commit-id=a83fc4d58c, build type=Release";
        assert_eq!(minor_version(info), Some(23));
        assert_eq!(minor_version("ORT Build Info: git-branch=HEAD, build type=Release"), None);
        assert_eq!(minor_version("git-branch=rel-1."), None);
    }

    #[test]
    fn a_build_that_does_not_say_is_known_by_the_name_of_its_file() {
        let dir = tempfile::tempdir().expect("there is room");
        for (name, minor) in
            [("libonnxruntime.so.1.23.2", Some(23)), ("libonnxruntime.so.1.31", Some(31)), ("libonnxruntime.so", None)]
        {
            let file = dir.path().join(name);
            std::fs::write(&file, "").expect("there is room");
            assert_eq!(minor_version_of_file(&file), minor, "{name}");
            let link = dir.path().join(format!("link to {name}"));
            std::os::unix::fs::symlink(&file, &link).expect("links can be made");
            assert_eq!(minor_version_of_file(&link), minor, "a link to {name}");
        }
    }
}
