//! What the box shows of itself: one snapshot, several times a second, for the status page, metrics and the operator's tool.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};
use weir_host::clock::Wall;
use weir_infer::Stats;
use weir_logic::gateway::{FederationCounts, Gateway};
use weir_logic::graph::PublisherCounters;
use weir_logic::health::{BreakerState, PathStats};
use weir_logic::ids::Class;
use weir_logic::ingest::{BrokerView, SampleCounts};
use weir_logic::mqtt::Counters;
use weir_logic::payload::SparkplugCounters;
use weir_logic::rollout::OfferState;

use crate::shell::listen::ListenCounters;

mod audit;
mod fetch;
mod offload;
mod updates;

pub use audit::{AuditLimits, AuditStatus, CheckedStatus};
pub use fetch::{FetchStatus, OfferStatus};
pub use offload::{OffloadStatus, PoolStatus};
pub use updates::UpdateStatus;

use fetch::fetch;
use offload::offload;

/// The state of a box at one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// Identity in the gateway's certificate.
    pub gateway: String,
    /// Version of the software.
    pub software: String,
    /// This run, in hexadecimal.
    pub epoch: String,
    /// Service time in microseconds.
    pub service_us: u64,
    /// Whether the wall clock is trusted.
    pub wall_trusted: bool,
    /// Unix time in microseconds.
    pub wall_us: u64,
    /// Bytes that lanes hold in memory.
    pub memory_bytes: u64,
    /// Times that memory or the queue of windows was full and sockets were not read.
    pub memory_full: u64,
    /// Flash that commits ahead of their interval may write now; without any, a sender that waits for each PUBACK gets one a
    /// second.
    pub early_commit_bytes: u64,
    /// True if the disk has refused the last transaction for lack of space.
    pub disk_full: bool,
    /// True if the last transaction failed, for whatever reason, and none has worked since.
    pub commit_failing: bool,
    /// Keys in the buffer under which no block could be read at start.
    pub damaged_blocks: u64,
    /// A buffer that could not be opened at start and was set aside under this name.
    pub quarantined: Option<String>,
    /// Voids the cloud has not acknowledged.
    pub voids: u64,
    /// Voids told with the reason of a later one, because there were too many.
    pub voids_relabelled: u64,
    /// MQTT connections and messages.
    pub ingest: IngestStatus,
    /// Brokers, each once for every class of its streams, in the order of the configuration.
    pub brokers: Vec<BrokerStatus>,
    /// Streams, in the order of the configuration.
    pub streams: Vec<StreamStatus>,
    /// Lanes, most important first.
    pub lanes: Vec<LaneStatus>,
    /// The price of a byte of uplink, and what made it.
    pub plan: PlanStatus,
    /// The policy in force, and what became of those that the cloud offered.
    pub policy: PolicyStatus,
    /// What was told of the box's part of the health graph, and what was heard.
    pub graph: GraphStatus,
    /// Uplinks, in the order of the configuration.
    pub uplinks: Vec<UplinkStatus>,
    /// Models.
    pub models: Vec<ModelStatus>,
    /// Tasks whose models may be replaced while the box runs.
    #[serde(default)]
    pub updates: Vec<UpdateStatus>,
    /// Models that the cloud offers.
    #[serde(default)]
    pub fetch: FetchStatus,
    /// Batches that a model on trial was not shown, because it had not finished those before.
    #[serde(default)]
    pub windows_unshown: u64,
    /// Models that gave no answer and were given up, since start; the thread of each is left alone.
    #[serde(default)]
    pub models_given_up: u64,
    /// True if models have taken the box down too often, and it runs without them.
    #[serde(default)]
    pub models_forbidden: bool,
    /// Larger models in the cloud, and what was asked of them.
    #[serde(default)]
    pub offload: OffloadStatus,
    /// What two models said of the same windows, by stream and their versions.
    #[serde(default)]
    pub audits: Vec<AuditStatus>,
    /// What of that found no room.
    #[serde(default)]
    pub audit_limits: AuditLimits,
    /// The buffer on disk.
    pub store: StoreStatus,
    /// The last messages that nothing could be made of.
    pub inspected: Vec<InspectedStatus>,
}

