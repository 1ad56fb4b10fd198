//! Does it pay to be told by others? Whole boxes on two carriers, one of which fails region by region.
//!
//! Each site is the real gateway with two uplinks, one on each carrier; which carrier is the faster and so the first one differs
//! from site to site. The failure reaches the sites one after another, and at each it begins as real ones do: for a while the
//! carrier gets slower and loses packets, then nothing passes, and later it works again. All boxes publish their part of the
//! health graph over their uplinks; the cloud merges it, looks for common causes and advises, with the code it runs.
//!
//! The same seed is played three times: the cloud tells nobody, it tells what it finds, and it tells what it finds while a
//! part of the sites publish random numbers in the place of their own. What is counted is deadlines: a record whose range
//! is with the cloud by then, at whatever fidelity, has kept its own. Those that end after the run do not count.

use std::collections::BTreeMap;

use serde::Serialize;
use weir_host::units::{BitRate, Bytes, Duration};
use weir_logic::graph::CauseLimits;
use weir_logic::ids::Class;
use weir_logic::policy::{Policy, UplinkPolicy};
use weir_logic::price::PriceLimits;

use super::arrivals::Arrivals;
use super::gateway::{self, Score, message};
use super::machine::{Fact, Message, Site, World};
use super::site::policy;
use super::trace::{Link, Lossy};
use super::workload::Workload;
use crate::link::model::Random;
use crate::link::profile::{LinkProfile, LinkSide};

mod cloud;
pub mod command;

use cloud::Cloud;

/// Most sites: a whole gateway each, and all of them in memory.
pub const SITES_MAX: usize = 500;
/// The carriers; the first one fails.
const CARRIERS: [&str; 2] = ["carrier-a", "carrier-b"];
/// Rate of a site's faster and slower uplink in bits per second, and by which part single ones differ.
const RATES: [f64; 2] = [2e6, 1e6];
const RATE_SPREAD: f64 = 0.2;
/// Delays each way, in microseconds.
const DELAY_US: (f64, f64) = (20_000.0, 45_000.0);
const SECOND_US: u64 = 1_000_000;

/// Sites, and the failure that reaches them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FederationSpec {
    /// Boxes, at most [`SITES_MAX`].
    pub sites: usize,
    /// Part of the sites that lie, when some do.
    pub liars: f64,
    /// What each box is offered, in bytes a second.
    pub offered_bytes_per_s: f64,
    /// What deadlines of the usual workload are multiplied by.
    pub deadlines: f64,
    /// When the failure reaches the first site.
    pub from_s: u64,
    /// From the first site that it reaches to the last.
    pub spread_s: u64,
    /// For how long the carrier degrades at a site before it is dead: shortest and longest.
    pub degraded_s: (u64, u64),
    /// How, in equal parts of that time: the part of its rate that is left, and the packets that are lost.
    pub degraded: [(f64, f64); 3],
    /// When the cloud names a common cause.
    pub causes: CauseLimits,
    /// For how long it is dead there.
    pub dead_s: u64,
    /// Length of the run.
    pub run_s: u64,
    /// What everything is drawn from.
    pub seed: u64,
}

impl FederationSpec {
    /// A failure that takes two minutes to reach all of these sites; deadlines are a tenth of the usual ones, so that
    /// the shortest is half a second.
    pub fn regional(sites: usize, seed: u64) -> FederationSpec {
        FederationSpec {
            sites,
            liars: 0.1,
            offered_bytes_per_s: 40_000.0,
            deadlines: 0.1,
            from_s: 60,
            spread_s: 120,
            degraded_s: (10, 20),
            degraded: [(0.1, 0.05), (0.05, 0.1), (0.02, 0.2)],
            causes: CauseLimits::default(),
            dead_s: 60,
            run_s: 300,
            seed,
        }
    }
}

/// Who is told what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// The cloud tells nobody anything.
    Nothing,
    /// It tells what it finds in what boxes publish.
    Truth,
    /// The same, and some of the boxes publish random numbers.
    Lies,
}

/// What came of one seed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FederationOutcome {
    /// Boxes.
    pub sites: usize,
    /// Boxes that lied in the third play.
    pub liars: usize,
    /// What everything was drawn from.
    pub seed: u64,
    /// Length of a play.
    pub run_s: u64,
    /// Boxes that are told nothing.
    pub alone: Play,
    /// Boxes that are told what the cloud finds.
    pub advised: Play,
    /// The same while some lie.
    pub lied_to: Play,
}

/// What came of one play.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Play {
    /// Worth of what was delivered, by the workload's value model.
    pub value: f64,
    /// Records whose deadline lies within the run.
    pub records: u64,
    /// Of them, those that were not with the cloud by then.
    pub lost: u64,
    /// Both by class.
    pub classes: BTreeMap<&'static str, Deadlines>,
    /// Sites that had been told of the carrier's trouble when it reached them.
    pub warned_sites: usize,
    /// From the first site that was reached until the cloud named the carrier.
    pub named_after_s: Option<u64>,
}

