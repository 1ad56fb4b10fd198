//! The image's supervisor around the real box: configurations that come and go, crashes, and a program that hangs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use weir_tests::support::process::{self, Logs, Process, free_addr, http_get};
use weir_tests::support::wait_for;

use crate::binaries;

const LIMIT: Duration = Duration::from_secs(30);

/// A folder as the image has it, and a supervisor in it.
struct Box_ {
    process: Option<Process>,
    admin: SocketAddr,
    log: PathBuf,
    _logs: Logs,
    dir: TempDir,
}

impl Box_ {
    fn new() -> Self {
        let dir = TempDir::with_prefix("weir-box-").expect("there is room for temporary files");
        std::fs::create_dir(dir.path().join("provision")).expect("there is room");
        let log = dir.path().join("serial.log");
        let box_ = Box_ { process: None, admin: free_addr(), _logs: Logs(vec![log.clone()]), log, dir };
        box_.write("fallback.toml", &box_.config("fallback"));
        box_
    }

    /// A box without uplinks that calls itself so.
    fn config(&self, name: &str) -> String {
        let (admin, data_dir) = (self.admin, self.dir.path().join("data"));
        format!(
            "listen = []\n[gateway]\nname = \"{name}\"\ndata_dir = \"{}\"\n[admin]\nhttp = \"{admin}\"\n",
            data_dir.display()
        )
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).expect("there is room");
    }

    fn start(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        let mut command = Command::new(crate::supervisor());
        command.arg("--program").arg(binaries().edge).arg("--configs").arg(path("configs"));
        command.arg("--provision").arg(path("provision")).arg("--fallback").arg(path("fallback.toml"));
        command.arg("--run-dir").arg(path("run")).arg("--watchdog").arg(path("watchdog"));
        command.args(["--start-s", "20", "--progress-s", "3"]);
        std::fs::write(&self.log, "").expect("there is room");
        self.process = Some(Process::start(command, &self.log, self.admin));
    }

    /// Ends supervisor and program as a power cut would.
    fn cut(&mut self) {
        let id = self.program_id();
        self.process.take().expect("it runs").kill();
        signal("KILL", id);
        wait_for("the program to be gone", LIMIT, || (!Path::new(&format!("/proc/{id}")).exists()).then_some(()));
    }

    fn says(&self, what: &str) -> usize {
        std::fs::read_to_string(&self.log).unwrap_or_default().matches(what).count()
    }

    fn wait_says(&self, what: &str, times: usize) {
        wait_for(&format!("`{what}` {times} times in the log"), LIMIT, || (self.says(what) >= times).then_some(()));
    }

    /// The name of the box that answers.
    fn name(&self) -> Option<String> {
        let status: serde_json::Value = serde_json::from_str(&http_get(self.admin, "/status.json")?.1).ok()?;
        Some(status["gateway"].as_str()?.to_owned())
    }

    fn wait_name(&self, name: &str) {
        wait_for(&format!("a box called {name}"), LIMIT, || (self.name()? == name).then_some(()));
    }

    fn program_id(&self) -> u32 {
        let supervisor = self.process.as_ref().expect("it runs").id();
        let mut ask = Command::new("pgrep");
        ask.arg("-P").arg(supervisor.to_string());
        let (_, stdout, _) = process::run(ask, LIMIT);
        stdout.trim().parse().expect("it has one child")
    }
}

impl Drop for Box_ {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.cut();
        }
    }
}

fn signal(name: &str, id: u32) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(id.to_string()).status();
    assert!(sent.expect("there is a kill command").success());
}

#[test]
fn a_provisioned_configuration_is_kept_and_a_wrong_one_leaves_it() {
    let mut box_ = Box_::new();
    box_.start();
    box_.wait_says("nothing is provisioned", 1);
    box_.wait_name("fallback");
    box_.cut();

    box_.write("provision/edge.toml", &box_.config("first"));
    box_.start();
    box_.wait_says("is kept", 1);
    box_.wait_name("first");
    box_.cut();

    // Refused by the program, which says where the mistake is.
    box_.write("provision/edge.toml", &(box_.config("second") + "\n[lane.urgent]\n"));
    box_.start();
    box_.wait_says("the provisioned configuration is given up for the last good one: the program refuses it", 1);
    box_.wait_name("first");
    assert!(box_.says("edge.toml:8") > 0 && box_.says("urgent") > 0);
    box_.cut();

    // Read well, but it cannot work: three tries.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let addr = taken.local_addr().expect("it is bound");
    box_.write("provision/edge.toml", &box_.config("third").replace(&box_.admin.to_string(), &addr.to_string()));
    box_.start();
    box_.wait_says("the program does not get ready with it", 1);
    box_.wait_name("first");
    assert_eq!(box_.says("starting with new configuration"), 3);
    box_.cut();

    box_.write("provision/edge.toml", &box_.config("fourth"));
    box_.start();
    box_.wait_name("fourth");
    box_.wait_says("is kept", 1);
}

#[test]
fn a_program_that_dies_or_hangs_is_started_again_and_the_watchdog_is_fed() {
    let mut box_ = Box_::new();
    box_.write("watchdog", "");
    box_.write("provision/edge.toml", &box_.config("box"));
    box_.start();
    box_.wait_says("the program is ready", 1);
    box_.wait_name("box");
    let first = box_.program_id();
    signal("KILL", first);
    box_.wait_says("the program has ended (signal 9)", 1);
    box_.wait_says("the program is ready", 2);
    let second = box_.program_id();
    // It is alive, and does nothing.
    signal("STOP", second);
    box_.wait_says("the program has made no progress after 3 s and is killed", 1);
    box_.wait_says("the program is ready", 3);
    assert_ne!(box_.program_id(), second);
    box_.wait_name("box");
    let fed = std::fs::metadata(box_.dir.path().join("watchdog")).expect("it is there").len();
    assert!(fed > 5, "fed {fed} times in more than 3 s");
    // Left alone, it stays.
    let third = box_.program_id();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!((box_.program_id(), box_.says("made no progress")), (third, 1));
}
