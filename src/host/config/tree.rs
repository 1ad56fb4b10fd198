//! The parsed document: values with positions, reached by key path.

use std::fmt;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{ConfigError, ERRORS_MAX};

/// One step from a value to a part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Into a table.
    Key(String),
    /// Into an array.
    Index(usize),
}

/// The way from the top of the document to a value; empty for the document itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyPath {
    pub(super) steps: Vec<Step>,
}

impl KeyPath {
    /// Reads `stream[2].window."a.b"`; what does not fit the form is taken as part of a key.
    pub(super) fn parse(text: &str) -> Self {
        let mut path = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(quoted) = rest.strip_prefix('"')
                && let Some((key, after)) = quoted.split_once('"')
            {
                path = path.key(key);
                rest = after;
            } else if let Some(indexed) = rest.strip_prefix('[')
                && let Some((index, after)) = indexed.split_once(']')
                && let Ok(index) = index.parse()
            {
                path = path.index(index);
                rest = after;
            } else {
                let end = rest.char_indices().skip(1).find(|(_, c)| matches!(c, '.' | '[')).map_or(rest.len(), |(at, _)| at);
                path = path.key(&rest[..end]);
                rest = &rest[end..];
            }
            rest = rest.strip_prefix('.').unwrap_or(rest);
        }
        path
    }

    pub(super) fn key(&self, key: &str) -> Self {
        self.with(Step::Key(key.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.steps.clone();
        steps.push(step);
        Self { steps }
    }

    pub(super) fn starts_with(&self, other: &Self) -> bool {
        self.steps.starts_with(&other.steps)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.steps.iter().enumerate() {
            let dot = if at == 0 { "" } else { "." };
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.contains(['.', '[', '"']) => write!(f, "{dot}\"{key}\"")?,
                Step::Key(key) => write!(f, "{dot}{key}")?,
            }
        }
        Ok(())
    }
}

/// A document and its source.
pub(super) struct Tree<'t> {
    file: &'t str,
    text: &'t str,
    pub(super) root: Spanned<DeValue<'t>>,
}

impl<'t> Tree<'t> {
    /// Parses what can be parsed, and tells what cannot.
    pub(super) fn parse(file: &'t str, text: &'t str) -> (Self, Vec<ConfigError>) {
        let (table, faults) = DeTable::parse_recoverable(text);
        let root = Spanned::new(0..0, DeValue::Table(table.into_inner()));
        let tree = Self { file, text, root };
        let errors = faults.iter().take(ERRORS_MAX).map(|fault| tree.syntax_error(fault)).collect();
        (tree, errors)
    }

    fn syntax_error(&self, fault: &toml::de::Error) -> ConfigError {
        let span = fault.span().unwrap_or(0..0);
        let mut error = self.error_at(span, &KeyPath::default(), String::new(), String::new());
        let value = error.source_line.split_once('=').map_or("", |(_, value)| value.trim());
        let number_with_unit =
            value.starts_with(|c: char| c.is_ascii_digit()) && value.contains(|c: char| c.is_ascii_alphabetic() || c == '%');
        error.message = format!("not TOML: {}", fault.message());
        if number_with_unit {
            let value = value.split(['#', ' ', ',', '}']).next().unwrap_or_default();
            error.hint = format!("a value with a unit is text: write \"{value}\", with quotes");
        }
        error
    }

    /// The value at `path`.
    pub(super) fn node(&self, path: &KeyPath) -> Option<&Spanned<DeValue<'t>>> {
        path.steps.iter().try_fold(&self.root, |node, step| match (step, node.get_ref()) {
            (Step::Key(key), DeValue::Table(table)) => table.get(key.as_str()),
            (Step::Index(index), DeValue::Array(array)) => array.get(*index),
            _ => None,
        })
    }

    /// A mistake in the value at `path`, or at the nearest value above it that exists.
    pub(super) fn error_at_value(&self, path: &KeyPath, message: String, hint: String) -> ConfigError {
        let mut nearest = path.clone();
        loop {
            if let Some(node) = self.node(&nearest) {
                return self.error_at(node.span(), path, message, hint);
            }
            nearest.steps.pop();
        }
    }

    /// A mistake in the name of the key at `path`.
    pub(super) fn error_at_key(&self, path: &KeyPath, message: String, hint: String) -> ConfigError {
        let mut table = path.clone();
        let key = table.steps.pop();
        if let Some(Step::Key(key)) = &key
            && let Some(DeValue::Table(values)) = self.node(&table).map(Spanned::get_ref)
            && let Some((key, _)) = values.get_key_value(key.as_str())
        {
            return self.error_at(key.span(), path, message, hint);
        }
        self.error_at_value(path, message, hint)
    }

    fn error_at(&self, span: std::ops::Range<usize>, path: &KeyPath, message: String, hint: String) -> ConfigError {
        let start = self.text.floor_char_boundary(span.start);
        let before = &self.text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let source_line = self.text[line_start..].lines().next().unwrap_or_default();
        let in_line = &source_line[(start - line_start).min(source_line.len())..];
        let len = span.end.saturating_sub(span.start).min(in_line.len());
        ConfigError {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: self.text[line_start..start].chars().count() + 1,
            key: path.to_string(),
            message,
            hint,
            source_line: source_line.to_owned(),
            width: in_line[..in_line.floor_char_boundary(len)].chars().count(),
        }
    }
}
