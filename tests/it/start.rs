//! What is wrong at the start: certificates, configurations, models, buffers, clocks. Each is told, with what to do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use redb::ReadableDatabase as _;
use weir::pki::{self, Authority, Request};
use weir_tests::support::oracle;
use weir_tests::support::process::{self, Process, free_addr};
use weir_tests::support::publisher::{Report, Sensor};
use weir_tests::support::script::{self, MIXED_STREAMS};
use weir_tests::support::site::{GATEWAY, Plan, Site};
use weir_tests::support::wait_for;

use weir_tests::support::skip;

use crate::binaries;

/// Time for something to be noticed.
const LIMIT: Duration = Duration::from_secs(15);

fn through() -> Site {
    Site::new(binaries(), Plan::new("through", MIXED_STREAMS))
}

/// Publishes some messages and checks that all of them arrive.
fn assert_works(site: &mut Site) {
    let mut sensor = Sensor::new(site.mqtt(), "sensor-0", |n| script::mixed(0, n));
    sensor.count_max = 200;
    let report = sensor.start().wait(LIMIT);
    assert_eq!(report.unacked, 0, "all PUBACKs come");
    site.drain();
    assert_delivered(site, &[report]);
}

fn assert_delivered(site: &Site, reports: &[Report]) {
    let verdict = oracle::examine(reports, &site.database(), None);
    verdict.assert_conserved();
    assert!(verdict.stored > 100, "{verdict}");
}

fn await_log(what: &str, log: impl Fn() -> String) {
    wait_for(&format!("the log to say `{what}`"), LIMIT, || log().contains(what).then_some(()));
}

/// Runs the box to its end.
fn run_edge(site: &Site) -> (Option<i32>, String) {
    let (code, _, stderr) = process::run(site.edge_command(), LIMIT);
    (code, stderr)
}

#[test]
fn a_second_box_on_the_same_data_is_refused_and_the_first_goes_on() {
    let mut site = Site::started(binaries(), Plan::new("through", MIXED_STREAMS));
    // The same address first, then another address and the same data.
    let (code, stderr) = run_edge(&site);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("cannot listen for MQTT on") && stderr.contains("is another broker running there?"), "{stderr}");
    assert_eq!(stderr.matches("in use").count(), 1, "the cause is said once: {stderr}");
    let config = site.edge_config().replace(&site.mqtt().to_string(), &free_addr().to_string());
    let admin = config.find("[admin]\nhttp = \"").expect("it is there") + "[admin]\nhttp = \"".len();
    let end = admin + config[admin..].find('"').expect("it ends");
    let config = format!("{}{}{}", &config[..admin], free_addr(), &config[end..]);
    let second = site.dir().join("second.toml");
    std::fs::write(&second, config).expect("there is room");
    let mut command = Command::new(binaries().edge);
    command.args(["run", "--config"]).arg(&second);
    let (code, _, stderr) = process::run(command, LIMIT);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("is in use by another process: stop it first"), "{stderr}");
    assert_works(&mut site);
}

#[test]
fn a_gateway_that_is_not_enrolled_is_refused_with_a_word_on_both_sides() {
    let mut site = through();
    let pki_dir = site.dir().join("pki");
    pki::issue(&pki_dir, &Request::gateway("stranger"), false).expect("the authority is there");
    for suffix in ["pem", "key"] {
        let (from, to) = (format!("stranger.{suffix}"), format!("{GATEWAY}.{suffix}"));
        std::fs::rename(pki_dir.join(from), pki_dir.join(to)).expect("both are there");
    }
    site.start_cloud();
    site.start_edge();
    await_log("gateway stranger is not enrolled here", || site.cloud_log());
    await_log("is not enrolled here", || site.edge_log());
    assert!(site.edge_status().is_some_and(|status| status["uplinks"][0]["up"] == false));
}

