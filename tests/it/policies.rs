//! Policies from a directory to boxes and back: signed, tried, kept, taken back, and refused with a reason.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use weir_tests::support::process;
use weir_tests::support::site::{GATEWAY, Plan, Site};
use weir_tests::support::wait_for;

use crate::{binaries, tool};

/// A trial is kept ten seconds after the change at the earliest, and a change of the directory is seen after four.
const LIMIT: Duration = Duration::from_secs(60);
const STREAMS: &str = "[[stream]]\nname = \"pumps\"\ntopics = [\"pumps/+\"]\n";

/// A site whose box takes policies signed with a key of its own.
struct Fleet {
    site: Site,
    policies: PathBuf,
}

impl Fleet {
    fn new(trial: &str) -> Fleet {
        let mut site = Site::new(binaries(), Plan::new("disk", STREAMS));
        let policies = site.dir().join("policies");
        std::fs::create_dir(&policies).expect("there is room for a folder");
        let keys = site.dir().join("keys");
        weir(&["policy", "keygen", "--dir", &keys.display().to_string()]);
        let key = std::fs::read_to_string(keys.join("policy.pub")).expect("it was made");
        let (key, dir) = (key.trim(), policies.display());
        site.change(|plan| {
            plan.tables += &format!("[policy]\nkey = \"{key}\"\ntrial = \"{trial}\"\n");
            plan.cloud = format!("[policies]\ndir = \"{dir}\"\nshare = 0.0\nsoak = \"1s\"\n");
        });
        site.start_cloud();
        site.start_edge();
        site.wait_uplink(true);
        Fleet { site, policies }
    }

    /// Writes a policy that gives the stream a class, without a signature.
    fn write(&self, version: u64, class: &str) -> PathBuf {
        let path = self.policies.join(format!("{version}.toml"));
        let text = format!("[policy]\nversion = {version}\n[[stream]]\nname = \"pumps\"\nclass = \"{class}\"\n");
        std::fs::write(&path, text).expect("there is room");
        path
    }

    fn sign(&self, path: &Path) {
        let key = self.site.dir().join("keys/policy.key").display().to_string();
        weir(&["policy", "sign", &path.display().to_string(), "--key", &key]);
    }

    fn publish(&self, version: u64, class: &str) {
        self.sign(&self.write(version, class));
    }

    /// Publishes a policy that says something else than what was signed.
    fn publish_tampered(&self, version: u64) -> PathBuf {
        let path = self.write(version, "bulk");
        let draft = self.site.dir().join("draft.toml");
        std::fs::rename(&path, &draft).expect("it is there");
        self.sign(&draft);
        std::fs::rename(draft.with_extension("toml.sig"), path.with_extension("toml.sig")).expect("it was made");
        self.write(version, "critical")
    }

    /// The box's policies, once they are as wanted.
    fn edge(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, LIMIT, || self.site.edge_status().map(|status| status["policy"].clone()).filter(|policy| wanted(policy)))
    }

    /// The cloud's picture of a version, once it is as wanted.
    fn cloud(&self, version: u64, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, LIMIT, || {
            let policies = self.policies_of_cloud()?["policies"].clone();
            policies.as_array()?.iter().find(|policy| policy["version"] == version).filter(|policy| wanted(policy)).cloned()
        })
    }

    fn policies_of_cloud(&self) -> Option<Value> {
        let (_, body) = self.site.cloud.as_ref()?.get("/status.json")?;
        Some(serde_json::from_str::<Value>(&body).ok()?["policies"].clone())
    }

    /// The lane of the box's stream, as its plan says.
    fn lane(&self) -> String {
        let status = self.site.edge_status().expect("it answers");
        let plan = status["streams"][0]["plan"].as_str().expect("it has a plan").to_owned();
        plan.split("in lane ").nth(1).and_then(|rest| rest.split(',').next()).expect("a lane").to_owned()
    }
}

fn weir(args: &[&str]) {
    let mut command = Command::new(tool());
    command.args(args);
    let (code, _, stderr) = process::run(command, LIMIT);
    assert_eq!(code, Some(0), "weir {args:?}: {stderr}");
}

fn is_kept(version: u64) -> impl Fn(&Value) -> bool {
    move |policy| policy["version"] == version && policy["trial_version"].is_null()
}

