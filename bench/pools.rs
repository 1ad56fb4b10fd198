//! One pool of a real cloud process, and many gateways that all want more of it than there is: how evenly it is shared, and how
//! soon one hears that there is no room.
//!
//! Each gateway has a certificate and a connection of its own and asks as a box does: so many requests at a time, and after a
//! refusal none of that class or a lower one for as long as the pool says. They differ in how many they have under way, from
//! [`WIDTH_MIN`] to [`IN_FLIGHT_MAX`], so the greediest ask eight times as often as the humblest.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::BytesMut;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use weir::pki::{self, Authority};
use weir_host::quic::{self, Transport};
use weir_host::tls::{self, ALPN, Credentials, TrustRoots};
use weir_logic::ids::Class;
use weir_logic::offload::IN_FLIGHT_MAX;
use weir_logic::wire::offload::{EncodedWindow, OffloadRefusal, OffloadRequest, RefusalKind};
use weir_logic::wire::{self, Body, Hello, PROTOCOL_VERSION};

use crate::process::Process;
use crate::site::{free_tcp, free_udp};
use crate::windows::{CHANNELS, SAMPLES, STEP, Window, windows};

/// Options of `weir-bench pools`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Gateways that ask at once.
    #[arg(long, default_value_t = 200)]
    gateways: usize,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Requests that may wait in the pool.
    #[arg(long, default_value_t = 256)]
    queue_max: usize,
    /// Writes the results here as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fail unless the fairness index is 0.95 at least, no critical request was refused, and refusals were given at once.
    #[arg(long)]
    enforce: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    gateways: usize,
    answers_per_s: f64,
    refusals_per_s: f64,
    /// Jain's index over the gateways' answers: 1 if all have the same, 1/n if one has all.
    fairness: f64,
    /// Answers of the gateway that got fewest, of the median one, and of the one that got most.
    answers: [u64; 3],
    critical_answers: u64,
    critical_refused: u64,
    answer_ms: Quantiles,
    /// From a request to its refusal, both ways included, on a machine that the load fills.
    refusal_ms: Quantiles,
    /// 95th percentile of the time that a refused request spent in the pool, of the last ones.
    refused_in_pool_p95_ms: f64,
    /// Requests that found no place before the scheduler.
    over_limit: u64,
    /// What the pool counts of what it refused, by reason and class.
    refused: serde_json::Value,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Quantiles {
    p50: f64,
    p95: f64,
    p99: f64,
}

/// What came of one gateway's requests.
#[derive(Debug)]
struct Tally {
    answers: u64,
    critical_answers: u64,
    refusals: u64,
    critical_refused: u64,
    answer_us: Histogram<u64>,
    refusal_us: Histogram<u64>,
}

/// How long an answer is of use, as a box would say.
const DEADLINE: Duration = Duration::from_secs(2);
/// Requests that a gateway has under way at least. With a single one it could not have its part: it asks for the next only when
/// the answer is there, and the machine is busy with 200 others meanwhile.
const WIDTH_MIN: usize = 2;
/// One of so many requests is critical.
const CRITICAL_EVERY: u64 = 50;
/// How long the gateways ask before it is measured: queues fill, and the pool learns how fast it is.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long a connection or an answer may take before the measurement is given up.
const LIMIT: Duration = Duration::from_secs(60);
/// What must hold.
const FAIRNESS_MIN: f64 = 0.95;
/// A refused request was in the pool for this part of the median time to an answer at most.
const REFUSED_PART_MAX: f64 = 0.1;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!((1..=1_000).contains(&args.gateways) && args.seconds > 0, "1 to 1000 gateways, for a second at least");
    let folder = tempfile::Builder::new().prefix("weir-bench-").tempdir()?;
    let (cloud, quic) = start_cloud(args, folder.path())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tallies = runtime.block_on(play(args, folder.path(), quic))?;
    let outcome = judge(args, &tallies, &cloud.status()?["pools"])?;
    show(&outcome);
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&outcome)?)?;
    }
    let is_at_once = outcome.refused_in_pool_p95_ms <= outcome.answer_ms.p50 * REFUSED_PART_MAX;
    if args.enforce && (outcome.fairness < FAIRNESS_MIN || outcome.critical_refused > 0 || !is_at_once) {
        bail!("the pool is shared unevenly, refuses what is critical, or refuses late");
    }
    Ok(())
}