/// MQTT connections and messages.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct IngestStatus {
    /// Connections now.
    pub connections: u64,
    /// Connections since start.
    pub connections_total: u64,
    /// Connections refused because there were too many.
    pub connections_refused: u64,
    /// Connections that were not let in.
    pub connects_refused: u64,
    /// Connections taken over by a newer one of the same client.
    pub taken_over: u64,
    /// Connections closed for a breach of the protocol or of a limit.
    pub protocol_errors: u64,
    /// Messages of QoS 0.
    pub messages_qos0: u64,
    /// Messages of QoS 1.
    pub messages_qos1: u64,
    /// Payload bytes.
    pub payload_bytes: u64,
    /// Messages sent again by their sender (DUP).
    pub duplicates: u64,
    /// PUBACKs sent.
    pub pubacks: u64,
    /// Messages that wait for their PUBACK now.
    pub unacknowledged: u64,
    /// Messages on topics no stream wants.
    pub unmatched: u64,
    /// Messages on topics their user may not publish to.
    pub denied: u64,
    /// Messages of devices for which there was no room.
    pub devices_refused: u64,
    /// Clients refused, closed or held back, by reason: each limit of the endpoint has one.
    pub limits: BTreeMap<String, u64>,
    /// Messages acknowledged before the record their stream wanted to wait for, by reason.
    pub early_acks: BTreeMap<String, u64>,
    /// What was heard of edge nodes of Sparkplug B, by word: `births`, `unborn`, `seq_missing` and so on.
    pub sparkplug: BTreeMap<String, u64>,
    /// Topics forgotten to make room for others.
    pub topics_evicted: u64,
    /// Windows being scored now.
    pub windows_pending: u64,
    /// Verdicts given.
    pub verdicts: u64,
    /// Windows that could not be scored.
    pub verdict_errors: u64,
}

/// One client of a broker: for the streams of one class.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BrokerStatus {
    /// Name of the broker.
    pub name: String,
    /// Class of the streams.
    pub class: String,
    /// Whether it is connected and subscribed.
    pub up: bool,
    /// Number of the present or last connection, from 1.
    pub generation: u64,
    /// Messages that wait for their acknowledgement.
    pub in_flight: u64,
    /// Packet ids of QoS 2 that the broker has not released.
    pub packet_ids: u64,
    /// Why it was last not connected; empty if nothing was since it is.
    pub last_down: String,
    /// Attempts to connect.
    pub attempts: u64,
    /// Connections on which the broker let us in.
    pub connects: u64,
    /// Of these, those whose session the broker had kept.
    pub sessions_resumed: u64,
    /// Messages by QoS.
    pub messages: [u64; 3],
    /// Their payload bytes.
    pub payload_bytes: u64,
    /// Messages that the broker sent again (DUP).
    pub redelivered: u64,
    /// Messages that were known already and not taken in again.
    pub deduplicated: u64,
    /// Messages for streams that others of its clients take.
    pub others: u64,
    /// Messages that were too long or on an impossible topic, acknowledged and dropped.
    pub unusable: u64,
    /// PUBACKs and PUBRECs.
    pub acks: u64,
    /// Topic filters that the broker refused, or granted with a lower QoS.
    pub filters_refused: u64,
    /// Times that it was not read because too many messages were unacknowledged.
    pub pauses_inflight: u64,
}

/// One stream: its plan, and what became of its messages.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Name.
    pub name: String,
    /// What is planned, in words.
    pub plan: String,
    /// Why.
    pub reason: String,
    /// Messages that became a record.
    pub kept: u64,
    /// Messages folded into something smaller.
    pub folded: u64,
    /// Messages that rules let go.
    pub filtered: u64,
    /// Messages that did not decode.
    pub undecodable: u64,
    /// The same by reason, such as `not_finite`.
    pub undecodable_by: BTreeMap<String, u64>,
    /// Aggregates recorded.
    pub aggregates: u64,
    /// Verdicts recorded.
    pub verdicts: u64,
    /// Raw windows recorded.
    pub windows: u64,
    /// What became of samples on their way into windows and aggregates, by word: `gaps`, `late`, `duplicates` and so on.
    pub samples: BTreeMap<String, u64>,
    /// What became of windows that a pool was to be asked about, by word: `sent`, `answered`, `breaker` and so on; empty for a
    /// stream without `offload`.
    #[serde(default)]
    pub offload: BTreeMap<String, u64>,
}

