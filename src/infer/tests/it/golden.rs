//! The same files give the same answers on both engines, and those they gave when they were trained.

use weir_infer::{Advice, Answer, Backend, Golden, LoadError, Manifest, Model, RunError, Task};

use super::{BOTH, CONVERTED, Noise, ORT_ONLY, backends, folders, has_ort, load, load_changed, manifest_path};

fn golden(name: &str) -> Golden {
    let path = manifest_path(name);
    let manifest = Manifest::read(&path).expect("a right manifest");
    Golden::read(&Golden::path(&path, &manifest), &manifest).expect("golden cases are there")
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
    let golden = golden(name);
    assert!(golden.cases.len() >= 8, "{name} has {} golden cases", golden.cases.len());
    let mut model = load(name, backend);
    assert_eq!(model.backend(), backend);
    for rows in [1, 3, 64] {
        if let Err(mismatch) = golden.check(&mut model, rows) {
            panic!("{name} on {backend}, {rows} at once: {mismatch}");
        }
    }
}

#[test]
fn every_kind_of_model_gives_its_golden_answers_on_every_engine() {
    for backend in backends() {
        BOTH.iter().for_each(|name| check_golden(name, backend));
    }
}

#[test]
fn trees_and_pipelines_give_their_golden_answers_on_ort() {
    if has_ort() {
        ORT_ONLY.iter().for_each(|name| check_golden(name, Backend::Ort));
    }
}

#[test]
fn a_wrong_answer_is_a_mismatch_with_its_place() {
    let mut golden = golden("pump-mlp");
    golden.cases[5].outputs[2] += 0.01;
    let mismatch = golden.check(&mut load("pump-mlp", Backend::Rten), 64).expect_err("an output was changed");
    assert!(mismatch.to_string().starts_with("golden case 5: output 2 is"), "{mismatch}");
}

#[test]
fn the_forest_finds_the_faults_in_its_golden_windows() {
    if !has_ort() {
        return;
    }
    let mut model = load("watch-forest", Backend::Ort);
    let golden = golden("watch-forest");
    let windows: Vec<&[f32]> = golden.cases.iter().map(|case| case.window.as_slice()).collect();
    let labels: Vec<_> = answers(&mut model, &windows).iter().map(|answer| answer.verdict.label).collect();
    assert_eq!(labels[..4], [Some(0); 4], "four real windows");
    assert!(labels[4..].contains(&Some(1)), "faulty windows: {labels:?}");
}

#[test]
fn the_embedded_engine_names_all_that_it_lacks_at_load_and_says_what_to_do() {
    for (name, lacking) in [
        ("watch-forest", "rten has no TreeEnsembleRegressor (ai.onnx.ml): rewrite the model"),
        ("pump-boosting", "rten has no TreeEnsembleClassifier (ai.onnx.ml): rewrite the model"),
        ("pump-pipeline", "rten has no Scaler (ai.onnx.ml), TreeEnsembleClassifier (ai.onnx.ml): rewrite the model"),
        ("pump-isolation", "TreeEnsembleRegressor (ai.onnx.ml)"),
    ] {
        let error = load_changed(name, Backend::Rten, |_, _| {}).expect_err("it has no tree operator");
        let text = error.to_string();
        assert!(matches!(error, LoadError::Operators { backend: Backend::Rten, .. }), "{text}");
        assert!(text.contains(lacking) && text.contains("weir runtime fetch"), "{text}");
    }
}

#[test]
fn trees_as_tensors_have_the_scores_of_the_trees() {
    if !has_ort() {
        return;
    }
    let mut noise = Noise(11);
    for (trees, tensors) in CONVERTED {
        let mut original = load(trees, Backend::Ort);
        let windows: Vec<Vec<f32>> = (0..300).map(|_| noise.window(original.manifest())).collect();
        let windows: Vec<&[f32]> = windows.iter().map(Vec::as_slice).collect();
        let expected = answers(&mut original, &windows);
        let distinct: std::collections::BTreeSet<u32> = expected.iter().map(|answer| answer.outputs[0].to_bits()).collect();
        assert!(distinct.len() > 50, "{trees}: the windows reach {} leaves", distinct.len());
        for backend in backends() {
            for (found, expected) in answers(&mut load(tensors, backend), &windows).iter().zip(&expected) {
                assert_close(&found.outputs, &expected.outputs, 2e-6, &format!("{tensors} on {backend}"));
            }
        }
    }
}

