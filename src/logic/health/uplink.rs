//! One uplink's health, put together.
//!
//! In goes what the transport, the session and the interface show; out comes one plain [`UplinkEstimate`] for the graph and
//! the plan, and a [`StateChange`] at once when the verdict changes, so that critical data can move.
//!
//! Who calls what:
//! - [`UplinkHealth::path`] with the transport's counters, every 100 to 250 ms while data is under way: each packet that
//!   came is a word. Without it (the TCP fallback) only acknowledgements and heartbeats are words.
//! - [`UplinkHealth::under_way`] and [`UplinkHealth::acked`] with the sender's own books; [`UplinkHealth::pinged`] and
//!   [`UplinkHealth::heartbeat`] for pings; [`UplinkHealth::tick`] a few times a second and at
//!   [`UplinkHealth::deadline_us`]; when [`UplinkHealth::ping_due`] says so, a ping at once.
//! - One `UplinkHealth` per transport of an uplink: that QUIC is blocked says nothing about TCP.

use super::breaker::{Breaker, OpenReason};
use super::cold::{ColdBudget, ProbeRefusal};
use super::confidence::Confidence;
use super::ewma::{Jitter, PeakEwma};
use super::goodput::Goodput;
use super::silence::{Rtt, Silence, SilenceDetector};
use super::stall::{StallDetector, StallEvidence};
use super::success::SuccessRatio;

pub use estimate::{CloseReason, PathStats, StateChange, UplinkCounters, UplinkEstimate, UplinkLimits, UplinkState};

mod estimate;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    Down(Option<CloseReason>),
}

/// All that is estimated of one uplink.
#[derive(Debug, Clone)]
pub struct UplinkHealth {
    metered: bool,
    seed: u64,
    interface_up: bool,
    link: Link,
    rtt: PeakEwma,
    rtt_min_us: Option<u64>,
    jitter: Jitter,
    ack_delay: PeakEwma,
    packets: SuccessRatio,
    loss: f64,
    goodput: Goodput,
    silence: SilenceDetector,
    stall: StallDetector,
    confidence: Confidence,
    breaker: Breaker,
    cold: Option<ColdBudget>,
    path: PathStats,
    /// When the transport's counters were last read on this connection: silence is known up to there.
    looked_us: Option<u64>,
    /// The last ping that has no answer.
    pinged_us: Option<u64>,
    delivered_bytes: u64,
    ticked_us: u64,
    busy_since_us: Option<u64>,
    state: UplinkState,
    change: Option<StateChange>,
    counters: UplinkCounters,
}

impl UplinkHealth {
    /// An uplink of which nothing is known, not connected; its interface counts as up until [`UplinkHealth::interface`].
    ///
    /// A metered one gets `cold`, or a fresh budget if there is none saved.
    pub fn new(now_us: u64, limits: UplinkLimits, cold: Option<ColdBudget>) -> Self {
        let half_life_us = if limits.metered { COLD_HALF_LIFE_US } else { EVIDENCE_HALF_LIFE_US };
        UplinkHealth {
            metered: limits.metered,
            seed: limits.seed,
            interface_up: true,
            link: Link::Down(None),
            rtt: PeakEwma::new(LATENCY_HALF_LIFE_US),
            rtt_min_us: None,
            jitter: Jitter::default(),
            ack_delay: PeakEwma::new(LATENCY_HALF_LIFE_US),
            packets: SuccessRatio::new(LOSS_WINDOW_US, LOSS_PACKETS_MIN),
            loss: 0.0,
            goodput: Goodput::new(now_us, limits.nominal_bps),
            silence: SilenceDetector::new(now_us),
            stall: StallDetector::default(),
            confidence: Confidence::new(half_life_us),
            breaker: Breaker::new(limits.breaker, limits.seed),
            cold: limits.metered.then(|| cold.unwrap_or_else(|| ColdBudget::new(now_us, limits.seed))),
            path: PathStats::default(),
            looked_us: None,
            pinged_us: None,
            delivered_bytes: 0,
            ticked_us: now_us,
            busy_since_us: None,
            state: if limits.metered { UplinkState::Cold } else { UplinkState::Yellow },
            change: None,
            counters: UplinkCounters::default(),
        }
    }

    /// Its bytes cost money from now on, or no longer do. What was spent on probes stays spent.
    pub fn set_metered(&mut self, now_us: u64, metered: bool) {
        if std::mem::replace(&mut self.metered, metered) == metered {
            return;
        }
        self.confidence.set_half_life(if metered { COLD_HALF_LIFE_US } else { EVIDENCE_HALF_LIFE_US });
        if metered && self.cold.is_none() {
            self.cold = Some(ColdBudget::new(now_us, self.seed));
        }
        self.judge(now_us);
    }

