//! A policy from the cloud, in the words of `edge.toml`: what may change without a restart, laid over the box's own file.
//!
//! A key that a policy gives replaces the box's, a table or list as a whole; what it does not give stays as the box's file has
//! it, not as an earlier policy had it. So a policy says all that differs, and which came before does not matter. Its
//! mistakes are those of the file that would result, shown at the policy's own lines.

use serde::Deserialize;
use weir_host::config::{Checker, ConfigError, ConfigErrors, load_checked};
use weir_host::policy::PolicyHead;
use weir_host::sign::PublicKey;
use weir_host::units::{Bytes, Duration};
use weir_logic::ids::Class;
use weir_logic::policy::{Policy, StreamFidelity};
use weir_logic::window::KeepConfig;

use super::{Config, ModelInfo, StreamOffload, Value, Warning, address, check};

/// `[policy]` of the box: whether it takes policies from the cloud.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// What policies must be signed with; `None` to take none.
    #[serde(deserialize_with = "address::public_key")]
    pub key: Option<PublicKey>,
    /// How long a new one has to show that the box works with it.
    pub trial: Duration,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        PolicyConfig { key: None, trial: Duration::from_secs(300) }
    }
}

/// The text of a policy.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    policy: PolicyHead,
    #[serde(default)]
    stream: Vec<StreamOverlay>,
    #[serde(default)]
    uplink: Vec<UplinkOverlay>,
    #[serde(default)]
    plan: PlanOverlay,
}

/// `[[stream]]` of a policy.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StreamOverlay {
    name: String,
    class: Option<Class>,
    fidelity: Option<StreamFidelity>,
    keep: Option<KeepConfig>,
    zones: Option<Vec<String>>,
    value: Option<Value>,
    offload: Option<StreamOffload>,
}

/// `[[uplink]]` of a policy.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct UplinkOverlay {
    name: String,
    metered: Option<bool>,
    money_per_mb: Option<f64>,
    month_bytes: Option<Bytes>,
    warm: Option<bool>,
    classes: Option<Vec<Class>>,
}

/// `[plan]` of a policy.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PlanOverlay {
    horizon: Option<Duration>,
    fineness: Option<f64>,
    critical_copies: Option<u8>,
}

/// A policy without mistakes.
#[derive(Debug, Clone)]
pub struct CheckedPolicy {
    /// Its head.
    pub head: PolicyHead,
    /// What the core is to follow.
    pub policy: Policy,
    /// What is right but probably not meant.
    pub warnings: Vec<Warning>,
}

/// Checks a policy as far as that goes without a box's configuration: its form, and its head.
///
/// # Errors
/// Every mistake in it.
pub fn check_policy_form(file: &str, text: &str) -> Result<PolicyHead, ConfigErrors> {
    load_checked(file, text, |policy: &PolicyFile, checker| policy.policy.check(checker)).map(|policy| policy.policy)
}

/// Where the streams and uplinks that a policy names are: by position in the policy, that in the box's configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    streams: Vec<usize>,
    uplinks: Vec<usize>,
}

impl Places {
    /// The path in the policy of a key of the resulting configuration; `None` if the policy has nothing to do with it.
    pub(super) fn path(&self, path: &str) -> Option<String> {
        for (table, places) in [("stream", &self.streams), ("uplink", &self.uplinks)] {
            if let Some((index, rest)) = path.strip_prefix(table).and_then(|rest| rest.strip_prefix('[')?.split_once(']'))
                && let Ok(index) = index.parse::<usize>()
            {
                let at = places.iter().position(|&place| place == index)?;
                return Some(format!("{table}[{at}]{rest}"));
            }
        }
        path.starts_with("plan.").then(|| path.to_owned())
    }
}

