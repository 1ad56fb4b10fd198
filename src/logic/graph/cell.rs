//! An edge's estimate in 28 bytes of memory and about ten on the wire.
//!
//! A value is three decimal digits and an exponent: 1 % is finer than any estimate deserves, decimal digits need no
//! logarithm (whose last bit differs between machines), and all codes fit two bytes of a varint.
//!
//! Ages cost nothing while they do not matter: a *live* cell is as old as the digest that holds it, whoever sent it last.
//! Only when evidence stops does its owner publish that, with the second of the last evidence; so a receiver ends with the
//! same bytes whether a digest came whole or in parts.

use super::estimate::{EdgeState, Estimate, QUANTITIES, Quantity};

/// Evidence up to this old counts as fresh: heartbeats come every few seconds.
pub(super) const LIVE_AGE_US: u64 = 5_000_000;
/// `evidence_s` of a live cell.
const LIVE: u32 = u32::MAX;
/// Trust is kept in fifteenths.
const TRUST_STEPS: f64 = 15.0;

const MASK_BITS: u32 = 9;
const STATE_BITS: u32 = 3;
const TRUST_BITS: u32 = 4;
const DATED: u32 = 1 << (MASK_BITS + STATE_BITS + TRUST_BITS);

/// The quantised estimate of one edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    /// Position of its edge among the owner's edges.
    pub(super) edge: u16,
    mask: u16,
    state: u8,
    trust: u8,
    /// The owner's service time of the last evidence in seconds, or `LIVE`.
    evidence_s: u32,
    codes: [u16; QUANTITIES],
}

impl Cell {
    /// Of an estimate whose last evidence was at `evidence_us`, as of `now_us`; `None` if nothing is known.
    pub(super) fn new(edge: u16, estimate: &Estimate, evidence_us: u64, now_us: u64) -> Option<Cell> {
        if estimate.is_empty() {
            return None;
        }
        let (mut mask, mut codes) = (0, [0; QUANTITIES]);
        for quantity in Quantity::ALL {
            if let Some(value) = estimate.get(quantity) {
                mask |= 1 << quantity.index();
                codes[quantity.index()] = encode(value * quantity.scale());
            }
        }
        let is_live = now_us.saturating_sub(evidence_us) <= LIVE_AGE_US;
        Some(Cell {
            edge,
            mask,
            state: estimate.state.map_or(0, |state| state as u8 + 1),
            trust: (estimate.trust * TRUST_STEPS).round() as u8,
            evidence_s: if is_live { LIVE } else { seconds(evidence_us) },
            codes,
        })
    }

    /// What it says, for a digest made at `at_s` of its owner's time and held for `held_us` since.
    pub(super) fn estimate(&self, at_s: u32, held_us: u64) -> Estimate {
        let age_s = if self.evidence_s == LIVE { 0 } else { at_s.saturating_sub(self.evidence_s) };
        let age_us = (u64::from(age_s) * 1_000_000).saturating_add(held_us);
        let mut estimate = Estimate::default().with_evidence(age_us, f64::from(self.trust) / TRUST_STEPS);
        estimate.state = self.state();
        for quantity in Quantity::ALL.into_iter().filter(|quantity| self.has(*quantity)) {
            estimate = estimate.with(quantity, self.value(quantity));
        }
        estimate
    }

    pub(super) fn state(&self) -> Option<EdgeState> {
        usize::from(self.state).checked_sub(1).and_then(|index| EdgeState::ALL.get(index).copied())
    }

    pub(super) fn has(&self, quantity: Quantity) -> bool {
        self.mask & 1 << quantity.index() != 0
    }

    /// The value of a quantity that it has.
    pub(super) fn value(&self, quantity: Quantity) -> f64 {
        decode(self.codes[quantity.index()]) / quantity.scale()
    }

