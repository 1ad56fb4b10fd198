//! The gateway: one pure state machine from sockets to the cloud.
//!
//! [`Gateway::handle`] takes what happened, [`Gateway::poll`] says what to do next, [`Gateway::deadline_us`] when to come
//! back if nothing happens. The shell carries out outputs and reports what came of them; it decides nothing.

use std::collections::VecDeque;

use crate::budget::{BudgetLevel, MonthBudget};
use crate::explain::Changes;
use crate::health::{BreakerLimits, UplinkHealth, UplinkLimits};
use crate::ids::{BlockKey, Class, Epoch, PerClass};
use crate::ingest::{Ingest, Moment, RouteError};
use crate::lanes::{Found, Lanes, Outgoing};
use crate::models::{FetchStart, Fetches};
use crate::offload::Offloads;
use crate::plan::{Plan, View, plan};
use crate::policy::Policy;
use crate::store::StoreError;
use crate::thin::Thinner;
use crate::uplink::{Session, SessionOutput};
use crate::wire::LoadLevel;
use crate::wire::model::ModelStates;

pub use answers::{
    Explanation, LaneExplanation, PriceExplanation, Question, QuestionError, RecordExplanation, RecordId, StreamExplanation,
};
pub use events::{Event, Input, Output};
pub use federation::FederationCounts;
pub use offers::{PolicyNews, PolicyStart, PolicyView};

use control::{Control, close_reason};
use federation::Federation;
use losses::Losses;
use offers::Offers;
use ways::Way;

/// What the gateway starts with.
#[derive(Debug)]
pub struct Start<'a> {
    /// Drawn for this run, never used before.
    pub epoch: Epoch,
    /// From the same draw; spreads hash tables and retries.
    pub seed: u64,
    /// Name of the box, as its certificate says; it stands in the health graph.
    pub name: &'a str,
    /// Version of the software, told to the cloud.
    pub software: &'a str,
    /// What the buffer held.
    pub found: Found<'a>,
    /// By uplink: what was saved of its month's budget.
    pub budgets: &'a [BudgetLevel],
    /// Which policy it is, and what is to be told of others.
    pub policy: PolicyStart,
    /// What is allowed of models that the cloud offers.
    pub models: FetchStart,
}

/// The composition: ingest, lanes, uplinks and the plan between them.
#[derive(Debug)]
pub struct Gateway {
    policy: Policy,
    plan: Plan,
    ingest: Ingest,
    lanes: Lanes,
    uplinks: Vec<Session>,
    health: Vec<UplinkHealth>,
    ways: Vec<Way>,
    federation: Federation,
    control: Control,
    changes: Changes,
    offers: Offers,
    offloads: Offloads,
    fetches: Fetches,
    /// What clouds were last told of models.
    model_states_told: ModelStates,
    software: String,
    outputs: VecDeque<Output>,
    /// What was safe when acknowledgements last left: by class, and packet ids.
    safe: (PerClass<u64>, u64),
    commit_failing: bool,
    losses: Losses,
    stopping: bool,
    /// Until when a stop waits for windows that are being scored.
    scored_by_us: u64,
    said_farewell: bool,
    /// Time of the last input.
    now_us: u64,
}

/// How long a stop waits for windows that are being scored: a full queue of 256 windows takes a Pi 4 about a second, and a
/// supervisor waits for ten.
const SCORING_WAIT_US: u64 = 3_000_000;

