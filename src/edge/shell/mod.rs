//! The shell: sockets, disk, models, threads and the clock around `logic::Gateway`.
//!
//! Everything that happens arrives in the [`Driver`] as a message; it hands it to the gateway, carries out what the gateway
//! wants, and publishes a status. It decides nothing. All of it runs on one thread, where the sockets are too: a message of
//! a few hundred bytes costs less than waking another thread.

pub(crate) mod auth;
pub(crate) mod broker;
mod driver;
pub(crate) mod interface;
pub(crate) mod listen;
pub(crate) mod models;
mod notices;
pub(crate) mod policies;
mod scoring;
mod trial;
pub(crate) mod uplink;

pub(crate) use driver::{Driver, DriverParts, InferBatch, InferMessage, UplinkHandle, moment};

use std::net::SocketAddr;

use tokio::sync::{mpsc, oneshot};
use weir_logic::gateway::Question;
use weir_logic::ingest::{BrokerIndex, ConnId};
use weir_logic::models::FetchInput;
use weir_logic::mqtt::{AuthRefusal, UserIndex};
use weir_logic::policy::Policy;

/// What clients' tasks and the desks for passwords and policies tell the driver.
#[derive(Debug)]
pub(crate) enum Message {
    ClientOpened {
        listener: usize,
        peer: SocketAddr,
        /// The client's certificate (DER), if it showed one.
        certificate: Option<Vec<u8>>,
        commands_tx: mpsc::UnboundedSender<listen::ClientCommand>,
        opened_tx: oneshot::Sender<ConnId>,
    },
    /// A connection to a broker was made.
    BrokerOpened {
        broker: BrokerIndex,
        generation: u64,
        commands_tx: mpsc::UnboundedSender<listen::ClientCommand>,
        opened_tx: oneshot::Sender<ConnId>,
    },
    /// A connection to a broker could not be made.
    BrokerFailed {
        broker: BrokerIndex,
        generation: u64,
        reason: String,
    },
    ClientRead {
        conn: ConnId,
        bytes: Vec<u8>,
    },
    ClientLost {
        conn: ConnId,
    },
    /// A client was gone before it had a number.
    HandshakeFailed {
        peer: SocketAddr,
        reason: String,
    },
    Authenticated {
        conn: ConnId,
        result: Result<UserIndex, AuthRefusal>,
    },
    /// A policy was checked: what it asks for, or why it is refused.
    PolicyChecked {
        version: u64,
        result: Result<Box<Policy>, String>,
    },
    /// What the disk says of a model that the cloud offers.
    Fetch(FetchInput),
    /// Somebody wants the box's part of the health graph, as JSON.
    GraphAsked {
        answer_tx: oneshot::Sender<Result<String, String>>,
    },
    /// Somebody asks why, or where; the answer is JSON, or a line for people.
    Asked {
        question: Question,
        answer_tx: oneshot::Sender<Result<String, String>>,
    },
}
