//! Streams that tell what was true of another one: `truth_of`.

use std::sync::Arc;

use weir_logic::payload::Decoder;
use weir_logic::policy::TruthPolicy;

use super::policy::StreamMistake;
use super::{Config, ModelInfo};

/// Of which stream another one tells the truth; `None` if of none, or if that one's model could not be looked at.
///
/// # Errors
/// What is wrong with it.
pub(super) fn resolve(config: &Config, at: usize, models: &[ModelInfo]) -> Result<Option<TruthPolicy>, StreamMistake> {
    let stream = &config.stream[at];
    let Some(of) = &stream.truth_of else { return Ok(None) };
    let mistake = |message: String, hint: &str| StreamMistake { key: "truth_of".to_owned(), message, hint: hint.to_owned() };
    let Some(told) = config.stream.iter().position(|other| other.name == *of && other.name != stream.name) else {
        return Err(mistake(
            format!("there is no other stream `{of}`"),
            "write the name of the stream whose windows are judged",
        ));
    };
    if config.stream[told].offload.is_none() {
        let hint = "add `offload` with `audit` to it, or remove `truth_of`";
        return Err(mistake(format!("no window of `{of}` is answered twice, so there is nothing to judge"), hint));
    }
    let channels = Decoder::new(&stream.payload).map_or(1, |decoder| decoder.channels());
    if channels != 1 {
        let message = format!("its payload has {channels} values, and the truth is one");
        return Err(mistake(message, "send the position of the true label among the model's, 0 for the first"));
    }
    let Some(model) = models.iter().find(|info| config.stream[told].model.as_ref() == Some(&info.model)) else {
        return Ok(None);
    };
    if model.labels.is_empty() {
        return Err(mistake(format!("model `{}` of `{of}` has no labels", model.model), "only labels are judged; remove it"));
    }
    let labels: Vec<Arc<str>> = model.labels.iter().map(|label| label.as_str().into()).collect();
    // `check` allows 1,000 streams.
    Ok(Some(TruthPolicy { stream: u16::try_from(told).unwrap_or(u16::MAX), labels: labels.into() }))
}
