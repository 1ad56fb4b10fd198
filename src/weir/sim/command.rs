//! `weir sim`: policies compared on recorded links or profiles, as a table and as JSON.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;
use weir_logic::ids::Class;
use weir_logic::price::PriceLimits;

use super::arrivals::Arrivals;
use super::baseline::{self, Order};
use super::bound::Dual;
use super::fleet::{self, FleetSpec};
use super::gateway::{self, Delivery, value};
use super::trace::{self, Link};
use super::workload::Workload;
use crate::link::profile::LinkProfile;

/// Arguments of `weir sim`.
#[derive(Debug, Clone, clap::Args)]
pub struct SimArgs {
    /// A link: the name of a profile, or a file (a profile, a Mahimahi recording, or CSV with `t_s,mbps`); may be repeated
    #[arg(long, alias = "trace", default_value = "lte-driving")]
    pub link: Vec<String>,
    /// Every recording in this folder and the folders in it, in place of --link
    #[arg(long, conflicts_with = "link")]
    pub all: Option<PathBuf>,
    /// Bytes offered, as a multiple of what the link carries; may be repeated
    #[arg(long, default_value = "2")]
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
    /// In place of a link: so many boxes lose their cloud for five minutes, and another time it is overloaded for a minute
    #[arg(long, value_name = "BOXES", conflicts_with_all = ["link", "all", "load", "workload", "deadlines"])]
    pub fleet: Option<usize>,
}

/// One link at one load.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// The link.
    pub link: String,
    /// Offered bytes, as a multiple of what the link carries.
    pub load: f64,
    /// Its mean rate.
    pub mean_kbit_per_s: f64,
    /// No policy can be worth more than this.
    pub bound: f64,
    /// What the policies came to.
    pub policies: Vec<Outcome>,
}

/// What a policy came to.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Its name.
    pub policy: &'static str,
    /// Worth of what it delivered.
    pub value: f64,
    /// The same as a part of the bound.
    pub value_ratio: f64,
    /// 99th percentile of the time from arrival to delivery of critical records.
    pub critical_p99_ms: f64,
    /// Records delivered, at whatever level.
    pub delivered: u64,
    /// Records given up: evicted, or expired.
    pub lost: u64,
    /// Bytes that left on the link.
    pub bytes: u64,
}

/// Runs and prints.
///
/// # Errors
/// If a link or the workload cannot be read, a load is not a positive number, or a file cannot be written.
pub fn run(args: &SimArgs) -> anyhow::Result<()> {
    if let Some(boxes) = args.fleet {
        return run_fleet(boxes, args.seed, args.json.as_deref());
    }
    let workload = match &args.workload {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Workload::from_toml(&path.display().to_string(), &text)?
        }
        None => Workload::default(),
    };
    anyhow::ensure!(args.deadlines > 0.0 && args.deadlines <= 1e3, "--deadlines is a factor above 0, at most 1000");
    let workload = workload.with_deadlines(args.deadlines);
    let profiles = match &args.all {
        Some(dir) => trace::find(dir)?.0,
        None => args.link.iter().map(|name| LinkProfile::resolve(name)).collect::<Result<_, _>>()?,
    };
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{:<24} {:>5} {:>10}  {:<16} {:>7} {:>14} {:>10} {:>8}",
        "link", "load", "kbit/s", "policy", "ratio", "critical p99", "delivered", "lost"
    )?;
    let mut cases = Vec::new();
    for profile in profiles {
        let link = Link::of(profile, None, args.seed);
        for &load in &args.load {
            anyhow::ensure!(load > 0.0 && load <= 100.0, "--load is above 0, at most 100");
            let case = case(&link, &workload, load, args.seed);
            for policy in &case.policies {
                let Outcome { policy, value_ratio, critical_p99_ms, delivered, lost, .. } = policy;
                writeln!(
                    out,
                    "{:<24} {load:>5} {:>10.0}  {policy:<16} {value_ratio:>7.3} {critical_p99_ms:>11.0} ms {delivered:>10} {lost:>8}",
                    link.name, case.mean_kbit_per_s
                )?;
            }
            out.flush()?;
            cases.push(case);
        }
    }
    for policy in ["weir", "static-priority", "fifo"] {
        let ratios: Vec<f64> =
            cases.iter().flat_map(|case| &case.policies).filter(|p| p.policy == policy).map(|p| p.value_ratio).collect();
        let worst = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        writeln!(
            out,
            "{policy}: {:.3} of the bound on average, {worst:.3} at worst",
            ratios.iter().sum::<f64>() / ratios.len() as f64
        )?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&cases)?;
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

