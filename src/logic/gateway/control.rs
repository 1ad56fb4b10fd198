//! The control plane: once a second, and at once when an uplink comes or goes, the plan is made anew.

use super::Gateway;
use crate::health::CloseReason;
use crate::ids::Class;
use crate::plan::{View, plan};
use crate::policy::Policy;
use crate::price::{Arrivals, Explanation, HORIZONS, Market, Solver, horizon_end_us};
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
            has_values: policy.streams.iter().any(|stream| stream.value.is_some()),
            was_waiting: false,
        }
    }
}

impl Gateway {
    /// Tells the uplinks' health what was acknowledged, and makes the plan anew when that is due.
    pub(super) fn steer(&mut self, now_us: u64) {
        for acked in self.lanes.take_acked() {
            if let Some(health) = self.health.get_mut(usize::from(acked.uplink)) {
                health.acked(now_us, acked.bytes, acked.sent_us);
            }
        }
        let at_once = std::mem::take(&mut self.control.at_once);
        if now_us < self.control.due_us && !at_once {
            return;
        }
        self.control.due_us = now_us + CONTROL_US;
        let is_waiting = self.lanes.is_waiting();
        let was_limit = std::mem::replace(&mut self.control.was_waiting, is_waiting) && is_waiting;
        let chosen = self.best_uplink();
        for (index, health) in self.health.iter_mut().enumerate() {
            // While all are down, what waits waits for each of them.
            health.tick(now_us, was_limit && chosen.is_none_or(|chosen| usize::from(chosen) == index));
        }
        if self.control.has_values {
            self.reprice(now_us, chosen, at_once);
        }
    }

    fn reprice(&mut self, now_us: u64, chosen: Option<u8>, at_once: bool) {
        let limits = self.policy.price;
        let of_class = |class: Class| self.policy.streams.iter().position(|stream| stream.class == class).map(|at| at as u16);
        let waiting = self.lanes.waiting(now_us, self.policy.streams.len(), of_class);
        let (arrived, ratio) = self.lanes.take_arrived();
        self.control.arrivals.count(now_us, &arrived, ratio);
        let health = chosen.map(usize::from).or(Some(0)).and_then(|index| self.health.get(index));
        let (forecast_bytes, drain_bytes) = health.map_or(([0.0; HORIZONS], 0.0), |health| {
            let estimate = health.estimate(now_us);
            let rate = estimate.goodput_bps.max(DRAIN_RATE_PART * estimate.capacity_bps);
            self.lanes.set_pace(estimate.capacity_bps / 8.0);
            let forecast = |at| health.capacity_bytes(horizon_end_us(at, limits.horizon_us));
            (std::array::from_fn(forecast), rate / 8.0 * limits.drain_us as f64 / 1e6)
        });
        let (values, expected) = (&self.plan.values, self.control.arrivals.rates());
        let market = Market { values, waiting: &waiting, expected, forecast_bytes, drain_bytes };
        self.control.price = self.control.solver.solve(now_us, &limits, market, at_once);
        let view = View { price: self.control.price };
        let next = plan(&self.policy, &view, Some(&self.plan));
        let last = std::mem::replace(&mut self.plan, next);
        self.announce_plan(Some(&last));
    }
}

/// What the end of a session says about its uplink.
pub(super) fn close_reason(reason: &DownReason, was_up: bool) -> CloseReason {
    match reason {
        DownReason::Stopped => CloseReason::Local,
        DownReason::Protocol(_) => CloseReason::Peer,
        DownReason::Transport(_) | DownReason::Silence { .. } | DownReason::Timeout { .. } if was_up => CloseReason::Lost,
        DownReason::Transport(_) | DownReason::Silence { .. } | DownReason::Timeout { .. } => CloseReason::ConnectFailed,
    }
}
