use proptest::prelude::*;

use super::reader::Reader;
use super::*;

mod cbor;
mod senml;
mod sparkplug;

fn decoder(json: &str) -> Decoder {
    Decoder::new(&serde_json::from_str(json).expect("a format")).expect("a valid format")
}

fn refused(json: &str) -> FormatError {
    Decoder::new(&serde_json::from_str(json).expect("a format")).expect_err("a mistake")
}

fn rows(decoder: &Decoder, payload: &[u8]) -> Result<Vec<Vec<f64>>, DecodeError> {
    let mut out = Samples::new();
    decoder.decode(payload, &mut out)?;
    Ok((0..out.rows()).map(|row| out.row(row).to_vec()).collect())
}

const WEATHER: &str = r#"{"format":"json","fields":["/t","/w/speed","/list/1"],"time":"/ts","time_unit":"ms"}"#;

#[test]
fn json_fields_are_found_wherever_they_stand() {
    let decoder = decoder(WEATHER);
    let mut out = Samples::new();
    let payload = br#" {"x":[{"t":9}],"list":[1,-2.5e1,3],"w":{"dir":"\"n}","speed":true},"ts":1700000000123,"t":4} "#;
    decoder.decode(payload, &mut out).expect("decodes");
    assert_eq!(out.values(), [4.0, 1.0, -25.0]);
    assert_eq!(out.time_us(), Some(1_700_000_000_123_000));
    assert_eq!(out.period_us(), 0.0);
    assert_eq!((out.rows(), out.channels()), (1, 3));
}

