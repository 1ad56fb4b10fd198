//! "Why is my stream thinned, and where is my message?": answers made when somebody asks, never before.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Gateway;
use crate::explain::{Change, candidate, levels, no_way, rejected};
use crate::ids::{Class, Epoch};
use crate::lanes::{HeldPlace, Place, Step};
use crate::plan::pools_rejected;
use crate::price::Wait;
use crate::wire::ANSWER_LEN_MAX;

/// Shortest answer that is of any use: a stream, its lane and a few changes.
const ANSWER_LEN_MIN: usize = 4 * 1024;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// All streams and lanes, and the last changes.
    Plan,
    /// One stream.
    Stream(String),
    /// One record.
    Record(RecordId),
}

/// The name of a record on its box: epoch, lane and sequence number, as the cloud's tables show them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordId {
    /// Epoch.
    pub epoch: Epoch,
    /// Lane.
    pub lane: Class,
    /// Sequence number.
    pub seq: u64,
}

/// Why a text asks nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// Neither nothing, nor a stream, nor a record.
    #[error("cannot read the question `{0}`: ask for stream=NAME or record=EPOCH:LANE:SEQ")]
    Unknown(String),
    /// Not the name of a record.
    #[error("`{0}` is not a record: write EPOCH:LANE:SEQ with the epoch in hexadecimal, for example 9c1f33a0b2d45e67:high:120")]
    Record(String),
}

impl FromStr for Question {
    type Err = QuestionError;

    fn from_str(text: &str) -> Result<Question, QuestionError> {
        match text.split_once('=') {
            None if text.is_empty() => Ok(Question::Plan),
            Some(("stream", name)) => Ok(Question::Stream(name.to_owned())),
            Some(("record", id)) => Ok(Question::Record(id.parse()?)),
            _ => Err(QuestionError::Unknown(text.chars().take(100).collect())),
        }
    }
}

impl FromStr for RecordId {
    type Err = QuestionError;

    fn from_str(text: &str) -> Result<RecordId, QuestionError> {
        let mut parts = text.splitn(3, ':');
        let epoch = parts.next().and_then(|epoch| u64::from_str_radix(epoch, 16).ok()).map(Epoch);
        let lane = parts.next().and_then(|lane| Class::ALL.into_iter().find(|class| class.name() == lane));
        let seq = parts.next().and_then(|seq| seq.parse().ok());
        match (epoch, lane, seq) {
            (Some(epoch), Some(lane), Some(seq)) => Ok(RecordId { epoch, lane, seq }),
            _ => Err(QuestionError::Record(text.chars().take(100).collect())),
        }
    }
}

impl std::fmt::Display for RecordId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}:{}:{}", self.epoch.0, self.lane.name(), self.seq)
    }
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Service time of the answer in microseconds.
    pub at_us: u64,
    /// The plan's version.
    pub version: u64,
    /// The price of a byte, and what made it.
    pub price: PriceExplanation,
    /// Where the record is, if one was asked for.
    pub record: Option<RecordExplanation>,
    /// The streams that were asked for.
    pub streams: Vec<StreamExplanation>,
    /// The lanes that they go into.
    pub lanes: Vec<LaneExplanation>,
    /// The last changes of all these, oldest first.
    pub changes: Vec<Change>,
    /// What was left out so that the answer is short enough to be sent; empty if nothing.
    #[serde(default)]
    pub note: String,
}

impl Explanation {
    /// The answer as JSON of at most so many bytes: the oldest changes are left out first, then what was rejected, then lanes and
    /// streams from the last on, and the note says so.
    pub fn to_json_within(mut self, bytes_max: usize) -> String {
        let (mut changes, mut rejected, mut rows) = (0, 0, 0);
        loop {
            let json = serde_json::to_string(&self).unwrap_or_default();
            if json.len() <= bytes_max {
                return json;
            }
            let count = self.changes.len();
            if count > 0 {
                self.changes.drain(..count.div_ceil(4));
                changes += count.div_ceil(4);
            } else if rejected == 0 {
                let lists = self.streams.iter_mut().map(|stream| &mut stream.rejected);
                let lists = lists.chain(self.lanes.iter_mut().map(|lane| &mut lane.rejected));
                rejected = lists.map(|list| std::mem::take(list).len()).sum::<usize>().max(1);
            } else if let Some(half) = self.streams.len().checked_sub(1) {
                self.streams.truncate(half / 2);
                rows += half + 1 - half / 2;
            } else if self.lanes.pop().is_none() {
                return json;
            }
            self.note = format!(
                "cut to {bytes_max} bytes: {changes} changes, {rejected} rejected candidates and {rows} streams are left out; ask \
                 for one stream, or on the box"
            );
        }
    }
}

