//! Measures the buffer: what commits cost, how long opening takes after a kill, disk and memory.
//!
//! `cargo run --release -p weir-edge --example store_bench -- PATH [MB]` fills a new buffer at PATH with MB (480) of
//! 12 KiB blocks and prints the table of `store`'s head. PATH should lie on the disk that is to be measured.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement prints, and stops at the first failure")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use weir_edge::store::{CommitStats, Store, StoreOptions, StoreTime};
use weir_logic::block::{BlockHeader, Fidelity};
use weir_logic::ids::{BlockKey, Class, Epoch};
use weir_logic::store::{CommitRequest, Put, SeqRange};

const BLOCK: usize = 12 << 10;
const FRAGMENT: usize = 300;
const ROUNDS: u64 = 200;
const TIME: StoreTime = StoreTime { service_us: 1, wall_us: None, boot: None };

fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("a path for the buffer");
    let path = Path::new(&path);
    match args.next().as_deref() {
        Some("open") => open_only(path, args.next().as_deref()),
        Some(mb) => measure(path, mb.parse().unwrap()),
        None => measure(path, 480),
    }
}

/// Opens the buffer in this process, and ends as told.
fn open_only(path: &Path, then: Option<&str>) {
    let (mut store, opened) = Store::open(path, options()).unwrap();
    println!("{} ms, {} blocks, {}", opened.open_ms, opened.held.len(), memory());
    match then {
        Some("settle") => store.settle(TIME).unwrap(),
        Some("close") => return store.close(TIME).unwrap(),
        _ => {}
    }
    // As a kill: nothing is closed.
    std::process::exit(0);
}

fn options() -> StoreOptions {
    StoreOptions { size_limit: 4 << 30, ..StoreOptions::default() }
}

fn measure(path: &Path, mb: u64) {
    let (mut store, _) = Store::open(path, options()).unwrap();
    let blocks = mb * (1 << 20) / BLOCK as u64;
    report("fragments, empty", &mut store, fragments(1));
    let start = Instant::now();
    for first in (0..blocks).step_by(32) {
        let puts = (first..blocks.min(first + 32)).map(|n| block(2, n * 60)).collect();
        store.commit(&CommitRequest { puts, ..CommitRequest::default() }, TIME).unwrap();
    }
    println!("{blocks} blocks, 32 a commit: {:.0} blocks/s", blocks as f64 / start.elapsed().as_secs_f64());
    report("fragments, filled", &mut store, fragments(3));
    report("1 block", &mut store, (0..ROUNDS).map(|n| puts(vec![block(4, n * 60)])));
    report("1 block for a fragment", &mut store, merges());
    report("1 block deleted", &mut store, (0..ROUNDS).map(|n| deleted(4, n * 60, n * 60 + 59)));
    let chunks = (blocks / 20).min(ROUNDS);
    report("20 blocks deleted", &mut store, (0..chunks).map(|n| deleted(2, n * 1200, n * 1200 + 1199)));
    let file = std::fs::metadata(path).unwrap();
    let stored = store.stored_bytes() as f64;
    println!(
        "file {:.2} times the blocks' pages long, {:.2} times on disk",
        file.len() as f64 / stored,
        file.blocks() as f64 * 512.0 / stored
    );
    println!("{}", memory());
    reopenings(path, store);
}

fn reopenings(path: &Path, store: Store) {
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).unwrap();
    drop(store);
    for (what, then) in [
        ("after a kill", ""),
        ("after a kill at opening", "settle"),
        ("after settling and a kill", "close"),
        ("after closing", ""),
    ] {
        let output = Command::new(std::env::current_exe().unwrap()).arg(&copy).args(["open", then]).output().unwrap();
        print!("opened {what}: {}", String::from_utf8_lossy(&output.stdout));
    }
    for file in [path, &copy] {
        std::fs::remove_file(file).unwrap();
        let _ = std::fs::remove_file(file.with_extension(format!("{}.reserve", file.extension().unwrap().to_string_lossy())));
    }
}

fn report(what: &str, store: &mut Store, requests: impl Iterator<Item = CommitRequest>) {
    let start = Instant::now();
    let stats: Vec<CommitStats> = requests.map(|request| store.commit(&request, TIME).unwrap()).collect();
    let (n, s) = (stats.len() as f64, start.elapsed().as_secs_f64());
    let bytes = stats.iter().map(|stats| stats.bytes_written).sum::<u64>() as f64 / n;
    let syncs = stats.iter().map(|stats| stats.syncs).sum::<u64>() as f64 / n;
    println!("{what:>26}: {bytes:>7.0} bytes, {syncs:.2} syncs a commit; {:.0} commits/s", n / s);
}

fn fragments(epoch: u64) -> impl Iterator<Item = CommitRequest> {
    (0..ROUNDS).map(move |n| puts(vec![put(epoch, n, n, FRAGMENT, true)]))
}

/// Each fragment is replaced by a block.
fn merges() -> impl Iterator<Item = CommitRequest> {
    (0..ROUNDS).map(|n| {
        let mut request = deleted(3, n, n);
        request.puts = vec![block(3, n * 60 + 1_000_000)];
        request
    })
}

fn puts(puts: Vec<Put>) -> CommitRequest {
    CommitRequest { puts, ..CommitRequest::default() }
}

fn deleted(epoch: u64, first_seq: u64, last_seq: u64) -> CommitRequest {
    let key = BlockKey { lane: Class::Normal, epoch: Epoch(epoch), first_seq };
    CommitRequest { deletes: vec![SeqRange { key, last_seq }], ..CommitRequest::default() }
}

fn block(epoch: u64, first_seq: u64) -> Put {
    put(epoch, first_seq, first_seq + 59, BLOCK, false)
}

/// The store does not look into blocks.
fn put(epoch: u64, first_seq: u64, last_seq: u64, len: usize, fragment: bool) -> Put {
    let header = BlockHeader {
        key: BlockKey { lane: Class::Normal, epoch: Epoch(epoch), first_seq },
        last_seq,
        born_us: 1,
        wall_offset_us: None,
        count: (last_seq - first_seq + 1) as u32,
        raw_len: len as u32,
        fidelity: Fidelity::Full,
    };
    Put { header, block: Bytes::from(vec![7; len]), fragment }
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("memory unknown").replace('\t', " ")
}
