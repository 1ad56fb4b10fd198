//! Every metric of the cloud side, and nothing else.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use weir_host::admin::MetricsText;
use weir_logic::ids::{Class, PerClass};
use weir_logic::receive::Counters;

use crate::status::{ModelOfferStatus, OnePoolStatus, PoliciesStatus, PoolsStatus, Status};

/// What connections and the sink count.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) connections_opened: AtomicU64,
    pub(crate) connections_over_limit: AtomicU64,
    pub(crate) connections_not_enrolled: AtomicU64,
    pub(crate) connections_bad_identity: AtomicU64,
    pub(crate) connections_garbled: AtomicU64,
    pub(crate) connections_unpaired: AtomicU64,
    pub(crate) handshakes_failed: AtomicU64,
    pub(crate) enrolment_failures: AtomicU64,
    pub(crate) questions_asked: AtomicU64,
    pub(crate) questions_refused: AtomicU64,
    pub(crate) questions_unanswered: AtomicU64,
    pub(crate) model_chunks: AtomicU64,
    pub(crate) model_bytes: AtomicU64,
    pub(crate) model_refusals: AtomicU64,
    pub(crate) sink_transactions: AtomicU64,
    pub(crate) sink_rows: AtomicU64,
    pub(crate) sink_rows_refused: AtomicU64,
    pub(crate) sink_quarantined: AtomicU64,
    pub(crate) sink_failures: AtomicU64,
    pub(crate) sink_commit_seconds: Seconds,
}

/// A sum of time.
#[derive(Debug, Default)]
pub(crate) struct Seconds {
    us: AtomicU64,
}

impl Seconds {
    pub(crate) fn add(&self, time: Duration) {
        self.us.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn micros(&self) -> u64 {
        self.us.load(Relaxed)
    }

    fn ms(&self) -> u64 {
        self.micros() / 1_000
    }
}

impl Metrics {
    /// The text for `/metrics`.
    pub(crate) fn text(&self, status: &Status) -> String {
        let mut text = MetricsText::new();
        self.ingest(&mut text, status);
        receive(&mut text, &status.counters);
        self.sink(&mut text, status);
        let graph = &status.graph;
        text.gauge("weir_graph_owners_count", "Owners whose part of the health graph is known.", graph.owners as f64);
        text.gauge("weir_graph_bytes", "Memory that the parts take.", graph.memory_bytes as f64);
        text.gauge("weir_graph_causes_count", "Common causes of trouble that are named now.", graph.causes.len() as f64);
        text.counter("weir_graph_merges_total", "Parts, or changes of them, merged.", graph.merges);
        text.counter("weir_graph_refused_total", "Parts refused: garbage, too large, or too many.", graph.refused);
        policies(&mut text, &status.policies);
        self.models(&mut text, status);
        pools(&mut text, &status.pools);
        text.finish()
    }

    fn ingest(&self, text: &mut MetricsText, status: &Status) {
        text.gauge("weir_ingest_connections", "Open connections.", status.connections as f64);
        text.gauge("weir_ingest_gateways", "Gateways with a connection.", status.gateways_connected as f64);
        let opened = self.connections_opened.load(Relaxed);
        text.counter("weir_ingest_connections_total", "Connections of enrolled gateways.", opened);
        let refused = [
            ("over_limit", &self.connections_over_limit),
            ("not_enrolled", &self.connections_not_enrolled),
            ("bad_identity", &self.connections_bad_identity),
            ("handshake", &self.handshakes_failed),
            ("garbled", &self.connections_garbled),
            ("unpaired", &self.connections_unpaired),
        ];
        text.counters(
            "weir_ingest_connections_refused_total",
            "Connections refused or closed for what they are or said.",
            refused.map(|(reason, count)| ([("reason", reason)], count.load(Relaxed))),
        );
        for (name, help, value) in [
            ("weir_ingest_questions_total", "Questions asked of gateways.", &self.questions_asked),
            ("weir_ingest_questions_refused_total", "Questions refused because too many waited.", &self.questions_refused),
            ("weir_ingest_questions_unanswered_total", "Questions without an answer in time.", &self.questions_unanswered),
        ] {
            text.counter(name, help, value.load(Relaxed));
        }
        let failures = self.enrolment_failures.load(Relaxed);
        text.counter("weir_ingest_enrolment_failures_total", "Times the enrolment file could not be used.", failures);
    }

