//! A link that cannot carry all: what is worth least is thinned, and every message is accounted for.

use std::time::Duration;

use weir_tests::support::oracle;
use weir_tests::support::publisher::{Report, Running, Sensor};
use weir_tests::support::random::Random;
use weir_tests::support::script::{Fate, Message};
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::wait_for;

use crate::binaries;

const LIMIT: Duration = Duration::from_secs(60);
/// A quarter of what the sensors send.
const NARROW: &str = "[up]\nrate = '400kbit/s'\ndelay = '20ms'\nqueue = '64KiB'\n";

/// 400 bytes that do not compress, with a number in them.
fn message(stream: &'static str, lane: &'static str, n: u32) -> Message {
    let mut random = Random::new(u64::from(n));
    let noise: String = (0..370).map(|_| char::from(random.between(0x23, 0x5b) as u8)).collect();
    Message {
        topic: format!("{stream}/{}", n % 3),
        payload: format!("{{\"n\":{n},\"of\":\"{stream}\",\"x\":\"{noise}\"}}").into_bytes(),
        qos: 1,
        stream,
        device: (n % 3).to_string(),
        lane,
        fate: Fate::Record,
    }
}

/// A stream of JSON with one number, and more keys.
fn stream(name: &str, class: &str, keys: &str) -> String {
    format!(
        "[[stream]]\nname = \"{name}\"\ntopics = [\"{name}/+\"]\nclass = \"{class}\"\n\
         payload = {{ format = \"json\", fields = [\"/n\"] }}\n{keys}\n"
    )
}

/// Sensors of three streams, one of them with a value, over a narrow link.
fn narrow() -> (Site, Vec<Running>) {
    let value = "value = { weight = 3.0, ladder = \"telemetry\", floor = \"aggregate\" }";
    let streams = stream("alarm", "critical", "") + &stream("plain", "high", "") + &stream("dense", "normal", value);
    let mut plan = Plan::new("disk", &streams);
    (plan.link, plan.uplink) = (NARROW, "rate = \"400kbit/s\"".to_owned());
    let site = Site::started(binaries(), plan);
    let sensor = |stream: &'static str, lane, per_s| {
        let mut sensor = Sensor::new(site.mqtt(), stream, move |n| message(stream, lane, n));
        (sensor.per_s, sensor.window) = (per_s, 500);
        sensor.start()
    };
    let sensors = vec![sensor("alarm", "critical", 4), sensor("plain", "high", 10), sensor("dense", "normal", 480)];
    (site, sensors)
}

/// Records thinned so far, as the box counts them; none while it does not answer.
fn thinned(site: &Site) -> Option<u64> {
    let lanes = site.edge_status()?["lanes"].as_array()?.clone();
    lanes.iter().map(|lane| lane["thinned"].as_u64()).sum()
}

/// What the box counts of its lane `normal`.
fn of_normal(site: &Site, key: &str) -> Option<u64> {
    site.edge_status()?["lanes"].as_array()?.iter().find(|lane| lane["class"] == "normal")?[key].as_u64()
}

/// What the cloud says was left out, and aggregates in the place of messages.
fn left_out(site: &Site) -> (u64, u64) {
    let db = oracle::open(&site.database());
    let left_out = oracle::count(&db, "SELECT coalesce(sum(left_out), 0) FROM thinned");
    (left_out, oracle::count(&db, "SELECT count(*) FROM aggregates WHERE channel = 0 AND stream = 'dense'"))
}

#[test]
fn a_link_that_cannot_carry_all_gets_what_is_worth_most_and_nothing_is_unaccounted_for() {
    let (mut site, sensors) = narrow();
    wait_for("records to be thinned", LIMIT, || thinned(&site).filter(|&count| count > 1_000));
    let status = site.edge_status().expect("the box answers");
    println!("{} because {}", status["streams"][2]["plan"], status["streams"][2]["reason"]);
    assert!(status["plan"]["price"].as_f64().is_some_and(|price| price >= 0.0), "{}", status["plan"]);
    let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.finish(LIMIT)).collect();
    site.drain();
    site.stop_edge();
    site.stop_cloud();
    let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
    let (left_out, folded) = left_out(&site);
    println!("left out {left_out}, aggregates {folded}\n{verdict}");
    // An aggregate stands in the place of one of the messages that it is made of.
    assert_eq!(verdict.absent, left_out + folded, "{verdict}");
    let db = oracle::open(&site.database());
    for (report, stream) in reports.iter().zip(["alarm", "plain"]) {
        let stored = oracle::count(&db, &format!("SELECT count(*) FROM samples WHERE stream = '{stream}'"));
        assert_eq!(report.sent.len() as u64, stored, "{stream} has no value and is not thinned");
    }
    assert_eq!(verdict.voided, 0, "{verdict}");
    verdict.assert_sound();
}

#[test]
fn kills_of_box_and_cloud_lose_nothing_that_was_not_left_out() {
    let (mut site, sensors) = narrow();
    for round in 0..4 {
        wait_for("records to be thinned", LIMIT, || thinned(&site).filter(|&count| count > 300));
        if round % 2 == 0 {
            site.kill_edge();
            site.start_edge();
        } else {
            site.kill_cloud();
            site.start_cloud();
        }
    }
    let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.finish(LIMIT)).collect();
    site.drain();
    site.stop_edge();
    site.stop_cloud();
    let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
    let (left_out, folded) = left_out(&site);
    println!("left out {left_out}, aggregates {folded}\n{verdict}");
    // What was sent again after a kill may have been left out once and stored once.
    assert!(verdict.absent <= left_out + folded && left_out > 600, "{verdict}");
    assert_eq!(verdict.voided, 0, "{verdict}");
    verdict.assert_sound();
}

#[test]
fn a_box_that_is_cut_off_keeps_all_of_its_time_more_coarsely_and_loses_nothing_over_kills() {
    let mut plan = Plan::new("disk", &stream("dense", "normal", ""));
    plan.tables = plan.tables.replace("[lane.normal]\n", "[lane.normal]\ncap = \"512KiB\"\n");
    plan.buffer = "block_target = \"16KiB\"".to_owned();
    let mut site = Site::started(binaries(), plan);
    let mut sensor = Sensor::new(site.mqtt(), "dense", move |n| message("dense", "normal", n));
    (sensor.per_s, sensor.window) = (250, 500);
    let sensor = sensor.start();
    site.kill_cloud();
    for kills in 0..3 {
        wait_for("blocks to be thinned where they lie", LIMIT, || {
            of_normal(&site, "thinned_blocks").filter(|&count| count > 20 + 10 * kills)
        });
        assert!(of_normal(&site, "bytes").is_some_and(|bytes| bytes <= 512 << 10), "the cap holds");
        assert_eq!(of_normal(&site, "evicted"), Some(0));
        site.kill_edge();
        site.start_edge();
    }
    let report = sensor.finish(LIMIT);
    site.start_cloud();
    site.drain();
    site.stop_edge();
    site.stop_cloud();
    let sent = report.sent.len() as u64;
    let verdict = oracle::examine(&[report], &site.database(), Some(&site.buffer()));
    let (left_out, folded) = left_out(&site);
    println!("sent {sent}, left out {left_out}, aggregates {folded}\n{verdict}");
    // What was sent again after a kill may have been left out once and stored once.
    assert!(verdict.absent <= left_out + folded, "{verdict}");
    assert!(left_out > sent / 4 && verdict.voided == 0, "{verdict}");
    verdict.assert_sound();
}
