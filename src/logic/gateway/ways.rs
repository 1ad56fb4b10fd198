//! The uplinks as ways: which of them are connected, what they may cost, and what is tried on those that failed.
//!
//! A free uplink is always connected. A stand-in is, once the uplink that it stands in for has not worked for
//! [`STAND_IN_US`], and until that one is good again. A metered one is cold, without a connection, until a lane has no other
//! way, or what waits is worth its price; once an hour it is connected for one heartbeat, within the budget of
//! [`crate::health::ColdBudget`]. Whoever is not needed any more stays for [`LINGER_US`], so that need which comes and goes
//! makes no handshakes.
//!
//! A blocked uplink answers and carries nothing, so that only data can show that it has recovered: when its breaker lets a
//! trial through, one block is sent over it beside the way it goes anyway.

use crate::budget::{BudgetLevel, MonthBudget};
use crate::health::{PROBE_BYTES_MAX, PathStats, UplinkState};
use crate::ids::{BlockKey, Class};
use crate::policy::{Policy, UplinkPolicy};
use crate::pressure::Pressure;
use crate::route::{Refusal, Standing, UplinkView, standing};
use crate::uplink::DownReason;
use crate::wire::LoadLevel;

use super::{Event, Gateway, Output};

/// One uplink as a way.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) budget: Option<MonthBudget>,
    /// What was used of the month when there last was a budget.
    saved: BudgetLevel,
    /// The transport's counters as last told, on the present connection.
    path: PathStats,
    /// Since when it has not been good.
    unwell_since_us: Option<u64>,
    wanted_until_us: u64,
    probe: Option<Probe>,
    trial: Option<Trial>,
    /// What neighbours say: how much longer than estimated things last there.
    pub(super) advice: f64,
    /// How busy the cloud at its end is taken to be.
    pub(super) pressure: Pressure,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    since_us: u64,
    answered: bool,
}

/// A block sent over a blocked uplink to see whether it comes through.
#[derive(Debug, Clone, Copy)]
struct Trial {
    /// `None` until there is a block to send.
    sent: Option<(BlockKey, u64, u64)>,
}

impl Way {
    fn new(now_us: u64, month_bytes: Option<u64>, saved: BudgetLevel, seed: u64) -> Way {
        Way {
            budget: month_bytes.map(|bytes| MonthBudget::new(bytes, saved)),
            saved,
            path: PathStats::default(),
            unwell_since_us: Some(now_us),
            wanted_until_us: 0,
            probe: None,
            trial: None,
            advice: 1.0,
            pressure: Pressure::new(seed),
        }
    }

    /// Another policy may allow another month; what was used of the present one stays used.
    pub(super) fn set_month(&mut self, of: &UplinkPolicy) {
        match (&mut self.budget, month_bytes(of)) {
            (Some(budget), Some(bytes)) => budget.set_limit(bytes),
            (None, Some(bytes)) => self.budget = Some(MonthBudget::new(bytes, self.saved)),
            (budget, None) => self.saved = budget.take().map_or(self.saved, |budget| budget.level()),
        }
    }

    /// True while it is connected only to see whether it works.
    pub(super) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// A connection began: its counters do, too.
    pub(super) fn connected(&mut self) {
        self.path = PathStats::default();
    }
}

impl Gateway {
    /// The uplinks as the plan sees them.
    pub(super) fn uplink_views(&self, now_us: u64) -> Vec<UplinkView> {
        let view = |at: usize| UplinkView {
            is_up: self.uplinks[at].is_up() && !self.ways[at].is_probe(),
            estimate: self.health[at].estimate(now_us),
            allowance: self.budget(at).map(MonthBudget::allowance),
            paid_price: self.budget(at).and_then(MonthBudget::price),
            advice: self.ways[at].advice,
            load: self.load(at),
        };
        (0..self.uplinks.len()).map(view).collect()
    }

    /// How busy the machine that an uplink leads to is taken to be, by what it said over any uplink.
    fn load(&self, at: usize) -> LoadLevel {
        let node = &self.policy.uplinks[at].ingest;
        let leads_there = |other: &usize| self.uplinks[*other].is_up() && self.policy.uplinks[*other].ingest == *node;
        let heard = (0..self.uplinks.len()).filter(leads_there);
        heard.map(|other| self.ways[other].pressure.level()).max().unwrap_or_default()
    }

    /// The month's budget of an uplink; a stand-in spends that of the uplink over the same link.
    pub(super) fn budget(&self, at: usize) -> Option<&MonthBudget> {
        self.ways[self.policy.uplinks[at].stands_in_for.map_or(at, usize::from)].budget.as_ref()
    }

