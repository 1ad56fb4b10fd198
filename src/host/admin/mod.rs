//! The operator's window: health, metrics and status over loopback HTTP and a unix socket.
//!
//! It runs on a thread and runtime of its own, so that it answers while everything else is busy or
//! stuck: that is when it is needed. What it shows comes from closures over snapshots that others
//! publish; a closure must not wait for anything. It only reads, so it needs no password; it is bound to
//! loopback, and it refuses requests whose `Host` is a foreign name (a web page in the operator's
//! browser that has pointed its own name at this machine).

mod metrics;

use std::{
    convert::Infallible,
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};

use crate::percent;
use crate::shutdown::{self, Shutdown, ShutdownTrigger};

pub use metrics::MetricsText;

/// Connections served at a time; more are closed at once and counted.
const CONNECTIONS_MAX: usize = 32;
/// Longest request head.
const HEAD_LEN_MAX: usize = 8 << 10;
/// Time a client has to send its request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time a connection may live, however slowly it reads.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether the service does what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// True answers 200, false 503.
    pub is_ok: bool,
    /// One line for people.
    pub text: String,
}

/// What each path shows, made anew for each request.
pub struct Pages {
    /// `/healthz`
    pub health: Box<dyn Fn() -> Health + Send + Sync>,
    /// `/metrics`, in the Prometheus text format: see [`MetricsText`].
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// `/status.json`
    pub status_json: Box<dyn Fn() -> String + Send + Sync>,
    /// `/`, as HTML.
    pub page_html: &'static str,
    /// Further pages in JSON, which may take a moment.
    pub json: Vec<JsonPage>,
    /// The same for pages about one of many things, whose name is part of the path.
    pub named: Vec<NamedPage>,
}

/// A page in JSON at `PREFIX` + name + `SUFFIX`.
pub struct NamedPage {
    /// What stands before the name, as in `/gateways/`.
    pub prefix: &'static str,
    /// What stands after it, as in `/explain.json`.
    pub suffix: &'static str,
    /// Gives the answer, as in [`JsonPage`].
    pub answer: Box<dyn Fn(Asked<'_>) -> Answer + Send + Sync>,
}

/// What a [`NamedPage`] is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The name in the path.
    pub name: &'a str,
    /// What stands behind the `?`, decoded.
    pub query: &'a str,
}

impl NamedPage {
    /// The name in a path, if it is one of this page.
    fn name(&self, path: &str) -> Option<String> {
        let name = path.strip_prefix(self.prefix)?.strip_suffix(self.suffix)?;
        (!name.contains('/')).then(|| percent::decoded(name)).flatten().filter(|name| !name.is_empty())
    }
}

/// A page in JSON that is asked for with a query.
pub struct JsonPage {
    /// Its path, as in `/record.json`.
    pub path: &'static str,
    /// Gives the answer to what stands behind the `?`, decoded. It must not block; its future is given [`ANSWER_TIMEOUT`].
    pub answer: Box<dyn Fn(&str) -> Answer + Send + Sync>,
}

/// JSON, or why there is none, as a line for people.
pub type Answer = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// How long a [`JsonPage`] may take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Where to listen; bound by the caller.
#[derive(Debug, Default)]
pub struct AdminSockets {
    /// From [`bind_http`].
    pub http: Option<TcpListener>,
    /// From [`bind_unix`].
    pub unix: Option<UnixListener>,
}

/// Why the admin endpoint cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It has no password, so it stays on this machine.
    #[error("the admin address {addr} is not a loopback address; use 127.0.0.1 or [::1]")]
    NotLoopback {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The address is taken or not ours.
    #[error("the admin address {addr} cannot be bound (is another Weir running? set `admin.http` to a port that is free)")]
    BindHttp {
        /// The address asked for.
        addr: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The socket file cannot be made.
    #[error("the admin socket {} cannot be made (its folder must be there and writable for this user: see `admin.unix`)", path.display())]
    BindUnix {
        /// The path asked for.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process answers on the socket file.
    #[error("the admin socket {} is in use by a running process: stop it, or set `admin.unix` to another path", path.display())]
    InUse {
        /// The path asked for.
        path: PathBuf,
    },
    /// The thread or its runtime cannot be started.
    #[error("the admin thread cannot be started")]
    Start(#[source] io::Error),
}

/// The running admin endpoint; dropping it stops it.
#[derive(Debug)]
pub struct Admin {
    trigger: Option<ShutdownTrigger>,
    thread: Option<JoinHandle<()>>,
    refused: Arc<AtomicU64>,
    http_addr: Option<SocketAddr>,
}

impl Admin {
    /// Starts to answer.
    ///
    /// # Errors
    /// `Start` if the system refuses a thread or the sockets.
    pub fn start(sockets: AdminSockets, pages: Pages) -> Result<Self, AdminError> {
        let http_addr = sockets.http.as_ref().and_then(|http| http.local_addr().ok());
        for outcome in [
            sockets.http.as_ref().map(|http| http.set_nonblocking(true)),
            sockets.unix.as_ref().map(|unix| unix.set_nonblocking(true)),
        ] {
            outcome.transpose().map_err(AdminError::Start)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AdminError::Start)?;
        let (trigger, shutdown) = shutdown::channel();
        let refused = Arc::new(AtomicU64::new(0));
        let gate = Gate { pages: Arc::new(pages), places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), refused: refused.clone() };
        let thread = std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                if let Err(err) = runtime.block_on(serve(sockets, gate, shutdown)) {
                    tracing::error!(%err, "admin endpoint stopped");
                }
            })
            .map_err(AdminError::Start)?;
        Ok(Self { trigger: Some(trigger), thread: Some(thread), refused, http_addr })
    }

    /// The address of the HTTP socket.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http_addr
    }

    /// Connections closed at once because there were too many.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Some(trigger) = self.trigger.take() {
            trigger.request();
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("admin thread panicked");
        }
    }
}

