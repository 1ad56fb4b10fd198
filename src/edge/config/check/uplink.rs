//! `[[uplink]]`, `[plan]`, `[policy]`, `[session]` and `[tls]`.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::ServerName;
use weir_host::clock::{WALL_FLOOR_US, Wall};
use weir_host::proxy::host_port;
use weir_host::quic::Transport;
use weir_host::tls::{Credentials, Role, TlsError, TrustRoots};
use weir_host::units::Duration;
use weir_logic::receive::SESSIONS_MAX;

use super::{Context, check_count, check_name, check_range};
use crate::config::finding::Findings;
use crate::config::{Config, Files, PlanConfig, Session, Uplink, UplinkPath};

pub(super) const PEM_HINT: &str = "check the path and its permissions; `weir pki issue` makes certificates and keys";
/// Longest name of a network interface. Source: IFNAMSIZ in if.h, without the zero.
const INTERFACE_LEN_MAX: usize = 15;
/// Smallest month of a metered uplink: twice what may be spent on looking at it.
const MONTH_BYTES_MIN: u64 = 10_000_000;

pub(super) fn check(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    let config = context.config;
    check_count(findings, "uplink", "uplinks and fallbacks", config.uplink_paths().count(), SESSIONS_MAX);
    let mut names = Vec::new();
    for (at, uplink) in config.uplink.iter().enumerate() {
        check_name(findings, &format!("uplink[{at}].name"), "uplink", &uplink.name, &mut names);
        check_uplink(at, uplink, findings);
        check_fallback(at, uplink, findings);
        check_meter(at, uplink, findings);
        let is_same = |other: &&Uplink| {
            (&other.address, other.bind, &other.interface) == (&uplink.address, uplink.bind, &uplink.interface)
        };
        if let Some(other) = config.uplink[..at].iter().find(is_same) {
            let message = format!("it goes the same way as uplink `{}`", other.name);
            findings.warn(&format!("uplink[{at}].address"), message, "set `interface` or `bind`, or remove one of the two");
        }
    }
    check_zones(config, findings);
    check_session(&config.session, findings);
    check_plan(&config.plan, findings);
    let why = "a box must have time to connect again, and an operator to see it";
    let range = Duration::from_secs(15)..=Duration::from_secs(3_600);
    check_range(findings, "policy.trial", &config.policy.trial, &range, why);
    if config.uplink.is_empty() {
        findings.warn(
            "uplink",
            "there is no uplink: records stay on the box until they are too old or too many",
            "add [[uplink]]",
        );
        return;
    }
    check_identity(context, findings);
}

fn check_uplink(at: usize, uplink: &Uplink, findings: &mut Findings<'_, '_>) {
    let path = |key: &str| format!("uplink[{at}].{key}");
    if uplink.host_port().is_none() {
        let message = format!("`{}` is not a host and a UDP port", uplink.address);
        findings.mistake(&path("address"), message, "write, for example, address = \"cloud.example.org:4433\"");
        return;
    }
    if let Some(rate) = uplink.rate.filter(|rate| !(1_000..=100_000_000_000).contains(&rate.bits_per_s())) {
        findings.mistake(&path("rate"), format!("{rate} is not within 1kbit/s to 100Gbit/s"), "it is measured once it is used");
    }
    let main = UplinkPath { uplink, fallback: None };
    let key = if uplink.server_name.is_some() { "server_name" } else { "address" };
    check_certificate_name(&path(key), main.certificate_name(), findings);
    check_family(&path("bind"), &main, findings);
    if uplink
        .bind
        .is_some_and(|bind| bind.is_multicast() || bind == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && uplink.interface.is_none())
    {
        findings.mistake(&path("bind"), "it is not an address of this box", "write the address of the interface to send from");
    }
    if let Some(interface) = &uplink.interface {
        let is_name =
            (1..=INTERFACE_LEN_MAX).contains(&interface.len()) && !interface.contains(|c: char| c == '/' || c.is_whitespace());
        if !is_name {
            let message = format!("`{interface}` is not the name of a network interface");
            findings.mistake(&path("interface"), message, "write it as `ip link` shows it, for example \"eth0\" or \"wwan0\"");
        }
    }
}

