use crate::window::*;

fn config(json: &str) -> WindowConfig {
    serde_json::from_str(json).unwrap()
}

#[test]
fn lengths_are_read_with_their_unit_and_never_without() {
    assert_eq!("128 samples".parse(), Ok(Span::Samples(128)));
    assert_eq!("2.56s".parse(), Ok(Span::TimeUs(2_560_000)));
    assert_eq!(parse_duration_us("1.5 m"), Ok(90_000_000));
    assert_eq!(parse_duration_us("366d"), Ok(SPAN_US_MAX));
    for text in ["", "30", "s", "0s", "0 samples", "-1s", "1.s", ".5s", "1e3s", "0.5us", "367d", "2 weeks", "9999999999999s"] {
        assert!(text.parse::<Span>().is_err(), "{text}");
    }
    assert!(serde_json::from_str::<WindowConfig>(r#"{"length":128}"#).is_err());
    assert!(serde_json::from_str::<WindowConfig>(r#"{"length":"1s","lenght":"1s"}"#).is_err());
}

#[test]
fn a_time_becomes_samples_by_the_rate_and_defaults_follow_the_rate() {
    let spec = WindowSpec::new(&config(r#"{"length":"2.56s","step":"64 samples"}"#), 6, Some(50.0)).unwrap();
    assert_eq!((spec.length(), spec.step(), spec.gap_max_us, spec.reorder_max_us), (128, 64, 1_000_000, 1_000_000));
    let slow = WindowSpec::new(&config(r#"{"length":"1h"}"#), 1, Some(1.0 / 60.0)).unwrap();
    assert_eq!((slow.length(), slow.step(), slow.gap_max_us), (60, 60, 600_000_000));
    let tight = WindowSpec::new(&config(r#"{"length":"8 samples","gap_max":"200ms"}"#), 1, None).unwrap();
    assert_eq!((tight.gap_max_us, tight.reorder_max_us), (200_000, 200_000));
    let bare = WindowSpec::new(&config(r#"{"length":"8 samples"}"#), 1, None).unwrap();
    assert_eq!(bare.gap_max_us, SPAN_US_MAX);
}

#[test]
fn all_mistakes_of_a_window_are_told_at_once() {
    let mistakes = |json, channels, rate_hz| WindowSpec::new(&config(json), channels, rate_hz).unwrap_err();
    assert_eq!(
        mistakes(r#"{"length":"1s","step":"1s","gap_max":"1s","reorder_max":"2s"}"#, 0, None),
        [
            SpecError::NoRate { key: "length" },
            SpecError::NoRate { key: "step" },
            SpecError::NoChannels,
            SpecError::Reorder { reorder_max_us: 2_000_000, gap_max_us: 1_000_000 },
        ]
    );
    assert_eq!(
        mistakes(r#"{"length":"1h","step":"1us"}"#, 1, Some(50.0)),
        [SpecError::Samples { key: "length", samples: 180_000 }, SpecError::Samples { key: "step", samples: 0 }]
    );
    assert_eq!(mistakes(r#"{"length":"16384 samples"}"#, 17, None), [SpecError::TooLarge { length: 16_384, channels: 17 }]);
}

#[test]
fn aggregates_need_values_and_a_span() {
    let config: AggregateConfig = serde_json::from_str(r#"{"every":"1m"}"#).unwrap();
    assert_eq!(AggregateSpec::new(&config, 0), Err(SpecError::NoChannels));
    assert_eq!(AggregateSpec::new(&config, 1).map(|spec| spec.reorder_max_us), Ok(1_000_000));
    let zero = AggregateConfig { every_us: 0, reorder_max_us: None };
    assert_eq!(AggregateSpec::new(&zero, 1), Err(SpecError::Every { every_us: 0 }));
}
