//! TLS on TCP where UDP is blocked: straight, through a proxy, under kills, refused for the same reasons, and back to QUIC.

use std::time::{Duration, Instant};

use weir::link::gate::UdpPolicy;
use weir::pki::{self, Authority, Request};
use weir_tests::support::netns::{self, Lab, LabPlan};
use weir_tests::support::oracle::{self, Verdict};
use weir_tests::support::proxy::HttpProxy;
use weir_tests::support::publisher::{Report, Running, Sensor};
use weir_tests::support::random::{Random, number, seed};
use weir_tests::support::script::{self, Fate, MIXED_STREAMS, Message};
use weir_tests::support::site::{GATEWAY, Plan, Site};
use weir_tests::support::{skip, wait_for};

use crate::binaries;

/// Time for what should happen to have happened.
const LIMIT: Duration = Duration::from_secs(60);
/// Twice the time for which an uplink that has failed is not trusted, and for which one that is not needed stays connected.
const BACK_LIMIT: Duration = Duration::from_secs(90);
/// Where the fallback is among the box's uplinks.
const TCP: usize = 1;

/// A site whose UDP is a black hole, and whose box has a fallback with these keys besides the address.
fn site(keys: &str) -> Site {
    let mut site = Site::new(binaries(), Plan::new("through", MIXED_STREAMS));
    let tls = site.cloud_tls();
    site.change(|plan| plan.uplink = format!("fallback = {{ address = \"{tls}\"{keys} }}"));
    site.cut_link(true);
    site
}

fn started(keys: &str) -> Site {
    let mut site = site(keys);
    site.start_cloud();
    site.start_edge();
    site
}

fn sensors(site: &Site) -> Vec<Running> {
    let sensor = |client: usize| {
        let mut sensor = Sensor::new(site.mqtt(), &format!("sensor-{client}"), move |n| script::mixed(client, n));
        (sensor.per_s, sensor.window) = (100, 50);
        sensor.start()
    };
    (0..3).map(sensor).collect()
}

fn acked(sensors: &[Running]) -> u64 {
    sensors.iter().map(Running::acked).sum()
}

fn await_acked(sensors: &[Running], more: u64) {
    let before = acked(sensors);
    wait_for("PUBACKs", LIMIT, || (acked(sensors) >= before + more).then_some(()));
}

/// Lets all arrive, stops all, and examines.
fn settle(mut site: Site, sensors: Vec<Running>) -> Verdict {
    let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.finish(LIMIT)).collect();
    assert!(reports.iter().all(|report| report.unacked == 0), "all PUBACKs come");
    site.drain();
    site.stop_edge();
    site.stop_cloud();
    let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
    println!("{verdict}");
    assert_eq!(verdict.voided, 0, "nothing is given up here\n{verdict}");
    verdict.assert_conserved();
    verdict
}

fn last_down(site: &Site) -> Option<String> {
    site.edge_status()?["uplinks"][TCP]["last_down"].as_str().map(str::to_owned)
}

fn await_last_down(site: &Site, words: &str) {
    wait_for(&format!("the box to say `{words}`"), LIMIT, || last_down(site).filter(|why| why.contains(words)));
}

#[test]
fn where_udp_is_blocked_all_goes_over_tcp_and_back_to_quic_once_it_passes() {
    let site = started("");
    let sensors = sensors(&site);
    site.wait_uplink_at(TCP, true);
    await_acked(&sensors, 1_000);
    let status = site.edge_status().expect("the box answers");
    let tcp = &status["uplinks"][TCP];
    assert_eq!((status["uplinks"][0]["up"].as_bool(), tcp["name"].as_str()), (Some(false), Some("test/tcp")), "{status}");
    assert!(tcp["sent_bytes"].as_u64() > Some(10_000) && tcp["received_bytes"].as_u64() > Some(1_000), "{tcp}");
    let (_, cloud) = site.cloud.as_ref().and_then(|cloud| cloud.get("/status.json")).expect("the cloud answers");
    assert!(cloud.contains("\"transport\":\"tcp\"") && !cloud.contains("\"transport\":\"quic\""), "{cloud}");
    site.cut_link(false);
    site.wait_uplink(true);
    await_acked(&sensors, 1_000);
    // It is trusted again after a while, and a while later the other is not needed any more.
    wait_for("the way back to QUIC", BACK_LIMIT, || {
        (site.edge_status()?["plan"]["routes"]["critical"][0].as_str()? == "test").then_some(())
    });
    wait_for("TCP to rest", BACK_LIMIT, || (!site.edge_status()?["uplinks"][TCP]["up"].as_bool()?).then_some(()));
    await_acked(&sensors, 500);
    let status = site.edge_status().expect("the box answers");
    let [quic, tcp] = [0, TCP].map(|at| &status["uplinks"][at]);
    assert!(quic["sent_bytes"].as_u64() > Some(10_000) && tcp["last_down"] == "not needed now", "{status}");
    settle(site, sensors);
}

