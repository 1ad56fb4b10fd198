//! `[[listen]]`, `[mqtt]` and `[[user]]`.

use weir_host::tls::{Credentials, TrustRoots};
use weir_host::units::{Bytes, Duration};
use weir_logic::mqtt::Filter;

use super::{Context, check_count, check_range};
use crate::config::finding::Findings;
use crate::config::overlap::overlaps;
use crate::config::{Files, Listen, Mqtt};

/// Listeners of one box.
const LISTENERS_MAX: usize = 16;
/// Users of one box: each is a filter tree.
const USERS_MAX: usize = 1_000;
/// Filters of one user.
const PUBLISH_MAX: usize = 256;
/// Longest user name in bytes.
const USER_NAME_LEN_MAX: usize = 256;

pub(super) fn check(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    let config = context.config;
    check_count(findings, "listen", "listeners", config.listen.len(), LISTENERS_MAX);
    for (at, listen) in config.listen.iter().enumerate() {
        check_listener(context, at, listen, findings);
    }
    check_mqtt(&config.mqtt, findings);
    check_users(context, findings);
    check_reach(context, findings);
}

fn check_listener(context: &Context<'_>, at: usize, listen: &Listen, findings: &mut Findings<'_, '_>) {
    let path = |key: &str| format!("listen[{at}].{key}");
    let is_twice = |other: &Listen| other.bind == listen.bind && listen.bind.port() != 0;
    if context.config.listen[..at].iter().any(is_twice) {
        let message = format!("another listener is bound to {} already", listen.bind);
        findings.mistake(&path("bind"), message, "give each listener a port of its own");
    }
    let is_reachable = !listen.bind.ip().is_loopback();
    if is_reachable && listen.tls.is_none() && !listen.insecure {
        let message = format!("{} can be reached by others, and passwords and data would go over it in clear", listen.bind);
        findings.mistake(
            &path("bind"),
            message,
            "add `tls`, bind 127.0.0.1, or set `insecure = true` if the network is trusted",
        );
    }
    if listen.insecure && (listen.tls.is_some() || !is_reachable) {
        findings.warn(&path("insecure"), "it has no effect here: the listener has TLS or is on loopback", "remove it");
    } else if listen.insecure {
        let message = format!("passwords and data go to {} in clear", listen.bind);
        findings.warn(&path("insecure"), message, "use `tls` as soon as the sensors can");
    }
    if listen.allow_anonymous && is_reachable {
        let message = format!("anybody who reaches {} may publish to mqtt.anonymous_publish", listen.bind);
        findings.warn(&path("allow_anonymous"), message, "give each sensor a [[user]]");
    }
    let Some(tls) = &listen.tls else { return };
    let cert = (path("tls.cert"), context.folder.join(&tls.cert));
    let key = (path("tls.key"), context.folder.join(&tls.key));
    for (path, file, given) in [(&cert.0, "certificate", &tls.cert), (&key.0, "key", &tls.key)] {
        if given.as_os_str().is_empty() {
            findings.mistake(path, format!("the {file} has no path"), "write the path of a PEM file");
            return;
        }
    }
    if context.files == Files::Ignored {
        return;
    }
    super::uplink::check_credentials(findings, &cert.0, &key.0, Credentials::load(&cert.1, &key.1));
    if let Some(ca) = &tls.client_ca
        && let Err(err) = TrustRoots::load(&context.folder.join(ca))
    {
        findings.mistake(&path("tls.client_ca"), err.to_string(), super::uplink::PEM_HINT);
    }
}

fn check_mqtt(mqtt: &Mqtt, findings: &mut Findings<'_, '_>) {
    let counts = [
        ("clients_max", mqtt.clients_max, 1..=10_000, "each client may cost a packet's length in memory"),
        ("inflight_max", usize::from(mqtt.inflight_max), 1..=65_535, "a client must be able to send something"),
        ("topics_cached_max", mqtt.topics_cached_max, 16..=1 << 20, "each topic costs 40 bytes and its text"),
        ("devices_max", mqtt.devices_max, 1..=1 << 20, "each device costs its window in memory"),
    ];
    for (key, value, range, why) in counts {
        check_range(findings, &format!("mqtt.{key}"), &value, &range, why);
    }
    let sizes = [
        ("packet_bytes_max", mqtt.packet_bytes_max, Bytes::from_kib(1)..=Bytes::from_mib(1), "longer payloads are not decoded"),
        (
            "connect_packet_bytes_max",
            mqtt.connect_packet_bytes_max,
            Bytes::new(256)..=Bytes::from_kib(256),
            "anybody may send so much",
        ),
        (
            "output_bytes_max",
            mqtt.output_bytes_max,
            Bytes::from_kib(1)..=Bytes::from_mib(1),
            "acknowledgements take 4 to 8 bytes",
        ),
        ("bytes_per_s_max", mqtt.bytes_per_s_max, Bytes::new(0)..=Bytes::new(u64::from(u32::MAX)), "\"0B\" is no limit"),
    ];
    for (key, value, range, why) in sizes {
        check_range(findings, &format!("mqtt.{key}"), &value, &range, why);
    }
    let timeout = Duration::from_millis(100)..=Duration::from_secs(60);
    check_range(findings, "mqtt.connect_timeout", &mqtt.connect_timeout, &timeout, "10s is enough for slow radio links");
    let keep_alive = mqtt.keep_alive_max;
    if keep_alive > Duration::from_secs(u64::from(u16::MAX)) || !keep_alive.as_micros().is_multiple_of(1_000_000) {
        let message = format!("{keep_alive} is not a whole number of seconds up to 65535s");
        findings.mistake("mqtt.keep_alive_max", message, "MQTT counts it in seconds of 16 bits; \"0s\" is no limit");
    }
    check_filters(findings, "mqtt.anonymous_publish", &mqtt.anonymous_publish);
}

