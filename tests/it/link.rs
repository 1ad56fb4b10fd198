//! `weir link`: any traffic crosses it, as the profile says, and it obeys what standard input says.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_tests::support::netns::{self, Namespace};
use weir_tests::support::{skip, wait_for};

const LIMIT: Duration = Duration::from_secs(20);
/// 20 ms each way.
const PROFILE: &str = "[up]\nrate = '50Mbit/s'\ndelay = '20ms'\nmtu = '1400B'\n";
const BOX: &str = "10.78.0.1";
const CLOUD: &str = "10.78.0.2";

/// The command with its ends; it is killed when dropped.
struct Link {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Link {
    fn start(profile: &str, a: &Namespace, b: &Namespace) -> Link {
        let mut command = Command::new(crate::tool());
        command.args(["link", "--profile", profile, "--device", "lte"]);
        command.args(["--a-netns", a.name(), "--a-addr", &format!("{BOX}/30")]);
        command.args(["--b-netns", b.name(), "--b-addr", &format!("{CLOUD}/30")]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the tool is built");
        let (orders, answers) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Link { child, orders, answers: BufReader::new(answers) }
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        serde_json::from_str(&line).unwrap_or_else(|err| panic!("`{line}` is not JSON: {err}"))
    }

    fn ask(&mut self, order: &str) -> Value {
        writeln!(self.orders, "{order}").expect("it reads");
        self.answer()
    }

    fn obey(&mut self, order: &str) {
        assert_eq!(self.ask(order), serde_json::json!({ "done": order }));
    }

    /// A number of the statistics.
    fn count(&mut self, path: &str) -> u64 {
        let stats = self.ask("stats");
        stats["stats"].pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path} in {stats}"))
    }

