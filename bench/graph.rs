//! The federated graph at fleet size: memory for each box, merges a second, and how long the search for common causes takes.
//!
//! All digests are made first, so that what the resident memory grows by is the federation's alone; one run a process, because
//! a second would use what the first has freed.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;
use weir_logic::graph::{
    CauseLimits, Causes, Federation, FederationLimits, Owner, Peer, Publisher, PublisherLimits, Site, SiteShape, StreamShape,
    TalkerLimits, Talkers, UplinkShape,
};
use weir_logic::health::{BreakerState, UplinkEstimate, UplinkState};

/// Memory of the cloud that a box may take: 400 MB for a fleet of 50,000.
const BYTES_PER_GATEWAY_MAX: f64 = 8_192.0;
/// Longest digest of a box with 3 uplinks and 20 streams, and longest usual delta, in bytes.
const FULL_BYTES_MAX: f64 = 2_048.0;
const DELTA_BYTES_MAX: f64 = 200.0;
/// Digests that one core merges in a second at least: a fleet of 50,000 that says something each 2.5 s.
const MERGES_PER_S_MIN: f64 = 20_000.0;

/// Options of `weir-bench graph`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Boxes.
    #[arg(long, default_value_t = 50_000)]
    gateways: usize,
    /// Uplinks of each.
    #[arg(long, default_value_t = 3)]
    uplinks: usize,
    /// Streams of each.
    #[arg(long, default_value_t = 20)]
    streams: usize,
    /// Deltas from each.
    #[arg(long, default_value_t = 5)]
    deltas: usize,
    /// No two boxes have the name of a stream or sensor group in common, the worst case; otherwise all are from one template.
    #[arg(long)]
    names_differ: bool,
    /// Fails if a box takes more than its part of the cloud's memory, or if too few digests are merged.
    #[arg(long)]
    enforce: bool,
    /// Writes the results here as well.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Run {
    names_differ: bool,
    full_bytes: f64,
    delta_bytes: f64,
    resident_bytes_per_gateway: f64,
    estimated_bytes_per_gateway: f64,
    talkers_bytes_per_gateway: f64,
    full_merges_per_s: f64,
    delta_merges_per_s: f64,
    publish_us: f64,
    judge_quiet_ms: f64,
    judge_trouble_ms: f64,
}

/// All digests of a fleet.
struct Letters {
    fulls: Vec<(Owner, Vec<u8>)>,
    /// For each round, by box.
    deltas: Vec<Vec<Vec<u8>>>,
    publish_us: f64,
}

const SECOND_US: u64 = 1_000_000;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let run = measure(args)?;
    let Run { full_bytes, delta_bytes, publish_us, .. } = run;
    println!("full digest {full_bytes:.0} bytes, delta {delta_bytes:.0} bytes, made in {publish_us:.1} us");
    println!(
        "memory for each of {} boxes: {:.0} bytes resident ({:.0} reckoned), who talks to whom {:.0} bytes",
        args.gateways, run.resident_bytes_per_gateway, run.estimated_bytes_per_gateway, run.talkers_bytes_per_gateway
    );
    println!("merges a second: {:.0} full, {:.0} deltas", run.full_merges_per_s, run.delta_merges_per_s);
    println!("search for common causes: {:.0} ms, {:.0} ms while one fails", run.judge_quiet_ms, run.judge_trouble_ms);
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&run)?)?;
    }
    if args.enforce { enforce(&run) } else { Ok(()) }
}

fn enforce(run: &Run) -> anyhow::Result<()> {
    let bytes = run.resident_bytes_per_gateway + run.talkers_bytes_per_gateway;
    for (what, found, most) in [
        ("bytes of memory for each box", bytes, BYTES_PER_GATEWAY_MAX),
        ("bytes of a full digest", run.full_bytes, FULL_BYTES_MAX),
        ("bytes of a delta", run.delta_bytes, DELTA_BYTES_MAX),
    ] {
        anyhow::ensure!(found <= most, "{found:.0} {what}, more than {most}");
    }
    let merges_per_s = run.full_merges_per_s.min(run.delta_merges_per_s);
    anyhow::ensure!(merges_per_s >= MERGES_PER_S_MIN, "{merges_per_s:.0} merges a second, fewer than {MERGES_PER_S_MIN}");
    Ok(())
}

