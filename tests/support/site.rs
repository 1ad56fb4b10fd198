//! A site: a box, its link, and a cloud, in a folder of their own.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use weir::link::profile::LinkProfile;
use weir::link::relay::{RelaySetup, RelayThread};
use weir::pki::{self, Request};

use super::process::{Binaries, Logs, Process, Readiness, free_addr};
use super::wait_for;

/// Name of the box in its certificate.
pub const GATEWAY: &str = "box-1";
/// Name of a second box, which [`Site::start_neighbour`] starts.
pub const NEIGHBOUR: &str = "box-2";
/// Time for what is under way to arrive once all is well.
const DRAIN_LIMIT: Duration = Duration::from_secs(40);
/// Time to stop in good order.
pub const STOP_LIMIT: Duration = Duration::from_secs(8);

/// A fast link with some loss and reordering.
pub const LOSSY: &str = "[up]\nrate = '50Mbit/s'\ndelay = '5ms'\njitter = '5ms'\nloss = '2%'\nreorder = '2%'\nqueue = '1MiB'\n";
/// A link on which nothing goes wrong.
pub const CLEAN: &str = "[up]\nrate = '200Mbit/s'\ndelay = '2ms'\nqueue = '4MiB'\n";

/// What is special about a site.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The link, as a profile.
    pub link: &'static str,
    /// Keys of the box's `[[listen]]` besides `bind`.
    pub listen: String,
    /// Tables of the box's configuration: streams, users, models, lanes.
    pub tables: String,
    /// Keys of its `[buffer]`.
    pub buffer: String,
    /// Keys of its `[[uplink]]` besides name and address.
    pub uplink: String,
    /// Keys of the cloud's `[store]` besides `path`.
    pub store: String,
    /// More tables of the cloud's configuration.
    pub cloud: String,
    /// Seed of the link.
    pub seed: u64,
}

impl Plan {
    /// Streams as given, every lane in the mode, anonymous clients let in.
    pub fn new(mode: &str, streams: &str) -> Self {
        let lane = |class: &str| format!("[lane.{class}]\ndurability = \"{mode}\"\n");
        let lanes: String = ["critical", "high", "normal", "bulk"].into_iter().map(lane).collect();
        Plan {
            link: CLEAN,
            listen: "allow_anonymous = true".to_owned(),
            tables: format!("{streams}\n{lanes}"),
            buffer: String::new(),
            uplink: String::new(),
            store: String::new(),
            cloud: String::new(),
            seed: 1,
        }
    }
}

/// The site. Processes are killed and files removed when it is dropped.
#[derive(Debug)]
pub struct Site {
    binaries: Binaries,
    plan: Plan,
    /// The box's process, while it runs.
    pub edge: Option<Process>,
    /// The cloud's process, while it runs.
    pub cloud: Option<Process>,
    link: RelayThread,
    addrs: Addrs,
    /// Programs and arguments put before the box's.
    pub edge_prefix: Vec<String>,
    /// Programs and arguments put before the cloud's.
    pub cloud_prefix: Vec<String>,
    /// Environment of the box.
    pub edge_env: Vec<(String, String)>,
    /// The box's data directory.
    pub data_dir: PathBuf,
    /// The cloud's, where its database is.
    pub cloud_dir: PathBuf,
    logs: Logs,
    dir: TempDir,
}

#[derive(Debug, Clone, Copy)]
struct Addrs {
    mqtt: SocketAddr,
    edge_admin: SocketAddr,
    cloud_quic: SocketAddr,
    cloud_tls: SocketAddr,
    cloud_admin: SocketAddr,
}

