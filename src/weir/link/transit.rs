//! What is on the way: both directions of a link, its clock, and one heap of packets that are due.
//!
//! Shared by the shells. A shell hands in what it has read ([`Transit::admit`]), sends what has become due
//! ([`Transit::pop_due`]), and waits in [`Transit::wake`], which also hears what is done to the link and publishes statistics.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, binary_heap::PeekMut},
};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::{
    gate::{Datagram, UdpGate},
    model::{Direction, Fate, LinkModel},
    thread::{Control, DirectionStats, LinkStats, Remote},
};

/// Bytes on the way; more are dropped and counted. Source: 100 Mbit/s over 2 s, twice.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// How finely the time without link is measured.
const DOWN_STEP_US: usize = 10_000;
/// How often statistics are published.
const STATS_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);

/// Why a shell is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// Packets are due.
    Due,
    /// It should stop.
    Stop,
}

/// A packet on the way, and where it goes.
#[derive(Debug)]
pub(super) struct Due<T> {
    at_us: u64,
    /// Keeps the order of packets that are due at the same time.
    nth: u64,
    pub(super) to: T,
    pub(super) direction: Direction,
    pub(super) packet: Box<[u8]>,
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at_us, self.nth).cmp(&(other.at_us, other.nth))
    }
}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.nth == other.nth
    }
}

impl<T> Eq for Due<T> {}

/// The link between a shell's two sides; `T` says to whom a packet goes.
#[derive(Debug)]
pub(super) struct Transit<T> {
    start: Instant,
    up: LinkModel,
    down: LinkModel,
    gate: UdpGate,
    due: BinaryHeap<Reverse<Due<T>>>,
    due_seen: u64,
    due_bytes: usize,
    remote: Remote,
    /// Nobody may be left to control it.
    is_controlled: bool,
    ticks: Interval,
    /// What the shell counts itself is written by it.
    pub(super) stats: LinkStats,
}

impl<T> Transit<T> {
    /// A link at time 0. Must be called within a tokio runtime.
    pub(super) fn new(up: LinkModel, down: LinkModel, remote: Remote) -> Self {
        let mut ticks = interval(STATS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self {
            start: Instant::now(),
            up,
            down,
            gate: UdpGate::default(),
            due: BinaryHeap::new(),
            due_seen: 0,
            due_bytes: 0,
            remote,
            is_controlled: true,
            ticks,
            stats: LinkStats { is_up: true, ..LinkStats::default() },
        }
    }

    /// Age of the link.
    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Waits until there is something to do; what is done to the link meanwhile is done. Cancel safe.
    pub(super) async fn wake(&mut self) -> Wake {
        loop {
            let next_due = self.due.peek().map(|Reverse(due)| self.start + std::time::Duration::from_micros(due.at_us));
            tokio::select! {
                biased;
                () = self.remote.shutdown.requested() => return Wake::Stop,
                changed = self.remote.control_rx.changed(), if self.is_controlled => match changed {
                    Ok(()) => self.apply(),
                    Err(_) => self.is_controlled = false,
                },
                _ = self.ticks.tick() => self.publish(),
                () = sleep_until(next_due.unwrap_or(self.start)), if next_due.is_some() => return Wake::Due,
            }
        }
    }

    /// Passes a packet through the gate, if it is UDP, and through the model.
    pub(super) fn admit(&mut self, to: T, direction: Direction, packet: &[u8], datagram: Option<Datagram<'_>>) {
        if datagram.is_some_and(|datagram| !self.gate.admits(datagram)) {
            self.stats.refused_packets += 1;
            return;
        }
        let now_us = self.now_us();
        let model = match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        };
        let Fate::Deliver { at_us } = model.packet(now_us, packet.len()) else { return };
        if self.due_bytes + packet.len() > IN_FLIGHT_BYTES_MAX {
            self.stats.overflow_packets += 1;
            return;
        }
        self.due_bytes += packet.len();
        self.due_seen += 1;
        self.due.push(Reverse(Due { at_us, nth: self.due_seen, to, direction, packet: packet.into() }));
    }

    /// The next packet that is due by then.
    pub(super) fn pop_due(&mut self, now_us: u64) -> Option<Due<T>> {
        let next = self.due.peek_mut().filter(|next| next.0.at_us <= now_us)?;
        let Reverse(due) = PeekMut::pop(next);
        self.due_bytes -= due.packet.len();
        Some(due)
    }

    /// Tells the link as it is.
    pub(super) fn publish(&mut self) {
        self.measure();
        self.remote.stats_tx.send_replace(self.stats);
    }

    fn apply(&mut self) {
        let control = *self.remote.control_rx.borrow_and_update();
        let Control { is_down, rate_scale, rate, loss, delay, udp } = control;
        self.measure();
        for model in [&mut self.up, &mut self.down] {
            model.force_down(is_down);
            model.scale_rate(rate_scale);
            model.force_rate(rate);
            model.force_loss(loss);
            model.force_delay(delay);
        }
        self.gate.set(udp);
        self.stats.control = control;
        self.publish();
    }

    fn measure(&mut self) {
        let now_us = self.now_us();
        for at_us in (self.stats.elapsed_us..now_us).step_by(DOWN_STEP_US) {
            if !self.up.is_up(at_us) {
                self.stats.down_us += (now_us - at_us).min(DOWN_STEP_US as u64);
            }
        }
        let is_up = self.up.is_up(now_us);
        if is_up != self.stats.is_up {
            tracing::info!(is_up, at_ms = now_us / 1_000, "link changed");
        }
        self.stats.is_up = is_up;
        self.stats.elapsed_us = now_us;
        for (model, stats) in [(&mut self.up, &mut self.stats.up), (&mut self.down, &mut self.stats.down)] {
            *stats = DirectionStats {
                counts: model.counts(),
                bits_per_s: model.bits_per_s(now_us),
                queued_bytes: model.queued_bytes(now_us),
            };
        }
    }
}
