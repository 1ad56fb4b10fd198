use std::collections::BTreeMap;
use std::path::PathBuf;

use redb::{Builder, StorageBackend};
use tempfile::TempDir;
use tokio::sync::mpsc;
use weir_host::clock::{BootTime, ClockMark};
use weir_logic::block::{BlockHeader, Codec, NewRecord, RecordKind, Staging};
use weir_logic::ids::{Class, VoidReason};
use weir_logic::store::{Put, SeqRange};

use super::faulty::{Loss, MemoryDisk, Moment};
use super::*;

mod full_disk;
mod inspecting;

/// Records of one lane, sealed or cut as a gateway does it.
struct Lane {
    lane: Class,
    epoch: Epoch,
    staging: Staging,
    codec: Codec,
    seed: u64,
}

impl Lane {
    fn new(lane: Class, epoch: u64) -> Lane {
        Lane { lane, epoch: Epoch(epoch), staging: Staging::new(1), codec: Codec::default(), seed: epoch | 1 }
    }

    /// Pushes `count` records of `len` bytes that do not compress.
    fn push(&mut self, count: usize, len: usize) {
        for _ in 0..count {
            let payload: Vec<u8> = (0..len).map(|_| self.random() as u8).collect();
            let at_us = self.staging.next_seq() * 1000;
            let record = NewRecord {
                source: 0,
                stream: "vibration",
                device: "pump-1",
                kind: RecordKind::Raw,
                service_time: false,
                at_us,
                payload: &payload,
            };
            self.staging.push(&record);
        }
    }

    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    fn fragment(&mut self) -> Put {
        let (header, block) = self.staging.cut(self.lane, self.epoch, None, &mut self.codec).expect("there are records");
        Put { header, block, fragment: true }
    }

    fn block(&mut self) -> Put {
        let (header, block) = self.staging.seal(self.lane, self.epoch, Some(-5), &mut self.codec).expect("there are records");
        Put { header, block, fragment: false }
    }

    fn next_block(&mut self, len: usize) -> Put {
        self.push(len.div_ceil(1000), 1000);
        self.block()
    }

    fn next_fragment(&mut self) -> Put {
        self.push(1, 200);
        self.fragment()
    }
}

fn puts(puts: Vec<Put>) -> CommitRequest {
    CommitRequest { puts, ..CommitRequest::default() }
}

fn range(header: &BlockHeader) -> SeqRange {
    SeqRange { key: header.key, last_seq: header.last_seq }
}

fn deletes(deletes: Vec<SeqRange>) -> CommitRequest {
    CommitRequest { deletes, ..CommitRequest::default() }
}

fn now(service_us: u64) -> StoreTime {
    StoreTime { service_us, ..StoreTime::default() }
}

fn open_disk(disk: &MemoryDisk) -> (Store, Opened) {
    Store::open_medium(Box::new(disk.clone()), StoreOptions::default()).expect("the disk opens")
}

/// A disk of `bytes`, of which the reserve takes `reserve_bytes`.
fn open_limited(disk: &MemoryDisk, bytes: usize, reserve_bytes: usize) -> (Store, Opened) {
    disk.limit(bytes, reserve_bytes);
    let options = StoreOptions { reserve_bytes: reserve_bytes as u64, ..StoreOptions::default() };
    Store::open_medium(Box::new(disk.clone()), options).expect("the disk opens")
}

fn open_file(path: &Path) -> (Store, Opened) {
    Store::open(path, StoreOptions { reserve_bytes: 64 << 10, ..StoreOptions::default() }).expect("the file opens")
}

/// What the buffer ought to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    blocks: BTreeMap<BlockKey, Bytes>,
    voids: BTreeMap<BlockKey, (u64, VoidReason)>,
}

impl Model {
    fn apply(&mut self, request: &CommitRequest) {
        for range in &request.deletes {
            let last = BlockKey { first_seq: range.last_seq, ..range.key };
            self.blocks.retain(|key, _| *key < range.key || *key > last);
        }
        for put in &request.puts {
            self.blocks.insert(put.header.key, put.block.clone());
        }
        for key in &request.voids_acked {
            self.voids.remove(key);
        }
        for void in &request.voids {
            self.voids.insert(void.key, (void.last_seq, void.reason));
        }
    }

