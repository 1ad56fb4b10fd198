use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::block::{NewRecord, Staging};
use crate::ids::{Class, Epoch};
use crate::payload::{ElementType, NumberFormat, OpaqueFormat, PackedFormat, SparkplugFormat, TimeOf};
use crate::policy::StreamFidelity;

const STREAMS: [&str; 3] = ["numbers", "blobs", "alarms"];

fn policies() -> Vec<StreamPolicy> {
    let formats = [
        PayloadFormat::Number(NumberFormat::default()),
        PayloadFormat::Opaque(OpaqueFormat::default()),
        PayloadFormat::Number(NumberFormat::default()),
    ];
    STREAMS
        .iter()
        .zip(formats)
        .map(|(name, format)| StreamPolicy {
            name: (*name).into(),
            filters: Vec::new(),
            class: Class::Normal,
            fidelity: StreamFidelity::Raw,
            format,
            aggregate: None,
            keep: None,
            model: None,
            ack_record: false,
            zones: Vec::new(),
            value: None,
            offload: None,
            truth: None,
        })
        .collect()
}

#[test]
fn what_could_be_a_birth_that_others_need_is_never_thinned() {
    let mut policies = policies();
    policies[1].format = PayloadFormat::Sparkplug(SparkplugFormat { fields: vec!["rpm".to_owned()], rate_hz: None });
    assert_eq!(*Thinner::new(&policies, 1).floors(), [Level::Aggregate, Level::Raw, Level::Aggregate]);
}

/// A block of `(stream, device, kind, payload)`, from sequence number 100, one record a millisecond.
fn block(records: &[(usize, usize, RecordKind, String)], cut_at: usize) -> (BlockHeader, Bytes) {
    let (mut staging, mut codec) = (Staging::new(100), Codec::default());
    for (at, (stream, device, kind, payload)) in records.iter().enumerate() {
        if at == cut_at {
            staging.cut(Class::Normal, Epoch(7), None, &mut codec);
        }
        staging.push(&NewRecord {
            source: (stream * 8 + device) as u32,
            stream: STREAMS[*stream],
            device: &device.to_string(),
            kind: *kind,
            service_time: false,
            at_us: 5_000 + at as u64 * 1_000,
            payload: payload.as_bytes(),
        });
    }
    staging.seal(Class::Normal, Epoch(7), None, &mut codec).expect("there are records")
}

type Owned = (u64, String, String, RecordKind, Vec<u8>);

fn open(block: &[u8]) -> (BlockHeader, Vec<Owned>) {
    let mut codec = Codec::default();
    let (header, records) = codec.open(block).expect("a whole block");
    let own = |r: Record<'_>| (r.seq, r.stream.to_owned(), r.device.to_owned(), r.kind, r.payload.to_vec());
    (header, records.map(|record| own(record.expect("whole records"))).collect())
}

fn thin(block: &[u8], thinning: [Thinning; 3]) -> Option<Thinned> {
    let mut thinner = Thinner::new(&policies(), 1);
    thinner.thin(&mut Codec::default(), block, |stream| thinning[usize::from(stream)]).expect("a whole block")
}

fn numbers(devices: usize, each: usize) -> Vec<(usize, usize, RecordKind, String)> {
    // As long as an aggregate of one channel, so that sixteen go into one.
    (0..devices * each).map(|at| (0, at % devices, RecordKind::Raw, format!("{at:044}"))).collect()
}

#[test]
fn one_in_n_keeps_every_nth_message_of_each_device_over_blocks() {
    let mut thinner = Thinner::new(&policies(), 1);
    let mut kept: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for round in 0..8 {
        // Three messages of each of two devices a block: never a multiple of four.
        let records: Vec<_> = (0..6).map(|at| (0, at % 2, RecordKind::Raw, format!("{}", round * 3 + at / 2))).collect();
        let (_, block) = block(&records, 3);
        let thinned = thinner.thin(&mut Codec::default(), &block, |_| Thinning::OneIn(4)).expect("a whole block");
        for (_, _, device, _, payload) in open(&thinned.expect("some are left out").block).1 {
            kept.entry(device).or_default().push(String::from_utf8(payload).expect("text").parse().expect("a number"));
        }
    }
    // A block in which nothing is anyone's turn keeps its last record.
    let regular: Vec<usize> = (0..24).step_by(4).collect();
    for numbers in kept.values() {
        assert!(regular.iter().all(|number| numbers.contains(number)), "{numbers:?}");
    }
    assert_eq!(kept["0"], regular);
    assert!(kept["1"].len() <= regular.len() + 3, "{kept:?}");
}

