//! A pool as the box sees it: what the cloud says of it, how long its answers take, and whether to ask it at all.

use std::sync::Arc;

use crate::health::{Breaker, BreakerLimits, BreakerState, EVIDENCE_HALF_LIFE_US, PeakEwma};
use crate::ids::PerClass;
use crate::wire::offload::PoolView;

/// When the breaker of a pool opens and closes. A request that was not answered by its deadline, or that the pool could not
/// make sense of, is a failure; one that it refuses because it is busy is not.
pub const POOL_BREAKER: BreakerLimits = BreakerLimits {
    consecutive_max: 3, // each costs a record of mode `wait` its deadline
    ratio_min: 0.5,
    samples_min: 10,
    window_us: 60_000_000,
    trial_us: 10_000_000, // deadlines end it before
    hold_down_us: 0,      // one answer proves that the pool answers; nothing waits for it that has no local answer
    open_us: (1_000_000, 60_000_000),
};

/// One pool, by name.
#[derive(Debug)]
pub struct KnownPool {
    /// What the cloud last said of it, over whichever uplink.
    pub(super) view: PoolView,
    /// When that was.
    pub(super) told_us: u64,
    /// By uplink: the machine at its other end has it.
    pub(super) reached: Vec<bool>,
    pub(super) breaker: Breaker,
    /// Time from a request to its answer, both ways of the network included.
    pub(super) answers: PeakEwma,
    pub(super) answered_us: u64,
    /// By class: until when it asked to be left alone.
    pub(super) paused_us: PerClass<u64>,
    told_state: &'static str,
}

impl KnownPool {
    pub(super) fn new(view: PoolView, uplinks: usize, seed: u64) -> Self {
        KnownPool {
            view,
            told_us: 0,
            reached: vec![false; uplinks],
            breaker: Breaker::new(POOL_BREAKER, seed),
            answers: PeakEwma::new(EVIDENCE_HALF_LIFE_US),
            answered_us: 0,
            paused_us: [0; 4],
            told_state: "closed",
        }
    }

    /// How long an answer is expected to take over an uplink of this round trip, in microseconds: as long as of late, or if
    /// nothing was asked of late, as the cloud says.
    pub(super) fn expected_us(&self, now_us: u64, rtt_us: u64) -> u64 {
        let own = self.answers.value_us(now_us).filter(|_| now_us < self.answered_us.saturating_add(OWN_US));
        own.unwrap_or(self.view.p95_us.saturating_add(rtt_us))
    }

    /// What the cloud last said of it.
    pub fn view(&self) -> &PoolView {
        &self.view
    }

    /// When that was, in service time.
    pub fn told_us(&self) -> u64 {
        self.told_us
    }

    /// True if an uplink that is up leads to it.
    pub fn is_reached(&self) -> bool {
        self.reached.contains(&true)
    }

    /// Whether it is asked.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// How long its answers took of late, in microseconds; `None` before the first.
    pub fn answer_us(&self, now_us: u64) -> Option<u64> {
        self.answers.value_us(now_us)
    }

    /// The state of its breaker, in a word.
    pub fn state(&self) -> &'static str {
        match self.breaker.state() {
            BreakerState::Closed => "closed",
            BreakerState::Open { .. } => "open",
            BreakerState::HalfOpen { .. } => "half-open",
        }
    }

    /// The state, if it is another than when this was last asked.
    pub(super) fn news(&mut self) -> Option<&'static str> {
        let state = self.state();
        (std::mem::replace(&mut self.told_state, state) != state).then_some(state)
    }
}

/// What a plan weighs of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolPlace {
    /// Its name.
    pub name: Arc<str>,
    /// What it does.
    pub task: Arc<str>,
    /// Zone that it is in.
    pub zone: Option<Arc<str>>,
    /// Channels and samples that its model takes.
    pub shape: (usize, usize),
    /// By uplink: how long an answer over it is expected to take, in microseconds; `None` if it does not lead there.
    pub answer_us: Vec<Option<u64>>,
    /// True while its breaker is open: nothing is asked of it.
    pub is_open: bool,
    /// How full its queue is, in percent, as the cloud says.
    pub queue_percent: u32,
    /// How old that is, in microseconds.
    pub age_us: u64,
}

/// For how long the box's own measurements count more than what the cloud says.
const OWN_US: u64 = 30_000_000;
