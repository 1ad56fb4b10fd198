//! CONNECT: the longest packet, parsed once a connection.

use super::codec::{Packet, Reader, Version, topic_name};
use super::error::ProtocolError;
use super::props::{self, Value};

/// Longest client id, bytes; the standard asks servers for 23 at least, brokers in the field allow a few hundred.
pub(super) const CLIENT_ID_LEN_MAX: usize = 256;

/// Smallest Maximum Packet Size of a client, bytes: our longest successful CONNACK has 105.
pub(super) const CLIENT_PACKET_LEN_MIN: u32 = 128;

/// What CONNECT says behind its protocol level.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawConnect<'a> {
    pub(super) clean_start: bool,
    pub(super) keep_alive_s: u16,
    pub(super) client_id: &'a str,
    pub(super) will: Option<RawWill<'a>>,
    pub(super) username: Option<&'a str>,
    pub(super) password: Option<&'a [u8]>,
    /// Whether the client asked for a session that outlives the connection.
    pub(super) session_expiry_s: u32,
    /// Longest packet that the client accepts, bytes.
    pub(super) packet_len_max: u32,
}

/// The message to publish if the connection ends badly.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawWill<'a> {
    pub(super) topic: &'a str,
    pub(super) payload: &'a [u8],
    pub(super) qos: u8,
    pub(super) retain: bool,
}

/// Takes the protocol name and level from the front, so that errors behind them can be answered in the right version.
pub(super) fn version(reader: &mut Reader<'_>) -> Result<Version, ProtocolError> {
    let name = reader.binary("protocol name")?;
    if name == b"MQIsdp" {
        return Err(ProtocolError::ProtocolLevel { level: reader.u8("protocol level")? });
    }
    if name != b"MQTT" {
        return Err(ProtocolError::ProtocolName);
    }
    match reader.u8("protocol level")? {
        4 => Ok(Version::V311),
        5 => Ok(Version::V5),
        level => Err(ProtocolError::ProtocolLevel { level }),
    }
}

/// Parses what comes behind the protocol level.
pub(super) fn parse<'a>(mut reader: Reader<'a>, version: Version) -> Result<RawConnect<'a>, ProtocolError> {
    let flags = reader.u8("connect flags")?;
    let has = |bit: u8| flags & bit != 0;
    let (will_qos, will_bits) = ((flags & WILL_QOS) >> 3, flags & (WILL_QOS | WILL_RETAIN));
    let password_alone = has(PASSWORD) && !has(USERNAME) && version == Version::V311;
    if has(RESERVED) || (!has(WILL) && will_bits != 0) || will_qos == 3 || password_alone {
        return Err(ProtocolError::ConnectFlags { flags });
    }
    let keep_alive_s = reader.u16("keep alive")?;
    let (mut session_expiry_s, mut packet_len_max) = (0, u32::MAX);
    if version == Version::V5 {
        (session_expiry_s, packet_len_max) = connect_properties(&mut reader)?;
    }
    let client_id = reader.text("client id")?;
    if client_id.len() > CLIENT_ID_LEN_MAX {
        return Err(ProtocolError::ClientIdTooLong { len: client_id.len(), len_max: CLIENT_ID_LEN_MAX });
    }
    if client_id.is_empty() && version == Version::V311 && !has(CLEAN_START) {
        return Err(ProtocolError::ClientIdEmpty);
    }
    let will = if has(WILL) { Some(will(&mut reader, version, will_qos, has(WILL_RETAIN))?) } else { None };
    let username = if has(USERNAME) { Some(reader.text("user name")?) } else { None };
    let password = if has(PASSWORD) { Some(reader.binary("password")?) } else { None };
    reader.end(Packet::Connect)?;
    Ok(RawConnect {
        clean_start: has(CLEAN_START),
        keep_alive_s,
        client_id,
        will,
        username,
        password,
        session_expiry_s,
        packet_len_max,
    })
}

fn connect_properties(reader: &mut Reader<'_>) -> Result<(u32, u32), ProtocolError> {
    let (mut session_expiry_s, mut packet_len_max) = (0, u32::MAX);
    let (mut method, mut data) = (false, false);
    props::each(reader, props::IN_CONNECT, |id, value| {
        match (id, value) {
            (props::SESSION_EXPIRY, Value::Number(seconds)) => session_expiry_s = seconds,
            (props::RECEIVE_MAXIMUM | props::MAXIMUM_PACKET_SIZE, Value::Number(0))
            | (props::REQUEST_PROBLEM_INFO | props::REQUEST_RESPONSE_INFO, Value::Number(2..)) => {
                return Err(ProtocolError::PropertyValue { id });
            }
            (props::MAXIMUM_PACKET_SIZE, Value::Number(len)) => packet_len_max = len,
            (props::AUTH_METHOD, _) => method = true,
            (props::AUTH_DATA, _) => data = true,
            _ => {}
        }
        Ok(())
    })?;
    if method {
        return Err(ProtocolError::AuthMethod);
    }
    if data {
        return Err(ProtocolError::PropertyNotAllowed { id: props::AUTH_DATA });
    }
    if packet_len_max < CLIENT_PACKET_LEN_MIN {
        return Err(ProtocolError::ClientPacketMax { len_max: packet_len_max, len_min: CLIENT_PACKET_LEN_MIN });
    }
    Ok((session_expiry_s, packet_len_max))
}

fn will<'a>(reader: &mut Reader<'a>, version: Version, qos: u8, retain: bool) -> Result<RawWill<'a>, ProtocolError> {
    if version == Version::V5 {
        props::each(reader, props::IN_WILL, |id, value| match (id, value) {
            (props::PAYLOAD_FORMAT, Value::Number(2..)) => Err(ProtocolError::PropertyValue { id }),
            _ => Ok(()),
        })?;
    }
    let topic = topic_name(reader.binary("will topic")?)?;
    if topic.is_empty() {
        return Err(ProtocolError::TopicEmpty);
    }
    let payload = reader.binary("will payload")?;
    if qos == 2 {
        return Err(ProtocolError::Qos2);
    }
    Ok(RawWill { topic, payload, qos, retain })
}

const RESERVED: u8 = 0x01;
const CLEAN_START: u8 = 0x02;
const WILL: u8 = 0x04;
const WILL_QOS: u8 = 0x18;
const WILL_RETAIN: u8 = 0x20;
const PASSWORD: u8 = 0x40;
const USERNAME: u8 = 0x80;
