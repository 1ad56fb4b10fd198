//! Accounts for every message: what its sender knows of it, against what is in the cloud's database and the box's buffer.
//!
//! Every payload is unique, so a stored payload tells which message it was, and that it is equal byte for byte. Terms:
//! - **lost**: acknowledged, should be a record, and is neither stored nor buffered, nor voided with a reason;
//! - **doubled**: one (gateway, epoch, lane, seq) stored twice;
//! - **resent**: stored once more because its sender sent it again. A copy beyond the number of times it was sent is
//!   *spurious*, an error of its own;
//! - **missing**: sequence numbers that the cloud knows it never got.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use rusqlite::{Connection, OpenFlags, types::ValueRef};
use weir_edge::store::BufferFile;
use weir_logic::block::{Codec, RecordKind};

use super::publisher::{Report, Sent};
use super::script::{FOLD_EVERY_US, Fate};
use super::site::GATEWAY;

/// What an examination found. Lists hold what should not be.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Messages sent, once each.
    pub published: u64,
    /// Of these, with a PUBACK.
    pub acked: u64,
    /// Messages in the database.
    pub stored: u64,
    /// Messages in the buffer only.
    pub buffered: u64,
    /// Copies beyond the first, of messages that were sent again.
    pub resent: u64,
    /// Messages sent again at all.
    pub sent_again: u64,
    /// Messages folded that were acknowledged.
    pub folded_acked: u64,
    /// Samples in stored aggregates.
    pub folded_stored: u64,
    /// Records given up with a reason.
    pub voided: u64,
    /// Numbers of records that the cloud says it misses.
    pub missing: u64,
    /// Acknowledged messages that should be records and are nowhere, given up with a reason or not.
    pub absent: u64,
    /// Of these, those that voids of their lane do not explain.
    pub lost: Vec<String>,
    /// (gateway, epoch, lane, seq) that are there twice.
    pub doubled: Vec<String>,
    /// Copies that no sender's repetition explains.
    pub spurious: Vec<String>,
    /// Stored payloads that nobody sent.
    pub unknown: Vec<String>,
    /// Stored messages that should not have been, or not there.
    pub misplaced: Vec<String>,
    /// Messages acknowledged with the wrong reason.
    pub wrong_reason: Vec<String>,
    /// Alerts of the cloud.
    pub alerts: Vec<String>,
    /// PUBACKs out of order, or for nothing.
    pub wrong_acks: u64,
}

impl Verdict {
    /// Asserts that nothing is doubled, missing, unknown, spurious or misplaced, and all else that must hold in every mode.
    ///
    /// # Panics
    /// If not.
    pub fn assert_sound(&self) {
        let Verdict { doubled, spurious, unknown, misplaced, wrong_reason, alerts, .. } = self;
        let lists = [
            ("doubled", doubled),
            ("spurious", spurious),
            ("unknown", unknown),
            ("misplaced", misplaced),
            ("acknowledged with a wrong reason", wrong_reason),
            ("alerts", alerts),
        ];
        for (what, list) in lists {
            assert!(list.is_empty(), "{} {what}, for example {}\n{self}", list.len(), list[0]);
        }
        assert_eq!(self.missing, 0, "missing\n{self}");
        assert_eq!(self.wrong_acks, 0, "PUBACKs out of order or for nothing\n{self}");
    }

    /// Asserts that everything is sound and nothing is lost.
    ///
    /// # Panics
    /// If not.
    pub fn assert_conserved(&self) {
        assert!(self.lost.is_empty(), "{} lost, for example {}\n{self}", self.lost.len(), self.lost[0]);
        self.assert_sound();
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "published {} acked {} stored {} buffered {} voided {} sent_again {} resent {} folded {}/{} | lost {} doubled {} \
             missing {} spurious {} unknown {} misplaced {}",
            self.published,
            self.acked,
            self.stored,
            self.buffered,
            self.voided,
            self.sent_again,
            self.resent,
            self.folded_stored,
            self.folded_acked,
            self.lost.len(),
            self.doubled.len(),
            self.missing,
            self.spurious.len(),
            self.unknown.len(),
            self.misplaced.len()
        )
    }
}

/// A record that is stored or buffered.
#[derive(Debug, Clone)]
struct Place {
    gateway: String,
    epoch: String,
    lane: String,
    seq: i64,
    stream: String,
    device: String,
}

impl Place {
    fn words(&self) -> String {
        let Place { gateway, epoch, lane, seq, stream, device } = self;
        format!("{gateway} {epoch} {lane} {seq} ({stream} {device})")
    }
}

