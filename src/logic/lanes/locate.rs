//! Where is my record? Answers for one sequence number, from what the lanes know now.

use super::lane::{Position, Send, UnderWay};
use super::{Disk, Lanes};
use crate::ids::{BlockKey, Class, Epoch, VoidReason};

/// Where a record is on the box.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// No such number was given out in this epoch yet.
    NotYet {
        /// The next number that will be.
        next_seq: u64,
    },
    /// In the open end of its lane, not yet part of a sealed block.
    Open {
        /// True if its PUBACK may go out.
        is_safe: bool,
        /// When the oldest record of the open end came, in service time.
        since_us: Option<u64>,
    },
    /// In a sealed block.
    Held(HeldPlace),
    /// Given up; the cloud has not confirmed that it knows.
    Void {
        /// Why.
        reason: VoidReason,
    },
    /// Not on the box any more: the cloud has it, or has noted that it was given up.
    Gone,
    /// The box holds nothing of this epoch.
    UnknownEpoch,
}

/// A record in a sealed block.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldPlace {
    /// First and last number of its block.
    pub range: (u64, u64),
    /// Bytes of the block as it is stored.
    pub bytes: u32,
    /// When its first record came, in service time.
    pub born_us: u64,
    /// True if it is on disk.
    pub on_disk: bool,
    /// True if its PUBACK may go out.
    pub is_safe: bool,
    /// Its streams, as indices of the policy; empty for a block of an earlier run.
    pub streams: Vec<u16>,
    /// Records that it lacks, because it was thinned when its lane was nearly full; this one may be among them.
    pub left_out: u64,
    /// What is being done with it.
    pub step: Step,
}

/// What is being done with a held block.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// It waits in its lane.
    Waits {
        /// Bytes of older blocks of the lane that wait too.
        ahead_bytes: u64,
    },
    /// It is being read from disk, to be sent.
    Loading,
    /// It is being read from disk, to be thinned because its lane is nearly full.
    Thinning,
    /// It was handed to uplinks and is not acknowledged.
    UnderWay {
        /// The uplinks.
        uplinks: Vec<u8>,
        /// When, in service time.
        sent_us: u64,
        /// Bytes that were sent.
        bytes: u32,
        /// Records of the block that were left out.
        thinned: u32,
    },
}

impl Lanes {
    /// Place of the block a key names, if it is held.
    pub(super) fn position_of(&self, key: BlockKey) -> Option<Position> {
        let order = self.order_of(key.epoch)?;
        self.lanes[key.lane.index()].blocks.contains_key(&(order, key.first_seq)).then_some((order, key.first_seq))
    }

    /// Where the record of this number is.
    pub fn locate(&self, class: Class, epoch: Epoch, seq: u64) -> Place {
        let lane = &self.lanes[class.index()];
        let Some(order) = self.order_of(epoch) else { return Place::UnknownEpoch };
        let is_current = order == self.current();
        let is_safe = |first, last| !is_current || lane.safe.covers(first..=last);
        if is_current && seq >= lane.staging.next_seq() {
            return Place::NotYet { next_seq: lane.staging.next_seq() };
        }
        if is_current && seq >= lane.staging.first_seq() {
            return Place::Open { is_safe: is_safe(seq, seq), since_us: lane.staging.born_us() };
        }
        let block = lane.blocks.range((order, 0)..=(order, seq)).next_back().filter(|(_, block)| block.header.last_seq >= seq);
        let Some((position, block)) = block else {
            let key = BlockKey { lane: class, epoch, first_seq: seq };
            let void = self.voids.range(..=key).next_back().map(|(_, void)| void);
            let is_in = |void: &&crate::ids::Void| (void.key.lane, void.key.epoch) == (class, epoch) && seq <= void.last_seq;
            return void.filter(is_in).map_or(Place::Gone, |void| Place::Void { reason: void.reason });
        };
        let waiting = lane.blocks.range(..position).filter(|(_, older)| older.send == Send::Queued);
        let step = match block.send {
            Send::Queued => Step::Waits { ahead_bytes: waiting.map(|(_, older)| u64::from(older.len)).sum() },
            Send::Loading => Step::Loading,
            Send::Thinning => Step::Thinning,
            Send::UnderWay(UnderWay { uplink, also, sent_us, len, thinned, .. }) => {
                Step::UnderWay { uplinks: [uplink].into_iter().chain(also).collect(), sent_us, bytes: len, thinned }
            }
        };
        let range = (block.header.key.first_seq, block.header.last_seq);
        Place::Held(HeldPlace {
            range,
            bytes: block.len,
            born_us: block.header.born_us,
            on_disk: block.disk == Disk::Stored,
            is_safe: is_safe(seq, seq),
            streams: block.parts.iter().map(|&(stream, _)| stream).collect(),
            left_out: (range.1 - range.0 + 1).saturating_sub(block.header.count.into()),
            step,
        })
    }
}
