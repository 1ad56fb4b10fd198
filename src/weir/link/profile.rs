//! What a link is like: read from TOML by name or path, or made of a recorded trace.
//!
//! The profiles in `config/links/` are built in and known by name. `[down]` left out is as `[up]`.
//! Every key has a default, so a profile says only what is special about its link.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};
use weir_host::{
    config::{Checker, ConfigError, ConfigErrors, load_checked},
    units::{BitRate, Bytes, Duration, Ratio},
};

use super::{
    curve::{RateCurve, TRACE_LEN_MAX},
    model::Direction,
};

/// The built-in profiles: name and text.
const BUILTIN: [(&str, &str); 8] = [
    ("default", include_str!("../../../config/links/default.toml")),
    ("ethernet", include_str!("../../../config/links/ethernet.toml")),
    ("lte", include_str!("../../../config/links/lte.toml")),
    ("lte-driving", include_str!("../../../config/links/lte-driving.toml")),
    ("3g", include_str!("../../../config/links/3g.toml")),
    ("satellite", include_str!("../../../config/links/satellite.toml")),
    ("flaky", include_str!("../../../config/links/flaky.toml")),
    ("dead-start", include_str!("../../../config/links/dead-start.toml")),
];
/// Fastest link; a relay on one core carries less.
pub(super) const RATE_MAX: BitRate = BitRate::from_bits_per_s(10_000_000_000);
/// Slowest link: a packet takes a minute and a half.
pub(super) const RATE_MIN: BitRate = BitRate::from_bits_per_s(128);
/// Longest delay and jitter.
pub(super) const DELAY_MAX: Duration = Duration::from_secs(60);
/// Largest share of losses.
pub(super) const LOSS_MAX: Ratio = Ratio::from_percent(90);
/// Smallest packet limit: what QUIC needs, with headers.
const MTU_MIN: Bytes = Bytes::new(1_228);
/// Largest packet limit: what UDP can say.
const MTU_MAX: Bytes = Bytes::new(65_535);
const OUTAGES_MAX: usize = 100;

/// A link, ready to be emulated.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkProfile {
    /// The built-in name, or the file's.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// From the box to the cloud.
    pub up: LinkSide,
    /// From the cloud to the box.
    pub down: LinkSide,
    /// When the link carries nothing.
    pub outages: Vec<Outage>,
}

/// A profile as it is written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProfileFile {
    description: String,
    up: LinkSide,
    down: Option<LinkSide>,
    outage: Vec<Outage>,
}

/// One direction of a link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkSide {
    /// Mean rate, headers included.
    pub rate: BitRate,
    /// How far the rate wanders from its mean, either way.
    pub rate_swing: Ratio,
    /// How often a wandering rate changes.
    pub rate_step: Duration,
    /// A recorded trace in the place of `rate`, relative to the profile.
    pub trace: Option<String>,
    /// Which recording of a trace file that has several.
    pub trace_name: Option<String>,
    /// Time on the way.
    pub delay: Duration,
    /// Most time on the way beyond `delay`; each packet gets a random part of it. Order is kept.
    pub jitter: Duration,
    /// Share of packets lost on the way.
    pub loss: Ratio,
    /// Mean number of packets lost in a row.
    pub loss_burst: u32,
    /// Share of packets that later ones overtake.
    pub reorder: Ratio,
    /// Bytes that may wait, headers included; what comes on top is dropped.
    pub queue: Bytes,
    /// Largest packet, headers included.
    pub mtu: Bytes,
    /// The trace, once read.
    #[serde(skip)]
    pub recorded: Option<RateCurve>,
}

impl Default for LinkSide {
    fn default() -> Self {
        Self {
            rate: BitRate::from_bits_per_s(5_000_000),
            rate_swing: Ratio::from_percent(0),
            rate_step: Duration::from_secs(1),
            trace: None,
            trace_name: None,
            delay: Duration::from_millis(40),
            jitter: Duration::ZERO,
            loss: Ratio::from_percent(0),
            loss_burst: 1,
            reorder: Ratio::from_percent(0),
            queue: Bytes::from_kib(256),
            mtu: Bytes::new(1_500),
            recorded: None,
        }
    }
}

