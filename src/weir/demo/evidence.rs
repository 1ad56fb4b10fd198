//! What is there at the end: every record in the cloud's database and in the box's buffer, read when both have stopped.

use std::collections::HashSet;
use std::path::Path;

use rusqlite::{Connection, Row};
use weir_edge::store::BufferFile;
use weir_logic::block::{Codec, Record, RecordKind};
use weir_logic::ids::{Class, PerClass};
use weir_logic::window::{Aggregate, VerdictRecord, WindowValues};

use super::DemoError;
use super::observe;
use super::publish::payload_hash;
use super::traffic::number_in;

/// A record, wherever it is.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) epoch: String,
    pub(super) lane: Class,
    pub(super) seq: i64,
    pub(super) stream: String,
    pub(super) device: String,
    /// Else it is still in the buffer of the box.
    pub(super) in_cloud: bool,
    pub(super) what: What,
}

/// What a record says.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// A message as it came: the number in its id, and its hash.
    Raw { number: Option<usize>, hash: u64 },
    /// A span of one channel.
    Aggregate { start_us: i64, count: u64, min: f64, max: f64, sum: f64 },
    /// What the model said of a window.
    Verdict { end_us: i64, label: String, confidence: f64 },
    /// A raw window, `[channels][length]`.
    Window { end_us: i64, values: Vec<f32> },
    /// A payload that is not what its kind says.
    Unreadable,
}

/// All there is.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Every record once.
    pub(super) found: Vec<Found>,
    /// Keys that are in the cloud more than once.
    pub(super) doubled: PerClass<u64>,
    pub(super) evicted: PerClass<u64>,
    pub(super) expired: PerClass<u64>,
    /// Records left out of what the box sent, because the link could not carry all.
    pub(super) thinned: PerClass<u64>,
    /// Numbers that the cloud itself calls missing.
    pub(super) missing: PerClass<u64>,
}

impl Evidence {
    /// Reads both.
    pub(super) fn read(database: &Path, buffer: &Path) -> Result<Evidence, DemoError> {
        let mut evidence = Evidence::default();
        let connection = observe::open(database)?;
        let mut known = HashSet::new();
        for found in in_cloud(&connection)? {
            if known.insert((found.epoch.clone(), found.lane, found.seq)) {
                evidence.found.push(found);
            } else {
                evidence.doubled[found.lane.index()] += 1;
            }
        }
        // The cloud may have what it could not acknowledge any more.
        for found in in_buffer(buffer)? {
            if known.insert((found.epoch.clone(), found.lane, found.seq)) {
                evidence.found.push(found);
            }
        }
        evidence.read_gaps(&connection)?;
        Ok(evidence)
    }

    /// Records of a lane that were given up or left out with a reason.
    pub(super) fn excused(&self, lane: usize) -> u64 {
        self.evicted[lane] + self.expired[lane] + self.thinned[lane]
    }

    fn read_gaps(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut select = connection.prepare(
            "SELECT lane, reason, sum(last - first + 1) FROM void_rows GROUP BY 1, 2
             UNION ALL SELECT lane, 'missing', sum(last - first + 1) FROM missing_rows GROUP BY 1
             UNION ALL SELECT lane, 'thinned', sum(left_out) FROM thinned_rows GROUP BY 1",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (lane, reason, count) =
                (row.get::<_, i64>(0)? as usize, row.get::<_, String>(1)?, row.get::<_, i64>(2)? as u64);
            let counts = match reason.as_str() {
                "evicted" => &mut self.evicted,
                "expired" => &mut self.expired,
                "thinned" => &mut self.thinned,
                // A block that the box could not read is a loss like any other.
                "missing" => &mut self.missing,
                _ => continue,
            };
            counts[lane] += count;
        }
        Ok(())
    }
}

