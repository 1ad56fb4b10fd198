//! Asking larger models in the cloud: `offload` of a stream, and `[offload]` for all of them.

use serde::Deserialize;
use weir_host::units::{Bytes, Duration};
use weir_logic::audit::LearnPolicy;
use weir_logic::offload::{OffloadLimits, OffloadMode, OffloadPolicy};
use weir_logic::window::WindowSpec;
use weir_logic::wire::offload::OFFLOAD_VALUES_MAX;

use super::policy::StreamMistake;
use super::{ModelInfo, Stream};

/// `offload` of a `[[stream]]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamOffload {
    /// What the cloud's pools call the work; empty for the stream's own task.
    pub task: String,
    /// What becomes of a record whose window is asked about.
    pub mode: OffloadMode,
    /// Confidences of the model on the box, from the first up to below the second, that are asked about; `None` for those that its
    /// manifest names.
    pub band: Option<[f32; 2]>,
    /// How long an answer is waited for.
    pub deadline: Duration,
    /// Shortest time between two requests of the stream.
    pub spacing: Duration,
    /// True if windows go as int16 where the pool's model allows it.
    pub int16: bool,
    /// Share of the answers above the band that are sent on too, to be compared.
    pub audit: f32,
    /// How the upper end of the band is learned from what the pool answers; without it the band stays.
    pub learn: Option<Learn>,
}

/// `learn` of an `offload`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Learn {
    /// Lowest upper end of the band.
    pub min: f32,
    /// Highest.
    pub max: f32,
    /// Largest share of windows that is asked about.
    pub share: f32,
    /// How often the models must disagree for asking to be worth it.
    pub disagree: f32,
}

impl Default for Learn {
    fn default() -> Self {
        // Past a third of the windows the reference models gain nothing more (models/README.md).
        Learn { min: 0.3, max: 0.9, share: 0.3, disagree: 0.1 }
    }
}

impl Default for StreamOffload {
    fn default() -> Self {
        StreamOffload {
            task: String::new(),
            mode: OffloadMode::AnswerNow,
            band: None,
            deadline: Duration::from_millis(500),
            spacing: Duration::from_secs(0),
            int16: true,
            audit: 0.0,
            learn: None,
        }
    }
}

/// `[offload]`: what all streams together may ask in any hour.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Offload {
    /// Requests.
    pub requests_per_hour: u64,
    /// Bytes of their windows.
    pub bytes_per_hour: Bytes,
}

impl Default for Offload {
    fn default() -> Self {
        let OffloadLimits { requests_per_hour, bytes_per_hour } = OffloadLimits::default();
        Offload { requests_per_hour, bytes_per_hour: Bytes::new(bytes_per_hour) }
    }
}

impl Offload {
    /// The limits as the core takes them.
    pub(super) fn limits(&self) -> OffloadLimits {
        OffloadLimits { requests_per_hour: self.requests_per_hour, bytes_per_hour: self.bytes_per_hour.get() }
    }
}

/// Longest deadline: whoever can wait longer is as well served by looking at the records later.
pub(super) const DEADLINE_MAX: Duration = Duration::from_secs(10);
/// Longest spacing.
const SPACING_MAX: Duration = Duration::from_secs(3_600);

