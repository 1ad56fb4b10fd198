//! Configuration files: every mistake shown at once, each with its file, line, column and a hint.
//!
//! `serde` stops at the first error. So the document is parsed once into a tree with positions, and the
//! type is read from it again and again: each error is recorded, the key at fault is taken out, and the
//! next reading finds the next one. What a removal itself breaks (the key is now "missing") is not
//! reported. Checks that `serde` cannot express come last, through a [`Checker`] that finds the line of
//! a key path, and they run unless whole tables had to be taken out.
//!
//! Types use `#[serde(deny_unknown_fields)]`; unknown keys then get a "did you mean". Internally tagged
//! and untagged enums lose positions inside themselves: the line shown is that of the table. An error
//! text of two lines (from `TryFrom`, for example) is a message and its hint.

mod read;
mod tree;

use std::{fmt, path::Path};

use serde::de::DeserializeOwned;

use read::Reading;
use tree::{KeyPath, Tree};

/// Longest configuration file that is read. Source: a thousand streams of twenty lines of 40 bytes.
const TEXT_LEN_MAX: u64 = 1 << 20;
/// Most mistakes that one reading collects.
const ERRORS_MAX: usize = 100;

/// One mistake in one configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as the user named it.
    pub file: String,
    /// Line of the mistake, from 1; 0 if the file as a whole is at fault.
    pub line: usize,
    /// Column of the mistake in characters, from 1; 0 if the file as a whole is at fault.
    pub column: usize,
    /// The key at fault (`stream[2].window.length`); empty at the top of the document.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead; empty if there is nothing to add.
    pub hint: String,
    /// The line of source, for display; empty if the file as a whole is at fault.
    source_line: String,
    /// Characters to underline.
    width: usize,
}

impl ConfigError {
    /// A mistake of the file as a whole: it is missing, unreadable, or names something that is.
    pub fn of_file(file: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: 0,
            column: 0,
            key: String::new(),
            message: message.into(),
            hint: hint.into(),
            source_line: String::new(),
            width: 0,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if !self.key.is_empty() {
            write!(f, " (key `{}`)", self.key)?;
        }
        if self.line == 0 {
            write!(f, "\n --> {}", self.file)?;
        } else {
            let gutter = " ".repeat(self.line.to_string().len());
            write!(f, "\n{gutter}--> {}:{}:{}", self.file, self.line, self.column)?;
            write!(f, "\n{gutter} |\n{} | {}", self.line, self.source_line)?;
            let indent = " ".repeat(self.column.saturating_sub(1));
            write!(f, "\n{gutter} | {indent}{}", "^".repeat(self.width.max(1)))?;
        }
        if !self.hint.is_empty() {
            write!(f, "\n  = hint: {}", self.hint)?;
        }
        Ok(())
    }
}

/// All mistakes of a configuration, in the order of the file; never empty. The process exits with 64.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
}

impl ConfigErrors {
    /// Mistakes found elsewhere (files that the configuration names, for example).
    ///
    /// `None` if `errors` is empty.
    pub fn from_errors(mut errors: Vec<ConfigError>) -> Option<Self> {
        if errors.is_empty() {
            return None;
        }
        errors.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        errors.dedup();
        Some(Self { errors })
    }

    /// The mistakes, by file, line and column.
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.errors {
            writeln!(f, "{error}\n")?;
        }
        let file = self.errors.first().map_or("", |error| error.file.as_str());
        match self.errors.len() {
            1 => write!(f, "1 mistake in {file}"),
            count => write!(f, "{count} mistakes in {file}"),
        }
    }
}

/// Reads a `T` from TOML text; `file` is the name shown in messages.
///
/// # Errors
/// Every mistake found, at most 100.
pub fn load<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, ConfigErrors> {
    load_checked(file, text, |_, _| ())
}

/// Reads a `T` from TOML text and passes it to `check`, which reports what the types cannot express.
///
/// # Errors
/// Every mistake found by either, at most 100 each.
pub fn load_checked<T: DeserializeOwned>(
    file: &str,
    text: &str,
    check: impl FnOnce(&T, &mut Checker<'_>),
) -> Result<T, ConfigErrors> {
    let (tree, mut errors) = Tree::parse(file, text);
    let reading = Reading::<T>::of(&tree, !errors.is_empty());
    let whole_tables_gone = reading.whole_tables_gone();
    let taken_out = reading.taken_out;
    errors.extend(reading.errors);
    if let Some(value) = &reading.value
        && !whole_tables_gone
    {
        let mut checker = Checker { tree: &tree, errors: Vec::new() };
        check(value, &mut checker);
        errors.extend(checker.errors.into_iter().filter_map(|(path, error)| {
            let explained = taken_out.iter().any(|gone| path.starts_with(gone));
            (!explained).then_some(error)
        }));
    }
    match (ConfigErrors::from_errors(errors), reading.value) {
        (None, Some(value)) => Ok(value),
        (Some(errors), _) => Err(errors),
        (None, None) => Err(ConfigErrors { errors: vec![ConfigError::of_file(file, "the document cannot be read", "")] }),
    }
}

/// Reads a `T` from a file, with checks as in [`load_checked`].
///
/// # Errors
/// A file that is missing, unreadable, not UTF-8 or longer than 1 MiB, and every mistake in it.
pub fn read<T: DeserializeOwned>(path: &Path, check: impl FnOnce(&T, &mut Checker<'_>)) -> Result<T, ConfigErrors> {
    let file = path.display().to_string();
    let whole = |message: String, hint: &str| ConfigErrors { errors: vec![ConfigError::of_file(&file, message, hint)] };
    let len = std::fs::metadata(path)
        .map_err(|err| whole(format!("the file cannot be read: {err}"), "check the path and its permissions"))?
        .len();
    if len > TEXT_LEN_MAX {
        let hint = "is this the right file?";
        return Err(whole(format!("{len} bytes exceed the limit of {TEXT_LEN_MAX}"), hint));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|err| whole(format!("the file cannot be read: {err}"), "it must be UTF-8 text"))?;
    load_checked(&file, &text, check)
}

/// Reports mistakes by key path, at the line where the key is.
pub struct Checker<'t> {
    tree: &'t Tree<'t>,
    errors: Vec<(KeyPath, ConfigError)>,
}

impl Checker<'_> {
    /// Reports a mistake at `path`, such as `stream[2].window.length` or `model."a.b".file`.
    ///
    /// A key that the file does not have is reported at the table that would hold it. Mistakes past
    /// the hundredth are dropped.
    pub fn mistake(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        if self.errors.len() < ERRORS_MAX {
            let path = KeyPath::parse(path);
            let error = self.tree.error_at_value(&path, message.into(), hint.into());
            self.errors.push((path, error));
        }
    }

    /// Line and column, both from 1, of the value at `path`, or of the nearest table above it.
    pub fn position(&self, path: &str) -> (usize, usize) {
        let error = self.tree.error_at_value(&KeyPath::parse(path), String::new(), String::new());
        (error.line, error.column)
    }

    /// True if the file itself gives the key at `path`, so that its value is not a default.
    pub fn is_given(&self, path: &str) -> bool {
        self.tree.node(&KeyPath::parse(path)).is_some()
    }
}

#[cfg(test)]
mod tests;
