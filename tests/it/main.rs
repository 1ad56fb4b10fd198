//! Integration tests over real processes and sockets.
#![expect(clippy::print_stdout, reason = "a test prints its seed and its figures, and what it skips")]

mod conservation;

use weir_tests::support::process::Binaries;

/// The binaries under test.
fn binaries() -> Binaries {
    Binaries { edge: env!("CARGO_BIN_EXE_weir-edge-under-test"), cloud: env!("CARGO_BIN_EXE_weir-cloud-under-test") }
}
