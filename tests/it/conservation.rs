//! Nothing that was acknowledged is lost, nothing is stored twice: under kills, outages, loss and reordering.

use std::time::{Duration, Instant};

use weir_tests::support::client::Version;
use weir_tests::support::oracle::{self, Verdict};
use weir_tests::support::publisher::{Report, Running, Sensor};
use weir_tests::support::random::{Random, number, seed};
use weir_tests::support::script::{self, MIXED_STREAMS};
use weir_tests::support::site::{LOSSY, Plan, Site};
use weir_tests::support::wrist;

use crate::binaries;

/// In-flight windows of the sensors.
const WINDOWS: [usize; 4] = [1, 20, 50, 200];
/// Time for all PUBACKs to come once all is well.
const ACK_LIMIT: Duration = Duration::from_secs(30);

/// A run under kills.
struct Chaos {
    site: Site,
    sensors: Vec<Running>,
    random: Random,
    edge_kills: u64,
    cloud_kills: u64,
    /// Stops of the box in good order, in between.
    stops: u64,
    outages: u64,
}

impl Chaos {
    fn new(mode: &str, buffer: &str, seed: u64) -> Chaos {
        let mut plan = Plan::new(mode, MIXED_STREAMS);
        plan.buffer = buffer.to_owned();
        Chaos::of(plan, seed, |site| {
            WINDOWS.iter().enumerate().map(|(client, &window)| sensor(site, client, window).start()).collect()
        })
    }

    fn of(mut plan: Plan, seed: u64, sensors: impl FnOnce(&Site) -> Vec<Running>) -> Chaos {
        (plan.link, plan.seed) = (LOSSY, seed);
        let site = Site::started(binaries(), plan);
        let sensors = sensors(&site);
        Chaos { site, sensors, random: Random::new(seed), edge_kills: 0, cloud_kills: 0, stops: 0, outages: 0 }
    }

    /// Kills until there were `kills`; whatever was only launched is up then.
    fn kill_all(&mut self, kills: u64) {
        while self.edge_kills + self.cloud_kills < kills {
            self.kill();
        }
        self.site.await_both();
    }

    /// Kills box or cloud at a random moment, and starts it again; now and then the link is cut meanwhile.
    fn kill(&mut self) {
        if self.random.chance(50) {
            self.await_progress();
        }
        if self.random.chance(40) {
            let is_down = self.random.chance(50);
            self.site.cut_link(is_down);
            self.outages += u64::from(is_down);
        }
        if self.random.chance(15) {
            self.site.await_both();
            self.site.stop_edge();
            self.site.launch_edge();
            self.stops += 1;
        }
        self.pass(0, 600);
        // Some kills hit both, or a process that has only just begun.
        let (edge, cloud) = match self.random.between(0, 10) {
            0..5 => (true, false),
            5..9 => (false, true),
            _ => (true, true),
        };
        if edge {
            self.site.kill_edge();
            self.edge_kills += 1;
        }
        if cloud {
            self.site.kill_cloud();
            self.cloud_kills += 1;
        }
        self.pass(0, 150);
        let waits = self.random.chance(70);
        match (edge, waits) {
            (true, true) => self.site.start_edge(),
            (true, false) => self.site.launch_edge(),
            _ => {}
        }
        match (cloud, waits) {
            (true, true) => self.site.start_cloud(),
            (true, false) => self.site.launch_cloud(),
            _ => {}
        }
    }

    /// Lets a random time pass: the moment of a kill is a time, not an event.
    fn pass(&mut self, from_ms: u64, to_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.random.between(from_ms, to_ms)));
    }

    /// Waits for PUBACKs, if any come: with the link down and memory full there may be none.
    fn await_progress(&self) {
        let acked = |sensors: &[Running]| sensors.iter().map(Running::acked).sum::<u64>();
        let (before, deadline) = (acked(&self.sensors), Instant::now() + Duration::from_secs(2));
        while acked(&self.sensors) < before + 50 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Heals everything, lets all arrive, and stops all.
    fn settle(&mut self) -> Vec<Report> {
        self.site.cut_link(false);
        self.await_progress();
        let deadline = Instant::now() + ACK_LIMIT;
        for sensor in &self.sensors {
            sensor.stop();
        }
        let left = || deadline.saturating_duration_since(Instant::now());
        let reports: Vec<Report> = self.sensors.drain(..).map(|sensor| sensor.finish(left())).collect();
        let unacked: usize = reports.iter().map(|report| report.unacked).sum();
        assert_eq!(unacked, 0, "all PUBACKs come once all is well");
        self.site.drain();
        self.site.stop_edge();
        self.site.stop_cloud();
        reports
    }

    /// Settles, and examines.
    fn end(mut self) -> Verdict {
        let reports = self.settle();
        let verdict = oracle::examine(&reports, &self.site.database(), Some(&self.site.buffer()));
        assert_eq!(verdict.voided, 0, "nothing is given up here, so nothing may be excused by it\n{verdict}");
        let connects: u64 = reports.iter().map(|report| report.connects).sum();
        println!(
            "{} kills of the box, {} of the cloud, {} stops, {} outages, {connects} connections\n{verdict}",
            self.edge_kills, self.cloud_kills, self.stops, self.outages
        );
        let limit = (self.edge_kills + self.stops) * WINDOWS.iter().sum::<usize>() as u64;
        assert!(verdict.resent <= limit, "resent {} of at most {limit}\n{verdict}", verdict.resent);
        assert!(verdict.acked > 500 && verdict.stored > 300, "the run was long enough to mean something\n{verdict}");
        verdict
    }
}

