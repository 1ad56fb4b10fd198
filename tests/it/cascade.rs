//! The model on the box, and a larger one in the cloud for what is in doubt: real processes, real models, held-out recordings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use weir::pki;
use weir_infer::{Backend, Model, RuntimeLibrary};
use weir_logic::wire::offload::{EncodedWindow, OffloadRequest};
use weir_tests::support::oracle;
use weir_tests::support::process::{Process, Readiness, free_addr};
use weir_tests::support::publisher::{Report, Running, Sensor};
use weir_tests::support::script::{Fate, Message};
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::wait_for;
use weir_tests::support::wrist::{self, CHANNELS, MESSAGE, PERIOD_US, START_US, WINDOW};

use crate::binaries;

const LIMIT: Duration = Duration::from_secs(30);
/// What the small model's manifest says is worth asking about.
const BAND: f64 = 0.671;

fn manifest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name)
}

/// A site whose box asks a pool that these gateways may use.
fn site(offload: &str, gateways: &str) -> Site {
    site_with(offload, gateways, "")
}

/// The same with further streams.
fn site_with(offload: &str, gateways: &str, streams: &str) -> Site {
    Site::started(binaries(), plan(offload, streams, pool(gateways)))
}

/// A box that asks and has these further streams, and these tables for its cloud.
fn plan(offload: &str, streams: &str, cloud: String) -> Plan {
    let streams = wrist::model()
        + &wrist::stream("wrist", &format!("offload = {{ task = \"activity\", {offload} }}"))
        + streams
        + "[offload]\nrequests_per_hour = 100000\n";
    Plan { cloud, ..Plan::new("through", &streams) }
}

/// A pool that these gateways may use.
fn pool(gateways: &str) -> String {
    format!(
        "[[pool]]\nname = \"activity-large\"\ntask = \"activity\"\nmodel = \"{}\"\nengine = \"rten\"\ngateways = {gateways}\n",
        manifest("watch-large.toml").display()
    )
}

fn offload(site: &Site) -> Value {
    site.edge_status().map(|status| status["offload"].clone()).unwrap_or_default()
}

/// What became of windows of the only stream, by word.
fn count(site: &Site, word: &str) -> u64 {
    site.edge_status().and_then(|status| status["streams"][0]["offload"][word].as_u64()).unwrap_or(0)
}

fn wait_for_pool(site: &Site) {
    wait_for("the pool to be known and asked", LIMIT, || {
        let pool = &offload(site)["pools"][0];
        (pool["reached"] == true && pool["breaker"] == "closed").then_some(())
    });
}

/// A sensor for each held-out subject, of whole windows.
fn sensors(site: &Site, from_window: usize, windows: usize, per_s: u32) -> Vec<Running> {
    let start = |(device, subject): (usize, u32)| {
        let rows = wrist::recording(subject);
        let first = (from_window * WINDOW / MESSAGE) as u32;
        let mut sensor =
            Sensor::new(site.mqtt(), &format!("wrist-{device}"), move |n| wrist::message("wrist", device, &rows, first + n));
        sensor.per_s = per_s;
        sensor.count_max = (windows * WINDOW / MESSAGE) as u32;
        sensor.start()
    };
    [8, 9, 10].into_iter().enumerate().map(start).collect()
}

fn played(sensors: Vec<Running>) -> Vec<Report> {
    sensors.into_iter().map(|sensor| sensor.wait(LIMIT)).collect()
}

/// A model as the cloud runs it.
fn model(name: &str) -> Model {
    Model::load(&manifest(name), Backend::Rten, &RuntimeLibrary::from_env(None)).expect("it is in the repository")
}

/// A window of a recording, channel after channel.
fn window(rows: &[[i32; CHANNELS]], at: usize) -> Vec<f32> {
    let samples: Vec<_> = (at..at + WINDOW).map(|at| rows[at % rows.len()]).collect();
    (0..CHANNELS).flat_map(|channel| samples.iter().map(move |row| row[channel] as f32)).collect()
}

