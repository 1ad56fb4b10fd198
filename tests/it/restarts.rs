//! What restarts and absences cost: nothing, or what the design says.

use std::time::{Duration, Instant};

use weir_tests::support::client::Version;
use weir_tests::support::oracle::{self, Fold};
use weir_tests::support::publisher::{Report, Running, Sensor};
use weir_tests::support::random::{Random, seed};
use weir_tests::support::script::{self, FOLDED_STREAMS, MIXED_STREAMS, Message};
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::wait_for;

use crate::binaries;

/// Time for all PUBACKs to come.
const ACK_LIMIT: Duration = Duration::from_secs(30);

fn mixed_sensor(site: &Site, client: usize, count_max: u32) -> Sensor {
    let mut sensor = Sensor::new(site.mqtt(), &format!("sensor-{client}"), move |n| script::mixed(client, n));
    (sensor.window, sensor.count_max) = (100, count_max);
    sensor
}

fn finish(sensors: Vec<Running>) -> Vec<Report> {
    let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.finish(ACK_LIMIT)).collect();
    assert_eq!(reports.iter().map(|report| report.unacked).sum::<usize>(), 0, "all PUBACKs come");
    reports
}

fn await_acks(sensors: &[Running], more: u64) {
    let acked = || sensors.iter().map(Running::acked).sum::<u64>();
    let goal = acked() + more;
    wait_for("PUBACKs", ACK_LIMIT, || (acked() >= goal).then_some(()));
}

#[test]
fn a_backlog_survives_a_kill_and_is_delivered_after_the_restart() {
    for mode in ["disk", "through"] {
        let mut site = Site::new(binaries(), Plan::new(mode, MIXED_STREAMS));
        site.cut_link(true);
        site.start_cloud();
        site.start_edge();
        let sensors = (0..2).map(|client| mixed_sensor(&site, client, 1_000).start()).collect::<Vec<_>>();
        let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.wait(ACK_LIMIT)).collect();
        site.kill_edge();
        // Everything is on the box's disk, and nowhere else.
        let held = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
        held.assert_conserved();
        assert_eq!((held.stored, held.published), (0, 2_000), "{held}");
        assert!(held.buffered > 1_000, "{held}");
        site.start_edge();
        site.cut_link(false);
        site.drain();
        site.stop_edge();
        let delivered = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
        delivered.assert_conserved();
        assert_eq!((delivered.stored, delivered.resent, delivered.buffered), (held.buffered, 0, 0), "{delivered}");
    }
}

#[test]
fn a_backlog_of_many_small_blocks_crosses_a_slow_link() {
    let mut plan = Plan::new("disk", MIXED_STREAMS);
    plan.link = "[up]\nrate = '400kbit/s'\ndelay = '100ms'\nqueue = '64KiB'\n";
    let mut site = Site::new(binaries(), plan);
    site.cut_link(true);
    site.start_cloud();
    site.start_edge();
    // Senders that wait for each PUBACK make a commit of each message, and a kill leaves each commit a block of its own.
    let topics = [
        ("alarm", "alarms", "critical"),
        ("state", "states", "high"),
        ("value", "values", "normal"),
        ("dump", "dumps", "bulk"),
    ];
    let sensors = topics.map(|(topic, stream, lane)| {
        let script = move |n| Message {
            topic: format!("site/0/{topic}"),
            payload: format!("{topic}-{n}:{:016x}", Random::new(u64::from(n)).next_u64()).into_bytes(),
            qos: 1,
            stream,
            device: "0".to_owned(),
            lane,
            fate: script::Fate::Record,
        };
        let mut sensor = Sensor::new(site.mqtt(), stream, script);
        (sensor.window, sensor.count_max) = (1, 200);
        sensor.start()
    });
    let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.wait(ACK_LIMIT)).collect();
    site.kill_edge();
    site.start_edge();
    site.cut_link(false);
    site.drain();
    site.stop_edge();
    let sent: u64 =
        site.edge_log().lines().filter_map(|line| line.split("blocks=").nth(1)?.split(' ').next()?.parse::<u64>().ok()).sum();
    let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
    println!("{sent} blocks: {verdict}");
    verdict.assert_conserved();
    assert_eq!((verdict.stored, verdict.resent), (800, 0), "{verdict}");
    assert!(sent > 400, "the blocks were small: {sent}");
}

