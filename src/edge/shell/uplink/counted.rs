//! A socket whose bytes are counted below TLS: what a metered uplink is charged for, and what shows that the peer lives.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use weir_logic::health::PathStats;

/// What went through the sockets of one session.
#[derive(Debug, Default)]
pub(super) struct Counts {
    reads: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
}

/// Payload of a full segment on most links. Source: 1,500 bytes of Ethernet, less IPv4, TCP and timestamps.
const SEGMENT_LEN: u64 = 1_448;
/// Their headers.
const HEADERS_LEN: u64 = 52;

impl Counts {
    /// What is known of the path. The kernel's own estimates cannot be read without unsafe code: there are none.
    pub(super) fn path(&self) -> PathStats {
        // Headers are estimated, so that a month's bytes are not spent by what nobody counts.
        let with_headers = |bytes: u64| bytes + bytes.div_ceil(SEGMENT_LEN) * HEADERS_LEN;
        PathStats {
            // Each read is a word of the peer.
            received_packets: self.reads.load(Relaxed),
            received_bytes: with_headers(self.received_bytes.load(Relaxed)),
            sent_bytes: with_headers(self.sent_bytes.load(Relaxed)),
            ..PathStats::default()
        }
    }
}

/// A socket that adds to [`Counts`].
#[derive(Debug)]
pub(super) struct Counted {
    stream: TcpStream,
    counts: Arc<Counts>,
}

impl Counted {
    pub(super) fn new(stream: TcpStream, counts: Arc<Counts>) -> Self {
        Counted { stream, counts }
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let len = (buffer.filled().len() - before) as u64;
        if len > 0 {
            self.counts.reads.fetch_add(1, Relaxed);
            self.counts.received_bytes.fetch_add(len, Relaxed);
        }
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(len)) = &written {
            self.counts.sent_bytes.fetch_add(*len as u64, Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