/// One lane.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LaneStatus {
    /// Class name.
    pub class: String,
    /// Records held now.
    pub records: u64,
    /// Bytes of sealed blocks held now.
    pub bytes: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes sent and not acknowledged.
    pub under_way_bytes: u64,
    /// Age of the oldest record in microseconds.
    pub oldest_age_us: Option<u64>,
    /// Records taken in since start.
    pub records_total: u64,
    /// Their payload bytes.
    pub payload_bytes: u64,
    /// Records acknowledged by the cloud.
    pub acked: u64,
    /// Records left out of what was acknowledged, because their bytes cost more than they were worth, or of what is held,
    /// because the lane was nearly full.
    pub thinned: u64,
    /// Times that a block was thinned where it lies, because the lane was nearly full.
    pub thinned_blocks: u64,
    /// Records evicted.
    pub evicted: u64,
    /// Records expired.
    pub expired: u64,
    /// Records whose block on disk was unreadable.
    pub corrupt: u64,
    /// Records written to disk because an ack was late or memory ran out.
    pub spilled: u64,
    /// Blocks sent.
    pub sent_blocks: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Blocks queued again because a session ended.
    pub repeated_blocks: u64,
}

/// The price of a byte of uplink, and what made it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PlanStatus {
    /// Counts the plans that differ from the one before.
    pub version: u64,
    /// Worth that a byte must have to be sent; 0 while the uplink carries all.
    pub price: f64,
    /// Bytes that want to be sent within the horizon.
    pub wanted_bytes: u64,
    /// Bytes that the uplink is forecast to carry in it.
    pub forecast_bytes: u64,
    /// Bytes that wait.
    pub waiting_bytes: u64,
    /// The stream that is thinned next if the price rises.
    pub next_stream: Option<String>,
    /// By class: the uplinks that it goes by, best first.
    pub routes: BTreeMap<String, Vec<String>>,
    /// Changes of the plan since start; the last ones are told by `/explain.json`.
    pub changes: u64,
}

/// The policy in force, and what became of those that the cloud offered.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Version in force, or that a trial goes back to; 0 for the box's own configuration.
    pub version: u64,
    /// Whether the box has a key to check policies with.
    pub has_key: bool,
    /// The version on trial.
    pub trial_version: Option<u64>,
    /// How long that lasts at most, in microseconds.
    pub trial_left_us: Option<u64>,
    /// The last one of which something became: its version.
    pub last_version: Option<u64>,
    /// What: `trial`, `kept`, `refused`, `rolled-back` or `no-key`.
    pub last_state: String,
    /// Why.
    pub last_reason: String,
    /// How often that was so since start, by the same words.
    pub changes: BTreeMap<String, u64>,
}

/// What was told of the box's part of the health graph, and what was heard.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct GraphStatus {
    /// Digests with all of it.
    pub fulls: u64,
    /// Digests with what had changed.
    pub deltas: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Digests that were over the limit and not sent.
    pub too_long: u64,
    /// Advice that could not be read.
    pub advice_refused: u64,
    /// Items of advice that were not understood, or too many.
    pub advice_ignored: u64,
}

/// One uplink.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct UplinkStatus {
    /// Name.
    pub name: String,
    /// Whether a session is up.
    pub up: bool,
    /// Why it last went down.
    pub last_down: Option<String>,
    /// Round trip of the last heartbeat in microseconds.
    pub heartbeat_rtt_us: Option<u64>,
    /// QUIC's smoothed round trip in microseconds.
    pub rtt_us: u64,
    /// QUIC's congestion window in bytes.
    pub cwnd_bytes: u64,
    /// Packets lost on the present connection.
    pub lost_packets: u64,
    /// Bytes sent on the present connection, UDP payload.
    pub sent_bytes: u64,
    /// Bytes received on the present connection, UDP payload.
    pub received_bytes: u64,
    /// What is thought of it: `green`, `yellow`, `red`, `blocked` or `cold`.
    pub state: String,
    /// Bits a second delivered in the last seconds.
    pub goodput_bps: u64,
    /// Bits a second that it carries as a rule.
    pub capacity_bps: u64,
    /// Part of packets lost in the last seconds.
    pub loss: f64,
    /// How far these may be trusted, 0 to 1.
    pub confidence: f64,
    /// How much slower than estimated it is taken to be, by what neighbours report; 1 if they report nothing.
    pub advice: f64,
    /// How busy the cloud says it is: `idle`, `filling`, `overloaded` or `stalled`.
    pub cloud_load: String,
    /// How full its queue is, in percent.
    pub cloud_queue_percent: u64,
    /// Whether its breaker lets data through: `closed`, `half-open` or `open`.
    pub breaker: String,
    /// Why it is not closed.
    pub breaker_reason: Option<String>,
    /// Bytes used of the present month, if it has a budget.
    pub month_used_bytes: Option<u64>,
    /// Bytes of a month.
    pub month_bytes: Option<u64>,
    /// Times that the pace of the month, or its end, closed it to all but critical records.
    pub paced: u64,
    /// Times that it was looked at while cold, and what that cost.
    pub probes: u64,
    /// See `probes`.
    pub probe_bytes: u64,
    /// Attempts to connect.
    pub attempts: u64,
    /// Sessions that came up.
    pub ups: u64,
    /// Sessions that went down.
    pub downs: u64,
    /// Messages from the cloud of a kind that this version does not know.
    pub unknown_messages: u64,
    /// Questions from the cloud that were answered, and those refused as too long or too many.
    pub questions: u64,
    /// See `questions`.
    pub questions_refused: u64,
}

