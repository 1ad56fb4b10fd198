//! Reading a buffer's file without changing it, for the operator's tool.
//!
//! redb repairs a file that was not closed, and refuses to open one that it cannot repair. So the file is opened
//! read-only under an overlay that keeps what redb writes in memory; and from a file that redb refuses, intact blocks are
//! picked by their magic and checksum, which needs nothing of redb's structure. Blocks found so may include some that
//! were deleted long ago.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, StorageBackend};
use weir_logic::block::{BLOCK_LEN_MAX, BlockHeader, HEADER_LEN};
use weir_logic::ids::{BlockKey, Epoch, Void};
use weir_logic::store::Held;

use super::tables::{self, Scan};

/// Memory for what redb would write: a repair writes a few pages.
const OVERLAY_BYTES_MAX: usize = 64 << 20;
const PAGE: u64 = 4096;
/// Read at once when looking for blocks.
const WINDOW: usize = 8 << 20;

/// Why a file could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The gateway has it open.
    #[error("buffer {} is in use: stop the gateway first, or look at a copy of the file", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("buffer {} cannot be read (this user must be allowed to)", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// In what state the file was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// It was closed or settled.
    Clean,
    /// The process or the machine stopped while it was open; the next start repairs it.
    Unclean,
    /// It cannot be opened; what is shown are the intact blocks that are somewhere in it, deleted ones among them.
    Salvaged {
        /// Why it cannot be opened.
        reason: String,
    },
}

/// A buffer's file, open for reading; what is on disk stays as it is.
#[derive(Debug)]
pub struct BufferFile {
    state: FileState,
    len: u64,
    scan: Scan,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Database(Database),
    /// Where the blocks lie.
    Raw(File, HashMap<BlockKey, Place>),
}

#[derive(Debug, Clone, Copy)]
struct Place {
    at: u64,
    len: u32,
}

impl BufferFile {
    /// Opens the file; reads all of it if it was not closed.
    ///
    /// # Errors
    /// `Locked` if a process has it open, `Io` if it cannot be read. A damaged file is no error: see [`FileState`].
    pub fn open(path: &Path) -> Result<BufferFile, InspectError> {
        let io = |source| InspectError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let reason = match open_overlaid(file.try_clone().map_err(io)?) {
            Ok((db, state, scan)) => return Ok(BufferFile { state, len, scan, content: Content::Database(db) }),
            Err(OverlayError::Locked) => return Err(InspectError::Locked { path: path.to_owned() }),
            Err(OverlayError::Refused(reason)) => reason,
        };
        let (scan, places) = salvage(&file, len).map_err(io)?;
        Ok(BufferFile { state: FileState::Salvaged { reason }, len, scan, content: Content::Raw(file, places) })
    }

    /// In what state the file was found.
    pub fn state(&self) -> &FileState {
        &self.state
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.len
    }

    /// Blocks and fragments: oldest run first (by epoch if the file was salvaged), then by lane and sequence number.
    pub fn held(&self) -> &[Held] {
        &self.scan.held
    }

    /// How many of them are fragments; 0 if the file was salvaged.
    pub fn fragments(&self) -> u64 {
        self.scan.fragments
    }

    /// Keys under which there is something that is not a block.
    pub fn damaged(&self) -> &[BlockKey] {
        &self.scan.damaged
    }

    /// Voids that the cloud has not acknowledged.
    pub fn voids(&self) -> &[Void] {
        &self.scan.voids
    }

    /// Runs, oldest first; empty if the file was salvaged.
    pub fn epochs(&self) -> impl Iterator<Item = Epoch> + '_ {
        self.scan.epochs.iter().map(|&(_, epoch)| epoch)
    }

    /// Newest service time that the file shows in microseconds.
    pub fn service_us(&self) -> u64 {
        self.scan.service_us()
    }

    /// Last trusted Unix time in microseconds.
    pub fn wall_us(&self) -> Option<i64> {
        self.scan.meta.wall_us
    }

    /// Reads a block as it lies there; `None` if it does not. Its checksum is for the caller to check.
    ///
    /// # Errors
    /// In words, if the file cannot be read or redb finds it damaged.
    pub fn load(&self, key: BlockKey) -> Result<Option<Bytes>, String> {
        match &self.content {
            Content::Database(db) => tables::load(db, key).map_err(|err| err.to_string()),
            Content::Raw(file, places) => {
                let Some(&Place { at, len }) = places.get(&key) else { return Ok(None) };
                let mut block = vec![0; len as usize];
                file.read_exact_at(&mut block, at).map_err(|err| err.to_string())?;
                Ok(Some(block.into()))
            }
        }
    }
}

enum OverlayError {
    Locked,
    Refused(String),
}

fn open_overlaid(file: File) -> Result<(Database, FileState, Scan), OverlayError> {
    let refused = |err: &dyn std::fmt::Display| OverlayError::Refused(err.to_string());
    let overlay = Overlay::new(file).map_err(|err| refused(&err))?;
    let repaired = Arc::new(Mutex::new(false));
    let noted = Arc::clone(&repaired);
    let db = Builder::new()
        .set_cache_size(4 << 20)
        .set_repair_callback(move |_| *noted.lock().unwrap_or_else(PoisonError::into_inner) = true)
        .create_with_backend(overlay)
        .map_err(|err| match err {
            redb::DatabaseError::DatabaseAlreadyOpen | redb::DatabaseError::LockProtocolMismatch => OverlayError::Locked,
            err => refused(&err),
        })?;
    let scan = tables::scan(&db).map_err(|err| refused(&err))?.unwrap_or_default();
    let was_repaired = *repaired.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((db, if was_repaired { FileState::Unclean } else { FileState::Clean }, scan))
}