impl Gateway {
    /// A gateway about to start: poll it for its first outputs.
    ///
    /// # Errors
    /// A topic filter of the policy that is malformed.
    pub fn new(now: Moment, policy: Policy, start: &Start<'_>) -> Result<Self, RouteError> {
        let now_us = now.service_us;
        let ingest = Ingest::new(now_us, start.epoch, &policy, start.seed, start.found.packet_ids)?;
        let thinner = Thinner::new(&policy.streams, start.seed);
        let mut lanes = Lanes::new(now_us, start.epoch, policy.lanes, policy.lanes_limits, start.found, thinner);
        ingest.forget_strangers(now_us, &mut lanes, start.found.packet_ids);
        let seed = |uplink: usize| start.seed.wrapping_add(uplink as u64);
        let uplinks = (0..policy.uplinks.len()).map(|uplink| Session::new(now_us, policy.session, seed(uplink))).collect();
        let health = policy.uplinks.iter().enumerate().map(|(uplink, of)| {
            let (nominal_bps, breaker) = (of.nominal_bps, BreakerLimits::default());
            let metered = of.meter.is_some() && of.stands_in_for.is_none();
            UplinkHealth::new(now_us, UplinkLimits { nominal_bps, metered, breaker, seed: seed(uplink) }, None)
        });
        let health: Vec<UplinkHealth> = health.collect();
        let ways = ways::ways(now_us, &policy, start.budgets, start.seed);
        let mut gateway = Gateway {
            safe: (lanes.safe(), 0),
            control: Control::new(now_us, &policy),
            health,
            ways,
            federation: Federation::new(start.name, start.epoch, &policy),
            offloads: Offloads::new(start.seed, policy.streams.len(), policy.uplinks.len(), policy.offload),
            plan: Plan::default(),
            policy,
            ingest,
            lanes,
            uplinks,
            changes: Changes::default(),
            offers: Offers::new(&start.policy),
            fetches: Fetches::new(start.models),
            model_states_told: ModelStates::default(),
            software: start.software.to_owned(),
            outputs: VecDeque::new(),
            commit_failing: false,
            losses: Losses::default(),
            stopping: false,
            scored_by_us: u64::MAX,
            said_farewell: false,
            now_us,
        };
        let uplinks = gateway.uplink_views(now_us);
        gateway.plan = plan(&gateway.policy, &View { now_us, uplinks: &uplinks, ..View::default() }, None);
        gateway.announce_plan(None);
        gateway.want_ways(now_us);
        gateway.settle(now);
        Ok(gateway)
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Moment, input: Input<'_>) {
        let now_us = now.service_us;
        self.now_us = now_us;
        self.lanes.set_wall_offset(now.wall_offset_us);
        let (ingest, plan, lanes) = (&mut self.ingest, &self.plan, &mut self.lanes);
        match input {
            Input::Tick => {}
            Input::ClientOpened { conn } => ingest.opened(now_us, conn),
            Input::ClientRead { conn, bytes } => ingest.read(now, plan, lanes, conn, bytes),
            Input::ClientLost { conn } => ingest.lost(now, plan, lanes, conn),
            Input::BrokerOpened { conn, broker, generation } => ingest.broker_opened(now_us, conn, broker, generation),
            Input::BrokerFailed { broker, generation, reason } => ingest.broker_failed(now_us, broker, generation, &reason),
            Input::Authenticated { conn, result } => ingest.authenticated(now, plan, lanes, conn, result),
            Input::Inferred(scored) => {
                ingest.inferred(now, plan, lanes, &scored);
                if self.stopping && !self.said_farewell {
                    self.commit_last(now_us);
                }
            }
            Input::Committed { ticket, result } => self.committed(now_us, ticket, result),
            Input::Loaded { key, block } => lanes.loaded(now_us, key, block),
            Input::LoadFailed { key } => lanes.load_failed(now_us, key),
            Input::UplinkConnected { uplink } => {
                let (epoch, held) = (lanes.epoch(), lanes.held_epochs());
                self.health[usize::from(uplink)].connected(now_us);
                self.ways[usize::from(uplink)].connected();
                self.uplinks[usize::from(uplink)].connected(now_us, epoch, &held, &self.software);
            }
            Input::UplinkControl { uplink, bytes } => self.uplinks[usize::from(uplink)].control(now_us, bytes),
            Input::UplinkWritten { uplink, flow, len } => lanes.written(uplink, flow, len),
            Input::UplinkPath { uplink, path } => self.path(now_us, uplink, &path),
            Input::UplinkClosed { uplink, reason } => self.uplinks[usize::from(uplink)].closed(now_us, reason),
            Input::UplinkInterface { uplink, up } => {
                self.health[usize::from(uplink)].interface(now_us, up);
                if up {
                    self.uplinks[usize::from(uplink)].retry_now(now_us);
                }
            }
            Input::PolicyChecked { version, result } => self.policy_checked(now_us, version, result),
            Input::OffloadAnswered { id, bytes } => self.offloads.answered(now_us, id, bytes),
            Input::OffloadFailed { id } => self.offloads.failed(now_us, id),
            Input::Fetch(input) => self.fetch_input(now_us, input),
            Input::ChunkCame { id, bytes } => self.fetches.came(now_us, id, bytes),
            Input::ChunkFailed { id } => self.fetches.failed(now_us, id),
            Input::Stop => self.stop(now),
        }
        self.settle(now);
    }

