//! One uplink's session with the cloud: connect, greet, heartbeat, credits, and again.
//!
//! The shell connects and moves bytes; what they mean and when to try again is decided here. A session counts as up from
//! the Welcome on: only then is it known what the cloud already has, and nothing is sent twice without need.
//!
//! A peer that is silent for [`SessionLimits::silence_us`] is taken to be gone, whatever the transport thinks: pings have a
//! stream of their own with the highest priority, so a slow link does not look dead.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use bytes::{Bytes, BytesMut};

use crate::graph::Stamp;
use crate::ids::{Class, Epoch, PerClass, Void};
use crate::pressure::CreditReturn;
use crate::wire::model::{ModelOffer, ModelStates};
use crate::wire::offload::PoolViews;
use crate::wire::{
    self, Ack, AskedQuestion, Body, CloudLoad, Control, Credits, DigestBytes, FrameError, GivenAnswer, Hello, LaneRanges,
    PROTOCOL_VERSION, Ping, PolicyOffer, PolicyState, QUESTION_LEN_MAX, VoidRange, Voids, Welcome,
};

mod backoff;

pub use backoff::{Backoff, Jitter};

/// Times of a session, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Between two heartbeats.
    pub ping_us: u64,
    /// Without any word from the cloud for so long, the session is ended.
    pub silence_us: u64,
    /// For connecting and for the Welcome, each.
    pub connect_us: u64,
    /// First and longest wait before the next attempt.
    pub backoff_us: (u64, u64),
}

/// What a session wants done or has found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionOutput {
    /// Connect, then call [`Session::connected`] or [`Session::closed`].
    Connect,
    /// Write to the control stream.
    Write(Vec<u8>),
    /// Close the connection; [`Session::closed`] need not be called.
    Disconnect(DownReason),
    /// Data may be sent from now on.
    Up,
    /// The cloud greeted, and knows the gateway's digest up to here.
    Greeted {
        /// The last stamp it saw.
        last_stamp: Option<Stamp>,
        /// What it calls itself; empty if it does not say.
        node: String,
    },
    /// The cloud lacks what the last digest builds on.
    NeedFull,
    /// What the cloud says of what this box shares with others.
    Advice(Bytes),
    /// The cloud is busier, or less busy, than it was.
    Load(CloudLoad),
    /// The pools that this box may use there.
    Pools(PoolViews),
    /// Somebody in the cloud asks why; [`Session::answer`] is to be called.
    Asked {
        /// The question's number.
        id: u32,
        /// The question.
        text: String,
    },
    /// The cloud has a policy for this box.
    PolicyOffer(PolicyOffer),
    /// The cloud has a model for this box.
    ModelOffer(ModelOffer),
    /// A heartbeat was written.
    Pinged,
    /// A heartbeat was answered.
    Heartbeat {
        /// Its round trip in microseconds, through the cloud's process.
        rtt_us: u64,
    },
    /// The session ended; what it had under way must be sent again.
    Down(DownReason),
    /// An attempt to bring a session up failed.
    Failed(DownReason),
    /// The cloud has this durably.
    Acked {
        /// Epoch the numbers are of.
        epoch: Epoch,
        /// Lane they are of.
        lane: Class,
        /// The numbers.
        range: RangeInclusive<u64>,
    },
}

/// Why a session is not up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// The shell could not connect, or the connection broke.
    #[error("{0}")]
    Transport(String),
    /// No word for too long.
    #[error("no word from the cloud for {silent_ms} ms")]
    Silence {
        /// How long.
        silent_ms: u64,
    },
    /// Connecting or greeting took too long.
    #[error("no {what} within {waited_ms} ms")]
    Timeout {
        /// What did not come.
        what: &'static str,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// What came is not the protocol.
    #[error("{0}")]
    Protocol(#[from] FrameError),
    /// It answers, but data does not pass.
    #[error("data does not pass; it is tried anew")]
    Blocked,
    /// Nothing needs it now.
    #[error("not needed now")]
    Resting,
    /// The box was asked to stop.
    #[error("the box stops")]
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { retry_us: u64 },
    Connecting { since_us: u64 },
    Greeting { since_us: u64 },
    Up,
}

/// What a session counted since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Attempts to connect.
    pub attempts: u64,
    /// Sessions that came up.
    pub ups: u64,
    /// Sessions that ended after having been up.
    pub downs: u64,
    /// Messages of a kind this version does not know.
    pub unknown_messages: u64,
    /// Questions taken.
    pub questions: u64,
    /// Questions refused: too long, or too many at once.
    pub questions_refused: u64,
}

