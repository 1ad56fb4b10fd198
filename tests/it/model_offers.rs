//! Models from a directory of the cloud to boxes and back: offered, fetched in parts over links and processes that break, tried,
//! and refused with a reason.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_host::sign::SecretKey;
use weir_tests::support::site::{CLEAN, Plan};
use weir_tests::support::{oracle, wait_for};

use crate::updates::{Lab, good};

/// A look at the directory takes four seconds, a trial several, and a package over a slow link twenty.
const LIMIT: Duration = Duration::from_secs(120);
/// A link over which a chunk of 64 KiB takes an eighth of a second.
const SLOW: &str = "[up]\nrate = '4Mbit/s'\ndelay = '10ms'\nqueue = '64KiB'\n";
const CHUNK: u64 = 64 * 1_024;
const MIB: u64 = 1_024 * 1_024;

/// A box that takes models, and a cloud that offers what is in its folder.
struct Shop {
    lab: Lab,
    models: PathBuf,
}

impl Shop {
    fn new(keys: &str) -> Shop {
        Shop::with(CLEAN, keys, |_| ())
    }

    fn with(link: &'static str, keys: &str, change: impl FnOnce(&mut Plan)) -> Shop {
        let lab = Lab::over(link, keys, |folder, plan| {
            std::fs::create_dir(folder.join("offered")).expect("there is room");
            let dir = folder.join("offered").display().to_string();
            plan.cloud = format!("[models]\ndir = \"{dir}\"\nshare = 0.0\nsoak = \"1s\"\n");
            change(plan);
        });
        let models = lab.site.dir().join("offered");
        Shop { lab, models }
    }

    fn publish(&self, name: &str, package: &[u8]) {
        let draft = self.models.join(format!(".{name}"));
        std::fs::write(&draft, package).expect("there is room");
        std::fs::rename(&draft, self.path(name)).expect("there is room");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.models.join(format!("{name}.weir-model"))
    }

    /// What the box says of offers, once it is so.
    fn fetch(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, LIMIT, || self.lab.site.edge_status().map(|status| status["fetch"].clone()).filter(|fetch| is_so(fetch)))
    }

    /// What the box says of the last offer, once it is so.
    fn offer(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        self.fetch(what, |fetch| is_so(&fetch["offers"][0]))["offers"][0].clone()
    }

    /// The cloud's picture of the version, once it is as wanted.
    fn cloud(&self, version: u64, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, LIMIT, || {
            let offers = self.cloud_status()?["models"]["offers"].clone();
            offers.as_array()?.iter().find(|offer| offer["version"] == version).filter(|offer| wanted(offer)).cloned()
        })
    }

    /// What the cloud says of the box's model, once it is as wanted.
    fn seen(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, LIMIT, || {
            let model = self.cloud_status()?["gateways"][0]["models"][0].clone();
            wanted(&model).then_some(model)
        })
    }

    fn cloud_status(&self) -> Option<Value> {
        let (_, body) = self.lab.site.cloud.as_ref()?.get("/status.json")?;
        serde_json::from_str(&body).ok()
    }

    /// Bytes of packages that the cloud has given away since its start.
    fn served(&self) -> u64 {
        self.metric("weir_model_bytes_total")
    }

    fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.lab.site.cloud.as_ref().and_then(|cloud| cloud.get("/metrics")).expect("it answers");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.trim().parse().expect("a number")
    }

    /// Waits until so many bytes are on the box's disk, and more are to come.
    fn has(&self, bytes: u64) -> u64 {
        let offer = self.offer("part of the package", |offer| offer["have_bytes"].as_u64() >= Some(bytes));
        let have = offer["have_bytes"].as_u64().expect("a number");
        assert!(have < offer["len_bytes"].as_u64().expect("a number"), "it came too fast for this test: {offer}");
        have
    }

    fn active(&self, version: u64) -> Value {
        self.lab.updates(&format!("version {version} to be active"), |updates| updates["active"] == version)
    }

    fn restart_box(&mut self, change: impl FnOnce(&mut Plan)) {
        self.lab.site.change(change);
        self.lab.site.stop_edge();
        self.lab.site.start_edge();
    }
}

/// The small model with so many bytes that mean nothing behind it: a text of the model, field 6 of ModelProto.
fn padded(bytes: usize) -> Vec<u8> {
    let mut model = good();
    let mut len = bytes;
    model.push(6 << 3 | 2);
    while len >= 0x80 {
        model.push(len as u8 | 0x80);
        len >>= 7;
    }
    model.push(len as u8);
    // Not the same all over, so that a part in a wrong place is another package.
    model.extend((0..bytes).map(|at| b'a' + (at / 977 % 26) as u8));
    model
}

