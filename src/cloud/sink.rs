//! The sink: one thread that owns the database and turns what waits into transactions.
//!
//! It takes whatever has come meanwhile, up to a limit of bytes and time, into one transaction; nothing lingers: while
//! one commit syncs, the next batch gathers. Data, high-water marks and gaps are in the same transaction, and only after
//! its commit does [`SinkEvent::Committed`] go out, from which acknowledgements are made.
//!
//! When the disk is full or fails, the transaction is rolled back, what waits is kept, [`SinkEvent::Stalled`] says so, and
//! it is tried again every second, a block at a time at first. If a commit failed after all of it had reached the disk, the second attempt
//! finds its rows there and leaves them: keys are unique. Nothing is acknowledged meanwhile, so nothing is lost.
//!
//! Memory is bounded by [`Sink::room`]: whoever hands over a block first gets room for its bytes.

mod load;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weir_host::clock::unix_us;
use weir_logic::ids::{Epoch, Void};
use weir_logic::receive::{Known, SessionId, Store};
use weir_logic::rollout::OfferState;
use weir_logic::store::SeqRange;

use crate::metrics::Metrics;
use crate::models::ModelKey;
use crate::policies::PolicyRecord;
use crate::schema::{Database, Layout, OpenError};
use write::{Batch, Writer};

/// How long after a failed transaction the next attempt is made.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// What a job costs in the queue beyond its block: the structures around it.
pub(crate) const JOB_BYTES: u32 = 512;

/// When a transaction is committed.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// After this many bytes of blocks.
    pub bytes_max: u64,
    /// After this much time.
    pub time_max: Duration,
}

/// Something to store.
#[derive(Debug)]
pub struct Job {
    /// Whose it is.
    pub gateway: Arc<str>,
    /// What it is.
    pub work: Work,
    /// Its part of the queue, given back after the commit.
    pub room: Option<OwnedSemaphorePermit>,
}

/// What a [`Job`] asks for.
#[derive(Debug)]
pub enum Work {
    /// The records of a block.
    Store(Store),
    /// A void.
    Void(Void),
    /// An epoch took over; true if it had been superseded.
    EpochOpened(Epoch, bool),
    /// All epochs but these are closed.
    EpochsClosed(Vec<Epoch>),
    /// Numbers that are missing.
    Missing(SeqRange),
    /// An alert to keep: its kind and its text.
    Alert(&'static str, String),
    /// A version of a policy, of no gateway: what may not change any more.
    PolicyFound {
        /// The version.
        version: u64,
        /// Its file.
        file: String,
        /// The signature of its text.
        signature: Vec<u8>,
    },
    /// What became of a policy.
    PolicyState {
        /// The version.
        version: u64,
        /// What.
        state: OfferState,
        /// Why.
        reason: String,
    },
    /// A version of a model, of no gateway: what may not change any more.
    ModelFound {
        /// The task that it answers.
        task: String,
        /// The version.
        version: u64,
        /// Its file.
        file: String,
        /// SHA-256 of its package.
        sha256: Vec<u8>,
    },
    /// What became of a model.
    ModelState {
        /// The task that it answers.
        task: String,
        /// The version.
        version: u64,
        /// What.
        state: OfferState,
        /// Why.
        reason: String,
    },
}

/// What the sink reports, in the order in which it happened.
#[derive(Debug)]
pub enum SinkEvent {
    /// The answer to [`Sink::load`], as of now: what is committed later is reported later.
    Loaded {
        /// The session that asked.
        session: SessionId,
        /// What is on record, or why it cannot be read.
        known: Result<Known, String>,
    },
    /// The answer to [`Sink::load_policy`].
    PolicyLoaded {
        /// The version.
        version: u64,
        /// What is on record, or why it cannot be read.
        record: Result<PolicyRecord, String>,
    },
    /// The answer to [`Sink::load_model`].
    ModelLoaded {
        /// Task and version.
        key: ModelKey,
        /// What is on record, or why it cannot be read.
        record: Result<PolicyRecord, String>,
    },
    /// These are durable.
    Committed(Vec<(Arc<str>, Vec<SeqRange>)>),
    /// A block that cannot be read was put aside as it is.
    Quarantined {
        /// Whose it is.
        gateway: Arc<str>,
        /// What is wrong with it.
        reason: String,
    },
    /// The database takes nothing; it is tried again.
    Stalled(String),
    /// It takes again.
    Resumed,
    /// The thread is at its end: all is committed, or the reason why nothing can be.
    Finished(Result<(), String>),
}

/// The way to the sink.
#[derive(Debug, Clone)]
pub struct Sink {
    messages_tx: Sender<Message>,
    room: Arc<Semaphore>,
    room_bytes: u32,
}

#[derive(Debug)]
enum Message {
    Job(Job),
    Load { gateway: Arc<str>, epochs: Vec<Epoch>, session: SessionId },
    LoadPolicy { version: u64 },
    LoadModel { key: ModelKey },
    Finish,
}

impl Sink {
    /// Opens the database and starts the thread. `queue_bytes` is what may wait.
    ///
    /// # Errors
    /// Why the database cannot be used.
    pub fn start(
        layout: &Layout,
        pace: Pace,
        queue_bytes: u32,
        metrics: Arc<Metrics>,
        events_tx: UnboundedSender<SinkEvent>,
    ) -> Result<(Sink, JoinHandle<()>), OpenError> {
        let database = Database::open(layout)?;
        let (messages_tx, messages_rx) = channel();
        let worker = Worker {
            messages_rx,
            events_tx,
            pace,
            metrics,
            waiting: VecDeque::new(),
            bytes_max: pace.bytes_max,
            finishing: false,
            stalled: false,
        };
        let thread = std::thread::Builder::new()
            .name("sink".to_owned())
            .spawn(move || worker.run(database))
            .map_err(OpenError::Thread)?;
        let room = Arc::new(Semaphore::new(queue_bytes as usize));
        Ok((Sink { messages_tx, room, room_bytes: queue_bytes }, thread))
    }

