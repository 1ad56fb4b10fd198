//! `weir demo` as a command: its flags, its signals, and the page at the end.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use weir_host::shutdown::{self, ShutdownTrigger};
use weir_host::units;
use weir_infer::Backend;

use super::{DemoError, Mode, Options, Report, Show, run, setup, terminal};

/// Flags of `weir demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// How long sensors publish, for example 10s or 5m
    #[arg(long = "for", value_name = "TIME", default_value = "60s")]
    publish_for: units::Duration,
    /// The uplink: ethernet, lte, lte-driving, 3g, satellite, flaky, dead-start, or the path of a profile (*.toml), of a
    /// Mahimahi trace, or of a CSV file `t_s,mbps`; without it, 5 Mbit/s with an outage of 12 s in the minute
    #[arg(long, value_name = "LINK")]
    link: Option<String>,
    /// Folder of CSV files to replay: motion (columns ax ay az gx gy gz, whole milli-g and milli-rad/s at 50 Hz, and maybe
    /// exercise) or series (`timestamp,value`); without it, the built-in recordings
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Same seed, same values and losses
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How much faster than life
    #[arg(long, default_value_t = 8.0, allow_negative_numbers = true)]
    speed: f64,
    /// What runs the model: ort (see `weir runtime fetch`), rten (built in), or auto
    #[arg(long, default_value = "auto")]
    backend: Backend,
    /// When sensors get their PUBACK: once the record is on disk, or through to the cloud
    #[arg(long, value_enum, default_value = "through")]
    mode: Mode,
    /// Write the outcome as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Lines instead of a picture
    #[arg(long)]
    plain: bool,
    /// Keep configurations, certificates, log, buffer and database in this new folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Bad flags. Source: EX_USAGE of sysexits.
const EXIT_USAGE: u8 = 64;
/// Ended by a second Ctrl-C. Source: 128 and the number of SIGINT, as shells have it.
const EXIT_INTERRUPTED: i32 = 130;

/// Runs the demo; succeeds if nothing was lost, doubled or missing.
///
/// # Errors
/// If it could not be run, or its outcome not be written.
pub fn execute(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let options = Options {
        publish_for: args.publish_for.as_std(),
        link: args.link.clone(),
        data: args.data.clone(),
        seed: args.seed,
        speed: args.speed,
        backend: args.backend,
        mode: args.mode,
        keep: args.keep.clone(),
        show: if args.plain { Show::Lines } else { Show::Picture },
        drain_limit: Duration::from_secs(60).max(args.publish_for.as_std()),
    };
    // Refused now rather than after a minute.
    let create = |path: &PathBuf| match File::create(path) {
        Ok(file) => Ok((path.clone(), file)),
        Err(err) => Err(err).with_context(|| format!("cannot write {}", path.display())),
    };
    let json = args.json.as_ref().map(create).transpose()?;
    let (trigger, interrupt) = shutdown::channel();
    hear_signals(trigger)?;
    let report = match run(&options, &interrupt) {
        Ok(report) => report,
        Err(
            err @ (DemoError::Option { .. } | DemoError::Link(_) | DemoError::FolderInUse { .. } | DemoError::Recordings(_)),
        ) => {
            writeln!(io::stderr(), "weir demo: {err}")?;
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        Err(err) => return Err(err.into()),
    };
    if let Some((path, mut file)) = json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    writeln!(io::stdout(), "\n{report}\n{}", where_next(args, &report))?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What to look at after the demo.
fn where_next(args: &DemoArgs, report: &Report) -> String {
    let worse = match report.link.as_str() {
        "default" => "weir demo --link lte-driving --for 3m",
        _ => "weir demo --link flaky --for 3m",
    };
    match &args.keep {
        Some(keep) => {
            let keep = keep.display();
            format!(
                "What the model said: sqlite3 -readonly {keep}/cloud.db \\\n  \
                 'SELECT device, label, count(*) FROM verdicts GROUP BY 1, 2'\n\
                 How it was set up:   {keep}/edge.toml and {keep}/cloud.toml\n\
                 What was logged:     {keep}/weir.log"
            )
        }
        None => format!("A worse link:   {worse}\nKeep its files: weir demo --keep DIR"),
    }
}

/// The first Ctrl-C (or SIGTERM) ends publishing, the second ends the process.
fn hear_signals(trigger: ShutdownTrigger) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupts, mut terminations) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            for is_second in [false, true] {
                tokio::select! {
                    _ = interrupts.recv() => {}
                    _ = terminations.recv() => {}
                }
                trigger.request();
                if is_second {
                    terminal::give_back();
                    setup::remove_temporary();
                    std::process::exit(EXIT_INTERRUPTED);
                }
            }
        });
    })?;
    Ok(())
}
