//! Packet by packet: what is answered, what is refused, and with which code.

use super::client::*;
use crate::mqtt::{
    AuthRefusal, Close, ConnLimits, Connection, Counters, DisconnectReason, Event, Flow, Next, Packet, Pause, ProtocolError,
    PubAck, UserIndex, Version,
};

const SECOND_US: u64 = 1_000_000;

/// Feeds bytes that must end the connection, and returns the error and what was written last.
fn broken(conn: &mut Connection, bytes: &[u8]) -> (ProtocolError, Vec<u8>) {
    let (events, next) = feed(conn, 0, bytes);
    assert_eq!(next, Next::Close);
    let Some(Seen::Closed(Close::Protocol(error))) = events.last() else { panic!("{events:?}") };
    assert_eq!(conn.closed(), Some(Close::Protocol(*error)));
    assert_eq!(feed(conn, 0, b"\xc0\x00"), (vec![], Next::Close));
    (*error, conn.output().clone())
}

fn broken_open(version: Version, bytes: &[u8]) -> ProtocolError {
    let mut conn = open(ConnLimits::default(), version);
    let (error, out) = broken(&mut conn, bytes);
    match version {
        V311 => assert!(out.is_empty(), "3.1.1 has no DISCONNECT from the server"),
        V5 => {
            assert_eq!((out[0], out[2]), (0xe0, error.reason_code()));
            assert!(String::from_utf8_lossy(&out).ends_with(&error.to_string()));
        }
    }
    error
}

#[test]
fn connect_hands_over_every_field() {
    let rest = [field(b"w/t"), field(b"gone"), field("jürgen".as_bytes()), field(b"\x00pw")].concat();
    for version in [V311, V5] {
        let mut rest = rest.clone();
        if version == V5 {
            rest.insert(0, 0);
        }
        let mut conn = fresh(ConnLimits::default());
        let (events, next) = feed(&mut conn, 0, &connect(version, "c-9", 0xee, 60, &rest));
        let expected = Seen::Connect {
            client_id: "c-9".into(),
            username: Some("jürgen".into()),
            password: Some(b"\x00pw".to_vec()),
            keep_alive_s: 60,
            will: Some("w/t".into()),
        };
        assert_eq!((events, next), (vec![expected], Next::Pause(Pause::Auth)));
        assert_eq!((conn.version(), conn.client_id(), conn.user()), (version, "c-9", None));
        conn.authenticated(5, Ok(UserIndex(4)));
        assert_eq!((conn.user(), conn.output()[0], conn.output()[3]), (Some(UserIndex(4)), 0x20, 0));
        assert_eq!(conn.take_will(), None, "only after the end");
        conn.lost();
        let will = conn.take_will().expect("left without goodbye");
        assert_eq!((will.publish().topic, will.publish().payload, will.qos, will.retain), ("w/t", &b"gone"[..], 1, true));
        assert_eq!(conn.take_will(), None);
    }
}

#[test]
fn connack_of_mqtt_5_tells_every_limit() {
    let limits = ConnLimits { keep_alive_s_max: 30, ..ConnLimits::default() };
    let mut conn = fresh(limits);
    let session_expiry = [0x11, 0, 0, 0, 9];
    tell(&mut conn, 0, &connect_with(V5, "", 0x02, 0, &session_expiry, &[]));
    assert_eq!(conn.client_id(), "weir-abc-11");
    conn.authenticated(0, Ok(UserIndex(0)));
    let mut body = vec![0, 0, 39 + 3];
    body.extend_from_slice(&[0x21, 4, 0, 0x24, 1, 0x27, 0, 4, 0, 0, 0x22, 0, 16, 0x28, 0, 0x29, 0, 0x2a, 0]);
    body.extend_from_slice(&[0x11, 0, 0, 0, 0, 0x13, 0, 30, 0x12]);
    body.extend_from_slice(&field(b"weir-abc-11"));
    body[2] = (body.len() - 3) as u8;
    assert_eq!(*conn.output(), packet(0x20, &body));
    assert_eq!(conn.next_timeout(), Some(45 * SECOND_US));
}

