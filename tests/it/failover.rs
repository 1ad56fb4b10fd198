//! Uplinks that fail: a box with two of them and its cloud in namespaces, real QUIC over emulated links.
//!
//! Each test breaks links in one way while sensors publish, and at its end the oracle accounts for every message. Meanwhile an
//! observer looks every [`LOOK`] at what happens outside the box, when each critical message is stored and which link
//! carries the data; and into the box's log for when it decides to go another way.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use weir::link::gate::UdpPolicy;
use weir::link::thread::{Control, LinkStats};
use weir_host::units::{Duration as Span, Ratio};
use weir_tests::support::netns::{self, Lab, LabPlan};
use weir_tests::support::oracle::{self, Verdict};
use weir_tests::support::publisher::{Report, Running};
use weir_tests::support::random::Random;
use weir_tests::support::script::{Fate, Message};
use weir_tests::support::{skip, wait_for};

use crate::binaries;

/// The uplink that is named first, and its spare.
const LINKS: [&str; 2] =
    ["[up]\nrate = '10Mbit/s'\ndelay = '20ms'\nqueue = '64KiB'\n", "[up]\nrate = '5Mbit/s'\ndelay = '40ms'\nqueue = '64KiB'\n"];
const STREAMS: &str = r#"
[[stream]]
name = "alarm"
topics = ["alarm"]
class = "critical"
[[stream]]
name = "plain"
topics = ["plain"]
"#;
/// Messages a second of each stream: 350 kbit/s in all.
const ALARMS_PER_S: u32 = 20;
const PLAIN_PER_S: u32 = 100;

/// From a cut of the link in use until the box chooses another. Source: max(1 s, 5 RTT). Not yet held: 1.1 to 1.3 s.
const NOTICED_GOAL: Duration = Duration::from_secs(1);
/// From a cut of the link in use until a critical message sent after it is stored: a second to notice, and half a second for
/// the rest; and what is asserted, for a busy machine.
const CUT_MOVED_GOAL: Duration = Duration::from_millis(1_500);
const CUT_MOVED_LIMIT: Duration = Duration::from_secs(2);
/// The same from the moment at which UDP is blocked or throttled, which is to be noticed within 3 s.
const UDP_MOVED_LIMIT: Duration = Duration::from_millis(3_500);
/// From the end of a cut of both links until a critical message sent after it is stored: an attempt to connect is repeated
/// soon; and what is asserted, as QUIC doubles its own wait within an attempt.
const BOTH_BACK_GOAL: Duration = Duration::from_secs(3);
const BOTH_BACK_LIMIT: Duration = Duration::from_secs(8);
/// Half of all critical messages, most of them sent while the link in use is slow: they go over the other.
const SLOW_P50_LIMIT: Duration = Duration::from_millis(500);
/// The slowest critical message while one link comes and goes every 2 s for half a minute: each cut is noticed as one is; and
/// what is asserted, for a busy machine.
const FLAP_CRITICAL_GOAL: Duration = Duration::from_millis(2_500);
const FLAP_CRITICAL_LIMIT: Duration = Duration::from_millis(4_000);
/// Changes of the way meanwhile: away from it, and at the most once back and away again.
const FLAP_CHANGES_MAX: usize = 3;
/// Changes of the way over one fault that lasts: away, and back when it is over.
const FAULT_CHANGES_MAX: usize = 2;
/// Changes of the way while both links fail: each may be tried again.
const BOTH_CHANGES_MAX: usize = 6;

/// How often the observer looks.
const LOOK: Duration = Duration::from_millis(50);
/// Over what time the link that carries the data is told.
const BUSY_WINDOW: Duration = Duration::from_millis(500);
/// Bytes that a link in use carries at least in that time; heartbeats of an idle one are a hundred.
const BUSY_BYTES: u64 = 4_000;
/// Time for all PUBACKs, and for all that is held, to arrive once all is well.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

fn alarm(n: u32) -> Message {
    message("alarm", "critical", n, 60)
}

fn plain(n: u32) -> Message {
    message("plain", "normal", n, 380)
}

