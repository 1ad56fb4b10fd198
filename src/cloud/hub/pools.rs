//! Pools, as gateways and operators are told of them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use weir_logic::ids::Class;
use weir_logic::pool::RefusedReason;
use weir_logic::receive::SessionId;
use weir_logic::wire::Body;

use super::Hub;
use crate::pools::{PoolStatus, views_for};
use crate::session::Transport;
use crate::status::{OnePoolStatus, PoolsStatus};

impl Hub {
    pub(super) fn tell_all_pools(&mut self) {
        let greeted = self.sessions.iter().filter(|(_, session)| session.opening.is_none());
        let ids: Vec<SessionId> = greeted.map(|(&id, _)| id).collect();
        ids.into_iter().for_each(|id| self.tell_pools(id));
    }

    /// Tells a gateway which pools it may use, if that is news. Over TCP none can be asked.
    pub(super) fn tell_pools(&mut self, id: SessionId) {
        let now_us = self.now().mono_us;
        let Some(session) = self.sessions.get_mut(&id).filter(|session| matches!(session.peer.transport, Transport::Quic(_)))
        else {
            return;
        };
        let views = views_for(&self.links.pools_rx.borrow(), &session.peer.gateway);
        if let Some(news) = session.pools.news(now_us, &views) {
            self.say(id, Body::Pools(news));
        }
    }

    pub(super) fn pools_status(&self) -> PoolsStatus {
        let door = &self.links.door;
        PoolsStatus {
            over_limit: door.over_limit.load(Relaxed),
            garbled: door.garbled.load(Relaxed),
            pools: self.links.pools_rx.borrow().iter().map(one).collect(),
        }
    }
}

fn one(pool: &PoolStatus) -> OnePoolStatus {
    let (view, counters) = (&pool.view, &pool.counters);
    let by_class = |counts: [u64; 4]| BTreeMap::from(Class::ALL.map(|class| (class.name(), counts[class.index()])));
    let refused = RefusedReason::ALL.map(|reason| (reason.name(), by_class(counters.refused[reason as usize])));
    OnePoolStatus {
        name: view.name.clone(),
        task: view.task.clone(),
        model: view.model.clone(),
        version: view.version.clone(),
        gateways: pool.gateways.clone(),
        queued: pool.load.queued,
        queue_max: pool.queue_max,
        running: pool.load.running,
        p50_us: pool.load.p50_us,
        p95_us: pool.load.p95_us,
        age_us: pool.load.age_us,
        served: by_class(counters.served),
        refused: refused.into(),
        denied: pool.denied,
        failed: pool.failed,
        cancelled: counters.cancelled,
        batches: counters.batches,
    }
}
