//! ONNX models behind one small interface: a native library when it is there, an embedded engine always.
//!
//! A model is a TOML [`Manifest`] (task, shapes, standardisation, labels, thresholds, checksum) beside an ONNX file.
//! [`Model::load`] checks one against the other and tries the model once, so that a mistake shows at start and not on
//! the first window. Two engines run the same files and are held to the same golden cases:
//! - `rten`, pure Rust, part of the binary: nothing to install, a few MB, no `ai.onnx.ml` operators (trees, scalers);
//! - `ort`, ONNX Runtime loaded from a shared library at run time: every operator, 2 to 5 times faster on convolutions.
//!   [`fetch`] installs the pinned library; [`RuntimeLibrary`] says where it is looked for.
//!
//! A [`Worker`] owns one model on one thread, takes windows from a bounded queue and answers in batches of whatever
//! has queued up, without waiting for more. Cases that surprised us:
//! - Trees, recurrent and quantised models answer NaN with plausible finite values: input is checked before the engine.
//! - ONNX Runtime by default takes all cores and is slower for it; without an explicit path its first call panics.
//! - A run entered from outside `rten`'s thread pool costs 70 us more: the worker's loop lives inside it.

// Without an engine nothing can be loaded, and what would follow is rightly unreachable.
#![cfg_attr(not(any(feature = "ort", feature = "rten")), allow(unused_variables, unreachable_code))]

mod batches;
mod engine;
mod golden;
mod graph;
mod library;
mod manifest;
mod model;
mod runtime;
mod state;
mod worker;

pub use batches::{BatchWorker, Ran};
pub use engine::{Backend, BackendUnknown, Engine, LoadError, RunError};
pub use golden::{Golden, GoldenCase, GoldenError, GoldenMismatch};
pub use graph::{Advice, Graph, Operator, Port};
pub use library::{LibraryError, RuntimeLibrary, disable_telemetry_env};
pub use manifest::{Input, InputLayout, Manifest, ManifestError, Output, Problem, Score, Standardise, State, Task, Thresholds};
pub use model::{Answer, Model, Row, Verdict};
pub use runtime::{FetchError, LIBRARY_VERSION, Target, fetch};
pub use state::{Origin, StateCounts};
pub use worker::{Outcome, Refused, RefusedReason, Request, Stats, Worker, WorkerOptions};
