//! An outage: what it costs in flash, for senders of every kind, and in memory at a high rate.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;

use crate::publisher::{self, Done, Payload, Task};
use crate::site::{Setup, Site};

/// Options of `weir-bench outage`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Messages a second of steady senders, each measured for itself.
    #[arg(long, value_delimiter = ',', default_values_t = [1.0, 10.0, 100.0, 2000.0])]
    rates: Vec<f64>,
    /// Seconds of each measurement; 600 for the slope of memory over minutes 2 to 10.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Also senders that make the box commit early: ten that are polled at the same time, ten times a second, and one that
    /// waits for each PUBACK. Measured when the day's allowance for that is used up, which takes up to ten minutes each.
    #[arg(long)]
    eager: bool,
    /// Fails above 5 GB of flash a day (up to 100 messages/s), or if memory grows by 1 MiB from the first fifth to the end of ten
    /// minutes or more.
    #[arg(long)]
    enforce: bool,
    /// Writes the results here as well.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Run {
    senders: String,
    /// Messages a second that got their PUBACK.
    rate_per_s: f64,
    seconds: f64,
    commits_per_s: f64,
    flash_bytes_per_message: f64,
    flash_gb_per_day: f64,
    pss_mib_at_fifth: f64,
    pss_mib_at_end: f64,
}

/// Who publishes.
struct Senders {
    name: String,
    count: u32,
    /// Messages a second of each; `None` for as fast as PUBACKs come.
    rate: Option<f64>,
    inflight: u16,
    /// They use up the allowance for early commits before they are measured.
    are_eager: bool,
}

/// What DESIGN asks of 1, 10 and 100 messages a second.
const FLASH_GB_PER_DAY_MAX: f64 = 5.0;
const FLASH_RATE_MAX: f64 = 100.0;
/// What DESIGN asks of minutes 2 to 10. In a shorter run the first fifth is the start, when every part has yet to take its share.
const GROWTH_MIB_MAX: f64 = 1.0;
const GROWTH_SECONDS_MIN: f64 = 599.0;
/// Time to use the allowance up.
const ALLOWANCE_LIMIT: Duration = Duration::from_secs(1_800);
/// Less than this is no allowance: a commit is charged with some 36 KiB.
const ALLOWANCE_BYTES: u64 = 128 * 1024;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let steady = args.rates.iter().map(|&rate| Senders {
        name: format!("one, {rate}/s"),
        count: 1,
        rate: Some(rate),
        inflight: 4_000,
        are_eager: false,
    });
    let polled =
        Senders { name: "ten, polled every 100 ms".into(), count: 10, rate: Some(10.0), inflight: 100, are_eager: true };
    let waiting = Senders { name: "one, waits for each PUBACK".into(), count: 1, rate: None, inflight: 1, are_eager: true };
    let eager = [polled, waiting].into_iter().filter(|_| args.eager);
    let runs = steady.chain(eager).map(|senders| measure(&senders, args.seconds)).collect::<anyhow::Result<Vec<_>>>()?;
    println!(
        "| senders | messages/s | seconds | commits/s | flash B/msg | flash GB/day | PSS MiB after a fifth / at the end |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for run in &runs {
        println!(
            "| {} | {:.1} | {:.0} | {:.2} | {:.0} | {:.2} | {:.1} / {:.1} |",
            run.senders,
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
    if args.enforce {
        runs.iter().try_for_each(enforce)?;
    }
    Ok(())
}

fn enforce(run: &Run) -> anyhow::Result<()> {
    let Run { senders, flash_gb_per_day, .. } = run;
    // A little above it, because a rate is never met to the message.
    if run.rate_per_s <= FLASH_RATE_MAX * 1.05 && *flash_gb_per_day > FLASH_GB_PER_DAY_MAX {
        bail!("{senders}: {flash_gb_per_day:.2} GB of flash a day, more than {FLASH_GB_PER_DAY_MAX}");
    }
    let growth_mib = run.pss_mib_at_end - run.pss_mib_at_fifth;
    if run.seconds >= GROWTH_SECONDS_MIN && growth_mib >= GROWTH_MIB_MAX {
        bail!("{senders}: memory grew by {growth_mib:.2} MiB, not less than {GROWTH_MIB_MAX}");
    }
    Ok(())
}

fn measure(senders: &Senders, seconds: u64) -> anyhow::Result<Run> {
    let site = Site::start(&Setup {
        mode: "disk".to_owned(),
        with_cloud: false,
        inflight: 4_096,
        extra: String::new(),
        cloud: String::new(),
    })?;
    let stop = Arc::new(AtomicBool::new(false));
    let threads = start(senders, &site, &stop);
    if senders.are_eager {
        use_up_allowance(&site)?;
    }
    let before = Counts::read(&site)?;
    let (start, length) = (Instant::now(), Duration::from_secs(seconds));
    let mut pss_mib_at_fifth = site.edge.pss_mib()?;
    while start.elapsed() < length {
        if threads.iter().any(JoinHandle::is_finished) {
            bail!("{}: a publisher has ended", senders.name);
        }
        std::thread::sleep(Duration::from_millis(250).min(length.saturating_sub(start.elapsed())));
        if start.elapsed() < length / 5 {
            pss_mib_at_fifth = site.edge.pss_mib()?;
        }
    }
    let (after, elapsed_s) = (Counts::read(&site)?, start.elapsed().as_secs_f64());
    let pss_mib_at_end = site.edge.pss_mib()?;
    stop.store(true, Relaxed);
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a publisher panicked"))??;
    }
    let flash_bytes = (after.flash_bytes - before.flash_bytes) as f64;
    let messages = after.pubacks - before.pubacks;
    Ok(Run {
        senders: senders.name.clone(),
        rate_per_s: messages / elapsed_s,
        seconds: elapsed_s,
        commits_per_s: (after.commits - before.commits) / elapsed_s,
        flash_bytes_per_message: flash_bytes / messages,
        flash_gb_per_day: flash_bytes / elapsed_s * 86_400.0 / 1e9,
        pss_mib_at_fifth,
        pss_mib_at_end,
    })
}

fn start(senders: &Senders, site: &Site, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<anyhow::Result<Done>>> {
    // All by the same clock: those who are polled are polled at the same time.
    let (addr, start) = (site.mqtt, Instant::now());
    let task = |index| {
        let Senders { rate, inflight, .. } = *senders;
        Task { index, messages: u64::MAX, stop: stop.clone(), inflight, rate, payload: Payload::Json }
    };
    (0..senders.count).map(task).map(|task| std::thread::spawn(move || publisher::run(addr, task, start))).collect()
}

/// Waits until the box makes no more commits ahead of their interval than it may all day.
fn use_up_allowance(site: &Site) -> anyhow::Result<()> {
    let deadline = Instant::now() + ALLOWANCE_LIMIT;
    loop {
        let status = site.edge.status()?;
        match status["early_commit_bytes"].as_u64() {
            Some(left) if left < ALLOWANCE_BYTES => return Ok(()),
            Some(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(500)),
            left => bail!("the allowance for early commits is not used up: {left:?}"),
        }
    }
}

/// What the box and the kernel have counted.
struct Counts {
    flash_bytes: u64,
    pubacks: f64,
    commits: f64,
}

impl Counts {
    fn read(site: &Site) -> anyhow::Result<Counts> {
        let status = site.edge.status()?;
        let number = |value: &serde_json::Value| value.as_f64().unwrap_or(0.0);
        Ok(Counts {
            flash_bytes: site.edge.written_bytes()?,
            pubacks: number(&status["ingest"]["pubacks"]),
            commits: number(&status["store"]["commits"]),
        })
    }
}