/// One model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Name.
    pub name: String,
    /// Windows waiting.
    pub queued: u64,
    /// Windows scored.
    pub rows: u64,
    /// True if it gave no answer and was given up: its windows go on without verdicts.
    #[serde(default)]
    pub given_up: bool,
    /// Windows that failed.
    pub errors: u64,
    /// Windows, of those, with a value that is not finite: the model has not seen them.
    #[serde(default)]
    pub non_finite: u64,
    /// Devices whose state is kept.
    #[serde(default)]
    pub state_devices: u64,
    /// States dropped because of a gap, a step back in time or a window that failed.
    #[serde(default)]
    pub state_resets: u64,
    /// States dropped because there were too many devices.
    #[serde(default)]
    pub state_evicted: u64,
    /// Times that a window found the queue full; it waits and is tried again.
    pub refused: u64,
    /// Batches run.
    pub batches: u64,
    /// Time in the model in microseconds.
    pub batch_us_total: u64,
}

/// The buffer on disk.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Transactions committed.
    pub commits: u64,
    /// Transactions that failed.
    pub commit_failures: u64,
    /// Bytes written to flash by them.
    pub flash_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Time the last transaction took in microseconds.
    pub commit_us_last: u64,
}

/// A message that nothing could be made of.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct InspectedStatus {
    /// Its age in microseconds.
    pub age_us: u64,
    /// Its topic.
    pub topic: String,
    /// What was wrong, in a word.
    pub reason: String,
    /// What exactly was wrong with its payload, and where.
    pub detail: String,
    /// The start of its payload, as text with what is not UTF-8 replaced.
    pub payload: String,
}

impl Status {
    /// This status with everything that changes taken from its source.
    pub(crate) fn updated(
        &self,
        now_us: u64,
        wall: Wall,
        gateway: &Gateway,
        paths: &[PathStats],
        models: &[(String, Stats)],
        store: StoreStatus,
    ) -> Status {
        let lanes = gateway.lanes();
        let (audits, audit_limits) = audit::audits(gateway);
        Status {
            service_us: now_us,
            wall_trusted: wall.trusted,
            wall_us: wall.unix_us,
            memory_bytes: lanes.memory_bytes(),
            memory_full: gateway.ingest().counters().full,
            early_commit_bytes: lanes.early_commit_bytes(),
            disk_full: lanes.disk_full(),
            commit_failing: gateway.is_commit_failing(),
            voids: lanes.void_count() as u64,
            voids_relabelled: lanes.voids_relabelled(),
            ingest: ingest(gateway),
            brokers: gateway.ingest().brokers().map(|view| broker(&view)).collect(),
            streams: streams(gateway),
            lanes: Class::ALL.into_iter().map(|class| lane(now_us, gateway, class)).collect(),
            plan: price(gateway),
            policy: policy(now_us, gateway),
            graph: graph(gateway),
            uplinks: self
                .uplinks
                .iter()
                .enumerate()
                .map(|(index, base)| uplink(now_us, gateway, index, base, &paths[index]))
                .collect(),
            models: models.iter().map(model).collect(),
            fetch: fetch(gateway),
            offload: offload(now_us, gateway),
            audits,
            audit_limits,
            store,
            inspected: inspected(now_us, gateway),
            ..self.clone()
        }
    }
}

