//! The names of things: class, epoch, lane and the key of a block.

use serde::{Deserialize, Serialize};

/// How much a record matters; each class has one lane in the buffer, with its own cap, TTL and share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Never thinned, sent first, evicts nothing but itself.
    Critical,
    /// Sent before `normal`.
    High,
    /// The default.
    Normal,
    /// Sent with what is left.
    Bulk,
}

impl Class {
    /// All classes, in the order of their importance.
    pub const ALL: [Class; 4] = [Class::Critical, Class::High, Class::Normal, Class::Bulk];

    /// Position in [`Class::ALL`], `0..4`; also the byte used on the wire and on disk.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The class with this index, or `None` from 4 on.
    pub fn from_index(index: usize) -> Option<Class> {
        Class::ALL.get(index).copied()
    }

    /// The word used in config, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Critical => "critical",
            Class::High => "high",
            Class::Normal => "normal",
            Class::Bulk => "bulk",
        }
    }
}

/// A value for each class, indexed by [`Class::index`].
pub type PerClass<T> = [T; 4];

/// One run of the edge process: 64 random bits drawn at every start.
///
/// Sequence numbers start again with each epoch, because those that only the cloud has seen must never be used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// Names a block: its lane, epoch and first sequence number. Order is lane, epoch, sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey {
    /// Lane the block belongs to.
    pub lane: Class,
    /// Epoch in which its records were taken in.
    pub epoch: Epoch,
    /// Sequence number of its first record.
    pub first_seq: u64,
}

impl BlockKey {
    /// Length of [`BlockKey::to_bytes`].
    pub const LEN: usize = 17;

    /// Big-endian bytes whose order is the order of keys.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = self.lane.index() as u8;
        out[1..9].copy_from_slice(&self.epoch.0.to_be_bytes());
        out[9..].copy_from_slice(&self.first_seq.to_be_bytes());
        out
    }

    /// The inverse of [`BlockKey::to_bytes`]; `None` if the length or the lane is not one of ours.
    pub fn from_bytes(bytes: &[u8]) -> Option<BlockKey> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        Some(BlockKey {
            lane: Class::from_index(bytes[0] as usize)?,
            epoch: Epoch(u64::from_be_bytes(bytes[1..9].try_into().ok()?)),
            first_seq: u64::from_be_bytes(bytes[9..].try_into().ok()?),
        })
    }
}

/// Why records went without having been delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VoidReason {
    /// The lane was over its byte cap.
    Evicted,
    /// Older than the lane's TTL.
    Expired,
    /// The block on disk failed its checksum and cannot be read.
    Corrupt,
}

impl VoidReason {
    /// The word used in logs, metrics and the cloud's `voids` table.
    pub const fn name(self) -> &'static str {
        match self {
            VoidReason::Evicted => "evicted",
            VoidReason::Expired => "expired",
            VoidReason::Corrupt => "corrupt",
        }
    }

    /// Byte used on the wire and on disk.
    pub const fn code(self) -> u8 {
        match self {
            VoidReason::Evicted => 1,
            VoidReason::Expired => 2,
            VoidReason::Corrupt => 3,
        }
    }

    /// The inverse of [`VoidReason::code`].
    pub fn from_code(code: u8) -> Option<VoidReason> {
        [VoidReason::Evicted, VoidReason::Expired, VoidReason::Corrupt].into_iter().find(|r| r.code() == code)
    }
}

/// Sequence numbers of one epoch and lane that were given up, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Void {
    /// Lane and epoch, and the first sequence number given up.
    pub key: BlockKey,
    /// Last sequence number given up.
    pub last_seq: u64,
    /// Why.
    pub reason: VoidReason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_bytes_round_trip_and_sort_as_keys_do() {
        let key = |lane, epoch, first_seq| BlockKey { lane, epoch: Epoch(epoch), first_seq };
        let keys = [key(Class::Critical, 9, 300), key(Class::High, 1, 255), key(Class::High, 1, 256), key(Class::High, 256, 0)];
        for pair in keys.windows(2) {
            assert!(pair[0] < pair[1] && pair[0].to_bytes() < pair[1].to_bytes());
            assert_eq!(BlockKey::from_bytes(&pair[0].to_bytes()), Some(pair[0]));
        }
        assert_eq!(BlockKey::from_bytes(&[4; 17]), None);
        assert_eq!(BlockKey::from_bytes(&[0; 16]), None);
    }
}
