//! What the operator asks for, checked and resolved: the pure core never sees a file or a text to parse.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{Class, PerClass};
use crate::lanes::{LanePolicy, LanesLimits};
use crate::mqtt::{ConnLimits, RouterLimits, SubscriberOptions};
use crate::offload::{OffloadLimits, OffloadPolicy};
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
    /// Brokers that messages are taken from, each once for every class of its streams.
    pub brokers: Vec<BrokerPolicy>,
    /// Ways out, the preferred one first.
    pub uplinks: Vec<UplinkPolicy>,
    /// How the price of a byte is made.
    pub price: PriceLimits,
    /// Uplinks that a critical block is sent over at the same time: 1 or 2.
    pub critical_copies: u8,
    /// What may be asked of larger models elsewhere.
    pub offload: OffloadLimits,
}

impl Policy {
    /// True if any stream says what its records are worth.
    pub fn has_values(&self) -> bool {
        self.streams.iter().any(|stream| stream.value.is_some())
    }

    /// This policy with what a running box can take over from `next`, all of it or nothing: class, fidelity, keep rules, value,
    /// zones and offload of streams; classes, meter and warmth of uplinks; price limits and copies. All else stays as it is here.
    ///
    /// # Errors
    /// See [`Misfit`]: `next` was made for another configuration.
    pub fn succeeded_by(&self, next: &Policy) -> Result<Policy, Misfit> {
        if self.streams.len() != next.streams.len() {
            return Err(Misfit::Streams { now: self.streams.len(), next: next.streams.len() });
        }
        if self.uplinks.len() != next.uplinks.len() {
            return Err(Misfit::Uplinks { now: self.uplinks.len(), next: next.uplinks.len() });
        }
        let mut policy = self.clone();
        for (stream, next) in policy.streams.iter_mut().zip(&next.streams) {
            if (&stream.name, &stream.filters, &stream.format) != (&next.name, &next.filters, &next.format) {
                return Err(Misfit::Stream { now: stream.name.clone(), next: next.name.clone() });
            }
            if next.fidelity == StreamFidelity::Aggregate && stream.aggregate.is_none() {
                return Err(Misfit::Aggregate { stream: stream.name.clone() });
            }
            // What waits in its lane is kept within the zones by its being there: it must not lose them.
            let is_bound = !stream.zones.is_empty() || !next.zones.is_empty();
            if is_bound && stream.class != next.class {
                return Err(Misfit::Bound { stream: stream.name.clone() });
            }
            (stream.class, stream.fidelity, stream.value) = (next.class, next.fidelity, next.value);
            stream.zones.clone_from(&next.zones);
            stream.keep.clone_from(&next.keep);
            stream.offload.clone_from(&next.offload);
        }
        for (uplink, next) in policy.uplinks.iter_mut().zip(&next.uplinks) {
            // Where it leads to is what the far end calls itself by now.
            if (&uplink.name, uplink.stands_in_for) != (&next.name, next.stands_in_for) {
                return Err(Misfit::Uplink { now: uplink.name.clone(), next: next.name.clone() });
            }
            (uplink.classes, uplink.meter, uplink.warm) = (next.classes, next.meter, next.warm);
        }
        (policy.price, policy.critical_copies, policy.offload) = (next.price, next.critical_copies, next.offload);
        Ok(policy)
    }
}

/// Why a policy cannot take the place of the one that runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It has more or fewer streams.
    #[error("it is for {next} streams, and the box has {now}; streams are added and removed in the box's configuration")]
    Streams {
        /// In the policy that runs.
        now: usize,
        /// In the new one.
        next: usize,
    },
    /// It has more or fewer uplinks.
    #[error("it is for {next} uplinks, and the box has {now}; uplinks are added and removed in the box's configuration")]
    Uplinks {
        /// In the policy that runs.
        now: usize,
        /// In the new one.
        next: usize,
    },
    /// A stream has another name, other filters or another format.
    #[error("name, filters or format of the stream `{now}` differ (`{next}`); they change only in the box's configuration")]
    Stream {
        /// Its name in the policy that runs.
        now: Arc<str>,
        /// Its name in the new one.
        next: Arc<str>,
    },
    /// An uplink has another name or main uplink.
    #[error("name or fallback of the uplink `{now}` differ (`{next}`); they change only in the box's configuration")]
    Uplink {
        /// Its name in the policy that runs.
        now: Arc<str>,
        /// Its name in the new one.
        next: Arc<str>,
    },
    /// A stream with zones gets another class: what waits in its lane could leave them.
    #[error("the stream `{stream}` has zones, so its class stays: what waits in its lane could leave them")]
    Bound {
        /// Its name.
        stream: Arc<str>,
    },
    /// A stream is to be aggregated, and nothing says how.
    #[error("the stream `{stream}` is to be aggregated, but the box's configuration does not say how")]
    Aggregate {
        /// Its name.
        stream: Arc<str>,
    },
}

/// One client of a broker: it takes the messages of streams of one class, so that what waits there holds up nothing else.
#[derive(Debug, Clone)]
pub struct BrokerPolicy {
    /// Name of the broker, in logs, metrics and status.
    pub name: Arc<str>,
    /// Class of its streams when it was made.
    pub class: Class,
    /// Its streams; messages for others are left to the clients that have them.
    pub streams: Vec<u16>,
    /// How to connect, and what to subscribe to.
    pub subscriber: SubscriberOptions,
    /// True if its records are written in the next group commit, whatever their lane's mode.
    pub to_disk: bool,
    /// First and longest wait between attempts to connect, microseconds.
    pub backoff_us: (u64, u64),
}

