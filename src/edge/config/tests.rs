use std::path::PathBuf;

use weir_logic::ids::Class;
use weir_logic::lanes::Durability;
use weir_logic::mqtt::{ConnLimits, RouterLimits, Secret, UserIndex, Version};
use weir_logic::policy::StreamFidelity;

use super::*;

mod overlay;
mod shipped;
mod tasks;
mod updates;
mod wrong;

/// Checks text as if it were a file in the repository's `config`, without looking at the files it names.
fn parse(text: &str) -> Checked {
    Config::parse("edge.toml", text, &root().join("config"), Files::Ignored)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn info(model: &str, channels: usize) -> ModelInfo {
    ModelInfo {
        model: model.to_owned(),
        recurrent: false,
        name: "watch-small".into(),
        version: "1".into(),
        channels,
        window: 128,
        rate_hz: 50.0,
        labels: vec!["ROW".to_owned()],
        confidence: Some((0.0, 0.6)),
    }
}

#[test]
fn an_empty_file_is_the_defaults_and_only_warns() {
    let checked = parse("");
    assert_eq!(checked.config.unwrap(), Config::default().resolved(&root().join("config")));
    let warned: Vec<_> = checked.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(warned, ["stream", "uplink", "user"]);
}

#[test]
fn the_default_limits_of_clients_are_those_of_the_core_with_fewer_devices() {
    let mqtt = Mqtt::default();
    assert_eq!(mqtt.conn_limits(), ConnLimits::default());
    assert_eq!(mqtt.router_limits(), RouterLimits { devices_max: 8_192, ..RouterLimits::default() });
}

#[test]
fn a_lane_that_leaves_keys_out_keeps_the_defaults_of_its_class() {
    let config = parse("[lane.critical]\ndurability = \"disk\"\n[lane.bulk]\nttl = \"0s\"\n").config.unwrap();
    let default = Lanes::default();
    assert_eq!(config.lane.critical, Lane { durability: Durability::Disk, ..default.critical });
    assert_eq!(config.lane.high, default.high);
    let policies = config.lane.policies();
    assert_eq!(policies[Class::Bulk.index()].ttl_us, None, "no time is no limit");
    assert_eq!(policies[Class::Critical.index()].share, 8);
}

#[test]
fn the_default_caps_come_to_less_than_45_percent_of_the_default_buffer() {
    let total: u64 = Class::ALL.iter().map(|class| Lanes::default().of(*class).cap.get()).sum();
    let limit = Buffer::default().caps_limit().get();
    assert!(total <= limit && total > limit * 9 / 10, "{total} of {limit}");
}

#[test]
fn paths_are_relative_to_the_folder_of_the_file() {
    let text = "[gateway]\ndata_dir = \"data\"\n[[listen]]\ntls = { cert = \"a.crt\", key = \"/k/a.key\", client_ca = \"ca.crt\" }\n\
                [[model]]\nname = \"m\"\nmanifest = \"m.toml\"\n[tls]\nca = \"pki/ca.crt\"\n[admin]\nunix = \"a.sock\"\n";
    let config = Config::parse("x", text, Path::new("/c"), Files::Ignored).config.unwrap();
    let tls = config.listen[0].tls.as_ref().unwrap();
    let found = [&config.gateway.data_dir, &tls.cert, &tls.key, &config.model[0].manifest, &config.tls.ca, &config.tls.cert];
    let expected = ["/c/data", "/c/a.crt", "/k/a.key", "/c/m.toml", "/c/pki/ca.crt", "/etc/weir/gateway.crt"];
    assert_eq!(found.map(|path| path.to_str().unwrap()), expected);
    assert_eq!(tls.client_ca.as_deref(), Some(Path::new("/c/ca.crt")));
    assert_eq!(config.admin.unix.as_deref(), Some(Path::new("/c/a.sock")));
}

const STREAMS: &str = r##"
[[listen]]
allow_anonymous = true
[[user]]
name = "u"
certificate_cn = "u"
publish = ["a/#"]
[[model]]
name = "first"
manifest = "x.toml"
[[model]]
name = "second"
manifest = "y.toml"
[[stream]]
name = "imu"
topics = ["a/+/imu"]
fidelity = "verdict"
class = "high"
payload = { format = "packed", element = "i16", channels = 6, rate_hz = 50.0 }
model = "second"
ack = "record"
[[stream]]
name = "mean"
topics = ["a/+/t", "a/u"]
fidelity = "aggregate"
payload = { format = "number" }
aggregate = { every = "1m" }
keep = { every = "10m", samples = [{ channel = 0, above = 80 }] }
[[uplink]]
name = "one"
address = "localhost:4433"
"##;

#[test]
fn a_checked_configuration_becomes_a_policy() {
    let config = parse(STREAMS).config.unwrap();
    let policy = config.policy(&[info("first", 6), info("second", 6)]).unwrap();
    assert_eq!(policy.streams.len(), 2);
    let imu = &policy.streams[0];
    assert_eq!((imu.class, imu.fidelity, imu.ack_record), (Class::High, StreamFidelity::Verdict, true));
    let model = imu.model.as_ref().unwrap();
    assert_eq!((model.index, &*model.name, model.window.length(), model.window.step()), (1, "watch-small", 128, 128));
    let mean = &policy.streams[1];
    assert!(mean.aggregate.is_some() && mean.keep.is_some() && mean.model.is_none() && !mean.ack_record);
    assert_eq!(mean.filters, ["a/+/t", "a/u"]);
    let users: Vec<_> = policy.users.iter().map(|user| (&*user.name, user.publish.clone())).collect();
    assert_eq!(users, [("u", vec!["a/#".to_owned()]), ("", vec!["#".to_owned()])]);
    assert_eq!(config.anonymous_user(), Some(UserIndex(1)));
    assert_eq!((policy.uplinks.len(), policy.connections_max), (1, 500));
    assert_eq!(policy.session.backoff_us, (500_000, 30_000_000));
    assert_eq!(policy.lanes_limits.block_target_bytes, 128 * 1024);
}

#[test]
fn a_stream_goes_without_a_model_that_is_not_loaded() {
    let config = parse(STREAMS).config.unwrap();
    let policy = config.policy(&[info("first", 6)]).unwrap();
    assert!(policy.streams[0].model.is_none());
}

#[test]
fn a_model_that_does_not_fit_its_stream_gives_no_policy() {
    let config = parse(STREAMS).config.unwrap();
    let error = config.policy(&[info("second", 3)]).unwrap_err();
    assert_eq!(error.to_string(), "stream `imu`: the payload has 6 channels, model `second` takes 3; run `weir check`");
}

#[test]
fn uplinks_know_their_host_certificate_name_and_family() {
    let uplink = |address: &str| Uplink { address: address.to_owned(), ..Uplink::default() };
    fn main(uplink: &Uplink) -> UplinkPath<'_> {
        uplink.paths().next().unwrap()
    }
    for (address, host) in [("a.example:4433", "a.example"), ("10.0.0.1:1", "10.0.0.1"), ("[fd00::1]:4433", "fd00::1")] {
        assert_eq!(uplink(address).host_port().map(|(host, _)| host), Some(host));
        assert_eq!(main(&uplink(address)).certificate_name(), host);
    }
    for address in ["a.example", "a.example:0", ":4433", "fd00::1:4433", "https://a:4433", "a b:4433", "[a]:4433", "a:70000"] {
        assert_eq!(uplink(address).host_port(), None, "{address}");
    }
    assert_eq!(main(&uplink("a:1")).local_addr().to_string(), "0.0.0.0:0");
    assert_eq!(main(&uplink("[fd00::1]:1")).local_addr().to_string(), "[::]:0");
    let bound = Uplink { bind: Some("192.168.8.100".parse().unwrap()), ..uplink("a:1") };
    assert_eq!(main(&bound).local_addr().to_string(), "192.168.8.100:0");
}