impl Site {
    /// Certificates, configurations and the link; nothing runs yet.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn new(binaries: Binaries, plan: Plan) -> Site {
        let dir = TempDir::with_prefix("weir-site-").expect("there is room for temporary files");
        certify(dir.path());
        let addrs = Addrs {
            mqtt: free_addr(),
            edge_admin: free_addr(),
            cloud_quic: free_addr(),
            cloud_tls: free_addr(),
            cloud_admin: free_addr(),
        };
        let link = start_link(&plan, addrs.cloud_quic);
        let logs = Logs(vec![dir.path().join("edge.log"), dir.path().join("cloud.log")]);
        let (data_dir, cloud_dir) = (dir.path().join("data"), dir.path().join("cloud"));
        std::fs::create_dir(&cloud_dir).expect("there is room for a folder");
        let site = Site {
            binaries,
            plan,
            edge: None,
            cloud: None,
            link,
            addrs,
            edge_prefix: Vec::new(),
            cloud_prefix: Vec::new(),
            edge_env: Vec::new(),
            data_dir,
            cloud_dir,
            logs,
            dir,
        };
        site.write_configs();
        site
    }

    /// As [`Site::new`], with cloud and box running.
    ///
    /// # Panics
    /// If they do not start.
    pub fn started(binaries: Binaries, plan: Plan) -> Site {
        let mut site = Site::new(binaries, plan);
        site.start_cloud();
        site.start_edge();
        site
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The box's MQTT listener.
    pub fn mqtt(&self) -> SocketAddr {
        self.addrs.mqtt
    }

    /// Where the box's uplink begins: the near end of its link to the cloud.
    pub fn uplink(&self) -> SocketAddr {
        self.link.addr()
    }

    /// Where the cloud takes boxes over TCP.
    pub fn cloud_tls(&self) -> SocketAddr {
        self.addrs.cloud_tls
    }

    /// The cloud's database.
    pub fn database(&self) -> PathBuf {
        self.cloud_dir.join("cloud.db")
    }

    /// The box's buffer.
    pub fn buffer(&self) -> PathBuf {
        self.data_dir.join("buffer.redb")
    }

    /// All that the box has logged.
    pub fn edge_log(&self) -> String {
        std::fs::read_to_string(&self.logs.0[0]).unwrap_or_default()
    }

    /// All that the cloud has logged.
    pub fn cloud_log(&self) -> String {
        std::fs::read_to_string(&self.logs.0[1]).unwrap_or_default()
    }

    /// Takes the link down, or gives it back.
    pub fn cut_link(&self, is_down: bool) {
        self.link.link().force_down(is_down);
    }

    /// Changes what is special, for processes started from now on.
    pub fn change(&mut self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan);
        self.write_configs();
    }

    /// Writes both configurations.
    fn write_configs(&self) {
        let write = |name: &str, text: String| {
            std::fs::write(self.dir().join(name), text).expect("there is room for a configuration");
        };
        write("edge.toml", self.edge_config());
        write("cloud.toml", self.cloud_config());
    }

    /// The box's configuration.
    pub fn edge_config(&self) -> String {
        self.box_config(GATEWAY, self.addrs.mqtt, self.addrs.edge_admin, &self.data_dir)
    }

    fn box_config(&self, name: &str, mqtt: SocketAddr, admin: SocketAddr, data_dir: &Path) -> String {
        let Plan { listen, tables, buffer, uplink: keys, .. } = &self.plan;
        let (uplink, data_dir) = (self.link.addr(), data_dir.display());
        format!(
            "[gateway]\ndata_dir = \"{data_dir}\"\n\
             [[listen]]\nbind = \"{mqtt}\"\n{listen}\n\
             [[uplink]]\nname = \"test\"\naddress = \"{uplink}\"\n{keys}\n\
             [session]\nping = \"200ms\"\nsilence = \"1500ms\"\nconnect_timeout = \"2s\"\nbackoff_min = \"50ms\"\nbackoff_max = \"500ms\"\n\
             [tls]\ncert = \"pki/{name}.pem\"\nkey = \"pki/{name}.key\"\nca = \"pki/ca.pem\"\n\
             [admin]\nhttp = \"{admin}\"\n\
             [buffer]\n{buffer}\n{tables}\n"
        )
    }

    fn cloud_config(&self) -> String {
        let Addrs { cloud_quic: quic, cloud_tls: tls, cloud_admin: admin, .. } = self.addrs;
        let dir = self.dir().display();
        let (store, more, database) = (&self.plan.store, &self.plan.cloud, self.database());
        let database = database.display();
        format!(
            "[listen]\nquic = \"{quic}\"\ntls = \"{tls}\"\n\
             [tls]\ncert = \"{dir}/pki/cloud.pem\"\nkey = \"{dir}/pki/cloud.key\"\nca = \"{dir}/pki/ca.pem\"\n\
             [gateways]\nenrolled = [\"{GATEWAY}\", \"{NEIGHBOUR}\"]\n\
             [store]\npath = \"{database}\"\n{store}\n\
             [admin]\nhttp = \"{admin}\"\n{more}"
        )
    }

    /// Starts the cloud and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn start_cloud(&mut self) {
        self.launch_cloud();
        let cloud = self.cloud.as_mut().expect("just launched");
        assert!(matches!(cloud.readiness(), Readiness::Ready), "the cloud does not start");
    }

    /// Starts the cloud without waiting.
    pub fn launch_cloud(&mut self) {
        let mut command = command(&self.cloud_prefix, &self.binaries.cloud);
        command.arg("run").arg("--config").arg(self.dir().join("cloud.toml"));
        self.cloud = Some(Process::start(command, &self.logs.0[1], self.addrs.cloud_admin));
    }

    /// Starts the box and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn start_edge(&mut self) {
        self.launch_edge();
        let edge = self.edge.as_mut().expect("just launched");
        assert!(matches!(edge.readiness(), Readiness::Ready), "the box does not start");
    }

    /// Starts a second box over the same link, and waits until it answers; its status page is at the address.
    ///
    /// # Panics
    /// If it does not.
    pub fn start_neighbour(&self) -> (Process, SocketAddr) {
        let (dir, admin) = (self.dir(), free_addr());
        pki::issue(&dir.join("pki"), &Request::gateway(NEIGHBOUR), false).expect("a box can be certified");
        let config = self.box_config(NEIGHBOUR, free_addr(), admin, &dir.join("data-2"));
        std::fs::write(dir.join("edge-2.toml"), config).expect("there is room for a configuration");
        let mut command = command(&self.edge_prefix, &self.binaries.edge);
        command.arg("run").arg("--config").arg(dir.join("edge-2.toml"));
        let mut process = Process::start(command, &self.logs.0[0], admin);
        assert!(matches!(process.readiness(), Readiness::Ready), "the second box does not start");
        (process, admin)
    }

    /// Starts the box without waiting.
    pub fn launch_edge(&mut self) {
        let command = self.edge_command();
        self.edge = Some(Process::start(command, &self.logs.0[0], self.addrs.edge_admin));
    }

    /// The command that runs the box.
    pub fn edge_command(&self) -> Command {
        let mut command = command(&self.edge_prefix, &self.binaries.edge);
        command.arg("run").arg("--config").arg(self.dir().join("edge.toml"));
        command.envs(self.edge_env.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Waits until box and cloud answer, whichever was only launched.
    ///
    /// # Panics
    /// If one of them has ended.
    pub fn await_both(&mut self) {
        for (what, process) in [("cloud", &mut self.cloud), ("box", &mut self.edge)] {
            let process = process.as_mut().expect("both were launched");
            assert!(matches!(process.readiness(), Readiness::Ready), "the {what} does not start");
        }
    }

    /// Kills the box as `kill -9` does.
    pub fn kill_edge(&mut self) {
        if let Some(edge) = self.edge.take() {
            edge.kill();
        }
    }

    /// Kills the cloud as `kill -9` does.
    pub fn kill_cloud(&mut self) {
        if let Some(cloud) = self.cloud.take() {
            cloud.kill();
        }
    }

    /// Stops the box as a supervisor does.
    ///
    /// # Panics
    /// If it does not end well in time.
    pub fn stop_edge(&mut self) {
        let status = self.edge.take().expect("the box runs").terminate(STOP_LIMIT);
        assert_eq!(status.code(), Some(0), "the box ends well");
    }

    /// Stops the cloud as a supervisor does.
    ///
    /// # Panics
    /// If it does not end well in time.
    pub fn stop_cloud(&mut self) {
        let status = self.cloud.take().expect("the cloud runs").terminate(STOP_LIMIT);
        assert_eq!(status.code(), Some(0), "the cloud ends well");
    }

    /// Admin addresses of the box and of the cloud.
    pub fn admin(&self) -> (SocketAddr, SocketAddr) {
        (self.addrs.edge_admin, self.addrs.cloud_admin)
    }

    /// Health of the box: status and text.
    pub fn edge_health(&self) -> Option<(u16, String)> {
        self.edge.as_ref()?.get("/healthz")
    }

    /// Health of the cloud: status and text.
    pub fn cloud_health(&self) -> Option<(u16, String)> {
        self.cloud.as_ref()?.get("/healthz")
    }

    /// The box's picture of itself.
    pub fn edge_status(&self) -> Option<serde_json::Value> {
        let (_, body) = self.edge.as_ref()?.get("/status.json")?;
        serde_json::from_str(&body).ok()
    }

    /// Records that the box says it holds.
    pub fn edge_holds(&self) -> Option<u64> {
        records_held(&self.edge_status()?)
    }

    /// Waits until the box's uplink is up, or down.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn wait_uplink(&self, is_up: bool) {
        self.wait_uplink_at(0, is_up);
    }

    /// The same for any of its uplinks; a fallback is one right behind the one that it stands in for.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn wait_uplink_at(&self, at: usize, is_up: bool) {
        let what = format!("uplink {at} to be {}", if is_up { "up" } else { "down" });
        wait_for(&what, DRAIN_LIMIT, || {
            let status = self.edge_status()?;
            (status["uplinks"][at]["up"].as_bool()? == is_up).then_some(())
        });
    }

    /// Waits until the box has nothing left to deliver.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn drain(&self) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        while self.edge_holds() != Some(0) {
            let is_late = Instant::now() > deadline;
            assert!(!is_late, "the box does not deliver all it holds");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Site {
    #[expect(clippy::print_stderr, reason = "a failed test shows what the box thinks")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (status, edge, cloud) = (self.edge_status(), self.edge_health(), self.cloud_health());
            eprintln!("--- status of the box: {}", status.unwrap_or_default());
            eprintln!("--- health of the box: {edge:?}, of the cloud: {cloud:?}");
        }
    }
}

