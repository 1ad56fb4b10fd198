use std::net::Ipv4Addr;

use tokio::net::TcpListener;

use super::*;
use crate::tls::{
    self, ClientCerts, Credentials, TlsVersion, TrustRoots,
    tests::{Ca, Leaf},
};

const GATEWAY: &str = "weir://gateway/box-1";
const CLOUD: &str = "weir://cloud/ingest-1";

fn any() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
}

fn server(credentials: &Credentials, roots: &TrustRoots, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    Arc::new(tls::server_config(credentials, ClientCerts::Required(roots), TlsVersion::V13, alpn).unwrap())
}

/// Connects and echoes one message; else what each side has to say.
async fn exchange(server: Arc<ServerConfig>, client: ClientConfig) -> Result<Identity, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let said =
        |side: &str, err: &dyn std::error::Error| format!("{side}: {err}: {:?}; ", err.source().map(ToString::to_string));
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = accept(stream, server).await.map_err(|err| said("server", &err))?;
        let (identity, _) = peer(&stream).map_err(|err| said("server", &err))?;
        let mut message = [0; 5];
        stream.read_exact(&mut message).await.map_err(|err| said("server", &err))?;
        stream.write_all(&message).await.map_err(|err| said("server", &err))?;
        let (mut reader, mut writer) = tokio::io::split(stream);
        finish(&mut reader, &mut writer).await;
        Ok::<_, String>(identity)
    };
    let connecting = async {
        let stream = connect(addr, any(), Some("lo")).await.unwrap();
        let mut stream = secure(stream, Arc::new(client), "localhost").await.map_err(|err| said("client", &err))?;
        stream.write_all(b"hello").await.map_err(|err| said("client", &err))?;
        let mut echo = Vec::new();
        stream.read_to_end(&mut echo).await.map_err(|err| said("client", &err))?;
        assert_eq!(echo, b"hello");
        Ok::<_, String>(())
    };
    match tokio::join!(accepting, connecting) {
        (Ok(identity), Ok(())) => Ok(identity),
        (server, client) => Err([server.err(), client.err()].into_iter().flatten().collect()),
    }
}

#[tokio::test]
async fn both_sides_know_each_other_by_certificate_and_nothing_is_lost_at_the_end() {
    let ca = Ca::new();
    let server = server(&ca.credentials(&Leaf::of(CLOUD)), &ca.roots(), &[ALPN]);
    let client = tls::client_config(&ca.credentials(&Leaf::of(GATEWAY)), &ca.roots(), &[ALPN]).unwrap();
    assert_eq!(exchange(server, client).await.map(|identity| identity.to_string()), Ok(GATEWAY.to_owned()));
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_and_the_client_hears_why() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = server(&ca.credentials(&Leaf::of(CLOUD)), &ca.roots(), &[ALPN]);
    let client = tls::client_config(&other.credentials(&Leaf::of(GATEWAY)), &ca.roots(), &[ALPN]).unwrap();
    let said = exchange(server, client).await.unwrap_err();
    assert!(said.contains("server: TLS handshake failed: Some(\"invalid peer certificate: UnknownIssuer"), "{said}");
    assert!(said.contains("client: received fatal alert"), "{said}");
}

#[tokio::test]
async fn another_protocol_is_refused_on_both_sides() {
    let ca = Ca::new();
    let (cloud, gateway) = (ca.credentials(&Leaf::of(CLOUD)), ca.credentials(&Leaf::of(GATEWAY)));
    let client = |alpn: &[&[u8]]| tls::client_config(&gateway, &ca.roots(), alpn).unwrap();
    for (server, client) in
        [(server(&cloud, &ca.roots(), &[ALPN]), client(&[])), (server(&cloud, &ca.roots(), &[]), client(&[ALPN]))]
    {
        let said = exchange(server, client).await.unwrap_err();
        assert!(said.contains("does not speak weir/1"), "{said}");
    }
    let said = exchange(server(&cloud, &ca.roots(), &[ALPN]), client(&[b"http/1.1"])).await.unwrap_err();
    assert!(said.contains("client: TLS handshake failed"), "{said}");
}

#[tokio::test]
async fn a_way_that_is_not_there_is_told_with_its_reason() {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let err = connect(to, any(), Some("weir-none")).await.unwrap_err();
    assert_eq!(err.to_string(), "the interface `weir-none` cannot be used (there is none of this name now: see `ip link`)");
    let foreign = SocketAddr::from(([192, 0, 2, 1], 0));
    assert!(matches!(connect(to, foreign, None).await, Err(TcpError::Bind { addr, .. }) if addr == foreign));
    let closed = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    assert!(matches!(connect(closed, any(), None).await, Err(TcpError::Connect { to, .. }) if to == closed));
}

#[tokio::test]
async fn the_kernel_holds_little_and_notices_a_dead_peer() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let stream = connect(listener.local_addr().unwrap(), any(), None).await.unwrap();
    let socket = SockRef::from(&stream);
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOTSENT_BYTES);
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(12)));
    assert_eq!((socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_retries().unwrap()), (Duration::from_secs(4), 2));
}
