//! Records of one run, drawn from a workload: which device sends how much, and when.
//!
//! Each stream's bytes per second are gamma distributed around its share, times `burst` in an anomaly, and all
//! streams together are scaled to the bytes asked for. A stream's bytes are cut into records that arrive at
//! random moments of their second; what is left of a second goes into the next one's first record. A stream
//! with lumps hands over everything at once, so its records arrive in the second in which the lump ends, in
//! the order in which they came about.
//!
//! A link of 100 Mbit/s at four times its rate would be tens of millions of records: beyond a limit all sizes
//! grow by the same factor, which the outcome states.

use weir_logic::ids::PerClass;

use super::{
    random::{exponential, gamma},
    workload::{StreamSpec, Workload},
};
use crate::link::model::Random;

/// Most records of one run. Source: 32 bytes each, and a policy at 1 us a record stays in seconds.
pub const RECORDS_MAX: f64 = 2e6;
/// Single records differ from the mean by up to this share.
const SIZE_SPREAD: f64 = 0.3;
const SECOND_US: u64 = 1_000_000;

/// A record as it arrives at the box. Its number is its index in [`Arrivals::records`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// When it arrives, in microseconds of the run.
    pub at_us: u64,
    /// Index of its stream in the workload.
    pub stream: u16,
    /// Which of the stream's devices sent it, from 0.
    pub device: u16,
    /// Its size on the link at full fidelity.
    pub bytes: u32,
    /// What a raw Mbit of it is worth: the stream's weight, or more in an anomaly.
    pub weight: f64,
}

/// Everything that arrives in one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrivals {
    /// Sorted by time.
    pub records: Vec<Arrival>,
    /// How much larger records are than the workload says, because they would be too many.
    pub size_factor: f64,
    /// For each second, whether it lies in an anomaly.
    pub anomalies: Vec<bool>,
}

impl Arrivals {
    /// Draws `run_s` seconds that add up to `bytes`.
    pub fn draw(workload: &Workload, run_s: u64, bytes: f64, seed: u64) -> Self {
        let anomalies = draw_anomalies(workload, run_s, seed);
        let mut rates: Vec<Vec<f64>> = workload
            .stream
            .iter()
            .enumerate()
            .map(|(index, stream)| draw_rates(workload, stream, &anomalies, &mut Random::new(seed, 2 * index as u64 + 2)))
            .collect();
        let sum: f64 = rates.iter().flatten().sum();
        rates.iter_mut().flatten().for_each(|rate| *rate *= bytes / sum);
        let wanted = |(rates, stream): (&Vec<f64>, &StreamSpec)| rates.iter().sum::<f64>() / stream.record.get() as f64;
        let count: f64 = rates.iter().zip(&workload.stream).map(wanted).sum();
        let size_factor = (count / RECORDS_MAX).max(1.0);
        let mut records = Vec::with_capacity((count / size_factor * 1.02) as usize + 16);
        for (index, rates) in rates.iter().enumerate() {
            Cutter { workload, index, anomalies: &anomalies, size_factor, random: Random::new(seed, 2 * index as u64 + 3) }
                .cut(rates, &mut records);
        }
        records.sort_by_key(|record| (record.at_us, record.stream, record.device));
        Self { records, size_factor, anomalies }
    }

    /// Raw bytes by class.
    pub fn bytes_by_class(&self, workload: &Workload) -> PerClass<u64> {
        let mut bytes = [0; 4];
        for record in &self.records {
            bytes[workload.stream[usize::from(record.stream)].class().index()] += u64::from(record.bytes);
        }
        bytes
    }
}

/// Anomalies begin and end with a second, so that each second of a stream has one weight.
fn draw_anomalies(workload: &Workload, run_s: u64, seed: u64) -> Vec<bool> {
    let mut anomalies = vec![false; run_s as usize];
    let mut random = Random::new(seed, 1);
    let (min_s, max_s) = (workload.anomaly_min.as_secs_f64(), workload.anomaly_max.as_secs_f64());
    let mut at_s = exponential(&mut random, workload.anomaly_gap.as_secs_f64());
    while at_s < run_s as f64 {
        let end_s = at_s + min_s + (max_s - min_s) * random.unit();
        for s in at_s as usize..(end_s.ceil() as usize).min(anomalies.len()) {
            anomalies[s] = true;
        }
        at_s = end_s + exponential(&mut random, workload.anomaly_gap.as_secs_f64()).max(1e-3);
    }
    anomalies
}

/// Relative bytes of each second.
fn draw_rates(workload: &Workload, stream: &StreamSpec, anomalies: &[bool], random: &mut Random) -> Vec<f64> {
    let lump_s = stream.lump.as_micros() / SECOND_US;
    let mut noise = 1.0;
    let rate = |(s, is_anomaly): (usize, &bool)| {
        // A lump is one quantity: its seconds share one draw.
        if lump_s < 2 || (s as u64).is_multiple_of(lump_s) {
            noise = gamma(random, workload.rate_deviation.as_f64());
        }
        stream.share.as_f64() * noise * if *is_anomaly { stream.burst } else { 1.0 }
    };
    anomalies.iter().enumerate().map(rate).collect()
}

/// Cuts the bytes of one stream into records.
struct Cutter<'a> {
    workload: &'a Workload,
    index: usize,
    anomalies: &'a [bool],
    size_factor: f64,
    random: Random,
}

