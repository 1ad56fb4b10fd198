//! The process that a model on trial runs in: what it does there costs nobody else anything.
//!
//! `weir-edge model-child` reads a [`Job`] from its standard input, limits itself before it touches the model's bytes, loads the
//! model, says so, and then answers batches until its input ends. It has no network or file of ours but the model's, may write
//! none, and dies with the gateway. Its answers are numbers in a fixed form, which the gateway checks: a model that has taken
//! over its process could not say more than a bad model can.
//!
//! A batch is a `u32` of rows, and for each row device (`u64`), first and last time (`i64` each) and the window's `f32`s; the
//! answer is the processor time it took in microseconds (`u64`), and for each row a tag, `1` with label (`i32`, -1 for none), score and confidence (`f32`), or `0` with a `u32` length and
//! a text. All little-endian.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, Signal};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use weir_infer::{Answer, Backend, Manifest, Model, Origin, Row, RuntimeLibrary};

/// The word after `weir-edge` that starts it.
pub const SUBCOMMAND: &str = "model-child";
/// Rows of a batch at most.
pub const ROWS_MAX: usize = 32;
/// Longest text of an error, in bytes.
pub(crate) const TEXT_LEN_MAX: usize = 1_024;

/// What a process is started for: one line of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Text of the manifest.
    pub manifest: String,
    /// The ONNX file; its sum is that of the manifest.
    pub file: PathBuf,
    /// Which engine.
    pub backend: Backend,
    /// The ONNX Runtime library, if the configuration names one.
    pub library: Option<PathBuf>,
    /// Address space that it may take, in bytes.
    pub memory_bytes: u64,
    /// Processor time that loading, and then each batch, may take, in seconds.
    pub cpu_s: u64,
}

/// What is said once: that the model is loaded, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Loaded {
    pub(crate) error: Option<String>,
}

