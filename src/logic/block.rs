//! Blocks: the unit of storage and of transfer.
//!
//! A block holds consecutive records of one lane and epoch: a header of [`HEADER_LEN`] bytes (little-endian) and a zstd
//! frame. It is compressed once, written once, sent as it is and deleted as a whole. Its raw body is a list of entries:
//!
//! ```text
//! 0x00 chunk   varint first_seq, varint at_us           forget all sources; deltas start here
//! 0x01 source  bytes stream, bytes device               gets the next index, from 0
//! kind record  varint source, varint seq gap, zigzag at_us delta, bytes payload
//! ```
//!
//! `bytes` is a varint length and that many bytes. A *chunk* stands alone: what a group commit writes between two seals is
//! the last chunk as a small block of its own, and the sealed block is all chunks compressed together, so nothing is
//! encoded twice. Sequence gaps occur only in thinned blocks.

use bytes::Bytes;

use crate::ids::{BlockKey, Class, Epoch};
use crate::varint;

pub use body::BodyWriter;

mod body;

/// Length of a block's header in bytes.
pub const HEADER_LEN: usize = 64;
/// Largest raw body; also what a decoder allocates at most. One record of the largest MQTT payload (256 KiB by default,
/// 1 MiB at most) fits with room to spare.
pub const RAW_LEN_MAX: usize = 4 << 20;
/// Largest block in bytes: a raw body that zstd could not shrink, its frame overhead, and the header.
pub const BLOCK_LEN_MAX: usize = RAW_LEN_MAX + (RAW_LEN_MAX >> 7) + 1024;
/// Longest stream name and device key in a block.
pub const NAME_LEN_MAX: usize = 1024;
/// Most sources (stream and device) one chunk can name.
const SOURCES_MAX: usize = 1 << 16;

const MAGIC: [u8; 2] = *b"WB";
const VERSION: u8 = 1;
/// Level 1: ratio 6.3 at 589 MB/s on sensor JSON; higher levels gain under 10 % for twice the time.
const ZSTD_LEVEL: i32 = 1;
const TAG_CHUNK: u8 = 0x00;
const TAG_SOURCE: u8 = 0x01;
const FLAG_SERVICE_TIME: u8 = 0x40;

/// What a record's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// The MQTT payload as it came.
    Raw,
    /// An encoded `window::Aggregate`.
    Aggregate,
    /// An encoded `window::VerdictRecord`.
    Verdict,
    /// The values of one window, kept because a rule asked for them.
    Window,
}

impl RecordKind {
    /// All kinds.
    pub const ALL: [RecordKind; 4] = [RecordKind::Raw, RecordKind::Aggregate, RecordKind::Verdict, RecordKind::Window];

    const fn tag(self) -> u8 {
        match self {
            RecordKind::Raw => 0x10,
            RecordKind::Aggregate => 0x11,
            RecordKind::Verdict => 0x12,
            RecordKind::Window => 0x13,
        }
    }

    fn from_tag(tag: u8) -> Option<RecordKind> {
        RecordKind::ALL.into_iter().find(|kind| kind.tag() == tag)
    }
}

/// How finely a block's records describe what came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fidelity {
    /// As produced by the plan.
    Full,
    /// Thinned later, because the lane was over its cap.
    Thinned,
}

/// One record of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Sequence number within epoch and lane.
    pub seq: u64,
    /// Stream name.
    pub stream: &'a str,
    /// Device key: the levels that the stream's wildcards matched; empty without wildcards.
    pub device: &'a str,
    /// What `payload` is.
    pub kind: RecordKind,
    /// Service time of receipt in microseconds.
    pub at_us: u64,
    /// True if times inside an aggregate or verdict are service time rather than Unix time.
    pub service_time: bool,
    /// The payload.
    pub payload: &'a [u8],
}

