//! What the sensors say: seven streams, and two sensors that are set up wrongly.
//!
//! Every message has an id, `<stream>/<device>/<number>` with numbers counted from 0 for each device. JSON carries it in the
//! field `id`, logs at their beginning; the packed rows of a watch have no room for one, and are told by their order.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use weir_logic::ids::Class;

use super::random::Random;
use super::recordings::{AXES, Recordings};

/// Rows of a watch that are sent in one message: half a second.
pub(super) const WATCH_ROWS: usize = 25;
/// The deadband of the stream `level`.
pub(super) const LEVEL_DELTA: f64 = 0.5;
/// Span of the stream `temperature`'s aggregates in milliseconds.
pub(super) const SPAN_MS: i64 = 2_000;
/// Length of a log message.
const LOG_LEN: usize = 4_096;

/// One kind of sensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Rare and important; each is stored.
    Alarm,
    /// Six axes at 50 Hz; a model says what the wearer does.
    Watch,
    /// Each is stored.
    Pump,
    /// Stored when it has moved.
    Level,
    /// Stored as minimum, maximum, mean and count of two seconds.
    Temperature,
    /// Much and unimportant; each is stored when there is room.
    Log,
    /// A pump that sends what is not JSON.
    Garbled,
    /// Something on a topic that no stream wants.
    Stray,
}

impl Kind {
    pub(super) const ALL: [Kind; 8] =
        [Kind::Alarm, Kind::Watch, Kind::Pump, Kind::Level, Kind::Temperature, Kind::Log, Kind::Garbled, Kind::Stray];

    /// The stream that takes it in; none for a stray one.
    pub(super) fn stream(self) -> Option<&'static str> {
        match self {
            Kind::Alarm => Some("alarm"),
            Kind::Watch => Some("watch"),
            Kind::Pump | Kind::Garbled => Some("pump"),
            Kind::Level => Some("level"),
            Kind::Temperature => Some("temperature"),
            Kind::Log => Some("log"),
            Kind::Stray => None,
        }
    }

    /// The class of its stream; strays are counted as bulk.
    pub(super) fn class(self) -> Class {
        match self {
            Kind::Alarm => Class::Critical,
            Kind::Watch => Class::High,
            Kind::Pump | Kind::Level | Kind::Temperature | Kind::Garbled => Class::Normal,
            Kind::Log | Kind::Stray => Class::Bulk,
        }
    }

    /// Devices, and messages a second of each at speed 1.
    fn devices_and_rate(self, recordings: &Recordings) -> (usize, f64) {
        match self {
            Kind::Alarm => (3, 0.1),
            Kind::Watch => (recordings.motions.len(), 50.0 / WATCH_ROWS as f64),
            Kind::Pump => (10, 2.0),
            Kind::Level => (5, 4.0),
            Kind::Temperature => (10, 2.0),
            Kind::Log => (4, 2.0),
            Kind::Garbled | Kind::Stray => (1, 0.1),
        }
    }
}

/// What one MQTT client sends: sensors that take turns.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) name: String,
    pub(super) sensors: Vec<Sensor>,
    /// Messages a second of all its sensors together.
    pub(super) rate_hz: f64,
}

/// One sensor, which makes up its messages one after another.
#[derive(Debug)]
pub(super) struct Sensor {
    pub(super) kind: Kind,
    pub(super) device: String,
    topic: String,
    recordings: Arc<Recordings>,
    /// Which of its kind it is.
    index: usize,
    random: Random,
    next_number: usize,
    value: f64,
}

/// A message to be published, and what its sender remembers of it.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    /// The value in it, where it decides about its fate; else 0.
    pub(super) value: f64,
    /// The time in it, in Unix milliseconds; else 0.
    pub(super) time_ms: i64,
}

/// All clients of a run.
pub(super) fn clients(recordings: &Arc<Recordings>, seed: u64, speed: f64) -> Vec<Client> {
    let mut clients = Vec::new();
    for kind in Kind::ALL {
        let (devices, rate_hz) = kind.devices_and_rate(recordings);
        let sensors: Vec<Sensor> = (0..devices).map(|index| Sensor::new(kind, index, recordings, seed)).collect();
        let rate_hz = rate_hz * speed;
        if kind == Kind::Watch {
            // Every wearer has a client of its own, as a watch would.
            clients.extend(sensors.into_iter().map(|sensor| Client {
                name: sensor.device.clone(),
                sensors: vec![sensor],
                rate_hz,
            }));
        } else {
            let rate_hz = rate_hz * devices as f64;
            clients.push(Client { name: format!("{kind:?}").to_lowercase(), sensors, rate_hz });
        }
    }
    clients
}

impl Sensor {
    fn new(kind: Kind, index: usize, recordings: &Arc<Recordings>, seed: u64) -> Sensor {
        let device = match kind {
            Kind::Watch => recordings.motions[index].wearer.clone(),
            Kind::Garbled => "garbled".to_owned(),
            Kind::Stray => "stray".to_owned(),
            Kind::Alarm | Kind::Pump | Kind::Level | Kind::Temperature | Kind::Log => format!("n{index}"),
        };
        let topic = format!("site/{device}/{}", kind.stream().unwrap_or("unknown"));
        let mut random = Random::new(seed, (kind as u64) << 32 | index as u64);
        let value = 20.0 + 10.0 * random.unit();
        Sensor { kind, device, topic, recordings: recordings.clone(), index, random, next_number: 0, value }
    }

