//! `weir replay`: publishes recorded messages again, at their own pace or faster.
//!
//! The file is the one that `weir sim --config` takes: what `mosquitto_sub -t '#' -F '%U %t %x'` wrote. Messages go out with QoS 1,
//! in order, and it ends when the last PUBACK has come. Times inside payloads stay as they were recorded.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::time::Instant;

use crate::sim::own::{Recorded, messages};

/// `weir replay FILE`
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Recorded messages, as `mosquitto_sub -t '#' -F '%U %t %x'` writes them
    pub file: PathBuf,
    /// Host and port of the box's listener, or of a broker; plain TCP
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub to: String,
    /// Times as fast as they were recorded; 0 for as fast as it goes
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
    /// User name
    #[arg(long)]
    pub user: Option<String>,
    /// File whose first line is the user's password
    #[arg(long, requires = "user")]
    pub password_file: Option<PathBuf>,
}

/// Messages without PUBACK at most. Source: well below the 1,024 that a box allows.
const INFLIGHT_MAX: u16 = 200;
/// Messages handed over that are not on the socket yet.
const QUEUE_LEN: usize = 16;
/// Longest packet, as a box takes it: 1 MiB and a topic.
const PACKET_LEN_MAX: usize = (1 << 20) + (64 << 10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A recording of a week then takes up to 20 years, and each of its waits is within what a clock can count.
const SPEED_MIN: f64 = 0.001;
const SPEED_MAX: f64 = 1e6;

/// Publishes the file's messages, and says how many.
///
/// # Errors
/// If the file cannot be read or has no messages, or if the connection is refused or lost: what was acknowledged until then is said.
pub fn run(args: &ReplayArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let is_speed = args.speed == 0.0 || (SPEED_MIN..=SPEED_MAX).contains(&args.speed);
    anyhow::ensure!(is_speed, "--speed {} is neither 0 nor within {SPEED_MIN} to {SPEED_MAX}", args.speed);
    let messages = messages(&args.file)?;
    let count = messages.len();
    let (client, event_loop) = AsyncClient::new(options(args)?, QUEUE_LEN);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let start = std::time::Instant::now();
    runtime.block_on(async {
        tokio::spawn(feed(client, messages, args.speed));
        await_pubacks(event_loop, count).await
    })?;
    writeln!(out, "{count} messages published and acknowledged in {:.1} s", start.elapsed().as_secs_f64())?;
    Ok(())
}

fn options(args: &ReplayArgs) -> anyhow::Result<MqttOptions> {
    let address = args.to.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = address.with_context(|| format!("--to {}: write HOST:PORT", args.to))?;
    let mut options = MqttOptions::new("weir-replay", host.trim_start_matches('[').trim_end_matches(']'), port);
    options.set_keep_alive(KEEP_ALIVE).set_inflight(INFLIGHT_MAX).set_max_packet_size(PACKET_LEN_MAX, PACKET_LEN_MAX);
    if let Some(user) = &args.user {
        let password = match &args.password_file {
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
                text.lines().next().unwrap_or_default().to_owned()
            }
            None => String::new(),
        };
        options.set_credentials(user, password);
    }
    Ok(options)
}

/// Hands over each message when it is due.
async fn feed(client: AsyncClient, messages: Vec<Recorded>, speed: f64) {
    let start = Instant::now();
    for Recorded { at_us, topic, payload } in messages {
        if speed > 0.0 {
            tokio::time::sleep_until(start + Duration::from_secs_f64(at_us as f64 / 1e6 / speed)).await;
        }
        // It fails only when the connection has ended, which the other side reports.
        if client.publish_bytes(topic, QoS::AtLeastOnce, false, payload).await.is_err() {
            return;
        }
    }
    // The event loop ends with its last client.
    std::future::pending::<()>().await;
}

async fn await_pubacks(mut event_loop: EventLoop, count: usize) -> anyhow::Result<()> {
    let mut acked = 0;
    while acked < count {
        match event_loop.poll().await {
            Ok(Event::Incoming(Packet::PubAck(_))) => acked += 1,
            Ok(_) => {}
            Err(err) => {
                return Err(err)
                    .with_context(|| format!("the connection failed; {acked} of {count} messages were acknowledged"));
            }
        }
    }
    Ok(())
}