impl Config {
    /// Checks a policy for this box, with the models that could be loaded; `file` is the name shown in messages.
    ///
    /// # Errors
    /// Every mistake in it, and whether it asks for what a running box cannot take over.
    pub fn check_policy(&self, models: &[ModelInfo], file: &str, text: &str) -> Result<CheckedPolicy, ConfigErrors> {
        let (mut warnings, mut overlaid) = (Vec::new(), None);
        let read: PolicyFile = load_checked(file, text, |policy: &PolicyFile, checker| {
            policy.policy.check(checker);
            let Some(places) = self.places(policy, checker) else { return };
            let config = self.overlaid(policy, &places);
            warnings = check::check_overlaid(&config, checker, file, places);
            overlaid = Some(config);
        })?;
        let refused = |message: String| {
            let hint = "policies change only what a running box can take over";
            ConfigErrors::from_errors(vec![ConfigError::of_file(file, message, hint)]).expect("there is one")
        };
        let next = overlaid.as_ref().unwrap_or(self).policy(models).map_err(|err| refused(err.to_string()))?;
        let own = self.policy(models).map_err(|err| refused(err.to_string()))?;
        own.succeeded_by(&next).map_err(|misfit| refused(misfit.to_string()))?;
        Ok(CheckedPolicy { head: read.policy, policy: next, warnings })
    }

    /// Finds what a policy names; `None` if it names what is not here, or something twice, which is reported.
    fn places(&self, policy: &PolicyFile, checker: &mut Checker<'_>) -> Option<Places> {
        let own: Vec<&str> = self.stream.iter().map(|stream| stream.name.as_str()).collect();
        let named: Vec<&str> = policy.stream.iter().map(|stream| stream.name.as_str()).collect();
        let streams = places_of("stream", &own, &named, checker);
        let own: Vec<&str> = self.uplink.iter().map(|uplink| uplink.name.as_str()).collect();
        let named: Vec<&str> = policy.uplink.iter().map(|uplink| uplink.name.as_str()).collect();
        let uplinks = places_of("uplink", &own, &named, checker);
        Some(Places { streams: streams?, uplinks: uplinks? })
    }

    fn overlaid(&self, policy: &PolicyFile, places: &Places) -> Config {
        let mut config = self.clone();
        for (overlay, &place) in policy.stream.iter().zip(&places.streams) {
            let stream = &mut config.stream[place];
            replace(&mut stream.class, overlay.class.as_ref());
            replace(&mut stream.fidelity, overlay.fidelity.as_ref());
            replace(&mut stream.zones, overlay.zones.as_ref());
            stream.keep = overlay.keep.clone().or(stream.keep.take());
            stream.value = overlay.value.clone().or(stream.value.take());
            stream.offload = overlay.offload.clone().or(stream.offload.take());
        }
        for (overlay, &place) in policy.uplink.iter().zip(&places.uplinks) {
            let uplink = &mut config.uplink[place];
            replace(&mut uplink.metered, overlay.metered.as_ref());
            replace(&mut uplink.money_per_mb, overlay.money_per_mb.as_ref());
            replace(&mut uplink.warm, overlay.warm.as_ref());
            uplink.month_bytes = overlay.month_bytes.or(uplink.month_bytes);
            uplink.classes = overlay.classes.clone().or(uplink.classes.take());
        }
        replace(&mut config.plan.horizon, policy.plan.horizon.as_ref());
        replace(&mut config.plan.fineness, policy.plan.fineness.as_ref());
        replace(&mut config.plan.critical_copies, policy.plan.critical_copies.as_ref());
        config
    }
}

fn replace<T: Clone>(own: &mut T, given: Option<&T>) {
    if let Some(given) = given {
        own.clone_from(given);
    }
}

fn places_of(what: &str, own: &[&str], named: &[&str], checker: &mut Checker<'_>) -> Option<Vec<usize>> {
    let mut places = Vec::new();
    let mut is_good = true;
    for (at, name) in named.iter().enumerate() {
        let path = format!("{what}[{at}].name");
        match own.iter().position(|other| other == name) {
            Some(place) if places.contains(&place) => {
                is_good = false;
                checker.mistake(&path, format!("the {what} `{name}` is here twice"), "write all of it in one table");
            }
            Some(place) => places.push(place),
            None => {
                is_good = false;
                let there = if own.is_empty() { "none".to_owned() } else { own.join(", ") };
                let hint = format!("it has: {there}; a policy for some boxes only names them in `gateways` of [policy]");
                checker.mistake(&path, format!("the box has no {what} `{name}`"), hint);
            }
        }
    }
    is_good.then_some(places)
}
