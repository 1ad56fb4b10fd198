//! A link's service over a whole run, known in advance: when has the n-th byte gone?
//!
//! A policy sees only what has already happened; the simulator sees the link's whole life. It is the same
//! [`LinkModel`] that the emulator uses, so a trace, a profile and its outages mean the same here and there:
//! rates are piecewise constant, and the sum of bytes is piecewise linear and can be inverted exactly.
//!
//! A recording shorter than ten minutes is repeated to ten minutes; a longer one runs once. Loss and jitter
//! are not in the curve: they concern who sends packets, and the profile is handed on for that. Times of loss that a
//! simulation adds stand beside the curve, which is then what is left after them.

use std::{fs, path::Path};

use weir_host::{
    config::{ConfigError, ConfigErrors},
    units::{Bytes, Duration},
};

use crate::link::{
    model::{Direction, LinkModel},
    profile::LinkProfile,
};

/// Shortest run unless another is asked for. Source: the reference results; ends of runs weigh too much below.
const RUN_S_MIN: u64 = 600;
/// Longest run. Source: an hour; records are held in memory.
pub const RUN_S_MAX: u64 = 3_600;
/// Longest run of messages that somebody recorded: a week.
pub const DATA_S_MAX: u64 = 7 * 86_400;
/// Files looked at in one folder.
const FILES_MAX: usize = 1_000;

/// An uplink over one run.
#[derive(Debug, Clone)]
pub struct Link {
    /// Name of the profile, recording or file.
    pub name: String,
    /// What a real transport needs on top of the curve: loss, jitter, queue, the way back.
    pub profile: LinkProfile,
    /// What outages and wandering rates were drawn from; `LinkModel::new` with it gives the same link.
    pub seed: u64,
    /// Length of the run.
    pub run_s: u64,
    /// Time on the way of what has left, in microseconds.
    pub delay_us: u64,
    /// When what leaves.
    pub service: ServiceCurve,
    /// Times in which packets are lost.
    pub lossy: Vec<Lossy>,
}

/// A time in which packets are lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lossy {
    /// From when on, in microseconds of the run.
    pub from_us: u64,
    /// Until when.
    pub until_us: u64,
    /// Part of the packets.
    pub loss: f64,
}

impl Link {
    /// The uplink of `profile` for `run`, or for as long as its recording lasts, from ten minutes to an hour.
    pub fn of(profile: LinkProfile, run: Option<Duration>, seed: u64) -> Self {
        let recorded_s =
            profile.up.recorded.as_ref().and_then(|curve| curve.period_us()).map_or(0, |us| us.div_ceil(1_000_000));
        let wanted_s = run.map_or(recorded_s.max(RUN_S_MIN), |run| run.as_micros().div_ceil(1_000_000));
        Self::of_seconds(profile, wanted_s.clamp(1, RUN_S_MAX), seed)
    }

    /// The uplink of `profile` for just as long, up to [`DATA_S_MAX`]; a recording is repeated.
    pub fn for_length(profile: LinkProfile, run: Duration, seed: u64) -> Self {
        Self::of_seconds(profile, run.as_micros().div_ceil(1_000_000).clamp(1, DATA_S_MAX), seed)
    }

    fn of_seconds(profile: LinkProfile, run_s: u64, seed: u64) -> Self {
        let steps = LinkModel::new(&profile, Direction::Up, seed).rate_steps(run_s * 1_000_000);
        Self::of_steps(profile, &steps, Vec::new(), run_s, seed)
    }

    /// A link whose rates are these, in bits per second and each from its time on; the first begins at 0.
    pub fn of_steps(profile: LinkProfile, steps: &[(u64, f64)], lossy: Vec<Lossy>, run_s: u64, seed: u64) -> Self {
        Self {
            name: profile.name.clone(),
            seed,
            run_s,
            delay_us: profile.up.delay.as_micros(),
            service: ServiceCurve::from_rate_steps(steps, run_s * 1_000_000),
            lossy,
            profile,
        }
    }

    /// Part of the packets that are lost at a time; `None` if none are.
    pub fn loss_at(&self, at_us: u64) -> Option<f64> {
        let now = |lossy: &&Lossy| (lossy.from_us..lossy.until_us).contains(&at_us);
        self.lossy.iter().find(now).map(|lossy| lossy.loss)
    }

    /// True if it carries anything at a time.
    pub fn carries(&self, at_us: u64) -> bool {
        self.service.rate_at(at_us) > 0.0
    }

    /// End of the run, in microseconds: what has not arrived by then does not count.
    pub fn end_us(&self) -> u64 {
        self.run_s * 1_000_000
    }

    /// Time there and back, without queues.
    pub fn rtt_us(&self) -> u64 {
        (self.delay_us + self.profile.down.delay.as_micros()).max(1)
    }

