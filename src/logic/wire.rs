//! What gateway and cloud say to each other (ALPN `weir/1`).
//!
//! One bidirectional *control* stream carries [`Control`] messages, each a `u32` little-endian length and that many bytes of
//! protobuf: old boxes and new clouds skip fields they do not know. Each lane has a unidirectional stream for live data and
//! one for backlog: [`LaneStream`]'s eight bytes, then blocks, each with a `u32` little-endian length before it.
//! Where QUIC does not pass, [`mux`] carries the same streams over TCP.

pub mod model;
pub mod mux;
pub mod offload;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;

use crate::block::{BLOCK_LEN_MAX, HEADER_LEN};
use crate::graph::{NeedFull, Stamp};
use crate::ids::Class;

use model::{ModelAsk, ModelChunk, ModelOffer, ModelRefusal, ModelStates};
use offload::{OffloadAnswer, OffloadRefusal, OffloadRequest, PoolViews};

/// The ALPN protocol identifier.
pub const ALPN: &[u8] = b"weir/1";
/// Protocol version in [`Hello`].
pub const PROTOCOL_VERSION: u32 = 1;
/// Largest control message in bytes. Only a Hello comes near it, with 8 bytes for each run of which something is held: a box
/// that restarts every 5 s throughout an outage of three days has 52,000. Acks and the Welcome are paged far below.
pub const CONTROL_LEN_MAX: usize = 512 * 1024;
/// Ranges in one [`Ack`] or [`Welcome`] page at most: 2,000 ranges of at most 20 bytes stay under 64 KiB.
pub const RANGES_PER_MESSAGE_MAX: usize = 2_000;
/// Longest question.
pub const QUESTION_LEN_MAX: usize = 512;
/// Longest answer. It leaves on the stream of the heartbeats: what a slow uplink takes longer for than a second is cut further.
pub const ANSWER_LEN_MAX: usize = 48 * 1024;

/// A message on the control stream.
#[derive(Clone, PartialEq, Message)]
pub struct Control {
    /// The message; `None` if it is of a kind this version does not know.
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32")]
    pub body: Option<Body>,
}

/// The kinds of control messages.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// Gateway to cloud, first.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// Cloud to gateway, the answer; more than one if paged.
    #[prost(message, tag = "2")]
    Welcome(Welcome),
    /// Cloud to gateway: these are durable.
    #[prost(message, tag = "3")]
    Ack(Ack),
    /// Gateway to cloud: these were given up.
    #[prost(message, tag = "4")]
    Voids(Voids),
    /// Gateway to cloud, every second or so.
    #[prost(message, tag = "5")]
    Ping(Ping),
    /// Cloud to gateway, the answer.
    #[prost(message, tag = "6")]
    Pong(Pong),
    /// Cloud to gateway: how much may be under way.
    #[prost(message, tag = "7")]
    Credits(Credits),
    /// Gateway to cloud: its part of the health graph, whole or what has changed.
    #[prost(message, tag = "8")]
    Digest(DigestBytes),
    /// Cloud to gateway: the last digest builds on one that is not here.
    #[prost(message, tag = "9")]
    NeedFull(NeedFull),
    /// Cloud to gateway: what is wrong with what it shares with others.
    #[prost(message, tag = "10")]
    Advice(AdviceBytes),
    /// Cloud to gateway: how busy it is.
    #[prost(message, tag = "11")]
    Load(CloudLoad),
    /// Cloud to gateway: a policy, signed by whoever the gateway lets decide that.
    #[prost(message, tag = "20")]
    PolicyOffer(PolicyOffer),
    /// Gateway to cloud, after each greeting and at each change: which policy it has, and what became of the last one offered.
    #[prost(message, tag = "21")]
    PolicyState(PolicyState),
    /// Cloud to gateway: somebody there asks why.
    #[prost(message, tag = "22")]
    Question(AskedQuestion),
    /// Gateway to cloud, the answer.
    #[prost(message, tag = "23")]
    Answer(GivenAnswer),
    /// Gateway to cloud, on a stream of its own: a window for a larger model.
    #[prost(message, tag = "24")]
    OffloadRequest(OffloadRequest),
    /// Cloud to gateway, on the same stream: what that says.
    #[prost(message, tag = "25")]
    OffloadAnswer(OffloadAnswer),
    /// Cloud to gateway, on the same stream: why there is no answer.
    #[prost(message, tag = "26")]
    OffloadRefusal(OffloadRefusal),
    /// Cloud to gateway: the pools that it may use, and how busy they are.
    #[prost(message, tag = "27")]
    Pools(PoolViews),
    /// Cloud to gateway: a model, signed by whoever the gateway lets decide that; of the package only what is signed.
    #[prost(message, tag = "28")]
    ModelOffer(ModelOffer),
    /// Gateway to cloud, after each greeting and at each change: which models it has, and what became of those offered.
    #[prost(message, tag = "29")]
    ModelStates(ModelStates),
    /// Gateway to cloud, on a stream of its own: a part of a package is wanted.
    #[prost(message, tag = "30")]
    ModelAsk(ModelAsk),
    /// Cloud to gateway, on the same stream: the part.
    #[prost(message, tag = "31")]
    ModelChunk(ModelChunk),
    /// Cloud to gateway, on the same stream: why there is none.
    #[prost(message, tag = "32")]
    ModelRefusal(ModelRefusal),
}

