//! Network namespaces, and in them a box and a cloud that reach each other over emulated links and nothing else.
//!
//! A child, a thread and a socket belong to the namespace of the thread that makes them ([`Namespace::inside`]). So processes
//! and sensors are started from inside, and what they bind there is free whatever runs elsewhere on the machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Once, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use weir::link::netns;
use weir::link::profile::LinkProfile;
use weir::link::thread::LinkThread;
use weir::link::tun::{self, TunEnd, TunSetup};

use super::process::{Binaries, Logs, Process, Readiness};
use super::publisher::{Running, Sensor};
use super::site::{GATEWAY, STOP_LIMIT, certify, records_held};
use super::wait_for;

/// What all names of namespaces begin with; the id of the process that made them follows.
const PREFIX: &str = "weir-t";
const MQTT: &str = "127.0.0.1:1883";
const EDGE_ADMIN: &str = "127.0.0.1:9180";
const CLOUD_ADMIN: &str = "127.0.0.1:9181";
const QUIC_PORT: u16 = 4433;
const TLS_PORT: u16 = 443;

/// Why there can be no namespaces here; `None` if there can.
pub fn unavailable() -> Option<String> {
    if !Path::new("/dev/net/tun").exists() {
        return Some("network namespaces: there is no /dev/net/tun".to_owned());
    }
    let trial = format!("{PREFIX}-{}-trial", std::process::id());
    static TRIAL: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = TRIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let made = Command::new("ip").args(["netns", "add", &trial]).output();
    match made {
        Ok(output) if output.status.success() => {
            ip(&["netns", "delete", &trial]);
            None
        }
        Ok(output) => Some(format!("network namespaces need root: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(err) => Some(format!("network namespaces need the command `ip` of iproute2: {err}")),
    }
}

/// Runs `ip`.
fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("iproute2 is there");
    assert!(output.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
}

/// A network namespace with nothing but loopback. It is deleted when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one; `label` is the end of its name.
    ///
    /// # Panics
    /// If the system refuses, which [`unavailable`] tells before.
    pub fn new(label: &str) -> Namespace {
        static SWEPT: Once = Once::new();
        static MADE: AtomicU32 = AtomicU32::new(0);
        SWEPT.call_once(sweep);
        let name = format!("{PREFIX}-{}-{}-{label}", std::process::id(), MADE.fetch_add(1, Relaxed));
        ip(&["netns", "add", &name]);
        let namespace = Namespace { name };
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"]);
        namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does something in it: what is started, connected or bound meanwhile stays in it.
    ///
    /// # Panics
    /// If the work does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter_and_work = || {
            netns::enter(&self.name).expect("it exists until it is dropped");
            work()
        };
        let outcome = std::thread::scope(|scope| scope.spawn(enter_and_work).join());
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A test that panics should show its own reason.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// Deletes what processes that were killed have left behind, with all that still runs in it.
fn sweep() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')?.split('-').next());
        // One that has ended and was not waited for has no program any more.
        if maker.is_some_and(|id| Path::new("/proc").join(id).join("exe").read_link().is_err()) {
            let left = Command::new("ip").args(["netns", "pids", &name]).output().map(|output| output.stdout);
            for id in String::from_utf8_lossy(&left.unwrap_or_default()).split_whitespace() {
                let _ = Command::new("kill").args(["-KILL", id]).output();
            }
            let _ = Command::new("ip").args(["netns", "delete", &name]).output();
        }
    }
}

/// What is special about a [`Lab`].
#[derive(Debug, Clone)]
pub struct LabPlan {
    /// The links as profiles; the box has an uplink over each, in this order.
    pub links: Vec<&'static str>,
    /// Tables of the box's configuration: streams, lanes.
    pub tables: String,
    /// Whether each uplink has a fallback over TCP.
    pub has_fallbacks: bool,
    /// Seed of the links.
    pub seed: u64,
}