/// What is known of a block without decompressing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// Lane, epoch and first sequence number.
    pub key: BlockKey,
    /// Last sequence number, included.
    pub last_seq: u64,
    /// Service time of its first record's receipt in microseconds.
    pub born_us: u64,
    /// Unix time minus service time in microseconds when the block was sealed; `None` if the clock was not trusted.
    pub wall_offset_us: Option<i64>,
    /// Records in it.
    pub count: u32,
    /// Length of the raw body in bytes.
    pub raw_len: u32,
    /// Full, or thinned later.
    pub fidelity: Fidelity,
}

/// Why bytes are not a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Shorter than its header or than the body its header announces.
    #[error("block is cut short: {len} bytes")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// Not one of our blocks.
    #[error("not a block: it does not start with 'WB'")]
    Magic,
    /// From a newer Weir.
    #[error("block format {found} is newer than {VERSION}, the newest this version reads: upgrade it")]
    Version {
        /// Version in the header.
        found: u8,
    },
    /// A field has a value it cannot have.
    #[error("block header is malformed: {field}")]
    Header {
        /// The field.
        field: &'static str,
    },
    /// Too large to be read.
    #[error("block of {len} raw bytes exceeds the limit of {RAW_LEN_MAX}")]
    TooLong {
        /// Raw length in the header.
        len: usize,
    },
    /// The checksum does not match.
    #[error("block checksum does not match: the bytes were damaged")]
    Checksum,
    /// The body does not decompress to what the header announces.
    #[error("block body does not decompress to the {raw_len} bytes its header announces")]
    Body {
        /// Announced length.
        raw_len: usize,
    },
    /// An entry of the body is malformed.
    #[error("block body is malformed at byte {at}")]
    Entry {
        /// Offset in the raw body.
        at: usize,
    },
}

impl BlockHeader {
    /// Reads and checks a header and the checksum over the whole block.
    ///
    /// # Errors
    /// Any [`BlockError`] but `Body` and `Entry`.
    pub fn parse(block: &[u8]) -> Result<BlockHeader, BlockError> {
        let Some(head) = block.first_chunk::<HEADER_LEN>() else {
            return Err(BlockError::Short { len: block.len() });
        };
        let u64_at = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        if head[..2] != MAGIC {
            return Err(BlockError::Magic);
        }
        if head[2] != VERSION {
            return Err(BlockError::Version { found: head[2] });
        }
        let (raw_len, body_len) = (u32_at(52), u32_at(56) as usize);
        if raw_len as usize > RAW_LEN_MAX {
            return Err(BlockError::TooLong { len: raw_len as usize });
        }
        if block.len() != HEADER_LEN + body_len {
            return Err(BlockError::Short { len: block.len() });
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head[..HEADER_LEN - 4]);
        crc.update(&block[HEADER_LEN..]);
        if crc.finalize() != u32_at(HEADER_LEN - 4) {
            return Err(BlockError::Checksum);
        }
        let lane = Class::from_index(head[3] as usize).ok_or(BlockError::Header { field: "lane" })?;
        let fidelity = match head[4] {
            0 => Fidelity::Full,
            1 => Fidelity::Thinned,
            _ => return Err(BlockError::Header { field: "fidelity" }),
        };
        let header = BlockHeader {
            key: BlockKey { lane, epoch: Epoch(u64_at(8)), first_seq: u64_at(16) },
            last_seq: u64_at(24),
            born_us: u64_at(32),
            wall_offset_us: Some(u64_at(40) as i64).filter(|&offset| offset != i64::MIN),
            count: u32_at(48),
            raw_len,
            fidelity,
        };
        // `last - first + 1` is never computed, so that a range up to u64::MAX does not overflow.
        let span = header.last_seq.checked_sub(header.key.first_seq).ok_or(BlockError::Header { field: "last_seq" })?;
        if header.count == 0 || u64::from(header.count) - 1 > span {
            return Err(BlockError::Header { field: "count" });
        }
        Ok(header)
    }

