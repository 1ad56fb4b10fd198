//! The files in `config`: they say the defaults, they say every key, and they pass the check.

use super::*;

const SHIPPED: &str = include_str!("../../../../config/edge.toml");
/// Begins a line that is an example of what is not there by default.
const EXAMPLE: &str = "#= ";

fn with_examples() -> String {
    SHIPPED.lines().map(|line| line.strip_prefix(EXAMPLE).unwrap_or(line).to_owned() + "\n").collect()
}

#[test]
fn the_shipped_file_is_the_defaults() {
    let shipped = parse(SHIPPED);
    assert_eq!(shipped.config.map_err(|err| err.to_string()), Ok(Config::default().resolved(&root().join("config"))));
}

#[test]
fn the_examples_in_the_shipped_file_work_and_show_what_is_optional() {
    let checked = Config::parse("edge.toml", &with_examples(), &root().join("config"), Files::Ignored);
    let config = checked.config.unwrap_or_else(|err| panic!("{err}"));
    let stream = &config.stream[0];
    assert!(stream.window.is_some() && stream.keep.is_some() && stream.model.is_some());
    assert_eq!((&config.stream[1].truth_of, config.stream.len()), (&Some(stream.name.clone()), 3));
    assert!(config.stream[2].aggregate.is_some() && stream.value.is_some() && config.uplink[0].rate.is_some());
    assert!(config.listen[0].tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()));
    let broker = &config.broker[0];
    assert!(broker.tls.as_ref().is_some_and(|tls| tls.cert.is_some() && tls.server_name.is_some()));
    assert!(broker.username.is_some() && broker.password_file.is_some() && broker.client_id.is_some());
    assert!(config.user[0].password_hash.is_some() && config.user[0].certificate_cn.is_some());
    assert!(config.uplink[0].server_name.is_some() && config.uplink[0].bind.is_some() && config.uplink[0].interface.is_some());
    let uplink = &config.uplink[0];
    assert!(uplink.fallback.as_ref().is_some_and(|fallback| fallback.proxy.is_some()));
    assert!(uplink.metered && uplink.month_bytes.is_some() && uplink.classes.is_some() && uplink.carrier.is_some());
    assert!(uplink.zone.is_some() && !config.stream[0].zones.is_empty());
    let offload = stream.offload.as_ref().expect("it is shown");
    // What the line gives besides a task is the default, but for the spacing and the band, whose default is the manifest's.
    let (spacing, band, audit) = (offload.spacing, offload.band, offload.audit);
    let shown = StreamOffload { spacing, band, audit, learn: Some(Learn::default()), ..StreamOffload::default() };
    assert_eq!(*offload, StreamOffload { task: "activity".to_owned(), ..shown });
    assert!(
        config.policy.key.is_some()
            && config.gateway.name.is_some()
            && config.infer.library.is_some()
            && config.admin.unix.is_some()
    );
    // The model of the example is the one that is there.
    let policy = config.policy(&[info("watch-small", 6)]).unwrap();
    assert_eq!(policy.streams[1].truth.as_ref().map(|truth| truth.stream), Some(0));
    assert!(checked.warnings.is_empty(), "{:#?}", checked.warnings);
}

#[test]
fn every_key_of_the_shipped_file_has_a_sentence_and_an_example_or_a_default() {
    let mut comment = String::new();
    let mut seen: Vec<String> = Vec::new();
    let mut keys = 0;
    for line in SHIPPED.lines() {
        let is_example = line.starts_with(EXAMPLE);
        let code = line.strip_prefix(EXAMPLE).unwrap_or(line);
        if code.starts_with('#') {
            comment.push_str(code);
            continue;
        }
        if let Some((key, _)) = code.split_once(" = ") {
            let wanted = if is_example { "Default:" } else { "Example:" };
            let is_explained = comment.contains(wanted) && comment.contains(". ");
            // The second example of a table need not explain its keys again.
            assert!(is_explained || (is_example && seen.contains(&key.to_owned())), "{key}: {comment:?}");
            seen.push(key.to_owned());
            keys += 1;
        }
        comment.clear();
    }
    assert!(keys > 80, "{keys} keys");
}

#[test]
fn the_shipped_file_has_every_key_there_is() {
    let headers = [
        "[gateway]",
        "[[listen]]",
        "[mqtt]",
        "[[broker]]",
        "[[user]]",
        "[[stream]]",
        "[[model]]",
        "[infer]",
        "[infer.updates]",
        "[offload]",
        "[lane.critical]",
        "[lane.bulk]",
        "[buffer]",
        "[[uplink]]",
        "[plan]",
        "[policy]",
        "[session]",
        "[tls]",
        "[admin]",
        "[log]",
    ];
    let examples = with_examples();
    for header in headers {
        let errors = parse(&format!("{header}\nqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq = 1\n")).config.unwrap_err();
        let hint = &errors.errors().iter().find(|error| error.message.starts_with("unknown key")).unwrap().hint;
        let keys = hint.strip_prefix("the keys here are ").unwrap_or_else(|| panic!("{header}: {hint}"));
        let sections: Vec<&str> = examples.split("\n[").filter(|section| format!("[{section}").starts_with(header)).collect();
        for key in keys.split(", ") {
            let is_table = examples.contains(&format!("\n{}.{key}]", header.trim_end_matches(']')));
            let found = is_table || sections.iter().any(|section| section.contains(&format!("\n{key} = ")));
            assert!(found, "{header} lacks {key}");
        }
    }
    let errors = parse("qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq = 1\n").config.unwrap_err();
    let tables = errors.errors()[0].hint.strip_prefix("the keys here are ").unwrap().split(", ").count();
    // `lane` is shown as its tables, and `infer` has one in it.
    assert_eq!(tables, headers.len() - 2);
}

#[test]
fn the_profiles_pass_the_check_with_the_models_that_they_name() {
    let folder = root().join("config/profiles");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let checked = Config::check(&path, Files::Ignored);
        let config = checked.config.unwrap_or_else(|err| panic!("{err}"));
        assert!(checked.warnings.is_empty(), "{}: {:#?}", path.display(), checked.warnings);
        // Models are in the repository, certificates are not.
        let mut without_uplinks = std::fs::read_to_string(&path).unwrap();
        without_uplinks.truncate(without_uplinks.find("[[uplink]]").unwrap());
        let text = without_uplinks.replace("tls = {", "#").replace("0.0.0.0", "127.0.0.1").replace("\"auto\"", "\"rten\"");
        let tried = Config::parse("profile", &text, &folder, Files::Required);
        assert!(tried.config.is_ok(), "{}", tried.config.unwrap_err());
        let policy = config.policy(&tried.models).unwrap();
        assert_eq!(
            policy.streams.iter().filter(|s| s.model.is_some()).count(),
            config.stream.iter().filter(|s| s.model.is_some()).count()
        );
        for user in &config.user {
            assert!(verify(user.password_hash.as_ref(), b"change-me"), "{}", path.display());
        }
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(names, ["passthrough.toml", "vibration.toml", "water.toml"]);
}
