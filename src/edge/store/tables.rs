//! The tables of the buffer's file, and how their entries are written.
//!
//! ```text
//! blocks     block key -> block                 sealed blocks, 12 KiB each by default
//! index      block key -> header (37 bytes)      so that opening reads 2 MiB instead of all blocks
//! fragments  block key -> block                 what a group commit writes between two seals
//! voids      block key -> last_seq, reason      until the cloud has acknowledged them
//! packet_ids session, packet id -> fingerprint  of brokers' messages of QoS 2, until they are released
//! epochs     ordinal -> epoch                   order of the runs, since epochs are random numbers
//! meta       name -> u64                        format, service_us, wall_us, boot_id, boottime_us
//! ```
//!
//! Numbers in values are little-endian; block keys are big-endian, so that they sort.

use std::collections::HashMap;

use redb::{ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use weir_host::clock::BootTime;
use weir_logic::block::{BlockHeader, Fidelity};
use weir_logic::ids::{BlockKey, Epoch, Void, VoidReason};
use weir_logic::store::{CommitRequest, Held, PacketIdChange, Put, SeqRange};

type Key<'a> = &'a [u8; BlockKey::LEN];

pub(super) const BLOCKS: TableDefinition<'_, Key<'static>, &[u8]> = TableDefinition::new("blocks");
pub(super) const INDEX: TableDefinition<'_, Key<'static>, &[u8; INDEX_LEN]> = TableDefinition::new("index");
pub(super) const FRAGMENTS: TableDefinition<'_, Key<'static>, &[u8]> = TableDefinition::new("fragments");
const VOIDS: TableDefinition<'_, Key<'static>, &[u8; 9]> = TableDefinition::new("voids");
const PACKET_IDS: TableDefinition<'_, (&str, u16), u64> = TableDefinition::new("packet_ids");
const EPOCHS: TableDefinition<'_, u64, u64> = TableDefinition::new("epochs");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Layout of this file; a file with a higher number is from a newer Weir.
pub(super) const FORMAT: u64 = 1;
const INDEX_LEN: usize = 37;
const META_FORMAT: &str = "format";
const META_SERVICE: &str = "service_us";
const META_WALL: &str = "wall_us";
const META_BOOT: &str = "boot_id";
const META_BOOTTIME: &str = "boottime_us";

/// Why a file could not be read as a buffer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScanError {
    #[error("format {found} is newer than {FORMAT}, the newest this version reads: a newer Weir wrote it, and reads it")]
    Newer { found: u64 },
    #[error("it is a redb database, but not a buffer of Weir")]
    Foreign,
    #[error(transparent)]
    Redb(#[from] redb::Error),
}

/// What times the file remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Meta {
    pub(super) service_us: u64,
    pub(super) wall_us: Option<i64>,
    /// When in its boot `service_us` was.
    pub(super) boot: Option<BootTime>,
}

/// All that is known without reading sealed blocks.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Oldest run first, then by lane and sequence number.
    pub(super) held: Vec<Held>,
    /// Keys under which there is something that is not a block.
    pub(super) damaged: Vec<BlockKey>,
    pub(super) voids: Vec<Void>,
    /// Packet ids of brokers' messages, each with its fingerprint.
    pub(super) packet_ids: Vec<PacketIdChange>,
    /// In the order of the runs.
    pub(super) epochs: Vec<(u64, Epoch)>,
    pub(super) meta: Meta,
    /// Disk space that blocks and fragments take, in bytes.
    pub(super) stored_bytes: u64,
    pub(super) fragments: u64,
}

impl Scan {
    /// Service time that no later run may fall behind: the newest that anything stored shows.
    pub(super) fn service_us(&self) -> u64 {
        self.held.iter().map(|held| held.header.born_us).fold(self.meta.service_us, u64::max)
    }
}

/// What redb allocates for a block of this length: a leaf page of its own, in powers of two from 4 KiB on.
pub(super) fn disk_bytes(len: usize) -> u64 {
    /// Key, offsets and page header beside the value.
    const LEAF_OVERHEAD: usize = 40;
    if len + LEAF_OVERHEAD <= 2048 {
        (len + LEAF_OVERHEAD) as u64
    } else {
        (len + LEAF_OVERHEAD).next_power_of_two().max(4096) as u64
    }
}