#[test]
fn aggregates_stand_for_every_message_and_have_the_number_of_their_last() {
    let (original, bytes) = block(&numbers(2, 37), 10);
    let thinned = thin(&bytes, [Thinning::Aggregate; 3]).expect("thinned");
    let (header, records) = open(&thinned.block);
    assert_eq!((header.key, header.last_seq, header.born_us), (original.key, original.last_seq, original.born_us));
    assert_eq!(header.fidelity, Fidelity::Thinned);
    assert_eq!(records.len() as u32, header.count);
    assert_eq!(thinned.removed, original.count - header.count);
    for device in ["0", "1"] {
        let parity: usize = device.parse().expect("a number");
        let aggregates: Vec<_> = records.iter().filter(|r| r.2 == device).collect();
        // 37 = 16 + 16 + 5: five are enough for one of their own.
        let counts: Vec<u64> = aggregates.iter().map(|r| Aggregate::decode(&r.4).expect("an aggregate").count).collect();
        assert_eq!(counts, [16, 16, 5]);
        let first = Aggregate::decode(&aggregates[0].4).expect("an aggregate");
        let values: Vec<f64> = (0..16).map(|at| (at * 2 + parity) as f64).collect();
        assert_eq!(first.channels[0].min, values[0]);
        assert_eq!(first.channels[0].max, values[15]);
        assert_eq!(first.channels[0].sum, values.iter().sum::<f64>());
        assert_eq!(aggregates[0].0, 100 + (15 * 2 + parity) as u64);
    }
}

#[test]
fn what_is_left_over_is_taken_into_the_last_aggregate() {
    let (_, bytes) = block(&numbers(1, 35), 0);
    let (_, records) = open(&thin(&bytes, [Thinning::Aggregate; 3]).expect("thinned").block);
    let counts: Vec<u64> = records.iter().map(|r| Aggregate::decode(&r.4).expect("an aggregate").count).collect();
    assert_eq!(counts, [16, 19]);
}

#[test]
fn long_messages_keep_their_resolution_in_time() {
    let long: Vec<_> = (0..44).map(|at| (0, 0, RecordKind::Raw, format!("{at:064}"))).collect();
    let (_, bytes) = block(&long, 0);
    let (_, records) = open(&thin(&bytes, [Thinning::Aggregate; 3]).expect("thinned").block);
    assert_eq!(records.len(), 4, "eleven messages of 64 bytes are sixteen times an aggregate");
}

#[test]
fn a_message_that_is_long_enough_becomes_an_aggregate_of_itself() {
    let mut policies = policies();
    policies[0].format = PayloadFormat::Packed(PackedFormat {
        element: ElementType::I16,
        channels: 1,
        scale: None,
        offset: None,
        rate_hz: Some(100.0),
        time_of: TimeOf::First,
    });
    let long = vec![(0, 0, RecordKind::Raw, "ab".repeat(500))];
    let (_, bytes) = block(&long, 0);
    let thinned = Thinner::new(&policies, 1).thin(&mut Codec::default(), &bytes, |_| Thinning::Aggregate);
    let thinned = thinned.expect("a whole block").expect("thinned");
    let (_, records) = open(&thinned.block);
    assert_eq!((thinned.removed, records.len()), (0, 1));
    assert_eq!(Aggregate::decode(&records[0].4).expect("an aggregate").count, 500);
}

#[test]
fn opaque_payloads_and_few_messages_are_thinned_instead_of_aggregated() {
    let blobs: Vec<_> = (0..8).map(|at| (1, 0, RecordKind::Raw, format!("blob {at}"))).collect();
    let (_, bytes) = block(&blobs, 0);
    let (_, records) = open(&thin(&bytes, [Thinning::Aggregate; 3]).expect("thinned").block);
    let kept: Vec<_> = records.iter().map(|r| r.4.clone()).collect();
    assert_eq!(kept, [b"blob 0".to_vec(), b"blob 4".to_vec()]);
    let (_, bytes) = block(&numbers(1, 3), 0);
    let (_, records) = open(&thin(&bytes, [Thinning::Aggregate; 3]).expect("thinned").block);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].3, RecordKind::Raw);
}

