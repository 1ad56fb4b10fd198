//! All metrics of the box, in one place: names, units and labels.

use weir_host::admin::MetricsText;

use crate::status::{
    AuditStatus, BrokerStatus, CheckedStatus, LaneStatus, ModelStatus, PoolStatus, Status, StreamStatus, UplinkStatus,
};

/// Name, help and value of a metric that each part of one kind has.
struct Each<T, V>(&'static str, &'static str, fn(&T) -> V);

/// The text for `/metrics`.
pub(crate) fn text(status: &Status) -> String {
    let mut out = MetricsText::new();
    process(status, &mut out);
    ingest(status, &mut out);
    brokers(status, &mut out);
    streams(status, &mut out);
    lanes(status, &mut out);
    plan(status, &mut out);
    policy(status, &mut out);
    graph(status, &mut out);
    uplinks(status, &mut out);
    models(status, &mut out);
    updates(status, &mut out);
    offload(status, &mut out);
    audits(status, &mut out);
    out.finish()
}

fn process(status: &Status, out: &mut MetricsText) {
    out.gauge("weir_service_seconds", "Time in service over all runs.", status.service_us as f64 / 1e6);
    out.gauge("weir_clock_trusted", "1 if the wall clock is trusted.", f64::from(u8::from(status.wall_trusted)));
    out.gauge("weir_buffer_memory_bytes", "Bytes that lanes hold in memory.", status.memory_bytes as f64);
    out.counter(
        "weir_buffer_memory_full_total",
        "Times that sockets were not read because memory or the queue of windows was full.",
        status.memory_full,
    );
    let early = status.early_commit_bytes as f64;
    out.gauge("weir_buffer_early_commit_bytes", "Flash that commits ahead of their interval may write now.", early);
    out.gauge("weir_buffer_disk_full", "1 if the disk refuses data.", f64::from(u8::from(status.disk_full)));
    let failing = f64::from(u8::from(status.commit_failing));
    out.gauge("weir_buffer_commit_failing", "1 if the last transaction failed and none has worked since.", failing);
    out.gauge("weir_buffer_damaged_count", "Blocks that could not be read at start.", status.damaged_blocks as f64);
    out.gauge("weir_buffer_voids_count", "Voids the cloud has not acknowledged.", status.voids as f64);
    let relabelled = "Voids told with the reason of a later one, because there were too many.";
    out.counter("weir_buffer_voids_relabelled_total", relabelled, status.voids_relabelled);
    out.counter("weir_buffer_commits_total", "Transactions committed.", status.store.commits);
    out.counter("weir_buffer_commit_failures_total", "Transactions that failed.", status.store.commit_failures);
    out.counter("weir_buffer_flash_bytes_total", "Bytes written to flash.", status.store.flash_bytes);
    out.gauge("weir_buffer_file_bytes", "Length of the buffer's file.", status.store.file_bytes as f64);
}

fn policy(status: &Status, out: &mut MetricsText) {
    let p = &status.policy;
    out.gauge("weir_policy_version", "Version of the policy in force; 0 for the box's own configuration.", p.version as f64);
    out.gauge("weir_policy_trial_version", "Version of the policy on trial; 0 for none.", p.trial_version.unwrap_or(0) as f64);
    let changes = p.changes.iter().map(|(state, &count)| ([("state", state.as_str())], count));
    out.counters("weir_policy_changes_total", "What became of policies that the cloud offered.", changes);
}

