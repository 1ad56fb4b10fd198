//! Models on their way from the cloud to a box.
//!
//! An offer comes on the control stream and is small: what is signed of the package, its length and its sum. The package itself
//! is asked for in chunks, each on a bidirectional stream of its own with the lowest priority ([`ModelAsk`], answered by
//! [`ModelChunk`] or [`ModelRefusal`]), so that neither heartbeats nor acknowledgements wait behind it, and whoever stops asking
//! has stopped it. A package is known by its sum: what a box has of it is of use with whatever cloud, session or uplink comes next.
//!
//! A box says what models it has ([`ModelStates`]) before it is offered any: software that knows none of this says nothing. Over
//! TCP there are no streams of their own, and nothing is asked for.

use bytes::Bytes;
use prost::Message;

/// Most bytes of a package in one answer.
pub const CHUNK_LEN_MAX: usize = 64 * 1024;
/// Longest answer to a [`ModelAsk`]: a chunk, and what is around it.
pub const ANSWER_LEN_MAX: usize = CHUNK_LEN_MAX + 1_024;
/// Longest head of a package: some dozens of gateways.
pub const HEAD_LEN_MAX: usize = 8 * 1024;
/// Length of a SHA-256 in bytes.
pub const SUM_LEN: usize = 32;
/// Tasks of a box at most.
pub const TASKS_MAX: usize = 64;
/// Longest reason in a [`ModelState`], in bytes.
const REASON_LEN_MAX: usize = 512;

/// A package that the cloud has for this box.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ModelOffer {
    /// The task that its model answers, as its head says.
    #[prost(string, tag = "1")]
    pub task: String,
    /// Its version, as its head says.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// Length of the package in bytes.
    #[prost(uint64, tag = "3")]
    pub len: u64,
    /// SHA-256 of the package.
    #[prost(bytes = "bytes", tag = "4")]
    pub sha256: Bytes,
    /// Its head as it was signed, at most [`HEAD_LEN_MAX`] bytes.
    #[prost(string, tag = "5")]
    pub head: String,
    /// The signature of the head, as the package has it.
    #[prost(string, tag = "6")]
    pub signature: String,
}

/// What models a box has, and what became of those that it was offered.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ModelStates {
    /// One for each task that may get another model; at most [`TASKS_MAX`].
    #[prost(message, repeated, tag = "1")]
    pub tasks: Vec<ModelState>,
}

/// The models of one task.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ModelState {
    /// The task.
    #[prost(string, tag = "1")]
    pub task: String,
    /// Version that answers and has proved itself; 0 for the file of the box's configuration.
    #[prost(uint64, tag = "2")]
    pub active: u64,
    /// Highest version that was ever tried.
    #[prost(uint64, tag = "3")]
    pub tried: u64,
    /// The version that something is said of.
    #[prost(uint64, tag = "4")]
    pub version: u64,
    /// What became of it: [`crate::rollout::OfferState::code`].
    #[prost(uint32, tag = "5")]
    pub state: u32,
    /// How far it has come: `waiting`, `fetching`, `fetched`, or a stage of its trial; empty if its trial is over.
    #[prost(string, tag = "6")]
    pub stage: String,
    /// Why, in words.
    #[prost(string, tag = "7")]
    pub reason: String,
}

/// Asks for a part of a package.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ModelAsk {
    /// SHA-256 of the package.
    #[prost(bytes = "bytes", tag = "1")]
    pub sha256: Bytes,
    /// Where it begins.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Most bytes that are wanted.
    #[prost(uint32, tag = "3")]
    pub len: u32,
}

/// A part of a package.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ModelChunk {
    /// Where it begins.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// The bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
}

/// Why there is no part of a package.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ModelRefusal {
    /// In words.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// The beginning of a reason, short enough for a [`ModelState`].
pub fn model_reason(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_LEN_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Body, CONTROL_LEN_MAX, encode_control};

    fn encoded(body: Body) -> usize {
        let mut bytes = Vec::new();
        encode_control(body, &mut bytes);
        bytes.len()
    }

    #[test]
    fn the_longest_of_each_kind_fits_its_limit() {
        let chunk = ModelChunk { offset: u64::MAX, data: Bytes::from(vec![7; CHUNK_LEN_MAX]) };
        assert!(encoded(Body::ModelChunk(chunk)) <= ANSWER_LEN_MAX);
        let long = model_reason(&"x".repeat(10_000)).to_owned();
        let state = ModelState { task: long.clone(), reason: long, active: u64::MAX, tried: u64::MAX, ..ModelState::default() };
        assert!(encoded(Body::ModelStates(ModelStates { tasks: vec![state; TASKS_MAX] })) <= CONTROL_LEN_MAX / 4);
        assert_eq!(model_reason(&"ä".repeat(300)).len(), REASON_LEN_MAX, "no half character");
    }
}
