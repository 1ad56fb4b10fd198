//! Where a stream's model runs: on the box, in a pool, or on the box with a pool for what is in doubt.
//!
//! Law comes first (zone, the uplinks of the stream's lane), then order (the pool's breaker), then time: a pool is taken if its
//! answer is expected well within the stream's deadline, and the quickest of those. One that was taken stays until its answers
//! are expected too late, or another's in much less time.

use std::fmt;

use crate::offload::{OffloadMode, OffloadPolicy, PoolPlace};
use crate::policy::StreamPolicy;

/// Where a stream's model runs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Placement {
    /// It has none.
    #[default]
    None,
    /// On the box.
    Local,
    /// On the box; a pool is asked about confidences from the first to below the second.
    Cascade {
        /// Position among the pools that are known.
        pool: u8,
        /// The band.
        band: (f32, f32),
    },
    /// In a pool.
    Offload {
        /// Position among the pools that are known.
        pool: u8,
    },
}

impl Placement {
    /// The pool that is asked.
    pub fn pool(self) -> Option<u8> {
        match self {
            Placement::None | Placement::Local => None,
            Placement::Cascade { pool, .. } | Placement::Offload { pool } => Some(pool),
        }
    }
}

impl Placement {
    /// Confidences that are asked about, from the first up to below the second.
    pub fn band(self) -> Option<(f32, f32)> {
        match self {
            Placement::Cascade { band, .. } => Some(band),
            Placement::None | Placement::Local | Placement::Offload { .. } => None,
        }
    }

    /// The same place with the upper end of the band where it was learned to be.
    pub(super) fn with_threshold(self, threshold: Option<f32>) -> Placement {
        match (self, threshold) {
            (Placement::Cascade { pool, band: (low, _) }, Some(threshold)) => {
                Placement::Cascade { pool, band: (low, threshold) }
            }
            (placement, _) => placement,
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placement::None => f.write_str("no model"),
            Placement::Local => f.write_str("model on the box"),
            Placement::Cascade { band: (low, high), .. } => {
                write!(f, "model on the box, a pool asked at a confidence of {low} to {high}")
            }
            Placement::Offload { .. } => f.write_str("model in a pool"),
        }
    }
}

/// Why a stream's model runs where it does.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Placed {
    /// No pool is asked for.
    #[default]
    NotAsked,
    /// A pool answers in time.
    InTime {
        /// How long an answer is expected to take, in microseconds.
        answer_us: u64,
        /// How long it may take.
        deadline_us: u64,
        /// How full the pool's queue is, in percent.
        queue_percent: u32,
        /// How old that is, in microseconds.
        age_us: u64,
    },
    /// No pool does it.
    Rejected(PoolRejected),
}

/// What speaks against a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PoolRejected {
    /// The cloud told of none for this task.
    NoPool,
    /// It takes windows of another shape.
    Shape {
        /// Its channels and samples.
        pool: (usize, usize),
        /// The stream's.
        stream: (usize, usize),
    },
    /// It is not in a zone where the stream may go.
    Zone,
    /// No uplink that the stream's lane may use now leads to it and carries requests.
    NoWay,
    /// Its breaker is open.
    Breaker,
    /// Its answers are expected too late.
    Slow {
        /// How long one is expected to take, in microseconds.
        answer_us: u64,
        /// How long it may take.
        deadline_us: u64,
    },
    /// Another answers sooner.
    Slower {
        /// How long an answer is expected to take, in microseconds.
        answer_us: u64,
    },
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placed::NotAsked => Ok(()),
            Placed::InTime { answer_us, deadline_us, queue_percent, age_us } => write!(
                f,
                "a pool answers in {} ms of {} ms; its queue was {queue_percent} % full {} s ago",
                answer_us / 1_000,
                deadline_us / 1_000,
                age_us / 1_000_000
            ),
            Placed::Rejected(why) => write!(f, "no pool is asked: {why}"),
        }
    }
}

impl fmt::Display for PoolRejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolRejected::NoPool => f.write_str("the cloud has told of none for this task"),
            PoolRejected::Shape { pool, stream } => write!(
                f,
                "it takes windows of {} channels and {} samples, the stream's have {} and {}",
                pool.0, pool.1, stream.0, stream.1
            ),
            PoolRejected::Zone => f.write_str("it is not in a zone where the stream may go"),
            PoolRejected::NoWay => f.write_str(
                "no uplink that the lane may use leads to it (requests go over QUIC alone, not over a TCP fallback)",
            ),
            PoolRejected::Breaker => f.write_str("its breaker is open"),
            PoolRejected::Slow { answer_us, deadline_us } => {
                write!(f, "an answer is expected in {} ms, and wanted in {} ms", answer_us / 1_000, deadline_us / 1_000)
            }
            PoolRejected::Slower { answer_us } => write!(f, "an answer is expected in {} ms", answer_us / 1_000),
        }
    }
}