fn sensor(site: &Site, client: usize, window: usize) -> Sensor {
    let mut sensor = Sensor::new(site.mqtt(), &format!("sensor-{client}"), move |n| script::mixed(client, n));
    sensor.login.version = if client.is_multiple_of(2) { Version::V311 } else { Version::V5 };
    (sensor.window, sensor.per_s) = (window, 250);
    sensor
}

/// Runs with kills in a mode; the seed replays it as far as time does.
fn under_kills(mode: &str, buffer: &str, default_kills: u64, default_seed: u64) -> Verdict {
    let (kills, seed) = (number("WEIR_KILLS", default_kills), seed(default_seed));
    println!("WEIR_SEED={seed} WEIR_KILLS={kills} {mode}");
    let mut chaos = Chaos::new(mode, buffer, seed);
    chaos.kill_all(kills);
    chaos.end()
}

#[test]
fn in_disk_mode_nothing_is_lost_or_doubled_under_kills_outages_and_loss() {
    under_kills("disk", "", 15, 0xd15c).assert_conserved();
}

#[test]
fn in_through_mode_nothing_is_lost_or_doubled_under_kills_outages_and_loss() {
    under_kills("through", "", 15, 0x7470).assert_conserved();
}

#[test]
fn with_hardly_any_memory_nothing_is_lost_or_doubled_under_kills() {
    under_kills("through", "memory = \"40KiB\"\nblock_target = \"4KiB\"", 10, 0x4a2d).assert_conserved();
}

#[test]
fn in_memory_mode_nothing_is_doubled_or_missing_under_kills() {
    under_kills("memory", "", 6, 0x3e30).assert_sound();
}

#[test]
fn every_message_acknowledged_by_record_is_in_a_verdict_that_is_kept_under_kills() {
    let (kills, seed) = (number("WEIR_KILLS", 8), seed(0x3e7d));
    println!("WEIR_SEED={seed} WEIR_KILLS={kills} verdicts");
    let tables = wrist::model() + &wrist::stream("safe", "ack = \"record\"") + &wrist::stream("quick", "");
    let mut chaos = Chaos::of(Plan::new("through", &tables), seed, |site| {
        let sensor = |stream: &'static str, subject| {
            let rows = wrist::recording(subject);
            let mut sensor = Sensor::new(site.mqtt(), stream, move |n| wrist::message(stream, 0, &rows, n));
            sensor.per_s = 80;
            sensor.start()
        };
        vec![sensor("safe", 8), sensor("quick", 9)]
    });
    chaos.kill_all(kills);
    let reports = chaos.settle();
    let verdict = oracle::examine(&reports, &chaos.site.database(), Some(&chaos.site.buffer()));
    let windows = wrist::windows(&chaos.site.database(), "safe");
    // What the last window lacked never came: those messages are acknowledged on receipt in the end.
    let acked = reports[0].sent.iter().filter(|sent| sent.acked.is_some()).count();
    let uncovered: Vec<usize> = (0..acked).filter(|&n| !wrist::is_covered(&windows, n as u32)).collect();
    println!(
        "{} kills of the box, {} of the cloud, {} stops: {acked} acknowledged by record, {} windows\n{verdict}",
        chaos.edge_kills,
        chaos.cloud_kills,
        chaos.stops,
        windows.len()
    );
    assert!(uncovered.iter().all(|&n| n + wrist::MESSAGES_PER_WINDOW > acked), "in no verdict: {uncovered:?} of {acked}");
    assert!(acked > 100 && !wrist::windows(&chaos.site.database(), "quick").is_empty(), "it was long enough to mean something");
    assert_eq!(verdict.voided, 0, "nothing is given up here\n{verdict}");
    verdict.assert_conserved();
}
