//! The box's desk for policies: signatures, texts and the file that remembers them, on a thread of its own.
//!
//! `policy.json` in the data directory holds the policy that was kept, with its signature, which is checked again at each
//! start: whoever can write the file cannot change the policy. A version is noted there before it is tried, and kept only when
//! its trial is over. So a box that dies on trial comes back with the policy before, and says that this is why.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weir_host::sign::{signature_from_text, signature_to_text};
use weir_logic::gateway::{PolicyNews, PolicyStart};
use weir_logic::policy::Policy;
use weir_logic::rollout::{OfferState, is_for};

use super::Message;
use crate::config::{Config, ModelInfo};

/// What the driver asks of the desk.
#[derive(Debug)]
pub(crate) enum ToDesk {
    /// Check a policy that the cloud offers; answered with [`Message::PolicyChecked`].
    Check { version: u64, text: Bytes, signature: Bytes },
    /// Remember what became of one.
    Decided(PolicyNews),
}

/// Between two attempts to write the file.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Longest file that is read: a text of 64 KiB, escaped, and little else.
const FILE_LEN_MAX: u64 = 1 << 20;
/// What the policy is called in messages.
const NAME: &str = "policy";
/// What is said of a policy that was on trial when the box stopped.
const STOPPED: &str = "the box stopped during the trial, for whatever reason, and came back with the policy before";

/// What is remembered over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Saved {
    /// The policy in force.
    kept: Option<Signed>,
    /// Highest version that was ever tried.
    tried: u64,
    /// The version on trial.
    trial: Option<u64>,
    /// What became of the last one offered.
    last: Option<Last>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Signed {
    version: u64,
    text: String,
    signature: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    version: u64,
    state: OfferState,
    reason: String,
}

/// Checks policies and remembers them.
pub(crate) struct Desk {
    config: Config,
    models: Vec<ModelInfo>,
    gateway: String,
    path: PathBuf,
    saved: Saved,
    /// What was checked last, until it is known what becomes of it.
    checked: Option<Signed>,
    is_unsaved: bool,
}

impl Desk {
    /// Reads what is remembered: the desk, the policy to start with, and what the gateway is to know.
    ///
    /// A kept policy that cannot be used any more is reported and left out: `own` is what the box's configuration says.
    pub(crate) fn open(config: &Config, models: &[ModelInfo], gateway: &str, own: Policy) -> (Desk, Policy, PolicyStart) {
        let path = config.gateway.data_dir.join("policy.json");
        let saved = read(&path).unwrap_or_else(|err| {
            tracing::error!(path = %path.display(), %err, "what is remembered of policies cannot be read; the box's own configuration is used");
            Saved::default()
        });
        let mut desk = Desk {
            config: config.clone(),
            models: models.to_vec(),
            gateway: gateway.to_owned(),
            path,
            saved,
            checked: None,
            is_unsaved: false,
        };
        if let Some(version) = desk.saved.trial.take() {
            tracing::warn!(version, "policy was on trial when the box stopped; it is taken back");
            desk.saved.last = Some(Last { version, state: OfferState::RolledBack, reason: STOPPED.to_owned() });
            desk.save();
        }
        let mut start = PolicyStart {
            has_key: config.policy.key.is_some(),
            trial_us: config.policy.trial.as_micros(),
            version: 0,
            tried: desk.saved.tried,
            last: None,
        };
        let mut policy = own;
        if let Some(kept) = desk.saved.kept.clone() {
            match desk.reopen(&kept, &policy) {
                Ok(next) => {
                    tracing::info!(version = kept.version, "policy");
                    (policy, start.version) = (next, kept.version);
                }
                Err(reason) => {
                    tracing::error!(
                        version = kept.version,
                        reason,
                        "policy that was kept cannot be used; the box's own configuration is"
                    );
                    desk.saved.last = Some(Last { version: kept.version, state: OfferState::Refused, reason });
                }
            }
        }
        let news = |last: &Last| PolicyNews {
            version: last.version,
            state: last.state,
            reason: last.reason.clone(),
            kept: start.version,
        };
        start.last = desk.saved.last.as_ref().map(news);
        (desk, policy, start)
    }

