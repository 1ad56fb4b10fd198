//! What ingest counts: the fates of messages, of their samples, and what connections come to.

use crate::window::WindowCounters;

/// What a message becomes; the first four are fates of messages, the others count records made of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// A record of its own.
    Kept,
    /// Part of an aggregate or a verdict only.
    Folded,
    /// Nothing: the stream's rules keep other messages.
    Filtered,
    /// Could not be decoded.
    Undecodable,
    /// An aggregate's record.
    Aggregate,
    /// A verdict's record.
    Verdict,
    /// A raw window's record, kept because of its verdict.
    Window,
}

/// Counts of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FateCounters {
    /// Messages that became a record.
    pub kept: u64,
    /// Messages folded into something smaller.
    pub folded: u64,
    /// Messages that rules let go.
    pub filtered: u64,
    /// Messages that did not decode.
    pub undecodable: u64,
    /// Aggregates recorded.
    pub aggregates: u64,
    /// Verdicts recorded.
    pub verdicts: u64,
    /// Raw windows recorded.
    pub windows: u64,
}

impl FateCounters {
    pub(super) fn add(&mut self, fate: Fate) {
        let counter = match fate {
            Fate::Kept => &mut self.kept,
            Fate::Folded => &mut self.folded,
            Fate::Filtered => &mut self.filtered,
            Fate::Undecodable => &mut self.undecodable,
            Fate::Aggregate => &mut self.aggregates,
            Fate::Verdict => &mut self.verdicts,
            Fate::Window => &mut self.windows,
        };
        *counter += 1;
    }
}

/// What became of a stream's samples on their way into windows and aggregates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SampleCounts {
    /// In windows.
    pub windows: WindowCounters,
    /// Samples too late for their aggregate, folded into the open one.
    pub aggregate_late: u64,
    /// Times that a device's clock fell back and an older span was opened again.
    pub aggregate_jumps_back: u64,
}

/// Counts over all connections since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IngestCounters {
    /// Connections accepted.
    pub connections: u64,
    /// Connections refused because there were too many.
    pub connections_refused: u64,
    /// Connections taken over by a newer one of the same client id and user.
    pub taken_over: u64,
    /// Messages on topics that no stream wants.
    pub unmatched: u64,
    /// Messages on topics that their user may not publish to.
    pub denied: u64,
    /// Messages of devices for which there was no room.
    pub devices_refused: u64,
    /// Times that reading stopped because memory or the queue of windows was full.
    pub full: u64,
}

/// Messages of streams with `ack = "record"` that were acknowledged before the record they are part of was safe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EarlyAcks {
    /// As many of their device as may wait did so already.
    pub waiting_max: u64,
    /// Their window was not completed in time.
    pub window_wait: u64,
}
