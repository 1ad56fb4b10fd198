//! The head of a signed policy: what the cloud reads of it, and the box before all else.
//!
//! The rest is in the words of the box's configuration, which the cloud does not know.

use serde::Deserialize;

use crate::config::{self, Checker, ConfigErrors};

/// `[policy]` of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyHead {
    /// Counts up: a box takes only what is above the one it has.
    pub version: u64,
    /// Names of the gateways that it is for, where `*` stands for any text; empty for all.
    #[serde(default)]
    pub gateways: Vec<String>,
}

/// Highest version: databases count in 63 bits.
pub const VERSION_MAX: u64 = i64::MAX as u64;

impl PolicyHead {
    /// Reads it from the text of a policy; `file` is the name shown in messages.
    ///
    /// # Errors
    /// The text is not TOML, or has no head; mistakes in the rest are not looked for.
    pub fn read(file: &str, text: &str) -> Result<PolicyHead, ConfigErrors> {
        /// A policy, with what is not its head left aside.
        #[derive(Deserialize)]
        struct Headed {
            policy: PolicyHead,
        }
        config::load_checked(file, text, |headed: &Headed, checker| headed.policy.check(checker)).map(|headed| headed.policy)
    }

    /// Reports what its type cannot express.
    pub fn check(&self, checker: &mut Checker<'_>) {
        if !(1..=VERSION_MAX).contains(&self.version) {
            let message = format!("{} is not within 1 to {VERSION_MAX}", self.version);
            checker.mistake("policy.version", message, "count up from 1; the box's own configuration is 0");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_is_read_whatever_else_there_is() {
        let text = "[policy]\nversion = 7\ngateways = ['hall-*']\n[[stream]]\nname = 'x'\nunheard = { of = 1 }\n";
        let head = PolicyHead { version: 7, gateways: vec!["hall-*".to_owned()] };
        assert_eq!(PolicyHead::read("p.toml", text), Ok(head));
    }

    #[test]
    fn a_policy_without_a_version_is_none() {
        for (text, part) in [
            ("[[stream]]\nname = 'x'\n", "`policy` is missing"),
            ("[policy]\n", "`version` is missing"),
            ("[policy]\nversion = 0\n", "not within 1"),
            ("[policy]\nversion = 1\ngateway = ['x']\n", "did you mean `gateways`?"),
            ("[policy\n", "not TOML"),
        ] {
            let errors = PolicyHead::read("p.toml", text).expect_err(text).to_string();
            assert!(errors.contains(part), "{text}: {errors}");
        }
    }
}
