//! What `weir check` shows when all is well: what the box will do, and what it may cost.

use std::fmt;

use weir_host::units::Bytes;
use weir_logic::ids::Class;
use weir_logic::payload::{PayloadFormat, SparkplugNodes};

use super::policy::resolve;
use super::{Broker, Config, ModelInfo, Stream};

/// A configuration at a glance; prints as a few tables.
#[derive(Debug, Clone)]
pub struct Summary<'c> {
    config: &'c Config,
    models: &'c [ModelInfo],
}

/// Bytes of an idle client: its task, its first read buffer of 4 KiB, its socket's share.
const CLIENT_IDLE_BYTES: u64 = 10 * 1024;
/// Bytes of a remembered topic: 40 and its text, which is mostly shorter than this.
const TOPIC_BYTES: u64 = 100;
/// Bytes of a device without a window: its key, its place in tables, an open aggregate.
const DEVICE_BYTES: u64 = 400;
/// Bytes of one uplink's connection: what the cloud may send unread, and a send window of a usual link.
const UPLINK_BYTES: u64 = (1 << 20) + (256 << 10);

impl<'c> Summary<'c> {
    pub(super) fn new(config: &'c Config, models: &'c [ModelInfo]) -> Self {
        Summary { config, models }
    }

    /// Bytes of the window that one device of a stream has open.
    fn window_bytes(&self, stream: &Stream) -> u64 {
        let model = resolve(stream, self.models).ok().and_then(|policy| policy.model);
        model.map_or(0, |model| model.window.device_bytes() as u64)
    }

    /// Memory that the configuration lets the process take besides its code, as `(what, bytes, how it comes about)`.
    /// An estimate: what each limit allows if it is reached, except that no client sends its longest packet.
    pub fn memory(&self) -> Vec<(&'static str, u64, String)> {
        let Config { mqtt, buffer, stream, model, infer, .. } = self.config;
        let uplinks = self.config.uplink_paths().count() as u64;
        let clients = mqtt.clients_max as u64;
        let devices = mqtt.devices_max as u64;
        let window_bytes = stream.iter().map(|stream| self.window_bytes(stream)).max().unwrap_or(0);
        let queues = (model.len() * infer.queue_windows_max) as u64;
        let metrics = |stream: &Stream| match &stream.payload {
            PayloadFormat::Sparkplug(format) => Some(format.fields.len()),
            _ => None,
        };
        let births = stream.iter().filter_map(metrics).max().map(|channels| {
            ("births", SparkplugNodes::bytes_max(channels) as u64, "of Sparkplug B, if so many are ever heard".to_owned())
        });
        let always = [
            (
                "buffer",
                buffer.cache.get() + buffer.memory.get(),
                format!("{} cache, {} of records", buffer.cache, buffer.memory),
            ),
            ("clients", clients * CLIENT_IDLE_BYTES, format!("{clients} at {}", human(CLIENT_IDLE_BYTES))),
            ("topics", mqtt.topics_cached_max as u64 * TOPIC_BYTES, format!("{} remembered", mqtt.topics_cached_max)),
            (
                "devices",
                devices * (DEVICE_BYTES + window_bytes),
                format!("{devices} at {}, if so many ever publish", human(DEVICE_BYTES + window_bytes)),
            ),
            ("models", queues * window_bytes, format!("{} queues of {} windows", model.len(), infer.queue_windows_max)),
            ("uplinks", uplinks * UPLINK_BYTES, format!("{uplinks} at {}", human(UPLINK_BYTES))),
        ];
        always.into_iter().chain(births).collect()
    }
}