/// A box and a cloud, each in its namespace, and the links between them: `wan0`, `wan1` and so on.
///
/// Processes are killed, links taken down and namespaces deleted when it is dropped, in this order.
#[derive(Debug)]
pub struct Lab {
    binaries: Binaries,
    plan: LabPlan,
    edge: Option<Process>,
    cloud: Option<Process>,
    links: Vec<LinkThread>,
    edge_side: Namespace,
    cloud_side: Namespace,
    _logs: Logs,
    dir: TempDir,
}

impl Lab {
    /// Everything runs, and all uplinks are up.
    ///
    /// # Panics
    /// If something does not start.
    pub fn started(binaries: Binaries, plan: &LabPlan) -> Lab {
        let mut lab = Lab::new(binaries, plan);
        plan.links.iter().for_each(|_| lab.plug());
        lab.start_both();
        for at in 0..plan.links.len() {
            // Right behind each uplink is its fallback.
            lab.wait_uplink(if plan.has_fallbacks { 2 * at } else { at }, true, Duration::from_secs(20));
        }
        lab
    }

    /// Both run, and there is no link yet, nor the interfaces that the uplinks name.
    ///
    /// # Panics
    /// If something does not start.
    pub fn unplugged(binaries: Binaries, plan: &LabPlan) -> Lab {
        let mut lab = Lab::new(binaries, plan);
        lab.start_both();
        lab
    }

    fn new(binaries: Binaries, plan: &LabPlan) -> Lab {
        let dir = TempDir::with_prefix("weir-lab-").expect("there is room for temporary files");
        certify(dir.path());
        let (edge_side, cloud_side) = (Namespace::new("box"), Namespace::new("cloud"));
        let logs = Logs(vec![dir.path().join("edge.log"), dir.path().join("cloud.log")]);
        let (plan, links) = (plan.clone(), Vec::new());
        let lab = Lab { binaries, plan, edge: None, cloud: None, links, edge_side, cloud_side, _logs: logs, dir };
        lab.write_configs();
        lab
    }

    /// Makes the next link, and with it an interface on both sides.
    ///
    /// # Panics
    /// If the system refuses, or there is no more in the plan.
    pub fn plug(&mut self) {
        let at = self.links.len();
        let end = |namespace: &Namespace, host: u8| TunEnd { netns: Some(namespace.name.clone()), addr: address(at, host) };
        let profile = LinkProfile::from_toml("link", self.plan.links[at], Path::new(".")).expect("the profile is right");
        let (a, b) = (end(&self.edge_side, 1), end(&self.cloud_side, 2));
        let setup = TunSetup { device: format!("wan{at}"), a, b, profile, seed: self.plan.seed };
        self.links.push(tun::start(setup).expect("a link can be made"));
    }

    /// Takes the last link away, and with it its interfaces.
    ///
    /// # Panics
    /// If there is none, or it does not end well.
    pub fn unplug(&mut self) {
        self.links.pop().expect("there is a link").stop().expect("it ends well");
    }

    fn write_configs(&self) {
        let plan = &self.plan;
        let dir = self.dir.path().display();
        let tls = |who: &str| {
            format!("[tls]\ncert = \"{dir}/pki/{who}.pem\"\nkey = \"{dir}/pki/{who}.key\"\nca = \"{dir}/pki/ca.pem\"\n")
        };
        let uplink = |at: usize| {
            let to = address(at, 2).addr;
            let fallback =
                if plan.has_fallbacks { format!("fallback = {{ address = \"{to}:{TLS_PORT}\" }}\n") } else { String::new() };
            format!(
                "[[uplink]]\nname = \"wan{at}\"\naddress = \"{to}:{QUIC_PORT}\"\nserver_name = \"localhost\"\ninterface = \"wan{at}\"\n{fallback}"
            )
        };
        let uplinks: String = (0..plan.links.len()).map(uplink).collect();
        let edge = format!(
            "[gateway]\ndata_dir = \"{dir}/data\"\n[[listen]]\nbind = \"{MQTT}\"\nallow_anonymous = true\n{uplinks}{}\
             [admin]\nhttp = \"{EDGE_ADMIN}\"\n[log]\nformat = \"json\"\n{}\n",
            tls(GATEWAY),
            plan.tables
        );
        let cloud = format!(
            "[listen]\nquic = \"0.0.0.0:{QUIC_PORT}\"\ntls = \"0.0.0.0:{TLS_PORT}\"\n{}[gateways]\nenrolled = [\"{GATEWAY}\"]\n\
             [store]\npath = \"{dir}/cloud.db\"\n[admin]\nhttp = \"{CLOUD_ADMIN}\"\n",
            tls("cloud")
        );
        for (name, text) in [("edge.toml", edge), ("cloud.toml", cloud)] {
            std::fs::write(self.dir.path().join(name), text).expect("there is room for a configuration");
        }
    }

