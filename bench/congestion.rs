//! Congestion controllers over emulated links with real QUIC: what they carry, what they lose, and how late a small message of
//! high priority is beside data without end.
//!
//! The box's end has the limits and the send window of an uplink, the far end those of an ingest node. All links are measured at
//! the same time, one controller after the other, so that each meets the same machine.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use weir::link::profile::LinkProfile;
use weir::link::relay::{self, RelaySetup, RelayThread};
use weir::pki;
use weir_edge::congestion::Congestion;
use weir_host::quic::{self, Transport};
use weir_host::tls::{self, ALPN, ClientCerts, Credentials, TlsVersion, TrustRoots};
use weir_logic::congestion::send_window;

/// Options of `weir-bench congestion`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Links: built-in profiles, profile files, `shallow` (5 Mbit/s with a queue of 16 KiB) and `deep` (with 2 MiB).
    #[arg(long, value_delimiter = ',', default_values = [
        "default", "lte", "3g", "satellite", "flaky", "lte-driving", "ethernet", "shallow", "deep",
    ])]
    links: Vec<String>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 18)]
    seconds: u64,
    /// Same seed, same losses, jitter and rates.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes the results here as well.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Run {
    link: String,
    congestion: String,
    mbit_per_s: f64,
    critical_p50_ms: f64,
    critical_p99_ms: f64,
    critical_count: u64,
    lost_packets: u64,
    sent_packets: u64,
}

/// A link of 5 Mbit/s and 80 ms there and back, with a queue of this many KiB.
fn with_queue(name: &str, queue_kib: u32) -> anyhow::Result<LinkProfile> {
    let text = format!("[up]\nrate = \"5Mbit/s\"\ndelay = \"40ms\"\nqueue = \"{queue_kib}KiB\"\n");
    let profile = LinkProfile::from_toml(name, &text, Path::new(".")).map_err(|errors| anyhow::anyhow!("{errors}"))?;
    Ok(LinkProfile { name: name.to_owned(), ..profile })
}

fn profile(name: &str) -> anyhow::Result<LinkProfile> {
    match name {
        "shallow" => with_queue(name, 16),
        "deep" => with_queue(name, 2_048),
        _ => LinkProfile::resolve(name).map_err(|errors| anyhow::anyhow!("{errors}")),
    }
}

/// Length of a critical message, and how often one is sent.
const MESSAGE_LEN: usize = 300;
const MESSAGE_INTERVAL: Duration = Duration::from_millis(100);
/// How often the send window follows, as in the shell of an uplink while it moves.
const WINDOW_INTERVAL: Duration = Duration::from_millis(25);
/// Kinds of stream: their first byte.
const CRITICAL: u8 = 1;
const BULK: u8 = 2;
/// A handshake through a link that loses packets.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let profiles = args.links.iter().map(|name| profile(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let dir = tempfile::tempdir()?;
    let certificates = Certificates::make(dir.path())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut runs = Vec::new();
    for congestion in Congestion::ALL {
        runs.extend(runtime.block_on(measure_all(&profiles, congestion, args, &certificates))?);
    }
    runs.sort_by_key(|run| args.links.iter().position(|name| *name == run.link));
    println!("| link | congestion | Mbit/s | critical p50 / p99 ms | packets sent | lost |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for run in &runs {
        println!(
            "| {} | {} | {:.2} | {:.0} / {:.0} | {} | {} |",
            run.link,
            run.congestion,
            run.mbit_per_s,
            run.critical_p50_ms,
            run.critical_p99_ms,
            run.sent_packets,
            run.lost_packets
        );
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&runs)?)?;
    }
    Ok(())
}

async fn measure_all(
    profiles: &[LinkProfile],
    congestion: Congestion,
    args: &Args,
    certificates: &Certificates,
) -> anyhow::Result<Vec<Run>> {
    let mut tasks = JoinSet::new();
    for profile in profiles {
        let ends = Ends::start(profile, congestion, args.seed, certificates)?;
        tasks.spawn(measure(ends, congestion, Duration::from_secs(args.seconds)));
    }
    let mut runs = Vec::new();
    while let Some(run) = tasks.join_next().await {
        runs.push(run??);
    }
    Ok(runs)
}

/// Who the two ends are.
#[derive(Debug)]
struct Certificates {
    roots: TrustRoots,
    gateway: Credentials,
    cloud: Credentials,
}

impl Certificates {
    fn make(dir: &Path) -> anyhow::Result<Self> {
        pki::init(dir, false)?;
        pki::issue(dir, &pki::Request::gateway("box"), false)?;
        pki::issue(dir, &pki::Request::local_cloud("cloud"), false)?;
        let load = |name: &str| Credentials::load(&dir.join(format!("{name}.pem")), &dir.join(format!("{name}.key")));
        Ok(Self { roots: TrustRoots::load(&dir.join("ca.pem"))?, gateway: load("box")?, cloud: load("cloud")? })
    }
}

/// Both ends of a link and the link between them.
struct Ends {
    link: String,
    relay: RelayThread,
    server: quinn::Endpoint,
    client: quinn::Endpoint,
}

