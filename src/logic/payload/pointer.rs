//! JSON pointers compiled to a tree, so that one walk over a document finds them all.

use std::sync::Arc;

use super::reader::Key;
use super::{DEPTH_MAX, FormatError};

/// What a pointer leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaf {
    /// The value, or the column, of a channel.
    Channel(usize),
    /// The message's time.
    Time,
    /// The array of samples.
    Rows,
}

/// A tree of pointers. Node 0 is the place where the walk starts.
#[derive(Debug, Clone)]
pub(super) struct PointerTree {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    leaf: Option<(Leaf, Arc<str>)>,
    children: Vec<Child>,
}

#[derive(Debug, Clone)]
struct Child {
    token: Box<str>,
    /// The token as an index into an array.
    index: Option<usize>,
    node: usize,
}

impl PointerTree {
    pub(super) fn new() -> PointerTree {
        PointerTree { nodes: vec![Node::default()] }
    }

    /// Adds a pointer, which must not overlap an earlier one.
    pub(super) fn insert(&mut self, pointer: &str, leaf: Leaf) -> Result<Arc<str>, FormatError> {
        let tokens = tokens(pointer)?;
        let mut node = 0;
        for token in tokens {
            if let Some((_, first)) = &self.nodes[node].leaf {
                return Err(overlap(first, pointer));
            }
            node = match self.nodes[node].children.iter().find(|child| *child.token == *token) {
                Some(child) => child.node,
                None => self.add_child(node, &token),
            };
        }
        if let Some(first) = self.first_leaf(node) {
            return Err(overlap(first, pointer));
        }
        let pointer: Arc<str> = pointer.into();
        self.nodes[node].leaf = Some((leaf, Arc::clone(&pointer)));
        Ok(pointer)
    }

    /// The leaf at a node.
    pub(super) fn leaf(&self, node: usize) -> Option<Leaf> {
        self.nodes[node].leaf.as_ref().map(|(leaf, _)| *leaf)
    }

    /// The node that a member of an object leads to.
    pub(super) fn member(&self, node: usize, key: impl Key) -> Option<usize> {
        self.nodes[node].children.iter().find(|child| key.is(&child.token)).map(|child| child.node)
    }

    /// The node that an element of an array leads to.
    pub(super) fn element(&self, node: usize, index: usize) -> Option<usize> {
        self.nodes[node].children.iter().find(|child| child.index == Some(index)).map(|child| child.node)
    }

    fn add_child(&mut self, parent: usize, token: &str) -> usize {
        let node = self.nodes.len();
        self.nodes.push(Node::default());
        let canonical = token == "0" || !token.starts_with(['0', '+']);
        let index = token.parse().ok().filter(|_| canonical);
        self.nodes[parent].children.push(Child { token: token.into(), index, node });
        node
    }

    /// Any pointer that ends at a node or below it.
    fn first_leaf(&self, node: usize) -> Option<&str> {
        let node = &self.nodes[node];
        match &node.leaf {
            Some((_, pointer)) => Some(pointer),
            None => node.children.iter().find_map(|child| self.first_leaf(child.node)),
        }
    }
}

/// The steps of a pointer, unescaped.
fn tokens(pointer: &str) -> Result<Vec<String>, FormatError> {
    let syntax = || FormatError::PointerSyntax { pointer: pointer.to_owned() };
    if pointer.is_empty() {
        return Ok(Vec::new());
    }
    let steps = pointer.strip_prefix('/').ok_or_else(syntax)?;
    let depth = steps.split('/').count();
    if depth >= DEPTH_MAX {
        return Err(FormatError::PointerDepth { pointer: pointer.to_owned(), depth });
    }
    let valid = |step: &str| step.split('~').skip(1).all(|tail| tail.starts_with(['0', '1']));
    steps.split('/').map(|step| valid(step).then(|| step.replace("~1", "/").replace("~0", "~")).ok_or_else(syntax)).collect()
}

fn overlap(first: &str, second: &str) -> FormatError {
    FormatError::PointerOverlap { first: first.to_owned(), second: second.to_owned() }
}
