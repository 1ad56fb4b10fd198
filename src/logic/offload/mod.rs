//! Asking a larger model elsewhere, when the one on the box is unsure.
//!
//! Like a junior doctor with a telephone: a clear case is answered at once, in a doubtful one the specialist is called; if the
//! line is engaged, dead, or too dear this hour, the junior's own answer stands, and no patient waits for a telephone that
//! nobody picks up.
//!
//! A window whose local confidence lies in the stream's band is sent to the pool that the plan chose. Mode `wait` holds its
//! record until the answer comes or the deadline passes; in `answer_now` the record leaves at once, and the answer becomes a
//! record of its own: same stream, device and times. What comes after the deadline is recorded, and nothing waits for it.
//!
//! The rules:
//! - Whatever speaks against a request is known before it is sent, and then costs nothing: see [`NotSent`].
//! - An answer that is overdue is a failure of its pool, and [`POOL_BREAKER`] says how many of them open its breaker. While
//!   it is open nothing is sent; then one request at a time is the trial, and an answer to it closes it.
//! - A refusal is an answer: a pool that is busy is left alone for as long as it says, by that class and lower ones, and its
//!   breaker stays closed.
//! - The same window is asked about once: whoever has it too shares the request, or for a minute its answer.
//! - An audit (see [`crate::audit`]) goes after all else: as the lowest class, with a place and half of each budget left for doubts,
//!   and never as a trial. What becomes of it counts neither for nor against its pool.
//!
//! What surprised us: an uplink that is lost says nothing about the pool behind it. Its requests are over at once, and count
//! neither for nor against the breaker.

mod counts;
mod hour;
mod policy;
mod pools;
mod reply;
mod request;
mod seen;

use std::collections::{BTreeMap, VecDeque};

use prost::Message as _;

use crate::audit::Purpose;
use crate::health::BreakerState;
use crate::ids::Class;
use crate::ingest::Verdict;
use crate::wire::Body;
use crate::wire::offload::{EncodedWindow, OffloadAnswer, OffloadRequest, POOLS_MAX, PoolViews, RefusalKind};

pub use counts::{NotSent, OffloadCounts};
pub use policy::{OffloadLimits, OffloadMode, OffloadPolicy};
pub use pools::{KnownPool, POOL_BREAKER, PoolPlace};
pub use request::RemoteVerdict;

pub(crate) use request::{Ask, Asked, OffloadOutcome, OffloadOutput};

use hour::HourBudget;
use reply::{Reply, read_answer};
use request::{Open, Waiter};
use seen::Seen;

/// All requests of the box.
#[derive(Debug)]
pub struct Offloads {
    seed: u64,
    uplinks: usize,
    pools: Vec<KnownPool>,
    open: BTreeMap<u64, Open>,
    next_id: u64,
    /// By stream: when its last request was sent.
    asked_us: Vec<Option<u64>>,
    counts: Vec<OffloadCounts>,
    requests: HourBudget,
    bytes: HourBudget,
    seen: Seen,
    outcomes: VecDeque<OffloadOutcome>,
    outputs: VecDeque<OffloadOutput>,
    /// Pools of which the cloud told, beyond what is remembered.
    pools_ignored: u64,
}

/// Requests under way at a time; the cloud lets a connection have so many streams for them.
pub const IN_FLIGHT_MAX: usize = 16;
/// Windows that share one request.
const WAITERS_MAX: usize = 16;
/// Audits under way at a time; and while twice as many requests are, there is none.
pub const AUDITS_IN_FLIGHT_MAX: usize = 2;
/// How long the answer of an audit is good for. Nobody waits for it, so it is as long as the longest deadline of a stream.
const AUDIT_US: u64 = 10_000_000;
/// How long after its deadline an answer is still taken; then the stream is reset.
const LATE_US: u64 = 5_000_000;

