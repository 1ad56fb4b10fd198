//! `[[broker]]`.

use std::net::IpAddr;

use weir_host::tls::{Credentials, TrustRoots};
use weir_host::units::Duration;

use super::uplink::PEM_HINT;
use super::{Context, check_count, check_name, check_range};
use crate::config::finding::Findings;
use crate::config::overlap::overlaps;
use crate::config::{Broker, BrokerVersion, Files};

/// Brokers of one box.
const BROKERS_MAX: usize = 8;
/// Longest beginning of client ids, bytes: with the class, brokers of 3.1.1 that take 64 bytes take it.
const CLIENT_ID_LEN_MAX: usize = 48;
/// Longest user name, bytes.
const USER_NAME_LEN_MAX: usize = 256;
/// Longest password file, bytes.
pub(crate) const PASSWORD_LEN_MAX: u64 = 4096;

pub(super) fn check(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    let config = context.config;
    check_count(findings, "broker", "brokers", config.broker.len(), BROKERS_MAX);
    let mut names = Vec::new();
    for (at, broker) in config.broker.iter().enumerate() {
        check_name(findings, &format!("broker[{at}].name"), "broker", &broker.name, &mut names);
        check_address(at, broker, findings);
        check_session(context, at, broker, findings);
        check_streams(context, at, broker, findings);
        check_tls(context, at, broker, findings);
        check_password(context, at, broker, findings);
    }
    check_overlaps(context, findings);
}

fn check_address(at: usize, broker: &Broker, findings: &mut Findings<'_, '_>) {
    let path = |key: &str| format!("broker[{at}].{key}");
    let Some((host, _)) = broker.host_port() else {
        let message = format!("`{}` is not a host and a port", broker.address);
        findings.mistake(&path("address"), message, "write, for example, address = \"192.168.1.10:8883\"");
        return;
    };
    let is_local = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if broker.tls.is_none() && !is_local && !broker.insecure {
        let message = format!("data, and a password if there is one, would go to {host} in clear");
        findings.mistake(&path("address"), message, "add `tls`, or set `insecure = true` if the network is trusted");
    }
    if broker.insecure && (broker.tls.is_some() || is_local) {
        findings.warn(&path("insecure"), "it has no effect here: there is TLS, or the broker is on this box", "remove it");
    }
}

fn check_session(context: &Context<'_>, at: usize, broker: &Broker, findings: &mut Findings<'_, '_>) {
    let path = |key: &str| format!("broker[{at}].{key}");
    check_range(findings, &path("qos"), &broker.qos, &(0..=2), "MQTT has these three");
    if broker.qos == 0 {
        let message = "with QoS 0 the broker keeps nothing for a box that is away, and repeats nothing";
        findings.warn(&path("qos"), message, "write qos = 1");
    }
    let inflight_max = usize::from(broker.inflight_max);
    check_range(findings, &path("inflight_max"), &inflight_max, &(1..=65_535), "MQTT has 65535 packet ids");
    let keep_alive = Duration::from_secs(5)..=Duration::from_secs(3_600);
    check_range(findings, &path("keep_alive"), &broker.keep_alive, &keep_alive, "30s is enough on any local network");
    let backoff = Duration::from_millis(100)..=Duration::from_secs(600);
    check_range(findings, &path("backoff_max"), &broker.backoff_max, &backoff, "30s is enough for a broker that starts");
    let expiry = Duration::from_secs(60)..=Duration::from_secs(365 * 86_400);
    check_range(findings, &path("session_expiry"), &broker.session_expiry, &expiry, "longer than the box is ever away");
    if broker.version == BrokerVersion::V311 && findings.is_given(&path("session_expiry")) {
        let message = "MQTT 3.1.1 cannot tell the broker so";
        findings.warn(&path("session_expiry"), message, "set it in the broker, for mosquitto persistent_client_expiration");
    }
    let begins = broker.client_id.as_deref().unwrap_or("weir");
    if begins.is_empty() || begins.len() > CLIENT_ID_LEN_MAX || begins.contains(['\0', '#', '+', '/']) {
        let message = format!("a client id begins with 1 to {CLIENT_ID_LEN_MAX} bytes without `#`, `+` and `/`");
        findings.mistake(&path("client_id"), message, "the class is added to it, as in `press-hall-3-critical`");
    }
    let is_same = |other: &Broker| other.address == broker.address && other.client_id == broker.client_id;
    if context.config.broker[..at].iter().any(is_same) {
        let message = "another [[broker]] connects to the same address with the same client ids";
        findings.mistake(&path("client_id"), message, "give each a client_id of its own: brokers close the older connection");
    }
    if broker.username.as_ref().is_some_and(|name| name.is_empty() || name.len() > USER_NAME_LEN_MAX) {
        let message = format!("a user name has 1 to {USER_NAME_LEN_MAX} bytes");
        findings.mistake(&path("username"), message, "leave it out if the broker needs none");
    }
}

