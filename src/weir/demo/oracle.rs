//! The oracle: what each message's fate should have been, by rules of its own, against what is there at the end.
//!
//! It knows what sensors sent and what they got a PUBACK for ([`DeviceLog`]), and the rules as the configuration states them;
//! it uses none of the box's or the cloud's counters. A message is **lost** if it got its PUBACK, should be in a record, and
//! is neither in the cloud, nor in the buffer, nor given up or thinned with a reason; a record is **doubled** if it is stored more often than
//! its sender sent it, and **wrong** if it is not what was sent or should not be there.

use std::collections::{BTreeMap, HashMap};

use weir_logic::ids::{Class, PerClass};

use super::evidence::{Evidence, Found, What};
use super::observe::Commits;
use super::publish::{DeviceLog, Sent};
use super::recordings::{AXES, Motion};
use super::report::ClassReport;
use super::setup::{UNSURE_BELOW, WINDOW_ROWS, WINDOW_STEP};
use super::traffic::{Kind, LEVEL_DELTA, SPAN_MS, WATCH_ROWS, id};

/// Findings that are told in words.
const FINDINGS_MAX: usize = 20;

/// What the oracle says.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    pub(super) classes: PerClass<ClassReport>,
    /// From publishing to the commit in the cloud, in microseconds.
    pub(super) latency_us: PerClass<Vec<u64>>,
    pub(super) verdicts: u64,
    pub(super) windows: u64,
    pub(super) held: u64,
    /// Verdicts on windows with one exercise, and those of them that name it.
    pub(super) judged: u64,
    pub(super) right: u64,
    pub(super) findings: Vec<String>,
    /// Messages that are nowhere, before what was given up is taken off.
    absent: PerClass<u64>,
}

/// Compares what was sent with what is there.
pub(super) fn judge(logs: &[DeviceLog], motions: &[Motion], evidence: &Evidence, commits: &Commits) -> Judgement {
    let mut judgement = Judgement::default();
    let mut by_device: HashMap<(&str, &str), Vec<&Found>> = HashMap::new();
    for found in &evidence.found {
        by_device.entry((&found.stream, &found.device)).or_default().push(found);
        let class = &mut judgement.classes[found.lane.index()];
        class.stored += u64::from(found.in_cloud);
        judgement.held += u64::from(!found.in_cloud);
    }
    for log in logs {
        let found = log.kind.stream().and_then(|stream| by_device.remove(&(stream, log.device.as_str()))).unwrap_or_default();
        judgement.count(log);
        match log.kind {
            Kind::Alarm | Kind::Pump | Kind::Log => judgement.raw(log, &found, commits, |_| true),
            Kind::Level => {
                let mut last_kept: Option<f64> = None;
                let moved = |sent: &Sent| {
                    let is_kept = last_kept.is_none_or(|last| (sent.value - last).abs() >= LEVEL_DELTA);
                    if is_kept {
                        last_kept = Some(sent.value);
                    }
                    is_kept
                };
                judgement.raw(log, &found, commits, moved);
            }
            Kind::Garbled | Kind::Stray => judgement.raw(log, &found, commits, |_| false),
            Kind::Temperature => judgement.spans(log, &found),
            Kind::Watch => match motions.iter().find(|motion| motion.wearer == log.device) {
                Some(motion) => judgement.windows(log, motion, &found, commits),
                None => judgement.wrong(log.kind.class(), format!("nobody replays {}", log.device)),
            },
        }
    }
    for ((stream, device), found) in by_device {
        judgement.wrong(found[0].lane, format!("{} records of {stream}/{device}, which sent nothing", found.len()));
    }
    judgement.close(evidence);
    judgement
}

impl Judgement {
    /// What was sent and acknowledged, and what the rules made of it.
    fn count(&mut self, log: &DeviceLog) {
        let class = &mut self.classes[log.kind.class().index()];
        for sent in &log.sent {
            class.published += 1;
            class.payload_bytes += u64::from(sent.payload_len);
            class.acked += u64::from(sent.acked);
        }
        let acked = log.sent.iter().filter(|sent| sent.acked).count() as u64;
        match log.kind {
            Kind::Garbled => class.undecodable += acked,
            Kind::Stray => class.unmatched += acked,
            Kind::Temperature | Kind::Watch => class.folded += acked,
            // Counted with the records.
            Kind::Alarm | Kind::Pump | Kind::Level | Kind::Log => {}
        }
    }

