//! A worker keeps ids and order, batches what has queued up, and refuses what does not fit.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use weir_infer::{Backend, Outcome, RefusedReason, Request, RunError, Worker, WorkerOptions};

use super::{Noise, backends, load};

/// Long enough for a busy machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker whose sink hands over each batch and then waits to be let on.
struct Held {
    worker: Worker,
    batches: Receiver<Vec<Outcome>>,
    go_on: Sender<()>,
    window: Vec<f32>,
}

impl Held {
    fn start(backend: Backend, options: WorkerOptions) -> Self {
        let model = load("watch-small", backend);
        let window = Noise(5).window(model.manifest());
        let (batches_tx, batches) = channel();
        let (go_on, gate) = channel();
        let sink = move |batch: Vec<Outcome>| {
            batches_tx.send(batch).expect("the test listens");
            let _ = gate.recv(); // once the test lets go of the gate, it is open
        };
        let worker = Worker::start(model, options, Box::new(sink)).expect("a thread");
        Self { worker, batches, go_on, window }
    }

    fn request(&self, id: u64) -> Request {
        Request { id, window: self.window.clone(), origin: None }
    }

    fn batch(&self) -> Vec<Outcome> {
        self.batches.recv_timeout(PATIENCE).expect("a batch")
    }
}

fn ids(batch: &[Outcome]) -> Vec<u64> {
    batch.iter().map(|outcome| outcome.id).collect()
}

#[test]
fn what_has_queued_up_is_run_in_batches_in_order_and_what_does_not_fit_comes_back() {
    for backend in backends() {
        let held = Held::start(backend, WorkerOptions { queue_rows_limit: 8, batch_rows_limit: 5, ..WorkerOptions::default() });
        held.worker.try_submit(held.request(100)).unwrap();
        assert_eq!(ids(&held.batch()), [100], "a lone request is not made to wait");
        for id in 0..8 {
            held.worker.try_submit(held.request(id)).unwrap();
        }
        let refused = held.worker.try_submit(held.request(8)).unwrap_err();
        assert_eq!((refused.request, refused.reason), (held.request(8), RefusedReason::Full));
        let stats = held.worker.stats();
        assert_eq!((stats.queued, stats.refused, stats.rows), (8, 1, 1));
        held.go_on.send(()).unwrap();
        assert_eq!(ids(&held.batch()), [0, 1, 2, 3, 4]);
        held.go_on.send(()).unwrap();
        assert_eq!(ids(&held.batch()), [5, 6, 7]);
        drop(held.go_on);
        let stats = held.worker.stop();
        assert_eq!((stats.rows, stats.batches, stats.errors, stats.queued), (9, 3, 0, 0));
        assert!(stats.batch_us_max <= stats.batch_us_total && stats.batch_us_total > 0);
    }
}

#[test]
fn outcomes_carry_the_window_and_the_answer_of_their_own_request() {
    for backend in backends() {
        let mut model = load("watch-large", backend);
        let mut noise = Noise(8);
        let windows: Vec<Vec<f32>> = (0..100).map(|_| noise.window(model.manifest())).collect();
        let alone: Vec<_> = windows.iter().map(|window| model.score(&[window]).remove(0).unwrap()).collect();
        let (outcomes_tx, outcomes) = channel();
        let sink = move |batch: Vec<Outcome>| batch.into_iter().for_each(|outcome| outcomes_tx.send(outcome).unwrap());
        let worker = Worker::start(model, WorkerOptions::default(), Box::new(sink)).unwrap();
        for (id, window) in windows.iter().enumerate() {
            worker.try_submit(Request { id: id as u64, window: window.clone(), origin: None }).unwrap();
        }
        assert_eq!(worker.stop().rows, 100, "stopping lets what is queued finish");
        let outcomes: Vec<Outcome> = outcomes.iter().collect();
        assert_eq!(outcomes.len(), 100);
        for (id, outcome) in outcomes.into_iter().enumerate() {
            assert_eq!((outcome.id, &outcome.window), (id as u64, &windows[id]));
            let (found, expected) = (outcome.result.unwrap(), &alone[id]);
            for (found, expected) in found.outputs.iter().zip(&expected.outputs) {
                assert!((found - expected).abs() < 1e-5, "row {id}: {found} instead of {expected}");
            }
        }
    }
}

#[test]
fn a_window_that_is_not_finite_or_too_short_is_an_error_and_is_counted() {
    for backend in backends() {
        let held = Held::start(backend, WorkerOptions::default());
        drop(held.go_on);
        let mut bad = held.window.clone();
        bad[0] = f32::INFINITY;
        held.worker.try_submit(Request { id: 1, window: bad, origin: None }).unwrap();
        held.worker.try_submit(Request { id: 2, window: vec![0.0; 3], origin: None }).unwrap();
        held.worker.try_submit(Request { id: 3, window: held.window, origin: None }).unwrap();
        let stats = held.worker.stop();
        assert_eq!((stats.rows, stats.errors), (1, 2));
        let outcomes: Vec<Outcome> = held.batches.iter().flatten().collect();
        assert!(matches!(outcomes[0].result, Err(RunError::NonFinite { sample: 0, .. })));
        assert_eq!(outcomes[1].result, Err(RunError::RowLength { found: 3, expected: 768 }));
        assert!(outcomes[2].result.is_ok());
    }
}

#[test]
fn a_worker_whose_thread_has_ended_returns_requests() {
    let model = load("watch-small", Backend::Rten);
    let window = Noise(5).window(model.manifest());
    let (ended_tx, ended) = channel::<()>();
    let sink = move |_: Vec<Outcome>| {
        let _ended = &ended_tx; // dropped with the thread's work
        panic!("the sink fails");
    };
    let worker = Worker::start(model, WorkerOptions::default(), Box::new(sink)).unwrap();
    worker.try_submit(Request { id: 1, window: window.clone(), origin: None }).unwrap();
    assert!(ended.recv_timeout(PATIENCE).is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Disconnected));
    // The queue goes with the sink, but not in the same instant.
    let refused = loop {
        match worker.try_submit(Request { id: 2, window: window.clone(), origin: None }) {
            Err(refused) => break refused,
            Ok(()) => std::thread::yield_now(),
        }
    };
    assert_eq!((refused.request.id, refused.reason), (2, RefusedReason::Stopped));
    assert_eq!(worker.stop().rows, 1);
}

#[test]
fn a_worker_that_is_not_at_a_batch_cannot_be_given_up_and_ends_in_time() {
    for backend in backends() {
        let mut held = Held::start(backend, WorkerOptions::default());
        assert_eq!((held.worker.under_way(), held.worker.give_up()), (None, None));
        held.worker.try_submit(held.request(1)).unwrap();
        assert_eq!(ids(&held.batch()), [1], "all goes on");
        // Its model is done, though the sink holds it up.
        assert_eq!((held.worker.under_way(), held.worker.give_up()), (None, None));
        assert!(!held.worker.is_given_up() && !held.worker.stats().given_up);
        let (sink_waits, limit) = (held.worker, Duration::from_millis(50));
        assert!(!sink_waits.stop_within(limit), "it is not waited for");
        drop(held.go_on);
    }
}