fn ingest(gateway: &Gateway) -> IngestStatus {
    let (ingest, mqtt, totals) = (gateway.ingest(), gateway.ingest().mqtt_counters(), gateway.ingest().counters());
    let ((verdicts, verdict_errors), early) = (ingest.verdicts(), ingest.early_acks());
    IngestStatus {
        connections: ingest.connections_len() as u64,
        connections_total: totals.connections,
        connections_refused: totals.connections_refused,
        connects_refused: mqtt.connects_refused,
        taken_over: totals.taken_over,
        protocol_errors: mqtt.malformed
            + mqtt.protocol_errors
            + mqtt.packets_too_large
            + mqtt.topics_invalid
            + mqtt.aliases_invalid
            + mqtt.qos2_refused
            + mqtt.receive_maximum_exceeded,
        messages_qos0: mqtt.publishes_qos0,
        messages_qos1: mqtt.publishes_qos1,
        payload_bytes: mqtt.payload_bytes,
        duplicates: mqtt.duplicates,
        pubacks: mqtt.pubacks,
        unacknowledged: ingest.unacknowledged() as u64,
        unmatched: totals.unmatched,
        denied: totals.denied,
        devices_refused: totals.devices_refused,
        limits: limits(&mqtt),
        early_acks: [("waiting_max", early.waiting_max), ("window_wait", early.window_wait)]
            .map(|(reason, count)| (reason.to_owned(), count))
            .into(),
        sparkplug: sparkplug(&ingest.sparkplug()),
        topics_evicted: ingest.topics_evicted(),
        windows_pending: ingest.pending_windows() as u64,
        verdicts,
        verdict_errors,
    }
}

fn sparkplug(counters: &SparkplugCounters) -> BTreeMap<String, u64> {
    let words = [
        ("births", counters.births),
        ("deaths", counters.deaths),
        ("deaths_stale", counters.deaths_stale),
        ("unborn", counters.unborn),
        ("seq_gaps", counters.seq_gaps),
        ("seq_missing", counters.seq_missing),
        ("structures", counters.structures),
        ("not_numbers", counters.not_numbers),
        ("incomplete", counters.incomplete),
        ("forgotten", counters.forgotten),
    ];
    words.map(|(word, count)| (word.to_owned(), count)).into()
}

fn policy(now_us: u64, gateway: &Gateway) -> PolicyStatus {
    let policies = gateway.policies();
    let (trial, last) = (policies.on_trial(), policies.last());
    let told = policies.counts().filter(|(state, _)| *state != OfferState::Offered);
    PolicyStatus {
        version: policies.kept(),
        has_key: policies.has_key(),
        trial_version: trial.map(|(version, _)| version),
        trial_left_us: trial.map(|(_, end_us)| end_us.saturating_sub(now_us)),
        last_version: last.map(|last| last.version),
        last_state: last.map(|last| last.state.name().to_owned()).unwrap_or_default(),
        last_reason: last.map(|last| last.reason.clone()).unwrap_or_default(),
        changes: told.map(|(state, count)| (state.name().to_owned(), count)).collect(),
    }
}

fn limits(mqtt: &Counters) -> BTreeMap<String, u64> {
    [
        ("inflight", mqtt.pauses_inflight),
        ("rate", mqtt.pauses_rate),
        ("output", mqtt.pauses_output),
        ("retained", mqtt.retained),
        ("subscribe", mqtt.subscribes_refused),
        ("puback_error", mqtt.pubacks_refused),
        ("version", mqtt.versions_refused),
        ("client_id", mqtt.client_ids_refused),
        ("malformed", mqtt.malformed),
        ("protocol_error", mqtt.protocol_errors),
        ("packet_too_large", mqtt.packets_too_large),
        ("topic_invalid", mqtt.topics_invalid),
        ("alias_invalid", mqtt.aliases_invalid),
        ("qos2", mqtt.qos2_refused),
        ("receive_maximum", mqtt.receive_maximum_exceeded),
        ("held_too_long", mqtt.held_too_long),
        ("keep_alive", mqtt.keep_alives_expired),
        ("connect_timeout", mqtt.connect_timeouts),
    ]
    .map(|(reason, count)| (reason.to_owned(), count))
    .into()
}