    /// Counts what an uplink's connection cost since it was last looked at.
    pub(super) fn path(&mut self, now_us: u64, uplink: u8, path: &PathStats) {
        let at = usize::from(uplink);
        let way = &mut self.ways[at];
        let old = if path.sent_packets < way.path.sent_packets { PathStats::default() } else { way.path };
        way.path = *path;
        let used = cost_bytes(path).saturating_sub(cost_bytes(&old));
        let payer = self.policy.uplinks[at].stands_in_for.map_or(at, usize::from);
        if let Some(budget) = &mut self.ways[payer].budget {
            budget.spend(used);
        }
        self.health[at].path(now_us, path);
    }

    /// A connection ended, and with it what was tried on it.
    pub(super) fn way_down(&mut self, now_us: u64, uplink: usize) {
        if self.ways[uplink].trial.take().is_some() {
            self.lanes.end_trial(uplink as u8);
        }
        if self.ways[uplink].probe.is_some() {
            self.end_probe(now_us, uplink);
        }
    }

    /// Reacts at once to what the health of the uplinks shows; true if a plan must be made.
    pub(super) fn watch_ways(&mut self, now_us: u64) -> bool {
        let mut changed = false;
        for at in 0..self.uplinks.len() {
            self.health[at].look(now_us);
            if self.health[at].ping_due(now_us) && self.uplinks[at].ping(now_us, self.lanes.settled()) {
                self.drain_session(now_us, at);
            }
            let Some(change) = self.health[at].take_change() else { continue };
            changed = true;
            let (uplink, reason) = (at as u8, self.health[at].breaker().reason());
            self.outputs.push_back(Output::Event(Event::UplinkState { uplink, from: change.from, to: change.to, reason }));
        }
        changed
    }

    /// Moves what is under way on uplinks that a lane has left because they are bad; ends the sessions of blocked ones.
    pub(super) fn leave_bad_ways(&mut self, now_us: u64) {
        for at in 0..self.uplinks.len() {
            let uplink = at as u8;
            if !self.uplinks[at].is_up() {
                continue;
            }
            let left = Class::ALL.map(|class| {
                let route = &self.plan.routes[class.index()];
                let is_bad = route.candidates.iter().any(|c| c.uplink == uplink && c.standing == Standing::Bad);
                let has_other = route.usable().any(|other| other != uplink && self.uplinks[usize::from(other)].is_up());
                is_bad && has_other && !route.usable().any(|used| used == uplink)
            });
            if !left.contains(&true) || self.lanes.under_way_bytes(uplink) == [0; 4] {
                continue;
            }
            self.lanes.move_away(uplink, left);
            if self.health[at].estimate(now_us).state == UplinkState::Blocked && self.ways[at].trial.is_none() {
                // What its transport holds would be sent in vain before anything else: it starts anew, for a trial.
                let reason = DownReason::Blocked;
                self.uplinks[at].fail(now_us, reason);
                self.drain_session(now_us, at);
            }
        }
    }

    /// Connects and disconnects uplinks as they are needed.
    pub(super) fn want_ways(&mut self, now_us: u64) {
        let is_waiting = self.is_waiting(now_us);
        let standings: Vec<Standing> = self.uplink_views(now_us).iter().map(standing).collect();
        for (way, standing) in self.ways.iter_mut().zip(&standings) {
            let is_good = *standing == Standing::Good;
            way.unwell_since_us = if is_good { None } else { way.unwell_since_us.or(Some(now_us)) };
        }
        for at in 0..self.uplinks.len() {
            if self.needs(now_us, at, &standings, is_waiting) {
                self.ways[at].wanted_until_us = now_us.saturating_add(LINGER_US);
            }
            let is_wanted = now_us < self.ways[at].wanted_until_us;
            if is_wanted && self.ways[at].probe.is_some() {
                self.end_probe(now_us, at);
            }
            if is_wanted {
                self.uplinks[at].wake(now_us);
            } else if self.policy.uplinks[at].meter.is_some() && self.policy.uplinks[at].stands_in_for.is_none() {
                self.probe_or_rest(now_us, at);
            } else {
                self.uplinks[at].rest(now_us);
            }
            self.drain_session(now_us, at);
            if self.health[at].estimate(now_us).state == UplinkState::Blocked
                && self.uplinks[at].is_up()
                && self.ways[at].trial.is_none()
                && self.health[at].trial(now_us)
            {
                self.ways[at].trial = Some(Trial { sent: None });
                self.lanes.begin_trial(at as u8);
            }
        }
    }

    /// The block of a trial left.
    pub(super) fn trial_sent(&mut self, now_us: u64, uplink: u8, key: BlockKey, len: u64) {
        if let Some(trial) = &mut self.ways[usize::from(uplink)].trial
            && trial.sent.is_none()
        {
            trial.sent = Some((key, len, now_us));
        }
    }