/// Deadlines of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Deadlines {
    /// Records whose deadline lies within the run.
    pub records: u64,
    /// Of them, those that were not with the cloud by then.
    pub lost: u64,
}

/// Plays one seed three times.
pub fn run(spec: &FederationSpec) -> FederationOutcome {
    let workload = Workload::default().with_deadlines(spec.deadlines);
    let boxes: Vec<SiteCase> = (0..spec.sites.min(SITES_MAX)).map(|index| SiteCase::draw(spec, &workload, index)).collect();
    FederationOutcome {
        sites: boxes.len(),
        liars: boxes.iter().filter(|site| site.lies).count(),
        seed: spec.seed,
        run_s: spec.run_s,
        alone: play(spec, &workload, &boxes, Telling::Nothing),
        advised: play(spec, &workload, &boxes, Telling::Truth),
        lied_to: play(spec, &workload, &boxes, Telling::Lies),
    }
}

/// One site: the same in each play.
struct SiteCase {
    name: String,
    seed: u64,
    /// The faster uplink first, and the carriers of both.
    links: Vec<Link>,
    carriers: [&'static str; 2],
    arrivals: Arrivals,
    /// When the failure reaches it.
    reached_us: u64,
    lies: bool,
}

impl SiteCase {
    fn draw(spec: &FederationSpec, workload: &Workload, index: usize) -> SiteCase {
        let seed = spec.seed.wrapping_mul(0x9e37_79b9).wrapping_add(index as u64);
        let mut random = Random::new(seed, 12);
        let is_first_on_failing = random.unit() < 0.5;
        let carriers = if is_first_on_failing { CARRIERS } else { [CARRIERS[1], CARRIERS[0]] };
        let step_us = spec.spread_s as f64 * 1e6 / spec.sites.max(1) as f64;
        let reached_us = spec.from_s * SECOND_US + (step_us * (index as f64 + random.unit())) as u64;
        let degraded_s = spec.degraded_s.0 as f64 + (spec.degraded_s.1 - spec.degraded_s.0) as f64 * random.unit();
        let mut links = Vec::new();
        for (uplink, carrier) in carriers.into_iter().enumerate() {
            let bits_per_s = RATES[uplink] * (1.0 - RATE_SPREAD + 2.0 * RATE_SPREAD * random.unit());
            let delay_us = DELAY_US.0 + (DELAY_US.1 - DELAY_US.0) * random.unit();
            let side = LinkSide {
                rate: BitRate::from_bits_per_s(bits_per_s as u64),
                delay: Duration::from_micros(delay_us as u64),
                queue: Bytes::from_kib(128),
                ..LinkSide::default()
            };
            let (mut steps, mut lossy) = (vec![(0, bits_per_s)], Vec::new());
            if carrier == CARRIERS[0] {
                fail(spec, reached_us, (degraded_s * 1e6) as u64, &mut steps, &mut lossy);
            }
            let profile = LinkProfile {
                name: carrier.to_owned(),
                description: String::new(),
                up: side.clone(),
                down: side,
                outages: Vec::new(),
            };
            links.push(Link::of_steps(profile, &steps, lossy, spec.run_s, seed.wrapping_add(uplink as u64)));
        }
        let bytes = spec.offered_bytes_per_s * spec.run_s as f64;
        // The same number of sites lies for every seed; which ones is drawn by where the seed puts the first.
        let every = (1.0 / spec.liars.clamp(1e-3, 1.0)).round() as u64;
        SiteCase {
            name: format!("site-{index:03}"),
            seed,
            links,
            carriers,
            arrivals: Arrivals::draw(workload, spec.run_s, bytes, seed),
            reached_us,
            lies: (index as u64 + spec.seed).is_multiple_of(every),
        }
    }

