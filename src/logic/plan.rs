//! The plan: what the data plane does with each stream, and why.
//!
//! The data plane applies the present plan to every record in O(1) and asks nothing else. The plan is recomputed by
//! [`plan`], a pure function; what it weighs may grow, what it returns stays.

use std::fmt;

use std::sync::Arc;

use crate::ids::{Class, PerClass};
use crate::policy::{Policy, StreamFidelity};
use crate::price::{Explanation, Level, Prices, StreamValue, Wait};
use crate::route::{LaneRoute, UplinkView, route};

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
}

impl Plan {
    /// True if both plans do the same, whatever numbers made them.
    fn does_the_same(&self, other: &Plan) -> bool {
        let is_priced_alike = self.lambda == other.lambda && self.values == other.values;
        let is_sent_alike = self.uplinks == other.uplinks && self.critical_copies == other.critical_copies;
        self.streams == other.streams && is_sent_alike && is_priced_alike
    }

    /// How finely a record of this age is sent now; `None` if it is held while anything else waits.
    pub fn level(&self, stream: u16, wait: Wait) -> Option<Level> {
        match self.values.get(usize::from(stream)) {
            Some(Some(value)) => value.level_at(wait, &self.prices),
            _ => Some(Level::Raw),
        }
    }

    /// Worth of a block for each of its bytes, by the time that is left to it: what is sent first if streams have values.
    ///
    /// `parts` are the raw bytes by stream; `None` for a stream that is not known. A stream without a value counts with its
    /// lane's usual worth. 0 if all of it is held.
    pub fn urgency(&self, lane: Class, wait: Wait, parts: impl Iterator<Item = (Option<u16>, f64)>) -> f64 {
        let usual = StreamValue::usual(lane);
        let (mut worth, mut bytes) = (0.0, 0.0);
        for (stream, raw) in parts {
            let value = stream.and_then(|stream| self.values.get(usize::from(stream)).copied().flatten());
            let level = value.map_or(Some(Level::Raw), |value| value.level_at(wait, &self.prices));
            let value = value.unwrap_or(usual);
            let Some(level) = level else { continue };
            let left_s = value.left_us(wait).map_or(LEFT_S_MAX, |left_us| left_us as f64 / 1e6);
            let part = value.ladder.worth(level).unwrap_or(1.0);
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
    /// Why.
    pub reason: Reason,
}

/// Where a stream's model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// It has none.
    None,
    /// On the box.
    Local,
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
            Reason::NoModel { asked } => {
                write!(f, "policy asks for {}, but the stream's model is not loaded: kept raw", asked.name())
            }
        }
    }
}

impl fmt::Display for StreamPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let placement = match self.placement {
            Placement::None => "no model",
            Placement::Local => "model on the box",
        };
        write!(f, "{} in lane {}, {placement}", self.fidelity.name(), self.lane.name())?;
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
    let price = view.price;
    let streams = policy
        .streams
        .iter()
        .map(|stream| {
            let asked = stream.fidelity;
            let placement = if stream.model.is_some() { Placement::Local } else { Placement::None };
            let (fidelity, reason) = match (asked, placement) {
                (StreamFidelity::Verdict, Placement::None) => (StreamFidelity::Raw, Reason::NoModel { asked }),
                _ => (asked, Reason::Policy { asked }),
            };
            let level = match stream.value {
                Some(value) => value.level_at(Wait::of_age(0), &price.prices),
                None => Some(Level::Raw),
            };
            let reason = match stream.value {
                Some(value) if level != Some(Level::Raw) => Reason::Price {
                    lambda: price.prices.at(value.lateness.left_us(0)),
                    weight: value.weight,
                    wanted_bytes: price.wanted_bytes as u64,
                    forecast_bytes: price.forecast_bytes as u64,
                },
                _ => reason,
            };
            StreamPlan { fidelity, level, lane: stream.class, placement, reason }
        })
        .collect();
    let routes = Class::ALL.map(|class| {
        let last = last.map(|last| &last.routes[class.index()]);
        route(view.now_us, class, policy, view.uplinks, price.lambda, last)
    });
    let uplinks = std::array::from_fn(|at| routes[at].usable().collect());
    let values = match last {
        Some(last) if last.values.iter().eq(policy.streams.iter().map(|stream| &stream.value)) => Arc::clone(&last.values),
        _ => policy.streams.iter().map(|stream| stream.value).collect(),
    };
    let weighs = values.iter().any(Option::is_some);
    let (critical_copies, lambda, prices) = (policy.critical_copies, price.lambda, price.prices);
    let mut plan = Plan { version: 1, streams, uplinks, routes, critical_copies, lambda, prices, values, weighs };
    if let Some(last) = last {
        plan.version = last.version + u64::from(!plan.does_the_same(last));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::{OpaqueFormat, PayloadFormat};
    use crate::policy::{StreamPolicy, UplinkPolicy};
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
        }
    }

    fn policy(streams: Vec<StreamPolicy>) -> Policy {
        Policy {
            lanes: [crate::lanes::LanePolicy {
                durability: crate::lanes::Durability::Disk,
                cap_bytes: 1,
                ttl_us: None,
                share: 1,
            }; 4],
            lanes_limits: crate::lanes::LanesLimits { memory_bytes: 1, block_target_bytes: 1, early_commit_bytes_per_day: 0 },
            streams,
            users: Vec::new(),
            connections: Default::default(),
            connections_max: 1,
            router: Default::default(),
            session: crate::uplink::SessionLimits { ping_us: 1, silence_us: 1, connect_us: 1, backoff_us: (1, 1) },
            uplinks: vec![UplinkPolicy::free("a", 1), UplinkPolicy::free("b", 1)],
            price: PriceLimits::default(),
            critical_copies: 1,
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

    #[test]
    fn only_verdicts_without_a_model_are_kept_raw() {
        let plan = plan(&policy(vec![stream(Class::Normal, StreamFidelity::Verdict, None)]), &View::default(), None);
        assert_eq!(plan.streams[0].fidelity, StreamFidelity::Raw);
        assert_eq!(plan.streams[0].reason, Reason::NoModel { asked: StreamFidelity::Verdict });
    }
}
