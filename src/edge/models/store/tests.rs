//! The store on a disk that loses its power at every step, and on a real folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use weir_host::sign::SecretKey;
use weir_logic::models::{Stage, Trial};

use super::*;

fn head(version: u64) -> Head {
    let (gateways, manifest, model) = (vec!["box-*".to_owned()], String::new(), String::new());
    Head { task: "activity".to_owned(), version, gateways, window_us_max: 500, manifest, model }
}

/// What survives a loss of power, and what was done to names since.
#[derive(Debug, Clone, Default)]
struct Paper {
    durable: BTreeMap<String, Vec<u8>>,
    pending: Vec<Change>,
    /// Steps until the power goes; each change of a name and each half of a write is one.
    left: usize,
}

#[derive(Debug, Clone)]
enum Change {
    Made(String, Vec<u8>),
    /// From one name to another, with the content that was synced before.
    Renamed(String, String, Vec<u8>),
    Removed(String),
}

impl Paper {
    fn new(durable: BTreeMap<String, Vec<u8>>) -> Paper {
        Paper { durable, pending: Vec::new(), left: usize::MAX }
    }

    fn step(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("the power is gone"))?;
        Ok(())
    }

    /// What there is with some of the pending changes, one for each bit.
    fn seen(&self, kept: u64) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.durable.clone();
        for (_, change) in self.pending.iter().enumerate().filter(|(at, _)| kept >> at & 1 == 1) {
            match change {
                Change::Made(name, bytes) => drop(files.insert(name.clone(), bytes.clone())),
                Change::Renamed(from, to, bytes) => {
                    files.remove(from);
                    files.insert(to.clone(), bytes.clone());
                }
                Change::Removed(name) => drop(files.remove(name)),
            }
        }
        files
    }

    /// As programs see it before the power goes.
    fn now(&self) -> BTreeMap<String, Vec<u8>> {
        self.seen(u64::MAX)
    }

    /// What may be found after the power came back: any of the changes that were not synced, without the others.
    fn afterwards(&self) -> Vec<BTreeMap<String, Vec<u8>>> {
        assert!(self.pending.len() <= 16, "{} changes are not synced", self.pending.len());
        (0..1 << self.pending.len()).map(|kept| self.seen(kept)).collect()
    }
}

#[derive(Debug, Clone)]
struct PaperDisk(Arc<Mutex<Paper>>);

impl PaperDisk {
    fn on(durable: BTreeMap<String, Vec<u8>>, left: usize) -> PaperDisk {
        PaperDisk(Arc::new(Mutex::new(Paper { left, ..Paper::new(durable) })))
    }

    fn paper(&self) -> Paper {
        self.0.lock().unwrap().clone()
    }
}

impl Disk for PaperDisk {
    fn path(&self) -> &Path {
        Path::new("/paper/models")
    }

    fn read(&self, name: &str, _: u64) -> io::Result<Option<Vec<u8>>> {
        let paper = self.0.lock().unwrap();
        Ok(paper.now().remove(name))
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut paper = self.0.lock().unwrap();
        paper.step()?;
        paper.pending.push(Change::Made(name.to_owned(), bytes[..bytes.len() / 2].to_vec()));
        paper.step()?;
        paper.pending.push(Change::Made(name.to_owned(), bytes.to_vec()));
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut paper = self.0.lock().unwrap();
        paper.step()?;
        let bytes = paper.now().remove(from).unwrap_or_default();
        paper.pending.push(Change::Renamed(from.to_owned(), to.to_owned(), bytes));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut paper = self.0.lock().unwrap();
        paper.step()?;
        paper.pending.push(Change::Removed(name.to_owned()));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut paper = self.0.lock().unwrap();
        paper.step()?;
        (paper.durable, paper.pending) = (paper.now(), Vec::new());
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let paper = self.0.lock().unwrap();
        Ok(paper.now().into_iter().map(|(name, bytes)| (name, bytes.len() as u64)).collect())
    }
}

/// The reference model as a version of its own: its manifest says which.
fn package(key: &SecretKey, version: u64) -> Vec<u8> {
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let manifest = std::fs::read_to_string(models.join("watch-small.toml")).unwrap();
    let manifest = format!("# {version}\n{manifest}");
    let model = std::fs::read(models.join("watch-small.onnx")).unwrap();
    Package::sign(head(version), manifest.into_bytes(), model, key).to_bytes()
}

fn open(disk: PaperDisk, key: &SecretKey) -> ModelStore {
    ModelStore::open_on(Box::new(disk), key.public(), "box-1", 1 << 20).unwrap()
}

/// From version 1 to version 2, with every note on the way; stops where the power goes.
fn update(store: &mut ModelStore, package: &[u8]) -> Result<(), StoreError> {
    let (release, head) = store.import(package)?;
    let mut slot = store.slot(&head.task);
    for stage in [Stage::Candidate, Stage::Shadow, Stage::Canary, Stage::Probation] {
        slot.trial = Some(Trial { release: release.clone(), stage, restarts: 0 });
        slot.tried = release.version;
        store.save(&head.task, &slot)?;
    }
    slot = Slot { previous: slot.active.take(), active: Some(release), trial: None, ..slot };
    store.save(&head.task, &slot)
}

