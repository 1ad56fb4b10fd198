//! From what the operator wrote to what the pure core takes.

use std::sync::Arc;

use weir_infer::Manifest;
use weir_logic::ids::Class;
use weir_logic::mqtt::UserIndex;
use weir_logic::payload::{Decoder, FormatError};
use weir_logic::policy::{Meter, Policy, StreamFidelity, StreamModel, StreamPolicy, UplinkPolicy, UserPolicy};
use weir_logic::window::{AggregateSpec, KeepError, KeepRules, Span, SpecError, WindowConfig, WindowSpec};

use super::{Ack, Config, Stream, UplinkPath, offload, truth, value};

/// What streams need to know of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// What the configuration calls it.
    pub model: String,
    /// What its manifest calls it; verdicts carry this name.
    pub name: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// Values in a sample.
    pub channels: usize,
    /// Samples in a window.
    pub window: usize,
    /// Samples a second that it was trained at.
    pub rate_hz: f64,
    /// Its labels; empty if it has none.
    pub labels: Vec<String>,
    /// It carries state from a device's window to its next one.
    pub recurrent: bool,
    /// Confidences that are worth asking a larger model about, from the first up to below the second.
    pub confidence: Option<(f32, f32)>,
}

impl ModelInfo {
    /// What is known of the model that the configuration calls `model`.
    pub fn new(model: &str, manifest: &Manifest) -> ModelInfo {
        ModelInfo {
            model: model.to_owned(),
            name: manifest.name.as_str().into(),
            version: manifest.version.as_str().into(),
            channels: manifest.input.channels.len(),
            window: manifest.input.window,
            rate_hz: manifest.input.rate_hz,
            labels: manifest.output.labels.clone(),
            recurrent: manifest.state.is_some(),
            confidence: manifest.thresholds.confidence,
        }
    }
}

/// Why a configuration cannot be turned into a policy: it was not checked, or its models are not those it was checked with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stream `{stream}`: {reason}; run `weir check`")]
pub struct PolicyError {
    /// The stream.
    pub stream: String,
    /// Its first mistake.
    pub reason: String,
}

/// One mistake in a stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StreamMistake {
    /// The key within the stream.
    pub(super) key: String,
    pub(super) message: String,
    pub(super) hint: String,
}

impl Config {
    /// What the core needs to know, with the models that could be loaded; jobs name a model by its position in `models`.
    ///
    /// Brokers are not in it: they need the gateway's name and passwords, see [`Config::broker_policies`].
    /// A stream whose model is not in `models` goes without. Users come in the order of the configuration; the one without
    /// a name, for anonymous clients, is last, see [`Config::anonymous_user`].
    ///
    /// # Errors
    /// The first mistake of a stream. There is none after [`Config::check`] with the same models.
    pub fn policy(&self, models: &[ModelInfo]) -> Result<Policy, PolicyError> {
        let streams = self.stream.iter().enumerate().map(|(at, stream)| {
            let resolved = resolve(stream, models).and_then(|resolved| {
                let truth = truth::resolve(self, at, models).map_err(|mistake| vec![mistake])?;
                Ok(StreamPolicy { truth, ..resolved })
            });
            resolved.map_err(|mistakes| PolicyError {
                stream: stream.name.clone(),
                reason: mistakes.first().map(|mistake| mistake.message.clone()).unwrap_or_default(),
            })
        });
        let anonymous =
            self.anonymous_user().map(|_| UserPolicy { name: "".into(), publish: self.mqtt.anonymous_publish.clone() });
        let named = self.user.iter().map(|user| UserPolicy { name: user.name.as_str().into(), publish: user.publish.clone() });
        Ok(Policy {
            lanes: self.lane.policies(),
            lanes_limits: self.buffer.lanes_limits(),
            streams: streams.collect::<Result<_, _>>()?,
            users: named.chain(anonymous).collect(),
            connections: self.mqtt.conn_limits(),
            connections_max: self.mqtt.clients_max,
            router: self.mqtt.router_limits(),
            session: self.session.limits(),
            brokers: Vec::new(),
            uplinks: self.uplink_paths().enumerate().map(|(at, path)| uplink_policy(at, &path)).collect(),
            price: self.plan.limits(),
            critical_copies: self.plan.critical_copies,
            offload: self.offload.limits(),
        })
    }

    /// The user that anonymous clients are, if any listener lets them in; its position is behind that of all users.
    pub fn anonymous_user(&self) -> Option<UserIndex> {
        let is_allowed = self.listen.iter().any(|listen| listen.allow_anonymous);
        u16::try_from(self.user.len()).ok().filter(|_| is_allowed).map(UserIndex)
    }
}

