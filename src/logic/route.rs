//! Which uplinks a lane goes by, best first, and why.
//!
//! Think of a dispatcher with a few roads. Some are closed to some loads, and that is law: class, zone, a month's budget. Of
//! the others the ones in good order come first, then those that have only just been reopened, then the bad ones: a bad road
//! is better than none. Among equals the cheapest goes first, by the time a block needs and what its bytes cost.
//!
//! Leaving a road that has failed, or that is far slower than another, happens at once. Going back does not: a breaker closes
//! only after its hold-down, nothing is gone back to within [`HOLD_US`] of leaving it, and among roads in equal order the present
//! one stays first for as long and until another is better by [`MARGIN`].
//!
//! What surprised us:
//! - A stand-in (TLS over TCP on the same link) looks as good as its QUIC uplink and must not compete with it.
//! - Nothing up is no reason for an empty list: what comes up first is used first, so all that is allowed stays listed.

use std::fmt;

use crate::budget::Allowance;
use crate::health::{BreakerState, UplinkEstimate, UplinkState};
use crate::ids::Class;
use crate::policy::{Policy, UplinkPolicy};
use crate::pressure;
use crate::wire::LoadLevel;

/// What is known of an uplink when a plan is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UplinkView {
    /// A session is up.
    pub is_up: bool,
    /// What its own traffic shows.
    pub estimate: UplinkEstimate,
    /// What its budget allows; `None` without one.
    pub allowance: Option<Allowance>,
    /// What a paid byte must be worth.
    pub paid_price: Option<f64>,
    /// How much longer than estimated things are taken to last, by what others say of it; 1 if nothing.
    pub advice: f64,
    /// How busy the machine that it leads to is taken to be.
    pub load: LoadLevel,
}

/// In what order an uplink is; less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Up, and its breaker is closed.
    Good,
    /// Up and working, but not for long enough.
    HoldDown,
    /// Up, and silent, blocked or failing.
    Bad,
    /// Not connected.
    Down,
    /// The lane may not use it.
    Refused(Refusal),
}

/// Why a lane may not use an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// The operator allows it for other classes only.
    Class,
    /// It leads to a zone where a stream of the lane must not go.
    Zone,
    /// The month's bytes are used, or used too fast.
    Budget,
    /// What waits is worth less than a paid byte must be.
    Price,
    /// The uplink for which it stands in works.
    StandIn,
    /// The machine that it leads to is too busy for the class.
    Busy(LoadLevel),
}

/// An uplink as it was weighed for a lane.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The uplink.
    pub uplink: u8,
    /// In what order it is.
    pub standing: Standing,
    /// What made it so.
    pub state: UplinkState,
    /// Time that a block needs, with money as time, in microseconds.
    pub cost_us: u64,
    /// When it was last left for another, in service time.
    pub left_us: Option<u64>,
}

/// The way of one lane.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LaneRoute {
    /// Every uplink, best first.
    pub candidates: Vec<Candidate>,
    /// Since when the first has been first, in service time.
    pub since_us: u64,
}

impl LaneRoute {
    /// The uplink that it goes by; `None` if there is none that it may use.
    pub fn first(&self) -> Option<u8> {
        self.usable().next()
    }

    /// The uplinks that it goes by, best first: those in the best order there is.
    pub fn usable(&self) -> impl Iterator<Item = u8> + '_ {
        let best = self.candidates.first().map(|candidate| candidate.standing);
        let may = move |standing: Standing| !matches!(standing, Standing::Refused(_)) && Some(standing) == best;
        self.candidates.iter().filter(move |candidate| may(candidate.standing)).map(|candidate| candidate.uplink)
    }

    /// How busy the cloud is, if the lane waits for nothing but that.
    pub fn held(&self) -> Option<LoadLevel> {
        if self.first().is_some() {
            return None;
        }
        self.candidates.iter().find_map(|candidate| match candidate.standing {
            Standing::Refused(Refusal::Busy(level)) => Some(level),
            _ => None,
        })
    }
}