    /// Starts the thread; it ends when the returned sender is dropped and all is written.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(crate) fn spawn(
        self,
        messages_tx: tokio::sync::mpsc::WeakSender<Message>,
    ) -> io::Result<(Sender<ToDesk>, JoinHandle<()>)> {
        // Bounded in effect: the gateway has one policy checked at a time, and decides a few times for each.
        let (desk_tx, desk_rx) = channel();
        let thread = std::thread::Builder::new().name("policies".to_owned()).spawn(move || self.run(&desk_rx, &messages_tx))?;
        Ok((desk_tx, thread))
    }

    fn run(mut self, desk_rx: &Receiver<ToDesk>, messages_tx: &tokio::sync::mpsc::WeakSender<Message>) {
        loop {
            let asked = if self.is_unsaved {
                match desk_rx.recv_timeout(RETRY_AFTER) {
                    Err(RecvTimeoutError::Timeout) => {
                        self.save();
                        continue;
                    }
                    asked => asked.ok(),
                }
            } else {
                desk_rx.recv().ok()
            };
            match asked {
                Some(ToDesk::Check { version, text, signature }) => {
                    let result = self.check(version, &text, &signature).map(Box::new);
                    let Some(messages_tx) = messages_tx.upgrade() else { return };
                    if messages_tx.blocking_send(Message::PolicyChecked { version, result }).is_err() {
                        return;
                    }
                }
                Some(ToDesk::Decided(news)) => self.decided(&news),
                None => return,
            }
        }
    }

    /// What an offered policy asks for. It is noted as tried, on disk, before this returns.
    fn check(&mut self, version: u64, text: &[u8], signature: &[u8]) -> Result<Policy, String> {
        let policy = self.verified(version, text, signature)?;
        let text = String::from_utf8_lossy(text).into_owned();
        self.checked = Some(Signed { version, text, signature: signature_to_text(signature) });
        let before = self.saved.clone();
        (self.saved.tried, self.saved.trial) = (self.saved.tried.max(version), Some(version));
        if let Err(err) = write(&self.path, &self.saved) {
            self.saved = before;
            return Err(format!("{} cannot be written, and a policy is not tried without a note: {err}", self.path.display()));
        }
        Ok(policy)
    }

    fn verified(&self, version: u64, text: &[u8], signature: &[u8]) -> Result<Policy, String> {
        let key = self.config.policy.key.as_ref().ok_or("the box has no key to check policies with")?;
        key.verify(text, signature).map_err(|err| format!("{err} (the box's key is {key})"))?;
        let text = std::str::from_utf8(text).map_err(|err| format!("it is not UTF-8 text: {err}"))?;
        let checked = self.config.check_policy(&self.models, NAME, text).map_err(|errors| errors.to_string())?;
        if checked.head.version != version {
            return Err(format!("its text says version {}, and it is offered as {version}", checked.head.version));
        }
        if !is_for(&checked.head.gateways, &self.gateway) {
            return Err(format!("it is for {}, and this is {}", checked.head.gateways.join(", "), self.gateway));
        }
        Ok(checked.policy)
    }

    /// What a policy from the file asks of a box with the policy `own`.
    fn reopen(&self, kept: &Signed, own: &Policy) -> Result<Policy, String> {
        let signature = signature_from_text(&kept.signature).map_err(|err| err.to_string())?;
        let next = self.verified(kept.version, kept.text.as_bytes(), &signature)?;
        own.succeeded_by(&next).map_err(|misfit| misfit.to_string())
    }

    /// What was never tried is not written: the cloud has heard of it, and offers that are refused must not wear out flash.
    fn decided(&mut self, news: &PolicyNews) {
        if news.state == OfferState::Trial {
            return;
        }
        if news.state == OfferState::Kept {
            let is_it = |checked: &Signed| checked.version == news.version;
            self.saved.kept = self.checked.take().filter(is_it).or(self.saved.kept.take());
        }
        self.saved.last = Some(Last { version: news.version, state: news.state, reason: news.reason.clone() });
        if self.saved.trial == Some(news.version) {
            self.saved.trial = None;
            self.save();
        }
    }

    fn save(&mut self) {
        let result = write(&self.path, &self.saved);
        if let Err(err) = &result {
            tracing::error!(path = %self.path.display(), %err, "what became of a policy is not saved; it is tried again");
        }
        self.is_unsaved = result.is_err();
    }
}

fn read(path: &Path) -> io::Result<Saved> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() > FILE_LEN_MAX => Err(io::Error::other("the file is too long")),
        Ok(_) => Ok(serde_json::from_slice(&std::fs::read(path)?)?),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Saved::default()),
        Err(err) => Err(err),
    }
}

