//! `weir-cloud`: the ingest side as a service.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use weir_cloud::config::{Config, PoolConfig};
use weir_cloud::{PoolServer, PoolSockets, Sockets};
use weir_host::notify::Notify;

/// Takes in what gateways send, stores it in SQLite, and acknowledges what is durable.
#[derive(Debug, Parser)]
#[command(name = "weir-cloud", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGTERM or SIGINT.
    Run {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Run pools alone, for clouds that pass requests on (`[[pool_machine]]`), until SIGTERM or SIGINT.
    Pool {
        /// The configuration file; see config/pool.toml.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Find every mistake in a configuration file.
    Check {
        /// It is one for `weir-cloud pool`.
        #[arg(long)]
        pool: bool,
        /// The configuration file.
        file: PathBuf,
    },
}

/// Bad flags or configuration. Source: EX_USAGE of sysexits.
const EXIT_USAGE: u8 = 64;

#[expect(clippy::print_stderr, reason = "it is what a person at a terminal reads")]
fn main() -> ExitCode {
    weir_infer::disable_telemetry_env();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(err) => {
            let is_mistake = err.use_stderr();
            // A closed terminal is no reason for another exit code.
            let _ = err.print();
            return if is_mistake { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let done = match &arguments.command {
        Command::Run { config } => Config::read(config).map(|config| finish(run(&config))),
        Command::Pool { config } => PoolConfig::read(config).map(|config| finish(run_pools(&config))),
        Command::Check { pool: false, file } => {
            Config::read(file).map(|config| report(file, &weir_cloud::check_pools(&config.pool, &config.infer)))
        }
        Command::Check { pool: true, file } => {
            PoolConfig::read(file).map(|config| report(file, &weir_cloud::check_pools(&config.pool, &config.infer)))
        }
    };
    done.unwrap_or_else(|errors| {
        eprintln!("{errors}");
        ExitCode::from(EXIT_USAGE)
    })
}

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "it is what a person at a terminal reads")]
fn report(file: &Path, problems: &[String]) -> ExitCode {
    if problems.is_empty() {
        println!("{}: no mistakes", file.display());
        return ExitCode::SUCCESS;
    }
    problems.iter().for_each(|problem| eprintln!("{}: {problem}", file.display()));
    ExitCode::from(EXIT_USAGE)
}

#[expect(clippy::print_stderr, reason = "it is what a person at a terminal reads")]
fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("weir-cloud: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> anyhow::Result<()> {
    weir_host::log::init(&config.log.filter, config.log.format)?;
    runtime()?.block_on(async {
        let shutdown = weir_host::shutdown::on_signals().context("signals cannot be heard")?;
        let notify = Notify::from_env().context("the supervisor's socket cannot be reached")?;
        let sockets = Sockets { notify, ..Sockets::bind(config)? };
        Ok(weir_cloud::run(config, sockets, shutdown).await?)
    })
}

fn run_pools(config: &PoolConfig) -> anyhow::Result<()> {
    weir_host::log::init(&config.log.filter, config.log.format)?;
    runtime()?.block_on(async {
        let shutdown = weir_host::shutdown::on_signals().context("signals cannot be heard")?;
        let notify = Notify::from_env().context("the supervisor's socket cannot be reached")?;
        let sockets = PoolSockets { notify, ..PoolSockets::bind(config)? };
        PoolServer::open(config, sockets)?.run(shutdown).await;
        Ok(())
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime cannot be started")
}
