//! Packet ids of QoS 2, which are written in the transaction of what their messages became.
//!
//! PUBREC promises a broker that its message will not be stored again, however often it comes. A record that was sent to the
//! cloud, and a crash before its packet id was written, would break that promise: so a record that is *bound* stays until
//! both are on disk. While the disk fails nothing is held back for it: then a crash may cost a copy, but an outage of the disk
//! not the data.

use super::commit::CommitState;
use super::{Durability, Lanes};
use crate::ids::Class;
use crate::store::PacketIdChange;

/// Changes noted, in order, and how far they are written.
#[derive(Debug, Default)]
pub(super) struct PacketIds {
    noted: u64,
    /// Of these, in a transaction that has begun.
    begun: u64,
    committed: u64,
    to_write: Vec<PacketIdChange>,
}

impl PacketIds {
    /// All that a transaction that begins now has to write.
    pub(super) fn take(&mut self) -> Vec<PacketIdChange> {
        self.begun = self.noted;
        std::mem::take(&mut self.to_write)
    }

    /// The transaction that began last is on disk.
    pub(super) fn committed(&mut self) {
        self.committed = self.begun;
    }
}

/// What the pacer counts for a change of a packet id, bytes.
const CHANGE_LEN: usize = 32;

impl Lanes {
    /// What was pushed last to this lane, `len` bytes of it, is written with the next group commit, whatever the lane's mode,
    /// unless that is `memory`.
    pub fn require_disk(&mut self, now_us: u64, class: Class, len: usize) {
        if self.lanes[class.index()].policy.durability != Durability::Memory {
            self.want_disk(now_us, class, len);
        }
    }

    /// Writes the record `seq`, which was pushed last, in one transaction with a packet id, and lets it be sent only then.
    /// Returns the number of the change, see [`Lanes::packet_ids_committed`].
    pub fn bind(&mut self, now_us: u64, class: Class, seq: u64, len: usize, change: PacketIdChange) -> u64 {
        self.want_disk(now_us, class, len);
        self.lanes[class.index()].bound_seq.get_or_insert(seq);
        self.note_packet_id(now_us, change)
    }

    /// Writes a change of a packet id with the next group commit; returns its number.
    pub fn note_packet_id(&mut self, now_us: u64, change: PacketIdChange) -> u64 {
        self.packet_ids.to_write.push(change);
        self.packet_ids.noted += 1;
        self.pacer.record(now_us, Class::Normal, CHANGE_LEN);
        self.packet_ids.noted
    }

    /// Number of the last change noted.
    pub fn packet_ids_noted(&self) -> u64 {
        self.packet_ids.noted
    }

    /// Number of the last change that is on disk with all before it.
    pub fn packet_ids_committed(&self) -> u64 {
        self.packet_ids.committed
    }

    fn want_disk(&mut self, now_us: u64, class: Class, len: usize) {
        let lane = &mut self.lanes[class.index()];
        // What is written at once anyway was told to the pacer when it was pushed.
        if !lane.writes_at_once(self.uplink_up) {
            self.pacer.record(now_us, class, len);
        }
        lane.disk_wanted = true;
    }

    /// The first record of a lane that must not be sent yet, because it is not on disk; `None` while the disk fails.
    pub(super) fn unsent_from(&self, class: Class) -> Option<u64> {
        if matches!(self.commit.state, CommitState::Failed { .. }) {
            return None;
        }
        self.lanes[class.index()].unsent_from()
    }
}