impl Offloads {
    pub(crate) fn new(seed: u64, streams: usize, uplinks: usize, limits: OffloadLimits) -> Self {
        Offloads {
            seed,
            uplinks,
            pools: Vec::new(),
            open: BTreeMap::new(),
            next_id: 1,
            asked_us: vec![None; streams],
            counts: vec![OffloadCounts::default(); streams],
            requests: HourBudget::new(limits.requests_per_hour),
            bytes: HourBudget::new(limits.bytes_per_hour),
            seen: Seen::new(seed),
            outcomes: VecDeque::new(),
            outputs: VecDeque::new(),
            pools_ignored: 0,
        }
    }

    pub(crate) fn set_limits(&mut self, limits: OffloadLimits) {
        self.requests.set_limit(limits.requests_per_hour);
        self.bytes.set_limit(limits.bytes_per_hour);
    }

    /// What became of jobs; call until `None` after every other call.
    pub(crate) fn outcome(&mut self) -> Option<OffloadOutcome> {
        self.outcomes.pop_front()
    }

    /// What to do next; call until `None` after every other call.
    pub(crate) fn output(&mut self) -> Option<OffloadOutput> {
        self.outputs.pop_front()
    }

    /// The machine at an uplink's other end says which pools it has, in the place of what it said before.
    pub(crate) fn told(&mut self, now_us: u64, uplink: u8, views: PoolViews) {
        self.pools.iter_mut().for_each(|pool| pool.reached[usize::from(uplink)] = false);
        for view in views.pools {
            let known = self.pools.iter().position(|pool| pool.view.name == view.name);
            let at = known.unwrap_or(self.pools.len());
            if at >= POOLS_MAX {
                self.pools_ignored += 1;
                continue;
            }
            if known.is_none() {
                self.pools.push(KnownPool::new(view.clone(), self.uplinks, self.seed.wrapping_add(at as u64)));
            }
            let pool = &mut self.pools[at];
            (pool.view, pool.told_us, pool.reached[usize::from(uplink)]) = (view, now_us, true);
        }
    }

    /// An uplink's session has ended: its requests are over, and what it led to is not reached by it any more.
    pub(crate) fn uplink_lost(&mut self, now_us: u64, uplink: u8) {
        self.pools.iter_mut().for_each(|pool| pool.reached[usize::from(uplink)] = false);
        let lost: Vec<u64> = self.open.iter().filter(|(_, open)| open.uplink == uplink).map(|(&id, _)| id).collect();
        for id in lost {
            if let Some(open) = self.open.remove(&id) {
                let pool = &mut self.pools[open.pool];
                if matches!(pool.breaker.state(), BreakerState::HalfOpen { .. }) {
                    // The trial has no result, so there must be another.
                    pool.breaker.failure(now_us);
                }
                self.end(&open, |counts| counts.lost += 1);
            }
        }
    }

    /// Sends a window on, unless something speaks against it.
    pub(crate) fn ask(&mut self, now_us: u64, ask: &Ask<'_>) -> Asked {
        let asked = self.try_ask(now_us, ask);
        let counts = &mut self.counts[usize::from(ask.stream)];
        match (&asked, ask.purpose) {
            (Asked::Not(_), Purpose::Audit) => counts.audits_not_sent += 1,
            (Asked::Known(_), Purpose::Audit) => counts.audits_answered += 1,
            (Asked::Not(reason), Purpose::Doubt) => counts.not_sent[*reason as usize] += 1,
            (Asked::Known(_), Purpose::Doubt) => counts.known += 1,
            (Asked::UnderWay, _) => {}
        }
        asked
    }

