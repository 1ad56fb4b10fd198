//! What publishers send, and what should become of it.

use super::random::Random;

/// What should become of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// A record of its own, with the payload as it is.
    Record,
    /// Nothing: the stream keeps other messages.
    Filtered,
    /// Part of the aggregate of its device and span.
    Folded {
        /// The sample's own time in Unix microseconds.
        time_us: i64,
        /// Its value.
        value: f64,
    },
    /// Acknowledged with this reason (version 5) and not stored.
    Refused(u8),
}

/// One message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where it goes.
    pub topic: String,
    /// Unique over all messages of a test.
    pub payload: Vec<u8>,
    /// 0 to 2; the box itself takes no QoS 2.
    pub qos: u8,
    /// The stream that takes it.
    pub stream: &'static str,
    /// What the wildcard of the stream matches.
    pub device: String,
    /// The lane of the stream.
    pub lane: &'static str,
    /// What should become of it.
    pub fate: Fate,
}

/// Streams of [`mixed`]: four classes of opaque data, and one that rules filter.
pub const MIXED_STREAMS: &str = r#"
[[stream]]
name = "alarms"
topics = ["site/+/alarm"]
class = "critical"
[[stream]]
name = "states"
topics = ["site/+/state"]
class = "high"
[[stream]]
name = "values"
topics = ["site/+/value"]
[[stream]]
name = "dumps"
topics = ["site/+/dump"]
class = "bulk"
[[stream]]
name = "rules"
topics = ["site/+/rule"]
class = "high"
payload = { format = "json", fields = ["/v"] }
keep = { samples = [{ channel = 0, above = 80.0 }] }
"#;

/// The `n`-th message of a client that uses every class, rules, and what cannot be used.
pub fn mixed(client: usize, n: u32) -> Message {
    let mut random = Random::new((client as u64) << 32 | u64::from(n));
    let id = format!("{client}-{n}");
    let qos = if random.chance(5) { 0 } else { 1 };
    let kind = random.between(0, 100);
    let (stream, last, lane) = match kind {
        0..10 => ("alarms", "alarm", "critical"),
        10..30 => ("states", "state", "high"),
        30..60 => ("values", "value", "normal"),
        60..80 => ("dumps", "dump", "bulk"),
        80..95 => ("rules", "rule", "high"),
        95..98 => ("rules", "rule", "high"),
        _ => ("none", "unknown", "none"),
    };
    let (payload, fate) = match kind {
        0..80 => (opaque(&id, &mut random), Fate::Record),
        80..95 => {
            let v = random.between(0, 160);
            let payload = format!("{{\"id\":\"{id}\",\"v\":{v}}}").into_bytes();
            (payload, if v > 80 { Fate::Record } else { Fate::Filtered })
        }
        // JSON that ends too early: v5 "payload format invalid".
        95..98 => (format!("{{\"id\":\"{id}\",\"v\":").into_bytes(), Fate::Refused(0x99)),
        // A topic nobody wants: v5 "no matching subscribers".
        _ => (opaque(&id, &mut random), Fate::Refused(0x10)),
    };
    Message { topic: format!("site/{client}/{last}"), payload, qos, stream, device: client.to_string(), lane, fate }
}

/// Text for some, for others bytes that are no text.
fn opaque(id: &str, random: &mut Random) -> Vec<u8> {
    let mut payload = format!("{id}:").into_bytes();
    let len = random.between(0, 400);
    if random.chance(50) {
        payload.extend((0..len).map(|_| random.between(32, 127) as u8));
    } else {
        payload.extend((0..len).map(|_| random.next_u64() as u8));
        payload.push(0xff);
    }
    payload
}

/// The stream of [`folded`].
pub const FOLDED_STREAMS: &str = r#"
[[stream]]
name = "temperature"
topics = ["site/+/temperature"]
fidelity = "aggregate"
payload = { format = "json", fields = ["/v"], time = "/t", time_unit = "ms" }
aggregate = { every = "1s", reorder_max = "200ms" }
"#;

/// Length of a span of [`FOLDED_STREAMS`].
pub const FOLD_EVERY_US: i64 = 1_000_000;

/// The `n`-th message of a client whose samples are 20 ms apart from `start_ms` on, and are folded.
pub fn folded(client: usize, n: u32, start_ms: i64) -> Message {
    let (time_ms, v) = (start_ms + i64::from(n) * 20, f64::from(n % 997) + 0.5);
    Message {
        topic: format!("site/{client}/temperature"),
        payload: format!("{{\"id\":\"{client}-{n}\",\"v\":{v},\"t\":{time_ms}}}").into_bytes(),
        qos: 1,
        stream: "temperature",
        device: client.to_string(),
        lane: "normal",
        fate: Fate::Folded { time_us: time_ms * 1_000, value: v },
    }
}
