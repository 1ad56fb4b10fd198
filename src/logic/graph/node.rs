//! What the graph is made of: who publishes, and the names of nodes.
//!
//! A name must mean the same thing to everybody who merges digests. What lives on a box carries the box's name, and only
//! that box can publish it; what many share (a carrier, an ingest node) has one name for all of them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name of a node in bytes: topic filters of sensor groups are the longest that people write.
pub const NODE_NAME_LEN_MAX: usize = 128;
/// Longest name of an owner in bytes. Source: a DNS label, as for certificates.
pub const OWNER_NAME_LEN_MAX: usize = 63;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// Sensors that publish to the same topic filter.
    Sensors,
    /// A stream.
    Stream,
    /// A model on the box.
    Model,
    /// The box.
    Gateway,
    /// A way out of the box.
    Uplink,
    /// A router or line that the uplinks of a site share.
    Router,
    /// A mobile, satellite or line operator.
    Carrier,
    /// A place that data may be bound to.
    Zone,
    /// A machine of the cloud that takes blocks in.
    Ingest,
    /// Where larger models run.
    Pool,
    /// Where records end up.
    Sink,
}

impl NodeKind {
    /// All kinds, in the order of [`NodeKind::index`].
    pub const ALL: [NodeKind; 11] = [
        NodeKind::Sensors,
        NodeKind::Stream,
        NodeKind::Model,
        NodeKind::Gateway,
        NodeKind::Uplink,
        NodeKind::Router,
        NodeKind::Carrier,
        NodeKind::Zone,
        NodeKind::Ingest,
        NodeKind::Pool,
        NodeKind::Sink,
    ];

    /// Position in [`NodeKind::ALL`]; also the number on the wire.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The kind with this index.
    pub fn from_index(index: usize) -> Option<NodeKind> {
        NodeKind::ALL.get(index).copied()
    }

    /// The word used in ids, logs and answers.
    pub const fn name(self) -> &'static str {
        match self {
            NodeKind::Sensors => "sensors",
            NodeKind::Stream => "stream",
            NodeKind::Model => "model",
            NodeKind::Gateway => "gateway",
            NodeKind::Uplink => "uplink",
            NodeKind::Router => "router",
            NodeKind::Carrier => "carrier",
            NodeKind::Zone => "zone",
            NodeKind::Ingest => "ingest",
            NodeKind::Pool => "pool",
            NodeKind::Sink => "sink",
        }
    }

    /// True if such nodes belong to one box; the others have one name for everybody.
    pub const fn is_owned(self) -> bool {
        matches!(self, NodeKind::Sensors | NodeKind::Stream | NodeKind::Model | NodeKind::Gateway | NodeKind::Uplink)
    }

    /// True if boxes share it on their way to the cloud, so that it can be the common cause of their trouble.
    pub const fn is_shared_way(self) -> bool {
        matches!(self, NodeKind::Router | NodeKind::Carrier | NodeKind::Ingest | NodeKind::Pool | NodeKind::Sink)
    }
}

/// Who publishes: the identity in its certificate, `gateway/box-1` or `cloud/ingest-1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner(Arc<str>);

impl Owner {
    /// The box with this name.
    ///
    /// # Errors
    /// `Owner` unless it is 1 to 63 printable characters without a slash.
    pub fn gateway(name: &str) -> Result<Owner, NameError> {
        Owner::new("gateway", name)
    }

    /// The machine of the cloud with this name.
    ///
    /// # Errors
    /// As for [`Owner::gateway`].
    pub fn cloud(name: &str) -> Result<Owner, NameError> {
        Owner::new("cloud", name)
    }

    fn new(role: &str, name: &str) -> Result<Owner, NameError> {
        let text = format!("{role}/{name}");
        let is_good = (1..=OWNER_NAME_LEN_MAX).contains(&name.len()) && !name.contains('/') && is_printable(name);
        if is_good { Ok(Owner(text.into())) } else { Err(NameError::Owner(shown(&text))) }
    }

    /// True for a box.
    pub fn is_gateway(&self) -> bool {
        self.0.starts_with("gateway/")
    }

    /// Its name without the role.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }

    /// Role and name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Owner {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Owner, NameError> {
        match text.split_once('/') {
            Some((role @ ("gateway" | "cloud"), name)) => Owner::new(role, name),
            _ => Err(NameError::Owner(shown(text))),
        }
    }
}

impl TryFrom<String> for Owner {
    type Error = NameError;

    fn try_from(text: String) -> Result<Owner, NameError> {
        text.parse()
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> String {
        owner.0.as_ref().to_owned()
    }
}

/// Names a node among all nodes of all owners; prints as `uplink/box-1/lte0` or `carrier/telco-a`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeKey {
    /// What it is.
    pub kind: NodeKind,
    /// The box it belongs to; `None` for shared nodes and for the box itself.
    pub site: Option<Arc<str>>,
    /// Its name.
    pub name: Arc<str>,
}

impl NodeKey {
    /// The node that `owner` means by a kind and a name.
    ///
    /// # Errors
    /// `Name` for a name that no node may have, `NotYours` for a box's node that is not this owner's.
    pub fn of(owner: &Owner, kind: NodeKind, name: &str) -> Result<NodeKey, NameError> {
        check_node(owner, kind, name)?;
        let site = (kind.is_owned() && kind != NodeKind::Gateway).then(|| owner.name().into());
        Ok(NodeKey { kind, site, name: name.into() })
    }

