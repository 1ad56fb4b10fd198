//! A cascade end to end: held-out recordings over MQTT, the small model on the box, the large one in a pool of the cloud.
//!
//! Each window is one message of a device of its own, so its verdict is found by the device, and the time from publish to
//! PUBACK is that of its record (`ack = "record"`, and a lane that is safe in memory: what is measured is the answer, not the
//! disk). `random` sends as many windows on as the cascade did, chosen by lot: its answers are those of the other runs, averaged
//! over [`DRAWS`] draws.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::path::wait_for_uplink;
use crate::site::{Setup, Site};
use crate::windows::{CHANNELS, SAMPLES, STEP, Times, Window, publish, times, wait_for, windows};

/// Options of `weir-bench cascade`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Windows a second.
    #[arg(long, default_value_t = 40.0)]
    rate: f64,
    /// How long an answer of the pool is waited for, in milliseconds.
    #[arg(long, default_value_t = 1_000)]
    deadline_ms: u64,
    /// Writes the results here as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fail unless the cascade asks about no more than 40 %, is at most one point worse than the large model alone, and at least
    /// two points better than as many windows by lot.
    #[arg(long)]
    enforce: bool,
}

/// What came of one way of asking.
#[derive(Debug, Serialize)]
struct Run {
    /// Part of the windows whose label is right.
    accuracy: f64,
    /// Part of the windows that the pool was asked about.
    offloaded: f64,
    /// Bytes of these windows.
    bytes: u64,
    answer_ms: Times,
}

#[derive(Debug, Serialize)]
struct Runs {
    windows: usize,
    small: Run,
    large: Run,
    cascade: Run,
    random: Run,
}

/// One run's answer to each window.
struct Answers {
    labels: Vec<String>,
    took_us: Vec<u64>,
    sent: u64,
    bytes: u64,
}

/// Draws of `random`.
const DRAWS: u64 = 1_000;
/// What the cascade must hold.
const OFFLOADED_MAX: f64 = 0.40;
const BELOW_LARGE_MAX: f64 = 0.01;
const ABOVE_RANDOM_MIN: f64 = 0.02;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.rate > 0.0 && args.deadline_ms > 0, "rate and deadline are above 0");
    let windows = windows(STEP)?;
    let here = "model = \"watch-small\"".to_owned();
    let ask = |more: &str| {
        let (deadline, task) = (args.deadline_ms, "activity");
        format!("offload = {{ task = \"{task}\", mode = \"wait\", deadline = \"{deadline}ms\"{more} }}")
    };
    let small = play(args, &windows, &here)?;
    let large = play(args, &windows, &format!("window = {{ length = \"{SAMPLES} samples\" }}\n{}", ask("")))?;
    let cascade = play(args, &windows, &format!("{here}\n{}", ask("")))?;
    let random = random(&windows, &small, &large, cascade.sent as usize)?;
    let runs = Runs {
        windows: windows.len(),
        small: small.judge(&windows)?,
        large: large.judge(&windows)?,
        cascade: cascade.judge(&windows)?,
        random,
    };
    println!("{} windows of subjects 8 to 10", runs.windows);
    println!("| | accuracy | offloaded | bytes | answer ms p50 / p99 |");
    println!("| --- | --- | --- | --- | --- |");
    let all = [("small", &runs.small), ("large", &runs.large), ("cascade", &runs.cascade), ("random", &runs.random)];
    for (name, run) in all {
        let Run { accuracy, offloaded, bytes, answer_ms: Times { p50, p99 } } = run;
        println!("| {name} | {accuracy:.3} | {:.1} % | {bytes} | {p50:.1} / {p99:.1} |", offloaded * 100.0);
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&runs)?)?;
    }
    if args.enforce {
        let Runs { large, cascade, random, .. } = &runs;
        let is_frugal = cascade.offloaded <= OFFLOADED_MAX;
        let is_right = cascade.accuracy >= large.accuracy - BELOW_LARGE_MAX;
        if !is_frugal || !is_right || cascade.accuracy < random.accuracy + ABOVE_RANDOM_MIN {
            bail!("the cascade asks too much, or is no better for it");
        }
    }
    Ok(())
}

