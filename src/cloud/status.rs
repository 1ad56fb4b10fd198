//! What `/status.json` and `/healthz` show: a snapshot that the hub publishes once a second and on every change of health.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;
use weir_host::admin::Health;
use weir_logic::graph::Cause;
use weir_logic::receive::Counters;

/// The whole picture.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// Version of the program.
    pub software: &'static str,
    /// When it was published, in Unix microseconds.
    pub at_us: u64,
    /// Open connections that said Hello.
    pub connections: usize,
    /// Gateways that have one.
    pub gateways_connected: usize,
    /// The database and its queue.
    pub sink: SinkStatus,
    /// Gateways in memory, by name.
    pub gateways: Vec<GatewayStatus>,
    /// The last alerts, oldest first; the `alerts` table has more.
    pub alerts: Vec<AlertStatus>,
    /// The global graph.
    pub graph: GraphStatus,
    /// Policies that gateways are offered.
    pub policies: PoliciesStatus,
    /// Models that gateways are offered.
    pub models: ModelsStatus,
    /// Larger models that gateways ask.
    pub pools: PoolsStatus,
    /// Sums over all gateways since the start.
    #[serde(skip)]
    pub counters: Counters,
}

/// Larger models that gateways ask.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PoolsStatus {
    /// Requests turned away because too many were under way over all connections.
    pub over_limit: u64,
    /// Streams that carried no request.
    pub garbled: u64,
    /// Other machines that run pools, by address, and whether they are connected.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub machines: BTreeMap<String, bool>,
    /// The pools whose model is loaded, and those of other machines that are connected.
    pub pools: Vec<OnePoolStatus>,
}

/// One pool.
#[derive(Debug, Clone, Default, Serialize)]
pub struct OnePoolStatus {
    /// Its name.
    pub name: String,
    /// What it does.
    pub task: String,
    /// Its model.
    pub model: String,
    /// Its model's version.
    pub version: String,
    /// Who may use it.
    pub gateways: Vec<String>,
    /// Address of the machine that runs it, and counts there; `None` for this one.
    pub machine: Option<String>,
    /// Windows that wait.
    pub queued: usize,
    /// Windows that may wait.
    pub queue_max: usize,
    /// Windows that run.
    pub running: usize,
    /// Median time from a window's coming to its answer of late, in microseconds.
    pub p50_us: u64,
    /// The 95th percentile of the same.
    pub p95_us: u64,
    /// How old these are in microseconds; `None` before the first answer.
    pub age_us: Option<u64>,
    /// The 95th percentile of the time from a window's coming to its refusal of late, in microseconds.
    pub refused_p95_us: u64,
    /// Windows that ran, by class.
    pub served: BTreeMap<&'static str, u64>,
    /// Windows refused, by reason and class.
    pub refused: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// Requests of gateways that may not use it, or of another task or shape.
    pub denied: u64,
    /// Windows that its model failed at.
    pub failed: u64,
    /// Requests that their gateways took back.
    pub cancelled: u64,
    /// Batches run.
    pub batches: u64,
}

/// Policies that gateways are offered.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PoliciesStatus {
    /// Those in the directory, the highest version first.
    pub policies: Vec<PolicyStatus>,
    /// Files that are not offered, and why.
    pub problems: Vec<String>,
}

/// One version.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PolicyStatus {
    /// The version.
    pub version: u64,
    /// Its file.
    pub file: String,
    /// Who gets it now: `share`, `all` or `halted`; `unknown` until it is known what is on record of it.
    pub stage: &'static str,
    /// True if a gateway refused it or took it back, so that no other is offered it.
    pub is_halted: bool,
    /// Gateways by what became of it there.
    pub gateways: BTreeMap<&'static str, u64>,
    /// The first of those that did not keep it.
    pub troubles: Vec<PolicyTroubleStatus>,
}

/// Models that gateways are offered.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ModelsStatus {
    /// Those in the directory, by task, the highest version first.
    pub offers: Vec<ModelOfferStatus>,
    /// Files that are not offered, and why.
    pub problems: Vec<String>,
}

/// One version of a task's model.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ModelOfferStatus {
    /// The task that it answers.
    pub task: String,
    /// The version.
    pub version: u64,
    /// Its file.
    pub file: String,
    /// Who gets it now: `share`, `all` or `halted`; `unknown` until it is known what is on record of it.
    pub stage: &'static str,
    /// True if a gateway refused it or took it back, so that no other is offered it.
    pub is_halted: bool,
    /// Gateways by what became of it there; `trial` is from its offer on.
    pub gateways: BTreeMap<&'static str, u64>,
    /// The first of those that did not keep it, and of those that have tried a higher one (`passed-over`).
    pub troubles: Vec<PolicyTroubleStatus>,
}

