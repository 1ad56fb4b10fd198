//! Packages of models on their way from the cloud: which are fetched, by which uplink, how fast, and at what cost.
//!
//! Like a heavy book that is ordered over a thin line: one page is asked for at a time, the next one only after a pause as long
//! as the page took, and nobody else on the line waits longer than for a page. What has come lies on the desk; when the line
//! breaks, or the reader dies, the next page is asked for and not the first one.
//!
//! - What an offer costs nothing to know is looked at first: the task, the version, the length, and (by the shell) signature
//!   and target. So a package that would be refused is not fetched.
//! - One package at a time, one chunk at a time. A chunk grows while it takes less than [`CHUNK_SHORT_US`] and shrinks when
//!   it takes longer than [`CHUNK_LONG_US`]; with the pause, models have half of an idle line at most.
//! - A package is known by its sum. The shell says how much of it is there already, from whatever run of the box.
//! - Bytes are counted against a day's and a month's budget, also those of chunks that were of no use.
//! - What waits says why, once for each reason.
//!
//! What is whole goes to the inbox of the box, like a package that was laid there by hand: from there on it is the business of
//! [`super::Updates`].

mod events;
mod spent;
mod view;

use std::collections::{BTreeMap, VecDeque};

use bytes::BytesMut;

use crate::rollout::OfferState;
use crate::wire::model::{CHUNK_LEN_MAX, HEAD_LEN_MAX, ModelAsk, ModelOffer, SUM_LEN, TASKS_MAX};
use crate::wire::{self, Body};

pub use events::{FetchInput, FetchOutput, FetchRules, FetchStart, FetchWay, NoWay, Unfinished};
pub use spent::{DAY_US, MONTH_US, Spent};
pub use view::{FetchNews, FetchView, TaskModels};

use events::Wait;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// The shell looks at it.
    Checking,
    /// Chunks are asked for.
    Fetching,
    Waiting(Wait),
    /// The shell writes a chunk.
    Writing,
    /// The shell compares sums.
    Finishing,
}

/// A request under way.
#[derive(Debug, Clone, Copy)]
struct Asked {
    uplink: u8,
    id: u64,
    len: u32,
    since_us: u64,
}

/// A package that is being fetched.
#[derive(Debug)]
struct Transfer {
    offer: ModelOffer,
    have: u64,
    step: Step,
    asked: Option<Asked>,
    chunk_len: u32,
    next_us: u64,
    failures: u32,
    /// What each uplink's cloud said when it had none of it, in its present session.
    lacks: BTreeMap<u8, String>,
    /// Times that all of it came, and was something else.
    wrong: u32,
}

/// What was fetched, since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FetchCounters {
    /// Offers that came.
    pub offers: u64,
    /// Offers that were refused.
    pub refused: u64,
    /// Chunks that came.
    pub chunks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Requests that brought none.
    pub failures: u64,
    /// Packages that came whole.
    pub packages: u64,
}

/// All packages of a box.
#[derive(Debug)]
pub struct Fetches {
    rules: Option<FetchRules>,
    spent: Spent,
    /// Bytes of the month when that was last saved.
    saved_bytes: u64,
    tasks: Vec<TaskModels>,
    transfer: Option<Transfer>,
    /// By task: offers whose turn has not come.
    queue: BTreeMap<String, ModelOffer>,
    /// By task: what became of the last offer, until a trial says more.
    said: BTreeMap<String, FetchNews>,
    events: VecDeque<String>,
    next_id: u64,
    outputs: VecDeque<FetchOutput>,
    counters: FetchCounters,
}

/// First chunk: what a line of 100 kbit/s carries in 0.7 s.
const CHUNK_FIRST: u32 = 8 * 1024;
/// Smallest chunk.
const CHUNK_LEN_MIN: u32 = 1_024;
/// A chunk that takes less is followed by a larger one.
const CHUNK_SHORT_US: u64 = 250_000;
/// A chunk that takes longer is followed by a smaller one: acknowledgements of data come over the same line.
const CHUNK_LONG_US: u64 = 1_000_000;
/// How long a chunk may take before it is asked for again.
const ASK_US_MAX: u64 = 30_000_000;
/// First and longest pause after a request that failed.
const RETRY_US: (u64, u64) = (1_000_000, 60_000_000);
/// How often a package is fetched that turned out to be another: the disk may have been at fault once.
const WRONG_MAX: u32 = 2;
/// What was used of the budget is saved each time that so much was: a crash forgets at most this.
const SAVE_BYTES: u64 = 1 << 20;
/// Longest signature that is handed to the shell.
const SIGNATURE_LEN_MAX: usize = 256;
/// Events that are kept to be shown.
const EVENTS_MAX: usize = 16;