fn check_fallback(at: usize, uplink: &Uplink, findings: &mut Findings<'_, '_>) {
    let Some(fallback) = &uplink.fallback else { return };
    let path = |key: &str| format!("uplink[{at}].fallback.{key}");
    if host_port(&fallback.address).is_none() {
        let message = format!("`{}` is not a host and a TCP port", fallback.address);
        findings.mistake(&path("address"), message, "write, for example, { address = \"cloud.example.org:443\" }");
        return;
    }
    let way = UplinkPath { uplink, fallback: Some(fallback) };
    // One that was given is checked with the uplink itself.
    if uplink.server_name.is_none() {
        check_certificate_name(&path("address"), way.certificate_name(), findings);
    }
    let key = if fallback.proxy.is_some() { "proxy" } else { "address" };
    check_family(&path(key), &way, findings);
}

fn check_certificate_name(key: &str, name: &str, findings: &mut Findings<'_, '_>) {
    if ServerName::try_from(name).is_err() {
        let message = format!("`{name}` is not a DNS name or IP address");
        findings.mistake(key, message, "write it as in the cloud's certificate");
    }
}

/// What is sent from one address must go to one of its family.
fn check_family(key: &str, way: &UplinkPath<'_>, findings: &mut Findings<'_, '_>) {
    let to = host_port(way.next_address()).and_then(|(host, _)| host.parse::<IpAddr>().ok());
    if let (Some(bind), Some(to)) = (way.uplink.bind, to)
        && bind.is_ipv4() != to.is_ipv4()
    {
        let message = format!("{bind} cannot reach {to}: one is IPv4, the other IPv6");
        findings.mistake(key, message, "use addresses of one family");
    }
}

/// Money, months and classes.
fn check_meter(at: usize, uplink: &Uplink, findings: &mut Findings<'_, '_>) {
    let path = |key: &str| format!("uplink[{at}].{key}");
    if !(0.0..=1e6).contains(&uplink.money_per_mb) {
        findings.mistake(&path("money_per_mb"), format!("{} is not within 0 to 1e6", uplink.money_per_mb), "in any currency");
    }
    if uplink.month_bytes.is_some_and(|bytes| bytes.get() < MONTH_BYTES_MIN) {
        let message = "a month of less than 10 MB is used up by the hourly look at the uplink and a few handshakes";
        findings.mistake(&path("month_bytes"), message, "allow more, or remove the uplink");
    }
    let free_key = [("money_per_mb", uplink.money_per_mb > 0.0), ("month_bytes", uplink.month_bytes.is_some())];
    for (key, is_set) in free_key.into_iter().chain([("warm", uplink.warm)]) {
        if is_set && !uplink.metered {
            findings.mistake(&path(key), format!("`{key}` is for metered uplinks"), "add metered = true, or remove it");
        }
    }
    if uplink.classes.as_ref().is_some_and(Vec::is_empty) {
        findings.mistake(&path("classes"), "no class may use this uplink", "name at least one, or remove the key for all");
    }
    if uplink.metered && uplink.warm {
        let message = "heartbeats and keep-alives of a warm metered uplink cost about 800 MB a month";
        findings.warn(&path("warm"), message, "remove it: a cold one is connected within a round trip or two of a failure");
    }
}

/// A lane whose streams allow no zone in common, or none that an uplink leads to, could never be sent.
fn check_zones(config: &Config, findings: &mut Findings<'_, '_>) {
    for (at, stream) in config.stream.iter().enumerate().filter(|(_, stream)| !stream.zones.is_empty()) {
        let of_lane = || config.stream.iter().filter(|other| other.class == stream.class && !other.zones.is_empty());
        let may = |uplink: &Uplink| {
            let zone = uplink.zone.as_ref();
            let is_for_class = uplink.classes.as_ref().is_none_or(|classes| classes.contains(&stream.class));
            is_for_class && of_lane().all(|other| zone.is_some_and(|zone| other.zones.contains(zone)))
        };
        if !config.uplink.is_empty() && !config.uplink.iter().any(may) {
            let class = stream.class.name();
            let message = format!("no uplink leads where every stream of class {class} may go: the lane would never be sent");
            findings.mistake(
                &format!("stream[{at}].zones"),
                message,
                "give an uplink `zone`, or streams of other zones another class",
            );
        }
    }
}

