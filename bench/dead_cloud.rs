//! What a cloud that does not answer costs: answers on the box, with nobody asked and with a pool asked, while the cloud is
//! well, killed, stalled, refusing, or 2 s away.
//!
//! Real processes with an emulated link between them. A quarter of the windows comes before the trouble, so that the box knows
//! the pool and asks it; what is measured is the rest, from publish to PUBACK of a record that is acknowledged once it is
//! decided (see [`crate::cascade`]).

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use weir::link::profile::LinkProfile;
use weir_host::units::Duration;
use weir_logic::offload::IN_FLIGHT_MAX;

use crate::path::wait_for_uplink;
use crate::pools::Hog;
use crate::site::{Setup, Site};
use crate::windows::{CHANNELS, Times, Window, publish, times, wait_for, windows};

/// Options of `weir-bench dead-cloud`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Windows a second.
    #[arg(long, default_value_t = 80.0)]
    rate: f64,
    /// How long an answer of the pool is waited for, in milliseconds.
    #[arg(long, default_value_t = 500)]
    deadline_ms: u64,
    /// Writes the results here as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fail unless, in every trouble, `answer_now` is within 10 ms of `never` at the 99th percentile, `wait` is within the
    /// deadline, and a cloud that does not answer was asked no more often than the breaker allows.
    #[arg(long)]
    enforce: bool,
}

/// What happens to the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Trouble {
    /// Nothing.
    None,
    /// SIGKILL.
    Killed,
    /// SIGSTOP: its sockets take packets in, and nobody reads them.
    Stalled,
    /// Its pool has two places, and another gateway's critical requests are in both.
    Refusing,
    /// Each packet takes a second there, and a second back.
    Far,
}

impl Trouble {
    const ALL: [Trouble; 5] = [Trouble::None, Trouble::Killed, Trouble::Stalled, Trouble::Refusing, Trouble::Far];

    const fn name(self) -> &'static str {
        match self {
            Trouble::None => "none",
            Trouble::Killed => "killed",
            Trouble::Stalled => "stalled",
            Trouble::Refusing => "refusing",
            Trouble::Far => "2 s away",
        }
    }

    /// True if requests are not answered by their deadline.
    fn is_silent(self) -> bool {
        matches!(self, Trouble::Killed | Trouble::Stalled | Trouble::Far)
    }
}

const MODES: [&str; 3] = ["never", "answer_now", "wait"];

/// What came of one trouble in one mode, after it began.
#[derive(Debug, Serialize)]
struct Run {
    trouble: Trouble,
    mode: &'static str,
    windows: usize,
    answer_ms: Times,
    sent: u64,
    answered: u64,
    overdue: u64,
    refused: u64,
    lost: u64,
    breaker_opened: u64,
}

/// By how many samples windows follow each other: each is another one, so none is answered from memory.
const DEAD_STEP: usize = 16;
/// What `answer_now` may cost at the 99th percentile.
const NOW_MS_MAX: f64 = 10.0;
/// A record that waits leaves when a timer says that the deadline has passed, and its PUBACK takes its time.
const TIMER_MS_MAX: f64 = 10.0;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.rate > 0.0 && args.deadline_ms > 0, "rate and deadline are above 0");
    let windows = windows(DEAD_STEP)?;
    let (mut runs, mut broken) = (Vec::new(), Vec::new());
    println!("| trouble | mode | answer ms p50 / p99 | asked | answered | overdue | refused | lost | breaker opened |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for trouble in Trouble::ALL {
        let mut of_trouble = Vec::new();
        for mode in MODES {
            let run = play(args, &windows, trouble, mode)?;
            let Run { answer_ms: Times { p50, p99 }, sent, answered, overdue, refused, lost, breaker_opened, .. } = &run;
            println!(
                "| {} | {mode} | {p50:.1} / {p99:.1} | {sent} | {answered} | {overdue} | {refused} | {lost} | {breaker_opened} |",
                trouble.name()
            );
            of_trouble.push(run);
        }
        broken.extend(judge(args, &of_trouble));
        runs.extend(of_trouble);
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&runs)?)?;
    }
    if args.enforce && !broken.is_empty() {
        bail!("{}", broken.join("; "));
    }
    Ok(())
}

