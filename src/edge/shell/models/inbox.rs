//! What is laid into the store's inbox: packages, and an operator's wishes.
//!
//! `NAME.weir-model` is a package; `TASK.promote` and `TASK.rollback` are wishes, whatever is in them. Whoever may write to the
//! folder may ask; what a package may do is decided by its signature. A package is taken once its length stood still from one
//! look to the next, and not while a model is on trial. Everything that was looked at is removed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use weir_logic::models::{Change, Input, News};

use super::{ModelDesk, with_sources};
use crate::models::{INBOX, PACKAGE_EXTENSION, PACKAGE_LEN_MAX, Package};

/// Files that are looked at in one look.
const FILES_MAX: usize = 64;

/// The folder, and what was seen in it.
#[derive(Debug)]
pub(super) struct Inbox {
    path: PathBuf,
    len_max: u64,
    /// Lengths at the last look.
    seen: HashMap<PathBuf, u64>,
    is_failing: bool,
}

/// A wish, or a package.
#[derive(Debug)]
enum Item {
    Wish { task: String, input: Input },
    Package { bytes: Result<Vec<u8>, String>, file: String },
}

impl Inbox {
    pub(super) fn open(store: &Path, len_max: u64) -> Inbox {
        let path = store.join(INBOX);
        let mut inbox = Inbox { path, len_max: len_max.min(PACKAGE_LEN_MAX), seen: HashMap::new(), is_failing: false };
        let made = std::fs::create_dir_all(&inbox.path);
        inbox.report(made.err());
        inbox
    }

    /// The next thing to do; `takes_packages` is false while they are to wait.
    fn next(&mut self, takes_packages: bool) -> Option<Item> {
        let listed = std::fs::read_dir(&self.path).and_then(|entries| entries.take(FILES_MAX).collect::<Result<Vec<_>, _>>());
        let mut paths: Vec<PathBuf> = match listed {
            Ok(entries) => entries.iter().map(std::fs::DirEntry::path).collect(),
            Err(err) => {
                self.report(Some(err));
                return None;
            }
        };
        paths.sort();
        self.is_failing = false;
        self.seen.retain(|path, _| paths.contains(path));
        for path in paths {
            let (stem, extension) = (text(path.file_stem()), text(path.extension()));
            let wish = match extension.as_str() {
                "promote" => Some(Input::Promote),
                "rollback" => Some(Input::Rollback),
                _ => None,
            };
            if let Some(input) = wish {
                return self.removed(&path).then_some(Item::Wish { task: stem, input });
            }
            let Some(len) = std::fs::metadata(&path).ok().map(|about| about.len()) else { continue };
            let stood_still = self.seen.insert(path.clone(), len) == Some(len);
            if extension == PACKAGE_EXTENSION && stood_still && takes_packages {
                let bytes = if len > self.len_max {
                    Err(format!("it has {len} bytes, more than {}: raise infer.updates.size_limit", self.len_max))
                } else {
                    std::fs::read(&path).map_err(|err| err.to_string())
                };
                return self.removed(&path).then_some(Item::Package { bytes, file: text(path.file_name()) });
            }
        }
        None
    }

    /// What cannot be removed is not done, or it would be done for ever.
    fn removed(&mut self, path: &Path) -> bool {
        self.seen.remove(path);
        let removed = std::fs::remove_file(path);
        let is_removed = removed.is_ok();
        self.report(removed.err());
        is_removed
    }

    fn report(&mut self, err: Option<std::io::Error>) {
        if let Some(err) = err
            && !std::mem::replace(&mut self.is_failing, true)
        {
            let path = self.path.display();
            tracing::error!(%path, %err, "the inbox of models cannot be used; make it writable for this user");
        }
    }
}

impl ModelDesk {
    pub(super) fn look_into_inbox(&mut self) {
        let is_idle = self.tasks.iter().all(|task| task.updates.slot().trial.is_none());
        match self.inbox.next(is_idle) {
            Some(Item::Wish { task, input }) => match self.tasks.iter().position(|known| known.name == task) {
                Some(at) => self.give(at, input),
                None => tracing::warn!(task, "somebody wants another model for a task that no model of this box answers"),
            },
            Some(Item::Package { bytes, file }) => {
                if let Err((at, version, reason)) = self.take_package(bytes) {
                    match at {
                        Some(at) => self.event(at, &News { version, change: Change::Refused, reason }),
                        None => tracing::warn!(file, version, change = Change::Refused.name(), reason, "model"),
                    }
                }
            }
            None => {}
        }
    }

    /// Takes a package into the store, and its release on trial. A refusal says of which task and version, as far as known.
    fn take_package(&mut self, bytes: Result<Vec<u8>, String>) -> Result<(), (Option<usize>, u64, String)> {
        // With one task on the box it is clear of which one a broken package was meant to be.
        let only = (self.tasks.len() == 1).then_some(0);
        let bytes = bytes.map_err(|reason| (only, 0, reason))?;
        let head = Package::read(&bytes).map_err(|err| (only, 0, err.to_string()))?.head;
        let at = self.tasks.iter().position(|task| task.name == head.task && task.index.is_some());
        let Some(at) = at else {
            return Err((None, head.version, format!("no model of this box answers task `{}`", head.task)));
        };
        let tried = self.tasks[at].updates.slot().tried;
        if head.version <= tried {
            let reason =
                format!("version {} is not above {tried}, which was taken before: sign it as a newer one", head.version);
            return Err((Some(at), head.version, reason));
        }
        let (release, _) = self.store.import(&bytes).map_err(|err| (Some(at), head.version, with_sources(&err)))?;
        self.give(at, Input::Offered(release));
        Ok(())
    }
}

fn text(name: Option<&std::ffi::OsStr>) -> String {
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