#[test]
fn an_answer_joins_its_record_a_killed_cloud_costs_nothing_and_one_trial_brings_it_back() {
    let mut site = site("mode = \"answer_now\", deadline = \"400ms\"", "[\"box-*\"]");
    wait_for_pool(&site);
    // 20 windows a second of each of three sensors.
    let reports = played(sensors(&site, 0, 60, 80));
    assert!(reports.iter().all(|report| report.unacked == 0));
    wait_for("every window to be scored and stored", LIMIT, || {
        let db = oracle::open(&site.database());
        (oracle::count(&db, "SELECT count(*) FROM verdicts WHERE model = 'watch-small'") == 180).then_some(())
    });
    wait_for("nothing under way", LIMIT, || (offload(&site)["in_flight"] == 0).then_some(()));
    site.drain();
    let db = oracle::open(&site.database());
    let number = |sql: &str| oracle::count(&db, sql);
    let doubtful = number(&format!("SELECT count(*) FROM verdicts WHERE model = 'watch-small' AND confidence < {BAND}"));
    let joined = number(
        "SELECT count(*) FROM verdicts AS small JOIN verdicts AS large USING (gateway, stream, device, start_us, end_us)
         WHERE small.model = 'watch-small' AND large.model = 'watch-large'",
    );
    let (small, large) = (
        number("SELECT count(*) FROM verdicts WHERE model = 'watch-small'"),
        number("SELECT count(*) FROM verdicts WHERE model = 'watch-large'"),
    );
    let (sent, shared) = (count(&site, "sent"), count(&site, "shared") + count(&site, "known"));
    let answers = count(&site, "answered") + count(&site, "late") + count(&site, "known");
    println!("{small} windows, {doubtful} in doubt, {sent} sent, {large} answers");
    assert_eq!((small, joined, large), (180, answers, answers), "each answer has its record, and there is none besides");
    assert!(doubtful > 20 && sent + shared > doubtful * 9 / 10 && answers > doubtful * 8 / 10, "{sent} {shared} {answers}");
    // It is the large model that answered, about this very window.
    let mut model = model("watch-large.toml");
    let mut query = db
        .prepare("SELECT device, start_us, label, confidence FROM verdicts WHERE model = 'watch-large'")
        .expect("the view is there");
    let mut rows = query.query([]).expect("it can be read");
    let recordings = [8, 9, 10].map(wrist::recording);
    while let Some(row) = rows.next().expect("it can be read") {
        let (device, start_us): (String, i64) = (row.get(0).expect("a text"), row.get(1).expect("a time"));
        let (label, confidence): (String, f64) = (row.get(2).expect("a text"), row.get(3).expect("a number"));
        let device: usize = device.parse().expect("a number");
        let window = window(&recordings[device], ((start_us - START_US) / PERIOD_US) as usize);
        let answer = model.score(&[&window]).remove(0).expect("a sound window");
        let expected = model.manifest().label(&answer.verdict).expect("it has labels").to_owned();
        assert!(label == expected && (confidence - f64::from(answer.verdict.confidence)).abs() < 1e-3, "{label} {expected}");
    }
    drop(rows);
    drop(query);

    // Dead: the box goes on by itself. A few requests were under way or are needed to see that nobody answers.
    let (sent, overdue) = (count(&site, "sent"), count(&site, "overdue"));
    site.kill_cloud();
    let reports = played(sensors(&site, 60, 60, 80));
    let scored = || site.edge_status().and_then(|status| status["streams"][0]["verdicts"].as_u64()).unwrap_or(0);
    wait_for("a verdict for each window", LIMIT, || (scored() >= 360 + answers).then_some(()));
    assert!(reports.iter().all(|report| report.unacked == 0), "without the cloud the disk makes them safe");
    let (sent, overdue) = (count(&site, "sent") - sent, count(&site, "overdue") - overdue);
    println!("the cloud dead: {sent} more sent, {overdue} overdue");
    assert!(overdue >= 3 && sent <= 3 + 16, "the breaker opens after three, and 16 are under way at most: {sent}, {overdue}");
    let pool = &offload(&site)["pools"][0];
    assert!(pool["breaker_opened"].as_u64() >= Some(1), "{pool}");

    // Alive again: one trial, and then as before.
    site.start_cloud();
    wait_for("the pool to be reached", LIMIT, || (offload(&site)["pools"][0]["reached"] == true).then_some(()));
    let before = count(&site, "answered");
    let sensors = sensors(&site, 120, 200, 40);
    wait_for("answers again", LIMIT, || (count(&site, "answered") >= before + 10).then_some(()));
    wait_for_pool(&site);
    drop(played(sensors));
    site.drain();
    site.stop_edge();
    site.stop_cloud();
}