    /// True if the difference to what was published may change somebody's mind.
    pub(super) fn matters_beside(&self, old: &Cell, change_ratio: f64) -> bool {
        let is_same_kind = self.state == old.state && self.mask == old.mask && self.evidence_s == old.evidence_s;
        let moved = |quantity: &Quantity| {
            let (now, then) = (self.value(*quantity), old.value(*quantity));
            (now - then).abs() > (change_ratio * now.max(then)).max(quantity.noise())
        };
        !is_same_kind
            || self.trust.abs_diff(old.trust) > TRUST_NOISE
            || Quantity::ALL.iter().filter(|quantity| self.has(**quantity)).any(moved)
    }

    /// True if the verdict is another, which is never held back.
    pub(super) fn is_urgent_beside(&self, old: &Cell) -> bool {
        self.state != old.state
    }

    /// Writes it after the cell of edge `last`.
    pub(super) fn write(&self, last: &mut Option<u16>, at_s: u32, out: &mut Vec<u32>) {
        let dated = if self.evidence_s == LIVE { 0 } else { DATED };
        let head = u32::from(self.mask)
            | u32::from(self.state) << MASK_BITS
            | u32::from(self.trust) << (MASK_BITS + STATE_BITS)
            | dated;
        write_head(self.edge, head, last, out);
        if dated != 0 {
            out.push(at_s.saturating_sub(self.evidence_s));
        }
        out.extend(Quantity::ALL.iter().filter(|q| self.has(**q)).map(|q| u32::from(self.codes[q.index()])));
    }
}

/// Writes that nothing is known of `edge` any more.
pub(super) fn write_removed(edge: u16, last: &mut Option<u16>, out: &mut Vec<u32>) {
    write_head(edge, 0, last, out);
}

fn write_head(edge: u16, head: u32, last: &mut Option<u16>, out: &mut Vec<u32>) {
    let gap = last.map_or(u32::from(edge), |last| u32::from(edge) - u32::from(last) - 1);
    *last = Some(edge);
    out.extend([gap, head]);
}

/// Reads cells in ascending order of their edges.
#[derive(Debug)]
pub(super) struct CellReader<'a> {
    numbers: std::slice::Iter<'a, u32>,
    at_s: u32,
    edges: usize,
    next_edge: u64,
}

/// Numbers that are no cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoCell;

impl<'a> CellReader<'a> {
    /// Of a digest made at `at_s` by an owner of so many edges.
    pub(super) fn new(numbers: &'a [u32], at_s: u32, edges: usize) -> Self {
        CellReader { numbers: numbers.iter(), at_s, edges, next_edge: 0 }
    }

    fn number(&mut self) -> Result<u32, NoCell> {
        self.numbers.next().copied().ok_or(NoCell)
    }

    fn cell(&mut self, gap: u32) -> Result<(u16, Option<Cell>), NoCell> {
        let edge = self.next_edge + u64::from(gap);
        self.next_edge = edge + 1;
        let edge = u16::try_from(edge).ok().filter(|edge| usize::from(*edge) < self.edges).ok_or(NoCell)?;
        let head = self.number()?;
        let mask = (head & ((1 << MASK_BITS) - 1)) as u16;
        let state = (head >> MASK_BITS & ((1 << STATE_BITS) - 1)) as u8;
        let trust = (head >> (MASK_BITS + STATE_BITS) & ((1 << TRUST_BITS) - 1)) as u8;
        if head >= DATED << 1 || usize::from(state) > EdgeState::ALL.len() {
            return Err(NoCell);
        }
        if mask == 0 && state == 0 {
            return if head == 0 { Ok((edge, None)) } else { Err(NoCell) };
        }
        let evidence_s = if head & DATED == 0 { LIVE } else { self.at_s.saturating_sub(self.number()?) };
        let mut cell = Cell { edge, mask, state, trust, evidence_s, codes: [0; QUANTITIES] };
        for index in (0..QUANTITIES).filter(|index| mask & 1 << index != 0) {
            cell.codes[index] = u16::try_from(self.number()?).ok().filter(|code| *code <= CODE_MAX).ok_or(NoCell)?;
        }
        Ok((edge, Some(cell)))
    }
}

