//! A sensor with an MQTT client of its own making: keeps what has no PUBACK and sends it again when it reconnects.

use std::collections::VecDeque;

use super::rng::Rng;
use crate::ids::Class;

/// What the oracle expects to become of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Record(Class),
    Folded,
    Refused,
}

#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) id: u64,
    pub(super) fate: Fate,
    topic: String,
    payload: Vec<u8>,
    qos: u8,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct ClientPlan {
    pub(super) v5: bool,
    pub(super) inflight_max: usize,
    pub(super) messages: u64,
    pub(super) gap_us: u64,
    pub(super) len_max: u64,
    pub(super) qos0_percent: u64,
    /// The only stream it publishes to, or all.
    pub(super) only: Option<usize>,
}

pub(super) struct Client {
    pub(super) plan: ClientPlan,
    index: usize,
    pub(super) conn: Option<u64>,
    pub(super) open: bool,
    left: u64,
    sent: u64,
    queue: VecDeque<Message>,
    unacked: VecDeque<(u16, Message)>,
    next_id: u16,
    input: Vec<u8>,
}

/// What a client made of the bytes it got.
pub(super) enum Heard {
    Connack,
    /// The message is off its hands.
    Puback(u64),
}

impl Client {
    pub(super) fn new(index: usize, plan: ClientPlan) -> Client {
        let (left, queue, unacked) = (plan.messages, VecDeque::new(), VecDeque::new());
        Client { plan, index, conn: None, open: false, left, sent: 0, queue, unacked, next_id: 0, input: Vec::new() }
    }

    pub(super) fn is_done(&self) -> bool {
        self.left == 0 && self.queue.is_empty() && self.unacked.is_empty()
    }

    pub(super) fn state(&self) -> String {
        format!(
            "left {} queued {} unacked {:?}",
            self.left,
            self.queue.len(),
            self.unacked.iter().map(|(_, m)| m.id).collect::<Vec<_>>()
        )
    }

    /// The next message of its life, if there is one.
    pub(super) fn produce(&mut self, rng: &mut Rng) -> Option<&Message> {
        self.left = self.left.checked_sub(1)?;
        self.sent += 1;
        let id = (self.index as u64 + 1) * 1_000_000 + self.sent;
        let stream = self.plan.only.unwrap_or_else(|| rng.range(0, 8) as usize);
        let (topic, payload, fate) = match stream {
            0..=3 => {
                let class = Class::ALL[stream];
                let mut payload = format!("{id} ").into_bytes();
                for _ in 0..rng.range(0, self.plan.len_max) {
                    payload.push(rng.next() as u8);
                }
                (format!("raw/{}/{}", class.name(), rng.range(0, 3)), payload, Fate::Record(class))
            }
            4 => (format!("agg/d{}", rng.range(0, 2)), b"21.5".to_vec(), Fate::Folded),
            5 => (format!("verdict/d{}", rng.range(0, 2)), format!("-{}", self.sent).into_bytes(), Fate::Folded),
            6 => {
                let kept = rng.percent(50);
                let payload = if kept { id.to_string() } else { format!("-{id}") };
                (
                    format!("keep/d{}", rng.range(0, 2)),
                    payload.into(),
                    if kept { Fate::Record(Class::High) } else { Fate::Folded },
                )
            }
            7 => ("nobody/wants".to_owned(), b"x".to_vec(), Fate::Refused),
            _ => ("agg/d0".to_owned(), b"no number".to_vec(), Fate::Refused),
        };
        let qos = u8::from(!rng.percent(self.plan.qos0_percent));
        self.queue.push_back(Message { id, fate, topic, payload, qos });
        self.queue.back()
    }

    pub(super) fn connect(&mut self, conn: u64) -> Vec<u8> {
        self.conn = Some(conn);
        self.open = false;
        self.input.clear();
        let mut body = field(b"MQTT");
        body.extend_from_slice(if self.plan.v5 { &[5, 2, 0, 0, 0] } else { &[4, 2, 0, 0] });
        body.extend(field(format!("sensor{}", self.index).as_bytes()));
        packet(0x10, &body)
    }