#[test]
fn a_certificate_of_another_authority_is_refused_told_on_the_box_and_counted_in_the_cloud() {
    let mut site = through();
    let issued = Authority::new().and_then(|other| other.issue(&Request::gateway(GATEWAY))).expect("it can be issued");
    let pki_dir = site.dir().join("pki");
    std::fs::write(pki_dir.join(format!("{GATEWAY}.pem")), issued.cert_pem).expect("there is room");
    std::fs::write(pki_dir.join(format!("{GATEWAY}.key")), issued.key_pem).expect("there is room");
    site.start_cloud();
    site.start_edge();
    await_log("invalid peer certificate: UnknownIssuer", || site.edge_log());
    let line = site.edge_log().lines().find(|line| line.contains("UnknownIssuer")).map(str::to_owned);
    assert!(line.is_some_and(|line| line.contains("WARN") && line.contains("uplink cannot connect")), "{}", site.edge_log());
    let counted = || {
        let (_, metrics) = site.cloud.as_ref()?.get("/metrics")?;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("weir_ingest_connections_refused_total{reason=\"handshake\"}"))?
            .to_owned();
        (!line.ends_with(" 0")).then_some(())
    };
    wait_for("the cloud to count a handshake that failed", LIMIT, counted);
    assert!(site.edge_status().is_some_and(|status| status["uplinks"][0]["up"] == false));
}

#[test]
fn a_cloud_that_is_not_ours_gets_nothing() {
    let mut site = through();
    let other = Authority::new().expect("it can be made");
    let issued = other.issue(&Request::local_cloud("cloud")).expect("it can be issued");
    let pki_dir = site.dir().join("pki");
    std::fs::write(pki_dir.join("cloud.pem"), issued.cert_pem).expect("there is room");
    std::fs::write(pki_dir.join("cloud.key"), issued.key_pem).expect("there is room");
    site.start_cloud();
    site.start_edge();
    await_log("invalid peer certificate", || site.edge_log());
    let mut sensor = Sensor::new(site.mqtt(), "sensor-0", |n| script::mixed(0, n));
    sensor.count_max = 100;
    let report = sensor.start().wait(LIMIT);
    site.kill_edge();
    let verdict = oracle::examine(&[report], &site.database(), Some(&site.buffer()));
    verdict.assert_conserved();
    assert_eq!((verdict.stored, verdict.buffered > 50), (0, true), "it all waits on the box\n{verdict}");
}

#[test]
fn mistakes_in_a_configuration_are_all_told_with_their_lines_and_end_with_64() {
    let site = through();
    let edge = site.dir().join("edge.toml");
    let lines = site.edge_config().lines().count();
    let mistakes = "[mqtt]\nclients_maxx = 5\npacket_bytes_max = 65536\n[log]\nfilter = \"loud=very=much\"\n";
    std::fs::write(&edge, site.edge_config() + mistakes).expect("there is room");
    let (code, stderr) = run_edge(&site);
    assert_eq!(code, Some(64), "{stderr}");
    for (line, words) in [(2, "clients_maxx"), (2, "did you mean `clients_max`?"), (3, "unit"), (5, "loud=very=much")] {
        let place = format!("{}:{}", edge.display(), lines + line);
        assert!(stderr.contains(&place) && stderr.contains(words), "{place} and {words} are not in\n{stderr}");
    }
    let cloud = site.dir().join("cloud.toml");
    std::fs::write(&cloud, "[listen]\nquick = 5\n[limits]\nqueue_bytes = 64000000\n").expect("there is room");
    for verb in [&["run", "--config"][..], &["check"]] {
        let mut command = Command::new(binaries().cloud);
        command.args(verb).arg(&cloud);
        let (code, _, stderr) = process::run(command, LIMIT);
        assert_eq!(code, Some(64), "{stderr}");
        for (line, words) in [(2, "did you mean `quic`?"), (4, "unit")] {
            let place = format!("{}:{line}", cloud.display());
            assert!(stderr.contains(&place) && stderr.contains(words), "{place} and {words} are not in\n{stderr}");
        }
    }
    for binary in [binaries().edge, binaries().cloud] {
        for arguments in [&["run"][..], &["run", "--config", "/nowhere/at/all.toml"], &["dance"]] {
            let mut command = Command::new(&binary);
            command.args(arguments);
            let (code, _, stderr) = process::run(command, LIMIT);
            assert!(code == Some(64) && !stderr.is_empty(), "{arguments:?}: {code:?} {stderr}");
        }
    }
}

