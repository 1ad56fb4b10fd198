//! One client's connection: a state machine over bytes.
//!
//! Whole packets are parsed where they lie. Only what cannot be parsed yet is copied: the first part of a packet, or what
//! came behind the point where reading paused. A pause is exact: nothing behind it is parsed before it ends.

use super::codec::Version;
use super::counters::Counters;
use super::encode::{self, Promises, PubAck};
use super::error::{AuthRefusal, Close, DisconnectReason, ProtocolError};
use super::event::{ConnLimits, Event, Flow, Next, Pause, UserIndex, Will};
use super::rate::TokenBucket;
use crate::ids::Epoch;

mod read;

/// One client connection; pure.
#[derive(Debug)]
pub struct Connection {
    limits: ConnLimits,
    generation: u64,
    epoch: Epoch,
    state: State,
    version: Version,
    client_id: String,
    client_id_assigned: bool,
    user: Option<UserIndex>,
    will: Option<Will>,
    keep_alive_s: u16,
    keep_alive_changed: bool,
    session_expiry_s: u32,
    /// Longest packet that the client accepts, bytes.
    client_len_max: u32,
    received_us: u64,
    /// End of the wait for CONNECT or for the decision on it.
    connect_by_us: u64,
    held: Vec<u8>,
    paused: bool,
    inflight: usize,
    aliases: Vec<String>,
    messages: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
    out: Vec<u8>,
    counters: Counters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitConnect,
    AwaitAuth,
    Open,
    Closed(Close),
}

