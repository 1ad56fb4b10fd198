//! What is given up: too old, too much, or unreadable. It becomes a void, which is told to the cloud.

use std::collections::BTreeSet;

use super::lane::{Block, Disk, Position};
use super::{CHECK_US, HELD_EPOCHS_MAX, Lanes, TIDY_UNSAFE_US, VOIDS_COUNT_MAX};
use crate::ids::{BlockKey, Class, Epoch, Void, VoidReason};
use crate::store::SeqRange;

impl Lanes {
    /// Voids and removes what was found unreadable: from its first number to the next block that is sound.
    ///
    /// Where none follows, only the first number is certain. What the cloud has of the range meanwhile stays there.
    pub(super) fn void_damaged(&mut self, now_us: u64, damaged: &[BlockKey]) {
        let keys: BTreeSet<BlockKey> = damaged.iter().copied().collect();
        for &key in &keys {
            let Some(order) = self.order_of(key.epoch) else { continue };
            let lane = &self.lanes[key.lane.index()];
            let before = lane.blocks.range((order, 0)..=(order, key.first_seq)).next_back();
            if before.is_some_and(|(_, block)| block.header.last_seq >= key.first_seq) {
                continue;
            }
            let sound = lane.blocks.range((order, key.first_seq)..(order + 1, 0)).next().map(|(&(_, first), _)| first);
            let end = BlockKey { first_seq: u64::MAX, ..key };
            let broken = keys.range(key..=end).nth(1).map(|next| next.first_seq);
            let next = sound.into_iter().chain(broken).min().unwrap_or(key.first_seq + 1);
            self.counters[key.lane.index()].corrupt += next - key.first_seq;
            self.note_void(Void { key, last_seq: next - 1, reason: VoidReason::Corrupt });
            self.pending_deletes.push(SeqRange { key, last_seq: next - 1 });
            self.tidy_since_us.get_or_insert(now_us);
        }
    }

    /// Removes from disk what is there of a block that is gone.
    pub(super) fn forget(&mut self, now_us: u64, block: &Block) {
        if block.disk == Disk::Absent && !block.fragmented {
            return;
        }
        self.tidy_since_us.get_or_insert(now_us);
        let range = SeqRange { key: block.header.key, last_seq: block.header.last_seq };
        match self.pending_deletes.last_mut() {
            // Acks come in order, so ranges mostly grow at their end.
            Some(tail)
                if tail.key.lane == range.key.lane
                    && tail.key.epoch == range.key.epoch
                    && tail.last_seq + 1 == range.key.first_seq =>
            {
                tail.last_seq = range.last_seq;
            }
            _ => self.pending_deletes.push(range),
        }
    }

    /// Enforces TTLs and caps; call at [`Lanes::deadline_us`].
    pub fn tick(&mut self, now_us: u64) {
        if now_us < self.checked_us + CHECK_US {
            return;
        }
        self.checked_us = now_us;
        for class in Class::ALL {
            let policy = self.lanes[class.index()].policy;
            if let Some(ttl_us) = policy.ttl_us {
                // A block says when its first record came; by then the last has outlived the TTL too.
                let oldest_us = now_us.saturating_sub(ttl_us + policy.span_us_max());
                if self.lanes[class.index()].staging.born_us().is_some_and(|born| born < oldest_us) {
                    self.seal(now_us, class);
                }
                while let Some((&position, _)) =
                    self.lanes[class.index()].blocks.first_key_value().filter(|(_, b)| b.header.born_us < oldest_us)
                {
                    self.give_up(now_us, class, position, VoidReason::Expired);
                }
            }
            self.enforce_cap(now_us, class);
        }
    }

    pub(super) fn enforce_cap(&mut self, now_us: u64, class: Class) {
        while self.lanes[class.index()].bytes > self.lanes[class.index()].policy.cap_bytes {
            let Some((&position, _)) = self.lanes[class.index()].blocks.first_key_value() else { return };
            self.give_up(now_us, class, position, VoidReason::Evicted);
        }
    }

