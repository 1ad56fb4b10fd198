//! Uplinks: where the cloud is, how it is reached, and who we are to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weir_host::proxy::{self, Proxy};
use weir_host::quic::Transport;
use weir_host::units::{BitRate, Bytes, Duration};
use weir_logic::ids::Class;
use weir_logic::uplink::SessionLimits;

use super::address;
use crate::congestion::Congestion;

/// `[[uplink]]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Uplink {
    /// Its name, in logs and metrics.
    pub name: String,
    /// Host name or IP address of the cloud, and its UDP port.
    pub address: String,
    /// Name that the cloud's certificate must have; `None` for the host in `address`.
    pub server_name: Option<String>,
    /// The same cloud over TLS on TCP, where QUIC does not pass; `None` for QUIC alone.
    pub fallback: Option<Fallback>,
    /// Local address to send from; `None` for the system's choice.
    #[serde(deserialize_with = "address::alone")]
    pub bind: Option<IpAddr>,
    /// Network interface to use, whatever the routes say; `None` for the system's choice.
    pub interface: Option<String>,
    /// How much it may have under way.
    pub congestion: Congestion,
    /// Rate it is assumed to carry until that is measured.
    pub rate: Option<BitRate>,
    /// True if its bytes cost money: then it is used only where no free uplink works, or within `month_bytes`, and is
    /// disconnected while nothing needs it.
    pub metered: bool,
    /// What a megabyte costs, in any currency: only relations between uplinks matter.
    pub money_per_mb: f64,
    /// Bytes that may be used in a calendar month, both directions; `None` for no limit.
    pub month_bytes: Option<Bytes>,
    /// True if it stays connected although it is metered and nothing needs it.
    pub warm: bool,
    /// Classes that may use it; `None` for all.
    pub classes: Option<Vec<Class>>,
    /// Zone of the ingest node that it leads to.
    pub zone: Option<String>,
    /// Carrier or site router that it shares with others.
    pub carrier: Option<String>,
}

impl Uplink {
    /// Host and port of the address; `None` if it is not of the form `host:port`, which `check` refuses.
    pub fn host_port(&self) -> Option<(&str, u16)> {
        proxy::host_port(&self.address)
    }

    /// The uplink as it goes over QUIC, and then, if it has one, its fallback.
    pub fn paths(&self) -> impl Iterator<Item = UplinkPath<'_>> {
        let fallback = self.fallback.as_ref().map(|fallback| UplinkPath { uplink: self, fallback: Some(fallback) });
        [UplinkPath { uplink: self, fallback: None }].into_iter().chain(fallback)
    }

    /// Limits and timers of its QUIC connection.
    pub fn transport(&self) -> Transport {
        Transport { congestion: self.congestion.factory(), ..Transport::edge() }
    }
}

/// `fallback` of an uplink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fallback {
    /// Host name or IP address of the cloud, and its TCP port.
    pub address: String,
    /// HTTP proxy to go through; `None` for straight.
    #[serde(deserialize_with = "address::proxy")]
    pub proxy: Option<Proxy>,
}

/// One of the two transports that an uplink may have; to all but the configuration each is an uplink of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UplinkPath<'c> {
    /// The uplink.
    pub uplink: &'c Uplink,
    /// Its fallback, if it is that; else it is QUIC.
    pub fallback: Option<&'c Fallback>,
}

impl<'c> UplinkPath<'c> {
    /// Its name in logs and metrics: no uplink's own has a slash in it.
    pub fn name(&self) -> String {
        match self.fallback {
            Some(_) => format!("{}/tcp", self.uplink.name),
            None => self.uplink.name.clone(),
        }
    }

    /// Host and port of the cloud.
    pub fn address(&self) -> &'c str {
        self.fallback.map_or(&self.uplink.address, |fallback| &fallback.address)
    }

    /// The name that the cloud's certificate must have.
    pub fn certificate_name(&self) -> &'c str {
        let host = || proxy::host_port(self.address()).map_or("", |(host, _)| host);
        self.uplink.server_name.as_deref().unwrap_or_else(host)
    }

    /// Host and port that it connects to: the cloud's, or the proxy's.
    pub fn next_address(&self) -> &'c str {
        self.fallback.and_then(|fallback| fallback.proxy.as_ref()).map_or(self.address(), Proxy::address)
    }

    /// The local address to bind, with port 0: IPv4 unless `bind` or what it connects to is an IPv6 address.
    pub fn local_addr(&self) -> SocketAddr {
        let host = proxy::host_port(self.next_address()).map_or("", |(host, _)| host);
        let to_v6 = host.parse::<Ipv6Addr>().is_ok();
        let any = if to_v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        SocketAddr::new(self.uplink.bind.unwrap_or(any), 0)
    }
}

/// `[session]`: times of the conversation with the cloud, the same on all uplinks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Session {
    /// Between two heartbeats.
    pub ping: Duration,
    /// Without a word from the cloud for so long, the uplink counts as down.
    pub silence: Duration,
    /// For connecting, and again for the cloud's greeting.
    pub connect_timeout: Duration,
    /// Wait before the second attempt; each later one waits up to twice as long.
    pub backoff_min: Duration,
    /// Longest wait between two attempts.
    pub backoff_max: Duration,
}

impl Default for Session {
    fn default() -> Self {
        Session {
            ping: Duration::from_secs(1),
            silence: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            backoff_min: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
        }
    }
}

impl Session {
    /// The times as the core takes them.
    pub fn limits(&self) -> SessionLimits {
        SessionLimits {
            ping_us: self.ping.as_micros(),
            silence_us: self.silence.as_micros(),
            connect_us: self.connect_timeout.as_micros(),
            backoff_us: (self.backoff_min.as_micros(), self.backoff_max.as_micros()),
        }
    }
}

/// `[tls]`: the identity of the box. Needed if there is an uplink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Certificate chain in PEM, with the URI `weir://gateway/NAME`.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authority of the cloud's certificate.
    pub ca: PathBuf,
}

impl Default for Tls {
    fn default() -> Self {
        let file = |name| Path::new("/etc/weir").join(name);
        Tls { cert: file("gateway.crt"), key: file("gateway.key"), ca: file("ca.crt") }
    }
}
