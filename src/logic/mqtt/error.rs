//! Why a connection ends, in words for the operator and in MQTT's codes for the client.

use super::codec::{Packet, Version};
use super::filter::{FILTER_LEVELS_MAX, TOPIC_LEN_MAX};

/// What a client did against the protocol or over a limit; every variant closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A variable byte integer has a fifth byte.
    #[error("variable byte integer longer than 4 bytes")]
    VarInt,
    /// Packet type 0.
    #[error("packet type 0 is reserved")]
    PacketReserved,
    /// The low four bits of the first byte are not what this packet demands.
    #[error("{packet} with flags {flags:#06b}")]
    Flags {
        /// The packet.
        packet: Packet,
        /// Its flags, `0..16`.
        flags: u8,
    },
    /// The packet ends before its field does.
    #[error("packet ends within its {field}")]
    Truncated {
        /// Name of the field.
        field: &'static str,
    },
    /// Bytes are left after the packet's last field.
    #[error("{packet} with {len} bytes after its last field")]
    Trailing {
        /// The packet.
        packet: Packet,
        /// How many bytes.
        len: usize,
    },
    /// The packet is longer than allowed; before CONNECT the limit is lower.
    #[error(
        "packet of {len} bytes exceeds the limit of {len_max}: see mqtt.packet_bytes_max, for CONNECT mqtt.connect_packet_bytes_max"
    )]
    PacketTooLarge {
        /// Its length with the fixed header, bytes.
        len: usize,
        /// The limit, bytes.
        len_max: usize,
    },
    /// More was fed than can be kept while paused: the shell read on, or the limit is below one read.
    #[error("{len} bytes waiting exceed the limit of {len_max}")]
    HeldTooLong {
        /// Bytes that would have to be kept.
        len: usize,
        /// The limit, bytes.
        len_max: usize,
    },
    /// The protocol name is not `MQTT`.
    #[error("protocol name is not MQTT")]
    ProtocolName,
    /// Neither 3.1.1 (level 4) nor 5; 3.1 is level 3.
    #[error("protocol level {level} is not supported, use 3.1.1 (level 4) or 5")]
    ProtocolLevel {
        /// The level asked for.
        level: u8,
    },
    /// Reserved or contradicting bits in CONNECT's flags.
    #[error("connect flags {flags:#010b} are not valid")]
    ConnectFlags {
        /// The flags.
        flags: u8,
    },
    /// Something else came before CONNECT.
    #[error("{packet} before CONNECT")]
    NotConnected {
        /// The packet.
        packet: Packet,
    },
    /// A packet that clients of this endpoint, or brokers to a subscriber, never send.
    #[error("{packet} is not expected here")]
    Unexpected {
        /// The packet.
        packet: Packet,
    },
    /// 3.1.1: a client without an id must ask for a clean session.
    #[error("empty client id without clean session")]
    ClientIdEmpty,
    /// The client id is too long.
    #[error("client id of {len} bytes exceeds the limit of {len_max}")]
    ClientIdTooLong {
        /// Its length, bytes.
        len: usize,
        /// The limit, bytes.
        len_max: usize,
    },
    /// The client's Maximum Packet Size has no room for our CONNACK.
    #[error("client takes packets of {len_max} bytes only, our CONNACK needs {len_min}")]
    ClientPacketMax {
        /// What the client accepts, bytes.
        len_max: u32,
        /// What we need, bytes.
        len_min: u32,
    },
    /// Extended authentication is not offered.
    #[error("extended authentication is not offered")]
    AuthMethod,
    /// Text that is not UTF-8.
    #[error("{field} is not UTF-8")]
    Utf8 {
        /// Name of the field.
        field: &'static str,
    },
    /// Text with U+0000 in it.
    #[error("{field} contains U+0000")]
    Nul {
        /// Name of the field.
        field: &'static str,
    },
    /// PUBLISH without a topic, or without an alias for one.
    #[error("topic is empty")]
    TopicEmpty,
    /// A wildcard in a topic that is published to.
    #[error("topic contains a wildcard")]
    TopicWildcard,
    /// The topic is too long.
    #[error("topic of {len} bytes exceeds the limit of {TOPIC_LEN_MAX}")]
    TopicTooLong {
        /// Its length, bytes.
        len: usize,
    },
    /// The topic has too many levels.
    #[error("topic of {levels} levels exceeds the limit of {FILTER_LEVELS_MAX}")]
    TopicTooDeep {
        /// Its levels.
        levels: usize,
    },
    /// A topic alias of 0 or above the advertised maximum.
    #[error("topic alias {alias} exceeds the limit of {alias_max}, or is 0")]
    AliasOutOfRange {
        /// The alias.
        alias: u16,
        /// The maximum in CONNACK.
        alias_max: u16,
    },
    /// A topic alias that was never set on this connection.
    #[error("topic alias {alias} was never set")]
    AliasUnknown {
        /// The alias.
        alias: u16,
    },
    /// QoS 3 does not exist.
    #[error("QoS 3 does not exist")]
    QosInvalid,
    /// QoS 2 is not offered.
    #[error("QoS 2 is not offered, publish with QoS 1")]
    Qos2,
    /// DUP on a message of QoS 0.
    #[error("DUP is set on a QoS 0 message")]
    DupQos0,
    /// Packet id 0.
    #[error("packet id is 0")]
    PacketIdZero,
    /// More QoS 1 messages in flight than CONNACK allowed.
    #[error("more than {inflight_max} QoS 1 messages in flight")]
    ReceiveMaximum {
        /// The Receive Maximum in CONNACK.
        inflight_max: u16,
    },
    /// A property id that does not exist.
    #[error("property {id:#04x} does not exist")]
    PropertyUnknown {
        /// The id.
        id: u32,
    },
    /// A property that does not belong into this packet.
    #[error("property {id:#04x} is not allowed here")]
    PropertyNotAllowed {
        /// The id.
        id: u8,
    },
    /// A property that may be there once is there twice.
    #[error("property {id:#04x} twice")]
    PropertyTwice {
        /// The id.
        id: u8,
    },
    /// A property's value is out of its range.
    #[error("property {id:#04x} has a value out of range")]
    PropertyValue {
        /// The id.
        id: u8,
    },
    /// SUBSCRIBE or UNSUBSCRIBE without a filter.
    #[error("{packet} without a topic filter")]
    NoFilter {
        /// The packet.
        packet: Packet,
    },
    /// Reserved or contradicting bits in a subscription's options.
    #[error("subscription options {options:#010b} are not valid")]
    SubscribeOptions {
        /// The options.
        options: u8,
    },
}