/// Binds the HTTP socket; port 0 for any.
///
/// # Errors
/// `NotLoopback` or `BindHttp`.
pub fn bind_http(addr: SocketAddr) -> Result<TcpListener, AdminError> {
    if !addr.ip().is_loopback() {
        return Err(AdminError::NotLoopback { addr });
    }
    TcpListener::bind(addr).map_err(|source| AdminError::BindHttp { addr, source })
}

/// Binds the unix socket, readable and writable by owner and group, in the place of one that is dead.
///
/// # Errors
/// `InUse` if a process answers there, `BindUnix` for the rest.
pub fn bind_unix(path: &Path) -> Result<UnixListener, AdminError> {
    let bind_error = |source| AdminError::BindUnix { path: path.to_owned(), source };
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        if UnixStream::connect(path).is_ok() {
            return Err(AdminError::InUse { path: path.to_owned() });
        }
        fs::remove_file(path).map_err(bind_error)?;
    }
    let listener = UnixListener::bind(path).map_err(bind_error)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(bind_error)?;
    Ok(listener)
}

/// What every connection needs.
#[derive(Clone)]
struct Gate {
    pages: Arc<Pages>,
    places: Arc<Semaphore>,
    refused: Arc<AtomicU64>,
}

impl Gate {
    /// Serves one connection on a task of its own, if there is a place.
    fn admit(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (pages, refused) = (self.pages.clone(), self.refused.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (pages, refused) = (pages.clone(), refused.load(Ordering::Relaxed));
                async move { Ok::<_, Infallible>(respond(&pages, refused, &request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HEAD_LEN_MAX)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => tracing::debug!(%err, "admin connection failed"),
                Err(_) => tracing::debug!("admin connection timed out"),
            }
            drop(place);
        });
    }
}

async fn serve(sockets: AdminSockets, gate: Gate, mut shutdown: Shutdown) -> io::Result<()> {
    let http = sockets.http.map(tokio::net::TcpListener::from_std).transpose()?;
    let unix = sockets.unix.map(tokio::net::UnixListener::from_std).transpose()?;
    loop {
        let accepted = tokio::select! {
            accepted = accept(http.as_ref(), async |http| http.accept().await) => {
                accepted.map(|(stream, _)| gate.admit(stream))
            }
            accepted = accept(unix.as_ref(), async |unix| unix.accept().await) => {
                accepted.map(|(stream, _)| gate.admit(stream))
            }
            () = shutdown.requested() => return Ok(()),
        };
        if let Err(err) = accepted {
            // Out of descriptors: wait for some to come back rather than spin.
            tracing::warn!(%err, "admin connection not accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Accepts from a listener; for ever silent if there is none.
async fn accept<L, S>(listener: Option<&L>, accept: impl AsyncFnOnce(&L) -> io::Result<S>) -> io::Result<S> {
    match listener {
        Some(listener) => accept(listener).await,
        None => std::future::pending().await,
    }
}

async fn respond(pages: &Pages, refused: u64, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !is_own_host(request) {
        return reply(StatusCode::FORBIDDEN, "text/plain", "foreign host name\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n");
    }
    match request.uri().path() {
        "/" => reply(StatusCode::OK, "text/html; charset=utf-8", pages.page_html),
        "/healthz" => {
            let health = (pages.health)();
            let status = if health.is_ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            reply(status, "text/plain; charset=utf-8", health.text + "\n")
        }
        "/metrics" => {
            let mut own = MetricsText::new();
            own.counter(
                "weir_admin_connections_refused_total",
                "Admin connections closed because there were too many.",
                refused,
            );
            reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", (pages.metrics)() + &own.finish())
        }
        "/status.json" => reply(StatusCode::OK, "application/json", (pages.status_json)()),
        path => match percent::decoded(request.uri().query().unwrap_or_default()).and_then(|query| find(pages, path, &query)) {
            Some(answer) => match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
                Ok(Ok(json)) => reply(StatusCode::OK, "application/json", json),
                Ok(Err(reason)) => reply(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", reason + "\n"),
                Err(_) => reply(StatusCode::GATEWAY_TIMEOUT, "text/plain", "no answer in time: it is busy or stuck\n"),
            },
            None => {
                let more: String = pages.json.iter().map(|page| format!(", {}", page.path)).collect();
                let named: String = pages.named.iter().map(|page| format!(", {}NAME{}", page.prefix, page.suffix)).collect();
                let known = format!("not found; here are /, /healthz, /metrics, /status.json{more}{named}\n");
                reply(StatusCode::NOT_FOUND, "text/plain", known)
            }
        },
    }
}

/// The answer of the page of this path, if there is one.
fn find(pages: &Pages, path: &str, query: &str) -> Option<Answer> {
    if let Some(page) = pages.json.iter().find(|page| page.path == path) {
        return Some((page.answer)(query));
    }
    pages.named.iter().find_map(|page| Some((page.answer)(Asked { name: &page.name(path)?, query })))
}

/// True if the request names this machine: an address, `localhost`, or nothing.
fn is_own_host(request: &Request<Incoming>) -> bool {
    let Some(host) = request.headers().get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.is_empty() || name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
