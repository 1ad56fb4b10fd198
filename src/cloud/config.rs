//! The configuration of the cloud side. `config/cloud.toml` has every key with its default, by test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weir_host::config::{Checker, ConfigErrors};
use weir_host::log::LogFormat;
use weir_host::tls::{Identity, Role};
use weir_host::units::{Bytes, Duration};
use weir_logic::block::BLOCK_LEN_MAX;

use crate::schema::Layout;

mod pool_machine;
mod pools;

pub use pool_machine::{Clouds, PoolConfig, PoolListen};
pub use pools::{Infer, Pool, PoolMachine};

/// Everything that can be set. The defaults are in the `impl Default` of each table.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where gateways connect.
    pub listen: Listen,
    /// Who we are, and whose certificates count.
    pub tls: Tls,
    /// Who may connect.
    pub gateways: Gateways,
    /// Where records are stored.
    pub store: Store,
    /// How much is taken in at a time.
    pub limits: Limits,
    /// What gateways are offered.
    pub policies: Policies,
    /// Models that gateways are offered.
    pub models: Models,
    /// Larger models that gateways may ask.
    pub pool: Vec<Pool>,
    /// How those are run.
    pub infer: Infer,
    /// Other machines that run some, by `weir-cloud pool`.
    pub pool_machine: Vec<PoolMachine>,
    /// The operator's window.
    pub admin: Admin,
    /// What is logged.
    pub log: Log,
}

/// `[listen]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// UDP address for QUIC.
    pub quic: SocketAddr,
    /// TCP address for TLS, for boxes whose UDP does not get here; `None` for none.
    pub tls: Option<SocketAddr>,
}

/// `[tls]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Certificate chain in PEM, with the URI `weir://cloud/NAME`.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authority of the gateways' certificates.
    pub ca: PathBuf,
}

/// `[gateways]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateways {
    /// Names that may connect.
    pub enrolled: Vec<String>,
    /// File with more names, one a line, `#` for comments; read again when it changes.
    pub enrolled_file: Option<PathBuf>,
    /// How often the file is looked at, at most a minute: a name taken out of it is disconnected then.
    pub enrolled_recheck: Duration,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// The SQLite file.
    pub path: PathBuf,
    /// Memory for its pages.
    pub cache_bytes: Bytes,
    /// Largest file, without its WAL of about 32 MiB; "0B" for what the disk holds.
    pub file_bytes_max: Bytes,
    /// A transaction is committed when it has taken in this much.
    pub transaction_bytes_max: Bytes,
    /// A transaction is committed when it has taken this long.
    pub transaction_time_max: Duration,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Unacknowledged bytes a connection may have under way, for each class.
    pub credit_bytes: Bytes,
    /// Blocks waiting for the sink, of all gateways; when full, streams are not read.
    pub queue_bytes: Bytes,
    /// Blocks of one connection that are not whole yet; more closes it.
    pub connection_bytes: Bytes,
    /// Connections at a time; more are refused.
    pub connections_max: usize,
    /// Gateways without a connection whose state is kept in memory.
    pub gateways_cached: usize,
}

/// `[policies]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policies {
    /// Folder of `NAME.toml` and `NAME.toml.sig`, looked at every few seconds; `None` to offer none.
    pub dir: Option<PathBuf>,
    /// Part of the gateways that gets a new one first; one of them at least.
    pub share: f64,
    /// How long all of those must have kept it before the others get it.
    pub soak: Duration,
}

/// `[models]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Models {
    /// Folder of `NAME.weir-model`, looked at every few seconds; `None` to offer none.
    pub dir: Option<PathBuf>,
    /// Part of the gateways that gets a new one first; one of them at least.
    pub share: f64,
    /// How long all of those must have kept it before the others get it.
    pub soak: Duration,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Loopback address for HTTP.
    pub http: Option<SocketAddr>,
    /// Path of a unix socket.
    pub unix: Option<PathBuf>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A level, or levels by crate.
    pub filter: String,
    /// For people (`text`) or machines (`json`).
    pub format: LogFormat,
}

impl Default for Listen {
    fn default() -> Self {
        Listen { quic: SocketAddr::from(([0, 0, 0, 0], 4433)), tls: None }
    }
}

impl Default for Tls {
    fn default() -> Self {
        let file = |name| Path::new("/etc/weir").join(name);
        Tls { cert: file("cloud.crt"), key: file("cloud.key"), ca: file("ca.crt") }
    }
}

impl Default for Gateways {
    fn default() -> Self {
        Gateways { enrolled: Vec::new(), enrolled_file: None, enrolled_recheck: Duration::from_secs(10) }
    }
}

