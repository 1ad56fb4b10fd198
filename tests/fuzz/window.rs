//! Payloads of aggregates, windows and verdicts from any version of a box: no panic, and what decodes is written back
//! to bytes that mean the same.
//!
//! Input: which codec, then its bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_logic::payload::CHANNELS_MAX;
use weir_logic::window::{Aggregate, VerdictRecord, WINDOW_VALUES_MAX, Window, WindowValues, encode_window};

fuzz_target!(|data: &[u8]| {
    let Some((&which, bytes)) = data.split_first() else { return };
    match which % 3 {
        0 => aggregate(bytes),
        1 => window(bytes),
        _ => verdict(bytes),
    }
});

fn aggregate(bytes: &[u8]) {
    let Ok(aggregate) = Aggregate::decode(bytes) else { return };
    assert!((1..=CHANNELS_MAX).contains(&aggregate.channels.len()) && aggregate.count > 0);
    assert!((0..aggregate.channels.len()).all(|channel| aggregate.mean(channel).is_some_and(f64::is_finite)));
    let mut again = Vec::new();
    aggregate.encode(&mut again);
    assert_eq!(Aggregate::decode(&again).as_ref(), Ok(&aggregate));
    let mut merged = aggregate.clone();
    merged.merge(&aggregate).expect("the same shape");
    assert!(merged.channels.iter().all(|channel| channel.sum.is_finite()));
}

fn window(bytes: &[u8]) {
    let Ok(window) = WindowValues::decode(bytes) else { return };
    assert!((1..=CHANNELS_MAX).contains(&window.channels) && window.values.len() <= WINDOW_VALUES_MAX);
    let mut again = Vec::new();
    let (start_us, end_us, channels) = (window.start_us, window.end_us, window.channels);
    encode_window(&Window { start_us, end_us, channels, values: &window.values }, &mut again);
    assert_eq!(WindowValues::decode(&again), Ok(window));
}

fn verdict(bytes: &[u8]) {
    let Ok(verdict) = VerdictRecord::decode(bytes) else { return };
    let mut again = Vec::new();
    verdict.encode(&mut again).expect("what was decoded can be encoded");
    assert_eq!(VerdictRecord::decode(&again), Ok(verdict));
}
