//! The directory of policies: `NAME.toml` and `NAME.toml.sig`, looked at every few seconds.
//!
//! A pair of files is taken when it was the same at two looks: whoever copies them does not do so in one step, and a text
//! with the signature of another would halt its version everywhere. A file with a mistake is reported and left out; the
//! others stay.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;
use weir_host::policy::PolicyHead;
use weir_host::shutdown::Shutdown;
use weir_host::sign::signature_from_text;
use weir_logic::wire::POLICY_LEN_MAX;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Files that are read; those with the highest names, because versions are mostly in names.
const FILES_MAX: usize = 64;
/// Longest signature file: 18 characters and 128 digits.
const SIGNATURE_FILE_LEN_MAX: u64 = 1_024;

/// A policy that can be offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Name of its file, without the folder.
    pub(crate) file: String,
    pub(crate) head: PolicyHead,
    pub(crate) text: Bytes,
    pub(crate) signature: Vec<u8>,
}

/// What is in the directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Directory {
    /// By version.
    pub(crate) policies: BTreeMap<u64, Arc<Found>>,
    /// What cannot be offered, and why.
    pub(crate) problems: Vec<String>,
}

/// When each file was changed, and its length.
type Stamps = BTreeMap<PathBuf, Option<(SystemTime, u64)>>;

/// Looks again and again, and publishes what has changed.
pub(crate) async fn watch(folder: Option<PathBuf>, found_tx: watch::Sender<Arc<Directory>>, mut shutdown: Shutdown) {
    let Some(folder) = folder else { return shutdown.requested().await };
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut before, mut taken) = (None, None);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.requested() => return,
        }
        let path = folder.clone();
        let Ok(stamps) = tokio::task::spawn_blocking(move || stamps(&path)).await else { continue };
        let is_settled = before.as_ref() == Some(&stamps);
        before = Some(stamps.clone());
        if !is_settled || taken.as_ref() == Some(&stamps) {
            continue;
        }
        taken = Some(stamps.clone());
        let path = folder.clone();
        let Ok(directory) = tokio::task::spawn_blocking(move || read(&path, stamps)).await else { continue };
        publish(&found_tx, directory);
    }
}

fn publish(found_tx: &watch::Sender<Arc<Directory>>, directory: Directory) {
    let directory = Arc::new(directory);
    let changed = found_tx.send_if_modified(|old| std::mem::replace(old, directory.clone()) != directory);
    if changed {
        let newest = directory.policies.keys().next_back().copied().unwrap_or(0);
        tracing::info!(policies = directory.policies.len(), newest, "directory of policies changed");
        for problem in &directory.problems {
            tracing::error!(problem, "policy cannot be offered");
        }
    }
}

