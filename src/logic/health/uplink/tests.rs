use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::health::{BreakerLimits, BreakerState, MONTH_BYTES_MAX};

const SECOND_US: u64 = 1_000_000;

fn uplink(metered: bool, nominal_bps: u64) -> UplinkHealth {
    let limits = UplinkLimits { nominal_bps, metered, breaker: BreakerLimits::default(), seed: 3 };
    UplinkHealth::new(0, limits, None)
}

/// A sender with a transport, a first-in-first-out bottleneck of `rate_bps`, and a cloud that acknowledges each packet.
struct Wire {
    health: UplinkHealth,
    rate_bps: u64,
    base_rtt_us: u64,
    window_bytes: u64,
    /// Packets under way: when their acknowledgement is back, when they were sent.
    packets: VecDeque<(u64, u64)>,
    free_us: u64,
    now_us: u64,
    stats: PathStats,
    last_word_us: u64,
    cut: bool,
    /// How long the cloud takes to commit; data is acknowledged that much after its packets.
    commit_us: u64,
    commits: VecDeque<(u64, u64)>,
    unacked_bytes: u64,
    pings: VecDeque<(u64, u64)>,
    worst: UplinkState,
    busy: bool,
}

const PACKET_BYTES: u64 = 1_200;
const STEP_US: u64 = 10_000;

impl Wire {
    fn new(rate_bps: u64, base_rtt_us: u64, window_bytes: u64) -> Self {
        let mut health = uplink(false, rate_bps);
        health.connected(0);
        Wire {
            health,
            rate_bps,
            base_rtt_us,
            window_bytes,
            packets: VecDeque::new(),
            free_us: 0,
            now_us: 0,
            stats: PathStats { rtt_us: base_rtt_us, rtt_min_us: base_rtt_us, ..PathStats::default() },
            last_word_us: 0,
            cut: false,
            commit_us: 0,
            commits: VecDeque::new(),
            unacked_bytes: 0,
            pings: VecDeque::new(),
            worst: UplinkState::Green,
            busy: true,
        }
    }

    /// Lets a small packet through the bottleneck; when its answer is back.
    fn carry(&mut self, bytes: u64) -> u64 {
        self.free_us = self.free_us.max(self.now_us) + bytes * 8 * SECOND_US / self.rate_bps;
        self.free_us + self.base_rtt_us
    }

    fn step(&mut self) {
        self.now_us += STEP_US;
        let now_us = self.now_us;
        let unacked_before = self.unacked_bytes;
        while self.busy && self.unacked_bytes + PACKET_BYTES <= self.window_bytes {
            let back_us = self.carry(PACKET_BYTES);
            self.packets.push_back((back_us, now_us));
            self.unacked_bytes += PACKET_BYTES;
            self.stats.sent_packets += 1;
            self.stats.sent_bytes += PACKET_BYTES;
        }
        if self.health.ping_due(now_us) {
            let back_us = self.carry(50);
            self.pings.push_back((back_us, now_us));
            self.stats.sent_packets += 1;
            self.health.pinged(now_us);
        }
        while !self.cut && self.packets.front().is_some_and(|packet| packet.0 <= now_us) {
            let (back_us, sent_us) = self.packets.pop_front().expect("looked at");
            self.commits.push_back((back_us + self.commit_us, sent_us));
            self.stats.received_packets += 1;
            self.stats.rtt_us = back_us - sent_us;
            self.last_word_us = now_us;
        }
        while !self.cut && self.commits.front().is_some_and(|commit| commit.0 <= now_us) {
            let (_, sent_us) = self.commits.pop_front().expect("looked at");
            self.unacked_bytes -= PACKET_BYTES;
            self.last_word_us = now_us;
            self.health.acked(now_us, PACKET_BYTES, sent_us);
        }
        while !self.cut && self.pings.front().is_some_and(|ping| ping.0 <= now_us) {
            let (back_us, sent_us) = self.pings.pop_front().expect("looked at");
            self.stats.received_packets += 1;
            self.last_word_us = now_us;
            self.health.heartbeat(now_us, back_us - sent_us);
        }
        if self.unacked_bytes != unacked_before {
            self.health.under_way(now_us, self.unacked_bytes);
        }
        if now_us.is_multiple_of(100_000) {
            let stats = self.stats;
            self.health.path(now_us, &stats);
            self.health.tick(now_us, self.busy);
        }
        let state = self.health.estimate(now_us).state;
        if matches!(state, UplinkState::Red | UplinkState::Blocked) {
            self.worst = state;
        }
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * SECOND_US / STEP_US {
            self.step();
        }
    }

