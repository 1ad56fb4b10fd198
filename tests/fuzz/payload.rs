//! Payloads through every decoder: no panic, all limits kept, finite values only, and JSON as serde_json sees it.
//!
//! Input: which format, then the payload.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weir_logic::payload::{CHANNELS_MAX, DecodeError, Decoder, PayloadFormat, ROWS_MAX, Samples, TIME_US_MAX, VALUES_MAX};

/// Every format, layout and element type once. The JSON ones come first.
const FORMATS: [&str; 20] = [
    r#"{"format":"json","fields":["/a"]}"#,
    r#"{"format":"json","fields":["/a/0","/a/1/b","/c~1d"],"time":"/t","time_unit":"ns"}"#,
    r#"{"format":"json","layout":"rows","samples":"","channels":1,"rate_hz":50.0}"#,
    r#"{"format":"json","layout":"rows","samples":"/s","channels":3,"rate_hz":50.0,"time":"/t","time_of":"first"}"#,
    r#"{"format":"json","layout":"objects","samples":"/s","fields":["/a","/b"],"rate_hz":0.00001,"time":"/t"}"#,
    r#"{"format":"json","layout":"columns","fields":["/a","/b"],"rate_hz":1000000.0,"time":"/t","time_unit":"ms"}"#,
    r#"{"format":"packed","element":"i16","channels":6,"scale":0.001,"rate_hz":50.0}"#,
    r#"{"format":"packed","element":"i32","channels":2,"scale":[0.5,1e300],"offset":[1.0,-1.0]}"#,
    r#"{"format":"packed","element":"f32","channels":1,"rate_hz":100.0,"time_of":"first"}"#,
    r#"{"format":"packed","element":"f64","channels":3,"scale":1e300,"rate_hz":100.0}"#,
    r#"{"format":"packed","element":"f64","channels":64,"rate_hz":100.0}"#,
    r#"{"format":"number"}"#,
    r#"{"format":"opaque"}"#,
    r#"{"format":"cbor","fields":["/a/0","/1","/-1"],"time":"/t","time_unit":"ms"}"#,
    r#"{"format":"cbor","layout":"rows","samples":"","channels":2,"rate_hz":50.0}"#,
    r#"{"format":"cbor","layout":"objects","samples":"/s","fields":["/a","/0"],"rate_hz":50.0}"#,
    r#"{"format":"cbor","layout":"columns","fields":["/a","/0"],"rate_hz":50.0,"time":"/t"}"#,
    r#"{"format":"senml","fields":["*"]}"#,
    r#"{"format":"senml","fields":["*temp","a:rh"],"units":["Cel",""]}"#,
    r#"{"format":"sparkplug","fields":["a","b"]}"#,
];
const JSON_FORMATS: usize = 6;

static DECODERS: LazyLock<Vec<Decoder>> = LazyLock::new(|| {
    let decoder = |format| {
        let format: PayloadFormat = serde_json::from_str(format).expect("a format");
        Decoder::new(&format).expect("a valid format")
    };
    FORMATS.map(decoder).into()
});

fuzz_target!(|data: &[u8]| {
    let Some((&which, payload)) = data.split_first() else { return };
    let which = usize::from(which) % FORMATS.len();
    let decoder = &DECODERS[which];
    let mut samples = Samples::new();
    let result = decoder.decode(payload, &mut samples);

    assert!(result.is_ok() || samples.rows() == 0, "an error leaves no rows behind");
    assert_eq!(samples.channels(), decoder.channels());
    assert!(samples.channels() <= CHANNELS_MAX && samples.rows() <= ROWS_MAX && samples.values().len() <= VALUES_MAX);
    assert_eq!(samples.values().len(), samples.rows() * samples.channels());
    assert!(samples.values().iter().all(|value| value.is_finite()));
    assert!(samples.time_us().is_none_or(|time_us| (0..=TIME_US_MAX).contains(&time_us)));
    let times: Vec<i64> = samples.iter(1 << 50).map(|(time_us, _)| time_us).collect();
    assert!(times.is_sorted(), "rows come in order of time");

    if which < JSON_FORMATS
        && let Ok(text) = std::str::from_utf8(payload)
    {
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        match result {
            Ok(()) => assert!(is_json, "what is not JSON was decoded"),
            Err(DecodeError::Syntax { at, expected, .. }) => assert!(!is_json, "JSON was refused at {at}: expected {expected}"),
            Err(_) => {}
        }
    }
});
