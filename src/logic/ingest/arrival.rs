//! One message on its way in: who sends it, and what becomes of it.

use std::collections::VecDeque;

use super::streams::Streams;
use super::{ConnId, IngestCounters, Moment};
use crate::lanes::Lanes;
use crate::mqtt::{Ack, PubAck, Publish, Route, TopicRouter, UserIndex};
use crate::plan::Plan;

/// Who waits for an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Client(ConnId),
    /// Position of the broker's client in the policy; its tickets outlive its connections.
    Broker(u16),
}

/// A message that waits for a record it was folded into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) from: Sender,
    pub(super) ticket: u64,
    pub(super) since_us: u64,
}

/// A payload that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejected {
    pub(super) reason: &'static str,
    pub(super) detail: String,
}

/// A message kept for inspection because nothing could be made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// When it came.
    pub at_us: u64,
    /// Its topic.
    pub topic: String,
    /// `unmatched`, `device_refused`, `too_long`, `topic`, or the word for why it did not decode.
    pub reason: &'static str,
    /// What exactly was wrong with it, and where; empty if it was not read.
    pub detail: String,
    /// The first bytes of its payload.
    pub payload: Vec<u8>,
}

/// Messages kept for inspection, and bytes of each.
const INSPECTED_COUNT_MAX: usize = 16;
const INSPECTED_LEN_MAX: usize = 512;

/// The parts of an `Ingest` that a message goes through, while its connection is borrowed.
pub(super) struct Parts<'a> {
    pub(super) router: &'a mut TopicRouter,
    pub(super) streams: &'a mut Streams,
    pub(super) totals: &'a mut IngestCounters,
    pub(super) inspected: &'a mut VecDeque<Inspected>,
}

impl Parts<'_> {
    pub(super) fn inspect(&mut self, message: Inspected) {
        if self.inspected.len() == INSPECTED_COUNT_MAX {
            self.inspected.pop_front();
        }
        self.inspected.push_back(message);
    }
}

/// A message, and who sends it.
pub(super) struct Arrival<'a> {
    /// Whose rights it has.
    pub(super) user: UserIndex,
    /// The streams that it may be for; those of others are left to others.
    pub(super) only: Option<&'a [u16]>,
    pub(super) publish: &'a Publish<'a>,
    pub(super) waiting: Option<Waiting>,
}

/// Routes a message and hands it to its stream; returns when its sender is to be acknowledged, or `None` if it is for a stream
/// that others take.
pub(super) fn take_in(
    now: Moment,
    plan: &Plan,
    lanes: &mut Lanes,
    parts: &mut Parts<'_>,
    arrival: &Arrival<'_>,
) -> Option<Ack> {
    let Arrival { user, only, publish, waiting } = arrival;
    let (reason, detail, ack) = match parts.router.route(*user, publish.topic) {
        Route::Stream { stream, .. } | Route::DeviceRefused { stream } if only.is_some_and(|only| !only.contains(&stream)) => {
            return None;
        }
        Route::Stream { stream, device } => {
            let key = parts.router.devices().key(device).unwrap_or_default();
            match parts.streams.message(now, plan, lanes, (stream, device, key), publish, *waiting) {
                Ok(ack) => return Some(ack),
                Err(Rejected { reason, detail }) => (reason, detail, PubAck::PayloadInvalid),
            }
        }
        Route::Unmatched => {
            parts.totals.unmatched += 1;
            ("unmatched", String::new(), PubAck::NoStream)
        }
        Route::Denied => {
            parts.totals.denied += 1;
            return Some(Ack::Now(PubAck::NotAuthorised));
        }
        Route::DeviceRefused { .. } => {
            parts.totals.devices_refused += 1;
            ("device_refused", String::new(), PubAck::QuotaExceeded)
        }
    };
    let payload = publish.payload[..publish.payload.len().min(INSPECTED_LEN_MAX)].to_vec();
    parts.inspect(Inspected { at_us: now.service_us, topic: publish.topic.to_owned(), reason, detail, payload });
    Some(Ack::Now(ack))
}
