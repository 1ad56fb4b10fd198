//! `weir`: the operator's tool.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weir::buffer::BufferCommand;
use weir::check::CheckArgs;
use weir::demo::DemoArgs;
use weir::explain::ExplainArgs;
use weir::graph::GraphArgs;
use weir::link::command::LinkArgs;
use weir::model::ModelCommand;
use weir::pki::PkiCommand;
use weir::policy::PolicyCommand;
use weir::replay::ReplayArgs;
use weir::runtime::RuntimeCommand;
use weir::sim::command::SimArgs;

/// Runs the demo, checks configurations and models, looks into buffers, and issues certificates.
#[derive(Debug, Parser)]
#[command(name = "weir", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole way: sensors, box, a link that breaks, and the cloud, in this process; takes a minute
    Demo(DemoArgs),
    /// Find every mistake in a configuration before it ships
    Check(CheckArgs),
    /// Ask a running box why a stream is sent as it is, or where a record is
    Explain(ExplainArgs),
    /// Ask the health graph: the cheapest way, what breaks if something fails, single points of failure, bottlenecks, changes
    Graph(GraphArgs),
    /// Compare what policies would have delivered over a link: Weir, strict priorities, a plain bridge, and the best possible
    Sim(Box<SimArgs>),
    /// Publish recorded messages again, at their own pace or faster
    Replay(ReplayArgs),
    /// Emulate a link between two network namespaces, and cut, slow or block it
    Link(LinkArgs),
    /// Make a certificate authority and issue certificates
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Make keys for policies, check them, and sign them
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Look into a box's buffer
    #[command(subcommand)]
    Buffer(BufferCommand),
    /// Check models: right answers on every engine, what they lack, time and memory
    #[command(subcommand)]
    Model(ModelCommand),
    /// Install the native ONNX library
    #[command(subcommand)]
    Runtime(RuntimeCommand),
    /// Hash a password from standard input for `[[user]]` in edge.toml
    Passwd,
    /// Print the version
    Version,
}

/// Bad flags. Source: EX_USAGE of sysexits.
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
    match run(cli.command) {
        Ok(code) => code,
        Err(err) => {
            // Whoever closed standard error does not want to know.
            let _ = writeln!(io::stderr(), "weir: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(args) => return weir::demo::execute(&args),
        Command::Check(args) => return weir::check::run(&args),
        Command::Policy(command) => return Ok(command.run(&mut io::stdout().lock())?),
        Command::Sim(args) => return weir::sim::command::run(&args),
        Command::Link(args) => return weir::link::command::run(&args),
        Command::Explain(args) => weir::explain::run(&args, &mut io::stdout().lock())?,
        Command::Model(command) => return weir::model::run(&command),
        Command::Replay(args) => weir::replay::run(&args, &mut io::stdout().lock())?,
        Command::Graph(args) => return weir::graph::run(&args, &mut io::stdout().lock()),
        Command::Pki(command) => command.run(&mut io::stdout().lock())?,
        Command::Buffer(command) => weir::buffer::run(command)?,
        Command::Runtime(command) => weir::runtime::run(&command)?,
        Command::Passwd => weir::passwd::run()?,
        Command::Version => writeln!(io::stdout(), "weir {}", env!("CARGO_PKG_VERSION"))?,
    }
    Ok(ExitCode::SUCCESS)
}
