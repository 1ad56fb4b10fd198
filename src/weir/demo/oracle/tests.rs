use super::*;
use crate::demo::publish::payload_hash;
use crate::demo::recordings::Recordings;

fn sent(value: f64, time_ms: i64) -> Sent {
    Sent { at_us: 1_000, sends: 1, acked: true, payload_len: 10, hash: payload_hash(b"payload"), value, time_ms }
}

fn log(kind: Kind, sent: Vec<Sent>) -> DeviceLog {
    DeviceLog { kind, device: "d".to_owned(), sent }
}

fn found(kind: Kind, seq: i64, what: What) -> Found {
    let stream = kind.stream().unwrap().to_owned();
    Found { epoch: "e".to_owned(), lane: kind.class(), seq, stream, device: "d".to_owned(), in_cloud: true, what }
}

fn raw(number: usize) -> What {
    What::Raw { number: Some(number), hash: payload_hash(b"payload") }
}

fn judged(log: DeviceLog, found: Vec<Found>) -> ClassReport {
    let class = log.kind.class().index();
    let evidence = Evidence { found, ..Evidence::default() };
    let judgement = judge(&[log], &[], &evidence, &Commits::default());
    let counts = judgement.classes[class].clone();
    assert_eq!(judgement.findings.is_empty(), counts.is_conserved(), "what is wrong is told: {:?}", judgement.findings);
    counts
}

#[test]
fn a_message_that_is_there_once_is_in_order() {
    let counts =
        judged(log(Kind::Pump, vec![sent(0.0, 0); 2]), vec![found(Kind::Pump, 1, raw(0)), found(Kind::Pump, 2, raw(1))]);
    assert!(counts.is_conserved());
    assert_eq!((counts.published, counts.acked, counts.stored), (2, 2, 2));
}

#[test]
fn an_acknowledged_message_that_is_nowhere_is_lost() {
    let unacked = Sent { acked: false, ..sent(0.0, 0) };
    let counts = judged(log(Kind::Alarm, vec![sent(0.0, 0), unacked, sent(0.0, 0)]), vec![found(Kind::Alarm, 1, raw(2))]);
    assert_eq!((counts.lost, counts.doubled, counts.wrong), (1, 0, 0), "who got no PUBACK was promised nothing");
}

#[test]
fn what_was_given_up_with_a_reason_is_not_lost() {
    let evidence = Evidence { evicted: [0, 0, 0, 2], expired: [0, 0, 0, 1], thinned: [0, 0, 0, 3], ..Evidence::default() };
    let logs = [log(Kind::Log, vec![sent(0.0, 0); 7])];
    let judgement = judge(&logs, &[], &evidence, &Commits::default());
    let bulk = &judgement.classes[Class::Bulk.index()];
    assert_eq!((bulk.lost, bulk.evicted, bulk.expired, bulk.thinned), (1, 2, 1, 3));
}

#[test]
fn a_copy_is_resent_or_doubled_by_how_often_it_was_sent() {
    let twice = Sent { sends: 2, ..sent(0.0, 0) };
    let copies = (1..=3).map(|seq| found(Kind::Pump, seq, raw(0))).collect();
    let counts = judged(log(Kind::Pump, vec![twice]), copies);
    assert_eq!((counts.resent, counts.doubled), (1, 1));
}

#[test]
fn a_record_that_is_not_what_was_sent_is_wrong() {
    let other = What::Raw { number: Some(0), hash: payload_hash(b"other") };
    let counts = judged(log(Kind::Pump, vec![sent(0.0, 0)]), vec![found(Kind::Pump, 1, other)]);
    assert_eq!((counts.wrong, counts.lost), (1, 1));
    let counts = judged(log(Kind::Garbled, vec![sent(0.0, 0)]), vec![found(Kind::Garbled, 1, raw(0))]);
    assert_eq!((counts.wrong, counts.undecodable), (1, 1), "what does not decode is not stored");
}

#[test]
fn a_level_is_stored_when_it_has_moved() {
    let levels = || log(Kind::Level, [20.0, 20.4, 20.5, 20.9, 20.0].map(|value| sent(value, 0)).to_vec());
    let stored = |numbers: &[usize]| {
        numbers.iter().enumerate().map(|(seq, &number)| found(Kind::Level, seq as i64, raw(number))).collect::<Vec<_>>()
    };
    let counts = judged(levels(), stored(&[0, 2, 4]));
    assert!(counts.is_conserved());
    assert_eq!(counts.filtered, 2);
    let counts = judged(levels(), stored(&[0, 1, 2]));
    assert_eq!((counts.lost, counts.wrong), (1, 1), "the last should be there, the second should not");
}

