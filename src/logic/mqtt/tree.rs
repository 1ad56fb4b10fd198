//! Filters compiled into a tree of levels, so that a topic is matched against all of them at once.
//!
//! The most specific filter wins: from the first level on, text before `+` before `#`; of two equal filters, the one
//! written first. As the standard has it, `plant/#` takes `plant` too, and a filter that begins with a wildcard takes no
//! topic that begins with `$`.

use super::filter::{FILTER_LEVELS_MAX, Filter};

/// A set of filters, each with a number of the caller's.
#[derive(Debug, Clone)]
pub struct FilterTree {
    nodes: Vec<Node>,
    unreachable: Vec<usize>,
}

/// A topic's match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<'t> {
    /// The number given with the filter.
    pub index: u16,
    levels: [&'t str; FILTER_LEVELS_MAX],
    levels_len: usize,
}

#[derive(Debug, Clone, Default)]
struct Node {
    /// Sorted by text.
    literals: Vec<(Box<str>, u32)>,
    plus: Option<u32>,
    /// Number of the filter that ends here.
    here: Option<u16>,
    /// Number of the filter that ends in `#` below here.
    hash: Option<u16>,
}

impl FilterTree {
    /// Compiles filters in the order of the config.
    pub fn new<'f>(filters: impl IntoIterator<Item = (&'f Filter, u16)>) -> FilterTree {
        let mut tree = FilterTree { nodes: vec![Node::default()], unreachable: Vec::new() };
        for (position, (filter, index)) in filters.into_iter().enumerate() {
            if !tree.insert(filter.as_str(), index) {
                tree.unreachable.push(position);
            }
        }
        tree
    }

    /// The winning filter for this topic.
    ///
    /// Costs a binary search a level; at worst it visits each node of the tree once.
    pub fn find<'t>(&self, topic: &'t str) -> Option<Match<'t>> {
        let mut found = Match { index: 0, levels: [""; FILTER_LEVELS_MAX], levels_len: 0 };
        found.index = self.walk(0, Some(topic), topic.starts_with('$'), &mut found)?;
        Some(found)
    }

    /// Whether any filter takes this topic.
    pub fn allows(&self, topic: &str) -> bool {
        self.find(topic).is_some()
    }

    /// Positions of filters that repeat an earlier one and so never win.
    pub fn unreachable(&self) -> &[usize] {
        &self.unreachable
    }

    /// `false` if the same filter is there already.
    fn insert(&mut self, filter: &str, index: u16) -> bool {
        let mut at = 0;
        for level in filter.split('/') {
            at = match level {
                "#" => return first(&mut self.nodes[at].hash, index),
                "+" => match self.nodes[at].plus {
                    Some(next) => next as usize,
                    None => {
                        let next = self.grow();
                        self.nodes[at].plus = Some(next as u32);
                        next
                    }
                },
                text => match self.nodes[at].literals.binary_search_by(|(literal, _)| (**literal).cmp(text)) {
                    Ok(position) => self.nodes[at].literals[position].1 as usize,
                    Err(position) => {
                        let next = self.grow();
                        self.nodes[at].literals.insert(position, (text.into(), next as u32));
                        next
                    }
                },
            };
        }
        first(&mut self.nodes[at].here, index)
    }

    fn grow(&mut self) -> usize {
        self.nodes.push(Node::default());
        self.nodes.len() - 1
    }

    /// Matches what is left of a topic, `None` at its end, below node `at`; recursion is as deep as the deepest filter.
    fn walk<'t>(&self, at: usize, rest: Option<&'t str>, literal_only: bool, found: &mut Match<'t>) -> Option<u16> {
        let node = &self.nodes[at];
        let Some(rest) = rest else { return node.here.or(node.hash) };
        let (level, below) = rest.split_once('/').map_or((rest, None), |(level, below)| (level, Some(below)));
        let levels_len = found.levels_len;
        if let Ok(position) = node.literals.binary_search_by(|(literal, _)| (**literal).cmp(level)) {
            let index = self.walk(node.literals[position].1 as usize, below, false, found);
            if index.is_some() {
                return index;
            }
            found.levels_len = levels_len;
        }
        if literal_only {
            return None;
        }
        if let Some(next) = node.plus {
            found.push(level);
            let index = self.walk(next as usize, below, false, found);
            if index.is_some() {
                return index;
            }
            found.levels_len = levels_len;
        }
        let index = node.hash?;
        found.push(rest);
        Some(index)
    }
}

impl<'t> Match<'t> {
    /// What the wildcards stood for, in order; `#` gives all of its levels as one text, and nothing for the parent level.
    pub fn captures(&self) -> &[&'t str] {
        &self.levels[..self.levels_len]
    }

    /// Writes the device key, the captures joined by `/`; empty if the filter has no wildcard.
    pub fn device_key(&self, key: &mut String) {
        key.clear();
        for (at, level) in self.captures().iter().enumerate() {
            if at > 0 {
                key.push('/');
            }
            key.push_str(level);
        }
    }

