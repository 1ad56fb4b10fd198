//! A window on its way to a pool: what is asked, what came of that, and what is under way.

use std::sync::Arc;

use super::seen::WindowKey;
use super::{NotSent, OffloadPolicy};
use crate::audit::Purpose;
use crate::health::OpenReason;
use crate::ids::Class;
use crate::ingest::Verdict;

/// What a pool said of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteVerdict {
    /// What it says.
    pub verdict: Verdict,
    /// Name of its model.
    pub model: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
}

/// A window to be sent on.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) job: u64,
    pub(crate) stream: u16,
    pub(crate) class: Class,
    pub(crate) purpose: Purpose,
    pub(crate) policy: &'a OffloadPolicy,
    /// The plan's choice.
    pub(crate) pool: Option<u8>,
    /// Uplinks that the stream may use now, best first.
    pub(crate) uplinks: &'a [u8],
    /// `f32[channels][length]`.
    pub(crate) window: &'a [f32],
}

/// What came of an [`Ask`].
#[derive(Debug, PartialEq)]
pub(crate) enum Asked {
    /// It is under way; an [`OffloadOutcome`] follows.
    UnderWay,
    /// The same was answered a moment ago.
    Known(RemoteVerdict),
    /// It is not sent.
    Not(NotSent),
}

/// What becomes of a job that is under way.
#[derive(Debug, PartialEq)]
pub(crate) enum OffloadOutcome {
    /// The answer, in time or late; nothing more follows.
    Answered { job: u64, answer: RemoteVerdict },
    /// The deadline has passed; an answer may follow.
    Overdue { job: u64 },
    /// There will be no answer.
    Over { job: u64 },
}

/// What the shell is to do.
#[derive(Debug, PartialEq)]
pub(crate) enum OffloadOutput {
    Send { uplink: u8, id: u64, class: Class, purpose: Purpose, bytes: Vec<u8> },
    Cancel { uplink: u8, id: u64 },
    Breaker { pool: Arc<str>, state: &'static str, reason: Option<OpenReason> },
}

/// Who waits for the answer of a request.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) job: u64,
    pub(super) stream: u16,
    pub(super) deadline_us: u64,
    pub(super) is_overdue: bool,
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) uplink: u8,
    pub(super) class: Class,
    pub(super) purpose: Purpose,
    pub(super) pool: usize,
    pub(super) key: WindowKey,
    pub(super) sent_us: u64,
    pub(super) ends_us: u64,
    pub(super) has_failed: bool,
    pub(super) waiters: Vec<Waiter>,
}
