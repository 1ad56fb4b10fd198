//! Integration tests over real processes and sockets.
#![expect(clippy::print_stdout, reason = "a test prints its seed and its figures, and what it skips")]

mod access;
mod answers;
mod audit;
mod broker;
mod cascade;
mod conservation;
mod demo;
mod emulate;
mod failover;
mod fallback;
mod full_disk;
mod hangs;
mod interfaces;
mod link;
mod model_offers;
mod models;
mod oracle;
mod payloads;
mod policies;
mod purity;
mod readme;
mod restarts;
mod start;
mod supervisor;
mod thinning;
mod undecodable;
mod updates;
mod verdicts;
mod waiting;

use std::path::{Path, PathBuf};

use weir_tests::support::process::Binaries;

/// The binaries under test: those of this build, or `weir-edge` and `weir-cloud` in `WEIR_BIN_DIR`.
fn binaries() -> Binaries {
    if let Some(dir) = std::env::var_os("WEIR_BIN_DIR").map(PathBuf::from) {
        return Binaries { edge: dir.join("weir-edge"), cloud: dir.join("weir-cloud") };
    }
    let built = |path: &str| Path::new(path).to_owned();
    Binaries {
        edge: built(env!("CARGO_BIN_EXE_weir-edge-under-test")),
        cloud: built(env!("CARGO_BIN_EXE_weir-cloud-under-test")),
    }
}

/// The operator's tool under test.
fn tool() -> PathBuf {
    std::env::var_os("WEIR_BIN_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_weir-under-test")), |dir| PathBuf::from(dir).join("weir"))
}

/// The supervisor under test.
fn supervisor() -> PathBuf {
    std::env::var_os("WEIR_BIN_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_weir-supervisor-under-test")),
        |dir| PathBuf::from(dir).join("weir-supervisor"),
    )
}