fn start_cloud(args: &Args, root: &Path) -> anyhow::Result<(Process, SocketAddr)> {
    pki::init(root, false)?;
    pki::issue(root, &pki::Request::local_cloud("cloud"), false)?;
    let (admin, quic) = (free_tcp()?, free_udp()?);
    let config = root.join("cloud.toml");
    let names: Vec<String> = (0..args.gateways).map(name).collect();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/watch-large.toml");
    std::fs::write(
        &config,
        format!(
            r#"
listen.quic = "{quic}"
admin.http = "{admin}"
log.filter = "warn"
store.path = "cloud.db"
gateways.enrolled = {names:?}
tls = {{ cert = "cloud.pem", key = "cloud.key", ca = "ca.pem" }}
[[pool]]
name = "activity-large"
task = "activity"
model = "{}"
engine = "rten"
queue_max = {}
gateways = ["box-*"]
"#,
            model.display(),
            args.queue_max
        ),
    )?;
    Ok((Process::start("weir-cloud", &config, admin)?, quic))
}

fn name(at: usize) -> String {
    format!("box-{at}")
}

/// Lets all gateways ask at once; what came of each while it was measured.
async fn play(args: &Args, root: &Path, to: SocketAddr) -> anyhow::Result<Vec<Tally>> {
    let authority = Authority::load(root)?;
    let windows: Arc<Vec<Window>> = Arc::new(windows(STEP)?);
    let (phase_tx, phase_rx) = watch::channel(Phase::Connecting);
    let (ready_tx, mut ready_rx) = tokio::sync::mpsc::channel(args.gateways);
    let mut gateways = JoinSet::new();
    for at in 0..args.gateways {
        let issued = authority.issue(&pki::Request::gateway(&name(at)))?;
        let config = client(&authority, &issued)?;
        let (windows, phase_rx, ready_tx) = (windows.clone(), phase_rx.clone(), ready_tx.clone());
        gateways.spawn(async move {
            let gateway = Connected::new(config, to).await?;
            ready_tx.send(()).await.context("the measurement has ended")?;
            let habit = Habit {
                width: WIDTH_MIN + at % (IN_FLIGHT_MAX + 1 - WIDTH_MIN),
                critical_every: CRITICAL_EVERY,
                first: at as u64,
            };
            gateway.ask_on(habit, &windows, phase_rx).await
        });
    }
    drop(ready_tx);
    for _ in 0..args.gateways {
        match timeout(LIMIT, ready_rx.recv()).await {
            Ok(Some(())) => {}
            _ => return Err(gateways.join_next().await.context("no gateway")??.err().context("a gateway does not connect")?),
        }
    }
    phase_tx.send_replace(Phase::WarmingUp);
    sleep(WARM_UP).await;
    phase_tx.send_replace(Phase::Measured);
    sleep(Duration::from_secs(args.seconds)).await;
    phase_tx.send_replace(Phase::Over);
    let mut tallies = Vec::new();
    while let Some(tally) = gateways.join_next().await {
        tallies.push(tally??);
    }
    Ok(tallies)
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    WarmingUp,
    Measured,
    Over,
}

/// How a gateway asks.
#[derive(Debug, Clone, Copy)]
struct Habit {
    /// Requests under way.
    width: usize,
    /// One of so many is critical, and the others are bulk.
    critical_every: u64,
    /// Number of its first one.
    first: u64,
}

/// A gateway named `hog` that leaves a pool no time for what is not critical, on a thread of its own until it is dropped.
pub(crate) struct Hog {
    phase_tx: watch::Sender<Phase>,
    thread: Option<std::thread::JoinHandle<anyhow::Result<Tally>>>,
}