    fn read(store: &mut Store, opened: &Opened) -> Model {
        assert_eq!(opened.damaged, []);
        let mut model = Model::default();
        for held in &opened.held {
            let block = store.load(held.header.key).expect("readable").expect("held");
            assert_eq!(BlockHeader::parse(&block).expect("an intact block"), held.header);
            assert_eq!(block.len(), held.len as usize);
            model.blocks.insert(held.header.key, block);
        }
        model.voids = opened.voids.iter().map(|void| (void.key, (void.last_seq, void.reason))).collect();
        model
    }
}

/// 60 commits as a box makes them in an outage and after it: fragments, merges, blocks, acknowledgements, evictions.
fn scenario() -> Vec<CommitRequest> {
    let mut normal = Lane::new(Class::Normal, 77);
    let mut bulk = Lane::new(Class::Bulk, 77);
    let mut later = Lane::new(Class::Normal, 5);
    let mut requests = Vec::new();
    let mut sealed: Vec<BlockHeader> = Vec::new();
    let mut open: Vec<BlockHeader> = Vec::new();
    for step in 0..60 {
        requests.push(match step % 10 {
            0..=4 => {
                let lane = if step < 40 { &mut normal } else { &mut later };
                let put = lane.next_fragment();
                open.push(put.header);
                puts(vec![put])
            }
            5 => {
                let lane = if step < 40 { &mut normal } else { &mut later };
                let put = lane.block();
                sealed.push(put.header);
                let deletes = vec![SeqRange { key: open[0].key, last_seq: put.header.last_seq }];
                open.clear();
                CommitRequest { deletes, puts: vec![put], ..CommitRequest::default() }
            }
            6 => {
                let put = bulk.next_block(12_000);
                sealed.push(put.header);
                puts(vec![put])
            }
            7 => {
                let evicted = sealed.remove(0);
                let void = Void { key: evicted.key, last_seq: evicted.last_seq, reason: VoidReason::Evicted };
                CommitRequest { deletes: vec![range(&evicted)], voids: vec![void], ..CommitRequest::default() }
            }
            8 => {
                let batch = vec![bulk.next_block(5_000), bulk.next_block(30_000), normal.next_block(9_000)];
                sealed.extend(batch.iter().map(|put| put.header));
                puts(batch)
            }
            _ => {
                let acked = [sealed.remove(0), sealed.remove(0)];
                let voids_acked = acked.iter().map(|header| header.key).collect();
                CommitRequest { deletes: acked.iter().map(range).collect(), voids_acked, ..CommitRequest::default() }
            }
        });
    }
    requests
}

/// Runs the scenario until the machine stops; returns how many commits were acknowledged.
fn run_until_crash(disk: &MemoryDisk, requests: &[CommitRequest]) -> usize {
    let Ok((mut store, _)) = Store::open_medium(Box::new(disk.clone()), StoreOptions::default()) else { return 0 };
    for (done, request) in requests.iter().enumerate() {
        // Every tenth step is a minute later, so that the times are written along too.
        if store.commit(request, now(done as u64 * 6_000_000)).is_err() {
            return done;
        }
    }
    requests.len()
}

fn states(requests: &[CommitRequest]) -> Vec<Model> {
    let mut states = vec![Model::default()];
    for request in requests {
        let mut next = states[states.len() - 1].clone();
        next.apply(request);
        states.push(next);
    }
    states
}

/// Stops the machine at `moment` and checks that what is found afterwards is what was acknowledged, or one commit more.
/// Returns false if the scenario ended before.
fn crash_and_check(requests: &[CommitRequest], states: &[Model], moment: Moment, loss: Loss) -> bool {
    let disk = MemoryDisk::default();
    disk.crash_at(moment, loss);
    let acked = run_until_crash(&disk, requests);
    let crashed = disk.is_dead();
    disk.revive();
    let (mut store, opened) = open_disk(&disk);
    assert_eq!(opened.quarantined, None, "{moment:?} {loss:?}");
    // Before the first commit and while the file is being closed there is nothing to repair.
    let is_amid = (1..requests.len()).contains(&acked);
    assert!(opened.repaired || !is_amid, "{moment:?} {loss:?}: a crash without traces");
    let found = Model::read(&mut store, &opened);
    let is_next = states.get(acked + 1).is_some_and(|next| *next == found);
    assert!(found == states[acked] || is_next, "{moment:?} {loss:?}: not the state after commit {acked} or {}", acked + 1);
    let rest: u64 = found.blocks.values().map(|block| tables::disk_bytes(block.len())).sum();
    assert_eq!(store.stored_bytes(), rest, "{moment:?} {loss:?}");
    // What is found can be written on.
    store.commit(&puts(vec![Lane::new(Class::High, 9).next_fragment()]), now(0)).expect("the disk works again");
    crashed
}

