//! Who is let in, who may publish where, and what strangers can do to others.

use std::process::Command;
use std::time::Duration;

use weir::pki::{self, Request};
use weir_edge::config::hash_password;
use weir_tests::support::client::{self, Client, ConnectError, Login, Packet, Version, connect_packet};
use weir_tests::support::oracle;
use weir_tests::support::process;
use weir_tests::support::publisher::Sensor;
use weir_tests::support::random::{Random, seed};
use weir_tests::support::script::{self, Fate, MIXED_STREAMS, Message};
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::wait_for;

use weir_tests::support::skip;

use crate::binaries;

/// Time for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A site whose listener wants passwords: of `pump` (who may publish as device 0) and of `valve` (as device 1).
fn guarded(listen: &str) -> Site {
    let user = |name: &str, device: u32| {
        let hash = hash_password(format!("secret of {name}").as_bytes()).expect("a password can be hashed");
        format!("[[user]]\nname = \"{name}\"\npassword_hash = \"{}\"\npublish = [\"site/{device}/#\"]\n", hash.as_str())
    };
    let mut plan = Plan::new("through", &format!("{MIXED_STREAMS}{}{}", user("pump", 0), user("valve", 1)));
    plan.listen = listen.to_owned();
    Site::new(binaries(), plan)
}

fn pump(client_id: &str, version: Version) -> Login {
    Login::user(client_id, version, "pump", "secret of pump")
}

fn refusal(site: &Site, login: &Login) -> u8 {
    match Client::connect(site.mqtt(), login) {
        Err(ConnectError::Refused(code)) => code,
        Err(err) => panic!("{login:?}: {err}"),
        Ok(_) => panic!("{login:?} was let in"),
    }
}

fn publish(client: &mut Client, topic: &str, payload: &str) -> Packet {
    client.publish(topic, payload.as_bytes(), 1, 7, false).expect("it is connected");
    client.read(ANSWER).expect("it is connected").expect("an answer comes")
}

fn stored_payloads(site: &Site) -> Vec<String> {
    oracle::texts(&oracle::open(&site.database()), "SELECT payload FROM samples ORDER BY 1")
}

fn await_payloads(site: &Site, expected: &[&str]) {
    wait_for("records to be stored", ANSWER, || (stored_payloads(site).len() >= expected.len()).then_some(()));
    assert_eq!(stored_payloads(site), expected);
}

#[test]
fn over_tls_a_password_opens_the_topics_of_its_user_and_no_others() {
    let mut site = guarded("tls = { cert = \"pki/mqtt.pem\", key = \"pki/mqtt.key\" }");
    let request = Request { ip: vec![site.mqtt().ip()], ..Request::gateway("mqtt") };
    let pki_dir = site.dir().join("pki");
    pki::issue(&pki_dir, &request, false).expect("a listener can be certified");
    let ca = std::fs::read_to_string(pki_dir.join("ca.pem")).expect("it was just made");
    site.start_cloud();
    site.start_edge();
    for (version, not_authorised, bad_credentials) in [(Version::V311, 5, 4), (Version::V5, 0x87, 0x86)] {
        let tls = |login: Login| Login { tls_ca: Some(ca.clone()), ..login };
        assert_eq!(refusal(&site, &tls(Login::anonymous("a", version))), not_authorised, "anonymous clients are refused");
        assert_eq!(refusal(&site, &tls(Login::user("b", version, "pump", "wrong"))), bad_credentials);
        assert_eq!(refusal(&site, &tls(Login::user("c", version, "nobody", "secret of pump"))), bad_credentials);
        let mut client = Client::connect(site.mqtt(), &tls(pump("d", version))).expect("the password is right");
        let name = format!("{version:?}");
        let allowed = publish(&mut client, "site/0/value", &format!("mine {name}"));
        assert_eq!(allowed, Packet::PubAck { id: 7, reason: 0 });
        let denied = publish(&mut client, "site/1/value", &format!("not mine {name}"));
        let reason = if version == Version::V5 { 0x87 } else { 0 };
        assert_eq!(denied, Packet::PubAck { id: 7, reason }, "3.1.1 has no word for it");
    }
    // Somebody else's authority vouches for nothing, and nothing is said in clear.
    let stranger = pki::Authority::new().expect("an authority can be made");
    let deceived = Login { tls_ca: Some(stranger.cert_pem().to_owned()), ..pump("e", Version::V5) };
    assert!(matches!(Client::connect(site.mqtt(), &deceived), Err(ConnectError::Io(_))));
    assert!(matches!(Client::connect(site.mqtt(), &pump("f", Version::V5)), Err(ConnectError::Io(_))));
    await_payloads(&site, &["mine V311", "mine V5"]);
}