impl Hog {
    /// Begins to ask the cloud whose authority is in `root`.
    ///
    /// # Errors
    /// Of its certificate, or the system's.
    pub(crate) fn start(root: &Path, to: SocketAddr) -> anyhow::Result<Hog> {
        let authority = Authority::load(root)?;
        let issued = authority.issue(&pki::Request::gateway("hog"))?;
        let config = client(&authority, &issued)?;
        let windows = windows(STEP)?;
        let (phase_tx, phase_rx) = watch::channel(Phase::Measured);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let habit = Habit { width: 6, critical_every: 1, first: 0 };
        let asking = async move { Connected::new(config, to).await?.ask_on(habit, &windows, phase_rx).await };
        let thread = std::thread::Builder::new().name("hog".to_owned()).spawn(move || runtime.block_on(asking))?;
        Ok(Hog { phase_tx, thread: Some(thread) })
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.phase_tx.send_replace(Phase::Over);
        // What it got is nobody's concern.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn client(authority: &Authority, issued: &pki::Issued) -> anyhow::Result<quinn::ClientConfig> {
    let credentials = Credentials::from_pem(issued.cert_pem.as_bytes(), issued.key_pem.as_bytes())?;
    let roots = TrustRoots::from_pem(authority.cert_pem().as_bytes())?;
    Ok(quic::client_config(tls::client_config(&credentials, &roots, &[ALPN])?, &Transport::edge())?)
}

/// A gateway that has been welcomed and told of the pool.
struct Connected {
    connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
    /// Reads what the cloud says, and keeps the control stream open.
    _control: JoinSet<()>,
}

impl Connected {
    async fn new(config: quinn::ClientConfig, to: SocketAddr) -> anyhow::Result<Connected> {
        let endpoint = quic::client_endpoint(quic::bind(SocketAddr::from(([127, 0, 0, 1], 0)), None)?)?;
        let connection = timeout(LIMIT, endpoint.connect_with(config, to, "localhost")?).await.context("no connection")??;
        let (mut send, mut recv) = connection.open_bi().await?;
        let (epoch, software) = (1, "weir-bench".to_owned());
        let hello = Hello { protocol: PROTOCOL_VERSION, epoch, held_epochs: vec![1], software, service_us: 0, answers: true };
        let mut bytes = Vec::new();
        wire::encode_control(Body::Hello(hello), &mut bytes);
        send.write_all(&bytes).await?;
        let mut buffer = BytesMut::new();
        timeout(LIMIT, async {
            loop {
                match wire::take_control(&mut buffer)?.and_then(|control| control.body) {
                    Some(Body::Pools(_)) => return anyhow::Ok(()),
                    Some(_) => continue,
                    None => {}
                }
                let chunk = recv.read_chunk(usize::MAX, true).await?.context("the cloud ended the control stream")?;
                buffer.extend_from_slice(&chunk.bytes);
            }
        })
        .await
        .context("the pool is not told of")??;
        let mut control = JoinSet::new();
        control.spawn(async move {
            let _send = send;
            while let Ok(Some(_)) = recv.read_chunk(usize::MAX, true).await {}
        });
        Ok(Connected { connection, _endpoint: endpoint, _control: control })
    }

    /// Has so many requests under way until all is over.
    async fn ask_on(self, habit: Habit, windows: &[Window], mut phase_rx: watch::Receiver<Phase>) -> anyhow::Result<Tally> {
        let mut tally = Tally {
            answers: 0,
            critical_answers: 0,
            refusals: 0,
            critical_refused: 0,
            answer_us: histogram()?,
            refusal_us: histogram()?,
        };
        let (mut under_way, mut asked, mut paused_until) = (JoinSet::new(), habit.first, [Instant::now(); 4]);
        phase_rx.wait_for(|phase| *phase != Phase::Connecting).await?;
        loop {
            let phase = *phase_rx.borrow();
            if phase == Phase::Over {
                return Ok(tally);
            }
            let class = if asked.is_multiple_of(habit.critical_every) { Class::Critical } else { Class::Bulk };
            let is_paused = Instant::now() < paused_until[class.index()];
            if under_way.len() < habit.width && !is_paused {
                let window = &windows[asked as usize % windows.len()];
                under_way.spawn(ask(self.connection.clone(), request(class, window), class));
                asked += 1;
                continue;
            }
            let answered = tokio::select! {
                Some(answered) = under_way.join_next() => answered??,
                () = sleep_until(paused_until[class.index()]), if is_paused => continue,
                changed = phase_rx.changed() => { changed?; continue }
            };
            if let Some(refusal) = &answered.refusal {
                let until = Instant::now() + Duration::from_millis(refusal.retry_after_ms.into());
                paused_until[answered.class.index()..].fill(until);
            }
            if phase == Phase::Measured {
                tally.add(&answered)?;
            }
        }
    }
}

/// What came back on a request's stream, and after how long.
#[derive(Debug)]
struct Answered {
    class: Class,
    took: Duration,
    refusal: Option<OffloadRefusal>,
}

impl Tally {
    fn add(&mut self, answered: &Answered) -> anyhow::Result<()> {
        let (us, is_critical) = (answered.took.as_micros() as u64, u64::from(answered.class == Class::Critical));
        match &answered.refusal {
            None => {
                self.answers += 1;
                self.critical_answers += is_critical;
                self.answer_us.saturating_record(us);
            }
            Some(refusal) => {
                let kind = RefusalKind::from_code(refusal.kind);
                anyhow::ensure!(matches!(kind, RefusalKind::Busy | RefusalKind::Late), "refused: {}", refusal.reason);
                self.refusals += 1;
                self.critical_refused += is_critical;
                self.refusal_us.saturating_record(us);
            }
        }
        Ok(())
    }
}

fn request(class: Class, window: &Window) -> Vec<u8> {
    let values: Vec<f32> =
        (0..CHANNELS).flat_map(|of| window.samples.iter().skip(of).step_by(CHANNELS).map(|&value| f32::from(value))).collect();
    let EncodedWindow { scales, data } = EncodedWindow::new(CHANNELS, &values, true);
    let request = OffloadRequest {
        pool: "activity-large".to_owned(),
        task: "activity".to_owned(),
        class: class.index() as u32,
        deadline_ms: DEADLINE.as_millis() as u32,
        channels: CHANNELS as u32,
        length: SAMPLES as u32,
        scales,
        data,
    };
    let mut bytes = Vec::new();
    wire::encode_control(Body::OffloadRequest(request), &mut bytes);
    bytes
}

async fn ask(connection: quinn::Connection, request: Vec<u8>, class: Class) -> anyhow::Result<Answered> {
    let start = Instant::now();
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&request).await?;
    send.finish()?;
    let answer = timeout(LIMIT, recv.read_to_end(1 << 16)).await.context("no answer")??;
    let control = wire::take_control(&mut BytesMut::from(&answer[..]))?.context("no whole answer")?;
    let refusal = match control.body {
        Some(Body::OffloadAnswer(_)) => None,
        Some(Body::OffloadRefusal(refusal)) => Some(refusal),
        other => bail!("no answer: {other:?}"),
    };
    Ok(Answered { class, took: start.elapsed(), refusal })
}