fn crash_everywhere(moment: impl Fn(u64) -> Moment, loss: impl Fn(u64) -> Loss) {
    let requests = scenario();
    let states = states(&requests);
    let mut n = 1;
    while crash_and_check(&requests, &states, moment(n), loss(n)) {
        n += 1;
    }
    assert!(n > 60, "only {n} moments in {} commits", requests.len());
}

#[test]
fn acked_commit_survives_a_kill_at_any_sync() {
    crash_everywhere(Moment::Sync, |_| Loss::Nothing);
}

#[test]
fn acked_commit_survives_a_kill_at_any_write() {
    crash_everywhere(Moment::Write, |_| Loss::Nothing);
}

#[test]
fn acked_commit_survives_a_power_cut_at_any_sync() {
    crash_everywhere(Moment::Sync, |_| Loss::Everything);
}

#[test]
fn acked_commit_survives_torn_sectors_at_any_sync() {
    for seed in 1..=4 {
        crash_everywhere(Moment::Sync, |n| Loss::Torn(seed * 1_000_003 + n));
    }
}

#[test]
fn acked_commit_survives_torn_sectors_at_any_write() {
    crash_everywhere(Moment::Write, |n| Loss::Torn(n * 7_919));
}

#[test]
fn state_equals_the_model_after_every_commit() {
    let disk = MemoryDisk::default();
    let requests = scenario();
    for (done, state) in states(&requests).iter().enumerate() {
        let (mut store, opened) = open_disk(&disk);
        assert_eq!(Model::read(&mut store, &opened), *state, "after {done} commits");
        if let Some(request) = requests.get(done) {
            store.commit(request, now(done as u64)).expect("committed");
        }
        store.close(now(done as u64)).expect("closed");
    }
}

#[test]
fn older_run_comes_first_whatever_its_epoch() {
    let disk = MemoryDisk::default();
    let (mut store, _) = open_disk(&disk);
    let epochs = [900, 3, 500];
    for epoch in epochs {
        let mut bulk = Lane::new(Class::Bulk, epoch);
        let mut critical = Lane::new(Class::Critical, epoch);
        let request = puts(vec![bulk.next_block(100), bulk.next_fragment(), critical.next_block(100)]);
        store.commit(&request, now(1)).expect("committed");
    }
    store.close(now(1)).expect("closed");
    let (_, opened) = open_disk(&disk);
    let order: Vec<(u64, Class, u64)> =
        opened.held.iter().map(|held| held.header.key).map(|key| (key.epoch.0, key.lane, key.first_seq)).collect();
    let expected: Vec<_> = epochs
        .iter()
        .flat_map(|&epoch| [(epoch, Class::Critical, 1), (epoch, Class::Bulk, 1), (epoch, Class::Bulk, 2)])
        .collect();
    assert_eq!(order, expected);
}

#[test]
fn epochs_without_blocks_are_forgotten_at_the_next_run() {
    let disk = MemoryDisk::default();
    for epoch in 1..50 {
        let (mut store, _) = open_disk(&disk);
        let put = Lane::new(Class::High, epoch).next_block(100);
        let header = put.header;
        store.commit(&puts(vec![put]), now(epoch)).expect("committed");
        store.commit(&deletes(vec![range(&header)]), now(epoch)).expect("committed");
        assert!(store.epochs.len() <= 2, "{} epochs in run {epoch}", store.epochs.len());
    }
}

