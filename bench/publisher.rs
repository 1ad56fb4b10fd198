//! An MQTT 3.1.1 publisher that costs little and knows when each message was sent and acknowledged.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;

/// What a publisher sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    /// 200 bytes of JSON.
    Json,
    /// 25 samples of 6 channels, packed `i16`.
    Packed,
    /// 128 of them: a whole window of the reference models.
    Window,
}

/// What one publisher is to do.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) index: u32,
    /// Messages to publish, unless it is stopped before.
    pub(crate) messages: u64,
    /// When it is set, no more are published.
    pub(crate) stop: Arc<AtomicBool>,
    /// Messages without PUBACK at most.
    pub(crate) inflight: u16,
    /// Messages a second; `None` for as fast as PUBACKs come.
    pub(crate) rate: Option<f64>,
    pub(crate) payload: Payload,
}

/// What came of it.
pub(crate) struct Done {
    /// From publish to PUBACK, in microseconds.
    pub(crate) ack_us: Histogram<u64>,
    /// When the last PUBACK came.
    pub(crate) ended: Instant,
}

const PAYLOAD_LEN: usize = 200;
const BATCH_LEN: usize = 32 * 1024;

/// Publishes all messages and waits for all PUBACKs.
pub(crate) fn run(addr: SocketAddr, mut task: Task, start: Instant) -> anyhow::Result<Done> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    connect(&mut stream, task.index)?;
    let topic = match task.payload {
        Payload::Json => format!("bench/p{}", task.index),
        Payload::Packed | Payload::Window => format!("motion/p{}", task.index),
    };
    let mut sent_at = vec![start; usize::from(u16::MAX) + 1];
    let mut ack_us = Histogram::new_with_bounds(1, 600_000_000, 3)?;
    let (mut sent, mut acked, mut packet_id) = (0u64, 0u64, 0u16);
    let (mut out, mut input, mut rest) = (Vec::with_capacity(BATCH_LEN + 512), vec![0; 16 * 1024], Vec::new());
    let mut noise = 0x9e37_79b9_7f4a_7c15u64 ^ u64::from(task.index + 1);
    while acked < task.messages {
        let now = Instant::now();
        if task.stop.load(Relaxed) {
            if acked == sent {
                break;
            }
            task.messages = sent;
        }
        let due = match task.rate {
            Some(rate) => ((now.duration_since(start).as_secs_f64() * rate) as u64 + 1).min(task.messages),
            None => task.messages,
        };
        out.clear();
        while sent < due && sent - acked < u64::from(task.inflight) && out.len() < BATCH_LEN {
            packet_id = packet_id.checked_add(1).unwrap_or(1);
            sent_at[usize::from(packet_id)] = now;
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            match task.payload {
                Payload::Json => message(&mut out, &topic, packet_id, sent, noise),
                Payload::Packed => packed(&mut out, &topic, packet_id, noise, 25),
                Payload::Window => packed(&mut out, &topic, packet_id, noise, 128),
            }
            sent += 1;
        }
        stream.write_all(&out)?;
        // With room left and messages due, only look whether PUBACKs came; else wait for one or for the next message.
        let wait = match task.rate {
            Some(_) => Duration::from_micros(500),
            None if sent - acked < u64::from(task.inflight) && sent < task.messages => continue,
            None => Duration::from_secs(60),
        };
        stream.set_read_timeout(Some(wait))?;
        match stream.read(&mut input) {
            Ok(0) => bail!("the gateway closed the connection"),
            Ok(len) => {
                let now = Instant::now();
                rest.extend_from_slice(&input[..len]);
                for puback in rest.chunks_exact(4) {
                    if puback[..2] != [0x40, 2] {
                        bail!("not a PUBACK: {puback:02x?}");
                    }
                    let id = u16::from_be_bytes([puback[2], puback[3]]);
                    ack_us.saturating_record(now.duration_since(sent_at[usize::from(id)]).as_micros() as u64);
                    acked += 1;
                }
                rest.drain(..rest.len() / 4 * 4);
            }
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if task.rate.is_none() {
                    bail!("no PUBACK for {wait:?}: {sent} sent, {acked} acknowledged");
                }
            }
            Err(err) => return Err(err.into()),
        }
    }
    Ok(Done { ack_us, ended: Instant::now() })
}

pub(crate) fn connect(stream: &mut TcpStream, index: u32) -> anyhow::Result<()> {
    let id = format!("bench-{index}");
    let mut packet = vec![0x10, (12 + id.len()) as u8, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, id.len() as u8];
    packet.extend_from_slice(id.as_bytes());
    stream.write_all(&packet)?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).context("no CONNACK")?;
    if connack[3] != 0 {
        bail!("refused: {connack:02x?}");
    }
    Ok(())
}

/// Appends a PUBLISH with a payload of [`PAYLOAD_LEN`] bytes: JSON as a sensor sends it, with values that differ.
fn message(out: &mut Vec<u8>, topic: &str, packet_id: u16, id: u64, noise: u64) {
    head(out, topic, packet_id, PAYLOAD_LEN);
    let start = out.len();
    let (a, b, c) = (noise % 1_000, noise / 1_000 % 10_000, noise / 10_000_000 % 100_000);
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        r#"{{"id":{id},"device":"press-hall-3/press-17","temperature":{}.{a:03},"pressure":{}.{b:04},"vibration":0.{c:05},"unit":"SI","state":"running","firmware":"4.2.11","note":""#,
        20 + a % 7,
        3 + b % 2
    );
    out.resize(start + PAYLOAD_LEN - 2, b'-');
    out.extend_from_slice(b"\"}");
}

/// Appends a PUBLISH with so many samples of 6-axis motion.
fn packed(out: &mut Vec<u8>, topic: &str, packet_id: u16, noise: u64, samples: u32) {
    let values = samples * 6;
    head(out, topic, packet_id, 2 * values as usize);
    for i in 0..values {
        let value = (noise.rotate_left(i) % 2_000) as i16 - 1_000;
        out.extend_from_slice(&value.to_le_bytes());
    }
}

pub(crate) fn head(out: &mut Vec<u8>, topic: &str, packet_id: u16, payload_len: usize) {
    let remaining = 2 + topic.len() + 2 + payload_len;
    out.extend_from_slice(&[0x32, (remaining % 128) as u8 | 0x80, (remaining / 128) as u8, 0, topic.len() as u8]);
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(&packet_id.to_be_bytes());
}
