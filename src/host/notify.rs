//! Tells the supervisor (systemd) how the service is: ready, making progress, what it is doing.
//!
//! The protocol is a few lines of text in one datagram to the socket that `NOTIFY_SOCKET` names, so a
//! library would be longer than this. Without the variable everything here does nothing.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// The way to the supervisor, if there is one.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// Reads `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    ///
    /// # Errors
    /// `NOTIFY_SOCKET` names a socket that cannot be reached.
    pub fn from_env() -> io::Result<Self> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        let watchdog_us = std::env::var("WATCHDOG_USEC").ok().and_then(|us| us.parse().ok());
        let is_ours = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let watchdog = watchdog_us.filter(|_| is_ours).map(Duration::from_micros);
        Ok(Self { socket: Some(connect(&name)?), watchdog })
    }

    /// The service does its work from here on.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The service is shutting down.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The service made progress. Call it at least twice per [`Notify::watchdog_interval`].
    pub fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    /// One line for people.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", text.replace('\n', " ")));
    }

    /// How long the supervisor waits for progress before it restarts the service; `None` for ever.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(err) = socket.send(message.as_bytes())
        {
            tracing::warn!(%err, "supervisor not reached");
        }
    }
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A supervisor that does not read must not hold up the service.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn messages_reach_a_socket_by_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        let notify = Notify { socket: Some(connect(path.as_os_str()).unwrap()), watchdog: None };
        notify.ready();
        notify.status("two\nlines");
        notify.watchdog();
        notify.stopping();
        let messages: Vec<String> = (0..4).map(|_| receive(&supervisor)).collect();
        assert_eq!(messages, ["READY=1", "STATUS=two lines", "WATCHDOG=1", "STOPPING=1"]);
    }

    #[test]
    fn messages_reach_an_abstract_socket() {
        let name = format!("weir-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let supervisor = UnixDatagram::bind_addr(&address).unwrap();
        let name = format!("@{name}");
        let notify = Notify { socket: Some(connect(name.as_ref()).unwrap()), watchdog: None };
        notify.ready();
        assert_eq!(receive(&supervisor), "READY=1");
    }

    #[test]
    fn without_a_supervisor_nothing_happens() {
        let notify = Notify::default();
        notify.ready();
        assert_eq!(notify.watchdog_interval(), None);
    }

    #[test]
    fn a_socket_that_is_not_there_is_an_error() {
        assert!(connect("/nowhere/notify".as_ref()).is_err());
    }
}
