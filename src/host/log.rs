//! Logs: to standard error, as text for people or JSON for machines.

use std::io;

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt as _};

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
    let env_filter = parse_filter(filter)?;
    let builder = fmt().with_env_filter(env_filter).with_writer(io::stderr);
    let outcome = match format {
        LogFormat::Text => {
            // Source: no-color.org. A serial console is a terminal, but what listens to it is often a file.
            let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
            builder.with_ansi(is_terminal && !is_plain).finish().try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
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

fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder().parse(filter).map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
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
