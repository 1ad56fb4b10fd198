//! Policies laid over a box's configuration.

use weir_host::config::ConfigErrors;
use weir_logic::policy::Policy;
use weir_logic::window::{KeepConfig, KeepRules, ValueRule};

use super::*;
use crate::config::check_policy_form;

const BOX: &str = r#"
[[listen]]
allow_anonymous = true
[[stream]]
name = "pumps"
topics = ["a/+/t"]
payload = { format = "number" }
keep = { samples = [{ channel = 0, above = 80.0 }] }
value = { weight = 2.0, deadline = "5m" }
[[stream]]
name = "logs"
topics = ["logs/#"]
class = "bulk"
zones = ["eu"]
[[uplink]]
name = "lan"
address = "localhost:4433"
zone = "eu"
[[uplink]]
name = "lte"
address = "localhost:4434"
metered = true
money_per_mb = 0.5
month_bytes = "1GB"
"#;

fn check(policy: &str) -> Result<CheckedPolicy, ConfigErrors> {
    parse(BOX).config.unwrap_or_else(|err| panic!("{err}")).check_policy(&[], "policy.toml", policy)
}

/// Key, line and message of each mistake.
fn mistakes(policy: &str) -> Vec<(String, usize, String)> {
    let errors = check(policy).expect_err("it has mistakes");
    errors.errors().iter().map(|error| (error.key.clone(), error.line, error.message.clone())).collect()
}

#[test]
fn what_a_policy_gives_replaces_what_the_box_has_and_the_rest_stays() {
    let text = r#"
[policy]
version = 7
gateways = ["box-*"]
[[uplink]]
name = "lte"
month_bytes = "2GB"
classes = ["critical"]
[[stream]]
name = "pumps"
class = "high"
keep = { samples = [{ channel = 0, above = 90.0 }] }
[plan]
critical_copies = 2
"#;
    let checked = check(text).unwrap_or_else(|err| panic!("{err}"));
    assert_eq!((checked.head.version, checked.head.gateways.as_slice()), (7, ["box-*".to_owned()].as_slice()));
    assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);
    let own = parse(BOX).config.unwrap().policy(&[]).unwrap();
    let Policy { streams, uplinks, critical_copies, .. } = &checked.policy;
    assert_eq!((streams[0].class, streams[1].class, *critical_copies), (Class::High, Class::Bulk, 2));
    assert_eq!((streams[0].value, &streams[1].zones), (own.streams[0].value, &own.streams[1].zones));
    let keep = KeepRules::new(
        &KeepConfig { samples: vec![ValueRule { above: Some(90.0), ..ValueRule::default() }], ..KeepConfig::default() },
        1,
    );
    assert_eq!(streams[0].keep, keep.ok());
    let meter = uplinks[1].meter.unwrap();
    assert_eq!((meter.money_per_mb, meter.month_bytes), (0.5, Some(2_000_000_000)));
    assert_eq!((uplinks[1].classes, uplinks[0].classes), ([true, false, false, false], [true; 4]));
    assert!(own.succeeded_by(&checked.policy).is_ok());
}

#[test]
fn mistakes_are_told_all_at_once_at_the_lines_of_the_policy() {
    let text = "[policy]\nversion = 0\n[[stream]]\nname = 'logs'\nvalue = { weight = -1.0 }\n[[stream]]\nname = 'pumps'\n\
                fidelity = 'aggregate'\ntopic = 'x'\n[[uplink]]\nname = 'lan'\nwarm = true\n[plan]\nfineness = 9.0\n";
    let found = mistakes(text);
    let keys: Vec<_> = found.iter().map(|(key, line, _)| (key.as_str(), *line)).collect();
    let expected = [
        ("policy.version", 2),
        ("stream[0].value.weight", 5),
        ("stream[1].fidelity", 8),
        ("stream[1].topic", 9),
        ("uplink[0].warm", 12),
        ("plan.fineness", 14),
    ];
    assert_eq!(keys, expected, "{found:#?}");
    let names =
        mistakes("[policy]\nversion = 1\n[[stream]]\nname = 'pump'\n[[stream]]\nname = 'logs'\n[[stream]]\nname = 'logs'\n");
    assert!(names[0].2.contains("no stream `pump`") && names[1].2.contains("here twice"), "{names:?}");
    assert!(check_policy_form("policy.toml", text).is_err_and(|errors| errors.errors().len() == 2), "its form and its head");
}

#[test]
fn a_mistake_that_arises_elsewhere_is_told_at_the_head() {
    // The only uplink of the zone is closed to the class of the stream that must stay in it.
    let found = mistakes("[policy]\nversion = 1\n[[uplink]]\nname = 'lan'\nclasses = ['critical']\n");
    assert_eq!((found.len(), found[0].0.as_str()), (1, "policy"), "{found:?}");
    assert!(found[0].2.contains("would never be sent (`stream[1].zones` of the box)"), "{found:?}");
}

#[test]
fn what_a_running_box_cannot_follow_is_refused() {
    let found = mistakes("[policy]\nversion = 1\n[[stream]]\nname = 'logs'\nclass = 'high'\n");
    assert!(found[0].2.contains("has zones, so its class stays"), "{found:?}");
}

#[test]
fn a_key_that_is_none_is_told_with_where_to_get_one() {
    let errors = parse("[policy]\nkey = 'ed25519:12'\ntrial = '5s'\n").config.expect_err("two mistakes").to_string();
    assert!(errors.contains("not a public key") && errors.contains("weir policy keygen"), "{errors}");
    assert!(errors.contains("15s"), "{errors}");
}