fn ingest(status: &Status, out: &mut MetricsText) {
    let i = &status.ingest;
    out.gauge("weir_ingest_connections_count", "MQTT connections.", i.connections as f64);
    out.gauge("weir_ingest_unacknowledged_count", "Messages that wait for their PUBACK.", i.unacknowledged as f64);
    out.gauge("weir_ingest_windows_pending_count", "Windows being scored.", i.windows_pending as f64);
    out.counter("weir_ingest_payload_bytes_total", "Payload bytes of messages.", i.payload_bytes);
    let messages = [("0", i.messages_qos0), ("1", i.messages_qos1)].map(|(qos, count)| ([("qos", qos)], count));
    out.counters("weir_ingest_messages_total", "Messages by QoS.", messages);
    out.counter("weir_ingest_duplicates_total", "Messages with the DUP flag.", i.duplicates);
    out.counter("weir_ingest_pubacks_total", "PUBACKs sent.", i.pubacks);
    out.counter("weir_ingest_connections_total", "Connections accepted.", i.connections_total);
    out.counter("weir_ingest_takeovers_total", "Connections taken over by a newer one.", i.taken_over);
    let refused = [("too_many", i.connections_refused), ("credentials", i.connects_refused), ("protocol", i.protocol_errors)]
        .map(|(reason, count)| ([("reason", reason)], count));
    out.counters("weir_ingest_connections_refused_total", "Connections refused or closed, by reason.", refused);
    let unusable = [("unmatched", i.unmatched), ("denied", i.denied), ("device_refused", i.devices_refused)]
        .map(|(reason, count)| ([("reason", reason)], count));
    out.counters("weir_ingest_unusable_total", "Messages that no stream took, by reason.", unusable);
    let limits = i.limits.iter().map(|(reason, &count)| ([("reason", reason.as_str())], count));
    out.counters("weir_ingest_limits_total", "Clients refused, closed or held back, by reason.", limits);
    let early = i.early_acks.iter().map(|(reason, &count)| ([("reason", reason.as_str())], count));
    let help = "Messages acknowledged before the record that their stream wanted to wait for, by reason.";
    out.counters("weir_ingest_early_acks_total", help, early);
    let sparkplug = i.sparkplug.iter().map(|(word, &count)| ([("count", word.as_str())], count));
    out.counters("weir_ingest_sparkplug_total", "What was heard of edge nodes of Sparkplug B.", sparkplug);
    out.counter("weir_ingest_topics_evicted_total", "Topics forgotten to make room for others.", i.topics_evicted);
    out.counter("weir_ingest_verdicts_total", "Verdicts given.", i.verdicts);
    out.counter("weir_ingest_verdict_errors_total", "Windows that could not be scored.", i.verdict_errors);
}

fn brokers(status: &Status, out: &mut MetricsText) {
    let gauges: [Each<BrokerStatus, f64>; 4] = [
        Each("weir_broker_up", "1 while it is connected and subscribed.", |b| f64::from(u8::from(b.up))),
        Each("weir_broker_generation_count", "Number of the present or last connection.", |b| b.generation as f64),
        Each("weir_broker_in_flight_count", "Messages that wait for their acknowledgement.", |b| b.in_flight as f64),
        Each("weir_broker_packet_ids_count", "Packet ids of QoS 2 that are not released.", |b| b.packet_ids as f64),
    ];
    for Each(name, help, value) in gauges {
        out.gauges(name, help, status.brokers.iter().map(|b| ([("broker", &*b.name), ("class", &*b.class)], value(b))));
    }
    let counters: [Each<BrokerStatus, u64>; 11] = [
        Each("weir_broker_attempts_total", "Attempts to connect.", |b| b.attempts),
        Each("weir_broker_connects_total", "Connections on which it let us in.", |b| b.connects),
        Each("weir_broker_sessions_resumed_total", "Connections whose session it had kept.", |b| b.sessions_resumed),
        Each("weir_broker_payload_bytes_total", "Payload bytes of messages.", |b| b.payload_bytes),
        Each("weir_broker_redelivered_total", "Messages that it sent again (DUP).", |b| b.redelivered),
        Each("weir_broker_deduplicated_total", "Messages that were known already.", |b| b.deduplicated),
        Each("weir_broker_others_total", "Messages for streams that other clients take.", |b| b.others),
        Each("weir_broker_unusable_total", "Messages too long or on an impossible topic.", |b| b.unusable),
        Each("weir_broker_acks_total", "PUBACKs and PUBRECs.", |b| b.acks),
        Each("weir_broker_filters_refused_total", "Topic filters refused, or granted with a lower QoS.", |b| b.filters_refused),
        Each("weir_broker_pauses_inflight_total", "Times that too many messages were unacknowledged.", |b| b.pauses_inflight),
    ];
    for Each(name, help, value) in counters {
        out.counters(name, help, status.brokers.iter().map(|b| ([("broker", &*b.name), ("class", &*b.class)], value(b))));
    }
    let messages = status.brokers.iter().flat_map(|b| {
        let by_qos = ["0", "1", "2"].into_iter().zip(b.messages);
        by_qos.map(|(qos, count)| ([("broker", b.name.as_str()), ("class", b.class.as_str()), ("qos", qos)], count))
    });
    out.counters("weir_broker_messages_total", "Messages by QoS.", messages);
}

