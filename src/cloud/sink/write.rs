//! One transaction: blocks become rows, and ranges become coverage.
//!
//! Statements are prepared once per connection. Ids of gateways, epochs and sources are remembered, and forgotten after a
//! rollback, because what they name may have been rolled back too. Each block is read to its end before its first row is
//! written: one that cannot be read goes into quarantine as it is, counts as stored, and an operator is told. Refusing it
//! would make the box send it again for ever, and keep from us all that waits behind it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension, Statement, params};
use weir_logic::block::{BlockHeader, Codec, Fidelity, Record, RecordKind};
use weir_logic::ids::{BlockKey, Epoch};
use weir_logic::ranges::RangeSet;
use weir_logic::receive::Store;
use weir_logic::store::SeqRange;
use weir_logic::window::{Aggregate, VerdictRecord, WindowValues};

use super::load::epoch_text;
use super::{Job, Work};

/// Ids remembered of each kind; above it they are read from the database again.
const IDS_MAX: usize = 100_000;
/// Alerts kept.
const ALERTS_MAX: i64 = 10_000;

/// What a committed transaction did.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) committed: BTreeMap<Arc<str>, Vec<SeqRange>>,
    pub(super) quarantined: Vec<(Arc<str>, String)>,
    pub(super) rows: u64,
    /// Rows whose key was there already.
    pub(super) rows_refused: u64,
    covered: BTreeMap<(i64, usize), RangeSet>,
    gateways: BTreeSet<i64>,
}

pub(super) struct Writer<'c> {
    connection: &'c Connection,
    codec: Codec,
    ids: Ids<'c>,
    rows: Rows<'c>,
    void: Statement<'c>,
    thinned: Statement<'c>,
    coverage: Coverage<'c>,
    seen: Statement<'c>,
    batch: Batch,
}

