//! The emulated uplink: a UDP relay that treats packets as a real link would.
//!
//! [`model`] is the link itself, pure: a packet and a time go in, its fate comes out; one seed, one
//! history. [`relay`] is the shell around it, with sockets and a clock. [`profile`] reads what a link is
//! like from `config/links/*.toml`, and [`curve`] its rate over time, also from recorded traces.

pub mod curve;
pub mod model;
pub mod profile;
pub mod relay;