    fn write(&self, body_len: usize, out: &mut [u8]) {
        out[..2].copy_from_slice(&MAGIC);
        out[2] = VERSION;
        out[3] = self.key.lane.index() as u8;
        out[4] = matches!(self.fidelity, Fidelity::Thinned).into();
        out[8..16].copy_from_slice(&self.key.epoch.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.key.first_seq.to_le_bytes());
        out[24..32].copy_from_slice(&self.last_seq.to_le_bytes());
        out[32..40].copy_from_slice(&self.born_us.to_le_bytes());
        out[40..48].copy_from_slice(&self.wall_offset_us.unwrap_or(i64::MIN).to_le_bytes());
        out[48..52].copy_from_slice(&self.count.to_le_bytes());
        out[52..56].copy_from_slice(&self.raw_len.to_le_bytes());
        out[56..60].copy_from_slice(&(body_len as u32).to_le_bytes());
    }
}

/// Compresses and decompresses blocks; keeps zstd's work space from one to the next.
pub struct Codec {
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    /// Output space, reused.
    space: Vec<u8>,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codec").finish_non_exhaustive()
    }
}

impl Default for Codec {
    fn default() -> Self {
        Codec {
            compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("level 1 exists and needs no dictionary"),
            decompressor: zstd::bulk::Decompressor::new().expect("a context without a dictionary cannot be refused"),
            space: Vec::new(),
        }
    }
}

impl Codec {
    /// Makes a block of `header` and `raw`; `header.raw_len` is set here.
    ///
    /// `raw` must be whole chunks of at most [`RAW_LEN_MAX`] bytes.
    pub fn seal(&mut self, header: &BlockHeader, raw: &[u8]) -> Bytes {
        debug_assert!(raw.len() <= RAW_LEN_MAX, "a staging buffer is sealed before it reaches the limit");
        let header = BlockHeader { raw_len: raw.len() as u32, ..*header };
        self.space.resize(HEADER_LEN + zstd::zstd_safe::compress_bound(raw.len()), 0);
        self.space[..HEADER_LEN].fill(0);
        let body_len = self
            .compressor
            .compress_to_buffer(raw, &mut self.space[HEADER_LEN..])
            .expect("the buffer has zstd's own bound, and compression fails for nothing else");
        header.write(body_len, &mut self.space);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.space[..HEADER_LEN - 4]);
        crc.update(&self.space[HEADER_LEN..HEADER_LEN + body_len]);
        self.space[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.finalize().to_le_bytes());
        Bytes::copy_from_slice(&self.space[..HEADER_LEN + body_len])
    }

    /// Checks `block` and decompresses its body, valid until the next call.
    ///
    /// # Errors
    /// Any [`BlockError`] but `Entry`, which [`Records`] reports.
    pub fn open<'a>(&'a mut self, block: &[u8]) -> Result<(BlockHeader, Records<'a>), BlockError> {
        let header = BlockHeader::parse(block)?;
        let raw_len = header.raw_len as usize;
        self.space.resize(raw_len, 0);
        match self.decompressor.decompress_to_buffer(&block[HEADER_LEN..], &mut self.space[..raw_len]) {
            Ok(len) if len == raw_len => Ok((header, Records::new(&self.space[..raw_len]))),
            _ => Err(BlockError::Body { raw_len }),
        }
    }
}

/// Iterates over the records of a raw body; stops after the first error.
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    len: usize,
    sources: Vec<(&'a str, &'a str)>,
    next_seq: u64,
    at_us: u64,
}

impl<'a> Records<'a> {
    fn new(raw: &'a [u8]) -> Self {
        Records { rest: raw, len: raw.len(), sources: Vec::new(), next_seq: 0, at_us: 0 }
    }

