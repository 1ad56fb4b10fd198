//! From a message to what is kept of it: decode, rules, windows, aggregates, records.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::arrival::{Rejected, Waiting};
use super::escalate::Escalated;
use super::{EarlyAcks, Fate, FateCounters, Moment, SampleCounts};
use crate::audit::Audits;
use crate::block::{NewRecord, RecordKind};
use crate::ids::Class;
use crate::lanes::Lanes;
use crate::mqtt::{Ack, DeviceIndex, PubAck, Publish};
use crate::offload::OffloadPolicy;
use crate::payload::{DecodeError, Decoder, Heard, PayloadFormat, Samples, SparkplugCounters, SparkplugNodes, SparkplugTopic};
use crate::plan::{Placement, Plan};
use crate::policy::{StreamFidelity, StreamPolicy};
use crate::window::{Aggregate, Aggregator, Keep, KeepRules, Keeper, Windower};

/// A window to be scored.
#[derive(Debug, Clone, PartialEq)]
pub struct InferJob {
    /// Comes back with the verdict.
    pub job: u64,
    /// [`crate::policy::StreamModel::index`].
    pub model: u16,
    /// Its device of its stream: a recurrent model goes on from that one's window before.
    pub source: u32,
    /// Time of its first sample, by the clock of the device's samples.
    pub start_us: i64,
    /// Time of its last sample.
    pub end_us: i64,
    /// `f32[channels][length]`, as sampled.
    pub window: Vec<f32>,
}

/// What came of an [`InferJob`].
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The job's number.
    pub job: u64,
    /// Its window, as it was given: it may be kept.
    pub window: Vec<f32>,
    /// What the model says; `None` if it failed.
    pub verdict: Option<Verdict>,
}

/// What a model said of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Class label, or the anomaly word; empty if the model has none.
    pub label: Arc<str>,
    /// The model's score.
    pub score: f32,
    /// How sure it is, 0 to 1.
    pub confidence: f32,
    /// Who said it, if that is another version than the stream's policy names.
    pub by: Option<Arc<ModelName>>,
}

/// Name and version of a model, as verdicts carry them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    /// As its manifest calls it.
    pub name: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
}

/// A stream as the data plane sees it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) policy: StreamPolicy,
    decoder: Decoder,
    opaque: bool,
    pub(super) counters: FateCounters,
    /// By reason, of which the decoder knows a few.
    undecodable: BTreeMap<&'static str, u64>,
}

/// One device of one stream.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) stream: u16,
    pub(super) device: Arc<str>,
    keeper: Keeper,
    windower: Option<Windower>,
    aggregator: Option<Aggregator>,
    /// Messages folded into a record that is still open, if their stream waits for it.
    waiting: Vec<Waiting>,
}

/// The sources of a topic's messages and of the samples in them. They differ for Sparkplug B, where births and data of a device
/// come on topics of their own.
#[derive(Debug, Clone, Copy)]
struct SourcePair {
    message: u32,
    samples: u32,
}

/// A window that is being scored.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) job: u64,
    pub(super) source: u32,
    pub(super) start_us: i64,
    pub(super) end_us: i64,
    pub(super) service_time: bool,
    pub(super) channels: usize,
    pub(super) waiting: Vec<Waiting>,
}

/// Streams, their devices, and windows under way.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) streams: Vec<Stream>,
    pub(super) sources: Vec<Source>,
    by_device: HashMap<(u16, DeviceIndex), SourcePair, FixedState>,
    /// Sources of samples that come on several topics.
    by_key: HashMap<(u16, String), u32, FixedState>,
    nodes: SparkplugNodes,
    samples: Samples,
    window: Vec<f32>,
    pub(super) payload: Vec<u8>,
    next_job: u64,
    pending: VecDeque<Pending>,
    pub(super) jobs: Vec<InferJob>,
    /// Windows of streams without a model on the box.
    pub(super) remote_jobs: Vec<InferJob>,
    /// Jobs that are asked about elsewhere, and those among them that are to be.
    pub(super) escalated: BTreeMap<u64, Escalated>,
    pub(super) escalations: Vec<u64>,
    pub(super) audits: Audits,
    /// Messages whose record is now known.
    pub(super) resolved: Vec<(Waiting, Ack)>,
    pub(super) verdicts: u64,
    pub(super) verdict_errors: u64,
    pub(super) early_acks: EarlyAcks,
}

/// Windows under way at which sockets are no longer read.
pub(super) const PENDING_MAX: usize = 1_024;