    fn try_ask(&mut self, now_us: u64, ask: &Ask<'_>) -> Asked {
        let Some(at) = ask.pool.map(usize::from).filter(|&at| at < self.pools.len()) else {
            return Asked::Not(NotSent::NoPool);
        };
        let key = self.seen.key(&ask.policy.task, ask.window);
        if let Some(answer) = self.seen.answer(now_us, key) {
            return Asked::Known(answer.clone());
        }
        let is_audit = ask.purpose == Purpose::Audit;
        let (answer_us, late_us, class) =
            if is_audit { (AUDIT_US, 0, Class::Bulk) } else { (ask.policy.deadline_us, LATE_US, ask.class) };
        let waiter =
            Waiter { job: ask.job, stream: ask.stream, deadline_us: now_us.saturating_add(answer_us), is_overdue: false };
        // An audit and a doubt are in no hurry for each other.
        let is_same = |open: &&mut Open| open.key == key && open.purpose == ask.purpose && !open.has_failed;
        let same = self.open.values_mut().find(|open| is_same(open) && open.waiters.len() < WAITERS_MAX);
        if let Some(open) = same {
            self.counts[usize::from(ask.stream)].shared += 1;
            open.ends_us = open.ends_us.max(waiter.deadline_us.saturating_add(late_us));
            open.waiters.push(waiter);
            return Asked::UnderWay;
        }
        let (int16, window) = (ask.policy.int16 && self.pools[at].view.int16, &ask.policy.window);
        if let Err(reason) = self.may_ask(now_us, at, ask, class) {
            return Asked::Not(reason);
        }
        let Some(&uplink) = ask.uplinks.iter().find(|&&uplink| self.pools[at].reached[usize::from(uplink)]) else {
            return Asked::Not(NotSent::NoWay);
        };
        let encoded = EncodedWindow::new(window.channels(), ask.window, int16);
        let len = (encoded.data.len() + 4 * encoded.scales.len()) as u64;
        if self.bytes.left_for(now_us, ask.purpose) < len {
            return Asked::Not(NotSent::HourBytes);
        }
        // Last, because a trial that is granted must be sent.
        let pool = &mut self.pools[at];
        if pool.breaker.state() != BreakerState::Closed && !pool.breaker.trial(now_us) {
            return Asked::Not(NotSent::Breaker);
        }
        let request = OffloadRequest {
            pool: pool.view.name.clone(),
            task: ask.policy.task.to_string(),
            class: class.index() as u32,
            deadline_ms: u32::try_from(answer_us / 1_000).unwrap_or(u32::MAX),
            channels: window.channels() as u32,
            length: window.length() as u32,
            scales: encoded.scales,
            data: encoded.data,
        };
        let mut bytes = Vec::with_capacity(request.encoded_len() + 16);
        crate::wire::encode_control(Body::OffloadRequest(request), &mut bytes);
        let id = self.next_id;
        self.next_id += 1;
        self.requests.spend(now_us, 1);
        self.bytes.spend(now_us, len);
        let counts = &mut self.counts[usize::from(ask.stream)];
        counts.sent += 1;
        counts.sent_bytes += len;
        if is_audit {
            counts.audits_sent += 1;
        } else {
            self.asked_us[usize::from(ask.stream)] = Some(now_us);
        }
        let ends_us = waiter.deadline_us.saturating_add(late_us);
        let (purpose, waiters) = (ask.purpose, vec![waiter]);
        self.open
            .insert(id, Open { uplink, class, purpose, pool: at, key, sent_us: now_us, ends_us, has_failed: false, waiters });
        self.outputs.push_back(OffloadOutput::Send { uplink, id, class, purpose, bytes });
        Asked::UnderWay
    }

    /// What does not depend on the way there.
    fn may_ask(&mut self, now_us: u64, at: usize, ask: &Ask<'_>, class: Class) -> Result<(), NotSent> {
        let pool = &mut self.pools[at];
        pool.breaker.advance(now_us);
        let is_audit = ask.purpose == Purpose::Audit;
        let (is_open, is_closed) =
            (matches!(pool.breaker.state(), BreakerState::Open { .. }), pool.breaker.state() == BreakerState::Closed);
        if is_open || (is_audit && !is_closed) {
            return Err(NotSent::Breaker);
        }
        if now_us < pool.paused_us[class.index()] {
            return Err(NotSent::Busy);
        }
        let last_us = self.asked_us[usize::from(ask.stream)];
        if last_us.is_some_and(|last_us| now_us < last_us.saturating_add(ask.policy.spacing_us)) {
            return Err(NotSent::Spacing);
        }
        let audits = self.open.values().filter(|open| open.purpose == Purpose::Audit).count();
        if self.open.len() >= IN_FLIGHT_MAX || (is_audit && audits.max(self.open.len() / 2) >= AUDITS_IN_FLIGHT_MAX) {
            return Err(NotSent::InFlight);
        }
        if self.requests.left_for(now_us, ask.purpose) == 0 {
            return Err(NotSent::HourRequests);
        }
        Ok(())
    }

