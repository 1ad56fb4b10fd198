//! The real binaries as child processes.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::random::Random;

/// Paths of the binaries under test.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `weir-edge`
    pub edge: PathBuf,
    /// `weir-cloud`
    pub cloud: PathBuf,
}

/// Lines of a log that are shown of a failed test.
const TAIL_LINES: usize = 40;
/// Time a process may take to be ready: a debug build on a busy machine, and a buffer to be repaired.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// A child process that answers `/healthz`. It is killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    admin: SocketAddr,
}

/// What came of waiting for a process to be ready.
#[derive(Debug)]
pub enum Readiness {
    /// It answers.
    Ready,
    /// It has ended.
    Exited(ExitStatus),
}

impl Process {
    /// Starts a command whose standard error is appended to `log`, and which will answer on `admin`.
    ///
    /// # Panics
    /// If the system refuses.
    pub fn start(mut command: Command, log: &Path, admin: SocketAddr) -> Process {
        let file = append(log);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn();
        Process { child: child.unwrap_or_else(|err| panic!("{command:?} cannot be started: {err}")), admin }
    }

    /// Waits until it answers, or ends.
    ///
    /// # Panics
    /// If it does neither in time.
    pub fn readiness(&mut self) -> Readiness {
        super::wait_for("a process to be ready", READY_LIMIT, || {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                return Some(Readiness::Exited(status));
            }
            http_get(self.admin, "/healthz").map(|_| Readiness::Ready)
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as `kill -9` does.
    ///
    /// # Panics
    /// If it is not ours.
    pub fn kill(mut self) {
        self.child.kill().expect("the child is ours");
        self.child.wait().expect("the child is ours");
    }

    /// Asks it to stop as a supervisor does, and waits.
    ///
    /// # Panics
    /// If it does not within `limit`.
    pub fn terminate(mut self, limit: Duration) -> ExitStatus {
        let asked = Command::new("kill").arg("-TERM").arg(self.id().to_string()).status().expect("there is a kill command");
        assert!(asked.success(), "the child is ours");
        self.exit(limit)
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it does not within `limit`.
    pub fn exit(&mut self, limit: Duration) -> ExitStatus {
        super::wait_for("a process to end", limit, || self.child.try_wait().expect("the child is ours"))
    }

    /// Asks its admin endpoint; `None` if there is no answer.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(self.admin, path)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn append(log: &Path) -> File {
    let file = OpenOptions::new().create(true).append(true).open(log);
    file.unwrap_or_else(|err| panic!("{} cannot be written: {err}", log.display()))
}

/// Status and body of a page; `None` if there is no answer.
pub fn http_get(addr: SocketAddr, path: &str) -> Option<(u16, String)> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&addr, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some((code, body.to_owned()))
}

/// A loopback address that was free a moment ago for TCP and UDP and is given to nobody else in this process.
///
/// It is below the ports that the system gives to outgoing connections, so that it is still free when a process that
/// was killed is started again.
///
/// # Panics
/// If no port is free.
pub fn free_addr() -> SocketAddr {
    static GIVEN: Mutex<Option<(Random, HashSet<u16>)>> = Mutex::new(None);
    let mut given = GIVEN.lock().expect("nobody panics with it");
    let (random, ports) = given.get_or_insert_with(|| {
        let start = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        (Random::new(start as u64 ^ u64::from(std::process::id()) << 32), HashSet::new())
    });
    for _ in 0..1_000 {
        let port = random.between(11_000, 32_000) as u16;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let is_free = TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok();
        if is_free && ports.insert(port) {
            return addr;
        }
    }
    panic!("no loopback port is free");
}

/// The end of a log.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Logs whose ends are printed when the test that owns them fails.
#[derive(Debug, Default)]
pub struct Logs(pub Vec<PathBuf>);

impl Drop for Logs {
    #[expect(clippy::print_stderr, reason = "a failed test shows its logs")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in &self.0 {
                eprintln!("--- end of {}\n{}", log.display(), tail(log));
            }
        }
    }
}

/// Runs a command to its end: exit code, standard output and standard error.
///
/// # Panics
/// If it cannot be started, or has not ended within `limit`.
pub fn run(mut command: Command, limit: Duration) -> (Option<i32>, String, String) {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be started");
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let read_stdout = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stdout.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let read_stderr = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            break status.code();
        }
        if Instant::now() > deadline {
            child.kill().expect("the child is ours");
            child.wait().expect("the child is ours");
            let stderr = read_stderr.join().expect("reading does not panic");
            panic!("{command:?} has not ended after {} s; it said:\n{stderr}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let join = |thread: std::thread::JoinHandle<String>| thread.join().expect("reading does not panic");
    (status, join(read_stdout), join(read_stderr))
}
