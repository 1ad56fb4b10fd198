//! `weir sim --federation`: the three plays of each seed as a table and as JSON.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;
use weir_logic::ids::Class;

use super::{FederationOutcome, FederationSpec, Play, SITES_MAX};

/// Most seeds of one command.
const SEEDS_MAX: u64 = 100;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FederationArgs<'a> {
    /// Boxes.
    pub sites: usize,
    /// The first seed, and how many.
    pub seeds: (u64, u64),
    /// Where the figures go.
    pub json: Option<&'a Path>,
    /// Part of the deadlines lost without advice that advice must save.
    pub require_saved: Option<f64>,
    /// Least value with liars, as a part of the value without advice, for every seed.
    pub require_lied: Option<f64>,
}

/// All seeds.
#[derive(Debug, Clone, Serialize)]
struct Figures {
    /// Part of the deadlines lost without advice that advice saves, over all seeds.
    saved: f64,
    /// Least value with liars as a part of the value without advice.
    lied_value_ratio: f64,
    seeds: Vec<FederationOutcome>,
}

/// Runs and prints; what was required and is not so, a line each.
///
/// # Errors
/// If there are too many sites or seeds, or the figures cannot be written.
pub fn run(args: &FederationArgs<'_>, out: &mut dyn Write) -> anyhow::Result<Vec<String>> {
    anyhow::ensure!((3..=SITES_MAX).contains(&args.sites), "--federation is 3 to {SITES_MAX} boxes");
    anyhow::ensure!((1..=SEEDS_MAX).contains(&args.seeds.1), "--seeds is 1 to {SEEDS_MAX}");
    write!(out, "{:>6}  {:<8} {:>10} {:>9} {:>7}", "seed", "told", "value", "deadlines", "lost")?;
    Class::ALL.iter().try_for_each(|class| write!(out, " {:>9}", class.name()))?;
    writeln!(out, "  warned")?;
    let mut seeds = Vec::new();
    for seed in args.seeds.0..args.seeds.0.saturating_add(args.seeds.1) {
        let outcome = super::run(&FederationSpec::regional(args.sites, seed));
        for (told, play) in [("nothing", &outcome.alone), ("truth", &outcome.advised), ("lies", &outcome.lied_to)] {
            print(&outcome, told, play, out)?;
        }
        seeds.push(outcome);
    }
    let figures = Figures::of(seeds);
    let (alone, advised) = (sum(&figures.seeds, |o| &o.alone), sum(&figures.seeds, |o| &o.advised));
    writeln!(
        out,
        "{} boxes: without advice {alone} deadlines are lost, with it {advised}: {:.0} % fewer; where one in ten lies the value is at \
         least {:.4} of that without advice",
        args.sites,
        figures.saved * 100.0,
        figures.lied_value_ratio
    )?;
    if let Some(path) = args.json {
        let text = serde_json::to_string_pretty(&figures)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(figures.unmet(args))
}

fn print(outcome: &FederationOutcome, told: &str, play: &Play, out: &mut dyn Write) -> io::Result<()> {
    let (seed, value) = (outcome.seed, play.value);
    write!(out, "{seed:>6}  {told:<8} {value:>10.1} {:>9} {:>7}", play.records, play.lost)?;
    for class in Class::ALL {
        write!(out, " {:>9}", play.classes.get(class.name()).map_or(0, |deadlines| deadlines.lost))?;
    }
    writeln!(out, "  {:>6}", play.warned_sites)?;
    out.flush()
}

fn sum(seeds: &[FederationOutcome], of: impl Fn(&FederationOutcome) -> &Play) -> u64 {
    seeds.iter().map(|outcome| of(outcome).lost).sum()
}

impl Figures {
    fn of(seeds: Vec<FederationOutcome>) -> Figures {
        let (alone, advised) = (sum(&seeds, |o| &o.alone), sum(&seeds, |o| &o.advised));
        let ratios = seeds.iter().map(|outcome| outcome.lied_to.value / outcome.alone.value);
        Figures {
            saved: 1.0 - advised as f64 / alone.max(1) as f64,
            lied_value_ratio: ratios.fold(f64::INFINITY, f64::min),
            seeds,
        }
    }

    fn unmet(&self, args: &FederationArgs<'_>) -> Vec<String> {
        let mut unmet = Vec::new();
        if let Some(required) = args.require_saved.filter(|required| self.saved < *required) {
            unmet.push(format!("advice saves {:.3} of the deadlines lost without it, required {required}", self.saved));
        }
        if let Some(required) = args.require_lied.filter(|required| self.lied_value_ratio < *required) {
            unmet.push(format!("with liars {:.4} of the value without advice, required {required}", self.lied_value_ratio));
        }
        unmet
    }
}