/// Opens a session.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`].
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// This run of the gateway.
    #[prost(fixed64, tag = "2")]
    pub epoch: u64,
    /// Older epochs of which the gateway still holds blocks; the cloud closes all others.
    #[prost(fixed64, repeated, tag = "3")]
    pub held_epochs: Vec<u64>,
    /// Version of the gateway's software.
    #[prost(string, tag = "4")]
    pub software: String,
    /// The gateway's service time now, in microseconds.
    #[prost(uint64, tag = "5")]
    pub service_us: u64,
    /// True if it answers [`AskedQuestion`]s.
    #[prost(bool, tag = "6")]
    pub answers: bool,
}

/// Accepts a session, and says what is already durable.
#[derive(Clone, PartialEq, Message)]
pub struct Welcome {
    /// The cloud's protocol version.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// What the cloud has of the held epochs.
    #[prost(message, repeated, tag = "2")]
    pub have: Vec<LaneRanges>,
    /// True if another page follows.
    #[prost(bool, tag = "3")]
    pub more: bool,
    /// The last stamp of the gateway's digest that is known here; a gateway that lost its memory goes on above it.
    #[prost(message, optional, tag = "4")]
    pub last_stamp: Option<Stamp>,
    /// Name of the machine that answers, as it calls itself in the health graph.
    #[prost(string, tag = "5")]
    pub node: String,
}

/// A [`crate::graph::Digest`], encoded: whoever merges it checks its limits before it decodes it.
#[derive(Clone, PartialEq, Message)]
pub struct DigestBytes {
    /// The digest.
    #[prost(bytes = "bytes", tag = "1")]
    pub digest: Bytes,
}

/// A [`crate::graph::Advice`], encoded.
#[derive(Clone, PartialEq, Message)]
pub struct AdviceBytes {
    /// The advice.
    #[prost(bytes = "bytes", tag = "1")]
    pub advice: Bytes,
}

/// Ranges of one epoch and lane.
#[derive(Clone, PartialEq, Message)]
pub struct LaneRanges {
    /// Epoch.
    #[prost(fixed64, tag = "1")]
    pub epoch: u64,
    /// [`Class::index`] of the lane.
    #[prost(uint32, tag = "2")]
    pub lane: u32,
    /// First and last sequence number of each range, flat: `[first, last, first, last, ...]`.
    #[prost(uint64, repeated, tag = "3")]
    pub bounds: Vec<u64>,
}

/// These records are durable in the sink (or their voids are).
#[derive(Clone, PartialEq, Message)]
pub struct Ack {
    /// What is durable.
    #[prost(message, repeated, tag = "1")]
    pub ranges: Vec<LaneRanges>,
}

/// These records will never come.
#[derive(Clone, PartialEq, Message)]
pub struct Voids {
    /// Each with its reason.
    #[prost(message, repeated, tag = "1")]
    pub voids: Vec<VoidRange>,
}

