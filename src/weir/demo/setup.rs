//! Everything a run needs: a folder with certificates, a model and two configurations, and the threads that run on them.
//!
//! ```text
//! sensors --MQTT--> box --QUIC--> link --QUIC--> cloud --> SQLite
//! ```

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use tokio::sync::watch;
use weir_cloud::Cloud;
use weir_edge::Edge;
use weir_edge::config::{Files, hash_password};
use weir_edge::status::Status;
use weir_host::shutdown::{self, ShutdownTrigger};
use weir_infer::{Backend, Model, RuntimeLibrary};

use super::publish::{PASSWORD, USER};
use super::traffic::{LEVEL_DELTA, SPAN_MS};
use super::{DemoError, Mode};
use crate::link::profile::LinkProfile;
use crate::link::relay::{self, RelaySetup, RelayThread};
use crate::pki::{Authority, Request};

const MODEL_FILES: [(&str, &[u8]); 2] = [
    ("watch-small.toml", include_bytes!("../../../models/watch-small.toml")),
    ("watch-small.onnx", include_bytes!("../../../models/watch-small.onnx")),
];
/// Name of the box, in its certificate and in every row.
pub(super) const GATEWAY: &str = "demo-box";

/// The latest temporary folder, for an end without unwinding.
static TEMPORARY: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Removes the temporary folder of a run that is being broken off.
pub(super) fn remove_temporary() {
    if let Some(path) = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // What still runs may write to it; the rest is for whoever cleans the folder of temporary files.
        let _ = fs::remove_dir_all(path);
    }
}

/// The files of a run; a temporary folder unless it is to be kept.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Folder {
    /// Makes it. One that is to be kept must be new or empty: nothing of the user's is written over.
    pub(super) fn create(keep: Option<&Path>) -> Result<Folder, DemoError> {
        let Some(keep) = keep else {
            let temporary = tempfile::Builder::new().prefix("weir-demo-").tempdir();
            let temporary = temporary.map_err(|source| DemoError::Folder { path: std::env::temp_dir(), source })?;
            let path = temporary.path().to_owned();
            TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&Some(path.clone()));
            return Ok(Folder { path, _temporary: Some(temporary) });
        };
        let refused = |source| DemoError::Folder { path: keep.to_owned(), source };
        fs::create_dir_all(keep).map_err(refused)?;
        if fs::read_dir(keep).map_err(refused)?.next().is_some() {
            return Err(DemoError::FolderInUse { path: keep.to_owned() });
        }
        Ok(Folder { path: fs::canonicalize(keep).map_err(refused)?, _temporary: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join("cloud.db")
    }

    pub(super) fn buffer(&self) -> PathBuf {
        self.path.join("box").join("buffer.redb")
    }

    /// Writes certificates and the model.
    pub(super) fn fill(&self) -> Result<(), DemoError> {
        let authority = Authority::new()?;
        let cloud = authority.issue(&Request::local_cloud("demo"))?;
        let gateway = authority.issue(&Request::gateway(GATEWAY))?;
        self.write("ca.pem", authority.cert_pem())?;
        for (name, issued) in [("cloud", &cloud), ("box", &gateway)] {
            self.write(&format!("{name}.pem"), &issued.cert_pem)?;
            self.write(&format!("{name}.key"), &issued.key_pem)?;
        }
        for (name, content) in MODEL_FILES {
            self.write(name, content)?;
        }
        Ok(())
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf, DemoError> {
        let path = self.path.join(name);
        fs::write(&path, content).map_err(|source| DemoError::Folder { path: path.clone(), source })?;
        Ok(path)
    }
}

/// Loads the model once, so that a wish for an engine that is not there is refused at the start, and says which one runs.
pub(super) fn engine(folder: &Folder, backend: Backend) -> Result<Backend, DemoError> {
    let library = RuntimeLibrary::from_env(None);
    Ok(Model::load(&folder.path.join("watch-small.toml"), backend, &library)?.backend())
}

/// A part of the system on a thread of its own.
#[derive(Debug)]
pub(super) struct Part {
    name: &'static str,
    trigger: ShutdownTrigger,
    thread: JoinHandle<Result<(), String>>,
}

impl Part {
    /// Whether it has ended although nobody asked it to.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Asks it to stop and waits for it.
    pub(super) fn stop(self) -> Result<(), DemoError> {
        self.trigger.request();
        let ended = self.thread.join().unwrap_or_else(|_| Err("its thread panicked".to_owned()));
        ended.map_err(|reason| DemoError::Part { name: self.name, reason })
    }

    /// Starts `main` on a thread with a runtime of its own, as the binaries do; returns what it reports once it is ready.
    fn start<T: Send + 'static>(
        name: &'static str,
        main: impl FnOnce(&tokio::runtime::Runtime, shutdown::Shutdown, mpsc::Sender<T>) -> Result<(), String> + Send + 'static,
    ) -> Result<(Part, T), DemoError> {
        let (trigger, shutdown) = shutdown::channel();
        let (ready_tx, ready_rx) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DemoError::System)?;
        let run = move || main(&runtime, shutdown, ready_tx);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(DemoError::System)?;
        let part = Part { name, trigger, thread };
        match ready_rx.recv() {
            Ok(ready) => Ok((part, ready)),
            // It has dropped its end: it has failed, and says why.
            Err(_) => Err(part.stop().err().unwrap_or(DemoError::Part { name, reason: "it ended at once".to_owned() })),
        }
    }
}

