//! `weir model` as an operator runs it: each engine in a process of its own, and nothing left behind.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use weir_infer::RuntimeLibrary;
use weir_tests::support::{process, skip};

/// The slowest model takes seconds on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

/// The installed library, if there is one.
fn library() -> Option<PathBuf> {
    let found = RuntimeLibrary::from_env(None).find();
    if let Err(err) = &found {
        skip(&format!("the ort backend: {err}"));
    }
    found.ok()
}

/// The installed library, and with WEIR_TEST_LIBRARIES those in the folders of that folder: one for each version.
fn libraries() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = library().into_iter().collect();
    let Some(folder) = std::env::var_os("WEIR_TEST_LIBRARIES") else {
        skip("other versions of the library; set WEIR_TEST_LIBRARIES to a folder with a folder for each");
        return found;
    };
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).expect("the folder of libraries is there");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    };
    let is_library = |path: &PathBuf| path.to_string_lossy().contains("/libonnxruntime.so.1.");
    let others: Vec<PathBuf> = entries(Path::new(&folder)).iter().flat_map(|one| entries(one)).filter(is_library).collect();
    assert!(!others.is_empty(), "there are none");
    found.extend(others);
    found
}

/// The tool on one library alone, under `strace` if there is one: it writes what is done with the network to `trace`.
fn traced(home: &Path, library: &Path, model: &str, trace: &Path) -> Command {
    let tool = std::fs::canonicalize(crate::tool()).expect("it is built");
    let has_strace = Command::new("strace").arg("-V").output().is_ok();
    let mut command = if has_strace {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "trace=%network", "-o"]).arg(trace).arg(tool);
        command
    } else {
        skip("strace is not installed: what a library does with the network is not seen");
        Command::new(tool)
    };
    command.args(["model", "check", "--json", "--backend", "ort", "--batch-ms", "1", "--library"]).arg(library);
    command.arg(models().join(model)).env("HOME", home).current_dir(home);
    command.env_remove("XDG_DATA_HOME").env_remove("XDG_CACHE_HOME").env_remove("ORT_DISABLE_TELEMETRY");
    command
}

/// The tool, in a home of its own.
fn tool(home: &Path, arguments: &[&str], file: &Path) -> Command {
    let mut command = Command::new(std::fs::canonicalize(crate::tool()).expect("it is built"));
    command.args(["model"]).args(arguments).arg(file).args(["--batch-ms", "5"]);
    command.env("HOME", home).env_remove("XDG_DATA_HOME").env_remove("XDG_CACHE_HOME").env_remove("WEIR_ORT_LIB");
    command.env_remove("ORT_DISABLE_TELEMETRY").current_dir(home);
    if let Some(library) = library() {
        command.arg("--library").arg(library);
    }
    command
}

fn engine<'r>(report: &'r Value, name: &str) -> &'r Value {
    let engines = report["engines"].as_array().expect("a list");
    engines.iter().find(|engine| engine["backend"] == name).unwrap_or_else(|| panic!("{name} in {report}"))
}

#[test]
fn a_model_is_checked_on_every_engine_and_a_library_leaves_nothing_in_a_fresh_home() {
    let home = tempfile::tempdir().expect("there is room");
    let (code, stdout, stderr) =
        process::run(tool(home.path(), &["check", "--json"], &models().join("watch-small.onnx")), LIMIT);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("it is JSON");
    assert_eq!(engine(&report, "rten")["golden"]["cases"], 8);
    let ort = engine(&report, "ort");
    if library().is_some() {
        assert_eq!((&ort["outcome"], &ort["golden"]["mismatch"]), (&Value::from("runs"), &Value::Null), "{ort}");
        assert!(ort["cost"]["memory_kib"].as_u64() > engine(&report, "rten")["cost"]["memory_kib"].as_u64(), "{report}");
    } else {
        assert_eq!(ort["outcome"], "absent");
    }
    // Telemetry of libraries from 1.29 on would have put a device's id and a database here.
    let left: Vec<_> = std::fs::read_dir(home.path()).expect("it is there").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// From 1.29 on the official library, left alone, makes a device's id and a database in the home, and reports to its maker.
#[test]
fn every_library_answers_right_says_nothing_to_the_network_and_leaves_nothing_in_a_home() {
    for library in libraries() {
        for model in ["watch-small.toml", "zoo/pump-pipeline.toml", "zoo/watch-gru.toml", "zoo/watch-int8.toml"] {
            let (home, traces) = (tempfile::tempdir().expect("there is room"), tempfile::tempdir().expect("there is room"));
            let trace = traces.path().join("trace");
            let (code, stdout, stderr) = process::run(traced(home.path(), &library, model, &trace), LIMIT);
            assert_eq!(code, Some(0), "{model} on {}: {stdout}{stderr}", library.display());
            let report: Value = serde_json::from_str(&stdout).expect("it is JSON");
            let golden = &engine(&report, "ort")["golden"];
            assert!(golden["cases"].as_u64() >= Some(8) && golden["mismatch"].is_null(), "{model}: {golden}");
            let calls = std::fs::read_to_string(&trace).unwrap_or_default();
            let out: Vec<&str> = calls.lines().filter(|call| call.contains("AF_INET") || call.contains("AF_UNIX")).collect();
            assert!(out.is_empty(), "{}: {out:?}", library.display());
            let left: Vec<_> = std::fs::read_dir(home.path()).expect("it is there").collect();
            assert!(left.is_empty(), "{}: {left:?}", library.display());
        }
    }
}

#[test]
fn trees_run_on_the_native_library_alone_and_the_embedded_engine_says_what_it_lacks() {
    let home = tempfile::tempdir().expect("there is room");
    let (code, stdout, stderr) = process::run(tool(home.path(), &["check"], &models().join("zoo/pump-pipeline.toml")), LIMIT);
    let lacks = "rten: not used: rten has no Scaler (ai.onnx.ml), TreeEnsembleClassifier (ai.onnx.ml): rewrite the model as \
                 tensor operators with models/trees_to_tensors.py";
    assert!(stdout.contains(lacks), "{stdout}{stderr}");
    let expected = if library().is_some() { (Some(0), "pump-pipeline: good") } else { (Some(1), "pump-pipeline: not good") };
    assert!(code == expected.0 && stdout.trim_end().ends_with(expected.1), "{code:?} {stdout}");
}

#[test]
fn a_folder_of_models_is_a_table_with_a_row_for_each_engine() {
    let home = tempfile::tempdir().expect("there is room");
    let folder = home.path().join("models");
    std::fs::create_dir_all(folder.join("golden")).expect("there is room");
    for file in ["pump-mlp.toml", "pump-mlp.onnx", "golden/pump-mlp.json", "pump-boosting.toml", "pump-boosting.onnx"] {
        std::fs::copy(models().join("zoo").join(file), folder.join(file)).expect("there is room");
    }
    let (code, stdout, stderr) = process::run(tool(home.path(), &["table"], &folder), LIMIT);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.len(), 6, "{stdout}{stderr}");
    assert!(lines.iter().all(|line| line.matches('|').count() == 9), "{stdout}");
    assert!(stdout.contains("| `pump-boosting` | rten | no TreeEnsembleClassifier (ai.onnx.ml) |"), "{stdout}");
    assert_eq!(code, Some(i32::from(library().is_none())), "{stdout}{stderr}");
}
