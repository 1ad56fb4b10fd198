//! Network namespaces: entered by name, as `ip netns add` makes them.

use std::{fs::File, io, os::fd::AsFd as _, path::PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns add` keeps them.
const NAMED: &str = "/run/netns";

/// Why a namespace cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// It is not there.
    #[error("there is no network namespace `{name}`; make it with `ip netns add {name}`")]
    Missing {
        /// As it was asked for.
        name: String,
    },
    /// The system refuses.
    #[error("the network namespace `{name}` cannot be entered{}", advice(source))]
    Refused {
        /// As it was asked for.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Moves the calling thread, and all that it starts from now on, into the namespace of that name; a name with a `/` is a path.
///
/// # Errors
/// `Missing` if there is none of that name, `Refused` without the right to enter it.
pub fn enter(name: &str) -> Result<(), NamespaceError> {
    let path = if name.contains('/') { PathBuf::from(name) } else { PathBuf::from(NAMED).join(name) };
    let refused = |source| NamespaceError::Refused { name: name.to_owned(), source };
    let file = File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => NamespaceError::Missing { name: name.to_owned() },
        _ => refused(source),
    })?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|errno| refused(errno.into()))
}

fn advice(err: &io::Error) -> &'static str {
    if err.kind() == io::ErrorKind::PermissionDenied { "; run this as root" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_not_there_or_is_none_is_refused_with_what_to_do() {
        let missing = enter("weir-not-there").unwrap_err();
        assert!(missing.to_string().ends_with("make it with `ip netns add weir-not-there`"), "{missing}");
        let file = enter("/proc/self/status").unwrap_err();
        assert!(matches!(file, NamespaceError::Refused { .. }), "{file:?}");
    }
}
