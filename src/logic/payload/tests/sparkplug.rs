//! Sparkplug B: messages that `prost` encodes, the life of nodes and devices, and a model of what they hold.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message as _;

use super::*;

/// The parts of a payload that are read, as the published schema numbers them.
#[derive(Clone, PartialEq, prost::Message)]
struct Payload {
    #[prost(uint64, optional, tag = "1")]
    timestamp: Option<u64>,
    #[prost(message, repeated, tag = "2")]
    metrics: Vec<Metric>,
    #[prost(uint64, optional, tag = "3")]
    seq: Option<u64>,
    #[prost(string, optional, tag = "4")]
    uuid: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metric {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(uint64, optional, tag = "2")]
    alias: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "4")]
    datatype: Option<u32>,
    #[prost(bool, optional, tag = "5")]
    is_historical: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    is_null: Option<bool>,
    #[prost(oneof = "Value", tags = "10, 11, 12, 13, 14, 15, 16, 17")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(uint32, tag = "10")]
    Int(u32),
    #[prost(uint64, tag = "11")]
    Long(u64),
    #[prost(float, tag = "12")]
    Float(f32),
    #[prost(double, tag = "13")]
    Double(f64),
    #[prost(bool, tag = "14")]
    Boolean(bool),
    #[prost(string, tag = "15")]
    Text(String),
    #[prost(bytes, tag = "16")]
    Bytes(Vec<u8>),
    #[prost(message, tag = "17")]
    DataSet(Payload),
}

const INT8: u32 = 1;
const INT32: u32 = 3;
const INT64: u32 = 4;
const DOUBLE: u32 = 10;
const NOW_MS: u64 = 1_700_000_000_000;

fn named(name: &str, alias: u64, datatype: u32, value: Value) -> Metric {
    Metric { name: Some(name.into()), alias: Some(alias), datatype: Some(datatype), value: Some(value), ..Metric::default() }
}

fn aliased(alias: u64, value: Value) -> Metric {
    Metric { alias: Some(alias), value: Some(value), ..Metric::default() }
}

fn payload(seq: u64, metrics: Vec<Metric>) -> Payload {
    Payload { timestamp: Some(NOW_MS + seq), metrics, seq: Some(seq), uuid: None }
}

fn birth_seq(number: u64) -> Metric {
    Metric { name: Some("bdSeq".into()), datatype: Some(INT64), value: Some(Value::Long(number)), ..Metric::default() }
}

/// One stream, its nodes, and what came of the last message.
struct Listener {
    decoder: Decoder,
    nodes: SparkplugNodes,
    samples: Samples,
}

impl Listener {
    fn new(fields: &[&str]) -> Listener {
        let decoder = decoder(&serde_json::json!({ "format": "sparkplug", "fields": fields }).to_string());
        Listener { decoder, nodes: SparkplugNodes::new(7), samples: Samples::new() }
    }

    /// Takes in a message on `spBv1.0/plant/` and the rest of a topic.
    fn hear(&mut self, topic: &str, payload: &Payload) -> Result<Heard, DecodeError> {
        self.hear_bytes(topic, &payload.encode_to_vec())
    }

    fn hear_bytes(&mut self, topic: &str, payload: &[u8]) -> Result<Heard, DecodeError> {
        let topic = format!("spBv1.0/plant/{topic}");
        let topic = SparkplugTopic::parse(&topic).expect("a topic of Sparkplug B");
        let decoder = self.decoder.sparkplug().expect("the format is Sparkplug B");
        self.nodes.message((0, decoder), &topic, payload, &mut self.samples)
    }

    fn rows(&self) -> Vec<Vec<f64>> {
        (0..self.samples.rows()).map(|row| self.samples.row(row).to_vec()).collect()
    }

