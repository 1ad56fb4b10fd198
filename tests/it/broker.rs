//! Messages from a real broker: nothing is lost and nothing doubled, whoever is killed.

use std::collections::BTreeSet;
use std::time::Duration;

use weir::pki::{self, Request};
use weir_tests::support::broker::{Mosquitto, password_file};
use weir_tests::support::client::{Client, Login, Version};
use weir_tests::support::oracle::{self, Verdict};
use weir_tests::support::publisher::{Report, Running, Sensor};
use weir_tests::support::random::{Random, number, seed};
use weir_tests::support::script::{self, Fate, MIXED_STREAMS};
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::wait_for;

use crate::binaries;

/// Time for everything to arrive: a QoS 2 message takes two commits.
const ARRIVAL: Duration = Duration::from_secs(60);
/// Packet ids that mosquitto may have in flight to one client, see `Mosquitto`.
const IN_FLIGHT_MAX: u64 = 200;

/// A site that takes its messages from a broker; `keys` are further ones of its `[[broker]]`.
fn site(broker: &Mosquitto, mode: &str, keys: &str) -> Site {
    let mut site = Site::new(binaries(), Plan::new(mode, MIXED_STREAMS));
    let table = format!("[[broker]]\nname = \"yard\"\naddress = \"{}\"\nbackoff_max = \"500ms\"\n{keys}\n", broker.addr());
    site.change(|plan| plan.tables += &table);
    site.start_cloud();
    site.start_edge();
    wait_connected(&site);
    site
}

/// Waits until every client of the broker is subscribed.
fn wait_connected(site: &Site) {
    wait_for("the box to be connected to its broker", ARRIVAL, || {
        let status = site.edge_status()?;
        let brokers = status["brokers"].as_array()?;
        (brokers.len() == 4 && brokers.iter().all(|broker| broker["up"] == true)).then_some(())
    });
}

/// The sum of a count over the clients of the broker.
fn count(site: &Site, key: &str) -> u64 {
    let status = site.edge_status().expect("the box runs");
    status["brokers"].as_array().expect("it has a broker").iter().map(|broker| broker[key].as_u64().expect("a count")).sum()
}

/// A sensor whose messages have at least this QoS, but for those that have none.
fn sensor(broker: &Mosquitto, client: usize, qos: u8, per_s: u32) -> Sensor {
    let script = move |n| {
        let mut message = script::mixed(client, n);
        message.qos *= qos;
        message
    };
    let mut sensor = Sensor::new(broker.addr(), &format!("sensor-{client}"), script);
    // Less than mosquitto takes from one client at once.
    (sensor.window, sensor.per_s) = (15, per_s);
    sensor
}

/// Waits until all that was acknowledged to sensors and should be a record is stored, and stops everything.
fn settle(site: &mut Site, reports: &[Report]) -> Verdict {
    let wanted: BTreeSet<Vec<u8>> = reports
        .iter()
        .flat_map(|report| &report.sent)
        .filter(|sent| sent.message.fate == Fate::Record && sent.acked.is_some())
        .map(|sent| sent.message.payload.clone())
        .collect();
    wait_for("all messages to be stored", ARRIVAL, || {
        let db = oracle::open(&site.database());
        let stored = oracle::count(&db, "SELECT count(DISTINCT CAST(payload AS BLOB)) FROM samples");
        (stored >= wanted.len() as u64).then_some(())
    });
    site.drain();
    site.stop_edge();
    site.stop_cloud();
    let verdict = oracle::examine(reports, &site.database(), Some(&site.buffer()));
    assert!(verdict.acked > 200 && verdict.stored > 150, "the run was long enough to mean something\n{verdict}");
    verdict
}

/// Ends sensors, once what they sent is acknowledged.
fn finish(sensors: Vec<Running>) -> Vec<Report> {
    all_acknowledged(sensors.into_iter().map(|sensor| sensor.finish(ARRIVAL)).collect())
}

/// Waits until sensors have sent all of their `count_max`.
fn complete(sensors: Vec<Running>) -> Vec<Report> {
    all_acknowledged(sensors.into_iter().map(|sensor| sensor.wait(ARRIVAL)).collect())
}

fn all_acknowledged(reports: Vec<Report>) -> Vec<Report> {
    assert_eq!(reports.iter().map(|report| report.unacked).sum::<usize>(), 0, "the broker acknowledges everything");
    reports
}