impl ProtocolError {
    /// The MQTT 5 reason code for CONNACK or DISCONNECT.
    pub const fn reason_code(self) -> u8 {
        use ProtocolError::*;
        match self {
            VarInt
            | PacketReserved
            | Flags { .. }
            | Truncated { .. }
            | Trailing { .. }
            | ConnectFlags { .. }
            | Utf8 { .. }
            | Nul { .. }
            | QosInvalid
            | DupQos0
            | PropertyUnknown { .. }
            | SubscribeOptions { .. } => 0x81,
            NotConnected { .. }
            | Unexpected { .. }
            | TopicEmpty
            | AliasUnknown { .. }
            | PacketIdZero
            | PropertyNotAllowed { .. }
            | PropertyTwice { .. }
            | PropertyValue { .. }
            | NoFilter { .. } => 0x82,
            ProtocolName | ProtocolLevel { .. } => 0x84,
            ClientIdEmpty | ClientIdTooLong { .. } => 0x85,
            AuthMethod => 0x8c,
            TopicWildcard | TopicTooLong { .. } | TopicTooDeep { .. } => 0x90,
            ReceiveMaximum { .. } => 0x93,
            AliasOutOfRange { .. } => 0x94,
            PacketTooLarge { .. } | ClientPacketMax { .. } => 0x95,
            HeldTooLong { .. } => 0x97,
            Qos2 => 0x9b,
        }
    }

