//! From TOML to a checked manifest, collecting every mistake instead of stopping at the first.

use std::ops::Range;
use std::path::{Component, Path};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Input, InputLayout, Manifest, Output, Problem, Score, Standardise, State, Task, Thresholds};

pub(super) fn manifest(text: &str, folder: &Path) -> Result<Manifest, Vec<Problem>> {
    let mut reader = Reader { text, problems: Vec::new() };
    let root = match DeTable::parse(text) {
        Ok(root) => root.into_inner(),
        Err(error) => {
            let line = error.span().map_or(1, |span| reader.line(&span));
            let hint = "write key = value lines under [sections], as in models/watch-small.toml".to_owned();
            return Err(vec![Problem { what: error.message().to_owned(), place: format!("line {line}"), hint }]);
        }
    };
    let root = Section { name: "", table: Some(&root) };
    reader.known(
        &root,
        &["name", "version", "task", "answers", "file", "sha256", "input", "standardise", "output", "thresholds", "state"],
    );
    let name = reader.text(&root, "name", "a short name such as \"pump-vibration\"");
    let name = name.filter(|name| reader.name(&root, "name", name));
    let version = reader.text(&root, "version", "any text up to 64 bytes, such as \"1\"");
    let version = version
        .filter(|v| v.len() <= NAME_BYTES_MAX || reader.refuse(&root, "version", "is longer than 64 bytes", "shorten it"));
    let task = reader.task(&root);
    let answers = root.find("answers").and_then(|_| reader.text(&root, "answers", "what it answers, such as \"activity\""));
    let answers = answers.filter(|answers| reader.name(&root, "answers", answers));
    let file = reader.text(&root, "file", "the ONNX file's name, in the manifest's folder");
    let file = file.filter(|file| reader.file(&root, file));
    let sha256 = reader.checksum(&root);
    let input = reader.input(&root);
    let channels = input.as_ref().map_or(0, |input| input.channels.len());
    let standardise = reader.standardise(&root, channels);
    let output = reader.output(&root, task);
    let thresholds = reader.thresholds(&root, task);
    let state = reader.state(&root, input.as_ref());
    let made = (|| {
        Some(Manifest {
            name: name?,
            version: version?,
            task: task?,
            answers,
            file: folder.join(file?),
            sha256: sha256?,
            input: input?,
            standardise: standardise?,
            output: output?,
            thresholds: thresholds?,
            state: state?,
        })
    })();
    match made {
        Some(manifest) if reader.problems.is_empty() => Ok(manifest),
        _ => Err(reader.problems),
    }
}

/// A table of the file, or its absence.
struct Section<'t, 'i> {
    name: &'static str,
    table: Option<&'t DeTable<'i>>,
}

impl<'t, 'i> Section<'t, 'i> {
    fn find(&self, key: &str) -> Option<(Range<usize>, &'t DeValue<'i>)> {
        let (name, value) = self.table?.iter().find(|(name, _)| name.get_ref() == key)?;
        Some((name.span(), value.get_ref()))
    }

    fn key(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("[{}] {key}", self.name) }
    }
}

