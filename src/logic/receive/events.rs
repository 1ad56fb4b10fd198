//! What goes into a receiver, and what comes out.

use bytes::Bytes;

use super::{CloseReason, SessionId};
use crate::block::BlockHeader;
use crate::ids::{Epoch, PerClass, Void};
use crate::ranges::RangeSet;
use crate::store::SeqRange;
use crate::wire::{Body, Hello, LaneStream};

/// The time of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic microseconds since any origin.
    pub mono_us: u64,
    /// The cloud's Unix time in microseconds.
    pub unix_us: i64,
}

/// What is on record of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownEpoch {
    /// The epoch.
    pub epoch: Epoch,
    /// Durable numbers by [`crate::ids::Class::index`], records and voids alike.
    pub durable: PerClass<RangeSet>,
    /// Numbers reported missing.
    pub missing: PerClass<RangeSet>,
}

/// What is on record of a gateway, as far as a Hello needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// The epoch that took over last.
    pub current: Option<Epoch>,
    /// Those of [`super::Receiver::to_load`] that exist.
    pub epochs: Vec<KnownEpoch>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A connection said Hello.
    Hello {
        /// The connection; it becomes a session.
        session: SessionId,
        /// Its words.
        hello: Hello,
        /// What the sink has on record, asked for with [`super::Receiver::to_load`].
        known: Known,
    },
    /// Any other control message.
    Control {
        /// Where from.
        session: SessionId,
        /// The message.
        body: Body,
    },
    /// A block whose header was checked.
    Block {
        /// Where from.
        session: SessionId,
        /// Head of the stream it came on.
        stream: LaneStream,
        /// Its header.
        header: BlockHeader,
        /// The whole block.
        block: Bytes,
    },
    /// A connection is gone; also said of those that [`Output::Close`] named.
    Closed {
        /// Which.
        session: SessionId,
    },
    /// The sink committed what [`Output::Store`] and [`Output::StoreVoid`] asked for.
    Committed {
        /// The very ranges handed over.
        ranges: Vec<SeqRange>,
    },
    /// How many unacknowledged bytes a session may have from now on, by [`crate::ids::Class::index`].
    CreditLevel {
        /// Bytes.
        bytes: PerClass<u64>,
    },
    /// Time passed; once a second is enough.
    Tick,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send a control message.
    Send {
        /// Where to.
        session: SessionId,
        /// The message.
        body: Body,
    },
    /// Close the connection.
    Close {
        /// Which.
        session: SessionId,
        /// Why; its text goes to the gateway.
        reason: CloseReason,
    },
    /// Store the records of a block.
    Store(Store),
    /// Store a void; its range is durable after the commit.
    StoreVoid(Void),
    /// An epoch took over: it is the gateway's current one from now on.
    EpochOpened {
        /// The epoch.
        epoch: Epoch,
        /// True if it had been superseded before.
        returned: bool,
    },
    /// The box holds nothing of any other epoch any more.
    EpochsClosed {
        /// All but these are closed.
        except: Vec<Epoch>,
    },
    /// Something for the operator.
    Alert(Alert),
}

/// A block for the sink.
#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    /// Its header.
    pub header: BlockHeader,
    /// The whole block.
    pub block: Bytes,
    /// First and last number of each range to be stored and committed; other records of the block are on record already.
    pub takes: Vec<(u64, u64)>,
    /// Unix minus service time in microseconds as the session shows it, for blocks whose box did not trust its clock.
    pub wall_offset_us: i64,
}

/// Something an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alert {
    /// Numbers that will never come; to be listed as missing until they do.
    Missing(SeqRange),
    /// Two runs keep taking over from each other: the same certificate is on two boxes.
    Cloned {
        /// The epoch that was replaced.
        from: Epoch,
        /// The one that came back.
        to: Epoch,
    },
}

/// What a receiver has counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blocks handed to the sink, in whole or in part, by lane.
    pub blocks_stored: PerClass<u64>,
    /// Bytes of all blocks that came, by lane.
    pub blocks_bytes: PerClass<u64>,
    /// Records durable since, by lane.
    pub seqs_durable: PerClass<u64>,
    /// Blocks that were durable already.
    pub blocks_duplicate: u64,
    /// Blocks that came again before their commit.
    pub blocks_pending: u64,
    /// Blocks of which a part was on record.
    pub blocks_partial: u64,
    /// Voids handed to the sink.
    pub voids_stored: u64,
    /// Numbers found missing.
    pub seqs_missing: u64,
    /// Numbers that came after they had been found missing.
    pub seqs_late: u64,
    /// Missing ranges over [`super::MISSING_RANGES_MAX`].
    pub missing_unlisted: u64,
    /// Epochs that took over.
    pub takeovers: u64,
    /// Of these, such as had been superseded.
    pub epochs_returned: u64,
    /// Sessions closed for what they said.
    pub protocol_errors: u64,
    /// Control messages of kinds this version takes from no gateway.
    pub controls_ignored: u64,
}

impl Counters {
    /// Adds what another receiver counted.
    pub fn add(&mut self, other: &Counters) {
        // A gateway may claim any range at all.
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        for at in 0..4 {
            add(&mut self.blocks_stored[at], other.blocks_stored[at]);
            add(&mut self.blocks_bytes[at], other.blocks_bytes[at]);
            add(&mut self.seqs_durable[at], other.seqs_durable[at]);
        }
        add(&mut self.blocks_duplicate, other.blocks_duplicate);
        add(&mut self.blocks_pending, other.blocks_pending);
        add(&mut self.blocks_partial, other.blocks_partial);
        add(&mut self.voids_stored, other.voids_stored);
        add(&mut self.seqs_missing, other.seqs_missing);
        add(&mut self.seqs_late, other.seqs_late);
        add(&mut self.missing_unlisted, other.missing_unlisted);
        add(&mut self.takeovers, other.takeovers);
        add(&mut self.epochs_returned, other.epochs_returned);
        add(&mut self.protocol_errors, other.protocol_errors);
        add(&mut self.controls_ignored, other.controls_ignored);
    }
}
