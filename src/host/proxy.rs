//! HTTP CONNECT: a way through a proxy, where a site lets nothing else out.
//!
//! One request and the head of one answer, of which only the status counts: RFC 9110 (9.3.6) has a client ignore what the other
//! fields say of a body. Reading that by hand, with a limit, is less than what it takes to drive a library's client up to
//! its upgrade and out again. What is not plainly such an answer is refused, and so are bytes behind it: the cloud never
//! speaks first, so they are not its own.

use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::percent;

/// Longest head of an answer; proxies' own limits are 8 KiB to 64 KiB, and theirs to a CONNECT are a few lines.
const HEAD_LEN_MAX: usize = 8 * 1024;
/// Longest user and password together.
const USER_LEN_MAX: usize = 512;

/// A proxy, written as `http://[USER:PASSWORD@]HOST:PORT`. Printed, it shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Host and port, an IPv6 address in brackets.
    address: String,
    /// `USER:PASSWORD`, decoded.
    user: Option<String>,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = if self.user.is_some() { "...@" } else { "" };
        write!(f, "http://{user}{}", self.address)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// A text is no proxy's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyFormError {
    /// Another scheme than `http`.
    #[error(
        "it does not begin with `http://`: only plain HTTP proxies are known, and TLS to the cloud goes through them unopened"
    )]
    Scheme,
    /// Not a host and a port.
    #[error("`{0}` is not a host and a port")]
    Address(String),
    /// A user without a password, or one that is too long or wrongly encoded.
    #[error("what is before the `@` is not USER:PASSWORD of at most {USER_LEN_MAX} bytes, special characters as %XX")]
    User,
}

impl FromStr for Proxy {
    type Err = ProxyFormError;

    fn from_str(text: &str) -> Result<Self, ProxyFormError> {
        let rest = text.strip_prefix("http://").ok_or(ProxyFormError::Scheme)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, address) = rest.rsplit_once('@').map_or((None, rest), |(user, address)| (Some(user), address));
        if host_port(address).is_none() {
            return Err(ProxyFormError::Address(address.to_owned()));
        }
        let user = user.map(|user| user_of(user).ok_or(ProxyFormError::User)).transpose()?;
        Ok(Proxy { address: address.to_owned(), user })
    }
}

/// Host (an IPv6 address without its brackets) and port of `host:port`; `None` if it has another form.
pub fn host_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok().then_some(v6)?,
        None if host.contains(':') => return None,
        None => host,
    };
    let is_host = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '@'));
    is_host.then_some((host, port))
}

/// `USER:PASSWORD`, decoded.
fn user_of(text: &str) -> Option<String> {
    let user = percent::decoded(text)?;
    (user.contains(':') && user.len() <= USER_LEN_MAX && !user.contains(char::is_control)).then_some(user)
}

/// Why a proxy gives no way through.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The connection to it.
    #[error("the connection to the proxy broke")]
    Io(#[from] io::Error),
    /// It ended before its answer did.
    #[error("the proxy closed the connection without an answer")]
    Ended,
    /// An answer that does not end.
    #[error("the head of the proxy's answer has more than {HEAD_LEN_MAX} bytes")]
    TooLong,
    /// No HTTP.
    #[error("the proxy's answer is not HTTP/1: `{0}`")]
    Malformed(String),
    /// It refuses.
    #[error("the proxy answers `{0}`")]
    Refused(String),
    /// Something behind the answer, before anything was sent through it.
    #[error("the proxy sends bytes behind its answer")]
    Surplus,
}

impl Proxy {
    /// Where to connect, `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks for a way to `target`, `host:port`. Waits for the answer as long as the caller lets it.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub async fn pass(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), target: &str) -> Result<(), ProxyError> {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(user) = &self.user {
            request += &format!("Proxy-Authorization: Basic {}\r\n", base64(user.as_bytes()));
        }
        request += "\r\n";
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut head = Vec::new();
        loop {
            if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
                status(&head[..end])?;
                return if end + 4 == head.len() { Ok(()) } else { Err(ProxyError::Surplus) };
            }
            if head.len() >= HEAD_LEN_MAX {
                return Err(ProxyError::TooLong);
            }
            let room = HEAD_LEN_MAX - head.len();
            if (&mut *stream).take(room as u64).read_buf(&mut head).await? == 0 {
                return Err(ProxyError::Ended);
            }
        }
    }
}

