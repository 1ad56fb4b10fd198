//! Recurrent models: each device goes on from its own state, whatever else is in the batch.

use std::sync::mpsc::channel;

use weir_infer::{
    Answer, Backend, Golden, LoadError, Manifest, Model, Origin, Request, Row, RunError, StateCounts, Worker, WorkerOptions,
};

use super::{Noise, backends, load, load_changed, manifest_path};

const RECURRENT: [&str; 2] = ["watch-gru", "pump-lstm"];

/// Windows one right after the other: the n-th window of a device.
fn origin(model: &Model, device: u64, n: i64) -> Origin {
    let period_us = (1e6 / model.manifest().input.rate_hz) as i64;
    let length = model.manifest().input.window as i64;
    Origin { device, start_us: n * length * period_us, end_us: ((n + 1) * length - 1) * period_us }
}

fn one(model: &mut Model, window: &[f32], origin: Origin) -> Answer {
    model.score_rows(&[Row { window, origin: Some(origin) }]).remove(0).expect("a good window gets an answer")
}

/// Real windows of one device, one after the other: noise would leave no trace in a state.
fn golden_windows(name: &str) -> Vec<Vec<f32>> {
    let path = manifest_path(name);
    let manifest = Manifest::read(&path).expect("a right manifest");
    let golden = Golden::read(&Golden::path(&path, &manifest), &manifest).expect("golden cases are there");
    golden.cases.into_iter().filter(|case| case.device == 0).map(|case| case.window).collect()
}

fn differ(a: &Answer, b: &Answer) -> bool {
    a.outputs.iter().zip(&b.outputs).any(|(a, b)| (a - b).abs() > 1e-3)
}

fn same(a: &Answer, b: &Answer) -> bool {
    a.outputs.iter().zip(&b.outputs).all(|(a, b)| (a - b).abs() < 1e-5)
}

#[test]
fn a_window_is_answered_from_what_its_device_showed_before_and_from_nothing_after_a_gap() {
    for (name, backend) in RECURRENT.iter().flat_map(|name| backends().into_iter().map(move |backend| (name, backend))) {
        let mut model = load(name, backend);
        let windows = golden_windows(name);
        let (first, second) = (&windows[2], &windows[3]);
        let fresh = model.score(&[second]).remove(0).expect("an answer");
        let at = |model: &Model, n| origin(model, 1, n);
        let (zeroth, next, much_later) = (at(&model, 0), at(&model, 1), at(&model, 100));
        one(&mut model, first, zeroth);
        let carried = one(&mut model, second, next);
        assert!(differ(&carried, &fresh), "{name} on {backend}: the window before counts");
        let after_gap = one(&mut model, second, much_later);
        assert!(same(&after_gap, &fresh), "{name} on {backend}: a gap starts anew");
        assert_eq!(model.state_counts(), StateCounts { devices: 1, resets: 1, evicted: 0 });
        // A step back in time is a gap as well.
        let back = one(&mut model, second, zeroth);
        assert!(same(&back, &fresh) && model.state_counts().resets == 2, "{name} on {backend}");
    }
}

#[test]
fn several_windows_of_several_devices_in_one_batch_are_answered_as_if_alone() {
    for (name, backend) in RECURRENT.iter().flat_map(|name| backends().into_iter().map(move |backend| (name, backend))) {
        let mut noise = Noise(22);
        let (mut alone, mut together) = (load(name, backend), load(name, backend));
        // Device 2 has one window, device 1 three, device 3 two; one is without a device.
        let order = [(Some(1), 0), (Some(2), 0), (Some(1), 1), (None, 0), (Some(3), 0), (Some(1), 2), (Some(3), 1)];
        let windows: Vec<Vec<f32>> = order.iter().map(|_| noise.window(alone.manifest())).collect();
        let rows: Vec<Row<'_>> = order
            .iter()
            .zip(&windows)
            .map(|((device, n), window)| Row { window, origin: device.map(|device| origin(&alone, device, *n)) })
            .collect();
        let expected: Vec<_> = rows.iter().map(|row| alone.score_rows(&[*row]).remove(0).expect("an answer")).collect();
        for (at, (found, expected)) in together.score_rows(&rows).into_iter().zip(&expected).enumerate() {
            assert!(same(&found.expect("an answer"), expected), "{name} on {backend}, row {at}");
        }
        assert_eq!(together.state_counts(), StateCounts { devices: 3, resets: 0, evicted: 0 });
    }
}

