//! The check of `[[pool]]` and `[infer]`.

use std::fmt::Display;

use weir_host::config::Checker;
use weir_host::units::Duration;
use weir_logic::wire::offload::POOLS_MAX;

use super::{Config, Pool};

/// Most threads of a pool: each has a copy of the model.
const THREADS_MAX: u16 = 64;
/// Most windows that wait or run at once.
const WINDOWS_MAX: usize = 4_096;
/// Longest wait for company.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// Longest name; names are labels of metrics.
const NAME_LEN_MAX: usize = 64;

pub(super) fn check(config: &Config, checker: &mut Checker<'_>) {
    if config.pool.len() > POOLS_MAX {
        let message = format!("{} pools exceed the limit of {POOLS_MAX}", config.pool.len());
        checker.mistake("pool", message, "a box remembers no more than that");
    }
    for (at, pool) in config.pool.iter().enumerate() {
        check_names(config, at, pool, checker);
        check_limits(at, pool, checker);
    }
    if let Some(library) = config.infer.library.as_ref().filter(|library| library.is_relative()) {
        let message = format!("`{}` is a relative path", library.display());
        checker.mistake(
            "infer.library",
            message,
            "write the path from /, so that it cannot come to mean the working directory",
        );
    }
}

fn check_names(config: &Config, at: usize, pool: &Pool, checker: &mut Checker<'_>) {
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
    if config.pool[..at].iter().any(|other| other.name == pool.name) {
        checker.mistake(&path("name"), format!("there is another pool named `{}`", pool.name), "give each a name of its own");
    }
    if pool.model.as_os_str().is_empty() {
        checker.mistake(&path("model"), "the pool has no model", "write the path of the .toml file beside the model");
    }
    for (index, pattern) in pool.gateways.iter().enumerate().filter(|(_, pattern)| pattern.trim().is_empty()) {
        let message = format!("`{pattern}` fits no gateway");
        checker.mistake(&path(&format!("gateways[{index}]")), message, "write a name, or a pattern such as `site-7-*`");
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

    #[test]
    fn mistakes_in_pools_are_told_all_at_once_with_their_lines() {
        let text = "[[pool]]\nname = 'a'\ntask = 'Big Task'\nmodel = 'm.toml'\nthreads = 0\nlinger = '2s'\ngateways = ['']\n\
                    [[pool]]\nname = 'a'\ntask = 't'\nqueue_max = 0\nbatch_max = 0\n[infer]\nlibrary = 'x.so'\n";
        let errors = Config::parse("x.toml", text).expect_err("nine mistakes");
        let mut lines: Vec<_> = errors.errors().iter().map(|error| error.line).collect();
        lines.sort_unstable();
        assert_eq!(lines, [3, 5, 6, 7, 8, 9, 11, 12, 14], "{errors}");
    }
}
