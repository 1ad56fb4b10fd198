//! A disk without space, on the box and in the cloud: everything waits, nothing is lost, and it goes on by itself.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use weir_tests::support::oracle;
use weir_tests::support::publisher::{Report, Sensor};
use weir_tests::support::random::Random;
use weir_tests::support::script::{Fate, MIXED_STREAMS, Message};
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::wait_for;

use weir_tests::support::skip;

use crate::binaries;

/// Time for a disk to fill or to be noticed as free again.
const LIMIT: Duration = Duration::from_secs(30);

/// What does not compress, so that it fills a disk.
fn bulky(client: usize, n: u32) -> Message {
    let mut random = Random::new((client as u64) << 32 | u64::from(n));
    let mut payload = format!("{client}-{n}:").into_bytes();
    payload.extend((0..2_000).map(|_| random.next_u64() as u8));
    Message {
        topic: format!("site/{client}/value"),
        payload,
        qos: 1,
        stream: "values",
        device: client.to_string(),
        lane: "normal",
        fate: Fate::Record,
    }
}

fn bulky_sensor(site: &Site, client: usize) -> Sensor {
    let mut sensor = Sensor::new(site.mqtt(), &format!("sensor-{client}"), move |n| bulky(client, n));
    sensor.window = 100;
    sensor
}

/// A small disk of its own in a private mount namespace, which lives as long as this.
struct SmallDisk {
    holder: Child,
    /// The disk, as this process sees it.
    outside: PathBuf,
}