#[test]
fn service_time_goes_on_from_the_newest_that_is_known() {
    let disk = MemoryDisk::default();
    let (mut store, opened) = open_disk(&disk);
    assert_eq!((opened.service_us, opened.wall_us), (0, None));
    let mut lane = Lane::new(Class::High, 1);
    let first = lane.next_fragment();
    let boot = Some(BootTime { id: u64::MAX, us: 5 });
    let minute = StoreTime { service_us: 60_000_000, wall_us: Some(1_700_000_000_000_000), boot };
    store.commit(&puts(vec![first]), minute).expect("committed");
    drop(store);
    let (mut store, opened) = open_disk(&disk);
    assert_eq!((opened.service_us, opened.wall_us), (60_000_000, minute.wall_us));
    assert_eq!(opened.mark, ClockMark { service_us: 60_000_000, boot });
    // 70,000 records later, one more fragment, born after the time that was written last.
    lane.push(70_000, 0);
    let put = lane.fragment();
    let born_us = lane.next_fragment();
    assert!(born_us.header.born_us > 60_000_000);
    store.commit(&puts(vec![put, born_us.clone()]), now(61_000_000)).expect("committed");
    drop(store);
    assert_eq!(open_disk(&disk).1.service_us, born_us.header.born_us);
    let (store, _) = open_disk(&disk);
    store.close(now(75_000_000)).expect("closed");
    let (mut store, opened) = open_disk(&disk);
    assert_eq!((opened.service_us, opened.wall_us), (75_000_000, minute.wall_us));
    assert_eq!(opened.mark, ClockMark { service_us: 75_000_000, boot: None }, "an older boot's time is not this one's");
    // The first transaction of a boot says so, however soon it comes.
    let boot = Some(BootTime { id: 7, us: 90 });
    store.commit(&puts(vec![lane.next_fragment()]), StoreTime { boot, ..now(75_000_001) }).expect("committed");
    drop(store);
    assert_eq!(open_disk(&disk).1.mark, ClockMark { service_us: 75_000_001, boot });
}

#[test]
fn deleting_a_range_takes_what_starts_in_it_and_nothing_else() {
    let disk = MemoryDisk::default();
    let (mut store, _) = open_disk(&disk);
    let mut lane = Lane::new(Class::High, 1);
    let other_lane = Lane::new(Class::Normal, 1).next_block(500);
    let other_epoch = Lane::new(Class::High, 2).next_block(500);
    let kept = lane.next_block(3000);
    let gone = [lane.next_block(3000), lane.next_block(3000), lane.next_fragment(), lane.next_fragment()];
    let after = lane.next_fragment();
    let mut all = vec![other_lane.clone(), other_epoch.clone(), kept.clone(), after.clone()];
    all.extend(gone.iter().cloned());
    store.commit(&puts(all), now(1)).expect("committed");
    let key = BlockKey { first_seq: kept.header.key.first_seq + 1, ..kept.header.key };
    let last_seq = after.header.key.first_seq - 1;
    store.commit(&deletes(vec![SeqRange { key, last_seq }]), now(1)).expect("committed");
    for put in [&other_lane, &other_epoch, &kept, &after] {
        assert_eq!(store.load(put.header.key), Ok(Some(put.block.clone())));
    }
    for put in &gone {
        assert_eq!(store.load(put.header.key), Ok(None));
    }
}

#[test]
fn small_commit_writes_at_most_40_kb() {
    let disk = MemoryDisk::default();
    let (mut store, _) = open_disk(&disk);
    let mut lane = Lane::new(Class::Normal, 1);
    for _ in 0..50 {
        let batch = (0..8).map(|_| lane.next_block(12_000)).collect();
        store.commit(&puts(batch), now(1)).expect("committed");
    }
    let mut total = 0;
    for _ in 0..100 {
        let stats = store.commit(&puts(vec![lane.next_fragment()]), now(1)).expect("committed");
        assert!(stats.syncs <= 2, "{stats:?}");
        total += stats.bytes_written;
    }
    assert!(total / 100 <= 40_000, "{} bytes a commit", total / 100);
}

#[test]
fn commit_beyond_the_size_limit_is_refused_and_changes_nothing() {
    let options = StoreOptions { size_limit: 64 << 10, ..StoreOptions::default() };
    let (mut store, _) = Store::open_medium(Box::new(MemoryDisk::default()), options).expect("opens");
    let mut lane = Lane::new(Class::Normal, 1);
    let stored: Vec<Put> = (0..4).map(|_| lane.next_block(12_000)).collect();
    store.commit(&puts(stored.clone()), now(1)).expect("fits exactly");
    let more = lane.next_block(12_000);
    assert_eq!(store.commit(&puts(vec![more.clone()]), now(1)), Err(StoreError::Full));
    assert_eq!(store.load(more.header.key), Ok(None));
    let swap = CommitRequest { deletes: vec![range(&stored[0].header)], puts: vec![more.clone()], ..CommitRequest::default() };
    store.commit(&swap, now(1)).expect("a block for a block fits");
    assert_eq!(store.load(more.header.key), Ok(Some(more.block)));
}

