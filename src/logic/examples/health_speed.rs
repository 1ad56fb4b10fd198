//! Measures one update of each estimator and of a whole uplink.
//!
//! `cargo run --release -p weir-logic --example health_speed`; prints nanoseconds an update.
#![expect(clippy::print_stdout, reason = "a measurement is for a person to read")]

use std::hint::black_box;
use std::time::Instant;

use weir_logic::health::{
    Breaker, BreakerLimits, ColdBudget, Confidence, Goodput, PathStats, PeakEwma, Rtt, SilenceDetector, StallDetector,
    StallEvidence, SuccessRatio, UplinkHealth, UplinkLimits,
};

const UPDATES: u64 = 2_000_000;
/// Between two updates: ten a second, so that every window and average turns over.
const STEP_US: u64 = 100_000;

fn main() {
    parts();
    whole();
}

fn parts() {
    let mut rtt = PeakEwma::new(7_000_000);
    measure("peak EWMA: sample and value", |now_us, x| {
        rtt.sample(now_us, x);
        black_box(rtt.value_us(now_us));
    });
    let mut ratio = SuccessRatio::new(10_000_000, 20);
    measure("success ratio: record and ratio", |now_us, x| {
        ratio.record(now_us, x % 32, x % 3);
        black_box(ratio.ratio(now_us));
    });
    let mut goodput = Goodput::new(0, 1_000_000);
    measure("goodput: step", |now_us, x| goodput.step(now_us, x, true));
    measure("goodput: capacity of the next minute", |_, _| {
        black_box(goodput.capacity_bytes(black_box(60_000_000)));
    });
    let mut silence = SilenceDetector::new(0);
    silence.owe(0);
    measure("silence: word and verdict", |now_us, x| {
        silence.heard(now_us);
        black_box(silence.state(now_us + x, Rtt { us: 50_000, min_us: 30_000 }));
    });
    let mut stall = StallDetector::default();
    measure("stall: bytes under way and verdict", |now_us, x| {
        stall.under_way(now_us, x % 2);
        let evidence = StallEvidence { rtt_us: 50_000, drain_us: x, heard_us: now_us, silent: false };
        black_box(stall.judge(now_us, &evidence));
    });
    let mut confidence = Confidence::new(60_000_000);
    measure("confidence: renew and value", |now_us, x| {
        confidence.renew(now_us);
        black_box(confidence.value(now_us + x * 1_000));
    });
    let mut breaker = Breaker::new(BreakerLimits::default(), 1);
    measure(
        "breaker: success or failure",
        |now_us, x| if x % 8 == 0 { breaker.failure(now_us) } else { breaker.success(now_us) },
    );
    let mut cold = ColdBudget::new(0, 1);
    measure("cold budget: ask", |now_us, _| {
        if cold.begin(now_us).is_ok() {
            cold.end(now_us, 6_000);
        }
    });
}

fn whole() {
    let limits = UplinkLimits { nominal_bps: 1_000_000, metered: false, breaker: BreakerLimits::default(), seed: 1 };
    let mut health = UplinkHealth::new(0, limits, None);
    health.connected(0);
    let mut stats = PathStats::default();
    measure("uplink: path statistics", |now_us, x| {
        stats.rtt_us = x;
        stats.sent_packets += 10;
        stats.received_packets += 5;
        stats.lost_packets += x % 2;
        health.path(now_us, &stats);
    });
    let start_us = UPDATES * STEP_US;
    measure("uplink: acknowledgement", |now_us, x| health.acked(start_us + now_us, x, start_us + now_us - x.min(now_us)));
    measure("uplink: tick", |now_us, x| health.tick(2 * start_us + now_us, x % 2 == 0));
    measure("uplink: estimate", |now_us, _| {
        black_box(health.estimate(3 * start_us + now_us));
    });
}

/// Calls `update` with a time and a number that varies, and prints what one call took.
fn measure(name: &str, mut update: impl FnMut(u64, u64)) {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let start = Instant::now();
    for i in 0..UPDATES {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        update(black_box(i * STEP_US), random % 100_000);
    }
    println!("{name}: {:.1} ns", start.elapsed().as_nanos() as f64 / UPDATES as f64);
}
