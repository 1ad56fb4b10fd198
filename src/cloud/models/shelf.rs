//! The directory of models: packages `NAME.weir-model`, looked at every few seconds, and their parts for whoever asks.
//!
//! A file is taken when it was the same at two looks: whoever copies it does not do so in one step. Its lengths and sums are
//! compared then, because what is damaged here would be carried to every box to be refused there; its signature is not, because
//! the cloud has no key. A file stays open while it is offered, so that one that is replaced or removed goes on being what it was for
//! those who are at it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;
use weir_host::package::{Head, PACKAGE_EXTENSION, PACKAGE_LEN_MAX, Package};
use weir_host::shutdown::Shutdown;
use weir_logic::rollout::is_for;
use weir_logic::wire::Body;
use weir_logic::wire::model::{CHUNK_LEN_MAX, ModelAsk, ModelChunk, ModelOffer, ModelRefusal};

use crate::metrics::Metrics;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Files that are read; those with the highest names, because versions are mostly in names.
const FILES_MAX: usize = 64;

/// A package that can be offered.
#[derive(Debug)]
pub(crate) struct Shelved {
    /// Name of its file, without the folder.
    pub(crate) name: String,
    pub(crate) head: Head,
    head_text: String,
    signature: String,
    len: u64,
    pub(crate) sha256: Bytes,
    file: File,
}

/// What is in the directory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shelf {
    /// By task and version.
    pub(crate) packages: BTreeMap<(String, u64), Arc<Shelved>>,
    /// What cannot be offered, and why.
    pub(crate) problems: Vec<String>,
}

/// When each file was changed, and its length.
type Stamps = BTreeMap<PathBuf, Option<(SystemTime, u64)>>;

/// What came of reading a file, while it stays the same.
type Read = BTreeMap<PathBuf, (Option<(SystemTime, u64)>, Result<Arc<Shelved>, String>)>;

impl Shelved {
    pub(crate) fn offer(&self) -> Body {
        Body::ModelOffer(ModelOffer {
            task: self.head.task.clone(),
            version: self.head.version,
            len: self.len,
            sha256: self.sha256.clone(),
            head: self.head_text.clone(),
            signature: self.signature.clone(),
        })
    }

    /// Reads a file, and compares its lengths and sums; in words, why it is not offered.
    fn read(path: &Path, name: &str) -> Result<Shelved, String> {
        let unreadable = |err: io::Error| format!("{name} cannot be read: {err}");
        let file = File::open(path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        if len > PACKAGE_LEN_MAX {
            return Err(format!("{name} has {len} bytes, more than the {PACKAGE_LEN_MAX} that a box takes"));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).map_err(unreadable)?;
        let package = Package::read(&bytes).map_err(|err| format!("{name}: {err}"))?;
        let sha256 = Package::sum_bytes(&bytes).into();
        let Package { head, head_text, signature, .. } = package;
        Ok(Shelved { name: name.to_owned(), head, head_text, signature, len, sha256, file })
    }

    fn chunk(&self, offset: u64, len: u32) -> io::Result<Bytes> {
        let len = u64::from(len).min(CHUNK_LEN_MAX as u64).min(self.len.saturating_sub(offset));
        let mut data = vec![0; len as usize];
        self.file.read_exact_at(&mut data, offset)?;
        Ok(data.into())
    }
}

impl Shelf {
    /// The package of this sum, if it is here and for this gateway. Blocks for the disk only when it is read.
    fn find(&self, sha256: &[u8], gateway: &str) -> Option<Arc<Shelved>> {
        let found = self.packages.values().find(|shelved| shelved.sha256 == sha256);
        found.filter(|shelved| is_for(&shelved.head.gateways, gateway)).cloned()
    }