#[test]
fn in_mode_wait_there_is_one_record_of_whoever_said_it() {
    let mut site = site("mode = \"wait\", deadline = \"3s\"", "[\"box-1\"]");
    wait_for_pool(&site);
    let reports = played(sensors(&site, 0, 40, 40));
    assert!(reports.iter().all(|report| report.unacked == 0));
    site.drain();
    wait_for("nothing under way", LIMIT, || (offload(&site)["in_flight"] == 0).then_some(()));
    site.drain();
    let db = oracle::open(&site.database());
    let number = |sql: &str| oracle::count(&db, sql);
    let windows = number("SELECT count(*) FROM (SELECT DISTINCT device, start_us FROM verdicts)");
    let (all, large) =
        (number("SELECT count(*) FROM verdicts"), number("SELECT count(*) FROM verdicts WHERE model = 'watch-large'"));
    println!("{windows} windows, {large} of them by the large model");
    let (answered, known) = (count(&site, "answered"), count(&site, "known"));
    assert_eq!((windows, all), (120, 120), "no window has two");
    assert!(large >= 10 && large == answered + known, "{large}: {answered} and {known}");
    let sure = number(&format!("SELECT count(*) FROM verdicts WHERE model = 'watch-small' AND confidence < {BAND}"));
    let not_sent = count(&site, "in_flight") + count(&site, "busy") + count(&site, "refused_busy");
    assert!(sure <= not_sent, "{sure} in doubt were not asked about, {not_sent} of them with a reason");
    site.stop_edge();
}

/// A process that runs the pool alone, for the cloud of the site.
fn start_machine(site: &Site, quic: SocketAddr) -> Process {
    let (config, log, admin) = (site.dir().join("pool.toml"), site.dir().join("pool.log"), free_addr());
    let text = format!(
        "[listen]\nquic = \"{quic}\"\n[tls]\ncert = \"pki/pool-1.pem\"\nkey = \"pki/pool-1.key\"\nca = \"pki/ca.pem\"\n\
         [clouds]\nenrolled = [\"cloud\"]\n[admin]\nhttp = \"{admin}\"\n{}",
        pool("[\"box-*\"]")
    );
    std::fs::write(&config, text).expect("there is room for a configuration");
    let mut command = Command::new(binaries().cloud);
    command.args(["pool", "--config"]).arg(&config);
    let mut process = Process::start(command, &log, admin);
    assert!(matches!(process.readiness(), Readiness::Ready), "the machine does not start");
    process
}

#[test]
fn a_machine_that_runs_pools_alone_answers_and_its_death_costs_nothing() {
    let quic = free_addr();
    let machine = format!("[[pool_machine]]\naddress = \"{quic}\"\nserver_name = \"localhost\"\ngateways = [\"box-1\"]\n");
    let mut site = Site::new(binaries(), plan("mode = \"answer_now\", deadline = \"3s\"", "", machine));
    pki::issue(&site.dir().join("pki"), &pki::Request::local_cloud("pool-1"), false).expect("a machine can be certified");
    let process = start_machine(&site, quic);
    site.start_cloud();
    site.start_edge();
    wait_for_pool(&site);
    let reports = played(sensors(&site, 0, 40, 40));
    assert!(reports.iter().all(|report| report.unacked == 0));
    wait_for("nothing under way", LIMIT, || (offload(&site)["in_flight"] == 0 && count(&site, "answered") >= 10).then_some(()));
    let served = process.get("/metrics").map(|(_, text)| text).unwrap_or_default();
    assert!(served.contains("weir_pool_batches_total{pool=\"activity-large\"}"), "{served}");

    // Gone: its silence is noticed, the box hears of it, and goes on by itself.
    process.kill();
    wait_for("the pool to be gone", LIMIT, || (offload(&site)["pools"][0]["reached"] == false).then_some(()));
    let before = count(&site, "sent");
    let reports = played(sensors(&site, 40, 40, 40));
    assert!(reports.iter().all(|report| report.unacked == 0));
    assert_eq!(count(&site, "sent"), before, "nobody is asked who is not there");
    wait_for("windows without a pool", LIMIT, || (count(&site, "no_pool") >= 10).then_some(()));

    // And back.
    let process = start_machine(&site, quic);
    wait_for_pool(&site);
    let before = count(&site, "answered");
    assert!(played(sensors(&site, 80, 40, 40)).iter().all(|report| report.unacked == 0));
    wait_for("answers again", LIMIT, || (count(&site, "answered") >= before + 5).then_some(()));
    site.stop_edge();
    site.stop_cloud();
    assert_eq!(process.terminate(LIMIT).code(), Some(0), "it ends well");
}