    /// What came back on a request's stream.
    pub(crate) fn answered(&mut self, now_us: u64, id: u64, bytes: &[u8]) {
        let Some(open) = self.open.remove(&id) else { return };
        match read_answer(bytes) {
            Reply::Answer(answer) => self.take_answer(now_us, &open, answer),
            Reply::Refusal(refusal) => {
                let pool = &mut self.pools[open.pool];
                let kind = RefusalKind::from_code(refusal.kind);
                let counts_for_pool = open.purpose == Purpose::Doubt;
                match kind {
                    // It answers, and says when it has time.
                    RefusalKind::Busy | RefusalKind::Late => {
                        let until_us = now_us.saturating_add(u64::from(refusal.retry_after_ms).min(RETRY_MS_MAX) * 1_000);
                        // It may have time for what matters more.
                        pool.paused_us[open.class.index()..].fill(until_us);
                        if counts_for_pool {
                            pool.breaker.success(now_us);
                        }
                    }
                    RefusalKind::Denied | RefusalKind::Failed if counts_for_pool => pool.breaker.failure(now_us),
                    RefusalKind::Denied | RefusalKind::Failed => {}
                }
                let is_busy = matches!(kind, RefusalKind::Busy | RefusalKind::Late);
                self.end(&open, |counts| if is_busy { counts.refused_busy += 1 } else { counts.refused += 1 });
            }
            Reply::Garbled => {
                self.failed_pool(now_us, &open);
                self.end(&open, |counts| counts.refused += 1);
            }
        }
    }

    /// What became of a request speaks against its pool, if it was in no lesser hurry than it should be, and has not before.
    fn failed_pool(&mut self, now_us: u64, open: &Open) {
        if open.purpose == Purpose::Doubt && !open.has_failed {
            self.pools[open.pool].breaker.failure(now_us);
        }
    }

    fn take_answer(&mut self, now_us: u64, open: &Open, answer: OffloadAnswer) {
        let is_audit = open.purpose == Purpose::Audit;
        if !is_audit {
            let pool = &mut self.pools[open.pool];
            pool.answers.sample(now_us, now_us.saturating_sub(open.sent_us));
            pool.answered_us = now_us;
            if !open.has_failed {
                pool.breaker.success(now_us);
            }
        }
        let verdict = Verdict { label: answer.label.into(), score: answer.score, confidence: answer.confidence, by: None };
        let answer = RemoteVerdict { verdict, model: answer.model.into(), version: answer.version.into() };
        for waiter in &open.waiters {
            let counts = &mut self.counts[usize::from(waiter.stream)];
            *match (is_audit, waiter.is_overdue) {
                (true, _) => &mut counts.audits_answered,
                (false, true) => &mut counts.late,
                (false, false) => &mut counts.answered,
            } += 1;
            self.outcomes.push_back(OffloadOutcome::Answered { job: waiter.job, answer: answer.clone() });
        }
        self.seen.answered(now_us, open.key, answer);
    }

    /// A request's stream ended without an answer.
    pub(crate) fn failed(&mut self, now_us: u64, id: u64) {
        let Some(open) = self.open.remove(&id) else { return };
        self.failed_pool(now_us, &open);
        self.end(&open, |counts| counts.refused += 1);
    }

    /// No answer is waited for any more, because the box stops.
    pub(crate) fn stop(&mut self) {
        for open in std::mem::take(&mut self.open).into_values() {
            self.end(&open, |counts| counts.lost += 1);
        }
    }

    fn end(&mut self, open: &Open, count: impl Fn(&mut OffloadCounts)) {
        for waiter in &open.waiters {
            let counts = &mut self.counts[usize::from(waiter.stream)];
            if open.purpose == Purpose::Audit {
                counts.audits_unanswered += 1;
            } else {
                count(counts);
            }
            self.outcomes.push_back(OffloadOutcome::Over { job: waiter.job });
        }
    }

