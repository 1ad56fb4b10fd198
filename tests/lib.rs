//! Test harness: real binaries as child processes, a link under the test's control, publishers that know what became of
//! each message, and the oracle that compares it with what is stored.
//!
//! The oracle predicts each message's fate by its payload, which is unique; it reads the cloud's database and the box's
//! buffer itself and never asks Weir's counters. What the harness asks Weir (`/healthz`, `/status.json`) decides only how
//! long it waits.

pub mod support;
