//! What is a month's budget worth? A free uplink, a metered one beside it, and three ways to spend its bytes.
//!
//! The box is the real gateway each time, and so is its budget: a price that a paid byte must be worth, a pace, a reserve for
//! `critical`. What differs is what the budget is told:
//! - `free-only` has no second uplink;
//! - `greedy` spends on whatever waits until the bytes are gone: its paid bytes need to be worth nothing, and its calendar
//!   stands at the end of the month, where the pace lets all of it go. The reserve it has, too;
//! - `weir` starts into a month of which it knows nothing.
//!
//! A month of 2.6 million seconds is too long to be simulated, so the calendar goes faster: the run is the month. All that the
//! budget does goes by the calendar, so it is the same decisions, only that outages are as much longer beside the month as
//! the calendar is faster. That is hard on a pace: with an hour for a month, a minute without the free uplink is half a day.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;
use weir_host::units::Duration;
use weir_logic::budget::BudgetLevel;
use weir_logic::policy::{Meter, Policy, UplinkPolicy};
use weir_logic::price::PriceLimits;

use super::arrivals::Arrivals;
use super::bound::Dual;
use super::case::critical_p99_ms;
use super::gateway::{Score, message, value};
use super::machine::{self, Calendar, Fact, Site};
use super::site::policy;
use super::trace::{Link, RUN_S_MAX};
use super::workload::Workload;
use crate::link::profile::LinkProfile;

/// The ways to spend.
pub const POLICIES: [&str; 3] = ["free-only", "greedy", "weir"];
/// 2026-11-01 00:00 UTC, the first of a month of 30 days, and the length of that month.
const MONTH_UNIX_US: i64 = 1_793_491_200_000_000;
const MONTH_S: u64 = 30 * 86_400;
/// As little as a byte can be worth.
const PRICE_OF_NOTHING: f64 = 1e-12;

/// Two links, and what the second may carry.
#[derive(Debug, Clone)]
pub struct BudgetSpec {
    /// The free uplink.
    pub free: LinkProfile,
    /// The metered uplink.
    pub paid: LinkProfile,
    /// Bytes offered, as a multiple of what the free uplink carries.
    pub load: f64,
    /// The month's bytes, as a part of what the free uplink carries in it.
    pub budget: f64,
    /// Length of the run, which is a month by the box's calendar.
    pub run_s: u64,
    /// What everything is drawn from.
    pub seed: u64,
}

/// What the ways to spend came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BudgetCase {
    /// The free link.
    pub free: String,
    /// The metered link.
    pub paid: String,
    /// Bytes offered, as a multiple of what the free link carries.
    pub load: f64,
    /// What everything was drawn from.
    pub seed: u64,
    /// Length of the run.
    pub run_s: u64,
    /// How much faster the box's calendar went.
    pub calendar_speed: u64,
    /// Bytes of the month.
    pub month_bytes: u64,
    /// By policy.
    pub policies: BTreeMap<&'static str, BudgetOutcome>,
}

/// What one way to spend came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BudgetOutcome {
    /// Worth of what was delivered.
    pub value: f64,
    /// As a part of what nobody can exceed who has the free uplink and, at once, all of the month's bytes where they are worth most.
    pub value_ratio: f64,
    /// 99th percentile of the time from arrival to delivery of critical records; one that did not come counts up to the end.
    pub critical_p99_ms: f64,
    /// Records delivered, at whatever level.
    pub delivered: u64,
    /// Bytes that the budget counted.
    pub paid_bytes: u64,
    /// When nine tenths of the month's bytes were used, in seconds of the run.
    pub used_s: Option<u64>,
}