    /// Microseconds from the last word to red.
    fn cut_until_red(&mut self) -> u64 {
        self.cut = true;
        while self.health.estimate(self.now_us).state != UplinkState::Red {
            self.step();
            assert!(self.now_us - self.last_word_us < 60 * SECOND_US, "a cut was never seen");
        }
        self.now_us - self.last_word_us
    }
}

#[test]
fn a_slow_link_with_five_seconds_of_queue_is_never_red_and_its_cut_is_seen_in_two_seconds() {
    let mut wire = Wire::new(50_000, 50_000, 31_250);
    wire.run(300);
    let estimate = wire.health.estimate(wire.now_us);
    assert_eq!(wire.worst, UplinkState::Green, "never red nor blocked");
    assert!((4_500_000..5_500_000).contains(&estimate.queueing_delay_us), "{estimate:?}");
    assert!((45_000.0..55_000.0).contains(&estimate.goodput_bps), "{estimate:?}");
    assert!((45_000.0..55_000.0).contains(&estimate.capacity_bps), "{estimate:?}");
    let red_us = wire.cut_until_red();
    assert!(red_us <= 2 * SECOND_US, "{red_us}: five round trips would be 25 s");
    assert!(matches!(wire.health.breaker().reason(), Some(OpenReason::Silent { .. })));
    let change = wire.health.take_change().expect("red");
    assert_eq!((change.to, wire.health.take_change()), (UplinkState::Red, None));
}

#[test]
fn a_cut_of_an_active_link_is_seen_within_the_larger_of_a_second_and_five_round_trips() {
    for (rate_bps, rtt_us, window_bytes, seconds) in [
        (10_000_000, 40_000, 60_000, 20),
        (10_000_000, 40_000, 60_000, 1),
        (1_000_000, 300_000, 60_000, 20),
        (2_000_000, 600_000, 200_000, 20),
        (2_000_000, 600_000, 200_000, 2),
        (200_000, 100_000, 32_768, 30),
    ] {
        let mut wire = Wire::new(rate_bps, rtt_us, window_bytes);
        wire.run(seconds);
        assert_eq!(wire.worst, UplinkState::Green, "{rate_bps} bit/s, {rtt_us} us");
        let now_rtt_us = wire.stats.rtt_us;
        let red_us = wire.cut_until_red();
        let limit_us = SECOND_US.max(5 * now_rtt_us) + 100_000;
        assert!(red_us <= limit_us, "{rate_bps} bit/s, {rtt_us} us, {seconds} s: {red_us} > {limit_us}");
    }
}

#[test]
fn a_cloud_that_is_slow_to_commit_makes_no_link_red() {
    for rtt_us in [20_000, 250_000, 600_000] {
        let mut wire = Wire::new(5_000_000, rtt_us, 120_000);
        wire.run(20);
        wire.commit_us = 20 * SECOND_US;
        wire.run(120);
        assert_eq!(wire.worst, UplinkState::Green, "at {rtt_us} us");
    }
}

#[test]
fn an_idle_link_stays_green_and_keeps_its_rate() {
    let mut wire = Wire::new(5_000_000, 30_000, 120_000);
    wire.run(60);
    let before = wire.health.estimate(wire.now_us);
    wire.busy = false;
    wire.run(600);
    let after = wire.health.estimate(wire.now_us);
    assert_eq!(wire.worst, UplinkState::Green);
    assert!(after.capacity_bps >= before.capacity_bps && after.goodput_bps >= before.goodput_bps, "{before:?} {after:?}");
    assert!(after.confidence < 0.01, "ten minutes without a word");
}