/// One void.
#[derive(Clone, PartialEq, Message)]
pub struct VoidRange {
    /// Epoch.
    #[prost(fixed64, tag = "1")]
    pub epoch: u64,
    /// [`Class::index`] of the lane.
    #[prost(uint32, tag = "2")]
    pub lane: u32,
    /// First sequence number.
    #[prost(uint64, tag = "3")]
    pub first: u64,
    /// Last sequence number.
    #[prost(uint64, tag = "4")]
    pub last: u64,
    /// [`crate::ids::VoidReason::code`].
    #[prost(uint32, tag = "5")]
    pub reason: u32,
}

/// A heartbeat: on its own stream with the highest priority, it never queues behind data.
#[derive(Clone, PartialEq, Message)]
pub struct Ping {
    /// Comes back in the [`Pong`].
    #[prost(uint64, tag = "1")]
    pub nonce: u64,
    /// The gateway's service time now, in microseconds.
    #[prost(uint64, tag = "2")]
    pub service_us: u64,
    /// Per lane of the present epoch: below this sequence number nothing is held any more, so a gap there is missing.
    #[prost(uint64, repeated, tag = "3")]
    pub settled: Vec<u64>,
}

/// Answers a [`Ping`].
#[derive(Clone, PartialEq, Message)]
pub struct Pong {
    /// The ping's.
    #[prost(uint64, tag = "1")]
    pub nonce: u64,
}

/// How many bytes per class may be sent and not yet acknowledged as durable.
#[derive(Clone, PartialEq, Message)]
pub struct Credits {
    /// By [`Class::index`].
    #[prost(uint64, repeated, tag = "1")]
    pub bytes: Vec<u64>,
    /// For how long, in milliseconds; after that nothing may be sent until new credits come.
    #[prost(uint32, tag = "2")]
    pub lease_ms: u32,
}

/// What an operator wants to know of a gateway.
#[derive(Clone, PartialEq, Message)]
pub struct AskedQuestion {
    /// Comes back in the [`GivenAnswer`].
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// As [`crate::gateway::Question`] is written, at most [`QUESTION_LEN_MAX`] bytes.
    #[prost(string, tag = "2")]
    pub text: String,
}

/// Answers an [`AskedQuestion`].
#[derive(Clone, PartialEq, Message)]
pub struct GivenAnswer {
    /// The question's.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// A [`crate::gateway::Explanation`] as JSON, at most [`ANSWER_LEN_MAX`] bytes; empty if there is none.
    #[prost(bytes = "bytes", tag = "2")]
    pub json: Bytes,
    /// Why there is none, in words.
    #[prost(string, tag = "3")]
    pub error: String,
}

/// How busy the cloud is: why credits are what they are.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CloudLoad {
    /// [`LoadLevel`].
    #[prost(uint32, tag = "1")]
    pub level: u32,
    /// How full its queue is, in percent.
    #[prost(uint32, tag = "2")]
    pub queue_percent: u32,
    /// How long a transaction takes of late, in microseconds; 0 if there was none.
    #[prost(uint64, tag = "3")]
    pub commit_us: u64,
}

/// How busy the cloud is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoadLevel {
    /// It takes all.
    #[default]
    Idle,
    /// It takes all, but its queue grows.
    Filling,
    /// Only critical data have credits.
    Overloaded,
    /// It takes nothing.
    Stalled,
}

impl LoadLevel {
    /// All of them; the number on the wire is the position.
    pub const ALL: [LoadLevel; 4] = [LoadLevel::Idle, LoadLevel::Filling, LoadLevel::Overloaded, LoadLevel::Stalled];

    /// The word used in logs and the status.
    pub const fn name(self) -> &'static str {
        match self {
            LoadLevel::Idle => "idle",
            LoadLevel::Filling => "filling",
            LoadLevel::Overloaded => "overloaded",
            LoadLevel::Stalled => "stalled",
        }
    }
}

impl CloudLoad {
    /// The level; one that a newer cloud made up is taken for the worst.
    pub fn level(&self) -> LoadLevel {
        LoadLevel::ALL.get(self.level as usize).copied().unwrap_or(LoadLevel::Stalled)
    }
}

/// A policy for a gateway.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PolicyOffer {
    /// The version that its text says, so that a gateway need not read one that it has.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// The text, at most [`POLICY_LEN_MAX`] bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub text: Bytes,
    /// The signature of the text.
    #[prost(bytes = "bytes", tag = "3")]
    pub signature: Bytes,
}