fn streams(status: &Status, out: &mut MetricsText) {
    let fates = |s: &StreamStatus| {
        [
            ("kept", s.kept),
            ("folded", s.folded),
            ("filtered", s.filtered),
            ("undecodable", s.undecodable),
            ("aggregate", s.aggregates),
            ("verdict", s.verdicts),
            ("window", s.windows),
        ]
    };
    let samples = status
        .streams
        .iter()
        .flat_map(|stream| fates(stream).map(|(fate, count)| ([("stream", stream.name.as_str()), ("fate", fate)], count)));
    let counts = status.streams.iter().flat_map(|stream| {
        stream.samples.iter().map(|(word, &count)| ([("stream", stream.name.as_str()), ("count", word.as_str())], count))
    });
    out.counters(
        "weir_stream_samples_total",
        "Samples on their way into windows and aggregates, by what became of them.",
        counts,
    );
    let undecodable = status.streams.iter().flat_map(|stream| {
        let by_reason = stream.undecodable_by.iter();
        by_reason.map(|(reason, &count)| ([("stream", stream.name.as_str()), ("reason", reason.as_str())], count))
    });
    out.counters("weir_stream_undecodable_total", "Messages whose payload did not decode, by reason.", undecodable);
    out.counters("weir_stream_fates_total", "What became of messages, and what was recorded instead.", samples);
}

fn lanes(status: &Status, out: &mut MetricsText) {
    let gauges: [Each<LaneStatus, f64>; 5] = [
        Each("weir_lane_records_count", "Records held.", |l| l.records as f64),
        Each("weir_lane_bytes", "Bytes of blocks held.", |l| l.bytes as f64),
        Each("weir_lane_memory_bytes", "Bytes held in memory.", |l| l.memory_bytes as f64),
        Each("weir_lane_under_way_bytes", "Bytes sent and not acknowledged.", |l| l.under_way_bytes as f64),
        Each("weir_lane_oldest_seconds", "Age of the oldest record.", |l| l.oldest_age_us.unwrap_or(0) as f64 / 1e6),
    ];
    for Each(name, help, value) in gauges {
        out.gauges(name, help, status.lanes.iter().map(|lane| ([("class", lane.class.as_str())], value(lane))));
    }
    let counters: [Each<LaneStatus, u64>; 10] = [
        Each("weir_lane_records_total", "Records taken in.", |l| l.records_total),
        Each("weir_lane_payload_bytes_total", "Payload bytes taken in.", |l| l.payload_bytes),
        Each("weir_lane_acked_total", "Records the cloud acknowledged.", |l| l.acked),
        Each("weir_lane_thinned_total", "Records left out, for the price of their bytes or for want of room.", |l| l.thinned),
        Each("weir_lane_thinned_blocks_total", "Blocks thinned where they lie, for want of room.", |l| l.thinned_blocks),
        Each("weir_lane_evicted_total", "Records evicted.", |l| l.evicted),
        Each("weir_lane_expired_total", "Records expired.", |l| l.expired),
        Each("weir_lane_corrupt_total", "Records whose block was unreadable.", |l| l.corrupt),
        Each("weir_lane_sent_bytes_total", "Bytes of blocks sent.", |l| l.sent_bytes),
        Each("weir_lane_spilled_total", "Records written to disk because an ack was late.", |l| l.spilled),
    ];
    for Each(name, help, value) in counters {
        out.counters(name, help, status.lanes.iter().map(|lane| ([("class", lane.class.as_str())], value(lane))));
    }
}