    fn born() -> Listener {
        let mut listener = Listener::new(&["rpm", "temp"]);
        let metrics = vec![birth_seq(4)];
        assert_eq!(listener.hear("NBIRTH/n1", &payload(0, metrics)), Ok(Heard::Birth));
        let metrics = vec![named("rpm", 10, INT32, Value::Int(900)), named("temp", 11, DOUBLE, Value::Double(20.5))];
        assert_eq!(listener.hear("DBIRTH/n1/d1", &payload(1, metrics)), Ok(Heard::Birth));
        assert_eq!(listener.rows(), [[900.0, 20.5]]);
        listener
    }
}

#[test]
fn topics_say_what_a_message_is() {
    let parse = SparkplugTopic::parse;
    let topic = SparkplugTopic { kind: SparkplugKind::Data, group: "g", node: "n", device: Some("d") };
    assert_eq!(parse("spBv1.0/g/DDATA/n/d"), Some(topic));
    assert_eq!(parse("site/7/spBv1.0/g/DDATA/n/d"), Some(topic));
    assert_eq!(parse("spBv1.0/g/NBIRTH/n"), Some(SparkplugTopic { kind: SparkplugKind::Birth, device: None, ..topic }));
    assert_eq!(parse("spBv1.0/g/NDEATH/n").map(|topic| topic.kind), Some(SparkplugKind::Death));
    for other in [
        "spBv1.0/g/DDATA/n",
        "spBv1.0/g/NDATA/n/d",
        "spBv1.0/g/DDATA/n/d/e",
        "spBv1.0/g/NCMD/n",
        "spBv1.0/STATE/host",
        "g/DDATA/n/d",
    ] {
        assert_eq!(parse(other), None, "{other}");
    }
}

#[test]
fn data_are_read_by_the_aliases_of_the_birth_and_hold_what_did_not_change() {
    let mut listener = Listener::born();
    assert_eq!(listener.hear("DDATA/n1/d1", &payload(2, vec![aliased(11, Value::Double(21.0))])), Ok(Heard::Data));
    assert_eq!((listener.rows(), listener.samples.time_us()), (vec![vec![900.0, 21.0]], Some((NOW_MS as i64 + 2) * 1_000)));
    assert_eq!(listener.hear("DDATA/n1/d1", &payload(3, vec![aliased(10, Value::Int(-5_i32 as u32))])), Ok(Heard::Data));
    assert_eq!(listener.rows(), [[-5.0, 21.0]]);
    // A metric that is no channel makes no row.
    assert_eq!(listener.hear("DDATA/n1/d1", &payload(4, vec![aliased(99, Value::Int(1))])), Ok(Heard::Data));
    assert!(listener.rows().is_empty());
    // Two times are two rows.
    let at = |ms, value| Metric { timestamp: Some(NOW_MS + ms), ..aliased(10, Value::Int(value)) };
    assert_eq!(listener.hear("DDATA/n1/d1", &payload(5, vec![at(9, 2), at(8, 1)])), Ok(Heard::Data));
    assert_eq!(listener.rows(), [[1.0, 21.0], [2.0, 21.0]]);
    // Another device with the same aliases is another device.
    assert_eq!(listener.hear("DDATA/n1/d2", &payload(6, vec![aliased(10, Value::Int(7))])), Ok(Heard::Unborn));
    assert!(listener.rows().is_empty());
    let counters = listener.nodes.counters();
    assert_eq!((counters.births, counters.unborn, counters.seq_missing), (2, 1, 0));
}

