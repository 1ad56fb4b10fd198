//! Configurations on the data partition, and what comes to them from the provisioning partition.
//!
//! A configuration is a folder: `edge.toml`, and beside it the certificates, keys and models that it names by relative paths. It is
//! named by the sum of its content, so what was provisioned before is known, whatever its times and order. In `configs/`:
//!
//! ```text
//! 3f9a06c1d2b48e57/           a configuration, complete: it was written under another name and renamed
//! good -> 3f9a06c1d2b48e57    the one that the program got ready with last
//! ```
//!
//! Only renames decide, so a power cut at any moment leaves the one before or the one after. That one was refused is not kept: it is
//! tried once at each start, because the program may be another by then, and says its reason where somebody can see it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The file that makes a folder a configuration.
pub const CONFIG_FILE: &str = "edge.toml";
/// Most bytes of a provisioned folder: models are a few megabytes, and the provisioning partition has 16 MiB.
const BYTES_MAX: u64 = 64 << 20;
/// Most files in it.
const FILES_MAX: usize = 1_000;
/// Deepest folder in it.
const DEPTH_MAX: usize = 8;
/// Files beside a configuration that are no part of it: the image's own, and what Windows leaves.
const OTHERS: [&str; 3] = ["README.TXT", "network.conf", "System Volume Information"];
const GOOD: &str = "good";

/// Where the configurations are.
#[derive(Debug)]
pub struct Configs {
    root: PathBuf,
    owner: Option<(u32, u32)>,
}

/// A configuration's name: the start of the sum of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigId(String);

impl std::fmt::Display for ConfigId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is on the provisioning partition, compared with what is known.
#[derive(Debug, PartialEq, Eq)]
pub enum Provisioned {
    /// Nothing.
    Nothing,
    /// The good configuration.
    Known(ConfigId),
    /// A new one; it is on the data partition now.
    New(ConfigId),
}