/// Longest text of a policy in bytes. Heartbeats are answered on the stream that it comes on: at 100 kbit/s it takes five seconds.
pub const POLICY_LEN_MAX: usize = 64 * 1024;
/// Longest reason in a [`PolicyState`], in bytes: a screen of mistakes.
pub const POLICY_REASON_LEN_MAX: usize = 2_048;

/// What a gateway says of policies.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PolicyState {
    /// The version that it says something of.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// [`crate::rollout::OfferState::code`].
    #[prost(uint32, tag = "2")]
    pub state: u32,
    /// Why, in words; at most [`POLICY_REASON_LEN_MAX`] bytes.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// The version that it goes back to, or has; 0 for its own configuration.
    #[prost(uint64, tag = "4")]
    pub kept: u64,
}

/// The beginning of a reason, no longer than [`POLICY_REASON_LEN_MAX`].
pub fn policy_reason(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(POLICY_REASON_LEN_MAX)]
}

/// Why bytes on a stream are refused; the session is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A control message over the limit.
    #[error("control message of {len} bytes exceeds the limit of {CONTROL_LEN_MAX}")]
    ControlTooLong {
        /// Announced length.
        len: usize,
    },
    /// A control message that is not protobuf of our kind.
    #[error("control message is malformed: {0}")]
    Control(String),
    /// A block over the limit or shorter than a header.
    #[error("block of {len} bytes is outside the limits of {HEADER_LEN} to {BLOCK_LEN_MAX}")]
    BlockLength {
        /// Announced length.
        len: usize,
    },
    /// A lane stream with an unknown head.
    #[error("lane stream starts with {0:02x?}, which this version does not know")]
    LaneStream([u8; 8]),
    /// A frame over the limit of its channel, or one without a byte.
    #[error("frame of {len} bytes is outside the limits of its channel")]
    FrameLength {
        /// Announced length.
        len: usize,
    },
    /// A frame of an unknown channel.
    #[error("frame of channel {channel:#04x} is not known here")]
    Channel {
        /// The channel.
        channel: u8,
    },
    /// A connection that does not begin as one of two should.
    #[error("opening of a connection is malformed, or of a version that is not known here")]
    Opening,
    /// A close without a code or with a reason that is not UTF-8.
    #[error("close is malformed")]
    Close,
    /// A frame where it does not belong.
    #[error("{0}")]
    Misplaced(&'static str),
}

/// Encodes a control message with its length.
pub fn encode_control(body: Body, out: &mut Vec<u8>) {
    let message = Control { body: Some(body) };
    let len = message.encoded_len();
    debug_assert!(len <= CONTROL_LEN_MAX, "messages are paged below the limit");
    out.extend_from_slice(&(len as u32).to_le_bytes());
    message.encode(out).expect("a Vec has room");
}

/// Takes the next control message from `buffer`; `Ok(None)` if it is not whole yet.
///
/// # Errors
/// `ControlTooLong` before anything is kept, `Control` if the bytes are not ours.
pub fn take_control(buffer: &mut BytesMut) -> Result<Option<Control>, FrameError> {
    let Some(len) = peek_len(buffer) else { return Ok(None) };
    if len > CONTROL_LEN_MAX {
        return Err(FrameError::ControlTooLong { len });
    }
    if buffer.len() < 4 + len {
        return Ok(None);
    }
    buffer.advance(4);
    Control::decode(buffer.split_to(len)).map(Some).map_err(|err| FrameError::Control(err.to_string()))
}

/// The head of a lane stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneStream {
    /// Lane whose blocks follow.
    pub lane: Class,
    /// True if they are backlog rather than live.
    pub backlog: bool,
}

impl LaneStream {
    /// Length of the head in bytes.
    pub const LEN: usize = 8;

    /// The eight bytes a lane stream starts with.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        [b'W', b'L', 1, self.lane.index() as u8, self.backlog.into(), 0, 0, 0]
    }

    /// The inverse of [`LaneStream::to_bytes`].
    ///
    /// # Errors
    /// `LaneStream` if it is of a kind or version this one does not know.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Result<LaneStream, FrameError> {
        match (bytes, Class::from_index(bytes[3] as usize)) {
            ([b'W', b'L', 1, _, backlog @ 0..=1, 0, 0, 0], Some(lane)) => Ok(LaneStream { lane, backlog: backlog == 1 }),
            _ => Err(FrameError::LaneStream(bytes)),
        }
    }
}