#[test]
fn every_number_type_is_read_with_its_sign() {
    let value = |datatype: u32, value: Value| {
        let mut listener = Listener::new(&["v"]);
        listener.hear("NBIRTH/n", &payload(0, vec![named("v", 1, datatype, value)])).expect("it is read");
        listener.rows()
    };
    assert_eq!(value(INT8, Value::Int(0xff)), [[-1.0]]);
    assert_eq!(value(INT8, Value::Int(0xffff_ff80)), [[-128.0]]);
    assert_eq!(value(2, Value::Int(0x8000)), [[-32768.0]]);
    assert_eq!(value(INT32, Value::Int(0xffff_fffe)), [[-2.0]]);
    assert_eq!(value(INT64, Value::Long(u64::MAX)), [[-1.0]]);
    assert_eq!(value(5, Value::Int(0xff)), [[255.0]]);
    assert_eq!(value(7, Value::Int(u32::MAX)), [[4294967295.0]]);
    assert_eq!(value(8, Value::Long(u64::MAX)), [[u64::MAX as f64]]);
    assert_eq!(value(9, Value::Float(1.5)), [[1.5]]);
    assert_eq!(value(11, Value::Boolean(true)), [[1.0]]);
    assert_eq!(value(13, Value::Long(NOW_MS)), [[NOW_MS as f64]]);
    assert!(value(12, Value::Text("7".into())).is_empty());
}

#[test]
fn what_is_unknown_makes_no_row_until_it_is_known_again() {
    let mut listener = Listener::born();
    let null = Metric { is_null: Some(true), ..aliased(11, Value::Double(0.0)) };
    listener.hear("DDATA/n1/d1", &payload(2, vec![null, aliased(10, Value::Int(1))])).expect("it is read");
    assert!(listener.rows().is_empty());
    listener.hear("DDATA/n1/d1", &payload(3, vec![aliased(11, Value::Double(f64::NAN))])).expect("it is read");
    assert!(listener.rows().is_empty());
    listener.hear("DDATA/n1/d1", &payload(4, vec![aliased(11, Value::Double(3.0))])).expect("it is read");
    assert_eq!(listener.rows(), [[1.0, 3.0]]);
    let metrics = vec![
        aliased(11, Value::Text("hot".into())),
        aliased(50, Value::DataSet(Payload::default())),
        aliased(10, Value::Bytes(vec![1])),
    ];
    listener.hear("DDATA/n1/d1", &payload(5, metrics)).expect("it is read");
    let counters = listener.nodes.counters();
    assert_eq!((counters.structures, counters.not_numbers, counters.incomplete), (1, 2, 3));
}

#[test]
fn historical_values_make_rows_of_their_own_and_change_nothing_that_holds() {
    let mut listener = Listener::born();
    let old = |alias, ms, value| Metric { timestamp: Some(ms), is_historical: Some(true), ..aliased(alias, value) };
    let metrics = vec![
        old(10, 5_000, Value::Int(3)),
        old(11, 5_000, Value::Double(4.0)),
        old(10, 4_000, Value::Int(1)),
        old(10, 6_000, Value::Int(9)),
    ];
    listener.hear("DDATA/n1/d1", &payload(2, metrics)).expect("it is read");
    assert_eq!(listener.rows(), [[3.0, 4.0], [9.0, 4.0]], "at 4 s the temperature is not known");
    listener.hear("DDATA/n1/d1", &payload(3, vec![aliased(11, Value::Double(5.0))])).expect("it is read");
    assert_eq!(listener.rows(), [[900.0, 5.0]]);
}

#[test]
fn deaths_end_what_was_known_and_those_of_older_connections_do_not() {
    let mut listener = Listener::born();
    let data = |seq| payload(seq, vec![aliased(10, Value::Int(1))]);
    let death = |number| Payload { timestamp: None, metrics: vec![birth_seq(number)], seq: None, uuid: None };
    assert_eq!(listener.hear("NDEATH/n1", &death(3)), Ok(Heard::Death), "the will of the connection before");
    assert_eq!(listener.hear("DDATA/n1/d1", &data(2)), Ok(Heard::Data));
    assert_eq!(listener.hear("DDEATH/n1/d1", &payload(3, vec![])), Ok(Heard::Death));
    assert_eq!(listener.hear("DDATA/n1/d1", &data(4)), Ok(Heard::Unborn));
    let mut listener = Listener::born();
    assert_eq!(listener.hear("NDEATH/n1", &death(4)), Ok(Heard::Death));
    assert_eq!(listener.hear("DDATA/n1/d1", &data(2)), Ok(Heard::Unborn));
    let mut listener = Listener::born();
    assert_eq!(listener.hear("NBIRTH/n1", &payload(0, vec![birth_seq(5)])), Ok(Heard::Birth));
    assert_eq!(listener.hear("DDATA/n1/d1", &data(1)), Ok(Heard::Unborn), "devices are born again after their node");
    let named = Metric { alias: None, ..named("rpm", 0, INT32, Value::Int(4)) };
    assert_eq!(listener.hear("DDATA/n1/d1", &payload(2, vec![named])), Ok(Heard::Data), "a name needs no birth");
    let counters = listener.nodes.counters();
    assert_eq!((counters.births, counters.deaths, counters.seq_missing), (3, 0, 0));
}

