use proptest::prelude::*;

use super::*;
use crate::window::{Span, WindowConfig, WindowSpec};

const MIN_US: u64 = 60_000_000;

fn policy(audit: f32, learn: Option<LearnPolicy>) -> OffloadPolicy {
    let config = WindowConfig { length: Span::Samples(4), step: None, gap_max_us: None, reorder_max_us: None };
    OffloadPolicy {
        task: "activity".into(),
        mode: OffloadMode::AnswerNow,
        band: (0.0, 0.6),
        deadline_us: 1,
        spacing_us: 0,
        int16: true,
        audit,
        learn,
        window: WindowSpec::new(&config, 1, Some(10.0)).expect("a window"),
    }
}

fn learn() -> LearnPolicy {
    LearnPolicy { min: 0.4, max: 0.9, share: 0.5, disagree: 0.1 }
}

fn answerer(model: &str, version: &str) -> Answerer {
    Answerer { model: model.into(), version: version.into() }
}

/// A stream on which two models answer, and now and then somebody knows better.
struct Site {
    audits: Audits,
    policy: OffloadPolicy,
    remote: Answerer,
    random: u64,
    clock: i64,
    turns: u32,
    rose: Option<bool>,
}

impl Site {
    fn new(seed: u64, policy: OffloadPolicy) -> Site {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let remote = answerer("large", "2");
        Site { audits: Audits::new(seed, [true]), policy, remote, random, clock: 0, turns: 0, rose: None }
    }

    /// In `[0, 1)`.
    fn draw(&mut self) -> f32 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 40) as f32 / (1u64 << 24) as f32
    }

    fn threshold(&self) -> f32 {
        self.audits.learned(0).map_or(self.policy.band.1, |learned| learned.threshold)
    }

    /// A window: says whether it was sent on, and why.
    fn window(&mut self, confidence: f32, disagrees: bool) -> Option<Purpose> {
        let band = (self.policy.band.0, self.threshold());
        let purpose = self.audits.scored(0, &self.policy, band, confidence)?;
        self.said(purpose, confidence, ["a", if disagrees { "b" } else { "a" }]);
        Some(purpose)
    }

    fn said(&mut self, purpose: Purpose, confidence: f32, [local, remote]: [&str; 2]) {
        self.clock += 10;
        self.audits.both_said(&BothSaid {
            stream: 0,
            task: &self.policy.task.clone(),
            device: &"left".into(),
            start_us: self.clock,
            end_us: self.clock + 9,
            purpose,
            local: &answerer("small", "1"),
            local_label: &local.into(),
            confidence,
            remote: &self.remote,
            remote_label: &remote.into(),
        });
    }

    /// An hour of a window a second, whose models disagree with a probability that falls with the confidence.
    fn hour(&mut self, hour: u64, disagrees: impl Fn(f32) -> f32) {
        for second in 0..3_600 {
            // Most answers are sure ones.
            let confidence = 0.3 + 0.7 * self.draw().sqrt();
            let is_other = self.draw() < disagrees(confidence);
            self.window(confidence, is_other);
            if second % 60 == 0 {
                self.look(hour * 60 + second / 60);
            }
        }
    }

    fn look(&mut self, minute: u64) -> Option<Learned> {
        let before = self.threshold();
        let learned = self.audits.look(minute * MIN_US, 0, &self.policy)?;
        let rises = learned.threshold > before;
        self.turns += u32::from(self.rose.is_some_and(|rose| rose != rises));
        self.rose = Some(rises);
        Some(learned)
    }
}

