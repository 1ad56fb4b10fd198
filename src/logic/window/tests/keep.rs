use super::untimed;
use crate::window::*;

fn rules(json: &str, channels: usize) -> Result<KeepRules, Vec<KeepError>> {
    KeepRules::new(&serde_json::from_str(json).unwrap(), channels)
}

fn keeps(rules: &KeepRules, samples: &[(i64, f64)]) -> Vec<Keep> {
    let mut keeper = Keeper::new();
    samples.iter().map(|(received_us, value)| keeper.keep(rules, *received_us, &[*value])).collect()
}

#[test]
fn without_rules_everything_is_folded() {
    let rules = rules("{}", 1).unwrap();
    assert_eq!(keeps(&rules, &[(0, 1e9), (1, -1e9)]), [Keep::Fold; 2]);
    assert_eq!(rules.keep_verdict(1.0, 1.0, "fall"), Keep::Fold);
}

#[test]
fn values_beyond_a_threshold_are_kept_and_those_on_it_are_not() {
    let rules = rules(r#"{"samples":[{"channel":0,"above":80,"below":-10}]}"#, 1).unwrap();
    assert_eq!(
        keeps(&rules, &[(0, 80.0), (1, 80.5), (2, -10.0), (3, -11.0)]),
        [Keep::Fold, Keep::Raw(KeepReason::Above(0)), Keep::Fold, Keep::Raw(KeepReason::Below(0))]
    );
}

#[test]
fn a_deadband_follows_the_last_kept_value() {
    let rules = rules(r#"{"samples":[{"channel":0,"delta":1}]}"#, 1).unwrap();
    let moved = Keep::Raw(KeepReason::Moved(0));
    assert_eq!(
        keeps(&rules, &[(0, 0.0), (1, 0.9), (2, 1.0), (3, 0.5), (4, 1.9), (5, 0.0)]),
        [Keep::Raw(KeepReason::First), Keep::Fold, moved, Keep::Fold, Keep::Fold, moved]
    );
}

#[test]
fn one_sample_is_kept_each_time_that_every_says() {
    let rules = rules(r#"{"every":"10us"}"#, 1).unwrap();
    let due = Keep::Raw(KeepReason::Due);
    assert_eq!(
        keeps(&rules, &[(100, 0.0), (109, 0.0), (110, 0.0), (119, 0.0), (50, 0.0), (59, 0.0), (60, 0.0)]),
        [Keep::Raw(KeepReason::First), Keep::Fold, due, Keep::Fold, due, Keep::Fold, due]
    );
}

#[test]
fn a_message_is_kept_for_any_of_its_rows_and_compared_by_its_last() {
    let rules = rules(r#"{"samples":[{"channel":0,"delta":5}]}"#, 1).unwrap();
    let mut keeper = Keeper::new();
    let mut keep = |json| keeper.keep_message(&rules, &untimed(json, 1.0), 0);
    assert_eq!(keep(r#"{"v":[0,1,2]}"#), Keep::Raw(KeepReason::First));
    assert_eq!(keep(r#"{"v":[6,2,6]}"#), Keep::Fold);
    assert_eq!(keep(r#"{"v":[2,7,2]}"#), Keep::Raw(KeepReason::Moved(0)));
    assert_eq!(keep(r#"{"v":[6,5,4]}"#), Keep::Fold);
}

#[test]
fn all_conditions_of_a_verdict_rule_must_hold() {
    let rules = rules(
        r#"{"verdicts":[{"score_above":0.9},{"labels":["fall","trip"],"confidence_above":0.2,"confidence_below":0.6}]}"#,
        0,
    )
    .unwrap();
    assert_eq!(rules.keep_verdict(0.95, 0.0, "walk"), Keep::Raw(KeepReason::Verdict(0)));
    assert_eq!(rules.keep_verdict(0.9, 0.5, "walk"), Keep::Fold);
    assert_eq!(rules.keep_verdict(0.5, 0.5, "trip"), Keep::Raw(KeepReason::Verdict(1)));
    assert_eq!(rules.keep_verdict(0.5, 0.6, "trip"), Keep::Fold);
    assert_eq!(rules.keep_verdict(0.5, 0.2, "trip"), Keep::Fold);
}

#[test]
fn all_mistakes_in_rules_are_told_at_once() {
    let json = r#"{
        "samples": [
            {"channel":1,"above":1}, {"channel":0}, {"channel":0,"delta":0}, {"channel":0,"above":1,"below":2}
        ],
        "verdicts": [{}, {"score_above":0.7,"score_below":0.7}]
    }"#;
    assert_eq!(
        rules(json, 1).unwrap_err(),
        [
            KeepError::Channel { rule: 0, channel: 1, channels: 1 },
            KeepError::Empty { table: "samples", rule: 1 },
            KeepError::Delta { rule: 2 },
            KeepError::Everything { rule: 3, above: 1.0, below: 2.0 },
            KeepError::Empty { table: "verdicts", rule: 0 },
            KeepError::Nothing { rule: 1, above: 0.7, below: 0.7 },
        ]
    );
    let endless = KeepConfig {
        samples: vec![ValueRule { channel: 0, above: Some(f64::NAN), below: None, delta: None }; 65],
        ..KeepConfig::default()
    };
    let errors = KeepRules::new(&endless, 1).unwrap_err();
    assert_eq!(errors[..2], [KeepError::TooMany { count: 65 }, KeepError::NotFinite { table: "samples", rule: 0 }]);
}

#[test]
fn unknown_keys_and_bare_numbers_are_refused() {
    for json in
        [r#"{"evry":"1s"}"#, r#"{"every":10}"#, r#"{"samples":[{"channel":0,"over":1}]}"#, r#"{"verdicts":[{"score":1}]}"#]
    {
        assert!(serde_json::from_str::<KeepConfig>(json).is_err(), "{json}");
    }
}
