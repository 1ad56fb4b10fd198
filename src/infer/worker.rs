//! A model on a thread of its own.
//!
//! Requests wait in a bounded queue. The thread takes what has queued up, at most one batch, runs it, and hands all
//! outcomes to a callback at once; it never waits for a batch to fill. Under load batches grow by themselves: on the
//! reference models a row in a batch of 32 costs half to a tenth of one alone.
//!
//! A model may never come back from a batch, and a thread cannot be ended from outside. So what is queued and what is under way
//! can be taken back at any time ([`Worker::give_up`]); the thread is then left alone, and ends by itself if its model ever does.

use std::fmt;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
    /// The worker's thread has ended, or was given up.
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
    /// True if it was given up because it hangs.
    pub given_up: bool,
}

/// A model on a thread of its own. Dropping it lets what is queued finish, unwatched; [`Worker::stop`] waits.
pub struct Worker {
    requests: SyncSender<Request>,
    thread: JoinHandle<()>,
    counters: Arc<Counters>,
    shared: Arc<Shared>,
    is_given_up: bool,
    manifest: Manifest,
}

/// What the worker's thread and its owner both hold.
struct Shared {
    /// Held by the thread while it waits for a request, and never while a model runs; `None` once nobody takes any.
    queue: Mutex<Option<Receiver<Request>>>,
    /// What the model runs on now. Who takes it answers it: the thread when the model is done, or the owner before.
    under_way: Mutex<Option<Arc<Vec<Request>>>>,
}

impl Worker {
    /// Starts the thread. `sink` gets the outcomes of each batch, on that thread, in the order of the requests; while it
    /// blocks, nothing is scored.
    ///
    /// # Errors
    /// The system's, if it gives no thread.
    pub fn start(mut model: Model, options: WorkerOptions, sink: Box<dyn FnMut(Vec<Outcome>) + Send>) -> std::io::Result<Self> {
        let (requests, queue) = sync_channel(options.queue_rows_limit.max(1));
        let shared = Arc::new(Shared { queue: Mutex::new(Some(queue)), under_way: Mutex::new(None) });
        let counters = Arc::new(Counters::default());
        let manifest = model.manifest().clone();
        let home = model.home();
        model.limit_devices(options.state_devices_limit);
        let mut service = Service { model, sink, counters: Arc::clone(&counters), shared: Arc::clone(&shared) };
        let batch_rows_limit = options.batch_rows_limit.max(1);
        let name = format!("infer-{}", manifest.name);
        let thread = std::thread::Builder::new().name(name).spawn(move || home.run(|| service.serve(batch_rows_limit)))?;
        Ok(Self { requests, thread, counters, shared, is_given_up: false, manifest })
    }

    /// Queues a window without blocking.
    ///
    /// # Errors
    /// The request itself, if the queue is full (counted) or the thread has ended.
    pub fn try_submit(&self, request: Request) -> Result<(), Refused> {
        if self.is_given_up {
            return Err(Refused { request, reason: RefusedReason::Stopped });
        }
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
        Stats { given_up: self.is_given_up, ..self.counters.read() }
    }

    /// The number of the batch that the model runs on now, from 1 on; `None` while it runs on none.
    ///
    /// The same number for longer than any batch may take is a model that hangs.
    pub fn under_way(&self) -> Option<u64> {
        let begun = self.counters.begun.load(Ordering::Relaxed);
        (begun > self.counters.batches.load(Ordering::Relaxed)).then_some(begun)
    }

    /// Takes back what is under way and what is queued, in order, and leaves the thread alone; it has the lowest priority from then
    /// on. Nothing more is taken. `None` if the model has come back meanwhile, and all goes on.
    pub fn give_up(&mut self) -> Option<Vec<Request>> {
        let batch = lock(&self.shared.under_way).take()?;
        self.is_given_up = true;
        self.counters.slow_down();
        let mut requests = batch.to_vec();
        requests.extend(lock(&self.shared.queue).take().iter().flat_map(Receiver::try_iter));
        self.counters.queued.store(0, Ordering::Relaxed);
        Some(requests)
    }

    /// True once it was given up.
    pub fn is_given_up(&self) -> bool {
        self.is_given_up
    }

    /// As [`Worker::stop`], but waits no longer than `limit`: false if the thread is still at work then, and left alone.
    pub fn stop_within(self, limit: Duration) -> bool {
        drop(self.requests);
        let deadline = Instant::now() + if self.is_given_up { Duration::ZERO } else { limit };
        while !self.thread.is_finished() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(STOP_POLL);
        }
        true
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
    sink: Box<dyn FnMut(Vec<Outcome>) + Send>,
    counters: Arc<Counters>,
    shared: Arc<Shared>,
}

impl Service {
    fn serve(&mut self, batch_rows_limit: usize) {
        self.counters.thread_id.store(thread_id(), Ordering::Relaxed);
        while let Some(batch) = self.batch(batch_rows_limit) {
            self.counters.queued.fetch_sub(batch.len() as u64, Ordering::Relaxed);
            let Some(outcomes) = self.score(batch) else { return };
            (self.sink)(outcomes);
        }
    }

    /// What has queued up, at most one batch; `None` at the end.
    fn batch(&self, batch_rows_limit: usize) -> Option<Vec<Request>> {
        let queue = lock(&self.shared.queue);
        let queue = queue.as_ref()?;
        let mut batch = vec![queue.recv().ok()?];
        batch.extend(queue.try_iter().take(batch_rows_limit - 1));
        Some(batch)
    }

    /// What the model says; `None` if the batch was taken back meanwhile.
    fn score(&mut self, batch: Vec<Request>) -> Option<Vec<Outcome>> {
        let start = Instant::now();
        let batch = Arc::new(batch);
        *lock(&self.shared.under_way) = Some(Arc::clone(&batch));
        self.counters.begun.fetch_add(1, Ordering::Relaxed);
        let rows: Vec<Row<'_>> = batch.iter().map(|request| Row { window: &request.window, origin: request.origin }).collect();
        let results = self.model.score_rows(&rows);
        drop(rows);
        drop(lock(&self.shared.under_way).take()?);
        self.counters.batch(&results, start.elapsed().as_micros() as u64);
        self.counters.state(&self.model.state_counts());
        let outcome = |(request, result): (Request, _)| {
            let Request { id, window, origin } = request;
            Outcome { id, window, origin, result }
        };
        Some(Arc::unwrap_or_clone(batch).into_iter().zip(results).map(outcome).collect())
    }
}

impl Drop for Service {
    /// Whoever submits is told, also after a panic of the sink.
    fn drop(&mut self) {
        *lock(&self.shared.queue) = None;
    }
}

/// A panic elsewhere leaves nothing half done in what these hold.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The system's number of this thread; 0 where it has none.
fn thread_id() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// How often a thread that is to end is looked at.
const STOP_POLL: Duration = Duration::from_millis(5);
/// The lowest priority. Source: setpriority(2).
const NICE_MAX: i32 = 19;

#[derive(Debug, Default)]
struct Counters {
    /// Batches that the model was given.
    begun: AtomicU64,
    thread_id: AtomicI32,
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

    /// Lets all other threads of the machine go before the worker's, which may spin for ever.
    fn slow_down(&self) {
        let thread = rustix::process::Pid::from_raw(self.thread_id.load(Ordering::Relaxed));
        // If the system refuses, it costs a core's time, and no more can be done.
        let _ = thread.map(|thread| rustix::process::setpriority_process(Some(thread), NICE_MAX));
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
            given_up: false,
        }
    }
}
