//! Writes the body of a block whose records have gaps between their sequence numbers: one that was thinned.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::{FLAG_SERVICE_TIME, Record, TAG_CHUNK, TAG_SOURCE};
use crate::varint;

/// A raw body in the making, one chunk; reused from one to the next.
#[derive(Debug, Default)]
pub struct BodyWriter {
    raw: Vec<u8>,
    sources: HashMap<(String, String), u64, FixedState>,
    next_seq: u64,
    at_us: u64,
    count: u32,
}

impl BodyWriter {
    /// Forgets all records.
    pub fn clear(&mut self) {
        self.raw.clear();
        self.sources.clear();
        self.count = 0;
    }

    /// Appends a record; its number must be above that of the one before.
    pub fn push(&mut self, record: &Record<'_>) {
        if self.raw.is_empty() {
            (self.next_seq, self.at_us) = (record.seq, record.at_us);
            self.raw.push(TAG_CHUNK);
            varint::put(&mut self.raw, record.seq);
            varint::put(&mut self.raw, record.at_us);
        }
        debug_assert!(record.seq >= self.next_seq, "sequence numbers rise");
        let source = self.source(record);
        self.raw.push(record.kind.tag() | if record.service_time { FLAG_SERVICE_TIME } else { 0 });
        varint::put(&mut self.raw, source);
        varint::put(&mut self.raw, record.seq - self.next_seq);
        varint::put(&mut self.raw, varint::zigzag(record.at_us.wrapping_sub(self.at_us) as i64));
        varint::put(&mut self.raw, record.payload.len() as u64);
        self.raw.extend_from_slice(record.payload);
        (self.next_seq, self.at_us) = (record.seq + 1, record.at_us);
        self.count += 1;
    }

    fn source(&mut self, record: &Record<'_>) -> u64 {
        let next = self.sources.len() as u64;
        let index = *self.sources.entry((record.stream.to_owned(), record.device.to_owned())).or_insert(next);
        if index == next {
            self.raw.push(TAG_SOURCE);
            for name in [record.stream, record.device] {
                varint::put(&mut self.raw, name.len() as u64);
                self.raw.extend_from_slice(name.as_bytes());
            }
        }
        index
    }

    /// Records since the last [`BodyWriter::clear`].
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The body.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }
}