    /// Waits until `len` bytes have room in the queue.
    pub async fn room(&self, len: usize) -> OwnedSemaphorePermit {
        let len = u32::try_from(len).unwrap_or(u32::MAX).saturating_add(JOB_BYTES).min(self.room_bytes);
        self.room.clone().acquire_many_owned(len).await.expect("the semaphore is never closed")
    }

    /// Bytes that wait or are being written.
    pub fn queued_bytes(&self) -> u64 {
        u64::from(self.room_bytes).saturating_sub(self.room.available_permits() as u64)
    }

    /// How full the queue is, in percent.
    pub fn fill_percent(&self) -> u64 {
        self.queued_bytes() * 100 / u64::from(self.room_bytes.max(1))
    }

    /// Hands over a job. A sink that has ended drops it: it has said so with [`SinkEvent::Finished`].
    pub fn push(&self, job: Job) {
        let _ = self.messages_tx.send(Message::Job(job));
    }

    /// Asks what is on record; the answer is [`SinkEvent::Loaded`].
    pub fn load(&self, gateway: Arc<str>, epochs: Vec<Epoch>, session: SessionId) {
        let _ = self.messages_tx.send(Message::Load { gateway, epochs, session });
    }

    /// Asks what is on record of a version of a policy; the answer is [`SinkEvent::PolicyLoaded`].
    pub fn load_policy(&self, version: u64) {
        let _ = self.messages_tx.send(Message::LoadPolicy { version });
    }

    /// Asks what is on record of a version of a model; the answer is [`SinkEvent::ModelLoaded`].
    pub fn load_model(&self, task: String, version: u64) {
        let _ = self.messages_tx.send(Message::LoadModel { key: (task, version) });
    }

    /// Commits what waits and ends the thread; at once if the database is stalled.
    pub fn finish(&self) {
        let _ = self.messages_tx.send(Message::Finish);
    }
}

struct Worker {
    messages_rx: Receiver<Message>,
    events_tx: UnboundedSender<SinkEvent>,
    pace: Pace,
    metrics: Arc<Metrics>,
    waiting: VecDeque<Job>,
    /// Limit of the next transaction: one job after a failure, then twice as much each time, up to the pace's.
    bytes_max: u64,
    finishing: bool,
    stalled: bool,
}

/// Why statements and connection are given up.
enum End {
    Finished,
    Reopen,
    Fatal(String),
}

impl Worker {
    fn run(mut self, mut database: Database) {
        let result = loop {
            match self.serve(&database.connection) {
                End::Finished => break Ok(()),
                End::Fatal(reason) => break Err(reason),
                End::Reopen => {
                    if let Err(err) = database.reopen() {
                        tracing::warn!(%err, "database not reopened");
                    }
                }
            }
        };
        let _ = self.events_tx.send(SinkEvent::Finished(result));
    }

    /// Commits batch after batch on one connection.
    fn serve(&mut self, connection: &Connection) -> End {
        let mut writer = match Writer::new(connection) {
            Ok(writer) => writer,
            Err(err) => return self.failed(connection, &err),
        };
        loop {
            if !self.gather(connection) {
                return End::Finished;
            }
            if self.waiting.is_empty() {
                continue;
            }
            match self.transact(&mut writer) {
                Ok(batch) => self.committed(batch),
                Err(err) => {
                    writer.rollback();
                    match self.failed(connection, &err) {
                        // A full disk leaves the connection sound.
                        End::Reopen if err.sqlite_error_code() == Some(ErrorCode::DiskFull) => {}
                        end => return end,
                    }
                }
            }
        }
    }

