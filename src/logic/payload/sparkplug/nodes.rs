//! What is known of edge nodes and their devices, in bounded tables.

use std::collections::HashMap;
use std::fmt::Write as _;

use foldhash::fast::FixedState;

use super::decode::{Device, SparkplugDecoder};
use super::message::{Message, SparkplugKind, SparkplugTopic};
use crate::payload::{DecodeError, PAYLOAD_BYTES_MAX, Samples, TimeOf};

/// What was heard of nodes and devices. Tables have a limit: who was not heard of for longest is forgotten, as if it had not been
/// born yet.
#[derive(Debug)]
pub struct SparkplugNodes {
    nodes: HashMap<String, Node, FixedState>,
    devices: HashMap<String, Entry, FixedState>,
    counters: SparkplugCounters,
    /// Counts messages: who was heard last, and which birth a device belongs to.
    now: u64,
    key: String,
}

/// What a message was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Names and aliases for what follows.
    Birth,
    /// Values that could be read.
    Data,
    /// Values of metrics whose birth was not heard: only who knows it can read them.
    Unborn,
    /// The end of a node or device.
    Death,
}

/// Counts since start, over all nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SparkplugCounters {
    /// Births of nodes and devices.
    pub births: u64,
    /// Deaths of nodes and devices.
    pub deaths: u64,
    /// Deaths of an older connection than the one that the node has.
    pub deaths_stale: u64,
    /// Messages with aliases of which no birth was heard: their node should be asked for one.
    pub unborn: u64,
    /// Sequence numbers that did not come.
    pub seq_missing: u64,
    /// Times that sequence numbers did not follow each other.
    pub seq_gaps: u64,
    /// Data sets and templates, which are passed over.
    pub structures: u64,
    /// Values of channels that are text or bytes.
    pub not_numbers: u64,
    /// Rows left out because not all channels were known.
    pub incomplete: u64,
    /// Nodes and devices forgotten to make room for others.
    pub forgotten: u64,
}

#[derive(Debug)]
struct Node {
    heard: u64,
    /// The message that was its last birth or death: what was known of devices before is void.
    born: u64,
    seq: Option<u8>,
    birth_seq: Option<u64>,
}

#[derive(Debug)]
struct Entry {
    heard: u64,
    /// Of its node, when this was noted.
    node_born: u64,
    is_born: bool,
    device: Device,
}

/// Edge nodes known: one for each controller of a large site.
const NODES_MAX: usize = 1_024;
/// Devices known, once for each stream.
const DEVICES_MAX: usize = 4_096;
/// Bytes of a node or device, its key and its place in the table, without channels.
const ENTRY_BYTES: usize = 200;
/// Bytes of a channel of a device: alias, type and value.
const CHANNEL_BYTES: usize = 40;

impl SparkplugNodes {
    /// Nobody is known. `seed` spreads the tables.
    pub fn new(seed: u64) -> SparkplugNodes {
        SparkplugNodes {
            nodes: HashMap::with_hasher(FixedState::with_seed(seed)),
            devices: HashMap::with_hasher(FixedState::with_seed(seed)),
            counters: SparkplugCounters::default(),
            now: 0,
            key: String::new(),
        }
    }

    /// Bytes that the tables take when they are full, if streams have at most so many channels.
    pub const fn bytes_max(channels: usize) -> usize {
        NODES_MAX * ENTRY_BYTES + DEVICES_MAX * (ENTRY_BYTES + CHANNEL_BYTES * channels)
    }

    /// Counts since start.
    pub fn counters(&self) -> SparkplugCounters {
        self.counters
    }

