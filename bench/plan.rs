//! The plan at the size of a large box: how long one takes to make, and what it costs to ask it about a record.
//!
//! Making it is what happens once a second: the price is solved for what waits, then fidelity, lane and route of everything is
//! decided. Asking it is what happens for every record: which lane, how finely kept, how finely sent at its age.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use weir_logic::health::{BreakerState, UplinkEstimate, UplinkState};
use weir_logic::ids::Class;
use weir_logic::lanes::{Durability, LanePolicy, LanesLimits, Overflow};
use weir_logic::offload::{OffloadLimits, OffloadMode, OffloadPolicy, PoolPlace};
use weir_logic::payload::{OpaqueFormat, PayloadFormat};
use weir_logic::plan::{Plan, View, plan};
use weir_logic::policy::{Meter, Policy, StreamFidelity, StreamModel, StreamPolicy, UplinkPolicy};
use weir_logic::price::{
    Capacity, Cohort, Expected, Ladder, Lateness, Market, PriceLimits, Solver, StreamValue, Wait, horizon_end_us,
};
use weir_logic::route::UplinkView;
use weir_logic::uplink::SessionLimits;
use weir_logic::window::{Span, WindowConfig, WindowSpec};
use weir_logic::wire::LoadLevel;

/// Longest that a plan with its price may take, in microseconds: it is made once a second beside everything else.
const PLAN_US_MAX: f64 = 1_000.0;
/// Longest that asking it about a record may take, in nanoseconds.
const APPLY_NS_MAX: f64 = 200.0;

/// Options of `weir-bench plan`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Streams of the box.
    #[arg(long, default_value_t = 200)]
    streams: u16,
    /// Its uplinks.
    #[arg(long, default_value_t = 3)]
    uplinks: u8,
    /// Pools that answer for its streams.
    #[arg(long, default_value_t = 5)]
    pools: u8,
    /// Ages that are told apart among what waits of a stream.
    #[arg(long, default_value_t = 12)]
    ages: u64,
    /// Plans made.
    #[arg(long, default_value_t = 2_000)]
    plans: u32,
    /// Fails if it takes longer than a box has for it: 1 ms for a plan with its price, 200 ns for a record.
    #[arg(long)]
    enforce: bool,
    /// Writes the results here as well.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Run {
    streams: u16,
    uplinks: u8,
    pools: u8,
    plan_us: f64,
    price_us: f64,
    apply_ns: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.streams > 0 && args.uplinks > 0 && args.plans > 0, "streams, uplinks and plans are at least 1");
    let run = measure(args);
    let Run { streams, uplinks, pools, plan_us, price_us, apply_ns } = run;
    println!("{streams} streams, {uplinks} uplinks, {pools} pools: a plan {plan_us:.0} us, its price {price_us:.0} us more");
    println!("asked about a record: {apply_ns:.0} ns");
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&run)?)?;
    }
    if args.enforce {
        let made_us = run.plan_us + run.price_us;
        anyhow::ensure!(made_us <= PLAN_US_MAX, "a plan takes {made_us:.0} us, more than {PLAN_US_MAX}");
        anyhow::ensure!(run.apply_ns <= APPLY_NS_MAX, "a record takes {:.0} ns, more than {APPLY_NS_MAX}", run.apply_ns);
    }
    Ok(())
}

fn measure(args: &Args) -> Run {
    let (policy, uplinks, cohorts, mut pools) = (policy(args), uplinks(args), cohorts(args), pools(args));
    let values: Vec<Option<StreamValue>> = policy.streams.iter().map(|stream| stream.value).collect();
    let expected = vec![Expected { mean: 1_000.0, now: 1_000.0 }; values.len()];
    let mut solver = Solver::default();
    let (mut last, mut price_s, mut plan_s): (Option<Plan>, f64, f64) = (None, 0.0, 0.0);
    for round in 0..args.plans {
        let now_us = u64::from(round) * 1_000_000;
        // The rate changes, so that the price does.
        let forecast_bytes = 2e6 * (1.0 + f64::from(round % 7) / 4.0);
        let by_horizon = std::array::from_fn(|group| {
            forecast_bytes * horizon_end_us(group, policy.price.horizon_us) as f64 / policy.price.horizon_us as f64
        });
        let capacity = Capacity { by_horizon, drain_bytes: forecast_bytes / 8.0 };
        let market = Market { values: &values, waiting: &cohorts, expected: &expected, capacity };
        let start = Instant::now();
        let price = solver.solve(now_us, &policy.price, black_box(market), None, false);
        price_s += start.elapsed().as_secs_f64();
        // So does what pools take for an answer.
        for (at, pool) in pools.iter_mut().enumerate() {
            pool.answer_us.fill(Some(50_000 + 7_919 * (u64::from(round) + at as u64) % 450_000));
        }
        let start = Instant::now();
        let next =
            plan(&policy, &black_box(View { now_us, price, uplinks: &uplinks, pools: &pools, learned: &[] }), last.as_ref());
        plan_s += start.elapsed().as_secs_f64();
        last = Some(next);
    }
    let plans = f64::from(args.plans);
    let apply_ns = last.as_ref().map_or(0.0, |plan| apply_ns(plan, args.streams));
    Run {
        streams: args.streams,
        uplinks: args.uplinks,
        pools: args.pools,
        plan_us: plan_s / plans * 1e6,
        price_us: price_s / plans * 1e6,
        apply_ns,
    }
}

