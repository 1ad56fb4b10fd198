//! Streams that name a task, and streams of recurrent models.

use super::*;

/// A stream of the watch, without the model's name.
const WATCH: &str = "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\nfidelity = \"verdict\"\n\
                     payload = { format = \"packed\", element = \"i16\", channels = 6, rate_hz = 50.0 }\n";

fn checked(catalogue: &str, stream: &str) -> Checked {
    let text = format!("[infer]\nbackend = \"rten\"\n{catalogue}\n{stream}");
    Config::parse("edge.toml", &text, &root().join("config"), Files::Required)
}

/// Every mistake, with its line.
fn mistakes(checked: Checked) -> Vec<(usize, String)> {
    let errors = checked.config.expect_err("a mistake was made");
    errors.errors().iter().map(|error| (error.line, format!("{}; {}", error.message, error.hint))).collect()
}

#[test]
fn a_task_is_answered_by_the_smallest_model_of_the_catalogue() {
    let found = checked("catalogue = \"../models\"", &format!("{WATCH}task = \"activity\"\n"));
    let models = found.models;
    let config = found.config.unwrap_or_else(|err| panic!("{err}"));
    assert_eq!(config.stream[0].model.as_deref(), Some("watch-small"));
    assert!(config.model[0].manifest.ends_with("models/watch-small.toml"), "{:?}", config.model);
    assert_eq!(config.model[0].task.as_deref(), Some("activity"));
    let policy = config.policy(&models).unwrap();
    assert_eq!(policy.streams[0].model.as_ref().map(|model| &*model.name), Some("watch-small"));
    // Two streams with one task share the model.
    let other = WATCH.replace("\"s\"", "\"t\"").replace("[\"a\"]", "[\"b\"]");
    let both = checked("catalogue = \"../models\"", &format!("{WATCH}task = \"activity\"\n{other}task = \"activity\"\n"));
    assert_eq!(both.config.unwrap_or_else(|err| panic!("{err}")).model.len(), 1);
}

#[test]
fn a_task_that_nothing_answers_here_is_a_mistake_for_the_check_and_a_warning_for_the_run() {
    let task = |task: &str| format!("{WATCH}task = \"{task}\"\n");
    let found = mistakes(checked("catalogue = \"../models\"", &task("weather")));
    let expected = "no model of the catalogue answers task `weather`; its models answer: activity, wearing; a manifest says so in `answers`";
    assert_eq!(found, [(9, expected.to_owned())]);
    // The forest needs operators that the embedded engine has not.
    let found = mistakes(checked("catalogue = \"../models\"", &task("wearing")));
    assert!(found[0].1.contains("`watch-forest` needs TreeEnsembleRegressor (ai.onnx.ml)"), "{found:?}");
    let found = mistakes(checked("", &task("activity")));
    assert!(found[0].0 == 9 && found[0].1.contains("infer.catalogue"), "{found:?}");
    let found = mistakes(checked("catalogue = \"nowhere\"", &task("activity")));
    assert!(found[0].0 == 3 && found[0].1.contains("nowhere cannot be read"), "{found:?}");
    let found = mistakes(checked("catalogue = \"../models\"", &format!("{}model = \"m\"\n", task("activity"))));
    assert!(found.iter().any(|(line, text)| *line == 9 && text.contains("both a model and a task")), "{found:?}");

    let text = format!("[infer]\nbackend = \"rten\"\ncatalogue = \"nowhere\"\n{}", task("activity"));
    let run = Config::parse("edge.toml", &text, &root().join("config"), Files::ModelsOptional);
    let config = run.config.unwrap_or_else(|err| panic!("{err}"));
    assert!(
        run.warnings.iter().any(|warning| warning.message.ends_with("its streams go without a model")),
        "{:?}",
        run.warnings
    );
    assert!(config.policy(&run.models).unwrap().streams[0].model.is_none(), "the box does all the rest");
}

#[test]
fn windows_of_a_recurrent_model_may_not_overlap() {
    let model = "[[model]]\nname = \"m\"\nmanifest = \"../models/zoo/watch-gru.toml\"\n";
    let with = |window: &str| checked(model, &format!("{WATCH}model = \"m\"\n{window}"));
    assert!(with("").config.is_ok());
    assert!(with("window = { length = \"25 samples\", step = \"25 samples\" }\n").config.is_ok());
    let found = mistakes(with("window = { length = \"25 samples\", step = \"10 samples\" }\n"));
    assert!(found[0].0 == 13 && found[0].1.contains("windows share 15 samples"), "{found:?}");
}
