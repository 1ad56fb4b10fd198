//! Prints, for each reference model and engine, the time to load and the time a row in batches of 1, 8 and 32.
//!
//! `cargo run --release -p weir-infer --example measure [MODEL BACKEND]`; with one model and backend the memory is theirs
//! alone, otherwise also that of those before.
#![allow(clippy::print_stdout)] // it is a report

use std::path::Path;
use std::time::{Duration, Instant};

use weir_infer::{Backend, Model, Request, RuntimeLibrary, Worker, WorkerOptions, disable_telemetry_env};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("telemetry of newer libraries disabled: {}", disable_telemetry_env());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let (mut models, mut backends) = (MODELS.map(str::to_owned).to_vec(), vec![Backend::Ort, Backend::Rten]);
    let mut arguments = std::env::args().skip(1);
    if let (Some(model), Some(backend)) = (arguments.next(), arguments.next()) {
        (models, backends) = (vec![model], vec![backend.parse()?]);
    }
    let library = RuntimeLibrary::from_env(None);
    println!(
        "{:14} {:5} {:>8} {:>8} {:>8} {:>8} {:>7}  worker us",
        "model", "on", "load ms", "1: us", "8: us", "32: us", "PSS MiB"
    );
    for name in &models {
        for backend in &backends {
            let start = Instant::now();
            let path = folder.join(format!("{name}.toml"));
            match Model::load(&path, *backend, &library) {
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
        let mut request = Request { id, window: window.clone(), origin: None };
        while let Err(refused) = worker.try_submit(request) {
            request = refused.request;
            std::thread::yield_now();
        }
    }
    let stats = worker.stop();
    let each = start.elapsed().as_secs_f64() * 1e6 / WORKER_ROWS as f64;
    let batch = stats.rows as f64 / stats.batches as f64;
    println!(
        "{name:14} {backend:5} {:8.1} {:8.1} {:8.1} {:8.1} {:7.1}  {each:.1} ({batch:.0} rows a batch)",
        load.as_secs_f64() * 1e3,
        direct[0],
        direct[1],
        direct[2],
        pss_kib()? / 1024.0
    );
    Ok(())
}

/// The process's memory, shared pages counted by their share.
fn pss_kib() -> Result<f64, Box<dyn std::error::Error>> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss in smaps_rollup")?;
    Ok(line.trim_end_matches("kB").trim().parse()?)
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

const MODELS: [&str; 3] = ["watch-small", "watch-large", "watch-forest"];
const RUNS: usize = 201;
const WORKER_ROWS: u64 = 4000;