struct Reader<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn task(&mut self, root: &Section) -> Option<Task> {
        let hint = "\"classification\", \"anomaly\" or \"regression\"";
        match self.text(root, "task", hint)?.as_str() {
            "classification" => Some(Task::Classification),
            "anomaly" => Some(Task::Anomaly),
            "regression" => Some(Task::Regression),
            other => {
                self.refuse(root, "task", &format!("is \"{other}\""), &format!("write {hint}"));
                None
            }
        }
    }

    fn name(&mut self, root: &Section, key: &str, name: &str) -> bool {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        let good = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed);
        good || self.refuse(root, key, &format!("is {name:?}"), "use 1 to 64 lower-case letters, digits, '-', '_' and '.'")
    }

    /// Only names below the manifest's folder: a manifest that came over the network must not point elsewhere.
    fn file(&mut self, root: &Section, file: &str) -> bool {
        let mut parts = Path::new(file).components().peekable();
        let inside = parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)));
        inside
            || self.refuse(
                root,
                "file",
                &format!("is {file:?}"),
                "name a file in the manifest's folder, without / at the start or ..",
            )
    }

    fn checksum(&mut self, root: &Section) -> Option<[u8; 32]> {
        let text = self.text(root, "sha256", "64 hexadecimal digits, as sha256sum prints them")?;
        let mut sum = [0; 32];
        let whole = text.len() == 64 && text.is_ascii();
        let digits = |i: usize| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok();
        if whole && sum.iter_mut().enumerate().all(|(i, byte)| digits(i).map(|d| *byte = d).is_some()) {
            return Some(sum);
        }
        self.refuse(
            root,
            "sha256",
            &format!("is {} characters, not 64 hexadecimal digits", text.len()),
            "run sha256sum on the ONNX file",
        );
        None
    }

    fn input(&mut self, root: &Section) -> Option<Input> {
        let section = self.section(root, "input", true)?;
        self.known(&section, &["name", "channels", "window", "rate_hz", "dtype", "layout", "int16"]);
        let name = self.text(&section, "name", "the input's name in the ONNX graph");
        let channels = self.texts(&section, "channels", true, "a list such as [\"ax\", \"ay\", \"az\"]");
        let window = self.number(&section, "window", true, "the samples in a window, such as 128").flatten();
        let rate_hz = self.number(&section, "rate_hz", true, "samples a second, such as 50.0").flatten();
        let dtype = self.text(&section, "dtype", "\"f32\"");
        if dtype.is_some_and(|dtype| dtype != "f32") {
            self.refuse(
                &section,
                "dtype",
                "is not \"f32\"",
                "export the model with 32-bit float input; nothing else is supported",
            );
        }
        let layout = match self.choice(&section, "layout", &["channels-first", "time-first"])? {
            Some("time-first") => InputLayout::TimeFirst,
            _ => InputLayout::ChannelsFirst,
        };
        let int16 = match section.find("int16") {
            None => false,
            Some((_, DeValue::Boolean(int16))) => *int16,
            Some(_) => self.refuse(&section, "int16", "is neither true nor false", "write true if windows may be sent so"),
        };
        let (channels, window, rate_hz) = (channels?, window?, rate_hz?);
        if channels.is_empty() || channels.len() > CHANNELS_MAX {
            self.refuse(
                &section,
                "channels",
                &format!("has {} names", channels.len()),
                &format!("name 1 to {CHANNELS_MAX} channels"),
            );
        }
        if let Some(twice) = repeated(&channels) {
            self.refuse(&section, "channels", &format!("names {twice:?} twice"), "name each channel once");
        }
        if window.fract() != 0.0 || !(1.0..=WINDOW_MAX).contains(&window) {
            self.refuse(&section, "window", &format!("is {window}"), &format!("write a whole number from 1 to {WINDOW_MAX}"));
        } else if channels.len() as f64 * window > ROW_VALUES_MAX {
            self.refuse(
                &section,
                "window",
                &format!("makes {} values a window", channels.len() as f64 * window),
                &format!("channels x window is at most {ROW_VALUES_MAX}"),
            );
        }
        if !(rate_hz > 0.0 && rate_hz <= RATE_HZ_MAX) {
            self.refuse(
                &section,
                "rate_hz",
                &format!("is {rate_hz}"),
                &format!("write a rate above 0 and up to {RATE_HZ_MAX}"),
            );
        }
        Some(Input { name: name?, channels, window: window as usize, rate_hz, layout, int16 })
    }

    /// Without the section values pass as they are.
    fn standardise(&mut self, root: &Section, channels: usize) -> Option<Standardise> {
        let Some(section) = self.section(root, "standardise", false) else {
            return Some(Standardise { mean: vec![0.0; channels], std: vec![1.0; channels] });
        };
        self.known(&section, &["mean", "std"]);
        let mean = self.numbers(&section, "mean", channels);
        let std = self.numbers(&section, "std", channels);
        if let Some(bad) = std.iter().flatten().find(|std| **std <= f32::MIN_POSITIVE) {
            self.refuse(&section, "std", &format!("contains {bad}"), "use deviations above 0; 1.0 for a constant channel");
        }
        Some(Standardise { mean: mean?, std: std? })
    }

    fn output(&mut self, root: &Section, task: Option<Task>) -> Option<Output> {
        let section = self.section(root, "output", true)?;
        self.known(&section, &["name", "labels", "score"]);
        let name = self.text(&section, "name", "the output's name in the ONNX graph");
        let labels = self.texts(&section, "labels", task == Some(Task::Classification), "a list of the classes")?;
        let fits = match task {
            Some(Task::Classification) => (2..=LABELS_MAX).contains(&labels.len()),
            Some(Task::Anomaly) => labels.is_empty() || labels.len() == 2,
            Some(Task::Regression) | None => labels.len() <= LABELS_MAX,
        };
        if !fits {
            let hint = format!("classification has 2 to {LABELS_MAX} labels, anomaly none or 2 (normal, anomalous)");
            self.refuse(&section, "labels", &format!("has {} names", labels.len()), &hint);
        }
        if let Some(twice) = repeated(&labels) {
            self.refuse(&section, "labels", &format!("names {twice:?} twice"), "name each label once");
        }
        let score = match self.choice(&section, "score", &["output", "reconstruction-error"])? {
            Some("reconstruction-error") => Score::ReconstructionError,
            _ => Score::Output,
        };
        if score == Score::ReconstructionError && task.is_some_and(|task| task != Task::Anomaly) {
            self.refuse(&section, "score", "is for anomaly models only", "write task = \"anomaly\", or remove it");
        }
        Some(Output { name: name?, labels, score })
    }

    /// The outer `None` is a mistake, the inner one the absence of the section.
    #[allow(clippy::option_option)]
    fn state(&mut self, root: &Section, input: Option<&Input>) -> Option<Option<State>> {
        let Some(section) = self.section(root, "state", false) else {
            return root.find("state").is_none().then_some(None);
        };
        self.known(&section, &["inputs", "outputs", "gap_max_s"]);
        let inputs = self.texts(&section, "inputs", true, "the inputs that take the state, such as [\"h_in\"]")?;
        let outputs = self.texts(&section, "outputs", true, "the outputs that give the next state, in the same order")?;
        let gap_max_s = self.number(&section, "gap_max_s", false, "")?;
        if inputs.is_empty() || inputs.len() > STATES_MAX || inputs.len() != outputs.len() {
            let what = format!("has {} names for {} inputs", outputs.len(), inputs.len());
            self.refuse(&section, "outputs", &what, &format!("name 1 to {STATES_MAX} inputs, and an output for each"));
        }
        for (key, names) in [("inputs", &inputs), ("outputs", &outputs)] {
            if let Some(twice) = repeated(names) {
                self.refuse(&section, key, &format!("names {twice:?} twice"), "name each once");
            }
        }
        if gap_max_s.is_some_and(|gap| !(gap > 0.0 && gap <= GAP_S_MAX)) {
            self.refuse(&section, "gap_max_s", "is out of range", &format!("write seconds above 0 and up to {GAP_S_MAX}"));
        }
        // As long as the windower's: ten samples, and at least a second.
        let gap_s = gap_max_s.unwrap_or_else(|| input.map_or(1.0, |input| (10.0 / input.rate_hz).max(1.0)));
        Some(Some(State { inputs, outputs, gap_max_us: (gap_s * 1e6) as i64 }))
    }

    fn thresholds(&mut self, root: &Section, task: Option<Task>) -> Option<Thresholds> {
        let anomaly = task == Some(Task::Anomaly);
        let Some(section) = self.section(root, "thresholds", anomaly) else {
            return (!anomaly).then(Thresholds::default);
        };
        self.known(&section, &["confidence_low", "confidence_high", "anomaly_score"]);
        let low = self.number(&section, "confidence_low", false, "")?;
        let high = self.number(&section, "confidence_high", false, "")?;
        let score =
            self.number(&section, "anomaly_score", anomaly, "the score from which a window is an anomaly, such as 0.6")?;
        if score.is_some() && task.is_some() && !anomaly {
            self.refuse(&section, "anomaly_score", "is for anomaly models only", "remove it");
        }
        let confidence = match (low, high) {
            (None, None) => None,
            (low, Some(high)) => Some((low.unwrap_or(0.0) as f32, high as f32)),
            (Some(_), None) => {
                self.refuse(
                    &section,
                    "confidence_low",
                    "stands without confidence_high",
                    "write both, or confidence_high alone",
                );
                None
            }
        };
        if let Some((low, high)) = confidence
            && !(0.0 <= low && low < high && high <= 1.0)
        {
            self.refuse(&section, "confidence_high", &format!("makes the band {low} to {high}"), "0 <= low < high <= 1");
        }
        Some(Thresholds { confidence, anomaly_score: score.map(|score| score as f32) })
    }

    fn section<'t, 'i>(&mut self, root: &Section<'t, 'i>, name: &'static str, required: bool) -> Option<Section<'t, 'i>> {
        match root.find(name) {
            Some((_, DeValue::Table(table))) => Some(Section { name, table: Some(table) }),
            Some(_) => {
                self.refuse(root, name, "is not a section", &format!("write [{name}] on a line of its own"));
                None
            }
            None if required => {
                self.problem("is missing", format!("[{name}]"), format!("add the section [{name}]"));
                None
            }
            None => None,
        }
    }

    fn text(&mut self, section: &Section, key: &str, wanted: &str) -> Option<String> {
        match section.find(key) {
            Some((_, DeValue::String(text))) if !text.is_empty() => Some(text.to_string()),
            Some(_) => {
                self.refuse(section, key, "is not a text", &format!("write {wanted}"));
                None
            }
            None => {
                self.problem("is missing", section.key(key), format!("write {wanted}"));
                None
            }
        }
    }

    /// One of a few words. The outer `None` is a mistake, the inner one an absent key.
    #[allow(clippy::option_option)]
    fn choice(&mut self, section: &Section, key: &str, words: &[&'static str]) -> Option<Option<&'static str>> {
        let Some((_, value)) = section.find(key) else { return Some(None) };
        let found = value.as_str().and_then(|text| words.iter().find(|word| **word == text));
        if found.is_none() {
            self.refuse(section, key, "is none of the words known here", &format!("write one of: {}", words.join(", ")));
        }
        found.map(|word| Some(*word))
    }

    /// The outer `None` is a mistake, the inner one an absent key.
    #[allow(clippy::option_option)]
    fn number(&mut self, section: &Section, key: &str, required: bool, wanted: &str) -> Option<Option<f64>> {
        let Some((_, value)) = section.find(key) else {
            if required {
                self.problem("is missing", section.key(key), format!("write {wanted}"));
                return None;
            }
            return Some(None);
        };
        let found = float(value);
        if found.is_none() {
            self.refuse(section, key, "is not a finite number", "write a number without a unit");
        }
        found.map(Some)
    }

    fn numbers(&mut self, section: &Section, key: &str, count: usize) -> Option<Vec<f32>> {
        let wanted = format!("write a list of {count} numbers, one a channel");
        let Some((_, value)) = section.find(key) else {
            self.problem("is missing", section.key(key), wanted);
            return None;
        };
        let found: Option<Vec<f32>> = match value {
            DeValue::Array(items) => items.iter().map(|item| float(item.get_ref()).map(|v| v as f32)).collect(),
            _ => None,
        };
        match found {
            Some(list) if list.iter().any(|v| !v.is_finite()) => {
                self.refuse(section, key, "has a number too large for f32", &wanted);
                None
            }
            // Without channels their number is not known: that mistake is reported already.
            Some(list) if list.len() == count || count == 0 => Some(list),
            Some(list) => {
                self.refuse(section, key, &format!("has {} numbers for {count} channels", list.len()), &wanted);
                None
            }
            None => {
                self.refuse(section, key, "is not a list of numbers", &wanted);
                None
            }
        }
    }

    fn texts(&mut self, section: &Section, key: &str, required: bool, wanted: &str) -> Option<Vec<String>> {
        let Some((_, value)) = section.find(key) else {
            if required {
                self.problem("is missing", section.key(key), format!("write {wanted}"));
                return None;
            }
            return Some(Vec::new());
        };
        let text = |item: &Spanned<DeValue>| item.get_ref().as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        let found = match value {
            DeValue::Array(items) => items.iter().map(text).collect(),
            _ => None,
        };
        if found.is_none() {
            self.refuse(section, key, "is not a list of texts", &format!("write {wanted}"));
        }
        found
    }

    fn known(&mut self, section: &Section, keys: &[&str]) {
        for (name, _) in section.table.into_iter().flatten() {
            if !keys.contains(&name.get_ref().as_ref()) {
                let place = format!("{}, line {}", section.key(name.get_ref()), self.line(&name.span()));
                self.problem("is not a key", place, format!("remove it; known here: {}", keys.join(", ")));
            }
        }
    }

    /// Records a mistake in a key that is there. Returns false, so that it can end a condition.
    fn refuse(&mut self, section: &Section, key: &str, what: &str, hint: &str) -> bool {
        let line = section.find(key).map_or(0, |(span, _)| self.line(&span));
        self.problem(what, format!("{}, line {line}", section.key(key)), hint.to_owned());
        false
    }

    fn problem(&mut self, what: &str, place: String, hint: String) {
        self.problems.push(Problem { what: what.to_owned(), place, hint });
    }

    fn line(&self, span: &Range<usize>) -> usize {
        1 + self.text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count()
    }
}

fn float(value: &DeValue) -> Option<f64> {
    let number = match value {
        DeValue::Float(float) => float.as_str().replace('_', "").parse::<f64>().ok()?,
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix()).ok()? as f64,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

fn repeated(names: &[String]) -> Option<&String> {
    names.iter().enumerate().find_map(|(i, name)| names[..i].contains(name).then_some(name))
}

/// Names and versions are labels of metrics and part of file names.
const NAME_BYTES_MAX: usize = 64;
const CHANNELS_MAX: usize = 256;
const WINDOW_MAX: f64 = 65_536.0;
/// 1 MiB a window, so a batch of 32 is 32 MiB.
const ROW_VALUES_MAX: f64 = 262_144.0;
const RATE_HZ_MAX: f64 = 1_000_000.0;
const LABELS_MAX: usize = 4096;
/// Layers that export their state each by itself have two tensors each.
const STATES_MAX: usize = 16;
/// A day: state that is older says nothing.
const GAP_S_MAX: f64 = 86_400.0;
