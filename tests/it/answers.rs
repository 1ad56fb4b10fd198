//! What a person may ask a running site: why is it sent like this, where is my record, what does the graph look like.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use weir_tests::support::process::run;
use weir_tests::support::publisher::Sensor;
use weir_tests::support::script::{Fate, Message};
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::wait_for;

use crate::{binaries, tool};

const LIMIT: Duration = Duration::from_secs(30);
const STREAM: &str = "[[stream]]\nname = \"pumps\"\ntopics = [\"pumps\"]\nclass = \"high\"\n";

fn message(n: u32) -> Message {
    Message {
        topic: "pumps".to_owned(),
        payload: format!("{n} drop").into_bytes(),
        qos: 1,
        stream: "pumps",
        device: String::new(),
        lane: "high",
        fate: Fate::Record,
    }
}

/// Exit code, standard output and standard error of the operator's tool.
fn weir(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(tool());
    command.args(arguments);
    run(command, LIMIT)
}

#[test]
fn a_record_is_found_wherever_it_is_and_a_stream_says_why_it_is_sent_as_it_is() {
    let mut site = Site::started(binaries(), Plan::new("disk", STREAM));
    let admin = site.admin().0.to_string();
    site.wait_uplink(true);
    site.kill_cloud();
    let mut sensor = Sensor::new(site.mqtt(), "sensor", message);
    (sensor.count_max, sensor.window) = (10, 10);
    assert_eq!(sensor.start().wait(LIMIT).unacked, 0, "the disk has them");
    let epoch = site.edge_status().expect("a status")["epoch"].as_str().expect("an epoch").to_owned();
    let ask = |seq: u64| {
        let id = format!("{epoch}:high:{seq}");
        let (code, answer, error) = weir(&["explain", "--record", &id, "--json", "--admin", &admin]);
        assert_eq!(code, Some(0), "{error}");
        serde_json::from_str::<Value>(&answer).expect("JSON")["record"].clone()
    };
    let held = ask(3);
    assert!(held["is_safe"] == true, "{held}");
    assert_eq!(ask(10)["place"], "not-yet");
    site.start_cloud();
    let place = || (ask(3)["place"] == "gone").then_some(());
    wait_for("the cloud to have it", LIMIT, place);

    let (code, text, error) = weir(&["explain", "pumps", "--admin", &admin]);
    assert_eq!(code, Some(0), "{error}");
    for part in ["stream pumps: raw in lane high", "because policy asks for raw", "lane high: by test", "changes:"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, _, error) = weir(&["explain", "pump", "--admin", &admin]);
    assert!(code == Some(1) && error.contains("there is no stream `pump`; there are: pumps"), "{error}");
    let (code, _, error) = weir(&["explain", "--record", "7", "--admin", &admin]);
    assert!(code == Some(1) && error.contains("write EPOCH:LANE:SEQ"), "{error}");
    site.stop_edge();
    let (code, _, error) = weir(&["explain", "--admin", &admin]);
    assert!(code == Some(1) && error.contains("is it running"), "{error}");
}

#[test]
fn the_cloud_asks_any_box_and_says_itself_what_has_come() {
    let mut site = Site::started(binaries(), Plan::new("disk", STREAM));
    let cloud = site.admin().1.to_string();
    site.wait_uplink(true);
    let mut sensor = Sensor::new(site.mqtt(), "sensor", message);
    (sensor.count_max, sensor.window) = (10, 10);
    assert_eq!(sensor.start().wait(LIMIT).unacked, 0);
    site.drain();
    let status = site.edge_status().expect("a status");
    let name = status["gateway"].as_str().expect("a name").rsplit('/').next().expect("a name").to_owned();
    let record = format!("{}:high:3", status["epoch"].as_str().expect("an epoch"));
    let through = |more: &[&str]| weir(&[&["explain", "--gateway", &name, "--admin", &cloud], more].concat());

    let (code, text, error) = through(&["pumps"]);
    assert_eq!(code, Some(0), "{error}");
    let seen = format!("the cloud has seen {name}");
    for part in
        [&seen, "lane high: stored up to 9", "stream pumps: raw in lane high", "because policy asks for raw", "changes:"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, text, error) = through(&["--record", &record, "--json"]);
    assert_eq!(code, Some(0), "{error}");
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&answer["record"]["place"], &answer["answer"]["record"]["place"]),
        (&"stored".into(), &"gone".into()),
        "{answer}"
    );
    let (code, _, error) = through(&["pump"]);
    assert!(code == Some(1) && error.contains("there is no stream `pump`; there are: pumps"), "{error}");
    let (code, _, error) = weir(&["explain", "--gateway", "nobody", "--admin", &cloud]);
    assert!(code == Some(1) && error.contains("there is no gateway `nobody`"), "{error}");

    site.stop_edge();
    wait_for("the cloud to see it go", LIMIT, || {
        let (_, status) = site.cloud.as_ref()?.get("/status.json")?;
        let status: Value = serde_json::from_str(&status).ok()?;
        (status["connections"] == 0).then_some(())
    });
    let (code, text, error) = through(&["--record", &record]);
    assert!(code == Some(0) && text.contains("high:3: stored") && text.contains("not connected"), "{text}{error}");
    let (code, text, error) = through(&["pumps"]);
    assert!(code == Some(1) && text.contains("lane high: stored up to 9") && error.contains("not connected"), "{text}{error}");
}