/// What was true of a sensor in the middle of its `n`-th window, as its recording says it.
fn truth(device: usize, exercises: &[String], n: u32) -> Message {
    let labels = ["PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"];
    let at = n as usize * WINDOW + WINDOW / 2;
    let label = labels.iter().position(|label| *label == exercises[at % exercises.len()]).expect("a label of the model");
    let payload = serde_json::json!({ "label": label, "t": (START_US + at as i64 * PERIOD_US) / 1_000 });
    Message {
        topic: format!("told/{device}"),
        payload: payload.to_string().into_bytes(),
        qos: 1,
        stream: "told",
        device: device.to_string(),
        lane: "high",
        fate: Fate::Record,
    }
}

#[test]
fn sure_answers_are_audited_without_a_record_and_judged_by_the_truth_that_is_told_later() {
    const ROUNDS_MAX: usize = 10;
    const WINDOWS: usize = 20;
    let told = "[[stream]]\nname = \"told\"\ntopics = [\"told/+\"]\nclass = \"high\"\ntruth_of = \"wrist\"\n\
                payload = { format = \"json\", fields = [\"/label\"], time = \"/t\", time_unit = \"ms\" }\n";
    let mut site = site_with("mode = \"answer_now\", deadline = \"3s\", audit = 1.0", "[\"box-1\"]", told);
    wait_for_pool(&site);
    // Audits have few places, so a busy machine takes more windows to have as many.
    let rounds = (1..=ROUNDS_MAX).find(|round| {
        let reports = played(sensors(&site, (round - 1) * WINDOWS, WINDOWS, 20));
        assert!(reports.iter().all(|report| report.unacked == 0));
        count(&site, "audits_answered") >= 10 && count(&site, "answered") >= 5
    });
    let rounds = rounds.expect("answers to audits and to doubts");
    site.drain();
    wait_for("nothing under way", LIMIT, || (offload(&site)["in_flight"] == 0).then_some(()));
    site.drain();
    let tell = |(device, subject): (usize, u32)| {
        let exercises = wrist::exercises(subject);
        let mut sensor = Sensor::new(site.mqtt(), &format!("teller-{device}"), move |n| truth(device, &exercises, n));
        (sensor.per_s, sensor.count_max) = (0, (rounds * WINDOWS) as u32);
        sensor.start()
    };
    let reports = played([8, 9, 10].into_iter().enumerate().map(tell).collect());
    assert!(reports.iter().all(|report| report.unacked == 0));

    let audit = || site.edge_status().map(|status| status["audits"][0].clone()).unwrap_or_default();
    let number = |audit: &Value, group: &str, key: &str| audit[group][key].as_u64().unwrap_or(0);
    wait_for("every window that both answered to be judged", LIMIT, || {
        let audit = audit();
        let is_judged = |group: &str| number(&audit, group, "truth") == number(&audit, group, "answered");
        (is_judged("audited") && is_judged("doubted")).then_some(())
    });
    let (audit, audited) = (audit(), count(&site, "audits_answered"));
    println!("{audited} audits answered in {rounds} rounds: {audit}");
    assert_eq!((&audit["local"], &audit["remote"]), (&"watch-small 1".into(), &"watch-large 1".into()));
    assert!(audited >= 10 && number(&audit, "audited", "answered") == audited, "{audited}: {audit}");
    for accuracy in ["local_accuracy", "remote_accuracy"] {
        for group in ["audited", "doubted"] {
            let [share, low, high] = [0, 1, 2].map(|at| audit[group][accuracy][at].as_f64().expect("it was judged"));
            assert!(low <= share && share <= high && high - low > 0.01, "{group} {accuracy}: {audit}");
        }
    }
    assert!(audit["local_accuracy"].is_f64() && audit["remote_accuracy"].is_f64(), "on all windows: {audit}");
    let ended = audited + count(&site, "audits_unanswered");
    assert!(ended >= count(&site, "audits_sent"), "each has an end, and some share one: {audit}");
    // Only answers to windows in doubt became records.
    let db = oracle::open(&site.database());
    let large = oracle::count(&db, "SELECT count(*) FROM verdicts WHERE model = 'watch-large'");
    assert_eq!(large, count(&site, "answered") + count(&site, "late") + count(&site, "known"));
    site.stop_edge();
}