/// What a gateway says of the models of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GatewayModelStatus {
    /// The task.
    pub task: String,
    /// Version that answers and has proved itself; 0 for the file of its configuration.
    pub active: u64,
    /// The version that the rest is said of.
    pub version: u64,
    /// `trial`, `kept`, `refused` or `rolled-back`.
    pub state: &'static str,
    /// How far it has come: `waiting`, `fetching`, `fetched`, or a stage of its trial.
    pub stage: String,
    /// Why.
    pub reason: String,
}

/// A gateway that did not keep a policy, or a model.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PolicyTroubleStatus {
    /// Its name.
    pub gateway: String,
    /// `refused`, `rolled-back` or `no-key`; of a model also `passed-over`.
    pub state: &'static str,
    /// Why, in its words.
    pub reason: String,
}

/// The global graph.
#[derive(Debug, Clone, Default, Serialize)]
pub struct GraphStatus {
    /// Owners whose part is known, this machine among them.
    pub owners: usize,
    /// Memory that the parts take.
    pub memory_bytes: u64,
    /// Digests merged.
    pub merges: u64,
    /// Digests refused: garbage, too large, or too many.
    pub refused: u64,
    /// Owners forgotten for their silence.
    pub expired: u64,
    /// What several sites have in common that explains their trouble.
    pub causes: Vec<CauseStatus>,
}

/// A common cause.
#[derive(Debug, Clone, Serialize)]
pub struct CauseStatus {
    /// The node, such as `carrier/telco`.
    pub node: String,
    /// `slow`, `degraded` or `down`.
    pub trouble: &'static str,
    /// Sites in trouble.
    pub affected: u32,
    /// Part of its sites that are.
    pub share: f64,
    /// Probability that it is the cause.
    pub confidence: f64,
}

impl CauseStatus {
    pub(crate) fn of(cause: &Cause) -> CauseStatus {
        let Cause { node, trouble, affected, share, confidence, .. } = cause;
        CauseStatus {
            node: node.to_string(),
            trouble: trouble.name(),
            affected: *affected,
            share: *share,
            confidence: *confidence,
        }
    }
}

/// The database and its queue.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SinkStatus {
    /// True while it takes nothing and gateways have no credits.
    pub stalled: bool,
    /// Why, in the database's words.
    pub reason: String,
    /// Bytes of blocks that wait.
    pub queue_bytes: u64,
    /// Rows of records written since the start.
    pub rows: u64,
}

/// One gateway.
#[derive(Debug, Clone, Serialize)]
pub struct GatewayStatus {
    /// Its name.
    pub name: String,
    /// Its current epoch, 16 hexadecimal digits.
    pub epoch: String,
    /// Its connections.
    pub sessions: Vec<SessionStatus>,
    /// Its lanes, most important first.
    pub lanes: Vec<LaneStatus>,
    /// Sequence numbers that are missing, of the epochs in memory.
    pub missing: u64,
    /// Version of the policy that it keeps, 0 for its own configuration; `None` while it is away, or if it knows no policies.
    pub policy_version: Option<u64>,
    /// Its models, by task; empty while it is away, or if it takes none.
    pub models: Vec<GatewayModelStatus>,
}

/// One connection; over TCP it is two.
#[derive(Debug, Clone, Serialize)]
pub struct SessionStatus {
    /// Number of the connection since the start.
    pub id: u64,
    /// The other end.
    pub remote: SocketAddr,
    /// What carries it: `quic` or `tcp`.
    pub transport: &'static str,
}

/// One lane, all epochs of this run of the cloud together.
#[derive(Debug, Clone, Serialize)]
pub struct LaneStatus {
    /// Its name.
    pub lane: &'static str,
    /// Blocks handed to the sink.
    pub blocks: u64,
    /// Bytes of all blocks that came.
    pub bytes: u64,
    /// Sequence numbers stored or voided.
    pub durable: u64,
    /// How old the first record of the last block was when it came, in seconds.
    pub lag_s: Option<f64>,
}

/// One alert.
#[derive(Debug, Clone, Serialize)]
pub struct AlertStatus {
    /// When, in Unix microseconds.
    pub at_us: u64,
    /// Whose; empty if it concerns all.
    pub gateway: String,
    /// `missing`, `cloned`, `quarantine`, `store`, `policy` or `model`.
    pub kind: &'static str,
    /// In words.
    pub text: String,
}

impl Status {
    /// The picture as JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|err| format!("{{\"error\":\"{err}\"}}"))
    }

    /// Whether data are taken in.
    pub fn health(&self) -> Health {
        if self.sink.stalled {
            return Health {
                is_ok: false,
                text: format!("database takes nothing, gateways keep their data: {}", self.sink.reason),
            };
        }
        let text = format!("ok: {} gateways, {} bytes queued", self.gateways_connected, self.sink.queue_bytes);
        Health { is_ok: true, text }
    }
}