    /// An acknowledgement came over this uplink: if it is of the block of its trial, data passes.
    pub(super) fn trial_acked(&mut self, now_us: u64, at: usize, key: BlockKey, last_seq: u64) {
        let Some(Trial { sent: Some((sent, len, sent_us)) }) = self.ways[at].trial else { return };
        let is_it = (sent.epoch, sent.lane) == (key.epoch, key.lane) && (key.first_seq..=last_seq).contains(&sent.first_seq);
        if is_it {
            self.ways[at].trial = None;
            self.health[at].acked(now_us, len, sent_us);
        }
    }

    fn needs(&self, now_us: u64, at: usize, standings: &[Standing], is_waiting: bool) -> bool {
        let of = &self.policy.uplinks[at];
        let long_unwell =
            |way: &Way| way.unwell_since_us.is_some_and(|since_us| now_us >= since_us.saturating_add(STAND_IN_US));
        if let Some(main) = of.stands_in_for {
            let main = usize::from(main);
            let is_bad = standings[main] == Standing::Bad;
            let is_main_wanted = self.policy.uplinks[main].meter.is_none() || now_us < self.ways[main].wanted_until_us;
            return is_main_wanted && (is_bad || long_unwell(&self.ways[main]));
        }
        if of.meter.is_none() || of.warm {
            return true;
        }
        // A class has no other way that works, or what it has to send is worth the price.
        Class::ALL.into_iter().filter(|class| of.classes[class.index()]).any(|class| {
            let route = &self.plan.routes[class.index()];
            let own = route.candidates.iter().find(|c| usize::from(c.uplink) == at);
            let is_refused = own.is_none_or(|c| matches!(c.standing, Standing::Refused(why) if why != Refusal::Price));
            let is_priced = own.is_some_and(|c| !matches!(c.standing, Standing::Refused(_)));
            let others_work = (0..self.uplinks.len()).any(|other| {
                let of_other = &self.policy.uplinks[other];
                let is_own_stand_in = of_other.stands_in_for == Some(at as u8);
                other != at && !is_own_stand_in && of_other.classes[class.index()] && !long_unwell(&self.ways[other])
            });
            !is_refused && (!others_work || (is_priced && class != Class::Critical && is_waiting))
        })
    }

    fn probe_or_rest(&mut self, now_us: u64, at: usize) {
        match self.ways[at].probe {
            None if self.health[at].probe(now_us).is_ok() => {
                self.ways[at].probe = Some(Probe { since_us: now_us, answered: false });
                self.uplinks[at].wake(now_us);
            }
            None => self.uplinks[at].rest(now_us),
            Some(probe) => {
                let is_over = probe.answered
                    || now_us >= probe.since_us.saturating_add(PROBE_US_MAX)
                    || cost_bytes(&self.ways[at].path) >= PROBE_BYTES_MAX;
                if is_over {
                    self.end_probe(now_us, at);
                    self.uplinks[at].rest(now_us);
                }
            }
        }
    }

    /// A heartbeat was answered: a probe has seen what it wanted.
    pub(super) fn way_answered(&mut self, at: usize) {
        if let Some(probe) = &mut self.ways[at].probe {
            probe.answered = true;
            self.control.at_once = true;
        }
    }

    fn end_probe(&mut self, now_us: u64, at: usize) {
        if self.ways[at].probe.take().is_some() {
            // What the transport has not told yet is counted as all that a probe may cost.
            let told = cost_bytes(&self.ways[at].path);
            self.health[at].probe_ended(now_us, if told == 0 { PROBE_BYTES_MAX } else { told });
        }
    }
}

/// What a connection cost so far, both directions, headers included.
fn cost_bytes(path: &PathStats) -> u64 {
    let packets = path.sent_packets.saturating_add(path.received_packets);
    path.sent_bytes.saturating_add(path.received_bytes).saturating_add(packets.saturating_mul(HEADER_BYTES))
}

/// Saved levels of the budgets, by uplink; those of uplinks without one are empty.
pub(super) fn ways(now_us: u64, policy: &Policy, saved: &[BudgetLevel], seed: u64) -> Vec<Way> {
    let level = |at: usize| saved.get(at).copied().unwrap_or_default();
    policy.uplinks.iter().enumerate().map(|(at, of)| Way::new(now_us, month_bytes(of), level(at), seed)).collect()
}

/// Bytes of a month; a stand-in spends the budget of the uplink over the same link.
fn month_bytes(of: &UplinkPolicy) -> Option<u64> {
    of.meter.filter(|_| of.stands_in_for.is_none()).and_then(|meter| meter.month_bytes)
}

/// How long an uplink may not work before a stand-in or a metered one is connected: two heartbeats.
const STAND_IN_US: u64 = 2_000_000;
/// How long an uplink that is not needed any more stays connected.
const LINGER_US: u64 = 30_000_000;
/// How long a probe may last.
const PROBE_US_MAX: u64 = 10_000_000;
/// IPv4 and UDP.
const HEADER_BYTES: u64 = 28;
