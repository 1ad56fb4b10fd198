//! `[[model]]`, `[infer]` and `[[stream]]`.

use std::cmp::Ordering;

use weir_host::units::Duration;
use weir_infer::{LoadError, Manifest, ManifestError, Model as LoadedModel};
use weir_logic::payload::PayloadFormat;
use weir_logic::policy::StreamFidelity;

use super::{Context, check_count, check_name, check_range};
use crate::config::finding::Findings;
use crate::config::overlap::{overlaps, precedence};
use crate::config::policy::resolve;
use crate::config::truth;
use crate::config::{Ack, Files, ModelInfo, Stream};

/// Each model has a thread and its weights in memory.
const MODELS_MAX: usize = 16;
/// Streams of one box.
const STREAMS_MAX: usize = 1_000;
/// Filters of all streams.
const FILTERS_MAX: usize = 4_096;

/// Returns what is known of the models.
pub(super) fn check(context: &Context<'_>, findings: &mut Findings<'_, '_>) -> Vec<ModelInfo> {
    let config = context.config;
    check_infer(context, findings);
    let (hour, why) = (&context.config.offload, "it is what all streams may ask in any hour");
    check_range(findings, "offload.requests_per_hour", &hour.requests_per_hour, &(0..=10_000_000), why);
    let models = check_models(context, findings);
    check_count(findings, "stream", "streams", config.stream.len(), STREAMS_MAX);
    let mut names = Vec::new();
    for (at, stream) in config.stream.iter().enumerate() {
        check_name(findings, &format!("stream[{at}].name"), "stream", &stream.name, &mut names);
        check_stream(context, at, stream, &models, findings);
    }
    check_topics(context, findings);
    if config.stream.is_empty() {
        let hint = "add [[stream]] with a name and topics";
        findings.warn("stream", "there is no stream: every message is acknowledged and dropped", hint);
    }
    models
}

fn check_infer(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    let infer = &context.config.infer;
    let why = "windows that wait are held in memory";
    check_range(findings, "infer.queue_windows_max", &infer.queue_windows_max, &(1..=65_536), why);
    check_range(findings, "infer.state_devices_max", &infer.state_devices_max, &(1..=65_536), "their state is held in memory");
    let hang = Duration::from_secs(1)..=Duration::from_secs(600);
    let why = "a busy box lets a thread wait for seconds, and windows wait for a model that hangs";
    check_range(findings, "infer.hang_timeout", &infer.hang_timeout, &hang, why);
    check_range(findings, "infer.batch_windows_max", &infer.batch_windows_max, &(1..=1_024), "beyond 32 nothing is gained");
    if let Some(library) = &infer.library {
        if library.is_relative() {
            let hint = "write the path from /, so that it cannot come to mean the working directory";
            findings.mistake("infer.library", format!("`{}` is a relative path", library.display()), hint);
        } else if context.files != Files::Ignored && !library.is_file() {
            let hint = "run `weir runtime fetch`, or remove the key to search the usual places";
            findings.warn("infer.library", format!("there is no file {}", library.display()), hint);
        }
    }
}

/// Reports models that cannot be used; returns what is known of the others.
fn check_models(context: &Context<'_>, findings: &mut Findings<'_, '_>) -> Vec<ModelInfo> {
    let config = context.config;
    check_count(findings, "model", "models", config.model.len(), MODELS_MAX);
    let mut names = Vec::new();
    let mut models = Vec::new();
    for (at, model) in config.model.iter().enumerate() {
        check_name(findings, &format!("model[{at}].name"), "model", &model.name, &mut names);
        let path = match config.stream.iter().position(|stream| model.task.is_some() && stream.task == model.task) {
            Some(stream) => format!("stream[{stream}].task"),
            None => format!("model[{at}].manifest"),
        };
        if model.manifest.as_os_str().is_empty() {
            findings.mistake(&path, "the model has no manifest", "write the path of the .toml file beside the model");
            continue;
        }
        if !config.stream.iter().any(|stream| stream.model.as_ref() == Some(&model.name)) {
            findings.warn(
                &format!("model[{at}].name"),
                format!("no stream names model `{}`", model.name),
                "it is loaded for nothing",
            );
        }
        if context.files == Files::Ignored {
            continue;
        }
        let file = context.folder.join(&model.manifest);
        let mut report = |message: String, hint: String| match context.files {
            Files::Required => findings.mistake(&path, message, hint),
            _ => findings.warn(&path, format!("{message}; its streams go without a model"), hint),
        };
        match Manifest::read(&file) {
            Ok(manifest) => {
                // Away from `weir check` whoever loads the model reports what the file itself has.
                if context.files == Files::Required {
                    try_model(context, &path, &manifest, findings);
                }
                models.push(ModelInfo::new(&model.name, &manifest));
            }
            Err(ManifestError::Invalid { path: file, problems }) => {
                for problem in problems {
                    report(format!("{}, {}: {}", file.display(), problem.place, problem.what), problem.hint);
                }
            }
            Err(err) => {
                let text = err.to_string();
                let (message, hint) = text.split_once(": ").unwrap_or((&text, ""));
                report(message.to_owned(), hint.to_owned());
            }
        }
    }
    models
}

