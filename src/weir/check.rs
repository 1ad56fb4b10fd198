//! `weir check FILE`: every mistake in a configuration before it ships, with file, line and a hint.
//!
//! Edge and cloud files are told apart by their tables. A good file is answered with what it comes to. Exit codes: 0, and 64
//! for mistakes (with `--strict` also for warnings).

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use weir_edge::config::{Checked, Config as EdgeConfig, Files};

/// Arguments of `weir check`.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// The configuration file of a box or of the cloud side.
    pub file: PathBuf,
    /// Take it as a file of the box, whatever is in it.
    #[arg(long, conflicts_with = "cloud")]
    pub edge: bool,
    /// Take it as a file of the cloud side, whatever is in it.
    #[arg(long)]
    pub cloud: bool,
    /// Do not look at the certificates, keys and models that it names: they are on another machine.
    #[arg(long)]
    pub ignore_files: bool,
    /// Fail on warnings too.
    #[arg(long)]
    pub strict: bool,
}

/// The configuration has mistakes. Source: EX_USAGE in sysexits.h, as for bad flags.
pub const EXIT_MISTAKES: u8 = 64;

/// Checks a file and prints what was found to standard output.
///
/// # Errors
/// If standard output cannot be written to; a file that cannot be read is a mistake like others.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let is_good = report(args, &mut out)?;
    out.flush()?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::from(EXIT_MISTAKES) })
}

/// Prints what was found; true if nothing speaks against the file.
fn report(args: &CheckArgs, out: &mut dyn Write) -> io::Result<bool> {
    if !args.cloud && !args.edge && is_pool_machine_file(&args.file) {
        return report_pool_machine(&args.file, args.ignore_files, out);
    }
    let is_cloud = args.cloud || (!args.edge && is_cloud_file(&args.file));
    if is_cloud { report_cloud(&args.file, args.ignore_files, out) } else { report_edge(args, out) }
}

fn report_edge(args: &CheckArgs, out: &mut dyn Write) -> io::Result<bool> {
    let files = if args.ignore_files { Files::Ignored } else { Files::Required };
    let Checked { config, warnings, models } = EdgeConfig::check(&args.file, files);
    for warning in &warnings {
        writeln!(out, "{warning}\n")?;
    }
    match config {
        Ok(config) => {
            writeln!(out, "{}\n", config.summary(&models))?;
            let is_good = warnings.is_empty() || !args.strict;
            let verdict = if is_good { "good" } else { "refused for its warnings" };
            writeln!(out, "{}: {verdict} ({} warnings)", args.file.display(), warnings.len())?;
            Ok(is_good)
        }
        Err(errors) => {
            writeln!(out, "{errors}")?;
            Ok(false)
        }
    }
}

fn report_cloud(file: &Path, ignore_files: bool, out: &mut dyn Write) -> io::Result<bool> {
    match weir_cloud::config::Config::read(file) {
        Ok(config) => {
            let tls = config.listen.tls.map(|addr| format!(", {addr} (TLS)")).unwrap_or_default();
            writeln!(out, "listens on {} (QUIC){tls}", config.listen.quic)?;
            writeln!(out, "stores in {}", config.store.path.display())?;
            let enrolled = config.gateways.enrolled.len();
            match &config.gateways.enrolled_file {
                Some(names) => writeln!(out, "lets {enrolled} gateways in, and those in {}", names.display())?,
                None => writeln!(out, "lets {enrolled} gateways in")?,
            }
            write_pools(&config.pool, out)?;
            for machine in &config.pool_machine {
                writeln!(out, "pools of {}, for {}", machine.address, names(&machine.gateways))?;
            }
            let problems = if ignore_files { Vec::new() } else { weir_cloud::check_pools(&config.pool, &config.infer) };
            write_verdict(file, &problems, out)
        }
        Err(errors) => {
            writeln!(out, "{errors}")?;
            Ok(false)
        }
    }
}

fn report_pool_machine(file: &Path, ignore_files: bool, out: &mut dyn Write) -> io::Result<bool> {
    match weir_cloud::config::PoolConfig::read(file) {
        Ok(config) => {
            writeln!(out, "listens on {} (QUIC), for the clouds {}", config.listen.quic, names(&config.clouds.enrolled))?;
            write_pools(&config.pool, out)?;
            let problems = if ignore_files { Vec::new() } else { weir_cloud::check_pools(&config.pool, &config.infer) };
            write_verdict(file, &problems, out)
        }
        Err(errors) => {
            writeln!(out, "{errors}")?;
            Ok(false)
        }
    }
}

fn write_pools(pools: &[weir_cloud::config::Pool], out: &mut dyn Write) -> io::Result<()> {
    for pool in pools {
        let (model, who) = (pool.model.display(), names(&pool.gateways));
        writeln!(out, "pool {} does `{}` with {model}, for {who}", pool.name, pool.task)?;
    }
    Ok(())
}

fn names(of: &[String]) -> String {
    if of.is_empty() { "nobody".to_owned() } else { of.join(", ") }
}

fn write_verdict(file: &Path, problems: &[String], out: &mut dyn Write) -> io::Result<bool> {
    for problem in problems {
        writeln!(out, "{problem}")?;
    }
    writeln!(out, "\n{}: {}", file.display(), if problems.is_empty() { "good" } else { "refused" })?;
    Ok(problems.is_empty())
}

/// Keys at the top that only one side has; `listen` is a list on the box and a table in the cloud.
const EDGE_KEYS: [&str; 11] =
    ["gateway", "mqtt", "user", "stream", "model", "offload", "lane", "buffer", "uplink", "session", "policy"];
const CLOUD_KEYS: [&str; 6] = ["gateways", "store", "limits", "policies", "pool", "pool_machine"];

/// True for a file of `weir-cloud pool`, which alone says which clouds may connect.
fn is_pool_machine_file(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::trim_start).any(|line| line.starts_with("[clouds]") || line.starts_with("clouds."))
}

/// Judged by lines, because a file with mistakes need not be TOML. A file without any such key is one of the box.
fn is_cloud_file(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let count = |keys: &[&str], listen: &[&str]| {
        let is_one = |line: &&str| {
            let key = line.trim_start_matches('[').split(['.', ']', '=', ' ']).next().unwrap_or_default();
            keys.contains(&key) || listen.iter().any(|start| line.starts_with(start))
        };
        text.lines().map(str::trim_start).filter(is_one).count()
    };
    count(&CLOUD_KEYS, &["[listen]", "listen."]) > count(&EDGE_KEYS, &["[[listen]]", "listen ", "listen="])
}

#[cfg(test)]
mod tests;