    /// The same link with this part of its rate and of its queue, and the same delays.
    #[must_use]
    pub fn times(mut self, part: f64) -> Link {
        let queue = &mut self.profile.up.queue;
        *queue = Bytes::new((queue.get() as f64 * part).round() as u64);
        self.service = self.service.times(part);
        self
    }

    /// Mean rate over the run.
    pub fn mean_bytes_per_s(&self) -> f64 {
        self.service.bytes() / self.run_s as f64
    }
}

/// Bytes that a link can have carried, over time.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceCurve {
    /// Sorted by time; the first at 0, the last at the end of the run.
    knots: Vec<Knot>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Knot {
    at_us: u64,
    /// Carried until then.
    bytes: f64,
    /// Carried from then on.
    bytes_per_us: f64,
}

impl ServiceCurve {
    /// From rates in bits per second, each from its time on; the first begins at 0.
    pub fn from_rate_steps(steps: &[(u64, f64)], end_us: u64) -> Self {
        let mut knots: Vec<Knot> = Vec::with_capacity(steps.len() + 1);
        let mut push = |at_us: u64, bits_per_s: f64| {
            let bytes = knots.last().map_or(0.0, |last| last.bytes + (at_us - last.at_us) as f64 * last.bytes_per_us);
            knots.push(Knot { at_us, bytes, bytes_per_us: bits_per_s / 8e6 });
        };
        for (at_us, bits_per_s) in steps.iter().filter(|(at_us, _)| *at_us < end_us) {
            push(*at_us, *bits_per_s);
        }
        push(end_us, 0.0);
        Self { knots }
    }

    fn times(mut self, part: f64) -> Self {
        for knot in &mut self.knots {
            (knot.bytes, knot.bytes_per_us) = (knot.bytes * part, knot.bytes_per_us * part);
        }
        self
    }

    /// Bytes that can have left by a time.
    pub fn bytes_until(&self, at_us: u64) -> f64 {
        let after = self.knots.partition_point(|knot| knot.at_us <= at_us);
        let knot = self.knots[after - 1];
        knot.bytes + (at_us - knot.at_us) as f64 * knot.bytes_per_us
    }

    /// Bytes per second at a time.
    pub fn rate_at(&self, at_us: u64) -> f64 {
        let after = self.knots.partition_point(|knot| knot.at_us <= at_us);
        self.knots[after - 1].bytes_per_us * 1e6
    }

    /// When that many bytes have left, if they do before the end.
    pub fn time_of_us(&self, bytes: f64) -> Option<u64> {
        let after = self.knots.partition_point(|knot| knot.bytes < bytes);
        if after == 0 {
            return Some(0);
        }
        let end_us = self.knots.get(after)?.at_us;
        let knot = self.knots[after - 1];
        let us = ((bytes - knot.bytes) / knot.bytes_per_us).ceil() as u64;
        Some((knot.at_us + us).min(end_us))
    }

    /// Bytes of the whole run.
    pub fn bytes(&self) -> f64 {
        self.knots.last().map_or(0.0, |knot| knot.bytes)
    }

    /// Bytes of each second.
    pub fn slots(&self) -> Vec<f64> {
        let end_s = self.knots.last().map_or(0, |knot| knot.at_us / 1_000_000);
        let marks: Vec<f64> = (0..=end_s).map(|s| self.bytes_until(s * 1_000_000)).collect();
        marks.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

/// Every recording in a folder and the folders in it, by name, and the files that hold none.
///
/// A recording in Mahimahi format takes precedence over a CSV recording of the same name: it has each packet.
///
/// # Errors
/// If the folder cannot be read or has no recording.
pub fn find(dir: &Path) -> Result<(Vec<LinkProfile>, Vec<String>), ConfigErrors> {
    let mut files = Vec::new();
    list(dir, &mut files).map_err(|err| refusal(dir, &format!("cannot be read: {err}"), "check the path"))?;
    files.sort();
    // Files with several recordings last.
    files.sort_by_key(|file| file.ends_with(".csv"));
    let (mut profiles, mut skipped): (Vec<LinkProfile>, Vec<String>) = (Vec::new(), Vec::new());
    for file in files.iter().take(FILES_MAX) {
        let base = Path::new(file).file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let names = fs::read_to_string(file).map(|text| names_in(&text)).unwrap_or_default();
        let wanted: Vec<(String, String)> = match names.is_empty() {
            true => vec![(file.clone(), base)],
            false => names.into_iter().map(|name| (format!("{file}#{name}"), name)).collect(),
        };
        for (path, name) in wanted {
            if profiles.iter().any(|profile| profile.name == name) {
                continue;
            }
            match LinkProfile::resolve(&path) {
                Ok(profile) => profiles.push(LinkProfile { name, ..profile }),
                Err(_) => skipped.push(path),
            }
        }
    }
    skipped.extend(files.into_iter().skip(FILES_MAX));
    if profiles.is_empty() {
        return Err(refusal(dir, "holds no link", "traces are in Mahimahi format or CSV `t_s,mbps`, profiles are *.toml"));
    }
    profiles.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((profiles, skipped))
}

fn list(dir: &Path, files: &mut Vec<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            list(&path, files)?;
        } else if files.len() <= FILES_MAX {
            files.push(path.display().to_string());
        }
    }
    Ok(())
}