fn plan(status: &Status, out: &mut MetricsText) {
    let plan = &status.plan;
    out.gauge("weir_plan_version_count", "Plans that differed from the one before.", plan.version as f64);
    out.gauge("weir_plan_price", "Worth that a byte must have to be sent; 0 while all are.", plan.price);
    out.gauge("weir_plan_wanted_bytes", "Bytes that want to be sent within the horizon.", plan.wanted_bytes as f64);
    out.gauge("weir_plan_forecast_bytes", "Bytes that the uplink is forecast to carry in it.", plan.forecast_bytes as f64);
}

fn graph(status: &Status, out: &mut MetricsText) {
    let graph = &status.graph;
    let digests = [("full", graph.fulls), ("delta", graph.deltas)].map(|(kind, count)| ([("kind", kind)], count));
    out.counters("weir_graph_digests_total", "Digests of the box's part of the health graph, sent.", digests);
    out.counter("weir_graph_digest_bytes_total", "Their bytes.", graph.bytes);
    out.counter("weir_graph_digests_too_long_total", "Digests over the limit, not sent.", graph.too_long);
    out.counter("weir_graph_advice_refused_total", "Advice that could not be read.", graph.advice_refused);
    let ignored = "Items of advice that were not understood, or too many.";
    out.counter("weir_graph_advice_ignored_total", ignored, graph.advice_ignored);
}

fn uplinks(status: &Status, out: &mut MetricsText) {
    let gauges: [Each<UplinkStatus, f64>; 10] = [
        Each("weir_uplink_month_used_bytes", "Used of the month's budget; 0 without one.", |u| {
            u.month_used_bytes.unwrap_or(0) as f64
        }),
        Each("weir_uplink_up", "1 while a session is up.", |u| f64::from(u8::from(u.up))),
        Each("weir_uplink_rtt_seconds", "Smoothed round trip.", |u| u.rtt_us as f64 / 1e6),
        Each("weir_uplink_cwnd_bytes", "Congestion window.", |u| u.cwnd_bytes as f64),
        Each("weir_uplink_goodput_bits_per_second", "Delivered in the last seconds.", |u| u.goodput_bps as f64),
        Each("weir_uplink_capacity_bits_per_second", "Carried as a rule.", |u| u.capacity_bps as f64),
        Each("weir_uplink_loss_ratio", "Packets lost in the last seconds.", |u| u.loss),
        Each("weir_uplink_confidence_ratio", "How far the estimates may be trusted.", |u| u.confidence),
        Each("weir_uplink_cloud_queue_ratio", "How full the cloud says its queue is.", |u| {
            u.cloud_queue_percent as f64 / 100.0
        }),
        Each("weir_uplink_advice_ratio", "How much slower it is taken to be, by what neighbours report.", |u| u.advice),
    ];
    for Each(name, help, value) in gauges {
        out.gauges(name, help, status.uplinks.iter().map(|uplink| ([("uplink", uplink.name.as_str())], value(uplink))));
    }
    let counters: [Each<UplinkStatus, u64>; 9] = [
        Each("weir_uplink_paced_total", "Times that the month's pace closed it to all but critical.", |u| u.paced),
        Each("weir_uplink_probes_total", "Looks at a cold uplink.", |u| u.probes),
        Each("weir_uplink_probe_bytes_total", "What looking at a cold uplink cost.", |u| u.probe_bytes),
        Each("weir_uplink_attempts_total", "Attempts to connect.", |u| u.attempts),
        Each("weir_uplink_sessions_total", "Sessions that came up.", |u| u.ups),
        Each("weir_uplink_downs_total", "Sessions that went down.", |u| u.downs),
        Each("weir_uplink_unknown_messages_total", "Messages of a kind this version does not know.", |u| u.unknown_messages),
        Each("weir_uplink_questions_total", "Questions from the cloud.", |u| u.questions),
        Each("weir_uplink_questions_refused_total", "Questions that were too long or too many.", |u| u.questions_refused),
    ];
    for Each(name, help, value) in counters {
        out.counters(name, help, status.uplinks.iter().map(|uplink| ([("uplink", uplink.name.as_str())], value(uplink))));
    }
}

