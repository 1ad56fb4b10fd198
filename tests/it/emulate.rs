//! The flashable image as a whole machine: it boots, takes data in, scores it and delivers it, and goes on after power cuts and faults.
//!
//! Ignored, because each start of an emulated machine takes half a minute: `cross/emulate.sh` builds the image, names it in
//! `WEIR_IMAGE` and its firmware in `WEIR_FIRMWARE`, and runs these. `WEIR_CUTS` and `WEIR_SEED` are the number of power cuts and their seed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weir_infer::{Backend, Model, Origin, Row, RuntimeLibrary};
use weir_tests::support::client::Version;
use weir_tests::support::machine::{Disk, HOST, Hardware, MQTT_PORT, Machine, Partition};
use weir_tests::support::oracle::{self, Verdict};
use weir_tests::support::publisher::{Report, Running, Sensor};
use weir_tests::support::random::{Random, number, seed};
use weir_tests::support::script::{self, Fate, MIXED_STREAMS, Message};
use weir_tests::support::site::{GATEWAY, LOSSY, Plan, Site};
use weir_tests::support::wrist::{self, CHANNELS, PERIOD_US, START_US, WINDOW};
use weir_tests::support::{skip, wait_for};

use crate::binaries;

/// From power to the program being ready, on a host that is busy with other things too.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// For messages and records to arrive once all is well.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two attempts of a sensor to connect: more would keep a machine busy that is starting.
const RECONNECT: Duration = Duration::from_secs(1);
/// In-flight windows of the sensors.
const WINDOWS: [usize; 3] = [1, 20, 100];
/// Nothing is folded or written on receipt alone, so that what is acknowledged is on the disk or in the cloud.
const LANES: &str = "[lane.critical]\ndurability = \"disk\"\n[lane.high]\ndurability = \"disk\"\n";

/// A cloud on the host, and the image with a disk of its own.
struct Rig {
    machine: Option<Machine>,
    hardware: Hardware,
    site: Site,
}

impl Rig {
    /// The machine is not switched on yet. `None` if nobody has built an image.
    fn new() -> Option<Rig> {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let (Some(image), Some(firmware)) = (path("WEIR_IMAGE"), path("WEIR_FIRMWARE")) else {
            skip("WEIR_IMAGE and WEIR_FIRMWARE name no image: cross/emulate.sh makes one and runs this");
            return None;
        };
        let mut plan = Plan::new("through", "");
        (plan.link, plan.seed) = (LOSSY, seed(0xb0c5));
        let site = Site::new(binaries(), plan);
        let disk = Disk::copy(&image, site.dir());
        let hardware = Hardware::new(&firmware, disk, site.dir());
        Some(Rig { machine: None, hardware, site })
    }

    /// Puts a configuration on the provisioning partition, and the certificates and the model beside it.
    fn provision(&self, config: &str) {
        let folder = self.site.dir().join("provision");
        let copy = |from: &Path, name: &str| {
            std::fs::create_dir_all(folder.join(name).parent().expect("it is in a folder")).expect("there is room");
            std::fs::copy(from, folder.join(name)).expect("there is room");
        };
        let pki = self.site.dir().join("pki");
        for name in [&format!("{GATEWAY}.pem"), &format!("{GATEWAY}.key"), "ca.pem"] {
            copy(&pki.join(name), name);
        }
        for name in ["watch-small.onnx", "watch-small.toml"] {
            copy(&models().join(name), &format!("models/{name}"));
        }
        std::fs::write(folder.join("edge.toml"), config).expect("there is room");
        self.hardware.disk.provision(&folder);
    }

    /// A configuration that works, with these tables.
    fn config(&self, tables: &str) -> String {
        let port = self.site.uplink().port();
        format!(
            "[[listen]]\nbind = \"0.0.0.0:{MQTT_PORT}\"\ninsecure = true\nallow_anonymous = true\n\
             [[uplink]]\nname = \"test\"\naddress = \"{HOST}:{port}\"\nserver_name = \"localhost\"\n\
             [session]\nbackoff_max = \"2s\"\n\
             [tls]\ncert = \"{GATEWAY}.pem\"\nkey = \"{GATEWAY}.key\"\nca = \"ca.pem\"\n{tables}\n"
        )
    }

    fn power_on(&mut self) -> &mut Machine {
        self.machine.insert(self.hardware.start())
    }

    fn power_cut(&mut self) {
        self.machine.take().expect("it runs").cut();
    }

    fn wait_serial(&mut self, what: &str, limit: Duration) {
        self.machine.as_mut().expect("it runs").wait_serial(what, limit);
    }

