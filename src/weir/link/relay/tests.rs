use std::{net::UdpSocket as StdSocket, time::Duration};

use weir_host::units::{BitRate, Bytes, Duration as Span, Ratio};

use super::*;
use crate::link::{
    gate::UdpPolicy,
    profile::{LinkSide, Outage},
    thread::LinkStats,
};

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn profile(side: LinkSide) -> LinkProfile {
    LinkProfile { name: "test".to_owned(), description: String::new(), up: side.clone(), down: side, outages: Vec::new() }
}

fn loopback() -> StdSocket {
    let socket = bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn relay(target: SocketAddr, profile: LinkProfile) -> RelayThread {
    start(RelaySetup { listen: loopback(), target, profile, seed: 1 }).unwrap()
}

fn socket_at(addr: SocketAddr) -> StdSocket {
    let socket = loopback();
    socket.connect(addr).unwrap();
    socket
}

/// Waits until the statistics say so.
fn wait(relay: &RelayThread, is_reached: impl Fn(&LinkStats) -> bool) -> LinkStats {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut stats_rx = relay.link().watch();
    runtime.block_on(async {
        let reached = tokio::time::timeout(PATIENCE, stats_rx.wait_for(|stats| is_reached(stats))).await;
        *reached.unwrap_or_else(|_| panic!("never reached: {:?}", relay.link().stats())).unwrap()
    })
}

#[test]
fn clients_get_their_own_answers_after_the_delay() {
    let cloud = loopback();
    let side = LinkSide { delay: Span::from_millis(20), ..LinkSide::default() };
    let relay = relay(cloud.local_addr().unwrap(), profile(side));
    let boxes: Vec<StdSocket> = (0..3).map(|_| socket_at(relay.addr())).collect();
    let start = std::time::Instant::now();
    for (nth, sender) in boxes.iter().enumerate() {
        sender.send(&[nth as u8; 100]).unwrap();
    }
    let mut buffer = [0; 2_000];
    for _ in &boxes {
        let (len, from) = cloud.recv_from(&mut buffer).unwrap();
        cloud.send_to(&buffer[..len], from).unwrap();
    }
    for (nth, receiver) in boxes.iter().enumerate() {
        let len = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], &[nth as u8; 100]);
    }
    assert!(start.elapsed() >= Duration::from_millis(40), "20 ms each way");
    let stats = wait(&relay, |stats| stats.down.counts.delivered_packets == 3);
    assert_eq!((stats.up.counts.offered_packets, stats.up.counts.offered_bytes, stats.clients), (3, 300, 3));
}

#[test]
fn an_overloaded_relay_carries_the_links_rate_in_real_time() {
    let cloud = loopback();
    let side = LinkSide {
        rate: BitRate::from_bits_per_s(2_000_000),
        queue: Bytes::from_mib(4),
        delay: Span::ZERO,
        ..LinkSide::default()
    };
    let relay = relay(cloud.local_addr().unwrap(), profile(side));
    let sender = socket_at(relay.addr());
    let packets = 100;
    let mut buffer = [0; 2_000];
    // The first is away before the clock starts; the rest, 972 + 28 bytes each, take 4 ms each.
    sender.send(&[0; 972]).unwrap();
    cloud.recv(&mut buffer).unwrap();
    let start = std::time::Instant::now();
    for _ in 0..packets {
        sender.send(&[0; 972]).unwrap();
    }
    for _ in 0..packets {
        cloud.recv(&mut buffer).unwrap();
    }
    let took_ms = start.elapsed().as_secs_f64() * 1e3;
    assert!(took_ms >= 398.0, "{took_ms} ms is too fast");
    assert!(took_ms < 2_000.0, "{took_ms} ms is too slow, even for a busy machine");
}