/// Makes certificates of the box and a cloud in a folder `pki`.
pub(super) fn certify(dir: &Path) {
    let pki_dir = dir.join("pki");
    pki::init(&pki_dir, false).expect("an authority can be made");
    pki::issue(&pki_dir, &Request::gateway(GATEWAY), false).expect("a box can be certified");
    pki::issue(&pki_dir, &Request::local_cloud("cloud"), false).expect("a cloud can be certified");
}

/// Records that a box holds, by its status.
pub(super) fn records_held(status: &serde_json::Value) -> Option<u64> {
    // A box that has only just begun shows no lanes yet.
    let lanes = status["lanes"].as_array().filter(|lanes| !lanes.is_empty())?;
    lanes.iter().map(|lane| lane["records"].as_u64()).sum()
}

/// A binary, with other programs put before it.
fn command(prefix: &[String], binary: &Path) -> Command {
    let mut words = prefix.iter().map(String::as_str).chain([binary.to_str().expect("its path is text")]);
    let mut command = Command::new(words.next().expect("the binary at least"));
    command.args(words);
    command
}

fn start_link(plan: &Plan, target: SocketAddr) -> RelayThread {
    let profile = LinkProfile::from_toml("link", plan.link, Path::new(".")).expect("the profile is right");
    let listen = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a UDP port is free");
    weir::link::relay::start(RelaySetup { listen, target, profile, seed: plan.seed }).expect("a relay can be started")
}
