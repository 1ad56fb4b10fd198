//! `[gateway]`, `[admin]` and `[log]`.

use std::os::unix::ffi::OsStrExt as _;

use weir_host::tls::{Identity, Role};

use super::Context;
use crate::config::finding::Findings;

/// Longest path of a unix socket in bytes, without the zero at its end. Source: unix(7).
const SOCKET_PATH_LEN_MAX: usize = 107;

pub(super) fn check(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    let config = context.config;
    if config.gateway.data_dir.as_os_str().is_empty() {
        findings.mistake("gateway.data_dir", "the folder has no name", "write data_dir = \"/var/lib/weir\"");
    }
    if let Some(name) = &config.gateway.name
        && let Err(err) = Identity::new(Role::Gateway, name)
    {
        findings.mistake("gateway.name", err.to_string(), "write the name alone, as in `box-1`");
    }
    if !config.admin.http.ip().is_loopback() {
        let message = format!("the admin address {} is not a loopback address", config.admin.http);
        findings.mistake("admin.http", message, "use 127.0.0.1 or [::1]: there is no password; put a proxy or ssh before it");
    }
    if let Some(path) = &config.admin.unix {
        let len = context.folder.join(path).as_os_str().as_bytes().len();
        if path.as_os_str().is_empty() || len > SOCKET_PATH_LEN_MAX {
            let message = format!("a socket's path has 1 to {SOCKET_PATH_LEN_MAX} bytes, this one {len}");
            findings.mistake("admin.unix", message, "write, for example, \"/run/weir/admin.sock\"");
        }
    }
    if let Err(err) = weir_host::log::check_filter(&config.log.filter) {
        findings.mistake("log.filter", err.to_string(), "as in `info` or `info,weir_edge=debug`");
    }
}
