//! Every payload format, published by mosquitto's own client: each message is stored once as it came, and what was read of it is
//! in the aggregates.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use prost::Message as _;
use weir_tests::support::oracle::{self, Fold};
use weir_tests::support::process;
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::{skip, wait_for};

use crate::binaries;

const LIMIT: Duration = Duration::from_secs(20);
/// Seconds since the Unix epoch of the first sample.
const START_S: i64 = 1_790_000_000;
/// Messages of each format; what each says is a number of its own.
const MESSAGES: usize = 4;

/// A format: its `payload` table, and how a value is written in it, `n` seconds after the start.
struct Format {
    name: &'static str,
    payload: &'static str,
    write: fn(n: usize, value: f64) -> Vec<u8>,
}

const FORMATS: [Format; 6] = [
    Format {
        name: "json",
        payload: "{ format = \"json\", fields = [\"/v\"], time = \"/t\" }",
        write: |n, value| format!("{{\"v\":{value},\"t\":{}}}", START_S + n as i64).into_bytes(),
    },
    Format {
        name: "cbor",
        payload: "{ format = \"cbor\", fields = [\"/v/1\"], time = \"/t\", time_unit = \"ns\" }",
        write: cbor,
    },
    Format {
        name: "senml-json",
        payload: "{ format = \"senml\", fields = [\"*:v\"], units = [\"Cel\"] }",
        write: |n, value| {
            let start_s = START_S + n as i64;
            format!(
                "[{{\"bn\":\"urn:dev:1:\",\"bt\":{start_s},\"bu\":\"Cel\",\"n\":\"v\",\"v\":{value}}},{{\"n\":\"w\",\"v\":1}}]"
            )
            .into_bytes()
        },
    },
    Format { name: "senml-cbor", payload: "{ format = \"senml\", fields = [\"*:v\"], units = [\"Cel\"] }", write: senml_cbor },
    Format {
        name: "packed",
        payload: "{ format = \"packed\", element = \"f64\", channels = 1 }",
        write: |_, value| value.to_le_bytes().to_vec(),
    },
    Format { name: "number", payload: "{ format = \"number\" }", write: |_, value| value.to_string().into_bytes() },
];

/// A map of a value in a list, and of a time with its tag, which says that it is in seconds.
fn cbor(n: usize, value: f64) -> Vec<u8> {
    let time = (START_S + n as i64) as u32;
    [&b"\xa2\x61v\x82\xf6\xfb"[..], &value.to_be_bytes(), b"\x61t\xc1\x1a", &time.to_be_bytes()].concat()
}

fn senml_cbor(n: usize, value: f64) -> Vec<u8> {
    let time = (START_S + n as i64) as u32;
    let base = &b"\x81\xa5\x21\x6burn:dev:1:x\x22\x1a"[..];
    [base, &time.to_be_bytes(), b"\x23\x63Cel", b"\x00\x62:v\x02\xfb", &value.to_be_bytes()].concat()
}

/// What is published to: one stream that keeps messages as they came, and one that aggregates the same.
fn streams() -> String {
    let stream = |format: &Format, kind: &str, keys: &str| {
        let Format { name, payload, .. } = format;
        format!("[[stream]]\nname = \"{name}-{kind}\"\ntopics = [\"{kind}/{name}/+\"]\npayload = {payload}\n{keys}\n")
    };
    let folds = "fidelity = \"aggregate\"\naggregate = { every = \"1d\" }";
    FORMATS.iter().map(|format| stream(format, "raw", "") + &stream(format, "fold", folds)).collect()
}

/// Publishes a file as mosquitto's client does it; it ends well when its PUBACK has come.
fn publish(site: &Site, topic: &str, payload: &[u8]) {
    let file = site.dir().join("message");
    std::fs::write(&file, payload).expect("there is room for a message");
    let mut command = Command::new("mosquitto_pub");
    command.args(["-h", "127.0.0.1", "-p", &site.mqtt().port().to_string(), "-q", "1", "-t", topic, "-f"]).arg(&file);
    let (code, _, stderr) = process::run(command, LIMIT);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{topic}");
}

fn has_client() -> bool {
    let is_there = Command::new("mosquitto_pub").arg("--help").output().is_ok();
    if !is_there {
        skip("mosquitto_pub is not installed");
    }
    is_there
}

/// Payloads in the database, by stream and device.
fn stored(site: &Site) -> BTreeMap<(String, String), Vec<Vec<u8>>> {
    let db = oracle::open(&site.database());
    let mut query = db
        .prepare("SELECT stream, device, CAST(payload AS BLOB) FROM samples ORDER BY epoch, lane, seq")
        .expect("the view is there");
    let mut rows = query.query([]).expect("it can be read");
    let mut stored: BTreeMap<(String, String), Vec<Vec<u8>>> = BTreeMap::new();
    while let Some(row) = rows.next().expect("it can be read") {
        let key = (row.get(0).expect("a name"), row.get(1).expect("a name"));
        stored.entry(key).or_default().push(row.get(2).expect("bytes"));
    }
    stored
}