#[test]
fn a_cloud_that_is_killed_stopped_or_away_costs_nothing() {
    let mut site = Site::started(binaries(), Plan::new("through", MIXED_STREAMS));
    let sensors: Vec<Running> = (0..2)
        .map(|client| {
            let mut sensor = mixed_sensor(&site, client, u32::MAX);
            sensor.per_s = 400;
            sensor.start()
        })
        .collect();
    await_acks(&sensors, 200);
    // Away for longer than the session lasts: PUBACKs come from the box's disk.
    site.kill_cloud();
    site.wait_uplink(false);
    await_acks(&sensors, 300);
    site.start_cloud();
    site.wait_uplink(true);
    await_acks(&sensors, 300);
    // Stopped in good order and back at once.
    site.stop_cloud();
    site.start_cloud();
    await_acks(&sensors, 300);
    site.kill_cloud();
    site.start_cloud();
    await_acks(&sensors, 300);
    let reports = finish(sensors);
    site.drain();
    site.stop_edge();
    let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
    println!("{verdict}");
    verdict.assert_conserved();
    // The box never lost its senders.
    assert_eq!((verdict.sent_again, verdict.resent), (0, 0), "{verdict}");
}

#[test]
fn sigterm_loses_nothing_and_ends_well_in_a_few_seconds() {
    for (mode, is_cut) in [("through", false), ("through", true), ("disk", true)] {
        let mut site = Site::started(binaries(), Plan::new(mode, MIXED_STREAMS));
        let sensors = (0..2).map(|client| mixed_sensor(&site, client, u32::MAX).start()).collect::<Vec<_>>();
        await_acks(&sensors, 300);
        site.cut_link(is_cut);
        await_acks(&sensors, 300);
        // Asserts the exit code and the time.
        site.stop_edge();
        assert!(site.edge_log().contains("stopped"), "it says so");
        let reports: Vec<Report> = sensors.into_iter().map(Running::abandon).collect();
        let stopped = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
        stopped.assert_conserved();
        site.cut_link(false);
        site.start_edge();
        site.drain();
        site.stop_edge();
        let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
        println!("{mode} {is_cut}: {verdict}");
        verdict.assert_conserved();
        assert_eq!(verdict.stored, stopped.stored + stopped.buffered, "what was held was delivered\n{verdict}");
    }
}

#[test]
fn restarts_in_good_order_cost_senders_at_most_their_windows_again() {
    let mut site = Site::started(binaries(), Plan::new("through", MIXED_STREAMS));
    let sensors: Vec<Running> = (0..2)
        .map(|client| {
            let mut sensor = mixed_sensor(&site, client, u32::MAX);
            sensor.per_s = 400;
            sensor.start()
        })
        .collect();
    for _ in 0..3 {
        await_acks(&sensors, 200);
        site.stop_edge();
        site.start_edge();
    }
    await_acks(&sensors, 200);
    let reports = finish(sensors);
    site.drain();
    site.stop_edge();
    let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
    println!("{verdict}");
    verdict.assert_conserved();
    assert!(verdict.resent <= 3 * 2 * 100, "{verdict}");
}

/// Three devices whose samples are folded, at so many messages a second each.
fn folding_sensors(site: &Site, count: u32, per_s: u32) -> Vec<Running> {
    let start_ms = 1_790_000_000_000;
    let sensor = |client: usize| {
        let script = move |n| script::folded(client, n, start_ms);
        let mut sensor = Sensor::new(site.mqtt(), &format!("sensor-{client}"), script);
        (sensor.window, sensor.per_s, sensor.count_max) = (50, per_s, count);
        sensor.start()
    };
    (0..3).map(sensor).collect()
}

#[test]
fn every_folded_sample_is_in_exactly_one_aggregate() {
    let mut site = Site::started(binaries(), Plan::new("through", FOLDED_STREAMS));
    let reports: Vec<Report> = folding_sensors(&site, 1_020, 0).into_iter().map(|sensor| sensor.wait(ACK_LIMIT)).collect();
    // Stopping closes the spans that are open.
    site.stop_edge();
    site.start_edge();
    site.drain();
    site.stop_edge();
    let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
    verdict.assert_conserved();
    assert_eq!((verdict.folded_acked, verdict.folded_stored, verdict.sent_again), (3_060, 3_060, 0), "{verdict}");
    assert_folds(&reports, &site, |stored, predicted| {
        stored.count == predicted.count
            && (stored.min, stored.max) == (predicted.min, predicted.max)
            && (stored.sum - predicted.sum).abs() < 1e-6
    });
}

