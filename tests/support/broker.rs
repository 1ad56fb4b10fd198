//! A real broker: mosquitto as a child process.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::process::{Logs, free_addr};
use super::{skip, wait_for};

/// Time to start or to stop.
const LIMIT: Duration = Duration::from_secs(10);

/// A mosquitto with its store in a folder of its own. It is killed when dropped.
#[derive(Debug)]
pub struct Mosquitto {
    child: Option<Child>,
    addr: SocketAddr,
    config: PathBuf,
    store: PathBuf,
    _logs: Logs,
    _dir: TempDir,
}

impl Mosquitto {
    /// Starts one that keeps all it has for who is away; `more` are further lines of its configuration. `None`, with a word
    /// about it, if mosquitto is not installed.
    ///
    /// # Panics
    /// If it does not start.
    pub fn started(more: &str) -> Option<Mosquitto> {
        if Command::new("mosquitto").arg("-h").output().is_err() {
            skip("mosquitto is not installed");
            return None;
        }
        let dir = TempDir::with_prefix("weir-mosquitto-").expect("there is room for temporary files");
        let (addr, at) = (free_addr(), dir.path().display());
        let config = dir.path().join("mosquitto.conf");
        // As root it would become another user, who cannot write here.
        let text = format!(
            "user root\nlistener {} 127.0.0.1\npersistence true\npersistence_location {at}/\nmax_inflight_messages 200\n\
             max_queued_messages 0\nlog_dest file {at}/mosquitto.log\n{more}\n",
            addr.port()
        );
        fs::write(&config, text).expect("there is room for a configuration");
        let store = dir.path().join("mosquitto.db");
        let logs = Logs(vec![dir.path().join("mosquitto.log")]);
        let mut broker = Mosquitto { child: None, addr, config, store, _logs: logs, _dir: dir };
        broker.start();
        Some(broker)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Starts it again.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(&mut self) {
        let mut command = Command::new("mosquitto");
        command.arg("-c").arg(&self.config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("mosquitto can be started");
        let addr = self.addr;
        wait_for("mosquitto to listen", LIMIT, || {
            let ended = child.try_wait().expect("the child is ours");
            assert!(ended.is_none(), "mosquitto has ended: {ended:?}");
            TcpStream::connect_timeout(&addr, LIMIT).ok()
        });
        self.child = Some(child);
    }

    /// Kills it as `kill -9` does: what it has not saved is gone.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("the child is ours");
        child.wait().expect("the child is ours");
    }

    /// Stops it in good order.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        signal(&child, "-TERM");
        wait_for("mosquitto to end", LIMIT, || child.try_wait().expect("the child is ours"));
    }

    /// Has it save all it holds, and waits for that.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn save(&self) {
        // It writes a new file and gives it the old one's name.
        let _ = fs::remove_file(&self.store);
        signal(self.child.as_ref().expect("it runs"), "-USR1");
        wait_for("mosquitto to save", LIMIT, || self.store.exists().then_some(()));
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that has ended needs no killing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn signal(child: &Child, signal: &str) {
    let sent = Command::new("kill").arg(signal).arg(child.id().to_string()).status().expect("there is a kill command");
    assert!(sent.success(), "the child is ours");
}

/// A password file with one user.
///
/// # Panics
/// If mosquitto's tool does not make it.
pub fn password_file(path: &Path, user: &str, password: &str) {
    let made = Command::new("mosquitto_passwd").arg("-c").arg("-b").arg(path).args([user, password]).output();
    assert!(made.expect("it comes with mosquitto").status.success());
}