/// The recordings of a CSV file that has several; none for any other text.
fn names_in(text: &str) -> Vec<String> {
    let mut lines = text.lines();
    if lines.next().map(str::trim) != Some("trace,t_s,mbps") {
        return Vec::new();
    }
    let mut names: Vec<String> = Vec::new();
    for name in lines.filter_map(|line| line.split(',').next()).map(str::trim).filter(|name| !name.is_empty()) {
        if names.last().is_none_or(|last| last != name) && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

fn refusal(path: &Path, message: &str, hint: &str) -> ConfigErrors {
    let file = path.display().to_string();
    let message = format!("{file} {message}");
    ConfigErrors::from_errors(vec![ConfigError::of_file(&file, message, hint)]).expect("one error is not none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_byte_has_gone_exactly_when_the_curve_reaches_it() {
        // 8 Mbit/s for a second, nothing for a second, 16 Mbit/s for two.
        let curve = ServiceCurve::from_rate_steps(&[(0, 8e6), (1_000_000, 0.0), (2_000_000, 16e6)], 4_000_000);
        assert_eq!(curve.slots(), [1e6, 0.0, 2e6, 2e6]);
        assert_eq!(curve.bytes(), 5e6);
        for (bytes, at_us) in [(0.0, 0), (1.0, 1), (1e6, 1_000_000), (1e6 + 2.0, 2_000_001), (3e6, 3_000_000), (5e6, 4_000_000)]
        {
            assert_eq!(curve.time_of_us(bytes), Some(at_us), "{bytes}");
            assert!(curve.bytes_until(at_us) >= bytes, "{bytes}");
        }
        assert_eq!(curve.time_of_us(5e6 + 1.0), None);
    }

    #[test]
    fn a_short_recording_is_repeated_and_a_long_one_runs_once() {
        let short = recorded("t_s,mbps\n0,8\n1,0\n");
        let link = Link::of(short.clone(), None, 1);
        assert_eq!((link.run_s, link.delay_us), (600, 40_000));
        assert_eq!(link.service.slots(), [1e6, 0.0].repeat(300));
        assert_eq!(link.mean_bytes_per_s(), 5e5);
        assert_eq!(Link::of(short, Some(Duration::from_secs(7)), 1).service.slots().len(), 7);
        let rows: String = (0..700).map(|s| format!("{s},{}\n", s % 3)).collect();
        assert_eq!(Link::of(recorded(&format!("t_s,mbps\n{rows}")), None, 1).run_s, 700);
    }

    #[test]
    fn the_curve_of_a_profile_is_what_the_emulated_link_carries() {
        for profile in LinkProfile::builtin() {
            let name = profile.name.clone();
            let link = Link::of(profile.clone(), None, 9);
            let model = LinkModel::new(&profile, Direction::Up, 9);
            let peak = link.service.slots().into_iter().fold(0.0, f64::max);
            for (s, bytes) in link.service.slots().into_iter().enumerate() {
                let rate = |tenth: u64| model.bits_per_s(s as u64 * 1_000_000 + tenth * 100_000 + 50_000) as f64;
                let sampled = (0..10).map(rate).sum::<f64>() / 80.0;
                let most = (0..10).map(rate).fold(0.0, f64::max) / 8.0;
                // A part of a second that is up for less than a tenth may lie between two samples.
                assert!(
                    (bytes - sampled).abs() <= 0.31 * most.max(0.1 * peak),
                    "{name}, second {s}: {bytes} against {sampled}"
                );
            }
        }
    }

    #[test]
    fn a_folder_gives_each_recording_once_and_says_what_it_left() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("a.up", "1\n2\n1000\n");
        write("many.csv", "trace,t_s,mbps\na.up,0,1\na.up,1,1\nb,0,2\nb,1,2\n");
        write("COPYING", "words\n");
        fs::create_dir(dir.path().join("in")).unwrap();
        write("in/one.csv", "t_s,mbps\n0,1\n1,2\n");
        let (profiles, skipped) = find(dir.path()).unwrap();
        let names: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
        assert_eq!(names, ["a.up", "b", "one.csv"]);
        assert!(skipped.len() == 1 && skipped[0].ends_with("COPYING"), "{skipped:?}");
        assert_eq!(Link::of(profiles[0].clone(), None, 1).service.bytes(), 3.0 * 1_500.0 * 600.0);
    }

    fn recorded(text: &str) -> LinkProfile {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.csv");
        fs::write(&file, text).unwrap();
        LinkProfile::resolve(&file.display().to_string()).unwrap()
    }
}