/// Makes the tables of a new file.
pub(super) fn create(tx: &WriteTransaction) -> Result<(), redb::Error> {
    tx.open_table(BLOCKS)?;
    tx.open_table(INDEX)?;
    tx.open_table(FRAGMENTS)?;
    tx.open_table(VOIDS)?;
    tx.open_table(EPOCHS)?;
    tx.open_table(META)?.insert(META_FORMAT, FORMAT)?;
    Ok(())
}

/// Reads everything but the sealed blocks; `None` if the file has no tables yet.
pub(super) fn scan(db: &impl ReadableDatabase) -> Result<Option<Scan>, ScanError> {
    let tx = db.begin_read().map_err(redb::Error::from)?;
    if tx.list_tables().map_err(redb::Error::from)?.next().is_none() {
        return Ok(None);
    }
    match format(&tx)? {
        None => Err(ScanError::Foreign),
        Some(found) if found > FORMAT => Err(ScanError::Newer { found }),
        Some(_) => Ok(Some(scan_tables(&tx)?)),
    }
}

/// The format a file says it has.
fn format(tx: &ReadTransaction) -> Result<Option<u64>, redb::Error> {
    match tx.open_table(META) {
        Ok(meta) => Ok(meta.get(META_FORMAT)?.map(|value| value.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

fn scan_tables(tx: &ReadTransaction) -> Result<Scan, redb::Error> {
    let mut scan = Scan::default();
    let meta = tx.open_table(META)?;
    scan.meta.service_us = meta.get(META_SERVICE)?.map_or(0, |value| value.value());
    scan.meta.wall_us = meta.get(META_WALL)?.map(|value| value.value() as i64);
    let (id, us) = (meta.get(META_BOOT)?, meta.get(META_BOOTTIME)?);
    scan.meta.boot = id.zip(us).map(|(id, us)| BootTime { id: id.value(), us: us.value() });
    for entry in tx.open_table(EPOCHS)?.iter()? {
        let (ordinal, epoch) = entry?;
        scan.epochs.push((ordinal.value(), Epoch(epoch.value())));
    }
    for entry in tx.open_table(INDEX)?.iter()? {
        let (key, value) = entry?;
        let Some(key) = BlockKey::from_bytes(key.value()) else { continue };
        match index_decode(key, value.value()) {
            Some(held) => {
                scan.stored_bytes += disk_bytes(held.len as usize);
                scan.held.push(held);
            }
            None => scan.damaged.push(key),
        }
    }
    for entry in tx.open_table(FRAGMENTS)?.iter()? {
        let (key, value) = entry?;
        let Some(key) = BlockKey::from_bytes(key.value()) else { continue };
        scan.fragments += 1;
        scan.stored_bytes += disk_bytes(value.value().len());
        match BlockHeader::parse(value.value()) {
            Ok(header) if header.key == key => scan.held.push(Held { header, len: value.value().len() as u32 }),
            _ => scan.damaged.push(key),
        }
    }
    for entry in tx.open_table(VOIDS)?.iter()? {
        let (key, value) = entry?;
        if let (Some(key), Some((last_seq, reason))) = (BlockKey::from_bytes(key.value()), void_decode(value.value())) {
            scan.voids.push(Void { key, last_seq, reason });
        }
    }
    // Files of earlier versions have no such table.
    match tx.open_table(PACKET_IDS) {
        Ok(packet_ids) => {
            for entry in packet_ids.iter()? {
                let (key, fingerprint) = entry?;
                let (session, packet_id) = key.value();
                let fingerprint = Some(fingerprint.value());
                scan.packet_ids.push(PacketIdChange { session: session.into(), packet_id, fingerprint });
            }
        }
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(err) => return Err(err.into()),
    }
    sort(&mut scan);
    Ok(scan)
}

fn sort(scan: &mut Scan) {
    let Scan { held, epochs, .. } = scan;
    // A run that the table does not name is older than all that it names.
    let ordinals: HashMap<u64, u64> = epochs.iter().map(|&(ordinal, epoch)| (epoch.0, ordinal + 1)).collect();
    let ordinal = |epoch: Epoch| ordinals.get(&epoch.0).copied().unwrap_or(0);
    // Stable, so that of two with the same key the sealed block, pushed first, stays.
    held.sort_by_key(|held| (ordinal(held.header.key.epoch), held.header.key));
    held.dedup_by_key(|held| held.header.key);
}

/// Applies a request and returns by how much it changed the space taken, in bytes.
pub(super) fn apply(tx: &WriteTransaction, request: &CommitRequest) -> Result<i64, redb::Error> {
    let mut change = delete(tx, &request.deletes)?;
    change += put_blocks(tx, &request.puts)?;
    change += put_fragments(tx, &request.puts)?;
    if !request.voids.is_empty() || !request.voids_acked.is_empty() {
        let mut voids = tx.open_table(VOIDS)?;
        for key in &request.voids_acked {
            voids.remove(&key.to_bytes())?;
        }
        for void in &request.voids {
            voids.insert(&void.key.to_bytes(), &void_encode(void))?;
        }
    }
    if !request.packet_ids.is_empty() {
        let mut packet_ids = tx.open_table(PACKET_IDS)?;
        for PacketIdChange { session, packet_id, fingerprint } in &request.packet_ids {
            match fingerprint {
                Some(fingerprint) => drop(packet_ids.insert((&**session, *packet_id), fingerprint)?),
                None => drop(packet_ids.remove((&**session, *packet_id))?),
            }
        }
    }
    Ok(change)
}

fn delete(tx: &WriteTransaction, ranges: &[SeqRange]) -> Result<i64, redb::Error> {
    if ranges.is_empty() {
        return Ok(0);
    }
    let mut freed = 0;
    let mut fragments = tx.open_table(FRAGMENTS)?;
    let mut index = tx.open_table(INDEX)?;
    // Opened on need: looking into it reads blocks.
    let mut blocks = None;
    for range in ranges {
        let first = range.key.to_bytes();
        let last = BlockKey { first_seq: range.last_seq, ..range.key }.to_bytes();
        if first > last {
            continue;
        }
        freed += space_in(&fragments, &first, &last, |block| block.len())?;
        fragments.retain_in::<Key<'_>, _>(&first..=&last, |_, _| false)?;
        let in_blocks = space_in(&index, &first, &last, |value| index_len(value) as usize)?;
        if in_blocks > 0 {
            freed += in_blocks;
            index.retain_in::<Key<'_>, _>(&first..=&last, |_, _| false)?;
            if blocks.is_none() {
                blocks = Some(tx.open_table(BLOCKS)?);
            }
            if let Some(blocks) = &mut blocks {
                blocks.retain_in::<Key<'_>, _>(&first..=&last, |_, _| false)?;
            }
        }
    }
    Ok(-freed)
}

/// Disk space of what is stored in a range of keys.
fn space_in<V: redb::Value + 'static>(
    table: &Table<'_, Key<'static>, V>,
    first: Key<'_>,
    last: Key<'_>,
    len: impl Fn(V::SelfType<'_>) -> usize,
) -> Result<i64, redb::Error> {
    let mut bytes = 0;
    for entry in table.range::<Key<'_>>(first..=last)? {
        bytes += disk_bytes(len(entry?.1.value())) as i64;
    }
    Ok(bytes)
}

fn put_blocks(tx: &WriteTransaction, puts: &[Put]) -> Result<i64, redb::Error> {
    if puts.iter().all(|put| put.fragment) {
        return Ok(0);
    }
    let mut change = 0;
    let mut blocks = tx.open_table(BLOCKS)?;
    let mut index = tx.open_table(INDEX)?;
    for put in puts.iter().filter(|put| !put.fragment) {
        let key = put.header.key.to_bytes();
        if let Some(old) = index.insert(&key, &index_encode(put))? {
            change -= disk_bytes(index_len(old.value()) as usize) as i64;
        }
        blocks.insert(&key, put.block.as_ref())?;
        change += disk_bytes(put.block.len()) as i64;
    }
    Ok(change)
}

fn put_fragments(tx: &WriteTransaction, puts: &[Put]) -> Result<i64, redb::Error> {
    if puts.iter().all(|put| !put.fragment) {
        return Ok(0);
    }
    let mut change = 0;
    let mut fragments = tx.open_table(FRAGMENTS)?;
    for put in puts.iter().filter(|put| put.fragment) {
        if let Some(old) = fragments.insert(&put.header.key.to_bytes(), put.block.as_ref())? {
            change -= disk_bytes(old.value().len()) as i64;
        }
        change += disk_bytes(put.block.len()) as i64;
    }
    Ok(change)
}

/// Writes the times.
pub(super) fn put_meta(tx: &WriteTransaction, new: Meta) -> Result<(), redb::Error> {
    let mut meta = tx.open_table(META)?;
    meta.insert(META_SERVICE, new.service_us)?;
    if let Some(wall_us) = new.wall_us {
        meta.insert(META_WALL, wall_us as u64)?;
    }
    match new.boot {
        Some(BootTime { id, us }) => {
            meta.insert(META_BOOT, id)?;
            meta.insert(META_BOOTTIME, us)?;
        }
        // An older boot's would be taken for this one's.
        None => drop(meta.remove(META_BOOT)?),
    }
    Ok(())
}

/// Adds `added` and removes `removed` by their ordinals.
pub(super) fn put_epochs(tx: &WriteTransaction, removed: &[u64], added: &[(u64, Epoch)]) -> Result<(), redb::Error> {
    let mut epochs = tx.open_table(EPOCHS)?;
    for ordinal in removed {
        epochs.remove(ordinal)?;
    }
    for (ordinal, epoch) in added {
        epochs.insert(ordinal, epoch.0)?;
    }
    Ok(())
}

/// A block by its key, sealed or not.
pub(super) fn load(db: &impl ReadableDatabase, key: BlockKey) -> Result<Option<bytes::Bytes>, redb::Error> {
    let tx = db.begin_read()?;
    let key = key.to_bytes();
    if let Some(block) = tx.open_table(BLOCKS)?.get(&key)? {
        return Ok(Some(bytes::Bytes::copy_from_slice(block.value())));
    }
    let fragment = tx.open_table(FRAGMENTS)?.get(&key)?;
    Ok(fragment.map(|block| bytes::Bytes::copy_from_slice(block.value())))
}

fn index_encode(put: &Put) -> [u8; INDEX_LEN] {
    let header = &put.header;
    let mut out = [0; INDEX_LEN];
    out[..8].copy_from_slice(&header.last_seq.to_le_bytes());
    out[8..16].copy_from_slice(&header.born_us.to_le_bytes());
    out[16..24].copy_from_slice(&header.wall_offset_us.unwrap_or(i64::MIN).to_le_bytes());
    out[24..28].copy_from_slice(&header.count.to_le_bytes());
    out[28..32].copy_from_slice(&header.raw_len.to_le_bytes());
    out[32..36].copy_from_slice(&(put.block.len() as u32).to_le_bytes());
    out[36] = matches!(header.fidelity, Fidelity::Thinned).into();
    out
}

fn index_len(value: &[u8; INDEX_LEN]) -> u32 {
    u32::from_le_bytes(value[32..36].try_into().expect("four bytes"))
}

fn index_decode(key: BlockKey, value: &[u8; INDEX_LEN]) -> Option<Held> {
    let u64_at = |at: usize| u64::from_le_bytes(value[at..at + 8].try_into().expect("eight bytes"));
    let u32_at = |at: usize| u32::from_le_bytes(value[at..at + 4].try_into().expect("four bytes"));
    let (last_seq, count) = (u64_at(0), u32_at(24));
    let span = last_seq.checked_sub(key.first_seq)?;
    if count == 0 || u64::from(count) - 1 > span {
        return None;
    }
    let wall_offset_us = Some(u64_at(16) as i64).filter(|&offset| offset != i64::MIN);
    let fidelity = if value[36] == 0 { Fidelity::Full } else { Fidelity::Thinned };
    let header = BlockHeader { key, last_seq, born_us: u64_at(8), wall_offset_us, count, raw_len: u32_at(28), fidelity };
    Some(Held { header, len: index_len(value) })
}

fn void_encode(void: &Void) -> [u8; 9] {
    let mut out = [0; 9];
    out[..8].copy_from_slice(&void.last_seq.to_le_bytes());
    out[8] = void.reason.code();
    out
}

fn void_decode(value: &[u8; 9]) -> Option<(u64, VoidReason)> {
    let last_seq = u64::from_le_bytes(value[..8].try_into().expect("eight bytes"));
    Some((last_seq, VoidReason::from_code(value[8])?))
}
