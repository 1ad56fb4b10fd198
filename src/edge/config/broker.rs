//! Brokers that messages are taken from.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use weir_host::proxy;
use weir_host::units::Duration;
use weir_logic::ids::Class;
use weir_logic::mqtt::{Secret, SubscriberOptions, Version};
use weir_logic::policy::BrokerPolicy;

use super::overlap::covers;
use super::{Config, Stream};

/// `[[broker]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Broker {
    /// Its name, in logs and metrics.
    pub name: String,
    /// Host name or IP address, and TCP port.
    pub address: String,
    /// Version of MQTT.
    pub version: BrokerVersion,
    /// Certificates for TLS; `None` for plain TCP.
    pub tls: Option<BrokerTls>,
    /// User name; `None` for none.
    pub username: Option<String>,
    /// File with the password, without its last line break; `None` for none.
    pub password_file: Option<PathBuf>,
    /// True if a password or data may go to another machine in clear.
    pub insecure: bool,
    /// Begins the client ids; `None` for `weir-` and the name of the gateway.
    pub client_id: Option<String>,
    /// Names of the streams that come from it; `None` for all.
    pub streams: Option<Vec<String>>,
    /// QoS to subscribe with.
    pub qos: u8,
    /// When its records are safe.
    pub durability: BrokerDurability,
    /// How long the broker keeps messages for a box that is away.
    pub session_expiry: Duration,
    /// Longest silence is one and a half times this.
    pub keep_alive: Duration,
    /// Most messages of a class without acknowledgement.
    pub inflight_max: u16,
    /// Longest wait between two attempts to connect.
    pub backoff_max: Duration,
}

impl Default for Broker {
    fn default() -> Self {
        Broker {
            name: String::new(),
            address: String::new(),
            version: BrokerVersion::V5,
            tls: None,
            username: None,
            password_file: None,
            insecure: false,
            client_id: None,
            streams: None,
            qos: 1,
            durability: BrokerDurability::Disk,
            session_expiry: Duration::from_secs(7 * 86_400),
            keep_alive: Duration::from_secs(30),
            inflight_max: 1_000,
            backoff_max: Duration::from_secs(30),
        }
    }
}

/// Version of MQTT that a broker speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum BrokerVersion {
    /// 3.1.1
    #[serde(rename = "3.1.1")]
    V311,
    /// 5
    #[serde(rename = "5")]
    V5,
}

/// When the records of a broker are safe, so that it is told to forget them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BrokerDurability {
    /// Written with the next group commit, or stored by the cloud, whichever is first.
    Disk,
    /// As the lane of their class says.
    Lane,
}

/// `tls` of a broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerTls {
    /// Authority of the broker's certificate.
    pub ca: PathBuf,
    /// Certificate chain to show; `None` for none.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Name that the broker's certificate must have; `None` for the host in `address`.
    pub server_name: Option<String>,
}

/// First wait before a broker is tried again, microseconds.
const BACKOFF_FIRST_US: u64 = 500_000;
/// Time for a broker's answers: CONNACK of one that reads a large store takes seconds.
const ANSWER_TIMEOUT_US: u64 = 20_000_000;

impl Broker {
    /// Host and port of the address; `None` if it is not of the form `host:port`, which `check` refuses.
    pub fn host_port(&self) -> Option<(&str, u16)> {
        proxy::host_port(&self.address)
    }

    /// The name that the broker's certificate must have.
    pub fn certificate_name(&self) -> &str {
        let host = || self.host_port().map_or("", |(host, _)| host);
        self.tls.as_ref().and_then(|tls| tls.server_name.as_deref()).unwrap_or_else(host)
    }

    /// True if the stream comes from it.
    pub(super) fn takes(&self, stream: &Stream) -> bool {
        self.streams.as_ref().is_none_or(|names| names.contains(&stream.name))
    }

