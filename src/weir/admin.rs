//! Asks the admin endpoint of a running box or cloud.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// Where a box shows itself unless its configuration says otherwise.
pub const EDGE_ADDRESS: &str = "127.0.0.1:9180";
/// Longest answer that is taken.
const ANSWER_LEN_MAX: u64 = 64 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Gets a page from `address`: `HOST:PORT`, or the path of a unix socket.
///
/// # Errors
/// If nobody answers there, or the answer is not 200; its text is the reason.
pub fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let nobody = || format!("nobody answers on {address}: is it running, and is this its `admin` address?");
    if address.contains('/') {
        let stream = UnixStream::connect(address).with_context(nobody)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        ask(stream, path)
    } else {
        let stream = TcpStream::connect(address).with_context(nobody)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        ask(stream, path)
    }
    .with_context(|| format!("{address}{path}"))
}

fn ask(mut stream: impl Read + Write, path: &str) -> anyhow::Result<String> {
    // Version 1.0: the answer ends with the connection, and comes in one piece.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_LEN_MAX).read_to_string(&mut answer)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("the answer is not HTTP") };
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => bail!("{}", body.trim_end()),
    }
}

/// A value in a query: what is not a letter, a digit or one of `-_.~:` is percent-encoded.
pub fn encoded(value: &str) -> String {
    value.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b':' => text.push(char::from(byte)),
            _ => text += &format!("%{byte:02X}"),
        }
        text
    })
}
