//! The data of a fleet: what its boxes hold, and a cloud whose database becomes slow for a while.
//!
//! Data are bytes by class rather than records: what matters here is when they come. The rules are the real ones: what the cloud
//! says of its load and gives credits for ([`weir_logic::load`]), what a box may use of them ([`weir_logic::uplink::Session`]), and
//! what it holds or folds meanwhile ([`weir_logic::pressure`]). Streams have a value, and the ladder of slow measurements.

use std::collections::VecDeque;

use serde::Serialize;
use weir_logic::ids::{Class, PerClass};
use weir_logic::load::{Load, LoadTold, credits, is_overloaded};
use weir_logic::pressure::{self, Pressure};
use weir_logic::price::{Ladder, Level};
use weir_logic::receive::CREDIT_LEASE_MS;
use weir_logic::wire::{Body, Credits, LoadLevel};

use super::SECOND_US;

/// What boxes send, and what the cloud can take.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowSpec {
    /// By class: raw bytes a second of each box.
    pub bytes_per_s: PerClass<f64>,
    /// What each box's link carries.
    pub link_bytes_per_s: f64,
    /// What a cloud's queue holds.
    pub queue_bytes: f64,
    /// Credits of each class of a box, while there are any.
    pub credit_bytes: u64,
    /// What a cloud's database takes.
    pub sink_bytes_per_s: f64,
    /// When it becomes slow, and for how long.
    pub slow_s: (u64, u64),
    /// What part of its rate is left then.
    pub slow_part: f64,
}

impl FlowSpec {
    /// Bytes a second of each box, raw.
    fn of_box(&self) -> f64 {
        self.bytes_per_s.iter().sum()
    }
}

/// What became of the data.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FlowOutcome {
    /// Bytes a second that all boxes send when nothing is wrong.
    pub steady_bytes_per_s: f64,
    /// Most bytes that came in one second once the database was as fast as before.
    pub after_peak_bytes_per_s: f64,
    /// How many times the steady rate that is.
    pub after_peak_ratio: f64,
    /// For how long the cloud said that it was overloaded.
    pub overloaded_s: f64,
    /// How often that began.
    pub overloads: u64,
    /// From the time when the database was as fast as before until no box held more than it does when nothing is wrong.
    pub drained_s: Option<f64>,
    /// The fullest that the queue was.
    pub queue_peak_percent: u64,
    /// Longest time that the oldest critical bytes of a box waited there.
    pub critical_wait_s: f64,
    /// Raw bytes that were produced.
    pub raw_bytes: f64,
    /// Raw bytes that are represented in what the database has taken, at whatever level.
    pub stored_raw_bytes: f64,
    /// Raw bytes that boxes hold at the end, or that are on their way.
    pub held_raw_bytes: f64,
    /// Bytes that folding saved.
    pub folded_bytes: f64,
    /// Bytes that came, by second.
    pub bytes_by_s: Vec<f64>,
}

/// What one box holds, in raw bytes.
#[derive(Debug, Clone)]
struct Held {
    pressure: Pressure,
    waiting: PerClass<f64>,
    /// Sent and not acknowledged, in bytes as sent.
    under_way: PerClass<f64>,
}

/// Some bytes of one class of one box.
#[derive(Debug, Clone, Copy)]
struct Parcel {
    site: usize,
    class: Class,
    bytes: f64,
    raw: f64,
}

/// A cloud's queue and database.
#[derive(Debug, Default)]
struct Sink {
    queue: VecDeque<Parcel>,
    queued: f64,
    overloaded: bool,
    /// What boxes were told last, and when.
    granted: PerClass<u64>,
    granted_us: u64,
    told: LoadTold,
    looked_us: u64,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Flow {
    spec: FlowSpec,
    held: Vec<Held>,
    sinks: Vec<Sink>,
    outcome: FlowOutcome,
}

/// How often a database is looked at, and a box's link.
pub(super) const SINK_STEP_US: u64 = SECOND_US / 10;
pub(super) const BOX_STEP_US: u64 = SECOND_US / 4;
/// Credits are renewed so often, and the load is looked at.
const GRANT_US: u64 = 3 * SECOND_US;
const LOOK_US: u64 = SECOND_US;
/// What a box holds when nothing is wrong: less than what it produces in this time.
const USUAL_S: f64 = 2.0;

impl Flow {
    pub(super) fn new(spec: &FlowSpec, seeds: impl Iterator<Item = u64>, clouds: usize, run_s: u64) -> Flow {
        let fresh = |seed| Held { pressure: Pressure::new(seed), waiting: [0.0; 4], under_way: [0.0; 4] };
        let held: Vec<Held> = seeds.map(fresh).collect();
        let steady_bytes_per_s = spec.of_box() * held.len() as f64;
        let outcome = FlowOutcome { steady_bytes_per_s, bytes_by_s: vec![0.0; run_s as usize + 1], ..FlowOutcome::default() };
        let sinks = (0..clouds).map(|_| Sink::default()).collect();
        Flow { spec: spec.clone(), held, sinks, outcome }
    }

    /// A box hears how busy its cloud is.
    pub(super) fn tell(&mut self, now_us: u64, site: usize, level: LoadLevel) {
        self.held[site].pressure.tell(now_us, level);
    }