    fn models(&self, text: &mut MetricsText, status: &Status) {
        for (name, help, value) in [
            ("weir_model_chunks_total", "Parts of models that boxes fetched.", &self.model_chunks),
            ("weir_model_bytes_total", "Bytes of them.", &self.model_bytes),
            ("weir_model_refusals_total", "Requests for parts that are not here.", &self.model_refusals),
        ] {
            text.counter(name, help, value.load(Relaxed));
        }
        // Tasks and versions are those of the files in a folder of the operator's, at most 64.
        let offers: Vec<(String, &ModelOfferStatus)> =
            status.models.offers.iter().map(|offer| (offer.version.to_string(), offer)).collect();
        let halted = offers.iter().map(|(version, offer)| {
            ([("task", offer.task.as_str()), ("version", version.as_str())], f64::from(u8::from(offer.is_halted)))
        });
        text.gauges("weir_model_halted", "1 for a version that a gateway refused or took back.", halted);
        let gateways = offers.iter().flat_map(|(version, offer)| {
            let labels = |state| [("task", offer.task.as_str()), ("version", version.as_str()), ("state", state)];
            offer.gateways.iter().map(move |(&state, &count)| (labels(state), count as f64))
        });
        text.gauges("weir_model_gateways_count", "Gateways by what became of a version there.", gateways);
        let mut active: BTreeMap<(&str, String), f64> = BTreeMap::new();
        for model in status.gateways.iter().flat_map(|gateway| &gateway.models) {
            *active.entry((&model.task, model.active.to_string())).or_default() += 1.0;
        }
        let active = active.iter().take(ACTIVE_SHOWN_MAX);
        let active = active.map(|((task, version), count)| ([("task", *task), ("version", version.as_str())], *count));
        let help =
            "Connected gateways by the version of their model that has proved itself; 0 for the file of their configuration.";
        text.gauges("weir_model_active_gateways_count", help, active);
        let problems = status.models.problems.len() as f64;
        text.gauge("weir_model_problems_count", "Files of models that are not offered; see the status.", problems);
    }