/// What aggregates of a stream and device hold, channel by channel, all spans together.
fn folds(site: &Site, stream: &str) -> BTreeMap<(String, i64), Fold> {
    let db = oracle::open(&site.database());
    let text = "SELECT device, channel, sum(count), min(min), max(max), sum(mean * count) FROM aggregates WHERE stream = ?1 \
                GROUP BY device, channel";
    let mut query = db.prepare(text).expect("the view is there");
    let rows = query.query_map([stream], |row| {
        let fold = Fold { count: row.get::<_, i64>(2)? as u64, min: row.get(3)?, max: row.get(4)?, sum: row.get(5)? };
        Ok(((row.get(0)?, row.get(1)?), fold))
    });
    rows.expect("it can be read").map(|row| row.expect("a fold")).collect()
}

/// Stops the box, which closes what is open, and starts it again until all is delivered.
fn settle(site: &mut Site) {
    site.drain();
    site.stop_edge();
    site.start_edge();
    site.drain();
    site.stop_edge();
    site.stop_cloud();
}

#[test]
fn each_format_is_stored_as_it_came_and_its_values_are_read() {
    if !has_client() {
        return;
    }
    let mut site = Site::started(binaries(), Plan::new("disk", &streams()));
    let value = |format: usize, n: usize| (format * MESSAGES + n) as f64 + 0.25;
    for (at, format) in FORMATS.iter().enumerate() {
        for n in 0..MESSAGES {
            let payload = (format.write)(n, value(at, n));
            publish(&site, &format!("raw/{}/d", format.name), &payload);
            publish(&site, &format!("fold/{}/d", format.name), &payload);
        }
    }
    // What is not of its format is refused with its reason, and stops nothing.
    for format in FORMATS {
        publish(&site, &format!("raw/{}/d", format.name), b"\x9f\x00nothing");
    }
    let undecodable =
        || site.edge_status()?["streams"].as_array()?.iter().map(|stream| stream["undecodable"].as_u64()).sum::<Option<u64>>();
    wait_for("all to be counted", LIMIT, || (undecodable() == Some(FORMATS.len() as u64)).then_some(()));
    settle(&mut site);
    let stored = stored(&site);
    assert_eq!(stored.len(), FORMATS.len(), "one device of each stream: {:?}", stored.keys());
    for (at, format) in FORMATS.iter().enumerate() {
        let expected: Vec<Vec<u8>> = (0..MESSAGES).map(|n| (format.write)(n, value(at, n))).collect();
        assert_eq!(stored[&(format!("{}-raw", format.name), "d".to_owned())], expected, "{}", format.name);
        let values = (0..MESSAGES).map(|n| value(at, n));
        let fold = Fold { count: MESSAGES as u64, min: value(at, 0), max: value(at, MESSAGES - 1), sum: values.sum() };
        let found = folds(&site, &format!("{}-fold", format.name));
        assert_eq!(found, BTreeMap::from([(("d".to_owned(), 0), fold)]), "{}", format.name);
    }
    assert_conserved(&site);
}

#[test]
fn a_recording_is_published_again_as_it_was() {
    let mut site = Site::started(binaries(), Plan::new("disk", &streams()));
    let payloads: Vec<Vec<u8>> = (0..50).map(|n| senml_cbor(n, n as f64)).collect();
    let line = |(n, payload): (usize, &Vec<u8>)| {
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}.{:02} raw/senml-cbor/{} {hex}\n", START_S + n as i64 / 10, n % 10, n % 3)
    };
    let file = site.dir().join("night.txt");
    std::fs::write(&file, payloads.iter().enumerate().map(line).collect::<String>()).expect("there is room for a recording");
    let replay = |more: &[&str]| {
        let mut command = Command::new(crate::tool());
        command.arg("replay").arg(&file).args(["--speed", "20", "--to", &site.mqtt().to_string()]).args(more);
        process::run(command, LIMIT)
    };
    let (code, stdout, stderr) = replay(&[]);
    assert!(code == Some(0) && stdout.starts_with("50 messages published and acknowledged"), "{stdout} {stderr}");
    let (code, _, stderr) = replay(&["--user", "nobody"]);
    assert!(code == Some(1) && stderr.contains("0 of 50 messages"), "{code:?} {stderr}");
    settle(&mut site);
    let stored = stored(&site);
    for device in 0..3 {
        let expected: Vec<Vec<u8>> = payloads.iter().skip(device).step_by(3).cloned().collect();
        assert_eq!(stored[&("senml-cbor-raw".to_owned(), device.to_string())], expected);
    }
    assert_conserved(&site);
}

/// Nothing is stored twice, missing or given up.
fn assert_conserved(site: &Site) {
    let verdict = oracle::examine(&[], &site.database(), Some(&site.buffer()));
    assert!(verdict.doubled.is_empty() && verdict.alerts.is_empty(), "{verdict}");
    assert_eq!((verdict.missing, verdict.voided, verdict.buffered), (0, 0, 0), "{verdict}");
}

