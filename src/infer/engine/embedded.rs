//! `rten`: pure Rust, part of the binary.

use std::sync::Arc;

use rten::{DataType, Dimension, Model, NodeId, RunOptions, ThreadPool, Value, ValueType};
use rten_tensor::{AsView, Layout as _, Tensor, TensorView};

use super::{Backend, Declared, Layout, LoadError, RunError, check};
use crate::manifest::Manifest;

/// A model in `rten`, with a pool of one thread: its own pool would take all cores.
pub struct Session {
    model: Model,
    pool: Arc<ThreadPool>,
    input: NodeId,
    output: NodeId,
    layout: Layout,
    width: usize,
}

impl Session {
    pub(super) fn load(manifest: &Manifest, bytes: Vec<u8>) -> Result<Self, LoadError> {
        let pool = Arc::new(ThreadPool::with_num_threads(1));
        let model = pool.run(|| Model::load(bytes));
        let model = model.map_err(|error| LoadError::Refused {
            backend: Backend::Rten,
            message: error.to_string(),
            hint: "if it is a complete ONNX model, install the library that has every operator with `weir runtime fetch` and use backend = \"ort\"",
        })?;
        let inputs = declared(&model, model.input_ids());
        let outputs = declared(&model, model.output_ids());
        let layout = check(manifest, &inputs, &outputs)?;
        let node = |name: &str| model.node_id(name).map_err(|error| LoadError::Mismatch(error.to_string()));
        let (input, output) = (node(&manifest.input.name)?, node(&manifest.output.name)?);
        drop((inputs, outputs));
        Ok(Self { model, pool, input, output, layout, width: manifest.output_width() })
    }

    pub(super) fn run(&self, input: &[f32], rows: usize, output: &mut Vec<f32>) -> Result<(), RunError> {
        let dims = self.layout.dims(rows);
        let expected: usize = dims.iter().product();
        if input.len() != expected {
            return Err(RunError::RowLength { found: input.len(), expected });
        }
        let view = TensorView::from_data(dims.as_slice(), input);
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&self.pool)));
        let mut answers = self.model.run(vec![(self.input, view.into())], &[self.output], Some(options)).map_err(failed)?;
        let expected = rows * self.width;
        let answer: Value = answers.pop().ok_or(RunError::AnswerShape { found: 0, expected, rows })?;
        let answer: Tensor<f32> = answer.try_into().map_err(failed)?;
        if answer.len() != expected {
            return Err(RunError::AnswerShape { found: answer.len(), expected, rows });
        }
        match answer.data() {
            Some(values) => output.extend_from_slice(values),
            None => output.extend(answer.iter()),
        }
        Ok(())
    }

    pub(super) fn pool(&self) -> Arc<ThreadPool> {
        Arc::clone(&self.pool)
    }
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
