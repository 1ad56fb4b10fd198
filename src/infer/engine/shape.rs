//! What a graph declares, compared with what the manifest says of it.

use super::LoadError;
use crate::manifest::{InputLayout, Manifest};
use crate::state::StateShape;

/// What a graph declares about one input or output; `None` is a dynamic dimension.
pub(super) struct Declared<'a> {
    pub(super) name: &'a str,
    pub(super) is_f32: bool,
    pub(super) dims: Option<Vec<Option<usize>>>,
}

/// The shapes of a batch of any size.
#[derive(Debug, Clone)]
pub(super) struct Shapes {
    /// Of the input, behind the batch.
    row: Vec<usize>,
    /// Values that the output has for one row.
    pub(super) width: usize,
    /// Of each tensor of state, in the order of the manifest.
    pub(super) states: Vec<StateShape>,
}

impl Shapes {
    /// The input's dimensions with so many rows.
    pub(super) fn input(&self, rows: usize) -> Vec<usize> {
        let mut dims = vec![rows];
        dims.extend(&self.row);
        dims
    }
}

/// Compares a graph's inputs and outputs with the manifest's.
pub(super) fn check(manifest: &Manifest, inputs: &[Declared], outputs: &[Declared]) -> Result<Shapes, LoadError> {
    let row = input(manifest, inputs)?;
    output(manifest, outputs)?;
    let mut states = Vec::new();
    if let Some(state) = &manifest.state {
        for (from, to) in state.inputs.iter().zip(&state.outputs) {
            states.push(carried(from, inputs)?);
            named("output", to, outputs)?; // what it gives is compared at the trial run
        }
    }
    let known = 1 + states.len();
    if inputs.len() > known {
        return mismatch(format!(
            "the graph has {} inputs ({}), the manifest names {known}; state that is carried is named in [state]",
            inputs.len(),
            names(inputs)
        ));
    }
    Ok(Shapes { row, width: manifest.graph_width(), states })
}

/// The input's dimensions behind the batch.
fn input(manifest: &Manifest, inputs: &[Declared]) -> Result<Vec<usize>, LoadError> {
    let wanted = &manifest.input.name;
    let input = named("input", wanted, inputs)?;
    if !input.is_f32 {
        return mismatch(format!("input \"{wanted}\" is not f32; export the model with 32-bit float input"));
    }
    let (channels, window) = (manifest.input.channels.len(), manifest.input.window);
    let values = channels * window;
    let (outer, inner) = match manifest.input.layout {
        InputLayout::ChannelsFirst => (channels, window),
        InputLayout::TimeFirst => (window, channels),
    };
    match input.dims.as_deref() {
        Some([None, a, b]) if fits(*a, outer) && fits(*b, inner) => Ok(vec![outer, inner]),
        Some([None, v]) if fits(*v, values) => Ok(vec![values]),
        Some([Some(batch), ..]) => mismatch(format!(
            "input \"{wanted}\" has a fixed batch of {batch}; export the model with a dynamic batch dimension"
        )),
        Some(dims) => {
            let found = shape(dims);
            mismatch(format!("input \"{wanted}\" is {found}, the manifest says [batch, {outer}, {inner}] or [batch, {values}]"))
        }
        None => mismatch(format!("input \"{wanted}\" declares no shape; export the model with one")),
    }
}

fn output(manifest: &Manifest, outputs: &[Declared]) -> Result<(), LoadError> {
    let (wanted, width) = (&manifest.output.name, manifest.graph_width());
    let output = named("output", wanted, outputs)?;
    if !output.is_f32 {
        return mismatch(format!("output \"{wanted}\" is not an f32 tensor; name the output that is (of {})", names(outputs)));
    }
    // Not every exporter declares a shape; the trial run tells the rest.
    let Some([_, declared @ ..]) = output.dims.as_deref() else { return Ok(()) };
    let found = declared.iter().copied().try_fold(1_usize, |product, dim| product.checked_mul(dim?));
    if found.is_some_and(|found| found != width) {
        let dims = output.dims.as_deref().unwrap_or_default();
        return mismatch(format!("output \"{wanted}\" is {}, the manifest's labels make it [batch, {width}]", shape(dims)));
    }
    Ok(())
}

/// The shape of a state: all of its dimensions but the batch are fixed.
fn carried(wanted: &str, inputs: &[Declared]) -> Result<StateShape, LoadError> {
    let input = named("input", wanted, inputs)?;
    if !input.is_f32 {
        return mismatch(format!("state \"{wanted}\" is not f32; export the model with 32-bit float state"));
    }
    let dims = input.dims.as_deref().unwrap_or_default();
    let mut dynamic = dims.iter().enumerate().filter(|(_, dim)| dim.is_none()).map(|(at, _)| at);
    let (Some(batch), None) = (dynamic.next(), dynamic.next()) else {
        return mismatch(format!(
            "state \"{wanted}\" is {}; export the model with its batch as the only dynamic dimension of its state",
            shape(dims)
        ));
    };
    let size = |dims: &[Option<usize>]| dims.iter().map(|dim| dim.unwrap_or(1)).try_fold(1_usize, usize::checked_mul);
    let (outer, inner) = (size(&dims[..batch]), size(&dims[batch + 1..]));
    let values = outer.zip(inner).and_then(|(outer, inner)| outer.checked_mul(inner));
    if values.is_none_or(|values| values == 0 || values > STATE_VALUES_MAX) {
        return mismatch(format!("state \"{wanted}\" is {}: it may have 1 to {STATE_VALUES_MAX} values", shape(dims)));
    }
    Ok(StateShape::new(dims.iter().map(|dim| dim.unwrap_or(1)).collect(), batch))
}

fn fits(dim: Option<usize>, size: usize) -> bool {
    dim.is_none_or(|dim| dim == size)
}

fn named<'d, 'a>(kind: &str, wanted: &str, all: &'d [Declared<'a>]) -> Result<&'d Declared<'a>, LoadError> {
    let found = all.iter().find(|declared| declared.name == wanted);
    found.ok_or_else(|| LoadError::Mismatch(format!("no {kind} is called \"{wanted}\"; the graph has {}", names(all))))
}

fn mismatch<T>(text: String) -> Result<T, LoadError> {
    Err(LoadError::Mismatch(text))
}

fn names(all: &[Declared]) -> String {
    all.iter().map(|declared| format!("\"{}\"", declared.name)).collect::<Vec<_>>().join(", ")
}

fn shape(dims: &[Option<usize>]) -> String {
    let shown = dims.iter().map(|dim| dim.map_or("?".to_owned(), |dim| dim.to_string()));
    format!("[{}]", shown.collect::<Vec<_>>().join(", "))
}

/// 256 KiB for each device: a thousand devices then take a quarter of a gigabyte.
const STATE_VALUES_MAX: usize = 65_536;