#[test]
fn a_window_that_cannot_be_scored_starts_its_device_anew_and_no_other() {
    for backend in backends() {
        let mut model = load("watch-gru", backend);
        let window = Noise(23).window(model.manifest());
        let mut bad = window.clone();
        bad[0] = f32::NAN;
        let row = |window, device, n| Row { window, origin: Some(origin(&load("watch-gru", backend), device, n)) };
        let first = model.score_rows(&[row(&window, 1, 0), row(&window, 2, 0)]);
        let second = model.score_rows(&[row(&bad, 1, 1), row(&window, 2, 1)]);
        assert!(matches!(second[0], Err(RunError::NonFinite { .. })), "{:?}", second[0]);
        let third = model.score_rows(&[row(&window, 1, 2), row(&window, 2, 2)]);
        let (first, third) = (first[0].as_ref().expect("an answer"), third.iter().map(|t| t.as_ref().expect("an answer")));
        let anew: Vec<bool> = third.map(|answer| same(answer, first)).collect();
        assert_eq!(anew, [true, false], "{backend}");
        assert_eq!(model.state_counts().resets, 1);
    }
}

#[test]
fn a_worker_keeps_the_state_of_as_many_devices_as_it_may_and_counts_the_rest() {
    for backend in backends() {
        let model = load("pump-lstm", backend);
        let window = Noise(24).window(model.manifest());
        let at = |device, n| origin(&load("pump-lstm", backend), device, n);
        let origins = [at(1, 0), at(2, 0), at(3, 0), at(1, 1), at(3, 2)];
        let (outcomes_tx, outcomes) = channel();
        let options = WorkerOptions { state_devices_limit: 2, batch_rows_limit: 1, ..WorkerOptions::default() };
        let worker = Worker::start(model, options, Box::new(move |batch| outcomes_tx.send(batch).expect("the test listens")));
        let worker = worker.expect("a thread");
        for (id, origin) in origins.into_iter().enumerate() {
            worker.try_submit(Request { id: id as u64, window: window.clone(), origin: Some(origin) }).expect("there is room");
        }
        let stats = worker.stop();
        // Device 1 was forgotten for 3, and 2 for 1; 3 came back after a gap of ten seconds.
        assert_eq!((stats.rows, stats.state), (5, StateCounts { devices: 2, resets: 1, evicted: 2 }), "{backend}");
        let answers: Vec<Answer> = outcomes.iter().flatten().map(|outcome| outcome.result.expect("an answer")).collect();
        assert!(answers[1..].iter().all(|answer| same(answer, &answers[0])), "{backend}: all from nothing");
    }
}

#[test]
fn state_that_does_not_fit_the_graph_is_refused_with_both_sides() {
    for backend in backends() {
        let refused = |change: fn(&mut weir_infer::State)| {
            let changed =
                load_changed("watch-gru", backend, |manifest, _| change(manifest.state.as_mut().expect("it has state")));
            match changed {
                Err(LoadError::Mismatch(text)) => text,
                other => panic!("{backend}: {other:?}"),
            }
        };
        let text = refused(|state| state.inputs[0] = "hidden".to_owned());
        assert!(text.contains("no input is called \"hidden\"; the graph has \"window\", \"h_in\""), "{text}");
        let text = refused(|state| state.outputs[0] = "next".to_owned());
        assert!(text.contains("no output is called \"next\""), "{text}");
        let unnamed = load_changed("watch-gru", backend, |manifest, _| manifest.state = None);
        let text = unnamed.expect_err("an input is left over").to_string();
        assert!(text.contains("2 inputs") && text.contains("[state]"), "{text}");
        // An output of another size than the state: found by the trial run.
        let other = load_changed("watch-gru", backend, |manifest, _| {
            manifest.state.as_mut().expect("it has state").outputs[0] = "probabilities".to_owned();
        });
        assert!(matches!(other, Err(LoadError::Trial { .. })), "{other:?}");
    }
    assert_eq!(load("watch-small", Backend::Rten).state_counts(), StateCounts::default());
}