#[test]
fn a_proxy_with_a_password_is_gone_through_and_its_cuts_lose_nothing() {
    // RFC 7617's own example, with a colon and a space in what is encoded.
    let proxy = HttpProxy::start(Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
    let keys = |password: &str| format!(", proxy = \"http://Aladdin:{password}@{}\"", proxy.addr());
    let site = started(&keys("open%20sesame"));
    let sensors = sensors(&site);
    site.wait_uplink_at(TCP, true);
    await_acked(&sensors, 500);
    assert_eq!((proxy.tunnels(), proxy.refused()), (2, 0), "one for each connection");
    for sessions in 2..5 {
        proxy.cut();
        let ups = || site.edge_status()?["uplinks"][TCP]["ups"].as_u64();
        wait_for("another session", LIMIT, || (ups()? >= sessions).then_some(()));
        await_acked(&sensors, 300);
    }
    assert!(proxy.tunnels() >= 8 && proxy.copied_bytes() > 100_000, "{proxy:?}");
    settle(site, sensors);
    let wrong = started(&keys("abracadabra"));
    await_last_down(&wrong, "no way through http://...@127.0.0.1");
    await_last_down(&wrong, "407 Proxy Authentication Required");
    assert!(!wrong.edge_log().contains("abracadabra"), "a password is in no log");
}

#[test]
fn over_tcp_nothing_is_lost_or_doubled_under_kills() {
    let (kills, seed) = (number("WEIR_KILLS", 12), seed(0x7c9));
    println!("WEIR_SEED={seed} WEIR_KILLS={kills} tcp");
    let mut random = Random::new(seed);
    let mut site = started("");
    let sensors = sensors(&site);
    for _ in 0..kills {
        if random.chance(60) {
            await_acked(&sensors, 100);
        }
        // The moment of a kill is a time, not an event.
        std::thread::sleep(Duration::from_millis(random.between(0, 500)));
        if random.chance(50) {
            site.kill_edge();
            site.start_edge();
        } else {
            site.kill_cloud();
            site.start_cloud();
        }
    }
    await_acked(&sensors, 100);
    let verdict = settle(site, sensors);
    assert!(verdict.stored > 500, "the run was long enough to mean something\n{verdict}");
}

#[test]
fn who_may_not_be_there_is_told_so_over_tcp_too() {
    let mut site = site("");
    let pki_dir = site.dir().join("pki");
    pki::issue(&pki_dir, &Request::gateway("stranger"), false).expect("the authority is there");
    for suffix in ["pem", "key"] {
        let (from, to) = (format!("stranger.{suffix}"), format!("{GATEWAY}.{suffix}"));
        std::fs::rename(pki_dir.join(from), pki_dir.join(to)).expect("both are there");
    }
    site.start_cloud();
    site.start_edge();
    await_last_down(&site, "closed by the cloud: gateway stranger is not enrolled here");
    site.kill_edge();
    let issued = Authority::new().and_then(|other| other.issue(&Request::gateway(GATEWAY))).expect("it can be issued");
    std::fs::write(pki_dir.join(format!("{GATEWAY}.pem")), issued.cert_pem).expect("there is room");
    std::fs::write(pki_dir.join(format!("{GATEWAY}.key")), issued.key_pem).expect("there is room");
    site.start_edge();
    await_last_down(&site, "received fatal alert");
}

#[test]
fn a_cloud_that_is_not_ours_gets_nothing_over_tcp() {
    let mut site = site("");
    let other = Authority::new().expect("it can be made");
    let issued = other.issue(&Request::local_cloud("cloud")).expect("it can be issued");
    let pki_dir = site.dir().join("pki");
    std::fs::write(pki_dir.join("cloud.pem"), issued.cert_pem).expect("there is room");
    std::fs::write(pki_dir.join("cloud.key"), issued.key_pem).expect("there is room");
    site.start_cloud();
    site.start_edge();
    await_last_down(&site, "invalid peer certificate: UnknownIssuer");
}

/// A single link, over which UDP stops passing, and passes again.
#[test]
fn a_link_that_begins_to_block_udp_carries_everything_over_tcp() {
    if let Some(why) = netns::unavailable() {
        skip(&format!("fallback over an emulated link: {why}"));
        return;
    }
    const LINK: &str = "[up]\nrate = '10Mbit/s'\ndelay = '20ms'\nqueue = '64KiB'\n";
    let plan = LabPlan { links: vec![LINK], tables: MIXED_STREAMS.to_owned(), has_fallbacks: true, seed: 1 };
    for policy in [UdpPolicy::Blocked, UdpPolicy::Throttled] {
        let mut lab = Lab::started(binaries(), &plan);
        let sensor = lab.sensor("sensor", |n| script::mixed(0, n), |sensor| (sensor.per_s, sensor.window) = (200, 2_000));
        let sensors = vec![sensor];
        await_acked(&sensors, 300);
        lab.links()[0].control(|control| control.udp = policy);
        let blocked = Instant::now();
        lab.wait_uplink(TCP, true, LIMIT);
        let connected = blocked.elapsed();
        await_acked(&sensors, 300);
        println!("{policy:?}: TCP is up after {connected:?}, 300 PUBACKs more after {:?}", blocked.elapsed());
        lab.links()[0].control(|control| control.udp = UdpPolicy::Open);
        lab.wait_uplink(0, true, LIMIT);
        await_acked(&sensors, 300);
        let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.finish(LIMIT)).collect();
        lab.drain_and_stop(LIMIT);
        let verdict = oracle::examine(&reports, &lab.database(), Some(&lab.buffer()));
        println!("{verdict}");
        verdict.assert_conserved();
        assert!(connected <= Duration::from_secs(6), "{policy:?}: {connected:?}");
    }
}

