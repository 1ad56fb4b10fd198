//! One request to stop, heard by every task.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Hears the request to stop. Clone one for each task.
#[derive(Debug, Clone)]
pub struct Shutdown {
    requested_rx: watch::Receiver<bool>,
}

/// Makes the request to stop. Dropping it makes the request too, so that no task outlives its owner.
#[derive(Debug, Clone)]
pub struct ShutdownTrigger {
    requested_tx: watch::Sender<bool>,
}

/// A trigger and what hears it.
pub fn channel() -> (ShutdownTrigger, Shutdown) {
    let (requested_tx, requested_rx) = watch::channel(false);
    (ShutdownTrigger { requested_tx }, Shutdown { requested_rx })
}

/// Requests shutdown on the first SIGTERM or SIGINT. Must be called within a tokio runtime.
///
/// # Errors
/// The kernel's, if a signal handler cannot be installed.
pub fn on_signals() -> io::Result<Shutdown> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (trigger, shutdown) = channel();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "shutdown requested");
        trigger.request();
    });
    Ok(shutdown)
}

impl ShutdownTrigger {
    /// Asks every task to stop.
    pub fn request(&self) {
        self.requested_tx.send_replace(true);
    }
}

impl Shutdown {
    /// Returns once shutdown has been requested; at once if it was before. Cancel safe.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which is a request as well.
        let _ = self.requested_rx.wait_for(|requested| *requested).await;
    }

    /// True once shutdown has been requested.
    pub fn is_requested(&self) -> bool {
        *self.requested_rx.borrow() || self.requested_rx.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_clone_hears_the_request() {
        let (trigger, shutdown) = channel();
        let (mut a, mut b) = (shutdown.clone(), shutdown);
        assert!(!a.is_requested());
        let waiting = tokio::spawn(async move { a.requested().await });
        trigger.request();
        waiting.await.unwrap();
        b.requested().await;
        assert!(b.is_requested());
    }

    #[tokio::test]
    async fn a_lost_trigger_is_a_request() {
        let (trigger, mut shutdown) = channel();
        drop(trigger);
        assert!(shutdown.is_requested());
        shutdown.requested().await;
    }

    #[tokio::test]
    async fn sigterm_is_a_request() {
        let mut shutdown = on_signals().unwrap();
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::TERM).unwrap();
        shutdown.requested().await;
        assert!(shutdown.is_requested());
    }
}
