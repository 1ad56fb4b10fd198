//! Many boxes on virtual time: what they do together when something that they share fails.
//!
//! One box that reconnects is no load; thousands that lose their cloud in the same second can keep it from coming back. Here
//! each site is a real [`Session`] with its backoff, and no more of the box than that, so that thousands of them run in
//! seconds. Sites hang on carriers and talk to clouds, and [`Fault`]s take either away for a while, all at once or site
//! by site. A cloud takes handshakes one after another, and drops what comes when too many wait, as the real one does.
//! With a [`FlowSpec`] the boxes also have data, and the cloud's database can become slow.
//!
//! Everything is drawn from one seed: the same seed gives the same figures to the byte.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::BytesMut;
use serde::Serialize;
use weir_logic::ids::Epoch;
use weir_logic::uplink::{Session, SessionLimits, SessionOutput};
use weir_logic::wire::{self, Body, LoadLevel, PROTOCOL_VERSION, Pong, Welcome};

use crate::link::model::Random;

mod flow;

use flow::{BOX_STEP_US, Flow, SINK_STEP_US};
pub use flow::{FlowOutcome, FlowSpec};

/// Most sites of a fleet. Source: a heartbeat a second of each is an event; ten minutes of these take about a minute.
pub const SITES_MAX: usize = 50_000;
/// Handshakes that may wait in a cloud; what comes on top is dropped. Source: `host::quic`.
const HANDSHAKES_MAX: usize = 1_024;
/// Round trips of carriers, shortest and longest.
const RTT_US: (f64, f64) = (20_000.0, 150_000.0);
const SECOND_US: u64 = 1_000_000;

/// A fleet and what happens to it.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetSpec {
    /// Boxes, at most [`SITES_MAX`].
    pub sites: usize,
    /// Networks that they hang on, in turns; at least one.
    pub carriers: usize,
    /// Clouds that they talk to, in turns; at least one.
    pub clouds: usize,
    /// Handshakes that a cloud finishes a second.
    pub handshakes_per_s: u32,
    /// Times of every box's session.
    pub session: SessionLimits,
    /// What fails.
    pub faults: Vec<Fault>,
    /// The data that they send; `None` if it is about connections alone.
    pub flow: Option<FlowSpec>,
    /// Length of the run.
    pub run_s: u64,
    /// What everything is drawn from.
    pub seed: u64,
}

/// Something shared that does not answer for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What fails.
    pub what: Shared,
    /// When it fails for the first site.
    pub from_s: u64,
    /// How long it is away, for each site.
    pub length_s: u64,
    /// From the first site that it reaches to the last.
    pub spread_s: u64,
}

/// What many sites have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// A network, by its number.
    Carrier(usize),
    /// A cloud, by its number.
    Cloud(usize),
}

/// What a fleet did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetOutcome {
    /// Boxes.
    pub sites: usize,
    /// What everything was drawn from.
    pub seed: u64,
    /// Attempts to connect, in all.
    pub attempts: u64,
    /// Most attempts in one second, after the first connections and before the first fault is over.
    pub attempts_peak_per_s: u64,
    /// Most attempts in one second once the last fault is over.
    pub attempts_after_peak_per_s: u64,
    /// Handshakes that a cloud dropped because too many waited.
    pub handshakes_dropped: u64,
    /// From the end of the last fault until half of the sites were up, and all; `None` if that was not so before the end.
    pub half_back_s: Option<f64>,
    /// As above, for all.
    pub all_back_s: Option<f64>,
    /// Attempts by second.
    pub attempts_by_s: Vec<u64>,
    /// Sites that are up, by second.
    pub up_by_s: Vec<u64>,
    /// What became of the data, if there were any.
    pub flow: Option<FlowOutcome>,
}

impl FleetSpec {
    /// A cloud that is away for five minutes, for so many sites on eight carriers.
    pub fn outage(sites: usize, seed: u64) -> FleetSpec {
        let what = Shared::Cloud(0);
        FleetSpec {
            sites,
            carriers: 8,
            clouds: 1,
            // A TLS handshake costs a core about a millisecond; half a core is left for it.
            handshakes_per_s: 500,
            session: SessionLimits {
                ping_us: SECOND_US,
                silence_us: 5 * SECOND_US,
                connect_us: 10 * SECOND_US,
                backoff_us: (SECOND_US / 2, 30 * SECOND_US),
            },
            faults: vec![Fault { what, from_s: 60, length_s: 300, spread_s: 0 }],
            flow: None,
            run_s: 600,
            seed,
        }
    }

