//! The shell that carries IP: two TUN devices, one in each of two network namespaces.
//!
//! What is routed into one device passes through the model and comes out of the other, so that any program crosses the link
//! unchanged, TCP as well as QUIC. A device belongs to the namespace of the thread that opens it and can be used from any, so
//! each end is opened by a thread of its own ([`super::netns::enter`]) and both are served by one. The devices live as long
//! as the link. The kernel keeps up to 500 packets for a device that is not read in time; it is read at once, so
//! that packets wait in the model's queue and nowhere else.

use std::{io, net::Ipv4Addr, str::FromStr};

use tokio::runtime::Handle;
use tokio_tun::Tun;

use super::{
    gate::Datagram,
    model::{Direction, LinkModel},
    netns::{NamespaceError, enter},
    profile::LinkProfile,
    thread::{LinkThread, Remote},
    transit::{Transit, Wake},
};

/// Packets read from one device before the other has its turn.
const BATCH_PACKETS: usize = 128;
/// Largest IP packet.
const PACKET_LEN_MAX: usize = 65_535;
/// Longest name of a device. Source: IFNAMSIZ, less its end.
const NAME_LEN_MAX: usize = 15;

/// What a link between two namespaces needs.
#[derive(Debug, Clone)]
pub struct TunSetup {
    /// Name of both devices.
    pub device: String,
    /// Where the box is.
    pub a: TunEnd,
    /// Where the cloud is.
    pub b: TunEnd,
    /// What the link is like.
    pub profile: LinkProfile,
    /// Same seed, same losses, jitter and shifts.
    pub seed: u64,
}

/// One end of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunEnd {
    /// Its namespace; `None` for the caller's.
    pub netns: Option<String>,
    /// Its address.
    pub addr: Ipv4Net,
}

/// An address and the length of its network's prefix: `10.9.0.1/30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Net {
    /// The address itself.
    pub addr: Ipv4Addr,
    /// Bits that name the network.
    pub prefix_len: u8,
}

impl Ipv4Net {
    /// A one for each bit of the prefix.
    pub fn netmask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0))
    }

    fn network(self) -> Ipv4Addr {
        self.addr & self.netmask()
    }
}

impl FromStr for Ipv4Net {
    type Err = TunError;

    fn from_str(text: &str) -> Result<Self, TunError> {
        let parsed = text.split_once('/').and_then(|(addr, prefix_len)| {
            let prefix_len = prefix_len.parse().ok().filter(|len| (1..=30).contains(len))?;
            Some(Self { addr: addr.parse().ok()?, prefix_len })
        });
        parsed.ok_or_else(|| TunError::Address { text: text.to_owned() })
    }
}

impl std::fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix_len)
    }
}

/// Why there is no link between two namespaces.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// An address is none.
    #[error("`{text}` is not an IPv4 address with a prefix of 1 to 30 bits, like 10.9.0.1/30")]
    Address {
        /// As given.
        text: String,
    },
    /// The ends could not reach each other.
    #[error("{a} and {b} are not two addresses of one network; 10.9.0.1/30 and 10.9.0.2/30 are")]
    Apart {
        /// One end.
        a: Ipv4Net,
        /// The other.
        b: Ipv4Net,
    },
    /// Both ends are in one place, where the kernel would deliver packets without the link.
    #[error("both ends are in one namespace, where packets would not cross the link; give each end its own")]
    OneNamespace,
    /// No device can have this name.
    #[error("`{name}` is no name for a device: 1 to {NAME_LEN_MAX} characters without spaces and slashes")]
    Name {
        /// As given.
        name: String,
    },
    /// The namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The device cannot be made.
    #[error("the TUN device `{device}` cannot be made{}: {reason}", advice(reason))]
    Device {
        /// Its name.
        device: String,
        /// The kernel's reason.
        reason: String,
    },
    /// The runtime or a thread.
    #[error("the link cannot run")]
    Io(#[from] io::Error),
}

fn advice(reason: &str) -> &'static str {
    if reason.contains("EPERM") || reason.contains("Permission denied") {
        "; run this as root"
    } else if reason.contains("EBUSY") {
        "; choose another name, there is one already"
    } else if reason.contains("No such file") {
        "; the kernel has no TUN, try `modprobe tun`"
    } else {
        ""
    }
}

/// Makes both devices and starts the link on a thread of its own; the devices are up when this returns.
///
/// # Errors
/// What is wrong with the setup, or what the system refuses.
pub fn start(setup: TunSetup) -> Result<LinkThread, TunError> {
    check(&setup)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let a = open(&setup, &setup.a, runtime.handle())?;
    let b = open(&setup, &setup.b, runtime.handle())?;
    Ok(LinkThread::spawn(runtime, move |remote| run(a, b, setup, remote))?)
}

impl TunSetup {
    /// Largest packet that both directions carry.
    pub fn mtu(&self) -> u64 {
        self.profile.up.mtu.min(self.profile.down.mtu).get()
    }
}

fn check(setup: &TunSetup) -> Result<(), TunError> {
    let (a, b, name) = (&setup.a, &setup.b, &setup.device);
    if a.netns == b.netns {
        return Err(TunError::OneNamespace);
    }
    if (a.addr.network(), a.addr.prefix_len) != (b.addr.network(), b.addr.prefix_len) || a.addr == b.addr {
        return Err(TunError::Apart { a: a.addr, b: b.addr });
    }
    // The kernel would number a name with a `%`.
    let is_name =
        (1..=NAME_LEN_MAX).contains(&name.len()) && !name.contains(|c: char| c.is_whitespace() || "/%:\0".contains(c));
    if is_name && name != "." && name != ".." { Ok(()) } else { Err(TunError::Name { name: name.clone() }) }
}