fn measure(args: &Args) -> anyhow::Result<Run> {
    let letters = letters(args)?;
    let gateways = args.gateways as f64;
    let before = resident_bytes()?;
    let mut cloud = Federation::new(FederationLimits { owners_max: args.gateways, ..FederationLimits::default() });
    let start = Instant::now();
    for (owner, bytes) in &letters.fulls {
        cloud.merge(SECOND_US, owner, bytes)?;
    }
    let full_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for (round, deltas) in letters.deltas.iter().enumerate() {
        for ((owner, _), bytes) in letters.fulls.iter().zip(deltas) {
            cloud.merge((round as u64 + 2) * SECOND_US, owner, bytes)?;
        }
    }
    let delta_s = start.elapsed().as_secs_f64();
    anyhow::ensure!(cloud.counters().deltas as usize == args.gateways * args.deltas, "not all deltas were taken");
    let resident = resident_bytes()? - before;
    let estimated = cloud.memory_bytes();
    let now_us = (args.deltas as u64 + 1) * SECOND_US;
    let mut causes = Causes::new(CauseLimits::default());
    let judge_quiet_ms = judge(&mut causes, now_us, &cloud);
    // One carrier of the hundred fails.
    for index in 0..args.gateways {
        let (mut site, mut publisher) = (site(args, index)?, Publisher::new(1, 1, PublisherLimits::default()));
        for uplink in 0..args.uplinks {
            let is_bad = carrier(index, uplink) == 7;
            let state = if is_bad { UplinkState::Red } else { UplinkState::Green };
            site.uplink(now_us, uplink, &UplinkEstimate { state, ..health(now_us, 1.0) });
        }
        if let Some(bytes) = publisher.next(now_us, site.graph(), &mut Peer::default()) {
            cloud.merge(now_us, site.graph().owner(), &bytes)?;
        }
    }
    judge(&mut causes, now_us, &cloud);
    let judge_trouble_ms = judge(&mut causes, now_us + 3 * SECOND_US, &cloud);
    let named: Vec<String> = causes.named().map(|cause| cause.node.to_string()).collect();
    anyhow::ensure!(named == ["carrier/carrier-07"], "causes found: {named:?}");
    let before = resident_bytes()?;
    let mut talkers = Talkers::new(0, TalkerLimits::default());
    for part in cloud.parts() {
        talkers.observe(now_us, part);
    }
    let talkers_bytes = resident_bytes()? - before;
    let mean = |bytes: usize, count: f64| bytes as f64 / count;
    let delta_bytes = letters.deltas.iter().flatten().map(Vec::len).sum();
    Ok(Run {
        names_differ: args.names_differ,
        full_bytes: mean(letters.fulls.iter().map(|(_, bytes)| bytes.len()).sum(), gateways),
        delta_bytes: mean(delta_bytes, gateways * args.deltas as f64),
        resident_bytes_per_gateway: resident / gateways,
        estimated_bytes_per_gateway: mean(estimated, gateways),
        talkers_bytes_per_gateway: talkers_bytes / gateways,
        full_merges_per_s: gateways / full_s,
        delta_merges_per_s: gateways * args.deltas as f64 / delta_s,
        publish_us: letters.publish_us,
        judge_quiet_ms,
        judge_trouble_ms,
    })
}

fn judge(causes: &mut Causes, now_us: u64, cloud: &Federation) -> f64 {
    let start = Instant::now();
    causes.judge(now_us, cloud);
    start.elapsed().as_secs_f64() * 1e3
}

fn letters(args: &Args) -> anyhow::Result<Letters> {
    let mut letters = Letters { fulls: Vec::new(), deltas: vec![Vec::new(); args.deltas], publish_us: 0.0 };
    let mut publishing_s = 0.0;
    for index in 0..args.gateways {
        let mut site = site(args, index)?;
        let (mut publisher, mut peer) = (Publisher::new(0, 1, PublisherLimits::default()), Peer::default());
        for round in 0..=args.deltas {
            let now_us = (round as u64 + 1) * SECOND_US;
            // One uplink after the other becomes half as good again.
            for uplink in 0..args.uplinks {
                let times = (round + args.uplinks - 1 - uplink) / args.uplinks;
                site.uplink(now_us, uplink, &health(now_us, 1.5f64.powi(times as i32)));
            }
            let start = Instant::now();
            let bytes = publisher.next(now_us, site.graph(), &mut peer).context("nothing to publish")?;
            publishing_s += start.elapsed().as_secs_f64();
            match round.checked_sub(1) {
                Some(delta) => letters.deltas[delta].push(bytes),
                None => letters.fulls.push((site.graph().owner().clone(), bytes)),
            }
        }
    }
    letters.publish_us = publishing_s * 1e6 / (args.gateways * (args.deltas + 1)) as f64;
    Ok(letters)
}

fn site(args: &Args, index: usize) -> anyhow::Result<Site> {
    let of = if args.names_differ { format!("-{index:05}") } else { String::new() };
    let stream = |at: usize| StreamShape {
        name: format!("vibration-{at}{of}"),
        sensors: vec![format!("plant{of}/line-{at}/+/acceleration")],
        model: at.is_multiple_of(4).then(|| format!("bearing{of}")),
    };
    let uplink = |at: usize| UplinkShape {
        name: format!("wwan{at}"),
        router: None,
        carrier: Some(format!("carrier-{:02}", carrier(index, at))),
        ingest: format!("ingest-{}", index % 5),
        zone: None,
        money_per_mb: Some(0.01),
        energy_per_mb: Some(5.0),
    };
    Ok(Site::new(&SiteShape {
        gateway: format!("box-{index:05}"),
        zone: Some("eu-central".to_owned()),
        streams: (0..args.streams).map(stream).collect(),
        uplinks: (0..args.uplinks).map(uplink).collect(),
    })?)
}

/// Which of a hundred carriers an uplink has.
fn carrier(gateway: usize, uplink: usize) -> usize {
    (gateway * 7 + uplink * 31) % 100
}

fn health(now_us: u64, size: f64) -> UplinkEstimate {
    UplinkEstimate {
        rtt_us: (40_000.0 * size) as u64,
        jitter_us: (3_000.0 * size) as u64,
        loss: 0.002 * size,
        goodput_bps: 2e6 * size,
        capacity_bps: 5e6 * size,
        queueing_delay_us: (10_000.0 * size) as u64,
        ack_delay_us: Some((90_000.0 * size) as u64),
        cwnd_bytes: 64_000,
        error_ratio: Some(0.0),
        state: UplinkState::Green,
        breaker: BreakerState::Closed,
        confidence: 1.0,
        updated_us: now_us,
    }
}

/// Memory of this process that is in RAM.
fn resident_bytes() -> anyhow::Result<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = statm.split(' ').nth(1).context("/proc/self/statm has no second number")?.parse()?;
    Ok(pages * rustix::param::page_size() as f64)
}
