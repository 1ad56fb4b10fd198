//! The program as a process, and what it tells its supervisor by systemd's protocol (`src/host/notify.rs` is the other end).

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::supervision::{Ending, Event};

/// How long one look for words from the program waits; nothing else here is more urgent.
pub const TICK: Duration = Duration::from_millis(500);
/// `weir-edge`'s exit status for a wrong configuration.
const EXIT_CONFIG: i32 = 64;
/// Longest message of the protocol that is read.
const MESSAGE_BYTES_MAX: usize = 4_096;

/// How the program is started.
#[derive(Debug)]
pub struct Launcher {
    program: PathBuf,
    owner: Option<(u32, u32)>,
    progress: Duration,
    socket: UnixDatagram,
    socket_path: PathBuf,
}

/// A program that runs; it is killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Launcher {
    /// Makes the socket for the program's words, in `run_dir`. `progress` is told to the program as its watchdog's time.
    ///
    /// # Errors
    /// The system's.
    pub fn new(program: &Path, owner: Option<(u32, u32)>, progress: Duration, run_dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(run_dir)?;
        let socket_path = run_dir.join("notify");
        if let Err(err) = fs::remove_file(&socket_path)
            && err.kind() != io::ErrorKind::NotFound
        {
            return Err(err);
        }
        let socket = UnixDatagram::bind(&socket_path)?;
        socket.set_read_timeout(Some(TICK))?;
        // The program is another user.
        fs::set_permissions(&socket_path, Permissions::from_mode(0o666))?;
        Ok(Launcher { program: program.to_owned(), owner, progress, socket, socket_path })
    }

    /// Starts the program; its log goes where ours does.
    ///
    /// # Errors
    /// The system's.
    pub fn start(&self, config: &Path) -> io::Result<Running> {
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--config").arg(config).stdin(Stdio::null());
        // A serial console is a terminal, but what listens to it is often a file.
        command
            .env("NO_COLOR", "1")
            .env("NOTIFY_SOCKET", &self.socket_path)
            .env("WATCHDOG_USEC", self.progress.as_micros().to_string());
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        // What one before it said last is not of this one.
        self.socket.set_nonblocking(true)?;
        while self.socket.recv(&mut [0; MESSAGE_BYTES_MAX]).is_ok() {}
        self.socket.set_nonblocking(false)?;
        Ok(Running { child: command.spawn()? })
    }

    /// Waits up to [`TICK`] for a message, and says what is in it.
    pub fn listen(&self) -> Vec<Event> {
        let mut message = [0; MESSAGE_BYTES_MAX];
        let len = self.socket.recv(&mut message).unwrap_or(0);
        events(&message[..len])
    }
}

fn events(message: &[u8]) -> Vec<Event> {
    let event = |line: &[u8]| match line {
        b"READY=1" => Some(Event::Ready),
        b"WATCHDOG=1" => Some(Event::Progress),
        _ => None,
    };
    message.split(|&byte| byte == b'\n').filter_map(event).collect()
}

impl Running {
    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<(Ending, ExitStatus)> {
        let status = self.child.try_wait().ok().flatten()?;
        let ending = if status.code() == Some(EXIT_CONFIG) { Ending::ConfigRefused } else { Ending::Other };
        Some((ending, status))
    }

    /// Kills it; its end is seen by [`Running::ended`].
    pub fn kill(&mut self) {
        // One that has just ended needs no killing.
        let _ = self.child.kill();
    }

    /// Its share of the memory in KiB (PSS), if the system tells.
    pub fn pss_kib(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().trim_end_matches(" kB").parse().ok())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// An exit status in words.
pub fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}

/// The machine's watchdog: it resets the machine when it is not fed, typically within 30 to 60 s.
#[derive(Debug)]
pub struct Watchdog(Option<File>);

impl Watchdog {
    /// Opens the device, which starts it; without one there is nothing to feed.
    ///
    /// # Errors
    /// The device is there and cannot be opened.
    pub fn open(device: Option<&Path>) -> io::Result<Self> {
        let Some(device) = device.filter(|device| device.exists()) else { return Ok(Watchdog(None)) };
        OpenOptions::new().write(true).open(device).map(|file| Watchdog(Some(file)))
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Says that all is well.
    pub fn feed(&mut self) {
        if let Some(file) = &mut self.0 {
            // A device that fails resets the machine, which is what it is for.
            let _ = file.write_all(b"1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_protocol_are_found_among_others() {
        assert_eq!(events(b"READY=1\nSTATUS=up"), [Event::Ready]);
        assert_eq!(events(b"WATCHDOG=1"), [Event::Progress]);
        assert_eq!(events(b"READY=11\nWATCHDOG=trigger\n"), []);
    }

    #[test]
    fn a_watchdog_that_is_not_there_is_none_and_one_that_is_is_fed() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        assert!(!Watchdog::open(Some(&device)).unwrap().is_there());
        fs::write(&device, "").unwrap();
        let mut watchdog = Watchdog::open(Some(&device)).unwrap();
        assert!(watchdog.is_there());
        watchdog.feed();
        assert_eq!(fs::read(&device).unwrap(), b"1");
    }
}
