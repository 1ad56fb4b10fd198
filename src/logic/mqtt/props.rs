//! Properties of MQTT 5: a length, then pairs of id and value. Each packet allows some of them, most of them once.

use super::codec::Reader;
use super::error::ProtocolError;

pub(super) const PAYLOAD_FORMAT: u8 = 0x01;
pub(super) const MESSAGE_EXPIRY: u8 = 0x02;
pub(super) const CONTENT_TYPE: u8 = 0x03;
pub(super) const RESPONSE_TOPIC: u8 = 0x08;
const CORRELATION_DATA: u8 = 0x09;
pub(super) const SUBSCRIPTION_ID: u8 = 0x0b;
pub(super) const SESSION_EXPIRY: u8 = 0x11;
pub(super) const ASSIGNED_CLIENT_ID: u8 = 0x12;
pub(super) const SERVER_KEEP_ALIVE: u8 = 0x13;
pub(super) const AUTH_METHOD: u8 = 0x15;
pub(super) const AUTH_DATA: u8 = 0x16;
pub(super) const REQUEST_PROBLEM_INFO: u8 = 0x17;
const WILL_DELAY: u8 = 0x18;
pub(super) const REQUEST_RESPONSE_INFO: u8 = 0x19;
const RESPONSE_INFO: u8 = 0x1a;
const SERVER_REFERENCE: u8 = 0x1c;
pub(super) const REASON_STRING: u8 = 0x1f;
pub(super) const RECEIVE_MAXIMUM: u8 = 0x21;
pub(super) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
pub(super) const TOPIC_ALIAS: u8 = 0x23;
pub(super) const MAXIMUM_QOS: u8 = 0x24;
const RETAIN_AVAILABLE: u8 = 0x25;
const USER_PROPERTY: u8 = 0x26;
pub(super) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
pub(super) const WILDCARD_AVAILABLE: u8 = 0x28;
pub(super) const SUBSCRIPTION_ID_AVAILABLE: u8 = 0x29;
pub(super) const SHARED_AVAILABLE: u8 = 0x2a;

/// Which ids a packet allows; bit `id`. From the tables in sections 3.1 to 3.14 of the MQTT 5 standard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowed(u64);

pub(super) const IN_PUBLISH: Allowed =
    allowed(&[PAYLOAD_FORMAT, MESSAGE_EXPIRY, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION_DATA, TOPIC_ALIAS, USER_PROPERTY]);
pub(super) const IN_WILL: Allowed =
    allowed(&[WILL_DELAY, PAYLOAD_FORMAT, MESSAGE_EXPIRY, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION_DATA, USER_PROPERTY]);
pub(super) const IN_CONNECT: Allowed = allowed(&[
    SESSION_EXPIRY,
    RECEIVE_MAXIMUM,
    MAXIMUM_PACKET_SIZE,
    TOPIC_ALIAS_MAXIMUM,
    REQUEST_RESPONSE_INFO,
    REQUEST_PROBLEM_INFO,
    USER_PROPERTY,
    AUTH_METHOD,
    AUTH_DATA,
]);
pub(super) const IN_SUBSCRIBE: Allowed = allowed(&[SUBSCRIPTION_ID, USER_PROPERTY]);
pub(super) const IN_UNSUBSCRIBE: Allowed = allowed(&[USER_PROPERTY]);
pub(super) const IN_DISCONNECT: Allowed = allowed(&[SESSION_EXPIRY, REASON_STRING, USER_PROPERTY]);
/// What brokers send. A message that matches several subscriptions carries the id of each.
pub(super) const IN_DELIVERY: Allowed = allowed(&[
    PAYLOAD_FORMAT,
    MESSAGE_EXPIRY,
    CONTENT_TYPE,
    RESPONSE_TOPIC,
    CORRELATION_DATA,
    TOPIC_ALIAS,
    SUBSCRIPTION_ID,
    USER_PROPERTY,
]);
pub(super) const IN_CONNACK: Allowed = allowed(&[
    SESSION_EXPIRY,
    ASSIGNED_CLIENT_ID,
    SERVER_KEEP_ALIVE,
    AUTH_METHOD,
    AUTH_DATA,
    RESPONSE_INFO,
    SERVER_REFERENCE,
    REASON_STRING,
    RECEIVE_MAXIMUM,
    TOPIC_ALIAS_MAXIMUM,
    MAXIMUM_QOS,
    RETAIN_AVAILABLE,
    USER_PROPERTY,
    MAXIMUM_PACKET_SIZE,
    WILDCARD_AVAILABLE,
    SUBSCRIPTION_ID_AVAILABLE,
    SHARED_AVAILABLE,
]);
pub(super) const IN_ACK: Allowed = allowed(&[REASON_STRING, USER_PROPERTY]);
pub(super) const IN_SERVER_DISCONNECT: Allowed = allowed(&[REASON_STRING, USER_PROPERTY, SERVER_REFERENCE]);

