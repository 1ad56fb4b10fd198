//! The database: its tables, how it is opened, and what is refused at the door.
//!
//! Rows are written to narrow tables (`*_rows`, names interned as ids) and read through views that show what a person asks
//! for: gateway, stream, device, time, lane, epoch, seq. `SCHEMA.md` has every column and example queries.
//!
//! ```text
//! gateways 1--n epochs 1--n sample_rows | aggregate_rows | verdict_rows | window_rows     key: epoch_id, lane, seq
//!    |              `---n coverage | void_rows | thinned_rows | missing_rows             key: epoch_id, lane, first
//!    `----n sources (stream, device), policy_rows          alerts, quarantine, policies, models
//! ```
//!
//! `coverage` is the high-water mark: what is in it has been stored or voided, in the same transaction as the data, and is
//! never stored again. Times are Unix microseconds. A lock on `<file>.lock` keeps a second `weir-cloud` out; readers
//! (`sqlite3 -readonly FILE`) are welcome at any time, because the journal is a WAL.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

/// Version of the schema this program writes.
pub const SCHEMA_VERSION: i64 = 2;
/// `PRAGMA application_id`: "Weir".
const APPLICATION_ID: i32 = 0x5765_6972;
/// Pages in the WAL before they are moved into the file: 32 MiB, so that a page that is written often is moved once.
const CHECKPOINT_PAGES: u32 = 8_000;
/// How long to wait for somebody else's write transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The lock file cannot be made.
    #[error("the lock file {} cannot be made (its folder must be there and writable for this user: see `store.path`)", path.display())]
    LockFile {
        /// The lock file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A running `weir-cloud` has it.
    #[error("the database {} is in use by another weir-cloud: stop it, or set `store.path` to another file", path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// Some other program holds a write lock.
    #[error("the database {} is locked by another program: end its transaction", path.display())]
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// It is no SQLite database, or a damaged one.
    #[error("the database {} is damaged or no database ({reason}): move it away and start anew, or restore a copy", path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// SQLite's words.
        reason: String,
    },
    /// It belongs to some other program.
    #[error("the database {} was made by another program: choose another path", path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
    },
    /// A newer Weir made it.
    #[error("the database {} has schema version {found}, newer than {SCHEMA_VERSION}, the newest this version knows: upgrade weir-cloud", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// The thread that owns it cannot be started.
    #[error("the sink's thread cannot be started")]
    Thread(#[source] std::io::Error),
    /// Anything else.
    #[error("the database {} cannot be opened (it must be a file that this user may write: see `store.path`)", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// SQLite's reason.
        source: rusqlite::Error,
    },
}

/// How the database is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The file.
    pub path: PathBuf,
    /// Memory for its pages, in bytes.
    pub cache_bytes: u64,
    /// Largest file in bytes; 0 for what the disk holds.
    pub file_bytes_max: u64,
}

/// The open database and the lock that goes with it.
#[derive(Debug)]
pub struct Database {
    /// The only connection that writes.
    pub(crate) connection: Connection,
    layout: Layout,
    _lock: File,
}

impl Database {
    /// Opens the database, or makes it.
    ///
    /// # Errors
    /// Any [`OpenError`]; the file is not changed then.
    pub fn open(layout: &Layout) -> Result<Database, OpenError> {
        let lock = lock(&layout.path)?;
        let connection = connect(layout)?;
        Ok(Database { connection, layout: layout.clone(), _lock: lock })
    }

    /// Closes and opens the connection: after an I/O error nothing that SQLite remembers is to be trusted.
    ///
    /// # Errors
    /// As for [`Database::open`]; the old connection stays then.
    pub fn reopen(&mut self) -> Result<(), OpenError> {
        self.connection = connect(&self.layout)?;
        Ok(())
    }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let error = |source| OpenError::LockFile { path: lock_path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(error(source)),
    }
}

fn connect(layout: &Layout) -> Result<Connection, OpenError> {
    let explain = |source| explain(&layout.path, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&layout.path, flags).map_err(explain)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(explain)?;
    check(&connection, &layout.path)?;
    let cache_kib = layout.cache_bytes / 1024;
    let settings = format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = OFF; PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -{cache_kib}; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};"
    );
    connection.execute_batch(&settings).map_err(explain)?;
    create(&connection).map_err(explain)?;
    if layout.file_bytes_max > 0 {
        let page_len: u64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0)).map_err(explain)?;
        let pages = (layout.file_bytes_max / page_len).max(1);
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).map_err(explain)?;
    }
    Ok(connection)
}

/// Refuses what is not ours before anything is written.
fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let explain = |source| explain(path, source);
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(explain)?;
    if tables == 0 {
        return Ok(());
    }
    let id: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(explain)?;
    if id != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    let found = connection.query_row("SELECT version FROM schema_version", [], |row| row.get(0)).map_err(explain)?;
    if found > SCHEMA_VERSION {
        return Err(OpenError::Newer { path: path.to_owned(), found });
    }
    Ok(())
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; {TABLES} {VIEWS} COMMIT;"))
}

