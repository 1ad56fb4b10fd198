//! `weir graph`: questions to the health graph of a running box or cloud, or of a saved snapshot.
//!
//! What `show --format json` prints is a snapshot: saved, it can be asked later with `--from`, and compared with `changes`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use weir_logic::graph::{Constraints, NodeKey, Snapshot, Target, View, changes};

use crate::admin;

/// Arguments of `weir graph`.
#[derive(Debug, Clone, clap::Args)]
pub struct GraphArgs {
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Clone, Subcommand)]
enum Question {
    /// Show nodes and edges with what is known of them: all, a box's, or those around a shared node
    Show {
        /// A node: KIND/NAME or KIND/BOX/NAME, such as gateway/box-1 or carrier/telco; its name alone if no other has it
        node: Option<String>,
        #[command(flatten)]
        source: Source,
        /// How to print it; JSON is a snapshot, for --from
        #[arg(long, value_enum, default_value_t = ShowFormat::Table)]
        format: ShowFormat,
    },
    /// Find the cheapest feasible way of a stream, with the cost of each step; exits with 1 if there is none
    Path {
        /// The stream, such as stream/box-1/vibration
        stream: String,
        /// Where to: a sink, a pool or an ingest node; the nearest sink without it
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// A zone that it may lead through; may be repeated. Any without it
        #[arg(long)]
        zone: Vec<String>,
        /// Take also what is red or blocked
        #[arg(long)]
        ignore_state: bool,
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        output: Output,
    },
    /// Tell what breaks if a node or an edge fails, by stream
    Impact {
        /// The node, or where the edge starts
        node: String,
        /// Where the edge ends
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        output: Output,
    },
    /// List single points of failure: nodes that every way of a stream passes
    WeakPoints {
        /// Only of this box
        #[arg(long, value_name = "NAME")]
        gateway: Option<String>,
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        output: Output,
    },
    /// Tell how much each box can send at most, and what limits it
    Bottlenecks {
        /// Only of this box
        #[arg(long, value_name = "NAME")]
        gateway: Option<String>,
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        output: Output,
    },
    /// Tell what changed since a snapshot was saved, and who talks to whom that never did before
    Changes {
        /// The earlier snapshot
        before: PathBuf,
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        output: Output,
    },
}

/// Where the graph comes from.
#[derive(Debug, Clone, clap::Args)]
struct Source {
    /// A saved snapshot
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Admin address of a box or the cloud: HOST:PORT or the path of a unix socket
    #[arg(long, default_value = admin::EDGE_ADDRESS, conflicts_with = "from")]
    admin: String,
}

#[derive(Debug, Clone, clap::Args)]
struct Output {
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ShowFormat {
    /// For people
    Table,
    /// For programs, and for --from
    Json,
    /// For Graphviz
    Dot,
}

/// Asks and prints.
///
/// # Errors
/// If the graph cannot be had, or has no such node.
pub fn run(args: &GraphArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match &args.question {
        Question::Show { node, source, format } => {
            let view = source.view_around(node.as_deref())?;
            let about = node.as_ref().map(|node| view.find(node)).transpose()?;
            let shown = view.show(about.as_ref())?;
            let text = match format {
                ShowFormat::Table => shown.to_table(),
                ShowFormat::Json => shown.to_json() + "\n",
                ShowFormat::Dot => shown.to_dot(),
            };
            out.write_all(text.as_bytes())?;
        }
        Question::Path { stream, to, zone, ignore_state, source, output } => {
            let view = source.view_around(Some(stream))?;
            let to = to.as_ref().map(|to| view.find(to)).transpose()?;
            let constraints = Constraints { zones: zone.clone(), ignores_state: *ignore_state };
            let path = view.path(&view.find(stream)?, to.as_ref(), &constraints)?;
            output.print(&path, path.to_table(), out)?;
            if path.best.is_none() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Question::Impact { node, to, source, output } => {
            let view = source.view_around(Some(node))?;
            let node = view.find(node)?;
            let target = match to {
                Some(to) => Target::Edge(node, view.find(to)?),
                None => Target::Node(node),
            };
            let impact = view.impact(&target)?;
            output.print(&impact, impact.to_table(), out)?;
        }
        Question::WeakPoints { gateway, source, output } => {
            let view = source.view_of(gateway.as_deref())?;
            let points = view.weak_points(known(&view, gateway.as_deref())?);
            output.print(&points, points.to_table(), out)?;
        }
        Question::Bottlenecks { gateway, source, output } => {
            let view = source.view_of(gateway.as_deref())?;
            let found = view.bottlenecks(known(&view, gateway.as_deref())?);
            output.print(&found, found.to_table(), out)?;
        }
        Question::Changes { before, source, output } => {
            let found = changes(&read(before)?, &source.snapshot("")?);
            output.print(&found, found.to_table(), out)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Source {
    /// The graph, or as much of it as `query` asks for.
    fn snapshot(&self, query: &str) -> anyhow::Result<Snapshot> {
        match &self.from {
            Some(file) => read(file),
            None => {
                let text = admin::get(&self.admin, &format!("/graph.json{query}"))?;
                Snapshot::from_json(&text).with_context(|| format!("the answer of {}", self.admin))
            }
        }
    }

    /// The graph, or as much of it as concerns one box.
    fn view_of(&self, gateway: Option<&str>) -> anyhow::Result<View> {
        let query = gateway.map(|name| format!("?gateway={}", admin::encoded(short(name))));
        Ok(View::new(self.snapshot(&query.unwrap_or_default())?)?)
    }

    /// As much of the graph as concerns a node: its box, or all boxes that share it. All of it for a name alone, which may be
    /// anything's.
    fn view_around(&self, node: Option<&str>) -> anyhow::Result<View> {
        let query = node.and_then(|node| node.parse::<NodeKey>().ok()).map(|key| match key.site() {
            Some(gateway) => format!("?gateway={}", admin::encoded(gateway)),
            None => format!("?around={}", admin::encoded(&key.to_string())),
        });
        Ok(View::new(self.snapshot(&query.unwrap_or_default())?)?)
    }
}

impl Output {
    fn print(&self, answer: &impl Serialize, table: String, out: &mut impl Write) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Table => table,
            Format::Json => serde_json::to_string_pretty(answer)? + "\n",
        };
        Ok(out.write_all(text.as_bytes())?)
    }
}

/// The name of a box without the `gateway/` that may stand before it.
fn short(name: &str) -> &str {
    name.strip_prefix("gateway/").unwrap_or(name)
}

/// The name of a box that is there, with or without `gateway/` before it.
fn known<'a>(view: &View, asked: Option<&'a str>) -> anyhow::Result<Option<&'a str>> {
    let Some(asked) = asked else { return Ok(None) };
    let name = short(asked);
    view.find(&format!("gateway/{name}"))?;
    Ok(Some(name))
}

fn read(file: &Path) -> anyhow::Result<Snapshot> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Snapshot::from_json(&text).with_context(|| format!("{}", file.display()))
}

#[cfg(test)]
mod tests;