#[test]
fn a_power_cut_at_any_step_of_an_update_leaves_models_that_load() {
    let key = SecretKey::generate().unwrap();
    let packages = [1, 2, 3].map(|version| package(&key, version));
    let begin = {
        let disk = PaperDisk::on(BTreeMap::new(), usize::MAX);
        let mut store = open(disk.clone(), &key);
        store.run_begins(0, "boot").unwrap();
        update(&mut store, &packages[0]).unwrap();
        update(&mut store, &packages[1]).unwrap();
        disk.paper().durable
    };
    let (mut cuts, mut found_old, mut found_new) = (0, false, false);
    for left in 0.. {
        let disk = PaperDisk::on(begin.clone(), left);
        let is_whole = update(&mut open(disk.clone(), &key), &packages[2]).is_ok();
        for files in disk.paper().afterwards() {
            cuts += 1;
            let mut store = open(PaperDisk::on(files, usize::MAX), &key);
            let slot = store.slot("activity");
            let active = slot.active.clone().expect("there was one before");
            for release in slot.kept() {
                let kept = store.load(release).unwrap_or_else(|err| panic!("cut at step {left}: {err}"));
                assert!(kept.manifest_text.starts_with(&format!("# {}\n", release.version)));
                assert_eq!(
                    store.disk.read(&model_name(&kept.head), u64::MAX).unwrap().map(|bytes| Package::sum(&bytes)),
                    Some(kept.head.model)
                );
            }
            let previous = slot.previous.as_ref().map(|release| release.version);
            match active.version {
                2 => found_old = previous == Some(1),
                3 => found_new = previous == Some(2),
                version => panic!("version {version} is active"),
            }
            // And it goes on from there.
            if slot.tried < 3 {
                update(&mut store, &packages[2]).unwrap();
            }
        }
        if is_whole {
            break;
        }
    }
    println!("{cuts} states after a loss of power");
    assert!(found_old && found_new && cuts > 40, "{cuts}");
}

#[test]
fn what_no_slot_names_is_removed_and_the_limit_holds_without_the_previous_one() {
    let key = SecretKey::generate().unwrap();
    let disk = PaperDisk::on(BTreeMap::new(), usize::MAX);
    let one = package(&key, 1).len() as u64;
    let mut store = ModelStore::open_on(Box::new(disk.clone()), key.public(), "box-1", 3 * one).unwrap();
    for version in 1..6 {
        update(&mut store, &package(&key, version)).unwrap();
        let used: u64 = disk.list().unwrap().iter().map(|(_, len)| len).sum();
        assert!(used <= 3 * one, "{used} of {}", 3 * one);
    }
    let slot = store.slot("activity");
    assert_eq!(slot.previous.as_ref().map(|release| store.load(release).unwrap().head.version), Some(4));
    let mut small = ModelStore::open_on(Box::new(disk), key.public(), "box-1", one).unwrap();
    let full = small.import(&package(&key, 6)).unwrap_err();
    assert!(matches!(full, StoreError::Full { .. }) && full.to_string().contains("raise infer.updates.size_limit"), "{full}");
    assert!(small.load(slot.active.as_ref().unwrap()).is_ok() && small.load(slot.previous.as_ref().unwrap()).is_ok());
}

#[test]
fn what_somebody_did_to_the_store_is_seen_at_the_next_load() {
    let key = SecretKey::generate().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut store = ModelStore::open(dir.path(), key.public(), "box-1", 1 << 20).unwrap();
    update(&mut store, &package(&key, 1)).unwrap();
    let release = store.slot("activity").active.unwrap();
    let kept = store.load(&release).unwrap();
    assert_eq!(kept.manifest.model_bytes().unwrap().len() as u64, std::fs::metadata(&kept.manifest.file).unwrap().len());
    // The same in a new process.
    let store = ModelStore::open(dir.path(), key.public(), "box-1", 1 << 20).unwrap();
    assert_eq!(store.load(&release).unwrap(), kept);
    // Another key, another box.
    let other = SecretKey::generate().unwrap().public();
    for (key, gateway) in [(other, "box-1"), (key.public(), "hall-1")] {
        let store = ModelStore::open(dir.path(), key, gateway, 1 << 20).unwrap();
        assert!(matches!(store.load(&release), Err(StoreError::Package(_))), "{gateway}");
    }
    // Each part changed, cut and removed.
    let (manifest, model) = (store.path().join(manifest_name(&kept.head)), kept.manifest.file.clone());
    for path in [store.path().join(head_name(&release.id)), manifest, model] {
        let bytes = std::fs::read(&path).unwrap();
        let mut changed = bytes.clone();
        changed[20] ^= 1;
        for damaged in [changed, bytes[..bytes.len() - 2].to_vec(), Vec::new()] {
            std::fs::write(&path, damaged).unwrap();
            let loaded = store.load(&release).map(|kept| kept.manifest.model_bytes().map_err(|err| err.to_string()));
            assert!(!matches!(loaded, Ok(Ok(_))), "{}", path.display());
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!matches!(store.load(&release).map(|kept| kept.manifest.model_bytes().is_ok()), Ok(true)));
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(store.load(&release).is_ok());
    std::fs::write(store.path().join(STATE), "{").unwrap();
    let store = ModelStore::open(dir.path(), key.public(), "box-1", 1 << 20).unwrap();
    assert_eq!(store.slot("activity"), Slot::default(), "the files of the configuration answer");
}

#[test]
fn a_package_whose_manifest_is_of_another_model_is_refused() {
    let key = SecretKey::generate().unwrap();
    let mut store = open(PaperDisk::on(BTreeMap::new(), usize::MAX), &key);
    let good = Package::read(&package(&key, 1)).unwrap();
    let other = Package::sign(good.head.clone(), good.manifest.clone(), b"other".to_vec(), &key);
    assert!(matches!(store.import(&other.to_bytes()), Err(StoreError::Another)));
    let mistaken = Package::sign(good.head, b"name = 'm'\n".to_vec(), good.model, &key);
    assert!(matches!(store.import(&mistaken.to_bytes()), Err(StoreError::Manifest { .. })));
    assert!(store.disk.list().unwrap().is_empty(), "nothing of them is kept");
}
