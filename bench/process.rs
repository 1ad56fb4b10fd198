//! The processes under measurement: the same wiring as the binaries' own `main`, and what the kernel says of them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use weir_host::notify::Notify;
use weir_host::shutdown;

/// Runs a gateway until SIGTERM.
pub(crate) fn edge(config: &Path) -> anyhow::Result<()> {
    let config = weir_edge::config::Config::load(config).map_err(|errors| anyhow::anyhow!("{errors}"))?;
    weir_host::log::init(&config.log.filter, config.log.format)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        Box::pin(weir_edge::Edge::start(&config, weir_edge::bind(&config)?)?.run(shutdown)).await;
        Ok(())
    })
}

/// Runs a cloud until SIGTERM.
pub(crate) fn cloud(config: &Path) -> anyhow::Result<()> {
    let config = weir_cloud::config::Config::read(config).map_err(|errors| anyhow::anyhow!("{errors}"))?;
    weir_host::log::init(&config.log.filter, config.log.format)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        let sockets = weir_cloud::Sockets { notify: Notify::from_env()?, ..weir_cloud::Sockets::bind(&config)? };
        Ok(weir_cloud::run(&config, sockets, shutdown).await?)
    })
}

/// A process of ours; ended when dropped.
pub(crate) struct Process {
    child: Child,
    admin: SocketAddr,
}

impl Process {
    /// Starts `weir-bench ROLE CONFIG` and waits until its admin endpoint answers.
    pub(crate) fn start(role: &str, config: &Path, admin: SocketAddr) -> anyhow::Result<Process> {
        let program = std::env::current_exe()?;
        let child =
            Command::new(program).arg(role).arg(config).stdin(Stdio::null()).spawn().context("cannot start a process")?;
        let mut process = Process { child, admin };
        let deadline = Instant::now() + Duration::from_secs(20);
        while process.get("/healthz").is_err() {
            if let Some(status) = process.child.try_wait()? {
                bail!("{role} ended at once: {status}");
            }
            if Instant::now() > deadline {
                bail!("{role} does not answer on {admin}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
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
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
