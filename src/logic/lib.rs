//! Weir's pure core: what happened goes in, what to do next comes out.
//!
//! Nothing here knows sockets, files, threads, clocks, randomness or logging: time and seeds are arguments, and the shells
//! in `edge` and `cloud` carry out what is returned. The same code runs on the box, in the simulator and in the tests.

pub mod block;
pub mod ids;
pub mod mqtt;
pub mod payload;
pub mod ranges;
pub mod store;
pub mod window;
pub mod wire;

mod varint;
