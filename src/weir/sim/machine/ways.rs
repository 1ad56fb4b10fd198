//! One uplink of a simulated box: its link, the connection over it, and what is lost on the way.
//!
//! The link's curve is what is left after losses. Where packets are lost a loss costs time: the packet arrives after it was
//! missed and sent again, and what came after it on its stream waits for it.

use bytes::BytesMut;
use weir_logic::gateway::Input;
use weir_logic::health::PathStats;
use weir_logic::lanes::Flow;
use weir_logic::receive::{self, SessionId};
use weir_logic::wire::{self, Body};

use super::super::trace::Link;
use super::super::transport::{Arrived, Packet, STREAMS, Transport, UDP_HEADER};
use super::{Event, World};
use crate::link::model::Random;

/// Times that one packet is lost at most: at the highest loss a profile may have, one in ten thousand would be lost more often.
const LOSSES_MAX: u32 = 88;

/// One uplink.
pub(super) struct Way<'a> {
    pub(super) link: &'a Link,
    /// Number of the present connection or attempt; 0 before the first.
    pub(super) connection: u64,
    pub(super) transport: Option<Transport>,
    /// Control bytes that came and are no whole message yet.
    pub(super) to_cloud: BytesMut,
    /// Bytes of connections that have ended.
    sent_bytes: u64,
    lost_packets: u64,
    /// Of the present connection, by stream: when what left last arrives.
    arrives_us: [u64; STREAMS],
    random: Random,
}

impl<'a> Way<'a> {
    pub(super) fn new(link: &'a Link, seed: u64) -> Way<'a> {
        Way {
            link,
            connection: 0,
            transport: None,
            to_cloud: BytesMut::new(),
            sent_bytes: 0,
            lost_packets: 0,
            arrives_us: [0; STREAMS],
            random: Random::new(seed ^ link.seed, 11),
        }
    }

    /// When a handshake that begins now is over, if it is before the end of the run: a packet there, one back, and one there
    /// again with the first words.
    pub(super) fn handshake_us(&self, now_us: u64) -> Option<u64> {
        let hello = 1_300.0;
        let left_us = self.link.service.time_of_us(self.link.service.bytes_until(now_us) + hello)?;
        Some(left_us + self.link.rtt_us())
    }

    pub(super) fn connected(&mut self, now_us: u64) {
        self.transport = Some(Transport::new(now_us, self.link));
        self.to_cloud.clear();
        (self.lost_packets, self.arrives_us) = (0, [0; STREAMS]);
    }

    /// True if there was a connection.
    pub(super) fn disconnect(&mut self) -> bool {
        let ended = self.transport.take();
        self.sent_bytes += ended.as_ref().map_or(0, |transport| transport.sent_bytes);
        ended.is_some()
    }

    pub(super) fn arrived(&mut self, packet: &Packet) -> Vec<Arrived> {
        self.transport.as_mut().map(|transport| transport.arrived(packet)).unwrap_or_default()
    }

    pub(super) fn acked(&mut self, now_us: u64, packet: &Packet) {
        if let Some(transport) = &mut self.transport {
            transport.acked(now_us, packet);
        }
    }

    /// Packets that leave now, and blocks that the transport has taken whole.
    pub(super) fn advance(&mut self, now_us: u64) -> (Vec<Packet>, Vec<(Flow, u64)>) {
        let (mut packets, mut written) = (Vec::new(), Vec::new());
        if let Some(transport) = &mut self.transport {
            transport.advance(now_us, self.link, &mut packets, &mut written);
        }
        packets.iter_mut().for_each(|packet| self.lose(now_us, packet));
        (packets, written)
    }

    /// Bytes that left, headers included.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes + self.transport.as_ref().map_or(0, |transport| transport.sent_bytes)
    }

    /// The connection's statistics, if there is one.
    pub(super) fn path(&self) -> Option<PathStats> {
        let transport = self.transport.as_ref()?;
        let (rtt_us, rtt_min_us) = transport.rtt_us();
        Some(PathStats {
            rtt_us,
            rtt_min_us,
            received_packets: transport.received_packets,
            sent_packets: transport.sent_packets + self.lost_packets,
            lost_packets: self.lost_packets,
            sent_bytes: transport.sent_bytes - UDP_HEADER * transport.sent_packets,
            cwnd_bytes: transport.window(),
            ..PathStats::default()
        })
    }

    /// Each time that a packet is lost it is missed after nine eighths of a round trip (RFC 9002, 6.1.2) and sent again.
    fn lose(&mut self, now_us: u64, packet: &mut Packet) {
        let loss = self.link.loss_at(now_us).unwrap_or(0.0);
        let missed_us = self.transport.as_ref().map_or(0, |transport| transport.rtt_us().0) * 9 / 8;
        let lost = (0..LOSSES_MAX).take_while(|_| self.random.unit() < loss).count() as u32;
        self.lost_packets += u64::from(lost);
        packet.lose(lost, missed_us);
        // What is behind it on its stream is acked as it comes, and handed on when it is complete.
        let last_us = &mut self.arrives_us[packet.stream()];
        packet.arrives_us = packet.arrives_us.max(*last_us);
        *last_us = packet.arrives_us;
    }
}

impl World<'_> {
    /// The cloud says something at the present time. Like the real one it does so on its newest session with the box; whether
    /// that still lives only time will tell it.
    pub(in super::super) fn hear(&mut self, body: Body) {
        let newest =
            (0..self.ways.len()).filter(|&at| self.ways[at].transport.is_some()).max_by_key(|&at| self.ways[at].connection);
        if let Some(at) = newest.filter(|&at| self.ways[at].link.carries(self.now_us)) {
            self.say(at, body);
        }
    }

    pub(super) fn say(&mut self, at: usize, body: Body) {
        let way = &self.ways[at];
        let (arrives_us, of) = (self.now_us + way.link.profile.down.delay.as_micros(), Some((at, way.connection)));
        let mut bytes = Vec::new();
        wire::encode_control(body, &mut bytes);
        self.push(arrives_us, of, Event::Control(bytes));
    }

    pub(super) fn advance(&mut self) {
        let mut has_written = false;
        for at in 0..self.ways.len() {
            let (packets, written) = self.ways[at].advance(self.now_us);
            let of = Some((at, self.ways[at].connection));
            for packet in packets {
                self.push(packet.arrives_us, of, Event::Arrives(packet));
                self.push(packet.acked_us, of, Event::Acked(packet));
            }
            has_written |= !written.is_empty();
            for (flow, len) in written {
                self.input(Input::UplinkWritten { uplink: at as u8, flow, len });
            }
        }
        if has_written {
            self.carry_out();
        }
    }

    pub(super) fn connect(&mut self, at: usize) {
        self.connections += 1;
        self.ways[at].connection = self.connections;
        if let Some(connected_us) = self.ways[at].handshake_us(self.now_us) {
            self.push(connected_us, Some((at, self.connections)), Event::Connected);
        }
    }

    pub(super) fn disconnect(&mut self, at: usize) {
        let session = SessionId(self.ways[at].connection);
        self.connections += 1;
        self.ways[at].connection = self.connections;
        if self.ways[at].disconnect() {
            self.cloud(receive::Input::Closed { session });
        }
    }
}