    /// The interface came up or went away.
    pub fn interface(&mut self, now_us: u64, up: bool) {
        self.interface_up = up;
        if up {
            self.breaker.retry(now_us);
            if let Some(cold) = &mut self.cold {
                cold.interface_event(now_us);
            }
        }
        self.judge(now_us);
    }

    /// The handshake of a new connection passed.
    pub fn connected(&mut self, now_us: u64) {
        self.link = Link::Up;
        self.counters.connections += 1;
        self.end_of_connection();
        self.stall.connected();
        self.goodput.begin_anew();
        self.rtt_min_us = None;
        self.word(now_us);
        self.judge(now_us);
    }

    /// The connection ended, or could not be made.
    pub fn closed(&mut self, now_us: u64, reason: CloseReason) {
        let silent = self.silence(now_us) == Silence::Red;
        self.link = Link::Down(Some(reason));
        self.end_of_connection();
        self.stall.closed(silent);
        if reason != CloseReason::Local {
            self.counters.failures += 1;
            self.breaker.failure(now_us);
        }
        self.judge(now_us);
    }

    /// The transport's counters as of now.
    pub fn path(&mut self, now_us: u64, stats: &PathStats) {
        let old = if stats.sent_packets < self.path.sent_packets { PathStats::default() } else { self.path };
        let sent = stats.sent_packets - old.sent_packets;
        let lost = stats.lost_packets.saturating_sub(old.lost_packets);
        self.counters.sent_packets = self.counters.sent_packets.saturating_add(sent);
        self.counters.lost_packets = self.counters.lost_packets.saturating_add(lost);
        let sent_bytes = stats.sent_bytes.saturating_sub(old.sent_bytes);
        self.counters.sent_bytes = self.counters.sent_bytes.saturating_add(sent_bytes);
        let backed_off = stats.congestion_events.saturating_sub(old.congestion_events);
        self.counters.congestion_events = self.counters.congestion_events.saturating_add(backed_off);
        let word = match stats.received_packets {
            0 => stats.rtt_us != old.rtt_us,
            received => received != old.received_packets,
        };
        self.path = *stats;
        self.looked_us = Some(now_us);
        self.stall.packets(sent, lost);
        self.packets.record(now_us, sent.saturating_sub(lost), lost);
        if let Some(delivered) = self.packets.ratio(now_us) {
            self.loss = 1.0 - delivered;
        }
        if word {
            if stats.rtt_us > 0 {
                self.round_trip(now_us, stats.rtt_us);
            }
            if stats.rtt_min_us > 0 {
                self.rtt_min_us = Some(self.rtt_min_us.map_or(stats.rtt_min_us, |min_us| min_us.min(stats.rtt_min_us)));
            }
            self.word(now_us);
        }
        self.judge(now_us);
    }

    /// So many bytes are now handed to the transport and not acknowledged; to be told after each change.
    pub fn under_way(&mut self, now_us: u64, bytes: u64) {
        if bytes > 0 {
            self.silence.owe(now_us);
        }
        self.stall.under_way(now_us, bytes);
        self.settle();
    }

    /// Bytes were acknowledged; the oldest of them were handed over at `since_us`.
    pub fn acked(&mut self, now_us: u64, bytes: u64, since_us: u64) {
        self.delivered_bytes = self.delivered_bytes.saturating_add(bytes);
        self.counters.acked_bytes = self.counters.acked_bytes.saturating_add(bytes);
        self.ack_delay.sample(now_us, now_us.saturating_sub(since_us));
        self.stall.acked(now_us);
        self.word(now_us);
        self.breaker.success(now_us);
        self.judge(now_us);
    }

    /// True if something came through after an outage, and that is not counted yet.
    pub fn has_resumed(&self) -> bool {
        self.delivered_bytes > 0 && self.goodput.is_starved()
    }

    /// A ping was sent.
    pub fn pinged(&mut self, now_us: u64) {
        self.pinged_us = Some(now_us);
        self.silence.owe(now_us);
    }

    /// A ping was answered after `rtt_us`.
    pub fn heartbeat(&mut self, now_us: u64, rtt_us: u64) {
        self.pinged_us = None;
        self.round_trip(now_us, rtt_us);
        self.word(now_us);
        self.settle();
        if !self.stall.is_blocked() {
            // Where data does not pass, small talk that does is no recovery.
            self.breaker.success(now_us);
        }
        self.judge(now_us);
    }

    /// An exchange over this uplink did not come to its end in the time it had.
    pub fn failed(&mut self, now_us: u64) {
        self.breaker.failure(now_us);
        self.judge(now_us);
    }