    /// A sensor that sends a little of every class, and what cannot be used.
    fn sensor(&self, client: usize, window: usize) -> Running {
        let mut sensor = Sensor::new(self.hardware.mqtt, &format!("sensor-{client}"), move |n| script::mixed(client, n));
        sensor.login.version = if client.is_multiple_of(2) { Version::V311 } else { Version::V5 };
        (sensor.window, sensor.per_s, sensor.reconnect) = (window, 60, RECONNECT);
        sensor.start()
    }

    /// Stops all sensors once everything is acknowledged, and waits until all of that is in the cloud.
    fn deliver(&self, sensors: Vec<Running>) -> Vec<Report> {
        self.site.cut_link(false);
        sensors.iter().for_each(Running::stop);
        let deadline = Instant::now() + LIMIT;
        let left = || deadline.saturating_duration_since(Instant::now());
        let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.finish(left())).collect();
        assert!(reports.iter().all(|report| report.unacked == 0), "all PUBACKs come once all is well");
        wait_for("all that was acknowledged to be in the cloud", LIMIT, || (self.examine(&reports).absent == 0).then_some(()));
        reports
    }

    fn examine(&self, reports: &[Report]) -> Verdict {
        // Without the buffer: what was delivered needs none.
        oracle::examine(reports, &self.site.database(), None)
    }

    /// Ends all, and asserts that nothing was lost, doubled or given up.
    fn conclude(mut self, reports: &[Report]) -> Verdict {
        self.power_cut();
        self.site.stop_cloud();
        let verdict = self.examine(reports);
        let connects: u64 = reports.iter().map(|report| report.connects).sum();
        println!("{connects} connections\n{verdict}");
        assert_eq!(verdict.voided, 0, "nothing is given up here, so nothing may be excused by it\n{verdict}");
        verdict.assert_conserved();
        let serial = self.hardware.serial_text();
        for line in serial.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")) {
            println!("{line}");
        }
        for complaint in ["EXT4-fs error", "was repaired", "set aside", "are damaged", "Kernel panic"] {
            assert!(!serial.contains(complaint), "`{complaint}` on the serial console");
        }
        verdict
    }
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

/// The reference model on a stream whose messages are acknowledged when their window's verdict is safe.
fn scored_tables() -> String {
    let model = "[[model]]\nname = \"watch\"\nmanifest = \"models/watch-small.toml\"\n[infer]\nbackend = \"rten\"\n";
    format!("{MIXED_STREAMS}{}{model}{LANES}", wrist::stream("safe", "ack = \"record\""))
}

fn acked(sensors: &[Running]) -> u64 {
    sensors.iter().map(Running::acked).sum()
}

/// Scores in the cloud's database are those of the same model on this processor; returns how many there are.
fn check_scores(database: &Path, rows: &[[i32; CHANNELS]]) -> usize {
    let library = RuntimeLibrary::in_folders(Vec::new());
    let mut model = Model::load(&models().join("watch-small.toml"), Backend::Rten, &library).expect("it is in the repository");
    let db = oracle::open(database);
    let mut query =
        db.prepare("SELECT start_us, end_us, score FROM verdicts WHERE stream = 'safe'").expect("the view is there");
    let found = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).expect("it can be read");
    let found: Vec<(i64, i64, f64)> = found.map(|row| row.expect("two times and a score")).collect();
    for &(start_us, end_us, score) in &found {
        let first = ((start_us - START_US) / PERIOD_US) as usize;
        let samples: Vec<_> = (first..first + WINDOW).map(|at| rows[at % rows.len()]).collect();
        let window: Vec<f32> = (0..CHANNELS).flat_map(|channel| samples.iter().map(move |row| row[channel] as f32)).collect();
        let row = Row { window: &window, origin: Some(Origin { device: 0, start_us, end_us }) };
        let expected = model.score_rows(&[row]).remove(0).expect("it is a good window").verdict.score;
        assert!((score - f64::from(expected)).abs() < 1e-4, "window from sample {first}: {score} there, {expected} here");
    }
    found.len()
}

