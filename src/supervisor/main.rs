//! `weir-supervisor`: runs `weir-edge` on the flashable image.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use weir_supervisor::Options;
use weir_supervisor::supervision::Limits;

/// Runs weir-edge with the last good configuration, or with a new one that is provisioned; restarts it, and feeds the watchdog.
#[derive(Debug, Parser)]
#[command(name = "weir-supervisor", version)]
struct Cli {
    /// The program.
    #[arg(long, default_value = "/usr/bin/weir-edge")]
    program: PathBuf,
    /// Folder of the configurations.
    #[arg(long, default_value = "/data/configs")]
    configs: PathBuf,
    /// Folder that may hold a new configuration: edge.toml and what it names.
    #[arg(long)]
    provision: Option<PathBuf>,
    /// The configuration when there is no other.
    #[arg(long, default_value = "/etc/weir/edge.toml")]
    fallback: PathBuf,
    /// Folder for the socket that the program talks to.
    #[arg(long, default_value = "/run/weir")]
    run_dir: PathBuf,
    /// User and group of the program, as numbers: 990:990.
    #[arg(long, value_parser = owner)]
    user: Option<(u32, u32)>,
    /// The machine's watchdog.
    #[arg(long)]
    watchdog: Option<PathBuf>,
    /// Seconds from start to being ready.
    #[arg(long, default_value_t = 120)]
    start_s: u64,
    /// Seconds between two signs of progress.
    #[arg(long, default_value_t = 30)]
    progress_s: u64,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let limits =
        Limits { start: Duration::from_secs(cli.start_s), progress: Duration::from_secs(cli.progress_s), ..Limits::default() };
    let Cli { program, configs, provision, fallback, run_dir, user, watchdog, .. } = cli;
    match weir_supervisor::run(&Options { program, configs, provision, fallback, run_dir, owner: user, watchdog, limits })? {}
}

fn owner(text: &str) -> Result<(u32, u32), String> {
    let numbers = text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
    numbers.ok_or_else(|| format!("`{text}` is not USER:GROUP in numbers"))
}
