//! The client's side of MQTT 3.1.1 and 5, for taking messages from a broker: a state machine over bytes.
//!
//! It connects with a session that outlives the connection, subscribes, and hands over what comes. Acknowledgements are the
//! caller's, in its own time: PUBACK and PUBREC when a record is safe, PUBCOMP when its packet id is forgotten durably.
//! What is not read stays in the socket and then with the broker; that is all the backpressure there is, and pings and
//! acknowledgements go on meanwhile.
//!
//! Cases that surprised us:
//! - A broker sends a message again until it is acknowledged, over and over: one that is too long, or whose topic has more
//!   levels than we take, must be acknowledged, or nothing else would ever come. So its head is read and its rest skipped.
//! - A session that is still there begins to send before it answers SUBSCRIBE.
//! - SUBSCRIBE makes a broker send retained messages again. MQTT 5 can ask for them only with new subscriptions; with 3.1.1
//!   we subscribe once a run, if the session was kept.
//! - Without Maximum Packet Size in CONNECT: with it, a broker drops what is longer, and nobody would know.

use std::fmt;
use std::sync::Arc;

use super::codec::{Packet, Version};
use super::encode;
use super::error::ProtocolError;
use super::event::{Flow, Next, Pause, Publish};

mod read;
#[cfg(test)]
mod tests;

/// How to connect to a broker, and what to ask of it.
#[derive(Debug, Clone)]
pub struct SubscriberOptions {
    /// Protocol version.
    pub version: Version,
    /// Names the session; nobody else may use it at this broker.
    pub client_id: Arc<str>,
    /// User name, if one is needed.
    pub username: Option<Arc<str>>,
    /// Password, if one is needed.
    pub password: Option<Secret>,
    /// Longest silence before a broker that does not answer counts as gone is one and a half times this, seconds; not 0.
    pub keep_alive_s: u16,
    /// How long the broker keeps the session after the connection, seconds; only MQTT 5 can say it.
    pub session_expiry_s: u32,
    /// Most unacknowledged messages; MQTT 5 brokers are told.
    pub inflight_max: u16,
    /// Longest packet that is taken in whole, bytes; a longer message is skipped.
    pub packet_len_max: u32,
    /// Topic filters to subscribe to.
    pub filters: Arc<[String]>,
    /// QoS to subscribe with, 0 to 2: the broker delivers with the lower of this and the publisher's.
    pub qos: u8,
    /// Time for CONNACK, and again for SUBACK, microseconds.
    pub answer_timeout_us: u64,
}

/// A password, which is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Hides a password.
    pub fn new(password: &[u8]) -> Secret {
        Secret(password.into())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What a read brought, borrowed from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery<'a> {
    /// The broker let us in.
    Connected {
        /// It has kept the session: what it sent before and got no acknowledgement for, it sends again.
        session_present: bool,
    },
    /// The broker answered SUBSCRIBE: by filter, the QoS granted, or `None` where it refuses.
    Subscribed {
        /// In the order of [`SubscriberOptions::filters`].
        granted: &'a [Option<u8>],
    },
    /// A message, QoS 0 to 2.
    Publish(Publish<'a>),
    /// A message that cannot be taken in; those of QoS 1 and 2 must be acknowledged all the same.
    Unusable {
        /// QoS.
        qos: u8,
        /// Packet id; 0 with QoS 0.
        packet_id: u16,
        /// Its topic, as far as it is text.
        topic: String,
        /// `too_long` or `topic`.
        reason: &'static str,
        /// What exactly.
        detail: String,
    },
    /// PUBREL: the broker will not send this packet id again until [`Subscriber::pubcomp`].
    Release {
        /// Packet id.
        packet_id: u16,
    },
}

/// How a connection to a broker ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerClose {
    /// The socket ended.
    #[error("connection lost")]
    Lost,
    /// The broker did not let us in.
    #[error("the broker refuses the connection: {} (code {code:#04x})", refusal(.version, .code))]
    Refused {
        /// CONNACK's code.
        code: u8,
        /// Decides what it means.
        version: Version,
    },
    /// The broker broke the protocol, or a limit of ours.
    #[error("the broker breaks the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// No CONNACK or SUBACK in time.
    #[error("no {waited_for} within {timeout_us} us")]
    NoAnswer {
        /// What was waited for.
        waited_for: Packet,
        /// The limit, microseconds.
        timeout_us: u64,
    },
    /// Nothing came for one and a half keep-alive intervals, pings notwithstanding.
    #[error("nothing received for 1.5 x the keep-alive of {keep_alive_s} s")]
    Silent {
        /// The interval in force, seconds.
        keep_alive_s: u16,
    },
    /// The broker sent DISCONNECT.
    #[error("the broker disconnects with reason {reason:#04x}{}", more_on(.reason))]
    ByBroker {
        /// MQTT 5 reason code.
        reason: u8,
    },
    /// We ended it.
    #[error("stopped")]
    Stopped,
}

