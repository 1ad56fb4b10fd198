//! Models that come to a box while it runs: signed packages, and the store that keeps them.
//!
//! A package says in its head which task its model answers, on which boxes, in which version and how fast; the head is signed,
//! and names manifest and model by their sums. Nothing of a package is believed before signature, sums and target are
//! right, and they are looked at again at each load: whoever can write to the store cannot change a model.
//!
//! `models/` in the data directory holds each part under its SHA-256, `state.json` (the slots of `weir_logic::models`),
//! `runs.json`, and `inbox/`, where packages and an operator's wishes are laid. Each file is written under another name,
//! synced, and renamed; a release is named in `state.json` only once all its parts are there. What no slot names is removed.

pub mod child;
mod disk;
mod package;
mod store;

pub use package::{Head, PACKAGE_LEN_MAX, Package, PackageError};
pub use store::{Kept, ModelStore, StoreError};

/// The folder of the store in a data directory.
pub const FOLDER: &str = "models";
/// Where packages and wishes are laid, in the store's folder.
pub const INBOX: &str = "inbox";
/// What packages are called.
pub const PACKAGE_EXTENSION: &str = "weir-model";