/// The price of a byte, and what made it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PriceExplanation {
    /// What a byte must be worth.
    pub lambda: f64,
    /// Bytes that want to be sent within the horizon.
    pub wanted_bytes: u64,
    /// Bytes that the uplinks are forecast to carry in it.
    pub forecast_bytes: u64,
    /// Bytes that wait.
    pub waiting_bytes: u64,
}

/// One stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamExplanation {
    /// Its name.
    pub stream: String,
    /// Its lane.
    pub lane: String,
    /// What is planned.
    pub plan: String,
    /// Why.
    pub reason: String,
    /// The levels and pools that were not taken, each with its numbers.
    pub rejected: Vec<String>,
    /// What became of windows that a pool was to be asked about, by word.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub offload: BTreeMap<String, u64>,
    /// What two models said of the same windows, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audits: Vec<String>,
}

/// One lane.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LaneExplanation {
    /// Its class.
    pub lane: String,
    /// The uplinks that it goes by, best first.
    pub uplinks: Vec<String>,
    /// Why the first is the first.
    pub reason: String,
    /// The others, each with its reason.
    pub rejected: Vec<String>,
    /// Records and bytes that it holds.
    pub records: u64,
    /// See `records`.
    pub bytes: u64,
    /// Bytes that were sent and are not acknowledged.
    pub under_way_bytes: u64,
    /// Age of its oldest record in microseconds.
    pub oldest_age_us: Option<u64>,
}

/// Where one record is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordExplanation {
    /// Its name.
    pub record: String,
    /// One word: `not-yet`, `open`, `waiting`, `loading`, `sent`, `void`, `gone` or `unknown`.
    pub place: String,
    /// The same in words, with the numbers.
    pub text: String,
    /// True if it would survive a power cut.
    pub on_disk: bool,
    /// True if its PUBACK may go out.
    pub is_safe: bool,
}

impl Gateway {
    /// Answers a question that came over an uplink, in no more bytes than that carries in a second.
    pub(super) fn answer(&mut self, now_us: u64, uplink: usize, id: u32, text: &str) {
        let carries = self.health[uplink].estimate(now_us).capacity_bps / 8.0;
        let bytes_max = (carries as usize).clamp(ANSWER_LEN_MIN, ANSWER_LEN_MAX);
        let question = text.parse::<Question>().map_err(|err| err.to_string());
        let answer = question.and_then(|question| self.explain(now_us, &question));
        self.uplinks[uplink].answer(id, answer.map(|answer| answer.to_json_within(bytes_max)));
    }

    /// Answers a question.
    ///
    /// # Errors
    /// In words: there is no such stream.
    pub fn explain(&self, now_us: u64, question: &Question) -> Result<Explanation, String> {
        let mut answer = Explanation {
            at_us: now_us,
            version: self.plan.version,
            price: PriceExplanation {
                lambda: self.control.price.lambda,
                wanted_bytes: self.control.price.wanted_bytes as u64,
                forecast_bytes: self.control.price.forecast_bytes as u64,
                waiting_bytes: self.control.price.waiting_bytes as u64,
            },
            ..Explanation::default()
        };
        let streams = self.policy.streams.iter().enumerate();
        let (chosen, lanes): (Vec<usize>, Vec<Class>) = match question {
            Question::Plan => (streams.map(|(index, _)| index).collect(), Class::ALL.to_vec()),
            Question::Stream(name) => {
                let found = streams.clone().find(|(_, stream)| &*stream.name == name);
                let known = || self.policy.streams.iter().map(|stream| &*stream.name).collect::<Vec<_>>().join(", ");
                let Some((index, stream)) = found else {
                    return Err(format!("there is no stream `{name}`; there are: {}", known()));
                };
                (vec![index], vec![stream.class])
            }
            Question::Record(id) => {
                let place = self.lanes.locate(id.lane, id.epoch, id.seq);
                let of_block = match &place {
                    Place::Held(held) if !held.streams.is_empty() => held.streams.iter().map(|&at| usize::from(at)).collect(),
                    _ => streams.filter(|(_, stream)| stream.class == id.lane).map(|(index, _)| index).collect(),
                };
                answer.record = Some(self.describe(now_us, id, &place));
                (of_block, vec![id.lane])
            }
        };
        answer.streams = chosen.iter().map(|&index| self.explain_stream(index)).collect();
        answer.lanes = lanes.iter().map(|&class| self.explain_lane(now_us, class)).collect();
        let subjects: Vec<String> = answer
            .streams
            .iter()
            .map(|stream| format!("stream {}", stream.stream))
            .chain(answer.lanes.iter().map(|lane| format!("lane {}", lane.lane)))
            .chain([super::offers::POLICY_SUBJECT.to_owned()])
            .collect();
        answer.changes = self.changes.iter().filter(|change| subjects.contains(&change.subject)).cloned().collect();
        Ok(answer)
    }

