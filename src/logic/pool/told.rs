//! When a gateway is told of pools: at once of what it must know, seldom of what only drifts.

use crate::wire::offload::{PoolView, PoolViews};

/// What one session was told of the pools that its gateway may use.
#[derive(Debug, Clone, Default)]
pub struct PoolsTold {
    told: Option<(u64, PoolViews)>,
}

/// What has not changed is repeated so often, so that its age is known.
const REPEAT_US: u64 = 60_000_000;
/// A queue that is fuller or emptier by so many percent is news.
const QUEUE_STEP_PERCENT: u32 = 25;
/// Answers that take longer or shorter by half, and by this much, are news.
const LATENCY_STEP_US: u64 = 20_000;

impl PoolsTold {
    /// What is to be told now; nothing to a gateway that may use no pool and was told of none.
    pub fn news(&mut self, now_us: u64, views: &PoolViews) -> Option<PoolViews> {
        let is_news = match &self.told {
            None => !views.pools.is_empty(),
            Some((at_us, told)) => {
                let is_alike = told.pools.len() == views.pools.len()
                    && told.pools.iter().zip(&views.pools).all(|(told, view)| is_alike(told, view));
                !is_alike || (!views.pools.is_empty() && now_us >= at_us.saturating_add(REPEAT_US))
            }
        };
        is_news.then(|| {
            self.told = Some((now_us, views.clone()));
            views.clone()
        })
    }
}

/// True if nobody would decide otherwise for the difference.
fn is_alike(told: &PoolView, view: &PoolView) -> bool {
    let (before_us, now_us) = (told.p95_us, view.p95_us);
    let differs_us = before_us.abs_diff(now_us);
    let is_as_slow = differs_us < LATENCY_STEP_US || differs_us < before_us.max(now_us) / 3;
    let is_as_full = told.queue_percent.abs_diff(view.queue_percent) < QUEUE_STEP_PERCENT;
    let moving = |of: &PoolView| PoolView { queue_percent: 0, p50_us: 0, p95_us: 0, age_ms: 0, ..of.clone() };
    is_as_slow && is_as_full && moving(told) == moving(view)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views(p95_us: u64, queue_percent: u32) -> PoolViews {
        PoolViews { pools: vec![PoolView { name: "a".to_owned(), p95_us, queue_percent, ..PoolView::default() }] }
    }

    #[test]
    fn what_changes_a_decision_is_told_at_once_and_the_rest_once_a_minute() {
        let mut told = PoolsTold::default();
        let mut is_told = |s: u64, views: PoolViews| told.news(s * 1_000_000, &views).is_some();
        assert!(!is_told(0, PoolViews::default()), "who may use none need not know");
        assert!(is_told(1, views(10_000, 0)));
        assert!(!is_told(2, views(25_000, 20)));
        assert!(is_told(3, views(25_000, 25)) && is_told(4, views(60_000, 25)) && !is_told(5, views(79_000, 10)));
        assert!(!is_told(63, views(60_000, 25)) && is_told(64, views(60_000, 25)));
        assert!(is_told(65, PoolViews::default()), "a right that was taken away");
        assert!(!is_told(300, PoolViews::default()));
    }
}