/// Fills the disk with blocks until it refuses; returns them.
fn fill(store: &mut Store, lane: &mut Lane) -> Vec<Put> {
    let mut stored = Vec::new();
    loop {
        let put = lane.next_block(12_000);
        match store.commit(&puts(vec![put.clone()]), now(1)) {
            Ok(_) => stored.push(put),
            Err(StoreError::Full) => return stored,
            Err(err) => panic!("{err}"),
        }
        assert!(stored.len() < 10_000, "the disk never fills");
    }
}

fn full_disk_takes_deletions(open: impl Fn() -> (Store, Opened), has_reserve: impl Fn() -> bool) {
    let (mut store, _) = open();
    assert!(has_reserve());
    let mut lane = Lane::new(Class::Normal, 1);
    let stored = fill(&mut store, &mut lane);
    assert!(stored.len() > 50, "{}", stored.len());
    assert!(has_reserve(), "blocks do not get the reserve");
    let mut left = stored.clone();
    let mut reserve_released = false;
    for chunk in stored.chunks(10) {
        let evicted = chunk.iter().map(|put| range(&put.header)).collect();
        let stats = store.commit(&deletes(evicted), now(1)).expect("a full disk can be emptied");
        reserve_released |= stats.reserve_released;
        left.retain(|put| !chunk.contains(put));
        if left.len() < stored.len() / 2 {
            break;
        }
    }
    assert!(reserve_released, "deletions get the reserve");
    let again = fill(&mut store, &mut lane);
    assert!(again.len() > stored.len() / 4, "{} of {} blocks fit again", again.len(), stored.len());
    left.extend(again);
    let first = left.remove(0);
    store.commit(&deletes(vec![range(&first.header)]), now(1)).expect("full again, it can be emptied again");
    drop(store);
    let (mut store, opened) = open();
    assert_eq!(opened.quarantined, None);
    let found = Model::read(&mut store, &opened).blocks;
    assert_eq!(found, left.into_iter().map(|put| (put.header.key, put.block)).collect());
}

#[test]
fn full_disk_can_be_emptied_and_filled_again() {
    let disk = MemoryDisk::default();
    full_disk_takes_deletions(|| open_limited(&disk, 4 << 20, 256 << 10), || disk.has_reserve());
}

#[test]
fn full_disk_never_trades_fragments_for_a_block_it_cannot_write() {
    let disk = MemoryDisk::default();
    let (mut store, _) = open_limited(&disk, 8 << 20, 128 << 10);
    let mut lane = Lane::new(Class::High, 1);
    let fragments: Vec<Put> = (0..5).map(|_| lane.next_fragment()).collect();
    store.commit(&puts(fragments.clone()), now(1)).expect("committed");
    // Somebody else takes the rest of the disk.
    disk.take_the_rest();
    lane.push(800, 1000);
    let merged = lane.block();
    let other = Lane::new(Class::Bulk, 1).next_block(100).header;
    let deletes = vec![range(&merged.header), range(&other)];
    let request = CommitRequest { deletes, puts: vec![merged], ..CommitRequest::default() };
    assert_eq!(store.commit(&request, now(1)), Err(StoreError::Full));
    for put in &fragments {
        assert_eq!(store.load(put.header.key), Ok(Some(put.block.clone())));
    }
}

#[test]
fn reserve_comes_back_when_there_is_room() {
    let disk = MemoryDisk::default();
    let (mut store, _) = open_limited(&disk, 4 << 20, 256 << 10);
    let stored = fill(&mut store, &mut Lane::new(Class::Normal, 1));
    let mut delete = |n: usize| store.commit(&deletes(vec![range(&stored[n].header)]), now(1)).expect("deleted");
    assert!(delete(0).reserve_released);
    assert!(!disk.has_reserve());
    disk.limit(8 << 20, 256 << 10);
    delete(1);
    assert!(disk.has_reserve());
    store.commit(&puts(vec![Lane::new(Class::High, 1).next_block(100_000)]), now(1)).expect("room for more than was deleted");
}