/// Every policy on one link at one load.
pub fn case(link: &Link, workload: &Workload, load: f64, seed: u64) -> Case {
    let bytes = load * link.mean_bytes_per_s() * link.run_s as f64;
    let arrivals = Arrivals::draw(workload, link.run_s, bytes, seed);
    let bound = Dual::new(workload, &arrivals.records, &link.service.slots()).minimise().value;
    let outcome = |policy, deliveries: &[Delivery], lost, bytes| {
        let value = value(workload, &arrivals, deliveries);
        let critical_p99_ms = critical_p99_ms(workload, &arrivals, deliveries);
        let delivered = deliveries.len() as u64;
        Outcome { policy, value, value_ratio: value / bound, critical_p99_ms, delivered, lost, bytes }
    };
    let weir = gateway::run(link, workload, &arrivals, PriceLimits::default(), seed);
    let mut policies = vec![outcome("weir", &weir.deliveries, weir.evicted.iter().sum(), weir.sent_bytes)];
    for (name, order) in [("static-priority", Order::StaticPriority), ("fifo", Order::Fifo)] {
        let served = baseline::serve(order, link, workload, &arrivals);
        policies.push(outcome(name, &served.deliveries, served.dropped, served.sent_bytes));
    }
    Case { link: link.name.clone(), load, mean_kbit_per_s: link.mean_bytes_per_s() * 8e-3, bound, policies }
}

fn critical_p99_ms(workload: &Workload, arrivals: &Arrivals, deliveries: &[Delivery]) -> f64 {
    let is_critical = |d: &&Delivery| {
        let stream = arrivals.records[d.record as usize].stream;
        workload.stream[usize::from(stream)].class() == Class::Critical
    };
    let late = |d: &Delivery| d.at_us.saturating_sub(arrivals.records[d.record as usize].at_us);
    let mut late: Vec<u64> = deliveries.iter().filter(is_critical).map(late).collect();
    late.sort_unstable();
    late.get(late.len() * 99 / 100).map_or(0.0, |&us| us as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(rate: &str) -> Link {
        let text = format!("[up]\nrate = '{rate}'\ndelay = '20ms'\nqueue = '64KiB'\n");
        let profile = LinkProfile::from_toml("test", &text, Path::new(".")).expect("a profile");
        Link::of(profile, Some(weir_host::units::Duration::from_secs(120)), 1)
    }

    #[test]
    fn no_policy_is_worth_more_than_the_bound_and_the_price_beats_priorities_under_overload() {
        let (link, workload) = (short("400kbit/s"), Workload::default());
        for load in [0.5, 4.0] {
            let case = case(&link, &workload, load, 3);
            let ratio = |name: &str| case.policies.iter().find(|p| p.policy == name).expect("a policy").value_ratio;
            assert!(case.policies.iter().all(|policy| policy.value_ratio <= 1.001 && policy.value_ratio > 0.0), "{case:?}");
            if load > 1.0 {
                assert!(
                    ratio("weir") > ratio("static-priority") + 0.05 && ratio("static-priority") > ratio("fifo"),
                    "{case:?}"
                );
            } else {
                assert!(ratio("weir") > 0.95, "{case:?}");
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_run_to_the_byte() {
        let (link, workload) = (short("200kbit/s"), Workload::default());
        let text = |seed| serde_json::to_string(&case(&link, &workload, 2.0, seed)).expect("figures");
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
