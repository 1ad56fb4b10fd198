//! What the operator asks for, checked and resolved: the pure core never sees a file or a text to parse.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{Class, PerClass};
use crate::lanes::{LanePolicy, LanesLimits};
use crate::mqtt::{ConnLimits, RouterLimits};
use crate::payload::PayloadFormat;
use crate::price::{PriceLimits, StreamValue};
use crate::uplink::SessionLimits;
use crate::window::{AggregateSpec, KeepRules, WindowSpec};

/// Everything the gateway needs to know.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Lanes, by class.
    pub lanes: PerClass<LanePolicy>,
    /// Limits over all lanes.
    pub lanes_limits: LanesLimits,
    /// Streams, in the order of the configuration.
    pub streams: Vec<StreamPolicy>,
    /// Who may publish what; the index is the `UserIndex` of an authenticated connection.
    pub users: Vec<UserPolicy>,
    /// Limits of MQTT connections.
    pub connections: ConnLimits,
    /// Most MQTT connections at once.
    pub connections_max: usize,
    /// Limits of topic routing.
    pub router: RouterLimits,
    /// Times of uplink sessions.
    pub session: SessionLimits,
    /// Ways out, the preferred one first.
    pub uplinks: Vec<UplinkPolicy>,
    /// How the price of a byte is made.
    pub price: PriceLimits,
}

/// One uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UplinkPolicy {
    /// Rate assumed before anything is measured, in bits per second.
    pub nominal_bps: u64,
}

/// One stream.
#[derive(Debug, Clone)]
pub struct StreamPolicy {
    /// Its name.
    pub name: Arc<str>,
    /// MQTT topic filters; what their wildcards match is the device key.
    pub filters: Vec<String>,
    /// How much its records matter.
    pub class: Class,
    /// How finely it is kept.
    pub fidelity: StreamFidelity,
    /// How its payloads are read.
    pub format: PayloadFormat,
    /// How it is aggregated; needed for [`StreamFidelity::Aggregate`].
    pub aggregate: Option<AggregateSpec>,
    /// What is kept raw in spite of its fidelity; on a raw stream, what is kept at all.
    pub keep: Option<KeepRules>,
    /// The model that scores its windows, if there is one that could be loaded.
    pub model: Option<StreamModel>,
    /// True if a message that is folded into something smaller is acknowledged only when that is safe.
    pub ack_record: bool,
    /// What its raw records are worth; `None` if they are sent as they are stored, whatever that costs.
    pub value: Option<StreamValue>,
}

/// The model of a stream.
#[derive(Debug, Clone)]
pub struct StreamModel {
    /// Index in the shell's list of models.
    pub index: u16,
    /// Its name.
    pub name: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// The window it reads.
    pub window: WindowSpec,
}

/// How finely a stream is kept when nothing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamFidelity {
    /// Every message as it came.
    Raw,
    /// Minimum, maximum, mean and count per device and span.
    Aggregate,
    /// Only what the model says.
    Verdict,
}

impl StreamFidelity {
    /// The word used in config, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            StreamFidelity::Raw => "raw",
            StreamFidelity::Aggregate => "aggregate",
            StreamFidelity::Verdict => "verdict",
        }
    }
}

/// A user of the MQTT endpoint.
#[derive(Debug, Clone)]
pub struct UserPolicy {
    /// The name; empty for anonymous clients.
    pub name: Arc<str>,
    /// Topic filters it may publish to.
    pub publish: Vec<String>,
}