#[test]
fn without_a_right_a_box_knows_no_pool_and_says_so() {
    let site = site("mode = \"answer_now\"", "[\"box-2\", \"other-*\"]");
    site.wait_uplink(true);
    let reports = played(sensors(&site, 0, 20, 0));
    assert!(reports.iter().all(|report| report.unacked == 0));
    wait_for("windows without a pool", LIMIT, || (count(&site, "no_pool") >= 5).then_some(()));
    let stream = site.edge_status().map(|status| status["streams"][0].clone()).unwrap_or_default();
    assert_eq!((&offload(&site)["pools"], &stream["offload"]["sent"]), (&serde_json::json!([]), &serde_json::json!(0)));
    let reason = stream["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("the cloud has told of none for this task"), "{reason}");
    let (_, cloud) = site.cloud.as_ref().expect("it runs").get("/status.json").expect("it answers");
    let cloud: Value = serde_json::from_str(&cloud).expect("JSON");
    assert_eq!(cloud["pools"]["pools"][0]["name"], "activity-large");
}

/// Part of the held-out windows that a model names rightly; `sent` is what becomes of a window on its way.
fn accuracy(model: &mut Model, sent: impl Fn(Vec<f32>) -> Vec<f32>) -> (f64, usize) {
    let (mut right, mut count) = (0, 0);
    for subject in [8, 9, 10] {
        let file = manifest(&format!("recordings/watch_subject{subject}.csv"));
        let text = std::fs::read_to_string(file).expect("it is in the repository");
        let exercises: Vec<&str> = text.lines().skip(1).map(|line| line.split(',').nth(3).expect("an exercise")).collect();
        let rows = wrist::recording(subject);
        for at in (0..rows.len() - WINDOW).step_by(WINDOW / 2) {
            // A window of one exercise alone.
            if exercises[at] != exercises[at + WINDOW - 1] {
                continue;
            }
            let window = sent(window(&rows, at));
            let answer = model.score(&[&window]).remove(0).expect("a sound window");
            right += usize::from(model.manifest().label(&answer.verdict) == Some(exercises[at]));
            count += 1;
        }
    }
    (right as f64 / count as f64, count)
}

#[test]
fn int16_costs_no_accuracy_on_the_held_out_recordings() {
    let mut model = model("watch-large.toml");
    let through = |window: Vec<f32>| {
        let EncodedWindow { scales, data } = EncodedWindow::new(CHANNELS, &window, true);
        let (channels, length) = (CHANNELS as u32, WINDOW as u32);
        assert!(!scales.is_empty() && data.len() == 2 * window.len());
        OffloadRequest { channels, length, scales, data, ..OffloadRequest::default() }.values().expect("our own")
    };
    let (exact, windows) = accuracy(&mut model, |window| window);
    let (counts, _) = accuracy(&mut model, through);
    // Values that are no whole numbers, so that steps are as wide as the range makes them.
    let moved = |window: Vec<f32>, by: f32| window.into_iter().map(|value| value + by).collect::<Vec<_>>();
    let (stepped, _) = accuracy(&mut model, |window| moved(through(moved(window, 0.37)), -0.37));
    println!("{windows} windows: f32 {exact:.4}, int16 of counts {counts:.4}, int16 of any values {stepped:.4}");
    assert!(windows > 200 && exact > 0.7, "{windows} {exact}");
    assert!(counts == exact, "whole numbers lose nothing: {counts}");
    assert!((stepped - exact).abs() <= 1.5 / windows as f64, "one window of {windows} at most: {stepped}");
}
