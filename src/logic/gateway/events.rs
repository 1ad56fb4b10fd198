//! What goes into the gateway, and what comes out.

use std::sync::Arc;

use bytes::Bytes;

use super::offers::PolicyNews;
use crate::audit::{Learned, Purpose};
use crate::graph::Concern;
use crate::health::{OpenReason, PathStats, UplinkState};
use crate::ids::{BlockKey, Class, VoidReason};
use crate::ingest::{BrokerEvent, BrokerIndex, ConnId, InferJob, Scored};
use crate::lanes::Flow;
use crate::models::{FetchInput, FetchNews, FetchOutput};
use crate::mqtt::{AuthRefusal, Close, UserIndex};
use crate::plan::{Placed, Reason};
use crate::policy::Policy;
use crate::store::{CommitRequest, StoreError};
use crate::uplink::DownReason;
use crate::wire::CloudLoad;

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// Time passed.
    Tick,
    /// A socket was accepted.
    ClientOpened {
        /// Its number, never used before.
        conn: ConnId,
    },
    /// A read of a client's socket brought bytes, at most 64 KiB.
    ClientRead {
        /// The client.
        conn: ConnId,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A client's socket ended.
    ClientLost {
        /// The client.
        conn: ConnId,
    },
    /// Answers [`Output::BrokerConnect`]: from now on the connection is read, written and lost like a client's.
    BrokerOpened {
        /// Its number, never used before.
        conn: ConnId,
        /// Which client of which broker.
        broker: BrokerIndex,
        /// As asked for.
        generation: u64,
    },
    /// Answers [`Output::BrokerConnect`] when the connection could not be made.
    BrokerFailed {
        /// Which client of which broker.
        broker: BrokerIndex,
        /// As asked for.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// Answers [`Output::Authenticate`].
    Authenticated {
        /// The client.
        conn: ConnId,
        /// Who it is, or why it is not let in.
        result: Result<UserIndex, AuthRefusal>,
    },
    /// Answers [`Output::Infer`].
    Inferred(Scored),
    /// Answers [`Output::Commit`].
    Committed {
        /// The request's ticket.
        ticket: u64,
        /// Whether all of it is durable.
        result: Result<(), StoreError>,
    },
    /// Answers [`Output::Load`]; `None` if there is no such block.
    Loaded {
        /// The block's key.
        key: BlockKey,
        /// The block.
        block: Option<Bytes>,
    },
    /// Answers [`Output::Load`] when the block could not be read now; it is asked for again later.
    LoadFailed {
        /// The block's key.
        key: BlockKey,
    },
    /// An uplink is connected and its control stream is open.
    UplinkConnected {
        /// The uplink.
        uplink: u8,
    },
    /// Bytes came on an uplink's control stream.
    UplinkControl {
        /// The uplink.
        uplink: u8,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// An uplink's transport took bytes of blocks.
    UplinkWritten {
        /// The uplink.
        uplink: u8,
        /// The stream.
        flow: Flow,
        /// How many.
        len: u64,
    },
    /// What an uplink's transport counts on its present connection.
    UplinkPath {
        /// The uplink.
        uplink: u8,
        /// The counters.
        path: PathStats,
    },
    /// An uplink's connection ended or could not be made.
    UplinkClosed {
        /// The uplink.
        uplink: u8,
        /// Why.
        reason: String,
    },
    /// The network interface of an uplink came up, or went down or away.
    UplinkInterface {
        /// The uplink.
        uplink: u8,
        /// True if it came up.
        up: bool,
    },
    /// Answers [`Output::CheckPolicy`].
    PolicyChecked {
        /// Its version.
        version: u64,
        /// What it asks for, or why it is refused, in words.
        result: Result<Box<Policy>, String>,
    },
    /// What came back on the stream of an [`Output::Offload`], whole.
    OffloadAnswered {
        /// The request.
        id: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The stream of an [`Output::Offload`] ended without an answer. Not told when its connection ended.
    OffloadFailed {
        /// The request.
        id: u64,
    },
    /// What the shell says of models that the cloud offers; answers [`Output::Fetch`].
    Fetch(FetchInput),
    /// What came back on the stream of a [`FetchOutput::Ask`], whole.
    ChunkCame {
        /// The request.
        id: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The stream of a [`FetchOutput::Ask`] ended without an answer. Not told when its connection ended.
    ChunkFailed {
        /// The request.
        id: u64,
    },
    /// The process is asked to stop.
    Stop,
}

/// What to do.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Write to a client.
    ClientWrite {
        /// The client.
        conn: ConnId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Read from a client once more.
    ClientRead {
        /// The client.
        conn: ConnId,
    },
    /// Close a client's socket after what was written.
    ClientClose {
        /// The client.
        conn: ConnId,
        /// Its client id; empty if it never gave one.
        client_id: String,
        /// Why.
        close: Close,
    },
    /// Connect to a broker.
    BrokerConnect {
        /// Which client of which.
        broker: BrokerIndex,
        /// Number of the connection; answers and acknowledgements of an older one mean nothing.
        generation: u64,
    },
    /// Close the socket to a broker after what was written.
    BrokerClose {
        /// The connection.
        conn: ConnId,
    },
    /// Check a client's credentials.
    Authenticate {
        /// The client.
        conn: ConnId,
        /// User name as sent.
        username: Option<String>,
        /// Password as sent.
        password: Option<Vec<u8>>,
    },
    /// Score a window.
    Infer(InferJob),
    /// Write to the buffer.
    Commit(CommitRequest),
    /// Read from the buffer.
    Load {
        /// The block's key.
        key: BlockKey,
    },
    /// Connect an uplink.
    Connect {
        /// The uplink.
        uplink: u8,
    },
    /// Write to an uplink's control stream.
    ControlWrite {
        /// The uplink.
        uplink: u8,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Write a block to one of an uplink's lane streams.
    SendBlock {
        /// The uplink.
        uplink: u8,
        /// The stream.
        flow: Flow,
        /// The block.
        block: Bytes,
    },
    /// Close an uplink's connection.
    Disconnect {
        /// The uplink.
        uplink: u8,
    },
    /// Check the signature and the text of a policy. What is good is noted as tried, durably, before it is answered.
    CheckPolicy {
        /// Its version, as the cloud says.
        version: u64,
        /// Its text.
        text: Bytes,
        /// The signature of the text.
        signature: Bytes,
    },
    /// Write a window to a stream of its own, and read the answer.
    Offload {
        /// The uplink.
        uplink: u8,
        /// The request, never used before.
        id: u64,
        /// How urgent it is.
        class: Class,
        /// Why it is asked about: nobody waits for the answer of an audit.
        purpose: Purpose,
        /// All that is to be written.
        bytes: Vec<u8>,
    },
    /// Reset the stream of an [`Output::Offload`], if it is still there.
    CancelOffload {
        /// The uplink.
        uplink: u8,
        /// The request.
        id: u64,
    },
    /// Go on with a model that the cloud offers; never [`FetchOutput::News`], which is an event.
    Fetch(FetchOutput),
    /// Something worth telling a person.
    Event(Event),
}

/// Changes of state, for the log and the status page.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An uplink came up.
    UplinkUp {
        /// The uplink.
        uplink: u8,
    },
    /// An uplink could not come up; it is tried again.
    AttemptFailed {
        /// The uplink.
        uplink: u8,
        /// Why.
        reason: DownReason,
    },
    /// An uplink that was up went down.
    UplinkDown {
        /// The uplink.
        uplink: u8,
        /// Why.
        reason: DownReason,
    },
    /// The plan for a stream was made or has changed.
    Planned {
        /// The stream.
        stream: u16,
        /// The plan's version.
        version: u64,
        /// What is planned, in words.
        planned: String,
        /// Why it is kept and sent so.
        reason: Reason,
        /// Why its model runs where it does.
        placed: Placed,
    },
    /// A pool is asked again, or not any more.
    PoolBreaker {
        /// The pool.
        pool: Arc<str>,
        /// `closed`, `open` or `half-open`.
        state: &'static str,
        /// Why it is not closed.
        reason: Option<OpenReason>,
    },
    /// Another confidence than before is the one below which a pool is asked.
    Learned {
        /// The stream.
        stream: u16,
        /// The confidence, and what made it.
        learned: Learned,
    },
    /// A lane goes by another uplink than before.
    Routed {
        /// The lane.
        lane: Class,
        /// The plan's version.
        version: u64,
        /// The uplink that it prefers now; `None` if there is none that it may use.
        uplink: Option<u8>,
        /// Why, in words.
        reason: String,
        /// The others, and why they are not it.
        rejected: Vec<String>,
    },
    /// Neighbours say something else of what lies on an uplink; `None` if there is nothing to say any more.
    Advised {
        /// The uplink.
        uplink: u8,
        /// The node, and what is wrong with it.
        about: Option<(String, Concern)>,
    },
    /// The cloud at an uplink's other end is busier than before, or less busy.
    CloudLoad {
        /// The uplink.
        uplink: u8,
        /// What it says.
        load: CloudLoad,
    },
    /// What is thought of an uplink has changed.
    UplinkState {
        /// The uplink.
        uplink: u8,
        /// Before.
        from: UplinkState,
        /// From now on.
        to: UplinkState,
        /// Why its breaker is not closed.
        reason: Option<OpenReason>,
    },
    /// A client of a broker connected, could not, or was refused something.
    Broker {
        /// Which client of which.
        broker: BrokerIndex,
        /// What.
        event: BrokerEvent,
    },
    /// A policy is on trial, was kept, taken back or refused.
    Policy(PolicyNews),
    /// A model that the cloud offers is on its way, waits, has come, or is refused.
    ModelFetch(FetchNews),
    /// The buffer did not take a transaction; it is tried again.
    CommitFailed {
        /// Why.
        error: StoreError,
    },
    /// The buffer takes transactions again.
    CommitRecovered,
    /// Records are given up, as none were for a while.
    LossBegan {
        /// Their lane.
        class: Class,
        /// Why.
        reason: VoidReason,
        /// How many so far; more may follow.
        records: u64,
    },
    /// No more records are given up for this reason.
    LossEnded {
        /// Their lane.
        class: Class,
        /// Why.
        reason: VoidReason,
        /// How many it were in all since [`Event::LossBegan`].
        records: u64,
        /// From the first to the last, in microseconds.
        lasted_us: u64,
    },
}