fn offload(status: &Status, out: &mut MetricsText) {
    let offload = &status.offload;
    let windows = status.streams.iter().flat_map(|stream| {
        stream.offload.iter().map(|(word, &count)| ([("stream", stream.name.as_str()), ("fate", word.as_str())], count))
    });
    out.counters("weir_offload_windows_total", "What became of windows that a pool was to be asked about.", windows);
    out.gauge("weir_offload_in_flight_count", "Requests under way.", offload.in_flight as f64);
    out.gauge("weir_offload_hour_requests_count", "Requests of the last hour.", offload.hour_requests.0 as f64);
    out.gauge("weir_offload_hour_bytes", "Bytes of their windows.", offload.hour_bytes.0 as f64);
    out.counter("weir_offload_pools_ignored_total", "Pools beyond what is remembered.", offload.pools_ignored);
    let gauges: [Each<PoolStatus, f64>; 4] = [
        Each("weir_pool_reached", "1 if an uplink that is up leads to it.", |p| f64::from(u8::from(p.reached))),
        Each("weir_pool_open", "1 while its breaker is not closed.", |p| f64::from(u8::from(p.breaker != "closed"))),
        Each("weir_pool_answer_seconds", "How long its answers take; 0 before the first.", |p| {
            p.answer_us.unwrap_or(0) as f64 / 1e6
        }),
        Each("weir_pool_queue_ratio", "How full the cloud says its queue is.", |p| p.queue_percent as f64 / 100.0),
    ];
    for Each(name, help, value) in gauges {
        out.gauges(name, help, offload.pools.iter().map(|pool| ([("pool", pool.name.as_str())], value(pool))));
    }
    let opened = offload.pools.iter().map(|pool| ([("pool", pool.name.as_str())], pool.breaker_opened));
    out.counters("weir_pool_breaker_opened_total", "Times that its breaker opened.", opened);
}

fn updates(status: &Status, out: &mut MetricsText) {
    let forbidden = f64::from(u8::from(status.models_forbidden));
    out.gauge("weir_models_forbidden", "1 if models have taken the box down too often, and it runs without them.", forbidden);
    let unshown = "Batches that a model on trial was not shown, because it had not finished those before.";
    out.counter("weir_models_unshown_total", unshown, status.windows_unshown);
    let tasks = || status.updates.iter().map(|update| (update, [("task", update.task.as_str())]));
    let help = "Version of the model that answers a task; 0 for the configuration's file.";
    out.gauges("weir_models_version", help, tasks().map(|(update, labels)| (labels, update.answers as f64)));
    let help = "Version of the model on trial; 0 for none.";
    let trials = tasks().map(|(update, labels)| (labels, update.trial.unwrap_or(0) as f64));
    out.gauges("weir_models_trial_version", help, trials);
    let changes = status.updates.iter().flat_map(|update| {
        let labels = |change| [("task", update.task.as_str()), ("change", change)];
        update.changes.iter().map(move |(change, &count)| (labels(change.as_str()), count))
    });
    out.counters("weir_models_changes_total", "What became of models that came to the box.", changes);
    let fetch = &status.fetch;
    let offers = [("offered", fetch.offered), ("refused", fetch.refused), ("fetched", fetch.packages)];
    let offers = offers.map(|(state, count)| ([("state", state)], count));
    out.counters("weir_models_offers_total", "Models that the cloud offered, refused here, and fetched.", offers);
    out.counter("weir_models_fetched_bytes_total", "Bytes of models that came from the cloud.", fetch.bytes);
    out.counter("weir_models_chunks_total", "Parts of models that came from the cloud.", fetch.chunks);
    out.counter("weir_models_chunk_failures_total", "Requests for parts that brought none.", fetch.failures);
    for (name, help, (used, limit)) in [
        ("weir_models_day_bytes", "Bytes that models took of the present day's budget, and that.", fetch.day_bytes),
        ("weir_models_month_bytes", "The same of 30 days.", fetch.month_bytes),
    ] {
        out.gauges(name, help, [("used", used), ("limit", limit)].map(|(what, bytes)| ([("what", what)], bytes as f64)));
    }
}

