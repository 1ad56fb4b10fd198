//! Fixed headers and fields, borrowed from the bytes of one read.

use super::error::ProtocolError;
use super::filter::{FILTER_LEVELS_MAX, TOPIC_LEN_MAX};
use super::props::{self, Value};

/// Protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// 3.1.1, protocol level 4.
    V311,
    /// 5, protocol level 5.
    V5,
}

/// The control packets, by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Packet {
    /// Client asks to connect.
    Connect = 1,
    /// Server's answer to it.
    Connack,
    /// A message.
    Publish,
    /// Acknowledgement of QoS 1.
    Puback,
    /// First acknowledgement of QoS 2.
    Pubrec,
    /// Release of QoS 2.
    Pubrel,
    /// Last acknowledgement of QoS 2.
    Pubcomp,
    /// Client asks for messages.
    Subscribe,
    /// Server's answer to it.
    Suback,
    /// Client asks for no more messages.
    Unsubscribe,
    /// Server's answer to it.
    Unsuback,
    /// Client is alive.
    Pingreq,
    /// So is the server.
    Pingresp,
    /// Either side ends the connection.
    Disconnect,
    /// Extended authentication of MQTT 5.
    Auth,
}

impl std::fmt::Display for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Packet::Connect => "CONNECT",
            Packet::Connack => "CONNACK",
            Packet::Publish => "PUBLISH",
            Packet::Puback => "PUBACK",
            Packet::Pubrec => "PUBREC",
            Packet::Pubrel => "PUBREL",
            Packet::Pubcomp => "PUBCOMP",
            Packet::Subscribe => "SUBSCRIBE",
            Packet::Suback => "SUBACK",
            Packet::Unsubscribe => "UNSUBSCRIBE",
            Packet::Unsuback => "UNSUBACK",
            Packet::Pingreq => "PINGREQ",
            Packet::Pingresp => "PINGRESP",
            Packet::Disconnect => "DISCONNECT",
            Packet::Auth => "AUTH",
        })
    }
}

impl Packet {
    /// The packet of a first byte, with the flags checked for all but PUBLISH, whose flags carry data.
    pub(super) fn of(header: u8) -> Result<Packet, ProtocolError> {
        let (packet, flags_wanted) = match header >> 4 {
            1 => (Packet::Connect, 0),
            2 => (Packet::Connack, 0),
            3 => return Ok(Packet::Publish),
            4 => (Packet::Puback, 0),
            5 => (Packet::Pubrec, 0),
            6 => (Packet::Pubrel, 2),
            7 => (Packet::Pubcomp, 0),
            8 => (Packet::Subscribe, 2),
            9 => (Packet::Suback, 0),
            10 => (Packet::Unsubscribe, 2),
            11 => (Packet::Unsuback, 0),
            12 => (Packet::Pingreq, 0),
            13 => (Packet::Pingresp, 0),
            14 => (Packet::Disconnect, 0),
            15 => (Packet::Auth, 0),
            _ => return Err(ProtocolError::PacketReserved),
        };
        let flags = header & 0x0f;
        if flags == flags_wanted { Ok(packet) } else { Err(ProtocolError::Flags { packet, flags }) }
    }
}

/// What the bytes so far tell about the packet at their start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// All of it is there: its body is `body_start..len`.
    Whole { body_start: usize, len: usize },
    /// At least this many bytes more are needed.
    Need(usize),
}

/// Start of the body and length of the packet at the start of `bytes`, as soon as its length is there.
pub(super) fn frame_len(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut remaining = 0_usize;
    for at in 0..4 {
        let byte = *bytes.get(at + 1)?;
        remaining |= ((byte & 0x7f) as usize) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((at + 2, at + 2 + remaining));
        }
    }
    None
}

/// Finds the packet at the start of `bytes`.
///
/// A remaining length that is not the shortest form is accepted: it is the sender's fault and harms nobody.
#[inline]
pub(super) fn frame(bytes: &[u8], len_max: usize) -> Result<Frame, ProtocolError> {
    let Some((body_start, len)) = frame_len(bytes) else {
        return if bytes.len() < 5 {
            Ok(Frame::Need(bytes.len().max(1) + 1 - bytes.len()))
        } else {
            Err(ProtocolError::VarInt)
        };
    };
    if len > len_max {
        return Err(ProtocolError::PacketTooLarge { len, len_max });
    }
    Ok(if len <= bytes.len() { Frame::Whole { body_start, len } } else { Frame::Need(len - bytes.len()) })
}

