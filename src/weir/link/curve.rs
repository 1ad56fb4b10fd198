//! A link's rate over time: constant, wandering, or recorded.
//!
//! All three are piecewise constant and known for all times, so the moment at which a packet has left is
//! computed once, when it arrives. Recordings repeat when they end. Two formats are read:
//! - Mahimahi: one integer a line, in milliseconds; each line carries 1,500 bytes in that millisecond.
//! - CSV `t_s,mbps`, or `trace,t_s,mbps` with several recordings by name; each rate holds until the next.

use weir_host::units::{BitRate, Duration, Ratio};

use super::model::hash_unit;

/// Longest trace that is read. Source: an hour at 100 Mbit/s in Mahimahi format is 210 MB; nobody needs that here.
pub const TRACE_LEN_MAX: u64 = 64 << 20;
/// Payload of one Mahimahi line.
const OPPORTUNITY_BITS: f64 = 1_500.0 * 8.0;
/// Steps over which a wandering rate forgets where it was.
const WALK_MEMORY_STEPS: u64 = 8;
/// Share of the slow part in a wandering rate; the rest changes at every step.
const WALK_SLOW_SHARE: f64 = 0.7;
/// A wandering rate keeps at least this share of its mean.
const WALK_SHARE_MIN: f64 = 0.01;

/// Rate over time.
#[derive(Debug, Clone, PartialEq)]
pub struct RateCurve {
    shape: Shape,
}

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Constant { bits_per_s: f64 },
    Walk { bits_per_s: f64, swing: f64, step_us: u64, seed: u64 },
    Recorded { steps: Vec<Step>, period_us: u64 },
}

/// A rate from a time on, until the next step.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    start_us: u64,
    bits_per_s: f64,
}

/// Why a trace cannot be used. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A line is not what the format has.
    #[error("line {line}: `{text}` is not {expected}")]
    Line {
        /// Where.
        line: usize,
        /// The line, cut to 40 characters.
        text: String,
        /// What the format has.
        expected: &'static str,
    },
    /// Time goes backwards.
    #[error("line {line}: time goes back")]
    Order {
        /// Where.
        line: usize,
    },
    /// There is no recording of that name.
    #[error("no trace `{name}`; the file has {known}")]
    UnknownName {
        /// The name asked for.
        name: String,
        /// The names there are, at most ten.
        known: String,
    },
    /// There are several recordings.
    #[error("{count} traces in the file, choose one with `trace_name`: {known}")]
    NameNeeded {
        /// How many there are.
        count: usize,
        /// Their names, at most ten.
        known: String,
    },
    /// Nothing ever gets through.
    #[error("the trace carries nothing")]
    Silent,
}

impl RateCurve {
    /// The same rate at all times.
    pub fn constant(rate: BitRate) -> Self {
        Self { shape: Shape::Constant { bits_per_s: rate.bits_per_s() as f64 } }
    }

    /// A rate that wanders by up to `swing` around `mean`, changing every `step`; the same for the same seed.
    pub fn walk(mean: BitRate, swing: Ratio, step: Duration, seed: u64) -> Self {
        let (bits_per_s, swing) = (mean.bits_per_s() as f64, swing.as_f64());
        Self { shape: Shape::Walk { bits_per_s, swing, step_us: step.as_micros().max(1), seed } }
    }

    /// Reads a trace in either format; `name` chooses among several recordings in one CSV file.
    ///
    /// # Errors
    /// The first line at fault; a name that is needed or unknown; a trace that carries nothing.
    pub fn parse_trace(text: &str, name: Option<&str>) -> Result<Self, TraceError> {
        let head = text.lines().next().unwrap_or_default().trim();
        let (steps, period_us) = if head.contains(',') { parse_csv(text, name)? } else { parse_mahimahi(text)? };
        if period_us == 0 || !steps.iter().any(|step| step.bits_per_s > 0.0) {
            return Err(TraceError::Silent);
        }
        Ok(Self { shape: Shape::Recorded { steps, period_us } })
    }

