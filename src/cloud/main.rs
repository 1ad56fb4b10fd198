//! `weir-cloud`: the ingest side as a service.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use weir_cloud::Sockets;
use weir_cloud::config::Config;
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
    /// Find every mistake in a configuration file.
    Check {
        /// The configuration file.
        file: PathBuf,
    },
}

/// Bad flags or configuration. Source: EX_USAGE of sysexits.
const EXIT_USAGE: u8 = 64;

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "it is what a person at a terminal reads")]
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
    let (Command::Run { config: file } | Command::Check { file }) = &arguments.command;
    let config = match Config::read(file) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if matches!(arguments.command, Command::Check { .. }) {
        let problems = weir_cloud::check_pools(&config);
        if !problems.is_empty() {
            problems.iter().for_each(|problem| eprintln!("{}: {problem}", file.display()));
            return ExitCode::from(EXIT_USAGE);
        }
        println!("{}: no mistakes", file.display());
        return ExitCode::SUCCESS;
    }
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("weir-cloud: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> anyhow::Result<()> {
    weir_host::log::init(&config.log.filter, config.log.format)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime cannot be started")?;
    runtime.block_on(async {
        let shutdown = weir_host::shutdown::on_signals().context("signals cannot be heard")?;
        let notify = Notify::from_env().context("the supervisor's socket cannot be reached")?;
        let sockets = Sockets { notify, ..Sockets::bind(config)? };
        Ok(weir_cloud::run(config, sockets, shutdown).await?)
    })
}