impl Streams {
    pub(super) fn new(policies: &[StreamPolicy], seed: u64) -> Self {
        let truth_of =
            |stream: usize| policies.iter().any(|p| p.truth.as_ref().is_some_and(|of| usize::from(of.stream) == stream));
        let has_truth = (0..policies.len()).map(truth_of);
        let streams = policies.iter().map(Stream::new).collect();
        Streams {
            streams,
            sources: Vec::new(),
            by_device: HashMap::with_hasher(FixedState::with_seed(seed)),
            by_key: HashMap::with_hasher(FixedState::with_seed(seed)),
            nodes: SparkplugNodes::new(seed),
            samples: Samples::new(),
            window: Vec::new(),
            payload: Vec::new(),
            next_job: 1,
            pending: VecDeque::new(),
            jobs: Vec::new(),
            remote_jobs: Vec::new(),
            escalated: BTreeMap::new(),
            escalations: Vec::new(),
            audits: Audits::new(seed, has_truth),
            resolved: Vec::new(),
            verdicts: 0,
            verdict_errors: 0,
            early_acks: EarlyAcks::default(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.pending_len() >= PENDING_MAX
    }

    /// Windows that are being scored, here or elsewhere.
    pub(super) fn pending_len(&self) -> usize {
        self.pending.len() + self.escalated.len()
    }

    pub(super) fn counters(&self, stream: u16) -> FateCounters {
        self.streams[usize::from(stream)].counters
    }

    pub(super) fn undecodable(&self, stream: u16) -> &BTreeMap<&'static str, u64> {
        &self.streams[usize::from(stream)].undecodable
    }

    pub(super) fn sparkplug(&self) -> SparkplugCounters {
        self.nodes.counters()
    }

    /// For each stream, in one pass over all devices.
    pub(super) fn sample_counts(&self) -> Vec<SampleCounts> {
        let mut counts = vec![SampleCounts::default(); self.streams.len()];
        for source in &self.sources {
            let count = &mut counts[usize::from(source.stream)];
            if let Some(windower) = &source.windower {
                count.windows.add(&windower.counters());
            }
            if let Some(aggregator) = &source.aggregator {
                let of_source = aggregator.counters();
                count.aggregate_late += of_source.late;
                count.aggregate_jumps_back += of_source.jumps_back;
            }
        }
        counts
    }

    pub(super) fn set_keep(&mut self, stream: u16, keep: Option<KeepRules>) {
        self.streams[usize::from(stream)].policy.keep = keep;
        for source in self.sources.iter_mut().filter(|source| source.stream == stream) {
            source.keeper = Keeper::new();
        }
    }

    pub(super) fn set_offload(&mut self, stream: u16, offload: Option<OffloadPolicy>) {
        if self.streams[usize::from(stream)].policy.offload != offload {
            self.audits.policy_changed(stream);
        }
        self.streams[usize::from(stream)].policy.offload = offload;
    }

    /// The stream's lowest-cost way from payload to records; says when its sender is to be acknowledged.
    pub(super) fn message(
        &mut self,
        now: Moment,
        plan: &Plan,
        lanes: &mut Lanes,
        (stream_index, device, device_key): (u16, DeviceIndex, &str),
        publish: &Publish<'_>,
        waiting: Option<Waiting>,
    ) -> Result<Ack, Rejected> {
        let entry = &plan.streams[usize::from(stream_index)];
        let SourcePair { message: message_index, samples: source_index } = self.source(stream_index, device, device_key);
        let must_keep = self.decode(stream_index, publish)?;
        let stream = &mut self.streams[usize::from(stream_index)];
        let source = &mut self.sources[source_index as usize];
        let received_us = now.event_us();
        let has_values = !stream.opaque;
        if let Some(truth) = &stream.policy.truth {
            for (time_us, values) in self.samples.iter(received_us) {
                let label = values.first().and_then(|value| truth.label(*value));
                self.audits.truth(truth.stream, device_key, time_us, label.unwrap_or_default());
            }
        }
        let keep = match &stream.policy.keep {
            Some(rules) if has_values => source.keeper.keep_message(rules, &self.samples, received_us) != Keep::Fold,
            _ => entry.fidelity == StreamFidelity::Raw,
        };
        let base = NewRecord {
            source: source_index,
            stream: &stream.policy.name,
            device: &source.device,
            kind: RecordKind::Raw,
            service_time: false,
            at_us: now.service_us,
            payload: publish.payload,
        };
        let mut ack = None;
        if keep || must_keep {
            let record = NewRecord { source: message_index, device: device_key, ..base };
            let seq = lanes.push(now.service_us, entry.lane, stream_index, &record);
            ack = Some(Ack::WhenSafe { lane: entry.lane, seq });
            stream.counters.add(Fate::Kept);
        }
        let (mut folds, mut completes_window) = (false, false);
        if entry.fidelity == StreamFidelity::Aggregate && has_values {
            folds = true;
            let mut closed: Vec<Aggregate> = Vec::new();
            if let Some(spec) = &stream.policy.aggregate {
                let aggregator = source.aggregator.get_or_insert_with(|| Aggregator::new(*spec));
                aggregator.push_message(&self.samples, received_us, |aggregate| closed.push(aggregate));
            }
            let is_own_time = self.samples.time_us().is_some();
            for aggregate in closed {
                let service_time = !is_own_time && is_service_time(&aggregate);
                let seq =
                    push_aggregate(lanes, now, (entry.lane, stream_index), &base, &aggregate, service_time, &mut self.payload);
                stream.counters.add(Fate::Aggregate);
                let ack = Ack::WhenSafe { lane: entry.lane, seq };
                self.resolved.extend(source.waiting.drain(..).map(|waiting| (waiting, ack)));
            }
        }
        let model = stream.policy.model.as_ref().map(|model| (model.index, &model.window));
        let spec = match entry.placement {
            Placement::None => None,
            Placement::Local | Placement::Cascade { .. } => model,
            Placement::Offload { .. } => stream.policy.offload.as_ref().map(|offload| (0, &offload.window)),
        };
        if let Some((model, spec)) = spec.filter(|_| has_values) {
            folds |= entry.fidelity == StreamFidelity::Verdict;
            let service_time = now.wall_offset_us.is_none() && self.samples.time_us().is_none();
            let windower = source.windower.get_or_insert_with(|| Windower::new(spec.clone()));
            let is_here = !matches!(entry.placement, Placement::Offload { .. });
            let jobs = if is_here { &mut self.jobs } else { &mut self.remote_jobs };
            let (pending, next_job) = (&mut self.pending, &mut self.next_job);
            let completed = &mut completes_window;
            windower.push_message(&self.samples, received_us, &mut self.window, |window| {
                pending.push_back(Pending {
                    job: *next_job,
                    source: source_index,
                    start_us: window.start_us,
                    end_us: window.end_us,
                    service_time,
                    channels: window.channels,
                    waiting: Vec::new(),
                });
                jobs.push(InferJob {
                    job: *next_job,
                    model,
                    source: source_index,
                    start_us: window.start_us,
                    end_us: window.end_us,
                    window: window.values.to_vec(),
                });
                *next_job += 1;
                *completed = true;
            });
        }
        let wanted = waiting.filter(|_| ack.is_none() && folds && stream.policy.ack_record);
        let waits = wanted.filter(|_| source.waiting.len() < WAITING_MAX);
        self.early_acks.waiting_max += u64::from(wanted.is_some() && waits.is_none());
        source.waiting.extend(waits);
        if completes_window && let Some(last) = self.pending.back_mut() {
            // The window has its job: who is part of it waits for its verdict.
            last.waiting.append(&mut source.waiting);
        }
        if let Some(ack) = ack {
            return Ok(ack);
        }
        stream.counters.add(if folds { Fate::Folded } else { Fate::Filtered });
        Ok(if waits.is_some() { Ack::Later } else { Ack::Now(PubAck::Success) })
    }

    /// Fills `samples` from a message; says whether it is kept as it came whatever the policy.
    fn decode(&mut self, index: u16, publish: &Publish<'_>) -> Result<bool, Rejected> {
        let stream = &mut self.streams[usize::from(index)];
        let heard = match stream.decoder.sparkplug() {
            None => stream.decoder.decode(publish.payload, &mut self.samples).map(|()| None),
            Some(decoder) => match SparkplugTopic::parse(publish.topic) {
                Some(topic) => {
                    let heard = self.nodes.message((index, decoder), &topic, publish.payload, &mut self.samples);
                    heard.map(Some)
                }
                None => Err(DecodeError::SparkplugTopic),
            },
        };
        match heard {
            // Births say what later records mean, and what we lack the birth for others may understand.
            Ok(heard) => Ok(heard.is_some_and(|heard| heard != Heard::Data)),
            Err(error) => {
                stream.counters.add(Fate::Undecodable);
                let reason = error.reason();
                *stream.undecodable.entry(reason).or_default() += 1;
                Err(Rejected { reason, detail: error.to_string() })
            }
        }
    }

    fn source(&mut self, stream: u16, device: DeviceIndex, key: &str) -> SourcePair {
        if let Some(pair) = self.by_device.get(&(stream, device)) {
            return *pair;
        }
        let message = self.add_source(stream, key);
        let is_sparkplug = self.streams[usize::from(stream)].decoder.sparkplug().is_some();
        let samples = if is_sparkplug {
            // The type of message, where a wildcard matches it, is no part of the device's name.
            let levels: Vec<&str> = key.split('/').collect();
            let kind = levels.iter().position(|level| SparkplugTopic::is_kind(level));
            let levels = levels.iter().enumerate().filter(|(at, _)| Some(*at) != kind).map(|(_, level)| *level);
            let device = levels.collect::<Vec<_>>().join("/");
            match self.by_key.get(&(stream, device.clone())) {
                Some(known) => *known,
                None => {
                    let added = if device == key { message } else { self.add_source(stream, &device) };
                    self.by_key.insert((stream, device), added);
                    added
                }
            }
        } else {
            message
        };
        let pair = SourcePair { message, samples };
        self.by_device.insert((stream, device), pair);
        pair
    }

    fn add_source(&mut self, stream: u16, device: &str) -> u32 {
        self.sources.push(Source {
            stream,
            device: device.into(),
            keeper: Keeper::new(),
            windower: None,
            aggregator: None,
            waiting: Vec::new(),
        });
        (self.sources.len() - 1) as u32
    }

    /// A window was scored, or could not be.
    pub(super) fn inferred(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, scored: &Scored) {
        if let Some(pending) = self.take_pending(scored.job) {
            self.scored_here(now, plan, lanes, pending, &scored.window, scored.verdict.as_ref());
        }
    }

    pub(super) fn take_pending(&mut self, job: u64) -> Option<Pending> {
        let at = self.pending.iter().position(|pending| pending.job == job)?;
        self.pending.remove(at)
    }

    /// Closes aggregates of devices that have fallen silent; `all` closes every one, for shutdown.
    pub(super) fn close_aggregates(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, all: bool) {
        let received_us = now.event_us();
        for (index, source) in self.sources.iter_mut().enumerate() {
            if source.windower.is_some() && source.aggregator.is_none() {
                // A window may never be completed; an aggregate always closes. At a stop its messages stay without PUBACK,
                // and are sent again to the next process.
                let late = source.waiting.iter().take_while(|w| !all && w.since_us + WINDOW_WAIT_US <= now.service_us).count();
                self.early_acks.window_wait += late as u64;
                self.resolved.extend(source.waiting.drain(..late).map(|waiting| (waiting, Ack::Now(PubAck::Success))));
            }
            let Some(aggregator) = &mut source.aggregator else { continue };
            // A policy may have changed how finely the stream is kept: what is open is all that is aggregated.
            let is_used = plan.streams[usize::from(source.stream)].fidelity == StreamFidelity::Aggregate;
            let closed = if all || !is_used { aggregator.flush() } else { aggregator.close_if_older(received_us) };
            if !is_used {
                source.aggregator = None;
            }
            let Some(aggregate) = closed else { continue };
            let stream = &mut self.streams[usize::from(source.stream)];
            let lane = plan.streams[usize::from(source.stream)].lane;
            let base = NewRecord {
                source: index as u32,
                stream: &stream.policy.name,
                device: &source.device,
                kind: RecordKind::Aggregate,
                service_time: false,
                at_us: now.service_us,
                payload: &[],
            };
            let service_time = is_service_time(&aggregate);
            let seq = push_aggregate(lanes, now, (lane, source.stream), &base, &aggregate, service_time, &mut self.payload);
            stream.counters.add(Fate::Aggregate);
            let ack = Ack::WhenSafe { lane, seq };
            self.resolved.extend(source.waiting.drain(..).map(|waiting| (waiting, ack)));
        }
    }
}

/// Messages of one device that may wait for the record they are folded into; beyond it they are acknowledged at once.
const WAITING_MAX: usize = 4_096;
/// How long a message may wait for its window to be completed; then it is acknowledged as on receipt, because its sender may
/// be what keeps the window open: by waiting for each PUBACK, or by its in-flight limit.
const WINDOW_WAIT_US: u64 = 5_000_000;
/// No box has counted 30 years of service.
const SERVICE_US_MAX: i64 = 30 * 366 * 86_400 * 1_000_000;

impl Stream {
    fn new(policy: &StreamPolicy) -> Self {
        Stream {
            decoder: Decoder::new(&policy.format).expect("the configuration's check has made this decoder before"),
            opaque: matches!(policy.format, PayloadFormat::Opaque(_)),
            policy: policy.clone(),
            counters: FateCounters::default(),
            undecodable: BTreeMap::new(),
        }
    }
}

/// An aggregate's times tell which clock it was opened by, which need not be the one it is closed by: service time starts near
/// zero.
fn is_service_time(aggregate: &Aggregate) -> bool {
    aggregate.start_us < SERVICE_US_MAX
}

fn push_aggregate(
    lanes: &mut Lanes,
    now: Moment,
    (lane, stream): (Class, u16),
    base: &NewRecord<'_>,
    aggregate: &Aggregate,
    service_time: bool,
    payload: &mut Vec<u8>,
) -> u64 {
    payload.clear();
    aggregate.encode(payload);
    let record = NewRecord { kind: RecordKind::Aggregate, service_time, payload, ..*base };
    lanes.push(now.service_us, lane, stream, &record)
}
