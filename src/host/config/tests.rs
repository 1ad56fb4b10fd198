use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;
use crate::units::{Bytes, Duration};

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct Config {
    name: String,
    interval: Duration,
    buffer: Buffer,
    stream: Vec<Stream>,
    model: BTreeMap<String, Model>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "box".to_owned(),
            interval: Duration::from_secs(1),
            buffer: Buffer::default(),
            stream: Vec::new(),
            model: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct Buffer {
    bytes_limit: Bytes,
    mode: Mode,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Disk,
    Through,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Stream {
    topics: Vec<String>,
    name: String,
    #[serde(default)]
    window: Option<Window>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Window {
    Time { length: Duration },
    Count { length: u32 },
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Model {
    file: String,
}

const GOOD: &str = r#"
name = "a"
interval = "30s"
[buffer]
bytes_limit = "64MiB"
mode = "through"
[[stream]]
name = "s"
topics = ["a/+", "b"]
window = { kind = "time", length = "2s" }
[model."x.y"]
file = "f"
"#;

fn lines(errors: &ConfigErrors) -> Vec<(usize, usize, String)> {
    errors.errors().iter().map(|e| (e.line, e.column, e.key.clone())).collect()
}

#[test]
fn a_good_document_is_read() {
    let config: Config = load("edge.toml", GOOD).unwrap();
    assert_eq!(config.interval, Duration::from_secs(30));
    assert_eq!(config.buffer, Buffer { bytes_limit: Bytes::from_mib(64), mode: Mode::Through });
    assert_eq!(config.stream[0].window, Some(Window::Time { length: Duration::from_secs(2) }));
    assert_eq!(config.model["x.y"].file, "f");
    assert_eq!(load::<Config>("edge.toml", "").unwrap(), Config::default());
}

#[test]
fn every_mistake_is_shown_at_its_place_with_a_hint() {
    let text = r#"name = 5
intervall = "5s"
interval = 30

[buffer]
bytes_limit = "64 MByte"
mode = "trough"

[[stream]]
name = "first"
topics = ["a", 7, "b"]
topic = "x"

[[stream]]
topics = "b"
name = "second"

[model.big]
fille = "m.onnx"

[modle.small]
file = "s.onnx"
"#;
    let errors = load::<Config>("edge.toml", text).unwrap_err();
    let shown = errors.to_string();
    assert_eq!(
        lines(&errors),
        [
            (1, 8, "name".to_owned()),
            (2, 1, "intervall".to_owned()),
            (3, 12, "interval".to_owned()),
            (6, 15, "buffer.bytes_limit".to_owned()),
            (7, 8, "buffer.mode".to_owned()),
            (11, 16, "stream[0].topics[1]".to_owned()),
            (12, 1, "stream[0].topic".to_owned()),
            (15, 10, "stream[1].topics".to_owned()),
            (18, 1, "model.big".to_owned()),
            (19, 1, "model.big.fille".to_owned()),
            (21, 2, "modle".to_owned()),
        ],
        "{shown}"
    );
    for part in [
        "did you mean `interval`?",
        "did you mean `through`?",
        "did you mean `topics`?",
        "did you mean `file`?",
        "did you mean `model`?",
        "write \"5\", with quotes",
        "write \"30s\" if that is what is meant",
        "`MByte` is not a unit of a size; known are B, KiB",
        "the key `file` is missing",
        "11 mistakes in edge.toml",
    ] {
        assert!(shown.contains(part), "`{part}` in:\n{shown}");
    }
}

#[test]
fn an_error_reads_like_a_compiler() {
    let errors = load::<Config>("edge.toml", "[buffer]\nmode = \"dsik\" # here\n").unwrap_err();
    assert_eq!(
        errors.to_string(),
        "error: unknown value `dsik` (key `buffer.mode`)\n \
         --> edge.toml:2:8\n  |\n2 | mode = \"dsik\" # here\n  |        ^^^^^^\n  \
         = hint: did you mean `disk`?\n\n1 mistake in edge.toml"
    );
}

#[test]
fn what_a_mistake_breaks_elsewhere_is_not_reported() {
    let text = "[[stream]]\nname = 1\ntopics = [\"a\"]\n";
    let errors = load::<Config>("f", text).unwrap_err();
    assert_eq!(lines(&errors), [(2, 8, "stream[0].name".to_owned())]);
}

#[test]
fn a_mistake_inside_a_tagged_enum_is_found_near_its_place() {
    let text = "[[stream]]\nname = \"n\"\ntopics = []\n\
                window = { kind = \"count\", length = 5, lenght = 6 }\n";
    let errors = load::<Config>("f", text).unwrap_err();
    assert_eq!(lines(&errors), [(4, 40, "stream[0].window.lenght".to_owned())]);
    let text = "[[stream]]\nname = \"n\"\ntopics = []\n\
                window = { kind = \"time\", length = 5 }\n";
    let errors = load::<Config>("f", text).unwrap_err();
    assert_eq!(errors.errors()[0].line, 4);
    assert!(errors.to_string().contains("the bare number 5 is refused"), "{errors}");
}

#[test]
fn broken_toml_is_shown_together_with_other_mistakes() {
    let text = "interval = 30s\n[buffer]\nmode = \"dsik\"\nbytes_limit = \n";
    let errors = load::<Config>("f", text).unwrap_err();
    let shown = errors.to_string();
    assert!(shown.contains("write \"30s\", with quotes"), "{shown}");
    assert!(shown.contains("did you mean `disk`?"), "{shown}");
    let mut found: Vec<usize> = errors.errors().iter().map(|e| e.line).collect();
    found.dedup();
    assert_eq!(found, [1, 3, 4], "{shown}");
    let errors = load::<Config>("f", "name = \"a\"\nname = \"b\"\n").unwrap_err();
    assert_eq!(lines(&errors), [(2, 1, String::new())]);
}

#[test]
fn checks_report_at_the_line_of_the_key_they_name() {
    let text = GOOD.replace("topics = [\"a/+\", \"b\"]", "topics = [\"a/+\",\n  \"b\"]") + "[buffers]\nx = 1\n";
    let errors = load_checked::<Config>("f", &text, |config, check| {
        assert_eq!(config.name, "a");
        assert!(check.is_given("name") && !check.is_given("stream[0].qos"));
        assert_eq!(check.position("name"), (2, 8));
        check.mistake("stream[0].topics[1]", "topic is taken", "");
        check.mistake("model.\"x.y\".file", "no such file", "look elsewhere");
        check.mistake("stream[0].qos", "needs a level", "");
    })
    .unwrap_err();
    assert_eq!(
        lines(&errors),
        [
            (7, 1, "stream[0].qos".to_owned()),
            (10, 3, "stream[0].topics[1]".to_owned()),
            (13, 8, "model.\"x.y\".file".to_owned()),
            (14, 2, "buffers".to_owned()),
        ],
        "{errors}"
    );
}

#[test]
fn a_check_does_not_judge_defaults_that_stand_in_for_a_mistake() {
    let errors = load_checked::<Config>("f", "interval = 3\n", |_, check| {
        check.mistake("interval", "too short", "");
        check.mistake("name", "too plain", "");
    })
    .unwrap_err();
    let messages: Vec<&str> = errors.errors().iter().map(|e| e.message.as_str()).collect();
    assert_eq!(messages.len(), 2, "{errors}");
    assert!(!messages.contains(&"too short"));
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.toml");
    let missing = read::<Config>(&path, |_, _| ()).unwrap_err();
    assert!(missing.to_string().contains("the file cannot be read: No such file"), "{missing}");
    assert!(missing.to_string().contains("edge.toml"), "{missing}");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    let binary = read::<Config>(&path, |_, _| ()).unwrap_err();
    assert!(binary.to_string().contains("must be UTF-8"), "{binary}");
    std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
    let long = read::<Config>(&path, |_, _| ()).unwrap_err();
    assert!(long.to_string().contains("2097152 bytes exceed the limit of 1048576"), "{long}");
    std::fs::write(&path, GOOD).unwrap();
    assert_eq!(read::<Config>(&path, |_, _| ()).unwrap().name, "a");
}

#[test]
fn a_thousand_mistakes_end_at_the_limit() {
    let text: String = (0..1000).map(|i| format!("key{i} = 1\n")).collect();
    assert_eq!(load::<Config>("f", &text).unwrap_err().errors().len(), ERRORS_MAX);
}

#[test]
fn key_paths_print_as_they_are_written() {
    for text in ["", "a", "a.b", "stream[2].window.length", "model.\"x.y\".file", "a[0][1].b"] {
        assert_eq!(KeyPath::parse(text).to_string(), text);
    }
    assert_eq!(KeyPath::parse("ü[x].é").steps.len(), 3);
}
