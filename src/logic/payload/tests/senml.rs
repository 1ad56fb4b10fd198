//! SenML: the examples of RFC 8428, section 5 and 6, and packs of both notations.

use proptest::prelude::*;

use super::cbor::{Item, bytes};
use super::*;

fn packed(fields: &[&str], units: &[&str]) -> Decoder {
    decoder(&serde_json::json!({ "format": "senml", "fields": fields, "units": units }).to_string())
}

/// Rows with their times, for a message received at 1,000 s.
fn timed(decoder: &Decoder, payload: &[u8]) -> Result<Vec<(i64, Vec<f64>)>, DecodeError> {
    let mut out = Samples::new();
    decoder.decode(payload, &mut out)?;
    Ok(out.iter(RECEIVED_US).map(|(time_us, row)| (time_us, row.to_vec())).collect())
}

const RECEIVED_US: i64 = 1_000_000_000;

/// RFC 8428, section 5.1.2.
const CURRENTS: &str = r#"[
    {"bn":"urn:dev:ow:10e2073a0108006:","bt":1.276020076001e+09,"bu":"A","bver":5,"n":"voltage","u":"V","v":120.1},
    {"n":"current","t":-5,"v":1.2},{"n":"current","t":-4,"v":1.3},{"n":"current","t":-3,"v":1.4},
    {"n":"current","t":-2,"v":1.5},{"n":"current","t":-1,"v":1.6},{"n":"current","v":1.7}]"#;

/// The same as RFC 8428, section 6, has it in CBOR.
const CURRENTS_CBOR: &str = "87a721781b75726e3a6465763a6f773a3130653230373361303130383030363a22fb41d303a15b00106223614120050067766f6c74\
    61676501615602fb405e066666666666a3006763757272656e74062402fb3ff3333333333333a3006763757272656e74062302fb3ff4cccccccccccda300676375\
    7272656e74062202fb3ff6666666666666a3006763757272656e74062102f93e00a3006763757272656e74062002fb3ff999999999999aa3006763757272656e74\
    060002fb3ffb333333333333";

#[test]
fn the_packs_of_rfc_8428_are_what_they_resolve_to() {
    // 5.1.1: one value without a time is of now.
    let one = packed(&["urn:dev:ow:10e2073a01080063"], &["Cel"]);
    assert_eq!(
        timed(&one, br#"[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1}]"#),
        Ok(vec![(RECEIVED_US, vec![23.1])])
    );
    // 5.1.2: two values of one time are a row.
    let two = packed(&["*:current", "*:voltage"], &[]);
    let pack = br#"[{"bn":"urn:dev:ow:10e2073a01080063:","n":"voltage","u":"V","v":120.1},{"n":"current","u":"A","v":1.2}]"#;
    assert_eq!(timed(&two, pack), Ok(vec![(RECEIVED_US, vec![1.2, 120.1])]));
    // 5.1.2 and 6: the same in both notations, with times before the base time.
    let expected: Vec<_> = (0..6).map(|n| (1_276_020_071_001_000 + n * 1_000_000, vec![(12 + n) as f64 / 10.0])).collect();
    for payload in [CURRENTS.as_bytes().to_vec(), bytes(CURRENTS_CBOR)] {
        assert_eq!(timed(&packed(&["*current"], &["A"]), &payload), Ok(expected.clone()));
        assert_eq!(timed(&packed(&["*voltage"], &["V"]), &payload), Ok(vec![(1_276_020_076_001_000, vec![120.1])]));
        // They are of different times, so there is no row of both.
        assert_eq!(timed(&packed(&["*voltage", "*current"], &[]), &payload).expect_err("incomplete").reason(), "missing");
    }
}

#[test]
fn records_of_one_name_are_told_apart_by_their_unit() {
    // RFC 8428, section 5.1.3.
    let pack = br#"[{"bn":"urn:dev:ow:10e2073a01080063","bt":1.320067464e+09,"bu":"%RH","v":20},
        {"u":"lon","v":24.30621},{"u":"lat","v":60.07965},{"t":60,"v":20.3},{"u":"lon","t":60,"v":24.30622},
        {"u":"lat","t":60,"v":60.07965},{"t":120,"v":20.7},{"u":"lon","t":120,"v":24.30623},{"u":"lat","t":120,"v":60.07966},
        {"u":"%EL","t":150,"v":98},{"t":180,"v":21.2},{"u":"lon","t":180,"v":24.30628},{"u":"lat","t":180,"v":60.07967}]"#;
    let start_us = 1_320_067_464_000_000;
    let minute = |n: i64, row: [f64; 3]| (start_us + n * 60_000_000, row.to_vec());
    let expected = vec![
        minute(0, [60.07965, 24.30621, 20.0]),
        minute(1, [60.07965, 24.30622, 20.3]),
        minute(2, [60.07966, 24.30623, 20.7]),
        minute(3, [60.07967, 24.30628, 21.2]),
    ];
    assert_eq!(timed(&packed(&["*", "*", "*"], &["lat", "lon", "%RH"]), pack), Ok(expected));
    assert_eq!(timed(&packed(&["*"], &["%EL"]), pack), Ok(vec![(start_us + 150_000_000, vec![98.0])]));
}