fn audits(status: &Status, out: &mut MetricsText) {
    // A stream remembers a few pairs of versions, so these labels are bounded.
    let groups: Vec<([(&str, &str); 4], &CheckedStatus)> = status
        .audits
        .iter()
        .flat_map(|audit| {
            [("audited", &audit.audited), ("doubted", &audit.doubted)].map(|(group, checked)| {
                let AuditStatus { stream, local, remote, .. } = audit;
                (
                    [("stream", stream.as_str()), ("local", local.as_str()), ("remote", remote.as_str()), ("group", group)],
                    checked,
                )
            })
        })
        .collect();
    let counters: [Each<CheckedStatus, u64>; 3] = [
        Each("weir_audit_answered_total", "Windows that the box's model and a pool's answered.", |c| c.answered),
        Each("weir_audit_agreed_total", "Windows, of those, on which both agree.", |c| c.agreed),
        Each("weir_audit_judged_total", "Windows, of those, whose truth was told.", |c| c.truth),
    ];
    for Each(name, help, value) in counters {
        out.counters(name, help, groups.iter().map(|(labels, checked)| (*labels, value(checked))));
    }
    let accuracies = groups.iter().flat_map(|(labels, checked)| {
        let [stream, local, remote, group] = *labels;
        let of = [("local", checked.local_accuracy), ("remote", checked.remote_accuracy)];
        of.into_iter().filter_map(move |(who, accuracy)| Some(([stream, local, remote, group, ("who", who)], accuracy?[0])))
    });
    out.gauges("weir_audit_accuracy_ratio", "How often who is right, where the truth was told.", accuracies);
    let present = status.audits.iter().filter(|audit| audit.present);
    let thresholds = present.filter_map(|audit| Some(([("stream", audit.stream.as_str())], f64::from(audit.threshold?))));
    out.gauges("weir_audit_threshold_ratio", "Learned confidence below which a pool is asked.", thresholds);
    let limits = [
        ("tallies_forgotten", status.audit_limits.tallies_forgotten),
        ("answers_forgotten", status.audit_limits.answers_forgotten),
        ("truths_unmatched", status.audit_limits.truths_unmatched),
    ];
    out.counters(
        "weir_audit_limits_total",
        "What of audits found no room.",
        limits.map(|(reason, count)| ([("reason", reason)], count)),
    );
}

fn models(status: &Status, out: &mut MetricsText) {
    let counters: [Each<ModelStatus, u64>; 7] = [
        Each("weir_infer_windows_total", "Windows scored.", |m| m.rows),
        Each("weir_infer_errors_total", "Windows that failed.", |m| m.errors),
        Each("weir_infer_non_finite_total", "Windows with a value that is not finite, which no model has seen.", |m| {
            m.non_finite
        }),
        Each("weir_infer_state_resets_total", "States of devices dropped because of a gap or a failed window.", |m| {
            m.state_resets
        }),
        Each("weir_infer_state_evicted_total", "States of devices dropped because there were too many devices.", |m| {
            m.state_evicted
        }),
        Each("weir_infer_refused_total", "Times that a window found the queue full; it waits and is tried again.", |m| {
            m.refused
        }),
        Each("weir_infer_batches_total", "Batches run.", |m| m.batches),
    ];
    for Each(name, help, value) in counters {
        out.counters(name, help, status.models.iter().map(|model| ([("model", model.name.as_str())], value(model))));
    }
    let given_up = status.models.iter().map(|m| ([("model", m.name.as_str())], f64::from(u8::from(m.given_up))));
    out.gauges("weir_infer_given_up", "1 for a model that hangs and was given up; its windows have no verdicts.", given_up);
    out.counter("weir_infer_given_up_total", "Models that hung and were given up.", status.models_given_up);
}