/// Weighs the uplinks for a lane. `lambda` is the price of a byte, 0 if nothing is short or streams have no values.
pub fn route(
    now_us: u64,
    class: Class,
    policy: &Policy,
    uplinks: &[UplinkView],
    lambda: f64,
    last: Option<&LaneRoute>,
) -> LaneRoute {
    let standings: Vec<Standing> = uplinks.iter().map(standing).collect();
    let mut candidates: Vec<Candidate> = policy
        .uplinks
        .iter()
        .zip(uplinks)
        .enumerate()
        .map(|(index, (of, view))| {
            let refusal = refusal(class, policy, of, view, &standings, lambda);
            let standing = refusal.map_or(standings[index], Standing::Refused);
            let left_us = last.and_then(|last| last.candidates.iter().find(|c| usize::from(c.uplink) == index)?.left_us);
            Candidate { uplink: index as u8, standing, state: view.estimate.state, cost_us: cost_us(class, of, view), left_us }
        })
        .collect();
    refuse_idle_paid(class, policy, uplinks, &mut candidates);
    candidates.sort_by_key(|candidate| (candidate.standing, candidate.cost_us, candidate.uplink));
    let Some((present, since_us)) = last.and_then(|last| Some((last.candidates.first()?.uplink, last.since_us))) else {
        return LaneRoute { candidates, since_us: now_us };
    };
    match choose(now_us, since_us, present, &candidates) {
        Some(at) => {
            candidates[..=at].rotate_right(1);
            if let Some(left) = candidates.iter_mut().find(|candidate| candidate.uplink == present) {
                left.left_us = Some(now_us);
            }
            LaneRoute { candidates, since_us: now_us }
        }
        None => {
            let at = candidates.iter().position(|candidate| candidate.uplink == present).unwrap_or_default();
            candidates[..=at].rotate_right(1);
            LaneRoute { candidates, since_us }
        }
    }
}

/// Position of the candidate that takes the place of the present first; `None` if that stays.
fn choose(now_us: u64, since_us: u64, present: u8, candidates: &[Candidate]) -> Option<usize> {
    let best = candidates[0];
    let of = candidates.iter().find(|candidate| candidate.uplink == present)?;
    if of.standing != best.standing {
        return Some(0);
    }
    let is_held = now_us < since_us.saturating_add(HOLD_US);
    let is_better = |other: &Candidate| {
        let (mine, theirs) = (of.cost_us as f64, other.cost_us as f64);
        let by_far = theirs * FAR + FAR_US as f64;
        mine > by_far || (!is_held && mine > theirs * (1.0 + MARGIN) + MARGIN_US as f64)
    };
    let may_return = |other: &Candidate| other.left_us.is_none_or(|left_us| now_us >= left_us.saturating_add(HOLD_US));
    let others = candidates.iter().enumerate().take_while(|(_, other)| other.standing == best.standing);
    others
        .filter(|(_, other)| other.uplink != present && may_return(other))
        .find(|(_, other)| is_better(other))
        .map(|(at, _)| at)
}

/// Time that a block of 16 KiB needs over this uplink, with money as time, in microseconds.
pub fn cost_us(class: Class, of: &UplinkPolicy, view: &UplinkView) -> u64 {
    let estimate = &view.estimate;
    let rate = estimate.capacity_bps.max(RATE_BPS_MIN);
    let delay_us = estimate.rtt_us as f64 / 2.0
        + estimate.queueing_delay_us as f64
        + estimate.jitter_us as f64
        + BLOCK_BYTES * 8.0 / rate * 1e6;
    let repeated = 1.0 / (1.0 - estimate.loss.clamp(0.0, LOSS_MAX));
    let money_us = of.meter.map_or(0.0, |meter| meter.money_per_mb * PATIENCE_US[class.index()]);
    (delay_us * repeated * view.advice.max(1.0) + money_us).min(1e15) as u64
}

/// In what order an uplink is, whoever wants to use it.
pub fn standing(view: &UplinkView) -> Standing {
    if !view.is_up {
        return Standing::Down;
    }
    match (view.estimate.state, view.estimate.breaker) {
        (UplinkState::Red | UplinkState::Blocked, _) | (_, BreakerState::Open { .. }) => Standing::Bad,
        (_, BreakerState::HalfOpen { .. }) => Standing::HoldDown,
        (_, BreakerState::Closed) => Standing::Good,
    }
}

