//! The same streams over TLS on TCP, for networks that let no QUIC through.
//!
//! A box opens two connections: one for control and the lane `critical`, one for all the rest. So what is urgent waits for
//! one frame of its own connection at most, and a connection for bulk that is full holds up nothing but itself. Each begins
//! with its [`Opening`]: which of the two it is, and 16 random bytes that the box drew for both. The cloud takes two as one
//! session if they show the same bytes and the same certificate.
//!
//! From then on both carry frames: a channel (1 byte), a length (3 bytes, little-endian), and so many bytes; at most
//! [`FRAME_LEN_MAX`] in all, which is the largest TLS record. Put together, what a channel carries is what its QUIC stream
//! would: control messages, or a lane's blocks, each with its length before it. The channel says the lane, so a lane stream's
//! head is not sent. QUIC's code and reason of a close are a frame too.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::{FrameError, LaneStream};
use crate::ids::Class;

/// Largest frame in bytes, with its head: one TLS record (RFC 8446, 5.1).
pub const FRAME_LEN_MAX: usize = 16 * 1024;
/// Longest reason of a [`Frame::Close`] in bytes.
pub const REASON_LEN_MAX: usize = 1_024;

const HEAD_LEN: usize = 4;
const BODY_LEN_MAX: usize = FRAME_LEN_MAX - HEAD_LEN;
/// Channels 0 to 7 are lanes: twice the lane's index, and 1 more for its backlog.
const LANES: usize = 8;
const CHANNEL_CONTROL: u8 = 0x10;
const CHANNEL_OPENING: u8 = 0x11;
const CHANNEL_CLOSE: u8 = 0x12;

/// Ties the two connections of a session together; random, and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub [u8; 16]);

/// Which of the two connections of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Control and the lane `critical`.
    Control,
    /// All other lanes.
    Bulk,
}

impl Half {
    /// The connection that a lane's blocks belong on.
    pub fn of(lane: Class) -> Half {
        if lane == Class::Critical { Half::Control } else { Half::Bulk }
    }
}

/// The first frame on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Which connection it is.
    pub half: Half,
    /// The session's token.
    pub token: Token,
}

impl Opening {
    const LEN: usize = 20;

    /// The frame.
    pub fn to_frame(self) -> Vec<u8> {
        let half = match self.half {
            Half::Control => 0,
            Half::Bulk => 1,
        };
        let mut frame = head(CHANNEL_OPENING, Self::LEN).to_vec();
        frame.extend_from_slice(&[b'W', b'T', 1, half]);
        frame.extend_from_slice(&self.token.0);
        frame
    }

    fn from_bytes(bytes: &[u8]) -> Result<Opening, FrameError> {
        let half = match bytes.first_chunk() {
            Some([b'W', b'T', 1, 0]) => Half::Control,
            Some([b'W', b'T', 1, 1]) => Half::Bulk,
            _ => return Err(FrameError::Opening),
        };
        let token = bytes[4..].try_into().map_err(|_| FrameError::Opening)?;
        Ok(Opening { half, token: Token(token) })
    }
}

/// What came in one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The first one.
    Opening(Opening),
    /// Part of the control stream.
    Control(Bytes),
    /// Part of a lane's stream.
    Lane {
        /// The lane.
        stream: LaneStream,
        /// Its bytes.
        bytes: Bytes,
    },
    /// The last one: the session is closed.
    Close {
        /// [`crate::receive::CloseCode`], or 0 from a box.
        code: u32,
        /// In words.
        reason: String,
    },
}

/// The frame that closes a session; of a longer reason only the start is sent.
pub fn close_frame(code: u32, reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(REASON_LEN_MAX)];
    let mut frame = head(CHANNEL_CLOSE, 4 + reason.len()).to_vec();
    frame.extend_from_slice(&code.to_le_bytes());
    frame.extend_from_slice(reason.as_bytes());
    frame
}

/// Takes the next frame from `buffer`; `Ok(None)` if it is not whole yet.
///
/// # Errors
/// `FrameLength` and `Channel` as soon as the head is there, before anything is kept; `Opening` or `Close` if their bytes are
/// not ours.
pub fn take_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(&[channel, a, b, c]) = buffer.first_chunk::<HEAD_LEN>() else { return Ok(None) };
    let len = u32::from_le_bytes([a, b, c, 0]) as usize;
    let lane = lane_of(channel);
    let (min, max) = match channel {
        CHANNEL_OPENING => (Opening::LEN, Opening::LEN),
        CHANNEL_CLOSE => (4, 4 + REASON_LEN_MAX),
        CHANNEL_CONTROL => (1, BODY_LEN_MAX),
        _ if lane.is_some() => (1, BODY_LEN_MAX),
        _ => return Err(FrameError::Channel { channel }),
    };
    if !(min..=max).contains(&len) {
        return Err(FrameError::FrameLength { len });
    }
    if buffer.len() < HEAD_LEN + len {
        return Ok(None);
    }
    buffer.advance(HEAD_LEN);
    let bytes = buffer.split_to(len).freeze();
    Ok(Some(match (channel, lane) {
        (_, Some(stream)) => Frame::Lane { stream, bytes },
        (CHANNEL_OPENING, _) => Frame::Opening(Opening::from_bytes(&bytes)?),
        (CHANNEL_CLOSE, _) => close(&bytes)?,
        _ => Frame::Control(bytes),
    }))
}

