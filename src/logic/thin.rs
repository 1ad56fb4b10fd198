//! Thinning: a block's raw records, described more coarsely.
//!
//! What waits for the uplink is stored as it came; how finely it is sent is decided when it is handed over, and then its
//! block is rewritten here. The result has the range of the original, so that it is acknowledged and found to be a repetition
//! in the same way, and fewer records: sequence numbers that are left out were thinned, not lost.
//!
//! - `OneIn(n)` keeps every n-th message of each device, counted over blocks, so that devices which take turns all stay.
//! - `Aggregate` folds messages of a device into minimum, maximum, mean and count: as many into one as bring their bytes
//!   down to a sixteenth ([`PART`]), so that long messages keep their resolution in time. An aggregate has the sequence
//!   number of the last of them. Where a block has so few that it would save less than three quarters, one in four is kept
//!   instead.
//! - Only raw messages are thinned. Aggregates, verdicts and windows that a rule asked for are kept as they are, and so is a
//!   message that cannot be decoded. At least one record stays, because a block without records is not a block.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;

use crate::block::{BlockError, BlockHeader, BodyWriter, Codec, Fidelity, Record, RecordKind};
use crate::payload::{Decoder, PayloadFormat, Samples};
use crate::policy::StreamPolicy;
use crate::price::Level;
use crate::window::Aggregate;

/// What is done to the raw messages of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinning {
    /// All are kept.
    None,
    /// Every n-th of a device is kept.
    OneIn(u32),
    /// They are folded into aggregates.
    Aggregate,
}

/// A block after thinning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thinned {
    /// Its header: key, last number and times of the original.
    pub header: BlockHeader,
    /// The block.
    pub block: Bytes,
    /// Records of the original that it lacks.
    pub removed: u32,
}

/// Aggregates take one in so many of their messages' bytes: the ladder's step of that name, [`Level::bytes`].
///
/// [`Level::bytes`]: crate::price::Level::bytes
pub const PART: usize = 16;
/// An encoded aggregate: so many bytes, and for each channel so many more.
const AGGREGATE_LEN: usize = 20;
const CHANNEL_LEN: usize = 24;
/// Devices whose turn is remembered; when there are more, all begin anew, which costs a message each.
const PHASES_MAX: usize = 16_384;

/// Rewrites blocks; keeps its work space from one to the next.
#[derive(Debug)]
pub struct Thinner {
    streams: HashMap<Arc<str>, u16, FixedState>,
    floors: Box<[Level]>,
    /// `None` for payloads that cannot be aggregated one by one.
    decoders: Vec<Option<Decoder>>,
    /// Messages seen by stream and device, for `OneIn`.
    phases: HashMap<(u16, String), u32, FixedState>,
    samples: Samples,
    body: BodyWriter,
    payload: Vec<u8>,
}

/// What becomes of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    Drop,
    /// Written as the aggregate with this index if it is the aggregate's last message.
    Fold(usize),
}

/// One device of one stream in the block at hand.
#[derive(Debug)]
struct Source<'a> {
    device: &'a str,
    index: Option<u16>,
    thinning: Thinning,
    /// Messages of it so far, for `OneIn`.
    phase: u32,
    /// Raw messages of it in the block, and their bytes.
    count: usize,
    bytes: usize,
    /// Messages that go into one aggregate.
    group: usize,
    /// Of them, those that were looked at.
    seen: usize,
    open: Option<usize>,
}

/// An aggregate being folded.
#[derive(Debug)]
struct Group {
    aggregate: Aggregate,
    service_time: bool,
    /// Index of its last record.
    last: usize,
    len: usize,
}

