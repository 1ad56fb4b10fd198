use std::collections::BTreeMap;

use proptest::prelude::*;

use super::message;
use crate::window::*;

const SPEC: AggregateSpec = AggregateSpec { channels: 1, every_us: 100, reorder_max_us: 10 };

fn one(value: f64) -> ChannelAggregate {
    ChannelAggregate { min: value, max: value, sum: value }
}

#[test]
fn spans_are_aligned_and_closed_by_the_next_sample() {
    let mut aggregator = Aggregator::new(SPEC);
    assert_eq!(aggregator.push(130, 0, &[3.0]), None);
    assert_eq!(aggregator.push(199, 0, &[-1.0]), None);
    let closed = aggregator.push(400, 0, &[7.0]).unwrap();
    assert_eq!((closed.start_us, closed.end_us, closed.first_us, closed.last_us), (100, 200, 130, 199));
    assert_eq!((closed.count, closed.mean(0), closed.mean(1)), (2, Some(1.0), None));
    assert_eq!(closed.channels, [ChannelAggregate { min: -1.0, max: 3.0, sum: 2.0 }]);
    assert_eq!(aggregator.flush().map(|open| (open.start_us, open.count)), Some((400, 1)));
    assert_eq!(aggregator.flush(), None);
}

#[test]
fn times_before_1970_are_aligned_too() {
    let mut aggregator = Aggregator::new(SPEC);
    aggregator.push(-1, 0, &[1.0]);
    assert_eq!(aggregator.flush().map(|open| (open.start_us, open.end_us)), Some((-100, 0)));
}

#[test]
fn a_late_sample_is_folded_into_the_open_span() {
    let mut aggregator = Aggregator::new(SPEC);
    aggregator.push(200, 0, &[1.0]);
    assert_eq!(aggregator.push(190, 0, &[2.0]), None);
    assert_eq!(aggregator.counters().late, 1);
    assert_eq!(aggregator.flush().map(|open| (open.start_us, open.first_us, open.count)), Some((200, 190, 2)));
}

#[test]
fn a_clock_that_is_set_back_opens_the_older_span_and_loses_nothing() {
    let mut aggregator = Aggregator::new(SPEC);
    aggregator.push(1_000, 0, &[1.0]);
    assert_eq!(aggregator.push(500, 0, &[2.0]).map(|closed| closed.start_us), Some(1_000));
    assert_eq!(aggregator.push(590, 0, &[2.0]), None);
    assert_eq!(aggregator.counters().jumps_back, 1);
    assert_eq!(aggregator.flush().map(|open| (open.start_us, open.count)), Some((500, 2)));
}

#[test]
fn a_silent_device_is_closed_by_the_clock_of_the_box_whatever_its_own_says() {
    let mut aggregator = Aggregator::new(SPEC);
    assert_eq!(aggregator.close_at_us(), None);
    assert_eq!(aggregator.close_if_older(i64::MAX - 1), None);
    aggregator.push(140, 1_000_000, &[1.0]);
    assert_eq!(aggregator.close_at_us(), Some(1_000_070));
    aggregator.push(190, 1_000_055, &[1.0]);
    assert_eq!(aggregator.close_at_us(), Some(1_000_070), "the earliest end that a sample has shown");
    assert_eq!(aggregator.close_if_older(1_000_069), None);
    assert_eq!(aggregator.close_if_older(1_000_070).map(|closed| closed.count), Some(2));
    assert_eq!(aggregator.close_at_us(), None);
    assert_eq!(aggregator.counters().aggregates, 1);
}