fn explain(path: &Path, source: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked { path },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => OpenError::Corrupt { path, reason: source.to_string() },
        _ => OpenError::Sqlite { path, source },
    }
}

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL);
INSERT INTO schema_version SELECT 2 WHERE NOT EXISTS (SELECT 1 FROM schema_version);
UPDATE schema_version SET version = 2 WHERE version < 2;

CREATE TABLE IF NOT EXISTS gateways (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, current_epoch_id INTEGER,
    first_seen_us INTEGER NOT NULL, last_seen_us INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS epochs (
    id INTEGER PRIMARY KEY, gateway_id INTEGER NOT NULL, epoch TEXT NOT NULL, state TEXT NOT NULL,
    takeovers INTEGER NOT NULL, first_seen_us INTEGER NOT NULL, UNIQUE (gateway_id, epoch));
CREATE TABLE IF NOT EXISTS sources (
    id INTEGER PRIMARY KEY, gateway_id INTEGER NOT NULL, stream TEXT NOT NULL, device TEXT NOT NULL,
    UNIQUE (gateway_id, stream, device));

CREATE TABLE IF NOT EXISTS sample_rows (
    epoch_id INTEGER NOT NULL, lane INTEGER NOT NULL, seq INTEGER NOT NULL, source_id INTEGER NOT NULL,
    t_us INTEGER NOT NULL, clock INTEGER NOT NULL, payload NOT NULL,
    PRIMARY KEY (epoch_id, lane, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS aggregate_rows (
    epoch_id INTEGER NOT NULL, lane INTEGER NOT NULL, seq INTEGER NOT NULL, channel INTEGER NOT NULL,
    source_id INTEGER NOT NULL, t_us INTEGER NOT NULL, clock INTEGER NOT NULL,
    start_us INTEGER NOT NULL, end_us INTEGER NOT NULL, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL,
    count INTEGER NOT NULL, min REAL NOT NULL, max REAL NOT NULL, sum REAL NOT NULL,
    PRIMARY KEY (epoch_id, lane, seq, channel)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdict_rows (
    epoch_id INTEGER NOT NULL, lane INTEGER NOT NULL, seq INTEGER NOT NULL, source_id INTEGER NOT NULL,
    t_us INTEGER NOT NULL, clock INTEGER NOT NULL, start_us INTEGER NOT NULL, end_us INTEGER NOT NULL,
    model TEXT NOT NULL, version TEXT NOT NULL, label TEXT NOT NULL, score REAL NOT NULL, confidence REAL NOT NULL,
    PRIMARY KEY (epoch_id, lane, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS window_rows (
    epoch_id INTEGER NOT NULL, lane INTEGER NOT NULL, seq INTEGER NOT NULL, source_id INTEGER NOT NULL,
    t_us INTEGER NOT NULL, clock INTEGER NOT NULL, start_us INTEGER NOT NULL, end_us INTEGER NOT NULL,
    channels INTEGER NOT NULL, length INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (epoch_id, lane, seq)) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS coverage (
    epoch_id INTEGER NOT NULL, lane INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (epoch_id, lane, first)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS void_rows (
    epoch_id INTEGER NOT NULL, lane INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    reason TEXT NOT NULL, at_us INTEGER NOT NULL,
    PRIMARY KEY (epoch_id, lane, first)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS thinned_rows (
    epoch_id INTEGER NOT NULL, lane INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    left_out INTEGER NOT NULL, at_us INTEGER NOT NULL,
    PRIMARY KEY (epoch_id, lane, first)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS missing_rows (
    epoch_id INTEGER NOT NULL, lane INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    found_us INTEGER NOT NULL,
    PRIMARY KEY (epoch_id, lane, first)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quarantine (
    id INTEGER PRIMARY KEY, epoch_id INTEGER NOT NULL, lane INTEGER NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, reason TEXT NOT NULL, at_us INTEGER NOT NULL, block BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS policies (
    version INTEGER PRIMARY KEY, file TEXT NOT NULL, signature BLOB NOT NULL, first_seen_us INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS policy_rows (
    version INTEGER NOT NULL, gateway_id INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, at_us INTEGER NOT NULL,
    PRIMARY KEY (version, gateway_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS models (
    task TEXT NOT NULL, version INTEGER NOT NULL, file TEXT NOT NULL, sha256 BLOB NOT NULL, first_seen_us INTEGER NOT NULL,
    PRIMARY KEY (task, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS model_rows (
    task TEXT NOT NULL, version INTEGER NOT NULL, gateway_id INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
    at_us INTEGER NOT NULL, PRIMARY KEY (task, version, gateway_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS alerts (
    id INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, gateway TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
";

/// The lane's word for its number, and a time in ISO 8601, as SQL.
const VIEWS: &str = "
CREATE VIEW IF NOT EXISTS samples AS
    SELECT g.name AS gateway, s.stream, s.device, r.t_us, strftime('%Y-%m-%dT%H:%M:%fZ', r.t_us / 1e6, 'unixepoch') AS time,
        r.payload, CASE r.clock WHEN 0 THEN 'box' ELSE 'cloud' END AS clock,
        CASE r.lane WHEN 0 THEN 'critical' WHEN 1 THEN 'high' WHEN 2 THEN 'normal' ELSE 'bulk' END AS lane, e.epoch, r.seq
    FROM sample_rows r JOIN epochs e ON e.id = r.epoch_id JOIN gateways g ON g.id = e.gateway_id
        JOIN sources s ON s.id = r.source_id;
CREATE VIEW IF NOT EXISTS aggregates AS
    SELECT g.name AS gateway, s.stream, s.device, r.channel, r.start_us, r.end_us,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.start_us / 1e6, 'unixepoch') AS time,
        r.count, r.min, r.max, r.sum / r.count AS mean, r.first_us, r.last_us, r.t_us,
        CASE r.clock WHEN 0 THEN 'box' ELSE 'cloud' END AS clock,
        CASE r.lane WHEN 0 THEN 'critical' WHEN 1 THEN 'high' WHEN 2 THEN 'normal' ELSE 'bulk' END AS lane, e.epoch, r.seq
    FROM aggregate_rows r JOIN epochs e ON e.id = r.epoch_id JOIN gateways g ON g.id = e.gateway_id
        JOIN sources s ON s.id = r.source_id;
CREATE VIEW IF NOT EXISTS verdicts AS
    SELECT g.name AS gateway, s.stream, s.device, r.start_us, r.end_us,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.end_us / 1e6, 'unixepoch') AS time,
        r.model, r.version, r.label, r.score, r.confidence, r.t_us, CASE r.clock WHEN 0 THEN 'box' ELSE 'cloud' END AS clock,
        CASE r.lane WHEN 0 THEN 'critical' WHEN 1 THEN 'high' WHEN 2 THEN 'normal' ELSE 'bulk' END AS lane, e.epoch, r.seq
    FROM verdict_rows r JOIN epochs e ON e.id = r.epoch_id JOIN gateways g ON g.id = e.gateway_id
        JOIN sources s ON s.id = r.source_id;
CREATE VIEW IF NOT EXISTS windows AS
    SELECT g.name AS gateway, s.stream, s.device, r.start_us, r.end_us,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.start_us / 1e6, 'unixepoch') AS time,
        r.channels, r.length, r.data, r.t_us, CASE r.clock WHEN 0 THEN 'box' ELSE 'cloud' END AS clock,
        CASE r.lane WHEN 0 THEN 'critical' WHEN 1 THEN 'high' WHEN 2 THEN 'normal' ELSE 'bulk' END AS lane, e.epoch, r.seq
    FROM window_rows r JOIN epochs e ON e.id = r.epoch_id JOIN gateways g ON g.id = e.gateway_id
        JOIN sources s ON s.id = r.source_id;
CREATE VIEW IF NOT EXISTS voids AS
    SELECT g.name AS gateway, e.epoch,
        CASE r.lane WHEN 0 THEN 'critical' WHEN 1 THEN 'high' WHEN 2 THEN 'normal' ELSE 'bulk' END AS lane,
        r.first, r.last, r.reason, strftime('%Y-%m-%dT%H:%M:%fZ', r.at_us / 1e6, 'unixepoch') AS time
    FROM void_rows r JOIN epochs e ON e.id = r.epoch_id JOIN gateways g ON g.id = e.gateway_id;
CREATE VIEW IF NOT EXISTS thinned AS
    SELECT g.name AS gateway, e.epoch,
        CASE r.lane WHEN 0 THEN 'critical' WHEN 1 THEN 'high' WHEN 2 THEN 'normal' ELSE 'bulk' END AS lane,
        r.first, r.last, r.left_out, strftime('%Y-%m-%dT%H:%M:%fZ', r.at_us / 1e6, 'unixepoch') AS time
    FROM thinned_rows r JOIN epochs e ON e.id = r.epoch_id JOIN gateways g ON g.id = e.gateway_id;
CREATE VIEW IF NOT EXISTS policy_states AS
    SELECT r.version, g.name AS gateway, r.state, r.reason, strftime('%Y-%m-%dT%H:%M:%fZ', r.at_us / 1e6, 'unixepoch') AS time
    FROM policy_rows r JOIN gateways g ON g.id = r.gateway_id;
CREATE VIEW IF NOT EXISTS model_states AS
    SELECT r.task, r.version, g.name AS gateway, r.state, r.reason,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.at_us / 1e6, 'unixepoch') AS time
    FROM model_rows r JOIN gateways g ON g.id = r.gateway_id;
CREATE VIEW IF NOT EXISTS missing AS
    SELECT g.name AS gateway, e.epoch,
        CASE r.lane WHEN 0 THEN 'critical' WHEN 1 THEN 'high' WHEN 2 THEN 'normal' ELSE 'bulk' END AS lane,
        r.first, r.last, strftime('%Y-%m-%dT%H:%M:%fZ', r.found_us / 1e6, 'unixepoch') AS time
    FROM missing_rows r JOIN epochs e ON e.id = r.epoch_id JOIN gateways g ON g.id = e.gateway_id;
";

#[cfg(test)]
mod tests;