#[test]
fn over_tls_a_known_certificate_is_a_user_and_an_unknown_one_is_nobody() {
    let mut plan = Plan::new("through", MIXED_STREAMS);
    plan.listen = "tls = { cert = \"pki/mqtt.pem\", key = \"pki/mqtt.key\", client_ca = \"pki/ca.pem\" }".to_owned();
    plan.tables += "[[user]]\nname = \"press\"\ncertificate_cn = \"press-17\"\npublish = [\"site/0/#\"]\n";
    let mut site = Site::new(binaries(), plan);
    let pki_dir = site.dir().join("pki");
    let listener = Request { ip: vec![site.mqtt().ip()], ..Request::gateway("mqtt") };
    pki::issue(&pki_dir, &listener, false).expect("a listener can be certified");
    let authority = pki::Authority::load(&pki_dir).expect("it was just made");
    let ca = authority.cert_pem().to_owned();
    let shown = |authority: &pki::Authority, name: &str, version| {
        let issued = authority.issue(&Request::gateway(name)).expect("a sensor can be certified");
        let certificate = Some((issued.cert_pem, issued.key_pem));
        Login { tls_ca: Some(ca.clone()), certificate, ..Login::anonymous(name, version) }
    };
    site.start_cloud();
    site.start_edge();
    for (version, not_authorised) in [(Version::V311, 5), (Version::V5, 0x87)] {
        let known = shown(&authority, "press-17", version);
        let mut client = Client::connect(site.mqtt(), &known).expect("its certificate is that of a user");
        let allowed = publish(&mut client, "site/0/value", &format!("shown {version:?}"));
        assert_eq!(allowed, Packet::PubAck { id: 7, reason: 0 });
        let reason = if version == Version::V5 { 0x87 } else { 0 };
        assert_eq!(publish(&mut client, "site/1/value", "no"), Packet::PubAck { id: 7, reason }, "as its user may");
        assert_eq!(refusal(&site, &shown(&authority, "press-18", version)), not_authorised, "no user has this name");
        let nothing = Login { certificate: None, ..shown(&authority, "press-17", version) };
        assert_eq!(refusal(&site, &nothing), not_authorised, "a name alone is no certificate");
        // The right name from an authority of one's own.
        let stranger = pki::Authority::new().expect("an authority can be made");
        let forged = Client::connect(site.mqtt(), &shown(&stranger, "press-17", version));
        assert!(matches!(forged, Err(ConnectError::Io(_))), "the handshake fails");
    }
    wait_for("the log to say so", ANSWER, || site.edge_log().contains("TLS handshake failed").then_some(()));
    await_payloads(&site, &["shown V311", "shown V5"]);
}

#[test]
fn a_client_id_is_taken_over_by_its_own_user_alone() {
    let mut site = guarded("");
    site.start_cloud();
    site.start_edge();
    let mut first = Client::connect(site.mqtt(), &pump("the-id", Version::V5)).expect("the password is right");
    let other = Login::user("the-id", Version::V5, "valve", "secret of valve");
    assert_eq!(refusal(&site, &other), 0x85, "another user cannot have it");
    assert_eq!(publish(&mut first, "site/0/value", "still here"), Packet::PubAck { id: 7, reason: 0 });
    let mut second = Client::connect(site.mqtt(), &pump("the-id", Version::V5)).expect("its own user can");
    assert_eq!(first.read(ANSWER).expect("it is told"), Some(Packet::Disconnect { reason: 0x8e }));
    assert!(first.read(ANSWER).is_err(), "the first connection is closed");
    assert_eq!(publish(&mut second, "site/0/value", "taken over"), Packet::PubAck { id: 7, reason: 0 });
    await_payloads(&site, &["still here", "taken over"]);
}

#[test]
fn who_is_refused_is_in_the_log_with_the_reason_and_what_to_do() {
    let mut site = guarded("");
    site.start_cloud();
    site.start_edge();
    assert_eq!(refusal(&site, &Login::user("sensor-a", Version::V5, "pump", "wrong")), 0x86);
    assert_eq!(refusal(&site, &Login::anonymous("sensor-b", Version::V311)), 5);
    // Whatever it calls itself, it writes no lines of ours.
    assert_eq!(refusal(&site, &Login::anonymous("x\nERROR forged", Version::V5)), 0x87);
    let mut large = Client::connect(site.mqtt(), &pump("sensor-c", Version::V5)).expect("the password is right");
    let _ = large.publish("site/0/value", &[0; 300 * 1024], 1, 1, false);
    let line = |parts: &[&str]| {
        wait_for(&format!("the log to say {parts:?}"), ANSWER, || {
            let log = site.edge_log();
            log.lines().any(|line| line.contains("WARN") && parts.iter().all(|part| line.contains(part))).then_some(())
        });
    };
    line(&["client refused", "127.0.0.1:", "sensor-a", "wrong user name or password", "`weir passwd`"]);
    line(&["client refused", "127.0.0.1:", "sensor-b", "allow_anonymous"]);
    line(&["client refused", "x\\nERROR forged"]);
    line(&["client refused", "127.0.0.1:", "sensor-c", "exceeds the limit of 262144", "mqtt.packet_bytes_max"]);
    assert!(!site.edge_log().lines().any(|line| line.starts_with("ERROR forged")));
}

