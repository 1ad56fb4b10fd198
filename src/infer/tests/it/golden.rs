//! The same files give the same answers on both engines, and those they gave when they were trained.

use serde_json::Value;
use weir_infer::{Answer, Backend, LoadError, Model, RunError, Task};

use super::{BOTH, Noise, ORT_ONLY, backends, has_ort, load, load_changed, manifest_path, models};

struct Case {
    window: Vec<f32>,
    outputs: Vec<f32>,
}

fn cases(name: &str) -> (Vec<Case>, f32) {
    let text = std::fs::read_to_string(models().join(format!("golden/{name}.json"))).expect("golden cases are there");
    let file: Value = serde_json::from_str(&text).expect("golden cases are JSON");
    let numbers = |value: &Value| -> Vec<f32> {
        value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number") as f32).collect()
    };
    let case = |case: &Value| Case {
        window: case["window"].as_array().expect("channels").iter().flat_map(numbers).collect(),
        outputs: numbers(&case["outputs"]),
    };
    let cases: Vec<Case> = file["cases"].as_array().expect("cases").iter().map(case).collect();
    assert!(cases.len() >= 8, "{name} has {} golden cases", cases.len());
    (cases, file["tolerance"].as_f64().expect("a tolerance") as f32)
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{what}: {found} instead of {expected}");
    }
}

fn answers(model: &mut Model, windows: &[&[f32]]) -> Vec<Answer> {
    model.score(windows).into_iter().map(|answer| answer.expect("a good window gets an answer")).collect()
}

fn check_golden(name: &str, backend: Backend) {
    let (cases, tolerance) = cases(name);
    let mut model = load(name, backend);
    assert_eq!(model.backend(), backend);
    let windows: Vec<&[f32]> = cases.iter().map(|case| case.window.as_slice()).collect();
    let together = answers(&mut model, &windows);
    for ((case, together), window) in cases.iter().zip(&together).zip(windows) {
        assert_close(&together.outputs, &case.outputs, tolerance, &format!("{name} on {backend}, in a batch"));
        let alone = answers(&mut model, &[window]);
        assert_close(&alone[0].outputs, &case.outputs, tolerance, &format!("{name} on {backend}, alone"));
        assert_eq!(alone[0].verdict, model.manifest().verdict(&alone[0].outputs));
    }
}

#[test]
fn the_classifiers_give_their_golden_answers_on_every_engine() {
    for backend in backends() {
        BOTH.iter().for_each(|name| check_golden(name, backend));
    }
}

#[test]
fn the_forest_gives_its_golden_answers_on_ort_and_finds_the_faults_in_them() {
    if !has_ort() {
        return;
    }
    check_golden(ORT_ONLY, Backend::Ort);
    let mut model = load(ORT_ONLY, Backend::Ort);
    let (cases, _) = cases(ORT_ONLY);
    let windows: Vec<&[f32]> = cases.iter().map(|case| case.window.as_slice()).collect();
    let labels: Vec<_> = answers(&mut model, &windows).iter().map(|answer| answer.verdict.label).collect();
    assert_eq!(labels[..4], [Some(0); 4], "four real windows");
    assert!(labels[4..].contains(&Some(1)), "faulty windows: {labels:?}");
}

#[test]
fn the_embedded_engine_refuses_trees_at_load_and_says_what_to_do() {
    let error = load_changed(ORT_ONLY, Backend::Rten, |_, _| {}).expect_err("it has no tree operator");
    let text = error.to_string();
    assert!(matches!(error, LoadError::Refused { backend: Backend::Rten, .. }), "{text}");
    assert!(text.contains("TreeEnsembleRegressor") && text.contains("weir runtime fetch"), "{text}");
}

#[test]
fn most_golden_windows_are_recognised() {
    for name in BOTH {
        let mut model = load(name, Backend::Rten);
        assert_eq!(model.manifest().task, Task::Classification);
        let (cases, _) = cases(name);
        // The first seven windows are one of each exercise, in the order of the labels.
        let windows: Vec<&[f32]> = cases[..7].iter().map(|case| case.window.as_slice()).collect();
        let found = answers(&mut model, &windows);
        let right = found.iter().enumerate().filter(|(label, answer)| answer.verdict.label == Some(*label)).count();
        assert!(right >= 5, "{name} recognises {right} of 7");
    }
}

#[test]
fn engines_agree_on_random_windows_in_batches_of_every_size() {
    if !has_ort() {
        return;
    }
    for name in BOTH {
        let (mut ort, mut rten) = (load(name, Backend::Ort), load(name, Backend::Rten));
        let mut noise = Noise(1);
        for rows in [1, 2, 3, 7, 31, 32, 33] {
            let windows: Vec<Vec<f32>> = (0..rows).map(|_| noise.window(ort.manifest())).collect();
            let windows: Vec<&[f32]> = windows.iter().map(Vec::as_slice).collect();
            for (ort, rten) in answers(&mut ort, &windows).iter().zip(answers(&mut rten, &windows)) {
                assert_close(&rten.outputs, &ort.outputs, 1e-4, &format!("{name}, {rows} rows"));
            }
        }
    }
}

#[test]
fn a_bad_window_gets_an_error_and_its_neighbours_their_answers() {
    for backend in backends() {
        let mut model = load("watch-small", backend);
        let (cases, tolerance) = cases("watch-small");
        let good = cases[0].window.as_slice();
        let mut nan = good.to_vec();
        nan[130] = f32::NAN;
        let results = model.score(&[&nan, good, &good[1..], good]);
        assert_eq!(results[0], Err(RunError::NonFinite { channel: "ay".to_owned(), sample: 2 }));
        assert_eq!(results[2], Err(RunError::RowLength { found: 767, expected: 768 }));
        for answer in [&results[1], &results[3]] {
            let answer = answer.as_ref().expect("a good window gets an answer");
            assert_close(&answer.outputs, &cases[0].outputs, tolerance, "beside bad windows");
        }
        assert!(model.score(&[&nan]).iter().all(Result::is_err));
        assert!(model.score(&[]).is_empty());
    }
}

#[test]
fn every_manifest_in_models_is_right_and_fits_its_file() {
    let entries = std::fs::read_dir(models()).expect("models are there");
    let manifests: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    assert!(manifests.len() >= 3);
    for path in manifests {
        let manifest = weir_infer::Manifest::read(&path).expect("a right manifest");
        manifest.model_bytes().expect("the file and its sum");
        assert_eq!(path, manifest_path(&manifest.name), "a manifest is called after its model");
    }
}