#[test]
#[ignore = "boots a machine: cross/emulate.sh builds its image and runs this"]
fn the_image_delivers_scores_and_loses_nothing_in_power_cuts() {
    let Some(mut rig) = Rig::new() else { return };
    let (cuts, seed) = (number("WEIR_CUTS", 3), seed(0xb0c5));
    println!("WEIR_SEED={seed} WEIR_CUTS={cuts}");
    let mut random = Random::new(seed);
    rig.provision(&rig.config(&scored_tables()));
    rig.site.start_cloud();
    let rows = wrist::recording(8);
    rig.power_on();
    let mut sensors: Vec<Running> = WINDOWS.iter().enumerate().map(|(client, &window)| rig.sensor(client, window)).collect();
    let recorded = rows.clone();
    let mut wrist = Sensor::new(rig.hardware.mqtt, "wrist", move |n| wrist::message("safe", 0, &recorded, n));
    (wrist.per_s, wrist.reconnect) = (20, RECONNECT);
    sensors.push(wrist.start());

    let db = oracle::open(&rig.site.database());
    wait_for("the first record", BOOT_LIMIT, || (oracle::count(&db, "SELECT count(*) FROM samples") > 0).then_some(()));
    let machine = rig.machine.as_mut().expect("it runs");
    println!("power to first record in the cloud: {:.1} s", machine.began.elapsed().as_secs_f64());
    machine.wait_serial("KiB (PSS)", LIMIT);
    let serial = machine.serial();
    for line in serial.lines().filter(|line| line.starts_with("weir-") && (line.contains("ready") || line.contains("PSS"))) {
        println!("{line}");
    }
    assert!(serial.contains("weir-boot: slot a") && serial.contains("by DHCP") && serial.contains("is kept"), "{serial}");
    assert!(serial.contains("the machine's watchdog is fed"), "{serial}");

    let mut slowest = Duration::ZERO;
    for cut in 1..=cuts {
        // Now and then the uplink is away before and while the power is: then only the disk has what was acknowledged.
        let is_alone = random.chance(40);
        rig.site.cut_link(is_alone);
        std::thread::sleep(Duration::from_millis(random.between(500, 6_000)));
        rig.power_cut();
        let before = acked(&sensors);
        rig.power_on();
        wait_for(&format!("PUBACKs after power cut {cut}"), BOOT_LIMIT, || (acked(&sensors) >= before + 100).then_some(()));
        slowest = slowest.max(rig.machine.as_ref().expect("it runs").began.elapsed());
        rig.site.cut_link(false);
    }
    let reports = rig.deliver(sensors);
    let wrist_acked = reports[WINDOWS.len()].sent.len();
    let uncovered = || {
        let windows = wrist::windows(&rig.site.database(), "safe");
        (0..wrist_acked).filter(|&n| !wrist::is_covered(&windows, n as u32)).collect::<Vec<_>>()
    };
    // What the last window lacks never comes: those messages are acknowledged on receipt in the end.
    let is_whole = || uncovered().iter().all(|&n| n + wrist::MESSAGES_PER_WINDOW > wrist_acked);
    wait_for("a verdict on every window", LIMIT, || is_whole().then_some(()));
    let scores = check_scores(&rig.site.database(), &rows);
    println!(
        "{cuts} power cuts, at most {:.1} s from power to 100 PUBACKs; {scores} scores as on this processor",
        slowest.as_secs_f64()
    );
    let verdict = rig.conclude(&reports);
    assert!(verdict.acked > 500 && scores > 20, "it was long enough to mean something: {scores} scores\n{verdict}");
    // QEMU takes connections while the machine still starts, and hands those over later that the sensor has given up by then.
    let limit: u64 = reports.iter().map(|report| report.connects * WINDOWS[WINDOWS.len() - 1] as u64).sum();
    assert!(verdict.resent <= limit, "resent {} of at most {limit}\n{verdict}", verdict.resent);
}

#[test]
#[ignore = "boots a machine: cross/emulate.sh builds its image and runs this"]
fn a_wrong_configuration_is_said_and_the_last_good_one_goes_on() {
    let Some(mut rig) = Rig::new() else { return };
    rig.site.start_cloud();
    // A new box with nothing to fall back to: it runs and says why it does nothing.
    rig.provision("[[stream]\nname = ");
    rig.power_on();
    rig.wait_serial("given up for the image's own: the program refuses it", BOOT_LIMIT);
    rig.wait_serial("the program is ready", LIMIT);
    let serial = rig.machine.as_ref().expect("it runs").serial();
    assert!(serial.contains("edge.toml:1"), "it says where the mistake is\n{serial}");
    rig.power_cut();
    // The right one.
    rig.provision(&rig.config(&scored_tables()));
    rig.power_on();
    rig.wait_serial("is kept", BOOT_LIMIT);
    let sensors = vec![rig.sensor(0, 20)];
    wait_for("PUBACKs", LIMIT, || (acked(&sensors) > 100).then_some(()));
    rig.power_cut();
    // A mistake in an update: names what is not there.
    rig.provision(&rig.config(&scored_tables().replace("class = \"critical\"", "class = \"urgent\"")));
    rig.power_on();
    rig.wait_serial("given up for the last good one: the program refuses it", BOOT_LIMIT);
    let before = acked(&sensors);
    wait_for("PUBACKs", LIMIT, || (acked(&sensors) > before + 100).then_some(()));
    let reports = rig.deliver(sensors);
    rig.conclude(&reports);
}

