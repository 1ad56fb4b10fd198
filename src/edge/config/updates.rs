//! `[infer.updates]`: whether models come to a box while it runs, and what is asked of them first.

use std::path::PathBuf;

use serde::Deserialize;
use weir_host::package::PACKAGE_LEN_MAX;
use weir_host::sign::PublicKey;
use weir_host::units::{Bytes, Duration};
use weir_logic::models::{FetchRules, Rules};

use super::address;

/// `[infer.updates]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Updates {
    /// What models must be signed with; `None` to take none.
    #[serde(deserialize_with = "address::public_key")]
    pub key: Option<PublicKey>,
    /// Bytes of the store: of each task the active model, the one before and the one on trial.
    pub size_limit: Bytes,
    /// Address space of the process that a model on trial runs in.
    pub memory_limit: Bytes,
    /// How long it may take to answer a batch.
    pub answer_timeout: Duration,
    /// Windows to be seen in each stage of a trial.
    pub windows: u64,
    /// Share of the windows on which a new model must say what the active one says.
    pub agreement_min: f64,
    /// Share of the devices that get a canary's answers.
    pub share: f64,
    /// How long a stage may take.
    pub stage_timeout: Duration,
    /// Bytes that models of the cloud may take in a day.
    pub day_bytes: Bytes,
    /// Bytes that they may take in 30 days.
    pub month_bytes: Bytes,
    /// True if they may come over metered uplinks, too.
    pub metered: bool,
    /// The program that runs models on trial; `None` for this one. For whoever embeds the box in another program.
    #[serde(skip)]
    pub program: Option<PathBuf>,
}

impl Default for Updates {
    fn default() -> Self {
        Updates {
            key: None,
            size_limit: Bytes::from_mib(256),
            memory_limit: Bytes::from_mib(512),
            answer_timeout: Duration::from_secs(5),
            windows: 200,
            agreement_min: 0.9,
            share: 0.1,
            stage_timeout: Duration::from_secs(86_400),
            day_bytes: Bytes::from_mib(64),
            month_bytes: Bytes::from_mib(256),
            metered: false,
            program: None,
        }
    }
}

impl Updates {
    /// What the core allows of models that the cloud offers; `None` if none are taken.
    pub(crate) fn fetch_rules(&self) -> Option<FetchRules> {
        self.key.as_ref().map(|_| FetchRules {
            package_len_max: self.size_limit.get().min(PACKAGE_LEN_MAX),
            day_bytes: self.day_bytes.get(),
            month_bytes: self.month_bytes.get(),
            metered: self.metered,
        })
    }

    /// What the core asks of new models.
    pub(crate) fn rules(&self) -> Rules {
        Rules {
            windows: self.windows,
            agreement_min: self.agreement_min as f32,
            share_ppm: (self.share * 1e6) as u32,
            stage_us_max: self.stage_timeout.as_micros(),
        }
    }
}
