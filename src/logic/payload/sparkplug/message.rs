//! One Sparkplug B message: what its topic says, and its metrics.

use super::protobuf::{Fields, Value, malformed};
use crate::payload::{DecodeError, ROWS_MAX, TIME_US_MAX};

/// What a topic says of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparkplugTopic<'t> {
    /// What kind of message it is.
    pub kind: SparkplugKind,
    /// Group and edge node, as `group/node`, are unique together.
    pub group: &'t str,
    /// The edge node.
    pub node: &'t str,
    /// The device behind it; none if the message is of the node itself.
    pub device: Option<&'t str>,
}

/// The kinds of messages that carry data or say whether there will be any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SparkplugKind {
    /// All metrics, with their names, types, aliases and values.
    Birth,
    /// What has changed.
    Data,
    /// No data until the next birth.
    Death,
}

impl<'t> SparkplugTopic<'t> {
    /// Reads `spBv1.0/GROUP/TYPE/NODE[/DEVICE]`, which a bridge may have put behind a prefix of its own; none if the topic is
    /// another, or one of commands or of the state of an application.
    pub fn parse(topic: &'t str) -> Option<SparkplugTopic<'t>> {
        let mut levels = topic.split('/').skip_while(|level| *level != NAMESPACE).skip(1);
        let (group, word, node, device) = (levels.next()?, levels.next()?, levels.next()?, levels.next());
        let (is_of_device, kind) = SparkplugTopic::kind(word)?;
        let is_whole = levels.next().is_none() && is_of_device == device.is_some();
        is_whole.then_some(SparkplugTopic { kind, group, node, device })
    }

    /// Whether a level of a topic is the word for a type that [`SparkplugTopic::parse`] reads.
    pub fn is_kind(level: &str) -> bool {
        SparkplugTopic::kind(level).is_some()
    }

    fn kind(word: &str) -> Option<(bool, SparkplugKind)> {
        Some(match word {
            "NBIRTH" => (false, SparkplugKind::Birth),
            "NDATA" => (false, SparkplugKind::Data),
            "NDEATH" => (false, SparkplugKind::Death),
            "DBIRTH" => (true, SparkplugKind::Birth),
            "DDATA" => (true, SparkplugKind::Data),
            "DDEATH" => (true, SparkplugKind::Death),
            _ => return None,
        })
    }
}

/// The first level of every topic of Sparkplug B.
const NAMESPACE: &str = "spBv1.0";

/// A message that was read from front to back once, so that its metrics can be taken without errors.
#[derive(Debug, Clone)]
pub(super) struct Message<'a> {
    payload: &'a [u8],
    /// Milliseconds since the Unix epoch.
    timestamp_ms: Option<u64>,
    /// 0 to 255, one higher with each message of a node; deaths of nodes have none.
    pub(super) seq: Option<u64>,
    /// Which connection of the node a birth or death belongs to.
    pub(super) birth_seq: Option<u64>,
    /// True if no metric says when it was.
    pub(super) is_timeless: bool,
}

/// One metric.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Metric<'a> {
    /// None where the alias stands for it.
    pub(super) name: Option<&'a [u8]>,
    pub(super) alias: Option<u64>,
    timestamp_ms: Option<u64>,
    pub(super) datatype: Option<u64>,
    /// It was recorded earlier, and says nothing of now.
    pub(super) is_historical: bool,
    is_null: bool,
    value: MetricValue,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum MetricValue {
    #[default]
    Absent,
    Integer(u64),
    Float(f64),
    /// Text, bytes, and extensions of others.
    Opaque,
    /// A data set or a template.
    Structure,
}

/// A value as a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Reading {
    Number(f64),
    /// There is none at present: null, or not finite.
    Unknown,
    /// It is no number.
    Skipped,
}

/// The metric that tells births and deaths of a node apart.
const BIRTH_SEQ: &[u8] = b"bdSeq";
/// What the payload says instead of a UUID if its body is compressed.
const COMPRESSED: &[u8] = b"SPBV1.0_COMPRESSED";

