//! `weir link`: a link between two network namespaces, told what to do by lines on standard input.

use std::{
    io::{self, BufRead as _, Write},
    process::ExitCode,
    str::FromStr,
};

use anyhow::Context as _;
use serde::Serialize;
use tokio::sync::mpsc;
use weir_host::{
    shutdown,
    units::{BitRate, Duration, Ratio},
};

use super::{
    gate::UdpPolicy,
    profile::{DELAY_MAX, LOSS_MAX, LinkProfile, RATE_MAX, RATE_MIN},
    thread::{Control, LinkStats, LinkThread},
    tun::{self, Ipv4Net, TunEnd, TunSetup},
};

/// Arguments of `weir link`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = HELP)]
pub struct LinkArgs {
    /// What the link is like: the name of a profile, or a file (a profile, a Mahimahi recording, or CSV with `t_s,mbps`)
    #[arg(long, default_value = "default")]
    pub profile: String,
    /// Namespace of the box, as `ip netns add` made it [default: the one this runs in]
    #[arg(long, value_name = "NAME")]
    pub a_netns: Option<String>,
    /// Address of the box's end
    #[arg(long, value_name = "ADDR/BITS")]
    pub a_addr: Ipv4Net,
    /// Namespace of the cloud
    #[arg(long, value_name = "NAME")]
    pub b_netns: String,
    /// Address of the cloud's end, in the same network
    #[arg(long, value_name = "ADDR/BITS")]
    pub b_addr: Ipv4Net,
    /// Name of the device at both ends
    #[arg(long, value_name = "NAME", default_value = "weir0")]
    pub device: String,
    /// The same seed gives the same losses, jitter and outages
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

const HELP: &str = "\
It needs root, and runs until it is interrupted. Lines on standard input change the link; each is answered by a line of JSON:
  cut, restore                                 nothing passes; it does again
  rate 1Mbit/s, rate 2%, loss 5%, delay 200ms  in the place of the profile's, in both directions
  block-udp, throttle-udp, unblock-udp         no UDP; QUIC's handshakes but no data; all of it
  reset                                        everything as the profile says
  stats                                        what is done to the link, and what went through so far";

/// Lines that wait to be carried out; a writer that is faster is held up by its pipe.
const LINES_LEN: usize = 16;

/// One line of standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Change(Change),
    Stats,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Cut,
    Restore,
    Rate(BitRate),
    Scale(Ratio),
    Loss(Ratio),
    Delay(Duration),
    Udp(UdpPolicy),
    Reset,
}

impl Change {
    fn apply(self, control: &mut Control) {
        match self {
            Change::Cut => control.is_down = true,
            Change::Restore => control.is_down = false,
            Change::Rate(rate) => (control.rate, control.rate_scale) = (Some(rate), Ratio::from_percent(100)),
            Change::Scale(scale) => (control.rate, control.rate_scale) = (None, scale),
            Change::Loss(loss) => control.loss = Some(loss),
            Change::Delay(delay) => control.delay = Some(delay),
            Change::Udp(policy) => control.udp = policy,
            Change::Reset => *control = Control::default(),
        }
    }
}

/// Why a line is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum OrderError {
    #[error(
        "`{word}` is not known; known are cut, restore, rate, loss, delay, block-udp, throttle-udp, unblock-udp, reset, stats"
    )]
    Unknown { word: String },
    #[error("`{word}` needs {needed}")]
    Value { word: String, needed: String },
}

impl FromStr for Order {
    type Err = OrderError;

    fn from_str(line: &str) -> Result<Self, OrderError> {
        let mut words = line.split_whitespace();
        let word = words.next().unwrap_or_default();
        let value = words.next();
        let wrong = |needed: String| OrderError::Value { word: word.to_owned(), needed };
        let alone = |change| match value {
            None => Ok(Order::Change(change)),
            Some(_) => Err(wrong("nothing after it".to_owned())),
        };
        if words.next().is_some() {
            return Err(wrong("at most one word after it".to_owned()));
        }
        match word {
            "cut" => alone(Change::Cut),
            "restore" => alone(Change::Restore),
            "block-udp" => alone(Change::Udp(UdpPolicy::Blocked)),
            "throttle-udp" => alone(Change::Udp(UdpPolicy::Throttled)),
            "unblock-udp" => alone(Change::Udp(UdpPolicy::Open)),
            "reset" => alone(Change::Reset),
            "stats" if value.is_none() => Ok(Order::Stats),
            "stats" => Err(wrong("nothing after it".to_owned())),
            "rate" | "loss" | "delay" => {
                change(word, value.unwrap_or_default()).map(Order::Change).ok_or_else(|| wrong(needed(word)))
            }
            _ => Err(OrderError::Unknown { word: word.to_owned() }),
        }
    }
}

/// What changes by a number; `None` if it is none, or out of range.
fn change(word: &str, value: &str) -> Option<Change> {
    match word {
        "rate" => match value.parse::<BitRate>() {
            Ok(rate) => (RATE_MIN..=RATE_MAX).contains(&rate).then_some(Change::Rate(rate)),
            Err(_) => value.parse().ok().filter(|scale| *scale > Ratio::from_ppm(0)).map(Change::Scale),
        },
        "loss" => value.parse().ok().filter(|loss| *loss <= LOSS_MAX).map(Change::Loss),
        _ => value.parse().ok().filter(|delay| *delay <= DELAY_MAX).map(Change::Delay),
    }
}