impl Thinner {
    /// For these streams, by name; those it does not know are left as they are.
    pub fn new(policies: &[StreamPolicy], seed: u64) -> Self {
        let decoder = |policy: &StreamPolicy| match policy.format {
            // A message of Sparkplug B says nothing without those before it.
            PayloadFormat::Opaque(_) | PayloadFormat::Sparkplug(_) => None,
            _ => Decoder::new(&policy.format).ok(),
        };
        let floor = |policy: &StreamPolicy| {
            // What was left out could be the birth that all after it need.
            if matches!(policy.format, PayloadFormat::Sparkplug(_)) {
                return Level::Raw;
            }
            let lowest = policy.value.and_then(|value| value.ladder.levels().last());
            lowest.map_or(Level::Aggregate, |(level, _)| level)
        };
        let mut streams = HashMap::with_hasher(FixedState::with_seed(seed));
        streams.extend(policies.iter().enumerate().map(|(index, policy)| (policy.name.clone(), index as u16)));
        Thinner {
            streams,
            floors: policies.iter().map(floor).collect(),
            decoders: policies.iter().map(decoder).collect(),
            phases: HashMap::with_hasher(FixedState::with_seed(seed)),
            samples: Samples::new(),
            body: BodyWriter::default(),
            payload: Vec::new(),
        }
    }

    /// By stream: the coarsest that its records may become; an aggregate for a stream of which no value is known.
    pub fn floors(&self) -> Box<[Level]> {
        self.floors.clone()
    }

    /// Rewrites `block` as `thinning` says for each stream's index; `None` if nothing is left out by that.
    ///
    /// # Errors
    /// If the block is damaged.
    pub fn thin(
        &mut self,
        codec: &mut Codec,
        block: &[u8],
        thinning: impl Fn(u16) -> Thinning,
    ) -> Result<Option<Thinned>, BlockError> {
        let (header, records) = codec.open(block)?;
        let records: Vec<Record<'_>> = records.collect::<Result<_, _>>()?;
        let (mut sources, source_of) = self.sources(&records, thinning);
        if sources.iter().all(|source| source.thinning == Thinning::None) {
            return Ok(None);
        }
        let (fates, mut groups) = self.decide(&header, &records, &mut sources, &source_of);
        self.body.clear();
        for (at, (record, fate)) in records.iter().zip(&fates).enumerate() {
            match *fate {
                Fate::Drop => {}
                Fate::Keep => self.body.push(record),
                Fate::Fold(group) if groups[group].last == at => {
                    let Group { aggregate, service_time, .. } = &mut groups[group];
                    self.payload.clear();
                    aggregate.encode(&mut self.payload);
                    let kind = RecordKind::Aggregate;
                    self.body.push(&Record { kind, service_time: *service_time, payload: &self.payload, ..*record });
                }
                Fate::Fold(_) => {}
            }
        }
        if self.body.count() == 0
            && let Some(last) = records.last()
        {
            self.body.push(last);
        }
        let removed = header.count.saturating_sub(self.body.count());
        // A long message may have become an aggregate of itself.
        if removed == 0 && groups.is_empty() {
            return Ok(None);
        }
        let header = BlockHeader {
            count: self.body.count(),
            raw_len: self.body.raw().len() as u32,
            fidelity: Fidelity::Thinned,
            ..header
        };
        drop(records);
        let block = codec.seal(&header, self.body.raw());
        Ok(Some(Thinned { header, block, removed }))
    }