proptest! {
    #[test]
    fn the_configured_share_of_sure_answers_is_chosen_by_the_seed_alone(seed: u64, share in 0.0f32..0.2) {
        let policy = policy(share, None);
        let chosen = |seed: u64| {
            let mut audits = Audits::new(seed, [false, false]);
            let purposes: Vec<_> = (0..4_000).map(|_| audits.scored(1, &policy, policy.band, 0.9)).collect();
            purposes
        };
        let found = chosen(seed);
        prop_assert_eq!(&found, &chosen(seed), "the same again");
        let count = found.iter().filter(|purpose| **purpose == Some(Purpose::Audit)).count() as f64;
        // Five standard deviations of a binomial count: once in two million.
        let (mean, sd) = (4_000.0 * f64::from(share), (4_000.0 * f64::from(share)).sqrt());
        prop_assert!((count - mean).abs() <= 5.0 * sd + 1.0, "{count} of {mean}");
    }

    #[test]
    fn a_learned_threshold_keeps_its_bounds_and_its_budget_whatever_comes(
        seed in 0u64..1_000, min in 0.1f32..0.6, more in 0.0f32..0.4, share in 0.1f32..0.9, slope in 0.0f32..2.0,
    ) {
        let learn = LearnPolicy { min, max: min + more, share, disagree: 0.1 };
        let mut site = Site::new(seed, policy(0.2, Some(learn)));
        for hour in 0..8 {
            let before = site.threshold();
            site.hour(hour, |confidence| slope * (1.0 - confidence));
            let now = site.threshold();
            if (min * 40.0).ceil() <= ((min + more) * 40.0).floor() {
                prop_assert!(now >= min - 1e-4 && now <= min + more + 1e-4, "{now} is outside {min} to {}", min + more);
            }
            // Confidences come as 0.3 + 0.7 sqrt(u), so this is the share below the threshold.
            let below = ((now - 0.3) / 0.7).max(0.0).powi(2);
            prop_assert!(now <= before || below <= share * 1.1 + 0.03, "{below} of {share} at {now}");
        }
    }
}

#[test]
fn nothing_is_sent_on_in_mode_never_and_windows_in_doubt_are_not_audited() {
    let mut audits = Audits::new(1, [false]);
    let all = policy(1.0, None);
    assert_eq!(audits.scored(0, &all, (0.2, 0.6), 0.3), Some(Purpose::Doubt));
    assert_eq!(audits.scored(0, &all, (0.2, 0.6), 0.6), Some(Purpose::Audit));
    assert_eq!(audits.scored(0, &all, (0.2, 0.6), 0.1), None, "what is not worth asking about is not sure either");
    let never = OffloadPolicy { mode: OffloadMode::Never, ..all };
    assert_eq!(audits.scored(0, &never, (0.2, 0.6), 0.6), None);
}

#[test]
fn without_the_truth_there_is_disagreement_and_with_it_who_was_right() {
    let mut site = Site::new(1, policy(1.0, None));
    for window in 0..100 {
        site.window(0.9, window % 5 == 0);
    }
    let tally = &site.audits.tallies(0)[0];
    assert_eq!((tally.audited.answered, tally.audited.agreed, tally.doubted.answered), (100, 80, 0));
    let agreement = tally.audited.agreement().expect("counted");
    assert!(agreement.low < 0.8 && agreement.low > 0.7 && agreement.high > 0.8 && agreement.high < 0.88, "{agreement:?}");
    assert_eq!((tally.better(), tally.accuracies()), (Better::Unknown, None), "nobody knows");
    // The local one was right each time.
    for window in 1..=100 {
        site.audits.truth(0, "left", window * 10 + 4, "a");
    }
    site.audits.truth(0, "right", 14, "a");
    let tally = &site.audits.tallies(0)[0];
    assert_eq!(tally.audited.truth, Truth { both: 80, local: 20, remote: 0, neither: 0 });
    assert_eq!(
        (tally.better(), site.audits.counts(0).truths_unmatched),
        (Better::Local, 1),
        "another device's truth is not ours"
    );
    site.audits.truth(0, "left", 14, "b");
    assert_eq!(site.audits.tallies(0)[0].audited.truth.count(), 100, "each window is judged once");
    let (local, remote) = site.audits.tallies(0)[0].accuracies().expect("known");
    assert_eq!((local, remote), (1.0, 0.8));
}

#[test]
fn the_streams_agreement_weighs_sure_and_doubtful_windows_by_how_often_they_come() {
    let mut site = Site::new(1, policy(1.0, None));
    site.window(0.9, false);
    // A tenth is in doubt and always disagreed on.
    for _ in 0..90 {
        site.window(0.9, false);
    }
    for _ in 0..10 {
        site.window(0.5, true);
    }
    let found = site.audits.tallies(0)[0].agreement().expect("both groups were asked about");
    assert!((found - 0.9).abs() < 1e-9, "{found}");
}