    fn is_as(&self, other: &Shelf) -> bool {
        let sums = |shelf: &Shelf| -> Vec<_> {
            shelf.packages.values().map(|shelved| (shelved.name.clone(), shelved.sha256.clone())).collect()
        };
        sums(self) == sums(other) && self.problems == other.problems
    }
}

/// The packages, for the streams of those who ask for parts.
#[derive(Debug, Clone)]
pub(crate) struct Library {
    pub(crate) shelf_rx: watch::Receiver<Arc<Shelf>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Library {
    /// Answers a gateway that asks for a part of a package.
    pub(crate) async fn answer(&self, gateway: &str, ask: ModelAsk) -> Body {
        let shelf = self.shelf_rx.borrow().clone();
        let body = answer(shelf, gateway, ask).await;
        match &body {
            Body::ModelChunk(chunk) => {
                self.metrics.model_chunks.fetch_add(1, Relaxed);
                self.metrics.model_bytes.fetch_add(chunk.data.len() as u64, Relaxed);
            }
            _ => {
                self.metrics.model_refusals.fetch_add(1, Relaxed);
            }
        }
        body
    }
}

async fn answer(shelf: Arc<Shelf>, gateway: &str, ask: ModelAsk) -> Body {
    let refusal = |reason: &str| Body::ModelRefusal(ModelRefusal { reason: reason.to_owned() });
    let Some(shelved) = shelf.find(&ask.sha256, gateway) else { return refusal("has no such package for this box any more") };
    if ask.offset >= shelved.len || ask.len == 0 {
        return refusal("has nothing at that place of the package");
    }
    let offset = ask.offset;
    match tokio::task::spawn_blocking(move || shelved.chunk(offset, ask.len)).await {
        Ok(Ok(data)) => Body::ModelChunk(ModelChunk { offset, data }),
        Ok(Err(err)) => {
            tracing::error!(%err, "a package of a model cannot be read");
            refusal("cannot read the package")
        }
        Err(_) => refusal("is stopping"),
    }
}

/// Looks again and again, and publishes what has changed.
pub(crate) async fn watch(folder: Option<PathBuf>, shelf_tx: watch::Sender<Arc<Shelf>>, mut shutdown: Shutdown) {
    let Some(folder) = folder else { return shutdown.requested().await };
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut before, mut taken, mut read) = (None, None, Read::new());
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
        let known = std::mem::take(&mut read);
        let Ok((next, shelf)) = tokio::task::spawn_blocking(move || look(known, stamps)).await else { continue };
        read = next;
        publish(&shelf_tx, shelf);
    }
}

fn publish(shelf_tx: &watch::Sender<Arc<Shelf>>, shelf: Shelf) {
    let shelf = Arc::new(shelf);
    let changed = shelf_tx.send_if_modified(|old| {
        let is_other = !old.is_as(&shelf);
        *old = shelf.clone();
        is_other
    });
    if changed {
        tracing::info!(packages = shelf.packages.len(), "directory of models changed");
        for problem in &shelf.problems {
            tracing::error!(problem, "model cannot be offered");
        }
    }
}

/// The packages' files. In words: why the folder cannot be read.
fn stamps(folder: &Path) -> Result<Stamps, String> {
    let listed = std::fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = listed.map_err(|err| format!("{} cannot be read: {err}", folder.display()))?;
    let is_package = |path: &PathBuf| {
        let is_hidden = path.file_name().and_then(OsStr::to_str).is_none_or(|name| name.starts_with('.'));
        !is_hidden && path.extension() == Some(OsStr::new(PACKAGE_EXTENSION))
    };
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(is_package).collect();
    files.sort();
    let surplus = files.len().saturating_sub(FILES_MAX);
    let stamp = |path: PathBuf| {
        let found = std::fs::metadata(&path).ok();
        let stamp = found.and_then(|found| Some((found.modified().ok()?, found.len())));
        (path, stamp)
    };
    Ok(files.into_iter().skip(surplus).map(stamp).collect())
}

/// What can be offered of these files; those that are as they were are not read again.
fn look(mut known: Read, stamps: Result<Stamps, String>) -> (Read, Shelf) {
    let (mut read, mut shelf) = (Read::new(), Shelf::default());
    let stamps = match stamps {
        Ok(stamps) => stamps,
        Err(problem) => {
            shelf.problems.push(problem);
            return (read, shelf);
        }
    };
    for (path, stamp) in stamps {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let before = known.remove(&path).filter(|(before, _)| *before == stamp && stamp.is_some());
        let found = before.map_or_else(|| Shelved::read(&path, &name).map(Arc::new), |(_, found)| found);
        match &found {
            Ok(shelved) => {
                let key = (shelved.head.task.clone(), shelved.head.version);
                if let Some(other) = shelf.packages.insert(key, shelved.clone()) {
                    let Head { task, version, .. } = &shelved.head;
                    let (name, other) = (&shelved.name, &other.name);
                    shelf
                        .problems
                        .push(format!("{name}: version {version} for {task} is that of {other}, too; {name} is taken"));
                }
            }
            Err(problem) => shelf.problems.push(problem.clone()),
        }
        read.insert(path, (stamp, found));
    }
    (read, shelf)
}

