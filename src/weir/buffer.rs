//! `weir buffer`: looks into a box's buffer, live ones excepted, and into files that were set aside.
//!
//! Nothing here writes to the file. The gateway must be stopped, or the file copied: redb allows one process. What a
//! damaged file still holds is picked from it block by block.
#![expect(clippy::print_stdout, reason = "what it prints is what it is called for")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use weir_edge::store::{BufferFile, FileState};
use weir_logic::block::{BlockHeader, Codec, Record, RecordKind};
use weir_logic::ids::{BlockKey, Class, Epoch};
use weir_logic::store::Held;

/// What to do with a buffer's file.
#[derive(Debug, clap::Subcommand)]
pub enum BufferCommand {
    /// Show what is in it: runs, lanes, blocks, records, ages and voids
    Inspect {
        /// The buffer, a copy of it, or a file that was set aside (`*.quarantine-1`); the gateway must be stopped
        file: PathBuf,
    },
    /// Check every block; lists those that are damaged and fails if there are any
    Verify {
        /// The buffer, a copy of it, or a file that was set aside (`*.quarantine-1`); the gateway must be stopped
        file: PathBuf,
    },
    /// Write its records as JSON, one a line
    Export {
        /// The buffer, a copy of it, or a file that was set aside (`*.quarantine-1`); the gateway must be stopped
        file: PathBuf,
        /// Only this lane: critical, high, normal or bulk
        #[arg(long, value_parser = lane)]
        lane: Option<Class>,
        /// Where to write; standard output without it
        #[arg(long, value_name = "OUT")]
        jsonl: Option<PathBuf>,
    },
}

/// Does it.
///
/// # Errors
/// If the file is in use or cannot be read, if `verify` or `export` found damaged blocks, or if writing failed.
pub fn run(command: BufferCommand) -> anyhow::Result<()> {
    match command {
        BufferCommand::Inspect { file } => inspect(&BufferFile::open(&file)?, &file),
        BufferCommand::Verify { file } => verify(&BufferFile::open(&file)?, &file),
        BufferCommand::Export { file, lane, jsonl } => {
            let buffer = BufferFile::open(&file)?;
            match jsonl {
                Some(out) => {
                    let out_file = File::create_new(&out).with_context(|| format!("cannot make {}", out.display()))?;
                    export(&buffer, lane, BufWriter::new(out_file))
                }
                None => export(&buffer, lane, BufWriter::new(io::stdout().lock())),
            }
        }
    }
}

fn lane(name: &str) -> Result<Class, String> {
    let names = Class::ALL.map(Class::name).join(", ");
    Class::ALL.into_iter().find(|class| class.name() == name).ok_or_else(|| format!("lanes are {names}"))
}

/// What one lane of one run holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct LaneSum {
    blocks: u64,
    records: u64,
    bytes: u64,
    first_seq: u64,
    last_seq: u64,
    oldest_us: u64,
    newest_us: u64,
}

/// Sums by run, in their order, and lane.
fn sums(held: &[Held]) -> Vec<((Epoch, Class), LaneSum)> {
    let mut sums: Vec<((Epoch, Class), LaneSum)> = Vec::new();
    for Held { header, len } in held {
        let at = (header.key.epoch, header.key.lane);
        if sums.last().is_none_or(|(last, _)| *last != at) {
            let first = LaneSum { first_seq: header.key.first_seq, oldest_us: header.born_us, ..LaneSum::default() };
            sums.push((at, first));
        }
        let Some((_, sum)) = sums.last_mut() else { continue };
        sum.blocks += 1;
        sum.records += u64::from(header.count);
        sum.bytes += u64::from(*len);
        sum.last_seq = sum.last_seq.max(header.last_seq);
        sum.oldest_us = sum.oldest_us.min(header.born_us);
        sum.newest_us = sum.newest_us.max(header.born_us);
    }
    sums
}

