//! What the database lies on: a file on the box, or a disk made of memory in tests.
//!
//! This is the one seam for input and output. Everything the store does to the outside (open and reopen the database,
//! give up the reserve, set a damaged file aside) is a method of [`Medium`]; everything redb does passes [`Meter`], which
//! counts bytes and remembers whether the disk was full, because redb reports that only once and `PreviousIo` from then on.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// Files set aside at most; beyond that somebody has to look at them.
pub(super) const QUARANTINE_FILES_MAX: u32 = 8;
/// Starts in a row that may end while the file is being opened before the file is held to be the cause.
const OPENINGS_MAX: u8 = 3;

/// Where a database and its reserve lie.
pub(super) trait Medium: std::fmt::Debug + Send {
    /// Opens the storage of the database, making it if there is none.
    fn open(&mut self) -> io::Result<Box<dyn StorageBackend>>;
    /// What to call it in messages.
    fn path(&self) -> &Path;
    /// Notes that opening begins; returns how many openings before this one never came to an end.
    fn opening_begins(&mut self) -> u8;
    /// Notes that opening came to an end.
    fn opening_ends(&mut self);
    /// Gives the reserve back to the file system; false if there was none.
    fn release_reserve(&mut self) -> bool;
    /// Makes the reserve if it is missing and twice its size is free; true if it is there now.
    fn restore_reserve(&mut self) -> bool;
    /// Bytes free for us; `None` if that cannot be known.
    fn free_bytes(&self) -> Option<u64>;
    /// Gives the database another name, so that a new one can be started; returns the name.
    fn set_aside(&mut self) -> Result<PathBuf, SetAsideError>;
}

/// Why a damaged file could not be set aside.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetAsideError {
    #[error("{QUARANTINE_FILES_MAX} files are there already")]
    TooMany,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// True if this start should no longer try the file.
pub(super) fn openings_exhausted(unfinished: u8) -> bool {
    unfinished >= OPENINGS_MAX
}

/// A file, with its reserve and what was set aside beside it.
#[derive(Debug)]
pub(super) struct FileMedium {
    path: PathBuf,
    reserve_bytes: u64,
}

impl FileMedium {
    pub(super) fn new(path: &Path, reserve_bytes: u64) -> Self {
        FileMedium { path: path.to_owned(), reserve_bytes }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    }

    fn reserve_path(&self) -> PathBuf {
        self.beside(".reserve")
    }

    /// Makes names in the directory durable; a file system that cannot do that has its own way.
    fn sync_directory(&self) {
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if let Ok(directory) = File::open(directory) {
            // A refusal leaves what the file system does by itself, which is all that can be had.
            let _ = directory.sync_all();
        }
    }

    fn make_reserve(&self) -> io::Result<()> {
        let file = options().create(true).truncate(true).open(self.reserve_path())?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.reserve_bytes) {
            // File systems that cannot preallocate get real bytes.
            Err(rustix::io::Errno::OPNOTSUPP) => fill(&file, self.reserve_bytes),
            other => other.map_err(io::Error::from),
        }?;
        file.sync_all()
    }
}

impl Medium for FileMedium {
    fn open(&mut self) -> io::Result<Box<dyn StorageBackend>> {
        let fresh = !self.path.exists();
        let file = options().create(true).truncate(false).open(&self.path)?;
        if fresh {
            self.sync_directory();
        }
        let backend = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Box::new(backend))
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn opening_begins(&mut self) -> u8 {
        let marker = self.beside(".opening");
        let unfinished = std::fs::read(&marker).ok().and_then(|bytes| bytes.first().copied()).unwrap_or(0);
        // Not synced: a crash of ours leaves it, a power cut, which says nothing of the file, mostly does not.
        let _ = std::fs::write(&marker, [unfinished.saturating_add(1)]);
        unfinished
    }

    fn opening_ends(&mut self) {
        let _ = std::fs::remove_file(self.beside(".opening"));
    }

    fn release_reserve(&mut self) -> bool {
        let was_there = std::fs::remove_file(self.reserve_path()).is_ok();
        if was_there {
            self.sync_directory();
        }
        was_there
    }

    fn restore_reserve(&mut self) -> bool {
        if self.reserve_bytes == 0 {
            return true;
        }
        if std::fs::metadata(self.reserve_path()).is_ok_and(|meta| meta.len() >= self.reserve_bytes) {
            return true;
        }
        if self.free_bytes().is_some_and(|free| free < 2 * self.reserve_bytes) {
            return false;
        }
        if self.make_reserve().is_err() {
            let _ = std::fs::remove_file(self.reserve_path());
            return false;
        }
        self.sync_directory();
        true
    }

    fn free_bytes(&self) -> Option<u64> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let stat = rustix::fs::statvfs(directory).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn set_aside(&mut self) -> Result<PathBuf, SetAsideError> {
        for n in 1..=QUARANTINE_FILES_MAX {
            let aside = self.beside(&format!(".quarantine-{n}"));
            if std::fs::symlink_metadata(&aside).is_err_and(|err| err.kind() == ErrorKind::NotFound) {
                std::fs::rename(&self.path, &aside)?;
                self.sync_directory();
                return Ok(aside);
            }
        }
        Err(SetAsideError::TooMany)
    }
}

/// Readable by the gateway's user alone: it holds what the sensors said.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn fill(mut file: &File, len: u64) -> io::Result<()> {
    let zeros = [0; 64 << 10];
    let mut left = len;
    while left > 0 {
        let step = left.min(zeros.len() as u64);
        io::Write::write_all(&mut file, &zeros[..step as usize])?;
        left -= step;
    }
    Ok(())
}

/// What redb did to the storage since it was opened first.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) bytes_written: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) file_bytes: AtomicU64,
    no_space: AtomicBool,
    /// True if redb had to repair the file.
    pub(super) repaired: AtomicBool,
}

impl Counts {
    /// True if the disk was full since the last call.
    pub(super) fn take_no_space(&self) -> bool {
        self.no_space.swap(false, Ordering::Relaxed)
    }
}

/// Passes everything on and counts it.
#[derive(Debug)]
pub(super) struct Meter {
    pub(super) inner: Box<dyn StorageBackend>,
    pub(super) counts: Arc<Counts>,
}

impl Meter {
    fn note<T>(&self, result: Result<T, io::Error>) -> Result<T, io::Error> {
        if let Err(err) = &result
            && matches!(err.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        {
            self.counts.no_space.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl StorageBackend for Meter {
    fn len(&self) -> Result<u64, io::Error> {
        let len = self.note(self.inner.len())?;
        self.counts.file_bytes.store(len, Ordering::Relaxed);
        Ok(len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.note(self.inner.read(offset, out))
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.note(self.inner.set_len(len))?;
        self.counts.file_bytes.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        self.note(self.inner.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.counts.bytes_written.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.note(self.inner.write(offset, data))
    }

    fn close(&self) -> Result<(), io::Error> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
