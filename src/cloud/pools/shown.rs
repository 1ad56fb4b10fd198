//! A pool as it is shown: in the status, in the graph, and to gateways.

use std::collections::BTreeMap;

use weir_logic::ids::Class;
use weir_logic::pool::{PoolCounters, PoolLoad, RefusedReason};
use weir_logic::wire::offload::PoolView;

use crate::status::OnePoolStatus;

/// One pool as it is, for the status, the graph, and whoever may use it.
#[derive(Debug, Clone, Default)]
pub(crate) struct PoolStatus {
    pub(crate) view: PoolView,
    pub(crate) gateways: Vec<String>,
    /// Address of the machine that runs it; `None` for this one. Its limits and counts are told there.
    pub(crate) machine: Option<String>,
    pub(crate) queue_max: usize,
    pub(crate) load: PoolLoad,
    pub(crate) counters: PoolCounters,
    /// Requests of gateways that may not use it, or that make no sense to it.
    pub(crate) denied: u64,
    /// Windows that its model failed at.
    pub(crate) failed: u64,
}

/// One pool for the status.
pub(crate) fn one(pool: &PoolStatus) -> OnePoolStatus {
    let (view, counters) = (&pool.view, &pool.counters);
    let by_class = |counts: [u64; 4]| BTreeMap::from(Class::ALL.map(|class| (class.name(), counts[class.index()])));
    let refused = RefusedReason::ALL.map(|reason| (reason.name(), by_class(counters.refused[reason as usize])));
    OnePoolStatus {
        name: view.name.clone(),
        task: view.task.clone(),
        model: view.model.clone(),
        version: view.version.clone(),
        gateways: pool.gateways.clone(),
        machine: pool.machine.clone(),
        queued: pool.load.queued,
        queue_max: pool.queue_max,
        running: pool.load.running,
        p50_us: pool.load.p50_us,
        p95_us: pool.load.p95_us,
        age_us: pool.load.age_us,
        refused_p95_us: pool.load.refused_p95_us,
        served: by_class(counters.served),
        refused: refused.into(),
        denied: pool.denied,
        failed: pool.failed,
        cancelled: counters.cancelled,
        batches: counters.batches,
    }
}
