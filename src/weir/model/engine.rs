//! One engine and one model: here, or in a process of its own.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use weir_infer::{Backend, Golden, LoadError, Manifest, RuntimeLibrary};

use super::measure::{self, Cost, GoldenResult};
use super::{ModelCheckArgs, ModelReport};

/// What an engine makes of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum EngineReport {
    /// It runs.
    Runs {
        /// The engine.
        backend: String,
        /// The native library's file.
        library: Option<String>,
        /// Whether its golden answers are right; `None` without any.
        golden: Option<GoldenResult>,
        /// What it takes.
        cost: Cost,
    },
    /// The engine has not all of its operators: nothing is wrong with the model.
    Lacks {
        /// The engine.
        backend: String,
        /// Which it has not.
        operators: Vec<String>,
        /// The same in a sentence, with what to do.
        why: String,
    },
    /// The engine is not here.
    Absent {
        /// The engine.
        backend: String,
        /// Why not, with what to do.
        why: String,
    },
    /// The engine does not take it, or does not survive it.
    Fails {
        /// The engine.
        backend: String,
        /// Why, with what to do.
        why: String,
    },
}

impl EngineReport {
    /// Whether it speaks against the model: a wrong answer or a failure does, an engine without the operators does not.
    pub fn is_acceptable(&self) -> bool {
        match self {
            Self::Runs { golden, .. } => golden.as_ref().is_none_or(GoldenResult::is_right),
            Self::Lacks { .. } | Self::Absent { .. } => true,
            Self::Fails { .. } => false,
        }
    }

    fn fails(backend: Backend, why: String) -> Self {
        Self::Fails { backend: backend.to_string(), why }
    }
}

/// Loads the model on this engine and measures it.
pub(super) fn try_here(
    manifest: &Manifest,
    bytes: &[u8],
    golden: Option<&Golden>,
    backend: Backend,
    args: &ModelCheckArgs,
) -> EngineReport {
    let library = RuntimeLibrary::from_env(args.library.clone());
    let name = backend.to_string();
    match measure::measure(manifest, bytes, golden, backend, &library, Duration::from_millis(args.batch_ms)) {
        Ok(measured) => EngineReport::Runs {
            backend: measured.backend.to_string(),
            library: library.find().ok().filter(|_| measured.backend == Backend::Ort).map(|path| path.display().to_string()),
            golden: measured.golden,
            cost: measured.cost,
        },
        Err(LoadError::Operators { backend, lacking }) => EngineReport::Lacks {
            backend: name,
            operators: lacking.iter().map(ToString::to_string).collect(),
            why: LoadError::Operators { backend, lacking }.to_string(),
        },
        Err(err @ (LoadError::Library(_) | LoadError::NotBuilt(_))) => {
            EngineReport::Absent { backend: name, why: err.to_string() }
        }
        Err(err) => EngineReport::fails(backend, err.to_string()),
    }
}

/// The same in a process of its own.
pub(super) fn try_in_child(path: &Path, backend: Backend, args: &ModelCheckArgs) -> EngineReport {
    let program = std::env::current_exe().map_err(|err| format!("cannot find this program: {err}"));
    match program.and_then(|program| asked(&program, path, backend, args)) {
        Ok(mut report) => match report.engines.pop() {
            Some(engine) => engine,
            None => EngineReport::fails(backend, "the engine's process said nothing".to_owned()),
        },
        Err(why) => EngineReport::fails(backend, why),
    }
}

fn asked(program: &Path, path: &Path, backend: Backend, args: &ModelCheckArgs) -> Result<ModelReport, String> {
    let mut command = Command::new(program);
    command.args(["model", "check", "--json", "--backend"]).arg(backend.to_string()).arg(path);
    command.arg("--batch-ms").arg(args.batch_ms.to_string());
    command.args(args.library.iter().flat_map(|library| ["--library".as_ref(), library.as_os_str()]));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|err| format!("cannot start a process for the engine: {err}"))?;
    // Read elsewhere, so that a full pipe cannot hold the child up.
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let said = std::thread::spawn(move || text(stdout));
    let complained = std::thread::spawn(move || text(stderr));
    let status = wait(&mut child)?;
    let (said, complained) = (said.join().unwrap_or_default(), complained.join().unwrap_or_default());
    serde_json::from_str(&said).map_err(|_| {
        let last = complained.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        format!("its process ended with {status}: {last}")
    })
}

/// Waits for the process, and ends one that takes too long.
fn wait(child: &mut Child) -> Result<ExitStatus, String> {
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if began.elapsed() < CHILD_LIMIT => std::thread::sleep(CHILD_POLL),
            Ok(None) => {
                // It is reaped by the wait; if it cannot be killed, it has just ended.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it takes longer than {} s: no box could use it", CHILD_LIMIT.as_secs()));
            }
            Err(err) => return Err(format!("cannot wait for the engine's process: {err}")),
        }
    }
}

fn text(pipe: Option<impl std::io::Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What has come so far is still worth reading.
        let _ = pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The slowest export we know took 6 s to load.
const CHILD_LIMIT: Duration = Duration::from_secs(180);
const CHILD_POLL: Duration = Duration::from_millis(10);
/// A report has some kilobytes.
const OUTPUT_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// What comes of a process that does this in the engine's place.
    fn asked_of(script: &str) -> String {
        let folder = tempfile::tempdir().expect("there is room");
        let program = folder.path().join("engine");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("there is room");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
        let args = ModelCheckArgs { file: "m.toml".into(), backend: None, json: false, batch_ms: 1, library: None };
        asked(&program, Path::new("m.toml"), Backend::Ort, &args).expect_err("it is no report")
    }

    #[test]
    fn an_engine_that_dies_or_talks_nonsense_is_a_finding_with_its_last_words() {
        let aborted = asked_of("echo 'terminate called' >&2; kill -ABRT $$");
        assert!(aborted.contains("signal: 6") && aborted.ends_with("terminate called"), "{aborted}");
        assert!(asked_of("echo hello; exit 3").contains("exit status: 3"));
        // More than a pipe holds, on both.
        let much = "head -c 300000 /dev/zero | tr '\\0' x";
        assert!(asked_of(&format!("{much}; {much} >&2")).contains("exit status: 0"));
    }
}