#[test]
fn puts_go_on_when_others_make_room_on_a_full_disk() {
    let disk = MemoryDisk::default();
    let (mut store, _) = open_limited(&disk, 4 << 20, 256 << 10);
    let mut lane = Lane::new(Class::Normal, 1);
    fill(&mut store, &mut lane);
    disk.limit(8 << 20, 256 << 10);
    // Nothing is deleted, because the link is down.
    store.commit(&puts(vec![lane.next_block(12_000)]), now(1)).expect("there is room again");
}

#[test]
fn commit_after_an_io_error_works_on_the_reopened_file() {
    let disk = MemoryDisk::default();
    let (mut store, _) = open_disk(&disk);
    let mut lane = Lane::new(Class::Normal, 1);
    let first = lane.next_block(1000);
    store.commit(&puts(vec![first.clone()]), now(1)).expect("committed");
    disk.fail_next_sync();
    let second = puts(vec![lane.next_block(1000)]);
    assert!(matches!(store.commit(&second, now(1)), Err(StoreError::Io(_))));
    assert_eq!(store.load(first.header.key), Ok(Some(first.block)));
    store.commit(&second, now(1)).expect("the same request again");
    assert_eq!(store.load(second.puts[0].header.key), Ok(Some(second.puts[0].block.clone())));
}

#[test]
fn damaged_block_is_still_listed_and_its_checksum_tells() {
    let disk = MemoryDisk::default();
    let (mut store, _) = open_disk(&disk);
    let put = Lane::new(Class::Normal, 1).next_block(12_000);
    store.commit(&puts(vec![put.clone()]), now(1)).expect("committed");
    store.close(now(1)).expect("closed");
    let mut bytes = vec![0; disk.len().expect("alive") as usize];
    disk.read(0, &mut bytes).expect("alive");
    let at = bytes.windows(64).position(|window| window == &put.block[5000..5064]).expect("the block is in the file");
    disk.damage(at, &[0; 8]);
    let (mut store, opened) = open_disk(&disk);
    assert_eq!(opened.held.len(), 1);
    let block = store.load(put.header.key).expect("readable").expect("there");
    assert!(BlockHeader::parse(&block).is_err());
}

fn aside(dir: &TempDir) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir.path())
        .expect("listed")
        .map(|entry| entry.expect("listed").path())
        .filter(|path| path.to_string_lossy().contains(".quarantine-"))
        .collect();
    names.sort();
    names
}

#[test]
fn file_that_cannot_be_opened_is_set_aside_and_a_new_one_started() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("buffer.redb");
    let (mut store, _) = open_file(&path);
    store.commit(&puts(vec![Lane::new(Class::High, 1).next_block(12_000)]), now(1)).expect("committed");
    store.close(now(1)).expect("closed");
    let whole = std::fs::read(&path).expect("read");
    let foreign = b"not a database, but longer than its header would be. ".repeat(100);
    for (n, content) in [foreign, whole[..whole.len() / 2].to_vec(), whole[..100].to_vec(), vec![7; 8192]].iter().enumerate() {
        std::fs::write(&path, content).expect("written");
        let (mut store, opened) = open_file(&path);
        let quarantined = opened.quarantined.expect("set aside");
        assert_eq!(quarantined.path, dir.path().join(format!("buffer.redb.quarantine-{}", n + 1)));
        assert_eq!(std::fs::read(&quarantined.path).expect("read"), *content, "{}", quarantined.reason);
        assert_eq!(opened.held, []);
        store.commit(&puts(vec![Lane::new(Class::High, 2).next_block(10)]), now(1)).expect("the new one works");
    }
    assert_eq!(aside(&dir).len(), 4);
}

#[test]
fn file_of_a_newer_version_is_set_aside_with_a_word_of_that() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("buffer.redb");
    {
        let db = Database::create(&path).expect("made");
        let tx = db.begin_write().expect("begun");
        tx.open_table(redb::TableDefinition::<&str, u64>::new("meta")).expect("opened").insert("format", 2).expect("written");
        tx.commit().expect("committed");
    }
    let (_, opened) = open_file(&path);
    let quarantined = opened.quarantined.expect("set aside");
    assert!(quarantined.reason.contains("format 2 is newer than 1"), "{}", quarantined.reason);
}

