//! A link on a thread of its own, because what it measures is time: what can be done to it, and what it tells.

use std::{future::Future, io, thread::JoinHandle};

use serde::Serialize;
use tokio::{runtime::Runtime, sync::watch};
use weir_host::{
    shutdown::{self, Shutdown, ShutdownTrigger},
    units::{BitRate, Duration, Ratio},
};

use super::{gate::UdpPolicy, model::LinkCounts};

/// What a person, or a test, does to the link. The default leaves all to the profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Control {
    /// Takes the link down, whatever the profile says.
    pub is_down: bool,
    /// Multiplies the rate.
    pub rate_scale: Ratio,
    /// In the place of the profile's rate, in both directions.
    pub rate: Option<BitRate>,
    /// In the place of the profile's losses, in both directions.
    pub loss: Option<Ratio>,
    /// In the place of the profile's delay, in both directions.
    pub delay: Option<Duration>,
    /// What becomes of UDP.
    pub udp: UdpPolicy,
}

impl Default for Control {
    fn default() -> Self {
        let (rate_scale, udp) = (Ratio::from_percent(100), UdpPolicy::Open);
        Self { is_down: false, rate_scale, rate: None, loss: None, delay: None, udp }
    }
}

/// The link as it is, published every 100 ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LinkStats {
    /// Age of the link in microseconds.
    pub elapsed_us: u64,
    /// Whether it carries anything from the box now.
    pub is_up: bool,
    /// How long it was down so far, in microseconds, to 10 ms an outage.
    pub down_us: u64,
    /// From the box to the cloud.
    pub up: DirectionStats,
    /// From the cloud to the box.
    pub down: DirectionStats,
    /// Client addresses served now; only a relay has any.
    pub clients: u64,
    /// Client addresses that had to make room for others.
    pub evicted_clients: u64,
    /// What is done to the link now.
    pub control: Control,
    /// UDP packets that the network refused, by its policy.
    pub refused_packets: u64,
    /// Packets dropped because too much was on the way.
    pub overflow_packets: u64,
    /// Packets that came out of the link and could not be sent: nobody listens there, or the client is gone.
    pub undeliverable_packets: u64,
}

/// One direction of the link as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DirectionStats {
    /// What became of packets so far.
    pub counts: LinkCounts,
    /// Rate now, in bits per second.
    pub bits_per_s: u64,
    /// Bytes that wait now.
    pub queued_bytes: u64,
}

/// A link that runs; dropping it stops it.
#[derive(Debug)]
pub struct LinkThread {
    control_tx: watch::Sender<Control>,
    stats_rx: watch::Receiver<LinkStats>,
    trigger: Option<ShutdownTrigger>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// The other end of a [`LinkThread`]: what the link is told, and where it tells.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) control_rx: watch::Receiver<Control>,
    pub(super) stats_tx: watch::Sender<LinkStats>,
    pub(super) shutdown: Shutdown,
}

impl LinkThread {
    /// Runs a link on a thread of its own, within `runtime`.
    pub(super) fn spawn<R>(runtime: Runtime, run: impl FnOnce(Remote) -> R + Send + 'static) -> io::Result<LinkThread>
    where
        R: Future<Output = io::Result<()>>,
    {
        let (control_tx, control_rx) = watch::channel(Control::default());
        let (stats_tx, stats_rx) = watch::channel(LinkStats::default());
        let (trigger, shutdown) = shutdown::channel();
        let remote = Remote { control_rx, stats_tx, shutdown };
        let thread = std::thread::Builder::new().name("link".to_owned()).spawn(move || runtime.block_on(run(remote)))?;
        Ok(LinkThread { control_tx, stats_rx, trigger: Some(trigger), thread: Some(thread) })
    }

    /// The link as it was at most 100 ms ago.
    pub fn stats(&self) -> LinkStats {
        *self.stats_rx.borrow()
    }

    /// Statistics as they are published; they end with the link.
    pub fn watch(&self) -> watch::Receiver<LinkStats> {
        self.stats_rx.clone()
    }

    /// Changes what is done to the link, soon: see [`LinkThread::obeyed`].
    pub fn control(&self, change: impl FnOnce(&mut Control)) {
        self.control_tx.send_modify(change);
    }

    /// Returns once the link does what it was told, or has ended.
    pub async fn obeyed(&self) {
        let wanted = *self.control_tx.borrow();
        // An error means that it has ended.
        let _ = self.watch().wait_for(|stats| stats.control == wanted).await;
    }

    /// Takes the link down, whatever the profile says, or gives it back to the profile.
    pub fn force_down(&self, is_down: bool) {
        self.control(|control| control.is_down = is_down);
    }

    /// Multiplies the rate.
    pub fn scale_rate(&self, rate_scale: Ratio) {
        self.control(|control| control.rate_scale = rate_scale);
    }

    /// Stops the link and says how it ended, also if it had ended before.
    ///
    /// # Errors
    /// What ended it: a socket or a device that is gone.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        if let Some(trigger) = self.trigger.take() {
            trigger.request();
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("the link's thread panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for LinkThread {
    fn drop(&mut self) {
        if let Err(err) = self.end() {
            tracing::error!(%err, "link stopped");
        }
    }
}