fn inspect(buffer: &BufferFile, path: &Path) -> anyhow::Result<()> {
    let mut out = String::new();
    describe(buffer, path, &mut out)?;
    print!("{out}");
    Ok(())
}

fn describe(buffer: &BufferFile, path: &Path, out: &mut String) -> std::fmt::Result {
    use std::fmt::Write as _;
    writeln!(out, "{}: {}", path.display(), size(buffer.file_bytes()))?;
    writeln!(out, "{}", state(buffer.state()))?;
    let wall = buffer.wall_us().map_or("never".to_owned(), rfc3339);
    writeln!(out, "service time {}, clock last trusted at {wall}", span(buffer.service_us()))?;
    writeln!(out)?;
    writeln!(
        out,
        "{:16}  {:8}  {:>8}  {:>10}  {:>10}  {:>21}  age",
        "run (oldest first)", "lane", "blocks", "records", "size", "sequence"
    )?;
    let now_us = buffer.service_us();
    let mut totals: BTreeMap<Class, (u64, u64)> = BTreeMap::new();
    for ((epoch, lane), sum) in sums(buffer.held()) {
        let ages = format!("{} to {}", span(now_us.saturating_sub(sum.oldest_us)), span(now_us.saturating_sub(sum.newest_us)));
        let seqs = format!("{}-{}", sum.first_seq, sum.last_seq);
        let (records, bytes) = totals.entry(lane).or_default();
        *records += sum.records;
        *bytes += sum.bytes;
        writeln!(
            out,
            "{:016x}    {:8}  {:>8}  {:>10}  {:>10}  {seqs:>21}  {ages}",
            epoch.0,
            lane.name(),
            sum.blocks,
            sum.records,
            size(sum.bytes)
        )?;
    }
    for (lane, (records, bytes)) in totals {
        writeln!(out, "all {}: {records} records, {}", lane.name(), size(bytes))?;
    }
    writeln!(out, "{} of {} blocks are fragments", buffer.fragments(), buffer.held().len())?;
    for void in buffer.voids() {
        writeln!(out, "void: {} to {}, {}", key(void.key), void.last_seq, void.reason.name())?;
    }
    for damaged in buffer.damaged() {
        writeln!(out, "damaged: {}", key(*damaged))?;
    }
    Ok(())
}

fn verify(buffer: &BufferFile, path: &Path) -> anyhow::Result<()> {
    println!("{}", state(buffer.state()));
    let mut codec = Codec::default();
    let mut damaged: Vec<(BlockKey, String)> =
        buffer.damaged().iter().map(|&key| (key, "this is not a block".to_owned())).collect();
    let mut records = 0;
    for held in buffer.held() {
        match check(buffer, held, &mut codec) {
            Ok(count) => records += count,
            Err(reason) => damaged.push((held.header.key, reason)),
        }
    }
    for (at, reason) in &damaged {
        println!("damaged: {}: {reason}", key(*at));
    }
    println!("{} blocks, {records} records intact, {} blocks damaged", buffer.held().len(), damaged.len());
    if let FileState::Salvaged { .. } = buffer.state() {
        bail!("{} cannot be opened as a buffer; `weir buffer export` writes what is intact", path.display());
    }
    if !damaged.is_empty() {
        bail!("{} of the blocks in {} are damaged", damaged.len(), path.display());
    }
    Ok(())
}

/// Decodes a block; returns its number of records.
fn check(buffer: &BufferFile, held: &Held, codec: &mut Codec) -> Result<u64, String> {
    let mut count = 0;
    decode(buffer, held, codec, |_, _| {
        count += 1;
        Ok(())
    })
    .map_err(|err| format!("{err:#}"))?;
    if count != u64::from(held.header.count) {
        return Err(format!("{count} records instead of {}", held.header.count));
    }
    Ok(count)
}

