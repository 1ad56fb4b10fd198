//! What is known of the messages of one session with a broker, over all its connections.
//!
//! Like a goods-in desk with a book: what came and is not signed for yet is in the book, so that a driver who calls again with
//! the same delivery note is told it is here. A broker sends again, after a reconnect, what it has no acknowledgement for:
//! - QoS 1: while we have not acknowledged a packet id, it stands for one message, so a repetition with the same content is
//!   that message, and waits for the same record. Once PUBACK has left, the broker may use the id for another; if PUBACK was
//!   lost, the repetition is a new message by MQTT's own rules, and is counted as redelivered.
//! - QoS 2: the packet id stays in the book, and on disk, until the broker has released it and that is on disk, too.
//!
//! Cases that surprised us:
//! - A broker that was killed may start from an older copy of its session and give an id of the book to another message. So
//!   an entry has a fingerprint of topic and payload; another content is another message.
//! - A broker that lost the session says so in CONNACK: then the book is closed, and what is in it is safe with us.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::ids::Class;
use crate::lanes::Lanes;
use crate::mqtt::{Ack, Publish, Subscriber};
use crate::store::PacketIdChange;

/// Messages of one session with a broker.
#[derive(Debug)]
pub(super) struct Session {
    name: Arc<str>,
    /// Not acknowledged on this connection, in the order of receipt.
    entries: VecDeque<Entry>,
    /// Not acknowledged on earlier connections, by packet id.
    parked: BTreeMap<u16, Entry>,
    next_ticket: u64,
    /// QoS 2, by packet id, until it is released.
    ids: BTreeMap<u16, PacketId>,
    /// Released packet ids that wait for the disk, in order.
    releases: VecDeque<(u16, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    ticket: u64,
    packet_id: u16,
    qos: u8,
    fingerprint: u64,
    waits: Waits,
}

/// What an acknowledgement waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Nothing,
    /// The record is safe, and for QoS 2 so is this change of a packet id.
    Record {
        lane: Class,
        seq: u64,
        change: u64,
    },
    /// The record is still open.
    Later,
}

#[derive(Debug, Clone, Copy)]
struct PacketId {
    fingerprint: u64,
    /// It is in the buffer, or on its way there.
    is_written: bool,
    /// PUBREC has left, at least once.
    is_recorded: bool,
}

/// What a message of QoS 1 or 2 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receipt {
    New,
    /// It came before and is in the book.
    Known,
}

/// How the records of a session become safe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Custody {
    pub(super) now_us: u64,
    /// Records are written in the next group commit whatever their lane's mode.
    pub(super) to_disk: bool,
    /// Length of the payload, for the pacing of commits, bytes.
    pub(super) len: usize,
}

impl Session {
    /// A session with the packet ids that the buffer held of it.
    pub(super) fn new(name: Arc<str>, found: &[PacketIdChange]) -> Session {
        let own = found.iter().filter(|change| change.session == name);
        let ids = own.filter_map(|change| {
            let id = PacketId { fingerprint: change.fingerprint?, is_written: true, is_recorded: true };
            Some((change.packet_id, id))
        });
        Session {
            ids: ids.collect(),
            name,
            entries: VecDeque::new(),
            parked: BTreeMap::new(),
            next_ticket: 0,
            releases: VecDeque::new(),
        }
    }

    /// Looks a message up; one that is known will be acknowledged, in its new place.
    pub(super) fn receive(&mut self, publish: &Publish<'_>) -> Receipt {
        let (packet_id, fingerprint) = (publish.packet_id, fingerprint(publish));
        let parked =
            self.parked.remove(&packet_id).filter(|entry| (entry.qos, entry.fingerprint) == (publish.qos, fingerprint));
        if let Some(entry) = parked {
            self.entries.push_back(entry);
            return Receipt::Known;
        }
        if publish.qos < 2 {
            return Receipt::New;
        }
        match self.ids.get(&packet_id) {
            Some(id) if id.fingerprint == fingerprint => {
                if id.is_recorded {
                    let ticket = self.take_ticket();
                    self.entries.push_back(Entry { ticket, packet_id, qos: 2, fingerprint, waits: Waits::Nothing });
                }
                // Else it is among the entries already: a broker that repeats itself on one connection.
                Receipt::Known
            }
            _ => Receipt::New,
        }
    }

    /// The ticket that the next [`Session::push`] has.
    pub(super) fn next_ticket(&self) -> u64 {
        self.next_ticket
    }

    /// Takes a new message into the book; `ack` says what it became.
    pub(super) fn push(&mut self, lanes: &mut Lanes, custody: Custody, publish: &Publish<'_>, ack: Ack) {
        let (packet_id, qos, fingerprint) = (publish.packet_id, publish.qos, fingerprint(publish));
        if qos == 2 {
            // One with the same id in the buffer is overwritten there, or forgotten with this one.
            let is_written = self.ids.get(&packet_id).is_some_and(|id| id.is_written);
            self.ids.insert(packet_id, PacketId { fingerprint, is_written, is_recorded: false });
        }
        let mut entry = Entry { ticket: self.take_ticket(), packet_id, qos, fingerprint, waits: Waits::Later };
        self.decide(lanes, custody, &mut entry, ack);
        self.entries.push_back(entry);
    }

