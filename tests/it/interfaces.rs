//! Interfaces that appear, go and come back: nothing at start needs the network, and what waits is tried at once.

use std::time::{Duration, Instant};

use weir_tests::support::netns::{self, Lab, LabPlan};
use weir_tests::support::random::Random;
use weir_tests::support::script::{Fate, Message};
use weir_tests::support::{oracle, skip, wait_for};

use crate::binaries;

const LINK: &str = "[up]\nrate = '10Mbit/s'\ndelay = '10ms'\nqueue = '64KiB'\n";
const TABLES: &str = "[[stream]]\nname = \"plain\"\ntopics = [\"plain\"]\n[lane.normal]\ndurability = \"disk\"\n";
/// Time for what should happen to have happened.
const LIMIT: Duration = Duration::from_secs(60);
/// From an interface's appearance to a session: a look, an attempt that may come before the address, and the next. The wait
/// that the failed attempts have led to is longer.
const UP_LIMIT: Duration = Duration::from_secs(3);
/// From an interface's end until the box knows: a look, not the silence that ends a session.
const GONE_LIMIT: Duration = Duration::from_secs(2);

fn plain(n: u32) -> Message {
    let mut random = Random::new(u64::from(n));
    let noise: String = (0..200).map(|_| char::from(random.between(0x21, 0x7f) as u8)).collect();
    Message {
        topic: "plain".to_owned(),
        payload: format!("{n} {noise}").into_bytes(),
        qos: 1,
        stream: "plain",
        device: String::new(),
        lane: "normal",
        fate: Fate::Record,
    }
}

#[test]
fn a_box_without_its_interface_takes_data_in_and_connects_whenever_it_appears() {
    if let Some(why) = netns::unavailable() {
        skip(&format!("interfaces that come and go: {why}"));
        return;
    }
    let plan = LabPlan { links: vec![LINK], tables: TABLES.to_owned(), has_fallbacks: false, seed: 1 };
    let mut lab = Lab::unplugged(binaries(), &plan);
    let sensor = lab.sensor("sensor", plain, |sensor| (sensor.per_s, sensor.window) = (100, 500));
    wait_for("PUBACKs without a network", LIMIT, || (sensor.acked() > 200).then_some(()));
    let uplink = |lab: &Lab| Some(lab.edge_status()?["uplinks"][0].clone());
    // So many attempts that the next would be seconds away.
    let waiting = wait_for("attempts to fail", LIMIT, || uplink(&lab).filter(|of| of["attempts"].as_u64() >= Some(5)));
    let why = waiting["last_down"].as_str().unwrap_or_default();
    assert!(why.contains("the interface `wan0` cannot be used (there is none of this name now"), "{waiting}");
    let mut took = Vec::new();
    for round in 0..2 {
        let plugged = Instant::now();
        lab.plug();
        lab.wait_uplink(0, true, LIMIT);
        took.push(plugged.elapsed());
        let before = sensor.acked();
        wait_for("more PUBACKs", LIMIT, || (sensor.acked() > before + 100).then_some(()));
        if round == 0 {
            let unplugged = Instant::now();
            lab.unplug();
            lab.wait_uplink(0, false, LIMIT);
            let gone = unplugged.elapsed();
            let last_down = uplink(&lab).expect("the box answers")["last_down"].as_str().unwrap_or_default().to_owned();
            println!("the end of the interface was known after {gone:?}: {last_down}");
            assert!(gone <= GONE_LIMIT, "{gone:?}");
        }
    }
    println!("sessions {took:?} after the interface appeared");
    assert!(took.iter().all(|took| *took <= UP_LIMIT), "{took:?}");
    let report = sensor.finish(LIMIT);
    assert_eq!(report.unacked, 0, "all PUBACKs come");
    lab.drain_and_stop(LIMIT);
    let verdict = oracle::examine(&[report], &lab.database(), Some(&lab.buffer()));
    println!("{verdict}");
    assert_eq!((verdict.published, verdict.voided), (verdict.stored, 0), "{verdict}");
    verdict.assert_conserved();
}