fn refusal(
    class: Class,
    policy: &Policy,
    of: &UplinkPolicy,
    view: &UplinkView,
    standings: &[Standing],
    lambda: f64,
) -> Option<Refusal> {
    if !of.classes[class.index()] {
        return Some(Refusal::Class);
    }
    let is_elsewhere =
        |zones: &[std::sync::Arc<str>]| !zones.is_empty() && of.zone.as_ref().is_none_or(|zone| !zones.contains(zone));
    if policy.streams.iter().any(|stream| stream.class == class && is_elsewhere(&stream.zones)) {
        return Some(Refusal::Zone);
    }
    if of.stands_in_for.is_some_and(|main| standings[usize::from(main)] == Standing::Good) {
        return Some(Refusal::StandIn);
    }
    if !pressure::admits(view.load, class) {
        return Some(Refusal::Busy(view.load));
    }
    let allowance = view.allowance?;
    match class {
        Class::Critical => (allowance.critical_bytes == 0).then_some(Refusal::Budget),
        _ if allowance.others_bytes == 0 => Some(Refusal::Budget),
        // Without values nothing has a price, and the budget's pace alone decides.
        _ if policy.has_values() && view.paid_price.is_none_or(|price| lambda < price) => Some(Refusal::Price),
        _ => None,
    }
}

/// A paid uplink is for when no free one works; one with a budget also carries what is worth its price.
fn refuse_idle_paid(class: Class, policy: &Policy, uplinks: &[UplinkView], candidates: &mut [Candidate]) {
    let is_free = |candidate: &Candidate| policy.uplinks[usize::from(candidate.uplink)].meter.is_none();
    // One that waits for a busy cloud works, too: another way there is no better.
    let is_in_order =
        |standing: Standing| standing <= Standing::HoldDown || matches!(standing, Standing::Refused(Refusal::Busy(_)));
    let works = |candidate: &&Candidate| is_free(candidate) && is_in_order(candidate.standing);
    if class == Class::Critical || !candidates.iter().any(|candidate| works(&candidate)) {
        return;
    }
    for candidate in candidates.iter_mut().filter(|candidate| !matches!(candidate.standing, Standing::Refused(_))) {
        let at = usize::from(candidate.uplink);
        let overflows = uplinks[at].allowance.is_some() && policy.has_values();
        if policy.uplinks[at].meter.is_some() && !overflows {
            candidate.standing = Standing::Refused(Refusal::Price);
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Standing::Good => "good",
            Standing::HoldDown => "works again, but not for long enough",
            Standing::Bad => "failing, or kept out by its breaker",
            Standing::Down => "not connected",
            Standing::Refused(Refusal::Class) => "not for this class",
            Standing::Refused(Refusal::Zone) => "leads to a zone where a stream of this class must not go",
            Standing::Refused(Refusal::Budget) => "the month's bytes are used, or used too fast",
            Standing::Refused(Refusal::Price) => "paid bytes are worth more than what waits",
            Standing::Refused(Refusal::StandIn) => "the uplink for which it stands in works",
            Standing::Refused(Refusal::Busy(LoadLevel::Stalled)) => "the cloud takes nothing",
            Standing::Refused(Refusal::Busy(_)) => "the cloud is too busy for this class",
        })
    }
}

/// Another uplink in equal order must be better by this part, and by [`MARGIN_US`], to become the first.
pub const MARGIN: f64 = 0.3;
/// See [`MARGIN`]: 20 ms, as estimates of short paths differ by that from second to second.
pub const MARGIN_US: u64 = 20_000;
/// For how long the first stays first among equals, in microseconds.
pub const HOLD_US: u64 = 10_000_000;
/// One that costs so many times as much as another, and [`FAR_US`] more, has failed in all but name and is left at once.
pub const FAR: f64 = 4.0;
/// See [`FAR`]: half a second.
pub const FAR_US: u64 = 500_000;
/// The block that costs are compared by: one frame of a lane stream.
const BLOCK_BYTES: f64 = 16.0 * 1024.0;
const RATE_BPS_MIN: f64 = 1_000.0;
const LOSS_MAX: f64 = 0.9;
/// By class: how long it would rather wait than pay a unit of money for a megabyte, in microseconds. A critical record is not
/// held up for money, and a bulk one waits an hour.
const PATIENCE_US: [f64; 4] = [1e5, 2e6, 6e7, 3.6e9];

#[cfg(test)]
mod tests;
