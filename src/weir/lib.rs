//! The operator's tool, as a library: what `weir` does, callable from tests and benches.

pub mod admin;
pub mod buffer;
pub mod check;
pub mod demo;
pub mod explain;
pub mod graph;
pub mod link;
pub mod model;
pub mod passwd;
pub mod pki;
pub mod policy;
pub mod replay;
pub mod runtime;
pub mod sim;
