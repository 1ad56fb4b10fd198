//! Windows on their way to a pool and back: what ingest wants asked, what the plan allows, what the uplinks carry.

use super::{Event, Gateway, Output};
use crate::audit::Learned;
use crate::ingest::Moment;
use crate::offload::{Ask, Asked, NotSent, OffloadOutcome, OffloadOutput, Offloads, PoolPlace};

impl Gateway {
    /// Asks about what is in doubt, and records what has been decided.
    pub(super) fn escalate(&mut self, now: Moment) {
        self.offloads.tick(now.service_us);
        for job in self.ingest.take_escalations() {
            match self.ask(now.service_us, job) {
                Asked::UnderWay => self.ingest.sent_on(job),
                Asked::Known(answer) => {
                    self.offload_outcome(now, OffloadOutcome::Answered { job, answer });
                }
                Asked::Not(_) => self.offload_outcome(now, OffloadOutcome::Over { job }),
            }
        }
        while let Some(outcome) = self.offloads.outcome() {
            self.offload_outcome(now, outcome);
        }
        while let Some(output) = self.offloads.output() {
            self.outputs.push_back(match output {
                OffloadOutput::Send { uplink, id, class, purpose, bytes } => {
                    Output::Offload { uplink, id, class, purpose, bytes }
                }
                OffloadOutput::Cancel { uplink, id } => Output::CancelOffload { uplink, id },
                // The next plan has another pool, or none; until then the breaker itself refuses.
                OffloadOutput::Breaker { pool, state, reason } => Output::Event(Event::PoolBreaker { pool, state, reason }),
            });
        }
    }

    fn ask(&mut self, now_us: u64, job: u64) -> Asked {
        let Some((stream, purpose, window)) = self.ingest.escalation(job) else { return Asked::Not(NotSent::NoPool) };
        let (entry, of) = (&self.plan.streams[usize::from(stream)], &self.policy.streams[usize::from(stream)]);
        let Some(policy) = &of.offload else { return Asked::Not(NotSent::NoPool) };
        // Nothing new is begun at a stop: the local verdict stands.
        let pool = entry.placement.pool().filter(|_| !self.stopping);
        let usable = self.plan.uplinks[entry.lane.index()].iter().copied();
        let uplinks: Vec<u8> = usable.filter(|&uplink| self.carries_offload(uplink)).collect();
        let ask = Ask { job, stream, class: entry.lane, purpose, policy, pool, uplinks: &uplinks, window };
        self.offloads.ask(now_us, &ask)
    }

    fn offload_outcome(&mut self, now: Moment, outcome: OffloadOutcome) {
        let (ingest, plan, lanes) = (&mut self.ingest, &self.plan, &mut self.lanes);
        match outcome {
            OffloadOutcome::Answered { job, answer } => {
                if let Some((stream, true)) = ingest.answered(now, plan, lanes, job, &answer) {
                    self.offloads.disagreed(stream);
                }
            }
            OffloadOutcome::Overdue { job } => ingest.not_answered(now, plan, lanes, job, false),
            OffloadOutcome::Over { job } => ingest.not_answered(now, plan, lanes, job, true),
        }
    }

    /// True if an uplink is up and has a stream for each request: over TCP there is none.
    fn carries_offload(&self, uplink: u8) -> bool {
        let at = usize::from(uplink);
        self.uplinks[at].is_up() && self.policy.uplinks[at].stands_in_for.is_none()
    }

    /// Lets thresholds move; returns by stream where they are.
    pub(super) fn learn(&mut self, now_us: u64) -> Vec<Option<Learned>> {
        let audits = self.ingest.audits_mut();
        let mut learned = Vec::with_capacity(self.policy.streams.len());
        for (index, stream) in self.policy.streams.iter().enumerate() {
            let index = index as u16;
            let policy = stream.offload.as_ref().filter(|offload| offload.learn.is_some());
            if let Some(moved) = policy.and_then(|policy| audits.look(now_us, index, policy)) {
                self.outputs.push_back(Output::Event(Event::Learned { stream: index, learned: moved }));
            }
            learned.push(policy.and_then(|_| audits.learned(index)));
        }
        learned
    }

    /// What the plan weighs of pools.
    pub(super) fn pool_places(&self, now_us: u64) -> Vec<PoolPlace> {
        let rtt_us = |uplink: usize| self.carries_offload(uplink as u8).then(|| self.health[uplink].estimate(now_us).rtt_us);
        let rtts_us: Vec<Option<u64>> = (0..self.uplinks.len()).map(rtt_us).collect();
        self.offloads.places(now_us, &rtts_us)
    }

    /// Pools and requests, for status and metrics.
    pub fn offloads(&self) -> &Offloads {
        &self.offloads
    }
}
