use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use super::*;

fn pages(is_ok: bool) -> Pages {
    Pages {
        health: Box::new(move || Health { is_ok, text: "as it is".to_owned() }),
        metrics: Box::new(|| {
            let mut metrics = MetricsText::new();
            metrics.gauge("weir_up", "Up.", 1.0);
            metrics.finish()
        }),
        status_json: Box::new(|| "{\"a\":1}".to_owned()),
        page_html: "<p>page</p>",
        json: vec![JsonPage {
            path: "/echo.json",
            answer: Box::new(|query| {
                let query = query.to_owned();
                Box::pin(async move { if query.is_empty() { Err("ask for something".to_owned()) } else { Ok(query) } })
            }),
        }],
        named: vec![NamedPage {
            prefix: "/things/",
            suffix: "/echo.json",
            answer: Box::new(|asked| {
                let both = format!("{} {}", asked.name, asked.query);
                Box::pin(async move { Ok(both) })
            }),
        }],
    }
}

fn start(is_ok: bool) -> (Admin, SocketAddr) {
    let http = bind_http("127.0.0.1:0".parse().unwrap()).unwrap();
    let sockets = AdminSockets { http: Some(http), unix: None };
    let admin = Admin::start(sockets, pages(is_ok)).unwrap();
    let addr = admin.http_addr().unwrap();
    (admin, addr)
}

fn ask(mut stream: impl io::Read + io::Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(addr: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    ask(TcpStream::connect(addr).unwrap(), &request)
}

#[test]
fn every_page_answers() {
    let (_admin, addr) = start(true);
    for (path, status, end) in [
        ("/healthz", "200 OK", "as it is\n"),
        ("/metrics", "200 OK", "weir_admin_connections_refused_total 0\n"),
        ("/status.json?x=1", "200 OK", "{\"a\":1}"),
        ("/", "200 OK", "<p>page</p>"),
        ("/other", "404 Not Found", "/status.json, /echo.json, /things/NAME/echo.json\n"),
        ("/things/a-1/echo.json?b", "200 OK", "a-1 b"),
        ("/things//echo.json", "404 Not Found", "NAME/echo.json\n"),
        ("/things/a/b/echo.json", "404 Not Found", "NAME/echo.json\n"),
        ("/echo.json?a=b%20c", "200 OK", "a=b c"),
        ("/things/a%20b/echo.json?%C3%BC", "200 OK", "a b ü"),
        ("/echo.json?a=%zz", "404 Not Found", "/things/NAME/echo.json\n"),
        ("/echo.json", "404 Not Found", "ask for something\n"),
    ] {
        let answer = get(addr, path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path}: {answer}");
        assert!(answer.ends_with(end), "{path}: {answer}");
    }
    assert!(get(addr, "/metrics").lines().any(|line| line == "weir_up 1"));
}

#[test]
fn ill_health_is_503() {
    let (_admin, addr) = start(false);
    assert!(get(addr, "/healthz").starts_with("HTTP/1.1 503 "));
}

#[test]
fn writes_and_foreign_hosts_are_refused() {
    let (_admin, addr) = start(true);
    let post = "POST /healthz HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n";
    let answer = ask(TcpStream::connect(addr).unwrap(), post);
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let foreign = "GET / HTTP/1.1\r\nHost: evil.example:80\r\nConnection: close\r\n\r\n";
    let answer = ask(TcpStream::connect(addr).unwrap(), foreign);
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[test]
fn an_endless_head_is_refused() {
    let (_admin, addr) = start(true);
    let request = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(7 * HEAD_LEN_MAX));
    let mut stream = TcpStream::connect(addr).unwrap();
    // The server may close before all is written.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
}

#[test]
fn connections_past_the_limit_are_closed_and_counted() {
    let (admin, addr) = start(true);
    let mut held: Vec<TcpStream> = (0..CONNECTIONS_MAX).map(|_| TcpStream::connect(addr).unwrap()).collect();
    // An answer on the last one shows that all before it are admitted.
    let last = held.last_mut().unwrap();
    last.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(last.read(&mut [0; 16]).unwrap() > 0);
    let mut refused = TcpStream::connect(addr).unwrap();
    assert_eq!(refused.read(&mut [0; 16]).unwrap_or(0), 0);
    assert_eq!(admin.refused(), 1);
    drop(held);
    // Their places come back as their ends are noticed.
    let metrics = (0..200).find_map(|_| {
        std::thread::sleep(Duration::from_millis(20));
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut stream = TcpStream::connect(addr).unwrap();
        let mut answer = String::new();
        let asked = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        asked.is_ok_and(|len| len > 0).then_some(answer)
    });
    let metrics = metrics.unwrap();
    assert!(
        metrics.lines().any(|line| line == format!("weir_admin_connections_refused_total {}", admin.refused())),
        "{metrics}"
    );
}

#[test]
fn the_unix_socket_answers_and_takes_the_place_of_a_dead_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    drop(bind_unix(&path).unwrap());
    let unix = bind_unix(&path).unwrap();
    assert!(matches!(bind_unix(&path), Err(AdminError::InUse { .. })));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let sockets = AdminSockets { http: None, unix: Some(unix) };
    let _admin = Admin::start(sockets, pages(true)).unwrap();
    let request = "GET /healthz HTTP/1.1\r\nHost: \r\nConnection: close\r\n\r\n";
    let answer = ask(UnixStream::connect(&path).unwrap(), request);
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes");
    fs::write(&path, "dear diary").unwrap();
    assert!(matches!(bind_unix(&path), Err(AdminError::BindUnix { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "dear diary");
}

#[test]
fn only_loopback_addresses_are_taken() {
    let error = bind_http("0.0.0.0:0".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("0.0.0.0:0 is not a loopback address"), "{error}");
}