/// A stream with a model whose manifest is at `manifest`.
fn with_model(manifest: &Path) -> Plan {
    let model = format!(
        "[[model]]\nname = \"watch\"\nmanifest = \"{}\"\n[infer]\nbackend = \"rten\"\n\
         [[stream]]\nname = \"wrist\"\ntopics = [\"wrist/+\"]\nmodel = \"watch\"\nfidelity = \"verdict\"\n\
         payload = {{ format = \"packed\", element = \"i16\", channels = 6, rate_hz = 50.0 }}\n",
        manifest.display()
    );
    Plan::new("through", &format!("{MIXED_STREAMS}{model}"))
}

#[test]
fn a_missing_or_corrupt_model_is_told_and_everything_else_goes_on() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let dir = tempfile::tempdir().expect("there is room");
    let (manifest, onnx) = (dir.path().join("watch-small.toml"), dir.path().join("watch-small.onnx"));
    std::fs::copy(models.join("watch-small.toml"), &manifest).expect("the model is in the repository");
    // No file; a file with other bytes; a manifest that is none; no manifest.
    let mut bytes = std::fs::read(models.join("watch-small.onnx")).expect("the model is in the repository");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    for (case, word) in ["watch-small.onnx", "sha256", "watch-small.toml", "watch-small.toml"].into_iter().enumerate() {
        match case {
            0 => {}
            1 => std::fs::write(&onnx, &bytes).expect("there is room"),
            2 => std::fs::write(&manifest, "name = 5\n").expect("there is room"),
            _ => std::fs::remove_file(&manifest).expect("it is there"),
        }
        let mut site = Site::started(binaries(), with_model(&manifest));
        let log = site.edge_log();
        let line = log.lines().find(|line| line.contains("model is not loaded; its streams go on without it"));
        assert!(line.is_some_and(|line| line.contains("ERROR") && line.contains(word)), "{word} in\n{log}");
        assert_works(&mut site);
    }
}

#[test]
fn without_the_native_library_the_embedded_engine_runs_or_the_log_says_what_to_do() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/watch-small.toml");
    for (backend, words) in [
        ("ort", ["model is not loaded; its streams go on without it", "correct the path"]),
        ("auto", ["running on the embedded engine", "model is loaded"]),
    ] {
        let mut plan = with_model(&manifest);
        let infer = format!("backend = \"{backend}\"\nlibrary = \"/nowhere/libonnxruntime.so\"");
        plan.tables = plan.tables.replace("backend = \"rten\"", &infer);
        let mut site = Site::started(binaries(), plan);
        let log = site.edge_log();
        assert!(words.iter().all(|word| log.contains(word)), "{backend}: {words:?} in\n{log}");
        assert_works(&mut site);
    }
}

/// Starts a box on a buffer that cannot be used, and checks that it says so and works; returns where the file is kept.
fn assert_quarantined(site: &mut Site, word: &str) -> PathBuf {
    site.start_cloud();
    site.start_edge();
    let log = site.edge_log();
    let line = log.lines().find(|line| line.contains("the buffer could not be opened and was set aside"));
    assert!(line.is_some_and(|line| line.contains("ERROR") && line.contains(word)), "{word} in\n{log}");
    let shown = wait_for("the picture of the box", LIMIT, || site.edge_status()?["quarantined"].as_str().map(PathBuf::from));
    assert_works(site);
    shown
}

#[test]
fn a_corrupt_buffer_is_set_aside_and_told_and_the_box_works() {
    let mut site = through();
    let bytes = b"this was a buffer once".repeat(1_000);
    std::fs::create_dir_all(&site.data_dir).expect("there is room");
    std::fs::write(site.buffer(), &bytes).expect("there is room");
    let kept = assert_quarantined(&mut site, "reason=");
    assert_eq!(std::fs::read(kept).expect("it is kept"), bytes, "as it was");
}

