//! Exponential decay and logarithm from additions and multiplications alone.
//!
//! `f64::exp` is the platform's, and platforms differ in the last bit. A simulation that must repeat a box's decisions
//! byte for byte cannot use it; a series on a small range is as exact and as fast.

/// `2^-halvings`: what is left after so many half lives; 1 for zero, less and for what is no number.
pub(super) fn after_half_lives(halvings: f64) -> f64 {
    if halvings.is_nan() || halvings <= 0.0 {
        return 1.0;
    }
    if halvings >= HALVINGS_MAX {
        return 0.0;
    }
    // The nearest whole number of halvings is an exponent; the rest lies within a half.
    let whole = (halvings + 0.5) as u64;
    let rest = (whole as f64 - halvings) * std::f64::consts::LN_2;
    let power = f64::from_bits((1023 - whole) << 52);
    power * INVERSE_FACTORIALS.iter().fold(0.0, |sum, inverse| sum * rest + inverse)
}

/// `e^-x` for `x >= 0`.
pub(crate) fn exp_negative(x: f64) -> f64 {
    after_half_lives(x * std::f64::consts::LOG2_E)
}

/// What is left of something after `age_us`, if it halves every `half_life_us`.
pub(super) fn left_after(age_us: u64, half_life_us: u64) -> f64 {
    after_half_lives(age_us as f64 / half_life_us.max(1) as f64)
}

/// The natural logarithm of a number that is normal and above 0; 0 for any other.
pub(crate) fn ln(x: f64) -> f64 {
    if !x.is_normal() || x < 0.0 {
        return 0.0;
    }
    let bits = x.to_bits();
    let (mut exponent, mut rest) = ((bits >> 52) as f64 - 1023.0, f64::from_bits(bits & MANTISSA | 1023 << 52));
    if rest > std::f64::consts::SQRT_2 {
        (exponent, rest) = (exponent + 1.0, rest / 2.0);
    }
    // ln r = 2 artanh((r - 1) / (r + 1)), whose argument is within 0.172: the first term left out is 1e-17.
    let part = (rest - 1.0) / (rest + 1.0);
    let square = part * part;
    let series = (0..11).rev().fold(0.0, |sum, term| sum * square + 1.0 / f64::from(2 * term + 1));
    exponent * std::f64::consts::LN_2 + 2.0 * part * series
}

/// The bits of a number that are neither sign nor exponent.
const MANTISSA: u64 = (1 << 52) - 1;

/// Below 2^-1022 numbers lose precision; nothing here tells that from nothing.
const HALVINGS_MAX: f64 = 1022.0;

/// 1/12! down to 1/0!: for arguments within 0.35 the first term left out is 2e-16, one rounding.
const INVERSE_FACTORIALS: [f64; 13] = [
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decay_agrees_with_the_library_to_the_last_digits() {
        for i in 0..200_000 {
            let x = f64::from(i) * 0.0035;
            let (ours, library) = (exp_negative(x), (-x).exp());
            assert!((ours - library).abs() <= 1e-12 * library.max(1e-300), "e^-{x}: {ours} and {library}");
        }
    }

    #[test]
    fn logarithms_agree_with_the_library_to_the_last_digits() {
        for i in 1..200_000 {
            let x = f64::from(i) * 0.000_71;
            let (ours, library) = (ln(x), x.ln());
            assert!((ours - library).abs() <= 1e-14 * library.abs().max(1.0), "ln {x}: {ours} and {library}");
        }
        for odd in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(ln(odd), 0.0);
        }
        assert!((ln(f64::MAX) - f64::MAX.ln()).abs() < 1e-12);
    }

    #[test]
    fn whole_half_lives_are_exact_and_nothing_leaves_zero_to_one() {
        for n in 0..1022 {
            assert_eq!(after_half_lives(f64::from(n)), 0.5f64.powi(n));
        }
        for odd in [f64::INFINITY, 1e300, 1022.0, 1021.999] {
            assert!((0.0..=f64::MIN_POSITIVE * 2.0).contains(&after_half_lives(odd)), "{odd}");
        }
        for odd in [f64::NAN, -1.0, 0.0, f64::NEG_INFINITY] {
            assert_eq!(after_half_lives(odd), 1.0);
        }
        assert_eq!(left_after(5, 0), 1.0 / 32.0);
    }
}
