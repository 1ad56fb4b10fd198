use super::super::codec::Version::{V5, V311};
use super::*;

const SECOND: u64 = 1_000_000;

/// A delivery without its borrows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Connected(bool),
    Subscribed(Vec<Option<u8>>),
    Publish { topic: String, payload: Vec<u8>, qos: u8, packet_id: u16, dup: bool },
    Unusable { qos: u8, packet_id: u16, reason: &'static str },
    Release(u16),
}

fn options(version: Version) -> SubscriberOptions {
    SubscriberOptions {
        version,
        client_id: "box-high".into(),
        username: Some("weir".into()),
        password: Some(Secret::new(b"secret")),
        keep_alive_s: 30,
        session_expiry_s: 600,
        inflight_max: 20,
        packet_len_max: 1_000,
        filters: Arc::new(["a/+".to_owned(), "b".to_owned()]),
        qos: 1,
        answer_timeout_us: 10 * SECOND,
    }
}

fn feed(subscriber: &mut Subscriber, now_us: u64, bytes: &[u8]) -> (Vec<Seen>, Next) {
    let mut seen = Vec::new();
    let next = subscriber.read(now_us, bytes, |delivery| {
        seen.push(match delivery {
            Delivery::Connected { session_present } => Seen::Connected(session_present),
            Delivery::Subscribed { granted } => Seen::Subscribed(granted.to_vec()),
            Delivery::Publish(Publish { topic, payload, qos, packet_id, dup, .. }) => {
                Seen::Publish { topic: topic.to_owned(), payload: payload.to_vec(), qos, packet_id, dup }
            }
            Delivery::Unusable { qos, packet_id, reason, .. } => Seen::Unusable { qos, packet_id, reason },
            Delivery::Release { packet_id } => Seen::Release(packet_id),
        });
        Flow::Continue
    });
    (seen, next)
}

fn connack(version: Version, flags: u8, code: u8) -> Vec<u8> {
    if version == V5 { vec![0x20, 3, flags, code, 0] } else { vec![0x20, 2, flags, code] }
}

fn suback(version: Version, codes: [u8; 2]) -> Vec<u8> {
    let none: &[u8] = if version == V5 { &[0] } else { &[] };
    [&[0x90, 4 + none.len() as u8, 0, 1][..], none, &codes].concat()
}

fn publish(version: Version, flags: u8, topic: &str, packet_id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend(topic.as_bytes());
    if flags & 6 != 0 {
        body.extend(packet_id.to_be_bytes());
    }
    if version == V5 {
        body.push(0);
    }
    body.extend(payload);
    let mut packet = vec![0x30 | flags];
    let mut len = body.len();
    while len >= 128 {
        packet.push(len as u8 & 0x7f | 0x80);
        len >>= 7;
    }
    packet.push(len as u8);
    packet.extend(body);
    packet
}

/// Connected and subscribed, with nothing left to write.
fn open(version: Version) -> Subscriber {
    let mut subscriber = Subscriber::new(options(version), false, 0);
    let _ = feed(&mut subscriber, 0, &connack(version, 0, 0));
    let _ = feed(&mut subscriber, 0, &suback(version, [1, 1]));
    assert!(subscriber.is_open());
    subscriber.output().clear();
    subscriber
}

fn message(topic: &str, payload: &[u8], qos: u8, packet_id: u16) -> Seen {
    Seen::Publish { topic: topic.to_owned(), payload: payload.to_vec(), qos, packet_id, dup: false }
}