impl LinkSide {
    /// Its rate over time.
    pub(super) fn curve(&self, seed: u64) -> RateCurve {
        match &self.recorded {
            Some(recorded) => recorded.clone(),
            None if self.rate_swing.ppm() == 0 => RateCurve::constant(self.rate),
            None => RateCurve::walk(self.rate, self.rate_swing, self.rate_step, seed),
        }
    }
}

/// A time without link, once or again and again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outage {
    /// When it first begins.
    pub start: Duration,
    /// How long it lasts.
    pub length: Duration,
    /// From one beginning to the next; zero for a single outage.
    pub every: Duration,
    /// Each begins later by a random part of this.
    pub shift: Duration,
    /// Which way it cuts.
    pub direction: OutageDirection,
}

/// Which way an outage cuts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutageDirection {
    /// Nothing passes.
    #[default]
    Both,
    /// Nothing leaves the box.
    Up,
    /// Nothing reaches the box.
    Down,
}

impl OutageDirection {
    /// Whether the outage cuts a direction.
    pub(super) fn covers(self, direction: Direction) -> bool {
        match self {
            Self::Both => true,
            Self::Up => direction == Direction::Up,
            Self::Down => direction == Direction::Down,
        }
    }
}

impl LinkProfile {
    /// All built-in profiles.
    pub fn builtin() -> impl Iterator<Item = Self> {
        BUILTIN
            .iter()
            .map(|(name, text)| Self::from_toml(name, text, Path::new(".")).expect("built-in profiles are read by a test"))
    }

    /// The names of the built-in profiles.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name)
    }

    /// The link that a user names: a built-in profile, a profile's path (`*.toml`), or a trace's path, with
    /// `#NAME` for one recording of several.
    ///
    /// # Errors
    /// Every mistake in the file.
    pub fn resolve(wanted: &str) -> Result<Self, ConfigErrors> {
        if let Some((name, text)) = BUILTIN.iter().find(|(name, _)| *name == wanted) {
            return Self::from_toml(name, text, Path::new("."));
        }
        let path = Path::new(wanted);
        if !wanted.contains(['/', '.']) {
            let names: Vec<&str> = Self::builtin_names().collect();
            let hint = format!("known are {}, or the path of a profile or trace", names.join(", "));
            return Err(one_error(wanted, "there is no link of this name", &hint));
        }
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = read_text(path).map_err(|err| one_error(wanted, &err, "check the path"))?;
            return Self::from_toml(wanted, &text, path.parent().unwrap_or(Path::new(".")));
        }
        let (file, name) = wanted.split_once('#').map_or((wanted, None), |(file, name)| (file, Some(name)));
        let recorded = read_trace(Path::new(file), name)
            .map_err(|err| one_error(file, &err, "a trace is in Mahimahi format or CSV `t_s,mbps`"))?;
        let up = LinkSide { recorded: Some(recorded), ..LinkSide::default() };
        Ok(Self {
            name: wanted.to_owned(),
            description: "a recorded rate, 40 ms each way".to_owned(),
            down: up.clone(),
            up,
            outages: Vec::new(),
        })
    }

    /// Reads a profile; `file` is its name in messages, `dir` is where its traces are.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_toml(file: &str, text: &str, dir: &Path) -> Result<Self, ConfigErrors> {
        let mut curves = [None, None];
        let profile: ProfileFile = load_checked(file, text, |profile: &ProfileFile, check| {
            curves[0] = check_side("up", &profile.up, dir, check);
            if let Some(down) = &profile.down {
                curves[1] = check_side("down", down, dir, check);
            }
            check_outages(&profile.outage, check);
        })?;
        let [up_curve, down_curve] = curves;
        let up = LinkSide { recorded: up_curve, ..profile.up };
        let down = profile.down.map_or_else(|| up.clone(), |down| LinkSide { recorded: down_curve, ..down });
        Ok(Self { name: file.to_owned(), description: profile.description, up, down, outages: profile.outage })
    }
}