/// Opens an end in its namespace.
fn open(setup: &TunSetup, end: &TunEnd, handle: &Handle) -> Result<Tun, TunError> {
    let mtu = i32::try_from(setup.mtu()).unwrap_or(i32::MAX);
    let make = || {
        if let Some(name) = &end.netns {
            enter(name)?;
        }
        let _entered = handle.enter();
        let builder = Tun::builder().name(&setup.device).address(end.addr.addr).netmask(end.addr.netmask()).mtu(mtu).up();
        let failed = |reason: String| TunError::Device { device: setup.device.clone(), reason };
        let devices = builder.build().map_err(|err| failed(err.to_string()))?;
        devices.into_iter().next().ok_or_else(|| failed("the kernel gave none".to_owned()))
    };
    // The namespace is the thread's and ends with it.
    std::thread::scope(|scope| scope.spawn(make).join()).map_err(|_| io::Error::other("opening a device panicked"))?
}

/// Carries packets until the link is told to stop.
async fn run(a: Tun, b: Tun, setup: TunSetup, remote: Remote) -> io::Result<()> {
    let model = |direction| LinkModel::new(&setup.profile, direction, setup.seed).of_ip_packets();
    let mut transit = Transit::new(model(Direction::Up), model(Direction::Down), remote);
    let (mut buffer_a, mut buffer_b) = (vec![0; PACKET_LEN_MAX], vec![0; PACKET_LEN_MAX]);
    loop {
        tokio::select! {
            biased;
            wake = transit.wake() => match wake {
                Wake::Due => send_due(&a, &b, &mut transit),
                Wake::Stop => break,
            },
            len = a.recv(&mut buffer_a) => admit(Direction::Up, &buffer_a[..len?], &mut transit),
            len = b.recv(&mut buffer_b) => admit(Direction::Down, &buffer_b[..len?], &mut transit),
        }
        for (tun, direction) in [(&a, Direction::Up), (&b, Direction::Down)] {
            for _ in 0..BATCH_PACKETS {
                match tun.try_recv(&mut buffer_a) {
                    Ok(len) => admit(direction, &buffer_a[..len], &mut transit),
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                    // The device was deleted; no wait for readiness would tell.
                    Err(err) => return Err(err),
                }
            }
        }
    }
    transit.publish();
    Ok(())
}

fn admit(direction: Direction, packet: &[u8], transit: &mut Transit<()>) {
    transit.admit((), direction, packet, Datagram::of_ip(packet));
}

/// Sends what is due by now. A device takes a packet at once or not at all.
fn send_due(a: &Tun, b: &Tun, transit: &mut Transit<()>) {
    let now_us = transit.now_us();
    while let Some(due) = transit.pop_due(now_us) {
        let tun = match due.direction {
            Direction::Up => b,
            Direction::Down => a,
        };
        if tun.try_send(&due.packet).is_err() {
            transit.stats.undeliverable_packets += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(netns: Option<&str>, addr: &str) -> TunEnd {
        TunEnd { netns: netns.map(str::to_owned), addr: addr.parse().unwrap() }
    }

    fn refusal(device: &str, a: TunEnd, b: TunEnd) -> String {
        let profile = LinkProfile::resolve("default").unwrap();
        start(TunSetup { device: device.to_owned(), a, b, profile, seed: 1 }).unwrap_err().to_string()
    }

    #[test]
    fn addresses_are_read_with_their_prefix() {
        let net: Ipv4Net = "10.9.0.6/30".parse().unwrap();
        assert_eq!((net.netmask(), net.network()), (Ipv4Addr::new(255, 255, 255, 252), Ipv4Addr::new(10, 9, 0, 4)));
        assert_eq!(
            (net.to_string(), "10.0.0.1/1".parse::<Ipv4Net>().unwrap().netmask()),
            ("10.9.0.6/30".to_owned(), Ipv4Addr::new(128, 0, 0, 0))
        );
        for wrong in ["10.9.0.6", "10.9.0/30", "10.9.0.6/0", "10.9.0.6/31", "10.9.0.6/-1", "fd00::1/64", ""] {
            assert!(wrong.parse::<Ipv4Net>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_a_link_is_refused_with_what_to_do() {
        let (a, b) = (end(Some("weir-no-1"), "10.9.0.1/30"), end(Some("weir-no-2"), "10.9.0.2/30"));
        assert!(refusal("weir0", a.clone(), end(Some("weir-no-1"), "10.9.0.2/30")).contains("give each end its own"));
        assert!(refusal("weir0", a.clone(), end(None, "10.9.0.5/30")).contains("10.9.0.1/30 and 10.9.0.5/30 are not"));
        assert!(refusal("weir0", a.clone(), end(None, "10.9.0.1/30")).contains("not two addresses"));
        for name in ["", "a/b", "sixteen-letters-", "weir%d", ".."] {
            assert!(refusal(name, a.clone(), b.clone()).contains("is no name for a device"), "{name}");
        }
        assert!(refusal("weir0", a, b).contains("ip netns add weir-no-1"));
    }
}