/// The policies' files and those of their signatures. In words: why the folder cannot be read.
fn stamps(folder: &Path) -> Result<Stamps, String> {
    let listed = std::fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = listed.map_err(|err| format!("{} cannot be read: {err}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(|path| is_policy(path)).collect();
    files.sort();
    let surplus = files.len().saturating_sub(FILES_MAX);
    let stamp = |path: PathBuf| {
        let found = std::fs::metadata(&path).ok();
        let stamp = found.and_then(|found| Some((found.modified().ok()?, found.len())));
        (path, stamp)
    };
    Ok(files.into_iter().skip(surplus).flat_map(|path| [signature_path(&path), path]).map(stamp).collect())
}

fn is_policy(path: &Path) -> bool {
    let is_hidden = path.file_name().and_then(OsStr::to_str).is_none_or(|name| name.starts_with('.'));
    !is_hidden && path.extension() == Some(OsStr::new("toml"))
}

fn signature_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sig");
    PathBuf::from(name)
}

fn read(folder: &Path, stamps: Result<Stamps, String>) -> Directory {
    let mut directory = Directory::default();
    let stamps = match stamps {
        Ok(stamps) => stamps,
        Err(problem) => {
            directory.problems.push(problem);
            return directory;
        }
    };
    for path in stamps.into_keys().filter(|path| is_policy(path)) {
        let file = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
        match read_policy(&path, &file) {
            Ok(found) => {
                let version = found.head.version;
                if let Some(other) = directory.policies.insert(version, Arc::new(found)) {
                    directory
                        .problems
                        .push(format!("{file}: version {version} is that of {}, too; {file} is taken", other.file));
                }
            }
            Err(problem) => directory.problems.push(problem),
        }
    }
    directory
}

fn read_policy(path: &Path, file: &str) -> Result<Found, String> {
    let unreadable = |err: io::Error| format!("{file} cannot be read: {err}");
    let len = std::fs::metadata(path).map_err(unreadable)?.len();
    if len > POLICY_LEN_MAX as u64 {
        return Err(format!("{file} has {len} bytes, more than the {POLICY_LEN_MAX} that a box takes"));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let head = PolicyHead::read(file, &text).map_err(|errors| errors.to_string())?;
    let path = signature_path(path);
    let signature = match std::fs::metadata(&path) {
        Ok(found) if found.len() <= SIGNATURE_FILE_LEN_MAX => std::fs::read_to_string(&path),
        Ok(found) => Err(io::Error::other(format!("its {} bytes are no signature", found.len()))),
        Err(err) => Err(err),
    };
    let signature = signature.map_err(|err| match err.kind() {
        io::ErrorKind::NotFound => format!("{file} is not signed: make {file}.sig with `weir policy sign`"),
        _ => format!("{file}.sig cannot be read: {err}"),
    })?;
    let signature = signature_from_text(&signature).map_err(|err| format!("{file}.sig is no signature: {err}"))?;
    Ok(Found { file: file.to_owned(), head, text: Bytes::from(text), signature: signature.to_vec() })
}

#[cfg(test)]
mod tests {
    use weir_host::sign::signature_to_text;

    use super::*;

    fn look(folder: &Path) -> Directory {
        read(folder, stamps(folder))
    }

    #[test]
    fn signed_policies_are_found_and_the_others_are_explained() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let head = |version: u64| format!("[policy]\nversion = {version}\n");
        let signature = signature_to_text(&[7; 64]);
        for (name, version) in [("007.toml", 7), ("008.toml", 8), ("008-again.toml", 8), ("009.toml", 9)] {
            write(name, &head(version));
            write(&format!("{name}.sig"), &signature);
        }
        write("010.toml", &head(10));
        write("011.toml", "[policy]\n");
        write("009.toml.sig", "ed25519-signature:00");
        write("012.toml", &"#".repeat(POLICY_LEN_MAX + 1));
        write(".013.toml", &head(13));
        write("README.md", "");
        let directory = look(dir.path());
        let found: Vec<_> = directory.policies.iter().map(|(version, found)| (*version, found.file.as_str())).collect();
        assert_eq!(found, [(7, "007.toml"), (8, "008.toml")]);
        let parts = [
            "too; 008.toml is taken",
            "009.toml.sig is no signature",
            "010.toml is not signed",
            "`version` is missing",
            "65537 bytes",
        ];
        assert_eq!(directory.problems.len(), parts.len(), "{:#?}", directory.problems);
        for (problem, part) in directory.problems.iter().zip(parts) {
            assert!(problem.contains(part), "{problem}");
        }
        assert!(look(&dir.path().join("none")).problems[0].contains("cannot be read"));
    }

    #[test]
    fn a_change_of_either_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.toml");
        let before = stamps(dir.path());
        std::fs::write(&path, "[policy]\nversion = 1\n").unwrap();
        let unsigned = stamps(dir.path());
        std::fs::write(signature_path(&path), signature_to_text(&[1; 64])).unwrap();
        let signed = stamps(dir.path());
        assert!(before != unsigned && unsigned != signed && signed == stamps(dir.path()));
    }
}
