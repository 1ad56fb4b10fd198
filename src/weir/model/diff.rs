//! `weir model diff`: what is different between two models, before one takes the other's place.
//!
//! A model is a package, a manifest, or what a box has active. Its manifest is compared key by key, its graph by operators, and
//! its answers on golden cases and recordings: how often both say the same, and into what the rest has turned. A model that
//! was never checked may hang or die here, as `weir model check` would have found.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use weir_edge::models::{FOLDER, Package};
use weir_infer::{Answer, Backend, Golden, Graph, Manifest, Model, Origin, Row, RuntimeLibrary, Task};
use weir_logic::audit::{Interval, Z_95};
use weir_logic::models::Slot;

use super::manifest_of;

mod recording;

use recording::Recording;

/// Arguments of `weir model diff`.
#[derive(Debug, Clone, Args)]
pub struct ModelDiffArgs {
    /// A package, a manifest, an ONNX file beside one, or `active:TASK` for what the box on this machine has active.
    pub before: String,
    /// The same of the other model, mostly the newer one.
    pub after: String,
    /// A file of golden cases; without it those in `golden` beside a manifest.
    #[arg(long)]
    pub golden: Option<PathBuf>,
    /// A recording, CSV with a column for each channel at the model's rate; may be given several times.
    #[arg(long)]
    pub recording: Vec<PathBuf>,
    /// Column of the recordings that says which label is right.
    #[arg(long)]
    pub truth: Option<String>,
    /// Share of windows on which both must say the same, 0 to 1; fewer is exit code 1.
    #[arg(long)]
    pub agreement_min: Option<f64>,
    /// Which engine runs both.
    #[arg(long, default_value = "auto")]
    pub backend: Backend,
    /// The ONNX Runtime library; without it the usual places.
    #[arg(long)]
    pub library: Option<PathBuf>,
    /// Data directory of the box, for `active:TASK`.
    #[arg(long, default_value = "/var/lib/weir")]
    pub data_dir: PathBuf,
}

/// One of the two.
struct Side {
    /// As it was asked for.
    name: String,
    /// Version of the release, if it is one.
    release: Option<u64>,
    manifest_text: String,
    manifest: Manifest,
    bytes: Vec<u8>,
    /// Of its folder; a package has none.
    golden: Option<PathBuf>,
}

/// Two values agree if they differ by no more than this share of the larger one, or of 1: as on a box's trial.
const VALUE_TOLERANCE: f32 = 0.1;
/// Windows that are scored at once.
const BATCH_ROWS: usize = 32;
/// Changes of labels that are shown.
const CHANGES_SHOWN_MAX: usize = 12;

