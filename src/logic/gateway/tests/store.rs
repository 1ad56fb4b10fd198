//! The buffer on disk: what is committed, and nothing else, survives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::{ids_of, thinned_in};
use crate::block::Codec;
use crate::ids::{BlockKey, Class, Epoch, Void};
use crate::ranges::RangeSet;
use crate::store::{CommitRequest, Held, PacketIdChange, Put, StoreError};

#[derive(Default)]
pub(super) struct Store {
    /// Sealed blocks and fragments, as the two tables of the real one.
    tables: [BTreeMap<BlockKey, (Put, Vec<u64>)>; 2],
    pub(super) voids: BTreeMap<BlockKey, Void>,
    ids: BTreeMap<u64, u32>,
    packet_ids: BTreeMap<(Arc<str>, u16), u64>,
    /// Order of runs.
    pub(super) epochs: Vec<Epoch>,
    pub(super) bytes: u64,
    pub(super) bytes_max: u64,
    pub(super) commits: u64,
}

impl Store {
    pub(super) fn new() -> Store {
        Store { bytes_max: u64::MAX, ..Store::default() }
    }

    pub(super) fn apply(&mut self, codec: &mut Codec, request: &CommitRequest) -> Result<(), StoreError> {
        let freed: u64 = request
            .deletes
            .iter()
            .flat_map(|range| self.within(range.key, range.last_seq))
            .collect::<BTreeSet<_>>()
            .iter()
            .map(|&(table, key)| self.tables[table][&key].0.block.len() as u64)
            .sum();
        let more: u64 = request.puts.iter().map(|put| put.block.len() as u64).sum();
        if more > 0 && self.bytes - freed + more > self.bytes_max {
            return Err(StoreError::Full);
        }
        for range in &request.deletes {
            for (table, key) in self.within(range.key, range.last_seq) {
                let (put, ids) = self.tables[table].remove(&key).expect("listed above");
                self.bytes -= put.block.len() as u64;
                self.forget(&ids);
            }
        }
        for put in &request.puts {
            let ids = ids_of(codec, &put.block);
            for &id in &ids {
                *self.ids.entry(id).or_default() += 1;
            }
            self.bytes += put.block.len() as u64;
            if let Some((old, ids)) = self.tables[usize::from(put.fragment)].insert(put.header.key, (put.clone(), ids)) {
                self.bytes -= old.block.len() as u64;
                self.forget(&ids);
            }
        }
        for key in &request.voids_acked {
            self.voids.remove(key);
        }
        for void in &request.voids {
            self.voids.insert(void.key, *void);
        }
        for PacketIdChange { session, packet_id, fingerprint } in &request.packet_ids {
            match fingerprint {
                Some(fingerprint) => drop(self.packet_ids.insert((session.clone(), *packet_id), *fingerprint)),
                None => drop(self.packet_ids.remove(&(session.clone(), *packet_id))),
            }
        }
        self.commits += 1;
        Ok(())
    }

    fn within(&self, key: BlockKey, last_seq: u64) -> Vec<(usize, BlockKey)> {
        let last = BlockKey { first_seq: last_seq, ..key };
        (0..2).flat_map(|table| self.tables[table].range(key..=last).map(move |(&key, _)| (table, key))).collect()
    }

    fn forget(&mut self, ids: &[u64]) {
        for id in ids {
            let count = self.ids.get_mut(id).expect("counted when it was put");
            *count -= 1;
            if *count == 0 {
                self.ids.remove(id);
            }
        }
    }

    pub(super) fn load(&self, key: BlockKey) -> Option<Bytes> {
        self.tables.iter().find_map(|table| table.get(&key)).map(|(put, _)| put.block.clone())
    }

    pub(super) fn packet_ids(&self) -> Vec<PacketIdChange> {
        let change = |((session, packet_id), fingerprint): (&(Arc<str>, u16), &u64)| PacketIdChange {
            session: session.clone(),
            packet_id: *packet_id,
            fingerprint: Some(*fingerprint),
        };
        self.packet_ids.iter().map(change).collect()
    }

    /// How often each message is stored.
    pub(super) fn copies(&self) -> &BTreeMap<u64, u32> {
        &self.ids
    }

    pub(super) fn has_id(&self, id: u64) -> bool {
        self.ids.contains_key(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.iter().all(BTreeMap::is_empty)
    }

    /// Sequence numbers given up in this epoch and lane.
    pub(super) fn voided(&self, epoch: Epoch, lane: Class) -> Vec<(u64, u64)> {
        let of = self.voids.values().filter(|void| void.key.epoch == epoch && void.key.lane == lane);
        of.map(|void| (void.key.first_seq, void.last_seq)).collect()
    }

    /// Adds to `all` the numbers of this epoch and lane whose messages blocks lack, because they were thinned where they lie.
    pub(super) fn add_thinned(&self, codec: &mut Codec, epoch: Epoch, lane: Class, all: &mut RangeSet) {
        let puts = self.tables.iter().flat_map(|table| table.values()).map(|(put, _)| put);
        for put in puts.filter(|put| put.header.key.epoch == epoch && put.header.key.lane == lane) {
            thinned_in(codec, &put.block).iter().for_each(|range| all.insert(range));
        }
    }

    /// What a new process finds: oldest run first, within a run by lane and sequence number.
    pub(super) fn held(&self) -> Vec<Held> {
        let order = |key: &BlockKey| (self.epochs.iter().position(|&e| e == key.epoch), *key);
        let mut held: Vec<_> = self.tables.iter().flat_map(|table| table.values()).map(|(put, _)| put).collect();
        held.sort_by_key(|put| order(&put.header.key));
        // A fragment and a block that overlap would be one record twice.
        for pair in held.windows(2) {
            let (a, b) = (pair[0].header, pair[1].header);
            let apart = (a.key.lane, a.key.epoch) != (b.key.lane, b.key.epoch) || a.last_seq < b.key.first_seq;
            assert!(apart, "the buffer holds {a:?} and {b:?}");
        }
        held.into_iter().map(|put| Held { header: put.header, len: put.block.len() as u32 }).collect()
    }
}
