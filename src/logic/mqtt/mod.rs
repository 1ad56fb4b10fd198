//! MQTT 3.1.1 and 5: the server's side for an endpoint that takes PUBLISH and nothing else, and the client's for taking
//! messages from a broker, see [`Subscriber`].
//!
//! A sensor connects, proves who it is, and publishes; each QoS 1 message gets its PUBACK when the record it became is
//! safe, in the order of receipt. There is no subscriber, so there is no session, no retained message, no outgoing PUBLISH.
//! [`Connection`] is one client: bytes in, events out, bytes to write. [`AckQueue`] keeps its unacknowledged messages in
//! order. [`TopicRouter`] says, with one hash lookup, which stream and device a user's topic is, or that it is not allowed.
//!
//! Cases that surprised us:
//! - A client may send PUBLISH right behind CONNECT: what follows waits, bounded, until `authenticated` is called.
//! - A socket that we do not read must not cost the client its keep-alive: the clock stands still while paused.
//! - QoS 2 is not offered: MQTT 5 is told so in CONNACK; 3.1.1 cannot be told, so such a PUBLISH closes the connection.
//! - RETAIN is accepted and means nothing: without subscribers nobody can tell the difference.
//! - The session ends with the connection, so a will delay never runs: [`Connection::take_will`] gives the will at once.
//! - A packet id that is used again while in flight is answered each time; a table to notice would cost 8 KiB a client.

mod ack;
mod codec;
mod connect;
mod connection;
mod counters;
mod encode;
mod error;
mod event;
mod filter;
mod props;
mod rate;
mod router;
mod subscriber;
mod tree;

#[cfg(test)]
mod tests;

pub use ack::{Ack, AckQueue};
pub use codec::{Packet, Version};
pub use connection::Connection;
pub use counters::Counters;
pub use encode::PubAck;
pub use error::{AuthRefusal, Close, DisconnectReason, ProtocolError};
pub use event::{ConnLimits, ConnectRequest, Event, Flow, Next, Pause, Publish, UserIndex, Will};
pub use filter::{FILTER_LEVELS_MAX, Filter, FilterError, TOPIC_LEN_MAX};
pub use router::{DeviceIndex, DeviceTable, Route, RouterLimits, TopicRouter};
pub use subscriber::{BrokerClose, Delivery, Secret, Subscriber, SubscriberOptions};
pub use tree::{FilterTree, Match};