/// Compares each span of each device with what was predicted.
fn assert_folds(reports: &[Report], site: &Site, is_right: impl Fn(Fold, Fold) -> bool) {
    let (predicted, stored) = (oracle::predicted_folds(reports), oracle::stored_folds(&site.database()));
    for span in stored.keys() {
        assert!(predicted.contains_key(span), "{span:?} was never sent");
    }
    for (span, &predicted) in &predicted {
        let nothing = Fold { count: 0, min: f64::INFINITY, max: f64::NEG_INFINITY, sum: 0.0 };
        let stored = stored.get(span).copied().unwrap_or(nothing);
        assert!(is_right(stored, predicted), "{span:?}: {stored:?} is stored of {predicted:?}");
    }
}

#[test]
fn a_kill_costs_folded_samples_of_the_last_moments_only() {
    let mut site = Site::started(binaries(), Plan::new("disk", FOLDED_STREAMS));
    let sensors = folding_sensors(&site, u32::MAX, 250);
    await_acks(&sensors, 2_500);
    // Nothing that was acknowledged longer ago than this is lost: a span is 0.2 s here, and a commit at most 1 s.
    let moments = Duration::from_secs(2);
    let killed = Instant::now();
    site.kill_edge();
    site.start_edge();
    await_acks(&sensors, 500);
    let reports = finish(sensors);
    site.stop_edge();
    site.start_edge();
    site.drain();
    site.stop_edge();
    let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
    verdict.assert_conserved();
    let is_late =
        |sent: &&weir_tests::support::publisher::Sent| sent.acked.is_some_and(|(at, _)| at <= killed && at + moments > killed);
    let late = reports.iter().flat_map(|report| &report.sent).filter(is_late).count() as u64;
    println!("{late} acknowledged within {moments:?} before the kill: {verdict}");
    assert!(verdict.folded_stored + late >= verdict.folded_acked, "{verdict}");
    assert!(verdict.folded_acked > late + 500, "there was something to lose\n{verdict}");
    // What was sent again may be folded twice, and nothing else.
    assert!(verdict.folded_stored <= verdict.folded_acked + verdict.sent_again, "{verdict}");
}

#[test]
fn senders_that_wait_for_the_record_lose_no_folded_sample_to_kills() {
    let streams = FOLDED_STREAMS.replace("aggregate = {", "ack = \"record\"\naggregate = {");
    let mut site = Site::started(binaries(), Plan::new("through", &streams));
    let mut random = Random::new(seed(7));
    // A window must be longer than a span, or its end never comes.
    let sensors: Vec<Running> = (0..3)
        .map(|client| {
            let script = move |n| script::folded(client, n, 1_790_000_000_000);
            let mut sensor = Sensor::new(site.mqtt(), &format!("sensor-{client}"), script);
            (sensor.window, sensor.per_s) = (150, 300);
            sensor.start()
        })
        .collect();
    for _ in 0..4 {
        await_acks(&sensors, 200);
        std::thread::sleep(Duration::from_millis(random.between(0, 300)));
        site.kill_edge();
        site.start_edge();
    }
    await_acks(&sensors, 200);
    let reports = finish(sensors);
    site.drain();
    site.stop_edge();
    let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
    println!("{verdict}");
    verdict.assert_conserved();
    assert!(verdict.sent_again > 0, "kills hit something\n{verdict}");
    let predicted: u64 = verdict.folded_acked;
    assert!(verdict.folded_stored >= predicted, "{verdict}");
    assert_folds(&reports, &site, |stored, predicted| {
        stored.count >= predicted.count && (stored.min, stored.max) == (predicted.min, predicted.max)
    });
}

#[test]
fn qos_0_is_delivered_and_counted_while_all_is_well() {
    let site = Site::started(binaries(), Plan::new("through", MIXED_STREAMS));
    let mut sensor = Sensor::new(site.mqtt(), "sensor-0", |n| Message { qos: 0, ..script::mixed(0, n) });
    (sensor.count_max, sensor.per_s) = (400, 1_000);
    let report = sensor.start().wait(ACK_LIMIT);
    let expected = report.sent.iter().filter(|sent| sent.message.fate == script::Fate::Record).count() as u64;
    let stored = || oracle::count(&oracle::open(&site.database()), "SELECT count(*) FROM samples");
    wait_for("all QoS 0 messages to be stored", ACK_LIMIT, || (stored() >= expected).then_some(()));
    wait_for("the box's picture to be up to date", ACK_LIMIT, || {
        (site.edge_status()?["ingest"]["messages_qos0"] == 400).then_some(())
    });
    let verdict = oracle::examine(&[report], &site.database(), None);
    verdict.assert_sound();
    assert_eq!((verdict.stored, verdict.acked), (expected, 0), "{verdict}");
}

