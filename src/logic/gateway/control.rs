//! The control plane: once a second, and at once when an uplink comes or goes, the plan is made anew.

use super::{Event, Gateway, Output};
use crate::explain;
use crate::health::{CloseReason, UplinkHealth};
use crate::ids::Class;
use crate::ingest::Moment;
use crate::plan::{Plan, View, plan};
use crate::policy::Policy;
use crate::price::{Arrivals, Capacity, Expected, Explanation, Market, Paid, Solver, StreamValue, horizon_end_us};
use crate::uplink::DownReason;

/// What the control plane remembers from one plan to the next.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) due_us: u64,
    /// An uplink came or went.
    pub(super) at_once: bool,
    pub(super) price: Explanation,
    solver: Solver,
    arrivals: Arrivals,
    has_values: bool,
    /// Something waited for the uplink when it was last looked at.
    was_waiting: bool,
}

/// How often the plan is made. With 2 s the prototype was as good, with 5 s a little worse.
const CONTROL_US: u64 = 1_000_000;
/// The uplink is taken to carry at least this part of its mean while what waits is measured in time: in an outage the present
/// rate is nothing.
const DRAIN_RATE_PART: f64 = 0.3;

impl Control {
    pub(super) fn new(now_us: u64, policy: &Policy) -> Self {
        Control {
            due_us: now_us + CONTROL_US,
            at_once: false,
            price: Explanation::default(),
            solver: Solver::default(),
            arrivals: Arrivals::new(now_us, policy.streams.len()),
            has_values: policy.has_values(),
            was_waiting: false,
        }
    }

    /// Another policy is in force: the plan is made anew at once, and a price only while anything has a value.
    pub(super) fn policy_changed(&mut self, policy: &Policy) {
        (self.at_once, self.has_values) = (true, policy.has_values());
        if !self.has_values {
            (self.price, self.solver) = (Explanation::default(), Solver::default());
        }
    }
}

impl Gateway {
    /// Tells the uplinks' health what was acknowledged, and makes the plan anew when that is due.
    pub(super) fn steer(&mut self, now: Moment) {
        let now_us = now.service_us;
        for acked in self.lanes.take_acked() {
            if let Some(health) = self.health.get_mut(usize::from(acked.uplink)) {
                health.acked(now_us, acked.bytes, acked.sent_us);
            }
        }
        // What was planned for an outage must not last a second longer than that.
        let has_resumed = self.health.iter().any(UplinkHealth::has_resumed);
        let at_once = std::mem::take(&mut self.control.at_once) | self.watch_ways(now_us) | has_resumed;
        if now_us < self.control.due_us && !at_once {
            return;
        }
        self.watch_trial(now_us);
        self.control.due_us = now_us + CONTROL_US;
        let is_waiting = self.is_waiting(now_us);
        let was_limit = std::mem::replace(&mut self.control.was_waiting, is_waiting) && is_waiting;
        for (index, health) in self.health.iter_mut().enumerate() {
            // What waits waits for each uplink that may carry it; while all are down, that is each that is allowed.
            let is_used = self.plan.uplinks.iter().flatten().any(|&uplink| usize::from(uplink) == index);
            health.tick(now_us, was_limit && is_used);
        }
        let wall_us = now.wall_offset_us.map(|offset_us| offset_us.saturating_add_unsigned(now_us));
        for budget in self.ways.iter_mut().filter_map(|way| way.budget.as_mut()) {
            budget.clock(wall_us);
            budget.adjust(self.control.price.lambda);
        }
        for way in &mut self.ways {
            way.pressure.tick(now_us);
        }
        if self.control.has_values {
            self.reprice(now_us, at_once);
        }
        self.federate(now_us);
        self.replan(now_us);
        self.leave_bad_ways(now_us);
        self.want_ways(now_us);
        self.fetch(now_us);
    }

    fn replan(&mut self, now_us: u64) {
        let uplinks = self.uplink_views(now_us);
        let pools = self.pool_places(now_us);
        let learned = self.learn(now_us);
        let view = View { now_us, price: self.control.price, uplinks: &uplinks, pools: &pools, learned: &learned };
        let next = plan(&self.policy, &view, Some(&self.plan));
        let last = std::mem::replace(&mut self.plan, next);
        self.announce_plan(Some(&last));
    }