    /// Messages that become records of their own, if `is_kept` says so.
    fn raw(&mut self, log: &DeviceLog, found: &[&Found], commits: &Commits, mut is_kept: impl FnMut(&Sent) -> bool) {
        let class = log.kind.class();
        let mut copies: Vec<Vec<&Found>> = vec![Vec::new(); log.sent.len()];
        for found in found {
            match found.what {
                What::Raw { number: Some(number), hash } if log.sent.get(number).is_some_and(|sent| sent.hash == hash) => {
                    copies[number].push(found);
                }
                _ => self.wrong(class, format!("a record of {}/{} is not what was sent", found.stream, found.device)),
            }
        }
        for (number, (sent, copies)) in log.sent.iter().zip(&copies).enumerate() {
            if sent.sends == 0 {
                continue;
            }
            let name = || id(log.kind, &log.device, number);
            let counts = &mut self.classes[class.index()];
            match (is_kept(sent), copies.len()) {
                (true, 0) if sent.acked => self.absent(class, 1, format!("{} is nowhere", name())),
                (true, 0) => {}
                (true, copies_len) => {
                    let more = copies_len as u64 - 1;
                    let resent = more.min(u64::from(sent.sends) - 1);
                    counts.resent += resent;
                    if more > resent {
                        self.doubled(class, more - resent, format!("{} is there {copies_len} times", name()));
                    }
                    self.time(sent, copies[0], commits);
                }
                (false, 0) => counts.filtered += u64::from(sent.acked && log.kind == Kind::Level),
                (false, _) => self.wrong(class, format!("{} should not be there", name())),
            }
        }
    }

    /// Messages of which a span's minimum, maximum, sum and count are kept.
    fn spans(&mut self, log: &DeviceLog, found: &[&Found]) {
        #[derive(Default)]
        struct Span {
            values: Vec<f64>,
            unacked: u64,
            count: u64,
            min: Option<f64>,
            max: Option<f64>,
            sum: f64,
        }
        let class = log.kind.class();
        let mut spans: BTreeMap<i64, Span> = BTreeMap::new();
        for sent in log.sent.iter().filter(|sent| sent.sends > 0) {
            let span = spans.entry(sent.time_ms.div_euclid(SPAN_MS) * SPAN_MS).or_default();
            span.values.push(sent.value);
            span.unacked += u64::from(!sent.acked);
        }
        for found in found {
            let What::Aggregate { start_us, count, min, max, sum } = found.what else {
                self.wrong(class, format!("a record of {}/{} is no aggregate", found.stream, found.device));
                continue;
            };
            let span = spans.entry(start_us / 1_000).or_default();
            span.count += count;
            span.min = Some(span.min.map_or(min, |least| least.min(min)));
            span.max = Some(span.max.map_or(max, |most| most.max(max)));
            span.sum += sum;
        }
        for (start_ms, span) in spans {
            let name = || format!("{}/{} span {start_ms}", log.kind.stream().unwrap_or_default(), log.device);
            let sent = span.values.len() as u64;
            let absent = sent.saturating_sub(span.unacked).saturating_sub(span.count);
            if absent > 0 {
                self.absent(class, absent, format!("{} lacks {absent} of {sent} samples", name()));
            } else if span.count > sent {
                self.doubled(class, span.count - sent, format!("{} has {} samples of {sent}", name(), span.count));
            } else if span.count == sent {
                let least = span.values.iter().copied().reduce(f64::min);
                let most = span.values.iter().copied().reduce(f64::max);
                let sum: f64 = span.values.iter().sum();
                // The order of adding may differ.
                let is_sum = (sum - span.sum).abs() <= 1e-9 * sum.abs().max(1.0);
                if (least, most) != (span.min, span.max) || !is_sum {
                    self.wrong(class, format!("{} has other values than were sent", name()));
                }
            }
        }
    }