/// Heartbeats and alarms have a connection of their own: what waits for the narrow link does not hold them up.
#[test]
fn heartbeats_and_alarms_over_tcp_do_not_queue_behind_a_backlog() {
    if let Some(why) = netns::unavailable() {
        skip(&format!("a backlog over TCP: {why}"));
        return;
    }
    // A queue of a third of a second.
    const NARROW: &str = "[up]\nrate = '400kbit/s'\ndelay = '20ms'\nqueue = '16KiB'\n";
    let tables = MIXED_STREAMS.to_owned() + "[lane.bulk]\ndurability = \"disk\"\n";
    let plan = LabPlan { links: vec![NARROW], tables, has_fallbacks: true, seed: 1 };
    let mut lab = Lab::started(binaries(), &plan);
    lab.links()[0].control(|control| control.udp = UdpPolicy::Blocked);
    lab.wait_uplink(TCP, true, LIMIT);
    // Sixteen seconds of the link.
    let dumps = lab.sensor("dumps", dump, |sensor| (sensor.count_max, sensor.window) = (2_000, 2_000));
    let alarms = lab.sensor("alarms", alarm, |sensor| (sensor.per_s, sensor.window, sensor.count_max) = (10, 100, 150));
    let mut slowest_us = 0;
    wait_for("the backlog to drain", LIMIT, || {
        let status = lab.edge_status()?;
        slowest_us = slowest_us.max(status["uplinks"][TCP]["heartbeat_rtt_us"].as_u64()?);
        (dumps.is_done() && alarms.is_done() && status["lanes"][3]["records"].as_u64()? == 0).then_some(())
    });
    let tcp = lab.edge_status().expect("the box answers")["uplinks"][TCP].clone();
    let reports = [alarms.finish(LIMIT), dumps.finish(LIMIT)];
    lab.drain_and_stop(LIMIT);
    let late = reports[0].sent.iter().filter_map(|sent| Some(sent.acked?.0 - sent.first)).max();
    println!("slowest heartbeat {} ms, slowest alarm acknowledged after {late:?}", slowest_us / 1_000);
    assert_eq!((tcp["ups"].as_u64(), tcp["downs"].as_u64()), (Some(1), Some(0)), "{tcp}");
    assert!((1..2_000_000).contains(&slowest_us), "{slowest_us} us");
    let verdict = oracle::examine(&reports, &lab.database(), Some(&lab.buffer()));
    println!("{verdict}");
    verdict.assert_conserved();
}

fn dump(n: u32) -> Message {
    noise("site/0/dump", "dumps", "bulk", n)
}

fn alarm(n: u32) -> Message {
    noise("site/0/alarm", "alarms", "critical", n)
}

/// 400 bytes that do not compress.
fn noise(topic: &str, stream: &'static str, lane: &'static str, n: u32) -> Message {
    let mut random = Random::new(u64::from(n));
    let noise: String = (0..390).map(|_| char::from(random.between(0x21, 0x7f) as u8)).collect();
    let payload = format!("{n} {stream} {noise}").into_bytes();
    Message { topic: topic.to_owned(), payload, qos: 1, stream, device: "0".to_owned(), lane, fate: Fate::Record }
}
