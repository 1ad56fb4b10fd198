//! The store of models on a box.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use weir_host::sign::PublicKey;
use weir_infer::{Manifest, Problem};
use weir_logic::models::{Crashes, Release, Slot};

use super::FOLDER;
use super::disk::{Disk, Folder};
use super::{Head, Package, PackageError, verify};

/// Why something cannot be stored, or taken out.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The package, or what is left of it.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The manifest in it.
    #[error("its manifest has {n} mistake(s): {first}", n = problems.len(), first = problems.first().map(ToString::to_string).unwrap_or_default())]
    Manifest {
        /// At least one.
        problems: Vec<Problem>,
    },
    /// Its manifest is of another model.
    #[error("its manifest is of a model with another sha256 than its head: sign it again with `weir model sign`")]
    Another,
    /// A part that a release names is gone.
    #[error("{part} of version {version} is not in the store {path}", path = path.display())]
    Gone {
        /// Which part.
        part: &'static str,
        /// The release's version.
        version: u64,
        /// The store.
        path: PathBuf,
    },
    /// No room.
    #[error(
        "it has {len} bytes, and {used} of the store's {limit} are taken by models in use, their predecessors and the one on trial: \
         raise infer.updates.size_limit, or make the model smaller"
    )]
    Full {
        /// Of the package.
        len: u64,
        /// Taken.
        used: u64,
        /// In all.
        limit: u64,
    },
    /// The disk.
    #[error("the store {path} cannot be used: check the disk and its permissions", path = path.display())]
    Disk {
        /// The store.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// A release that was taken out of the store, with signature, target and sums as they should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// What it says of itself.
    pub head: Head,
    /// Its manifest; `file` is in the store.
    pub manifest: Manifest,
    /// The manifest's text.
    pub manifest_text: String,
}

/// The store: files by their sums, and what is remembered of each task. One at a time may be open.
#[derive(Debug)]
pub struct ModelStore {
    disk: Box<dyn Disk>,
    key: PublicKey,
    gateway: String,
    size_limit: u64,
    slots: BTreeMap<String, Slot>,
    crashes: Crashes,
}

/// What is remembered of the tasks.
const STATE: &str = "state.json";
/// What is remembered of the box's runs.
const RUNS: &str = "runs.json";
/// Longest of the two: 64 tasks of some hundred bytes.
const STATE_LEN_MAX: u64 = 256 << 10;
/// Longest head with its signature.
const HEAD_LEN_MAX: u64 = 16 << 10;
/// Longest manifest.
const MANIFEST_LEN_MAX: u64 = 64 << 10;
/// Tasks that are remembered; a box has at most so many models.
const TASKS_MAX: usize = 64;

impl ModelStore {
    /// Opens the store in a data directory, making it if there is none.
    ///
    /// What is remembered and cannot be read is reported to the log and taken as nothing: the files of the configuration answer.
    ///
    /// # Errors
    /// `Disk`.
    pub fn open(data_dir: &Path, key: PublicKey, gateway: &str, size_limit: u64) -> Result<ModelStore, StoreError> {
        let path = data_dir.join(FOLDER);
        let disk = Folder::open(&path).map_err(|source| StoreError::Disk { path, source })?;
        ModelStore::open_on(Box::new(disk), key, gateway, size_limit)
    }

