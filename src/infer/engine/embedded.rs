//! `rten`: pure Rust, part of the binary.

use std::sync::Arc;

use rten::{DataType, Dimension, Model, NodeId, RunOptions, ThreadPool, Value, ValueType};
use rten_tensor::{AsView, Layout as _, Tensor, TensorView};

use super::shape::{Declared, Shapes, check};
use super::{Backend, Engine, LoadError, RunError};
use crate::graph::{Graph, Operator};
use crate::manifest::Manifest;
use crate::state::StateShape;

/// A model in `rten`, with a pool of one thread: its own pool would take all cores.
pub struct Session {
    model: Model,
    pool: Arc<ThreadPool>,
    /// The window's, then those of the state.
    inputs: Vec<NodeId>,
    /// The answer's, then those of the state.
    outputs: Vec<NodeId>,
    shapes: Shapes,
}

impl Session {
    pub(super) fn load(manifest: &Manifest, bytes: Vec<u8>) -> Result<Self, LoadError> {
        let pool = Arc::new(ThreadPool::with_num_threads(1));
        let graph = Graph::read(&bytes);
        let model = pool.run(|| Model::load(bytes));
        let model = model.map_err(|error| refused(&error, graph.as_ref()))?;
        let inputs = declared(&model, model.input_ids());
        let outputs = declared(&model, model.output_ids());
        let shapes = check(manifest, &inputs, &outputs)?;
        drop((inputs, outputs));
        let node = |name: &String| model.node_id(name).map_err(|error| LoadError::Mismatch(error.to_string()));
        let state = manifest.state.as_ref();
        let (states_in, states_out) = (state.into_iter().flat_map(|s| &s.inputs), state.into_iter().flat_map(|s| &s.outputs));
        let inputs = std::iter::once(&manifest.input.name).chain(states_in).map(node).collect::<Result<_, _>>()?;
        let outputs = std::iter::once(&manifest.output.name).chain(states_out).map(node).collect::<Result<_, _>>()?;
        Ok(Self { model, pool, inputs, outputs, shapes })
    }

    pub(super) fn run(
        &self,
        input: &[f32],
        rows: usize,
        states: &mut [Vec<f32>],
        output: &mut Vec<f32>,
    ) -> Result<(), RunError> {
        let dims = self.shapes.input(rows);
        let expected: usize = dims.iter().product();
        if input.len() != expected {
            return Err(RunError::RowLength { found: input.len(), expected });
        }
        let states_dims: Vec<Vec<usize>> = self.shapes.states.iter().map(|shape| shape.dims(rows)).collect();
        let mut given = Vec::with_capacity(self.inputs.len());
        let tensors = std::iter::once((&dims, input)).chain(states_dims.iter().zip(states.iter().map(Vec::as_slice)));
        for (node, (dims, values)) in self.inputs.iter().zip(tensors) {
            given.push((*node, TensorView::from_data(dims.as_slice(), values).into()));
        }
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&self.pool)));
        let answers = self.model.run(given, &self.outputs, Some(options)).map_err(failed)?;
        let mut answers = answers.into_iter();
        append(answers.next(), rows * self.shapes.width, rows, output)?;
        for (state, shape) in states.iter_mut().zip(&self.shapes.states) {
            state.clear();
            append(answers.next(), rows * shape.len(), rows, state)?;
        }
        Ok(())
    }

    pub(super) fn states(&self) -> &[StateShape] {
        &self.shapes.states
    }

    pub(super) fn pool(&self) -> Arc<ThreadPool> {
        Arc::clone(&self.pool)
    }
}

/// Whether the engine has no such operator: it is given a file with nothing else, and says what is wrong with that.
pub(super) fn lacks(operator: &Operator) -> bool {
    let said = Model::load(operator.alone()).err().map(|error| error.to_string());
    said.is_some_and(|said| said.contains("not supported or not enabled"))
}

/// Operators that are not there explain a refusal better than the first of them does.
fn refused(error: &rten::LoadError, graph: Option<&Graph>) -> LoadError {
    let lacking = graph.map(|graph| Engine::lacking(Backend::Rten, graph)).unwrap_or_default();
    if !lacking.is_empty() {
        return LoadError::Operators { backend: Backend::Rten, lacking };
    }
    LoadError::Refused {
        backend: Backend::Rten,
        message: error.to_string(),
        hint: "if it is a complete ONNX model, install the library that has every operator with `weir runtime fetch` and use backend = \"ort\"",
    }
}

/// Appends a tensor's values, which must be so many.
fn append(answer: Option<Value>, expected: usize, rows: usize, values: &mut Vec<f32>) -> Result<(), RunError> {
    let answer = answer.ok_or(RunError::AnswerShape { found: 0, expected, rows })?;
    let answer: Tensor<f32> = answer.try_into().map_err(failed)?;
    if answer.len() != expected {
        return Err(RunError::AnswerShape { found: answer.len(), expected, rows });
    }
    match answer.data() {
        Some(data) => values.extend_from_slice(data),
        None => values.extend(answer.iter()),
    }
    Ok(())
}

fn declared<'m>(model: &'m Model, ids: &[NodeId]) -> Vec<Declared<'m>> {
    let node = |id: &NodeId| {
        let info = model.node_info(*id)?;
        let dims = info.shape().map(|dims| {
            let size = |dim: Dimension| match dim {
                Dimension::Fixed(size) => Some(size),
                Dimension::Symbolic(_) => None,
            };
            dims.into_iter().map(size).collect()
        });
        // A type that the graph leaves open shows at the trial run.
        let is_f32 = info.dtype().is_none_or(|dtype| dtype == ValueType::Tensor(DataType::Float));
        Some(Declared { name: info.name()?, is_f32, dims })
    };
    ids.iter().filter_map(node).collect()
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn failed(error: impl std::error::Error) -> RunError {
    RunError::Engine { backend: Backend::Rten, message: error.to_string() }
}
