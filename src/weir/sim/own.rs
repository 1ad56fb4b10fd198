//! "What would my box have done last night on this link?": a configuration of one's own on messages of one's own.
//!
//! The messages come from a file that `mosquitto_sub -t '#' -F '%U %t %x'` writes: the time in seconds, the topic, and the
//! payload in hexadecimal digits, a line each. The configuration is the box's own, with its streams, models, keep rules, lanes
//! and values. Only its uplinks are replaced by the one link that is simulated, and its users by one that may publish all.
//!
//! There is no bound here: it would have to know how well payloads compress. What is told instead is what became of the
//! records of each stream: how many arrived, how finely, how late, and how many were given up or still waited at the end.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Write};
use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use serde::Serialize;
use weir_edge::config::{Config, Files, ModelInfo};
use weir_host::units::Duration;
use weir_infer::Model;
use weir_logic::block::{Codec, RecordKind};
use weir_logic::ids::{Class, PerClass};
use weir_logic::mqtt::ConnLimits;
use weir_logic::policy::{Policy, StreamFidelity, StreamPolicy, UplinkPolicy, UserPolicy};
use weir_logic::receive;

use super::case::percentile;
use super::machine::{self, Fact, Message, Site};
use super::trace::{DATA_S_MAX, Link};
use crate::link::profile::LinkProfile;

/// Messages of one run at most: they are held in memory.
const MESSAGES_MAX: usize = 20_000_000;
/// Time after the last message in which what waits can still arrive.
const TAIL_S: u64 = 60;

/// What became of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The link.
    pub link: String,
    /// Length of the run.
    pub run_s: u64,
    /// What the link could have carried.
    pub link_bytes: u64,
    /// What left on it, headers included.
    pub sent_bytes: u64,
    /// Messages that were published.
    pub messages: u64,
    /// Messages that the box had not taken in at the end.
    pub unread: u64,
    /// Messages that match no stream.
    pub unmatched: u64,
    /// The most that the box held, in bytes.
    pub held_bytes_max: u64,
    /// By stream, in the order of the configuration.
    pub streams: Vec<StreamOutcome>,
}

/// What became of a stream's records.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StreamOutcome {
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: &'static str,
    /// Records that were worth keeping.
    pub records: u64,
    /// Of them, those that arrived as they were.
    pub whole: u64,
    /// Those that arrived within something coarser: thinned out, or in an aggregate.
    pub thinned: u64,
    /// Those that were given up.
    pub lost: u64,
    /// Those that still waited at the end.
    pub waiting: u64,
    /// Median of the time from message to durable storage.
    pub latency_p50_ms: f64,
    /// 99th percentile of it.
    pub latency_p99_ms: f64,
}

/// Reads a configuration as the box does, with its models.
///
/// # Errors
/// Every mistake in the configuration, or a model that cannot be used.
pub fn configuration(path: &Path) -> anyhow::Result<(Policy, Vec<Model>)> {
    let config: Config = Config::check(path, Files::Ignored).config?;
    let library = config.infer.runtime_library();
    let (mut models, mut infos) = (Vec::new(), Vec::new());
    for entry in &config.model {
        let model = Model::load(&entry.manifest, config.infer.backend, &library)
            .with_context(|| format!("model `{}` cannot be used", entry.name))?;
        infos.push(ModelInfo::new(&entry.name, model.manifest()));
        models.push(model);
    }
    Ok((config.policy(&infos)?, models))
}

/// Reads recorded messages; times count from the first.
///
/// # Errors
/// If the file cannot be read, or the line that is of another form.
pub fn messages(path: &Path) -> anyhow::Result<Vec<Recorded>> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut messages: Vec<Recorded> = Vec::new();
    for (number, line) in io::BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        if line.trim().is_empty() {
            continue;
        }
        let message = recorded(&line).with_context(|| {
            format!(
                "{}: line {}: not `SECONDS TOPIC HEX`, as mosquitto_sub -F '%U %t %x' writes it: {line:.60}",
                path.display(),
                number + 1
            )
        })?;
        anyhow::ensure!(
            messages.len() < MESSAGES_MAX,
            "{}: more than {MESSAGES_MAX} messages; give it in parts",
            path.display()
        );
        messages.push(message);
    }
    messages.sort_by_key(|message| message.at_us);
    let first_us = messages.first().map_or(0, |message| message.at_us);
    messages.iter_mut().for_each(|message| message.at_us -= first_us);
    anyhow::ensure!(!messages.is_empty(), "{} has no messages", path.display());
    let length_s = messages.last().map_or(0, |message| message.at_us.div_ceil(1_000_000));
    let longest_s = DATA_S_MAX - TAIL_S;
    anyhow::ensure!(
        length_s <= longest_s,
        "{}: from the first message to the last are {length_s} s, more than {longest_s}; give it in parts",
        path.display()
    );
    Ok(messages)
}