/// The uplink at an index; a fallback is right behind the uplink that it stands in for.
fn uplink_policy(at: usize, path: &UplinkPath<'_>) -> UplinkPolicy {
    let uplink = path.uplink;
    let shared = |name: &Option<String>| name.as_deref().map(Arc::from);
    UplinkPolicy {
        name: path.name().into(),
        nominal_bps: value::nominal_bps(uplink.rate),
        stands_in_for: path.fallback.map(|_| at.saturating_sub(1) as u8),
        meter: uplink
            .metered
            .then(|| Meter { money_per_mb: uplink.money_per_mb, month_bytes: uplink.month_bytes.map(|bytes| bytes.get()) }),
        warm: uplink.warm,
        classes: Class::ALL.map(|class| uplink.classes.as_ref().is_none_or(|classes| classes.contains(&class))),
        ingest: path.certificate_name().into(),
        zone: shared(&uplink.zone),
        carrier: shared(&uplink.carrier),
    }
}

/// A stream as the core takes it, or all mistakes in it.
pub(super) fn resolve(stream: &Stream, models: &[ModelInfo]) -> Result<StreamPolicy, Vec<StreamMistake>> {
    let index = models.iter().position(|info| stream.model.as_ref() == Some(&info.model));
    let model = index.map(|index| &models[index]);
    let decoder = Decoder::new(&stream.payload).map_err(|err| vec![mistake(format_key(&err), &err.to_string())])?;
    let channels = decoder.channels();
    let mut mistakes = Vec::new();
    let aggregate = stream.aggregate.as_ref().and_then(|config| {
        AggregateSpec::new(config, channels)
            .map_err(|err| mistakes.push(mistake(spec_key("aggregate", &err), &err.to_string())))
            .ok()
    });
    let keep = stream.keep.as_ref().and_then(|config| {
        KeepRules::new(config, channels)
            .map_err(|errors| mistakes.extend(errors.iter().map(|err| mistake(keep_key(err), &err.to_string()))))
            .ok()
    });
    if stream.fidelity == StreamFidelity::Aggregate && stream.aggregate.is_none() {
        let message = "fidelity `aggregate` needs the table `aggregate`: add, for example, aggregate = { every = \"1m\" }";
        mistakes.push(mistake("fidelity".to_owned(), message));
    }
    if stream.fidelity == StreamFidelity::Verdict && !stream.wants_model() && stream.offload.is_none() {
        let message = "fidelity `verdict` needs a model: name one in `model`, a `task`, or choose another fidelity";
        mistakes.push(mistake("fidelity".to_owned(), message));
    }
    let window = window_of(stream, model, &decoder, &mut mistakes);
    if let Some(model) = model {
        fits(stream, model, &decoder, window.as_ref(), &mut mistakes);
    }
    let value = stream.value.as_ref().and_then(|value| value::resolve(value, stream.class, &stream.payload, &mut mistakes));
    let offload = offload::resolve(stream, model, window.as_ref(), &mut mistakes);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let model = model.zip(index).zip(window).map(|((model, index), window)| StreamModel {
        // `check` allows 16 models.
        index: u16::try_from(index).unwrap_or(u16::MAX),
        name: Arc::clone(&model.name),
        version: Arc::clone(&model.version),
        window,
    });
    Ok(StreamPolicy {
        name: stream.name.as_str().into(),
        filters: stream.topics.clone(),
        class: stream.class,
        fidelity: stream.fidelity,
        format: stream.payload.clone(),
        aggregate,
        keep,
        model,
        ack_record: stream.ack == Ack::Record,
        zones: stream.zones.iter().map(|zone| zone.as_str().into()).collect(),
        value,
        offload,
        // Other streams are needed for it.
        truth: None,
    })
}

/// The window as written, or one as long as the model's.
fn window_of(
    stream: &Stream,
    model: Option<&ModelInfo>,
    decoder: &Decoder,
    mistakes: &mut Vec<StreamMistake>,
) -> Option<WindowSpec> {
    let of_model = |model: &ModelInfo| WindowConfig {
        length: Span::Samples(model.window),
        step: None,
        gap_max_us: None,
        reorder_max_us: None,
    };
    let config = stream.window.clone().or_else(|| model.map(of_model))?;
    let rate_hz = decoder.rate_hz().or(model.map(|model| model.rate_hz));
    // A step that is not written is the length: its mistakes are those of the length.
    let is_own = |err: &&SpecError| {
        let is_of_step = matches!(err, SpecError::NoRate { key: "step" } | SpecError::Samples { key: "step", .. });
        config.step.is_some() || !is_of_step
    };
    WindowSpec::new(&config, decoder.channels(), rate_hz)
        .map_err(|errors| {
            let own = errors.iter().filter(is_own);
            mistakes.extend(own.map(|err| mistake(spec_key("window", err), &err.to_string())));
        })
        .ok()
}