    /// What to do next.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Gateway::handle`] with [`Input::Tick`] if nothing else happens; service time.
    pub fn deadline_us(&mut self) -> u64 {
        let mut deadline = self.lanes.deadline_us().min(self.offloads.deadline_us());
        if !self.stopping {
            deadline = deadline.min(self.ingest.deadline_us());
        } else if self.is_scoring() {
            deadline = deadline.min(self.scored_by_us);
        }
        deadline = deadline.min(self.lanes.send_due_us(self.now_us, &self.credits(self.now_us), &self.plan));
        if !self.stopping {
            deadline = self.health.iter().filter_map(|health| health.deadline_us(self.now_us)).fold(deadline, u64::min);
        }
        let deadline = if self.stopping { deadline } else { deadline.min(self.control.due_us).min(self.fetches.deadline_us()) };
        self.uplinks.iter().map(Session::deadline_us).fold(deadline, u64::min)
    }

    /// Lets every part do what is now possible.
    fn settle(&mut self, now: Moment) {
        let now_us = now.service_us;
        if !self.stopping {
            self.ingest.tick(now, &self.plan, &mut self.lanes);
        }
        self.escalate(now);
        self.lanes.tick(now_us);
        for index in 0..self.uplinks.len() {
            let settled = || self.lanes.settled();
            self.uplinks[index].tick(now_us, settled);
            self.drain_session(now_us, index);
        }
        if !self.stopping {
            self.steer(now);
            if self.fetches.has_outputs() || self.is_fetch_due(now_us) {
                self.fetch(now_us);
            }
        }
        // What is taken in now is sent and written below.
        let safe = (self.lanes.safe(), self.lanes.packet_ids_committed());
        if safe != self.safe || self.ingest.has_room_again(&self.lanes) {
            self.safe = safe;
            self.ingest.progressed(now, &self.plan, &mut self.lanes);
        }
        self.escalate(now);
        self.send(now_us);
        if let Some(key) = self.lanes.relieve(now_us, &self.plan) {
            self.outputs.push_back(Output::Load { key });
        }
        if let Some(request) = self.lanes.commit(now_us) {
            self.outputs.push_back(Output::Commit(request));
        }
        if self.stopping && !self.said_farewell && !self.lanes.is_committing() && !self.is_scoring() {
            self.farewell(now);
        }
        self.tell_losses(now_us, self.said_farewell);
        self.drain_ingest();
    }

    fn drain_ingest(&mut self) {
        use crate::ingest::Output as Out;
        while let Some(output) = self.ingest.poll() {
            self.outputs.push_back(match output {
                Out::Write { conn, bytes } => Output::ClientWrite { conn, bytes },
                Out::Read { conn } => Output::ClientRead { conn },
                Out::Close { conn, client_id, close } => Output::ClientClose { conn, client_id, close },
                Out::BrokerConnect { broker, generation } => Output::BrokerConnect { broker, generation },
                Out::BrokerClose { conn } => Output::BrokerClose { conn },
                Out::Broker { broker, event } => Output::Event(Event::Broker { broker, event }),
                Out::Authenticate { conn, username, password } => Output::Authenticate { conn, username, password },
            });
        }
        self.outputs.extend(self.ingest.take_jobs().into_iter().map(Output::Infer));
    }