/// Starts the ingest side; returns where it listens.
pub(super) fn start_cloud(folder: &Folder) -> Result<(Part, SocketAddr), DemoError> {
    let text = cloud_config(&folder.path);
    let path = folder.write("cloud.toml", &text)?;
    let config = weir_cloud::config::Config::read(&path)?;
    Part::start("cloud", move |runtime, shutdown, ready_tx| {
        runtime.block_on(async {
            let sockets = weir_cloud::Sockets::bind(&config).map_err(said)?;
            let cloud = Cloud::open(&config, sockets).map_err(said)?;
            let addr = cloud.quic_addr().ok_or("its socket has no address")?;
            // Nobody waits any more: the demo is ending.
            let _ = ready_tx.send(addr);
            Box::pin(cloud.run(shutdown)).await.map_err(said)
        })
    })
}

/// Starts the link to the cloud.
pub(super) fn start_link(profile: LinkProfile, seed: u64, cloud: SocketAddr) -> Result<RelayThread, DemoError> {
    let listen = UdpSocket::bind(("127.0.0.1", 0)).map_err(DemoError::System)?;
    let target = SocketAddr::from(([127, 0, 0, 1], cloud.port()));
    Ok(relay::start(RelaySetup { listen, target, profile, seed })?)
}

/// A running box.
#[derive(Debug)]
pub(super) struct BoxReady {
    pub(super) mqtt: SocketAddr,
    pub(super) status_rx: watch::Receiver<Status>,
}

/// Starts the box.
pub(super) fn start_box(
    folder: &Folder,
    uplink: SocketAddr,
    mode: Mode,
    backend: Backend,
) -> Result<(Part, BoxReady), DemoError> {
    let hash = hash_password(PASSWORD.as_bytes()).map_err(|err| DemoError::System(io::Error::other(err)))?;
    let text = edge_config(uplink, mode, backend, hash.as_str());
    let path = folder.write("edge.toml", &text)?;
    let config = weir_edge::config::Config::check(&path, Files::Required).config?;
    Part::start("box", move |runtime, shutdown, ready_tx| {
        runtime.block_on(async {
            let sockets = weir_edge::bind(&config).map_err(said)?;
            let mqtt = sockets.mqtt_addrs().first().copied().ok_or("it listens nowhere")?;
            let edge = Edge::start(&config, sockets).map_err(said)?;
            let _ = ready_tx.send(BoxReady { mqtt, status_rx: edge.status() });
            Box::pin(edge.run(shutdown)).await;
            Ok(())
        })
    })
}