/// How a stream's windows are asked about; what is wrong is added to `mistakes`. `None` without `offload`, or without the window
/// of a model that could not be looked at.
pub(super) fn resolve(
    stream: &Stream,
    model: Option<&ModelInfo>,
    window: Option<&WindowSpec>,
    mistakes: &mut Vec<StreamMistake>,
) -> Option<OffloadPolicy> {
    let offload = stream.offload.as_ref()?;
    let before = mistakes.len();
    let mut add = |key: &str, message: String, hint: &str| {
        mistakes.push(StreamMistake { key: format!("offload.{key}"), message, hint: hint.to_owned() });
    };
    // What the model on the box is chosen for is what a larger one is asked for.
    let task = if offload.task.is_empty() { stream.task.as_deref().unwrap_or_default() } else { &offload.task };
    if task.is_empty() {
        add("task", "it is not said what is asked for".to_owned(), "write task = \"...\", as a pool of the cloud does it");
    }
    if offload.deadline.is_zero() || offload.deadline > DEADLINE_MAX {
        add("deadline", format!("{} is not within 1us to {DEADLINE_MAX}", offload.deadline), "local answers stand after it");
    }
    if offload.spacing > SPACING_MAX {
        add("spacing", format!("{} is longer than {SPACING_MAX}", offload.spacing), "see requests_per_hour of [offload]");
    }
    let of_manifest = model.and_then(|model| model.confidence);
    let band = offload.band.map(|[low, high]| (low, high)).or(of_manifest);
    match band {
        Some((low, high)) if !(0.0..=1.0).contains(&low) || !(low..=1.0).contains(&high) || low >= high => {
            add(
                "band",
                format!("{low} to {high} is no band within 0 to 1"),
                "write the lower confidence first, as in [0.0, 0.6]",
            );
        }
        None if model.is_some() => {
            let message = "the model's manifest names no confidences to ask about".to_owned();
            add("band", message, "write which, as in band = [0.0, 0.6]");
        }
        _ => {}
    }
    check_audit(offload, stream.wants_model(), model, &mut add);
    if !stream.wants_model() && window.is_none() {
        let message = "without a model on the box nothing says how long a window is".to_owned();
        add("task", message, "write `window` with the length that the pool's model takes, or name a `model`");
    }
    let values = window.map_or(0, |window| window.channels() * window.length());
    if values > OFFLOAD_VALUES_MAX {
        let message = format!("a window of {values} values is longer than {OFFLOAD_VALUES_MAX}");
        add("task", message, "choose a shorter window, or remove `offload`");
    }
    let window = window.filter(|_| mistakes.len() == before)?;
    Some(OffloadPolicy {
        task: task.into(),
        mode: offload.mode,
        // Without a model nothing is known, and all is asked about.
        band: band.unwrap_or((0.0, f32::INFINITY)),
        deadline_us: offload.deadline.as_micros(),
        spacing_us: offload.spacing.as_micros(),
        int16: offload.int16,
        audit: offload.audit,
        learn: offload.learn.map(|Learn { min, max, share, disagree }| LearnPolicy { min, max, share, disagree }),
        window: window.clone(),
    })
}

/// Checks what is learned from answers, and from which.
fn check_audit(
    offload: &StreamOffload,
    wants_model: bool,
    model: Option<&ModelInfo>,
    add: &mut impl FnMut(&str, String, &str),
) {
    if !(0.0..=1.0).contains(&offload.audit) {
        add(
            "audit",
            format!("{} is no share within 0 to 1", offload.audit),
            "write, for example, audit = 0.01 for one in a hundred",
        );
    }
    let compares = offload.audit > 0.0 || offload.learn.is_some();
    if compares && !wants_model {
        let message = "without a model on the box there is nothing to compare answers with";
        add("audit", message.to_owned(), "name a `model`, or remove `audit` and `learn`");
    }
    if let Some(model) = model.filter(|model| compares && model.labels.is_empty()) {
        let message = format!("labels are compared, and model `{}` has none", model.model);
        add("audit", message, "give its manifest labels, or remove `audit` and `learn`");
    }
    let Some(Learn { min, max, share, disagree }) = offload.learn else { return };
    if !(0.0..=1.0).contains(&min) || !(0.0..=1.0).contains(&max) || max - min < LEARN_ROOM_MIN {
        let message = format!("{min} to {max} leaves a threshold no room within 0 to 1");
        add("learn", message, "write min and max at least 0.05 apart, as in min = 0.4, max = 0.9");
    }
    let are_shares = share > 0.0 && share <= 1.0 && disagree > 0.0 && disagree < 1.0;
    if !are_shares {
        let message = format!("share {share} and disagree {disagree} are not both shares above 0");
        add("learn", message, "write, for example, share = 0.3, disagree = 0.1");
    }
    if offload.audit == 0.0 {
        let message = "without audits nothing is known of the answers above the band, and it could only fall";
        add("learn", message.to_owned(), "write audit = 0.01 or more beside it");
    }
}

/// The threshold moves in steps of this.
const LEARN_ROOM_MIN: f32 = 0.0499;