impl<'c> Writer<'c> {
    pub(super) fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Writer {
            connection,
            codec: Codec::default(),
            ids: Ids::new(connection)?,
            rows: Rows::new(connection)?,
            void: connection.prepare("INSERT OR IGNORE INTO void_rows VALUES (?, ?, ?, ?, ?, ?)")?,
            thinned: connection.prepare("INSERT OR IGNORE INTO thinned_rows VALUES (?, ?, ?, ?, ?, ?)")?,
            coverage: Coverage::new(connection)?,
            seen: connection.prepare("UPDATE gateways SET last_seen_us = ? WHERE id = ?")?,
            batch: Batch::default(),
        })
    }

    pub(super) fn begin(&mut self) -> rusqlite::Result<()> {
        self.connection.execute_batch("BEGIN IMMEDIATE")
    }

    /// Gives up the transaction and what was remembered within it.
    pub(super) fn rollback(&mut self) {
        self.batch = Batch::default();
        self.ids.forget();
        // SQLite has rolled back by itself after some errors.
        if !self.connection.is_autocommit()
            && let Err(err) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::warn!(%err, "transaction not rolled back");
        }
    }

    pub(super) fn commit(&mut self, now_us: i64) -> rusqlite::Result<Batch> {
        for (&(epoch_id, lane), ranges) in &self.batch.covered {
            for range in ranges.iter() {
                self.coverage.add(epoch_id, lane, range.into_inner())?;
            }
        }
        for id in &self.batch.gateways {
            self.seen.execute(params![now_us, id])?;
        }
        self.connection.execute_batch("COMMIT")?;
        Ok(std::mem::take(&mut self.batch))
    }

    pub(super) fn apply(&mut self, job: &Job, now_us: i64) -> rusqlite::Result<()> {
        if let Work::PolicyFound { version, file, signature } = &job.work {
            let sql = "INSERT OR IGNORE INTO policies VALUES (?, ?, ?, ?)";
            return self.connection.execute(sql, params![version, file, signature, now_us]).map(drop);
        }
        if let Work::ModelFound { task, version, file, sha256 } = &job.work {
            let sql = "INSERT OR IGNORE INTO models VALUES (?, ?, ?, ?, ?)";
            return self.connection.execute(sql, params![task, version, file, sha256, now_us]).map(drop);
        }
        let gateway_id = self.ids.gateway(&job.gateway, now_us)?;
        self.batch.gateways.insert(gateway_id);
        match &job.work {
            Work::Store(store) => self.store(&job.gateway, gateway_id, store, now_us),
            Work::Void(void) => {
                let epoch_id = self.ids.epoch(gateway_id, void.key.epoch, now_us)?;
                let (lane, first) = (void.key.lane.index(), void.key.first_seq);
                self.void.execute(params![epoch_id, lane, first, void.last_seq, void.reason.name(), now_us])?;
                self.cover(&job.gateway, epoch_id, void.key, &[(first, void.last_seq)]);
                Ok(())
            }
            Work::EpochOpened(epoch, _) => {
                let id = self.ids.epoch(gateway_id, *epoch, now_us)?;
                self.connection.execute("UPDATE epochs SET state = 'open', takeovers = takeovers + 1 WHERE id = ?", [id])?;
                self.connection.execute("UPDATE gateways SET current_epoch_id = ? WHERE id = ?", [id, gateway_id])?;
                Ok(())
            }
            Work::EpochsClosed(except) => self.close_epochs(gateway_id, except),
            Work::Missing(range) => {
                let epoch_id = self.ids.epoch(gateway_id, range.key.epoch, now_us)?;
                let sql = "INSERT OR REPLACE INTO missing_rows VALUES (?, ?, ?, ?, ?)";
                let row = params![epoch_id, range.key.lane.index(), range.key.first_seq, range.last_seq, now_us];
                self.connection.execute(sql, row).map(drop)
            }
            Work::PolicyState { version, state, reason } => {
                let sql = "INSERT OR REPLACE INTO policy_rows VALUES (?, ?, ?, ?, ?)";
                self.connection.execute(sql, params![version, gateway_id, state.name(), reason, now_us]).map(drop)
            }
            Work::ModelState { task, version, state, reason } => {
                let sql = "INSERT OR REPLACE INTO model_rows VALUES (?, ?, ?, ?, ?, ?)";
                self.connection.execute(sql, params![task, version, gateway_id, state.name(), reason, now_us]).map(drop)
            }
            // Of no gateway.
            Work::PolicyFound { .. } | Work::ModelFound { .. } => Ok(()),
            Work::Alert(kind, text) => self.alert(&job.gateway, kind, text, now_us),
        }
    }

    fn store(&mut self, gateway: &Arc<str>, gateway_id: i64, store: &Store, now_us: i64) -> rusqlite::Result<()> {
        let header = &store.header;
        let epoch_id = self.ids.epoch(gateway_id, header.key.epoch, now_us)?;
        match readable(&mut self.codec, header, store) {
            Ok(records) => {
                let (offset_us, clock) = match header.wall_offset_us {
                    Some(offset_us) => (offset_us, CLOCK_BOX),
                    None => (store.wall_offset_us, CLOCK_CLOUD),
                };
                let place = Place { epoch_id, lane: header.key.lane.index(), clock, offset_us };
                self.rows.bind_place(&place)?;
                let mut sources = HashMap::new();
                let mut kept = 0;
                for record in records {
                    if !store.takes.iter().any(|&(first, last)| (first..=last).contains(&record.seq)) {
                        continue;
                    }
                    kept += 1;
                    let name = (record.stream.as_ptr() as usize, record.device.as_ptr() as usize);
                    let source_id = match sources.get(&name) {
                        Some(&id) => id,
                        None => *sources.entry(name).or_insert(self.ids.source(gateway_id, record.stream, record.device)?),
                    };
                    let rows = self.rows.insert(&place, source_id, &record)?;
                    self.batch.rows += rows;
                    self.batch.rows_refused += u64::from(rows == 0);
                }
                let wanted: u64 = store.takes.iter().map(|&(first, last)| last - first + 1).sum();
                if header.fidelity == Fidelity::Thinned && wanted > kept {
                    let (lane, first) = (header.key.lane.index(), header.key.first_seq);
                    self.thinned.execute(params![epoch_id, lane, first, header.last_seq, wanted - kept, now_us])?;
                }
            }
            Err(reason) => {
                let (lane, first, last) = (header.key.lane.index(), header.key.first_seq, header.last_seq);
                let sql =
                    "INSERT INTO quarantine (epoch_id, lane, first, last, reason, at_us, block) VALUES (?, ?, ?, ?, ?, ?, ?)";
                let block: &[u8] = &store.block;
                self.connection.execute(sql, params![epoch_id, lane, first, last, reason, now_us, block])?;
                let text = format!("block {first} to {last} of lane {} cannot be read: {reason}", header.key.lane.name());
                self.alert(gateway, "quarantine", &text, now_us)?;
                self.batch.quarantined.push((gateway.clone(), text));
            }
        }
        self.cover(gateway, epoch_id, header.key, &store.takes);
        Ok(())
    }

    fn cover(&mut self, gateway: &Arc<str>, epoch_id: i64, key: BlockKey, ranges: &[(u64, u64)]) {
        let covered = self.batch.covered.entry((epoch_id, key.lane.index())).or_default();
        let committed = self.batch.committed.entry(gateway.clone()).or_default();
        for &(first_seq, last_seq) in ranges {
            covered.insert(first_seq..=last_seq);
            committed.push(SeqRange { key: BlockKey { first_seq, ..key }, last_seq });
        }
    }

    fn close_epochs(&mut self, gateway_id: i64, except: &[Epoch]) -> rusqlite::Result<()> {
        let except: BTreeSet<String> = except.iter().map(|&epoch| epoch_text(epoch)).collect();
        let mut select = self.connection.prepare("SELECT id, epoch, state FROM epochs WHERE gateway_id = ?")?;
        let mut rows = select.query([gateway_id])?;
        while let Some(row) = rows.next()? {
            let (id, epoch, state): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let wanted = if except.contains(&epoch) { "open" } else { "closed" };
            if state != wanted {
                self.connection.execute("UPDATE epochs SET state = ? WHERE id = ?", params![wanted, id])?;
            }
        }
        Ok(())
    }

    fn alert(&mut self, gateway: &str, kind: &str, text: &str, now_us: i64) -> rusqlite::Result<()> {
        let sql = "INSERT INTO alerts (at_us, gateway, kind, text) VALUES (?, ?, ?, ?)";
        self.connection.execute(sql, params![now_us, gateway, kind, text])?;
        let oldest = self.connection.last_insert_rowid() - ALERTS_MAX;
        self.connection.execute("DELETE FROM alerts WHERE id <= ?", [oldest]).map(drop)
    }
}

