//! From a task to the model that answers it: the manifests of a folder say which task theirs answers.
//!
//! Of the models that an engine of this box can run, the one with the smallest file is chosen, because it answers at
//! once; larger ones are for pools. Of several versions of one model it is the highest. A stream that names a model itself
//! needs no catalogue.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use weir_infer::{Backend, Engine, Graph, Manifest};

use super::finding::Findings;
use super::{Config, Files, Infer, Model};

/// The model that was chosen for the task of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// Position of the stream.
    stream: usize,
    model: Model,
}

/// A model of the catalogue that answers a task.
#[derive(Debug, Clone)]
struct Candidate {
    /// The manifest, relative to where the configuration's paths are.
    path: PathBuf,
    name: String,
    version: String,
    task: String,
    bytes: usize,
    /// Operators that no engine of this box has; empty if it runs here.
    lacking: String,
}

/// Finds a model for each stream that names a task; reports those for which there is none.
pub(super) fn choose(config: &Config, folder: &Path, files: Files, findings: &mut Findings<'_, '_>) -> Vec<Choice> {
    let wants = |at: &usize| config.stream[*at].task.is_some();
    let wanting: Vec<usize> = (0..config.stream.len()).filter(wants).collect();
    for &at in wanting.iter().filter(|at| config.stream[**at].model.is_some()) {
        let message = "the stream names both a model and a task";
        findings.mistake(&format!("stream[{at}].task"), message, "remove one of the two: a task finds its model itself");
    }
    let Some(catalogue) = &config.infer.catalogue else {
        for at in wanting {
            let hint = "name the folder of its manifests in infer.catalogue";
            findings.mistake(&format!("stream[{at}].task"), "there is no catalogue to find a model in", hint);
        }
        return Vec::new();
    };
    if files == Files::Ignored {
        return Vec::new();
    }
    let candidates = match candidates(&folder.join(catalogue), catalogue, &config.infer) {
        Ok(candidates) => candidates,
        Err(why) => {
            report("infer.catalogue", why, "name a folder with manifests".to_owned(), files, findings);
            return Vec::new();
        }
    };
    let mut chosen = Vec::new();
    for at in wanting {
        let stream = &config.stream[at];
        let (path, task) = (format!("stream[{at}].task"), stream.task.as_deref().unwrap_or_default());
        match best(&candidates, task) {
            Ok(candidate) => {
                let (name, manifest) = (candidate.name.clone(), candidate.path.clone());
                chosen.push(Choice { stream: at, model: Model { name, manifest, task: Some(task.to_owned()) } });
            }
            Err((message, hint)) => report(&path, message, hint, files, findings),
        }
    }
    chosen
}

/// Writes what was chosen into a configuration, as if the operator had: a `model` for the stream, and the model itself.
pub(super) fn apply(config: &mut Config, chosen: &[Choice]) {
    for Choice { stream, model } in chosen {
        config.stream[*stream].model = Some(model.name.clone());
        if !config.model.iter().any(|known| known.name == model.name) {
            config.model.push(model.clone());
        }
    }
}

/// A box does all the rest without a model; a check refuses.
fn report(path: &str, message: String, hint: String, files: Files, findings: &mut Findings<'_, '_>) {
    match files {
        Files::Required => findings.mistake(path, message, hint),
        Files::ModelsOptional | Files::Ignored => {
            findings.warn(path, format!("{message}; its streams go without a model"), hint);
        }
    }
}

/// The model for a task, or what is wrong and what to do.
fn best<'c>(candidates: &'c [Candidate], task: &str) -> Result<&'c Candidate, (String, String)> {
    let of_task: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.task == task).collect();
    let is_newest = |one: &&&Candidate| {
        of_task.iter().all(|other| other.name != one.name || versions(&other.version, &one.version) != Ordering::Greater)
    };
    let runs = of_task.iter().filter(is_newest).filter(|candidate| candidate.lacking.is_empty());
    if let Some(best) = runs.min_by_key(|candidate| (candidate.bytes, candidate.name.as_str())) {
        return Ok(best);
    }
    match of_task.first() {
        Some(first) => {
            let message = format!("no engine here runs a model for task `{task}`: `{}` needs {}", first.name, first.lacking);
            Err((message, "run `weir model check` on it for what to do".to_owned()))
        }
        None => {
            let mut tasks: Vec<&str> = candidates.iter().map(|candidate| candidate.task.as_str()).collect();
            tasks.sort_unstable();
            tasks.dedup();
            let known = if tasks.is_empty() { "none".to_owned() } else { tasks.join(", ") };
            let hint = format!("its models answer: {known}; a manifest says so in `answers`");
            Err((format!("no model of the catalogue answers task `{task}`"), hint))
        }
    }
}

/// All models of the folder that answer a task. A manifest that is wrong answers none: `weir model check` says why.
fn candidates(folder: &Path, shown: &Path, infer: &Infer) -> Result<Vec<Candidate>, String> {
    let unreadable = |err: std::io::Error| format!("the catalogue {} cannot be read: {err}", folder.display());
    let has_library = infer.backend != Backend::Rten && infer.runtime_library().find().is_ok();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)?.take(CATALOGUE_FILES_MAX) {
        let name = entry.map_err(unreadable)?.file_name();
        let path = folder.join(&name);
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let Ok(manifest) = Manifest::read(&path) else { continue };
        let (Some(task), Ok(bytes)) = (manifest.answers.clone(), manifest.model_bytes()) else { continue };
        let graph = Graph::read(&bytes).filter(|_| !has_library).unwrap_or_default();
        let lacking: Vec<String> = Engine::lacking(Backend::Rten, &graph).iter().map(ToString::to_string).collect();
        found.push(Candidate {
            path: shown.join(&name),
            name: manifest.name,
            version: manifest.version,
            task,
            bytes: bytes.len(),
            lacking: lacking.join(", "),
        });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Versions by their numbers: 1.10 is after 1.9.
fn versions(a: &str, b: &str) -> Ordering {
    let parts = |version: &str| -> Vec<(u64, String)> {
        let parts = version.split(['.', '-', '_', '+']);
        parts.map(|part| (part.parse().unwrap_or(0), part.to_owned())).collect()
    };
    parts(a).cmp(&parts(b))
}

/// Files of a catalogue that are looked at.
const CATALOGUE_FILES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, version: &str, bytes: usize, lacking: &str) -> Candidate {
        let (path, task) = (PathBuf::from(format!("{name}-{version}.toml")), "activity".to_owned());
        Candidate { path, name: name.to_owned(), version: version.to_owned(), task, bytes, lacking: lacking.to_owned() }
    }

    #[test]
    fn the_smallest_model_that_runs_here_is_chosen_in_its_highest_version() {
        let all = [
            candidate("large", "1", 9_000, ""),
            candidate("small", "1.9", 100, ""),
            candidate("small", "1.10", 110, ""),
            candidate("trees", "1", 50, "TreeEnsembleClassifier (ai.onnx.ml)"),
        ];
        let found = best(&all, "activity").expect("there is one");
        assert_eq!((found.name.as_str(), found.version.as_str()), ("small", "1.10"));
        let (message, _) = best(&all[3..], "activity").expect_err("it does not run here");
        assert!(message.contains("`trees` needs TreeEnsembleClassifier"), "{message}");
        let (message, hint) = best(&all, "weather").expect_err("nobody answers it");
        assert!(message.contains("task `weather`") && hint.starts_with("its models answer: activity;"), "{message} {hint}");
    }
}
