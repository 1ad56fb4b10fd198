//! What goes into the machine that fetches packages, and what comes out.

use bytes::Bytes;

use super::{FetchNews, Spent, TaskModels};
use crate::wire::model::ModelOffer;

/// What a box allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchRules {
    /// Longest package in bytes.
    pub package_len_max: u64,
    /// Bytes of packages in a day.
    pub day_bytes: u64,
    /// Bytes of packages in a month of 30 days.
    pub month_bytes: u64,
    /// True if metered uplinks may carry them.
    pub metered: bool,
}

/// What the box starts with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FetchStart {
    /// What is allowed; `None` if the box takes no models.
    pub rules: Option<FetchRules>,
    /// What was saved of the budget.
    pub spent: Spent,
}

/// What the shell says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchInput {
    /// The models of the box, in the place of what was said before.
    Tasks(Vec<TaskModels>),
    /// Answers [`FetchOutput::Check`]: how many bytes of it are on disk, or why it is refused.
    Checked {
        /// The package.
        sha256: Bytes,
        /// Bytes, from the first on.
        result: Result<u64, String>,
    },
    /// Answers [`FetchOutput::Write`]: how many bytes of it are on disk now, or what the disk says.
    Written {
        /// The package.
        sha256: Bytes,
        /// Bytes, from the first on.
        result: Result<u64, String>,
    },
    /// Answers [`FetchOutput::Finish`].
    Finished {
        /// The package.
        sha256: Bytes,
        /// Whether it is in the inbox.
        result: Result<(), Unfinished>,
    },
}

/// Why a package that is whole is not in the inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfinished {
    /// It is another than was offered, and gone.
    Wrong(String),
    /// The disk.
    Disk(String),
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchOutput {
    /// Look at signature and target, and at what is on disk of it; answer with [`FetchInput::Checked`]. Parts of other packages
    /// are of no use any more.
    Check(ModelOffer),
    /// Write to a stream of its own what was asked for, and hand in what comes back, with this number.
    Ask {
        /// The uplink.
        uplink: u8,
        /// Never used before.
        id: u64,
        /// All that is to be written.
        bytes: Vec<u8>,
    },
    /// Reset that stream, if it is still there.
    Cancel {
        /// The uplink.
        uplink: u8,
        /// The number.
        id: u64,
    },
    /// Append to what is on disk; answer with [`FetchInput::Written`].
    Write {
        /// The package.
        sha256: Bytes,
        /// Where it goes, which is the end of what is there.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// All of it is on disk: compare its sum, and lay it into the inbox; answer with [`FetchInput::Finished`].
    Finish(ModelOffer),
    /// Remember what was used of the budget.
    Save(Spent),
    /// Tell who watches.
    News(FetchNews),
}

/// Why an uplink is not used for models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoWay {
    /// No session.
    Down,
    /// It goes over TCP, which has no streams of their own.
    Tcp,
    /// Its bytes cost money.
    Metered,
    /// Its month is used up.
    Month,
    /// Its breaker is open.
    Unwell,
}

impl NoWay {
    /// In words.
    pub(super) const fn words(self) -> &'static str {
        match self {
            NoWay::Down => "is down",
            NoWay::Tcp => "goes over TCP, and models come over QUIC only",
            NoWay::Metered => "is metered (infer.updates.metered)",
            NoWay::Month => "has used up its month",
            NoWay::Unwell => "does not work well",
        }
    }
}

/// An uplink as models see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchWay<'a> {
    /// Its name.
    pub name: &'a str,
    /// Why it is not used; `None` if it may be.
    pub refusal: Option<NoWay>,
}

/// Why nothing is asked for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wait {
    Day { limit: u64 },
    Month { limit: u64 },
    NoWay(String),
    Disk(String),
}

impl Wait {
    pub(super) fn words(&self) -> String {
        match self {
            Wait::Day { limit } => {
                format!("the {limit} bytes that models may take in a day are used (infer.updates.day_bytes)")
            }
            Wait::Month { limit } => {
                format!("the {limit} bytes that models may take in 30 days are used (infer.updates.month_bytes)")
            }
            Wait::NoWay(why) => format!("no uplink may carry it now: {why}"),
            Wait::Disk(why) => format!("it cannot be written: {why}"),
        }
    }
}