/// Reads a block to its end, and says what is wrong with it.
fn readable<'a>(codec: &'a mut Codec, header: &BlockHeader, store: &Store) -> Result<Vec<Record<'a>>, String> {
    let (_, records) = codec.open(&store.block).map_err(|err| err.to_string())?;
    let mut readable = Vec::with_capacity(header.count.min(1 << 16) as usize);
    let mut next = header.key.first_seq;
    for record in records {
        let record = record.map_err(|err| err.to_string())?;
        if record.seq < next || record.seq > header.last_seq {
            return Err(format!("record {} is out of order or outside its block", record.seq));
        }
        next = record.seq + 1;
        match record.kind {
            RecordKind::Raw => Ok(()),
            RecordKind::Aggregate => Aggregate::decode(record.payload).map(drop),
            RecordKind::Verdict => VerdictRecord::decode(record.payload).map(drop),
            RecordKind::Window => WindowValues::decode(record.payload).map(drop),
        }
        .map_err(|err| format!("record {}: {err}", record.seq))?;
        readable.push(record);
    }
    if readable.len() != header.count as usize {
        return Err(format!("{} records where the header says {}", readable.len(), header.count));
    }
    Ok(readable)
}

/// `clock` in the database: the box's own, or what the cloud estimated.
const CLOCK_BOX: i64 = 0;
const CLOCK_CLOUD: i64 = 1;

struct Place {
    epoch_id: i64,
    lane: usize,
    clock: i64,
    offset_us: i64,
}

impl Place {
    fn unix_us(&self, service_us: u64) -> i64 {
        self.offset_us.saturating_add_unsigned(service_us)
    }

    /// A time from inside a payload.
    fn payload_us(&self, record: &Record<'_>, us: i64) -> i64 {
        if record.service_time { us.saturating_add(self.offset_us) } else { us }
    }
}

/// The tables of records.
struct Rows<'c> {
    sample: Statement<'c>,
    aggregate: Statement<'c>,
    verdict: Statement<'c>,
    window: Statement<'c>,
}

