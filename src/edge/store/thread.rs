//! The thread that owns the [`Store`]: redb blocks, and nothing blocking runs on the event loop.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use weir_logic::ids::BlockKey;
use weir_logic::store::{CommitRequest, StoreError};

use super::{CommitStats, Store, StoreTime};

/// Commits that wait are put into one transaction, up to this many and this many bytes of blocks.
const COALESCED_MAX: usize = 16;
const COALESCED_BYTES_MAX: usize = 1 << 20;
/// The file is settled when nothing was asked for this long: at most 1.4 GB of flash a day with a full buffer.
const IDLE: Duration = Duration::from_secs(10);

/// What the store is asked to do.
#[derive(Debug)]
pub enum StoreInput {
    /// Write a request; answered by `Committed` or `CommitFailed` with its ticket.
    Commit {
        /// The request.
        request: CommitRequest,
        /// Time at which it was made.
        time: StoreTime,
    },
    /// Read a block; answered by `Loaded`.
    Load {
        /// Its key.
        key: BlockKey,
    },
}

/// What the store answers, in the order in which it was asked.
#[derive(Debug)]
pub enum StoreEvent {
    /// The request is on disk.
    Committed {
        /// Ticket of the request.
        ticket: u64,
        /// What it cost; requests that were written together share one transaction and each show all of it.
        stats: CommitStats,
    },
    /// The request is not on disk; see [`Store::commit`] for what that means.
    CommitFailed {
        /// Ticket of the request.
        ticket: u64,
        /// Why.
        error: StoreError,
    },
    /// A block was read, or could not be.
    Loaded {
        /// Its key.
        key: BlockKey,
        /// The block as it was put; `None` if it is not there. Its checksum is for the receiver to check.
        block: Result<Option<Bytes>, StoreError>,
    },
}

/// The running thread. It ends when all senders are gone and what they sent is done.
#[derive(Debug)]
pub struct StoreThread {
    thread: JoinHandle<Result<(), StoreError>>,
}

impl StoreThread {
    /// Starts the thread; at most `queue_len` requests wait, then whoever asks has to. Answers that find `events` full hold up the thread;
    /// if nobody receives them any more, it goes on writing.
    ///
    /// # Errors
    /// If the system has no thread or no descriptor left.
    pub fn spawn(
        store: Store,
        queue_len: usize,
        events: mpsc::Sender<StoreEvent>,
    ) -> io::Result<(StoreThread, mpsc::Sender<StoreInput>)> {
        let (inputs_tx, inputs) = mpsc::channel(queue_len);
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let worker = Worker { store, inputs, events, timer, next: None, time: StoreTime::default() };
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || worker.run())?;
        Ok((StoreThread { thread }, inputs_tx))
    }

    /// Waits until everything asked for is done and the file is closed. All senders must have been dropped.
    ///
    /// # Errors
    /// `Io` if the last times could not be written or the thread panicked; what was answered as committed is safe.
    pub fn join(self) -> Result<(), StoreError> {
        self.thread.join().unwrap_or_else(|_| Err(StoreError::Io("the store's thread panicked".to_owned())))
    }
}

struct Worker {
    store: Store,
    inputs: mpsc::Receiver<StoreInput>,
    events: mpsc::Sender<StoreEvent>,
    /// Only for waiting with a limit.
    timer: tokio::runtime::Runtime,
    /// Taken from the queue, but not part of the transaction it was taken for.
    next: Option<StoreInput>,
    /// Newest time that was given.
    time: StoreTime,
}

impl Worker {
    fn run(mut self) -> Result<(), StoreError> {
        while let Some(input) = self.receive() {
            match input {
                StoreInput::Commit { request, time } => self.commit(request, time),
                StoreInput::Load { key } => {
                    let block = self.store.load(key);
                    self.answer(StoreEvent::Loaded { key, block });
                }
            }
        }
        self.store.close(self.time)
    }

    /// The next input; settles the file when there is none for a while; `None` when nothing more can come.
    fn receive(&mut self) -> Option<StoreInput> {
        if let Some(input) = self.next.take() {
            return Some(input);
        }
        let inputs = &mut self.inputs;
        match self.timer.block_on(async { tokio::time::timeout(IDLE, inputs.recv()).await }) {
            Ok(input) => input,
            Err(_) => {
                if let Err(err) = self.store.settle(self.time) {
                    tracing::warn!(%err, "buffer not settled");
                }
                self.inputs.blocking_recv()
            }
        }
    }

    fn commit(&mut self, first: CommitRequest, time: StoreTime) {
        self.advance(time);
        let mut requests = vec![first];
        let mut bytes = put_bytes(&requests[0]);
        while requests.len() < COALESCED_MAX && bytes < COALESCED_BYTES_MAX {
            match self.inputs.try_recv() {
                Ok(StoreInput::Commit { request, time }) => {
                    self.advance(time);
                    bytes += put_bytes(&request);
                    requests.push(request);
                }
                Ok(other) => {
                    self.next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let together: Vec<&CommitRequest> = requests.iter().collect();
        match self.store.commit_all(&together, self.time) {
            // What fits alone should not fail because of its neighbour: deletions above all.
            Err(StoreError::Full) if requests.len() > 1 => {
                for request in &requests {
                    let result = self.store.commit(request, self.time);
                    self.answer_commit(request.ticket, result);
                }
            }
            result => {
                for request in &requests {
                    self.answer_commit(request.ticket, result.clone());
                }
            }
        }
    }

    fn advance(&mut self, time: StoreTime) {
        let wall_us = time.wall_us.or(self.time.wall_us);
        let newest = if time.service_us >= self.time.service_us { time } else { self.time };
        self.time = StoreTime { wall_us, ..newest };
    }

    fn answer_commit(&self, ticket: u64, result: Result<CommitStats, StoreError>) {
        self.answer(match result {
            Ok(stats) => StoreEvent::Committed { ticket, stats },
            Err(error) => StoreEvent::CommitFailed { ticket, error },
        });
    }

    fn answer(&self, event: StoreEvent) {
        // Without a receiver the process is stopping; what was asked for is written all the same.
        let _ = self.events.blocking_send(event);
    }
}

fn put_bytes(request: &CommitRequest) -> usize {
    request.puts.iter().map(|put| put.block.len()).sum()
}
