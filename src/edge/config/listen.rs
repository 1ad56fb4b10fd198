//! The MQTT endpoint: where it listens, its limits, its users.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use weir_host::units::{Bytes, Duration};
use weir_logic::mqtt::{ConnLimits, RouterLimits};

use super::{PasswordHash, address};

/// `[[listen]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Address and port.
    #[serde(deserialize_with = "address::with_port")]
    pub bind: SocketAddr,
    /// Certificates for TLS; `None` for plain TCP.
    pub tls: Option<ListenTls>,
    /// True if clients without a user name are let in, with the permissions of `mqtt.anonymous_publish`.
    pub allow_anonymous: bool,
    /// True if plain TCP is meant although others than this box can reach the address.
    pub insecure: bool,
}

impl Default for Listen {
    fn default() -> Self {
        let bind = SocketAddr::from(([127, 0, 0, 1], 1883));
        Listen { bind, tls: None, allow_anonymous: false, insecure: false }
    }
}

/// `tls` of a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenTls {
    /// Certificate chain in PEM.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authority of client certificates; `None` if clients need none.
    pub client_ca: Option<PathBuf>,
}

impl ListenTls {
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.cert, &mut self.key].into_iter().chain(self.client_ca.as_mut())
    }
}

/// `[mqtt]`: limits of every MQTT client, and of all together.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mqtt {
    /// Most clients at once.
    pub clients_max: usize,
    /// Longest packet.
    pub packet_bytes_max: Bytes,
    /// Longest packet of a client that is not let in yet.
    pub connect_packet_bytes_max: Bytes,
    /// Most QoS 1 messages of a client without PUBACK.
    pub inflight_max: u16,
    /// Longest keep-alive; no time is no limit.
    pub keep_alive_max: Duration,
    /// Time for a client to say who it is.
    pub connect_timeout: Duration,
    /// Topic aliases offered to MQTT 5 clients.
    pub topic_aliases_max: u16,
    /// Bytes waiting for a client that does not read, at which it is no longer read from.
    pub output_bytes_max: Bytes,
    /// Messages a second of a client; 0 is no limit.
    pub messages_per_s_max: u32,
    /// Bytes of messages a second of a client; none is no limit.
    pub bytes_per_s_max: Bytes,
    /// Topics whose stream and device are remembered.
    pub topics_cached_max: usize,
    /// Devices known; messages of more are refused and counted.
    pub devices_max: usize,
    /// Where clients without a user name may publish, if a listener lets them in.
    pub anonymous_publish: Vec<String>,
}

impl Default for Mqtt {
    fn default() -> Self {
        let limits = ConnLimits::default();
        let router = RouterLimits::default();
        Mqtt {
            clients_max: 500,
            packet_bytes_max: Bytes::new(u64::from(limits.packet_len_max)),
            connect_packet_bytes_max: Bytes::new(u64::from(limits.connect_len_max)),
            inflight_max: limits.inflight_max,
            keep_alive_max: Duration::from_secs(u64::from(limits.keep_alive_s_max)),
            connect_timeout: Duration::from_micros(limits.connect_timeout_us),
            topic_aliases_max: limits.topic_alias_max,
            output_bytes_max: Bytes::new(limits.output_len_max as u64),
            messages_per_s_max: limits.messages_per_s_max,
            bytes_per_s_max: Bytes::new(u64::from(limits.bytes_per_s_max)),
            topics_cached_max: router.topics_max,
            // A window of the small reference model is 4 KiB a device: 32 MiB in all.
            devices_max: 8 * 1024,
            anonymous_publish: vec!["#".to_owned()],
        }
    }
}

impl Mqtt {
    /// The limits of one connection. Values beyond the fields' range, which `check` refuses, are cut off.
    pub fn conn_limits(&self) -> ConnLimits {
        ConnLimits {
            packet_len_max: u32::try_from(self.packet_bytes_max.get()).unwrap_or(u32::MAX),
            connect_len_max: u32::try_from(self.connect_packet_bytes_max.get()).unwrap_or(u32::MAX),
            inflight_max: self.inflight_max,
            keep_alive_s_max: u16::try_from(self.keep_alive_max.as_micros() / 1_000_000).unwrap_or(u16::MAX),
            connect_timeout_us: self.connect_timeout.as_micros(),
            topic_alias_max: self.topic_aliases_max,
            output_len_max: self.output_bytes_max.as_usize(),
            messages_per_s_max: self.messages_per_s_max,
            bytes_per_s_max: u32::try_from(self.bytes_per_s_max.get()).unwrap_or(u32::MAX),
        }
    }

    /// The limits of topic routing.
    pub fn router_limits(&self) -> RouterLimits {
        RouterLimits { topics_max: self.topics_cached_max, devices_max: self.devices_max }
    }
}

/// `[[user]]`: who may publish what. A user proves itself by its password, by a client certificate, or by either.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct User {
    /// The user name of CONNECT; in logs it stands for the client.
    pub name: String,
    /// Its password, hashed with argon2id.
    pub password_hash: Option<PasswordHash>,
    /// Common name of the client certificate that is this user.
    pub certificate_cn: Option<String>,
    /// Topic filters it may publish to.
    pub publish: Vec<String>,
}
