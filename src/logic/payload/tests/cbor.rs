//! CBOR: the examples of RFC 8949 and RFC 8746, and documents of an encoder that knows nothing of the reader.

use proptest::prelude::*;

use super::super::cbor::CborReader;
use super::super::reader::Reader;
use super::*;

/// A value as an encoder sees it.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Integer(i64),
    Half(u16),
    Single(f32),
    Double(f64),
    Text(String),
    /// A text in pieces.
    Pieces(Vec<String>),
    Bytes(Vec<u8>),
    Bool(bool),
    Null,
    /// With its length in front, or with a break behind.
    Array(Vec<Item>, bool),
    Map(Vec<(Item, Item)>, bool),
    Tag(u64, Box<Item>),
}

impl Item {
    pub(super) fn text(text: &str) -> Item {
        Item::Text(text.to_owned())
    }

    pub(super) fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Item::Integer(number) if *number < 0 => head(1, !*number as u64, out),
            Item::Integer(number) => head(0, *number as u64, out),
            Item::Half(bits) => out.extend(std::iter::once(0xf9).chain(bits.to_be_bytes())),
            Item::Single(number) => out.extend(std::iter::once(0xfa).chain(number.to_be_bytes())),
            Item::Double(number) => out.extend(std::iter::once(0xfb).chain(number.to_be_bytes())),
            Item::Text(text) => {
                head(3, text.len() as u64, out);
                out.extend(text.bytes());
            }
            Item::Pieces(pieces) => {
                out.push(0x7f);
                pieces.iter().for_each(|piece| Item::text(piece).encode(out));
                out.push(0xff);
            }
            Item::Bytes(bytes) => {
                head(2, bytes.len() as u64, out);
                out.extend(bytes);
            }
            Item::Bool(value) => out.push(if *value { 0xf5 } else { 0xf4 }),
            Item::Null => out.push(0xf6),
            Item::Array(items, has_length) => {
                open(4, items.len(), *has_length, out);
                items.iter().for_each(|item| item.encode(out));
                out.extend((!has_length).then_some(0xff));
            }
            Item::Map(members, has_length) => {
                open(5, members.len(), *has_length, out);
                for (key, value) in members {
                    key.encode(out);
                    value.encode(out);
                }
                out.extend((!has_length).then_some(0xff));
            }
            Item::Tag(tag, item) => {
                head(6, *tag, out);
                item.encode(out);
            }
        }
    }

    /// What a pointer leads to; none also for what is null.
    fn at(&self, pointer: &[&str]) -> Option<&Item> {
        match (self, pointer) {
            (Item::Tag(_, item), _) => item.at(pointer),
            (Item::Null, []) => None,
            (item, []) => Some(item),
            (Item::Array(items, _), [index, rest @ ..]) => {
                items.iter().enumerate().find(|(at, _)| at.to_string() == *index)?.1.at(rest)
            }
            (Item::Map(members, _), [token, rest @ ..]) => {
                members.iter().find(|(key, _)| key.name().as_deref() == Some(token))?.1.at(rest)
            }
            _ => None,
        }
    }

    /// The token that leads to the member with this key.
    fn name(&self) -> Option<String> {
        match self {
            Item::Integer(number) => Some(number.to_string()),
            Item::Text(text) => Some(text.clone()),
            Item::Pieces(pieces) => Some(pieces.concat()),
            _ => None,
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Item::Integer(number) => Some(*number as f64),
            Item::Single(number) => Some(f64::from(*number)),
            Item::Double(number) => Some(*number),
            Item::Bool(value) => Some(f64::from(u8::from(*value))),
            _ => None,
        }
    }
}

fn open(major: u8, len: usize, has_length: bool, out: &mut Vec<u8>) {
    if has_length { head(major, len as u64, out) } else { out.push(major << 5 | 31) }
}