#[test]
fn database_of_somebody_else_is_set_aside_untouched() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("buffer.redb");
    {
        let db = Database::create(&path).expect("made");
        let tx = db.begin_write().expect("begun");
        tx.open_table(redb::TableDefinition::<u64, u64>::new("invoices")).expect("opened").insert(1, 2).expect("written");
        tx.commit().expect("committed");
    }
    let (_, opened) = open_file(&path);
    assert!(opened.quarantined.expect("set aside").reason.contains("not a buffer"));
}

#[test]
fn ninth_damaged_file_is_an_error_that_says_what_to_do() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("buffer.redb");
    for _ in 0..8 {
        std::fs::write(&path, [1; 100]).expect("written");
        open_file(&path);
    }
    std::fs::write(&path, [1; 100]).expect("written");
    let err = Store::open(&path, StoreOptions::default()).expect_err("refused");
    assert!(matches!(err, OpenError::QuarantineFull { .. }), "{err}");
    assert!(err.to_string().contains("weir buffer export"), "{err}");
    assert_eq!(aside(&dir).len(), 8);
    assert_eq!(std::fs::read(&path).expect("still there"), [1; 100]);
}

#[test]
fn file_in_use_is_an_error_and_stays_where_it_is() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("buffer.redb");
    let (_store, _) = open_file(&path);
    let err = Store::open(&path, StoreOptions::default()).expect_err("refused");
    assert!(matches!(err, OpenError::Locked { .. }), "{err}");
    assert_eq!(aside(&dir), Vec::<PathBuf>::new());
}

#[test]
fn file_at_which_three_starts_ended_is_set_aside() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("buffer.redb");
    drop(open_file(&path));
    let marker = dir.path().join("buffer.redb.opening");
    assert!(!marker.exists(), "an opening that came to its end leaves no marker");
    std::fs::write(&marker, [2]).expect("written");
    assert_eq!(open_file(&path).1.quarantined, None);
    std::fs::write(&marker, [3]).expect("written");
    assert!(open_file(&path).1.quarantined.is_some());
    assert!(!marker.exists());
}

#[test]
fn missing_directory_is_an_error_of_the_file_system() {
    let dir = TempDir::new().expect("a directory");
    let err = Store::open(&dir.path().join("none/buffer.redb"), StoreOptions::default()).expect_err("refused");
    assert!(matches!(err, OpenError::Io { .. }), "{err}");
}

#[test]
fn reserve_lies_beside_the_file_with_its_full_size() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("buffer.redb");
    let (_store, _) = open_file(&path);
    let meta = std::fs::metadata(dir.path().join("buffer.redb.reserve")).expect("there");
    assert_eq!(meta.len(), 64 << 10);
    assert!(std::os::unix::fs::MetadataExt::blocks(&meta) * 512 >= 64 << 10, "it takes real space");
}

#[test]
fn settled_file_opens_without_a_repair() {
    let disk = MemoryDisk::default();
    let (mut store, _) = open_disk(&disk);
    let mut lane = Lane::new(Class::Normal, 1);
    for _ in 0..12 {
        let batch = (0..10).map(|_| lane.next_block(250_000)).collect();
        store.commit(&puts(batch), now(1)).expect("committed");
    }
    store.settle(now(1)).expect("settled");
    disk.crash_at(Moment::Sync(1), Loss::Everything);
    assert!(store.commit(&puts(vec![lane.next_block(100)]), now(1)).is_err());
    drop(store);
    disk.revive();
    let mut builder = Builder::new();
    builder.set_repair_callback(|repair| repair.abort());
    let db = builder.create_with_backend(disk).expect("no repair is needed");
    assert_eq!(tables::scan(&db).expect("scanned").expect("a buffer").held.len(), 120);
}

#[test]
fn thread_answers_everything_in_order_and_finishes_what_is_queued() {
    let disk = MemoryDisk::default();
    let (store, _) = open_disk(&disk);
    let (events_tx, mut events) = mpsc::channel(256);
    let (thread, inputs) = StoreThread::spawn(store, 64, events_tx).expect("started");
    let mut lane = Lane::new(Class::Normal, 1);
    let mut blocks = Vec::new();
    for ticket in 0..20 {
        let put = lane.next_block(2000);
        blocks.push(put.clone());
        let request = CommitRequest { ticket, puts: vec![put], ..CommitRequest::default() };
        inputs.blocking_send(StoreInput::Commit { request, time: now(ticket) }).expect("the thread runs");
        if ticket % 5 == 4 {
            inputs.blocking_send(StoreInput::Load { key: blocks[ticket as usize].header.key }).expect("the thread runs");
        }
    }
    drop(inputs);
    thread.join().expect("closed");
    let mut next = 0;
    while let Some(event) = events.blocking_recv() {
        match event {
            StoreEvent::Committed { ticket, .. } => {
                assert_eq!(ticket, next);
                next += 1;
            }
            StoreEvent::Loaded { key, block } => {
                assert_eq!(key, blocks[next as usize - 1].header.key);
                assert_eq!(block, Ok(Some(blocks[next as usize - 1].block.clone())));
            }
            StoreEvent::CommitFailed { error, .. } => panic!("{error}"),
        }
    }
    assert_eq!(next, 20);
    assert_eq!(open_disk(&disk).1.held.len(), 20);
}

