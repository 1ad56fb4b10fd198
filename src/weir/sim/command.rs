//! `weir sim`: policies compared on recorded links or profiles, as a table and as JSON.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::budget::{self, BudgetSpec};
use super::case::{self, BASELINES, BOUND, Case, Details, WEIR};
use super::federation::command::{self as federation, FederationArgs};
use super::fleet::{self, FleetSpec};
use super::own;
use super::report::Report;
use super::trace::{self, Link};
use super::workload::Workload;
use crate::link::profile::LinkProfile;

/// Arguments of `weir sim`.
#[derive(Debug, Clone, clap::Args)]
pub struct SimArgs {
    /// A link: the name of a profile, or a file (a profile, a Mahimahi recording, or CSV with `t_s,mbps`); may be repeated
    #[arg(long, alias = "trace", default_value = "lte-driving")]
    pub link: Vec<String>,
    /// Every recording in this folder and the folders in it, in place of --link; may be repeated
    #[arg(long, conflicts_with = "link")]
    pub all: Vec<PathBuf>,
    /// Bytes offered, as a multiple of what the link carries; may be repeated
    #[arg(long, default_value = "2", num_args = 1..)]
    pub load: Vec<f64>,
    /// What everything that is drawn is drawn from: the same seed gives the same run
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// What sensors send and what it is worth; see config/sim/workload.toml
    #[arg(long)]
    pub workload: Option<PathBuf>,
    /// Multiplies every deadline
    #[arg(long, default_value_t = 1.0)]
    pub deadlines: f64,
    /// Write the figures to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write a report with charts to this HTML file
    #[arg(long)]
    pub html: Option<PathBuf>,
    /// Fail if Weir's mean part of the bound is below this
    #[arg(long)]
    pub require_mean: Option<f64>,
    /// Fail if Weir's part of the bound is below this in any case
    #[arg(long)]
    pub require_worst: Option<f64>,
    /// Fail if Weir is in any case further than this below static-priority or fifo, as a part of the bound
    #[arg(long)]
    pub require_margin: Option<f64>,
    /// Fail if critical records are in any case later, at the 99th percentile, than this many times the bound, and also later than two
    /// round trips and a frame of 16 KiB after what they are with the link to themselves
    #[arg(long)]
    pub require_critical: Option<f64>,
    /// A box's configuration, to be run over the link with the messages of --data: what would it have done?
    #[arg(long, value_name = "EDGE.TOML", requires = "data", conflicts_with_all = ["load", "workload", "deadlines", "html", "require_mean", "require_worst", "require_margin", "require_critical"])]
    pub config: Option<PathBuf>,
    /// Recorded messages, as `mosquitto_sub -t '#' -F '%U %t %x'` writes them
    #[arg(long, value_name = "FILE", requires = "config")]
    pub data: Option<PathBuf>,
    /// In place of a link: so many boxes lose their cloud for five minutes, and another time it is overloaded for a minute
    #[arg(long, value_name = "BOXES", conflicts_with_all = ["link", "all", "load", "workload", "deadlines", "config"])]
    pub fleet: Option<usize>,
    /// In place of a link: so many whole boxes on two carriers, one of which fails from site to site; once they are told nothing by
    /// the cloud, once what it finds, and once that while one in ten lies
    #[arg(long, value_name = "BOXES", conflicts_with_all = ["link", "all", "load", "workload", "deadlines", "config", "fleet", "html"])]
    pub federation: Option<usize>,
    /// Seeds that --federation plays, from --seed on
    #[arg(long, value_name = "COUNT", default_value_t = 1, requires = "federation")]
    pub seeds: u64,
    /// Fail if the cloud's advice saves less than this part of the deadlines that are lost without it
    #[arg(long, value_name = "PART", requires = "federation")]
    pub require_saved: Option<f64>,
    /// Fail if, for any seed, the value where one in ten lies is less than this part of the value without advice
    #[arg(long, value_name = "PART", requires = "federation")]
    pub require_lied: Option<f64>,
    /// A second uplink beside --link, whose bytes are metered: what the month's budget is worth, spent greedily and by Weir
    #[arg(long, value_name = "LINK", conflicts_with_all = ["all", "workload", "deadlines", "config", "fleet", "federation", "html"])]
    pub paid_link: Option<String>,
    /// Bytes of the month, as a part of what --link carries in it
    #[arg(long, value_name = "PART", default_value_t = 0.05, requires = "paid_link")]
    pub budget: f64,
    /// Seconds in which the month is simulated: the box's calendar goes as much faster
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600, requires = "paid_link")]
    pub month: u64,
    /// Fail if Weir's gain over greedy spending, as a part of that, is below this
    #[arg(long, value_name = "PART", requires = "paid_link")]
    pub require_gain: Option<f64>,
}