#[test]
fn it_connects_with_a_lasting_session_and_subscribes_once_it_is_let_in() {
    for version in [V311, V5] {
        let mut subscriber = Subscriber::new(options(version), false, 0);
        let properties: &[u8] = if version == V5 { &[8, 0x11, 0, 0, 2, 88, 0x21, 0, 20] } else { &[] };
        let level = if version == V5 { 5 } else { 4 };
        let body = [
            &[0, 4][..],
            b"MQTT",
            &[level, 0xc0, 0, 30],
            properties,
            &[0, 8],
            b"box-high",
            &[0, 4],
            b"weir",
            &[0, 6],
            b"secret",
        ];
        let body = body.concat();
        assert_eq!(*subscriber.output(), [&[0x10, body.len() as u8][..], &body].concat());
        subscriber.output().clear();
        assert_eq!(feed(&mut subscriber, 1, &connack(version, 1, 0)), (vec![Seen::Connected(true)], Next::Read));
        let (none, options): (&[u8], u8) = if version == V5 { (&[0], 0x11) } else { (&[], 1) };
        let body = [&[0, 1][..], none, &[0, 3], b"a/+", &[options, 0, 1], b"b", &[options]].concat();
        assert_eq!(*subscriber.output(), [&[0x82, body.len() as u8][..], &body].concat());
        // A session that was there sends before it answers.
        let (seen, _) = feed(&mut subscriber, 2, &publish(version, 2, "b", 9, b"early"));
        assert_eq!(seen, [message("b", b"early", 1, 9)]);
        assert!(!subscriber.is_open());
        let (seen, _) = feed(&mut subscriber, 3, &suback(version, [1, 0x80]));
        assert_eq!(seen, [Seen::Subscribed(vec![Some(1), None])]);
        assert!(subscriber.is_open());
    }
    assert!(!format!("{:?}", options(V5)).contains("secret"));
}

#[test]
fn with_3_1_1_a_session_that_was_kept_is_not_subscribed_again() {
    for (version, session_present, subscribes) in [(V311, true, false), (V311, false, true), (V5, true, true)] {
        let mut subscriber = Subscriber::new(options(version), true, 0);
        subscriber.output().clear();
        let _ = feed(&mut subscriber, 1, &connack(version, u8::from(session_present), 0));
        assert_eq!(!subscriber.output().is_empty(), subscribes, "{version:?} {session_present}");
        assert_eq!(subscriber.is_open(), !subscribes);
    }
}

#[test]
fn messages_come_however_their_bytes_are_cut() {
    for version in [V311, V5] {
        let bytes = [
            publish(version, 0, "a/1", 0, b"zero"),
            publish(version, 2, "a/2", 1, b"one"),
            publish(version, 4, "b", 2, &[7; 300]),
            vec![0x62, 2, 0, 2],
            vec![0xd0, 0],
            publish(version, 0x0a, "a/2", 1, b"one"),
        ]
        .concat();
        let expected = [
            message("a/1", b"zero", 0, 0),
            message("a/2", b"one", 1, 1),
            message("b", &[7; 300], 2, 2),
            Seen::Release(2),
            Seen::Publish { topic: "a/2".to_owned(), payload: b"one".to_vec(), qos: 1, packet_id: 1, dup: true },
        ];
        for size in [1, 2, 3, 7, 64, 1_000] {
            let mut subscriber = open(version);
            let seen: Vec<Seen> = bytes.chunks(size).flat_map(|chunk| feed(&mut subscriber, 1, chunk).0).collect();
            assert_eq!(seen, expected, "{version:?} in pieces of {size}");
        }
    }
}

#[test]
fn acknowledgements_are_written_as_they_are_given() {
    let mut subscriber = open(V311);
    subscriber.puback(0x102);
    subscriber.pubrec(3);
    subscriber.pubcomp(4);
    assert_eq!(*subscriber.output(), [0x40, 2, 1, 2, 0x50, 2, 0, 3, 0x70, 2, 0, 4]);
    subscriber.lost();
    subscriber.output().clear();
    subscriber.puback(5);
    assert!(subscriber.output().is_empty(), "nothing is written to a connection that ended");
}

#[test]
fn what_is_too_long_is_skipped_and_told_and_what_follows_comes() {
    for version in [V311, V5] {
        let long = publish(version, 2, "a/long", 5, &[1; 5_000]);
        let bytes =
            [long, publish(version, 0, "b", 0, b"next"), publish(version, 4, &"x/".repeat(600), 6, &[2; 2_000])].concat();
        let expected = [
            Seen::Unusable { qos: 1, packet_id: 5, reason: "too_long" },
            message("b", b"next", 0, 0),
            Seen::Unusable { qos: 2, packet_id: 6, reason: "too_long" },
        ];
        for size in [1, 5, 100, 4_096, 10_000] {
            let mut subscriber = open(version);
            let mut seen = Vec::new();
            for chunk in bytes.chunks(size) {
                seen.extend(feed(&mut subscriber, 1, chunk).0);
                assert!(subscriber.held.len() <= 2_000, "what is skipped is not kept");
            }
            assert_eq!(seen, expected, "{version:?} in pieces of {size}");
        }
    }
}