    /// Reads entries up to and including the next record.
    fn advance(&mut self) -> Option<Record<'a>> {
        loop {
            let (&tag, rest) = self.rest.split_first()?;
            self.rest = rest;
            match tag {
                TAG_CHUNK => {
                    self.next_seq = varint::take(&mut self.rest)?;
                    self.at_us = varint::take(&mut self.rest)?;
                    self.sources.clear();
                }
                TAG_SOURCE => {
                    let stream = name(varint::take_slice(&mut self.rest)?)?;
                    let device = name(varint::take_slice(&mut self.rest)?)?;
                    if self.sources.len() == SOURCES_MAX {
                        return None;
                    }
                    self.sources.push((stream, device));
                }
                _ => return self.record(tag),
            }
        }
    }

    fn record(&mut self, tag: u8) -> Option<Record<'a>> {
        let kind = RecordKind::from_tag(tag & !FLAG_SERVICE_TIME)?;
        let source = usize::try_from(varint::take(&mut self.rest)?).ok()?;
        let &(stream, device) = self.sources.get(source)?;
        let seq = self.next_seq.checked_add(varint::take(&mut self.rest)?)?;
        self.at_us = self.at_us.checked_add_signed(varint::unzigzag(varint::take(&mut self.rest)?))?;
        let payload = varint::take_slice(&mut self.rest)?;
        self.next_seq = seq.checked_add(1)?;
        Some(Record { seq, stream, device, kind, at_us: self.at_us, service_time: tag & FLAG_SERVICE_TIME != 0, payload })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BlockError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let at = self.len - self.rest.len();
        let record = self.advance();
        if record.is_none() {
            self.rest = &[];
        }
        Some(record.ok_or(BlockError::Entry { at }))
    }
}

fn name(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|name| name.len() <= NAME_LEN_MAX)
}

/// What a record is written with.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    /// Dense index of stream and device in this process; names below are written once per chunk.
    pub source: u32,
    /// Stream name.
    pub stream: &'a str,
    /// Device key.
    pub device: &'a str,
    /// What `payload` is.
    pub kind: RecordKind,
    /// True if times inside the payload are service time.
    pub service_time: bool,
    /// Service time of receipt in microseconds.
    pub at_us: u64,
    /// The payload.
    pub payload: &'a [u8],
}

/// The open end of a lane: raw records, chunk after chunk, until they are sealed into a block.
#[derive(Debug)]
pub struct Staging {
    raw: Vec<u8>,
    first_seq: u64,
    next_seq: u64,
    born_us: u64,
    chunk: Chunk,
    chunk_generation: u32,
    /// Per dense source index: the chunk generation it was written in, and its index there.
    known: Vec<(u32, u32)>,
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    start: usize,
    first_seq: u64,
    born_us: u64,
    at_us: u64,
    sources: u32,
}

impl Staging {
    /// Empty; the first record gets `next_seq`.
    pub fn new(next_seq: u64) -> Self {
        let chunk = Chunk { start: 0, first_seq: next_seq, born_us: 0, at_us: 0, sources: 0 };
        Staging { raw: Vec::new(), first_seq: next_seq, next_seq, born_us: 0, chunk, chunk_generation: 1, known: Vec::new() }
    }

    /// Appends a record and returns its sequence number.
    pub fn push(&mut self, record: &NewRecord<'_>) -> u64 {
        if self.raw.len() == self.chunk.start {
            self.open_chunk(record.at_us);
        }
        let source = self.source(record);
        self.raw.push(record.kind.tag() | if record.service_time { FLAG_SERVICE_TIME } else { 0 });
        varint::put(&mut self.raw, u64::from(source));
        self.raw.push(0);
        varint::put(&mut self.raw, varint::zigzag(record.at_us.wrapping_sub(self.chunk.at_us) as i64));
        self.chunk.at_us = record.at_us;
        varint::put(&mut self.raw, record.payload.len() as u64);
        self.raw.extend_from_slice(record.payload);
        self.next_seq += 1;
        self.next_seq - 1
    }

    fn open_chunk(&mut self, at_us: u64) {
        if self.raw.is_empty() {
            self.born_us = at_us;
        }
        self.chunk = Chunk { start: self.raw.len(), first_seq: self.next_seq, born_us: at_us, at_us, sources: 0 };
        self.chunk_generation = self.chunk_generation.wrapping_add(1);
        self.raw.push(TAG_CHUNK);
        varint::put(&mut self.raw, self.next_seq);
        varint::put(&mut self.raw, at_us);
    }

