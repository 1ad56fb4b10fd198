//! An HTTP proxy that knows CONNECT and nothing else: threads that copy bytes, and what a test wants to know of them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A proxy on a loopback port. It ends when dropped, with all that goes through it.
#[derive(Debug)]
pub struct HttpProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// `Basic` and what follows; `None` lets everybody through.
    authorization: Option<String>,
    is_stopped: AtomicBool,
    tunnels: AtomicU64,
    refused: AtomicU64,
    copied_bytes: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl HttpProxy {
    /// Starts one; `authorization` is the value that the field `Proxy-Authorization` must have, if any.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start(authorization: Option<&str>) -> HttpProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let addr = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared { authorization: authorization.map(str::to_owned), ..Shared::default() });
        let serving = shared.clone();
        let thread = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serving.is_stopped.load(Relaxed) {
                    return;
                }
                let shared = serving.clone();
                std::thread::spawn(move || {
                    // Whoever went wrong notices by itself.
                    let _ = serve(&shared, client);
                });
            }
        });
        HttpProxy { addr, shared, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections it has made for clients.
    pub fn tunnels(&self) -> u64 {
        self.shared.tunnels.load(Relaxed)
    }

    /// Clients it has refused.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Relaxed)
    }

    /// Bytes that went through it.
    pub fn copied_bytes(&self) -> u64 {
        self.shared.copied_bytes.load(Relaxed)
    }

    /// Ends all that goes through it now, in the middle of whatever it is.
    ///
    /// # Panics
    /// If one of its threads did.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().expect("nobody panics with it").drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.addr);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.cut();
    }
}

fn serve(shared: &Arc<Shared>, mut client: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut request, mut authorization) = (String::new(), None);
    reader.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.trim_end().strip_prefix("Proxy-Authorization: ") {
            authorization = Some(value.to_owned());
        }
    }
    let target = request.strip_prefix("CONNECT ").and_then(|rest| rest.strip_suffix(" HTTP/1.1\r\n"));
    let is_allowed = shared.authorization.is_none() || authorization == shared.authorization;
    let Some(target) = target.filter(|_| is_allowed) else {
        shared.refused.fetch_add(1, Relaxed);
        let status = if is_allowed { "405 Method Not Allowed" } else { "407 Proxy Authentication Required" };
        return write!(client, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    };
    let Ok(mut server) = TcpStream::connect(target) else {
        return write!(client, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    };
    shared.open.lock().expect("nobody panics with it").extend([client.try_clone()?, server.try_clone()?]);
    write!(client, "HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")?;
    shared.tunnels.fetch_add(1, Relaxed);
    let (mut from_server, mut to_client, counting) = (server.try_clone()?, client.try_clone()?, shared.clone());
    let back = std::thread::spawn(move || copy(&counting, &mut from_server, &mut to_client));
    copy(shared, &mut client, &mut server);
    let _ = back.join();
    Ok(())
}

/// Copies until either side ends, and tells the other.
fn copy(shared: &Shared, from: &mut TcpStream, to: &mut TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
        shared.copied_bytes.fetch_add(len as u64, Relaxed);
    }
    let _ = to.shutdown(Shutdown::Write);
}