#[test]
fn gaps_in_the_sequence_are_counted_over_all_messages_of_a_node() {
    let mut listener = Listener::born();
    let mut hear = |topic: &str, seq| listener.hear(topic, &payload(seq, vec![])).expect("it is read");
    hear("NDATA/n1", 2);
    hear("DDATA/n1/d1", 5);
    hear("DDATA/n1/d1", 255);
    hear("NDATA/n1", 0);
    hear("NDATA/n2", 77);
    hear("NDATA/n2", 78);
    let counters = listener.nodes.counters();
    assert_eq!((counters.seq_gaps, counters.seq_missing), (2, 2 + 249));
}

#[test]
fn messages_that_cannot_be_read_are_told_apart_and_change_nothing() {
    let mut listener = Listener::born();
    let mut reason = |payload: &[u8]| listener.hear_bytes("DDATA/n1/d1", payload).expect_err("refused").reason();
    assert_eq!(reason(b"\x12\xff"), "syntax");
    assert_eq!(reason(b"{}"), "syntax");
    assert_eq!(reason(&[0x0a, 0x00]), "syntax", "a timestamp that is bytes");
    assert_eq!(reason(&vec![0; PAYLOAD_BYTES_MAX + 1]), "too_long");
    assert_eq!(reason(&[0x12, 0x00].repeat(ROWS_MAX + 1)), "too_many_rows");
    let late = Payload { timestamp: Some(u64::MAX), ..payload(2, vec![]) };
    assert_eq!(reason(&late.encode_to_vec()), "time_range");
    let mixed = vec![Metric { timestamp: Some(5), ..aliased(10, Value::Int(5)) }, aliased(10, Value::Int(6))];
    let mixed = Payload { timestamp: None, ..payload(2, mixed) };
    assert_eq!(reason(&mixed.encode_to_vec()), "mixed_times");
    let compressed = Payload { uuid: Some("SPBV1.0_COMPRESSED".into()), ..payload(2, vec![]) };
    assert_eq!(reason(&compressed.encode_to_vec()), "compressed");
    listener.hear("DDATA/n1/d1", &payload(2, vec![aliased(11, Value::Double(1.0))])).expect("it is read");
    assert_eq!((listener.rows(), listener.nodes.counters().seq_missing), (vec![vec![900.0, 1.0]], 0));
}

#[test]
fn tables_are_bounded_and_forget_who_was_silent_longest() {
    let mut listener = Listener::born();
    for n in 0..5_000 {
        let metrics = vec![named("rpm", 1, INT32, Value::Int(n)), named("temp", 2, DOUBLE, Value::Double(0.0))];
        listener.hear(&format!("DBIRTH/n1/x{n}"), &payload(2, metrics)).expect("it is read");
    }
    let forgotten = listener.nodes.counters().forgotten;
    assert_eq!(forgotten, 5_001 - 4_096 + 1, "of the devices, the node's own entry among them");
    assert_eq!(listener.hear("DDATA/n1/d1", &payload(3, vec![aliased(10, Value::Int(1))])), Ok(Heard::Unborn));
    assert_eq!(listener.hear("DDATA/n1/x4999", &payload(4, vec![aliased(1, Value::Int(1))])), Ok(Heard::Data));
    for n in 0..2_000 {
        listener.hear(&format!("NBIRTH/m{n}"), &payload(0, vec![])).expect("it is read");
    }
    assert!(listener.nodes.counters().forgotten > forgotten + 2_000 - 1_024);
}