#[test]
fn refusals_have_the_codes_of_each_version() {
    let cases = [
        (AuthRefusal::BadCredentials, 4, 0x86),
        (AuthRefusal::NotAuthorised, 5, 0x87),
        (AuthRefusal::ClientIdTaken, 2, 0x85),
        (AuthRefusal::TooManyClients, 3, 0x97),
        (AuthRefusal::Unavailable, 3, 0x88),
    ];
    for (refusal, v311, v5) in cases {
        for (version, code) in [(V311, v311), (V5, v5)] {
            let mut conn = fresh(ConnLimits::default());
            tell(&mut conn, 0, &connect(version, "c", 0x02, 0, &[]));
            conn.authenticated(0, Err(refusal));
            assert_eq!((conn.output()[0], conn.output()[2], conn.output()[3]), (0x20, 0, code));
            assert_eq!(conn.closed(), Some(Close::Refused(refusal)));
            assert_eq!(feed(&mut conn, 0, &[]), (vec![], Next::Close));
            // Who counts connections counts those that are too many.
            assert_eq!(conn.take_counters().connects_refused, u64::from(refusal != AuthRefusal::TooManyClients));
        }
    }
}

#[test]
fn connects_against_the_standard_are_refused() {
    let first = |bytes: &[u8]| broken(&mut fresh(ConnLimits::default()), bytes);
    let named = |name: &[u8], level: u8| [field(name), vec![level, 2, 0, 0, 0, 0]].concat();
    assert_eq!(first(&packet(0x10, &named(b"MQXX", 4))), (ProtocolError::ProtocolName, vec![]));
    let (error, out) = first(&packet(0x10, &named(b"MQIsdp", 3)));
    assert_eq!((error, out), (ProtocolError::ProtocolLevel { level: 3 }, vec![0x20, 2, 0, 1]));
    let (error, out) = first(&packet(0x10, &named(b"MQTT", 6)));
    assert_eq!((error, out[3]), (ProtocolError::ProtocolLevel { level: 6 }, 0x84));
    let (error, out) = first(&connect(V311, "", 0, 0, &[]));
    assert_eq!((error, out), (ProtocolError::ClientIdEmpty, vec![0x20, 2, 0, 2]));
    let (error, out) = first(&connect(V5, &"x".repeat(257), 2, 0, &[]));
    assert_eq!((error, out[3]), (ProtocolError::ClientIdTooLong { len: 257, len_max: 256 }, 0x85));
    for flags in [0x01, 0x03, 0x0a, 0x22, 0x1e, 0x42] {
        assert_eq!(first(&connect(V311, "c", flags, 0, &[])).0, ProtocolError::ConnectFlags { flags });
    }
    assert_eq!(first(&connect(V311, "c", 0x82, 0, &[])).0, ProtocolError::Truncated { field: "user name" });
    assert_eq!(first(&connect(V311, "c", 2, 0, b"x")).0, ProtocolError::Trailing { packet: Packet::Connect, len: 1 });
    assert_eq!(first(&connect(V311, "c\0", 2, 0, &[])).0, ProtocolError::Nul { field: "client id" });
    assert_eq!(first(b"\xc0\x00").0, ProtocolError::NotConnected { packet: Packet::Pingreq });
    assert_eq!(first(&publish(V311, 0, b"t", 0, &[], b"x")).0, ProtocolError::NotConnected { packet: Packet::Publish });
    let props = |props: &[u8]| first(&connect_with(V5, "c", 2, 0, props, &[])).0;
    assert_eq!(props(&[0x15, 0, 1, b'x']), ProtocolError::AuthMethod);
    assert_eq!(props(&[0x16, 0, 0]), ProtocolError::PropertyNotAllowed { id: 0x16 });
    assert_eq!(props(&[0x21, 0, 0]), ProtocolError::PropertyValue { id: 0x21 });
    assert_eq!(props(&[0x27, 0, 0, 0, 10]), ProtocolError::ClientPacketMax { len_max: 10, len_min: 128 });
    assert_eq!(props(&[0x17, 2]), ProtocolError::PropertyValue { id: 0x17 });
    assert_eq!(props(&[0x19, 1, 0x19, 1]), ProtocolError::PropertyTwice { id: 0x19 });
    assert_eq!(props(&[0x05]), ProtocolError::PropertyUnknown { id: 5 });
    assert_eq!(props(&[0x23, 0, 1]), ProtocolError::PropertyNotAllowed { id: 0x23 });
    let will_qos2 = [field(b"t"), field(b"")].concat();
    assert_eq!(first(&connect(V311, "c", 0x16, 0, &will_qos2)).0, ProtocolError::Qos2);
}