#[test]
fn a_topic_that_cannot_be_taken_is_told_and_does_not_end_the_connection() {
    let mut subscriber = open(V5);
    let deep = "l/".repeat(100);
    let (seen, next) = feed(&mut subscriber, 1, &publish(V5, 2, &deep, 8, b"x"));
    assert_eq!((seen, next), (vec![Seen::Unusable { qos: 1, packet_id: 8, reason: "topic" }], Next::Read));
}

#[test]
fn refusals_and_broken_packets_end_the_connection_with_a_reason() {
    let closed = |version, bytes: &[u8]| {
        let mut subscriber = Subscriber::new(options(version), false, 0);
        assert_eq!(feed(&mut subscriber, 1, bytes).1, Next::Close);
        subscriber.closed().cloned().unwrap()
    };
    let refused = closed(V311, &connack(V311, 0, 5));
    assert!(refused.to_string().contains("not authorised") && refused.to_string().contains("0x05"), "{refused}");
    assert!(closed(V5, &connack(V5, 0, 0x86)).to_string().contains("wrong user name or password"));
    assert!(matches!(closed(V5, &[0xd0, 0]), BrokerClose::Protocol(ProtocolError::NotConnected { .. })));
    for bytes in [&[0x36, 4, 0, 1, b'a', 0][..], &[0x32, 5, 0, 1, b'a', 0, 0], &[0x10, 0], &[0x62, 1, 0]] {
        let mut subscriber = open(V311);
        assert_eq!(feed(&mut subscriber, 1, bytes).1, Next::Close, "{bytes:?}");
        assert!(matches!(subscriber.closed(), Some(BrokerClose::Protocol(_))));
    }
    let mut subscriber = open(V5);
    let _ = feed(&mut subscriber, 1, &[0xe0, 1, 0x8e]);
    let close = subscriber.closed().unwrap().to_string();
    assert!(close.contains("another client uses this client id"), "{close}");
}

#[test]
fn it_pings_and_gives_up_a_broker_that_is_silent_unless_it_is_not_read() {
    let mut subscriber = open(V311);
    assert_eq!(subscriber.tick(22 * SECOND), None);
    assert!(subscriber.output().is_empty());
    assert_eq!(subscriber.tick(23 * SECOND), None);
    assert_eq!(*subscriber.output(), [0xc0, 0]);
    let _ = feed(&mut subscriber, 24 * SECOND, &[0xd0, 0]);
    subscriber.hold();
    assert_eq!(subscriber.tick(1_000 * SECOND), None, "its silence is ours");
    subscriber.resume(1_000 * SECOND);
    assert_eq!(subscriber.tick(1_044 * SECOND), None);
    assert_eq!(subscriber.tick(1_045 * SECOND), Some(&BrokerClose::Silent { keep_alive_s: 30 }));
    let mut subscriber = Subscriber::new(options(V5), false, 0);
    let timeout_us = 10 * SECOND;
    assert_eq!(subscriber.tick(10 * SECOND), Some(&BrokerClose::NoAnswer { waited_for: Packet::Connack, timeout_us }));
}

#[test]
fn a_pause_is_exact_and_what_is_behind_it_comes_later() {
    let mut subscriber = open(V311);
    let bytes = [publish(V311, 2, "b", 1, b"1"), publish(V311, 2, "b", 2, b"2")].concat();
    let mut count = 0;
    let next = subscriber.read(1, &bytes, |_| {
        count += 1;
        Flow::Pause
    });
    assert_eq!((count, next), (1, Next::Pause(Pause::Caller)));
    assert!(feed(&mut subscriber, 2, &[]).0.is_empty());
    subscriber.resume(3);
    assert_eq!(feed(&mut subscriber, 3, &[]), (vec![message("b", b"2", 1, 2)], Next::Read));
}