#[test]
fn data_that_is_lost_while_pings_pass_is_blocked_within_three_seconds_and_the_breaker_opens() {
    let mut wire = Wire::new(10_000_000, 40_000, 60_000);
    wire.run(10);
    wire.busy = false;
    let begun_us = wire.now_us;
    let mut stats = wire.stats;
    let health = &mut wire.health;
    let mut blocked_us = None;
    for step in 1..=40 {
        let now_us = begun_us + step * 100_000;
        health.under_way(now_us, 60_000);
        stats.sent_packets += 3;
        stats.lost_packets += 2;
        if step % 5 == 0 {
            stats.received_packets += 1;
            health.heartbeat(now_us, 40_000);
        }
        health.path(now_us, &stats);
        health.tick(now_us, true);
        if health.estimate(now_us).state == UplinkState::Blocked {
            blocked_us.get_or_insert(now_us - begun_us);
        }
    }
    assert!(blocked_us.is_some_and(|us| us <= 3 * SECOND_US), "{blocked_us:?}");
    assert!(matches!(health.breaker().reason(), Some(OpenReason::Blocked { .. })));
    assert!(health.estimate(begun_us).loss > 0.0);
    let now_us = begun_us + 5 * SECOND_US;
    health.closed(now_us, CloseReason::Local);
    assert_eq!(health.estimate(now_us).state, UplinkState::Blocked, "until data passes");
    health.connected(now_us);
    health.under_way(now_us, 1_000);
    health.interface(now_us, true);
    health.heartbeat(now_us, 40_000);
    assert!(!matches!(health.breaker().state(), BreakerState::HalfOpen { closes_us: Some(_) }), "small talk is no recovery");
    assert_eq!(health.estimate(now_us).state, UplinkState::Blocked);
    health.acked(now_us + 50_000, 1_000, now_us);
    assert_eq!(health.estimate(now_us + 50_000).state, UplinkState::Green);
}

#[test]
fn a_lost_interface_is_red_at_once_and_one_that_comes_back_is_tried_at_once() {
    let mut health = uplink(false, 1_000_000);
    health.connected(0);
    health.heartbeat(10, 30_000);
    health.interface(1_000, false);
    assert_eq!(health.estimate(1_000).state, UplinkState::Red);
    assert_eq!(health.breaker().reason(), Some(OpenReason::InterfaceDown));
    health.closed(1_001, CloseReason::Lost);
    assert!(!health.trial(1_002));
    health.interface(2_000, true);
    assert!(health.trial(2_000));
    health.connected(3_000);
    health.heartbeat(4_000, 30_000);
    assert_eq!(health.estimate(4_000).breaker, BreakerState::HalfOpen { closes_us: Some(4_000 + 30 * SECOND_US) });
    health.tick(4_000 + 30 * SECOND_US, false);
    assert_eq!(health.estimate(4_000 + 30 * SECOND_US).breaker, BreakerState::Closed);
}

#[test]
fn counters_that_start_again_belong_to_a_new_connection() {
    let mut health = uplink(false, 1_000_000);
    for _ in 0..2 {
        health.connected(0);
        for n in 1..=10 {
            let stats = PathStats {
                rtt_us: 20_000,
                received_packets: n * 9,
                sent_packets: n * 10,
                lost_packets: n,
                sent_bytes: n * 9_000,
                ..PathStats::default()
            };
            health.path(n, &stats);
        }
        health.closed(11, CloseReason::Local);
    }
    let counters = health.counters();
    assert_eq!((counters.sent_packets, counters.lost_packets, counters.sent_bytes), (200, 20, 180_000));
    assert!((health.estimate(11).loss - 0.1).abs() < 1e-9);
    assert_eq!((counters.connections, counters.failures), (2, 0));
}

#[test]
fn an_idle_metered_uplink_is_cold_and_a_month_of_probes_costs_less_than_its_limit() {
    let mut health = uplink(true, 1_000_000);
    assert_eq!(health.estimate(0).state, UplinkState::Cold);
    for minute in 0..30 * 24 * 60u64 {
        let now_us = minute * 60 * SECOND_US;
        if minute % 97 == 0 {
            health.interface(now_us, true);
        }
        if health.probe(now_us).is_ok() {
            health.connected(now_us + 100_000);
            health.heartbeat(now_us + 200_000, 60_000);
            health.closed(now_us + 300_000, CloseReason::Local);
            health.probe_ended(now_us + 300_000, 6_500);
        }
        health.tick(now_us + SECOND_US, true);
        let estimate = health.estimate(now_us + SECOND_US);
        assert_eq!((estimate.state, estimate.capacity_bps), (UplinkState::Cold, 1e6), "what is kept cold is not slow");
        assert!(estimate.confidence > 0.3, "{estimate:?}");
    }
    let counters = health.cold().expect("metered").counters();
    assert!((600..).contains(&counters.probes) && counters.used_bytes <= MONTH_BYTES_MAX, "{counters:?}");
}

