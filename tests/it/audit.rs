//! Audits by real models on a real shift: an office whose occupancy is told from its air, and another week in the same office, in which
//! the larger model is the worse one although it was better in validation.
//!
//! The recordings are not part of the repository (models/README.md): they are looked for in `WEIR_DATA`, or in `shared/data` beside a
//! folder above.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_infer::{Answer, Backend, Model, RuntimeLibrary};
use weir_logic::audit::{Answerer, Audits, Better, BothSaid, LearnPolicy, LearnedWhy, Purpose, Tally};
use weir_logic::offload::{OffloadMode, OffloadPolicy};
use weir_logic::window::{Span, WindowConfig, WindowSpec};

#[test]
fn an_audit_shows_that_the_larger_model_is_worse_where_it_is() {
    let Some(folder) = recordings() else {
        println!("skipped: no occupancy recordings; set WEIR_DATA to the folder that holds `occupancy`");
        return;
    };
    let validation = play(&folder.join("datatest.csv"));
    let field = play(&folder.join("datatest2.csv"));
    for (name, site) in [("validation", &validation), ("field", &field)] {
        println!("{name}: {} windows, {} sent on; {}", site.windows, site.sent, site.tally());
        println!("  on all windows: {:?}; {}", site.tally().accuracies(), site.audits.learned(0).expect("it is learned"));
    }
    let (local, remote) = validation.tally().accuracies().expect("both groups were judged");
    assert!(remote > local, "in validation the larger one is better: {local} and {remote}");
    let (local, remote) = field.tally().accuracies().expect("both groups were judged");
    assert!(local > remote + 0.02, "in the field the smaller one is: {local} and {remote}");
    assert_eq!((validation.tally().better() == Better::Local, field.tally().better()), (false, Better::Local));
    // What the audit estimates from a share of the windows is what all of them say.
    for site in [&validation, &field] {
        let (local, remote) = site.tally().accuracies().expect("both groups were judged");
        let [of_local, of_remote] = site.right.map(|right| right as f64 / site.windows as f64);
        assert!(
            (local - of_local).abs() < 0.04 && (remote - of_remote).abs() < 0.04,
            "{local} {remote}: {of_local} {of_remote}"
        );
    }
    // And the box stops asking as far as it may.
    let learned = field.audits.learned(0).expect("it is learned");
    assert_eq!((learned.threshold, learned.why), (LEARN.min, LearnedWhy::RemoteWorse), "{learned}");
    // Nobody is told who is right: then there is disagreement, and no claim.
    let blind = play_with(&folder.join("datatest2.csv"), false);
    assert_eq!((blind.tally().better(), blind.tally().accuracies()), (Better::Unknown, None));
    assert!(blind.tally().to_string().contains("who is right is not known"), "{}", blind.tally());
}

const LEARN: LearnPolicy = LearnPolicy { min: 0.55, max: 0.95, share: 0.5, disagree: 0.1 };
const LABELS: [&str; 2] = ["empty", "occupied"];
const MINUTE_US: u64 = 60_000_000;

struct Site {
    audits: Audits,
    windows: u64,
    sent: u64,
    /// Windows that each model has right, asked or not: what nobody in the field could know.
    right: [u64; 2],
}

impl Site {
    fn tally(&self) -> &Tally {
        self.audits.tallies(0).last().expect("some windows were answered twice")
    }
}

fn play(path: &Path) -> Site {
    play_with(path, true)
}

/// A recording through both models, a window a minute, with a third of the sure answers audited.
fn play_with(path: &Path, tells_truth: bool) -> Site {
    let [mut small, mut large] = ["occupancy-small", "occupancy-large"].map(load);
    let config = WindowConfig { length: Span::Samples(1), step: None, gap_max_us: None, reorder_max_us: None };
    let policy = OffloadPolicy {
        task: "occupancy".into(),
        mode: OffloadMode::AnswerNow,
        band: (0.0, 0.75),
        deadline_us: 1,
        spacing_us: 0,
        int16: false,
        audit: 0.33,
        learn: Some(LEARN),
        window: WindowSpec::new(&config, 4, Some(1.0 / 60.0)).expect("a window"),
    };
    let answerer = |model: &Model| {
        let manifest = model.manifest();
        Answerer { model: manifest.name.as_str().into(), version: manifest.version.as_str().into() }
    };
    let (local, remote) = (answerer(&small), answerer(&large));
    let device: Arc<str> = "office".into();
    let mut site = Site { audits: Audits::new(1, [tells_truth]), windows: 0, sent: 0, right: [0, 0] };
    let rows = rows(path);
    let said = [&mut small, &mut large].map(|model| answers(model, &rows));
    for ((_, truth), (by_small, by_large)) in rows.iter().zip(said[0].iter().zip(&said[1])) {
        site.windows += 1;
        site.right[0] += u64::from(&*by_small.0 == *truth);
        site.right[1] += u64::from(&*by_large.0 == *truth);
        let minute = site.windows;
        let band = (0.0, site.audits.learned(0).map_or(policy.band.1, |learned| learned.threshold));
        let purpose = site.audits.scored(0, &policy, band, by_small.1);
        if let Some(purpose) = purpose {
            site.sent += u64::from(purpose == Purpose::Doubt);
            let time_us = (minute * MINUTE_US) as i64;
            site.audits.both_said(&BothSaid {
                stream: 0,
                task: &policy.task,
                device: &device,
                start_us: time_us,
                end_us: time_us,
                purpose,
                local: &local,
                local_label: &by_small.0,
                confidence: by_small.1,
                remote: &remote,
                remote_label: &by_large.0,
            });
            if tells_truth {
                site.audits.truth(0, &device, time_us, truth);
            }
        }
        site.audits.look(minute * MINUTE_US, 0, &policy);
    }
    site
}

/// Label and confidence of every row.
fn answers(model: &mut Model, rows: &[(Vec<f32>, &str)]) -> Vec<(Arc<str>, f32)> {
    let windows: Vec<&[f32]> = rows.iter().map(|(values, _)| values.as_slice()).collect();
    let scored = windows.chunks(256).flat_map(|batch| model.score(batch)).collect::<Vec<_>>();
    let label = |answer: &Answer| Arc::from(model.manifest().label(&answer.verdict).expect("a label"));
    let said = |answer: Result<Answer, _>| answer.map(|answer| (label(&answer), answer.verdict.confidence));
    scored.into_iter().map(|answer| said(answer).expect("it answers")).collect()
}

fn load(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/occupancy").join(format!("{name}.toml"));
    Model::load(&path, Backend::Rten, &RuntimeLibrary::from_env(None)).unwrap_or_else(|err| panic!("{err}"))
}

/// Temperature, humidity, CO2 and humidity ratio of each minute, and whether somebody was there.
fn rows(path: &Path) -> Vec<(Vec<f32>, &'static str)> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let row = |line: &str| {
        // A row has its number before the names of the head.
        let fields: Vec<&str> = line.split(',').collect();
        let number = |at: usize| fields[at].trim().parse::<f32>().unwrap_or_else(|err| panic!("{line}: {err}"));
        // Light is left out, see models/occupancy.py.
        ([2, 3, 5, 6].map(number).to_vec(), LABELS[number(7) as usize])
    };
    text.lines().skip(1).filter(|line| !line.is_empty()).map(row).collect()
}

fn recordings() -> Option<PathBuf> {
    let named = std::env::var_os("WEIR_DATA").map(|folder| PathBuf::from(folder).join("occupancy"));
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("shared/data/occupancy"));
    named.into_iter().chain(above).find(|folder| folder.join("datatest2.csv").is_file())
}
