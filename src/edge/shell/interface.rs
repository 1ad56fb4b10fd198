//! Watches the network interfaces that uplinks name: whether each is there, and whether it can carry anything.
//!
//! A modem appears a minute after the box, is pulled, comes back under the same name; a cable is plugged in. An uplink that
//! waits for its next attempt should hear of it at once. The ioctl that finds an interface by its name and three short files of
//! sysfs, four times a second, cost less than a netlink library would.
//!
//! sysfs may be hidden from a service, or show the interfaces of another network namespace. So that an interface is there is
//! only what the ioctl says, and sysfs counts only if it means the same interface; otherwise one that is there counts as up.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use tokio::sync::watch;

/// How often interfaces are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What is known of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InterfaceState {
    /// Its number; `None` while there is none of its name. One that came back under its name has another number, and a
    /// socket that was bound to the old one is of no use any more.
    pub(crate) index: Option<u32>,
    /// Whether it can carry anything.
    pub(crate) up: bool,
}

/// The interfaces that are watched.
pub(crate) struct Interfaces {
    /// Any socket will do to ask the kernel.
    socket: OwnedFd,
    watched: BTreeMap<String, watch::Sender<InterfaceState>>,
}

impl Interfaces {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The kernel's, if it gives no socket.
    pub(crate) fn new() -> std::io::Result<Interfaces> {
        Ok(Interfaces { socket: socket(AddressFamily::INET, SocketType::DGRAM, None)?, watched: BTreeMap::new() })
    }

    /// The state of an interface, now and whenever it changes while [`Interfaces::run`] runs.
    pub(crate) fn watch(&mut self, name: &str) -> watch::Receiver<InterfaceState> {
        if let Some(state_tx) = self.watched.get(name) {
            return state_tx.subscribe();
        }
        let (state_tx, state_rx) = watch::channel(look(&self.socket, name));
        self.watched.insert(name.to_owned(), state_tx);
        state_rx
    }

    /// Looks again and again, for ever; does nothing if nothing is watched.
    pub(crate) async fn run(self) {
        if self.watched.is_empty() {
            return;
        }
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for (name, state_tx) in &self.watched {
                let state = look(&self.socket, name);
                let changed = state_tx.send_if_modified(|old| std::mem::replace(old, state) != state);
                if changed {
                    tracing::info!(interface = name, there = state.index.is_some(), up = state.up, "interface changed");
                }
            }
        }
    }
}

/// Asks the kernel. The files are the kernel's memory, so that reading them waits for no disk.
fn look(socket: &OwnedFd, name: &str) -> InterfaceState {
    let Ok(index) = name_to_index(socket, name) else { return InterfaceState { index: None, up: false } };
    let read = |file: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/{file}")).unwrap_or_default();
    let is_same = read("ifindex").trim().parse() == Ok(index);
    InterfaceState { index: Some(index), up: !is_same || carries(&read("operstate"), &read("carrier")) }
}

/// Reads the words of `Documentation/networking/operstates.rst`. Tunnels and modems often say `unknown` for ever, and the
/// carrier of an interface that was set down cannot be read.
fn carries(operstate: &str, carrier: &str) -> bool {
    carrier.trim() == "1" && !matches!(operstate.trim(), "notpresent" | "down" | "lowerlayerdown" | "testing" | "dormant")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_is_told_from_what_only_is_there() {
        assert!(carries("up\n", "1\n") && carries("unknown\n", "1\n"));
        for (operstate, carrier) in [("down\n", "0\n"), ("down\n", ""), ("dormant\n", "1\n"), ("lowerlayerdown\n", "1\n")] {
            assert!(!carries(operstate, carrier), "{operstate}{carrier}");
        }
    }

    #[tokio::test]
    async fn loopback_is_there_and_a_name_that_nobody_has_is_not() {
        let mut interfaces = Interfaces::new().unwrap();
        let there = *interfaces.watch("lo").borrow();
        assert_eq!(there, InterfaceState { index: Some(1), up: true });
        assert_eq!(*interfaces.watch("weir-none").borrow(), InterfaceState { index: None, up: false });
        assert_eq!(interfaces.watched.len(), 2);
        interfaces.watch("lo");
        assert_eq!(interfaces.watched.len(), 2, "an interface is looked at once for all uplinks on it");
    }
}
