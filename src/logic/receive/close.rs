//! Why a session ends, in words and in codes.

use super::{RANGES_PER_LANE_MAX, SEQ_MAX, SESSIONS_MAX, WAITING_MAX};
use crate::wire::PROTOCOL_VERSION;

/// Why a session is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// Another run of the same gateway.
    #[error("another run of this gateway took over, epoch {by:016x}")]
    Superseded {
        /// Its epoch.
        by: u64,
    },
    /// Over [`SESSIONS_MAX`].
    #[error("more than {SESSIONS_MAX} connections of one gateway; the oldest is closed")]
    TooManySessions,
    /// A protocol this version does not speak.
    #[error("protocol version {found} is not spoken here, only {PROTOCOL_VERSION}: upgrade the older side")]
    Version {
        /// The gateway's.
        found: u32,
    },
    /// Anything before or after the one Hello.
    #[error("protocol error: {0}")]
    Order(&'static str),
    /// A block or void of an epoch the Hello did not name.
    #[error("protocol error: epoch {epoch:016x} was not named in the Hello")]
    Epoch {
        /// The epoch.
        epoch: u64,
    },
    /// A block on the stream of another lane.
    #[error("protocol error: block of lane {found} on a stream of lane {stream}")]
    Lane {
        /// Lane of the block.
        found: &'static str,
        /// Lane of the stream.
        stream: &'static str,
    },
    /// A range that cannot be.
    #[error("protocol error: sequence numbers {first} to {last} are outside 0 to {SEQ_MAX}")]
    Range {
        /// First number.
        first: u64,
        /// Last number.
        last: u64,
    },
    /// A void of an unknown lane or reason.
    #[error("protocol error: void of lane {lane} and reason {reason} is not known here: upgrade the cloud first")]
    Void {
        /// Lane on the wire.
        lane: u32,
        /// Reason on the wire.
        reason: u32,
    },
    /// Over [`RANGES_PER_LANE_MAX`].
    #[error("lane {lane} is scattered into more than {RANGES_PER_LANE_MAX} ranges")]
    Scattered {
        /// The lane.
        lane: &'static str,
    },
    /// Over [`WAITING_MAX`].
    #[error("more than {WAITING_MAX} blocks wait for a commit")]
    Waiting,
}

impl CloseReason {
    /// The application error code on the wire.
    pub const fn code(&self) -> CloseCode {
        match self {
            CloseReason::Superseded { .. } => CloseCode::Superseded,
            CloseReason::TooManySessions | CloseReason::Waiting => CloseCode::Busy,
            CloseReason::Version { .. } => CloseCode::Version,
            _ => CloseCode::Protocol,
        }
    }
}

/// Application error codes with which the cloud closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The cloud shuts down; connect again.
    Shutdown = 0,
    /// The gateway said what it must not; connecting again will not help by itself.
    Protocol = 1,
    /// Another run of the same gateway took over.
    Superseded = 2,
    /// The identity is not enrolled, or not any more.
    NotEnrolled = 3,
    /// The protocol version is not spoken here.
    Version = 4,
    /// A limit was reached; connect again later.
    Busy = 5,
}