fn close(bytes: &[u8]) -> Result<Frame, FrameError> {
    let (code, reason) = bytes.split_first_chunk().ok_or(FrameError::Close)?;
    let reason = str::from_utf8(reason).map_err(|_| FrameError::Close)?.to_owned();
    Ok(Frame::Close { code: u32::from_le_bytes(*code), reason })
}

fn head(channel: u8, len: usize) -> [u8; HEAD_LEN] {
    debug_assert!(len <= BODY_LEN_MAX, "frames are cut below the limit");
    let [a, b, c, _] = (len as u32).to_le_bytes();
    [channel, a, b, c]
}

fn lane_of(channel: u8) -> Option<LaneStream> {
    let lane = Class::from_index(usize::from(channel / 2)).filter(|_| usize::from(channel) < LANES)?;
    Some(LaneStream { lane, backlog: channel % 2 == 1 })
}

fn index(stream: LaneStream) -> usize {
    stream.lane.index() * 2 + usize::from(stream.backlog)
}

/// What waits to be written to one connection, and in which order: control first, then `critical`, live before backlog,
/// then a frame of each other lane in turn. It holds what it is given; who gives it bounds that.
#[derive(Debug, Default)]
pub struct Mux {
    control: BytesMut,
    lanes: [Lane; LANES],
    /// The lane whose turn is next.
    turn: usize,
}

#[derive(Debug, Default)]
struct Lane {
    blocks: VecDeque<Bytes>,
    /// Bytes of the first block, with its length before it, that are in frames already.
    sent: usize,
}

/// What is in a frame that was just made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// Part of the control stream.
    Control,
    /// Part of a lane's stream.
    Lane {
        /// The lane.
        stream: LaneStream,
        /// Bytes of the blocks that end in it.
        ended_bytes: u64,
    },
}

impl Mux {
    /// Adds whole control messages, each with its length before it.
    pub fn push_control(&mut self, bytes: &[u8]) {
        self.control.extend_from_slice(bytes);
    }

    /// Adds a block.
    pub fn push_block(&mut self, stream: LaneStream, block: Bytes) {
        self.lanes[index(stream)].blocks.push_back(block);
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.control.is_empty() && self.lanes.iter().all(|lane| lane.blocks.is_empty())
    }

    /// Writes the next frame to `out`, which is emptied first; `None` if nothing waits.
    pub fn next_frame(&mut self, out: &mut Vec<u8>) -> Option<Filled> {
        out.clear();
        if !self.control.is_empty() {
            let bytes = self.control.split_to(self.control.len().min(BODY_LEN_MAX));
            out.extend_from_slice(&head(CHANNEL_CONTROL, bytes.len()));
            out.extend_from_slice(&bytes);
            return Some(Filled::Control);
        }
        let at = self.choose()?;
        let lane = Class::from_index(at / 2).expect("there are as many lanes as classes, twice");
        let stream = LaneStream { lane, backlog: at % 2 == 1 };
        out.extend_from_slice(&[0; HEAD_LEN]);
        let ended_bytes = self.lanes[at].fill(out);
        let len = out.len() - HEAD_LEN;
        out[..HEAD_LEN].copy_from_slice(&head(at as u8, len));
        Some(Filled::Lane { stream, ended_bytes })
    }

    fn choose(&mut self) -> Option<usize> {
        let waits = |at: &usize| !self.lanes[*at].blocks.is_empty();
        let critical = 2 * Class::Critical.index();
        if let Some(at) = [critical, critical + 1].into_iter().find(waits) {
            return Some(at);
        }
        let at = (0..LANES).map(|n| (self.turn + n) % LANES).find(waits)?;
        self.turn = (at + 1) % LANES;
        Some(at)
    }
}

impl Lane {
    /// Adds what fits into a frame; returns the bytes of the blocks that end in it.
    fn fill(&mut self, out: &mut Vec<u8>) -> u64 {
        let mut ended_bytes = 0;
        while let Some(block) = self.blocks.front() {
            let prefix = (block.len() as u32).to_le_bytes();
            for part in [&prefix[self.sent.min(4)..], &block[self.sent.saturating_sub(4)..]] {
                let len = part.len().min(FRAME_LEN_MAX - out.len());
                out.extend_from_slice(&part[..len]);
                self.sent += len;
            }
            if self.sent < 4 + block.len() {
                break;
            }
            ended_bytes += block.len() as u64;
            self.blocks.pop_front();
            self.sent = 0;
        }
        ended_bytes
    }
}

#[cfg(test)]
mod tests;
