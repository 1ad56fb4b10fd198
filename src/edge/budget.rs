//! What was used of the months of metered uplinks, kept over restarts in a small file.
//!
//! It is written every ten minutes and at a stop: a crash forgets at most what was used in between, which the pace of a month
//! bears, and flash is not worn. A file that cannot be read counts as none, and is reported.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use weir_logic::budget::BudgetLevel;

/// Between two writes, in microseconds.
pub(crate) const SAVE_US: u64 = 600_000_000;
/// Longest file that is read: 8 uplinks of 200 bytes are far below.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// Where the levels are kept in a data directory.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("budget.json")
}

/// The saved levels, in the order of `names`; empty for those that are not there.
pub(crate) fn load(path: &Path, names: &[String]) -> Vec<BudgetLevel> {
    let saved: BTreeMap<String, BudgetLevel> = match read(path) {
        Ok(saved) => saved,
        Err(err) => {
            tracing::warn!(path = %path.display(), %err, "what was used of metered uplinks this month cannot be read; it counts as nothing");
            BTreeMap::new()
        }
    };
    names.iter().map(|name| saved.get(name).copied().unwrap_or_default()).collect()
}

fn read(path: &Path) -> std::io::Result<BTreeMap<String, BudgetLevel>> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() > FILE_LEN_MAX => Err(std::io::Error::other("the file is too long")),
        Ok(_) => Ok(serde_json::from_slice(&std::fs::read(path)?)?),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(err) => Err(err),
    }
}

/// Replaces the file, whole or not at all. Blocks for a sync of the disk.
///
/// # Errors
/// The system's; the file is then as it was.
pub(crate) fn save(path: &Path, levels: &BTreeMap<String, BudgetLevel>) -> std::io::Result<()> {
    let draft = path.with_extension("json.new");
    let mut file = std::fs::File::create(&draft)?;
    file.write_all(&serde_json::to_vec(levels)?)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_is_there_after_a_restart_and_a_broken_file_counts_as_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let names = ["lte".to_owned(), "sat".to_owned()];
        assert_eq!(load(&path, &names), [BudgetLevel::default(); 2]);
        let used = BudgetLevel { month: Some(682), spent_bytes: 12, price: Some(0.5) };
        save(&path, &BTreeMap::from([("sat".to_owned(), used)])).unwrap();
        assert_eq!(load(&path, &names), [BudgetLevel::default(), used]);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(load(&path, &names), [BudgetLevel::default(); 2]);
    }
}
