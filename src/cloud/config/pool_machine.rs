//! The configuration of `weir-cloud pool`. `config/pool.toml` has every key with its default, by test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weir_host::config::{Checker, ConfigErrors};
use weir_host::tls::{Identity, Role};

use super::{Admin, Infer, Log, Pool, Tls, check_admin, pools};

/// Everything that can be set for a machine that runs pools and nothing else.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// Where clouds connect.
    pub listen: PoolListen,
    /// Who we are, and whose certificates count.
    pub tls: Tls,
    /// Who may pass requests on.
    pub clouds: Clouds,
    /// The pools.
    pub pool: Vec<Pool>,
    /// How they are run.
    pub infer: Infer,
    /// The operator's window.
    pub admin: Admin,
    /// What is logged.
    pub log: Log,
}

/// `[listen]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolListen {
    /// UDP address for QUIC.
    pub quic: SocketAddr,
}

/// `[clouds]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clouds {
    /// Names of clouds, as their certificates say them, that may connect; without any, nobody may.
    pub enrolled: Vec<String>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        PoolConfig {
            listen: PoolListen::default(),
            tls: Tls { cert: PathBuf::from("/etc/weir/pool.crt"), key: PathBuf::from("/etc/weir/pool.key"), ..Tls::default() },
            clouds: Clouds::default(),
            pool: Vec::new(),
            infer: Infer::default(),
            // Beside a cloud on the same machine.
            admin: Admin { http: Some(SocketAddr::from(([127, 0, 0, 1], 9181))), unix: None },
            log: Log::default(),
        }
    }
}

impl Default for PoolListen {
    fn default() -> Self {
        PoolListen { quic: SocketAddr::from(([0, 0, 0, 0], 4434)) }
    }
}

impl PoolConfig {
    /// Reads and checks a configuration file. Its paths are relative to its folder; once read they are resolved.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn read(path: &Path) -> Result<PoolConfig, ConfigErrors> {
        let folder = path.parent().unwrap_or(Path::new(""));
        weir_host::config::read(path, check).map(|config| config.resolved(folder))
    }

    /// Reads and checks a configuration; `file` is the name shown in messages.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(file: &str, text: &str) -> Result<PoolConfig, ConfigErrors> {
        weir_host::config::load_checked(file, text, check)
    }

    fn resolved(mut self, folder: &Path) -> PoolConfig {
        let mut paths = vec![&mut self.tls.cert, &mut self.tls.key, &mut self.tls.ca];
        paths.extend(self.pool.iter_mut().map(|pool| &mut pool.model));
        paths.extend(self.infer.library.as_mut());
        paths.extend(self.admin.unix.as_mut());
        for path in paths {
            *path = folder.join(&*path);
        }
        self
    }
}

fn check(config: &PoolConfig, checker: &mut Checker<'_>) {
    for (at, name) in config.clouds.enrolled.iter().enumerate() {
        if let Err(err) = Identity::new(Role::Cloud, name) {
            checker.mistake(&format!("clouds.enrolled[{at}]"), err.to_string(), "write the name alone, as in `cloud-1`");
        }
    }
    pools::check(&config.pool, &config.infer, checker);
    check_admin(&config.admin, &config.log, checker);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../../config/pool.toml");

    #[test]
    fn the_shipped_file_says_the_defaults_and_every_key() {
        assert_eq!(PoolConfig::parse("pool.toml", SHIPPED).map_err(|err| err.to_string()), Ok(PoolConfig::default()));
        let all: String = SHIPPED.lines().map(|line| line.strip_prefix("#= ").unwrap_or(line).to_owned() + "\n").collect();
        let config = PoolConfig::parse("pool.toml", &all).expect("commented keys are right too");
        let [pool] = &config.pool[..] else { panic!("one pool: {:?}", config.pool) };
        let named = Pool { name: pool.name.clone(), task: pool.task.clone(), model: pool.model.clone(), ..Pool::default() };
        assert_eq!(*pool, Pool { zone: pool.zone.clone(), gateways: pool.gateways.clone(), ..named });
        assert!(pool.zone.is_some() && !pool.gateways.is_empty());
        assert!(config.infer.library.is_some() && config.admin.unix.is_some());
    }

    #[test]
    fn mistakes_are_told_all_at_once_with_their_lines() {
        let text = "[clouds]\nenrolled = ['Cloud 1']\n[[pool]]\nname = 'a'\ntask = ''\nmodel = 'm.toml'\n[admin]\nhttp = '0.0.0.0:80'\n";
        let errors = PoolConfig::parse("x.toml", text).expect_err("three mistakes");
        let mut lines: Vec<_> = errors.errors().iter().map(|error| error.line).collect();
        lines.sort_unstable();
        assert_eq!(lines, [2, 5, 8], "{errors}");
        assert!(PoolConfig::parse("x.toml", "[gateways]\nenrolled = []\n").is_err(), "what takes data in has other keys");
    }
}
