//! `weir explain`: why a stream is sent as it is, and where a record is; asked of a box, or through the cloud of any.

use std::io::Write;

use anyhow::bail;
use weir_cloud::asked::GatewayAnswer;
use weir_logic::gateway::Explanation;

use crate::admin;

/// Arguments of `weir explain`.
#[derive(Debug, Clone, clap::Args)]
pub struct ExplainArgs {
    /// The stream; all of them without one
    pub stream: Option<String>,
    /// The record: EPOCH:LANE:SEQ, as the cloud's tables and the box's log name it
    #[arg(long, value_name = "EPOCH:LANE:SEQ", conflicts_with = "stream")]
    pub record: Option<String>,
    /// Ask the cloud about this box
    #[arg(long, value_name = "NAME")]
    pub gateway: Option<String>,
    /// Admin address of the box, or with --gateway of the cloud: HOST:PORT or the path of a unix socket
    #[arg(long, default_value = admin::EDGE_ADDRESS)]
    pub admin: String,
    /// Print the answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// Asks and prints.
///
/// # Errors
/// If nobody answers, or there is no such stream or box.
pub fn run(args: &ExplainArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let question = match (&args.stream, &args.record) {
        (Some(stream), _) => format!("stream={}", admin::encoded(stream)),
        (None, Some(record)) => format!("record={}", admin::encoded(record)),
        (None, None) => String::new(),
    };
    if let Some(gateway) = &args.gateway {
        return run_through_cloud(args, gateway, &question, out);
    }
    let answer = admin::get(&args.admin, &format!("/explain.json?{question}"))?;
    if args.json {
        writeln!(out, "{answer}")?;
        return Ok(());
    }
    print(&serde_json::from_str(&answer)?, out)?;
    Ok(())
}

/// Asks the cloud, which asks the box and adds what it knows itself.
fn run_through_cloud(args: &ExplainArgs, gateway: &str, question: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let text = admin::get(&args.admin, &format!("/gateways/{}/explain.json?{question}", admin::encoded(gateway)))?;
    let answer: GatewayAnswer = serde_json::from_str(&text)?;
    if args.json {
        writeln!(out, "{text}")?;
    } else {
        print_stored(&answer, out)?;
        if let Some(explanation) = &answer.answer {
            writeln!(out, "{gateway} says:")?;
            print(explanation, out)?;
        }
    }
    match &answer.no_answer {
        // Where the record is has been said.
        Some(reason) if answer.record.is_some() && !args.json => Ok(writeln!(out, "{gateway} says nothing: {reason}")?),
        Some(reason) if answer.record.is_none() => bail!("{gateway} says nothing: {reason}"),
        _ => Ok(()),
    }
}

fn print_stored(answer: &GatewayAnswer, out: &mut impl Write) -> std::io::Result<()> {
    match answer.last_seen_us {
        Some(us) => {
            let now_us = i64::try_from(weir_host::clock::unix_us()).unwrap_or(i64::MAX);
            let ago_s = now_us.saturating_sub(us).max(0) as f64 / 1e6;
            writeln!(out, "the cloud has seen {} {ago_s:.1} s ago", answer.gateway)?;
        }
        None => writeln!(out, "the cloud has never seen {}", answer.gateway)?,
    }
    for lane in answer.lanes.iter().filter(|lane| lane.last_seq.is_some()) {
        let last_seq = lane.last_seq.unwrap_or_default();
        writeln!(out, "  lane {}: stored up to {last_seq} of epoch {}, {} below it not", lane.lane, lane.epoch, lane.gaps)?;
    }
    if let Some(record) = &answer.record {
        writeln!(out, "record {}: {}\n  {}", record.record, record.place, record.text)?;
    }
    Ok(())
}

fn print(answer: &Explanation, out: &mut impl Write) -> std::io::Result<()> {
    if let Some(record) = &answer.record {
        writeln!(out, "record {}: {}\n  {}", record.record, record.place, record.text)?;
    }
    let price = answer.price;
    if price.lambda > 0.0 {
        let (wanted, forecast, waiting) = (price.wanted_bytes, price.forecast_bytes, price.waiting_bytes);
        writeln!(
            out,
            "price {:.3e} a byte: {wanted} bytes want to be sent, {forecast} are forecast, {waiting} wait",
            price.lambda
        )?;
    } else {
        writeln!(out, "no price: the uplinks carry all that wants to be sent")?;
    }
    for stream in &answer.streams {
        writeln!(out, "stream {}: {}\n  because {}", stream.stream, stream.plan, stream.reason)?;
        rejected(&stream.rejected, out)?;
        let counts: Vec<String> = stream.offload.iter().map(|(word, count)| format!("{word} {count}")).collect();
        if !counts.is_empty() {
            writeln!(out, "  windows for a pool: {}", counts.join(", "))?;
        }
        stream.audits.iter().try_for_each(|audit| writeln!(out, "  {audit}"))?;
    }
    for lane in &answer.lanes {
        let uplinks = if lane.uplinks.is_empty() { "none".to_owned() } else { lane.uplinks.join(", then ") };
        writeln!(out, "lane {}: by {uplinks}\n  because {}", lane.lane, lane.reason)?;
        rejected(&lane.rejected, out)?;
        let oldest =
            lane.oldest_age_us.map(|age_us| format!(", the oldest {:.1} s old", age_us as f64 / 1e6)).unwrap_or_default();
        writeln!(
            out,
            "  holds {} records, {} bytes in blocks, {} under way{oldest}",
            lane.records, lane.bytes, lane.under_way_bytes
        )?;
    }
    if !answer.note.is_empty() {
        writeln!(out, "note: {}", answer.note)?;
    }
    if !answer.changes.is_empty() {
        writeln!(out, "changes:")?;
    }
    for change in &answer.changes {
        let ago_s = answer.at_us.saturating_sub(change.at_us) as f64 / 1e6;
        let old = if change.old.is_empty() { "the beginning" } else { &change.old };
        writeln!(out, "  {ago_s:.1} s ago, plan {}: {}: {} (was {old})", change.version, change.subject, change.new)?;
        writeln!(out, "    because {}", change.reason)?;
        for one in &change.rejected {
            writeln!(out, "    not {one}")?;
        }
    }
    Ok(())
}

fn rejected(rejected: &[String], out: &mut impl Write) -> std::io::Result<()> {
    rejected.iter().try_for_each(|one| writeln!(out, "  not {one}"))
}
