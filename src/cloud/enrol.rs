//! Who may connect: names in the configuration, and names in a file that is read again when it changes.
//!
//! A file that cannot be read, or has a line that is no name, changes nothing: the last good list stays, and a warning and
//! a counter tell. An editor that truncates before it writes must not disconnect a fleet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use tokio::sync::watch;
use weir_host::shutdown::Shutdown;
use weir_host::tls::{Identity, Role};

use crate::config::Gateways;
use crate::metrics::Metrics;

/// Largest enrolment file: 50,000 names of the longest kind.
const FILE_LEN_MAX: u64 = 4 << 20;

/// Names that may connect.
pub(crate) type Enrolled = Arc<BTreeSet<String>>;

/// Why an enrolment file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// It cannot be read.
    #[error("the enrolment file {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is longer than any list of names.
    #[error("the enrolment file {} has {len} bytes, more than {FILE_LEN_MAX}", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// A line is no name.
    #[error("the enrolment file {}, line {line}: {reason}; write one name a line", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// All names of the configuration and its file.
///
/// # Errors
/// If there is a file and it cannot be used.
pub(crate) fn read(gateways: &Gateways) -> Result<Enrolled, EnrolError> {
    let mut names: BTreeSet<String> = gateways.enrolled.iter().cloned().collect();
    if let Some(path) = &gateways.enrolled_file {
        read_file(path, &mut names)?;
    }
    Ok(Arc::new(names))
}

fn read_file(path: &Path, names: &mut BTreeSet<String>) -> Result<(), EnrolError> {
    let error = |source| EnrolError::Read { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(error)?.len();
    if len > FILE_LEN_MAX {
        return Err(EnrolError::TooLong { path: path.to_owned(), len });
    }
    let text = std::fs::read_to_string(path).map_err(error)?;
    for (at, line) in text.lines().enumerate() {
        let name = line.split('#').next().unwrap_or_default().trim();
        if name.is_empty() {
            continue;
        }
        let identity = Identity::new(Role::Gateway, name);
        identity.map_err(|err| EnrolError::Line { path: path.to_owned(), line: at + 1, reason: err.to_string() })?;
        names.insert(name.to_owned());
    }
    Ok(())
}

/// Looks at the file again and again, and publishes the names when they change.
pub(crate) async fn watch_file(
    gateways: Gateways,
    enrolled_tx: watch::Sender<Enrolled>,
    metrics: Arc<Metrics>,
    mut shutdown: Shutdown,
) {
    if gateways.enrolled_file.is_none() {
        return shutdown.requested().await;
    }
    let mut ticks = tokio::time::interval(gateways.enrolled_recheck.as_std());
    let mut seen = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.requested() => return,
        }
        let gateways = gateways.clone();
        let Ok((stamp, outcome)) = tokio::task::spawn_blocking(move || look(&gateways, seen)).await else { continue };
        seen = stamp;
        match outcome {
            None => {}
            Some(Ok(names)) => {
                let changed = enrolled_tx.send_if_modified(|old| std::mem::replace(old, names.clone()) != names);
                if changed {
                    tracing::info!(gateways = names.len(), "enrolment changed");
                }
            }
            Some(Err(err)) => {
                metrics.enrolment_failures.fetch_add(1, Relaxed);
                tracing::warn!(%err, "enrolment kept as it was");
            }
        }
    }
}

/// When a file was changed last, and its length: a file written twice within the clock's grain differs in that at least.
type Stamp = Option<(SystemTime, u64)>;

/// Reads the file if it is not as it was seen, or changed so lately that it may change again under the same stamp.
fn look(gateways: &Gateways, seen: Stamp) -> (Stamp, Option<Result<Enrolled, EnrolError>>) {
    let found = gateways.enrolled_file.as_ref().and_then(|path| std::fs::metadata(path).ok());
    let stamp: Stamp = found.and_then(|found| Some((found.modified().ok()?, found.len())));
    let is_fresh = stamp.is_none_or(|(modified, _)| modified.elapsed().is_ok_and(|age| age.as_secs() < 2));
    let outcome = (is_fresh || stamp != seen).then(|| read(gateways));
    (stamp, outcome)
}