    fn sink(&self, text: &mut MetricsText, status: &Status) {
        text.gauge("weir_sink_queue_bytes", "Blocks waiting for the database.", status.sink.queue_bytes as f64);
        text.gauge("weir_sink_stalled", "1 while the database takes nothing.", f64::from(u8::from(status.sink.stalled)));
        for (name, help, value) in [
            ("weir_sink_transactions_total", "Transactions committed.", &self.sink_transactions),
            ("weir_sink_rows_total", "Rows of records written.", &self.sink_rows),
            ("weir_sink_rows_refused_total", "Rows whose key was there already.", &self.sink_rows_refused),
            ("weir_sink_blocks_quarantined_total", "Blocks that could not be read.", &self.sink_quarantined),
            ("weir_sink_failures_total", "Transactions that failed.", &self.sink_failures),
        ] {
            text.counter(name, help, value.load(Relaxed));
        }
        let ms = self.sink_commit_seconds.ms();
        text.counter("weir_sink_commit_milliseconds_total", "Time spent in committed transactions.", ms);
    }
}

/// Tasks and versions of models shown at most: boxes say what they are, and labels are to stay few.
const ACTIVE_SHOWN_MAX: usize = 256;

/// The highest version is what an operator waits for.
fn policies(text: &mut MetricsText, status: &PoliciesStatus) {
    let newest = status.policies.first();
    let version = newest.map_or(0, |policy| policy.version);
    text.gauge("weir_policy_version", "Highest version of a policy that gateways are offered; 0 for none.", version as f64);
    let halted = f64::from(u8::from(newest.is_some_and(|policy| policy.is_halted)));
    text.gauge("weir_policy_halted", "1 if a gateway refused that version or took it back.", halted);
    let gateways = newest.into_iter().flat_map(|policy| &policy.gateways);
    let by_state = gateways.map(|(&state, &count)| ([("state", state)], count as f64));
    text.gauges("weir_policy_gateways_count", "Gateways by what became of that version there.", by_state);
    let problems = status.problems.len() as f64;
    text.gauge("weir_policy_problems_count", "Files of policies that are not offered; see the status.", problems);
}

/// Name, help and value of a gauge that each pool has.
struct PoolGauge(&'static str, &'static str, fn(&OnePoolStatus) -> f64);

/// The text for `/metrics` of a machine that runs pools alone.
pub(crate) fn pools_text(status: &PoolsStatus) -> String {
    let mut text = MetricsText::new();
    pools(&mut text, status);
    text.finish()
}

fn pools(text: &mut MetricsText, status: &PoolsStatus) {
    let limits = [("over_limit", status.over_limit), ("garbled", status.garbled)];
    text.counters(
        "weir_pool_requests_unread_total",
        "Requests that reached no pool, by reason.",
        limits.map(|(reason, count)| ([("reason", reason)], count)),
    );
    let machines =
        status.machines.iter().map(|(address, &is_up)| ([("machine", address.as_str())], f64::from(u8::from(is_up))));
    text.gauges("weir_pool_machine_up", "1 for a machine with pools that is connected, 0 for one that is not.", machines);
    let gauges: [PoolGauge; 5] = [
        PoolGauge("weir_pool_queued_count", "Windows that wait.", |pool| pool.queued as f64),
        PoolGauge("weir_pool_running_count", "Windows that run.", |pool| pool.running as f64),
        PoolGauge("weir_pool_answer_p50_seconds", "Median time to an answer, of the last ones.", |pool| {
            pool.p50_us as f64 / 1e6
        }),
        PoolGauge("weir_pool_answer_p95_seconds", "95th percentile of the same.", |pool| pool.p95_us as f64 / 1e6),
        PoolGauge(
            "weir_pool_refusal_p95_seconds",
            "95th percentile of a window's time in the pool until it is refused.",
            |pool| pool.refused_p95_us as f64 / 1e6,
        ),
    ];
    for PoolGauge(name, help, value) in gauges {
        text.gauges(name, help, status.pools.iter().map(|pool| ([("pool", pool.name.as_str())], value(pool))));
    }
    // Another machine counts for itself.
    let ours = || status.pools.iter().filter(|pool| pool.machine.is_none());
    let served = ours()
        .flat_map(|pool| pool.served.iter().map(|(&class, &count)| ([("pool", pool.name.as_str()), ("class", class)], count)));
    text.counters("weir_pool_served_total", "Windows that ran, by class.", served);
    let refused = ours().flat_map(|pool| {
        let of = |(reason, by_class): (&&'static str, &BTreeMap<&'static str, u64>)| (*reason, by_class.values().sum::<u64>());
        let denied = [("denied", pool.denied), ("failed", pool.failed), ("cancelled", pool.cancelled)];
        let all: Vec<(&str, u64)> = pool.refused.iter().map(of).chain(denied).collect();
        all.into_iter().map(|(reason, count)| ([("pool", pool.name.as_str()), ("reason", reason)], count))
    });
    text.counters("weir_pool_refused_total", "Windows that got no answer, by reason.", refused);
    let batches = ours().map(|pool| ([("pool", pool.name.as_str())], pool.batches));
    text.counters("weir_pool_batches_total", "Batches run.", batches);
}

fn receive(text: &mut MetricsText, counters: &Counters) {
    let by_lane = |values: PerClass<u64>| Class::ALL.map(|class| ([("lane", class.name())], values[class.index()]));
    for (name, help, values) in [
        ("weir_receive_blocks_total", "Blocks handed to the sink.", counters.blocks_stored),
        ("weir_receive_blocks_bytes_total", "Bytes of all blocks that came.", counters.blocks_bytes),
        ("weir_receive_seqs_durable_total", "Sequence numbers stored or voided.", counters.seqs_durable),
    ] {
        text.counters(name, help, by_lane(values));
    }
    for (name, help, value) in [
        ("weir_receive_blocks_duplicate_total", "Blocks that were durable already.", counters.blocks_duplicate),
        ("weir_receive_blocks_pending_total", "Blocks that came again before their commit.", counters.blocks_pending),
        ("weir_receive_blocks_partial_total", "Blocks of which a part was on record.", counters.blocks_partial),
        ("weir_receive_voids_total", "Voids handed to the sink.", counters.voids_stored),
        ("weir_receive_seqs_missing_total", "Sequence numbers found missing.", counters.seqs_missing),
        ("weir_receive_seqs_late_total", "Missing sequence numbers that came after all.", counters.seqs_late),
        ("weir_receive_missing_unlisted_total", "Missing ranges over the limit of the list.", counters.missing_unlisted),
        ("weir_receive_takeovers_total", "Epochs that took over.", counters.takeovers),
        ("weir_receive_epochs_returned_total", "Superseded epochs that came back.", counters.epochs_returned),
        ("weir_receive_protocol_errors_total", "Sessions closed for what they said.", counters.protocol_errors),
        ("weir_receive_controls_ignored_total", "Control messages of kinds not expected.", counters.controls_ignored),
    ] {
        text.counter(name, help, value);
    }
}