impl SmallDisk {
    /// Mounts a disk of so many MiB at `at`, visible to `nsenter` only; `None` if that is not permitted.
    fn mount(at: &Path, mib: u32) -> Option<SmallDisk> {
        std::fs::create_dir_all(at).expect("there is room for a folder");
        let script = format!("mount -t tmpfs -o size={mib}m none '{}' && echo mounted && exec cat", at.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = command.spawn().ok()?;
        let mut line = [0; 8];
        let said = std::io::Read::read_exact(holder.stdout.as_mut().expect("piped"), &mut line);
        let outside = PathBuf::from(format!("/proc/{}/root{}", holder.id(), at.display()));
        let disk = SmallDisk { holder, outside };
        (said.is_ok() && line == *b"mounted\n").then_some(disk)
    }

    /// What runs a command where the disk is seen.
    fn prefix(&self) -> Vec<String> {
        ["nsenter", "--mount", "--target", &self.holder.id().to_string(), "--"].map(str::to_owned).to_vec()
    }

    /// Takes all space that is left.
    fn fill(&self) {
        let mut file = File::create(self.outside.join("filler")).expect("a file can be made");
        let mut len = 64 << 10;
        while len >= 512 {
            match file.write_all(&vec![7; len]) {
                Ok(()) => {}
                Err(err) if err.kind() == ErrorKind::StorageFull => len /= 2,
                Err(err) => panic!("the disk fails otherwise: {err}"),
            }
        }
    }

    /// Gives the space back.
    fn free(&self) {
        std::fs::remove_file(self.outside.join("filler")).expect("it is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn a_full_disk_of_the_box_holds_senders_back_and_loses_nothing() {
    let mut plan = Plan::new("disk", "");
    let lane = |class: &str, cap: &str| format!("[lane.{class}]\ndurability = \"disk\"\ncap = \"{cap}\"\n");
    let lanes = [("critical", "1MiB"), ("high", "1MiB"), ("normal", "24MiB"), ("bulk", "1MiB")];
    plan.tables = MIXED_STREAMS.to_owned() + &lanes.map(|(class, cap)| lane(class, cap)).concat();
    plan.buffer = "size_limit = \"64MiB\"\nreserve = \"1MiB\"\nmemory = \"1MiB\"\n".to_owned();
    let mut site = Site::new(binaries(), plan);
    let Some(disk) = SmallDisk::mount(&site.data_dir, 16) else {
        skip("a private mount namespace is not permitted here");
        return;
    };
    site.edge_prefix = disk.prefix();
    site.cut_link(true);
    site.start_cloud();
    site.start_edge();
    let sensors = [0, 1].map(|client| bulky_sensor(&site, client).start());
    let acked = || sensors.iter().map(|sensor| sensor.acked()).sum::<u64>();
    wait_for("some PUBACKs", LIMIT, || (acked() > 200).then_some(()));
    disk.fill();
    let (_, text) =
        wait_for("the box to say that its disk is full", LIMIT, || site.edge_health().filter(|(code, _)| *code == 503));
    assert!(text.contains("disk is full") && text.contains("free some space"), "{text}");
    // Senders wait; they are not cut off.
    let before = acked();
    wait_for("several retries", LIMIT, || (site.edge_status()?["store"]["commit_failures"].as_u64()? >= 3).then_some(()));
    assert!(acked() <= before + 200, "PUBACKs stop when nothing can be written");
    // Not even a kill in this state loses what was acknowledged.
    let acked_before_kill = acked();
    site.kill_edge();
    site.start_edge();
    disk.free();
    wait_for("PUBACKs to come again", LIMIT, || (acked() > acked_before_kill + 200).then_some(()));
    // It fills again, and this time the link empties it: deleting needs space too.
    disk.fill();
    wait_for("the box to be full again", LIMIT, || site.edge_health().filter(|(code, _)| *code == 503));
    site.cut_link(false);
    wait_for("PUBACKs with the help of the link", LIMIT, || (acked() > acked_before_kill + 1_000).then_some(()));
    let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.finish(LIMIT)).collect();
    assert_eq!(reports.iter().map(|report| report.unacked).sum::<usize>(), 0, "all PUBACKs come");
    site.drain();
    let healthy = wait_for("the box to be well", LIMIT, || site.edge_health().filter(|(code, _)| *code == 200));
    site.stop_edge();
    assert!(site.edge_log().contains("the buffer takes no data; senders are held back"), "it was logged");
    assert!(site.edge_log().contains("the buffer takes data again"), "and its end too");
    let verdict = oracle::examine(&reports, &site.database(), None);
    println!("{}: {verdict}", healthy.1);
    verdict.assert_conserved();
    assert_eq!(verdict.voided, 0, "{verdict}");
}

#[test]
fn a_full_disk_of_the_cloud_stops_its_acknowledgements_and_loses_nothing() {
    let mut plan = Plan::new("through", MIXED_STREAMS);
    plan.store = "file_bytes_max = \"2MiB\"".to_owned();
    let mut site = Site::started(binaries(), plan);
    let mut sensors = [0, 1].map(|client| bulky_sensor(&site, client));
    sensors.iter_mut().for_each(|sensor| sensor.count_max = 900);
    let sensors = sensors.map(Sensor::start);
    let (_, text) =
        wait_for("the cloud to say that it is full", LIMIT, || site.cloud_health().filter(|(code, _)| *code == 503));
    assert!(text.contains("full"), "{text}");
    // The box goes on: what the cloud does not take is safe on its disk.
    let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.wait(LIMIT)).collect();
    assert_eq!(reports.iter().map(|report| report.unacked).sum::<usize>(), 0, "all PUBACKs come, from the box's disk");
    assert!(site.edge_holds().is_some_and(|held| held > 500), "the box holds what the cloud does not take");
    // A bigger disk: the cloud starts again with room.
    site.kill_cloud();
    site.change(|plan| plan.store = String::new());
    site.start_cloud();
    site.drain();
    site.stop_edge();
    site.stop_cloud();
    let verdict = oracle::examine(&reports, &site.database(), Some(&site.buffer()));
    println!("{verdict}");
    verdict.assert_conserved();
    assert_eq!((verdict.stored, verdict.voided), (1_800, 0), "{verdict}");
}

#[test]
fn a_cloud_whose_disk_has_no_space_at_all_stops_its_acknowledgements_and_goes_on_when_there_is_some() {
    let mut site = Site::new(binaries(), Plan::new("through", MIXED_STREAMS));
    let Some(disk) = SmallDisk::mount(&site.cloud_dir, 16) else {
        skip("a private mount namespace is not permitted here");
        return;
    };
    site.cloud_prefix = disk.prefix();
    site.start_cloud();
    site.start_edge();
    let mut sensors = [0, 1].map(|client| bulky_sensor(&site, client));
    sensors.iter_mut().for_each(|sensor| (sensor.count_max, sensor.per_s) = (1_200, 200));
    let sensors = sensors.map(Sensor::start);
    wait_for("some records to be stored", LIMIT, || (site.edge_status()?["lanes"][2]["acked"].as_u64()? > 100).then_some(()));
    disk.fill();
    let (_, text) =
        wait_for("the cloud to say that it is full", LIMIT, || site.cloud_health().filter(|(code, _)| *code == 503));
    assert!(text.contains("full"), "{text}");
    let reports: Vec<Report> = sensors.into_iter().map(|sensor| sensor.wait(LIMIT)).collect();
    assert_eq!(reports.iter().map(|report| report.unacked).sum::<usize>(), 0, "all PUBACKs come, from the box's disk");
    assert!(site.edge_holds().is_some_and(|held| held > 500), "the box holds what the cloud does not take");
    // Not even a kill in this state loses what was acknowledged.
    site.kill_cloud();
    disk.free();
    site.start_cloud();
    site.drain();
    site.stop_edge();
    site.stop_cloud();
    let database = site.dir().join("copy.db");
    for suffix in ["", "-wal"] {
        let from = disk.outside.join(format!("cloud.db{suffix}"));
        std::fs::copy(from, site.dir().join(format!("copy.db{suffix}"))).expect("there is room");
    }
    let verdict = oracle::examine(&reports, &database, Some(&site.buffer()));
    println!("{verdict}");
    verdict.assert_conserved();
    assert_eq!((verdict.stored, verdict.voided), (2_400, 0), "{verdict}");
}