/// A payload of Sparkplug B as an edge node writes it.
#[derive(Clone, PartialEq, prost::Message)]
struct Payload {
    #[prost(uint64, tag = "1")]
    timestamp: u64,
    #[prost(message, repeated, tag = "2")]
    metrics: Vec<Metric>,
    #[prost(uint64, optional, tag = "3")]
    seq: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metric {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(uint64, tag = "2")]
    alias: u64,
    #[prost(uint32, optional, tag = "4")]
    datatype: Option<u32>,
    #[prost(double, tag = "13")]
    value: f64,
}

#[test]
fn sparkplug_data_are_read_by_their_births_and_kept_with_them() {
    if !has_client() {
        return;
    }
    let stream = |name: &str, group: &str, keys: &str| {
        format!(
            "[[stream]]\nname = \"{name}\"\ntopics = [\"spBv1.0/{group}/#\"]\n\
             payload = {{ format = \"sparkplug\", fields = [\"rpm\", \"temp\"] }}\n{keys}\n"
        )
    };
    let folds_keys = "fidelity = \"aggregate\"\naggregate = { every = \"1d\" }";
    let streams = stream("all", "raw", "") + &stream("folded", "fold", folds_keys);
    let mut site = Site::started(binaries(), Plan::new("disk", &streams));
    let message = |seq: u64, metrics: &[(Option<&str>, u64, f64)]| {
        let metric = |&(name, alias, value): &(Option<&str>, u64, f64)| Metric {
            name: name.map(str::to_owned),
            alias,
            datatype: name.map(|_| 10),
            value,
        };
        let timestamp = (START_S as u64 + seq) * 1_000;
        Payload { timestamp, metrics: metrics.iter().map(metric).collect(), seq: Some(seq) }.encode_to_vec()
    };
    let messages = [
        ("DDATA/n1/pump", message(9, &[(None, 1, 1.0)])),
        ("NBIRTH/n1", message(0, &[(Some("Node Control/Rebirth"), 5, 0.0)])),
        ("DBIRTH/n1/pump", message(1, &[(Some("rpm"), 1, 900.0), (Some("temp"), 2, 20.0)])),
        ("DDATA/n1/pump", message(2, &[(None, 1, 950.0)])),
        ("DDATA/n1/pump", message(4, &[(None, 2, 25.0), (None, 1, 800.0)])),
        ("DDEATH/n1/pump", message(5, &[])),
        ("NDEATH/n1", message(6, &[])),
    ];
    for group in ["raw", "fold"] {
        for (topic, payload) in &messages {
            let kind: Vec<&str> = topic.splitn(2, '/').collect();
            publish(&site, &format!("spBv1.0/{group}/{}/{}", kind[0], kind[1]), payload);
        }
    }
    let ends = |status: &serde_json::Value| status["ingest"]["sparkplug"]["deaths"] == 4;
    let status = wait_for("all to be heard", LIMIT, || site.edge_status().filter(ends));
    let heard = |word: &str| status["ingest"]["sparkplug"][word].as_u64();
    assert_eq!((heard("births"), heard("deaths"), heard("unborn")), (Some(4), Some(4), Some(2)), "{status}");
    assert_eq!((heard("seq_gaps"), heard("seq_missing")), (Some(2), Some(2)), "{status}");
    settle(&mut site);
    let stored = stored(&site);
    for (topic, _) in &messages {
        let of_topic = |(t, _): &&(&str, Vec<u8>)| t == topic;
        let expected: Vec<&Vec<u8>> = messages.iter().filter(of_topic).map(|(_, payload)| payload).collect();
        let found: Vec<&Vec<u8>> = stored[&("all".to_owned(), (*topic).to_owned())].iter().collect();
        assert_eq!(found, expected, "{topic}");
    }
    // Where all is folded, only what others need to understand is kept as it came.
    let kept: Vec<&str> = stored.keys().filter(|(stream, _)| stream == "folded").map(|(_, device)| device.as_str()).collect();
    assert_eq!(kept, ["DBIRTH/n1/pump", "DDATA/n1/pump", "DDEATH/n1/pump", "NBIRTH/n1", "NDEATH/n1"]);
    assert_eq!(stored[&("folded".to_owned(), "DDATA/n1/pump".to_owned())], [messages[0].1.clone()], "it came before its birth");
    let fold = |min: f64, max: f64, sum: f64| Fold { count: 3, min, max, sum };
    let pump = |channel| ("n1/pump".to_owned(), channel);
    let expected = BTreeMap::from([(pump(0), fold(800.0, 950.0, 2650.0)), (pump(1), fold(20.0, 25.0, 65.0))]);
    assert_eq!(folds(&site, "folded"), expected);
    assert_conserved(&site);
}