/// A message of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Microseconds since the first.
    pub at_us: u64,
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
}

fn recorded(line: &str) -> Option<Recorded> {
    let (time, rest) = line.split_once(' ')?;
    // A topic may have spaces; an empty payload leaves nothing behind the last.
    let (topic, hex) = rest.rsplit_once(' ')?;
    let seconds: f64 = time.parse().ok().filter(|s: &f64| s.is_finite() && (0.0..1e11).contains(s))?;
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pair = |pair: &[u8]| match *pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    let payload: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(pair).collect();
    (!topic.is_empty()).then_some(())?;
    Some(Recorded { at_us: (seconds * 1e6).round() as u64, topic: topic.to_owned(), payload: payload?.into() })
}

/// Runs the configuration over a link for as long as messages come, and a minute.
///
/// # Errors
/// A topic filter that is malformed; none after a check of the configuration.
pub fn run(
    profile: LinkProfile,
    policy: &Policy,
    models: Vec<Model>,
    messages: &[Recorded],
    seed: u64,
) -> anyhow::Result<Outcome> {
    let data_s = messages.last().map_or(0, |message| message.at_us.div_ceil(1_000_000));
    let link = Link::for_length(profile, Duration::from_secs(data_s + TAIL_S), seed);
    let mut policy = policy.clone();
    let nominal_bps = policy.uplinks.first().map_or((8.0 * link.mean_bytes_per_s()) as u64, |uplink| uplink.nominal_bps);
    policy.uplinks = vec![UplinkPolicy::free(&link.name, nominal_bps)];
    policy.users = vec![UserPolicy { name: "".into(), publish: vec!["#".into()] }];
    // One client speaks for all sensors here.
    policy.connections = ConnLimits { inflight_max: u16::MAX, packet_len_max: 2 << 20, ..ConnLimits::default() };
    let mut books = Books::new(&policy);
    let mut published = messages.iter().map(|message| Message {
        at_us: message.at_us,
        topic: message.topic.clone(),
        payload: message.payload.clone(),
    });
    let site = Site { models, ..Site::new("sim", std::slice::from_ref(&link), policy, seed) };
    let ended = machine::run(site, &mut published, &mut |now_us, fact| books.note(now_us, fact))?;
    let unread = ended.unread as u64;
    Ok(Outcome {
        run_s: link.run_s,
        link_bytes: link.service.bytes() as u64,
        sent_bytes: ended.sent_bytes.iter().sum(),
        messages: messages.len() as u64 - unread,
        unread,
        unmatched: ended.gateway.ingest().counters().unmatched,
        held_bytes_max: books.held_bytes_max,
        streams: books.outcomes(),
        link: link.name,
    })
}

/// What is known of one record.
#[derive(Debug, Clone, Copy)]
struct Record {
    stream: u16,
    born_us: u64,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Waiting,
    Lost,
    Arrived { at_us: u64, whole: bool },
}

struct Books {
    streams: Vec<StreamOutcome>,
    /// By stream: its records are messages as they came.
    is_raw: Vec<bool>,
    /// By lane and sequence number.
    records: PerClass<Vec<Record>>,
    codec: Codec,
    held_bytes_max: u64,
}

impl Books {
    fn new(policy: &Policy) -> Books {
        let outcome = |stream: &StreamPolicy| StreamOutcome {
            name: stream.name.to_string(),
            class: stream.class.name(),
            ..StreamOutcome::default()
        };
        let streams = policy.streams.iter().map(outcome).collect();
        let is_raw = policy.streams.iter().map(|stream| stream.fidelity == StreamFidelity::Raw).collect();
        Books { streams, is_raw, records: Default::default(), codec: Codec::default(), held_bytes_max: 0 }
    }