impl Default for Store {
    fn default() -> Self {
        Store {
            path: PathBuf::from("/var/lib/weir/cloud.db"),
            cache_bytes: Bytes::from_mib(16),
            file_bytes_max: Bytes::new(0),
            transaction_bytes_max: Bytes::from_mib(8),
            transaction_time_max: Duration::from_millis(50),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            credit_bytes: Bytes::from_mib(8),
            queue_bytes: Bytes::from_mib(64),
            connection_bytes: Bytes::from_mib(16),
            connections_max: 1_024,
            gateways_cached: 1_024,
        }
    }
}

impl Default for Policies {
    fn default() -> Self {
        Policies { dir: None, share: 0.05, soak: Duration::from_secs(600) }
    }
}

impl Default for Models {
    fn default() -> Self {
        Models { dir: None, share: 0.05, soak: Duration::from_secs(600) }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Admin { http: Some(SocketAddr::from(([127, 0, 0, 1], 9180))), unix: None }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

impl Config {
    /// Reads and checks a configuration file. Its paths are relative to its folder; once read they are resolved.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn read(path: &Path) -> Result<Config, ConfigErrors> {
        let folder = path.parent().unwrap_or(Path::new(""));
        weir_host::config::read(path, check).map(|config| config.resolved(folder))
    }

    fn resolved(mut self, folder: &Path) -> Config {
        let mut paths = vec![&mut self.tls.cert, &mut self.tls.key, &mut self.tls.ca, &mut self.store.path];
        paths.extend(self.gateways.enrolled_file.as_mut());
        paths.extend(self.policies.dir.as_mut());
        paths.extend(self.models.dir.as_mut());
        paths.extend(self.pool.iter_mut().map(|pool| &mut pool.model));
        paths.extend(self.infer.library.as_mut());
        paths.extend(self.admin.unix.as_mut());
        for path in paths {
            *path = folder.join(&*path);
        }
        self
    }

    /// Reads and checks a configuration; `file` is the name shown in messages.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(file: &str, text: &str) -> Result<Config, ConfigErrors> {
        weir_host::config::load_checked(file, text, check)
    }

    /// How the database is kept.
    pub fn layout(&self) -> Layout {
        Layout {
            path: self.store.path.clone(),
            cache_bytes: self.store.cache_bytes.get(),
            file_bytes_max: self.store.file_bytes_max.get(),
        }
    }
}

/// Largest `limits.queue_bytes`: a semaphore takes 32 bits at a time.
const QUEUE_BYTES_MAX: u64 = 1 << 30;

/// Longest `policies.soak` and `models.soak`.
const SOAK_MAX: Duration = Duration::from_secs(7 * 86_400);

fn check(config: &Config, checker: &mut Checker<'_>) {
    for (at, name) in config.gateways.enrolled.iter().enumerate() {
        if let Err(err) = Identity::new(Role::Gateway, name) {
            checker.mistake(&format!("gateways.enrolled[{at}]"), err.to_string(), "write the name alone, as in `box-1`");
        }
    }
    let recheck = config.gateways.enrolled_recheck;
    if recheck.is_zero() || recheck > Duration::from_secs(60) {
        let message = format!("{recheck} is not within 1us to 60s");
        checker.mistake("gateways.enrolled_recheck", message, "a revocation must take effect within a minute");
    }
    let block = BLOCK_LEN_MAX as u64;
    let sizes = [
        ("limits.credit_bytes", config.limits.credit_bytes, 1 << 16, u64::MAX),
        ("limits.queue_bytes", config.limits.queue_bytes, 2 * block, QUEUE_BYTES_MAX),
        ("limits.connection_bytes", config.limits.connection_bytes, block, QUEUE_BYTES_MAX),
        ("store.cache_bytes", config.store.cache_bytes, 1 << 20, 1 << 40),
        ("store.transaction_bytes_max", config.store.transaction_bytes_max, 1, QUEUE_BYTES_MAX),
    ];
    for (key, value, min, max) in sizes {
        if !(min..=max).contains(&value.get()) {
            let message = format!("{value} is not within {} to {}", Bytes::new(min), Bytes::new(max));
            checker.mistake(key, message, "the largest block there is must fit");
        }
    }
    let (places, places_min) = (config.limits.connections_max, if config.listen.tls.is_some() { 2 } else { 1 });
    if places < places_min {
        let message = format!("{places} lets nobody in");
        checker.mistake("limits.connections_max", message, format!("at least {places_min}; over TCP a box has two"));
    }
    let (policies, models) = (&config.policies, &config.models);
    for (table, share, soak) in [("policies", policies.share, policies.soak), ("models", models.share, models.soak)] {
        if !(0.0..=1.0).contains(&share) {
            let message = format!("{share} is not within 0 to 1");
            let hint = "it is a part of the gateways; 0 is one of them, 1 is all at once";
            checker.mistake(&format!("{table}.share"), message, hint);
        }
        if soak > SOAK_MAX {
            let message = format!("{soak} is longer than {SOAK_MAX}");
            checker.mistake(&format!("{table}.soak"), message, "a restart of the cloud begins it anew");
        }
    }
    pools::check(&config.pool, &config.infer, checker);
    pools::check_machines(&config.pool_machine, checker);
    check_admin(&config.admin, &config.log, checker);
}