/// Finds every intact block in the file.
fn salvage(file: &File, len: u64) -> io::Result<(Scan, HashMap<BlockKey, Place>)> {
    let mut found: Vec<(Held, u64)> = Vec::new();
    let mut window = vec![0; WINDOW];
    let mut at = 0;
    while at < len {
        let filled = (len - at).min(WINDOW as u64) as usize;
        let window = &mut window[..filled];
        file.read_exact_at(window, at)?;
        let mut from = 0;
        while let Some(start) = next_magic(&window[from..]).map(|start| from + start) {
            from = start + 1;
            if let Some((header, block_len)) = block_at(file, len, at + start as u64)? {
                found.push((Held { header, len: block_len }, at + start as u64));
                from = (start + block_len as usize).min(filled);
            }
        }
        // The last bytes come again, because a magic may lie across the end.
        at += if filled == WINDOW { (WINDOW - MAGIC.len() + 1) as u64 } else { filled as u64 };
    }
    Ok(without_covered(found))
}

const MAGIC: [u8; 3] = *b"WB\x01";

fn next_magic(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|window| window == MAGIC)
}

fn block_at(file: &File, len: u64, at: u64) -> io::Result<Option<(BlockHeader, u32)>> {
    if len - at < HEADER_LEN as u64 {
        return Ok(None);
    }
    let mut head = [0; HEADER_LEN];
    file.read_exact_at(&mut head, at)?;
    // The length of the body is the header's last number but one: `BlockHeader::parse` wants exactly the block.
    let block_len = u32::from_le_bytes([head[56], head[57], head[58], head[59]]) as usize + HEADER_LEN;
    if block_len > BLOCK_LEN_MAX || block_len as u64 > len - at {
        return Ok(None);
    }
    let mut block = vec![0; block_len];
    file.read_exact_at(&mut block, at)?;
    Ok(BlockHeader::parse(&block).ok().map(|header| (header, block_len as u32)))
}

/// Drops copies, and fragments that a sealed block contains.
fn without_covered(mut found: Vec<(Held, u64)>) -> (Scan, HashMap<BlockKey, Place>) {
    // Of blocks with the same start the longest comes first.
    found.sort_by_key(|(held, at)| {
        let key = held.header.key;
        (key.epoch, key.lane, key.first_seq, u64::MAX - held.header.last_seq, *at)
    });
    let mut scan = Scan::default();
    let mut places = HashMap::new();
    for (held, at) in found {
        let is_covered = scan.held.last().is_some_and(|last: &Held| {
            (last.header.key.epoch, last.header.key.lane) == (held.header.key.epoch, held.header.key.lane)
                && held.header.last_seq <= last.header.last_seq
        });
        if !is_covered {
            scan.held.push(held);
            places.insert(held.header.key, Place { at, len: held.len });
        }
    }
    (scan, places)
}

/// A file below, what was written to it above.
#[derive(Debug)]
struct Overlay {
    file: File,
    locks: FileBackend,
    above: Mutex<Above>,
}

#[derive(Debug)]
struct Above {
    len: u64,
    /// Whole pages by their number.
    pages: HashMap<u64, Vec<u8>>,
}

impl Overlay {
    fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let locks = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
        Ok(Overlay { file, locks, above: Mutex::new(Above { len, pages: HashMap::new() }) })
    }

    /// A page as it is below; zeros beyond the end of the file.
    fn page_below(&self, page: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], page * PAGE + filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(bytes)
    }
}

/// Calls `each` with the page, the offset in it and the range in a buffer of `len` bytes that starts at `offset`.
fn each_page(
    offset: u64,
    len: usize,
    mut each: impl FnMut(u64, usize, std::ops::Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let in_page = (at % PAGE) as usize;
        let step = (PAGE as usize - in_page).min(len - done);
        each(at / PAGE, in_page, done..done + step)?;
        done += step;
    }
    Ok(())
}

impl StorageBackend for Overlay {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.above.lock().unwrap_or_else(PoisonError::into_inner).len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let above = self.above.lock().unwrap_or_else(PoisonError::into_inner);
        if offset + out.len() as u64 > above.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        each_page(offset, out.len(), |page, in_page, range| {
            let out = &mut out[range];
            match above.pages.get(&page) {
                Some(bytes) => out.copy_from_slice(&bytes[in_page..in_page + out.len()]),
                None => out.copy_from_slice(&self.page_below(page)?[in_page..in_page + out.len()]),
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut above = self.above.lock().unwrap_or_else(PoisonError::into_inner);
        if len < above.len {
            return Err(io::Error::other("a file that is only read is not cut"));
        }
        above.len = len;
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut above = self.above.lock().unwrap_or_else(PoisonError::into_inner);
        if (above.pages.len() + data.len() / PAGE as usize) * PAGE as usize > OVERLAY_BYTES_MAX {
            return Err(io::Error::other("repairing it takes more memory than is allowed"));
        }
        above.len = above.len.max(offset + data.len() as u64);
        each_page(offset, data.len(), |page, in_page, range| {
            let bytes = match above.pages.entry(page) {
                Entry::Occupied(bytes) => bytes.into_mut(),
                Entry::Vacant(vacant) => vacant.insert(self.page_below(page)?),
            };
            bytes[in_page..in_page + range.len()].copy_from_slice(&data[range]);
            Ok(())
        })
    }

    fn close(&self) -> Result<(), io::Error> {
        self.locks.close()
    }

    /// Shared, because the file is open for reading alone; that still excludes a gateway, which locks it exclusively.
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.try_lock_shared_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.try_lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.query_lock_range(start, end)
    }
}