impl Fetches {
    /// Nothing under way; what is on disk is asked for when it is offered again.
    pub fn new(start: FetchStart) -> Fetches {
        Fetches {
            rules: start.rules,
            spent: start.spent,
            saved_bytes: start.spent.month_bytes,
            tasks: Vec::new(),
            transfer: None,
            queue: BTreeMap::new(),
            said: BTreeMap::new(),
            events: VecDeque::new(),
            next_id: 1,
            outputs: VecDeque::new(),
            counters: FetchCounters::default(),
        }
    }

    /// True if the box takes models.
    pub fn takes_models(&self) -> bool {
        self.rules.is_some()
    }

    /// True if metered uplinks may carry them.
    pub fn takes_metered(&self) -> bool {
        self.rules.is_some_and(|rules| rules.metered)
    }

    /// The next thing to do; call until `None` after every other call.
    pub fn poll(&mut self) -> Option<FetchOutput> {
        self.outputs.pop_front()
    }

    /// True if [`Fetches::poll`] has something.
    pub fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// When [`Fetches::tick`] has something to do, besides once a second.
    pub fn deadline_us(&self) -> u64 {
        match &self.transfer {
            Some(Transfer { asked: Some(asked), .. }) => asked.since_us.saturating_add(ASK_US_MAX),
            Some(Transfer { step: Step::Fetching, next_us, .. }) => *next_us,
            _ => u64::MAX,
        }
    }

    /// The cloud offers a package.
    pub fn offered(&mut self, offer: ModelOffer) {
        let Some(rules) = self.rules else { return };
        self.counters.offers += 1;
        let (task, version) = (offer.task.clone(), offer.version);
        let is_same = |other: &ModelOffer| other.sha256 == offer.sha256;
        if self.transfer.as_ref().is_some_and(|transfer| is_same(&transfer.offer)) || self.queue.values().any(is_same) {
            return;
        }
        if let Some(reason) = self.refusal(&rules, &offer) {
            return self.refuse(&task, version, reason);
        }
        match &self.transfer {
            Some(transfer) if transfer.offer.task == task && transfer.offer.version > version => {}
            Some(transfer) if transfer.offer.task == task => {
                self.stop();
                self.begin(offer);
            }
            Some(_) => {
                let news =
                    news(&task, version, OfferState::Trial, "waiting", "another package is fetched before it".to_owned());
                self.queue.insert(task, offer);
                self.tell(news);
            }
            None => self.begin(offer),
        }
    }

    /// What can be said of an offer without looking at its signature.
    fn refusal(&self, rules: &FetchRules, offer: &ModelOffer) -> Option<String> {
        let ModelOffer { task, version, len, sha256, head, signature } = offer;
        let Some(of) = self.tasks.iter().find(|of| of.task == *task) else {
            return Some(format!("no model of this box answers task `{task}`"));
        };
        if sha256.len() != SUM_LEN || head.len() > HEAD_LEN_MAX || signature.len() > SIGNATURE_LEN_MAX {
            return Some("its sum, head or signature has not the length of one".to_owned());
        }
        if *version <= of.tried {
            return Some(format!(
                "version {version} is not above {}, which was taken before: sign it as a newer one",
                of.tried
            ));
        }
        if *len == 0 || *len > rules.package_len_max {
            let most = rules.package_len_max;
            return Some(format!(
                "it has {len} bytes, and the box takes up to {most}: raise infer.updates.size_limit, or make it smaller"
            ));
        }
        // What would take longer than a month is never whole.
        if *len > rules.month_bytes {
            let most = rules.month_bytes;
            return Some(format!("it has {len} bytes, and models may take {most} in 30 days: raise infer.updates.month_bytes"));
        }
        None
    }

