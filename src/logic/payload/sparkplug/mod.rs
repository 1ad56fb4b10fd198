//! Sparkplug B: protobuf messages of edge nodes and the devices behind them.
//!
//! A node says with a *birth* which metrics it and its devices have, and their values; from then on it sends only those that have
//! changed, each under a number (*alias*) instead of its name. So a message is read with what was said before it:
//! - aliases and types are those of the last birth; a birth of the node, or its *death*, ends what was known of its devices;
//! - a row holds all channels: those that a message does not have keep their value. Before all are known there is no row;
//! - values recorded earlier (*historical*) make rows of their own and change nothing that holds now;
//! - a null, a NaN or the death of its device makes a value unknown.
//!
//! What cannot be read for want of a birth is counted, and its message is kept as it came. The node should be asked to be born
//! again; that is a command to it, and none is sent from here: the count says so.
//!
//! Sequence numbers of a node count all its messages, so gaps are seen only where all its topics come to a stream of this format.
//! A birth and a death belong together by their number `bdSeq`: the death of an older connection changes nothing.
//!
//! Data sets and templates hold no single number: they are counted and passed over. Compressed payloads are refused.

mod decode;
mod message;
mod nodes;
mod protobuf;

pub(super) use decode::Scratch;

pub use decode::SparkplugDecoder;
pub use message::{SparkplugKind, SparkplugTopic};
pub use nodes::{Heard, SparkplugCounters, SparkplugNodes};