    /// The 3.1.1 CONNACK return code, where that version has one; otherwise the connection is closed without a word.
    pub(super) const fn return_code(self) -> Option<u8> {
        match self {
            ProtocolError::ProtocolLevel { .. } => Some(0x01),
            ProtocolError::ClientIdEmpty | ProtocolError::ClientIdTooLong { .. } => Some(0x02),
            _ => None,
        }
    }
}

/// Why a CONNECT with valid form is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthRefusal {
    /// Unknown user, wrong password, or no certificate.
    #[error("wrong user name or password: the user needs a [[user]] with a hash of it, which `weir passwd` makes")]
    BadCredentials,
    /// Known, but not let in: anonymous clients where they are not allowed, a disabled user.
    #[error("not authorised: give a user name and password, a known certificate, or set allow_anonymous for the listener")]
    NotAuthorised,
    /// The client id is in use by another user.
    #[error("client id is in use by another user: each client needs an id of its own")]
    ClientIdTaken,
    /// As many clients as the endpoint takes are connected.
    #[error("as many clients are connected as mqtt.clients_max allows")]
    TooManyClients,
    /// The endpoint is starting, stopping or cannot check passwords now.
    #[error("too many passwords wait to be checked, try again later")]
    Unavailable,
}

impl AuthRefusal {
    /// The code for CONNACK in the client's version.
    pub const fn code(self, version: Version) -> u8 {
        match (self, version) {
            (AuthRefusal::BadCredentials, Version::V5) => 0x86,
            (AuthRefusal::BadCredentials, Version::V311) => 0x04,
            (AuthRefusal::NotAuthorised, Version::V5) => 0x87,
            (AuthRefusal::NotAuthorised, Version::V311) => 0x05,
            (AuthRefusal::ClientIdTaken, Version::V5) => 0x85,
            (AuthRefusal::ClientIdTaken, Version::V311) => 0x02,
            (AuthRefusal::TooManyClients, Version::V5) => 0x97,
            (AuthRefusal::Unavailable, Version::V5) => 0x88,
            (AuthRefusal::TooManyClients | AuthRefusal::Unavailable, Version::V311) => 0x03,
        }
    }
}

/// Why the server ends a connection that did nothing wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DisconnectReason {
    /// The same client id connected again.
    #[error("taken over by a newer connection of the same client")]
    TakenOver,
    /// The process stops.
    #[error("server is shutting down")]
    ShuttingDown,
    /// The user was removed or disabled by a reload.
    #[error("no longer authorised")]
    NotAuthorised,
    /// An operator asked for it.
    #[error("closed by an operator")]
    Administrative,
    /// A limit of the whole process, such as memory or open sockets.
    #[error("a quota of the server is exhausted")]
    Quota,
}

impl DisconnectReason {
    /// The MQTT 5 reason code; 3.1.1 has no DISCONNECT from the server.
    pub const fn reason_code(self) -> u8 {
        match self {
            DisconnectReason::TakenOver => 0x8e,
            DisconnectReason::ShuttingDown => 0x8b,
            DisconnectReason::NotAuthorised => 0x87,
            DisconnectReason::Administrative => 0x98,
            DisconnectReason::Quota => 0x97,
        }
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Close {
    /// The client sent DISCONNECT. 0 is a normal end; 4 asks for the will to be published.
    #[error("client disconnected with reason {reason:#04x}")]
    ByClient {
        /// MQTT 5 reason code; 0 in 3.1.1.
        reason: u8,
    },
    /// The socket ended without a DISCONNECT.
    #[error("connection lost")]
    Lost,
    /// The client broke the protocol or a limit.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The client was not let in.
    #[error("refused: {0}")]
    Refused(AuthRefusal),
    /// Nothing came for one and a half keep-alive intervals.
    #[error("nothing received for 1.5 x the keep-alive of {keep_alive_s} s")]
    KeepAlive {
        /// The interval in force, seconds.
        keep_alive_s: u16,
    },
    /// No CONNECT, or no decision on it, in time.
    #[error("not connected within {timeout_us} us")]
    ConnectTimeout {
        /// The limit, microseconds.
        timeout_us: u64,
    },
    /// We ended it.
    #[error("{0}")]
    ByServer(DisconnectReason),
}
