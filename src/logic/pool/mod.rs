//! The scheduler of a pool: which requests of which gateways run next, which wait, and which are refused.
//!
//! Think of a counter with a few clerks and one waiting room for everybody. Urgent people are called first. Among equally
//! urgent ones families take turns, so that a large family does not hold up the others. When the room is full, whoever came
//! last of the least urgent leaves, or of the family that has most people in it, and is told so at the door, not after an hour.
//!
//! The rules:
//! - A request of a higher class goes first, and a refused one never has a lower class waiting behind it.
//! - Within a class gateways take turns: deficit round robin, whose quantum is one request because all windows of a pool
//!   cost the same.
//! - A gateway may have as many waiting as there are free places, and one in any case (dynamic thresholds, Choudhury and Hahne
//!   1998): the fuller the room, the fewer of one gateway come in, so that few have to leave. What waits of a class below
//!   makes way instead.
//! - Without room a newcomer takes the place of the newest request of a lower class; else that of the newest of the gateway that
//!   has most waiting in its class, if that has at least two more than its own; else it is refused.
//! - What can by present speed not be answered by its deadline is refused when it comes, what has become too late when it does.
//! - A clerk takes what waits at once, or up to `linger_us` after the oldest came, for company: never while a critical one waits.
//!
//! What surprised us: by its place in the room alone the first request of a quiet gateway looks as late as everybody's; what
//! counts is how many turns are before its own. And who is told to stay away until the room is empty loses the turns of all
//! that time: who finds it full comes back after a round. Of several that have most waiting the one to leave must not be always
//! the same, such as the last by name: 200 gateways of 1 to 16 requests each came to 0.92 for these two reasons.

mod latency;
mod queue;
mod told;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::ids::{Class, PerClass};

pub use latency::Latencies;
pub use told::PoolsTold;

use queue::ClassQueue;

/// Limits of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// Requests that may wait, of all gateways; at least 1.
    pub queue_max: usize,
    /// Requests that run at once on one worker; at least 1.
    pub batch_max: usize,
    /// How long the oldest may wait for company while a worker is idle, in microseconds.
    pub linger_us: u64,
    /// Workers; at least 1.
    pub workers: u16,
}

/// One window to be scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRequest {
    /// Never used before in this pool.
    pub id: u64,
    /// Whose it is, as its certificate says.
    pub gateway: Arc<str>,
    /// How much it matters.
    pub class: Class,
    /// When it is of no use any more, in service time.
    pub deadline_us: u64,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolOutput {
    /// Run these on a worker, and tell with [`Pool::finished`].
    Run {
        /// The worker.
        worker: u16,
        /// The requests; at least one.
        ids: Vec<u64>,
    },
    /// Tell the gateway that there will be no answer.
    Refuse {
        /// The request.
        id: u64,
        /// Why.
        reason: RefusedReason,
        /// When it may try again, in microseconds from now.
        retry_after_us: u64,
    },
}

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusedReason {
    /// As many wait as may.
    Full,
    /// It made room for one of a higher class.
    Shed,
    /// It made room for a gateway that had fewer waiting.
    Unfair,
    /// By present speed it would be answered after its deadline.
    Late,
    /// Its deadline passed while it waited.
    Expired,
}

impl RefusedReason {
    /// All of them.
    pub const ALL: [RefusedReason; 5] =
        [RefusedReason::Full, RefusedReason::Shed, RefusedReason::Unfair, RefusedReason::Late, RefusedReason::Expired];

    /// The word used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            RefusedReason::Full => "full",
            RefusedReason::Shed => "shed",
            RefusedReason::Unfair => "unfair",
            RefusedReason::Late => "late",
            RefusedReason::Expired => "expired",
        }
    }
}

/// What a pool counts since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolCounters {
    /// Requests that came, by class.
    pub offered: PerClass<u64>,
    /// Requests that ran, by class.
    pub served: PerClass<u64>,
    /// Requests refused, by the position of their reason in [`RefusedReason::ALL`] and by class.
    pub refused: [PerClass<u64>; 5],
    /// Requests that were taken back before they ran.
    pub cancelled: u64,
    /// Batches run.
    pub batches: u64,
}

/// How busy a pool is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolLoad {
    /// Requests that wait.
    pub queued: usize,
    /// Requests that run.
    pub running: usize,
    /// Median time from a request's coming to its answer, of the last ones, in microseconds; 0 before the first.
    pub p50_us: u64,
    /// The 95th percentile of the same.
    pub p95_us: u64,
    /// How old the newest of these is in microseconds; `None` before the first.
    pub age_us: Option<u64>,
    /// The 95th percentile of the time from a request's coming to its refusal, of the last ones, in microseconds: 0 says that
    /// it is told at once.
    pub refused_p95_us: u64,
}

#[derive(Debug, Clone)]
struct Waiting {
    request: PoolRequest,
    came_us: u64,
}