/// Examines what became of all messages. `buffer` is that of a box that does not run.
///
/// # Panics
/// If database or buffer cannot be read.
pub fn examine(reports: &[Report], database: &Path, buffer: Option<&Path>) -> Verdict {
    let db = open(database);
    let mut verdict = Verdict::default();
    let stored = stored_samples(&db);
    let buffered = buffer.map(buffered_payloads).unwrap_or_default();
    verdict.doubled = doubled(&db);
    verdict.missing = count(&db, "SELECT coalesce(sum(last - first + 1), 0) FROM missing");
    verdict.voided = count(&db, "SELECT coalesce(sum(last - first + 1), 0) FROM voids");
    verdict.alerts = texts(&db, "SELECT kind || ': ' || text FROM alerts");
    verdict.folded_stored = count(&db, "SELECT coalesce(sum(count), 0) FROM aggregates WHERE channel = 0");
    let mut known: HashSet<&[u8]> = HashSet::new();
    let mut nowhere: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for report in reports {
        verdict.wrong_acks += report.out_of_order + report.unknown_acks;
        for sent in &report.sent {
            known.insert(&sent.message.payload);
            let places = stored.get(&sent.message.payload).map_or(&[][..], Vec::as_slice);
            if let Some(text) = judge(sent, places, buffered.contains(&sent.message.payload), &mut verdict) {
                nowhere.entry(sent.message.lane).or_default().push(text);
            }
            check_reason(sent, report.has_reasons, &mut verdict);
        }
    }
    let all = stored.keys().chain(&buffered);
    verdict.unknown = all.filter(|payload| !known.contains(payload.as_slice())).map(|payload| text(payload)).collect();
    // Voids say how many records of a lane were given up, not which messages those were.
    for (lane, texts) in nowhere {
        verdict.absent += texts.len() as u64;
        let voided = format!("SELECT coalesce(sum(last - first + 1), 0) FROM voids WHERE lane = '{lane}'");
        let excused = usize::try_from(count(&db, &voided)).unwrap_or(usize::MAX);
        verdict.lost.extend(texts.into_iter().skip(excused));
    }
    verdict
}

/// Notes what became of a message; returns its description if it should be somewhere and is nowhere.
fn judge(sent: &Sent, places: &[Place], is_buffered: bool, verdict: &mut Verdict) -> Option<String> {
    let message = &sent.message;
    let describe = || format!("{} ({}, sent {} times)", text(&message.payload), message.topic, sent.sends);
    let is_acked = sent.acked.is_some();
    verdict.published += 1;
    verdict.acked += u64::from(is_acked);
    verdict.stored += u64::from(!places.is_empty());
    verdict.buffered += u64::from(places.is_empty() && is_buffered);
    verdict.sent_again += u64::from(sent.sends > 1);
    verdict.resent += (places.len() as u64).saturating_sub(1);
    if places.len() > sent.sends as usize {
        let places: Vec<String> = places.iter().map(Place::words).collect();
        verdict.spurious.push(format!("{} is at {}", describe(), places.join(" and ")));
    }
    for place in places {
        let is_right = message.fate == Fate::Record
            && (&*place.gateway, &*place.lane, &*place.stream, &*place.device)
                == (GATEWAY, message.lane, message.stream, &*message.device);
        if !is_right {
            verdict.misplaced.push(format!("{} is at {}", describe(), place.words()));
        }
    }
    verdict.folded_acked += u64::from(is_acked && matches!(message.fate, Fate::Folded { .. }));
    (message.fate == Fate::Record && is_acked && places.is_empty() && !is_buffered).then(describe)
}

/// MQTT 3.1.1 knows no reasons; MQTT 5 must give the right one.
fn check_reason(sent: &Sent, has_reasons: bool, verdict: &mut Verdict) {
    let expected = match sent.message.fate {
        Fate::Refused(reason) if has_reasons => reason,
        _ => 0,
    };
    if let Some((_, reason)) = sent.acked
        && reason != expected
    {
        let (payload, topic) = (text(&sent.message.payload), &sent.message.topic);
        verdict.wrong_reason.push(format!("{payload} ({topic}): {reason:#04x} instead of {expected:#04x}"));
    }
}

/// A span of a device, folded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fold {
    /// Samples.
    pub count: u64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// All together.
    pub sum: f64,
}

impl Fold {
    fn add(&mut self, other: Fold) {
        self.count += other.count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum += other.sum;
    }
}

/// Device and start of a span in Unix microseconds.
pub type Span = (String, i64);

