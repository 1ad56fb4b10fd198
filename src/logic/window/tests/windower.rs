use proptest::prelude::*;

use super::{message, untimed};
use crate::window::*;

fn windower(length: usize, step: usize) -> Windower {
    Windower::new(WindowSpec { channels: 1, length, step, gap_max_us: 100, reorder_max_us: 30 })
}

/// Pushes samples whose value is their time; returns the times in each window.
fn windows(windower: &mut Windower, times_us: &[i64]) -> Vec<Vec<i64>> {
    let mut buffer = Vec::new();
    let mut windows = Vec::new();
    for time_us in times_us {
        if let Some(window) = windower.push(*time_us, &[*time_us as f64], &mut buffer) {
            let times: Vec<i64> = window.values.iter().map(|value| *value as i64).collect();
            assert_eq!((times[0], *times.last().unwrap()), (window.start_us, window.end_us));
            windows.push(times);
        }
    }
    windows
}

#[test]
fn windows_overlap_touch_or_leave_samples_out_as_step_says() {
    let times: Vec<i64> = (0..10).map(|index| index * 10).collect();
    assert_eq!(windows(&mut windower(4, 2), &times), [[0, 10, 20, 30], [20, 30, 40, 50], [40, 50, 60, 70], [60, 70, 80, 90]]);
    assert_eq!(windows(&mut windower(4, 4), &times), [[0, 10, 20, 30], [40, 50, 60, 70]]);
    assert_eq!(windows(&mut windower(2, 5), &times), [[0, 10], [50, 60]]);
    assert_eq!(windows(&mut windower(1, 1), &times[..3]), [[0], [10], [20]]);
}

#[test]
fn values_come_out_channel_by_channel() {
    let mut windower = Windower::new(WindowSpec { channels: 2, length: 3, step: 1, gap_max_us: 100, reorder_max_us: 30 });
    let mut buffer = Vec::new();
    let mut last = Vec::new();
    for index in 0..5 {
        if let Some(window) = windower.push(index, &[index as f64, 1e300], &mut buffer) {
            assert_eq!(window.channels, 2);
            last = window.values.to_vec();
        }
    }
    assert_eq!(last, [2.0, 3.0, 4.0, f32::MAX, f32::MAX, f32::MAX]);
}

#[test]
fn a_gap_starts_a_new_window() {
    let mut windower = windower(3, 3);
    assert_eq!(windows(&mut windower, &[0, 10, 111, 90, 121, 131]), [[90, 111, 121]]);
    let counters = windower.counters();
    assert_eq!((counters.gaps, counters.reordered, counters.late, counters.jumps_back), (1, 1, 0, 0));
}

#[test]
fn exactly_the_longest_gap_is_not_a_gap() {
    let mut windower = windower(3, 3);
    assert_eq!(windows(&mut windower, &[0, 100, 200]), [[0, 100, 200]]);
    assert_eq!(windower.counters().gaps, 0);
}

#[test]
fn samples_out_of_order_are_put_in_place_until_their_window_is_out() {
    let mut windower = windower(4, 2);
    assert_eq!(windows(&mut windower, &[0, 20, 30, 10, 25, 50, 40]), [[0, 10, 20, 30], [20, 30, 40, 50]]);
    let counters = windower.counters();
    assert_eq!((counters.reordered, counters.late, counters.samples, counters.windows), (2, 1, 7, 2));
}

#[test]
fn the_first_of_two_samples_at_one_time_stays() {
    let mut windower = windower(3, 3);
    let mut buffer = Vec::new();
    assert_eq!(windower.push(0, &[1.0], &mut buffer), None);
    assert_eq!(windower.push(0, &[2.0], &mut buffer), None);
    assert_eq!(windower.push(10, &[3.0], &mut buffer), None);
    assert_eq!(windower.push(0, &[4.0], &mut buffer), None);
    assert_eq!(windower.push(20, &[5.0], &mut buffer).unwrap().values, [1.0, 3.0, 5.0]);
    assert_eq!(windower.push(20, &[6.0], &mut buffer), None);
    assert_eq!(windower.counters().duplicates, 3);
}