/// A property's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u32),
    Text(&'a str),
    Binary(&'a [u8]),
    Pair(&'a str, &'a str),
}

/// Calls `visit` for each property of a packet, in order, having checked id, place, repetition and form.
#[inline]
pub(super) fn each<'a>(
    reader: &mut Reader<'a>,
    allowed: Allowed,
    visit: impl FnMut(u8, Value<'a>) -> Result<(), ProtocolError>,
) -> Result<(), ProtocolError> {
    let len = reader.varint("property length")?;
    let list = reader.take(len as usize, "properties")?;
    if list.is_empty() { Ok(()) } else { each_of(list, allowed, visit) }
}

fn each_of<'a>(
    list: &'a [u8],
    allowed: Allowed,
    mut visit: impl FnMut(u8, Value<'a>) -> Result<(), ProtocolError>,
) -> Result<(), ProtocolError> {
    let mut reader = Reader::new(list);
    let mut seen = 0_u64;
    while !reader.rest.is_empty() {
        let id = reader.varint("property id")?;
        if id >= 64 || KNOWN.0 & (1 << id) == 0 {
            return Err(ProtocolError::PropertyUnknown { id });
        }
        let bit = 1_u64 << id;
        let id = id as u8;
        if allowed.0 & bit == 0 {
            return Err(ProtocolError::PropertyNotAllowed { id });
        }
        let may_repeat = id == USER_PROPERTY || (id == SUBSCRIPTION_ID && allowed == IN_DELIVERY);
        if seen & bit != 0 && !may_repeat {
            return Err(ProtocolError::PropertyTwice { id });
        }
        seen |= bit;
        visit(id, value(id, &mut reader)?)?;
    }
    Ok(())
}

fn value<'a>(id: u8, reader: &mut Reader<'a>) -> Result<Value<'a>, ProtocolError> {
    Ok(match id {
        PAYLOAD_FORMAT
        | REQUEST_PROBLEM_INFO
        | REQUEST_RESPONSE_INFO
        | MAXIMUM_QOS
        | RETAIN_AVAILABLE
        | WILDCARD_AVAILABLE
        | SUBSCRIPTION_ID_AVAILABLE
        | SHARED_AVAILABLE => Value::Number(reader.u8("property")?.into()),
        RECEIVE_MAXIMUM | TOPIC_ALIAS_MAXIMUM | TOPIC_ALIAS | SERVER_KEEP_ALIVE => {
            Value::Number(reader.u16("property")?.into())
        }
        MESSAGE_EXPIRY | SESSION_EXPIRY | WILL_DELAY | MAXIMUM_PACKET_SIZE => Value::Number(reader.u32("property")?),
        SUBSCRIPTION_ID => match reader.varint("property")? {
            0 => return Err(ProtocolError::PropertyValue { id }),
            number => Value::Number(number),
        },
        CONTENT_TYPE | RESPONSE_TOPIC | AUTH_METHOD | REASON_STRING | ASSIGNED_CLIENT_ID | RESPONSE_INFO | SERVER_REFERENCE => {
            Value::Text(reader.text("property")?)
        }
        CORRELATION_DATA | AUTH_DATA => Value::Binary(reader.binary("property")?),
        USER_PROPERTY => Value::Pair(reader.text("user property")?, reader.text("user property")?),
        _ => return Err(ProtocolError::PropertyUnknown { id: id.into() }),
    })
}

const fn allowed(ids: &[u8]) -> Allowed {
    let mut bits = 0_u64;
    let mut at = 0;
    while at < ids.len() {
        bits |= 1 << ids[at];
        at += 1;
    }
    Allowed(bits)
}

/// Every id that exists.
const KNOWN: Allowed = allowed(&[
    0x01, 0x02, 0x03, 0x08, 0x09, 0x0b, 0x11, 0x12, 0x13, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1c, 0x1f, 0x21, 0x22, 0x23,
    0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a,
]);