    /// A cloud whose database is slow for so long that it is overloaded for about a minute; each box sends 2 kB/s.
    pub fn overload(sites: usize, seed: u64) -> FleetSpec {
        let of_all = 2_000.0 * sites as f64;
        let flow = FlowSpec {
            bytes_per_s: [20.0, 200.0, 1_000.0, 780.0],
            link_bytes_per_s: 25_000.0,
            // The default of 64 MiB for 2,000 boxes: what they send in 17 s.
            queue_bytes: 16.8 * of_all,
            credit_bytes: 8 << 20,
            sink_bytes_per_s: 2.5 * of_all,
            slow_s: (60, 70),
            slow_part: 0.02,
        };
        FleetSpec { faults: Vec::new(), flow: Some(flow), run_s: 420, ..FleetSpec::outage(sites, seed) }
    }
}

/// Runs a fleet to its end.
pub fn run(spec: &FleetSpec) -> FleetOutcome {
    let mut fleet = Fleet::new(spec);
    fleet.live();
    fleet.outcome()
}

/// One box.
#[derive(Debug)]
struct Site {
    session: Session,
    carrier: usize,
    cloud: usize,
    rtt_us: u64,
    /// Counts its connections; what belongs to an older one is void.
    connection: u64,
    /// When it is next looked at; what else is queued for that is void.
    tick_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The session's own time has come.
    Tick,
    /// The cloud has finished the handshake of this connection.
    Connected(u64),
    /// The cloud's answer to a Hello.
    Welcome(u64),
    /// The cloud's answer to a ping.
    Pong(u64, u64),
    /// A box's sensors and its link.
    Pour,
    /// A cloud's database; the number beside it is the cloud's.
    Drain,
}

/// One server of handshakes.
#[derive(Debug, Default)]
struct CloudState {
    busy_until_us: u64,
    dropped: u64,
}

struct Fleet<'a> {
    spec: &'a FleetSpec,
    sites: Vec<Site>,
    clouds: Vec<CloudState>,
    flow: Option<Flow>,
    /// Time, order, site, event.
    queue: BinaryHeap<Reverse<(u64, u64, usize, Event)>>,
    order: u64,
    now_us: u64,
    up: u64,
    attempts_by_s: Vec<u64>,
    /// Time of each change, and the sites that were up from then on.
    ups: BTreeMap<u64, u64>,
}

impl<'a> Fleet<'a> {
    fn new(spec: &'a FleetSpec) -> Fleet<'a> {
        let mut random = Random::new(spec.seed, 1);
        let rtts: Vec<f64> = (0..spec.carriers.max(1)).map(|_| RTT_US.0 + (RTT_US.1 - RTT_US.0) * random.unit()).collect();
        let mut fleet = Fleet {
            spec,
            sites: Vec::new(),
            clouds: (0..spec.clouds.max(1)).map(|_| CloudState::default()).collect(),
            flow: None,
            queue: BinaryHeap::new(),
            order: 0,
            now_us: 0,
            up: 0,
            attempts_by_s: vec![0; spec.run_s as usize + 1],
            ups: BTreeMap::new(),
        };
        for index in 0..spec.sites.min(SITES_MAX) {
            let carrier = index % rtts.len();
            // They were switched on at some time in the first half minute.
            let start_us = (random.unit() * 30e6) as u64;
            let rtt_us = (rtts[carrier] * (0.8 + 0.4 * random.unit())) as u64;
            let session = Session::new(start_us, spec.session, seed_of(spec, index));
            let cloud = index % fleet.clouds.len();
            fleet.sites.push(Site { session, carrier, cloud, rtt_us, connection: 0, tick_us: start_us });
            fleet.push(start_us, index, Event::Tick);
            if spec.flow.is_some() {
                fleet.push(start_us, index, Event::Pour);
            }
        }
        if let Some(flow) = &spec.flow {
            let seeds = (0..fleet.sites.len()).map(|index| seed_of(spec, index));
            fleet.flow = Some(Flow::new(flow, seeds, fleet.clouds.len(), spec.run_s));
            (0..fleet.clouds.len()).for_each(|cloud| fleet.push(0, cloud, Event::Drain));
        }
        fleet
    }

    fn live(&mut self) {
        while let Some(Reverse((at_us, _, site, event))) = self.queue.pop() {
            if at_us > self.spec.run_s * SECOND_US {
                break;
            }
            self.now_us = at_us;
            if event == Event::Drain {
                self.drain(site);
                continue;
            }
            self.event(site, event);
            self.carry_out(site);
        }
    }

    /// A cloud's database takes what it can, and all its boxes that are up hear what is new.
    fn drain(&mut self, cloud: usize) {
        let Some(flow) = &mut self.flow else { return };
        let news = flow.drain(self.now_us, cloud);
        self.push(self.now_us + SINK_STEP_US, cloud, Event::Drain);
        if news.is_empty() {
            return;
        }
        let bytes = encoded(news);
        for index in 0..self.sites.len() {
            let site = &mut self.sites[index];
            if site.cloud == cloud && site.session.is_up() {
                site.session.control(self.now_us, &bytes);
                self.carry_out(index);
            }
        }
    }

    fn push(&mut self, at_us: u64, site: usize, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((at_us, self.order, site, event)));
    }