#[cfg(test)]
pub(super) mod tests {
    use weir_host::sign::SecretKey;

    use super::*;

    pub(crate) fn package(task: &str, version: u64, gateways: &[&str]) -> Vec<u8> {
        let gateways = gateways.iter().map(ToString::to_string).collect();
        let (manifest, model) = (String::new(), String::new());
        let head = Head { task: task.to_owned(), version, gateways, window_us_max: 500, manifest, model };
        let key = SecretKey::generate().unwrap();
        Package::sign(head, b"name = 'm'\n".to_vec(), vec![version as u8; 100_000], &key).to_bytes()
    }

    pub(crate) fn shelf(folder: &Path) -> Shelf {
        look(Read::new(), stamps(folder)).1
    }

    #[test]
    fn whole_packages_are_found_and_the_others_are_explained() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("a-1.weir-model", &package("a", 1, &[]));
        write("a-2.weir-model", &package("a", 2, &["box-*"]));
        write("b-2.weir-model", &package("b", 2, &[]));
        write("b-2-again.weir-model", &package("b", 2, &[]));
        write("cut.weir-model", &package("c", 1, &[])[..50_000]);
        write("noise.weir-model", b"noise");
        write(".hidden.weir-model", b"noise");
        write("README.md", b"");
        let shelf = shelf(dir.path());
        let found: Vec<_> = shelf.packages.keys().map(|(task, version)| (task.as_str(), *version)).collect();
        assert_eq!(found, [("a", 1), ("a", 2), ("b", 2)]);
        let parts = ["is that of b-2-again.weir-model, too", "it was cut off or damaged", "it is no package of a model"];
        assert_eq!(shelf.problems.len(), parts.len(), "{:#?}", shelf.problems);
        for (problem, part) in shelf.problems.iter().zip(parts) {
            assert!(problem.contains(part), "{problem}");
        }
        assert!(self::shelf(&dir.path().join("none")).problems[0].contains("cannot be read"));
    }

    #[tokio::test]
    async fn parts_make_up_the_package_and_go_to_those_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = (dir.path().join("a.weir-model"), package("a", 1, &["box-*"]));
        std::fs::write(&path, &bytes).unwrap();
        let shelf = Arc::new(shelf(dir.path()));
        // One that is replaced meanwhile goes on being what it was.
        std::fs::remove_file(&path).unwrap();
        let ask = |offset, len| ModelAsk { sha256: Package::sum_bytes(&bytes).into(), offset, len };
        let mut came = Vec::new();
        while came.len() < bytes.len() {
            let Body::ModelChunk(chunk) = answer(shelf.clone(), "box-1", ask(came.len() as u64, u32::MAX)).await else {
                panic!("a part")
            };
            assert!(chunk.offset == came.len() as u64 && chunk.data.len() <= CHUNK_LEN_MAX);
            came.extend_from_slice(&chunk.data);
        }
        assert!(came == bytes);
        for (gateway, asked, part) in [
            ("hall-1", ask(0, 10), "no such package for this box"),
            ("box-1", ModelAsk { sha256: Bytes::from_static(&[0; 32]), offset: 0, len: 10 }, "no such package"),
            ("box-1", ask(bytes.len() as u64, 10), "nothing at that place"),
            ("box-1", ask(0, 0), "nothing at that place"),
        ] {
            let Body::ModelRefusal(refusal) = answer(shelf.clone(), gateway, asked).await else { panic!("a refusal") };
            assert!(refusal.reason.contains(part), "{}", refusal.reason);
        }
    }

    #[test]
    fn only_what_has_changed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.weir-model");
        std::fs::write(&path, package("a", 1, &[])).unwrap();
        let (read, first) = look(Read::new(), stamps(dir.path()));
        let (read, second) = look(read, stamps(dir.path()));
        let of = |shelf: &Shelf| shelf.packages[&("a".to_owned(), 1)].clone();
        assert!(Arc::ptr_eq(&of(&first), &of(&second)) && first.is_as(&second));
        std::fs::write(&path, [package("a", 1, &[]), vec![0]].concat()).unwrap();
        let (_, third) = look(read, stamps(dir.path()));
        assert!(third.packages.is_empty() && third.problems.len() == 1 && !third.is_as(&second));
    }
}