/// Loads a model and lets it go.
fn try_model(context: &Context<'_>, path: &str, manifest: &Manifest, findings: &mut Findings<'_, '_>) {
    let infer = &context.config.infer;
    let loaded = manifest
        .model_bytes()
        .and_then(|bytes| LoadedModel::from_bytes(manifest.clone(), bytes, infer.backend, &infer.runtime_library()));
    match loaded {
        Ok(model) => {
            for advice in model.advice() {
                let text = advice.to_string();
                let (message, hint) = text.rsplit_once("; ").or_else(|| text.rsplit_once(": ")).unwrap_or((&text, ""));
                findings.warn(path, message, hint);
            }
        }
        Err(LoadError::Library(err)) => findings.warn(path, format!("it cannot be tried here: {err}"), ""),
        Err(err) => {
            let text = with_source(&err);
            let (message, hint) = text.split_once(": ").unwrap_or((&text, ""));
            findings.mistake(path, message, hint);
        }
    }
}

fn with_source(err: &LoadError) -> String {
    match err {
        LoadError::File { source, .. } => format!("{err} ({source})"),
        err => err.to_string(),
    }
}

fn check_stream(context: &Context<'_>, at: usize, stream: &Stream, models: &[ModelInfo], findings: &mut Findings<'_, '_>) {
    let path = |key: &str| format!("stream[{at}].{key}");
    if stream.topics.is_empty() {
        findings.mistake(&path("topics"), "the stream has no topics", "add topics = [\"site/+/vibration\"]");
    }
    super::listen::check_filters(findings, &path("topics"), &stream.topics);
    if let Some(name) = &stream.model
        && !context.config.model.iter().any(|model| model.name == *name)
    {
        let known: Vec<&str> = context.config.model.iter().map(|model| model.name.as_str()).collect();
        let hint = if known.is_empty() {
            format!("add [[model]] with name = \"{name}\"")
        } else {
            format!("there are: {}", known.join(", "))
        };
        findings.mistake(&path("model"), format!("there is no model `{name}`"), hint);
    }
    match resolve(stream, models) {
        Ok(policy) => {
            if let Some(model) = policy.model.filter(|_| stream.window.as_ref().is_some_and(|window| window.step.is_some())) {
                warn_of_gaps(&path("window.step"), model.window.length(), model.window.step(), findings);
            }
        }
        Err(mistakes) => {
            for mistake in mistakes {
                findings.mistake(&path(&mistake.key), mistake.message, mistake.hint);
            }
        }
    }
    if let Err(mistake) = truth::resolve(context.config, at, models) {
        findings.mistake(&path(&mistake.key), mistake.message, mistake.hint);
    }
    warn_of_unused(context, at, stream, findings);
    check_sparkplug(&path("topics"), stream, findings);
}

