//! The disk's part of fetching models from the cloud: signatures, parts of packages and their sums, on a thread of its own.
//!
//! `models/fetch/SUM.part` grows with each chunk. Its length says how much is there, also after a kill; what a loss of power
//! may have done to it shows in the sum of the whole, which is compared before anybody looks into the package. Then it moves
//! to the inbox. `models/fetch/spent.json` remembers what was used of the budget. There is one part at a time: a part of what is
//! not offered any more is removed with the next offer.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use weir_host::sign::PublicKey;
use weir_logic::models::{FetchInput, FetchOutput, Spent, Unfinished};
use weir_logic::wire::model::ModelOffer;

use crate::models::{FETCH, FOLDER, Head, INBOX, PACKAGE_EXTENSION, Package, verify};
use crate::shell::Message;

/// What was used of the budget.
const SPENT: &str = "spent.json";
/// What a part is called, after its sum.
const PART: &str = "part";

/// Looks at offers, and writes what comes of them.
pub(crate) struct Fetcher {
    key: PublicKey,
    gateway: String,
    folder: PathBuf,
    inbox: PathBuf,
}

impl Fetcher {
    /// Makes the folder; returns what was used of the budget, too. What cannot be read counts as nothing, and is reported.
    pub(crate) fn open(data_dir: &Path, key: &PublicKey, gateway: &str) -> (Fetcher, Spent) {
        let store = data_dir.join(FOLDER);
        let (folder, inbox) = (store.join(FETCH), store.join(INBOX));
        let spent = fs::create_dir_all(&folder).and_then(|()| read(&folder.join(SPENT))).unwrap_or_else(|err| {
            tracing::warn!(path = %folder.display(), %err, "what was used of the budget for models cannot be read; it counts as nothing");
            Spent::default()
        });
        (Fetcher { key: key.clone(), gateway: gateway.to_owned(), folder, inbox }, spent)
    }