#[test]
fn who_stops_looking_at_the_transport_still_sees_a_cut() {
    let mut health = uplink(false, 1_000_000);
    health.connected(0);
    health.path(100_000, &PathStats { rtt_us: 30_000, received_packets: 1, sent_packets: 1, ..PathStats::default() });
    health.pinged(60 * SECOND_US);
    health.tick(60 * SECOND_US + 799_999, false);
    assert_eq!(health.estimate(60 * SECOND_US).state, UplinkState::Yellow);
    assert_eq!(health.deadline_us(60 * SECOND_US + 799_999), Some(60 * SECOND_US + 800_000));
    health.tick(60 * SECOND_US + 800_000, false);
    assert_eq!(health.estimate(61 * SECOND_US).state, UplinkState::Red);
}

#[test]
fn handshakes_that_pass_before_silence_end_as_blocked() {
    let mut health = uplink(false, 1_000_000);
    let mut now_us = 0;
    for turn in 0..2 {
        health.connected(now_us);
        health.under_way(now_us, 20_000);
        for step in 1..=20u64 {
            health.path(now_us + step * 100_000, &PathStats { sent_packets: step, ..PathStats::default() });
        }
        assert_eq!(health.estimate(now_us + 2 * SECOND_US).state, UplinkState::Red, "turn {turn}");
        health.closed(now_us + 2 * SECOND_US, CloseReason::Lost);
        now_us += 4 * SECOND_US;
    }
    assert_eq!(health.estimate(now_us).state, UplinkState::Blocked);
}

