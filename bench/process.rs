//! The processes under measurement: the real binaries, and what the kernel says of them.
//!
//! They are files of their own, because a page of program text that several processes map counts for each of them only in
//! part: a box that shared its file with a cloud and four publishers would look smaller than it is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The gateway's binary and the cloud's.
const PACKAGES: [&str; 2] = ["weir-edge", "weir-cloud"];

/// Path of a binary beside this one; the first call builds both as this one was built.
///
/// # Errors
/// Cargo's failure, or that the binary is not there.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<bool> = OnceLock::new();
    let is_built = *BUILT.get_or_init(|| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.arg("build").args(if cfg!(debug_assertions) { None } else { Some("--release") });
        cargo.args(PACKAGES.iter().flat_map(|package| ["-p", package])).current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo.status().is_ok_and(|status| status.success())
    });
    let path = std::env::current_exe()?.with_file_name(name);
    if !is_built {
        bail!("{name} cannot be built: see what cargo says above");
    }
    if !path.exists() {
        bail!("{} is not there: run weir-bench with `cargo run`", path.display());
    }
    Ok(path)
}

/// A process of ours; ended when dropped.
pub(crate) struct Process {
    child: Child,
    admin: SocketAddr,
}

impl Process {
    /// Starts a binary on a configuration and waits until its admin endpoint answers.
    pub(crate) fn start(name: &str, config: &Path, admin: SocketAddr) -> anyhow::Result<Process> {
        let mut command = Command::new(program(name)?);
        command.args(["run", "--config"]).arg(config).stdin(Stdio::null());
        let child = command.spawn().context("cannot start a process")?;
        let mut process = Process { child, admin };
        let deadline = Instant::now() + Duration::from_secs(20);
        while process.get("/healthz").is_err() {
            if let Some(status) = process.child.try_wait()? {
                bail!("{name} ended at once: {status}");
            }
            if Instant::now() > deadline {
                bail!("{name} does not answer on {admin}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }

    /// Ends it at once, without a word to anybody.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Lets it hold its sockets and do nothing.
    pub(crate) fn stall(&self) -> anyhow::Result<()> {
        self.signal(rustix::process::Signal::STOP)
    }

    fn signal(&self, signal: rustix::process::Signal) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).context("no process")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// The body of an admin page.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        if !answer.starts_with("HTTP/1.0 200") {
            bail!("{path}: {answer}");
        }
        Ok(body.to_owned())
    }

    /// `/status.json`.
    pub(crate) fn status(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.get("/status.json")?)?)
    }

    /// CPU time used so far, user and system, in seconds.
    pub(crate) fn cpu_s(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Fields 14 and 15, counted after the name, which may hold spaces.
        let fields: Vec<&str> = stat.rsplit_once(')').context("odd stat")?.1.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Proportional set size in MiB.
    pub(crate) fn pss_mib(&self) -> anyhow::Result<f64> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = rollup.lines().find(|line| line.starts_with("Pss:")).context("no Pss")?;
        let kib: f64 = line.split_whitespace().nth(1).context("no Pss")?.parse()?;
        Ok(kib / 1024.0)
    }

    /// Bytes the process has caused to be written to storage.
    pub(crate) fn written_bytes(&self) -> anyhow::Result<u64> {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.child.id()))?;
        let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes")?;
        Ok(line.parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that was killed is no more, and its number may be another's.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.signal(rustix::process::Signal::TERM);
            // A stalled one would not hear of it.
            let _ = self.signal(rustix::process::Signal::CONT);
            let _ = self.child.wait();
        }
    }
}