    fn explain_stream(&self, index: usize) -> StreamExplanation {
        let (entry, stream) = (&self.plan.streams[index], &self.policy.streams[index]);
        let (pools, uplinks) = (self.pool_places(self.now_us), &self.plan.uplinks[entry.lane.index()]);
        let counts = self.offloads.counts(index as u16);
        let by_word = counts.by_word().filter(|_| stream.offload.is_some());
        let pool = entry.placement.pool().and_then(|pool| self.offloads.pools().get(usize::from(pool)));
        let pool = pool.map(|pool| format!(" ({})", pool.view().name)).unwrap_or_default();
        StreamExplanation {
            stream: stream.name.to_string(),
            lane: entry.lane.name().to_owned(),
            plan: format!("{entry}{pool}"),
            reason: entry.why(),
            rejected: [levels(&self.policy, &self.plan, index), pools_rejected(stream, &pools, uplinks, entry.placement)]
                .concat(),
            offload: by_word.map(|(word, count)| (word.to_owned(), count)).collect(),
            audits: self.ingest.audits().tallies(index as u16).iter().map(ToString::to_string).collect(),
        }
    }

    fn explain_lane(&self, now_us: u64, class: Class) -> LaneExplanation {
        let (route, status) = (&self.plan.routes[class.index()], self.lanes.status(class));
        let name = |uplink: u8| self.policy.uplinks[usize::from(uplink)].name.to_string();
        let first = route.candidates.first().filter(|_| route.first().is_some());
        LaneExplanation {
            lane: class.name().to_owned(),
            uplinks: route.usable().map(name).collect(),
            reason: first.map_or_else(|| no_way(route), |first| candidate(&self.policy, first)),
            rejected: rejected(&self.policy, route),
            records: status.records,
            bytes: status.bytes,
            under_way_bytes: status.under_way_bytes,
            oldest_age_us: status.oldest_us.map(|oldest_us| now_us.saturating_sub(oldest_us)),
        }
    }

    fn describe(&self, now_us: u64, id: &RecordId, place: &Place) -> RecordExplanation {
        let (lane, ms) = (id.lane.name(), |since_us: u64| now_us.saturating_sub(since_us) / 1_000);
        let told = |is_safe: bool| if is_safe { "its sender has or gets its PUBACK" } else { "its PUBACK is held back" };
        let (word, text, on_disk, is_safe) = match place {
            Place::NotYet { next_seq } => {
                ("not-yet", format!("lane {lane} has given out numbers up to {next_seq} only"), false, false)
            }
            Place::Open { is_safe, since_us } => {
                let age = since_us.map_or(0, ms);
                let text = format!("in the open end of lane {lane}, whose oldest record came {age} ms ago; {}", told(*is_safe));
                ("open", text, false, *is_safe)
            }
            Place::Held(held) => {
                let (word, step) = self.describe_step(now_us, id, held);
                let (first, last) = held.range;
                let where_ = if held.on_disk { "on disk" } else { "in memory" };
                let age_ms = ms(held.born_us);
                let text = format!(
                    "in block {first} to {last} of lane {lane}, {} bytes {where_}, begun {age_ms} ms ago: {step}; {}",
                    held.bytes,
                    told(held.is_safe)
                );
                (word, text, held.on_disk, held.is_safe)
            }
            Place::Void { reason } => {
                let text = format!("given up: {}; the cloud has not confirmed yet that it knows", reason.name());
                ("void", text, false, true)
            }
            Place::Gone => {
                let text = "not on the box any more: the cloud has it, or has noted that it was given up (see its tables)";
                ("gone", text.to_owned(), false, true)
            }
            Place::UnknownEpoch => {
                let text = "the box holds nothing of this epoch: the cloud has it, or it was never safe and never acknowledged";
                ("unknown", text.to_owned(), false, false)
            }
        };
        RecordExplanation { record: id.to_string(), place: word.to_owned(), text, on_disk, is_safe }
    }