/// Copies beyond those that were sent, of messages of these sensors.
fn copies_of(verdict: &Verdict, clients: &[usize]) -> usize {
    let is_of = |text: &String| {
        clients.iter().any(|client| text.starts_with(&format!("{client}-")) || text.contains(&format!("\"id\":\"{client}-")))
    };
    verdict.spurious.iter().filter(|text| is_of(text)).count()
}

/// Nothing lost, nothing twice under one number; copies that a broker may make are looked at by the caller.
fn assert_sound_but_for_copies(mut verdict: Verdict) {
    verdict.spurious.clear();
    verdict.assert_conserved();
}

#[test]
fn through_a_broker_every_message_is_stored_once_in_both_versions_and_every_qos() {
    for (version, qos) in [("3.1.1", 2), ("5", 2), ("5", 1)] {
        let Some(broker) = Mosquitto::started("allow_anonymous true") else { return };
        let mut site = site(&broker, "through", &format!("version = \"{version}\"\nqos = {qos}"));
        let sensors: Vec<Running> = (0..2)
            .map(|client| {
                let mut sensor = sensor(&broker, client, 1 + (client as u8 % 2), 0);
                sensor.count_max = 400;
                sensor.start()
            })
            .collect();
        let reports = complete(sensors);
        let verdict = settle(&mut site, &reports);
        println!("{version} subscribed with QoS {qos}: {verdict}");
        assert_eq!(verdict.resent, 0, "nobody was interrupted");
        verdict.assert_conserved();
    }
}

#[test]
fn over_tls_the_box_shows_its_certificate_and_password_and_trusts_its_authority_alone() {
    let dir = tempfile::TempDir::new().expect("there is room");
    let pki_dir = dir.path().join("broker-pki");
    pki::init(&pki_dir, false).expect("an authority can be made");
    pki::issue(&pki_dir, &Request::local_cloud("broker"), false).expect("a broker can be certified");
    pki::issue(&pki_dir, &Request::gateway("box-1"), false).expect("a box can be certified");
    let (at, users) = (pki_dir.display(), dir.path().join("users"));
    if std::process::Command::new("mosquitto_passwd").output().is_ok() {
        password_file(&users, "weir", "secret of the box");
    }
    let config = format!(
        "allow_anonymous false\npassword_file {}\ncafile {at}/ca.pem\ncertfile {at}/broker.pem\nkeyfile {at}/broker.key\n\
         require_certificate true",
        users.display()
    );
    let Some(broker) = Mosquitto::started(&config) else { return };
    let secret = dir.path().join("password");
    std::fs::write(&secret, "secret of the box\n").expect("there is room");
    let keys = |password: &std::path::Path| {
        format!(
            "username = \"weir\"\npassword_file = \"{}\"\ntls = {{ ca = \"{at}/ca.pem\", cert = \"{at}/box-1.pem\", key = \"{at}/box-1.key\" }}",
            password.display()
        )
    };
    let site = site(&broker, "through", &keys(&secret));
    let authority = pki::Authority::load(&pki_dir).expect("it was just made");
    let issued = authority.issue(&Request::gateway("sensor")).expect("a sensor can be certified");
    let login = Login {
        tls_ca: Some(authority.cert_pem().to_owned()),
        certificate: Some((issued.cert_pem, issued.key_pem)),
        ..Login::user("sensor", Version::V311, "weir", "secret of the box")
    };
    let mut client = Client::connect(broker.addr(), &login).expect("it may publish");
    client.publish("site/0/value", b"over TLS", 1, 1, false).expect("it is connected");
    wait_for("the message to be stored", ARRIVAL, || {
        let stored = oracle::texts(&oracle::open(&site.database()), "SELECT payload FROM samples");
        (stored == ["over TLS"]).then_some(())
    });
    drop(site);
    // With a wrong password the log says what is wrong, and the box does all the rest.
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "guess").expect("there is room");
    let mut site = Site::new(binaries(), Plan::new("through", MIXED_STREAMS));
    let table = format!("[[broker]]\nname = \"yard\"\naddress = \"{}\"\n{}\n", broker.addr(), keys(&wrong));
    site.change(|plan| plan.tables += &table);
    site.start_cloud();
    site.start_edge();
    let said = wait_for("the refusal to be shown", ARRIVAL, || {
        let status = site.edge_status()?;
        let reason = status["brokers"][0]["last_down"].as_str()?.to_owned();
        (!reason.is_empty()).then_some(reason)
    });
    assert!(said.contains("not authorised") || said.contains("wrong user name or password"), "{said}");
    assert_eq!(site.edge_health().map(|(code, _)| code), Some(200));
    assert!(site.edge_log().contains("broker cannot be connected"), "{}", site.edge_log());
}