    /// The rate at a time, in bits per second.
    pub fn bits_per_s(&self, at_us: u64) -> f64 {
        self.piece(at_us).0
    }

    /// Time after which a recording repeats; `None` if the rate is not a recording.
    pub fn period_us(&self) -> Option<u64> {
        match &self.shape {
            Shape::Recorded { period_us, .. } => Some(*period_us),
            Shape::Constant { .. } | Shape::Walk { .. } => None,
        }
    }

    /// When `bits` that start at `start_us` have left, at the curve's rate times `scale`, in microseconds.
    pub(super) fn finish_us(&self, start_us: f64, bits: f64, scale: f64) -> f64 {
        let (mut at_us, mut bits) = (start_us, bits);
        loop {
            let (bits_per_s, end_us) = self.piece(at_us as u64);
            let bits_per_us = bits_per_s * scale / 1e6;
            let room = (end_us as f64 - at_us) * bits_per_us;
            if bits <= room {
                return at_us + bits / bits_per_us;
            }
            bits -= room;
            at_us = end_us as f64;
        }
    }

    /// The rate at a time, and the end of the piece over which it holds; the end is later than the time.
    pub(super) fn piece(&self, at_us: u64) -> (f64, u64) {
        match &self.shape {
            Shape::Constant { bits_per_s } => (*bits_per_s, u64::MAX),
            Shape::Walk { bits_per_s, swing, step_us, seed } => {
                let step = at_us / step_us;
                let share = (1.0 + swing * walk(*seed, step)).max(WALK_SHARE_MIN);
                (bits_per_s * share, (step + 1) * step_us)
            }
            Shape::Recorded { steps, period_us } => {
                let base_us = at_us - at_us % period_us;
                let next = steps.partition_point(|step| step.start_us <= at_us - base_us);
                let end_us = steps.get(next).map_or(*period_us, |step| step.start_us);
                // Every trace has a step at 0.
                (steps[next - 1].bits_per_s, base_us + end_us)
            }
        }
    }
}

/// A wandering value in -1 to 1 for each step: a slow part that is interpolated, and a quick one.
fn walk(seed: u64, step: u64) -> f64 {
    let signed = |salt: u64, at: u64| 2.0 * hash_unit(seed ^ salt, at) - 1.0;
    let (knot, offset) = (step / WALK_MEMORY_STEPS, step % WALK_MEMORY_STEPS);
    let share = offset as f64 / WALK_MEMORY_STEPS as f64;
    let slow = signed(1, knot) * (1.0 - share) + signed(1, knot + 1) * share;
    WALK_SLOW_SHARE * slow + (1.0 - WALK_SLOW_SHARE) * signed(2, step)
}

/// Each line is the millisecond that ends at its time; the last line's time is the period.
fn parse_mahimahi(text: &str) -> Result<(Vec<Step>, u64), TraceError> {
    const EXPECTED: &str = "a whole number of milliseconds";
    let mut steps = vec![Step { start_us: 0, bits_per_s: 0.0 }];
    let mut last_ms = 0;
    for (line, text) in numbered(text) {
        let at_ms: u64 = text.parse().map_err(|_| bad_line(line, text, EXPECTED))?;
        if at_ms > u64::from(u32::MAX) {
            return Err(bad_line(line, text, EXPECTED));
        }
        if at_ms < last_ms {
            return Err(TraceError::Order { line });
        }
        last_ms = at_ms;
        let start_us = at_ms.saturating_sub(1) * 1_000;
        match steps.iter_mut().rev().nth(1) {
            // The last step is the silence after the millisecond before it.
            Some(step) if step.start_us == start_us && step.bits_per_s > 0.0 => step.bits_per_s += OPPORTUNITY_BITS * 1e3,
            _ => {
                steps.pop_if(|step| step.start_us == start_us);
                steps.push(Step { start_us, bits_per_s: OPPORTUNITY_BITS * 1e3 });
                steps.push(Step { start_us: start_us + 1_000, bits_per_s: 0.0 });
            }
        }
    }
    let period_us = last_ms * 1_000;
    steps.retain(|step| step.start_us < period_us);
    Ok((steps, period_us))
}

