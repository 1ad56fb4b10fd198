//! What a check finds: mistakes go to the loader, warnings are kept here.

use std::fmt;

use weir_host::config::Checker;

use super::overlay::Places;

/// Something that is accepted but probably not meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Line of the key, from 1.
    pub line: usize,
    /// Column of the key in characters, from 1.
    pub column: usize,
    /// The file as the user named it.
    pub file: String,
    /// The key.
    pub key: String,
    /// What stands out.
    pub message: String,
    /// What to write instead; empty if there is nothing to add.
    pub hint: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "warning: {} (key `{}`)\n --> {}:{}:{}", self.message, self.key, self.file, self.line, self.column)?;
        if !self.hint.is_empty() {
            write!(f, "\n  = hint: {}", self.hint)?;
        }
        Ok(())
    }
}

/// Most warnings that one check collects.
const WARNINGS_MAX: usize = 100;

/// Where the parts of a check report to.
pub(super) struct Findings<'c, 't> {
    checker: &'c mut Checker<'t>,
    file: &'c str,
    warnings: Vec<Warning>,
    /// Where the keys are if the file is a policy.
    places: Option<Places>,
}

impl<'c, 't> Findings<'c, 't> {
    pub(super) fn new(checker: &'c mut Checker<'t>, file: &'c str) -> Self {
        Findings { checker, file, warnings: Vec::new(), places: None }
    }

    /// For a policy that was laid over a configuration: paths are those of the configuration.
    pub(super) fn of_policy(checker: &'c mut Checker<'t>, file: &'c str, places: Places) -> Self {
        Findings { places: Some(places), ..Findings::new(checker, file) }
    }

    /// Reports what must be changed, at a key path such as `stream[2].window.length`.
    pub(super) fn mistake(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        match self.places.as_ref().map(|places| places.path(path)) {
            None => self.checker.mistake(path, message, hint),
            Some(Some(path)) => self.checker.mistake(&path, message, hint),
            // What it changes elsewhere makes this a mistake.
            Some(None) => self.checker.mistake("policy", format!("{} (`{path}` of the box)", message.into()), hint),
        }
    }

    /// Reports what should be looked at. Warnings past the hundredth are dropped.
    pub(super) fn warn(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        if self.warnings.len() == WARNINGS_MAX {
            return;
        }
        // The box's own file was warned of when it was checked.
        let path = self.places.as_ref().map_or_else(|| Some(path.to_owned()), |places| places.path(path));
        let Some(path) = path else { return };
        let (line, column) = self.checker.position(&path);
        let (file, key) = (self.file.to_owned(), path);
        self.warnings.push(Warning { line, column, file, key, message: message.into(), hint: hint.into() });
    }

    /// True if the file itself gives the key, so that its value is not a default.
    pub(super) fn is_given(&self, path: &str) -> bool {
        self.checker.is_given(path)
    }

    /// The warnings in the order of the file.
    pub(super) fn into_warnings(mut self) -> Vec<Warning> {
        self.warnings.sort();
        self.warnings
    }
}
