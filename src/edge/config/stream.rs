//! Streams, the models they name, and how those are run.

use std::path::PathBuf;

use serde::Deserialize;
use weir_host::units::Duration;
use weir_infer::{Backend, RuntimeLibrary, WorkerOptions};
use weir_logic::ids::Class;
use weir_logic::payload::{OpaqueFormat, PayloadFormat};
use weir_logic::policy::StreamFidelity;
use weir_logic::window::{AggregateConfig, KeepConfig, WindowConfig};

use super::{StreamOffload, Updates, Value};

/// `[[stream]]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stream {
    /// Its name, in logs, metrics and the cloud.
    pub name: String,
    /// Topic filters; what their wildcards match is the device.
    pub topics: Vec<String>,
    /// How much its records matter; it chooses the lane.
    pub class: Class,
    /// How finely it is kept.
    pub fidelity: StreamFidelity,
    /// How its payloads are read.
    pub payload: PayloadFormat,
    /// How it is cut into windows for its model; by default as long as the model's, without overlap.
    pub window: Option<WindowConfig>,
    /// Name of the model that scores its windows.
    pub model: Option<String>,
    /// What is asked about its windows; the model is the one of the catalogue that answers it.
    pub task: Option<String>,
    /// How it is aggregated; needed for the fidelity `aggregate`.
    pub aggregate: Option<AggregateConfig>,
    /// What is kept raw in spite of the fidelity; on a raw stream, what is kept at all.
    pub keep: Option<KeepConfig>,
    /// When a message that is folded into something smaller is acknowledged.
    pub ack: Ack,
    /// Zones that its records may go to; empty for anywhere.
    pub zones: Vec<String>,
    /// What its raw records are worth, and how they may be thinned; without it they are sent as they came.
    pub value: Option<Value>,
    /// When a larger model in the cloud is asked about its windows; without it none is.
    pub offload: Option<StreamOffload>,
    /// The stream of which its messages tell what was true.
    pub truth_of: Option<String>,
}

impl Default for Stream {
    fn default() -> Self {
        Stream {
            name: String::new(),
            topics: Vec::new(),
            class: Class::Normal,
            fidelity: StreamFidelity::Raw,
            payload: PayloadFormat::Opaque(OpaqueFormat {}),
            window: None,
            model: None,
            task: None,
            aggregate: None,
            keep: None,
            ack: Ack::Receipt,
            zones: Vec::new(),
            value: None,
            offload: None,
            truth_of: None,
        }
    }
}

impl Stream {
    /// Whether a model is to score its windows, even if none is there.
    pub(super) fn wants_model(&self) -> bool {
        self.model.is_some() || self.task.is_some()
    }
}

/// When a message that is folded into an aggregate or a verdict is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// On receipt: a crash costs at most the open windows.
    #[default]
    Receipt,
    /// When the record that it went into is safe.
    Record,
}

/// `[[model]]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// What streams call it.
    pub name: String,
    /// Its manifest, the TOML file beside the ONNX file.
    pub manifest: PathBuf,
    /// The task that it was chosen for, if it comes from the catalogue.
    #[serde(skip)]
    pub task: Option<String>,
}

/// `[infer]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Infer {
    /// Which engine runs the models.
    pub backend: Backend,
    /// The ONNX Runtime library; `None` for the usual places.
    pub library: Option<PathBuf>,
    /// A folder of manifests: the models for streams that name a task; `None` for none.
    pub catalogue: Option<PathBuf>,
    /// Windows that may wait for each model; what comes when it is full waits, and then sockets are not read.
    pub queue_windows_max: usize,
    /// Windows that a model scores at once.
    pub batch_windows_max: usize,
    /// Devices whose state a recurrent model keeps; the one that is silent longest is forgotten first.
    pub state_devices_max: usize,
    /// How long a model may take for a batch before it is given up.
    pub hang_timeout: Duration,
    /// Whether models come to the box while it runs.
    pub updates: Updates,
}

impl Default for Infer {
    fn default() -> Self {
        Infer {
            backend: Backend::Auto,
            library: None,
            catalogue: None,
            queue_windows_max: 256,
            batch_windows_max: 32,
            state_devices_max: 8_192,
            hang_timeout: Duration::from_secs(30),
            updates: Updates::default(),
        }
    }
}

impl Infer {
    /// Where the native library is looked for. Reads the environment.
    pub fn runtime_library(&self) -> RuntimeLibrary {
        RuntimeLibrary::from_env(self.library.clone())
    }

    /// The limits of each model's worker.
    pub fn worker_options(&self) -> WorkerOptions {
        WorkerOptions {
            queue_rows_limit: self.queue_windows_max,
            batch_rows_limit: self.batch_windows_max,
            state_devices_limit: self.state_devices_max,
        }
    }
}