/// What both kinds of process have.
fn check_admin(admin: &Admin, log: &Log, checker: &mut Checker<'_>) {
    if let Some(addr) = admin.http.filter(|addr| !addr.ip().is_loopback()) {
        checker.mistake(
            "admin.http",
            format!("{addr} is not a loopback address"),
            "use 127.0.0.1 or [::1]: there is no password",
        );
    }
    if let Err(err) = weir_host::log::check_filter(&log.filter) {
        checker.mistake("log.filter", err.to_string(), "as in `info` or `info,weir_cloud=debug`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../config/cloud.toml");

    #[test]
    fn the_shipped_file_says_the_defaults_and_every_key() {
        assert_eq!(Config::parse("cloud.toml", SHIPPED).map_err(|err| err.to_string()), Ok(Config::default()));
        // Keys without a default are shown as comments.
        let all: String = SHIPPED.lines().map(|line| line.strip_prefix("#= ").unwrap_or(line).to_owned() + "\n").collect();
        let config = Config::parse("cloud.toml", &all).expect("commented keys are right too");
        assert!(config.gateways.enrolled_file.is_some() && config.admin.unix.is_some() && config.listen.tls.is_some());
        assert!(config.policies.dir.is_some() && config.models.dir.is_some() && config.infer.library.is_some());
        // Each commented key of a pool is one, and those with a default show it.
        let [pool] = &config.pool[..] else { panic!("one pool: {:?}", config.pool) };
        let named = Pool { name: pool.name.clone(), task: pool.task.clone(), model: pool.model.clone(), ..Pool::default() };
        assert_eq!(*pool, Pool { zone: pool.zone.clone(), gateways: pool.gateways.clone(), ..named });
        assert!(pool.zone.is_some() && !pool.gateways.is_empty());
        let [machine] = &config.pool_machine[..] else { panic!("one machine: {:?}", config.pool_machine) };
        assert!(!machine.address.is_empty() && machine.server_name.is_some() && !machine.gateways.is_empty());
    }

    #[test]
    fn mistakes_are_told_all_at_once_with_their_lines() {
        let text = "[gateways]\nenrolled = ['Box 1']\nenrolled_recheck = '2m'\n[policies]\nshare = 5.0\n[limits]\nqueue_bytes = '1KiB'\nconections_max = 3\n\
                    [admin]\nhttp = '0.0.0.0:80'\n[log]\nfilter = 'a=b=c'\n";
        let errors = Config::parse("x.toml", text).expect_err("seven mistakes");
        let lines: Vec<_> = errors.errors().iter().map(|error| error.line).collect();
        assert_eq!(lines, [2, 3, 5, 7, 8, 10, 12], "{errors}");
    }

    #[test]
    fn over_tcp_a_box_needs_two_places() {
        let text = |tls: &str, places: usize| format!("[listen]\n{tls}\n[limits]\nconnections_max = {places}\n");
        assert!(Config::parse("x.toml", &text("", 1)).is_ok());
        for (tls, places) in [("", 0), ("tls = '0.0.0.0:443'", 1)] {
            let errors = Config::parse("x.toml", &text(tls, places)).expect_err("too few");
            assert!(errors.errors()[0].line == 4 && errors.to_string().contains("lets nobody in"), "{errors}");
        }
        let errors = Config::parse("x.toml", &text("tls = 'cloud:443'", 2)).expect_err("a name is no address");
        assert_eq!(errors.errors()[0].line, 2, "{errors}");
    }

    #[test]
    fn models_are_spread_within_the_limits_of_policies() {
        let errors = Config::parse("x.toml", "[models]\nshare = 1.5\nsoak = '8d'\n").expect_err("two mistakes");
        let lines: Vec<_> = errors.errors().iter().map(|error| error.line).collect();
        assert_eq!(lines, [2, 3], "{errors}");
    }

    #[test]
    fn bare_numbers_are_refused() {
        assert!(Config::parse("x.toml", "[limits]\nqueue_bytes = 64000000\n").is_err());
    }
}