    fn policy(&self, workload: &Workload) -> Policy {
        let uplinks = self.links.iter().zip(self.carriers).map(|(link, carrier)| UplinkPolicy {
            carrier: Some(carrier.into()),
            ..UplinkPolicy::free(carrier, link.profile.up.rate.bits_per_s())
        });
        let uplinks = uplinks.collect();
        Policy { uplinks, ..policy(&self.links[0], workload, PriceLimits::default()) }
    }
}

/// Adds a site's failure to what its uplink is without it.
fn fail(spec: &FederationSpec, reached_us: u64, degraded_us: u64, steps: &mut Vec<(u64, f64)>, lossy: &mut Vec<Lossy>) {
    let bits_per_s = steps[0].1;
    let part_us = degraded_us / spec.degraded.len() as u64;
    for (part, (left, loss)) in (0u64..).zip(spec.degraded) {
        let from_us = reached_us + part * part_us;
        steps.push((from_us, bits_per_s * left));
        lossy.push(Lossy { from_us, until_us: from_us + part_us, loss });
    }
    let dead_us = reached_us + spec.degraded.len() as u64 * part_us;
    steps.push((dead_us, 0.0));
    steps.push((dead_us + spec.dead_s * SECOND_US, bits_per_s));
}

/// Plays all sites second by second; between seconds the cloud merges, judges and tells.
fn play(spec: &FederationSpec, workload: &Workload, boxes: &[SiteCase], telling: Telling) -> Play {
    let mut scores: Vec<Score<'_>> = boxes.iter().map(|site| Score::new(workload, &site.arrivals.records)).collect();
    let sensors: Vec<Workload> = boxes.iter().map(|site| workload.clone().with_records(site.arrivals.size_factor)).collect();
    let mut messages: Vec<_> = boxes
        .iter()
        .zip(&sensors)
        .map(|(site, sensors)| site.arrivals.records.iter().enumerate().map(move |(at, arrival)| message(sensors, at, arrival)))
        .collect();
    let mut watches: Vec<_> =
        scores.iter_mut().map(|score| move |now_us: u64, fact: Fact<'_>| score.note(now_us, fact)).collect();
    let parts = boxes.iter().zip(&sensors).zip(messages.iter_mut().zip(&mut watches));
    let worlds = parts.map(|((site, sensors), (messages, watch))| {
        let of = Site { is_federated: true, ..Site::new(&site.name, &site.links, site.policy(sensors), site.seed) };
        World::new(of, messages as &mut dyn Iterator<Item = Message>, watch).expect("its own filters are right")
    });
    let mut worlds: Vec<World<'_>> = worlds.collect();
    let mut cloud = Cloud::new(spec, boxes, telling);
    for second in 1..=spec.run_s {
        let now_us = second * SECOND_US;
        for (at, world) in worlds.iter_mut().enumerate() {
            world.live_until(now_us);
            for (came_us, digest) in world.take_digests() {
                cloud.merge(came_us, at, &digest).into_iter().for_each(|answer| world.hear(answer));
            }
            world.last_stamp = cloud.stamp(at);
        }
        cloud.judge(now_us);
        for (at, world) in worlds.iter_mut().enumerate() {
            cloud.advice(now_us, at).into_iter().for_each(|advice| world.hear(advice));
        }
    }
    drop(worlds);
    drop(watches);
    let mut play = Play {
        warned_sites: cloud.warned(),
        named_after_s: cloud.named_us().map(|named_us| (named_us / SECOND_US).saturating_sub(spec.from_s)),
        ..Play::default()
    };
    for (site, score) in boxes.iter().zip(&scores) {
        play.count(spec, workload, &site.arrivals, score);
    }
    play
}

impl Play {
    /// Adds one site.
    fn count(&mut self, spec: &FederationSpec, workload: &Workload, arrivals: &Arrivals, score: &Score<'_>) {
        let mut came_us = vec![u64::MAX; arrivals.records.len()];
        for delivery in &score.run.deliveries {
            came_us[delivery.record as usize] = delivery.at_us;
        }
        self.value += gateway::value(workload, arrivals, &score.run.deliveries);
        for (arrival, came_us) in arrivals.records.iter().zip(came_us) {
            let stream = &workload.stream[usize::from(arrival.stream)];
            let due_us = arrival.at_us + stream.deadline.as_micros();
            if due_us > spec.run_s * SECOND_US {
                continue;
            }
            let lost = u64::from(came_us > due_us);
            let class: Class = stream.class();
            let of_class = self.classes.entry(class.name()).or_default();
            (of_class.records, of_class.lost) = (of_class.records + 1, of_class.lost + lost);
            (self.records, self.lost) = (self.records + 1, self.lost + lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Few sites with much to send, and a quick failure.
    fn small(seed: u64) -> FederationSpec {
        FederationSpec {
            from_s: 10,
            spread_s: 30,
            degraded_s: (5, 8),
            dead_s: 20,
            run_s: 70,
            ..FederationSpec::regional(12, seed)
        }
    }

    #[test]
    fn boxes_that_are_told_lose_fewer_deadlines_and_lies_cost_next_to_nothing() {
        let outcome = run(&small(2));
        assert_eq!((outcome.sites, outcome.liars), (12, 1));
        let (alone, advised, lied_to) = (&outcome.alone, &outcome.advised, &outcome.lied_to);
        assert!(alone.lost > 20 && alone.warned_sites == 0, "the failure costs something: {alone:?}");
        assert!(advised.warned_sites >= 2 && advised.lost < alone.lost, "{alone:?} {advised:?}");
        assert!(lied_to.value >= 0.98 * alone.value, "{alone:?} {lied_to:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_plays_to_the_byte() {
        let spec = |seed| FederationSpec { run_s: 50, ..FederationSpec { sites: 4, ..small(seed) } };
        let text = |seed| serde_json::to_string(&run(&spec(seed))).expect("figures");
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