#[test]
fn a_signed_policy_reaches_the_box_and_stays_and_others_are_refused_with_a_reason() {
    let mut fleet = Fleet::new("1m");
    assert_eq!(fleet.lane(), "normal");
    let unsigned = fleet.write(7, "high");
    let problem = wait_for("the unsigned policy to be reported", LIMIT, || {
        fleet.policies_of_cloud()?["problems"][0].as_str().map(str::to_owned)
    });
    assert!(problem.contains("7.toml is not signed"), "{problem}");
    fleet.sign(&unsigned);
    let on_trial = fleet.edge("the trial", |policy| policy["trial_version"] == 7);
    assert_eq!((&on_trial["version"], fleet.lane().as_str()), (&Value::from(0), "high"), "in force at once: {on_trial}");
    fleet.edge("version 7 to be kept", is_kept(7));
    fleet.cloud(7, "the cloud to know it", |policy| policy["gateways"]["kept"] == 1);
    let (_, body) = fleet.site.cloud.as_ref().and_then(|cloud| cloud.get("/status.json")).expect("it answers");
    let status: Value = serde_json::from_str(&body).expect("it is JSON");
    assert_eq!(
        (&status["gateways"][0]["name"], &status["gateways"][0]["policy_version"]),
        (&Value::from(GATEWAY), &Value::from(7))
    );
    assert!(fleet.site.edge_log().lines().any(|line| line.contains("policy") && line.contains("kept")), "it is logged");
    let explained = fleet.site.edge.as_ref().and_then(|edge| edge.get("/explain.json?stream=pumps")).expect("it answers").1;
    assert!(explained.contains("version 7 trial") && explained.contains("version 7 kept"), "{explained}");

    // It survives both kinds of restart, of the box and of the cloud.
    fleet.site.kill_edge();
    fleet.site.start_edge();
    assert_eq!(
        (fleet.edge("version 7 after a kill", is_kept(7))["last_state"].as_str(), fleet.lane().as_str()),
        (Some("kept"), "high")
    );
    fleet.site.stop_edge();
    fleet.site.start_edge();
    fleet.edge("version 7 after a stop", is_kept(7));

    // Changed after it was signed: the box says so, the cloud shows it and asks nobody else, also after its restart.
    let path = fleet.publish_tampered(8);
    let halted = fleet.cloud(8, "the tampered policy to be refused", |policy| policy["is_halted"] == true);
    let reason = halted["troubles"][0]["reason"].as_str().expect("a reason");
    assert!(halted["troubles"][0]["gateway"] == GATEWAY && reason.contains("changed after it was signed"), "{halted}");
    assert_eq!(fleet.lane(), "high");
    fleet.site.kill_cloud();
    fleet.site.start_cloud();
    let again = fleet.cloud(8, "the halt after a restart", |policy| policy["is_halted"] == true);
    assert_eq!(again["troubles"], halted["troubles"]);

    // An older one, once nothing higher is there.
    std::fs::remove_file(&path).expect("it is there");
    std::fs::remove_file(fleet.policies.join("7.toml")).expect("it is there");
    fleet.publish(6, "bulk");
    let older = fleet.cloud(6, "the older policy to be refused", |policy| policy["is_halted"] == true);
    assert!(older["troubles"][0]["reason"].as_str().is_some_and(|reason| reason.contains("not above 7")), "{older}");
    assert_eq!(fleet.lane(), "high");
}

#[test]
fn a_policy_whose_uplink_does_not_come_back_is_taken_back() {
    let fleet = Fleet::new("15s");
    fleet.publish(3, "bulk");
    fleet.edge("the trial", |policy| policy["trial_version"] == 3);
    fleet.site.cut_link(true);
    let after = fleet.edge("the trial to end", |policy| policy["trial_version"].is_null());
    assert_eq!((&after["version"], after["last_state"].as_str()), (&Value::from(0), Some("rolled-back")), "{after}");
    assert_eq!(fleet.lane(), "normal");
    fleet.site.cut_link(false);
    let halted = fleet.cloud(3, "the cloud to hear of it", |policy| policy["is_halted"] == true);
    let reason = halted["troubles"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("no uplink was up within 15 s"), "{halted}");
}

#[test]
fn a_box_killed_during_a_trial_comes_back_with_the_policy_before() {
    let mut fleet = Fleet::new("1m");
    fleet.publish(1, "high");
    fleet.edge("version 1 to be kept", is_kept(1));
    fleet.publish(2, "bulk");
    fleet.edge("the trial", |policy| policy["trial_version"] == 2);
    assert_eq!(fleet.lane(), "bulk");
    fleet.site.kill_edge();
    fleet.site.start_edge();
    let after = fleet.edge("version 1 to be in force", is_kept(1));
    assert_eq!((&after["last_version"], after["last_state"].as_str()), (&Value::from(2), Some("rolled-back")), "{after}");
    assert_eq!(fleet.lane(), "high");
    let halted = fleet.cloud(2, "the cloud to hear of it", |policy| policy["is_halted"] == true);
    assert!(
        halted["troubles"][0]["reason"].as_str().is_some_and(|reason| reason.contains("stopped during the trial")),
        "{halted}"
    );
    // It is not tried again.
    fleet.site.kill_cloud();
    fleet.site.start_cloud();
    fleet.site.wait_uplink(true);
    fleet.cloud(2, "the halt after a restart", |policy| policy["is_halted"] == true);
    assert!(fleet.edge("no trial", |_| true)["trial_version"].is_null());
}

#[test]
fn the_second_box_gets_a_policy_once_the_first_has_kept_it() {
    let fleet = Fleet::new("1m");
    let (neighbour, _) = fleet.site.start_neighbour();
    wait_for("both boxes to have said which policy they have", LIMIT, || {
        let (_, body) = fleet.site.cloud.as_ref()?.get("/status.json")?;
        let status: Value = serde_json::from_str(&body).ok()?;
        let said = status["gateways"].as_array()?.iter().filter(|gateway| gateway["policy_version"] == 0);
        (said.count() == 2).then_some(())
    });
    fleet.publish(1, "high");
    let kept = fleet.cloud(1, "both to keep it", |policy| policy["gateways"]["kept"] == 2);
    assert_eq!(kept["stage"], "all");
    let log = fleet.site.cloud_log();
    let steps: Vec<&str> = log
        .lines()
        .filter_map(|line| {
            let words = ["policy offered", "policy goes on", "kept"];
            words.into_iter().find(|word| line.contains("policy") && line.contains(word))
        })
        .collect();
    assert_eq!(steps, ["policy offered", "kept", "policy goes on", "policy offered", "kept"], "{log}");
    drop(neighbour);
}