/// One connection to a broker; pure.
#[derive(Debug)]
pub struct Subscriber {
    options: SubscriberOptions,
    state: State,
    /// The broker has subscriptions of ours from an earlier connection of this run.
    is_subscribed: bool,
    keep_alive_s: u16,
    answer_by_us: u64,
    received_us: u64,
    ping_us: u64,
    held: Vec<u8>,
    /// Bytes to come of a message that is not taken in.
    skipped: usize,
    paused: bool,
    out: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    AwaitConnack,
    AwaitSuback,
    Open,
    Closed(BrokerClose),
}

/// Bytes to write at which reading pauses, because the broker does not read: 16,000 acknowledgements.
const OUTPUT_LEN_MAX: usize = 64 * 1024;
/// Packet id of SUBSCRIBE; nothing else of ours has one.
const SUBSCRIBE_ID: u16 = 1;

impl Subscriber {
    /// A connection just made, with CONNECT to be written. `is_subscribed` if an earlier one of this run was subscribed.
    pub fn new(options: SubscriberOptions, is_subscribed: bool, now_us: u64) -> Subscriber {
        let mut out = Vec::new();
        encode::connect(&mut out, &options);
        Subscriber {
            state: State::AwaitConnack,
            is_subscribed,
            keep_alive_s: options.keep_alive_s,
            answer_by_us: now_us.saturating_add(options.answer_timeout_us),
            received_us: now_us,
            ping_us: u64::MAX,
            held: Vec::new(),
            skipped: 0,
            paused: false,
            out,
            options,
        }
    }