#[test]
fn a_span_has_the_samples_that_were_sent() {
    let samples = || log(Kind::Temperature, vec![sent(1.0, 4_100), sent(3.0, 5_900), sent(7.0, 6_000)]);
    let span =
        |seq, start_us, count, min, max, sum| found(Kind::Temperature, seq, What::Aggregate { start_us, count, min, max, sum });
    let second = || span(9, 6_000_000, 1, 7.0, 7.0, 7.0);
    // One span in two records is whole as well.
    let parts = vec![span(7, 4_000_000, 1, 1.0, 1.0, 1.0), span(8, 4_000_000, 1, 3.0, 3.0, 3.0), second()];
    assert!(judged(samples(), parts).is_conserved());
    assert_eq!(judged(samples(), vec![second()]).lost, 2);
    assert_eq!(judged(samples(), vec![span(8, 4_000_000, 2, 1.0, 4.0, 5.0), second()]).wrong, 1);
    let three = span(8, 4_000_000, 3, 1.0, 3.0, 7.0);
    assert_eq!(judged(samples(), vec![three, second()]).doubled, 1);
}

/// Three windows of the first wearer, of which the model was sure but for the second.
fn watched() -> (Vec<DeviceLog>, Vec<Motion>, Vec<Found>) {
    let motions = Recordings::load(None).unwrap().motions;
    let messages = (WINDOW_ROWS + 2 * WINDOW_STEP).div_ceil(WATCH_ROWS);
    let mut log = log(Kind::Watch, vec![sent(0.0, 0); messages]);
    log.device = motions[0].wearer.clone();
    let mut all: Vec<Found> = (0..3)
        .map(|n| {
            let confidence = if n == 1 { 0.3 } else { 0.9 };
            found(Kind::Watch, n, What::Verdict { end_us: n, label: motions[0].exercises[0].1.clone(), confidence })
        })
        .collect();
    let rows = &motions[0].rows[WINDOW_STEP..WINDOW_STEP + WINDOW_ROWS];
    let values = (0..AXES).flat_map(|axis| rows.iter().map(move |row| f32::from(row[axis]))).collect();
    all.push(found(Kind::Watch, 3, What::Window { end_us: 1, values }));
    for found in &mut all {
        found.device.clone_from(&log.device);
    }
    (vec![log], motions, all)
}

fn judge_watched(change: impl FnOnce(&mut Vec<Found>)) -> Judgement {
    let (logs, motions, mut found) = watched();
    change(&mut found);
    judge(&logs, &motions, &Evidence { found, ..Evidence::default() }, &Commits::default())
}

#[test]
fn every_window_has_a_verdict_and_an_unsure_one_its_rows() {
    let judgement = judge_watched(|_| {});
    assert!(judgement.classes.iter().all(ClassReport::is_conserved), "{:?}", judgement.findings);
    assert_eq!((judgement.verdicts, judgement.windows, judgement.judged, judgement.right), (3, 1, 3, 3));
}

#[test]
fn a_verdict_or_a_raw_window_that_is_not_there_is_lost() {
    let high = Class::High.index();
    assert_eq!(judge_watched(|found| drop(found.remove(2))).classes[high].lost, 1);
    assert_eq!(judge_watched(|found| drop(found.remove(3))).classes[high].lost, 1);
}

#[test]
fn a_raw_window_that_is_not_what_was_sent_is_wrong() {
    let judgement = judge_watched(|found| {
        if let What::Window { values, .. } = &mut found[3].what {
            values[700] += 1.0;
        }
    });
    assert_eq!(judgement.classes[Class::High.index()].wrong, 1);
    assert_eq!(judgement.findings, ["window 1 of subject8 is not what was sent"]);
}

#[test]
fn a_number_between_others_that_is_nowhere_is_missing() {
    let counts =
        judged(log(Kind::Pump, vec![sent(0.0, 0); 2]), vec![found(Kind::Pump, 1, raw(0)), found(Kind::Pump, 4, raw(1))]);
    assert_eq!(counts.missing, 2);
}

#[test]
fn records_of_nobody_are_wrong() {
    let counts = judged(log(Kind::Pump, Vec::new()), vec![found(Kind::Pump, 1, raw(0))]);
    assert_eq!(counts.wrong, 1);
}