/// Reports filters that are none.
pub(super) fn check_filters(findings: &mut Findings<'_, '_>, path: &str, filters: &[String]) {
    check_count(findings, path, "filters", filters.len(), PUBLISH_MAX);
    for (at, filter) in filters.iter().enumerate() {
        if let Err(err) = Filter::parse(filter) {
            let text = err.to_string();
            let (message, hint) =
                text.split_once("; ").unwrap_or((&text, "`+` stands for one level, `#` at the end for the rest"));
            findings.mistake(&format!("{path}[{at}]"), message, hint);
        }
    }
}

fn check_users(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    let config = context.config;
    check_count(findings, "user", "users", config.user.len(), USERS_MAX);
    let takes_certificates = config.listen.iter().any(|listen| listen.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()));
    for (at, user) in config.user.iter().enumerate() {
        let path = |key: &str| format!("user[{at}].{key}");
        let earlier = &config.user[..at];
        if user.name.is_empty() || user.name.len() > USER_NAME_LEN_MAX {
            let message = format!("a user's name has 1 to {USER_NAME_LEN_MAX} bytes, this one {}", user.name.len());
            findings.mistake(
                &path("name"),
                message,
                "add name = \"...\"; for clients without a name see mqtt.anonymous_publish",
            );
        } else if earlier.iter().any(|other| other.name == user.name) {
            findings.mistake(
                &path("name"),
                format!("there is another user named `{}`", user.name),
                "give each a name of its own",
            );
        }
        match &user.certificate_cn {
            None if user.password_hash.is_none() && !findings.is_given(&path("password_hash")) => {
                let message = format!("user `{}` has no way to prove itself", user.name);
                findings.mistake(&path("name"), message, "add password_hash (see `weir passwd`) or certificate_cn");
            }
            Some(cn) if earlier.iter().any(|other| other.certificate_cn.as_ref() == Some(cn)) => {
                findings.mistake(
                    &path("certificate_cn"),
                    format!("another user has the certificate `{cn}` already"),
                    "a certificate is one user",
                );
            }
            Some(_) if !takes_certificates => {
                let message = "no listener takes client certificates, so this has no effect";
                findings.warn(&path("certificate_cn"), message, "add `client_ca` to the `tls` of a listener");
            }
            _ => {}
        }
        check_filters(findings, &path("publish"), &user.publish);
        if user.publish.is_empty() {
            findings.warn(&path("publish"), format!("user `{}` may publish nowhere", user.name), "add publish = [\"...\"]");
        }
    }
}

/// Warns of streams that nobody may publish to, and of users that no stream listens to.
fn check_reach(context: &Context<'_>, findings: &mut Findings<'_, '_>) {
    let config = context.config;
    let anonymous = config.anonymous_user().map(|_| config.mqtt.anonymous_publish.as_slice());
    let has_brokers = !config.broker.is_empty();
    if config.listen.is_empty() {
        if !has_brokers {
            findings.warn("listen", "there is no listener and no broker, so nothing comes in", "add [[listen]] or [[broker]]");
        }
        return;
    }
    if config.user.is_empty() && anonymous.is_none() {
        if has_brokers {
            return;
        }
        let hint = "add [[user]], or `allow_anonymous = true` to a listener on loopback";
        findings.warn("user", "there is no user and no listener lets anonymous clients in, so nobody can publish", hint);
        return;
    }
    let meets = |publish: &[String], topics: &[String]| publish.iter().any(|a| topics.iter().any(|b| overlaps(a, b)));
    for (at, stream) in config.stream.iter().enumerate() {
        let named = config.user.iter().any(|user| meets(&user.publish, &stream.topics))
            || config.broker.iter().any(|broker| broker.takes(stream));
        if !named && !anonymous.is_some_and(|publish| meets(publish, &stream.topics)) && !stream.topics.is_empty() {
            let message = format!("no user may publish to stream `{}`", stream.name);
            findings.warn(&format!("stream[{at}].topics"), message, "add its topics to the `publish` of a user");
        }
    }
    for (at, user) in config.user.iter().enumerate().filter(|(_, user)| !user.publish.is_empty()) {
        if !config.stream.is_empty() && !config.stream.iter().any(|stream| meets(&user.publish, &stream.topics)) {
            let message = format!("no stream takes what user `{}` may publish", user.name);
            findings.warn(&format!("user[{at}].publish"), message, "its messages would be acknowledged and dropped");
        }
    }
}