impl<'a> Message<'a> {
    /// Reads the whole message.
    ///
    /// # Errors
    /// If it is no Sparkplug B message, is compressed, has more metrics than a message may have rows, or times out of range.
    pub(super) fn read(payload: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let mut message = Message { payload, timestamp_ms: None, seq: None, birth_seq: None, is_timeless: false };
        let mut fields = Fields::new(payload, payload.len());
        let (mut metrics, mut timed) = (0, 0);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Varint(timestamp_ms)) => message.timestamp_ms = Some(timestamp_ms),
                (2, Value::Bytes(bytes)) => {
                    let metric = Metric::read(bytes, fields.at())?;
                    metrics += 1;
                    timed += usize::from(metric.timestamp_ms.is_some());
                    check_time(metric.timestamp_ms)?;
                    if let (Some(BIRTH_SEQ), MetricValue::Integer(birth_seq)) = (metric.name, metric.value) {
                        message.birth_seq = Some(birth_seq);
                    }
                }
                (3, Value::Varint(seq)) => message.seq = Some(seq),
                (4, Value::Bytes(COMPRESSED)) => return Err(DecodeError::Compressed),
                (1..=3, _) => return Err(malformed(fields.at(), "a field of another type")),
                _ => {}
            }
        }
        check_time(message.timestamp_ms)?;
        message.is_timeless = message.timestamp_ms.is_none() && timed == 0;
        if message.timestamp_ms.is_none() && !(timed == 0 || timed == metrics) {
            return Err(DecodeError::MixedTimes);
        }
        if metrics > ROWS_MAX { Err(DecodeError::TooManyRows) } else { Ok(message) }
    }

    /// Its metrics, in order.
    pub(super) fn metrics(&self) -> impl Iterator<Item = Metric<'a>> {
        let mut fields = Fields::new(self.payload, self.payload.len());
        std::iter::from_fn(move || {
            loop {
                if let (2, Value::Bytes(bytes)) = fields.next().ok().flatten()? {
                    return Metric::read(bytes, fields.at()).ok();
                }
            }
        })
    }

    /// When a metric had its value, in microseconds since the Unix epoch; 0 in a message without times.
    pub(super) fn time_us(&self, metric: &Metric<'_>) -> i64 {
        let timestamp_ms = metric.timestamp_ms.or(self.timestamp_ms).unwrap_or(0);
        timestamp_ms as i64 * 1_000
    }
}

impl<'a> Metric<'a> {
    fn read(bytes: &'a [u8], end: usize) -> Result<Metric<'a>, DecodeError> {
        let mut metric = Metric::default();
        let mut fields = Fields::new(bytes, end);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Bytes(name)) => metric.name = Some(name).filter(|name| !name.is_empty()),
                (2, Value::Varint(alias)) => metric.alias = Some(alias),
                (3, Value::Varint(timestamp_ms)) => metric.timestamp_ms = Some(timestamp_ms),
                (4, Value::Varint(datatype)) => metric.datatype = Some(datatype),
                (5, Value::Varint(flag)) => metric.is_historical = flag != 0,
                (7, Value::Varint(flag)) => metric.is_null = flag != 0,
                (10 | 11 | 14, Value::Varint(number)) => metric.value = MetricValue::Integer(number),
                (12, Value::Fixed32(bits)) => metric.value = MetricValue::Float(f64::from(f32::from_bits(bits))),
                (13, Value::Fixed64(bits)) => metric.value = MetricValue::Float(f64::from_bits(bits)),
                (15 | 16 | 19, Value::Bytes(_)) => metric.value = MetricValue::Opaque,
                (17 | 18, Value::Bytes(_)) => metric.value = MetricValue::Structure,
                (1..=7 | 10..=19, _) => return Err(malformed(fields.at(), "a field of another type")),
                _ => {}
            }
        }
        Ok(metric)
    }

    /// True for a data set or a template, which have no number.
    pub(super) fn is_structure(&self) -> bool {
        self.value == MetricValue::Structure
    }

    /// Its value, of the type that it says or else that its birth said.
    pub(super) fn reading(&self, born_as: Option<u64>) -> Reading {
        match self.value {
            MetricValue::Absent => Reading::Unknown,
            _ if self.is_null => Reading::Unknown,
            MetricValue::Integer(bits) => Reading::Number(integer(bits, self.datatype.or(born_as))),
            MetricValue::Float(value) if value.is_finite() => Reading::Number(value),
            MetricValue::Float(_) => Reading::Unknown,
            MetricValue::Opaque | MetricValue::Structure => Reading::Skipped,
        }
    }
}

/// An integer of this type: signed ones are sent as the unsigned ones with the same bits, in more bits than they have.
fn integer(bits: u64, datatype: Option<u64>) -> f64 {
    match datatype {
        Some(1) => f64::from(bits as i8),
        Some(2) => f64::from(bits as i16),
        Some(3) => f64::from(bits as i32),
        Some(4) => bits as i64 as f64,
        Some(11) => f64::from(u8::from(bits != 0)),
        _ => bits as f64,
    }
}

fn check_time(timestamp_ms: Option<u64>) -> Result<(), DecodeError> {
    match timestamp_ms {
        Some(timestamp_ms) if timestamp_ms > TIME_US_MAX as u64 / 1_000 => {
            Err(DecodeError::TimeRange { pointer: "timestamp".into() })
        }
        _ => Ok(()),
    }
}