    fn note(&mut self, now_us: u64, fact: Fact<'_>) {
        match fact {
            Fact::Published(_) => {}
            Fact::Recorded { lane, stream, numbers } => {
                let record = Record { stream, born_us: now_us, fate: Fate::Waiting };
                self.records[lane.index()].extend(numbers.map(|_| record));
            }
            Fact::GaveUp(void) => {
                let lost = void.key.first_seq..=void.last_seq;
                self.decide(void.key.lane, lost, |_, _| Fate::Lost);
            }
            Fact::Stored(store) => self.stored(now_us, store),
            Fact::Second(gateway) => {
                let held: u64 = Class::ALL.iter().map(|&class| gateway.lanes().status(class).bytes).sum();
                self.held_bytes_max = self.held_bytes_max.max(held);
            }
        }
    }

    fn stored(&mut self, now_us: u64, store: &receive::Store) {
        let mut whole: BTreeMap<u64, RecordKind> = BTreeMap::new();
        if let Ok((_, records)) = self.codec.open(&store.block) {
            whole.extend(records.flatten().map(|record| (record.seq, record.kind)));
        }
        for &(first, last) in &store.takes {
            self.decide(store.header.key.lane, first..=last, |seq, is_raw| {
                // What is left of raw records that were folded is an aggregate, and the others are not there.
                let whole = whole.get(&seq).is_some_and(|&kind| kind != RecordKind::Aggregate || !is_raw);
                Fate::Arrived { at_us: now_us, whole }
            });
        }
    }

    /// A fate is final: a record that has arrived may be told as given up by a box that did not yet know.
    fn decide(&mut self, lane: Class, numbers: std::ops::RangeInclusive<u64>, fate: impl Fn(u64, bool) -> Fate) {
        for seq in numbers {
            if let Some(record) = self.records[lane.index()].get_mut(seq as usize)
                && record.fate == Fate::Waiting
            {
                record.fate = fate(seq, self.is_raw[usize::from(record.stream)]);
            }
        }
    }

    fn outcomes(mut self) -> Vec<StreamOutcome> {
        let mut late: Vec<Vec<u64>> = vec![Vec::new(); self.streams.len()];
        for record in self.records.iter().flatten() {
            let stream = &mut self.streams[usize::from(record.stream)];
            stream.records += 1;
            match record.fate {
                Fate::Waiting => stream.waiting += 1,
                Fate::Lost => stream.lost += 1,
                Fate::Arrived { at_us, whole } => {
                    *if whole { &mut stream.whole } else { &mut stream.thinned } += 1;
                    late[usize::from(record.stream)].push(at_us - record.born_us);
                }
            }
        }
        for (stream, late) in self.streams.iter_mut().zip(&mut late) {
            let mut ms = |part| percentile(late, part).map_or(0.0, |us| us as f64 / 1e3);
            (stream.latency_p50_ms, stream.latency_p99_ms) = (ms(0.5), ms(0.99));
        }
        self.streams
    }
}

