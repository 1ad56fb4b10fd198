use rusqlite::types::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use weir_logic::block::{BlockHeader, RecordKind};
use weir_logic::ids::{BlockKey, Class, VoidReason};
use weir_logic::window::{Aggregate, ChannelAggregate, VerdictRecord, Window, encode_window};

use super::*;
use crate::testing::{block, block_of, name};

const PACE: Pace = Pace { bytes_max: 1 << 20, time_max: Duration::from_millis(50) };

struct Rig {
    dir: tempfile::TempDir,
    sink: Sink,
    thread: Option<JoinHandle<()>>,
    events_rx: UnboundedReceiver<SinkEvent>,
    metrics: Arc<Metrics>,
}

impl Rig {
    fn start(file_bytes_max: u64) -> Rig {
        Rig::in_dir(tempfile::tempdir().unwrap(), file_bytes_max)
    }

    fn in_dir(dir: tempfile::TempDir, file_bytes_max: u64) -> Rig {
        let layout = Layout { path: dir.path().join("cloud.db"), cache_bytes: 1 << 20, file_bytes_max };
        let (events_tx, events_rx) = unbounded_channel();
        let metrics = Arc::new(Metrics::default());
        let (sink, thread) = Sink::start(&layout, PACE, 64 << 20, metrics.clone(), events_tx).unwrap();
        Rig { dir, sink, thread: Some(thread), events_rx, metrics }
    }

    fn push(&self, work: Work) {
        self.sink.push(Job { gateway: name("box-1"), work, room: None });
    }

    fn store(&self, (header, block): (BlockHeader, bytes::Bytes)) {
        let takes = vec![(header.key.first_seq, header.last_seq)];
        self.push(Work::Store(Store { header, block, takes, wall_offset_us: 77 }));
    }

    fn event(&mut self) -> SinkEvent {
        self.events_rx.blocking_recv().unwrap()
    }

    /// Waits until as many ranges are committed.
    fn committed(&mut self, count: usize) -> Vec<SeqRange> {
        let mut ranges = Vec::new();
        while ranges.len() < count {
            if let SinkEvent::Committed(committed) = self.event() {
                ranges.extend(committed.into_iter().flat_map(|(_, ranges)| ranges));
            }
        }
        ranges
    }

    fn known(&mut self, epochs: &[u64]) -> Known {
        self.sink.load(name("box-1"), epochs.iter().map(|&epoch| Epoch(epoch)).collect(), SessionId(1));
        loop {
            if let SinkEvent::Loaded { known, .. } = self.event() {
                return known.unwrap();
            }
        }
    }

    fn rows(&self, sql: &str) -> Vec<Vec<Value>> {
        let reader = Connection::open(self.dir.path().join("cloud.db")).unwrap();
        let mut select = reader.prepare(sql).unwrap();
        let columns = select.column_count();
        let rows = select.query_map([], |row| (0..columns).map(|at| row.get(at)).collect()).unwrap();
        rows.map(Result::unwrap).collect()
    }

    fn count(&self, from: &str) -> i64 {
        match self.rows(&format!("SELECT count(*) FROM {from}"))[0][0] {
            Value::Integer(count) => count,
            _ => unreachable!(),
        }
    }