/// A number, the stream, and text that does not compress.
fn message(stream: &'static str, lane: &'static str, n: u32, len: u64) -> Message {
    let mut random = Random::new(u64::from(n));
    let noise: String = (0..len).map(|_| char::from(random.between(0x21, 0x7f) as u8)).collect();
    Message {
        topic: stream.to_owned(),
        payload: format!("{n} {stream} {noise}").into_bytes(),
        qos: 1,
        stream,
        device: String::new(),
        lane,
        fate: Fate::Record,
    }
}

/// What the observer has seen so far.
#[derive(Debug, Default)]
struct Seen {
    /// When each critical message was first found in the database.
    stored: Vec<Option<Instant>>,
    /// The link that carries the data, and the one that carried more of it of late.
    busy: Option<usize>,
    rival: Option<usize>,
    switches: usize,
    /// When the box chose an uplink for critical messages, and which.
    routes: Vec<(Instant, String)>,
}

impl Seen {
    fn stored_at(&self, n: u64) -> Option<Instant> {
        self.stored.get(n as usize).copied().flatten()
    }

    /// The first time that a message from `n` on was stored.
    fn first_stored(&self, n: u64) -> Option<Instant> {
        self.stored.iter().skip(n as usize).flatten().min().copied()
    }

    fn store(&mut self, n: u64, now: Instant) {
        let at = n as usize;
        if self.stored.len() <= at {
            self.stored.resize(at + 1, None);
        }
        self.stored[at].get_or_insert(now);
    }

    fn carried(&mut self, bytes: &[u64]) {
        let most = bytes.iter().enumerate().max_by_key(|(_, bytes)| **bytes).filter(|(_, bytes)| **bytes >= BUSY_BYTES);
        let Some((link, _)) = most else { return };
        let is_rival = self.busy.is_some_and(|busy| busy != link);
        // Once is no switch: QUIC sends again what it lost, over a link that comes back, whoever uses it now.
        if is_rival && self.rival == Some(link) {
            self.switches += 1;
            self.busy = Some(link);
        }
        self.rival = is_rival.then_some(link);
        self.busy.get_or_insert(link);
    }

    fn chose(&mut self, log: &str, now: Instant) {
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let routes = lines.filter(|line| line["message"] == "route" && line["lane"] == "critical");
        let new = routes.skip(self.routes.len()).map(|line| (now, line["uplink"].as_str().unwrap_or_default().to_owned()));
        self.routes.extend(new.collect::<Vec<_>>());
    }
}

