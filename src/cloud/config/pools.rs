//! `[[pool]]`, `[[pool_machine]]` and `[infer]`: their keys, defaults and checks.

use std::fmt::Display;
use std::path::PathBuf;

use serde::Deserialize;
use weir_host::config::Checker;
use weir_host::units::Duration;
use weir_infer::Backend;
use weir_logic::wire::offload::POOLS_MAX;

/// `[[pool]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// Its name, in metrics and the graph.
    pub name: String,
    /// What it does, as streams of boxes name it.
    pub task: String,
    /// Its model's manifest, the TOML file beside the ONNX file.
    pub model: PathBuf,
    /// Which engine runs it.
    pub engine: Backend,
    /// Threads, each with a copy of the model.
    pub threads: u16,
    /// Windows that a thread scores at once.
    pub batch_max: usize,
    /// How long a window may wait for company while a thread is idle.
    pub linger: Duration,
    /// Windows that may wait, of all gateways.
    pub queue_max: usize,
    /// Zone that it is in, for streams with `zones`.
    pub zone: Option<String>,
    /// Names of gateways that may use it, `*` for any characters; without any, nobody may.
    pub gateways: Vec<String>,
}

/// `[infer]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Infer {
    /// The ONNX Runtime library; `None` for the usual places.
    pub library: Option<PathBuf>,
}

/// `[[pool_machine]]`: another machine's pools, which are passed on to gateways as our own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolMachine {
    /// Host name or address with port, as its `listen.quic` says.
    pub address: String,
    /// Name that its certificate must have; `None` for the host of the address.
    pub server_name: Option<String>,
    /// Names of gateways that may use its pools, `*` for any characters; without any, nobody may.
    pub gateways: Vec<String>,
}

impl PoolMachine {
    /// The name that its certificate must have.
    pub(crate) fn server_name(&self) -> &str {
        let host = self.address.rsplit_once(':').map_or(&*self.address, |(host, _)| host);
        self.server_name.as_deref().unwrap_or(host.trim_start_matches('[').trim_end_matches(']'))
    }
}

impl Default for Pool {
    fn default() -> Self {
        Pool {
            name: String::new(),
            task: String::new(),
            model: PathBuf::new(),
            engine: Backend::Auto,
            threads: 1,
            batch_max: 32,
            linger: Duration::from_millis(2),
            queue_max: 256,
            zone: None,
            gateways: Vec::new(),
        }
    }
}

/// Most threads of a pool: each has a copy of the model.
const THREADS_MAX: u16 = 64;
/// Most windows that wait or run at once.
const WINDOWS_MAX: usize = 4_096;
/// Longest wait for company.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// Longest name; names are labels of metrics.
const NAME_LEN_MAX: usize = 64;

pub(super) fn check(pools: &[Pool], infer: &Infer, checker: &mut Checker<'_>) {
    if pools.len() > POOLS_MAX {
        let message = format!("{} pools exceed the limit of {POOLS_MAX}", pools.len());
        checker.mistake("pool", message, "a box remembers no more than that");
    }
    for (at, pool) in pools.iter().enumerate() {
        check_names(pools, at, checker);
        check_limits(at, pool, checker);
    }
    if let Some(library) = infer.library.as_ref().filter(|library| library.is_relative()) {
        let message = format!("`{}` is a relative path", library.display());
        checker.mistake(
            "infer.library",
            message,
            "write the path from /, so that it cannot come to mean the working directory",
        );
    }
}

fn check_names(pools: &[Pool], at: usize, checker: &mut Checker<'_>) {
    let pool = &pools[at];
    let path = |key: &str| format!("pool[{at}].{key}");
    for (key, name) in [("name", &pool.name), ("task", &pool.task)] {
        let is_known = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(&c);
        if name.is_empty() {
            checker.mistake(&path(key), format!("the pool has no {key}"), format!("add {key} = \"...\""));
        } else if name.len() > NAME_LEN_MAX || !name.bytes().all(is_known) {
            let message = format!("`{name}` is not 1 to {NAME_LEN_MAX} characters from a-z, 0-9, `-`, `_` and `.`");
            checker.mistake(&path(key), message, "it becomes a label of metrics; write it as in `activity-large`");
        }
    }
    if pools[..at].iter().any(|other| other.name == pool.name) {
        checker.mistake(&path("name"), format!("there is another pool named `{}`", pool.name), "give each a name of its own");
    }
    if pool.model.as_os_str().is_empty() {
        checker.mistake(&path("model"), "the pool has no model", "write the path of the .toml file beside the model");
    }
    check_patterns(&path("gateways"), &pool.gateways, checker);
}

