use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::tls::{
    self, ALPN, ClientCerts, Credentials, TlsVersion, TrustRoots,
    tests::{Ca, Leaf},
};

const GATEWAY: &str = "weir://gateway/box-1";
const CLOUD: &str = "weir://cloud/ingest-1";

fn loopback() -> UdpSocket {
    bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0), None).unwrap()
}

fn server(credentials: &Credentials, roots: &TrustRoots, alpn: &[u8]) -> Endpoint {
    let clients = ClientCerts::Required(roots);
    let tls = tls::server_config(credentials, clients, TlsVersion::V13, &[alpn]).unwrap();
    let config = server_config(tls, &Transport::cloud()).unwrap();
    server_endpoint(loopback(), config).unwrap()
}

fn client(credentials: &Credentials, roots: &TrustRoots) -> quinn::ClientConfig {
    let tls = tls::client_config(credentials, roots, &[ALPN]).unwrap();
    client_config(tls, &Transport::edge()).unwrap()
}

/// Connects and echoes one message; else what each side has to say.
async fn exchange(server: &Endpoint, config: quinn::ClientConfig) -> Result<Identity, String> {
    let addr = server.local_addr().unwrap();
    let accepting = async {
        let incoming = server.accept().await.unwrap();
        let connection = incoming.await.map_err(|err| format!("server: {err}"))?;
        let identity = peer_identity(&connection).map_err(|err| format!("server: {err}"))?;
        let (mut send, mut recv) = connection.accept_bi().await.map_err(|err| format!("server: {err}"))?;
        let message = recv.read_to_end(64).await.map_err(|err| format!("server: {err}"))?;
        send.write_all(&message).await.map_err(|err| format!("server: {err}"))?;
        send.finish().map_err(|err| format!("server: {err}"))?;
        let _ = send.stopped().await;
        Ok::<_, String>(identity)
    };
    let connecting = async {
        let endpoint = client_endpoint(loopback()).unwrap();
        let connection =
            endpoint.connect_with(config, addr, "localhost").unwrap().await.map_err(|err| format!("client: {err}"))?;
        let cloud = peer_identity(&connection).map_err(|err| format!("client: {err}"))?;
        assert_eq!(cloud.to_string(), CLOUD);
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(b"hello").await.map_err(|err| format!("client: {err}"))?;
        send.finish().unwrap();
        let echo = recv.read_to_end(64).await.map_err(|err| format!("client: {err}"))?;
        assert_eq!(echo, b"hello");
        Ok::<_, String>(())
    };
    match tokio::join!(accepting, connecting) {
        (Ok(identity), Ok(())) => Ok(identity),
        (server, client) => Err([server.err(), client.err()].into_iter().flatten().collect()),
    }
}

#[tokio::test]
async fn both_sides_know_each_other_by_certificate() {
    let ca = Ca::new();
    let server = server(&ca.credentials(&Leaf::of(CLOUD)), &ca.roots(), ALPN);
    let identity = exchange(&server, client(&ca.credentials(&Leaf::of(GATEWAY)), &ca.roots())).await;
    assert_eq!(identity.unwrap().to_string(), GATEWAY);
}