    /// The client id of a class.
    pub fn client_id(&self, gateway: &str, class: Class) -> String {
        match &self.client_id {
            Some(id) => format!("{id}-{}", class.name()),
            None => format!("weir-{gateway}-{}", class.name()),
        }
    }

    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let tls = self.tls.as_mut().map(|tls| [Some(&mut tls.ca), tls.cert.as_mut(), tls.key.as_mut()]);
        tls.into_iter().flatten().flatten().chain(self.password_file.as_mut())
    }
}

/// One client of a broker: for the streams of one class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BrokerClient<'c> {
    /// The broker.
    pub broker: &'c Broker,
    /// Position of the broker in the configuration.
    pub at: usize,
    /// The class.
    pub class: Class,
}

impl Config {
    /// The clients of all brokers, in the order of the core's.
    pub fn broker_clients(&self) -> impl Iterator<Item = BrokerClient<'_>> {
        self.broker.iter().enumerate().flat_map(move |(at, broker)| {
            let has = move |class: &Class| self.stream.iter().any(|s| s.class == *class && broker.takes(s));
            Class::ALL.into_iter().filter(has).map(move |class| BrokerClient { broker, at, class })
        })
    }

    /// The clients as the core takes them, for a gateway of this name and with the passwords of the brokers.
    pub fn broker_policies(&self, gateway: &str, passwords: &[Option<Secret>]) -> Vec<BrokerPolicy> {
        self.broker_clients().map(|client| self.broker_policy(&client, gateway, passwords)).collect()
    }

    fn broker_policy(&self, client: &BrokerClient<'_>, gateway: &str, passwords: &[Option<Secret>]) -> BrokerPolicy {
        let BrokerClient { broker, at, class } = *client;
        let streams = self.streams_of(client);
        let seconds = |duration: Duration| duration.as_micros() / 1_000_000;
        BrokerPolicy {
            name: broker.name.as_str().into(),
            class,
            streams: streams.iter().map(|&stream| stream as u16).collect(),
            subscriber: SubscriberOptions {
                version: if broker.version == BrokerVersion::V5 { Version::V5 } else { Version::V311 },
                client_id: broker.client_id(gateway, class).into(),
                username: broker.username.as_deref().map(Arc::from),
                password: passwords.get(at).cloned().flatten(),
                keep_alive_s: u16::try_from(seconds(broker.keep_alive)).unwrap_or(u16::MAX),
                session_expiry_s: u32::try_from(seconds(broker.session_expiry)).unwrap_or(u32::MAX),
                inflight_max: broker.inflight_max,
                packet_len_max: self.mqtt.conn_limits().packet_len_max,
                filters: self.subscriptions(client).into(),
                qos: broker.qos,
                answer_timeout_us: ANSWER_TIMEOUT_US,
            },
            to_disk: broker.durability == BrokerDurability::Disk,
            backoff_us: (BACKOFF_FIRST_US.min(broker.backoff_max.as_micros()), broker.backoff_max.as_micros()),
        }
    }

    /// Positions of a client's streams.
    fn streams_of(&self, client: &BrokerClient<'_>) -> Vec<usize> {
        let is_own = |(_, stream): &(usize, &Stream)| stream.class == client.class && client.broker.takes(stream);
        self.stream.iter().enumerate().filter(is_own).map(|(at, _)| at).collect()
    }

    /// The filters a client subscribes to: without those that another of its own takes in whole, since a broker may deliver a
    /// message once for each.
    pub(super) fn subscriptions(&self, client: &BrokerClient<'_>) -> Vec<String> {
        let mut filters: Vec<&String> = self.streams_of(client).iter().flat_map(|&at| &self.stream[at].topics).collect();
        filters.sort();
        filters.dedup();
        let is_covered = |filter: &String| filters.iter().any(|&other| other != filter && covers(other, filter));
        filters.iter().copied().filter(|&filter| !is_covered(filter)).cloned().collect()
    }
}
