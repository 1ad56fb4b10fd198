//! What the gateway asks of the buffer on disk, and what it gets back.

use std::sync::Arc;

use bytes::Bytes;

use crate::block::BlockHeader;
use crate::ids::{BlockKey, Void};

/// One transaction on the buffer: all of it or nothing.
///
/// Deletions come first in effect: what is put afterwards may have the same keys.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CommitRequest {
    /// Comes back in the answer.
    pub ticket: u64,
    /// Blocks to remove: every block that starts within the range is removed.
    pub deletes: Vec<SeqRange>,
    /// Blocks to write.
    pub puts: Vec<Put>,
    /// Voids to remember until the cloud has acknowledged them.
    pub voids: Vec<Void>,
    /// Voids to forget, by their keys.
    pub voids_acked: Vec<BlockKey>,
    /// Packet ids of brokers' messages to remember with what they became, or to forget, in this order.
    pub packet_ids: Vec<PacketIdChange>,
}

/// A packet id of QoS 2 between the receipt of its message and its release: were it not known after a crash, the message that
/// the broker then sends again would be stored twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketIdChange {
    /// The session with a broker, see [`crate::policy::BrokerPolicy::session`].
    pub session: Arc<str>,
    /// The packet id.
    pub packet_id: u16,
    /// Tells its message from others; `None` to forget it.
    pub fingerprint: Option<u64>,
}

impl CommitRequest {
    /// True if there is nothing to write.
    pub fn is_empty(&self) -> bool {
        let Self { ticket: _, deletes, puts, voids, voids_acked, packet_ids } = self;
        deletes.is_empty() && puts.is_empty() && voids.is_empty() && voids_acked.is_empty() && packet_ids.is_empty()
    }
}

/// Sequence numbers of one lane and epoch, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeqRange {
    /// Lane, epoch and first sequence number.
    pub key: BlockKey,
    /// Last sequence number.
    pub last_seq: u64,
}

/// A block to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The block's header.
    pub header: BlockHeader,
    /// The whole block, header included.
    pub block: Bytes,
    /// True for a small block that a later one will replace: kept in a table of its own, so that a group commit touches as
    /// few pages as possible.
    pub fragment: bool,
}

/// A block found on disk at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its header.
    pub header: BlockHeader,
    /// Its length in bytes, header included.
    pub len: u32,
}

/// Why the buffer did not take a transaction; nothing of it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No space left on the device, even with the reserve given up.
    #[error("disk is full")]
    Full,
    /// Anything else; the buffer was closed and will be opened again.
    #[error("buffer failed: {0}")]
    Io(String),
}
