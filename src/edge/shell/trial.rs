//! The gateway's end of the process that a model on trial runs in.
//!
//! One batch is under way at a time, and each has a deadline. Whatever the process does (ends, says nothing, says nonsense)
//! becomes a [`Fault`] and the end of the process; nothing here waits longer than the deadline.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use weir_infer::Origin;
use weir_logic::models::Fault;

use crate::models::child::{Job, Loaded, ROWS_MAX, SUBCOMMAND, put_row, take_row, take_time};

/// Time for loading: engines compile what they load, and the box has other things to do.
const LOAD_LIMIT: Duration = Duration::from_secs(30);
/// Time in which a process that was told nothing more ends by itself, if its pipe broke.
const END_LIMIT: Duration = Duration::from_millis(500);
/// Longest line that says whether it is loaded.
const LINE_LEN_MAX: u64 = 16 << 10;

/// What a model on trial says of a window: label (-1 for none), score and confidence, or why there is no answer.
pub(crate) type Said = Result<(i32, f32, f32), String>;

/// What it says of a batch.
#[derive(Debug)]
pub(crate) struct Answers {
    /// Processor time that it says it took, in microseconds.
    pub(crate) cpu_us: u64,
    /// One for each window.
    pub(crate) said: Vec<Said>,
}

/// A model on trial, loaded. Its process ends when this is dropped.
pub(crate) struct TrialProcess {
    child: Child,
    batches_tx: SyncSender<(Vec<u8>, usize)>,
    answers_rx: Receiver<io::Result<Answers>>,
    answer_limit: Duration,
}

impl TrialProcess {
    /// Starts `program` for a job and waits until the model is loaded.
    ///
    /// # Errors
    /// `Load` in its own words, or `Process` if it did not come to say any.
    pub(crate) fn start(program: &Path, job: &Job, answer_limit: Duration) -> Result<TrialProcess, Fault> {
        let mut command = Command::new(program);
        command.arg(SUBCOMMAND).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.env_remove("NOTIFY_SOCKET").current_dir("/");
        let mut child = command.spawn().map_err(|err| Fault::Process(format!("cannot be started: {err}")))?;
        let ends = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = ends.ok_or_else(|| Fault::Process("has no pipes".to_owned()))?;
        let line = serde_json::to_vec(job).unwrap_or_default();
        let (batches_tx, batches_rx) = sync_channel::<(Vec<u8>, usize)>(1);
        let (answers_tx, answers_rx) = sync_channel(1);
        let (loaded_tx, loaded_rx) = sync_channel(1);
        let mut pipes = Pipes { stdin, stdout: BufReader::new(stdout) };
        // It ends with the process: then its pipes do.
        let talk = move || {
            let loaded = pipes.load(&line);
            let is_loaded = matches!(loaded, Ok(Loaded { error: None }));
            if loaded_tx.send(loaded).is_err() || !is_loaded {
                return;
            }
            while let Ok((batch, rows)) = batches_rx.recv() {
                if answers_tx.send(pipes.answers(&batch, rows)).is_err() {
                    return;
                }
            }
        };
        let mut trial = TrialProcess { child, batches_tx, answers_rx, answer_limit };
        let thread = std::thread::Builder::new().name("trial".to_owned()).spawn(talk);
        thread.map_err(|err| Fault::Process(format!("cannot be talked to: {err}")))?;
        match loaded_rx.recv_timeout(LOAD_LIMIT) {
            Ok(Ok(Loaded { error: None })) => Ok(trial),
            Ok(Ok(Loaded { error: Some(error) })) => Err(Fault::Load(error)),
            Ok(Err(err)) => Err(trial.ended(&format!("said something else than that it is loaded ({err})"))),
            Err(RecvTimeoutError::Timeout) => {
                Err(Fault::Process(format!("has not loaded its model within {} s", LOAD_LIMIT.as_secs())))
            }
            Err(RecvTimeoutError::Disconnected) => Err(trial.ended("said nothing")),
        }
    }

    /// Has at most [`ROWS_MAX`] windows scored; one answer for each.
    ///
    /// # Errors
    /// `Process`: it is of no more use.
    pub(crate) fn score(&mut self, rows: &[(Origin, &[f32])]) -> Result<Answers, Fault> {
        debug_assert!(rows.len() <= ROWS_MAX);
        let mut batch = (rows.len() as u32).to_le_bytes().to_vec();
        rows.iter().for_each(|(origin, window)| put_row(&mut batch, origin, window));
        if self.batches_tx.try_send((batch, rows.len())).is_err() {
            return Err(self.ended("takes no windows"));
        }
        match self.answers_rx.recv_timeout(self.answer_limit) {
            Ok(Ok(answers)) => Ok(answers),
            Ok(Err(err)) => Err(self.ended(&format!("gave no answer ({err})"))),
            Err(_) => {
                let limit_ms = self.answer_limit.as_millis();
                Err(Fault::Process(format!("gave no answer to {} windows within {limit_ms} ms", rows.len())))
            }
        }
    }

    /// How the process came to its end, if it did; else what it did wrong.
    fn ended(&mut self, wrong: &str) -> Fault {
        use std::os::unix::process::ExitStatusExt as _;
        let deadline = std::time::Instant::now() + END_LIMIT;
        let status: Option<ExitStatus> = loop {
            match self.child.try_wait() {
                Ok(None) if std::time::Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                status => break status.ok().flatten(),
            }
        };
        Fault::Process(match status {
            Some(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("was ended by signal {signal}"),
                (None, code) => format!("ended by itself with code {}", code.unwrap_or(0)),
            },
            None => wrong.to_owned(),
        })
    }
}

impl Drop for TrialProcess {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The pipes to and from a process, on a thread of their own: they may block for as long as it likes.
struct Pipes {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Pipes {
    fn load(&mut self, job: &[u8]) -> io::Result<Loaded> {
        self.stdin.write_all(job)?;
        self.stdin.write_all(b"\n")?;
        let mut line = Vec::new();
        (&mut self.stdout).take(LINE_LEN_MAX).read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    }

    fn answers(&mut self, batch: &[u8], rows: usize) -> io::Result<Answers> {
        self.stdin.write_all(batch)?;
        let cpu_us = take_time(&mut self.stdout)?;
        let said = (0..rows).map(|_| take_row(&mut self.stdout)).collect::<io::Result<_>>()?;
        Ok(Answers { cpu_us, said })
    }
}
