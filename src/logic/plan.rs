//! The plan: what the data plane does with each stream, and why.
//!
//! The data plane applies the present plan to every record in O(1) and asks nothing else. The plan is recomputed by
//! [`plan`], a pure function; what it weighs may grow, what it returns stays.

use std::fmt;

use std::sync::Arc;

use crate::audit::Learned;
use crate::ids::{Class, PerClass};
use crate::offload::PoolPlace;
use crate::policy::{Policy, StreamFidelity, StreamPolicy};
use crate::pressure;
use crate::price::{Explanation, Level, Prices, StreamValue, Wait};
use crate::route::{LaneRoute, UplinkView, route};
use crate::wire::LoadLevel;

mod place;

pub use place::{Placed, Placement, PoolRejected, pools_rejected};

use place::place;

/// The present decisions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Counts the plans that differ from the one before.
    pub version: u64,
    /// One entry for each stream of the policy.
    pub streams: Vec<StreamPlan>,
    /// For each lane the uplinks that carry it, best first.
    pub uplinks: PerClass<Vec<u8>>,
    /// For each lane what was weighed for that.
    pub routes: PerClass<LaneRoute>,
    /// Uplinks that a critical block is sent over at the same time.
    pub critical_copies: u8,
    /// Price of a byte of uplink, by which records are sent more coarsely or held; of those that have time.
    pub lambda: f64,
    /// For each lane, how many steps below what its records are worth they are sent, because the cloud is busy.
    pub steps: PerClass<usize>,
    /// The same by the time that is left to a record.
    pub prices: Prices,
    /// What records are worth, by stream; `None` for streams that are sent as they are stored, at any price.
    pub values: Arc<[Option<StreamValue>]>,
    /// True if any stream has a value: then the most urgent goes first, otherwise lanes have their shares.
    pub weighs: bool,
}

/// What is known when a plan is made.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct View<'a> {
    /// Service time.
    pub now_us: u64,
    /// The price of a byte of uplink, and what made it.
    pub price: Explanation,
    /// The uplinks, in the order of the policy.
    pub uplinks: &'a [UplinkView],
    /// The pools of which the cloud has told.
    pub pools: &'a [PoolPlace],
    /// By stream: the learned upper end of the band that is asked about, if it is learned; empty for none.
    pub learned: &'a [Option<Learned>],
}

impl Plan {
    /// True if both plans do the same, whatever numbers made them.
    fn does_the_same(&self, other: &Plan) -> bool {
        let is_priced_alike = self.lambda == other.lambda && self.steps == other.steps && self.values == other.values;
        let is_sent_alike = self.uplinks == other.uplinks && self.critical_copies == other.critical_copies;
        let do_the_same = |(a, b): (&StreamPlan, &StreamPlan)| a.does_the_same(b) && a.reason == b.reason;
        let is_kept_alike =
            self.streams.len() == other.streams.len() && self.streams.iter().zip(&other.streams).all(do_the_same);
        is_kept_alike && is_sent_alike && is_priced_alike
    }

    /// How finely a record of this age is sent now; `None` if it is held while anything else waits.
    pub fn level(&self, stream: u16, wait: Wait) -> Option<Level> {
        let Some(Some(value)) = self.values.get(usize::from(stream)) else { return Some(Level::Raw) };
        let lane = self.streams.get(usize::from(stream)).map_or(Class::Critical, |stream| stream.lane);
        level(value, wait, &self.prices, self.steps[lane.index()])
    }

    /// True if records of a lane may be sent otherwise than as they are stored.
    pub fn folds(&self, lane: Class) -> bool {
        !self.prices.is_free() || self.steps[lane.index()] > 0
    }