/// Takes fields from the front of a packet's body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Reader { rest: body }
    }

    #[inline]
    pub(super) fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], ProtocolError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(ProtocolError::Truncated { field })?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, ProtocolError> {
        Ok(self.take(1, field)?[0])
    }

    #[inline]
    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, ProtocolError> {
        let bytes = self.take(2, field)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, ProtocolError> {
        let bytes = self.take(4, field)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(super) fn varint(&mut self, field: &'static str) -> Result<u32, ProtocolError> {
        let mut value = 0_u32;
        for at in 0..4 {
            let byte = self.u8(field)?;
            value |= u32::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtocolError::VarInt)
    }

    #[inline]
    pub(super) fn binary(&mut self, field: &'static str) -> Result<&'a [u8], ProtocolError> {
        let len = self.u16(field)?;
        self.take(len as usize, field)
    }

    pub(super) fn text(&mut self, field: &'static str) -> Result<&'a str, ProtocolError> {
        let bytes = self.binary(field)?;
        if bytes.contains(&0) {
            return Err(ProtocolError::Nul { field });
        }
        std::str::from_utf8(bytes).map_err(|_| ProtocolError::Utf8 { field })
    }

    pub(super) fn packet_id(&mut self) -> Result<u16, ProtocolError> {
        match self.u16("packet id")? {
            0 => Err(ProtocolError::PacketIdZero),
            id => Ok(id),
        }
    }

    /// The whole body must have been taken by now.
    pub(super) fn end(&self, packet: Packet) -> Result<(), ProtocolError> {
        if self.rest.is_empty() { Ok(()) } else { Err(ProtocolError::Trailing { packet, len: self.rest.len() }) }
    }
}

/// PUBLISH as it is on the wire; with an alias the topic may be empty.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawPublish<'a> {
    pub(super) topic: &'a str,
    pub(super) alias: Option<u16>,
    pub(super) payload: &'a [u8],
    /// 0 for QoS 0.
    pub(super) packet_id: u16,
    pub(super) qos: u8,
    pub(super) dup: bool,
    pub(super) retain: bool,
    pub(super) expiry_s: Option<u32>,
    pub(super) content_type: Option<&'a str>,
}

/// Who sends a PUBLISH, which says what may be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// A client of ours: QoS 0 or 1.
    Client,
    /// A broker whose client we are: QoS 0 to 2, and its ids of our subscriptions.
    Broker,
}

/// Parses a PUBLISH.
#[inline]
pub(super) fn publish(header: u8, body: &[u8], version: Version, from: Sender) -> Result<RawPublish<'_>, ProtocolError> {
    let dup = header & 0x08 != 0;
    let qos = (header >> 1) & 3;
    match qos {
        0 if dup => return Err(ProtocolError::DupQos0),
        0 | 1 => {}
        2 if from == Sender::Broker => {}
        2 => return Err(ProtocolError::Qos2),
        _ => return Err(ProtocolError::QosInvalid),
    }
    let mut reader = Reader::new(body);
    let topic = topic_name(reader.binary("topic")?)?;
    let packet_id = if qos > 0 { reader.packet_id()? } else { 0 };
    let mut publish = RawPublish {
        topic,
        alias: None,
        payload: &[],
        packet_id,
        qos,
        dup,
        retain: header & 1 != 0,
        expiry_s: None,
        content_type: None,
    };
    if version == Version::V5 {
        let allowed = if from == Sender::Broker { props::IN_DELIVERY } else { props::IN_PUBLISH };
        publish_properties(&mut reader, allowed, &mut publish)?;
    }
    publish.payload = reader.rest;
    Ok(publish)
}

fn publish_properties<'a>(
    reader: &mut Reader<'a>,
    allowed: props::Allowed,
    publish: &mut RawPublish<'a>,
) -> Result<(), ProtocolError> {
    props::each(reader, allowed, |id, value| {
        match (id, value) {
            (props::TOPIC_ALIAS, Value::Number(alias)) => publish.alias = Some(alias as u16),
            (props::MESSAGE_EXPIRY, Value::Number(seconds)) => publish.expiry_s = Some(seconds),
            (props::CONTENT_TYPE, Value::Text(text)) => publish.content_type = Some(text),
            (props::PAYLOAD_FORMAT, Value::Number(2..)) => return Err(ProtocolError::PropertyValue { id }),
            (props::RESPONSE_TOPIC, Value::Text(text)) if text.is_empty() || text.contains(['+', '#']) => {
                return Err(ProtocolError::PropertyValue { id });
            }
            _ => {}
        }
        Ok(())
    })
}

/// Checks a topic name: length, levels, UTF-8, no U+0000, no wildcard. Empty passes, because an alias may stand for it.
#[inline]
pub(super) fn topic_name(bytes: &[u8]) -> Result<&str, ProtocolError> {
    if bytes.len() > TOPIC_LEN_MAX {
        return Err(ProtocolError::TopicTooLong { len: bytes.len() });
    }
    let mut levels = 1_u16;
    let mut bad = false;
    for &byte in bytes {
        levels += u16::from(byte == b'/');
        bad |= byte == 0 || byte == b'+' || byte == b'#';
    }
    if bad {
        let field = "topic";
        return Err(if bytes.contains(&0) { ProtocolError::Nul { field } } else { ProtocolError::TopicWildcard });
    }
    if levels as usize > FILTER_LEVELS_MAX {
        return Err(ProtocolError::TopicTooDeep { levels: levels as usize });
    }
    std::str::from_utf8(bytes).map_err(|_| ProtocolError::Utf8 { field: "topic" })
}
