//! Network addresses and keys as text; the texts of `std` do not say what to write.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserializer, de};
use weir_host::proxy::Proxy;
use weir_host::sign::PublicKey;

/// For serde: an IP address and a port.
pub(super) fn with_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let example = "\"127.0.0.1:1883\" or \"[::1]:1883\"";
    deserializer.deserialize_str(AddressVisitor { what: "an IP address with a port", example, address: PhantomData })
}

/// For serde: an IP address that may be left out.
pub(super) fn alone<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let example = "\"192.168.8.100\", without a port";
    deserializer.deserialize_str(AddressVisitor { what: "an IP address", example, address: PhantomData }).map(Some)
}

/// For serde: an HTTP proxy that may be left out.
pub(super) fn proxy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Proxy>, D::Error> {
    deserializer.deserialize_str(ProxyVisitor).map(Some)
}

/// For serde: a key that policies are signed with, which may be left out.
pub(super) fn public_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PublicKey>, D::Error> {
    deserializer.deserialize_str(PublicKeyVisitor).map(Some)
}

struct PublicKeyVisitor;

impl de::Visitor<'_> for PublicKeyVisitor {
    type Value = PublicKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a public key as text, as `weir policy keygen` makes it")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<PublicKey, E> {
        text.parse().map_err(|err| E::custom(format!("not a public key: {err}\n`weir policy keygen` writes one to policy.pub")))
    }
}

struct ProxyVisitor;

impl de::Visitor<'_> for ProxyVisitor {
    type Value = Proxy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a proxy as text, such as {PROXY_EXAMPLE}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Proxy, E> {
        // The text may hold a password, and is not shown.
        text.parse().map_err(|err| E::custom(format!("not an HTTP proxy: {err}\nwrite, for example, {PROXY_EXAMPLE}")))
    }
}

const PROXY_EXAMPLE: &str = "\"http://proxy.example.org:3128\" or \"http://USER:PASSWORD@10.0.0.1:3128\"";

struct AddressVisitor<T> {
    what: &'static str,
    example: &'static str,
    address: PhantomData<T>,
}

impl<T: FromStr> de::Visitor<'_> for AddressVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as text, such as {}", self.what, self.example)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|_| E::custom(format!("`{text}` is not {}\nwrite, for example, {}", self.what, self.example)))
    }
}