/// Decides for a stream whose lane goes by these uplinks; `last` is where its model ran before.
pub(super) fn place(stream: &StreamPolicy, pools: &[PoolPlace], uplinks: &[u8], last: Placement) -> (Placement, Placed) {
    let local = if stream.model.is_some() { Placement::Local } else { Placement::None };
    let Some(offload) = stream.offload.as_ref().filter(|offload| offload.mode != OffloadMode::Never) else {
        return (local, Placed::NotAsked);
    };
    let (mut best, mut first_rejected): (Option<(usize, u64)>, _) = (None, None);
    for (at, pool) in pools.iter().enumerate().filter(|(_, pool)| pool.task == offload.task) {
        let is_present = last.pool().map(usize::from) == Some(at);
        match judge(stream, offload, pool, uplinks, is_present) {
            Ok(answer_us) => {
                // The present one has the benefit of the doubt.
                let cost_us = if is_present { answer_us * 7 / 10 } else { answer_us };
                if best.is_none_or(|(_, best_us)| cost_us < best_us) {
                    best = Some((at, cost_us));
                }
            }
            Err(why) => {
                first_rejected.get_or_insert(why);
            }
        }
    }
    let Some((at, _)) = best else {
        return (local, Placed::Rejected(first_rejected.unwrap_or(PoolRejected::NoPool)));
    };
    let pool = at as u8;
    let placement = match local {
        Placement::Local => Placement::Cascade { pool, band: offload.band },
        _ => Placement::Offload { pool },
    };
    let PoolPlace { queue_percent, age_us, .. } = pools[at];
    let answer_us = answer_us(&pools[at], uplinks).unwrap_or_default();
    (placement, Placed::InTime { answer_us, deadline_us: offload.deadline_us, queue_percent, age_us })
}

/// Every pool of the stream's task that it does not use, with why.
pub fn pools_rejected(stream: &StreamPolicy, pools: &[PoolPlace], uplinks: &[u8], placement: Placement) -> Vec<String> {
    let Some(offload) = &stream.offload else { return Vec::new() };
    let others = pools.iter().enumerate().filter(|(at, _)| placement.pool().map(usize::from) != Some(*at));
    let of_task = others.filter(|(_, pool)| pool.task == offload.task);
    let why = |(_, pool): (usize, &PoolPlace)| {
        let why = match judge(stream, offload, pool, uplinks, false) {
            Ok(answer_us) => PoolRejected::Slower { answer_us },
            Err(why) => why,
        };
        format!("pool {}: {why}", pool.name)
    };
    of_task.map(why).collect()
}

/// How long an answer is expected to take, or why the pool is not to be asked.
fn judge(
    stream: &StreamPolicy,
    offload: &OffloadPolicy,
    pool: &PoolPlace,
    uplinks: &[u8],
    is_present: bool,
) -> Result<u64, PoolRejected> {
    let shape = (offload.window.channels(), offload.window.length());
    if pool.shape != shape {
        return Err(PoolRejected::Shape { pool: pool.shape, stream: shape });
    }
    if !stream.zones.is_empty() && pool.zone.as_ref().is_none_or(|zone| !stream.zones.contains(zone)) {
        return Err(PoolRejected::Zone);
    }
    let answer_us = answer_us(pool, uplinks).ok_or(PoolRejected::NoWay)?;
    if pool.is_open {
        return Err(PoolRejected::Breaker);
    }
    let deadline_us = offload.deadline_us;
    // A new one must be well in time, so that it does not come and go with every wave.
    let limit_us = if is_present { deadline_us } else { deadline_us - deadline_us / 5 };
    if answer_us > limit_us { Err(PoolRejected::Slow { answer_us, deadline_us }) } else { Ok(answer_us) }
}