    fn begin(&mut self, offer: ModelOffer) {
        self.outputs.push_back(FetchOutput::Check(offer.clone()));
        self.transfer = Some(Transfer {
            offer,
            have: 0,
            step: Step::Checking,
            asked: None,
            chunk_len: CHUNK_FIRST,
            next_us: 0,
            failures: 0,
            lacks: BTreeMap::new(),
            wrong: 0,
        });
    }

    /// Gives up what is being fetched.
    fn stop(&mut self) {
        let asked = self.transfer.take().and_then(|transfer| transfer.asked);
        self.outputs.extend(asked.map(|Asked { uplink, id, .. }| FetchOutput::Cancel { uplink, id }));
    }

    fn begin_next(&mut self) {
        self.transfer = None;
        while let Some((task, offer)) = self.queue.pop_first() {
            let tried = self.tasks.iter().find(|of| of.task == task).map_or(u64::MAX, |of| of.tried);
            if offer.version > tried {
                return self.begin(offer);
            }
        }
    }

    /// The shell has something to say.
    pub fn handle(&mut self, now_us: u64, input: FetchInput) {
        match input {
            FetchInput::Tasks(mut tasks) => {
                tasks.truncate(TASKS_MAX);
                // A trial says more than that a package has come, or that an older one was refused.
                self.said.retain(|task, said| {
                    let before = self.tasks.iter().find(|of| of.task == *task);
                    let now = tasks.iter().find(|of| of.task == *task);
                    now.is_some_and(|now| before.is_none_or(|before| before == now) || said.version > now.tried)
                        && now.is_some_and(|now| now.refused.as_ref().is_none_or(|(version, _)| *version != said.version))
                });
                self.tasks = tasks;
            }
            FetchInput::Checked { sha256, result } => {
                if let Some(transfer) = self.transfer.as_mut().filter(|t| t.offer.sha256 == sha256 && t.step == Step::Checking)
                {
                    let (task, version) = (transfer.offer.task.clone(), transfer.offer.version);
                    match result {
                        Ok(have) if have <= transfer.offer.len => self.has(now_us, have, true),
                        Ok(_) => self.has(now_us, 0, true),
                        Err(reason) => {
                            self.begin_next();
                            self.refuse(&task, version, reason);
                        }
                    }
                }
            }
            FetchInput::Written { sha256, result } => {
                if self.transfer.as_ref().is_some_and(|t| t.offer.sha256 == sha256 && t.step == Step::Writing) {
                    match result {
                        Ok(have) => self.has(now_us, have, false),
                        Err(reason) => self.disk_failed(now_us, reason),
                    }
                }
            }
            FetchInput::Finished { sha256, result } => {
                if self.transfer.as_ref().is_some_and(|t| t.offer.sha256 == sha256 && t.step == Step::Finishing) {
                    self.finished(now_us, result);
                }
            }
        }
    }

    /// So much of it is on disk.
    fn has(&mut self, now_us: u64, have: u64, is_first: bool) {
        let Some(transfer) = &mut self.transfer else { return };
        transfer.have = have;
        if have >= transfer.offer.len {
            transfer.step = Step::Finishing;
            let offer = transfer.offer.clone();
            self.outputs.push_back(FetchOutput::Finish(offer));
            return self.save();
        }
        transfer.step = Step::Fetching;
        if is_first {
            transfer.next_us = now_us;
            let (task, version, len) = (transfer.offer.task.clone(), transfer.offer.version, transfer.offer.len);
            let reason = match have {
                0 => format!("{len} bytes are to come"),
                _ => format!("{have} of {len} bytes are here already"),
            };
            let news = news(&task, version, OfferState::Trial, "fetching", reason);
            self.tell(news);
        }
        if self.spent.month_bytes >= self.saved_bytes.saturating_add(SAVE_BYTES) {
            self.save();
        }
    }

    fn finished(&mut self, now_us: u64, result: Result<(), Unfinished>) {
        let Some(transfer) = &mut self.transfer else { return };
        let (task, version) = (transfer.offer.task.clone(), transfer.offer.version);
        match result {
            Ok(()) => {
                self.counters.packages += 1;
                let reason = "it is whole, and waits in the inbox for its trial".to_owned();
                let news = news(&task, version, OfferState::Trial, "fetched", reason);
                self.begin_next();
                self.tell(news);
            }
            Err(Unfinished::Wrong(reason)) => {
                transfer.wrong += 1;
                if transfer.wrong >= WRONG_MAX {
                    self.begin_next();
                    return self.refuse(&task, version, format!("{reason}; it was fetched {WRONG_MAX} times"));
                }
                (transfer.have, transfer.step, transfer.next_us) = (0, Step::Fetching, now_us);
                let reason = format!("{reason}; it is fetched once more from the beginning");
                let news = news(&task, version, OfferState::Trial, "fetching", reason);
                self.tell(news);
            }
            Err(Unfinished::Disk(reason)) => self.disk_failed(now_us, reason),
        }
    }

