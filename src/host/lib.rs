//! Process plumbing that both binaries share, and that knows nothing of what Weir decides.
//!
//! - [`units`], [`config`]: configuration text with units, every mistake shown at once.
//! - [`clock`]: monotonic service time carried over boots, and a wall clock that says whether to trust it.
//! - [`tls`], [`quic`], [`tcp`], [`proxy`]: certificates and the identity in them; endpoints with limits for small boxes; what
//!   is to stand in for QUIC where it does not pass.
//! - [`policy`], [`package`], [`sign`]: the head of a policy, models on their way, signatures of both, and the keys for that.
//! - [`admin`]: health, metrics and status over loopback HTTP and a unix socket, on their own thread.
//! - [`log`], [`shutdown`], [`notify`]: what a service owes its operator and its supervisor.

pub mod admin;
pub mod clock;
pub mod config;
pub mod log;
pub mod notify;
pub mod package;
pub mod percent;
pub mod policy;
pub mod proxy;
pub mod quic;
pub mod shutdown;
pub mod sign;
pub mod tcp;
pub mod tls;
pub mod units;
