//! A network that does not like UDP: it blocks it, or lets connections begin and then lets nothing through.
//!
//! The second is what some firewalls and carriers do to QUIC, and it is the worse one: the handshake succeeds, so the link
//! looks up, and no data arrives. Here packets with QUIC's long header, which make a handshake, always pass; of the others
//! the first few after a handshake do, in either direction together, and then none until there is another handshake.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::Serialize;

/// What becomes of UDP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UdpPolicy {
    /// It passes.
    #[default]
    Open,
    /// None of it passes.
    Blocked,
    /// Handshakes pass, and the first packets of each flow.
    Throttled,
}

/// Packets without a long header that pass after each packet with one: enough to make a session seem to be up.
const FIRST_PACKETS: u32 = 4;
/// Flows remembered; the one that was silent longest makes room, and may begin anew.
const FLOWS_MAX: usize = 1_024;
/// Marks the packets of a handshake. Source: RFC 9000, 17.2.
const LONG_HEADER: u8 = 0x80;
const PROTOCOL_UDP: u8 = 17;
const IPV4_HEADER_LEN_MIN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const UDP_HEADER_LEN: usize = 8;

/// The two ends of a conversation, the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    lower: SocketAddr,
    upper: SocketAddr,
}

impl Flow {
    /// Between two addresses, in either order.
    pub fn between(one: SocketAddr, other: SocketAddr) -> Self {
        Self { lower: one.min(other), upper: one.max(other) }
    }
}

/// A UDP packet as the gate sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Whose it is.
    pub flow: Flow,
    /// What UDP carries; empty for a fragment that is not the first.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// The UDP packet in an IP packet; `None` for other protocols, and for IPv6 with extension headers.
    pub fn of_ip(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::of_ipv4(packet),
            6 => Self::of_ipv6(packet),
            _ => None,
        }
    }

    fn of_ipv4(packet: &'a [u8]) -> Option<Self> {
        let (header, _) = packet.split_first_chunk::<IPV4_HEADER_LEN_MIN>()?;
        if header[9] != PROTOCOL_UDP {
            return None;
        }
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into();
        let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        let header_len = usize::from(header[0] & 0xf) * 4;
        let body = if fragment_offset == 0 { packet.get(header_len..)? } else { &[] };
        Some(Self::of_body(address(12), address(16), body))
    }

    fn of_ipv6(packet: &'a [u8]) -> Option<Self> {
        let (header, body) = packet.split_first_chunk::<IPV6_HEADER_LEN>()?;
        let address = |at: usize| {
            let octets: Option<&[u8; 16]> = header[at..].first_chunk();
            octets.map(|octets| Ipv6Addr::from(*octets).into())
        };
        if header[6] != PROTOCOL_UDP {
            return None;
        }
        Some(Self::of_body(address(8)?, address(24)?, body))
    }

    fn of_body(from: IpAddr, to: IpAddr, body: &'a [u8]) -> Self {
        let (ports, payload) = match body.split_first_chunk::<UDP_HEADER_LEN>() {
            Some((udp, payload)) => ((u16::from_be_bytes([udp[0], udp[1]]), u16::from_be_bytes([udp[2], udp[3]])), payload),
            None => ((0, 0), &[][..]),
        };
        Self { flow: Flow::between(SocketAddr::new(from, ports.0), SocketAddr::new(to, ports.1)), payload }
    }
}

/// Decides which UDP packets pass.
#[derive(Debug, Default)]
pub struct UdpGate {
    policy: UdpPolicy,
    flows: BTreeMap<Flow, Credit>,
    seen: u64,
}

/// What a flow may still send.
#[derive(Debug, Clone, Copy)]
struct Credit {
    packets: u32,
    last_seen: u64,
}

impl UdpGate {
    /// Changes the policy; under a new one every flow begins anew.
    pub fn set(&mut self, policy: UdpPolicy) {
        if policy != self.policy {
            *self = Self { policy, ..Self::default() };
        }
    }

    /// Whether a packet passes.
    pub fn admits(&mut self, datagram: Datagram<'_>) -> bool {
        match self.policy {
            UdpPolicy::Open => true,
            UdpPolicy::Blocked => false,
            UdpPolicy::Throttled => self.spend(datagram),
        }
    }