impl<'c> Rows<'c> {
    fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        let insert = |table: &str, columns: usize| {
            let places = vec!["?"; columns].join(", ");
            connection.prepare(&format!("INSERT OR IGNORE INTO {table} VALUES ({places})"))
        };
        Ok(Rows {
            sample: insert("sample_rows", 7)?,
            aggregate: insert("aggregate_rows", 15)?,
            verdict: insert("verdict_rows", 13)?,
            window: insert("window_rows", 11)?,
        })
    }

    /// Binds what all samples of a block have in common, once.
    fn bind_place(&mut self, place: &Place) -> rusqlite::Result<()> {
        self.sample.raw_bind_parameter(1, place.epoch_id)?;
        self.sample.raw_bind_parameter(2, place.lane)?;
        self.sample.raw_bind_parameter(6, place.clock)
    }

    /// Writes a record and returns how many rows that made; 0 if it was there already.
    fn insert(&mut self, place: &Place, source_id: i64, record: &Record<'_>) -> rusqlite::Result<u64> {
        let t_us = place.unix_us(record.at_us);
        let head: [&dyn ToSql; 4] = [&place.epoch_id, &place.lane, &record.seq, &source_id];
        match record.kind {
            RecordKind::Raw => {
                self.sample.raw_bind_parameter(3, record.seq)?;
                self.sample.raw_bind_parameter(4, source_id)?;
                self.sample.raw_bind_parameter(5, t_us)?;
                match std::str::from_utf8(record.payload) {
                    Ok(text) => self.sample.raw_bind_parameter(7, text)?,
                    Err(_) => self.sample.raw_bind_parameter(7, record.payload)?,
                }
                self.sample.raw_execute().map(|rows| rows as u64)
            }
            RecordKind::Aggregate => {
                let Ok(aggregate) = Aggregate::decode(record.payload) else { return Ok(0) };
                let [start_us, end_us, first_us, last_us] =
                    [aggregate.start_us, aggregate.end_us, aggregate.first_us, aggregate.last_us]
                        .map(|us| place.payload_us(record, us));
                let mut rows = 0;
                for (channel, values) in aggregate.channels.iter().enumerate() {
                    let count = i64::try_from(aggregate.count).unwrap_or(i64::MAX);
                    rows += self.aggregate.execute(params![
                        place.epoch_id,
                        place.lane,
                        record.seq,
                        channel,
                        source_id,
                        t_us,
                        place.clock,
                        start_us,
                        end_us,
                        first_us,
                        last_us,
                        count,
                        values.min,
                        values.max,
                        values.sum
                    ])?;
                }
                Ok(rows as u64)
            }
            RecordKind::Verdict => {
                let Ok(verdict) = VerdictRecord::decode(record.payload) else { return Ok(0) };
                let [start_us, end_us] = [verdict.start_us, verdict.end_us].map(|us| place.payload_us(record, us));
                let (score, confidence) = (f64::from(verdict.score), f64::from(verdict.confidence));
                let tail: [&dyn ToSql; 9] = [
                    &t_us,
                    &place.clock,
                    &start_us,
                    &end_us,
                    &&*verdict.model,
                    &&*verdict.version,
                    &&*verdict.label,
                    &score,
                    &confidence,
                ];
                self.verdict.execute([&head[..], &tail[..]].concat().as_slice()).map(|rows| rows as u64)
            }
            RecordKind::Window => {
                let Ok(window) = WindowValues::decode(record.payload) else { return Ok(0) };
                let [start_us, end_us] = [window.start_us, window.end_us].map(|us| place.payload_us(record, us));
                let data: Vec<u8> = window.values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let length = window.values.len() / window.channels.max(1);
                let tail: [&dyn ToSql; 7] = [&t_us, &place.clock, &start_us, &end_us, &window.channels, &length, &data];
                self.window.execute([&head[..], &tail[..]].concat().as_slice()).map(|rows| rows as u64)
            }
        }
    }
}

/// A row of `sources`.
#[derive(PartialEq, Eq, Hash)]
struct Source {
    gateway_id: i64,
    stream: Box<str>,
    device: Box<str>,
}

/// Names and their ids.
struct Ids<'c> {
    gateways: HashMap<Arc<str>, i64>,
    epochs: HashMap<(i64, Epoch), i64>,
    sources: HashMap<Source, i64>,
    gateway_insert: Statement<'c>,
    gateway_select: Statement<'c>,
    epoch_insert: Statement<'c>,
    epoch_select: Statement<'c>,
    source_insert: Statement<'c>,
    source_select: Statement<'c>,
}

