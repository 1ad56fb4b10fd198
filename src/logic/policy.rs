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
    /// Uplinks that a critical block is sent over at the same time: 1 or 2.
    pub critical_copies: u8,
}

impl Policy {
    /// True if any stream says what its records are worth.
    pub fn has_values(&self) -> bool {
        self.streams.iter().any(|stream| stream.value.is_some())
    }
}

/// One way to the cloud: a link and a transport.
#[derive(Debug, Clone, PartialEq)]
pub struct UplinkPolicy {
    /// Its name, in logs, events and the graph.
    pub name: Arc<str>,
    /// Rate assumed before anything is measured, in bits per second.
    pub nominal_bps: u64,
    /// Index of the uplink over the same link that this one stands in for while data does not pass there.
    pub stands_in_for: Option<u8>,
    /// What its bytes cost; `None` if they cost nothing.
    pub meter: Option<Meter>,
    /// True if it stays connected although it is metered and nothing needs it.
    pub warm: bool,
    /// The classes that may use it.
    pub classes: PerClass<bool>,
    /// Zone of the ingest node that it leads to.
    pub zone: Option<Arc<str>>,
    /// Shared infrastructure that it goes through: a carrier or a site's router.
    pub carrier: Option<Arc<str>>,
}

impl UplinkPolicy {
    /// One whose bytes cost nothing, for all classes.
    pub fn free(name: &str, nominal_bps: u64) -> UplinkPolicy {
        UplinkPolicy {
            name: name.into(),
            nominal_bps,
            stands_in_for: None,
            meter: None,
            warm: false,
            classes: [true; 4],
            zone: None,
            carrier: None,
        }
    }
}

/// What the bytes of an uplink cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Meter {
    /// Money for a megabyte, in any currency: only relations between uplinks matter.
    pub money_per_mb: f64,
    /// Bytes that may be used in a calendar month (UTC), both directions; `None` for no limit.
    pub month_bytes: Option<u64>,
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
    /// Zones that its records may go to; empty for anywhere.
    pub zones: Vec<Arc<str>>,
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