#[test]
fn a_signed_model_in_the_clouds_folder_comes_to_the_box_and_answers() {
    let shop = Shop::new("");
    shop.lab.goes_on();
    let package = shop.lab.package(2, padded(300_000));
    shop.publish("activity-2", &package);
    shop.active(2);
    let fetch = shop.fetch("the figures", |fetch| fetch["packages"] == 1);
    let bytes = fetch["bytes"].as_u64().expect("a number");
    println!(
        "a package of {} bytes came as {bytes}, {} of them around its chunks",
        package.len(),
        bytes - package.len() as u64
    );
    assert!(bytes >= package.len() as u64 && bytes < package.len() as u64 + 4_096, "{fetch}");
    assert_eq!(shop.served(), package.len() as u64, "each byte once");
    let events: Vec<&str> = fetch["events"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(events[0].contains("version 2 for activity fetching") && events[1].contains("fetched: it is whole"), "{events:?}");
    shop.cloud(2, "the cloud to know it", |offer| offer["gateways"]["kept"] == 1 && offer["stage"] == "all");
    let seen = shop.seen("the cloud to see it", |model| model["active"] == 2);
    assert!(seen["task"] == "activity" && seen["state"] == "kept", "{seen}");
    let (_, metrics) = shop.lab.site.cloud.as_ref().and_then(|cloud| cloud.get("/metrics")).expect("it answers");
    for line in [
        "weir_model_active_gateways_count{task=\"activity\",version=\"2\"} 1\n",
        "weir_model_gateways_count{task=\"activity\",version=\"2\",state=\"kept\"} 1\n",
        "weir_model_halted{task=\"activity\",version=\"2\"} 0\n",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let db = oracle::open(&shop.lab.site.database());
    let kept =
        "SELECT count(*) FROM model_states WHERE task = 'activity' AND version = 2 AND gateway = 'box-1' AND state = 'kept'";
    wait_for("the database to know it", LIMIT, || (oracle::count(&db, kept) == 1).then_some(()));
    drop(db);
    let versions = shop.lab.settle();
    assert!(versions.len() == 2 && versions.iter().all(|(_, count)| *count > 10), "{versions:?}");
}

#[test]
fn what_has_come_is_not_fetched_again_after_a_cut_link_a_killed_box_and_a_killed_cloud() {
    let mut shop = Shop::with(SLOW, "", |_| ());
    shop.lab.goes_on();
    let package = shop.lab.package(2, padded(3 * MIB as usize));
    let len = package.len() as u64;
    shop.publish("activity-2", &package);
    shop.has(300_000);
    shop.lab.site.cut_link(true);
    shop.lab.site.wait_uplink(false);
    let waits = shop.offer("it to wait", |offer| offer["state"] == "waiting");
    assert!(waits["reason"].as_str().is_some_and(|reason| reason.contains("test is down")), "{waits}");
    shop.lab.site.cut_link(false);
    let before = shop.has(700_000);
    shop.lab.site.kill_edge();
    shop.lab.site.start_edge();
    let after = shop.offer("the box to go on", |offer| offer["have_bytes"].as_u64() > Some(0));
    assert!(after["have_bytes"].as_u64() >= Some(before), "{after}, and {before} before it was killed");
    shop.has(1_100_000);
    let first = shop.served();
    let have = shop.has(0);
    shop.lab.site.kill_cloud();
    shop.lab.site.start_cloud();
    shop.active(2);
    let second = shop.served();
    println!("{len} bytes came as {first} before the cloud was killed, and {second} after it; {have} were there");
    // What was under way when something broke was sent for nothing: a chunk each time.
    assert!(first + second <= len + 4 * CHUNK, "{first} and {second} of {len}");
    assert!(second + have <= len + 2 * CHUNK && second > 0, "{second} and {have} of {len}");
    shop.lab.goes_on();
}

#[test]
fn a_part_that_the_disk_has_spoilt_is_found_out_before_anybody_reads_it() {
    let mut shop = Shop::with(SLOW, "", |_| ());
    shop.lab.goes_on();
    shop.publish("activity-2", &shop.lab.package(2, padded(MIB as usize)));
    shop.has(200_000);
    shop.lab.site.kill_edge();
    let parts = std::fs::read_dir(shop.lab.site.data_dir.join("models/fetch")).expect("there is a folder");
    let part = parts.map(|entry| entry.expect("an entry").path()).find(|path| path.extension().is_some_and(|of| of == "part"));
    let part = part.expect("a part of the package");
    let mut bytes = std::fs::read(&part).expect("it is there");
    bytes[100_000] ^= 1;
    std::fs::write(&part, bytes).expect("there is room");
    shop.lab.site.start_edge();
    let fetch = shop.fetch("it to be found out", |fetch| fetch["events"].to_string().contains("what came has sha256"));
    assert!(fetch["events"].to_string().contains("it is fetched once more from the beginning"), "{fetch}");
    shop.active(2);
    shop.lab.goes_on();
}

#[test]
fn what_a_box_may_not_take_is_refused_in_words_before_a_byte_of_it_is_fetched() {
    let shop = Shop::new("size_limit = \"1MiB\"");
    shop.lab.goes_on();
    let stranger = SecretKey::generate().expect("there are random numbers");
    // For others, and damaged: the cloud itself does not offer them.
    shop.publish("elsewhere", &shop.lab.package_for(9, good(), "hall-*", &shop.lab.key));
    let mut damaged = shop.lab.package(8, good());
    *damaged.last_mut().expect("it has bytes") ^= 1;
    shop.publish("damaged", &damaged);
    let problem = wait_for("the damaged one to be reported", LIMIT, || {
        shop.cloud_status()?["models"]["problems"][0].as_str().map(str::to_owned)
    });
    assert!(problem.contains("damaged.weir-model") && problem.contains("its model has sha256"), "{problem}");
    let elsewhere = shop.cloud(9, "the one for others", |_| true);
    assert_eq!(elsewhere["gateways"], serde_json::json!({}));
    for (version, package, reason) in [
        (3, shop.lab.package_for(3, good(), "box-*", &stranger), "the signature is not of this text and this key"),
        (4, shop.lab.package(4, padded(2 * MIB as usize)), "the box takes up to 1048576: raise infer.updates.size_limit"),
    ] {
        shop.publish(&format!("activity-{version}"), &package);
        let halted = shop.cloud(version, "it to be refused", |offer| offer["is_halted"] == true);
        let trouble = &halted["troubles"][0];
        assert!(trouble["gateway"] == "box-1" && trouble["state"] == "refused", "{halted}");
        assert!(trouble["reason"].as_str().is_some_and(|said| said.contains(reason)), "{halted}");
        let offer = shop.offer("the box to say so", |offer| offer["version"] == version && offer["state"] == "refused");
        assert!(offer["reason"].as_str().is_some_and(|said| said.contains(reason)), "{offer}");
        assert!(
            shop.lab.site.edge_log().lines().any(|line| line.contains("WARN") && line.contains(reason)),
            "it is in the log"
        );
    }
    assert_eq!((shop.served(), shop.metric("weir_model_refusals_total")), (0, 0), "not a byte");
    // An older one than the box has tried, of which the cloud knows by itself.
    shop.lab.push("by-hand", &shop.lab.package(7, good()));
    shop.active(7);
    shop.publish("activity-5", &shop.lab.package(5, good()));
    let over = shop.cloud(5, "the older one to be passed over", |offer| offer["troubles"][0]["state"] == "passed-over");
    let reason = over["troubles"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("version 5 is not above 7") && over["is_halted"] == false, "{over}");
    assert_eq!(shop.served(), 0);
    shop.lab.goes_on();
}

#[test]
fn a_model_that_is_taken_back_halts_its_version_and_the_cloud_says_why_also_after_its_restart() {
    let mut shop = Shop::new("");
    shop.lab.goes_on();
    shop.publish("activity-2", &shop.lab.package(2, weir_tests::support::onnx::constant()));
    let halted = shop.cloud(2, "it to be taken back", |offer| offer["is_halted"] == true);
    let trouble = halted["troubles"][0].clone();
    assert!(
        trouble["state"] == "rolled-back" && trouble["reason"].to_string().contains("disagrees with the active model"),
        "{halted}"
    );
    shop.lab.site.kill_edge();
    shop.lab.site.kill_cloud();
    shop.lab.site.start_cloud();
    let again = shop.cloud(2, "the halt to be remembered while the box is away", |offer| offer["is_halted"] == true);
    assert_eq!(again["troubles"][0], trouble);
}

#[test]
fn a_day_that_is_used_up_is_waited_for_and_said_and_a_restart_grants_nothing() {
    let mut shop = Shop::new("day_bytes = \"100KiB\"");
    shop.lab.goes_on();
    let package = shop.lab.package(2, padded(300_000));
    shop.publish("activity-2", &package);
    let reason = "bytes that models may take in a day are used (infer.updates.day_bytes)";
    let is_waiting = |offer: &Value| offer["state"] == "waiting" && offer["reason"].to_string().contains(reason);
    shop.offer("it to wait", is_waiting);
    let seen = shop.seen("the cloud to see it wait", |model| model["stage"] == "waiting");
    assert!(seen["reason"].as_str().is_some_and(|said| said.contains(reason)) && seen["state"] == "trial", "{seen}");
    let served = shop.served();
    assert!((90 * 1_024..=100 * 1_024).contains(&served), "{served}");
    shop.lab.site.kill_edge();
    shop.lab.site.start_edge();
    shop.offer("it to wait again", is_waiting);
    assert_eq!(shop.served(), served, "not a byte more");
    shop.restart_box(|plan| plan.tables = plan.tables.replace("day_bytes = \"100KiB\"", "day_bytes = \"10MiB\""));
    shop.active(2);
    assert_eq!(shop.served(), package.len() as u64, "each byte once");
    shop.lab.goes_on();
}

#[test]
fn neither_a_metered_uplink_nor_tcp_carries_models_unless_it_may() {
    let mut shop = Shop::with(CLEAN, "", |plan| plan.uplink = "metered = true".to_owned());
    shop.lab.goes_on();
    shop.publish("activity-2", &shop.lab.package(2, good()));
    let waits = shop.offer("it to wait", |offer| offer["state"] == "waiting");
    assert!(waits["reason"].to_string().contains("test is metered (infer.updates.metered)"), "{waits}");
    assert_eq!(shop.served(), 0);
    // Without QUIC there are no streams of their own.
    let tls = shop.lab.site.cloud_tls();
    shop.lab.site.cut_link(true);
    shop.restart_box(|plan| plan.uplink = format!("fallback = {{ address = \"{tls}\" }}\nserver_name = \"localhost\""));
    shop.lab.site.wait_uplink_at(1, true);
    let waits = shop.offer("it to wait", |offer| offer["state"] == "waiting");
    assert!(waits["reason"].to_string().contains("test/tcp goes over TCP, and models come over QUIC only"), "{waits}");
    assert_eq!(shop.served(), 0);
    shop.lab.site.cut_link(false);
    shop.active(2);
    // And over a metered one, if it may.
    shop.restart_box(|plan| {
        plan.uplink = "metered = true".to_owned();
        plan.tables = plan.tables.replace("windows = 10", "windows = 10\nmetered = true");
    });
    shop.publish("activity-3", &shop.lab.package(3, good()));
    shop.active(3);
    shop.lab.goes_on();
}

#[test]
fn heartbeats_wait_for_no_more_than_a_chunk_while_a_model_comes() {
    let shop = Shop::with(SLOW, "", |_| ());
    shop.lab.goes_on();
    let rtt_us = || {
        let status = shop.lab.site.edge_status().expect("it answers");
        status["uplinks"][0]["heartbeat_rtt_us"].as_u64().unwrap_or(0)
    };
    let sample = |seconds: u64| {
        let (until, mut found) = (Instant::now() + Duration::from_secs(seconds), Vec::new());
        while Instant::now() < until {
            found.push(rtt_us());
            std::thread::sleep(Duration::from_millis(100));
        }
        found.sort_unstable();
        (found[found.len() / 2], found[found.len() - 1])
    };
    let before = sample(5);
    shop.publish("activity-2", &shop.lab.package(2, padded(4 * MIB as usize)));
    shop.has(100_000);
    let during = sample(5);
    shop.has(200_000);
    println!("heartbeats over 4 Mbit/s, median and longest, in us: {before:?} without, {during:?} while a model comes");
    // A chunk takes 130 ms, and the queue of the link as long again.
    assert!(during.1 < 600_000, "{before:?} {during:?}");
    assert!(shop.lab.site.edge_status().is_some_and(|status| status["uplinks"][0]["downs"] == 0));
    shop.lab.goes_on();
}

#[test]
fn the_second_box_is_offered_a_model_once_the_first_has_kept_it() {
    let shop = Shop::new("");
    shop.lab.goes_on();
    let (neighbour, _) = shop.lab.site.start_neighbour();
    wait_for("both boxes to have said which models they have", LIMIT, || {
        let status = shop.cloud_status()?;
        let said = status["gateways"].as_array()?.iter().filter(|gateway| gateway["models"][0]["active"] == 0);
        (said.count() == 2).then_some(())
    });
    shop.publish("activity-2", &shop.lab.package(2, good()));
    // The second has no sensors, so that it sees no windows: it has fetched the package, and is at its trial.
    wait_for("both to have it", LIMIT, || {
        let status = shop.cloud_status()?;
        let gateways = status["gateways"].as_array()?;
        gateways.iter().all(|gateway| gateway["models"][0]["version"] == 2).then_some(())
    });
    let log = shop.lab.site.cloud_log();
    let steps: Vec<&str> = log
        .lines()
        .filter_map(|line| ["model offered", "model goes on"].into_iter().find(|words| line.contains(words)))
        .collect();
    let kept_by_first = log.lines().position(|line| line.contains("model state") && line.contains("kept"));
    if let Some(kept) = kept_by_first {
        assert_eq!(steps, ["model offered", "model goes on", "model offered"], "{log}");
        let goes_on = log.lines().position(|line| line.contains("model goes on"));
        assert!(goes_on > Some(kept), "{log}");
    } else {
        // The one without sensors was the first: then nobody else has it, which the wait above would not have let pass.
        panic!("both have it, and nobody has kept it: {log}");
    }
    drop(neighbour);
}
