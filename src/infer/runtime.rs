//! Fetches the tested ONNX Runtime library with pip, for this machine or for a box of another architecture.
//!
//! The library comes from the wheels of the Python package `onnxruntime`: small, for old C libraries (glibc 2.27), and
//! without the telemetry of 1.29 and later. pip is only the client; nothing is installed into Python. The wheel's SHA-256
//! is checked before it is opened.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::manifest::hex;

/// The version of ONNX Runtime that Weir is tested with.
pub const LIBRARY_VERSION: &str = "1.23.2";

/// An architecture that the library exists for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// x86-64 Linux with glibc 2.27 or newer.
    X86_64,
    /// 64-bit ARM Linux with glibc 2.27 or newer.
    Aarch64,
}

/// Why the library was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No library is published for it.
    #[error(
        "no ONNX Runtime library is published for {0:?}: there is one for x86_64-unknown-linux-gnu and aarch64-unknown-linux-gnu; on other boxes (32-bit ARM, static musl) use backend = \"rten\""
    )]
    UnknownTarget(String),
    /// python3 could not be started.
    #[error(
        "cannot run {python:?}: install Python 3 with pip (Debian: apt-get install python3-pip), or fetch on another machine and copy the folder"
    )]
    NoPython {
        /// What was tried.
        python: String,
        /// The system's reason.
        source: io::Error,
    },
    /// python3 is there, pip is not.
    #[error("Python has no pip: install it (Debian: apt-get install python3-pip)")]
    NoPip,
    /// pip failed, for example without a network.
    #[error(
        "pip could not download onnxruntime {LIBRARY_VERSION}: {message}; check the network, proxy and package index settings of pip"
    )]
    Download {
        /// The last lines it printed.
        message: String,
    },
    /// What came is not what was tested.
    #[error(
        "{file} has sha256 {found}, expected {expected}: it was damaged or is not the published file; nothing was installed"
    )]
    Checksum {
        /// The wheel's name.
        file: String,
        /// Of the file.
        found: String,
        /// The pinned sum.
        expected: &'static str,
    },
    /// The wheel could not be opened.
    #[error("cannot unpack {file}: {message}")]
    Unpack {
        /// The wheel's name.
        file: String,
        /// What Python said, or what is missing in it.
        message: String,
    },
    /// The folder could not be written.
    #[error("cannot write to {path}: choose a folder that this user may write to, with 50 MB free", path = path.display())]
    Write {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl Target {
    /// Understands target triples and bare architectures.
    ///
    /// # Errors
    /// `UnknownTarget`.
    pub fn parse(text: &str) -> Result<Self, FetchError> {
        match text {
            "x86_64-unknown-linux-gnu" | "x86_64" | "amd64" => Ok(Self::X86_64),
            "aarch64-unknown-linux-gnu" | "aarch64" | "arm64" => Ok(Self::Aarch64),
            other => Err(FetchError::UnknownTarget(other.to_owned())),
        }
    }

    /// The one this binary runs on; `None` where it could not load the library.
    pub fn host() -> Option<Self> {
        let loads = cfg!(all(target_os = "linux", target_env = "gnu"));
        Self::parse(std::env::consts::ARCH).ok().filter(|_| loads)
    }

    /// Its name, as `rustc` has it.
    pub fn triple(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }

    fn arch(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// SHA-256 of the wheel for CPython 3.12, manylinux 2.27 and 2.28.
    fn wheel_sha256(self) -> &'static str {
        match self {
            Self::X86_64 => "0f9b4ae77f8e3c9bee50c27bc1beede83f786fe1d52e99ac85aa8d65a01e9b77",
            Self::Aarch64 => "76ff670550dc23e58ea9bc53b5149b99a44e63b34b524f7b8547469aaa0dcb8c",
        }
    }
}

/// Downloads, verifies and installs the library into `folder` (see [`crate::RuntimeLibrary::data_folder`]), with its
/// licences beside it, and returns its path. About 17 MB over the network, 22 MB on disk; blocks for seconds to minutes. A
/// library that is there already is replaced at once or not at all.
///
/// # Errors
/// See [`FetchError`]; every variant says what to do.
pub fn fetch(target: Target, folder: &Path) -> Result<PathBuf, FetchError> {
    fetch_with(OsStr::new("python3"), target, folder, target.wheel_sha256())
}

fn fetch_with(python: &OsStr, target: Target, folder: &Path, sha256: &'static str) -> Result<PathBuf, FetchError> {
    let work = WorkFolder::create(folder)?;
    python_ready(python)?;
    let wheel = download(python, target, &work.0)?;
    let file = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let found = sum(&wheel).map_err(|source| FetchError::Write { path: wheel.clone(), source })?;
    if found != sha256 {
        return Err(FetchError::Checksum { file, found, expected: sha256 });
    }
    let unpacked = work.0.join("unpacked");
    let output =
        run(python, [OsStr::new("-m"), OsStr::new("zipfile"), OsStr::new("-e"), wheel.as_os_str(), unpacked.as_os_str()])?;
    output.map_err(|message| FetchError::Unpack { file: file.clone(), message })?;
    for (from, to) in CONTENTS {
        let from = unpacked.join(from);
        if !from.is_file() {
            return Err(FetchError::Unpack { file, message: format!("it has no {}", from.display()) });
        }
        let to = folder.join(to);
        let synced = File::open(&from).and_then(|file| file.sync_all()).and_then(|()| fs::rename(&from, &to));
        synced.map_err(|source| FetchError::Write { path: to, source })?;
    }
    Ok(folder.join(LIBRARY_FILE))
}

fn python_ready(python: &OsStr) -> Result<(), FetchError> {
    run(python, ["-m", "pip", "--version"].map(OsStr::new))?.map_err(|_| FetchError::NoPip)
}

fn download(python: &OsStr, target: Target, work: &Path) -> Result<PathBuf, FetchError> {
    let platforms = ["manylinux_2_27", "manylinux_2_28"].map(|tag| format!("{tag}_{}", target.arch()));
    let wanted = format!("onnxruntime=={LIBRARY_VERSION}");
    let mut arguments = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"].map(OsStr::new).to_vec();
    for platform in &platforms {
        arguments.extend([OsStr::new("--platform"), OsStr::new(platform)]);
    }
    arguments.extend(["--python-version", "312", "--implementation", "cp", "-d"].map(OsStr::new));
    arguments.extend([work.as_os_str(), OsStr::new(&wanted)]);
    run(python, arguments)?.map_err(|message| FetchError::Download { message })?;
    let entries = fs::read_dir(work).map_err(|source| FetchError::Write { path: work.to_owned(), source })?;
    let mut wheels = entries.flatten().map(|entry| entry.path()).filter(|path| path.extension() == Some(OsStr::new("whl")));
    wheels.next().ok_or_else(|| FetchError::Download { message: "it left no wheel".to_owned() })
}

/// Runs Python; the inner error is the end of what it printed.
fn run<'a>(python: &OsStr, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<Result<(), String>, FetchError> {
    let output = Command::new(python).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|source| FetchError::NoPython { python: python.to_string_lossy().into_owned(), source })?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let printed = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = printed.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(MESSAGE_LINES)..].join("; ");
    Ok(Err(if last.is_empty() { output.status.to_string() } else { last }))
}

fn sum(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = io::Read::read(&mut file, &mut buffer)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

/// A folder inside the destination (so that renames stay on one file system), removed when done.
struct WorkFolder(PathBuf);

impl WorkFolder {
    fn create(folder: &Path) -> Result<Self, FetchError> {
        let path = folder.join(format!(".fetch-{}", std::process::id()));
        match fs::create_dir_all(&path) {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(FetchError::Write { path: folder.to_owned(), source }),
        }
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // A left-over folder is in nobody's way, and there is no one to tell.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The installed library's name.
pub(crate) const LIBRARY_FILE: &str = "libonnxruntime.so.1.23.2";
/// From the wheel to the folder; the library last, so that it is never there without its licences.
const CONTENTS: [(&str, &str); 3] = [
    ("onnxruntime/LICENSE", "LICENSE"),
    ("onnxruntime/ThirdPartyNotices.txt", "ThirdPartyNotices.txt"),
    ("onnxruntime/capi/libonnxruntime.so.1.23.2", LIBRARY_FILE),
];
/// pip explains itself in its last lines.
const MESSAGE_LINES: usize = 3;

#[cfg(test)]
mod tests;