#[test]
fn queued_commits_share_transactions() {
    let disk = MemoryDisk::default();
    let (store, _) = open_disk(&disk);
    // The answers' channel holds one: the thread waits at the second answer, and the rest queues up.
    let (events_tx, mut events) = mpsc::channel(1);
    let (thread, inputs) = StoreThread::spawn(store, 64, events_tx).expect("started");
    disk.crash_at(Moment::Sync(u64::MAX), Loss::Nothing);
    let mut lane = Lane::new(Class::Normal, 1);
    for ticket in 0..33 {
        let request = CommitRequest { ticket, puts: vec![lane.next_fragment()], ..CommitRequest::default() };
        inputs.blocking_send(StoreInput::Commit { request, time: now(1) }).expect("the thread runs");
    }
    drop(inputs);
    let mut answered = 0;
    while let Some(event) = events.blocking_recv() {
        assert!(matches!(event, StoreEvent::Committed { .. }), "{event:?}");
        answered += 1;
    }
    thread.join().expect("closed");
    assert_eq!(answered, 33);
    assert!(disk.counts().0 < 33, "{} syncs for 33 commits", disk.counts().0);
}

#[test]
fn one_commit_that_does_not_fit_does_not_fail_its_neighbours() {
    let options = StoreOptions { size_limit: 64 << 10, ..StoreOptions::default() };
    let (store, _) = Store::open_medium(Box::new(MemoryDisk::default()), options).expect("opens");
    let (events_tx, mut events) = mpsc::channel(1);
    let (thread, inputs) = StoreThread::spawn(store, 64, events_tx).expect("started");
    let mut lane = Lane::new(Class::Normal, 1);
    for ticket in 0..9 {
        let len = if ticket == 5 { 100_000 } else { 500 };
        let request = CommitRequest { ticket, puts: vec![lane.next_block(len)], ..CommitRequest::default() };
        inputs.blocking_send(StoreInput::Commit { request, time: now(1) }).expect("the thread runs");
    }
    drop(inputs);
    let mut failed = Vec::new();
    while let Some(event) = events.blocking_recv() {
        if let StoreEvent::CommitFailed { ticket, error } = event {
            assert_eq!(error, StoreError::Full);
            failed.push(ticket);
        }
    }
    thread.join().expect("closed");
    assert_eq!(failed, [5]);
}

#[test]
fn packet_ids_are_kept_with_what_their_messages_became_and_a_file_without_their_table_is_read() {
    let disk = MemoryDisk::default();
    let (mut store, opened) = open_disk(&disk);
    assert!(opened.packet_ids.is_empty(), "a file of an earlier version has no such table");
    let mut lane = Lane::new(Class::High, 1);
    let id = |packet_id, fingerprint| PacketIdChange { session: "site/box-high".into(), packet_id, fingerprint };
    let packet_ids = vec![id(1, Some(10)), id(2, Some(20)), id(2, Some(21)), id(3, Some(30)), id(3, None)];
    let request = CommitRequest { puts: vec![lane.next_block(100)], packet_ids, ..CommitRequest::default() };
    store.commit(&request, now(1)).unwrap();
    drop(store);
    let (mut store, opened) = open_disk(&disk);
    assert_eq!((opened.held.len(), opened.packet_ids), (1, vec![id(1, Some(10)), id(2, Some(21))]));
    store.commit(&CommitRequest { packet_ids: vec![id(1, None), id(9, None)], ..CommitRequest::default() }, now(2)).unwrap();
    drop(store);
    assert_eq!(open_disk(&disk).1.packet_ids, [id(2, Some(21))]);
}