#[test]
fn what_cannot_be_decoded_is_kept_as_it_is() {
    let mut records = numbers(1, 8);
    records[3].3 = "not a number".to_owned();
    let (_, bytes) = block(&records, 0);
    let (_, records) = open(&thin(&bytes, [Thinning::Aggregate; 3]).expect("thinned").block);
    assert!(records.iter().any(|r| r.4 == b"not a number" && r.3 == RecordKind::Raw && r.0 == 103));
    assert_eq!(records.len(), 2);
}

#[test]
fn an_aggregate_without_a_trusted_clock_says_so() {
    let (_, bytes) = block(&numbers(1, 8), 0);
    let thinned = thin(&bytes, [Thinning::Aggregate; 3]).expect("thinned");
    let mut codec = Codec::default();
    let (_, mut records) = codec.open(&thinned.block).expect("a whole block");
    assert!(records.next().expect("one").expect("whole").service_time);
}

fn kinds() -> impl Strategy<Value = RecordKind> {
    prop_oneof![8 => Just(RecordKind::Raw), 1 => Just(RecordKind::Verdict), 1 => Just(RecordKind::Window)]
}

fn thinnings() -> impl Strategy<Value = Thinning> {
    prop_oneof![Just(Thinning::None), (1u32..6).prop_map(Thinning::OneIn), Just(Thinning::Aggregate)]
}

proptest! {
    #[test]
    fn thinning_keeps_the_range_the_order_and_all_that_is_not_raw(
        records in prop::collection::vec((0usize..3, 0usize..4, kinds(), "[0-9]{1,44}|x"), 1..200),
        cut_at in 0usize..200,
        thinnings in [thinnings(), thinnings(), thinnings()],
    ) {
        let (original, bytes) = block(&records, cut_at);
        let Some(thinned) = thin(&bytes, thinnings) else { return Ok(()) };
        let (header, kept) = open(&thinned.block);
        prop_assert_eq!(thinned.header, header);
        prop_assert_eq!((header.key, header.last_seq), (original.key, original.last_seq));
        prop_assert_eq!(header.count + thinned.removed, original.count);
        prop_assert!(header.count > 0);
        prop_assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let mut folded = 0;
        for (seq, stream, device, kind, payload) in &kept {
            let was = &records[(seq - 100) as usize];
            prop_assert_eq!((stream.as_str(), device), (STREAMS[was.0], &was.1.to_string()));
            if *kind == RecordKind::Aggregate {
                folded += Aggregate::decode(payload).expect("an aggregate").count;
            } else {
                prop_assert_eq!((*kind, payload.as_slice()), (was.2, was.3.as_bytes()));
            }
        }
        let originals = |kind| records.iter().filter(|record| record.2 == kind).count();
        for kind in [RecordKind::Verdict, RecordKind::Window] {
            prop_assert_eq!(kept.iter().filter(|record| record.3 == kind).count(), originals(kind));
        }
        // With nothing but aggregates asked for, and enough of each device, every number that decodes is in one.
        if thinnings == [Thinning::Aggregate; 3] {
            let mut by_source: BTreeMap<(usize, usize), (usize, usize, u64)> = BTreeMap::new();
            for record in records.iter().filter(|record| record.2 == RecordKind::Raw) {
                let entry = by_source.entry((record.0, record.1)).or_default();
                *entry = (entry.0 + 1, entry.1 + record.3.len(), entry.2 + u64::from(record.3 != "x"));
            }
            // An aggregate of one channel has 44 bytes.
            let pays = |count: usize, bytes: usize| 4 * 44 <= bytes || count * bytes >= 16 * 44 * count;
            let expected: u64 = by_source
                .iter()
                .filter(|((stream, _), (count, bytes, _))| *stream != 1 && pays(*count, *bytes))
                .map(|(_, (_, _, numbers))| numbers)
                .sum();
            prop_assert_eq!(folded, expected);
        }
    }

    #[test]
    fn damaged_blocks_are_refused(records in 1usize..50, at in 0usize..400, bit in 0u8..8) {
        let (_, bytes) = block(&numbers(1, records), 0);
        let mut bytes = bytes.to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let mut thinner = Thinner::new(&policies(), 1);
        prop_assert!(thinner.thin(&mut Codec::default(), &bytes, |_| Thinning::OneIn(2)).is_err());
    }
}