    fn spend(&mut self, datagram: Datagram<'_>) -> bool {
        if self.flows.len() >= FLOWS_MAX
            && !self.flows.contains_key(&datagram.flow)
            && let Some(oldest) = self.flows.iter().min_by_key(|(_, credit)| credit.last_seen).map(|(flow, _)| *flow)
        {
            self.flows.remove(&oldest);
        }
        self.seen += 1;
        let credit = self.flows.entry(datagram.flow).or_insert(Credit { packets: FIRST_PACKETS, last_seen: 0 });
        credit.last_seen = self.seen;
        if datagram.payload.first().is_some_and(|first| first & LONG_HEADER != 0) {
            credit.packets = FIRST_PACKETS;
            return true;
        }
        let passes = credit.packets > 0;
        credit.packets = credit.packets.saturating_sub(1);
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> Flow {
        Flow::between(SocketAddr::from(([10, 0, 0, 1], port)), SocketAddr::from(([10, 0, 0, 2], 443)))
    }

    /// An IPv4 packet with a UDP payload.
    fn ipv4(protocol: u8, fragment_offset: u16, from: (u8, u16), to: (u8, u16), payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0];
        packet.extend(fragment_offset.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 10, 0, 0, from.0, 10, 0, 0, to.0]);
        packet.extend(from.1.to_be_bytes());
        packet.extend(to.1.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(payload);
        packet
    }

    #[test]
    fn udp_is_told_from_the_rest_and_a_flow_is_the_same_in_both_directions() {
        let there = ipv4(17, 0, (1, 5_000), (2, 443), b"payload");
        let back = ipv4(17, 0, (2, 443), (1, 5_000), b"");
        let (there, back) = (Datagram::of_ip(&there).unwrap(), Datagram::of_ip(&back).unwrap());
        assert_eq!((there.flow, there.payload), (flow(5_000), &b"payload"[..]));
        assert_eq!((back.flow, back.payload), (flow(5_000), &b""[..]));
        assert_eq!(Datagram::of_ip(&ipv4(6, 0, (1, 5_000), (2, 443), b"tcp")), None);
        // A later fragment is UDP, and has no ports.
        assert_eq!(Datagram::of_ip(&ipv4(17, 100, (1, 5_000), (2, 443), b"x")).unwrap().payload, b"");
        let mut v6 = vec![0x60, 0, 0, 0, 0, 9, 17, 64];
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend(Ipv6Addr::UNSPECIFIED.octets());
        v6.extend([0, 1, 0, 2, 0, 0, 0, 0, 7]);
        assert_eq!(Datagram::of_ip(&v6).unwrap().payload, [7]);
        // Cut short anywhere it is no packet, and no panic.
        let whole = ipv4(17, 0, (1, 5_000), (2, 443), b"");
        assert!((0..20).all(|len| Datagram::of_ip(&whole[..len]).is_none() && Datagram::of_ip(&v6[..len]).is_none()));
        assert!((20..28).all(|len| Datagram::of_ip(&whole[..len]).unwrap().payload.is_empty()));
    }

    #[test]
    fn a_blocked_gate_lets_nothing_through_and_an_open_one_all() {
        let mut gate = UdpGate::default();
        let datagram = Datagram { flow: flow(1), payload: &[0xc0] };
        assert!(gate.admits(datagram));
        gate.set(UdpPolicy::Blocked);
        assert!(!gate.admits(datagram));
        gate.set(UdpPolicy::Open);
        assert!(gate.admits(datagram));
    }

    #[test]
    fn a_throttled_flow_gets_its_handshakes_and_a_few_packets_after_each() {
        let mut gate = UdpGate::default();
        gate.set(UdpPolicy::Throttled);
        let passed = |gate: &mut UdpGate, first: u8, count: u32| {
            (0..count).filter(|_| gate.admits(Datagram { flow: flow(1), payload: &[first, 1, 2] })).count() as u32
        };
        for _ in 0..3 {
            assert_eq!(passed(&mut gate, 0xc3, 50), 50);
            assert_eq!(passed(&mut gate, 0x43, 50), FIRST_PACKETS);
        }
        assert!(gate.admits(Datagram { flow: flow(2), payload: &[0x43] }), "another flow has a credit of its own");
        // The same policy again changes nothing.
        gate.set(UdpPolicy::Throttled);
        assert_eq!(passed(&mut gate, 0x43, 5), 0);
    }

    #[test]
    fn no_more_flows_are_remembered_than_there_is_room_for() {
        let mut gate = UdpGate::default();
        gate.set(UdpPolicy::Throttled);
        for port in 0..2 * FLOWS_MAX as u16 {
            assert!(gate.admits(Datagram { flow: flow(port), payload: &[0x43] }));
        }
        assert_eq!(gate.flows.len(), FLOWS_MAX);
        assert!(gate.flows.contains_key(&flow(2 * FLOWS_MAX as u16 - 1)) && !gate.flows.contains_key(&flow(0)));
    }
}