fn check_patterns(path: &str, patterns: &[String], checker: &mut Checker<'_>) {
    for (index, pattern) in patterns.iter().enumerate().filter(|(_, pattern)| pattern.trim().is_empty()) {
        let message = format!("`{pattern}` fits no gateway");
        checker.mistake(&format!("{path}[{index}]"), message, "write a name, or a pattern such as `site-7-*`");
    }
}

/// Most machines; each is a connection.
const MACHINES_MAX: usize = POOLS_MAX;

pub(super) fn check_machines(machines: &[PoolMachine], checker: &mut Checker<'_>) {
    if machines.len() > MACHINES_MAX {
        let message = format!("{} machines exceed the limit of {MACHINES_MAX}", machines.len());
        checker.mistake("pool_machine", message, "a box remembers no more pools than that");
    }
    for (at, machine) in machines.iter().enumerate() {
        let path = |key: &str| format!("pool_machine[{at}].{key}");
        let port =
            machine.address.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
        if port.is_none_or(|port| port == 0) {
            let message = format!("`{}` is no address with a port", machine.address);
            checker.mistake(&path("address"), message, "write it as in `pool-1.internal:4434`");
        }
        if machines[..at].iter().any(|other| other.address == machine.address) {
            let message = format!("`{}` is there twice", machine.address);
            checker.mistake(&path("address"), message, "one connection serves all gateways: write their names in one place");
        }
        check_patterns(&path("gateways"), &machine.gateways, checker);
    }
}

fn check_limits(at: usize, pool: &Pool, checker: &mut Checker<'_>) {
    let mut check = |key: &str, is_good: bool, value: &dyn Display, range: String, why: &str| {
        if !is_good {
            checker.mistake(&format!("pool[{at}].{key}"), format!("{value} is not within {range}"), why);
        }
    };
    let threads = (1..=THREADS_MAX).contains(&pool.threads);
    check("threads", threads, &pool.threads, format!("1 to {THREADS_MAX}"), "each has a copy of the model in memory");
    let batch = (1..=1_024).contains(&pool.batch_max);
    check("batch_max", batch, &pool.batch_max, "1 to 1024".to_owned(), "beyond 32 little is gained");
    let queue = (1..=WINDOWS_MAX).contains(&pool.queue_max);
    check("queue_max", queue, &pool.queue_max, format!("1 to {WINDOWS_MAX}"), "what waits longer than a deadline is refused");
    let linger = pool.linger <= LINGER_MAX;
    check("linger", linger, &pool.linger, format!("0s to {LINGER_MAX}"), "every answer may wait so long");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn mistakes_in_pools_are_told_all_at_once_with_their_lines() {
        let text = "[[pool]]\nname = 'a'\ntask = 'Big Task'\nmodel = 'm.toml'\nthreads = 0\nlinger = '2s'\ngateways = ['']\n\
                    [[pool]]\nname = 'a'\ntask = 't'\nqueue_max = 0\nbatch_max = 0\n[infer]\nlibrary = 'x.so'\n";
        let errors = Config::parse("x.toml", text).expect_err("nine mistakes");
        let mut lines: Vec<_> = errors.errors().iter().map(|error| error.line).collect();
        lines.sort_unstable();
        assert_eq!(lines, [3, 5, 6, 7, 8, 9, 11, 12, 14], "{errors}");
    }

    #[test]
    fn a_machine_has_an_address_with_a_port_and_the_name_of_its_host() {
        let text = "[[pool_machine]]\naddress = 'pool-1'\n[[pool_machine]]\naddress = 'a:1'\n[[pool_machine]]\naddress = 'a:1'\n\
                    gateways = ['']\n";
        let errors = Config::parse("x.toml", text).expect_err("three mistakes");
        let mut lines: Vec<_> = errors.errors().iter().map(|error| error.line).collect();
        lines.sort_unstable();
        assert_eq!(lines, [2, 6, 7], "{errors}");
        let machine = |address: &str, name: Option<&str>| PoolMachine {
            address: address.to_owned(),
            server_name: name.map(str::to_owned),
            gateways: Vec::new(),
        };
        assert_eq!(machine("pool-1:4434", None).server_name(), "pool-1");
        assert_eq!(machine("[::1]:4434", None).server_name(), "::1");
        assert_eq!(machine("10.0.0.7:4434", Some("pool-1")).server_name(), "pool-1");
    }
}
