//! A model on a thread of its own that runs the batches it is given, as they are.
//!
//! A [`crate::Worker`] makes its batches itself, of what happens to be queued; whoever decides what runs next and beside what, as a
//! pool does, hands over whole ones, one at a time.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::RunError;
use crate::model::{Answer, Model};

/// What came of a batch.
#[derive(Debug)]
pub struct Ran {
    /// One answer or error for each window, in order.
    pub results: Vec<Result<Answer, RunError>>,
    /// How long it took.
    pub took: Duration,
}

/// The thread. Dropping it lets the batch under way finish, unwatched; [`BatchWorker::stop`] waits.
#[derive(Debug)]
pub struct BatchWorker {
    batches: SyncSender<Vec<Vec<f32>>>,
    thread: JoinHandle<()>,
}

impl BatchWorker {
    /// Starts the thread. `sink` gets what came of each batch, on that thread; while it blocks, nothing is scored.
    ///
    /// # Errors
    /// The system's, if it gives no thread.
    pub fn start(model: Model, sink: Box<dyn FnMut(Ran) + Send>) -> std::io::Result<BatchWorker> {
        let (batches, queue) = sync_channel(1);
        let home = model.home();
        let name = format!("pool-{}", model.manifest().name);
        let mut service = Service { model, queue, sink };
        let thread = std::thread::Builder::new().name(name).spawn(move || home.run(|| service.serve()))?;
        Ok(BatchWorker { batches, thread })
    }

    /// Hands over a batch of raw windows, `f32[channels, window]` each. At most one may be under way, and one wait.
    ///
    /// # Errors
    /// The batch itself, if another waits already or the thread has ended.
    pub fn try_run(&self, windows: Vec<Vec<f32>>) -> Result<(), Vec<Vec<f32>>> {
        use std::sync::mpsc::TrySendError;
        self.batches.try_send(windows).map_err(|err| match err {
            TrySendError::Full(windows) | TrySendError::Disconnected(windows) => windows,
        })
    }

    /// Lets what is under way finish, and ends the thread. Must not be called from the sink.
    pub fn stop(self) {
        drop(self.batches);
        // A panic in the sink has been reported by the panic hook.
        let _ = self.thread.join();
    }
}

struct Service {
    model: Model,
    queue: Receiver<Vec<Vec<f32>>>,
    sink: Box<dyn FnMut(Ran) + Send>,
}

impl Service {
    fn serve(&mut self) {
        while let Ok(windows) = self.queue.recv() {
            let start = Instant::now();
            let rows: Vec<&[f32]> = windows.iter().map(Vec::as_slice).collect();
            let results = self.model.score(&rows);
            (self.sink)(Ran { results, took: start.elapsed() });
        }
    }
}