    /// The block's sources with their number of raw messages, and each record's source.
    fn sources<'a>(&mut self, records: &[Record<'a>], thinning: impl Fn(u16) -> Thinning) -> (Vec<Source<'a>>, Vec<usize>) {
        let mut sources: Vec<Source<'a>> = Vec::new();
        let mut by_name: HashMap<(&str, &str), usize, FixedState> = HashMap::default();
        let mut source_of = Vec::with_capacity(records.len());
        for record in records {
            let at = *by_name.entry((record.stream, record.device)).or_insert_with(|| {
                let index = self.streams.get(record.stream).copied();
                let thinning = index.map_or(Thinning::None, &thinning);
                let device = record.device;
                sources.push(Source { device, index, thinning, phase: 0, count: 0, bytes: 0, group: 1, seen: 0, open: None });
                sources.len() - 1
            });
            if record.kind == RecordKind::Raw {
                sources[at].count += 1;
                sources[at].bytes += record.payload.len();
            }
            source_of.push(at);
        }
        for source in &mut sources {
            let decoder = source.index.and_then(|index| self.decoders[usize::from(index)].as_ref());
            if source.thinning == Thinning::Aggregate {
                let aggregate_len = decoder.map(|decoder| AGGREGATE_LEN + CHANNEL_LEN * decoder.channels());
                source.thinning = source.aggregates(aggregate_len);
            }
            if let (Some(index), Thinning::OneIn(_)) = (source.index, source.thinning) {
                if self.phases.len() >= PHASES_MAX {
                    self.phases.clear();
                }
                let phase = self.phases.entry((index, source.device.to_owned())).or_default();
                source.phase = *phase;
                *phase = phase.wrapping_add(source.count as u32);
            }
        }
        (sources, source_of)
    }

    fn decide(
        &mut self,
        header: &BlockHeader,
        records: &[Record<'_>],
        sources: &mut [Source<'_>],
        source_of: &[usize],
    ) -> (Vec<Fate>, Vec<Group>) {
        let mut groups: Vec<Group> = Vec::new();
        let mut fates = Vec::with_capacity(records.len());
        for (at, record) in records.iter().enumerate() {
            let source = &mut sources[source_of[at]];
            let fate = match source.thinning {
                _ if record.kind != RecordKind::Raw => Fate::Keep,
                Thinning::None => Fate::Keep,
                Thinning::OneIn(n) => source.take_turn(n),
                Thinning::Aggregate => self.fold(header, at, record, source, &mut groups),
            };
            source.seen += usize::from(record.kind == RecordKind::Raw);
            fates.push(fate);
        }
        (fates, groups)
    }

    fn fold(
        &mut self,
        header: &BlockHeader,
        at: usize,
        record: &Record<'_>,
        source: &mut Source<'_>,
        groups: &mut Vec<Group>,
    ) -> Fate {
        let decoder = source.index.and_then(|index| self.decoders[usize::from(index)].as_ref());
        let received_us = record.at_us as i64;
        let received_us = header.wall_offset_us.map_or(received_us, |offset| received_us.saturating_add(offset));
        if decoder.is_none_or(|decoder| decoder.decode(record.payload, &mut self.samples).is_err()) {
            return Fate::Keep;
        }
        let Some(folded) = Aggregate::of_message(&self.samples, received_us) else { return Fate::Keep };
        // What would be left over for a group of its own is taken into the one before.
        let left_min = (source.group / 4).max(1);
        let is_full = |group: &Group| group.len >= source.group && source.count - source.seen >= left_min;
        if let Some(open) = source.open
            && !is_full(&groups[open])
            && groups[open].aggregate.merge(&folded).is_ok()
        {
            (groups[open].last, groups[open].len) = (at, groups[open].len + 1);
            return Fate::Fold(open);
        }
        let service_time = header.wall_offset_us.is_none() && self.samples.time_us().is_none();
        source.open = Some(groups.len());
        groups.push(Group { aggregate: folded, service_time, last: at, len: 1 });
        Fate::Fold(groups.len() - 1)
    }
}

impl Source<'_> {
    /// Settles how many messages go into one aggregate of this length, or that aggregating does not pay.
    fn aggregates(&mut self, aggregate_len: Option<usize>) -> Thinning {
        let Some(aggregate_len) = aggregate_len.filter(|_| self.bytes > 0) else { return Thinning::OneIn(4) };
        self.group = (PART * aggregate_len * self.count).div_ceil(self.bytes).max(1);
        let pays = self.count >= self.group || 4 * aggregate_len <= self.bytes;
        if pays { Thinning::Aggregate } else { Thinning::OneIn(4) }
    }

    fn take_turn(&self, n: u32) -> Fate {
        let turn = self.phase.wrapping_add(self.seen as u32);
        if turn.is_multiple_of(n.max(1)) { Fate::Keep } else { Fate::Drop }
    }
}

#[cfg(test)]
mod tests;
