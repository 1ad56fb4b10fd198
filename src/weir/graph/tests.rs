use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;

use clap::Parser;
use weir_logic::graph::{EdgeState, NodeKey, Owner, Quantity, SNAPSHOT_FORMAT, SnapshotEdge};

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    args: GraphArgs,
}

fn ask(words: &[&str]) -> anyhow::Result<(ExitCode, String)> {
    let cli = Cli::try_parse_from(["graph"].iter().chain(words))?;
    let mut out = Vec::new();
    let code = run(&cli.args, &mut out)?;
    Ok((code, String::from_utf8(out)?))
}

/// A box with a stream, two uplinks and a sink behind each carrier's ingest node.
fn snapshot(state: EdgeState) -> Snapshot {
    let ids = [
        "stream/box-1/vibration",
        "gateway/box-1",
        "uplink/box-1/eth0",
        "uplink/box-1/lte0",
        "carrier/cable",
        "carrier/mobile",
        "ingest/one",
        "sink/main",
    ];
    let nodes: Vec<NodeKey> = ids.iter().map(|id| id.parse().expect("a node")).collect();
    let owner: Owner = "gateway/box-1".parse().expect("an owner");
    let plain = |from, to| SnapshotEdge {
        from,
        to,
        owner: owner.clone(),
        state: None,
        values: Default::default(),
        trust: 0.0,
        age_us: 0,
    };
    let link = |from, to, state, rtt_us, bps| SnapshotEdge {
        state: Some(state),
        values: [(Quantity::RttUs, rtt_us), (Quantity::CapacityBps, bps)].into(),
        trust: 1.0,
        ..plain(from, to)
    };
    let sink = SnapshotEdge { owner: "cloud/one".parse().expect("an owner"), ..plain(6, 7) };
    let edges = vec![
        plain(0, 1),
        plain(1, 2),
        plain(1, 3),
        link(2, 4, state, 20_000.0, 1e7),
        link(3, 5, EdgeState::Green, 80_000.0, 2e6),
        plain(4, 6),
        plain(5, 6),
        sink,
    ];
    Snapshot { format: SNAPSHOT_FORMAT, at_us: 1, nodes, edges, causes: Vec::new(), talks: Vec::new() }
}

/// The snapshots before and after the cable was cut, in files.
fn files() -> (tempfile::TempDir, String, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, state| {
        let path = dir.path().join(name);
        std::fs::write(&path, snapshot(state).to_json()).expect("written");
        path.display().to_string()
    };
    let (good, cut) = (write("good.json", EdgeState::Green), write("cut.json", EdgeState::Red));
    (dir, good, cut)
}

#[test]
fn every_question_is_answered_from_a_file_as_a_table_and_as_json() {
    let (_dir, good, cut) = files();
    let questions: [(&[&str], &str); 7] = [
        (&["show"], "carries 10.0 Mbit/s"),
        (&["show", "carrier/cable"], "uplink/box-1/eth0  carrier/cable"),
        (&["path", "vibration"], "stream/box-1/vibration to sink/main"),
        (&["impact", "cable"], "0 streams lose every way, 1 take another"),
        (&["weak-points", "--gateway", "gateway/box-1"], "ingest/one"),
        (&["bottlenecks"], "12.0 Mbit/s"),
        (&["changes", &cut], "red"),
    ];
    for (words, expected) in questions {
        let from = [words, &["--from", &good]].concat();
        let (code, table) = ask(&from).expect("an answer");
        assert_eq!(code, ExitCode::SUCCESS);
        assert!(table.contains(expected), "{words:?}:\n{table}");
        let (_, json) = ask(&[&from[..], &["--format", "json"]].concat()).expect("an answer");
        assert!(serde_json::from_str::<serde_json::Value>(&json).expect("JSON").is_object());
    }
    let (_, saved) = ask(&["show", "--format", "json", "--from", &good]).expect("an answer");
    assert_eq!(Snapshot::from_json(&saved).expect("a snapshot"), snapshot(EdgeState::Green));
    let (_, dot) = ask(&["show", "--format", "dot", "--from", &good]).expect("an answer");
    assert!(dot.starts_with("digraph") && dot.trim_end().ends_with('}'));
}

#[test]
fn a_stream_without_a_way_is_a_failure_that_says_why() {
    let (_dir, _, cut) = files();
    let (code, text) = ask(&["path", "vibration", "--from", &cut]).expect("an answer");
    assert_eq!(code, ExitCode::SUCCESS);
    assert!(text.contains("uplink/box-1/lte0") && text.contains("gateway/box-1 says that it is red"), "{text}");
    let (code, text) = ask(&["path", "vibration", "--to", "carrier/cable", "--from", &cut]).expect("an answer");
    assert_eq!((code, text.lines().next()), (ExitCode::FAILURE, Some("stream/box-1/vibration has no way out")));
    let (code, _) = ask(&["path", "vibration", "--to", "carrier/cable", "--ignore-state", "--from", &cut]).expect("an answer");
    assert_eq!(code, ExitCode::SUCCESS);
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let (_dir, good, _) = files();
    let error = |words: &[&str]| format!("{:#}", ask(words).expect_err("a mistake"));
    assert!(error(&["path", "vibratio", "--from", &good]).contains("there is stream/box-1/vibration"));
    assert!(error(&["weak-points", "--gateway", "box-7", "--from", &good]).contains("there is no gateway/box-7"));
    assert!(error(&["show", "--from", "/no/such/file"]).contains("cannot read /no/such/file"));
    assert!(error(&["path", "vibration", "--format", "dot", "--from", &good]).contains("dot"), "dot is for show");
    assert!(error(&["show", "--from", &good, "--admin", "127.0.0.1:1"]).contains("--admin"));
}

#[test]
fn a_running_process_is_asked_over_its_admin_address() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("an address").to_string();
    let questions: [(&[&str], &str); 5] = [
        (&["bottlenecks"], ""),
        (&["weak-points", "--gateway", "box-1"], "?gateway=box-1"),
        (&["path", "stream/box-1/vibration"], "?gateway=box-1"),
        (&["path", "vibration"], ""),
        (&["impact", "carrier/cable"], "?around=carrier%2Fcable"),
    ];
    let page = std::thread::spawn(move || {
        let answer = |_| {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut head = String::new();
            BufReader::new(&stream).read_line(&mut head).expect("a request");
            let body = snapshot(EdgeState::Green).to_json();
            write!(stream, "HTTP/1.0 200 OK\r\n\r\n{body}").expect("answered");
            head
        };
        (0..5).map(answer).collect::<Vec<_>>()
    });
    for (question, _) in questions {
        let (_, table) = ask(&[question, &["--admin", &address]].concat()).expect("an answer");
        assert!(table.contains("box-1"), "{table}");
    }
    for ((_, query), head) in questions.iter().zip(page.join().expect("the page")) {
        assert!(head.starts_with(&format!("GET /graph.json{query} ")), "{head}");
    }
}
