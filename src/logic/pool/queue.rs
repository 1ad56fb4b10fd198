//! Requests of one class, in turns by gateway.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A queue for each gateway that has something waiting, and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct ClassQueue {
    turns: VecDeque<Arc<str>>,
    queues: BTreeMap<Arc<str>, VecDeque<u64>>,
    len: usize,
}

impl ClassQueue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many of a gateway wait.
    pub(super) fn len_of(&self, gateway: &str) -> usize {
        self.queues.get(gateway).map_or(0, VecDeque::len)
    }

    /// A gateway that had nothing waiting has its turn after all that have.
    pub(super) fn push(&mut self, gateway: &Arc<str>, id: u64) {
        let queue = self.queues.entry(gateway.clone()).or_default();
        if queue.is_empty() {
            self.turns.push_back(gateway.clone());
        }
        queue.push_back(id);
        self.len += 1;
    }

    /// The oldest request of the gateway whose turn it is.
    pub(super) fn pop(&mut self) -> Option<u64> {
        let gateway = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&gateway)?;
        let id = queue.pop_front()?;
        self.len -= 1;
        if queue.is_empty() {
            self.queues.remove(&gateway);
        } else {
            self.turns.push_back(gateway);
        }
        Some(id)
    }

    /// Takes a request out of the middle.
    pub(super) fn remove(&mut self, gateway: &str, id: u64) {
        let Some(queue) = self.queues.get_mut(gateway) else { return };
        let Some(at) = queue.iter().position(|&waiting| waiting == id) else { return };
        queue.remove(at);
        self.len -= 1;
        if queue.is_empty() {
            self.queues.remove(gateway);
            self.turns.retain(|turn| **turn != *gateway);
        }
    }

    /// Requests that are before the next one of this gateway: of each other gateway as many as it has turns until then.
    pub(super) fn turns_before(&self, gateway: &str) -> usize {
        let own = self.len_of(gateway);
        self.queues.values().map(|queue| queue.len().min(own + 1)).sum()
    }

    /// Gateways that have something waiting: a round is a turn of each.
    pub(super) fn gateways(&self) -> usize {
        self.turns.len()
    }

    /// The newest request of the gateway that has most waiting, and how many these are. Of several it is the one whose turn is
    /// last, which is another each time.
    pub(super) fn newest_of_longest(&self) -> Option<(u64, usize)> {
        // Of equals `max_by_key` takes the last.
        let longest = self.turns.iter().filter_map(|gateway| self.queues.get(gateway)).max_by_key(|queue| queue.len())?;
        longest.back().map(|&id| (id, longest.len()))
    }
}
