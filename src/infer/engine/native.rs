//! ONNX Runtime through `ort`, from a library loaded once per process.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};

use super::{Backend, Declared, Layout, LoadError, RunError, check};
use crate::library::{LibraryError, RuntimeLibrary};
use crate::manifest::Manifest;

/// A model in ONNX Runtime, on the caller's thread.
pub struct Session {
    session: ort::session::Session,
    input: String,
    output: String,
    layout: Layout,
    width: usize,
}

impl Session {
    pub(super) fn load(manifest: &Manifest, bytes: &[u8], library: &RuntimeLibrary) -> Result<Self, LoadError> {
        let environment = environment(&library.find()?)?;
        let session = open(&environment, bytes).map_err(|message| LoadError::Refused {
            backend: Backend::Ort,
            message,
            hint: "check that the file is a complete ONNX model of an opset this library knows",
        })?;
        let inputs: Vec<_> = session.inputs().iter().map(declared).collect();
        let outputs: Vec<_> = session.outputs().iter().map(declared).collect();
        let layout = check(manifest, &inputs, &outputs)?;
        let (input, output) = (manifest.input.name.clone(), manifest.output.name.clone());
        Ok(Self { session, input, output, layout, width: manifest.output_width() })
    }

    pub(super) fn run(&mut self, input: &[f32], rows: usize, output: &mut Vec<f32>) -> Result<(), RunError> {
        let dims = self.layout.dims(rows);
        let tensor = TensorRef::from_array_view((dims.as_slice(), input)).map_err(failed)?;
        let answers = self.session.run(ort::inputs![self.input.as_str() => tensor]).map_err(failed)?;
        let missing = || RunError::AnswerShape { found: 0, expected: rows * self.width, rows };
        let (_, values) = answers.get(&self.output).ok_or_else(missing)?.try_extract_tensor::<f32>().map_err(failed)?;
        if values.len() != rows * self.width {
            return Err(RunError::AnswerShape { found: values.len(), expected: rows * self.width, rows });
        }
        output.extend_from_slice(values);
        Ok(())
    }
}

/// One library and one environment a process: ONNX Runtime allows no more, and a second path would be ignored silently.
fn environment(path: &Path) -> Result<Environment, LibraryError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((first, environment)) = loaded.as_ref() {
        if first != path {
            return Err(LibraryError::Another { loaded: first.clone(), wanted: path.to_owned() });
        }
        return Ok(environment.clone());
    }
    let broken = |message: String| LibraryError::Broken { path: path.to_owned(), message };
    let builder = ort::init_from(path).map_err(|error| broken(error.to_string()))?;
    let environment = builder.with_telemetry(false).build().map_err(|error| broken(error.to_string()))?;
    // Its failures come back as errors; it need not print them too.
    environment.set_log_level(LogLevel::Fatal);
    *loaded = Some((path.to_owned(), environment.clone()));
    Ok(environment)
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

static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);