    /// A message that came to nothing, to be acknowledged in its turn.
    pub(super) fn push_unusable(&mut self, packet_id: u16, qos: u8) {
        self.parked.remove(&packet_id);
        let ticket = self.take_ticket();
        self.entries.push_back(Entry { ticket, packet_id, qos, fingerprint: 0, waits: Waits::Nothing });
    }

    /// What became of a message pushed as [`Ack::Later`].
    pub(super) fn resolve(&mut self, lanes: &mut Lanes, custody: Custody, ticket: u64, ack: Ack) {
        let is_it = |entry: &&mut Entry| entry.ticket == ticket && entry.waits == Waits::Later;
        let Some(mut entry) = self.entries.iter_mut().chain(self.parked.values_mut()).find(is_it).copied() else {
            return;
        };
        self.decide(lanes, custody, &mut entry, ack);
        let same = |of: &&mut Entry| of.ticket == ticket;
        if let Some(found) = self.entries.iter_mut().chain(self.parked.values_mut()).find(same) {
            *found = entry;
        }
    }

    fn decide(&mut self, lanes: &mut Lanes, custody: Custody, entry: &mut Entry, ack: Ack) {
        let Custody { now_us, to_disk, len } = custody;
        entry.waits = match ack {
            Ack::Now(_) => Waits::Nothing,
            Ack::Later => Waits::Later,
            Ack::WhenSafe { lane, seq } if entry.qos == 2 => {
                let (session, fingerprint) = (self.name.clone(), Some(entry.fingerprint));
                let change = PacketIdChange { session, packet_id: entry.packet_id, fingerprint };
                let change = lanes.bind(now_us, lane, seq, len, change);
                if let Some(id) = self.ids.get_mut(&entry.packet_id) {
                    id.is_written = true;
                }
                Waits::Record { lane, seq, change }
            }
            Ack::WhenSafe { lane, seq } => {
                if to_disk {
                    lanes.require_disk(now_us, lane, len);
                }
                Waits::Record { lane, seq, change: 0 }
            }
        };
    }

    /// The broker releases a packet id: it is forgotten, and that is answered when it is on disk.
    pub(super) fn release_id(&mut self, lanes: &mut Lanes, now_us: u64, packet_id: u16) {
        self.parked.remove(&packet_id);
        let change = match self.ids.remove(&packet_id) {
            Some(PacketId { is_written: true, .. }) => self.forget(lanes, now_us, packet_id),
            // Perhaps it was released on an earlier connection, and that is still to be written.
            Some(_) | None => lanes.packet_ids_noted(),
        };
        self.releases.push_back((packet_id, change));
    }

    fn forget(&self, lanes: &mut Lanes, now_us: u64, packet_id: u16) -> u64 {
        lanes.note_packet_id(now_us, PacketIdChange { session: self.name.clone(), packet_id, fingerprint: None })
    }

    /// Writes all acknowledgements that may leave, in order; returns how many.
    pub(super) fn acknowledge(&mut self, lanes: &Lanes, subscriber: &mut Subscriber) -> u64 {
        let (safe, committed) = (lanes.safe(), lanes.packet_ids_committed());
        let mut count = 0;
        while let Some(entry) = self.entries.front() {
            let may_leave = match entry.waits {
                Waits::Nothing => true,
                Waits::Record { lane, seq, change } => seq < safe[lane.index()] && change <= committed,
                Waits::Later => false,
            };
            if !may_leave {
                break;
            }
            if entry.qos == 2 {
                subscriber.pubrec(entry.packet_id);
                if let Some(id) = self.ids.get_mut(&entry.packet_id) {
                    id.is_recorded = true;
                }
            } else {
                subscriber.puback(entry.packet_id);
            }
            self.entries.pop_front();
            count += 1;
        }
        while let Some(&(packet_id, change)) = self.releases.front() {
            if change > committed {
                break;
            }
            subscriber.pubcomp(packet_id);
            self.releases.pop_front();
        }
        count
    }

    /// The connection ended: what is not acknowledged will come again.
    pub(super) fn park(&mut self) {
        self.parked.extend(self.entries.drain(..).map(|entry| (entry.packet_id, entry)));
        // The broker asks for these again.
        self.releases.clear();
    }

    /// The broker has lost the session: nothing of it will come again, and its packet ids mean nothing any more.
    pub(super) fn close(&mut self, lanes: &mut Lanes, now_us: u64) {
        self.parked.clear();
        for (packet_id, id) in std::mem::take(&mut self.ids) {
            if id.is_written {
                self.forget(lanes, now_us, packet_id);
            }
        }
    }

    /// Messages that wait for PUBACK or PUBREC.
    pub(super) fn unacknowledged(&self) -> usize {
        self.entries.len()
    }

    /// True if an acknowledgement waits for something.
    pub(super) fn is_waiting(&self) -> bool {
        !self.entries.is_empty() || !self.releases.is_empty()
    }

    /// Packet ids of QoS 2 that are not released.
    pub(super) fn ids_len(&self) -> usize {
        self.ids.len()
    }

    fn take_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }
}

/// Tells a message from another with the same packet id; the same on every run.
fn fingerprint(publish: &Publish<'_>) -> u64 {
    let mut topic = crc32fast::Hasher::new();
    topic.update(publish.topic.as_bytes());
    topic.update(&(publish.payload.len() as u64).to_le_bytes());
    u64::from(topic.finalize()) << 32 | u64::from(crc32fast::hash(publish.payload))
}