fn judge(args: &Args, tallies: &[Tally], pools: &serde_json::Value) -> anyhow::Result<Outcome> {
    let (mut answer_us, mut refusal_us) = (histogram()?, histogram()?);
    for tally in tallies {
        answer_us.add(&tally.answer_us)?;
        refusal_us.add(&tally.refusal_us)?;
    }
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let mut answers: Vec<u64> = tallies.iter().map(|tally| tally.answers).collect();
    answers.sort_unstable();
    let squares: f64 = answers.iter().map(|&count| (count as f64).powi(2)).sum();
    let all = sum(|tally| tally.answers) as f64;
    Ok(Outcome {
        gateways: tallies.len(),
        answers_per_s: all / args.seconds as f64,
        refusals_per_s: sum(|tally| tally.refusals) as f64 / args.seconds as f64,
        fairness: all * all / (tallies.len() as f64 * squares),
        answers: [answers[0], answers[answers.len() / 2], answers[answers.len() - 1]],
        critical_answers: sum(|tally| tally.critical_answers),
        critical_refused: sum(|tally| tally.critical_refused),
        answer_ms: quantiles(&answer_us),
        refusal_ms: quantiles(&refusal_us),
        refused_in_pool_p95_ms: pools["pools"][0]["refused_p95_us"].as_f64().context("no time of refusals in the status")?
            / 1e3,
        over_limit: pools["over_limit"].as_u64().context("no count in the status")?,
        refused: pools["pools"][0]["refused"].clone(),
    })
}

/// Times in microseconds, up to [`LIMIT`].
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LIMIT.as_micros() as u64, 3)?)
}

fn quantiles(of: &Histogram<u64>) -> Quantiles {
    let ms = |quantile| of.value_at_quantile(quantile) as f64 / 1e3;
    Quantiles { p50: ms(0.5), p95: ms(0.95), p99: ms(0.99) }
}

fn show(outcome: &Outcome) {
    let Outcome { answers: [least, median, most], answer_ms, refusal_ms, .. } = outcome;
    println!(
        "{} gateways: {:.0} answers and {:.0} refusals a second, fairness {:.4}",
        outcome.gateways, outcome.answers_per_s, outcome.refusals_per_s, outcome.fairness
    );
    println!("answers of a gateway: {least} at least, {median} in the middle, {most} at most");
    println!("critical: {} answered, {} refused", outcome.critical_answers, outcome.critical_refused);
    for (what, Quantiles { p50, p95, p99 }) in [("answers", answer_ms), ("refusals", refusal_ms)] {
        println!("{what} after {p50:.1} / {p95:.1} / {p99:.1} ms (p50 / p95 / p99)");
    }
    println!("of a refusal's time in the pool: {:.1} ms (p95)", outcome.refused_in_pool_p95_ms);
    println!("without a place before the scheduler: {}; refused by it: {}", outcome.over_limit, outcome.refused);
}