    /// The next message, said at `now_ms` (Unix milliseconds).
    pub(super) fn next(&mut self, now_ms: i64) -> Message {
        let number = self.next_number;
        self.next_number += 1;
        let id = id(self.kind, &self.device, number);
        let (mut value, mut time_ms) = (0.0, 0);
        let payload: Vec<u8> = match self.kind {
            Kind::Alarm => {
                let text = ["door open", "pressure high", "motor hot"][(self.random.next() % 3) as usize];
                format!(r#"{{"id":"{id}","t":{now_ms},"alarm":"{text}","severity":{}}}"#, 1 + number % 3).into_bytes()
            }
            Kind::Pump => {
                let (bar, hz) = (4.0 + self.random.swing() * 0.2, 49.0 + self.random.unit());
                let state = if self.random.unit() < 0.02 { "starting" } else { "running" };
                format!(r#"{{"id":"{id}","t":{now_ms},"bar":{bar:.3},"hz":{hz:.2},"state":"{state}"}}"#).into_bytes()
            }
            Kind::Level => {
                self.walk(0.15);
                value = self.value;
                format!(r#"{{"id":"{id}","metres":{value}}}"#).into_bytes()
            }
            Kind::Temperature => {
                self.next_temperature(number);
                (value, time_ms) = (self.value, now_ms);
                format!(r#"{{"id":"{id}","t":{now_ms},"celsius":{value}}}"#).into_bytes()
            }
            Kind::Watch => packed(&self.recordings.motions[self.index].rows, number),
            Kind::Log => self.log(&id),
            Kind::Garbled => format!("bar=4.1 id={id}").into_bytes(),
            Kind::Stray => format!(r#"{{"id":"{id}"}}"#).into_bytes(),
        };
        Message { topic: self.topic.clone(), payload: payload.into(), value, time_ms }
    }

    /// A step of a random walk, in hundredths so that its text is exact.
    fn walk(&mut self, step: f64) {
        let next = self.value + step * self.random.swing() + (25.0 - self.value) * 0.002;
        self.value = (next * 100.0).round() / 100.0;
    }

    fn next_temperature(&mut self, number: usize) {
        let series = &self.recordings.series;
        if series.is_empty() {
            self.walk(0.1);
        } else {
            let values = &series[self.index % series.len()];
            self.value = values[(number + self.index * 97) % values.len()];
        }
    }

    /// Text of which about half cannot be compressed away, as in real logs.
    fn log(&mut self, id: &str) -> Vec<u8> {
        let mut text = format!("id={id}\n");
        while text.len() < LOG_LEN {
            let words = ["frame decoded", "frame late", "retry", "buffer flushed"];
            let word = words[(self.random.next() % 4) as usize];
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "level=debug unit={} msg=\"{word}\" trace={:016x}{:016x}",
                self.device,
                self.random.next(),
                self.random.next()
            );
        }
        text.truncate(LOG_LEN);
        text.into_bytes()
    }
}

/// The id of a device's message.
pub(super) fn id(kind: Kind, device: &str, number: usize) -> String {
    format!("{}/{device}/{number}", kind.stream().unwrap_or("unknown"))
}

/// The number in the id that a stored payload carries; none if there is no id of this stream and device.
pub(super) fn number_in(payload: &[u8], stream: &str, device: &str) -> Option<usize> {
    let head = std::str::from_utf8(&payload[..payload.len().min(128)]).ok()?;
    let prefix = format!("{stream}/{device}/");
    let digits = head.strip_prefix("id=").or_else(|| head.strip_prefix(r#"{"id":""#))?.strip_prefix(prefix.as_str())?;
    let end = digits.find(|c: char| !c.is_ascii_digit())?;
    digits[..end].parse().ok()
}

/// The rows of message `number` of a recording that starts anew at its end.
pub(super) fn watch_rows(rows: &[[i16; AXES]], number: usize) -> impl Iterator<Item = &[i16; AXES]> {
    (number * WATCH_ROWS..(number + 1) * WATCH_ROWS).map(|at| &rows[at % rows.len()])
}

fn packed(rows: &[[i16; AXES]], number: usize) -> Vec<u8> {
    watch_rows(rows, number).flatten().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_messages(seed: u64) -> Vec<Message> {
        let recordings = Arc::new(Recordings::load(None).unwrap());
        let clients = clients(&recordings, seed, 1.0);
        clients
            .into_iter()
            .flat_map(|client| client.sensors)
            .flat_map(|mut sensor| [sensor.next(1_000), sensor.next(2_000)])
            .collect()
    }

    #[test]
    fn one_seed_gives_one_traffic() {
        let payloads = |seed| first_messages(seed).into_iter().map(|message| message.payload).collect::<Vec<_>>();
        assert_eq!(payloads(7), payloads(7));
        assert_ne!(payloads(7), payloads(8));
    }

    #[test]
    fn every_message_with_an_id_is_known_by_it() {
        for (index, message) in first_messages(1).iter().enumerate() {
            let mut levels = message.topic.split('/').skip(1);
            let (device, stream) = (levels.next().unwrap(), levels.next().unwrap());
            let expected = if stream == "watch" || device == "garbled" { None } else { Some(index % 2) };
            assert_eq!(number_in(&message.payload, stream, device), expected, "{}", message.topic);
        }
    }

    #[test]
    fn the_text_of_a_value_reads_back_as_the_value() {
        for message in first_messages(3).iter().filter(|message| message.value != 0.0) {
            let json: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
            let read = json["metres"].as_f64().or(json["celsius"].as_f64());
            assert_eq!(read, Some(message.value));
        }
    }

    #[test]
    fn a_recording_starts_anew_at_its_end() {
        let rows: Vec<[i16; AXES]> = (0..30).map(|n| [n; AXES]).collect();
        let second: Vec<i16> = watch_rows(&rows, 1).map(|row| row[0]).collect();
        assert_eq!(second[..6], [25, 26, 27, 28, 29, 0]);
    }
}