impl IngestStatus {
    /// Adds what the sockets' side counts.
    pub(crate) fn count_listeners(&mut self, listeners: &ListenCounters, auth_refused: u64) {
        let counts = [
            ("handshake_failed", listeners.handshakes_failed.load(Relaxed)),
            ("handshakes_max", listeners.handshakes_refused.load(Relaxed)),
            ("write_timeout", listeners.writes_timed_out.load(Relaxed)),
            ("auth_queue", auth_refused),
        ];
        self.limits.extend(counts.map(|(reason, count)| (reason.to_owned(), count)));
    }
}

fn by_reason(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(&reason, &count)| (reason.to_owned(), count)).collect()
}

fn samples(counts: &SampleCounts) -> BTreeMap<String, u64> {
    let w = &counts.windows;
    [
        ("window_gaps", w.gaps),
        ("window_jumps_back", w.jumps_back),
        ("window_late", w.late),
        ("window_duplicates", w.duplicates),
        ("window_reordered", w.reordered),
        ("window_squeezed", w.squeezed),
        ("aggregate_late", counts.aggregate_late),
        ("aggregate_jumps_back", counts.aggregate_jumps_back),
    ]
    .map(|(word, count)| (word.to_owned(), count))
    .into()
}

fn streams(gateway: &Gateway) -> Vec<StreamStatus> {
    let counts = gateway.ingest().sample_counts();
    let entries = gateway.policy().streams.iter().zip(&gateway.plan().streams).enumerate();
    entries
        .map(|(index, (stream, plan))| {
            let fates = gateway.ingest().fates(index as u16);
            let asked = gateway.offloads().counts(index as u16);
            let offload = asked.by_word().filter(|_| stream.offload.is_some());
            StreamStatus {
                name: stream.name.to_string(),
                plan: plan.to_string(),
                reason: plan.why(),
                offload: offload.map(|(word, count)| (word.to_owned(), count)).collect(),
                kept: fates.kept,
                folded: fates.folded,
                filtered: fates.filtered,
                undecodable: fates.undecodable,
                undecodable_by: by_reason(gateway.ingest().undecodable(index as u16)),
                aggregates: fates.aggregates,
                verdicts: fates.verdicts,
                windows: fates.windows,
                samples: samples(&counts[index]),
            }
        })
        .collect()
}

fn lane(now_us: u64, gateway: &Gateway, class: Class) -> LaneStatus {
    let (status, counters) = (gateway.lanes().status(class), gateway.lanes().counters(class));
    LaneStatus {
        class: class.name().to_owned(),
        records: status.records,
        bytes: status.bytes,
        memory_bytes: status.memory_bytes,
        under_way_bytes: status.under_way_bytes,
        oldest_age_us: status.oldest_us.map(|oldest| now_us.saturating_sub(oldest)),
        records_total: counters.records,
        payload_bytes: counters.payload_bytes,
        acked: counters.acked,
        thinned: counters.thinned,
        thinned_blocks: counters.thinned_blocks,
        evicted: counters.evicted,
        expired: counters.expired,
        corrupt: counters.corrupt,
        spilled: counters.spilled,
        sent_blocks: counters.sent_blocks,
        sent_bytes: counters.sent_bytes,
        repeated_blocks: counters.repeated_blocks,
    }
}

fn uplink(now_us: u64, gateway: &Gateway, index: usize, base: &UplinkStatus, path: &PathStats) -> UplinkStatus {
    let session = &gateway.uplinks()[index];
    let estimate = gateway.health()[index].estimate(now_us);
    let counters = session.counters();
    let health = &gateway.health()[index];
    let budget = gateway.budgets().nth(index).flatten();
    let month = budget.map(weir_logic::budget::MonthBudget::spent_of);
    let probes = health.cold().map(|cold| cold.counters()).unwrap_or_default();
    UplinkStatus {
        name: base.name.clone(),
        up: session.is_up(),
        last_down: session.last_down().map(ToString::to_string),
        heartbeat_rtt_us: session.rtt_us(),
        rtt_us: path.rtt_us,
        cwnd_bytes: path.cwnd_bytes,
        lost_packets: path.lost_packets,
        sent_bytes: path.sent_bytes,
        received_bytes: path.received_bytes,
        state: estimate.state.name().to_owned(),
        goodput_bps: estimate.goodput_bps as u64,
        capacity_bps: estimate.capacity_bps as u64,
        loss: estimate.loss,
        confidence: estimate.confidence,
        advice: gateway.advice(index),
        cloud_load: session.load().level().name().to_owned(),
        cloud_queue_percent: session.load().queue_percent.into(),
        breaker: breaker(estimate.breaker).to_owned(),
        breaker_reason: health.breaker().reason().map(|reason| reason.to_string()),
        month_used_bytes: month.map(|(used, _)| used),
        month_bytes: month.map(|(_, limit)| limit),
        paced: budget.map_or(0, |budget| budget.counters().paced),
        probes: probes.probes,
        probe_bytes: probes.used_bytes,
        attempts: counters.attempts,
        ups: counters.ups,
        downs: counters.downs,
        unknown_messages: counters.unknown_messages,
        questions: counters.questions,
        questions_refused: counters.questions_refused,
    }
}