#[test]
fn what_a_full_lane_gives_up_is_told_and_nothing_else_is_gone() {
    let caps =
        "[lane.normal]\ndurability = \"disk\"\ncap = \"256KiB\"\noverflow = \"evict\"\n[lane.high]\ndurability = \"disk\"\n";
    let mut plan = Plan::new("disk", "");
    plan.tables = format!("{MIXED_STREAMS}\n{caps}");
    plan.buffer = "block_target = \"16KiB\"".to_owned();
    let mut site = Site::new(binaries(), plan);
    site.cut_link(true);
    site.start_cloud();
    site.start_edge();
    let mut sensor = Sensor::new(site.mqtt(), "sensor-0", |n| {
        // What does not compress fills a lane.
        let mut random = Random::new(n.into());
        let mut message = Message { qos: 1, ..script::mixed(0, n) };
        if message.stream == "values" {
            message.payload = format!("{n}:").into_bytes();
            message.payload.extend((0..1_000).map(|_| random.next_u64() as u8));
        }
        message
    });
    (sensor.window, sensor.count_max) = (200, 2_000);
    let report = sensor.start().wait(ACK_LIMIT);
    site.cut_link(false);
    site.drain();
    wait_for("voids to be told", ACK_LIMIT, || (site.edge_status()?["voids"] == 0).then_some(()));
    site.stop_edge();
    let verdict = oracle::examine(&[report], &site.database(), Some(&site.buffer()));
    println!("{verdict}");
    verdict.assert_conserved();
    assert!(verdict.voided > 100, "the lane was over its cap\n{verdict}");
    assert_eq!(verdict.absent, verdict.voided, "as many are gone as were given up\n{verdict}");
    let others = oracle::texts(&oracle::open(&site.database()), "SELECT lane || reason FROM voids");
    assert!(others.iter().all(|void| void == "normalevicted"), "only its own lane's, {others:?}");
}

#[test]
fn both_versions_of_the_protocol_see_their_acknowledgements_in_order_while_records_become_safe_out_of_order() {
    // Lanes become safe at different times: one waits for the disk, one for the cloud, one for nothing.
    let lanes =
        "[lane.critical]\ndurability = \"disk\"\n[lane.high]\ndurability = \"through\"\n[lane.bulk]\ndurability = \"memory\"\n";
    let mut plan = Plan::new("disk", "");
    plan.tables = format!("{MIXED_STREAMS}\n{lanes}");
    let mut site = Site::started(binaries(), plan);
    let sensors: Vec<Running> = [Version::V311, Version::V5]
        .into_iter()
        .enumerate()
        .map(|(client, version)| {
            let mut sensor = mixed_sensor(&site, client, 1_500);
            sensor.login.version = version;
            sensor.start()
        })
        .collect();
    let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.wait(ACK_LIMIT)).collect();
    site.drain();
    site.stop_edge();
    let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
    // Asserts the order too.
    verdict.assert_conserved();
    assert_eq!(verdict.published, 3_000, "{verdict}");
}

#[test]
fn the_time_a_process_is_away_counts_as_service_time_while_the_machine_stays_up() {
    let mut site = Site::new(binaries(), Plan::new("disk", MIXED_STREAMS));
    site.cut_link(true);
    site.start_edge();
    let report = mixed_sensor(&site, 0, 50).start().wait(ACK_LIMIT);
    assert_eq!(report.unacked, 0, "it has written something, and when that was");
    // The status is some 200 ms old at most.
    let service_us = |site: &Site| Some((site.edge_status()?["service_us"].as_u64()?, Instant::now()));
    let before = wait_for("a status", ACK_LIMIT, || service_us(&site));
    site.kill_edge();
    // Nothing is waited for: this is the time that must not be lost.
    std::thread::sleep(Duration::from_secs(3));
    site.start_edge();
    let after = wait_for("a status", ACK_LIMIT, || service_us(&site));
    let (counted_us, elapsed) = (after.0 - before.0, after.1 - before.1);
    let lost_ms = elapsed.as_millis() as i64 - counted_us as i64 / 1_000;
    assert!((-1_000..1_000).contains(&lost_ms), "{lost_ms} ms of {elapsed:?} were lost");
}
