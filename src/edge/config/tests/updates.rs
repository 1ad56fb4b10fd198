//! Models that come to a box while it runs: what may be asked of them.

use super::*;

const KEY: &str = "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

#[test]
fn what_cannot_be_meant_is_refused_at_its_line_with_a_reason() {
    for (key, part) in [
        ("key = \"ed25519:00\"", "not a public key"),
        ("size_limit = \"1KiB\"", "is not within 1MiB to 16GiB"),
        ("memory_limit = \"1MiB\"", "is not within 32MiB to 16GiB"),
        ("answer_timeout = \"10ms\"", "is not within 50ms to 1m"),
        ("windows = 0", "0 is not within 10 to 1000000"),
        ("agreement_min = 90.0", "90 is not within 0 to 1"),
        ("share = 2.0", "2 is not within 0 to 1"),
        ("day_bytes = \"0B\"", "is not within 1KiB to 1TiB"),
        ("month_bytes = \"12B\"", "is not within 1KiB to 1TiB"),
        ("stage_timeout = \"1s\"", "1s is not within 10s to 30d"),
    ] {
        let errors = parse(&format!("[infer.updates]\n{key}\n")).config.expect_err(key);
        let [error] = errors.errors() else { panic!("not one mistake in {key}\n{errors}") };
        assert!(error.line == 2 && error.message.contains(part), "{key}: {errors}");
        assert!(!error.hint.is_empty() || key.starts_with("key"), "{key}: {errors}");
    }
}

#[test]
fn a_key_without_a_model_to_replace_is_a_warning_and_with_one_it_is_applied() {
    let alone = parse(&format!("[infer.updates]\nkey = \"{KEY}\"\n"));
    assert!(alone.warnings.iter().any(|warning| warning.to_string().contains("there is no model that they could replace")));
    let text = format!("[infer.updates]\nkey = \"{KEY}\"\nwindows = 50\nshare = 0.25\nstage_timeout = \"1h\"\n");
    let config = parse(&text).config.unwrap_or_else(|err| panic!("{err}"));
    assert_eq!(config.infer.updates.key.as_ref().map(ToString::to_string).as_deref(), Some(KEY));
    let rules = config.infer.updates.rules();
    let fetch = config.infer.updates.fetch_rules().expect("there is a key");
    assert_eq!((fetch.package_len_max, fetch.day_bytes, fetch.metered), (65 << 20, 64 << 20, false));
    assert_eq!((rules.windows, rules.share_ppm, rules.stage_us_max), (50, 250_000, 3_600_000_000));
}
