//! What was found, for people.

use std::io::{self, Write};

use weir_infer::{Manifest, Port};

use super::{Cost, EngineReport, GoldenResult, ModelReport, PortReport};

/// An input of the graph, and what the manifest says of it.
pub(super) fn input(port: &Port, manifest: &Manifest) -> PortReport {
    let is_state = manifest.state.iter().any(|state| state.inputs.contains(&port.name));
    let meaning = if port.name == manifest.input.name {
        let (window, rate_hz) = (manifest.input.window, manifest.input.rate_hz);
        format!("{}; window {window} at {rate_hz} Hz", manifest.input.channels.join(", "))
    } else {
        if is_state { "state of the device" } else { "not given" }.to_owned()
    };
    PortReport { name: port.name.clone(), shape: port.shape.clone(), meaning }
}

/// An output of the graph, and what the manifest says of it.
pub(super) fn output(port: &Port, manifest: &Manifest) -> PortReport {
    let is_state = manifest.state.iter().any(|state| state.outputs.contains(&port.name));
    let meaning = if port.name == manifest.output.name {
        let labels = manifest.output.labels.join(", ");
        if labels.is_empty() { manifest.task.to_string() } else { labels }
    } else {
        if is_state { "next state of the device" } else { "not used" }.to_owned()
    };
    PortReport { name: port.name.clone(), shape: port.shape.clone(), meaning }
}

pub(super) fn report(report: &ModelReport, out: &mut dyn Write) -> io::Result<()> {
    let ModelReport { model, version, task, file_bytes, opset, .. } = report;
    writeln!(out, "{model}, version {version}: {task}, {:.1} kB, opset {opset}", *file_bytes as f64 / 1e3)?;
    for (kind, ports) in [("input", &report.inputs), ("output", &report.outputs)] {
        for PortReport { name, shape, meaning } in ports {
            writeln!(out, "  {kind:9} {name} {shape}  {meaning}")?;
        }
    }
    let operators: Vec<String> = report.operators.iter().map(|(name, count)| format!("{count} {name}")).collect();
    writeln!(out, "  operators {}", operators.join(", "))?;
    if report.golden_cases.is_none() {
        writeln!(out, "  golden    there are none in golden/{model}.json: nothing says whether its answers are right")?;
    }
    for advice in &report.advice {
        writeln!(out, "  warning   {advice}")?;
    }
    for engine in &report.engines {
        self::engine(engine, out)?;
    }
    let verdict = if report.is_good() { "good" } else { "not good" };
    writeln!(out, "{model}: {verdict}")
}

fn engine(engine: &EngineReport, out: &mut dyn Write) -> io::Result<()> {
    match engine {
        EngineReport::Lacks { backend, why, .. } | EngineReport::Absent { backend, why } => {
            writeln!(out, "{backend}: not used: {why}")
        }
        EngineReport::Fails { backend, why } => writeln!(out, "{backend}: FAILS: {why}"),
        EngineReport::Runs { backend, library, golden, cost } => {
            match library {
                Some(library) => writeln!(out, "{backend}: {library}")?,
                None => writeln!(out, "{backend}: built in")?,
            }
            if let Some(golden) = golden {
                self::golden(golden, out)?;
            }
            self::cost(cost, out)
        }
    }
}

fn golden(golden: &GoldenResult, out: &mut dyn Write) -> io::Result<()> {
    let GoldenResult { cases, tolerance, .. } = golden;
    match (&golden.mismatch, golden.difference_max) {
        (Some(mismatch), _) => writeln!(out, "  golden    WRONG: {mismatch}"),
        (None, difference) => {
            let difference = difference.unwrap_or_default();
            writeln!(out, "  golden    {cases} cases, off by at most {difference:.1e} (allowed {tolerance:.0e})")
        }
    }
}

fn cost(cost: &Cost, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "  load      {:.1} ms, the first time in a process {:.1} ms", cost.load_ms, cost.first_load_ms)?;
    for batch in &cost.batches {
        let (row_us, rows) = (batch.row_us(), batch.rows);
        let best = match rows == cost.best_batch {
            true if rows == 1 => ": the best batch".to_owned(),
            true => format!(": the best batch, {:.1} times as fast as alone", cost.batch_gain),
            false => String::new(),
        };
        let (p50, p99) = (batch.p50_us, batch.p99_us);
        writeln!(out, "  batch {rows:3} p50 {p50:.1} us, p99 {p99:.1} us; {row_us:.1} us a window{best}")?;
    }
    writeln!(out, "  memory    {:.1} MiB", cost.memory_kib as f64 / 1024.0)
}
