use std::os::unix::fs::PermissionsExt as _;

use clap::Parser;
use weir_host::clock::Clock;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: PkiCommand,
}

fn run(args: &[&str]) -> Result<String, PkiError> {
    let cli = Cli::try_parse_from(std::iter::once(&"weir").chain(args)).unwrap();
    let mut out = Vec::new();
    cli.command.run(&mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn commands_write_files_that_load_with_the_identity_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let said = run(&["init", "--dir", at]).unwrap();
    assert!(said.contains("ca.key (keep it here)"), "{said}");
    let said = run(&["issue", "gateway", "box-1", "--dir", at]).unwrap();
    assert!(said.contains("weir://gateway/box-1"), "{said}");
    run(&["issue", "cloud", "ingest", "--dns", "in.example", "--ip", "10.0.0.1", "--dir", at]).unwrap();

    let file = |name: &str| dir.path().join(name);
    for key in ["ca.key", "box-1.key", "ingest.key"] {
        assert_eq!(fs::metadata(file(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
    }
    let credentials = Credentials::load(&file("box-1.pem"), &file("box-1.key")).unwrap();
    assert_eq!(credentials.identity().unwrap().to_string(), "weir://gateway/box-1");
    let wall = Clock::start(None).wall();
    credentials.check_validity(wall).unwrap();
    let now_s = wall.unix_us / 1_000_000;
    assert!((now_s - credentials.not_before_s()).abs_diff(DAY_S) < 60, "begins yesterday");
    assert!((credentials.not_after_s() - now_s).abs_diff(LEAF_DAYS * DAY_S) < 60);
    let ca = Credentials::load(&file("ca.pem"), &file("ca.key")).unwrap();
    assert!((ca.not_after_s() - now_s).abs_diff(CA_DAYS * DAY_S) < 60);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6, "no partial files are left");
}

#[test]
fn nothing_is_replaced_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), false).unwrap();
    let ca = fs::read(dir.path().join("ca.pem")).unwrap();
    assert!(matches!(init(dir.path(), false), Err(PkiError::Exists { .. })));
    assert_eq!(fs::read(dir.path().join("ca.pem")).unwrap(), ca);
    issue(dir.path(), &Request::gateway("a"), false).unwrap();
    let error = issue(dir.path(), &Request::gateway("a"), false).unwrap_err().to_string();
    assert!(error.contains("a.pem is there already; use --force"), "{error}");
    issue(dir.path(), &Request::gateway("a"), true).unwrap();
    init(dir.path(), true).unwrap();
    assert_ne!(fs::read(dir.path().join("ca.pem")).unwrap(), ca);
}

#[test]
fn requests_that_make_no_sense_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = issue(dir.path(), &Request::gateway("a"), false).unwrap_err().to_string();
    assert!(error.contains("make one with `weir pki init`"), "{error}");
    init(dir.path(), false).unwrap();
    let error = |request: &Request| issue(dir.path(), request, true).unwrap_err().to_string();
    assert!(error(&Request::gateway("ca")).contains("choose another"));
    assert!(error(&Request::gateway("../a")).contains("is not weir://gateway/NAME"));
    assert!(error(&Request { role: Role::Cloud, ..Request::gateway("c") }).contains("add --dns HOST"));
    assert!(error(&Request { days: 0, ..Request::gateway("a") }).contains("0 days is not a life"));
    fs::copy(dir.path().join("ca.key"), dir.path().join("old.key")).unwrap();
    init(dir.path(), true).unwrap();
    fs::copy(dir.path().join("old.key"), dir.path().join("ca.key")).unwrap();
    let error = issue(dir.path(), &Request::gateway("a"), false).unwrap_err();
    assert!(matches!(error, PkiError::Authority(TlsError::KeyMismatch { .. })), "{error:?}");
}

#[test]
fn an_authority_in_memory_issues_what_it_would_to_files() {
    let authority = Authority::new().unwrap();
    let issued = authority.issue(&Request::local_cloud("here")).unwrap();
    let credentials = Credentials::from_pem(issued.cert_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
    assert_eq!(credentials.identity().unwrap().to_string(), "weir://cloud/here");
    assert_ne!(
        common_name(authority.cert_pem().as_bytes()).unwrap(),
        common_name(Authority::new().unwrap().cert_pem().as_bytes()).unwrap()
    );
}

/// Whether a box with `client` can connect to a server with `server` at `localhost`.
async fn connects(ca: &str, client: &Issued, server: &Issued) -> Result<(), String> {
    use weir_host::{quic, tls};
    let load = |issued: &Issued| Credentials::from_pem(issued.cert_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
    let roots = tls::TrustRoots::from_pem(ca.as_bytes()).unwrap();
    let clients = tls::ClientCerts::Required(&roots);
    let server = tls::server_config(&load(server), clients, tls::TlsVersion::V13, &[tls::ALPN]).unwrap();
    let client = tls::client_config(&load(client), &roots, &[tls::ALPN]).unwrap();
    let loopback = || quic::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let server = quic::server_config(server, &quic::Transport::cloud()).unwrap();
    let server = quic::server_endpoint(loopback(), server).unwrap();
    let client = quic::client_config(client, &quic::Transport::edge()).unwrap();
    let endpoint = quic::client_endpoint(loopback()).unwrap();
    let connecting = endpoint.connect_with(client, server.local_addr().unwrap(), "localhost").unwrap();
    let accepting = async { server.accept().await.unwrap().await.map_err(|err| err.to_string()) };
    let (connected, accepted) = tokio::join!(connecting, accepting);
    connected.map_err(|err| err.to_string())?;
    accepted.map(drop)
}

#[tokio::test]
async fn a_box_and_a_cloud_issued_on_different_days_trust_each_other() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), false).unwrap();
    let client = Authority::load(dir.path()).unwrap().issue(&Request::gateway("box-1")).unwrap();
    let authority = Authority::load(dir.path()).unwrap();
    let server = authority.issue(&Request::local_cloud("here")).unwrap();
    connects(authority.cert_pem(), &client, &server).await.unwrap();
}

#[tokio::test]
async fn a_stolen_box_certificate_cannot_pose_as_the_cloud() {
    let authority = Authority::new().unwrap();
    let client = authority.issue(&Request::gateway("box-1")).unwrap();
    let thief = authority.issue(&Request::gateway("box-2")).unwrap();
    let error = connects(authority.cert_pem(), &client, &thief).await.unwrap_err();
    assert!(error.contains("invalid peer certificate"), "{error}");
}