    /// A step of one box: what its sensors bring, and what it hands to its cloud with these credits, if it is up.
    pub(super) fn pour(&mut self, now_us: u64, site: usize, cloud: usize, credits: Option<PerClass<u64>>) {
        let (held, sink, spec) = (&mut self.held[site], &mut self.sinks[cloud], &self.spec);
        let step_s = BOX_STEP_US as f64 / 1e6;
        held.pressure.tick(now_us);
        let level = held.pressure.level();
        let mut link = spec.link_bytes_per_s * step_s;
        for class in Class::ALL {
            let at = class.index();
            let came = spec.bytes_per_s[at] * step_s;
            held.waiting[at] += came;
            self.outcome.raw_bytes += came;
            if let Some(credits) = credits.filter(|_| pressure::admits(level, class)) {
                let part = pressure::coarser(&Ladder::TELEMETRY, Level::Raw, pressure::steps(level, class)).bytes();
                let room = (spec.queue_bytes - sink.queued).min(credits[at] as f64 - held.under_way[at]).max(0.0);
                let bytes = (held.waiting[at] * part).min(link).min(room);
                let raw = bytes / part;
                held.waiting[at] -= raw;
                held.under_way[at] += bytes;
                (link, sink.queued) = (link - bytes, sink.queued + bytes);
                if bytes > 0.0 {
                    sink.queue.push_back(Parcel { site, class, bytes, raw });
                }
                self.outcome.folded_bytes += raw - bytes;
                if let Some(second) = self.outcome.bytes_by_s.get_mut((now_us / SECOND_US) as usize) {
                    *second += bytes;
                }
            }
            if class == Class::Critical {
                let waits_s = held.waiting[at] / spec.bytes_per_s[at].max(f64::MIN_POSITIVE);
                self.outcome.critical_wait_s = self.outcome.critical_wait_s.max(waits_s);
            }
        }
    }

    /// A step of a cloud: what its database has taken is off the boxes' hands, and what they are to be told comes back.
    pub(super) fn drain(&mut self, now_us: u64, cloud: usize) -> Vec<Body> {
        let (from_s, length_s) = self.spec.slow_s;
        let is_slow = (from_s * SECOND_US..(from_s + length_s) * SECOND_US).contains(&now_us);
        let part = if is_slow { self.spec.slow_part } else { 1.0 };
        let mut takes = self.spec.sink_bytes_per_s * part * SINK_STEP_US as f64 / 1e6;
        let sink = &mut self.sinks[cloud];
        while let Some(first) = sink.queue.front_mut().filter(|_| takes > 0.0) {
            let bytes = first.bytes.min(takes);
            let raw = first.raw * (bytes / first.bytes);
            let under_way = &mut self.held[first.site].under_way[first.class.index()];
            *under_way = (*under_way - bytes).max(0.0);
            self.outcome.stored_raw_bytes += raw;
            (takes, sink.queued) = (takes - bytes, (sink.queued - bytes).max(0.0));
            (first.bytes, first.raw) = (first.bytes - bytes, first.raw - raw);
            if first.bytes <= 0.0 {
                sink.queue.pop_front();
            }
        }
        if now_us >= (from_s + length_s) * SECOND_US && self.outcome.drained_s.is_none() {
            let usual = self.spec.of_box() * USUAL_S;
            if self.held.iter().all(|held| held.waiting.iter().sum::<f64>() <= usual) {
                self.outcome.drained_s = Some(now_us as f64 / 1e6 - (from_s + length_s) as f64);
            }
        }
        self.news(now_us, cloud)
    }

    /// What a cloud tells its boxes now: credits when they change and every three seconds, its load when that changes.
    fn news(&mut self, now_us: u64, cloud: usize) -> Vec<Body> {
        let sink = &mut self.sinks[cloud];
        let fill_percent = (sink.queued / self.spec.queue_bytes * 100.0) as u64;
        let was = sink.overloaded;
        sink.overloaded = is_overloaded(was, fill_percent);
        self.outcome.overloads += u64::from(sink.overloaded && !was);
        self.outcome.overloaded_s += if sink.overloaded { SINK_STEP_US as f64 / 1e6 } else { 0.0 };
        self.outcome.queue_peak_percent = self.outcome.queue_peak_percent.max(fill_percent);
        let mut news = Vec::new();
        let granted = credits(self.spec.credit_bytes, false, sink.overloaded);
        if granted != sink.granted || now_us >= sink.granted_us + GRANT_US {
            (sink.granted, sink.granted_us) = (granted, now_us);
            news.push(grant(granted));
        }
        if now_us >= sink.looked_us + LOOK_US {
            sink.looked_us = now_us;
            let load = Load { queue_percent: fill_percent, overloaded: sink.overloaded, stalled: false, commit_us: None };
            news.extend(sink.told.news(now_us, load));
        }
        news
    }

    /// What a box that greets is told.
    pub(super) fn greeting(&self, cloud: usize) -> Vec<Body> {
        let sink = &self.sinks[cloud];
        std::iter::once(grant(sink.granted)).chain(sink.told.present()).collect()
    }

    pub(super) fn outcome(mut self) -> FlowOutcome {
        let after_s = ((self.spec.slow_s.0 + self.spec.slow_s.1) as usize).min(self.outcome.bytes_by_s.len());
        let peak = self.outcome.bytes_by_s[after_s..].iter().copied().fold(0.0, f64::max);
        self.outcome.after_peak_bytes_per_s = peak;
        self.outcome.after_peak_ratio = peak / self.outcome.steady_bytes_per_s;
        let waiting: f64 = self.held.iter().flat_map(|held| held.waiting).sum();
        let queued: f64 = self.sinks.iter().flat_map(|sink| &sink.queue).map(|parcel| parcel.raw).sum();
        self.outcome.held_raw_bytes = waiting + queued;
        self.outcome
    }
}

fn grant(granted: PerClass<u64>) -> Body {
    Body::Credits(Credits { bytes: granted.to_vec(), lease_ms: CREDIT_LEASE_MS })
}