fn parse_csv(text: &str, name: Option<&str>) -> Result<(Vec<Step>, u64), TraceError> {
    const EXPECTED: &str = "`t_s,mbps` or `trace,t_s,mbps` with numbers from 0 to 1e6";
    let mut names: Vec<&str> = Vec::new();
    let mut steps: Vec<Step> = Vec::new();
    let mut start_us_first = 0;
    for (line, text) in numbered(text) {
        let fields: Vec<&str> = text.split(',').map(str::trim).collect();
        let (trace, t_s, mbps) = match fields[..] {
            [t_s, mbps] => ("", t_s, mbps),
            [trace, t_s, mbps] => (trace, t_s, mbps),
            _ => return Err(bad_line(line, text, EXPECTED)),
        };
        if line == 1 && (t_s, mbps) == ("t_s", "mbps") {
            continue;
        }
        if !names.contains(&trace) {
            names.push(trace);
        }
        if name.is_some_and(|name| name != trace) || name.is_none() && trace != names[0] {
            continue;
        }
        let number = |text: &str| text.parse::<f64>().ok().filter(|number| (0.0..=1e6).contains(number));
        let (Some(t_s), Some(mbps)) = (number(t_s), number(mbps)) else {
            return Err(bad_line(line, text, EXPECTED));
        };
        let at_us = (t_s * 1e6).round() as u64;
        if steps.is_empty() {
            start_us_first = at_us;
        }
        if at_us < start_us_first
            || steps.last().is_some_and(|step| at_us - start_us_first <= step.start_us && !steps.is_empty())
        {
            return Err(TraceError::Order { line });
        }
        steps.push(Step { start_us: at_us - start_us_first, bits_per_s: mbps * 1e6 });
    }
    let known = names.iter().take(10).copied().collect::<Vec<_>>().join(", ");
    if let Some(name) = name
        && !names.contains(&name)
    {
        return Err(TraceError::UnknownName { name: name.to_owned(), known });
    }
    if name.is_none() && names.len() > 1 {
        return Err(TraceError::NameNeeded { count: names.len(), known });
    }
    let period_us = match steps[..] {
        [] => 0,
        [_] => 1_000_000,
        [.., before, last] => last.start_us + (last.start_us - before.start_us),
    };
    Ok((steps, period_us))
}

/// Lines that hold something, counted from 1.
fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().map(str::trim).enumerate().filter(|(_, text)| !text.is_empty()).map(|(at, text)| (at + 1, text))
}

