//! One opening and one transaction, and what their errors mean.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{Builder, Database, Durability};
use weir_logic::ids::{Epoch, Void};
use weir_logic::store::{CommitRequest, SeqRange};

use super::StoreOptions;
use super::medium::{Counts, Medium, Meter};
use super::tables::{self, Meta, Scan, ScanError};

/// What a card says of a sector it cannot read.
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
/// redb 4.6 makes files of 72 KiB, earlier versions of 1 MiB.
const UNBORN_LEN_MAX: u64 = 2 << 20;

/// Why an attempt did not succeed.
pub(super) enum Fault {
    Locked,
    Full,
    /// More blocks than the options allow; nothing was written and the file is as good as before.
    OverLimit,
    Damaged(String),
    Io(String),
}

pub(super) fn open_database(
    medium: &mut dyn Medium,
    options: &StoreOptions,
    counts: &Arc<Counts>,
) -> Result<(Database, Scan), Fault> {
    counts.take_no_space();
    let classify = |err: redb::Error| if counts.take_no_space() { Fault::Full } else { fault_of(err) };
    let inner = medium.open().map_err(|err| fault_of(redb::Error::Io(err)))?;
    let meter = Meter { inner, counts: Arc::clone(counts) };
    let noted = Arc::clone(counts);
    let mut builder = Builder::new();
    builder.set_cache_size(options.cache_bytes).set_repair_callback(move |repair| {
        noted.repaired.store(true, Ordering::Relaxed);
        tracing::info!(progress = repair.progress(), "buffer was not closed: reading all of it");
    });
    let db = builder.create_with_backend(meter).map_err(|err| {
        let fault = classify(err.into());
        if matches!(fault, Fault::Damaged(_)) {
            discard_unborn(medium);
        }
        fault
    })?;
    let scan = match tables::scan(&db) {
        Ok(Some(scan)) => scan,
        Ok(None) => {
            let tx = db.begin_write().map_err(|err| classify(err.into()))?;
            tables::create(&tx).map_err(classify)?;
            tx.commit().map_err(|err| classify(err.into()))?;
            Scan::default()
        }
        Err(ScanError::Redb(err)) => return Err(classify(err)),
        Err(err) => return Err(Fault::Damaged(err.to_string())),
    };
    Ok((db, scan))
}

/// Empties a file whose making was cut short: it has no magic number yet, and nothing after its first page.
fn discard_unborn(medium: &mut dyn Medium) {
    let Ok(storage) = medium.open() else { return };
    let Ok(len @ 1..=UNBORN_LEN_MAX) = storage.len() else { return };
    let mut bytes = vec![0; len as usize];
    let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    if storage.read(0, &mut bytes).is_ok() && is_zero(&bytes[..bytes.len().min(9)]) && is_zero(bytes.get(4096..).unwrap_or(&[]))
    {
        // If this is refused, the file is set aside.
        let _ = storage.set_len(0);
    }
}

/// What one transaction writes.
pub(super) struct Work<'a> {
    pub(super) requests: &'a [&'a CommitRequest],
    pub(super) meta: Option<Meta>,
    pub(super) epochs_removed: &'a [u64],
    pub(super) epochs_added: &'a [(u64, Epoch)],
    /// Bytes by which the space taken may grow.
    pub(super) room: u64,
    /// With quick repair: slower, but the next opening after a crash is not.
    pub(super) quick: bool,
}

impl Work<'_> {
    /// Writes it and returns by how much the space taken changed, in bytes; `None` if there is no room for it.
    pub(super) fn write(&self, db: &Database) -> Result<Option<i64>, redb::Error> {
        let mut tx = db.begin_write()?;
        tx.set_durability(Durability::Immediate)?;
        tx.set_quick_repair(self.quick);
        let mut change = 0;
        for request in self.requests {
            change += tables::apply(&tx, request)?;
        }
        if change > 0 && change.unsigned_abs() > self.room {
            tx.abort()?;
            return Ok(None);
        }
        if !self.epochs_added.is_empty() {
            tables::put_epochs(&tx, self.epochs_removed, self.epochs_added)?;
        }
        if let Some(meta) = self.meta {
            tables::put_meta(&tx, meta)?;
        }
        tx.commit()?;
        Ok(Some(change))
    }
}

/// Ordinals of runs of which nothing is stored.
pub(super) fn unused(scan: &Scan) -> Vec<u64> {
    let used: HashSet<u64> =
        scan.held.iter().map(|held| held.header.key.epoch.0).chain(scan.damaged.iter().map(|key| key.epoch.0)).collect();
    scan.epochs.iter().filter(|(_, epoch)| !used.contains(&epoch.0)).map(|&(ordinal, _)| ordinal).collect()
}

/// What of a request gives space back without losing anything: its deletions, but none that a put makes good for.
pub(super) fn relief(request: &CommitRequest) -> CommitRequest {
    let is_replaced = |range: &SeqRange| {
        request.puts.iter().any(|put| {
            let header = &put.header;
            (header.key.lane, header.key.epoch) == (range.key.lane, range.key.epoch)
                && header.key.first_seq <= range.last_seq
                && header.last_seq >= range.key.first_seq
        })
    };
    let deletes: Vec<SeqRange> = request.deletes.iter().filter(|range| !is_replaced(range)).copied().collect();
    let covers = |void: &Void| {
        deletes.iter().any(|range| {
            (range.key.lane, range.key.epoch) == (void.key.lane, void.key.epoch)
                && range.key.first_seq <= void.key.first_seq
                && range.last_seq >= void.last_seq
        })
    };
    CommitRequest {
        ticket: request.ticket,
        voids: request.voids.iter().filter(|void| covers(void)).copied().collect(),
        voids_acked: request.voids_acked.clone(),
        deletes,
        puts: Vec::new(),
        packet_ids: Vec::new(),
    }
}

pub(super) fn fault_of(err: redb::Error) -> Fault {
    use std::io::ErrorKind::{InvalidData, QuotaExceeded, StorageFull, UnexpectedEof};
    match err {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Fault::Locked,
        redb::Error::Io(err) if matches!(err.kind(), StorageFull | QuotaExceeded) => Fault::Full,
        redb::Error::Io(err) if matches!(err.kind(), InvalidData | UnexpectedEof) || err.raw_os_error() == Some(EIO) => {
            Fault::Damaged(err.to_string())
        }
        err @ (redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableDoesNotExist(_)) => Fault::Damaged(err.to_string()),
        err => Fault::Io(err.to_string()),
    }
}