    /// What it sends on a new connection: all that has no PUBACK, in the old order.
    pub(super) fn resend(&mut self) -> Vec<(Option<u16>, u64, Vec<u8>)> {
        self.open = true;
        let v5 = self.plan.v5;
        self.unacked
            .iter()
            .map(|(packet_id, message)| (Some(*packet_id), message.id, publish(v5, message, *packet_id, true)))
            .collect()
    }

    /// What it may send now.
    pub(super) fn pump(&mut self) -> Vec<(Option<u16>, u64, Vec<u8>)> {
        let mut out = Vec::new();
        while self.open && (self.unacked.len() < self.plan.inflight_max) {
            let Some(message) = self.queue.pop_front() else { break };
            if message.qos == 0 {
                out.push((None, message.id, publish(self.plan.v5, &message, 0, false)));
                continue;
            }
            self.next_id = if self.next_id == u16::MAX { 1 } else { self.next_id + 1 };
            out.push((Some(self.next_id), message.id, publish(self.plan.v5, &message, self.next_id, false)));
            self.unacked.push_back((self.next_id, message));
        }
        out
    }

    pub(super) fn lost(&mut self) {
        self.conn = None;
        self.open = false;
    }

    pub(super) fn hear(&mut self, bytes: &[u8]) -> Vec<Heard> {
        self.input.extend_from_slice(bytes);
        let mut heard = Vec::new();
        while let Some((header, body)) = take_packet(&mut self.input) {
            match header {
                0x20 => {
                    assert_eq!(body[1], 0, "client {} was refused", self.index);
                    heard.push(Heard::Connack);
                }
                0x40 => {
                    let packet_id = u16::from_be_bytes([body[0], body[1]]);
                    let (expected, message) = self.unacked.pop_front().expect("a PUBACK for a message that waits for it");
                    assert_eq!(packet_id, expected, "PUBACKs come in the order of the messages");
                    let refused = matches!(message.fate, Fate::Refused) && self.plan.v5;
                    assert_eq!(body.len() > 2, refused, "message {} got PUBACK {body:?}", message.id);
                    heard.push(Heard::Puback(message.id));
                }
                0xe0 => {}
                _ => panic!("client {} got packet {header:02x}", self.index),
            }
        }
        heard
    }
}

/// The PUBACKs in what the gateway writes at once.
pub(super) fn pubacks(bytes: &[u8]) -> Vec<u16> {
    let mut input = bytes.to_vec();
    let mut ids = Vec::new();
    while let Some((header, body)) = take_packet(&mut input) {
        if header == 0x40 {
            ids.push(u16::from_be_bytes([body[0], body[1]]));
        }
    }
    assert!(input.is_empty(), "the gateway writes whole packets");
    ids
}

/// The id a payload starts with; none for those that stand for no record.
pub(super) fn id_of(payload: &[u8]) -> Option<u64> {
    let digits: Vec<u8> = payload.iter().copied().take_while(u8::is_ascii_digit).collect();
    let id: u64 = std::str::from_utf8(&digits).ok()?.parse().ok()?;
    (id > 1_000_000).then_some(id)
}

fn publish(v5: bool, message: &Message, packet_id: u16, dup: bool) -> Vec<u8> {
    let mut body = field(message.topic.as_bytes());
    if message.qos == 1 {
        body.extend_from_slice(&packet_id.to_be_bytes());
    }
    if v5 {
        body.push(0);
    }
    body.extend_from_slice(&message.payload);
    packet(0x30 | message.qos << 1 | u8::from(dup) << 3, &body)
}

fn field(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn packet(header: u8, body: &[u8]) -> Vec<u8> {
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

fn take_packet(input: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (mut len, mut at) = (0usize, 1);
    loop {
        let byte = *input.get(at)?;
        len |= usize::from(byte & 0x7f) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    if input.len() < at + len {
        return None;
    }
    let header = input[0];
    let body = input[at..at + len].to_vec();
    input.drain(..at + len);
    Some((header, body))
}
