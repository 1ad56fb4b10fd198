//! What the gateway takes: its binary, and its memory idle and under load, with and without a model.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;

use crate::path::wait_for_uplink;
use crate::process;
use crate::publisher::{self, Payload, Task};
use crate::site::{Setup, Site};

/// Options of `weir-bench size`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds under load.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Fails if the box takes more memory than DESIGN allows: 15, 20 and 40 MiB.
    #[arg(long)]
    enforce: bool,
    /// Writes the results here as well.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Run {
    model: String,
    pss_idle_mib: f64,
    pss_load_mib: f64,
    verdicts: u64,
}

/// Messages a second under load; with a model each is half a second of motion.
const RATE: f64 = 2_000.0;
/// The most that the box may take without a model and with the small one on each engine.
const PSS_MIB_MAX: [(&str, f64); 3] = [("none", 15.0), ("rten", 20.0), ("ort", 40.0)];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut runs = Vec::new();
    for (model, _) in PSS_MIB_MAX {
        if model == "ort"
            && let Err(err) = weir_infer::RuntimeLibrary::from_env(None).find()
        {
            println!("SKIPPED: ort: {err}");
            continue;
        }
        runs.push(measure(model, args.seconds)?);
    }
    println!("| model | PSS MiB idle | PSS MiB at {RATE} messages/s | verdicts |");
    println!("| --- | --- | --- | --- |");
    for run in &runs {
        println!("| {} | {:.1} | {:.1} | {} |", run.model, run.pss_idle_mib, run.pss_load_mib, run.verdicts);
    }
    let binary = std::fs::metadata(process::program("weir-edge")?)?;
    println!("binary of weir-edge: {:.2} MB", binary.len() as f64 / 1e6);
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&runs)?)?;
    }
    for (run, (model, most)) in runs.iter().flat_map(|run| PSS_MIB_MAX.iter().map(move |aim| (run, aim))) {
        if args.enforce && run.model == *model && run.pss_load_mib > *most {
            bail!("model {model}: {:.1} MiB, more than {most}", run.pss_load_mib);
        }
    }
    Ok(())
}

fn measure(model: &str, seconds: u64) -> anyhow::Result<Run> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/watch-small.toml");
    let extra = match model {
        "none" => String::new(),
        backend => format!(
            r#"
[infer]
backend = "{backend}"
[[model]]
name = "watch-small"
manifest = "{}"
[[stream]]
name = "motion"
topics = ["motion/+"]
fidelity = "verdict"
model = "watch-small"
payload = {{ format = "packed", element = "i16", channels = 6, rate_hz = 50.0 }}
"#,
            manifest.display()
        ),
    };
    let payload = if model == "none" { Payload::Json } else { Payload::Packed };
    let site =
        Site::start(&Setup { mode: "through".to_owned(), with_cloud: true, inflight: 1_024, extra, cloud: String::new() })?;
    wait_for_uplink(&site)?;
    let pss_idle_mib = site.edge.pss_mib()?;
    let (addr, start, messages) = (site.mqtt, Instant::now(), (RATE * seconds as f64) as u64);
    let task = Task { index: 0, messages, stop: Arc::default(), inflight: 1_000, rate: Some(RATE), payload };
    let publisher = std::thread::spawn(move || publisher::run(addr, task, start));
    let mut pss_load_mib = pss_idle_mib;
    while !publisher.is_finished() {
        std::thread::sleep(Duration::from_millis(250));
        pss_load_mib = pss_load_mib.max(site.edge.pss_mib()?);
    }
    publisher.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
    std::thread::sleep(Duration::from_millis(600));
    let verdicts = site.edge.status()?["ingest"]["verdicts"].as_u64().unwrap_or(0);
    if model != "none" && verdicts == 0 {
        bail!("model {model}: no verdict was given, so nothing was measured");
    }
    Ok(Run { model: model.to_owned(), pss_idle_mib, pss_load_mib, verdicts })
}