struct Observer {
    seen: Arc<Mutex<Seen>>,
    is_stopped: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Observer {
    fn start(lab: &Lab) -> Observer {
        let (seen, is_stopped) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let links: Vec<watch::Receiver<LinkStats>> = lab.links().iter().map(|link| link.watch()).collect();
        let (database, log) = (lab.database(), lab.edge_log());
        let (told, stop) = (seen.clone(), is_stopped.clone());
        let thread = std::thread::spawn(move || {
            let db = oracle::open(&database);
            let mut query = db.prepare("SELECT CAST(payload AS INTEGER) FROM samples WHERE stream = 'alarm'").expect("a query");
            let carried = || links.iter().map(|link| link.borrow().up.counts.delivered_bytes).collect::<Vec<u64>>();
            let (mut before, mut next) = (carried(), Instant::now() + BUSY_WINDOW);
            while !stop.load(Relaxed) {
                let stored = query.query_map([], |row| row.get(0)).and_then(Iterator::collect::<Result<Vec<u64>, _>>);
                let (now, stored) = (Instant::now(), stored.expect("the database can be read at any time"));
                let mut seen = told.lock().expect("nobody panics with it");
                stored.into_iter().for_each(|n| seen.store(n, now));
                seen.chose(&std::fs::read_to_string(&log).unwrap_or_default(), now);
                if now >= next {
                    let after = carried();
                    seen.carried(&after.iter().zip(&before).map(|(after, before)| after - before).collect::<Vec<u64>>());
                    (before, next) = (after, now + BUSY_WINDOW);
                }
                drop(seen);
                std::thread::sleep(LOOK);
            }
        });
        Observer { seen, is_stopped, thread }
    }

    fn look<T>(&self, at: impl FnOnce(&Seen) -> T) -> T {
        at(&self.seen.lock().expect("nobody panics with it"))
    }

    fn stop(self) -> Seen {
        self.is_stopped.store(true, Relaxed);
        self.thread.join().expect("the observer does not panic");
        std::mem::take(&mut *self.seen.lock().expect("nobody panics with it"))
    }
}

/// A lab with sensors that publish.
struct Run {
    name: &'static str,
    lab: Lab,
    alarms: Running,
    plains: Running,
    observer: Observer,
    /// Choices that the box had made when the test began.
    routes_before: usize,
}

impl Run {
    /// Everything runs, and the first link carries data; `None` where there can be no namespaces.
    fn begin(name: &'static str) -> Option<Run> {
        if let Some(why) = netns::unavailable() {
            skip(&format!("failover, {name}: {why}"));
            return None;
        }
        let plan = LabPlan { links: LINKS.to_vec(), tables: STREAMS.to_owned(), has_fallbacks: false, seed: 1 };
        let lab = Lab::started(binaries(), &plan);
        let observer = Observer::start(&lab);
        let alarms = lab.sensor("alarms", alarm, |sensor| (sensor.per_s, sensor.window) = (ALARMS_PER_S, 1_000));
        let plains = lab.sensor("plains", plain, |sensor| (sensor.per_s, sensor.window) = (PLAIN_PER_S, 5_000));
        wait_for("data on a link", SETTLE_LIMIT, || observer.look(|seen| seen.busy));
        let routes_before = observer.look(|seen| seen.routes.len());
        Some(Run { name, lab, alarms, plains, observer, routes_before })
    }

    /// Lets the fault last: a time, not an event.
    fn pass(&self, seconds: u64) {
        std::thread::sleep(Duration::from_secs(seconds));
    }

    /// The link that carries the data.
    fn busy(&self) -> usize {
        self.observer.look(|seen| seen.busy).expect("there was data before the test began")
    }

    /// Takes a link down or gives it back; returns once that is done.
    fn cut(&self, link: usize, is_down: bool) {
        let link = &self.lab.links()[link];
        link.force_down(is_down);
        wait_for("the link to obey", SETTLE_LIMIT, || (link.stats().control.is_down == is_down).then_some(()));
    }

    /// Changes what a link is like.
    fn spoil(&self, link: usize, change: impl FnOnce(&mut Control)) {
        self.lab.links()[link].control(change);
    }

    /// From then until the box chose another way; `None` if it did not.
    fn noticed(&self, since: Instant) -> Option<Duration> {
        let routes = |seen: &Seen| seen.routes.iter().map(|(at, _)| *at).find(|at| *at > since);
        self.observer.look(routes).map(|at| at - since)
    }

    /// From now until a critical message is stored that is sent from now on.
    fn await_critical(&self) -> Duration {
        // The next one may be under way already.
        let (now, first) = (Instant::now(), self.alarms.sent() + 1);
        let stored = || self.observer.look(|seen| seen.first_stored(first));
        wait_for("a critical message to be stored", SETTLE_LIMIT, stored) - now
    }