pub(super) fn run(args: &ModelDiffArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let sides = [&args.before, &args.after].map(|source| Side::open(source, &args.data_dir));
    let [before, after] = sides;
    let (before, after) = (before?, after?);
    for (sign, side) in [('-', &before), ('+', &after)] {
        side.describe(sign, out)?;
    }
    manifests(&before, &after, out)?;
    operators(&before, &after, out)?;
    let [one, other] = [&before, &after].map(|side| (side.manifest.input.channels.clone(), side.manifest.input.window));
    if one != other || before.manifest.task != after.manifest.task {
        writeln!(
            out,
            "answers: not compared, because they take other windows or do something else: a box would not swap them"
        )?;
        return Ok(if args.agreement_min.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let library = RuntimeLibrary::from_env(args.library.clone());
    let mut models = Pair { before: before.load(args.backend, &library)?, after: after.load(args.backend, &library)? };
    let golden = args.golden.as_ref().or(before.golden.as_ref()).or(after.golden.as_ref());
    let mut is_enough = true;
    if let Some(path) = golden {
        let cases = [&before, &after].into_iter().find_map(|side| Golden::read(path, &side.manifest).ok());
        let cases = cases.with_context(|| format!("{} has no golden cases of either model", path.display()))?;
        let windows = cases.cases.iter().map(|case| Window { device: case.device, values: case.window.clone(), truth: None });
        let seen = models.compare(&windows.collect::<Vec<_>>());
        seen.write("golden cases", &before.manifest, out)?;
        is_enough &= args.agreement_min.is_none_or(|min| seen.share() >= min);
    }
    if !args.recording.is_empty() {
        let mut seen = Comparison::default();
        for (device, path) in args.recording.iter().enumerate() {
            let recording = Recording::read(path, &before.manifest, args.truth.as_deref())?;
            seen.add(models.compare(&recording.windows(device as u64, before.manifest.input.window)));
        }
        ensure!(seen.windows + seen.unanswered > 0, "no recording is as long as a window of {}", before.manifest.input.window);
        seen.write("recordings", &before.manifest, out)?;
        is_enough &= args.agreement_min.is_none_or(|min| seen.share() >= min);
    }
    out.flush()?;
    Ok(if is_enough { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Side {
    fn open(source: &str, data_dir: &Path) -> anyhow::Result<Side> {
        if let Some(task) = source.strip_prefix("active:") {
            return Side::active(source, task, data_dir);
        }
        let path = Path::new(source);
        if path.extension().is_some_and(|extension| extension == weir_edge::models::PACKAGE_EXTENSION) {
            let bytes = fs::read(path).with_context(|| format!("{source} cannot be read"))?;
            let package = Package::read(&bytes).with_context(|| format!("{source} is not compared"))?;
            let Package { head, manifest, model, .. } = package;
            return Side::new(source, Some(head.version), String::from_utf8_lossy(&manifest).into_owned(), model, None);
        }
        let path = manifest_of(path)?;
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let manifest = Manifest::read(&path)?;
        let (golden, bytes) = (Golden::path(&path, &manifest), manifest.model_bytes()?);
        Side::new(source, None, text, bytes, golden.exists().then_some(golden))
    }

    /// What the store of a box has active. Signature and target are the box's to look at.
    fn active(source: &str, task: &str, data_dir: &Path) -> anyhow::Result<Side> {
        let store = data_dir.join(FOLDER);
        let read = |name: &str| {
            let path = store.join(name);
            fs::read(&path)
                .with_context(|| format!("{} cannot be read: name the box's data directory with --data-dir", path.display()))
        };
        let slots: BTreeMap<String, Slot> = serde_json::from_slice(&read("state.json")?).context("state.json is damaged")?;
        let Some(active) = slots.get(task).and_then(|slot| slot.active.clone()) else {
            bail!(
                "no model that came to this box is active for task {task}: name the manifest of its configuration in its place"
            );
        };
        let head = read(&format!("{}.head", active.id))?;
        let head = String::from_utf8_lossy(&head).lines().next().map(weir_edge::models::Head::read);
        let head = head.context("the head of the active model is empty")??;
        let (manifest, model) = (read(&format!("{}.toml", head.manifest))?, read(&format!("{}.onnx", head.model))?);
        Side::new(source, Some(active.version), String::from_utf8_lossy(&manifest).into_owned(), model, None)
    }

    fn new(
        source: &str,
        release: Option<u64>,
        manifest_text: String,
        bytes: Vec<u8>,
        golden: Option<PathBuf>,
    ) -> anyhow::Result<Side> {
        let manifest = Manifest::parse(&manifest_text, Path::new("")).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("the manifest of {source} has mistakes: {}", problems.join("; "))
        })?;
        Ok(Side { name: source.to_owned(), release, manifest_text, manifest, bytes, golden })
    }

    fn describe(&self, sign: char, out: &mut dyn Write) -> anyhow::Result<()> {
        let Manifest { name, version, task, .. } = &self.manifest;
        let release = self.release.map_or_else(String::new, |version| format!(", release {version}"));
        let (bytes, sum) = (self.bytes.len(), Package::sum(&self.bytes));
        writeln!(out, "{sign} {}: {name} version {version}{release}, {task}, {bytes} bytes, sha256 {:.12}...", self.name, sum)?;
        Ok(())
    }

    fn load(&self, backend: Backend, library: &RuntimeLibrary) -> anyhow::Result<Model> {
        let loaded = Model::from_bytes(self.manifest.clone(), self.bytes.clone(), backend, library);
        loaded.with_context(|| format!("{} cannot be loaded", self.name))
    }
}

/// Key by key; the sum of the file is said elsewhere.
fn manifests(before: &Side, after: &Side, out: &mut dyn Write) -> anyhow::Result<()> {
    let keys = |side: &Side| -> anyhow::Result<BTreeMap<String, String>> {
        let table: toml::Table = side.manifest_text.parse()?;
        let mut keys = BTreeMap::new();
        flatten("", &toml::Value::Table(table), &mut keys);
        keys.retain(|key, _| key != "sha256");
        Ok(keys)
    };
    let (before, after) = (keys(before)?, keys(after)?);
    let mut all: Vec<&String> = before.keys().chain(after.keys()).collect();
    all.sort();
    all.dedup();
    let changed: Vec<&String> = all.into_iter().filter(|key| before.get(*key) != after.get(*key)).collect();
    if changed.is_empty() {
        writeln!(out, "manifest: the same")?;
        return Ok(());
    }
    writeln!(out, "manifest:")?;
    for key in changed {
        for (sign, side) in [('-', &before), ('+', &after)] {
            if let Some(value) = side.get(key) {
                writeln!(out, "  {sign} {key} = {value}")?;
            }
        }
    }
    Ok(())
}

fn flatten(path: &str, value: &toml::Value, keys: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, keys);
            }
        }
        _ => {
            keys.insert(path.to_owned(), value.to_string());
        }
    }
}