#[test]
fn json_problems_are_told_apart() {
    let decoder = decoder(WEATHER);
    let reason = |payload: &[u8]| rows(&decoder, payload).expect_err("refused").reason();
    assert_eq!(reason(br#"{"t":1,"w":{},"list":[1,2],"ts":1}"#), "missing");
    assert_eq!(reason(br#"{"t":null,"w":{"speed":1},"list":[1,2],"ts":1}"#), "missing");
    assert_eq!(reason(br#"{"t":1,"w":{"speed":1},"list":[1,2]}"#), "missing");
    assert_eq!(reason(br#"{"t":"1","w":{"speed":1},"list":[1,2],"ts":1}"#), "wrong_type");
    assert_eq!(reason(br#"{"t":1e999,"w":{"speed":1},"list":[1,2],"ts":1}"#), "not_finite");
    assert_eq!(reason(br#"{"t":1,"w":{"speed":1},"list":[1,2],"ts":-1}"#), "time_range");
    assert_eq!(reason(br#"{"t":1,"w":{"speed":1},"list":[1,2],"ts":99999999999999999999}"#), "time_range");
    assert_eq!(reason(br#"{"t":1,"w":{"speed":1},"list":[1,2],"ts":1}x"#), "syntax");
    assert_eq!(reason(br#"{"t":NaN}"#), "syntax");
    assert_eq!(reason(b"{\"t\":\"\xff\"}"), "not_utf8");
    assert_eq!(reason(&vec![b' '; PAYLOAD_BYTES_MAX + 1]), "too_long");
    assert_eq!(rows(&decoder, b"7"), Err(DecodeError::Missing { pointer: "/ts".into() }));
}

#[test]
fn an_error_leaves_no_values_behind() {
    let decoder = decoder(WEATHER);
    let mut out = Samples::new();
    decoder.decode(br#"{"t":1,"w":{"speed":1},"list":[1,2],"ts":1}"#, &mut out).expect("decodes");
    decoder.decode(br#"{"t":1,"ts":5,"#, &mut out).expect_err("truncated");
    assert_eq!((out.rows(), out.time_us()), (0, None));
}

#[test]
fn nesting_is_limited_in_places_that_no_pointer_visits() {
    let decoder = decoder(r#"{"format":"json","fields":["/a"]}"#);
    let nested = |levels: usize| format!(r#"{{"b":{}{},"a":1}}"#, "[".repeat(levels), "]".repeat(levels));
    assert_eq!(rows(&decoder, nested(DEPTH_MAX - 1).as_bytes()), Ok(vec![vec![1.0]]));
    assert_eq!(rows(&decoder, nested(DEPTH_MAX).as_bytes()), Err(DecodeError::TooDeep { at: 5 + DEPTH_MAX - 1 }));
    assert!(matches!(rows(&decoder, "[".repeat(PAYLOAD_BYTES_MAX).as_bytes()), Err(DecodeError::TooDeep { .. })));
}

#[test]
fn the_last_of_two_equal_keys_wins() {
    let decoder = decoder(r#"{"format":"json","fields":["/a"]}"#);
    assert_eq!(rows(&decoder, br#"{"a":1,"a":2}"#), Ok(vec![vec![2.0]]));
    assert_eq!(rows(&decoder, br#"{"a":1,"a":null}"#), Err(DecodeError::Missing { pointer: "/a".into() }));
}

#[test]
fn escaped_keys_and_pointer_tokens_are_compared_unescaped() {
    let decoder = decoder(r#"{"format":"json","fields":["/a~1b","/m~0n","/°C","/😀"]}"#);
    let payload = r#"{"a\/b":1,"m\u007en":2,"\u00b0C":3,"\ud83d\ude00":4,"\ud83d":5}"#;
    assert_eq!(rows(&decoder, payload.as_bytes()), Ok(vec![vec![1.0, 2.0, 3.0, 4.0]]));
}

#[test]
fn times_keep_every_microsecond_in_every_unit() {
    let time = |unit: &str, text: &str| {
        let format = format!(r#"{{"format":"json","fields":["/v"],"time":"/t","time_unit":"{unit}"}}"#);
        let mut out = Samples::new();
        decoder(&format).decode(format!(r#"{{"v":0,"t":{text}}}"#).as_bytes(), &mut out).expect("decodes");
        out.time_us().expect("a time")
    };
    assert_eq!(time("ns", "1700000000123456789"), 1_700_000_000_123_456);
    assert_eq!(time("us", "1700000000123456"), 1_700_000_000_123_456);
    assert_eq!(time("ms", "1700000000123.456"), 1_700_000_000_123_456);
    assert_eq!(time("s", "1700000000.123456"), 1_700_000_000_123_456);
    assert_eq!(time("s", "0"), 0);
}

#[test]
fn the_three_array_layouts_agree() {
    let expected = Ok(vec![vec![1.0, 2.0], vec![3.0, 4.0], vec![5.0, 6.0]]);
    let by_rows = decoder(r#"{"format":"json","layout":"rows","samples":"/d","channels":2,"rate_hz":50}"#);
    assert_eq!(rows(&by_rows, br#"{"d":[[1,2],[3,4],[5,6]]}"#), expected);
    let by_objects = decoder(r#"{"format":"json","layout":"objects","samples":"/d","fields":["/x","/v/y"],"rate_hz":50}"#);
    assert_eq!(rows(&by_objects, br#"{"d":[{"x":1,"v":{"y":2}},{"v":{"y":4},"x":3},{"z":[],"x":5,"v":{"y":6}}]}"#), expected);
    let by_columns = decoder(r#"{"format":"json","layout":"columns","fields":["/x","/y"],"rate_hz":50}"#);
    assert_eq!(rows(&by_columns, br#"{"y":[2,4,6],"x":[1,3,5]}"#), expected);
    let single = decoder(r#"{"format":"json","layout":"rows","samples":"","channels":1,"rate_hz":50}"#);
    assert_eq!(rows(&single, b"[1,[2],3]"), Ok(vec![vec![1.0], vec![2.0], vec![3.0]]));
}

#[test]
fn ragged_empty_and_oversized_arrays_are_refused() {
    let by_rows = decoder(r#"{"format":"json","layout":"rows","samples":"/d","channels":2,"rate_hz":50}"#);
    assert_eq!(rows(&by_rows, br#"{"d":[[1,2],[3]]}"#), Err(DecodeError::RowLen { row: 1, len: 1, expected: 2 }));
    assert_eq!(rows(&by_rows, br#"{"d":[[1,2,3]]}"#), Err(DecodeError::RowLen { row: 0, len: 3, expected: 2 }));
    assert_eq!(rows(&by_rows, br#"{"d":[]}"#), Err(DecodeError::Empty));
    assert_eq!(rows(&by_rows, br#"{"d":null}"#), Err(DecodeError::Missing { pointer: "/d".into() }));
    assert_eq!(rows(&by_rows, br#"{"d":[[1,null]]}"#).expect_err("null").reason(), "wrong_type");
    let many = |rows: usize| format!(r#"{{"d":[{}[1,2]]}}"#, "[1,2],".repeat(rows - 1));
    assert_eq!(rows(&by_rows, many(ROWS_MAX).as_bytes()).map(|rows| rows.len()), Ok(ROWS_MAX));
    assert_eq!(rows(&by_rows, many(ROWS_MAX + 1).as_bytes()), Err(DecodeError::TooManyRows));
    let by_columns = decoder(r#"{"format":"json","layout":"columns","fields":["/x","/y"],"rate_hz":50}"#);
    assert_eq!(
        rows(&by_columns, br#"{"x":[1,2],"y":[1]}"#),
        Err(DecodeError::ColumnLen { pointer: "/y".into(), len: 1, expected: 2 })
    );
    assert_eq!(rows(&by_columns, br#"{"x":[],"y":[]}"#), Err(DecodeError::Empty));
}

#[test]
fn rows_are_spaced_from_the_sample_that_the_time_belongs_to() {
    let layout = r#""layout":"columns","fields":["/x"],"rate_hz":3,"time":"/t","time_unit":"us""#;
    let times = |time_of: &str| {
        let decoder = decoder(&format!(r#"{{"format":"json",{layout},"time_of":"{time_of}"}}"#));
        let mut out = Samples::new();
        decoder.decode(br#"{"x":[1,2,3,4],"t":5000000}"#, &mut out).expect("decodes");
        out.iter(0).map(|(time_us, _)| time_us).collect::<Vec<_>>()
    };
    assert_eq!(times("last"), [4_000_000, 4_333_333, 4_666_667, 5_000_000]);
    assert_eq!(times("first"), [5_000_000, 5_333_333, 5_666_667, 6_000_000]);
}

#[test]
fn packed_elements_are_scaled_per_channel() {
    let decoder = decoder(r#"{"format":"packed","element":"i16","channels":2,"scale":[0.5,2],"offset":1,"rate_hz":10}"#);
    let payload: Vec<u8> = [10_i16, -3, 0, i16::MIN].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(rows(&decoder, &payload), Ok(vec![vec![6.0, -5.0], vec![1.0, -65535.0]]));
    let mut out = Samples::new();
    decoder.decode(&payload, &mut out).expect("decodes");
    assert_eq!(out.row_time_us(0, 1_000_000), 900_000);
}

#[test]
fn packed_lengths_and_non_finite_elements_are_refused() {
    let one_row = decoder(r#"{"format":"packed","element":"f32","channels":2}"#);
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(rows(&one_row, &bytes(&[1.5, 2.5])), Ok(vec![vec![1.5, 2.5]]));
    assert_eq!(rows(&one_row, &bytes(&[1.0; 4])).expect_err("two rows").reason(), "packed_len");
    assert_eq!(rows(&one_row, &bytes(&[1.0; 3])).expect_err("ragged").reason(), "packed_len");
    assert_eq!(rows(&one_row, &[]), Err(DecodeError::Empty));
    assert_eq!(rows(&one_row, &bytes(&[1.0, f32::NAN])), Err(DecodeError::NotFinite { row: 0, channel: 1 }));
    let scaled = decoder(r#"{"format":"packed","element":"f64","channels":1,"scale":1e300}"#);
    assert_eq!(rows(&scaled, &1e300_f64.to_le_bytes()), Err(DecodeError::NotFinite { row: 0, channel: 0 }));
    let many = decoder(r#"{"format":"packed","element":"i16","channels":1,"rate_hz":1}"#);
    assert_eq!(rows(&many, &vec![0; 2 * ROWS_MAX + 2]), Err(DecodeError::TooManyRows));
}

#[test]
fn a_number_is_plain_decimal_text() {
    let decoder = decoder(r#"{"format":"number"}"#);
    assert_eq!(rows(&decoder, b" -21.5e1\r\n"), Ok(vec![vec![-215.0]]));
    for text in ["", "nan", "inf", "0x10", "1,5", "1 2", "e", "\u{0661}", &"1".repeat(65)] {
        assert_eq!(rows(&decoder, text.as_bytes()), Err(DecodeError::NotANumber), "{text}");
    }
    assert_eq!(rows(&decoder, b"1e999"), Err(DecodeError::NotFinite { row: 0, channel: 0 }));
}

#[test]
fn opaque_payloads_have_no_values() {
    let decoder = decoder(r#"{"format":"opaque"}"#);
    assert_eq!(rows(&decoder, b"\xff\x00"), Ok(vec![]));
    assert_eq!(decoder.channels(), 0);
}

#[test]
fn unknown_keys_are_refused_in_every_format() {
    for format in [
        r#"{"format":"json","fields":["/a"],"field":1}"#,
        r#"{"format":"packed","element":"i16","channels":1,"rate":1}"#,
        r#"{"format":"number","channels":1}"#,
        r#"{"format":"opaque","rate_hz":1}"#,
        r#"{"format":"xml"}"#,
    ] {
        assert!(serde_json::from_str::<PayloadFormat>(format).is_err(), "{format}");
    }
}

#[test]
fn mistakes_in_a_format_are_named() {
    let overlap = |first: &str, second: &str| FormatError::PointerOverlap { first: first.into(), second: second.into() };
    assert_eq!(refused(r#"{"format":"json","fields":["/a","/a"]}"#), overlap("/a", "/a"));
    assert_eq!(refused(r#"{"format":"json","fields":["/a/b","/a"]}"#), overlap("/a/b", "/a"));
    assert_eq!(refused(r#"{"format":"json","fields":["/a"],"time":"/a/b"}"#), overlap("/a", "/a/b"));
    assert_eq!(refused(r#"{"format":"json","fields":["a"]}"#), FormatError::PointerSyntax { pointer: "a".into() });
    assert_eq!(refused(r#"{"format":"json","fields":["/~2"]}"#), FormatError::PointerSyntax { pointer: "/~2".into() });
    assert_eq!(refused(r#"{"format":"json"}"#), FormatError::KeyMissing { layout: "single", key: "fields" });
    assert_eq!(
        refused(r#"{"format":"json","layout":"rows","samples":"/d","channels":2}"#),
        FormatError::KeyMissing { layout: "rows", key: "rate_hz" }
    );
    assert_eq!(
        refused(r#"{"format":"json","fields":["/a"],"samples":"/d"}"#),
        FormatError::KeyUnused { layout: "single", key: "samples" }
    );
    assert_eq!(refused(r#"{"format":"number","rate_hz":0}"#), FormatError::Rate { rate_hz: 0.0 });
    assert_eq!(refused(r#"{"format":"packed","element":"i16","channels":65}"#), FormatError::Channels { channels: 65 });
    assert_eq!(
        refused(r#"{"format":"packed","element":"i16","channels":3,"scale":[1,2]}"#),
        FormatError::PerChannelLen { key: "scale", len: 2, channels: 3 }
    );
    assert_eq!(
        refused(r#"{"format":"packed","element":"i16","channels":3,"scale":0}"#),
        FormatError::PerChannelValue { key: "scale" }
    );
    let deep = format!(r#"{{"format":"json","fields":["{}"]}}"#, "/a".repeat(DEPTH_MAX));
    assert!(matches!(refused(&deep), FormatError::PointerDepth { depth: DEPTH_MAX, .. }));
}

const FORMATS: [&str; 8] = [
    WEATHER,
    r#"{"format":"json","layout":"rows","samples":"/a","channels":2,"rate_hz":50}"#,
    r#"{"format":"json","layout":"objects","samples":"/a","fields":["/0","/a"],"rate_hz":50,"time":"/t"}"#,
    r#"{"format":"json","layout":"columns","fields":["/a","/b"],"rate_hz":50}"#,
    r#"{"format":"packed","element":"f32","channels":3,"rate_hz":50}"#,
    r#"{"format":"packed","element":"f64","channels":1,"scale":3}"#,
    r#"{"format":"number"}"#,
    r#"{"format":"opaque"}"#,
];

/// Text that is often almost JSON.
fn jsonish() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"a\"",
        "\"b\"",
        "\"",
        "\\",
        "\\u00",
        "\\\"",
        "0",
        "1",
        "-",
        ".",
        "e",
        "+",
        "12.5",
        "-0.0e-3",
        "01",
        "true",
        "false",
        "null",
        "nul",
        " ",
        "\n",
        "\u{1}",
        "é",
        "{\"a\":",
        "[[1,2],[3,4]]",
        "\"\\n\"",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// Well-formed documents.
fn document() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "[a-c\"\\\\\u{e9}\n/]{0,4}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec(("[ab/\"\u{e9}0-2]{1,2}", inner), 0..4)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

/// The deepest nesting of a text that is known to be JSON.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => depth += 1,
            b']' | b'}' if !quoted => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_decode_or_are_refused(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        for format in FORMATS {
            let mut out = Samples::new();
            let result = decoder(format).decode(&payload, &mut out);
            prop_assert!(result.is_ok() || out.rows() == 0);
            prop_assert!(out.values().iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn almost_json_decodes_or_is_refused(payload in jsonish()) {
        for format in FORMATS {
            let mut out = Samples::new();
            let result = decoder(format).decode(payload.as_bytes(), &mut out);
            prop_assert!(result.is_ok() || out.rows() == 0);
            prop_assert!(out.values().iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn the_reader_accepts_what_serde_json_accepts(text in jsonish()) {
        let mut reader = json::JsonReader::new(text.as_bytes()).expect("UTF-8");
        let ours = reader.skip().and_then(|()| reader.finish());
        match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
            Ok(_) if depth(&text) <= DEPTH_MAX => prop_assert_eq!(ours, Ok(())),
            _ => prop_assert!(ours.is_err()),
        }
    }

    #[test]
    fn pointers_find_what_serde_json_finds(document in document(), indent in any::<bool>()) {
        let text = if indent { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) };
        let text = text.expect("serialises");
        for pointer in ["", "/a", "/b/a", "/0", "/1/0", "/a/1", "/~1", "/\"", "/é"] {
            let format = serde_json::json!({ "format": "json", "fields": [pointer] }).to_string();
            let expected = document.pointer(pointer).and_then(|value| match value {
                serde_json::Value::Bool(value) => Some(f64::from(u8::from(*value))),
                other => other.as_f64(),
            });
            match rows(&decoder(&format), text.as_bytes()) {
                // serde_json rounds the last digit as it likes.
                Ok(rows) => prop_assert!(expected.is_some_and(|value| (rows[0][0] - value).abs() <= value.abs() * 1e-15)),
                Err(error) => {
                    prop_assert_eq!(expected, None);
                    prop_assert!(matches!(error.reason(), "missing" | "wrong_type"), "{}", error);
                }
            }
        }
    }

    #[test]
    fn packed_rows_are_the_numbers_that_were_packed(values in prop::collection::vec(any::<i32>(), 1..100)) {
        let payload: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let decoder = decoder(r#"{"format":"packed","element":"i32","channels":1,"rate_hz":1}"#);
        let mut out = Samples::new();
        decoder.decode(&payload, &mut out).expect("decodes");
        prop_assert_eq!(out.values(), values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>());
    }
}