#[test]
fn a_fallback_is_an_uplink_of_its_own_behind_the_one_that_it_stands_in_for() {
    let text = "[[uplink]]\nname = \"dsl\"\naddress = \"a.example:4433\"\n\
                [[uplink]]\nname = \"lte\"\naddress = \"a.example:4433\"\ninterface = \"wwan0\"\nmetered = true\nclasses = [\"critical\"]\n\
                fallback = { address = \"b.example:443\", proxy = \"http://u:secret@[fd00::1]:3128\" }\n";
    let config = parse(text).config.unwrap();
    let paths: Vec<_> = config.uplink_paths().collect();
    let shown = |path: &UplinkPath<'_>| {
        (path.name(), path.address().to_owned(), path.certificate_name().to_owned(), path.local_addr().to_string())
    };
    let of = |name: &str, address: &str, host: &str, local: &str| {
        (name.to_owned(), address.to_owned(), host.to_owned(), local.to_owned())
    };
    assert_eq!(
        paths.iter().map(shown).collect::<Vec<_>>(),
        [
            of("dsl", "a.example:4433", "a.example", "0.0.0.0:0"),
            of("lte", "a.example:4433", "a.example", "0.0.0.0:0"),
            of("lte/tcp", "b.example:443", "b.example", "[::]:0"),
        ]
    );
    let uplinks = config.policy(&[]).unwrap().uplinks;
    assert_eq!(uplinks.iter().map(|of| of.stands_in_for).collect::<Vec<_>>(), [None, None, Some(1)]);
    // It is the same link: what that costs, and who may use it, holds for both.
    let (main, fallback) = (&uplinks[1], &uplinks[2]);
    assert_eq!((&main.meter, main.classes, &*fallback.name), (&fallback.meter, fallback.classes, "lte/tcp"));
    let shown = config.summary(&[]).to_string();
    assert!(shown.contains("lte/tcp  b.example:443   b.example         wwan0 http://...@[fd00::1]:3128"), "{shown}");
}

