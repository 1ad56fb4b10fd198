//! Whole streams of packets: cut anywhere they mean the same, and no bytes at all do harm.

use proptest::prelude::*;

use super::client::*;
use crate::mqtt::{Close, ConnLimits, Next, Version};

#[derive(Debug, Clone)]
enum Sent {
    Publish { topic: String, payload: Vec<u8>, qos: u8, packet_id: u16, dup: bool, retain: bool, alias: u16 },
    Ping,
    Subscribe,
    Unsubscribe,
}

fn sent() -> impl Strategy<Value = Sent> {
    let payload = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..20),
        1 => proptest::collection::vec(any::<u8>(), 100..300),
    ];
    prop_oneof![
        8 => ("[a-zé]{1,3}(/[a-z0-9 ]{0,4}){0,5}", payload, 0..2_u8, 1..u16::MAX, any::<bool>(), any::<bool>(), 0..17_u16)
            .prop_map(|(topic, payload, qos, packet_id, dup, retain, alias)| {
                let (packet_id, dup) = if qos == 1 { (packet_id, dup) } else { (0, false) };
                Sent::Publish { topic, payload, qos, packet_id, dup, retain, alias }
            }),
        1 => Just(Sent::Ping),
        1 => Just(Sent::Subscribe),
        1 => Just(Sent::Unsubscribe),
    ]
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(V311), Just(V5)]
}

/// Encodes; an aliased topic is sent as text the first time and by its alias after that.
fn encode(version: Version, sent: &[Sent]) -> (Vec<u8>, Vec<Seen>) {
    let (mut bytes, mut expected) = (connect(version, "c", 2, 0, &[]), Vec::new());
    let mut aliases = vec![String::new(); 17];
    let no_props: &[u8] = if version == V5 { &[0] } else { &[] };
    for sent in sent {
        match sent.clone() {
            Sent::Publish { topic, payload, qos, packet_id, dup, retain, alias: number } => {
                let flags = u8::from(dup) << 3 | qos << 1 | u8::from(retain);
                let aliased = version == V5 && number > 0;
                let known = aliased && aliases[number as usize] == topic;
                let props = if aliased { alias(number) } else { vec![] };
                let on_wire = if known { "" } else { &topic };
                bytes.extend(publish(version, flags, on_wire.as_bytes(), packet_id, &props, &payload));
                aliases[number as usize].clone_from(&topic);
                expected.push(Seen::Publish { topic, payload, qos, packet_id, dup, retain });
            }
            Sent::Ping => bytes.extend([0xc0, 0]),
            Sent::Subscribe => bytes.extend(packet(0x82, &[&[0, 1], no_props, &field(b"a/+"), &[0]].concat())),
            Sent::Unsubscribe => bytes.extend(packet(0xa2, &[&[0, 1], no_props, &field(b"a")].concat())),
        }
    }
    bytes.extend([0xe0, 0]);
    expected.push(Seen::Closed(Close::ByClient { reason: 0 }));
    (bytes, expected)
}

/// Cuts at the given places, in order.
fn chunks<'b>(bytes: &'b [u8], cuts: &[usize]) -> Vec<&'b [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

fn limits(version: Version) -> ConnLimits {
    let inflight_max = if version == V311 { 3 } else { 1024 };
    ConnLimits { inflight_max, output_len_max: 20, packet_len_max: 1000, ..ConnLimits::default() }
}

proptest! {
    #[test]
    fn what_is_published_arrives_however_the_stream_is_cut(
        version in version(),
        sent in proptest::collection::vec(sent(), 0..30),
        cuts in proptest::collection::vec(any::<usize>(), 0..40),
        bytewise in any::<bool>(),
    ) {
        let (bytes, expected) = encode(version, &sent);
        let mut conn = fresh(limits(version));
        let cut = if bytewise { bytes.chunks(1).collect() } else { chunks(&bytes, &cuts) };
        let events = drive(&mut conn, cut);
        prop_assert_eq!(&events[1..], &expected[..]);
        prop_assert_eq!(conn.held_len(), 0);
    }

    #[test]
    fn a_damaged_stream_means_the_same_however_it_is_cut(
        version in version(),
        sent in proptest::collection::vec(sent(), 1..10),
        damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let (mut bytes, _) = encode(version, &sent);
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let whole = drive(&mut fresh(limits(version)), [&bytes[..]]);
        let cut = drive(&mut fresh(limits(version)), chunks(&bytes, &cuts));
        prop_assert_eq!(whole, cut);
    }

    #[test]
    fn no_bytes_do_harm_or_are_kept_beyond_the_limits(
        version in version(),
        connected in any::<bool>(),
        reads in proptest::collection::vec((0..32_u8, proptest::collection::vec(any::<u8>(), 0..200)), 1..20),
    ) {
        let limits = limits(version);
        let mut conn = if connected { open(limits, version) } else { fresh(limits) };
        for (kind, mut bytes) in reads {
            // A likely first byte and a length that fits lead deeper than chance does.
            if let [header, len, ..] = &mut bytes[..] {
                *header = kind << 4 | if kind == 3 { kind & 6 } else { *header & 0x0f };
                *len &= 0x7f;
            }
            let (_, next) = feed(&mut conn, 0, &bytes);
            prop_assert!(conn.held_len() <= limits.connect_len_max as usize + 64 * 1024);
            prop_assert!(conn.output().len() <= 20 + 1000);
            if next == Next::Close {
                prop_assert_eq!(conn.held_len(), 0);
                break;
            }
        }
    }
}
