use std::collections::BTreeSet;

use super::*;

/// A buffer with blocks, fragments and a void, and what ought to be in it.
fn sample(path: &Path) -> (Store, Model) {
    let (mut store, _) = open_file(path);
    let mut model = Model::default();
    for request in &scenario()[..56] {
        store.commit(request, now(1)).expect("committed");
        model.apply(request);
    }
    (store, model)
}

fn read(file: &BufferFile) -> Model {
    assert_eq!(file.damaged(), []);
    let block = |held: &Held| (held.header.key, file.load(held.header.key).expect("readable").expect("there"));
    let blocks = file.held().iter().map(block).collect();
    let voids = file.voids().iter().map(|void| (void.key, (void.last_seq, void.reason))).collect();
    Model { blocks, voids }
}

#[test]
fn closed_file_is_shown_as_it_is_and_stays_as_it_is() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("buffer.redb");
    let (store, model) = sample(&path);
    store.close(now(5)).expect("closed");
    let before = std::fs::read(&path).expect("read");
    let file = BufferFile::open(&path).expect("opened");
    assert_eq!(*file.state(), FileState::Clean);
    assert_eq!(read(&file), model);
    assert_eq!(file.epochs().collect::<Vec<_>>(), [Epoch(77), Epoch(5)]);
    drop(file);
    assert!(std::fs::read(&path).expect("read") == before, "looking changed the file");
}

#[test]
fn file_of_a_killed_gateway_is_repaired_in_memory_alone() {
    let dir = TempDir::new().expect("a directory");
    let (path, copy) = (dir.path().join("buffer.redb"), dir.path().join("copy.redb"));
    let (_store, model) = sample(&path);
    std::fs::copy(&path, &copy).expect("copied");
    let before = std::fs::read(&copy).expect("read");
    let file = BufferFile::open(&copy).expect("opened");
    assert_eq!(*file.state(), FileState::Unclean);
    assert_eq!(read(&file), model);
    drop(file);
    assert!(std::fs::read(&copy).expect("read") == before, "looking changed the file");
}

#[test]
fn file_in_use_is_refused_with_what_to_do() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("buffer.redb");
    let (_store, _) = sample(&path);
    let err = BufferFile::open(&path).expect_err("refused");
    assert!(matches!(err, InspectError::Locked { .. }) && err.to_string().contains("stop the gateway"), "{err}");
}

#[test]
fn gateway_does_not_start_on_a_file_that_is_being_looked_at() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("buffer.redb");
    sample(&path).0.close(now(5)).expect("closed");
    let _file = BufferFile::open(&path).expect("opened");
    assert!(matches!(Store::open(&path, StoreOptions::default()), Err(OpenError::Locked { .. })));
}

#[test]
fn every_block_is_picked_from_a_file_without_its_head() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("buffer.redb");
    let (store, model) = sample(&path);
    store.close(now(5)).expect("closed");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[..4096].fill(0xA5);
    std::fs::write(&path, &bytes).expect("written");
    let file = BufferFile::open(&path).expect("opened");
    assert!(matches!(file.state(), FileState::Salvaged { .. }));
    // Deleted blocks may be there too, and a block that was merged from fragments stands for them.
    let found = read(&file);
    for (key, block) in &model.blocks {
        let header = BlockHeader::parse(block).expect("intact");
        let covered = file.held().iter().map(|held| held.header).any(|held| {
            (held.key.lane, held.key.epoch) == (key.lane, key.epoch)
                && held.key.first_seq <= key.first_seq
                && held.last_seq >= header.last_seq
        });
        assert!(covered, "{key:?} is missing");
    }
    let keys: BTreeSet<BlockKey> = found.blocks.keys().copied().collect();
    assert_eq!(keys.len(), file.held().len(), "each block is listed once");
    for pair in file.held().windows(2) {
        let [a, b] = [pair[0].header, pair[1].header];
        let same_lane = (a.key.lane, a.key.epoch) == (b.key.lane, b.key.epoch);
        assert!(!same_lane || b.last_seq > a.last_seq, "records are listed once");
    }
}

#[test]
fn file_that_is_no_buffer_has_nothing_in_it() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("noise");
    std::fs::write(&path, b"WB\x01 and WB\x01 again".repeat(1000)).expect("written");
    let file = BufferFile::open(&path).expect("opened");
    assert!(matches!(file.state(), FileState::Salvaged { .. }));
    assert_eq!(file.held(), []);
}
