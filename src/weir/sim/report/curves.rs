//! What happened in a case over time, in steps that a chart can show.

use weir_logic::ids::Class;

use super::super::arrivals::Arrivals;
use super::super::case::{BOUND, Details, WEIR, percentile};
use super::super::gateway::{Delivery, value_of};
use super::super::trace::Link;
use super::super::workload::{LEVEL_NAMES, Workload};
use super::plot::{Chart, REFERENCE, Scale, Series};

/// Steps of a chart: more than it has room for nobody can see.
const STEPS_MAX: u64 = 200;
const TIME: &str = "time, s";
/// Weights are written for a megabit.
const BYTES_PER_MBIT: f64 = 125_000.0;

/// The charts of one case.
pub(super) fn charts(link: &Link, workload: &Workload, details: &Details) -> Vec<Chart> {
    let steps = Steps { step_s: link.run_s.div_ceil(STEPS_MAX).max(1), run_s: link.run_s };
    vec![
        steps.rate(link),
        steps.backlog(&details.weir.held),
        steps.fidelity(details),
        steps.latency(workload, details),
        steps.value(workload, details),
        steps.price(details),
    ]
}

#[derive(Debug, Clone, Copy)]
struct Steps {
    step_s: u64,
    run_s: u64,
}

impl Steps {
    fn count(self) -> usize {
        self.run_s.div_ceil(self.step_s) as usize
    }

    fn of(self, at_us: u64) -> usize {
        ((at_us / 1_000_000 / self.step_s) as usize).min(self.count() - 1)
    }

    /// Values by step, in the middle of each.
    fn points(self, values: impl IntoIterator<Item = f64>) -> Vec<(f64, f64)> {
        let middle = |index: usize| (index as f64 + 0.5) * self.step_s as f64;
        values.into_iter().enumerate().map(|(index, value)| (middle(index), value)).collect()
    }

    /// Means of values by second.
    fn means(self, by_second: &[f64]) -> Vec<(f64, f64)> {
        self.points(by_second.chunks(self.step_s as usize).map(|chunk| chunk.iter().sum::<f64>() / chunk.len() as f64))
    }

    fn chart(self, title: &str, y_label: &'static str, scale: Scale, stacked: bool, series: Vec<Series>) -> Chart {
        Chart { title: title.to_owned(), x_label: TIME, y_label, scale, x_max: self.run_s as f64, series, stacked }
    }

    fn rate(self, link: &Link) -> Chart {
        let kbit: Vec<f64> = link.service.slots().iter().map(|bytes| bytes * 8e-3).collect();
        let series = vec![Series { name: "link".into(), colour: 0, points: self.means(&kbit) }];
        self.chart("Rate of the link", "rate, kbit/s", Scale::Linear, false, series)
    }

    fn backlog(self, held: &[[u64; 4]]) -> Chart {
        let of = |class: Class| {
            let megabytes: Vec<f64> = held.iter().map(|bytes| bytes[class.index()] as f64 / 1e6).collect();
            Series { name: class.name().to_owned(), colour: class.index(), points: self.means(&megabytes) }
        };
        self.chart("Held by weir, by lane", "held, MB", Scale::Linear, true, Class::ALL.map(of).into())
    }

    /// Of the bytes that arrived in a step, how many came at which level by the end.
    fn fidelity(self, details: &Details) -> Chart {
        let records = &details.arrivals.records;
        let mut arrived = vec![0.0; self.count()];
        for record in records {
            arrived[self.of(record.at_us)] += f64::from(record.bytes);
        }
        let mut came = vec![[0.0; LEVEL_NAMES.len()]; self.count()];
        for delivery in &details.weir.deliveries {
            let record = &records[delivery.record as usize];
            came[self.of(record.at_us)][usize::from(delivery.level)] += f64::from(record.bytes);
        }
        let level = |level: usize| {
            let part = |(came, all): (&[f64; 5], &f64)| if *all > 0.0 { 100.0 * came[level] / all } else { 0.0 };
            let points = self.points(came.iter().zip(&arrived).map(part));
            Series { name: LEVEL_NAMES[level].to_owned(), colour: level, points }
        };
        let sent: Vec<usize> = (0..LEVEL_NAMES.len()).filter(|at| came.iter().any(|came| came[*at] > 0.0)).collect();
        let series = sent.into_iter().map(level).collect();
        self.chart(
            "How finely weir's records came (by arrival; white: held, or given up)",
            "bytes, %",
            Scale::UpTo(100.0),
            true,
            series,
        )
    }

    fn latency(self, workload: &Workload, details: &Details) -> Chart {
        let of = |deliveries: &[Delivery], part: f64| {
            let mut late: Vec<Vec<u64>> = vec![Vec::new(); self.count()];
            for delivery in deliveries {
                let record = &details.arrivals.records[delivery.record as usize];
                if workload.stream[usize::from(record.stream)].class() == Class::Critical {
                    late[self.of(record.at_us)].push(delivery.at_us.saturating_sub(record.at_us));
                }
            }
            self.points(late.iter_mut().map(|late| percentile(late, part).map_or(f64::NAN, |us| us as f64 / 1e3)))
        };
        let mut series = vec![
            Series { name: "weir p99".into(), colour: 0, points: of(&details.weir.deliveries, 0.99) },
            Series { name: "weir p50".into(), colour: 5, points: of(&details.weir.deliveries, 0.5) },
        ];
        let others = details.others.iter().enumerate();
        series.extend(others.map(|(index, (name, served))| Series {
            name: format!("{name} p99"),
            colour: index + 1,
            points: of(&served.deliveries, 0.99),
        }));
        self.chart("Delay of critical records", "delay, ms", Scale::Log, false, series)
    }

    fn value(self, workload: &Workload, details: &Details) -> Chart {
        let summed = |by_step: Vec<f64>| {
            let mut sum = 0.0;
            self.points(by_step.into_iter().map(|value| {
                sum += value;
                sum
            }))
        };
        let of = |deliveries: &[Delivery]| {
            let mut by_step = vec![0.0; self.count()];
            for delivery in deliveries {
                by_step[self.of(delivery.at_us)] += value_of(workload, &details.arrivals, delivery);
            }
            summed(by_step)
        };
        let mut bound = vec![0.0; self.count()];
        for (second, value) in details.bound_values.iter().enumerate() {
            bound[self.of(second as u64 * 1_000_000)] += value;
        }
        let mut series = vec![
            Series { name: BOUND.into(), colour: REFERENCE, points: summed(bound) },
            Series { name: WEIR.into(), colour: 0, points: of(&details.weir.deliveries) },
        ];
        let others = details.others.iter().enumerate();
        series.extend(others.map(|(index, (name, served))| Series {
            name: (*name).to_owned(),
            colour: index + 1,
            points: of(&served.deliveries),
        }));
        self.chart("Value delivered so far", "value (weight × Mbit)", Scale::Linear, false, series)
    }

    fn price(self, details: &Details) -> Chart {
        let weir: Vec<f64> = details.weir.prices.iter().map(|price| price * BYTES_PER_MBIT).collect();
        let series = vec![
            Series { name: "a clairvoyant's".into(), colour: REFERENCE, points: self.means(&details.bound.prices) },
            Series { name: "weir's, for what has time".into(), colour: 0, points: self.means(&weir) },
        ];
        self.chart("Price of a Mbit", "price, value/Mbit", Scale::Log, false, series)
    }
}

/// Bytes of all records.
pub(super) fn offered_bytes(arrivals: &Arrivals) -> f64 {
    arrivals.records.iter().map(|record| f64::from(record.bytes)).sum()
}