fn bad_line(line: usize, text: &str, expected: &'static str) -> TraceError {
    TraceError::Line { line, text: text.chars().take(40).collect(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits_in(curve: &RateCurve, seconds: u64) -> f64 {
        (0..seconds * 1_000).map(|ms| curve.bits_per_s(ms * 1_000) / 1e3).sum()
    }

    #[test]
    fn a_mahimahi_trace_keeps_its_rate_its_silences_and_repeats() {
        // Three packets in the first millisecond, one in the second, silence, one at the end: 10 ms.
        let curve = RateCurve::parse_trace("1\n1\n1\n2\n\n10\n", None).unwrap();
        let packet = OPPORTUNITY_BITS * 1e3;
        for base_us in [0, 10_000, 20_000] {
            assert_eq!(curve.bits_per_s(base_us), 3.0 * packet);
            assert_eq!(curve.bits_per_s(base_us + 1_500), packet);
            assert_eq!(curve.bits_per_s(base_us + 2_000), 0.0);
            assert_eq!(curve.bits_per_s(base_us + 9_999), packet);
        }
        let total = bits_in(&curve, 10);
        assert!((total - 5.0 * OPPORTUNITY_BITS * 1_000.0).abs() < 1.0, "{total}");
        // A packet that misses the first two milliseconds waits for the last.
        let finish = curve.finish_us(2_000.0, OPPORTUNITY_BITS / 2.0, 1.0);
        assert!((finish - 9_500.0).abs() < 1e-6, "{finish}");
    }

    #[test]
    fn a_csv_trace_is_chosen_by_name_and_starts_at_its_first_row() {
        let text = "trace,t_s,mbps\na,0,1\na,1,2\nb,100,3\nb,102,0\nb,104,5\n";
        let a = RateCurve::parse_trace(text, Some("a")).unwrap();
        assert_eq!([0, 1_000_000, 2_000_000].map(|at| a.bits_per_s(at)), [1e6, 2e6, 1e6]);
        let b = RateCurve::parse_trace(text, Some("b")).unwrap();
        assert_eq!([0, 2_000_000, 5_999_999, 6_000_000].map(|at| b.bits_per_s(at)), [3e6, 0.0, 5e6, 3e6]);
        let error = RateCurve::parse_trace(text, Some("c")).unwrap_err().to_string();
        assert_eq!(error, "no trace `c`; the file has a, b");
        let error = RateCurve::parse_trace(text, None).unwrap_err().to_string();
        assert_eq!(error, "2 traces in the file, choose one with `trace_name`: a, b");
        let plain = RateCurve::parse_trace("t_s,mbps\n0,4\n", None).unwrap();
        assert_eq!(plain.bits_per_s(77), 4e6);
    }

    #[test]
    fn a_bad_trace_names_its_line() {
        let error = |text: &str| RateCurve::parse_trace(text, None).unwrap_err().to_string();
        assert_eq!(error("1\n2\nx\n"), "line 3: `x` is not a whole number of milliseconds");
        assert_eq!(error("1\n-2\n"), "line 2: `-2` is not a whole number of milliseconds");
        assert_eq!(error("5\n\n4\n"), "line 3: time goes back");
        assert!(error("99999999999999\n").starts_with("line 1: `99999999999999` is not"));
        assert!(error("t_s,mbps\n0,1\n1,fast\n").starts_with("line 3: `1,fast` is not `t_s,mbps`"));
        assert!(error("t_s,mbps\n0,1,2,3\n").starts_with("line 2: `0,1,2,3` is not"));
        assert!(error("t_s,mbps\n0,-1\n").starts_with("line 2: "));
        assert!(error("t_s,mbps\n0,NaN\n").starts_with("line 2: "));
        assert_eq!(error("t_s,mbps\n5,1\n4,1\n"), "line 3: time goes back");
        assert_eq!(error("t_s,mbps\n5,1\n5,1\n"), "line 3: time goes back");
        for silent in ["", "0\n", "t_s,mbps\n", "t_s,mbps\n0,0\n1,0\n"] {
            assert_eq!(error(silent), "the trace carries nothing", "{silent:?}");
        }
    }

    #[test]
    fn a_walk_stays_within_its_swing_keeps_its_mean_and_repeats_with_its_seed() {
        let (mean, step) = (BitRate::from_bits_per_s(10_000_000), Duration::from_secs(1));
        let walk = |seed| RateCurve::walk(mean, Ratio::from_percent(60), step, seed);
        let rates: Vec<f64> = (0..5_000).map(|s| walk(7).bits_per_s(s * 1_000_000)).collect();
        assert!(rates.iter().all(|rate| (4e6..=16e6).contains(rate)));
        let average = rates.iter().sum::<f64>() / rates.len() as f64;
        assert!((average / 10e6 - 1.0).abs() < 0.03, "{average}");
        assert!(rates.iter().any(|rate| *rate < 6e6) && rates.iter().any(|rate| *rate > 14e6));
        assert_eq!(walk(7).bits_per_s(1_234_567), walk(7).bits_per_s(1_234_567));
        assert_ne!(walk(7).bits_per_s(1_234_567), walk(8).bits_per_s(1_234_567));
    }
}
