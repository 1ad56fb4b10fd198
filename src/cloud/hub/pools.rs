//! Pools, as gateways and operators are told of them.

use std::sync::atomic::Ordering::Relaxed;

use weir_logic::receive::SessionId;
use weir_logic::wire::Body;

use super::Hub;
use crate::pools::{one, views_for};
use crate::session::Transport;
use crate::status::PoolsStatus;

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
            machines: door.machines(),
            pools: self.links.pools_rx.borrow().iter().map(one).collect(),
        }
    }
}
