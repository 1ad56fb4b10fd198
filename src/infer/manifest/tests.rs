use super::*;

const GOOD: &str = r#"
name = "pump"
version = "3"
task = "classification"
file = "pump.onnx"
sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

[input]
name = "window"
channels = ["x", "y"]
window = 3
rate_hz = 50
dtype = "f32"

[standardise]
mean = [1, 2.0]
std = [2.0, 0.5]

[output]
name = "probabilities"
labels = ["fine", "broken"]

[thresholds]
confidence_high = 0.7
"#;

fn parsed(text: &str) -> Result<Manifest, Vec<Problem>> {
    Manifest::parse(text, Path::new("/models"))
}

fn problems(from: &str, to: &str) -> Vec<Problem> {
    assert!(GOOD.contains(from), "the test replaces something");
    parsed(&GOOD.replace(from, to)).expect_err("a mistake was put in")
}

#[test]
fn a_manifest_is_read_with_its_file_beside_it() {
    let manifest = parsed(GOOD).unwrap();
    assert_eq!(manifest.file, Path::new("/models/pump.onnx"));
    assert_eq!((manifest.row_len(), manifest.output_width()), (6, 2));
    assert_eq!(manifest.thresholds.confidence, Some((0.0, 0.7)));
    assert_eq!(manifest.sha256[..2], [0xe3, 0xb0]);
    assert_eq!((manifest.input.rate_hz, manifest.input.int16), (50.0, false));
    let int16 = parsed(&GOOD.replace("dtype = \"f32\"", "dtype = \"f32\"\nint16 = true")).unwrap();
    assert!(int16.input.int16);
    let wrong = problems("dtype = \"f32\"", "dtype = \"f32\"\nint16 = 1");
    assert!(wrong.len() == 1 && wrong[0].place == "[input] int16, line 14", "{wrong:?}");
}

#[test]
fn standardisation_is_per_channel_and_channel_major() {
    let manifest = parsed(GOOD).unwrap();
    let mut rows = vec![9.0];
    manifest.standardise_into(&[1.0, 3.0, 5.0, 2.0, 3.0, 1.0], &mut rows).unwrap();
    assert_eq!(rows, [9.0, 0.0, 1.0, 2.0, 0.0, 2.0, -2.0]);
}

#[test]
fn a_model_that_takes_time_first_is_given_it_and_bad_values_keep_their_names() {
    let manifest = parsed(&GOOD.replace("dtype = \"f32\"", "dtype = \"f32\"\nlayout = \"time-first\"")).unwrap();
    let mut rows = vec![9.0];
    manifest.standardise_into(&[1.0, 3.0, 5.0, 2.0, 3.0, 1.0], &mut rows).unwrap();
    assert_eq!(rows, [9.0, 0.0, 0.0, 1.0, 2.0, 2.0, -2.0]);
    let error = manifest.standardise_into(&[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0], &mut rows).unwrap_err();
    assert_eq!(error, RunError::NonFinite { channel: "y".to_owned(), sample: 1 });
    assert_eq!(rows.len(), 7);
}

#[test]
fn state_is_read_and_its_gap_is_that_of_windows_unless_it_is_written() {
    let with = |lines: &str| parsed(&format!("{GOOD}\n[state]\n{lines}"));
    let names = "inputs = [\"h\", \"c\"]\noutputs = [\"h2\", \"c2\"]\n";
    let state = with(names).unwrap().state.unwrap();
    assert_eq!((state.inputs.len(), state.outputs[1].as_str(), state.gap_max_us), (2, "c2", 1_000_000));
    assert_eq!(with(&format!("{names}gap_max_s = 0.5")).unwrap().state.unwrap().gap_max_us, 500_000);
    assert_eq!(parsed(GOOD).unwrap().state, None);
    for (lines, place) in [
        ("inputs = [\"h\"]\noutputs = []", "[state] outputs, line 28"),
        ("inputs = [\"h\", \"h\"]\noutputs = [\"a\", \"b\"]", "[state] inputs, line 27"),
        ("inputs = [\"h\"]\noutputs = [\"a\"]\ngap_max_s = 0", "[state] gap_max_s, line 29"),
        ("inputs = [\"h\"]\noutputs = [\"a\"]\ngap_max_s = \"1s\"", "[state] gap_max_s, line 29"),
        ("outputs = [\"a\"]", "[state] inputs"),
        ("inputs = [\"h\"]\noutputs = [\"a\"]\ngap = 1", "[state] gap, line 29"),
    ] {
        let found = with(lines).unwrap_err();
        assert!(found.iter().any(|problem| problem.place == place), "{lines}: {found:?}");
    }
}

