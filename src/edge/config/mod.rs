//! The configuration of the box, `edge.toml`: what an operator writes, its defaults, and every check of it.
//!
//! Each table is a type here, its defaults are in one `impl Default`, and `config/edge.toml` is equal to them by test.
//! A file is read in three steps: `weir_host::config` reads the types and collects what is not of their form; `check`
//! collects what the types cannot express; `policy` turns the result into what the pure core takes. A key that is
//! accepted is applied: what would have no effect is at least a warning.
//!
//! Paths in the file are relative to the folder of the file. Once loaded they are resolved.

mod address;
mod broker;
mod buffer;
mod catalogue;
mod check;
mod finding;
mod listen;
mod offload;
mod overlap;
mod overlay;
mod password;
mod policy;
mod process;
mod stream;
mod summary;
mod truth;
mod updates;
mod uplink;
mod value;

use std::path::Path;

use serde::Deserialize;
use weir_host::config::{Checker, ConfigErrors};

pub use broker::{Broker, BrokerClient, BrokerDurability, BrokerTls, BrokerVersion};
pub use buffer::{Buffer, Lane, Lanes};
pub(crate) use check::PASSWORD_LEN_MAX;
pub use finding::Warning;
pub use listen::{Listen, ListenTls, Mqtt, User};
pub use offload::{Learn, Offload, StreamOffload};
pub use overlay::{CheckedPolicy, PolicyConfig, check_policy_form};
pub use password::{PasswordError, PasswordHash, hash_password, verify};
pub use policy::{ModelInfo, PolicyError};
pub use process::{Admin, Gateway, Log};
pub use stream::{Ack, Infer, Model, Stream};
pub use summary::Summary;
pub use updates::Updates;
pub use uplink::{Fallback, Session, Tls, Uplink, UplinkPath};
pub use value::{Floor, LadderName, PlanConfig, Value};

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the box keeps its data.
    pub gateway: Gateway,
    /// Where MQTT clients connect; by default one listener on loopback.
    pub listen: Vec<Listen>,
    /// Limits of MQTT clients.
    pub mqtt: Mqtt,
    /// Brokers that messages are taken from.
    pub broker: Vec<Broker>,
    /// Who may publish what.
    pub user: Vec<User>,
    /// What becomes of which topics.
    pub stream: Vec<Stream>,
    /// Models that streams name.
    pub model: Vec<Model>,
    /// How models are run.
    pub infer: Infer,
    /// What may be asked of larger models in the cloud.
    pub offload: Offload,
    /// One lane for each class.
    pub lane: Lanes,
    /// The buffer on disk and in memory.
    pub buffer: Buffer,
    /// Ways to the cloud, the preferred one first.
    pub uplink: Vec<Uplink>,
    /// How it is decided what an uplink that cannot carry all is used for.
    pub plan: PlanConfig,
    /// Whether policies are taken from the cloud.
    pub policy: PolicyConfig,
    /// Times of all uplinks' sessions.
    pub session: Session,
    /// Who we are, and whose certificates count.
    pub tls: Tls,
    /// The operator's window.
    pub admin: Admin,
    /// What is logged.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            gateway: Gateway::default(),
            listen: vec![Listen::default()],
            mqtt: Mqtt::default(),
            broker: Vec::new(),
            user: Vec::new(),
            stream: Vec::new(),
            model: Vec::new(),
            infer: Infer::default(),
            offload: Offload::default(),
            lane: Lanes::default(),
            buffer: Buffer::default(),
            uplink: Vec::new(),
            plan: PlanConfig::default(),
            policy: PolicyConfig::default(),
            session: Session::default(),
            tls: Tls::default(),
            admin: Admin::default(),
            log: Log::default(),
        }
    }
}

/// Which of the files that a configuration names are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// All: what is missing or does not fit is a mistake. For `weir check`.
    Required,
    /// Certificates and keys must fit, but a model that cannot be used is a warning, because the box does all the rest
    /// without it. For `weir-edge run`.
    ModelsOptional,
    /// None: the configuration is checked away from its box.
    Ignored,
}

/// What came of checking a configuration.
#[derive(Debug)]
pub struct Checked {
    /// The configuration with its paths resolved, or every mistake in it.
    pub config: Result<Config, ConfigErrors>,
    /// What is right but probably not meant, in the order of the file.
    pub warnings: Vec<Warning>,
    /// The models whose manifests were read and are in order.
    pub models: Vec<ModelInfo>,
}

impl Config {
    /// Reads a configuration for running it: models that cannot be used are left to whoever loads them.
    ///
    /// # Errors
    /// Every mistake in it, with file, line and a hint; the process exits with 64.
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        Config::check(path, Files::ModelsOptional).config
    }

    /// Reads and checks a configuration file. Blocks on the files that it names.
    pub fn check(path: &Path, files: Files) -> Checked {
        let (file, folder) = (path.display().to_string(), path.parent().unwrap_or(Path::new("")));
        Config::checked(&file, folder, files, |check| weir_host::config::read(path, check))
    }

    /// As [`Config::check`] for text; `file` is the name shown in messages, and `folder` what its paths are relative to.
    pub fn parse(file: &str, text: &str, folder: &Path, files: Files) -> Checked {
        Config::checked(file, folder, files, |check| weir_host::config::load_checked(file, text, check))
    }

    fn checked(
        file: &str,
        folder: &Path,
        files: Files,
        read: impl FnOnce(&mut dyn FnMut(&Config, &mut Checker<'_>)) -> Result<Config, ConfigErrors>,
    ) -> Checked {
        let mut found = check::Found::default();
        let config = read(&mut |config, checker| found = check::check(config, checker, file, folder, files));
        let config = config.map(|mut config| {
            catalogue::apply(&mut config, &found.chosen);
            config.resolved(folder)
        });
        Checked { config, warnings: found.warnings, models: found.models }
    }

    /// Every way out, in the order of the core's uplinks: each of the configuration's, and behind it its fallback.
    pub fn uplink_paths(&self) -> impl Iterator<Item = UplinkPath<'_>> {
        self.uplink.iter().flat_map(Uplink::paths)
    }

    /// What `weir check` shows of a configuration without mistakes; `models` as in [`Checked`].
    pub fn summary<'c>(&'c self, models: &'c [ModelInfo]) -> Summary<'c> {
        Summary::new(self, models)
    }

    /// Makes every path one that does not depend on where the file is.
    fn resolved(mut self, folder: &Path) -> Config {
        let mut paths = vec![&mut self.gateway.data_dir, &mut self.tls.cert, &mut self.tls.key, &mut self.tls.ca];
        paths.extend(self.listen.iter_mut().filter_map(|listen| listen.tls.as_mut()).flat_map(ListenTls::paths_mut));
        paths.extend(self.broker.iter_mut().flat_map(Broker::paths_mut));
        paths.extend(self.model.iter_mut().map(|model| &mut model.manifest));
        paths.extend(self.infer.library.as_mut());
        paths.extend(self.infer.catalogue.as_mut());
        paths.extend(self.admin.unix.as_mut());
        for path in paths {
            *path = folder.join(&*path);
        }
        self
    }
}

#[cfg(test)]
mod tests;
