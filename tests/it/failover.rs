//! Uplinks that fail: a box with two of them and its cloud in namespaces, real QUIC over emulated links.
//!
//! Each test breaks links in one way while sensors publish, and at its end the oracle accounts for every message. What is
//! measured meanwhile comes from the links' counters and the cloud's database alone: when each critical message was stored,
//! and which link carried the data. Times are those of an observer that looks every [`LOOK`].

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

/// From a cut of the link in use until a critical message sent after it is stored. To hold: detection within
/// max(1 s, 5 RTT) and half a second for the rest.
const CUT_MOVED_GOAL: Duration = Duration::from_millis(1_500);
/// The same from the moment at which UDP is blocked or throttled. To hold: detection within 3 s.
const UDP_MOVED_GOAL: Duration = Duration::from_millis(3_500);
/// Both, with a session that ends after 5 s of silence and nothing else that notices.
const MOVED_LIMIT: Duration = Duration::from_secs(9);
/// From the end of a cut of both links until a critical message sent after it is stored. To hold: an attempt to connect is
/// repeated soon.
const BOTH_BACK_GOAL: Duration = Duration::from_secs(3);
/// The same with attempts that last 10 s each.
const BOTH_BACK_LIMIT: Duration = Duration::from_secs(30);
/// Half of all critical messages, most of them sent while the link in use is slow. To hold: they go over the other.
const SLOW_P50_GOAL: Duration = Duration::from_millis(500);
/// The same behind a queue of 64 KiB at 200 kbit/s.
const SLOW_P50_LIMIT: Duration = Duration::from_secs(8);
/// The slowest critical message while one link comes and goes every 2 s for half a minute. To hold: each cut is noticed
/// as one cut is.
const FLAP_CRITICAL_GOAL: Duration = Duration::from_millis(2_500);
/// The same with a connection that sends ever more rarely into a link that is down whenever it does.
const FLAP_CRITICAL_LIMIT: Duration = Duration::from_secs(45);
/// Changes of the link that carries the data meanwhile. To hold: away from it, and at the most once back and away again.
const FLAP_SWITCHES_GOAL: usize = 3;
/// The same without a hold-down: one change for each.
const FLAP_SWITCHES_LIMIT: usize = 15;
/// Changes over one fault that lasts: away, and back when it is over.
const FAULT_SWITCHES_LIMIT: usize = 2;

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
    /// The link that carries the data.
    busy: Option<usize>,
    switches: usize,
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
        if let Some((link, _)) = most {
            self.switches += usize::from(self.busy.is_some_and(|before| before != link));
            self.busy = Some(link);
        }
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
        let database = lab.database();
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
}

