//! Measures the sink: blocks of 200-byte JSON samples go in, rows a second and CPU seconds a million come out.
//!
//! `cargo run --release -p weir-cloud --example sink_rate -- [SAMPLES] [PER_BLOCK] [DIR]`, by default 2,000,000 samples in
//! blocks of 1,000, in a directory for temporary files. Eight blocks are in flight, so transactions are about that large.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_cloud::metrics::Metrics;
use weir_cloud::schema::Layout;
use weir_cloud::sink::{Job, Pace, Sink, SinkEvent, Work};
use weir_logic::block::{Codec, NewRecord, RecordKind, Staging};
use weir_logic::ids::{Class, Epoch};
use weir_logic::receive::Store;

const DEVICES: usize = 100;
const IN_FLIGHT: usize = 8;

#[expect(clippy::print_stdout, reason = "it is what the program is for")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (samples, per_block) = (number(0, 2_000_000)?, number(1, 1_000)?);
    let dir = arguments.get(2).map_or_else(std::env::temp_dir, PathBuf::from).join(format!("sink-rate-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let blocks = blocks(samples, per_block);
    let layout = Layout { path: dir.join("cloud.db"), cache_bytes: 16 << 20, file_bytes_max: 0 };
    let pace = Pace { bytes_max: 8 << 20, time_max: Duration::from_millis(50) };
    let (events_tx, mut events_rx) = tokio::sync::mpsc::unbounded_channel();
    let (sink, thread) = Sink::start(&layout, pace, 64 << 20, Arc::new(Metrics::default()), events_tx)?;
    let gateway: Arc<str> = "box-1".into();
    let (start, cpu_start, count) = (Instant::now(), cpu_seconds()?, blocks.len());
    let (mut sent, mut done) = (0, 0);
    let mut blocks = blocks.into_iter();
    while done < count {
        while sent < done + IN_FLIGHT
            && let Some(store) = blocks.next()
        {
            sink.push(Job { gateway: gateway.clone(), work: Work::Store(store), room: None });
            sent += 1;
        }
        match events_rx.blocking_recv() {
            Some(SinkEvent::Committed(committed)) => done += committed.iter().map(|(_, ranges)| ranges.len()).sum::<usize>(),
            Some(SinkEvent::Stalled(reason)) => return Err(reason.into()),
            Some(_) => {}
            None => return Err("the sink has ended".into()),
        }
    }
    let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds()? - cpu_start);
    sink.finish();
    thread.join().map_err(|_| "the sink panicked")?;
    let file_len = std::fs::metadata(&layout.path)?.len();
    let millions = samples as f64 / 1e6;
    println!(
        "samples {samples} per_block {per_block} rows_per_s {:.0} cpu_s_per_million {:.2}",
        samples as f64 / wall,
        cpu / millions
    );
    println!("file_bytes_per_sample {:.0} resident_mib {:.1}", file_len as f64 / samples as f64, resident_mib()?);
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn blocks(samples: u64, per_block: u64) -> Vec<Store> {
    let mut codec = Codec::default();
    let mut staging = Staging::new(0);
    let devices: Vec<String> = (0..DEVICES).map(|at| format!("pump-{at:03}")).collect();
    let mut blocks = Vec::new();
    for at in 0..samples {
        let device = at as usize % DEVICES;
        let mut payload =
            format!("{{\"seq\":{at},\"temperature\":{},\"pressure\":{},\"state\":\"running\",\"pad\":\"", at % 977, at % 1_009);
        payload.push_str(&"abcdefghijklmnopqrstuvwxyz".repeat(8)[..198 - payload.len()]);
        payload.push_str("\"}");
        let record = NewRecord {
            source: device as u32,
            stream: "pumps",
            device: &devices[device],
            kind: RecordKind::Raw,
            service_time: false,
            at_us: at * 10,
            payload: payload.as_bytes(),
        };
        staging.push(&record);
        if (at + 1) % per_block == 0 || at + 1 == samples {
            let sealed = staging.seal(Class::Normal, Epoch(7), Some(1_700_000_000_000_000), &mut codec);
            blocks.extend(sealed.map(|(header, block)| {
                let takes = vec![(header.key.first_seq, header.last_seq)];
                Store { header, block, takes, wall_offset_us: 0 }
            }));
        }
    }
    blocks
}

/// CPU time of this process. Ticks of 10 ms: Linux has counted them so on every architecture for decades.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields.get(11).ok_or("no utime")?.parse::<u64>()? + fields.get(12).ok_or("no stime")?.parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

fn resident_mib() -> Result<f64, Box<dyn std::error::Error>> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = statm.split_whitespace().nth(1).ok_or("no resident size")?.parse()?;
    Ok(pages * 4.0 / 1024.0)
}