    fn start_both(&mut self) {
        let start = |side: &Namespace, binary: &Path, name: &str, admin: &str| {
            let mut command = Command::new(binary);
            command.arg("run").arg("--config").arg(self.dir.path().join(format!("{name}.toml")));
            let log = self.dir.path().join(format!("{name}.log"));
            side.inside(|| {
                let mut process = Process::start(command, &log, admin.parse().expect("an address"));
                assert!(matches!(process.readiness(), Readiness::Ready), "{name} does not start");
                process
            })
        };
        let cloud = start(&self.cloud_side, &self.binaries.cloud, "cloud", CLOUD_ADMIN);
        let edge = start(&self.edge_side, &self.binaries.edge, "edge", EDGE_ADMIN);
        (self.cloud, self.edge) = (Some(cloud), Some(edge));
    }

    /// The links, in the order of the uplinks over them.
    pub fn links(&self) -> &[LinkThread] {
        &self.links
    }

    /// The cloud's database.
    pub fn database(&self) -> PathBuf {
        self.dir.path().join("cloud.db")
    }

    /// The box's log, a JSON object a line.
    pub fn edge_log(&self) -> PathBuf {
        self.dir.path().join("edge.log")
    }

    /// The box's buffer.
    pub fn buffer(&self) -> PathBuf {
        self.dir.path().join("data/buffer.redb")
    }

    /// Starts a sensor beside the box; `set` changes what it does.
    pub fn sensor(&self, name: &str, script: fn(u32) -> super::script::Message, set: impl FnOnce(&mut Sensor)) -> Running {
        let mut sensor = Sensor::new(MQTT.parse().expect("an address"), name, script);
        set(&mut sensor);
        self.edge_side.inside(|| sensor.start())
    }

    /// The box's picture of itself.
    pub fn edge_status(&self) -> Option<Value> {
        let edge = self.edge.as_ref()?;
        let (_, body) = self.edge_side.inside(|| edge.get("/status.json"))?;
        serde_json::from_str(&body).ok()
    }

    /// Waits until an uplink is up, or down.
    ///
    /// # Panics
    /// If it takes longer than `limit`.
    pub fn wait_uplink(&self, at: usize, is_up: bool, limit: Duration) {
        let what = format!("uplink {at} to be {}", if is_up { "up" } else { "down" });
        wait_for(&what, limit, || (self.edge_status()?["uplinks"][at]["up"].as_bool()? == is_up).then_some(()));
    }

    /// Waits until the box has nothing left to deliver, and stops both.
    ///
    /// # Panics
    /// If it takes longer than `limit`, or they do not end well.
    pub fn drain_and_stop(&mut self, limit: Duration) {
        wait_for("the box to deliver all it holds", limit, || (records_held(&self.edge_status()?)? == 0).then_some(()));
        for process in [self.edge.take(), self.cloud.take()] {
            let status = process.expect("both run").terminate(STOP_LIMIT);
            assert_eq!(status.code(), Some(0), "box and cloud end well");
        }
    }
}

/// Address of a host at an end of the link `at`.
fn address(at: usize, host: u8) -> tun::Ipv4Net {
    format!("10.77.{at}.{host}/30").parse().expect("an address")
}