/// Nanoseconds for what the data plane asks about a record.
fn apply_ns(plan: &Plan, streams: u16) -> f64 {
    const RECORDS: u64 = 5_000_000;
    let start = Instant::now();
    let mut sum = 0_usize;
    for record in 0..RECORDS {
        let stream = (record.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u16 % streams;
        let entry = &plan.streams[usize::from(stream)];
        let is_raw = entry.fidelity == StreamFidelity::Raw;
        sum += entry.lane.index()
            + usize::from(is_raw)
            + plan.level_if_sent(stream, black_box(Wait::of_age(record * 100))).index();
    }
    black_box(sum);
    start.elapsed().as_secs_f64() / RECORDS as f64 * 1e9
}

fn policy(args: &Args) -> Policy {
    let lane =
        LanePolicy { durability: Durability::Through, cap_bytes: 64 << 20, overflow: Overflow::Thin, ttl_us: None, share: 1 };
    let stream = |index: u16| {
        let class = Class::ALL[usize::from(index) % 4];
        let lateness = Lateness { d0_us: 30_000_000, d1_us: Some(600_000_000), u1: 0.2 };
        let weight = 1e-5 * (1.0 + f64::from(index));
        StreamPolicy {
            name: format!("stream-{index}").into(),
            filters: vec![format!("site/{index}/#")],
            class,
            fidelity: StreamFidelity::Raw,
            format: PayloadFormat::Opaque(OpaqueFormat {}),
            aggregate: None,
            keep: None,
            model: Some(StreamModel { index: 0, name: "small".into(), version: "1".into(), window: window() }),
            ack_record: false,
            zones: if index.is_multiple_of(8) { vec!["eu".into()] } else { Vec::new() },
            value: Some(StreamValue { weight, ladder: Ladder::TELEMETRY, lateness, is_exempt: class == Class::Critical }),
            offload: Some(OffloadPolicy {
                task: "activity".into(),
                mode: OffloadMode::AnswerNow,
                band: (0.0, 0.6),
                deadline_us: 500_000,
                spacing_us: 0,
                int16: true,
                audit: 0.0,
                learn: None,
                window: window(),
            }),
            truth: None,
        }
    };
    let uplink = |index: u8| UplinkPolicy {
        meter: (index > 0).then_some(Meter { money_per_mb: f64::from(index), month_bytes: None }),
        zone: Some("eu".into()),
        ..UplinkPolicy::free(&format!("way-{index}"), 1_000_000)
    };
    Policy {
        lanes: [lane; 4],
        lanes_limits: LanesLimits { memory_bytes: 1 << 24, block_target_bytes: 1 << 16, early_commit_bytes_per_day: 0 },
        streams: (0..args.streams).map(stream).collect(),
        users: Vec::new(),
        connections: Default::default(),
        connections_max: 64,
        router: Default::default(),
        brokers: Vec::new(),
        session: SessionLimits {
            ping_us: 1_000_000,
            silence_us: 5_000_000,
            connect_us: 10_000_000,
            backoff_us: (500_000, 30_000_000),
        },
        uplinks: (0..args.uplinks).map(uplink).collect(),
        price: PriceLimits::default(),
        critical_copies: 1,
        offload: OffloadLimits::default(),
    }
}

fn window() -> WindowSpec {
    let config = WindowConfig { length: Span::Samples(128), step: None, gap_max_us: None, reorder_max_us: None };
    WindowSpec::new(&config, 6, Some(50.0)).expect("128 samples of 6 channels are within the limits")
}

fn pools(args: &Args) -> Vec<PoolPlace> {
    let place = |at: u8| PoolPlace {
        name: format!("pool-{at}").into(),
        task: "activity".into(),
        zone: Some("eu".into()),
        shape: (6, 128),
        answer_us: vec![None; usize::from(args.uplinks)],
        is_open: false,
        queue_percent: 10,
        age_us: 1_000_000,
    };
    (0..args.pools).map(place).collect()
}

fn uplinks(args: &Args) -> Vec<UplinkView> {
    let view = |index: u8| UplinkView {
        is_up: true,
        estimate: UplinkEstimate {
            rtt_us: 20_000 * (u64::from(index) + 1),
            jitter_us: 1_000,
            loss: 0.01,
            goodput_bps: 1e6,
            capacity_bps: 1e6,
            queueing_delay_us: 500,
            ack_delay_us: None,
            cwnd_bytes: 65_536,
            error_ratio: None,
            state: UplinkState::Green,
            breaker: BreakerState::Closed,
            confidence: 1.0,
            updated_us: 0,
        },
        allowance: None,
        paid_price: None,
        advice: 1.0,
        load: LoadLevel::Idle,
    };
    (0..args.uplinks).map(view).collect()
}

fn cohorts(args: &Args) -> Vec<Cohort> {
    let of = |stream: u16| {
        (0..args.ages).map(move |age| Cohort { stream, bytes: 1_000.0 + f64::from(stream), wait: Wait::of_age(250_000 << age) })
    };
    (0..args.streams).flat_map(of).collect()
}