    /// Lets time pass. `had_more_to_send`: since the last tick there was always something waiting for *this* uplink.
    pub fn tick(&mut self, now_us: u64, had_more_to_send: bool) {
        self.busy_since_us = had_more_to_send.then(|| self.busy_since_us.unwrap_or(self.ticked_us));
        // In the first round trip of a busy time nothing can be acknowledged yet; that is no evidence of a slow link. Nor is
        // a connection that nobody wanted.
        let wanted = matches!(self.state, UplinkState::Red | UplinkState::Blocked) || self.link == Link::Up;
        let was_limit =
            self.busy_since_us.is_some_and(|since_us| self.ticked_us >= since_us.saturating_add(self.rtt(now_us).us));
        self.goodput.step(now_us, self.delivered_bytes, wanted && was_limit);
        self.delivered_bytes = 0;
        self.ticked_us = self.ticked_us.max(now_us);
        self.judge(now_us);
    }

    /// Judges anew what is known; at [`UplinkHealth::deadline_us`], and whenever the verdict is asked for.
    pub fn look(&mut self, now_us: u64) {
        self.judge(now_us);
    }

    /// The change of the verdict since the last call, if any; several are one, from the first state to the last.
    pub fn take_change(&mut self) -> Option<StateChange> {
        self.change.take().filter(|change| change.from != change.to)
    }

    /// True if a word is late and nobody has asked yet: send a ping and call [`UplinkHealth::pinged`].
    pub fn ping_due(&self, now_us: u64) -> bool {
        let asked = self.pinged_us.is_some_and(|at_us| at_us > self.silence.heard_us());
        self.link == Link::Up && !asked && self.silence(now_us) == Silence::Yellow
    }

    /// When to call [`UplinkHealth::path`] and [`UplinkHealth::tick`] again at the latest; `None` if nothing is due.
    pub fn deadline_us(&self, now_us: u64) -> Option<u64> {
        let rtt = self.rtt(now_us);
        let silence_us = self.silence.deadline_us(now_us, rtt).filter(|_| self.link == Link::Up);
        let stall_us = self.stall.deadline_us(rtt.us, self.drain_us()).filter(|&at_us| at_us > now_us);
        silence_us.into_iter().chain(stall_us).chain(self.breaker.deadline_us()).min()
    }

    /// Asks for the one trial of a half-open breaker; the next acknowledgement, heartbeat or failure is its result.
    pub fn trial(&mut self, now_us: u64) -> bool {
        self.breaker.trial(now_us)
    }

    /// Asks for a probe of an uplink that is cold; end it with [`UplinkHealth::probe_ended`].
    ///
    /// # Errors
    /// If it must not be probed now; an unmetered uplink needs no permission.
    pub fn probe(&mut self, now_us: u64) -> Result<(), ProbeRefusal> {
        self.cold.as_mut().map_or(Ok(()), |cold| cold.begin(now_us))
    }

    /// A probe ended and cost so many bytes in both directions.
    pub fn probe_ended(&mut self, now_us: u64, used_bytes: u64) {
        if let Some(cold) = &mut self.cold {
            cold.end(now_us, used_bytes);
        }
    }

    /// What is known as of now.
    pub fn estimate(&self, now_us: u64) -> UplinkEstimate {
        let rtt = self.rtt(now_us);
        UplinkEstimate {
            rtt_us: rtt.us,
            jitter_us: self.jitter.value_us(),
            loss: self.loss,
            goodput_bps: self.goodput.fast_bps(),
            capacity_bps: self.goodput.mean_bps(),
            queueing_delay_us: self.rtt.last_us().map_or(0, |last_us| last_us.saturating_sub(rtt.min_us)),
            ack_delay_us: self.ack_delay.value_us(now_us),
            cwnd_bytes: self.path.cwnd_bytes,
            error_ratio: self.breaker.error_ratio(now_us),
            state: self.state,
            breaker: self.breaker.state(),
            confidence: self.confidence.value(now_us),
            updated_us: self.confidence.evidence_us().unwrap_or(0),
        }
    }

    /// Bytes it is expected to carry in the next `horizon_us`; see [`Goodput::capacity_bytes`].
    pub fn capacity_bytes(&self, horizon_us: u64) -> f64 {
        self.goodput.capacity_bytes(horizon_us)
    }

    /// The breaker, for its reason and counts.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// The budget of probes, if metered: for its counts, and its level to be saved.
    pub fn cold(&self) -> Option<&ColdBudget> {
        self.cold.as_ref()
    }

    /// Sums over all connections.
    pub fn counters(&self) -> UplinkCounters {
        self.counters
    }

    fn end_of_connection(&mut self) {
        self.path = PathStats::default();
        (self.looked_us, self.pinged_us) = (None, None);
        self.silence.settle();
    }

