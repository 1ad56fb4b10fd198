//! What a model costs on an engine: time to load, time a window by size of batch, memory.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use weir_infer::{Backend, Golden, LoadError, Manifest, Model, RunError, RuntimeLibrary};

/// Whether the golden answers are right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoldenResult {
    /// Cases run, one at a time and all at once.
    pub cases: usize,
    /// Largest difference that is allowed.
    pub tolerance: f32,
    /// Largest difference of any output; `None` if an answer is wrong.
    pub difference_max: Option<f32>,
    /// The first wrong answer.
    pub mismatch: Option<String>,
}

impl GoldenResult {
    /// Whether all answers are right.
    pub fn is_right(&self) -> bool {
        self.mismatch.is_none()
    }
}

/// What a model takes on this machine, on one thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Time of the first load, with that of the native library.
    pub first_load_ms: f64,
    /// Time of another load, of the model alone.
    pub load_ms: f64,
    /// By size of batch, from 1 on.
    pub batches: Vec<BatchTime>,
    /// The smallest batch in which a window costs within a twentieth of the least.
    pub best_batch: usize,
    /// How many times cheaper a window is in it than alone.
    pub batch_gain: f64,
    /// By how much the process grew, from before the first load to the end: library, model and work space.
    pub memory_kib: u64,
}

/// Time of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchTime {
    /// Windows in it.
    pub rows: usize,
    /// Times that it was run.
    pub runs: usize,
    /// Median time of the whole batch.
    pub p50_us: f64,
    /// Of a hundred runs, 99 took no longer.
    pub p99_us: f64,
}

impl BatchTime {
    /// Median time of one window in it.
    pub fn row_us(&self) -> f64 {
        self.p50_us / self.rows as f64
    }
}

/// What came of it on an engine.
pub(super) struct Measured {
    pub(super) backend: Backend,
    pub(super) golden: Option<GoldenResult>,
    pub(super) cost: Cost,
}

/// Loads the model twice, runs the golden cases, and then batches of each size for `batch_time`.
///
/// # Errors
/// Those of loading. A window that gets no answer while it is measured is one of the trial run.
pub(super) fn measure(
    manifest: &Manifest,
    bytes: &[u8],
    golden: Option<&Golden>,
    backend: Backend,
    library: &RuntimeLibrary,
    batch_time: Duration,
) -> Result<Measured, LoadError> {
    let load = || {
        let began = Instant::now();
        let model = Model::from_bytes(manifest.clone(), bytes.to_vec(), backend, library)?;
        Ok::<_, LoadError>((model, milliseconds(began.elapsed())))
    };
    let resident_kib = resident_kib();
    let (mut model, first_load_ms) = load()?;
    let golden_result = golden.map(|golden| check(golden, &mut model));
    let batches = model.at_home(|model| batches(model, golden, batch_time))?;
    let memory_kib = self::resident_kib().saturating_sub(resident_kib);
    let backend = model.backend();
    drop(model);
    let (_, load_ms) = load()?;
    let (best_batch, batch_gain) = best(&batches);
    let cost = Cost { first_load_ms, load_ms, batches, best_batch, batch_gain, memory_kib };
    Ok(Measured { backend, golden: golden_result, cost })
}

/// One at a time, and all at once.
fn check(golden: &Golden, model: &mut Model) -> GoldenResult {
    let cases = golden.cases.len();
    let found = golden.check(model, 1).and_then(|alone| Ok(golden.check(model, cases)?.max(alone)));
    GoldenResult {
        cases,
        tolerance: golden.tolerance,
        difference_max: found.as_ref().ok().copied(),
        mismatch: found.err().map(|mismatch| mismatch.to_string()),
    }
}

fn batches(model: &mut Model, golden: Option<&Golden>, limit: Duration) -> Result<Vec<BatchTime>, LoadError> {
    // Means of what it was trained on, where there is nothing real.
    let means: Vec<f32> =
        model.manifest().standardise.mean.iter().flat_map(|mean| vec![*mean; model.manifest().input.window]).collect();
    let windows: Vec<&[f32]> = match golden {
        Some(golden) => golden.cases.iter().map(|case| case.window.as_slice()).collect(),
        None => vec![&means],
    };
    let mut times = Vec::new();
    for rows in BATCH_ROWS {
        let batch: Vec<&[f32]> = windows.iter().copied().cycle().take(rows).collect();
        times.push(batch_time(model, &batch, limit).map_err(|error| LoadError::Trial { rows, error })?);
    }
    Ok(times)
}

/// Runs a batch until time or runs are used up, at least some times.
fn batch_time(model: &mut Model, batch: &[&[f32]], limit: Duration) -> Result<BatchTime, RunError> {
    let began = Instant::now();
    let mut times: Vec<f64> = Vec::new();
    for run in 0..WARM_UP_RUNS + RUNS_MAX {
        if run >= WARM_UP_RUNS + RUNS_MIN && began.elapsed() >= limit {
            break;
        }
        let start = Instant::now();
        let answers = model.score(batch);
        let took = milliseconds(start.elapsed()) * 1e3;
        answers.into_iter().collect::<Result<Vec<_>, _>>()?;
        times.extend((run >= WARM_UP_RUNS).then_some(took));
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    Ok(BatchTime { rows: batch.len(), runs: times.len(), p50_us: at(0.5), p99_us: at(0.99) })
}

/// The best batch, and what it gains.
fn best(batches: &[BatchTime]) -> (usize, f64) {
    let least_us = batches.iter().map(BatchTime::row_us).fold(f64::INFINITY, f64::min);
    let best = batches.iter().find(|batch| batch.row_us() <= least_us * NEAR_LEAST);
    let (Some(first), Some(best)) = (batches.first(), best) else { return (1, 1.0) };
    (best.rows, first.row_us() / best.row_us())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Memory of this process that is in RAM; 0 where the system does not say.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

const BATCH_ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const WARM_UP_RUNS: usize = 3;
const RUNS_MIN: usize = 5;
const RUNS_MAX: usize = 2_000;
const NEAR_LEAST: f64 = 1.05;

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(rows: usize, p50_us: f64) -> BatchTime {
        BatchTime { rows, runs: 1, p50_us, p99_us: p50_us }
    }

    #[test]
    fn the_best_batch_is_the_smallest_that_is_nearly_as_cheap_as_the_cheapest() {
        let times = [batch(1, 10.0), batch(2, 12.0), batch(4, 16.2), batch(8, 32.0), batch(16, 80.0)];
        let (rows, gain) = best(&times);
        assert_eq!(rows, 4, "4.05 us a row are near 4.0");
        assert!((gain - 10.0 / 4.05).abs() < 1e-9);
        assert_eq!(best(&times[..1]), (1, 1.0));
    }
}