/// Plays all windows through a box whose stream has these keys, and its cloud.
fn play(args: &Args, windows: &[Window], keys: &str) -> anyhow::Result<Answers> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let models = models.display();
    let extra = format!(
        "[infer]\nbackend = \"rten\"\n[offload]\nrequests_per_hour = 1000000\n\
         [[model]]\nname = \"watch-small\"\nmanifest = \"{models}/watch-small.toml\"\n\
         [[stream]]\nname = \"wrist\"\ntopics = [\"wrist/+\"]\nfidelity = \"verdict\"\nack = \"record\"\n\
         payload = {{ format = \"packed\", element = \"i16\", channels = {CHANNELS}, rate_hz = 50.0 }}\n{keys}\n"
    );
    let cloud = format!(
        "[[pool]]\nname = \"activity-large\"\ntask = \"activity\"\nmodel = \"{models}/watch-large.toml\"\nengine = \"rten\"\n\
         gateways = [\"bench\"]\n"
    );
    let site = Site::start(&Setup { mode: "memory".to_owned(), with_cloud: true, inflight: 1_024, extra, cloud })?;
    wait_for_uplink(&site)?;
    if keys.contains("offload") {
        wait_for(|| Ok(site.edge.status()?["offload"]["pools"][0]["reached"] == true), "the pool is not told of")?;
    }
    let took_us = publish(site.mqtt, windows, args.rate, |_| Ok(()))?;
    let offload = site.edge.status()?["streams"][1]["offload"].clone();
    let count = |word: &str| offload[word].as_u64().unwrap_or(0);
    let sent = count("sent");
    let labels = labels(&site, windows.len())?;
    let bytes = site.edge.status()?["offload"]["hour_bytes"][0].as_u64().unwrap_or(0);
    Ok(Answers { labels, took_us, sent, bytes })
}

/// The label of each window, once the cloud has all.
fn labels(site: &Site, count: usize) -> anyhow::Result<Vec<String>> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = rusqlite::Connection::open_with_flags(site.folder.path().join("cloud.db"), flags)?;
    let stored = || Ok(db.query_row("SELECT count(*) FROM verdicts", [], |row| row.get::<_, i64>(0))? as usize >= count);
    wait_for(stored, "not every window has its verdict")?;
    let mut labels = vec![String::new(); count];
    let mut query = db.prepare("SELECT device, label FROM verdicts")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let device: usize = row.get::<_, String>(0)?.parse()?;
        let label = labels.get_mut(device).context("a verdict of nothing")?;
        anyhow::ensure!(label.is_empty(), "window {device} has two verdicts");
        *label = row.get(1)?;
    }
    Ok(labels)
}

impl Answers {
    fn judge(&self, windows: &[Window]) -> anyhow::Result<Run> {
        let right = windows.iter().zip(&self.labels).filter(|(window, label)| window.exercise == **label).count();
        let share = |count: usize| count as f64 / windows.len() as f64;
        let answer_ms = times(self.took_us.iter().copied())?;
        Ok(Run { accuracy: share(right), offloaded: share(self.sent as usize), bytes: self.bytes, answer_ms })
    }
}

/// As many windows sent on as `sent`, chosen by lot.
fn random(windows: &[Window], small: &Answers, large: &Answers, sent: usize) -> anyhow::Result<Run> {
    let (mut right, mut took_us, mut noise) = (0, Vec::new(), 0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..DRAWS {
        let mut order: Vec<usize> = (0..windows.len()).collect();
        for at in (1..order.len()).rev() {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            order.swap(at, (noise % (at as u64 + 1)) as usize);
        }
        for (place, at) in order.into_iter().enumerate() {
            let of = if place < sent { large } else { small };
            right += usize::from(of.labels[at] == windows[at].exercise);
            took_us.push(of.took_us[at]);
        }
    }
    let count = windows.len() as f64;
    let bytes = (large.bytes as f64 * sent as f64 / large.sent.max(1) as f64) as u64;
    let accuracy = right as f64 / (count * DRAWS as f64);
    Ok(Run { accuracy, offloaded: sent as f64 / count, bytes, answer_ms: times(took_us.into_iter())? })
}
