//! Logs: to standard error, as text for people or JSON for machines.

use std::io;

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, registry};

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("`{filter}` is not a log filter; write a level (`info`) or levels by crate (`info,weir_edge=debug`)")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process logs already.
    #[error("logging is set up already")]
    SetUpTwice {
        /// The subscriber's own words.
        source: tracing_subscriber::util::TryInitError,
    },
}

/// Sets up logging for the process: `filter` is a level, or levels by crate.
///
/// # Errors
/// `Filter` for a filter that is none, `SetUpTwice` if the process has a subscriber.
pub fn init(filter: &str, format: LogFormat) -> Result<(), LogError> {
    // Not `EnvFilter`: it can tell spans apart by their fields, and for that brings an engine for regular expressions.
    let targets = parse_filter(filter)?;
    let layer = fmt::layer().with_writer(io::stderr);
    let outcome = match format {
        LogFormat::Text => {
            // Source: no-color.org. A serial console is a terminal, but what listens to it is often a file.
            let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
            registry().with(layer.with_ansi(is_terminal && !is_plain)).with(targets).try_init()
        }
        LogFormat::Json => registry().with(layer.json().flatten_event(true)).with(targets).try_init(),
    };
    outcome.map_err(|source| LogError::SetUpTwice { source })
}

/// Checks a filter, for `weir check`.
///
/// # Errors
/// `Filter` for a filter that is none.
pub fn check_filter(filter: &str) -> Result<(), LogError> {
    parse_filter(filter).map(drop)
}

fn parse_filter(filter: &str) -> Result<Targets, LogError> {
    filter.parse().map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        check_filter("info").unwrap();
        check_filter("info,weir_edge=debug").unwrap();
        let error = check_filter("weir=loud").unwrap_err().to_string();
        assert!(error.starts_with("`weir=loud` is not a log filter"), "{error}");
    }

    #[test]
    fn a_process_sets_up_logging_once() {
        init("warn", LogFormat::Json).unwrap();
        assert!(matches!(init("warn", LogFormat::Text), Err(LogError::SetUpTwice { .. })));
    }
}