    /// Heals everything, lets all arrive, and accounts for it.
    fn end(mut self) -> Outcome {
        for link in self.lab.links() {
            link.control(|control| *control = Control::default());
        }
        let reports = [self.alarms.finish(SETTLE_LIMIT), self.plains.finish(SETTLE_LIMIT)];
        let status = self.lab.edge_status().unwrap_or_default();
        let downs = [0, 1].map(|at| status["uplinks"][at]["downs"].as_u64().unwrap_or_default());
        let bytes = [0, 1].map(|at| self.lab.links()[at].stats().up.counts.delivered_bytes);
        self.lab.drain_and_stop(SETTLE_LIMIT);
        let seen = self.observer.stop();
        let verdict = oracle::examine(&reports, &self.lab.database(), Some(&self.lab.buffer()));
        let latency = Latency::of(&reports[0], &seen);
        let chosen: Vec<String> = seen.routes.into_iter().map(|(_, uplink)| uplink).collect();
        let changes = seen.switches.max(chosen.len() - self.routes_before);
        let outcome = Outcome { latency, switches: seen.switches, chosen, changes, bytes, downs, verdict };
        println!("{}: {outcome}", self.name);
        outcome.verdict.assert_conserved();
        let Verdict { published, stored, voided, .. } = outcome.verdict;
        assert_eq!((published, voided), (stored, 0), "everything is stored in the end\n{}", outcome.verdict);
        outcome
    }
}

/// From the first sending of critical messages until they were seen in the database.
#[derive(Debug)]
struct Latency {
    p50: Duration,
    p99: Duration,
    max: Duration,
}

impl Latency {
    fn of(report: &Report, seen: &Seen) -> Latency {
        let late = |(n, sent): (usize, &weir_tests::support::publisher::Sent)| {
            Some(seen.stored_at(n as u64)?.saturating_duration_since(sent.first))
        };
        let mut late: Vec<Duration> = report.sent.iter().enumerate().filter_map(late).collect();
        late.sort_unstable();
        let at = |percent: usize| late.get(late.len() * percent / 100).or(late.last()).copied().unwrap_or_default();
        Latency { p50: at(50), p99: at(99), max: at(100) }
    }
}

struct Outcome {
    latency: Latency,
    /// Changes of the link that carried the data.
    switches: usize,
    /// Uplinks that the box chose for critical messages, one after the other.
    chosen: Vec<String>,
    /// The more of the two since the test began.
    changes: usize,
    /// From the box, over each link.
    bytes: [u64; 2],
    /// Sessions that ended, of each uplink.
    downs: [u64; 2],
    verdict: Verdict,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { latency: Latency { p50, p99, max }, switches, chosen, bytes, downs, verdict, .. } = self;
        let ms = |time: &Duration| time.as_millis();
        write!(
            f,
            "{switches} switches, chosen {chosen:?}, {downs:?} sessions ended, {bytes:?} bytes sent; critical stored after {} ms (p50), {} ms (p99), \
             {} ms (max)\n{verdict}",
            ms(p50),
            ms(p99),
            ms(max)
        )
    }
}

#[test]
fn a_cut_of_the_link_in_use_moves_everything_to_the_other() {
    let Some(run) = Run::begin("cut") else { return };
    run.pass(2);
    let busy = run.busy();
    run.cut(busy, true);
    let cut = Instant::now();
    let moved = run.await_critical();
    let noticed = run.noticed(cut);
    println!("cut: noticed after {noticed:?}, to hold: {NOTICED_GOAL:?}; stored after {moved:?}, to hold: {CUT_MOVED_GOAL:?}");
    // Until its session ends.
    run.lab.wait_uplink(busy, false, SETTLE_LIMIT);
    run.cut(busy, false);
    run.lab.wait_uplink(busy, true, SETTLE_LIMIT);
    run.pass(2);
    let outcome = run.end();
    assert!(moved <= CUT_MOVED_LIMIT, "{moved:?}");
    assert!(outcome.bytes.iter().all(|&bytes| bytes > 50_000), "both links carried data: {outcome}");
    assert!((1..=FAULT_CHANGES_MAX).contains(&outcome.changes), "{outcome}");
}

#[test]
fn when_both_links_are_cut_nothing_is_lost_and_all_arrives_afterwards() {
    let Some(run) = Run::begin("both cut") else { return };
    run.cut(0, true);
    run.cut(1, true);
    run.pass(7);
    run.cut(1, false);
    run.cut(0, false);
    let back = run.await_critical();
    println!("both cut: a critical message was stored {back:?} after their return; to hold: {BOTH_BACK_GOAL:?}");
    let outcome = run.end();
    assert!(back <= BOTH_BACK_LIMIT, "{back:?}");
    assert!(outcome.latency.max >= Duration::from_secs(6), "there was no way for them meanwhile: {outcome}");
    assert!(outcome.changes <= BOTH_CHANGES_MAX, "{outcome}");
}