#[test]
fn without_a_section_values_pass_as_they_are() {
    let start = GOOD.find("[standardise]").unwrap();
    let end = GOOD.find("[output]").unwrap();
    let manifest = parsed(&format!("{}{}", &GOOD[..start], &GOOD[end..])).unwrap();
    let mut rows = Vec::new();
    manifest.standardise_into(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut rows).unwrap();
    assert_eq!(rows, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
}

#[test]
fn a_bad_window_is_refused_and_leaves_the_batch_alone() {
    let manifest = parsed(GOOD).unwrap();
    let mut rows = vec![7.0];
    for (bad, sample) in [(f32::NAN, 1), (f32::INFINITY, 2), (f32::MAX, 0)] {
        let mut window = [0.0; 6];
        window[3 + sample] = bad; // f32::MAX / 0.5 overflows
        let error = manifest.standardise_into(&window, &mut rows).unwrap_err();
        assert_eq!(error, RunError::NonFinite { channel: "y".to_owned(), sample });
    }
    assert_eq!(manifest.standardise_into(&[0.0; 5], &mut rows), Err(RunError::RowLength { found: 5, expected: 6 }));
    assert_eq!(rows, [7.0]);
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_lines() {
    let text = GOOD
        .replace("task = \"classification\"", "task = \"guess\"\ncolour = 3")
        .replace("window = 3", "window = 2.5")
        .replace("std = [2.0, 0.5]", "std = [2.0]")
        .replace("version = \"3\"\n", "");
    let found = parsed(&text).unwrap_err();
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 5, "{shown:#?}");
    for part in [
        "colour, line 4: is not a key",
        "version: is missing",
        "task, line 3",
        "[input] window, line 11: is 2.5",
        "[standardise] std, line 17: has 1 numbers for 2 channels",
    ] {
        assert!(shown.iter().any(|problem| problem.contains(part)), "{part} in {shown:#?}");
    }
}

#[test]
fn every_value_out_of_range_is_a_problem_at_its_key() {
    for (from, to, place) in [
        ("name = \"pump\"", "name = \"Pump/1\"", "name, line 2"),
        ("version = \"3\"", "version = \"3\"\nanswers = \"Is it on?\"", "answers, line 4"),
        ("\"pump.onnx\"", "\"../pump.onnx\"", "file, line 5"),
        ("\"pump.onnx\"", "\"/etc/pump.onnx\"", "file, line 5"),
        ("e3b0", "zzzz", "sha256, line 6"),
        ("e3b0", "", "sha256, line 6"),
        ("[\"x\", \"y\"]", "[\"x\", \"x\"]", "[input] channels, line 10"),
        ("[\"x\", \"y\"]", "[]", "[input] channels, line 10"),
        ("[\"x\", \"y\"]", "\"x\"", "[input] channels, line 10"),
        ("window = 3", "window = 0", "[input] window, line 11"),
        ("window = 3", "window = 1e30", "[input] window, line 11"),
        ("window = 3", "window = \"2s\"", "[input] window, line 11"),
        ("rate_hz = 50", "rate_hz = nan", "[input] rate_hz, line 12"),
        ("rate_hz = 50", "rate_hz = -1", "[input] rate_hz, line 12"),
        ("\"f32\"", "\"i8\"", "[input] dtype, line 13"),
        ("dtype = \"f32\"", "dtype = \"f32\"\nlayout = \"rows\"", "[input] layout, line 14"),
        (
            "labels = [\"fine\", \"broken\"]",
            "labels = [\"a\", \"b\"]\nscore = \"reconstruction-error\"",
            "[output] score, line 22",
        ),
        ("mean = [1, 2.0]", "mean = [1, 1e300]", "[standardise] mean, line 16"),
        ("std = [2.0, 0.5]", "std = [2.0, 0.0]", "[standardise] std, line 17"),
        ("labels = [\"fine\", \"broken\"]", "labels = [\"fine\"]", "[output] labels, line 21"),
        ("confidence_high = 0.7", "confidence_high = 1.7", "[thresholds] confidence_high, line 24"),
        ("confidence_high = 0.7", "confidence_low = 0.7", "[thresholds] confidence_low, line 24"),
        ("confidence_high = 0.7", "anomaly_score = 0.7", "[thresholds] anomaly_score, line 24"),
        ("[thresholds]", "[treshold]", "treshold, line 23"),
    ] {
        let found = problems(from, to);
        assert!(found.iter().any(|problem| problem.place == place), "{to}: {found:?}");
    }
}

#[test]
fn an_anomaly_model_must_say_its_threshold() {
    let found = problems("\"classification\"", "\"anomaly\"");
    assert_eq!(found[0].place, "[thresholds] anomaly_score");
}

#[test]
fn text_that_is_not_toml_is_one_problem_with_its_line() {
    let found = problems("version = \"3\"", "version = = 3");
    assert_eq!((found.len(), found[0].place.as_str()), (1, "line 3"));
}

#[test]
fn no_cut_or_damaged_manifest_panics() {
    let mut state = 9_u64;
    for round in 0..2000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut bytes = GOOD.as_bytes().to_vec();
        let at = (state >> 33) as usize % bytes.len();
        if round % 2 == 0 {
            bytes.truncate(at)
        } else {
            bytes[at] = (state >> 25) as u8 & 0x7f
        }
        let text = String::from_utf8(bytes).unwrap();
        if let Err(found) = parsed(&text) {
            assert!(!found.is_empty(), "{text}");
        }
    }
}

#[test]
fn a_missing_and_an_endless_manifest_say_so() {
    assert!(matches!(Manifest::read(Path::new("/nowhere/model.toml")), Err(ManifestError::Read { .. })));
    assert!(matches!(Manifest::read(Path::new("/dev/zero")), Err(ManifestError::TooLong { .. })));
}
