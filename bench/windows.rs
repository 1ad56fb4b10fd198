//! Windows of the held-out smartwatch recordings, sent to a box one after the other, and how long each takes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::publisher;

/// A window of a held-out subject, and what it shows.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) exercise: String,
    /// 128 samples of six channels, as they were sampled.
    pub(crate) samples: Vec<i16>,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Times {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

pub(crate) const SAMPLES: usize = 128;
pub(crate) const CHANNELS: usize = 6;
/// By how many samples windows of a recording follow each other, as they did when the models were trained.
pub(crate) const STEP: usize = 64;

/// The windows of all held-out recordings, each of one exercise; they follow each other by `step` samples.
pub(crate) fn windows(step: usize) -> anyhow::Result<Vec<Window>> {
    let mut windows = Vec::new();
    for subject in [8, 9, 10] {
        let file = format!("../models/recordings/watch_subject{subject}.csv");
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))?;
        let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split(',').collect()).collect();
        for part in rows.windows(SAMPLES).step_by(step) {
            if part.iter().any(|row| row[3] != part[0][3]) {
                continue;
            }
            let samples = part.iter().flat_map(|row| &row[4..]).map(|number| number.parse()).collect::<Result<_, _>>()?;
            windows.push(Window { exercise: part[0][3].to_owned(), samples });
        }
    }
    Ok(windows)
}

/// Publishes each window as a message of a device of its own, so many a second; returns the times from publish to PUBACK in
/// microseconds. `before` is called with the position of each window before it is sent.
///
/// # Errors
/// That of `before` or of the socket, or no PUBACK for a minute.
pub(crate) fn publish(
    addr: SocketAddr,
    windows: &[Window],
    rate: f64,
    mut before: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<u64>> {
    anyhow::ensure!(windows.len() < usize::from(u16::MAX), "each window has a packet id of its own");
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    publisher::connect(&mut stream, 0)?;
    stream.set_read_timeout(Some(Duration::from_micros(500)))?;
    let (start, mut sent_at, mut took_us) = (Instant::now(), Vec::new(), vec![0; windows.len()]);
    let (mut acked, mut input, mut rest) = (0, [0; 4_096], Vec::new());
    while acked < windows.len() {
        let due = (start.elapsed().as_secs_f64() * rate) as usize + 1;
        while sent_at.len() < due.min(windows.len()) {
            let (at, mut packet) = (sent_at.len(), Vec::new());
            before(at)?;
            // Packet ids begin at 1.
            publisher::head(&mut packet, &format!("wrist/{at}"), at as u16 + 1, 2 * CHANNELS * SAMPLES);
            packet.extend(windows[at].samples.iter().flat_map(|value| value.to_le_bytes()));
            sent_at.push(Instant::now());
            stream.write_all(&packet)?;
        }
        match stream.read(&mut input) {
            Ok(0) => bail!("the gateway closed the connection"),
            Ok(len) => {
                rest.extend_from_slice(&input[..len]);
                for puback in rest.chunks_exact(4) {
                    let at = usize::from(u16::from_be_bytes([puback[2], puback[3]])) - 1;
                    took_us[at] = sent_at.get(at).context("a PUBACK of nothing")?.elapsed().as_micros() as u64;
                    acked += 1;
                }
                rest.drain(..rest.len() / 4 * 4);
            }
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let is_stuck = sent_at.last().is_some_and(|sent| sent.elapsed() > Duration::from_secs(60));
                anyhow::ensure!(!is_stuck, "no PUBACK for a minute");
            }
            Err(err) => return Err(err.into()),
        }
    }
    Ok(took_us)
}

/// Waits until something is so, for a minute at most.
///
/// # Errors
/// That of `is_so`, or `otherwise`.
pub(crate) fn wait_for(is_so: impl Fn() -> anyhow::Result<bool>, otherwise: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so()? {
        anyhow::ensure!(Instant::now() < deadline, "{otherwise}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Median and 99th percentile of times in microseconds.
pub(crate) fn times(took_us: impl Iterator<Item = u64>) -> anyhow::Result<Times> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3)?;
    took_us.for_each(|us| histogram.saturating_record(us));
    let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Times { p50: ms(0.5), p99: ms(0.99) })
}
