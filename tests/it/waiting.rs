//! What waits on the box: it grows too old, and it must not hold up the heartbeats.

use std::time::Duration;

use weir_tests::support::oracle;
use weir_tests::support::publisher::Sensor;
use weir_tests::support::random::Random;
use weir_tests::support::script::{Fate, Message};
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::wait_for;

use crate::binaries;

/// More than the shortest TTL that a lane may have.
const LIMIT: Duration = Duration::from_secs(100);
const STREAM: &str = "[[stream]]\nname = \"plain\"\ntopics = [\"plain\"]\nclass = \"bulk\"\n";
/// A queue of a third of a second.
const NARROW: &str = "[up]\nrate = '400kbit/s'\ndelay = '20ms'\nqueue = '16KiB'\n";

/// 400 bytes that do not compress.
fn message(n: u32) -> Message {
    let mut random = Random::new(u64::from(n));
    let noise: String = (0..390).map(|_| char::from(random.between(0x21, 0x7f) as u8)).collect();
    Message {
        topic: "plain".to_owned(),
        payload: format!("{n} {noise}").into_bytes(),
        qos: 1,
        stream: "plain",
        device: String::new(),
        lane: "bulk",
        fate: Fate::Record,
    }
}

fn sensor(site: &Site, count: u32) -> Sensor {
    let mut sensor = Sensor::new(site.mqtt(), "sensor", message);
    (sensor.count_max, sensor.window) = (count, 500);
    sensor
}

#[test]
fn what_outlives_its_ttl_is_given_up_with_that_reason_and_nothing_is_missing() {
    let mut plan = Plan::new("disk", STREAM);
    plan.tables = plan.tables.replace("durability = \"disk\"", "durability = \"disk\"\nttl = \"1m\"");
    let mut site = Site::started(binaries(), plan);
    site.kill_cloud();
    let report = sensor(&site, 200).start().wait(LIMIT);
    assert_eq!(report.unacked, 0, "the disk has them");
    let bulk = |site: &Site, key: &str| site.edge_status()?["lanes"].as_array()?.last()?[key].as_u64();
    wait_for("all to expire", LIMIT, || (bulk(&site, "expired")? == 200 && bulk(&site, "records")? == 0).then_some(()));
    let log = site.edge_log();
    let said = |line: &&str| line.contains("ERROR") && line.contains("records are being lost") && line.contains("expired");
    assert_eq!(log.lines().filter(said).count(), 1, "{log}");
    site.start_cloud();
    wait_for("the voids to be told", LIMIT, || (site.edge_status()?["voids"].as_u64()? == 0).then_some(()));
    site.stop_edge();
    site.stop_cloud();
    let verdict = oracle::examine(&[report], &site.database(), Some(&site.buffer()));
    assert_eq!((verdict.stored, verdict.absent, verdict.voided), (0, 200, 200), "{verdict}");
    verdict.assert_conserved();
    let reasons = oracle::texts(&oracle::open(&site.database()), "SELECT DISTINCT reason FROM voids");
    assert_eq!(reasons, ["expired"]);
}

#[test]
fn heartbeats_do_not_queue_behind_a_backlog_under_cubic() {
    drain_a_backlog("cubic");
}

#[test]
fn heartbeats_do_not_queue_behind_a_backlog_under_bdp() {
    drain_a_backlog("bdp");
}

fn drain_a_backlog(congestion: &str) {
    let mut plan = Plan::new("disk", STREAM);
    (plan.link, plan.uplink) = (NARROW, format!("congestion = \"{congestion}\""));
    let mut site = Site::started(binaries(), plan);
    site.wait_uplink(true);
    // Sixteen seconds of the link: a heartbeat behind all that would end the session, which is silent for 1.5 s at most.
    let running = sensor(&site, 2_000).start();
    let report = running.wait(LIMIT);
    let mut slowest_us = 0;
    wait_for("the backlog to drain", LIMIT, || {
        let status = site.edge_status()?;
        slowest_us = slowest_us.max(status["uplinks"][0]["heartbeat_rtt_us"].as_u64()?);
        (site.edge_holds()? == 0).then_some(())
    });
    let uplink = &site.edge_status().expect("the box answers")["uplinks"][0];
    println!("{congestion}: slowest heartbeat {} ms", slowest_us / 1_000);
    assert_eq!((uplink["ups"].as_u64(), uplink["downs"].as_u64()), (Some(1), Some(0)), "{uplink}");
    assert!((1..1_500_000).contains(&slowest_us), "{slowest_us} us");
    site.stop_edge();
    site.stop_cloud();
    oracle::examine(&[report], &site.database(), Some(&site.buffer())).assert_conserved();
}