#[test]
fn a_link_that_slows_to_a_fiftieth_loses_nothing() {
    let Some(run) = Run::begin("slow") else { return };
    let busy = run.busy();
    run.spoil(busy, |control| control.rate_scale = Ratio::from_percent(2));
    let slowed = Instant::now();
    run.pass(8);
    let noticed = run.noticed(slowed);
    let outcome = run.end();
    let p50 = outcome.latency.p50;
    println!(
        "slow: noticed after {noticed:?}, half of the critical messages were stored within {p50:?}, to hold: {SLOW_P50_LIMIT:?}"
    );
    assert!(p50 <= SLOW_P50_LIMIT && outcome.changes <= FAULT_CHANGES_MAX, "{outcome}");
}

/// A network on the way of the link in use begins to dislike UDP.
fn dislike_udp(name: &'static str, policy: UdpPolicy, seconds: u64) {
    let Some(run) = Run::begin(name) else { return };
    let busy = run.busy();
    run.spoil(busy, |control| control.udp = policy);
    wait_for("the link to obey", SETTLE_LIMIT, || (run.lab.links()[busy].stats().control.udp == policy).then_some(()));
    let disliked = Instant::now();
    let moved = run.await_critical();
    let noticed = run.noticed(disliked);
    println!("{name}: noticed after {noticed:?}, a critical message was stored after {moved:?}");
    run.pass(seconds);
    let refused = run.lab.links()[busy].stats().refused_packets;
    let outcome = run.end();
    assert!(refused > 0 && moved <= UDP_MOVED_LIMIT, "{refused} refused, moved after {moved:?}; {outcome}");
    assert!((1..=FAULT_CHANGES_MAX).contains(&outcome.changes), "{outcome}");
}

#[test]
fn a_network_that_begins_to_block_udp_moves_everything_to_the_other_link() {
    dislike_udp("UDP blocked", UdpPolicy::Blocked, 3);
}

/// Its session may come up again and again, because its handshake passes.
#[test]
fn a_network_that_lets_quic_begin_and_no_data_pass_moves_everything_to_the_other_link() {
    dislike_udp("UDP throttled", UdpPolicy::Throttled, 12);
}

#[test]
fn a_link_that_loses_one_packet_in_twenty_loses_no_message() {
    let Some(run) = Run::begin("lossy") else { return };
    let busy = run.busy();
    run.spoil(busy, |control| control.loss = Some(Ratio::from_percent(5)));
    run.pass(8);
    let lost = run.lab.links()[busy].stats().up.counts.lost_packets;
    let outcome = run.end();
    assert!(lost > 5 && outcome.changes <= FAULT_CHANGES_MAX, "{lost} packets lost; {outcome}");
}

#[test]
fn when_both_links_are_bad_nothing_is_lost() {
    let Some(run) = Run::begin("both bad") else { return };
    for (link, delay_ms) in [(0, 300), (1, 500)] {
        run.spoil(link, |control| {
            (control.loss, control.delay) = (Some(Ratio::from_percent(10)), Some(Span::from_millis(delay_ms)));
            control.rate_scale = Ratio::from_percent(5);
        });
    }
    run.pass(10);
    let outcome = run.end();
    // Both may carry data at a time, so which of them carries more says nothing.
    let chosen = outcome.chosen.len();
    assert!(chosen <= BOTH_CHANGES_MAX, "{outcome}");
}

#[test]
fn a_link_that_comes_and_goes_causes_no_storm_of_changes() {
    let Some(run) = Run::begin("flapping") else { return };
    let busy = run.busy();
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        run.cut(busy, true);
        run.pass(2);
        run.cut(busy, false);
        run.pass(2);
    }
    let outcome = run.end();
    let (changes, slowest) = (outcome.changes, outcome.latency.max);
    println!("flapping: {changes} changes; slowest critical message {slowest:?}, to hold: {FLAP_CRITICAL_GOAL:?}");
    assert!(changes <= FLAP_CHANGES_MAX && slowest <= FLAP_CRITICAL_LIMIT, "{outcome}");
}