/// Writes an outcome as a table.
pub(super) fn print(outcome: &Outcome, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{} for {} s: {} messages, {} of no stream; sent {:.3} MB of {:.3} that the link could carry; held {:.3} MB at most",
        outcome.link,
        outcome.run_s,
        outcome.messages,
        outcome.unmatched,
        outcome.sent_bytes as f64 / 1e6,
        outcome.link_bytes as f64 / 1e6,
        outcome.held_bytes_max as f64 / 1e6
    )?;
    if outcome.unread > 0 {
        writeln!(out, "{} more messages were not taken in by the end: the box's buffer was full", outcome.unread)?;
    }
    writeln!(
        out,
        "{:<24} {:<9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10}",
        "stream", "class", "records", "whole", "thinned", "lost", "waiting", "p50", "p99"
    )?;
    for stream in &outcome.streams {
        writeln!(
            out,
            "{:<24} {:<9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7.0} ms {:>7.0} ms",
            stream.name,
            stream.class,
            stream.records,
            stream.whole,
            stream.thinned,
            stream.lost,
            stream.waiting,
            stream.latency_p50_ms,
            stream.latency_p99_ms
        )?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mosquitto_sub_are_read_and_others_refused_by_number() {
        let message = recorded("1790000000.250000 plant/hall 3/pump 7b7d").expect("a line");
        assert_eq!(
            (message.at_us, &*message.topic, &message.payload[..]),
            (1_790_000_000_250_000, "plant/hall 3/pump", &b"{}"[..])
        );
        assert_eq!(recorded("1.5 t ").map(|message| message.payload.len()), Some(0));
        for bad in ["", "1.5", "x t 00", "1.5 t 0", "1.5 t 0g", "-1 t 00", "NaN t 00", "1.5  00"] {
            assert_eq!(recorded(bad), None, "{bad:?}");
        }
        let dir = tempfile::tempdir().expect("there is room");
        let path = dir.path().join("messages");
        std::fs::write(&path, "2.0 a 00\n\n1.0 b 01\n").expect("there is room");
        let read = messages(&path).expect("messages");
        assert_eq!(read.iter().map(|m| (m.at_us, &*m.topic)).collect::<Vec<_>>(), [(0, "b"), (1_000_000, "a")]);
        std::fs::write(&path, "2.0 a 00\n700000 b 01\n").expect("there is room");
        let error = format!("{:#}", messages(&path).expect_err("it is longer than a week"));
        assert!(error.contains("699998 s") && error.contains("in parts"), "{error}");
        std::fs::write(&path, "2.0 a 00\nnonsense\n").expect("there is room");
        let error = format!("{:#}", messages(&path).expect_err("it is not of that form"));
        assert!(error.contains("line 2") && error.contains("mosquitto_sub"), "{error}");
    }

    /// Two streams at three times what the link carries: one that must not suffer, and one that pays for it.
    #[test]
    fn every_record_of_a_configuration_has_a_fate_and_critical_ones_arrive() {
        let text = "[gateway]\ndata_dir = \"data\"\n[tls]\ncert = \"a.pem\"\nkey = \"a.key\"\nca = \"ca.pem\"\n\
                    [[listen]]\nallow_anonymous = true\n[[uplink]]\nname = \"lte\"\naddress = \"cloud:4433\"\n\
                    [[stream]]\nname = \"alarms\"\nclass = \"critical\"\ntopics = [\"alarm/+\"]\npayload = { format = \"opaque\" }\n\
                    [[stream]]\nname = \"bulk\"\nclass = \"bulk\"\ntopics = [\"bulk/+\"]\npayload = { format = \"opaque\" }\n";
        let dir = tempfile::tempdir().expect("there is room");
        let path = dir.path().join("edge.toml");
        std::fs::write(&path, text).expect("there is room");
        let (policy, models) = configuration(&path).expect("a configuration");
        let payload = |at: u64, len: usize| Bytes::from(crate::sim::site::payload(at as u32, len));
        let of = |at: u64| {
            let (topic, len) = if at.is_multiple_of(10) { ("alarm/1", 40) } else { ("bulk/1", 800) };
            Recorded { at_us: at * 20_000, topic: topic.to_owned(), payload: payload(at, len) }
        };
        let mut messages: Vec<Recorded> = (0..3_000).map(of).collect();
        messages.push(Recorded { at_us: 60_000_000, topic: "nobody/knows".to_owned(), payload: Bytes::new() });
        let profile = "[up]\nrate = '100kbit/s'\ndelay = '20ms'\nqueue = '64KiB'\n";
        let profile = LinkProfile::from_toml("slow", profile, Path::new(".")).expect("a profile");
        let outcome = run(profile, &policy, models, &messages, 1).expect("a run");
        let [alarms, bulk] = &outcome.streams[..] else { panic!("{outcome:?}") };
        assert_eq!((outcome.run_s, outcome.messages, outcome.unmatched, outcome.unread), (120, 3_001, 1, 0));
        assert_eq!((alarms.records, alarms.whole, alarms.lost, alarms.waiting), (300, 300, 0, 0), "{outcome:?}");
        assert!(alarms.latency_p99_ms < 2_000.0 && bulk.latency_p50_ms > 10_000.0, "{outcome:?}");
        assert_eq!(bulk.whole + bulk.thinned + bulk.lost + bulk.waiting, 2_700, "each has a fate: {outcome:?}");
        assert!(bulk.waiting > 500 && bulk.whole > 1_000, "{outcome:?}");
    }
}