fn needed(word: &str) -> String {
    match word {
        "rate" => format!("a rate from {RATE_MIN} to {RATE_MAX}, or a share of the profile's above 0%; `cut` stops everything"),
        "loss" => format!("a share up to {LOSS_MAX}"),
        _ => format!("a time up to {DELAY_MAX}"),
    }
}

/// A line of standard output.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer<'a> {
    Ready { device: &'a str, mtu: u64, profile: &'a str },
    Done(&'a str),
    Error(String),
    Stats(Box<LinkStats>),
}

/// Makes the link, carries out what is asked for, and stops when it is interrupted.
///
/// # Errors
/// What is wrong with the arguments, what the system refuses, and what ends the link.
pub fn run(args: &LinkArgs) -> anyhow::Result<ExitCode> {
    let profile = LinkProfile::resolve(&args.profile)?;
    let a = TunEnd { netns: args.a_netns.clone(), addr: args.a_addr };
    let b = TunEnd { netns: Some(args.b_netns.clone()), addr: args.b_addr };
    let setup = TunSetup { device: args.device.clone(), a, b, profile, seed: args.seed };
    let (mtu, profile) = (setup.mtu(), setup.profile.name.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before there is a device: whoever sees one may interrupt.
    let shutdown = runtime.block_on(async { shutdown::on_signals() })?;
    let link = tun::start(setup)?;
    say(&Answer::Ready { device: &args.device, mtu, profile: &profile })?;
    runtime.block_on(serve(&link, shutdown))?;
    link.stop().context("the link has ended: a device of it is gone")?;
    Ok(ExitCode::SUCCESS)
}

/// Answers lines until the link is to end or has ended. The end of standard input is none: a link may run unattended.
async fn serve(link: &LinkThread, mut shutdown: shutdown::Shutdown) -> anyhow::Result<()> {
    let mut lines_rx = read_lines()?;
    let mut stats_rx = link.watch();
    let mut is_open = true;
    loop {
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            changed = stats_rx.changed() => if changed.is_err() {
                return Ok(());
            },
            line = lines_rx.recv(), if is_open => match line {
                Some(line) if line.trim().is_empty() => {}
                Some(line) => say(&answer(link, line.trim()).await)?,
                None => is_open = false,
            },
        }
    }
}

async fn answer<'a>(link: &LinkThread, line: &'a str) -> Answer<'a> {
    match line.parse() {
        Ok(Order::Change(change)) => {
            link.control(|control| change.apply(control));
            link.obeyed().await;
            Answer::Done(line)
        }
        Ok(Order::Stats) => Answer::Stats(Box::new(link.stats())),
        Err(err) => Answer::Error(err.to_string()),
    }
}

fn say(answer: &Answer<'_>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(answer)?)?;
    Ok(out.flush()?)
}

/// Lines of standard input, read on a thread that ends with the process: a read cannot be interrupted.
fn read_lines() -> io::Result<mpsc::Receiver<String>> {
    let (lines_tx, lines_rx) = mpsc::channel(LINES_LEN);
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if lines_tx.blocking_send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(lines_rx)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(lines: &[&str]) -> Control {
        let mut control = Control::default();
        for line in lines {
            match line.parse() {
                Ok(Order::Change(change)) => change.apply(&mut control),
                other => panic!("{line}: {other:?}"),
            }
        }
        control
    }

    #[test]
    fn every_line_changes_what_it_says() {
        let changed = control(&["cut", "rate 1Mbit/s", "loss 5%", " delay  200ms ", "throttle-udp"]);
        assert_eq!(changed.rate, Some(BitRate::from_bits_per_s(1_000_000)));
        assert_eq!((changed.loss, changed.delay), (Some(Ratio::from_percent(5)), Some(Duration::from_millis(200))));
        assert!(changed.is_down && changed.udp == UdpPolicy::Throttled);
        assert_eq!(control(&["block-udp"]).udp, UdpPolicy::Blocked);
        assert_eq!(control(&["rate 1Mbit/s", "rate 2%"]).rate_scale, Ratio::from_percent(2));
        assert_eq!(control(&["rate 1Mbit/s", "rate 2%"]).rate, None);
        assert_eq!(control(&["rate 2%", "rate 1Mbit/s"]).rate_scale, Ratio::from_percent(100));
        assert_eq!(control(&["cut", "restore", "block-udp", "unblock-udp"]), Control::default());
        assert_eq!(control(&["cut", "rate 2%", "loss 1%", "block-udp", "reset"]), Control::default());
        assert_eq!("stats".parse(), Ok(Order::Stats));
    }

    #[test]
    fn a_line_that_is_not_understood_says_what_would_be() {
        let message = |line: &str| line.parse::<Order>().unwrap_err().to_string();
        assert!(message("cutt").contains("known are cut, restore"));
        assert!(message("cut now").contains("nothing after it") && message("stats all").contains("nothing after it"));
        assert!(message("rate 1 Mbit/s").contains("at most one word"));
        for line in ["rate", "rate fast", "rate 0bit/s", "rate 0%", "rate 1Tbit/s"] {
            assert!(message(line).contains("`rate` needs a rate from 128bit/s to 10Gbit/s"), "{line}: {}", message(line));
        }
        assert_eq!(message("loss 95%"), "`loss` needs a share up to 90%");
        assert!(message("delay 2m").starts_with("`delay` needs a time up to "), "{}", message("delay 2m"));
    }
}
