//! The README's commands do what it says: a box and a cloud by hand, from its own lines.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use weir_tests::support::process::{self, Process, Readiness, free_addr};
use weir_tests::support::wait_for;

use weir_tests::support::skip;

use crate::binaries;

const README: &str = include_str!("../../README.md");
const LIMIT: Duration = Duration::from_secs(20);

/// Commands of the README that other tests or the gate run, by how they begin.
const RUN_ELSEWHERE: [&str; 18] = [
    "cargo run --release -p weir -- demo",
    "cargo test --workspace",
    "cargo build --release -p weir -p weir-edge -p weir-cloud",
    "cargo run --release -p weir-bench",
    "export PATH=",
    "weir runtime fetch",
    "weir model ",
    "sed -i \"1i infer.updates.key",
    "weir buffer",
    "weir sim",
    "ip netns add",
    "weir link",
    "weir explain",
    "weir graph",
    "sqlite3",
    // Each needs the one before it; cross/README.md says what they do, and how long it takes.
    "cross/setup.sh image",
    "cross/emulate.sh",
    "cross/image.sh",
];

/// The README's fenced blocks.
fn blocks() -> Vec<&'static str> {
    let code = README.replace("```toml\n", "```\n");
    let blocks: Vec<&'static str> = code.leak().split("```\n").skip(1).step_by(2).collect();
    blocks.into_iter().filter(|block| !block.starts_with("value = ")).collect()
}

/// The block that has this line.
fn block(line: &str) -> &'static str {
    blocks().into_iter().find(|block| block.contains(line)).unwrap_or_else(|| panic!("README.md has a block with `{line}`"))
}

fn shell(dir: &Path, script: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command.args(["-euc", script]).current_dir(dir).env("PATH", format!("{}:{path}", dir.join("bin").display()));
    command
}

#[test]
fn the_lines_for_a_box_and_a_cloud_by_hand_work() {
    let dir = tempfile::tempdir().expect("there is room");
    std::fs::create_dir(dir.path().join("bin")).expect("there is room");
    let built = binaries();
    for (name, binary) in [("weir-edge", &built.edge), ("weir-cloud", &built.cloud), ("weir", &crate::tool())] {
        symlink(std::fs::canonicalize(binary).expect("it is built"), dir.path().join("bin").join(name)).expect("there is room");
    }
    let (mqtt, quic, edge_admin, cloud_admin) = (free_addr(), free_addr(), free_addr(), free_addr());
    // Other ports than the README's, which may be taken here; and the box's admin endpoint has a default there.
    let adapted = |text: &str| {
        text.replace("127.0.0.1:1883", &mqtt.to_string())
            .replace(":4433", &format!(":{}", quic.port()))
            .replace("127.0.0.1:9181", &cloud_admin.to_string())
            .replace("gateway.data_dir", &format!("admin.http = \"{edge_admin}\"\ngateway.data_dir"))
    };
    let policy = [block("weir policy keygen"), block("weir policy check")].concat();
    let setup: String = [block("weir pki init"), policy.as_str()]
        .concat()
        .lines()
        .filter(|line| !line.starts_with("cargo build") && !line.starts_with("export PATH"))
        .map(|line| adapted(line) + "\n")
        .collect();
    let (code, stdout, stderr) = process::run(shell(dir.path(), &setup), LIMIT);
    assert_eq!(code, Some(0), "{setup}\n{stdout}\n{stderr}");

    let run = block("weir-edge run");
    let start = |name: &str, admin| {
        let line = run.lines().find(|line| line.starts_with(name)).expect("README.md starts it").trim_end_matches(" &");
        let log = dir.path().join(format!("{name}.log"));
        let mut process = Process::start(shell(dir.path(), &format!("exec {line}")), &log, admin);
        assert!(matches!(process.readiness(), Readiness::Ready), "{}", process::tail(&log));
        process
    };
    let cloud = start("weir-cloud", cloud_admin);
    let edge = start("weir-edge", edge_admin);

    if Command::new("mosquitto_pub").arg("--help").output().is_err() {
        skip("mosquitto_pub is not installed");
    } else {
        let publish = run.lines().find(|line| line.starts_with("mosquitto_pub")).expect("README.md publishes");
        let publish = publish.replacen("mosquitto_pub", &format!("mosquitto_pub -p {}", mqtt.port()), 1);
        let (code, _, stderr) = process::run(shell(dir.path(), &publish), LIMIT);
        assert_eq!(code, Some(0), "{publish}: {stderr}");
        let query = run.lines().find(|line| line.starts_with("sqlite3")).and_then(|line| line.split('"').nth(1));
        let query = query.expect("README.md asks the database");
        let row = wait_for("the row", LIMIT, || {
            let database = rusqlite::Connection::open(dir.path().join("site/cloud.db")).ok()?;
            database
                .query_row(query, [], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(2)?, row.get::<_, String>(4)?)))
                .ok()
        });
        assert_eq!(row, ("box-1".to_owned(), "hall-3".to_owned(), r#"{"temperature": 21.5}"#.to_owned()));
    }
    // The policy is in the folder that the cloud watches, so it comes to the box.
    let lane = wait_for("the policy", LIMIT, || {
        let status: serde_json::Value = serde_json::from_str(&edge.get("/status.json")?.1).ok()?;
        let plan = status["streams"][0]["plan"].as_str()?.to_owned();
        (status["policy"]["trial_version"] == 7 || status["policy"]["version"] == 7).then_some(plan)
    });
    assert!(lane.contains("in lane high"), "{lane}");
    assert!(edge.terminate(LIMIT).success() && cloud.terminate(LIMIT).success());

    for line in block("weir buffer inspect").lines() {
        let line = line.replace("FILE", "site/box-1/buffer.redb");
        let (code, _, stderr) = process::run(shell(dir.path(), &line), LIMIT);
        assert_eq!(code, Some(0), "{line}: {stderr}");
    }
}

