//! A transport like QUIC over a link whose whole life is known: what is handed over leaves by priority and in packets.
//!
//! What matters for a policy is modelled: bytes that the transport has taken can neither be overtaken nor thinned, their
//! number follows the bandwidth-delay product, streams of one priority take turns, every packet costs its headers, and
//! what is acknowledged is known a round trip later. Loss is not: the rate of a trace is what is left after it.
//!
//! The congestion window is twice the bandwidth-delay product, from the highest delivery rate of the last ten rounds and
//! the lowest round trip, as BBR is meant to keep it, and never more than the link's queue can hold beside what is on the way. quinn's
//! controllers differ, see `src/ARCHITECTURE.md`. The send window is what the box's shell makes of it: data in it that has not left
//! is overtaken by streams above its own.

use std::collections::VecDeque;

use bytes::Bytes;
use weir_logic::ids::Class;
use weir_logic::lanes::Flow;

use super::trace::Link;

/// Bytes of a packet that are not headers: IPv4, UDP, QUIC and its tag, and a stream frame take [`HEADERS`] of 1,452.
const PACKET: u64 = 1_392;
const HEADERS: u64 = 60;
/// Window before anything is measured, and the least; source: RFC 9002, 7.2, and BBR's.
const WINDOW_AT_FIRST: u64 = 10 * PACKET;
const WINDOW_MIN: u64 = 4 * PACKET;
const WINDOW_MAX: u64 = 8 * 1024 * 1024;
/// The shell's smallest send window.
const SEND_WINDOW_MIN: u64 = 32 * 1024;
/// Round trips for which a delivery rate counts, as in BBR.
const RATE_ROUNDS: u64 = 10;
/// The control stream, above all lanes.
const CONTROL: usize = 8;
pub(super) const STREAMS: usize = 9;

/// What arrives at the far end.
#[derive(Debug)]
pub enum Arrived {
    /// A whole block.
    Block(Flow, Bytes),
    /// Bytes of the control stream.
    Control(Vec<u8>),
}

/// A packet on its way.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    stream: usize,
    /// Bytes of the stream sent up to and with this packet.
    end: u64,
    len: u64,
    sent_us: u64,
    delivered_before: u64,
    /// When it arrives.
    pub arrives_us: u64,
    /// When its acknowledgement is back.
    pub acked_us: u64,
}

impl Packet {
    /// Which stream it carries.
    pub(super) fn stream(&self) -> usize {
        self.stream
    }
}

#[derive(Debug, Default)]
struct Stream {
    /// Handed over, not yet taken into the send window.
    waiting: VecDeque<Bytes>,
    /// Taken, sent and arrived bytes.
    taken: u64,
    sent: u64,
    /// End of each block that has not arrived.
    ends: VecDeque<(u64, Bytes)>,
    /// Part of the first waiting block that is taken.
    partly: usize,
}

/// One connection.
#[derive(Debug)]
pub struct Transport {
    streams: [Stream; STREAMS],
    in_flight: u64,
    unacked: u64,
    link_free_us: u64,
    next: usize,
    delivered: u64,
    rates: VecDeque<(u64, f64)>,
    rtt_min_us: u64,
    rtt_us: u64,
    /// Bytes that may wait in the modem.
    queue_bytes: u64,
    /// Counters for the path's statistics.
    pub sent_packets: u64,
    /// As above.
    pub sent_bytes: u64,
    /// Acknowledgements that came.
    pub received_packets: u64,
}

impl Transport {
    /// A connection on which nothing was sent.
    pub fn new(now_us: u64, link: &Link) -> Self {
        let rtt_us = link.rtt_us();
        Transport {
            streams: Default::default(),
            in_flight: 0,
            unacked: 0,
            link_free_us: now_us,
            next: 2,
            delivered: 0,
            rates: VecDeque::new(),
            rtt_min_us: rtt_us,
            rtt_us,
            queue_bytes: link.profile.up.queue.get(),
            sent_packets: 0,
            sent_bytes: 0,
            received_packets: 0,
        }
    }

    /// Smoothed and shortest round trip in microseconds.
    pub fn rtt_us(&self) -> (u64, u64) {
        (self.rtt_us, self.rtt_min_us)
    }

    /// Congestion window in bytes.
    pub fn window(&self) -> u64 {
        if self.rates.is_empty() {
            return WINDOW_AT_FIRST;
        }
        let rate = self.rates.iter().map(|&(_, rate)| rate).fold(0.0, f64::max);
        let on_the_way = (rate * self.rtt_min_us as f64) as u64;
        (on_the_way + on_the_way.min(self.queue_bytes)).clamp(WINDOW_MIN, WINDOW_MAX)
    }

    /// Takes a block to be sent.
    pub fn send(&mut self, flow: Flow, block: Bytes) {
        self.streams[index(flow)].waiting.push_back(block);
    }