#[test]
fn the_summary_shows_streams_lanes_uplinks_and_what_memory_comes_to() {
    let config = parse(STREAMS).config.unwrap();
    let models = [info("second", 6)];
    let summary = config.summary(&models);
    let shown = summary.to_string();
    for part in [
        "imu     high    verdict    second",
        "critical  through  32MiB  7d   8",
        "one     localhost:4433  localhost",
        "anonymous)",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    let devices = summary.memory().into_iter().find(|(what, ..)| *what == "devices").unwrap().1;
    // A window of 128 samples of 6 f32 and an i64 is 4 KiB.
    assert!(devices > 8_192 * 4_096 && devices < 8_192 * 8_192, "{devices}");
}

#[test]
fn files_that_are_missing_are_mistakes_for_the_check_and_models_only_warnings_for_the_run() {
    let text = "[[model]]\nname = \"m\"\nmanifest = \"none.toml\"\n[[stream]]\nname = \"s\"\ntopics = [\"a\"]\nmodel = \"m\"\n\
                [[uplink]]\nname = \"u\"\naddress = \"a:1\"\n[tls]\nca = \"none.crt\"\n";
    let folder = root().join("config");
    let lines = |checked: &Checked| {
        checked.config.as_ref().unwrap_err().errors().iter().map(|e| (e.line, e.key.clone())).collect::<Vec<_>>()
    };
    let at = |line, key: &str| (line, key.to_owned());
    let required = Config::parse("edge.toml", text, &folder, Files::Required);
    // The defaults `tls.cert` is not in the file: the table that would hold it is shown.
    assert_eq!(lines(&required), [at(3, "model[0].manifest"), at(11, "tls.cert"), at(12, "tls.ca")]);
    let run = Config::parse("edge.toml", text, &folder, Files::ModelsOptional);
    assert_eq!(lines(&run), [at(11, "tls.cert"), at(12, "tls.ca")]);
    assert!(
        run.warnings.iter().any(|w| w.line == 3 && w.message.ends_with("its streams go without a model")),
        "{:?}",
        run.warnings
    );
    assert!(parse(text).config.is_ok());
}

#[test]
fn a_model_is_loaded_and_held_against_its_stream() {
    let text = |channels: usize, window: &str| {
        format!(
            "[infer]\nbackend = \"rten\"\n[[model]]\nname = \"m\"\nmanifest = \"../models/watch-small.toml\"\n[[stream]]\nname = \"s\"\n\
             topics = [\"a\"]\nmodel = \"m\"\npayload = {{ format = \"packed\", element = \"i16\", channels = {channels}, rate_hz = 100.0 }}\n\
             window = {{ length = \"{window}\" }}\nkeep = {{ verdicts = [{{ labels = [\"ROW\", \"SIT\"] }}] }}\n"
        )
    };
    let folder = root().join("config");
    let checked = Config::parse("edge.toml", &text(3, "2.56s"), &folder, Files::Required);
    let errors = checked.config.unwrap_err();
    let found: Vec<_> = errors.errors().iter().map(|e| (e.line, e.message.as_str(), e.hint.as_str())).collect();
    assert_eq!(
        found,
        [
            (
                10,
                "the payload has 3 channels, model `m` takes 6",
                "name the model's channels in its order, or choose another model"
            ),
            (
                10,
                "the payload has 100 samples a second, model `m` was trained at 50",
                "sample at the model's rate, or choose another model"
            ),
            (11, "the window has 256 samples, model `m` takes 128", "write length = \"128 samples\""),
            (12, "model `m` has no label `SIT`", "its labels are: PEN, ABD, FEL, IR, ER, TRAP, ROW"),
        ]
    );
    let good = text(6, "128 samples").replace("100.0", "50.0").replace(", \"SIT\"", "");
    let checked = Config::parse("edge.toml", &good, &folder, Files::Required);
    assert!(checked.config.is_ok(), "{}", checked.config.unwrap_err());
    assert_eq!(checked.models[0].window, 128);
}

#[test]
fn a_damaged_model_is_named_with_its_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let models = root().join("models");
    std::fs::copy(models.join("watch-small.toml"), folder.path().join("watch-small.toml")).unwrap();
    std::fs::write(folder.path().join("watch-small.onnx"), b"not a model").unwrap();
    let text = "[[model]]\nname = \"m\"\nmanifest = \"watch-small.toml\"\n[[stream]]\nname = \"s\"\ntopics = [\"a\"]\nmodel = \"m\"\n\
                payload = { format = \"packed\", element = \"i16\", channels = 6, rate_hz = 50.0 }\n";
    let errors = Config::parse("edge.toml", text, folder.path(), Files::Required).config.unwrap_err();
    let shown = errors.to_string();
    assert_eq!(errors.errors().len(), 1, "{shown}");
    assert!(
        shown.contains("has sha256") && shown.contains("edge.toml:3:12") && shown.contains("hint: copy the file again"),
        "{shown}"
    );
}