#[test]
fn a_packet_over_the_limit_is_refused_by_its_header_alone() {
    let mut conn = fresh(ConnLimits { connect_len_max: 100, ..ConnLimits::default() });
    let (error, _) = broken(&mut conn, &[0x10, 99]);
    assert_eq!(error, ProtocolError::PacketTooLarge { len: 101, len_max: 100 });
    let mut conn = open(ConnLimits { packet_len_max: 200, ..ConnLimits::default() }, V5);
    let (error, out) = broken(&mut conn, &[0x30, 0xc6, 0x01]);
    assert_eq!((error, out[2]), (ProtocolError::PacketTooLarge { len: 201, len_max: 200 }, 0x95));
    assert_eq!(broken_open(V311, &[0x30, 0xff, 0xff, 0xff, 0xff]), ProtocolError::VarInt);
}

#[test]
fn publishes_against_the_standard_are_refused() {
    for version in [V311, V5] {
        let error =
            |flags, topic: &[u8], packet_id| broken_open(version, &publish(version, flags, topic, packet_id, &[], b"x"));
        assert_eq!(error(0x04, b"t", 1), ProtocolError::Qos2);
        assert_eq!(error(0x06, b"t", 1), ProtocolError::QosInvalid);
        assert_eq!(error(0x08, b"t", 0), ProtocolError::DupQos0);
        assert_eq!(error(0x02, b"t", 0), ProtocolError::PacketIdZero);
        assert_eq!(error(0, b"", 0), ProtocolError::TopicEmpty);
        assert_eq!(error(0, b"a/+", 0), ProtocolError::TopicWildcard);
        assert_eq!(error(0, b"a#", 0), ProtocolError::TopicWildcard);
        assert_eq!(error(0, b"a\0", 0), ProtocolError::Nul { field: "topic" });
        assert_eq!(error(0, b"\xff", 0), ProtocolError::Utf8 { field: "topic" });
        assert_eq!(error(0, &[b'a'; 1025], 0), ProtocolError::TopicTooLong { len: 1025 });
        assert_eq!(error(0, &[b'/'; 16], 0), ProtocolError::TopicTooDeep { levels: 17 });
        assert_eq!(broken_open(version, &[0x30, 2, 0, 5]), ProtocolError::Truncated { field: "topic" });
        assert_eq!(broken_open(version, &[0x32, 4, 0, 1, b't', 0]), ProtocolError::Truncated { field: "packet id" });
    }
    let with = |props: &[u8]| broken_open(V5, &publish(V5, 0, b"t", 0, props, b""));
    assert_eq!(with(&alias(0)), ProtocolError::AliasOutOfRange { alias: 0, alias_max: 16 });
    assert_eq!(with(&alias(17)), ProtocolError::AliasOutOfRange { alias: 17, alias_max: 16 });
    assert_eq!(with(&[0x01, 2]), ProtocolError::PropertyValue { id: 1 });
    assert_eq!(with(&[0x08, 0, 1, b'#']), ProtocolError::PropertyValue { id: 8 });
    assert_eq!(with(&[0x0b, 1]), ProtocolError::PropertyNotAllowed { id: 0x0b });
    assert_eq!(with(&[0x02, 0, 0]), ProtocolError::Truncated { field: "property" });
    assert_eq!(broken_open(V5, &[0x30, 4, 0, 1, b't', 9]), ProtocolError::Truncated { field: "properties" });
    assert_eq!(broken_open(V5, &publish(V5, 0, b"", 0, &alias(3), b"")), ProtocolError::AliasUnknown { alias: 3 });
}