/// Runs to the end of its standard input.
pub fn run() -> ExitCode {
    let (stdin, stdout) = (io::stdin().lock(), io::stdout().lock());
    match serve(BufReader::new(stdin), stdout) {
        Ok(()) => ExitCode::SUCCESS,
        // The gateway has gone, or its pipe: there is nobody to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(mut from: impl BufRead, mut to: impl Write) -> io::Result<()> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let job: Job = serde_json::from_str(&line)?;
    let loaded = limit(&job).map_err(|err| format!("its process cannot be limited: {err}")).and_then(|()| load(&job));
    let error = loaded.as_ref().err().cloned();
    to.write_all(&serde_json::to_vec(&Loaded { error })?)?;
    to.write_all(b"\n")?;
    to.flush()?;
    let Ok(mut model) = loaded else { return Ok(()) };
    let (mut bytes, mut answer) = (Vec::new(), Vec::new());
    let row_len = model.manifest().row_len();
    loop {
        let mut count = [0; 4];
        match from.read_exact(&mut count) {
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let rows = u32::from_le_bytes(count) as usize;
        if rows > ROWS_MAX {
            return Err(io::Error::other("too many rows"));
        }
        bytes.resize(rows * row_bytes(row_len), 0);
        from.read_exact(&mut bytes)?;
        limit_cpu(job.cpu_s)?;
        answer.clear();
        let before_us = cpu_us();
        score(&mut model, &bytes, row_len, &mut answer);
        to.write_all(&cpu_us().saturating_sub(before_us).to_le_bytes())?;
        to.write_all(&answer)?;
        to.flush()?;
    }
}

/// Limits this process, while nothing of the model has run.
fn limit(job: &Job) -> io::Result<()> {
    let at_most = |resource, most| {
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(io::Error::from)
    };
    at_most(Resource::As, job.memory_bytes)?;
    at_most(Resource::Core, 0)?;
    at_most(Resource::Fsize, 0)?;
    limit_cpu(job.cpu_s)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // What the sensors wait for goes first.
    rustix::process::nice(10)?;
    Ok(())
}

/// So much processor time more than was used, and the system ends the process.
fn limit_cpu(more_s: u64) -> io::Result<()> {
    let limit = Rlimit { current: Some(cpu_us() / 1_000_000 + more_s + 1), maximum: None };
    rustix::process::setrlimit(Resource::Cpu, limit).map_err(io::Error::from)
}

/// Processor time of this process, all threads, in microseconds.
fn cpu_us() -> u64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec.unsigned_abs() * 1_000_000 + used.tv_nsec.unsigned_abs() / 1_000
}

fn load(job: &Job) -> Result<Model, String> {
    let folder = job.file.parent().unwrap_or(&job.file);
    let mut manifest = Manifest::parse(&job.manifest, folder)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    manifest.file.clone_from(&job.file);
    let library = RuntimeLibrary::from_env(job.library.clone());
    let model = manifest.model_bytes().and_then(|bytes| Model::from_bytes(manifest, bytes, job.backend, &library));
    model.map_err(|err| err.to_string())
}

fn score(model: &mut Model, bytes: &[u8], row_len: usize, answer: &mut Vec<u8>) {
    let mut windows: Vec<(Origin, Vec<f32>)> = Vec::new();
    for row in bytes.chunks_exact(row_bytes(row_len)) {
        let (head, values) = row.split_at(ORIGIN_LEN);
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes of three times eight"));
        let origin = Origin { device: word(0), start_us: word(8) as i64, end_us: word(16) as i64 };
        let value = |four: &[u8]| f32::from_le_bytes(four.try_into().expect("chunks of four"));
        windows.push((origin, values.chunks_exact(4).map(value).collect()));
    }
    let rows: Vec<Row<'_>> = windows.iter().map(|(origin, window)| Row { window, origin: Some(*origin) }).collect();
    for result in model.score_rows(&rows) {
        match result {
            Ok(Answer { verdict, .. }) => {
                answer.push(1);
                answer.extend(verdict.label.map_or(-1, |label| label as i32).to_le_bytes());
                answer.extend(verdict.score.to_le_bytes());
                answer.extend(verdict.confidence.to_le_bytes());
            }
            Err(err) => {
                let text = err.to_string();
                let text = &text.as_bytes()[..text.len().min(TEXT_LEN_MAX)];
                answer.push(0);
                answer.extend((text.len() as u32).to_le_bytes());
                answer.extend(text);
            }
        }
    }
}

/// Puts a row into a batch.
pub(crate) fn put_row(batch: &mut Vec<u8>, origin: &Origin, window: &[f32]) {
    batch.extend(origin.device.to_le_bytes());
    batch.extend(origin.start_us.to_le_bytes());
    batch.extend(origin.end_us.to_le_bytes());
    window.iter().for_each(|value| batch.extend(value.to_le_bytes()));
}

/// Takes the processor time of a batch, in microseconds.
pub(crate) fn take_time(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Takes the answer to a row; an error of its own in words.
pub(crate) fn take_row(from: &mut impl Read) -> io::Result<Result<(i32, f32, f32), String>> {
    let mut tag = [0];
    from.read_exact(&mut tag)?;
    if tag == [1] {
        return Ok(Ok((i32::from_le_bytes(four(from)?), f32::from_le_bytes(four(from)?), f32::from_le_bytes(four(from)?))));
    }
    let len = u32::from_le_bytes(four(from)?) as usize;
    if len > TEXT_LEN_MAX {
        return Err(io::Error::other("a text that is too long"));
    }
    let mut text = vec![0; len];
    from.read_exact(&mut text)?;
    Ok(Err(String::from_utf8_lossy(&text).into_owned()))
}

fn four(from: &mut impl Read) -> io::Result<[u8; 4]> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes).map(|()| bytes)
}

fn row_bytes(row_len: usize) -> usize {
    ORIGIN_LEN + 4 * row_len
}

/// Device, first and last time.
const ORIGIN_LEN: usize = 24;
