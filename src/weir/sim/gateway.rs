//! The policy `weir`: the real gateway on the workload's records, and what it delivered.
//!
//! A sensor's record is one QoS 1 message of packed values whose bytes do not compress, so that a byte of a record is a byte on
//! the link, as the bound assumes. In an anomaly a sensor publishes on a topic of its own, which is a stream with the weight of
//! such records: every policy knows what a record is worth, and this is how a configuration says it.
//!
//! What a record that came at a coarser level is worth follows from its block: the part of the raw bytes of its stream that
//! the block still has, on the stream's ladder.

use std::collections::BTreeMap;

use weir_logic::block::{Codec, RecordKind};
use weir_logic::gateway::Gateway;
use weir_logic::ids::{Class, PerClass};
use weir_logic::price::PriceLimits;
use weir_logic::receive::Store;

use super::arrivals::{Arrival, Arrivals};
use super::machine::{self, Fact, Message, Site};
use super::site::{payload, payload_len, policy};
use super::trace::Link;
use super::workload::{LEVEL_BYTES, StreamSpec, Workload};

/// A record as it came to the cloud.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Delivery {
    /// Index in the arrivals.
    pub record: u32,
    /// When, in microseconds of the run.
    pub at_us: u64,
    /// Part of its raw worth that its level left.
    pub fidelity: f64,
    /// The level, in the order of [`super::workload::LEVEL_NAMES`]: the one whose bytes are nearest to what came.
    pub level: u8,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Run {
    /// Every record that arrived before the end, at whatever level.
    pub deliveries: Vec<Delivery>,
    /// Bytes that left on the link, headers included.
    pub sent_bytes: u64,
    /// Records evicted, by class.
    pub evicted: PerClass<u64>,
    /// Records thinned, by class.
    pub thinned: PerClass<u64>,
    /// Price of a byte, once a second.
    pub prices: Vec<f64>,
    /// Bytes held and not yet acknowledged, by class, once a second.
    pub held: Vec<PerClass<u64>>,
}

/// Runs the gateway over a link with these arrivals.
pub fn run(link: &Link, workload: &Workload, arrivals: &Arrivals, price: PriceLimits, seed: u64) -> Run {
    let mut score = Score::new(workload, &arrivals.records);
    // A sensor whose records are larger has more channels, and not a coarser aggregate.
    let sensors = workload.clone().with_records(arrivals.size_factor);
    let site = Site::new("sim", std::slice::from_ref(link), policy(link, &sensors, price), seed);
    let mut messages = arrivals.records.iter().enumerate().map(|(index, arrival)| message(&sensors, index, arrival));
    let ended =
        machine::run(site, &mut messages, &mut |now_us, fact| score.note(now_us, fact)).expect("its own filters are right");
    let mut run = score.run;
    run.sent_bytes = ended.sent_bytes.iter().sum();
    for class in Class::ALL {
        let counters = ended.gateway.lanes().counters(class);
        (run.evicted[class.index()], run.thinned[class.index()]) = (counters.evicted, counters.thinned);
    }
    run
}

pub(super) fn message(workload: &Workload, index: usize, arrival: &Arrival) -> Message {
    let stream = &workload.stream[usize::from(arrival.stream)];
    let mode = if arrival.weight == stream.weight { "calm" } else { "anomaly" };
    let topic = format!("{}/{mode}/{}", arrival.stream, arrival.device);
    let payload = payload(index as u32, payload_len(stream, arrival.bytes)).into();
    Message { at_us: arrival.at_us, topic, payload }
}

/// Keeps the books of what came.
pub(super) struct Score<'a> {
    workload: &'a Workload,
    arrivals: &'a [Arrival],
    /// The record that was published last.
    at: usize,
    /// By lane: the record of each sequence number.
    records: PerClass<Vec<u32>>,
    codec: Codec,
    pub(super) run: Run,
}

