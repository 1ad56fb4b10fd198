//! Models that the cloud offers, as the status shows them.

use serde::{Deserialize, Serialize};
use weir_logic::gateway::Gateway;

/// Packages on their way from the cloud, and what they cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchStatus {
    /// By task: what became of the last offer.
    pub offers: Vec<OfferStatus>,
    /// Offers that came, since start.
    pub offered: u64,
    /// Those that were refused.
    pub refused: u64,
    /// Packages that came whole.
    pub packages: u64,
    /// Parts of packages that came.
    pub chunks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Requests that brought none.
    pub failures: u64,
    /// Bytes used of the present day's budget, and that.
    pub day_bytes: (u64, u64),
    /// The same of 30 days.
    pub month_bytes: (u64, u64),
    /// What happened last, oldest first.
    pub events: Vec<String>,
}

/// What became of an offer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferStatus {
    /// The task.
    pub task: String,
    /// The version.
    pub version: u64,
    /// `waiting`, `fetching`, `fetched` or `refused`.
    pub state: String,
    /// Why.
    pub reason: String,
    /// Bytes that are here, while it is fetched.
    pub have_bytes: u64,
    /// Of how many.
    pub len_bytes: u64,
}

pub(super) fn fetch(gateway: &Gateway) -> FetchStatus {
    let view = gateway.fetches();
    let (counters, spent, limits) = (view.counters(), view.spent(), view.limits().unwrap_or_default());
    let offers = view.said().map(|news| {
        let under_way = view.under_way().filter(|(task, version, ..)| (*task, *version) == (news.task.as_str(), news.version));
        let (have_bytes, len_bytes) = under_way.map_or((0, 0), |(_, _, have, len)| (have, len));
        let (task, reason, state) = (news.task.clone(), news.reason.clone(), news.word().to_owned());
        OfferStatus { task, version: news.version, state, reason, have_bytes, len_bytes }
    });
    FetchStatus {
        offers: offers.collect(),
        offered: counters.offers,
        refused: counters.refused,
        packages: counters.packages,
        chunks: counters.chunks,
        bytes: counters.bytes,
        failures: counters.failures,
        day_bytes: (spent.day_bytes, limits.0),
        month_bytes: (spent.month_bytes, limits.1),
        events: view.events().map(str::to_owned).collect(),
    }
}