/// What does not hold of the runs of one trouble, in the order of [`MODES`].
fn judge(args: &Args, runs: &[Run]) -> Vec<String> {
    let [never, now, wait] = runs else { return Vec::new() };
    let (name, mut broken) = (never.trouble.name(), Vec::new());
    let (never_ms, now_ms, wait_ms) = (never.answer_ms.p99, now.answer_ms.p99, wait.answer_ms.p99);
    if now_ms > never_ms + NOW_MS_MAX {
        broken.push(format!("{name}: answer_now takes {now_ms:.1} ms where never takes {never_ms:.1}"));
    }
    if wait_ms > args.deadline_ms as f64 + TIMER_MS_MAX {
        broken.push(format!("{name}: wait takes {wait_ms:.1} ms"));
    }
    for run in [now, wait].into_iter().filter(|run| run.trouble.is_silent()) {
        // Nothing that is not answered gives its place back before the breaker opens; then one trial each time. Some were
        // answered before the trouble took hold.
        let unanswered = run.sent.saturating_sub(run.answered);
        if unanswered > IN_FLIGHT_MAX as u64 + run.breaker_opened {
            broken.push(format!("{name}: {unanswered} requests without an answer in mode {}", run.mode));
        }
    }
    broken
}

/// Plays all windows through a box in this mode, with the trouble after a quarter of them.
fn play(args: &Args, windows: &[Window], trouble: Trouble, mode: &'static str) -> anyhow::Result<Run> {
    let mut site = start(args, trouble, mode)?;
    wait_for_uplink(&site)?;
    wait_for(|| Ok(site.edge.status()?["offload"]["pools"][0]["reached"] == true), "the pool is not told of")?;
    let begin = windows.len() / 4;
    let (mut before, mut hog) = (None, None);
    let Site { edge, cloud, quic, link, mqtt, folder } = &mut site;
    let took_us = publish(*mqtt, windows, args.rate, |at| {
        if at == begin {
            before = Some(edge.status()?);
            let cloud = cloud.as_mut().context("it was started")?;
            match trouble {
                Trouble::None => {}
                Trouble::Killed => cloud.kill()?,
                Trouble::Stalled => cloud.stall()?,
                Trouble::Refusing => hog = Some(Hog::start(folder.path(), *quic)?),
                Trouble::Far => {
                    let link = link.as_ref().context("there is a link")?.link();
                    link.control(|control| control.delay = Some(Duration::from_secs(1)));
                }
            }
        }
        Ok(())
    })?;
    let (before, after) = (before.context("there is a first quarter")?, edge.status()?);
    drop(hog);
    let of_stream = |word: &str| {
        let count = |status: &serde_json::Value| status["streams"][1]["offload"][word].as_u64().unwrap_or(0);
        count(&after) - count(&before)
    };
    let opened = |status: &serde_json::Value| status["offload"]["pools"][0]["breaker_opened"].as_u64().unwrap_or(0);
    Ok(Run {
        trouble,
        mode,
        windows: windows.len() - begin,
        answer_ms: times(took_us[begin..].iter().copied())?,
        sent: of_stream("sent"),
        answered: of_stream("answered"),
        overdue: of_stream("overdue"),
        refused: of_stream("refused_busy") + of_stream("refused"),
        lost: of_stream("lost"),
        breaker_opened: opened(&after) - opened(&before),
    })
}

fn start(args: &Args, trouble: Trouble, mode: &str) -> anyhow::Result<Site> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let (models, deadline) = (models.display(), args.deadline_ms);
    let extra = format!(
        "[infer]\nbackend = \"rten\"\n[offload]\nrequests_per_hour = 1000000\n\
         [[model]]\nname = \"watch-small\"\nmanifest = \"{models}/watch-small.toml\"\n\
         [[stream]]\nname = \"wrist\"\ntopics = [\"wrist/+\"]\nfidelity = \"verdict\"\nack = \"record\"\nmodel = \"watch-small\"\n\
         payload = {{ format = \"packed\", element = \"i16\", channels = {CHANNELS}, rate_hz = 50.0 }}\n\
         offload = {{ task = \"activity\", mode = \"{mode}\", deadline = \"{deadline}ms\" }}\n"
    );
    let room = if trouble == Trouble::Refusing { "queue_max = 1\nbatch_max = 1\n" } else { "" };
    let cloud = format!(
        "[[pool]]\nname = \"activity-large\"\ntask = \"activity\"\nmodel = \"{models}/watch-large.toml\"\nengine = \"rten\"\n\
         gateways = [\"bench\", \"hog\"]\n{room}"
    );
    let setup = Setup { mode: "memory".to_owned(), with_cloud: true, inflight: 1_024, extra, cloud };
    let link = LinkProfile::resolve("ethernet").map_err(|errors| anyhow::anyhow!("{errors}"))?;
    Site::start_over(&setup, Some(link))
}