    fn drain_session(&mut self, now_us: u64, index: usize) {
        let uplink = index as u8;
        while let Some(output) = self.uplinks[index].poll() {
            match output {
                SessionOutput::Connect => self.outputs.push_back(Output::Connect { uplink }),
                SessionOutput::Write(bytes) => self.outputs.push_back(Output::ControlWrite { uplink, bytes }),
                SessionOutput::Disconnect(_) => self.outputs.push_back(Output::Disconnect { uplink }),
                SessionOutput::Acked { epoch, lane, range } => {
                    let key = BlockKey { lane, epoch, first_seq: *range.start() };
                    self.trial_acked(now_us, index, key, *range.end());
                    self.lanes.ack(now_us, uplink, lane, epoch, range);
                }
                SessionOutput::Pinged => self.health[index].pinged(now_us),
                SessionOutput::Heartbeat { rtt_us } => {
                    self.health[index].heartbeat(now_us, rtt_us);
                    self.way_answered(index);
                }
                SessionOutput::Greeted { last_stamp, node } => self.greeted(index, last_stamp, &node),
                SessionOutput::NeedFull => self.need_full(index),
                SessionOutput::Advice(advice) => self.advised(now_us, &advice),
                SessionOutput::Load(load) => {
                    self.control.at_once |= self.ways[index].pressure.tell(now_us, load.level());
                    self.outputs.push_back(Output::Event(Event::CloudLoad { uplink, load }));
                }
                SessionOutput::Asked { id, text } => self.answer(now_us, index, id, &text),
                SessionOutput::PolicyOffer(offer) => self.offered(now_us, offer),
                SessionOutput::ModelOffer(offer) => self.model_offered(now_us, offer),
                SessionOutput::Pools(pools) => {
                    self.offloads.told(now_us, uplink, pools);
                    self.control.at_once = true;
                }
                SessionOutput::Up => {
                    // A busy cloud says so right after this.
                    self.ways[index].pressure.tell(now_us, LoadLevel::Idle);
                    self.lanes.set_uplink_up(now_us, true);
                    self.control.at_once = true;
                    self.greet_with_policy(index);
                    self.greet_with_models(index);
                    self.outputs.push_back(Output::Event(Event::UplinkUp { uplink }));
                }
                SessionOutput::Failed(reason) => {
                    self.health[index].closed(now_us, close_reason(&reason, false));
                    self.way_down(now_us, index);
                    self.outputs.push_back(Output::Event(Event::AttemptFailed { uplink, reason }));
                }
                SessionOutput::Down(reason) => {
                    self.health[index].closed(now_us, close_reason(&reason, true));
                    self.control.at_once = true;
                    self.way_down(now_us, index);
                    self.offloads.uplink_lost(now_us, uplink);
                    self.fetches.uplink_lost(now_us, uplink);
                    self.lanes.session_lost(uplink);
                    let up = self.uplinks.iter().any(Session::is_up);
                    self.lanes.set_uplink_up(now_us, up);
                    self.outputs.push_back(Output::Event(Event::UplinkDown { uplink, reason }));
                }
            }
        }
    }

    /// By uplink: the bytes per class that it may have under way, if it is up.
    fn credits(&self, now_us: u64) -> Vec<Option<PerClass<u64>>> {
        self.uplinks.iter().map(|session| session.is_up().then(|| session.credits(now_us))).collect()
    }

    /// True if an uplink is what holds back, rather than the cloud or nothing.
    fn is_waiting(&self, now_us: u64) -> bool {
        self.lanes.is_waiting(&self.credits(now_us), &self.plan)
    }

