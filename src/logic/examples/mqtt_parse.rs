//! Measures the path of a message through the MQTT room: parse, route, queue its acknowledgement, write the PUBACK.
//!
//! `cargo run --release -p weir-logic --example mqtt_parse`; prints nanoseconds a message.
#![allow(clippy::print_stdout)] // a measurement is for a person to read

use std::hint::black_box;
use std::time::Instant;

use weir_logic::ids::{Class, Epoch};
use weir_logic::mqtt::{
    Ack, AckQueue, ConnLimits, Connection, Event, Filter, FilterTree, Flow, Next, Route, RouterLimits, TopicRouter, UserIndex,
};

const PAYLOAD_LEN: usize = 200;
const TOPICS: usize = 100;
const READS: usize = 20_000;

fn main() {
    for version in [4, 5] {
        for (name, acknowledged) in [("parse only, QoS 0", false), ("parse, route, queue and acknowledge, QoS 1", true)] {
            let (messages, nanoseconds) = measure(version, acknowledged);
            println!("MQTT level {version}: {name}: {:.1} ns/message", nanoseconds as f64 / messages as f64);
        }
    }
}

/// Feeds reads of 64 KiB; returns the messages and the nanoseconds they took.
fn measure(version: u8, acknowledged: bool) -> (u64, u128) {
    let mut conn = Connection::new(ConnLimits { inflight_max: 10_000, ..ConnLimits::default() }, Epoch(1), 1, 0);
    let mut connect = vec![0x10, if version == 5 { 14 } else { 13 }, 0, 4, b'M', b'Q', b'T', b'T', version, 2, 0, 0];
    connect.extend_from_slice(if version == 5 { &[0, 0, 1, b'c'] } else { &[0, 1, b'c'] });
    let next = conn.read(0, &connect, |_| Flow::Continue);
    assert!(matches!(next, Next::Pause(_)));
    conn.authenticated(0, Ok(UserIndex(0)));

    let all = FilterTree::new([(&Filter::parse("#").expect("valid"), 0)]);
    let streams = FilterTree::new([(&Filter::parse("plant/+/vibration").expect("valid"), 0)]);
    let mut router = TopicRouter::new(streams, vec![all], RouterLimits::default(), 1);
    let (mut acks, mut seq, mut messages) = (AckQueue::new(), 0_u64, 0_u64);
    let stream = publishes(version, acknowledged);
    let mut reads = stream.chunks(64 * 1024).cycle();
    // The stream ends within no packet, so that it can be fed again and again.
    let start = Instant::now();
    for _ in 0..READS {
        let bytes = reads.next().expect("endless");
        let next = conn.read(1, bytes, |event| {
            let Event::Publish(publish) = event else { panic!("{event:?}") };
            messages += 1;
            if acknowledged {
                let route = router.route(UserIndex(0), publish.topic);
                assert!(matches!(route, Route::Stream { .. }));
                acks.push(publish.packet_id, Ack::WhenSafe { lane: Class::Normal, seq });
                seq += 1;
            }
            black_box(publish.payload);
            Flow::Continue
        });
        assert_eq!(next, Next::Read);
        acks.release(&[seq; 4], &mut conn);
        black_box(conn.output()).clear();
    }
    (messages, start.elapsed().as_nanos())
}

/// About 1 MiB of PUBLISH packets over some topics.
fn publishes(version: u8, acknowledged: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for n in 0..4500_usize {
        let topic = format!("plant/press-{:03}/vibration", n % TOPICS);
        let mut body = (topic.len() as u16).to_be_bytes().to_vec();
        body.extend_from_slice(topic.as_bytes());
        if acknowledged {
            body.extend_from_slice(&(n as u16 + 1).to_be_bytes());
        }
        if version == 5 {
            body.push(0);
        }
        body.extend_from_slice(&[b'7'; PAYLOAD_LEN]);
        out.push(if acknowledged { 0x32 } else { 0x30 });
        out.extend_from_slice(&[(body.len() % 128) as u8 | 0x80, (body.len() / 128) as u8]);
        out.extend_from_slice(&body);
    }
    out
}
