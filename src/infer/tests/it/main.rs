//! The reference models on both engines, bad models, and workers.
#![allow(clippy::print_stderr)] // a skipped test says so

mod bad_model;
mod fetch;
mod golden;
mod state;
mod worker;

use std::path::{Path, PathBuf};

use weir_infer::{Backend, LibraryError, LoadError, Manifest, Model, RuntimeLibrary};

/// Models that both engines run: one of each kind, and trees as tensors.
const BOTH: [&str; 10] = [
    "watch-small",
    "watch-large",
    "watch-int8",
    "watch-gru",
    "watch-forest-tensors",
    "pump-mlp",
    "pump-autoencoder",
    "pump-lstm",
    "pump-boosting-tensors",
    "pump-pipeline-tensors",
];
/// Those that only ONNX Runtime does.
const ORT_ONLY: [&str; 4] = ["watch-forest", "pump-boosting", "pump-pipeline", "pump-isolation"];
/// Trees, and the same as tensors.
const CONVERTED: [(&str, &str); 3] = [
    ("watch-forest", "watch-forest-tensors"),
    ("pump-boosting", "pump-boosting-tensors"),
    ("pump-pipeline", "pump-pipeline-tensors"),
];

fn folders() -> [PathBuf; 2] {
    ["../../models", "../../models/zoo"].map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
}

fn manifest_path(name: &str) -> PathBuf {
    let [reference, zoo] = folders().map(|folder| folder.join(format!("{name}.toml")));
    if reference.is_file() { reference } else { zoo }
}

fn load(name: &str, backend: Backend) -> Model {
    Model::load(&manifest_path(name), backend, &library()).expect("a reference model loads")
}

/// A reference model, changed: what `change` makes of its manifest and bytes.
fn load_changed(name: &str, backend: Backend, change: impl FnOnce(&mut Manifest, &mut Vec<u8>)) -> Result<Model, LoadError> {
    let mut manifest = Manifest::read(&manifest_path(name)).expect("a reference manifest is right");
    let mut bytes = manifest.model_bytes().expect("a reference model is whole");
    change(&mut manifest, &mut bytes);
    Model::from_bytes(manifest, bytes, backend, &library())
}

fn library() -> RuntimeLibrary {
    RuntimeLibrary::from_env(None)
}

/// The engines there are here: `rten` always, `ort` if its library is installed.
fn backends() -> Vec<Backend> {
    let mut backends = vec![Backend::Rten];
    backends.extend(has_ort().then_some(Backend::Ort));
    backends
}

fn has_ort() -> bool {
    let loaded = Model::load(&manifest_path(BOTH[0]), Backend::Ort, &library());
    match loaded {
        Ok(_) => true,
        Err(error @ LoadError::Library(LibraryError::Broken { .. } | LibraryError::Another { .. })) => panic!("{error}"),
        Err(error) => {
            skip(&format!("the ort backend: {error}"));
            false
        }
    }
}

/// Numbers in [-1, 1) from a seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A raw window of about the size of real ones: within two deviations of what the model was trained on.
    fn window(&mut self, manifest: &Manifest) -> Vec<f32> {
        let statistics = manifest.standardise.mean.iter().zip(&manifest.standardise.std);
        let sizes = statistics.map(|(mean, std)| if *std == 1.0 { (50.0, 50.0) } else { (*mean, 2.0 * std) });
        let channel =
            |(mean, size): (f32, f32)| -> Vec<f32> { (0..manifest.input.window).map(|_| mean + self.next() * size).collect() };
        sizes.flat_map(channel).collect()
    }
}

/// Says that a test cannot run here. Written past the test runner, which hides what passing tests print.
pub(crate) fn skip(why: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