    fn finish(mut self) -> tempfile::TempDir {
        self.sink.finish();
        self.thread.take().unwrap().join().unwrap();
        self.dir
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn key(first_seq: u64) -> BlockKey {
    BlockKey { lane: Class::Normal, epoch: Epoch(7), first_seq }
}

#[test]
fn a_block_becomes_rows_a_person_can_read() {
    let mut rig = Rig::start(0);
    rig.store(block(Class::Normal, 7, 5, &[b"{\"v\":1}", b"\xff\xfe"]));
    assert_eq!(rig.committed(1), [SeqRange { key: key(5), last_seq: 6 }]);
    let rows =
        rig.rows("SELECT gateway, stream, device, t_us, time, payload, clock, lane, epoch, seq FROM samples ORDER BY seq");
    assert_eq!(
        rows[0],
        [
            text("box-1"),
            text("pumps"),
            text("p1"),
            Value::Integer(1_700_000_000_005_000),
            text("2023-11-14T22:13:20.005Z"),
            text("{\"v\":1}"),
            text("box"),
            text("normal"),
            text("0000000000000007"),
            Value::Integer(5),
        ]
    );
    assert_eq!(rows[1][5], Value::Blob(vec![0xff, 0xfe]));
}

#[test]
fn all_kinds_of_records_become_rows_and_times_are_shifted_only_once() {
    let aggregate = Aggregate {
        start_us: 10,
        end_us: 20,
        first_us: 11,
        last_us: 19,
        count: 4,
        channels: vec![ChannelAggregate { min: 1.0, max: 3.0, sum: 8.0 }, ChannelAggregate { min: -1.0, max: 0.0, sum: -2.0 }],
    };
    let verdict = VerdictRecord {
        model: "m".into(),
        version: "1".into(),
        label: "run".into(),
        score: 0.5,
        confidence: 0.25,
        start_us: 30,
        end_us: 40,
    };
    let (mut a, mut v, mut w) = (Vec::new(), Vec::new(), Vec::new());
    aggregate.encode(&mut a);
    verdict.encode(&mut v).unwrap();
    encode_window(&Window { start_us: 50, end_us: 60, channels: 2, values: &[1.0, 2.0, 3.0, 4.0] }, &mut w);
    let records = [(RecordKind::Aggregate, &a[..]), (RecordKind::Verdict, &v), (RecordKind::Window, &w)];
    let mut rig = Rig::start(0);
    // Without a trusted clock times in payloads are service time, and the session's estimate (77) is all there is.
    rig.store(block_of(Class::High, 7, 0, None, &records));
    rig.store(block_of(Class::Critical, 7, 0, Some(1_000_000), &records));
    rig.committed(2);
    let spans = |from: &str| rig.rows(&format!("SELECT lane, clock, start_us, end_us FROM {from} ORDER BY lane"));
    let int = Value::Integer;
    assert_eq!(
        spans("verdicts"),
        [[text("critical"), text("box"), int(30), int(40)], [text("high"), text("cloud"), int(30 + 77), int(40 + 77)]]
    );
    assert_eq!(spans("windows")[1][2..], [int(50 + 77), int(60 + 77)]);
    assert_eq!(spans("aggregates").len(), 4);
    let real = Value::Real;
    assert_eq!(
        rig.rows("SELECT channel, min, max, mean, count FROM aggregates WHERE lane = 'critical' ORDER BY channel"),
        [[int(0), real(1.0), real(3.0), real(2.0), int(4)], [int(1), real(-1.0), real(0.0), real(-0.5), int(4)]]
    );
    assert_eq!(rig.rows("SELECT label, score, confidence FROM verdicts")[0], [text("run"), real(0.5), real(0.25)]);
    let data = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(rig.rows("SELECT channels, length, data FROM windows")[0], [int(2), int(2), Value::Blob(data)]);
}

#[test]
fn only_what_was_asked_for_is_stored_and_coverage_melts() {
    let mut rig = Rig::start(0);
    let (header, bytes) = block(Class::Normal, 7, 0, &[b"a", b"b", b"c", b"d", b"e"]);
    let store = |takes: Vec<(u64, u64)>| Work::Store(Store { header, block: bytes.clone(), takes, wall_offset_us: 0 });
    rig.push(store(vec![(0, 0), (3, 3)]));
    rig.committed(2);
    assert_eq!(rig.rows("SELECT payload FROM samples ORDER BY seq"), [[text("a")], [text("d")]]);
    rig.push(store(vec![(1, 2), (4, 4)]));
    rig.committed(2);
    assert_eq!(rig.count("samples"), 5);
    assert_eq!(rig.rows("SELECT lane, first, last FROM coverage"), [[2, 0, 4].map(Value::Integer)]);
    assert_eq!(rig.metrics.sink_rows_refused.load(Relaxed), 0);
}

#[test]
fn what_is_on_record_survives_a_restart() {
    let mut rig = Rig::start(0);
    rig.push(Work::EpochOpened(Epoch(6), false));
    rig.push(Work::EpochOpened(Epoch(7), false));
    rig.push(Work::EpochsClosed(vec![Epoch(7)]));
    rig.push(Work::Missing(SeqRange { key: key(20), last_seq: 29 }));
    rig.push(Work::Void(Void { key: key(10), last_seq: 12, reason: VoidReason::Expired }));
    rig.store(block(Class::Normal, 7, 24, &[b"late"]));
    rig.committed(2);
    let before = rig.known(&[6, 7, 8]);
    assert_eq!(before.current, Some(Epoch(7)));
    assert_eq!(before.epochs.iter().map(|known| known.epoch).collect::<Vec<_>>(), [Epoch(6), Epoch(7)]);
    let lane = Class::Normal.index();
    assert_eq!(before.epochs[1].durable[lane].iter().collect::<Vec<_>>(), [10..=12, 24..=24]);
    assert_eq!(before.epochs[1].missing[lane].iter().collect::<Vec<_>>(), [20..=23, 25..=29]);
    let dir = rig.finish();

    let mut rig = Rig::in_dir(dir, 0);
    assert_eq!(rig.known(&[6, 7, 8]), before);
    assert_eq!(rig.rows("SELECT epoch, lane, first, last, reason FROM voids")[0][4], text("expired"));
    let states = rig.rows("SELECT state FROM epochs ORDER BY epoch");
    assert_eq!(states, [[text("closed")], [text("open")]]);
}

#[test]
fn an_unreadable_block_is_put_aside_and_counts_as_stored() {
    let mut rig = Rig::start(0);
    let nonsense = block_of(Class::Normal, 7, 0, None, &[(RecordKind::Raw, b"fine"), (RecordKind::Verdict, b"nonsense")]);
    let bytes = nonsense.1.clone();
    rig.store(nonsense);
    rig.store(block(Class::Normal, 7, 2, &[b"next"]));
    assert_eq!(rig.committed(2).len(), 2);
    assert_eq!(rig.rows("SELECT payload FROM samples"), [[text("next")]]);
    let row = &rig.rows("SELECT first, last, block, reason FROM quarantine")[0];
    assert_eq!(row[..3], [Value::Integer(0), Value::Integer(1), Value::Blob(bytes.to_vec())]);
    assert_eq!(rig.count("alerts WHERE kind = 'quarantine'"), 1);
    assert_eq!(rig.known(&[7]).epochs[0].durable[Class::Normal.index()].iter().collect::<Vec<_>>(), [0..=2]);
}

#[test]
fn a_full_database_acknowledges_nothing_and_goes_on_when_there_is_room() {
    let mut rig = Rig::start(400 << 10);
    // Payloads that zstd cannot shrink and SQLite stores as they are.
    let payload = |seed: u64| -> Vec<u8> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(20_000).collect()
    };
    const BLOCKS: u64 = 40;
    for at in 0..BLOCKS {
        rig.store(block(Class::Normal, 7, at, &[&payload(at)]));
    }
    let mut committed = Vec::new();
    let reason = loop {
        match rig.event() {
            SinkEvent::Committed(ranges) => committed.extend(ranges.into_iter().flat_map(|(_, ranges)| ranges)),
            SinkEvent::Stalled(reason) => break reason,
            event => panic!("{event:?}"),
        }
    };
    assert!(reason.contains("full"), "{reason}");
    assert!((committed.len() as u64) < BLOCKS);
    assert_eq!(rig.count("samples"), committed.len() as i64, "what was rolled back is not there");
    // Questions are answered meanwhile.
    assert_eq!(rig.known(&[7]).epochs.iter().map(|known| known.durable[2].len()).sum::<u64>(), committed.len() as u64);
    // Each of these takes a page or five: an operator makes room until it is enough.
    let operator = Connection::open(rig.dir.path().join("cloud.db")).unwrap();
    operator.busy_timeout(Duration::from_secs(5)).unwrap();
    let mut resumed = false;
    while (committed.len() as u64) < BLOCKS {
        if !std::mem::take(&mut resumed) {
            operator.execute("DELETE FROM sample_rows", []).unwrap();
        }
        match rig.event() {
            SinkEvent::Committed(ranges) => committed.extend(ranges.into_iter().flat_map(|(_, ranges)| ranges)),
            SinkEvent::Resumed => resumed = true,
            SinkEvent::Stalled(_) => {}
            event => panic!("{event:?}"),
        }
    }
    let mut firsts: Vec<u64> = committed.iter().map(|range| range.key.first_seq).collect();
    firsts.sort_unstable();
    assert_eq!(firsts, (0..BLOCKS).collect::<Vec<_>>(), "each once");
    assert_eq!(rig.rows("SELECT first, last FROM coverage"), [[Value::Integer(0), Value::Integer(BLOCKS as i64 - 1)]]);
}

#[test]
fn a_transaction_of_another_program_is_waited_for() {
    let mut rig = Rig::start(0);
    let other = Connection::open(rig.dir.path().join("cloud.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    rig.store(block(Class::Normal, 7, 0, &[b"a"]));
    let SinkEvent::Stalled(reason) = rig.event() else { panic!("not stalled") };
    assert!(reason.contains("locked"), "{reason}");
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(rig.committed(1).len(), 1);
}

#[test]
fn the_end_commits_what_waits() {
    let rig = Rig::start(0);
    for first in 0..50 {
        rig.store(block(Class::Normal, 7, first, &[b"x"]));
    }
    let mut rig = Rig::in_dir(rig.finish(), 0);
    assert_eq!(rig.count("samples"), 50);
    assert_eq!(rig.known(&[7]).epochs[0].durable[2].len(), 50);
}

#[test]
fn a_row_that_is_there_already_stays_as_it_is() {
    let mut rig = Rig::start(0);
    rig.store(block(Class::Normal, 7, 0, &[b"first"]));
    rig.store(block(Class::Normal, 7, 0, &[b"other"]));
    rig.committed(2);
    assert_eq!(rig.rows("SELECT payload FROM samples"), [[text("first")]]);
    assert_eq!(rig.metrics.sink_rows_refused.load(Relaxed), 1);
}

#[test]
fn room_is_given_back_after_the_commit() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut rig = Rig::start(0);
    let room = runtime.block_on(rig.sink.room(1_000));
    assert_eq!(rig.sink.queued_bytes(), 1_000 + u64::from(JOB_BYTES));
    let (header, block) = block(Class::Normal, 7, 0, &[b"a"]);
    let work = Work::Store(Store { header, block, takes: vec![(0, 0)], wall_offset_us: 0 });
    rig.sink.push(Job { gateway: name("box-1"), work, room: Some(room) });
    rig.committed(1);
    assert_eq!(rig.sink.queued_bytes(), 0);
}

#[test]
fn a_journal_cut_anywhere_leaves_data_and_coverage_in_step() {
    let mut rig = Rig::start(0);
    for first in 0..30 {
        rig.store(block(Class::Normal, 7, 2 * first, &[b"some payload", b"and another"]));
        rig.committed(1);
    }
    // What a crash leaves: the file and its journal, taken while the sink has them open.
    let file = std::fs::read(rig.dir.path().join("cloud.db")).unwrap();
    let journal = std::fs::read(rig.dir.path().join("cloud.db-wal")).unwrap();
    let mut counts = Vec::new();
    for cut in (0..=20).map(|part| journal.len() * part / 20) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cloud.db"), &file).unwrap();
        std::fs::write(dir.path().join("cloud.db-wal"), &journal[..cut]).unwrap();
        let mut rig = Rig::in_dir(dir, 0);
        let stored = rig.count("sample_rows");
        let covered: u64 = rig.known(&[7]).epochs.iter().map(|known| known.durable[2].len()).sum();
        assert_eq!(stored as u64, covered, "journal cut at {cut} of {}", journal.len());
        counts.push(stored);
        // And what was lost is stored again.
        let first = stored as u64;
        rig.store(block(Class::Normal, 7, first, &[b"again"]));
        assert_eq!(rig.committed(1), [SeqRange { key: key(first), last_seq: first }]);
        rig.finish();
    }
    assert!(counts.is_sorted() && counts[0] == 0 && counts[20] == 60, "{counts:?}");
    assert!(counts.iter().any(|&count| count > 0 && count < 60), "{counts:?}");
}