    /// Takes bytes of the control stream.
    pub fn control(&mut self, bytes: Vec<u8>) {
        let stream = &mut self.streams[CONTROL];
        stream.taken += bytes.len() as u64;
        stream.ends.push_back((stream.taken, bytes.into()));
    }

    /// Moves what can be moved; returns packets that left, and blocks of which the last byte was taken.
    pub fn advance(&mut self, now_us: u64, link: &Link, packets: &mut Vec<Packet>, written: &mut Vec<(Flow, u64)>) {
        self.take(written);
        while self.in_flight < self.window() {
            let Some(at) = self.choose() else { return };
            let stream = &mut self.streams[at];
            let len = (stream.taken - stream.sent).min(PACKET);
            let start_us = now_us.max(self.link_free_us);
            let ahead = link.service.bytes_until(start_us) + (len + HEADERS) as f64;
            // After the end of the run nothing leaves.
            let Some(left_us) = link.service.time_of_us(ahead) else { return };
            self.link_free_us = left_us;
            stream.sent += len;
            self.in_flight += len;
            self.sent_packets += 1;
            self.sent_bytes += len + HEADERS;
            let arrives_us = left_us + link.delay_us;
            let acked_us = arrives_us + link.profile.down.delay.as_micros();
            let (end, delivered_before) = (stream.sent, self.delivered);
            packets.push(Packet { stream: at, end, len, sent_us: now_us, delivered_before, arrives_us, acked_us });
        }
    }

    /// Lets the send window follow the congestion window: twice of it may be taken and unacknowledged.
    fn take(&mut self, written: &mut Vec<(Flow, u64)>) {
        let limit = (2 * self.window()).clamp(SEND_WINDOW_MIN, WINDOW_MAX);
        let mut order: Vec<usize> = vec![0, 1];
        order.extend((0..6).map(|turn| 2 + (self.next - 2 + turn) % 6));
        for at in order {
            let stream = &mut self.streams[at];
            while self.unacked < limit
                && let Some(block) = stream.waiting.front()
            {
                // Each block has its length before it.
                let whole = block.len() + 4;
                let piece = (whole - stream.partly).min((limit - self.unacked) as usize);
                stream.partly += piece;
                stream.taken += piece as u64;
                self.unacked += piece as u64;
                if stream.partly == whole {
                    let block = stream.waiting.pop_front().expect("it was there just now");
                    written.push((flow(at), block.len() as u64));
                    stream.ends.push_back((stream.taken, block));
                    stream.partly = 0;
                }
            }
        }
    }

    /// The stream that sends next: control, critical, then the others in turns.
    fn choose(&mut self) -> Option<usize> {
        let has = |streams: &[Stream; STREAMS], at: usize| streams[at].sent < streams[at].taken;
        if let Some(at) = [CONTROL, 0, 1].into_iter().find(|&at| has(&self.streams, at)) {
            return Some(at);
        }
        let at = (0..6).map(|turn| 2 + (self.next - 2 + turn) % 6).find(|&at| has(&self.streams, at))?;
        self.next = 2 + (at - 1) % 6;
        Some(at)
    }

    /// A packet arrived: what that completes.
    pub fn arrived(&mut self, packet: &Packet) -> Vec<Arrived> {
        let stream = &mut self.streams[packet.stream];
        let mut arrived = Vec::new();
        while stream.ends.front().is_some_and(|&(end, _)| end <= packet.end) {
            let Some((_, bytes)) = stream.ends.pop_front() else { break };
            arrived.push(match packet.stream {
                CONTROL => Arrived::Control(bytes.to_vec()),
                at => Arrived::Block(flow(at), bytes),
            });
        }
        arrived
    }

    /// A packet's acknowledgement is back.
    pub fn acked(&mut self, now_us: u64, packet: &Packet) {
        self.in_flight -= packet.len;
        if packet.stream != CONTROL {
            self.unacked -= packet.len;
        }
        self.received_packets += 1;
        self.delivered += packet.len;
        let rtt_us = (now_us - packet.sent_us).max(1);
        self.rtt_min_us = self.rtt_min_us.min(rtt_us);
        self.rtt_us = (7 * self.rtt_us + rtt_us) / 8;
        let rate = (self.delivered - packet.delivered_before) as f64 / rtt_us as f64;
        while self.rates.back().is_some_and(|&(_, older)| older <= rate) {
            self.rates.pop_back();
        }
        self.rates.push_back((now_us, rate));
        let counts_us = RATE_ROUNDS * self.rtt_us;
        while self.rates.front().is_some_and(|&(at_us, _)| at_us + counts_us < now_us) && self.rates.len() > 1 {
            self.rates.pop_front();
        }
    }
}

fn index(flow: Flow) -> usize {
    flow.lane.index() * 2 + usize::from(flow.backlog)
}

fn flow(index: usize) -> Flow {
    Flow { lane: Class::ALL[index / 2], backlog: index % 2 == 1 }
}