impl Run {
    /// Everything runs, and the first link carries data; `None` where there can be no namespaces.
    fn begin(name: &'static str) -> Option<Run> {
        if let Some(why) = netns::unavailable() {
            skip(&format!("failover, {name}: {why}"));
            return None;
        }
        let lab = Lab::started(binaries(), &LabPlan { links: LINKS.to_vec(), tables: STREAMS.to_owned(), seed: 1 });
        let observer = Observer::start(&lab);
        let alarms = lab.sensor("alarms", alarm, |sensor| (sensor.per_s, sensor.window) = (ALARMS_PER_S, 1_000));
        let plains = lab.sensor("plains", plain, |sensor| (sensor.per_s, sensor.window) = (PLAIN_PER_S, 5_000));
        let run = Run { name, lab, alarms, plains, observer };
        wait_for("data on a link", SETTLE_LIMIT, || run.observer.look(|seen| seen.busy));
        Some(run)
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

    /// From now until a critical message is stored that is sent from now on.
    fn await_critical(&self) -> Duration {
        // The next one may be under way already.
        let (now, first) = (Instant::now(), self.alarms.sent() + 1);
        let stored =
            wait_for("a critical message to be stored", SETTLE_LIMIT, || self.observer.look(|seen| seen.first_stored(first)));
        stored - now
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
        let outcome = Outcome { latency: Latency::of(&reports[0], &seen), switches: seen.switches, bytes, downs, verdict };
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
    switches: usize,
    /// From the box, over each link.
    bytes: [u64; 2],
    /// Sessions that ended, of each uplink.
    downs: [u64; 2],
    verdict: Verdict,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { latency: Latency { p50, p99, max }, switches, bytes, downs, verdict } = self;
        let ms = |time: &Duration| time.as_millis();
        write!(
            f,
            "{switches} switches, {downs:?} sessions ended, {bytes:?} bytes sent; critical stored after {} ms (p50), {} ms (p99), \
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
    let moved = run.await_critical();
    println!("cut: a critical message was stored after {moved:?}; to hold: {CUT_MOVED_GOAL:?}");
    run.pass(3);
    run.cut(busy, false);
    run.lab.wait_uplink(busy, true, SETTLE_LIMIT);
    run.pass(2);
    let outcome = run.end();
    assert!(moved <= MOVED_LIMIT, "{moved:?}");
    assert!(outcome.bytes.iter().all(|&bytes| bytes > 50_000), "both links carried data: {outcome}");
    assert!((1..=FAULT_SWITCHES_LIMIT).contains(&outcome.switches), "{outcome}");
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
}

#[test]
fn a_link_that_slows_to_a_fiftieth_loses_nothing() {
    let Some(run) = Run::begin("slow") else { return };
    let busy = run.busy();
    run.spoil(busy, |control| control.rate_scale = Ratio::from_percent(2));
    run.pass(8);
    let outcome = run.end();
    let p50 = outcome.latency.p50;
    println!("slow: half of the critical messages were stored within {p50:?}; to hold: {SLOW_P50_GOAL:?}");
    assert!(p50 <= SLOW_P50_LIMIT && outcome.switches <= FAULT_SWITCHES_LIMIT, "{outcome}");
}

/// A network on the way of the link in use begins to dislike UDP.
fn dislike_udp(name: &'static str, policy: UdpPolicy, seconds: u64) {
    let Some(run) = Run::begin(name) else { return };
    let busy = run.busy();
    run.spoil(busy, |control| control.udp = policy);
    wait_for("the link to obey", SETTLE_LIMIT, || (run.lab.links()[busy].stats().control.udp == policy).then_some(()));
    let moved = run.await_critical();
    println!("{name}: a critical message was stored after {moved:?}; to hold: {UDP_MOVED_GOAL:?}");
    run.pass(seconds);
    let refused = run.lab.links()[busy].stats().refused_packets;
    let outcome = run.end();
    assert!(refused > 0 && moved <= MOVED_LIMIT && outcome.switches <= FLAP_SWITCHES_LIMIT, "{refused} refused; {outcome}");
}

#[test]
fn a_network_that_begins_to_block_udp_moves_everything_to_the_other_link() {
    dislike_udp("UDP blocked", UdpPolicy::Blocked, 3);
}

/// The session comes up again and again, because its handshake passes.
#[test]
fn a_network_that_lets_quic_begin_and_no_data_pass_loses_nothing() {
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
    assert!(lost > 5 && outcome.switches <= FAULT_SWITCHES_LIMIT, "{lost} packets lost; {outcome}");
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
    assert!(outcome.switches <= FLAP_SWITCHES_LIMIT, "{outcome}");
}

#[test]
fn a_link_that_comes_and_goes_causes_no_storm_of_switches() {
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
    let (switches, slowest) = (outcome.switches, outcome.latency.max);
    println!(
        "flapping: {switches} switches, to hold: {FLAP_SWITCHES_GOAL}; slowest critical message {slowest:?}, to hold: \
         {FLAP_CRITICAL_GOAL:?}"
    );
    assert!(switches <= FLAP_SWITCHES_LIMIT && slowest <= FLAP_CRITICAL_LIMIT, "{outcome}");
}