    fn event(&mut self, index: usize, event: Event) {
        let now_us = self.now_us;
        let site = &mut self.sites[index];
        match event {
            Event::Tick if site.tick_us == now_us => site.session.tick(now_us, || [0; 4]),
            Event::Connected(connection) if site.connection == connection => {
                site.session.connected(now_us, Epoch(index as u64 + 1), &[], "sim");
            }
            Event::Welcome(connection) if site.connection == connection => {
                let welcome = Body::Welcome(Welcome { protocol: PROTOCOL_VERSION, ..Welcome::default() });
                let more = self.flow.as_ref().map(|flow| flow.greeting(site.cloud)).unwrap_or_default();
                site.session.control(now_us, &encoded(std::iter::once(welcome).chain(more)));
            }
            Event::Pong(connection, nonce) if site.connection == connection => {
                site.session.control(now_us, &encoded([Body::Pong(Pong { nonce })]));
            }
            Event::Pour => {
                let credits = site.session.is_up().then(|| site.session.credits(now_us));
                if let Some(flow) = &mut self.flow {
                    flow.pour(now_us, index, site.cloud, credits);
                }
                self.push(now_us + BOX_STEP_US, index, Event::Pour);
            }
            _ => {}
        }
    }

    fn carry_out(&mut self, index: usize) {
        let was_up = self.up;
        while let Some(output) = self.sites[index].session.poll() {
            match output {
                SessionOutput::Connect => self.connect(index),
                SessionOutput::Write(bytes) => self.write(index, &bytes),
                SessionOutput::Disconnect(_) => self.sites[index].connection += 1,
                SessionOutput::Up => {
                    self.up += 1;
                    self.tell(index, LoadLevel::Idle);
                }
                SessionOutput::Load(load) => self.tell(index, load.level()),
                SessionOutput::Down(_) => self.up -= 1,
                SessionOutput::Greeted { .. }
                | SessionOutput::NeedFull
                | SessionOutput::Advice(_)
                | SessionOutput::Asked { .. }
                | SessionOutput::PolicyOffer(_)
                | SessionOutput::ModelOffer(_)
                | SessionOutput::Pools(_)
                | SessionOutput::Pinged
                | SessionOutput::Heartbeat { .. }
                | SessionOutput::Failed(_)
                | SessionOutput::Acked { .. } => {}
            }
        }
        if self.up != was_up {
            self.ups.insert(self.now_us, self.up);
        }
        let site = &mut self.sites[index];
        let due_us = site.session.deadline_us().max(self.now_us + 1);
        if due_us != site.tick_us {
            site.tick_us = due_us;
            self.push(due_us, index, Event::Tick);
        }
    }

    fn tell(&mut self, index: usize, level: LoadLevel) {
        if let Some(flow) = &mut self.flow {
            flow.tell(self.now_us, index, level);
        }
    }

