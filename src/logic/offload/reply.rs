//! What comes back on a request's stream.

use crate::wire::Body;
use crate::wire::offload::{OffloadAnswer, OffloadRefusal};

/// What it says.
pub(super) enum Reply {
    Answer(OffloadAnswer),
    Refusal(OffloadRefusal),
    Garbled,
}

/// Reads the one message of a request's stream.
pub(super) fn read_answer(bytes: &[u8]) -> Reply {
    let mut buffer = bytes::BytesMut::from(bytes);
    match crate::wire::take_control(&mut buffer).ok().flatten().and_then(|control| control.body) {
        Some(Body::OffloadAnswer(answer)) if answer.score.is_finite() && answer.confidence.is_finite() => Reply::Answer(answer),
        Some(Body::OffloadRefusal(refusal)) => Reply::Refusal(refusal),
        _ => Reply::Garbled,
    }
}