/// Reads `HTTP/1.x NNN reason`; every 2xx is a way through.
fn status(head: &[u8]) -> Result<(), ProxyError> {
    let text = String::from_utf8_lossy(head);
    let line: String = text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(100).collect();
    let rest = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "));
    let code = rest.map(|rest| rest.split(' ').next().unwrap_or_default());
    match code.filter(|code| code.len() == 3 && code.bytes().all(|c| c.is_ascii_digit())) {
        Some(code) if code.starts_with('2') => Ok(()),
        Some(_) => Err(ProxyError::Refused(line)),
        None => Err(ProxyError::Malformed(line)),
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            let sextet = ALPHABET[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= three.len() { char::from(sextet) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[test]
    fn proxies_have_a_form_and_their_password_is_not_shown() {
        for (text, address) in [
            ("http://proxy.example:3128", "proxy.example:3128"),
            ("http://10.0.0.1:8080/", "10.0.0.1:8080"),
            ("http://u:p@[fd00::1]:3128", "[fd00::1]:3128"),
        ] {
            assert_eq!(text.parse::<Proxy>().map(|proxy| proxy.address().to_owned()), Ok(address.to_owned()));
        }
        let proxy: Proxy = "http://box%201:p%40ss%3A@proxy:3128".parse().unwrap();
        assert_eq!(proxy.user.as_deref(), Some("box 1:p@ss:"));
        assert_eq!(format!("{proxy} {proxy:?}"), "http://...@proxy:3128 Proxy(http://...@proxy:3128)");
        for (text, error) in [
            ("https://proxy:3128", ProxyFormError::Scheme),
            ("proxy:3128", ProxyFormError::Scheme),
            ("http://proxy", ProxyFormError::Address("proxy".to_owned())),
            ("http://proxy:3128/path", ProxyFormError::Address("proxy:3128/path".to_owned())),
            ("http://a b:1", ProxyFormError::Address("a b:1".to_owned())),
            ("http://user@proxy:3128", ProxyFormError::User),
            ("http://u%0a:x@proxy:3128", ProxyFormError::User),
            ("http://u:%+1@proxy:3128", ProxyFormError::User),
            ("http://u:%4@proxy:3128", ProxyFormError::User),
        ] {
            assert_eq!(text.parse::<Proxy>(), Err(error), "{text}");
        }
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("Aladdin:open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ];
        for (text, encoded) in cases {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    /// What comes of an answer that arrives in parts.
    async fn answered(answer: &[u8], part_len: usize) -> (String, Result<(), String>) {
        let proxy: Proxy = "http://u:p@proxy:1".parse().unwrap();
        let (mut near, mut far) = duplex(64 * 1024);
        let answering = async {
            let mut request = vec![0; 1_024];
            let len = far.read(&mut request).await.unwrap();
            for part in answer.chunks(part_len) {
                // It may have heard enough.
                let _ = far.write_all(part).await;
                tokio::task::yield_now().await;
            }
            drop(far);
            String::from_utf8_lossy(&request[..len]).into_owned()
        };
        let (request, result) = tokio::join!(answering, proxy.pass(&mut near, "cloud.example:443"));
        (request, result.map_err(|err| err.to_string()))
    }

    #[tokio::test]
    async fn only_a_plain_answer_is_a_way_through() {
        let (request, result) =
            answered(b"HTTP/1.1 200 Connection established\r\nVia: x\r\nContent-Length: 7\r\n\r\n", 3).await;
        assert_eq!(result, Ok(()));
        assert_eq!(
            request,
            "CONNECT cloud.example:443 HTTP/1.1\r\nHost: cloud.example:443\r\nProxy-Authorization: Basic dTpw\r\n\r\n"
        );
        let long = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; HEAD_LEN_MAX]].concat();
        for (answer, words) in [
            (b"HTTP/1.0 407 Proxy Authentication Required\r\n\r\n".as_slice(), "`HTTP/1.0 407 Proxy Authentication Required`"),
            (b"HTTP/1.1 502\r\n\r\n", "`HTTP/1.1 502`"),
            (b"HTTP/2 200\r\n\r\n", "is not HTTP/1"),
            (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "is not HTTP/1"),
            (b"HTTP/1.1 20\r\n\r\n", "is not HTTP/1"),
            (b"HTTP/1.1 200 OK\r\n\r\nx", "bytes behind its answer"),
            (b"HTTP/1.1 200 OK\r\n", "without an answer"),
            (&long, "more than 8192 bytes"),
        ] {
            for part_len in [1_000, 1] {
                let (_, result) = answered(answer, part_len).await;
                let said = result.unwrap_err();
                // Cut that finely, the surplus has not come yet when the answer ends; TLS refuses it then.
                assert!(said.contains(words), "{said}");
                if words.contains("behind") {
                    break;
                }
            }
        }
    }
}
