//! A recording: CSV with a column for each channel of a model, and perhaps one for what is true.

use std::path::Path;

use anyhow::{Context as _, bail};
use weir_infer::Manifest;

use super::Window;

/// The columns that matter.
pub(super) struct Recording {
    /// By channel.
    values: Vec<Vec<f32>>,
    truth: Vec<String>,
}

impl Recording {
    /// Reads a file whose first line names its columns.
    ///
    /// # Errors
    /// A file that cannot be read, a column that is not there, or a value that is no number, with its line.
    pub(super) fn read(path: &Path, manifest: &Manifest, truth: Option<&str>) -> anyhow::Result<Recording> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("{shown} cannot be read"))?;
        let mut lines = text.lines().enumerate();
        let (_, header) = lines.next().with_context(|| format!("{shown} is empty: its first line names the columns"))?;
        let header: Vec<&str> = header.split(',').map(str::trim).collect();
        let column = |name: &str| {
            let at = header.iter().position(|column| *column == name);
            at.with_context(|| format!("{shown} has no column `{name}`; those that it has are {}", header.join(", ")))
        };
        let channels = manifest.input.channels.iter().map(|name| column(name)).collect::<anyhow::Result<Vec<usize>>>()?;
        let truth_at = truth.map(column).transpose()?;
        let mut recording = Recording { values: vec![Vec::new(); channels.len()], truth: Vec::new() };
        for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            for (values, &at) in recording.values.iter_mut().zip(&channels) {
                match cells.get(at).map(|cell| cell.parse::<f32>()) {
                    Some(Ok(value)) => values.push(value),
                    _ => bail!("{shown}, line {}: column `{}` is no number", number + 1, header[at]),
                }
            }
            recording.truth.extend(truth_at.map(|at| cells.get(at).map_or_else(String::new, ToString::to_string)));
        }
        Ok(recording)
    }

    /// Windows one after the other, as a box would cut them; one during which the truth changes has none.
    pub(super) fn windows(&self, device: u64, length: usize) -> Vec<Window> {
        let samples = self.values.first().map_or(0, Vec::len);
        let window = |at: usize| {
            let values = self.values.iter().flat_map(|channel| channel[at..at + length].iter().copied()).collect();
            let truth = self.truth.get(at..at + length).filter(|truth| truth.iter().all(|label| *label == truth[0]));
            Window { device, values, truth: truth.map(|truth| truth[0].clone()) }
        };
        (0..samples / length.max(1)).map(|at| window(at * length)).collect()
    }
}
