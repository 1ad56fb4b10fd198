//! `weir-bench`: measurements on one machine, of the whole path with real sockets, disk and database, of
//! congestion control over emulated links, of the graph, of the plan, and of asking larger models.
//!
//! Gateway and cloud are the real binaries in processes of their own, so that CPU time and memory are theirs alone.
#![expect(clippy::print_stdout, reason = "a benchmark speaks to its user")]

mod cascade;
mod congestion;
mod dead_cloud;
mod graph;
mod outage;
mod path;
mod plan;
mod pools;
mod process;
mod publisher;
mod rows;
mod site;
mod size;
mod windows;

use clap::{Parser, Subcommand};

/// Measures Weir on this machine.
#[derive(Debug, Parser)]
#[command(name = "weir-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// MQTT publishers to the far end's database, in modes `disk` and `through`.
    Path(path::Args),
    /// A long outage: flash written a day at low rates, memory while it lasts.
    Outage(outage::Args),
    /// The gateway's binary and memory, with and without a model.
    Size(size::Args),
    /// Congestion controllers over emulated links: what they carry and lose, and how late a critical message is.
    Congestion(congestion::Args),
    /// The health graph at fleet size: memory for each box, merges a second, common causes.
    Graph(graph::Args),
    /// The plan of a large box: making it, and asking it about a record.
    Plan(plan::Args),
    /// Windows a second and core through the whole of the box, beside a bare loop around the model.
    Rows(rows::Args),
    /// A small model on the box, a large one in the cloud for what is in doubt: accuracy, share, bytes and time.
    Cascade(cascade::Args),
    /// A cloud that is killed, stalled, refusing or far away: what it costs the answers on the box.
    DeadCloud(dead_cloud::Args),
    /// A pool that many gateways want more of than there is: how evenly it is shared, how soon one hears of a refusal.
    Pools(pools::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Path(args) => path::run(&args),
        Command::Outage(args) => outage::run(&args),
        Command::Size(args) => size::run(&args),
        Command::Congestion(args) => congestion::run(&args),
        Command::Graph(args) => graph::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Rows(args) => rows::run(&args),
        Command::Cascade(args) => cascade::run(&args),
        Command::DeadCloud(args) => dead_cloud::run(&args),
        Command::Pools(args) => pools::run(&args),
    }
}
