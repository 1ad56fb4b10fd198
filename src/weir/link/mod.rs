//! The emulated uplink: packets are treated as a real link would treat them.
//!
//! [`model`] is the link itself, pure: a packet and a time go in, its fate comes out; one seed, one history. [`gate`] is a
//! network on the way that lets UDP through or not, pure too. Two shells carry packets through them: [`relay`] UDP between
//! sockets, [`tun`] IP between two network namespaces. Both keep what is on the way in a `transit` and run on a [`thread`] of
//! their own, where they can be cut and slowed. [`profile`] reads what a link is like from `config/links/*.toml`, and
//! [`curve`] its rate over time, also from recorded traces. [`command`] is `weir link`.

pub mod command;
pub mod curve;
pub mod gate;
pub mod model;
pub mod netns;
pub mod profile;
pub mod relay;
pub mod thread;
mod transit;
pub mod tun;