#[test]
fn an_export_with_an_operator_for_each_tree_is_recognised_at_load() {
    if has_ort() {
        let slow = load("pump-isolation", Backend::Ort);
        assert!(matches!(slow.advice(), [Advice::TreePerOperator { trees: 12, nodes: 334 }]), "{:?}", slow.advice());
        ORT_ONLY[..3].iter().for_each(|name| assert_eq!(load(name, Backend::Ort).advice(), []));
    }
    BOTH.iter().for_each(|name| assert_eq!(load(name, Backend::Rten).advice(), [], "{name}"));
}

#[test]
fn most_golden_windows_are_recognised() {
    for name in ["watch-small", "watch-large", "watch-int8"] {
        let mut model = load(name, Backend::Rten);
        assert_eq!(model.manifest().task, Task::Classification);
        let golden = golden(name);
        // The first seven windows are one of each exercise, in the order of the labels.
        let windows: Vec<&[f32]> = golden.cases[..7].iter().map(|case| case.window.as_slice()).collect();
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
                assert_close(&rten.outputs, &ort.outputs, golden(name).tolerance, &format!("{name}, {rows} rows"));
            }
        }
    }
}

#[test]
fn a_bad_window_gets_an_error_and_its_neighbours_their_answers() {
    for backend in backends() {
        let mut model = load("watch-small", backend);
        let golden = golden("watch-small");
        let good = golden.cases[0].window.as_slice();
        let mut nan = good.to_vec();
        nan[130] = f32::NAN;
        let results = model.score(&[&nan, good, &good[1..], good]);
        assert_eq!(results[0], Err(RunError::NonFinite { channel: "ay".to_owned(), sample: 2 }));
        assert_eq!(results[2], Err(RunError::RowLength { found: 767, expected: 768 }));
        for answer in [&results[1], &results[3]] {
            let answer = answer.as_ref().expect("a good window gets an answer");
            assert_close(&answer.outputs, &golden.cases[0].outputs, golden.tolerance, "beside bad windows");
        }
        assert!(model.score(&[&nan]).iter().all(Result::is_err));
        assert!(model.score(&[]).is_empty());
    }
}

/// Trees, recurrent and quantised models answer NaN with plausible numbers.
#[test]
fn no_kind_of_model_sees_a_value_that_is_not_finite() {
    let everywhere = BOTH.iter().flat_map(|name| backends().into_iter().map(move |backend| (*name, backend)));
    let ort_only = ORT_ONLY.iter().filter(|_| has_ort()).map(|name| (*name, Backend::Ort));
    for (name, backend) in everywhere.chain(ort_only) {
        let mut model = load(name, backend);
        let window = Noise(2).window(model.manifest());
        let last = window.len() - 1;
        let (channel, sample) = (model.manifest().input.channels.last().cloned(), model.manifest().input.window - 1);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bad = window.clone();
            bad[last] = value;
            let expected = RunError::NonFinite { channel: channel.clone().expect("it has channels"), sample };
            assert_eq!(model.score(&[&bad]), [Err(expected)], "{name} on {backend}");
        }
        assert!(model.score(&[&window])[0].is_ok(), "{name} on {backend}");
    }
}

#[test]
fn every_manifest_is_right_fits_its_file_and_is_named_in_the_tests() {
    let mut found: Vec<String> = Vec::new();
    for folder in folders() {
        for entry in std::fs::read_dir(folder).expect("models are there") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            let manifest = Manifest::read(&path).expect("a right manifest");
            let bytes = manifest.model_bytes().expect("the file and its sum");
            assert_eq!(path.file_stem().and_then(|stem| stem.to_str()), Some(manifest.name.as_str()));
            assert!(bytes.len() < 400_000, "{} has {} bytes", manifest.name, bytes.len());
            found.push(manifest.name);
        }
    }
    found.sort_unstable();
    let mut tested: Vec<&str> = BOTH.into_iter().chain(ORT_ONLY).collect();
    tested.sort_unstable();
    assert_eq!(found, tested);
}
