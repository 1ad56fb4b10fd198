//! Windows whose verdict may come from elsewhere: what is recorded of them, and when.

use super::streams::{Pending, Streams, Verdict};
use super::{Fate, Moment};
use crate::audit::{Answerer, BothSaid, Purpose};
use crate::block::{NewRecord, RecordKind};
use crate::lanes::Lanes;
use crate::mqtt::{Ack, PubAck};
use crate::offload::{OffloadMode, RemoteVerdict};
use crate::plan::Plan;
use crate::policy::StreamFidelity;
use crate::window::{Keep, VerdictRecord, Window, encode_window};

/// A window that is asked about, or is to be.
#[derive(Debug)]
pub(super) struct Escalated {
    pending: Pending,
    purpose: Purpose,
    /// Empty once it is sent and its record needs it no more.
    window: Vec<f32>,
    /// What the model on the box says; `None` without one.
    local: Option<Verdict>,
    /// Its record has left with the local verdict.
    is_recorded: bool,
}

impl Streams {
    /// A window was scored on the box, or could not be: it is recorded, asked about, or both.
    pub(super) fn scored_here(
        &mut self,
        now: Moment,
        plan: &Plan,
        lanes: &mut Lanes,
        mut pending: Pending,
        window: &[f32],
        verdict: Option<&Verdict>,
    ) {
        let index = self.sources[pending.source as usize].stream;
        let offload = self.streams[usize::from(index)].policy.offload.as_ref();
        let asks = offload.zip(verdict).and_then(|(offload, verdict)| {
            // The plan's band, which may be a learned one; while there is no pool the configured one says what was in doubt.
            let band = plan.streams[usize::from(index)].placement.band().unwrap_or(offload.band);
            let purpose = self.audits.scored(index, offload, band, verdict.confidence)?;
            Some((purpose, offload.mode))
        });
        let waits = asks == Some((Purpose::Doubt, OffloadMode::Wait));
        if !waits {
            self.record(now, plan, lanes, &mut pending, Some(window), verdict.map(Said::Here));
        }
        if let Some((purpose, _)) = asks {
            self.hold(Escalated { pending, purpose, window: window.to_vec(), local: verdict.cloned(), is_recorded: !waits });
        }
    }

    /// Windows that are to be asked about since the last call.
    pub(super) fn take_escalations(&mut self) -> Vec<u64> {
        for job in std::mem::take(&mut self.remote_jobs) {
            if let Some(pending) = self.take_pending(job.job) {
                let purpose = Purpose::Doubt;
                self.hold(Escalated { pending, purpose, window: job.window, local: None, is_recorded: false });
            }
        }
        std::mem::take(&mut self.escalations)
    }

    fn hold(&mut self, escalated: Escalated) {
        let job = escalated.pending.job;
        self.escalations.push(job);
        self.escalated.insert(job, escalated);
    }

    /// Stream and values of a window that is to be asked about, and why.
    pub(super) fn escalation(&self, job: u64) -> Option<(u16, Purpose, &[f32])> {
        let escalated = self.escalated.get(&job)?;
        Some((self.sources[escalated.pending.source as usize].stream, escalated.purpose, &escalated.window))
    }

    /// A window is under way: what its record does not need is let go.
    pub(super) fn sent_on(&mut self, job: u64) {
        if let Some(escalated) = self.escalated.get_mut(&job).filter(|escalated| escalated.is_recorded) {
            escalated.window = Vec::new();
        }
    }

    /// The answer came. Returns its stream, and whether it was in doubt and says another label than the box's model.
    pub(super) fn answered(
        &mut self,
        now: Moment,
        plan: &Plan,
        lanes: &mut Lanes,
        job: u64,
        answer: &RemoteVerdict,
    ) -> Option<(u16, bool)> {
        let mut escalated = self.escalated.remove(&job)?;
        let is_doubt = escalated.purpose == Purpose::Doubt;
        if is_doubt {
            let window = (!escalated.is_recorded).then_some(escalated.window.as_slice());
            self.record(now, plan, lanes, &mut escalated.pending, window, Some(Said::There(answer)));
        }
        self.compare(&escalated, answer);
        let disagrees = escalated.local.is_some_and(|local| local.label != answer.verdict.label);
        Some((self.sources[escalated.pending.source as usize].stream, is_doubt && disagrees))
    }