impl<'c> Ids<'c> {
    fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Ids {
            gateways: HashMap::new(),
            epochs: HashMap::new(),
            sources: HashMap::new(),
            gateway_insert: connection
                .prepare("INSERT OR IGNORE INTO gateways (name, first_seen_us, last_seen_us) VALUES (?1, ?2, ?2)")?,
            gateway_select: connection.prepare("SELECT id FROM gateways WHERE name = ?")?,
            epoch_insert: connection.prepare(
                "INSERT OR IGNORE INTO epochs (gateway_id, epoch, state, takeovers, first_seen_us) VALUES (?, ?, 'open', 0, ?)",
            )?,
            epoch_select: connection.prepare("SELECT id FROM epochs WHERE gateway_id = ? AND epoch = ?")?,
            source_insert: connection
                .prepare("INSERT INTO sources (gateway_id, stream, device) VALUES (?, ?, ?) RETURNING id")?,
            source_select: connection.prepare("SELECT id FROM sources WHERE gateway_id = ? AND stream = ? AND device = ?")?,
        })
    }

    fn forget(&mut self) {
        self.gateways.clear();
        self.epochs.clear();
        self.sources.clear();
    }

    fn gateway(&mut self, name: &Arc<str>, now_us: i64) -> rusqlite::Result<i64> {
        if let Some(&id) = self.gateways.get(name) {
            return Ok(id);
        }
        if self.gateways.len() >= IDS_MAX {
            self.forget();
        }
        self.gateway_insert.execute(params![&**name, now_us])?;
        let id = self.gateway_select.query_row([&**name], |row| row.get(0))?;
        self.gateways.insert(name.clone(), id);
        Ok(id)
    }

    fn epoch(&mut self, gateway_id: i64, epoch: Epoch, now_us: i64) -> rusqlite::Result<i64> {
        if let Some(&id) = self.epochs.get(&(gateway_id, epoch)) {
            return Ok(id);
        }
        if self.epochs.len() >= IDS_MAX {
            self.forget();
        }
        let text = epoch_text(epoch);
        self.epoch_insert.execute(params![gateway_id, text, now_us])?;
        let id = self.epoch_select.query_row(params![gateway_id, text], |row| row.get(0))?;
        self.epochs.insert((gateway_id, epoch), id);
        Ok(id)
    }

    fn source(&mut self, gateway_id: i64, stream: &str, device: &str) -> rusqlite::Result<i64> {
        let source = Source { gateway_id, stream: stream.into(), device: device.into() };
        if let Some(&id) = self.sources.get(&source) {
            return Ok(id);
        }
        if self.sources.len() >= IDS_MAX {
            self.sources.clear();
        }
        let found = self.source_select.query_row(params![gateway_id, stream, device], |row| row.get(0)).optional()?;
        let id = match found {
            Some(id) => id,
            None => self.source_insert.query_row(params![gateway_id, stream, device], |row| row.get(0))?,
        };
        self.sources.insert(source, id);
        Ok(id)
    }
}

/// Keeps `coverage` as disjoint ranges that do not touch, and takes out of `missing_rows` what has arrived.
struct Coverage<'c> {
    below: Statement<'c>,
    insert: Statement<'c>,
    delete: Statement<'c>,
    missing_below: Statement<'c>,
    missing_insert: Statement<'c>,
    missing_delete: Statement<'c>,
}

impl<'c> Coverage<'c> {
    fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        let below = |table: &str, more: &str| {
            let sql = format!(
                "SELECT first, last{more} FROM {table} WHERE epoch_id = ? AND lane = ? AND first <= ? ORDER BY first DESC LIMIT 1"
            );
            connection.prepare(&sql)
        };
        let delete =
            |table: &str| connection.prepare(&format!("DELETE FROM {table} WHERE epoch_id = ? AND lane = ? AND first = ?"));
        Ok(Coverage {
            below: below("coverage", ", 0")?,
            insert: connection.prepare("INSERT INTO coverage VALUES (?, ?, ?, ?)")?,
            delete: delete("coverage")?,
            missing_below: below("missing_rows", ", found_us")?,
            missing_insert: connection.prepare("INSERT INTO missing_rows VALUES (?, ?, ?, ?, ?)")?,
            missing_delete: delete("missing_rows")?,
        })
    }

    fn add(&mut self, epoch_id: i64, lane: usize, (first, last): (u64, u64)) -> rusqlite::Result<()> {
        let (mut from, mut to) = (first, last);
        while let Some((start, end, _)) = highest(&mut self.below, epoch_id, lane, to.saturating_add(1).min(i64::MAX as u64))? {
            if end.saturating_add(1) < from {
                break;
            }
            self.delete.execute(params![epoch_id, lane, start])?;
            from = from.min(start);
            to = to.max(end);
        }
        self.insert.execute(params![epoch_id, lane, from, to])?;
        while let Some((start, end, found_us)) = highest(&mut self.missing_below, epoch_id, lane, last)? {
            if end < first {
                break;
            }
            self.missing_delete.execute(params![epoch_id, lane, start])?;
            if end > last {
                self.missing_insert.execute(params![epoch_id, lane, last + 1, end, found_us])?;
            }
            if start < first {
                self.missing_insert.execute(params![epoch_id, lane, start, first - 1, found_us])?;
            }
        }
        Ok(())
    }
}

/// The highest range that starts at `most` or below.
fn highest(select: &mut Statement<'_>, epoch_id: i64, lane: usize, most: u64) -> rusqlite::Result<Option<(u64, u64, i64)>> {
    select.query_row(params![epoch_id, lane, most], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()
}
