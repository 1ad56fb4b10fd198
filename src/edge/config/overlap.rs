//! Which topic filters can match the same topic, and which of two then wins.
//!
//! The rule is that of `weir_logic::mqtt::FilterTree`: level by level, text before `+` before `#`.

use std::cmp::Ordering;

/// Whether there is a topic that both filters take.
pub(super) fn overlaps(a: &str, b: &str) -> bool {
    let begins_with_wildcard = |filter: &str| filter.starts_with(['+', '#']);
    if (a.starts_with('$') && begins_with_wildcard(b)) || (b.starts_with('$') && begins_with_wildcard(a)) {
        return false;
    }
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            // `plant/#` takes `plant` too.
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            _ => return false,
        }
    }
}

/// Whether `a` takes every topic that `b` takes.
pub(super) fn covers(a: &str, b: &str) -> bool {
    if b.starts_with('$') && a.starts_with(['+', '#']) {
        return false;
    }
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(x), Some(y)) if x == y => {}
            _ => return false,
        }
    }
}

/// `Less` if `a` takes the topics that both filters match, `Equal` if they are the same filter.
pub(super) fn precedence(a: &str, b: &str) -> Ordering {
    let rank = |level: Option<&str>| match level {
        Some("#") => 2,
        Some("+") => 1,
        _ => 0,
    };
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (x, y) if rank(x) != rank(y) => return rank(x).cmp(&rank(y)),
            (x, y) if x.is_none() || y.is_none() => return Ordering::Equal,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weir_logic::mqtt::{Filter, FilterTree};

    use super::*;

    #[test]
    fn overlap_follows_wildcards_levels_and_dollar_topics() {
        for (a, b) in [("a/b", "a/b"), ("a/+", "a/b"), ("a/#", "a"), ("#", "x/y/z"), ("+/b", "a/+"), ("a/+/c", "a/b/#")] {
            assert!(overlaps(a, b) && overlaps(b, a), "{a} {b}");
        }
        for (a, b) in [("a/b", "a/c"), ("a/+", "a"), ("a/+", "a/b/c"), ("#", "$SYS/x"), ("+/x", "$SYS/x"), ("a/#", "b/#")] {
            assert!(!overlaps(a, b) && !overlaps(b, a), "{a} {b}");
        }
    }

    #[test]
    fn a_filter_covers_what_takes_no_other_topics() {
        for (a, b) in [("#", "a/b"), ("a/#", "a"), ("a/#", "a/+/c"), ("a/+", "a/b"), ("a/+/c", "a/b/c"), ("a/b", "a/b")] {
            assert!(covers(a, b), "{a} {b}");
        }
        for (a, b) in [("a/+", "a/#"), ("a/b", "a/+"), ("#", "$SYS/x"), ("a/+/c", "a/b/+"), ("a", "a/b")] {
            assert!(!covers(a, b), "{a} {b}");
        }
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![Just("a"), Just("b"), Just("+")];
        (prop::collection::vec(level, 1..4), any::<bool>()).prop_map(|(levels, hash)| {
            let text = levels.join("/");
            if hash { format!("{text}/#") } else { text }
        })
    }

    proptest! {
        #[test]
        fn overlap_and_precedence_agree_with_the_tree_that_routes(
            a in filter(),
            b in filter(),
            topic in prop::collection::vec(prop_oneof![Just("a"), Just("b")], 1..5),
        ) {
            let topic = topic.join("/");
            let parsed = [&a, &b].map(|text| Filter::parse(text).expect("made of valid levels"));
            let takes = |filter: &Filter| FilterTree::new([(filter, 0)]).allows(&topic);
            prop_assert!(!covers(&a, &b) || !takes(&parsed[1]) || takes(&parsed[0]), "{} does not cover {}", a, b);
            if takes(&parsed[0]) && takes(&parsed[1]) {
                prop_assert!(overlaps(&a, &b));
                if a != b {
                    let tree = FilterTree::new([(&parsed[0], 0), (&parsed[1], 1)]);
                    let winner = tree.find(&topic).expect("both take it").index;
                    let expected = if precedence(&a, &b) == Ordering::Less { 0 } else { 1 };
                    prop_assert_eq!(winner, expected, "{} {} {}", a, b, topic);
                }
            }
        }
    }
}
