//! So much in any hour: what was used is forgotten five minutes at a time.

use crate::audit::Purpose;

/// A budget over a sliding hour.
#[derive(Debug, Clone)]
pub(super) struct HourBudget {
    limit: u64,
    /// What was used in each part, and the number of the newest part.
    used: [u64; PARTS],
    newest: u64,
}

/// An hour and one part more: whatever hour one looks at, all of it is in here.
const PARTS: usize = 13;
const PART_US: u64 = 300_000_000;

impl HourBudget {
    pub(super) fn new(limit: u64) -> Self {
        HourBudget { limit, used: [0; PARTS], newest: 0 }
    }

    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// What may still be used now.
    pub(super) fn left(&mut self, now_us: u64) -> u64 {
        self.advance(now_us);
        self.limit.saturating_sub(self.used.iter().sum())
    }

    /// What may still be used for this: an audit leaves half of the limit to windows in doubt.
    pub(super) fn left_for(&mut self, now_us: u64, purpose: Purpose) -> u64 {
        let kept = if purpose == Purpose::Audit { self.limit.div_ceil(2) } else { 0 };
        self.left(now_us).saturating_sub(kept)
    }

    pub(super) fn spend(&mut self, now_us: u64, amount: u64) {
        self.advance(now_us);
        self.used[(self.newest % PARTS as u64) as usize] += amount;
    }

    /// What was used in the last hour, and how much that may be.
    pub(super) fn level(&self) -> (u64, u64) {
        (self.used.iter().sum(), self.limit)
    }

    fn advance(&mut self, now_us: u64) {
        let part = now_us / PART_US;
        for at in (self.newest + 1..=part).take(PARTS) {
            self.used[(at % PARTS as u64) as usize] = 0;
        }
        self.newest = self.newest.max(part);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_hour_sees_more_than_its_budget_and_a_quiet_one_gives_all_back(
            asks in prop::collection::vec((0u64..400_000_000, 1u64..40), 1..200),
        ) {
            let (mut budget, mut now_us, mut spent) = (HourBudget::new(100), 1, Vec::<(u64, u64)>::new());
            for (wait_us, amount) in asks {
                now_us += wait_us;
                if budget.left(now_us) >= amount {
                    budget.spend(now_us, amount);
                    spent.push((now_us, amount));
                }
                let hour: u64 = spent.iter().filter(|(at, _)| at + 3_600_000_000 > now_us).map(|(_, amount)| amount).sum();
                prop_assert!(hour <= 100, "{hour} in the hour up to {now_us}");
            }
            prop_assert_eq!(budget.left(now_us + PARTS as u64 * PART_US), 100);
        }
    }
}
