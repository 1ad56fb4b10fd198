//! A box and a cloud on this machine: certificates, configurations, processes, in a folder that goes when it is dropped.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use tempfile::TempDir;
use weir::link::profile::LinkProfile;
use weir::link::relay::{self, RelaySetup, RelayThread};
use weir::pki;

use crate::process::Process;

/// A box, a cloud, and where they are.
pub(crate) struct Site {
    // In the order in which they are to end.
    pub(crate) edge: Process,
    pub(crate) cloud: Option<Process>,
    /// Where the cloud listens, behind the link if there is one.
    pub(crate) quic: SocketAddr,
    pub(crate) link: Option<RelayThread>,
    pub(crate) mqtt: SocketAddr,
    pub(crate) folder: TempDir,
}

/// What differs between measurements.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// `disk`, `through` or `memory`.
    pub(crate) mode: String,
    /// False for an outage that never ends.
    pub(crate) with_cloud: bool,
    /// In-flight limit of a client.
    pub(crate) inflight: u16,
    /// More configuration for the box.
    pub(crate) extra: String,
    /// More configuration for the cloud.
    pub(crate) cloud: String,
}

impl Site {
    /// Starts both.
    pub(crate) fn start(setup: &Setup) -> anyhow::Result<Site> {
        Self::start_over(setup, None)
    }

    /// Starts both with an emulated link between them.
    pub(crate) fn start_over(setup: &Setup, link: Option<LinkProfile>) -> anyhow::Result<Site> {
        let folder = tempfile::Builder::new().prefix("weir-bench-").tempdir()?;
        let root = folder.path();
        pki::init(root, false)?;
        pki::issue(root, &pki::Request::gateway("bench"), false)?;
        pki::issue(root, &pki::Request::local_cloud("cloud"), false)?;
        let (mqtt, edge_admin, cloud_admin, quic) = (free_tcp()?, free_tcp()?, free_tcp()?, free_udp()?);
        let relay = |profile| {
            let listen = UdpSocket::bind("127.0.0.1:0")?;
            anyhow::Ok(relay::start(RelaySetup { listen, target: quic, profile, seed: 1 })?)
        };
        let link = link.map(relay).transpose()?;
        let address = link.as_ref().map_or(quic, RelayThread::addr);
        let edge_config = root.join("edge.toml");
        let Setup { mode, inflight, extra, cloud, .. } = setup;
        std::fs::write(
            &edge_config,
            format!(
                r#"
gateway.data_dir = "edge"
admin.http = "{edge_admin}"
log.filter = "warn"
tls = {{ cert = "bench.pem", key = "bench.key", ca = "ca.pem" }}
mqtt.inflight_max = {inflight}
[[listen]]
bind = "{mqtt}"
allow_anonymous = true
[[uplink]]
name = "wan"
address = "{address}"
server_name = "localhost"
[lane.normal]
durability = "{mode}"
[[stream]]
name = "bench"
topics = ["bench/+"]
payload = {{ format = "json", fields = ["/temperature", "/pressure", "/vibration"] }}
{extra}
"#
            ),
        )?;
        let cloud_config = root.join("cloud.toml");
        std::fs::write(
            &cloud_config,
            format!(
                r#"
listen.quic = "{quic}"
admin.http = "{cloud_admin}"
log.filter = "warn"
store.path = "cloud.db"
gateways.enrolled = ["bench", "hog"]
tls = {{ cert = "cloud.pem", key = "cloud.key", ca = "ca.pem" }}
{cloud}
"#
            ),
        )?;
        let cloud = setup.with_cloud.then(|| Process::start("weir-cloud", &cloud_config, cloud_admin)).transpose()?;
        let edge = Process::start("weir-edge", &edge_config, edge_admin)?;
        Ok(Site { edge, cloud, quic, link, mqtt, folder })
    }

    /// Rows the cloud has durably.
    pub(crate) fn stored(&self) -> anyhow::Result<u64> {
        let db = rusqlite::Connection::open_with_flags(
            self.folder.path().join("cloud.db"),
            rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
        )?;
        // Ranges instead of rows: counting a million rows would take part of the measurement.
        Ok(db.query_row("SELECT coalesce(sum(last - first + 1), 0) FROM coverage", [], |row| row.get::<_, i64>(0))? as u64)
    }
}

pub(crate) fn free_tcp() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

pub(crate) fn free_udp() -> anyhow::Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}