    /// A handshake: there, into the cloud's queue, and back.
    fn connect(&mut self, index: usize) {
        self.attempts_by_s[(self.now_us / SECOND_US) as usize] += 1;
        let site = &mut self.sites[index];
        site.connection += 1;
        let (connection, rtt_us, at) = (site.connection, site.rtt_us, site.cloud);
        let arrives_us = self.now_us + rtt_us / 2;
        if self.is_cut(index, self.now_us) || self.is_cut(index, arrives_us) {
            return;
        }
        let each_us = SECOND_US / u64::from(self.spec.handshakes_per_s.max(1));
        let cloud = &mut self.clouds[at];
        let waits_us = cloud.busy_until_us.saturating_sub(arrives_us);
        if waits_us / each_us >= HANDSHAKES_MAX as u64 {
            cloud.dropped += 1;
            return;
        }
        cloud.busy_until_us = cloud.busy_until_us.max(arrives_us) + each_us;
        let done_us = cloud.busy_until_us + rtt_us / 2;
        self.push(done_us, index, Event::Connected(connection));
    }

    /// What a session says reaches the cloud, and its answer comes back, unless something is cut on the way.
    fn write(&mut self, index: usize, bytes: &[u8]) {
        let Site { connection, rtt_us, .. } = self.sites[index];
        let answered_us = self.now_us + rtt_us;
        if self.is_cut(index, self.now_us) || self.is_cut(index, answered_us) {
            return;
        }
        let mut input = BytesMut::from(bytes);
        while let Ok(Some(message)) = wire::take_control(&mut input) {
            match message.body {
                Some(Body::Hello(_)) => self.push(answered_us, index, Event::Welcome(connection)),
                Some(Body::Ping(ping)) => self.push(answered_us, index, Event::Pong(connection, ping.nonce)),
                _ => {}
            }
        }
    }

    /// Whether something that this site needs is away.
    fn is_cut(&self, index: usize, at_us: u64) -> bool {
        let site = &self.sites[index];
        self.spec.faults.iter().any(|fault| {
            let (number, of) = match fault.what {
                Shared::Carrier(carrier) => (site.carrier == carrier, self.spec.carriers.max(1)),
                Shared::Cloud(cloud) => (site.cloud == cloud, self.clouds.len()),
            };
            // Sites are reached in the order of their numbers.
            let (rank, last) = (index / of, (self.sites.len() / of).max(1));
            let from_us = fault.from_s * SECOND_US + fault.spread_s * SECOND_US * rank as u64 / last as u64;
            number && (from_us..from_us + fault.length_s * SECOND_US).contains(&at_us)
        })
    }

    fn outcome(self) -> FleetOutcome {
        let ends = self.spec.faults.iter().map(|fault| fault.from_s + fault.spread_s + fault.length_s);
        let slow = self.spec.flow.as_ref().map(|flow| flow.slow_s);
        let ends = ends.chain(slow.map(|(from_s, length_s)| from_s + length_s));
        let begins = self.spec.faults.iter().map(|fault| fault.from_s).chain(slow.map(|(from_s, _)| from_s));
        let (first_s, over_s) = (begins.min(), ends.max());
        let over_s = over_s.unwrap_or(0).min(self.spec.run_s) as usize;
        let first_s = first_s.unwrap_or(0).min(over_s as u64) as usize;
        let peak = |seconds: &[u64]| seconds.iter().copied().max().unwrap_or(0);
        let sites = self.sites.len();
        let back_s = |count: u64| {
            let over_us = over_s as u64 * SECOND_US;
            // For good: from the last change on that led to so many.
            let before = self.ups.range(..over_us).next_back().is_some_and(|(_, up)| *up >= count);
            let below = self.ups.range(over_us..).filter(|(_, up)| **up < count).map(|(at_us, _)| *at_us).next_back();
            match (below, before) {
                (None, true) => Some(0.0),
                (below, _) => {
                    let (at_us, _) = self.ups.range(below.unwrap_or(over_us)..).find(|(_, up)| **up >= count)?;
                    Some((at_us - over_us) as f64 / 1e6)
                }
            }
        };
        let up_at = |second: usize| self.ups.range(..=second as u64 * SECOND_US).next_back().map_or(0, |(_, up)| *up);
        FleetOutcome {
            sites,
            seed: self.spec.seed,
            attempts: self.attempts_by_s.iter().sum(),
            attempts_peak_per_s: peak(&self.attempts_by_s[first_s..over_s]),
            attempts_after_peak_per_s: peak(&self.attempts_by_s[over_s..]),
            handshakes_dropped: self.clouds.iter().map(|cloud| cloud.dropped).sum(),
            half_back_s: back_s(sites as u64 / 2),
            all_back_s: back_s(sites as u64),
            up_by_s: (0..self.attempts_by_s.len()).map(up_at).collect(),
            attempts_by_s: self.attempts_by_s,
            flow: self.flow.map(Flow::outcome),
        }
    }
}