impl Ends {
    fn start(profile: &LinkProfile, congestion: Congestion, seed: u64, certificates: &Certificates) -> anyhow::Result<Self> {
        let Certificates { roots, gateway, cloud } = certificates;
        let tls = tls::server_config(cloud, ClientCerts::Required(roots), TlsVersion::V13, &[ALPN])?;
        let server = quic::server_endpoint(socket()?, quic::server_config(tls, &Transport::cloud())?)?;
        let target = server.local_addr()?;
        let relay = relay::start(RelaySetup { listen: socket()?, target, profile: profile.clone(), seed })?;
        let tls = tls::client_config(gateway, roots, &[ALPN])?;
        let transport = Transport { congestion: congestion.factory(), ..Transport::edge() };
        let mut client = quic::client_endpoint(socket()?)?;
        client.set_default_client_config(quic::client_config(tls, &transport)?);
        Ok(Self { link: profile.name.clone(), relay, server, client })
    }
}

fn socket() -> anyhow::Result<UdpSocket> {
    Ok(quic::bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), None)?)
}

/// What came to the far end.
#[derive(Debug)]
struct Came {
    began: Instant,
    bytes: AtomicU64,
    /// How late each critical message was, in microseconds.
    late_us: Mutex<Histogram<u64>>,
}

async fn measure(ends: Ends, congestion: Congestion, length: Duration) -> anyhow::Result<Run> {
    let came = Arc::new(Came { began: Instant::now(), bytes: AtomicU64::new(0), late_us: Mutex::new(Histogram::new(3)?) });
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(ends.server.clone(), came.clone()));
    let connecting = ends.client.connect(ends.relay.addr(), "localhost")?;
    let connection = timeout(CONNECT_LIMIT, connecting).await.context("no connection through the link")??;
    let began = Instant::now();
    tasks.spawn(follow_window(connection.clone()));
    tasks.spawn(send_bulk(connection.clone()));
    tasks.spawn(send_critical(connection.clone(), came.clone()));
    sleep(length).await;
    let mbit_per_s = came.bytes.load(Relaxed) as f64 * 8e-6 / began.elapsed().as_secs_f64();
    let path = connection.stats().path;
    tasks.shutdown().await;
    connection.close(0u32.into(), b"");
    let late_us = came.late_us.lock().expect("no holder panics");
    Ok(Run {
        link: ends.link,
        congestion: format!("{congestion:?}").to_lowercase(),
        mbit_per_s,
        critical_p50_ms: late_us.value_at_quantile(0.5) as f64 / 1e3,
        critical_p99_ms: late_us.value_at_quantile(0.99) as f64 / 1e3,
        critical_count: late_us.len(),
        lost_packets: path.lost_packets,
        sent_packets: path.sent_packets,
    })
}

async fn follow_window(connection: quinn::Connection) -> anyhow::Result<()> {
    let mut interval = interval(WINDOW_INTERVAL);
    loop {
        interval.tick().await;
        connection.set_send_window(send_window(connection.stats().path.cwnd));
    }
}

async fn send_bulk(connection: quinn::Connection) -> anyhow::Result<()> {
    let mut stream = connection.open_uni().await?;
    let piece = vec![BULK; 16 * 1024];
    loop {
        stream.write_all(&piece).await?;
    }
}

async fn send_critical(connection: quinn::Connection, came: Arc<Came>) -> anyhow::Result<()> {
    let mut stream = connection.open_uni().await?;
    stream.set_priority(2)?;
    stream.write_all(&[CRITICAL]).await?;
    let mut interval = interval(MESSAGE_INTERVAL);
    loop {
        interval.tick().await;
        let mut message = [0u8; MESSAGE_LEN];
        message[..8].copy_from_slice(&(came.began.elapsed().as_micros() as u64).to_le_bytes());
        stream.write_all(&message).await?;
    }
}

async fn accept(server: quinn::Endpoint, came: Arc<Came>) -> anyhow::Result<()> {
    let connection = server.accept().await.context("the far end is closed")?.await?;
    let mut tasks = JoinSet::new();
    while let Ok(mut stream) = connection.accept_uni().await {
        let came = came.clone();
        tasks.spawn(async move {
            let mut kind = [0u8; 1];
            stream.read_exact(&mut kind).await?;
            match kind[0] {
                CRITICAL => read_critical(stream, &came).await,
                _ => read_bulk(stream, &came).await,
            }
        });
    }
    Ok(())
}

async fn read_critical(mut stream: quinn::RecvStream, came: &Came) -> anyhow::Result<()> {
    let mut message = [0u8; MESSAGE_LEN];
    loop {
        stream.read_exact(&mut message).await?;
        let sent_us = u64::from_le_bytes(message[..8].try_into()?);
        let late_us = (came.began.elapsed().as_micros() as u64).saturating_sub(sent_us);
        came.late_us.lock().expect("no holder panics").record(late_us)?;
    }
}

async fn read_bulk(mut stream: quinn::RecvStream, came: &Came) -> anyhow::Result<()> {
    while let Some(chunk) = stream.read_chunk(64 * 1024, true).await? {
        came.bytes.fetch_add(chunk.bytes.len() as u64, Relaxed);
    }
    Ok(())
}