#[test]
fn one_client_too_many_is_told_so_and_comes_in_when_another_has_gone() {
    let mut plan = Plan::new("through", MIXED_STREAMS);
    plan.tables += "[mqtt]\nclients_max = 2\n";
    let site = Site::started(binaries(), plan);
    let login = |id: &str, version| Login::anonymous(id, version);
    let first = Client::connect(site.mqtt(), &login("first", Version::V5)).expect("there is room");
    let _second = Client::connect(site.mqtt(), &login("second", Version::V5)).expect("there is room");
    assert_eq!(refusal(&site, &login("third", Version::V5)), 0x97, "quota exceeded");
    assert_eq!(refusal(&site, &login("third", Version::V311)), 3, "server unavailable");
    // Who is back before its old connection is known to be dead takes its own place, not another's.
    let mut again = Client::connect(site.mqtt(), &login("second", Version::V5)).expect("it has a place already");
    assert_eq!(publish(&mut again, "site/0/value", "0:x"), Packet::PubAck { id: 7, reason: 0 });
    wait_for("the log to say so", ANSWER, || site.edge_log().contains("mqtt.clients_max").then_some(()));
    let refused = || site.edge_status()?["ingest"]["connections_refused"].as_u64();
    wait_for("both to be counted", ANSWER, || (refused()? == 2).then_some(()));
    drop(first);
    wait_for("room for the third", ANSWER, || Client::connect(site.mqtt(), &login("third", Version::V5)).ok());
}

#[test]
fn mosquitto_pub_delivers_by_hand() {
    if Command::new("mosquitto_pub").arg("--help").output().is_err() {
        skip("mosquitto_pub is not installed");
        return;
    }
    let mut site = guarded("");
    site.start_cloud();
    site.start_edge();
    let run = |version: &str, password: &str, message: &str| {
        let mut command = Command::new("mosquitto_pub");
        command.args(["-h", "127.0.0.1", "-p", &site.mqtt().port().to_string(), "-V", version, "-i", "by-hand", "-q", "1"]);
        command.args(["-u", "pump", "-P", password, "-t", "site/0/value", "-m", message]);
        process::run(command, ANSWER)
    };
    for version in ["311", "5"] {
        let (code, _, stderr) = run(version, "secret of pump", &format!("from a shell, {version}"));
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        let (code, _, stderr) = run(version, "guessed", "no");
        assert_ne!(code, Some(0), "a wrong password is refused: {stderr}");
    }
    await_payloads(&site, &["from a shell, 311", "from a shell, 5"]);
}

/// What no client should send, each with a name.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let login = |version| connect_packet(&Login::anonymous("intruder", version));
    let after_login = |version, bytes: &[u8]| [login(version), bytes.to_vec()].concat();
    let publish = |first: u8, body: &[u8]| after_login(Version::V311, &client::packet(first, body));
    let long = [0x30, 0xff, 0xff, 0xff, 0x7f];
    vec![
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("a TLS greeting", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("a first packet that is not CONNECT", client::packet(0x30, b"\x00\x01ax")),
        ("a CONNECT of 256 MB", vec![0x10, 0xff, 0xff, 0xff, 0x7f]),
        ("a length of five bytes", vec![0x10, 0x80, 0x80, 0x80, 0x80, 0x01]),
        ("another protocol", client::packet(0x10, b"\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01a")),
        ("version 9", client::packet(0x10, b"\x00\x04MQTT\x09\x02\x00\x00\x00\x01a")),
        ("a second CONNECT", after_login(Version::V311, &login(Version::V311))),
        ("a PUBLISH of 256 MB", after_login(Version::V311, &long)),
        ("the same in version 5", after_login(Version::V5, &long)),
        ("QoS 3", publish(0x36, b"\x00\x01a\x00\x01x")),
        ("a topic longer than its packet", publish(0x32, b"\xff\xffa")),
        ("a topic with a wildcard", publish(0x32, b"\x00\x03a/#\x00\x01x")),
        ("a topic that is not UTF-8", publish(0x32, b"\x00\x02\xc3\x28\x00\x01x")),
        ("packet id 0", publish(0x32, b"\x00\x01a\x00\x00x")),
        ("a packet of a kind that does not exist", publish(0xf0, b"")),
        ("properties longer than their packet", after_login(Version::V5, &client::packet(0x32, b"\x00\x01a\x00\x01\x7fx"))),
        ("an unknown topic alias", after_login(Version::V5, &client::packet(0x32, b"\x00\x00\x00\x01\x03\x23\x00\x07x"))),
    ]
}