#[test]
fn all_rows_of_a_message_are_folded() {
    let mut aggregator = Aggregator::new(SPEC);
    let mut closed = Vec::new();
    let samples = message(r#"{"t":250,"v":[1,2,3,4,5,6]}"#, 25_000.0);
    aggregator.push_message(&samples, 0, |aggregate| closed.push((aggregate.start_us, aggregate.count)));
    closed.extend(aggregator.flush().map(|open| (open.start_us, open.count)));
    assert_eq!(closed, [(0, 2), (100, 2), (200, 2)]);
}

#[test]
fn sums_stay_finite() {
    let mut aggregator = Aggregator::new(SPEC);
    aggregator.push(0, 0, &[f64::MAX]);
    aggregator.push(1, 0, &[f64::MAX]);
    assert_eq!(aggregator.flush().and_then(|open| open.mean(0)), Some(f64::MAX / 2.0));
}

#[test]
fn aggregates_of_different_shape_do_not_merge() {
    let mut aggregate = Aggregate { start_us: 0, end_us: 1, first_us: 0, last_us: 0, count: 1, channels: vec![one(1.0)] };
    let other = Aggregate { channels: vec![one(1.0), one(2.0)], ..aggregate.clone() };
    let before = aggregate.clone();
    aggregate.merge(&other).unwrap_err();
    assert_eq!(aggregate, before);
}

/// The aggregate of a list, without an aggregator.
fn naive(start_us: i64, end_us: i64, samples: &[(i64, f64)]) -> Aggregate {
    let values = samples.iter().map(|(_, value)| *value);
    Aggregate {
        start_us,
        end_us,
        first_us: samples.iter().map(|(time_us, _)| *time_us).min().unwrap(),
        last_us: samples.iter().map(|(time_us, _)| *time_us).max().unwrap(),
        count: samples.len() as u64,
        channels: vec![ChannelAggregate {
            min: values.clone().fold(f64::INFINITY, f64::min),
            max: values.clone().fold(f64::NEG_INFINITY, f64::max),
            sum: values.sum(),
        }],
    }
}

/// Times that mostly rise, with whole values whose sums are exact.
fn samples() -> impl Strategy<Value = Vec<(i64, f64)>> {
    let step = prop_oneof![8 => 0_i64..60, 2 => -30_i64..0, 1 => -500_i64..500];
    prop::collection::vec((step, -1000_i32..1000), 1..100).prop_map(|steps| {
        let mut time_us = 0;
        steps
            .into_iter()
            .map(|(step, value)| {
                time_us += step;
                (time_us, f64::from(value))
            })
            .collect()
    })
}

fn aggregates(samples: &[(i64, f64)], spec: AggregateSpec) -> Vec<Aggregate> {
    let mut aggregator = Aggregator::new(spec);
    let mut closed: Vec<_> = samples.iter().filter_map(|(time_us, value)| aggregator.push(*time_us, 0, &[*value])).collect();
    closed.extend(aggregator.flush());
    assert_eq!(aggregator.counters().aggregates, closed.len() as u64);
    closed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn without_reordering_each_span_merges_to_the_aggregate_of_its_samples(samples in samples()) {
        let mut spans: BTreeMap<i64, Vec<(i64, f64)>> = BTreeMap::new();
        for sample in &samples {
            spans.entry(sample.0.div_euclid(100) * 100).or_default().push(*sample);
        }
        let mut merged: BTreeMap<i64, Aggregate> = BTreeMap::new();
        for part in aggregates(&samples, AggregateSpec { reorder_max_us: 0, ..SPEC }) {
            match merged.get_mut(&part.start_us) {
                Some(whole) => whole.merge(&part).unwrap(),
                None => drop(merged.insert(part.start_us, part)),
            }
        }
        let expected: BTreeMap<_, _> =
            spans.into_iter().map(|(start_us, list)| (start_us, naive(start_us, start_us + 100, &list))).collect();
        prop_assert_eq!(merged, expected);
    }

    #[test]
    fn whatever_the_times_every_sample_is_in_one_aggregate(samples in samples()) {
        let all = aggregates(&samples, SPEC);
        let whole = all.iter().skip(1).fold(all[0].clone(), |mut whole, part| { whole.merge(part).unwrap(); whole });
        prop_assert_eq!(&whole, &naive(whole.start_us, whole.end_us, &samples));
        for aggregate in &all {
            prop_assert!(aggregate.first_us >= aggregate.start_us - 10 && aggregate.last_us < aggregate.end_us);
        }
    }

    #[test]
    fn merging_parts_in_any_order_equals_aggregating_the_whole(
        samples in samples(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        rotate in any::<prop::sample::Index>(),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(samples.len())).chain([0, samples.len()]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut parts: Vec<_> = cuts.windows(2).map(|cut| naive(0, 100, &samples[cut[0]..cut[1]])).collect();
        let first = rotate.index(parts.len());
        parts.rotate_left(first);
        let whole = parts.iter().skip(1).fold(parts[0].clone(), |mut whole, part| { whole.merge(part).unwrap(); whole });
        prop_assert_eq!(whole, naive(0, 100, &samples));
    }
}