fn check_plan(plan: &PlanConfig, findings: &mut Findings<'_, '_>) {
    let s = Duration::from_secs;
    let why = "of less nothing can be foreseen, and of more nothing is known";
    check_range(findings, "plan.horizon", &plan.horizon, &(s(10)..=s(600)), why);
    check_range(findings, "plan.critical_copies", &plan.critical_copies, &(1..=2), "a third copy helps nobody");
    check_range(findings, "plan.fineness", &plan.fineness, &(0.5..=2.0), "below 1 is fresher, above 1 is finer");
}

fn check_session(session: &Session, findings: &mut Findings<'_, '_>) {
    let (ms, s) = (Duration::from_millis, Duration::from_secs);
    // Beyond this QUIC itself gives up, and a longer silence would have no effect.
    let idle_ms = u64::try_from(Transport::edge().idle_timeout.as_millis()).unwrap_or(u64::MAX);
    let ranges = [
        ("ping", session.ping, ms(100)..=s(60), "each heartbeat costs about 100 bytes each way"),
        ("silence", session.silence, ms(500)..=ms(idle_ms), "QUIC ends a connection after the longest of these by itself"),
        ("connect_timeout", session.connect_timeout, s(1)..=s(120), "a slow link needs seconds for a handshake"),
        ("backoff_min", session.backoff_min, ms(50)..=s(60), "a cloud that restarts must not be flooded"),
        ("backoff_max", session.backoff_max, ms(500)..=s(3_600), "it is how late the end of an outage may be noticed"),
    ];
    for (key, value, range, why) in ranges {
        check_range(findings, &format!("session.{key}"), &value, &range, why);
    }
    let twice = Duration::from_micros(session.ping.as_micros().saturating_mul(2));
    if session.silence <= twice {
        let message = format!("silence of {} is not longer than two pings of {}", session.silence, session.ping);
        findings.mistake(
            "session.silence",
            message,
            format!("one lost heartbeat would end the session; use more than \"{twice}\""),
        );
    }
    if session.backoff_min > session.backoff_max {
        let message = format!("backoff_min of {} is longer than backoff_max of {}", session.backoff_min, session.backoff_max);
        findings.mistake("session.backoff_min", message, "swap them");
    }
}

fn check_identity(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    let config = context.config;
    if context.files == Files::Ignored {
        return;
    }
    let file = |path| context.folder.join(path);
    let loaded = Credentials::load(&file(&config.tls.cert), &file(&config.tls.key));
    if let Some(credentials) = check_credentials(findings, "tls.cert", "tls.key", loaded) {
        match credentials.identity() {
            Ok(identity) if identity.role() != Role::Gateway => {
                let hint = "issue one for this box with `weir pki issue`";
                findings.mistake("tls.cert", format!("the certificate is for {identity}, expected weir://gateway/NAME"), hint);
            }
            Ok(identity) => {
                if let Some(name) = config.gateway.name.as_ref().filter(|name| *name != identity.name()) {
                    let message = format!("the certificate says `{}`, and that is the name that counts", identity.name());
                    findings.warn(
                        "gateway.name",
                        message,
                        format!("write name = \"{}\" instead of \"{name}\", or remove it", identity.name()),
                    );
                }
            }
            Err(err) => findings.mistake("tls.cert", err.to_string(), "issue one with `weir pki issue`"),
        }
    }
    if let Err(err) = TrustRoots::load(&file(&config.tls.ca)) {
        findings.mistake("tls.ca", err.to_string(), PEM_HINT);
    }
}

/// Reports a certificate and key that cannot be used; one that is not valid now is a warning, because the box's clock may
/// be what is wrong.
pub(super) fn check_credentials(
    findings: &mut Findings<'_, '_>,
    cert: &str,
    key: &str,
    loaded: Result<Credentials, TlsError>,
) -> Option<Credentials> {
    match loaded {
        Ok(credentials) => {
            if let Err(err) = credentials.check_validity(wall()) {
                findings.warn(cert, err.to_string(), "the cloud refuses it until that is mended");
            }
            Some(credentials)
        }
        Err(err) => {
            let is_key = match &err {
                TlsError::Read { what, .. } | TlsError::TooLong { what, .. } | TlsError::WrongContent { what, .. } => {
                    *what == "key"
                }
                TlsError::KeyMismatch { .. } => true,
                _ => false,
            };
            findings.mistake(if is_key { key } else { cert }, err.to_string(), PEM_HINT);
            None
        }
    }
}

fn wall() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    Wall { unix_us, trusted: unix_us >= WALL_FLOOR_US }
}