/// The scheduler of one pool.
#[derive(Debug)]
pub struct Pool {
    limits: PoolLimits,
    queues: PerClass<ClassQueue>,
    waiting: BTreeMap<u64, Waiting>,
    /// Deadlines and times of coming of those that wait.
    deadlines: BTreeSet<(u64, u64)>,
    came: BTreeSet<(u64, u64)>,
    /// By worker: when what it runs came.
    running: Vec<Option<Vec<u64>>>,
    latencies: Latencies,
    /// The same of refusals.
    refusals: Latencies,
    /// Time in the model for each request, averaged; `None` before the first batch.
    row_us: Option<f64>,
    outputs: VecDeque<PoolOutput>,
    counters: PoolCounters,
}

/// Weight of a batch in the average time of a request.
const ROW_WEIGHT: f64 = 0.1;
/// Bounds of what a refusal says of when to try again, in microseconds.
const RETRY_US: (u64, u64) = (20_000, 30_000_000);

impl Pool {
    /// A pool in which nothing waits.
    pub fn new(limits: PoolLimits) -> Pool {
        Pool {
            limits,
            queues: Default::default(),
            waiting: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            came: BTreeSet::new(),
            running: vec![None; usize::from(limits.workers.max(1))],
            latencies: Latencies::default(),
            refusals: Latencies::default(),
            row_us: None,
            outputs: VecDeque::new(),
            counters: PoolCounters::default(),
        }
    }

    /// What to do next; call until `None` after every other call.
    pub fn poll(&mut self) -> Option<PoolOutput> {
        self.outputs.pop_front()
    }

    /// A request came: it runs, waits, or is refused at once, and may be so at the cost of another.
    pub fn offer(&mut self, now_us: u64, request: PoolRequest) {
        self.counters.offered[request.class.index()] += 1;
        if now_us.saturating_add(self.wait_us(&request)) > request.deadline_us {
            return self.refuse(now_us, now_us, request.id, request.class, RefusedReason::Late);
        }
        let free = self.limits.queue_max.max(1).saturating_sub(self.waiting.len());
        let has_room = if free == 0 { self.make_room(now_us, &request) } else { self.may_have_more(&request, free) };
        if !has_room {
            return self.refuse(now_us, now_us, request.id, request.class, RefusedReason::Full);
        }
        self.queues[request.class.index()].push(&request.gateway, request.id);
        self.deadlines.insert((request.deadline_us, request.id));
        self.came.insert((now_us, request.id));
        self.waiting.insert(request.id, Waiting { request, came_us: now_us });
        self.dispatch(now_us);
    }

    /// A gateway does not want an answer any more; one that runs already runs on.
    pub fn cancel(&mut self, id: u64) {
        if self.take(id).is_some() {
            self.counters.cancelled += 1;
        }
    }

    /// A worker has run what it was given, in so many microseconds.
    pub fn finished(&mut self, now_us: u64, worker: u16, took_us: u64) {
        let Some(came) = self.running.get_mut(usize::from(worker)).and_then(Option::take) else { return };
        let row_us = took_us as f64 / came.len().max(1) as f64;
        self.row_us = Some(self.row_us.map_or(row_us, |mean| mean + (row_us - mean) * ROW_WEIGHT));
        came.into_iter().for_each(|came_us| self.latencies.add(now_us, now_us.saturating_sub(came_us)));
        self.tick(now_us);
    }

    /// Refuses what has become too late, and starts what is due.
    pub fn tick(&mut self, now_us: u64) {
        while let Some(&(_, id)) = self.deadlines.first().filter(|(deadline_us, _)| *deadline_us < now_us) {
            if let Some(expired) = self.take(id) {
                self.refuse(now_us, expired.came_us, id, expired.request.class, RefusedReason::Expired);
            }
        }
        self.dispatch(now_us);
    }

    /// When [`Pool::tick`] has something to do; `None` if nothing waits.
    pub fn deadline_us(&self) -> Option<u64> {
        let expires_us = self.deadlines.first().map(|(deadline_us, _)| deadline_us.saturating_add(1))?;
        let is_idle = self.running.iter().any(Option::is_none);
        let lingers_us = self.came.first().filter(|_| is_idle).map(|(came_us, _)| came_us + self.limits.linger_us);
        Some(lingers_us.map_or(expires_us, |lingers_us| lingers_us.min(expires_us)))
    }

    /// How busy it is.
    pub fn load(&self, now_us: u64) -> PoolLoad {
        let (p50_us, p95_us) = self.latencies.p50_p95_us();
        PoolLoad {
            queued: self.waiting.len(),
            running: self.running.iter().flatten().map(Vec::len).sum(),
            p50_us,
            p95_us,
            age_us: self.latencies.newest_us().map(|newest_us| now_us.saturating_sub(newest_us)),
            refused_p95_us: self.refusals.p50_p95_us().1,
        }
    }

