//! The federated health graph: what each box and each machine of the cloud knows, in one picture.
//!
//! A box sees its own uplinks and no further; whether the modem, the mast or the machine in the cloud is to blame it cannot
//! know. All boxes together can. So each owner publishes its own part ([`Subgraph`], through a [`Publisher`]), whoever wants
//! merges all of them ([`Federation`]), and the cloud finds what they have in common ([`Causes`]) and tells the boxes
//! ([`Advice`] by an [`Adviser`], heard by [`Neighbours`]). People ask a [`View`] of a [`Snapshot`].
//!
//! The rules:
//! - Every owner is the only writer of its part, and its certificate says who it is. The highest [`Stamp`] wins.
//! - What a box is told by others may make it look and prepare; alone it never closes a way.
//! - Every answer has an age and a confidence; the age grows while it is held.
//!
//! What surprised us:
//! - An estimate that stays the same is no news, but must not grow old: see `cell.rs`.
//! - A reflashed box counts from nought again: see `publish.rs`.

pub use advice::{ADVICE_ITEMS_MAX, ADVICE_LEN_MAX, Advice, AdviceError, AdviceItem, Adviser, Concern, Neighbours};
pub use ask::{
    Bottleneck, Bottlenecks, Changes, Constraints, CutEdge, EdgeId, Hop, Impact, Path, Rejected, Route, StateChange, Target,
    ValueChange, WeakPoint, WeakPoints, WorseStream, changes,
};
pub use cause::{Cause, CauseCounters, CauseLimits, Causes, Trouble};
pub use digest::{Digest, DigestError, DigestLimits, NeedFull, Stamp};
pub use estimate::{EdgeState, Estimate, Quantity};
pub use federation::{Federation, FederationCounters, FederationLimits, MergeError, Merged, Part};
pub use node::{NODE_NAME_LEN_MAX, NameError, NodeKey, NodeKind, OWNER_NAME_LEN_MAX, Owner};
pub use publish::{Peer, Publisher, PublisherCounters, PublisherLimits};
pub use site::{Site, SiteShape, StreamShape, UplinkShape};
pub use snapshot::{SNAPSHOT_FORMAT, Snapshot, SnapshotEdge, SnapshotError};
pub use subgraph::{EdgeIndex, NodeIndex, SUBGRAPH_LEN_MAX, Subgraph, SubgraphError};
pub use talkers::{Talk, TalkerCounters, TalkerLimits, Talkers};
pub use view::{AskError, View};

mod advice;
mod ask;
mod cause;
mod cell;
mod cost;
mod digest;
mod estimate;
mod federation;
mod names;
mod node;
mod publish;
mod sightings;
mod site;
mod snapshot;
mod subgraph;
mod talkers;
mod view;

#[cfg(test)]
mod tests;