    /// Worth of a block for each of its bytes, by the time that is left to it: what is sent first if streams have values.
    ///
    /// `parts` are the raw bytes by stream; `None` for a stream that is not known. A stream without a value counts with its
    /// lane's usual worth. 0 if all of it is held. It is stored no finer than at level `stored`.
    pub fn urgency(&self, lane: Class, wait: Wait, stored: Level, parts: impl Iterator<Item = (Option<u16>, f64)>) -> f64 {
        let usual = StreamValue::usual(lane);
        let (mut worth, mut bytes) = (0.0, 0.0);
        for (stream, raw) in parts {
            let value = stream.and_then(|stream| self.values.get(usize::from(stream)).copied().flatten());
            let steps = self.steps[lane.index()];
            let level = value.map_or(Some(Level::Raw), |value| level(&value, wait, &self.prices, steps));
            let value = value.unwrap_or(usual);
            let Some(level) = level.map(|level| level.max(stored)) else { continue };
            let left_s = value.left_us(wait).map_or(LEFT_S_MAX, |left_us| left_us as f64 / 1e6);
            let part = value.ladder.worth(level).unwrap_or(level.bytes());
            worth += raw * value.weight_at(wait.age_us) * part / (left_s + PATIENCE_S);
            bytes += raw * level.bytes();
        }
        if bytes > 0.0 { worth / bytes } else { 0.0 }
    }

    /// How finely a record of this age is sent if it is sent although it would be held.
    pub fn level_if_sent(&self, stream: u16, wait: Wait) -> Level {
        self.level(stream, wait).unwrap_or_else(|| {
            let value = self.values.get(usize::from(stream)).copied().flatten();
            value.and_then(|value| value.ladder.levels().last()).map_or(Level::Raw, |(level, _)| level)
        })
    }
}

/// What becomes of one stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamPlan {
    /// How finely it is kept.
    pub fidelity: StreamFidelity,
    /// How finely new records of what is kept raw are sent; `None` if they are held.
    pub level: Option<Level>,
    /// The lane its records go into.
    pub lane: Class,
    /// Where its model runs.
    pub placement: Placement,
    /// Why there.
    pub placed: Placed,
    /// What made the upper end of its band, if that is learned.
    pub learned: Option<Learned>,
    /// Why it is kept and sent so.
    pub reason: Reason,
}

impl StreamPlan {
    /// True if both do the same, whatever numbers made them.
    pub fn does_the_same(&self, other: &StreamPlan) -> bool {
        let key = |plan: &StreamPlan| (plan.fidelity, plan.level, plan.lane, plan.placement);
        key(self) == key(other)
    }

    /// Why all of it is as it is, in words.
    pub fn why(&self) -> String {
        let mut why = self.reason.to_string();
        if self.placed != Placed::NotAsked {
            why += &format!("; {}", self.placed);
        }
        if let Some(learned) = self.learned {
            why += &format!("; {learned}");
        }
        why
    }
}

/// What made an entry what it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// The configuration asks for it and nothing speaks against it.
    Policy {
        /// What it asks for.
        asked: StreamFidelity,
    },
    /// Only verdicts are asked for, but there is no model to give any: kept raw rather than lost.
    NoModel {
        /// What the configuration asks for.
        asked: StreamFidelity,
    },
    /// Its bytes cost more than they are worth raw.
    Price {
        /// The price of a byte.
        lambda: f64,
        /// What a raw byte of it is worth in time.
        weight: f64,
        /// Raw bytes that want to be sent over the horizon.
        wanted_bytes: u64,
        /// Bytes that the uplinks are forecast to carry over it.
        forecast_bytes: u64,
    },
    /// The cloud is busy: it is sent more coarsely than it is worth.
    CloudBusy {
        /// How busy.
        load: LoadLevel,
        /// How many steps of its ladder.
        steps: usize,
    },
    /// The cloud is too busy for its class: it waits on the box.
    CloudHolds {
        /// How busy.
        load: LoadLevel,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Policy { asked } => write!(f, "policy asks for {}", asked.name()),
            Reason::Price { lambda, weight, wanted_bytes, forecast_bytes } => write!(
                f,
                "{wanted_bytes} bytes want to be sent and {forecast_bytes} are forecast to be carried: at {lambda:.3e} a byte, raw \
                 ones worth {weight:.3e} do not pay"
            ),
            Reason::CloudBusy { load, steps } => {
                write!(f, "the cloud is {}: it is sent up to {steps} steps more coarsely than it is worth", load.name())
            }
            Reason::CloudHolds { load } => write!(f, "the cloud is {}: its class waits on the box", load.name()),
            Reason::NoModel { asked } => {
                write!(f, "policy asks for {}, but the stream's model is not loaded: kept raw", asked.name())
            }
        }
    }
}