    /// Takes in a message of a stream: fills `out` with its rows, of which there may be none, and remembers what it says.
    ///
    /// # Errors
    /// If it cannot be read; nothing is remembered then.
    pub fn message(
        &mut self,
        (stream, decoder): (u16, &SparkplugDecoder),
        topic: &SparkplugTopic<'_>,
        payload: &[u8],
        out: &mut Samples,
    ) -> Result<Heard, DecodeError> {
        out.reset(decoder.channels(), None, TimeOf::Last);
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(DecodeError::TooLong { len_bytes: payload.len() });
        }
        let message = Message::read(payload)?;
        self.now += 1;
        let node_born = self.node(topic, &message);
        let Some(node_born) = node_born else { return Ok(Heard::Death) };
        self.write_key(topic, Some(stream));
        if topic.kind == SparkplugKind::Death {
            self.devices.remove(&self.key);
            self.counters.deaths += 1;
            return Ok(Heard::Death);
        }
        if !self.devices.contains_key(&self.key) {
            self.counters.forgotten += forget(&mut self.devices, DEVICES_MAX, |entry| entry.heard);
        }
        let now = self.now;
        let fresh = || Entry { heard: now, node_born, is_born: false, device: decoder.device() };
        let entry = match self.devices.get_mut(&self.key) {
            Some(entry) => entry,
            None => self.devices.entry(self.key.clone()).or_insert_with(fresh),
        };
        if entry.node_born != node_born {
            *entry = fresh();
        }
        entry.heard = now;
        let heard = match topic.kind {
            SparkplugKind::Birth => {
                decoder.learn(&message, &mut entry.device);
                entry.is_born = true;
                self.counters.births += 1;
                Heard::Birth
            }
            _ if entry.is_born || !decoder.needs_birth(&message) => Heard::Data,
            _ => {
                self.counters.unborn += 1;
                Heard::Unborn
            }
        };
        decoder.rows(&message, &mut entry.device, &mut self.counters, out)?;
        Ok(heard)
    }

    /// Notes what a message says of its node; returns the number of its birth, or none if the message was its death.
    fn node(&mut self, topic: &SparkplugTopic<'_>, message: &Message<'_>) -> Option<u64> {
        let (now, is_of_node) = (self.now, topic.device.is_none());
        self.write_key(topic, None);
        if !self.nodes.contains_key(&self.key) {
            self.counters.forgotten += forget(&mut self.nodes, NODES_MAX, |node| node.heard);
            self.nodes.insert(self.key.clone(), Node { heard: now, born: now, seq: None, birth_seq: None });
        }
        let node = self.nodes.get_mut(&self.key)?;
        node.heard = now;
        if is_of_node && topic.kind == SparkplugKind::Death {
            // A will may be sent long after the node has come back.
            if node.birth_seq.is_some() && message.birth_seq.is_some() && node.birth_seq != message.birth_seq {
                self.counters.deaths_stale += 1;
            } else {
                (node.born, node.seq, node.birth_seq) = (now, None, None);
                self.counters.deaths += 1;
            }
            return None;
        }
        let seq = message.seq.map(|seq| seq as u8);
        if is_of_node && topic.kind == SparkplugKind::Birth {
            (node.born, node.seq, node.birth_seq) = (now, Some(0), message.birth_seq);
        } else if let (Some(last), Some(seq)) = (node.seq, seq) {
            let missing = seq.wrapping_sub(last.wrapping_add(1));
            self.counters.seq_missing += u64::from(missing);
            self.counters.seq_gaps += u64::from(missing > 0);
        }
        node.seq = seq.or(node.seq);
        Some(node.born)
    }

    /// Writes the key of the node, or with a stream that of the device.
    fn write_key(&mut self, topic: &SparkplugTopic<'_>, stream: Option<u16>) {
        self.key.clear();
        self.key.push_str(topic.group);
        self.key.push('/');
        self.key.push_str(topic.node);
        if let Some(stream) = stream {
            // Writing to a text does not fail.
            let _ = write!(self.key, "/{stream}/{}", topic.device.unwrap_or_default());
        }
    }
}

/// Makes room for one more where a table is full; returns how many it forgot for that.
fn forget<V>(table: &mut HashMap<String, V, FixedState>, len_max: usize, heard: impl Fn(&V) -> u64) -> u64 {
    if table.len() < len_max {
        return 0;
    }
    let oldest = table.iter().min_by_key(|(_, entry)| heard(entry)).map(|(key, _)| key.clone());
    oldest.and_then(|key| table.remove(&key)).map_or(0, |_| 1)
}
