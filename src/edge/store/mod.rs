//! The durable buffer of the box: blocks in one redb file, written by one thread.
//!
//! A record is safe when the commit with its block has returned. One [`CommitRequest`] is one transaction: all of it or
//! nothing, whatever the power does. Each 4 KiB page costs flash, so a group commit puts its small block into a table of
//! its own, and times are written along at most once a minute: the newest `born_us` of what is stored shows the service
//! time well enough. Measured with the buffer holding 0 to 480 MB of 12 KiB blocks, bytes written (fsyncs) a commit:
//!
//! ```text
//! commit of                         plain           quick_repair, empty   quick_repair, 480 MB
//! a fragment of 300 bytes           24,076 (1)      36,548 (2)            163,660 (2)
//! the same, and service_us          28,992 (1)      41,600 (2)            168,576 (2)
//! a block of 12 KiB and its index   57,800 (1)      53,819 (2)            197,384 (2)
//! a merge: block, fragments gone    65,105 (1)      68,497 (2)            204,689 (2)
//! deleting a block                  41,280 (1)      44,945 (2)            180,864 (2)
//! ```
//!
//! Without `quick_repair` the file is read twice after a crash (0.6 s for 480 MB here, 30 s at 45 MB/s); with it, opening
//! takes 8 ms. So commits go without, and [`Store::settle`] makes one with it once the buffer is left alone: a power cut
//! at most other times finds a file that opens at once. It is also on while the disk is nearly full, because each refused
//! write means opening the file again. `examples/store_bench.rs` measures all this.
//!
//! A file that cannot be opened never keeps the box from starting: it is set aside under a new name and reported.

mod database;
mod inspect;
mod medium;
mod tables;
mod thread;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use redb::Database;
use weir_host::clock::{BootTime, ClockMark};
use weir_logic::ids::{BlockKey, Epoch, Void};
use weir_logic::store::{CommitRequest, Held, PacketIdChange, StoreError};

use database::{Fault, Work, fault_of, open_database, relief, unused};
use medium::{Counts, FileMedium, Medium, SetAsideError};
use tables::{Meta, Scan};

pub use inspect::{BufferFile, FileState, InspectError};
pub use thread::{StoreEvent, StoreInput, StoreThread};

/// Service time that may pass before it is written along with a commit: the most by which a boot can fall behind.
const META_INTERVAL_US: u64 = 60_000_000;
/// Files below this are read in a moment after a crash (45 MB/s is a slow SD card), so settling them is not worth it.
const SETTLE_FILE_BYTES_MIN: u64 = 32 << 20;
/// With less than this many reserves free, commits prepare for being refused.
const TIGHT_RESERVES: u64 = 4;

/// How a buffer is opened.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// Memory for pages of the file, in bytes.
    pub cache_bytes: usize,
    /// Disk space that blocks may take, in bytes; commits beyond it are refused with [`StoreError::Full`]. Blocks count
    /// as redb stores them: in powers of two from 4 KiB on. The length of the file can be twice that (redb doubles it),
    /// but what was never written takes no space.
    pub size_limit: u64,
    /// Size of the file given up first when the disk is full, in bytes; 0 for none.
    pub reserve_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions { cache_bytes: 4 << 20, size_limit: 1 << 30, reserve_bytes: 8 << 20 }
    }
}

/// The time of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreTime {
    /// Service time in microseconds.
    pub service_us: u64,
    /// Unix time in microseconds; `None` while the clock is not trusted.
    pub wall_us: Option<i64>,
    /// The same moment in this boot of the machine, if that can be told from others.
    pub boot: Option<BootTime>,
}

/// What was found at opening.
#[derive(Debug)]
pub struct Opened {
    /// Every block and fragment: oldest run first, within a run by lane and then sequence number.
    pub held: Vec<Held>,
    /// Keys under which there is something that is not a block; delete them, or they are reported again.
    pub damaged: Vec<BlockKey>,
    /// Voids that the cloud has not acknowledged.
    pub voids: Vec<Void>,
    /// Packet ids of brokers' messages that were not released.
    pub packet_ids: Vec<PacketIdChange>,
    /// Service time in microseconds behind which no later one may fall.
    pub service_us: u64,
    /// What an earlier run wrote down last, to go on from.
    pub mark: ClockMark,
    /// Last trusted Unix time in microseconds: now cannot be earlier.
    pub wall_us: Option<i64>,
    /// The file that was set aside, if one was.
    pub quarantined: Option<Quarantined>,
    /// True if the file had not been closed or settled, so that all of it was read.
    pub repaired: bool,
    /// What opening took in milliseconds.
    pub open_ms: u64,
}

