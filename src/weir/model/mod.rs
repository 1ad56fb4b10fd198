//! `weir model check`, `weir model table` and the others of `weir model`: what a model is, whether it gives the right answers here, and what it costs.
//!
//! Each engine is tried in a process of its own: its memory is then its own, and an engine that a model brings down, or that
//! never ends, is a finding. Exit codes of `check`: 0 if an engine runs the model and all that run it give its golden
//! answers; 1 if none does, or an answer is wrong; 64 for a manifest with mistakes.

mod diff;
mod engine;
mod measure;
mod print;
mod release;
mod table;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use weir_infer::{Backend, Golden, Graph, Manifest};

use crate::check::EXIT_MISTAKES;

pub use diff::ModelDiffArgs;
pub use engine::EngineReport;
pub use measure::{BatchTime, Cost, GoldenResult};
pub use release::{ModelListArgs, ModelPushArgs, ModelSignArgs, ModelTaskArgs};

/// `weir model`.
#[derive(Debug, Clone, Subcommand)]
pub enum ModelCommand {
    /// Load a model on every engine there is here, run its golden cases, and show what it takes, gives and costs
    Check(ModelCheckArgs),
    /// Show the same of all models of folders, as a table in Markdown
    Table(ModelTableArgs),
    /// Sign a model for boxes that take new ones while they run; needs a key of `weir policy keygen`
    Sign(ModelSignArgs),
    /// Give a signed model to the box on this machine, which tries it
    Push(ModelPushArgs),
    /// Have a model on trial reach its next stage now
    Promote(ModelTaskArgs),
    /// End a trial, or go back to the model before the active one
    Rollback(ModelTaskArgs),
    /// Show the models that came to the box on this machine
    List(ModelListArgs),
    /// Compare two models, packages or the one that a box has active: manifests, graphs, and what they say of the same windows
    Diff(ModelDiffArgs),
}

/// Arguments of `weir model check`.
#[derive(Debug, Clone, Args)]
pub struct ModelCheckArgs {
    /// The manifest, or the ONNX file beside it: NAME.toml and NAME.onnx.
    pub file: PathBuf,
    /// Try this engine alone, in this process.
    #[arg(long)]
    pub backend: Option<Backend>,
    /// Write what was found as JSON instead.
    #[arg(long)]
    pub json: bool,
    /// Time spent on each size of batch, in milliseconds.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub batch_ms: u64,
    /// The ONNX Runtime library; without it the usual places.
    #[arg(long)]
    pub library: Option<PathBuf>,
}

/// Arguments of `weir model table`.
#[derive(Debug, Clone, Args)]
pub struct ModelTableArgs {
    /// Folders with manifests.
    #[arg(required = true)]
    pub folders: Vec<PathBuf>,
    /// Time spent on each size of batch, in milliseconds.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub batch_ms: u64,
    /// The ONNX Runtime library; without it the usual places.
    #[arg(long)]
    pub library: Option<PathBuf>,
}

/// What was found of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Its name.
    pub model: String,
    /// Its version.
    pub version: String,
    /// What its outputs mean.
    pub task: String,
    /// Length of the ONNX file.
    pub file_bytes: u64,
    /// Version of ONNX's own operators.
    pub opset: i64,
    /// Inputs of the graph, as declared, and what the manifest says of them.
    pub inputs: Vec<PortReport>,
    /// Outputs.
    pub outputs: Vec<PortReport>,
    /// Each operator, and how often it is there.
    pub operators: Vec<(String, usize)>,
    /// What is to be said of the export, with what to do.
    pub advice: Vec<String>,
    /// Golden cases that there are; `None` without any.
    pub golden_cases: Option<usize>,
    /// What each engine makes of it.
    pub engines: Vec<EngineReport>,
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// Its name.
    pub name: String,
    /// Its type and shape.
    pub shape: String,
    /// Channels, labels, or that it is state; empty for what Weir does not use.
    pub meaning: String,
}

impl ModelReport {
    /// Whether an engine runs it, and none that runs it is wrong.
    pub fn is_good(&self) -> bool {
        let runs = self.engines.iter().any(|engine| matches!(engine, EngineReport::Runs { .. }));
        runs && self.engines.iter().all(EngineReport::is_acceptable)
    }
}

/// Does it.
///
/// # Errors
/// If the file is no model, or standard output cannot be written to; what an engine makes of a model is a finding.
pub fn run(command: &ModelCommand) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match command {
        ModelCommand::Check(args) => check(args, &mut out),
        ModelCommand::Table(args) => table::write(args, &mut out),
        ModelCommand::Sign(args) => release::sign(args, &mut out).map(|()| ExitCode::SUCCESS),
        ModelCommand::Push(args) => release::push(args, &mut out).map(|()| ExitCode::SUCCESS),
        ModelCommand::Promote(args) => release::wish(args, "promote", &mut out).map(|()| ExitCode::SUCCESS),
        ModelCommand::Rollback(args) => release::wish(args, "rollback", &mut out).map(|()| ExitCode::SUCCESS),
        ModelCommand::List(args) => release::list(args, &mut out).map(|()| ExitCode::SUCCESS),
        ModelCommand::Diff(args) => diff::run(args, &mut out),
    }
}

fn check(args: &ModelCheckArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let path = manifest_of(&args.file)?;
    let manifest = match Manifest::read(&path) {
        Ok(manifest) => manifest,
        Err(mistakes) => {
            writeln!(out, "{mistakes}")?;
            return Ok(ExitCode::from(EXIT_MISTAKES));
        }
    };
    let report = report(&path, &manifest, args)?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        print::report(&report, out)?;
    }
    out.flush()?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks at the file itself, then at what the engines make of it.
fn report(path: &Path, manifest: &Manifest, args: &ModelCheckArgs) -> anyhow::Result<ModelReport> {
    let bytes = manifest.model_bytes()?;
    let graph = Graph::read(&bytes).with_context(|| format!("{} is no ONNX file", manifest.file.display()))?;
    let golden_path = Golden::path(path, manifest);
    let golden = if golden_path.exists() { Some(Golden::read(&golden_path, manifest)?) } else { None };
    let engines = match args.backend {
        Some(backend) => vec![engine::try_here(manifest, &bytes, golden.as_ref(), backend, args)],
        None => [Backend::Ort, Backend::Rten].map(|backend| engine::try_in_child(path, backend, args)).into(),
    };
    Ok(ModelReport {
        model: manifest.name.clone(),
        version: manifest.version.clone(),
        task: manifest.task.to_string(),
        file_bytes: bytes.len() as u64,
        opset: graph.opset,
        inputs: graph.inputs.iter().map(|port| print::input(port, manifest)).collect(),
        outputs: graph.outputs.iter().map(|port| print::output(port, manifest)).collect(),
        operators: graph.operators.iter().map(|(operator, count)| (operator.to_string(), *count)).collect(),
        advice: graph.advice().iter().map(ToString::to_string).collect(),
        golden_cases: golden.map(|golden| golden.cases.len()),
        engines,
    })
}

/// A manifest, or the one beside an ONNX file.
fn manifest_of(file: &Path) -> anyhow::Result<PathBuf> {
    if file.extension().is_none_or(|extension| extension != "onnx") {
        return Ok(file.to_owned());
    }
    let path = file.with_extension("toml");
    if !path.is_file() {
        anyhow::bail!(
            "there is no manifest {}: write one beside the model, as models/README.md says what is in it",
            path.display()
        );
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
