//! Who may use a pool: names of gateways, as their certificates say them, and patterns of names.

/// True if any pattern fits; `*` stands for any characters. Without patterns nobody may.
pub(crate) fn allows(patterns: &[String], gateway: &str) -> bool {
    patterns.iter().any(|pattern| fits(pattern, gateway))
}

fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    match rest.rsplit_once('*') {
        // Each part between two stars takes the first place that it finds.
        Some((middle, end)) => {
            let Some(mut name) = name.strip_suffix(end) else { return false };
            middle.split('*').all(|part| name.split_once(part).map(|(_, after)| name = after).is_some())
        }
        None => name.ends_with(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything_and_nothing_else_does() {
        for (pattern, yes, no) in [
            ("box-1", "box-1", "box-11"),
            ("site-7-*", "site-7-a", "site-77-a"),
            ("*", "anything", ""),
            ("*-pump", "a-pump", "a-pumps"),
            ("a*b*c", "a-b-b-c", "a-c-b"),
            ("a*b*c*d", "abxcd", "acbd"),
            ("ab*ba", "abba", "aba"),
        ] {
            assert!(allows(&[pattern.to_owned()], yes), "{pattern} fits {yes}");
            assert!(no.is_empty() || !allows(&[pattern.to_owned()], no), "{pattern} does not fit {no}");
        }
        assert!(!allows(&[], "box-1"), "without a rule nobody may");
    }
}
