//! `weir demo`: the whole way from sensors to the cloud in one process, over real sockets and a link that breaks.
//!
//! ```text
//! publish --MQTT--> weir-edge --QUIC--> link::relay --QUIC--> weir-cloud --> SQLite <-- observe
//!    `---------------- what was sent and acknowledged --------> oracle <---- evidence --'
//! ```
//!
//! Box and cloud are the real ones, each on a thread with a runtime of its own, run by configuration files as an operator
//! would write them. At the end `oracle` says what became of every message, by its own book-keeping.

mod command;
mod evidence;
mod log;
mod observe;
mod oracle;
mod publish;
mod random;
mod recordings;
mod report;
mod scene;
mod setup;
mod terminal;
mod traffic;
mod view;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weir_host::config::ConfigErrors;
use weir_host::shutdown::{self, Shutdown, ShutdownTrigger};
use weir_infer::{Backend, LoadError};

use crate::link::profile::{LinkProfile, Outage};
use crate::link::relay::{RelayError, RelayThread};
use crate::pki::PkiError;

pub use command::{DemoArgs, execute};
pub use recordings::RecordingError;
pub use report::{ClassReport, Latency, Report};

use evidence::Evidence;
use observe::Observer;
use publish::{DeviceLog, Tally, Times};
use recordings::Recordings;
use scene::{Director, Phase};
use setup::{Folder, Part};
use terminal::Screen;

/// How to run the demo.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long sensors publish; 1 s to 24 h.
    pub publish_for: Duration,
    /// A built-in link, a profile's or a trace's path; `None` for 5 Mbit/s with an outage of a fifth of the time, after a third.
    pub link: Option<String>,
    /// Folder of recordings; `None` for the built-in ones.
    pub data: Option<PathBuf>,
    /// Same seed, same values, losses and jitter.
    pub seed: u64,
    /// Multiplies all rates; at 1 a recording takes as long as it took.
    pub speed: f64,
    /// What runs the model.
    pub backend: Backend,
    /// When PUBACKs are sent.
    pub mode: Mode,
    /// Keep all files in this new or empty folder.
    pub keep: Option<PathBuf>,
    /// What is shown meanwhile.
    pub show: Show,
    /// Longest time to empty the box once sensors are silent.
    pub drain_limit: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            publish_for: Duration::from_secs(60),
            link: None,
            data: None,
            seed: 1,
            speed: 8.0,
            backend: Backend::Auto,
            mode: Mode::Through,
            keep: None,
            show: Show::Nothing,
            drain_limit: Duration::from_secs(60),
        }
    }
}

/// When a PUBACK is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// When the record is on disk.
    Disk,
    /// When the cloud has the record, or it is on disk because that takes too long.
    Through,
}

impl Mode {
    /// The word used in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Disk => "disk",
            Mode::Through => "through",
        }
    }
}