    /// Hands over what the uplinks can take.
    fn send(&mut self, now_us: u64) {
        let ways = self.credits(now_us);
        let critical = self.plan.uplinks[Class::Critical.index()].iter().map(|&uplink| usize::from(uplink));
        let Some(first) = critical.chain(0..ways.len()).find(|&uplink| ways[uplink].is_some()) else { return };
        let voids = self.lanes.take_voids_to_send();
        if !voids.is_empty() {
            self.uplinks[first].send_voids(&voids);
        }
        while let Some(outgoing) = self.lanes.outgoing(now_us, &ways, &self.plan) {
            let output = match outgoing {
                Outgoing::Send { uplink, flow, key, block } => {
                    self.trial_sent(now_us, uplink, key, block.len() as u64);
                    Output::SendBlock { uplink, flow, block }
                }
                Outgoing::Load { key } => Output::Load { key },
            };
            self.outputs.push_back(output);
        }
        self.drain_session(now_us, first);
        for (uplink, health) in self.health.iter_mut().enumerate() {
            health.under_way(now_us, self.lanes.under_way_bytes(uplink as u8).iter().sum());
        }
    }

    fn committed(&mut self, now_us: u64, ticket: u64, result: Result<(), StoreError>) {
        match (&result, self.commit_failing) {
            (Err(error), false) => {
                self.commit_failing = true;
                self.outputs.push_back(Output::Event(Event::CommitFailed { error: error.clone() }));
            }
            (Ok(()), true) => {
                self.commit_failing = false;
                self.outputs.push_back(Output::Event(Event::CommitRecovered));
            }
            _ => {}
        }
        let worked = result.is_ok();
        self.lanes.committed(now_us, ticket, result);
        if self.stopping && worked {
            self.commit_last(now_us);
        }
    }

    /// Writes what is not yet safe, whatever its mode.
    fn commit_last(&mut self, now_us: u64) {
        if let Some(request) = self.lanes.final_commit(now_us) {
            self.outputs.push_back(Output::Commit(request));
        }
    }

    /// True while a stop waits for windows that are being scored.
    fn is_scoring(&self) -> bool {
        self.stopping && self.ingest.pending_windows() > 0 && self.now_us < self.scored_by_us
    }

    /// Takes nothing more in, closes what is open, and writes what is not yet safe; clients stay until they have their PUBACKs.
    fn stop(&mut self, now: Moment) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        self.scored_by_us = now.service_us + SCORING_WAIT_US;
        self.ingest.stop(now, &self.plan, &mut self.lanes);
        for index in 0..self.uplinks.len() {
            self.uplinks[index].stop(now.service_us);
            self.drain_session(now.service_us, index);
        }
        // What the model on the box said stands.
        self.offloads.stop();
        self.escalate(now);
        self.commit_last(now.service_us);
    }

    /// All that can be safe is, and its PUBACKs are out: ends the connections. A will may be one more record to write.
    fn farewell(&mut self, now: Moment) {
        self.said_farewell = true;
        self.ingest.disconnect_all(now, &self.plan, &mut self.lanes);
        self.commit_last(now.service_us);
    }

    /// True once everything that can be made safe after [`Input::Stop`] is.
    pub fn is_stopped(&self) -> bool {
        self.said_farewell && !self.lanes.is_committing()
    }

    /// True if the buffer refused the last transaction and has taken none since.
    pub fn is_commit_failing(&self) -> bool {
        self.commit_failing
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The plan in force.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Connections and streams, for status and metrics.
    pub fn ingest(&self) -> &Ingest {
        &self.ingest
    }

    /// Health of the uplinks, for status and metrics.
    pub fn health(&self) -> &[UplinkHealth] {
        &self.health
    }

    /// What has changed in the plan, and why.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// By uplink: its month's budget, if it has one; its level is to be saved now and then.
    pub fn budgets(&self) -> impl Iterator<Item = Option<&MonthBudget>> {
        self.ways.iter().map(|way| way.budget.as_ref())
    }

    /// The numbers behind the present price of a byte.
    pub fn price(&self) -> &crate::price::Explanation {
        &self.control.price
    }

    /// Lanes, for status and metrics.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Uplinks, for status and metrics.
    pub fn uplinks(&self) -> &[Session] {
        &self.uplinks
    }
}

mod answers;
mod control;
mod events;
mod federation;
mod fetches;
mod losses;
mod offers;
mod offloads;
#[cfg(test)]
mod tests;
mod ways;
