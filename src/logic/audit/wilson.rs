//! How far a share that was counted may be from the true one.

/// A share with its confidence interval, all in `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// What was counted.
    pub share: f64,
    /// The true share is hardly below this.
    pub low: f64,
    /// The true share is hardly above this.
    pub high: f64,
}

/// Standard deviations of a two-sided interval of 95 %.
pub const Z_95: f64 = 1.959_964;
/// The same of 99 %: for what is looked at again and again.
pub const Z_99: f64 = 2.575_829;

impl Interval {
    /// Wilson's score interval (JASA 22, 1927) of `hits` among `count`; `None` of nothing.
    ///
    /// Unlike the one around the share itself it holds for small counts and for shares near 0 or 1 (Brown, Cai and DasGupta,
    /// Statistical Science 16, 2001), and an audit has both.
    pub fn wilson(hits: u64, count: u64, z: f64) -> Option<Interval> {
        if count == 0 {
            return None;
        }
        let (n, share) = (count as f64, hits as f64 / count as f64);
        let (scale, middle) = (1.0 + z * z / n, share + z * z / (2.0 * n));
        let half = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
        let (low, high) = ((middle - half) / scale, (middle + half) / scale);
        Some(Interval { share, low: low.clamp(0.0, share), high: high.clamp(share, 1.0) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_the_published_one() {
        // Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
        for (hits, count, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let found = Interval::wilson(hits, count, Z_95).expect("counted");
            assert!((found.low - low).abs() < 1e-4 && (found.high - high).abs() < 1e-4, "{hits} of {count}: {found:?}");
        }
        assert_eq!(Interval::wilson(0, 0, Z_95), None);
    }

    proptest! {
        #[test]
        fn it_holds_the_share_narrows_with_the_count_and_mirrors(hits in 0u64..500, others in 0u64..500) {
            prop_assume!(hits + others > 0);
            let found = Interval::wilson(hits, hits + others, Z_95).expect("counted");
            prop_assert!(0.0 <= found.low && found.low <= found.share && found.share <= found.high && found.high <= 1.0);
            let more = Interval::wilson(4 * hits, 4 * (hits + others), Z_95).expect("counted");
            prop_assert!(more.high - more.low < found.high - found.low);
            let mirror = Interval::wilson(others, hits + others, Z_95).expect("counted");
            prop_assert!((mirror.low - (1.0 - found.high)).abs() < 1e-9);
        }
    }
}