/// What aggregates should hold, if every message is folded exactly once.
pub fn predicted_folds(reports: &[Report]) -> BTreeMap<Span, Fold> {
    let mut folds = BTreeMap::new();
    for sent in reports.iter().flat_map(|report| &report.sent) {
        if let Fate::Folded { time_us, value } = sent.message.fate {
            let start_us = time_us.div_euclid(FOLD_EVERY_US) * FOLD_EVERY_US;
            let fold = Fold { count: 1, min: value, max: value, sum: value };
            add_fold(&mut folds, (sent.message.device.clone(), start_us), fold);
        }
    }
    folds
}

/// What aggregates do hold, those of one span together.
///
/// # Panics
/// If the database cannot be read.
pub fn stored_folds(database: &Path) -> BTreeMap<Span, Fold> {
    let db = open(database);
    let mut query = db
        .prepare("SELECT device, start_us, count, min, max, mean * count FROM aggregates WHERE channel = 0")
        .expect("the view is there");
    let mut rows = query.query([]).expect("it can be read");
    let mut folds = BTreeMap::new();
    while let Some(row) = rows.next().expect("it can be read") {
        let read = |at| row.get::<_, f64>(at).expect("a number");
        let fold = Fold { count: read(2) as u64, min: read(3), max: read(4), sum: read(5) };
        add_fold(&mut folds, (row.get(0).expect("a text"), row.get(1).expect("a number")), fold);
    }
    folds
}

fn add_fold(folds: &mut BTreeMap<Span, Fold>, span: Span, fold: Fold) {
    folds.entry(span).and_modify(|before| before.add(fold)).or_insert(fold);
}

/// The database, for reading.
///
/// # Panics
/// If it cannot be opened.
pub fn open(database: &Path) -> Connection {
    Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the cloud has made its database")
}

/// One number that a query finds.
///
/// # Panics
/// If it finds none.
pub fn count(db: &Connection, query: &str) -> u64 {
    let number: i64 = db.query_row(query, [], |row| row.get(0)).expect("it finds a number");
    u64::try_from(number).expect("a count is not negative")
}

/// The texts that a query finds.
///
/// # Panics
/// If it fails.
pub fn texts(db: &Connection, query: &str) -> Vec<String> {
    let mut query = db.prepare(query).expect("the query is right");
    let rows = query.query_map([], |row| row.get(0)).expect("it can be read");
    rows.map(|row| row.expect("a text")).collect()
}

/// Payloads of all samples in the database with the places where they are.
fn stored_samples(db: &Connection) -> HashMap<Vec<u8>, Vec<Place>> {
    let mut query = db
        .prepare("SELECT payload, gateway, epoch, lane, seq, stream, device FROM samples")
        .expect("the view is as SCHEMA.md says");
    let mut rows = query.query([]).expect("it can be read");
    let mut stored: HashMap<Vec<u8>, Vec<Place>> = HashMap::new();
    while let Some(row) = rows.next().expect("it can be read") {
        let payload = match row.get_ref(0).expect("a payload") {
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
            other => panic!("a payload is text or blob, not {other:?}"),
        };
        let name = |at| row.get::<_, String>(at).expect("a name");
        let seq = row.get(4).expect("a number");
        let place = Place { gateway: name(1), epoch: name(2), lane: name(3), seq, stream: name(5), device: name(6) };
        stored.entry(payload).or_default().push(place);
    }
    stored
}

/// Records that are there more than once, over all four kinds.
fn doubled(db: &Connection) -> Vec<String> {
    texts(
        db,
        "SELECT gateway || ' ' || epoch || ' ' || lane || ' ' || seq FROM (
             SELECT gateway, epoch, lane, seq FROM samples
             UNION ALL SELECT gateway, epoch, lane, seq FROM aggregates WHERE channel = 0
             UNION ALL SELECT gateway, epoch, lane, seq FROM verdicts
             UNION ALL SELECT gateway, epoch, lane, seq FROM windows)
         GROUP BY gateway, epoch, lane, seq HAVING count(*) > 1",
    )
}

/// Raw payloads in the buffer of a box that does not run.
///
/// # Panics
/// If it cannot be read.
pub fn buffered_payloads(buffer: &Path) -> HashSet<Vec<u8>> {
    let file = BufferFile::open(buffer).expect("the box does not run");
    let mut codec = Codec::default();
    let mut payloads = HashSet::new();
    for held in file.held() {
        let block = file.load(held.header.key).expect("it can be read").expect("what is listed is there");
        let (_, records) = codec.open(&block).expect("a block in the buffer is whole");
        for record in records {
            let record = record.expect("a block in the buffer is whole");
            if record.kind == RecordKind::Raw {
                payloads.insert(record.payload.to_vec());
            }
        }
    }
    payloads
}

fn text(payload: &[u8]) -> String {
    String::from_utf8_lossy(&payload[..payload.len().min(40)]).into_owned()
}
