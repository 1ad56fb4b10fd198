//! Models beside one another, as a table in Markdown.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use weir_infer::Manifest;

use super::{EngineReport, ModelCheckArgs, ModelReport, ModelTableArgs, report};

/// Writes a row for each model and engine. Fails at the end if a model is not good.
pub(super) fn write(args: &ModelTableArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    writeln!(out, "| model | engine | load ms | batch 1: us p50 / p99 | best batch | us a window in it | batch gain | MiB |")?;
    writeln!(out, "| --- | --- | --- | --- | --- | --- | --- | --- |")?;
    let mut are_good = true;
    for folder in &args.folders {
        for path in manifests(folder)? {
            let check = ModelCheckArgs {
                file: path.clone(),
                backend: None,
                json: false,
                batch_ms: args.batch_ms,
                library: args.library.clone(),
            };
            let manifest = Manifest::read(&path)?;
            let found = report(&path, &manifest, &check)?;
            are_good &= found.is_good();
            rows(&found, out)?;
            out.flush()?;
        }
    }
    Ok(if are_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rows(report: &ModelReport, out: &mut dyn Write) -> std::io::Result<()> {
    for engine in &report.engines {
        let name = &report.model;
        match engine {
            EngineReport::Runs { backend, cost, golden, .. } => {
                let wrong = golden.as_ref().is_some_and(|golden| !golden.is_right());
                let backend = if wrong { format!("{backend} (WRONG)") } else { backend.clone() };
                let best = cost.batches.iter().find(|batch| batch.rows == cost.best_batch);
                let (Some(first), Some(best)) = (cost.batches.first(), best) else { continue };
                writeln!(
                    out,
                    "| `{name}` | {backend} | {:.1} | {:.0} / {:.0} | {} | {:.1} | {:.1} | {:.1} |",
                    cost.load_ms,
                    first.p50_us,
                    first.p99_us,
                    cost.best_batch,
                    best.row_us(),
                    cost.batch_gain,
                    cost.memory_kib as f64 / 1024.0
                )?;
            }
            EngineReport::Lacks { backend, operators, .. } => {
                writeln!(out, "| `{name}` | {backend} | no {} | | | | | |", operators.join(", "))?;
            }
            EngineReport::Absent { backend, .. } => writeln!(out, "| `{name}` | {backend} | not installed | | | | | |")?,
            EngineReport::Fails { backend, why } => writeln!(out, "| `{name}` | {backend} | FAILS: {why} | | | | | |")?,
        }
    }
    Ok(())
}

/// The manifests of a folder, by name.
fn manifests(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    let mut found: Vec<PathBuf> = paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    found.sort_unstable();
    Ok(found)
}