impl fmt::Display for StreamPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in lane {}, {}", self.fidelity.name(), self.lane.name(), self.placement)?;
        match self.level {
            Some(Level::Raw) => Ok(()),
            Some(level) => write!(f, ", sent as {level}"),
            None => write!(f, ", held"),
        }
    }
}

/// Added to the time that is left, so that the last second does not outweigh everything (the prototype's `d0`).
const PATIENCE_S: f64 = 5.0;
/// What has no deadline counts as if it had one in a day.
const LEFT_S_MAX: f64 = 86_400.0;

/// Decides for every stream and lane; `last` is the plan it replaces.
pub fn plan(policy: &Policy, view: &View<'_>, last: Option<&Plan>) -> Plan {
    let (lambda, prices) = (view.price.lambda, view.price.prices);
    let routes = Class::ALL.map(|class| {
        let last = last.map(|last| &last.routes[class.index()]);
        route(view.now_us, class, policy, view.uplinks, lambda, last)
    });
    // Where uplinks lead to several machines, what goes by the idle one is as fine as ever.
    let loads = Class::ALL.map(|class| {
        let route = &routes[class.index()];
        let used = route.usable().filter_map(|uplink| view.uplinks.get(usize::from(uplink)));
        route.held().or_else(|| used.map(|uplink| uplink.load).min()).unwrap_or_default()
    });
    let steps = Class::ALL.map(|class| pressure::steps(loads[class.index()], class));
    let uplinks: PerClass<Vec<u8>> = std::array::from_fn(|at| routes[at].usable().collect());
    let streams = policy.streams.iter().enumerate().map(|(index, stream)| {
        let at = stream.class.index();
        let last = last.and_then(|last| last.streams.get(index)).map_or(Placement::None, |last| last.placement);
        let (placement, placed) = place(stream, view.pools, &uplinks[at], last);
        let learned = view.learned.get(index).copied().flatten();
        let placement = placement.with_threshold(learned.map(|learned| learned.threshold));
        let entry = plan_stream(stream, &view.price, loads[at], routes[at].held(), (placement, placed));
        StreamPlan { learned, ..entry }
    });
    let streams = streams.collect();
    let values = match last {
        Some(last) if last.values.iter().eq(policy.streams.iter().map(|stream| &stream.value)) => Arc::clone(&last.values),
        _ => policy.streams.iter().map(|stream| stream.value).collect(),
    };
    let weighs = values.iter().any(Option::is_some);
    let critical_copies = policy.critical_copies;
    let mut plan = Plan { version: 1, streams, uplinks, routes, critical_copies, lambda, steps, prices, values, weighs };
    if let Some(last) = last {
        plan.version = last.version + u64::from(!plan.does_the_same(last));
    }
    plan
}

