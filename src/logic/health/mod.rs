//! How well an uplink works, told from what its own traffic shows.
//!
//! Each file is one small question with one answer: how long does a round trip take ([`PeakEwma`]), how often does it
//! work ([`SuccessRatio`]), how much gets through ([`Goodput`]), is anybody still there ([`SilenceDetector`]), does data
//! pass as well as small talk ([`StallDetector`]), how far may an old answer be trusted ([`Confidence`]), may it be used
//! ([`Breaker`]), what may be spent on looking at it ([`ColdBudget`]). [`UplinkHealth`] puts them together for one uplink.
//!
//! The rule: traffic is the probe. A link that is busy speaks all the time through its acknowledgements, so what it says
//! is free; only a silent one is asked, and only an idle metered one costs money to ask.
//!
//! What surprised us:
//! - A heartbeat behind five seconds of queue looks like a dead link. Any word counts, not the answer to one question.
//! - An idle link delivers nothing, and that says nothing about what it could deliver.
//! - A cloud that is slow to commit looks like a link that is cut. So silence asks (yellow) before it concludes (red).
//!
//! Time is service time in microseconds; a time that goes back counts as standing still. All arithmetic is plain IEEE
//! (`decay`), so that a box and the simulator get the same bits.

pub use breaker::{Breaker, BreakerCounters, BreakerLimits, BreakerState, OpenReason};
pub use cold::{ColdBudget, ColdCounters, ColdLevel, EVENT_GAP_US, MONTH_BYTES_MAX, PROBE_BYTES_MAX, ProbeRefusal};
pub use confidence::{Confidence, combine};
pub(crate) use decay::exp_negative;
pub use ewma::{Jitter, PeakEwma};
pub use goodput::Goodput;
pub use silence::{Rtt, Silence, SilenceDetector};
pub use stall::{StallDetector, StallEvidence};
pub use success::SuccessRatio;
pub use uplink::{
    COLD_HALF_LIFE_US, CloseReason, EVIDENCE_HALF_LIFE_US, PathStats, StateChange, UplinkCounters, UplinkEstimate,
    UplinkHealth, UplinkLimits, UplinkState,
};

mod breaker;
mod cold;
mod confidence;
pub(crate) mod decay;
mod ewma;
mod goodput;
mod silence;
mod stall;
mod success;
mod uplink;