fn check_streams(context: &Context<'_>, at: usize, broker: &Broker, findings: &mut Findings<'_, '_>) {
    let streams = &context.config.stream;
    for (nth, name) in broker.streams.iter().flatten().enumerate() {
        if !streams.iter().any(|stream| stream.name == *name) {
            let message = format!("there is no stream `{name}`");
            findings.mistake(&format!("broker[{at}].streams[{nth}]"), message, "name [[stream]] tables of this file");
        }
    }
    if !streams.is_empty() && !streams.iter().any(|stream| broker.takes(stream)) {
        findings.warn(&format!("broker[{at}].streams"), "no stream comes from this broker", "leave it out for all streams");
    }
}

fn check_tls(context: &Context<'_>, at: usize, broker: &Broker, findings: &mut Findings<'_, '_>) {
    let path = |key: &str| format!("broker[{at}].{key}");
    let Some(tls) = &broker.tls else { return };
    if tls.ca.as_os_str().is_empty() {
        findings.mistake(&path("tls.ca"), "the authority has no path", "write the path of a PEM file");
        return;
    }
    let pair = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Some((context.folder.join(cert), context.folder.join(key))),
        (None, None) => None,
        _ => {
            findings.mistake(&path("tls"), "`cert` and `key` belong together", "give both, or neither");
            return;
        }
    };
    if context.files == Files::Ignored {
        return;
    }
    if let Err(err) = TrustRoots::load(&context.folder.join(&tls.ca)) {
        findings.mistake(&path("tls.ca"), err.to_string(), PEM_HINT);
    }
    if let Some((cert, key)) = pair {
        super::uplink::check_credentials(findings, &path("tls.cert"), &path("tls.key"), Credentials::load(&cert, &key));
    }
}

fn check_password(context: &Context<'_>, at: usize, broker: &Broker, findings: &mut Findings<'_, '_>) {
    let path = format!("broker[{at}].password_file");
    let Some(file) = &broker.password_file else { return };
    if broker.username.is_none() && broker.version == BrokerVersion::V311 {
        findings.mistake(&path, "MQTT 3.1.1 has no password without a user name", "add username = \"...\"");
    }
    if context.files == Files::Ignored {
        return;
    }
    let file = context.folder.join(file);
    match std::fs::metadata(&file) {
        Ok(found) if found.len() > PASSWORD_LEN_MAX => {
            let message = format!("{} has {} bytes, more than {PASSWORD_LEN_MAX}", file.display(), found.len());
            findings.mistake(&path, message, "the file holds the password and nothing else");
        }
        Ok(found) => {
            use std::os::unix::fs::PermissionsExt as _;
            if found.permissions().mode() & 0o077 != 0 {
                findings.warn(&path, format!("others may read {}", file.display()), "chmod 600");
            }
        }
        Err(err) => {
            findings.mistake(&path, format!("{} cannot be read: {err}", file.display()), "the file holds the password alone");
        }
    }
}

/// Warns of filters of one client that meet without one taking all of the other's: a broker may deliver for each.
fn check_overlaps(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    for client in context.config.broker_clients() {
        let filters = context.config.subscriptions(&client);
        let pairs = filters.iter().enumerate().flat_map(|(nth, a)| filters[..nth].iter().map(move |b| (a, b)));
        for (a, b) in pairs.filter(|(a, b)| overlaps(a, b)) {
            let message = format!("a topic can match both `{a}` and `{b}`, and brokers may deliver its messages twice");
            let hint = "use filters of which one takes all of the other's topics, or none of them";
            findings.warn(&format!("broker[{}].name", client.at), message, hint);
        }
    }
}