/// Checks a direction's numbers and reads its trace.
fn check_side(key: &str, side: &LinkSide, dir: &Path, check: &mut Checker<'_>) -> Option<RateCurve> {
    let mut refuse = |is_wrong: bool, name: &str, message: String| {
        if is_wrong {
            check.mistake(&format!("{key}.{name}"), message, "");
        }
    };
    let rate_is_bad = !(RATE_MIN..=RATE_MAX).contains(&side.rate);
    refuse(rate_is_bad, "rate", format!("{} is not between {RATE_MIN} and {RATE_MAX}", side.rate));
    let swing_is_bad = side.rate_swing > Ratio::from_percent(95);
    refuse(swing_is_bad, "rate_swing", format!("{} is more than 95%", side.rate_swing));
    let step_is_bad = side.rate_step < Duration::from_millis(10);
    refuse(step_is_bad, "rate_step", format!("{} is less than 10ms", side.rate_step));
    for (name, value) in [("delay", side.delay), ("jitter", side.jitter)] {
        refuse(value > DELAY_MAX, name, format!("{value} is more than {DELAY_MAX}"));
    }
    for (name, value) in [("loss", side.loss), ("reorder", side.reorder)] {
        refuse(value > LOSS_MAX, name, format!("{value} is more than {LOSS_MAX}"));
    }
    let burst_is_bad = !(1..=1_000).contains(&side.loss_burst);
    refuse(burst_is_bad, "loss_burst", format!("{} is not between 1 and 1000", side.loss_burst));
    let mtu_is_bad = !(MTU_MIN..=MTU_MAX).contains(&side.mtu);
    refuse(mtu_is_bad, "mtu", format!("{} bytes are not between {} and {}", side.mtu.get(), MTU_MIN.get(), MTU_MAX.get()));
    refuse(side.queue < side.mtu, "queue", format!("{} is less than the largest packet, {}", side.queue, side.mtu));
    let name_is_idle = side.trace_name.is_some() && side.trace.is_none();
    refuse(name_is_idle, "trace_name", "there is no `trace` to choose from".to_owned());
    let trace = side.trace.as_ref()?;
    match read_trace(&dir.join(trace), side.trace_name.as_deref()) {
        Ok(curve) => Some(curve),
        Err(message) => {
            refuse(true, "trace", message);
            None
        }
    }
}

fn check_outages(outages: &[Outage], check: &mut Checker<'_>) {
    if outages.len() > OUTAGES_MAX {
        let message = format!("{} outages are more than {OUTAGES_MAX}", outages.len());
        check.mistake("outage", message, "use `every` for outages that repeat");
    }
    for (index, outage) in outages.iter().enumerate() {
        let key = |name: &str| format!("outage[{index}].{name}");
        if outage.length.is_zero() {
            check.mistake(&key("length"), "an outage has a length", "for example length = \"10s\"");
        }
        let turn_us = outage.length.as_micros().saturating_add(outage.shift.as_micros());
        if !outage.every.is_zero() && outage.every.as_micros() < turn_us {
            let message = format!("{} is less than `length` and `shift` together", outage.every);
            check.mistake(&key("every"), message, "outages that touch are one: make it longer");
        }
    }
}

fn read_trace(path: &Path, name: Option<&str>) -> Result<RateCurve, String> {
    let text = read_text(path)?;
    RateCurve::parse_trace(&text, name).map_err(|err| format!("{}: {err}", path.display()))
}

fn read_text(path: &Path) -> Result<String, String> {
    let len = fs::metadata(path).map_err(|err| format!("{} cannot be read: {err}", path.display()))?.len();
    if len > TRACE_LEN_MAX {
        return Err(format!("{} has {len} bytes, more than {TRACE_LEN_MAX}", path.display()));
    }
    fs::read_to_string(path).map_err(|err| format!("{} cannot be read: {err}", path.display()))
}

fn one_error(file: &str, message: &str, hint: &str) -> ConfigErrors {
    ConfigErrors::from_errors(vec![ConfigError::of_file(file, message, hint)]).expect("one error is not none")
}

#[cfg(test)]
mod tests;