fn operators(before: &Side, after: &Side, out: &mut dyn Write) -> anyhow::Result<()> {
    let count = |side: &Side| -> anyhow::Result<(i64, BTreeMap<String, usize>)> {
        let graph = Graph::read(&side.bytes).with_context(|| format!("{} has no ONNX file", side.name))?;
        Ok((graph.opset, graph.operators.iter().map(|(operator, count)| (operator.to_string(), *count)).collect()))
    };
    let ((opset_before, before), (opset_after, after)) = (count(before)?, count(after)?);
    if (opset_before, &before) == (opset_after, &after) {
        writeln!(out, "graph: the same operators, opset {opset_after}")?;
        return Ok(());
    }
    writeln!(out, "graph: opset {opset_before} to {opset_after}")?;
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        let [was, is] = [&before, &after].map(|side| side.get(name).copied().unwrap_or(0));
        if was != is {
            writeln!(out, "  {name}: {was} to {is}")?;
        }
    }
    Ok(())
}

/// A window to be shown to both.
struct Window {
    device: u64,
    values: Vec<f32>,
    truth: Option<String>,
}

struct Pair {
    before: Model,
    after: Model,
}

/// What both said of the same windows.
#[derive(Debug, Default)]
struct Comparison {
    /// Answered by both.
    windows: u64,
    /// Not answered by one of them.
    unanswered: u64,
    agree: u64,
    difference_max: f32,
    confidence: [f64; 2],
    /// From which label to which.
    changes: BTreeMap<(String, String), u64>,
    /// Windows whose truth is known, and who was right.
    judged: u64,
    right: [u64; 2],
}

impl Pair {
    /// Each starts from no state.
    fn compare(&mut self, windows: &[Window]) -> Comparison {
        let mut seen = Comparison::default();
        let labels = self.before.manifest().output.labels.clone();
        let is_regression = self.before.manifest().task == Task::Regression;
        for window in windows {
            self.before.forget(window.device);
            self.after.forget(window.device);
        }
        for (batch, windows) in windows.chunks(BATCH_ROWS).enumerate() {
            let rows: Vec<Row<'_>> = windows
                .iter()
                .enumerate()
                .map(|(at, window)| {
                    // One right after the other, by any clock.
                    let start_us = (batch * BATCH_ROWS + at) as i64;
                    let origin = Origin { device: window.device, start_us, end_us: start_us };
                    Row { window: &window.values, origin: Some(origin) }
                })
                .collect();
            let said = self.before.at_home(|model| model.score_rows(&rows));
            let says = self.after.at_home(|model| model.score_rows(&rows));
            for (window, answers) in windows.iter().zip(said.into_iter().zip(says)) {
                match answers {
                    (Ok(one), Ok(other)) => seen.count(window, &[one, other], &labels, is_regression),
                    _ => seen.unanswered += 1,
                }
            }
        }
        seen
    }
}

