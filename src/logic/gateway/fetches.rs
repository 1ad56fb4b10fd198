//! Models from the cloud: what is offered, by which uplinks its parts come, and what the cloud is told.

use super::{Event, Gateway, Output};
use crate::models::{FetchInput, FetchOutput, FetchView, FetchWay, NoWay};
use crate::route::{Standing, standing};
use crate::wire::model::ModelOffer;

impl Gateway {
    /// Packages on their way, for status and metrics.
    pub fn fetches(&self) -> FetchView<'_> {
        self.fetches.view()
    }

    /// A session came up: its cloud is told which models are here. A box that takes none says nothing, and is offered none.
    pub(super) fn greet_with_models(&mut self, uplink: usize) {
        let states = self.fetches.states();
        if self.fetches.takes_models() && !states.tasks.is_empty() {
            self.uplinks[uplink].send_model_states(states);
        }
    }

    pub(super) fn model_offered(&mut self, now_us: u64, offer: ModelOffer) {
        if self.stopping {
            return;
        }
        self.fetches.offered(offer);
        self.fetch(now_us);
        // Who offers what was decided before is told so again.
        self.tell_model_states(now_us);
    }

    pub(super) fn fetch_input(&mut self, now_us: u64, input: FetchInput) {
        self.fetches.handle(now_us, input);
        self.fetch(now_us);
    }

    /// Goes on with what is being fetched.
    pub(super) fn fetch(&mut self, now_us: u64) {
        if !self.stopping {
            let views = self.uplink_views(now_us);
            let refusals: Vec<_> = views.iter().enumerate().map(|(at, view)| self.no_way(at, standing(view))).collect();
            let named = self.policy.uplinks.iter().zip(refusals);
            let ways: Vec<FetchWay<'_>> = named.map(|(of, refusal)| FetchWay { name: &of.name, refusal }).collect();
            self.fetches.tick(now_us, &ways);
        }
        while let Some(output) = self.fetches.poll() {
            match output {
                FetchOutput::News(news) => self.outputs.push_back(Output::Event(Event::ModelFetch(news))),
                other => self.outputs.push_back(Output::Fetch(other)),
            }
        }
        let states = self.fetches.states();
        if states != self.model_states_told {
            self.model_states_told = states;
            self.tell_model_states(now_us);
        }
    }

    /// True if [`Gateway::fetch`] has something to do.
    pub(super) fn is_fetch_due(&self, now_us: u64) -> bool {
        now_us >= self.fetches.deadline_us()
    }

    /// Why an uplink does not carry models.
    fn no_way(&self, at: usize, standing: Standing) -> Option<NoWay> {
        let of = &self.policy.uplinks[at];
        if of.stands_in_for.is_some() {
            return Some(NoWay::Tcp);
        }
        if of.meter.is_some() && !self.fetches.takes_metered() {
            return Some(NoWay::Metered);
        }
        if !self.uplinks[at].is_up() || self.ways[at].is_probe() {
            return Some(NoWay::Down);
        }
        if self.budget(at).is_some_and(|budget| budget.allowance().others_bytes == 0) {
            return Some(NoWay::Month);
        }
        (standing == Standing::Bad).then_some(NoWay::Unwell)
    }

    fn tell_model_states(&mut self, now_us: u64) {
        for at in 0..self.uplinks.len() {
            if self.uplinks[at].is_up() {
                self.greet_with_models(at);
                self.drain_session(now_us, at);
            }
        }
    }
}