fn in_cloud(connection: &Connection) -> rusqlite::Result<Vec<Found>> {
    let mut found = Vec::new();
    // `what` is given the row, whose own columns begin with the sixth, its stream and its device.
    let mut each =
        |columns: &str, table: &str, what: fn(&Row<'_>, &str, &str) -> rusqlite::Result<What>| -> rusqlite::Result<()> {
            let mut select = connection.prepare(&format!(
                "SELECT e.epoch, r.lane, r.seq, s.stream, s.device, {columns} FROM {table} r
             JOIN epochs e ON e.id = r.epoch_id JOIN sources s ON s.id = r.source_id"
            ))?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let (stream, device): (String, String) = (row.get(3)?, row.get(4)?);
                let lane = Class::from_index(row.get::<_, i64>(1)? as usize).unwrap_or(Class::Bulk);
                let what = what(row, &stream, &device)?;
                found.push(Found { epoch: row.get(0)?, lane, seq: row.get(2)?, stream, device, in_cloud: true, what });
            }
            Ok(())
        };
    each("r.payload", "sample_rows", |row, stream, device| {
        let payload = row.get_ref(5)?.as_bytes()?;
        Ok(What::Raw { number: number_in(payload, stream, device), hash: payload_hash(payload) })
    })?;
    each("r.start_us, r.count, r.min, r.max, r.sum", "aggregate_rows", |row, _, _| {
        let count = row.get::<_, i64>(6)? as u64;
        Ok(What::Aggregate { start_us: row.get(5)?, count, min: row.get(7)?, max: row.get(8)?, sum: row.get(9)? })
    })?;
    each("r.end_us, r.label, r.confidence", "verdict_rows", |row, _, _| {
        Ok(What::Verdict { end_us: row.get(5)?, label: row.get(6)?, confidence: row.get(7)? })
    })?;
    each("r.end_us, r.data", "window_rows", |row, _, _| {
        let (values, _) = row.get_ref(6)?.as_bytes()?.as_chunks::<4>();
        Ok(What::Window { end_us: row.get(5)?, values: values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect() })
    })?;
    Ok(found)
}

fn in_buffer(path: &Path) -> Result<Vec<Found>, DemoError> {
    let refused = |reason: String| DemoError::Part { name: "buffer", reason };
    let buffer = BufferFile::open(path).map_err(|err| refused(err.to_string()))?;
    let (mut found, mut codec) = (Vec::new(), Codec::default());
    for held in buffer.held() {
        let Some(block) = buffer.load(held.header.key).map_err(refused)? else { continue };
        let (header, records) = codec.open(&block).map_err(|err| refused(err.to_string()))?;
        for record in records {
            let record = record.map_err(|err| refused(err.to_string()))?;
            found.push(Found {
                epoch: format!("{:016x}", header.key.epoch.0),
                lane: header.key.lane,
                seq: record.seq as i64,
                stream: record.stream.to_owned(),
                device: record.device.to_owned(),
                in_cloud: false,
                what: decode(&record),
            });
        }
    }
    Ok(found)
}

fn decode(record: &Record<'_>) -> What {
    let payload = record.payload;
    match record.kind {
        RecordKind::Raw => What::Raw { number: number_in(payload, record.stream, record.device), hash: payload_hash(payload) },
        RecordKind::Aggregate => match Aggregate::decode(payload) {
            Ok(Aggregate { start_us, count, channels, .. }) if channels.len() == 1 => {
                What::Aggregate { start_us, count, min: channels[0].min, max: channels[0].max, sum: channels[0].sum }
            }
            _ => What::Unreadable,
        },
        RecordKind::Verdict => VerdictRecord::decode(payload).map_or(What::Unreadable, |verdict| What::Verdict {
            end_us: verdict.end_us,
            label: verdict.label.to_string(),
            confidence: verdict.confidence.into(),
        }),
        RecordKind::Window => WindowValues::decode(payload)
            .map_or(What::Unreadable, |window| What::Window { end_us: window.end_us, values: window.values }),
    }
}