#[test]
fn a_box_that_is_killed_loses_nothing_of_its_broker_and_stores_qos_2_once() {
    let Some(broker) = Mosquitto::started("allow_anonymous true") else { return };
    let (kills, seed) = (number("WEIR_KILLS", 8), seed(0xb20c));
    println!("WEIR_SEED={seed} WEIR_KILLS={kills} broker");
    let mut random = Random::new(seed);
    let mut site = site(&broker, "through", "qos = 2");
    let sensors: Vec<Running> =
        (0..4).map(|client| sensor(&broker, client, if client < 2 { 1 } else { 2 }, 60).start()).collect();
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(random.between(100, 900)));
        site.cut_link(random.chance(30));
        site.kill_edge();
        std::thread::sleep(Duration::from_millis(random.between(0, 200)));
        site.start_edge();
    }
    site.cut_link(false);
    let reports = finish(sensors);
    wait_connected(&site);
    let resumed = count(&site, "sessions_resumed");
    let verdict = settle(&mut site, &reports);
    let (qos1, qos2) = (copies_of(&verdict, &[0, 1]), copies_of(&verdict, &[2, 3]));
    println!("{kills} kills of the box; resent by the broker after them: {qos1} of QoS 1, {qos2} of QoS 2\n{verdict}");
    assert_eq!(qos2, 0, "QoS 2 is stored once: {:?}", verdict.spurious);
    assert!(qos1 as u64 <= kills * IN_FLIGHT_MAX, "{qos1} copies of QoS 1");
    assert!(resumed >= 4, "the broker kept the sessions");
    assert_sound_but_for_copies(verdict);
}

#[test]
fn a_broker_that_is_stopped_or_killed_is_connected_again_and_nothing_it_kept_is_lost() {
    let Some(mut broker) = Mosquitto::started("allow_anonymous true\nautosave_on_changes true\nautosave_interval 1") else {
        return;
    };
    let mut random = Random::new(seed(0x6b11));
    let mut site = site(&broker, "disk", "qos = 2");
    // Stopped in good order while sensors publish: they and the box come back.
    let sensors: Vec<Running> = (0..2).map(|client| sensor(&broker, client, 1, 60).start()).collect();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(random.between(300, 800)));
        broker.stop();
        broker.start();
    }
    let mut reports = finish(sensors);
    wait_connected(&site);
    // What came while the box was away is with the broker; it is killed, and once more while the box catches up.
    site.stop_edge();
    let sensors: Vec<Running> = (2..4)
        .map(|client| {
            let mut sensor = sensor(&broker, client, 1 + (client as u8 % 2), 0);
            sensor.count_max = 150;
            sensor.start()
        })
        .collect();
    reports.extend(complete(sensors));
    broker.save();
    broker.kill();
    broker.start();
    site.start_edge();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(random.between(50, 400)));
        broker.kill();
        std::thread::sleep(Duration::from_millis(random.between(0, 200)));
        broker.start();
    }
    wait_connected(&site);
    assert!(count(&site, "generation") > 8, "each client has connected again and again");
    let verdict = settle(&mut site, &reports);
    println!("copies that the killed broker sent again: {}\n{verdict}", verdict.spurious.len());
    assert_sound_but_for_copies(verdict);
}

#[test]
fn a_message_that_is_too_long_is_counted_and_does_not_come_again() {
    let Some(broker) = Mosquitto::started("allow_anonymous true") else { return };
    for version in ["3.1.1", "5"] {
        let site = site(&broker, "through", &format!("version = \"{version}\"\nclient_id = \"long-{version}\""));
        let mut client = Client::connect(broker.addr(), &Login::anonymous("sensor", Version::V311)).expect("it may publish");
        client.publish("site/0/value", &vec![b'x'; 300 << 10], 1, 1, false).expect("it is connected");
        client.publish("site/0/value", b"short", 1, 2, false).expect("it is connected");
        wait_for("the short message to be stored", ARRIVAL, || {
            let stored = oracle::texts(&oracle::open(&site.database()), "SELECT payload FROM samples");
            (stored == ["short"]).then_some(())
        });
        // Taken off the broker's hands, on the first connection of each class.
        wait_for("the long message to be counted", ARRIVAL, || {
            let counts = ["unusable", "generation", "in_flight", "redelivered"].map(|key| count(&site, key));
            (counts == [1, 4, 0, 0]).then_some(())
        });
        let status = site.edge_status().expect("the box runs");
        assert_eq!(status["inspected"][0]["reason"], "too_long");
    }
}
