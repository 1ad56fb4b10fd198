//! What goes over the boundary of a connection: limits in, events out.

use super::codec::Version;
use super::error::Close;

/// Limits of one connection; the defaults are those of `config/edge.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnLimits {
    /// Longest packet, bytes; MQTT 5 clients are told. A sensor's window of raw samples fits in 256 KiB.
    pub packet_len_max: u32,
    /// Longest packet before the client is let in, bytes: room for a will and a long password.
    pub connect_len_max: u32,
    /// Most QoS 1 messages without PUBACK, at least 1. MQTT 5 clients are told and closed beyond it; 3.1.1 clients wait.
    pub inflight_max: u16,
    /// Longest keep-alive, seconds; 0 is no limit. MQTT 5 clients are told; 3.1.1 clients keep what they asked for.
    pub keep_alive_s_max: u16,
    /// Time for CONNECT to come, and again for the decision on it, microseconds.
    pub connect_timeout_us: u64,
    /// Topic aliases offered to MQTT 5 clients; each may cost a topic's length in memory.
    pub topic_alias_max: u16,
    /// Bytes to write at which reading pauses, because the client does not read.
    pub output_len_max: usize,
    /// Messages a second, with a burst of one second; 0 is no limit.
    pub messages_per_s_max: u32,
    /// Bytes of PUBLISH a second, with a burst of one second; 0 is no limit.
    pub bytes_per_s_max: u32,
}

impl Default for ConnLimits {
    fn default() -> Self {
        ConnLimits {
            packet_len_max: 256 * 1024,
            connect_len_max: 16 * 1024,
            inflight_max: 1024,
            keep_alive_s_max: 0,
            connect_timeout_us: 10_000_000,
            topic_alias_max: 16,
            output_len_max: 64 * 1024,
            messages_per_s_max: 0,
            bytes_per_s_max: 0,
        }
    }
}

/// Position of a user in the configuration's list of users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserIndex(pub u16);

/// What a read brought, borrowed from its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The client wants in; nothing more comes until `authenticated` is called.
    Connect(ConnectRequest<'a>),
    /// A message. QoS 1 messages need an [`super::AckQueue::push`] each.
    Publish(Publish<'a>),
    /// The connection has ended; it is the last event.
    Closed(Close),
}

/// A CONNECT of valid form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectRequest<'a> {
    /// Protocol version.
    pub version: Version,
    /// The client's id, never empty; take-over is by this and the user.
    pub client_id: &'a str,
    /// The client sent none and this one was made for it.
    pub client_id_assigned: bool,
    /// User name, if sent.
    pub username: Option<&'a str>,
    /// Password, if sent.
    pub password: Option<&'a [u8]>,
    /// Clean session (3.1.1) or clean start (5). There are no sessions to resume either way.
    pub clean_start: bool,
    /// The keep-alive in force, seconds; 0 is none.
    pub keep_alive_s: u16,
    /// Topic of the will, for a permission check before the client is let in.
    pub will_topic: Option<&'a str>,
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Topic name, aliases resolved: 1 to [`super::TOPIC_LEN_MAX`] bytes, no wildcard, no U+0000.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// 0 or 1.
    pub qos: u8,
    /// Not 0 for QoS 1, 0 for QoS 0.
    pub packet_id: u16,
    /// The client sends it again: perhaps a copy of one that came over an earlier connection.
    pub dup: bool,
    /// Means nothing here.
    pub retain: bool,
    /// MQTT 5: seconds after which the client no longer cares.
    pub expiry_s: Option<u32>,
    /// MQTT 5: content type.
    pub content_type: Option<&'a str>,
}

/// The message to take in when a client ends badly, as if it had published it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Topic name.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// 0 or 1.
    pub qos: u8,
    /// Means nothing here.
    pub retain: bool,
}

impl Will {
    /// The will as a message; nobody waits for its PUBACK.
    pub fn publish(&self) -> Publish<'_> {
        Publish {
            topic: &self.topic,
            payload: &self.payload,
            qos: self.qos,
            packet_id: 0,
            dup: false,
            retain: self.retain,
            expiry_s: None,
            content_type: None,
        }
    }
}

/// The sink's answer to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// This one is taken, the next must wait until `resume`.
    Pause,
}

/// What the shell does after a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a paused connection must not be read from"]
pub enum Next {
    /// Read from the socket.
    Read,
    /// Do not read; call `read` with no bytes when the reason is gone.
    Pause(Pause),
    /// Write the output, then close the socket.
    Close,
}

/// Why a connection is not read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// The decision on its CONNECT is awaited.
    Auth,
    /// The caller asked for it.
    Caller,
    /// Too many unacknowledged messages (3.1.1).
    Inflight,
    /// Too many bytes wait to be written.
    Output,
    /// Over its rate.
    Rate {
        /// When it may go on, microseconds.
        until_us: u64,
    },
}
