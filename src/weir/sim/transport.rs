//! A transport like QUIC over a link whose whole life is known: what is handed over leaves by priority and in packets.
//!
//! What matters for a policy is modelled: bytes that the transport has taken can neither be overtaken nor thinned, streams of one
//! priority take turns, every packet costs its headers, and what is acknowledged is known a round trip later.
//!
//! How much may be under way is decided by the box's own [`Controller`], and how much the transport takes by the box's own
//! [`send_window`]: data in it that has not left is overtaken by streams above its own. Two things differ from QUIC: packets are not
//! paced, and where one would find the link's queue full it waits, where a real one would be lost and sent again.

use std::collections::VecDeque;

use bytes::Bytes;
use weir_logic::congestion::{Controller, send_window};
use weir_logic::ids::Class;
use weir_logic::lanes::Flow;

use super::trace::Link;

/// Bytes of a packet that are not headers: IPv4, UDP, QUIC and its tag, and a stream frame take [`HEADERS`] of 1,452.
const PACKET: u64 = 1_392;
const HEADERS: u64 = 60;
/// IPv4 and UDP, which do not count as under way.
pub(super) const UDP_HEADER: u64 = 28;
const PACKET_BYTES: u64 = PACKET + HEADERS - UDP_HEADER;
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
    /// When it arrives.
    pub arrives_us: u64,
    /// When its acknowledgement is back.
    pub acked_us: u64,
    /// How often it was lost before.
    lost: u32,
}

impl Packet {
    /// Which stream it carries.
    pub(super) fn stream(&self) -> usize {
        self.stream
    }

    /// It was lost so often, each time missed after this time and sent again.
    pub(super) fn lose(&mut self, times: u32, missed_us: u64) {
        let late_us = u64::from(times) * missed_us;
        self.lost = times;
        self.sent_us += late_us;
        self.arrives_us += late_us;
        self.acked_us += late_us;
    }

    /// Bytes that count as under way.
    fn size(&self) -> u64 {
        self.len + HEADERS - UDP_HEADER
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
    controller: Controller,
    /// True if there was nothing more to send when last looked at.
    app_limited: bool,
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
            controller: Controller::new(now_us, PACKET_BYTES),
            app_limited: true,
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
        self.controller.window()
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
        loop {
            let waits = self.in_flight > 0 && self.in_flight + PACKET_BYTES > self.window();
            self.app_limited = self.waiting().is_none();
            if waits || self.app_limited || self.is_queue_full(now_us, link) {
                return;
            }
            let Some(at) = self.choose() else { return };
            let stream = &mut self.streams[at];
            let len = (stream.taken - stream.sent).min(PACKET);
            let start_us = now_us.max(self.link_free_us);
            let ahead = link.service.bytes_until(start_us) + (len + HEADERS) as f64;
            // After the end of the run nothing leaves.
            let Some(left_us) = link.service.time_of_us(ahead) else { return };
            self.link_free_us = left_us;
            stream.sent += len;
            self.sent_packets += 1;
            self.sent_bytes += len + HEADERS;
            let arrives_us = left_us + link.delay_us;
            let acked_us = arrives_us + link.profile.down.delay.as_micros();
            let packet = Packet { stream: at, end: stream.sent, len, sent_us: now_us, arrives_us, acked_us, lost: 0 };
            self.in_flight += packet.size();
            packets.push(packet);
        }
    }

    /// True if the link's queue has no room for another packet.
    fn is_queue_full(&self, now_us: u64, link: &Link) -> bool {
        if self.link_free_us <= now_us {
            return false;
        }
        let queued = link.service.bytes_until(self.link_free_us) - link.service.bytes_until(now_us);
        queued + (PACKET + HEADERS) as f64 > self.queue_bytes as f64
    }

    /// Takes as much as the send window has room for.
    fn take(&mut self, written: &mut Vec<(Flow, u64)>) {
        let limit = send_window(self.window());
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
    fn waiting(&self) -> Option<usize> {
        let turns = (0..6).map(|turn| 2 + (self.next - 2 + turn) % 6);
        [CONTROL, 0, 1].into_iter().chain(turns).find(|&at| self.streams[at].sent < self.streams[at].taken)
    }

    /// The same, and the turn is taken.
    fn choose(&mut self) -> Option<usize> {
        let at = self.waiting()?;
        if (2..CONTROL).contains(&at) {
            self.next = 2 + (at - 1) % 6;
        }
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
        self.in_flight -= packet.size();
        if packet.stream != CONTROL {
            self.unacked -= packet.len;
        }
        self.received_packets += 1;
        let rtt_us = (now_us - packet.sent_us).max(1);
        self.rtt_min_us = self.rtt_min_us.min(rtt_us);
        self.rtt_us = (7 * self.rtt_us + rtt_us) / 8;
        if packet.lost > 0 {
            self.controller.lost(now_us, u64::from(packet.lost) * packet.size(), false);
        }
        self.controller.acked(now_us, packet.sent_us, packet.size());
        self.controller.acks_end(now_us, self.in_flight, self.app_limited);
    }
}

fn index(flow: Flow) -> usize {
    flow.lane.index() * 2 + usize::from(flow.backlog)
}

fn flow(index: usize) -> Flow {
    Flow { lane: Class::ALL[index / 2], backlog: index % 2 == 1 }
}
