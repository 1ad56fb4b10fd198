//! A client's packets, and a driver that does to a connection what a shell does.

use crate::ids::Epoch;
use crate::mqtt::{Close, ConnLimits, Connection, Event, Flow, Next, Pause, PubAck, UserIndex, Version};

pub(super) use Version::{V5, V311};

/// An event without its borrows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Connect { client_id: String, username: Option<String>, password: Option<Vec<u8>>, keep_alive_s: u16, will: Option<String> },
    Publish { topic: String, payload: Vec<u8>, qos: u8, packet_id: u16, dup: bool, retain: bool },
    Closed(Close),
}

pub(super) fn seen(event: Event<'_>) -> Seen {
    match event {
        Event::Connect(request) => Seen::Connect {
            client_id: request.client_id.to_owned(),
            username: request.username.map(str::to_owned),
            password: request.password.map(<[u8]>::to_vec),
            keep_alive_s: request.keep_alive_s,
            will: request.will_topic.map(str::to_owned),
        },
        Event::Publish(publish) => Seen::Publish {
            topic: publish.topic.to_owned(),
            payload: publish.payload.to_vec(),
            qos: publish.qos,
            packet_id: publish.packet_id,
            dup: publish.dup,
            retain: publish.retain,
        },
        Event::Closed(close) => Seen::Closed(close),
    }
}

pub(super) fn message(topic: &str, payload: &[u8], qos: u8, packet_id: u16) -> Seen {
    Seen::Publish { topic: topic.into(), payload: payload.into(), qos, packet_id, dup: false, retain: false }
}

pub(super) fn fresh(limits: ConnLimits) -> Connection {
    Connection::new(limits, Epoch(0xabc), 17, 0)
}

/// A connection that was let in, its CONNACK taken away.
pub(super) fn open(limits: ConnLimits, version: Version) -> Connection {
    let mut conn = fresh(limits);
    let (events, next) = feed(&mut conn, 0, &connect(version, "c1", 0x02, 0, &[]));
    assert_eq!((events.len(), next), (1, Next::Pause(Pause::Auth)));
    conn.authenticated(0, Ok(UserIndex(3)));
    conn.output().clear();
    conn
}

pub(super) fn feed(conn: &mut Connection, now_us: u64, bytes: &[u8]) -> (Vec<Seen>, Next) {
    let mut events = Vec::new();
    let next = conn.read(now_us, bytes, |event| {
        events.push(seen(event));
        Flow::Continue
    });
    (events, next)
}

/// Feeds what has no events worth a look.
pub(super) fn tell(conn: &mut Connection, now_us: u64, bytes: &[u8]) {
    let _ = feed(conn, now_us, bytes);
}

/// Feeds chunks as a shell does: lets the client in, acknowledges at every pause, empties the output.
pub(super) fn drive<'b>(conn: &mut Connection, chunks: impl IntoIterator<Item = &'b [u8]>) -> Vec<Seen> {
    let mut events = Vec::new();
    let mut unacked = Vec::new();
    for chunk in chunks {
        let mut next = sink_into(conn, chunk, &mut events, &mut unacked);
        while let Next::Pause(pause) = next {
            match pause {
                Pause::Auth => conn.authenticated(0, Ok(UserIndex(0))),
                Pause::Inflight => unacked.drain(..).for_each(|packet_id| conn.ack(packet_id, PubAck::Success)),
                Pause::Output => conn.output().clear(),
                Pause::Caller | Pause::Rate { .. } => panic!("nobody asked for {pause:?}"),
            }
            next = sink_into(conn, &[], &mut events, &mut unacked);
        }
        if next == Next::Close {
            break;
        }
    }
    events
}

fn sink_into(conn: &mut Connection, chunk: &[u8], events: &mut Vec<Seen>, unacked: &mut Vec<u16>) -> Next {
    conn.read(0, chunk, |event| {
        if let Event::Publish(publish) = event
            && publish.qos == 1
        {
            unacked.push(publish.packet_id);
        }
        events.push(seen(event));
        Flow::Continue
    })
}

pub(super) fn packet(header: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![header];
    let mut len = body.len();
    loop {
        out.push((len % 128) as u8 | if len >= 128 { 0x80 } else { 0 });
        len /= 128;
        if len == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

pub(super) fn field(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// CONNECT with these flags; `rest` is what follows the client id. MQTT 5 without properties.
pub(super) fn connect(version: Version, client_id: &str, flags: u8, keep_alive_s: u16, rest: &[u8]) -> Vec<u8> {
    connect_with(version, client_id, flags, keep_alive_s, &[], rest)
}

pub(super) fn connect_with(version: Version, id: &str, flags: u8, keep_alive_s: u16, props: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut body = field(b"MQTT");
    body.extend_from_slice(&[if version == V5 { 5 } else { 4 }, flags]);
    body.extend_from_slice(&keep_alive_s.to_be_bytes());
    if version == V5 {
        body.push(props.len() as u8);
        body.extend_from_slice(props);
    }
    body.extend_from_slice(&field(id.as_bytes()));
    body.extend_from_slice(rest);
    packet(0x10, &body)
}

/// PUBLISH; the flags are those of the first byte. A packet id goes in for every QoS but 0.
pub(super) fn publish(version: Version, flags: u8, topic: &[u8], packet_id: u16, props: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = field(topic);
    if flags & 0x06 != 0 {
        body.extend_from_slice(&packet_id.to_be_bytes());
    }
    if version == V5 {
        body.push(props.len() as u8);
        body.extend_from_slice(props);
    }
    body.extend_from_slice(payload);
    packet(0x30 | flags, &body)
}

pub(super) fn alias(alias: u16) -> Vec<u8> {
    let [high, low] = alias.to_be_bytes();
    vec![0x23, high, low]
}