/// The shortest head.
fn head(major: u8, argument: u64, out: &mut Vec<u8>) {
    let bytes = argument.to_be_bytes();
    let mut put = |low, from: usize| {
        out.push(major << 5 | low);
        out.extend(&bytes[from..]);
    };
    match argument {
        0..24 => put(argument as u8, bytes.len()),
        24..0x100 => put(24, 7),
        0x100..0x1_0000 => put(25, 6),
        0x1_0000..0x1_0000_0000 => put(26, 4),
        _ => put(27, 0),
    }
}

/// The bytes of a text of hexadecimal digits.
pub(super) fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits")).collect()
}

fn root(hex: &str) -> Result<f64, DecodeError> {
    let decoder = decoder(r#"{"format":"cbor","fields":[""]}"#);
    rows(&decoder, &bytes(hex)).map(|rows| rows[0][0])
}

fn is_well_formed(hex: &str) -> bool {
    let payload = bytes(hex);
    let mut reader = CborReader::new(&payload);
    reader.skip().and_then(|()| reader.finish()).is_ok()
}

/// RFC 8949, appendix A: what is a number.
const NUMBERS: &[(&str, f64)] = &[
    ("00", 0.0),
    ("01", 1.0),
    ("0a", 10.0),
    ("17", 23.0),
    ("1818", 24.0),
    ("1819", 25.0),
    ("1864", 100.0),
    ("1903e8", 1000.0),
    ("1a000f4240", 1e6),
    ("1b000000e8d4a51000", 1e12),
    ("1bffffffffffffffff", 18446744073709551615.0),
    ("c249010000000000000000", 18446744073709551616.0),
    ("3bffffffffffffffff", -18446744073709551616.0),
    ("c349010000000000000000", -18446744073709551617.0),
    ("20", -1.0),
    ("29", -10.0),
    ("3863", -100.0),
    ("3903e7", -1000.0),
    ("f90000", 0.0),
    ("f98000", -0.0),
    ("f93c00", 1.0),
    ("fb3ff199999999999a", 1.1),
    ("f93e00", 1.5),
    ("f97bff", 65504.0),
    ("fa47c35000", 100000.0),
    ("fa7f7fffff", 3.4028234663852886e+38),
    ("fb7e37e43c8800759c", 1.0e300),
    ("f90001", 5.960464477539063e-8),
    ("f90400", 0.00006103515625),
    ("f9c400", -4.0),
    ("fbc010666666666666", -4.1),
    ("f4", 0.0),
    ("f5", 1.0),
];

/// RFC 8949, appendix A: what is none, with the reason why.
const OTHERS: &[(&str, &str)] = &[
    ("f97c00", "not_finite"),
    ("f97e00", "not_finite"),
    ("f9fc00", "not_finite"),
    ("fa7f800000", "not_finite"),
    ("fa7fc00000", "not_finite"),
    ("faff800000", "not_finite"),
    ("fb7ff0000000000000", "not_finite"),
    ("fb7ff8000000000000", "not_finite"),
    ("fbfff0000000000000", "not_finite"),
    ("f6", "missing"),
    ("f7", "missing"),
    ("f0", "wrong_type"),
    ("f8ff", "wrong_type"),
    ("c074323031332d30332d32315432303a30343a30305a", "wrong_type"),
    ("d74401020304", "wrong_type"),
    ("d818456449455446", "wrong_type"),
    ("d82076687474703a2f2f7777772e6578616d706c652e636f6d", "wrong_type"),
    ("40", "wrong_type"),
    ("4401020304", "wrong_type"),
    ("60", "wrong_type"),
    ("6161", "wrong_type"),
    ("6449455446", "wrong_type"),
    ("62225c", "wrong_type"),
    ("62c3bc", "wrong_type"),
    ("63e6b0b4", "wrong_type"),
    ("64f0908591", "wrong_type"),
    ("80", "wrong_type"),
    ("83010203", "wrong_type"),
    ("8301820203820405", "wrong_type"),
    ("98190102030405060708090a0b0c0d0e0f101112131415161718181819", "wrong_type"),
    ("a0", "wrong_type"),
    ("a201020304", "wrong_type"),
    ("a26161016162820203", "wrong_type"),
    ("826161a161626163", "wrong_type"),
    ("a56161614161626142616361436164614461656145", "wrong_type"),
    ("5f42010243030405ff", "wrong_type"),
    ("7f657374726561646d696e67ff", "wrong_type"),
    ("9fff", "wrong_type"),
    ("9f018202039f0405ffff", "wrong_type"),
    ("9f01820203820405ff", "wrong_type"),
    ("83018202039f0405ff", "wrong_type"),
    ("83019f0203ff820405", "wrong_type"),
    ("bf61610161629f0203ffff", "wrong_type"),
    ("826161bf61626163ff", "wrong_type"),
    ("bf6346756ef563416d7421ff", "wrong_type"),
];

/// RFC 8949, appendix F: what is not well-formed.
const BROKEN: &str = "18 19 1a 1b 1901 1a0102 1b01020304050607 38 58 78 98 9a01ff00 b8 d8 f8 f900 fa0000 fb000000 41 61 5affffffff00 \
    5bffffffffffffffff010203 7affffffff00 7b7fffffffffffffff010203 81 818181818181818181 8200 a1 a20102 a100 a2000000 c0 5f4100 \
    7f6100 9f 9f0102 bf bf01020102 819f 9f8000 9f9f9f9f9fffffffff 9f819f819f9fffffff 1c 1d 1e 3c 3d 3e 5c 5d 5e 7c 7d 7e 9c 9d 9e \
    bc bd be dc dd de fc fd fe f800 f801 f818 f81f 5f00ff 5f21ff 5f6100ff 5f80ff 5fa0ff 5fc000ff 5fe0ff 7f4100ff 5f5f4100ffff \
    7f7f6100ffff ff 81ff 8200ff a1ff a1ff00 a100ff a20000ff 9f81ff 9f829f819f9fffffffff bf00ff bf000000ff 1f 3f df";

#[test]
fn the_numbers_of_rfc_8949_are_those_numbers() {
    for (hex, number) in NUMBERS {
        assert_eq!(root(hex).map(f64::to_bits), Ok(number.to_bits()), "{hex}");
    }
}

#[test]
fn the_other_values_of_rfc_8949_are_well_formed_and_no_numbers() {
    for (hex, reason) in OTHERS {
        assert_eq!(root(hex).expect_err(hex).reason(), *reason, "{hex}");
        assert!(is_well_formed(hex), "{hex}");
    }
}

#[test]
fn what_rfc_8949_calls_not_well_formed_is_refused_wherever_it_stands() {
    for hex in BROKEN.split_whitespace() {
        assert!(!is_well_formed(hex), "{hex}");
        let result = root(hex);
        assert!(matches!(result, Err(DecodeError::Syntax { .. } | DecodeError::WrongType { .. })), "{hex}: {result:?}");
    }
}

#[test]
fn fields_are_found_by_texts_and_by_numbers() {
    let decoder = decoder(r#"{"format":"cbor","fields":["/t","/w/3","/-7/1"],"time":"/ts","time_unit":"ms"}"#);
    let document = Item::Map(
        vec![
            (Item::Integer(-7), Item::Array(vec![Item::text("x"), Item::Half(0x3e00)], false)),
            (Item::Bytes(vec![1]), Item::Integer(9)),
            (Item::Pieces(vec!["t".into(), String::new(), "s".into()]), Item::Integer(1_700_000_000_123)),
            (Item::text("w"), Item::Map(vec![(Item::text("03"), Item::Null), (Item::Integer(3), Item::Bool(true))], true)),
            (Item::text("t"), Item::Tag(4711, Box::new(Item::Single(-2.5)))),
        ],
        false,
    );
    let mut out = Samples::new();
    decoder.decode(&document.encoded(), &mut out).expect("decodes");
    assert_eq!((out.values(), out.time_us()), (&[-2.5, 1.0, 1.5][..], Some(1_700_000_000_123_000)));
}

#[test]
fn times_with_a_tag_say_their_own_unit() {
    let decoder = decoder(r#"{"format":"cbor","fields":["/v"],"time":"/t","time_unit":"ns"}"#);
    let time = |hex: &str| {
        let mut out = Samples::new();
        decoder.decode(&bytes(&format!("a26176006174{hex}")), &mut out).map(|()| out.time_us().expect("a time"))
    };
    // RFC 8949, appendix A.
    assert_eq!(time("c074323031332d30332d32315432303a30343a30305a"), Ok(1_363_896_240_000_000));
    assert_eq!(time("c11a514b67b0"), Ok(1_363_896_240_000_000));
    assert_eq!(time("c1fb41d452d9ec200000"), Ok(1_363_896_240_500_000));
    assert_eq!(time("1b17979cfe362a0000"), Ok(1_700_000_000_000_000));
    let text = |text: &str| {
        time(&Item::Tag(0, Box::new(Item::text(text))).encoded().iter().map(|b| format!("{b:02x}")).collect::<String>())
    };
    assert_eq!(text("2013-03-21T21:04:00.25+01:00"), Ok(1_363_896_240_250_000));
    assert_eq!(text("2013-03-21t14:34:00.1234567-05:30"), Ok(1_363_896_240_123_456));
    assert_eq!(text("2000-02-29T00:00:00Z"), Ok(951_782_400_000_000));
    assert_eq!(text("1970-01-01T00:00:00Z"), Ok(0));
    assert_eq!(text("9999-12-31T23:59:59.999999Z"), Ok(TIME_US_MAX));
    for wrong in ["2013-03-21", "2013-03-21T20:04Z", "2013-13-21T20:04:00Z", "2013-03-21T20:04:00", "1969-12-31T23:59:59Z", ""]
    {
        assert_eq!(text(wrong).expect_err(wrong).reason(), "time_range", "{wrong}");
    }
}

#[test]
fn typed_arrays_are_arrays() {
    // RFC 8746, section 3.1.1: two rows of three 16-bit numbers, big-endian.
    let by_rows = decoder(r#"{"format":"cbor","layout":"rows","samples":"","channels":3,"rate_hz":50}"#);
    let golden = bytes("d82882820203d8414c000200040008000400100100");
    assert_eq!(rows(&by_rows, &golden), Ok(vec![vec![2.0, 4.0, 8.0], vec![4.0, 16.0, 256.0]]));
    assert_eq!(
        rows(&by_rows, &bytes("d82882820202d8414c000200040008000400100100")).expect_err("four of six").reason(),
        "syntax"
    );
    let fields = decoder(r#"{"format":"cbor","fields":["/a/2","/a/0"]}"#);
    let typed =
        |tag: u64, data: &[u8]| Item::Map(vec![(Item::text("a"), Item::Tag(tag, Box::new(Item::Bytes(data.to_vec()))))], true);
    let values = |tag, data: &[u8]| rows(&fields, &typed(tag, data).encoded());
    let expected = |last: f64, first: f64| Ok(vec![vec![last, first]]);
    assert_eq!(values(64, &[1, 2, 255]), expected(255.0, 1.0));
    assert_eq!(values(68, &[1, 2, 255]), expected(255.0, 1.0));
    assert_eq!(values(72, &[0xff, 2, 0x80]), expected(-128.0, -1.0));
    assert_eq!(values(65, &bytes("000100020100")), expected(256.0, 1.0));
    assert_eq!(values(69, &bytes("010002000001")), expected(256.0, 1.0));
    assert_eq!(values(74, &bytes("ffffffff0000000280000000")), expected(-2147483648.0, -1.0));
    assert_eq!(values(78, &bytes("ffffffff0200000000000080")), expected(-2147483648.0, -1.0));
    assert_eq!(values(71, &bytes("010000000000000002000000000000000000000000000080")), expected(9223372036854775808.0, 1.0));
    assert_eq!(values(75, &bytes("ffffffffffffffff00000000000000028000000000000000")), expected(-9223372036854775808.0, -1.0));
    assert_eq!(values(80, &bytes("3c000000c400")), expected(-4.0, 1.0));
    assert_eq!(values(84, &bytes("003c000000c4")), expected(-4.0, 1.0));
    assert_eq!(values(81, &bytes("3fc0000000000000c0000000")), expected(-2.0, 1.5));
    assert_eq!(values(85, &bytes("0000c03f00000000000000c0")), expected(-2.0, 1.5));
    assert_eq!(values(82, &bytes("3ff80000000000000000000000000000c000000000000000")), expected(-2.0, 1.5));
    assert_eq!(values(86, &bytes("000000000000f83f000000000000000000000000000000c0")), expected(-2.0, 1.5));
    assert_eq!(values(69, &[1, 0, 2]).expect_err("half a number").reason(), "syntax");
    for not_read in [76, 83, 87, 63, 88] {
        assert_eq!(values(not_read, &[0; 48]).expect_err("bytes").reason(), "missing", "{not_read}");
    }
    let columns = decoder(r#"{"format":"cbor","layout":"columns","fields":["/a"],"rate_hz":50}"#);
    assert_eq!(rows(&columns, &typed(72, &[1, 0xfe]).encoded()), Ok(vec![vec![1.0], vec![-2.0]]));
}

#[test]
fn nesting_is_limited_where_it_is_read_and_where_it_is_skipped() {
    let decoder = decoder(r#"{"format":"cbor","fields":["/a"]}"#);
    for (open, close) in [("81", ""), ("9f", "ff"), ("a100", ""), ("c181", "")] {
        let nested = |levels: usize| bytes(&format!("a26162{}00{}616101", open.repeat(levels), close.repeat(levels)));
        assert_eq!(rows(&decoder, &nested(DEPTH_MAX - 1)), Ok(vec![vec![1.0]]), "{open}");
        assert!(matches!(rows(&decoder, &nested(DEPTH_MAX)), Err(DecodeError::TooDeep { .. })), "{open}");
    }
    assert!(matches!(rows(&decoder, &vec![0x81; PAYLOAD_BYTES_MAX]), Err(DecodeError::TooDeep { .. })));
    assert!(matches!(rows(&decoder, &vec![0xc1; PAYLOAD_BYTES_MAX]), Err(DecodeError::Syntax { .. })), "tags do not nest");
}

#[test]
fn the_layouts_are_those_of_json() {
    let row = |values: [i64; 2]| Item::Array(values.map(Item::Integer).into(), true);
    let document = Item::Map(vec![(Item::text("d"), Item::Array(vec![row([1, 2]), row([3, 4])], false))], true);
    let by_rows = decoder(r#"{"format":"cbor","layout":"rows","samples":"/d","channels":2,"rate_hz":50}"#);
    assert_eq!(rows(&by_rows, &document.encoded()), Ok(vec![vec![1.0, 2.0], vec![3.0, 4.0]]));
    let by_objects = decoder(r#"{"format":"cbor","layout":"objects","samples":"/d","fields":["/1","/0"],"rate_hz":50}"#);
    assert_eq!(rows(&by_objects, &document.encoded()), Ok(vec![vec![2.0, 1.0], vec![4.0, 3.0]]));
    assert_eq!(
        rows(&by_rows, &Item::Map(vec![(Item::text("d"), row([1, 2]))], true).encoded()).expect_err("flat").reason(),
        "wrong_type"
    );
}

fn key() -> impl Strategy<Value = Item> {
    prop_oneof![
        "[ab01]{1,2}".prop_map(Item::Text),
        prop::collection::vec("[ab01]{0,1}", 0..3).prop_map(Item::Pieces),
        (-2_i64..3).prop_map(Item::Integer),
        prop::collection::vec(any::<u8>(), 0..2).prop_map(Item::Bytes),
    ]
}

fn document() -> impl Strategy<Value = Item> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Item::Integer),
        any::<f32>().prop_filter("finite", |number| number.is_finite()).prop_map(Item::Single),
        any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Item::Double),
        ".{0,4}".prop_map(Item::Text),
        prop::collection::vec(any::<u8>(), 0..9).prop_map(Item::Bytes),
        any::<bool>().prop_map(Item::Bool),
        Just(Item::Null),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..4), any::<bool>()).prop_map(|(items, has)| Item::Array(items, has)),
            (prop::collection::vec((key(), inner.clone()), 0..4), any::<bool>()).prop_map(|(mut members, has)| {
                // A number and the text of its digits lead to the same place.
                let mut seen: Vec<String> = Vec::new();
                members.retain(|(key, _)| {
                    key.name().is_none_or(|name| {
                        let is_new = !seen.contains(&name);
                        seen.push(name);
                        is_new
                    })
                });
                Item::Map(members, has)
            }),
            (100_u64..1_000_000, inner).prop_map(|(tag, item)| Item::Tag(tag, Box::new(item))),
        ]
    })
}

const CBOR_FORMATS: [&str; 4] = [
    r#"{"format":"cbor","fields":["/a/0","/1"],"time":"/b"}"#,
    r#"{"format":"cbor","layout":"rows","samples":"","channels":2,"rate_hz":50}"#,
    r#"{"format":"cbor","layout":"objects","samples":"/a","fields":["/0","/a"],"rate_hz":50}"#,
    r#"{"format":"cbor","layout":"columns","fields":["/a","/0"],"rate_hz":50}"#,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pointers_find_what_an_encoder_put_there(document in document()) {
        let payload = document.encoded();
        for pointer in ["", "/a", "/b/a", "/0", "/1/0", "/a/1", "/-1", "/01"] {
            let format = serde_json::json!({ "format": "cbor", "fields": [pointer] }).to_string();
            let steps: Vec<&str> = pointer.split('/').skip(1).collect();
            let expected = document.at(&steps).and_then(Item::number);
            match rows(&decoder(&format), &payload) {
                Ok(rows) => prop_assert_eq!(Some(rows[0][0]), expected),
                Err(error) => {
                    prop_assert_eq!(expected, None, "{}", error);
                    prop_assert!(matches!(error.reason(), "missing" | "wrong_type"), "{}", error);
                }
            }
        }
    }

    #[test]
    fn damaged_documents_decode_or_are_refused(document in document(), at in any::<usize>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut payload = document.encoded();
        let at = at % payload.len();
        payload[at] = byte;
        payload.truncate(if cut { at } else { payload.len() });
        for format in CBOR_FORMATS {
            let mut out = Samples::new();
            let result = decoder(format).decode(&payload, &mut out);
            prop_assert!(result.is_ok() || out.rows() == 0);
            prop_assert!(out.values().iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn every_half_is_the_single_that_it_widens_to(bits in 0_u16..0x7c00) {
        // Rebuilt from its parts: sign, exponent, fraction.
        let (exponent, fraction) = (i32::from(bits >> 10), f64::from(bits & 0x3ff) / 1024.0);
        let expected = if exponent == 0 { fraction * 2_f64.powi(-14) } else { (1.0 + fraction) * 2_f64.powi(exponent - 15) };
        let decoder = decoder(r#"{"format":"cbor","fields":["/0","/1"]}"#);
        let document = Item::Array(vec![Item::Half(bits), Item::Half(bits | 0x8000)], true);
        prop_assert_eq!(rows(&decoder, &document.encoded()), Ok(vec![vec![expected, -expected]]));
    }
}
