//! What the hub does about models: sends offers, stores what became of them, and raises an alert when one is halted.

use std::sync::Arc;

use weir_logic::wire::model::ModelStates;

use super::Hub;
use crate::models::{ModelKey, ModelTold};
use crate::policies::PolicyRecord;
use crate::sink::{Job, Work};

impl Hub {
    /// Offers models to those whose turn it is, and asks what is on record of new ones.
    pub(super) fn offer_models(&mut self) {
        if self.links.shelf_rx.has_changed().unwrap_or(false) {
            let shelf = self.links.shelf_rx.borrow_and_update().clone();
            for (task, version) in self.models.found(&shelf) {
                self.links.sink.load_model(task, version);
            }
        }
        for (gateway, offer) in self.models.offers(self.now().mono_us) {
            // The newest session is the one most likely to live.
            let newest = self.sessions.iter().rev().find(|(_, session)| session.peer.gateway == gateway);
            if let Some(id) = newest.map(|(&id, _)| id) {
                self.say(id, offer);
            }
        }
    }

    /// A gateway said which models it has, and what became of those offered.
    pub(super) fn models_told(&mut self, gateway: &Arc<str>, states: ModelStates) {
        let news = self.models.told(gateway, states);
        self.model_news(news.into_iter().map(|told| (gateway.clone(), told)).collect());
    }

    /// Stores and tells what gateways said of models.
    fn model_news(&mut self, news: Vec<(Arc<str>, ModelTold)>) {
        for (gateway, told) in news {
            let ModelTold { task, version, state, reason, halts } = told;
            let job = |work| Job { gateway: gateway.clone(), work, room: None };
            tracing::info!(%gateway, task, version, state = state.name(), reason, "model state");
            if halts {
                tracing::error!(%gateway, task, version, state = state.name(), reason, "model halted: nobody else is offered it");
                let text = format!("model version {version} for {task} is halted: {} ({reason})", state.name());
                self.alert(&gateway, "model", &text);
                self.links.sink.push(job(Work::Alert("model", text)));
            }
            self.links.sink.push(job(Work::ModelState { task, version, state, reason }));
        }
    }

    /// What is on record of a model.
    pub(super) fn model_loaded(&mut self, key: ModelKey, record: Result<PolicyRecord, String>) {
        match record {
            Ok(record) => {
                if let Some((file, sha256)) = self.models.first_seen(&key, &record) {
                    let (task, version) = key.clone();
                    let work = Work::ModelFound { task, version, file, sha256 };
                    self.links.sink.push(Job { gateway: "".into(), work, room: None });
                }
                let news = self.models.loaded(&key, record);
                self.model_news(news);
            }
            // Without it nobody is offered it; it is asked for again when its file changes, or at the next start.
            Err(err) => {
                let (task, version) = key;
                tracing::error!(task, version, err, "what is on record of a model cannot be read; it is not offered");
            }
        }
    }
}