impl Cutter<'_> {
    fn cut(mut self, rates: &[f64], records: &mut Vec<Arrival>) {
        let stream = &self.workload.stream[self.index];
        let lump_s = (stream.lump.as_micros() / SECOND_US).max(1);
        let (mut left, mut size) = (0.0, self.draw_size());
        let mut lump = Vec::new();
        for (s, rate) in rates.iter().enumerate() {
            left += rate;
            while left >= size {
                lump.push((size as u32, self.weight(s)));
                left -= size;
                size = self.draw_size();
            }
            let is_last = s + 1 == rates.len();
            if is_last && left >= 1.0 {
                lump.push((left as u32, self.weight(s)));
            }
            if (s as u64 + 1).is_multiple_of(lump_s) || is_last {
                self.hand_over(s as u64, &mut lump, records);
            }
        }
    }

    /// Gives what has come together its times, in order, within a second.
    fn hand_over(&mut self, s: u64, lump: &mut Vec<(u32, f64)>, records: &mut Vec<Arrival>) {
        let devices = self.workload.stream[self.index].devices;
        let mut times: Vec<u64> = lump.iter().map(|_| s * SECOND_US + (self.random.unit() * 1e6) as u64).collect();
        times.sort_unstable();
        for ((bytes, weight), at_us) in lump.drain(..).zip(times) {
            let device = (self.random.unit() * f64::from(devices)) as u16;
            records.push(Arrival { at_us, stream: self.index as u16, device, bytes, weight });
        }
    }

    fn draw_size(&mut self) -> f64 {
        let mean = self.workload.stream[self.index].record.get() as f64 * self.size_factor;
        (mean * (1.0 + SIZE_SPREAD * (2.0 * self.random.unit() - 1.0))).floor().max(1.0)
    }

    fn weight(&self, s: usize) -> f64 {
        let stream = &self.workload.stream[self.index];
        let is_worth_more = self.anomalies[s] && stream.burst > 1.0;
        if is_worth_more { stream.weight * self.workload.anomaly_weight } else { stream.weight }
    }
}

#[cfg(test)]
mod tests {
    use weir_host::units::Bytes;

    use super::*;

    const RUN_S: u64 = 600;
    const BYTES: f64 = 2e8;

    #[test]
    fn records_add_up_to_the_bytes_asked_for_and_come_in_order() {
        let workload = Workload::default();
        for seed in 0..5 {
            let arrivals = Arrivals::draw(&workload, RUN_S, BYTES, seed);
            let sum: f64 = arrivals.records.iter().map(|record| f64::from(record.bytes)).sum();
            assert!((sum - BYTES).abs() < 100.0, "{sum}");
            assert!(arrivals.records.is_sorted_by_key(|record| record.at_us));
            assert!(arrivals.records.last().unwrap().at_us < RUN_S * SECOND_US);
            assert_eq!(arrivals.size_factor, 1.0);
            assert_eq!(arrivals, Arrivals::draw(&workload, RUN_S, BYTES, seed));
            assert_ne!(arrivals, Arrivals::draw(&workload, RUN_S, BYTES, seed + 1));
        }
    }

    #[test]
    fn shares_sizes_bursts_and_lumps_are_those_of_the_workload() {
        let workload = Workload::default();
        let arrivals = Arrivals::draw(&workload, 3_600, 6.0 * BYTES, 4);
        let share_anomalous = arrivals.anomalies.iter().filter(|is| **is).count() as f64 / 3_600.0;
        assert!((0.04..0.25).contains(&share_anomalous), "{share_anomalous}");
        let workload = &workload;
        let calm = |stream: usize| {
            let all = arrivals.records.iter().filter(move |record| usize::from(record.stream) == stream);
            all.filter(move |record| record.weight == workload.stream[stream].weight)
        };
        let calm_bytes = |stream: usize| calm(stream).map(|record| f64::from(record.bytes)).sum::<f64>();
        // Shares hold in calm times; of streams without a burst all time is calm.
        let ratio = calm_bytes(0) / calm_bytes(1);
        assert!((ratio / 0.2 - 1.0).abs() < 0.1, "{ratio}");
        let ratio = calm_bytes(3) / calm_bytes(2);
        assert!((ratio / 2.5 - 1.0).abs() < 0.1, "{ratio}");
        let hasty: f64 =
            arrivals.records.iter().filter(|record| record.stream == 0).map(|record| f64::from(record.bytes)).sum();
        let expected = 1.0 + 6.0 * share_anomalous / (1.0 - share_anomalous);
        assert!((hasty / calm_bytes(0) / expected - 1.0).abs() < 0.15, "{}", hasty / calm_bytes(0));
        for (index, stream) in workload.stream.iter().enumerate() {
            let of = || arrivals.records.iter().filter(|record| usize::from(record.stream) == index);
            let mean = of().map(|record| f64::from(record.bytes)).sum::<f64>() / of().count() as f64;
            assert!((mean / stream.record.get() as f64 - 1.0).abs() < 0.05, "{}: {mean}", stream.name);
            assert!(of().all(|record| record.device < stream.devices));
            if !stream.lump.is_zero() {
                assert!(of().all(|record| record.at_us / SECOND_US % 10 == 9), "{}", stream.name);
            }
        }
    }

    #[test]
    fn too_many_records_become_fewer_and_larger() {
        let mut workload = Workload::default();
        workload.stream.truncate(1);
        workload.stream[0].record = Bytes::new(16);
        let arrivals = Arrivals::draw(&workload, 60, 3.0 * 16.0 * RECORDS_MAX, 1);
        assert!((arrivals.size_factor - 3.0).abs() < 1e-9);
        assert!((arrivals.records.len() as f64 / RECORDS_MAX - 1.0).abs() < 0.03);
    }
}
