use proptest::prelude::*;

use crate::window::*;

fn finite() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("finite", |value| value.is_finite())
}

fn span() -> impl Strategy<Value = (i64, i64)> {
    (any::<i64>(), any::<i64>()).prop_map(|(a, b)| (a.min(b), a.max(b)))
}

fn aggregate() -> impl Strategy<Value = Aggregate> {
    let channel = (finite(), finite(), finite()).prop_map(|(a, b, sum)| ChannelAggregate { min: a.min(b), max: a.max(b), sum });
    (span(), span(), 1_u64.., prop::collection::vec(channel, 1..8)).prop_map(|(span, times, count, channels)| Aggregate {
        start_us: span.0,
        end_us: span.1,
        first_us: times.0,
        last_us: times.1,
        count,
        channels,
    })
}

fn verdict() -> impl Strategy<Value = VerdictRecord> {
    let number = || any::<f32>().prop_filter("finite", |value| value.is_finite());
    (".{0,16}", ".{0,16}", ".{0,16}", number(), number(), span()).prop_map(
        |(model, version, label, score, confidence, span)| VerdictRecord {
            model: model.into(),
            version: version.into(),
            label: label.into(),
            score,
            confidence,
            start_us: span.0,
            end_us: span.1,
        },
    )
}

fn window() -> impl Strategy<Value = WindowValues> {
    let number = any::<f32>().prop_filter("finite", |value| value.is_finite());
    (1_usize..5, prop::collection::vec(number, 20), span()).prop_map(|(channels, mut values, span)| {
        values.truncate(20 / channels * channels);
        WindowValues { start_us: span.0, end_us: span.1, channels, values }
    })
}

fn encoded_window(values: &WindowValues) -> Vec<u8> {
    let mut out = Vec::new();
    let WindowValues { start_us, end_us, channels, ref values } = *values;
    encode_window(&Window { start_us, end_us, channels, values }, &mut out);
    out
}

fn encoded(verdict: &VerdictRecord) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    verdict.encode(&mut out).map(|()| out)
}

const AGGREGATE_V1: [u8; 39] = [
    1, 1, 200, 1, 100, 220, 1, 50, 2, // version, channels, start 100, span 100, first 110, first to last 50, count 2
    0, 0, 0, 0, 0, 0, 240, 191, 0, 0, 0, 0, 0, 0, 8, 64, 0, 0, 0, 0, 0, 0, 0, 64, // -1, 3, 2
    0, 0, 0, 0, 0, 0,
];

#[test]
fn version_1_of_an_aggregate_stays_readable() {
    let bytes = &AGGREGATE_V1[..33];
    let aggregate = Aggregate::decode(bytes).unwrap();
    assert_eq!(
        aggregate,
        Aggregate {
            start_us: 100,
            end_us: 200,
            first_us: 110,
            last_us: 160,
            count: 2,
            channels: vec![ChannelAggregate { min: -1.0, max: 3.0, sum: 2.0 }],
        }
    );
    let mut out = Vec::new();
    aggregate.encode(&mut out);
    assert_eq!(out, bytes);
}

#[test]
fn version_1_of_a_verdict_stays_readable() {
    let bytes = b"\x01\x01m\x02v1\x04fall\x02\x06\x00\x00\x80\x3f\x00\x00\x00\x3f";
    let verdict = VerdictRecord::decode(bytes).unwrap();
    assert_eq!((&*verdict.model, &*verdict.version, &*verdict.label), ("m", "v1", "fall"));
    assert_eq!((verdict.score, verdict.confidence, verdict.start_us, verdict.end_us), (1.0, 0.5, 1, 7));
    assert_eq!(encoded(&verdict).unwrap(), bytes);
}

#[test]
fn version_1_of_a_window_stays_readable() {
    let bytes = b"\x01\x01\x02\x02\x06\x00\x00\x80\x3f\x00\x00\x00\x3f";
    let window = WindowValues::decode(bytes).unwrap();
    assert_eq!(window, WindowValues { start_us: 1, end_us: 7, channels: 1, values: vec![1.0, 0.5] });
    assert_eq!(encoded_window(&window), bytes);
}

