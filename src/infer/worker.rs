//! A model on a thread of its own.
//!
//! Requests wait in a bounded queue. The thread takes what has queued up, at most one batch, runs it, and hands all
//! outcomes to a callback at once; it never waits for a batch to fill. Under load batches grow by themselves: on the
//! reference models a row in a batch of 32 costs half to a tenth of one alone.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::engine::RunError;
use crate::manifest::Manifest;
use crate::model::{Answer, Model, Row, STATE_DEVICES_LIMIT};
use crate::state::{Origin, StateCounts};

/// A window to score. Its values are raw: the worker standardises them as the manifest says.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The caller's, returned in the outcome.
    pub id: u64,
    /// `f32[channels, window]`, row-major.
    pub window: Vec<f32>,
    /// Whose it is: a recurrent model then starts from what it kept of that device.
    pub origin: Option<Origin>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The request's.
    pub id: u64,
    /// The request's, unchanged: to offload it, to keep it, or to use its memory again.
    pub window: Vec<f32>,
    /// The request's.
    pub origin: Option<Origin>,
    /// The answer, or why there is none.
    pub result: Result<Answer, RunError>,
}

/// A request that was not taken, returned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// As it was given.
    pub request: Request,
    /// Why.
    pub reason: RefusedReason,
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedReason {
    /// The queue is full: the model is slower than the windows come.
    Full,
    /// The worker's thread has ended.
    Stopped,
}

/// Limits of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerOptions {
    /// Requests that may wait; at least 1.
    pub queue_rows_limit: usize,
    /// Rows run at once; at least 1.
    pub batch_rows_limit: usize,
    /// Devices whose state a recurrent model keeps; at least 1.
    pub state_devices_limit: usize,
}

/// What a worker has done since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Requests waiting now.
    pub queued: u64,
    /// Windows that got an answer.
    pub rows: u64,
    /// Windows that got an error.
    pub errors: u64,
    /// Windows, of those, that were NaN or infinite somewhere: the model has not seen them.
    pub non_finite: u64,
    /// Requests returned because the queue was full.
    pub refused: u64,
    /// Batches run.
    pub batches: u64,
    /// Time in the model, of all batches.
    pub batch_us_total: u64,
    /// Time in the model, of the slowest batch.
    pub batch_us_max: u64,
    /// State of a recurrent model.
    pub state: StateCounts,
}

/// A model on a thread of its own. Dropping it lets what is queued finish, unwatched; [`Worker::stop`] waits.
pub struct Worker {
    requests: SyncSender<Request>,
    thread: JoinHandle<()>,
    counters: Arc<Counters>,
    manifest: Manifest,
}

impl Worker {
    /// Starts the thread. `sink` gets the outcomes of each batch, on that thread, in the order of the requests; while it
    /// blocks, nothing is scored.
    ///
    /// # Errors
    /// The system's, if it gives no thread.
    pub fn start(mut model: Model, options: WorkerOptions, sink: Box<dyn FnMut(Vec<Outcome>) + Send>) -> std::io::Result<Self> {
        let (requests, queue) = sync_channel(options.queue_rows_limit.max(1));
        let counters = Arc::new(Counters::default());
        let manifest = model.manifest().clone();
        let home = model.home();
        model.limit_devices(options.state_devices_limit);
        let mut service = Service { model, queue, sink, counters: Arc::clone(&counters) };
        let batch_rows_limit = options.batch_rows_limit.max(1);
        let name = format!("infer-{}", manifest.name);
        let thread = std::thread::Builder::new().name(name).spawn(move || home.run(|| service.serve(batch_rows_limit)))?;
        Ok(Self { requests, thread, counters, manifest })
    }

