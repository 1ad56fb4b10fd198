//! Waits between attempts: doubling, capped, and spread, so that a thousand boxes do not come back in the same second.

/// Draws from a seed that differ from box to box, and are the same for the same box.
#[derive(Debug, Clone)]
pub struct Jitter {
    random: u64,
}

impl Jitter {
    /// Boxes with different seeds draw differently.
    pub fn new(seed: u64) -> Self {
        // Xorshift must not start at zero, and neighbouring seeds should differ at once.
        Jitter { random: (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1 }
    }

    /// The next draw: 0 to `most`, both included.
    pub fn up_to(&mut self, most: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % most.saturating_add(1)
    }

    /// A draw from 0 to `most` that is more often early than late: the smaller of two.
    pub fn early(&mut self, most: u64) -> u64 {
        self.up_to(most).min(self.up_to(most))
    }
}

/// Exponential backoff with jitter from a seed.
#[derive(Debug, Clone)]
pub struct Backoff {
    first_us: u64,
    longest_us: u64,
    attempt: u32,
    jitter: Jitter,
}

impl Backoff {
    /// Waits from `first_us` to `longest_us`; boxes with different seeds wait differently.
    pub fn new(first_us: u64, longest_us: u64, seed: u64) -> Self {
        Backoff { first_us, longest_us, attempt: 0, jitter: Jitter::new(seed) }
    }

    /// The next wait: between half of the present step and the whole of it.
    pub fn next_us(&mut self) -> u64 {
        let step = self.first_us.saturating_mul(1 << self.attempt.min(32)).min(self.longest_us);
        self.attempt += 1;
        step / 2 + self.jitter.up_to(step / 2)
    }

    /// An attempt has proved to work: the next failure starts from the shortest wait again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_differ_by_seed() {
        let waits = |seed| {
            let mut backoff = Backoff::new(500, 30_000, seed);
            (0..40).map(|_| backoff.next_us()).collect::<Vec<_>>()
        };
        let one = waits(1);
        for (i, wait) in one.iter().enumerate() {
            let step = (500u64 << i.min(20)).min(30_000);
            assert!((step / 2..=step).contains(wait), "attempt {i}: {wait}");
        }
        assert_ne!(one, waits(2));
        assert_eq!(one, waits(1));
    }
}