#[test]
fn a_link_forced_down_carries_nothing_until_it_is_given_back() {
    let cloud = loopback();
    let relay = relay(cloud.local_addr().unwrap(), profile(LinkSide::default()));
    let sender = socket_at(relay.addr());
    relay.link().force_down(true);
    let stats = wait(&relay, |stats| !stats.is_up);
    assert_eq!(stats.up.bits_per_s, 0);
    sender.send(b"into the void").unwrap();
    wait(&relay, |stats| stats.up.counts.outage_packets == 1);
    relay.link().force_down(false);
    relay.link().scale_rate(Ratio::from_percent(50));
    let stats = wait(&relay, |stats| stats.is_up && stats.up.bits_per_s == 2_500_000);
    assert!(stats.down_us > 0 && stats.down_us <= stats.elapsed_us);
    sender.send(b"hello").unwrap();
    let mut buffer = [0; 100];
    let len = cloud.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"hello");
}

#[test]
fn a_network_that_throttles_udp_lets_handshakes_through_and_soon_no_data() {
    let cloud = loopback();
    let side = LinkSide { delay: Span::ZERO, ..LinkSide::default() };
    let relay = relay(cloud.local_addr().unwrap(), profile(side));
    relay.link().control(|control| control.udp = UdpPolicy::Throttled);
    let sender = socket_at(relay.addr());
    // Long headers begin with a bit that short ones lack.
    for first in std::iter::repeat_n(0x43, 20).chain([0xc3]) {
        sender.send(&[first, 0, 0]).unwrap();
    }
    let stats = wait(&relay, |stats| stats.up.counts.delivered_packets + stats.refused_packets == 21);
    assert!((2..=10).contains(&stats.up.counts.delivered_packets), "{stats:?}");
    let mut buffer = [0; 100];
    let received = (0..stats.up.counts.delivered_packets).map(|_| cloud.recv(&mut buffer).map(|_| buffer[0]).unwrap());
    assert_eq!(received.last(), Some(0xc3), "a handshake passes whatever came before");
}

#[test]
fn the_profiles_outage_is_seen_and_ends() {
    let cloud = loopback();
    let mut profile = profile(LinkSide::default());
    profile.outages = vec![Outage { length: Span::from_millis(300), ..Outage::default() }];
    let relay = relay(cloud.local_addr().unwrap(), profile);
    let stats = wait(&relay, |stats| stats.is_up && stats.elapsed_us > 300_000);
    assert!((280_000..=320_000).contains(&stats.down_us), "{stats:?}");
}

#[test]
fn packets_to_a_cloud_that_is_gone_are_counted_and_the_link_lives_on() {
    let cloud = loopback();
    let target = cloud.local_addr().unwrap();
    drop(cloud);
    let side = LinkSide { delay: Span::ZERO, ..LinkSide::default() };
    let relay = relay(target, profile(side));
    let sender = socket_at(relay.addr());
    for sent in 1..=3 {
        sender.send(b"anyone?").unwrap();
        wait(&relay, |stats| stats.up.counts.delivered_packets == sent);
    }
    wait(&relay, |stats| stats.undeliverable_packets > 0);
    let cloud = StdSocket::bind(target).unwrap();
    cloud.set_read_timeout(Some(PATIENCE)).unwrap();
    // The refusal of the packet before may be reported instead of sending this one.
    sender.send(b"back?").unwrap();
    wait(&relay, |stats| stats.up.counts.delivered_packets == 4);
    sender.send(b"back?").unwrap();
    let mut buffer = [0; 100];
    assert_eq!(cloud.recv(&mut buffer).unwrap(), 5);
}

#[test]
fn the_client_silent_longest_makes_room_for_a_new_one() {
    let cloud = loopback();
    let relay = relay(cloud.local_addr().unwrap(), profile(LinkSide::default()));
    let first = socket_at(relay.addr());
    first.send(b"first").unwrap();
    wait(&relay, |stats| stats.clients == 1);
    let senders: Vec<StdSocket> = (0..CLIENTS_MAX).map(|_| socket_at(relay.addr())).collect();
    for sender in &senders {
        sender.send(b"next").unwrap();
    }
    let stats = wait(&relay, |stats| stats.evicted_clients == 1);
    assert_eq!(stats.clients, CLIENTS_MAX as u64);
}