#[test]
#[ignore = "boots a machine: cross/emulate.sh builds its image and runs this"]
fn a_missing_model_and_an_outage_are_said_and_nothing_is_lost() {
    let Some(mut rig) = Rig::new() else { return };
    rig.site.start_cloud();
    rig.provision(&rig.config(&scored_tables().replace("models/watch-small.toml", "models/lost.toml")));
    rig.power_on();
    let sensors = vec![rig.sensor(0, 20), rig.sensor(1, 50)];
    rig.wait_serial("model is not loaded", BOOT_LIMIT);
    wait_for("PUBACKs", LIMIT, || (acked(&sensors) > 100).then_some(()));
    rig.site.cut_link(true);
    rig.wait_serial("uplink is down", LIMIT);
    let before = acked(&sensors);
    wait_for("PUBACKs without an uplink", LIMIT, || (acked(&sensors) > before + 200).then_some(()));
    let reports = rig.deliver(sensors);
    rig.conclude(&reports);
}

#[test]
#[ignore = "boots a machine: cross/emulate.sh builds its image and runs this"]
fn a_full_data_partition_is_said_and_loses_nothing() {
    let Some(mut rig) = Rig::new() else { return };
    rig.hardware.disk.fill_data(14 << 10, rig.site.dir());
    let lanes = "[lane.normal]\ndurability = \"disk\"\n[buffer]\nmemory = \"2MiB\"\n";
    rig.provision(&rig.config(&format!("{MIXED_STREAMS}{lanes}")));
    rig.power_on();
    rig.wait_serial("the program is ready", BOOT_LIMIT);
    // What does not compress, and no cloud that would take it.
    let bulky = |n: u32| {
        let mut random = Random::new(u64::from(n));
        let mut payload = format!("0-{n}:").into_bytes();
        payload.extend((0..8_000).map(|_| random.next_u64() as u8));
        let (topic, device) = ("site/0/value".to_owned(), "0".to_owned());
        Message { topic, payload, qos: 1, stream: "values", device, lane: "normal", fate: Fate::Record }
    };
    let mut sensor = Sensor::new(rig.hardware.mqtt, "sensor-0", bulky);
    (sensor.window, sensor.reconnect) = (50, RECONNECT);
    let sensors = vec![sensor.start()];
    rig.wait_serial("the buffer takes no data; senders are held back", LIMIT);
    let before = acked(&sensors);
    assert!(before > 0, "it took data before");
    // The box is alive all the while, and goes on as soon as there is a cloud.
    rig.site.start_cloud();
    rig.wait_serial("the buffer takes data again", LIMIT);
    wait_for("PUBACKs", LIMIT, || (acked(&sensors) > before + 100).then_some(()));
    let reports = rig.deliver(sensors);
    rig.conclude(&reports);
}

#[test]
#[ignore = "boots a machine: cross/emulate.sh builds its image and runs this"]
fn a_slot_on_trial_is_used_once_and_one_that_does_not_start_leaves_the_good_one() {
    let Some(mut rig) = Rig::new() else { return };
    let dir = rig.site.dir().to_owned();
    rig.hardware.disk.enlarge(512);
    rig.hardware.disk.set_grub("trial=b", &dir);
    rig.power_on();
    rig.wait_serial("weir-boot: slot b", BOOT_LIMIT);
    rig.wait_serial("the program is ready", LIMIT);
    let serial = rig.machine.as_ref().expect("it runs").serial();
    assert!(serial.contains("the data partition has 640 MiB now"), "it takes the rest of the card\n{serial}");
    rig.power_cut();
    rig.power_on();
    rig.wait_serial("weir-boot: slot a", BOOT_LIMIT);
    rig.power_cut();
    rig.hardware.disk.ruin(Partition::SlotB);
    rig.hardware.disk.set_grub("trial=b", &dir);
    rig.power_on();
    rig.wait_serial("slot b does not start", BOOT_LIMIT);
    rig.wait_serial("weir-boot: slot a", BOOT_LIMIT);
    rig.wait_serial("the program is ready", LIMIT);
}
