//! What a window costs on its whole way through the box, beside what its model costs.
//!
//! The box is the real process: MQTT from a socket, decoding, windows, batches for the model, verdicts in their lane, blocks to
//! the cloud, PUBACKs. What is compared is windows for each second of its CPU time, all threads counted, with those of a bare loop
//! around the same model on the same engine, in batches of the size that the box made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use weir_infer::{Backend, Model, RuntimeLibrary};

use crate::path::wait_for_uplink;
use crate::publisher::{self, Payload, Task};
use crate::site::{Setup, Site};

/// Options of `weir-bench rows`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds that are measured, of each model on each engine.
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Writes the results here as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fail unless the box has so large a part of the bare loop's windows: 0.8 with the large model, 0.25 with the small one.
    #[arg(long)]
    enforce: bool,
}

#[derive(Debug, Serialize)]
struct Run {
    model: &'static str,
    engine: &'static str,
    /// Windows of a batch, on average.
    batch: f64,
    /// Windows for each second of CPU time: of the box, and of the bare loop.
    rows_per_cpu_s: f64,
    bare_rows_per_cpu_s: f64,
    /// The one by the other.
    part: f64,
    part_min: f64,
    rows_per_s: f64,
}

/// Models, and the part of the bare loop's windows that the box is to have.
const MODELS: [(&str, f64); 2] = [("watch-small", 0.25), ("watch-large", 0.8)];
const ENGINES: [(&str, Backend); 2] = [("rten", Backend::Rten), ("ort", Backend::Ort)];
/// Until queues are full and memory is warm.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long the bare loop runs.
const BARE: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.seconds > 0, "a second at least");
    let library = RuntimeLibrary::from_env(None);
    let mut runs = Vec::new();
    for (engine, backend) in ENGINES {
        if backend == Backend::Ort
            && let Err(err) = library.find()
        {
            println!("SKIPPED: ort: {err}");
            continue;
        }
        for (model, part_min) in MODELS {
            let (rows_per_s, rows_per_cpu_s, batch) = through_the_box(model, engine, args.seconds)?;
            let bare_rows_per_cpu_s = bare(model, backend, &library, batch.round().max(1.0) as usize)?;
            let part = rows_per_cpu_s / bare_rows_per_cpu_s;
            runs.push(Run { model, engine, batch, rows_per_cpu_s, bare_rows_per_cpu_s, part, part_min, rows_per_s });
        }
    }
    println!("| model | engine | windows/s | windows a batch | windows per CPU-s | of a bare loop | part | at least |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for run in &runs {
        let Run { model, engine, batch, rows_per_cpu_s, bare_rows_per_cpu_s, part, part_min, rows_per_s } = run;
        println!(
            "| {model} | {engine} | {rows_per_s:.0} | {batch:.1} | {rows_per_cpu_s:.0} | {bare_rows_per_cpu_s:.0} | {part:.3} | {part_min} |"
        );
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&runs)?)?;
    }
    match runs.iter().find(|run| run.part < run.part_min) {
        Some(run) if args.enforce => {
            bail!("{} on {}: {:.3} of a bare loop, {} is wanted", run.model, run.engine, run.part, run.part_min)
        }
        _ => Ok(()),
    }
}

fn manifest(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../models/{model}.toml"))
}

/// Windows a second, windows for each CPU-second of the box, and windows of a batch, with more messages than it can take.
fn through_the_box(model: &str, engine: &str, seconds: u64) -> anyhow::Result<(f64, f64, f64)> {
    let extra = format!(
        r#"
[infer]
backend = "{engine}"
[[model]]
name = "{model}"
manifest = "{}"
[[stream]]
name = "motion"
topics = ["motion/+"]
fidelity = "verdict"
model = "{model}"
payload = {{ format = "packed", element = "i16", channels = 6, rate_hz = 50.0 }}
"#,
        manifest(model).display()
    );
    let site =
        Site::start(&Setup { mode: "through".to_owned(), with_cloud: true, inflight: 1_024, extra, cloud: String::new() })?;
    wait_for_uplink(&site)?;
    let (addr, start, stop) = (site.mqtt, Instant::now(), Arc::new(AtomicBool::new(false)));
    let task =
        Task { index: 0, messages: u64::MAX, stop: Arc::clone(&stop), inflight: 1_000, rate: None, payload: Payload::Window };
    let publisher = std::thread::spawn(move || publisher::run(addr, task, start));
    std::thread::sleep(WARM_UP);
    let before = Seen::now(&site)?;
    std::thread::sleep(Duration::from_secs(seconds));
    let after = Seen::now(&site)?;
    stop.store(true, Relaxed);
    publisher.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
    let rows = after.rows - before.rows;
    anyhow::ensure!(rows > 0.0, "{model} on {engine}: no window was scored, so nothing was measured");
    Ok((
        rows / (after.at - before.at).as_secs_f64(),
        rows / (after.cpu_s - before.cpu_s),
        rows / (after.batches - before.batches),
    ))
}

/// What the box has done.
struct Seen {
    at: Instant,
    cpu_s: f64,
    rows: f64,
    batches: f64,
}

impl Seen {
    fn now(site: &Site) -> anyhow::Result<Seen> {
        let status = site.edge.status()?;
        let count = |word: &str| status["models"][0][word].as_f64().with_context(|| format!("no {word} in the status"));
        Ok(Seen { at: Instant::now(), cpu_s: site.edge.cpu_s()?, rows: count("rows")?, batches: count("batches")? })
    }
}

/// Windows for each CPU-second of this process that does nothing but score them, so many at a time.
fn bare(model: &str, backend: Backend, library: &RuntimeLibrary, batch: usize) -> anyhow::Result<f64> {
    let mut model = Model::load(&manifest(model), backend, library)?;
    let window: Vec<f32> = (0..model.manifest().row_len()).map(|i| (i as f32 * 0.1).sin() * 900.0).collect();
    let windows = vec![window.as_slice(); batch];
    model.at_home(|model| {
        let (start, cpu_s, mut rows) = (Instant::now(), own_cpu_s(), 0);
        while start.elapsed() < BARE {
            for answer in model.score(&windows) {
                answer?;
                rows += 1;
            }
        }
        Ok(f64::from(rows) / (own_cpu_s() - cpu_s))
    })
}

/// CPU time of this process, of all its threads, in seconds.
fn own_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
