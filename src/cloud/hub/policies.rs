//! What the hub does about policies: sends them, stores what became of them, and raises an alert when one is halted.

use std::sync::Arc;

use weir_logic::wire::PolicyState;

use super::Hub;
use crate::policies::{PolicyRecord, Told};
use crate::sink::{Job, Work};

impl Hub {
    /// Offers policies to those whose turn it is, and asks what is on record of new ones.
    pub(super) fn offer_policies(&mut self) {
        if self.links.directory_rx.has_changed().unwrap_or(false) {
            let directory = self.links.directory_rx.borrow_and_update().clone();
            for found in self.policies.found(&directory) {
                self.links.sink.load_policy(found.head.version);
            }
        }
        for (gateway, offer) in self.policies.offers(self.now().mono_us) {
            // The newest session is the one most likely to live.
            let newest = self.sessions.iter().rev().find(|(_, session)| session.peer.gateway == gateway);
            if let Some(id) = newest.map(|(&id, _)| id) {
                self.say(id, offer);
            }
        }
    }

    /// A gateway said which policy it has, and what became of the last one.
    pub(super) fn policy_told(&mut self, gateway: &Arc<str>, state: PolicyState) {
        let news = self.policies.told(gateway, state);
        self.policy_news(news.into_iter().map(|told| (gateway.clone(), told)).collect());
    }

    /// Stores and tells what gateways said of policies.
    fn policy_news(&mut self, news: Vec<(Arc<str>, Told)>) {
        for (gateway, told) in news {
            let Told { version, state, reason, halts } = told;
            let job = |work| Job { gateway: gateway.clone(), work, room: None };
            tracing::info!(%gateway, version, state = state.name(), reason, "policy state");
            if halts {
                tracing::error!(%gateway, version, state = state.name(), reason, "policy halted: nobody else is offered it");
                let text = format!("policy version {version} is halted: {} ({reason})", state.name());
                self.alert(&gateway, "policy", &text);
                self.links.sink.push(job(Work::Alert("policy", text)));
            }
            self.links.sink.push(job(Work::PolicyState { version, state, reason }));
        }
    }

    /// What is on record of a policy.
    pub(super) fn policy_loaded(&mut self, version: u64, record: Result<PolicyRecord, String>) {
        match record {
            Ok(record) => {
                if let Some((file, signature)) = self.policies.first_seen(version, &record) {
                    self.links.sink.push(Job {
                        gateway: "".into(),
                        work: Work::PolicyFound { version, file, signature },
                        room: None,
                    });
                }
                let news = self.policies.loaded(version, record);
                self.policy_news(news);
            }
            // Without it nobody is offered it; it is asked for again when its file changes, or at the next start.
            Err(err) => tracing::error!(version, err, "what is on record of a policy cannot be read; it is not offered"),
        }
    }
}