#[test]
fn a_clock_that_is_set_back_starts_a_new_window_and_goes_on() {
    let mut windower = windower(3, 3);
    assert_eq!(windows(&mut windower, &[1000, 1010, 500, 510, 520]), [[500, 510, 520]]);
    assert_eq!(windower.counters().jumps_back, 1);
}

#[test]
fn extreme_times_do_not_overflow() {
    let mut windower = windower(2, 1);
    windows(&mut windower, &[i64::MAX - 1, i64::MIN + 1, i64::MAX - 1, 0, i64::MIN + 1, -1]);
    assert_eq!(windower.counters().samples, 6);
}

#[test]
fn a_sensor_that_runs_faster_than_its_nominal_rate_loses_no_sample() {
    let mut windower =
        Windower::new(WindowSpec { channels: 1, length: 8, step: 8, gap_max_us: 1_000_000, reorder_max_us: 1_000_000 });
    let mut buffer = Vec::new();
    let mut values = Vec::new();
    for batch in 0..40_i64 {
        let first = batch * 10;
        let list: Vec<String> = (first..first + 10).map(|value| value.to_string()).collect();
        // 57 Hz told as 50 Hz: each message of 10 spans less than 10 periods.
        let samples = message(&format!(r#"{{"t":{},"v":[{}]}}"#, 5_000_000 + batch * 175_439, list.join(",")), 50.0);
        windower.push_message(&samples, 0, &mut buffer, |window| values.extend_from_slice(window.values));
    }
    assert_eq!(values, (0..400).map(|value| value as f32).collect::<Vec<_>>());
    let counters = windower.counters();
    assert_eq!((counters.late, counters.duplicates, counters.reordered, counters.gaps), (0, 0, 0, 0));
    assert!(counters.squeezed > 0);
}

#[test]
fn messages_without_a_time_are_taken_as_they_come_even_all_at_once() {
    let mut windower = windower(4, 4);
    let mut buffer = Vec::new();
    let mut values = Vec::new();
    for first in [0, 3, 6, 9] {
        let samples = untimed(&format!(r#"{{"v":[{first},{},{}]}}"#, first + 1, first + 2), 1e5);
        windower.push_message(&samples, 1_000, &mut buffer, |window| values.extend_from_slice(window.values));
    }
    assert_eq!(values, (0..12).map(|value| value as f32).collect::<Vec<_>>());
    let counters = windower.counters();
    assert_eq!((counters.jumps_back, counters.duplicates, counters.late), (0, 0, 0));
}

#[test]
fn a_clock_of_the_box_that_falls_back_starts_a_new_window_once() {
    let mut windower = windower(3, 3);
    let mut buffer = Vec::new();
    let mut ends = Vec::new();
    for received_us in [10_000, 10_010, 5_000, 5_010, 5_020, 5_030] {
        let samples = untimed(r#"{"v":[1]}"#, 1e5);
        windower.push_message(&samples, received_us, &mut buffer, |window| ends.push(window.end_us));
    }
    assert_eq!(ends, [5_020]);
    assert_eq!(windower.counters().jumps_back, 1);
}

#[test]
fn a_message_sent_twice_is_counted_not_used() {
    let mut windower = windower(6, 6);
    let mut buffer = Vec::new();
    let mut values = Vec::new();
    for json in [r#"{"t":1020,"v":[1,2,3]}"#, r#"{"t":1020,"v":[1,2,3]}"#, r#"{"t":1050,"v":[4,5,6]}"#] {
        windower.push_message(&message(json, 1e5), 0, &mut buffer, |window| values.extend_from_slice(window.values));
    }
    assert_eq!(values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(windower.counters().duplicates, 3);
}

#[test]
fn a_cleared_windower_starts_over() {
    let mut windower = windower(2, 2);
    assert_eq!(windows(&mut windower, &[1_000]), [[0; 0]; 0]);
    windower.clear();
    assert_eq!(windows(&mut windower, &[0, 10]), [[0, 10]]);
    assert_eq!(windower.counters().jumps_back, 0);
}

/// The rules on a sorted list, without a ring.
#[derive(Default)]
struct Naive {
    list: Vec<(i64, f64)>,
    skip: usize,
    last_us: Option<i64>,
    closed_us: Option<i64>,
    counters: WindowCounters,
}

impl Naive {
    fn push(&mut self, spec: &WindowSpec, time_us: i64, value: f64) -> Option<(i64, i64, Vec<f32>)> {
        self.counters.samples += 1;
        let last_us = self.last_us.unwrap_or(time_us - 1);
        if time_us - last_us > spec.gap_max_us || last_us - time_us > spec.reorder_max_us {
            let is_gap = time_us > last_us;
            self.counters.gaps += u64::from(is_gap);
            self.counters.jumps_back += u64::from(!is_gap);
            (self.list, self.skip) = (Vec::new(), 0);
            self.closed_us = None;
            self.last_us = None;
        } else if time_us <= last_us {
            if self.list.iter().any(|(there_us, _)| *there_us == time_us) || self.closed_us == Some(time_us) {
                self.counters.duplicates += 1;
                return None;
            }
            if self.closed_us.is_some_and(|closed_us| time_us < closed_us) {
                self.counters.late += 1;
                return None;
            }
            self.counters.reordered += 1;
        }
        self.last_us = Some(self.last_us.unwrap_or(time_us).max(time_us));
        if self.skip > 0 {
            self.skip -= 1;
            self.closed_us = Some(time_us);
            return None;
        }
        self.list.push((time_us, value));
        self.list.sort_by_key(|(time_us, _)| *time_us);
        if self.list.len() < spec.length {
            return None;
        }
        let (start_us, end_us) = (self.list[0].0, self.list[spec.length - 1].0);
        let values = self.list.iter().map(|(_, value)| *value as f32).collect();
        self.counters.windows += 1;
        self.closed_us = Some(end_us);
        self.list.drain(..spec.step.min(spec.length));
        self.skip = spec.step.saturating_sub(spec.length);
        Some((start_us, end_us, values))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn windows_are_those_of_a_sorted_list(
        length in 1_usize..8,
        step in 1_usize..12,
        gap_max_us in 20_i64..60,
        reorder_max_us in 0_i64..20,
        moves in prop::collection::vec(prop_oneof![6 => 0_i64..20, 3 => -25_i64..0, 1 => -100_i64..100], 0..120),
    ) {
        let spec = WindowSpec { channels: 1, length, step, gap_max_us, reorder_max_us };
        let mut windower = Windower::new(spec.clone());
        let mut naive = Naive::default();
        let mut buffer = Vec::new();
        let mut time_us = 0;
        for (index, step_us) in moves.into_iter().enumerate() {
            time_us += step_us;
            let ours = windower.push(time_us, &[index as f64], &mut buffer);
            let ours = ours.map(|window| (window.start_us, window.end_us, window.values.to_vec()));
            prop_assert_eq!(ours, naive.push(&spec, time_us, index as f64));
            prop_assert_eq!(windower.counters(), naive.counters);
        }
    }

    #[test]
    fn every_sample_is_in_order_in_every_window(
        moves in prop::collection::vec(-40_i64..60, 0..200),
        length in 1_usize..10,
        step in 1_usize..10,
    ) {
        let mut time_us = 0;
        let times: Vec<i64> = moves.iter().map(|step_us| { time_us += step_us; time_us }).collect();
        for window in windows(&mut windower(length, step), &times) {
            prop_assert!(window.windows(2).all(|pair| pair[0] < pair[1] && pair[1] - pair[0] <= 100));
        }
    }
}
