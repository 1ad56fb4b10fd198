//! Topic filters: `plant/+/vib` takes any one level for `+`, `plant/#` takes `plant` and all below it.

/// Longest topic or filter, bytes. The standard allows 65,535; sensors use under 100, and each cached topic costs its length.
pub const TOPIC_LEN_MAX: usize = 1024;

/// Most levels of a topic or filter: deep enough for site/area/line/machine/part/sensor/channel twice over.
pub const FILTER_LEVELS_MAX: usize = 16;

/// A filter of valid form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Filter(String);

/// What is wrong with a filter, in words for the person who wrote the config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Nothing in it.
    #[error("topic filter is empty; use `#` for all topics")]
    Empty,
    /// Too long.
    #[error("topic filter of {len} bytes exceeds the limit of {TOPIC_LEN_MAX}")]
    TooLong {
        /// Its length, bytes.
        len: usize,
    },
    /// Too many levels.
    #[error("topic filter of {levels} levels exceeds the limit of {FILTER_LEVELS_MAX}")]
    TooDeep {
        /// Its levels.
        levels: usize,
    },
    /// U+0000 in it.
    #[error("topic filter contains U+0000")]
    Nul,
    /// `#` before the end.
    #[error("`#` must be the last level of topic filter `{filter}`")]
    HashNotLast {
        /// The filter.
        filter: String,
    },
    /// A wildcard that shares its level with text.
    #[error("level `{level}` of topic filter `{filter}` mixes a wildcard with text; a wildcard must be a level of its own")]
    WildcardNotAlone {
        /// The filter.
        filter: String,
        /// The level.
        level: String,
    },
    /// A shared subscription, which only brokers have.
    #[error("`$share/` is for subscribers of a broker; write the filter behind the group: `{rest}`")]
    Shared {
        /// What is behind the group's name.
        rest: String,
    },
}

impl Filter {
    /// Checks a filter as it stands in the config.
    ///
    /// # Errors
    /// Says what is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Filter, FilterError> {
        if text.is_empty() {
            return Err(FilterError::Empty);
        }
        if text.len() > TOPIC_LEN_MAX {
            return Err(FilterError::TooLong { len: text.len() });
        }
        if text.contains('\0') {
            return Err(FilterError::Nul);
        }
        if let Some(group_and_rest) = text.strip_prefix("$share/") {
            let rest = group_and_rest.split_once('/').map_or("#", |(_, rest)| rest);
            return Err(FilterError::Shared { rest: rest.to_owned() });
        }
        let levels = text.split('/').count();
        if levels > FILTER_LEVELS_MAX {
            return Err(FilterError::TooDeep { levels });
        }
        for (at, level) in text.split('/').enumerate() {
            if level.len() > 1 && level.contains(['+', '#']) {
                return Err(FilterError::WildcardNotAlone { filter: text.to_owned(), level: level.to_owned() });
            }
            if level == "#" && at + 1 < levels {
                return Err(FilterError::HashNotLast { filter: text.to_owned() });
            }
        }
        Ok(Filter(text.to_owned()))
    }

    /// The filter as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