impl Iterator for CellReader<'_> {
    /// The edge, and what is known of it now; `None` if nothing any more.
    type Item = Result<(u16, Option<Cell>), NoCell>;

    fn next(&mut self) -> Option<Self::Item> {
        let gap = *self.numbers.next()?;
        let cell = self.cell(gap);
        if cell.is_err() {
            self.numbers = [].iter();
        }
        Some(cell)
    }
}

/// Whole seconds, below [`LIVE`].
pub(super) fn seconds(us: u64) -> u32 {
    u32::try_from(us / 1_000_000).unwrap_or(LIVE).min(LIVE - 1)
}

/// A step of trust is rounding, not news.
const TRUST_NOISE: u8 = 2;

/// Digits of a code: 100 to 999.
const MANTISSAS: u16 = 900;
const EXPONENTS: usize = 18;
const CODE_MAX: u16 = MANTISSAS * EXPONENTS as u16;
/// The smallest value besides 0 is 0.01: 100 times the last power.
const UNIT: f64 = 1e4;
/// Exact, as all powers of ten up to 22 are.
const POWERS: [f64; EXPONENTS] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17];

/// Three digits and an exponent: 0, then 0.01 to 9.99e15. What is above counts as the largest.
fn encode(value: f64) -> u16 {
    let units = value * UNIT;
    if units < 50.0 {
        return 0;
    }
    let mut exponent = POWERS.iter().rposition(|power| units >= 100.0 * power).unwrap_or(0);
    let mut digits = (units / POWERS[exponent]).round().max(100.0);
    if digits >= 1_000.0 {
        (exponent, digits) = if exponent + 1 < EXPONENTS { (exponent + 1, 100.0) } else { (exponent, 999.0) };
    }
    1 + exponent as u16 * MANTISSAS + (digits as u16 - 100)
}

/// The inverse of [`encode`] for codes up to [`CODE_MAX`].
fn decode(code: u16) -> f64 {
    let Some(code) = code.checked_sub(1) else { return 0.0 };
    let power = POWERS.get(usize::from(code / MANTISSAS)).copied().unwrap_or(0.0);
    f64::from(code % MANTISSAS + 100) * power / UNIT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_codes_read_back_and_rise() {
        let mut last = -1.0;
        for code in 0..=CODE_MAX {
            let value = decode(code);
            assert!(value > last, "{code}");
            assert_eq!(encode(value), code, "{value}");
            last = value;
        }
        assert_eq!((encode(0.004), encode(0.006), encode(f64::MAX)), (0, 1, CODE_MAX));
        assert_eq!(size_of::<Cell>(), 28);
    }

    proptest! {
        #[test]
        fn three_digits_stay(value in 0.01..9.9e15f64) {
            let read = decode(encode(value));
            prop_assert!((read - value).abs() <= 0.005_001 * value, "{value} became {read}");
        }

        #[test]
        fn cells_read_back(cells in prop::collection::vec((0u16..400, 0u16..512, 0u8..6, 0u8..16, prop::option::of(0u32..1000)), 0..40)) {
            let mut cells: Vec<Cell> = cells
                .into_iter()
                .map(|(edge, mask, state, trust, evidence)| {
                    let codes = std::array::from_fn(|i| if mask & 1 << i != 0 { (u32::from(edge) * 37 + i as u32) as u16 % CODE_MAX } else { 0 });
                    Cell { edge, mask, state, trust, evidence_s: evidence.unwrap_or(LIVE), codes }
                })
                .filter(|cell| cell.mask != 0 || cell.state != 0)
                .collect();
            cells.sort_by_key(|cell| cell.edge);
            cells.dedup_by_key(|cell| cell.edge);
            let (mut last, mut numbers) = (None, Vec::new());
            for cell in &cells {
                cell.write(&mut last, 1000, &mut numbers);
            }
            let read: Result<Vec<_>, _> = CellReader::new(&numbers, 1000, 400).collect();
            prop_assert_eq!(read, Ok(cells.into_iter().map(|cell| (cell.edge, Some(cell))).collect()));
        }
    }
}
