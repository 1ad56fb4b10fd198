//! Bytes to packets to events.

use super::super::codec::{self, Frame, Packet, RawPublish, Reader, Version};
use super::super::connect;
use super::super::encode;
use super::super::error::{Close, ProtocolError};
use super::super::event::{ConnectRequest, Event, Flow, Publish, Will};
use super::super::props::{self, Value};
use super::{Connection, State};

impl Connection {
    pub(super) fn read_packets<F>(&mut self, now_us: u64, mut input: &[u8], sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Event<'_>) -> Flow,
    {
        if !self.held.is_empty() {
            let mut held = std::mem::take(&mut self.held);
            let result = self.read_held(now_us, &mut held, &mut input, sink);
            self.held = held;
            result?;
        }
        while self.held.is_empty() && !input.is_empty() && self.runs(now_us) {
            let Frame::Whole { body_start, len } = codec::frame(input, self.packet_len_max())? else { break };
            self.packet(input[0], &input[body_start..len], sink)?;
            input = &input[len..];
        }
        self.keep(input)
    }

    /// Parses what earlier reads left, taking from `input` no more than completes a packet.
    fn read_held<F>(&mut self, now_us: u64, held: &mut Vec<u8>, input: &mut &[u8], sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Event<'_>) -> Flow,
    {
        let mut start = 0;
        while start < held.len() && self.runs(now_us) {
            match codec::frame(&held[start..], self.packet_len_max())? {
                Frame::Whole { body_start, len } => {
                    self.packet(held[start], &held[start + body_start..start + len], sink)?;
                    start += len;
                }
                Frame::Need(_) if input.is_empty() => break,
                Frame::Need(len) => {
                    let (taken, rest) = input.split_at(len.min(input.len()));
                    held.extend_from_slice(taken);
                    *input = rest;
                }
            }
        }
        held.drain(..start);
        if held.is_empty() && held.capacity() > IDLE_LEN_MAX {
            *held = Vec::new();
        }
        Ok(())
    }

    fn keep(&mut self, input: &[u8]) -> Result<(), ProtocolError> {
        if input.is_empty() || self.closed().is_some() {
            return Ok(());
        }
        let len = self.held.len() + input.len();
        let len_max = self.packet_len_max() + READ_LEN_MAX;
        if len > len_max {
            return Err(ProtocolError::HeldTooLong { len, len_max });
        }
        self.held.extend_from_slice(input);
        Ok(())
    }

    #[inline]
    fn runs(&self, now_us: u64) -> bool {
        self.closed().is_none() && self.pause(now_us).is_none()
    }

    #[inline]
    fn packet<F>(&mut self, header: u8, body: &[u8], sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Event<'_>) -> Flow,
    {
        if header >> 4 == Packet::Publish as u8 && self.state == State::Open {
            return self.publish(header, body, sink);
        }
        let packet = Packet::of(header)?;
        match (self.state, packet) {
            (State::AwaitConnect, Packet::Connect) => self.connect(body, sink),
            (State::AwaitConnect, _) => Err(ProtocolError::NotConnected { packet }),
            (_, Packet::Pingreq) => {
                Reader::new(body).end(packet)?;
                self.counters.pings += 1;
                encode::pingresp(&mut self.out);
                Ok(())
            }
            (_, Packet::Subscribe | Packet::Unsubscribe) => self.subscribe(packet, Reader::new(body)),
            (_, Packet::Disconnect) => self.disconnected(Reader::new(body)),
            _ => Err(ProtocolError::Unexpected { packet }),
        }
    }

    #[inline]
    fn publish<F>(&mut self, header: u8, body: &[u8], sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Event<'_>) -> Flow,
    {
        let raw = codec::publish(header, body, self.version, codec::Sender::Client)?;
        let inflight_max = self.inflight_max();
        if raw.qos == 1 {
            if self.inflight >= usize::from(inflight_max) {
                return Err(ProtocolError::ReceiveMaximum { inflight_max });
            }
            self.inflight += 1;
        }
        let topic = resolve(&mut self.aliases, self.limits.topic_alias_max, &raw)?;
        self.counters.publishes_qos0 += u64::from(raw.qos == 0);
        self.counters.publishes_qos1 += u64::from(raw.qos);
        self.counters.payload_bytes += raw.payload.len() as u64;
        self.counters.duplicates += u64::from(raw.dup);
        self.counters.retained += u64::from(raw.retain);
        if let Some(messages) = &mut self.messages {
            messages.take(1);
        }
        if let Some(bytes) = &mut self.bytes {
            bytes.take(body.len() as u32);
        }
        let RawPublish { payload, packet_id, qos, dup, retain, expiry_s, content_type, .. } = raw;
        let publish = Publish { topic, payload, qos, packet_id, dup, retain, expiry_s, content_type };
        if sink(Event::Publish(publish)) == Flow::Pause {
            self.paused = true;
        }
        Ok(())
    }

    fn connect<F>(&mut self, body: &[u8], sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Event<'_>) -> Flow,
    {
        let mut reader = Reader::new(body);
        self.version = connect::version(&mut reader)?;
        let raw = connect::parse(reader, self.version)?;
        self.client_len_max = raw.packet_len_max;
        self.session_expiry_s = raw.session_expiry_s;
        self.keep_alive_s = raw.keep_alive_s;
        let keep_alive_s_max = self.limits.keep_alive_s_max;
        if self.version == Version::V5 && keep_alive_s_max > 0 && !(1..=keep_alive_s_max).contains(&raw.keep_alive_s) {
            self.keep_alive_s = keep_alive_s_max;
            self.keep_alive_changed = true;
        }
        self.client_id_assigned = raw.client_id.is_empty();
        self.client_id = if self.client_id_assigned {
            format!("weir-{:x}-{:x}", self.epoch.0, self.generation)
        } else {
            raw.client_id.to_owned()
        };
        self.will = raw.will.map(|will| Will {
            topic: will.topic.to_owned(),
            payload: will.payload.to_vec(),
            qos: will.qos,
            retain: will.retain,
        });
        self.connect_by_us = self.received_us.saturating_add(self.limits.connect_timeout_us);
        self.state = State::AwaitAuth;
        let flow = sink(Event::Connect(ConnectRequest {
            version: self.version,
            client_id: &self.client_id,
            client_id_assigned: self.client_id_assigned,
            username: raw.username,
            password: raw.password,
            clean_start: raw.clean_start,
            keep_alive_s: self.keep_alive_s,
            will_topic: raw.will.map(|will| will.topic),
        }));
        self.paused |= flow == Flow::Pause;
        Ok(())
    }

    /// Refuses every filter of a SUBSCRIBE; for UNSUBSCRIBE none existed.
    fn subscribe(&mut self, packet: Packet, mut reader: Reader<'_>) -> Result<(), ProtocolError> {
        let packet_id = reader.packet_id()?;
        let v5 = self.version == Version::V5;
        let subscribe = packet == Packet::Subscribe;
        if v5 {
            let allowed = if subscribe { props::IN_SUBSCRIBE } else { props::IN_UNSUBSCRIBE };
            props::each(&mut reader, allowed, |_, _| Ok(()))?;
        }
        let mut codes = Vec::new();
        while !reader.rest.is_empty() {
            let filter = reader.text("topic filter")?;
            if !subscribe {
                codes.push(NO_SUBSCRIPTION_EXISTED);
                continue;
            }
            let options = reader.u8("subscription options")?;
            let reserved = if v5 { 0xc0 } else { 0xfc };
            if options & reserved != 0 || options & 0x03 == 3 || options & 0x30 == 0x30 {
                return Err(ProtocolError::SubscribeOptions { options });
            }
            codes.push(if v5 { refusal_of(filter) } else { 0x80 });
        }
        if codes.is_empty() {
            return Err(ProtocolError::NoFilter { packet });
        }
        if subscribe {
            self.counters.subscribes_refused += codes.len() as u64;
            encode::answer(&mut self.out, 0x90, self.version, packet_id, &codes, self.client_len_max);
        } else {
            let codes = if v5 { &codes[..] } else { &[] };
            encode::answer(&mut self.out, 0xb0, self.version, packet_id, codes, self.client_len_max);
        }
        Ok(())
    }

    fn disconnected(&mut self, mut reader: Reader<'_>) -> Result<(), ProtocolError> {
        let mut reason = 0;
        if self.version == Version::V5 && !reader.rest.is_empty() {
            reason = reader.u8("reason code")?;
            if !reader.rest.is_empty() {
                let session_expiry_s = self.session_expiry_s;
                props::each(&mut reader, props::IN_DISCONNECT, |id, value| match (id, value) {
                    (props::SESSION_EXPIRY, Value::Number(1..)) if session_expiry_s == 0 => {
                        Err(ProtocolError::PropertyValue { id })
                    }
                    _ => Ok(()),
                })?;
            }
        }
        reader.end(Packet::Disconnect)?;
        if reason == 0 {
            self.will = None;
        }
        self.close(Close::ByClient { reason });
        Ok(())
    }

    #[inline]
    fn packet_len_max(&self) -> usize {
        (if self.state == State::Open { self.limits.packet_len_max } else { self.limits.connect_len_max }) as usize
    }
}

/// The topic of a message: its own, which may set an alias, or that of its alias.
#[inline]
fn resolve<'a>(aliases: &'a mut Vec<String>, alias_max: u16, raw: &RawPublish<'a>) -> Result<&'a str, ProtocolError> {
    let Some(alias) = raw.alias else {
        return if raw.topic.is_empty() { Err(ProtocolError::TopicEmpty) } else { Ok(raw.topic) };
    };
    if alias == 0 || alias > alias_max {
        return Err(ProtocolError::AliasOutOfRange { alias, alias_max });
    }
    let at = usize::from(alias - 1);
    if raw.topic.is_empty() {
        return match aliases.get(at) {
            Some(topic) if !topic.is_empty() => Ok(topic),
            _ => Err(ProtocolError::AliasUnknown { alias }),
        };
    }
    if aliases.len() <= at {
        aliases.resize(at + 1, String::new());
    }
    aliases[at].clear();
    aliases[at].push_str(raw.topic);
    Ok(raw.topic)
}

/// SUBACK codes of MQTT 5, the most telling one for each filter.
fn refusal_of(filter: &str) -> u8 {
    if filter.starts_with("$share/") {
        0x9e // shared subscriptions not supported
    } else if filter.contains(['+', '#']) {
        0xa2 // wildcard subscriptions not supported
    } else {
        0x83 // valid, and this server does not accept it
    }
}

const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;

/// Bytes that one read may bring and that can be kept beside one packet while paused.
const READ_LEN_MAX: usize = 64 * 1024;

/// Capacity that an empty buffer keeps, bytes; more is given back, since a box may have a thousand idle clients.
const IDLE_LEN_MAX: usize = 4096;
