//! One link at one load: every policy on the same records, beside what nobody can exceed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use serde::Serialize;
use weir_logic::ids::Class;
use weir_logic::price::PriceLimits;

use super::arrivals::{Arrival, Arrivals};
use super::baseline::{self, Order, Served};
use super::bound::{Bound, Dual};
use super::gateway::{self, Delivery, Run, value};
use super::trace::Link;
use super::workload::Workload;

/// The name of the real gateway among the policies.
pub const WEIR: &str = "weir";
/// The name of what no policy can exceed.
pub const BOUND: &str = "bound";
/// Links that are faster on average, in bytes a second, are simulated at that rate: 20 Mbit/s.
///
/// At 100 Mbit/s, 30 GB come at four times the rate, which took eight minutes. Records, blocks and packets keep their sizes and the
/// delays theirs, so there are fewer of them: every part of the bound stays comparable, and no delay comes out shorter.
const RATE_BYTES_PER_S_MAX: f64 = 2.5e6;
/// What it is compared with.
pub const BASELINES: [&str; 2] = ["static-priority", "fifo"];

/// The largest piece that a lower class may be in the middle of.
const FRAME_BYTES: f64 = 16.0 * 1024.0;

/// One link at one load.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// The link.
    pub link: String,
    /// Offered bytes, as a multiple of what the link carries.
    pub load: f64,
    /// What everything was drawn from.
    pub seed: u64,
    /// Length of the run.
    pub run_s: u64,
    /// Mean rate of the link.
    pub mean_kbit_per_s: f64,
    /// Part of that rate, and of what arrives, that was simulated: below 1 for links of more than 20 Mbit/s.
    pub simulated_part: f64,
    /// `critical_p99_ms` of Weir with nothing to send but the critical records.
    pub critical_alone_p99_ms: f64,
    /// What contention may add to that: two round trips, and a frame of 16 KiB at the mean rate.
    pub critical_margin_ms: f64,
    /// What the policies came to, by name; `bound` among them.
    pub policies: BTreeMap<&'static str, Outcome>,
}

/// What a policy came to.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Outcome {
    /// Worth of what it delivered.
    pub value: f64,
    /// The same as a part of the bound.
    pub value_ratio: f64,
    /// 99th percentile of the time from arrival to delivery of critical records; one that did not come counts up to the end.
    pub critical_p99_ms: f64,
    /// Records delivered, at whatever level.
    pub delivered: u64,
    /// Records given up: evicted, or expired.
    pub lost: u64,
    /// Bytes that left on the link.
    pub bytes: u64,
}

/// All that a case was, for who wants to draw it.
#[derive(Debug)]
pub struct Details {
    /// What arrived.
    pub arrivals: Arrivals,
    /// The bound, with its prices.
    pub bound: Bound,
    /// The bound's value of each second.
    pub bound_values: Vec<f64>,
    /// The real gateway's run.
    pub weir: Run,
    /// The other policies, by name.
    pub others: Vec<(&'static str, Served)>,
}

impl Case {
    /// What a policy came to.
    ///
    /// # Panics
    /// If there is no policy of that name.
    pub fn of(&self, policy: &str) -> &Outcome {
        self.policies.get(policy).expect("every case has every policy")
    }
}

/// Every policy on each of these links and loads, on all cores.
///
/// `keep` makes of a case what is kept of it, and `tell` gets that in the order of the jobs.
pub fn run_all<T: Send>(
    jobs: &[(Link, f64)],
    workload: &Workload,
    seed: u64,
    keep: impl Fn(&Link, Case, Details) -> T + Sync,
    mut tell: impl FnMut(T),
) {
    let (next, cores) = (AtomicUsize::new(0), thread::available_parallelism().map_or(1, usize::from));
    // One for each job at most.
    let (done_tx, done_rx) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..cores.min(jobs.len()) {
            let (next, keep, done_tx) = (&next, &keep, done_tx.clone());
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((link, load)) = jobs.get(index) else { return };
                    let (case, details) = run(link, workload, *load, seed);
                    let kept = keep(&link.clone().times(case.simulated_part), case, details);
                    // Nobody waits for it any more if `tell` has panicked.
                    if done_tx.send((index, kept)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done_tx);
        let (mut told, mut early) = (0, BTreeMap::new());
        for (index, kept) in done_rx {
            early.insert(index, kept);
            while let Some(kept) = early.remove(&told) {
                tell(kept);
                told += 1;
            }
        }
    });
}