    /// Lets deadlines pass.
    pub(crate) fn tick(&mut self, now_us: u64) {
        let Offloads { open, pools, counts, outcomes, outputs, .. } = self;
        open.retain(|&id, request| {
            let is_doubt = request.purpose == Purpose::Doubt;
            for waiter in
                request.waiters.iter_mut().filter(|waiter| is_doubt && !waiter.is_overdue && now_us >= waiter.deadline_us)
            {
                waiter.is_overdue = true;
                counts[usize::from(waiter.stream)].overdue += 1;
                outcomes.push_back(OffloadOutcome::Overdue { job: waiter.job });
                if !std::mem::replace(&mut request.has_failed, true) {
                    pools[request.pool].breaker.failure(now_us);
                }
            }
            let is_over = now_us >= request.ends_us;
            if is_over {
                if !is_doubt {
                    request.waiters.iter().for_each(|waiter| counts[usize::from(waiter.stream)].audits_unanswered += 1);
                }
                outcomes.extend(request.waiters.iter().map(|waiter| OffloadOutcome::Over { job: waiter.job }));
                outputs.push_back(OffloadOutput::Cancel { uplink: request.uplink, id });
            }
            !is_over
        });
        for pool in pools.iter_mut() {
            pool.breaker.advance(now_us);
            if let Some(state) = pool.news() {
                let (pool, reason) = (pool.view.name.as_str().into(), pool.breaker.reason());
                outputs.push_back(OffloadOutput::Breaker { pool, state, reason });
            }
        }
    }

    /// When [`Offloads::tick`] has something to do; service time.
    pub(crate) fn deadline_us(&self) -> u64 {
        let of = |open: &Open| {
            let waiting = open.waiters.iter().filter(|waiter| !waiter.is_overdue).map(|waiter| waiter.deadline_us);
            waiting.fold(open.ends_us, u64::min)
        };
        self.open.values().map(of).min().unwrap_or(u64::MAX)
    }

    /// What a plan weighs; `rtt_us` is the round trip of each uplink that is up and carries requests.
    pub(crate) fn places(&self, now_us: u64, rtt_us: &[Option<u64>]) -> Vec<PoolPlace> {
        let place = |pool: &KnownPool| {
            let way = |(reached, rtt_us): (&bool, &Option<u64>)| {
                rtt_us.filter(|_| *reached).map(|rtt_us| pool.expected_us(now_us, rtt_us))
            };
            PoolPlace {
                name: pool.view.name.as_str().into(),
                task: pool.view.task.as_str().into(),
                zone: (!pool.view.zone.is_empty()).then(|| pool.view.zone.as_str().into()),
                shape: (pool.view.channels as usize, pool.view.length as usize),
                answer_us: pool.reached.iter().zip(rtt_us).map(way).collect(),
                is_open: matches!(pool.breaker.state(), BreakerState::Open { .. }),
                queue_percent: pool.view.queue_percent,
                age_us: now_us.saturating_sub(pool.told_us).saturating_add(pool.view.age_ms.saturating_mul(1_000)),
            }
        };
        self.pools.iter().map(place).collect()
    }

    /// The answer to a job of a stream differs from the local one.
    pub(crate) fn disagreed(&mut self, stream: u16) {
        self.counts[usize::from(stream)].disagreed += 1;
    }

    /// Counts of a stream since start.
    pub fn counts(&self, stream: u16) -> OffloadCounts {
        self.counts.get(usize::from(stream)).copied().unwrap_or_default()
    }

    /// Pools that are known, in the order in which they were first told of.
    pub fn pools(&self) -> &[KnownPool] {
        &self.pools
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// Requests and bytes of the last hour, each with its limit.
    pub fn hour(&self) -> [(u64, u64); 2] {
        [self.requests.level(), self.bytes.level()]
    }

    /// Pools of which the cloud told, beyond what is remembered.
    pub fn pools_ignored(&self) -> u64 {
        self.pools_ignored
    }
}

/// A pool that asks for more than this is asked again all the same.
const RETRY_MS_MAX: u64 = 60_000;

#[cfg(test)]
mod tests;
