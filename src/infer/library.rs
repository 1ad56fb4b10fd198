//! Where the native library is looked for. Never in the working directory, never by a bare name.

use std::path::{Path, PathBuf};

use crate::runtime::{LIBRARY_FILE, Target};

/// The places of the ONNX Runtime library, in order: an explicit path, `WEIR_ORT_LIB`, `/usr/lib/weir`, the user's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeLibrary {
    named: Option<PathBuf>,
    folders: Vec<PathBuf>,
}

/// Why there is no native library.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// Not in any of the places.
    #[error(
        "no ONNX Runtime library in {searched}: run `weir runtime fetch`, name one in WEIR_ORT_LIB, or use backend = \"rten\""
    )]
    Missing {
        /// The places, joined by commas.
        searched: String,
    },
    /// A path was named and no file is there.
    #[error("the ONNX Runtime library {path} is not there: correct the path, or remove it to search the usual places", path = path.display())]
    NamedMissing {
        /// As named.
        path: PathBuf,
    },
    /// A relative path could come to mean the working directory.
    #[error("the ONNX Runtime library is named by the relative path {path}: write it from /", path = path.display())]
    Relative {
        /// As named.
        path: PathBuf,
    },
    /// The file is no usable library.
    #[error("{path} is no usable ONNX Runtime: {message}; run `weir runtime fetch` for the tested library", path = path.display())]
    Broken {
        /// The library.
        path: PathBuf,
        /// The loader's words.
        message: String,
    },
    /// The version is 1.29 or newer, or unknown, and would report to its maker.
    #[error("{path} may send telemetry: set ORT_DISABLE_TELEMETRY=1 in the environment before starting, or run `weir runtime fetch` for the tested library, which has none", path = path.display())]
    Telemetry {
        /// The library.
        path: PathBuf,
    },
    /// A process can hold one.
    #[error("this process already uses {loaded} and cannot load {wanted} as well: name one library for all models", loaded = loaded.display(), wanted = wanted.display())]
    Another {
        /// The first.
        loaded: PathBuf,
        /// The second.
        wanted: PathBuf,
    },
}

impl RuntimeLibrary {
    /// The usual places, read from the environment; `explicit` (from flags or config) goes before all others.
    pub fn from_env(explicit: Option<PathBuf>) -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let data = Target::host().and_then(Self::data_folder);
        let folders = [Some(PathBuf::from(SYSTEM_FOLDER)), data].into_iter().flatten().collect();
        Self { named: explicit.or_else(|| variable("WEIR_ORT_LIB")), folders }
    }

    /// Only this file.
    pub fn at(path: PathBuf) -> Self {
        Self { named: Some(path), folders: Vec::new() }
    }

    /// Only these folders; none at all for a box that must use the embedded engine.
    pub fn in_folders(folders: Vec<PathBuf>) -> Self {
        Self { named: None, folders }
    }

    /// Where [`crate::fetch`] should install for a user: `$XDG_DATA_HOME/weir/runtime/<target>`, by default under
    /// `~/.local/share`. `None` without a home.
    pub fn data_folder(target: Target) -> Option<PathBuf> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
        Some(data.join("weir/runtime").join(target.triple()))
    }

    /// The library's absolute path. The file exists; whether it is a library shows when it is loaded.
    ///
    /// # Errors
    /// `Missing`, `NamedMissing` or `Relative`.
    pub fn find(&self) -> Result<PathBuf, LibraryError> {
        if let Some(path) = &self.named {
            return match path {
                path if !path.is_absolute() => Err(LibraryError::Relative { path: path.clone() }),
                path if !path.is_file() => Err(LibraryError::NamedMissing { path: path.clone() }),
                path => Ok(path.clone()),
            };
        }
        let absolute = self.folders.iter().filter(|folder| folder.is_absolute());
        let mut files = absolute.flat_map(|folder| [LIBRARY_FILE, PLAIN_FILE].map(|name| folder.join(name)));
        files.find(|file| file.is_file()).ok_or_else(|| LibraryError::Missing { searched: listed(&self.folders) })
    }
}

/// Sets `ORT_DISABLE_TELEMETRY=1` unless the variable is set already: from 1.29 on, the official library otherwise
/// creates a device id, a database in the user's cache and a thread. Call it first thing in `main`.
///
/// Returns whether telemetry is disabled now: with other threads running the environment cannot be changed safely, and
/// it is left alone. Without the variable such a library is refused.
pub fn disable_telemetry_env() -> bool {
    if std::env::var_os(TELEMETRY_VARIABLE).is_some() {
        return telemetry_disabled();
    }
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return false;
    }
    // SAFETY: changing the environment races only with other threads, and the line above counted this one alone.
    #[allow(unsafe_code)] // the library reads nothing but the environment, before any of its functions can be called
    unsafe {
        std::env::set_var(TELEMETRY_VARIABLE, "1");
    }
    true
}

/// Whether the variable has the value that turns telemetry off.
pub(crate) fn telemetry_disabled() -> bool {
    std::env::var_os(TELEMETRY_VARIABLE).is_some_and(|value| value == "1")
}

fn listed(folders: &[PathBuf]) -> String {
    match folders {
        [] => "any folder (none is configured)".to_owned(),
        _ => folders.iter().map(|folder| Path::display(folder).to_string()).collect::<Vec<_>>().join(", "),
    }
}

/// Where packages put it.
const SYSTEM_FOLDER: &str = "/usr/lib/weir";
/// What an administrator who brings another version calls it.
const PLAIN_FILE: &str = "libonnxruntime.so";
const TELEMETRY_VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_that_has_a_library_wins_and_the_tested_version_goes_first() {
        let root = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| root.path().join(name)).collect();
        folders.iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        let library = RuntimeLibrary::in_folders(folders.clone());
        assert!(matches!(library.find(), Err(LibraryError::Missing { searched }) if searched.contains("/b, ")));
        std::fs::write(folders[2].join(PLAIN_FILE), "").unwrap();
        assert_eq!(library.find(), Ok(folders[2].join(PLAIN_FILE)));
        std::fs::write(folders[1].join(PLAIN_FILE), "").unwrap();
        std::fs::write(folders[1].join(LIBRARY_FILE), "").unwrap();
        assert_eq!(library.find(), Ok(folders[1].join(LIBRARY_FILE)));
    }

    #[test]
    fn a_named_library_is_never_replaced_by_another_and_never_relative() {
        let missing = RuntimeLibrary::from_env(Some(PathBuf::from("/nowhere/libonnxruntime.so")));
        assert!(matches!(missing.find(), Err(LibraryError::NamedMissing { .. })));
        let relative = RuntimeLibrary::at(PathBuf::from("Cargo.toml"));
        assert!(matches!(relative.find(), Err(LibraryError::Relative { .. })));
        let here = RuntimeLibrary::in_folders(vec![PathBuf::from(".")]);
        assert!(matches!(here.find(), Err(LibraryError::Missing { .. })));
    }

    #[test]
    fn the_environment_is_left_alone_while_other_threads_run() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv());
        let before = std::env::var_os(TELEMETRY_VARIABLE);
        assert_eq!(disable_telemetry_env(), before.as_deref() == Some("1".as_ref()));
        assert_eq!(std::env::var_os(TELEMETRY_VARIABLE), before);
        drop(stop);
        other.join().unwrap().unwrap_err();
    }
}