/// Runs all three on the same records.
pub fn run(spec: &BudgetSpec) -> BudgetCase {
    let workload = Workload::default();
    let of = |profile: &LinkProfile, seed| Link::of(profile.clone(), Some(Duration::from_secs(spec.run_s)), seed);
    let links = [of(&spec.free, spec.seed), of(&spec.paid, spec.seed.wrapping_add(1))];
    let carries = links[0].service.bytes();
    let month_bytes = (spec.budget * carries) as u64;
    let arrivals = Arrivals::draw(&workload, links[0].run_s, spec.load * carries, spec.seed);
    let bound = Dual::new(&workload, &arrivals.records, &links[0].service.slots())
        .with_paid(&links[1].service.slots(), month_bytes as f64)
        .minimise();
    let month = Month { links: &links, workload: &workload, arrivals: &arrivals, bytes: month_bytes, seed: spec.seed };
    let policies = POLICIES.into_iter().map(|name| (name, month.spend(name, bound.value))).collect();
    let [free, paid] = links;
    let (run_s, calendar_speed) = (free.run_s, MONTH_S / free.run_s);
    BudgetCase {
        free: free.name,
        paid: paid.name,
        load: spec.load,
        seed: spec.seed,
        run_s,
        calendar_speed,
        month_bytes,
        policies,
    }
}

/// What all three have in common.
struct Month<'a> {
    links: &'a [Link; 2],
    workload: &'a Workload,
    arrivals: &'a Arrivals,
    bytes: u64,
    seed: u64,
}

impl Month<'_> {
    fn spend(&self, name: &str, bound: f64) -> BudgetOutcome {
        let Month { workload, arrivals, .. } = *self;
        let is_greedy = name == "greedy";
        let links = if name == "free-only" { &self.links[..1] } else { &self.links[..] };
        let sensors = workload.clone().with_records(arrivals.size_factor);
        // Nine tenths of a day are left of the month of who is greedy: it ends after the run.
        let (from_us, speed) = if is_greedy { ((MONTH_S - 77_760) * 1_000_000, 1) } else { (0, MONTH_S / links[0].run_s) };
        let nothing = BudgetLevel { price: Some(PRICE_OF_NOTHING), ..BudgetLevel::default() };
        let budgets = if is_greedy { [BudgetLevel::default(), nothing] } else { [BudgetLevel::default(); 2] };
        let site = Site {
            budgets: &budgets,
            calendar: Calendar { from_unix_us: MONTH_UNIX_US.saturating_add_unsigned(from_us), speed },
            ..Site::new("sim", links, two_uplinks(links, &sensors, self.bytes), self.seed)
        };
        let mut score = Score::new(workload, &arrivals.records);
        let mut used_s = None;
        let mut watch = |now_us: u64, fact: Fact<'_>| {
            if let Fact::Second(gateway) = &fact
                && used_s.is_none()
                && gateway.budgets().flatten().any(|budget| budget.spent_of().0 * 10 >= self.bytes * 9)
            {
                used_s = Some(now_us / 1_000_000);
            }
            score.note(now_us, fact);
        };
        let mut messages = arrivals.records.iter().enumerate().map(|(index, arrival)| message(&sensors, index, arrival));
        let ended = machine::run(site, &mut messages, &mut watch).expect("its own filters are right");
        let deliveries = &score.run.deliveries;
        let value = value(workload, arrivals, deliveries);
        BudgetOutcome {
            value,
            value_ratio: value / bound,
            critical_p99_ms: critical_p99_ms(&links[0], workload, arrivals, deliveries),
            delivered: deliveries.len() as u64,
            paid_bytes: ended.gateway.budgets().flatten().map(|budget| budget.counters().used_bytes).sum(),
            used_s,
        }
    }
}

/// The usual box with a metered uplink as its second, if there is one.
fn two_uplinks(links: &[Link], workload: &Workload, month_bytes: u64) -> Policy {
    let nominal_bps = |link: &Link| (8.0 * link.mean_bytes_per_s()) as u64;
    let mut policy = policy(&links[0], workload, PriceLimits::default());
    policy.uplinks.extend(links.get(1).map(|link| UplinkPolicy {
        meter: Some(Meter { money_per_mb: 1.0, month_bytes: Some(month_bytes) }),
        ..UplinkPolicy::free("metered", nominal_bps(link))
    }));
    policy
}

impl BudgetCase {
    /// What a way to spend came to.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn of(&self, policy: &str) -> &BudgetOutcome {
        self.policies.get(policy).expect("every case has every policy")
    }
}

