use tempfile::TempDir;
use weir_edge::store::{Store, StoreOptions, StoreTime};
use weir_logic::block::{NewRecord, Staging};
use weir_logic::ids::{Void, VoidReason};
use weir_logic::store::{CommitRequest, Put};

use super::*;

const NOON_US: i64 = 1_769_860_800_000_000;

fn record<'a>(kind: RecordKind, device: &'a str, at_us: u64, payload: &'a [u8]) -> NewRecord<'a> {
    NewRecord { source: 0, stream: "pumps", device, kind, service_time: false, at_us, payload }
}

fn put(lane: Class, wall_offset_us: Option<i64>, records: &[NewRecord<'_>]) -> Put {
    let mut staging = Staging::new(7);
    for record in records {
        staging.push(record);
    }
    let (header, block) = staging.seal(lane, Epoch(0xABC), wall_offset_us, &mut Codec::default()).expect("records");
    Put { header, block, fragment: false }
}

/// A closed buffer with three records in two lanes and a void.
fn sample(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("buffer.redb");
    let (mut store, _) = Store::open(&path, StoreOptions::default()).expect("opened");
    let text = record(RecordKind::Raw, "pump-1", 1_000_000, br#"{"bar":"4\n"}"#);
    let bytes = record(RecordKind::Raw, "pump-1", 2_000_000, &[0xFF, 0x00, 0x10]);
    let aggregate = record(RecordKind::Aggregate, "", 3_000_000, b"text by chance");
    let first = put(Class::Normal, Some(NOON_US), &[text, bytes]);
    let void = Void { key: BlockKey { first_seq: 1, ..first.header.key }, last_seq: 6, reason: VoidReason::Evicted };
    let puts = vec![first, put(Class::Bulk, None, &[aggregate])];
    let request = CommitRequest { puts, voids: vec![void], ..CommitRequest::default() };
    let time = StoreTime { service_us: 3_000_000, wall_us: Some(NOON_US), ..StoreTime::default() };
    store.commit(&request, time).expect("committed");
    store.close(time).expect("closed");
    path
}

fn exported(path: &Path, lane: Option<Class>) -> Vec<serde_json::Value> {
    let mut out = Vec::new();
    export(&BufferFile::open(path).expect("opened"), lane, &mut out).expect("exported");
    out.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("JSON"))
        .collect()
}

#[test]
fn export_writes_every_record_once_with_text_where_it_is_text() {
    let dir = TempDir::new().expect("a directory");
    let lines = exported(&sample(&dir), None);
    let expected = serde_json::json!([
        {"epoch": "0000000000000abc", "lane": "normal", "seq": 7, "stream": "pumps", "device": "pump-1", "kind": "raw",
         "time": "2026-01-31T12:00:01.000000Z", "service_us": 1_000_000, "payload": "{\"bar\":\"4\\n\"}"},
        {"epoch": "0000000000000abc", "lane": "normal", "seq": 8, "stream": "pumps", "device": "pump-1", "kind": "raw",
         "time": "2026-01-31T12:00:02.000000Z", "service_us": 2_000_000, "payload_base64": "/wAQ"},
        {"epoch": "0000000000000abc", "lane": "bulk", "seq": 7, "stream": "pumps", "device": "", "kind": "aggregate",
         "time": null, "service_us": 3_000_000, "payload_base64": "dGV4dCBieSBjaGFuY2U="},
    ]);
    assert_eq!(serde_json::Value::from(lines), expected);
}

#[test]
fn export_of_a_lane_leaves_the_others_out() {
    let dir = TempDir::new().expect("a directory");
    let lines = exported(&sample(&dir), Some(Class::Bulk));
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["lane"], "bulk");
}

#[test]
fn export_does_not_write_over_a_file() {
    let dir = TempDir::new().expect("a directory");
    let file = sample(&dir);
    let out = dir.path().join("records.jsonl");
    let command = || BufferCommand::Export { file: file.clone(), lane: None, jsonl: Some(out.clone()) };
    run(command()).expect("exported");
    assert_eq!(std::fs::read_to_string(&out).expect("read").lines().count(), 3);
    assert!(run(command()).is_err());
}

#[test]
fn inspect_shows_lanes_runs_ages_and_voids() {
    let dir = TempDir::new().expect("a directory");
    let path = sample(&dir);
    let mut out = String::new();
    describe(&BufferFile::open(&path).expect("opened"), &path, &mut out).expect("described");
    for part in [
        "it was closed",
        "clock last trusted at 2026-01-31T12:00:00.000000Z",
        "all normal: 2 records",
        "0000000000000abc    bulk             1           1",
        "7-8  2 s to 2 s",
        "void: normal 0000000000000abc 1 to 6, evicted",
    ] {
        assert!(out.contains(part), "no {part:?} in\n{out}");
    }
}

/// Damages the first block found in the file.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    let at = bytes.windows(3).position(|window| window == b"WB\x01").expect("there is a block");
    bytes[at + 20] ^= 1;
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn verify_passes_an_intact_file_and_names_a_damaged_block() {
    let dir = TempDir::new().expect("a directory");
    let path = sample(&dir);
    let command = || BufferCommand::Verify { file: path.clone() };
    run(command()).expect("intact");
    damage(&path);
    let err = run(command()).expect_err("damaged");
    assert!(err.to_string().starts_with("1 of the blocks"), "{err}");
}

#[test]
fn export_writes_what_is_intact_and_fails_for_what_is_not() {
    let dir = TempDir::new().expect("a directory");
    let path = sample(&dir);
    damage(&path);
    let mut out = Vec::new();
    let err = export(&BufferFile::open(&path).expect("opened"), None, &mut out).expect_err("damaged");
    assert!(err.to_string().contains("checksum"), "{err}");
    assert!((1..3).contains(&out.iter().filter(|&&byte| byte == b'\n').count()));
}

#[test]
fn file_without_its_head_still_exports_its_records() {
    let dir = TempDir::new().expect("a directory");
    let path = sample(&dir);
    let mut lines = exported(&path, None);
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[..512].fill(0);
    std::fs::write(&path, bytes).expect("written");
    assert!(run(BufferCommand::Verify { file: path.clone() }).is_err());
    let mut salvaged = exported(&path, None);
    for lines in [&mut lines, &mut salvaged] {
        lines.sort_by_key(|line| line.to_string());
    }
    assert_eq!(salvaged, lines);
}

#[test]
fn base64_pads_as_rfc_4648_shows() {
    for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
        assert_eq!(base64(bytes.as_bytes()), text);
    }
}

#[test]
fn times_are_written_as_calendar_dates() {
    assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
    assert_eq!(rfc3339(951_782_399_999_999), "2000-02-28T23:59:59.999999Z");
    assert_eq!(rfc3339(951_782_400_000_000), "2000-02-29T00:00:00.000000Z");
    assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999999Z");
}

#[test]
fn unknown_lane_is_refused_with_those_there_are() {
    assert_eq!(lane("bulk"), Ok(Class::Bulk));
    assert!(lane("low").is_err_and(|err| err.contains("critical, high, normal, bulk")));
}