/// A file that could not be opened and got another name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Its new name.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Why there is no buffer.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the file.
    #[error("buffer {} is in use by another process: stop it first", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// No space, even with the reserve given up.
    #[error("buffer {} cannot be opened because the disk is full: make room", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged, and so many were set aside before that somebody has to look at them.
    #[error(
        "buffer {} cannot be opened ({reason}), and there are {} files set aside beside it already: export what is needed \
         with `weir buffer export`, then move or delete them",
        path.display(), medium::QUARANTINE_FILES_MAX
    )]
    QuarantineFull {
        /// The file.
        path: PathBuf,
        /// Why it cannot be opened.
        reason: String,
    },
    /// The file system refuses.
    #[error("buffer {} cannot be opened: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
}

/// What a commit cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommitStats {
    /// Bytes handed to the file system, failed attempts included.
    pub bytes_written: u64,
    /// Calls of fdatasync, failed attempts included.
    pub syncs: u64,
    /// Time it took in microseconds.
    pub took_us: u64,
    /// Disk space that blocks and fragments take now, in bytes.
    pub stored_bytes: u64,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// True if the disk was full and the reserve has been given up.
    pub reserve_released: bool,
}

/// The buffer's file, open for writing.
#[derive(Debug)]
pub struct Store {
    medium: Box<dyn Medium>,
    options: StoreOptions,
    counts: Arc<Counts>,
    /// `None` after an error, until the next call opens it again.
    db: Option<Database>,
    stored_bytes: u64,
    /// In the order of the runs.
    epochs: Vec<(u64, Epoch)>,
    /// Ordinals of runs of which nothing was left when the file was opened.
    epochs_unused: Vec<u64>,
    /// Times as they stand in the file.
    meta: Meta,
    reserve_present: bool,
    /// Set when the disk was full, until the reserve is back: what blocks may take, in bytes, so that deletions find free
    /// pages in the file.
    full_limit: Option<u64>,
    /// True if the last commit left a file that must be read in whole after a crash.
    unsettled: bool,
}