#[test]
fn malformed_bytes_and_oversized_frames_end_their_own_connection_and_disturb_no_other() {
    let mut plan = Plan::new("through", MIXED_STREAMS);
    // Some of it could still become a packet, and is waited for so long.
    plan.tables += "[mqtt]\nconnect_timeout = \"1s\"\n";
    let mut site = Site::started(binaries(), plan);
    let mut sensor = Sensor::new(site.mqtt(), "sensor-0", |n| script::mixed(0, n));
    (sensor.window, sensor.per_s) = (50, 400);
    let sensor = sensor.start();
    for (what, bytes) in malformed() {
        let mut intruder = Client::open(site.mqtt(), &Login::anonymous("intruder", Version::V311)).expect("it may connect");
        // The server may close before all is written.
        let _ = intruder.send(&bytes);
        let outcome = std::iter::repeat_with(|| intruder.read(ANSWER)).find(|read| !matches!(read, Ok(Some(_))));
        assert!(matches!(outcome, Some(Err(_))), "{what} is not refused: {outcome:?}");
    }
    // Bytes nobody thought of: real packets with some bytes changed, dribbled in pieces, and left open.
    let mut random = Random::new(seed(11));
    let mut open = Vec::new();
    for n in 0..300_u16 {
        let version = if random.chance(50) { Version::V311 } else { Version::V5 };
        let mut bytes = connect_packet(&Login::anonymous(&format!("fuzz-{n}"), version));
        bytes.extend(client::packet(0x32, b"\x00\x0ename/of/nobody\x00\x01\x00payload"));
        for _ in 0..random.between(1, 6) {
            let at = random.between(0, bytes.len() as u64) as usize;
            bytes[at] = random.next_u64() as u8;
        }
        bytes.truncate(random.between(1, bytes.len() as u64 + 1) as usize);
        let mut intruder = Client::open(site.mqtt(), &Login::anonymous("intruder", version)).expect("it may connect");
        for piece in bytes.chunks(random.between(1, 40) as usize) {
            if intruder.send(piece).is_err() {
                break;
            }
        }
        if random.chance(30) {
            open.push(intruder);
        }
    }
    let before = sensor.acked();
    wait_for("the good client to go on", ANSWER, || (sensor.acked() > before + 200).then_some(()));
    let report = sensor.finish(ANSWER);
    assert_eq!((report.connects, report.unacked), (1, 0), "it was never disturbed");
    site.drain();
    site.stop_edge();
    let verdict = oracle::examine(&[report], &site.database(), None);
    verdict.assert_conserved();
    println!("{verdict}");
}

#[test]
fn a_payload_as_long_as_a_packet_may_be_arrives_whole_and_one_byte_more_ends_the_connection() {
    let mut site = Site::started(binaries(), Plan::new("through", MIXED_STREAMS));
    // 256 KiB is the default of mqtt.packet_bytes_max, the whole packet's: 1 + 3 of header, 2 + 12 of topic, 2 of packet id.
    let longest = 256 * 1024 - 20;
    let message = move |n: u32| {
        let mut payload = format!("{n}:").into_bytes();
        let mut random = Random::new(n.into());
        payload.resize_with(longest, || random.next_u64() as u8);
        Message {
            topic: "site/0/value".to_owned(),
            payload,
            qos: 1,
            stream: "values",
            device: "0".to_owned(),
            lane: "normal",
            fate: Fate::Record,
        }
    };
    let mut sensor = Sensor::new(site.mqtt(), "large", message);
    (sensor.window, sensor.count_max) = (4, 12);
    let report = sensor.start().wait(Duration::from_secs(20));
    assert_eq!((report.connects, report.unacked), (1, 0));
    let mut client = Client::connect(site.mqtt(), &Login::anonymous("larger", Version::V5)).expect("anyone may");
    let too_long = vec![0; longest + 64];
    let _ = client.publish("site/0/value", &too_long, 1, 1, false);
    let outcome = client.read(ANSWER);
    assert!(matches!(outcome, Ok(Some(Packet::Disconnect { reason: 0x95 })) | Err(_)), "packet too large, not {outcome:?}");
    site.drain();
    site.stop_edge();
    let verdict = oracle::examine(&[report], &site.database(), None);
    verdict.assert_conserved();
    assert_eq!(verdict.stored, 12, "{verdict}");
}
