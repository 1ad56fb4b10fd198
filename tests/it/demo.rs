//! The demo as a newcomer runs it, in this process: real sockets, a link that breaks, and its own oracle.

use std::time::Duration;

use weir::demo::{Mode, Options, Report, run};
use weir_host::shutdown;

fn demo(options: &Options) -> Report {
    let (_trigger, interrupt) = shutdown::channel();
    let report = run(options, &interrupt).unwrap();
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