/// What happens at a device of two metrics.
#[derive(Debug, Clone)]
enum Event {
    Birth(f64, f64),
    Data(Vec<(bool, Option<f64>)>),
    Death,
}

fn event() -> impl Strategy<Value = Event> {
    let value = -1e9..1e9;
    prop_oneof![
        1 => (value.clone(), value.clone()).prop_map(|(a, b)| Event::Birth(a, b)),
        6 => prop::collection::vec((any::<bool>(), prop::option::weighted(0.8, value)), 0..4).prop_map(Event::Data),
        1 => Just(Event::Death),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_those_of_a_model_that_knows_names(events in prop::collection::vec(event(), 1..30)) {
        let mut listener = Listener::new(&["a", "b"]);
        listener.hear("NBIRTH/n", &payload(0, vec![])).expect("it is read");
        // None while the device is not born.
        let mut held: Option<BTreeMap<&str, f64>> = None;
        for event in events {
            let (topic, metrics) = match &event {
                Event::Birth(a, b) => {
                    let metrics = vec![named("a", 1, DOUBLE, Value::Double(*a)), named("b", 2, DOUBLE, Value::Double(*b))];
                    ("DBIRTH/n/d", metrics)
                }
                Event::Data(changes) => {
                    let metric = |(is_a, value): &(bool, Option<f64>)| Metric {
                        is_null: Some(value.is_none()),
                        ..aliased(if *is_a { 1 } else { 2 }, Value::Double(value.unwrap_or(0.0)))
                    };
                    ("DDATA/n/d", changes.iter().map(metric).collect())
                }
                Event::Death => ("DDEATH/n/d", vec![]),
            };
            listener.hear(topic, &payload(1, metrics)).expect("it is read");
            // All metrics of a message have one time: a row ends where a metric comes again, or at the end.
            let mut rows = Vec::new();
            match event {
                Event::Birth(a, b) => {
                    held = Some(BTreeMap::from([("a", a), ("b", b)]));
                    rows.push(vec![a, b]);
                }
                Event::Death => held = None,
                Event::Data(changes) => if let Some(held) = &mut held {
                    let mut seen = Vec::new();
                    for (at, (is_a, value)) in changes.iter().enumerate() {
                        let name = if *is_a { "a" } else { "b" };
                        seen.push(name);
                        match value {
                            Some(value) => held.insert(name, *value),
                            None => held.remove(name),
                        };
                        let next = changes.get(at + 1).map(|(is_a, _)| if *is_a { "a" } else { "b" });
                        if next.is_none_or(|next| seen.contains(&next)) {
                            seen.clear();
                            rows.extend(held.get("a").zip(held.get("b")).map(|(a, b)| vec![*a, *b]));
                        }
                    }
                }
            }
            prop_assert_eq!(listener.rows(), rows);
        }
    }

    #[test]
    fn damaged_messages_are_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>(), is_cut in any::<bool>()) {
        let metrics = vec![birth_seq(4), named("rpm", 10, INT32, Value::Int(900)), named("temp", 11, DOUBLE, Value::Double(20.5))];
        let mut bytes = payload(1, metrics).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(if is_cut { at } else { bytes.len() });
        let mut listener = Listener::born();
        let result = listener.hear_bytes("DBIRTH/n1/d1", &bytes);
        prop_assert!(result.is_ok() || listener.samples.rows() == 0);
        prop_assert!(listener.samples.values().iter().all(|value| value.is_finite()));
        let mut out = Samples::new();
        prop_assert_eq!(listener.decoder.decode(&bytes, &mut out).is_ok(), result.is_ok());
    }
}
