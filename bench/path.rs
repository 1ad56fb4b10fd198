//! The whole path: publishers, gateway, QUIC, cloud, SQLite, all on this machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::publisher::{self, Payload, Task};
use crate::site::{Setup, Site};

/// Options of `weir-bench path`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Messages in each run at full speed.
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Publishers.
    #[arg(long, default_value_t = 4)]
    publishers: u32,
    /// Writes the results here as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fails if mode `disk` at full speed misses its aims: 100,000 messages/s and 4 CPU-seconds per million.
    #[arg(long)]
    enforce: bool,
    /// Only this mode.
    #[arg(long)]
    mode: Option<String>,
}

#[derive(Debug, Serialize)]
struct Run {
    mode: String,
    inflight: u16,
    /// Messages a second offered; `None` for as fast as PUBACKs come.
    offered_per_s: Option<f64>,
    messages: u64,
    /// From the first publish to the last row in SQLite.
    messages_per_s: f64,
    /// From the first publish to the last PUBACK.
    acked_per_s: f64,
    edge_cpu_s_per_million: f64,
    cloud_cpu_s_per_million: f64,
    edge_pss_mib: f64,
    edge_pss_idle_mib: f64,
    wire_bytes_per_message: f64,
    flash_bytes_per_message: f64,
    /// From publish to PUBACK.
    latency_ms: Latency,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut runs = Vec::new();
    for mode in ["disk", "through"].into_iter().filter(|mode| args.mode.as_deref().is_none_or(|only| only == *mode)) {
        let full = measure(mode, args, args.messages, 1_000, None)?;
        let half = full.messages_per_s / 2.0;
        runs.push(full);
        runs.push(measure(mode, args, (half * 5.0) as u64, 1_000, Some(half))?);
        runs.push(measure(mode, args, args.messages / 10, 20, None)?);
    }
    print(&runs);
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&runs)?)?;
    }
    let missed = |run: &&Run| {
        run.mode == "disk"
            && run.offered_per_s.is_none()
            && run.inflight == 1_000
            && (run.messages_per_s < 100_000.0 || run.edge_cpu_s_per_million > 4.0)
    };
    match runs.iter().find(missed) {
        Some(run) if args.enforce => {
            bail!("aims missed: {:.0} messages/s, {:.2} CPU-s per million", run.messages_per_s, run.edge_cpu_s_per_million)
        }
        _ => Ok(()),
    }
}

fn measure(mode: &str, args: &Args, messages: u64, inflight: u16, rate: Option<f64>) -> anyhow::Result<Run> {
    let site = Site::start(&Setup {
        mode: mode.to_owned(),
        with_cloud: true,
        inflight: 1_024,
        extra: String::new(),
        cloud: String::new(),
    })?;
    wait_for_uplink(&site)?;
    let edge_pss_idle_mib = site.edge.pss_mib()?;
    let publishers = u64::from(args.publishers);
    let messages = messages / publishers * publishers;
    let cloud = site.cloud.as_ref().expect("started with a cloud");
    let (edge_cpu, cloud_cpu) = (site.edge.cpu_s()?, cloud.cpu_s()?);
    let written = site.edge.written_bytes()?;
    let start = Instant::now();
    let tasks = (0..args.publishers).map(|index| Task {
        index,
        messages: messages / publishers,
        stop: Arc::default(),
        inflight,
        rate: rate.map(|rate| rate / publishers as f64),
        payload: Payload::Json,
    });
    let threads: Vec<_> = tasks
        .map(|task| {
            std::thread::spawn({
                let addr = site.mqtt;
                move || publisher::run(addr, task, start)
            })
        })
        .collect();
    let mut pss_mib: f64 = edge_pss_idle_mib;
    while threads.iter().any(|thread| !thread.is_finished()) {
        std::thread::sleep(Duration::from_millis(250));
        pss_mib = pss_mib.max(site.edge.pss_mib()?);
    }
    let mut latency = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3)?;
    let mut acked = start;
    for thread in threads {
        let done = thread.join().map_err(|_| anyhow::anyhow!("a publisher panicked"))??;
        latency.add(&done.ack_us)?;
        acked = acked.max(done.ended);
    }
    let stored = wait_for_rows(&site, messages)?;
    let per_million = 1e6 / messages as f64;
    let (edge_cpu_s, cloud_cpu_s) = (site.edge.cpu_s()? - edge_cpu, cloud.cpu_s()? - cloud_cpu);
    // The status is some hundred milliseconds old at most.
    std::thread::sleep(Duration::from_millis(600));
    let status = site.edge.status()?;
    let wire_bytes = status["uplinks"][0]["sent_bytes"].as_f64().unwrap_or(0.0);
    let ms = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Run {
        mode: mode.to_owned(),
        inflight,
        offered_per_s: rate,
        messages,
        messages_per_s: messages as f64 / (stored - start).as_secs_f64(),
        acked_per_s: messages as f64 / (acked - start).as_secs_f64(),
        edge_cpu_s_per_million: edge_cpu_s * per_million,
        cloud_cpu_s_per_million: cloud_cpu_s * per_million,
        edge_pss_mib: pss_mib,
        edge_pss_idle_mib,
        wire_bytes_per_message: wire_bytes / messages as f64,
        flash_bytes_per_message: (site.edge.written_bytes()? - written) as f64 / messages as f64,
        latency_ms: Latency { p50: ms(0.5), p99: ms(0.99), max: latency.max() as f64 / 1e3 },
    })
}

pub(crate) fn wait_for_uplink(site: &Site) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while site.edge.status()?["uplinks"][0]["up"] != true {
        if Instant::now() > deadline {
            bail!("the uplink does not come up: {}", site.edge.status()?["uplinks"][0]);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Waits until the cloud has every message; returns when it had.
fn wait_for_rows(site: &Site, messages: u64) -> anyhow::Result<Instant> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let stored = site.stored()?;
        if stored >= messages {
            return Ok(Instant::now());
        }
        if Instant::now() > deadline {
            bail!("only {stored} of {messages} messages are stored; gateway: {}", site.edge.status()?);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn print(runs: &[Run]) {
    println!(
        "| mode | in flight | offered/s | stored/s | acked/s | edge CPU-s/M | cloud CPU-s/M | edge PSS MiB idle / load | wire B/msg | flash B/msg | PUBACK ms p50 / p99 / max |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for run in runs {
        let offered = run.offered_per_s.map_or("all".to_owned(), |rate| format!("{rate:.0}"));
        println!(
            "| {} | {} | {offered} | {:.0} | {:.0} | {:.2} | {:.2} | {:.1} / {:.1} | {:.1} | {:.1} | {:.1} / {:.1} / {:.1} |",
            run.mode,
            run.inflight,
            run.messages_per_s,
            run.acked_per_s,
            run.edge_cpu_s_per_million,
            run.cloud_cpu_s_per_million,
            run.edge_pss_idle_mib,
            run.edge_pss_mib,
            run.wire_bytes_per_message,
            run.flash_bytes_per_message,
            run.latency_ms.p50,
            run.latency_ms.p99,
            run.latency_ms.max,
        );
    }
}