#[test]
fn values_of_other_types_are_passed_over_unless_a_channel_names_them() {
    // RFC 8428, section 5.1.5.
    let pack = br#"[{"bn":"urn:dev:ow:10e2073a01080063:","n":"temp","u":"Cel","v":23.1},{"n":"label","vs":"Machine Room"},
        {"n":"open","vb":false},{"n":"nfc-reader","vd":"aGkgCg"}]"#;
    assert_eq!(timed(&packed(&["*temp", "*open"], &[]), pack), Ok(vec![(RECEIVED_US, vec![23.1, 0.0])]));
    assert_eq!(timed(&packed(&["*label"], &[]), pack).expect_err("a text").reason(), "wrong_type");
    assert_eq!(timed(&packed(&["*nfc-reader"], &[]), pack).expect_err("data").reason(), "wrong_type");
    assert_eq!(timed(&packed(&["*shut"], &[]), pack).expect_err("nothing").reason(), "missing");
}

#[test]
fn bases_hold_until_the_next_and_are_added() {
    let decoder = packed(&["*v"], &[]);
    let pack =
        br#"[{"v":1,"n":"v","bv":10,"bt":1e9},{"n":"v","t":1,"v":2},{"bv":-1,"n":"v","t":2,"v":0.5},{"bt":2e9,"n":"v","v":4}]"#;
    let expected = vec![
        (1_000_000_000_000_000, vec![11.0]),
        (1_000_000_001_000_000, vec![12.0]),
        (1_000_000_002_000_000, vec![-0.5]),
        (2_000_000_000_000_000, vec![3.0]),
    ];
    assert_eq!(timed(&decoder, pack), Ok(expected));
    let sums = br#"[{"bs":100,"n":"v","s":1.5},{"n":"v","v":7,"s":3,"t":1}]"#;
    assert_eq!(timed(&decoder, sums), Ok(vec![(RECEIVED_US, vec![101.5]), (RECEIVED_US + 1_000_000, vec![7.0])]));
    let boolean = br#"[{"bv":5,"n":"v","vb":true}]"#;
    assert_eq!(timed(&decoder, boolean), Ok(vec![(RECEIVED_US, vec![1.0])]), "a base value is for numbers");
}