    /// What is on disk is looked at again after a while.
    fn disk_failed(&mut self, now_us: u64, reason: String) {
        if let Some(transfer) = &mut self.transfer {
            transfer.next_us = now_us.saturating_add(RETRY_US.1);
        }
        self.wait(Wait::Disk(reason));
    }

    /// What came back on a request's stream, whole.
    pub fn came(&mut self, now_us: u64, id: u64, bytes: &[u8]) {
        // Whoever sends them, they have been paid for.
        self.spent.roll(now_us);
        self.spent.add(bytes.len() as u64);
        self.counters.bytes += bytes.len() as u64;
        let Some(transfer) = self.transfer.as_mut() else { return };
        let Some(asked) = transfer.asked.take_if(|asked| asked.id == id) else { return };
        let body = wire::take_control(&mut BytesMut::from(bytes)).ok().flatten().and_then(|control| control.body);
        match body {
            Some(Body::ModelChunk(chunk))
                if chunk.offset == transfer.have && (1..=asked.len as usize).contains(&chunk.data.len()) =>
            {
                let took_us = now_us.saturating_sub(asked.since_us);
                transfer.chunk_len = match took_us {
                    ..CHUNK_SHORT_US => (transfer.chunk_len * 2).min(CHUNK_LEN_MAX as u32),
                    CHUNK_LONG_US.. => (transfer.chunk_len / 2).max(CHUNK_LEN_MIN),
                    _ => transfer.chunk_len,
                };
                (transfer.step, transfer.failures) = (Step::Writing, 0);
                // As long a pause as the chunk took.
                transfer.next_us = now_us.saturating_add(took_us);
                let (sha256, offset) = (transfer.offer.sha256.clone(), transfer.have);
                self.counters.chunks += 1;
                self.outputs.push_back(FetchOutput::Write { sha256, offset, data: chunk.data });
            }
            Some(Body::ModelRefusal(refusal)) => {
                let reason = wire::model::model_reason(&refusal.reason).to_owned();
                transfer.lacks.insert(asked.uplink, reason);
                transfer.next_us = now_us.saturating_add(RETRY_US.0);
                self.counters.failures += 1;
            }
            _ => self.failed_now(now_us),
        }
    }

    /// A request's stream ended without an answer.
    pub fn failed(&mut self, now_us: u64, id: u64) {
        let asked = self.transfer.as_mut().and_then(|transfer| transfer.asked.take_if(|asked| asked.id == id));
        if asked.is_some() {
            self.failed_now(now_us);
        }
    }

    fn failed_now(&mut self, now_us: u64) {
        self.counters.failures += 1;
        let Some(transfer) = &mut self.transfer else { return };
        let pause_us = RETRY_US.0.saturating_mul(1 << transfer.failures.min(6)).min(RETRY_US.1);
        transfer.failures += 1;
        transfer.chunk_len = (transfer.chunk_len / 2).max(CHUNK_LEN_MIN);
        transfer.next_us = now_us.saturating_add(pause_us);
    }

    /// A session ended: what was asked for over it will not come, and its cloud may be another one next time.
    pub fn uplink_lost(&mut self, now_us: u64, uplink: u8) {
        let Some(transfer) = &mut self.transfer else { return };
        transfer.lacks.remove(&uplink);
        if transfer.asked.take_if(|asked| asked.uplink == uplink).is_some() {
            self.counters.failures += 1;
            transfer.next_us = now_us;
        }
    }