impl BrokerPolicy {
    /// Names its session in the buffer, where packet ids of QoS 2 are kept.
    pub fn session(&self) -> Arc<str> {
        format!("{}/{}", self.name, self.subscriber.client_id).into()
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
    /// Name of the ingest node that it leads to, until that says what it calls itself.
    pub ingest: Arc<str>,
    /// Zone of that node.
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
            ingest: "cloud".into(),
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
    /// When and how a larger model elsewhere is asked about its windows.
    pub offload: Option<OffloadPolicy>,
    /// If its samples tell what was true of another stream: of which one.
    pub truth: Option<TruthPolicy>,
}

/// What the samples of a stream tell of another one: the value is the position of the label that was true of the device at the
/// sample's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TruthPolicy {
    /// Position of the other stream.
    pub stream: u16,
    /// The labels of its model.
    pub labels: Arc<[Arc<str>]>,
}

impl TruthPolicy {
    /// The label that a value names; `None` if it is no position of one.
    pub fn label(&self, value: f64) -> Option<&str> {
        let is_position = value >= 0.0 && value.fract() == 0.0 && value < self.labels.len() as f64;
        is_position.then(|| &*self.labels[value as usize])
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::Durability;
    use crate::payload::OpaqueFormat;

    fn stream(name: &str) -> StreamPolicy {
        StreamPolicy {
            name: name.into(),
            filters: vec![format!("{name}/#")],
            class: Class::Normal,
            fidelity: StreamFidelity::Raw,
            format: PayloadFormat::Opaque(OpaqueFormat {}),
            aggregate: None,
            keep: None,
            model: None,
            ack_record: false,
            zones: Vec::new(),
            value: None,
            offload: None,
            truth: None,
        }
    }

    fn policy() -> Policy {
        let lane = LanePolicy {
            durability: Durability::Disk,
            cap_bytes: 1,
            overflow: crate::lanes::Overflow::Evict,
            ttl_us: None,
            share: 1,
        };
        Policy {
            lanes: [lane; 4],
            lanes_limits: LanesLimits { memory_bytes: 1, block_target_bytes: 1, early_commit_bytes_per_day: 0 },
            streams: vec![stream("a"), stream("b")],
            users: Vec::new(),
            connections: ConnLimits::default(),
            connections_max: 1,
            router: RouterLimits::default(),
            session: SessionLimits { ping_us: 1, silence_us: 1, connect_us: 1, backoff_us: (1, 1) },
            brokers: Vec::new(),
            uplinks: vec![UplinkPolicy::free("wired", 1), UplinkPolicy::free("lte", 1)],
            price: PriceLimits::default(),
            critical_copies: 1,
            offload: OffloadLimits::default(),
        }
    }

    #[test]
    fn what_a_running_box_can_follow_is_taken_over_and_all_else_stays() {
        let (now, mut next) = (policy(), policy());
        (next.streams[1].class, next.streams[1].fidelity) = (Class::Bulk, StreamFidelity::Verdict);
        next.streams[0].zones = vec!["eu".into()];
        next.streams[1].ack_record = true;
        next.uplinks[1].meter = Some(Meter { money_per_mb: 2.0, month_bytes: Some(9) });
        next.uplinks[1].classes = [true, false, false, false];
        (next.uplinks[1].warm, next.uplinks[1].nominal_bps) = (true, 77);
        (next.critical_copies, next.connections_max) = (2, 99);
        let got = now.succeeded_by(&next).unwrap();
        let (stream, uplink) = (&got.streams[1], &got.uplinks[1]);
        assert_eq!((stream.class, stream.fidelity), (Class::Bulk, StreamFidelity::Verdict));
        assert_eq!((&got.streams[0].zones, stream.ack_record), (&next.streams[0].zones, false));
        assert_eq!((uplink.meter, uplink.classes, uplink.warm), (next.uplinks[1].meter, next.uplinks[1].classes, true));
        assert_eq!((uplink.nominal_bps, got.critical_copies, got.connections_max), (1, 2, 1));
        assert_eq!(got.streams[0].class, Class::Normal);
    }

    #[test]
    fn one_for_another_configuration_is_refused() {
        let misfit = |change: fn(&mut Policy)| {
            let mut next = policy();
            change(&mut next);
            policy().succeeded_by(&next).unwrap_err()
        };
        assert_eq!(misfit(|next| next.streams.truncate(1)), Misfit::Streams { now: 2, next: 1 });
        assert_eq!(misfit(|next| next.uplinks.truncate(1)), Misfit::Uplinks { now: 2, next: 1 });
        let swapped = Misfit::Stream { now: "a".into(), next: "b".into() };
        assert_eq!(misfit(|next| next.streams.swap(0, 1)), swapped);
        let filters = Misfit::Stream { now: "a".into(), next: "a".into() };
        assert_eq!(misfit(|next| next.streams[0].filters.clear()), filters);
        assert_eq!(misfit(|next| next.uplinks.swap(0, 1)), Misfit::Uplink { now: "wired".into(), next: "lte".into() });
        let bound = Misfit::Bound { stream: "a".into() };
        let moved = |next: &mut Policy| (next.streams[0].zones, next.streams[0].class) = (vec!["eu".into()], Class::Bulk);
        assert_eq!(misfit(moved), bound);
        let mut now = policy();
        now.streams[0].zones = vec!["eu".into()];
        let mut next = policy();
        next.streams[0].class = Class::High;
        assert_eq!(now.succeeded_by(&next).unwrap_err(), bound, "not by losing them at the same time, either");
        let aggregate = Misfit::Aggregate { stream: "a".into() };
        assert_eq!(misfit(|next| next.streams[0].fidelity = StreamFidelity::Aggregate), aggregate);
    }
}
