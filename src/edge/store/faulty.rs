//! A disk made of memory that fails on purpose: power cuts, kills and a limited size.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

use super::medium::{Medium, SetAsideError};

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// What is left of what was written and not yet synced when the machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// All of it: only the process was killed.
    Nothing,
    /// None of it.
    Everything,
    /// Each sector by itself, by a coin with this seed.
    Torn(u64),
}

/// When the machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Instead of the n-th sync, from 1.
    Sync(u64),
    /// Instead of the n-th write, from 1.
    Write(u64),
}

#[derive(Debug, Default)]
struct State {
    durable: Vec<u8>,
    current: Vec<u8>,
    dirty: BTreeSet<usize>,
    allocated: BTreeSet<usize>,
    syncs: u64,
    writes: u64,
    crash: Option<(Moment, Loss)>,
    is_dead: bool,
    /// Pages the disk has, the reserve's included.
    pages_limit: Option<usize>,
    reserve_pages: usize,
    reserve_present: bool,
    io_error_once: bool,
}

/// The disk; clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(super) struct MemoryDisk(Arc<Mutex<State>>);

impl MemoryDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds the disk")
    }

    /// Stops the machine at `moment`, counted from now.
    pub(super) fn crash_at(&self, moment: Moment, loss: Loss) {
        let mut state = self.state();
        (state.syncs, state.writes) = (0, 0);
        state.crash = Some((moment, loss));
    }

    /// True if the machine stopped.
    pub(super) fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    /// Starts the machine again.
    pub(super) fn revive(&self) {
        let mut state = self.state();
        state.is_dead = false;
        state.crash = None;
    }

    /// Syncs and writes since the last [`MemoryDisk::crash_at`].
    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.syncs, state.writes)
    }

    /// Gives the disk a size and a reserve, in bytes.
    pub(super) fn limit(&self, bytes: usize, reserve_bytes: usize) {
        let mut state = self.state();
        state.pages_limit = Some(bytes / PAGE);
        state.reserve_pages = reserve_bytes / PAGE;
    }

    /// Leaves nothing free but what the reserve holds.
    pub(super) fn take_the_rest(&self) {
        let mut state = self.state();
        state.pages_limit = state.pages_free().and_then(|free| state.pages_limit?.checked_sub(free));
    }

    /// True while the reserve is there.
    pub(super) fn has_reserve(&self) -> bool {
        self.state().reserve_present
    }

    /// Lets the next sync fail, once.
    pub(super) fn fail_next_sync(&self) {
        self.state().io_error_once = true;
    }

    /// Writes over a part of the file.
    pub(super) fn damage(&self, at: usize, bytes: &[u8]) {
        let mut state = self.state();
        let State { durable, current, .. } = &mut *state;
        for data in [durable, current] {
            data.resize(data.len().max(at + bytes.len()), 0);
            data[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        if self.is_dead { Err(io::Error::other("the machine is off")) } else { Ok(()) }
    }

    /// Stops the machine if it is time.
    fn strike(&mut self, now: Moment) -> io::Result<()> {
        self.check()?;
        let Some((moment, loss)) = self.crash else { return Ok(()) };
        if moment != now {
            return Ok(());
        }
        self.is_dead = true;
        match loss {
            Loss::Nothing => {}
            Loss::Everything => self.current.clone_from(&self.durable),
            Loss::Torn(seed) => self.tear(seed),
        }
        self.durable.clone_from(&self.current);
        self.dirty.clear();
        Err(io::Error::other("the machine stopped"))
    }

    fn tear(&mut self, seed: u64) {
        let mut coin = seed | 1;
        let mut heads = || {
            coin ^= coin << 13;
            coin ^= coin >> 7;
            coin ^= coin << 17;
            coin & 1 == 0
        };
        let mut torn = self.durable.clone();
        // A file that grew may or may not have its new length; what is kept beyond the end makes it long enough.
        if heads() {
            torn.resize(self.current.len(), 0);
        }
        for &sector in &self.dirty {
            let (start, end) = (sector * SECTOR, ((sector + 1) * SECTOR).min(self.current.len()));
            if start < end && heads() {
                torn.resize(torn.len().max(end), 0);
                torn[start..end].copy_from_slice(&self.current[start..end]);
            }
        }
        self.current = torn;
    }

    fn pages_free(&self) -> Option<usize> {
        let taken = self.allocated.len() + if self.reserve_present { self.reserve_pages } else { 0 };
        self.pages_limit.map(|limit| limit.saturating_sub(taken))
    }
}

impl StorageBackend for MemoryDisk {
    fn len(&self) -> Result<u64, io::Error> {
        let state = self.state();
        state.check()?;
        Ok(state.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let state = self.state();
        state.check()?;
        let start = offset as usize;
        let from = state.current.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut state = self.state();
        state.check()?;
        state.current.resize(len as usize, 0);
        let pages = (len as usize).div_ceil(PAGE);
        state.allocated.retain(|&page| page < pages);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut state = self.state();
        state.syncs += 1;
        let now = Moment::Sync(state.syncs);
        state.strike(now)?;
        if std::mem::take(&mut state.io_error_once) {
            return Err(io::Error::other("the card did not answer"));
        }
        let State { durable, current, dirty, .. } = &mut *state;
        durable.resize(current.len(), 0);
        for sector in std::mem::take(dirty) {
            let (start, end) = (sector * SECTOR, ((sector + 1) * SECTOR).min(current.len()));
            if start < end {
                durable[start..end].copy_from_slice(&current[start..end]);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut state = self.state();
        state.writes += 1;
        let now = Moment::Write(state.writes);
        state.strike(now)?;
        let (start, end) = (offset as usize, offset as usize + data.len());
        let pages = start / PAGE..end.div_ceil(PAGE);
        let new = pages.clone().filter(|page| !state.allocated.contains(page)).count();
        if state.pages_free().is_some_and(|free| new > free) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.allocated.extend(pages);
        let len = state.current.len().max(end);
        state.current.resize(len, 0);
        state.current[start..end].copy_from_slice(data);
        state.dirty.extend(start / SECTOR..end.div_ceil(SECTOR));
        Ok(())
    }
}

impl Medium for MemoryDisk {
    fn open(&mut self) -> io::Result<Box<dyn StorageBackend>> {
        self.state().check()?;
        Ok(Box::new(self.clone()))
    }

    fn path(&self) -> &Path {
        Path::new("memory")
    }

    fn opening_begins(&mut self) -> u8 {
        0
    }

    fn opening_ends(&mut self) {}

    fn release_reserve(&mut self) -> bool {
        std::mem::take(&mut self.state().reserve_present)
    }

    fn restore_reserve(&mut self) -> bool {
        let mut state = self.state();
        if !state.reserve_present && state.pages_free().is_none_or(|free| free >= 2 * state.reserve_pages) {
            state.reserve_present = true;
        }
        state.reserve_present
    }

    fn free_bytes(&self) -> Option<u64> {
        self.state().pages_free().map(|pages| (pages * PAGE) as u64)
    }

    fn set_aside(&mut self) -> Result<PathBuf, SetAsideError> {
        let mut state = self.state();
        state.current.clear();
        state.durable.clear();
        state.allocated.clear();
        Ok(PathBuf::from("memory.quarantine"))
    }
}