    /// Takes in what has come; waits for something if nothing waits here. False when it is time to end.
    fn gather(&mut self, connection: &Connection) -> bool {
        if self.waiting.is_empty() && !self.finishing {
            match self.messages_rx.recv() {
                Ok(message) => self.take_in(connection, message),
                Err(_) => return false,
            }
        }
        while let Ok(message) = self.messages_rx.try_recv() {
            self.take_in(connection, message);
        }
        !(self.finishing && self.waiting.is_empty())
    }

    fn take_in(&mut self, connection: &Connection, message: Message) {
        match message {
            Message::Job(job) => self.waiting.push_back(job),
            Message::Finish => self.finishing = true,
            Message::LoadPolicy { version } => {
                let record = load::policy(connection, version).map_err(|err| err.to_string());
                let _ = self.events_tx.send(SinkEvent::PolicyLoaded { version, record });
            }
            Message::LoadModel { key } => {
                let record = load::model(connection, &key).map_err(|err| err.to_string());
                let _ = self.events_tx.send(SinkEvent::ModelLoaded { key, record });
            }
            Message::Load { gateway, epochs, session } => {
                let known = load::known(connection, &gateway, &epochs).map_err(|err| err.to_string());
                let _ = self.events_tx.send(SinkEvent::Loaded { session, known });
            }
        }
    }

    /// One transaction with as much of what waits as the pace allows.
    fn transact(&mut self, writer: &mut Writer<'_>) -> rusqlite::Result<Batch> {
        let start = Instant::now();
        let now_us = i64::try_from(unix_us()).unwrap_or(i64::MAX);
        writer.begin()?;
        let (mut bytes, mut jobs) = (0, 0);
        for job in &self.waiting {
            writer.apply(job, now_us)?;
            jobs += 1;
            if let Work::Store(store) = &job.work {
                bytes += store.block.len() as u64;
            }
            if bytes >= self.bytes_max || start.elapsed() >= self.pace.time_max {
                break;
            }
        }
        let batch = writer.commit(now_us)?;
        self.waiting.drain(..jobs);
        self.metrics.sink_commit_seconds.add(start.elapsed());
        Ok(batch)
    }

    fn committed(&mut self, batch: Batch) {
        self.bytes_max = (self.bytes_max * 2).clamp(1 << 16, self.pace.bytes_max.max(1 << 16));
        self.metrics.sink_transactions.fetch_add(1, Relaxed);
        self.metrics.sink_rows.fetch_add(batch.rows, Relaxed);
        self.metrics.sink_rows_refused.fetch_add(batch.rows_refused, Relaxed);
        self.metrics.sink_quarantined.fetch_add(batch.quarantined.len() as u64, Relaxed);
        if batch.rows_refused > 0 {
            tracing::warn!(rows = batch.rows_refused, "rows were on record already, and were left as they are");
        }
        if std::mem::take(&mut self.stalled) {
            tracing::info!("database takes data again");
            let _ = self.events_tx.send(SinkEvent::Resumed);
        }
        for (gateway, reason) in batch.quarantined {
            tracing::error!(%gateway, reason, "unreadable block put aside");
            let _ = self.events_tx.send(SinkEvent::Quarantined { gateway, reason });
        }
        let _ = self.events_tx.send(SinkEvent::Committed(batch.committed.into_iter().collect()));
    }

    /// Says what an error means, and waits before the next attempt.
    fn failed(&mut self, connection: &Connection, err: &rusqlite::Error) -> End {
        use ErrorCode::{CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory, ReadOnly, SystemIoFailure};
        self.metrics.sink_failures.fetch_add(1, Relaxed);
        // What is too much for the room that is left may fit piece by piece.
        self.bytes_max = 0;
        let may_heal = [CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory, ReadOnly, SystemIoFailure];
        if !err.sqlite_error_code().is_some_and(|code| may_heal.contains(&code)) {
            tracing::error!(%err, "database cannot be used any more");
            return End::Fatal(err.to_string());
        }
        if !std::mem::replace(&mut self.stalled, true) {
            tracing::error!(%err, "database takes nothing; gateways keep their data until it does");
            let _ = self.events_tx.send(SinkEvent::Stalled(err.to_string()));
        }
        let until = Instant::now() + RETRY_AFTER;
        while !self.finishing {
            match self.messages_rx.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => self.take_in(connection, message),
                Err(RecvTimeoutError::Timeout) => return End::Reopen,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        End::Fatal(format!("not everything could be stored: {err}"))
    }
}

#[cfg(test)]
mod tests;
