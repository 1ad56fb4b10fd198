use super::*;

fn parse(text: &str) -> Checked {
    Config::parse("edge.toml", text, Path::new("/etc/weir"), Files::Ignored)
}

#[test]
fn an_empty_file_is_the_defaults_and_only_warns() {
    let checked = parse("");
    assert_eq!(checked.config.unwrap(), Config::default());
    let warned: Vec<_> = checked.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(warned, ["stream", "uplink", "user"]);
}