    /// Takes what one read of the socket brought, and calls `sink` for each delivery in order.
    ///
    /// With no bytes it goes on with what was kept when a pause has ended.
    pub fn read<F>(&mut self, now_us: u64, bytes: &[u8], mut sink: F) -> Next
    where
        F: FnMut(Delivery<'_>) -> Flow,
    {
        if self.closed().is_some() {
            return Next::Close;
        }
        self.received_us = now_us;
        if let Err(error) = self.read_packets(now_us, bytes, &mut sink) {
            self.fail(error);
        }
        if self.closed().is_some() {
            self.held = Vec::new();
            return Next::Close;
        }
        self.pause().map_or(Next::Read, Next::Pause)
    }

    /// Acknowledges a message of QoS 1. The order of receipt is the caller's duty.
    #[inline]
    pub fn puback(&mut self, packet_id: u16) {
        self.answer(0x40, packet_id);
    }

    /// Says that a message of QoS 2 is here to stay, and its packet id is known.
    pub fn pubrec(&mut self, packet_id: u16) {
        self.answer(0x50, packet_id);
    }

    /// Says that a packet id is forgotten: the broker may use it for another message.
    pub fn pubcomp(&mut self, packet_id: u16) {
        self.answer(0x70, packet_id);
    }

    fn answer(&mut self, header: u8, packet_id: u16) {
        if self.closed().is_none() {
            encode::answer_id(&mut self.out, header, packet_id);
        }
    }

    /// Pings when it is time, and ends the connection if the broker has been silent too long or does not answer.
    pub fn tick(&mut self, now_us: u64) -> Option<&BrokerClose> {
        match self.state {
            State::Closed(_) => return None,
            State::AwaitConnack | State::AwaitSuback => {
                // A broker that is not read from cannot be heard.
                if self.pause().is_some() {
                    self.answer_by_us = now_us.saturating_add(self.options.answer_timeout_us);
                }
                if now_us < self.answer_by_us {
                    return None;
                }
                let waited_for = if self.state == State::AwaitConnack { Packet::Connack } else { Packet::Suback };
                self.close(BrokerClose::NoAnswer { waited_for, timeout_us: self.options.answer_timeout_us });
            }
            State::Open => {
                if self.pause().is_some() {
                    self.received_us = now_us;
                }
                let keep_alive_us = u64::from(self.keep_alive_s) * 1_000_000;
                if now_us >= self.ping_us {
                    self.ping_us = now_us + keep_alive_us * 3 / 4;
                    self.out.extend_from_slice(&[0xc0, 0]);
                }
                if now_us < self.received_us.saturating_add(keep_alive_us * 3 / 2) {
                    return None;
                }
                self.close(BrokerClose::Silent { keep_alive_s: self.keep_alive_s });
            }
        }
        self.closed()
    }

    /// Why the socket must not be read now, if so.
    pub fn pause(&self) -> Option<Pause> {
        if self.paused {
            return Some(Pause::Caller);
        }
        (self.out.len() >= OUTPUT_LEN_MAX).then_some(Pause::Output)
    }

    /// Stops parsing until [`Subscriber::resume`].
    pub fn hold(&mut self) {
        self.paused = true;
    }

    /// Ends what [`Subscriber::hold`] or [`Flow::Pause`] began; then call `read` with no bytes.
    pub fn resume(&mut self, now_us: u64) {
        self.paused = false;
        self.received_us = now_us;
    }

    /// Bytes to write to the socket, oldest first; the shell removes what it has written.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Says goodbye; the broker keeps the session.
    pub fn disconnect(&mut self) {
        if self.closed().is_none() && self.state != State::AwaitConnack {
            self.out.extend_from_slice(&[0xe0, 0]);
        }
        self.close(BrokerClose::Stopped);
    }

    /// The socket has ended.
    pub fn lost(&mut self) {
        self.close(BrokerClose::Lost);
    }

    /// How the connection ended, if it has.
    pub fn closed(&self) -> Option<&BrokerClose> {
        match &self.state {
            State::Closed(close) => Some(close),
            _ => None,
        }
    }

    /// True once the broker has let us in and answered SUBSCRIBE.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    fn close(&mut self, close: BrokerClose) {
        if self.closed().is_none() {
            self.state = State::Closed(close);
        }
    }

    fn fail(&mut self, error: ProtocolError) {
        if self.options.version == Version::V5 && self.state != State::AwaitConnack {
            self.out.extend_from_slice(&[0xe0, 1, error.reason_code()]);
        }
        self.close(BrokerClose::Protocol(error));
    }
}

/// What a CONNACK code means, in words that say what to look at.
fn refusal(version: &Version, code: &u8) -> &'static str {
    match (version, code) {
        (Version::V311, 1) | (Version::V5, 0x84) => "it does not speak this version of MQTT",
        (Version::V311, 2) | (Version::V5, 0x85) => "it does not accept the client id",
        (Version::V311, 3) | (Version::V5, 0x88 | 0x89) => "it is unavailable or busy",
        (Version::V311, 4) | (Version::V5, 0x86) => "wrong user name or password",
        (Version::V311, 5) | (Version::V5, 0x87) => "not authorised",
        (Version::V5, 0x8a) => "this client is banned",
        (Version::V5, 0x97 | 0x9f) => "one of its quotas or rates is exceeded",
        _ => "it gives a code without a word",
    }
}

/// What to look at, for the one reason that an operator can mend.
fn more_on(reason: &u8) -> &'static str {
    if *reason == 0x8e { ": another client uses this client id" } else { "" }
}