    fn reprice(&mut self, now_us: u64, at_once: bool) {
        let limits = self.policy.price;
        let rates: Vec<f64> = self.health.iter().map(|health| drain_bytes_per_s(health, now_us)).collect();
        let (arrived, ratio) = self.lanes.take_arrived();
        self.control.arrivals.count(now_us, &arrived, ratio);
        let drain_us = drain_us(limits.drain_us, &self.plan.values, self.control.arrivals.rates());
        self.lanes.foresee(now_us, &rates, drain_us);
        let of_class = |class: Class| self.policy.streams.iter().position(|stream| stream.class == class).map(|at| at as u16);
        let mut waiting = self.lanes.waiting(now_us, self.policy.streams.len(), of_class);
        // What is wanted is counted as levels say; what thinned blocks really take differs.
        let carried = 1.0 / self.lanes.bytes_per_planned();
        let forecast = |paid| self.forecast(now_us, paid, drain_us).times(carried);
        let (free, paid) = (forecast(false), forecast(true));
        // What waits for the cloud does not make the uplinks dearer for the rest.
        let is_held = |stream: usize| self.plan.routes[self.policy.streams[stream].class.index()].held().is_some();
        waiting.retain(|cohort| !is_held(usize::from(cohort.stream)));
        let rates = self.control.arrivals.rates().iter().enumerate();
        let rate = |(stream, rate): (usize, &Expected)| if is_held(stream) { Expected::default() } else { *rate };
        let expected: Vec<Expected> = rates.map(rate).collect();
        let (values, expected) = (&self.plan.values, &expected);
        let market = Market { values, waiting: &waiting, expected, capacity: free };
        // What a paid byte must be worth: nobody pays more for a byte than that while the budget allows.
        let budgets = self.ways.iter().filter_map(|way| way.budget.as_ref());
        let open = budgets.filter(|budget| budget.allowance().others_bytes > 0);
        let ceiling = open.filter_map(|budget| budget.price()).min_by(f64::total_cmp);
        let paid = ceiling.map(|lambda| Paid { lambda, capacity: paid });
        self.control.price = self.control.solver.solve(now_us, &limits, market, paid, at_once);
    }

    /// What all uplinks of a kind are forecast to carry, by the horizons and in `drain_us`.
    ///
    /// Two transports over one link carry what the better of them does.
    fn forecast(&self, now_us: u64, paid: bool, drain_us: u64) -> Capacity {
        let limits = self.policy.price;
        let mut links = vec![Capacity::default(); self.health.len()];
        for (at, (health, of)) in self.health.iter().zip(&self.policy.uplinks).enumerate() {
            let link = usize::from(of.stands_in_for.unwrap_or(at as u8));
            let is_paid = of.meter.is_some();
            let standby = of.stands_in_for.is_some() && !self.uplinks[at].is_up();
            if is_paid != paid || standby || (is_paid && self.budget(at).is_none() && !self.uplinks[at].is_up()) {
                continue;
            }
            let left = self.budget(at).map_or(f64::MAX, |budget| budget.allowance().others_bytes as f64);
            let carries = Capacity {
                by_horizon: std::array::from_fn(|at| health.capacity_bytes(horizon_end_us(at, limits.horizon_us)).min(left)),
                drain_bytes: (drain_bytes_per_s(health, now_us) * drain_us as f64 / 1e6).min(left),
            };
            links[link] = links[link].or_better(carries);
        }
        links.into_iter().fold(Capacity::default(), Capacity::with)
    }