#[test]
fn packets_that_no_client_sends_here_are_refused() {
    let cases = [
        (&[0x40, 2, 0, 1][..], Packet::Puback),
        (&[0x50, 2, 0, 1], Packet::Pubrec),
        (&[0x62, 2, 0, 1], Packet::Pubrel),
        (&[0x70, 2, 0, 1], Packet::Pubcomp),
        (&[0x20, 2, 0, 0], Packet::Connack),
        (&[0x90, 3, 0, 1, 0], Packet::Suback),
        (&[0xb0, 2, 0, 1], Packet::Unsuback),
        (&[0xd0, 0], Packet::Pingresp),
        (&[0xf0, 0], Packet::Auth),
        (&connect(V311, "again", 2, 0, &[]), Packet::Connect),
    ];
    for (bytes, packet) in cases {
        for version in [V311, V5] {
            assert_eq!(broken_open(version, bytes), ProtocolError::Unexpected { packet });
        }
    }
    assert_eq!(broken_open(V5, &[0x00, 0]), ProtocolError::PacketReserved);
    assert_eq!(broken_open(V5, &[0xc1, 0]), ProtocolError::Flags { packet: Packet::Pingreq, flags: 1 });
    assert_eq!(broken_open(V5, &[0x80, 0]), ProtocolError::Flags { packet: Packet::Subscribe, flags: 0 });
    assert_eq!(broken_open(V5, &[0xc0, 1, 0]), ProtocolError::Trailing { packet: Packet::Pingreq, len: 1 });
}

#[test]
fn subscriptions_are_refused_filter_by_filter_and_the_connection_stays() {
    let mut conn = open(ConnLimits::default(), V311);
    let filters = [field(b"a"), vec![1], field(b"b/#"), vec![0]].concat();
    let answer = feed(&mut conn, 0, &packet(0x82, &[&[0, 9][..], &filters].concat()));
    assert_eq!(answer, (vec![], Next::Read));
    tell(&mut conn, 0, &packet(0xa2, &[&[0, 10][..], &field(b"a")].concat()));
    tell(&mut conn, 0, &[0xc0, 0]);
    assert_eq!(*conn.output(), [0x90, 4, 0, 9, 0x80, 0x80, 0xb0, 2, 0, 10, 0xd0, 0]);
    let Counters { subscribes_refused, pings, .. } = conn.take_counters();
    assert_eq!((subscribes_refused, pings), (2, 1));

    let mut conn = open(ConnLimits::default(), V5);
    let filters = [field(b"a"), vec![1], field(b"b/#"), vec![0], field(b"$share/g/a"), vec![0]].concat();
    tell(&mut conn, 0, &packet(0x82, &[&[0, 9, 2, 0x0b, 1][..], &filters].concat()));
    tell(&mut conn, 0, &packet(0xa2, &[&[0, 10, 0][..], &field(b"a"), &field(b"b")].concat()));
    assert_eq!(*conn.output(), [0x90, 6, 0, 9, 0, 0x83, 0xa2, 0x9e, 0xb0, 5, 0, 10, 0, 0x11, 0x11]);

    assert_eq!(broken_open(V311, &[0x82, 2, 0, 1]), ProtocolError::NoFilter { packet: Packet::Subscribe });
    assert_eq!(broken_open(V5, &[0xa2, 3, 0, 1, 0]), ProtocolError::NoFilter { packet: Packet::Unsubscribe });
    assert_eq!(broken_open(V311, &[0x82, 2, 0, 0]), ProtocolError::PacketIdZero);
    let options = |version, options: u8| {
        let props: &[u8] = if version == V5 { &[0] } else { &[] };
        broken_open(version, &packet(0x82, &[&[0, 1][..], props, &field(b"a"), &[options]].concat()))
    };
    assert_eq!(options(V311, 4), ProtocolError::SubscribeOptions { options: 4 });
    assert_eq!(options(V5, 3), ProtocolError::SubscribeOptions { options: 3 });
    assert_eq!(options(V5, 0x40), ProtocolError::SubscribeOptions { options: 0x40 });
}

#[test]
fn an_answer_longer_than_the_client_takes_is_not_sent() {
    let mut conn = fresh(ConnLimits::default());
    tell(&mut conn, 0, &connect_with(V5, "c", 2, 0, &[0x27, 0, 0, 0, 128], &[]));
    conn.authenticated(0, Ok(UserIndex(0)));
    assert!((10..=128).contains(&conn.output().len()));
    conn.output().clear();
    let filters = [field(b"a"), vec![0]].concat().repeat(200);
    tell(&mut conn, 0, &packet(0x82, &[&[0, 1, 0][..], &filters].concat()));
    assert_eq!((conn.output().len(), conn.closed()), (0, None));
}

