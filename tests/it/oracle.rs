//! The oracle itself: it notices what is wrong, or all that it says is worth nothing.

use std::time::Duration;

use rusqlite::Connection;
use weir_tests::support::oracle::examine;
use weir_tests::support::publisher::{Report, Sensor, Sent};
use weir_tests::support::script::{self, Fate, MIXED_STREAMS};
use weir_tests::support::site::{Plan, Site};

use crate::binaries;

/// The first message of a lane that was acknowledged and became a record.
fn a_record<'a>(report: &'a Report, lane: &str) -> &'a [u8] {
    let is_record = |sent: &&Sent| sent.message.fate == Fate::Record && sent.acked.is_some() && sent.message.lane == lane;
    &report.sent.iter().find(is_record).expect("most are").message.payload
}

#[test]
fn the_oracle_notices_what_is_lost_doubled_foreign_misplaced_or_missing() {
    let mut site = Site::started(binaries(), Plan::new("through", MIXED_STREAMS));
    let mut sensor = Sensor::new(site.mqtt(), "sensor-0", |n| script::mixed(0, n));
    sensor.count_max = 300;
    let reports = [sensor.start().wait(Duration::from_secs(20))];
    site.drain();
    site.stop_edge();
    site.stop_cloud();
    examine(&reports, &site.database(), Some(&site.buffer())).assert_conserved();
    let record = a_record(&reports[0], "normal");
    let as_text = String::from_utf8_lossy(record).into_owned();
    // `?1` is a payload that should be there once.
    let copy = "INSERT INTO sample_rows SELECT epoch_id, lane, 1000000, source_id, t_us, clock, payload FROM sample_rows
        WHERE CAST(payload AS BLOB) = ?1";
    let tampering = [
        ("lost", "DELETE FROM sample_rows WHERE CAST(payload AS BLOB) = ?1"),
        ("spurious", copy),
        ("unknown", "UPDATE sample_rows SET payload = x'00' WHERE CAST(payload AS BLOB) = ?1"),
        ("misplaced", "UPDATE sample_rows SET lane = 3 - lane, seq = 3000000 WHERE CAST(payload AS BLOB) = ?1"),
        (
            "missing",
            "INSERT INTO missing_rows SELECT epoch_id, lane, 2000000, 2000009, 0 FROM sample_rows WHERE CAST(payload AS BLOB) = ?1",
        ),
        (
            "doubled",
            "INSERT INTO verdict_rows SELECT epoch_id, lane, seq, source_id, 0, 0, 0, 0, '', '', '', 0, 0 FROM sample_rows WHERE CAST(payload AS BLOB) = ?1",
        ),
    ];
    for (what, statement) in tampering {
        let copy = site.dir().join("tampered.db");
        std::fs::copy(site.database(), &copy).expect("there is room");
        let db = Connection::open(&copy).expect("it is a database");
        assert_eq!(db.execute(statement, [record]).expect("the tables are as SCHEMA.md says"), 1, "{what}: {as_text}");
        drop(db);
        let verdict = examine(&reports, &copy, Some(&site.buffer()));
        let found = [
            ("lost", verdict.lost.len()),
            ("spurious", verdict.spurious.len()),
            ("unknown", verdict.unknown.len()),
            ("misplaced", verdict.misplaced.len()),
            ("missing", usize::from(verdict.missing == 10)),
            ("doubled", verdict.doubled.len()),
        ];
        for (name, count) in found {
            // A payload that was changed is also lost.
            let expected = usize::from(name == what || (what, name) == ("unknown", "lost"));
            assert_eq!(count, expected, "{name} after {what}\n{verdict}");
        }
    }
    // A void excuses a loss in its own lane only.
    for (lane, lost) in [(2, 0), (0, 1)] {
        let copy = site.dir().join("voided.db");
        std::fs::copy(site.database(), &copy).expect("there is room");
        let db = Connection::open(&copy).expect("it is a database");
        db.execute("DELETE FROM sample_rows WHERE CAST(payload AS BLOB) = ?1", [record]).expect("it is there");
        db.execute("INSERT INTO void_rows SELECT id, ?1, 4000000, 4000009, 'evicted', 0 FROM epochs LIMIT 1", [lane])
            .expect("the tables are as SCHEMA.md says");
        drop(db);
        let verdict = examine(&reports, &copy, Some(&site.buffer()));
        assert_eq!((verdict.absent, verdict.voided, verdict.lost.len()), (1, 10, lost), "a void in lane {lane}\n{verdict}");
    }
}
