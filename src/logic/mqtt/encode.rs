//! The packets that we send, as a server and as a client of brokers, appended to the connection's output.

use super::codec::Version;
use super::props;
use super::subscriber::SubscriberOptions;

/// What a PUBACK says; 3.1.1 has no reason, so there every one of them looks like success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PubAck {
    /// The record is safe, or policy folded the message into something smaller.
    Success = 0x00,
    /// Taken, and no stream wants this topic.
    NoStream = 0x10,
    /// Refused: the user may not publish to this topic.
    NotAuthorised = 0x87,
    /// Refused: a limit, such as the number of devices of the gateway.
    QuotaExceeded = 0x97,
    /// Refused: the payload does not decode.
    PayloadInvalid = 0x99,
}

/// What CONNACK of MQTT 5 promises.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promises<'a> {
    pub(super) receive_maximum: u16,
    pub(super) packet_len_max: u32,
    pub(super) topic_alias_max: u16,
    pub(super) client_id_assigned: Option<&'a str>,
    /// Set if it is not what the client asked for.
    pub(super) keep_alive_s: Option<u16>,
    /// The client asked for a session that outlives the connection; it is told that it has none.
    pub(super) session_refused: bool,
}

/// PUBACK, the packet that is written once a message.
#[inline]
pub(super) fn puback(out: &mut Vec<u8>, version: Version, packet_id: u16, reason: PubAck) {
    let [high, low] = packet_id.to_be_bytes();
    if reason == PubAck::Success || version == Version::V311 {
        out.extend_from_slice(&[0x40, 2, high, low]);
    } else {
        out.extend_from_slice(&[0x40, 3, high, low, reason as u8]);
    }
}

pub(super) fn connack_v311(out: &mut Vec<u8>, return_code: u8) {
    out.extend_from_slice(&[0x20, 2, 0, return_code]);
}

/// CONNACK of success.
pub(super) fn connack_v5(out: &mut Vec<u8>, promises: &Promises<'_>) {
    let mut list = Vec::with_capacity(128);
    list.push(props::RECEIVE_MAXIMUM);
    list.extend_from_slice(&promises.receive_maximum.to_be_bytes());
    list.extend_from_slice(&[props::MAXIMUM_QOS, 1]);
    list.push(props::MAXIMUM_PACKET_SIZE);
    list.extend_from_slice(&promises.packet_len_max.to_be_bytes());
    if promises.topic_alias_max > 0 {
        list.push(props::TOPIC_ALIAS_MAXIMUM);
        list.extend_from_slice(&promises.topic_alias_max.to_be_bytes());
    }
    list.extend_from_slice(&[props::WILDCARD_AVAILABLE, 0, props::SUBSCRIPTION_ID_AVAILABLE, 0, props::SHARED_AVAILABLE, 0]);
    if promises.session_refused {
        list.extend_from_slice(&[props::SESSION_EXPIRY, 0, 0, 0, 0]);
    }
    if let Some(keep_alive_s) = promises.keep_alive_s {
        list.push(props::SERVER_KEEP_ALIVE);
        list.extend_from_slice(&keep_alive_s.to_be_bytes());
    }
    if let Some(id) = promises.client_id_assigned {
        list.push(props::ASSIGNED_CLIENT_ID);
        text(&mut list, id);
    }
    packet(out, 0x20, &[&[0, 0], &varint(list.len()), &list]);
}

/// CONNACK of refusal; `why` is left out if the client does not take packets that long.
pub(super) fn connack_v5_refused(out: &mut Vec<u8>, reason: u8, why: &str, len_max: u32) {
    with_reason(out, 0x20, &[0, reason], why, len_max);
}

/// DISCONNECT of MQTT 5; `why` is left out if the client does not take packets that long.
pub(super) fn disconnect_v5(out: &mut Vec<u8>, reason: u8, why: &str, len_max: u32) {
    with_reason(out, 0xe0, &[reason], why, len_max);
}

pub(super) fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xd0, 0]);
}

/// SUBACK or UNSUBACK: `codes` one a filter; nothing if the client does not take packets that long, as the standard has it.
pub(super) fn answer(out: &mut Vec<u8>, header: u8, version: Version, packet_id: u16, codes: &[u8], len_max: u32) {
    let no_properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
    let start = out.len();
    packet(out, header, &[&packet_id.to_be_bytes(), no_properties, codes]);
    if out.len() - start > len_max as usize {
        out.truncate(start);
    }
}

fn with_reason(out: &mut Vec<u8>, header: u8, head: &[u8], why: &str, len_max: u32) {
    let mut list = vec![props::REASON_STRING];
    text(&mut list, why);
    let start = out.len();
    packet(out, header, &[head, &varint(list.len()), &list]);
    if out.len() - start > len_max as usize {
        out.truncate(start);
        packet(out, header, &[head, &[0]]);
    }
}

/// CONNECT of a client that wants its session kept.
pub(super) fn connect(out: &mut Vec<u8>, options: &SubscriberOptions) {
    let SubscriberOptions { version, client_id, username, password, keep_alive_s, .. } = options;
    let v5 = *version == Version::V5;
    let flags = if username.is_some() { 0x80 } else { 0 } | if password.is_some() { 0x40 } else { 0 };
    let mut body = Vec::with_capacity(64 + client_id.len());
    text(&mut body, "MQTT");
    body.extend_from_slice(&[if v5 { 5 } else { 4 }, flags]);
    body.extend_from_slice(&keep_alive_s.to_be_bytes());
    if v5 {
        let mut list = vec![props::SESSION_EXPIRY];
        list.extend_from_slice(&options.session_expiry_s.to_be_bytes());
        list.push(props::RECEIVE_MAXIMUM);
        list.extend_from_slice(&options.inflight_max.max(1).to_be_bytes());
        body.extend_from_slice(&varint(list.len()));
        body.extend_from_slice(&list);
    }
    text(&mut body, client_id);
    if let Some(username) = username {
        text(&mut body, username);
    }
    if let Some(password) = password {
        binary(&mut body, password.bytes());
    }
    packet(out, 0x10, &[&body]);
}

/// SUBSCRIBE to all filters with one QoS. MQTT 5 brokers send retained messages with new subscriptions only.
pub(super) fn subscribe(out: &mut Vec<u8>, version: Version, packet_id: u16, filters: &[String], qos: u8) {
    let mut body = packet_id.to_be_bytes().to_vec();
    let mut options = qos;
    if version == Version::V5 {
        body.push(0);
        options |= RETAIN_WITH_NEW_SUBSCRIPTION;
    }
    for filter in filters {
        text(&mut body, filter);
        body.push(options);
    }
    packet(out, 0x82, &[&body]);
}

const RETAIN_WITH_NEW_SUBSCRIPTION: u8 = 0x10;

/// PUBACK, PUBREC or PUBCOMP of success.
#[inline]
pub(super) fn answer_id(out: &mut Vec<u8>, header: u8, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[header, 2, high, low]);
}

fn packet(out: &mut Vec<u8>, header: u8, parts: &[&[u8]]) {
    out.push(header);
    out.extend_from_slice(&varint(parts.iter().map(|part| part.len()).sum()));
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Text of this module is short: ids, filters, names, and the sentences of [`super::ProtocolError`].
fn text(out: &mut Vec<u8>, text: &str) {
    binary(out, text.as_bytes());
}

fn binary(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).expect("ids, filters, passwords and reasons are shorter than 64 KiB");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(4);
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}