#[tokio::test]
async fn a_client_under_another_ca_is_refused() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = server(&ca.credentials(&Leaf::of(CLOUD)), &ca.roots(), ALPN);
    let client = client(&other.credentials(&Leaf::of(GATEWAY)), &ca.roots());
    let error = exchange(&server, client).await.unwrap_err();
    assert!(error.contains("server: ") && error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn a_server_under_another_ca_is_refused() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = server(&other.credentials(&Leaf::of(CLOUD)), &ca.roots(), ALPN);
    let client = client(&ca.credentials(&Leaf::of(GATEWAY)), &ca.roots());
    let error = exchange(&server, client).await.unwrap_err();
    assert!(error.contains("client: ") && error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = Ca::new();
    let server = server(&ca.credentials(&Leaf::of(CLOUD)), &ca.roots(), ALPN);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let der = rustls::pki_types::pem::PemObject::from_pem_slice(ca.pem.as_bytes()).unwrap();
    roots.add(der).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let error = exchange(&server, client_config(tls, &Transport::edge()).unwrap()).await;
    let error = error.unwrap_err();
    assert!(error.contains("server: ") && error.contains("no certificates"), "{error}");
}

#[tokio::test]
async fn an_expired_server_is_refused() {
    let ca = Ca::new();
    let expired = Leaf { uris: vec![CLOUD.to_owned()], years: (2024, 2025) };
    let server = server(&ca.credentials(&expired), &ca.roots(), ALPN);
    let client = client(&ca.credentials(&Leaf::of(GATEWAY)), &ca.roots());
    let error = exchange(&server, client).await.unwrap_err();
    assert!(error.contains("xpired"), "{error}");
}

#[tokio::test]
async fn a_box_in_1970_connects_even_to_a_server_with_a_newer_certificate() {
    let ca = Ca::new();
    let newer = Leaf { uris: vec![CLOUD.to_owned()], years: (2026, 2090) };
    let server = server(&ca.credentials(&newer), &ca.roots(), ALPN);
    let box_credentials = ca.credentials(&Leaf::of(GATEWAY)).with_wall_clock(|| 0);
    let identity = exchange(&server, client(&box_credentials, &ca.roots())).await;
    assert_eq!(identity.unwrap().to_string(), GATEWAY);
}

#[tokio::test]
async fn a_box_in_1970_refuses_what_expired_before_its_own_certificate_began() {
    let ca = Ca::new();
    let expired = Leaf { uris: vec![CLOUD.to_owned()], years: (2020, 2021) };
    let server = server(&ca.credentials(&expired), &ca.roots(), ALPN);
    let box_credentials = ca.credentials(&Leaf::of(GATEWAY)).with_wall_clock(|| 0);
    let error = exchange(&server, client(&box_credentials, &ca.roots())).await.unwrap_err();
    assert!(error.contains("xpired"), "{error}");
}

#[tokio::test]
async fn a_server_in_1970_accepts_a_client_with_a_newer_certificate() {
    let ca = Ca::new();
    let old = ca.credentials(&Leaf::of(CLOUD)).with_wall_clock(|| 0);
    let server = server(&old, &ca.roots(), ALPN);
    let newer = Leaf { uris: vec![GATEWAY.to_owned()], years: (2026, 2090) };
    let identity = exchange(&server, client(&ca.credentials(&newer), &ca.roots())).await;
    assert_eq!(identity.unwrap().to_string(), GATEWAY);
}

#[tokio::test]
async fn a_peer_of_another_protocol_is_refused() {
    let ca = Ca::new();
    let server = server(&ca.credentials(&Leaf::of(CLOUD)), &ca.roots(), b"weir/2");
    let client = client(&ca.credentials(&Leaf::of(GATEWAY)), &ca.roots());
    let error = exchange(&server, client).await.unwrap_err();
    assert!(error.contains("support any known protocol"), "{error}");
}

#[test]
fn an_address_or_interface_that_is_not_ours_is_named() {
    let foreign = bind("192.0.2.1:0".parse().unwrap(), None).unwrap_err();
    let interface = bind("127.0.0.1:0".parse().unwrap(), Some("nope0")).unwrap_err();
    for (error, start) in [
        (foreign, "udp address 192.0.2.1:0 cannot be bound (it must be"),
        (interface, "the interface `nope0` cannot be used ("),
    ] {
        let (text, cause) = (error.to_string(), std::error::Error::source(&error).unwrap().to_string());
        assert!(text.starts_with(start), "{text}");
        assert!(!text.contains(&cause), "the cause is said once: {text}: {cause}");
    }
}

#[test]
fn limits_beyond_the_protocol_are_refused() {
    let transport = Transport { receive_window_bytes: u64::MAX, ..Transport::edge() };
    let error = transport.config().unwrap_err().to_string();
    assert_eq!(error, "`receive window` of 18446744073709551615 exceeds what QUIC can carry");
}