    fn source(&mut self, record: &NewRecord<'_>) -> u32 {
        let at = record.source as usize;
        if at >= self.known.len() {
            self.known.resize(at + 1, (0, 0));
        }
        let (generation, index) = self.known[at];
        if generation == self.chunk_generation {
            return index;
        }
        let index = self.chunk.sources;
        self.chunk.sources += 1;
        self.known[at] = (self.chunk_generation, index);
        self.raw.push(TAG_SOURCE);
        for name in [record.stream, record.device] {
            varint::put(&mut self.raw, name.len() as u64);
            self.raw.extend_from_slice(name.as_bytes());
        }
        index
    }

    /// Raw bytes since the last seal.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// True if nothing was pushed since the last seal.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// True if `len` more payload bytes must go into a new block.
    pub fn is_full_for(&self, len: usize, target: usize) -> bool {
        !self.raw.is_empty() && (self.raw.len() + len > RAW_LEN_MAX - 4 * NAME_LEN_MAX || self.raw.len() >= target)
    }

    /// Records and bytes pushed since the last chunk was cut.
    pub fn chunk_len(&self) -> (u64, usize) {
        (self.next_seq - self.chunk_first_seq(), self.raw.len() - self.chunk.start)
    }

    /// Sequence number the next record gets.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Sequence number of the first record since the last seal.
    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// Service time of the first record since the last seal; `None` if empty.
    pub fn born_us(&self) -> Option<u64> {
        (!self.raw.is_empty()).then_some(self.born_us)
    }

    /// Service time of the first record since the last chunk was cut; `None` if there is none.
    pub fn chunk_born_us(&self) -> Option<u64> {
        (self.raw.len() > self.chunk.start).then_some(self.chunk.born_us)
    }

    fn chunk_first_seq(&self) -> u64 {
        if self.raw.len() == self.chunk.start { self.next_seq } else { self.chunk.first_seq }
    }

    /// Seals the records since the last cut into a small block of their own, and starts a new chunk; `None` if there are none.
    pub fn cut(
        &mut self,
        lane: Class,
        epoch: Epoch,
        wall_offset_us: Option<i64>,
        codec: &mut Codec,
    ) -> Option<(BlockHeader, Bytes)> {
        let (count, len) = self.chunk_len();
        if len == 0 {
            return None;
        }
        let header = BlockHeader {
            key: BlockKey { lane, epoch, first_seq: self.chunk.first_seq },
            last_seq: self.next_seq - 1,
            born_us: self.chunk.born_us,
            wall_offset_us,
            count: count as u32,
            raw_len: len as u32,
            fidelity: Fidelity::Full,
        };
        let block = codec.seal(&header, &self.raw[self.chunk.start..]);
        self.chunk.start = self.raw.len();
        Some((header, block))
    }

    /// Seals everything since the last seal into one block, and starts anew; `None` if there is nothing.
    pub fn seal(
        &mut self,
        lane: Class,
        epoch: Epoch,
        wall_offset_us: Option<i64>,
        codec: &mut Codec,
    ) -> Option<(BlockHeader, Bytes)> {
        if self.raw.is_empty() {
            return None;
        }
        let header = BlockHeader {
            key: BlockKey { lane, epoch, first_seq: self.first_seq },
            last_seq: self.next_seq - 1,
            born_us: self.born_us,
            wall_offset_us,
            count: (self.next_seq - self.first_seq) as u32,
            raw_len: self.raw.len() as u32,
            fidelity: Fidelity::Full,
        };
        let block = codec.seal(&header, &self.raw);
        self.raw.clear();
        self.first_seq = self.next_seq;
        self.chunk.start = 0;
        Some((header, block))
    }
}

#[cfg(test)]
mod tests;