    fn settle(&mut self) {
        if self.pinged_us.is_none() && self.stall.under_way_bytes() == 0 {
            self.silence.settle();
        }
    }

    fn word(&mut self, now_us: u64) {
        self.silence.heard(now_us);
        self.confidence.renew(now_us);
    }

    fn round_trip(&mut self, now_us: u64, rtt_us: u64) {
        self.rtt.sample(now_us, rtt_us);
        self.jitter.sample(rtt_us);
        self.rtt_min_us = Some(self.rtt_min_us.map_or(rtt_us, |min_us| min_us.min(rtt_us)));
    }

    fn rtt(&self, now_us: u64) -> Rtt {
        let us = self.rtt.value_us(now_us).unwrap_or(RTT_US_UNKNOWN);
        Rtt { us, min_us: self.rtt_min_us.unwrap_or(us).min(us) }
    }

    /// Judges the silence up to where it is known.
    fn silence(&self, now_us: u64) -> Silence {
        // What came after the last look is not known yet; but who no longer looks cannot hide behind that.
        let known_us = self.looked_us.filter(|&looked_us| now_us.saturating_sub(looked_us) <= LOOK_US_MAX).unwrap_or(now_us);
        self.silence.state(known_us.min(now_us), self.rtt(now_us))
    }

    /// Time in microseconds that the bytes under way should take.
    fn drain_us(&self) -> u64 {
        (self.stall.under_way_bytes() as f64 * 8.0 / self.goodput.mean_bps().max(1.0) * 1e6) as u64
    }

    fn judge(&mut self, now_us: u64) {
        self.breaker.advance(now_us);
        let state = self.verdict(now_us);
        if state == self.state {
            return;
        }
        let reason = match (state, self.link) {
            (UplinkState::Green | UplinkState::Yellow | UplinkState::Cold, _) => None,
            _ if !self.interface_up => Some(OpenReason::InterfaceDown),
            (UplinkState::Blocked, _) => Some(OpenReason::Blocked { stalled_us: self.stall.stalled_us(now_us) }),
            (UplinkState::Red, Link::Up) => Some(OpenReason::Silent { silent_us: self.silence.silent_us(now_us) }),
            (UplinkState::Red, Link::Down(_)) => Some(OpenReason::Disconnected),
        };
        if let Some(reason) = reason {
            self.breaker.trip(now_us, reason);
        }
        let from = self.change.map_or(self.state, |change| change.from);
        self.change = Some(StateChange { from, to: state, at_us: now_us });
        self.state = state;
        self.counters.state_changes += 1;
    }

    fn verdict(&mut self, now_us: u64) -> UplinkState {
        if !self.interface_up {
            return UplinkState::Red;
        }
        if let Link::Down(reason) = self.link {
            return match reason {
                _ if self.stall.is_blocked() => UplinkState::Blocked,
                None | Some(CloseReason::Local) if self.metered => UplinkState::Cold,
                None | Some(CloseReason::Local) => UplinkState::Yellow,
                Some(CloseReason::Peer | CloseReason::Lost | CloseReason::ConnectFailed) => UplinkState::Red,
            };
        }
        let silence = self.silence(now_us);
        let rtt = self.rtt(now_us);
        let evidence = StallEvidence {
            rtt_us: rtt.us,
            drain_us: self.drain_us(),
            heard_us: self.silence.heard_us(),
            silent: silence == Silence::Red,
        };
        if self.stall.judge(now_us, &evidence) {
            return UplinkState::Blocked;
        }
        match silence {
            Silence::Red => UplinkState::Red,
            Silence::Yellow => UplinkState::Yellow,
            Silence::Green => UplinkState::Green,
        }
    }
}

/// Round trip before there is one: QUIC's initial value (RFC 9002, 6.2.2), 333 ms.
const RTT_US_UNKNOWN: u64 = 333_000;
/// Linkerd's decay of 10 s as a half life.
const LATENCY_HALF_LIFE_US: u64 = 7_000_000;
/// Twice the longest time between two looks at the transport's counters that is asked for.
const LOOK_US_MAX: u64 = 500_000;
/// Loss is judged over some seconds: longer than a burst of it, shorter than a drive out of the cell.
const LOSS_WINDOW_US: u64 = 10_000_000;
/// One of 20 packets is the 5 % at which people in the field fail over.
const LOSS_PACKETS_MIN: u64 = 20;
/// Heartbeats come every few seconds: a minute without any leaves half of the trust.
pub const EVIDENCE_HALF_LIFE_US: u64 = 60_000_000;
/// A cold uplink is looked at once an hour, and must not be forgotten before.
pub const COLD_HALF_LIFE_US: u64 = 3_600_000_000;

#[cfg(test)]
mod tests;