#[test]
fn each_pair_of_versions_has_its_own_counts_and_there_are_not_more_than_the_limits() {
    let mut site = Site::new(1, policy(1.0, None));
    for version in 0..TALLIES_MAX + 2 {
        site.remote = answerer("large", &version.to_string());
        site.window(0.9, false);
    }
    assert_eq!((site.audits.tallies(0).len(), site.audits.counts(0).tallies_forgotten), (TALLIES_MAX, 2));
    site.audits.truth(0, "left", 10, "a");
    site.audits.truth(0, "left", 30, "a");
    assert_eq!(site.audits.tallies(0)[0].audited.truth.count(), 1, "the first pair is forgotten, the third is not");
    site.remote = answerer("large", "5");
    site.window(0.9, false);
    assert_eq!(site.audits.tallies(0).last().map(|tally| tally.audited.answered), Some(2), "one that comes back goes on");
    for _ in 0..ANSWERS_MAX {
        site.window(0.9, false);
    }
    assert!(site.audits.counts(0).answers_forgotten > 0);
}

#[test]
fn a_threshold_rises_to_where_disagreement_is_no_longer_worth_it_and_rests() {
    for seed in 0..30 {
        let mut site = Site::new(seed, policy(0.2, Some(LearnPolicy { share: 1.0, ..learn() })));
        // 10 % are disagreed on at 0.75.
        (0..96).for_each(|hour| site.hour(hour, |confidence| 0.4 * (1.0 - confidence)));
        let threshold = site.threshold();
        assert!((0.6..=0.8).contains(&threshold), "{threshold} with seed {seed}");
        assert!(site.turns == 0, "{} turns with seed {seed}", site.turns);
    }
}

#[test]
fn a_threshold_falls_where_both_agree_and_to_the_least_where_the_larger_model_is_worse() {
    let mut site = Site::new(3, policy(0.2, Some(learn())));
    (0..24).for_each(|hour| site.hour(hour, |_| 0.01));
    assert_eq!(site.threshold(), 0.4);
    assert!(matches!(site.audits.learned(0).map(|learned| learned.why), Some(LearnedWhy::Fell { .. })));
    // They disagree enough for it to rise, but the truth is the local model's.
    let mut site = Site::new(3, policy(0.2, Some(learn())));
    for minute in 0..600 {
        for _ in 0..20 {
            let confidence = 0.3 + 0.7 * site.draw();
            let is_other = site.draw() < 0.3;
            if site.window(confidence, is_other).is_some() {
                let time_us = site.clock;
                site.audits.truth(0, "left", time_us, "a");
            }
        }
        site.look(minute);
    }
    let learned = site.audits.learned(0).expect("it is learned");
    assert_eq!((learned.threshold, learned.why), (0.4, LearnedWhy::RemoteWorse), "{learned}");
    let tally = &site.audits.tallies(0)[0];
    assert!(tally.audited.truth.local > 100 && tally.better() == Better::Local);
}

#[test]
fn a_step_is_followed_by_rest_and_a_turn_by_a_longer_one() {
    let mut site = Site::new(5, policy(1.0, Some(LearnPolicy { share: 1.0, ..learn() })));
    let fill = |site: &mut Site, disagrees: f32| {
        for _ in 0..40_000 {
            let confidence = site.draw();
            let is_other = site.draw() < disagrees;
            site.window(confidence, is_other);
        }
    };
    fill(&mut site, 0.5);
    let moved: Vec<u64> = (0..60).filter(|minute| site.look(*minute).is_some()).collect();
    assert_eq!(moved, [0, 10, 20, 30, 40, 50], "every ten minutes, up to the bound");
    assert!((site.threshold() - 0.9).abs() < 1e-6);
    fill(&mut site, 0.0);
    fill(&mut site, 0.0);
    let turned: Vec<u64> = (60..600).filter(|minute| site.look(*minute).is_some()).take(2).collect();
    assert_eq!(turned, [50 + 360, 50 + 370], "six hours after the last rise, and then every ten minutes");
}