impl Comparison {
    fn count(&mut self, window: &Window, answers: &[Answer; 2], labels: &[String], is_regression: bool) {
        let [one, other] = answers;
        self.windows += 1;
        let difference = one.outputs.iter().zip(&other.outputs).map(|(one, other)| (one - other).abs());
        self.difference_max = difference.fold(self.difference_max, f32::max);
        let agree = if is_regression {
            let (one, other) = (one.verdict.score, other.verdict.score);
            (one - other).abs() <= VALUE_TOLERANCE * one.abs().max(other.abs()).max(1.0)
        } else {
            one.verdict.label == other.verdict.label
        };
        self.agree += u64::from(agree);
        let word = |answer: &Answer| {
            let at = answer.verdict.label.unwrap_or(0);
            labels.get(at).cloned().unwrap_or_else(|| at.to_string())
        };
        for (at, answer) in answers.iter().enumerate() {
            self.confidence[at] += f64::from(answer.verdict.confidence);
        }
        if !agree && !is_regression {
            *self.changes.entry((word(one), word(other))).or_default() += 1;
        }
        if let Some(truth) = &window.truth {
            self.judged += 1;
            for (at, answer) in answers.iter().enumerate() {
                self.right[at] += u64::from(word(answer) == *truth);
            }
        }
    }

    fn add(&mut self, other: Comparison) {
        self.windows += other.windows;
        self.unanswered += other.unanswered;
        self.agree += other.agree;
        self.difference_max = self.difference_max.max(other.difference_max);
        self.judged += other.judged;
        for at in 0..2 {
            self.confidence[at] += other.confidence[at];
            self.right[at] += other.right[at];
        }
        for (change, count) in other.changes {
            *self.changes.entry(change).or_default() += count;
        }
    }

    /// Of all windows: one without an answer does not agree.
    fn share(&self) -> f64 {
        self.agree as f64 / (self.windows + self.unanswered).max(1) as f64
    }

    fn write(&self, what: &str, manifest: &Manifest, out: &mut dyn Write) -> anyhow::Result<()> {
        let all = self.windows + self.unanswered;
        let interval = Interval::wilson(self.agree, all, Z_95);
        let interval = interval.map_or_else(String::new, |of| format!(" ({:.1} to {:.1} %)", 100.0 * of.low, 100.0 * of.high));
        writeln!(out, "{what}: both say the same of {} of {all} windows, {:.1} %{interval}", self.agree, 100.0 * self.share())?;
        let mean = |at: usize| self.confidence[at] / self.windows.max(1) as f64;
        writeln!(out, "  largest difference of an output {:.6}", self.difference_max)?;
        if manifest.task != Task::Regression {
            writeln!(out, "  mean confidence {:.3} to {:.3}", mean(0), mean(1))?;
        }
        if self.unanswered > 0 {
            writeln!(out, "  {} windows got no answer of one of them", self.unanswered)?;
        }
        let mut changes: Vec<_> = self.changes.iter().collect();
        changes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for ((from, to), count) in changes.iter().take(CHANGES_SHOWN_MAX) {
            writeln!(out, "  {count} times {from} became {to}")?;
        }
        if self.judged > 0 {
            let right = |at: usize| 100.0 * self.right[at] as f64 / self.judged as f64;
            writeln!(out, "  right {:.1} % to {:.1} %, of {} windows whose truth is known", right(0), right(1), self.judged)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