fn breaker(state: BreakerState) -> &'static str {
    match state {
        BreakerState::Closed => "closed",
        BreakerState::HalfOpen { .. } => "half-open",
        BreakerState::Open { .. } => "open",
    }
}

fn graph(gateway: &Gateway) -> GraphStatus {
    let FederationCounts { published, advice_refused, advice_ignored } = gateway.federation_counts();
    let PublisherCounters { fulls, deltas, bytes, too_long, .. } = published;
    GraphStatus { fulls, deltas, bytes, too_long, advice_refused, advice_ignored }
}

fn broker(view: &BrokerView<'_>) -> BrokerStatus {
    let BrokerView { name, class, up, generation, in_flight, packet_ids, last_down, counters } = view;
    BrokerStatus {
        name: name.to_string(),
        class: class.name().to_owned(),
        up: *up,
        generation: *generation,
        in_flight: *in_flight as u64,
        packet_ids: *packet_ids as u64,
        last_down: (*last_down).to_owned(),
        attempts: counters.attempts,
        connects: counters.connects,
        sessions_resumed: counters.sessions_resumed,
        messages: counters.messages,
        payload_bytes: counters.payload_bytes,
        redelivered: counters.redelivered,
        deduplicated: counters.deduplicated,
        others: counters.others,
        unusable: counters.unusable,
        acks: counters.acks,
        filters_refused: counters.filters_refused,
        pauses_inflight: counters.pauses_inflight,
    }
}

fn price(gateway: &Gateway) -> PlanStatus {
    let price = gateway.price();
    let name = |stream: u16| gateway.policy().streams.get(usize::from(stream)).map(|stream| stream.name.to_string());
    PlanStatus {
        version: gateway.plan().version,
        price: price.lambda,
        wanted_bytes: price.wanted_bytes as u64,
        forecast_bytes: price.forecast_bytes as u64,
        waiting_bytes: price.waiting_bytes as u64,
        next_stream: price.marginal.and_then(name),
        routes: routes(gateway),
        changes: gateway.changes().total(),
    }
}

fn routes(gateway: &Gateway) -> BTreeMap<String, Vec<String>> {
    let name = |&uplink: &u8| gateway.policy().uplinks[usize::from(uplink)].name.to_string();
    let of = |class: Class| gateway.plan().uplinks[class.index()].iter().map(name).collect();
    Class::ALL.into_iter().map(|class| (class.name().to_owned(), of(class))).collect()
}

fn model((name, stats): &(String, Stats)) -> ModelStatus {
    ModelStatus {
        name: name.clone(),
        queued: stats.queued,
        rows: stats.rows,
        given_up: stats.given_up,
        errors: stats.errors,
        non_finite: stats.non_finite,
        state_devices: stats.state.devices,
        state_resets: stats.state.resets,
        state_evicted: stats.state.evicted,
        refused: stats.refused,
        batches: stats.batches,
        batch_us_total: stats.batch_us_total,
    }
}

fn inspected(now_us: u64, gateway: &Gateway) -> Vec<InspectedStatus> {
    let status = |message: &weir_logic::ingest::Inspected| InspectedStatus {
        age_us: now_us.saturating_sub(message.at_us),
        topic: message.topic.clone(),
        reason: message.reason.to_owned(),
        detail: message.detail.clone(),
        payload: String::from_utf8_lossy(&message.payload).into_owned(),
    };
    gateway.ingest().inspected().map(status).collect()
}