impl Connection {
    /// A connection just accepted.
    ///
    /// `generation` is never given twice in one `epoch`; together they make the ids of clients that bring none.
    pub fn new(limits: ConnLimits, epoch: Epoch, generation: u64, now_us: u64) -> Connection {
        Connection {
            limits,
            generation,
            epoch,
            state: State::AwaitConnect,
            version: Version::V311,
            client_id: String::new(),
            client_id_assigned: false,
            user: None,
            will: None,
            keep_alive_s: 0,
            keep_alive_changed: false,
            session_expiry_s: 0,
            client_len_max: u32::MAX,
            received_us: now_us,
            connect_by_us: now_us.saturating_add(limits.connect_timeout_us),
            held: Vec::new(),
            paused: false,
            inflight: 0,
            aliases: Vec::new(),
            messages: TokenBucket::new(limits.messages_per_s_max, now_us),
            bytes: TokenBucket::new(limits.bytes_per_s_max, now_us),
            out: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Takes what one read of the socket brought, at most 64 KiB, and calls `sink` for each event in order.
    ///
    /// With no bytes it goes on with what was kept when a pause has ended. The last event of a connection is
    /// [`Event::Closed`] if the end came from what was read.
    pub fn read<F>(&mut self, now_us: u64, bytes: &[u8], mut sink: F) -> Next
    where
        F: FnMut(Event<'_>) -> Flow,
    {
        if self.closed().is_some() {
            return Next::Close;
        }
        self.received_us = now_us;
        self.fill(now_us);
        if let Err(error) = self.read_packets(now_us, bytes, &mut sink) {
            self.fail(error);
        }
        if let State::Closed(close) = self.state {
            self.held = Vec::new();
            sink(Event::Closed(close));
            return Next::Close;
        }
        let Some(pause) = self.pause(now_us) else { return Next::Read };
        match pause {
            Pause::Auth => {}
            Pause::Caller => self.counters.pauses_caller += 1,
            Pause::Inflight => self.counters.pauses_inflight += 1,
            Pause::Output => self.counters.pauses_output += 1,
            Pause::Rate { .. } => self.counters.pauses_rate += 1,
        }
        Next::Pause(pause)
    }

    /// Decides on the CONNECT that the last event brought; then call `read` with no bytes, for what came behind it.
    ///
    /// Does nothing if the connection has ended meanwhile.
    pub fn authenticated(&mut self, now_us: u64, result: Result<UserIndex, AuthRefusal>) {
        if self.state != State::AwaitAuth {
            return;
        }
        match result {
            Ok(user) => {
                self.user = Some(user);
                self.received_us = now_us;
                self.counters.connects_accepted += 1;
                self.connack();
                self.state = State::Open;
            }
            Err(refusal) => {
                match self.version {
                    Version::V311 => encode::connack_v311(&mut self.out, refusal.code(self.version)),
                    Version::V5 => self.connack_refused(refusal.code(self.version), &refusal.to_string()),
                }
                self.close(Close::Refused(refusal));
            }
        }
    }

    /// Writes a PUBACK. The order of receipt is the caller's duty: see [`super::AckQueue::release`].
    #[inline]
    pub fn ack(&mut self, packet_id: u16, reason: PubAck) {
        self.inflight = self.inflight.saturating_sub(1);
        if self.state != State::Open {
            return;
        }
        self.counters.pubacks += 1;
        self.counters.pubacks_refused += u64::from(reason as u8 >= 0x80);
        encode::puback(&mut self.out, self.version, packet_id, reason);
    }

    /// Bytes to write to the socket, oldest first; the shell removes what it has written.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Ends the connection if the client has been silent too long, or never connected; returns how it ended.
    pub fn tick(&mut self, now_us: u64) -> Option<Close> {
        self.fill(now_us);
        match self.state {
            State::Closed(_) => return None,
            State::AwaitConnect | State::AwaitAuth => {
                if now_us < self.connect_by_us {
                    return None;
                }
                if self.state == State::AwaitAuth {
                    self.refuse(AuthRefusal::Unavailable.code(Version::V5), "no decision on CONNECT in time");
                }
                self.close(Close::ConnectTimeout { timeout_us: self.limits.connect_timeout_us });
            }
            State::Open => {
                // A client that is not read from cannot be heard: its time starts again.
                if self.pause(now_us).is_some() {
                    self.received_us = now_us;
                }
                if self.silent_by_us().is_none_or(|by_us| now_us < by_us) {
                    return None;
                }
                let close = Close::KeepAlive { keep_alive_s: self.keep_alive_s };
                self.say_goodbye(0x8d, &close.to_string());
                self.close(close);
            }
        }
        self.closed()
    }

    /// When [`Connection::tick`] must be called next, microseconds; also the end of a pause for rate.
    pub fn next_timeout(&self) -> Option<u64> {
        match self.state {
            State::AwaitConnect | State::AwaitAuth => Some(self.connect_by_us),
            State::Open => self.silent_by_us().into_iter().chain(self.rate_ready_us()).min(),
            State::Closed(_) => None,
        }
    }

    /// Why the socket must not be read now, if so.
    pub fn pause(&self, now_us: u64) -> Option<Pause> {
        if self.state == State::AwaitAuth {
            return Some(Pause::Auth);
        }
        if self.paused {
            return Some(Pause::Caller);
        }
        if self.inflight >= usize::from(self.inflight_max()) && self.version == Version::V311 {
            return Some(Pause::Inflight);
        }
        if self.out.len() >= self.limits.output_len_max {
            return Some(Pause::Output);
        }
        self.rate_ready_us().filter(|&until_us| until_us > now_us).map(|until_us| Pause::Rate { until_us })
    }

    /// Stops parsing until [`Connection::resume`], and with it the client's keep-alive.
    pub fn hold(&mut self) {
        self.paused = true;
    }

    /// Ends what [`Connection::hold`] or [`Flow::Pause`] began; then call `read` with no bytes.
    pub fn resume(&mut self, now_us: u64) {
        self.paused = false;
        self.received_us = now_us;
    }

    /// Bytes kept until a pause ends or their packet is complete.
    pub fn held_len(&self) -> usize {
        self.held.len()
    }

    /// Ends the connection from our side; MQTT 5 clients are told why.
    pub fn disconnect(&mut self, reason: DisconnectReason) {
        match self.state {
            State::Open => self.say_goodbye(reason.reason_code(), &reason.to_string()),
            State::AwaitAuth => self.refuse(reason.reason_code(), &reason.to_string()),
            State::AwaitConnect | State::Closed(_) => {}
        }
        self.close(Close::ByServer(reason));
    }

    /// The socket has ended.
    pub fn lost(&mut self) {
        self.close(Close::Lost);
    }

    /// How the connection ended, if it has.
    pub fn closed(&self) -> Option<Close> {
        match self.state {
            State::Closed(close) => Some(close),
            _ => None,
        }
    }

    /// The will, once, after a client that was let in ended without saying goodbye.
    pub fn take_will(&mut self) -> Option<Will> {
        self.closed().and_then(|_| self.will.take())
    }

    /// The number given at the start; acknowledgements meant for another are not for this connection.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Protocol version; 3.1.1 until CONNECT says otherwise.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Client id; empty until CONNECT.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The user, once the client was let in.
    pub fn user(&self) -> Option<UserIndex> {
        self.user
    }

    /// QoS 1 messages given to the sink and not yet acknowledged.
    pub fn inflight(&self) -> usize {
        self.inflight
    }

    /// Counts since the last call.
    pub fn take_counters(&mut self) -> Counters {
        std::mem::take(&mut self.counters)
    }
}

/// Limits, and how it ends.
impl Connection {
    #[inline]
    fn inflight_max(&self) -> u16 {
        self.limits.inflight_max.max(1)
    }

    fn fill(&mut self, now_us: u64) {
        for bucket in self.messages.iter_mut().chain(&mut self.bytes) {
            bucket.fill(now_us);
        }
    }

    #[inline]
    fn rate_ready_us(&self) -> Option<u64> {
        let ready_us = |bucket: &Option<TokenBucket>| bucket.as_ref().and_then(TokenBucket::ready_us);
        ready_us(&self.messages).max(ready_us(&self.bytes))
    }

    fn silent_by_us(&self) -> Option<u64> {
        let silence_us = u64::from(self.keep_alive_s) * 1_500_000;
        (silence_us > 0).then(|| self.received_us.saturating_add(silence_us))
    }

    fn connack(&mut self) {
        if self.version == Version::V311 {
            return encode::connack_v311(&mut self.out, 0);
        }
        let promises = Promises {
            receive_maximum: self.inflight_max(),
            packet_len_max: self.limits.packet_len_max,
            topic_alias_max: self.limits.topic_alias_max,
            client_id_assigned: self.client_id_assigned.then_some(&self.client_id),
            keep_alive_s: self.keep_alive_changed.then_some(self.keep_alive_s),
            session_refused: self.session_expiry_s > 0,
        };
        encode::connack_v5(&mut self.out, &promises);
    }

    fn connack_refused(&mut self, reason: u8, why: &str) {
        encode::connack_v5_refused(&mut self.out, reason, why, self.client_len_max);
    }

    /// Answers a CONNECT that ran into something of ours; 3.1.1 has only "server unavailable" for that.
    fn refuse(&mut self, reason: u8, why: &str) {
        match self.version {
            Version::V311 => encode::connack_v311(&mut self.out, AuthRefusal::Unavailable.code(Version::V311)),
            Version::V5 => self.connack_refused(reason, why),
        }
    }

    fn say_goodbye(&mut self, reason: u8, why: &str) {
        if self.version == Version::V5 {
            encode::disconnect_v5(&mut self.out, reason, why, self.client_len_max);
        }
    }

    fn fail(&mut self, error: ProtocolError) {
        if let ProtocolError::ProtocolLevel { level: 6.. } = error {
            self.version = Version::V5;
        }
        match (self.state, self.version) {
            (State::Open, _) => self.say_goodbye(error.reason_code(), &error.to_string()),
            (_, Version::V5) => self.connack_refused(error.reason_code(), &error.to_string()),
            (_, Version::V311) => {
                if let Some(code) = error.return_code() {
                    encode::connack_v311(&mut self.out, code);
                }
            }
        }
        self.close(Close::Protocol(error));
    }

    fn close(&mut self, close: Close) {
        if self.closed().is_some() {
            return;
        }
        if self.state != State::Open {
            self.will = None;
        }
        self.counters.count_close(close);
        self.held = Vec::new();
        self.aliases = Vec::new();
        self.state = State::Closed(close);
    }
}