    /// Counts what both models said.
    fn compare(&mut self, escalated: &Escalated, answer: &RemoteVerdict) {
        let source = &self.sources[escalated.pending.source as usize];
        let policy = &self.streams[usize::from(source.stream)].policy;
        let both = (&escalated.local, &policy.model, &policy.offload);
        let (Some(local), Some(model), Some(offload)) = both else { return };
        // What no record could hold is not remembered either.
        let texts = [&answer.model, &answer.version, &answer.verdict.label];
        if texts.iter().any(|text| text.len() > VerdictRecord::TEXT_BYTES_MAX) {
            return;
        }
        self.audits.both_said(&BothSaid {
            stream: source.stream,
            task: &offload.task,
            device: &source.device,
            start_us: escalated.pending.start_us,
            end_us: escalated.pending.end_us,
            purpose: escalated.purpose,
            local: &Answerer { model: model.name.clone(), version: model.version.clone() },
            local_label: &local.label,
            confidence: local.confidence,
            remote: &Answerer { model: answer.model.clone(), version: answer.version.clone() },
            remote_label: &answer.verdict.label,
        });
    }

    /// The answer is not waited for any longer: what the box's model said is recorded. `is_over` if none will come.
    pub(super) fn not_answered(&mut self, now: Moment, plan: &Plan, lanes: &mut Lanes, job: u64, is_over: bool) {
        let Some(mut escalated) = self.escalated.remove(&job) else { return };
        if !escalated.is_recorded {
            let said = escalated.local.as_ref().map(Said::Here);
            self.record(now, plan, lanes, &mut escalated.pending, Some(&escalated.window), said);
            (escalated.is_recorded, escalated.window) = (true, Vec::new());
        }
        if !is_over {
            self.escalated.insert(job, escalated);
        }
    }

    /// Makes the records of a window: of the verdict, and of the window itself if it is given and a rule keeps it.
    fn record(
        &mut self,
        now: Moment,
        plan: &Plan,
        lanes: &mut Lanes,
        pending: &mut Pending,
        window: Option<&[f32]>,
        said: Option<Said<'_>>,
    ) {
        let source = &self.sources[pending.source as usize];
        let stream = &mut self.streams[usize::from(source.stream)];
        let entry = &plan.streams[usize::from(source.stream)];
        let lane = entry.lane;
        let record = NewRecord {
            source: pending.source,
            stream: &stream.policy.name,
            device: &source.device,
            kind: RecordKind::Window,
            service_time: pending.service_time,
            at_us: now.service_us,
            payload: &[],
        };
        let mut ack = Ack::Now(PubAck::Success);
        // Without a verdict nobody knows what the window was worth: it is kept, as all is where there is no model at all.
        let keeps_window = match (said.as_ref().map(Said::verdict), &stream.policy.keep) {
            (Some(v), Some(rules)) => rules.keep_verdict(v.score, v.confidence, &v.label) != Keep::Fold,
            (None, rules) => rules.is_some() || entry.fidelity == StreamFidelity::Verdict,
            (Some(_), None) => false,
        };
        if let Some(values) = window.filter(|_| keeps_window) {
            let (start_us, end_us, channels) = (pending.start_us, pending.end_us, pending.channels);
            self.payload.clear();
            encode_window(&Window { start_us, end_us, channels, values }, &mut self.payload);
            let seq = lanes.push(now.service_us, lane, source.stream, &NewRecord { payload: &self.payload, ..record });
            stream.counters.add(Fate::Window);
            ack = Ack::WhenSafe { lane, seq };
        }
        let by = said.as_ref().and_then(|said| match said {
            Said::Here(Verdict { by: Some(by), .. }) => Some((&by.name, &by.version)),
            Said::Here(_) => stream.policy.model.as_ref().map(|model| (&model.name, &model.version)),
            Said::There(answer) => Some((&answer.model, &answer.version)),
        });
        self.payload.clear();
        let encoded = said.as_ref().zip(by).is_some_and(|(said, (model, version))| {
            let verdict = said.verdict();
            let record = VerdictRecord {
                model: model.clone(),
                version: version.clone(),
                label: verdict.label.clone(),
                score: verdict.score,
                confidence: verdict.confidence,
                start_us: pending.start_us,
                end_us: pending.end_us,
            };
            record.encode(&mut self.payload).is_ok()
        });
        if encoded {
            let record = NewRecord { kind: RecordKind::Verdict, payload: &self.payload, ..record };
            let seq = lanes.push(now.service_us, lane, source.stream, &record);
            stream.counters.add(Fate::Verdict);
            self.verdicts += 1;
            ack = Ack::WhenSafe { lane, seq };
        } else {
            self.verdict_errors += 1;
        }
        self.resolved.extend(pending.waiting.drain(..).map(|waiting| (waiting, ack)));
    }
}

/// Who said it.
#[derive(Debug, Clone, Copy)]
enum Said<'a> {
    /// The stream's model on the box.
    Here(&'a Verdict),
    /// A pool's.
    There(&'a RemoteVerdict),
}

impl Said<'_> {
    fn verdict(&self) -> &Verdict {
        match self {
            Said::Here(verdict) => verdict,
            Said::There(answer) => &answer.verdict,
        }
    }
}