#[test]
fn the_line_that_compares_policies_works_and_the_price_comes_out_ahead() {
    let dir = tempfile::tempdir().expect("there is room");
    std::fs::create_dir(dir.path().join("bin")).expect("there is room");
    symlink(std::fs::canonicalize(crate::tool()).expect("it is built"), dir.path().join("bin/weir")).expect("there is room");
    let line = block("weir sim").lines().next().expect("a line").replace("lte-driving", "3g");
    let (code, stdout, stderr) = process::run(shell(dir.path(), &line), Duration::from_secs(300));
    assert_eq!(code, Some(0), "{line}: {stderr}");
    let text = std::fs::read_to_string(dir.path().join("sim.json")).expect("it writes its figures");
    let figures: serde_json::Value = serde_json::from_str(&text).expect("they are JSON");
    let ratio = |policy: &str| figures[0]["policies"][policy]["value_ratio"].as_f64().expect("a number");
    let (weir, others) = (ratio("weir"), [ratio("static-priority"), ratio("fifo")]);
    assert!(weir <= 1.001 && weir > others[0] && others[0] > others[1], "{stdout}");
    let page = std::fs::read_to_string(dir.path().join("sim.html")).expect("it writes its page");
    assert!(page.contains("<svg") && page.contains("weir sim"), "{page:.300}");
}

#[test]
fn the_line_that_runs_a_configuration_of_ones_own_works_and_names_what_is_wrong_with_its_messages() {
    let dir = tempfile::tempdir().expect("there is room");
    std::fs::create_dir(dir.path().join("bin")).expect("there is room");
    symlink(std::fs::canonicalize(crate::tool()).expect("it is built"), dir.path().join("bin/weir")).expect("there is room");
    std::fs::create_dir(dir.path().join("site")).expect("there is room");
    let hand = block("cat > site/edge.toml");
    let config =
        hand.split("cat > site/edge.toml <<'END'\n").nth(1).and_then(|rest| rest.split("END\n").next()).expect("a file");
    std::fs::write(dir.path().join("site/edge.toml"), config).expect("there is room");
    let hex: String = b"{\"temperature\": 21.5}".iter().map(|byte| format!("{byte:02x}")).collect();
    let night: String =
        (0..500).map(|at| format!("{}.{:02} plant/hall-3/pump {hex}\n", 1_790_000_000 + at / 10, at % 10 * 10)).collect();
    std::fs::write(dir.path().join("night.txt"), &night).expect("there is room");
    let line = block("weir sim --config").lines().next().expect("a line").replace("lte-driving", "lte");
    let (code, stdout, stderr) = process::run(shell(dir.path(), &line), LIMIT);
    assert_eq!(code, Some(0), "{line}: {stderr}");
    let row: Vec<&str> = stdout.lines().find(|line| line.starts_with("pumps")).expect("a row").split_whitespace().collect();
    assert_eq!(row[..7], ["pumps", "normal", "500", "500", "0", "0", "0"], "{stdout}");
    std::fs::write(dir.path().join("night.txt"), night + "and so on").expect("there is room");
    let (code, _, stderr) = process::run(shell(dir.path(), &line), LIMIT);
    assert!(code == Some(1) && stderr.contains("line 501") && stderr.contains("mosquitto_sub"), "{code:?} {stderr}");
}

#[test]
fn every_command_is_run_by_a_test_or_by_the_gate() {
    let by_hand = ["weir pki init", "weir-edge run", "weir policy keygen", "weir policy check"].map(block).concat();
    for line in blocks().into_iter().filter(|block| !by_hand.contains(block)).flat_map(str::lines) {
        assert!(RUN_ELSEWHERE.iter().any(|known| line.starts_with(known)), "nobody runs `{line}`");
    }
    let gate = include_str!("../../.ci/gate.sh");
    assert!(gate.contains("README.md") && gate.contains("runtime fetch"));
    assert!(include_str!("../../.ci/full").contains("cargo run --release -p weir -- demo"));
    for command in ["path", "outage", "size"] {
        assert!(include_str!("../../.ci/full").contains(&format!("weir-bench -- {command}")), "{command}");
    }
}
