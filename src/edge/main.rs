//! `weir-edge`: runs the box that a configuration describes.
#![expect(clippy::print_stderr, reason = "a command line speaks to its user")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weir_edge::config::Config;
use weir_edge::{Edge, bind};
use weir_host::{log, shutdown};

/// The runtime on the box: MQTT in, models, a durable buffer, QUIC out.
#[derive(Debug, Parser)]
#[command(name = "weir-edge", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs until SIGTERM or SIGINT.
    Run {
        /// The configuration, for example /etc/weir/edge.toml.
        #[arg(long)]
        config: PathBuf,
    },
    /// The process of a model on trial; `run` starts it.
    #[command(hide = true)]
    ModelChild,
}

/// Bad flags or a bad configuration.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    weir_infer::disable_telemetry_env();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            // Help and version are no mistakes.
            let code = if err.use_stderr() { EXIT_USAGE } else { 0 };
            let _ = err.print();
            return ExitCode::from(code);
        }
    };
    let config = match cli.command {
        Command::Run { config } => config,
        Command::ModelChild => return weir_edge::models::child::run(),
    };
    let config = match Config::load(&config) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("weir-edge: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> anyhow::Result<()> {
    log::init(&config.log.filter, config.log.format)?;
    // One thread for sockets and gateway; disk, models, passwords and the admin endpoint have their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        let sockets = bind(config)?;
        let edge = Edge::start(config, sockets)?;
        Box::pin(edge.run(shutdown)).await;
        Ok(())
    })
}