    fn describe_step(&self, now_us: u64, id: &RecordId, held: &HeldPlace) -> (&'static str, String) {
        let route = &self.plan.routes[id.lane.index()];
        match &held.step {
            Step::Loading => ("loading", "being read from disk, to be sent".to_owned()),
            Step::Thinning => ("thinning", "being read from disk, to be thinned because its lane is nearly full".to_owned()),
            Step::UnderWay { uplinks, sent_us, bytes, thinned } => {
                let names: Vec<&str> = uplinks.iter().map(|&at| &*self.policy.uplinks[usize::from(at)].name).collect();
                let age_ms = now_us.saturating_sub(*sent_us) / 1_000;
                let left_out = if *thinned > 0 { format!(", {thinned} records left out") } else { String::new() };
                ("sent", format!("sent {age_ms} ms ago over {} in {bytes} bytes{left_out}, no ack yet", names.join(" and ")))
            }
            Step::Waits { ahead_bytes } => {
                let age_us = now_us.saturating_sub(held.born_us);
                let is_held = held.streams.iter().all(|&stream| self.plan.level(stream, Wait::of_age(age_us)).is_none());
                let is_up = route.usable().any(|uplink| self.uplinks[usize::from(uplink)].is_up());
                let why = match route.first() {
                    None => no_way(route),
                    Some(_) if !is_up => "no uplink of its lane is up".to_owned(),
                    Some(_) if is_held && !held.streams.is_empty() && self.plan.lambda > 0.0 => {
                        format!("held, because its bytes are worth less than {:.3e} each", self.plan.lambda)
                    }
                    Some(first) => format!("next by {}", self.policy.uplinks[usize::from(first)].name),
                };
                ("waiting", format!("waits behind {ahead_bytes} bytes of its lane, {why}{}", left_out(held)))
            }
        }
    }
}

/// That a block lacks records, and why.
fn left_out(held: &HeldPlace) -> String {
    match held.left_out {
        0 => String::new(),
        count => format!("; its block was thinned where it lies and lacks {count} records, perhaps this one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_is_cut_from_its_oldest_changes_on_and_says_so() {
        let text = |at: u64| format!("{at:>400}");
        let change = |at| Change {
            at_us: at,
            version: at,
            subject: "lane high".to_owned(),
            old: String::new(),
            new: "lte".to_owned(),
            reason: text(at),
            rejected: vec![text(at)],
        };
        let stream = |at| StreamExplanation { stream: text(at), rejected: vec![text(at)], ..StreamExplanation::default() };
        let lanes = vec![LaneExplanation { lane: "high".to_owned(), ..LaneExplanation::default() }];
        let streams = (0..200).map(stream).collect();
        let whole = Explanation { streams, lanes, changes: (0..256).map(change).collect(), ..Explanation::default() };
        let cut = |bytes_max| {
            let json = whole.clone().to_json_within(bytes_max);
            assert!(json.len() <= bytes_max, "{} of {bytes_max}", json.len());
            serde_json::from_str::<Explanation>(&json).expect("it is still whole JSON")
        };
        assert_eq!(cut(1 << 20), whole);
        let some = cut(300_000);
        assert_eq!((some.streams.len(), some.changes.last().map(|change| change.at_us)), (200, Some(255)));
        assert!(!some.changes.is_empty() && some.note.contains("changes"), "{}", some.note);
        let few = cut(ANSWER_LEN_MAX);
        assert!(few.changes.is_empty() && few.streams.len() >= 40 && few.streams[0].stream == text(0), "{}", few.streams.len());
        let least = cut(ANSWER_LEN_MIN);
        assert!(!least.lanes.is_empty() && least.streams.len() >= 3, "{}", least.streams.len());
    }

    #[test]
    fn questions_are_read_and_the_others_are_told_how_to_ask() {
        assert_eq!("".parse(), Ok(Question::Plan));
        assert_eq!("stream=pumps".parse(), Ok(Question::Stream("pumps".to_owned())));
        let id = RecordId { epoch: Epoch(0x9c), lane: Class::High, seq: 12 };
        assert_eq!(format!("record={id}").parse(), Ok(Question::Record(id)));
        for wrong in ["record=9c:high", "record=zz:high:1", "record=9c:higher:1", "record=9c:high:-1"] {
            assert!(matches!(wrong.parse::<Question>(), Err(QuestionError::Record(_))), "{wrong}");
        }
        let error = "what=ever".parse::<Question>().expect_err("unknown").to_string();
        assert!(error.contains("stream=NAME"), "{error}");
    }
}