/// Decides for a stream whose lane leads to a cloud of this load, and whose model is placed; `held` if it waits for that.
fn plan_stream(
    stream: &StreamPolicy,
    price: &Explanation,
    load: LoadLevel,
    held: Option<LoadLevel>,
    (placement, placed): (Placement, Placed),
) -> StreamPlan {
    let asked = stream.fidelity;
    let (fidelity, reason) = match (asked, placement) {
        (StreamFidelity::Verdict, Placement::None) => (StreamFidelity::Raw, Reason::NoModel { asked }),
        _ => (asked, Reason::Policy { asked }),
    };
    let entry = |level, reason| StreamPlan { fidelity, level, lane: stream.class, placement, placed, learned: None, reason };
    if let Some(load) = held {
        return entry(None, Reason::CloudHolds { load });
    }
    let Some(value) = stream.value else { return entry(Some(Level::Raw), reason) };
    let steps = pressure::steps(load, stream.class);
    let (wait, prices) = (Wait::of_age(0), &price.prices);
    let (worth, sent) = (value.level_at(wait, prices), level(&value, wait, prices, steps));
    let reason = match sent {
        _ if sent != worth => Reason::CloudBusy { load, steps },
        Some(Level::Raw) => reason,
        _ => Reason::Price {
            lambda: price.prices.at(value.lateness.left_us(0)),
            weight: value.weight,
            wanted_bytes: price.wanted_bytes as u64,
            forecast_bytes: price.forecast_bytes as u64,
        },
    };
    entry(sent, reason)
}