    /// Starts the thread; it ends when the returned sender is dropped.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(crate) fn spawn(
        self,
        messages_tx: tokio::sync::mpsc::WeakSender<Message>,
    ) -> io::Result<(Sender<FetchOutput>, JoinHandle<()>)> {
        // Bounded in effect: the gateway waits for each answer before it asks for more.
        let (fetches_tx, fetches_rx) = channel();
        let thread = std::thread::Builder::new().name("fetch".to_owned()).spawn(move || self.run(&fetches_rx, &messages_tx))?;
        Ok((fetches_tx, thread))
    }

    fn run(self, fetches_rx: &Receiver<FetchOutput>, messages_tx: &tokio::sync::mpsc::WeakSender<Message>) {
        while let Ok(output) = fetches_rx.recv() {
            let Some(input) = self.carry_out(output) else { continue };
            let Some(messages_tx) = messages_tx.upgrade() else { return };
            if messages_tx.blocking_send(Message::Fetch(input)).is_err() {
                return;
            }
        }
    }

    fn carry_out(&self, output: FetchOutput) -> Option<FetchInput> {
        match output {
            FetchOutput::Check(offer) => Some(FetchInput::Checked { result: self.check(&offer), sha256: offer.sha256 }),
            FetchOutput::Write { sha256, offset, data } => {
                let result = self.write(&sha256, offset, &data).map_err(|err| format!("{}: {err}", self.folder.display()));
                Some(FetchInput::Written { sha256, result })
            }
            FetchOutput::Finish(offer) => Some(FetchInput::Finished { result: self.finish(&offer), sha256: offer.sha256 }),
            FetchOutput::Save(spent) => {
                if let Err(err) = self.save(spent) {
                    tracing::warn!(path = %self.folder.display(), %err, "what was used of the budget for models is not saved");
                }
                None
            }
            // Of uplinks and watchers.
            FetchOutput::Ask { .. } | FetchOutput::Cancel { .. } | FetchOutput::News(_) => None,
        }
    }

    /// How many bytes of an offer are here, if it may come at all. Parts of others are removed.
    fn check(&self, offer: &ModelOffer) -> Result<u64, String> {
        let head = Head::read(&offer.head).map_err(|err| err.to_string())?;
        verify(&head, &offer.head, &offer.signature, &self.key, &self.gateway).map_err(|err| err.to_string())?;
        if (head.task.as_str(), head.version) != (offer.task.as_str(), offer.version) {
            let (task, version) = (&offer.task, offer.version);
            let Head { task: signed_task, version: signed, .. } = &head;
            return Err(format!("its head says version {signed} for {signed_task}, and it is offered as {version} for {task}"));
        }
        let part = self.part(&offer.sha256);
        let have = self.look(&part).map_err(|err| format!("{}: {err}", self.folder.display()))?;
        Ok(have)
    }

    /// The length of a part, 0 if there is none; others are removed.
    fn look(&self, part: &Path) -> io::Result<u64> {
        let mut have = 0;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path == part {
                have = fs::metadata(part)?.len();
            } else if path.extension().is_some_and(|extension| extension == PART) {
                fs::remove_file(path)?;
            }
        }
        Ok(have)
    }

    /// Appends a chunk; returns how many bytes are there then. A part that is longer was written by somebody else.
    fn write(&self, sha256: &Bytes, offset: u64, data: &[u8]) -> io::Result<u64> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.part(sha256))?;
        file.write_all_at(data, offset)?;
        let end = offset + data.len() as u64;
        file.set_len(end)?;
        Ok(end)
    }

    /// Moves a package that is what was offered to the inbox, durably; removes one that is not.
    fn finish(&self, offer: &ModelOffer) -> Result<(), Unfinished> {
        let disk = |err: io::Error| Unfinished::Disk(format!("{}: {err}", self.folder.display()));
        let part = self.part(&offer.sha256);
        let bytes = fs::read(&part).map_err(disk)?;
        if let Err(reason) = compare(offer, &bytes) {
            fs::remove_file(&part).map_err(disk)?;
            return Err(Unfinished::Wrong(reason));
        }
        let name = format!("{}.{PACKAGE_EXTENSION}", hex(&offer.sha256));
        let moved = File::open(&part).and_then(|file| file.sync_all()).and_then(|()| fs::rename(&part, self.inbox.join(name)));
        moved.and_then(|()| File::open(&self.inbox)?.sync_all()).map_err(disk)
    }

    fn save(&self, spent: Spent) -> io::Result<()> {
        let (path, draft) = (self.folder.join(SPENT), self.folder.join("spent.json.new"));
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec(&spent)?)?;
        file.sync_all()?;
        fs::rename(&draft, &path)
    }

    fn part(&self, sha256: &[u8]) -> PathBuf {
        self.folder.join(format!("{}.{PART}", hex(sha256)))
    }
}

