use proptest::prelude::*;

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
fn a_value_that_is_sent_again_and_again_is_kept_once() {
    let rules = rules(r#"{"samples":[{"channel":0,"changed":true}]}"#, 1).unwrap();
    let moved = Keep::Raw(KeepReason::Moved(0));
    assert_eq!(
        keeps(&rules, &[(0, 5.0), (1, 5.0), (2, 5.0 + 1e-12), (3, 5.0), (4, 5.0), (5, -0.0), (6, 0.0)]),
        [Keep::Raw(KeepReason::First), Keep::Fold, moved, moved, Keep::Fold, moved, Keep::Fold]
    );
}

#[test]
fn what_is_kept_is_spaced_whatever_the_rules_say() {
    let rules = rules(r#"{"spacing_min":"10us","samples":[{"channel":0,"above":80}]}"#, 1).unwrap();
    let above = Keep::Raw(KeepReason::Above(0));
    assert_eq!(
        keeps(&rules, &[(0, 81.0), (9, 99.0), (10, 81.0), (19, 81.0), (5, 81.0), (14, 81.0)]),
        [above, Keep::Fold, above, Keep::Fold, above, Keep::Fold]
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
            {"channel":1,"above":1}, {"channel":0}, {"channel":0,"delta":0}, {"channel":0,"above":1,"below":2},
            {"channel":0,"delta":1,"changed":true}, {"channel":0,"changed":false}
        ],
        "every": "1s", "spacing_min": "2s",
        "verdicts": [{}, {"score_above":0.7,"score_below":0.7}]
    }"#;
    assert_eq!(
        rules(json, 1).unwrap_err(),
        [
            KeepError::Spacing { spacing_min_us: 2_000_000, every_us: 1_000_000 },
            KeepError::Channel { rule: 0, channel: 1, channels: 1 },
            KeepError::Empty { table: "samples", rule: 1 },
            KeepError::Delta { rule: 2 },
            KeepError::Everything { rule: 3, above: 1.0, below: 2.0 },
            KeepError::DeltaUnused { rule: 4 },
            KeepError::Empty { table: "samples", rule: 5 },
            KeepError::Empty { table: "verdicts", rule: 0 },
            KeepError::Nothing { rule: 1, above: 0.7, below: 0.7 },
        ]
    );
    let endless =
        KeepConfig { samples: vec![ValueRule { above: Some(f64::NAN), ..ValueRule::default() }; 65], ..KeepConfig::default() };
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

/// What is kept, from the words of the documentation: all that was kept is looked through each time.
fn naive(config: &KeepConfig, samples: &[(i64, f64)]) -> Vec<bool> {
    let mut kept: Vec<(i64, f64)> = Vec::new();
    let mut answers = Vec::new();
    let compares = config.samples.iter().any(|rule| rule.delta.is_some() || rule.changed);
    for &(received_us, value) in samples {
        let last = kept.last().copied();
        let since_us = last.map(|(at_us, _)| received_us - at_us);
        let too_soon = config.spacing_min_us.zip(since_us).is_some_and(|(min_us, since_us)| since_us >= 0 && since_us < min_us);
        let is_beyond = config
            .samples
            .iter()
            .any(|rule| rule.above.is_some_and(|above| value > above) || rule.below.is_some_and(|below| value < below));
        let is_first = last.is_none() && (compares || config.every_us.is_some());
        let has_moved = last.is_some_and(|(_, before)| {
            config.samples.iter().any(|rule| {
                rule.delta.is_some_and(|delta| (value - before).abs() >= delta) || (rule.changed && value != before)
            })
        });
        let is_due = config.every_us.zip(since_us).is_some_and(|(every_us, since_us)| since_us < 0 || since_us >= every_us);
        let is_kept = !too_soon && (is_beyond || is_first || has_moved || is_due);
        if is_kept {
            kept.push((received_us, value));
        }
        answers.push(is_kept);
    }
    answers
}

fn config() -> impl Strategy<Value = KeepConfig> {
    let rule = (0_u8..4, -3.0..3.0).prop_map(|(kind, limit): (u8, f64)| match kind {
        0 => ValueRule { above: Some(limit), ..ValueRule::default() },
        1 => ValueRule { below: Some(limit), ..ValueRule::default() },
        2 => ValueRule { delta: Some(limit.abs() + 0.1), ..ValueRule::default() },
        _ => ValueRule { changed: true, ..ValueRule::default() },
    });
    let us = || prop::option::of(1_i64..40);
    (us(), us(), prop::collection::vec(rule, 0..3)).prop_map(|(every_us, spacing, samples)| KeepConfig {
        every_us,
        spacing_min_us: spacing.map(|us| us.min(every_us.unwrap_or(us))),
        samples,
        verdicts: Vec::new(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rules_keep_what_a_naive_model_keeps(config in config(), steps in prop::collection::vec((-5_i64..20, -8_i32..8), 1..60)) {
        // Values on a coarse grid are often equal to what was kept; time goes back now and then.
        let mut at_us = 0;
        let samples: Vec<(i64, f64)> = steps.iter().map(|(step_us, value)| {
            at_us += step_us;
            (at_us, f64::from(*value) / 2.0)
        }).collect();
        let rules = KeepRules::new(&config, 1).unwrap();
        let kept: Vec<bool> = keeps(&rules, &samples).iter().map(|keep| *keep != Keep::Fold).collect();
        prop_assert_eq!(kept, naive(&config, &samples));
    }
}