    /// Queues a window without blocking.
    ///
    /// # Errors
    /// The request itself, if the queue is full (counted) or the thread has ended.
    pub fn try_submit(&self, request: Request) -> Result<(), Refused> {
        self.counters.queued.fetch_add(1, Ordering::Relaxed);
        self.requests.try_send(request).map_err(|error| {
            self.counters.queued.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(request) => {
                    self.counters.refused.fetch_add(1, Ordering::Relaxed);
                    Refused { request, reason: RefusedReason::Full }
                }
                TrySendError::Disconnected(request) => Refused { request, reason: RefusedReason::Stopped },
            }
        })
    }

    /// The manifest of its model.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The counters now.
    pub fn stats(&self) -> Stats {
        self.counters.read()
    }

    /// Lets what is queued finish, ends the thread, and returns the last counters. Must not be called from the sink, nor
    /// while the sink waits for the caller.
    pub fn stop(self) -> Stats {
        drop(self.requests);
        // A panic in the sink has been reported by the panic hook; the counters are still true.
        let _ = self.thread.join();
        self.counters.read()
    }
}

impl Default for WorkerOptions {
    /// A queue of 8 batches of 32: past 32 rows a batch costs as much a row as before.
    fn default() -> Self {
        Self { queue_rows_limit: 256, batch_rows_limit: 32, state_devices_limit: STATE_DEVICES_LIMIT }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("model", &self.manifest.name).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl fmt::Display for RefusedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the model's queue is full",
            Self::Stopped => "the model's thread has ended",
        })
    }
}

struct Service {
    model: Model,
    queue: Receiver<Request>,
    sink: Box<dyn FnMut(Vec<Outcome>) + Send>,
    counters: Arc<Counters>,
}

impl Service {
    fn serve(&mut self, batch_rows_limit: usize) {
        while let Ok(first) = self.queue.recv() {
            let mut batch = vec![first];
            batch.extend(self.queue.try_iter().take(batch_rows_limit - 1));
            self.counters.queued.fetch_sub(batch.len() as u64, Ordering::Relaxed);
            let outcomes = self.score(batch);
            (self.sink)(outcomes);
        }
    }

    fn score(&mut self, batch: Vec<Request>) -> Vec<Outcome> {
        let start = Instant::now();
        let rows: Vec<Row<'_>> = batch.iter().map(|request| Row { window: &request.window, origin: request.origin }).collect();
        let results = self.model.score_rows(&rows);
        self.counters.batch(&results, start.elapsed().as_micros() as u64);
        self.counters.state(&self.model.state_counts());
        let outcome = |(request, result): (Request, _)| {
            let Request { id, window, origin } = request;
            Outcome { id, window, origin, result }
        };
        batch.into_iter().zip(results).map(outcome).collect()
    }
}

#[derive(Debug, Default)]
struct Counters {
    queued: AtomicU64,
    rows: AtomicU64,
    errors: AtomicU64,
    non_finite: AtomicU64,
    refused: AtomicU64,
    batches: AtomicU64,
    batch_us_total: AtomicU64,
    batch_us_max: AtomicU64,
    state_devices: AtomicU64,
    state_resets: AtomicU64,
    state_evicted: AtomicU64,
}

impl Counters {
    fn batch(&self, results: &[Result<Answer, RunError>], us: u64) {
        let errors = results.iter().filter(|result| result.is_err()).count();
        self.rows.fetch_add((results.len() - errors) as u64, Ordering::Relaxed);
        self.errors.fetch_add(errors as u64, Ordering::Relaxed);
        let non_finite = results.iter().filter(|result| matches!(result, Err(RunError::NonFinite { .. }))).count();
        self.non_finite.fetch_add(non_finite as u64, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.batch_us_total.fetch_add(us, Ordering::Relaxed);
        self.batch_us_max.fetch_max(us, Ordering::Relaxed);
    }

    fn state(&self, counts: &StateCounts) {
        self.state_devices.store(counts.devices, Ordering::Relaxed);
        self.state_resets.store(counts.resets, Ordering::Relaxed);
        self.state_evicted.store(counts.evicted, Ordering::Relaxed);
    }

    fn read(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            queued: read(&self.queued),
            rows: read(&self.rows),
            errors: read(&self.errors),
            non_finite: read(&self.non_finite),
            refused: read(&self.refused),
            batches: read(&self.batches),
            batch_us_total: read(&self.batch_us_total),
            batch_us_max: read(&self.batch_us_max),
            state: StateCounts {
                devices: read(&self.state_devices),
                resets: read(&self.state_resets),
                evicted: read(&self.state_evicted),
            },
        }
    }
}