#[test]
fn rows_come_in_order_of_time_and_twice_the_same_name_is_two_rows() {
    let decoder = packed(&["a", "b"], &[]);
    let pack = br#"[{"n":"b","t":-1,"v":4},{"n":"a","t":-3,"v":1},{"n":"b","t":-3,"v":2},{"n":"a","t":-1,"v":3}]"#;
    let expected = vec![(RECEIVED_US - 3_000_000, vec![1.0, 2.0]), (RECEIVED_US - 1_000_000, vec![3.0, 4.0])];
    assert_eq!(timed(&decoder, pack), Ok(expected));
    let one = packed(&["a"], &[]);
    assert_eq!(
        timed(&one, br#"[{"n":"a","v":1},{"n":"a","v":2}]"#),
        Ok(vec![(RECEIVED_US, vec![1.0]), (RECEIVED_US, vec![2.0])])
    );
}

#[test]
fn packs_that_cannot_be_meant_are_told_apart() {
    let decoder = packed(&["*v"], &[]);
    let reason = |pack: &str| timed(&decoder, pack.as_bytes()).expect_err(pack).reason();
    assert_eq!(reason("[]"), "empty");
    assert_eq!(reason("{}"), "wrong_type");
    assert_eq!(reason("[1]"), "wrong_type");
    assert_eq!(reason(r#"[{"n":"v","v":"1"}]"#), "wrong_type");
    assert_eq!(reason(r#"[{"n":1,"v":1}]"#), "wrong_type");
    assert_eq!(reason(r#"[{"n":"v"}]"#), "missing");
    assert_eq!(reason(r#"[{"n":"v","v":1e999}]"#), "not_finite");
    assert_eq!(reason(r#"[{"n":"v","v":1e308,"bv":1e308}]"#), "not_finite");
    assert_eq!(reason(r#"[{"n":"v","v":1,"t":1e999}]"#), "time_range");
    assert_eq!(reason(r#"[{"n":"v","v":1,"t":1e12}]"#), "time_range");
    assert_eq!(reason(r#"[{"n":"v","v":1,"t":-1e9}]"#), "time_range");
    assert_eq!(reason(r#"[{"n":"v","v":1},{"n":"v","v":1,"t":1e9}]"#), "mixed_times");
    assert_eq!(reason(r#"[{"bver":11,"n":"v","v":1}]"#), "version");
    assert_eq!(reason(r#"[{"n":"v","v":1,"secret_":1}]"#), "not_understood");
    assert_eq!(reason(r#"[{"n":"v","v":1}"#), "syntax");
    let ok = timed(&decoder, br#"[{"bver":10,"n":"v","v":1,"other":{"x":[1]},"ut":3}]"#);
    assert_eq!(ok, Ok(vec![(RECEIVED_US, vec![1.0])]), "what need not be understood is passed over");
    let many = format!("[{}]", vec![r#"{"n":"v","v":1}"#; ROWS_MAX + 1].join(","));
    assert_eq!(reason(&many), "too_many_rows");
}

#[test]
fn names_that_clash_or_cannot_be_are_refused() {
    let refused = |fields: &[&str], units: &[&str]| {
        refused(&serde_json::json!({ "format": "senml", "fields": fields, "units": units }).to_string())
    };
    let overlap = |first: &str, second: &str| FormatError::NameOverlap { first: first.into(), second: second.into() };
    assert_eq!(refused(&["*temp", "*:temp"], &[]), overlap("*temp", "*:temp"));
    assert_eq!(refused(&["a:temp", "*temp"], &[]), overlap("a:temp", "*temp"));
    assert_eq!(refused(&["*", "*"], &["Cel", ""]), overlap("*", "*"));
    assert_eq!(refused(&["a b"], &[]), FormatError::NameSyntax { name: "a b".into() });
    assert_eq!(refused(&[""], &[]), FormatError::NameSyntax { name: String::new() });
    assert_eq!(refused(&[], &[]), FormatError::Channels { channels: 0 });
    assert_eq!(refused(&["a", "b"], &["V"]), FormatError::UnitsLen { len: 1, channels: 2 });
}

/// A record of some channel: which one, time in quarter seconds, value.
fn records() -> impl Strategy<Value = Vec<(usize, i64, f64)>> {
    prop::collection::vec((0_usize..2, -40_i64..40, -1e6..1e6), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_notations_resolve_to_the_same_rows(records in records(), base in prop::option::of(1_000_000_000_i64..2_000_000_000), shared in any::<bool>()) {
        // Names in two parts, or whole; every time has all channels, as later records of a time add what is missing.
        let mut all: Vec<(usize, i64, f64)> = Vec::new();
        for (_, quarter, value) in &records {
            if !all.iter().any(|(_, other, _)| other == quarter) {
                all.push((0, *quarter, *value));
                all.push((1, *quarter, -*value));
            }
        }
        let names = ["x:temp", "x:rh"];
        let mut json = Vec::new();
        let mut cbor = Vec::new();
        for (at, (channel, quarter, value)) in all.iter().enumerate() {
            let name = if shared { &names[*channel][2..] } else { names[*channel] };
            let time_s = *quarter as f64 / 4.0;
            let mut record = serde_json::json!({ "n": name, "v": value, "t": time_s });
            let mut members = vec![(Item::Integer(6), Item::Double(time_s)), (Item::Integer(0), Item::text(name)), (Item::Integer(2), Item::Double(*value))];
            if at == 0 {
                if let Some(base) = base {
                    record["bt"] = base.into();
                    members.push((Item::Integer(-3), Item::Integer(base)));
                }
                if shared {
                    record["bn"] = "x:".into();
                    members.push((Item::Integer(-2), Item::text("x:")));
                }
            }
            json.push(record);
            cbor.push(Item::Map(members, at.is_multiple_of(2)));
        }
        let mut expected: Vec<(i64, Vec<f64>)> = Vec::new();
        all.sort_by_key(|(_, quarter, _)| *quarter);
        for pair in all.chunks(2) {
            let time_us = base.map_or(RECEIVED_US, |base| base * 1_000_000) + pair[0].1 * 250_000;
            expected.push((time_us, vec![pair[0].2, pair[1].2]));
        }
        let decoder = packed(&["*temp", "*rh"], &[]);
        prop_assert_eq!(timed(&decoder, &Item::Array(cbor, true).encoded()), Ok(expected.clone()));
        let text = serde_json::to_string(&json).expect("serialises");
        let from_json = timed(&decoder, text.as_bytes()).expect("decodes");
        prop_assert_eq!(from_json.len(), expected.len());
        for ((time_us, row), (expected_us, expected_row)) in from_json.iter().zip(&expected) {
            prop_assert_eq!(time_us, expected_us);
            for (value, expected) in row.iter().zip(expected_row) {
                prop_assert!((value - expected).abs() <= expected.abs() * 1e-12);
            }
        }
    }

    #[test]
    fn damaged_packs_resolve_or_are_refused(at in any::<prop::sample::Index>(), byte in any::<u8>(), is_cbor in any::<bool>()) {
        let mut payload = if is_cbor { bytes(CURRENTS_CBOR) } else { CURRENTS.as_bytes().to_vec() };
        let at = at.index(payload.len());
        payload[at] = byte;
        for decoder in [packed(&["*current"], &[]), packed(&["*", "*"], &["A", "V"])] {
            let mut out = Samples::new();
            let result = decoder.decode(&payload, &mut out);
            prop_assert!(result.is_ok() != (out.rows() == 0));
            prop_assert!(out.values().iter().all(|value| value.is_finite()));
            let times: Vec<i64> = out.iter(RECEIVED_US).map(|(time_us, _)| time_us).collect();
            prop_assert!(times.is_sorted());
        }
    }
}