#[test]
fn warnings_name_what_surprises_at_its_line() {
    let warned = |text: &str| {
        let checked = parse(text);
        assert!(checked.config.is_ok(), "{}", checked.config.unwrap_err());
        checked.warnings
    };
    let stream = "[[stream]]\nname = \"s\"\ntopics = [\"a/#\"]\npayload = { format = \"number\" }\n";
    for (text, line, part) in [
        ("[[listen]]\nbind = \"0.0.0.0:1883\"\ninsecure = true\n".to_owned(), 3, "in clear"),
        ("[[listen]]\ninsecure = true\n".to_owned(), 2, "no effect"),
        (
            "[[listen]]\nbind = \"[::]:1\"\ninsecure = true\nallow_anonymous = true\n".to_owned(),
            4,
            "anybody who reaches [::]:1",
        ),
        (format!("{stream}[[stream]]\nname = \"t\"\ntopics = [\"a/+/x\"]\n"), 7, "those go to `t`"),
        (format!("{stream}window = {{ length = \"5 samples\" }}\n"), 5, "a window without a model has no effect"),
        (format!("{stream}aggregate = {{ every = \"1m\" }}\n"), 5, "no effect at fidelity `raw`"),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"spBv1.0/g/DDATA/+/+\"]\n\
             payload = { format = \"sparkplug\", fields = [\"rpm\"] }\n"
                .to_owned(),
            3,
            "it takes DDATA without DBIRTH",
        ),
        (format!("{stream}ack = \"record\"\n"), 5, "`ack` has no effect"),
        (format!("{stream}keep = {{ verdicts = [{{ labels = [\"x\"] }}] }}\n"), 5, "these rules keep none"),
        (
            format!("{stream}[[user]]\nname = \"u\"\ncertificate_cn = \"u\"\npublish = [\"b\"]\n"),
            3,
            "no user may publish to stream `s`",
        ),
        (
            format!("{stream}[[user]]\nname = \"u\"\ncertificate_cn = \"u\"\npublish = [\"b\"]\n"),
            7,
            "no listener takes client certificates",
        ),
        (
            format!("{stream}[[user]]\nname = \"u\"\ncertificate_cn = \"u\"\npublish = [\"b\"]\n"),
            8,
            "no stream takes what user `u` may publish",
        ),
        ("[lane.critical]\ndurability = \"memory\"\n".to_owned(), 2, "acknowledged before they are safe"),
        ("[[model]]\nname = \"m\"\nmanifest = \"m.toml\"\n".to_owned(), 2, "no stream names model `m`"),
        (
            "[[uplink]]\nname = \"a\"\naddress = \"h:1\"\n[[uplink]]\nname = \"b\"\naddress = \"h:1\"\n".to_owned(),
            6,
            "the same way as uplink `a`",
        ),
    ] {
        let warnings = warned(&text);
        assert!(warnings.iter().any(|w| w.line == line && w.message.contains(part)), "{part}\n{warnings:#?}");
    }
}