#[test]
fn aliases_stand_for_their_last_topic() {
    let mut conn = open(ConnLimits::default(), V5);
    let bytes = [
        publish(V5, 0, b"a/1", 0, &alias(16), b"x"),
        publish(V5, 2, b"", 7, &alias(16), b"y"),
        publish(V5, 0, b"a/2", 0, &alias(16), b""),
        publish(V5, 0, b"", 0, &alias(16), b"z"),
    ]
    .concat();
    let expected =
        vec![message("a/1", b"x", 0, 0), message("a/1", b"y", 1, 7), message("a/2", b"", 0, 0), message("a/2", b"z", 0, 0)];
    assert_eq!(feed(&mut conn, 0, &bytes), (expected, Next::Read));
}

#[test]
fn expiry_and_content_type_are_handed_over() {
    let mut conn = open(ConnLimits::default(), V5);
    let props = [&[0x01, 1, 0x02, 0, 0, 1, 0, 0x03][..], &field(b"a/json"), &[0x26], &field(b"k"), &field(b"v")].concat();
    let mut events = 0;
    let next = conn.read(0, &publish(V5, 1, b"t", 0, &props, b"p"), |event| {
        let Event::Publish(publish) = event else { panic!("{event:?}") };
        assert_eq!((publish.expiry_s, publish.content_type, publish.retain), (Some(256), Some("a/json"), true));
        events += 1;
        Flow::Continue
    });
    assert_eq!((events, next, conn.take_counters().retained), (1, Next::Read, 1));
}

#[test]
fn mqtt_5_clients_are_closed_beyond_receive_maximum_and_others_wait() {
    let limits = ConnLimits { inflight_max: 2, ..ConnLimits::default() };
    let three = |version| (1..=3).flat_map(|id| publish(version, 2, b"t", id, &[], b"x")).collect::<Vec<u8>>();
    let mut conn = open(limits, V5);
    let (error, out) = broken(&mut conn, &three(V5));
    assert_eq!((error, out[2]), (ProtocolError::ReceiveMaximum { inflight_max: 2 }, 0x93));

    let mut conn = open(limits, V311);
    let (events, next) = feed(&mut conn, 0, &three(V311));
    assert_eq!((events.len(), next, conn.inflight()), (2, Next::Pause(Pause::Inflight), 2));
    assert!(conn.held_len() > 0);
    conn.ack(1, PubAck::Success);
    let expected = (vec![message("t", b"x", 1, 3)], Next::Pause(Pause::Inflight));
    assert_eq!((feed(&mut conn, 0, &[]), conn.held_len()), (expected, 0));
    assert_eq!(conn.take_counters().pauses_inflight, 2);
}

#[test]
fn what_comes_behind_connect_waits_for_the_decision() {
    let mut conn = fresh(ConnLimits::default());
    let bytes = [connect(V311, "c", 2, 0, &[]), publish(V311, 0, b"t", 0, &[], b"early")].concat();
    let (events, next) = feed(&mut conn, 0, &bytes);
    assert_eq!((events.len(), next), (1, Next::Pause(Pause::Auth)));
    conn.authenticated(0, Ok(UserIndex(0)));
    assert_eq!(feed(&mut conn, 0, &[]), (vec![message("t", b"early", 0, 0)], Next::Read));
}

#[test]
fn bytes_fed_against_a_pause_are_bounded() {
    let mut conn = open(ConnLimits { packet_len_max: 1000, ..ConnLimits::default() }, V311);
    conn.hold();
    assert_eq!(feed(&mut conn, 0, &[0; 60_000]).1, Next::Pause(Pause::Caller));
    let (error, _) = broken(&mut conn, &[0; 7_000]);
    assert_eq!(error, ProtocolError::HeldTooLong { len: 67_000, len_max: 66_536 });
    assert_eq!((conn.held_len(), conn.take_counters().held_too_long), (0, 1));
}

#[test]
fn a_client_that_does_not_read_its_answers_is_not_read_from() {
    let mut conn = open(ConnLimits { output_len_max: 8, ..ConnLimits::default() }, V311);
    let pings = [0xc0, 0].repeat(1000);
    assert_eq!(feed(&mut conn, 0, &pings), (vec![], Next::Pause(Pause::Output)));
    assert_eq!((conn.output().len(), conn.held_len()), (8, 2000 - 8));
    conn.output().clear();
    assert_eq!(feed(&mut conn, 0, &[]).1, Next::Pause(Pause::Output));
}

