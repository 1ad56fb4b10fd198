//! Bytes to packets to deliveries.

use super::super::codec::{self, Frame, Packet, RawPublish, Reader, Sender, Version};
use super::super::encode;
use super::super::error::ProtocolError;
use super::super::event::{Flow, Publish};
use super::super::props::{self, Value};
use super::{BrokerClose, Delivery, SUBSCRIBE_ID, State, Subscriber};

/// Longest packet of a broker other than PUBLISH, bytes: a SUBACK of a thousand filters with a long reason.
const CONTROL_LEN_MAX: usize = 128 * 1024;
/// Largest packet that MQTT can announce.
const PACKET_LEN_MAX: usize = 268_435_460;
/// Capacity that an empty buffer keeps, bytes.
const IDLE_LEN_MAX: usize = 4096;

/// What is at the start of the bytes.
enum Head {
    Packet {
        body_start: usize,
        len: usize,
    },
    /// A PUBLISH that is too long: its head was read, the rest of `len` bytes is skipped.
    TooLong {
        len: usize,
        qos: u8,
        packet_id: u16,
        topic: String,
    },
    /// So many bytes more are needed.
    Need(usize),
}

impl Subscriber {
    pub(super) fn read_packets<F>(&mut self, now_us: u64, mut input: &[u8], sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Delivery<'_>) -> Flow,
    {
        if !self.held.is_empty() {
            let mut held = std::mem::take(&mut self.held);
            let result = self.read_held(now_us, &mut held, &mut input, sink);
            self.held = held;
            result?;
        }
        while self.held.is_empty() && !input.is_empty() && self.runs() {
            let taken = self.step(now_us, input, sink)?;
            if taken == 0 {
                break;
            }
            input = &input[taken.min(input.len())..];
        }
        if self.closed().is_none() {
            self.held.extend_from_slice(input);
        }
        Ok(())
    }

    /// Parses what earlier reads left, taking from `input` no more than completes a packet.
    fn read_held<F>(&mut self, now_us: u64, held: &mut Vec<u8>, input: &mut &[u8], sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Delivery<'_>) -> Flow,
    {
        let mut start = 0;
        while start < held.len() && self.runs() {
            let taken = self.step(now_us, &held[start..], sink)?;
            if taken > 0 {
                start += taken;
                continue;
            }
            let Head::Need(len) = self.head(&held[start..])? else { break };
            if input.is_empty() {
                break;
            }
            let (more, rest) = input.split_at(len.min(input.len()));
            held.extend_from_slice(more);
            *input = rest;
        }
        held.drain(..start.min(held.len()));
        if held.is_empty() && held.capacity() > IDLE_LEN_MAX {
            *held = Vec::new();
        }
        Ok(())
    }

    fn runs(&self) -> bool {
        self.closed().is_none() && self.pause().is_none()
    }

    /// Deals with what is at the start of `bytes`; returns how many it took, 0 if more are needed.
    fn step<F>(&mut self, now_us: u64, bytes: &[u8], sink: &mut F) -> Result<usize, ProtocolError>
    where
        F: FnMut(Delivery<'_>) -> Flow,
    {
        if self.skipped > 0 {
            let taken = self.skipped.min(bytes.len());
            self.skipped -= taken;
            return Ok(taken);
        }
        match self.head(bytes)? {
            Head::Need(_) => Ok(0),
            Head::Packet { body_start, len } => {
                self.packet(now_us, bytes[0], &bytes[body_start..len], sink)?;
                Ok(len)
            }
            Head::TooLong { len, qos, packet_id, topic } => {
                let taken = len.min(bytes.len());
                self.skipped = len - taken;
                let detail = format!("{len} bytes exceed the limit of {}", self.options.packet_len_max);
                self.deliver(Delivery::Unusable { qos, packet_id, topic, reason: "too_long", detail }, sink);
                Ok(taken)
            }
        }
    }

    fn head(&self, bytes: &[u8]) -> Result<Head, ProtocolError> {
        let is_publish = bytes.first().is_some_and(|header| header >> 4 == Packet::Publish as u8);
        let len_max = if is_publish { PACKET_LEN_MAX } else { CONTROL_LEN_MAX };
        let (body_start, len) = match codec::frame(bytes, len_max)? {
            Frame::Whole { body_start, len } => (body_start, len),
            Frame::Need(more) => match codec::frame_len(bytes) {
                Some((body_start, len)) if is_publish && len > self.options.packet_len_max as usize => (body_start, len),
                _ => return Ok(Head::Need(more)),
            },
        };
        if !is_publish || len <= self.options.packet_len_max as usize {
            return Ok(Head::Packet { body_start, len });
        }
        // Its topic and packet id are read, however long it is.
        let qos = (bytes[0] >> 1) & 3;
        let topic_start = body_start + 2;
        let Some(topic_len) = bytes.get(body_start..topic_start) else { return Ok(Head::Need(topic_start - bytes.len())) };
        let topic_end = topic_start + usize::from(u16::from_be_bytes([topic_len[0], topic_len[1]]));
        let head_end = topic_end + if qos > 0 { 2 } else { 0 };
        if head_end > len {
            return Err(ProtocolError::Truncated { field: "topic" });
        }
        if bytes.len() < head_end {
            return Ok(Head::Need(head_end - bytes.len()));
        }
        let mut reader = Reader::new(&bytes[topic_end..head_end]);
        let packet_id = if qos > 0 { reader.packet_id()? } else { 0 };
        let topic = String::from_utf8_lossy(&bytes[topic_start..topic_end]).into_owned();
        Ok(Head::TooLong { len, qos, packet_id, topic })
    }

    fn deliver<F>(&mut self, delivery: Delivery<'_>, sink: &mut F)
    where
        F: FnMut(Delivery<'_>) -> Flow,
    {
        if sink(delivery) == Flow::Pause {
            self.paused = true;
        }
    }

    fn packet<F>(&mut self, now_us: u64, header: u8, body: &[u8], sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Delivery<'_>) -> Flow,
    {
        let packet = Packet::of(header)?;
        match (&self.state, packet) {
            (State::AwaitConnack, Packet::Connack) => self.connack(now_us, Reader::new(body), sink),
            (State::AwaitConnack, _) => Err(ProtocolError::NotConnected { packet }),
            (_, Packet::Publish) => self.publish(header, body, sink),
            (_, Packet::Pubrel) => {
                let packet_id = self.packet_id(packet, Reader::new(body))?;
                self.deliver(Delivery::Release { packet_id }, sink);
                Ok(())
            }
            (State::AwaitSuback, Packet::Suback) => self.suback(now_us, Reader::new(body), sink),
            (_, Packet::Pingresp) => Reader::new(body).end(packet),
            (_, Packet::Disconnect) if self.options.version == Version::V5 => {
                let mut reader = Reader::new(body);
                let reason = if body.is_empty() { 0 } else { reader.u8("reason code")? };
                if !reader.rest.is_empty() {
                    props::each(&mut reader, props::IN_SERVER_DISCONNECT, |_, _| Ok(()))?;
                }
                reader.end(packet)?;
                self.close(BrokerClose::ByBroker { reason });
                Ok(())
            }
            _ => Err(ProtocolError::Unexpected { packet }),
        }
    }

    #[inline]
    fn publish<F>(&mut self, header: u8, body: &[u8], sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Delivery<'_>) -> Flow,
    {
        let raw = match codec::publish(header, body, self.options.version, Sender::Broker) {
            Ok(raw) => raw,
            Err(error) => return self.unusable(header, body, error, sink),
        };
        if let Some(alias) = raw.alias {
            // We offered none.
            return Err(ProtocolError::AliasOutOfRange { alias, alias_max: 0 });
        }
        if raw.topic.is_empty() {
            return Err(ProtocolError::TopicEmpty);
        }
        let RawPublish { topic, payload, packet_id, qos, dup, retain, expiry_s, content_type, .. } = raw;
        let publish = Publish { topic, payload, qos, packet_id, dup, retain, expiry_s, content_type };
        self.deliver(Delivery::Publish(publish), sink);
        Ok(())
    }

    /// A message whose topic we do not take is passed over; all else that is wrong with it ends the connection.
    fn unusable<F>(&mut self, header: u8, body: &[u8], error: ProtocolError, sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Delivery<'_>) -> Flow,
    {
        use ProtocolError::{Nul, TopicTooDeep, TopicTooLong, TopicWildcard, Utf8};
        let of_topic = matches!(error, TopicTooDeep { .. } | TopicTooLong { .. } | TopicWildcard)
            || matches!(error, Nul { field } | Utf8 { field } if field == "topic");
        if !of_topic {
            return Err(error);
        }
        let mut reader = Reader::new(body);
        let topic = String::from_utf8_lossy(reader.binary("topic")?).into_owned();
        let qos = (header >> 1) & 3;
        let packet_id = if qos > 0 { reader.packet_id()? } else { 0 };
        self.deliver(Delivery::Unusable { qos, packet_id, topic, reason: "topic", detail: error.to_string() }, sink);
        Ok(())
    }

    /// The packet id of an acknowledgement, behind which MQTT 5 may say more.
    fn packet_id(&self, packet: Packet, mut reader: Reader<'_>) -> Result<u16, ProtocolError> {
        let packet_id = reader.packet_id()?;
        if self.options.version == Version::V5 && !reader.rest.is_empty() {
            reader.u8("reason code")?;
            if !reader.rest.is_empty() {
                props::each(&mut reader, props::IN_ACK, |_, _| Ok(()))?;
            }
        }
        reader.end(packet)?;
        Ok(packet_id)
    }

    fn connack<F>(&mut self, now_us: u64, mut reader: Reader<'_>, sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Delivery<'_>) -> Flow,
    {
        let session_present = reader.u8("acknowledge flags")? & 1 != 0;
        let code = reader.u8("reason code")?;
        let version = self.options.version;
        if code != 0 {
            self.close(BrokerClose::Refused { code, version });
            return Ok(());
        }
        if version == Version::V5 {
            let keep_alive_s = &mut self.keep_alive_s;
            props::each(&mut reader, props::IN_CONNACK, |id, value| {
                if let (props::SERVER_KEEP_ALIVE, Value::Number(seconds @ 1..)) = (id, value) {
                    *keep_alive_s = seconds as u16;
                }
                Ok(())
            })?;
        }
        reader.end(Packet::Connack)?;
        let is_subscribed = session_present && self.is_subscribed && version == Version::V311;
        if is_subscribed {
            self.open(now_us);
        } else {
            self.state = State::AwaitSuback;
            self.answer_by_us = now_us.saturating_add(self.options.answer_timeout_us);
            encode::subscribe(&mut self.out, version, SUBSCRIBE_ID, &self.options.filters, self.options.qos);
        }
        self.deliver(Delivery::Connected { session_present }, sink);
        Ok(())
    }

    fn suback<F>(&mut self, now_us: u64, mut reader: Reader<'_>, sink: &mut F) -> Result<(), ProtocolError>
    where
        F: FnMut(Delivery<'_>) -> Flow,
    {
        if reader.packet_id()? != SUBSCRIBE_ID {
            return Err(ProtocolError::Unexpected { packet: Packet::Suback });
        }
        if self.options.version == Version::V5 {
            props::each(&mut reader, props::IN_ACK, |_, _| Ok(()))?;
        }
        if reader.rest.len() != self.options.filters.len() {
            return Err(ProtocolError::Truncated { field: "reason codes" });
        }
        let granted: Vec<Option<u8>> = reader.rest.iter().map(|&code| (code <= 2).then_some(code)).collect();
        self.open(now_us);
        self.deliver(Delivery::Subscribed { granted: &granted }, sink);
        Ok(())
    }

    fn open(&mut self, now_us: u64) {
        self.state = State::Open;
        self.ping_us = now_us + u64::from(self.keep_alive_s) * 750_000;
    }
}
