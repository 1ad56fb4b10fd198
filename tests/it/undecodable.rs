//! Payloads that do not decode: acknowledged, counted by reason, kept for inspection with what was wrong, and no stream stops.

use std::time::Duration;

use weir_tests::support::client::{Client, Login, Packet, Version};
use weir_tests::support::oracle;
use weir_tests::support::site::{Plan, Site};
use weir_tests::support::wait_for;

use crate::binaries;

const LIMIT: Duration = Duration::from_secs(10);
const STREAM: &str = "[[stream]]\nname = \"shaft\"\ntopics = [\"shaft/+\"]\n\
                      payload = { format = \"packed\", element = \"f32\", channels = 2, rate_hz = 10.0 }\n";

#[test]
fn packed_nan_is_refused_with_its_place_and_the_stream_goes_on() {
    let mut site = Site::started(binaries(), Plan::new("through", STREAM));
    let packed = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let mut client = Client::connect(site.mqtt(), &Login::anonymous("shaft", Version::V5)).expect("anyone may");
    let mut publish = |id: u16, payload: &[u8]| {
        client.publish("shaft/1", payload, 1, id, false).expect("it is connected");
        client.read(LIMIT).expect("it stays connected").expect("an answer comes")
    };
    assert_eq!(publish(1, &packed(&[1.0, 2.0])), Packet::PubAck { id: 1, reason: 0 });
    assert_eq!(publish(2, &packed(&[1.0, 2.0, 3.0, f32::NAN])), Packet::PubAck { id: 2, reason: 0x99 });
    assert_eq!(publish(3, &packed(&[f32::INFINITY, 2.0])), Packet::PubAck { id: 3, reason: 0x99 });
    assert_eq!(publish(4, &[1, 2, 3]), Packet::PubAck { id: 4, reason: 0x99 });
    assert_eq!(publish(5, &packed(&[3.0, 4.0])), Packet::PubAck { id: 5, reason: 0 });
    let status = wait_for("the status to show them", LIMIT, || {
        let status = site.edge_status()?;
        (status["streams"][0]["undecodable"] == 3).then_some(status)
    });
    assert_eq!(status["streams"][0]["undecodable_by"], serde_json::json!({ "not_finite": 2, "packed_len": 1 }));
    let inspected: Vec<_> =
        status["inspected"].as_array().expect("a list").iter().map(|m| (&m["reason"], &m["detail"])).collect();
    assert_eq!(
        serde_json::json!(inspected),
        serde_json::json!([
            ["not_finite", "value of channel 1 in row 1 is not finite"],
            ["not_finite", "value of channel 0 in row 0 is not finite"],
            ["packed_len", "packed payload of 3 bytes is not whole rows of 8 bytes"],
        ])
    );
    let (_, metrics) = site.edge.as_ref().expect("it runs").get("/metrics").expect("it answers");
    let line = "weir_stream_undecodable_total{stream=\"shaft\",reason=\"not_finite\"} 2";
    assert!(metrics.lines().any(|found| found == line), "{metrics}");
    site.drain();
    site.stop_edge();
    assert_eq!(oracle::count(&oracle::open(&site.database()), "SELECT count(*) FROM samples"), 2, "what decodes is stored");
}