/// Credit until the cloud's first word on it: what a small box may have under way in any case.
const FIRST_CREDIT_BYTES: u64 = 256 * 1024;
const FIRST_LEASE_US: u64 = 10_000_000;
/// Voids in one message: 40 bytes each stay under the limit of a control message.
pub const VOIDS_PER_MESSAGE_MAX: usize = 1_000;

/// The gateway's side of one uplink's session.
#[derive(Debug)]
pub struct Session {
    limits: SessionLimits,
    state: State,
    backoff: Backoff,
    input: BytesMut,
    heard_us: u64,
    /// When the session came up, and whether the cloud has acknowledged anything in it.
    up_us: u64,
    has_acked: bool,
    next_ping_us: u64,
    nonce: u64,
    pings: VecDeque<(u64, u64)>,
    rtt_us: Option<u64>,
    credits: PerClass<u64>,
    credit_return: CreditReturn,
    lease_end_us: u64,
    load: CloudLoad,
    /// Since when questions are counted, and how many there were.
    asked: (u64, u32),
    outputs: VecDeque<SessionOutput>,
    counters: SessionCounters,
    last_down: Option<DownReason>,
}

impl Session {
    /// A session that connects at once. `seed` spreads the attempts of many boxes.
    pub fn new(now_us: u64, limits: SessionLimits, seed: u64) -> Self {
        Session {
            limits,
            state: State::Waiting { retry_us: now_us },
            backoff: Backoff::new(limits.backoff_us.0, limits.backoff_us.1, seed),
            input: BytesMut::new(),
            heard_us: now_us,
            up_us: now_us,
            has_acked: false,
            next_ping_us: now_us,
            nonce: 0,
            pings: VecDeque::new(),
            rtt_us: None,
            credits: [0; 4],
            credit_return: CreditReturn::new(seed),
            lease_end_us: 0,
            load: CloudLoad::default(),
            asked: (now_us, 0),
            outputs: VecDeque::new(),
            counters: SessionCounters::default(),
            last_down: None,
        }
    }

    /// What to do next; call until `None` after every other call.
    pub fn poll(&mut self) -> Option<SessionOutput> {
        self.outputs.pop_front()
    }

    /// True if data may be sent.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// When the cloud last said anything in a session, in service time.
    pub fn heard_us(&self) -> u64 {
        self.heard_us
    }

    /// Bytes per class that may be under way now. What was lost and came back counts after a while, see [`CreditReturn`].
    pub fn credits(&self, now_us: u64) -> PerClass<u64> {
        let usable = |class: Class| now_us < self.lease_end_us && self.credit_return.is_usable(now_us, class);
        Class::ALL.map(|class| if usable(class) { self.credits[class.index()] } else { 0 })
    }

    /// How busy the cloud is, as it last said in this session.
    pub fn load(&self) -> CloudLoad {
        self.load
    }

    /// Round trip of the last heartbeat in microseconds, through the cloud's process.
    pub fn rtt_us(&self) -> Option<u64> {
        self.rtt_us
    }

    /// Counts since start.
    pub fn counters(&self) -> SessionCounters {
        self.counters
    }

    /// Why the session last went down.
    pub fn last_down(&self) -> Option<&DownReason> {
        self.last_down.as_ref()
    }