fn said(err: impl std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn cloud_config(folder: &Path) -> String {
    // Paths of this file count from the working directory, which is the user's.
    let path = |name: &str| toml::Value::String(folder.join(name).display().to_string());
    format!(
        "[listen]\nquic = \"127.0.0.1:0\"\n\n\
         [tls]\ncert = {}\nkey = {}\nca = {}\n\n\
         [gateways]\nenrolled = [\"{GATEWAY}\"]\n\n\
         [store]\npath = {}\n\n\
         [admin]\nhttp = \"127.0.0.1:0\"\n",
        path("cloud.pem"),
        path("cloud.key"),
        path("ca.pem"),
        path("cloud.db"),
    )
}

fn edge_config(uplink: SocketAddr, mode: Mode, backend: Backend, password_hash: &str) -> String {
    let lanes: String = ["critical", "high", "normal", "bulk"]
        .iter()
        .map(|lane| format!("[lane.{lane}]\ndurability = \"{}\"\n\n", mode.name()))
        .collect();
    let backend = match backend {
        Backend::Auto => "auto",
        Backend::Ort => "ort",
        Backend::Rten => "rten",
    };
    format!(
        r#"[gateway]
data_dir = "box"

[[listen]]
bind = "127.0.0.1:0"

[[user]]
name = "{USER}"
password_hash = "{password_hash}"
publish = ["site/#"]

# Stored as they come, before all else.
[[stream]]
name = "alarm"
topics = ["site/+/alarm"]
class = "critical"
payload = {{ format = "json", fields = ["/severity"] }}

# Six axes at 50 Hz: only what the model says goes to the cloud, and the raw windows of which it was not sure.
[[stream]]
name = "watch"
topics = ["site/+/watch"]
class = "high"
fidelity = "verdict"
payload = {{ format = "packed", element = "i16", channels = 6, rate_hz = 50.0 }}
model = "watch-small"
# Recordings are replayed faster than they were made, so time says nothing about gaps.
window = {{ length = "{WINDOW_ROWS} samples", step = "{WINDOW_STEP} samples", gap_max = "1h" }}
keep = {{ verdicts = [{{ confidence_below = {UNSURE_BELOW} }}] }}

# Each is stored.
[[stream]]
name = "pump"
topics = ["site/+/pump"]
payload = {{ format = "json", fields = ["/bar", "/hz"] }}

# Stored when it has moved.
[[stream]]
name = "level"
topics = ["site/+/level"]
payload = {{ format = "json", fields = ["/metres"] }}
keep = {{ samples = [{{ channel = 0, delta = {LEVEL_DELTA:?} }}] }}

# Stored as minimum, maximum, mean and count.
[[stream]]
name = "temperature"
topics = ["site/+/temperature"]
fidelity = "aggregate"
payload = {{ format = "json", fields = ["/celsius"], time = "/t", time_unit = "ms" }}
aggregate = {{ every = "{SPAN_MS}ms", reorder_max = "500ms" }}

# Text, carried and not read.
[[stream]]
name = "log"
topics = ["site/+/log"]
class = "bulk"

[[model]]
name = "watch-small"
manifest = "watch-small.toml"

[infer]
backend = "{backend}"

{lanes}[[uplink]]
name = "lte"
address = "{uplink}"

# Short, so that a minute shows an outage and what comes after it.
[session]
silence = "3s"
connect_timeout = "3s"
backoff_max = "2s"

[tls]
cert = "box.pem"
key = "box.key"
ca = "ca.pem"

[admin]
http = "127.0.0.1:0"
"#
    )
}

/// Below this confidence the model's verdict goes with the raw window. Source: the band in the model's manifest.
pub(super) const UNSURE_BELOW: f64 = 0.671;

/// Rows of a window, and from the start of one to the start of the next; as the configuration has them.
pub(super) const WINDOW_ROWS: usize = 128;
pub(super) const WINDOW_STEP: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configurations_have_neither_mistakes_nor_warnings() {
        let folder = Folder::create(None).unwrap();
        folder.fill().unwrap();
        let hash = hash_password(b"x").unwrap();
        for mode in [Mode::Disk, Mode::Through] {
            let text = edge_config("127.0.0.1:4433".parse().unwrap(), mode, Backend::Auto, hash.as_str());
            let checked = weir_edge::config::Config::parse("edge.toml", &text, folder.path(), Files::Required);
            assert!(checked.config.is_ok(), "{}", checked.config.unwrap_err());
            let warnings: Vec<String> = checked.warnings.iter().map(ToString::to_string).collect();
            assert!(warnings.is_empty(), "{warnings:?}");
        }
        let text = cloud_config(folder.path());
        weir_cloud::config::Config::parse("cloud.toml", &text).unwrap();
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "").unwrap();
        assert!(matches!(Folder::create(Some(dir.path())), Err(DemoError::FolderInUse { .. })));
    }
}