    pub(super) fn open_on(
        disk: Box<dyn Disk>,
        key: PublicKey,
        gateway: &str,
        size_limit: u64,
    ) -> Result<ModelStore, StoreError> {
        let (slots, crashes) = (remembered(&*disk, STATE), remembered(&*disk, RUNS));
        Ok(ModelStore { disk, key, gateway: gateway.to_owned(), size_limit, slots, crashes })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    /// What is remembered, by task.
    pub fn slots(&self) -> &BTreeMap<String, Slot> {
        &self.slots
    }

    /// What is remembered of a task.
    pub fn slot(&self, task: &str) -> Slot {
        self.slots.get(task).cloned().unwrap_or_default()
    }

    /// Remembers a task's slot, durably, and removes what no slot names any more.
    ///
    /// # Errors
    /// `Disk`; all is then as it was.
    pub fn save(&mut self, task: &str, slot: &Slot) -> Result<(), StoreError> {
        let mut slots = self.slots.clone();
        slots.insert(task.to_owned(), slot.clone());
        if slots.len() > TASKS_MAX {
            let source = io::Error::other(format!("more than {TASKS_MAX} tasks"));
            return Err(StoreError::Disk { path: self.path().to_owned(), source });
        }
        let bytes = serde_json::to_vec(&slots).map_err(io::Error::from);
        bytes.and_then(|bytes| self.put(STATE, &bytes)).map_err(|source| self.failed(source))?;
        self.slots = slots;
        Ok(())
    }

    /// The box starts, so many microseconds after the machine in its boot: true if the run before it crashed. It is noted
    /// before this returns.
    ///
    /// # Errors
    /// `Disk`; what is said of the run before is lost then.
    pub fn run_begins(&mut self, now_us: u64, boot: &str) -> Result<bool, StoreError> {
        let has_crashed = self.crashes.started(now_us, boot);
        self.save_runs()?;
        Ok(has_crashed)
    }

    /// The box stops in good order.
    ///
    /// # Errors
    /// `Disk`; the next start then counts as one after a crash.
    pub fn run_ends(&mut self) -> Result<(), StoreError> {
        self.crashes.stopped();
        self.save_runs()
    }

    /// True if models must not run.
    pub fn forbid_models(&self) -> bool {
        self.crashes.forbid_models()
    }

    /// Takes in a package whose signature, sums and target are right; it is in no slot yet.
    ///
    /// # Errors
    /// See [`StoreError`]; what is in use is as it was.
    pub fn import(&mut self, bytes: &[u8]) -> Result<(Release, Head), StoreError> {
        let package = Package::read(bytes)?;
        verify(&package.head, &package.head_text, &package.signature, &self.key, &self.gateway)?;
        self.manifest(&package.head, &package.manifest)?;
        let id = package.id();
        self.collect().map_err(|source| self.failed(source))?;
        let used: u64 = self.disk.list().map_err(|source| self.failed(source))?.iter().map(|(_, len)| len).sum();
        let len = bytes.len() as u64;
        if used.saturating_add(len) > self.size_limit {
            return Err(StoreError::Full { len, used, limit: self.size_limit });
        }
        let head = format!("{}\n{}\n", package.head_text, package.signature);
        let parts = [
            (manifest_name(&package.head), package.manifest.as_slice()),
            (model_name(&package.head), package.model.as_slice()),
            (head_name(&id), head.as_bytes()),
        ];
        for (name, bytes) in parts {
            self.put(&name, bytes).map_err(|source| self.failed(source))?;
        }
        let Head { version, window_us_max, .. } = package.head;
        Ok((Release { version, id, window_us_max }, package.head))
    }

    /// Takes a release out. Its signature, target and the sums of head and manifest are looked at again; that of the model is
    /// by whoever loads it, because the manifest names it.
    ///
    /// # Errors
    /// `Gone`, `Package`, `Manifest`, `Another` or `Disk`.
    pub fn load(&self, release: &Release) -> Result<Kept, StoreError> {
        let gone = |part| StoreError::Gone { part, version: release.version, path: self.path().to_owned() };
        let text = self.text(&head_name(&release.id), HEAD_LEN_MAX)?.ok_or_else(|| gone("the head"))?;
        let (head_text, signature) = text.split_once('\n').ok_or(PackageError::Form("its head has no signature"))?;
        let (found, expected) = (Package::sum(head_text.as_bytes()), release.id.clone());
        if found != expected {
            return Err(PackageError::Sum { part: "head", found, expected }.into());
        }
        let head = Head::read(head_text)?;
        verify(&head, head_text, signature, &self.key, &self.gateway)?;
        let manifest_text = self.text(&manifest_name(&head), MANIFEST_LEN_MAX)?.ok_or_else(|| gone("the manifest"))?;
        let (found, expected) = (Package::sum(manifest_text.as_bytes()), head.manifest.clone());
        if found != expected {
            return Err(PackageError::Sum { part: "manifest", found, expected }.into());
        }
        let manifest = self.manifest(&head, manifest_text.as_bytes())?;
        Ok(Kept { head, manifest, manifest_text })
    }

    /// The manifest of a head, with its file in the store.
    fn manifest(&self, head: &Head, bytes: &[u8]) -> Result<Manifest, StoreError> {
        let text = String::from_utf8_lossy(bytes);
        let mut manifest = Manifest::parse(&text, self.path()).map_err(|problems| StoreError::Manifest { problems })?;
        if hex(&manifest.sha256) != head.model {
            return Err(StoreError::Another);
        }
        manifest.file = self.path().join(model_name(head));
        Ok(manifest)
    }

    /// Removes what no slot names: what was cut off by a crash, and what came before the previous one.
    fn collect(&mut self) -> io::Result<()> {
        let mut kept = vec![STATE.to_owned(), RUNS.to_owned()];
        for release in self.slots.values().flat_map(Slot::kept) {
            let head = self.disk.read(&head_name(&release.id), HEAD_LEN_MAX)?.unwrap_or_default();
            let text = String::from_utf8_lossy(&head);
            kept.push(head_name(&release.id));
            if let Some(head) = text.lines().next().and_then(|line| Head::read(line).ok()) {
                kept.extend([manifest_name(&head), model_name(&head)]);
            }
        }
        let listed = self.disk.list()?;
        for (name, _) in listed.iter().filter(|(name, _)| !kept.contains(name)) {
            self.disk.remove(name)?;
        }
        self.disk.sync()
    }

    /// Writes a file, whole or not at all, and durably.
    fn put(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let draft = format!("{name}.new");
        self.disk.write(&draft, bytes)?;
        self.disk.rename(&draft, name)?;
        self.disk.sync()
    }

    fn save_runs(&mut self) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(&self.crashes).map_err(io::Error::from);
        bytes.and_then(|bytes| self.put(RUNS, &bytes)).map_err(|source| self.failed(source))
    }

    fn text(&self, name: &str, len_max: u64) -> Result<Option<String>, StoreError> {
        let bytes = self.disk.read(name, len_max).map_err(|source| self.failed(source))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn failed(&self, source: io::Error) -> StoreError {
        StoreError::Disk { path: self.path().to_owned(), source }
    }
}

/// What a file remembers; nothing if it is not there or damaged.
fn remembered<T: Default + serde::de::DeserializeOwned>(disk: &dyn Disk, name: &str) -> T {
    let read = disk.read(name, STATE_LEN_MAX).and_then(|bytes| match bytes {
        Some(bytes) => Ok(serde_json::from_slice(&bytes)?),
        None => Ok(T::default()),
    });
    read.unwrap_or_else(|err: io::Error| {
        let path = disk.path().join(name);
        tracing::error!(path = %path.display(), %err, "what is remembered of models cannot be read; the files of the configuration are used");
        T::default()
    })
}

fn head_name(id: &str) -> String {
    format!("{id}.head")
}

fn manifest_name(head: &Head) -> String {
    format!("{}.toml", head.manifest)
}

fn model_name(head: &Head) -> String {
    format!("{}.onnx", head.model)
}

fn hex(bytes: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

#[cfg(test)]
mod tests;