impl Store {
    /// Opens the buffer at `path` or makes it.
    ///
    /// After a crash this reads the whole file twice, unless the buffer was settled before: [`Opened::repaired`]. A file
    /// that cannot be opened is renamed to `<path>.quarantine-<n>` and a new one started: [`Opened::quarantined`]. Beside
    /// the file lie `<path>.reserve` and, while it is being opened, `<path>.opening`: a file at which three starts in a row
    /// came to an end is set aside too.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, options: StoreOptions) -> Result<(Store, Opened), OpenError> {
        Store::open_medium(Box::new(FileMedium::new(path, options.reserve_bytes)), options)
    }

    fn open_medium(mut medium: Box<dyn Medium>, options: StoreOptions) -> Result<(Store, Opened), OpenError> {
        let start = Instant::now();
        let path = medium.path().to_owned();
        let counts = Arc::new(Counts::default());
        let mut quarantined = None;
        let mut retried = false;
        if medium::openings_exhausted(medium.opening_begins()) {
            quarantined = Some(set_aside(&mut *medium, "the last starts all ended while it was being opened".to_owned())?);
        }
        let opened = loop {
            let fault = match open_database(&mut *medium, &options, &counts) {
                Ok(opened) => break Ok(opened),
                Err(fault) => fault,
            };
            match fault {
                Fault::Locked => break Err(OpenError::Locked { path }),
                Fault::Full if medium.release_reserve() => {}
                Fault::Full | Fault::OverLimit => break Err(OpenError::Full { path }),
                // Reading may fail for a moment; a file is given up only when it fails twice.
                Fault::Damaged(_) | Fault::Io(_) if !retried => retried = true,
                Fault::Damaged(reason) if quarantined.is_none() => match set_aside(&mut *medium, reason) {
                    Ok(aside) => quarantined = Some(aside),
                    Err(err) => break Err(err),
                },
                Fault::Damaged(reason) | Fault::Io(reason) => break Err(OpenError::Io { path, reason }),
            }
        };
        medium.opening_ends();
        let repaired = counts.repaired.load(Ordering::Relaxed);
        let (db, scan) = opened?;
        let reserve_present = medium.restore_reserve();
        let mut store = Store {
            medium,
            options,
            counts,
            db: Some(db),
            stored_bytes: 0,
            epochs: Vec::new(),
            epochs_unused: Vec::new(),
            meta: Meta::default(),
            reserve_present,
            full_limit: None,
            unsettled: true,
        };
        store.take_over(&scan);
        store.epochs_unused = unused(&scan);
        let opened = Opened {
            service_us: scan.service_us(),
            mark: ClockMark { service_us: scan.meta.service_us, boot: scan.meta.boot },
            wall_us: scan.meta.wall_us,
            held: scan.held,
            damaged: scan.damaged,
            voids: scan.voids,
            packet_ids: scan.packet_ids,
            quarantined,
            repaired,
            open_ms: start.elapsed().as_millis() as u64,
        };
        Ok((store, opened))
    }

    /// Writes one request in one transaction and waits until the disk has it.
    ///
    /// When the disk is full, the reserve is given up for the request's deletions (with their voids) alone, unless what it
    /// puts replaces what they delete, and then all of it is tried again. From then on puts are refused without touching
    /// the disk until enough was deleted, or the reserve is back, which it is once twice its size is free.
    ///
    /// # Errors
    /// `Full` if there is no space, or the request exceeds [`StoreOptions::size_limit`]; nothing was put, but deletions may
    /// have been carried out. `Io` for anything else; the request may or may not be in the file. Either way the buffer
    /// is open again if that was possible, and the same request can be given again: it means the same the second time.
    pub fn commit(&mut self, request: &CommitRequest, time: StoreTime) -> Result<CommitStats, StoreError> {
        self.commit_all(&[request], time)
    }

    /// Writes several requests, in their order, in one transaction.
    fn commit_all(&mut self, requests: &[&CommitRequest], time: StoreTime) -> Result<CommitStats, StoreError> {
        let start = Instant::now();
        let (bytes_before, syncs_before) = self.written();
        let reserve_before = self.reserve_present;
        if requests.iter().all(|request| request.is_empty()) && !self.is_meta_due(time) {
            return Ok(self.stats(start, bytes_before, syncs_before, false));
        }
        if self.full_limit.is_some() {
            // Others may have made room meanwhile, and nothing be left here to delete.
            self.restore_reserve();
        }
        match self.attempt(requests, time) {
            Ok(()) => {}
            Err(Fault::OverLimit) => return Err(StoreError::Full),
            Err(Fault::Full) => self.commit_when_full(requests, time)?,
            Err(fault) => return Err(self.fail(fault)),
        }
        let released = reserve_before && !self.reserve_present;
        if !self.reserve_present || self.full_limit.is_some() {
            self.restore_reserve();
        }
        Ok(self.stats(start, bytes_before, syncs_before, released))
    }

    /// The reserve is for deletions alone: what is put must find room elsewhere, or nothing could be deleted any more.
    fn commit_when_full(&mut self, requests: &[&CommitRequest], time: StoreTime) -> Result<(), StoreError> {
        let margin = self.options.reserve_bytes / 4;
        let limit = self.stored_bytes.saturating_sub(margin);
        self.full_limit = Some(self.full_limit.map_or(limit, |before| before.min(limit)));
        let relief: Vec<CommitRequest> = requests.iter().map(|request| relief(request)).collect();
        let relief: Vec<&CommitRequest> = relief.iter().filter(|request| !request.is_empty()).collect();
        if relief.is_empty() {
            return Err(self.fail(Fault::Full));
        }
        self.medium.release_reserve();
        self.reserve_present = false;
        for requests in [&relief[..], requests] {
            match self.attempt(requests, time) {
                Ok(()) => {}
                Err(Fault::OverLimit) => return Err(StoreError::Full),
                Err(fault) => return Err(self.fail(fault)),
            }
        }
        Ok(())
    }

    /// Reads a block, sealed or not, as it was put; `None` if it is not there. Its checksum is for the caller to check.
    ///
    /// # Errors
    /// `Io` if the file cannot be read; the buffer is open again if that was possible.
    pub fn load(&mut self, key: BlockKey) -> Result<Option<Bytes>, StoreError> {
        let loaded = match self.database() {
            Ok(db) => tables::load(db, key).map_err(fault_of),
            Err(fault) => Err(fault),
        };
        loaded.map_err(|fault| self.fail(fault))
    }

    /// Prepares the file for being opened at once after a crash, if anything was written since the last time.
    ///
    /// Worth its up to 165 KB of flash when nothing was written for a while. Files under 32 MiB are left as they are.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn settle(&mut self, time: StoreTime) -> Result<(), StoreError> {
        if !self.unsettled || self.counts.file_bytes.load(Ordering::Relaxed) < SETTLE_FILE_BYTES_MIN {
            return Ok(());
        }
        let meta = self.is_meta_due(time).then(|| self.meta_of(time));
        let written = self.transact(&[], meta, true);
        written.map_err(|fault| self.fail(fault))
    }

    /// Writes the time and closes the file, which then opens at once.
    ///
    /// # Errors
    /// As [`Store::commit`]; what was committed before is safe all the same.
    pub fn close(mut self, time: StoreTime) -> Result<(), StoreError> {
        let meta = self.meta_of(time);
        if meta != self.meta
            && let Err(fault) = self.transact(&[], Some(meta), false)
        {
            return Err(self.fail(fault));
        }
        self.db.take().map_or(Ok(()), Database::close).map_err(|err| StoreError::Io(err.to_string()))
    }

    /// Disk space that blocks and fragments take, in bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    fn attempt(&mut self, requests: &[&CommitRequest], time: StoreTime) -> Result<(), Fault> {
        let quick = self.is_tight();
        let meta = self.is_meta_due(time).then(|| self.meta_of(time));
        let result = self.transact(requests, meta, quick);
        if result.as_ref().is_err_and(|fault| !matches!(fault, Fault::OverLimit)) {
            // redb refuses everything from the first error on.
            self.db = None;
        }
        result
    }

    fn restore_reserve(&mut self) {
        self.reserve_present = self.medium.restore_reserve();
        let wanted = self.options.reserve_bytes.saturating_mul(2);
        if self.reserve_present && self.medium.free_bytes().is_none_or(|free| free >= wanted) {
            self.full_limit = None;
        }
    }

    /// True if the disk may refuse soon.
    fn is_tight(&self) -> bool {
        let wanted = self.options.reserve_bytes.saturating_mul(TIGHT_RESERVES);
        !self.reserve_present || self.full_limit.is_some() || self.medium.free_bytes().is_some_and(|free| free < wanted)
    }

    fn transact(&mut self, requests: &[&CommitRequest], meta: Option<Meta>, quick: bool) -> Result<(), Fault> {
        self.database()?;
        let added = self.new_epochs(requests);
        let removed = if added.is_empty() { &[][..] } else { &self.epochs_unused[..] };
        let Some(db) = &self.db else { return Err(Fault::Io("closed".to_owned())) };
        let limit = self.full_limit.map_or(self.options.size_limit, |limit| limit.min(self.options.size_limit));
        let room = limit.saturating_sub(self.stored_bytes);
        let work = Work { requests, meta, epochs_removed: removed, epochs_added: &added, room, quick };
        let change = work.write(db).map_err(|err| self.classify(err))?.ok_or(Fault::OverLimit)?;
        self.stored_bytes = self.stored_bytes.saturating_add_signed(change);
        if !added.is_empty() {
            let removed = std::mem::take(&mut self.epochs_unused);
            self.epochs.retain(|(ordinal, _)| !removed.contains(ordinal));
            self.epochs.extend(added);
        }
        if let Some(meta) = meta {
            self.meta = meta;
        }
        self.unsettled = !quick;
        Ok(())
    }

    /// Runs that the requests put blocks of for the first time.
    fn new_epochs(&self, requests: &[&CommitRequest]) -> Vec<(u64, Epoch)> {
        let mut added: Vec<(u64, Epoch)> = Vec::new();
        let mut next = self.epochs.last().map_or(0, |(ordinal, _)| ordinal + 1);
        for put in requests.iter().flat_map(|request| &request.puts) {
            let epoch = put.header.key.epoch;
            let known = self.epochs.iter().filter(|(ordinal, _)| !self.epochs_unused.contains(ordinal));
            if !known.chain(&added).any(|&(_, known)| known == epoch) {
                added.push((next, epoch));
                next += 1;
            }
        }
        added
    }

    fn meta_of(&self, time: StoreTime) -> Meta {
        let wall_us = time.wall_us.or(self.meta.wall_us);
        // The boot's time belongs to its service time.
        if time.service_us < self.meta.service_us {
            return Meta { wall_us, ..self.meta };
        }
        Meta { service_us: time.service_us, wall_us, boot: time.boot }
    }

    fn is_meta_due(&self, time: StoreTime) -> bool {
        let first_wall = time.wall_us.is_some() && self.meta.wall_us.is_none();
        let boot = |boot: Option<BootTime>| boot.map(|boot| boot.id);
        let first_of_boot = boot(time.boot) != boot(self.meta.boot) && time.service_us >= self.meta.service_us;
        first_wall || first_of_boot || time.service_us >= self.meta.service_us.saturating_add(META_INTERVAL_US)
    }

    /// The open database; opens it again after an error.
    fn database(&mut self) -> Result<&Database, Fault> {
        if self.db.is_none() {
            let (db, scan) = open_database(&mut *self.medium, &self.options, &self.counts)?;
            self.take_over(&scan);
            self.unsettled = true;
            self.db = Some(db);
        }
        self.db.as_ref().ok_or_else(|| Fault::Io("closed".to_owned()))
    }

    fn take_over(&mut self, scan: &Scan) {
        self.stored_bytes = scan.stored_bytes;
        self.epochs.clone_from(&scan.epochs);
        self.epochs_unused.retain(|unused| scan.epochs.iter().any(|(ordinal, _)| ordinal == unused));
        self.meta = scan.meta;
    }

    /// Closes the file, opens it again if possible, and says what happened.
    fn fail(&mut self, fault: Fault) -> StoreError {
        self.db = None;
        // If this fails too, the next call tries again and reports it.
        let _ = self.database();
        match fault {
            Fault::Full | Fault::OverLimit => StoreError::Full,
            Fault::Locked => StoreError::Io("in use by another process".to_owned()),
            Fault::Damaged(reason) | Fault::Io(reason) => StoreError::Io(reason),
        }
    }

    fn classify(&self, err: redb::Error) -> Fault {
        if self.counts.take_no_space() { Fault::Full } else { fault_of(err) }
    }

    fn written(&self) -> (u64, u64) {
        (self.counts.bytes_written.load(Ordering::Relaxed), self.counts.syncs.load(Ordering::Relaxed))
    }

    fn stats(&self, start: Instant, bytes_before: u64, syncs_before: u64, reserve_released: bool) -> CommitStats {
        let (bytes, syncs) = self.written();
        CommitStats {
            bytes_written: bytes - bytes_before,
            syncs: syncs - syncs_before,
            took_us: start.elapsed().as_micros() as u64,
            stored_bytes: self.stored_bytes,
            file_bytes: self.counts.file_bytes.load(Ordering::Relaxed),
            reserve_released,
        }
    }
}

fn set_aside(medium: &mut dyn Medium, reason: String) -> Result<Quarantined, OpenError> {
    let path = medium.path().to_owned();
    match medium.set_aside() {
        Ok(aside) => Ok(Quarantined { path: aside, reason }),
        Err(SetAsideError::TooMany) => Err(OpenError::QuarantineFull { path, reason }),
        Err(SetAsideError::Io(err)) => {
            Err(OpenError::Io { path, reason: format!("{reason}, and it cannot be renamed: {err}") })
        }
    }
}

#[cfg(test)]
mod faulty;
#[cfg(test)]
mod tests;