fn seed_of(spec: &FleetSpec, index: usize) -> u64 {
    spec.seed.wrapping_mul(0x9e37_79b9).wrapping_add(index as u64)
}

fn encoded(bodies: impl IntoIterator<Item = Body>) -> Vec<u8> {
    let mut bytes = Vec::new();
    bodies.into_iter().for_each(|body| wire::encode_control(body, &mut bytes));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hundred_boxes_come_back_without_a_storm_when_their_cloud_does() {
        let outcome = run(&FleetSpec::outage(200, 1));
        assert_eq!(outcome.up_by_s[59], 200, "all were up before");
        assert_eq!(outcome.up_by_s[120], 0, "none was up while the cloud was away");
        assert!(outcome.all_back_s.is_some_and(|back_s| back_s <= 45.0), "{:?}", outcome.all_back_s);
        // 200 in a wait of 15 to 30 s and an attempt of 10 s are 7 a second on average.
        assert!(outcome.attempts_after_peak_per_s <= 20, "{}", outcome.attempts_after_peak_per_s);
        assert_eq!(outcome.handshakes_dropped, 0);
        assert_eq!(outcome.up_by_s.last(), Some(&200));
    }

    #[test]
    fn the_same_seed_gives_the_same_fleet_to_the_byte() {
        for spec in [FleetSpec::outage, FleetSpec::overload] {
            let text = |seed| serde_json::to_string(&run(&spec(50, seed))).expect("figures");
            assert_eq!(text(1), text(1));
            assert_ne!(text(1), text(2));
        }
    }

    #[test]
    fn two_hundred_boxes_wait_for_a_busy_cloud_and_come_back_without_a_wave() {
        let outcome = run(&FleetSpec::overload(200, 1));
        let flow = outcome.flow.expect("it has data");
        assert_eq!(outcome.up_by_s[59..].iter().min(), Some(&200), "nobody hangs up for it");
        assert_eq!((outcome.attempts_peak_per_s, outcome.attempts_after_peak_per_s), (0, 0));
        assert!((45.0..75.0).contains(&flow.overloaded_s) && flow.overloads == 1, "{flow:?}");
        // About two and a half times for a large fleet; few boxes return less evenly.
        assert!(flow.after_peak_ratio < 3.3, "{}", flow.after_peak_ratio);
        assert!(flow.critical_wait_s <= 1.0 && flow.queue_peak_percent < 90, "{flow:?}");
        assert!(flow.drained_s.is_some_and(|drained_s| drained_s < 240.0), "{:?}", flow.drained_s);
        let known = flow.stored_raw_bytes + flow.held_raw_bytes;
        assert!((known / flow.raw_bytes - 1.0).abs() < 1e-9, "nothing is lost: {known} of {}", flow.raw_bytes);
        let folded = flow.folded_bytes / flow.raw_bytes;
        assert!(folded > 0.02 && folded < 0.4, "{folded}");
    }

    #[test]
    fn a_carrier_that_fails_site_by_site_takes_its_own_sites_and_no_others() {
        let fault = Fault { what: Shared::Carrier(1), from_s: 60, length_s: 120, spread_s: 60 };
        let outcome = run(&FleetSpec { carriers: 4, faults: vec![fault], run_s: 300, ..FleetSpec::outage(80, 3) });
        assert_eq!(outcome.up_by_s[59], 80);
        let (early, late) = (outcome.up_by_s[80], outcome.up_by_s[140]);
        assert!(early < 80 && early > 60, "some of its sites are reached after 20 s: {early}");
        assert_eq!(late, 60, "all of its sites, and no others");
        assert_eq!(outcome.up_by_s.last(), Some(&80));
    }
}
