use super::*;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

fn args(file: PathBuf, backend: Backend) -> ModelCheckArgs {
    ModelCheckArgs { file, backend: Some(backend), json: true, batch_ms: 1, library: None }
}

/// What `check` says as JSON, in this process.
fn checked(file: PathBuf) -> ModelReport {
    let mut out = Vec::new();
    check(&args(file, Backend::Rten), &mut out).expect("it can be checked");
    serde_json::from_slice(&out).expect("it is JSON")
}

#[test]
fn a_good_model_is_described_answers_right_and_is_measured() {
    let report = checked(models().join("zoo/watch-gru.onnx"));
    assert!(report.is_good(), "{report:?}");
    let inputs: Vec<_> = report.inputs.iter().map(|port| (port.name.as_str(), port.shape.as_str(), &*port.meaning)).collect();
    let channels = "ax, ay, az, gx, gy, gz; window 25 at 50 Hz";
    assert_eq!(inputs, [("window", "f32[batch, 6, 25]", channels), ("h_in", "f32[1, batch, 48]", "state of the device")]);
    assert_eq!(report.outputs[1].meaning, "next state of the device");
    assert!(report.operators.contains(&("GRU".to_owned(), 1)), "{:?}", report.operators);
    let [EngineReport::Runs { golden: Some(golden), cost, .. }] = report.engines.as_slice() else { panic!("{report:?}") };
    assert_eq!((golden.cases, golden.is_right()), (12, true));
    let rows: Vec<usize> = cost.batches.iter().map(|batch| batch.rows).collect();
    assert_eq!(rows, [1, 2, 4, 8, 16, 32, 64]);
    assert!(cost.batches.iter().all(|batch| batch.runs >= 5 && 0.0 < batch.p50_us && batch.p50_us <= batch.p99_us));
    assert!(rows.contains(&cost.best_batch) && cost.batch_gain > 0.0 && cost.load_ms > 0.0);
    let mut text = Vec::new();
    print::report(&report, &mut text).expect("memory can be written to");
    let text = String::from_utf8(text).expect("it is text");
    assert!(text.contains("12 cases, off by at most") && text.ends_with("watch-gru: good\n"), "{text}");
}

#[test]
fn an_engine_without_the_operators_is_named_with_what_to_do_and_the_model_is_not_good_without_another() {
    let report = checked(models().join("zoo/pump-isolation.toml"));
    let [EngineReport::Lacks { operators, why, .. }] = report.engines.as_slice() else { panic!("{report:?}") };
    assert!(operators.contains(&"TreeEnsembleRegressor (ai.onnx.ml)".to_owned()), "{operators:?}");
    assert!(why.contains("weir runtime fetch"), "{why}");
    assert!(report.advice[0].contains("12 tree operators among 334"), "{:?}", report.advice);
    assert!(!report.is_good());
}

#[test]
fn a_wrong_answer_is_shown_and_is_not_good() {
    let folder = tempfile::tempdir().expect("there is room");
    std::fs::create_dir(folder.path().join("golden")).expect("there is room");
    for file in ["pump-mlp.toml", "pump-mlp.onnx", "golden/pump-mlp.json"] {
        std::fs::copy(models().join("zoo").join(file), folder.path().join(file)).expect("there is room");
    }
    let path = folder.path().join("pump-mlp.toml");
    assert!(checked(path.clone()).is_good());
    let golden = folder.path().join("golden/pump-mlp.json");
    let cases = std::fs::read_to_string(&golden).expect("it was copied");
    std::fs::write(&golden, cases.replacen("\"outputs\":[0", "\"outputs\":[1", 1)).expect("there is room");
    let report = checked(path.clone());
    let [EngineReport::Runs { golden: Some(result), .. }] = report.engines.as_slice() else { panic!("{report:?}") };
    let mismatch = result.mismatch.as_deref().expect("an answer is wrong");
    assert!(mismatch.starts_with("golden case 0: output 0 is 0.") && !report.is_good(), "{mismatch}");
    std::fs::remove_file(golden).expect("it is there");
    let report = checked(path);
    assert!(report.is_good() && report.golden_cases.is_none(), "nothing speaks against it: {report:?}");
}

#[test]
fn a_manifest_with_mistakes_is_answered_with_them_and_an_onnx_file_without_one_with_what_is_missing() {
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("m.toml");
    std::fs::write(&path, "name = \"M\"").expect("there is room");
    let mut out = Vec::new();
    let code = check(&args(path, Backend::Rten), &mut out).expect("mistakes are an answer");
    let text = String::from_utf8(out).expect("it is text");
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(64)));
    assert!(text.contains("name, line 1") && text.contains("[input]: is missing"), "{text}");
    let lonely = folder.path().join("lonely.onnx");
    std::fs::write(&lonely, "").expect("there is room");
    let error = check(&args(lonely, Backend::Rten), &mut Vec::new()).expect_err("it has no manifest");
    assert!(error.to_string().contains("there is no manifest"), "{error}");
}
