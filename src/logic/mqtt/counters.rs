//! What a connection took and what it refused, as plain numbers.

use super::error::{AuthRefusal, Close, ProtocolError};

/// Counts since the last [`super::Connection::take_counters`]; add them to a total with [`Counters::add`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// PUBLISH of QoS 0: best effort.
    pub publishes_qos0: u64,
    /// PUBLISH of QoS 1.
    pub publishes_qos1: u64,
    /// Payload bytes of all PUBLISH.
    pub payload_bytes: u64,
    /// PUBLISH with DUP: sent again by the client.
    pub duplicates: u64,
    /// PUBLISH with RETAIN, which means nothing here.
    pub retained: u64,
    /// PUBACK of every reason.
    pub pubacks: u64,
    /// PUBACK whose reason is an error (`0x80` and above); 3.1.1 clients cannot see it.
    pub pubacks_refused: u64,
    /// PINGREQ answered.
    pub pings: u64,
    /// Topic filters of SUBSCRIBE refused.
    pub subscribes_refused: u64,
    /// Reads that ended because too many messages are unacknowledged.
    pub pauses_inflight: u64,
    /// Reads that ended at the rate limit.
    pub pauses_rate: u64,
    /// Reads that ended because the client does not read its socket.
    pub pauses_output: u64,
    /// Reads that the caller ended.
    pub pauses_caller: u64,
    /// CONNECT accepted.
    pub connects_accepted: u64,
    /// CONNECT of valid form refused.
    pub connects_refused: u64,
    /// Closed: neither 3.1.1 nor 5.
    pub versions_refused: u64,
    /// Closed: client id empty or too long.
    pub client_ids_refused: u64,
    /// Closed: malformed packet (reason `0x81`).
    pub malformed: u64,
    /// Closed: well formed and against the protocol (reason `0x82` and what has no counter of its own).
    pub protocol_errors: u64,
    /// Closed: packet over the limit, or a client whose own limit is too low.
    pub packets_too_large: u64,
    /// Closed: wildcard in a topic, or topic too long or too deep.
    pub topics_invalid: u64,
    /// Closed: topic alias out of range.
    pub aliases_invalid: u64,
    /// Closed: PUBLISH or will of QoS 2.
    pub qos2_refused: u64,
    /// Closed: more messages in flight than allowed.
    pub receive_maximum_exceeded: u64,
    /// Closed: bytes fed while paused exceed what is kept.
    pub held_too_long: u64,
    /// Closed: nothing received for 1.5 keep-alive intervals.
    pub keep_alives_expired: u64,
    /// Closed: no CONNECT, or no decision on it, in time.
    pub connect_timeouts: u64,
}

impl Counters {
    /// Adds another connection's counts to these.
    pub fn add(&mut self, other: &Counters) {
        self.publishes_qos0 += other.publishes_qos0;
        self.publishes_qos1 += other.publishes_qos1;
        self.payload_bytes += other.payload_bytes;
        self.duplicates += other.duplicates;
        self.retained += other.retained;
        self.pubacks += other.pubacks;
        self.pubacks_refused += other.pubacks_refused;
        self.pings += other.pings;
        self.subscribes_refused += other.subscribes_refused;
        self.pauses_inflight += other.pauses_inflight;
        self.pauses_rate += other.pauses_rate;
        self.pauses_output += other.pauses_output;
        self.pauses_caller += other.pauses_caller;
        self.connects_accepted += other.connects_accepted;
        self.connects_refused += other.connects_refused;
        self.versions_refused += other.versions_refused;
        self.client_ids_refused += other.client_ids_refused;
        self.malformed += other.malformed;
        self.protocol_errors += other.protocol_errors;
        self.packets_too_large += other.packets_too_large;
        self.topics_invalid += other.topics_invalid;
        self.aliases_invalid += other.aliases_invalid;
        self.qos2_refused += other.qos2_refused;
        self.receive_maximum_exceeded += other.receive_maximum_exceeded;
        self.held_too_long += other.held_too_long;
        self.keep_alives_expired += other.keep_alives_expired;
        self.connect_timeouts += other.connect_timeouts;
    }

    pub(super) fn count_close(&mut self, close: Close) {
        match close {
            Close::Protocol(error) => *self.of_error(error) += 1,
            // Who counts connections counts those that are too many.
            Close::Refused(refusal) => self.connects_refused += u64::from(refusal != AuthRefusal::TooManyClients),
            Close::KeepAlive { .. } => self.keep_alives_expired += 1,
            Close::ConnectTimeout { .. } => self.connect_timeouts += 1,
            Close::ByClient { .. } | Close::Lost | Close::ByServer(_) => {}
        }
    }

    fn of_error(&mut self, error: ProtocolError) -> &mut u64 {
        match error.reason_code() {
            0x81 => &mut self.malformed,
            0x84 => &mut self.versions_refused,
            0x85 => &mut self.client_ids_refused,
            0x90 => &mut self.topics_invalid,
            0x93 => &mut self.receive_maximum_exceeded,
            0x94 => &mut self.aliases_invalid,
            0x95 => &mut self.packets_too_large,
            0x97 => &mut self.held_too_long,
            0x9b => &mut self.qos2_refused,
            _ => &mut self.protocol_errors,
        }
    }
}
