//! What concerns the process as a whole: its folder, its admin endpoint, its log.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use weir_host::log::LogFormat;

use super::address;

/// `[gateway]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Folder of the buffer and all else that must survive a restart.
    pub data_dir: PathBuf,
    /// A name for logs of a box that has no certificate yet; with one, its identity is the name.
    pub name: Option<String>,
}

impl Default for Gateway {
    fn default() -> Self {
        Gateway { data_dir: PathBuf::from("/var/lib/weir"), name: None }
    }
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Loopback address of health, metrics and status.
    #[serde(deserialize_with = "address::with_port")]
    pub http: SocketAddr,
    /// The same on a unix socket; `None` for HTTP only.
    pub unix: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        Admin { http: SocketAddr::from(([127, 0, 0, 1], 9180)), unix: None }
    }
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

impl Default for Log {
    fn default() -> Self {
        Log { filter: "info".to_owned(), format: LogFormat::Text }
    }
}
