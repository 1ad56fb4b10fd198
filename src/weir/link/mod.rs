//! The emulated uplink: packets are treated as a real link would treat them.
//!
//! [`model`] is the link itself, pure: a packet and a time go in, its fate comes out; one seed, one history. [`gate`] is a
//! network on the way that lets UDP through or not, pure too. [`relay`] is the shell that carries UDP between sockets; it keeps
//! what is on the way in a `transit` and runs on a [`thread`] of its own, where it can be cut and slowed. [`profile`] reads
//! what a link is like from `config/links/*.toml`, and [`curve`] its rate over time, also from recorded traces.

pub mod curve;
pub mod gate;
pub mod model;
pub mod profile;
pub mod relay;
pub mod thread;
mod transit;
