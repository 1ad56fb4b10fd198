//! Wrong configurations: each is refused at its line, with what to write instead.

use weir_logic::price::{Ladder, Level, PriceLimits};

use super::*;

/// A configuration, the line of its one mistake, a part of the message, a part of the hint (empty if there is none because
/// the message says it all).
type Case = (&'static str, usize, &'static str, &'static str);

fn assert_refused((text, line, message, hint): Case) {
    assert_refused_text(text, line, message, hint);
}

fn assert_refused_text(text: &str, line: usize, message: &str, hint: &str) {
    let errors = parse(text).config.expect_err(text);
    let [error] = errors.errors() else { panic!("not one mistake in {text}\n{errors}") };
    assert_eq!(error.line, line, "{text}\n{errors}");
    assert!(error.message.contains(message), "{text}\n{errors}");
    assert!(error.hint.contains(hint) && error.hint.is_empty() == hint.is_empty(), "{text}\n{errors}");
}

#[test]
fn what_is_not_of_its_type_is_refused() {
    for case in [
        ("[gateway]\ndata_dirr = \"/x\"", 2, "unknown key `data_dirr`", "did you mean `data_dir`?"),
        ("[buffers]\nmemory = \"16MiB\"", 1, "unknown key `buffers`", "did you mean `buffer`?"),
        ("[lane.critcal]\ncap = \"1MiB\"", 1, "unknown key `critcal`", "did you mean `critical`?"),
        ("[session]\nping = 1", 2, "the bare number 1 is refused", "write \"1s\""),
        ("[buffer]\n\nsize_limit = 512", 3, "the bare number 512 is refused", "a size is written like"),
        ("[session]\nping = \"1\"", 2, "`1` has no unit", ""),
        ("[buffer]\ncache = \"4 megs\"", 2, "`megs` is not a unit of a size", ""),
        ("[session]\nping = 1s", 2, "not TOML", "write \"1s\", with quotes"),
        ("[[listen]]\nbind = \"localhost:1883\"", 2, "not an IP address with a port", "\"127.0.0.1:1883\""),
        ("[[listen]]\nbind = \"127.0.0.1\"", 2, "not an IP address with a port", "\"127.0.0.1:1883\""),
        ("[mqtt]\ninflight_max = \"20\"", 2, "expected u16", "write 20 without quotes"),
        ("[lane.critical]\noverflow = \"thin\"", 2, "critical records are never thinned", "write overflow = \"evict\""),
        ("[lane.bulk]\noverflow = \"drop\"", 2, "unknown value `drop`", "it can be thin, evict"),
        ("[lane.bulk]\ndurability = \"ram\"", 2, "unknown value `ram`", "it can be disk, through, memory"),
        ("[log]\nformat = \"jsn\"", 2, "unknown value `jsn`", "did you mean `json`?"),
        ("[infer]\nbackend = \"onnx\"", 2, "unknown value `onnx`", "it can be auto, ort, rten"),
        ("[[user]]\nname = \"u\"\npassword_hash = \"hunter2\"", 3, "not a password hash", "weir passwd"),
        ("[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nbind = \"eth0\"", 4, "`eth0` is not an IP address", "192.168.8.100"),
    ] {
        assert_refused(case);
    }
}

#[test]
fn a_bare_number_is_refused_wherever_a_unit_belongs() {
    let text = "[mqtt]\npacket_bytes_max = 1000\nkeep_alive_max = 60\n[lane.high]\ncap = 1\nttl = 7\n[buffer]\nmemory = 16\n\
                [session]\nsilence = 5.0\n[[stream]]\nname = \"s\"\ntopics = [\"a\"]\nwindow = { length = 128 }\n";
    let errors = parse(text).config.unwrap_err();
    let lines: Vec<_> = errors.errors().iter().map(|error| error.line).collect();
    assert_eq!(lines, [2, 3, 5, 6, 8, 10, 14], "{errors}");
}

#[test]
fn listeners_users_and_limits_that_cannot_be_meant_are_refused() {
    for case in [
        ("[[listen]]\nbind = \"0.0.0.0:1883\"", 2, "passwords and data would go over it in clear", "`insecure = true`"),
        ("[[listen]]\n[[listen]]\nbind = \"127.0.0.1:1883\"", 3, "bound to 127.0.0.1:1883 already", "a port of its own"),
        ("[[listen]]\ntls = { cert = \"\", key = \"k\" }", 2, "the certificate has no path", "PEM"),
        ("[mqtt]\nclients_max = 0", 2, "0 is not within 1 to 10000", "memory"),
        ("[mqtt]\npacket_bytes_max = \"8MiB\"", 2, "8MiB is not within 1KiB to 1MiB", "not decoded"),
        ("[mqtt]\nkeep_alive_max = \"1.5s\"", 2, "not a whole number of seconds", "\"0s\" is no limit"),
        ("[mqtt]\nanonymous_publish = [\"a/#/b\"]", 2, "must be the last level", "`+` stands for one level"),
        ("[[user]]\npublish = [\"a\"]\ncertificate_cn = \"x\"", 1, "a user's name has 1 to 256 bytes", "add name"),
        ("[[user]]\nname = \"u\"", 2, "no way to prove itself", "add password_hash"),
        (
            "[[user]]\nname = \"u\"\ncertificate_cn = \"a\"\n[[user]]\nname = \"u\"\ncertificate_cn = \"b\"",
            5,
            "another user named `u`",
            "a name of its own",
        ),
        (
            "[[user]]\nname = \"u\"\ncertificate_cn = \"a\"\n[[user]]\nname = \"v\"\ncertificate_cn = \"a\"",
            6,
            "the certificate `a` already",
            "one user",
        ),
        (
            "[[user]]\nname = \"u\"\ncertificate_cn = \"a\"\npublish = [\"a/b+\"]",
            4,
            "mixes a wildcard with text",
            "a level of its own",
        ),
    ] {
        assert_refused(case);
    }
}

#[test]
fn values_and_prices_that_cannot_be_meant_are_refused() {
    let value = |keys: &str| format!("[[stream]]\nname = \"s\"\ntopics = [\"a\"]\n{keys}\n");
    for (keys, line, message, hint) in [
        ("value = { weight = 0.0 }", 4, "0 is not above 0", "a tenth"),
        ("value = { late_value = 2.0 }", 4, "2 is not within 0 to 1", "part of the worth"),
        ("value = { deadline = \"1m\", late_until = \"30s\" }", 4, "30s is before the deadline of 1m", "longer"),
        ("value = { deadline = 60 }", 4, "the bare number 60 is refused", "write"),
        ("value = { floor = \"verdict\" }", 4, "unknown value `verdict`", "raw, thin2, thin4, aggregate"),
        ("value = { floor = \"aggregate\" }", 4, "opaque payloads cannot be aggregated", "thin4"),
        ("class = \"critical\"\nvalue = { floor = \"thin2\" }", 5, "a critical stream is never thinned", "another class"),
        ("value = { worth = [0.9, 0.95, 0.5] }", 4, "thin4 is worth 0.95", "below the one before"),
    ] {
        assert_refused_text(&value(keys), line, message, hint);
    }
    for case in [
        ("[plan]\nhorizon = \"1s\"", 2, "1s is not within 10s to 10m", "foreseen"),
        ("[plan]\nfineness = 3.0", 2, "3 is not within 0.5 to 2", "fresher"),
        ("[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nrate = \"1bit/s\"", 4, "is not within 1kbit/s", "measured"),
    ] {
        assert_refused(case);
    }
}

#[test]
fn a_value_is_taken_as_written() {
    let text = "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\npayload = { format = \"number\" }\n\
                value = { weight = 4.0, deadline = \"5m\", late_value = 0.5, late_until = \"50m\", ladder = \"wave\", floor = \"aggregate\" }\n";
    let policy = parse(text).config.unwrap().policy(&[]).unwrap();
    let value = policy.streams[0].value.unwrap();
    assert!((value.weight - 4.0 / 125_000.0).abs() < 1e-12 && !value.is_exempt);
    assert_eq!((value.lateness.d0_us, value.lateness.d1_us, value.lateness.u1), (300_000_000, Some(3_000_000_000), 0.5));
    assert_eq!(value.ladder, Ladder::WAVE.down_to(Level::Aggregate));
    assert_eq!(policy.price, PriceLimits::default());
}

#[test]
fn streams_and_models_that_contradict_themselves_are_refused() {
    for case in [
        ("[[stream]]\ntopics = [\"a\"]", 1, "the stream has no name", "add name"),
        ("[[stream]]\nname = \"My Stream\"\ntopics = [\"a\"]", 2, "`My Stream` is not a name", "press-vibration"),
        ("[[stream]]\nname = \"s\"", 1, "the stream has no topics", "add topics"),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\n[[stream]]\nname = \"s\"\ntopics = [\"b\"]",
            5,
            "another stream named `s`",
            "of its own",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\n[[stream]]\nname = \"t\"\ntopics = [\"b\", \"a\"]",
            6,
            "a topic of stream `s` already",
            "remove one",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"$share/g/a\"]",
            3,
            "`$share/` is for subscribers",
            "write the filter behind the group: `a`",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\nfidelity = \"aggregate\"",
            4,
            "needs the table `aggregate`",
            "every = \"1m\"",
        ),
        ("[[stream]]\nname = \"s\"\ntopics = [\"a\"]\nfidelity = \"verdict\"", 4, "needs a model", "name one in `model`"),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\nmodel = \"m\"",
            4,
            "there is no model `m`",
            "add [[model]] with name = \"m\"",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\naggregate = { every = \"1m\" }",
            1,
            "the stream has no values",
            "choose a payload format",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\npayload = { format = \"json\", fields = [\"temp\"] }",
            4,
            "`temp` is not a JSON pointer",
            "begin each step with `/`",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\n[stream.payload]\nformat = \"packed\"\nelement = \"i16\"\nchannels = 2\nscale = [1.0]",
            8,
            "`scale` has 1 numbers for 2 channels",
            "give one for all, or one each",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\npayload = { format = \"number\" }\nmodel = \"m\"\n[stream.window]\nlength = \"5s\"\n[[model]]\nname = \"m\"\nmanifest = \"m\"",
            7,
            "`length` is a time, but the payload has no `rate_hz`",
            "\"N samples\"",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\npayload = { format = \"number\" }\n[stream.keep]\nsamples = [{ channel = 0, above = 1.0 }, { channel = 1, above = 1.0 }]",
            6,
            "names channel 1, but the stream has 1, counted from 0",
            "",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\npayload = { format = \"number\" }\n[stream.keep]\nsamples = [{ channel = 0, above = 1.0, below = 2.0 }]",
            6,
            "keeps everything",
            "swap them",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\npayload = { format = \"number\" }\nkeep = { every = \"1s\", spacing_min = \"2s\" }",
            5,
            "keep.spacing_min of 2000000 us is above keep.every",
            "raise every",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\npayload = { format = \"cbor\", fields = [\"/a\", \"/a/0\"] }",
            4,
            "JSON pointers `/a` and `/a/0` overlap",
            "a place of its own",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\npayload = { format = \"senml\", fields = [\"*temp\", \"*:temp\"] }",
            4,
            "`*temp` and `*:temp` are names of the same value",
            "of its own",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\n[stream.payload]\nformat = \"senml\"\nfields = [\"*a\", \"*b\"]\nunits = [\"V\"]",
            7,
            "`units` has 1 entries for 2 `fields`",
            "one each",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"plant/#\"]\npayload = { format = \"sparkplug\", fields = [\"rpm\"] }",
            3,
            "none of its topics is one of Sparkplug B",
            "spBv1.0/plant/#",
        ),
        (
            "[[stream]]\nname = \"s\"\ntopics = [\"spBv1.0/plant/#\"]\npayload = { format = \"sparkplug\", fields = [\"rpm\"] }\nvalue = { floor = \"thin2\" }",
            5,
            "Sparkplug B cannot be thinned",
            "floor = \"raw\"",
        ),
        ("[[model]]\nname = \"m\"", 1, "the model has no manifest", ".toml"),
        ("[infer]\nlibrary = \"libonnxruntime.so\"", 2, "is a relative path", "write the path from /"),
        ("[infer]\nqueue_windows_max = 0", 2, "0 is not within 1 to 65536", "memory"),
    ] {
        assert_refused(case);
    }
}

#[test]
fn lanes_uplinks_and_times_that_cannot_work_are_refused() {
    for case in [
        ("[lane.high]\nshare = 0", 2, "0 is not within 1 to 1000", "relative to each other"),
        ("[lane.high]\nttl = \"1s\"", 2, "1s is not within 1m to 366d", "\"0s\" for no limit"),
        ("[lane.high]\ncap = \"1KiB\"", 2, "1KiB is less than 256KiB", "some blocks"),
        (
            "[lane.bulk]\ncap = \"200MiB\"",
            2,
            "come to 376MiB, more than 45 % of buffer.size_limit, which is 230.3MiB",
            "\"836MiB\"",
        ),
        ("[buffer]\nsize_limit = \"256MiB\"", 2, "come to 224MiB", "set buffer.size_limit to \"498MiB\""),
        ("[buffer]\nmemory = \"256KiB\"", 2, "256KiB is not within 1MiB to 1GiB", "8 blocks"),
        ("[buffer]\ncache = \"1GiB\"", 2, "1GiB is not within 1MiB to 256MiB", "4MiB is enough"),
        ("[session]\nping = \"5s\"", 1, "silence of 5s is not longer than two pings of 5s", "more than \"10s\""),
        ("[session]\nsilence = \"1m\"", 2, "1m is not within 500ms to 12s", "QUIC ends a connection"),
        ("[session]\nbackoff_max = \"500ms\"\nbackoff_min = \"2s\"", 3, "longer than backoff_max", "swap them"),
        ("[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nmonth_bytes = \"5GB\"", 4, "is for metered uplinks", "metered = true"),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nmetered = true\nmonth_bytes = \"1MB\"",
            5,
            "less than 10 MB",
            "allow more",
        ),
        ("[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nclasses = []", 4, "no class may use this uplink", "at least one"),
        ("[plan]\ncritical_copies = 3", 2, "is not within 1 to 2", "helps nobody"),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nzone = \"us\"\n[[stream]]\nname = \"s\"\ntopics = [\"a\"]\nzones = [\"eu\"]",
            8,
            "no uplink leads where every stream of class normal may go",
            "give an uplink `zone`",
        ),
        ("[[uplink]]\nname = \"u\"", 1, "`` is not a host and a UDP port", "cloud.example.org:4433"),
        ("[[uplink]]\nname = \"u\"\naddress = \"https://h:1\"", 3, "not a host and a UDP port", "cloud.example.org:4433"),
        ("[[uplink]]\nname = \"u\"\naddress = \"h_!:1\"", 3, "is not a DNS name", "as in the cloud's certificate"),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"10.0.0.1:1\"\nbind = \"fd00::1\"",
            4,
            "one is IPv4, the other IPv6",
            "one family",
        ),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nfallback = { address = \"h\" }",
            4,
            "`h` is not a host and a TCP port",
            "cloud.example.org:443",
        ),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nfallback = {}",
            4,
            "is not a host and a TCP port",
            "cloud.example.org:443",
        ),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nfallback = { address = \"h_!:1\" }",
            4,
            "is not a DNS name",
            "as in the cloud's certificate",
        ),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nbind = \"10.0.0.2\"\nfallback = { address = \"[fd00::1]:1\" }",
            5,
            "one is IPv4, the other IPv6",
            "one family",
        ),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nbind = \"10.0.0.2\"\n[uplink.fallback]\naddress = \"[fd00::1]:1\"\nproxy = \"http://[fd00::1]:3128\"",
            7,
            "one is IPv4, the other IPv6",
            "one family",
        ),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nfallback = { address = \"h:2\", proxy = \"https://p:3128\" }",
            4,
            "only plain HTTP proxies are known",
            "http://proxy.example.org:3128",
        ),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nfallback = { address = \"h:2\", proxy = \"http://u@p:3128\" }",
            4,
            "not USER:PASSWORD",
            "http://USER:PASSWORD@10.0.0.1:3128",
        ),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nfallback = { address = \"h:2\", proxi = \"http://p:3128\" }",
            4,
            "unknown key `proxi`",
            "did you mean `proxy`?",
        ),
        (
            "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\ninterface = \"eth 0\"",
            4,
            "not the name of a network interface",
            "`ip link`",
        ),
        ("[admin]\nhttp = \"0.0.0.0:9180\"", 2, "not a loopback address", "127.0.0.1"),
        ("[gateway]\nname = \"Box 1\"", 2, "weir://gateway/Box 1", "as in `box-1`"),
        ("[log]\nfilter = \"weir=loud\"", 2, "not a log filter", "weir_edge=debug"),
    ] {
        assert_refused(case);
    }
}

#[test]
fn more_uplinks_and_fallbacks_than_the_cloud_takes_are_refused() {
    let uplink =
        |at: usize| format!("[[uplink]]\nname = \"u{at}\"\naddress = \"h:{}\"\nfallback = {{ address = \"h:443\" }}\n", at + 1);
    let text = |count| (0..count).map(uplink).collect::<String>();
    assert!(parse(&text(4)).config.is_ok());
    assert_refused_text(&text(5), 1, "10 uplinks and fallbacks exceed the limit of 8", "several boxes");
}

#[test]
fn a_proxys_password_is_not_shown_in_a_message() {
    let text =
        "[[uplink]]\nname = \"u\"\naddress = \"h:1\"\nfallback = { address = \"h:2\", proxy = \"https://u:hunter2@p:1\" }";
    let errors = parse(text).config.unwrap_err();
    assert!(errors.errors().iter().all(|error| !error.message.contains("hunter2") && !error.hint.contains("hunter2")));
}

#[test]
fn ten_mistakes_of_all_kinds_are_reported_together_in_the_order_of_the_file() {
    let text = r#"[gateway]
data_directory = "/data"
[[listen]]
bind = "0.0.0.0:1883"
[mqtt]
packet_bytes_max = 65536
[[user]]
name = "u"
password_hash = "secret"
[[stream]]
name = "s"
topics = ["a/#/b"]
fidelity = "agregate"
[[stream]]
name = "s"
topics = ["c"]
model = "m"
[lane.bulk]
cap = "300MiB"
[[uplink]]
name = "lte"
address = "cloud.example.org"
[session]
ping = "1 sec"
"#;
    let errors = parse(text).config.unwrap_err();
    let lines: Vec<_> = errors.errors().iter().map(|error| error.line).collect();
    assert_eq!(lines, [2, 4, 6, 9, 12, 13, 15, 17, 19, 22, 24], "{errors}");
    let shown = errors.to_string();
    assert!(shown.ends_with("11 mistakes in edge.toml"), "{shown}");
    assert!(shown.contains("--> edge.toml:13:12") && shown.contains("did you mean `aggregate`?"), "{shown}");
}

#[test]
fn offload_that_cannot_work_is_refused_at_its_line() {
    let stream = "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\npayload = { format = \"number\" }\n";
    let cases = [
        ("offload = { mode = \"wait\" }", "not said what is asked for", "task = "),
        (
            "window = { length = \"4 samples\" }\noffload = { task = \"t\", deadline = \"11s\" }",
            "not within 1us to 10s",
            "stand after it",
        ),
        (
            "window = { length = \"4 samples\" }\noffload = { task = \"t\", band = [0.6, 0.2] }",
            "no band within 0 to 1",
            "[0.0, 0.6]",
        ),
        (
            "window = { length = \"4 samples\" }\noffload = { task = \"t\", spacing = \"2h\" }",
            "longer than",
            "requests_per_hour",
        ),
        ("offload = { task = \"t\" }", "how long a window is", "`window`"),
        ("model = \"m\"\noffload = { task = \"t\", audit = 1.5 }", "1.5 is no share within 0 to 1", "audit = 0.01"),
        ("offload = { task = \"t\", audit = 0.1 }", "nothing to compare", "name a `model`"),
        (
            "model = \"m\"\noffload = { task = \"t\", audit = 0.1, learn = { min = 0.5, max = 0.4 } }",
            "0.5 to 0.4 leaves a threshold no room",
            "0.05 apart",
        ),
        (
            "model = \"m\"\noffload = { task = \"t\", audit = 0.1, learn = { share = 0.0 } }",
            "share 0 and disagree 0.1",
            "share = 0.3",
        ),
        ("model = \"m\"\noffload = { task = \"t\", learn = {} }", "could only fall", "audit = 0.01"),
        ("truth_of = \"t\"", "no other stream `t`", "name of the stream"),
        ("truth_of = \"s\"", "no other stream `s`", "name of the stream"),
        ("offload = { task = \"t\", mode = \"ask\" }", "unknown value `ask`", "never, wait, answer_now"),
    ];
    for (keys, message, hint) in cases {
        let text = format!("{stream}{keys}\n");
        let errors = parse(&text).config.expect_err(keys);
        let error = errors.errors().iter().find(|error| error.message.contains(message)).unwrap_or_else(|| panic!("{errors}"));
        assert!(error.hint.contains(hint) && error.line == text.lines().count(), "{keys}\n{errors}");
    }
    let wide = "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\npayload = { format = \"packed\", element = \"i16\", channels = 8 }\n\
                window = { length = \"16384 samples\" }\noffload = { task = \"t\" }\n";
    assert_refused_text(wide, 6, "a window of 131072 values is longer than 65536", "shorter window");
    let good = format!("{stream}window = {{ length = \"4 samples\" }}\noffload = {{ task = \"t\", mode = \"wait\" }}\n");
    let policy = parse(&good).config.unwrap().policy(&[]).unwrap();
    let offload = policy.streams[0].offload.as_ref().expect("it was asked for");
    assert_eq!((offload.deadline_us, offload.window.length(), offload.band.1), (500_000, 4, f32::INFINITY));
}

#[test]
fn brokers_that_cannot_be_meant_are_refused() {
    const STREAM: &str = "[[stream]]\nname = \"s\"\ntopics = [\"a\"]\n";
    let wrong = |keys: &str, line: usize, message: &str, hint: &str| {
        assert_refused_text(&format!("{STREAM}[[broker]]\nname = \"b\"\n{keys}"), line, message, hint);
    };
    wrong("", 4, "`` is not a host and a port", "address = ");
    wrong("address = \"10.0.0.1\"", 6, "`10.0.0.1` is not a host and a port", "address = ");
    wrong("address = \"10.0.0.1:1883\"", 6, "would go to 10.0.0.1 in clear", "`insecure = true`");
    let local = "address = \"127.0.0.1:1883\"\n";
    for (keys, message, hint) in [
        ("version = \"3.1\"", "unknown value `3.1`", "3.1.1"),
        ("qos = 3", "3 is not within 0 to 2", "these three"),
        ("inflight_max = 0", "0 is not within 1 to 65535", "packet ids"),
        ("keep_alive = \"1s\"", "1s is not within 5s to 1h", "30s is enough"),
        ("backoff_max = \"1h\"", "1h is not within 100ms to 10m", "30s is enough"),
        ("session_expiry = \"1s\"", "1s is not within 1m to 365d", "ever away"),
        ("client_id = \"a/b\"", "a client id begins with 1 to 48 bytes", "the class is added"),
        ("streams = [\"t\"]", "there is no stream `t`", "[[stream]]"),
        ("durability = \"through\"", "unknown value `through`", "disk"),
        ("tls = { ca = \"\" }", "the authority has no path", "PEM"),
        ("tls = { ca = \"ca.crt\", cert = \"c.crt\" }", "`cert` and `key` belong together", "both, or neither"),
        ("version = \"3.1.1\"\npassword_file = \"p\"", "no password without a user name", "add username"),
    ] {
        let line = if keys.contains('\n') { 8 } else { 7 };
        wrong(&format!("{local}{keys}"), line, message, hint);
    }
    let twice = format!("{STREAM}[[broker]]\nname = \"a\"\n{local}[[broker]]\nname = \"b\"\n{local}");
    assert_refused_text(&twice, 7, "the same client ids", "a client_id of its own");
}
