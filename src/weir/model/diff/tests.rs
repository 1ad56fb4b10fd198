use weir_edge::models::Head;
use weir_host::sign::SecretKey;
use weir_logic::models::Release;

use super::*;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

fn args(before: &str, after: &str) -> ModelDiffArgs {
    ModelDiffArgs {
        before: before.to_owned(),
        after: after.to_owned(),
        golden: None,
        recording: vec![models().join("recordings/watch_subject9.csv")],
        truth: Some("exercise".to_owned()),
        agreement_min: Some(0.9),
        backend: Backend::Rten,
        library: None,
        data_dir: PathBuf::from("none"),
    }
}

fn said(args: &ModelDiffArgs) -> (String, bool) {
    let mut out = Vec::new();
    let code = run(args, &mut out).expect("they can be compared");
    (String::from_utf8(out).expect("it is text"), code == ExitCode::SUCCESS)
}

fn manifest(name: &str) -> String {
    models().join(name).display().to_string()
}

#[test]
fn a_model_agrees_with_itself_in_everything() {
    let small = manifest("watch-small.toml");
    let (text, is_enough) = said(&args(&small, &small));
    for part in
        ["manifest: the same", "graph: the same operators", "golden cases: both say the same of", "100.0 %", "recordings: "]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(is_enough && text.contains("largest difference of an output 0.000000"), "{text}");
}

#[test]
fn two_models_are_told_apart_by_manifest_graph_answers_and_truth() {
    let (text, is_enough) = said(&args(&manifest("watch-small.toml"), &manifest("watch-large.onnx")));
    for part in ["  - name = \"watch-small\"", "  + name = \"watch-large\"", " became ", "right "] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!is_enough, "they differ on more than a tenth: {text}");
    // What was learned of both when they were trained: the larger one is right more often on the subjects kept for the test.
    let right = text.lines().rfind(|line| line.contains("truth is known")).expect("a line").to_owned();
    let shares: Vec<f64> = right.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(shares[1] > shares[0] && shares[0] > 50.0, "{right}");
}

#[test]
fn what_a_box_has_active_stands_beside_a_package() {
    let dir = tempfile::tempdir().expect("there is room");
    let text = fs::read(manifest("watch-small.toml")).expect("it is there");
    let model = fs::read(manifest("watch-small.onnx")).expect("it is there");
    let key = SecretKey::generate().expect("there are random numbers");
    let (manifest_sum, model_sum) = (String::new(), String::new());
    let head = Head {
        task: "activity".to_owned(),
        version: 4,
        gateways: Vec::new(),
        window_us_max: 500,
        manifest: manifest_sum,
        model: model_sum,
    };
    let package = Package::sign(head, text, model, &key);
    let path = dir.path().join("activity-4.weir-model");
    fs::write(&path, package.to_bytes()).expect("there is room");
    let store = dir.path().join(FOLDER);
    fs::create_dir(&store).expect("there is room");
    let release = Release { version: 4, id: package.id(), window_us_max: 500 };
    let slot = Slot { active: Some(release), ..Slot::default() };
    let slots = BTreeMap::from([("activity", slot)]);
    fs::write(store.join("state.json"), serde_json::to_vec(&slots).expect("it is JSON")).expect("there is room");
    fs::write(store.join(format!("{}.head", package.id())), format!("{}\n{}\n", package.head_text, package.signature))
        .expect("there is room");
    fs::write(store.join(format!("{}.toml", package.head.manifest)), &package.manifest).expect("there is room");
    fs::write(store.join(format!("{}.onnx", package.head.model)), &package.model).expect("there is room");
    let mut both = args("active:activity", &path.display().to_string());
    both.data_dir = dir.path().to_owned();
    let (text, is_enough) = said(&both);
    assert!(is_enough && text.contains("- active:activity: watch-small version 1, release 4"), "{text}");
    both.before = "active:heart".to_owned();
    let error = run(&both, &mut Vec::new()).expect_err("there is none").to_string();
    assert!(error.contains("no model that came to this box is active for task heart"), "{error}");
}

#[test]
fn models_of_other_windows_are_not_run_beside_each_other_and_recordings_must_have_the_channels() {
    let (text, is_enough) = said(&args(&manifest("watch-small.toml"), &manifest("occupancy/occupancy-small.toml")));
    assert!(text.contains("answers: not compared") && !is_enough, "{text}");
    let occupancy = manifest("occupancy/occupancy-small.toml");
    let error = run(&args(&occupancy, &occupancy), &mut Vec::new()).expect_err("other columns").to_string();
    assert!(error.contains("has no column") && error.contains("t_ms, subject"), "{error}");
}