#[test]
fn box_and_cloud_show_their_graphs_and_what_depends_on_what() {
    let site = Site::started(binaries(), Plan::new("through", STREAM));
    let (edge, cloud) = (site.admin().0.to_string(), site.admin().1.to_string());
    site.wait_uplink(true);
    let (code, own, error) = weir(&["graph", "show", "--admin", &edge, "--format", "json"]);
    assert_eq!(code, Some(0), "{error}");
    let gateway = site.edge_status().expect("a status")["gateway"].as_str().expect("a name").to_owned();
    let node = gateway.rsplit('/').next().expect("a name").to_owned();
    assert!(own.contains("pumps") && own.contains(&node), "{own}");
    let stream = format!("stream/{node}/pumps");
    // The box has published its part once its first estimates were there.
    wait_for("the cloud to know the box's part", LIMIT, || {
        let (_, all, _) = weir(&["graph", "show", "--admin", &cloud, "--format", "json"]);
        all.contains(&node).then_some(())
    });
    let (code, text, error) = weir(&["graph", "show", "--admin", &cloud]);
    assert!(code == Some(0) && text.contains(&node), "{text}{error}");
    let (code, text, error) = weir(&["graph", "impact", &format!("uplink/{node}/test"), "--admin", &cloud]);
    assert!(code == Some(0) && text.contains(&stream), "{text}{error}");
    let owners = || {
        let (_, status) = site.cloud.as_ref()?.get("/status.json")?;
        let status: Value = serde_json::from_str(&status).ok()?;
        (status["graph"]["owners"].as_u64()? == 2).then_some(())
    };
    wait_for("box and cloud to be counted", LIMIT, owners);
}

#[test]
fn the_cloud_shows_two_boxes_behind_one_carrier_and_what_its_failure_would_break() {
    let mut plan = Plan::new("through", STREAM);
    plan.uplink = "carrier = \"telco\"\nzone = \"eu\"".to_owned();
    let site = Site::started(binaries(), plan);
    let (_neighbour, neighbour_admin) = site.start_neighbour();
    let cloud = site.admin().1.to_string();
    let shown = wait_for("the cloud to know both boxes", LIMIT, || {
        let (_, text, _) = weir(&["graph", "show", "--admin", &cloud]);
        ["gateway/box-1", "gateway/box-2"].iter().all(|node| text.contains(node)).then_some(text)
    });
    assert!(shown.contains("carrier/telco"), "{shown}");
    let (code, text, error) = weir(&["graph", "impact", "carrier/telco", "--admin", &cloud]);
    let streams = ["stream/box-1/pumps", "stream/box-2/pumps"];
    assert!(code == Some(0) && streams.iter().all(|stream| text.contains(stream)), "{text}{error}");
    let (code, text, error) = weir(&["graph", "weak-points", "--gateway", "box-2", "--admin", &cloud]);
    assert!(code == Some(0) && text.contains("carrier/telco"), "{text}{error}");
    let (code, text, error) = weir(&["graph", "path", streams[1], "--zone", "eu", "--admin", &cloud]);
    assert!(code == Some(0) && text.contains("sink/sqlite"), "{text}{error}");
    let (code, text, _) = weir(&["graph", "path", streams[1], "--zone", "us", "--admin", &cloud]);
    assert!(code == Some(1) && text.contains("zone/eu, allowed is us"), "{text}");
    // A box knows its own part only.
    let (code, text, error) = weir(&["graph", "show", "--format", "dot", "--admin", &neighbour_admin.to_string()]);
    assert!(code == Some(0) && text.starts_with("digraph") && text.contains("gateway/box-2"), "{text}{error}");
    assert!(!text.contains("gateway/box-1"), "{text}");
    wait_for("the box to show what it has told", LIMIT, || {
        let status = site.edge_status()?;
        (status["graph"]["fulls"] == 1 && status["uplinks"][0]["advice"] == 1.0).then_some(())
    });
}