/// Replaces the file, whole or not at all, and durably.
fn write(path: &Path, saved: &Saved) -> io::Result<()> {
    let draft = path.with_extension("json.new");
    let mut file = std::fs::File::create(&draft)?;
    file.write_all(&serde_json::to_vec(saved)?)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    path.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use weir_host::sign::SecretKey;
    use weir_logic::ids::Class;

    use super::*;
    use crate::config::Files;

    const VERSION_7: &str = "[policy]\nversion = 7\n[[stream]]\nname = 's'\nclass = 'bulk'\n";

    struct OneBox {
        dir: tempfile::TempDir,
        key: SecretKey,
    }

    impl OneBox {
        fn new() -> OneBox {
            OneBox { dir: tempfile::tempdir().unwrap(), key: SecretKey::generate().unwrap() }
        }

        fn config(&self) -> Config {
            let (dir, key) = (self.dir.path().display(), self.key.public());
            let text = format!(
                "gateway.data_dir = '{dir}'\npolicy = {{ key = '{key}', trial = '20s' }}\n[[stream]]\nname = 's'\ntopics = ['s']\n"
            );
            Config::parse("edge.toml", &text, Path::new(""), Files::Ignored).config.unwrap_or_else(|err| panic!("{err}"))
        }

        fn open(&self) -> (Desk, Policy, PolicyStart) {
            self.open_with(&self.config())
        }

        fn open_with(&self, config: &Config) -> (Desk, Policy, PolicyStart) {
            Desk::open(config, &[], "box-1", config.policy(&[]).unwrap())
        }

        fn check(&self, desk: &mut Desk, version: u64, text: &str) -> Result<Class, String> {
            desk.check(version, text.as_bytes(), &self.key.sign(text.as_bytes())).map(|policy| policy.streams[0].class)
        }
    }

    fn news(version: u64, state: OfferState) -> PolicyNews {
        PolicyNews { version, state, reason: "why".to_owned(), kept: 0 }
    }

    #[test]
    fn a_kept_policy_is_in_force_after_a_restart_and_one_on_trial_is_not() {
        let of = OneBox::new();
        let (mut desk, own, start) = of.open();
        assert_eq!((own.streams[0].class, start.version, start.last, start.trial_us), (Class::Normal, 0, None, 20_000_000));
        assert_eq!(of.check(&mut desk, 7, VERSION_7), Ok(Class::Bulk));
        // A crash before or during the trial.
        let (mut desk, own, start) = of.open();
        let last = start.last.expect("it says so");
        assert_eq!((own.streams[0].class, start.version, start.tried), (Class::Normal, 0, 7));
        assert_eq!((last.version, last.state, &*last.reason), (7, OfferState::RolledBack, STOPPED));
        let again = VERSION_7.replace('7', "8");
        assert_eq!(of.check(&mut desk, 8, &again), Ok(Class::Bulk));
        desk.decided(&news(8, OfferState::Trial));
        desk.decided(&news(8, OfferState::Kept));
        let (mut desk, kept, start) = of.open();
        assert_eq!((kept.streams[0].class, start.version, start.tried), (Class::Bulk, 8, 8));
        assert_eq!(start.last.map(|last| last.state), Some(OfferState::Kept));
        // What is refused later leaves it in force, and is not written.
        let before = std::fs::read(&desk.path).unwrap();
        desk.decided(&news(9, OfferState::Refused));
        assert_eq!(std::fs::read(&desk.path).unwrap(), before);
        // One that was taken back leaves it in force, too.
        of.check(&mut desk, 10, &VERSION_7.replace('7', "10")).unwrap();
        desk.decided(&news(10, OfferState::RolledBack));
        let (_, kept, start) = of.open();
        assert_eq!((kept.streams[0].class, start.version, start.tried), (Class::Bulk, 8, 10));
        assert_eq!(start.last.map(|last| (last.version, last.state, last.kept)), Some((10, OfferState::RolledBack, 8)));
    }

    #[test]
    fn what_is_not_signed_or_not_meant_for_this_box_is_refused_in_words() {
        let of = OneBox::new();
        let (mut desk, ..) = of.open();
        let tampered = desk.check(7, VERSION_7.replace("bulk", "high").as_bytes(), &of.key.sign(VERSION_7.as_bytes()));
        assert!(tampered.expect_err("tampered").contains("changed after it was signed"));
        for (text, part) in [
            (VERSION_7.replace('7', "8"), "its text says version 8"),
            (VERSION_7.replace("[[", "gateways = ['hall-*']\n[["), "it is for hall-*, and this is box-1"),
            (VERSION_7.replace("'s'", "'t'"), "the box has no stream `t`"),
            (VERSION_7.replace("class", "topics"), "unknown key `topics`"),
        ] {
            let reason = of.check(&mut desk, 7, &text).expect_err(part);
            assert!(reason.contains(part), "{reason}");
        }
        assert!(!of.dir.path().join("policy.json").exists(), "nothing of it is noted");
    }

    #[test]
    fn a_file_that_somebody_changed_is_not_believed() {
        let of = OneBox::new();
        let (mut desk, ..) = of.open();
        of.check(&mut desk, 7, VERSION_7).unwrap();
        desk.decided(&news(7, OfferState::Kept));
        let path = of.dir.path().join("policy.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("bulk", "high")).unwrap();
        let (_, own, start) = of.open();
        assert_eq!((own.streams[0].class, start.version, start.tried), (Class::Normal, 0, 7));
        assert!(start.last.is_some_and(|last| last.state == OfferState::Refused && last.reason.contains("signature")));
        // Neither is one that is no JSON; and with the file as it was, all is as it was.
        std::fs::write(&path, "{").unwrap();
        assert_eq!(of.open().2.version, 0);
        std::fs::write(&path, text).unwrap();
        assert_eq!(of.open().2.version, 7);
        let mut config = of.config();
        config.policy.key = None;
        let (_, own, start) = of.open_with(&config);
        assert_eq!((own.streams[0].class, start.version, start.has_key), (Class::Normal, 0, false));
    }

    #[test]
    fn a_policy_that_cannot_be_noted_is_not_tried() {
        let of = OneBox::new();
        let (mut desk, ..) = of.open();
        desk.path = of.dir.path().join("away/policy.json");
        assert!(of.check(&mut desk, 7, VERSION_7).expect_err("no folder").contains("not tried without a note"));
        assert_eq!(desk.saved, Saved::default());
    }
}