fn decode(
    buffer: &BufferFile,
    held: &Held,
    codec: &mut Codec,
    mut each: impl FnMut(&BlockHeader, &Record<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let block = buffer.load(held.header.key).map_err(anyhow::Error::msg)?.context("listed, but not there")?;
    let (header, records) = codec.open(&block)?;
    for record in records {
        each(&header, &record?)?;
    }
    Ok(())
}

/// One line of the export.
#[derive(Debug, Serialize)]
struct Line<'a> {
    epoch: String,
    lane: &'static str,
    seq: u64,
    stream: &'a str,
    device: &'a str,
    kind: &'static str,
    /// When it was received, as far as the clock was trusted when the block was made.
    time: Option<String>,
    service_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl<'a> Line<'a> {
    fn new(header: &BlockHeader, record: &Record<'a>) -> Line<'a> {
        let text = match record.kind {
            RecordKind::Raw => std::str::from_utf8(record.payload).ok(),
            RecordKind::Aggregate | RecordKind::Verdict | RecordKind::Window => None,
        };
        let time = header.wall_offset_us.and_then(|offset| offset.checked_add_unsigned(record.at_us));
        Line {
            epoch: format!("{:016x}", header.key.epoch.0),
            lane: header.key.lane.name(),
            seq: record.seq,
            stream: record.stream,
            device: record.device,
            kind: kind(record.kind),
            time: time.map(rfc3339),
            service_us: record.at_us,
            payload: text,
            payload_base64: text.is_none().then(|| base64(record.payload)),
        }
    }
}

fn export(buffer: &BufferFile, lane: Option<Class>, mut out: impl Write) -> anyhow::Result<()> {
    let mut codec = Codec::default();
    let mut damaged: Vec<String> = buffer.damaged().iter().map(|&at| key(at)).collect();
    for held in buffer.held().iter().filter(|held| lane.is_none_or(|lane| held.header.key.lane == lane)) {
        let mut written = Ok(());
        let decoded = decode(buffer, held, &mut codec, |header, record| {
            written = write_line(&mut out, &Line::new(header, record));
            if written.is_err() { bail!("not written") } else { Ok(()) }
        });
        written.context("the export cannot be written")?;
        if let Err(err) = decoded {
            damaged.push(format!("{} ({err:#})", key(held.header.key)));
        }
    }
    out.flush().context("the export cannot be written")?;
    if !damaged.is_empty() {
        bail!("all but {} damaged blocks were written: {}", damaged.len(), damaged.join("; "));
    }
    Ok(())
}

fn write_line(out: &mut impl Write, line: &Line<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

fn kind(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Raw => "raw",
        RecordKind::Aggregate => "aggregate",
        RecordKind::Verdict => "verdict",
        RecordKind::Window => "window",
    }
}

fn state(state: &FileState) -> String {
    match state {
        FileState::Clean => "it was closed".to_owned(),
        FileState::Unclean => {
            "it was not closed: the gateway or the box stopped while it was open; the next start repairs it".to_owned()
        }
        FileState::Salvaged { reason } => format!(
            "it cannot be opened ({reason}): what follows are the intact blocks found in it, some of which may have been \
             delivered and deleted before"
        ),
    }
}

fn key(key: BlockKey) -> String {
    format!("{} {:016x} {}", key.lane.name(), key.epoch.0, key.first_seq)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn span(us: u64) -> String {
    let seconds = us / 1_000_000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{:.1} h", seconds as f64 / 3600.0),
        _ => format!("{:.1} d", seconds as f64 / 86_400.0),
    }
}

/// Unix microseconds as `2026-01-31T12:00:00.000000Z`.
fn rfc3339(unix_us: i64) -> String {
    let (days, us) = (unix_us.div_euclid(86_400_000_000), unix_us.rem_euclid(86_400_000_000));
    let seconds = us / 1_000_000;
    // Howard Hinnant's civil_from_days: years begin in March, so that the leap day is the last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", us % 1_000_000)
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for n in 0..4 {
            let sextet = (bits >> (18 - 6 * n)) as usize & 63;
            out.push(if n <= chunk.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests;