/// Every policy on one link at one load.
pub fn run(link: &Link, workload: &Workload, load: f64, seed: u64) -> (Case, Details) {
    let mean_kbit_per_s = link.mean_bytes_per_s() * 8e-3;
    let simulated_part = (RATE_BYTES_PER_S_MAX / link.mean_bytes_per_s()).min(1.0);
    let link = &link.clone().times(simulated_part);
    let bytes = load * link.mean_bytes_per_s() * link.run_s as f64;
    let arrivals = Arrivals::draw(workload, link.run_s, bytes, seed);
    let dual = Dual::new(workload, &arrivals.records, &link.service.slots());
    let bound = dual.minimise();
    let bound_values = dual.values(&bound.prices);
    let weir = gateway::run(link, workload, &arrivals, PriceLimits::default(), seed);
    let others = [Order::StaticPriority, Order::Fifo].map(|order| baseline::serve(order, link, workload, &arrivals));
    let others: Vec<(&'static str, Served)> = BASELINES.into_iter().zip(others).collect();
    let outcome = |deliveries: &[Delivery], lost, bytes| {
        let value = value(workload, &arrivals, deliveries);
        Outcome {
            value,
            value_ratio: value / bound.value,
            critical_p99_ms: critical_p99_ms(link, workload, &arrivals, deliveries),
            delivered: deliveries.len() as u64,
            lost,
            bytes,
        }
    };
    let mut policies = BTreeMap::new();
    policies.insert(WEIR, outcome(&weir.deliveries, weir.evicted.iter().sum(), weir.sent_bytes));
    for (name, served) in &others {
        policies.insert(*name, outcome(&served.deliveries, served.dropped, served.sent_bytes));
    }
    let alone = critical_of(workload, &arrivals);
    policies.insert(BOUND, bound_outcome(link, workload, &arrivals, &alone, &bound));
    let weir_alone = gateway::run(link, workload, &alone, PriceLimits::default(), seed);
    let case = Case {
        link: link.name.clone(),
        load,
        seed,
        run_s: link.run_s,
        mean_kbit_per_s,
        simulated_part,
        critical_alone_p99_ms: critical_p99_ms(link, workload, &alone, &weir_alone.deliveries),
        critical_margin_ms: 2.0 * link.rtt_us() as f64 / 1e3 + FRAME_BYTES / link.mean_bytes_per_s() * 1e3,
        policies,
    };
    (case, Details { arrivals, bound, bound_values, weir, others })
}

/// What nobody can exceed: the bound's value, and for each of the other figures the best that any policy could have.
fn bound_outcome(link: &Link, workload: &Workload, arrivals: &Arrivals, alone: &Arrivals, bound: &Bound) -> Outcome {
    // Critical records alone on the link, in order, without headers.
    let served = baseline::serve(Order::Fifo, link, workload, alone);
    Outcome {
        value: bound.value,
        value_ratio: 1.0,
        critical_p99_ms: critical_p99_ms(link, workload, alone, &served.deliveries),
        delivered: arrivals.records.len() as u64,
        lost: 0,
        bytes: link.service.bytes() as u64,
    }
}

/// The critical records of them.
fn critical_of(workload: &Workload, arrivals: &Arrivals) -> Arrivals {
    let is_critical = |record: &&Arrival| workload.stream[usize::from(record.stream)].class() == Class::Critical;
    let records = arrivals.records.iter().filter(is_critical).copied().collect();
    Arrivals { records, size_factor: arrivals.size_factor, anomalies: arrivals.anomalies.clone() }
}

/// The 99th percentile over all critical records; one that has not come by the end is late by what was left of the run.
pub(super) fn critical_p99_ms(link: &Link, workload: &Workload, arrivals: &Arrivals, deliveries: &[Delivery]) -> f64 {
    let mut at_us = vec![link.end_us(); arrivals.records.len()];
    for delivery in deliveries {
        at_us[delivery.record as usize] = delivery.at_us;
    }
    let named = arrivals.records.iter().zip(at_us);
    let critical = named.filter(|(record, _)| workload.stream[usize::from(record.stream)].class() == Class::Critical);
    let mut late: Vec<u64> = critical.map(|(record, at_us)| at_us.saturating_sub(record.at_us)).collect();
    percentile(&mut late, 0.99).map_or(0.0, |us| us as f64 / 1e3)
}

/// The value below which that part of all lie; sorts them.
pub(super) fn percentile(values: &mut [u64], part: f64) -> Option<u64> {
    values.sort_unstable();
    let index = (values.len() as f64 * part) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::profile::LinkProfile;

    fn short(rate: &str) -> Link {
        let text = format!("[up]\nrate = '{rate}'\ndelay = '20ms'\nqueue = '64KiB'\n");
        let profile = LinkProfile::from_toml("test", &text, std::path::Path::new(".")).expect("a profile");
        Link::of(profile, Some(weir_host::units::Duration::from_secs(120)), 1)
    }

    #[test]
    fn no_policy_is_worth_more_than_the_bound_and_the_price_beats_priorities_under_overload() {
        let (link, workload) = (short("400kbit/s"), Workload::default());
        for load in [0.5, 4.0] {
            let (case, _) = run(&link, &workload, load, 3);
            let ratio = |name: &str| case.of(name).value_ratio;
            assert!(case.policies.values().all(|policy| policy.value_ratio <= 1.001 && policy.value_ratio > 0.0), "{case:?}");
            if load > 1.0 {
                assert!(ratio(WEIR) > ratio("static-priority") + 0.05 && ratio("static-priority") > ratio("fifo"), "{case:?}");
            } else {
                assert!(ratio(WEIR) > 0.95, "{case:?}");
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_run_to_the_byte() {
        let (link, workload) = (short("200kbit/s"), Workload::default());
        let text = |seed| serde_json::to_string(&run(&link, &workload, 2.0, seed).0).expect("figures");
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn cases_come_in_order_and_are_what_each_is_alone() {
        let (link, workload) = (short("50kbit/s"), Workload::default());
        let jobs = [(link.clone(), 4.0), (link.clone(), 0.5), (link, 1.0)];
        let mut all = Vec::new();
        run_all(&jobs, &workload, 1, |_, case, _| serde_json::to_string(&case).expect("figures"), |text| all.push(text));
        let alone = |(link, load): &(Link, f64)| serde_json::to_string(&run(link, &workload, *load, 1).0).expect("figures");
        assert_eq!(all, jobs.iter().map(alone).collect::<Vec<_>>());
    }

    #[test]
    fn a_part_of_a_fast_link_is_simulated_and_is_worth_the_same_part_of_the_bound() {
        let text = "[up]\nrate = '25Mbit/s'\ndelay = '20ms'\nqueue = '1MiB'\n";
        let profile = LinkProfile::from_toml("test", text, std::path::Path::new(".")).expect("a profile");
        let link = Link::of(profile, Some(weir_host::units::Duration::from_secs(20)), 1);
        let part = link.clone().times(0.25);
        assert_eq!((part.profile.up.queue.get(), part.rtt_us()), (256 << 10, link.rtt_us()));
        assert!((part.service.bytes() / link.service.bytes() - 0.25).abs() < 1e-9);
        let (case, details) = run(&link, &Workload::default(), 1.0, 1);
        let offered: f64 = details.arrivals.records.iter().map(|record| f64::from(record.bytes)).sum();
        assert!((case.simulated_part - 0.8).abs() < 1e-9 && (case.mean_kbit_per_s - 25e3).abs() < 1.0, "{case:?}");
        assert!((offered / (0.8 * link.service.bytes()) - 1.0).abs() < 1e-3, "{offered}");
    }

    #[test]
    fn the_figures_of_a_policy_have_exactly_these_names() {
        let (case, details) = run(&short("100kbit/s"), &Workload::default(), 1.0, 1);
        let json = serde_json::to_value(&case).expect("figures");
        for policy in ["weir", "static-priority", "fifo", "bound"] {
            let names: Vec<&String> = json["policies"][policy].as_object().expect("a policy").keys().collect();
            assert_eq!(names, ["bytes", "critical_p99_ms", "delivered", "lost", "value", "value_ratio"], "{policy}");
        }
        let sum: f64 = details.bound_values.iter().sum();
        assert!((sum / case.of(BOUND).value - 1.0).abs() < 1e-9, "the bound by second adds up: {sum}");
    }
}