impl<'a> Score<'a> {
    pub(super) fn new(workload: &'a Workload, arrivals: &'a [Arrival]) -> Score<'a> {
        Score { workload, arrivals, at: 0, records: Default::default(), codec: Codec::default(), run: Run::default() }
    }

    pub(super) fn note(&mut self, now_us: u64, fact: Fact<'_>) {
        match fact {
            Fact::Published(index) => self.at = index,
            Fact::Recorded { lane, numbers, .. } => {
                let record = self.at as u32;
                self.records[lane.index()].extend(numbers.map(|_| record));
            }
            Fact::Stored(store) => self.credit(now_us, store),
            Fact::Second(gateway) => self.second(gateway),
            Fact::GaveUp(_) => {}
        }
    }

    fn second(&mut self, gateway: &Gateway) {
        self.run.prices.push(gateway.plan().lambda);
        self.run.held.push(Class::ALL.map(|class| gateway.lanes().status(class).bytes));
    }

    /// Credits every record of a block's range with what the block still says of its stream.
    fn credit(&mut self, now_us: u64, store: &Store) {
        let at = store.header.key.lane.index();
        let kind = |arrival: &Arrival| (arrival.stream, arrival.weight.to_bits());
        let mut whole: BTreeMap<(u16, u64), f64> = BTreeMap::new();
        let mut kept: BTreeMap<(u16, u64), f64> = BTreeMap::new();
        for &(first, last) in &store.takes {
            for &record in &self.records[at][first as usize..=last as usize] {
                let arrival = &self.arrivals[record as usize];
                *whole.entry(kind(arrival)).or_default() += f64::from(arrival.bytes);
            }
        }
        let (_, records) = self.codec.open(&store.block).expect("a whole block");
        for record in records {
            let record = record.expect("a whole record");
            if !store.takes.iter().any(|&(first, last)| (first..=last).contains(&record.seq)) {
                continue;
            }
            let index = self.records[at][record.seq as usize];
            if record.kind == RecordKind::Raw {
                assert!(record.payload.starts_with(&u64::from(index).to_le_bytes()), "each message became a record, in order");
            }
            let arrival = &self.arrivals[index as usize];
            let bytes = match record.kind {
                RecordKind::Raw => f64::from(arrival.bytes),
                _ => record.payload.len() as f64,
            };
            *kept.entry(kind(arrival)).or_default() += bytes;
        }
        for &(first, last) in &store.takes {
            for seq in first..=last {
                let record = self.records[at][seq as usize];
                let arrival = &self.arrivals[record as usize];
                let part = kept.get(&kind(arrival)).copied().unwrap_or(0.0) / whole[&kind(arrival)].max(1.0);
                let fidelity = worth(&self.workload.stream[usize::from(arrival.stream)], part.min(1.0));
                self.run.deliveries.push(Delivery { record, at_us: now_us, fidelity, level: nearest_level(part) });
            }
        }
    }
}

/// Worth of a part of the raw bytes, on the ladder and straight between its steps; of less than the last step in proportion.
fn worth(stream: &StreamSpec, part: f64) -> f64 {
    let steps: Vec<(f64, f64)> = LEVEL_BYTES.iter().copied().zip(stream.fidelity.iter().copied()).collect();
    let mut above = (1.0, 1.0);
    for step in steps.into_iter().chain([(0.0, 0.0)]) {
        if part >= step.0 {
            let share = if above.0 > step.0 { (part - step.0) / (above.0 - step.0) } else { 1.0 };
            return step.1 + share * (above.1 - step.1);
        }
        above = step;
    }
    0.0
}

/// The level whose part of the bytes is nearest, by ratio.
pub(super) fn nearest_level(part: f64) -> u8 {
    let far = |level: &u8| (LEVEL_BYTES[usize::from(*level)].ln() - part.max(1e-9).ln()).abs();
    (0..LEVEL_BYTES.len() as u8).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(0)
}

/// Worth of one delivery, by the workload's value model.
pub fn value_of(workload: &Workload, arrivals: &Arrivals, delivery: &Delivery) -> f64 {
    let arrival = &arrivals.records[delivery.record as usize];
    let stream = &workload.stream[usize::from(arrival.stream)];
    let lateness_us = delivery.at_us.saturating_sub(arrival.at_us);
    arrival.weight * f64::from(arrival.bytes) * 8e-6 * delivery.fidelity * stream.usefulness(lateness_us)
}

/// Worth of what was delivered.
pub fn value(workload: &Workload, arrivals: &Arrivals, deliveries: &[Delivery]) -> f64 {
    deliveries.iter().map(|delivery| value_of(workload, arrivals, delivery)).sum()
}