    fn push(&mut self, level: &'t str) {
        self.levels[self.levels_len] = level;
        self.levels_len += 1;
    }
}

fn first(slot: &mut Option<u16>, index: u16) -> bool {
    let free = slot.is_none();
    slot.get_or_insert(index);
    free
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tree(filters: &[&str]) -> FilterTree {
        let filters: Vec<Filter> = filters.iter().map(|text| Filter::parse(text).expect("valid")).collect();
        FilterTree::new(filters.iter().zip(0..))
    }

    fn find(tree: &FilterTree, topic: &str) -> Option<(u16, String)> {
        let mut key = String::new();
        tree.find(topic).map(|found| {
            found.device_key(&mut key);
            (found.index, key.clone())
        })
    }

    #[test]
    fn the_most_specific_filter_wins_then_the_first() {
        let tree = tree(&["#", "plant/#", "plant/+/vib", "plant/p1/vib", "plant/+/+", "plant/+/vib", "plant/p1/+"]);
        assert_eq!(find(&tree, "plant/p1/vib"), Some((3, String::new())));
        assert_eq!(find(&tree, "plant/p2/vib"), Some((2, "p2".into())));
        assert_eq!(find(&tree, "plant/p1/temp"), Some((6, "temp".into())));
        assert_eq!(find(&tree, "plant/p2/temp"), Some((4, "p2/temp".into())));
        assert_eq!(find(&tree, "plant/p2/temp/x"), Some((1, "p2/temp/x".into())));
        assert_eq!(find(&tree, "plant"), Some((1, String::new())));
        assert_eq!(find(&tree, "other"), Some((0, "other".into())));
        assert_eq!(find(&tree, "$SYS/load"), None);
        assert_eq!(tree.unreachable(), [5]);
    }

    #[test]
    fn empty_levels_count_and_dollar_topics_need_a_literal() {
        let tree = tree(&["+/a", "/+", "$dev/+", "a//b"]);
        assert_eq!(find(&tree, "/a"), Some((1, "a".into())));
        assert_eq!(find(&tree, "x/a"), Some((0, "x".into())));
        assert_eq!(find(&tree, "$dev/7"), Some((2, "7".into())));
        assert_eq!(find(&tree, "$x/a"), None);
        assert_eq!(find(&tree, "a//b"), Some((3, String::new())));
        assert_eq!(find(&tree, "a/b"), None);
    }

    #[test]
    fn a_failed_branch_leaves_no_captures() {
        let tree = tree(&["a/+/+/x", "a/#"]);
        assert_eq!(find(&tree, "a/b/c/d"), Some((1, "b/c/d".into())));
    }

    #[test]
    fn bad_filters_say_what_to_write() {
        let error = |text: &str| Filter::parse(text).expect_err("invalid").to_string();
        assert!(error("").contains("use `#`"));
        assert!(error("a/#/b").contains("last level"));
        assert!(error("a/b+/c").contains("`b+`"));
        assert!(error("a#").contains("mixes"));
        assert!(error("$share/g/a/+").contains("`a/+`"));
        assert!(error("a\0").contains("U+0000"));
        assert!(error(&"a".repeat(1025)).contains("1025 bytes"));
        assert!(error(&"/".repeat(16)).contains("17 levels"));
        for good in ["#", "+", "/", "a/+/b/#", "+/+", &"/".repeat(15)] {
            assert_eq!(Filter::parse(good).expect("valid").as_str(), good);
        }
    }

    /// The standard's rule for one filter, written on its own.
    fn matches(filter: &str, topic: &str) -> bool {
        if topic.starts_with('$') && filter.starts_with(['+', '#']) {
            return false;
        }
        let (filter, topic): (Vec<_>, Vec<_>) = (filter.split('/').collect(), topic.split('/').collect());
        for (at, level) in filter.iter().enumerate() {
            match (*level, topic.get(at)) {
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (text, Some(other)) if text == *other => {}
                _ => return false,
            }
        }
        filter.len() == topic.len()
    }

    /// Sorts as precedence does: text, then `+`, then the end, then `#`.
    fn rank(filter: &str) -> Vec<u8> {
        let ranks = filter.split('/').map(|level| if level == "#" { 3 } else { u8::from(level == "+") });
        ranks.chain([2]).collect()
    }

    proptest! {
        #[test]
        fn the_tree_agrees_with_matching_one_filter_after_another(
            filters in proptest::collection::vec("([ab+]/){0,3}[ab+#]|#", 1..12),
            topic in "\\$?[ab](/[ab]?){0,4}",
        ) {
            let texts: Vec<&str> = filters.iter().map(String::as_str).collect();
            let found = tree(&texts).find(&topic).map(|found| found.index);
            let expected = (0..texts.len()).filter(|&at| matches(texts[at], &topic)).min_by_key(|&at| (rank(texts[at]), at));
            prop_assert_eq!(found.map(usize::from), expected);
        }
    }
}
