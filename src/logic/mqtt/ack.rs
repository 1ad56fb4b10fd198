//! Acknowledgements in the order of receipt, while records become safe in the order of their lanes.
//!
//! Like the tray return of a canteen: whoever is at the front and done leaves; who is not holds up all behind. An entry
//! leaves when its lane is safe beyond its sequence number, or at once if it never had to wait. Each costs 16 bytes and
//! O(1); the queue's length is bounded by the connection, which stops parsing at its in-flight limit.

use std::collections::VecDeque;

use super::connection::Connection;
use super::encode::PubAck;
use crate::ids::{Class, PerClass};

/// When a message is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// As soon as those before it are.
    Now(PubAck),
    /// When the record with this sequence number is safe.
    WhenSafe {
        /// Lane of the record.
        lane: Class,
        /// Its sequence number in the lane.
        seq: u64,
    },
    /// Not known yet: the record it becomes part of is still open. [`AckQueue::resolve`] must follow.
    Later,
}

/// Unacknowledged messages of one connection, oldest first; thrown away with it.
#[derive(Debug, Default)]
pub struct AckQueue {
    entries: VecDeque<Entry>,
    /// Entries ever released: the ticket of the front.
    released: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    seq: u64,
    packet_id: u16,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Now(PubAck),
    WhenSafe(Class),
    Later,
}

/// Capacity kept by an empty queue, entries (64 KiB): four times the default in-flight limit. More is given back.
const IDLE_ENTRIES_MAX: usize = 4096;

impl AckQueue {
    /// An empty queue; allocates on the first push.
    pub fn new() -> AckQueue {
        AckQueue::default()
    }

    /// Messages that wait for their PUBACK.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The ticket that the next push will return.
    pub fn next_ticket(&self) -> u64 {
        self.released + self.entries.len() as u64
    }

    /// Appends a QoS 1 message in the order of receipt; the ticket names it for [`AckQueue::resolve`].
    #[inline]
    pub fn push(&mut self, packet_id: u16, ack: Ack) -> u64 {
        let ticket = self.next_ticket();
        let (kind, seq) = parts(ack);
        self.entries.push_back(Entry { seq, packet_id, kind });
        ticket
    }

    /// Decides an entry pushed as [`Ack::Later`]. Tickets that are decided or released are left alone.
    pub fn resolve(&mut self, ticket: u64, ack: Ack) {
        let entry = ticket.checked_sub(self.released).and_then(|at| self.entries.get_mut(usize::try_from(at).ok()?));
        if let Some(entry) = entry.filter(|entry| entry.kind == Kind::Later) {
            (entry.kind, entry.seq) = parts(ack);
        }
    }

    /// What holds up the queue: the front's decision, or `None` if it is empty.
    pub fn front(&self) -> Option<Ack> {
        self.entries.front().map(|entry| match entry.kind {
            Kind::Now(reason) => Ack::Now(reason),
            Kind::WhenSafe(lane) => Ack::WhenSafe { lane, seq: entry.seq },
            Kind::Later => Ack::Later,
        })
    }

    /// Writes PUBACKs for all at the front that may go, and returns how many.
    ///
    /// `safe[lane]` is the first sequence number of that lane that is *not* safe yet.
    pub fn release(&mut self, safe: &PerClass<u64>, conn: &mut Connection) -> usize {
        let before = self.entries.len();
        while let Some(entry) = self.entries.front() {
            let reason = match entry.kind {
                Kind::Now(reason) => reason,
                Kind::WhenSafe(lane) if entry.seq < safe[lane.index()] => PubAck::Success,
                Kind::WhenSafe(_) | Kind::Later => break,
            };
            conn.ack(entry.packet_id, reason);
            self.entries.pop_front();
        }
        let count = before - self.entries.len();
        self.released += count as u64;
        if self.entries.is_empty() && self.entries.capacity() > IDLE_ENTRIES_MAX {
            self.entries.shrink_to(IDLE_ENTRIES_MAX);
        }
        count
    }
}

fn parts(ack: Ack) -> (Kind, u64) {
    match ack {
        Ack::Now(reason) => (Kind::Now(reason), 0),
        Ack::WhenSafe { lane, seq } => (Kind::WhenSafe(lane), seq),
        Ack::Later => (Kind::Later, 0),
    }
}