#[test]
fn bytes_of_no_record_are_told_apart() {
    let bytes = &AGGREGATE_V1[..33];
    assert_eq!(Aggregate::decode(&[]), Err(CodecError::Truncated));
    assert_eq!(Aggregate::decode(&[9]), Err(CodecError::Version { version: 9 }));
    assert_eq!(Aggregate::decode(&bytes[..32]), Err(CodecError::Truncated));
    assert_eq!(Aggregate::decode(&AGGREGATE_V1), Err(CodecError::Trailing { len_bytes: 6 }));
    assert_eq!(Aggregate::decode(&[1, 0]), Err(CodecError::Limit { field: "channels", value: 0, max: 64 }));
    assert_eq!(Aggregate::decode(&[1, 65]), Err(CodecError::Limit { field: "channels", value: 65, max: 64 }));
    let mut swapped = bytes.to_vec();
    swapped[9..25].rotate_left(8);
    assert_eq!(Aggregate::decode(&swapped), Err(CodecError::Inconsistent { what: "minimum above maximum" }));
    let mut nan = bytes.to_vec();
    nan[31..33].copy_from_slice(&[0xf8, 0x7f]);
    assert_eq!(Aggregate::decode(&nan), Err(CodecError::NotFinite));
    assert_eq!(
        WindowValues::decode(b"\x01\x02\x03\x00\x00").unwrap_err(),
        CodecError::Inconsistent { what: "values are not whole channels" }
    );
    let huge = b"\x01\x01\xff\xff\xff\xff\x0f\x00\x00";
    assert!(matches!(WindowValues::decode(huge), Err(CodecError::Limit { field: "values", .. })));
}

#[test]
fn a_verdict_that_breaks_a_limit_is_not_encoded() {
    let good = VerdictRecord::decode(b"\x01\x01m\x02v1\x04fall\x02\x06\x00\x00\x80\x3f\x00\x00\x00\x3f").unwrap();
    let long = VerdictRecord { label: "x".repeat(65).into(), ..good.clone() };
    assert_eq!(encoded(&long), Err(CodecError::Limit { field: "label", value: 65, max: 64 }));
    let nan = VerdictRecord { score: f32::NAN, ..good };
    assert_eq!(encoded(&nan), Err(CodecError::NotFinite));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_decoded(aggregate in aggregate(), verdict in verdict(), window in window()) {
        let mut out = Vec::new();
        aggregate.encode(&mut out);
        prop_assert_eq!(Aggregate::decode(&out), Ok(aggregate));
        prop_assert_eq!(VerdictRecord::decode(&encoded(&verdict).unwrap()), Ok(verdict));
        prop_assert_eq!(WindowValues::decode(&encoded_window(&window)), Ok(window));
    }

    #[test]
    fn no_part_of_an_encoding_is_an_encoding(aggregate in aggregate(), verdict in verdict(), window in window()) {
        let mut out = Vec::new();
        aggregate.encode(&mut out);
        prop_assert!((0..out.len()).all(|len| Aggregate::decode(&out[..len]).is_err()));
        let out = encoded(&verdict).unwrap();
        prop_assert!((0..out.len()).all(|len| VerdictRecord::decode(&out[..len]).is_err()));
        let out = encoded_window(&window);
        prop_assert!((0..out.len()).all(|len| WindowValues::decode(&out[..len]).is_err()));
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_are_what_they_say(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        small in prop::collection::vec(0_u8..8, 0..8),
    ) {
        let small_len = small.len().min(bytes.len());
        bytes[..small_len].copy_from_slice(&small[..small_len]);
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        if let Ok(aggregate) = Aggregate::decode(&bytes) {
            let mut out = Vec::new();
            aggregate.encode(&mut out);
            prop_assert_eq!(Aggregate::decode(&out), Ok(aggregate));
        }
        if let Ok(verdict) = VerdictRecord::decode(&bytes) {
            prop_assert_eq!(VerdictRecord::decode(&encoded(&verdict).unwrap()), Ok(verdict));
        }
        if let Ok(window) = WindowValues::decode(&bytes) {
            prop_assert_eq!(WindowValues::decode(&encoded_window(&window)), Ok(window));
        }
    }
}