/// A stream of Sparkplug B needs topics of Sparkplug B, and the births of whose data it takes.
fn check_sparkplug(path: &str, stream: &Stream, findings: &mut Findings<'_, '_>) {
    if !matches!(stream.payload, PayloadFormat::Sparkplug(_)) {
        return;
    }
    let takes = |kind: &str, levels: &str| {
        let topic = |filter: &String| {
            // A bridge's prefix is whatever stands before the namespace.
            let own = filter.find("spBv1.0").map_or(filter.as_str(), |at| &filter[at..]);
            overlaps(own, &format!("spBv1.0/+/{kind}/{levels}"))
        };
        stream.topics.iter().any(topic)
    };
    let (node, device) = ("+", "+/+");
    if !["NBIRTH", "NDATA"].iter().any(|kind| takes(kind, node)) && !["DBIRTH", "DDATA"].iter().any(|kind| takes(kind, device))
    {
        let hint = "write, for example, topics = [\"spBv1.0/plant/#\"]";
        findings.mistake(path, "none of its topics is one of Sparkplug B", hint);
        return;
    }
    for (data, birth, levels) in [("NDATA", "NBIRTH", node), ("DDATA", "DBIRTH", device)] {
        if takes(data, levels) && !takes(birth, levels) {
            let message = format!("it takes {data} without {birth}: what their metrics mean stays unknown");
            findings.warn(path, message, "add the topics of the births, or take all with spBv1.0/GROUP/#");
        }
    }
}

fn warn_of_gaps(path: &str, length: usize, step: usize, findings: &mut Findings<'_, '_>) {
    if step > length {
        let message =
            format!("windows of {length} samples every {step}: {} samples in between are never scored", step - length);
        findings.warn(path, message, "a step of at most the length leaves nothing out");
    }
}

/// Warns of keys that have no effect together with the others.
fn warn_of_unused(context: &Context<'_>, at: usize, stream: &Stream, findings: &mut Findings<'_, '_>) {
    let path = |key: &str| format!("stream[{at}].{key}");
    if stream.window.is_some() && !stream.wants_model() && stream.offload.is_none() {
        findings.warn(&path("window"), "a window without a model has no effect", "name a `model`, or remove it");
    }
    if stream.aggregate.is_some() && stream.fidelity != StreamFidelity::Aggregate {
        let message = format!("`aggregate` has no effect at fidelity `{}`", stream.fidelity.name());
        findings.warn(&path("aggregate"), message, "set fidelity = \"aggregate\", or remove it");
    }
    if stream.ack == Ack::Record && stream.fidelity == StreamFidelity::Raw {
        let message = "`ack` has no effect at fidelity `raw`: each message is a record of its own";
        findings.warn(&path("ack"), message, "remove it");
    }
    if stream.offload.is_some() && context.config.uplink.is_empty() {
        findings.warn(&path("offload"), "`offload` has no effect without an uplink", "add [[uplink]], or remove it");
    }
    let Some(keep) = &stream.keep else { return };
    if !keep.verdicts.is_empty() && !stream.wants_model() && stream.offload.is_none() {
        findings.warn(
            &path("keep.verdicts"),
            "rules on verdicts have no effect without a model",
            "name a `model`, or remove them",
        );
    }
    if stream.fidelity == StreamFidelity::Raw && keep.samples.is_empty() && keep.every_us.is_none() {
        let message = "on a raw stream `keep` says which messages are kept, and these rules keep none";
        findings.warn(&path("keep"), message, "add `samples` or `every`, or remove `keep` to keep every message");
    }
}

/// Reports filters that never win, and warns of those that share topics with another stream's.
fn check_topics(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    let streams = &context.config.stream;
    let filters: Vec<(usize, usize, &str)> = streams
        .iter()
        .enumerate()
        .flat_map(|(at, stream)| stream.topics.iter().enumerate().map(move |(topic, filter)| (at, topic, filter.as_str())))
        .collect();
    check_count(findings, "stream", "topic filters", filters.len(), FILTERS_MAX);
    for (position, &(at, topic, filter)) in filters.iter().enumerate().take(FILTERS_MAX) {
        let path = format!("stream[{at}].topics[{topic}]");
        for &(other_at, _, other) in &filters[..position] {
            let (name, other_name) = (&streams[at].name, &streams[other_at].name);
            if filter == other {
                let message = format!("`{filter}` is a topic of stream `{other_name}` already");
                findings.mistake(&path, message, "remove one of the two: a message goes to one stream");
            } else if at != other_at && overlaps(filter, other) {
                let winner = if precedence(filter, other) == Ordering::Less { name } else { other_name };
                let message = format!("it shares topics with `{other}` of stream `{other_name}`: those go to `{winner}`");
                findings.warn(&path, message, "the more specific filter wins");
            }
        }
    }
}