/// Takes the next block from `buffer`; `Ok(None)` if it is not whole yet.
///
/// # Errors
/// `BlockLength` as soon as the length is known, before anything is allocated for it.
pub fn take_block(buffer: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    let Some(len) = peek_len(buffer) else { return Ok(None) };
    if !(HEADER_LEN..=BLOCK_LEN_MAX).contains(&len) {
        return Err(FrameError::BlockLength { len });
    }
    if buffer.len() < 4 + len {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(len).freeze()))
}

fn peek_len(buffer: &BytesMut) -> Option<usize> {
    buffer.first_chunk::<4>().map(|len| u32::from_le_bytes(*len) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn control_survives_any_split(nonces in prop::collection::vec(any::<u64>(), 1..8), split in 0usize..200) {
            let mut bytes = Vec::new();
            for &nonce in &nonces {
                encode_control(Body::Ping(Ping { nonce, service_us: nonce >> 3, settled: vec![1, 2, 3, nonce] }), &mut bytes);
            }
            let split = split.min(bytes.len());
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for part in [&bytes[..split], &bytes[split..]] {
                buffer.extend_from_slice(part);
                while let Some(control) = take_control(&mut buffer).expect("our own message") {
                    let Some(Body::Ping(ping)) = control.body else { panic!("a ping") };
                    got.push(ping.nonce);
                }
            }
            prop_assert_eq!(got, nonces);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take_control(&mut buffer) {}
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take_block(&mut buffer) {}
            if let Some(head) = bytes.first_chunk::<8>() && let Ok(stream) = LaneStream::from_bytes(*head) {
                prop_assert_eq!(stream.to_bytes(), *head);
            }
        }
    }

    #[test]
    fn a_policy_and_its_reason_fit_into_a_message_and_old_peers_skip_them() {
        let text = Bytes::from(vec![b'x'; POLICY_LEN_MAX]);
        let offer = PolicyOffer { version: u64::MAX, text, signature: Bytes::from(vec![0; 64]) };
        let mut bytes = Vec::new();
        encode_control(Body::PolicyOffer(offer.clone()), &mut bytes);
        let reason = policy_reason(&"ä".repeat(POLICY_REASON_LEN_MAX)).to_owned();
        assert_eq!(reason.len(), POLICY_REASON_LEN_MAX);
        assert_eq!(policy_reason(&format!("x{reason}")).len(), POLICY_REASON_LEN_MAX - 1, "no half character");
        encode_control(Body::PolicyState(PolicyState { version: 1, state: 4, reason, kept: 0 }), &mut bytes);
        let mut buffer = BytesMut::from(&bytes[..]);
        let control = take_control(&mut buffer).expect("our own").expect("a whole one");
        assert_eq!(control.body, Some(Body::PolicyOffer(offer)));
        assert!(take_control(&mut buffer).expect("our own").is_some() && buffer.is_empty());
        // A field of a number that nobody knows.
        let unknown = [[4, 0, 0, 0].as_slice(), &[0xa2, 0x06, 1, 0]].concat();
        let skipped = take_control(&mut BytesMut::from(&unknown[..])).expect("protobuf").expect("a whole one");
        assert_eq!(skipped.body, None);
    }

    #[test]
    fn lengths_over_the_limit_are_refused_at_once() {
        let mut buffer = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(matches!(take_control(&mut buffer), Err(FrameError::ControlTooLong { .. })));
        assert!(matches!(take_block(&mut buffer), Err(FrameError::BlockLength { .. })));
    }

    #[test]
    fn a_full_page_of_ranges_stays_under_the_limit() {
        let bounds = vec![u64::MAX; 2 * RANGES_PER_MESSAGE_MAX];
        let ack = Control { body: Some(Body::Ack(Ack { ranges: vec![LaneRanges { epoch: 1, lane: 3, bounds }] })) };
        assert!(ack.encoded_len() <= CONTROL_LEN_MAX, "{}", ack.encoded_len());
    }
}