impl Summary<'_> {
    /// The clients of brokers, and what must be set there so that nothing is dropped.
    fn brokers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gateway = self.config.gateway.name.as_deref().unwrap_or("GATEWAY");
        let mut rows = vec![row(["broker", "address", "class", "client id", "subscribes to"])];
        rows.extend(self.config.broker_clients().map(|client| {
            let (broker, class) = (client.broker, client.class);
            let filters = self.config.subscriptions(&client).join(" ");
            row([&broker.name, &broker.address, class.name(), &broker.client_id(gateway, class), &filters])
        }));
        table(f, &rows)?;
        for broker in &self.config.broker {
            let Broker { name, inflight_max, session_expiry, keep_alive, .. } = broker;
            writeln!(f, "broker {name} must be set so, or it drops messages while the box is away or slow:")?;
            writeln!(
                f,
                "  mosquitto  persistence true, max_inflight_messages {inflight_max}, max_queued_messages 0 (its default is 1000),\n\
                 {:13}persistent_client_expiration {session_expiry} or longer, autosave_interval as short as its disk bears,\n\
                 {:13}max_keepalive not below {}",
                "",
                "",
                keep_alive.as_micros() / 1_000_000
            )?;
            writeln!(
                f,
                "  EMQX       mqtt.max_inflight {inflight_max}, mqtt.max_mqueue_len infinity, mqtt.session_expiry_interval {session_expiry},\n\
                 {:13}durable_sessions.enable true",
                ""
            )?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.config;
        let mut rows = vec![row(["stream", "class", "fidelity", "model", "topics"])];
        rows.extend(config.stream.iter().map(|stream| {
            let model = stream.model.as_deref().unwrap_or("-");
            row([&stream.name, stream.class.name(), stream.fidelity.name(), model, &stream.topics.join(" ")])
        }));
        table(f, &rows)?;
        let mut rows = vec![row(["lane", "safe by", "cap", "ttl", "share"])];
        rows.extend(Class::ALL.map(|class| {
            let lane = config.lane.of(class);
            let ttl = if lane.ttl.is_zero() { "none".to_owned() } else { lane.ttl.to_string() };
            let durability = format!("{:?}", lane.durability).to_lowercase();
            row([class.name(), &durability, &lane.cap.to_string(), &ttl, &lane.share.to_string()])
        }));
        table(f, &rows)?;
        let mut rows = vec![row(["uplink", "address", "certificate name", "by"])];
        rows.extend(config.uplink_paths().map(|path| {
            let by = [path.uplink.interface.clone(), path.uplink.bind.map(|bind| bind.to_string())];
            let proxy = path.fallback.and_then(|fallback| fallback.proxy.as_ref()).map(ToString::to_string);
            let by = by.into_iter().flatten().chain(proxy).collect::<Vec<_>>().join(" ");
            row([&path.name(), path.address(), path.certificate_name(), if by.is_empty() { "any" } else { &by }])
        }));
        table(f, &rows)?;
        if !config.broker.is_empty() {
            self.brokers(f)?;
        }
        let listeners: Vec<String> = config.listen.iter().map(listener).collect();
        let listeners = if listeners.is_empty() { "nothing".to_owned() } else { listeners.join(", ") };
        writeln!(f, "listens on {listeners}; users: {}", config.user.len())?;
        let caps: u64 = Class::ALL.iter().map(|class| config.lane.of(*class).cap.get()).sum();
        writeln!(f, "disk: at most {}, {} of it for the lanes", config.buffer.size_limit, human(caps))?;
        let memory = self.memory();
        let total: u64 = memory.iter().map(|(_, bytes, _)| bytes).sum();
        writeln!(f, "memory: at most about {} besides the program and the models' weights", human(total))?;
        for (what, bytes, how) in memory {
            writeln!(f, "  {what:<8} {:>10}  {how}", human(bytes))?;
        }
        let packets = (config.mqtt.clients_max as u64).saturating_mul(config.mqtt.packet_bytes_max.get());
        write!(f, "  {:<8} {:>10}  more, only if every client sends its longest packet at once", "packets", human(packets))
    }
}

fn listener(listen: &super::Listen) -> String {
    let kind = match &listen.tls {
        Some(tls) if tls.client_ca.is_some() => "TLS, client certificates",
        Some(_) => "TLS",
        None => "TCP",
    };
    let anonymous = if listen.allow_anonymous { ", anonymous" } else { "" };
    format!("{} ({kind}{anonymous})", listen.bind)
}

/// A size with at most one decimal, for people.
pub(super) fn human(bytes: u64) -> String {
    let (unit, scale) = match bytes {
        0..0x400 => return Bytes::new(bytes).to_string(),
        0x400..0x10_0000 => ("KiB", 10),
        0x10_0000..0x4000_0000 => ("MiB", 20),
        _ => ("GiB", 30),
    };
    let tenths = (u128::from(bytes) * 10) >> scale;
    if tenths % 10 == 0 { format!("{}{unit}", tenths / 10) } else { format!("{}.{}{unit}", tenths / 10, tenths % 10) }
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Prints columns as wide as their longest cell, and an empty line.
fn table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(f, "{}", line.join("  ").trim_end())?;
    }
    if rows.len() == 1 {
        writeln!(f, "(none)")?;
    }
    writeln!(f)
}
