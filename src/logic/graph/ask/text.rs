//! Tables and numbers for people.

use std::fmt;

use super::super::estimate::Quantity;

/// Rows under titles, each column as wide as it must be.
#[derive(Debug)]
pub(super) struct Table {
    /// Title, and whether the column is of numbers.
    columns: Vec<(&'static str, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns by their titles; `>` before a title is for numbers, which end at the same place.
    pub(super) fn new(titles: &[&'static str]) -> Table {
        let column = |title: &&'static str| title.strip_prefix('>').map_or((*title, false), |title| (title, true));
        Table { columns: titles.iter().map(column).collect(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([self.columns[column].0.len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let titles: Vec<String> = self.columns.iter().map(|(title, _)| (*title).to_owned()).collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, (_, is_number)), width) in row.iter().zip(&self.columns).zip(&widths) {
                line += &if *is_number { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A value with its unit.
pub(super) fn quantity(of: Quantity, value: f64) -> String {
    match of {
        Quantity::RttUs | Quantity::JitterUs | Quantity::QueueingDelayUs => millis(value / 1e3),
        Quantity::Loss | Quantity::ErrorRatio => percent(value),
        Quantity::GoodputBps | Quantity::CapacityBps => rate(value),
        Quantity::MoneyPerMb | Quantity::EnergyPerMb => format!("{value:.4}"),
    }
}

pub(super) fn millis(ms: f64) -> String {
    if ms >= 10_000.0 { format!("{:.1} s", ms / 1e3) } else { format!("{ms:.1} ms") }
}

pub(super) fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

pub(super) fn rate(bps: f64) -> String {
    match bps {
        0.0..1e6 => format!("{:.0} kbit/s", bps / 1e3),
        1e6..1e9 => format!("{:.1} Mbit/s", bps / 1e6),
        _ => format!("{:.1} Gbit/s", bps / 1e9),
    }
}