/// Prints a case as a table and writes its figures; what was required and is not so, a line each.
///
/// # Errors
/// If the load or the budget is out of its range, or the figures cannot be written.
pub fn command(
    spec: &BudgetSpec,
    json: Option<&Path>,
    required: Option<f64>,
    out: &mut dyn Write,
) -> anyhow::Result<Vec<String>> {
    anyhow::ensure!(spec.budget > 0.0 && spec.budget <= 10.0, "--budget is above 0, at most 10");
    anyhow::ensure!(spec.load > 0.0 && spec.load <= 100.0, "--load is above 0, at most 100");
    anyhow::ensure!((60..=RUN_S_MAX).contains(&spec.run_s), "the month is simulated in 60 to {RUN_S_MAX} s");
    let case = run(spec);
    print(&case, out)?;
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&case)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    let gain = case.of("weir").value / case.of("greedy").value - 1.0;
    Ok(required
        .filter(|required| gain < *required)
        .map_or_else(Vec::new, |required| vec![format!("gain of {gain:.4} over greedy spending, required {required}")]))
}

fn print(case: &BudgetCase, out: &mut dyn Write) -> io::Result<()> {
    let BudgetCase { free, paid, run_s, calendar_speed, .. } = case;
    writeln!(
        out,
        "{free}, and {paid} with {:.1} MB a month; a month in {run_s} s, by a calendar {calendar_speed} times as fast; load {}",
        case.month_bytes as f64 / 1e6,
        case.load
    )?;
    writeln!(
        out,
        "{:<10} {:>7} {:>14} {:>10} {:>9} {:>12}",
        "policy", "ratio", "critical p99", "delivered", "paid MB", "9/10 used"
    )?;
    for name in POLICIES {
        let outcome = case.of(name);
        let used =
            outcome.used_s.map_or_else(|| "never".to_owned(), |s| format!("{:.0} % in", s as f64 / *run_s as f64 * 100.0));
        writeln!(
            out,
            "{name:<10} {:>7.3} {:>11.0} ms {:>10} {:>9.1} {used:>12}",
            outcome.value_ratio,
            outcome.critical_p99_ms,
            outcome.delivered,
            outcome.paid_bytes as f64 / 1e6
        )?;
    }
    let of = |name: &str| case.of("weir").value / case.of(name).value - 1.0;
    writeln!(
        out,
        "weir: {:+.1} % against greedy, {:+.1} % against no second uplink",
        of("greedy") * 100.0,
        of("free-only") * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(run_s: u64) -> BudgetSpec {
        let profile = |name: &str, text: &str| LinkProfile::from_toml(name, text, Path::new(".")).expect("a profile");
        let free = "[up]\nrate = '300kbit/s'\nqueue = '64KiB'\n[[outage]]\nstart = '60s'\nlength = '60s'\nevery = '200s'\n";
        let paid = "[up]\nrate = '2Mbit/s'\nqueue = '64KiB'\n";
        BudgetSpec { free: profile("weak", free), paid: profile("good", paid), load: 2.0, budget: 0.1, run_s, seed: 1 }
    }

    #[test]
    fn a_paced_budget_is_worth_more_than_a_greedy_one_and_neither_more_than_the_bound() {
        let case = run(&spec(400));
        let (alone, greedy, weir) = (case.of("free-only"), case.of("greedy"), case.of("weir"));
        assert!(case.policies.values().all(|outcome| outcome.value_ratio < 1.0), "{case:?}");
        assert!(greedy.used_s.is_some_and(|s| s < 200), "greed ends early: {case:?}");
        assert!(weir.value > 1.01 * greedy.value && weir.value > 1.01 * alone.value, "{case:?}");
        let most = case.month_bytes + case.month_bytes / 20;
        assert!(alone.paid_bytes == 0 && greedy.paid_bytes <= most && weir.paid_bytes <= most, "{case:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_case_to_the_byte() {
        let text = |seed| serde_json::to_string(&run(&BudgetSpec { seed, ..spec(120) })).expect("figures");
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
