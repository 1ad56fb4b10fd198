//! `weir model sign`, `push`, `promote`, `rollback` and `list`: models that come to a box while it runs.
//!
//! A model is signed where it is made, on a machine that is neither a box nor the cloud; a box takes what was signed with the key
//! of its `[infer.updates]`. The others write to or read from the store in a box's data directory, on the box itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use weir_edge::models::{FOLDER, Head, INBOX, PACKAGE_EXTENSION, Package};
use weir_host::sign::SecretKey;
use weir_infer::Manifest;
use weir_logic::models::{Release, Slot};

/// Arguments of `weir model sign`.
#[derive(Debug, Clone, Args)]
pub struct ModelSignArgs {
    /// The manifest, beside its ONNX file.
    pub manifest: PathBuf,
    /// The secret key, as `weir policy keygen` makes it.
    #[arg(long)]
    pub key: PathBuf,
    /// Version of the release, above that of every release for this task before.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub version: u64,
    /// Processor time that a window takes at most on the box, in microseconds; `weir model check` measures it.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=60_000_000))]
    pub window_us: u64,
    /// The task that it answers; without this what its manifest says.
    #[arg(long)]
    pub task: Option<String>,
    /// A gateway that it is for, or a pattern with `*`; may be given several times. Without this it is for all.
    #[arg(long)]
    pub gateway: Vec<String>,
    /// The package to write; without this TASK-VERSION.weir-model in the working directory.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Arguments of `weir model push`.
#[derive(Debug, Clone, Args)]
pub struct ModelPushArgs {
    /// The package.
    pub package: PathBuf,
    /// Data directory of the box.
    #[arg(long, default_value = "/var/lib/weir")]
    pub data_dir: PathBuf,
}

/// Arguments of `weir model promote` and `weir model rollback`.
#[derive(Debug, Clone, Args)]
pub struct ModelTaskArgs {
    /// The task.
    pub task: String,
    /// Data directory of the box.
    #[arg(long, default_value = "/var/lib/weir")]
    pub data_dir: PathBuf,
}

/// Arguments of `weir model list`.
#[derive(Debug, Clone, Args)]
pub struct ModelListArgs {
    /// Data directory of the box.
    #[arg(long, default_value = "/var/lib/weir")]
    pub data_dir: PathBuf,
}

pub(super) fn sign(args: &ModelSignArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let shown = args.manifest.display();
    let text = fs::read(&args.manifest).with_context(|| format!("{shown} cannot be read"))?;
    let manifest = Manifest::read(&args.manifest)?;
    let model = manifest.model_bytes()?;
    let Some(task) = args.task.clone().or(manifest.answers) else {
        bail!("{shown} does not say which task its model answers: add `answers`, or give --task");
    };
    let key = fs::read_to_string(&args.key).with_context(|| format!("{} cannot be read", args.key.display()))?;
    let key: SecretKey = key.parse().with_context(|| format!("{} is no secret key", args.key.display()))?;
    let (manifest, sums) = (text, String::new());
    let head = Head {
        task: task.clone(),
        version: args.version,
        gateways: args.gateway.clone(),
        window_us_max: args.window_us,
        manifest: sums.clone(),
        model: sums,
    };
    let package = Package::sign(head, manifest, model, &key);
    let path = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{task}-{}.{PACKAGE_EXTENSION}", args.version)));
    let bytes = package.to_bytes();
    fs::write(&path, &bytes).with_context(|| format!("{} cannot be written", path.display()))?;
    let audience = if args.gateway.is_empty() { "all gateways".to_owned() } else { args.gateway.join(", ") };
    writeln!(out, "{}: version {} for task {task} on {audience}, {} bytes", path.display(), args.version, bytes.len())?;
    Ok(())
}

pub(super) fn push(args: &ModelPushArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let shown = args.package.display();
    let bytes = fs::read(&args.package).with_context(|| format!("{shown} cannot be read"))?;
    let head = Package::read(&bytes).with_context(|| format!("{shown} is not pushed"))?.head;
    let name = format!("{}-{}.{PACKAGE_EXTENSION}", head.task, head.version);
    lay(&args.data_dir, &name, &bytes)?;
    writeln!(
        out,
        "version {} for task {} is in the box's inbox; `weir model list` shows what becomes of it",
        head.version, head.task
    )?;
    Ok(())
}

pub(super) fn wish(args: &ModelTaskArgs, word: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    lay(&args.data_dir, &format!("{}.{word}", args.task), b"")?;
    writeln!(out, "{word} of task {} is in the box's inbox; `weir model list` shows what becomes of it", args.task)?;
    Ok(())
}

pub(super) fn list(args: &ModelListArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let path = args.data_dir.join(FOLDER).join("state.json");
    let slots: BTreeMap<String, Slot> = match fs::read(&path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
        read => {
            let bytes = read.with_context(|| format!("{} cannot be read", path.display()))?;
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?
        }
    };
    if slots.is_empty() {
        writeln!(out, "no model has come to this box: the files of its configuration answer")?;
    }
    let version = |release: &Option<Release>| match release {
        Some(release) => format!("version {}", release.version),
        None => "the configuration's file".to_owned(),
    };
    for (task, slot) in &slots {
        writeln!(out, "{task}: {} is active, before it {}", version(&slot.active), version(&slot.previous))?;
        if let Some(trial) = &slot.trial {
            writeln!(out, "  version {} is on trial: {}", trial.release.version, trial.stage.name())?;
        }
        if let Some(last) = &slot.last {
            writeln!(out, "  last: version {} {}: {}", last.version, last.change.name(), last.reason)?;
        }
    }
    Ok(())
}

/// Lays a file into a box's inbox, whole or not at all.
fn lay(data_dir: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let inbox = data_dir.join(FOLDER).join(INBOX);
    if !inbox.is_dir() {
        bail!(
            "there is no inbox {}: name the box's data directory with --data-dir, and set `key` in [infer.updates] of its configuration",
            inbox.display()
        );
    }
    let draft = inbox.join(format!("{name}.part"));
    let written = fs::write(&draft, bytes).and_then(|()| fs::rename(&draft, inbox.join(name)));
    written.with_context(|| format!("{} cannot be written", inbox.display()))
}
