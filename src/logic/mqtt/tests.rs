//! The protocol from the client's side: packets are encoded here by hand, never by the code under test.

mod client;
mod order;
mod packets;
mod streams;