/// Why what was provisioned cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// Files, but not the one that counts.
    #[error("there is no {CONFIG_FILE} among the {files} files in {}", folder.display())]
    NoConfig {
        /// The folder.
        folder: PathBuf,
        /// Files in it.
        files: usize,
    },
    /// Too much.
    #[error("{} has more than {BYTES_MAX} bytes or {FILES_MAX} files, or folders in more than {DEPTH_MAX} others", folder.display())]
    TooLarge {
        /// The folder.
        folder: PathBuf,
    },
    /// It cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The data partition does not take it.
    #[error("{} cannot be written", path.display())]
    Write {
        /// What.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A file of a provisioned folder, in memory.
struct Entry {
    path: PathBuf,
    content: Vec<u8>,
}

impl Configs {
    /// In the folder `root`; files that are written there belong to `owner` (user and group), or to this process.
    pub fn new(root: &Path, owner: Option<(u32, u32)>) -> Self {
        Configs { root: root.to_owned(), owner }
    }

    /// Looks at a provisioned folder and takes a configuration in that is new.
    ///
    /// # Errors
    /// See [`ProvisionError`]; what is on the data partition stays as it was.
    pub fn take_in(&self, folder: &Path) -> Result<Provisioned, ProvisionError> {
        let entries = read(folder)?;
        if entries.is_empty() {
            return Ok(Provisioned::Nothing);
        }
        if !entries.iter().any(|entry| entry.path == Path::new(CONFIG_FILE)) {
            return Err(ProvisionError::NoConfig { folder: folder.to_owned(), files: entries.len() });
        }
        let id = sum(&entries);
        if self.good_id().as_ref() == Some(&id) {
            return Ok(Provisioned::Known(id));
        }
        self.write(&id, &entries)?;
        Ok(Provisioned::New(id))
    }

    /// The file of a configuration.
    pub fn file(&self, id: &ConfigId) -> PathBuf {
        self.root.join(&id.0).join(CONFIG_FILE)
    }

    /// The good configuration, if there is one.
    pub fn good_id(&self) -> Option<ConfigId> {
        let id = ConfigId(fs::read_link(self.root.join(GOOD)).ok()?.to_str()?.to_owned());
        self.file(&id).is_file().then_some(id)
    }

    /// Makes a configuration the good one, and removes all others.
    ///
    /// # Errors
    /// `Write`.
    pub fn promote(&self, id: &ConfigId) -> Result<(), ProvisionError> {
        let (link, fresh) = (self.root.join(GOOD), self.root.join("good.new"));
        let failed = |source| ProvisionError::Write { path: link.clone(), source };
        remove(&fresh).map_err(failed)?;
        symlink(&id.0, &fresh).and_then(|()| fs::rename(&fresh, &link)).and_then(|()| sync_dir(&self.root)).map_err(failed)?;
        for entry in fs::read_dir(&self.root).map_err(failed)?.flatten() {
            let name = entry.file_name();
            if name != OsStr::new(GOOD) && name != OsStr::new(&id.0) {
                // What cannot be removed now is looked at again after the next one.
                let _ = remove(&entry.path());
            }
        }
        Ok(())
    }

    /// Removes a configuration that was refused.
    ///
    /// # Errors
    /// `Write`; it is in nobody's way.
    pub fn discard(&self, id: &ConfigId) -> Result<(), ProvisionError> {
        let path = self.root.join(&id.0);
        remove(&path).map_err(|source| ProvisionError::Write { path, source })
    }

    fn write(&self, id: &ConfigId, entries: &[Entry]) -> Result<(), ProvisionError> {
        let (folder, fresh) = (self.root.join(&id.0), self.root.join(format!("{id}.new")));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ProvisionError::Write { path, source }
        };
        fs::create_dir_all(&self.root).and_then(|()| self.own(&self.root)).map_err(failed(&self.root))?;
        remove(&fresh).and_then(|()| remove(&folder)).and_then(|()| self.make_dir(&fresh)).map_err(failed(&fresh))?;
        for entry in entries {
            let path = fresh.join(&entry.path);
            self.write_file(&fresh, &path, &entry.content).map_err(failed(&path))?;
        }
        sync_dir(&fresh).and_then(|()| fs::rename(&fresh, &folder)).and_then(|()| sync_dir(&self.root)).map_err(failed(&folder))
    }

    /// Keys may be among the files, so only the owner reads them.
    fn write_file(&self, top: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
        let parent = path.parent().unwrap_or(top);
        let missing: Vec<&Path> = parent.ancestors().take_while(|folder| *folder != top && !folder.exists()).collect();
        for folder in missing.into_iter().rev() {
            self.make_dir(folder)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        file.sync_all()?;
        self.own(path)?;
        sync_dir(parent)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(path)?;
        self.own(path)
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        self.owner.map_or(Ok(()), |(user, group)| chown(path, Some(user), Some(group)))
    }
}

/// All files below a folder, sorted by path, without those that are none of ours.
fn read(folder: &Path) -> Result<Vec<Entry>, ProvisionError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ProvisionError::Read { path, source }
    };
    let too_large = || ProvisionError::TooLarge { folder: folder.to_owned() };
    let (mut entries, mut bytes, mut folders) = (Vec::new(), 0, vec![(folder.to_owned(), 0)]);
    while let Some((current, depth)) = folders.pop() {
        if depth > DEPTH_MAX {
            return Err(too_large());
        }
        for entry in fs::read_dir(&current).map_err(failed(&current))? {
            let entry = entry.map_err(failed(&current))?;
            let (name, path) = (entry.file_name(), entry.path());
            let is_foreign =
                name.as_encoded_bytes().starts_with(b".") || OTHERS.iter().any(|other| name.eq_ignore_ascii_case(other));
            let kind = entry.file_type().map_err(failed(&path))?;
            if is_foreign {
                continue;
            }
            if kind.is_dir() {
                folders.push((path, depth + 1));
            } else if kind.is_file() {
                let mut content = Vec::new();
                let file = File::open(&path).map_err(failed(&path))?;
                bytes += file.take(BYTES_MAX + 1).read_to_end(&mut content).map_err(failed(&path))? as u64;
                if bytes > BYTES_MAX || entries.len() >= FILES_MAX {
                    return Err(too_large());
                }
                let path = path.strip_prefix(folder).unwrap_or(&path).to_owned();
                entries.push(Entry { path, content });
            }
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn sum(entries: &[Entry]) -> ConfigId {
    let mut sum = Sha256::new();
    for Entry { path, content } in entries {
        let path = path.as_os_str().as_encoded_bytes();
        for part in [path, content] {
            sum.update((part.len() as u64).to_le_bytes());
            sum.update(part);
        }
    }
    ConfigId(sum.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// Removes whatever is at a path; what is not there is removed.
fn remove(path: &Path) -> io::Result<()> {
    let outcome = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(err) => Err(err),
    };
    match outcome {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests;