/// How long an answer takes over the first of these uplinks that leads there.
fn answer_us(pool: &PoolPlace, uplinks: &[u8]) -> Option<u64> {
    uplinks.iter().find_map(|&uplink| pool.answer_us.get(usize::from(uplink)).copied().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Class;
    use crate::payload::{OpaqueFormat, PayloadFormat};
    use crate::policy::{StreamFidelity, StreamModel};
    use crate::window::{Span, WindowConfig, WindowSpec};

    fn window() -> WindowSpec {
        let config = WindowConfig { length: Span::Samples(8), step: None, gap_max_us: None, reorder_max_us: None };
        WindowSpec::new(&config, 2, Some(10.0)).expect("a window")
    }

    fn stream(has_model: bool) -> StreamPolicy {
        let offload = OffloadPolicy {
            task: "activity".into(),
            mode: OffloadMode::Wait,
            band: (0.0, 0.6),
            deadline_us: 500_000,
            spacing_us: 0,
            int16: true,
            audit: 0.0,
            learn: None,
            window: window(),
        };
        let model = StreamModel { index: 0, name: "small".into(), version: "1".into(), window: window() };
        StreamPolicy {
            name: "wrist".into(),
            filters: Vec::new(),
            class: Class::Normal,
            fidelity: StreamFidelity::Verdict,
            format: PayloadFormat::Opaque(OpaqueFormat {}),
            aggregate: None,
            keep: None,
            model: has_model.then_some(model),
            ack_record: false,
            zones: Vec::new(),
            value: None,
            offload: Some(offload),
            truth: None,
        }
    }

    fn pool(name: &str, answer_ms: [Option<u64>; 2]) -> PoolPlace {
        PoolPlace {
            name: name.into(),
            task: "activity".into(),
            zone: Some("eu".into()),
            shape: (2, 8),
            answer_us: answer_ms.map(|ms| ms.map(|ms| ms * 1_000)).to_vec(),
            is_open: false,
            queue_percent: 10,
            age_us: 2_000_000,
        }
    }

    #[test]
    fn the_quickest_pool_that_is_well_in_time_is_asked_and_stays_until_it_is_not() {
        let pools = [pool("far", [Some(300), Some(300)]), pool("near", [None, Some(250)])];
        let at = |uplinks: &[u8], last| place(&stream(true), &pools, uplinks, last).0;
        let cascade = |pool| Placement::Cascade { pool, band: (0.0, 0.6) };
        assert_eq!(at(&[0], Placement::Local), cascade(0), "the near one is not reached by this uplink");
        assert_eq!(at(&[1, 0], Placement::Local), cascade(1));
        assert_eq!(at(&[1, 0], cascade(0)), cascade(0), "a little sooner is no reason to change");
        assert_eq!(at(&[], cascade(0)), Placement::Local);
        let slow = [pool("far", [Some(450), None])];
        let (placement, why) = place(&stream(true), &slow, &[0], Placement::Local);
        assert_eq!((placement, why.to_string().contains("450 ms, and wanted in 500 ms")), (Placement::Local, true), "{why}");
        assert_eq!(place(&stream(true), &slow, &[0], cascade(0)).0, cascade(0), "in time is enough for the present one");
        let (placement, why) = place(&stream(false), &pools, &[0], Placement::None);
        assert_eq!(placement, Placement::Offload { pool: 0 });
        assert!(why.to_string().contains("300 ms of 500 ms; its queue was 10 % full 2 s ago"), "{why}");
        let others = pools_rejected(&stream(true), &pools, &[0], cascade(0));
        assert!(others.len() == 1 && others[0].starts_with("pool near: no uplink"), "{others:?}");
    }

    #[test]
    fn law_and_order_come_before_time() {
        let why = |change: fn(&mut StreamPolicy, &mut PoolPlace)| {
            let (mut stream, mut pool) = (stream(true), pool("a", [Some(10), None]));
            change(&mut stream, &mut pool);
            place(&stream, &[pool], &[0], Placement::Local)
        };
        let rejected = |why| (Placement::Local, Placed::Rejected(why));
        assert_eq!(why(|stream, _| stream.zones = vec!["us".into()]), rejected(PoolRejected::Zone));
        assert!(why(|stream, _| stream.zones = vec!["eu".into()]).0.pool().is_some());
        let nowhere = why(|stream, pool| (stream.zones, pool.zone) = (vec!["eu".into()], None));
        assert_eq!(nowhere, rejected(PoolRejected::Zone), "who does not say where it is, is nowhere");
        assert_eq!(why(|_, pool| pool.is_open = true), rejected(PoolRejected::Breaker));
        assert_eq!(why(|_, pool| pool.task = "other".into()), rejected(PoolRejected::NoPool));
        assert!(matches!(why(|_, pool| pool.shape = (2, 9)).1, Placed::Rejected(PoolRejected::Shape { .. })));
        let never = why(|stream, _| stream.offload.as_mut().expect("it has one").mode = OffloadMode::Never);
        assert_eq!(never, (Placement::Local, Placed::NotAsked));
    }
}
