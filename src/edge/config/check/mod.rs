//! What the types cannot express: names that must be unique, values that must fit each other, files that must be there.
//!
//! A mistake is what cannot work or cannot have been meant; a warning is what works but surprises. Everything is
//! reported in one pass, so that a file is mended in one go.

mod broker;
mod buffer;
mod listen;
mod process;
mod streams;
mod updates;
mod uplink;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use weir_host::config::Checker;

pub(crate) use broker::PASSWORD_LEN_MAX;

use super::catalogue::{self, Choice};
use super::finding::Findings;
use super::overlay::Places;
use super::{Config, Files, ModelInfo, Warning};

/// What all parts of a check need.
pub(super) struct Context<'a> {
    config: &'a Config,
    folder: &'a Path,
    files: Files,
}

/// What a check found besides mistakes.
#[derive(Default)]
pub(super) struct Found {
    pub(super) warnings: Vec<Warning>,
    pub(super) models: Vec<ModelInfo>,
    pub(super) chosen: Vec<Choice>,
}

/// Checks a whole configuration whose paths are relative to `folder`.
pub(super) fn check(config: &Config, checker: &mut Checker<'_>, file: &str, folder: &Path, files: Files) -> Found {
    let context = Context { config, folder, files };
    let mut findings = Findings::new(checker, file);
    process::check(&context, &mut findings);
    listen::check(&context, &mut findings);
    broker::check(&context, &mut findings);
    // What tasks come to is checked as if it had been written.
    let chosen = catalogue::choose(config, folder, files, &mut findings);
    let mut with_choices = config.clone();
    catalogue::apply(&mut with_choices, &chosen);
    let models = streams::check(&Context { config: &with_choices, folder, files }, &mut findings);
    buffer::check(&context, &mut findings);
    updates::check(&context, &mut findings);
    uplink::check(&context, &mut findings);
    Found { warnings: findings.into_warnings(), models, chosen }
}

/// Checks a configuration that a policy was laid over: what policies change, at the policy's own lines. Returns warnings.
pub(super) fn check_overlaid(config: &Config, checker: &mut Checker<'_>, file: &str, places: Places) -> Vec<Warning> {
    // Files of the box were looked at when it was started.
    let context = Context { config, folder: Path::new(""), files: Files::Ignored };
    let mut findings = Findings::of_policy(checker, file, places);
    streams::check(&context, &mut findings);
    uplink::check(&context, &mut findings);
    findings.into_warnings()
}

/// Most characters of a name; names are labels of metrics.
const NAME_LEN_MAX: usize = 64;

/// Reports a name that is missing, is not made of `a-z 0-9 - _ .`, or was used before.
fn check_name<'n>(findings: &mut Findings<'_, '_>, path: &str, what: &str, name: &'n str, earlier: &mut Vec<&'n str>) {
    let is_known = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(&c);
    if name.is_empty() {
        findings.mistake(path, format!("the {what} has no name"), "add name = \"...\"");
    } else if name.len() > NAME_LEN_MAX || !name.bytes().all(is_known) {
        let message = format!("`{name}` is not a name of 1 to {NAME_LEN_MAX} characters from a-z, 0-9, `-`, `_` and `.`");
        findings.mistake(path, message, "it becomes a label of metrics; write it as in `press-vibration`");
    } else if earlier.contains(&name) {
        findings.mistake(path, format!("there is another {what} named `{name}`"), "give each a name of its own");
    }
    earlier.push(name);
}

/// Reports a value out of its range.
fn check_range<T: PartialOrd + Display>(
    findings: &mut Findings<'_, '_>,
    path: &str,
    value: &T,
    range: &RangeInclusive<T>,
    why: &str,
) {
    if !range.contains(value) {
        findings.mistake(path, format!("{value} is not within {} to {}", range.start(), range.end()), why);
    }
}

/// Reports a list that is longer than its limit.
fn check_count(findings: &mut Findings<'_, '_>, path: &str, what: &str, count: usize, max: usize) {
    if count > max {
        findings.mistake(path, format!("{count} {what} exceed the limit of {max}"), "split the box's work over several boxes");
    }
}
