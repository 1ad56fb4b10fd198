use super::*;

#[test]
fn every_built_in_profile_is_read_and_described() {
    let profiles: Vec<LinkProfile> = LinkProfile::builtin().collect();
    assert_eq!(profiles.len(), LinkProfile::builtin_names().count());
    for (profile, name) in profiles.iter().zip(LinkProfile::builtin_names()) {
        assert_eq!(profile.name, name);
        assert!(!profile.description.is_empty(), "{name}");
        assert_eq!(LinkProfile::resolve(name).unwrap(), *profile);
    }
}

#[test]
fn the_folder_holds_the_built_in_profiles_and_no_other() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/links");
    let mut found: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut names: Vec<&str> = LinkProfile::builtin_names().collect();
    found.sort();
    names.sort_unstable();
    assert_eq!(found, names);
}

#[test]
fn the_default_link_breaks_for_twelve_seconds_after_twenty() {
    let profile = LinkProfile::resolve("default").unwrap();
    assert_eq!(profile.up.rate.bits_per_s(), 5_000_000);
    assert_eq!((profile.up.delay.as_millis(), profile.up.jitter.as_millis()), (40, 10));
    assert_eq!(profile.up.loss.ppm(), 5_000);
    let [outage] = &profile.outages[..] else { panic!("{:?}", profile.outages) };
    assert_eq!((outage.start, outage.length, outage.every), (Duration::from_secs(20), Duration::from_secs(12), Duration::ZERO));
}

#[test]
fn a_profile_without_down_is_the_same_both_ways() {
    let profile = LinkProfile::from_toml("f", "[up]\nrate = \"1Mbit/s\"\n", Path::new(".")).unwrap();
    assert_eq!(profile.up, profile.down);
    let profile = LinkProfile::from_toml("f", "[down]\nrate = \"1Mbit/s\"\n", Path::new(".")).unwrap();
    assert_ne!(profile.up, profile.down);
}

#[test]
fn every_mistake_in_a_profile_is_shown() {
    let text = "\
[up]
rate = \"0bit/s\"
rate_swing = \"99%\"
delay = 40
los = \"1%\"
loss_burst = 0
mtu = \"100B\"
trace = \"missing.up\"
[down]
queue = \"1KiB\"
trace_name = \"a\"
[[outage]]
start = \"1s\"
[[outage]]
length = \"10s\"
every = \"12s\"
shift = \"3s\"
direction = \"sideways\"
";
    let shown = LinkProfile::from_toml("x.toml", text, Path::new(".")).unwrap_err().to_string();
    for part in [
        "x.toml:2:8",
        "0bit/s is not between",
        "99% is more than 95%",
        "x.toml:4:9",
        "did you mean `loss`?",
        "0 is not between 1 and 1000",
        "100 bytes are not between 1228 and 65535",
        "x.toml:8:9",
        "missing.up cannot be read",
        "1KiB is less than the largest packet",
        "there is no `trace` to choose from",
        "x.toml:12:1",
        "12s is less than `length` and `shift` together",
        "it can be both, up, down",
    ] {
        assert!(shown.contains(part), "`{part}` in\n{shown}");
    }
}

#[test]
fn traces_are_read_from_beside_the_profile_or_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("a.up"), "1\n2\n3\n").unwrap();
    fs::write(path("b.csv"), "trace,t_s,mbps\none,0,1\ntwo,0,2\n").unwrap();
    fs::write(path("bad.up"), "1\n2\nthree\n").unwrap();
    fs::write(path("link.toml"), "[up]\ntrace = \"a.up\"\n[down]\ntrace = \"b.csv\"\ntrace_name = \"two\"\n").unwrap();
    let rate = |side: &LinkSide| side.curve(0).bits_per_s(0);

    let profile = LinkProfile::resolve(&path("link.toml")).unwrap();
    assert_eq!((rate(&profile.up), rate(&profile.down)), (12e6, 2e6));
    assert_eq!(rate(&LinkProfile::resolve(&path("a.up")).unwrap().up), 12e6);
    assert_eq!(rate(&LinkProfile::resolve(&(path("b.csv") + "#one")).unwrap().down), 1e6);
    let error = |wanted: &str| LinkProfile::resolve(wanted).unwrap_err().to_string();
    assert!(error(&path("b.csv")).contains("choose one with `trace_name`: one, two"));
    assert!(error(&path("bad.up")).contains("line 3: `three` is not a whole number"));
    assert!(error(&path("none.toml")).contains("cannot be read"));
    assert!(error("ltee").contains("known are default, ethernet, lte"));
}