    /// The shell has connected: greets the cloud.
    pub fn connected(&mut self, now_us: u64, epoch: Epoch, held_epochs: &[Epoch], software: &str) {
        if !matches!(self.state, State::Connecting { .. }) {
            return;
        }
        self.state = State::Greeting { since_us: now_us };
        self.input.clear();
        self.heard_us = now_us;
        self.pings.clear();
        self.load = CloudLoad::default();
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            epoch: epoch.0,
            held_epochs: held_epochs.iter().map(|epoch| epoch.0).collect(),
            software: software.to_owned(),
            service_us: now_us,
            answers: true,
        };
        self.write(Body::Hello(hello));
    }

    /// The connection ended, or could not be made.
    pub fn closed(&mut self, now_us: u64, reason: String) {
        if !matches!(self.state, State::Waiting { .. }) {
            self.down(now_us, DownReason::Transport(reason));
        }
    }

    /// Bytes came on the control stream.
    pub fn control(&mut self, now_us: u64, bytes: &[u8]) {
        if !matches!(self.state, State::Greeting { .. } | State::Up) {
            return;
        }
        self.heard_us = now_us;
        self.input.extend_from_slice(bytes);
        loop {
            match wire::take_control(&mut self.input) {
                Ok(Some(message)) => self.message(now_us, message),
                Ok(None) => return,
                Err(err) => return self.hang_up(now_us, err.into()),
            }
        }
    }

    fn message(&mut self, now_us: u64, message: Control) {
        match message.body {
            Some(Body::Welcome(Welcome { have, more, last_stamp, node, .. })) => {
                self.acked(&have);
                if !more && matches!(self.state, State::Greeting { .. }) {
                    self.state = State::Up;
                    (self.up_us, self.has_acked) = (now_us, false);
                    self.counters.ups += 1;
                    self.next_ping_us = now_us;
                    self.credits = [FIRST_CREDIT_BYTES; 4];
                    self.credit_return.restart();
                    self.lease_end_us = now_us + FIRST_LEASE_US;
                    self.outputs.push_back(SessionOutput::Greeted { last_stamp, node });
                    self.outputs.push_back(SessionOutput::Up);
                }
            }
            Some(Body::Ack(Ack { ranges })) => {
                self.has_acked |= !ranges.is_empty();
                self.acked(&ranges);
            }
            Some(Body::Pong(pong)) => {
                while let Some((nonce, sent_us)) = self.pings.pop_front() {
                    if nonce == pong.nonce {
                        let rtt_us = now_us.saturating_sub(sent_us);
                        self.rtt_us = Some(rtt_us);
                        self.outputs.push_back(SessionOutput::Heartbeat { rtt_us });
                        break;
                    }
                }
            }
            Some(Body::Credits(Credits { bytes, lease_ms })) => {
                for (class, &bytes) in Class::ALL.into_iter().zip(&bytes) {
                    self.credits[class.index()] = bytes;
                    self.credit_return.granted(now_us, class, bytes);
                }
                self.lease_end_us = now_us + u64::from(lease_ms) * 1_000;
            }
            Some(Body::NeedFull(_)) => self.outputs.push_back(SessionOutput::NeedFull),
            Some(Body::Advice(said)) => self.outputs.push_back(SessionOutput::Advice(said.advice)),
            Some(Body::Load(load)) => {
                let before = std::mem::replace(&mut self.load, load);
                if before.level() != load.level() {
                    self.outputs.push_back(SessionOutput::Load(load));
                }
            }
            Some(Body::Question(question)) => self.asked(now_us, question),
            Some(Body::PolicyOffer(offer)) => self.outputs.push_back(SessionOutput::PolicyOffer(offer)),
            Some(Body::ModelOffer(offer)) => self.outputs.push_back(SessionOutput::ModelOffer(offer)),
            Some(Body::Pools(pools)) => self.outputs.push_back(SessionOutput::Pools(pools)),
            Some(
                Body::Hello(_)
                | Body::Voids(_)
                | Body::Ping(_)
                | Body::Digest(_)
                | Body::Answer(_)
                | Body::PolicyState(_)
                | Body::OffloadRequest(_)
                | Body::OffloadAnswer(_)
                | Body::OffloadRefusal(_)
                | Body::ModelStates(_)
                | Body::ModelAsk(_)
                | Body::ModelChunk(_)
                | Body::ModelRefusal(_),
            )
            | None => self.counters.unknown_messages += 1,
        }
    }

    fn acked(&mut self, have: &[LaneRanges]) {
        for ranges in have {
            let Some(lane) = Class::from_index(ranges.lane as usize) else {
                self.counters.unknown_messages += 1;
                continue;
            };
            for bounds in ranges.bounds.chunks_exact(2) {
                if bounds[0] <= bounds[1] {
                    let range = bounds[0]..=bounds[1];
                    self.outputs.push_back(SessionOutput::Acked { epoch: Epoch(ranges.epoch), lane, range });
                }
            }
        }
    }

    fn asked(&mut self, now_us: u64, question: AskedQuestion) {
        if now_us >= self.asked.0.saturating_add(QUESTIONS_SPAN_US) {
            self.asked = (now_us, 0);
        }
        self.asked.1 += 1;
        if self.asked.1 > QUESTIONS_MAX || question.text.len() > QUESTION_LEN_MAX {
            self.counters.questions_refused += 1;
            let error = format!("the box takes {QUESTIONS_MAX} questions a second of {QUESTION_LEN_MAX} bytes: ask again");
            return self.answer(question.id, Err(error));
        }
        self.counters.questions += 1;
        self.outputs.push_back(SessionOutput::Asked { id: question.id, text: question.text });
    }

    /// Answers [`SessionOutput::Asked`] with JSON of at most [`wire::ANSWER_LEN_MAX`] bytes, or why there is none.
    pub fn answer(&mut self, id: u32, answer: Result<String, String>) {
        let (json, error) = match answer {
            Ok(json) => (Bytes::from(json), String::new()),
            Err(error) => (Bytes::new(), error),
        };
        self.write(Body::Answer(GivenAnswer { id, json, error }));
    }

    /// Tells the cloud of the gateway's part of the health graph.
    pub fn send_digest(&mut self, digest: Vec<u8>) {
        self.write(Body::Digest(DigestBytes { digest: digest.into() }));
    }

    /// Tells the cloud which policy the gateway has, and what became of the last one offered.
    pub fn send_policy_state(&mut self, state: PolicyState) {
        self.write(Body::PolicyState(state));
    }

    /// Tells the cloud which models the gateway has, and what became of those offered.
    pub fn send_model_states(&mut self, states: ModelStates) {
        self.write(Body::ModelStates(states));
    }

    /// Tells the cloud what was given up; at most [`VOIDS_PER_MESSAGE_MAX`] at a time.
    pub fn send_voids(&mut self, voids: &[Void]) {
        for page in voids.chunks(VOIDS_PER_MESSAGE_MAX) {
            let void = |void: &Void| VoidRange {
                epoch: void.key.epoch.0,
                lane: void.key.lane.index() as u32,
                first: void.key.first_seq,
                last: void.last_seq,
                reason: void.reason.code().into(),
            };
            self.write(Body::Voids(Voids { voids: page.iter().map(void).collect() }));
        }
    }

    /// Does what is due; `settled` goes into the heartbeat.
    pub fn tick(&mut self, now_us: u64, settled: impl FnOnce() -> PerClass<u64>) {
        match self.state {
            State::Waiting { retry_us } if now_us >= retry_us => {
                self.state = State::Connecting { since_us: now_us };
                self.counters.attempts += 1;
                self.outputs.push_back(SessionOutput::Connect);
            }
            State::Connecting { since_us } if now_us >= since_us + self.limits.connect_us => {
                self.hang_up(now_us, DownReason::Timeout { what: "connection", waited_ms: (now_us - since_us) / 1_000 });
            }
            State::Greeting { since_us } if now_us >= since_us + self.limits.connect_us => {
                self.hang_up(now_us, DownReason::Timeout { what: "welcome", waited_ms: (now_us - since_us) / 1_000 });
            }
            State::Up if now_us >= self.heard_us + self.limits.silence_us => {
                self.hang_up(now_us, DownReason::Silence { silent_ms: (now_us - self.heard_us) / 1_000 });
            }
            State::Up if now_us >= self.next_ping_us => {
                self.write_ping(now_us, settled());
            }
            _ => {}
        }
    }

    /// When [`Session::tick`] has something to do.
    pub fn deadline_us(&self) -> u64 {
        match self.state {
            State::Waiting { retry_us } => retry_us,
            State::Connecting { since_us } | State::Greeting { since_us } => since_us + self.limits.connect_us,
            State::Up => self.next_ping_us.min(self.heard_us + self.limits.silence_us),
        }
    }

    /// Sends a heartbeat now rather than when it is due; false if the session is not up.
    pub fn ping(&mut self, now_us: u64, settled: PerClass<u64>) -> bool {
        if self.is_up() {
            self.write_ping(now_us, settled);
        }
        self.is_up()
    }

    /// Ends the session, to start anew after a while.
    pub fn fail(&mut self, now_us: u64, reason: DownReason) {
        if !matches!(self.state, State::Waiting { .. }) {
            self.hang_up(now_us, reason);
        }
    }

    /// Says goodbye and stays down until [`Session::wake`].
    pub fn rest(&mut self, now_us: u64) {
        if !matches!(self.state, State::Waiting { .. }) {
            self.hang_up(now_us, DownReason::Resting);
        }
        self.state = State::Waiting { retry_us: STOPPED_US };
    }

    /// Connects at once if it is at rest.
    pub fn wake(&mut self, now_us: u64) {
        if self.state == (State::Waiting { retry_us: STOPPED_US }) {
            self.state = State::Waiting { retry_us: now_us };
        }
    }

    /// Something has changed for the better, such as an interface that came up: tries at once if it waits, and begins with
    /// the shortest wait again, because an address and a route come some seconds after the interface.
    ///
    /// Nothing happens to a session that is up or on its way, nor to one that rests or was stopped.
    pub fn retry_now(&mut self, now_us: u64) {
        if matches!(self.state, State::Waiting { retry_us } if retry_us != STOPPED_US) {
            self.backoff.reset();
            self.state = State::Waiting { retry_us: now_us };
        }
    }

    /// Says goodbye and stays down; for shutdown.
    pub fn stop(&mut self, now_us: u64) {
        if !matches!(self.state, State::Waiting { .. }) {
            self.hang_up(now_us, DownReason::Stopped);
        }
        self.state = State::Waiting { retry_us: STOPPED_US };
    }

    fn write_ping(&mut self, now_us: u64, settled: PerClass<u64>) {
        self.nonce += 1;
        self.next_ping_us = now_us + self.limits.ping_us;
        self.pings.push_back((self.nonce, now_us));
        if self.pings.len() > PINGS_MAX {
            self.pings.pop_front();
        }
        self.write(Body::Ping(Ping { nonce: self.nonce, service_us: now_us, settled: settled.to_vec() }));
        self.outputs.push_back(SessionOutput::Pinged);
    }

    fn write(&mut self, body: Body) {
        let mut bytes = Vec::new();
        wire::encode_control(body, &mut bytes);
        self.outputs.push_back(SessionOutput::Write(bytes));
    }

    fn hang_up(&mut self, now_us: u64, reason: DownReason) {
        self.outputs.push_back(SessionOutput::Disconnect(reason.clone()));
        self.down(now_us, reason);
    }

    fn down(&mut self, now_us: u64, reason: DownReason) {
        let was_up = self.is_up();
        self.counters.downs += u64::from(was_up);
        // A Welcome alone proves nothing: a cloud that greets and closes would get our credits' worth of data twice a second.
        if was_up && (self.has_acked || now_us >= self.up_us.saturating_add(self.limits.backoff_us.1)) {
            self.backoff.reset();
        }
        self.state = State::Waiting { retry_us: now_us + self.backoff.next_us() };
        self.credits = [0; 4];
        self.last_down = Some(reason.clone());
        self.outputs.push_back(if was_up { SessionOutput::Down(reason) } else { SessionOutput::Failed(reason) });
    }
}

/// Questions that are answered in a second: each costs about as much as a plan.
const QUESTIONS_MAX: u32 = 8;
const QUESTIONS_SPAN_US: u64 = 1_000_000;
/// When a session that was stopped tries again: never.
const STOPPED_US: u64 = u64::MAX;
/// Heartbeats whose answer is still awaited: with one a second more than the silence limit lets live.
const PINGS_MAX: usize = 64;

#[cfg(test)]
mod tests;