/// Runs and prints; a failure if something that was required is not so.
///
/// # Errors
/// If a link or the workload cannot be read, a load is not a positive number, or a file cannot be written.
pub fn run(args: &SimArgs) -> anyhow::Result<ExitCode> {
    if let Some(boxes) = args.fleet {
        run_fleet(boxes, args.seed, args.json.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(sites) = args.federation {
        let args = FederationArgs {
            sites,
            seeds: (args.seed, args.seeds),
            json: args.json.as_deref(),
            require_saved: args.require_saved,
            require_lied: args.require_lied,
        };
        let mut out = io::stdout().lock();
        let unmet = federation::run(&args, &mut out)?;
        return conclude(&unmet, &mut out);
    }
    if let Some(paid) = &args.paid_link {
        let mut out = io::stdout().lock();
        let unmet = budget::command(&budget_spec(args, paid)?, args.json.as_deref(), args.require_gain, &mut out)?;
        return conclude(&unmet, &mut out);
    }
    if let (Some(config), Some(data)) = (&args.config, &args.data) {
        run_own(args, config, data)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = io::stdout().lock();
    let mut report = args.html.as_ref().map(|_| Report::default());
    let cases = compare(args, report.as_mut(), &mut out)?;
    if let Some((path, report)) = args.html.as_ref().zip(report) {
        std::fs::write(path, report.page(&how(args))).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&cases)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    let unmet = Required::of(args).unmet(&cases);
    conclude(&unmet, &mut out)
}

fn budget_spec(args: &SimArgs, paid: &str) -> anyhow::Result<BudgetSpec> {
    let ([free], [load]) = (&args.link[..], &args.load[..]) else {
        anyhow::bail!("--paid-link goes with one --link and one --load");
    };
    let (free, paid) = (LinkProfile::resolve(free)?, LinkProfile::resolve(paid)?);
    Ok(BudgetSpec { free, paid, load: *load, budget: args.budget, run_s: args.month, seed: args.seed })
}

/// Says what was required and is not so.
fn conclude(unmet: &[String], out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    for line in unmet {
        writeln!(out, "NOT MET: {line}")?;
    }
    Ok(if unmet.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A configuration and messages of one's own over each link.
fn run_own(args: &SimArgs, config: &Path, data: &Path) -> anyhow::Result<()> {
    let messages = own::messages(data)?;
    let mut outcomes = Vec::new();
    for profile in links(args)? {
        let (policy, models) = own::configuration(config)?;
        let outcome = own::run(profile, &policy, models, &messages, args.seed)?;
        own::print(&outcome, &mut io::stdout().lock())?;
        outcomes.push(outcome);
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&outcomes)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn run_fleet(boxes: usize, seed: u64, json: Option<&Path>) -> anyhow::Result<()> {
    anyhow::ensure!((1..=fleet::SITES_MAX).contains(&boxes), "--fleet is 1 to {} boxes", fleet::SITES_MAX);
    let outage = fleet::run(&FleetSpec::outage(boxes, seed));
    let overload = fleet::run(&FleetSpec::overload(boxes, seed));
    let (outcome, flow) = (&outage, overload.flow.clone().unwrap_or_default());
    let seconds = |value: Option<f64>| value.map_or_else(|| "not before the end".to_owned(), |s| format!("{s:.1} s"));
    writeln!(
        io::stdout(),
        "{boxes} boxes, cloud away for 300 s: {} attempts in all, at most {} a second while it was away and {} after; {} \
         handshakes dropped; half were back after {}, all after {}",
        outcome.attempts,
        outcome.attempts_peak_per_s,
        outcome.attempts_after_peak_per_s,
        outcome.handshakes_dropped,
        seconds(outcome.half_back_s),
        seconds(outcome.all_back_s)
    )?;
    writeln!(
        io::stdout(),
        "{boxes} boxes, cloud overloaded for {:.0} s: at most {} attempts a second meanwhile and {} after; at most {:.0} kB/s after, \
         {:.1} times the usual {:.0}; queue at most {} % full; critical data waited {:.1} s at most; all were back to normal \
         after {}, with {:.0} % of the bytes folded and none lost",
        flow.overloaded_s,
        overload.attempts_peak_per_s,
        overload.attempts_after_peak_per_s,
        flow.after_peak_bytes_per_s / 1e3,
        flow.after_peak_ratio,
        flow.steady_bytes_per_s / 1e3,
        flow.queue_peak_percent,
        flow.critical_wait_s,
        seconds(flow.drained_s),
        flow.folded_bytes / flow.raw_bytes * 100.0
    )?;
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "outage": outage, "overload": overload }))?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What was run, in words.
fn how(args: &SimArgs) -> String {
    let workload = args.workload.as_ref().map_or_else(|| "the usual workload".to_owned(), |path| path.display().to_string());
    let deadlines = if args.deadlines == 1.0 { String::new() } else { format!(", deadlines times {}", args.deadlines) };
    format!("weir {}: {workload}{deadlines}, seed {}", env!("CARGO_PKG_VERSION"), args.seed)
}

fn compare(args: &SimArgs, mut report: Option<&mut Report>, out: &mut dyn Write) -> anyhow::Result<Vec<Case>> {
    let workload = match &args.workload {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Workload::from_toml(&path.display().to_string(), &text)?
        }
        None => Workload::default(),
    };
    anyhow::ensure!(args.deadlines > 0.0 && args.deadlines <= 1e3, "--deadlines is a factor above 0, at most 1000");
    anyhow::ensure!(args.load.iter().all(|load| *load > 0.0 && *load <= 100.0), "--load is above 0, at most 100");
    let workload = workload.with_deadlines(args.deadlines);
    writeln!(
        out,
        "{:<24} {:>5} {:>10}  {:<16} {:>7} {:>14} {:>10} {:>8}",
        "link", "load", "kbit/s", "policy", "ratio", "critical p99", "delivered", "lost"
    )?;
    let mut cases = Vec::new();
    let links = links(args)?.into_iter().map(|profile| Link::of(profile, None, args.seed));
    let jobs: Vec<(Link, f64)> = links.flat_map(|link| args.load.iter().map(move |&load| (link.clone(), load))).collect();
    let mut printed = Ok(());
    let is_wanted = report.is_some();
    let keep = |link: &Link, case: Case, details: Details| {
        (is_wanted.then(|| Report::section(link, &workload, &case, &details)), case)
    };
    case::run_all(&jobs, &workload, args.seed, keep, |(section, case)| {
        if printed.is_ok() {
            printed = print(&case, out);
        }
        if let Some((report, section)) = report.as_deref_mut().zip(section) {
            report.add(case.clone(), section);
        }
        cases.push(case);
    });
    printed?;
    for policy in [WEIR].into_iter().chain(BASELINES) {
        let (mean, worst) = mean_and_worst(&cases, policy);
        writeln!(out, "{policy}: {mean:.3} of the bound on average, {worst:.3} at worst")?;
    }
    Ok(cases)
}

fn links(args: &SimArgs) -> anyhow::Result<Vec<LinkProfile>> {
    let mut profiles = Vec::new();
    for dir in &args.all {
        profiles.extend(trace::find(dir)?.0);
    }
    if args.all.is_empty() {
        profiles = args.link.iter().map(|name| LinkProfile::resolve(name)).collect::<Result<_, _>>()?;
    }
    Ok(profiles)
}

fn print(case: &Case, out: &mut dyn Write) -> io::Result<()> {
    for name in [WEIR].into_iter().chain(BASELINES).chain([BOUND]) {
        let policy = case.of(name);
        writeln!(
            out,
            "{:<24} {:>5} {:>10.0}  {name:<16} {:>7.3} {:>11.0} ms {:>10} {:>8}",
            case.link,
            case.load,
            case.mean_kbit_per_s,
            policy.value_ratio,
            policy.critical_p99_ms,
            policy.delivered,
            policy.lost
        )?;
    }
    out.flush()
}

fn mean_and_worst(cases: &[Case], policy: &str) -> (f64, f64) {
    let ratios = cases.iter().map(|case| case.of(policy).value_ratio);
    (ratios.clone().sum::<f64>() / cases.len().max(1) as f64, ratios.fold(f64::INFINITY, f64::min))
}

/// What a run must show.
#[derive(Debug, Clone, Copy, Default)]
struct Required {
    mean: Option<f64>,
    worst: Option<f64>,
    margin: Option<f64>,
    critical: Option<f64>,
}

impl Required {
    fn of(args: &SimArgs) -> Required {
        Required {
            mean: args.require_mean,
            worst: args.require_worst,
            margin: args.require_margin,
            critical: args.require_critical,
        }
    }

    /// What of it is not so, a line each.
    fn unmet(&self, cases: &[Case]) -> Vec<String> {
        let (mean, worst) = mean_and_worst(cases, WEIR);
        let mut unmet = Vec::new();
        if let Some(required) = self.mean.filter(|required| mean < *required) {
            unmet.push(format!("mean of {mean:.4}, required {required}"));
        }
        if let Some(required) = self.worst.filter(|required| worst < *required) {
            unmet.push(format!("worst of {worst:.4}, required {required}"));
        }
        for case in cases {
            if let Some(line) = self.critical.and_then(|times| late_critical(case, times)) {
                unmet.push(line);
            }
            let weir = case.of(WEIR).value_ratio;
            for other in BASELINES {
                let ratio = case.of(other).value_ratio;
                if self.margin.is_some_and(|margin| weir < ratio - margin) {
                    unmet.push(format!("{} at load {}: {weir:.4}, {other} has {ratio:.4}", case.link, case.load));
                }
            }
        }
        unmet
    }
}

/// What is wrong if critical records are later than they may be.
fn late_critical(case: &Case, times: f64) -> Option<String> {
    let (weir, bound) = (case.of(WEIR).critical_p99_ms, case.of(BOUND).critical_p99_ms);
    let limit = (times * bound).max(case.critical_alone_p99_ms + case.critical_margin_ms);
    (weir > limit).then(|| format!("{} at load {}: critical p99 of {weir:.0} ms, at most {limit:.0} ms", case.link, case.load))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::sim::case::Outcome;

    #[test]
    fn critical_records_may_be_as_late_as_the_bound_allows_or_as_idle_and_contention_explain() {
        let case = |weir_ms: f64, bound_ms: f64| {
            let outcome =
                |critical_p99_ms| Outcome { value: 1.0, value_ratio: 1.0, critical_p99_ms, delivered: 1, lost: 0, bytes: 1 };
            Case {
                link: "lte".into(),
                load: 4.0,
                seed: 1,
                run_s: 600,
                mean_kbit_per_s: 1e3,
                simulated_part: 1.0,
                critical_alone_p99_ms: 100.0,
                critical_margin_ms: 200.0,
                policies: BTreeMap::from([(WEIR, outcome(weir_ms)), (BOUND, outcome(bound_ms))]),
            }
        };
        assert_eq!(late_critical(&case(299.0, 50.0), 1.2), None, "the link explains it");
        assert_eq!(late_critical(&case(1_190.0, 1_000.0), 1.2), None, "outages explain it");
        let unmet = late_critical(&case(301.0, 50.0), 1.2);
        assert_eq!(unmet.as_deref(), Some("lte at load 4: critical p99 of 301 ms, at most 300 ms"));
    }
}
