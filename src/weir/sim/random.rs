//! Draws from distributions, the same for the same seed.

use std::f64::consts::TAU;

use crate::link::model::Random;

/// A number with an exponential distribution.
pub(super) fn exponential(random: &mut Random, mean: f64) -> f64 {
    -mean * (1.0 - random.unit()).ln()
}

/// A number with a gamma distribution of mean 1; `cv` is the standard deviation, at most 1.
///
/// Source: Marsaglia and Tsang, "A simple method for generating gamma variables", 2000; for shapes of at least 1.
pub(super) fn gamma(random: &mut Random, cv: f64) -> f64 {
    if cv <= 0.0 {
        return 1.0;
    }
    let shape = (1.0 / (cv * cv)).max(1.0);
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(random);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - random.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v / shape;
        }
    }
}

/// Box and Muller's way.
fn normal(random: &mut Random) -> f64 {
    let radius = (-2.0 * (1.0 - random.unit()).ln()).sqrt();
    radius * (TAU * random.unit()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_has_the_mean_and_deviation_asked_for() {
        for cv in [0.1, 0.5, 1.0] {
            let mut random = Random::new(3, 1);
            let draws: Vec<f64> = (0..20_000).map(|_| gamma(&mut random, cv)).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let deviation = (draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / draws.len() as f64).sqrt();
            assert!((mean - 1.0).abs() < 0.03 && (deviation - cv).abs() < 0.05 * cv, "{cv}: {mean} {deviation}");
        }
    }
}
