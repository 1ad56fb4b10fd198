//! Prints, for each reference model and engine, the time to load and the time a row in batches of 1, 8 and 32.
//!
//! `cargo run --release -p weir-infer --example measure [FOLDER]`
#![allow(clippy::print_stdout)] // it is a report

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weir_infer::{Backend, Model, Request, RuntimeLibrary, Worker, WorkerOptions, disable_telemetry_env};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("telemetry of newer libraries disabled: {}", disable_telemetry_env());
    let folder =
        std::env::args_os().nth(1).map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models"), PathBuf::from);
    let library = RuntimeLibrary::from_env(None);
    println!("{:14} {:5} {:>8} {:>9} {:>9} {:>9} {:>12}", "model", "on", "load ms", "1: us", "8: us", "32: us", "worker us");
    for name in ["watch-small", "watch-large", "watch-forest"] {
        for backend in [Backend::Ort, Backend::Rten] {
            let start = Instant::now();
            let path = folder.join(format!("{name}.toml"));
            match Model::load(&path, backend, &library) {
                Ok(model) => measure(name, model, start.elapsed())?,
                Err(error) => println!("{name:14} {backend:5} {error}"),
            }
        }
    }
    Ok(())
}

/// Times a row: directly with 1, 8 and 32 rows, and through a worker whose queue is kept full.
fn measure(name: &str, mut model: Model, load: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let backend = model.backend();
    let window: Vec<f32> = (0..model.manifest().row_len()).map(|i| (i as f32 * 0.1).sin() * 900.0).collect();
    let direct = [1, 8, 32].map(|rows| {
        let windows = vec![window.as_slice(); rows];
        let mut times: Vec<Duration> = (0..RUNS).map(|_| timed(|| drop(model.score(&windows)))).collect();
        times.sort();
        times[RUNS / 2].as_secs_f64() * 1e6 / rows as f64
    });
    let worker = Worker::start(model, WorkerOptions::default(), Box::new(drop))?;
    let start = Instant::now();
    for id in 0..WORKER_ROWS {
        let mut request = Request { id, window: window.clone() };
        while let Err(refused) = worker.try_submit(request) {
            request = refused.request;
            std::thread::yield_now();
        }
    }
    let stats = worker.stop();
    let each = start.elapsed().as_secs_f64() * 1e6 / WORKER_ROWS as f64;
    let batch = stats.rows as f64 / stats.batches as f64;
    println!(
        "{name:14} {backend:5} {:8.1} {:9.1} {:9.1} {:9.1} {each:12.1} ({batch:.0} rows a batch)",
        load.as_secs_f64() * 1e3,
        direct[0],
        direct[1],
        direct[2]
    );
    Ok(())
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

const RUNS: usize = 201;
const WORKER_ROWS: u64 = 4000;