    /// The box it belongs to, or is.
    pub fn site(&self) -> Option<&str> {
        match self.kind {
            NodeKind::Gateway => Some(&self.name),
            _ => self.site.as_deref(),
        }
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.site {
            Some(site) => write!(f, "{}/{site}/{}", self.kind.name(), self.name),
            None => write!(f, "{}/{}", self.kind.name(), self.name),
        }
    }
}

impl FromStr for NodeKey {
    type Err = NameError;

    fn from_str(text: &str) -> Result<NodeKey, NameError> {
        let form = || NameError::Form(shown(text));
        let (kind, rest) = text.split_once('/').ok_or_else(form)?;
        let kind = NodeKind::ALL.into_iter().find(|known| known.name() == kind).ok_or_else(form)?;
        let (site, name) = match kind {
            NodeKind::Gateway => (Some(rest), rest),
            kind if kind.is_owned() => rest.split_once('/').map(|(site, name)| (Some(site), name)).ok_or_else(form)?,
            _ => (None, rest),
        };
        if let Some(site) = site {
            Owner::gateway(site)?;
        }
        check_name(name)?;
        let site = site.filter(|_| kind != NodeKind::Gateway);
        Ok(NodeKey { kind, site: site.map(Arc::from), name: name.into() })
    }
}

impl TryFrom<String> for NodeKey {
    type Error = NameError;

    fn try_from(text: String) -> Result<NodeKey, NameError> {
        text.parse()
    }
}

impl From<NodeKey> for String {
    fn from(key: NodeKey) -> String {
        key.to_string()
    }
}

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not an owner.
    #[error("`{0}` is not an owner; write gateway/NAME or cloud/NAME, NAME of 1 to {OWNER_NAME_LEN_MAX} bytes without a slash")]
    Owner(String),
    /// Not the id of a node.
    #[error("`{0}` is not a node; write KIND/NAME, and for what belongs to a box KIND/BOX/NAME")]
    Form(String),
    /// Not a name for a node.
    #[error("`{0}` is not a name for a node; use 1 to {NODE_NAME_LEN_MAX} bytes without control characters")]
    Name(String),
    /// A node of another box, or a box's node from the cloud.
    #[error("{owner} cannot publish {} `{name}`: it belongs to a box, and only that box may", kind.name())]
    NotYours {
        /// Who tried.
        owner: Owner,
        /// Kind of the node.
        kind: NodeKind,
        /// Its name.
        name: String,
    },
}

/// Says whether `owner` may publish such a node, as [`NodeKey::of`] does, without making the key.
pub(super) fn check_node(owner: &Owner, kind: NodeKind, name: &str) -> Result<(), NameError> {
    check_name(name)?;
    let is_own = match kind {
        NodeKind::Gateway => owner.is_gateway() && owner.name() == name,
        kind => owner.is_gateway() || !kind.is_owned(),
    };
    if is_own { Ok(()) } else { Err(NameError::NotYours { owner: owner.clone(), kind, name: shown(name) }) }
}

fn check_name(name: &str) -> Result<(), NameError> {
    if (1..=NODE_NAME_LEN_MAX).contains(&name.len()) && is_printable(name) { Ok(()) } else { Err(NameError::Name(shown(name))) }
}

fn is_printable(name: &str) -> bool {
    !name.chars().any(char::is_control)
}

/// As much of a refused name as an error may carry.
fn shown(name: &str) -> String {
    name.chars().take(NODE_NAME_LEN_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_as_they_print() {
        let owner = Owner::gateway("box-1").expect("an owner");
        for kind in NodeKind::ALL {
            let name = if kind == NodeKind::Gateway { "box-1" } else { "a/b c" };
            let key = NodeKey::of(&owner, kind, name).expect("a key");
            assert_eq!(key.to_string().parse(), Ok(key.clone()), "{key}");
            assert_eq!(NodeKind::from_index(kind.index()), Some(kind));
        }
        assert_eq!("uplink/box-1/lte0".parse::<NodeKey>().expect("a key").site(), Some("box-1"));
        assert_eq!("gateway/box-1".parse::<NodeKey>().expect("a key").site(), Some("box-1"));
    }

    #[test]
    fn nobody_publishes_what_belongs_to_another_box() {
        let (gateway, cloud) = (Owner::gateway("a").expect("an owner"), Owner::cloud("a").expect("an owner"));
        let refused = NodeKey::of(&gateway, NodeKind::Gateway, "b").expect_err("not its own");
        assert_eq!(refused.to_string(), "gateway/a cannot publish gateway `b`: it belongs to a box, and only that box may");
        assert!(NodeKey::of(&cloud, NodeKind::Uplink, "lte0").is_err());
        assert!(NodeKey::of(&cloud, NodeKind::Ingest, "a").is_ok());
    }

    #[test]
    fn odd_names_are_refused() {
        let long = "x".repeat(NODE_NAME_LEN_MAX + 1);
        for text in ["", "uplink", "uplink/a", "carrier/", "thing/a", "carrier/a\nb", "gateway/a/b", &format!("sink/{long}")] {
            assert!(text.parse::<NodeKey>().is_err(), "{text}");
        }
        for text in ["", "box", "box/1", "gateway/", "gateway/a/b", &format!("gateway/{long}")] {
            assert!(text.parse::<Owner>().is_err(), "{text}");
        }
    }
}