    /// Counts since start.
    pub fn counters(&self) -> &PoolCounters {
        &self.counters
    }

    /// Time that a request would wait before it runs, by what is known; 0 while nothing is.
    fn wait_us(&self, request: &PoolRequest) -> u64 {
        let Some(row_us) = self.row_us else { return 0 };
        let higher: usize = self.queues[..request.class.index()].iter().map(ClassQueue::len).sum();
        let turns = higher + self.queues[request.class.index()].turns_before(&request.gateway);
        // What runs is half done on average, and it runs itself.
        let running: usize = self.running.iter().flatten().map(Vec::len).sum();
        ((turns as f64 + running as f64 / 2.0) * row_us / self.running.len() as f64 + row_us) as u64
    }

    /// True if so many free places allow one more of the newcomer's gateway, or something less urgent waits.
    fn may_have_more(&self, newcomer: &PoolRequest, free: usize) -> bool {
        let (own, lower) = self.queues[newcomer.class.index()..].split_at(1);
        own[0].len_of(&newcomer.gateway) < free || lower.iter().any(|queue| !queue.is_empty())
    }

    /// Makes one that waits leave for a newcomer; false if none has to.
    fn make_room(&mut self, now_us: u64, newcomer: &PoolRequest) -> bool {
        let lower = self.queues[newcomer.class.index() + 1..].iter().rev();
        if let Some(id) = lower.filter_map(ClassQueue::newest_of_longest).map(|(id, _)| id).next() {
            return self.give_up(now_us, id, RefusedReason::Shed);
        }
        let queue = &self.queues[newcomer.class.index()];
        let own = queue.len_of(&newcomer.gateway);
        match queue.newest_of_longest() {
            Some((id, longest)) if longest >= own + 2 => self.give_up(now_us, id, RefusedReason::Unfair),
            _ => false,
        }
    }

    fn give_up(&mut self, now_us: u64, id: u64, reason: RefusedReason) -> bool {
        let given_up = self.take(id);
        if let Some(waiting) = &given_up {
            self.refuse(now_us, waiting.came_us, id, waiting.request.class, reason);
        }
        given_up.is_some()
    }

    fn refuse(&mut self, now_us: u64, came_us: u64, id: u64, class: Class, reason: RefusedReason) {
        self.refusals.add(now_us, now_us.saturating_sub(came_us));
        self.counters.refused[reason as usize][class.index()] += 1;
        let before = match reason {
            // A turn of each of its class, and all of the classes above.
            RefusedReason::Full | RefusedReason::Shed | RefusedReason::Unfair => {
                let higher: usize = self.queues[..class.index()].iter().map(ClassQueue::len).sum();
                higher + self.queues[class.index()].gateways()
            }
            // Less has to wait before it can be in time.
            RefusedReason::Late | RefusedReason::Expired => self.waiting.len(),
        };
        let wait_us = before as f64 * self.row_us.unwrap_or(0.0) / self.running.len() as f64;
        let retry_after_us = (wait_us as u64).clamp(RETRY_US.0, RETRY_US.1);
        self.outputs.push_back(PoolOutput::Refuse { id, reason, retry_after_us });
    }

    /// Takes one out of those that wait, wherever it is in its queue.
    fn take(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        self.queues[waiting.request.class.index()].remove(&waiting.request.gateway, id);
        self.forget(&waiting);
        Some(waiting)
    }

    fn forget(&mut self, waiting: &Waiting) {
        self.deadlines.remove(&(waiting.request.deadline_us, waiting.request.id));
        self.came.remove(&(waiting.came_us, waiting.request.id));
    }

    /// Gives idle workers what is due.
    fn dispatch(&mut self, now_us: u64) {
        while let Some(worker) = self.running.iter().position(Option::is_none) {
            let Some(&(oldest_us, _)) = self.came.first() else { return };
            let is_urgent = !self.queues[Class::Critical.index()].is_empty();
            let is_due = now_us >= oldest_us + self.limits.linger_us || self.waiting.len() >= self.limits.batch_max;
            if !is_urgent && !is_due {
                return;
            }
            let (mut ids, mut came) = (Vec::new(), Vec::new());
            while ids.len() < self.limits.batch_max.max(1)
                && let Some(id) = self.queues.iter_mut().find_map(ClassQueue::pop)
                && let Some(waiting) = self.waiting.remove(&id)
            {
                self.forget(&waiting);
                self.counters.served[waiting.request.class.index()] += 1;
                ids.push(id);
                came.push(waiting.came_us);
            }
            self.counters.batches += 1;
            self.running[worker] = Some(came);
            self.outputs.push_back(PoolOutput::Run { worker: worker as u16, ids });
        }
    }
}

#[cfg(test)]
mod tests;