    /// Gives a block up: it becomes a void.
    pub(super) fn give_up(&mut self, now_us: u64, class: Class, position: Position, reason: VoidReason) {
        let current = self.current();
        let lane = &mut self.lanes[class.index()];
        let Some(block) = lane.remove(position) else { return };
        let (key, last_seq) = (block.header.key, block.header.last_seq);
        if position.0 == current && !lane.safe.covers(key.first_seq..=last_seq) {
            // Somebody may wait for its PUBACK, which goes out when the void is on record.
            self.pacer.due_by(now_us + TIDY_UNSAFE_US);
        }
        let counters = &mut self.counters[class.index()];
        let count = u64::from(block.header.count);
        match reason {
            VoidReason::Evicted => {
                counters.evicted += count;
                self.lanes[class.index()].evicted_bytes += u64::from(block.len);
            }
            VoidReason::Expired => counters.expired += count,
            VoidReason::Corrupt => counters.corrupt += count,
        }
        self.note_void(Void { key, last_seq, reason });
        self.tidy_since_us.get_or_insert(now_us);
        self.forget(now_us, &block);
    }

    /// Gives up what is left of the oldest runs if there are more than a Hello can name. That takes 32,768 starts with data and
    /// without an uplink. The cloud is told nothing: it takes an epoch that is no longer named to have had nothing more to say.
    pub(super) fn give_up_oldest_epochs(&mut self, now_us: u64) {
        let surplus = (self.epochs.len() - 1).saturating_sub(HELD_EPOCHS_MAX);
        let (gone, end) = (self.epochs[..surplus].iter().copied().collect::<BTreeSet<Epoch>>(), surplus as u32);
        for class in Class::ALL {
            let positions: Vec<_> = self.lanes[class.index()].blocks.range(..(end, 0)).map(|(&at, _)| at).collect();
            for position in positions {
                let block = self.lanes[class.index()].remove(position).expect("listed above");
                self.counters[class.index()].evicted += u64::from(block.header.count);
                self.forget(now_us, &block);
            }
        }
        let keys: Vec<BlockKey> = self.voids.keys().copied().filter(|key| gone.contains(&key.epoch)).collect();
        for key in keys {
            self.voids.remove(&key);
            self.voids_to_send.remove(&key);
            self.voids_to_write.retain(|void| void.key != key);
            self.voids_to_forget.push(key);
            self.tidy_since_us.get_or_insert(now_us);
        }
    }

    /// Remembers a void; one that continues another becomes part of it, so that a long outage makes few. What lies between
    /// them and is not held is with the cloud, which takes of a void only what it does not have.
    pub(super) fn note_void(&mut self, mut void: Void) {
        let before = self.voids.range(..void.key).next_back().map(|(_, before)| *before);
        if let Some(before) = before.filter(|before| self.continues(before, &void)) {
            self.voids_relabelled += u64::from(before.reason != void.reason);
            (void.key, void.last_seq) = (before.key, void.last_seq.max(before.last_seq));
        }
        self.voids.insert(void.key, void);
        self.voids_to_write.retain(|other| other.key != void.key);
        self.voids_to_write.push(void);
        self.voids_to_send.insert(void.key);
    }

    fn continues(&self, before: &Void, void: &Void) -> bool {
        if (before.key.lane, before.key.epoch) != (void.key.lane, void.key.epoch) {
            return false;
        }
        if before.reason != void.reason && self.voids.len() < VOIDS_COUNT_MAX {
            return false;
        }
        let Some(order) = self.order_of(void.key.epoch) else { return false };
        let between = (order, before.last_seq)..(order, void.key.first_seq);
        self.lanes[void.key.lane.index()].blocks.range(between).next().is_none()
    }

    /// Voids that were told with the reason of a later one, because there were too many.
    pub fn voids_relabelled(&self) -> u64 {
        self.voids_relabelled
    }

    /// Voids to tell the cloud now; each once a session.
    pub fn take_voids_to_send(&mut self) -> Vec<Void> {
        let keys = std::mem::take(&mut self.voids_to_send);
        keys.iter().filter_map(|key| self.voids.get(key).copied()).collect()
    }

    /// Voids the cloud has not acknowledged.
    pub fn void_count(&self) -> usize {
        self.voids.len()
    }
}
