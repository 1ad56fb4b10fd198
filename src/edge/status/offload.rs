//! Larger models in the cloud, as the box shows them.

use serde::{Deserialize, Serialize};
use weir_logic::gateway::Gateway;
use weir_logic::offload::KnownPool;

/// Larger models in the cloud, and what was asked of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct OffloadStatus {
    /// Requests under way.
    pub in_flight: u64,
    /// Requests of the last hour, and how many that may be.
    pub hour_requests: (u64, u64),
    /// Bytes of their windows, and how many that may be.
    pub hour_bytes: (u64, u64),
    /// Pools of which the cloud told, beyond what is remembered.
    pub pools_ignored: u64,
    /// Pools.
    pub pools: Vec<PoolStatus>,
}

/// One pool.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Name.
    pub name: String,
    /// What it does.
    pub task: String,
    /// Its model and version.
    pub model: String,
    /// True if an uplink that is up leads to it.
    pub reached: bool,
    /// Whether it is asked: `closed`, `half-open` or `open`.
    pub breaker: String,
    /// Why it is not closed.
    pub breaker_reason: Option<String>,
    /// Times that it opened.
    pub breaker_opened: u64,
    /// How long its answers took of late, in microseconds.
    pub answer_us: Option<u64>,
    /// How full its queue is, in percent, as the cloud says.
    pub queue_percent: u64,
    /// 95th percentile of its answers there, in microseconds, as the cloud says.
    pub p95_us: u64,
    /// How old what the cloud says is, in microseconds.
    pub age_us: u64,
}

pub(super) fn offload(now_us: u64, gateway: &Gateway) -> OffloadStatus {
    let offloads = gateway.offloads();
    let [hour_requests, hour_bytes] = offloads.hour();
    let pool = |pool: &KnownPool| {
        let (view, breaker) = (pool.view(), pool.breaker());
        PoolStatus {
            name: view.name.clone(),
            task: view.task.clone(),
            model: format!("{} {}", view.model, view.version),
            reached: pool.is_reached(),
            breaker: pool.state().to_owned(),
            breaker_reason: breaker.reason().map(|reason| reason.to_string()),
            breaker_opened: breaker.counters().opened,
            answer_us: pool.answer_us(now_us),
            queue_percent: view.queue_percent.into(),
            p95_us: view.p95_us,
            age_us: now_us.saturating_sub(pool.told_us()).saturating_add(view.age_ms.saturating_mul(1_000)),
        }
    };
    OffloadStatus {
        in_flight: offloads.in_flight() as u64,
        hour_requests,
        hour_bytes,
        pools_ignored: offloads.pools_ignored(),
        pools: offloads.pools().iter().map(pool).collect(),
    }
}
