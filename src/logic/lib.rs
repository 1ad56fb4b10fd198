//! Weir's pure core: what happened goes in, what to do next comes out.
//!
//! Nothing here knows sockets, files, threads, clocks, randomness or logging: time and seeds are arguments, and the shells
//! in `edge` and `cloud` carry out what is returned. The same code runs on the box, in the simulator and in the tests.

pub mod audit;
pub mod block;
pub mod budget;
pub mod congestion;
pub mod explain;
pub mod gateway;
pub mod graph;
pub mod health;
pub mod ids;
pub mod ingest;
pub mod lanes;
pub mod load;
pub mod models;
pub mod mqtt;
pub mod offer;
pub mod offload;
pub mod payload;
pub mod plan;
pub mod policy;
pub mod pool;
pub mod pressure;
pub mod price;
pub mod ranges;
pub mod receive;
pub mod rollout;
pub mod route;
pub mod store;
pub mod thin;
pub mod uplink;
pub mod window;
pub mod wire;

mod varint;