/// Checks that the model takes what the stream gives.
fn fits(stream: &Stream, model: &ModelInfo, decoder: &Decoder, window: Option<&WindowSpec>, mistakes: &mut Vec<StreamMistake>) {
    let (name, channels) = (&model.model, decoder.channels());
    let mut add =
        |key: &str, message: String, hint: String| mistakes.push(StreamMistake { key: key.to_owned(), message, hint });
    if channels != model.channels && channels > 0 {
        let message = format!("the payload has {channels} channels, model `{name}` takes {}", model.channels);
        add("payload", message, "name the model's channels in its order, or choose another model".to_owned());
    }
    if let Some(window) = window.filter(|window| window.length() != model.window) {
        let message = format!("the window has {} samples, model `{name}` takes {}", window.length(), model.window);
        add("window.length", message, format!("write length = \"{} samples\"", model.window));
    }
    if let Some(window) = window.filter(|window| model.recurrent && window.step() < window.length()) {
        let overlap = window.length() - window.step();
        let message =
            format!("windows share {overlap} samples, and model `{name}` goes on from one to the next: it sees them twice");
        add("window.step", message, format!("write step = \"{} samples\", or leave it out", window.length()));
    }
    if let Some(rate_hz) = decoder.rate_hz().filter(|rate_hz| (rate_hz / model.rate_hz - 1.0).abs() > RATE_TOLERANCE) {
        let message = format!("the payload has {rate_hz} samples a second, model `{name}` was trained at {}", model.rate_hz);
        add("payload.rate_hz", message, "sample at the model's rate, or choose another model".to_owned());
    }
    let rules = stream.keep.iter().flat_map(|keep| keep.verdicts.iter().enumerate());
    for (rule, label) in rules.flat_map(|(rule, verdict)| verdict.labels.iter().map(move |label| (rule, label))) {
        if !model.labels.contains(label) {
            let known = if model.labels.is_empty() { "none".to_owned() } else { model.labels.join(", ") };
            let message = format!("model `{name}` has no label `{label}`");
            add(&format!("keep.verdicts[{rule}]"), message, format!("its labels are: {known}"));
        }
    }
}

/// How far a stream's rate may be from the model's: crystals are within 0.01 %, RC clocks of sensors within 5 %.
const RATE_TOLERANCE: f64 = 0.05;

/// Texts of the core say what is wrong, then a colon or a semicolon, then what to do.
fn mistake(key: String, text: &str) -> StreamMistake {
    let (message, hint) = text.rsplit_once(": ").or_else(|| text.rsplit_once("; ")).unwrap_or((text, ""));
    StreamMistake { key, message: message.to_owned(), hint: hint.to_owned() }
}

fn format_key(err: &FormatError) -> String {
    match err {
        FormatError::Rate { .. } => "payload.rate_hz".to_owned(),
        FormatError::UnitsLen { .. } => "payload.units".to_owned(),
        FormatError::KeyUnused { key, .. } | FormatError::PerChannelLen { key, .. } | FormatError::PerChannelValue { key } => {
            format!("payload.{key}")
        }
        _ => "payload".to_owned(),
    }
}

fn spec_key(table: &str, err: &SpecError) -> String {
    match err {
        SpecError::NoChannels => "payload".to_owned(),
        SpecError::NoRate { key } | SpecError::Samples { key, .. } => format!("{table}.{key}"),
        SpecError::TooLarge { .. } => format!("{table}.length"),
        SpecError::Reorder { .. } => format!("{table}.reorder_max"),
        SpecError::Every { .. } => format!("{table}.every"),
    }
}

fn keep_key(err: &KeepError) -> String {
    match err {
        KeepError::Channel { rule, .. }
        | KeepError::Delta { rule }
        | KeepError::DeltaUnused { rule }
        | KeepError::Everything { rule, .. } => {
            format!("keep.samples[{rule}]")
        }
        KeepError::Empty { table, rule } | KeepError::NotFinite { table, rule } => format!("keep.{table}[{rule}]"),
        KeepError::Nothing { rule, .. } => format!("keep.verdicts[{rule}]"),
        KeepError::Spacing { .. } => "keep.spacing_min".to_owned(),
        KeepError::TooMany { .. } => "keep".to_owned(),
    }
}