/// How finely a record is sent at these prices, so many steps below what it is worth; `None` if it is held.
fn level(value: &StreamValue, wait: Wait, prices: &Prices, steps: usize) -> Option<Level> {
    let worth = value.level_at(wait, prices)?;
    Some(if value.is_exempt { worth } else { pressure::coarser(&value.ladder, worth, steps) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{BreakerState, UplinkEstimate, UplinkState};
    use crate::payload::{OpaqueFormat, PayloadFormat};
    use crate::policy::UplinkPolicy;
    use crate::price::{Ladder, Lateness, PriceLimits};

    fn stream(class: Class, fidelity: StreamFidelity, weight: Option<f64>) -> StreamPolicy {
        let lateness = Lateness { d0_us: 1_000_000, d1_us: None, u1: 1.0 };
        let is_exempt = class == Class::Critical;
        let value = |weight| StreamValue { weight, ladder: Ladder::TELEMETRY, lateness, is_exempt };
        StreamPolicy {
            name: class.name().into(),
            filters: Vec::new(),
            class,
            fidelity,
            format: PayloadFormat::Opaque(OpaqueFormat {}),
            aggregate: None,
            keep: None,
            model: None,
            ack_record: false,
            zones: Vec::new(),
            value: weight.map(value),
            offload: None,
            truth: None,
        }
    }

    fn policy(streams: Vec<StreamPolicy>) -> Policy {
        Policy {
            lanes: [crate::lanes::LanePolicy {
                durability: crate::lanes::Durability::Disk,
                cap_bytes: 1,
                overflow: crate::lanes::Overflow::Evict,
                ttl_us: None,
                share: 1,
            }; 4],
            lanes_limits: crate::lanes::LanesLimits { memory_bytes: 1, block_target_bytes: 1, early_commit_bytes_per_day: 0 },
            streams,
            users: Vec::new(),
            connections: Default::default(),
            connections_max: 1,
            router: Default::default(),
            brokers: Vec::new(),
            session: crate::uplink::SessionLimits { ping_us: 1, silence_us: 1, connect_us: 1, backoff_us: (1, 1) },
            uplinks: vec![UplinkPolicy::free("a", 1), UplinkPolicy::free("b", 1)],
            price: PriceLimits::default(),
            critical_copies: 1,
            offload: Default::default(),
        }
    }

    fn at(lambda: f64) -> View<'static> {
        let prices = Prices::flat(lambda);
        View {
            price: Explanation { lambda, prices, wanted_bytes: 5.0, forecast_bytes: 4.0, ..Explanation::default() },
            ..View::default()
        }
    }

    #[test]
    fn without_a_price_each_stream_gets_what_it_asks_for() {
        let streams = vec![stream(Class::High, StreamFidelity::Raw, Some(2.0)), stream(Class::Bulk, StreamFidelity::Raw, None)];
        let plan = plan(&policy(streams), &View::default(), None);
        assert_eq!(plan.version, 1);
        for entry in &plan.streams {
            assert_eq!((entry.level, entry.reason), (Some(Level::Raw), Reason::Policy { asked: StreamFidelity::Raw }));
        }
    }

    #[test]
    fn a_price_folds_and_holds_what_has_a_value_and_nothing_else() {
        let raw = StreamFidelity::Raw;
        let streams = vec![
            stream(Class::Critical, raw, Some(0.001)),
            stream(Class::High, raw, Some(100.0)),
            stream(Class::Normal, raw, Some(1.0)),
            stream(Class::Bulk, raw, Some(0.001)),
            stream(Class::Bulk, raw, None),
        ];
        let plan = plan(&policy(streams), &at(1.0), None);
        let levels: Vec<_> = plan.streams.iter().map(|entry| entry.level).collect();
        let all = Some(Level::Raw);
        assert_eq!(levels, [all, all, Some(Level::Thin4), None, all]);
        assert!(matches!(plan.streams[3].reason, Reason::Price { wanted_bytes: 5, forecast_bytes: 4, .. }));
        assert_eq!(plan.streams[3].to_string(), "raw in lane bulk, no model, held");
        let new = Wait::of_age(0);
        // Late binding: each record by its own age, by the same numbers.
        assert_eq!(
            (plan.level(2, new), plan.level(3, new), plan.level_if_sent(3, new)),
            (Some(Level::Thin4), None, Level::Verdict)
        );
    }

    #[test]
    fn the_version_counts_plans_that_differ() {
        let policy = policy(vec![stream(Class::Normal, StreamFidelity::Raw, Some(1.0))]);
        let first = plan(&policy, &at(0.1), None);
        let same = plan(&policy, &at(0.1), Some(&first));
        let other = plan(&policy, &at(1.0), Some(&same));
        assert_eq!((first.version, same.version, other.version), (1, 1, 2));
    }

    #[test]
    fn a_policy_with_other_values_or_copies_makes_another_plan() {
        let mut policy = policy(vec![stream(Class::Normal, StreamFidelity::Raw, Some(1.0))]);
        let first = plan(&policy, &at(0.1), None);
        policy.streams[0] = stream(Class::Normal, StreamFidelity::Raw, Some(2.0));
        let second = plan(&policy, &at(0.1), Some(&first));
        assert_eq!((second.version, second.values[0].map(|value| value.weight)), (2, Some(2.0)));
        policy.critical_copies = 2;
        assert_eq!(plan(&policy, &at(0.1), Some(&second)).version, 3);
        policy.streams[0].value = None;
        let last = plan(&policy, &at(0.1), Some(&second));
        assert_eq!((last.values[0], last.weighs), (None, false));
    }

    /// Two uplinks whose clouds are this busy.
    fn views(loads: [LoadLevel; 2]) -> [UplinkView; 2] {
        let estimate = UplinkEstimate {
            rtt_us: 20_000,
            jitter_us: 0,
            loss: 0.0,
            goodput_bps: 1e7,
            capacity_bps: 1e7,
            queueing_delay_us: 0,
            ack_delay_us: None,
            cwnd_bytes: 0,
            error_ratio: None,
            state: UplinkState::Green,
            breaker: BreakerState::Closed,
            confidence: 1.0,
            updated_us: 0,
        };
        loads.map(|load| UplinkView { is_up: true, estimate, allowance: None, paid_price: None, advice: 1.0, load })
    }

    fn levels(plan: &Plan) -> Vec<Option<Level>> {
        plan.streams.iter().map(|stream| stream.level).collect()
    }

    #[test]
    fn a_busy_cloud_gets_less_of_what_matters_less_and_the_reason_says_so() {
        let streams = Class::ALL.map(|class| stream(class, StreamFidelity::Raw, Some(2.0)));
        let mut policy = policy(streams.to_vec());
        policy.streams.push(stream(Class::Normal, StreamFidelity::Raw, None));
        let at = |load| plan(&policy, &View { uplinks: &views([load; 2]), ..View::default() }, None);
        let calm = at(LoadLevel::Filling);
        assert_eq!(levels(&calm), [Some(Level::Raw); 5]);
        let busy = at(LoadLevel::Overloaded);
        let (high, normal) = (Some(Level::Thin2), Some(Level::Thin4));
        assert_eq!(levels(&busy), [Some(Level::Raw), high, normal, None, Some(Level::Raw)], "without a value it is sent whole");
        assert_eq!(busy.streams[2].reason, Reason::CloudBusy { load: LoadLevel::Overloaded, steps: 2 });
        assert_eq!(busy.streams[3].reason, Reason::CloudHolds { load: LoadLevel::Overloaded });
        assert_eq!((busy.uplinks[2].len(), busy.uplinks[3].len(), busy.routes[3].held()), (2, 0, Some(LoadLevel::Overloaded)));
        assert_eq!(
            (busy.level(2, Wait::of_age(0)), busy.folds(Class::Normal), busy.folds(Class::Critical)),
            (normal, true, false)
        );
        let stalled = at(LoadLevel::Stalled);
        assert_eq!(levels(&stalled), [Some(Level::Raw), None, None, None, None], "only critical goes");
        assert!(stalled.uplinks[0].len() == 2 && stalled.uplinks[1..].iter().all(Vec::is_empty));
    }

    #[test]
    fn a_machine_that_is_not_busy_takes_what_the_busy_one_does_not() {
        let policy = policy(vec![stream(Class::Normal, StreamFidelity::Raw, Some(2.0))]);
        let plan = plan(&policy, &View { uplinks: &views([LoadLevel::Stalled, LoadLevel::Idle]), ..View::default() }, None);
        assert_eq!((&plan.uplinks[2][..], levels(&plan)), (&[1][..], vec![Some(Level::Raw)]));
        assert_eq!(plan.uplinks[0].len(), 2, "critical goes by both");
    }

    proptest::proptest! {
        #[test]
        fn a_busier_cloud_never_gets_more_and_more_value_never_less_of_it(
            weight in 0.01f64..10.0, more in 1.0f64..10.0, lambda in 0.0f64..5.0, age_us in 0u64..3_000_000, floor in 0usize..5,
        ) {
            let mut streams = Class::ALL.map(|class| stream(class, StreamFidelity::Raw, Some(weight))).to_vec();
            streams.extend(Class::ALL.map(|class| stream(class, StreamFidelity::Raw, Some(weight * more))));
            for value in streams.iter_mut().filter_map(|stream| stream.value.as_mut()) {
                value.ladder = value.ladder.down_to(Level::ALL[floor]);
            }
            let policy = policy(streams);
            let sent = |level: Option<Level>| level.map_or(0.0, Level::bytes);
            let mut before = [f64::INFINITY; 8];
            for load in LoadLevel::ALL {
                let plan = plan(&policy, &View { uplinks: &views([load; 2]), ..at(lambda) }, None);
                for (index, before) in before.iter_mut().enumerate() {
                    let now = sent(plan.level(index as u16, Wait::of_age(age_us)));
                    let level = plan.streams[index].level;
                    proptest::prop_assert!(now <= *before && level.is_none_or(|level| level <= Level::ALL[floor]));
                    *before = now;
                }
                for class in 0..4u16 {
                    proptest::prop_assert!(sent(plan.level(class + 4, Wait::of_age(age_us))) >= sent(plan.level(class, Wait::of_age(age_us))));
                }
                proptest::prop_assert_eq!((plan.streams[0].level, plan.uplinks[0].len()), (Some(Level::Raw), 2));
            }
        }
    }

    #[test]
    fn only_verdicts_without_a_model_are_kept_raw() {
        let plan = plan(&policy(vec![stream(Class::Normal, StreamFidelity::Verdict, None)]), &View::default(), None);
        assert_eq!(plan.streams[0].fidelity, StreamFidelity::Raw);
        assert_eq!(plan.streams[0].reason, Reason::NoModel { asked: StreamFidelity::Verdict });
    }
}