#[test]
fn the_sink_stops_the_stream_at_an_exact_message() {
    let mut conn = open(ConnLimits::default(), V311);
    let bytes: Vec<u8> = (1..=3).flat_map(|id| publish(V311, 2, b"t", id, &[], b"x")).collect();
    let mut ids = Vec::new();
    for now_us in 0..3 {
        let bytes = if now_us == 0 { &bytes[..] } else { &[] };
        let next = conn.read(now_us, bytes, |event| {
            let Event::Publish(publish) = event else { panic!("{event:?}") };
            ids.push(publish.packet_id);
            Flow::Pause
        });
        assert_eq!((next, ids.len() as u64), (Next::Pause(Pause::Caller), now_us + 1));
        conn.resume(now_us);
    }
    assert_eq!((ids, feed(&mut conn, 3, &[])), (vec![1, 2, 3], (vec![], Next::Read)));
}

#[test]
fn rates_pause_reading_until_they_are_paid_for() {
    let limits = ConnLimits { messages_per_s_max: 10, ..ConnLimits::default() };
    let mut conn = open(limits, V311);
    let bytes = publish(V311, 0, b"t", 0, &[], b"x").repeat(25);
    let (mut now_us, mut bytes, mut count) = (0, &bytes[..], 0);
    while count < 25 {
        let (events, next) = feed(&mut conn, now_us, bytes);
        (bytes, count) = (&[], count + events.len());
        if let Next::Pause(Pause::Rate { until_us }) = next {
            assert!(until_us > now_us && conn.next_timeout() == Some(until_us) && conn.pause(until_us).is_none());
            now_us = until_us;
            assert_eq!(conn.tick(now_us), None);
            assert_eq!(conn.next_timeout(), None);
        }
    }
    assert!((1_400_000..=1_600_000).contains(&now_us), "25 messages: a burst of 10, then 10 a second: {now_us}");
    assert!(conn.take_counters().pauses_rate >= 15);

    let mut conn = open(ConnLimits { bytes_per_s_max: 1000, ..ConnLimits::default() }, V311);
    let (events, next) = feed(&mut conn, 0, &publish(V311, 0, b"t", 0, &[], &[7; 5997]));
    assert_eq!((events.len(), next), (1, Next::Pause(Pause::Rate { until_us: 5_000_001 })));
}

#[test]
fn silence_beyond_keep_alive_ends_a_connection_unless_we_do_not_read_it() {
    for version in [V311, V5] {
        let mut conn = fresh(ConnLimits::default());
        let (at, will) = (SECOND_US, if version == V5 { vec![0] } else { vec![] });
        let will = [will, field(b"t"), field(b"late")].concat();
        tell(&mut conn, at, &connect(version, "c", 0x06, 10, &will));
        conn.authenticated(at, Ok(UserIndex(0)));
        conn.output().clear();
        assert_eq!(conn.next_timeout(), Some(at + 15 * SECOND_US));
        tell(&mut conn, 2 * at, &[0xc0, 0]);
        assert_eq!((conn.next_timeout(), conn.tick(at + 15 * SECOND_US)), (Some(17 * SECOND_US), None));
        conn.hold();
        assert_eq!((conn.tick(17 * SECOND_US), conn.next_timeout()), (None, Some(32 * SECOND_US)));
        conn.resume(20 * SECOND_US);
        conn.output().clear();
        assert_eq!(conn.tick(35 * SECOND_US - 1), None);
        assert_eq!(conn.tick(35 * SECOND_US), Some(Close::KeepAlive { keep_alive_s: 10 }));
        assert_eq!((conn.tick(36 * SECOND_US), conn.next_timeout()), (None, None));
        assert_eq!(conn.output().first().copied(), (version == V5).then_some(0xe0));
        assert_eq!(conn.take_will().expect("no goodbye").payload, b"late");
        assert_eq!(conn.take_counters().keep_alives_expired, 1);
    }
}