#[derive(Debug, Clone)]
enum Op {
    Interface(bool),
    Connected,
    Closed(u8),
    Path(PathStats),
    UnderWay(u64),
    Acked(u64, u64),
    Pinged,
    Heartbeat(u64),
    Failed,
    Trial,
    Probe(u64),
    Tick(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let number = || prop_oneof![4 => 0u64..100_000, 1 => any::<u64>()];
    let path = (number(), number(), number(), number(), number(), number()).prop_map(
        |(rtt_us, rtt_min_us, received_packets, sent_packets, lost_packets, sent_bytes)| {
            let (cwnd_bytes, congestion_events) = (sent_bytes / 2, lost_packets);
            let packets = PathStats { received_packets, sent_packets, lost_packets, ..PathStats::default() };
            PathStats { rtt_us, rtt_min_us, sent_bytes, cwnd_bytes, congestion_events, ..packets }
        },
    );
    prop_oneof![
        1 => any::<bool>().prop_map(Op::Interface),
        1 => Just(Op::Connected),
        1 => (0u8..4).prop_map(Op::Closed),
        3 => path.prop_map(Op::Path),
        1 => number().prop_map(Op::UnderWay),
        3 => (number(), number()).prop_map(|(bytes, age_us)| Op::Acked(bytes, age_us)),
        1 => Just(Op::Pinged),
        1 => number().prop_map(Op::Heartbeat),
        1 => Just(Op::Failed),
        1 => Just(Op::Trial),
        1 => number().prop_map(Op::Probe),
        4 => any::<bool>().prop_map(Op::Tick),
    ]
}

fn apply(health: &mut UplinkHealth, now_us: u64, op: &Op) {
    match *op {
        Op::Interface(up) => health.interface(now_us, up),
        Op::Connected => health.connected(now_us),
        Op::Closed(reason) => {
            let reasons = [CloseReason::Local, CloseReason::Peer, CloseReason::Lost, CloseReason::ConnectFailed];
            health.closed(now_us, reasons[usize::from(reason)]);
        }
        Op::Path(stats) => health.path(now_us, &stats),
        Op::UnderWay(bytes) => health.under_way(now_us, bytes),
        Op::Acked(bytes, age_us) => health.acked(now_us, bytes, now_us.saturating_sub(age_us)),
        Op::Pinged => health.pinged(now_us),
        Op::Heartbeat(rtt_us) => health.heartbeat(now_us, rtt_us),
        Op::Failed => health.failed(now_us),
        Op::Trial => {
            health.trial(now_us);
        }
        Op::Probe(bytes) => {
            if health.probe(now_us).is_ok() {
                health.probe_ended(now_us, bytes);
            }
        }
        Op::Tick(more) => health.tick(now_us, more),
    }
}

proptest! {
    #[test]
    fn whatever_comes_in_the_estimate_is_finite_and_within_its_ranges(
        ops in proptest::collection::vec((prop_oneof![9 => 0u64..2_000_000, 1 => any::<u64>()], op()), 1..150),
        metered: bool, nominal: u64,
    ) {
        let mut health = uplink(metered, nominal);
        let mut now_us = 0u64;
        for (step_us, op) in &ops {
            now_us = now_us.saturating_add(*step_us);
            apply(&mut health, now_us, op);
            let estimate = health.estimate(now_us);
            for value in [estimate.goodput_bps, estimate.capacity_bps, health.capacity_bytes(60_000_000)] {
                prop_assert!(value.is_finite() && value >= 0.0, "{op:?}: {estimate:?}");
            }
            for share in [estimate.loss, estimate.confidence, estimate.error_ratio.unwrap_or(0.0)] {
                prop_assert!((0.0..=1.0).contains(&share), "{op:?}: {estimate:?}");
            }
            prop_assert!(estimate.updated_us <= now_us);
            prop_assert!(estimate.state != UplinkState::Cold || metered);
            prop_assert!(!matches!(op, Op::Tick(_)) || health.deadline_us(now_us).is_none_or(|at_us| at_us > now_us || now_us == u64::MAX));
            if matches!(estimate.state, UplinkState::Red | UplinkState::Blocked) {
                prop_assert!(health.breaker().counters().opened > 0, "an uplink that does not work opened its breaker");
            }
        }
    }

    #[test]
    fn time_without_words_makes_no_uplink_greener(
        ops in proptest::collection::vec((0u64..2_000_000, op()), 1..60),
        waits in proptest::collection::vec(0u64..5_000_000, 1..30),
    ) {
        let mut health = uplink(false, 1_000_000);
        let mut now_us = 0;
        for (step_us, op) in &ops {
            now_us += step_us;
            apply(&mut health, now_us, op);
        }
        let rank = |state| match state {
            UplinkState::Green => 0,
            UplinkState::Yellow | UplinkState::Cold => 1,
            UplinkState::Red => 2,
            UplinkState::Blocked => 3,
        };
        let mut before = health.estimate(now_us);
        for wait_us in waits {
            now_us += wait_us;
            health.tick(now_us, true);
            let after = health.estimate(now_us);
            prop_assert!(rank(after.state) >= rank(before.state), "{before:?} {after:?}");
            prop_assert!(after.confidence <= before.confidence);
            before = after;
        }
    }
}

#[test]
fn the_first_byte_after_an_outage_is_told_once_and_a_slow_second_is_no_outage() {
    let mut health = uplink(false, 8_000_000);
    health.connected(0);
    let mut now_us = 0;
    let mut second = |health: &mut UplinkHealth, bytes: u64| {
        now_us += SECOND_US;
        if bytes > 0 {
            health.acked(now_us, bytes, now_us - 50_000);
        }
        let has_resumed = health.has_resumed();
        health.tick(now_us, true);
        has_resumed
    };
    for bytes in [1_000_000, 1_000_000, 1_000_000, 0, 1_000_000] {
        assert!(!second(&mut health, bytes));
    }
    (0..30).for_each(|_| assert!(!second(&mut health, 0)));
    assert!(health.estimate(36 * SECOND_US).goodput_bps < 1_000.0);
    assert!(second(&mut health, 1_000));
    assert!(!second(&mut health, 1_000_000), "it is counted");
    assert!(health.estimate(37 * SECOND_US).goodput_bps > 4e6, "{}", health.estimate(37 * SECOND_US).goodput_bps);
}