    /// Asks for the next chunk, if it is time. `ways` are the uplinks, the preferred one first.
    pub fn tick(&mut self, now_us: u64, ways: &[FetchWay<'_>]) {
        let (Some(rules), Some(transfer)) = (self.rules, &mut self.transfer) else { return };
        if let Some(Asked { uplink, id, since_us, .. }) = transfer.asked {
            if now_us >= since_us.saturating_add(ASK_US_MAX) {
                transfer.asked = None;
                self.outputs.push_back(FetchOutput::Cancel { uplink, id });
                self.failed_now(now_us);
            }
            return;
        }
        let is_ready = matches!(transfer.step, Step::Fetching | Step::Waiting(_));
        if !is_ready || now_us < transfer.next_us {
            return;
        }
        if matches!(transfer.step, Step::Waiting(Wait::Disk(_))) {
            transfer.step = Step::Checking;
            let offer = transfer.offer.clone();
            return self.outputs.push_back(FetchOutput::Check(offer));
        }
        self.spent.roll(now_us);
        let left = |limit: u64, used: u64| limit.saturating_sub(used);
        let (day_left, month_left) =
            (left(rules.day_bytes, self.spent.day_bytes), left(rules.month_bytes, self.spent.month_bytes));
        if month_left == 0 {
            return self.wait(Wait::Month { limit: rules.month_bytes });
        }
        if day_left == 0 {
            return self.wait(Wait::Day { limit: rules.day_bytes });
        }
        let usable = ways.iter().enumerate().map(|(at, way)| (at as u8, way));
        let Some((uplink, _)) = usable.clone().find(|(at, way)| way.refusal.is_none() && !transfer.lacks.contains_key(at))
        else {
            let why = usable.map(|(at, way)| {
                let why = match way.refusal {
                    Some(refusal) => refusal.words(),
                    None => transfer.lacks.get(&at).map_or("", String::as_str),
                };
                format!("{} {why}", way.name)
            });
            let why = why.collect::<Vec<_>>().join(", ");
            // A cloud that had none of it may have it later.
            transfer.lacks.clear();
            transfer.next_us = now_us.saturating_add(RETRY_US.0);
            return self.wait(Wait::NoWay(why));
        };
        let rest = transfer.offer.len - transfer.have;
        let len = u64::from(transfer.chunk_len).min(rest).min(day_left).min(month_left) as u32;
        let id = self.next_id;
        self.next_id += 1;
        transfer.asked = Some(Asked { uplink, id, len, since_us: now_us });
        let ask = ModelAsk { sha256: transfer.offer.sha256.clone(), offset: transfer.have, len };
        let mut bytes = Vec::new();
        wire::encode_control(Body::ModelAsk(ask), &mut bytes);
        self.outputs.push_back(FetchOutput::Ask { uplink, id, bytes });
        if matches!(std::mem::replace(&mut transfer.step, Step::Fetching), Step::Waiting(_)) {
            let (task, version) = (transfer.offer.task.clone(), transfer.offer.version);
            let reason = format!("it goes on, {} of {} bytes are here", transfer.have, transfer.offer.len);
            let news = news(&task, version, OfferState::Trial, "fetching", reason);
            self.tell(news);
        }
    }

    /// Says why nothing is asked for, if that is news.
    fn wait(&mut self, wait: Wait) {
        let Some(transfer) = &mut self.transfer else { return };
        let reason = format!("{} of {} bytes are here; {}", transfer.have, transfer.offer.len, wait.words());
        let next = Step::Waiting(wait);
        if transfer.step == next {
            return;
        }
        transfer.step = next;
        let (task, version) = (transfer.offer.task.clone(), transfer.offer.version);
        let news = news(&task, version, OfferState::Trial, "waiting", reason);
        self.tell(news);
        self.save();
    }

    fn save(&mut self) {
        if self.saved_bytes != self.spent.month_bytes {
            self.saved_bytes = self.spent.month_bytes;
            self.outputs.push_back(FetchOutput::Save(self.spent));
        }
    }

    fn refuse(&mut self, task: &str, version: u64, reason: String) {
        self.counters.refused += 1;
        let news = news(task, version, OfferState::Refused, "", reason);
        self.tell(news);
    }

    fn tell(&mut self, news: FetchNews) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(news.to_string());
        if self.tasks.iter().any(|of| of.task == news.task) {
            self.said.insert(news.task.clone(), news.clone());
        }
        self.outputs.push_back(FetchOutput::News(news));
    }
}

fn news(task: &str, version: u64, state: OfferState, stage: &'static str, reason: String) -> FetchNews {
    FetchNews { task: task.to_owned(), version, state, stage, reason }
}

#[cfg(test)]
mod tests;