#[test]
fn a_buffer_of_a_newer_version_is_set_aside_and_told_and_the_box_works() {
    let mut site = through();
    site.start_edge();
    site.stop_edge();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    let file = redb::Database::open(site.buffer()).expect("it was closed well");
    let tx = file.begin_write().expect("it can be written");
    tx.open_table(meta).expect("it is there").insert("format", 99).expect("it can be written");
    tx.commit().expect("it can be written");
    drop(file);
    let kept = assert_quarantined(&mut site, "a newer Weir wrote it");
    let file = redb::Database::open(kept).expect("it is whole");
    let tx = file.begin_read().expect("it can be read");
    let format = tx.open_table(meta).and_then(|table| Ok(table.get("format")?.map(|found| found.value())));
    assert_eq!(format.expect("it can be read"), Some(99), "the newer Weir can go on with it");
}

/// A library that makes a process believe in another time: preloaded, it shifts the wall clock to 1970.
const CLOCK_C: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int outcome = real(id, t);
    if (id == CLOCK_REALTIME) t->tv_sec %= 1000000;
    return outcome;
}
"#;

#[test]
fn a_box_whose_clock_says_1970_connects_and_its_records_get_the_clouds_time() {
    let mut site = through();
    let (source, library) = (site.dir().join("clock.c"), site.dir().join("clock.so"));
    std::fs::write(&source, CLOCK_C).expect("there is room");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    if !command.output().is_ok_and(|output| output.status.success()) {
        skip("no C compiler here that makes a shared library");
        return;
    }
    site.edge_env = vec![("LD_PRELOAD".to_owned(), library.display().to_string())];
    site.start_cloud();
    site.start_edge();
    let status = wait_for("the picture of the box", LIMIT, || site.edge_status().filter(|s| s["wall_us"].as_u64() != Some(0)));
    assert!(status["wall_us"].as_u64().is_some_and(|us| us < 10_000_000_000_000), "its clock says 1970: {status}");
    assert_eq!(status["wall_trusted"], false);
    assert_works(&mut site);
    let db = oracle::open(&site.database());
    let clocks = oracle::texts(&db, "SELECT DISTINCT clock FROM samples");
    assert_eq!(clocks, ["cloud"]);
    let odd = "SELECT count(*) FROM samples WHERE abs(t_us / 1000000 - unixepoch()) > 120";
    assert_eq!(oracle::count(&db, odd), 0, "the times are of today");
}

#[test]
fn a_data_directory_that_cannot_be_used_is_told() {
    let site = through();
    std::fs::write(&site.data_dir, "a file").expect("there is room");
    let (code, stderr) = run_edge(&site);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("cannot use the data directory") && stderr.contains("create it"), "{stderr}");
}

#[test]
fn a_second_cloud_on_the_same_database_is_refused_with_a_word() {
    let mut site = through();
    site.start_cloud();
    let text = std::fs::read_to_string(site.dir().join("cloud.toml")).expect("it is there");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for line in &mut lines {
        if let Some((key @ ("quic" | "tls" | "http"), _)) = line.clone().split_once(" = \"") {
            *line = format!("{key} = \"{}\"", free_addr());
        }
    }
    let second = site.dir().join("second.toml");
    std::fs::write(&second, lines.join("\n")).expect("there is room");
    let mut command = Command::new(binaries().cloud);
    command.args(["run", "--config"]).arg(&second);
    let (code, _, stderr) = process::run(command, LIMIT);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("is in use by another weir-cloud") && stderr.contains("`store.path`"), "{stderr}");
    assert!(site.cloud.as_ref().is_some_and(|cloud: &Process| cloud.get("/healthz").is_some()), "the first goes on");
}

#[test]
fn a_certificate_that_is_not_there_is_told_with_what_makes_it_and_one_cause() {
    let site = through();
    std::fs::remove_file(site.dir().join("pki/cloud.pem")).expect("it was just made");
    let mut command = Command::new(binaries().cloud);
    command.args(["run", "--config"]).arg(site.dir().join("cloud.toml"));
    let (code, _, stderr) = process::run(command, LIMIT);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("cloud.pem cannot be read") && stderr.contains("`weir pki issue`"), "{stderr}");
    assert_eq!(stderr.matches("No such file").count(), 1, "{stderr}");
}