/// What is shown while the demo runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Nothing.
    Nothing,
    /// A line every few seconds, to standard output.
    Lines,
    /// A picture, redrawn four times a second; lines if standard output is no terminal.
    Picture,
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// An option is out of range.
    #[error("{what}")]
    Option {
        /// Which, and what it may be.
        what: String,
    },
    /// The link.
    #[error("{0}")]
    Link(ConfigErrors),
    /// The recordings.
    #[error(transparent)]
    Recordings(#[from] RecordingError),
    /// A folder or file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Folder {
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The folder to keep files in has files.
    #[error("{} is not empty; name a new folder", path.display())]
    FolderInUse {
        /// Its path.
        path: PathBuf,
    },
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The model, or the engine that was asked for.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// A configuration that the demo wrote itself.
    #[error("the demo's own configuration is refused:\n{0}")]
    Config(#[from] ConfigErrors),
    /// The link's emulator.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The cloud's database cannot be read.
    #[error("the cloud's database cannot be read: {0}")]
    Database(#[from] rusqlite::Error),
    /// A part of the system failed.
    #[error("the {name} failed: {reason}")]
    Part {
        /// Which.
        name: &'static str,
        /// Its words.
        reason: String,
    },
    /// Threads, sockets, runtimes.
    #[error("the system refuses: {0}")]
    System(#[source] io::Error),
}

/// How often is looked and drawn.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks between two lines.
const LINE_LOOKS: u64 = 12;
/// Aggregates close this long after the last sample. Source: their span, how late a sample may be, and a look.
const SPANS_CLOSE: Duration = Duration::from_millis(2_000 + 500 + 500);
/// Looks in a row that must find the box empty: its status is up to 200 ms old.
const EMPTY_LOOKS: u32 = 3;

/// Runs the demo to its end; `interrupt` ends publishing early, and everything after it still happens.
///
/// # Errors
/// If it cannot be started or a part of it fails. A run that loses something is an outcome, not an error.
pub fn run(options: &Options, interrupt: &Shutdown) -> Result<Report, DemoError> {
    check(options)?;
    let recordings = Arc::new(Recordings::load(options.data.as_deref())?);
    let profile = profile(options)?;
    let folder = Folder::create(options.keep.as_deref())?;
    folder.fill()?;
    let log_path = folder.path().join("weir.log");
    log::start(&log_path).map_err(|source| DemoError::Folder { path: log_path, source })?;
    let engine = setup::engine(&folder, options.backend)?;

    let mut running = Running::start(options, &folder, profile, &recordings)?;
    let title = format!("{}, {engine:?}, seed {}, speed {}", options.mode.name(), options.seed, options.speed).to_lowercase();
    let mut stage = Stage::new(options, Director::new(title, running.link_name.clone(), options.publish_for));
    let (published_for, interrupted) = running.publish(options, &mut stage, interrupt)?;
    let (drained_for, drained) = running.drain(options, &mut stage)?;
    drop(stage);

    let outcome = running.stop()?;
    let evidence = Evidence::read(&folder.database(), &folder.buffer())?;
    let judgement = oracle::judge(&outcome.logs, &recordings.motions, &evidence, &outcome.commits);
    let mut report = Report {
        interrupted,
        drained,
        seed: options.seed,
        mode: options.mode.name().to_owned(),
        backend: format!("{engine:?}").to_lowercase(),
        link: outcome.link_name,
        publish_s: published_for.as_secs_f64(),
        drain_s: drained_for.as_secs_f64(),
        disconnects: outcome.disconnects,
        outage_s: outcome.link.down_us as f64 / 1e6,
        wire_bytes: outcome.link.up.counts.offered_bytes,
        wire_bytes_down: outcome.link.down.counts.offered_bytes,
        ..Report::default()
    };
    report.take(judgement);
    Ok(report)
}

fn check(options: &Options) -> Result<(), DemoError> {
    const PUBLISH_FOR_MAX: Duration = Duration::from_secs(86_400);
    if !(Duration::from_secs(1)..=PUBLISH_FOR_MAX).contains(&options.publish_for) {
        return Err(DemoError::Option { what: "--for is a time from 1s to 24h".to_owned() });
    }
    if !(0.1..=1_000.0).contains(&options.speed) {
        return Err(DemoError::Option { what: "--speed is a number from 0.1 to 1000".to_owned() });
    }
    Ok(())
}

/// The link of a run. It is whole from the end of publishing on, so that the box can empty itself.
fn profile(options: &Options) -> Result<LinkProfile, DemoError> {
    let name = options.link.as_deref().unwrap_or("default");
    let mut profile = LinkProfile::resolve(name).map_err(DemoError::Link)?;
    let end_us = options.publish_for.as_micros() as u64;
    let us = weir_host::units::Duration::from_micros;
    if options.link.is_none() {
        profile.outages = vec![Outage { start: us(end_us / 3), length: us(end_us / 5), ..Outage::default() }];
        return Ok(profile);
    }
    let mut random = random::Random::new(options.seed, u64::MAX);
    let mut outages = Vec::new();
    for outage in profile.outages {
        let mut start_us = outage.start.as_micros();
        while start_us < end_us {
            let begin_us = start_us + (outage.shift.as_micros() as f64 * random.unit()) as u64;
            let length_us = outage.length.as_micros().min(end_us.saturating_sub(begin_us));
            if length_us > 0 {
                let direction = outage.direction;
                outages.push(Outage { start: us(begin_us), length: us(length_us), direction, ..Outage::default() });
            }
            if outage.every.is_zero() {
                break;
            }
            start_us += outage.every.as_micros();
        }
    }
    profile.outages = outages;
    Ok(profile)
}

/// Everything that runs.
struct Running {
    start: Instant,
    cloud: Part,
    link: RelayThread,
    link_name: String,
    the_box: Part,
    status_rx: tokio::sync::watch::Receiver<weir_edge::status::Status>,
    observer: Observer,
    tally: Arc<Tally>,
    sensors: JoinHandle<Vec<DeviceLog>>,
    quiet: ShutdownTrigger,
    end: ShutdownTrigger,
}

/// What is left when everything has stopped.
struct Outcome {
    logs: Vec<DeviceLog>,
    commits: observe::Commits,
    link: crate::link::thread::LinkStats,
    link_name: String,
    disconnects: u64,
}

impl Running {
    /// Starts everything, from the cloud to the sensors.
    fn start(
        options: &Options,
        folder: &Folder,
        profile: LinkProfile,
        recordings: &Arc<Recordings>,
    ) -> Result<Running, DemoError> {
        let (cloud, cloud_addr) = setup::start_cloud(folder)?;
        let start = Instant::now();
        let observer = Observer::start(&folder.database(), start)?;
        let link_name = profile.name.clone();
        let link = setup::start_link(profile, options.seed, cloud_addr)?;
        let (the_box, ready) = setup::start_box(folder, link.addr(), options.mode, options.backend)?;
        let ((quiet, quiet_rx), (end, end_rx)) = (shutdown::channel(), shutdown::channel());
        let start_ms = (weir_host::clock::unix_us() / 1_000) as i64 - start.elapsed().as_millis() as i64;
        let times = Times { start, start_ms, quiet: quiet_rx, end: end_rx };
        let tally = Arc::new(Tally::default());
        let clients = traffic::clients(recordings, options.seed, options.speed);
        let sensors = publish::start(clients, ready.mqtt, times, tally.clone()).map_err(DemoError::System)?;
        let status_rx = ready.status_rx;
        Ok(Running { start, cloud, link, link_name, the_box, status_rx, observer, tally, sensors, quiet, end })
    }

    /// Lets sensors publish until it is time, or until somebody has had enough.
    fn publish(&mut self, options: &Options, stage: &mut Stage, interrupt: &Shutdown) -> Result<(Duration, bool), DemoError> {
        let began = self.start.elapsed();
        while self.start.elapsed() < options.publish_for && !interrupt.is_requested() {
            let left = options.publish_for.saturating_sub(self.start.elapsed());
            std::thread::sleep(left.min(LOOK_EVERY));
            self.look(stage)?;
        }
        self.quiet.request();
        Ok((self.start.elapsed() - began, interrupt.is_requested()))
    }

    /// Waits until the box holds nothing any more, within reason.
    fn drain(&mut self, options: &Options, stage: &mut Stage) -> Result<(Duration, bool), DemoError> {
        let began = Instant::now();
        stage.director.set_phase(Phase::Draining);
        let mut empty_looks = 0;
        while began.elapsed() < options.drain_limit {
            std::thread::sleep(LOOK_EVERY);
            self.look(stage)?;
            empty_looks = if self.is_empty() { empty_looks + 1 } else { 0 };
            if began.elapsed() >= SPANS_CLOSE && empty_looks >= EMPTY_LOOKS {
                return Ok((began.elapsed(), true));
            }
        }
        Ok((began.elapsed(), false))
    }

    fn is_empty(&self) -> bool {
        let status = self.status_rx.borrow();
        let held: u64 = status.lanes.iter().map(|lane| lane.records).sum();
        let under_way = status.ingest.unacknowledged + status.ingest.windows_pending + status.voids;
        held == 0 && under_way == 0 && self.tally.acked_total() == self.tally.published_total()
    }

    fn look(&mut self, stage: &mut Stage) -> Result<(), DemoError> {
        for (part, name) in [(&self.the_box, "box"), (&self.cloud, "cloud")] {
            if part.has_ended() {
                return Err(DemoError::Part { name, reason: "it ended in the middle of the run; see its log".to_owned() });
            }
        }
        for verdict in self.observer.verdicts_rx.try_iter() {
            stage.director.verdict(verdict);
        }
        let committed = std::array::from_fn(|lane| self.observer.committed[lane].load(Relaxed));
        let status = self.status_rx.borrow().clone();
        stage.director.look(self.start, status, self.link.link().stats(), &self.tally, committed);
        stage.draw();
        Ok(())
    }

    /// Stops everything, from the sensors to the cloud.
    fn stop(self) -> Result<Outcome, DemoError> {
        self.end.request();
        let panicked = |_| DemoError::Part { name: "sensors", reason: "their thread panicked".to_owned() };
        let logs = self.sensors.join().map_err(panicked)?;
        self.the_box.stop()?;
        self.cloud.stop()?;
        let commits = self.observer.stop()?;
        let (link, disconnects) = (self.link.link().stats(), self.tally.disconnects.load(Relaxed));
        Ok(Outcome { logs, commits, link, link_name: self.link_name, disconnects })
    }
}

/// Where the run is shown.
struct Stage {
    director: Director,
    screen: Option<Screen>,
    writes_lines: bool,
    looks: u64,
}

impl Stage {
    fn new(options: &Options, director: Director) -> Stage {
        let screen = if options.show == Show::Picture { Screen::open() } else { None };
        let writes_lines = options.show != Show::Nothing && screen.is_none();
        Stage { director, screen, writes_lines, looks: 0 }
    }

    fn draw(&mut self) {
        self.looks += 1;
        let scene = self.director.scene();
        if let Some(screen) = &mut self.screen {
            let (width, height) = screen.size();
            screen.draw(&view::draw(scene, width, height));
        } else if self.writes_lines && self.looks.is_multiple_of(LINE_LOOKS) {
            // Whoever has stopped reading does not want to know.
            let _ = writeln!(io::stdout(), "{}", view::one_line(scene));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_whole_once_publishing_has_ended() {
        for name in LinkProfile::builtin_names() {
            let options = Options { link: Some(name.to_owned()), publish_for: Duration::from_secs(100), ..Options::default() };
            for outage in profile(&options).unwrap().outages {
                assert!((outage.start.as_micros() + outage.length.as_micros()) <= 100_000_000, "{name}: {outage:?}");
            }
        }
    }

    #[test]
    fn without_a_link_named_the_outage_is_a_fifth_of_any_run() {
        let options = Options { publish_for: Duration::from_secs(10), ..Options::default() };
        let outages = profile(&options).unwrap().outages;
        assert_eq!((outages.len(), outages[0].length.as_millis()), (1, 2_000));
        let minute = profile(&Options::default()).unwrap();
        let built_in = LinkProfile::resolve("default").unwrap();
        assert_eq!(minute, built_in, "a minute of it is the profile as it is written");
    }
}