const BROKERS: &str = r##"
[gateway]
name = "hall-3"
[[broker]]
name = "site"
address = "10.0.0.1:8883"
tls = { ca = "ca.crt" }
username = "weir"
version = "3.1.1"
keep_alive = "1m"
[[broker]]
name = "line"
address = "localhost:1883"
client_id = "press"
streams = ["alarm"]
qos = 2
durability = "lane"
[[stream]]
name = "alarm"
topics = ["a/+/alarm", "a/1/alarm", "a/#"]
class = "critical"
[[stream]]
name = "values"
topics = ["a/+/value"]
[[stream]]
name = "states"
topics = ["b/+", "+/c"]
"##;

#[test]
fn a_broker_has_a_client_for_each_class_of_its_streams() {
    let checked = parse(BROKERS);
    let config = checked.config.unwrap();
    let secret = Secret::new(b"x");
    let policies = config.broker_policies("hall-3", &[Some(secret.clone()), None]);
    let seen: Vec<_> = policies.iter().map(|p| (&*p.name, p.class, &*p.subscriber.client_id, p.streams.clone())).collect();
    assert_eq!(
        seen,
        [
            ("site", Class::Critical, "weir-hall-3-critical", vec![0]),
            ("site", Class::Normal, "weir-hall-3-normal", vec![1, 2]),
            ("line", Class::Critical, "press-critical", vec![0]),
        ]
    );
    let first = &policies[0].subscriber;
    assert_eq!(*first.filters, ["a/#".to_owned()], "what another filter takes is not subscribed to as well");
    assert_eq!((first.version, first.qos, first.keep_alive_s, first.session_expiry_s), (Version::V311, 1, 60, 604_800));
    assert_eq!((first.username.as_deref(), &first.password), (Some("weir"), &Some(secret)));
    assert!(policies[0].to_disk && !policies[2].to_disk);
    assert_eq!((policies[2].subscriber.version, policies[2].subscriber.qos), (Version::V5, 2));
    assert_eq!(policies[0].backoff_us, (500_000, 30_000_000));
    let warned: Vec<_> = checked.warnings.iter().filter(|warning| warning.key.starts_with("broker")).collect();
    let [warning] = &warned[..] else { panic!("{warned:#?}") };
    assert!(warning.message.contains("both `b/+` and `+/c`"), "{}", warning.message);
}

#[test]
fn the_summary_says_what_brokers_must_be_set_to() {
    let config = parse(BROKERS).config.unwrap();
    let text = config.summary(&[]).to_string();
    for part in [
        "weir-hall-3-critical",
        "press-critical",
        "broker site must be set so",
        "max_inflight_messages 1000, max_queued_messages 0",
        "persistent_client_expiration 7d or longer",
        "mqtt.max_mqueue_len infinity",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!parse("").config.unwrap().summary(&[]).to_string().contains("broker"));
}
