//! An outage: what it costs in flash at low rates, and in memory at a high one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::publisher::{self, Payload, Task};
use crate::site::{Setup, Site};

/// Options of `weir-bench outage`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Messages a second, each measured for itself.
    #[arg(long, value_delimiter = ',', default_values_t = [1.0, 10.0, 100.0, 2000.0])]
    rates: Vec<f64>,
    /// Seconds at each rate; 600 for the slope of memory over minutes 2 to 10.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Writes the results here as well.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Run {
    rate_per_s: f64,
    seconds: u64,
    commits_per_s: f64,
    flash_bytes_per_message: f64,
    flash_gb_per_day: f64,
    pss_mib_at_fifth: f64,
    pss_mib_at_end: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runs = args.rates.iter().map(|&rate| measure(rate, args.seconds)).collect::<anyhow::Result<Vec<_>>>()?;
    println!("| messages/s | seconds | commits/s | flash B/msg | flash GB/day | PSS MiB after a fifth / at the end |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for run in &runs {
        println!(
            "| {} | {} | {:.2} | {:.0} | {:.2} | {:.1} / {:.1} |",
            run.rate_per_s,
            run.seconds,
            run.commits_per_s,
            run.flash_bytes_per_message,
            run.flash_gb_per_day,
            run.pss_mib_at_fifth,
            run.pss_mib_at_end,
        );
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&runs)?)?;
    }
    Ok(())
}

fn measure(rate: f64, seconds: u64) -> anyhow::Result<Run> {
    let site = Site::start(&Setup { mode: "disk".to_owned(), with_cloud: false, inflight: 4_096, extra: String::new() })?;
    let written = site.edge.written_bytes()?;
    let start = Instant::now();
    let messages = (rate * seconds as f64) as u64;
    let addr = site.mqtt;
    let task = Task { index: 0, messages, inflight: 4_000, rate: Some(rate), payload: Payload::Json };
    let publisher = std::thread::spawn(move || publisher::run(addr, task, start));
    let mut pss_mib_at_fifth = site.edge.pss_mib()?;
    while !publisher.is_finished() {
        std::thread::sleep(Duration::from_millis(250));
        if start.elapsed().as_secs() < seconds / 5 {
            pss_mib_at_fifth = site.edge.pss_mib()?;
        }
    }
    publisher.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
    let elapsed_s = start.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_millis(600));
    let flash_bytes = (site.edge.written_bytes()? - written) as f64;
    let commits = site.edge.status()?["store"]["commits"].as_f64().unwrap_or(0.0);
    Ok(Run {
        rate_per_s: rate,
        seconds,
        commits_per_s: commits / elapsed_s,
        flash_bytes_per_message: flash_bytes / messages as f64,
        flash_gb_per_day: flash_bytes / elapsed_s * 86_400.0 / 1e9,
        pss_mib_at_fifth,
        pss_mib_at_end: site.edge.pss_mib()?,
    })
}