    fn wait_count(&mut self, path: &str, at_least: u64) {
        wait_for(path, LIMIT, || (self.count(path) >= at_least).then_some(()));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two UDP sockets that talk to each other, one at each end.
fn sockets(a: &Namespace, b: &Namespace) -> (UdpSocket, UdpSocket) {
    let bind = |side: &Namespace, host: &str| side.inside(|| UdpSocket::bind((host, 0))).expect("the link's address is there");
    let (sender, receiver) = (bind(a, BOX), bind(b, CLOUD));
    sender.connect(receiver.local_addr().expect("it is bound")).expect("there is a route");
    receiver.connect(sender.local_addr().expect("it is bound")).expect("there is a route");
    for socket in [&sender, &receiver] {
        socket.set_read_timeout(Some(LIMIT)).expect("a socket");
    }
    (sender, receiver)
}

/// Says something over TCP, and hears it back.
fn converse(listener: &TcpListener, to: SocketAddr, a: &Namespace) {
    let mut here = a.inside(|| TcpStream::connect_timeout(&to, LIMIT)).expect("TCP crosses the link");
    here.set_read_timeout(Some(LIMIT)).expect("a socket");
    let (mut there, _) = listener.accept().expect("it is connected");
    let said = vec![7; 100_000];
    std::thread::scope(|scope| {
        scope.spawn(|| here.write_all(&said).expect("it is read"));
        let mut heard = vec![0; said.len()];
        there.read_exact(&mut heard).expect("all of it arrives");
        assert!(heard == said);
    });
}

#[test]
fn any_traffic_crosses_the_link_and_its_orders_are_obeyed() {
    if let Some(why) = netns::unavailable() {
        return skip(&format!("weir link: {why}"));
    }
    let dir = tempfile::tempdir().expect("there is room");
    let profile = dir.path().join("profile.toml");
    std::fs::write(&profile, PROFILE).expect("there is room");
    let (a, b) = (Namespace::new("a"), Namespace::new("b"));
    let mut link = Link::start(profile.to_str().expect("text"), &a, &b);
    let ready = link.answer();
    assert_eq!((&ready["ready"]["device"], &ready["ready"]["mtu"]), (&"lte".into(), &1400.into()), "{ready}");

    // There and back, with the delay of the profile.
    let (sender, receiver) = sockets(&a, &b);
    let mut buffer = [0; 2_000];
    let start = Instant::now();
    sender.send(b"hello").expect("a route");
    assert_eq!(receiver.recv(&mut buffer).expect("it arrives"), 5);
    receiver.send(b"hello yourself").expect("a route");
    assert_eq!(sender.recv(&mut buffer).expect("it arrives"), 14);
    assert!(start.elapsed() >= Duration::from_millis(40), "{:?}", start.elapsed());

    // A cut, and its end.
    link.obey("cut");
    sender.send(b"into the void").expect("a route");
    link.wait_count("/up/counts/outage_packets", 1);
    assert_eq!(link.ask("stats")["stats"]["is_up"], false);
    link.obey("restore");
    link.obey("delay 100ms");
    link.obey("rate 2%");
    let start = Instant::now();
    sender.send(&[1; 1_000]).expect("a route");
    assert_eq!(receiver.recv(&mut buffer).expect("it arrives"), 1_000);
    assert!(start.elapsed() >= Duration::from_millis(108), "8 ms at 1 Mbit/s, and 100: {:?}", start.elapsed());
    link.obey("reset");

    // A network without UDP, and one where it only begins.
    let listener = b.inside(|| TcpListener::bind((CLOUD, 0))).expect("the link's address is there");
    let to = listener.local_addr().expect("it is bound");
    link.obey("block-udp");
    sender.send(&[0xc0]).expect("a route");
    link.wait_count("/refused_packets", 1);
    converse(&listener, to, &a);
    link.obey("throttle-udp");
    for _ in 0..20 {
        sender.send(&[0x40]).expect("a route");
    }
    sender.send(&[0xc0]).expect("a route");
    let mut first = 0;
    while first != 0xc0 {
        receiver.recv(&mut buffer).expect("a handshake passes");
        first = buffer[0];
    }
    // One was refused before, and of twenty only a few pass.
    link.wait_count("/refused_packets", 11);
    link.obey("unblock-udp");
    converse(&listener, to, &a);

    assert!(link.ask("dance")["error"].as_str().is_some_and(|text| text.contains("known are cut")));
    let asked = Command::new("kill").arg("-TERM").arg(link.child.id().to_string()).status().expect("there is a kill command");
    assert!(asked.success());
    let status = wait_for("it to end", LIMIT, || link.child.try_wait().expect("the child is ours"));
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_link_whose_device_is_deleted_ends_and_says_so() {
    if let Some(why) = netns::unavailable() {
        return skip(&format!("weir link, deleted: {why}"));
    }
    let (a, b) = (Namespace::new("a"), Namespace::new("b"));
    let mut link = Link::start("ethernet", &a, &b);
    link.answer();
    let (sender, _receiver) = sockets(&a, &b);
    let deleted = Command::new("ip").args(["-n", b.name(), "link", "delete", "lte"]).status().expect("iproute2 is there");
    assert!(deleted.success());
    let status = wait_for("it to end", LIMIT, || {
        // A link that nobody uses has no reason to look.
        let _ = sender.send(b"anyone?");
        link.child.try_wait().expect("the child is ours")
    });
    let mut said = String::new();
    link.child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert!(status.code() == Some(1) && said.contains("a device of it is gone"), "{said}");
}

#[test]
fn a_link_between_namespaces_that_are_not_there_is_refused_with_what_to_do() {
    let mut command = Command::new(crate::tool());
    command.args([
        "link",
        "--a-netns",
        "weir-no-1",
        "--a-addr",
        "10.78.0.1/30",
        "--b-netns",
        "weir-no-2",
        "--b-addr",
        "10.78.0.2/30",
    ]);
    let output = command.stdin(Stdio::null()).output().expect("the tool is built");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("ip netns add weir-no-1"), "{said}");
}