/// Whether these bytes are the package that was offered, in words.
fn compare(offer: &ModelOffer, bytes: &[u8]) -> Result<(), String> {
    let found = Package::sum_bytes(bytes);
    if found != offer.sha256 {
        return Err(format!("what came has sha256 {}, and {} was offered", hex(&found), hex(&offer.sha256)));
    }
    let package = Package::read(bytes).map_err(|err| err.to_string())?;
    if package.head_text != offer.head {
        return Err("what came has another head than was offered".to_owned());
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Spent> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(Spent::default()),
        Err(err) => Err(err),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

#[cfg(test)]
mod tests {
    use weir_host::sign::SecretKey;

    use super::*;

    struct Lab {
        dir: tempfile::TempDir,
        key: SecretKey,
        fetcher: Fetcher,
    }

    impl Lab {
        fn new() -> Lab {
            let (dir, key) = (tempfile::tempdir().unwrap(), SecretKey::generate().unwrap());
            fs::create_dir_all(dir.path().join(FOLDER).join(INBOX)).unwrap();
            let (fetcher, spent) = Fetcher::open(dir.path(), &key.public(), "box-1");
            assert_eq!(spent, Spent::default());
            Lab { dir, key, fetcher }
        }

        fn package(&self, version: u64, gateways: &[&str], key: &SecretKey) -> (ModelOffer, Vec<u8>) {
            let gateways = gateways.iter().map(ToString::to_string).collect();
            let (manifest, model) = (String::new(), String::new());
            let head = Head { task: "activity".to_owned(), version, gateways, window_us_max: 500, manifest, model };
            let package = Package::sign(head, b"name = 'm'\n".to_vec(), vec![7; 1_000], key);
            let bytes = package.to_bytes();
            let offer = ModelOffer {
                task: "activity".to_owned(),
                version,
                len: bytes.len() as u64,
                sha256: Package::sum_bytes(&bytes).into(),
                head: package.head_text,
                signature: package.signature,
            };
            (offer, bytes)
        }

        fn inbox(&self) -> Vec<PathBuf> {
            let entries = fs::read_dir(self.dir.path().join(FOLDER).join(INBOX)).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        }
    }

    #[test]
    fn a_package_grows_over_runs_and_moves_to_the_inbox_once_it_is_what_was_offered() {
        let lab = Lab::new();
        let (offer, bytes) = lab.package(2, &["box-*"], &lab.key);
        assert_eq!(lab.fetcher.check(&offer), Ok(0));
        assert_eq!(lab.fetcher.write(&offer.sha256, 0, &bytes[..400]).unwrap(), 400);
        let (again, _) = Fetcher::open(lab.dir.path(), &lab.key.public(), "box-1");
        assert_eq!(again.check(&offer), Ok(400), "another run of the box has what is there");
        assert_eq!(again.write(&offer.sha256, 400, &bytes[400..]).unwrap(), offer.len);
        assert_eq!(again.finish(&offer), Ok(()));
        let [path] = &lab.inbox()[..] else { panic!("one package") };
        assert_eq!(fs::read(path).unwrap(), bytes);
        assert_eq!(again.check(&offer), Ok(0), "nothing is left of it");
    }

    #[test]
    fn what_was_changed_on_the_way_or_on_disk_is_removed_and_another_offer_removes_it_too() {
        let lab = Lab::new();
        let (offer, mut bytes) = lab.package(2, &[], &lab.key);
        bytes[900] ^= 1;
        lab.fetcher.write(&offer.sha256, 0, &bytes).unwrap();
        let Err(Unfinished::Wrong(reason)) = lab.fetcher.finish(&offer) else { panic!("it is wrong") };
        assert!(reason.contains("what came has sha256"), "{reason}");
        assert_eq!((lab.fetcher.check(&offer), lab.inbox().len()), (Ok(0), 0));
        lab.fetcher.write(&offer.sha256, 0, &bytes[..10]).unwrap();
        let (other, _) = lab.package(3, &[], &lab.key);
        assert_eq!((lab.fetcher.check(&other), lab.fetcher.check(&offer)), (Ok(0), Ok(0)));
        // All sums are right, and it is another package than its offer says.
        let (mut mixed, bytes) = lab.package(2, &[], &lab.key);
        mixed.head = other.head;
        lab.fetcher.write(&mixed.sha256, 0, &bytes).unwrap();
        assert_eq!(
            lab.fetcher.finish(&mixed),
            Err(Unfinished::Wrong("what came has another head than was offered".to_owned()))
        );
    }

    #[test]
    fn offers_of_strangers_for_others_or_of_another_version_are_refused_in_words() {
        let lab = Lab::new();
        let (stranger, _) = lab.package(2, &[], &SecretKey::generate().unwrap());
        let (elsewhere, _) = lab.package(2, &["hall-*"], &lab.key);
        let (offer, _) = lab.package(2, &[], &lab.key);
        let raised = ModelOffer { version: 9, ..offer.clone() };
        let garbled = ModelOffer { head: "{}".to_owned(), ..offer };
        for (offer, part) in [
            (stranger, "the signature is not of this text and this key"),
            (elsewhere, "it is for hall-*, and this is box-1"),
            (raised, "its head says version 2 for activity, and it is offered as 9"),
            (garbled, "its head is not as this version knows it"),
        ] {
            let reason = lab.fetcher.check(&offer).unwrap_err();
            assert!(reason.contains(part), "{reason}");
        }
    }

    #[test]
    fn what_was_used_of_the_budget_is_there_after_a_restart() {
        let lab = Lab::new();
        let used = Spent { day_since_us: 5, day_bytes: 7, month_since_us: 1, month_bytes: 70 };
        lab.fetcher.save(used).unwrap();
        assert_eq!(Fetcher::open(lab.dir.path(), &lab.key.public(), "box-1").1, used);
    }
}