    /// Says what differs from the plan before.
    pub(super) fn announce_plan(&mut self, last: Option<&Plan>) {
        let (version, now_us) = (self.plan.version, self.now_us);
        for (index, entry) in self.plan.streams.iter().enumerate() {
            let before = last.and_then(|last| last.streams.get(index));
            // The numbers of a reason change all the time; what is done does not.
            if before.is_some_and(|before| before.does_the_same(entry)) {
                continue;
            }
            let change = explain::stream_change(now_us, &self.policy, &self.plan, index, before);
            self.changes.push(change);
            self.outputs.push_back(Output::Event(Event::Planned {
                stream: index as u16,
                version,
                planned: entry.to_string(),
                reason: entry.reason,
                placed: entry.placed,
            }));
        }
        for class in Class::ALL {
            let (route, before) = (&self.plan.routes[class.index()], last.map(|last| &last.routes[class.index()]));
            let first = route.first();
            if before.is_some_and(|before| before.first() == first) || (before.is_none() && self.policy.uplinks.len() < 2) {
                continue;
            }
            let change = explain::route_change(now_us, &self.policy, &self.plan, class, before);
            self.outputs.push_back(Output::Event(Event::Routed {
                lane: class,
                version,
                uplink: first,
                reason: change.reason.clone(),
                rejected: change.rejected.clone(),
            }));
            self.changes.push(change);
        }
    }
}

/// How long what waits should last at the least: half as long as what is expected can wait, if that is less than `limit_us`.
/// Saving room for what is still to come is of no use to what is late by then.
///
/// Times are averaged by worth, harmonically: what has no deadline counts as much as it is worth, and makes nothing else slower.
fn drain_us(limit_us: u64, values: &[Option<StreamValue>], expected: &[Expected]) -> u64 {
    let (mut worth, mut hurry) = (0.0, 0.0);
    for (value, expected) in values.iter().zip(expected) {
        let Some(value) = value.filter(|value| !value.is_exempt) else { continue };
        worth += value.weight * expected.mean;
        if let Some(left_us) = value.lateness.left_us(0) {
            hurry += value.weight * expected.mean / left_us.max(1) as f64;
        }
    }
    // The next price is made in a second.
    let half_us = if hurry > 0.0 { (worth / hurry / 2.0) as u64 } else { u64::MAX };
    limit_us.min(half_us.max(CONTROL_US))
}

/// Bytes a second at which what waits is taken to leave by an uplink.
fn drain_bytes_per_s(health: &UplinkHealth, now_us: u64) -> f64 {
    let estimate = health.estimate(now_us);
    estimate.goodput_bps.max(DRAIN_RATE_PART * estimate.capacity_bps) / 8.0
}

/// What the end of a session says about its uplink.
pub(super) fn close_reason(reason: &DownReason, was_up: bool) -> CloseReason {
    match reason {
        DownReason::Stopped | DownReason::Resting | DownReason::Blocked => CloseReason::Local,
        DownReason::Protocol(_) => CloseReason::Peer,
        DownReason::Transport(_) | DownReason::Silence { .. } | DownReason::Timeout { .. } if was_up => CloseReason::Lost,
        DownReason::Transport(_) | DownReason::Silence { .. } | DownReason::Timeout { .. } => CloseReason::ConnectFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::price::{Ladder, Lateness};

    #[test]
    fn what_waits_lasts_half_as_long_as_the_worth_can_wait_and_no_longer_than_the_limit() {
        let value = |weight, d0_us, is_exempt| {
            let lateness = Lateness { d0_us, d1_us: None, u1: 0.2 };
            Some(StreamValue { weight, ladder: Ladder::TELEMETRY, lateness, is_exempt })
        };
        let rate = |mean| Expected { mean, now: mean };
        // Of the worth that can be folded, half can wait 2 s and half 6 s; what is critical does not count, nor what has no value.
        let values = [value(100.0, 1_000_000, true), value(1.0, 2_000_000, false), value(1.0, 6_000_000, false), None];
        let expected = [rate(1_000.0); 4];
        assert_eq!(drain_us(12_000_000, &values, &expected), 1_500_000);
        assert_eq!(drain_us(1_200_000, &values, &expected), 1_200_000, "the limit");
        assert_eq!(drain_us(12_000_000, &values, &[rate(0.0); 4]), 12_000_000, "nothing is expected");
        let hasty = [value(1.0, 10_000, false)];
        assert_eq!(drain_us(12_000_000, &hasty, &expected), CONTROL_US, "until there is another price");
    }
}