    /// Messages that are cut into windows, each of which gets a verdict, and is kept if the verdict is unsure.
    fn windows(&mut self, log: &DeviceLog, motion: &Motion, found: &[&Found], commits: &Commits) {
        let class = log.kind.class();
        let rows = |is_counted: fn(&&Sent) -> bool| WATCH_ROWS * log.sent.iter().filter(is_counted).count();
        let windows = |rows: usize| (rows + WINDOW_STEP).saturating_sub(WINDOW_ROWS) / WINDOW_STEP;
        // Acknowledged messages are in; one that was only sent may be.
        let (least, most) = (windows(rows(|sent| sent.acked)), windows(rows(|sent| sent.sends > 0)));
        let mut verdicts: Vec<(i64, &str, f64, &Found)> = Vec::new();
        let mut kept: HashMap<i64, &Vec<f32>> = HashMap::new();
        for found in found {
            match &found.what {
                What::Verdict { end_us, label, confidence } => verdicts.push((*end_us, label, *confidence, found)),
                What::Window { end_us, values } if kept.insert(*end_us, values).is_none() => {
                    self.windows += u64::from(found.in_cloud);
                }
                _ => self.wrong(class, format!("a record of {}/{} should not be there", found.stream, found.device)),
            }
        }
        verdicts.sort_by_key(|&(end_us, ..)| end_us);
        if verdicts.len() < least {
            let absent = (least - verdicts.len()) as u64;
            self.absent(class, absent, format!("{} lacks {absent} of {least} verdicts", log.device));
        } else if verdicts.len() > most {
            let more = (verdicts.len() - most) as u64;
            self.doubled(class, more, format!("{} has {} verdicts on {most} windows", log.device, verdicts.len()));
        }
        for (window, &(end_us, label, confidence, found)) in verdicts.iter().enumerate() {
            self.verdicts += u64::from(found.in_cloud);
            let first_row = window * WINDOW_STEP;
            if let Some(exercise) = motion.exercise(first_row, WINDOW_ROWS) {
                self.judged += 1;
                self.right += u64::from(exercise == label);
            }
            if let Some(sent) = log.sent.get((first_row + WINDOW_ROWS - 1) / WATCH_ROWS) {
                self.time(sent, found, commits);
            }
            match ((confidence as f32) < UNSURE_BELOW as f32, kept.remove(&end_us)) {
                (true, None) => self.absent(class, 1, format!("window {window} of {} is nowhere", log.device)),
                (true, Some(values)) if !is_window(values, motion, first_row) => {
                    self.wrong(class, format!("window {window} of {} is not what was sent", log.device));
                }
                (false, Some(_)) => self.wrong(class, format!("window {window} of {} should not be there", log.device)),
                (true, Some(_)) | (false, None) => {}
            }
        }
        if !kept.is_empty() {
            self.wrong(class, format!("{} windows of {} have no verdict", kept.len(), log.device));
        }
    }

    /// Notes how long a record took to the cloud.
    fn time(&mut self, sent: &Sent, found: &Found, commits: &Commits) {
        let committed_us = if found.in_cloud { commits.at_us(&found.epoch, found.lane, found.seq) } else { None };
        if let Some(at_us) = committed_us {
            self.latency_us[found.lane.index()].push(at_us.saturating_sub(sent.at_us));
        }
    }

    /// Takes off what was given up or left out with a reason; the rest of what is nowhere is lost.
    fn close(&mut self, evidence: &Evidence) {
        for (lane, class) in self.classes.iter_mut().enumerate() {
            (class.evicted, class.expired) = (evidence.evicted[lane], evidence.expired[lane]);
            class.thinned = evidence.thinned[lane];
            class.doubled += evidence.doubled[lane];
            class.lost = self.absent[lane].saturating_sub(evidence.excused(lane));
            class.missing = evidence.missing[lane].max(holes(evidence, lane));
        }
        for (class, counts) in Class::ALL.iter().zip(&self.classes) {
            if counts.missing > 0 {
                self.findings.push(format!("{} sequence numbers of lane {} are missing", counts.missing, class.name()));
            }
        }
        if self.classes.iter().all(ClassReport::is_conserved) {
            // What is nowhere was given up, and is counted as that.
            self.findings.clear();
        }
    }

    fn absent(&mut self, class: Class, count: u64, text: String) {
        self.absent[class.index()] += count;
        self.tell(text);
    }

    fn doubled(&mut self, class: Class, count: u64, text: String) {
        self.classes[class.index()].doubled += count;
        self.tell(text);
    }

    fn wrong(&mut self, class: Class, text: String) {
        self.classes[class.index()].wrong += 1;
        self.tell(text);
    }

    fn tell(&mut self, text: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(text);
        }
    }
}

/// Numbers between the first and the last of a lane that are neither there nor given up.
fn holes(evidence: &Evidence, lane: usize) -> u64 {
    let mut numbers: BTreeMap<&str, (i64, i64, u64)> = BTreeMap::new();
    for found in evidence.found.iter().filter(|found| found.lane.index() == lane) {
        let (first, last, count) = numbers.entry(&found.epoch).or_insert((found.seq, found.seq, 0));
        (*first, *last, *count) = (found.seq.min(*first), found.seq.max(*last), *count + 1);
    }
    let holes: u64 = numbers.values().map(|&(first, last, count)| (last - first + 1) as u64 - count).sum();
    holes.saturating_sub(evidence.excused(lane))
}

/// Whether a window has the rows that were sent, channel after channel.
fn is_window(values: &[f32], motion: &Motion, first_row: usize) -> bool {
    let row = |at: usize| &motion.rows[(first_row + at) % motion.rows.len()];
    let sent = (0..AXES).flat_map(|axis| (0..WINDOW_ROWS).map(move |at| f32::from(row(at)[axis])));
    sent.eq(values.iter().copied())
}

#[cfg(test)]
mod tests;
