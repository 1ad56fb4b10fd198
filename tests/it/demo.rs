//! The demo as a newcomer runs it, in this process: real sockets, a link that breaks, and its own oracle.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use weir::demo::{Mode, Options, Report, run};
use weir_host::shutdown;

fn demo(options: &Options) -> Report {
    let (_trigger, interrupt) = shutdown::channel();
    let report = run(options, &interrupt).expect("the demo runs");
    println!("{report}");
    assert!(report.ok, "{:?}", report.findings);
    assert!(report.drained, "{} records were still held", report.held);
    report
}

#[test]
fn the_demo_conserves_every_message_over_a_link_that_breaks() {
    let options = Options { publish_for: Duration::from_secs(8), speed: 16.0, seed: 7, ..Options::default() };
    let report = demo(&options);
    let total = &report.total;
    assert!(total.published > 2_000 && total.acked == total.published, "{} of {}", total.acked, total.published);
    assert!((1.4..1.8).contains(&report.outage_s), "a fifth of the time: {}", report.outage_s);
    // Every fate there is has been met, or the run shows little.
    for (count, what) in [
        (total.stored, "stored"),
        (total.filtered, "filtered"),
        (total.folded, "folded"),
        (total.undecodable, "undecodable"),
        (total.unmatched, "unmatched"),
        (report.inferred, "inferred"),
        (report.windows, "windows"),
    ] {
        assert!(count > 0, "no message was {what}");
    }
    assert_eq!(report.latency_ms.len(), 4, "every class was timed");
    assert!(report.accuracy.is_some_and(|share| share > 0.6), "{:?}", report.accuracy);
    assert_eq!(report.disconnects, 0);
}

#[test]
fn the_demo_in_mode_disk_keeps_its_files_if_asked_to() {
    let keep = tempfile::tempdir().unwrap();
    let folder = keep.path().join("kept");
    let options = Options {
        publish_for: Duration::from_secs(2),
        mode: Mode::Disk,
        link: Some("ethernet".to_owned()),
        keep: Some(folder.clone()),
        ..Options::default()
    };
    let report = demo(&options);
    assert!(report.total.stored > 100 && report.outage_s == 0.0, "{report}");
    for name in ["edge.toml", "cloud.toml", "cloud.db", "box/buffer.redb", "weir.log"] {
        assert!(folder.join(name).exists(), "{name} is kept");
    }
    let (_trigger, interrupt) = shutdown::channel();
    assert!(run(&options, &interrupt).unwrap_err().to_string().contains("is not empty"), "and they are not written over");
}

fn weir(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-under-test"));
    command.args(arguments);
    command
}

#[test]
fn ctrl_c_ends_publishing_and_the_oracle_still_speaks() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("outcome.json");
    let mut child = weir(&["demo", "--plain", "--for", "1h", "--link", "ethernet", "--json", json.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    assert!(first.contains("msg/s"), "{first}");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    assert!(rest.contains("Nothing lost, nothing doubled, nothing missing"), "{rest}");
    let outcome: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(outcome["interrupted"], true);
    assert!(outcome["stored"].as_u64().unwrap() > 100);
}

#[test]
fn bad_flags_are_told_with_what_to_write_instead() {
    for (arguments, told) in [
        (["--for", "10"], "30s"),
        (["--speed", "0"], "from 0.1 to 1000"),
        (["--link", "carrier-pigeon"], "lte-driving"),
        (["--backend", "onnx"], "rten"),
    ] {
        let output = weir(&["demo", arguments[0], arguments[1]]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{text}");
        assert!(text.contains(told), "{text}");
    }
}