#[test]
fn a_client_that_never_connects_or_is_never_decided_on_is_closed() {
    let limits = ConnLimits { connect_timeout_us: 10, ..ConnLimits::default() };
    let mut conn = fresh(limits);
    tell(&mut conn, 9, &[0x10]);
    assert_eq!((conn.next_timeout(), conn.tick(9)), (Some(10), None));
    assert_eq!(conn.tick(10), Some(Close::ConnectTimeout { timeout_us: 10 }));
    let mut conn = fresh(limits);
    tell(&mut conn, 9, &connect(V5, "c", 2, 0, &[]));
    assert_eq!((conn.next_timeout(), conn.tick(19).is_some(), conn.output()[3]), (Some(19), true, 0x88));
    let written = conn.output().len();
    conn.authenticated(20, Ok(UserIndex(0)));
    assert_eq!((conn.user(), conn.output().len()), (None, written), "a late decision changes nothing");
}

#[test]
fn goodbyes_are_told_apart() {
    let will = [field(b"t"), field(b"w")].concat();
    let with_will = |version| {
        let mut conn = fresh(ConnLimits::default());
        let rest = if version == V5 { [vec![0], will.clone()].concat() } else { will.clone() };
        tell(&mut conn, 0, &connect(version, "c", 0x06, 0, &rest));
        conn.authenticated(0, Ok(UserIndex(0)));
        conn.output().clear();
        conn
    };
    for (version, bytes, reason) in
        [(V311, &[0xe0, 0][..], 0), (V5, &[0xe0, 0], 0), (V5, &[0xe0, 1, 4], 4), (V5, &[0xe0, 6, 0, 4, 0x1f, 0, 1, b'x'], 0)]
    {
        let mut conn = with_will(version);
        let behind = [bytes, &publish(version, 0, b"t", 0, &[], b"")].concat();
        let close = Close::ByClient { reason };
        assert_eq!(feed(&mut conn, 0, &behind), (vec![Seen::Closed(close)], Next::Close));
        assert_eq!((conn.take_will().is_some(), conn.output().len()), (reason == 4, 0));
    }
    assert_eq!(broken_open(V311, &[0xe0, 1, 0]), ProtocolError::Trailing { packet: Packet::Disconnect, len: 1 });
    assert_eq!(broken_open(V5, &[0xe0, 7, 0, 5, 0x11, 0, 0, 0, 1]), ProtocolError::PropertyValue { id: 0x11 });

    let mut conn = with_will(V5);
    conn.disconnect(DisconnectReason::TakenOver);
    conn.disconnect(DisconnectReason::ShuttingDown);
    conn.ack(5, PubAck::Success);
    assert_eq!((conn.output()[0], conn.output()[2]), (0xe0, 0x8e));
    assert_eq!(conn.output().len(), 2 + conn.output()[1] as usize, "one DISCONNECT, nothing behind it");
    assert_eq!(conn.closed(), Some(Close::ByServer(DisconnectReason::TakenOver)));
    assert!(conn.take_will().is_some());
    let mut conn = fresh(ConnLimits::default());
    tell(&mut conn, 0, &connect(V311, "c", 0x06, 0, &will));
    conn.disconnect(DisconnectReason::ShuttingDown);
    assert_eq!((conn.output().clone(), conn.take_will()), (vec![0x20, 2, 0, 3], None));
}

#[test]
fn every_end_is_counted_once_and_totals_add_up() {
    let mut total = Counters::default();
    let mut count = |bytes: &[u8]| {
        let mut conn = open(ConnLimits { inflight_max: 1, ..ConnLimits::default() }, V5);
        broken(&mut conn, bytes);
        total.add(&conn.take_counters());
    };
    count(&[0x00, 0]);
    count(&[0x40, 2, 0, 1]);
    count(&[0x30, 0xff, 0xff, 0x7f]);
    count(&publish(V5, 0, b"#", 0, &[], b""));
    count(&publish(V5, 0, b"t", 0, &alias(99), b""));
    count(&publish(V5, 4, b"t", 1, &[], b""));
    count(&publish(V5, 2, b"t", 1, &[], b"xyz").repeat(2));
    let expected = Counters {
        connects_accepted: 7,
        publishes_qos1: 1,
        payload_bytes: 3,
        malformed: 1,
        protocol_errors: 1,
        packets_too_large: 1,
        topics_invalid: 1,
        aliases_invalid: 1,
        qos2_refused: 1,
        receive_maximum_exceeded: 1,
        ..Counters::default()
    };
    assert_eq!(total, expected);
}
